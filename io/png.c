/* io/png.c - PNG (ISO/IEC 15948). Read: every colour type, bit depth and interlace. Written: 1 to 4
 * channels of 8 or 16 bits, and indexed images.
 *
 * A file is a signature and chunks (length, type, data, CRC-32). IHDR describes the image, PLTE is its
 * palette, tRNS its transparency, eXIf its orientation (exif.h). The IDATs together are one zlib stream:
 * the rows, each behind a filter byte. A filter predicts each byte from its left, upper and upper-left
 * neighbours (a whole pixel away) and stores the difference. IEND ends the file; in a file that is cut off
 * behind its pixels, these count, as in Pillow. */
#include "io/image.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/bytes.h"
#include "io/exif.h"
#include "io/file.h"

static const uint8_t SIGNATURE[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

enum { GREY = 0, RGB = 2, INDEXED = 3, GREY_ALPHA = 4, RGBA = 6 }; /* colour types */

typedef struct Png {
    const uint8_t *bytes;
    size_t n;
    const char *name;
    Error *err;
    int width, height, depth, color, interlaced;
    int file_channels;       /* samples a pixel in the file: a palette index is one. */
    uint8_t palette[256][4]; /* RGBA, alpha 255 unless tRNS says otherwise. */
    int n_colors;
    int has_transparency; /* the file has a tRNS chunk. */
    int key[3];           /* grey or RGB: this colour is transparent. */
    int orientation;      /* orientation from the first eXIf chunk, 0: none. */
    uint8_t *data;        /* all IDATs */
    size_t n_data;
} Png;

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)bytes_number(p, 4, 1);
}

static int bad(const Png *png, const char *what)
{
    return fail(png->err, "%s: bad PNG file: %s", png->name, what);
}

/* ---- chunks ----------------------------------------------------------------------------------------*/

static int read_ihdr(Png *png, const uint8_t *p, size_t n)
{
    if (n != 13)
        return bad(png, "IHDR is not 13 bytes long");
    uint32_t width = get32(p), height = get32(p + 4);
    if (width < 1 || height < 1 || width > INT32_MAX || height > INT32_MAX)
        return bad(png, "width or height is 0 or above 2^31 - 1");
    if ((uint64_t)width * height > (uint64_t)IMAGE_MAX_PIXELS)
        return fail(png->err, "%s: %u x %u pixels, more than the %lld that are read", png->name,
                    (unsigned)width, (unsigned)height, (long long)IMAGE_MAX_PIXELS);
    png->width = (int)width, png->height = (int)height;
    png->depth = p[8], png->color = p[9], png->interlaced = p[12];
    int depth_bit =
        png->depth == 1 || png->depth == 2 || png->depth == 4 || png->depth == 8 || png->depth == 16
            ? png->depth
            : 0; /* the depths are powers of two, so they serve as a bit set. */
    int allowed = png->color == GREY                                                    ? 1 | 2 | 4 | 8 | 16
                  : png->color == INDEXED                                               ? 1 | 2 | 4 | 8
                  : png->color == RGB || png->color == GREY_ALPHA || png->color == RGBA ? 8 | 16
                                                                                        : 0;
    if (!(depth_bit & allowed))
        return fail(png->err, "%s: bad PNG file: colour type %d with bit depth %d", png->name, png->color,
                    png->depth);
    if (p[10] != 0 || p[11] != 0 || p[12] > 1)
        return bad(png, "unknown compression, filter or interlace method");
    png->file_channels = png->color == RGB ? 3 : png->color == RGBA ? 4 : png->color == GREY_ALPHA ? 2 : 1;
    return 0;
}

static int read_plte(Png *png, const uint8_t *p, size_t n)
{
    if (png->n_colors > 0 || png->n_data > 0 || png->has_transparency)
        return bad(png, "PLTE stands twice, or behind tRNS or IDAT");
    if (png->color == GREY || png->color == GREY_ALPHA)
        return bad(png, "a grey image has a palette");
    if (n == 0 || n % 3 != 0 || n > 768 || (png->color == INDEXED && n / 3 > (size_t)1 << png->depth))
        return bad(png, "PLTE has a wrong length");
    png->n_colors = (int)(n / 3);
    for (int i = 0; i < png->n_colors; i++) {
        memcpy(png->palette[i], p + 3 * i, 3);
        png->palette[i][3] = 255;
    }
    return 0;
}

static int read_trns(Png *png, const uint8_t *p, size_t n)
{
    if (png->n_data > 0 || png->has_transparency)
        return bad(png, "tRNS stands twice, or behind IDAT");
    if (png->color == INDEXED) {
        if (n > (size_t)png->n_colors)
            return bad(png, "tRNS has more entries than the palette");
        for (size_t i = 0; i < n; i++)
            png->palette[i][3] = p[i];
    } else if (png->color == GREY || png->color == RGB) {
        if (n != 2 * (size_t)png->file_channels)
            return bad(png, "tRNS has a wrong length");
        for (int c = 0; c < png->file_channels; c++)
            png->key[c] = (p[2 * c] << 8 | p[2 * c + 1]) & ((1 << png->depth) - 1);
    } else {
        return bad(png, "tRNS in an image that has alpha");
    }
    png->has_transparency = 1;
    return 0;
}

/* Read one chunk of the wanted types; `previous` is the type of the chunk before. */
static int read_chunk(Png *png, const uint8_t *type, const uint8_t *p, size_t n, const uint8_t *previous)
{
    if (memcmp(type, "PLTE", 4) == 0)
        return read_plte(png, p, n);
    if (memcmp(type, "tRNS", 4) == 0)
        return read_trns(png, p, n);
    if (memcmp(type, "IDAT", 4) == 0) {
        if (png->n_data > 0 && memcmp(previous, "IDAT", 4) != 0)
            return bad(png, "something stands between two IDAT");
        if (n > 0)
            memcpy(png->data + png->n_data, p, n);
        png->n_data += n;
        return 0;
    }
    if (memcmp(type, "eXIf", 4) == 0) {
        if (!png->orientation)
            png->orientation = exif_of_chunk(p, n);
        return 0;
    }
    if (memcmp(type, "IHDR", 4) == 0)
        return bad(png, "IHDR stands twice");
    if (!(type[0] & 0x20)) /* a capital letter: the image cannot be shown without it. */
        return fail(png->err, "%s: bad PNG file: unknown critical chunk", png->name);
    return 0;
}

/* Is the file cut off behind its pixels? Then the end chunk is missing, but nothing else. */
static int ends_behind_pixels(const Png *png, size_t at)
{
    return png->n_data > 0 && (png->n - at < 8 || memcmp(png->bytes + at + 4, "IDAT", 4) != 0);
}

static int read_chunks(Png *png)
{
    const uint8_t *previous = NULL;
    for (size_t at = 8;;) {
        const size_t left = png->n - at;
        const uint8_t *type = png->bytes + at + 4, *p = type + 4;
        size_t n = left < 12 ? 0 : get32(png->bytes + at);
        if (left < 12 || n > left - 12) {
            if (ends_behind_pixels(png, at))
                break;
            return bad(png, "truncated, or a chunk has a wrong length");
        }
        int critical = !(type[0] & 0x20);
        if ((critical || memcmp(type, "tRNS", 4) == 0) && crc32_update(0, type, n + 4) != get32(p + n))
            return bad(png, "the CRC of a chunk does not agree");
        if (previous == NULL) {
            if (memcmp(type, "IHDR", 4) != 0)
                return bad(png, "it does not begin with IHDR");
            if (read_ihdr(png, p, n))
                return -1;
        } else if (memcmp(type, "IEND", 4) == 0) {
            break;
        } else if (read_chunk(png, type, p, n, previous)) {
            return -1;
        }
        previous = type;
        at += n + 12;
    }
    if (png->n_data == 0)
        return bad(png, "no IDAT");
    return png->color == INDEXED && png->n_colors == 0 ? bad(png, "no palette") : 0;
}

/* ---- rows ------------------------------------------------------------------------------------------*/

static inline uint8_t paeth(int left, int up, int corner)
{
    int to_left = abs(up - corner), to_up = abs(left - corner), to_corner = abs(left + up - 2 * corner);
    return (uint8_t)(to_left <= to_up && to_left <= to_corner ? left : to_up <= to_corner ? up : corner);
}

/* Undo the filter of a row of n bytes in place. above: the row before (zeros for the first); step: bytes a
 * pixel. */
static int unfilter(int filter, uint8_t *row, const uint8_t *above, size_t n, size_t step)
{
    size_t i = 0;
    switch (filter) {
    case 0:
        return 0;
    case 1:
        for (i = step; i < n; i++)
            row[i] = (uint8_t)(row[i] + row[i - step]);
        return 0;
    case 2:
        for (; i < n; i++)
            row[i] = (uint8_t)(row[i] + above[i]);
        return 0;
    case 3:
        for (; i < step && i < n; i++)
            row[i] = (uint8_t)(row[i] + above[i] / 2);
        for (; i < n; i++)
            row[i] = (uint8_t)(row[i] + (row[i - step] + above[i]) / 2);
        return 0;
    case 4:
        for (; i < step && i < n; i++)
            row[i] = (uint8_t)(row[i] + above[i]);
        for (; i < n; i++)
            row[i] = (uint8_t)(row[i] + paeth(row[i - step], above[i], above[i - step]));
        return 0;
    default:
        return -1;
    }
}

/* Sample i of a row at any depth. */
static inline int row_sample(const uint8_t *row, size_t i, int depth)
{
    if (depth == 8)
        return row[i];
    if (depth == 16)
        return row[2 * i] << 8 | row[2 * i + 1];
    size_t bit = i * (size_t)depth;
    return row[bit / 8] >> (8 - depth - (int)(bit % 8)) & ((1 << depth) - 1);
}

static int expand_indexed(const Png *png, Image *image, size_t at, int index)
{
    if (index >= png->n_colors)
        return fail(png->err, "%s: bad PNG file: colour %d of a palette of %d", png->name, index,
                    png->n_colors);
    memcpy((uint8_t *)image->samples + at * (size_t)image->channels, png->palette[index],
           (size_t)image->channels);
    image->indices[at] = (uint8_t)index;
    return 0;
}

/* Store a pixel's samples. Low depths are scaled to 8 bits; tRNS gives alpha. */
static void expand_samples(const Png *png, Image *image, size_t at, const uint8_t *row, size_t x)
{
    int n = png->file_channels, is_key = png->has_transparency;
    size_t to = at * (size_t)image->channels;
    int scale = png->depth < 8 ? 255 / ((1 << png->depth) - 1) : 1;
    for (int c = 0; c < image->channels; c++) {
        int value;
        if (c < n) {
            value = row_sample(row, x * (size_t)n + (size_t)c, png->depth);
            is_key = is_key && value == png->key[c];
            value *= scale;
        } else { /* alpha by tRNS: all samples before it are read. */
            value = is_key ? 0 : png->depth == 16 ? 65535 : 255;
        }
        if (image->bits == 16)
            ((uint16_t *)image->samples)[to + (size_t)c] = (uint16_t)value;
        else
            ((uint8_t *)image->samples)[to + (size_t)c] = (uint8_t)value;
    }
}

/* An interlaced file holds seven small images: pass p has the pixels (x0 + i·dx, y0 + j·dy). Any other
 * file is one pass. */
typedef struct Pass {
    int x0, y0, dx, dy;
} Pass;
static const Pass ADAM7[7] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                              {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
static const Pass PLAIN[1] = {{0, 0, 1, 1}};

static size_t steps(int size, int start, int step) /* number of start, start + step ... below size. */
{
    return size > start ? (size_t)((size - start + step - 1) / step) : 0;
}

static size_t row_bytes(const Png *png, size_t width)
{
    return (width * (size_t)png->file_channels * (size_t)png->depth + 7) / 8;
}

static size_t pass_bytes(const Png *png, const Pass *pass)
{
    size_t width = steps(png->width, pass->x0, pass->dx), height = steps(png->height, pass->y0, pass->dy);
    return width ? height * (row_bytes(png, width) + 1) : 0;
}

/* Unfilter and store one pass; its rows begin at raw. zeros: a row of zeros. */
static int read_pass(const Png *png, Image *image, const Pass *pass, uint8_t *raw, const uint8_t *zeros)
{
    size_t width = steps(png->width, pass->x0, pass->dx), height = steps(png->height, pass->y0, pass->dy);
    size_t n = row_bytes(png, width), step = (size_t)(png->file_channels * png->depth + 7) / 8;
    const uint8_t *above = zeros;
    for (size_t j = 0; width > 0 && j < height; j++, raw += n + 1) {
        uint8_t *row = raw + 1;
        if (unfilter(raw[0], row, above, n, step))
            return fail(png->err, "%s: bad PNG file: unknown filter %d", png->name, raw[0]);
        above = row;
        size_t to = ((size_t)pass->y0 + j * (size_t)pass->dy) * (size_t)png->width + (size_t)pass->x0;
        if (png->depth == 8 && !png->interlaced && png->color != INDEXED &&
            image->channels == png->file_channels) {
            memcpy((uint8_t *)image->samples + to * (size_t)image->channels, row, n); /* the common case */
            continue;
        }
        for (size_t i = 0; i < width; i++, to += (size_t)pass->dx) {
            if (png->color != INDEXED)
                expand_samples(png, image, to, row, i);
            else if (expand_indexed(png, image, to, row_sample(row, i, png->depth)))
                return -1;
        }
    }
    return 0;
}

static int allocate_image(const Png *png, Image *image)
{
    size_t n_pixels = (size_t)png->width * (size_t)png->height;
    int channels = png->color == INDEXED ? 3 : png->file_channels;
    *image = (Image){.width = png->width, .height = png->height, .bits = png->depth == 16 ? 16 : 8};
    image->channels = channels + (png->has_transparency ? 1 : 0);
    size_t n_bytes = n_pixels * (size_t)image->channels * (size_t)(image->bits / 8);
    image->samples = malloc(n_bytes);
    if (png->color == INDEXED)
        image->indices = malloc(n_pixels);
    if (!image->samples || (png->color == INDEXED && !image->indices)) {
        image_free(image);
        return fail_memory(png->err, png->name, n_bytes);
    }
    return 0;
}

static int read_pixels(const Png *png, Image *image)
{
    const Pass *passes = png->interlaced ? ADAM7 : PLAIN;
    int n_passes = png->interlaced ? 7 : 1;
    size_t expected = 0, n_raw;
    for (int p = 0; p < n_passes; p++)
        expected += pass_bytes(png, &passes[p]);
    if (expected / 1032 > png->n_data) /* deflate packs no denser: refuse before memory is asked for. */
        return bad(png, "truncated: there is far too little data for its size");
    uint8_t *raw = zlib_inflate(png->data, png->n_data, expected, &n_raw, png->name, png->err);
    if (!raw)
        return -1;
    uint8_t *zeros = calloc(row_bytes(png, (size_t)png->width), 1), *at = raw;
    int status = 0;
    if (n_raw != expected)
        status =
            fail(png->err, "%s: bad PNG file: %zu bytes of pixels, expected %zu", png->name, n_raw, expected);
    else if (!zeros)
        status = fail_memory(png->err, png->name, row_bytes(png, (size_t)png->width));
    else if (!(status = allocate_image(png, image))) {
        for (int p = 0; p < n_passes && !status; p++) {
            status = read_pass(png, image, &passes[p], at, zeros);
            at += pass_bytes(png, &passes[p]);
        }
        if (status)
            image_free(image);
    }
    free(zeros);
    free(raw);
    return status;
}

int png_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    Png png = {.bytes = bytes, .n = n, .name = name, .err = err};
    memset(image, 0, sizeof *image);
    if (n < 8 || memcmp(bytes, SIGNATURE, 8) != 0)
        return fail(err, "%s: not a PNG file", name);
    png.data = malloc(n);
    if (!png.data)
        return fail_memory(err, name, n);
    int status = read_chunks(&png) ? -1 : read_pixels(&png, image);
    free(png.data);
    if (!status && exif_turn(image, png.orientation, name, err)) {
        image_free(image);
        return -1;
    }
    return status;
}

/* ---- writing ---------------------------------------------------------------------------------------*/

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

static void put_chunk(OutFile *out, const char type[4], const uint8_t *data, size_t n)
{
    uint8_t head[8], tail[4];
    put32(head, (uint32_t)n);
    memcpy(head + 4, type, 4);
    put32(tail, crc32_update(crc32_update(0, head + 4, 4), data, n));
    out_put(out, head, 8);
    out_put(out, data, n);
    out_put(out, tail, 4);
}

/* Filter a row. Returns the sum of its bytes as signed numbers: a smaller sum compresses better. */
static uint64_t apply_filter(int filter, uint8_t *to, const uint8_t *row, const uint8_t *above, size_t n,
                             size_t step)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        int left = i >= step ? row[i - step] : 0, corner = i >= step ? above[i - step] : 0, up = above[i];
        int guess = filter == 0   ? 0
                    : filter == 1 ? left
                    : filter == 2 ? up
                    : filter == 3 ? (left + up) / 2
                                  : paeth(left, up, corner);
        to[i] = (uint8_t)(row[i] - guess);
        sum += to[i] < 128 ? to[i] : 256u - to[i];
    }
    return sum;
}

/* Rows of n bytes each -> the same with a filter byte before each. adaptive: the best of the five filters
 * for each row; otherwise none, which suits palette indices. NULL: no memory. */
static uint8_t *filter_rows(const uint8_t *rows, size_t n, size_t height, size_t step, int adaptive)
{
    uint8_t *filtered = malloc((n + 1) * height), *scratch = calloc(2, n);
    if (!filtered || !scratch) {
        free(filtered);
        free(scratch);
        return NULL;
    }
    uint8_t *trial = scratch + n; /* scratch itself stays zero: the row above the first. */
    for (size_t y = 0; y < height; y++) {
        const uint8_t *row = rows + y * n, *above = y > 0 ? row - n : scratch;
        uint8_t *to = filtered + y * (n + 1);
        to[0] = 0;
        uint64_t best = apply_filter(0, to + 1, row, above, n, step);
        for (int filter = 1; adaptive && filter < 5; filter++) {
            uint64_t sum = apply_filter(filter, trial, row, above, n, step);
            if (sum < best) {
                best = sum;
                to[0] = (uint8_t)filter;
                memcpy(to + 1, trial, n);
            }
        }
    }
    free(scratch);
    return filtered;
}

/* An image whose samples are in file order. */
typedef struct FileImage {
    const uint8_t *rows; /* [height][n] */
    size_t n, step;      /* bytes a row, and a pixel (1 below 8 bits). */
    int width, height, depth, color;
    const uint8_t *palette, *alpha; /* [n_colors][3], [n_colors]; or NULL. */
    int n_colors;
} FileImage;

static int write_file(const char *path, const FileImage *image, Error *err)
{
    const size_t height = (size_t)image->height, n_filtered = (image->n + 1) * height;
    size_t n_data = 0;
    uint8_t *filtered = filter_rows(image->rows, image->n, height, image->step, image->color != INDEXED);
    uint8_t *data = filtered ? zlib_deflate(filtered, n_filtered, &n_data) : NULL;
    free(filtered);
    if (!data)
        return fail_memory(err, path, n_filtered);
    OutFile out;
    if (out_open(&out, path, err)) {
        free(data);
        return -1;
    }
    uint8_t ihdr[13] = {0};
    put32(ihdr, (uint32_t)image->width);
    put32(ihdr + 4, (uint32_t)image->height);
    ihdr[8] = (uint8_t)image->depth, ihdr[9] = (uint8_t)image->color;
    out_put(&out, SIGNATURE, 8);
    put_chunk(&out, "IHDR", ihdr, 13);
    if (image->palette)
        put_chunk(&out, "PLTE", image->palette, 3 * (size_t)image->n_colors);
    if (image->alpha)
        put_chunk(&out, "tRNS", image->alpha, (size_t)image->n_colors);
    for (size_t at = 0; at < n_data;) {
        size_t part =
            n_data - at < (size_t)1 << 30 ? n_data - at : (size_t)1 << 30; /* a chunk is below 2^31 bytes. */
        put_chunk(&out, "IDAT", data + at, part);
        at += part;
    }
    put_chunk(&out, "IEND", NULL, 0);
    free(data);
    return out_commit(&out, err);
}

int png_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err)
{
    static const int colors[5] = {0, GREY, GREY_ALPHA, RGB, RGBA};
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS || channels < 1 ||
        channels > 4 || (bits != 8 && bits != 16))
        return fail(err, "%s: cannot write a PNG of %d x %d pixels with %d channels of %d bits", path, width,
                    height, channels, bits);
    const size_t step = (size_t)(channels * bits / 8);
    FileImage image = {.rows = samples,
                       .n = (size_t)width * step,
                       .step = step,
                       .width = width,
                       .height = height,
                       .depth = bits,
                       .color = colors[channels]};
    if (bits == 8)
        return write_file(path, &image, err);
    size_t n_samples = image.n / 2 * (size_t)height;
    uint8_t *rows = malloc(2 * n_samples); /* big-endian */
    if (!rows)
        return fail_memory(err, path, 2 * n_samples);
    for (size_t i = 0; i < n_samples; i++) {
        rows[2 * i] = (uint8_t)(((const uint16_t *)samples)[i] >> 8);
        rows[2 * i + 1] = (uint8_t)((const uint16_t *)samples)[i];
    }
    image.rows = rows;
    int status = write_file(path, &image, err);
    free(rows);
    return status;
}

int png_write_indexed(const char *path, const uint8_t *indices, int width, int height, const uint8_t *palette,
                      int n_colors, const uint8_t *alpha, Error *err)
{
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS || n_colors < 1 ||
        n_colors > 256)
        return fail(err, "%s: cannot write an indexed PNG of %d x %d pixels with %d colours", path, width,
                    height, n_colors);
    int depth = n_colors <= 2 ? 1 : n_colors <= 4 ? 2 : n_colors <= 16 ? 4 : 8;
    size_t n = ((size_t)width * (size_t)depth + 7) / 8;
    uint8_t *rows = calloc((size_t)height, n);
    if (!rows)
        return fail_memory(err, path, n * (size_t)height);
    for (size_t y = 0; y < (size_t)height; y++)
        for (size_t x = 0; x < (size_t)width; x++) {
            int index = indices[y * (size_t)width + x];
            if (index >= n_colors) {
                free(rows);
                return fail(err, "%s: colour %d of a palette of %d", path, index, n_colors);
            }
            size_t bit = x * (size_t)depth;
            rows[y * n + bit / 8] |= (uint8_t)(index << (8 - depth - (int)(bit % 8)));
        }
    const FileImage image = {.rows = rows,
                             .n = n,
                             .step = 1,
                             .width = width,
                             .height = height,
                             .depth = depth,
                             .color = INDEXED,
                             .palette = palette,
                             .alpha = alpha,
                             .n_colors = n_colors};
    int status = write_file(path, &image, err);
    free(rows);
    return status;
}
