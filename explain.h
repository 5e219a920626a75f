/* explain.h - from a comparison to reasons: which objects are extra or damaged, and what is missing [ours].
 *
 * A reason must be clear in itself (U or V above flag-unmatched, z above flag-damage), and what is extra
 * or missing also clearer than what the bank's normal images show of each other: Bank.flag_extra and
 * Bank.flag_missing are a quantile of their own leave-one-out evidence, so that noise of the segmentation
 * that is usual for this product is not reported. Of objects alike that are one too many, or one too few,
 * together, one stands for all. */
#ifndef SAMLAD_EXPLAIN_H
#define SAMLAD_EXPLAIN_H

#include "compare.h"
#include "samlad.h"

/* Fill the result's objects, with their boxes from the labels that it holds already. */
int explain_objects(SamladResult *result, const Bank *bank, const Comparison *c, const Objects *objects,
                    Error *err);
/* Fill the result's list of missing objects. */
int explain_missing(SamladResult *result, const Bank *bank, const Comparison *c, Error *err);
/* What calibration keeps of a normal image: the largest mean U of its objects, counted together, and the
 * largest evidence for a missing one (0: nothing seems missing). */
int explain_evidence(float *extra, float *missing, const Bank *bank, const Comparison *c, int n_objects,
                     Error *err);

#endif
