/* amm.h - the Anomaly Measurement Module: matches to maps and scores (docs/METHOD.md 7).
 * Structural: per-position Gaussian of the matched objects' features, Mahalanobis distance. Logical: what
 * stayed in the dustbins. */
#ifndef SAMLAD_AMM_H
#define SAMLAD_AMM_H

#include "io/error.h"
#include "omm.h"
#include "tensor.h"

typedef enum AmmScore { SCORE_MAX, SCORE_TOP1 } AmmScore;
typedef enum Fusion { FUSION_SMOOTHMAX, FUSION_SUM } Fusion;
typedef enum Only { ONLY_BOTH, ONLY_STRUCTURAL, ONLY_LOGICAL } Only;

typedef struct AmmOptions {
    int align_pixel;    /* 0: object-aligned [ours], 1: the same pixel */
    float large_object; /* objects above this part of the image are compared at the same position: 0.15 [ours]
                         */
    int register_reach; /* cells around an object's expected place that are searched: 2 [ours]; 0: none */
    int claims; /* 1: cells that the references' masks expect of an object are compared as its own [ours] */
    int register_unmatched; /* 1: objects without a match are compared with what lies at their place [ours] */
    float epsilon;          /* of the covariance: 0.01 [block: PaDiM] */
    float blur;             /* sigma in grid cells: 1 [ours] */
    AmmScore score;         /* max, or the mean of the top 1 % */
} AmmOptions;

/* ---- where an object lies in a reference [ours] -----------------------------------------------------*/

/* Query position (px, py), in cells, corresponds to (x + px·zoom, y + py·zoom) in the reference. */
typedef struct Placement {
    int known; /* 0: the reference has nothing to compare this object with */
    float x, y, zoom;
} Placement;

/* places [n][k]: of every query object in every reference. inverse_std [C]: what features are multiplied
 * by, 1 / the bank's standard deviation. */
void amm_places(Placement *places, const Comparison *c, const float *inverse_std, const AmmOptions *options);

/* What the references know of the masks: where at least half of them match object i, the share of them that
 * show it at a cell's counterpart is held against the query's mask. A cell that it misses (a piece broke
 * off, or the mask lost a rim) is claimed from larger objects, so that it is compared with what was
 * expected there. claimed [n][grid_h*grid_w]: the query's coverage after all claims; every cell keeps its
 * sum. 0, or -1: no memory. */
int amm_claims(float *claimed, const Comparison *c, const Placement *places, Error *err);

/* ---- the structural map ------------------------------------------------------------------------------*/

typedef struct AmmInput {
    const Comparison *comparison; /* the query's features, the references' features16 */
    const float *inverse_std;     /* [C] as for amm_places */
    const Placement *places;      /* [n][k] */
    const float *coverage;        /* [n][grid_h*grid_w] of the query's objects: its own, or after claims */
    float epsilon;
} AmmInput;

/* Room for one distance: rows 0 .. m-1 are the samples, row m the query's vector, as tensor.h has rows.
 * Laid out twice (tensor.h). */
typedef struct AmmWork {
    int stride, ld;
    float *rows;            /* [k + 1][stride] */
    float *gram;            /* [k + 1][ld] products of the rows, row j <= i only */
    float *y;               /* [k] */
    double *system;         /* [k][k] */
    double *solved, *least; /* [k], [k] */
} AmmWork;

/* Lay it out for at most k samples. */
void amm_work(AmmWork *work, Arena *arena, int k, int channels);
/* Mahalanobis distance of d = row m - mean(rows 0 .. m-1) under Sigma = XᵀX/(m-1) + eps·I, X the centred
 * samples, by the low-rank identity: sqrt(M²). The rows are overwritten by their centred selves. */
float amm_mahalanobis(const AmmWork *work, int m, float epsilon);

/* M_i(p): the Mahalanobis distance at cell p = (x, y) of query object i over the references in which it has a
 * place; 0 when there is none. */
float amm_distance_at(const AmmInput *input, const AmmWork *work, int i, int x, int y);
/* map [grid_h*grid_w]: sum_i w_i(p)·M_i(p), before the blur. 0, or -1: no memory. */
int amm_structural(float *map, const AmmInput *input, Error *err);

/* Divide the map by each object's mean unit over the references it matched; if it matched none, over what
 * lies at its place in them. coverage as in AmmInput. In place. 0, or -1: no memory. */
int amm_in_units(float *map, const Comparison *c, const float *coverage, Error *err);
/* That unit: the quantile of an object's own leave-one-out map over the cells that it mostly covers (the
 * largest value when there is none). coverage [n_cells] of the object; scratch [n_cells]. */
float amm_object_quantile(const float *map, const float *coverage, int n_cells, float quantile,
                          float *scratch);

/* ---- the logical map ---------------------------------------------------------------------------------*/

/* L = max(max_i mean_r U_i, mean_r max_j V_j), U and V counted together; map [grid_h*grid_w] = U on the
 * query's objects, mean over r of V on the reference's missing ones [ours]. unmatched, counted [n]: mean of
 * U over the references, and the same of U counted together. */
float amm_logical(float *map, float *unmatched, float *counted, const Comparison *c);

/* ---- scores ------------------------------------------------------------------------------------------*/

/* Maximum of the map, or the mean of its top 1 %. scratch [n]. */
float amm_score(const float *map, int n, AmmScore score, float *scratch);

/* Where a bank's leave-one-out scores lie. */
typedef struct Spread {
    float median, q95, delta;
} Spread;
/* v's place among them: z = (v - median)/(q95 - median + delta) [ours]. */
float amm_z(const Spread *spread, float v);
/* Median and 95 % quantile of n scores (sorted in place); delta is given. */
Spread amm_spread(float *scores, int n, float delta);
/* One score of two z [ours]. */
float amm_fuse(float structural_z, float logical_z, Fusion fusion, Only only);

#endif
