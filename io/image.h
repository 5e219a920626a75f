/* io/image.h - images from and to files: PNG, PNM, JPEG, BMP, TIFF, recognised by their first bytes, never by
 * their names. */
#ifndef SAMLAD_IO_IMAGE_H
#define SAMLAD_IO_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* Larger images are refused before memory is asked for (decompression bombs). */
#define IMAGE_MAX_PIXELS ((int64_t)1 << 28)
#define IMAGE_MAX_FILE   ((size_t)1 << 30) /* bytes */

/* A decoded image as the file holds it: the palette is expanded, bit depths below 8 are scaled to 8,
 * 16-bit samples stay. */
typedef struct Image {
    int width, height;
    int channels;  /* 1 grey, 2 grey+alpha, 3 RGB, 4 RGBA. */
    int bits;      /* 8 or 16 per sample. */
    void *samples; /* [height][width][channels] uint8_t or uint16_t (native order); malloc'd. */
    /* Files with a palette of colours: the indices before expansion, else NULL (ground-truth masks need
     * them). */
    uint8_t *indices; /* [height][width] */
} Image;

/* The networks' input: a picture in memory, for example from image_read_rgb8. */
typedef struct Picture {
    const uint8_t *rgb; /* [height][width][3] */
    int height, width;
} Picture;

/* Read any supported file. 0 / -1; on failure *image holds nothing. */
int image_read(Image *image, const char *path, Error *err);
int image_read_memory(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
void image_free(Image *image); /* safe on a zeroed struct, and twice. */

/* Convert to 8-bit RGB [height][width][3]. 8-bit files: as in PIL's convert("RGB") (grey repeated, alpha
 * dropped). 16-bit samples are scaled, round(255 v / white), and what is brighter is white: cameras of 10 and
 * 12 bits write values up to 1023 and 4095 into such files. NULL: no memory. */
#define IMAGE_WHITE 65535
uint8_t *image_rgb8_white(const Image *image, int white, Error *err);
uint8_t *image_rgb8(const Image *image, Error *err); /* white: IMAGE_WHITE. */
/* image_read and image_rgb8_white, or image_rgb8. NULL on failure. */
uint8_t *image_read_white(const char *path, int white, int *width, int *height, Error *err);
uint8_t *image_read_rgb8(const char *path, int *width, int *height, Error *err);
/* The largest sample of a 16-bit file, but for one in 10,000, alpha left out [ours]. 0: its samples are of 8
 * bits, or it is no regular file, or cannot be read. -1: no memory. */
int image_brightest(const char *path);
/* The white of a camera whose largest value is this: the smallest of 255, 1023, 4095, 16383 and 65535 (8, 10,
 * 12, 14 and 16 bits) that is not below it. [ours] */
int image_white(int brightest);
/* Whether images of 16 bits with this largest value are nearly black beside IMAGE_WHITE. 0 for 8 bits. */
int image_is_dark(int brightest);

/* The size from the file's header, without decoding. A file that cannot be an image is refused; others may
 * still turn out damaged. */
int image_probe(const char *path, int *width, int *height, Error *err);
/* The same, and the orientation of the Exif data, 0 without (io/exif.h). The size is that of the turned
 * image. */
int image_probe_turn(const char *path, int *width, int *height, int *orientation, Error *err);
/* 1 when the file is a TIFF of floats: a map of depth or of anomalies, not a picture. */
int image_is_float(const char *path);

/* The sentence about any other file. */
#define IMAGE_NOT_ONE "not a PNG, JPEG, PNM, BMP or TIFF image"

/* One decoder a format. All take bytes and never read past n. */
int png_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int pnm_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int jpeg_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int bmp_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int tiff_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int tiff_is_float(const uint8_t *bytes, size_t n);
/* 1 when the bytes begin like a file of the format. */
int bmp_begins(const uint8_t *bytes, size_t n);
int tiff_begins(const uint8_t *bytes, size_t n);
/* size: width and height by the headers, without decoding. TIFF: of the turned image; *turn: its orientation,
 * as in Exif data. */
int bmp_size(const uint8_t *bytes, size_t n, const char *name, uint32_t size[2], Error *err);
int tiff_size(const uint8_t *bytes, size_t n, const char *name, uint32_t size[2], int *turn, Error *err);

/* Write a PNG: channels 1..4, bits 8 or 16; filters chosen per row, own deflate (fixed+dynamic Huffman,
 * lazy LZ77). */
int png_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err);
/* Write an indexed PNG; palette [n_colors][3]; alpha [n_colors] or NULL. */
int png_write_indexed(const char *path, const uint8_t *indices, int width, int height, const uint8_t *palette,
                      int n_colors, const uint8_t *alpha, Error *err);
int pnm_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err);

/* Write a one-channel float32 TIFF (little-endian, one strip, uncompressed), as MVTec's evaluation scripts
 * read it. */
int tiff_write_float(const char *path, const float *values, int width, int height, Error *err);
/* Read a grey TIFF of float32, float64, half, uint8 or uint16 into a malloc'd float [height][width].
 * Strips or tiles; uncompressed, LZW, deflate or PackBits; predictors 1-3; both byte orders. Integers keep
 * their values (0 .. 255 or 65535); if the file says that white is zero, they are inverted. NULL on
 * failure. */
float *tiff_read_float(const char *path, int *width, int *height, Error *err);
float *tiff_decode_float(const uint8_t *bytes, size_t n, const char *name, int *width, int *height,
                         Error *err);

#endif
