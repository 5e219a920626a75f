/* io/number.h - numbers as text with a decimal point, whatever locale the program that we are part of has set
 * (strtod and printf obey it; files do not). */
#ifndef SAMLAD_IO_NUMBER_H
#define SAMLAD_IO_NUMBER_H

#include <stddef.h>

/* As strtod in the "C" locale: the number that text begins with; *end (unless
 * end is NULL) is behind it, or is text when there is none. */
double number_read(const char *text, char **end);
/* As snprintf's "%.*g" in the "C" locale. */
void number_write(char *text, size_t size, int digits, double value);

#endif
