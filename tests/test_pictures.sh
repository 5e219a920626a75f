#!/bin/sh
# test_pictures.sh - pictures from outside: BMP and TIFF in any case of their endings, files that are no pictures, and
# 16-bit images of cameras of 12 bits. Runs $SAMLAD_BIN on small random weights.

. "$(dirname "$0")/shell.sh"
bin=${SAMLAD_BIN:-$here/../build/samlad}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
cd "$dir" || exit 1
weights="--backbone $here/golden/vit_timm_model.safetensors --sam $here/golden/sam_resampled_model.safetensors --featup none"
quick="$weights --no-objects 1"

# run STATUS NAME COMMAND...; says PATTERN: its output has it; silent PATTERN: has it not
run() {
    want=$1 name=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    if [ $got -eq "$want" ]; then ok; else bad "$name: status $got, expected $want"; fi
}
says() { if grep -q -- "$1" out err; then ok; else bad "'$1' is not said"; fi; }
silent() { if grep -q -- "$1" out err; then bad "'$1' is said"; else ok; fi; }
# picture WHITE OFFSET: 56 x 48 grey as text, of values up to WHITE, in a file of 8 or 16 bits
picture() {
    awk -v white="$1" -v offset="$2" 'BEGIN {
        print "P2 56 48 " (white > 255 ? 65535 : 255)
        for (y = 0; y < 48; y++) for (x = 0; x < 56; x++) print int(((x * 5 + y * 3 + offset * 11) % 256) * white / 255)
    }'
}
# scores COMMAND...: the first column of detect's lines
scores() { "$@" 2>/dev/null | awk '/ rank /{print $1}'; }

# ---- cameras of 12 bits ------------------------------------------------------------------------------------
mkdir -p grey/train/good grey/test/good grey/test/bad deep/train/good deep/test/good deep/test/bad
for set in grey:255 deep:4095; do
    for i in 0 1 2 3; do picture ${set#*:} $i >${set%:*}/train/good/$i.pgm; done
    picture ${set#*:} 5 >${set%:*}/test/good/0.pgm
    picture ${set#*:} 90 >${set%:*}/test/bad/0.pgm
done
run 0 "a dark bank" "$bin" bank deep/train/good -o dark.bank $quick
says "^samlad: the largest value of the 16-bit images is 4095 of 65535, so they are nearly black: give --white auto, or --white 4095$"
run 0 "a bank with its white" "$bin" bank deep/train/good -o deep.bank $quick --white auto
says "^16-bit images: 4095 is white (--white auto)$"
silent "nearly black"
run 0 "the bank records it" "$bin" info deep.bank
says "option.white = 4095$"
run 0 "the white as a number" "$bin" bank deep/train/good -o same.bank $quick --white 4095
silent "nearly black"
if cmp -s deep.bank same.bank; then ok; else bad "--white 4095 is not --white auto"; fi
run 0 "8 bits say nothing" "$bin" bank grey/train/good -o grey.bank $quick
silent "nearly black"
run 0 "auto of 8 bits" "$bin" bank grey/train/good -o same.bank $quick --white auto
says "16-bit images: 65535 is white"
if cmp -s grey.bank same.bank; then ok; else bad "--white changes a bank of 8 bits"; fi
if [ "$(scores "$bin" detect --bank deep.bank deep/test $weights | wc -l)" -eq 2 ] && [ "$(scores "$bin" detect --bank deep.bank deep/test $weights)" = "$(scores "$bin" detect --bank grey.bank grey/test $weights)" ]; then
    ok
else
    bad "12 bits are not as 8 bits"
fi
run 0 "detect with a dark bank" "$bin" detect --bank dark.bank deep/test $weights
says "nearly black: give samlad bank --white auto, or --white 4095$"
run 0 "the bank's white, said again" "$bin" detect --bank deep.bank deep/test $weights --white 4095
run 0 "auto, said again" "$bin" detect --bank deep.bank deep/test $weights --white auto
run 1 "another white than the bank's" "$bin" detect --bank deep.bank deep/test $weights --white 65535
says "deep.bank: the bank was made with --white 4095, so --white 65535 contradicts it"
run 2 "another setting of the bank" "$bin" detect --bank deep.bank deep/test $weights --k 1
run 2 "white with --from" "$bin" bank --from deep.bank -o same.bank $weights --white 255
says "needs the images again"
run 2 "no white" "$bin" bank deep/train/good -o same.bank $quick --white 0
says "is not a number from 1 to 65535"
run 0 "eval in the dark" "$bin" eval deep $quick --no-pictures
says "nearly black: give --white auto, or --white 4095$"
run 0 "eval with a dark bank" "$bin" eval deep --bank dark.bank $weights --no-pictures
says "^samlad: the largest value of the 16-bit test images is 4095 of 65535, so they are nearly black: give samlad bank --white auto, or --white 4095$"
mkdir -p half/train && cp -r deep/test half && cp -r grey/train/good half/train
run 0 "dark tests alone" "$bin" eval half $quick --no-pictures
says "^samlad: the largest value of the 16-bit test images is 4095 of 65535"
run 0 "eval" "$bin" eval deep $quick --no-pictures --white auto -o deep.out
silent "nearly black"
if grep -q '"option.white": *"4095"' deep.out/run.json; then ok; else bad "the run does not record its white"; fi
run 0 "the same run again" "$bin" eval deep $quick --no-pictures --white auto -o deep.out
run 0 "eval of 8 bits" "$bin" eval grey $quick --no-pictures -o grey.out
if cmp -s grey.out/anomaly_maps/grey/test/bad/0.tiff deep.out/anomaly_maps/deep/test/bad/0.tiff; then ok; else bad "eval: 12 bits are not as 8 bits"; fi
sam="--sam $here/golden/sam_resampled_model.safetensors --points 2"
run 0 "segment in the dark" "$bin" segment deep/test/bad/0.pgm -o dark.out $sam
says "nearly black"
run 0 "segment" "$bin" segment deep/test/bad/0.pgm -o deep.masks $sam --white auto
silent "nearly black"
run 0 "segment of 8 bits" "$bin" segment grey/test/bad/0.pgm -o grey.masks $sam
if cmp -s grey.masks/0_masks.png deep.masks/0_masks.png; then ok; else bad "segment: 12 bits are not as 8 bits"; fi

# ---- files that are no pictures ------------------------------------------------------------------------------
echo "no picture" >grey/test/bad/readme.txt
echo "no picture" >grey/train/good/1.webp
echo "{}" >grey/train/good/data.json
run 0 "eval tells what it left out" "$bin" eval grey $quick --no-pictures
says "^2 files are no pictures: 1.webp, readme.txt$"
run 0 "so does bank" "$bin" bank grey/train/good -o same.bank $quick
says "^1 file is no picture: 1.webp$"
run 0 "so does detect" "$bin" detect --bank grey.bank grey/test $weights
says "^1 file is no picture: readme.txt$"
cp deep.out/anomaly_maps/deep/test/bad/0.tiff grey/test/bad/depth.TIFF
for i in 1 2 3; do : >grey/test/bad/$i.xcf; done
run 0 "floats are no picture" "$bin" detect --bank grey.bank grey/test $weights
says "^5 files are no pictures: 1.xcf, 2.xcf, 3.xcf, ...$"
run 1 "floats that are given" "$bin" detect --bank grey.bank grey/test/bad/depth.TIFF $weights
says "depth.TIFF: float samples: not a picture"

# ---- BMP and TIFF, in any case of their endings ----------------------------------------------------------------
if command -v python3 >/dev/null 2>&1; then
    mkdir many && python3 - <<'PYTHON' || bad "the pictures are not made"
import struct
numbers = open("grey/test/bad/0.pgm").read().split()[4:]
rows = [bytes(int(v) for v in numbers[56 * y:56 * y + 56]) for y in range(48)]
rgb = b"".join(bytes(v for g in row for v in (g, g, g)) for row in rows[::-1])
bmp = struct.pack("<2sIHHI", b"BM", 54 + len(rgb), 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 56, 48, 1, 24, 0, 0, 0, 0, 0, 0) + rgb
fields = [(256, 56), (257, 48), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 48), (279, 56 * 48)]
tiff = struct.pack("<2sHI", b"II", 42, 8 + 56 * 48) + b"".join(rows) + struct.pack("<H", len(fields))
tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields) + bytes(4)
for name, data in ("a.bmp", bmp), ("b.BMP", bmp), ("c.tif", tiff), ("d.TIFF", tiff), ("e.Tiff", tiff), ("f.dib", bmp[14:]):
    open("many/" + name, "wb").write(data)
PYTHON
    rm -f grey/test/bad/*.txt grey/test/bad/*.xcf grey/test/bad/*.TIFF
    scores "$bin" detect --bank grey.bank many $weights | sort -u >one
    scores "$bin" detect --bank grey.bank grey/test/bad $weights >expected
    run 0 "all of them" "$bin" detect --bank grey.bank many $weights
    if [ "$(grep -c ' rank ' out)" -eq 6 ] && cmp -s one expected; then ok; else bad "BMP and TIFF are not as PGM"; fi
    rm grey/test/bad/* && cp many/* grey/test/bad && rm grey/test/bad/[bcdf].*
    run 0 "eval of them" "$bin" eval grey $quick --no-pictures
else
    echo "  skipped: no BMP and TIFF without python3"
    skipped=$((skipped + 1))
fi
summary
