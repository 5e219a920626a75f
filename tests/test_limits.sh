#!/bin/sh
# test_limits.sh - small stacks, more threads than a system can start, pictures of a few pixels: detection on three trays.

. "$(dirname "$0")/shell.sh"
bin=$(cd "$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")" && pwd)/samlad
export SAMLAD_WEIGHTS="${SAMLAD_WEIGHTS:-$here/../weights}"
cd "$dir" || exit 1

# run WHAT COMMAND...: it must succeed without a word on stderr.
run() {
    what=$1
    shift
    if "$@" >out 2>err; then ok; else bad "$what: status $?"; fi
}
# same A B: the same results but for seconds.
same() {
    if sed 's/"seconds": *[0-9.e-]*//' "$1" >a && sed 's/"seconds": *[0-9.e-]*//' "$2" | cmp -s a -; then
        ok
    else
        bad "$1 and $2 differ"
    fi
}

run "synth" "$bin" synth tray trays
mkdir normal
cp $(ls trays/train/good/*.png | head -n 3) normal/
query=$(ls trays/test/*/*.png | head -n 1)
run "bank" "$bin" bank normal -o x.bank
run "detect" "$bin" detect --bank x.bank "$query" -o usual

# musl gives threads 128 KB.
run "detect with small stacks" sh -c "ulimit -s 256; OMP_STACKSIZE=128K OMP_NUM_THREADS=3 exec '$bin' detect --bank x.bank '$query' -o small"
same usual/results.jsonl small/results.jsonl
run "bank in bf16 with small stacks" sh -c "ulimit -s 256; OMP_STACKSIZE=128K OMP_NUM_THREADS=3 exec '$bin' bank normal --precision bf16 -o bf16.bank"
run "detect with 100000 threads" env OMP_NUM_THREADS=100000 "$bin" detect --bank x.bank "$query" -o many
same usual/results.jsonl many/results.jsonl

# Nothing is found in 3 x 2 pixels: each missing part is expected in one of them.
printf 'P6\n3\n2\n255\n%18s' '' | tr ' ' x >tiny.ppm
run "detect in 3 x 2 pixels" "$bin" detect --bank x.bank tiny.ppm -o tiny
if grep -q '"missing"' tiny/results.jsonl && grep -q 'expected at' out; then ok; else bad "nothing is missing in the tiny picture"; fi
if grep -qE 'within (0x|[0-9]+x0)|expected at \(([3-9]|[0-9]+, [2-9])' out; then
    cp out err
    bad "an expected place has no pixel, or lies outside"
else
    ok
fi
summary
