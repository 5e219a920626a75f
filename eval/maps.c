/* eval/maps.c - see maps.h. */
#include "eval/maps.h"

#include <stdio.h>
#include <stdlib.h>

#include "io/fail.h"
#include "io/image.h"
#include "report/report.h"
#include "tensor.h"

enum { LONGEST_PATH = 4096 };

/* [height][width], malloc'd; NULL after a sentence. */
static float *full_map(const SamladResult *r, Error *err)
{
    const size_t n = (size_t)r->width * (size_t)r->height;
    float *map = aligned_array(n, sizeof *map);
    if (map)
        samlad_full_map(r, map);
    else
        fail_memory(err, "a map", n * sizeof *map);
    return map;
}

int write_pictures(const SamladResult *r, const uint8_t *rgb, const char *prefix, Error *err)
{
    char heat[LONGEST_PATH], overlay[LONGEST_PATH];
    if (snprintf(heat, sizeof heat, "%s_heat.png", prefix) >= LONGEST_PATH - 16)
        return fail(err, "%s: the path is too long", prefix);
    snprintf(overlay, sizeof overlay, "%.*s_overlay.png", LONGEST_PATH - 32, prefix);
    float *map = full_map(r, err);
    int status = map ? report_heat(heat, map, r->width, r->height, r->map_low, r->map_high, err) : -1;
    if (!status) /* last: where the overlay is, both pictures are. */
        status = report_overlay(overlay, r, rgb, err);
    free(map);
    return status;
}

int write_map(const SamladResult *r, const char *path, Error *err)
{
    float *map = full_map(r, err);
    const int status = map ? tiff_write_float(path, map, r->width, r->height, err) : -1;
    free(map);
    return status;
}
