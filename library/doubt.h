/* doubt.h - the most suspect place of an anomalous image in which no object is clear enough to be named. */
#ifndef SAMLAD_DOUBT_H
#define SAMLAD_DOUBT_H

#include "samlad.h"

/* Damage; an object is missing or too many; what lies where in an object. */
typedef enum DoubtKind { DOUBT_STRUCTURAL, DOUBT_LOGICAL, DOUBT_LAYOUT } DoubtKind;

typedef struct Doubt {
    DoubtKind kind;
    float x, y;     /* the place, in pixels of the image. */
    float evidence; /* DOUBT_LOGICAL: the part of an object without a counterpart; DOUBT_LAYOUT: z of an
                       object; DOUBT_STRUCTURAL: z of the image. */
} Doubt;

/* Returns 1 and sets *doubt if the image is anomalous and the result gives no other reason, else 0. */
int find_doubt(Doubt *doubt, const SamladResult *result);

#endif
