/* result.h - a comparison as the API's result. */
#ifndef SAMLAD_LIBRARY_RESULT_H
#define SAMLAD_LIBRARY_RESULT_H

#include "compare.h"
#include "samlad.h"

/* The result takes maps and references from the comparison, and labels from the scene. */
int result_make(SamladResult *result, const Bank *bank, Comparison *c, Scene *scene, Error *err);

#endif
