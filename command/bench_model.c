/* command/bench_model.c - models of the published sizes with random weights, as safetensors in memory.
 *
 * A Recipe lists the tensors: name, shape, mean and deviation. Linear and convolution weights have the
 * deviation 1/sqrt(inputs), and gains of norms are about 1. So activations keep their size from layer to
 * layer, as in trained networks. The header (JSON) and the numbers are then laid out as in a file, and
 * st_open_memory checks them like a file. */
#include "command/bench_model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/bytes.h"
#include "io/fail.h"
#include "io/json.h"

enum { MAX_TENSORS = 1024 };

typedef struct Recipe {
    JsonWriter header;
    size_t n_floats;
    int n_tensors;
    struct {
        size_t n;
        float mean, deviation;
    } tensors[MAX_TENSORS];
} Recipe;

void random_floats(float *x, size_t n, float mean, float deviation, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
    const float width =
        deviation * 3.4641016f / 16777216.0f; /* sqrt(12): the deviation of [0,1) is its inverse. */
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        x[i] = mean + width * ((float)(state >> 40) - 8388607.5f);
    }
}

/* ---- the list of tensors ------------------------------------------------------------------------------*/

static Recipe *recipe_new(const char *model)
{
    Recipe *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    json_begin(&r->header);
    json_open(&r->header, '{');
    json_key(&r->header, "__metadata__");
    json_open(&r->header, '{');
    json_key(&r->header, "samlad.model"), json_string(&r->header, model);
    return r;
}

static void recipe_free(Recipe *r)
{
    if (r)
        json_end(&r->header);
    free(r);
}

__attribute__((format(printf, 3, 4))) static void meta(Recipe *r, const char *key, const char *format, ...)
{
    char value[128];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    json_key(&r->header, key), json_string(&r->header, value);
}

/* Append a tensor to the recipe; its name is printf-style. */
__attribute__((format(printf, 6, 7))) static void tensor(Recipe *r, float mean, float deviation, int n_dims,
                                                         const int *shape, const char *format, ...)
{
    char name[160];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (r->n_tensors == MAX_TENSORS) {
        r->header.failed = 1;
        return;
    }
    size_t n = 1;
    json_key(&r->header, name);
    json_open(&r->header, '{');
    json_key(&r->header, "dtype"), json_string(&r->header, "F32");
    json_key(&r->header, "shape");
    json_open(&r->header, '[');
    for (int d = 0; d < n_dims; d++) {
        json_int(&r->header, shape[d]);
        n *= (size_t)shape[d];
    }
    json_close(&r->header, ']');
    json_key(&r->header, "data_offsets");
    json_open(&r->header, '[');
    json_int(&r->header, (long long)(4 * r->n_floats)),
        json_int(&r->header, (long long)(4 * (r->n_floats + n)));
    json_close(&r->header, ']');
    json_close(&r->header, '}');
    r->tensors[r->n_tensors].n = n;
    r->tensors[r->n_tensors].mean = mean;
    r->tensors[r->n_tensors++].deviation = deviation;
    r->n_floats += n;
}

#define SHAPE(...)                                                                                           \
    (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[])                                               \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }

static void linear_layer(Recipe *r, const char *name, int n_out, int n_in)
{
    tensor(r, 0, 1 / sqrtf((float)n_in), SHAPE(n_out, n_in), "%s.weight", name);
    tensor(r, 0, 0.02f, SHAPE(n_out), "%s.bias", name);
}

/* [a][b][kernel][kernel] with n_bias biases (0: none). */
static void conv_layer(Recipe *r, const char *name, int a, int b, int kernel, int n_bias)
{
    const int n_in = n_bias == b && a != b ? a : b * kernel * kernel; /* transposed ones do not overlap. */
    tensor(r, 0, 1 / sqrtf((float)n_in), SHAPE(a, b, kernel, kernel), "%s.weight", name);
    if (n_bias)
        tensor(r, 0, 0.02f, SHAPE(n_bias), "%s.bias", name);
}

static void norm_layer(Recipe *r, const char *name, int dim)
{
    tensor(r, 1, 0.1f, SHAPE(dim), "%s.weight", name);
    tensor(r, 0, 0.02f, SHAPE(dim), "%s.bias", name);
}

/* ---- from the list to a model -------------------------------------------------------------------------*/

static int lay_out(BenchModel *model, const Recipe *r, const char *name, int blank, Error *err)
{
    const size_t before = (8 + r->header.length + 63) & ~(size_t)63; /* padded with spaces: data aligned. */
    const size_t n_bytes = before + 4 * r->n_floats;
    char *bytes = calloc(n_bytes / 64 + 2, 64);
    if (!bytes)
        return fail_memory(err, name, n_bytes);
    char *aligned = bytes + (-(uintptr_t)bytes & 63);
    memset(aligned, ' ', before);
    for (int i = 0; i < 8; i++)
        aligned[i] = (char)((uint64_t)(before - 8) >> 8 * i);
    memcpy(aligned + 8, r->header.text, r->header.length);
    float *x = (float *)(void *)(aligned + before);
    for (int i = 0; i < r->n_tensors && !blank; i++) {
        random_floats(x, r->tensors[i].n, r->tensors[i].mean, r->tensors[i].deviation, (uint64_t)i + 1);
        x += r->tensors[i].n;
    }
    if (BIG_ENDIAN_MEMORY) /* a file is little-endian. */
        bytes_reverse((uint8_t *)aligned + before, (const uint8_t *)aligned + before, r->n_floats, 4);
    model->memory = bytes;
    model->weights = st_open_memory(name, aligned, n_bytes, err);
    if (model->weights)
        return 0;
    bench_model_free(model);
    return -1;
}

/* Frees the recipe in any case. */
static int finish(BenchModel *model, Recipe *r, const char *name, int blank, Error *err)
{
    *model = (BenchModel){0};
    if (r)
        json_close(&r->header, '}');
    int status = r && !r->header.failed ? lay_out(model, r, name, blank, err)
                                        : fail_memory(err, "a model's list of tensors", sizeof *r);
    recipe_free(r);
    return status;
}

void bench_model_free(BenchModel *model)
{
    st_close(model->weights);
    free(model->memory);
    *model = (BenchModel){0};
}

/* ---- Segment Anything ---------------------------------------------------------------------------------*/

enum {
    SAM_SIZE = 1024,
    SAM_PATCH = 16,
    SAM_GRID = SAM_SIZE / SAM_PATCH,
    SAM_WINDOW = 14,
    SAM_CHANNELS = 256
};

static int is_global(const char *blocks, int block)
{
    for (const char *p = blocks; *p; p += *p == ',') {
        char *end;
        if (strtol(p, &end, 10) == block)
            return 1;
        p = end;
    }
    return 0;
}

static void sam_neck(Recipe *r, int dim)
{
    conv_layer(r, "image_encoder.neck.0", SAM_CHANNELS, dim, 1, 0);
    norm_layer(r, "image_encoder.neck.1", SAM_CHANNELS);
    conv_layer(r, "image_encoder.neck.2", SAM_CHANNELS, SAM_CHANNELS, 3, 0);
    norm_layer(r, "image_encoder.neck.3", SAM_CHANNELS);
}

static void sam_image_encoder(Recipe *r, const SamSizes *s)
{
    const int dim = s->embed_dim, head_dim = dim / s->n_heads;
    char name[96];
    conv_layer(r, "image_encoder.patch_embed.proj", dim, 3, SAM_PATCH, dim);
    tensor(r, 0, 0.1f, SHAPE(1, SAM_GRID, SAM_GRID, dim), "image_encoder.pos_embed");
    for (int i = 0; i < s->depth; i++) {
        const int places = 2 * (is_global(s->global_blocks, i) ? SAM_GRID : SAM_WINDOW) - 1;
#define NAME(part) (snprintf(name, sizeof name, "image_encoder.blocks.%d.%s", i, part), name)
        norm_layer(r, NAME("norm1"), dim);
        linear_layer(r, NAME("attn.qkv"), 3 * dim, dim);
        linear_layer(r, NAME("attn.proj"), dim, dim);
        tensor(r, 0, 0.1f, SHAPE(places, head_dim), "%s", NAME("attn.rel_pos_h"));
        tensor(r, 0, 0.1f, SHAPE(places, head_dim), "%s", NAME("attn.rel_pos_w"));
        norm_layer(r, NAME("norm2"), dim);
        linear_layer(r, NAME("mlp.lin1"), 4 * dim, dim);
        linear_layer(r, NAME("mlp.lin2"), dim, 4 * dim);
#undef NAME
    }
    sam_neck(r, dim);
}

static void sam_prompt_encoder(Recipe *r)
{
    const int c = SAM_CHANNELS;
    tensor(r, 0, 1, SHAPE(2, c / 2), "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix");
    for (int i = 0; i < 4; i++)
        tensor(r, 0, 1, SHAPE(1, c), "prompt_encoder.point_embeddings.%d.weight", i);
    tensor(r, 0, 1, SHAPE(1, c), "prompt_encoder.not_a_point_embed.weight");
    tensor(r, 0, 0.1f, SHAPE(1, c), "prompt_encoder.no_mask_embed.weight");
    conv_layer(r, "prompt_encoder.mask_downscaling.0", 4, 1, 2, 4);
    norm_layer(r, "prompt_encoder.mask_downscaling.1", 4);
    conv_layer(r, "prompt_encoder.mask_downscaling.3", 16, 4, 2, 16);
    norm_layer(r, "prompt_encoder.mask_downscaling.4", 16);
    conv_layer(r, "prompt_encoder.mask_downscaling.6", c, 16, 1, c);
}

static void sam_attention(Recipe *r, const char *name, int inner_dim)
{
    static const char *const parts[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
    char full_name[128];
    for (int i = 0; i < 4; i++) {
        snprintf(full_name, sizeof full_name, "%s.%s", name, parts[i]);
        linear_layer(r, full_name, i < 3 ? inner_dim : SAM_CHANNELS, i < 3 ? SAM_CHANNELS : inner_dim);
    }
}

static void sam_mask_decoder(Recipe *r)
{
    const int c = SAM_CHANNELS;
    char name[96];
    tensor(r, 0, 1, SHAPE(1, c), "mask_decoder.iou_token.weight");
    tensor(r, 0, 1, SHAPE(4, c), "mask_decoder.mask_tokens.weight");
    for (int i = 0; i < 2; i++) {
#define NAME(part) (snprintf(name, sizeof name, "mask_decoder.transformer.layers.%d.%s", i, part), name)
        sam_attention(r, NAME("self_attn"), c);
        sam_attention(r, NAME("cross_attn_token_to_image"), c / 2);
        sam_attention(r, NAME("cross_attn_image_to_token"), c / 2);
        linear_layer(r, NAME("mlp.lin1"), 2048, c);
        linear_layer(r, NAME("mlp.lin2"), c, 2048);
        norm_layer(r, NAME("norm1"), c), norm_layer(r, NAME("norm2"), c);
        norm_layer(r, NAME("norm3"), c), norm_layer(r, NAME("norm4"), c);
#undef NAME
    }
    sam_attention(r, "mask_decoder.transformer.final_attn_token_to_image", c / 2);
    norm_layer(r, "mask_decoder.transformer.norm_final_attn", c);
    conv_layer(r, "mask_decoder.output_upscaling.0", c, c / 4, 2, c / 4);
    norm_layer(r, "mask_decoder.output_upscaling.1", c / 4);
    conv_layer(r, "mask_decoder.output_upscaling.3", c / 4, c / 8, 2, c / 8);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "mask_decoder.output_hypernetworks_mlps.%d.layers.%d", t, i);
            tensor(r, 0, 2 / sqrtf((float)c), SHAPE(i < 2 ? c : c / 8, c), "%s.weight", name);
            tensor(r, 0, 0.02f, SHAPE(i < 2 ? c : c / 8), "%s.bias", name);
        }
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "mask_decoder.iou_prediction_head.layers.%d", i);
        linear_layer(r, name, i < 2 ? c : 4, c);
    }
}

static void sam_common(Recipe *r)
{
    meta(r, "sam.decoder_heads", "8");
    meta(r, "sam.pixel_mean", "123.675,116.28,103.53");
    meta(r, "sam.pixel_std", "58.395,57.12,57.375");
}

int bench_model_sam(BenchModel *model, const SamSizes *sizes, int blank, Error *err)
{
    Recipe *r = recipe_new("sam");
    if (r) {
        meta(r, "sam.image_size", "%d", SAM_SIZE);
        meta(r, "sam.patch_size", "%d", SAM_PATCH);
        meta(r, "sam.embed_dim", "%d", sizes->embed_dim);
        meta(r, "sam.depth", "%d", sizes->depth);
        meta(r, "sam.n_heads", "%d", sizes->n_heads);
        meta(r, "sam.window_size", "%d", SAM_WINDOW);
        meta(r, "sam.global_attn_indexes", "%s", sizes->global_blocks);
        sam_common(r);
        json_close(&r->header, '}');
        sam_image_encoder(r, sizes);
        sam_prompt_encoder(r);
        sam_mask_decoder(r);
    }
    return finish(model, r, "the random Segment Anything", blank, err);
}

/* ---- MobileSAM ----------------------------------------------------------------------------------------*/

static void conv_bn(Recipe *r, const char *name, int n_out, int n_in, int kernel)
{
    tensor(r, 0, 1 / sqrtf((float)(n_in * kernel * kernel)), SHAPE(n_out, n_in, kernel, kernel),
           "image_encoder.%s.c.weight", name);
    tensor(r, 1, 0.1f, SHAPE(n_out), "image_encoder.%s.bn.weight", name);
    tensor(r, 0, 0.02f, SHAPE(n_out), "image_encoder.%s.bn.bias", name);
    tensor(r, 0, 0.1f, SHAPE(n_out), "image_encoder.%s.bn.running_mean", name);
    tensor(r, 1, 0.1f, SHAPE(n_out), "image_encoder.%s.bn.running_var", name);
}

static void tiny_vit_bottleneck(Recipe *r, const char *name, int n_in, int hidden, int n_out)
{
    char conv[96];
    snprintf(conv, sizeof conv, "%s.conv1", name), conv_bn(r, conv, hidden, n_in, 1);
    snprintf(conv, sizeof conv, "%s.conv2", name), conv_bn(r, conv, hidden, 1, 3);
    snprintf(conv, sizeof conv, "%s.conv3", name), conv_bn(r, conv, n_out, hidden, 1);
}

static void tiny_vit_block(Recipe *r, const char *block, int dim, int n_heads, int window)
{
    char name[128];
#define NAME(part) (snprintf(name, sizeof name, "image_encoder.%s.%s", block, part), name)
    norm_layer(r, NAME("attn.norm"), dim);
    tensor(r, 0, 0.5f, SHAPE(n_heads, window * window), "%s", NAME("attn.attention_biases"));
    linear_layer(r, NAME("attn.qkv"), 3 * dim, dim);
    linear_layer(r, NAME("attn.proj"), dim, dim);
    norm_layer(r, NAME("mlp.norm"), dim);
    linear_layer(r, NAME("mlp.fc1"), 4 * dim, dim);
    linear_layer(r, NAME("mlp.fc2"), dim, 4 * dim);
#undef NAME
    snprintf(name, sizeof name, "%s.local_conv", block);
    conv_bn(r, name, dim, 1, 3);
}

/* build_sam_vit_t of ChaoningZhang/MobileSAM. */
static void tiny_vit(Recipe *r)
{
    static const struct {
        int dim, depth, n_heads, window;
    } stages[] = {{64, 2, 0, 0}, {128, 2, 4, 7}, {160, 6, 5, 14}, {320, 2, 10, 7}};
    char name[64];
    conv_bn(r, "patch_embed.seq.0", 32, 3, 3);
    conv_bn(r, "patch_embed.seq.2", 64, 32, 3);
    for (int i = 0; i < 4; i++) {
        const int dim = stages[i].dim;
        for (int k = 0; k < stages[i].depth; k++) {
            snprintf(name, sizeof name, "layers.%d.blocks.%d", i, k);
            if (i == 0)
                tiny_vit_bottleneck(r, name, dim, 4 * dim, dim);
            else
                tiny_vit_block(r, name, dim, stages[i].n_heads, stages[i].window);
        }
        snprintf(name, sizeof name, "layers.%d.downsample", i);
        if (i < 3)
            tiny_vit_bottleneck(r, name, dim, stages[i + 1].dim, stages[i + 1].dim);
    }
    sam_neck(r, stages[3].dim);
}

int bench_model_mobile_sam(BenchModel *model, Error *err)
{
    Recipe *r = recipe_new("sam");
    if (r) {
        meta(r, "sam.encoder", "tiny_vit");
        meta(r, "sam.image_size", "%d", SAM_SIZE);
        sam_common(r);
        json_close(&r->header, '}');
        tiny_vit(r);
        sam_prompt_encoder(r);
        sam_mask_decoder(r);
    }
    return finish(model, r, "the random MobileSAM", 0, err);
}

/* ---- DINOv2 -------------------------------------------------------------------------------------------*/

int bench_model_dinov2_s(BenchModel *model, Error *err)
{
    enum { DIM = 384, DEPTH = 12, PATCH = 14, GRID = 37 };
    Recipe *r = recipe_new("vit");
    if (r) {
        meta(r, "vit.family", "dinov2"), meta(r, "vit.ffn", "mlp"), meta(r, "vit.layer_scale", "1");
        meta(r, "vit.interpolate_antialias", "0"), meta(r, "vit.interpolate_offset", "0.1");
        meta(r, "vit.image_size", "%d", GRID * PATCH), meta(r, "vit.patch_size", "%d", PATCH);
        meta(r, "vit.dim", "%d", DIM), meta(r, "vit.depth", "%d", DEPTH),
            meta(r, "vit.n_heads", "%d", DIM / 64);
        meta(r, "vit.n_registers", "0"), meta(r, "vit.mlp_ratio", "4"), meta(r, "vit.eps", "1e-6");
        meta(r, "vit.mean", "0.485,0.456,0.406"), meta(r, "vit.std", "0.229,0.224,0.225");
        json_close(&r->header, '}');
        conv_layer(r, "patch_embed.proj", DIM, 3, PATCH, DIM);
        tensor(r, 0, 0.1f, SHAPE(1, 1, DIM), "cls_token");
        tensor(r, 0, 0.1f, SHAPE(1, 1 + GRID * GRID, DIM), "pos_embed");
        for (int i = 0; i < DEPTH; i++) {
            char name[64];
#define NAME(part) (snprintf(name, sizeof name, "blocks.%d.%s", i, part), name)
            norm_layer(r, NAME("norm1"), DIM);
            linear_layer(r, NAME("attn.qkv"), 3 * DIM, DIM);
            linear_layer(r, NAME("attn.proj"), DIM, DIM);
            tensor(r, 0.5f, 0.1f, SHAPE(DIM), "%s", NAME("ls1.gamma"));
            norm_layer(r, NAME("norm2"), DIM);
            linear_layer(r, NAME("mlp.fc1"), 4 * DIM, DIM);
            linear_layer(r, NAME("mlp.fc2"), DIM, 4 * DIM);
            tensor(r, 0.5f, 0.1f, SHAPE(DIM), "%s", NAME("ls2.gamma"));
#undef NAME
        }
        norm_layer(r, "norm", DIM);
    }
    return finish(model, r, "the random DINOv2", 0, err);
}

/* ---- FeatUp -------------------------------------------------------------------------------------------*/

int bench_model_featup(BenchModel *model, Error *err)
{
    enum { KEYS = 32, TAPS = 49 };
    Recipe *r = recipe_new("featup");
    if (r) {
        json_close(&r->header, '}');
        for (int i = 1; i <= 4; i++) {
            char name[64];
#define NAME(part) (snprintf(name, sizeof name, "up%d.%s", i, part), name)
            tensor(r, 0.5f, 0, SHAPE(1), "%s", NAME("range_temp"));
            tensor(r, 0.7f, 0, SHAPE(1), "%s", NAME("sigma_spatial"));
            conv_layer(r, NAME("range_proj.0"), KEYS, 3, 1, KEYS);
            conv_layer(r, NAME("range_proj.3"), KEYS, KEYS, 1, KEYS);
            conv_layer(r, NAME("fixup_proj.0"), TAPS, TAPS + 3, 1, TAPS);
            conv_layer(r, NAME("fixup_proj.3"), TAPS, TAPS, 1, TAPS);
#undef NAME
        }
    }
    return finish(model, r, "the random FeatUp", 0, err);
}
