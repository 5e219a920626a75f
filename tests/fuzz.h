/* fuzz.h - shared by the fuzz_*.c targets. Each target is one function for libFuzzer:
 *   clang -g -O1 -std=c11 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *       tests/fuzz_png.c io/[a-z]*.c -lm -o fuzz_png
 * test_fuzz.c runs all of them over damaged files in every `make test`. */
#ifndef SAMLAD_FUZZ_H
#define SAMLAD_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#ifndef FUZZ_TARGET /* test_fuzz.c renames each */
#define FUZZ_TARGET LLVMFuzzerTestOneInput
#endif

int FUZZ_TARGET(const uint8_t *bytes, size_t n);

#endif
