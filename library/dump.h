/* dump.h - the tensors of a detection in a dump, under the names of docs/METHOD.md 11. */
#ifndef SAMLAD_LIBRARY_DUMP_H
#define SAMLAD_LIBRARY_DUMP_H

#include "algorithm.h"
#include "io/safetensors.h"

/* Dumps dcga.descriptors, references, omm.scores.R and omm.assignment.R of each reference, amm.structural,
 * amm.nearest, amm.logical, amm.map, scores. 0, or -1: no memory. */
int dump_detection(StWriter *dump, const Detection *d, Error *err);

#endif
