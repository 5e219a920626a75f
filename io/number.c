/* io/number.c - see number.h. */
#include "number.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LONGEST = 400
}; /* characters of a number that are looked at; the shortest text of any double has 25 */

static char locale_point(void)
{
    const struct lconv *conventions = localeconv();
    return conventions && conventions->decimal_point[0] ? conventions->decimal_point[0] : '.';
}

double number_read(const char *text, char **end)
{
    const char point = locale_point();
    if (point == '.')
        return strtod(text, end);
    /* A copy that strtod understands: the same length, so that the end is at the same place. What the locale
     * calls a point is none here. */
    char copy[LONGEST + 1], *stop;
    snprintf(copy, sizeof copy, "%s", text);
    copy[strcspn(copy, (char[]){point, 0})] = 0;
    char *dot = strchr(copy, '.');
    if (dot)
        *dot = point;
    double value = strtod(copy, &stop);
    if (end)
        *end = (char *)text + (stop - copy);
    return value;
}

void number_write(char *text, size_t size, int digits, double value)
{
    snprintf(text, size, "%.*g", digits, value);
    char *point = strchr(text, locale_point());
    if (point)
        *point = '.';
}
