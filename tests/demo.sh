#!/bin/sh
# make demo: synthesise trays, build the bank, detect every test image, print the figures, leave the pictures.
# Usage: sh tests/demo.sh SAMLAD [SEED [OUT]]     (make demo SEED=7 DEMO_OUT=/tmp/demo)
#        sh tests/demo.sh --clean [OUT]           remove OUT, for make clean
# An OUT of an earlier demo is made anew. Any other folder stays as it is.
set -e
samlad=$1 seed=${2:-1} out=${3:-demo-out}
[ "$1" != --clean ] || out=${2:-demo-out}
if [ -e "$out/.samlad-demo" ] || [ ! -e "$out" ]; then
    rm -rf "$out"
elif [ -n "$(ls -A "$out")" ]; then
    echo "demo.sh: $out: has no mark of a demo (.samlad-demo) and stays as it is; name another folder with DEMO_OUT, or remove it" >&2
    [ "$1" = --clean ] || exit 1
fi
[ "$1" != --clean ] || exit 0
mkdir -p "$out"
: > "$out/.samlad-demo"
echo "1. trays (seed $seed): 40 normal images to learn from, 74 to judge"
"$samlad" synth tray "$out/tray" --seed "$seed"
echo "2. one bank of the normal images"
"$samlad" bank "$out/tray/train/good" -o "$out/tray.bank"
echo "3. every test image against it"
"$samlad" eval "$out/tray" --bank "$out/tray.bank" -o "$out/results" > "$out/figures.txt"
cat "$out/figures.txt"
echo "4. one of them in words"
"$samlad" detect --bank "$out/tray.bank" "$out/tray/test/logical_anomalies/000.png"
echo "pictures: $out/results/pictures/*/*/*/*_overlay.png (green normal, red extra, orange damaged, dashed blue missing), *_heat.png"
awk '
    $1 == "logical_anomalies" { logical = $3 }
    $1 == "structural_anomalies" { structural = $3 }
    $1 == "pixels" { pixel = $3 }
    /test images,/ { n = $(NF - 4); t = $(NF - 1) }
    END { printf "demo: logical AUROC %s, structural AUROC %s, pixel AUROC %s, %s images, %s s/image\n", logical, structural, pixel, n, t }
' "$out/figures.txt"
