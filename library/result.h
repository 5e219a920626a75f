/* result.h - a detection as samlad.h's result: verdicts, matches, boxes and places in pixels. */
#ifndef SAMLAD_LIBRARY_RESULT_H
#define SAMLAD_LIBRARY_RESULT_H

#include "algorithm.h"
#include "samlad.h"

/* Fill the result. The scene's labels and the detection's references become the result's. 0, or -1: no
 * memory, and the result is empty. */
int result_make(SamladResult *result, const Bank *bank, Detection *d, Scene *scene, Error *err);
/* The parts of result_make: the objects (the result must have size, grid and labels) and the missing ones
 * (size and grid). */
int result_objects(SamladResult *result, const Bank *bank, const Detection *d, Error *err);
int result_missing(SamladResult *result, const Bank *bank, const Detection *d, Error *err);

#endif
