/* tiny_vit.h - TinyViT, the image encoder of the light Segment Anything models (MobileSAM). Private to sam.c
 * and sam_encoder.c: users include sam.h. */
#ifndef SAMLAD_TINY_VIT_H
#define SAMLAD_TINY_VIT_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

#define TINY_VIT_STAGES 4
#define TINY_VIT_PATCH  16 /* pixels a side of a place of the output */

typedef struct TinyVit TinyVit;

/* Of the tensors below image_encoder. (official names); everything but the image's size, a multiple of
 * TINY_VIT_PATCH, is told by their shapes. NULL: no memory, or a sentence with the tensor that is wrong. */
TinyVit *tiny_vit_open(Safetensors *weights, int image_size, Error *err);
void tiny_vit_close(TinyVit *vit);
/* Channels of the output. */
int tiny_vit_dim(const TinyVit *vit);
/* Of a forward pass, in products and attention; padding tokens are counted as keys only. */
double tiny_vit_multiply_adds(const TinyVit *vit);
/* Its linear layers, pointwise convolutions among them, rounded to bf16: see linear_pack. */
void tiny_vit_pack(TinyVit *vit, Arena *arena);

/* Activations: what tiny_vit_layout takes from an arena. The two maps are the residual stream and what
 * becomes of it, by turns. */
typedef struct TinyVitState {
    float *maps[2];                      /* [size][size][dim] of any stage */
    float *interleaved, *stem, *scratch; /* [S][S][3], [S/2][S/2][stem], conv2d's */
    float *strips[2];                    /* rows of a bottleneck's hidden channels, before and after conv2 */
    float *norm, *heads, *branch;        /* [n][dim] */
    float *qkv;                          /* [n][3·dim] */
    float *hidden;                       /* of some rows of an MLP */
} TinyVitState;

void tiny_vit_layout(TinyVitState *state, const TinyVit *vit, Arena *arena);

/* pixels [3][S][S] -> [S/16][S/16][dim], in one of the state's maps. Taps: sam.patch_embed, sam.layers.0 to 3
 * [h][w][channels]. */
const float *tiny_vit_forward(const TinyVit *vit, TinyVitState *state, const float *pixels, TensorTap tap,
                              void *tap_user);

#endif
