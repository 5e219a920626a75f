/* foreign.h - checkpoints under the names of other libraries: Hugging Face transformers and timm.
 *
 * load/vit_load.c and load/sam_load.c know only the official names. A foreign checkpoint becomes a view with
 * the official names (st_view): tensors stay in the file, and only pieces that are joined (query, key, value)
 * are copied. What the tensors do not tell (heads, eps, mean, std) comes from the JSON files beside it. */
#ifndef SAMLAD_FOREIGN_H
#define SAMLAD_FOREIGN_H

#include "io/error.h"
#include "io/safetensors.h"

/* st_open_checkpoint, then weights_official: what --backbone, --sam and `samlad info` open. NULL on failure. */
Safetensors *weights_open(const char *path, Error *err);
/* The same weights with official names and, in the metadata, the settings beside the file. It is `file` itself
 * if it has them. Otherwise a view that owns `file`. NULL on failure: a model that samlad does not have, or a
 * tensor without a place. `file` then stays the caller's. */
Safetensors *weights_official(Safetensors *file, Error *err);

/* ---- between foreign.c and foreign_settings.c ----------------------------------------------------------*/

typedef enum ForeignKind { FOREIGN_HF_VIT, FOREIGN_TIMM_VIT, FOREIGN_HF_SAM, FOREIGN_SAM } ForeignKind;

/* A foreign tensor, and its place in the official model. */
typedef struct ForeignTensor {
    char official[128];
    const char *foreign; /* the name without the prefix */
    int piece;
    const StTensor *tensor;
} ForeignTensor;

typedef struct ForeignTensors {
    const Safetensors *file;
    ForeignKind kind;
    int renamed;           /* a name differs from the official one. */
    size_t n, prefix;      /* prefix: bytes before the foreign names ("dinov2.") */
    ForeignTensor *placed; /* [n], sorted by official name and piece */
} ForeignTensors;

/* The size of a dimension of the (first piece of the) tensor with this official name; 0 without it. */
int64_t placed_dim(const ForeignTensors *p, const char *official, int axis);
/* Add the settings to the metadata: vit.* or sam.*, from the JSON files beside the file. *found: there are
 * any. 0 / -1. */
int foreign_settings(StWriter *view, const ForeignTensors *p, int *found, Error *err);

#endif
