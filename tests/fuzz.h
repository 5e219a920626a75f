/* fuzz.h - what the fuzz_*.c targets share. Each is one function for libFuzzer:
 *
 *     clang -g -O1 -std=c11 -D_GNU_SOURCE -I. -fsanitize=fuzzer,address,undefined \
 *         tests/fuzz_png.c io/[a-z]*.c -lm -o fuzz_png
 *
 * test_fuzz.c runs them all over mutated files in every `make test`. */
#ifndef SAMLAD_FUZZ_H
#define SAMLAD_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#ifndef FUZZ_TARGET /* test_fuzz.c gives each a name of its own */
#define FUZZ_TARGET LLVMFuzzerTestOneInput
#endif

int FUZZ_TARGET(const uint8_t *bytes, size_t n);

#endif
