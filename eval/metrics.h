/* eval/metrics.h - how good scores are: area under the ROC curve of images and of pixels. */
#ifndef SAMLAD_EVAL_METRICS_H
#define SAMLAD_EVAL_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "../error.h"

/* Probability that a positive scores above a negative, ties half (exact). NAN when a side is empty or a score
 * is not a number. */
double auroc(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
             Error *err);

/* The same over pixels, streaming: counts per bin of the float's 22 upper bits (sign, exponent, 13 of the
 * mantissa), so that values closer than one part in 8,192 are a tie, and memory does not grow with the number
 * of pixels. */
typedef struct PixelRoc PixelRoc;
PixelRoc *pixel_roc_new(Error *err);
void pixel_roc_add(PixelRoc *roc, const float *map, const uint8_t *truth,
                   size_t n);               /* truth: 0 or not; NULL: all normal */
double pixel_roc_area(const PixelRoc *roc); /* NAN when a side is empty or a value is not a number */
void pixel_roc_free(PixelRoc *roc);

#endif
