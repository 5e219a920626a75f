/* vit.c - the Vision Transformer: image -> features (docs/METHOD.md 1).
 *
 * Follows facebookresearch/dinov2, dinov2/models/vision_transformer.py (DinoVisionTransformer). Follows also
 * timm's models/vision_transformer.py (VisionTransformer). Functions have the names of DINOv2's.
 *
 *     pixels [3][h][w] -> patches [grid_h*grid_w][3*patch*patch] -> x [n_tokens][dim]
 *     x = class token, registers, one token a patch
 *     depth times:  x = x + ls1(attn(norm1(x)))     attn: qkv, softmax(q k^T / sqrt(head_dim)) v, proj
 *                   x = x + ls2(mlp(norm2(x)))      mlp: fc1, GELU, fc2; or w12, SwiGLU, w3
 *     norm(x) -> cls [dim], patches [grid_h*grid_w][dim]
 *
 *     model             patch   dim  depth  heads  hidden           trained at
 *     DINOv2 S/14          14   384     12      6    1536           518 x 518: 37 x 37 patches
 *     DINOv2 B/14          14   768     12     12    3072
 *     DINOv2 L/14          14  1024     24     16    4096
 *     DINOv2 g/14          14  1536     40     24    4096 (SwiGLU)
 *     timm vit_tiny        16   192     12      3     768           224 x 224: 14 x 14 patches
 *
 * DINOv2 comes without registers or with 4. The two families are one network. They differ in three things:
 *   - LayerScale: ls1 and ls2 are vectors [dim] in DINOv2; timm's plain ViT has none;
 *   - mlp: DINOv2 g has SwiGLU;
 *   - the resizing of the position embedding to another grid (interpolate_pos_encoding). */
#include "vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

enum { MAX_GRID = 2048 }; /* patches a side of an image. */

/* ---- activations --------------------------------------------------------------------------------------*/

struct VitState {
    int pos_h, pos_w; /* the grid of `pos`; 0 before the first image */
    float *pos;       /* [n_patches][dim] position embedding of the patches */
    float *patches;   /* [n_patches][3*patch*patch] the pixels, patch by patch */
    float *x;         /* [n_tokens][dim] the residual stream */
    float *normed;    /* [n_tokens][dim] norm1(x), norm2(x), norm(x) */
    float *branch;    /* [n_tokens][dim] attn's or mlp's result, to be added to x. */
    float *qkv;       /* [n_tokens][3*dim] */
    float *attended;  /* [n_tokens][dim] softmax(q k^T) v of all heads. */
    float *hidden;    /* [n_tokens][hidden] of mlp; with SwiGLU [n_tokens][2*hidden]. */
    float *gated;     /* [n_tokens][hidden] SwiGLU's product; NULL without */
    void *scratch;    /* of attention in bf16. float32 never touches it, so it takes no memory. */
};

/* Called twice: on an arena that only counts, then on the memory (io/memory.h). The struct itself comes
 * first, so that free(state) frees all. */
static void layout_state(VitState *s, Arena *arena, const VitConfig *c, size_t n_patches)
{
    const size_t n_tokens = 1 + c->n_registers + n_patches, dim = c->dim, hidden = c->hidden_dim;
    arena_take(arena, sizeof *s);
    s->pos_h = s->pos_w = 0;
    s->pos = arena_floats(arena, n_patches * dim);
    s->patches = arena_floats(arena, n_patches * 3 * c->patch_size * c->patch_size);
    s->x = arena_floats(arena, n_tokens * dim);
    s->normed = arena_floats(arena, n_tokens * dim);
    s->branch = arena_floats(arena, n_tokens * dim);
    s->qkv = arena_floats(arena, n_tokens * 3 * dim);
    s->attended = arena_floats(arena, n_tokens * dim);
    s->hidden = arena_floats(arena, n_tokens * (c->swiglu ? 2 * hidden : hidden));
    s->gated = c->swiglu ? arena_floats(arena, n_tokens * hidden) : NULL;
    s->scratch = arena_take(
        arena, bf16_attention_scratch((int)n_tokens, (int)n_tokens, c->n_heads, c->dim / c->n_heads, 0, 0));
}

VitState *vit_state_new(const Vit *vit, int grid_h, int grid_w, Error *err)
{
    if (grid_h < 1 || grid_w < 1 || grid_h > MAX_GRID || grid_w > MAX_GRID) {
        fail(err, "an image of %d x %d patches is out of range, expected 1 to %d a side", grid_h, grid_w,
             MAX_GRID);
        return NULL;
    }
    VitState counted;
    Arena arena = {0};
    layout_state(&counted, &arena, &vit->config, (size_t)grid_h * grid_w);
    if (arena_allocate(&arena)) {
        fail_memory(err, "the ViT's activations", arena.size);
        return NULL;
    }
    VitState *state = (void *)arena.base; /* layout_state takes it first */
    layout_state(state, &arena, &vit->config, (size_t)grid_h * grid_w);
    return state;
}

void vit_state_free(VitState *state)
{
    free(state);
}

size_t vit_state_bytes(const Vit *vit, int grid_h, int grid_w)
{
    VitState counted;
    Arena arena = {0};
    layout_state(&counted, &arena, &vit->config, (size_t)grid_h * grid_w);
    return arena.used;
}

/* ---- tokens -------------------------------------------------------------------------------------------*/

/* s->pos [grid_h*grid_w][dim] = the position embedding of the patches (resample_abs_pos_embed in timm). Both
 * families keep the trained square grid as it is, and resize bicubically to any other grid. DINOv2 without
 * registers gives the resize a scale factor with a historical offset, (grid + 0.1)/trained. This moves every
 * sample point a little. Its weights were trained with the offset, so the offset stays. Offset 0 (registers,
 * timm) resizes by the size alone. */
static void interpolate_pos_encoding(const Vit *vit, VitState *s, int grid_h, int grid_w)
{
    const VitConfig *c = &vit->config;
    const float *trained = vit->pos_embed + (c->pos_cls ? c->dim : 0);
    const int grid = c->pos_grid;
    if (s->pos_h == grid_h && s->pos_w == grid_w)
        return; /* the grid of the last image. */
    if (grid_h == grid && grid_w == grid) {
        memcpy(s->pos, trained, sizeof(float) * grid * grid * c->dim);
    } else {
        const double scale_h = c->interpolate_offset > 0 ? (grid_h + c->interpolate_offset) / grid : 0;
        const double scale_w = c->interpolate_offset > 0 ? (grid_w + c->interpolate_offset) / grid : 0;
        interpolate_bicubic(s->pos, grid_h, grid_w, trained, grid, grid, c->dim, scale_h, scale_w,
                            c->interpolate_antialias);
    }
    s->pos_h = grid_h;
    s->pos_w = grid_w;
}

/* x = [class token + its position, registers, patches + their positions]. Registers have no position.
 * patch_embed is a convolution whose stride is its kernel: a linear layer on the pixels of a patch. Masks
 * belong to DINOv2's training only. */
static void prepare_tokens_with_masks(const Vit *vit, VitState *s, const VitImage *image)
{
    const VitConfig *c = &vit->config;
    const int patch = c->patch_size, grid_h = image->h / patch, grid_w = image->w / patch;
    const int n_patches = grid_h * grid_w;
    const size_t dim = c->dim, n_registers = c->n_registers;
    float *patch_tokens = s->x + (1 + n_registers) * dim;

    gather_patches(s->patches, image->pixels, image->h, image->w, patch);
    linear_layer(patch_tokens, s->patches, &vit->patch_embed, n_patches);
    interpolate_pos_encoding(vit, s, grid_h, grid_w);
    add(patch_tokens, s->pos, n_patches * dim);

    memcpy(s->x, vit->cls_token, dim * sizeof(float));
    if (c->pos_cls)
        add(s->x, vit->pos_embed, dim);
    if (n_registers)
        memcpy(s->x + dim, vit->register_tokens, n_registers * dim * sizeof(float));
}

/* ---- a block ------------------------------------------------------------------------------------------*/

/* branch = proj(softmax(q k^T / sqrt(head_dim)) v), [q k v] = qkv(normed). */
static void attn(const Vit *vit, const VitBlock *b, VitState *s, int n_tokens)
{
    const int dim = vit->config.dim, n_heads = vit->config.n_heads, head_dim = dim / n_heads;
    const float *q = s->qkv, *k = q + dim, *v = k + dim;
    linear_layer(s->qkv, s->normed, &b->qkv, n_tokens);
    attention(s->attended, dim, q, 3 * dim, k, 3 * dim, v, 3 * dim, n_tokens, n_tokens, n_heads, head_dim,
              1.0f / sqrtf((float)head_dim), NULL, vit->packed ? s->scratch : NULL);
    linear_layer(s->branch, s->attended, &b->proj, n_tokens);
}

/* branch = fc2(GELU(fc1(normed))), or with SwiGLU w3(silu(x1) * x2), [x1 x2] = w12(normed). */
static void mlp(const Vit *vit, const VitBlock *b, VitState *s, int n_tokens)
{
    if (vit->config.swiglu) {
        linear_layer(s->hidden, s->normed, &b->ffn_in, n_tokens);
        swiglu(s->gated, s->hidden, n_tokens, vit->config.hidden_dim);
        linear_layer(s->branch, s->gated, &b->ffn_out, n_tokens);
    } else {
        linear_layer_gelu(s->hidden, s->normed, &b->ffn_in, n_tokens);
        linear_layer(s->branch, s->hidden, &b->ffn_out, n_tokens);
    }
}

/* x = x + ls1(attn(norm1(x))), then x = x + ls2(mlp(norm2(x))). One pass over the tokens computes the first
 * sum and norm2. */
static void block_forward(const Vit *vit, const VitBlock *b, VitState *s, int n_tokens)
{
    const int dim = vit->config.dim;
    const float eps = vit->config.eps;

    layer_norm(s->normed, s->x, b->norm1.weight, b->norm1.bias, n_tokens, dim, eps);
    attn(vit, b, s, n_tokens);
    add_layer_norm(s->normed, s->x, s->branch, b->ls1, b->norm2.weight, b->norm2.bias, n_tokens, dim, eps);
    mlp(vit, b, s, n_tokens);
    if (b->ls2)
        add_scaled(s->x, s->branch, b->ls2, n_tokens, dim);
    else
        add(s->x, s->branch, (size_t)n_tokens * dim);
}

/* ---- the forward pass ---------------------------------------------------------------------------------*/

int vit_forward(const Vit *vit, VitState *s, const VitImage *image, int layer, float *cls, float *patches,
                TensorTap tap, void *tap_user, Error *err)
{
    const VitConfig *c = &vit->config;
    const int n_patches = (image->h / c->patch_size) * (image->w / c->patch_size);
    const int n_prefix = 1 + c->n_registers, n_tokens = n_prefix + n_patches;
    const size_t dim = c->dim;
    const int64_t tokens_shape[2] = {n_tokens, c->dim};
    const float *normed_patches = s->normed + n_prefix * dim;

    if (attention_reserve(n_tokens, c->dim / c->n_heads, err))
        return -1;
    prepare_tokens_with_masks(vit, s, image);
    if (tap)
        tap(tap_user, "vit.embed", 2, tokens_shape, s->x);
    for (int i = 0; i < layer && i < c->depth; i++) {
        char name[32];
        block_forward(vit, &vit->blocks[i], s, n_tokens);
        snprintf(name, sizeof name, "vit.blocks.%d", i);
        if (tap)
            tap(tap_user, name, 2, tokens_shape, s->x);
    }

    /* The model's norm was trained on the last block only. An inner layer gets a plain LayerNorm [ours]. */
    if (layer >= c->depth)
        layer_norm(s->normed, s->x, vit->norm.weight, vit->norm.bias, n_tokens, c->dim, c->eps);
    else
        layer_norm(s->normed, s->x, NULL, NULL, n_tokens, c->dim, c->eps);
    if (tap) {
        tap(tap_user, "vit.cls", 1, (int64_t[]){c->dim}, s->normed);
        tap(tap_user, "vit.patches", 2, (int64_t[]){n_patches, c->dim}, normed_patches);
    }
    if (cls)
        memcpy(cls, s->normed, dim * sizeof(float));
    if (patches)
        memcpy(patches, normed_patches, n_patches * dim * sizeof(float));
    return 0;
}

/* ---- pixels -------------------------------------------------------------------------------------------*/

/* PIL's bicubic resize on uint8, as in both families' own evaluation (dinov2/data/transforms.py, timm's
 * default_cfg). Then torchvision's to_tensor and normalize. A byte has 256 values, so a table gives the same
 * floats as a division for each pixel. */
int vit_preprocess(const VitConfig *config, float *pixels, int oh, int ow, const Picture *picture, Error *err)
{
    const size_t n = (size_t)oh * ow;
    uint8_t *resized = aligned_array(n, 3);
    if (!resized)
        return fail_memory(err, "the resized image", n * 3);
    if (resize_u8(resized, oh, ow, picture->rgb, picture->height, picture->width, 3, RESIZE_BICUBIC)) {
        free(resized);
        return fail_memory(err, "resizing the image", n * 3);
    }
    for (int channel = 0; channel < 3; channel++) {
        float normalised[256], *plane = pixels + channel * n;
        for (int v = 0; v < 256; v++)
            normalised[v] = ((float)v / 255.0f - config->mean[channel]) / config->std[channel];
        for (size_t i = 0; i < n; i++)
            plane[i] = normalised[resized[3 * i + channel]];
    }
    free(resized);
    return 0;
}
