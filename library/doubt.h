/* doubt.h - the most suspect place of an anomalous image in which no object is clear enough to be named. */
#ifndef SAMLAD_DOUBT_H
#define SAMLAD_DOUBT_H

#include "samlad.h"

typedef struct Doubt {
    int logical;    /* 1: an object is missing or too many, 0: damage. */
    float x, y;     /* the place, in pixels of the image. */
    float evidence; /* logical: the part of an object that has no counterpart; else z of the image. */
} Doubt;

/* Returns 1 and sets *doubt if the image is anomalous and the result gives no other reason, else 0. */
int find_doubt(Doubt *doubt, const SamladResult *result);

#endif
