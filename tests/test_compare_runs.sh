#!/bin/sh
# tools/compare_runs.py on small runs whose figures are known by hand. It needs python3 with numpy; else it is skipped.
. "$(dirname "$0")/shell.sh"
python=${PYTHON:-python3}
if ! "$python" -c 'import numpy' 2>/dev/null; then
    echo "skipped test_compare_runs: python3 with numpy is not installed"
    skipped=1
    summary
    exit
fi
compare() { "$python" "$here/../tools/compare_runs.py" "$@" >"$dir/out" 2>"$dir/err"; }
# has WHAT: the last output has this line, runs of blanks as one
has() { if tr -s ' ' <"$dir/out" | grep -qxF -- "$1"; then ok; else cat "$dir/out"; bad "no line '$1'"; fi; }
# run NAME SCORES OF FOUR IMAGES: two good ones, then two anomalous ones; above 5 they are called so
run() {
    mkdir "$dir/$1"
    name=$1 i=0
    shift
    for score; do
        kind=good called=false
        [ $i -lt 2 ] || kind=bad
        [ "$score" -le 5 ] || called=true
        echo "{\"image\":\"c/test/$kind/$i.png\",\"score\":$score,\"threshold\":5,\"anomalous\":$called,\"baselines\":{\"position-nn\":1}}"
        i=$((i + 1))
    done >"$dir/$name/results.jsonl"
}
run old 1 4 3 9 # of four pairs of an anomaly and a good image three are in order
run new 1 6 7 9
compare "$dir/old" "$dir/new"
has "bad 0.750 1.000 +0.250 +0.000 to +1.000" # 3 against 4 alone is one draw in 16; 9 alone is one in four
has "normal images called anomalous 0.000 0.500 of 2"
has "anomalies called anomalous 0.500 1.000 of 2"
has "anomalies, at equal alarms 0.500 1.000 of 2" # old: no alarm. new: above 6 there is none, 7 and 9 stay
compare "$dir/old" "$dir/old"
has "bad 0.750 0.750 +0.000 +0.000 to +0.000"
compare "$dir/new" --with position-nn # a baseline of equal scores
has "bad 0.500 1.000 +0.500 +0.500 to +0.500"
sed 's/0\.png/5.png/' "$dir/old/results.jsonl" >"$dir/line" && mkdir "$dir/other" && mv "$dir/line" "$dir/other/results.jsonl"
if compare "$dir/old" "$dir/other"; then bad "runs of other images were compared"; else ok; fi
grep -q "of other images" "$dir/err" && ok || bad "no sentence about other images"
summary
