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

#endif
