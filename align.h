/* align.h - where in a reference does an object of the query lie (METHOD.md 7, [ours]).
 * The structural map compares every cell of an object with "the same" cell of the references; this chapter
 * says which one that is. */
#ifndef SAMLAD_ALIGN_H
#define SAMLAD_ALIGN_H

#include "amm.h"

/* Query position (px, py), in cells, corresponds to (x + px·zoom, y + py·zoom) in the reference. */
typedef struct Placement {
    int known; /* 0: the reference has nothing to compare this object with */
    float x, y, zoom;
} Placement;

/* Place query object i in the reference. cells [ALIGN_CELLS] is scratch. */
enum { ALIGN_CELLS = 64 };
Placement align_object(const AmmQuery *query, int i, const AmmReference *reference, const AmmOptions *options,
                       int *cells);

/* What the references know of the masks: where at least half of them match object i, the share of them that
 * show it at a cell's counterpart is held against the query's mask. A cell that it misses (a piece broke off,
 * or the mask lost a rim) is claimed from larger objects, so that it is compared with what was expected
 * there. claimed [n][grid_h*grid_w]: the query's weights after all claims; every cell keeps its sum. places
 * [n][k] of align_object. */
void align_claims(float *claimed, const AmmQuery *query, const Placement *places,
                  const AmmReference *references, int k);

#endif
