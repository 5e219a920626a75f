/* io/bytes.h - numbers of n bytes (at most 8) in files, highest byte first or last, on machines of either
 * order. */
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

/* 1 where numbers in memory begin with their highest byte, as on S/390. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BIG_ENDIAN_MEMORY 1
#else
#define BIG_ENDIAN_MEMORY 0
#endif

/* to[n] = from's n numbers of `size` bytes each, with the bytes of each in the other order. to == from is
 * allowed. */
static inline void bytes_reverse(uint8_t *to, const uint8_t *from, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++, to += size, from += size)
        for (size_t k = 0; k < (size + 1) / 2; k++) {
            const uint8_t first = from[k], last = from[size - 1 - k];
            to[k] = last;
            to[size - 1 - k] = first;
        }
}

#endif
