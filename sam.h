/* sam.h - Segment Anything: image encoder, prompt encoder, mask decoder (facebookresearch/segment-anything;
 * ChaoningZhang/MobileSAM). Automatic mask generation is amg.h. Every size comes from the weights file. */
#ifndef SAMLAD_SAM_H
#define SAMLAD_SAM_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

#define SAM_MAX_DEPTH 64 /* blocks of the image encoder */

enum { SAM_MAX_MASK_TOKENS = 16 }; /* num_multimask_outputs + 1 */

typedef struct SamConfig {
    /* The image encoder; depth 0: a TinyViT (MobileSAM), of which only the first three say something. */
    int image_size, patch_size, embed_dim, depth, n_heads, window_size;
    double mlp_ratio;
    int n_global, global_attn_indexes[SAM_MAX_DEPTH];
    int out_chans; /* channels of the embedding = of the prompts = transformer_dim */
    int mask_in_chans;
    int decoder_depth, decoder_mlp_dim, decoder_heads, attention_downsample_rate;
    int n_multimask, iou_head_depth, iou_head_hidden_dim;
    float pixel_mean[3], pixel_std[3]; /* on pixels in [0,255] */
    float mask_threshold;              /* 0 */
} SamConfig;

typedef struct Sam Sam;
/* NULL on failure. The Safetensors stays the caller's and must outlive the model. */
Sam *sam_open(Safetensors *weights, Error *err);
void sam_close(Sam *sam);
/* The precision of the image encoder's products, float32 at first. bf16 keeps a rounded copy of its blocks'
 * weights. Not while another thread runs the model. 0 / -1 (no memory; then it is float32). */
int sam_set_precision(Sam *sam, Precision precision, Error *err);
const SamConfig *sam_config(const Sam *sam);
/* 0 when all n values that the model computed are finite numbers, else -1 and a sentence with the file of its
 * weights: damaged ones give others. what: "embedding". */
int sam_check_finite(const Sam *sam, const char *what, const float *values, size_t n, Error *err);
/* Of the image encoder's forward pass, in products and attention; tokens of the padding of windows are
 * counted as keys only. */
double sam_encoder_multiply_adds(const Sam *sam);

/* Encoder activations; one allocation, for one thread of work. */
typedef struct SamState SamState;
SamState *sam_state_new(const Sam *sam, Error *err);
void sam_state_free(SamState *state);
size_t sam_state_bytes(const SamState *state);

/* An image that is ready for prompts. */
typedef struct SamImage {
    int original_h, original_w; /* of the picture */
    int input_h, input_w;       /* after ResizeLongestSide, before padding */
    int grid;                   /* image_size / patch_size */
    float *embedding;           /* [grid][grid][out_chans] channel-last */
    float *pixels; /* [3][image_size][image_size] network input, kept when asked for, else NULL */
} SamImage;

/* Preprocess (PIL bilinear resize of the longer side to image_size, normalise, pad with zeros) and encode.
 * 0 / -1 (no memory, or an embedding that is not finite); *out is to be freed with sam_image_free. Tapped:
 * "sam.pixels" and what the encoder's file names. */
int sam_encode(const Sam *sam, SamState *state, SamImage *out, const uint8_t *rgb, int h, int w,
               int keep_pixels, TensorTap tap, void *tap_user, Error *err);
void sam_image_free(SamImage *image);

/* One prompt, in pixels of the original image (x, y). */
typedef struct SamPrompt {
    int n_points;
    const float *points; /* [n_points][2] */
    const int *labels;   /* [n_points] 1 foreground, 0 background, -1 padding (as the official code) */
    const float *box;    /* [4] x0 y0 x1 y1, or NULL */
    const float *mask;   /* [4·grid][4·grid] low-res logits of an earlier answer, or NULL */
} SamPrompt;

/* low_res [n_out][4·grid][4·grid] logits, iou [n_out]; n_out = multimask ? n_multimask : 1. 0 / -1. */
int sam_decode(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask, float *low_res,
               float *iou, TensorTap tap, void *tap_user, Error *err);
/* The same by the official code's own sequence of products, slower: the truth that sam_decode is tested
 * against. */
int sam_decode_plain(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask,
                     float *low_res, float *iou, TensorTap tap, void *tap_user, Error *err);
/* Low-res logits -> logits at the original size [original_h][original_w] (bilinear to image_size, crop,
 * bilinear). 0 / -1. */
int sam_postprocess(const Sam *sam, const SamImage *image, const float *low_res, float *logits, Error *err);

/* ---- many prompts on one image ----------------------------------------------------------------
 * A SamDecoder holds what all prompts of an image share; it is read-only once made, so that threads may
 * share it. Each thread brings a SamScratch, in which a few prompts of the same shape go through the decoder
 * together: their answers are those that each would get alone. Decoding is in two steps, because most masks
 * of automatic generation are rejected by their predicted IoU: first the transformer and the IoU head, then
 * only the masks that are wanted. */
typedef struct SamDecoder SamDecoder;
typedef struct SamScratch SamScratch;

/* sam and image must outlive it. NULL: no memory. */
SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err);
void sam_decoder_free(SamDecoder *decoder);
/* For prompts of at most max_points points (and a box), without a mask, max_prompts at a time (taken as 1 to
 * SAM_TOGETHER). */
enum { SAM_TOGETHER = 4 };
SamScratch *sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err);
/* How many it really takes at a time: 1 to SAM_TOGETHER. */
int sam_scratch_prompts(const SamScratch *scratch);
void sam_scratch_free(SamScratch *scratch);

/* iou [n_prompts][n_multimask + 1]: predicted IoU of every mask token; [0] belongs to the single-mask
 * answer. The prompts must be such that sam_decode would accept, alike in their number of points, and in
 * having a box or none. */
void sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                        int n_prompts, float *iou);
/* Logits of the wanted mask tokens of one of the last prompts, in the order of `tokens` [n_tokens]:
 * low_res [n_tokens][4·grid][4·grid]. */
void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                      int n_tokens, float *low_res);

/* A mask's logits at the size of the picture, row by row, so that no full-size logits need memory. */
typedef struct SamRows SamRows;
SamRows *sam_rows_new(const Sam *sam, const SamImage *image, Error *err);
void sam_rows_free(SamRows *rows);
/* Pixels first to end - 1 of a row, which all lie above so many of the limits and below the others;
 * SAM_BETWEEN: they were worked out, for it could not be told otherwise. */
enum { SAM_BETWEEN = -1, SAM_MAX_LIMITS = 4 };
typedef struct SamRun {
    int first, end, above;
} SamRun;
/* low_res must stay until the last row. limits [n], from the lowest, at most SAM_MAX_LIMITS: on which side of
 * them a pixel lies is all that is asked, so that most need not be worked out. None: all are. */
void sam_rows_begin(SamRows *rows, const float *low_res, const float *limits, int n);
/* original_h times, from the top: the row's runs from the left; a pixel in none lies below all limits.
 * Returns the logits of the SAM_BETWEEN ones, at their places in [original_w]. */
const float *sam_rows_next(SamRows *rows, const SamRun **runs, int *n_runs);

#endif
