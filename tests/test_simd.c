/* test_simd.c - fast/simd.h's functions of vectors. Left out with PLAIN=1. */
#include "fast/simd.h"
#include "io/safetensors.h"
#include "test.h"

#include <float.h>

/* Every finite float16, including subnormal ones, to the bit. */
static void halves_are_widened_exactly(void)
{
    uint16_t half[LANES];
    float found[LANES];
    for (uint32_t first = 0; first < 65536; first += LANES) {
        for (uint32_t i = 0; i < LANES; i++)
            half[i] = (uint16_t)(first + i);
        store(found, load_half(half));
        for (uint32_t i = 0; i < LANES; i++) {
            float expected = f16_to_f32(half[i]);
            CHECK_MSG(!isfinite(expected) || memcmp(&expected, &found[i], sizeof expected) == 0,
                      "%04x becomes %g, not %g", half[i], found[i], expected);
        }
    }
    store(found, load_half_part((const uint16_t[]){0x3c00, 0xc000}, 2));
    CHECK(found[0] == 1 && found[1] == -2 && found[2] == 0 && found[LANES - 1] == 0);
}

/* Down to 2^-126, below which the result stays; in units of the last place. */
static void powers_of_two_are_exact(void)
{
    double worst = 0;
    const uint32_t first = 0x80000000, last = 0xc2fc0000; /* -0 and -126; steps of 4,099 vary all digits */
    for (uint32_t bits = first; bits <= last; bits += 4099) {
        float x, power;
        int exponent;
        memcpy(&x, &bits, sizeof x);
        store_part(&power, vec_exp2(splat(x)), 1);
        double truth = exp2((double)x);
        frexp(truth, &exponent);
        worst = fmax(worst, fabs(power - truth) / ldexp(1, exponent - FLT_MANT_DIG));
    }
    CHECK_MSG(worst < 2, "2^x is off by %g units of its last place", worst);
    const float ends[] = {0, -0.0f, -126, -127, -1e30f, -INFINITY, NAN};
    float powers[7];
    for (int i = 0; i < 7; i++)
        store_part(powers + i, vec_exp2(splat(ends[i])), 1);
    CHECK(powers[0] == 1 && powers[1] == 1 && isnan(powers[6]));
    for (int i = 2; i < 6; i++)
        CHECK_MSG(powers[i] == 0x1p-126f, "2^%g becomes %g", ends[i], powers[i]);
}

int main(void)
{
    RUN(halves_are_widened_exactly);
    RUN(powers_of_two_are_exact);
    return test_summary();
}
