/* sam.c - Segment Anything: opening a model, and the way from a picture to the network's input
 * (segment_anything: build_sam.py, modeling/sam.py, utils/transforms.py).
 *
 *   picture [h][w][3] --resize, normalise, pad--> pixels [3][S][S] --sam_encoder.c--> embedding [g][g][C]
 *   prompt + embedding --sam_decoder.c--> low-res logits [4g][4g] --sam_rows.c--> logits [h][w]
 *
 * S = image_size, g = S / patch_size, C = out_chans. All sizes come from the weights file's metadata and
 * from the shapes of its tensors, and each shape is checked: a file that lies is refused with the
 * tensor's name. */
#include "sam.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "sam_model.h"

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

/* The metadata's number, or, when the key is absent, what the tensors' shapes say (0: they do not). */
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

/* How many layers: as config_int, but a file may not have more of them than it says, for these would be left
 * out without a word. (Fewer: the missing tensor is named when it is looked for.) */
static int config_depth(const Safetensors *st, const char *key, int n_found, int max, int *out, Error *err)
{
    if (config_int(st, key, n_found, 1, max, out, err))
        return -1;
    return n_found > *out ? fail(err, "%s: metadata key %s is %d, but there are tensors of %d layers",
                                 st_path(st), key, *out, n_found)
                          : 0;
}

/* "2,5,8,11"; may be empty. */
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

/* MobileSAM's encoder: its sizes stand in its tensors' shapes, and tiny_vit.c reads them there. */
static int read_tiny_vit_config(const Safetensors *st, SamConfig *c, Error *err)
{
    c->patch_size = TINY_VIT_PATCH;
    if (config_int(st, "sam.image_size", 0, TINY_VIT_PATCH, 4096, &c->image_size, err) ||
        config_int(st, "sam.embed_dim", sam_dim_of(st, "image_encoder.neck.0.weight", 1), 1, 8192,
                   &c->embed_dim, err))
        return -1;
    return c->image_size % TINY_VIT_PATCH == 0
               ? 0
               : fail(err, "%s: sam.image_size %d is not a multiple of TinyViT's %d", st_path(st),
                      c->image_size, TINY_VIT_PATCH);
}

/* hidden / dim such that the official constructor's int(dim * ratio) is hidden again. */
static double ratio_of(int hidden, int dim)
{
    const double ratio = (double)hidden / dim;
    return (int)(dim * ratio) == hidden ? ratio : (hidden + 0.5) / dim;
}

static int read_encoder_config(const Safetensors *st, SamConfig *c, Error *err)
{
    const char *encoder = st_meta(st, "sam.encoder");
    if (encoder && strcmp(encoder, "tiny_vit") == 0)
        return read_tiny_vit_config(st, c, err);
    if (encoder && strcmp(encoder, "vit") != 0)
        return fail(err, "%s: metadata key sam.encoder is %.60s, expected vit or tiny_vit", st_path(st),
                    encoder);
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

static int read_config(const Safetensors *st, SamConfig *c, Error *err)
{
    const char *model = st_meta(st, "samlad.model");
    if (!model || strcmp(model, "sam") != 0)
        return fail(err, "%s: metadata key samlad.model is %.60s, expected \"sam\"", st_path(st),
                    model ? model : "missing");
    if (read_encoder_config(st, c, err) || read_decoder_config(st, c, err) ||
        st_meta_floats(st, "sam.pixel_mean", 3, c->pixel_mean, err) ||
        st_meta_floats(st, "sam.pixel_std", 3, c->pixel_std, err))
        return -1;
    for (int i = 0; i < 3; i++)
        if (!(c->pixel_std[i] > 0))
            return fail(err, "%s: metadata key sam.pixel_std has a value that is not above 0", st_path(st));
    c->mask_threshold = 0; /* a constant of the official class */
    return 0;
}

/* ---- weights ----------------------------------------------------------------------------------*/

/* Remembers that a tensor was wrong, so that a loader reads as a list of names and shapes. */
typedef struct Loader {
    Safetensors *st;
    Error *err;
    int failed;
} Loader;

static const float *load(Loader *l, int n_dims, const int64_t *shape, const char *name)
{
    if (l->failed)
        return NULL; /* keep the first sentence */
    const float *data = st_weight(l->st, l->err, n_dims, shape, "%s", name);
    l->failed |= !data;
    return data;
}

/* NAME.weight of the given shape, NAME.bias [n_bias]; NAME is printf-style. */
static SamAffine load_affine(Loader *l, int n_dims, const int64_t *shape, int n_bias, const char *format,
                             va_list args)
{
    char prefix[120], name[128];
    vsnprintf(prefix, sizeof prefix, format, args);
    SamAffine a;
    snprintf(name, sizeof name, "%s.weight", prefix);
    a.weight = load(l, n_dims, shape, name);
    snprintf(name, sizeof name, "%s.bias", prefix);
    a.bias = load(l, 1, (int64_t[]){n_bias}, name);
    return a;
}

__attribute__((format(printf, 4, 5))) static SamAffine load_linear(Loader *l, int n_out, int n_in,
                                                                   const char *format, ...)
{
    va_list args;
    va_start(args, format);
    SamAffine a = load_affine(l, 2, (int64_t[]){n_out, n_in}, n_out, format, args);
    va_end(args);
    return a;
}

__attribute__((format(printf, 3, 4))) static SamAffine load_norm(Loader *l, int dim, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    SamAffine a = load_affine(l, 1, (int64_t[]){dim}, dim, format, args);
    va_end(args);
    return a;
}

/* A convolution [a][b][kernel][kernel] with a bias of n_bias (a; for transposed ones b). */
__attribute__((format(printf, 6, 7))) static SamAffine load_conv(Loader *l, int a, int b, int kernel,
                                                                 int n_bias, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    SamAffine conv = load_affine(l, 4, (int64_t[]){a, b, kernel, kernel}, n_bias, format, args);
    va_end(args);
    return conv;
}

/* A relative position table [1 to 8191][head_dim]; get_rel_pos resamples it when the length is not the one
 * that is needed. */
static const float *load_rel_pos(Loader *l, int *length, int head_dim, int block, char axis)
{
    char name[80];
    snprintf(name, sizeof name, "image_encoder.blocks.%d.attn.rel_pos_%c", block, axis);
    const float *table = load(l, 2, (int64_t[]){-1, head_dim}, name);
    *length = sam_dim_of(l->st, name, 0);
    if (table && (*length < 1 || *length > 8191)) {
        l->failed = 1;
        fail(l->err, "%s: tensor %s has %d rows, expected 1 to 8191", st_path(l->st), name, *length);
    }
    return table;
}

/* A linear layer of a block of the image encoder. */
static Linear load_layer(Loader *l, int n_out, int n_in, int block, const char *name)
{
    SamAffine a = load_linear(l, n_out, n_in, "image_encoder.blocks.%d.%s", block, name);
    return (Linear){a.weight, a.bias, NULL, n_out, n_in};
}

static SamAffine load_patch_embed(Loader *l, int dim, int patch)
{
    SamAffine a;
    a.weight = load(l, 4, (int64_t[]){dim, 3, patch, patch}, "image_encoder.patch_embed.proj.weight");
    a.bias = load(l, 1, (int64_t[]){dim}, "image_encoder.patch_embed.proj.bias");
    return a;
}

static void load_vit(Sam *sam, Loader *l)
{
    const SamConfig *c = &sam->config;
    const char *root = "image_encoder";
    int dim = c->embed_dim, head_dim = dim / c->n_heads;
    sam->patch_embed = load_patch_embed(l, dim, c->patch_size);
    sam->pos_embed = load(l, 4, (int64_t[]){1, sam->grid, sam->grid, dim}, "image_encoder.pos_embed");
    for (int i = 0; i < c->depth; i++) {
        SamBlock *b = &sam->blocks[i];
        b->norm1 = load_norm(l, dim, "%s.blocks.%d.norm1", root, i);
        b->qkv = load_layer(l, 3 * dim, dim, i, "attn.qkv");
        b->proj = load_layer(l, dim, dim, i, "attn.proj");
        b->rel_pos_h = load_rel_pos(l, &b->n_rel_h, head_dim, i, 'h');
        b->rel_pos_w = load_rel_pos(l, &b->n_rel_w, head_dim, i, 'w');
        b->norm2 = load_norm(l, dim, "%s.blocks.%d.norm2", root, i);
        b->lin1 = load_layer(l, sam->hidden, dim, i, "mlp.lin1");
        b->lin2 = load_layer(l, dim, sam->hidden, i, "mlp.lin2");
        b->window = c->window_size;
        for (int k = 0; k < c->n_global; k++)
            if (c->global_attn_indexes[k] == i)
                b->window = 0;
    }
}

static void load_tiny_vit(Sam *sam, Loader *l)
{
    sam->tiny_vit = tiny_vit_open(l->st, sam->config.image_size, l->err);
    if (!sam->tiny_vit)
        l->failed = 1;
    else if (tiny_vit_dim(sam->tiny_vit) != sam->config.embed_dim)
        l->failed = !!fail(l->err, "%s: TinyViT gives %d channels, its neck takes %d", st_path(l->st),
                           tiny_vit_dim(sam->tiny_vit), sam->config.embed_dim);
}

static void load_encoder(Sam *sam, Loader *l)
{
    const char *root = "image_encoder";
    const int dim = sam->config.embed_dim, channels = sam->config.out_chans;
    if (sam->config.depth > 0)
        load_vit(sam, l);
    else
        load_tiny_vit(sam, l);
    sam->neck_conv1 = load(l, 4, (int64_t[]){channels, dim, 1, 1}, "image_encoder.neck.0.weight");
    sam->neck_norm1 = load_norm(l, channels, "%s.neck.1", root);
    sam->neck_conv2 = load(l, 4, (int64_t[]){channels, channels, 3, 3}, "image_encoder.neck.2.weight");
    sam->neck_norm2 = load_norm(l, channels, "%s.neck.3", root);
}

static void load_prompt_encoder(Sam *sam, Loader *l)
{
    const char *root = "prompt_encoder";
    int channels = sam->config.out_chans, m = sam->config.mask_in_chans;
    char name[80];
    sam->gaussian = load(l, 2, (int64_t[]){2, channels / 2},
                         "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "prompt_encoder.point_embeddings.%d.weight", i);
        sam->point_embeddings[i] = load(l, 2, (int64_t[]){1, channels}, name);
    }
    sam->not_a_point = load(l, 2, (int64_t[]){1, channels}, "prompt_encoder.not_a_point_embed.weight");
    sam->no_mask = load(l, 2, (int64_t[]){1, channels}, "prompt_encoder.no_mask_embed.weight");
    sam->mask_conv1 = load_conv(l, m / 4, 1, 2, m / 4, "%s.mask_downscaling.0", root);
    sam->mask_norm1 = load_norm(l, m / 4, "%s.mask_downscaling.1", root);
    sam->mask_conv2 = load_conv(l, m, m / 4, 2, m, "%s.mask_downscaling.3", root);
    sam->mask_norm2 = load_norm(l, m, "%s.mask_downscaling.4", root);
    sam->mask_conv3 = load_conv(l, channels, m, 1, channels, "%s.mask_downscaling.6", root);
}

static SamAttention load_attention(Loader *l, int dim, int inner_dim, const char *name)
{
    SamAttention a = {.inner_dim = inner_dim};
    a.q = load_linear(l, inner_dim, dim, "%s.q_proj", name);
    a.k = load_linear(l, inner_dim, dim, "%s.k_proj", name);
    a.v = load_linear(l, inner_dim, dim, "%s.v_proj", name);
    a.out = load_linear(l, dim, inner_dim, "%s.out_proj", name);
    return a;
}

static void load_two_way_layer(Sam *sam, Loader *l, int i)
{
    SamTwoWayLayer *layer = &sam->layers[i];
    int dim = sam->config.out_chans, mlp = sam->config.decoder_mlp_dim;
    int cross = dim / sam->config.attention_downsample_rate;
    char root[64], name[96];
    snprintf(root, sizeof root, "mask_decoder.transformer.layers.%d", i);
    snprintf(name, sizeof name, "%s.self_attn", root);
    layer->self_attn = load_attention(l, dim, dim, name);
    snprintf(name, sizeof name, "%s.cross_attn_token_to_image", root);
    layer->token_to_image = load_attention(l, dim, cross, name);
    snprintf(name, sizeof name, "%s.cross_attn_image_to_token", root);
    layer->image_to_token = load_attention(l, dim, cross, name);
    layer->norm1 = load_norm(l, dim, "%s.norm1", root);
    layer->norm2 = load_norm(l, dim, "%s.norm2", root);
    layer->norm3 = load_norm(l, dim, "%s.norm3", root);
    layer->norm4 = load_norm(l, dim, "%s.norm4", root);
    layer->lin1 = load_linear(l, mlp, dim, "%s.mlp.lin1", root);
    layer->lin2 = load_linear(l, dim, mlp, "%s.mlp.lin2", root);
}

static void load_mask_decoder(Sam *sam, Loader *l)
{
    const SamConfig *c = &sam->config;
    const char *root = "mask_decoder";
    int dim = c->out_chans;
    sam->iou_token = load(l, 2, (int64_t[]){1, dim}, "mask_decoder.iou_token.weight");
    sam->mask_tokens = load(l, 2, (int64_t[]){sam->n_mask_tokens, dim}, "mask_decoder.mask_tokens.weight");
    for (int i = 0; i < c->decoder_depth; i++)
        load_two_way_layer(sam, l, i);
    sam->final_attn = load_attention(l, dim, dim / c->attention_downsample_rate,
                                     "mask_decoder.transformer.final_attn_token_to_image");
    sam->norm_final = load_norm(l, dim, "%s.transformer.norm_final_attn", root);
    sam->up_conv1 = load_conv(l, dim, dim / 4, 2, dim / 4, "%s.output_upscaling.0", root);
    sam->up_norm = load_norm(l, dim / 4, "%s.output_upscaling.1", root);
    sam->up_conv2 = load_conv(l, dim / 4, dim / 8, 2, dim / 8, "%s.output_upscaling.3", root);
    for (int t = 0; t < sam->n_mask_tokens; t++)
        for (int i = 0; i < 3; i++)
            sam->hyper[t][i] = load_linear(l, i < 2 ? dim : dim / 8, dim,
                                           "%s.output_hypernetworks_mlps.%d.layers.%d", root, t, i);
    for (int i = 0; i < c->iou_head_depth; i++)
        sam->iou_head[i] =
            load_linear(l, i == c->iou_head_depth - 1 ? sam->n_mask_tokens : c->iou_head_hidden_dim,
                        i == 0 ? dim : c->iou_head_hidden_dim, "%s.iou_prediction_head.layers.%d", root, i);
}

/* ---- what is made of the weights --------------------------------------------------------------*/

void sam_position(const Sam *sam, float *out, float x, float y)
{
    const int half = sam->config.out_chans / 2;
    const float two_pi = (float)(2 * 3.14159265358979323846);
    const float cx = 2 * x - 1, cy = 2 * y - 1;
    for (int i = 0; i < half; i++) {
        float angle = two_pi * (cx * sam->gaussian[i] + cy * sam->gaussian[half + i]);
        out[i] = sinf(angle);
        out[half + i] = cosf(angle);
    }
}

/* ConvTranspose2d's [c_in][c_out][2][2] as [2·2][c_out][c_in]. */
static void reorder_upscaling(float *out, const float *weight, int c_in, int c_out)
{
    for (int i = 0; i < c_in; i++)
        for (int o = 0; o < c_out; o++)
            for (int s = 0; s < 4; s++)
                out[((size_t)s * c_out + o) * c_in + i] = weight[((size_t)i * c_out + o) * 4 + s];
}

static int derive(Sam *sam, Error *err)
{
    const size_t channels = (size_t)sam->config.out_chans, n = (size_t)sam->n_positions;
    const size_t n_up1 = channels * channels, n_up2 = channels / 4 * (channels / 2);
    sam->derived = aligned_array(n * channels + n_up1 + n_up2, sizeof(float));
    if (!sam->derived)
        return fail_memory(err, "SAM's positional encoding", (n * channels + n_up1 + n_up2) * sizeof(float));
    sam->dense_pe = sam->derived;
    sam->up_weight1 = sam->dense_pe + n * channels;
    sam->up_weight2 = sam->up_weight1 + n_up1;
    for (int y = 0; y < sam->grid; y++)
        for (int x = 0; x < sam->grid; x++)
            sam_position(sam, sam->dense_pe + ((size_t)y * sam->grid + x) * channels,
                         ((float)x + 0.5f) / (float)sam->grid, ((float)y + 0.5f) / (float)sam->grid);
    reorder_upscaling(sam->up_weight1, sam->up_conv1.weight, (int)channels, (int)channels / 4);
    reorder_upscaling(sam->up_weight2, sam->up_conv2.weight, (int)channels / 4, (int)channels / 8);
    return 0;
}

Sam *sam_open(Safetensors *weights, Error *err)
{
    Sam *sam = calloc(1, sizeof *sam);
    if (!sam) {
        fail_memory(err, "a SAM model", sizeof *sam);
        return NULL;
    }
    if (read_config(weights, &sam->config, err)) {
        sam_close(sam);
        return NULL;
    }
    sam->file = weights;
    sam->grid = sam->config.image_size / sam->config.patch_size;
    sam->n_positions = sam->grid * sam->grid;
    sam->hidden = (int)(sam->config.embed_dim * sam->config.mlp_ratio);
    sam->n_mask_tokens = sam->config.n_multimask + 1;
    Loader loader = {weights, err, 0};
    load_encoder(sam, &loader);
    load_prompt_encoder(sam, &loader);
    load_mask_decoder(sam, &loader);
    if (loader.failed || derive(sam, err)) {
        sam_close(sam);
        return NULL;
    }
    return sam;
}

void sam_close(Sam *sam)
{
    if (!sam)
        return;
    tiny_vit_close(sam->tiny_vit);
    free(sam->derived);
    free(sam->packed);
    free(sam);
}

/* Called twice: to count, and with memory. */
static void pack_blocks(Sam *sam, Arena *arena)
{
    if (sam->tiny_vit)
        tiny_vit_pack(sam->tiny_vit, arena);
    for (SamBlock *b = sam->blocks; b < sam->blocks + sam->config.depth; b++) {
        linear_pack(&b->qkv, arena);
        linear_pack(&b->proj, arena);
        linear_pack(&b->lin1, arena);
        linear_pack(&b->lin2, arena);
    }
}

int sam_set_precision(Sam *sam, Precision precision, Error *err)
{
    if (precision == (sam->packed ? PRECISION_BF16 : PRECISION_FP32))
        return 0;
    Arena arena = {0};
    pack_blocks(sam, &arena); /* leaves no layer packed */
    free(sam->packed);
    sam->packed = NULL;
    if (precision == PRECISION_FP32)
        return 0;
    if (arena_allocate(&arena))
        return fail_memory(err, "SAM's weights in bf16", arena.size);
    sam->packed = arena.base;
    pack_blocks(sam, &arena);
    return 0;
}

const SamConfig *sam_config(const Sam *sam)
{
    return &sam->config;
}

int sam_check_finite(const Sam *sam, const char *what, const float *values, size_t n, Error *err)
{
    return all_finite(values, n)
               ? 0
               : fail(err, "%s: these weights give an %s with values that are not finite numbers",
                      st_path(sam->file), what);
}

double sam_encoder_multiply_adds(const Sam *sam)
{
    const SamConfig *c = &sam->config;
    const double dim = c->embed_dim, side = sam->grid, n = side * side;
    const double patch = c->patch_size, out = c->out_chans, window = c->window_size;
    const double neck = n * out * (dim + 9 * out);
    if (sam->tiny_vit)
        return tiny_vit_multiply_adds(sam->tiny_vit) + neck;
    double sum = n * dim * 3 * patch * patch + neck;
    for (int i = 0; i < c->depth; i++) {
        const int global = sam->blocks[i].window == 0;
        const double keys = global ? n : window * window, places = 2 * (global ? side : window);
        sum += n * dim * dim * (4 + 2 * c->mlp_ratio) + n * dim * (2 * keys + places);
    }
    return sum;
}

/* ---- from the picture to the network's input --------------------------------------------------*/

/* ResizeLongestSide.get_preprocess_shape. A side never becomes 0 [ours: the official code fails there]. */
static void input_size(const Sam *sam, int h, int w, int *input_h, int *input_w)
{
    double scale = sam->config.image_size * 1.0 / (h > w ? h : w);
    *input_h = (int)(h * scale + 0.5);
    *input_w = (int)(w * scale + 0.5);
    if (*input_h < 1)
        *input_h = 1;
    if (*input_w < 1)
        *input_w = 1;
}

/* rgb [ih][iw][3] -> pixels [3][S][S]: (value - mean) / std, zeros right of and below the picture. */
static void normalise_and_pad(const Sam *sam, float *pixels, const uint8_t *rgb, int ih, int iw)
{
    const int size = sam->config.image_size;
    memset(pixels, 0, 3 * (size_t)size * size * sizeof(float));
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < ih; y++) {
            float *row = pixels + ((size_t)c * size + y) * size;
            const uint8_t *from = rgb + (size_t)y * iw * 3 + c;
            for (int x = 0; x < iw; x++)
                row[x] = ((float)from[3 * x] - sam->config.pixel_mean[c]) / sam->config.pixel_std[c];
        }
}

static int preprocess(const Sam *sam, SamState *state, SamImage *out, const uint8_t *rgb, int h, int w,
                      Error *err)
{
    uint8_t *resized = sam_state_resized(state);
    out->original_h = h;
    out->original_w = w;
    out->grid = sam->grid;
    input_size(sam, h, w, &out->input_h, &out->input_w);
    if (resize_u8(resized, out->input_h, out->input_w, rgb, h, w, 3, RESIZE_BILINEAR))
        return fail_memory(err, "resizing a picture", (unsigned long long)h * out->input_w * 3);
    normalise_and_pad(sam, sam_state_pixels(state), resized, out->input_h, out->input_w);
    return 0;
}

int sam_encode(const Sam *sam, SamState *state, SamImage *out, const uint8_t *rgb, int h, int w,
               int keep_pixels, TensorTap tap, void *tap_user, Error *err)
{
    const size_t size = (size_t)sam->config.image_size, n_pixels = 3 * size * size;
    const size_t n_embedding = (size_t)sam->n_positions * sam->config.out_chans;
    memset(out, 0, sizeof *out);
    if (h < 1 || w < 1)
        return fail(err, "SAM: a picture of %d x %d pixels has nothing to segment", w, h);
    if (preprocess(sam, state, out, rgb, h, w, err))
        return -1;
    const float *pixels = sam_state_pixels(state);
    if (tap)
        tap(tap_user, "sam.pixels", 3, (int64_t[]){3, (int64_t)size, (int64_t)size}, pixels);
    out->embedding = aligned_array(n_embedding, sizeof(float));
    if (keep_pixels)
        out->pixels = aligned_array(n_pixels, sizeof(float));
    if (!out->embedding || (keep_pixels && !out->pixels)) {
        sam_image_free(out);
        return fail_memory(err, "an image embedding", (n_embedding + n_pixels) * sizeof(float));
    }
    if (keep_pixels)
        memcpy(out->pixels, pixels, n_pixels * sizeof(float));
    if (sam_encode_pixels(sam, state, out->embedding, pixels, tap, tap_user, err) ||
        sam_check_finite(sam, "embedding", out->embedding, n_embedding, err)) {
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
    free(image->pixels);
    image->embedding = image->pixels = NULL;
}

int sam_tap_planar(TensorTap tap, void *user, const char *name, const float *data, int h, int w, int channels,
                   Error *err)
{
    const size_t n = (size_t)h * w;
    if (!tap)
        return 0;
    float *planar = aligned_array(n * channels, sizeof(float));
    if (!planar)
        return fail_memory(err, name, n * channels * sizeof(float));
    for (size_t i = 0; i < n; i++)
        for (int c = 0; c < channels; c++)
            planar[c * n + i] = data[i * channels + c];
    tap(user, name, 3, (int64_t[]){channels, h, w}, planar);
    free(planar);
    return 0;
}
