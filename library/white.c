/* white.c - see white.h and samlad.h. */
#include "library/white.h"

#include <stdio.h>

#include "io/image.h"

int samlad_white(const Samlad *s)
{
    return s->options.white;
}

int samlad_brightest(const char *const *paths, int n)
{
    int brightest = 0;
#pragma omp parallel for schedule(dynamic, 1) reduction(max : brightest)
    for (int i = 0; i < n; i++) {
        const int here = image_brightest(paths[i]);
        brightest = here > brightest ? here : brightest;
    }
    return brightest;
}

int white_settle(Samlad *s, const char *const *paths, int n, Error *err)
{
    char text[16];
    if (s->options.white)
        return 0;
    const int brightest = samlad_brightest(paths, n);
    snprintf(text, sizeof text, "%d", brightest ? image_white(brightest) : IMAGE_WHITE);
    return samlad_set(s, "white", text, err);
}
