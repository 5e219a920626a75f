#!/bin/sh
# test_unreadable.sh - files that cannot be read, and test images that change between two calls of eval: what is told,
# what is left out, what is judged again. Tiny images and small random weights (as in test_cli.sh).

. "$(dirname "$0")/shell.sh"
bin=${SAMLAD_BIN:-$here/../build/samlad}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
cd "$dir" || exit 1
weights="--backbone $here/golden/vit_timm_model.safetensors --sam $here/golden/sam_resampled_model.safetensors --featup none"
small="$weights --no-objects 1 --size 32"

# expect STATUS NAME COMMAND...: the status; each line on stderr begins with "samlad: "
expect() {
    want=$1 name=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    if [ $got -ne "$want" ]; then
        bad "$name: status $got, expected $want"
    elif grep -qv '^samlad: .' err; then
        bad "$name: stderr is not lines 'samlad: ...'"
    else
        ok
    fi
}
says() { if grep -q -- "$1" err out; then ok; else bad "'$1' is not said"; fi; }
silent() { if [ -s err ]; then bad "something on stderr"; else ok; fi; }
# lines N: the last command left N lines on stderr
lines() { if [ "$(wc -l <err)" -eq "$1" ]; then ok; else bad "$(wc -l <err) lines on stderr, not $1"; fi; }
# same A B: the folders hold the same bytes, but for the time it took
same() {
    if diff -r -x timings.jsonl "$1" "$2" >difference 2>&1; then ok; else
        bad "$3: $1 and $2 differ"
        head -n 5 difference | sed 's/^/    /'
    fi
}
picture() { # SHIFT
    awk -v s="$1" 'BEGIN {
        print "P3\n40 32\n255"
        for (y = 0; y < 32; y++) for (x = 0; x < 40; x++) {
            v = (x * 3 + y * 2) % 90
            if (x > 8 + s && x < 20 + s && y > 6 && y < 18) print 230, v, 40
            else print v, v, v + 30
        }
    }'
}
mask() { awk 'BEGIN { print "P2 40 32 255"; for (i = 0; i < 40 * 32; i++) print i < 500 ? 255 : 0 }'; }
# damage PNG: a byte of its pixels, so that a checksum is wrong
damage() { printf 'x' | dd of="$1" bs=1 seek=$(($(wc -c <"$1") / 2)) conv=notrunc 2>difference; }

"$bin" synth tray drawn --seed 5 >out 2>err # PNG files
png=$(find drawn -name '*.png' -path '*train*' | sort | head -n 1)
there "$png"

# ---- bank ----------------------------------------------------------------------------------------------
mkdir good good/below
for i in 0 1 2 3; do picture $i >good/$i.ppm; done
expect 0 "a bank" "$bin" bank good -o whole.bank $small
silent
cp "$png" good/damaged.png
damage good/damaged.png
head -c 900 good/0.ppm >good/below/cut.ppm
: >good/void.jpg
expect 1 "three unreadable images" "$bin" bank good -o x.bank $small
lines 4
says "^samlad: good/damaged.png: .*CRC\|checksum"
says "^samlad: good/below/cut.ppm: "
says "^samlad: good/void.jpg: "
says "^samlad: 3 of 7 images cannot be read, nothing was begun (--skip-unreadable goes on without them)$"
gone x.bank
expect 0 "without them" "$bin" bank good -o skipped.bank $small --skip-unreadable
lines 4
says "^samlad: 3 of 7 images cannot be read and are left out$"
says "skipped.bank: 4 normal images"
expect 0 "the bank names them" "$bin" info skipped.bank
says "^  unreadable = 3: damaged.png, void.jpg, below/cut.ppm$"
expect 0 "a bank of it" "$bin" bank --from skipped.bank -o again.bank --k 3 --backbone "$here/golden/vit_timm_model.safetensors" --featup none
expect 0 "it names them, too" "$bin" info again.bank
says "^  unreadable = 3: damaged.png, void.jpg, below/cut.ppm$"
rm good/below/cut.ppm good/void.jpg
expect 1 "one of them is one line" "$bin" bank good -o x.bank $small
lines 1
says "^samlad: good/damaged.png: .* (--skip-unreadable goes on without it)$"
expect 1 "none that can be read" "$bin" bank good/damaged.png -o x.bank $small --skip-unreadable
says "none of the images can be read"
gone x.bank

# ---- eval ----------------------------------------------------------------------------------------------
mkdir -p set/train/good set/test/good set/test/bad set/ground_truth/bad
for i in 0 1 2 3; do picture $i >set/train/good/$i.ppm; done
for i in 0 1 2; do
    picture 2$i >set/test/bad/$i.ppm
    picture 1$i >set/test/good/$i.ppm
    mask >set/ground_truth/bad/$i.pgm
done
expect 0 "a run" "$bin" eval set -o out.whole $small
silent
if grep -q '"unreadable":\[\]' out.whole/results.json; then ok; else bad "no list of unreadable files"; fi
cp -r set broken
head -c 900 set/train/good/1.ppm >broken/train/good/1.ppm
cp "$png" broken/test/good/1.ppm # a file's type is read from its first bytes
damage broken/test/good/1.ppm
: >broken/test/bad/0.ppm
head -c 900 set/ground_truth/bad/2.pgm >broken/ground_truth/bad/2.pgm
expect 1 "four unreadable files" "$bin" eval broken -o out.broken $small
lines 5
for f in train/good/1.ppm test/good/1.ppm test/bad/0.ppm ground_truth/bad/2.pgm; do says "^samlad: broken/$f: "; done
says "^samlad: broken: 4 problems in this data set, nothing was begun (--skip-unreadable goes on without files that cannot be read)$"
gone out.broken
expect 0 "without them" "$bin" eval broken -o out.broken $small --skip-unreadable
lines 5
says "^samlad: broken: 4 files cannot be read and are left out$"
says "^broken: 4 files could not be read and are left out$"
says "bank of 3 images .* 4 test images" # an image stays without its mask
left_out='"unreadable":\["train/good/1.ppm","test/good/1.ppm","test/bad/0.ppm","ground_truth/bad/2.pgm"\]'
for f in results.json tests/broken.json; do
    if grep -q "$left_out" out.broken/$f; then ok; else bad "$f does not name the files"; fi
done
if grep -q '^broken: 4 files could not be read and are left out: train/good/1.ppm, test/good/1.ppm, ' out.broken/results.md; then ok; else bad "Markdown does not name the files"; fi
# it is the run of a data set without them
cp -r broken less
mv less short
mkdir less
mv short less/broken
rm less/broken/train/good/1.ppm less/broken/test/good/1.ppm less/broken/test/bad/0.ppm less/broken/ground_truth/bad/2.pgm
expect 0 "a set without them" "$bin" eval less/broken -o out.less $small
for f in results.jsonl results.csv anomaly_maps records banks; do same out.less/$f out.broken/$f "without them"; done
# shards and their merge leave out the same files
for i in 1 2; do expect 0 "shard $i" "$bin" eval broken -o out.shard.$i --shard $i/2 $small --skip-unreadable; done
expect 0 "merge" "$bin" eval --merge out.shard.1 out.shard.2 -o out.merged
silent
says "^broken: 4 files could not be read"
same out.broken out.merged "two shards"
cp -r broken mended && cp set/test/bad/0.ppm mended/test/bad && mv mended elsewhere && mkdir mended && mv elsewhere mended/broken
expect 0 "a shard of a mended set" "$bin" eval mended/broken -o out.shard.3 --shard 2/2 $small --skip-unreadable
expect 1 "shards of other test images" "$bin" eval --merge out.shard.1 out.shard.3 -o out.mixed
says "out.shard.3/tests/broken.json and out.mixed/tests/broken.json differ: these runs cannot be merged. They had other test images"
rm -r mended
expect 2 "a merge takes the run's choice" "$bin" eval --merge out.merged --skip-unreadable
cp -r broken sized
echo 'P2 1 1 1 1' >sized/ground_truth/bad/1.pgm
expect 1 "a problem of another kind stays one" "$bin" eval sized -o out.other $small --skip-unreadable
says "^samlad: sized: 1 problem in this data set, nothing was begun$"
gone out.other
# repaired test images are judged, no others; a repaired normal image is another bank
cp set/test/good/1.ppm broken/test/good
cp set/test/bad/0.ppm broken/test/bad
cp set/ground_truth/bad/2.pgm broken/ground_truth/bad
expect 0 "three are repaired" "$bin" eval broken -o out.broken $small --skip-unreadable
says "6 test images, 2 of them done now" # one had lost its mask alone
expect 0 "from the start" "$bin" eval broken -o out.fresh $small --skip-unreadable
same out.fresh out.broken "repaired files"
cp set/train/good/1.ppm broken/train/good
expect 1 "a repaired normal image" "$bin" eval broken -o out.broken $small
says "the normal images (count) was 3 and is 4 now"
same out.fresh out.broken "a refusal changes nothing"

# ---- test images are replaced, removed, added ----------------------------------------------------------
# changed NAME N: eval judges N images again in a copy of the finished run, and the folder is that of a fresh run
changed() {
    rm -rf out.again out.fresh
    cp -r out.whole out.again
    expect 0 "$1" "$bin" eval set -o out.again $small
    silent
    says "$2 of them done now\|^bank of .* s/image$"
    expect 0 "$1, from the start" "$bin" eval set -o out.fresh $small
    same out.fresh out.again "$1"
    if [ "$(wc -l <out.again/timings.jsonl)" -eq $((6 + $2)) ]; then ok; else bad "$1: not $2 images judged again"; fi
}
cp -r set kept
changed "nothing has changed" 0
picture 5 >set/test/good/1.ppm
changed "one is replaced" 1
picture 7 >set/test/bad/9.ppm
mkdir set/test/other
picture 9 >set/test/other/0.ppm
changed "one is replaced, two are added" 3
rm set/test/good/1.ppm set/test/bad/1.ppm set/ground_truth/bad/1.pgm
changed "and two are removed" 2
rm -r set/test/bad set/ground_truth
changed "a kind is removed" 1
mkdir -p set/test/other/deep/er
picture 2 >set/test/other/deep/er/0.ppm
rm -rf out.whole && expect 0 "images in folders" "$bin" eval set -o out.whole $small
rm -r set/test/other/deep
expect 0 "and without" "$bin" eval set -o out.whole $small
expect 0 "from the start" "$bin" eval set -o out.fresh $small
same out.fresh out.whole "folders below a kind"
gone out.whole/records/set/test/other/deep out.whole/anomaly_maps/set/test/other/deep
mv set/test/other/0.ppm set/test/other/renamed.ppm
expect 0 "one has another name" "$bin" eval set -o out.whole $small
says "1 of them done now"
rm -r out.fresh && expect 0 "from the start" "$bin" eval set -o out.fresh $small
same out.fresh out.whole "one has another name"
# pictures of the old image do not stay beside the new result
rm -rf set out.again out.fresh out.whole && cp -r kept set
expect 0 "the first set" "$bin" eval set -o out.whole $small
cp -r out.whole out.again
picture 5 >set/test/good/1.ppm
expect 0 "without pictures" "$bin" eval set -o out.again $small --no-pictures
gone out.again/pictures/set/test/good/1_heat.png
there out.again/pictures/set/test/good/0_heat.png out.again/records/set/test/good/1.json
# a shard judges its own changed images, and leaves those of others alone
rm -rf out.again
cp -r out.whole out.again
picture 6 >set/test/good/0.ppm
expect 0 "shard 1 of 2" "$bin" eval set -o out.again $small --shard 1/2
says "1 test images done"
expect 1 "a merge meets the other's old result" "$bin" eval --merge out.again
says "records/set/test/good/1.json: this result is of another image than .*/set/test/good/1.ppm: run samlad eval again$"
expect 0 "shard 2 of 2" "$bin" eval set -o out.again $small --shard 2/2
says "1 test images done"
expect 0 "merge" "$bin" eval --merge out.again
expect 0 "from the start" "$bin" eval set -o out.fresh $small
same out.fresh out.again "two shards of a changed set"
# a damaged record counts as none
echo '{' >out.again/records/set/test/good/0.json
expect 0 "a damaged record" "$bin" eval set -o out.again $small
same out.fresh out.again "a damaged record"
# the normal images are facts as before
picture 8 >set/train/good/2.ppm
expect 1 "another normal image" "$bin" eval set -o out.again $small
says "the normal images (sha256)"
same out.fresh out.again "another normal image changes nothing"
cp kept/train/good/2.ppm set/train/good
# categories are renamed and removed; with --category the others stay
mkdir many && cp -r kept many/a && cp -r kept many/b
expect 0 "two categories" "$bin" eval many -o out.many $small
expect 0 "one of them" "$bin" eval many -o out.many $small --category a
there out.many/banks/b.bank out.many/records/b
mv many/b many/c
expect 0 "one has another name" "$bin" eval many -o out.many $small
says "6 of them done now"
gone out.many/banks/b.bank out.many/records/b out.many/anomaly_maps/b out.many/baselines/position-nn/b out.many/tests/b.json out.many/categories/b.json
expect 0 "from the start" "$bin" eval many -o out.two $small
same out.two out.many "a category has another name"
rm -r many/c out.two
expect 0 "one is removed" "$bin" eval many -o out.many $small
expect 0 "merge" "$bin" eval --merge out.many
expect 0 "from the start" "$bin" eval many -o out.two $small
same out.two out.many "a category is removed"
# the data set itself has another name; a mask of another size is resized from now on
expect 0 "alone" "$bin" eval many/a -o out.alone $small
mv many/a many/z
echo 'P2 2 2 1 1 0 0 0' >many/z/ground_truth/bad/1.pgm
expect 0 "another name" "$bin" eval many/z -o out.alone $small --resize-masks
gone out.alone/records/a out.alone/categories/a.json
expect 0 "from the start" "$bin" eval many/z -o out.z $small --resize-masks
same out.z out.alone "a data set with another name"
expect 0 "merge" "$bin" eval --merge out.alone
same out.z out.alone "a merge resizes, too"
# a merge tells the same warnings, from another folder
cp many/z/ground_truth/bad/1.pgm many/z/ground_truth/bad/other.pgm
expect 0 "a mask of no image" "$bin" eval many/z -o out.z $small --resize-masks
says "^samlad: warning: many/z/ground_truth/bad/other.pgm: this mask belongs to no test image$"
cp out.z/results.json told.json
expect 0 "merge" "$bin" eval --merge out.z
same told.json out.z/results.json "the warnings of a merge"
if grep -q '"warnings":\["z/ground_truth/bad/other.pgm: this mask belongs to no test image"\]' told.json; then ok; else bad "the warning has another path"; fi
# a TIFF of floats is no mask
cp out.z/anomaly_maps/z/test/bad/1.tiff many/z/ground_truth/bad/0.tiff
"$bin" eval many/z -o out.z $small --resize-masks >out 2>err </dev/null || bad "a mask of floats"
says "^1 file is no picture: 0.tiff (floats)$"
# ablate removes the maps of measured settings, so its test images are facts
expect 0 "ablate" "$bin" ablate set -o ablation --setting= $small
picture 3 >set/test/good/0.ppm
expect 1 "ablate with another test image" "$bin" ablate set -o ablation --setting= $small
says "the test images (sha256)"

summary
