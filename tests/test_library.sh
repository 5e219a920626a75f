#!/bin/sh
# test_library.sh - libsamlad.a from outside: a C program with names of its own that the library uses inside, and a C++ one.
# Compiled as the library was (BUILD/flags); runs on the weights that ship.

. "$(dirname "$0")/shell.sh"
build=$(cd "$(dirname "${SAMLAD_BIN:-$here/../build/samlad}")" && pwd)
cd "$here/.." || exit 1

cat >"$dir/program.c" <<'END'
#include <stdio.h>
#include <string.h>
#include "samlad.h"

/* ours, not the library's */
int add(int a, int b) { return a + b; }
float dot(float a) { return a; }
void fail(const char *why) { printf("%s\n", why); }
int segment = 3;

/* a careful program's callback, which threads call */
static void progress(void *user, const char *what, int done, int total)
{
#ifdef _OPENMP
#pragma omp critical
#endif
    if (what && done > *(int *)user && done <= total)
        *(int *)user = done;
}

static char k[8];
static void hear(void *user, const char *key, const char *value)
{
    (void)user;
    if (strcmp(key, "option.k") == 0)
        snprintf(k, sizeof k, "%s", value);
}
static const char *k_of(const Samlad *s)
{
    samlad_describe(s, hear, NULL);
    return k;
}

int main(int n, char **names)
{
    static unsigned char rgb[3 * 64 * 48];
    Error err;
    static SamladWeights weights;
    int told = 0;
    SamladResult result;
    weights.vit = names[1];
    Samlad *s = samlad_open(&weights, &err);
    const char *paths[2];
    paths[0] = names[2], paths[1] = names[3];
    if (n != 5 || !s || samlad_set(s, "no-objects", "1", &err) || samlad_set(s, "size", "64", &err) ||
        samlad_bank_build(s, paths, 2, NULL, NULL, &err)) {
        fail(err.message);
        return 1;
    }
    for (int i = 0; i < 3 * 64 * 48; i++)
        rgb[i] = (unsigned char)(i % 64 * 3);
    if (samlad_detect(s, rgb, 48, 64, &result, NULL, &err)) {
        fail(err.message);
        return 1;
    }
    Samlad *shared = samlad_share(s, &err);
    if (!shared || samlad_bank_build(shared, paths, 1, NULL, NULL, &err) == 0)
        return 2; /* a share must not replace its owner's bank */
    printf("%s\n", err.message);
    if (samlad_set(shared, "precision", "bf16", &err) == 0)
        return 3; /* nor its options */
    printf("%s\n", err.message);
    samlad_close(shared);
    printf("%d images, %.4f\n", samlad_bank_size(s), (double)result.score);
    samlad_result_free(&result);
    if (samlad_bank_save(s, names[4], &err) || samlad_set(s, "k", "2", &err) ||
        samlad_detect(s, rgb, 48, 64, &result, NULL, &err) == 0)
        return 4; /* the bank was made with another k, so it is gone */
    printf("%s\n", err.message);
    if (samlad_bank_load(s, names[4], &err) || samlad_bank_recalibrate(s, names[4], progress, &told, &err))
        return 5;
    printf("k %s after %d of 4\n", k_of(s), told);
    samlad_close(s);
    return add(1, 1) == 2 && dot(1) > 0 && segment == 3 ? 0 : 1;
}
END
for i in 0 1; do
    awk -v s=$i 'BEGIN { print "P3 64 48 255"; for (i = 0; i < 64 * 48; i++) print (i * 5 + s * 9) % 250, i % 200, s * 50 }' >"$dir/$i.ppm"
done

# try LANGUAGE COMPILER...: build and run
try() {
    language=$1
    shift
    if "$@" "$dir/program.$language" "$build/libsamlad.a" -lm -o "$dir/program" 2>"$dir/err"; then ok; else
        bad "a $language program does not link"
        return
    fi
    if timeout 60 "$dir/program" weights/vit_tiny.safetensors "$dir/0.ppm" "$dir/1.ppm" "$dir/two.bank" >"$dir/out" 2>"$dir/err" &&
        grep -q "^2 images" "$dir/out" && [ "$(grep -c "shared handle" "$dir/out")" = 2 ] &&
        grep -q "^no bank" "$dir/out" && grep -q "^k 40 after 4 of 4" "$dir/out"; then ok; else
        cat "$dir/out" >>"$dir/err"
        bad "a $language program does not run"
    fi
}

flags=$(cat "$build/flags")
# shellcheck disable=SC2086 # words
try c $flags
cp "$dir/program.c" "$dir/program.cc"
case ${flags%% *} in gcc) cxx=g++ ;; clang) cxx=clang++ ;; *) cxx= ;; esac
if [ -z "$cxx" ]; then
    echo "  skipped: C++, because the compiler is neither gcc nor clang"
    skipped=$((skipped + 1))
elif ! echo '#include <cstdio>' | $cxx -E -x c++ - >/dev/null 2>&1; then
    echo "  skipped: C++, for $cxx is not installed"
    skipped=$((skipped + 1))
else
    # shellcheck disable=SC2046,SC2086
    try cc $(printf '%s' "$flags" | sed "s/^${flags%% *}/$cxx/; s/-std=c11/-std=c++11/")
fi
# only samlad.h's names are to be seen
: >"$dir/err"
if command -v nm >/dev/null 2>&1; then
    nm -g --defined-only "$build/libsamlad.a" | awk 'NF == 3 && $3 !~ /^samlad_/ && $3 !~ /^(__|_ZN)/ { print $3 }' >"$dir/err"
    if [ ! -s "$dir/err" ]; then ok; else bad "names that a program may have itself"; fi
else
    echo "  skipped: the library's names are not looked at without nm"
    skipped=$((skipped + 1))
fi
summary
