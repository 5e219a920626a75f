/* io/pnm.c - netpbm's portable bitmaps, greymaps and pixmaps: P1 to P3 as text, P4 to P6 in binary.
 * Samples are scaled to the full range of 8 bits (maxval up to 255) or 16 (above). Rounding is as in PIL.
 * A sample above maxval is refused. Of several images in a file, the first is read. */
#include "io/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

typedef struct PnmReader {
    const uint8_t *bytes;
    size_t n, at;
    const char *name;
    Error *err;
} PnmReader;

static int is_space(int c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Skip white space and comments ('#' to the end of the line). */
static void skip_blanks(PnmReader *r)
{
    while (r->at < r->n && (is_space(r->bytes[r->at]) || r->bytes[r->at] == '#')) {
        if (r->bytes[r->at] == '#')
            while (r->at < r->n && r->bytes[r->at] != '\n' && r->bytes[r->at] != '\r')
                r->at++;
        else
            r->at++;
    }
}

static int read_number(PnmReader *r, const char *what, int max, int *value)
{
    skip_blanks(r);
    size_t start = r->at;
    int64_t v = 0;
    while (r->at < r->n && r->bytes[r->at] >= '0' && r->bytes[r->at] <= '9' && v <= max)
        v = 10 * v + (r->bytes[r->at++] - '0');
    if (r->at == start)
        return fail(r->err, "%s: PNM file: %s is missing at byte %zu%s", r->name, what, start,
                    start == r->n ? " (truncated)" : "");
    if (v > max)
        return fail(r->err, "%s: PNM file: %s is larger than %d", r->name, what, max);
    *value = (int)v;
    return 0;
}

/* The bits of a text bitmap need no space between them. */
static int read_bit(PnmReader *r, int *value)
{
    skip_blanks(r);
    if (r->at == r->n)
        return fail(r->err, "%s: PNM file: truncated", r->name);
    *value = r->bytes[r->at++] - '0';
    return *value == 0 || *value == 1 ? 0 : fail(r->err, "%s: PNM file: a bit is neither 0 nor 1", r->name);
}

static void put_sample(Image *image, size_t i, int value, int maxval)
{
    int64_t full = image->bits == 8 ? 255 : 65535;
    int64_t scaled = maxval == full ? value : (value * full * 2 + maxval) / (2 * maxval);
    if (image->bits == 8)
        ((uint8_t *)image->samples)[i] = (uint8_t)scaled;
    else
        ((uint16_t *)image->samples)[i] = (uint16_t)scaled;
}

static int read_text(PnmReader *r, Image *image, int is_bitmap, int maxval, size_t n_samples)
{
    for (size_t i = 0; i < n_samples; i++) {
        int value;
        if (is_bitmap ? read_bit(r, &value) : read_number(r, "a sample", maxval, &value))
            return -1;
        put_sample(image, i, is_bitmap ? !value : value, maxval);
    }
    return 0;
}

static int read_binary(PnmReader *r, Image *image, int maxval, size_t n_samples)
{
    int wide = maxval > 255;
    const uint8_t *in = r->bytes + r->at;
    for (size_t i = 0; i < n_samples; i++) {
        int value = wide ? in[2 * i] << 8 | in[2 * i + 1] : in[i];
        if (value > maxval)
            return fail(r->err, "%s: PNM file: sample %d is larger than maxval %d", r->name, value, maxval);
        put_sample(image, i, value, maxval);
    }
    return 0;
}

/* Eight pixels a byte, highest bit first, rows padded to bytes; 1 is black. */
static void read_packed_bits(PnmReader *r, Image *image)
{
    uint8_t *out = image->samples;
    size_t width = (size_t)image->width, row_bytes = (width + 7) / 8;
    for (size_t y = 0; y < (size_t)image->height; y++)
        for (size_t x = 0; x < width; x++) {
            int bit = r->bytes[r->at + y * row_bytes + x / 8] >> (7 - x % 8) & 1;
            out[y * width + x] = bit ? 0 : 255;
        }
}

int pnm_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    PnmReader r = {bytes, n, 2, name, err};
    memset(image, 0, sizeof *image);
    if (n < 2 || bytes[0] != 'P' || bytes[1] < '1' || bytes[1] > '6')
        return fail(err, "%s: not a PNM file", name);
    int type = bytes[1] - '0', is_text = type <= 3, is_bitmap = type == 1 || type == 4, width, height,
        maxval = 1;
    if (read_number(&r, "the width", INT32_MAX / 8, &width) ||
        read_number(&r, "the height", INT32_MAX / 8, &height) ||
        (!is_bitmap && read_number(&r, "maxval", 65535, &maxval)))
        return -1;
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS || maxval < 1)
        return fail(err, "%s: PNM file: bad size %d x %d or maxval %d", name, width, height, maxval);
    if (!is_text) {
        if (r.at == n || !is_space(bytes[r.at]))
            return fail(err, "%s: PNM file: one white space must follow the header", name);
        r.at++;
    }
    int channels = type == 3 || type == 6 ? 3 : 1, wide = maxval > 255;
    size_t n_samples = (size_t)width * (size_t)height * (size_t)channels;
    size_t needed = is_text     ? n_samples /* each sample has at least one digit. */
                    : is_bitmap ? (((size_t)width + 7) / 8) * (size_t)height
                                : n_samples << wide;
    if (n - r.at < needed)
        return fail(err, "%s: PNM file: truncated: %zu bytes of samples, expected %zu", name, n - r.at,
                    needed);
    *image = (Image){width, height, channels, wide ? 16 : 8, malloc(n_samples << wide), NULL};
    if (!image->samples)
        return fail_memory(err, name, n_samples << wide);
    int status = 0;
    if (is_text)
        status = read_text(&r, image, is_bitmap, maxval, n_samples);
    else if (is_bitmap)
        read_packed_bits(&r, image);
    else
        status = read_binary(&r, image, maxval, n_samples);
    if (status)
        image_free(image);
    return status;
}

int pnm_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err)
{
    if (width < 1 || height < 1 || (channels != 1 && channels != 3) || (bits != 8 && bits != 16))
        return fail(err, "%s: PNM holds 1 or 3 channels of 8 or 16 bits, not %d of %d in %d x %d", path,
                    channels, bits, width, height);
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    char header[64];
    out_put(&out, header,
            (size_t)snprintf(header, sizeof header, "P%d\n%d %d\n%d\n", channels == 3 ? 6 : 5, width, height,
                             bits == 8 ? 255 : 65535));
    size_t row_samples = (size_t)width * (size_t)channels;
    if (bits == 8) {
        out_put(&out, samples, row_samples * (size_t)height);
        return out_commit(&out, err);
    }
    uint8_t *row = malloc(2 * row_samples); /* big-endian */
    if (!row) {
        out_drop(&out);
        return fail_memory(err, path, 2 * row_samples);
    }
    for (size_t y = 0; y < (size_t)height; y++) {
        const uint16_t *in = (const uint16_t *)samples + y * row_samples;
        for (size_t i = 0; i < row_samples; i++) {
            row[2 * i] = (uint8_t)(in[i] >> 8);
            row[2 * i + 1] = (uint8_t)in[i];
        }
        out_put(&out, row, 2 * row_samples);
    }
    free(row);
    return out_commit(&out, err);
}
