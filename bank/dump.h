/* dump.h - the intermediate tensors of one image in a safetensors file, under the names of docs/METHOD.md 11. All
 * data are copied. 0, or -1: no memory. */
#ifndef SAMLAD_DUMP_H
#define SAMLAD_DUMP_H

#include "amg.h"
#include "dcga.h"
#include "io/safetensors.h"
#include "sam.h"

/* A float32 tensor; dump NULL: nothing. */
int dump_floats(StWriter *dump, const char *name, int n_dims, const int64_t *shape, const float *data,
                Error *err);

/* A TensorTap and its user data. It adds every tensor to the dump. The first failure sets status. */
typedef struct DumpTap {
    StWriter *dump;
    Error *err;
    int status;
} DumpTap;
void dump_tap(void *tap, const char *name, int n_dims, const int64_t *shape, const float *data);

/* sam.masks [n][height][width], sam.iou_predictions, sam.stability_scores, sam.boxes, sam.points. */
int dump_masks(StWriter *dump, const AmgMasks *masks, int height, int width, Error *err);
/* sam.pixels and sam.embedding [C][g][g]: the image encoder's input and output. The mask generator does not
 * give its embedding away, so this encodes the image once more. */
int dump_sam(StWriter *dump, const Sam *sam, SamState *state, const Picture *picture, Error *err);
/* objects.weights, objects.pooled, objects.centroids. */
int dump_objects(StWriter *dump, const Objects *objects, Error *err);

#endif
