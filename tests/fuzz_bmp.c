/* fuzz_bmp.c - BMP: any bytes give an image whose samples can all be read, or a sentence. See fuzz.h. */
#include "fuzz.h"

#include <stdlib.h>

#include "io/image.h"

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
{
    Image image;
    Error err;
    err.message[0] = 0;
    if (bmp_decode(&image, bytes, n, "fuzz", &err))
        return err.message[0] && !image.samples && !image.indices ? 0 : (abort(), 0);
    free(image_rgb8(&image, &err));
    image_free(&image);
    return 0;
}
