/* result.h - from a detection to what samlad.h gives to programs: boxes and places in pixels. */
#ifndef SAMLAD_RESULT_H
#define SAMLAD_RESULT_H

#include "algorithm.h"
#include "samlad.h"

/* Fill the result; the scene's labels and the detection's references become the result's. 0, or -1: no memory, the
 * result is empty. */
int result_make(SamladResult *result, const Bank *bank, Detection *d, Scene *scene, Error *err);
/* Its parts: objects (needs size and labels) and missing ones (needs size). */
int result_objects(SamladResult *result, const Bank *bank, const Detection *d, Error *err);
int result_missing(SamladResult *result, const Bank *bank, const Detection *d, Error *err);

#endif
