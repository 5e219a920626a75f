/* sam.h - Segment Anything: image encoder, prompt encoder, mask decoder (facebookresearch/segment-anything;
 * ChaoningZhang/MobileSAM). sam.c opens with the architecture. Automatic mask generation is amg.h. Every size
 * comes from the weights file. */
#ifndef SAMLAD_SAM_H
#define SAMLAD_SAM_H

#include "encoders/encoder.h"
#include "io/error.h"
#include "io/image.h"
#include "io/safetensors.h"
#include "load/sam_load.h"
#include "tensor.h"

#define SAM_LAYER_NORM_2D_EPS 1e-6f /* LayerNorm2d: neck, mask_downscaling, output_upscaling */
#define SAM_FINAL_NORM_EPS    1e-5f /* norm_final_attn of TwoWayTransformer (PyTorch's default) */

typedef struct Sam {
    SamWeights weights;
    const SamEncoder *encoder; /* another image encoder in the ViT's place, or NULL. */
    void *encoder_model;       /* encoder->open's */
    float *image_pe;           /* [grid][grid][out_chans] PromptEncoder.get_dense_pe() */
    void *packed;              /* the image encoder's weights in bf16, or NULL: float32. */
} Sam;

/* NULL on failure. The Safetensors stays the caller's and must outlive the model. */
Sam *sam_open(Safetensors *weights, Error *err);
void sam_close(Sam *sam);
/* Set the precision of the image encoder's products. It is float32 at first. bf16 keeps a rounded copy of the
 * encoder's weights. Not to be called while another thread runs the model. 0 / -1 (no memory; the model is
 * then in float32). */
int sam_set_precision(Sam *sam, Precision precision, Error *err);
const SamConfig *sam_config(const Sam *sam);
/* 0 when all n values that the model computed are finite numbers. Else -1 and a sentence that names the file
 * of its weights, because damaged weights are the likely cause. `what` names the values: "embedding". */
int sam_check_finite(const Sam *sam, const char *what, const float *values, size_t n, Error *err);
/* Multiply-adds of the image encoder's forward pass, in products and attention. Padding tokens of windows are
 * counted only as keys. */
double sam_encoder_multiply_adds(const Sam *sam);

/* Receives intermediate tensors; NULL: off. */
typedef struct SamTap {
    TensorTap call;
    void *user;
} SamTap;

/* ---- image encoder ----------------------------------------------------------------------------*/

/* Encoder activations, in one allocation, for one thread. */
typedef struct SamState SamState;
SamState *sam_state_new(const Sam *sam, Error *err);
void sam_state_free(SamState *state);
size_t sam_state_bytes(const SamState *state);

/* An image that is ready for prompts. */
typedef struct SamImage {
    int original_h, original_w; /* of the picture. */
    int input_h, input_w;       /* after ResizeLongestSide, before padding. */
    int grid;                   /* image_size / patch_size */
    float *embedding;           /* [grid][grid][out_chans] channel-last */
} SamImage;

/* Sam.preprocess (PIL bilinear resize of the longer side to image_size, normalise, pad with zeros), then the
 * image encoder. 0 / -1 (no memory, or an embedding that is not finite). Free *out with sam_image_free. Taps:
 * sam.pixels [3][S][S], sam.patch_embed, sam.blocks.N, sam.embedding [C][grid][grid]. */
int sam_encode(const Sam *sam, SamState *state, SamImage *out, const Picture *picture, const SamTap *tap,
               Error *err);
void sam_image_free(SamImage *image);

/* ---- one prompt -------------------------------------------------------------------------------*/

/* A prompt, in pixels (x, y) of the original picture. */
typedef struct SamPrompt {
    int n_points;
    const float *points; /* [n_points][2] */
    const int *labels;   /* [n_points] 1 foreground, 0 background, -1 padding (as the official code). */
    const float *box;    /* [4] x0 y0 x1 y1, or NULL */
    const float *mask;   /* [4·grid][4·grid] low-res logits of an earlier answer, or NULL. */
} SamPrompt;

/* SamPredictor.predict_torch up to the low-res logits. low_res [n_out][4·grid][4·grid], iou [n_out]; n_out =
 * multimask_output ? n_multimask : 1. 0 / -1. Taps: sam.sparse [n][C], sam.dense [C][grid][grid],
 * sam.low_res, sam.iou_predictions. */
int sam_decode(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask_output,
               float *low_res, float *iou, const SamTap *tap, Error *err);
/* Sam.postprocess_masks: low-res logits -> logits at the original size [original_h][original_w]. 0 / -1. */
int sam_postprocess_masks(const Sam *sam, const SamImage *image, const float *low_res, float *logits,
                          Error *err);

/* ---- steps that the fast form shares (fast/sam_prompts.c) -------------------------------------*/

/* PromptEncoder._embed_points and _embed_boxes, out [n][out_chans]. There is one token for each point, and
 * two for a box. Points without a box get a padding point as well. Returns n, the number of tokens. */
int sam_embed_sparse(const SamWeights *weights, const SamImage *image, const SamPrompt *prompt, float *out);
/* The most tokens T of a prompt with n_points: the output tokens, the points, and two more. A box has two
 * corners; no box has one padding point. */
int sam_max_tokens(const SamWeights *weights, int n_points);
/* MaskDecoder's output_tokens: iou_token, mask_tokens -> out [1 + n_mask_tokens][out_chans]. */
void sam_output_tokens(const SamWeights *weights, float *out);
/* The factor of the logits in one of the transformer's attentions: 1/sqrt(head_dim). */
float sam_attention_scale(const SamWeights *weights, const SamAttention *attention);
/* One of the transformer's norms on x [rows][out_chans], in place. */
void sam_transformer_norm(const SamWeights *weights, float *x, const Norm *norm, int rows);
/* The same with norm_final_attn, which has an eps of its own. */
void sam_final_norm(const SamWeights *weights, float *x, int rows);

/* ---- many prompts on one image -----------------------------------------------------------------
 * Automatic mask generation calls these functions. sam.c defines them plainly: the official order, one prompt
 * after the other. fast/sam_prompts.c and fast/sam_rows.c replace them (fast/replaces.h). Their results
 * differ only by rounding.
 *
 * A SamDecoder holds the data that all prompts of an image share. After its creation it is read-only, so
 * threads may share it. Each thread brings a SamScratch. Decoding has two steps: first the transformer and
 * the IoU head, then only the wanted masks. Automatic generation rejects most masks by their predicted IoU,
 * so most masks are never decoded. */
typedef struct SamDecoder SamDecoder;
typedef struct SamScratch SamScratch;

/* sam and image must outlive it. NULL: no memory. */
SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err);
void sam_decoder_free(SamDecoder *decoder);
/* Scratch of prompts without a mask, with at most max_points points (and a box). It takes max_prompts at a
 * time, clamped to 1 to SAM_TOGETHER. NULL: no memory. */
enum { SAM_TOGETHER = 4 };
SamScratch *sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err);
/* Prompts that the scratch takes at a time: 1 to SAM_TOGETHER. */
int sam_scratch_prompts(const SamScratch *scratch);
void sam_scratch_free(SamScratch *scratch);

/* iou [n_prompts][n_multimask + 1]: predicted IoU of every mask token; [0] belongs to the single-mask answer.
 * The prompts must be such that sam_decode would accept them. All have the same number of points, and all or
 * none have a box. Each result has the same bits as for that prompt alone. 0 / -1 (no memory). */
int sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                       int n_prompts, float *iou, Error *err);
/* Logits of the wanted mask tokens of one of the last prompts, in the order of `tokens` [n_tokens]: low_res
 * [n_tokens][4·grid][4·grid]. */
void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                      int n_tokens, float *low_res);

/* A mask's logits at the size of the picture, row by row. The numbers are those of sam_postprocess_masks. */
typedef struct SamRows SamRows;
SamRows *sam_rows_new(const Sam *sam, const SamImage *image, Error *err);
void sam_rows_free(SamRows *rows);
/* Pixels first to end - 1 of a row. All of them lie above the lowest `above` limits and below the others.
 * SAM_BETWEEN: this is not known, so their logits are given. */
enum { SAM_BETWEEN = -1, SAM_MAX_LIMITS = 4 };
typedef struct SamRun {
    int first, end, above;
} SamRun;
/* low_res must stay until the last row. limits [n] is sorted upwards, n at most SAM_MAX_LIMITS. The caller
 * only asks on which side of each limit a pixel lies. n = 0: it asks for all logits. */
void sam_rows_begin(SamRows *rows, const float *low_res, const float *limits, int n);
/* To be called original_h times, from the top. Gives the row's runs from the left. A pixel in no run lies
 * below all limits. Returns the logits of the SAM_BETWEEN runs, at their places in [original_w]. */
const float *sam_rows_next(SamRows *rows, const SamRun **runs, int *n_runs);

#endif
