/* eval/metrics.h - the quality of scores: of images (detection) and of pixels (localization).
 *
 * The definitions are those of MVTec's evaluation scripts for MVTec AD and MVTec LOCO AD. Where MVTec has
 * none (average precision, pixel AUROC), they are scikit-learn's. tests/make_golden_mvtec.py runs the
 * originals on the same maps. A higher score is more anomalous; "called anomalous at t" means score >= t.
 * All curves have one point for every distinct score, so the numbers are exact. -0 and 0 are the same
 * score, and infinities are ordinary scores. A score that is not a number is refused.
 *
 * Differences from the scripts:
 *   - MVTec LOCO's script samples the sPRO curve at some hundred thresholds and joins them by straight lines
 *     (--curve_max_distance; above ten million pixels its start is drawn at random). We take all thresholds,
 *     the limit of the script when the distance shrinks. At its default, 0.001, the script is about 1e-4 off.
 *   - In MVTec LOCO's image AUROC, a good and an anomalous image of equal score count as ordered right. Here,
 *     in MVTec AD's script and in scikit-learn such a pair counts half. Without ties all agree.
 *   - Both scripts score an image by the maximum of its map. To compare with them, pass that as the score. */
#ifndef SAMLAD_EVAL_METRICS_H
#define SAMLAD_EVAL_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"
#include "eval/truth.h"

/* ---- scores of two classes -------------------------------------------------------------------------*/

/* Fields without a meaning are NAN (no positives; for auroc: no negatives). */
typedef struct RankMetrics {
    uint64_t n_negative, n_positive;
    double auroc;             /* probability that a positive scores above a negative, ties half. */
    double average_precision; /* sum over thresholds of (recall step) x precision. */
    double best_f1;           /* largest 2TP / (2TP + FP + FN) over all thresholds .. */
    float best_f1_threshold;  /* .. and the highest threshold that reaches it. */
} RankMetrics;

/* Images, for example test/good against logical_anomalies. MVTec LOCO's detection figure is the mean of
 * the AUROCs of its two kinds. -1 when a score is not a number. O(n log n), n words of memory. */
int rank_metrics(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
                 RankMetrics *metrics, Error *err);
/* The AUROC alone; NAN also on failure (with a sentence). */
double auroc(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
             Error *err);

/* ---- scores of pixels, streaming --------------------------------------------------------------------*/

enum { SPRO_LIMITS = 5 };
extern const double spro_limits[SPRO_LIMITS]; /* false positive rates 0.01, 0.05, 0.1, 0.3, 1. */

typedef struct PixelMetrics {
    uint64_t n_images, n_regions;
    RankMetrics pixels; /* positives: the pixels of any region; negatives: all others, good images included */
    /* Area under the curve of region overlap over the false positive rate of pixels, from 0 to the limit,
     * divided by the limit. The overlap is the mean over regions of min(found / saturation, 1). The
     * integral is by trapezoids, interpolated at the limit. If regions are components, the value at 0.3 is
     * MVTec AD's AU-PRO. NAN without regions or without negatives. */
    double au_spro[SPRO_LIMITS];
} PixelMetrics;

/* Maps are added image by image, each to a group. Then any set of groups is measured, as often as wanted:
 *
 *   PixelScores *scores = pixel_scores_new(dir, err);
 *   for every test image:  pixel_scores_add(scores, GROUP, map, width, height, &truth, path, err);
 *   pixel_scores_measure(scores, 1u << GOOD | 1u << LOGICAL, &metrics, err);
 *   pixel_scores_free(scores);
 *
 * Memory does not grow with the number of pixels. The scores of an image are sorted and go to a scratch
 * file: 4 bytes a normal pixel, and 8 for every region of an anomalous one. Measuring merges the sorted
 * images. Adding holds one image in memory: 16 bytes a pixel beside map and truth. Measuring takes about
 * 32 MiB of buffers and a few bytes a region. Each image gets at least 4 KiB of them, so thousands of
 * images take more. The scratch file is as large as the maps. It lies in `scratch_dir` (NULL: $TMPDIR,
 * else /tmp), has no name, and disappears with the process. */
typedef struct PixelScores PixelScores;
enum { PIXEL_GROUPS = 32 };

PixelScores *pixel_scores_new(const char *scratch_dir, Error *err);
/* map [height][width]. truth NULL: a good image; otherwise it has the map's size. `name` is for messages. */
int pixel_scores_add(PixelScores *scores, int group, const float *map, int width, int height,
                     const Truth *truth, const char *name, Error *err);
/* Over all images of the groups whose bits are set. */
int pixel_scores_measure(PixelScores *scores, uint32_t groups, PixelMetrics *metrics, Error *err);
void pixel_scores_free(PixelScores *scores); /* NULL allowed */

#endif
