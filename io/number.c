/* io/number.c - see number.h. */
#include "io/number.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST = 400 }; /* longest number that is read; the shortest text of any double has 25. */

/* The locale's decimal point: one character, which may have several bytes (Pashto's momayyez). */
static const char *locale_point(void)
{
    const struct lconv *conventions = localeconv();
    return conventions && conventions->decimal_point[0] ? conventions->decimal_point : ".";
}

double number_read(const char *text, char **end)
{
    const char *point = locale_point();
    if (strcmp(point, ".") == 0)
        return strtod(text, end);
    /* A copy for strtod, with the locale's point instead of ours. The locale's point in the text ends the
     * number. */
    char ours[LONGEST + 1], copy[LONGEST + 17], *stop;
    const size_t n = strnlen(text, LONGEST);
    memcpy(ours, text, n);
    ours[n] = 0;
    char *theirs = strstr(ours, point);
    if (theirs)
        *theirs = 0;
    const char *dot = strchr(ours, '.');
    snprintf(copy, sizeof copy, "%.*s%.16s%s", dot ? (int)(dot - ours) : (int)strlen(ours), ours,
             dot ? point : "", dot ? dot + 1 : "");
    const double value = strtod(copy, &stop);
    if (end) {
        const size_t used = (size_t)(stop - copy), more = strlen(point) - 1;
        *end = (char *)text + (dot && used > (size_t)(dot - ours) ? used - more : used);
    }
    return value;
}

void number_write(char *text, size_t size, int digits, double value)
{
    const char *point = locale_point();
    snprintf(text, size, "%.*g", digits, value);
    char *at = strstr(text, point);
    if (at) {
        *at = '.';
        memmove(at + 1, at + strlen(point), strlen(at + strlen(point)) + 1);
    }
}

/* ---- float16 -----------------------------------------------------------------------------------*/

void f16_to_f32_row(float *to, const uint16_t *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = f16_to_f32(from[i]);
}

uint16_t f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) /* NaN: quiet, the payload's upper bits kept. */
        return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x1ff));
    if (u >= 0x47800000) /* 65536 and more; rounding up to it carries over below. */
        return (uint16_t)(sign | 0x7c00);
    if (u < 0x38800000) { /* below 2^-14: the unit is 2^-24, so an addition to 0.5 (unit 2^-24) rounds. */
        union {
            uint32_t u;
            float f;
        } x = {u}, half = {0x3f000000};
        x.f += half.f;
        return (uint16_t)(sign | (x.u - half.u));
    }
    u += 0xfff + (u >> 13 & 1); /* round the 13 bits that are dropped, ties to even. */
    return (uint16_t)(sign | (u - (112u << 23)) >> 13);
}
