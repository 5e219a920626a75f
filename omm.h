/* omm.h - the Object Matching Model: descriptors to matches (docs/METHOD.md 2 and 6). SuperGlue's optimal
 * transport (Sarlin et al., 2020) [block]: a score matrix with a dustbin row and column, log-domain Sinkhorn,
 * mutual best above a threshold. Objects in the dustbin are missing or extra. */
#ifndef SAMLAD_OMM_H
#define SAMLAD_OMM_H

#include "dcga.h"
#include "io/error.h"

typedef struct OmmOptions {
    float position_weight; /* w_p: 0.7 [ours]; 0: appearance alone */
    float tau;             /* temperature of the scores: 0.02 [ours]. */
    int sinkhorn_iters;    /* 30 [ours]; SuperGlue's 100 changes nothing here. */
    float match_threshold; /* P above this is a match: 0.2 [block]. */
    float verify_above;    /* U or V above this is verified: 0.3 [ours]. */
    int verify;            /* 1: verification by mask transfer [ours]. */
    int verify_shift;      /* verification moves the mask by up to this many cells: 2 [ours]. */
    float alpha_unmatched; /* U of a match as weak as alpha: 0.05 [ours]; 0: the dustbin is alpha itself. */
    int count;   /* 1: unmatched objects that are alike are counted together [ours], see omm_count. */
    int nearest; /* 1: plain mutual nearest neighbour with S >= alpha instead of Sinkhorn (ablation). */
} OmmOptions;

/* The matches between a query image and a reference image. */
typedef struct Matching {
    int n_q, n_r;
    float *scores;      /* [n_q][n_r] S */
    float *assignment;  /* [n_q+1][n_r+1] P, the last row and column are the dustbins. */
    int *match_q;       /* [n_q] the reference object, or -1. */
    int *match_r;       /* [n_r] the query object, or -1. */
    float *unmatched_q; /* [n_q] U_i = P[i, bin]; omm_verify may make it 0. */
    float *unmatched_r; /* [n_r] V_j = P[bin, j]; likewise */
    float *counted_q;   /* [n_q] U counted together: omm_count fills it. */
    float *counted_r;   /* [n_r] V counted together */
    Arena memory;       /* of all these arrays. */
} Matching;

/* A query image with its references: their objects and matches. */
typedef struct Comparison {
    Objects query;       /* described */
    int k;               /* references, nearest first. */
    Objects *references; /* [k] described, a view of the bank. */
    Matching *matchings; /* [k] */
} Comparison;

/* ---- retrieval: how near is a normal image; larger is nearer --------------------------------------*/

/* mean [C] of the n patch tokens [n][C], normalised to unit length [ours]. */
void retrieval_mean(float *mean, const float *patches, ptrdiff_t n, ptrdiff_t C);
/* Cosine of two unit vectors [dim] (mean patch tokens [ours], or class tokens). */
float retrieval_cosine(const float *a, const float *b, int dim);
/* Minus the squared distance of two maps of n numbers, one of them in float16. */
float retrieval_l2(const float *features, const uint16_t *features16, size_t n);

/* ---- matching ------------------------------------------------------------------------------------*/

/* S_ij = h_i·h_j - w_p·‖c_i - c_j‖², scores [n_q][n_r]. */
void omm_scores(float *scores, const Objects *q, const Objects *r, float position_weight);

/* The assignment for scores [n][m] with a dustbin of this score, for the marginals (1,…,1, m) and (1,…,1, n).
 * assignment [n+1][m+1] gets P (not its logarithm). 0, or -1: no memory. */
int omm_sinkhorn(float *assignment, const float *scores, int n, int m, float dustbin, float tau, int iters,
                 Error *err);

/* The dustbin's score for n and m objects: alpha, lowered so that a match of score alpha has U =
 * alpha_unmatched [ours]. */
float omm_dustbin(float alpha, int n, int m, const OmmOptions *options);

/* Match two images' objects. alpha is the score of the weakest normal matches (omm_alpha). The matching is
 * allocated here and freed by matching_free. 0, or -1: no memory. */
int omm_match(Matching *matching, const Objects *q, const Objects *r, float alpha, const OmmOptions *options,
              Error *err);
/* Ablation without objects: each image is one object, and the two match. */
void omm_match_whole(Matching *matching);

/* Verification by mask transfer [ours]. unmatched [mine->n] is U of mine's objects, or V. `other` is the
 * other image; only its features and grid are used. 0, or -1: no memory. */
int omm_verify(float *unmatched, const Objects *mine, const Objects *other, const Dcga *dcga, float alpha,
               const OmmOptions *options, Error *err);

/* 1 if object i of image a and object j of image b are alike, so that they could match: S_ij >= alpha. Both
 * may be the same image. */
int omm_alike(const Objects *a, ptrdiff_t i, const Objects *b, ptrdiff_t j, float alpha,
              const OmmOptions *options);
/* Count U of similar objects together [ours]. With one too many of a kind, any of the kind may be the extra
 * one. Then U is spread over them all, and none looks unmatched. The count
 *
 *     counted_i = max(U_i, min(sum of U_j over all j like i, surplus of area))
 *
 * is about 1 for one too many, 2 for two. The surplus counts only where the other image has objects of the
 * kind. The kind in the other image is every object like i, or matched with an object like i. The surplus is
 * the area of all objects like i minus that of the kind in the other image. Its unit is the kind's mean area
 * there. So a part whose mask fell apart is more objects, but no surplus.
 *
 * The matching of q and r is verified before. Fills counted_q, and counted_r in the same way from V. Without
 * the option `count` they are U and V. 0, or -1: no memory. */
int omm_count(Matching *matching, const Objects *q, const Objects *r, float alpha, const OmmOptions *options,
              Error *err);
void matching_free(Matching *matching);

/* ---- the calibration of alpha ----------------------------------------------------------------------*/

/* S of the mutual nearest pairs of two normal images, into scores [min(a->n, b->n)]. Returns the number of
 * pairs; -1: no memory. */
int omm_pair_scores(float *scores, const Objects *a, const Objects *b, const OmmOptions *options, Error *err);
/* alpha: this quantile (0.1 %) of the scores of normal matches [ours]. A pair with a lower score shall stay
 * unmatched. 0 without scores. Sorts the scores. */
float omm_alpha(float *scores, size_t n, double quantile);

#endif
