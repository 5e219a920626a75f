/* sam_load.h - Segment Anything's weights by their official names (segment_anything: build_sam.py and
 * modeling/).
 *
 * The structs below are the official modules, with the official names of their members. All sizes come from
 * the file's metadata and from the shapes of its tensors. Each shape is checked. A file with a wrong shape is
 * refused, with the tensor's name. sam.c has the forward pass. */
#ifndef SAMLAD_SAM_LOAD_H
#define SAMLAD_SAM_LOAD_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

enum {
    SAM_MAX_DEPTH = 64,         /* blocks of the image encoder. */
    SAM_MAX_DECODER_DEPTH = 16, /* layers of the two-way transformer. */
    SAM_MAX_MASK_TOKENS = 16,   /* num_multimask_outputs + 1 */
    SAM_MAX_MLP = 8             /* layers of the IoU head. */
};

typedef struct SamConfig {
    /* The image encoder. If it is not the ViT, only the first three sizes are known here, and depth is 0. */
    int image_size, patch_size, embed_dim, depth, n_heads, window_size;
    double mlp_ratio;
    int n_global, global_attn_indexes[SAM_MAX_DEPTH];
    int out_chans; /* channels of the embedding = prompt_embed_dim = transformer_dim. */
    int mask_in_chans;
    int decoder_depth, decoder_mlp_dim, decoder_heads, attention_downsample_rate;
    int n_multimask, iou_head_depth, iou_head_hidden_dim;
    float pixel_mean[3], pixel_std[3]; /* on pixels in [0,255]. */
    float mask_threshold;              /* 0 */
    float encoder_eps;                 /* LayerNorm in ImageEncoderViT's blocks: 1e-6 */
    float decoder_eps; /* norm1 to norm4 in TwoWayTransformer: 1e-5 (PyTorch's default); Hugging Face: 1e-6 */
} SamConfig;

/* Conv2d [c_out][c_in][k][k] or ConvTranspose2d [c_in][c_out][k][k]; bias [c_out] or NULL. */
typedef struct SamConv {
    const float *weight, *bias;
} SamConv;

/* ---- image_encoder.py -------------------------------------------------------------------------*/

typedef struct SamBlock {
    Norm norm1, norm2;
    Linear qkv, proj;                   /* attn */
    const float *rel_pos_h, *rel_pos_w; /* [n_rel_h][head_dim], [n_rel_w][head_dim] */
    int n_rel_h, n_rel_w;
    Linear lin1, lin2; /* mlp */
    int window_size;   /* tokens a side; 0: global attention. */
} SamBlock;

typedef struct SamImageEncoder {
    /* ImageEncoderViT; empty if another encoder replaces it: */
    Linear patch_embed;     /* proj [embed_dim][3·patch·patch]: a convolution whose stride is its kernel. */
    const float *pos_embed; /* [grid][grid][embed_dim] */
    SamBlock blocks[SAM_MAX_DEPTH];
    /* the neck, behind either: */
    Linear neck_conv1;  /* 1 x 1: [out_chans][embed_dim] */
    SamConv neck_conv2; /* [out_chans][out_chans][3][3] */
    Norm neck_norm1, neck_norm2;
} SamImageEncoder;

/* ---- prompt_encoder.py ------------------------------------------------------------------------*/

typedef struct SamPromptEncoder {
    const float *positional_encoding_gaussian_matrix; /* [2][out_chans/2], of pe_layer */
    const float
        *point_embeddings[4]; /* background, foreground, box corner 0, box corner 1; [out_chans] each. */
    const float *not_a_point_embed, *no_mask_embed; /* [out_chans] */
    struct {
        SamConv conv1, conv2; /* 1 -> mask_in_chans/4 -> mask_in_chans; kernel and stride 2 */
        Norm norm1, norm2;
        Linear conv3; /* 1 x 1: [out_chans][mask_in_chans] */
    } mask_downscaling;
} SamPromptEncoder;

/* ---- transformer.py ---------------------------------------------------------------------------*/

/* Attention: q, k, v go from out_chans to internal_dim, which is out_chans / downsample_rate. */
typedef struct SamAttention {
    Linear q_proj, k_proj, v_proj, out_proj;
    int internal_dim;
} SamAttention;

typedef struct SamTwoWayAttentionBlock {
    SamAttention self_attn, cross_attn_token_to_image, cross_attn_image_to_token;
    Norm norm1, norm2, norm3, norm4;
    Linear lin1, lin2; /* mlp */
} SamTwoWayAttentionBlock;

/* ---- mask_decoder.py --------------------------------------------------------------------------*/

typedef struct SamMaskDecoder {
    const float *iou_token, *mask_tokens; /* [1][out_chans], [n_mask_tokens][out_chans] */
    struct {
        SamTwoWayAttentionBlock layers[SAM_MAX_DECODER_DEPTH];
        SamAttention final_attn_token_to_image;
        Norm norm_final_attn;
    } transformer;
    struct {
        SamConv conv1, conv2; /* ConvTranspose2d: out_chans -> out_chans/4 -> out_chans/8, stride 2 */
        Norm norm;
    } output_upscaling;
    Linear output_hypernetworks_mlps[SAM_MAX_MASK_TOKENS][3];
    Linear iou_prediction_head[SAM_MAX_MLP];
} SamMaskDecoder;

typedef struct SamWeights {
    const Safetensors *file; /* for messages */
    SamConfig config;
    int grid, n_positions; /* image_size / patch_size, and its square. */
    size_t n_embedding;    /* n_positions · out_chans: floats of an image embedding. */
    int n_mask_tokens;     /* n_multimask + 1 */
    SamImageEncoder image_encoder;
    SamPromptEncoder prompt_encoder;
    SamMaskDecoder mask_decoder;
} SamWeights;

/* The sizes, from metadata and shapes. patch_size is that of the encoder that replaces the ViT, 0: the ViT. 0
 * / -1. */
int sam_load_config(SamWeights *weights, const Safetensors *file, int patch_size, Error *err);
/* The tensors, which stay in the file: it must outlive them. 0 / -1, with the name of the wrong tensor. */
int sam_load_weights(SamWeights *weights, Safetensors *file, Error *err);
/* Round the blocks' layers to bf16 with linear_pack. It is called twice: to count, and with memory. */
void sam_pack_weights(SamWeights *weights, Arena *arena);

/* Size of dimension `axis` of a tensor; 0 if there is no such tensor or dimension. */
int sam_dim_of(const Safetensors *st, const char *name, int axis);
/* The number of tensors BEFORE0AFTER, BEFORE1AFTER, ... without a gap; at most limit + 1. */
int sam_count_tensors(const Safetensors *st, const char *before, const char *after, int limit);

#endif
