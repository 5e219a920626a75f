/* numbers.h - numbers for the arrays of tests: the same in every run. */
#ifndef SAMLAD_TEST_NUMBERS_H
#define SAMLAD_TEST_NUMBERS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A sequence of 24-bit numbers for callers with their own state. */
static inline uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static uint64_t random_state = 1;

static inline uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(random_state >> 32);
}

/* Uniform in [-1, 1). */
static inline float random_float(void)
{
    return (float)(random_bits() >> 8) / (1 << 23) - 1;
}

static inline int random_int(int low, int high)
{
    return low + (int)((random_float() * 0.5 + 0.5) * (high - low + 1) * 0.999999);
}

/* n random floats; n = 0 gives a valid pointer too. The caller frees it. It comes from malloc, so that the
 * address sanitizer notices a read or write beyond the end. */
static inline float *random_array(size_t n)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x)
        abort();
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

static inline float *copy_array(const float *x, size_t n)
{
    float *y = malloc((n ? n : 1) * sizeof *y);
    if (!y)
        abort();
    memcpy(y, x, n * sizeof *y);
    return y;
}

#endif
