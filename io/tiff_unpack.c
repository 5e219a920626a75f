/* io/tiff_unpack.c - the compressions of TIFF, and its predictors. See tiff.h. */
#include "io/tiff.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

/* ---- decompression: exactly n_out bytes of one strip or tile, -1 when there are fewer ---------------*/

static int unpack_bits(uint8_t *out, size_t n_out, const uint8_t *in, size_t n)
{
    size_t at = 0, to = 0;
    while (to < n_out) {
        if (at >= n)
            return -1;
        int head = (int8_t)in[at++];
        size_t run = (size_t)(head < 0 ? 1 - head : 1 + head), room = n_out - to;
        size_t used = run < room ? run : room;
        if (head == -128)
            continue;
        if (head >= 0 ? n - at < used : at >= n)
            return -1;
        if (head >= 0)
            memcpy(out + to, in + at, used);
        else
            memset(out + to, in[at], used);
        at += head >= 0 ? run : 1;
        to += used;
    }
    return 0;
}

/* TIFF's LZW: codes of 9 to 12 bits, highest bit first; 256 empties the table, 257 ends. Entry c is the
 * output string at start[c], length[c]. Each is the string before it plus one byte, so it always lies
 * whole in the output. */
static int unpack_lzw(uint8_t *out, size_t n_out, const uint8_t *in, size_t n)
{
    enum { CLEAR = 256, END = 257, FIRST = 258, LAST = 4096 };
    size_t start[LAST], length[LAST], to = 0, at = 0, last_start = 0, last_length = 0;
    uint32_t bits = 0;
    int n_bits = 0, width = 9, next = FIRST;
    while (to < n_out) {
        for (; n_bits < width; n_bits += 8) {
            if (at == n)
                return -1;
            bits = bits << 8 | in[at++];
        }
        int code = (int)(bits >> (n_bits - width) & ((1u << width) - 1));
        n_bits -= width;
        if (code == END)
            return -1;
        if (code == CLEAR) {
            next = FIRST, width = 9, last_length = 0;
            continue;
        }
        /* The new entry: the last string and the next byte of the output, which is about to be written. */
        if (last_length > 0 && next < LAST) {
            start[next] = last_start;
            length[next] = last_length + 1;
            next++;
        }
        if (code >= next)
            return -1;
        last_start = to;
        last_length = code < CLEAR ? 1 : length[code];
        for (size_t i = 0; i < last_length && to < n_out; i++) /* byte by byte: it may overlap itself. */
            out[to++] = code < CLEAR ? (uint8_t)code : out[start[code] + i];
        /* The encoder widens its codes one entry early. */
        width = next + 1 >= 2048 ? 12 : next + 1 >= 1024 ? 11 : next + 1 >= 512 ? 10 : 9;
    }
    return 0;
}

/* What others may bring. */
static const char *compression_name(uint32_t compression)
{
    static const struct {
        uint32_t code;
        const char *name;
    } names[] = {{2, "CCITT"},         {3, "CCITT fax"}, {4, "CCITT fax"},      {6, "JPEG of TIFF 6.0"},
                 {7, "JPEG"},          {9, "JBIG"},      {10, "JBIG"},          {34661, "JBIG"},
                 {34712, "JPEG 2000"}, {34887, "LERC"},  {34892, "lossy JPEG"}, {34925, "LZMA"},
                 {50000, "Zstandard"}, {50001, "WebP"},  {50002, "JPEG XL"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == compression)
            return names[i].name;
    return "unknown";
}

int tiff_check_compression(const Tiff *t)
{
    const uint32_t c = t->compression;
    if (c == TIFF_PLAIN || c == TIFF_LZW || c == TIFF_PACKBITS || c == TIFF_DEFLATE || c == TIFF_OLD_DEFLATE)
        return 0;
    return fail(t->err, "%s: TIFF compression %u (%s) is not supported", t->name, (unsigned)c,
                compression_name(c));
}

int tiff_unpack(const Tiff *t, uint8_t *out, size_t n_out, size_t most, const uint8_t *in, size_t n)
{
    int status = -1;
    if (t->compression == TIFF_PLAIN) {
        if (n >= n_out)
            memcpy(out, in, n_out), status = 0;
    } else if (t->compression == TIFF_PACKBITS) {
        status = unpack_bits(out, n_out, in, n);
    } else if (t->compression == TIFF_LZW) {
        status = unpack_lzw(out, n_out, in, n);
    } else { /* deflate */
        size_t n_inflated;
        uint8_t *inflated = zlib_inflate(in, n, most, &n_inflated, t->name, t->err);
        if (!inflated)
            return -1;
        if (n_inflated >= n_out)
            memcpy(out, inflated, n_out), status = 0;
        free(inflated);
    }
    return status ? tiff_bad(t, "truncated or corrupt pixels") : 0;
}

/* ---- predictors ------------------------------------------------------------------------------------*/

/* Undo predictor 2: each sample, as an integer, is the difference to that of the pixel on its left. */
static void undo_differences(const Tiff *t, uint8_t *row)
{
    const size_t size = t->bits / 8, step = t->plane_samples, n = t->part_width * step;
    for (size_t i = step; i < n; i++) {
        uint8_t *at = row + i * size;
        const uint64_t sum = tiff_get(t, at, size) + tiff_get(t, at - step * size, size);
        for (size_t k = 0; k < size; k++)
            at[k] = (uint8_t)(sum >> 8 * (t->big_endian ? size - 1 - k : k));
    }
}

/* Undo predictor 3. The row holds the highest bytes of all samples first, then the next bytes, and so on.
 * In that sequence each byte is the difference to the one before. */
static void undo_float_predictor(const Tiff *t, uint8_t *row, uint8_t *scratch)
{
    const size_t size = t->bits / 8, width = (size_t)t->part_width * t->plane_samples;
    scratch[0] = row[0];
    for (size_t i = 1; i < width * size; i++)
        scratch[i] = (uint8_t)(scratch[i - 1] + row[i]);
    for (size_t x = 0; x < width; x++)
        for (size_t k = 0; k < size; k++)
            row[x * size + (t->big_endian ? k : size - 1 - k)] = scratch[k * width + x];
}

void tiff_undo_predictor(const Tiff *t, uint8_t *row, uint8_t *scratch)
{
    if (t->predictor == 2)
        undo_differences(t, row);
    else if (t->predictor == 3)
        undo_float_predictor(t, row, scratch);
}
