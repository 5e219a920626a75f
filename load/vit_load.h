/* vit_load.h - the weights of a Vision Transformer under their official names, and its configuration. vit.c
 * is the forward pass on them.
 *
 * Supported are DINOv2 S/B/L/g with and without registers (facebookresearch/dinov2), and timm's ViT. A
 * file made by tools/convert.py has its configuration in the metadata. A published file is recognised by
 * names and shapes. load/foreign.h gives the names of other libraries their official form. */
#ifndef SAMLAD_VIT_LOAD_H
#define SAMLAD_VIT_LOAD_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

typedef struct VitConfig {
    int patch_size, dim, depth, n_heads;
    int hidden_dim; /* of the feed-forward part; SwiGLU: after the product. */
    int n_registers;
    int swiglu;                /* 0: MLP with GELU (fc1, fc2); 1: SwiGLU (w12, w3) */
    int layer_scale;           /* 1: blocks.N.ls1.gamma exists. */
    int qkv_bias;              /* 1: blocks.N.attn.qkv.bias exists. */
    int pos_grid;              /* pos_embed was trained on pos_grid x pos_grid patches. */
    int pos_cls;               /* 1: pos_embed has a row for the class token. */
    double interpolate_offset; /* 0.1 in DINOv2, 0 with registers and in timm. */
    int interpolate_antialias; /* 1 in DINOv2 with registers and in timm. */
    int timm;                  /* 1: timm's ViT, 0: DINOv2 */
    int image_size;            /* side in pixels of the training images. */
    float eps;                 /* of every LayerNorm */
    float mean[3], std[3];     /* of pixels in [0, 1]. */
} VitConfig;

/* blocks.N of the file. */
typedef struct VitBlock {
    Norm norm1;
    Linear qkv;       /* attn.qkv [3*dim][dim]: queries, keys, values; timm's may have no bias */
    Linear proj;      /* attn.proj [dim][dim] */
    const float *ls1; /* ls1.gamma [dim]; NULL without LayerScale */
    Norm norm2;
    Linear ffn_in;    /* mlp.fc1 [hidden][dim], or mlp.w12 [2*hidden][dim] */
    Linear ffn_out;   /* mlp.fc2 or mlp.w3 [dim][hidden] */
    const float *ls2; /* ls2.gamma [dim]; NULL without LayerScale */
} VitBlock;

typedef struct Vit {
    VitConfig config;
    Linear patch_embed;           /* patch_embed.proj [dim][3*patch*patch] */
    const float *cls_token;       /* [dim] */
    const float *register_tokens; /* [n_registers][dim]; NULL without registers */
    const float *pos_embed;       /* [pos_cls + pos_grid*pos_grid][dim] */
    Norm norm;                    /* the final one */
    void *packed;                 /* the blocks' weights in bf16; NULL: float32 */
    VitBlock blocks[];            /* [depth] */
} Vit;

/* Open the weights and check every tensor. A tensor that has no place in the network is refused. The
 * Safetensors stays the caller's and must outlive the model. NULL on failure. */
Vit *vit_open(Safetensors *weights, Error *err);
void vit_close(Vit *vit); /* NULL allowed */
const VitConfig *vit_config(const Vit *vit);
/* Set the precision of the blocks' products; a new model has float32. bf16 keeps a rounded copy of the
 * weights. No other thread may run the model meanwhile. 0 / -1 (no memory: the model is float32 then). */
int vit_set_precision(Vit *vit, Precision precision, Error *err);

#endif
