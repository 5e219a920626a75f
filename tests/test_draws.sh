#!/bin/sh
# tools/draws.py with a program that stands in for samlad: which images each draw has, and the table.
. "$(dirname "$0")/shell.sh"
python=${PYTHON:-python3}
if ! "$python" -c '' 2>/dev/null; then
    echo "skipped test_draws: python3 is not installed"
    skipped=1
    summary
    exit
fi
mkdir -p "$dir/set/train/good" "$dir/set/test/good" "$dir/set/test/bad"
for i in 1 2 3 4 5 6; do : >"$dir/set/train/good/$i.png"; done
: >"$dir/set/test/good/1.png"
# AUROC is the number of normal images divided by 10; the only good image is called with 2 of them
cat >"$dir/samlad" <<'END'
#!/bin/sh
[ "$1" = eval ] && [ "$3" = -o ] || exit 2
[ -f "$2/test/good/1.png" ] || exit 2
mkdir -p "$4"
n=$(ls "$2/train/good" | wc -l)
echo "{\"mean\":{\"figures\":{\"auroc.bad\":0.$n,\"ap.all\":1}}}" >"$4/results.json"
called=false
[ "$n" -gt 2 ] || called=true
echo "{\"image\":\"c/test/good/1.png\",\"anomalous\":$called}" >"$4/results.jsonl"
END
chmod +x "$dir/samlad"
"$python" "$here/../tools/draws.py" --samlad "$dir/samlad" "$dir/set" -o "$dir/out" --sizes 2 4 --draws 3 -- --k 3 >"$dir/table" 2>"$dir/err"
has() { if grep -qxF -- "$1" "$dir/table"; then ok; else cat "$dir/table" "$dir/err"; bad "no line '$1'"; fi; }
has "| normal images | bad | good images called |"
has "| 2 | 0.200 ± 0.000 | 1.000 ± 0.000 |"
has "| 4 | 0.400 ± 0.000 | 0.000 ± 0.000 |"
[ "$(ls "$dir"/out/4.*/data/train/good | grep -c png)" -eq 12 ] && ok || bad "three draws of four images"
[ "$(ls "$dir/out/4.1/data/train/good")" != "$(ls "$dir/out/4.2/data/train/good")" ] || [ "$(ls "$dir/out/4.1/data/train/good")" != "$(ls "$dir/out/4.3/data/train/good")" ] && ok || bad "all draws are one"
if "$python" "$here/../tools/draws.py" --samlad "$dir/samlad" "$dir/set" -o "$dir/out" --sizes 7 >"$dir/table" 2>"$dir/err"; then bad "seven of six images"; else ok; fi
grep -q "a bank of 7 images was asked for, but there are 6" "$dir/err" && ok || bad "no sentence about seven of six"
summary
