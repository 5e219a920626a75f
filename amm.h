/* amm.h - the Anomaly Measurement Module: matches to maps and scores (METHOD.md 7).
 * Structural: per-position Gaussian of the matched objects' features, Mahalanobis distance. Logical: what
 * stayed in the dustbins. */
#ifndef SAMLAD_AMM_H
#define SAMLAD_AMM_H

#include "io/error.h"
#include "tensor.h"

typedef enum AmmScore { SCORE_MAX, SCORE_TOP1 } AmmScore;

typedef struct AmmOptions {
    int align_pixel;    /* 0: object-aligned [ours], 1: the same pixel */
    float large_object; /* objects above this part of the image are compared at the same position: 0.15 [ours]
                         */
    int register_reach; /* cells around an object's expected place that are searched: 2 [ours]; 0: none */
    int claims; /* 1: cells that the references' masks expect of an object are compared as its own [ours]; the
                 * caller then gives AmmQuery.claimed */
    int register_unmatched; /* 1: objects without a match are compared with what lies at their place [ours] */
    float epsilon;          /* of the covariance: 0.01 [block: PaDiM] */
    float blur;             /* sigma in grid cells: 1 [ours] */
    AmmScore score;         /* max, or the mean of the top 1 % */
} AmmOptions;

/* One reference as the structural map sees it. */
typedef struct AmmReference {
    const uint16_t *features; /* [grid_h*grid_w][channels] finite float16, as the bank keeps them */
    const float *centroids;   /* [n_r][2] */
    const float *areas;       /* [n_r] */
    const int *match_q;       /* [n_q] the object of this reference that query object i matched, or -1 */
    int n;                    /* n_r */
    const float *weights;     /* [n_r][grid_h*grid_w] */
    const float *scale;       /* [n_r] leave-one-out quantile of the object's own map (amm_normalise) */
} AmmReference;

typedef struct AmmQuery {
    int n, grid_h, grid_w, channels;
    const float *features;          /* [grid_h*grid_w][channels] */
    const float *weights;           /* [n][grid_h*grid_w] */
    const float *centroids, *areas; /* [n][2], [n] */
    const float *scale; /* [channels] all features are multiplied by it: 1 / the bank's standard deviation */
    float *claimed; /* [n][grid_h*grid_w] room for the weights after claims (align.h): amm_structural fills
                     * it, and it and amm_normalise then use it in place of `weights`; NULL: none are made */
} AmmQuery;

/* map [grid_h*grid_w]: sum_i w_i(p)·M_i(p), blurred; w_i the claimed weights where claims are made, M_i the
 * Mahalanobis distance of object i to what it matched. Where it matched nothing that is 0, or, with
 * register_unmatched, the distance to what lies at its place. 0 / -1 (memory). */
int amm_structural(float *map, const AmmQuery *query, const AmmReference *references, int k,
                   const AmmOptions *options, Error *err);
/* Divide by each object's mean leave-one-out quantile over the references it matched; if it matched none,
 * over what lies at its place in them. In place; -1 when there is no memory. */
int amm_normalise(float *map, const AmmQuery *query, const AmmReference *references, int k, Error *err);
/* That quantile of map over the cells that are mostly object i (the largest value when there is none).
 * scratch [n_cells]. */
float amm_object_quantile(const float *map, const float *weights, int n_cells, float quantile,
                          float *scratch);

/* Room for one distance: rows 0 .. m-1 are the samples, row m the query's vector, each `stride` floats apart
 * (channels rounded up to whole vectors; what lies beyond the channels is 0). Laid out twice (tensor.h). */
typedef struct AmmWork {
    size_t stride;
    float *rows;            /* [k + 1, to whole groups (amm.c)][stride]; the surplus rows are 0 */
    float *gram;            /* [rows²] products of the rows, row j <= i only */
    float *y;               /* [k] */
    double *system;         /* [k][k] */
    double *solved, *least; /* [k], [k] */
} AmmWork;

/* Lay it out for at most k samples. */
void amm_work(AmmWork *work, Arena *arena, int k, int channels);
/* Mahalanobis distance of d = row m - mean(rows 0 .. m-1) under Sigma = XᵀX/(m-1) + eps·I, X the centred
 * samples, by the low-rank identity: sqrt(M²). The rows are overwritten by their centred selves. */
float amm_mahalanobis(const AmmWork *work, int m, float epsilon);

/* Maximum of the map, or the mean of its top 1 %. scratch [n]. */
float amm_score(const float *map, int n, AmmScore score, float *scratch);

/* v's place among the bank's leave-one-out scores: (v - median)/(q95 - median + delta). */
typedef struct AmmScale {
    float median, q95, delta;
} AmmScale;
float amm_z(const AmmScale *scale, float v);
/* Median and 95 % quantile of n scores (sorted in place); delta is given. */
AmmScale amm_scale(float *scores, int n, float delta);
/* Linear-interpolated quantile of n sorted values (numpy's default). */
float quantile_sorted(const float *sorted, int n, double q);
int compare_floats(const void *a, const void *b);

#endif
