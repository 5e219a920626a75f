/* vit_load.c - safetensors -> VitConfig and the table of weights. See vit_load.h.
 *
 * Names and shapes are those of dinov2/models/vision_transformer.py and timm's models/vision_transformer.py.
 * The configuration comes from the metadata of tools/convert.py. Without metadata it comes from the shapes,
 * and from values that all published models of a family share. A checkpoint of another library has its names
 * changed before (load/foreign.c); its settings files may then replace some of these values. */
#include "load/vit_load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* Limits on the sizes in a file, far above every published model (DINOv2 g: dim 1536, depth 40). */
enum { MAX_PATCH_SIZE = 64, MAX_DIM = 8192, MAX_DEPTH = 256, MAX_HIDDEN = 65536, MAX_REGISTERS = 256 };
enum { MAX_IMAGE_SIZE = 16384, MAX_POS_GRID = 2048 };

/* ---- the configuration from the metadata --------------------------------------------------------------*/

/* The hidden width of the official constructors. Mlp takes int(dim*ratio). SwiGLUFFNFused takes two thirds of
 * that, rounded up to a multiple of 8. It has three matrices where Mlp has two. */
static int ffn_hidden_dim(int dim, double mlp_ratio, int swiglu)
{
    int hidden = (int)(dim * mlp_ratio);
    return swiglu ? ((int)(hidden * 2.0 / 3.0) + 7) / 8 * 8 : hidden;
}

/* A metadata value that is one of two words: 0 is the first, 1 the second. */
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
    /* A width that no ratio gives: timm's packed SwiGLU may even have an odd one. */
    return st_meta(st, "vit.hidden_dim")
               ? st_meta_int(st, "vit.hidden_dim", 1, MAX_HIDDEN, &c->hidden_dim, err)
               : 0;
}

/* ---- the configuration from names and shapes ----------------------------------------------------------*/

static int block_exists(const Safetensors *st, int block)
{
    char name[64];
    snprintf(name, sizeof name, "blocks.%d.norm1.weight", block);
    return st_find(st, name) != NULL;
}

/* The heads of a published model have 64 channels each. Only timm's and MAE's wide ViTs have 16 heads
 * (TIMM_HEADS of tools/convert.py). */
static int published_heads(int dim, int timm)
{
    if (dim % 64 != 0)
        return 0; /* not published */
    return timm && (dim == 1152 || dim == 1280 || dim == 1408 || dim == 1664) ? 16 : dim / 64;
}

static int read_patch_embed(VitConfig *c, const Safetensors *st, Error *err)
{
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
    return 0;
}

/* The families' training and evaluation settings, which no shape tells. timm's augreg ViTs have mean = std =
 * 0.5. Models with LayerScale (DINOv2, DeiT-3) have ImageNet's. DINOv2's hub files without registers have the
 * offset 0.1. Those with registers have the antialiased form without an offset (dinov2/hub/backbones.py).
 * LayerNorm has eps 1e-6 in all. */
static void published_defaults(VitConfig *c)
{
    static const float imagenet_mean[3] = {0.485f, 0.456f, 0.406f};
    static const float imagenet_std[3] = {0.229f, 0.224f, 0.225f};
    static const float half[3] = {0.5f, 0.5f, 0.5f};
    c->n_heads = published_heads(c->dim, c->timm);
    c->interpolate_antialias = c->timm || c->n_registers > 0;
    c->interpolate_offset = c->interpolate_antialias ? 0.0 : 0.1;
    c->eps = 1e-6f;
    memcpy(c->mean, c->layer_scale ? imagenet_mean : half, sizeof c->mean);
    memcpy(c->std, c->layer_scale ? imagenet_std : half, sizeof c->std);
}

/* In timm the class token may have no position (`no_embed_class`): then the positions are a square. */
static int has_square_positions(const Safetensors *st)
{
    const StTensor *pos = st_find(st, "pos_embed");
    const double n = pos && pos->n_dims == 3 ? (double)pos->shape[1] : 0, side = floor(sqrt(n));
    return n > 0 && side * side == n;
}

/* The settings beside a checkpoint of another library, as far as they are there. */
static int read_foreign_settings(VitConfig *c, const Safetensors *st, Error *err)
{
    double eps = c->eps;
    if ((st_meta(st, "vit.n_heads") && st_meta_int(st, "vit.n_heads", 1, MAX_DIM, &c->n_heads, err)) ||
        (st_meta(st, "vit.eps") && st_meta_float(st, "vit.eps", 0, 1, &eps, err)) ||
        (st_meta(st, "vit.mean") && st_meta_floats(st, "vit.mean", 3, c->mean, err)) ||
        (st_meta(st, "vit.std") && st_meta_floats(st, "vit.std", 3, c->std, err)))
        return -1;
    c->eps = (float)eps;
    return 0;
}

static int check_heads(const VitConfig *c, const Safetensors *st, Error *err)
{
    if (c->n_heads < 1)
        return fail(err,
                    "%s: dim %d is no multiple of 64, so the number of heads must be given: by config.json "
                    "beside the file, or by tools/convert.py --heads",
                    st_path(st), c->dim);
    return 0;
}

static int config_from_shapes(VitConfig *c, const Safetensors *st, Error *err)
{
    if (read_patch_embed(c, st, err))
        return -1;
    while (c->depth <= MAX_DEPTH && block_exists(st, c->depth))
        c->depth++;
    c->layer_scale = st_find(st, "blocks.0.ls1.gamma") != NULL;
    c->swiglu = st_find(st, "blocks.0.mlp.w12.weight") != NULL;
    const StTensor *ffn = st_find(st, c->swiglu ? "blocks.0.mlp.w12.weight" : "blocks.0.mlp.fc1.weight");
    if (ffn && ffn->n_dims == 2 && ffn->shape[0] <= 2 * MAX_HIDDEN)
        c->hidden_dim = (int)ffn->shape[0] / (c->swiglu ? 2 : 1);
    const StTensor *registers = st_find(st, "register_tokens");
    if (registers && registers->n_dims == 3 && registers->shape[1] <= MAX_REGISTERS)
        c->n_registers = (int)registers->shape[1];
    /* DeiT-3 has LayerScale too, but neither registers nor a position for the class token. */
    c->timm = !c->layer_scale || (has_square_positions(st) && c->n_registers == 0);
    published_defaults(c);
    return (st_meta(st, "samlad.names") && read_foreign_settings(c, st, err)) || check_heads(c, st, err) ? -1
                                                                                                         : 0;
}

/* ---- both ---------------------------------------------------------------------------------------------*/

/* The shape of pos_embed [1][n][dim] gives the square grid of the training. It also tells whether the class
 * token has a position (in timm's `no_embed_class` models and its DINOv2 with registers it has none). */
static int read_position_grid(VitConfig *c, const Safetensors *st, Error *err)
{
    const StTensor *pos = st_find(st, "pos_embed");
    if (!pos || pos->n_dims != 3)
        return fail(err, "%s: tensor pos_embed [1][positions][dim] is missing", st_path(st));
    const int64_t n = pos->shape[1];
    for (int grid = 1; grid <= MAX_POS_GRID && grid * grid <= n; grid++)
        if (grid * grid == n - 1 || grid * grid == n) {
            c->pos_grid = grid;
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
    *c = (VitConfig){0};
    if (model && strcmp(model, "vit") != 0)
        return fail(err, "%s: metadata samlad.model is '%.40s', expected vit", st_path(st), model);
    const int converted = model && !st_meta(st, "samlad.names"); /* by tools/convert.py, with all settings */
    if (converted ? config_from_metadata(c, st, err) : config_from_shapes(c, st, err))
        return -1;
    c->qkv_bias = st_find(st, "blocks.0.attn.qkv.bias") != NULL;
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

/* Takes one tensor after the other and remembers the first failure. So the functions below read as a list of
 * tensors. The taken names show which tensors have no place in the network. */
typedef struct Loader {
    Safetensors *st;
    Error *err;
    int failed;
    const char *taken[MAX_DEPTH * 14 + 16]; /* at most 14 a block, and fewer than 16 around the blocks. */
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

/* blocks.BLOCK.NAME [n]. */
static const float *take_vector(Loader *l, int n, int block, const char *name)
{
    char full_name[96];
    snprintf(full_name, sizeof full_name, "blocks.%d.%s", block, name);
    return take(l, 1, (int64_t[]){n}, full_name);
}

/* blocks.BLOCK.NAME.weight [n_out][n_in], without a bias. */
static Linear take_product(Loader *l, int n_out, int n_in, int block, const char *name)
{
    char full_name[96];
    Linear layer = {.n_out = n_out, .n_in = n_in};
    snprintf(full_name, sizeof full_name, "blocks.%d.%s.weight", block, name);
    layer.weight = take(l, 2, (int64_t[]){n_out, n_in}, full_name);
    return layer;
}

/* The same, and blocks.BLOCK.NAME.bias [n_out]. */
static Linear take_linear(Loader *l, int n_out, int n_in, int block, const char *name)
{
    char full_name[96];
    Linear layer = take_product(l, n_out, n_in, block, name);
    snprintf(full_name, sizeof full_name, "blocks.%d.%s.bias", block, name);
    layer.bias = take(l, 1, (int64_t[]){n_out}, full_name);
    return layer;
}

/* blocks.BLOCK.NAME.weight and blocks.BLOCK.NAME.bias [dim]. */
static Norm take_norm(Loader *l, int dim, int block, const char *name)
{
    char full_name[96];
    Norm norm;
    snprintf(full_name, sizeof full_name, "blocks.%d.%s.weight", block, name);
    norm.weight = take(l, 1, (int64_t[]){dim}, full_name);
    snprintf(full_name, sizeof full_name, "blocks.%d.%s.bias", block, name);
    norm.bias = take(l, 1, (int64_t[]){dim}, full_name);
    return norm;
}

static void load_block(VitBlock *b, Loader *l, const VitConfig *c, int i)
{
    const int dim = c->dim, hidden = c->hidden_dim;
    b->norm1 = take_norm(l, dim, i, "norm1");
    b->qkv = c->qkv_bias ? take_linear(l, 3 * dim, dim, i, "attn.qkv")
                         : take_product(l, 3 * dim, dim, i, "attn.qkv");
    b->proj = take_linear(l, dim, dim, i, "attn.proj");
    b->norm2 = take_norm(l, dim, i, "norm2");
    b->ffn_in =
        c->swiglu ? take_linear(l, 2 * hidden, dim, i, "mlp.w12") : take_linear(l, hidden, dim, i, "mlp.fc1");
    b->ffn_out = take_linear(l, dim, hidden, i, c->swiglu ? "mlp.w3" : "mlp.fc2");
    if (c->layer_scale) {
        b->ls1 = take_vector(l, dim, i, "ls1.gamma");
        b->ls2 = take_vector(l, dim, i, "ls2.gamma");
    }
}

/* A tensor that was not taken would change the result (a query norm, one more block). The exceptions belong
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
    const int dim = c->dim, patch = c->patch_size, n_pos = c->pos_cls + c->pos_grid * c->pos_grid;
    vit->patch_embed = (Linear){.n_out = dim, .n_in = 3 * patch * patch};
    vit->patch_embed.weight = take(l, 4, (int64_t[]){dim, 3, patch, patch}, "patch_embed.proj.weight");
    vit->patch_embed.bias = take(l, 1, (int64_t[]){dim}, "patch_embed.proj.bias");
    vit->cls_token = take(l, 3, (int64_t[]){1, 1, dim}, "cls_token");
    vit->pos_embed = take(l, 3, (int64_t[]){1, n_pos, dim}, "pos_embed");
    if (c->n_registers)
        vit->register_tokens = take(l, 3, (int64_t[]){1, c->n_registers, dim}, "register_tokens");
    for (int i = 0; i < c->depth && !l->failed; i++)
        load_block(&vit->blocks[i], l, c, i);
    vit->norm.weight = take(l, 1, (int64_t[]){dim}, "norm.weight");
    vit->norm.bias = take(l, 1, (int64_t[]){dim}, "norm.bias");
    return l->failed ? -1 : check_all_taken(l, c->depth);
}

Vit *vit_open(Safetensors *weights, Error *err)
{
    VitConfig config;
    if (read_config(&config, weights, err))
        return NULL;
    Vit *vit = calloc(1, sizeof *vit + (size_t)config.depth * sizeof *vit->blocks);
    Loader *loader = calloc(1, sizeof *loader);
    if (!vit || !loader) {
        fail_memory(err, "the ViT's table of weights", sizeof *loader);
        free(loader);
        free(vit);
        return NULL;
    }
    vit->config = config;
    loader->st = weights;
    loader->err = err;
    const int status = load_weights(vit, loader);
    free(loader);
    if (status == 0)
        return vit;
    free(vit);
    return NULL;
}

void vit_close(Vit *vit)
{
    if (!vit)
        return;
    free(vit->packed);
    free(vit);
}

const VitConfig *vit_config(const Vit *vit)
{
    return &vit->config;
}

/* Called twice: to count, and with memory (io/memory.h). */
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
    pack_blocks(vit, &arena); /* counts, and leaves no layer packed. */
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
