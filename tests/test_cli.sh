#!/bin/sh
# test_cli.sh - the samlad command from outside: statuses, messages, files. Runs $SAMLAD_BIN on small random weights,
# the models of test_vit.c and test_sam.c. So it needs neither the shipped weights nor data.
#
#   0 success, 1 a failure with exactly one line "samlad: ...", 2 wrong usage with one such line

. "$(dirname "$0")/shell.sh"
bin=${SAMLAD_BIN:-$here/../build/samlad}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
vit=$here/golden/vit_timm_model.safetensors
other_vit=$here/golden/vit_registers_model.safetensors
sam=$here/golden/sam_resampled_model.safetensors
cd "$dir" || exit 1
# random weights: no mask is better than another
masks="--points 3 --pred-iou-thresh -10 --stability-score-thresh 0 --min-area 0.01"
weights="--backbone $vit --sam $sam --featup none"

# expect STATUS NAME COMMAND...: the status, and on stderr nothing (0) or one line that begins with "samlad: " (1, 2)
expect() {
    want=$1 name=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    lines=$(wc -l <err)
    if [ $got -ne "$want" ]; then
        bad "$name: status $got, expected $want"
    elif [ "$want" -eq 0 ] && [ -s err ]; then
        bad "$name: something on stderr"
    elif [ "$want" -ne 0 ] && { [ "$lines" -ne 1 ] || ! grep -q '^samlad: .' err; }; then
        bad "$name: stderr is not one line 'samlad: ...'"
    elif [ "$want" -eq 2 ] && [ -s out ]; then
        bad "$name: usage error with output"
    else
        ok
    fi
}

# says PATTERN: the last command's stderr or stdout has it
says() { if grep -q -- "$1" err out; then ok; else bad "'$1' is not said"; fi; }
no_leftovers() { if [ -z "$(find . -name '*.tmp*')" ]; then ok; else bad "left behind: $(find . -name '*.tmp*')"; fi; }

# picture WIDTH HEIGHT SHIFT: a plain PPM, two bright boxes on a gradient
picture() {
    awk -v w="$1" -v h="$2" -v s="$3" 'BEGIN {
        print "P3\n" w " " h "\n255"
        for (y = 0; y < h; y++) for (x = 0; x < w; x++) {
            v = (x * 3 + y * 2) % 90
            if (x > 8 + s && x < 20 + s && y > 6 && y < 18) print 230, v, 40
            else if (x > 28 && x < 42 && y > 24 + s && y < 40 + s) print 30, 200, 90 + v
            else print v, v, v + 30
        }
    }'
}

# ---- usage ---------------------------------------------------------------------------------------------
"$bin" >out 2>err
[ $? -eq 2 ] && [ -s err ] && [ ! -s out ] && ok || bad "no command"
for c in "" bank detect segment info synth eval ablate; do
    expect 0 "$c --help" "$bin" $c --help
    there out
    expect 0 "$c -h" "$bin" $c -h
done
expect 0 help "$bin" help
for c in bank segment bench; do
    expect 0 "help $c" "$bin" help $c
    says "^usage: samlad $c\|^samlad $c"
done
# METHOD.md's section on --method names every option, and has the two values of those that the word sets
sed -n '/^## The paper.s own, by one word/,/^## Notation/p' "$here/../docs/METHOD.md" >words
"$bin" bank --help >out
for o in $(sed -n 's/^  \(--[a-z-]*\) .*\]$/\1/p' out); do
    if [ $o = --method ] || grep -q -- "\`$o\`" words; then ok; else bad "METHOD.md: nothing on $o under --method paper"; fi
done
sed -n 's/^  \(--[a-z-]*\) .*\[\(.*\); paper: \(.*\)\]$/| `\1` | \2 | \3 |/p' out >rows
[ -s rows ] && ok || bad "--help shows no value of the paper's"
if grep -cF -f rows words | grep -qx "$(grep -c . rows)"; then ok; else bad "METHOD.md and --help differ on --method paper"; fi
rm words rows
expect 2 "help of nothing" "$bin" help cups
expect 0 version "$bin" --version
says '^samlad [0-9]'
expect 2 "unknown command" "$bin" frobnicate
expect 2 "bank without -o" "$bin" bank x.ppm
expect 2 "bank without images" "$bin" bank -o x.bank
expect 2 "bank from both" "$bin" bank x.ppm --from a.bank -o x.bank
expect 2 "detect without a bank" "$bin" detect x.ppm
expect 2 "detect without an image" "$bin" detect --bank x.bank
expect 2 "detect with a method option" "$bin" detect --bank x.bank x.ppm --k 3
says "setting of the bank: make one with samlad bank (--from takes the images of this one)"
expect 2 "detect with an option of features" "$bin" detect --bank x.bank x.ppm --views 1
says "setting of the bank: make one of its images with samlad bank (see"
expect 2 "segment without an image" "$bin" segment
expect 2 "masks of another form" "$bin" segment a.ppm --output-mode rle
expect 2 "a folder of masks beside the image" "$bin" segment a.ppm --output-mode binary_mask
expect 2 "info of nothing" "$bin" info
expect 2 "synth of nothing" "$bin" synth
expect 2 "synth of what?" "$bin" synth cups out
expect 2 "digits without MNIST" "$bin" synth digits out
expect 2 "parts of digits" "$bin" synth digits --mnist . --parts out
expect 2 "eval of nothing" "$bin" eval
for o in --frobnicate --k=0 --k=-1 --k=5.5 --k=nan --k=x --k= --tau=0 --tau=1e99 --resize=stretch --alpha=high --layer=-1 --json=1 --bank=x --point=1,2 \
    --seed=1 -k -oo "--this-name-is-longer-than-any-buffer-that-one-would-expect-here-or-anywhere=1"; do
    expect 2 "bank $o" "$bin" bank x.ppm -o x.bank "$o"
done
expect 2 "an option without its value" "$bin" bank x.ppm -o
for o in --point=1 --point=1,2,3 --point=1,2,1,1 --point=a,b --point=nan,1 --box=1,2,3 --box=1,2,3,4,5 --k=3 --bank=x; do
    expect 2 "segment $o" "$bin" segment x.ppm "$o"
done
for o in --seed=-1 --seed=1.5 --seed=99999999999999999999 --k=3 --out=x; do expect 2 "synth $o" "$bin" synth tray out "$o"; done
expect 2 "info takes no options" "$bin" info x --json
expect 2 "max-bank" "$bin" eval x --max-bank=many
# the command takes every option of --help: without its value it reports that, not an unknown option
for c in bank detect segment synth eval ablate; do
    for o in $("$bin" $c --help | grep -o -- '--[a-z][a-z-]*' | sort -u); do
        case $o in --help) continue ;; --from) [ $c = bank ] || continue ;; esac
        "$bin" $c $o >out 2>err
        if grep -q "there is no option" err; then bad "$c $o is in --help but not taken"; else ok; fi
    done
done
for o in out bank backbone sam; do
    expect 2 "an empty --$o" "$bin" detect x.ppm --bank x.bank "--$o="
    says "empty name"
done
expect 2 "an empty -o" "$bin" bank x.ppm -o ""
expect 2 "an empty --featup" "$bin" bank x.ppm -o x.bank --featup=
# options without an effect
expect 2 "features of a bank's images" "$bin" bank --from a.bank -o x.bank --size 100
says "needs the images again"
expect 2 "one mask of all" "$bin" segment x.ppm --single
expect 2 "a grid of points beside a point" "$bin" segment x.ppm --point 1,2 --points 3
for o in --k=3 --bank=x --max-bank=2 --shard=1/2 --dataset=visa --no-pictures --sam=x --featup=none; do
    expect 2 "merge with $o" "$bin" eval --merge x "$o"
    says "with --merge"
done
expect 2 "where the data are now, without --merge" "$bin" eval x --data y
expect 2 "a bank of no images" "$bin" eval x --max-bank 0
expect 2 "MNIST for trays" "$bin" synth tray out --mnist x
expect 2 "a box from right to left" "$bin" segment x.ppm --box 50,50,10,60
expect 2 "a second box" "$bin" segment x.ppm --box 5,5,10,60 --box 1,1,2,2
says "a prompt has one box"
points=$(seq -f "--point=%g,1" 257)
expect 2 "257 points" "$bin" segment x.ppm $points
says "more than 256"
expect 1 "nowhere to print" sh -c "'$bin' --help >/dev/full"
gone x.bank out_heat.png

# ---- failures ------------------------------------------------------------------------------------------
mkdir good new empty
for i in 0 1 2 3; do picture 56 48 $i >good/$i.ppm; done
picture 56 48 5 >new/a.ppm
mkdir new/below
picture 56 48 1 >new/below/b.ppm
echo "no image" >new/notes.json
echo "not an image" >fake.png
: >void.png
head -c 300 good/0.ppm >short.ppm
expect 1 "no weights" env SAMLAD_WEIGHTS="$dir/empty" "$bin" bank good -o x.bank
says backbone
expect 1 "segment: no weights" env SAMLAD_WEIGHTS="$dir/empty" "$bin" segment good/0.ppm
expect 1 "weights are missing" "$bin" bank good -o x.bank --backbone nowhere.safetensors --sam "$sam"
says nowhere.safetensors
expect 1 "weights are an image" "$bin" bank good -o x.bank --backbone good/0.ppm --sam "$sam"
expect 1 "a SAM as backbone" "$bin" bank good -o x.bank --backbone "$sam" --sam "$sam"
expect 1 "a ViT as SAM" "$bin" bank good -o x.bank --backbone "$vit" --sam "$vit"
expect 1 "image is missing" "$bin" bank good/0.ppm nowhere.png -o x.bank $weights $masks
says nowhere.png
for f in fake.png void.png short.ppm; do
    expect 1 "bank of $f" "$bin" bank good/0.ppm $f -o x.bank $weights $masks
    says "$f"
    expect 1 "segment $f" "$bin" segment $f --sam "$sam"
done
expect 1 "folder without images" "$bin" bank empty -o x.bank $weights $masks
says "no images"
# before the work: the weights are not even looked for
expect 1 "bank cannot be written" "$bin" bank good/0.ppm -o nowhere/x.bank --backbone nothing
says "nowhere/x.bank: cannot create"
expect 1 "bank is a folder" "$bin" bank good/0.ppm -o empty --backbone nothing
says "empty: is a folder"
mkdir -p root/part/train/good root/part/test/bad root/other/train/good
cp good/0.ppm root/part/train/good
cp good/1.ppm root/part/test/bad
cp good/0.ppm root/other/train/good
for d in root/part root; do
    expect 1 "bank of a whole data set, $d" "$bin" bank $d -o x.bank $weights $masks
    says "root/part/test: test images would be taken for normal ones: give root/part/train/good instead"
done
mkdir -p own/normal own/scratched plain/normal plain/test/good
cp good/0.ppm own/normal
cp good/0.ppm plain/normal
cp good/1.ppm own/scratched
expect 1 "bank of normal images and the others beside them" "$bin" bank own -o x.bank $weights $masks
says "own/scratched/1.ppm: test images would be taken for normal ones: give own/normal instead"
expect 1 "bank of a folder with tests" "$bin" bank plain -o x.bank $weights $masks
says "plain/test: test images would be taken for normal ones: give plain/normal instead"
rm -r own plain
expect 1 "stages without FeatUp" "$bin" bank good/0.ppm -o x.bank $weights $masks --featup 2
says "give --featup FILE"
expect 1 "layer that is not there" "$bin" bank good/0.ppm -o x.bank $weights $masks --layer 9
expect 1 "info of nothing there" "$bin" info nowhere.safetensors
expect 1 "info of a picture" "$bin" info good/0.ppm
expect 1 "eval of a folder without train" "$bin" eval empty $weights
expect 1 "recalibrate what is no bank" "$bin" bank --from "$vit" -o x.bank $weights
gone x.bank nowhere fake_masks.json fake_masks.png
no_leftovers

# ---- bank ----------------------------------------------------------------------------------------------
expect 0 "bank of a data set's normal images" "$bin" bank root/part/train/good root/other -o x.bank $weights $masks
says "2 normal images"
rm -r root x.bank
expect 0 bank "$bin" bank good -o n.bank $weights $masks --k 2
says "4 normal images"
there n.bank
mkdir twice
ln -s ../good/2.ppm twice/again.ppm
expect 0 "images that are named twice" "$bin" bank good twice good/1.ppm -o t.bank $weights $masks --k 2
says "2 images given more than once"
if cmp -s n.bank t.bank; then ok; else bad "the same image once more gave another bank"; fi
rm -r twice t.bank
expect 0 "info of a bank" "$bin" info n.bank
says "option.k = 2"
says "objects.first"
expect 0 "the same bank again" env OMP_NUM_THREADS=2 "$bin" bank good -o m.bank $weights $masks --k 2
if cmp -s n.bank m.bank; then ok; else bad "the same images gave another bank"; fi
expect 0 "recalibrate" "$bin" bank --from n.bank -o k3.bank $weights --k 3 --channel-graph softmax
mkdir elsewhere
ln -s elsewhere/k3.bank linked.bank
expect 0 "to a link" "$bin" bank --from n.bank -o linked.bank $weights --k 3 --channel-graph softmax
if [ -L linked.bank ] && cmp -s elsewhere/k3.bank k3.bank; then ok; else bad "the link was replaced"; fi
rm -r linked.bank elsewhere
expect 0 "info of it" "$bin" info k3.bank
says "option.k = 3"
says "option.points = 3" # options of features stay, and others that are not named
says "option.channel-graph = softmax"
expect 0 "recalibrate once more" "$bin" bank --from k3.bank -o k1.bank $weights --k 1
expect 0 "info of that" "$bin" info k1.bank
says "option.k = 1"
says "option.channel-graph = softmax"
rm k1.bank
# --method: options given beside it hold, before it or behind it; banks record the word and the values
expect 0 "the paper's method" "$bin" bank good -o p.bank $weights $masks --k 2 --method paper --count 1
expect 0 "in another order" "$bin" bank good -o again.bank $weights $masks --count 1 --k 2 --method samlad --method paper
if cmp -s p.bank again.bank; then ok; else bad "the place of --method counts"; fi
expect 0 "from a bank" "$bin" bank --from n.bank -o again.bank $weights --count 1 --method paper
if cmp -s p.bank again.bank; then ok; else bad "--method of a bank's images"; fi
expect 0 "info of it" "$bin" info p.bank
says "option.method = paper"
says "option.align = pixel"
says "option.object-quantile = 0$"
says "option.count = 1"
says "option.points = 3"
expect 0 "from the paper's bank" "$bin" bank --from p.bank -o again.bank $weights --k 1 --claims 1
expect 0 "info of that" "$bin" info again.bank
says "option.method = paper"
says "option.align = pixel"
says "option.claims = 1"
says "option.k = 1$"
expect 0 "and back" "$bin" bank --from again.bank -o again.bank $weights --k 2 --method samlad
if cmp -s n.bank again.bank; then ok; else bad "--method samlad does not undo --method paper"; fi
expect 2 "a method of nobody" "$bin" bank good -o x.bank $weights $masks --method ours
says "none of samlad|paper"
rm p.bank again.bank
expect 0 "a bank in bf16" "$bin" bank good -o half.bank $weights $masks --k 2 --precision bf16
expect 0 "info of a bank in bf16" "$bin" info half.bank
says "option.precision = bf16"
if cmp -s n.bank half.bank; then bad "bf16 changes nothing"; else ok; fi
if command -v python3 >/dev/null 2>&1; then # metadata may hold anything: it must not steer the terminal
    python3 - >err 2>&1 <<'PYTHON' && ok || bad "a file with control characters"
import json
head = json.dumps({"__metadata__": {"a\x1b[2J": "b\nc\x7f\u009b2Jd\u00e9"}, "t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}},
                  ensure_ascii=False).encode()
open("steering.safetensors", "wb").write(len(head).to_bytes(8, "little") + head + b"x")
PYTHON
    expect 0 "info of it" "$bin" info steering.safetensors
    says '^  a\\x1b\[2J = b\\x0ac\\x7f\\xc2\\x9b2Jdé$'
    if LC_ALL=C tr -d '\n' <out | LC_ALL=C grep -q '[[:cntrl:]]'; then bad "control characters on the terminal"; else ok; fi
else
    echo "  skipped: no file with control characters without python3"
    skipped=$((skipped + 1))
fi
expect 0 "one image, fit, no objects" "$bin" bank good/0.ppm -o one.bank $weights --no-objects 1 --resize fit --size 0 --layer 0
expect 0 "no masks, no background" "$bin" bank good -o none.bank $weights --background 0 --pred-iou-thresh 10 --points 2
expect 0 "detect without objects" "$bin" detect --bank none.bank new $weights
expect 0 "a file that begins with a dash" sh -c "cp good/0.ppm ./-x.ppm && '$bin' bank -o dash.bank $weights --no-objects 1 -- -x.ppm"
expect 1 "images of two aspects with --resize fit" sh -c "awk 'BEGIN{print \"P2 90 20 9\"; for(i=0;i<1800;i++) print i%10}' > wide.pgm; '$bin' bank good/0.ppm wide.pgm -o x.bank $weights --no-objects 1 --resize fit"
says aspect

# ---- detect --------------------------------------------------------------------------------------------
expect 0 "detect a folder" "$bin" detect --bank n.bank new -o res $weights
says "new/a.ppm"
says "rank"
there res/results.jsonl res/a_heat.png res/a_overlay.png res/a.tiff res/below/b_heat.png res/below/b_overlay.png res/below/b.tiff
[ "$(wc -l <res/results.jsonl)" -eq 2 ] && ok || bad "results.jsonl does not have two lines"
expect 0 "detect --json" "$bin" detect --bank n.bank new --json --no-pictures -o json $weights
cp out lines.jsonl
if cmp -s lines.jsonl json/results.jsonl && cmp -s lines.jsonl res/results.jsonl; then ok; else bad "--json, results.jsonl differ"; fi
gone json/a_heat.png json/a.tiff
if command -v python3 >/dev/null 2>&1; then
    python3 - lines.jsonl >err 2>&1 <<'PYTHON' && ok || bad "--json lines are not as documented"
import json, math, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
assert [l["image"] for l in lines] == ["new/a.ppm", "new/below/b.ppm"], lines
for l in lines:
    assert l["width"] == 56 and l["height"] == 48 and len(l["references"]) == 2
    assert math.isfinite(l["score"]) and 0 < l["rank"] <= 1 and l["objects"]
    assert l["doubt"] is None or (l["anomalous"] and l["doubt"]["kind"] in ("logical", "layout", "structural") and len(l["doubt"]["at"]) == 2)
    for o in l["objects"]:
        x, y, w, h = o["bbox"]
        assert 0 <= x and x + w <= 56 and 0 <= y and y + h <= 48 and o["verdict"] in ("normal", "extra", "damaged")
        assert ("reason" in o) == (o["verdict"] != "normal")
        assert all(0 <= m["reference"] < 2 and 0 <= m["assignment"] <= 1.01 for m in o["matches"])
PYTHON
else
    echo "  skipped: --json is not parsed without python3"
    skipped=$((skipped + 1))
fi
for threads in 1 2 4; do
    OMP_NUM_THREADS=$threads "$bin" detect --bank n.bank new --json $weights >again 2>err
    if cmp -s again lines.jsonl; then ok; else bad "other results with $threads threads"; fi
done
# several images at once: results in the order of the list; a broken one does not stop the others
mkdir many
for i in 1 2 3 4 5; do cp new/a.ppm many/$i.ppm; done
cp new/below/b.ppm many/3.ppm
OMP_NUM_THREADS=1 "$bin" detect --bank n.bank many -o many1 $weights >one.txt 2>err
OMP_NUM_THREADS=4 "$bin" detect --bank n.bank many -o many4 $weights >four.txt 2>err
if [ -s one.txt ] && cmp -s one.txt four.txt && diff -r many1 many4 >err; then ok; else bad "4 images at once give other output"; fi
cp good/1.ppm many/0.ppm
echo "no image" >many/4.ppm
OMP_NUM_THREADS=1 "$bin" detect --bank n.bank many -o many5 $weights >one.txt 2>one.err
OMP_NUM_THREADS=4 "$bin" detect --bank n.bank many -o many6 $weights >four.txt 2>four.err
if [ -s one.txt ] && cmp -s one.txt four.txt && cmp -s one.err four.err && grep -q "4.ppm" four.err; then ok; else bad "4 images at once, one broken"; fi
if diff -r many5 many6 >err; then ok; else bad "files beside a broken image"; fi
there many6/results.jsonl many6/5_heat.png # a broken image leaves the others' results
gone many6/4_heat.png
n_good=$(($(ls many | wc -l) - 1))
if [ "$(wc -l <many6/results.jsonl)" -eq $n_good ] && ! grep -q 4.ppm many6/results.jsonl; then ok; else bad "lines beside a broken image"; fi
rm -r many many?
# stopped in the middle: finished results stay, in whole lines, and no temporary file
mkdir many
for i in 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29; do cp new/a.ppm many/$i.ppm; done
mkdir many1
: >"many1/results.jsonl.tmp.$(uname -n).4194304" # of a process that was killed: there is none of this number
"$bin" detect --bank n.bank many -o many1 $weights >lines 2>err &
process=$!
while kill -0 $process 2>/dev/null && [ ! -s lines ]; do sleep 0.01; done
kill -TERM $process 2>/dev/null
{ wait $process; } 2>/dev/null
status=$?
n_lines=$(wc -l <many1/results.jsonl)
if { [ $status -eq 143 ] && [ "$n_lines" -gt 0 ] && [ "$n_lines" -lt 20 ] && grep -q "stopped at image" err; } ||
    { [ $status -eq 0 ] && [ "$n_lines" -eq 20 ]; }; then ok; else bad "stopped: status $status, $n_lines lines"; fi
rm lines
(
    trap '' HUP # as nohup does
    exec "$bin" detect --bank n.bank many -o many3 $weights >lines 2>err
) &
process=$!
while kill -0 $process 2>/dev/null && [ ! -s lines ]; do sleep 0.01; done
kill -HUP $process 2>/dev/null
{ wait $process; } 2>/dev/null
if [ $? -eq 0 ] && [ "$(wc -l <many3/results.jsonl)" -eq 20 ]; then ok; else bad "SIGHUP below nohup ends it"; fi
"$bin" detect --bank n.bank many -o many2 $weights 2>err | head -1 >lines
n_lines=$(wc -l <many2/results.jsonl)
if [ "$n_lines" -gt 0 ] && [ "$(grep -c '}$' many2/results.jsonl)" -eq "$n_lines" ]; then ok; else bad "a reader that goes away: $n_lines lines"; fi
if ls many1 many2 | grep -q tmp; then bad "temporary files of a run that was stopped"; else ok; fi
rm -r many many?
# unreadable formats are reported; test images among normal ones are refused
mkdir -p mixed visa/c/Data/Images/Normal visa/c/Data/Images/Anomaly
cp good/0.ppm mixed && cp good/0.ppm visa/c/Data/Images/Normal && cp good/1.ppm visa/c/Data/Images/Anomaly
: >mixed/a.webp
cp res/a.tiff mixed/b.TIF # a map: floats are no picture
: >mixed/notes.txt
expect 0 "a folder with other formats" "$bin" bank mixed -o x.bank $weights --no-objects 1
says "^3 files are no pictures: a.webp, b.TIF (floats), notes.txt$"
expect 0 "the same words in detect" sh -c "'$bin' detect --bank x.bank mixed $weights --json 2>told"
if [ "$(cat told)" = "3 files are no pictures: a.webp, b.TIF (floats), notes.txt" ]; then ok; else bad "detect tells: $(cat told)"; fi
expect 1 "VisA's folder as normal images" "$bin" bank visa -o y.bank $weights
says "give visa/c/Data/Images/Normal"
gone y.bank
expect 0 "and its normal images" "$bin" bank visa/c/Data/Images/Normal -o x.bank $weights --no-objects 1
rm -r x.bank mixed visa
# names: two images whose names differ in the ending alone, two folders with the same names
mkdir twins twins/a twins/b
cp new/a.ppm twins/a/0.ppm && cp new/a.ppm twins/a/0.pnm && cp good/1.ppm twins/a/1.ppm
cp good/0.ppm twins/b/0.ppm
expect 0 "two endings of a name" "$bin" detect --bank n.bank twins/a -o twins.out $weights
cp new/a.ppm twins/a/0.ppm.ppm
expect 0 "and a third one" "$bin" detect --bank n.bank twins/a -o three.out $weights
there three.out/0.ppm_heat.png three.out/0.pnm_heat.png three.out/0.ppm.ppm_heat.png three.out/1_heat.png
rm -r twins/a/0.ppm.ppm three.out
there twins.out/0.ppm_heat.png twins.out/0.pnm_overlay.png twins.out/0.pnm.tiff twins.out/1_heat.png
expect 0 "a bank of two folders" "$bin" bank twins/a twins/b -o x.bank $weights --no-objects 1
expect 0 "its images" "$bin" info x.bank
says "image.[0-9] = a/0.ppm"
says "image.[0-9] = b/0.ppm"
says "image.[0-9] = a/1.ppm"
says "option.crop-overlap-ratio = 0.341333$"
rm -r twins twins.out x.bank
# inputs are never overwritten
cp good/0.ppm kept.ppm
expect 1 "a bank over one of its images" "$bin" bank kept.ppm good -o kept.ppm $weights
says "kept.ppm is an input and would be overwritten"
expect 1 "a bank over a picture" "$bin" bank good -o kept.ppm $weights
says "kept.ppm: this file exists and is not a bank"
expect 1 "a dump over the image" "$bin" detect --bank n.bank kept.ppm --dump kept.ppm $weights
cp n.bank kept.bank
expect 1 "a dump over the bank" "$bin" detect --bank kept.bank kept.ppm --dump ./kept.bank $weights
cp good/0.ppm kept_masks.png
expect 1 "masks over the image" "$bin" segment kept.ppm kept_masks.png --sam "$sam"
says "kept_masks.png is an input and would be overwritten"
expect 1 "a dump into a folder that is not there" "$bin" segment kept.ppm --sam "$sam" -o kept2 --dump nowhere/x
gone kept_masks.json kept2/kept_masks.json kept2/kept_masks.png
if cmp -s good/0.ppm kept.ppm && cmp -s n.bank kept.bank && cmp -s good/0.ppm kept_masks.png; then ok; else bad "an input was written over"; fi
rm kept.ppm kept.bank kept_masks.png
# closed streams: no file gets their place
"$bin" detect --bank n.bank new -o closed $weights >&- 2>err
if [ $? -eq 1 ] && grep -q "cannot be written" err; then ok; else bad "standard output is closed"; fi
"$bin" detect --bank n.bank new fake.png -o closed --force $weights >out 2>&-
if [ $? -eq 1 ] && [ "$(grep -vc '^{.*}$' closed/results.jsonl)" -eq 0 ]; then ok; else bad "standard error is closed"; fi
rm -r closed
# a pipe is refused as a weights file, without waiting for its other end
mkfifo pipe
expect 1 "a pipe as a bank" timeout 20 "$bin" detect --bank pipe new $weights
says "not a regular file"
expect 1 "a pipe as weights" timeout 20 "$bin" info pipe
rm pipe
# a sentence stays one line with any names in it, and keeps its end
odd=$(printf 'bad\nfile\033[31m.png')
echo junk >"$odd"
expect 1 "a name with control characters" "$bin" bank "$odd" -o x.bank $weights
says 'bad\\x0afile\\x1b\[31m.png'
if LC_ALL=C grep -q '[[:cntrl:]]' err || [ "$(wc -l <err)" -ne 1 ]; then bad "control characters in a sentence"; else ok; fi
rm "$odd"
long=$(printf 'd%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
long=$long$long$long$long$long$long$long$long$long$long
mkdir -p "$long/$long/$long/$long/$long" && cp fake.png "$long/$long/$long/$long/$long/end.png"
expect 1 "a long path" "$bin" bank "$long/$long/$long/$long/$long/end.png" -o x.bank $weights
says '^samlad: ddd.*\.\.\.ddd.*/end.png: .'
rm -r "$long"
expect 2 "a category outside of the data set" "$bin" eval . -o x --category ../y $weights
expect 0 "detect --dump" "$bin" detect --bank n.bank new/a.ppm --dump d.safetensors $weights
expect 0 "info of a dump" "$bin" info d.safetensors
for t in query.pixels vit.cls vit.patches featup.features sam.pixels sam.embedding sam.masks sam.iou_predictions sam.stability_scores sam.boxes sam.points \
    objects.weights objects.pooled objects.centroids dcga.descriptors omm.scores.1 omm.assignment.1 references raster.unusual amm.nearest amm.structural amm.logical amm.map scores; do
    says "  $t "
done
expect 0 "detect with a bank in bf16" "$bin" detect --bank half.bank new/a.ppm --dump dh.safetensors $weights
if command -v python3 >/dev/null 2>&1; then # the features of the same picture are near those in fp32, and not the same
    python3 - d.safetensors dh.safetensors >err 2>&1 <<'PYTHON' && ok || bad "detect does not have the precision of the bank"
import array, json, sys
def patches(path):
    data = open(path, "rb").read()
    n = int.from_bytes(data[:8], "little")
    first, last = json.loads(data[8:8 + n])["vit.patches"]["data_offsets"]
    return array.array("f", data[8 + n + first:8 + n + last])
a, b = patches(sys.argv[1]), patches(sys.argv[2])
difference = max(abs(x - y) for x, y in zip(a, b))
assert len(a) == len(b) and 0 < difference < 0.05 * max(map(abs, a)), difference
PYTHON
else
    echo "  skipped: dumps are not compared without python3"
    skipped=$((skipped + 1))
fi
expect 2 "dump of two images" "$bin" detect --bank n.bank new --dump d.safetensors $weights
for size in "1 1" "1 700" "700 1" "3 2"; do
    picture $size 0 >tiny.ppm
    expect 0 "detect $size" "$bin" detect --bank n.bank tiny.ppm -o tiny --force $weights
    there tiny/tiny_heat.png tiny/tiny_overlay.png tiny/tiny.tiff
done

# other weights, damaged banks, images that are not there: one sentence, and nothing stays behind
expect 1 "bank of another backbone" "$bin" detect --bank n.bank new -o bad --backbone "$other_vit" --sam "$sam" --featup none
says "made with the backbone weights vit_timm_model"
expect 1 "bank of another SAM" "$bin" detect --bank n.bank new -o bad --backbone "$vit" --sam "$here/golden/sam_window_model.safetensors" --featup none
says "sam weights"
expect 1 "recalibrate with another backbone" "$bin" bank --from n.bank -o x.bank --backbone "$other_vit" --sam "$sam" --featup none
expect 1 "weights for a bank" "$bin" detect --bank "$vit" new -o bad $weights
says "not a samlad bank"
expect 1 "no bank" "$bin" detect --bank nowhere.bank new -o bad $weights
head -c 5000 n.bank >cut.bank
expect 1 "half a bank" "$bin" detect --bank cut.bank new -o bad $weights
gone bad
cp fake.png new/z.png
expect 1 "a folder with a broken image" "$bin" detect --bank n.bank new -o bad $weights
says "z.png"
there bad/results.jsonl
gone bad/z_heat.png
cp fake.png new/y.png
"$bin" detect --bank n.bank new $weights >out 2>err
if [ $? -eq 1 ] && [ "$(wc -l <err)" -eq 3 ]; then ok; else bad "two broken images"; fi
says "2 of 4 images could not be judged"
expect 1 "nothing but a broken image" "$bin" detect --bank n.bank new/z.png -o none $weights
gone none/results.jsonl
rm -r bad new/z.png new/y.png
expect 1 "out is a file" "$bin" detect --bank n.bank new -o fake.png $weights
# results among the images that are given: photos/0.tiff would be replaced, photos/0_heat.png judged next time
mkdir photos photos/sub
cp good/0.ppm photos
echo precious >photos/0.tiff
ln -s photos link
for o in photos photos/ photos/sub photos/new/below link ./photos/sub/..; do
    expect 1 "results among the images, $o" "$bin" detect --bank n.bank photos -o "$o" $weights
    says "would lie among the images of photos"
done
expect 1 "results beside the image" "$bin" detect --bank n.bank photos/0.ppm -o link $weights
expect 1 "results below the folder that is given" "$bin" detect --bank n.bank . -o below $weights
gone below photos/new photos/0_heat.png
[ "$(cat photos/0.tiff)" = precious ] && ok || bad "photos/0.tiff was replaced"
expect 0 "results in a folder below the image's" "$bin" detect --bank n.bank photos/0.ppm -o photos/sub $weights
rm photos/0.tiff
expect 0 "results beside the folder" "$bin" detect --bank n.bank photos -o photos2 $weights
expect 0 "no pictures, no harm" "$bin" detect --bank n.bank photos/0.ppm -o photos --no-pictures $weights
there photos/sub/0.tiff photos2/0.tiff photos/results.jsonl
rm -r photos photos2 link
: >res/results.jsonl.tmp # a file of the user's
expect 0 "detect beside a file" "$bin" detect --bank n.bank new -o res --force --no-pictures $weights
if [ -e res/results.jsonl.tmp ]; then ok; else bad "results.jsonl.tmp was taken"; fi
rm res/results.jsonl.tmp
# a folder with outputs is refused; --force removes these and nothing else
expect 0 "a first run" "$bin" detect --bank n.bank new -o used $weights
echo mine >used/below/b.txt
ls used used/below >before
expect 1 "a second run" "$bin" detect --bank n.bank good/0.ppm -o used $weights
says "^samlad: used: this folder has outputs of an earlier run"
ls used used/below | cmp -s - before && ok || bad "a refused run changed the folder"
expect 1 "a broken bank spares the outputs" "$bin" detect --bank fake.png good/0.ppm -o used --force $weights
there used/a.tiff
expect 0 "with --force" "$bin" detect --bank n.bank good/0.ppm -o used --force $weights
there used/0.tiff used/0_heat.png used/below/b.txt
gone used/a.tiff used/a_heat.png used/a_overlay.png used/below/b.tiff used/below/b_heat.png
[ "$(wc -l <used/results.jsonl)" -eq 1 ] && ok || bad "results.jsonl of two runs"
printf '../mine\0' >>used/written.list
echo mine >mine
expect 1 "a list that leads out of the folder" "$bin" detect --bank n.bank new -o used --force $weights
there mine
mkdir foreign
echo '{}' >foreign/results.jsonl
expect 1 "results of another command" "$bin" detect --bank n.bank new -o foreign --force $weights
gone foreign/written.list
# a picture of somebody, or a link to his file, is not written over
rm foreign/results.jsonl && echo mine >theirs && ln -s ../theirs foreign/a.tiff && echo mine >foreign/0_heat.png
expect 1 "a link to another file" "$bin" detect --bank n.bank new/a.ppm -o foreign --force $weights
says "^samlad: foreign/a.tiff: this file exists and is not in written.list: give another folder"
expect 1 "a picture of another" "$bin" detect --bank n.bank good/0.ppm -o foreign --force $weights
[ "$(cat theirs foreign/0_heat.png)" = "$(printf 'mine\nmine')" ] && ok || bad "another's file is gone"
rm -r foreign && mkdir foreign && mkfifo foreign/written.list
expect 1 "a pipe for a list" "$bin" detect --bank n.bank new -o foreign $weights
expect 2 "--force without a folder" "$bin" detect --bank n.bank new --force $weights
# one process writes a folder; the system drops the lock of a killed one, which here waits for its second image
mkfifo slow.ppm
"$bin" detect --bank n.bank new/a.ppm slow.ppm -o locked $weights >lines 2>err &
process=$!
rounds=0
while [ ! -s locked/written.list ] && [ $rounds -lt 3000 ]; do sleep 0.01 && rounds=$((rounds + 1)); done
expect 1 "two processes in one folder" "$bin" detect --bank n.bank new -o locked --force $weights
says "^samlad: locked: another process writes to this folder"
kill -KILL $process
{ wait $process; } 2>/dev/null
expect 0 "after a killed one" "$bin" detect --bank n.bank new -o locked --force $weights
there locked/a.tiff locked/below/b.tiff locked/results.jsonl
if ls locked | grep -q "results.jsonl.tmp"; then bad "a temporary file of the killed process"; else ok; fi
rm -r slow.ppm lines locked used foreign mine before
# an image from a pipe is read once
mkfifo pipe.ppm
timeout 20 cat good/0.ppm >pipe.ppm &
expect 0 "an image from a pipe" timeout 20 "$bin" detect --bank n.bank pipe.ppm $weights
wait
rm pipe.ppm
# names of 255 bytes: outputs have shorter ones, and each its own; characters stay whole
mkdir long
zeros=$(printf '%0250d' 0)
umlauts=$(printf '%0125d' 0 | sed "s/0/$(printf '\303\244')/g")
for name in "${zeros}1" "${zeros}2" "x$umlauts"; do cp good/0.ppm "long/$name.ppm"; done
expect 0 "names of 255 bytes" "$bin" detect --bank n.bank long -o long.out $weights
[ "$(ls long.out/*_heat.png | wc -l)" -eq 3 ] && [ "$(ls long.out | wc -l)" -eq 11 ] && ok || bad "outputs of long names"
for name in long/*; do
    grep -qF "\"image\":\"$name\"" long.out/results.jsonl && ok || bad "the JSON lacks $name"
done
ls long.out | iconv -f UTF-8 -t UTF-8 >/dev/null 2>err && ok || bad "a name is cut within a character"
expect 0 "again the same names" "$bin" detect --bank n.bank long -o long2.out $weights
diff -r long.out long2.out >err && ok || bad "names differ from run to run"
rm -r long long.out long2.out
expect 1 "eval into a folder of detect" "$bin" eval good -o res $weights
says "res: this folder has outputs of detect or segment"
expect 1 "two outputs of one name" "$bin" detect --bank n.bank good/1.ppm new/below/../../good/1.ppm -o bad2 $weights
gone bad2
expect 1 "a folder without images" "$bin" detect --bank n.bank empty -o bad2 $weights
if [ -e /dev/full ]; then
    "$bin" detect --bank n.bank new --json $weights >/dev/full 2>err
    [ $? -eq 1 ] && [ "$(wc -l <err)" -eq 1 ] && ok || bad "a full standard output"
fi
no_leftovers

# ---- segment -------------------------------------------------------------------------------------------
expect 0 "automatic masks" "$bin" segment good/0.ppm --sam "$sam" --points 3 --pred-iou-thresh -10 --stability-score-thresh 0
there good/0_masks.png good/0_masks.json good/0_masks_overlay.png
expect 0 "a point" "$bin" segment good/1.ppm --sam "$sam" --point 14,12 --point 50,2,0 -o p --dump p.safetensors
says "2 masks"
there p/1_masks.png p/1_masks.json p/1_masks_overlay.png p.safetensors
mkdir segmented # the pictures of segment are no images of the folder
cp good/0.ppm segmented
expect 0 "beside the image" "$bin" segment segmented/0.ppm --sam "$sam" --point 14,12
there segmented/0_masks.png segmented/0_masks.json
expect 0 "a bank of that folder" "$bin" bank segmented/ -o segmented.bank $weights $masks
says "1 normal image,"
expect 0 "a result of it" "$bin" detect --bank segmented.bank segmented/ $weights
says " segmented/0.ppm$"
rm -r segmented segmented.bank
expect 1 "a point outside" "$bin" segment good/1.ppm --sam "$sam" --point 14,12 --point 57,2 -o outside
says "outside the image of 56x48"
expect 1 "a box outside" "$bin" segment good/1.ppm --sam "$sam" --box=-9,-9,0,20 -o outside
gone outside/1_masks.png
expect 0 "a point in bf16" "$bin" segment good/1.ppm --sam "$sam" --point 14,12 --precision bf16 -o h --dump h.safetensors
if cmp -s p.safetensors h.safetensors; then bad "bf16 changes nothing"; else ok; fi
expect 2 "another precision" "$bin" segment good/1.ppm --precision fp16
expect 0 "a box, one mask" "$bin" segment good/1.ppm --sam "$sam" --box 8,6,20,18 --single -o b
says ": 1 mask in .*_masks.png, _masks.json, _masks_overlay.png$"
expect 0 "a box far beyond the picture" "$bin" segment good/0.ppm --sam "$sam" --box -1e30,3,1e30,3e38 -o far
there far/0_masks_overlay.png
if command -v python3 >/dev/null 2>&1; then
    python3 - good/0_masks.json p/1_masks.json b/1_masks.json >err 2>&1 <<'PYTHON' && ok || bad "masks' JSON"
import json, sys
for path in sys.argv[1:]:
    masks = json.load(open(path))
    assert masks
    for m in masks:
        assert m["segmentation"]["size"] == [48, 56] and sum(m["segmentation"]["counts"]) == 48 * 56
        assert sum(m["segmentation"]["counts"][1::2]) == m["area"]
        assert len(m["bbox"]) == 4 and len(m["crop_box"]) == 4 and len(m["point_coords"][0]) == 2
        assert 0 <= m["stability_score"] <= 1 and isinstance(m["predicted_iou"], float)
PYTHON
else
    skipped=$((skipped + 1))
fi
expect 1 "masks cannot be written" "$bin" segment good/1.ppm --sam "$sam" --point 1,1 -o good/0.ppm/p
for size in "1 1" "1 300"; do
    picture $size 0 >tiny.ppm
    expect 0 "segment $size" "$bin" segment tiny.ppm --sam "$sam" --point 0,0
done

# ---- eval ----------------------------------------------------------------------------------------------
mkdir -p set/train/good set/test/good set/test/moved set/ground_truth/moved/000
cp good/0.ppm good/1.ppm good/2.ppm set/train/good
cp good/3.ppm set/test/good/000.ppm
picture 56 48 6 >set/test/moved/000.ppm
awk 'BEGIN{print "P2 56 48 255"; for(i=0;i<56*48;i++) print i<900?255:0}' >truth.pgm
cp truth.pgm set/ground_truth/moved/000/000.pgm
expect 0 eval "$bin" eval set -o evaluated $weights $masks
says "moved  *AUROC [01]"
says "pixels  *AUROC 0\."
there evaluated/results.jsonl evaluated/pictures/set/test/good/000_heat.png evaluated/pictures/set/test/moved/000_overlay.png evaluated/anomaly_maps/set/test/moved/000.tiff
expect 0 "eval with a bank" "$bin" eval set --bank n.bank $weights
says "bank of 4 images"
expect 2 "eval with a bank and a setting" "$bin" eval set --bank n.bank --k 3 $weights
expect 0 "eval --json" "$bin" eval set --json --max-bank 2 $weights $masks
says '"bank_images":2'
awk 'BEGIN{print "P2 3 3 1"; for(i=0;i<9;i++) print 1}' >set/ground_truth/moved/000/000.pgm
expect 1 "ground truth of another size" "$bin" eval set -o evaluated2 $weights $masks
says "ground truth"
gone evaluated2/results.jsonl
no_leftovers

# bench: the cheapest stages, and weights from a file
expect 0 "bench" "$bin" bench --only limit --only retrieve --runs 1
says "^limit.fma .* 100.0 %"
says "^retrieve.10000 "
expect 0 "bench --json with a file" "$bin" bench --json --runs 1 --only=sam_vit_b.encoder --sam "$sam" --dump bench.st
says '^\[{"name":"sam_vit_b.encoder","seconds":'
there bench.st
expect 2 "bench of an unknown stage" "$bin" bench --only nothing
expect 2 "bench with an unknown option" "$bin" bench --nothing 1
expect 2 "bench without a value" "$bin" bench --runs
expect 1 "bench of a missing file" "$bin" bench --only dinov2 --backbone nowhere.safetensors
no_leftovers

summary
