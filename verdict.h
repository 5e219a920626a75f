/* verdict.h - which objects are extra or damaged, what is missing, and on what evidence [ours]
 * (docs/METHOD.md 7).
 *
 * A verdict must be clear in itself (U or V above flag_unmatched, z above flag_damage), and what is extra
 * or missing also clearer than what the bank's normal images show of each other: noise of the segmentation
 * that is usual for this product is not reported. Of objects alike that are one too many, or one too few,
 * together, one stands for all. */
#ifndef SAMLAD_VERDICT_H
#define SAMLAD_VERDICT_H

#include "amm.h"
#include "io/error.h"

typedef struct VerdictOptions {
    const OmmOptions *omm;
    float alpha;                    /* S at which two objects are alike (omm_alike) */
    Only only;                      /* structural: nothing is extra or missing; logical: nothing is damaged */
    double flag_unmatched;          /* U or V of what is called extra or missing: 0.5 [ours] */
    double flag_damage;             /* structural z of what is called damaged: 3 [ours] */
    float flag_extra, flag_missing; /* and above the evidence of normal images (verdict_evidence) */
    const Spread *spread; /* of structural scores; NULL: only one normal image is known, damage has no z */
} VerdictOptions;

/* Of a query object. */
typedef struct Verdict {
    int extra, damaged;
    int alike;       /* so many objects are like it, itself among them */
    int damage_cell; /* where its structural map is largest; -1: it touches no cell */
} Verdict;

/* An object of the references that the query lacks. */
typedef struct Missing {
    int reference, object; /* where it looks clearest */
    float unmatched;       /* V there, of all alike together, at most 1 */
    int alike;             /* so many objects of that reference are like it, itself among them */
    float evidence;        /* sum of V over the references that miss it, by the number of all of them */
    int support;           /* so many of the references miss it */
    int last_reference;    /* whose object joined last */
} Missing;

typedef struct MissingList {
    int n;
    Missing *items; /* free() frees them */
} MissingList;

/* verdicts [n] of the query's objects. unmatched, counted [n] as of amm_logical; structural [h*w], the map;
 * coverage [n][h*w] as in AmmInput. 0, or -1: no memory. */
typedef struct VerdictInput {
    const Comparison *comparison;
    const float *unmatched, *counted, *structural, *coverage;
} VerdictInput;
int verdict_objects(Verdict *verdicts, const VerdictInput *input, const VerdictOptions *options, Error *err);

/* What is missing. 0, or -1: no memory; the list is to be freed whatever happens. */
int verdict_missing(MissingList *list, const Comparison *c, const VerdictOptions *options, Error *err);

/* What calibration keeps of a normal image: the largest mean U of its objects, counted together, and the
 * largest evidence for a missing one (0: nothing seems missing). flag_extra and flag_missing of the options
 * do not count. */
int verdict_evidence(float *extra, float *missing, const Comparison *c, const float *counted,
                     const VerdictOptions *options, Error *err);

#endif
