#!/bin/sh
# test_frames.sh - no function takes more than 64 KB of a thread's stack, and none an amount that its inputs choose. gcc
# writes what each function takes (-fstack-usage, in Makefile). Sanitizers add to it, other compilers do not tell.

. "$(dirname "$0")/shell.sh"
build=$(cd "$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")" && pwd)

find "$build" -name '*.su' -exec cat {} + >"$dir/frames"
if [ ! -s "$dir/frames" ] || grep -q fsanitize "$build/flags"; then
    skipped=$((skipped + 1))
    summary
    exit
fi
awk -F '\t' '$2 > 65536 || $3 == "dynamic" { print $1 ": " $2 " bytes, " $3 }' "$dir/frames" >"$dir/err"
if [ -s "$dir/err" ]; then bad "frames of more than 64 KB, or of any size"; else ok; fi
summary
