/* white.c - see white.h and samlad.h. */
#include "library/white.h"

#include <stdio.h>

#include "io/fail.h"
#include "io/image.h"

int samlad_white(const Samlad *s)
{
    return s->options.white;
}

int samlad_brightest(const char *const *paths, int n)
{
    int brightest = 0, failed = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(max : brightest) reduction(| : failed)
    for (int i = 0; i < n; i++) {
        const int here = image_brightest(paths[i]);
        brightest = here > brightest ? here : brightest;
        failed |= here < 0;
    }
    return failed ? -1 : brightest;
}

int white_settle(Samlad *s, const char *const *paths, int n, Error *err)
{
    char text[16];
    if (s->options.white)
        return 0;
    const int brightest = samlad_brightest(paths, n);
    if (brightest < 0)
        return fail(err, "out of memory for the largest value of the images");
    snprintf(text, sizeof text, "%d", brightest ? image_white(brightest) : IMAGE_WHITE);
    return samlad_set(s, "white", text, err);
}
