/* io/image.h - images in and out of memory: PNG, PNM, JPEG by their first bytes, never by their names. */
#ifndef SAMLAD_IO_IMAGE_H
#define SAMLAD_IO_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* No image above this many pixels is read (a decompression bomb is refused before memory is asked for). */
#define IMAGE_MAX_PIXELS ((int64_t)1 << 28)

/* A decoded image as the file holds it: palette expanded, bit depths below 8 scaled up to 8,
 * 16-bit samples kept. */
typedef struct Image {
    int width, height;
    int channels;  /* 1 grey, 2 grey+alpha, 3 RGB, 4 RGBA */
    int bits;      /* 8 or 16 per sample */
    void *samples; /* [height][width][channels] uint8_t or uint16_t (native order); malloc'd */
    /* PNG palette files: what the pixel says before expansion, else NULL (ground-truth masks need it) */
    uint8_t *indices; /* [height][width] */
} Image;

/* Read any supported file. 0 / -1; on failure *image holds nothing. */
int image_read(Image *image, const char *path, Error *err);
int image_read_memory(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
void image_free(Image *image); /* safe on a zeroed struct, and twice */

/* To 8-bit RGB [height][width][3] as PIL's convert("RGB") does for 8-bit files (grey repeated, alpha
 * dropped); 16-bit samples are scaled, round(v/257). NULL: no memory. */
uint8_t *image_rgb8(const Image *image, Error *err);
/* image_read + image_rgb8. NULL on failure. */
uint8_t *image_read_rgb8(const char *path, int *width, int *height, Error *err);

/* The size that the file's header tells, without decoding: what cannot be an image is refused, what can be
 * may still turn out damaged. */
int image_probe(const char *path, int *width, int *height, Error *err);

/* One decoder a format; all take bytes and never read past n. */
int png_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int pnm_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);
int jpeg_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err);

/* PNG: channels 1..4, bits 8 or 16; filters chosen per row, own deflate (fixed+dynamic Huffman, lazy LZ77).
 */
int png_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err);
/* Indexed PNG; palette [n_colors][3]; alpha [n_colors] or NULL. */
int png_write_indexed(const char *path, const uint8_t *indices, int width, int height, const uint8_t *palette,
                      int n_colors, const uint8_t *alpha, Error *err);
int pnm_write(const char *path, const void *samples, int width, int height, int channels, int bits,
              Error *err);

/* One-channel float32 TIFF (little-endian, one strip, uncompressed), as MVTec's evaluation scripts read it.
 */
int tiff_write_float(const char *path, const float *values, int width, int height, Error *err);
/* Reads float32/float64/half/uint8/uint16 grey TIFF, strips or tiles, uncompressed, LZW, deflate or PackBits,
 * predictors 1-3, both byte orders -> [height][width] malloc'd float. Integers keep their values (0 .. 255 or
 * 65535; where the file says that white is zero they are turned round). NULL on failure. */
float *tiff_read_float(const char *path, int *width, int *height, Error *err);
float *tiff_decode_float(const uint8_t *bytes, size_t n, const char *name, int *width, int *height,
                         Error *err);

#endif
