/* tiny_vit.c - TinyViT (Wu et al. 2022), a ViT that begins as a convolutional network, as MobileSAM has it in
 * the place of SAM's image encoder (ChaoningZhang/MobileSAM, modeling/tiny_vit_sam.py; Zhang et al. 2023).
 *
 *   pixels [3][S][S] -> two 3×3 convolutions of stride 2          [S/4][S/4][dim 0]
 *     -> stage 0: bottlenecks with a residual      -> merging     [S/8][S/8][dim 1]
 *     -> stage 1: blocks with attention in windows -> merging     [S/16][S/16][dim 2]
 *     -> stage 2: such blocks -> merging that keeps the grid      [S/16][S/16][dim 3]
 *     -> stage 3: such blocks                                     -> SAM's neck, in sam_encoder.c
 *
 * A bottleneck is a pointwise convolution, one of 3×3 for each channel by itself, and a pointwise one, GELU
 * between them; a merging is one whose middle has stride 2 (the last: 1). A block: attention, a 3×3
 * convolution of single channels on the residual stream itself, MLP.
 *
 * Every convolution has a batch norm behind it. Its statistics are constants by now, so that both are one
 * affine map; they are folded into one convolution when the model is opened. Everything is channel-last, and
 * a pointwise convolution is a Linear. */
#include "encoders/tiny_vit.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "sam_model.h"

#define MAX_DEPTH  16    /* blocks of a stage */
#define MAX_DIM    4096  /* channels of the stem or of a stage */
#define MAX_HIDDEN 8192  /* channels of a bottleneck's middle, or of an MLP */
#define STRIP_ROWS 16    /* of a bottleneck's output, so that its hidden channels stay in the cache */
#define MLP_ROWS   2048  /* tokens at a time, likewise */
#define BATCH_EPS  1e-5f /* BatchNorm2d's and LayerNorm's default */
#define NORM_EPS   1e-5f

/* A 3×3 convolution: weight [c_out][c_in][3][3], or, of single channels, [3][3][c]. */
typedef struct Conv {
    const float *weight, *bias;
} Conv;

typedef struct Bottleneck {
    Linear conv1, conv3;
    Conv conv2; /* of single channels */
    int stride;
} Bottleneck;

typedef struct Block {
    SamAffine attn_norm, mlp_norm;
    Linear qkv, proj, fc1, fc2;
    const float *biases; /* see distance_bias */
    const float *pad;    /* [3·dim] qkv of a token of zeros */
    Conv local_conv;     /* of single channels */
} Block;

typedef struct Stage {
    int size, dim, depth; /* a map of size × size */
    int n_heads, window;  /* of stages 1 to 3 */
    Block blocks[MAX_DEPTH];
    Bottleneck merging; /* not of the last stage */
} Stage;

struct TinyVit {
    int image_size, stem_dim;
    Conv stem1, stem2;
    Bottleneck mbconv[MAX_DEPTH]; /* the blocks of stage 0 */
    Stage stages[TINY_VIT_STAGES];
    float *derived; /* what is made of the weights */
};

/* ---- weights ------------------------------------------------------------------------------------------*/

/* Reads twice: the first time the arena only counts, and what is derived is NULL. A wrong tensor is
 * remembered, so that what follows reads as a list of names and shapes. */
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
        return NULL; /* keep the first sentence */
    const float *data = st_weight(r->st, r->err, n_dims, shape, "image_encoder.%s", name);
    r->failed |= !data;
    return data;
}

static SamAffine affine(Reader *r, int dim, const char *name)
{
    return (SamAffine){tensor(r, 1, (int64_t[]){dim}, "%s.weight", name),
                       tensor(r, 1, (int64_t[]){dim}, "%s.bias", name)};
}

static Linear layer(Reader *r, int n_out, int n_in, const char *name)
{
    return (Linear){.weight = tensor(r, 2, (int64_t[]){n_out, n_in}, "%s.weight", name),
                    .bias = tensor(r, 1, (int64_t[]){n_out}, "%s.bias", name),
                    .n_out = n_out,
                    .n_in = n_in};
}

/* Conv2d_BN: NAME.c, then NAME.bn, which is γ·(c(x) - mean)/√(var + ε) + β, as one convolution. taps_last: as
 * the official weight, [c_out][c_in·kernel²], else turned round. */
static Conv conv_bn(Reader *r, int n_out, int n_in, int kernel, int taps_last, const char *name)
{
    const int fan = n_in * kernel * kernel;
    const int64_t channels[1] = {n_out};
    const float *c = tensor(r, 4, (int64_t[]){n_out, n_in, kernel, kernel}, "%s.c.weight", name);
    const float *gamma = tensor(r, 1, channels, "%s.bn.weight", name);
    const float *beta = tensor(r, 1, channels, "%s.bn.bias", name);
    const float *mean = tensor(r, 1, channels, "%s.bn.running_mean", name);
    const float *var = tensor(r, 1, channels, "%s.bn.running_var", name);
    float *weight = arena_floats(&r->arena, (size_t)n_out * (size_t)fan);
    float *bias = arena_floats(&r->arena, (size_t)n_out);
    for (int o = 0; !r->failed && o < n_out; o++) {
        if (!(var[o] >= 0)) {
            r->failed = 1;
            fail(r->err, "%s: tensor image_encoder.%s.bn.running_var holds %g, expected a variance",
                 st_path(r->st), name, (double)var[o]);
        } else if (weight) {
            const double factor = gamma[o] / sqrt((double)var[o] + (double)BATCH_EPS);
            for (int i = 0; i < fan; i++)
                weight[taps_last ? (size_t)o * fan + i : (size_t)i * n_out + o] =
                    (float)(factor * c[(size_t)o * fan + i]);
            bias[o] = (float)(beta[o] - factor * mean[o]);
        }
    }
    return (Conv){weight, bias};
}

static int bad_shape(Safetensors *st, const char *name, const char *expected, Error *err)
{
    return fail(err, "%s: tensor %s is %s, expected %s", st_path(st), name,
                st_find(st, name) ? "of another shape" : "missing", expected);
}

/* The first dimension of a tensor, from 1 to `most`. 0 / -1 */
static int read_dim(Safetensors *st, const char *name, int most, const char *unit, int *out, Error *err)
{
    *out = sam_dim_of(st, name, 0);
    if (*out >= 1 && *out <= most)
        return 0;
    char expected[32];
    snprintf(expected, sizeof expected, "1 to %d %s", most, unit);
    return bad_shape(st, name, expected, err);
}

/* Rows of a weight that nothing else tells; 0 after a failure. */
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
    const Conv c = conv_bn(r, n_out, n_in, 1, 1, name);
    return (Linear){c.weight, c.bias, NULL, n_out, n_in};
}

static Bottleneck bottleneck(Reader *r, int n_in, int hidden, int n_out, int stride, const char *name)
{
    char conv[96];
    Bottleneck b = {.stride = stride};
    snprintf(conv, sizeof conv, "%s.conv1", name);
    b.conv1 = pointwise(r, hidden, n_in, conv);
    snprintf(conv, sizeof conv, "%s.conv2", name);
    b.conv2 = conv_bn(r, hidden, 1, 3, 0, conv);
    snprintf(conv, sizeof conv, "%s.conv3", name);
    b.conv3 = pointwise(r, n_out, hidden, conv);
    return b;
}

/* The official qkv stands as [head][q, k, v][head_dim]; ours as [q, k, v][head][head_dim], which is what
 * window_attention takes. A padding token is zero before its norm, so that its qkv is that of the norm's
 * β. */
static void read_qkv(Reader *r, Block *b, int dim, int n_heads, const char *name)
{
    const Linear official = layer(r, 3 * dim, dim, name);
    float *weight = arena_floats(&r->arena, 3 * (size_t)dim * (size_t)dim);
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

static void read_block(Reader *r, Block *b, const Stage *s, const char *name)
{
    const int dim = s->dim, n_biases = s->window * s->window;
    char part[96];
    snprintf(part, sizeof part, "%s.attn.norm", name);
    b->attn_norm = affine(r, dim, part);
    const float *biases = tensor(r, 2, (int64_t[]){s->n_heads, n_biases}, "%s.attn.attention_biases", name);
    float *laid_out = arena_floats(&r->arena, distance_bias_floats(s->n_heads, s->window, s->window));
    if (biases && laid_out)
        distance_bias(laid_out, biases, s->n_heads, s->window, s->window);
    b->biases = laid_out;
    snprintf(part, sizeof part, "%s.attn.qkv", name);
    read_qkv(r, b, dim, s->n_heads, part);
    snprintf(part, sizeof part, "%s.attn.proj", name);
    b->proj = layer(r, dim, dim, part);
    snprintf(part, sizeof part, "%s.local_conv", name);
    b->local_conv = conv_bn(r, dim, 1, 3, 0, part);
    snprintf(part, sizeof part, "%s.mlp.norm", name);
    b->mlp_norm = affine(r, dim, part);
    snprintf(part, sizeof part, "%s.mlp.fc1", name);
    const int hidden = hidden_of(r, part);
    b->fc1 = layer(r, hidden, dim, part);
    snprintf(part, sizeof part, "%s.mlp.fc2", name);
    b->fc2 = layer(r, dim, hidden, part);
}

static void read_weights(Reader *r, TinyVit *vit)
{
    char name[64], first[80];
    Stage *s = vit->stages;
    vit->stem1 = conv_bn(r, vit->stem_dim, 3, 3, 1, "patch_embed.seq.0");
    vit->stem2 = conv_bn(r, s->dim, vit->stem_dim, 3, 1, "patch_embed.seq.2");
    for (int i = 0; i < s->depth; i++) {
        snprintf(name, sizeof name, "layers.0.blocks.%d", i);
        snprintf(first, sizeof first, "%s.conv1.c", name);
        vit->mbconv[i] = bottleneck(r, s->dim, hidden_of(r, first), s->dim, 1, name);
    }
    for (int stage = 0; stage < TINY_VIT_STAGES; stage++, s++) {
        for (int i = 0; stage > 0 && i < s->depth; i++) {
            snprintf(name, sizeof name, "layers.%d.blocks.%d", stage, i);
            read_block(r, &s->blocks[i], s, name);
        }
        snprintf(name, sizeof name, "layers.%d.downsample", stage);
        if (stage + 1 < TINY_VIT_STAGES)
            s->merging = bottleneck(r, s->dim, s[1].dim, s[1].dim, s->size / s[1].size, name);
    }
}

/* ---- sizes --------------------------------------------------------------------------------------------*/

/* Depth, heads and window of stage i. */
static int read_stage(Safetensors *st, Stage *s, int i, Error *err)
{
    char before[64], name[96];
    snprintf(before, sizeof before, "image_encoder.layers.%d.blocks.", i);
    s->depth = sam_count_tensors(st, before, i == 0 ? ".conv1.c.weight" : ".attn.qkv.weight", MAX_DEPTH);
    if (s->depth < 1 || s->depth > MAX_DEPTH)
        return fail(err, "%s: TinyViT's stage %d has %s%d blocks, expected 1 to %d", st_path(st), i,
                    s->depth > MAX_DEPTH ? "more than " : "", s->depth > MAX_DEPTH ? MAX_DEPTH : s->depth,
                    MAX_DEPTH);
    if (i == 0)
        return 0;
    snprintf(name, sizeof name, "%s0.attn.attention_biases", before);
    const int area = sam_dim_of(st, name, 1);
    s->n_heads = sam_dim_of(st, name, 0);
    s->window = (int)lround(sqrt(area));
    if (s->n_heads < 1 || s->n_heads > 256 || s->dim % s->n_heads != 0 || s->window < 1 || s->window > 128 ||
        s->window * s->window != area)
        return bad_shape(st, name, "heads that divide the channels, and the square of a window of 1 to 128",
                         err);
    return 0;
}

static int read_sizes(TinyVit *vit, Safetensors *st, Error *err)
{
    char name[96];
    if (read_dim(st, "image_encoder.patch_embed.seq.0.c.weight", MAX_DIM, "channels", &vit->stem_dim, err) ||
        read_dim(st, "image_encoder.patch_embed.seq.2.c.weight", MAX_DIM, "channels", &vit->stages[0].dim,
                 err))
        return -1;
    for (int i = 1; i < TINY_VIT_STAGES; i++) {
        snprintf(name, sizeof name, "image_encoder.layers.%d.downsample.conv1.c.weight", i - 1);
        if (read_dim(st, name, MAX_DIM, "channels", &vit->stages[i].dim, err))
            return -1;
    }
    for (int i = 0; i < TINY_VIT_STAGES; i++) {
        vit->stages[i].size = vit->image_size / (i == 0 ? 4 : i == 1 ? 8 : 16);
        if (read_stage(st, &vit->stages[i], i, err))
            return -1;
    }
    snprintf(name, sizeof name, "image_encoder.layers.%d.downsample.conv1.c.weight", TINY_VIT_STAGES - 1);
    if (st_find(st, name))
        return fail(err, "%s: TinyViT has more than %d stages", st_path(st), TINY_VIT_STAGES);
    return 0;
}

TinyVit *tiny_vit_open(Safetensors *weights, int image_size, Error *err)
{
    TinyVit *vit = calloc(1, sizeof *vit);
    if (!vit) {
        fail_memory(err, "a TinyViT", sizeof *vit);
        return NULL;
    }
    vit->image_size = image_size;
    Reader r = {.st = weights, .err = err};
    if (!read_sizes(vit, weights, err))
        read_weights(&r, vit);
    else
        r.failed = 1;
    if (!r.failed) {
        if (arena_allocate(&r.arena))
            r.failed = fail_memory(err, "TinyViT's weights", r.arena.size);
        else
            read_weights(&r, vit);
        vit->derived = (void *)r.arena.base;
    }
    if (r.failed) {
        tiny_vit_close(vit);
        return NULL;
    }
    return vit;
}

void tiny_vit_close(TinyVit *vit)
{
    if (!vit)
        return;
    free(vit->derived);
    free(vit);
}

int tiny_vit_dim(const TinyVit *vit)
{
    return vit->stages[TINY_VIT_STAGES - 1].dim;
}

static double bottleneck_multiply_adds(const Bottleneck *b, int size)
{
    const double n = (double)size * size, out = (double)((size - 1) / b->stride + 1), hidden = b->conv1.n_out;
    return n * b->conv1.n_in * hidden + out * out * hidden * (9 + b->conv3.n_out);
}

double tiny_vit_multiply_adds(const TinyVit *vit)
{
    const double stem = vit->stem_dim, half = vit->image_size / 2.0;
    double sum = half * half * stem * (27 + 9.0 / 4 * vit->stages[0].dim);
    for (int i = 0; i < TINY_VIT_STAGES; i++) {
        const Stage *s = &vit->stages[i];
        const double n = (double)s->size * s->size, dim = s->dim, keys = (double)s->window * s->window;
        for (int k = 0; k < s->depth; k++)
            sum += i == 0 ? bottleneck_multiply_adds(&vit->mbconv[k], s->size)
                          : n * dim * (4 * dim + 2 * keys + 9 + 2.0 * s->blocks[k].fc1.n_out);
        if (i + 1 < TINY_VIT_STAGES)
            sum += bottleneck_multiply_adds(&s->merging, s->size);
    }
    return sum;
}

static void pack_bottleneck(Bottleneck *b, Arena *arena)
{
    linear_pack(&b->conv1, arena);
    linear_pack(&b->conv3, arena);
}

void tiny_vit_pack(TinyVit *vit, Arena *arena)
{
    for (int i = 0; i < vit->stages[0].depth; i++)
        pack_bottleneck(&vit->mbconv[i], arena);
    for (int stage = 0; stage < TINY_VIT_STAGES; stage++) {
        Stage *s = &vit->stages[stage];
        for (int i = 0; stage > 0 && i < s->depth; i++) {
            linear_pack(&s->blocks[i].qkv, arena);
            linear_pack(&s->blocks[i].proj, arena);
            linear_pack(&s->blocks[i].fc1, arena);
            linear_pack(&s->blocks[i].fc2, arena);
        }
        if (stage + 1 < TINY_VIT_STAGES)
            pack_bottleneck(&s->merging, arena);
    }
}

/* ---- activations --------------------------------------------------------------------------------------*/

/* Floats that the hidden channels of a strip take, before and after conv2. */
static void strip_room(size_t room[2], const Bottleneck *b, int size)
{
    const int rows = (STRIP_ROWS - 1) * b->stride + 3;
    const size_t row = (size_t)size * (size_t)b->conv1.n_out;
    room[0] = largest(room[0], (size_t)(rows < size ? rows : size) * row);
    room[1] = largest(room[1], STRIP_ROWS * row);
}

void tiny_vit_layout(TinyVitState *state, const TinyVit *vit, Arena *arena)
{
    const size_t S = (size_t)vit->image_size, half = S / 2;
    size_t map = 0, tokens = 0, hidden = 0, strip[2] = {0, 0};
    for (int i = 0; i < TINY_VIT_STAGES; i++) {
        const Stage *s = &vit->stages[i];
        const size_t n = (size_t)s->size * (size_t)s->size, floats = n * (size_t)s->dim;
        map = largest(map, floats);
        for (int k = 0; i == 0 && k < s->depth; k++)
            strip_room(strip, &vit->mbconv[k], s->size);
        for (int k = 0; i > 0 && k < s->depth; k++) {
            tokens = largest(tokens, floats);
            hidden = largest(hidden, (n < MLP_ROWS ? n : MLP_ROWS) * (size_t)s->blocks[k].fc1.n_out);
        }
        if (i + 1 < TINY_VIT_STAGES)
            strip_room(strip, &s->merging, s->size);
    }
    state->maps[0] = arena_floats(arena, map);
    state->maps[1] = arena_floats(arena, map);
    /* the stem's share its room with what comes after it */
    const size_t mark = arena->used;
    state->interleaved = arena_floats(arena, 3 * S * S);
    state->stem = arena_floats(arena, half * half * (size_t)vit->stem_dim);
    state->scratch = arena_floats(
        arena, largest(conv2d_scratch((int)S, (int)S, 3, vit->stem_dim, 3, 2, 1),
                       conv2d_scratch((int)half, (int)half, vit->stem_dim, vit->stages[0].dim, 3, 2, 1)));
    const size_t end = arena->used;
    arena->used = mark;
    state->strips[0] = arena_floats(arena, strip[0]);
    state->strips[1] = arena_floats(arena, strip[1]);
    state->norm = arena_floats(arena, tokens);
    state->heads = arena_floats(arena, tokens);
    state->branch = arena_floats(arena, tokens);
    state->qkv = arena_floats(arena, 3 * tokens);
    state->hidden = arena_floats(arena, hidden);
    arena->used = largest(arena->used, end);
}

/* ---- the forward pass ---------------------------------------------------------------------------------*/

/* The residual stream goes on in the other map. */
static void swap_maps(TinyVitState *state)
{
    float *other = state->maps[0];
    state->maps[0] = state->maps[1];
    state->maps[1] = other;
}

/* PatchEmbed */
static void run_stem(const TinyVit *vit, TinyVitState *state, const float *pixels)
{
    const int S = vit->image_size, half = S / 2;
    const size_t n = (size_t)S * (size_t)S;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++)
            state->interleaved[3 * i + c] = pixels[c * n + i];
    conv2d(state->stem, state->interleaved, vit->stem1.weight, vit->stem1.bias, S, S, 3, vit->stem_dim, 3, 2,
           1, state->scratch);
    gelu(state->stem, (size_t)half * (size_t)half * (size_t)vit->stem_dim);
    conv2d(state->maps[0], state->stem, vit->stem2.weight, vit->stem2.bias, half, half, vit->stem_dim,
           vit->stages[0].dim, 3, 2, 1, state->scratch);
}

/* MBConv: x = gelu(x + conv3(gelu(conv2(gelu(conv1(x)))))), or without the residual PatchMerging: conv3(…).
 * A strip of rows at a time; the rows next to it are computed twice. */
static void run_bottleneck(TinyVitState *state, const Bottleneck *b, int size, int residual)
{
    const int out = (size - 1) / b->stride + 1, hidden = b->conv1.n_out, n_in = b->conv1.n_in;
    const float *x = state->maps[0];
    for (int first = 0; first < out; first += STRIP_ROWS) {
        const int rows = out - first < STRIP_ROWS ? out - first : STRIP_ROWS;
        const int above = first > 0 ? first * b->stride - 1 : 0;
        const int below = (first + rows - 1) * b->stride + 2, end = below < size ? below : size;
        const size_t n = (size_t)rows * (size_t)out * (size_t)b->conv3.n_out;
        float *y = state->maps[1] + (size_t)first * (size_t)out * (size_t)b->conv3.n_out;
        linear_layer_gelu(state->strips[0], x + (size_t)above * (size_t)size * (size_t)n_in, &b->conv1,
                          (end - above) * size);
        depthwise_conv3x3(state->strips[1], first, rows, state->strips[0], above, b->conv2.weight,
                          b->conv2.bias, size, size, hidden, b->stride);
        gelu(state->strips[1], (size_t)rows * (size_t)out * (size_t)hidden);
        linear_layer(y, state->strips[1], &b->conv3, rows * out);
        if (residual) {
            add(y, x + (size_t)first * (size_t)size * (size_t)n_in, n);
            gelu(y, n);
        }
    }
    swap_maps(state);
}

/* x += proj(attention(norm(x))) */
static void attend(TinyVitState *state, const Stage *s, const Block *b)
{
    const int n = s->size * s->size, head_dim = s->dim / s->n_heads;
    const RelativePosition rel = {NULL, NULL, s->window, s->window, b->biases};
    layer_norm(state->norm, state->maps[0], b->attn_norm.weight, b->attn_norm.bias, n, s->dim, NORM_EPS);
    linear_layer(state->qkv, state->norm, &b->qkv, n);
    window_attention(state->heads, state->qkv, b->pad, s->size, s->size, s->n_heads, head_dim,
                     (float)(1 / sqrt(head_dim)), &rel);
    linear_layer(state->branch, state->heads, &b->proj, n);
    add(state->maps[0], state->branch, (size_t)n * (size_t)s->dim);
}

/* x += fc2(gelu(fc1(norm(x)))) */
static void feed_forward(TinyVitState *state, const Stage *s, const Block *b)
{
    const int n = s->size * s->size;
    layer_norm(state->norm, state->maps[0], b->mlp_norm.weight, b->mlp_norm.bias, n, s->dim, NORM_EPS);
    for (int row = 0; row < n; row += MLP_ROWS) {
        const int rows = n - row < MLP_ROWS ? n - row : MLP_ROWS;
        const size_t from = (size_t)row * (size_t)s->dim;
        linear_layer_gelu(state->hidden, state->norm + from, &b->fc1, rows);
        linear_layer(state->branch + from, state->hidden, &b->fc2, rows);
    }
    add(state->maps[0], state->branch, (size_t)n * (size_t)s->dim);
}

/* TinyViTBlock */
static void run_block(TinyVitState *state, const Stage *s, const Block *b)
{
    attend(state, s, b);
    depthwise_conv3x3(state->maps[1], 0, s->size, state->maps[0], 0, b->local_conv.weight, b->local_conv.bias,
                      s->size, s->size, s->dim, 1);
    swap_maps(state);
    feed_forward(state, s, b);
}

const float *tiny_vit_forward(const TinyVit *vit, TinyVitState *state, const float *pixels, TensorTap tap,
                              void *tap_user)
{
    run_stem(vit, state, pixels);
    if (tap)
        tap(tap_user, "sam.patch_embed", 3,
            (int64_t[]){vit->stages[0].size, vit->stages[0].size, vit->stages[0].dim}, state->maps[0]);
    for (int stage = 0; stage < TINY_VIT_STAGES; stage++) {
        const Stage *s = &vit->stages[stage];
        for (int i = 0; i < s->depth; i++) {
            if (stage == 0)
                run_bottleneck(state, &vit->mbconv[i], s->size, 1);
            else
                run_block(state, s, &s->blocks[i]);
        }
        if (stage + 1 < TINY_VIT_STAGES)
            run_bottleneck(state, &s->merging, s->size, 0);
        if (tap) {
            const Stage *next = stage + 1 < TINY_VIT_STAGES ? s + 1 : s;
            char name[32];
            snprintf(name, sizeof name, "sam.layers.%d", stage);
            tap(tap_user, name, 3, (int64_t[]){next->size, next->size, next->dim}, state->maps[0]);
        }
    }
    return state->maps[0];
}
