/* io/number.h - numbers as text with a decimal point. strtod and printf obey the locale that the program
 * has set; files must not. */
#ifndef SAMLAD_IO_NUMBER_H
#define SAMLAD_IO_NUMBER_H

#include <stddef.h>

/* strtod of the "C" locale: the number at the beginning of text. *end (unless end is NULL) is behind it,
 * or is text when there is none. */
double number_read(const char *text, char **end);
/* snprintf's "%.*g" of the "C" locale. */
void number_write(char *text, size_t size, int digits, double value);

#endif
