# shell.sh - the beginning of every test_*.sh: a folder of its own, counts, failures. Sourced, from sh:
#   here: this folder; dir: an empty one, removed at the end. Commands leave their output in $dir/out and $dir/err.

here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/samlad_test.XXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
passed=0 failed=0 skipped=0

ok() { passed=$((passed + 1)); }
# bad WHAT: count a failure; show the last command's stderr
bad() {
    failed=$((failed + 1))
    echo "  FAILED: $1"
    [ ! -s "$dir/err" ] || head -n 20 "$dir/err" | sed 's/^/    stderr: /'
}
# there PATH...: they exist and are not empty; gone PATH...: none of them exists
there() { for f; do if [ -s "$f" ]; then ok; else bad "$f is not there"; fi; done; }
gone() { for f; do if [ -e "$f" ]; then bad "$f was left behind"; else ok; fi; done; }
# The last line, and the script's status.
summary() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
}
