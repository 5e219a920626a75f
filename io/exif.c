/* io/exif.c - the orientation of a photo. See exif.h.
 *
 * The segment is "Exif\0\0" and a TIFF file: byte order, 42, the place of the first directory; there the
 * number of entries, each 12 bytes: tag, type, count, value. tiff.c refuses a damaged directory; here damage
 * only means that nothing is said, and what stands before it counts: what a camera wrote beside the picture
 * is no reason to refuse the picture. */
#include "exif.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

enum { IFD_ENTRY = 12, TAG_ORIENTATION = 274, TYPE_SHORT = 3 };

int exif_orientation(const uint8_t *p, size_t n)
{
    if (n < 6 || memcmp(p, "Exif\0\0", 6) != 0)
        return 0;
    p += 6, n -= 6;
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

int exif_swaps(int orientation)
{
    return orientation >= 5;
}

/* Seen from the turned image: 5 to 8 run along the file's columns; 2, 3, 7, 8 begin at its right end and 3,
 * 4, 6, 7 at its lower one. */
int exif_turn(Image *image, int orientation, const char *name, Error *err)
{
    if (orientation <= 1)
        return 0;
    const int from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const size_t w = (size_t)image->width, h = (size_t)image->height;
    const size_t pixel = (size_t)image->channels * (size_t)(image->bits / 8);
    const size_t width = exif_swaps(orientation) ? h : w, height = exif_swaps(orientation) ? w : h;
    uint8_t *turned = malloc(w * h * pixel), *out = turned;
    const uint8_t *in = image->samples;
    if (!turned)
        return fail_memory(err, name, w * h * pixel);
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++, out += pixel) {
            const size_t column = exif_swaps(orientation) ? y : x, row = exif_swaps(orientation) ? x : y;
            memcpy(out,
                   in + ((from_below ? h - 1 - row : row) * w + (from_right ? w - 1 - column : column)) *
                            pixel,
                   pixel);
        }
    free(image->samples);
    image->samples = turned;
    image->width = (int)width, image->height = (int)height;
    return 0;
}
