/* io/bmp.c - Windows bitmaps (.bmp, .dib) of 1, 4, 8, 16, 24 and 32 bits.
 *
 * All numbers are little-endian:
 *
 *   file header   14 bytes: "BM", size, 4 bytes, offset of the pixels. A .dib file may lack it
 *   info header   its own size first:
 *                   12 (BITMAPCOREHEADER)  width, height of 2 bytes each, planes, bits
 *                   40 (BITMAPINFOHEADER)  width, height, planes, bits, compression, ..., number of colours
 *                   52, 56                 and bit masks of red, green, blue, and alpha
 *                   108, 124 (V4, V5)      and a colour space, which is not read
 *                   64 (OS/2)              as 40, and more, which is not read
 *   bit masks     after a header of 40 whose compression is 3 (red, green, blue) or 6 (and alpha)
 *   palette       blue, green, red, 0 a colour; without the 0 after a header of 12
 *   pixels        rows of whole 4 bytes, the lowest row first; a negative height: the highest first.
 *                 1, 4, 8 bits: palette indices, the left one in the high bits. 24: blue, green, red.
 *                 16, 32: a number with the channels at its bit masks; by default 0 + 5 + 5 + 5 bits or
 *                 8 + 8 + 8 + 8, of which the first are not read
 *
 * Compression 1 (8 bits) and 2 (4 bits) are run lengths, in pairs of bytes (n, v): n pixels v (4 bits: its
 * two halves in turn); (0, 0) ends the row, (0, 1) the image; (0, 2) dx dy moves; (0, n) n pixels follow as
 * they are, filled to 2 bytes.
 *
 * Values are Pillow's. It scales channels of b bits by 255 / (2^b - 1), rounded down; OpenCV shifts them, so
 * that its white of 5 bits is 248. Ours, where both refuse or differ: channels of any bit masks; a palette
 * that is absent is a ramp of grey; an index beyond the palette is black; a grey palette makes a grey image,
 * also when white is its first colour. */
#include "io/image.h"

#include <stdlib.h>
#include <string.h>

#include "io/bytes.h"
#include "io/fail.h"

/* A move of 4 bytes skips 255 x 255 pixels; no run is denser. Refuse larger claims before memory is asked
 * for. */
#define BMP_MAX_RATIO (1 << 14)

enum { FILE_HEADER = 14, CORE_HEADER = 12, INFO_HEADER = 40, MASKS_HEADER = 52, ALPHA_HEADER = 56 };
enum { OS2_HEADER = 64, V4_HEADER = 108, V5_HEADER = 124 };
enum { PLAIN = 0, RLE8 = 1, RLE4 = 2, BITFIELDS = 3, ALPHA_BITFIELDS = 6 }; /* compression */

typedef struct Bmp {
    const uint8_t *bytes;
    size_t n;
    const char *name;
    Error *err;
    size_t info;     /* offset of the info header; */
    uint32_t header; /* and its size. */
    int width, height, top_down, bits;
    uint32_t compression;
    uint32_t masks[4]; /* red, green, blue, alpha; 0: no such channel. */
    size_t palette_at; /* offset of the palette, */
    size_t pixels;     /* and of the pixels. */
    int n_colors;
    uint8_t palette[256][3]; /* RGB */
} Bmp;

static int bad(const Bmp *bmp, const char *what)
{
    return fail(bmp->err, "%s: bad BMP file: %s", bmp->name, what);
}

static uint32_t get(const Bmp *bmp, size_t at, size_t n)
{
    return (uint32_t)bytes_number(bmp->bytes + at, n, 0);
}

/* ---- headers ---------------------------------------------------------------------------------------*/

static int is_header(uint32_t size)
{
    return size == CORE_HEADER || size == INFO_HEADER || size == MASKS_HEADER || size == ALPHA_HEADER ||
           size == OS2_HEADER || size == V4_HEADER || size == V5_HEADER;
}

int bmp_begins(const uint8_t *bytes, size_t n)
{
    return (n >= 2 && memcmp(bytes, "BM", 2) == 0) ||
           (n >= 16 && is_header((uint32_t)bytes_number(bytes, 4, 0)) &&
            bytes_number(bytes + (bytes[0] == CORE_HEADER ? 8 : 12), 2, 0) == 1); /* planes */
}

static int read_size(Bmp *bmp)
{
    const int core = bmp->header == CORE_HEADER;
    const uint8_t *p = bmp->bytes + bmp->info;
    const int64_t width = (int32_t)(core ? bytes_number(p + 4, 2, 0) : bytes_number(p + 4, 4, 0));
    const int64_t height = (int32_t)(core ? bytes_number(p + 6, 2, 0) : bytes_number(p + 8, 4, 0));
    bmp->top_down = height < 0;
    const int64_t rows = height < 0 ? -height : height;
    if (width < 1 || rows < 1 || width > IMAGE_MAX_PIXELS || rows > IMAGE_MAX_PIXELS ||
        width * rows > IMAGE_MAX_PIXELS)
        return fail(bmp->err, "%s: bad BMP file: %lld x %lld pixels, expected 1 to %lld in all", bmp->name,
                    (long long)width, (long long)height, (long long)IMAGE_MAX_PIXELS);
    bmp->width = (int)width, bmp->height = (int)rows;
    return 0;
}

static int read_compression(Bmp *bmp)
{
    const int core = bmp->header == CORE_HEADER;
    bmp->bits = (int)get(bmp, bmp->info + (core ? 10 : 14), 2);
    bmp->compression = core ? PLAIN : get(bmp, bmp->info + 16, 4);
    const uint32_t c = bmp->compression;
    const int b = bmp->bits;
    if (b != 1 && b != 4 && b != 8 && b != 16 && b != 24 && b != 32)
        return fail(bmp->err, "%s: BMP of %d bits a pixel is not supported", bmp->name, b);
    if (c == 4 || c == 5)
        return fail(bmp->err, "%s: a BMP file around a %s is not supported", bmp->name,
                    c == 4 ? "JPEG" : "PNG");
    const int masked =
        (c == BITFIELDS || c == ALPHA_BITFIELDS) && (b == 16 || b == 32) && bmp->header != OS2_HEADER;
    if (c != PLAIN && !(c == RLE8 && b == 8) && !(c == RLE4 && b == 4) && !masked)
        return fail(bmp->err, "%s: BMP compression %u with %d bits a pixel is not supported", bmp->name,
                    (unsigned)c, b);
    return 0;
}

/* Bit masks stand in the header, or behind one that is too short for them. */
static int read_masks(Bmp *bmp)
{
    static const uint32_t of_16_bits[4] = {0x7c00, 0x03e0, 0x001f, 0};
    static const uint32_t of_32_bits[4] = {0xff0000, 0xff00, 0xff, 0};
    bmp->palette_at = bmp->info + bmp->header;
    if (bmp->compression != BITFIELDS && bmp->compression != ALPHA_BITFIELDS) {
        memcpy(bmp->masks, bmp->bits == 16 ? of_16_bits : of_32_bits, sizeof bmp->masks);
        return 0;
    }
    const int n_masks = bmp->header >= ALPHA_HEADER || bmp->compression == ALPHA_BITFIELDS ? 4 : 3;
    const size_t at = bmp->info + INFO_HEADER, end = at + 4 * (size_t)n_masks;
    if (end > bmp->n)
        return bad(bmp, "truncated");
    for (int c = 0; c < n_masks; c++)
        bmp->masks[c] = get(bmp, at + 4 * (size_t)c, 4);
    bmp->palette_at = end > bmp->palette_at ? end : bmp->palette_at;
    return bmp->masks[0] | bmp->masks[1] | bmp->masks[2] ? 0 : bad(bmp, "its bit masks are empty");
}

static int read_headers(Bmp *bmp)
{
    bmp->info = bmp->n >= 2 && memcmp(bmp->bytes, "BM", 2) == 0 ? FILE_HEADER : 0;
    if (bmp->n < bmp->info + 4)
        return bad(bmp, "truncated");
    bmp->header = get(bmp, bmp->info, 4);
    if (!is_header(bmp->header))
        return fail(bmp->err, "%s: bad BMP file: a header of %u bytes", bmp->name, (unsigned)bmp->header);
    if (bmp->n - bmp->info < bmp->header)
        return bad(bmp, "truncated");
    return read_size(bmp) || read_compression(bmp) || read_masks(bmp) ? -1 : 0;
}

/* The palette ends where the pixels begin, whatever its header says. */
static int read_palette(Bmp *bmp)
{
    const size_t entry = bmp->header == CORE_HEADER ? 3 : 4;
    const uint32_t declared = bmp->header == CORE_HEADER ? 0 : get(bmp, bmp->info + 32, 4);
    const size_t all = bmp->bits > 8 ? 0 : (size_t)1 << bmp->bits;
    const size_t n = declared > 0 && declared < all ? declared : all;
    bmp->pixels = bmp->info ? get(bmp, 10, 4) : bmp->palette_at + n * entry;
    if (bmp->pixels < bmp->palette_at || bmp->pixels > bmp->n)
        return bad(bmp, "its pixels lie outside the file, or in its header");
    const size_t room = (bmp->pixels - bmp->palette_at) / entry;
    bmp->n_colors = (int)(n < room ? n : room);
    for (int i = 0; i < bmp->n_colors; i++)
        for (size_t c = 0; c < 3; c++)
            bmp->palette[i][c] = bmp->bytes[bmp->palette_at + (size_t)i * entry + 2 - c];
    for (size_t i = 0; bmp->n_colors == 0 && i < all; i++)
        memset(bmp->palette[i], (int)(i * 255 / (all - 1)), 3);
    return 0;
}

/* ---- palette indices -------------------------------------------------------------------------------*/

static size_t place(const Bmp *bmp, size_t row) /* of the row's first pixel; rows are in file order. */
{
    return (bmp->top_down ? row : (size_t)bmp->height - 1 - row) * (size_t)bmp->width;
}

/* Index i of packed ones of 1, 4 or 8 bits. */
static uint8_t index_at(const uint8_t *p, size_t i, int bits)
{
    const size_t bit = i * (size_t)bits;
    return (uint8_t)(p[bit / 8] >> (8 - bits - (int)(bit % 8)) & ((1 << bits) - 1));
}

/* Run lengths; pixels that are skipped keep index 0. Every turn takes two bytes, so it ends. What runs over
 * the end of a row is dropped. */
static int unpack_runs(const Bmp *bmp, uint8_t *indices)
{
    const size_t width = (size_t)bmp->width, height = (size_t)bmp->height;
    const uint8_t *p = bmp->bytes + bmp->pixels, *end = bmp->bytes + bmp->n;
    size_t x = 0, y = 0;
    while (y < height && end - p >= 2) {
        const size_t n = p[0], code = p[1];
        p += 2;
        if (n == 0 && code == 1)
            return 0;
        if (n == 0 && code == 0) {
            x = 0, y++;
        } else if (n == 0 && code == 2) {
            if (end - p < 2)
                return bad(bmp, "truncated");
            x += p[0], y += p[1], p += 2;
        } else { /* a run repeats the byte before p; other pixels begin at p. */
            const size_t count = n ? n : code, n_bytes = n ? 0 : (count * (size_t)bmp->bits + 7) / 8;
            if ((size_t)(end - p) < n_bytes)
                return bad(bmp, "truncated");
            for (size_t i = 0; i < count && x < width; i++, x++)
                indices[place(bmp, y) + x] =
                    n ? index_at(p - 1, bmp->bits == 4 ? i % 2 : 0, bmp->bits) : index_at(p, i, bmp->bits);
            p += (size_t)(end - p) > n_bytes ? n_bytes + n_bytes % 2 : n_bytes;
        }
    }
    return y == height || (y == height - 1 && x >= width) ? 0 : bad(bmp, "truncated");
}

static int read_indices(const Bmp *bmp, uint8_t *indices, size_t stride)
{
    if (bmp->compression != PLAIN)
        return unpack_runs(bmp, indices);
    for (size_t y = 0; y < (size_t)bmp->height; y++)
        for (size_t x = 0; x < (size_t)bmp->width; x++)
            indices[place(bmp, y) + x] = index_at(bmp->bytes + bmp->pixels + y * stride, x, bmp->bits);
    return 0;
}

static int is_grey(const Bmp *bmp)
{
    int grey = 1;
    for (int i = 0; i < 256; i++)
        grey = grey && bmp->palette[i][0] == bmp->palette[i][1] && bmp->palette[i][1] == bmp->palette[i][2];
    return grey;
}

/* A grey palette's values are the samples; of colours the indices are kept, too. */
static void expand_palette(const Bmp *bmp, Image *image)
{
    const size_t n = (size_t)image->width * (size_t)image->height, channels = (size_t)image->channels;
    uint8_t *samples = image->samples;
    for (size_t i = 0; i < n; i++)
        memcpy(samples + i * channels, bmp->palette[image->indices[i]], channels);
    if (channels == 1) {
        free(image->indices);
        image->indices = NULL;
    }
}

/* ---- channels --------------------------------------------------------------------------------------*/

typedef struct Channel {
    uint32_t mask, most; /* most: the largest value. */
    int shift;
} Channel;

static Channel channel_of(uint32_t mask)
{
    Channel c = {mask, 0, 0};
    while (mask && !(mask >> c.shift & 1))
        c.shift++;
    c.most = mask >> c.shift;
    return c;
}

static void read_channels(const Bmp *bmp, Image *image, size_t stride)
{
    const size_t n = (size_t)image->channels, size = (size_t)bmp->bits / 8;
    Channel channels[4];
    for (int c = 0; c < 4; c++)
        channels[c] = channel_of(bmp->masks[c]);
    for (size_t y = 0; y < (size_t)bmp->height; y++) {
        uint8_t *to = (uint8_t *)image->samples + place(bmp, y) * n;
        for (size_t x = 0; x < (size_t)bmp->width; x++, to += n) {
            const uint32_t pixel = get(bmp, bmp->pixels + y * stride + x * size, size);
            for (size_t c = 0; c < n; c++) {
                const uint64_t value = (pixel & channels[c].mask) >> channels[c].shift;
                to[c] = channels[c].most ? (uint8_t)(value * 255 / channels[c].most) : 0;
            }
        }
    }
}

/* ---- the image -------------------------------------------------------------------------------------*/

/* Are there enough bytes for the pixels? The filling of the last row may be missing. */
static int check_data(const Bmp *bmp, uint64_t stride)
{
    const uint64_t n = bmp->n - bmp->pixels, row = ((uint64_t)bmp->width * (uint64_t)bmp->bits + 7) / 8;
    if (bmp->compression == RLE8 || bmp->compression == RLE4)
        return (uint64_t)bmp->width * (uint64_t)bmp->height / BMP_MAX_RATIO > n
                   ? bad(bmp, "truncated: there is far too little data for its size")
                   : 0;
    return stride * (uint64_t)(bmp->height - 1) + row > n ? bad(bmp, "truncated") : 0;
}

static int allocate_image(const Bmp *bmp, Image *image)
{
    const size_t n_pixels = (size_t)bmp->width * (size_t)bmp->height;
    const int indexed = bmp->bits <= 8;
    *image = (Image){.width = bmp->width, .height = bmp->height, .bits = 8};
    image->channels = indexed ? is_grey(bmp) ? 1 : 3 : bmp->masks[3] ? 4 : 3;
    image->samples = malloc(n_pixels * (size_t)image->channels);
    image->indices = indexed ? calloc(n_pixels, 1) : NULL;
    if (image->samples && (image->indices || !indexed))
        return 0;
    image_free(image);
    return fail_memory(bmp->err, bmp->name, n_pixels * 4);
}

int bmp_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    Bmp bmp = {.bytes = bytes, .n = n, .name = name, .err = err};
    memset(image, 0, sizeof *image);
    if (read_headers(&bmp) || read_palette(&bmp))
        return -1;
    const uint64_t stride = ((uint64_t)bmp.width * (uint64_t)bmp.bits + 31) / 32 * 4;
    if (check_data(&bmp, stride) || allocate_image(&bmp, image))
        return -1;
    if (bmp.bits > 8) {
        read_channels(&bmp, image, (size_t)stride);
    } else if (read_indices(&bmp, image->indices, (size_t)stride)) {
        image_free(image);
        return -1;
    } else {
        expand_palette(&bmp, image);
    }
    return 0;
}

int bmp_size(const uint8_t *bytes, size_t n, const char *name, uint32_t size[2], Error *err)
{
    Bmp bmp = {.bytes = bytes, .n = n, .name = name, .err = err};
    if (read_headers(&bmp))
        return -1;
    size[0] = (uint32_t)bmp.width, size[1] = (uint32_t)bmp.height;
    return 0;
}
