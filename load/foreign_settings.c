/* foreign_settings.c - what the JSON files beside a foreign checkpoint tell and its tensors do not.
 *
 *   config.json                heads, eps (Hugging Face); mean, std (timm)
 *   preprocessor_config.json   mean, std (Hugging Face); transformers 5 also has processor_config.json
 *
 * The result is metadata of the view, which the loaders read: vit.n_heads, vit.eps, vit.mean, vit.std, sam.*.
 * An absent key has the default of its class (load/foreign_names.h). Without the files the loaders take the
 * published values of the family. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/json.h"
#include "io/number.h"
#include "load/foreign.h"
#include "load/foreign_names.h"

enum { MAX_PATH_LENGTH = 4096 };

/* A JSON file beside the weights. root NULL: there is none. */
typedef struct Beside {
    char path[MAX_PATH_LENGTH];
    const Json *root;
    Error *err;
} Beside;

static int read_beside(Beside *b, const Safetensors *file, const char *name, Error *err)
{
    const char *path = st_path(file), *slash = strrchr(path, '/');
    *b = (Beside){.err = err};
    const int n =
        snprintf(b->path, sizeof b->path, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name);
    if (n < 0 || (size_t)n >= sizeof b->path || !file_exists(b->path))
        return 0;
    b->root = json_read(b->path, err);
    if (b->root && b->root->type != JSON_OBJECT)
        return fail(err, "%s: not an object of settings", b->path);
    return b->root ? 0 : -1;
}

/* ---- values -------------------------------------------------------------------------------------------*/

/* The member of an object. NULL: absent, or null. */
static const Json *member(const Json *object, const char *key)
{
    const Json *value = json_get(object, key);
    return value && value->type != JSON_NULL ? value : NULL;
}

/* A number of the file, or `otherwise` where it has none. */
static int number_of(const Beside *b, const Json *object, const char *key, const double range[2],
                     double otherwise, double *out)
{
    const Json *value = member(object, key);
    *out = otherwise;
    if (!value)
        return 0;
    if (value->type != JSON_NUMBER || !(value->number >= range[0] && value->number <= range[1]))
        return fail(b->err, "%s: %s is not a number from %g to %g", b->path, key, range[0], range[1]);
    *out = value->number;
    return 0;
}

/* A number of heads: they share the channels evenly. */
static int heads_of(const Beside *b, const Json *object, const char *key, double most, double otherwise,
                    int64_t n_channels, double *out)
{
    if (number_of(b, object, key, (double[]){1, most}, otherwise, out))
        return -1;
    if (*out != floor(*out) || n_channels % (int64_t)*out != 0)
        return fail(b->err, "%s: %s is %g%s, which does not divide the %lld channels of the tensors", b->path,
                    key, *out, member(object, key) ? "" : " by default", (long long)n_channels);
    return 0;
}

/* Refuse a config.json of another model: its size must be the tensors'. */
static int check_size(const Beside *b, const Json *object, const char *key, double otherwise, int64_t ours)
{
    double size;
    if (number_of(b, object, key, (double[]){1, 1e6}, otherwise, &size))
        return -1;
    if (size != (double)ours)
        return fail(b->err, "%s: %s is %g, but the tensors have %lld: these settings belong to another model",
                    b->path, key, size, (long long)ours);
    return 0;
}

static int check_word(const Beside *b, const Json *object, const char *key, const char *expected)
{
    const Json *value = member(object, key);
    if (!value || (value->type == JSON_STRING && strcmp(value->string, expected) == 0))
        return 0;
    return fail(b->err, "%s: %s is %.60s, expected %s", b->path, key,
                value->type == JSON_STRING ? value->string : "not a string", expected);
}

/* Three numbers of a list, or one for all. Returns 1 when the key is there, -1 on failure. */
static int colours_of(const Beside *b, const Json *object, const char *key, double out[3])
{
    const Json *value = member(object, key);
    if (!value)
        return 0;
    for (int i = 0; i < 3; i++) {
        const Json *number = value->type == JSON_ARRAY && value->n == 3 ? &value->children[i] : value;
        if (number->type != JSON_NUMBER || !isfinite((float)number->number))
            return fail(b->err, "%s: %s is not a list of three numbers", b->path, key);
        out[i] = number->number;
    }
    return 1;
}

static int put_number(StWriter *view, const char *key, double value, Error *err)
{
    char text[32];
    number_write(text, sizeof text, 9, value);
    return st_writer_meta(view, key, text, err);
}

static int put_colours(StWriter *view, const char *key, const double values[3], double scale, Error *err)
{
    char text[3][32], all[100];
    for (int i = 0; i < 3; i++)
        number_write(text[i], sizeof text[i], 9, values[i] * scale);
    snprintf(all, sizeof all, "%s,%s,%s", text[0], text[1], text[2]);
    return st_writer_meta(view, key, all, err);
}

/* "0.485,0.456,0.406" */
static void read_colours(double out[3], const char *text)
{
    for (int i = 0; i < 3; i++) {
        char *end;
        out[i] = number_read(text, &end);
        text = *end ? end + 1 : end;
    }
}

static int check_std(const Beside *b, const char *key, const double std[3])
{
    for (int i = 0; i < 3; i++)
        if (!(std[i] > 0))
            return fail(b->err, "%s: %s has a value that is not above 0", b->path, key);
    return 0;
}

/* ---- Hugging Face -------------------------------------------------------------------------------------*/

/* mean and std of pixels in [0, 1]. The processor computes (x * rescale_factor - mean) / std of pixels x in
 * 0..255. Returns 1, 0 when nothing tells them, -1. */
static int processor_colours(const Beside *b, const Json *p, double mean[3], double std[3])
{
    const Json *type = member(p, "image_processor_type"), *on = member(p, "do_normalize"),
               *scales = member(p, "do_rescale");
    int n = 0, m = 0;
    double factor;
    if (!type)
        type = member(p, "feature_extractor_type");
    for (size_t i = 0; type && type->type == JSON_STRING && i < sizeof HF_PROCESSORS / sizeof *HF_PROCESSORS;
         i++)
        if (strncmp(type->string, HF_PROCESSORS[i].type, strlen(HF_PROCESSORS[i].type)) ==
            0) { /* also TypeFast */
            read_colours(mean, HF_PROCESSORS[i].mean);
            read_colours(std, HF_PROCESSORS[i].std);
            n = m = 1;
        }
    if (on && on->type == JSON_BOOL && !on->number) {
        for (int i = 0; i < 3; i++)
            mean[i] = 0, std[i] = 1;
        n = m = 1;
    } else {
        const int mean_there = colours_of(b, p, "image_mean", mean),
                  std_there = colours_of(b, p, "image_std", std);
        if (mean_there < 0 || std_there < 0)
            return -1;
        n |= mean_there, m |= std_there;
    }
    if (n != m)
        return fail(b->err, "%s: %s is there, but not %s", b->path, n ? "image_mean" : "image_std",
                    n ? "image_std" : "image_mean");
    if (!n)
        return 0;
    if (number_of(b, p, "rescale_factor", (double[]){1e-6, 1e3}, 1 / 255.0, &factor) ||
        check_std(b, "image_std", std))
        return -1;
    const double scale = scales && scales->type == JSON_BOOL && !scales->number ? 255 : 255 * factor;
    for (int i = 0; i < 3 && fabs(scale - 1) > 1e-6; i++)
        mean[i] /= scale, std[i] /= scale;
    return 1;
}

/* Adds MEAN_KEY and STD_KEY where a processor's file tells them. */
static int hf_processor(StWriter *view, const ForeignTensors *p, const char *mean_key, const char *std_key,
                        double scale, int *found, Error *err)
{
    static const char *const names[] = {"preprocessor_config.json", "processor_config.json"};
    double mean[3], std[3];
    int there = 0;
    for (int i = 0; i < 2 && !there; i++) {
        Beside b;
        int status = read_beside(&b, p->file, names[i], err);
        if (!status && b.root) {
            const Json *inner = member(b.root, "image_processor");
            there = processor_colours(&b, inner ? inner : b.root, mean, std);
            if (there > 0)
                status = put_colours(view, mean_key, mean, scale, err) ||
                         put_colours(view, std_key, std, scale, err);
        }
        json_free(b.root);
        if (status || there < 0)
            return -1;
    }
    *found |= there;
    return 0;
}

/* The defaults of the class, or those that the tensors suggest: only DINOv2 has LayerScale. */
static ForeignClass class_of(const Json *config, const ForeignTensors *p)
{
    const Json *type = member(config, "model_type");
    for (size_t i = 0; type && type->type == JSON_STRING && i < sizeof HF_CLASSES / sizeof *HF_CLASSES; i++)
        if (strcmp(type->string, HF_CLASSES[i].model_type) == 0)
            return HF_CLASSES[i];
    const char *guess = placed_dim(p, "blocks.0.ls1.gamma", 0) ? "dinov2" : "vit";
    for (size_t i = 0;; i++)
        if (strcmp(HF_CLASSES[i].model_type, guess) == 0)
            return HF_CLASSES[i];
}

static int hf_vit_config(StWriter *view, const ForeignTensors *p, const Beside *b, int *found)
{
    /* A model on top keeps its ViT's settings inside. */
    const Json *inner = member(b->root, "backbone_config"), *config = inner ? inner : b->root;
    const ForeignClass class = class_of(config, p);
    const int swiglu = placed_dim(p, "blocks.0.mlp.w12.weight", 0) > 0;
    double heads, eps = class.eps;
    if (config) {
        if (check_size(b, config, "hidden_size", 768, placed_dim(p, "patch_embed.proj.weight", 0)) ||
            (!swiglu && check_word(b, config, "hidden_act", "gelu")) ||
            heads_of(b, config, "num_attention_heads", 8192, class.n_heads,
                     placed_dim(p, "patch_embed.proj.weight", 0), &heads) ||
            number_of(b, config, "layer_norm_eps", (double[]){0, 1}, class.eps, &eps) ||
            put_number(view, "vit.n_heads", heads, b->err))
            return -1;
    }
    *found = 1;
    return put_number(view, "vit.eps", eps, b->err);
}

static int hf_vit(StWriter *view, const ForeignTensors *p, int *found, Error *err)
{
    Beside b;
    const int status = read_beside(&b, p->file, "config.json", err) || hf_vit_config(view, p, &b, found);
    json_free(b.root);
    return status || hf_processor(view, p, "vit.mean", "vit.std", 1, found, err) ? -1 : 0;
}

/* ---- timm ---------------------------------------------------------------------------------------------*/

/* pretrained_cfg has mean and std; old files have them beside it. timm's default are ImageNet's. */
static int timm_config(StWriter *view, const ForeignTensors *p, const Beside *b, int *found)
{
    const Json *inner = member(b->root, "pretrained_cfg"), *cfg = inner ? inner : b->root;
    double mean[3], std[3], heads = 0;
    if (!inner && !member(b->root, "architecture"))
        return 0; /* not timm's */
    read_colours(mean, "0.485,0.456,0.406");
    read_colours(std, "0.229,0.224,0.225");
    if (colours_of(b, cfg, "mean", mean) < 0 || colours_of(b, cfg, "std", std) < 0 ||
        check_std(b, "std", std) ||
        (member(member(b->root, "model_args"), "num_heads") &&
         heads_of(b, member(b->root, "model_args"), "num_heads", 8192, 0,
                  placed_dim(p, "patch_embed.proj.weight", 0), &heads)) ||
        (heads > 0 && put_number(view, "vit.n_heads", heads, b->err)))
        return -1;
    *found = 1;
    return put_colours(view, "vit.mean", mean, 1, b->err) || put_colours(view, "vit.std", std, 1, b->err) ? -1
                                                                                                          : 0;
}

static int timm_vit(StWriter *view, const ForeignTensors *p, int *found, Error *err)
{
    Beside b;
    const int status =
        read_beside(&b, p->file, "config.json", err) || (b.root && timm_config(view, p, &b, found));
    json_free(b.root);
    return status ? -1 : 0;
}

/* ---- SAM ----------------------------------------------------------------------------------------------*/

/* A table of relative positions has 2n - 1 rows; n is the side of the grid or of the window that a block
 * attends to. */
static int sam_windows(StWriter *view, const ForeignTensors *p, Error *err)
{
    const int64_t grid = placed_dim(p, "image_encoder.pos_embed", 1);
    char name[80], list[256] = "";
    size_t at = 0;
    int64_t window = 0, rows;
    for (int i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "image_encoder.blocks.%d.attn.rel_pos_h", i);
        rows = placed_dim(p, name, 0);
        if (rows == 2 * grid - 1)
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%d", at ? "," : "", i);
        else if (rows && !window)
            window = (rows + 1) / 2;
    }
    return put_number(view, "sam.window_size", (double)window, err) ||
                   st_writer_meta(view, "sam.global_attn_indexes", list, err)
               ? -1
               : 0;
}

/* Hugging Face's LayerNorms norm1 to norm4 of the decoder have eps 1e-6 where the official code has 1e-5. */
static int hf_sam_config(StWriter *view, const ForeignTensors *p, const Beside *b)
{
    const Json *vision = member(b->root, "vision_config"), *decoder = member(b->root, "mask_decoder_config");
    const Json *prompts = member(b->root, "prompt_encoder_config");
    double heads = 8, encoder_eps = 1e-6, decoder_eps = 1e-6, prompt_eps = 1e-6;
    if (b->root &&
        (check_size(b, vision, "hidden_size", 768,
                    placed_dim(p, "image_encoder.patch_embed.proj.weight", 0)) ||
         check_word(b, vision, "hidden_act", "gelu") || check_word(b, decoder, "hidden_act", "relu") ||
         check_word(b, prompts, "hidden_act", "gelu") ||
         heads_of(b, decoder, "num_attention_heads", 64, 8,
                  placed_dim(p, "mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", 0),
                  &heads) ||
         number_of(b, vision, "layer_norm_eps", (double[]){0, 1}, 1e-6, &encoder_eps) ||
         number_of(b, decoder, "layer_norm_eps", (double[]){0, 1}, 1e-6, &decoder_eps) ||
         number_of(b, prompts, "layer_norm_eps", (double[]){0, 1}, 1e-6, &prompt_eps)))
        return -1;
    if (prompt_eps != 1e-6)
        return fail(b->err, "%s: prompt_encoder_config.layer_norm_eps is %g, expected 1e-06", b->path,
                    prompt_eps);
    return put_number(view, "sam.decoder_heads", heads, b->err) ||
                   put_number(view, "sam.encoder_eps", encoder_eps, b->err) ||
                   put_number(view, "sam.decoder_eps", decoder_eps, b->err)
               ? -1
               : 0;
}

static int sam_settings(StWriter *view, const ForeignTensors *p, int *found, Error *err)
{
    int colours = 0, status = 0;
    Beside b = {.err = err};
    if (p->kind == FOREIGN_SAM)
        status = put_number(view, "sam.decoder_heads", 8, err);
    else {
        status = read_beside(&b, p->file, "config.json", err) || hf_sam_config(view, p, &b) ||
                 hf_processor(view, p, "sam.pixel_mean", "sam.pixel_std", 255, &colours, err);
        json_free(b.root);
    }
    *found = 1;
    if (status || sam_windows(view, p, err))
        return -1;
    return !colours && (st_writer_meta(view, "sam.pixel_mean", "123.675,116.28,103.53", err) ||
                        st_writer_meta(view, "sam.pixel_std", "58.395,57.12,57.375", err))
               ? -1
               : 0;
}

int foreign_settings(StWriter *view, const ForeignTensors *p, int *found, Error *err)
{
    switch (p->kind) {
    case FOREIGN_HF_VIT:
        return hf_vit(view, p, found, err);
    case FOREIGN_TIMM_VIT:
        return timm_vit(view, p, found, err);
    default:
        return sam_settings(view, p, found, err);
    }
}
