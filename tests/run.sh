#!/bin/sh
# run.sh BUILD [LEFT_OUT...]: run every test in BUILD/tests and every tests/test_*.sh, but those LEFT_OUT by name; end
# with "N passed, N failed[, N skipped]".
build=$1
shift
left_out=$*
here=$(dirname "$0")
passed=0 failed=0 skipped=0
for t in "$build"/tests/test_* "$here"/test_*.sh; do
    case $t in *.d | *.o | *.su | *'*'*) continue ;; esac
    [ -f "$t" ] || continue
    case " $left_out " in *" $(basename "$t") "*) continue ;; esac
    echo "== $(basename "$t")"
    case $t in
    *.sh) output=$(SAMLAD_BIN="$build/samlad" sh "$t" 2>&1) ;;
    *) output=$("$t" 2>&1) ;;
    esac
    status=$?
    printf '%s\n' "$output"
    last=$(printf '%s\n' "$output" | tail -n 1)
    set -- $(printf '%s\n' "$last" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    if [ $# -ne 3 ]; then
        echo "$(basename "$t"): died without a summary (status $status)"
        failed=$((failed + 1))
        continue
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ $status -ne 0 ] && [ "$2" -eq 0 ]; then
        echo "$(basename "$t"): exit status $status"
        failed=$((failed + 1))
    fi
done
[ -z "$left_out" ] || echo "left out, tests of what fast/ alone has: $left_out"
[ -n "$SAMLAD_DATA" ] || echo "SAMLAD_DATA is not set: tests on real data were skipped"
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed -eq 0 ] && [ $passed -gt 0 ]
