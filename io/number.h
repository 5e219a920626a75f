/* io/number.h - numbers as files hold them: text with a decimal point, and float16. strtod and printf obey the
 * locale that the program has set; files must not. */
#ifndef SAMLAD_IO_NUMBER_H
#define SAMLAD_IO_NUMBER_H

#include <stddef.h>
#include <stdint.h>

/* strtod of the "C" locale: the number at the beginning of text. *end is behind it, or is text when there is
 * none. end may be NULL. */
double number_read(const char *text, char **end);
/* snprintf's "%.*g" of the "C" locale. */
void number_write(char *text, size_t size, int digits, double value);

/* ---- float16: IEEE 754's half precision, in a uint16_t ----------------------------------------*/

/* Without branches, so that loops over it become vector code. An addition moves the exponent's bias from
 * 15 to 127. Subnormals have no implicit one; subtracting 2^-14 removes it again (exactly). */
static inline float f16_to_f32(uint16_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t exponent = magnitude & 0x0f800000;
    union {
        uint32_t u;
        float f;
    } normal = {magnitude + (112u << 23)}, subnormal = {magnitude + (113u << 23)}, one = {113u << 23};
    normal.u += exponent == 0x0f800000 ? 112u << 23 : 0; /* infinity and NaN */
    subnormal.f -= one.f;
    normal.u = exponent == 0 ? subnormal.u : normal.u;
    normal.u |= (uint32_t)(h & 0x8000) << 16;
    return normal.f;
}

void f16_to_f32_row(float *to, const uint16_t *from, size_t n);
uint16_t f32_to_f16(float f); /* rounds to the nearest, ties to even */

#endif
