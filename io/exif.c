/* io/exif.c - the orientation of a photo. See exif.h.
 *
 * JPEG's segment is "Exif\0\0" and a TIFF file; PNG's chunk is the TIFF file alone. The TIFF file begins
 * with its byte order, 42, and the offset of the first directory. A directory is the number of entries,
 * then 12 bytes an entry: tag, type, count, value.
 *
 * tiff.c refuses a damaged directory. Here damage ends the search, and the entries before it count.
 * Damaged metadata are no reason to refuse a picture. */
#include "io/exif.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/bytes.h"

enum { PREFIX = 6, IFD_ENTRY = 12, TAG_ORIENTATION = 274, TYPE_SHORT = 3 };

static int of_tiff(const uint8_t *p, size_t n)
{
    const int big = n >= 4 && memcmp(p, "MM\0*", 4) == 0;
    if (n < 8 || (!big && memcmp(p, "II*\0", 4) != 0))
        return 1;
    size_t at = (size_t)bytes_number(p + 4, 4, big);
    if (at > n - 2)
        return 1;
    const size_t count = (size_t)bytes_number(p + at, 2, big);
    at += 2;
    for (size_t i = 0; i < count && n - at >= IFD_ENTRY; i++, at += IFD_ENTRY) {
        const uint8_t *entry = p + at;
        if (bytes_number(entry, 2, big) != TAG_ORIENTATION)
            continue;
        const int value = (int)bytes_number(entry + 8, 2, big);
        return bytes_number(entry + 2, 2, big) == TYPE_SHORT && value >= 1 && value <= 8 ? value : 1;
    }
    return 1;
}

static int has_prefix(const uint8_t *p, size_t n)
{
    return n >= PREFIX && memcmp(p, "Exif\0\0", PREFIX) == 0;
}

int exif_of_segment(const uint8_t *p, size_t n)
{
    return has_prefix(p, n) ? of_tiff(p + PREFIX, n - PREFIX) : 0;
}

/* Some programs copy the JPEG segment unchanged. */
int exif_of_chunk(const uint8_t *p, size_t n)
{
    n = n < EXIF_MAX ? n : EXIF_MAX;
    return has_prefix(p, n) ? exif_of_segment(p, n) : of_tiff(p, n);
}

int exif_swaps(int orientation)
{
    return orientation >= 5;
}

/* Copy the pixels in the order of the turned image. Orientations 5 to 8 run along the file's columns; 2,
 * 3, 7, 8 begin at its right end and 3, 4, 6, 7 at its lower one. `in` is [height][width] of `pixel` bytes
 * each. */
static void turn(uint8_t *out, const uint8_t *in, size_t width, size_t height, size_t pixel, int orientation)
{
    const int from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const int swaps = exif_swaps(orientation);
    for (size_t y = 0; y < (swaps ? width : height); y++)
        for (size_t x = 0; x < (swaps ? height : width); x++, out += pixel) {
            const size_t column = swaps ? y : x, row = swaps ? x : y;
            const size_t from =
                (from_below ? height - 1 - row : row) * width + (from_right ? width - 1 - column : column);
            memcpy(out, in + from * pixel, pixel);
        }
}

int exif_turn(Image *image, int orientation, const char *name, Error *err)
{
    if (orientation <= 1)
        return 0;
    const size_t w = (size_t)image->width, h = (size_t)image->height;
    const size_t pixel = (size_t)image->channels * (size_t)(image->bits / 8);
    uint8_t *samples = malloc(w * h * pixel), *indices = image->indices ? malloc(w * h) : NULL;
    if (!samples || (image->indices && !indices)) {
        free(samples), free(indices);
        return fail_memory(err, name, w * h * pixel);
    }
    turn(samples, image->samples, w, h, pixel, orientation);
    if (indices)
        turn(indices, image->indices, w, h, 1, orientation);
    free(image->samples), free(image->indices);
    image->samples = samples, image->indices = indices;
    if (exif_swaps(orientation))
        image->width = (int)h, image->height = (int)w;
    return 0;
}
