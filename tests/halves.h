/* halves.h - shared by the tests of bf16: floats as a product in bf16 sees them. */
#ifndef SAMLAD_TEST_HALVES_H
#define SAMLAD_TEST_HALVES_H

#include <stdlib.h>
#include <string.h>

#include "tensor.h"

/* Floats by their bits, and the bf16 that each is rounded to. */
static const struct {
    uint32_t bits;
    uint16_t half;
} rounding_cases[] = {
    {0x3f800000, 0x3f80}, /* 1 */
    {0x3f808000, 0x3f80}, /* a tie: down to even */
    {0x3f808001, 0x3f81}, /* just above it */
    {0x3f818000, 0x3f82}, /* a tie: up to even */
    {0x3f817fff, 0x3f81}, /* just below it */
    {0xbf818000, 0xbf82}, /* signs change nothing */
    {0x3fffffff, 0x4000}, /* carries into the exponent */
    {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
    {0x7f7fffff, 0x7f80}, /* the largest float is nearest to infinity */
    {0x7f7f7fff, 0x7f7f}, /* and this one is nearest to the largest bf16 */
    {0x00800000, 0x0080}, /* the smallest normal number stays, smaller ones are zero */
    {0x007fffff, 0x0000}, {0x80000001, 0x8000}, {0x7f800001, 0x7fc0}, /* NaNs whose upper half is
                                                                         infinity's */
    {0xff80ffff, 0xffc0}, {0x7fc12345, 0x7fc1},
};

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
