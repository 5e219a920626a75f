/* io/image.c - choice of the decoder by the file's first bytes (never by its name), and conversion to
 * 8-bit RGB. */
#include "io/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

int image_read_memory(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    memset(image, 0, sizeof *image);
    if (n >= 8 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0)
        return png_decode(image, bytes, n, name, err);
    if (n >= 3 && memcmp(bytes, "\xff\xd8\xff", 3) == 0)
        return jpeg_decode(image, bytes, n, name, err);
    if (n >= 2 && bytes[0] == 'P' && bytes[1] >= '1' && bytes[1] <= '6')
        return pnm_decode(image, bytes, n, name, err);
    if (tiff_begins(bytes, n))
        return tiff_decode(image, bytes, n, name, err);
    if (bmp_begins(bytes, n)) /* last: a file without "BM" is told by its sizes only. */
        return bmp_decode(image, bytes, n, name, err);
    return fail(err, "%s: %s", name, IMAGE_NOT_ONE);
}

int image_read(Image *image, const char *path, Error *err)
{
    size_t n;
    memset(image, 0, sizeof *image);
    uint8_t *bytes = file_read(path, IMAGE_MAX_FILE, &n, err);
    if (!bytes)
        return -1;
    int status = image_read_memory(image, bytes, n, path, err);
    free(bytes);
    return status;
}

int image_is_float(const char *path)
{
    size_t n;
    const uint8_t *bytes = file_map(path, &n, NULL);
    const int is_float = bytes && tiff_is_float(bytes, n);
    file_unmap(bytes, n);
    return is_float;
}

void image_free(Image *image)
{
    free(image->samples);
    free(image->indices);
    memset(image, 0, sizeof *image);
}

uint8_t *image_rgb8_white(const Image *image, int white, Error *err)
{
    size_t n_pixels = (size_t)image->width * (size_t)image->height;
    uint8_t *rgb = malloc(3 * n_pixels + 1);
    if (!rgb) {
        fail_memory(err, "an RGB image", 3 * n_pixels);
        return NULL;
    }
    size_t channels = (size_t)image->channels;
    int is_grey = channels < 3;
    const uint8_t *in8 = image->samples;
    const uint16_t *in16 = image->samples;
    if (image->bits == 8 && channels == 3) {
        memcpy(rgb, in8, 3 * n_pixels);
        return rgb;
    }
    const uint32_t most = (uint32_t)white;
    for (size_t i = 0; i < n_pixels; i++)
        for (size_t c = 0; c < 3; c++) {
            size_t from = i * channels + (is_grey ? 0 : c);
            if (image->bits == 8)
                rgb[3 * i + c] = in8[from];
            else
                rgb[3 * i + c] = in16[from] < most ? (uint8_t)((in16[from] * 255u + most / 2) / most) : 255;
        }
    return rgb;
}

uint8_t *image_rgb8(const Image *image, Error *err)
{
    return image_rgb8_white(image, IMAGE_WHITE, err);
}

uint8_t *image_read_white(const char *path, int white, int *width, int *height, Error *err)
{
    Image image;
    if (image_read(&image, path, err))
        return NULL;
    uint8_t *rgb = image_rgb8_white(&image, white, err);
    *width = image.width;
    *height = image.height;
    image_free(&image);
    return rgb;
}

uint8_t *image_read_rgb8(const char *path, int *width, int *height, Error *err)
{
    return image_read_white(path, IMAGE_WHITE, width, height, err);
}

/* Could the file hold samples of 16 bits? The others need no decoding. */
static int may_be_deep(const uint8_t *bytes, size_t n)
{
    if (n > 24 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0)
        return bytes[24] == 16;
    return tiff_begins(bytes, n) || (n > 2 && bytes[0] == 'P');
}

/* Some pixels of a camera are hot, so one sample in 10,000 may be larger. -1: no memory. */
static int largest_sample(const Image *image)
{
    const size_t channels = (size_t)image->channels, n_colors = channels < 3 ? 1 : 3,
                 n_pixels = (size_t)image->width * (size_t)image->height;
    const uint16_t *samples = image->samples;
    uint32_t *count = calloc(IMAGE_WHITE + 1, sizeof *count);
    if (!count)
        return -1;
    for (size_t i = 0; i < n_pixels; i++)
        for (size_t c = 0; c < n_colors; c++)
            count[samples[i * channels + c]]++;
    int largest = IMAGE_WHITE;
    for (size_t above = count[largest]; largest > 0 && above <= n_pixels * n_colors / 10000;)
        above += count[--largest];
    free(count);
    return largest;
}

int image_brightest(const char *path)
{
    size_t n;
    Image image;
    if (!file_exists(path)) /* a pipe can be read once. */
        return 0;
    errno = 0;
    uint8_t *bytes = file_read(path, IMAGE_MAX_FILE, &n, NULL);
    int brightest = bytes || errno != ENOMEM ? 0 : -1;
    if (bytes && may_be_deep(bytes, n)) {
        if (image_read_memory(&image, bytes, n, path, NULL) == 0) {
            brightest = image.bits == 16 ? largest_sample(&image) : 0;
            image_free(&image);
        } else if (errno == ENOMEM) {
            brightest = -1;
        }
    }
    free(bytes);
    return brightest;
}

int image_white(int brightest)
{
    return brightest <= 255     ? 255
           : brightest <= 1023  ? 1023
           : brightest <= 4095  ? 4095
           : brightest <= 16383 ? 16383
                                : IMAGE_WHITE;
}

int image_is_dark(int brightest)
{
    return brightest > 0 && image_white(brightest) != IMAGE_WHITE;
}
