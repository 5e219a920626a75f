/* fail.h - how a function that fails says so. Apart from error.h, which programs that use samlad.h see:
 * these names are the library's own. */
#ifndef SAMLAD_FAIL_H
#define SAMLAD_FAIL_H

#include "io/error.h"

/* Write the sentence into err (NULL is allowed: the caller does not care) and return -1, so that
 * `return fail(err, "%s: not a PNG file", path);` is the whole of an error path. */
int fail(Error *err, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* fail() for an allocation of n_bytes for the named purpose. */
int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes);

#endif
