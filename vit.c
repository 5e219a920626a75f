/* vit.c - the Vision Transformer that turns an image into patch features (METHOD.md 1).
 *
 * Follows facebookresearch/dinov2, dinov2/models/vision_transformer.py (DINOv2 S/B/L/g, with and
 * without registers) and timm's models/vision_transformer.py (the plain ViT). Both are one network:
 *
 *     pixels [3][h][w] --> patches [grid_h*grid_w][3*patch*patch] --> tokens [n_tokens][dim]
 *     tokens = class token, registers, one token a patch; the position embedding is on the class token
 *              and the patches, never on the registers
 *     depth times:  tokens += ls1 * proj(attention(qkv(norm1(tokens))))
 *                   tokens += ls2 * ffn(norm2(tokens))              ffn: fc1, GELU, fc2 or w12, SwiGLU, w3
 *     norm(tokens) --> cls [dim], patches [grid_h*grid_w][dim]
 *
 * They differ in the LayerScale vectors ls1 and ls2 (timm's plain ViT has none), in the feed-forward
 * form, and in how the position embedding is resized to another grid. */
#include "vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* Limits on what a file may claim, far above every published model (DINOv2 g: dim 1536, depth 40). */
enum { MAX_PATCH_SIZE = 64, MAX_DIM = 8192, MAX_DEPTH = 256, MAX_HIDDEN = 65536, MAX_REGISTERS = 256 };
enum { MAX_IMAGE_SIZE = 16384, MAX_GRID = 2048 };

typedef struct VitBlock {
    const float *norm1_weight, *norm1_bias; /* [dim] */
    Linear qkv;                             /* [3*dim][dim]: queries, keys, values below each other */
    Linear proj;                            /* [dim][dim] */
    const float *ls1;                       /* [dim], or NULL without LayerScale */
    const float *norm2_weight, *norm2_bias; /* [dim] */
    Linear ffn_in;                          /* fc1 [hidden][dim], or w12 [2*hidden][dim] */
    Linear ffn_out;                         /* fc2 or w3 [dim][hidden] */
    const float *ls2;                       /* [dim] or NULL */
} VitBlock;

struct Vit {
    VitConfig config;
    const float *patch_weight, *patch_bias; /* [dim][3][patch][patch] */
    const float *cls_token;                 /* [dim] */
    const float *register_tokens;           /* [n_registers][dim], or NULL without */
    const float *pos_embed;                 /* [pos_cls + pos_grid*pos_grid][dim] */
    const float *norm_weight, *norm_bias;   /* [dim] */
    void *packed;                           /* the blocks' weights in bf16, or NULL: float32 */
    VitBlock blocks[];                      /* [depth] */
};

/* ---- the configuration: from the metadata, or from names and shapes -----------------------------------*/

/* The hidden width that the official constructors give: Mlp takes int(dim*ratio); SwiGLUFFNFused takes two
 * thirds of that, rounded up to a multiple of 8, since it has three matrices where Mlp has two. */
static int ffn_hidden_dim(int dim, double mlp_ratio, int is_swiglu)
{
    int hidden = (int)(dim * mlp_ratio);
    return is_swiglu ? ((int)(hidden * 2.0 / 3.0) + 7) / 8 * 8 : hidden;
}

/* A metadata value that is one of two words: 0 for the first, 1 for the second. */
static int meta_choice(const Safetensors *st, const char *key, const char *word0, const char *word1, int *out,
                       Error *err)
{
    const char *value = st_meta(st, key);
    if (!value)
        return fail(err, "%s: metadata %s is missing", st_path(st), key);
    if (strcmp(value, word0) != 0 && strcmp(value, word1) != 0)
        return fail(err, "%s: metadata %s is '%.40s', expected %s or %s", st_path(st), key, value, word0,
                    word1);
    *out = strcmp(value, word1) == 0;
    return 0;
}

static int config_from_metadata(VitConfig *c, const Safetensors *st, Error *err)
{
    double mlp_ratio, eps;
    if (meta_choice(st, "vit.family", "dinov2", "timm", &c->timm, err) ||
        meta_choice(st, "vit.ffn", "mlp", "swiglu", &c->swiglu, err) ||
        meta_choice(st, "vit.layer_scale", "0", "1", &c->layer_scale, err) ||
        meta_choice(st, "vit.interpolate_antialias", "0", "1", &c->interpolate_antialias, err) ||
        st_meta_int(st, "vit.image_size", 1, MAX_IMAGE_SIZE, &c->image_size, err) ||
        st_meta_int(st, "vit.patch_size", 1, MAX_PATCH_SIZE, &c->patch_size, err) ||
        st_meta_int(st, "vit.dim", 1, MAX_DIM, &c->dim, err) ||
        st_meta_int(st, "vit.depth", 1, MAX_DEPTH, &c->depth, err) ||
        st_meta_int(st, "vit.n_heads", 1, MAX_DIM, &c->n_heads, err) ||
        st_meta_int(st, "vit.n_registers", 0, MAX_REGISTERS, &c->n_registers, err) ||
        st_meta_float(st, "vit.mlp_ratio", 1e-3, 64, &mlp_ratio, err) ||
        st_meta_float(st, "vit.interpolate_offset", 0, 0.99, &c->interpolate_offset, err) ||
        st_meta_float(st, "vit.eps", 0, 1, &eps, err) || st_meta_floats(st, "vit.mean", 3, c->mean, err) ||
        st_meta_floats(st, "vit.std", 3, c->std, err))
        return -1;
    c->eps = (float)eps;
    c->hidden_dim = ffn_hidden_dim(c->dim, mlp_ratio, c->swiglu);
    return 0;
}

static int block_exists(const Safetensors *st, int i)
{
    char name[64];
    snprintf(name, sizeof name, "blocks.%d.norm1.weight", i);
    return st_find(st, name) != NULL;
}

/* The heads of a published model: 64 channels each, but for timm's and MAE's wide ViTs (tools/convert.py's
 * TIMM_HEADS). */
static int published_heads(int dim, int timm)
{
    return timm && (dim == 1152 || dim == 1280 || dim == 1408 || dim == 1664) ? 16 : dim / 64;
}

/* A published checkpoint without our metadata: what its shapes do not say is what the families have in
 * common (the heads' number by the width, LayerNorm eps 1e-6) and how each was trained and evaluated: timm's
 * augreg ViTs with mean = std = 0.5, DINOv2 with ImageNet's; DINOv2's hub files without registers with the
 * offset 0.1, those with registers with the plain antialiased size form (dinov2/hub/backbones.py). */
static int config_from_shapes(VitConfig *c, const Safetensors *st, Error *err)
{
    static const float imagenet_mean[3] = {0.485f, 0.456f, 0.406f};
    static const float imagenet_std[3] = {0.229f, 0.224f, 0.225f};
    static const float half[3] = {0.5f, 0.5f, 0.5f};
    const StTensor *patch = st_find(st, "patch_embed.proj.weight");
    if (!patch)
        return fail(err, "%s: neither metadata samlad.model nor a tensor patch_embed.proj.weight: not a ViT",
                    st_path(st));
    if (patch->n_dims != 4 || patch->shape[0] < 1 || patch->shape[0] > MAX_DIM || patch->shape[2] < 1 ||
        patch->shape[2] > MAX_PATCH_SIZE)
        return fail(err,
                    "%s: tensor patch_embed.proj.weight is not [dim][3][patch][patch] up to dim %d, patch %d",
                    st_path(st), MAX_DIM, MAX_PATCH_SIZE);
    c->dim = (int)patch->shape[0];
    c->patch_size = (int)patch->shape[2];
    if (c->dim % 64 != 0)
        return fail(err,
                    "%s: dim %d is no multiple of 64, so the number of heads must be given in metadata "
                    "(convert the checkpoint with tools/convert.py)",
                    st_path(st), c->dim);
    while (c->depth <= MAX_DEPTH && block_exists(st, c->depth))
        c->depth++;
    c->layer_scale = st_find(st, "blocks.0.ls1.gamma") != NULL;
    c->timm = !c->layer_scale;
    c->n_heads = published_heads(c->dim, c->timm);
    c->swiglu = st_find(st, "blocks.0.mlp.w12.weight") != NULL;
    const StTensor *ffn = st_find(st, c->swiglu ? "blocks.0.mlp.w12.weight" : "blocks.0.mlp.fc1.weight");
    if (ffn && ffn->n_dims == 2 && ffn->shape[0] <= 2 * MAX_HIDDEN)
        c->hidden_dim = (int)ffn->shape[0] / (c->swiglu ? 2 : 1);
    const StTensor *registers = st_find(st, "register_tokens");
    if (registers && registers->n_dims == 3 && registers->shape[1] <= MAX_REGISTERS)
        c->n_registers = (int)registers->shape[1];
    c->interpolate_antialias = c->timm || c->n_registers > 0;
    c->interpolate_offset = c->interpolate_antialias ? 0.0 : 0.1;
    c->eps = 1e-6f;
    memcpy(c->mean, c->timm ? half : imagenet_mean, sizeof c->mean);
    memcpy(c->std, c->timm ? half : imagenet_std, sizeof c->std);
    return 0;
}

/* pos_embed [1][n][dim] says on which square grid the model was trained, and whether the class token has a
 * position of its own (timm's `no_embed_class` models have none). */
static int read_position_grid(VitConfig *c, const Safetensors *st, Error *err)
{
    const StTensor *pos = st_find(st, "pos_embed");
    if (!pos || pos->n_dims != 3)
        return fail(err, "%s: tensor pos_embed [1][positions][dim] is missing", st_path(st));
    const int64_t n = pos->shape[1];
    for (int64_t grid = 1; grid <= MAX_GRID && grid * grid <= n; grid++)
        if (grid * grid == n - 1 || (grid * grid == n && c->timm)) {
            c->pos_grid = (int)grid;
            c->pos_cls = grid * grid == n - 1;
        }
    if (!c->pos_grid)
        return fail(err, "%s: tensor pos_embed has %lld positions, expected a class token and a square grid",
                    st_path(st), (long long)n);
    if (!c->image_size)
        c->image_size = c->pos_grid * c->patch_size;
    if (c->image_size / c->patch_size != c->pos_grid)
        return fail(err,
                    "%s: metadata vit.image_size %d is %d patches of %d, but pos_embed is for a grid of %d",
                    st_path(st), c->image_size, c->image_size / c->patch_size, c->patch_size, c->pos_grid);
    return 0;
}

static int read_config(VitConfig *c, const Safetensors *st, Error *err)
{
    const char *model = st_meta(st, "samlad.model");
    memset(c, 0, sizeof *c);
    if (model && strcmp(model, "vit") != 0)
        return fail(err, "%s: metadata samlad.model is '%.40s', expected vit", st_path(st), model);
    if (model ? config_from_metadata(c, st, err) : config_from_shapes(c, st, err))
        return -1;
    if (c->dim % c->n_heads != 0)
        return fail(err, "%s: dim %d is no multiple of the number of heads %d", st_path(st), c->dim,
                    c->n_heads);
    if (c->depth < 1 || c->depth > MAX_DEPTH)
        return fail(err, "%s: %d blocks, expected 1 to %d", st_path(st), c->depth, MAX_DEPTH);
    if (c->hidden_dim < 1 || c->hidden_dim > MAX_HIDDEN)
        return fail(err, "%s: the feed-forward layer of blocks.0 has %d hidden channels, expected 1 to %d",
                    st_path(st), c->hidden_dim, MAX_HIDDEN);
    for (int i = 0; i < 3; i++)
        if (!isfinite(c->mean[i]) || !isfinite(c->std[i]) || c->std[i] <= 0)
            return fail(err, "%s: metadata vit.mean and vit.std must be finite, and std positive",
                        st_path(st));
    return read_position_grid(c, st, err);
}

/* ---- the weights --------------------------------------------------------------------------------------*/

/* Takes weights one after the other and remembers the first failure, so that the list of a model's tensors
 * reads as a list. The names taken are kept to find tensors that this network has no place for. */
typedef struct Loader {
    Safetensors *st;
    Error *err;
    int failed;
    const char *taken[MAX_DEPTH * 14 + 16]; /* 14 a block at most, and fewer than 16 around the blocks */
    size_t n_taken;
} Loader;

static const float *take(Loader *l, int n_dims, const int64_t *shape, const char *name)
{
    if (l->failed)
        return NULL;
    const float *weight = st_weight(l->st, l->err, n_dims, shape, "%s", name);
    if (weight)
        l->taken[l->n_taken++] = st_find(l->st, name)->name;
    else
        l->failed = 1;
    return weight;
}

static const float *take_block(Loader *l, int n_dims, const int64_t *shape, int block, const char *name)
{
    char full_name[96];
    snprintf(full_name, sizeof full_name, "blocks.%d.%s", block, name);
    return take(l, n_dims, shape, full_name);
}

/* NAME.weight [n_out][n_in] and NAME.bias of a block */
static Linear take_linear(Loader *l, int64_t n_out, int64_t n_in, int block, const char *name)
{
    char full_name[48];
    Linear layer = {.n_out = (int)n_out, .n_in = (int)n_in};
    snprintf(full_name, sizeof full_name, "%s.weight", name);
    layer.weight = take_block(l, 2, (int64_t[]){n_out, n_in}, block, full_name);
    snprintf(full_name, sizeof full_name, "%s.bias", name);
    layer.bias = take_block(l, 1, (int64_t[]){n_out}, block, full_name);
    return layer;
}

static void load_block(VitBlock *b, Loader *l, const VitConfig *c, int i)
{
    const int64_t dim = c->dim, hidden = c->hidden_dim, ffn_in = c->swiglu ? 2 * hidden : hidden;
    b->norm1_weight = take_block(l, 1, (int64_t[]){dim}, i, "norm1.weight");
    b->norm1_bias = take_block(l, 1, (int64_t[]){dim}, i, "norm1.bias");
    b->qkv = take_linear(l, 3 * dim, dim, i, "attn.qkv");
    b->proj = take_linear(l, dim, dim, i, "attn.proj");
    b->norm2_weight = take_block(l, 1, (int64_t[]){dim}, i, "norm2.weight");
    b->norm2_bias = take_block(l, 1, (int64_t[]){dim}, i, "norm2.bias");
    b->ffn_in = take_linear(l, ffn_in, dim, i, c->swiglu ? "mlp.w12" : "mlp.fc1");
    b->ffn_out = take_linear(l, dim, hidden, i, c->swiglu ? "mlp.w3" : "mlp.fc2");
    if (c->layer_scale) {
        b->ls1 = take_block(l, 1, (int64_t[]){dim}, i, "ls1.gamma");
        b->ls2 = take_block(l, 1, (int64_t[]){dim}, i, "ls2.gamma");
    }
}

/* A tensor that we did not take would change the result (a query norm, one more block), unless it belongs
 * to training (mask_token) or to a classifier on top (head.*). */
static int check_all_taken(const Loader *l, int depth)
{
    for (size_t i = 0; i < st_count(l->st); i++) {
        const char *name = st_at(l->st, i)->name;
        size_t j = 0;
        while (j < l->n_taken && strcmp(l->taken[j], name) != 0)
            j++;
        if (j == l->n_taken && strcmp(name, "mask_token") != 0 && strncmp(name, "head.", 5) != 0)
            return fail(l->err, "%s: tensor %.80s has no place in a ViT of %d blocks", st_path(l->st), name,
                        depth);
    }
    return 0;
}

static int load_weights(Vit *vit, Loader *l)
{
    const VitConfig *c = &vit->config;
    const int64_t dim = c->dim, patch = c->patch_size;
    const int64_t n_pos = c->pos_cls + (int64_t)c->pos_grid * c->pos_grid;
    vit->patch_weight = take(l, 4, (int64_t[]){dim, 3, patch, patch}, "patch_embed.proj.weight");
    vit->patch_bias = take(l, 1, (int64_t[]){dim}, "patch_embed.proj.bias");
    vit->cls_token = take(l, 3, (int64_t[]){1, 1, dim}, "cls_token");
    vit->pos_embed = take(l, 3, (int64_t[]){1, n_pos, dim}, "pos_embed");
    if (c->n_registers)
        vit->register_tokens = take(l, 3, (int64_t[]){1, c->n_registers, dim}, "register_tokens");
    for (int i = 0; i < c->depth && !l->failed; i++)
        load_block(&vit->blocks[i], l, c, i);
    vit->norm_weight = take(l, 1, (int64_t[]){dim}, "norm.weight");
    vit->norm_bias = take(l, 1, (int64_t[]){dim}, "norm.bias");
    return l->failed ? -1 : check_all_taken(l, c->depth);
}

Vit *vit_open(Safetensors *weights, Error *err)
{
    VitConfig config;
    if (read_config(&config, weights, err))
        return NULL;
    Vit *vit = calloc(1, sizeof *vit + (size_t)config.depth * sizeof *vit->blocks);
    Loader *loader = calloc(1, sizeof *loader);
    if (vit && loader) {
        vit->config = config;
        loader->st = weights;
        loader->err = err;
        if (load_weights(vit, loader)) {
            free(vit);
            vit = NULL;
        }
    } else {
        fail_memory(err, "the ViT's table of weights", sizeof *loader);
        free(vit);
        vit = NULL;
    }
    free(loader);
    return vit;
}

void vit_close(Vit *vit)
{
    if (!vit)
        return;
    free(vit->packed);
    free(vit);
}

/* Called twice: to count, and with memory. */
static void pack_blocks(Vit *vit, Arena *arena)
{
    for (VitBlock *b = vit->blocks; b < vit->blocks + vit->config.depth; b++) {
        linear_pack(&b->qkv, arena);
        linear_pack(&b->proj, arena);
        linear_pack(&b->ffn_in, arena);
        linear_pack(&b->ffn_out, arena);
    }
}

int vit_set_precision(Vit *vit, Precision precision, Error *err)
{
    if (precision == (vit->packed ? PRECISION_BF16 : PRECISION_FP32))
        return 0;
    Arena arena = {0};
    pack_blocks(vit, &arena); /* leaves no layer packed */
    free(vit->packed);
    vit->packed = NULL;
    if (precision == PRECISION_FP32)
        return 0;
    if (arena_allocate(&arena))
        return fail_memory(err, "the ViT's weights in bf16", arena.size);
    vit->packed = arena.base;
    pack_blocks(vit, &arena);
    return 0;
}

const VitConfig *vit_config(const Vit *vit)
{
    return &vit->config;
}

/* ---- activations --------------------------------------------------------------------------------------*/

struct VitState {
    int pos_h, pos_w; /* the grid that `pos` holds, 0 before the first image */
    float *pos;       /* [n_patches][dim] position embedding of the patches at that grid */
    float *patches;   /* [n_patches][3*patch*patch] the pixels, patch by patch */
    float *tokens;    /* [n_tokens][dim] the residual stream */
    float *branch;    /* [n_tokens][dim] what enters and what leaves a branch */
    float *qkv;       /* [n_tokens][3*dim] */
    float *attended;  /* [n_tokens][dim] */
    float *hidden;    /* [n_tokens][hidden], or [n_tokens][2*hidden] before SwiGLU's product */
    float *gated;     /* [n_tokens][hidden] SwiGLU's product, or NULL */
    void *scratch;    /* bf16 attention's; in float32 never touched, so that it takes no memory */
};

/* Called twice: first on an arena that only counts, then on the memory (tensor.h). The struct itself comes
 * first, so that free(state) frees all. */
static void lay_out(VitState *s, Arena *arena, const VitConfig *c, size_t n_patches)
{
    const size_t n_tokens = 1 + (size_t)c->n_registers + n_patches, dim = (size_t)c->dim;
    const size_t hidden = (size_t)c->hidden_dim, patch = (size_t)c->patch_size;
    arena_take(arena, sizeof *s);
    s->pos = arena_floats(arena, n_patches * dim);
    s->patches = arena_floats(arena, n_patches * 3 * patch * patch);
    s->tokens = arena_floats(arena, n_tokens * dim);
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
    VitState layout = {0};
    Arena arena = {0};
    lay_out(&layout, &arena, &vit->config, (size_t)grid_h * (size_t)grid_w);
    if (arena_allocate(&arena)) {
        fail_memory(err, "the ViT's activations", arena.size);
        return NULL;
    }
    VitState *state = (void *)arena.base; /* the first that it takes */
    lay_out(&layout, &arena, &vit->config, (size_t)grid_h * (size_t)grid_w);
    *state = layout;
    return state;
}

void vit_state_free(VitState *state)
{
    free(state);
}

size_t vit_state_bytes(const Vit *vit, int grid_h, int grid_w)
{
    VitState layout = {0};
    Arena arena = {0};
    lay_out(&layout, &arena, &vit->config, (size_t)grid_h * (size_t)grid_w);
    return arena.used;
}

/* ---- the forward pass ---------------------------------------------------------------------------------*/

/* state->pos = the patches' position embedding [grid_h*grid_w][dim] (interpolate_pos_encoding in DINOv2,
 * resample_abs_pos_embed in timm). Both leave the trained square grid as it is and resize anything else
 * bicubically, also another rectangle with as many patches. DINOv2 without registers gives the resize a
 * scale *factor* with a historical offset, (grid + 0.1)/trained, which shifts every sample point a little;
 * the weights were trained with it, so it stays. Offset 0 (registers, timm) is the size form. */
static void position_embedding(const Vit *vit, VitState *s, int grid_h, int grid_w)
{
    const VitConfig *c = &vit->config;
    const float *trained = vit->pos_embed + (c->pos_cls ? c->dim : 0);
    const int grid = c->pos_grid;
    if (s->pos_h == grid_h && s->pos_w == grid_w)
        return; /* the same as for the last image */
    if (grid_h == grid && grid_w == grid) {
        memcpy(s->pos, trained, (size_t)grid * grid * c->dim * sizeof(float));
    } else {
        double scale_h = c->interpolate_offset > 0 ? (grid_h + c->interpolate_offset) / grid : 0;
        double scale_w = c->interpolate_offset > 0 ? (grid_w + c->interpolate_offset) / grid : 0;
        interpolate_bicubic(s->pos, grid_h, grid_w, trained, grid, grid, c->dim, scale_h, scale_w,
                            c->interpolate_antialias);
    }
    s->pos_h = grid_h;
    s->pos_w = grid_w;
}

/* tokens = [class + its position, registers, patches + their positions] */
static void embed(const Vit *vit, VitState *s, const float *pixels, int h, int w)
{
    const VitConfig *c = &vit->config;
    const int grid_h = h / c->patch_size, grid_w = w / c->patch_size, n_patches = grid_h * grid_w;
    const size_t dim = (size_t)c->dim, n_registers = (size_t)c->n_registers;
    float *patch_tokens = s->tokens + (1 + n_registers) * dim;

    memcpy(s->tokens, vit->cls_token, dim * sizeof(float));
    if (c->pos_cls)
        add(s->tokens, vit->pos_embed, dim);
    if (n_registers)
        memcpy(s->tokens + dim, vit->register_tokens, n_registers * dim * sizeof(float));

    gather_patches(s->patches, pixels, h, w, c->patch_size);
    linear(patch_tokens, s->patches, vit->patch_weight, vit->patch_bias, n_patches, c->dim,
           3 * c->patch_size * c->patch_size);
    position_embedding(vit, s, grid_h, grid_w);
    add(patch_tokens, s->pos, (size_t)n_patches * dim);
}

/* tokens += ls * branch; ls NULL: tokens += branch */
static void add_branch(VitState *s, const float *ls, int n_tokens, int dim)
{
    if (ls)
        add_scaled(s->tokens, s->branch, ls, n_tokens, dim);
    else
        add(s->tokens, s->branch, (size_t)n_tokens * (size_t)dim);
}

/* branch = proj(attention(norm1(tokens))) */
static void attention_branch(const Vit *vit, const VitBlock *b, VitState *s, int n_tokens)
{
    const VitConfig *c = &vit->config;
    const int dim = c->dim, head_dim = dim / c->n_heads;
    layer_norm(s->branch, s->tokens, b->norm1_weight, b->norm1_bias, n_tokens, dim, c->eps);
    linear_layer(s->qkv, s->branch, &b->qkv, n_tokens);
    attention_any(s->attended, dim, s->qkv, 3 * dim, s->qkv + dim, 3 * dim, s->qkv + 2 * dim, 3 * dim,
                  n_tokens, n_tokens, c->n_heads, head_dim, 1.0f / sqrtf((float)head_dim), NULL,
                  vit->packed ? s->scratch : NULL);
    linear_layer(s->branch, s->attended, &b->proj, n_tokens);
}

/* tokens += ls1 * branch; tokens += ls2 * ffn(norm2(tokens)) */
static void ffn_branch(const VitBlock *b, const VitConfig *c, VitState *s, int n_tokens)
{
    const int dim = c->dim, hidden = c->hidden_dim;
    const float *inner = s->hidden;
    add_layer_norm(s->branch, s->tokens, s->branch, b->ls1, b->norm2_weight, b->norm2_bias, n_tokens, dim,
                   c->eps);
    if (c->swiglu) {
        linear_layer(s->hidden, s->branch, &b->ffn_in, n_tokens);
        swiglu(s->gated, s->hidden, n_tokens, hidden);
        inner = s->gated;
    } else {
        linear_layer_gelu(s->hidden, s->branch, &b->ffn_in, n_tokens);
    }
    linear_layer(s->branch, inner, &b->ffn_out, n_tokens);
    add_branch(s, b->ls2, n_tokens, dim);
}

void vit_forward(const Vit *vit, VitState *state, const float *pixels, int h, int w, int layer, float *cls,
                 float *patches, TensorTap tap, void *tap_user)
{
    const VitConfig *c = &vit->config;
    const int n_patches = (h / c->patch_size) * (w / c->patch_size), n_prefix = 1 + c->n_registers;
    const int n_tokens = n_prefix + n_patches, dim = c->dim;
    const int64_t tokens_shape[2] = {n_tokens, dim};
    char name[32];

    embed(vit, state, pixels, h, w);
    if (tap)
        tap(tap_user, "vit.embed", 2, tokens_shape, state->tokens);
    for (int i = 0; i < layer && i < c->depth; i++) {
        attention_branch(vit, &vit->blocks[i], state, n_tokens);
        ffn_branch(&vit->blocks[i], c, state, n_tokens);
        snprintf(name, sizeof name, "vit.blocks.%d", i);
        if (tap)
            tap(tap_user, name, 2, tokens_shape, state->tokens);
    }

    /* The model's own norm was trained for the last block only; an inner layer gets a plain one [ours]. */
    const int is_last = layer >= c->depth;
    layer_norm(state->branch, state->tokens, is_last ? vit->norm_weight : NULL,
               is_last ? vit->norm_bias : NULL, n_tokens, dim, c->eps);
    const float *normed_patches = state->branch + (size_t)n_prefix * (size_t)dim;
    if (tap) {
        tap(tap_user, "vit.cls", 1, (int64_t[]){dim}, state->branch);
        tap(tap_user, "vit.patches", 2, (int64_t[]){n_patches, dim}, normed_patches);
    }
    if (cls)
        memcpy(cls, state->branch, (size_t)dim * sizeof(float));
    if (patches)
        memcpy(patches, normed_patches, (size_t)n_patches * (size_t)dim * sizeof(float));
}

/* ---- pixels -------------------------------------------------------------------------------------------*/

/* Bicubic as both families' own evaluation does (dinov2/data/transforms.py, timm's default_cfg), on uint8
 * as PIL; then torchvision's to_tensor and normalize. A byte has 256 values, so a table gives the same
 * floats as dividing each pixel. */
int vit_preprocess(const VitConfig *config, float *pixels, int oh, int ow, const uint8_t *rgb, int h, int w,
                   Error *err)
{
    const size_t n = (size_t)oh * (size_t)ow;
    uint8_t *resized = aligned_array(n, 3);
    if (!resized)
        return fail_memory(err, "the resized image", n * 3);
    if (resize_u8(resized, oh, ow, rgb, h, w, 3, RESIZE_BICUBIC)) {
        free(resized);
        return fail_memory(err, "resizing the image", n * 3);
    }
    for (int channel = 0; channel < 3; channel++) {
        float normalised[256];
        for (int v = 0; v < 256; v++)
            normalised[v] = ((float)v / 255.0f - config->mean[channel]) / config->std[channel];
        for (size_t i = 0; i < n; i++)
            pixels[(size_t)channel * n + i] = normalised[resized[3 * i + (size_t)channel]];
    }
    free(resized);
    return 0;
}
