/* fuzz_tiff.c - TIFF: any bytes give a picture whose samples can all be read, or a map whose values can, or a
 * sentence. See fuzz.h. */
#include "fuzz.h"

#include <stdlib.h>

#include "io/image.h"

static void fuzz_map(const uint8_t *bytes, size_t n)
{
    int width, height;
    Error err;
    err.message[0] = 0;
    float *values = tiff_decode_float(bytes, n, "fuzz", &width, &height, &err);
    volatile float sum = 0;
    for (size_t i = 0; values && i < (size_t)width * (size_t)height; i++)
        sum = sum + values[i];
    if (!values && !err.message[0])
        abort();
    free(values);
}

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
{
    Image image;
    Error err;
    err.message[0] = 0;
    fuzz_map(bytes, n);
    if (tiff_decode(&image, bytes, n, "fuzz", &err))
        return err.message[0] && !image.samples && !image.indices ? 0 : (abort(), 0);
    free(image_rgb8(&image, &err));
    image_free(&image);
    return 0;
}
