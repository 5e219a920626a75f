#!/bin/sh
# test_failing.sh - each command with an allocation that fails, alone or with all after it (fail_nth.c): status 1, one
# sentence (one an image, if all fail), no half-written output; then the same command again makes the same bytes.
# `make test` tries some 20 allocations of each command. An allocation may do without when all outputs are the same.
#
#   sh tests/test_failing.sh all [COMMAND...]    every allocation (of these commands), and the most frequent sentences

. "$(dirname "$0")/shell.sh"
bin=$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")/tests/samlad_failing
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
all=
[ "$1" != all ] || { all=1 && shift; }
commands=${*:-"bank recalibrate detect dump segment eval merge ablate"}
if [ ! -x "$bin" ]; then
    echo "$bin is missing: make build/tests/samlad_failing"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
cd "$dir" || exit 1
OMP_NUM_THREADS=1 # one order of the allocations
export OMP_NUM_THREADS
weights="--backbone $here/golden/vit_timm_model.safetensors --featup none"
sam="--sam $here/golden/sam_resampled_model.safetensors"
masks="--points 2 --pred-iou-thresh -10 --stability-score-thresh 0"
small="$weights $sam $masks --min-area 0.01 --size 32"

# picture SHIFT: a bright box on a gradient
picture() {
    awk -v s="$1" 'BEGIN {
        print "P3\n40 32\n255"
        for (y = 0; y < 32; y++) for (x = 0; x < 40; x++) {
            v = (x * 3 + y * 2) % 90
            if (x > 8 + s && x < 20 + s && y > 6 && y < 18) print 230, v, 40
            else print v, v, v + 30
        }
    }'
}
mkdir -p set/train/good set/test/good set/test/moved set/ground_truth/moved new
for i in 0 1 2; do picture $i >set/train/good/$i.ppm; done
picture 1 >set/test/good/000.ppm
picture 12 >set/test/moved/000.ppm
awk 'BEGIN { print "P2 40 32 255"; for (i = 0; i < 40 * 32; i++) print i < 500 ? 255 : 0 }' >set/ground_truth/moved/000_mask.pgm
cp set/test/good/000.ppm new/a.ppm && cp set/test/moved/000.ppm new/b.ppm

# run COMMAND OUT [AGAIN]: write into the folder OUT
run() {
    case $1 in
    bank) "$bin" bank set/train/good -o "$2/x.bank" $small ;;
    recalibrate) "$bin" bank --from n.bank -o "$2/x.bank" --k 2 $weights $sam ;;
    detect) "$bin" detect --bank n.bank new -o "$2" $3 $weights $sam ;;
    dump) "$bin" detect --bank n.bank new/a.ppm --dump "$2/d.safetensors" --json $weights $sam ;;
    segment) "$bin" segment new/b.ppm $sam $masks -o "$2/s" $3 --dump "$2/d.safetensors" ;;
    eval) "$bin" eval set -o "$2" $small ;;
    merge) "$bin" eval --merge n.run -o "$2" --json ;;
    ablate) "$bin" ablate set -o "$2" --setting "" --setting k=1 --max-bank 2 $small ;;
    esac >out 2>err </dev/null
}
# Files of a failed run are those of the full one, or parts of a list, or removed later.
whole() {
    find "$1" -type f | while read -r file; do
        name=${file#"$1"/}
        case $name in
        timings.jsonl | *written.list | scenes/* | settings/*) ;;
        results.jsonl) ! grep -Fvxqf "$2/$name" "$file" || echo "$name" ;;
        *) cmp -s "$file" "$2/$name" || echo "$name" ;;
        esac
    done
}
# attempt COMMAND N: fail the N-th allocation (N+: and all after it), then run once more
attempt() {
    rm -rf part && mkdir part
    SAMLAD_FAIL=$2 run "$1" part
    status=$? odd=$(whole part "$1.whole")
    cat err >>"$1.sentences"
    case $2 in *+) lines= ;; *) lines=$(sed 1d err | grep -v 'nothing was begun') ;; esac # without memory each image may have its sentence
    if [ $status -eq 0 ] && [ ! -s err ] && diff -r -x timings.jsonl part "$1.whole" >/dev/null; then
        harmless=$((harmless + 1)) # as for the size of a batch
        ok
    elif [ $status -ne 1 ] || [ ! -s err ] || [ -n "$lines" ] || grep -qv '^samlad: .' err; then
        bad "$1, allocation $2: status $status, or not one sentence"
    elif [ -n "$odd" ]; then
        bad "$1, allocation $2: half of $odd"
    elif run "$1" part --force && diff -r -x timings.jsonl part "$1.whole" >err; then
        ok
    else
        bad "$1, allocation $2: run again, it has other outputs"
    fi
}

run bank . && mv x.bank n.bank && run eval n.run || bad "a bank and a run"
for c in $commands; do
    mkdir -p "$c.whole"
    export SAMLAD_COUNT=count
    run "$c" "$c.whole" || bad "$c: no allocation failed, but it does"
    unset SAMLAD_COUNT
    n=$(cat count)
    stride=$((all ? 1 : n / 17 + 1))
    before=$failed harmless=0 i=1
    while [ $i -le "$n" ]; do
        attempt "$c" $i
        attempt "$c" $i+
        i=$((i + (i < 4 ? 1 : stride)))
    done
    [ -z "$all" ] || {
        echo "$c: $n allocations, $((failed - before)) failures, $harmless without effect"
        sed 's/[0-9]\{1,\} bytes/N bytes/' "$c.sentences" | sort | uniq -c | sort -rn | head -n 20
    }
done
summary
