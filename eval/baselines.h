/* eval/baselines.h - three plain baselines on the method's own features (docs/METHOD.md 9). They need no
 * pass of a network, no masks and no calibration. The tables show what the method's parts add to them.
 *
 *   position-nn      L2 distance to the nearest of the references' features at the same place ± 1 cell
 *                    [ours]; score: mean of the map's largest 1 %
 *   patchcore-like   L2 distance to the nearest feature anywhere in the bank; score: the map's maximum.
 *                    PatchCore (Roth et al. 2022) without coreset, pooling and reweighting
 *   anomaly-dino     cosine distance to the nearest feature anywhere in the bank; score: mean of the map's
 *                    largest 1 %. AnomalyDINO (Damm et al. 2024) without its masks and rotations
 *
 * A cell here is 2×2 cells of the method's grid: the mean of their features. Channels are not scaled. The
 * references are the k images that the method retrieved. */
#ifndef SAMLAD_EVAL_BASELINES_H
#define SAMLAD_EVAL_BASELINES_H

#include "bank/bank.h"

typedef enum Baseline { POSITION_NN, PATCHCORE_LIKE, ANOMALY_DINO, BASELINES } Baseline;
extern const char *const baseline_names[BASELINES];

/* The bank's cells. */
typedef struct BaselineBank {
    int n_images, grid_h, grid_w, channels;
    float *cells;        /* [n_images][grid_h*grid_w][channels] */
    float *squared_norm; /* [n_images][grid_h*grid_w] */
} BaselineBank;

/* Average the features of all images: half as many bytes as the bank's features. 0 / -1; free it in either
 * case. */
int baseline_bank_new(BaselineBank *b, const Bank *bank, Error *err);
void baseline_bank_free(BaselineBank *b);

/* All baselines of one image. */
typedef struct BaselineMaps {
    int grid_h, grid_w;
    float score[BASELINES];
    float *map[BASELINES]; /* [grid_h*grid_w] each */
} BaselineMaps;

/* features [h*w][C] of a scene that has the bank's shape; references [k] are images of the bank. 0, or -1:
 * no memory. Free the maps in either case. */
int baselines_measure(BaselineMaps *maps, const BaselineBank *b, const Scene *scene, const int *references,
                      int k, Error *err);
void baseline_maps_free(BaselineMaps *maps);

#endif
