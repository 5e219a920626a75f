#!/bin/sh
# test_examples.sh - the programs in examples/ on a drawn picture, and what libvit.a and libsam.a hold.

. "$(dirname "$0")/shell.sh"
build=$(cd "$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")" && pwd)
cd "$here/.." || exit 1 # the examples open weights/
export ASAN_OPTIONS=detect_leaks=0 # they are short and leave their memory to exit

# check WHAT COMMAND...: it must succeed
check() {
    what=$1
    shift
    if "$@" >"$dir/out" 2>"$dir/err"; then ok; else bad "$what"; fi
}
# said PATTERN: the last command's output has a line like it
said() { if grep -Eq "$1" "$dir/out"; then ok; else bad "no line like '$1' in: $(cat "$dir/out")"; fi; }

for f in examples/*.c; do
    lines=$(wc -l <"$f")
    if [ "$lines" -le 60 ]; then ok; else bad "$f has $lines lines, more than 60"; fi
done

check "samlad synth tray" "$build/samlad" synth tray "$dir/tray" --seed 5
picture=$dir/tray/test/logical_anomalies/003.png # an object is missing

# The second run reads what the first wrote, so it is a PNG.
check "pca" "$build/examples/pca" "$picture" "$dir/pca.png"
said '^32 x 32 patches of [0-9]+ channels'
check "pca on its own output" "$build/examples/pca" "$dir/pca.png" "$dir/pca2.png"
if cmp -s "$dir/pca.png" "$dir/pca2.png"; then bad "pca gives every picture the same colours"; else ok; fi

# The point lies on the large green part.
check "point" "$build/examples/point" "$picture" 190 205 "$dir/point.png"
said '^predicted IoU [01]\.[0-9]+, [0-9]+ of 65536 pixels'
pixels=$(sed -n 's/^predicted.*, \([0-9]*\) of.*/\1/p' "$dir/out")
if [ "${pixels:-0}" -gt 1500 ] && [ "${pixels:-0}" -lt 5000 ]; then ok; else bad "the part under the point has ${pixels:-no} pixels"; fi
check "point on its own output" "$build/examples/point" "$dir/point.png" 190 205 "$dir/point2.png"

check "detect" "$build/examples/detect" "$picture" "$dir"/tray/train/good/00[0-4].png
said '^score .*: anomalous$'
said '^missing at '

# Wrong use is told, not crashed on.
for program in pca point detect; do
    "$build/examples/$program" >"$dir/out" 2>"$dir/err"
    if [ $? -eq 1 ] && grep -q "^usage: $program" "$dir/err"; then ok; else bad "$program without arguments"; fi
    "$build/examples/$program" /nonexistent.png 1 1 1 >"$dir/out" 2>"$dir/err"
    if [ $? -eq 1 ] && grep -q nonexistent "$dir/err"; then ok; else bad "$program on a file that is not there"; fi
done

# The files that docs/READING.md tells to take along are enough: its two commands, with this build's compiler.
compiler=$(sed 's/ .*//' "$build/flags")
# along HEADER OPENS WEIGHTS: a program that opens a model, by the command that takes HEADER's chapter
along() {
    printf '#include "%s.h"\nint main(void)\n{\n    Error err;\n    return !%s(st_open("weights/%s", &err), &err);\n}\n' "$1" "$2" "$3" >"$dir/yours.c"
    command=$(sed -n "s|^ *cc \(.*\) yours\.c $1\.c |$compiler \1 $dir/yours.c $1.c |p" docs/READING.md)
    check "docs/READING.md's files of $1.c" ${command:-false} -o "$dir/yours"
    check "docs/READING.md's $1.c opens $3" "$dir/yours"
}
along vit vit_open vit_tiny.safetensors
along sam sam_open sam_tiny.safetensors

# members LIBRARY: the names of its objects
members() { ar t "$build/$1" 2>"$dir/err"; }
# without LIBRARY PATTERN: no object is called so
without() {
    found=$(members "$1" | grep -E "$2" | tr '\n' ' ')
    if [ -z "$found" ]; then ok; else bad "$1 holds $found"; fi
}
if command -v ar >/dev/null; then
    for library in libvit.a libsam.a; do
        if members $library | grep -q '^tensor\.o$'; then ok; else bad "$library has no tensor.o"; fi
        without $library '^(featup|dcga|omm|amm|verdict|samlad|bank|scene|library|report|compare|options|cli)'
    done
    without libvit.a '^(sam|amg|tiny_vit|encoder)'
    without libsam.a '^vit'
else
    echo "  skipped: no ar to look into libvit.a"
    skipped=$((skipped + 1))
fi

summary
