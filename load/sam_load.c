/* sam_load.c - see sam_load.h: from a safetensors file to the official modules' weights. */
#include "load/sam_load.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* ---- configuration ----------------------------------------------------------------------------*/

int sam_dim_of(const Safetensors *st, const char *name, int axis)
{
    const StTensor *tensor = st_find(st, name);
    if (!tensor || axis >= tensor->n_dims || tensor->shape[axis] > 1 << 24)
        return 0;
    return (int)tensor->shape[axis];
}

int sam_count_tensors(const Safetensors *st, const char *before, const char *after, int limit)
{
    char name[160];
    int n = 0;
    for (; n <= limit; n++) {
        snprintf(name, sizeof name, "%s%d%s", before, n, after);
        if (!st_find(st, name))
            break;
    }
    return n;
}

/* The metadata's number. If the key is absent, the number that follows from the tensors' shapes (0: none
 * does). */
static int config_int(const Safetensors *st, const char *key, int from_shapes, int min, int max, int *out,
                      Error *err)
{
    if (st_meta(st, key) || from_shapes == 0)
        return st_meta_int(st, key, min, max, out, err);
    if (from_shapes < min || from_shapes > max)
        return fail(err, "%s: the tensors' shapes give %s = %d, expected %d to %d", st_path(st), key,
                    from_shapes, min, max);
    *out = from_shapes;
    return 0;
}

/* A number of layers, as config_int. A file with more layers than its metadata says is refused, because the
 * others would be ignored silently. With fewer layers, the later look-up names the missing tensor. */
static int config_depth(const Safetensors *st, const char *key, int n_found, int max, int *out, Error *err)
{
    if (config_int(st, key, n_found, 1, max, out, err))
        return -1;
    return n_found > *out ? fail(err, "%s: metadata key %s is %d, but there are tensors of %d layers",
                                 st_path(st), key, *out, n_found)
                          : 0;
}

/* Parses "2,5,8,11", which may be empty. */
static int config_global_blocks(const Safetensors *st, SamConfig *c, Error *err)
{
    const char *key = "sam.global_attn_indexes", *text = st_meta(st, key);
    if (!text)
        return fail(err, "%s: metadata key %s is missing", st_path(st), key);
    c->n_global = 0;
    for (const char *p = text; *p;) {
        char *end;
        long value = strtol(p, &end, 10);
        if (end == p || value < 0 || value >= c->depth || c->n_global >= SAM_MAX_DEPTH ||
            (*end && *end != ','))
            return fail(err,
                        "%s: metadata key %s is \"%.60s\", expected block numbers from 0 to %d with commas",
                        st_path(st), key, text, c->depth - 1);
        c->global_attn_indexes[c->n_global++] = (int)value;
        p = *end ? end + 1 : end;
    }
    return 0;
}

/* A ratio near hidden / dim for which the official constructor's int(dim * ratio) is hidden again. */
static double ratio_of(int hidden, int dim)
{
    const double ratio = (double)hidden / dim;
    return (int)(dim * ratio) == hidden ? ratio : (hidden + 0.5) / dim;
}

/* Another encoder reads its own sizes. Only the picture's side and the channels of the neck's input are read
 * here. */
static int read_other_encoder(const Safetensors *st, SamConfig *c, int patch_size, Error *err)
{
    c->patch_size = patch_size;
    if (config_int(st, "sam.image_size", 0, patch_size, 4096, &c->image_size, err))
        return -1;
    return config_int(st, "sam.embed_dim", sam_dim_of(st, "image_encoder.neck.0.weight", 1), 1, 8192,
                      &c->embed_dim, err);
}

static int read_image_encoder_config(const Safetensors *st, SamConfig *c, Error *err)
{
    const char *patch = "image_encoder.patch_embed.proj.weight";
    int head_dim = sam_dim_of(st, "image_encoder.blocks.0.attn.rel_pos_h", 1);
    int grid = sam_dim_of(st, "image_encoder.pos_embed", 1);
    int depth = sam_count_tensors(st, "image_encoder.blocks.", ".norm1.weight", SAM_MAX_DEPTH);
    if (config_int(st, "sam.patch_size", sam_dim_of(st, patch, 2), 1, 256, &c->patch_size, err) ||
        config_int(st, "sam.embed_dim", sam_dim_of(st, patch, 0), 1, 8192, &c->embed_dim, err) ||
        config_int(st, "sam.image_size", grid <= 4096 ? grid * c->patch_size : 0, 1, 4096, &c->image_size,
                   err) ||
        config_depth(st, "sam.depth", depth, SAM_MAX_DEPTH, &c->depth, err) ||
        config_int(st, "sam.n_heads", head_dim > 0 ? c->embed_dim / head_dim : 0, 1, 256, &c->n_heads, err) ||
        config_int(st, "sam.window_size", 0, 0, 256, &c->window_size, err) ||
        config_global_blocks(st, c, err))
        return -1;
    c->mlp_ratio = ratio_of(sam_dim_of(st, "image_encoder.blocks.0.mlp.lin1.weight", 0), c->embed_dim);
    if (st_meta(st, "sam.mlp_ratio") && st_meta_float(st, "sam.mlp_ratio", 1.0 / 64, 64, &c->mlp_ratio, err))
        return -1;
    if (c->image_size % c->patch_size != 0 || c->image_size / c->patch_size > 256)
        return fail(err, "%s: sam.image_size %d is not 1 to 256 times sam.patch_size %d", st_path(st),
                    c->image_size, c->patch_size);
    if (c->embed_dim % c->n_heads != 0)
        return fail(err, "%s: sam.embed_dim %d is not a multiple of sam.n_heads %d", st_path(st),
                    c->embed_dim, c->n_heads);
    return 0;
}

static int read_decoder_config(const Safetensors *st, SamConfig *c, Error *err)
{
    int n_layers =
        sam_count_tensors(st, "mask_decoder.transformer.layers.", ".norm1.weight", SAM_MAX_DECODER_DEPTH);
    int channels = sam_dim_of(st, "image_encoder.neck.0.weight", 0);
    int cross_dim = sam_dim_of(st, "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", 0);
    int n_tokens = sam_dim_of(st, "mask_decoder.mask_tokens.weight", 0);
    int mlp_dim = sam_dim_of(st, "mask_decoder.transformer.layers.0.mlp.lin1.weight", 0);
    int iou_depth = sam_count_tensors(st, "mask_decoder.iou_prediction_head.layers.", ".weight", SAM_MAX_MLP);
    int iou_hidden = sam_dim_of(st, "mask_decoder.iou_prediction_head.layers.0.weight", 0);
    if (config_int(st, "sam.out_chans", channels, 8, 4096, &c->out_chans, err) ||
        config_int(st, "sam.mask_in_chans", sam_dim_of(st, "prompt_encoder.mask_downscaling.3.weight", 0), 4,
                   1024, &c->mask_in_chans, err) ||
        config_depth(st, "sam.decoder_depth", n_layers, SAM_MAX_DECODER_DEPTH, &c->decoder_depth, err) ||
        config_int(st, "sam.decoder_mlp_dim", mlp_dim, 1, 65536, &c->decoder_mlp_dim, err) ||
        config_int(st, "sam.decoder_heads", 0, 1, 64, &c->decoder_heads, err) ||
        config_int(st, "sam.attention_downsample_rate", cross_dim > 0 ? c->out_chans / cross_dim : 0, 1, 64,
                   &c->attention_downsample_rate, err) ||
        config_int(st, "sam.num_multimask_outputs", n_tokens > 1 ? n_tokens - 1 : 0, 1,
                   SAM_MAX_MASK_TOKENS - 1, &c->n_multimask, err) ||
        config_depth(st, "sam.iou_head_depth", iou_depth, SAM_MAX_MLP, &c->iou_head_depth, err) ||
        config_int(st, "sam.iou_head_hidden_dim", c->iou_head_depth > 1 ? iou_hidden : 1, 1, 65536,
                   &c->iou_head_hidden_dim, err))
        return -1;
    int cross = c->out_chans / c->attention_downsample_rate;
    if (c->out_chans % 8 != 0 || c->out_chans % c->attention_downsample_rate != 0 ||
        c->out_chans % c->decoder_heads != 0 || cross % c->decoder_heads != 0)
        return fail(err,
                    "%s: sam.out_chans %d does not divide by 8, by sam.attention_downsample_rate %d and by "
                    "sam.decoder_heads %d",
                    st_path(st), c->out_chans, c->attention_downsample_rate, c->decoder_heads);
    if (c->mask_in_chans % 4 != 0)
        return fail(err, "%s: sam.mask_in_chans %d is not a multiple of 4", st_path(st), c->mask_in_chans);
    return 0;
}

/* eps of LayerNorm: the official code's, unless the metadata have another. */
static int read_eps(const Safetensors *st, const char *key, double official, float *out, Error *err)
{
    double eps = official;
    if (st_meta(st, key) && st_meta_float(st, key, 0, 1, &eps, err))
        return -1;
    *out = (float)eps;
    return 0;
}

int sam_load_config(SamWeights *weights, const Safetensors *file, int patch_size, Error *err)
{
    SamConfig *c = &weights->config;
    const char *model = st_meta(file, "samlad.model");
    if (!model || strcmp(model, "sam") != 0)
        return fail(err, "%s: metadata key samlad.model is %.60s, expected \"sam\"", st_path(file),
                    model ? model : "missing");
    if (patch_size ? read_other_encoder(file, c, patch_size, err) : read_image_encoder_config(file, c, err))
        return -1;
    if (read_decoder_config(file, c, err) || read_eps(file, "sam.encoder_eps", 1e-6, &c->encoder_eps, err) ||
        read_eps(file, "sam.decoder_eps", 1e-5, &c->decoder_eps, err) ||
        st_meta_floats(file, "sam.pixel_mean", 3, c->pixel_mean, err) ||
        st_meta_floats(file, "sam.pixel_std", 3, c->pixel_std, err))
        return -1;
    for (int i = 0; i < 3; i++)
        if (!(c->pixel_std[i] > 0))
            return fail(err, "%s: metadata key sam.pixel_std has a value that is not above 0", st_path(file));
    c->mask_threshold = 0; /* a constant of the official class. */
    weights->file = file;
    weights->grid = c->image_size / c->patch_size;
    weights->n_positions = weights->grid * weights->grid;
    weights->n_embedding = (size_t)weights->n_positions * (size_t)c->out_chans;
    weights->n_mask_tokens = c->n_multimask + 1;
    return 0;
}

/* ---- tensors ----------------------------------------------------------------------------------*/

/* Remembers that a tensor was wrong, so that the functions below read as a list of names and shapes. */
typedef struct Loader {
    Safetensors *st;
    Error *err;
    int failed;
} Loader;

static const float *load(Loader *l, int n_dims, const int64_t *shape, const char *name)
{
    if (l->failed)
        return NULL; /* keep the first sentence. */
    const float *data = st_weight(l->st, l->err, n_dims, shape, "%s", name);
    l->failed |= !data;
    return data;
}

static const float *load_vector(Loader *l, int n, const char *name, const char *part)
{
    char full[160];
    snprintf(full, sizeof full, "%s.%s", name, part);
    return load(l, 1, (int64_t[]){n}, full);
}

static const float *load_weight(Loader *l, int n_dims, const int64_t *shape, const char *name)
{
    char full[160];
    snprintf(full, sizeof full, "%s.weight", name);
    return load(l, n_dims, shape, full);
}

/* NAME.weight [dim], NAME.bias [dim]. */
static Norm load_norm(Loader *l, int dim, const char *name)
{
    const float *weight = load_vector(l, dim, name, "weight");
    return (Norm){weight, load_vector(l, dim, name, "bias")};
}

/* NAME.weight [n_out][n_in], NAME.bias [n_out]. */
static Linear load_linear(Loader *l, int n_out, int n_in, const char *name)
{
    const float *weight = load_weight(l, 2, (int64_t[]){n_out, n_in}, name);
    return (Linear){weight, load_vector(l, n_out, name, "bias"), NULL, n_out, n_in};
}

/* A convolution whose stride is its kernel is a Linear on patches. A 1 x 1 convolution is a Linear on
 * pixels. */
static Linear load_patch_linear(Loader *l, int n_out, int n_in, int kernel, const char *name)
{
    const float *weight = load_weight(l, 4, (int64_t[]){n_out, n_in, kernel, kernel}, name);
    return (Linear){weight, load_vector(l, n_out, name, "bias"), NULL, n_out, n_in * kernel * kernel};
}

/* NAME.weight [a][b][kernel][kernel], NAME.bias [n_bias]. n_bias is a, in transposed convolutions b; 0: no
 * bias. */
static SamConv load_conv(Loader *l, int a, int b, int kernel, int n_bias, const char *name)
{
    const float *weight = load_weight(l, 4, (int64_t[]){a, b, kernel, kernel}, name);
    return (SamConv){weight, n_bias ? load_vector(l, n_bias, name, "bias") : NULL};
}

/* ---- image_encoder ----------------------------------------------------------------------------*/

/* A relative position table [1 to 8191][head_dim]. get_rel_pos resamples a table of another length than it
 * needs. */
static const float *load_rel_pos(Loader *l, int *length, int head_dim, const char *name)
{
    const float *table = load(l, 2, (int64_t[]){-1, head_dim}, name);
    *length = sam_dim_of(l->st, name, 0);
    if (table && (*length < 1 || *length > 8191)) {
        l->failed = 1;
        fail(l->err, "%s: tensor %s has %d rows, expected 1 to 8191", st_path(l->st), name, *length);
    }
    return table;
}

/* The NAME of a layer's part: PREFIX.PART. */
static const char *part_of(char name[128], const char *prefix, const char *part)
{
    snprintf(name, 128, "%s.%s", prefix, part);
    return name;
}

static void load_block(Loader *l, SamBlock *b, const SamConfig *c, int i)
{
    const int dim = c->embed_dim, head_dim = dim / c->n_heads, hidden = (int)(dim * c->mlp_ratio);
    char block[64], name[128];
    snprintf(block, sizeof block, "image_encoder.blocks.%d", i);
    b->norm1 = load_norm(l, dim, part_of(name, block, "norm1"));
    b->qkv = load_linear(l, 3 * dim, dim, part_of(name, block, "attn.qkv"));
    b->proj = load_linear(l, dim, dim, part_of(name, block, "attn.proj"));
    b->rel_pos_h = load_rel_pos(l, &b->n_rel_h, head_dim, part_of(name, block, "attn.rel_pos_h"));
    b->rel_pos_w = load_rel_pos(l, &b->n_rel_w, head_dim, part_of(name, block, "attn.rel_pos_w"));
    b->norm2 = load_norm(l, dim, part_of(name, block, "norm2"));
    b->lin1 = load_linear(l, hidden, dim, part_of(name, block, "mlp.lin1"));
    b->lin2 = load_linear(l, dim, hidden, part_of(name, block, "mlp.lin2"));
    b->window_size = c->window_size;
    for (int k = 0; k < c->n_global; k++)
        if (c->global_attn_indexes[k] == i)
            b->window_size = 0;
}

static void load_image_encoder(Loader *l, SamWeights *w)
{
    const SamConfig *c = &w->config;
    SamImageEncoder *e = &w->image_encoder;
    const int dim = c->embed_dim, channels = c->out_chans;
    if (c->depth > 0) {
        e->patch_embed = load_patch_linear(l, dim, 3, c->patch_size, "image_encoder.patch_embed.proj");
        e->pos_embed = load(l, 4, (int64_t[]){1, w->grid, w->grid, dim}, "image_encoder.pos_embed");
    }
    for (int i = 0; i < c->depth; i++)
        load_block(l, &e->blocks[i], c, i);
    const SamConv neck_conv1 = load_conv(l, channels, dim, 1, 0, "image_encoder.neck.0");
    e->neck_conv1 = (Linear){neck_conv1.weight, NULL, NULL, channels, dim};
    e->neck_norm1 = load_norm(l, channels, "image_encoder.neck.1");
    e->neck_conv2 = load_conv(l, channels, channels, 3, 0, "image_encoder.neck.2");
    e->neck_norm2 = load_norm(l, channels, "image_encoder.neck.3");
}

/* ---- prompt_encoder ---------------------------------------------------------------------------*/

static void load_prompt_encoder(Loader *l, SamWeights *w)
{
    SamPromptEncoder *e = &w->prompt_encoder;
    const int channels = w->config.out_chans, m = w->config.mask_in_chans;
    const int64_t embedding[2] = {1, channels};
    char name[80];
    e->positional_encoding_gaussian_matrix = load(
        l, 2, (int64_t[]){2, channels / 2}, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "prompt_encoder.point_embeddings.%d", i);
        e->point_embeddings[i] = load_weight(l, 2, embedding, name);
    }
    e->not_a_point_embed = load_weight(l, 2, embedding, "prompt_encoder.not_a_point_embed");
    e->no_mask_embed = load_weight(l, 2, embedding, "prompt_encoder.no_mask_embed");
    e->mask_downscaling.conv1 = load_conv(l, m / 4, 1, 2, m / 4, "prompt_encoder.mask_downscaling.0");
    e->mask_downscaling.norm1 = load_norm(l, m / 4, "prompt_encoder.mask_downscaling.1");
    e->mask_downscaling.conv2 = load_conv(l, m, m / 4, 2, m, "prompt_encoder.mask_downscaling.3");
    e->mask_downscaling.norm2 = load_norm(l, m, "prompt_encoder.mask_downscaling.4");
    e->mask_downscaling.conv3 = load_patch_linear(l, channels, m, 1, "prompt_encoder.mask_downscaling.6");
}

/* ---- mask_decoder -----------------------------------------------------------------------------*/

static SamAttention load_attention(Loader *l, int dim, int internal_dim, const char *prefix)
{
    SamAttention a = {.internal_dim = internal_dim};
    char name[128];
    a.q_proj = load_linear(l, internal_dim, dim, part_of(name, prefix, "q_proj"));
    a.k_proj = load_linear(l, internal_dim, dim, part_of(name, prefix, "k_proj"));
    a.v_proj = load_linear(l, internal_dim, dim, part_of(name, prefix, "v_proj"));
    a.out_proj = load_linear(l, dim, internal_dim, part_of(name, prefix, "out_proj"));
    return a;
}

static void load_two_way_attention_block(Loader *l, SamTwoWayAttentionBlock *b, const SamConfig *c, int i)
{
    const int dim = c->out_chans, mlp = c->decoder_mlp_dim, cross = dim / c->attention_downsample_rate;
    char block[64], name[128];
    snprintf(block, sizeof block, "mask_decoder.transformer.layers.%d", i);
    b->self_attn = load_attention(l, dim, dim, part_of(name, block, "self_attn"));
    b->cross_attn_token_to_image =
        load_attention(l, dim, cross, part_of(name, block, "cross_attn_token_to_image"));
    b->cross_attn_image_to_token =
        load_attention(l, dim, cross, part_of(name, block, "cross_attn_image_to_token"));
    b->norm1 = load_norm(l, dim, part_of(name, block, "norm1"));
    b->norm2 = load_norm(l, dim, part_of(name, block, "norm2"));
    b->norm3 = load_norm(l, dim, part_of(name, block, "norm3"));
    b->norm4 = load_norm(l, dim, part_of(name, block, "norm4"));
    b->lin1 = load_linear(l, mlp, dim, part_of(name, block, "mlp.lin1"));
    b->lin2 = load_linear(l, dim, mlp, part_of(name, block, "mlp.lin2"));
}

/* MLP: layers.0, layers.1, ... of n_in -> hidden -> ... -> n_out. */
static void load_mlp(Loader *l, Linear *layers, int n_layers, const int dims[3], const char *prefix)
{
    char name[128];
    for (int i = 0; i < n_layers; i++) {
        const int n_in = dims[i > 0], n_out = dims[i < n_layers - 1 ? 1 : 2];
        snprintf(name, sizeof name, "%s.layers.%d", prefix, i);
        layers[i] = load_linear(l, n_out, n_in, name);
    }
}

static void load_mask_decoder(Loader *l, SamWeights *w)
{
    const SamConfig *c = &w->config;
    SamMaskDecoder *d = &w->mask_decoder;
    const int dim = c->out_chans, n_mask_tokens = w->n_mask_tokens;
    char name[96];
    d->iou_token = load_weight(l, 2, (int64_t[]){1, dim}, "mask_decoder.iou_token");
    d->mask_tokens = load_weight(l, 2, (int64_t[]){n_mask_tokens, dim}, "mask_decoder.mask_tokens");
    for (int i = 0; i < c->decoder_depth; i++)
        load_two_way_attention_block(l, &d->transformer.layers[i], c, i);
    d->transformer.final_attn_token_to_image = load_attention(
        l, dim, dim / c->attention_downsample_rate, "mask_decoder.transformer.final_attn_token_to_image");
    d->transformer.norm_final_attn = load_norm(l, dim, "mask_decoder.transformer.norm_final_attn");
    d->output_upscaling.conv1 = load_conv(l, dim, dim / 4, 2, dim / 4, "mask_decoder.output_upscaling.0");
    d->output_upscaling.norm = load_norm(l, dim / 4, "mask_decoder.output_upscaling.1");
    d->output_upscaling.conv2 = load_conv(l, dim / 4, dim / 8, 2, dim / 8, "mask_decoder.output_upscaling.3");
    for (int t = 0; t < n_mask_tokens; t++) {
        snprintf(name, sizeof name, "mask_decoder.output_hypernetworks_mlps.%d", t);
        load_mlp(l, d->output_hypernetworks_mlps[t], 3, (int[]){dim, dim, dim / 8}, name);
    }
    load_mlp(l, d->iou_prediction_head, c->iou_head_depth,
             (int[]){dim, c->iou_head_hidden_dim, n_mask_tokens}, "mask_decoder.iou_prediction_head");
}

int sam_load_weights(SamWeights *weights, Safetensors *file, Error *err)
{
    Loader loader = {file, err, 0};
    load_image_encoder(&loader, weights);
    load_prompt_encoder(&loader, weights);
    load_mask_decoder(&loader, weights);
    return loader.failed ? -1 : 0;
}

void sam_pack_weights(SamWeights *weights, Arena *arena)
{
    for (int i = 0; i < weights->config.depth; i++) {
        SamBlock *b = &weights->image_encoder.blocks[i];
        linear_pack(&b->qkv, arena);
        linear_pack(&b->proj, arena);
        linear_pack(&b->lin1, arena);
        linear_pack(&b->lin2, arena);
    }
}
