/* report.h - a result for people and for machines: pictures, sentences, one line of JSON. */
#ifndef SAMLAD_REPORT_H
#define SAMLAD_REPORT_H

#include <stdio.h>

#include "io/json.h"
#include "samlad.h"

/* Heat map: map [height][width] of z, `low` dark to `high` bright, RGB PNG. */
int report_heat(const char *path, const float *map, int width, int height, float low, float high, Error *err);

/* The image with every object outlined: green normal, red extra, orange damaged (a ring where), blue dashed
 * missing, named in letters; where nothing is named in an anomalous image, a white ring where it is suspected
 * most. Images below 512 pixels are enlarged by a whole factor, and above 1,024 lines and letters grow with
 * them, so that all can be read on a screen. */
int report_overlay(const char *path, const SamladResult *result, const uint8_t *rgb, Error *err);

/* One object on the writer: score, rank, references by name, objects with matches and reasons, missing
 * objects. */
void report_json(JsonWriter *w, const Samlad *s, const SamladResult *result, const char *image);
/* Another's text for the terminal: what could steer it (control characters, also those of two UTF-8 bytes) as
 * \xNN. */
void report_plain(FILE *out, const char *text);
/* The reasons in words, a line each ("missing: ..."), on out. Returns how many. */
int report_text(FILE *out, const Samlad *s, const SamladResult *result);

#endif
