/* io/fail.c - see fail.h and error.h. */
#include "io/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* 1 for a byte of UTF-8 that continues a character. */
static int within_character(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

int fail(Error *err, const char *format, ...)
{
    if (!err)
        return -1;
    enum { LONGEST = 4096 + ERROR_SIZE, HEAD = ERROR_SIZE / 2 - 4 };
    char whole[LONGEST];
    va_list args;
    va_start(args, format);
    vsnprintf(whole, sizeof whole, format, args);
    va_end(args);
    /* The path comes first and the reason last. A sentence that is too long loses its middle. */
    const size_t n = strlen(whole);
    if (n < ERROR_SIZE) {
        memcpy(err->message, whole, n + 1);
        return -1;
    }
    size_t head = HEAD, tail = n - (ERROR_SIZE - 1 - HEAD - 3);
    while (head > 0 && within_character(whole[head]))
        head--;
    while (within_character(whole[tail]))
        tail++;
    snprintf(err->message, ERROR_SIZE, "%.*s...%s", (int)head, whole, whole + tail);
    return -1;
}

int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes)
{
    return fail(err, "out of memory: %llu bytes for %s", n_bytes, purpose);
}

void fail_none(Error *err)
{
    err->message[0] = '\0';
}

int fail_any(const Error *err)
{
    return err->message[0] ? -1 : 0;
}
