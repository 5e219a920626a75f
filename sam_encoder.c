/* sam_encoder.c - SAM's image encoder: a ViT whose blocks attend inside windows, a few of them globally
 * (segment_anything/modeling/image_encoder.py, ImageEncoderViT; after ViTDet, Li et al. 2022).
 *
 *   pixels [3][S][S] -> patches [grid][grid][embed_dim] + pos_embed -> blocks -> neck
 *                    -> embedding [grid][grid][out_chans]
 *
 * Both kinds of attention add the decomposed relative positions of MViTv2: rel_pos_h and rel_pos_w,
 * resampled when their length is not 2·size - 1. Everything is channel-last; n = grid² tokens in
 * row-major order. Light models have a TinyViT in the blocks' place (tiny_vit.c), and the same neck. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

#include "sam_model.h"

/* The MLP takes this many tokens at a time, all of the official grid, so that the hidden layer of a larger
 * one needs little memory. */
#define MLP_ROWS 4096

struct SamState {
    Arena arena;
    float *pixels;    /* [3][S][S] network input */
    uint8_t *resized; /* [S][S][3] */
    /* of a ViT */
    float *patches;       /* [n][3·patch·patch] */
    float *x, *norm;      /* [n][dim] the residual stream and its normalised copy */
    float *qkv;           /* [n][3·dim] */
    float *heads;         /* [n][dim] attention's output before proj */
    float *branch;        /* [n][dim] what a block's branch adds */
    float *hidden;        /* [n or MLP_ROWS][hidden] */
    float *rel_resampled; /* [2·size-1][head_dim] */
    float *rel_h, *rel_w; /* of the block at hand, see RelativePosition */
    void *scratch;        /* bf16 attention's; in float32 never touched, so that it takes no memory */
    /* of a TinyViT */
    TinyVitState tiny_vit;
    /* of the neck behind either */
    float *neck1, *neck2; /* [n][out_chans] */
    float *conv_scratch;
};

static void vit_layout(SamState *s, const Sam *sam)
{
    const SamConfig *c = &sam->config;
    const size_t n = (size_t)sam->n_positions, dim = (size_t)c->embed_dim;
    const size_t head_dim = dim / (size_t)c->n_heads;
    const size_t window = (size_t)c->window_size, side = largest(window, (size_t)sam->grid);
    Arena *a = &s->arena;
    s->patches = arena_floats(a, n * 3 * (size_t)c->patch_size * (size_t)c->patch_size);
    s->x = arena_floats(a, n * dim);
    s->norm = arena_floats(a, n * dim);
    s->qkv = arena_floats(a, n * 3 * dim);
    s->heads = arena_floats(a, n * dim);
    s->branch = arena_floats(a, n * dim);
    s->hidden = arena_floats(a, (n < MLP_ROWS ? n : MLP_ROWS) * (size_t)sam->hidden);
    s->rel_resampled = arena_floats(a, (2 * side - 1) * head_dim);
    s->rel_h = arena_floats(a, relative_position_floats((int)side, (int)head_dim));
    s->rel_w = arena_floats(a, relative_position_floats((int)side, (int)head_dim));
    const int grid = sam->grid, heads = c->n_heads;
    const size_t everywhere = bf16_attention_scratch((int)n, (int)n, heads, (int)head_dim, grid, grid);
    const size_t in_windows =
        window ? bf16_window_scratch(grid, grid, (int)window, (int)window, heads, (int)head_dim) : 0;
    s->scratch = arena_take(a, largest(everywhere, in_windows));
}

static void state_layout(SamState *s, const Sam *sam)
{
    const size_t size = (size_t)sam->config.image_size;
    const size_t n_floats = (size_t)sam->n_positions * (size_t)sam->config.out_chans;
    Arena *a = &s->arena;
    s->pixels = arena_floats(a, 3 * size * size);
    s->resized = arena_take(a, 3 * size * size);
    if (sam->tiny_vit)
        tiny_vit_layout(&s->tiny_vit, sam->tiny_vit, a);
    else
        vit_layout(s, sam);
    s->neck1 = arena_floats(a, n_floats);
    s->neck2 = arena_floats(a, n_floats);
    s->conv_scratch = arena_floats(
        a, conv2d_scratch(sam->grid, sam->grid, sam->config.out_chans, sam->config.out_chans, 3, 1, 1));
}

SamState *sam_state_new(const Sam *sam, Error *err)
{
    SamState *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "SAM's encoder", sizeof *s);
        return NULL;
    }
    state_layout(s, sam);
    if (arena_allocate(&s->arena)) {
        fail_memory(err, "SAM's encoder", s->arena.size);
        free(s);
        return NULL;
    }
    state_layout(s, sam);
    return s;
}

void sam_state_free(SamState *state)
{
    if (!state)
        return;
    free(state->arena.base);
    free(state);
}

size_t sam_state_bytes(const SamState *state)
{
    return state->arena.size;
}

float *sam_state_pixels(SamState *state)
{
    return state->pixels;
}

uint8_t *sam_state_resized(SamState *state)
{
    return state->resized;
}

/* x[token] = patch_embed.proj(patch). */
static void embed_patches(const Sam *sam, SamState *s, const float *pixels)
{
    const int size = sam->config.image_size, patch = sam->config.patch_size;
    gather_patches(s->patches, pixels, size, size, patch);
    linear(s->x, s->patches, sam->patch_embed.weight, sam->patch_embed.bias, sam->n_positions,
           sam->config.embed_dim, 3 * patch * patch);
}

/* get_rel_pos for queries and keys on the same axis of `size` places: the table is resampled linearly to
 * 2·size - 1 rows first when it has another length. */
static void gather_rel_pos(SamState *s, float *out, const float *table, int n_rows, int size, int head_dim)
{
    const int n_needed = 2 * size - 1;
    if (n_rows != n_needed) {
        interpolate_bilinear(s->rel_resampled, 1, n_needed, table, 1, n_rows, head_dim, 0, 0);
        table = s->rel_resampled;
    }
    relative_position(out, table, size, head_dim);
}

/* branch = proj(attention(norm)). qkv and proj act on single tokens, so they need not know of windows.
 * Outside the grid the official code pads the normalised tokens with zeros, whose qkv is the bias. */
static void attend(const Sam *sam, SamState *s, const SamBlock *b)
{
    const int dim = sam->config.embed_dim, n_heads = sam->config.n_heads, head_dim = dim / n_heads;
    const int n = sam->n_positions, grid = sam->grid, side = b->window ? b->window : grid;
    const float scale = (float)(1 / sqrt(head_dim));
    const RelativePosition rel = {s->rel_h, s->rel_w, side, side, NULL};
    gather_rel_pos(s, s->rel_h, b->rel_pos_h, b->n_rel_h, side, head_dim);
    gather_rel_pos(s, s->rel_w, b->rel_pos_w, b->n_rel_w, side, head_dim);
    void *scratch = sam->packed ? s->scratch : NULL;
    linear_layer(s->qkv, s->norm, &b->qkv, n);
    if (b->window)
        window_attention_any(s->heads, s->qkv, b->qkv.bias, grid, grid, n_heads, head_dim, scale, &rel,
                             scratch);
    else
        attention_any(s->heads, dim, s->qkv, 3 * dim, s->qkv + dim, 3 * dim, s->qkv + 2 * dim, 3 * dim, n, n,
                      n_heads, head_dim, scale, &rel, scratch);
    linear_layer(s->branch, s->heads, &b->proj, n);
}

/* branch = lin2(gelu(lin1(norm))) */
static void feed_forward(const Sam *sam, SamState *s, const SamBlock *b)
{
    const int dim = sam->config.embed_dim, n = sam->n_positions;
    for (int row = 0; row < n; row += MLP_ROWS) {
        int rows = n - row < MLP_ROWS ? n - row : MLP_ROWS;
        linear_layer_gelu(s->hidden, s->norm + (size_t)row * dim, &b->lin1, rows);
        linear_layer(s->branch + (size_t)row * dim, s->hidden, &b->lin2, rows);
    }
}

static void run_block(const Sam *sam, SamState *s, const SamBlock *b)
{
    const int dim = sam->config.embed_dim, n = sam->n_positions;
    layer_norm(s->norm, s->x, b->norm1.weight, b->norm1.bias, n, dim, SAM_NORM_2D_EPS);
    attend(sam, s, b);
    add_layer_norm(s->norm, s->x, s->branch, NULL, b->norm2.weight, b->norm2.bias, n, dim, SAM_NORM_2D_EPS);
    feed_forward(sam, s, b);
    add(s->x, s->branch, (size_t)n * dim);
}

/* -> [n][dim] */
static const float *run_vit(const Sam *sam, SamState *s, const float *pixels, TensorTap tap, void *tap_user)
{
    const int64_t shape[3] = {sam->grid, sam->grid, sam->config.embed_dim};
    embed_patches(sam, s, pixels);
    if (tap)
        tap(tap_user, "sam.patch_embed", 3, shape, s->x);
    add(s->x, sam->pos_embed, (size_t)sam->n_positions * sam->config.embed_dim);
    for (int i = 0; i < sam->config.depth; i++) {
        run_block(sam, s, &sam->blocks[i]);
        if (tap) {
            char name[32];
            snprintf(name, sizeof name, "sam.blocks.%d", i);
            tap(tap_user, name, 3, shape, s->x);
        }
    }
    return s->x;
}

/* 1×1 convolution, LayerNorm2d, 3×3 convolution, LayerNorm2d. */
static void run_neck(const Sam *sam, SamState *s, const float *x, float *embedding)
{
    const int channels = sam->config.out_chans, n = sam->n_positions;
    linear(s->neck1, x, sam->neck_conv1, NULL, n, channels, sam->config.embed_dim);
    layer_norm(s->neck1, s->neck1, sam->neck_norm1.weight, sam->neck_norm1.bias, n, channels,
               SAM_NORM_2D_EPS);
    conv2d(s->neck2, s->neck1, sam->neck_conv2, NULL, sam->grid, sam->grid, channels, channels, 3, 1, 1,
           s->conv_scratch);
    layer_norm(embedding, s->neck2, sam->neck_norm2.weight, sam->neck_norm2.bias, n, channels,
               SAM_NORM_2D_EPS);
}

int sam_encode_pixels(const Sam *sam, SamState *state, float *embedding, const float *pixels, TensorTap tap,
                      void *tap_user, Error *err)
{
    const float *x = sam->tiny_vit ? tiny_vit_forward(sam->tiny_vit, &state->tiny_vit, pixels, tap, tap_user)
                                   : run_vit(sam, state, pixels, tap, tap_user);
    run_neck(sam, state, x, embedding);
    return sam_tap_planar(tap, tap_user, "sam.embedding", embedding, sam->grid, sam->grid,
                          sam->config.out_chans, err);
}
