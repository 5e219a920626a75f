/* options.c - the table of all constants of docs/METHOD.md. See options.h. */
#include "bank/options.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"
#include "io/number.h"

#define AT(field) offsetof(Options, field)

/* clang-format off */
const OptionSpec option_table[] = {
    {"size", OPTION_INT, AT(size), 0, 4096, NULL, 1, "longer side of the backbone's input in pixels (0: the model's recommendation)"},
    {"resize", OPTION_CHOICE, AT(resize), 0, 1, "squash|fit", 1, "squash to a square, or fit and keep the aspect"},
    {"white", OPTION_INT, AT(white), 1, 65535, NULL, 1, "the value in 16-bit images that is white (auto: 255, 1023, 4095, 16383 or 65535, by the normal images)"},
    {"layer", OPTION_INT, AT(layer), 0, 1000, NULL, 1, "features after this block (0: the model's recommendation)"},
    {"views", OPTION_INT, AT(views), 1, 2, NULL, 1, "2: features are the mean of two views, half a patch apart; 1: one view, as with patches of an odd size"},
    {"featup-stages", OPTION_INT, AT(featup_stages), 0, 4, NULL, 1, "upsampling stages of x2 each; 0: bilinear to x8"},
    {"grid", OPTION_INT, AT(grid), 0, 1024, NULL, 1, "cells of the maps' longer side (0: size/4, or the model's recommendation for its size)"},
    {"no-objects", OPTION_FLAG, AT(no_objects), 0, 1, NULL, 1, "ablation: no SAM, the image is one object"},
    {"precision", OPTION_CHOICE, AT(precision), 0, 1, "fp32|bf16", 1, "precision of both encoders' products; bf16 is faster"},
    {"max-area", OPTION_DOUBLE, AT(objects.max_area), 0, 1, NULL, 1, "drop masks above this part of the image"},
    {"min-area", OPTION_DOUBLE, AT(objects.min_area), 0, 1, NULL, 1, "drop masks below this part of the image"},
    {"min-kept", OPTION_DOUBLE, AT(objects.min_kept), 0, 1, NULL, 1, "drop masks that keep less of themselves under smaller ones"},
    {"background", OPTION_FLAG, AT(objects.background), 0, 1, NULL, 1, "the area without a mask is one more object"},
    {"points", OPTION_INT, AT(amg.points_per_side), 1, AMG_MAX_POINTS_PER_SIDE, NULL, 1, "SAM: point prompts along a side"},
    {"pred-iou-thresh", OPTION_DOUBLE, AT(amg.pred_iou_thresh), -AMG_MAX_LOGIT, AMG_MAX_LOGIT, NULL, 1, "SAM: least predicted IoU"},
    {"stability-score-thresh", OPTION_DOUBLE, AT(amg.stability_score_thresh), 0, 1, NULL, 1, "SAM: least stability"},
    {"stability-score-offset", OPTION_DOUBLE, AT(amg.stability_score_offset), 0, AMG_MAX_LOGIT, NULL, 1, "SAM: logits' shift"},
    {"box-nms-thresh", OPTION_DOUBLE, AT(amg.box_nms_thresh), 0, 1, NULL, 1, "SAM: box IoU of duplicates"},
    {"crop-n-layers", OPTION_INT, AT(amg.crop_n_layers), 0, AMG_MAX_CROP_LAYERS, NULL, 1, "SAM: layers of crops"},
    {"crop-nms-thresh", OPTION_DOUBLE, AT(amg.crop_nms_thresh), 0, 1, NULL, 1, "SAM: box IoU of duplicates between crops"},
    {"crop-overlap-ratio", OPTION_DOUBLE, AT(amg.crop_overlap_ratio), 0, 1, NULL, 1, "SAM: overlap of crops"},
    {"crop-n-points-downscale-factor", OPTION_INT, AT(amg.crop_n_points_downscale_factor), 1, AMG_MAX_POINTS_PER_SIDE, NULL, 1,
     "SAM: fewer points in deeper crops"},
    {"crop-own-points", OPTION_FLAG, AT(amg.crop_own_points), 0, 1, NULL, 1, "SAM: where crops overlap, a point belongs to the crop with the nearest centre"},
    {"min-mask-region-area", OPTION_INT, AT(amg.min_mask_region_area), 0, AMG_MAX_REGION_AREA, NULL, 1,
     "SAM: fill holes and drop islands below this many pixels"},
    /* The word stands before the options that it sets, so that a list in this order sets it first. */
    {"method", OPTION_CHOICE, AT(method), 0, 1, "samlad|paper", 0,
     "ours, or the paper's values where one is known; options given beside it hold, in any order"},
    {"k", OPTION_INT, AT(k), 1, 10000, NULL, 0, "normal images to compare with"},
    {"retrieval", OPTION_CHOICE, AT(retrieval), 0, 2, "mean|cls|l2", 0, "nearest by mean patch, class token, or whole map"},
    {"channel-graph", OPTION_CHOICE, AT(dcga.channel_graph), 0, 2, "off|covariance|softmax", 0, "DCGA: the channel graph"},
    {"dcga-rounds", OPTION_INT, AT(dcga.rounds), 1, 100, NULL, 0, "DCGA: rounds of pairing and filtering"},
    {"dcga-partners", OPTION_INT, AT(dcga.partners), 1, 10000, NULL, 0, "DCGA: other images that each image is paired with"},
    {"shrinkage", OPTION_FLOAT, AT(dcga.shrinkage), 0, 1000, NULL, 0, "DCGA: shrinkage of the covariance, times tr/C"},
    {"channel-strength", OPTION_FLOAT, AT(dcga.channel_strength), 0, 100, NULL, 0, "DCGA: lambda_c of the softmax graph"},
    {"channel-tau", OPTION_FLOAT, AT(dcga.channel_tau), 1e-6, 1e6, NULL, 0, "DCGA: temperature of the softmax graph"},
    {"object-strength", OPTION_FLOAT, AT(dcga.object_strength), 0, 100, NULL, 0, "DCGA: lambda_o of the object graph"},
    {"object-tau", OPTION_FLOAT, AT(dcga.object_tau), 1e-6, 1e6, NULL, 0, "DCGA: temperature of the object graph"},
    {"position-weight", OPTION_FLOAT, AT(omm.position_weight), 0, 1000, NULL, 0, "OMM: w_p; 0: appearance alone"},
    {"tau", OPTION_FLOAT, AT(omm.tau), 1e-5, 1e5, NULL, 0, "OMM: temperature of Sinkhorn"},
    {"sinkhorn-iters", OPTION_INT, AT(omm.sinkhorn_iters), 1, 100000, NULL, 0, "OMM: iterations"},
    {"match-threshold", OPTION_FLOAT, AT(omm.match_threshold), 0, 1, NULL, 0, "OMM: least P of a match"},
    {"matcher", OPTION_CHOICE, AT(omm.nearest), 0, 1, "sinkhorn|nearest", 0, "OMM: optimal transport, or mutual nearest"},
    {"verify", OPTION_FLAG, AT(omm.verify), 0, 1, NULL, 0, "OMM: check missing and extra by mask transfer"},
    {"verify-above", OPTION_FLOAT, AT(omm.verify_above), 0, 1, NULL, 0, "OMM: check objects whose U or V is above this"},
    {"verify-shift", OPTION_INT, AT(omm.verify_shift), 0, 16, NULL, 0, "OMM: move the mask by up to this many cells"},
    {"count", OPTION_FLAG, AT(omm.count), 0, 1, NULL, 0, "OMM: count unmatched objects that are alike together"},
    {"alpha", OPTION_DOUBLE, AT(alpha), -1e6, 1e6, NULL, 0, "OMM: score of the weakest normal match (auto: calibrated)"},
    {"alpha-unmatched", OPTION_FLOAT, AT(omm.alpha_unmatched), 0, 0.99, NULL, 0, "OMM: U of a match at alpha (0: alpha is the dustbin)"},
    {"alpha-quantile", OPTION_DOUBLE, AT(alpha_quantile), 0, 1, NULL, 0, "OMM: quantile of normal matches for alpha"},
    {"raster-weight", OPTION_FLOAT, AT(raster_weight), 0, 1000, NULL, 0, "layout: weight of unusual rasters beside missing and extra objects (0: without)"},
    {"align", OPTION_CHOICE, AT(amm.align_pixel), 0, 1, "object|pixel", 0, "AMM: compare with the matched object's cells, or with the same pixel"},
    {"large-object", OPTION_FLOAT, AT(amm.large_object), 0, 1, NULL, 0, "AMM: objects above this part of the image are compared at the same position"},
    {"register-reach", OPTION_INT, AT(amm.register_reach), 0, 16, NULL, 0, "AMM: look for an object's place within this many cells"},
    {"claims", OPTION_FLAG, AT(amm.claims), 0, 1, NULL, 0, "AMM: cells that the references' masks expect of an object count as its own"},
    {"register-unmatched", OPTION_FLAG, AT(amm.register_unmatched), 0, 1, NULL, 0, "AMM: compare an object without a match with the same place"},
    {"epsilon", OPTION_FLOAT, AT(amm.epsilon), 1e-9, 1e9, NULL, 0, "AMM: regularises the covariance"},
    {"blur", OPTION_FLOAT, AT(amm.blur), 0, 100, NULL, 0, "AMM: sigma in cells"},
    {"nearest-weight", OPTION_FLOAT, AT(amm.nearest_weight), 0, 1000, NULL, 0, "AMM: weight of the nearest features at the same place (0: without)"},
    {"score", OPTION_CHOICE, AT(amm.score), 0, 1, "power|max", 0, "AMM: power mean of the largest 1 % of 2x2 cells, or the largest cell"},
    {"object-quantile", OPTION_DOUBLE, AT(object_quantile), 0, 1, NULL, 0, "AMM: quantile of an object's own leave-one-out map, its unit (0: no units)"},
    {"delta-logical", OPTION_DOUBLE, AT(delta_logical), 0, 1e6, NULL, 0, "fusion: width of each normal image's logical score"},
    {"delta-structural", OPTION_DOUBLE, AT(delta_structural), 0, 1e6, NULL, 0, "fusion: times |median|, added to the structural spread"},
    {"loo-images", OPTION_INT, AT(loo_images), 1, 1 << 20, NULL, 0, "fusion: leave-one-out scores of at most this many images"},
    {"only", OPTION_CHOICE, AT(only), 0, 2, "both|structural|logical", 0, "anomalies that make the score"},
    {"flag-damage", OPTION_DOUBLE, AT(flag_damage), 0, 1e9, NULL, 0, "report: z above which an object is damaged"},
    {"flag-unmatched", OPTION_DOUBLE, AT(flag_unmatched), 0, 1, NULL, 0, "report: U or V above which an object is extra or missing"},
    {"flag-quantile", OPTION_DOUBLE, AT(flag_quantile), 0, 1, NULL, 0, "report: and above this quantile of the bank's own images"},
    {"threshold-quantile", OPTION_DOUBLE, AT(threshold_quantile), 0, 1, NULL, 0,
     "verdict: scores above this quantile of the bank's own are anomalous (of fewer than 20: extended)"},
};

/* What method paper sets: [paper]'s value, else [secondary]'s, else [block]'s. All other options stay
 * (docs/METHOD.md, "The paper's own, by one word"). */
static const struct {
    const char *name, *value;
} PAPER[] = {
    {"channel-graph", "softmax"}, /* [secondary] attention between channels; its form is our literal reading */
    {"object-strength", "0.1"},   /* [secondary] attention between objects; its strength is ours, as lambda_c */
    {"sinkhorn-iters", "100"},    /* [block] SuperGlue */
    {"align", "pixel"},           /* [secondary] a Gaussian per patch; [block] PaDiM: at the same position */
    /* additions of ours, without which the method works: off */
    {"position-weight", "0"},
    {"alpha-unmatched", "0"},
    {"verify", "0"},
    {"count", "0"},
    {"register-reach", "0"},
    {"register-unmatched", "0"},
    {"claims", "0"},
    {"object-quantile", "0"},
    {"nearest-weight", "0"},
    {"raster-weight", "0"},
};
/* clang-format on */
enum { N_PAPER = sizeof PAPER / sizeof *PAPER };
const int option_count = (int)(sizeof option_table / sizeof *option_table);
_Static_assert(sizeof option_table / sizeof *option_table <= MAX_OPTIONS,
               "callers keep a flag for each option");

void options_default(Options *o)
{
    *o = (Options){.white = IMAGE_WHITE,
                   .featup_stages = 3,
                   .views = 2,
                   .k = 40,
                   .alpha = NAN,
                   .alpha_quantile = 0.001,
                   .raster_weight = 4,
                   .object_quantile = 0.99,
                   .delta_logical = 0.05,
                   .delta_structural = 0.1,
                   .loo_images = 60,
                   .flag_damage = 3,
                   .flag_unmatched = 0.5,
                   .flag_quantile = 0.95,
                   .threshold_quantile = 0.97};
    o->objects = (ObjectsOptions){.max_area = 0.9, .min_area = 0.0005, .min_kept = 0.5, .background = 1};
    o->dcga = (DcgaOptions){.channel_graph = CHANNEL_COVARIANCE,
                            .rounds = 2,
                            .partners = 4,
                            .shrinkage = 0.3f,
                            .channel_strength = 0.1f,
                            .channel_tau = 1,
                            .object_strength = 0,
                            .object_tau = 0.1f};
    o->omm = (OmmOptions){.position_weight = 0.7f,
                          .tau = 0.02f,
                          .sinkhorn_iters = 30,
                          .match_threshold = 0.2f,
                          .verify_above = 0.3f,
                          .verify = 1,
                          .verify_shift = 2,
                          .count = 1,
                          .alpha_unmatched = 0.05f,
                          .nearest = 0};
    o->amm = (AmmOptions){.align_pixel = 0,
                          .large_object = 0.15f,
                          .register_reach = 2,
                          .claims = 1,
                          .register_unmatched = 1,
                          .epsilon = 0.01f,
                          .blur = 1,
                          .nearest_weight = 0.5f,
                          .score = SCORE_POWER};
    amg_defaults(&o->amg);
}

const OptionSpec *option_find(const char *name)
{
    for (int i = 0; i < option_count; i++)
        if (strcmp(option_table[i].name, name) == 0)
            return &option_table[i];
    return NULL;
}

int option_is_method(const OptionSpec *spec)
{
    return spec->offset == AT(method);
}

void options_follow_method(Options *options, unsigned char *was_set)
{
    Options ours;
    options_default(&ours);
    for (int i = 0; i < N_PAPER; i++) {
        const OptionSpec *spec = option_find(PAPER[i].name);
        char value[64];
        option_text(&ours, spec, value, sizeof value);
        /* no value of the table fails: tests/test_bank.c sets them all. */
        option_set(options, spec, options->method == METHOD_PAPER ? PAPER[i].value : value, spec->name, NULL);
        was_set[spec - option_table] = 1;
    }
}

/* The value that method paper sets, or NULL. */
static const char *paper_value(const char *name)
{
    for (int i = 0; i < N_PAPER; i++)
        if (strcmp(PAPER[i].name, name) == 0)
            return PAPER[i].value;
    return NULL;
}

/* Index of value among "a|b|c", or -1. */
static int choice_index(const char *choices, const char *value)
{
    size_t length = strlen(value);
    int index = 0;
    for (const char *at = choices;; index++) {
        const char *end = strchr(at, '|');
        size_t n = end ? (size_t)(end - at) : strlen(at);
        if (n == length && strncmp(at, value, n) == 0)
            return index;
        if (!end)
            return -1;
        at = end + 1;
    }
}

static int set_number(Options *o, const OptionSpec *spec, const char *value, const char *where, Error *err)
{
    char *end;
    errno = 0;
    double v = number_read(value, &end);
    double least = spec->min, most = spec->max;
    /* Compare floats with floats. 1e-6 as a float, written into a bank, reads back below the double 1e-6. */
    if (spec->kind == OPTION_FLOAT)
        v = (float)v, least = (float)least, most = (float)most;
    if (strcmp(value, "auto") == 0 && (spec->offset == AT(alpha) || spec->offset == AT(white)))
        v = spec->offset == AT(alpha) ? NAN : 0;
    else if (end == value || *end || errno == ERANGE || !(v >= least && v <= most))
        return fail(err, "%s: '%s' is not a number from %g to %g", where, value, spec->min, spec->max);
    else if ((spec->kind == OPTION_INT || spec->kind == OPTION_FLAG) && v != floor(v))
        return fail(err, "%s: '%s' is not a whole number", where, value);
    void *at = (char *)o + spec->offset;
    if (spec->kind == OPTION_FLOAT)
        *(float *)at = (float)v;
    else if (spec->kind == OPTION_DOUBLE)
        *(double *)at = v;
    else
        *(int *)at = (int)v;
    return 0;
}

int option_set(Options *o, const OptionSpec *spec, const char *value, const char *where, Error *err)
{
    if (spec->kind != OPTION_CHOICE)
        return set_number(o, spec, value, where, err);
    int index = choice_index(spec->choices, value);
    if (index < 0)
        return fail(err, "%s: '%s' is none of %s", where, value, spec->choices);
    *(int *)((char *)o + spec->offset) = index;
    return 0;
}

static void choice_text(const char *choices, int index, char *text, size_t size)
{
    const char *at = choices;
    while (index-- > 0)
        at = strchr(at, '|') + 1;
    snprintf(text, size, "%.*s", (int)strcspn(at, "|"), at);
}

void option_text(const Options *o, const OptionSpec *spec, char *text, size_t size)
{
    const void *at = (const char *)o + spec->offset;
    if (spec->kind == OPTION_CHOICE)
        choice_text(spec->choices, *(const int *)at, text, size);
    else if (spec->offset == AT(white) && *(const int *)at == 0)
        snprintf(text, size, "auto");
    else if (spec->kind == OPTION_INT || spec->kind == OPTION_FLAG)
        snprintf(text, size, "%d", *(const int *)at);
    else if (spec->kind == OPTION_FLOAT)
        number_write(text, size, 9, (double)*(const float *)at);
    else if (isnan(*(const double *)at))
        snprintf(text, size, "auto");
    else
        number_write(text, size, 17, *(const double *)at);
}

void option_brief(const Options *o, const OptionSpec *spec, char *text, size_t size)
{
    const void *at = (const char *)o + spec->offset;
    if (spec->kind == OPTION_FLOAT)
        snprintf(text, size, "%g", (double)*(const float *)at);
    else if (spec->kind == OPTION_DOUBLE && !isnan(*(const double *)at))
        snprintf(text, size, "%g", *(const double *)at);
    else
        option_text(o, spec, text, size);
}

void options_help(FILE *out, const Options *o, int of_features)
{
    for (int i = 0; i < option_count; i++) {
        const OptionSpec *spec = &option_table[i];
        const char *paper = paper_value(spec->name);
        char value[64], head[64];
        if (spec->of_features != of_features)
            continue;
        option_brief(o, spec, value, sizeof value);
        snprintf(head, sizeof head, "--%s %s", spec->name, spec->kind == OPTION_CHOICE ? spec->choices : "N");
        fprintf(out, "  %-36s %s [%s%s%s]\n", head, spec->help, value, paper ? "; paper: " : "",
                paper ? paper : "");
    }
}
