/* report.h - a result for readers and for programs: pictures (overlay.c), sentences and JSON (words.c). */
#ifndef SAMLAD_REPORT_H
#define SAMLAD_REPORT_H

#include <stdio.h>

#include "io/json.h"
#include "samlad.h"

/* Heat map as an RGB PNG: map [height][width] of z, `low` is dark and `high` bright. */
int report_heat(const char *path, const float *map, int width, int height, float low, float high, Error *err);

/* The image, rgb [height][width][3], with every object outlined: normal green, extra red, damaged orange with
 * a ring at the place, missing dashed blue. Letters name each finding. A white ring marks the most suspect
 * place of an anomalous image without named findings. Images below 512 pixels are enlarged by a whole factor.
 * Above 1,024 pixels lines and letters grow with the image. */
int report_overlay(const char *path, const SamladResult *result, const uint8_t *rgb, Error *err);

/* Write one object: scores, rank, references by name, objects with matches and reasons, missing objects,
 * doubt. s names the references. */
void report_json(JsonWriter *w, const Samlad *s, const SamladResult *result, const char *image);
/* The same without the braces, so that the caller can add members. */
void report_members(JsonWriter *w, const Samlad *s, const SamladResult *result, const char *image);
/* Print text from outside the program. Characters that could control the terminal become \xNN, also those of
 * two UTF-8 bytes. */
void report_plain(FILE *out, const char *text);
/* Print the reasons, one a line ("missing: ..."). Returns their number. */
int report_text(FILE *out, const Samlad *s, const SamladResult *result);

#endif
