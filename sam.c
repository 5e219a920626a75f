/* sam.c - Segment Anything (Kirillov et al. 2023), the whole network, to be read beside the official code:
 * segment_anything/modeling/{sam,image_encoder,prompt_encoder,transformer,mask_decoder}.py. Functions and
 * members have the official names. On the right: the sizes of ViT-B, and of a prompt of one point.
 *
 *   picture [h][w][3]
 *     Sam.preprocess       longest side to S, normalise, pad      pixels [3][S][S]     S = 1024
 *     ImageEncoderViT      patches of 16 pixels, pos_embed        [g][g][embed_dim]    64 x 64 x 768
 *                          blocks: attention and MLP              12 blocks, 12 heads of 64, MLP of 3072
 *                            in windows of 14 x 14, or global     global: blocks 2, 5, 8, 11
 *                          neck: two convolutions                 embedding [g][g][C]  64 x 64 x 256
 *   prompt
 *     PromptEncoder        points, box -> sparse                  [n_sparse][C]        2 x 256
 *                          mask, or no_mask_embed -> dense        [g][g][C]            64 x 64 x 256
 *     MaskDecoder          tokens = iou_token, mask_tokens,       [T][C]               7 x 256
 *                            sparse
 *       TwoWayTransformer  blocks: self_attn,                     2 blocks, 8 heads, internal_dim 256
 *                            cross_attn_token_to_image,           internal_dim 128
 *                            mlp,                                 2048
 *                            cross_attn_image_to_token            internal_dim 128
 *                          final_attn_token_to_image              internal_dim 128
 *       output_upscaling   two transposed convolutions            [4g][4g][C/8]        256 x 256 x 32
 *       output_hypernetworks_mlps(mask token) . upscaled image    low-res logits [4g][4g]
 *       iou_prediction_head(iou token)                            predicted IoU of each mask
 *     Sam.postprocess_masks                                       logits [h][w]
 *
 * g = grid = S / patch_size; n = g * g image positions in row-major order; C = out_chans = transformer_dim.
 * Everything is channel-last, so that LayerNorm2d is LayerNorm and a 1 x 1 convolution is a Linear. The
 * weights come from load/sam_load.c. Light models have another image encoder (encoders/) in the place of
 * ImageEncoderViT's blocks; the neck and all the rest are the same. */
#include "sam.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* out = a + b, n floats. */
static void add_to(float *out, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

static void tap_tensor(const SamTap *tap, const char *name, int n_dims, const int64_t *shape,
                       const float *data)
{
    if (tap)
        tap->call(tap->user, name, n_dims, shape, data);
}

/* data [n][channels], handed over in PyTorch's order [channels][grid][grid]. 0, or -1 (no memory). */
static int tap_planar(const SamTap *tap, const char *name, const float *data, int grid, int channels,
                      Error *err)
{
    const size_t n = (size_t)grid * grid, dim = channels;
    if (!tap)
        return 0;
    float *planar = aligned_array(n * dim, sizeof *planar);
    if (!planar)
        return fail_memory(err, name, n * dim * sizeof *planar);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < dim; c++)
            planar[c * n + i] = data[i * dim + c];
    tap_tensor(tap, name, 3, (int64_t[]){channels, grid, grid}, planar);
    free(planar);
    return 0;
}

/* ---- PositionEmbeddingRandom (prompt_encoder.py) ----------------------------------------------*/

/* _pe_encoding: out [C] = sin and cos of 2·pi·(2·(x, y) - 1)·gaussian. (x, y) is in [0,1] over the padded
 * input. */
static void pe_encoding(const SamWeights *w, float *out, float x, float y)
{
    const float *gaussian = w->prompt_encoder.positional_encoding_gaussian_matrix;
    const int half = w->config.out_chans / 2;
    const float two_pi = 2 * 3.14159265358979323846;
    const float cx = 2 * x - 1, cy = 2 * y - 1;
    for (int i = 0; i < half; i++) {
        float angle = two_pi * (cx * gaussian[i] + cy * gaussian[half + i]);
        out[i] = sinf(angle);
        out[half + i] = cosf(angle);
    }
}

/* PromptEncoder.get_dense_pe: the encoding of the centre of each image position, [g][g][C]. */
static void get_dense_pe(const SamWeights *w, float *image_pe)
{
    const float grid = w->grid;
    for (int y = 0; y < w->grid; y++)
        for (int x = 0; x < w->grid; x++, image_pe += w->config.out_chans)
            pe_encoding(w, image_pe, (x + 0.5f) / grid, (y + 0.5f) / grid);
}

/* ---- the model --------------------------------------------------------------------------------*/

static int open_encoder(Sam *sam, Safetensors *file, Error *err)
{
    const int neck_dim = sam->weights.config.embed_dim;
    if (!sam->encoder)
        return 0;
    sam->encoder_model = sam->encoder->open(file, sam->weights.config.image_size, err);
    if (!sam->encoder_model)
        return -1;
    const int dim = sam->encoder->dim(sam->encoder_model);
    return dim == neck_dim ? 0
                           : fail(err, "%s: the image encoder %s gives %d channels, its neck takes %d",
                                  st_path(file), sam->encoder->name, dim, neck_dim);
}

static int open_model(Sam *sam, Safetensors *file, Error *err)
{
    SamWeights *w = &sam->weights;
    if (sam_encoder_find(&sam->encoder, file, err) ||
        sam_load_config(w, file, sam->encoder ? sam->encoder->patch_size : 0, err) ||
        open_encoder(sam, file, err) || sam_load_weights(w, file, err))
        return -1;
    sam->image_pe = aligned_array(w->n_embedding, sizeof(float));
    if (!sam->image_pe)
        return fail_memory(err, "SAM's positional encoding", w->n_embedding * sizeof(float));
    get_dense_pe(w, sam->image_pe);
    return 0;
}

Sam *sam_open(Safetensors *weights, Error *err)
{
    Sam *sam = calloc(1, sizeof *sam);
    if (!sam) {
        fail_memory(err, "a SAM model", sizeof *sam);
        return NULL;
    }
    if (open_model(sam, weights, err)) {
        sam_close(sam);
        return NULL;
    }
    return sam;
}

void sam_close(Sam *sam)
{
    if (!sam)
        return;
    if (sam->encoder)
        sam->encoder->close(sam->encoder_model);
    free(sam->image_pe);
    free(sam->packed);
    free(sam);
}

static void pack(Sam *sam, Arena *arena)
{
    if (sam->encoder)
        sam->encoder->pack(sam->encoder_model, arena);
    sam_pack_weights(&sam->weights, arena);
}

int sam_set_precision(Sam *sam, Precision precision, Error *err)
{
    if (precision == (sam->packed ? PRECISION_BF16 : PRECISION_FP32))
        return 0;
    Arena arena = {0};
    pack(sam, &arena); /* only counts, and leaves no layer packed. */
    free(sam->packed);
    sam->packed = NULL;
    if (precision == PRECISION_FP32)
        return 0;
    if (arena_allocate(&arena))
        return fail_memory(err, "SAM's weights in bf16", arena.size);
    sam->packed = arena.base;
    pack(sam, &arena);
    return 0;
}

const SamConfig *sam_config(const Sam *sam)
{
    return &sam->weights.config;
}

int sam_check_finite(const Sam *sam, const char *what, const float *values, size_t n, Error *err)
{
    return all_finite(values, n)
               ? 0
               : fail(err, "%s: these weights give an %s with values that are not finite numbers",
                      st_path(sam->weights.file), what);
}

double sam_encoder_multiply_adds(const Sam *sam)
{
    const SamConfig *c = sam_config(sam);
    const double dim = c->embed_dim, side = sam->weights.grid, n = side * side;
    const double patch = c->patch_size, out = c->out_chans, window = c->window_size;
    const double neck = n * out * (dim + 9 * out);
    if (sam->encoder)
        return sam->encoder->multiply_adds(sam->encoder_model) + neck;
    double total = n * dim * 3 * patch * patch + neck;
    for (int i = 0; i < c->depth; i++) {
        const int global = sam->weights.image_encoder.blocks[i].window_size == 0;
        const double keys = global ? n : window * window, places = 2 * (global ? side : window);
        total += n * dim * dim * (4 + 2 * c->mlp_ratio) + n * dim * (2 * keys + places);
    }
    return total;
}

/* ---- memory of the image encoder --------------------------------------------------------------*/

/* The MLP takes this many tokens at a time: all of the official grid. So the hidden layer of a larger grid
 * needs little memory. */
#define MLP_ROWS 4096

struct SamState {
    Arena arena;
    float *pixels;    /* [3][S][S] network input */
    uint8_t *resized; /* [S][S][3] */
    /* of ImageEncoderViT: */
    float *patches;       /* [n][3·patch·patch] */
    float *x, *normed;    /* [n][dim] the residual stream and its normalised copy */
    float *qkv;           /* [n][3·dim] */
    float *attended;      /* [n][dim] attention's output before proj */
    float *branch;        /* [n][dim] the output of attn or MLP, to be added to x */
    float *hidden;        /* [n or MLP_ROWS][hidden] */
    float *rel_resampled; /* [2·size-1][head_dim] */
    float *rel_h, *rel_w; /* of the current block, see RelativePosition. */
    void *scratch;        /* bf16 attention's; float32 never touches it, so it takes no memory. */
    /* of another encoder: */
    void *encoder_state;
    /* of the neck behind either: */
    float *neck1, *neck2; /* [n][out_chans] */
    float *conv_scratch;
};

static void layout_vit(SamState *s, const SamWeights *w)
{
    const SamConfig *c = &w->config;
    const int grid = w->grid, n_heads = c->n_heads, head_dim = c->embed_dim / n_heads;
    const int window = c->window_size;
    const int side = window > grid ? window : grid;
    const size_t n = w->n_positions, dim = c->embed_dim, patch = c->patch_size;
    const size_t hidden = w->image_encoder.blocks[0].lin1.n_out;
    Arena *a = &s->arena;
    s->patches = arena_floats(a, n * 3 * patch * patch);
    s->x = arena_floats(a, n * dim);
    s->normed = arena_floats(a, n * dim);
    s->qkv = arena_floats(a, n * 3 * dim);
    s->attended = arena_floats(a, n * dim);
    s->branch = arena_floats(a, n * dim);
    s->hidden = arena_floats(a, (n < MLP_ROWS ? n : MLP_ROWS) * hidden);
    s->rel_resampled = arena_floats(a, (2 * (size_t)side - 1) * head_dim);
    s->rel_h = arena_floats(a, relative_position_floats(side, head_dim));
    s->rel_w = arena_floats(a, relative_position_floats(side, head_dim));
    const size_t global =
        bf16_attention_scratch(w->n_positions, w->n_positions, n_heads, head_dim, grid, grid);
    const size_t windows = window ? bf16_window_scratch(grid, grid, window, window, n_heads, head_dim) : 0;
    s->scratch = arena_take(a, larger(global, windows));
}

static void layout_state(SamState *s, const Sam *sam)
{
    const SamWeights *w = &sam->weights;
    const int grid = w->grid, channels = w->config.out_chans;
    const size_t size = w->config.image_size;
    Arena *a = &s->arena;
    s->pixels = arena_floats(a, 3 * size * size);
    s->resized = arena_take(a, 3 * size * size);
    if (sam->encoder)
        sam->encoder->layout(sam->encoder_model, s->encoder_state, a);
    else
        layout_vit(s, w);
    s->neck1 = arena_floats(a, w->n_embedding);
    s->neck2 = arena_floats(a, w->n_embedding);
    s->conv_scratch = arena_floats(a, conv2d_scratch(grid, grid, channels, channels, 3, 1, 1));
}

SamState *sam_state_new(const Sam *sam, Error *err)
{
    const size_t encoder_size = sam->encoder ? sam->encoder->state_size : 0;
    SamState *s = calloc(1, sizeof *s);
    if (s && encoder_size)
        s->encoder_state = calloc(1, encoder_size);
    if (!s || (encoder_size && !s->encoder_state)) {
        fail_memory(err, "SAM's encoder", sizeof *s + encoder_size);
        sam_state_free(s);
        return NULL;
    }
    layout_state(s, sam);
    if (arena_allocate(&s->arena)) {
        fail_memory(err, "SAM's encoder", s->arena.size);
        sam_state_free(s);
        return NULL;
    }
    layout_state(s, sam);
    return s;
}

void sam_state_free(SamState *state)
{
    if (!state)
        return;
    free(state->arena.base);
    free(state->encoder_state);
    free(state);
}

size_t sam_state_bytes(const SamState *state)
{
    return state->arena.size;
}

/* ---- Sam.preprocess (sam.py, utils/transforms.py) ---------------------------------------------*/

/* ResizeLongestSide.get_preprocess_shape. A side never becomes 0 [ours: the official code fails there]. */
static void get_preprocess_shape(const SamWeights *w, SamImage *image)
{
    const int oldh = image->original_h, oldw = image->original_w;
    const double ratio = w->config.image_size * 1.0 / (oldh > oldw ? oldh : oldw); /* official: scale */
    const int input_h = (int)(oldh * ratio + 0.5), input_w = (int)(oldw * ratio + 0.5);
    image->input_h = input_h < 1 ? 1 : input_h;
    image->input_w = input_w < 1 ? 1 : input_w;
}

/* rgb [input_h][input_w][3] -> pixels [3][S][S]: (value - mean) / std. Pixels right of and below the picture
 * are zeros. */
static void normalize_and_pad(const SamConfig *c, float *pixels, const uint8_t *rgb, const SamImage *image)
{
    const size_t size = c->image_size, h = image->input_h, w = image->input_w;
    memset(pixels, 0, 3 * size * size * sizeof *pixels);
    for (size_t channel = 0; channel < 3; channel++)
        for (size_t y = 0; y < h; y++) {
            float *row = pixels + (channel * size + y) * size;
            const uint8_t *from = rgb + y * w * 3 + channel;
            for (size_t x = 0; x < w; x++)
                row[x] = (from[3 * x] - c->pixel_mean[channel]) / c->pixel_std[channel];
        }
}

/* 0, or -1 (no memory). */
static int preprocess(const SamWeights *w, SamState *s, SamImage *image, const Picture *picture, Error *err)
{
    image->original_h = picture->height;
    image->original_w = picture->width;
    image->grid = w->grid;
    get_preprocess_shape(w, image);
    if (resize_u8(s->resized, image->input_h, image->input_w, picture->rgb, picture->height, picture->width,
                  3, RESIZE_BILINEAR))
        return fail_memory(err, "resizing a picture", (size_t)picture->height * image->input_w * 3);
    normalize_and_pad(&w->config, s->pixels, s->resized, image);
    return 0;
}

/* ---- ImageEncoderViT (image_encoder.py; after ViTDet, Li et al. 2022) -------------------------*/

/* PatchEmbed: x[token] = proj(patch). */
static void patch_embed(const SamWeights *w, SamState *s)
{
    gather_patches(s->patches, s->pixels, w->config.image_size, w->config.image_size, w->config.patch_size);
    linear_layer(s->x, s->patches, &w->image_encoder.patch_embed, w->n_positions);
}

/* get_rel_pos for queries and keys on the same axis of `size` places. A table [n_rows][head_dim] of another
 * length than 2·size - 1 is resampled linearly first. */
static void get_rel_pos(SamState *s, float *out, const float *table, int n_rows, int size, int head_dim)
{
    const int n_needed = 2 * size - 1;
    if (n_rows != n_needed) {
        interpolate_bilinear(s->rel_resampled, 1, n_needed, table, 1, n_rows, head_dim, 0, 0);
        table = s->rel_resampled;
    }
    relative_position(out, table, size, head_dim);
}

/* Attention.forward with decomposed relative positions: branch = proj(attention(qkv(normed))), in windows or
 * global.
 *
 * Padded window tokens. After norm1, window_partition pads the grid with zero tokens below and on the right,
 * until windows fill it: 64 tokens a side become 5 windows of 14 = 70. Padding takes part in attention as
 * keys and values. Its q, k, v are qkv(0), which is the bias of qkv. So no token is padded here. qkv and proj
 * act on single tokens, so they see only the real ones. window_attention takes each padding token's key and
 * value from qkv.bias. window_unpartition drops the padding's own outputs; they are never computed. */
static void attn(const Sam *sam, SamState *s, const SamBlock *b)
{
    const SamWeights *w = &sam->weights;
    const int dim = w->config.embed_dim, n_heads = w->config.n_heads, head_dim = dim / n_heads;
    const int n = w->n_positions, grid = w->grid, side = b->window_size ? b->window_size : grid;
    const float scale = 1 / sqrt(head_dim);
    const RelativePosition rel = {s->rel_h, s->rel_w, side, side, NULL};
    void *bf16_scratch = sam->packed ? s->scratch : NULL; /* NULL: float32 */
    get_rel_pos(s, s->rel_h, b->rel_pos_h, b->n_rel_h, side, head_dim);
    get_rel_pos(s, s->rel_w, b->rel_pos_w, b->n_rel_w, side, head_dim);
    linear_layer(s->qkv, s->normed, &b->qkv, n);
    if (b->window_size)
        window_attention(s->attended, s->qkv, b->qkv.bias, grid, grid, n_heads, head_dim, scale, &rel,
                         bf16_scratch);
    else
        attention(s->attended, dim, s->qkv, 3 * dim, s->qkv + dim, 3 * dim, s->qkv + 2 * dim, 3 * dim, n, n,
                  n_heads, head_dim, scale, &rel, bf16_scratch);
    linear_layer(s->branch, s->attended, &b->proj, n);
}

/* MLPBlock.forward with GELU: branch = lin2(gelu(lin1(normed))). */
static void mlp_block_gelu(const SamWeights *w, SamState *s, const SamBlock *b)
{
    const size_t dim = w->config.embed_dim;
    for (int row = 0; row < w->n_positions; row += MLP_ROWS) {
        const int rows = w->n_positions - row < MLP_ROWS ? w->n_positions - row : MLP_ROWS;
        linear_layer_gelu(s->hidden, s->normed + row * dim, &b->lin1, rows);
        linear_layer(s->branch + row * dim, s->hidden, &b->lin2, rows);
    }
}

/* Block.forward: x += attn(norm1(x)), x += mlp(norm2(x)). */
static void block_forward(const Sam *sam, SamState *s, const SamBlock *b)
{
    const SamWeights *w = &sam->weights;
    const int dim = w->config.embed_dim, n = w->n_positions;
    layer_norm(s->normed, s->x, b->norm1.weight, b->norm1.bias, n, dim, w->config.encoder_eps);
    attn(sam, s, b);
    add_layer_norm(s->normed, s->x, s->branch, NULL, b->norm2.weight, b->norm2.bias, n, dim,
                   w->config.encoder_eps);
    mlp_block_gelu(w, s, b);
    add(s->x, s->branch, (size_t)n * dim);
}

/* ImageEncoderViT.forward up to the neck: s->pixels -> [n][embed_dim]. NULL: no memory. */
static const float *image_encoder_vit(const Sam *sam, SamState *s, const SamTap *tap, Error *err)
{
    const SamWeights *w = &sam->weights;
    const int n = w->n_positions,
              window = w->config.window_size * w->config.window_size; /* a window's keys */
    if (attention_reserve(n > window ? n : window, w->config.embed_dim / w->config.n_heads, err))
        return NULL;
    const int64_t shape[3] = {w->grid, w->grid, w->config.embed_dim};
    char name[32];
    patch_embed(w, s);
    tap_tensor(tap, "sam.patch_embed", 3, shape, s->x);
    add(s->x, w->image_encoder.pos_embed, (size_t)w->n_positions * w->config.embed_dim);
    for (int i = 0; i < w->config.depth; i++) {
        block_forward(sam, s, &w->image_encoder.blocks[i]);
        snprintf(name, sizeof name, "sam.blocks.%d", i);
        tap_tensor(tap, name, 3, shape, s->x);
    }
    return s->x;
}

/* neck: 1 x 1 convolution, LayerNorm2d, 3 x 3 convolution, LayerNorm2d; x [n][embed_dim] -> embedding
 * [n][C]. */
static void neck(const SamWeights *w, SamState *s, const float *x, float *embedding)
{
    const SamImageEncoder *e = &w->image_encoder;
    const int channels = w->config.out_chans, n = w->n_positions, grid = w->grid;
    linear_layer(s->neck1, x, &e->neck_conv1, n);
    layer_norm(s->neck1, s->neck1, e->neck_norm1.weight, e->neck_norm1.bias, n, channels,
               SAM_LAYER_NORM_2D_EPS);
    conv2d(s->neck2, s->neck1, e->neck_conv2.weight, NULL, grid, grid, channels, channels, 3, 1, 1,
           s->conv_scratch);
    layer_norm(embedding, s->neck2, e->neck_norm2.weight, e->neck_norm2.bias, n, channels,
               SAM_LAYER_NORM_2D_EPS);
}

/* 0, or -1 (no memory). */
static int image_encoder(const Sam *sam, SamState *s, float *embedding, const SamTap *tap, Error *err)
{
    const float *x = sam->encoder ? sam->encoder->forward(sam->encoder_model, s->encoder_state, s->pixels,
                                                          tap ? tap->call : NULL, tap ? tap->user : NULL, err)
                                  : image_encoder_vit(sam, s, tap, err);
    if (!x)
        return -1;
    neck(&sam->weights, s, x, embedding);
    return 0;
}

int sam_encode(const Sam *sam, SamState *state, SamImage *out, const Picture *picture, const SamTap *tap,
               Error *err)
{
    const SamWeights *w = &sam->weights;
    const int size = w->config.image_size, channels = w->config.out_chans;
    memset(out, 0, sizeof *out);
    if (picture->height < 1 || picture->width < 1)
        return fail(err, "SAM: a picture of %d x %d pixels has nothing to segment", picture->width,
                    picture->height);
    if (preprocess(w, state, out, picture, err))
        return -1;
    tap_tensor(tap, "sam.pixels", 3, (int64_t[]){3, size, size}, state->pixels);
    out->embedding = aligned_array(w->n_embedding, sizeof(float));
    if (!out->embedding)
        return fail_memory(err, "an image embedding", w->n_embedding * sizeof(float));
    if (image_encoder(sam, state, out->embedding, tap, err) ||
        tap_planar(tap, "sam.embedding", out->embedding, w->grid, channels, err) ||
        sam_check_finite(sam, "embedding", out->embedding, w->n_embedding, err)) {
        sam_image_free(out);
        return -1;
    }
    return 0;
}

void sam_image_free(SamImage *image)
{
    if (!image)
        return;
    free(image->embedding);
    image->embedding = NULL;
}

/* ---- memory of the prompt encoder and the mask decoder ----------------------------------------*/

/* For one prompt. m: the larger of T and n. */
typedef struct DecoderState {
    Arena arena;
    /* prompt encoder: */
    int n_sparse;
    float *sparse, *dense; /* [n_sparse][C], [n][C] */
    float *mask1, *mask2;  /* [2g][2g][mask_in_chans/4], [g][g][mask_in_chans] of a mask prompt */
    float *mask_scratch;
    /* transformer: */
    int n_tokens;                /* T */
    float *tokens;               /* [T][C] the input tokens: also their positional encoding, query_pe */
    float *queries, *keys;       /* [T][C] tokens, [n][C] image */
    float *queries_pe, *keys_pe; /* [T][C], [n][C] with their positional encodings added */
    float *q, *k, *v, *attended; /* [m][internal_dim] of an attention */
    float *attn_out;             /* [m][C] its output */
    float *mlp_hidden, *mlp_out; /* [T][decoder_mlp_dim], [T][C] */
    /* heads: */
    float *mlp_layers[2];         /* [the widest layer of an MLP]. */
    float *hyper_in;              /* [n_mask_tokens][C/8] */
    float *upscaled1, *upscaled2; /* [2g][2g][C/4], [4g][4g][C/8] */
    float *upscale_scratch;
} DecoderState;

static void layout_decoder(DecoderState *s, const SamWeights *w, size_t max_tokens)
{
    const SamConfig *c = &w->config;
    const int grid = w->grid, mask_chans = c->mask_in_chans, out_chans = c->out_chans;
    const size_t n = w->n_positions, dim = out_chans, m = larger(max_tokens, n);
    const size_t widest = larger(dim, c->iou_head_hidden_dim);
    Arena *a = &s->arena;
    s->sparse = arena_floats(a, max_tokens * dim);
    s->dense = arena_floats(a, n * dim);
    s->mask1 = arena_floats(a, n * mask_chans);
    s->mask2 = arena_floats(a, n * mask_chans);
    s->mask_scratch =
        arena_floats(a, larger(conv2d_scratch(4 * grid, 4 * grid, 1, mask_chans / 4, 2, 2, 0),
                               conv2d_scratch(2 * grid, 2 * grid, mask_chans / 4, mask_chans, 2, 2, 0)));
    s->tokens = arena_floats(a, max_tokens * dim);
    s->queries = arena_floats(a, max_tokens * dim);
    s->keys = arena_floats(a, n * dim);
    s->queries_pe = arena_floats(a, max_tokens * dim);
    s->keys_pe = arena_floats(a, n * dim);
    s->q = arena_floats(a, m * dim);
    s->k = arena_floats(a, m * dim);
    s->v = arena_floats(a, m * dim);
    s->attended = arena_floats(a, m * dim);
    s->attn_out = arena_floats(a, m * dim);
    s->mlp_hidden = arena_floats(a, max_tokens * c->decoder_mlp_dim);
    s->mlp_out = arena_floats(a, max_tokens * dim);
    s->mlp_layers[0] = arena_floats(a, widest);
    s->mlp_layers[1] = arena_floats(a, widest);
    s->hyper_in = arena_floats(a, w->n_mask_tokens * dim / 8);
    s->upscaled1 = arena_floats(a, n * dim);
    s->upscaled2 = arena_floats(a, 2 * n * dim);
    s->upscale_scratch =
        arena_floats(a, larger(conv_transpose2d_scratch(grid, grid, out_chans / 4, 2),
                               conv_transpose2d_scratch(2 * grid, 2 * grid, out_chans / 8, 2)));
}

int sam_max_tokens(const SamWeights *weights, int n_points)
{
    return 1 + weights->n_mask_tokens + n_points + 2;
}

static DecoderState *decoder_state_new(const SamWeights *w, int n_points, Error *err)
{
    DecoderState *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "SAM's decoder", sizeof *s);
        return NULL;
    }
    layout_decoder(s, w, sam_max_tokens(w, n_points));
    if (arena_allocate(&s->arena)) {
        fail_memory(err, "SAM's decoder", s->arena.size);
        free(s);
        return NULL;
    }
    layout_decoder(s, w, sam_max_tokens(w, n_points));
    return s;
}

static void decoder_state_free(DecoderState *s)
{
    if (!s)
        return;
    free(s->arena.base);
    free(s);
}

/* ---- PromptEncoder (prompt_encoder.py) --------------------------------------------------------*/

/* PositionEmbeddingRandom.forward_with_coords of the centre of pixel (x, y) of the original picture. */
static void forward_with_coords(const SamWeights *w, const SamImage *image, float *out, double x, double y)
{
    const double size = w->config.image_size;
    double input_x = x * ((double)image->input_w / image->original_w); /* ResizeLongestSide.apply_coords */
    double input_y = y * ((double)image->input_h / image->original_h);
    pe_encoding(w, out, (input_x + 0.5) / size, (input_y + 0.5) / size);
}

/* _embed_points: returns the number of tokens. */
static int embed_points(const SamWeights *w, const SamImage *image, const SamPrompt *prompt, float *out)
{
    const SamPromptEncoder *e = &w->prompt_encoder;
    const size_t dim = w->config.out_chans;
    const int pad = prompt->n_points > 0 && !prompt->box;
    for (int i = 0; i < prompt->n_points; i++, out += dim) {
        const int label = prompt->labels[i];
        if (label < 0) {
            memcpy(out, e->not_a_point_embed, dim * sizeof *out);
            continue;
        }
        forward_with_coords(w, image, out, prompt->points[2 * i], prompt->points[2 * i + 1]);
        add(out, e->point_embeddings[label], dim);
    }
    if (pad)
        memcpy(out, e->not_a_point_embed, dim * sizeof *out);
    return prompt->n_points + pad;
}

/* _embed_boxes: two tokens, the corners. */
static void embed_boxes(const SamWeights *w, const SamImage *image, const float *box, float *out)
{
    const size_t dim = w->config.out_chans;
    for (int corner = 0; corner < 2; corner++, out += dim) {
        forward_with_coords(w, image, out, box[2 * corner], box[2 * corner + 1]);
        add(out, w->prompt_encoder.point_embeddings[2 + corner], dim);
    }
}

int sam_embed_sparse(const SamWeights *weights, const SamImage *image, const SamPrompt *prompt, float *out)
{
    const int n = embed_points(weights, image, prompt, out);
    if (!prompt->box)
        return n;
    embed_boxes(weights, image, prompt->box, out + (size_t)n * weights->config.out_chans);
    return n + 2;
}

/* _embed_masks: mask [4g][4g] -> s->dense [n][C]. */
static void embed_masks(const SamWeights *w, DecoderState *s, const float *mask)
{
    const SamConv *conv1 = &w->prompt_encoder.mask_downscaling.conv1;
    const SamConv *conv2 = &w->prompt_encoder.mask_downscaling.conv2;
    const Norm *norm1 = &w->prompt_encoder.mask_downscaling.norm1;
    const Norm *norm2 = &w->prompt_encoder.mask_downscaling.norm2;
    const int g = w->grid, n = w->n_positions, m = w->config.mask_in_chans;
    const size_t n_floats = (size_t)n * m;
    conv2d(s->mask1, mask, conv1->weight, conv1->bias, 4 * g, 4 * g, 1, m / 4, 2, 2, 0, s->mask_scratch);
    layer_norm(s->mask1, s->mask1, norm1->weight, norm1->bias, 4 * n, m / 4, SAM_LAYER_NORM_2D_EPS);
    gelu(s->mask1, n_floats);
    conv2d(s->mask2, s->mask1, conv2->weight, conv2->bias, 2 * g, 2 * g, m / 4, m, 2, 2, 0, s->mask_scratch);
    layer_norm(s->mask2, s->mask2, norm2->weight, norm2->bias, n, m, SAM_LAYER_NORM_2D_EPS);
    gelu(s->mask2, n_floats);
    linear_layer(s->dense, s->mask2, &w->prompt_encoder.mask_downscaling.conv3, n);
}

/* PromptEncoder.forward: s->sparse [n_sparse][C], s->dense [n][C]. */
static void prompt_encoder(const SamWeights *w, DecoderState *s, const SamImage *image,
                           const SamPrompt *prompt)
{
    const size_t dim = w->config.out_chans;
    s->n_sparse = sam_embed_sparse(w, image, prompt, s->sparse);
    if (prompt->mask)
        embed_masks(w, s, prompt->mask);
    else
        for (int i = 0; i < w->n_positions; i++)
            memcpy(s->dense + i * dim, w->prompt_encoder.no_mask_embed, dim * sizeof(float));
}

/* ---- TwoWayTransformer (transformer.py) -------------------------------------------------------*/

void sam_transformer_norm(const SamWeights *weights, float *x, const Norm *norm, int rows)
{
    layer_norm(x, x, norm->weight, norm->bias, rows, weights->config.out_chans, weights->config.decoder_eps);
}

void sam_final_norm(const SamWeights *weights, float *x, int rows)
{
    const Norm *norm = &weights->mask_decoder.transformer.norm_final_attn;
    layer_norm(x, x, norm->weight, norm->bias, rows, weights->config.out_chans, SAM_FINAL_NORM_EPS);
}

float sam_attention_scale(const SamWeights *weights, const SamAttention *a)
{
    return 1 / sqrt(a->internal_dim / weights->config.decoder_heads);
}

/* The memory of a prompt's attentions: their keys are the image's positions, or the tokens. 0 / -1. */
static int reserve_decoder(const SamWeights *w, const SamPrompt *prompt, Error *err)
{
    const int n_tokens = sam_max_tokens(w, prompt->n_points);
    return attention_reserve(w->n_positions > n_tokens ? w->n_positions : n_tokens, w->config.out_chans, err);
}

/* Attention.forward: s->attn_out [n_q][C], of q [n_q][C] to k, v [n_k][C]. */
static void attention_forward(const SamWeights *w, DecoderState *s, const SamAttention *a, const float *q,
                              int n_q, const float *k, const float *v, int n_k)
{
    const int n_heads = w->config.decoder_heads, dim = a->internal_dim, head_dim = dim / n_heads;
    linear_layer(s->q, q, &a->q_proj, n_q);
    linear_layer(s->k, k, &a->k_proj, n_k);
    linear_layer(s->v, v, &a->v_proj, n_k);
    attention(s->attended, dim, s->q, dim, s->k, dim, s->v, dim, n_q, n_k, n_heads, head_dim,
              sam_attention_scale(w, a), NULL, NULL);
    linear_layer(s->attn_out, s->attended, &a->out_proj, n_q);
}

/* MLPBlock.forward with ReLU: s->mlp_out [T][C]. */
static void mlp_block_relu(DecoderState *s, const SamTwoWayAttentionBlock *b)
{
    linear_layer(s->mlp_hidden, s->queries, &b->lin1, s->n_tokens);
    relu(s->mlp_hidden, (size_t)s->n_tokens * b->lin1.n_out);
    linear_layer(s->mlp_out, s->mlp_hidden, &b->lin2, s->n_tokens);
}

/* TwoWayAttentionBlock.forward: queries [T][C] and keys [n][C] in place. The official query_pe is s->tokens, its
 * key_pe [n][C] is key_pe. The official q and k are queries_pe and keys_pe here. */
static void two_way_attention_block(const SamWeights *w, DecoderState *s, const SamTwoWayAttentionBlock *b,
                                    const float *key_pe, int skip_first_layer_pe)
{
    const int T = s->n_tokens, n = w->n_positions;
    const size_t n_queries = (size_t)T * w->config.out_chans, n_keys = w->n_embedding;

    /* self attention block. */
    if (skip_first_layer_pe) {
        attention_forward(w, s, &b->self_attn, s->queries, T, s->queries, s->queries, T);
        memcpy(s->queries, s->attn_out, n_queries * sizeof(float));
    } else {
        add_to(s->queries_pe, s->queries, s->tokens, n_queries);
        attention_forward(w, s, &b->self_attn, s->queries_pe, T, s->queries_pe, s->queries, T);
        add(s->queries, s->attn_out, n_queries);
    }
    sam_transformer_norm(w, s->queries, &b->norm1, T);

    /* cross attention block, tokens attending to image embedding. */
    add_to(s->queries_pe, s->queries, s->tokens, n_queries);
    add_to(s->keys_pe, s->keys, key_pe, n_keys);
    attention_forward(w, s, &b->cross_attn_token_to_image, s->queries_pe, T, s->keys_pe, s->keys, n);
    add(s->queries, s->attn_out, n_queries);
    sam_transformer_norm(w, s->queries, &b->norm2, T);

    /* MLP block. */
    mlp_block_relu(s, b);
    add(s->queries, s->mlp_out, n_queries);
    sam_transformer_norm(w, s->queries, &b->norm3, T);

    /* cross attention block, image embedding attending to tokens; keys and keys_pe have not changed. */
    add_to(s->queries_pe, s->queries, s->tokens, n_queries);
    attention_forward(w, s, &b->cross_attn_image_to_token, s->keys_pe, n, s->queries_pe, s->queries, T);
    add(s->keys, s->attn_out, n_keys);
    sam_transformer_norm(w, s->keys, &b->norm4, n);
}

/* TwoWayTransformer.forward: s->queries [T][C] from s->tokens. s->keys [n][C] holds src at first, the result
 * at the end. */
static void two_way_transformer(const Sam *sam, DecoderState *s)
{
    const SamWeights *w = &sam->weights;
    const size_t n_queries = (size_t)s->n_tokens * w->config.out_chans;
    memcpy(s->queries, s->tokens, n_queries * sizeof(float));
    for (int i = 0; i < w->config.decoder_depth; i++)
        two_way_attention_block(w, s, &w->mask_decoder.transformer.layers[i], sam->image_pe, i == 0);
    /* the final attention layer from the points to the image. */
    add_to(s->queries_pe, s->queries, s->tokens, n_queries);
    add_to(s->keys_pe, s->keys, sam->image_pe, w->n_embedding);
    attention_forward(w, s, &w->mask_decoder.transformer.final_attn_token_to_image, s->queries_pe,
                      s->n_tokens, s->keys_pe, s->keys, w->n_positions);
    add(s->queries, s->attn_out, n_queries);
    sam_final_norm(w, s->queries, s->n_tokens);
}

/* ---- MaskDecoder (mask_decoder.py) ------------------------------------------------------------*/

/* MLP.forward of one token x: ReLU between the layers. */
static void mlp(DecoderState *s, const Linear *layers, int n_layers, float *out, const float *x)
{
    for (int i = 0; i < n_layers - 1; i++) {
        float *y = s->mlp_layers[i % 2];
        linear_layer(y, x, &layers[i], 1);
        relu(y, layers[i].n_out);
        x = y;
    }
    linear_layer(out, x, &layers[n_layers - 1], 1);
}

void sam_output_tokens(const SamWeights *weights, float *out)
{
    const size_t dim = weights->config.out_chans;
    memcpy(out, weights->mask_decoder.iou_token, dim * sizeof *out);
    memcpy(out + dim, weights->mask_decoder.mask_tokens, weights->n_mask_tokens * dim * sizeof *out);
}

/* predict_masks, the transformer: tokens = output_tokens, sparse; src = embedding + dense. The results are hs
 * in s->queries and src in s->keys. */
static void run_transformer(const Sam *sam, DecoderState *s, const SamImage *image)
{
    const SamWeights *w = &sam->weights;
    const size_t dim = w->config.out_chans;
    const int n_output = 1 + w->n_mask_tokens;
    s->n_tokens = n_output + s->n_sparse;
    sam_output_tokens(w, s->tokens);
    memcpy(s->tokens + n_output * dim, s->sparse, s->n_sparse * dim * sizeof(float));
    add_to(s->keys, image->embedding, s->dense, w->n_embedding);
    two_way_transformer(sam, s);
}

/* output_upscaling: src [g][g][C] -> s->upscaled2 [4g][4g][C/8]. */
static void output_upscaling(const SamWeights *w, DecoderState *s, const float *src)
{
    const SamConv *conv1 = &w->mask_decoder.output_upscaling.conv1;
    const SamConv *conv2 = &w->mask_decoder.output_upscaling.conv2;
    const Norm *norm2d = &w->mask_decoder.output_upscaling.norm;
    const int g = w->grid, n = w->n_positions, dim = w->config.out_chans;
    conv_transpose2d(s->upscaled1, src, conv1->weight, conv1->bias, g, g, dim, dim / 4, 2,
                     s->upscale_scratch);
    layer_norm(s->upscaled1, s->upscaled1, norm2d->weight, norm2d->bias, 4 * n, dim / 4,
               SAM_LAYER_NORM_2D_EPS);
    gelu(s->upscaled1, w->n_embedding);
    conv_transpose2d(s->upscaled2, s->upscaled1, conv2->weight, conv2->bias, 2 * g, 2 * g, dim / 4, dim / 8,
                     2, s->upscale_scratch);
    gelu(s->upscaled2, 2 * w->n_embedding);
}

/* predict_masks, the wanted masks: masks [n_masks][4g][4g] = hyper_in · upscaled embedding. hs [T][C] and src
 * [n][C] are the transformer's results. mask_tokens [n_masks] are the wanted ones. */
static void make_masks(const SamWeights *w, DecoderState *s, const float *hs, const float *src,
                       const int *mask_tokens, int n_masks, float *masks)
{
    const int dim = w->config.out_chans, n_pixels = 16 * w->n_positions;
    const float *mask_tokens_out = hs + dim; /* behind the IoU token */
    output_upscaling(w, s, src);
    for (int i = 0; i < n_masks; i++)
        mlp(s, w->mask_decoder.output_hypernetworks_mlps[mask_tokens[i]], 3, s->hyper_in + i * (dim / 8),
            mask_tokens_out + (ptrdiff_t)mask_tokens[i] * dim);
    matmul_nt(masks, n_pixels, s->hyper_in, dim / 8, s->upscaled2, dim / 8, n_masks, n_pixels, dim / 8, 0);
}

/* predict_masks, the IoU: iou_pred [n_mask_tokens] of the IoU token, which is the first of hs. */
static void predict_iou(const SamWeights *w, DecoderState *s, const float *hs, float *iou_pred)
{
    mlp(s, w->mask_decoder.iou_prediction_head, w->config.iou_head_depth, iou_pred, hs);
}

/* predict_masks in the official order. It upscales only the wanted masks; iou_pred [n_mask_tokens] is of
 * all. */
static void predict_masks(const Sam *sam, DecoderState *s, const SamImage *image, const int *mask_tokens,
                          int n_masks, float *masks, float *iou_pred)
{
    const SamWeights *w = &sam->weights;
    run_transformer(sam, s, image);
    make_masks(w, s, s->queries, s->keys, mask_tokens, n_masks, masks);
    predict_iou(w, s, s->queries, iou_pred);
}

/* ---- one prompt: SamPredictor.predict_torch ---------------------------------------------------*/

static int check_prompt(const SamPrompt *prompt, Error *err)
{
    if (prompt->n_points < 0 || prompt->n_points > 4096)
        return fail(err, "SAM: a prompt of %d points, expected 0 to 4096", prompt->n_points);
    for (int i = 0; i < prompt->n_points; i++) {
        if (prompt->labels[i] < -1 || prompt->labels[i] > 1)
            return fail(err,
                        "SAM: point %d has label %d, expected 1 (foreground), 0 (background) or -1 (none)", i,
                        prompt->labels[i]);
        if (!isfinite(prompt->points[2 * i]) || !isfinite(prompt->points[2 * i + 1]))
            return fail(err, "SAM: point %d is not finite", i);
    }
    for (int i = 0; prompt->box && i < 4; i++)
        if (!isfinite(prompt->box[i]))
            return fail(err, "SAM: the box is not finite");
    return 0;
}

/* The prompt encoder's outputs as the official one returns them. 0, or -1 (no memory). */
static int tap_prompt(const SamWeights *w, const DecoderState *s, const SamTap *tap, Error *err)
{
    const int dim = w->config.out_chans;
    tap_tensor(tap, "sam.sparse", 2, (int64_t[]){s->n_sparse, dim}, s->sparse);
    return tap_planar(tap, "sam.dense", s->dense, w->grid, dim, err);
}

int sam_decode(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask_output,
               float *low_res, float *iou, const SamTap *tap, Error *err)
{
    const SamWeights *w = &sam->weights;
    const int first = multimask_output ? 1 : 0, n_out = multimask_output ? w->config.n_multimask : 1;
    const int side = 4 * w->grid;
    float iou_pred[SAM_MAX_MASK_TOKENS];
    int mask_tokens[SAM_MAX_MASK_TOKENS];
    if (check_prompt(prompt, err))
        return -1;
    DecoderState *s = decoder_state_new(w, prompt->n_points, err);
    if (!s)
        return -1;
    prompt_encoder(w, s, image, prompt);
    if (reserve_decoder(w, prompt, err) || tap_prompt(w, s, tap, err)) {
        decoder_state_free(s);
        return -1;
    }
    for (int i = 0; i < n_out; i++)
        mask_tokens[i] = first + i;
    predict_masks(sam, s, image, mask_tokens, n_out, low_res, iou_pred);
    memcpy(iou, iou_pred + first, n_out * sizeof *iou);
    tap_tensor(tap, "sam.low_res", 3, (int64_t[]){n_out, side, side}, low_res);
    tap_tensor(tap, "sam.iou_predictions", 1, (int64_t[]){n_out}, iou);
    decoder_state_free(s);
    return 0;
}

/* ---- Sam.postprocess_masks (sam.py) -----------------------------------------------------------*/

/* The logits at the network's size: with padding [S][S], then without [input_h][input_w]. */
typedef struct InputLogits {
    float *padded, *cropped;
} InputLogits;

static void input_logits_free(InputLogits *l)
{
    free(l->padded);
    free(l->cropped);
}

/* 0, or -1 (no memory). */
static int input_logits_new(InputLogits *l, const Sam *sam, const SamImage *image, Error *err)
{
    const size_t size = sam_config(sam)->image_size, input_h = image->input_h;
    l->padded = aligned_array(size * size, sizeof(float));
    l->cropped = aligned_array(input_h * image->input_w, sizeof(float));
    if (l->padded && l->cropped)
        return 0;
    input_logits_free(l);
    *l = (InputLogits){NULL, NULL};
    return fail_memory(err, "a mask's logits", (size + input_h) * size * sizeof(float));
}

/* low_res [4g][4g] -> padded -> cropped -> logits [original_h][original_w]. */
static void postprocess_masks(const SamWeights *w, const SamImage *image, const float *low_res,
                              const InputLogits *l, float *logits)
{
    const int size = w->config.image_size, side = 4 * w->grid, ih = image->input_h, iw = image->input_w;
    interpolate_bilinear(l->padded, size, size, low_res, side, side, 1, 0, 0);
    for (ptrdiff_t y = 0; y < ih; y++)
        memcpy(l->cropped + y * iw, l->padded + y * size, iw * sizeof(float));
    interpolate_bilinear(logits, image->original_h, image->original_w, l->cropped, ih, iw, 1, 0, 0);
}

int sam_postprocess_masks(const Sam *sam, const SamImage *image, const float *low_res, float *logits,
                          Error *err)
{
    InputLogits l;
    if (input_logits_new(&l, sam, image, err))
        return -1;
    postprocess_masks(&sam->weights, image, low_res, &l, logits);
    input_logits_free(&l);
    return 0;
}

/* ---- many prompts on one image: the plain form -----------------------------------------------*/

struct SamDecoder {
    const Sam *sam;
    const SamImage *image;
};

struct SamScratch {
    DecoderState *state; /* prompts go through it one after the other. */
    int max_prompts;
    size_t n_hs;     /* floats of one prompt's hs. */
    float *hs, *src; /* [max_prompts][T][C], [max_prompts][n][C]: the transformer's outputs. */
};

SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err)
{
    SamDecoder *d = malloc(sizeof *d);
    if (d)
        *d = (SamDecoder){sam, image};
    else
        fail_memory(err, "an image's decoder", sizeof *d);
    return d;
}

void sam_decoder_free(SamDecoder *decoder)
{
    free(decoder);
}

SamScratch *sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err)
{
    const SamWeights *w = &sam->weights;
    SamScratch *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "SAM's decoder", sizeof *s);
        return NULL;
    }
    s->max_prompts = max_prompts < 1 ? 1 : max_prompts < SAM_TOGETHER ? max_prompts : SAM_TOGETHER;
    s->n_hs = (size_t)sam_max_tokens(w, max_points) * w->config.out_chans;
    const size_t n_prompts = s->max_prompts;
    s->state = decoder_state_new(w, max_points, err);
    s->hs = aligned_array(n_prompts * s->n_hs, sizeof(float));
    s->src = aligned_array(n_prompts * w->n_embedding, sizeof(float));
    if (s->state && s->hs && s->src)
        return s;
    if (s->state)
        fail_memory(err, "SAM's decoder", n_prompts * (s->n_hs + w->n_embedding) * sizeof(float));
    sam_scratch_free(s);
    return NULL;
}

int sam_scratch_prompts(const SamScratch *scratch)
{
    return scratch->max_prompts;
}

void sam_scratch_free(SamScratch *scratch)
{
    if (!scratch)
        return;
    decoder_state_free(scratch->state);
    free(scratch->hs);
    free(scratch->src);
    free(scratch);
}

/* The official code reads the IoU last. Here the caller chooses by it which masks are made. */
int sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                       int n_prompts, float *iou, Error *err)
{
    const SamWeights *w = &decoder->sam->weights;
    DecoderState *s = scratch->state;
    float *hs = scratch->hs, *src = scratch->src;
    if (n_prompts > 0 && reserve_decoder(w, prompts, err)) /* all have as many points. */
        return -1;
    for (int i = 0; i < n_prompts; i++, hs += scratch->n_hs, src += w->n_embedding, iou += w->n_mask_tokens) {
        prompt_encoder(w, s, decoder->image, &prompts[i]);
        run_transformer(decoder->sam, s, decoder->image);
        predict_iou(w, s, s->queries, iou);
        memcpy(hs, s->queries, (size_t)s->n_tokens * w->config.out_chans * sizeof *hs);
        memcpy(src, s->keys, w->n_embedding * sizeof *src);
    }
    return 0;
}

void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                      int n_tokens, float *low_res)
{
    const SamWeights *w = &decoder->sam->weights;
    const float *hs = scratch->hs + prompt * scratch->n_hs;
    const float *src = scratch->src + prompt * w->n_embedding;
    make_masks(w, scratch->state, hs, src, tokens, n_tokens, low_res);
}

struct SamRows {
    const Sam *sam;
    const SamImage *image;
    InputLogits input;
    float *logits; /* [original_h][original_w] */
    int next;      /* the row that sam_rows_next gives next */
    SamRun whole_row;
};

SamRows *sam_rows_new(const Sam *sam, const SamImage *image, Error *err)
{
    const size_t width = image->original_w, n_pixels = image->original_h * width;
    SamRows *r = calloc(1, sizeof *r);
    if (!r) {
        fail_memory(err, "mask rows", sizeof *r);
        return NULL;
    }
    *r = (SamRows){.sam = sam, .image = image, .whole_row = {0, image->original_w, SAM_BETWEEN}};
    r->logits = aligned_array(n_pixels, sizeof(float));
    if (!r->logits)
        fail_memory(err, "mask rows", n_pixels * sizeof(float));
    if (!r->logits || input_logits_new(&r->input, sam, image, err)) {
        sam_rows_free(r);
        return NULL;
    }
    return r;
}

void sam_rows_free(SamRows *rows)
{
    if (!rows)
        return;
    input_logits_free(&rows->input);
    free(rows->logits);
    free(rows);
}

/* All logits are computed, so that no limit is needed. */
void sam_rows_begin(SamRows *rows, const float *low_res, const float *limits, int n)
{
    (void)limits, (void)n;
    rows->next = 0;
    postprocess_masks(&rows->sam->weights, rows->image, low_res, &rows->input, rows->logits);
}

const float *sam_rows_next(SamRows *rows, const SamRun **runs, int *n_runs)
{
    *runs = &rows->whole_row;
    *n_runs = 1;
    return rows->logits + (size_t)rows->next++ * rows->image->original_w;
}
