/* eval/maps.h - the pictures and the map of one judged image, as files. */
#ifndef SAMLAD_EVAL_MAPS_H
#define SAMLAD_EVAL_MAPS_H

#include <stdint.h>

#include "io/error.h"
#include "samlad.h"

/* PREFIX_heat.png and PREFIX_overlay.png; rgb is the image, [height][width][3]. */
int write_pictures(const SamladResult *result, const uint8_t *rgb, const char *prefix, Error *err);
/* The anomaly map at the image's size, as a float32 TIFF. */
int write_map(const SamladResult *result, const char *path, Error *err);

#endif
