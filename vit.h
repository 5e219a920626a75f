/* vit.h - the frozen Vision Transformer that turns an image into patch features (docs/METHOD.md 1). */
#ifndef SAMLAD_VIT_H
#define SAMLAD_VIT_H

#include "io/error.h"
#include "io/image.h"
#include "load/vit_load.h"
#include "tensor.h"

/* The activations for images of up to grid_h x grid_w patches, or of another grid with no more patches. They
 * are one allocation. A state belongs to one model and one thread. NULL on failure. */
typedef struct VitState VitState;
VitState *vit_state_new(const Vit *vit, int grid_h, int grid_w, Error *err);
void vit_state_free(VitState *state);
size_t vit_state_bytes(const Vit *vit, int grid_h, int grid_w); /* of a state for that grid. */

/* The network's input. */
typedef struct VitImage {
    const float *pixels; /* [3][h][w], normalised: see vit_preprocess */
    int h, w;            /* multiples of patch_size, at most the state's size. */
} VitImage;

/* layer is 1 to depth: cls and patches are the features after that block. The last block's go through the
 * model's own norm, an inner block's through a LayerNorm without affine (docs/METHOD.md 1). cls [dim],
 * patches [grid_h*grid_w][dim] row-major over the grid. Either may be NULL. Tapped: "vit.embed" and
 * "vit.blocks.N" (N from 0) [n_tokens][dim], in the order class token, registers, patches. "vit.cls" and
 * "vit.patches" are tapped as above. 0 / -1 (no memory for the threads). */
int vit_forward(const Vit *vit, VitState *state, const VitImage *image, int layer, float *cls, float *patches,
                TensorTap tap, void *tap_user, Error *err);

/* picture -> pixels [3][oh][ow]: PIL's antialiased bicubic resize, /255, (x - mean)/std.
 * 0 / -1 (memory). */
int vit_preprocess(const VitConfig *config, float *pixels, int oh, int ow, const Picture *picture,
                   Error *err);

#endif
