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

/* For functions that return a value, not a status: they leave a sentence, and their caller asks at the end. The error
 * begins empty (fail_none). fail_any: 0, or -1 when there is a sentence. */
void fail_none(Error *err);
int fail_any(const Error *err);

/* fail() for an allocation of n_bytes for the named purpose. */
int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes);

#endif
