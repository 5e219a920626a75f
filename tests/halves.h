/* halves.h - shared by the tests of bf16: floats as a product in bf16 sees them. */
#ifndef SAMLAD_TEST_HALVES_H
#define SAMLAD_TEST_HALVES_H

#include <stdlib.h>
#include <string.h>

#include "tensor.h"

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float widen(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* A copy of x, rounded as a product in bf16 sees it. */
static inline float *rounded_copy(const float *x, size_t n)
{
    float *y = malloc((n ? n : 1) * sizeof *y);
    uint16_t half;
    if (!y)
        abort();
    for (size_t i = 0; i < n; i++) {
        bf16_round(&half, x + i, 1);
        y[i] = widen(half);
    }
    return y;
}

#endif
