/* error.c - see fail.h and error.h. */
#include "fail.h"

#include <stdarg.h>
#include <stdio.h>

int fail(Error *err, const char *format, ...)
{
    if (!err)
        return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return -1;
}

int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes)
{
    return fail(err, "out of memory: %llu bytes for %s", n_bytes, purpose);
}
