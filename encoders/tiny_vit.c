/* tiny_vit.c - TinyViT (Wu et al. 2022), a ViT that begins as a convolutional network. MobileSAM has it in
 * the place of SAM's image encoder (ChaoningZhang/MobileSAM, modeling/tiny_vit_sam.py; Zhang et al. 2023).
 *
 *   pixels [3][S][S] -> PatchEmbed: two 3x3 convolutions of stride 2    [S/4][S/4][dim 0]
 *     -> layer 0 (ConvLayer): MBConvs          -> PatchMerging          [S/8][S/8][dim 1]
 *     -> layer 1 (BasicLayer): TinyViTBlocks   -> PatchMerging          [S/16][S/16][dim 2]
 *     -> layer 2 (BasicLayer): TinyViTBlocks   -> PatchMerging, stride 1 [S/16][S/16][dim 3]
 *     -> layer 3 (BasicLayer): TinyViTBlocks                            -> SAM's neck, in sam.c
 *
 * An MBConv is a pointwise, a depthwise 3x3 and a pointwise convolution with GELU between them, and a
 * shortcut. PatchMerging is the same without the shortcut, and its depthwise convolution has the stride. A
 * TinyViTBlock is attention in windows, a depthwise convolution on the residual stream itself (local_conv),
 * and an MLP.
 *
 * Every convolution has a batch norm behind it (Conv2d_BN). Its statistics are constants after training, so
 * both together are one affine map. They are folded into one convolution when the model is opened. Everything
 * is channel-last, and a pointwise convolution is a Linear. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "encoders/encoder.h"
#include "io/fail.h"
#include "load/sam_load.h"

#define N_LAYERS   4
#define PATCH_SIZE 16    /* pixels a side of an output position. */
#define MAX_DEPTH  16    /* blocks of a layer. */
#define MAX_DIM    4096  /* channels of the stem or of a layer. */
#define MAX_HIDDEN 8192  /* channels of an MBConv's middle, or of an MLP. */
#define STRIP_ROWS 16    /* of an MBConv's output, so that its hidden channels stay in the cache. */
#define MLP_ROWS   2048  /* tokens at a time, for the same reason. */
#define BATCH_EPS  1e-5f /* BatchNorm2d's and LayerNorm's default */
#define NORM_EPS   1e-5f

/* A 3x3 convolution: weight [c_out][c_in][3][3], or of a depthwise one [3][3][c]. */
typedef struct Conv {
    const float *weight, *bias;
} Conv;

/* MBConv and PatchMerging: their tensors have the same names. */
typedef struct MBConv {
    Linear conv1, conv3; /* pointwise */
    Conv conv2;          /* depthwise */
    int stride;
} MBConv;

typedef struct TinyViTBlock {
    Norm attn_norm, mlp_norm;
    Linear qkv, proj, fc1, fc2;
    const float *attention_biases; /* see distance_bias */
    const float *pad;              /* [3·dim] qkv of a token of zeros. */
    Conv local_conv;               /* depthwise */
} TinyViTBlock;

/* ConvLayer (layer 0) or BasicLayer, on a map of size x size. */
typedef struct Layer {
    int size, dim, depth;
    int n_heads, window_size;       /* of layers 1 to 3. */
    MBConv mb_convs[MAX_DEPTH];     /* of layer 0 */
    TinyViTBlock blocks[MAX_DEPTH]; /* of layers 1 to 3. */
    MBConv downsample;              /* PatchMerging; the last layer has none. */
} Layer;

typedef struct TinyVit {
    int image_size, stem_dim;
    Conv patch_embed1, patch_embed2; /* seq.0, seq.2 */
    Layer layers[N_LAYERS];
    float *derived; /* arrays computed from the weights. */
} TinyVit;

/* Activations. The two maps take turns: one is the residual stream, the other the next one. */
typedef struct TinyVitState {
    float *maps[2];                      /* [size][size][dim] of any layer. */
    float *interleaved, *stem, *scratch; /* [S][S][3], [S/2][S/2][stem_dim], conv2d's */
    float *strips[2];                    /* rows of an MBConv's hidden channels, before and after conv2 */
    float *normed, *attended, *branch;   /* [n][dim] */
    float *qkv;                          /* [n][3·dim] */
    float *hidden;                       /* of some rows of an MLP. */
} TinyVitState;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- weights ------------------------------------------------------------------------------------------*/

/* Reads twice. The first time the arena only counts, and the derived arrays are NULL. A wrong tensor is
 * remembered, so that the functions below read as a list of names and shapes. */
typedef struct Reader {
    Safetensors *st;
    Error *err;
    Arena arena;
    int failed;
} Reader;

__attribute__((format(printf, 4, 5))) static const float *tensor(Reader *r, int n_dims, const int64_t *shape,
                                                                 const char *format, ...)
{
    char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (r->failed)
        return NULL; /* keep the first sentence. */
    const float *data = st_weight(r->st, r->err, n_dims, shape, "image_encoder.%s", name);
    r->failed |= !data;
    return data;
}

static Norm norm(Reader *r, int dim, const char *name)
{
    return (Norm){tensor(r, 1, (int64_t[]){dim}, "%s.weight", name),
                  tensor(r, 1, (int64_t[]){dim}, "%s.bias", name)};
}

static Linear layer(Reader *r, int n_out, int n_in, const char *name)
{
    return (Linear){.weight = tensor(r, 2, (int64_t[]){n_out, n_in}, "%s.weight", name),
                    .bias = tensor(r, 1, (int64_t[]){n_out}, "%s.bias", name),
                    .n_out = n_out,
                    .n_in = n_in};
}

/* Conv2d_BN: NAME.c, then NAME.bn, which is γ·(c(x) - mean)/√(var + ε) + β. */
typedef struct Conv2dBn {
    const float *c; /* [n_out][n_in·kernel²] */
    const float *gamma, *beta, *mean, *var;
} Conv2dBn;

static Conv2dBn read_conv2d_bn(Reader *r, int n_out, int n_in, int kernel, const char *name)
{
    const int64_t channels[1] = {n_out};
    Conv2dBn official = {.c = tensor(r, 4, (int64_t[]){n_out, n_in, kernel, kernel}, "%s.c.weight", name),
                         .gamma = tensor(r, 1, channels, "%s.bn.weight", name),
                         .beta = tensor(r, 1, channels, "%s.bn.bias", name),
                         .mean = tensor(r, 1, channels, "%s.bn.running_mean", name),
                         .var = tensor(r, 1, channels, "%s.bn.running_var", name)};
    for (int o = 0; !r->failed && o < n_out; o++)
        if (!(official.var[o] >= 0))
            r->failed =
                !!fail(r->err, "%s: tensor image_encoder.%s.bn.running_var holds %g, expected a variance",
                       st_path(r->st), name, (double)official.var[o]);
    return official;
}

/* The batch norm's factor of output o of the convolution. */
static double batch_factor(const Conv2dBn *official, size_t o)
{
    return official->gamma[o] / sqrt((double)official->var[o] + (double)BATCH_EPS);
}

static void fold_bias(float *bias, const Conv2dBn *official, size_t n_out)
{
    for (size_t o = 0; o < n_out; o++)
        bias[o] = (float)(official->beta[o] - batch_factor(official, o) * official->mean[o]);
}

/* Convolution and batch norm as one convolution in the official layout [n_out][n_in][kernel][kernel]. */
static Conv conv_bn(Reader *r, int n_out, int n_in, int kernel, const char *name)
{
    const size_t channels = n_out, fan = (size_t)(n_in * kernel * kernel);
    const Conv2dBn official = read_conv2d_bn(r, n_out, n_in, kernel, name);
    float *weight = arena_floats(&r->arena, channels * fan), *bias = arena_floats(&r->arena, channels);
    if (r->failed || !weight)
        return (Conv){NULL, NULL};
    for (size_t o = 0; o < channels; o++)
        for (size_t i = 0; i < fan; i++)
            weight[o * fan + i] = (float)(batch_factor(&official, o) * official.c[o * fan + i]);
    fold_bias(bias, &official, channels);
    return (Conv){weight, bias};
}

/* The same of a depthwise 3x3 convolution, as [3][3][c] for depthwise_conv3x3. */
static Conv depthwise_conv_bn(Reader *r, int n_channels, const char *name)
{
    const size_t channels = n_channels;
    const Conv2dBn official = read_conv2d_bn(r, n_channels, 1, 3, name);
    float *weight = arena_floats(&r->arena, 9 * channels), *bias = arena_floats(&r->arena, channels);
    if (r->failed || !weight)
        return (Conv){NULL, NULL};
    for (size_t o = 0; o < channels; o++)
        for (size_t i = 0; i < 9; i++)
            weight[i * channels + o] = (float)(batch_factor(&official, o) * official.c[9 * o + i]);
    fold_bias(bias, &official, channels);
    return (Conv){weight, bias};
}

static int bad_shape(Safetensors *st, const char *name, const char *expected, Error *err)
{
    return fail(err, "%s: tensor %s is %s, expected %s", st_path(st), name,
                st_find(st, name) ? "of another shape" : "missing", expected);
}

/* The first dimension of a tensor, from 1 to `most`. 0 / -1. */
static int read_dim(Safetensors *st, const char *name, int most, const char *unit, int *out, Error *err)
{
    *out = sam_dim_of(st, name, 0);
    if (*out >= 1 && *out <= most)
        return 0;
    char expected[32];
    snprintf(expected, sizeof expected, "1 to %d %s", most, unit);
    return bad_shape(st, name, expected, err);
}

/* The rows of a weight, where no other shape gives this number; 0 after a failure. */
static int hidden_of(Reader *r, const char *layer_name)
{
    char name[128];
    int hidden = 0;
    snprintf(name, sizeof name, "image_encoder.%s.weight", layer_name);
    if (!r->failed)
        r->failed = !!read_dim(r->st, name, MAX_HIDDEN, "rows", &hidden, r->err);
    return r->failed ? 0 : hidden;
}

static Linear pointwise(Reader *r, int n_out, int n_in, const char *name)
{
    const Conv c = conv_bn(r, n_out, n_in, 1, name);
    return (Linear){c.weight, c.bias, NULL, n_out, n_in};
}

static MBConv mb_conv(Reader *r, int n_in, int hidden, int n_out, int stride, const char *name)
{
    char conv[96];
    MBConv b = {.stride = stride};
    snprintf(conv, sizeof conv, "%s.conv1", name);
    b.conv1 = pointwise(r, hidden, n_in, conv);
    snprintf(conv, sizeof conv, "%s.conv2", name);
    b.conv2 = depthwise_conv_bn(r, hidden, conv);
    snprintf(conv, sizeof conv, "%s.conv3", name);
    b.conv3 = pointwise(r, n_out, hidden, conv);
    return b;
}

/* The official qkv is [head][q, k, v][head_dim]; ours is [q, k, v][head][head_dim], for window_attention. A
 * padding token is zero before its norm. So its qkv is that of the norm's β. */
static void read_qkv(Reader *r, TinyViTBlock *b, int dim, int n_heads, const char *name)
{
    const Linear official = layer(r, 3 * dim, dim, name);
    float *weight = arena_floats(&r->arena, 3 * (size_t)dim * dim);
    float *bias = arena_floats(&r->arena, 3 * (size_t)dim), *pad = arena_floats(&r->arena, 3 * (size_t)dim);
    b->qkv = (Linear){weight, bias, NULL, 3 * dim, dim};
    b->pad = pad;
    if (r->failed || !weight)
        return;
    const int head_dim = dim / n_heads;
    for (int row = 0; row < 3 * dim; row++) {
        const int part = row / dim, head = row % dim / head_dim, d = row % head_dim;
        const int from = (3 * head + part) * head_dim + d;
        memcpy(weight + (size_t)row * dim, official.weight + (size_t)from * dim,
               (size_t)dim * sizeof *weight);
        bias[row] = official.bias[from];
    }
    linear(pad, b->attn_norm.bias, weight, bias, 1, 3 * dim, dim);
}

static void read_block(Reader *r, TinyViTBlock *b, const Layer *s, const char *name)
{
    const int dim = s->dim, n_biases = s->window_size * s->window_size;
    char part[96];
    snprintf(part, sizeof part, "%s.attn.norm", name);
    b->attn_norm = norm(r, dim, part);
    const float *biases = tensor(r, 2, (int64_t[]){s->n_heads, n_biases}, "%s.attn.attention_biases", name);
    float *laid_out =
        arena_floats(&r->arena, distance_bias_floats(s->n_heads, s->window_size, s->window_size));
    if (biases && laid_out)
        distance_bias(laid_out, biases, s->n_heads, s->window_size, s->window_size);
    b->attention_biases = laid_out;
    snprintf(part, sizeof part, "%s.attn.qkv", name);
    read_qkv(r, b, dim, s->n_heads, part);
    snprintf(part, sizeof part, "%s.attn.proj", name);
    b->proj = layer(r, dim, dim, part);
    snprintf(part, sizeof part, "%s.local_conv", name);
    b->local_conv = depthwise_conv_bn(r, dim, part);
    snprintf(part, sizeof part, "%s.mlp.norm", name);
    b->mlp_norm = norm(r, dim, part);
    snprintf(part, sizeof part, "%s.mlp.fc1", name);
    const int hidden = hidden_of(r, part);
    b->fc1 = layer(r, hidden, dim, part);
    snprintf(part, sizeof part, "%s.mlp.fc2", name);
    b->fc2 = layer(r, dim, hidden, part);
}

static void read_weights(Reader *r, TinyVit *vit)
{
    char name[64], first[80];
    Layer *s = vit->layers;
    vit->patch_embed1 = conv_bn(r, vit->stem_dim, 3, 3, "patch_embed.seq.0");
    vit->patch_embed2 = conv_bn(r, s->dim, vit->stem_dim, 3, "patch_embed.seq.2");
    for (int i = 0; i < s->depth; i++) {
        snprintf(name, sizeof name, "layers.0.blocks.%d", i);
        snprintf(first, sizeof first, "%s.conv1.c", name);
        s->mb_convs[i] = mb_conv(r, s->dim, hidden_of(r, first), s->dim, 1, name);
    }
    for (int l = 0; l < N_LAYERS; l++, s++) {
        for (int i = 0; l > 0 && i < s->depth; i++) {
            snprintf(name, sizeof name, "layers.%d.blocks.%d", l, i);
            read_block(r, &s->blocks[i], s, name);
        }
        snprintf(name, sizeof name, "layers.%d.downsample", l);
        if (l + 1 < N_LAYERS)
            s->downsample = mb_conv(r, s->dim, s[1].dim, s[1].dim, s->size / s[1].size, name);
    }
}

/* ---- sizes --------------------------------------------------------------------------------------------*/

/* Depth, heads and window of layer i. */
static int read_layer(Safetensors *st, Layer *s, int i, Error *err)
{
    char before[64], name[96];
    snprintf(before, sizeof before, "image_encoder.layers.%d.blocks.", i);
    s->depth = sam_count_tensors(st, before, i == 0 ? ".conv1.c.weight" : ".attn.qkv.weight", MAX_DEPTH);
    if (s->depth < 1 || s->depth > MAX_DEPTH)
        return fail(err, "%s: TinyViT's layer %d has %s%d blocks, expected 1 to %d", st_path(st), i,
                    s->depth > MAX_DEPTH ? "more than " : "", s->depth > MAX_DEPTH ? MAX_DEPTH : s->depth,
                    MAX_DEPTH);
    if (i == 0)
        return 0;
    snprintf(name, sizeof name, "%s0.attn.attention_biases", before);
    const int area = sam_dim_of(st, name, 1);
    s->n_heads = sam_dim_of(st, name, 0);
    s->window_size = (int)lround(sqrt(area));
    if (s->n_heads < 1 || s->n_heads > 256 || s->dim % s->n_heads != 0 || s->window_size < 1 ||
        s->window_size > 128 || s->window_size * s->window_size != area)
        return bad_shape(st, name, "heads that divide the channels, and the square of a window of 1 to 128",
                         err);
    return 0;
}

static int read_sizes(TinyVit *vit, Safetensors *st, Error *err)
{
    char name[96];
    if (read_dim(st, "image_encoder.patch_embed.seq.0.c.weight", MAX_DIM, "channels", &vit->stem_dim, err) ||
        read_dim(st, "image_encoder.patch_embed.seq.2.c.weight", MAX_DIM, "channels", &vit->layers[0].dim,
                 err))
        return -1;
    for (int i = 1; i < N_LAYERS; i++) {
        snprintf(name, sizeof name, "image_encoder.layers.%d.downsample.conv1.c.weight", i - 1);
        if (read_dim(st, name, MAX_DIM, "channels", &vit->layers[i].dim, err))
            return -1;
    }
    for (int i = 0; i < N_LAYERS; i++) {
        vit->layers[i].size = vit->image_size / (i == 0 ? 4 : i == 1 ? 8 : 16);
        if (read_layer(st, &vit->layers[i], i, err))
            return -1;
    }
    snprintf(name, sizeof name, "image_encoder.layers.%d.downsample.conv1.c.weight", N_LAYERS - 1);
    if (st_find(st, name))
        return fail(err, "%s: TinyViT has more than %d layers", st_path(st), N_LAYERS);
    return 0;
}

static void tiny_vit_close(void *model)
{
    TinyVit *vit = model;
    if (!vit)
        return;
    free(vit->derived);
    free(vit);
}

/* Sizes, then weights: once to count what is derived, once with memory. 0 / -1. */
static int read_model(TinyVit *vit, Reader *r)
{
    if (read_sizes(vit, r->st, r->err))
        return -1;
    read_weights(r, vit);
    if (r->failed)
        return -1;
    if (arena_allocate(&r->arena))
        return fail_memory(r->err, "TinyViT's weights", r->arena.size);
    vit->derived = (void *)r->arena.base;
    read_weights(r, vit);
    return r->failed ? -1 : 0;
}

static void *tiny_vit_open(Safetensors *weights, int image_size, Error *err)
{
    if (image_size % PATCH_SIZE != 0) {
        fail(err, "%s: sam.image_size %d is not a multiple of TinyViT's %d", st_path(weights), image_size,
             PATCH_SIZE);
        return NULL;
    }
    TinyVit *vit = calloc(1, sizeof *vit);
    if (!vit) {
        fail_memory(err, "a TinyViT", sizeof *vit);
        return NULL;
    }
    vit->image_size = image_size;
    if (read_model(vit, &(Reader){.st = weights, .err = err})) {
        tiny_vit_close(vit);
        return NULL;
    }
    return vit;
}

static int tiny_vit_dim(const void *model)
{
    const TinyVit *vit = model;
    return vit->layers[N_LAYERS - 1].dim;
}

static double mb_conv_multiply_adds(const MBConv *b, int size)
{
    const double n = (double)size * size, out = (double)((size - 1) / b->stride + 1), hidden = b->conv1.n_out;
    return n * b->conv1.n_in * hidden + out * out * hidden * (9 + b->conv3.n_out);
}

static double tiny_vit_multiply_adds(const void *model)
{
    const TinyVit *vit = model;
    const double stem = vit->stem_dim, half = vit->image_size / 2.0;
    double sum = half * half * stem * (27 + 9.0 / 4 * vit->layers[0].dim);
    for (int i = 0; i < N_LAYERS; i++) {
        const Layer *s = &vit->layers[i];
        const double n = (double)s->size * s->size, dim = s->dim;
        const double keys = (double)s->window_size * s->window_size;
        for (int k = 0; k < s->depth; k++)
            sum += i == 0 ? mb_conv_multiply_adds(&s->mb_convs[k], s->size)
                          : n * dim * (4 * dim + 2 * keys + 9 + 2.0 * s->blocks[k].fc1.n_out);
        if (i + 1 < N_LAYERS)
            sum += mb_conv_multiply_adds(&s->downsample, s->size);
    }
    return sum;
}

static void pack_mb_conv(MBConv *b, Arena *arena)
{
    linear_pack(&b->conv1, arena);
    linear_pack(&b->conv3, arena);
}

static void tiny_vit_pack(void *model, Arena *arena)
{
    TinyVit *vit = model;
    for (int i = 0; i < vit->layers[0].depth; i++)
        pack_mb_conv(&vit->layers[0].mb_convs[i], arena);
    for (int l = 0; l < N_LAYERS; l++) {
        Layer *s = &vit->layers[l];
        for (int i = 0; l > 0 && i < s->depth; i++) {
            linear_pack(&s->blocks[i].qkv, arena);
            linear_pack(&s->blocks[i].proj, arena);
            linear_pack(&s->blocks[i].fc1, arena);
            linear_pack(&s->blocks[i].fc2, arena);
        }
        if (l + 1 < N_LAYERS)
            pack_mb_conv(&s->downsample, arena);
    }
}

/* ---- activations --------------------------------------------------------------------------------------*/

/* Floats of the hidden channels of a strip, before and after conv2. */
static void strip_floats(size_t n_floats[2], const MBConv *b, int size)
{
    const int rows = (STRIP_ROWS - 1) * b->stride + 3;
    const size_t row = (size_t)size * b->conv1.n_out;
    n_floats[0] = larger(n_floats[0], (size_t)(rows < size ? rows : size) * row);
    n_floats[1] = larger(n_floats[1], STRIP_ROWS * row);
}

/* The largest of each buffer over all layers. */
typedef struct Sizes {
    size_t map, tokens, hidden, strip[2];
} Sizes;

static Sizes largest_sizes(const TinyVit *vit)
{
    Sizes most = {0};
    for (int l = 0; l < N_LAYERS; l++) {
        const Layer *s = &vit->layers[l];
        const size_t n = (size_t)s->size * s->size, floats = n * s->dim;
        most.map = larger(most.map, floats);
        for (int k = 0; l == 0 && k < s->depth; k++)
            strip_floats(most.strip, &s->mb_convs[k], s->size);
        for (int k = 0; l > 0 && k < s->depth; k++) {
            const size_t rows = n < MLP_ROWS ? n : MLP_ROWS;
            most.tokens = larger(most.tokens, floats);
            most.hidden = larger(most.hidden, rows * (size_t)s->blocks[k].fc1.n_out);
        }
        if (l + 1 < N_LAYERS)
            strip_floats(most.strip, &s->downsample, s->size);
    }
    return most;
}

static void layout_tiny_vit(const void *model, void *state_struct, Arena *arena)
{
    const TinyVit *vit = model;
    TinyVitState *state = state_struct;
    const int S = vit->image_size, half = S / 2, stem_dim = vit->stem_dim;
    const size_t n = (size_t)S * S;
    const Sizes most = largest_sizes(vit);
    state->maps[0] = arena_floats(arena, most.map);
    state->maps[1] = arena_floats(arena, most.map);
    /* PatchEmbed ends before the layers begin, so both use the same memory. */
    const size_t mark = arena->used;
    state->interleaved = arena_floats(arena, 3 * n);
    state->stem = arena_floats(arena, n / 4 * (size_t)stem_dim);
    state->scratch =
        arena_floats(arena, larger(conv2d_scratch(S, S, 3, stem_dim, 3, 2, 1),
                                   conv2d_scratch(half, half, stem_dim, vit->layers[0].dim, 3, 2, 1)));
    const size_t end = arena->used;
    arena->used = mark;
    state->strips[0] = arena_floats(arena, most.strip[0]);
    state->strips[1] = arena_floats(arena, most.strip[1]);
    state->normed = arena_floats(arena, most.tokens);
    state->attended = arena_floats(arena, most.tokens);
    state->branch = arena_floats(arena, most.tokens);
    state->qkv = arena_floats(arena, 3 * most.tokens);
    state->hidden = arena_floats(arena, most.hidden);
    arena->used = larger(arena->used, end);
}

/* ---- the forward pass ---------------------------------------------------------------------------------*/

/* The other map becomes the residual stream. */
static void swap_maps(TinyVitState *state)
{
    float *other = state->maps[0];
    state->maps[0] = state->maps[1];
    state->maps[1] = other;
}

/* PatchEmbed: seq.0, GELU, seq.2. */
static void patch_embed(const TinyVit *vit, TinyVitState *state, const float *pixels)
{
    const int S = vit->image_size, half = S / 2, stem_dim = vit->stem_dim;
    const Conv *seq0 = &vit->patch_embed1, *seq2 = &vit->patch_embed2;
    const size_t n = (size_t)S * S;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++)
            state->interleaved[3 * i + c] = pixels[c * n + i];
    conv2d(state->stem, state->interleaved, seq0->weight, seq0->bias, S, S, 3, stem_dim, 3, 2, 1,
           state->scratch);
    gelu(state->stem, n / 4 * (size_t)stem_dim);
    conv2d(state->maps[0], state->stem, seq2->weight, seq2->bias, half, half, stem_dim, vit->layers[0].dim, 3,
           2, 1, state->scratch);
}

/* Rows `first` .. of conv3(gelu(conv2(gelu(conv1(x))))) of the map's residual stream x, into the other map.
 * The rows above and below a strip are computed twice. Returns the strip. */
static float *mb_conv_strip(TinyVitState *state, const MBConv *b, int size, int first, int rows)
{
    const int out = (size - 1) / b->stride + 1, hidden = b->conv1.n_out;
    const size_t x_row = (size_t)size * b->conv1.n_in, y_row = (size_t)out * b->conv3.n_out;
    const int above = first > 0 ? first * b->stride - 1 : 0;
    const int below = (first + rows - 1) * b->stride + 2, end = below < size ? below : size;
    float *y = state->maps[1] + (size_t)first * y_row;
    linear_layer_gelu(state->strips[0], state->maps[0] + (size_t)above * x_row, &b->conv1,
                      (end - above) * size);
    depthwise_conv3x3(state->strips[1], first, rows, state->strips[0], above, b->conv2.weight, b->conv2.bias,
                      size, size, hidden, b->stride);
    gelu(state->strips[1], (size_t)rows * out * hidden);
    linear_layer(y, state->strips[1], &b->conv3, rows * out);
    return y;
}

/* MBConv: x = gelu(x + conv3(gelu(conv2(gelu(conv1(x)))))), a strip of rows at a time. */
static void mb_conv_forward(TinyVitState *state, const MBConv *b, int size)
{
    const size_t row = (size_t)size * b->conv3.n_out;
    for (int first = 0; first < size; first += STRIP_ROWS) {
        const int rows = size - first < STRIP_ROWS ? size - first : STRIP_ROWS;
        float *y = mb_conv_strip(state, b, size, first, rows);
        add(y, state->maps[0] + (size_t)first * row, (size_t)rows * row); /* shortcut */
        gelu(y, (size_t)rows * row);
    }
    swap_maps(state);
}

/* PatchMerging: x = conv3(gelu(conv2(gelu(conv1(x))))). */
static void patch_merging_forward(TinyVitState *state, const MBConv *b, int size)
{
    const int out = (size - 1) / b->stride + 1;
    for (int first = 0; first < out; first += STRIP_ROWS)
        mb_conv_strip(state, b, size, first, out - first < STRIP_ROWS ? out - first : STRIP_ROWS);
    swap_maps(state);
}

/* x += attn(x): proj(attention(norm(x))). Where windows reach over the map's lower and right edges, the
 * official code pads x with zeros before attn.norm. So such a token's qkv is qkv(β): b->pad. */
static void attn(TinyVitState *state, const Layer *s, const TinyViTBlock *b)
{
    const int n = s->size * s->size, head_dim = s->dim / s->n_heads;
    const RelativePosition rel = {NULL, NULL, s->window_size, s->window_size, b->attention_biases};
    layer_norm(state->normed, state->maps[0], b->attn_norm.weight, b->attn_norm.bias, n, s->dim, NORM_EPS);
    linear_layer(state->qkv, state->normed, &b->qkv, n);
    window_attention(state->attended, state->qkv, b->pad, s->size, s->size, s->n_heads, head_dim,
                     (float)(1 / sqrt(head_dim)), &rel, NULL);
    linear_layer(state->branch, state->attended, &b->proj, n);
    add(state->maps[0], state->branch, (size_t)n * s->dim);
}

/* x += mlp(x): fc2(gelu(fc1(norm(x)))). */
static void mlp(TinyVitState *state, const Layer *s, const TinyViTBlock *b)
{
    const int n = s->size * s->size;
    layer_norm(state->normed, state->maps[0], b->mlp_norm.weight, b->mlp_norm.bias, n, s->dim, NORM_EPS);
    for (int row = 0; row < n; row += MLP_ROWS) {
        const int rows = n - row < MLP_ROWS ? n - row : MLP_ROWS;
        const size_t from = (size_t)row * s->dim;
        linear_layer_gelu(state->hidden, state->normed + from, &b->fc1, rows);
        linear_layer(state->branch + from, state->hidden, &b->fc2, rows);
    }
    add(state->maps[0], state->branch, (size_t)n * s->dim);
}

static void tiny_vit_block_forward(TinyVitState *state, const Layer *s, const TinyViTBlock *b)
{
    attn(state, s, b);
    depthwise_conv3x3(state->maps[1], 0, s->size, state->maps[0], 0, b->local_conv.weight, b->local_conv.bias,
                      s->size, s->size, s->dim, 1);
    swap_maps(state);
    mlp(state, s, b);
}

static void tap_map(const TinyVitState *state, const Layer *s, const char *name, TensorTap tap,
                    void *tap_user)
{
    if (tap)
        tap(tap_user, name, 3, (int64_t[]){s->size, s->size, s->dim}, state->maps[0]);
}

/* Taps: sam.patch_embed, sam.layers.0 to 3 [h][w][channels]. */
static const float *tiny_vit_forward(const void *model, void *state_struct, const float *pixels,
                                     TensorTap tap, void *tap_user, Error *err)
{
    const TinyVit *vit = model;
    TinyVitState *state = state_struct;
    for (int l = 1; l < N_LAYERS; l++) {
        const Layer *s = &vit->layers[l];
        if (attention_reserve(s->window_size * s->window_size, s->dim / s->n_heads, err))
            return NULL;
    }
    patch_embed(vit, state, pixels);
    tap_map(state, vit->layers, "sam.patch_embed", tap, tap_user);
    for (int l = 0; l < N_LAYERS; l++) {
        const Layer *s = &vit->layers[l];
        for (int i = 0; i < s->depth; i++)
            if (l == 0)
                mb_conv_forward(state, &s->mb_convs[i], s->size);
            else
                tiny_vit_block_forward(state, s, &s->blocks[i]);
        if (l + 1 < N_LAYERS)
            patch_merging_forward(state, &s->downsample, s->size);
        char name[32];
        snprintf(name, sizeof name, "sam.layers.%d", l);
        tap_map(state, l + 1 < N_LAYERS ? s + 1 : s, name, tap, tap_user);
    }
    return state->maps[0];
}

const SamEncoder tiny_vit_encoder = {.name = "tiny_vit",
                                     .patch_size = PATCH_SIZE,
                                     .state_size = sizeof(TinyVitState),
                                     .open = tiny_vit_open,
                                     .close = tiny_vit_close,
                                     .dim = tiny_vit_dim,
                                     .multiply_adds = tiny_vit_multiply_adds,
                                     .pack = tiny_vit_pack,
                                     .layout = layout_tiny_vit,
                                     .forward = tiny_vit_forward};
