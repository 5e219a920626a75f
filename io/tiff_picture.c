/* io/tiff_picture.c - TIFF files that are pictures: grey, RGB or a palette, of 1 to 16 bits, with or without
 * alpha. See tiff.h. Floats are no pictures, but maps of depth or of anomalies (tiff_map.c).
 *
 * Values are Pillow's and OpenCV's. Where they differ: a palette is 8-bit if no number in it is above 255, as
 * libtiff and OpenCV take it; colours that were multiplied by alpha are divided by it, as in Pillow; alpha
 * itself does not darken the picture, as in Pillow; 16 bits stay, as in OpenCV. */
#include "io/tiff.h"

#include <stdlib.h>
#include <string.h>

#include "io/exif.h"
#include "io/fail.h"
#include "io/image.h"

enum { EXTRA_OTHER, EXTRA_PREMULTIPLIED, EXTRA_ALPHA }; /* TIFF_EXTRA_SAMPLES */

typedef struct TiffPicture {
    const Tiff *tiff;
    Image *image;
    uint32_t n_colors;       /* samples of a pixel without alpha. */
    uint32_t extra;          /* what the next sample is. */
    uint8_t palette[256][3]; /* RGB */
} TiffPicture;

/* ---- what is a picture -----------------------------------------------------------------------------*/

/* What others may bring. */
static const char *photometric_name(uint32_t photometric)
{
    static const struct {
        uint32_t code;
        const char *name;
    } names[] = {{4, "a mask"},     {5, "CMYK"},           {6, "YCbCr"},          {8, "CIE Lab"},
                 {9, "ICC Lab"},    {10, "ITU Lab"},       {32803, "raw sensor"}, {32844, "LogL"},
                 {32845, "LogLuv"}, {34892, "raw colours"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == photometric)
            return names[i].name;
    return "unknown";
}

static int check_samples(const Tiff *t)
{
    const uint32_t bits = t->bits, photometric = t->photometric;
    if (t->format == TIFF_FLOAT)
        return fail(t->err, "%s: float samples: not a picture", t->name);
    if (t->format != TIFF_UINT && t->format != TIFF_UNDEFINED)
        return fail(t->err, "%s: TIFF samples of format %u (%s) are not supported", t->name,
                    (unsigned)t->format, t->format == 2 ? "signed" : "complex");
    if (photometric > TIFF_INDEXED)
        return fail(t->err, "%s: TIFF photometric %u (%s) is not supported", t->name, (unsigned)photometric,
                    photometric_name(photometric));
    const int low = bits == 1 || bits == 2 || bits == 4;
    if (!(bits == 8 || (bits == 16 && photometric != TIFF_INDEXED) ||
          (low && photometric != TIFF_RGB && t->plane_samples == 1)))
        return fail(t->err, "%s: a TIFF picture of %u bits a sample is not supported", t->name,
                    (unsigned)bits);
    return 0;
}

/* A sample after the colours is alpha if the file says so, or says nothing. */
static int read_kind(TiffPicture *p)
{
    const Tiff *t = p->tiff;
    p->n_colors = t->photometric == TIFF_RGB ? 3 : 1;
    p->extra = EXTRA_OTHER;
    if (t->samples < p->n_colors)
        return tiff_bad(t, "an RGB picture of less than three channels");
    return t->samples > p->n_colors && t->photometric != TIFF_INDEXED
               ? tiff_find_number(t, TIFF_EXTRA_SAMPLES, EXTRA_ALPHA, &p->extra)
               : 0;
}

/* All reds, then all greens and blues, of 16 bits. */
static int read_palette(TiffPicture *p)
{
    const Tiff *t = p->tiff;
    const uint64_t n = (uint64_t)1 << t->bits;
    TiffField map;
    int shift = 0;
    if (t->photometric != TIFF_INDEXED)
        return 0;
    if (tiff_find_field(t, TIFF_COLOR_MAP, &map))
        return -1;
    if (map.count < 3 * n)
        return tiff_bad(t, "its palette is missing or too short");
    for (uint64_t i = 0; i < 3 * n; i++)
        shift = tiff_field_value(t, &map, i) > 255 ? 8 : shift;
    for (uint64_t i = 0; i < 3 * n; i++)
        p->palette[i % n][i / n] = (uint8_t)(tiff_field_value(t, &map, i) >> shift);
    return 0;
}

/* ---- rows ------------------------------------------------------------------------------------------*/

static uint32_t sample_at(const Tiff *t, const uint8_t *row, size_t i)
{
    if (t->bits == 8)
        return row[i];
    if (t->bits == 16)
        return (uint32_t)tiff_get(t, row + 2 * i, 2);
    const size_t bit = i * t->bits;
    return row[bit / 8] >> (8 - t->bits - bit % 8) & ((1u << t->bits) - 1);
}

static void put_sample(Image *image, size_t at, uint32_t value)
{
    if (image->bits == 16)
        ((uint16_t *)image->samples)[at] = (uint16_t)value;
    else
        ((uint8_t *)image->samples)[at] = (uint8_t)value;
}

static void take_indices(const TiffPicture *p, const TiffRow *row, size_t at)
{
    for (size_t i = 0; i < row->n; i++, at++) {
        const uint8_t index = (uint8_t)sample_at(p->tiff, row->bytes, i * p->tiff->plane_samples);
        p->image->indices[at] = index;
        memcpy((uint8_t *)p->image->samples + 3 * at, p->palette[index], 3);
    }
}

/* Samples of less than 8 bits are scaled; samples beyond the image's channels are dropped. */
static void take_row(void *user, const TiffRow *row)
{
    const TiffPicture *p = user;
    const Tiff *t = p->tiff;
    const size_t at = (size_t)row->y * t->width + row->x, channels = (size_t)p->image->channels;
    const uint32_t most = (1u << t->bits) - 1, scale = t->bits < 8 ? 255 / most : 1;
    if (t->photometric == TIFF_INDEXED) {
        if (row->plane == 0)
            take_indices(p, row, at);
        return;
    }
    for (size_t s = 0; s < t->plane_samples && row->plane + s < channels; s++) {
        const size_t channel = row->plane + s;
        const int inverted = t->photometric == TIFF_WHITE_IS_ZERO && channel == 0;
        for (size_t i = 0; i < row->n; i++) {
            const uint32_t value = sample_at(t, row->bytes, i * t->plane_samples + s);
            put_sample(p->image, (at + i) * channels + channel, (inverted ? most - value : value) * scale);
        }
    }
}

/* Divide the colours by alpha, rounded down. */
static void divide_by_alpha(Image *image)
{
    const size_t channels = (size_t)image->channels;
    const uint32_t most = image->bits == 16 ? 65535 : 255;
    uint8_t *in8 = image->samples;
    uint16_t *in16 = image->samples;
    for (size_t i = 0; i < (size_t)image->width * (size_t)image->height * channels; i++) {
        const size_t alpha_at = i / channels * channels + channels - 1;
        const uint64_t value = most == 255 ? in8[i] : in16[i],
                       alpha = most == 255 ? in8[alpha_at] : in16[alpha_at];
        const uint64_t divided = alpha ? value * most / alpha : 0;
        if (i != alpha_at)
            put_sample(image, i, (uint32_t)(divided < most ? divided : most));
    }
}

/* ---- the image -------------------------------------------------------------------------------------*/

static int allocate_image(const TiffPicture *p)
{
    const Tiff *t = p->tiff;
    const int indexed = t->photometric == TIFF_INDEXED;
    Image *image = p->image;
    const size_t n_pixels = (size_t)t->width * t->height;
    *image = (Image){.width = (int)t->width, .height = (int)t->height, .bits = t->bits == 16 ? 16 : 8};
    image->channels = indexed ? 3 : (int)p->n_colors + (p->extra != EXTRA_OTHER);
    const size_t n_bytes = n_pixels * (size_t)image->channels * (size_t)(image->bits / 8);
    image->samples = malloc(n_bytes);
    image->indices = indexed ? malloc(n_pixels) : NULL;
    if (image->samples && (image->indices || !indexed))
        return 0;
    image_free(image);
    return fail_memory(t->err, t->name, n_bytes);
}

static int read_orientation(const Tiff *t, int *orientation)
{
    uint32_t value;
    if (tiff_find_number(t, TIFF_ORIENTATION, 0, &value))
        return -1;
    *orientation = value >= 1 && value <= 8 ? (int)value : 0;
    return 0;
}

int tiff_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    Tiff t = {.bytes = bytes, .n = n, .name = name, .err = err};
    TiffPicture p = {.tiff = &t, .image = image};
    int orientation;
    memset(image, 0, sizeof *image);
    if (tiff_open(&t) || check_samples(&t) || read_kind(&p) || read_palette(&p) ||
        read_orientation(&t, &orientation) || allocate_image(&p))
        return -1;
    int status = tiff_read_rows(&t, take_row, &p);
    if (!status && p.extra == EXTRA_PREMULTIPLIED)
        divide_by_alpha(image);
    if (!status)
        status = exif_turn(image, orientation, name, err);
    if (status)
        image_free(image);
    return status;
}

int tiff_size(const uint8_t *bytes, size_t n, const char *name, uint32_t size[2], int *turn, Error *err)
{
    Tiff t = {.bytes = bytes, .n = n, .name = name, .err = err};
    if (tiff_open(&t) || check_samples(&t) || read_orientation(&t, turn))
        return -1;
    size[exif_swaps(*turn)] = t.width;
    size[!exif_swaps(*turn)] = t.height;
    return 0;
}
