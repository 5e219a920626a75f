#!/bin/sh
# test_weights.sh - tools/get_weights.sh on a small mirror with pins of its own: files that are fetched, resumed, refused, left.
# Needs python3 for the conversion; the file:// cases need curl.
. "$(dirname "$0")/shell.sh"
get=$here/../tools/get_weights.sh
cd "$dir" || exit 1

# run STATUS NAME ARGUMENTS...: the script on the small table, its output in out and err
run() {
    want=$1 name=$2
    shift 2
    "$get" --table table.md -o got "$@" >out 2>err </dev/null
    status=$?
    if [ $status -eq "$want" ]; then ok; else bad "$name: status $status, expected $want"; fi
}
# that NAME COMMAND...: the command succeeds
that() {
    name=$1
    shift
    if "$@"; then ok; else bad "$name: $*"; fi
}
no_file() { [ ! -e "$1" ]; }
says() { grep -q -- "$1" out err; }
only() { [ "$(ls got | tr '\n' ' ')" = "$1" ]; }

sum() { "$1" <mirror/"$2" | cut -d ' ' -f 1; }
mkdir mirror
cp "$here/golden/vit_timm_model.safetensors" mirror/whole.pth
cp mirror/whole.pth mirror/unpinned.pth
cp mirror/whole.pth mirror/named_by_md5.pth
head -c 5000 mirror/whole.pth >mirror/other.pth
size=$(wc -c <mirror/whole.pth | tr -d ' ')
sha=$(sum sha256sum whole.pth)
md5=$(sum md5sum whole.pth | cut -c 1-6)
if [ ${#sha} -ne 64 ] || [ ${#md5} -ne 6 ] || ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
    echo "skipped test_weights: sha256sum, md5sum and python3 (3.8 or newer) are needed"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
thousands=$(printf '%s' "$size" | sed 's/\([0-9]*\)\([0-9][0-9][0-9]\)$/\1,\2/')
cat >table.md <<END
Prose with | a bar.
| name | address | size in bytes | sha256 | md5 begins with |
|---|---|---:|---|---|
| \`whole\` | \`http://127.0.0.1:9/x/whole.pth\` | $thousands | \`$sha\` | \`$md5\` |
| \`unpinned\` | \`http://127.0.0.1:9/x/unpinned.pth\` | unknown | unknown | |
| \`named_by_md5\` | \`http://127.0.0.1:9/x/named_by_md5.pth\` | unknown | unknown | \`$md5\` |
| \`wrong_md5\` | \`http://127.0.0.1:9/x/named_by_md5.pth\` | unknown | unknown | \`ffffff\` |
| \`wrong_sha\` | \`http://127.0.0.1:9/x/whole.pth\` | $size | \`$(printf '%064d' 7)\` | |
| \`too_long\` | \`http://127.0.0.1:9/x/whole.pth\` | 4,999 | \`$sha\` | |
| \`absent\` | \`http://127.0.0.1:9/x/absent.pth\` | 10 | \`$sha\` | |
| \`no_model\` | \`http://127.0.0.1:9/x/other.pth\` | 5,000 | \`$(sum sha256sum other.pth)\` | |
| | \`mentioned.pth\` | 12 | \`$sha\` | |
END
export SAMLAD_MIRROR="$dir/mirror" no_proxy=127.0.0.1

run 0 help --help
that "help shows examples" says "examples:"
run 2 "unknown option" --frobnicate
run 2 "unknown name" sam_vit_x
that "it names the known ones" says "whole unpinned named_by_md5"
run 2 "bad dtype" --dtype f8 whole
run 2 "option without value" whole --table
run 0 list --list
that "eight names, not the row without one" [ "$(wc -l <out)" -eq 8 ]
that "nothing was made" no_file got

run 0 "a pinned file" whole
that "only the converted file is left" only "whole.safetensors "
that "it says that the pin was met" says "sha256 as pinned"
that "it is a model" python3 -c "import json; f = open('got/whole.safetensors', 'rb'); n = int.from_bytes(f.read(8), 'little'); assert json.loads(f.read(n))['__metadata__']['samlad.source_sha256'] == '$sha'"
touch -d 2001-01-01 got/whole.safetensors
run 0 "again: nothing to do" whole
that "it says so" says "is there already"
that "and left it alone" [ got/whole.safetensors -ot mirror/whole.pth ]
rm -rf got

run 0 "two, half precision, checkpoints kept" --keep --dtype f16 whole unpinned
that "both checkpoints and both models" only "unpinned.pth unpinned.safetensors whole.pth whole.safetensors "
that "the unpinned one is called so" says "unpinned.pth: NOT VERIFIED"
that "its sum is printed" says "$sha"
that "f16 is smaller" [ "$(wc -c <got/whole.safetensors)" -lt $((size * 6 / 10)) ]
rm -rf got

# from a folder: always anew
mkdir cut
head -c 7000 mirror/whole.pth >cut/whole.pth
SAMLAD_MIRROR=$dir/cut
run 1 "a truncated file" whole
that "it says how much is there, and where" says "7000 of $size bytes in $dir/cut: it is cut short there"
that "nothing is kept" only ""
SAMLAD_MIRROR=$dir/mirror
mkdir -p got
head -c 7000 /dev/zero >got/whole.pth.part
run 0 "the whole, beside the beginning of something else" whole
that "it is whole" only "whole.safetensors "
rm -rf got
head -c 7000 mirror/unpinned.pth >cut/unpinned.pth
SAMLAD_MIRROR=$dir/cut
run 1 "truncated, without a pin: the converter notices" unpinned
that "nothing of it is kept" only ""
SAMLAD_MIRROR=$dir/mirror
run 0 "the whole of it" unpinned
rm -rf got

run 1 "wrong sha256" wrong_sha
that "it names both sums" says "its sha256 is $sha, the official file's 0000"
that "nothing is left" only ""
run 1 "longer than it should be" too_long
that "nothing is left of it" only ""
run 0 "md5 prefix met" named_by_md5
run 1 "md5 prefix not met" wrong_md5
that "nothing is left of it either" only "named_by_md5.safetensors "
rm -rf got
run 1 "not on the mirror" absent
that "nothing was made of it" only ""
run 1 "as pinned, but no model" no_model
that "the checkpoint is kept, no model" only "other.pth "
rm -rf got
run 1 "one fails, the others come" wrong_sha whole
that "the other came" only "whole.safetensors "
that "it counts" says "1 of the weights could not be had"
rm -rf got
run 0 "download only" --no-convert whole
that "as it is" cmp -s got/whole.pth mirror/whole.pth
printf x >>got/whole.pth
run 1 "what lies there is checked too" whole
that "and goes" only ""
export PYTHON="$dir/no-python"
run 1 "without python3" whole
unset PYTHON
that "it says what it needs" says "python3 is needed"
rm -rf got

if command -v curl >/dev/null; then
    SAMLAD_MIRROR=file://$dir/cut
    run 1 "file://: truncated" whole
    that "the beginning is kept" only "whole.pth.part "
    SAMLAD_MIRROR=file://$dir/mirror/
    run 0 "file://: the rest" whole
    that "it is whole" only "whole.safetensors "
    rm -rf got
    mkdir got
    head -c 7000 /dev/zero >got/whole.pth.part
    run 1 "gone on with the beginning of something else" whole
    that "is noticed" says "its sha256 is"
    that "and removed" only ""
    run 0 "so that the next try begins anew" whole
    rm -rf got
    SAMLAD_MIRROR=file://$dir/cut
    run 1 "file://: truncated, without a pin: the converter notices" unpinned
    that "the beginning is kept" only "unpinned.pth.part "
    SAMLAD_MIRROR=file://$dir/mirror/
    run 0 "file://: the rest of it" unpinned
    rm -rf got
    SAMLAD_MIRROR=file://$dir/nowhere
    run 1 "file://: no such folder" unpinned
    rm -rf got
    unset SAMLAD_MIRROR
    run 1 "the official address, where nobody answers" whole
    that "nothing is left" only ""
    rm -rf got
else
    skipped=$((skipped + 1))
fi

# the real table
"$get" --list >out 2>err
that "the seven official names" [ "$(cut -d ' ' -f 1 out | tr '\n' ' ')" = "sam_vit_b sam_vit_l sam_vit_h mobile_sam dinov2_vits14 dinov2_vitb14 featup_dinov2 " ]
that "with pins that convert.py reads too" python3 -B -c "
import sys
sys.path.insert(0, '$here/../tools')
import convert
assert convert.OFFICIAL_FILES['sam_vit_b_01ec64.pth'] == (375042383, 'ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912')
assert len(convert.OFFICIAL_FILES) == 6 and convert.OFFICIAL_FILES['mobile_sam.pt'][0] == 40728226"

summary
