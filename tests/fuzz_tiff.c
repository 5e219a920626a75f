/* fuzz_tiff.c - TIFF: any bytes give an image whose values can all be read, or a sentence. See fuzz.h. */
#include "fuzz.h"

#include <stdlib.h>

#include "io/image.h"

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
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
    return 0;
}
