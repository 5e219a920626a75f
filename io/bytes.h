/* io/bytes.h - numbers of n bytes (at most 8) in image formats, highest byte first or last. */
#ifndef SAMLAD_IO_BYTES_H
#define SAMLAD_IO_BYTES_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t bytes_number(const uint8_t *p, size_t n, int big_endian)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++)
        value = value << 8 | p[big_endian ? i : n - 1 - i];
    return value;
}

#endif
