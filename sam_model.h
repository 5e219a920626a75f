/* sam_model.h - what the files sam*.c share: the weights of one model, by their
 * official names. Private: users include sam.h. */
#ifndef SAMLAD_SAM_MODEL_H
#define SAMLAD_SAM_MODEL_H

#include "sam.h"
#include "encoders/tiny_vit.h"

#define SAM_MAX_DECODER_DEPTH 16
#define SAM_MAX_MLP           8 /* layers of the IoU head */

#define SAM_NORM_2D_EPS 1e-6f /* LayerNorm2d, and LayerNorm in the image encoder */
#define SAM_NORM_EPS    1e-5f /* LayerNorm in the two-way transformer (PyTorch's default) */

/* Weight and bias of a Linear [n_out][n_in] or Conv2d, or gamma and beta of a norm. */
typedef struct SamAffine {
    const float *weight, *bias;
} SamAffine;

/* One block of the image encoder (image_encoder.py, Block). */
typedef struct SamBlock {
    SamAffine norm1, norm2;
    Linear qkv, proj, lin1, lin2;
    const float *rel_pos_h, *rel_pos_w; /* [n_rel_h][head_dim], [n_rel_w][head_dim] */
    int n_rel_h, n_rel_w;
    int window; /* tokens a side; 0: global attention */
} SamBlock;

/* transformer.py, Attention: dim inner_dim = out_chans, or that divided by attention_downsample_rate. */
typedef struct SamAttention {
    SamAffine q, k, v, out;
    int inner_dim;
} SamAttention;

/* transformer.py, TwoWayAttentionBlock. */
typedef struct SamTwoWayLayer {
    SamAttention self_attn, token_to_image, image_to_token;
    SamAffine norm1, norm2, norm3, norm4, lin1, lin2;
} SamTwoWayLayer;

struct Sam {
    const Safetensors *file; /* for messages */
    SamConfig config;
    int grid, n_positions; /* image_size / patch_size, and its square */
    int hidden;            /* of the encoder's MLP */
    int n_mask_tokens;

    /* image_encoder: a TinyViT, or, where that is NULL, a ViT */
    TinyVit *tiny_vit;
    SamAffine patch_embed;
    const float *pos_embed; /* [grid][grid][embed_dim] */
    SamBlock blocks[SAM_MAX_DEPTH];
    /* and the neck behind either */
    const float *neck_conv1, *neck_conv2; /* [out_chans][embed_dim][1][1], [out_chans][out_chans][3][3] */
    SamAffine neck_norm1, neck_norm2;

    /* prompt_encoder */
    const float *gaussian; /* [2][out_chans/2] */
    const float
        *point_embeddings[4]; /* background, foreground, box corner 0, box corner 1; [out_chans] each */
    const float *not_a_point, *no_mask;
    SamAffine mask_conv1, mask_norm1, mask_conv2, mask_norm2, mask_conv3;

    /* mask_decoder */
    const float *iou_token, *mask_tokens; /* [1][out_chans], [n_mask_tokens][out_chans] */
    SamTwoWayLayer layers[SAM_MAX_DECODER_DEPTH];
    SamAttention final_attn;
    SamAffine norm_final;
    SamAffine up_conv1, up_norm, up_conv2; /* ConvTranspose2d, LayerNorm2d, ConvTranspose2d */
    SamAffine hyper[SAM_MAX_MASK_TOKENS][3];
    SamAffine iou_head[SAM_MAX_MLP];

    /* Made once when the model is opened, in one block of memory. */
    float *derived;
    float *dense_pe;                /* [grid][grid][out_chans] positional encoding of the image positions */
    float *up_weight1, *up_weight2; /* the up_conv weights as [2·2][c_out][c_in]: see sam_positions.c */
    void *packed;                   /* the encoder blocks' weights in bf16, or NULL: float32 */
};

/* Of two sizes: scratch memory that serves steps one after the other. */
static inline size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* x[n] *= factor */
static inline void scale(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* Size of dimension `axis` of a tensor, 0 when there is no such tensor or dimension. */
int sam_dim_of(const Safetensors *st, const char *name, int axis);
/* How many tensors BEFORE0AFTER, BEFORE1AFTER, ... exist in an unbroken row; at most limit + 1. */
int sam_count_tensors(const Safetensors *st, const char *before, const char *after, int limit);
/* out[channels] = positional encoding of the point (x, y), both in [0,1] over the padded input
 * (PositionEmbeddingRandom). */
void sam_position(const Sam *sam, float *out, float x, float y);
/* The prompt encoder's sparse part, out [n][out_chans]: one token a point, one that says "no point"
 * when there are points but no box, two a box. Returns their number n. */
int sam_embed_sparse(const Sam *sam, const SamImage *image, const SamPrompt *prompt, float *out);
/* Call tap with the transpose: data [n][channels], told as [channels][h][w] as PyTorch has it. 0, or -1
 * (no memory). */
int sam_tap_planar(TensorTap tap, void *user, const char *name, const float *data, int h, int w, int channels,
                   Error *err);
/* The forward pass: pixels [3][image_size][image_size] -> embedding [grid][grid][out_chans]. */
int sam_encode_pixels(const Sam *sam, SamState *state, float *embedding, const float *pixels, TensorTap tap,
                      void *tap_user, Error *err);
/* Where sam_encode may put the resized picture and the network's input. */
float *sam_state_pixels(SamState *state);    /* [3][image_size][image_size] */
uint8_t *sam_state_resized(SamState *state); /* [image_size][image_size][3] */

#endif
