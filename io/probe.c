/* io/probe.c - an image's size from its first bytes, without decoding: data sets are checked before hours
 * of work. A PNG is followed chunk by chunk to its end, so that a cut file is noticed. A TIFF's directory may
 * lie anywhere, so the file is mapped.
 *
 * PNG (ISO 15948, 5), JPEG (ITU T.81, B.1.1), netpbm's P1 ... P6; bmp.c and tiff.c read their own headers. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/bytes.h"
#include "io/fail.h"
#include "io/exif.h"
#include "io/file.h"
#include "io/image.h"

enum { HEAD = 160 }; /* a BMP file's headers take up to 138 bytes. */

static uint32_t big_endian(const uint8_t *p, size_t n)
{
    return (uint32_t)bytes_number(p, n, 1);
}

/* Of Exif data, n bytes from here, as much as is looked at. -> how many. */
static size_t read_exif(FILE *f, uint8_t *bytes, size_t n)
{
    return fread(bytes, 1, n < EXIF_MAX ? n : EXIF_MAX, f);
}

/* A chunk is length, type, data, checksum; the last is IEND. As in png.c, the file may end behind IDAT. */
static int probe_png(FILE *f, const uint8_t head[HEAD], uint8_t *exif, uint32_t size[2], int *turn, const char *path,
                     Error *err)
{
    if (memcmp(head + 12, "IHDR", 4) != 0)
        return fail(err, "%s: a PNG file without its header", path);
    uint8_t chunk[8];
    int orientation = 0, has_pixels = 0, is_pixels = 0;
    const int64_t n = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
    for (int64_t at = 8; at < n || !has_pixels;) { /* a hostile length would wrap a 32-bit long. */
        const int whole =
            at <= n && at <= (1L << 30) && !fseek(f, (long)at, SEEK_SET) && fread(chunk, 1, 8, f) == 8;
        at += whole ? 12 + (int64_t)big_endian(chunk, 4) : 0;
        is_pixels = whole && memcmp(chunk + 4, "IDAT", 4) == 0;
        if ((!whole || at > n) && (!has_pixels || is_pixels))
            return fail(err, "%s: the PNG file is cut off or damaged at byte %lld", path, (long long)at);
        if (!whole || at > n || memcmp(chunk + 4, "IEND", 4) == 0)
            break;
        has_pixels |= is_pixels;
        if (memcmp(chunk + 4, "eXIf", 4) == 0 && !orientation)
            orientation = exif_of_chunk(exif, read_exif(f, exif, big_endian(chunk, 4)));
    }
    size[exif_swaps(orientation)] = big_endian(head + 16, 4);
    size[!exif_swaps(orientation)] = big_endian(head + 20, 4);
    *turn = orientation;
    return 0;
}

/* The next marker's second byte, -1 at the end of the file. As in jpeg.c: an FF before neither 00 nor FF.
 * Bytes before it are skipped. */
static int next_marker(FILE *f)
{
    for (int before = 0, c; (c = fgetc(f)) != EOF; before = c)
        if (before == 0xff && c != 0 && c != 0xff)
            return c;
    return -1;
}

/* The orientation of a segment of n bytes that may be Exif, or 0; afterwards the file stands behind it. -1
 * on failure. */
static int probe_segment(FILE *f, uint8_t *exif, size_t n)
{
    return read_exif(f, exif, n) == n ? exif_of_segment(exif, n) : -1;
}

/* A segment is a marker and, except for restarts, a length. SOF0 ... SOF15 hold height and width. */
static int probe_jpeg(FILE *f, uint8_t *exif, uint32_t size[2], int *turn, const char *path, Error *err)
{
    uint8_t bytes[7]; /* length, precision, height, width. */
    int orientation = 0;
    int marker = fseek(f, 2, SEEK_SET) ? -1 : next_marker(f);
    for (; marker >= 0; marker = next_marker(f)) {
        if (marker == 0xda || marker == 0xd9) /* the image begins or ends without a frame. */
            break;
        if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) /* these have no length. */
            continue;
        if (fread(bytes, 1, 2, f) != 2 || big_endian(bytes, 2) < 2)
            break;
        if (marker == 0xe1 && !orientation) {
            if ((orientation = probe_segment(f, exif, big_endian(bytes, 2) - 2)) < 0)
                break;
            continue;
        }
        if (marker < 0xc0 || marker > 0xcf || marker == 0xc4 || marker == 0xc8 || marker == 0xcc) {
            if (fseek(f, (long)big_endian(bytes, 2) - 2, SEEK_CUR))
                break;
            continue;
        }
        if (fread(bytes + 2, 1, 5, f) != 5)
            break;
        size[!exif_swaps(orientation)] = big_endian(bytes + 3, 2);
        size[exif_swaps(orientation)] = big_endian(bytes + 5, 2);
        *turn = orientation;
        return 0;
    }
    return fail(err, "%s: the JPEG file has no frame header: cut off or damaged", path);
}

/* The next byte outside of white space and comments ('#' to the end of the line), as in pnm.c. */
static int skip_blanks(FILE *f)
{
    int c, comment = 0;
    while ((c = fgetc(f)) != EOF) {
        comment = (comment || c == '#') && c != '\n' && c != '\r';
        if (!comment && c != ' ' && (c < '\t' || c > '\r'))
            break;
    }
    return c;
}

/* Two numbers after "P5", with blanks and comments between. */
static int probe_pnm(FILE *f, uint32_t size[2], const char *path, Error *err)
{
    if (fseek(f, 2, SEEK_SET))
        return fail(err, "%s: cannot read: %s", path, strerror(errno));
    for (int i = 0; i < 2; i++) {
        int c = skip_blanks(f);
        if (c < '0' || c > '9')
            return fail(err, "%s: the PNM header has no size", path);
        for (; c >= '0' && c <= '9' && size[i] <= IMAGE_MAX_PIXELS; c = fgetc(f))
            size[i] = size[i] * 10 + (uint32_t)(c - '0');
        ungetc(c, f); /* a comment may follow at once. */
    }
    return 0;
}

static int probe_tiff(uint32_t size[2], int *turn, const char *path, Error *err)
{
    size_t n;
    const uint8_t *bytes = file_map(path, &n, err);
    const int status = bytes ? tiff_size(bytes, n, path, size, turn, err) : -1;
    file_unmap(bytes, n);
    return status;
}

/* 0 or -1 after a sentence; see image_probe. head holds n bytes. */
static int probe_kind(FILE *f, const uint8_t head[HEAD], size_t n, uint8_t *exif, uint32_t size[2], int *turn,
                      const char *path, Error *err)
{
    if (n >= 26 && memcmp(head, "\x89PNG\r\n\x1a\n", 8) == 0)
        return probe_png(f, head, exif, size, turn, path, err);
    if (n >= 4 && memcmp(head, "\xff\xd8\xff", 3) == 0)
        return probe_jpeg(f, exif, size, turn, path, err);
    if (n >= 4 && head[0] == 'P' && head[1] >= '1' && head[1] <= '6')
        return probe_pnm(f, size, path, err);
    if (tiff_begins(head, n))
        return probe_tiff(size, turn, path, err);
    if (bmp_begins(head, n))
        return bmp_size(head, n, path, size, err);
    return fail(err, "%s: %s", path, IMAGE_NOT_ONE);
}

int image_probe(const char *path, int *width, int *height, Error *err)
{
    int orientation;
    return image_probe_turn(path, width, height, &orientation, err);
}

int image_probe_turn(const char *path, int *width, int *height, int *orientation, Error *err)
{
    uint8_t head[HEAD] = {0};
    uint32_t size[2] = {0, 0};
    FILE *f = fopen(path, "rbe");
    if (!f)
        return fail(err, "%s: cannot open: %s", path, strerror(errno));
    uint8_t *exif = malloc(EXIF_MAX);
    if (!exif) {
        fclose(f);
        return fail_memory(err, path, EXIF_MAX);
    }
    const size_t n = fread(head, 1, sizeof head, f);
    *orientation = 0;
    int status = probe_kind(f, head, n, exif, size, orientation, path, err);
    fclose(f);
    free(exif);
    if (!status && (size[0] < 1 || size[1] < 1 || size[0] > IMAGE_MAX_PIXELS ||
                    (int64_t)size[0] * size[1] > IMAGE_MAX_PIXELS))
        status = fail(err, "%s: %u x %u pixels, expected 1 to %lld in all", path, size[0], size[1],
                      (long long)IMAGE_MAX_PIXELS);
    *width = (int)size[0];
    *height = (int)size[1];
    return status;
}
