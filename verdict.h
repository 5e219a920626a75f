/* verdict.h - which objects are extra or damaged, which are missing, and the evidence [ours] (docs/METHOD.md
 * 7).
 *
 * A verdict must exceed a fixed limit: flag_unmatched for U or V, flag_damage for z of a 2x2 block. An extra
 * or missing object must also exceed the evidence that the bank's normal images give against each other. So
 * segmentation noise that is usual for this product is not reported. If similar objects are together one too
 * many, or one too few, one object stands for all. */
#ifndef SAMLAD_VERDICT_H
#define SAMLAD_VERDICT_H

#include "amm.h"
#include "io/error.h"

typedef struct VerdictOptions {
    const OmmOptions *omm;
    float alpha;                    /* S at which two objects are alike (omm_alike). */
    Only only;                      /* structural: nothing is extra or missing; logical: nothing is damaged */
    double flag_unmatched;          /* U or V above this is extra or missing: 0.5 [ours]. */
    double flag_damage;             /* structural z above this is damaged: 3 [ours]. */
    float flag_extra, flag_missing; /* and evidence above that of normal images (verdict_evidence). */
    const Spread *spread; /* of structural scores; NULL: only one normal image is known, so damage has no z */
} VerdictOptions;

/* An object that is extra is not called damaged, too. */
typedef enum ObjectVerdict { OBJECT_NORMAL, OBJECT_EXTRA, OBJECT_DAMAGED } ObjectVerdict;

/* The verdict on a query object. */
typedef struct Verdict {
    ObjectVerdict verdict;
    int alike;       /* number of objects like it, itself included. */
    int damage_cell; /* where its structural map is largest; -1: it touches no cell. */
    float damage;    /* the mean of the map over this cell's 2x2 block: the score is made of such means. */
} Verdict;

/* An object of the references that the query lacks. */
typedef struct Missing {
    int reference, object; /* the reference in which V is largest, and the object there. */
    float unmatched;       /* its V there, of all alike together, at most 1. */
    int alike;             /* number of objects of that reference like it, itself included. */
    float evidence;        /* sum of V over the references that miss it, divided by the number of all
                              references. */
    int support;           /* number of references that miss it. */
    int last_reference;    /* the reference whose object joined last. */
} Missing;

typedef struct MissingList {
    int n;
    Missing *items; /* free() frees them. */
} MissingList;

/* A query and its measurements: unmatched, counted [n] from amm_logical; structural [h*w], the map; claimed
 * [n][h*w] as in AmmInput. */
typedef struct VerdictInput {
    const Comparison *comparison;
    const float *unmatched, *counted, *structural, *claimed;
} VerdictInput;
/* verdicts [n] of the query's objects. 0, or -1: no memory. */
int verdict_objects(Verdict *verdicts, const VerdictInput *input, const VerdictOptions *options, Error *err);

/* The missing objects. 0, or -1: no memory. Free list->items in either case. */
int verdict_missing(MissingList *list, const Comparison *c, const VerdictOptions *options, Error *err);

/* The evidence that calibration keeps of a normal image. extra: the largest mean U of its objects, counted
 * together. missing: the largest evidence for a missing object (0: none seems missing). flag_extra and
 * flag_missing of the options are not used. 0, or -1: no memory. */
int verdict_evidence(float *extra, float *missing, const Comparison *c, const float *counted,
                     const VerdictOptions *options, Error *err);

#endif
