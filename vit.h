/* vit.h - the frozen Vision Transformer that turns an image into patch features (METHOD.md 1).
 * DINOv2 S/B/L/g with and without registers (facebookresearch/dinov2, dinov2/models/vision_transformer.py)
 * and the plain timm-style ViT (no LayerScale). Every size comes from the weights file. */
#ifndef SAMLAD_VIT_H
#define SAMLAD_VIT_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

typedef struct VitConfig {
    int patch_size, dim, depth, n_heads, hidden_dim; /* hidden_dim: of the MLP (SwiGLU: after the product) */
    int n_registers;
    int swiglu;                 /* 0: MLP with GELU, 1: SwiGLU (w12, w3) */
    int layer_scale;            /* 1: blocks.N.ls1.gamma exists */
    int pos_grid;               /* pos_embed was trained on pos_grid × pos_grid patches */
    int pos_cls;                /* 1: pos_embed has a row for the class token */
    double interpolate_offset;  /* 0.1 in DINOv2, 0.0 with registers and in timm */
    int interpolate_antialias;  /* 1 in DINOv2 with registers and in timm */
    int timm;                   /* 1: plain timm ViT: other defaults for the above, and no need of pos_cls */
    int image_size;             /* the size it was trained at */
    float eps, mean[3], std[3]; /* mean/std on pixels in [0,1] */
} VitConfig;

typedef struct Vit Vit;

/* Open weights: with metadata (tools/convert.py), or a published DINOv2 or timm file as it is, recognised by
 * names and shapes. Every tensor is checked, one without a place in the network is refused. NULL on failure.
 * The Safetensors stays the caller's and must outlive the model. */
Vit *vit_open(Safetensors *weights, Error *err);
void vit_close(Vit *vit);
/* The precision of the blocks' products, float32 at first. bf16 keeps a rounded copy of their weights. Not
 * while another thread runs the model. 0 / -1 (no memory; then it is float32). */
int vit_set_precision(Vit *vit, Precision precision, Error *err);
const VitConfig *vit_config(const Vit *vit);

/* Activations for images of up to grid_h × grid_w patches (or any grid with no more patches): one
 * allocation, for this model only. Two threads need two states. NULL on failure. */
typedef struct VitState VitState;
VitState *vit_state_new(const Vit *vit, int grid_h, int grid_w, Error *err);
void vit_state_free(VitState *state);
size_t vit_state_bytes(const Vit *vit, int grid_h, int grid_w); /* of a state for that size */

/* pixels [3][h][w] normalised; h and w multiples of patch_size, at most the state's size.
 * layer: 1..depth (after that block; depth = last), the features go through `norm` (the model's final norm
 * when layer == depth, LayerNorm without affine otherwise, METHOD.md 1).
 * cls [dim], patches [grid_h*grid_w][dim] row-major over the grid. Either may be NULL.
 * Tapped: "vit.embed" and "vit.blocks.N" (N from 0) [n_tokens][dim]: class token, registers, patches;
 * "vit.cls" and "vit.patches" as above. */
void vit_forward(const Vit *vit, VitState *state, const float *pixels, int h, int w, int layer, float *cls,
                 float *patches, TensorTap tap, void *tap_user);

/* RGB uint8 [h][w][3] -> pixels [3][oh][ow]: PIL's antialiased bicubic resize, /255, (x-mean)/std.
 * 0 / -1 (memory). */
int vit_preprocess(const VitConfig *config, float *pixels, int oh, int ow, const uint8_t *rgb, int h, int w,
                   Error *err);

#endif
