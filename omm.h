/* omm.h - the Object Matching Module: descriptors to matches (METHOD.md 6).
 * SuperGlue's optimal transport (Sarlin et al., 2020) [block]: a score matrix with a dustbin row and column,
 * log-domain Sinkhorn, mutual best above a threshold. What goes into the dustbin is missing or extra. */
#ifndef SAMLAD_OMM_H
#define SAMLAD_OMM_H

#include "io/error.h"

typedef struct OmmOptions {
    float position_weight; /* w_p: 0.7 [ours]; 0: appearance alone */
    float tau;             /* temperature of the scores: 0.02 [ours] */
    int sinkhorn_iters;    /* 30 [ours]; SuperGlue's 100 changes nothing here */
    float match_threshold; /* P above this is a match: 0.2 [block] */
    float verify_above;    /* U or V above this is verified: 0.3 [ours] */
    int verify;            /* 1: verification by mask transfer [ours] */
    int verify_shift;      /* and looks so many cells around: 2 [ours] */
    float alpha_unmatched; /* U that a match as weak as alpha still gets: 0.05 [ours]; 0: the dustbin is alpha
                              itself */
    int count;   /* 1: what is left over of objects alike is counted together [ours], see omm_count */
    int nearest; /* 1: plain mutual nearest neighbour with S >= alpha instead of Sinkhorn (ablation) */
} OmmOptions;

/* One side of a matching. */
typedef struct OmmSide {
    int n;
    const float *descriptors; /* [n][dim] unit vectors */
    const float *centroids;   /* [n][2] */
    const float *areas;       /* [n] parts of the image; only omm_count asks for them */
} OmmSide;

typedef struct Matching {
    int n_q, n_r;
    float *scores;      /* [n_q][n_r] S */
    float *assignment;  /* [n_q+1][n_r+1] P, the last row and column are the dustbins */
    int *match_q;       /* [n_q] the reference object, or -1 */
    int *match_r;       /* [n_r] the query object, or -1 */
    float *unmatched_q; /* [n_q] U_i = P[i, bin], after verification */
    float *unmatched_r; /* [n_r] V_j = P[bin, j], after verification */
    float *counted_q;   /* [n_q] U counted together: omm_count fills it */
    float *counted_r;   /* [n_r] V counted together */
} Matching;

/* S_ij = h_i·h_j - w_p·‖c_i - c_j‖², scores [n_q][n_r]. */
void omm_scores(float *scores, const OmmSide *q, const OmmSide *r, int dim, float position_weight);

/* The assignment for scores [n][m] with dustbin value alpha: marginals (1,…,1, m) and (1,…,1, n). assignment
 * [n+1][m+1] gets P (not its logarithm); scratch: (n+1) + (m+1) doubles, for the potentials: where objects
 * fit well, u + c and v - c are nearly as good, and rounding to float drifts along c. */
void omm_sinkhorn(float *assignment, const float *scores, int n, int m, float alpha, float tau, int iters,
                  double *scratch);

/* The dustbin's score for n and m objects: alpha, lowered so that a match of score alpha keeps U =
 * alpha_unmatched [ours]. */
float omm_dustbin(float alpha, int n, int m, const OmmOptions *options);

/* Match two images' objects; alpha is the score of the weakest normal matches, calibrated by the bank.
 * matching is allocated here. */
int omm_match(Matching *matching, const OmmSide *q, const OmmSide *r, int dim, float alpha,
              const OmmOptions *options, Error *err);

/* Is object i of one image so much like object j of the same or another one that the one could be matched as
 * the other: S_ij >= alpha? */
int omm_alike(const OmmSide *a, int i, const OmmSide *b, int j, int dim, float alpha,
              const OmmOptions *options);
/* When there is one too many of a kind, each of its kind may be the one: U is spread over them all, and none
 * looks unmatched. So it is counted together [ours; METHOD.md lists counting among its ideas]:
 *     counted_i = max(U_i, min(sum of U_j over all j like i, surplus of area))
 * (the surplus only where the other image has any of the kind) is about 1 for one too many, 2 for two. The
 * surplus is what all like i cover more than their kind in the other image (objects like i, or matched
 * with one of those like i), in areas of one of these: a part whose mask fell apart is more objects, but
 * not more of it. Fills counted_q and, the same way from V, counted_r of a matching of q and r that is
 * verified; without the option `count` they are U and V. */
int omm_count(Matching *matching, const OmmSide *q, const OmmSide *r, int dim, float alpha,
              const OmmOptions *options, Error *err);
void matching_free(Matching *matching);

#endif
