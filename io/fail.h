/* io/fail.h - how a function reports failure. These names are the library's own; error.h is for programs
 * that use samlad.h. */
#ifndef SAMLAD_FAIL_H
#define SAMLAD_FAIL_H

#include "io/error.h"

/* Write the sentence into err and return -1, so that an error path is one line: `return fail(err, "%s: not
 * a PNG file", path);`. err may be NULL when the caller needs no sentence. */
int fail(Error *err, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* fail() for an allocation of n_bytes for the named purpose. */
int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes);

#endif
