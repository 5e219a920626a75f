/* amm.h - the Anomaly Measurement Model: matches to maps and scores (docs/METHOD.md 7). Structural:
 * per-position Gaussian of the matched objects' features, Mahalanobis distance. Logical: the mass in the
 * dustbins. */
#ifndef SAMLAD_AMM_H
#define SAMLAD_AMM_H

#include "io/error.h"
#include "omm.h"
#include "tensor.h"

typedef enum AmmScore { SCORE_POWER, SCORE_MAX } AmmScore;
typedef enum Only { ONLY_BOTH, ONLY_STRUCTURAL, ONLY_LOGICAL } Only;

typedef struct AmmOptions {
    int align_pixel;    /* 0: object-aligned [ours], 1: the same pixel. */
    float large_object; /* larger objects, as a part of the image, are compared at the same position: 0.15
                           [ours]. */
    int register_reach; /* cells searched around an object's expected place: 2 [ours]; 0: none. */
    int claims;         /* 1: an object claims the cells that the references' masks expect of it [ours]. */
    int register_unmatched; /* 1: objects without a match are compared at their own place [ours]. */
    float epsilon;          /* of the covariance: 0.01 [block: PaDiM]. */
    float blur;             /* sigma in grid cells: 1 [ours]. */
    float nearest_weight;   /* of the nearest features at the same place: 0.5 [ours]; 0: without them. */
    AmmScore score;         /* the power mean of the largest blocks [ours], or the largest cell. */
} AmmOptions;

/* ---- where an object lies in a reference [ours] -----------------------------------------------------*/

/* Query position (px, py), in cells, corresponds to (x + px·zoom, y + py·zoom) in the reference. */
typedef struct Placement {
    int known; /* 0: the object is compared with nothing in this reference. */
    float x, y, zoom;
} Placement;

/* places [n][k] of every query object in every reference. inverse_std [C] is the features' factor, 1 / the
 * bank's standard deviation. */
void amm_places(Placement *places, const Comparison *c, const float *inverse_std, const AmmOptions *options);

/* Compare the query's masks with the references' masks. If at least half of the references match object i,
 * each of its cells has an expected coverage: the mean of the references' masks at the cell's counterpart.
 * The query's mask may cover less of a cell, if a piece broke off or the mask lost a rim. Then the object
 * claims the difference from larger objects, and the cell is compared with the object's features in the
 * references. claimed [n][grid_h*grid_w]: the query's coverage after all claims; every cell keeps its sum. 0,
 * or -1: no memory. */
int amm_claims(float *claimed, const Comparison *c, const Placement *places, Error *err);

/* ---- the structural map ------------------------------------------------------------------------------*/

typedef struct AmmInput {
    const Comparison *comparison; /* the query's features, the references' features16. */
    const float *inverse_std;     /* [C], see amm_places */
    const Placement *places;      /* [n][k] */
    const float *claimed;         /* [n][grid_h*grid_w] coverage of the query's objects after claims */
    float epsilon;
} AmmInput;

/* Buffers of one distance. Rows 0 .. m-1 are the samples, row m the query's vector. Rows lie as in
 * tensor.h. */
typedef struct AmmWork {
    int stride, ld;
    float *rows;                   /* [k + 1][stride] */
    float *gram;                   /* [k + 1][ld] products of the rows, row j <= i only. */
    float *y;                      /* [k] */
    double *system;                /* [k][k] */
    double *right_side, *solution; /* [k], [k] */
    double *least;                 /* [k] */
} AmmWork;

/* Lay the buffers out for at most k samples: called twice (io/memory.h). */
void layout_amm(AmmWork *work, Arena *arena, int k, int channels);
/* Mahalanobis distance of d = row m - mean(rows 0 .. m-1) under Sigma = XᵀX/(m-1) + eps·I, X the centred
 * samples. Computed by the low-rank identity. Returns sqrt(M²). The rows become the centred rows. */
float amm_mahalanobis(const AmmWork *work, int m, float epsilon);

/* M_i(p): the Mahalanobis distance at cell p = (x, y) of query object i. The samples are the references in
 * which the object has a place; 0 if there are none. */
float amm_distance_at(const AmmInput *input, const AmmWork *work, ptrdiff_t i, ptrdiff_t x, ptrdiff_t y);
/* map [grid_h*grid_w]: sum_i w_i(p)·M_i(p), before the blur. 0, or -1: no memory. */
int amm_structural(float *map, const AmmInput *input, Error *err);

/* Divide the map by each object's unit: the mean unit of its matched objects. Without a match it is the mean
 * unit at the object's place in the references. claimed as in AmmInput. In place. 0, or -1: no memory. */
int amm_in_units(float *map, const Comparison *c, const float *claimed, Error *err);
/* The unit of an object: the quantile of its own leave-one-out map over the cells of which it covers at least
 * half. If there are none, it is the largest value. coverage [n_cells] of the object; scratch [n_cells]. */
float amm_object_quantile(const float *map, const float *coverage, int n_cells, float quantile,
                          float *scratch);

/* ---- the nearest feature at the same place [ours] -----------------------------------------------------*/

/* ‖a - b‖² of n numbers each, without the cancellation of ‖a‖² - 2ab + ‖b‖². */
float squared_distance(const float *a, const float *b, ptrdiff_t n);
/* nearest [grid_h*grid_w]: the distance of each cell's block to the nearest block of the references. It lies
 * at the same place, or is one of its eight neighbours. A block is the mean feature of 2x2 cells (fewer at
 * the border of an odd grid). This map needs no objects and no matches, so it holds where masks fail. 0, or
 * -1: no memory. */
int amm_nearest(float *nearest, const Comparison *c, Error *err);

/* ---- the logical map ---------------------------------------------------------------------------------*/

/* L = max(max_i mean_r U_i, mean_r max_j V_j), U and V counted together [ours]. map [grid_h*grid_w]: U on the
 * query's objects, mean over r of V on the reference objects that are missing. unmatched, counted [n]: mean
 * over the references of U, and of U counted together. */
float amm_logical(float *map, float *unmatched, float *counted, const Comparison *c);

/* ---- scores ------------------------------------------------------------------------------------------*/

/* The mean of the largest 1 % of n values, of one at least. They are sorted in place. */
float amm_largest_percent(float *values, int n);
/* The power mean, of exponent 7, of the largest 1 % of n values, of one at least; values below 0 count as 0
 * [ours]. They are sorted in place. */
float amm_power_mean(float *values, int n);
/* The power mean of the means of 2x2 cells of map [h][w], or the map's largest cell. scratch [h*w]. */
float amm_score(const float *map, int h, int w, AmmScore score, float *scratch);

/* The mean of the map [h][w] over the 2x2 block of cell p, one of those of amm_score. */
float amm_block_mean(const float *map, int h, int w, int p);

/* The distribution of a bank's leave-one-out structural scores. */
typedef struct Spread {
    float median, q95, delta;
} Spread;
/* v relative to these scores: z = (v - median)/(q95 - median + delta) [ours]. */
float amm_z(const Spread *spread, float v);
/* Median and 95 % quantile of n scores (sorted in place); delta is given. */
Spread amm_spread(float *scores, int n, float delta);
/* z of a score by its rank among those of n normal images: -log10(2p), 0 at the median, 1 at 5 % [ours]. p is
 * the part of normal images whose score is as large, and each score counts as a normal distribution of width
 * `width`. With n = 0 it is the score itself. */
float amm_rank_z(const float *normal, int n, float width, float score);
/* z of a logical score: that of its rank, plus its distance beyond the largest normal score [ours]. L counts
 * objects, so one object beyond all normal images adds 1. */
float amm_logical_z(const float *normal, int n, float width, float score);
/* One score of two z: smoothmax, 2*log((e^(a/2) + e^(l/2))/2) [ours]. */
float amm_fuse(float structural_z, float logical_z, Only only);

/* Fewer scores do not show which score one normal image in 20 exceeds. */
enum { AMM_FEW_SCORES = 20 };
/* The score above which an image is anomalous: the quantile of the n > 0 fused scores of normal images, in
 * order. If they are few, it is at least the extended threshold [ours]. */
float amm_threshold(const float *sorted, int n, double quantile);

#endif
