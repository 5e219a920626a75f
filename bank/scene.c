/* scene.c - features and objects of one image. See scene.h.
 *
 *   rgb [H][W][3] -> pixels [3][S_h][S_w] -> ViT -> patches [h'][w'][C]
 *                 -> FeatUp -> [h'·8][w'·8][C] -> mean -> [h][w][C]
 *   rgb           -> SAM's automatic masks [n][H][W] -> objects on the grid [n][h][w] */
#include "bank/scene.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Features
 * ============================================================================================== */

typedef struct Sizes {
    int in_h, in_w;       /* network input */
    int patch_h, patch_w; /* patches */
    int up_h, up_w;       /* after upsampling */
    int grid_h, grid_w;   /* of maps and objects */
} Sizes;

static int at_least_one(double x)
{
    int i = (int)floor(x + 0.5);
    return i > 1 ? i : 1;
}

static Sizes choose_sizes(const Options *o, int patch, int height, int width)
{
    double longer = height > width ? height : width;
    double aspect_h = o->resize == RESIZE_FIT ? height / longer : 1,
           aspect_w = o->resize == RESIZE_FIT ? width / longer : 1;
    Sizes s;
    s.patch_h = at_least_one(o->size * aspect_h / patch);
    s.patch_w = at_least_one(o->size * aspect_w / patch);
    s.in_h = s.patch_h * patch;
    s.in_w = s.patch_w * patch;
    int factor = 1 << (o->featup_stages > 0 ? o->featup_stages : 3);
    s.up_h = s.patch_h * factor;
    s.up_w = s.patch_w * factor;
    double cells = o->grid > 0 ? (double)o->grid / (s.in_h > s.in_w ? s.in_h : s.in_w) : 0.25;
    s.grid_h = at_least_one(s.in_h * cells);
    s.grid_w = at_least_one(s.in_w * cells);
    return s;
}

/* With FeatUp; without, features are enlarged bilinearly. */
static int sharpens(const Models *m, const Options *o)
{
    return m->featup && o->featup_stages > 0;
}

size_t models_image_bytes(const Models *m, const Options *o)
{
    /* A square image is the largest: of others the longer side is as long. */
    const int patch = vit_config(m->vit)->patch_size;
    const Sizes s = choose_sizes(o, patch, 1, 1);
    const size_t channels = (size_t)vit_config(m->vit)->dim,
                 cells = (sharpens(m, o) ? (size_t)s.up_h * (size_t)s.up_w : 0) +
                         (size_t)s.grid_h * (size_t)s.grid_w;
    return (m->sam_state ? sam_state_bytes(m->sam_state) : 0) +
           vit_state_bytes(m->vit, s.patch_h, s.patch_w) + cells * channels * sizeof(float);
}

static void mean_unit(float *mean, const float *patches, int n, int channels)
{
    for (int c = 0; c < channels; c++) {
        double sum = 0;
        for (int p = 0; p < n; p++)
            sum += patches[(size_t)p * (size_t)channels + (size_t)c];
        mean[c] = (float)(sum / n);
    }
    l2_normalise(mean, 1, channels, 1e-12f);
}

/* patches -> grid: through FeatUp's stages, or bilinearly to 8 times the size. */
static int patches_to_grid(Scene *scene, const Models *m, const Options *o, const Sizes *s,
                           const float *patches, const float *pixels, Error *err)
{
    const FeatupInput in = {patches, s->patch_h, s->patch_w, scene->objects.channels, pixels, s->in_h, s->in_w};
    const GridSize size = {s->grid_h, s->grid_w};
    return features_to_grid(scene->features, size, sharpens(m, o) ? m->featup : NULL, &in,
                            o->featup_stages > 0 ? o->featup_stages : 3, err);
}

static int ensure_vit_state(Models *m, const Sizes *s, Error *err)
{
    int side = s->patch_h > s->patch_w ? s->patch_h : s->patch_w;
    if (m->vit_state && m->vit_state_grid >= side)
        return 0;
    vit_state_free(m->vit_state);
    m->vit_state = vit_state_new(m->vit, side, side, err);
    m->vit_state_grid = m->vit_state ? side : 0;
    return m->vit_state ? 0 : -1;
}

static int run_features(Scene *scene, Models *m, const Options *o, const Sizes *s, float *pixels,
                        float *patches, StWriter *dump, Error *err)
{
    int C = scene->objects.channels;
    DumpTap tap = {dump, err, 0};
    vit_forward(m->vit, m->vit_state, &(VitImage){pixels, s->in_h, s->in_w}, o->layer, scene->cls, patches,
                dump ? dump_tap : NULL, &tap);
    if (tap.status || dump_floats(dump, "query.pixels", 3, (int64_t[]){3, s->in_h, s->in_w}, pixels, err))
        return -1;
    mean_unit(scene->mean_patch, patches, s->patch_h * s->patch_w, C);
    l2_normalise(scene->cls, 1, scene->cls_dim, 1e-12f);
    if (patches_to_grid(scene, m, o, s, patches, pixels, err))
        return -1;
    return dump_floats(dump, "featup.features", 3, (int64_t[]){s->grid_h, s->grid_w, C}, scene->features,
                       err);
}

static int compute_features(Scene *scene, Models *m, const Options *o, const uint8_t *rgb, StWriter *dump,
                            Error *err)
{
    const VitConfig *vit = vit_config(m->vit);
    Sizes s = choose_sizes(o, vit->patch_size, scene->height, scene->width);
    size_t C = (size_t)vit->dim;
    scene->cls_dim = vit->dim;
    scene->objects = (Objects){.grid_h = s.grid_h, .grid_w = s.grid_w, .channels = vit->dim};
    if (o->layer < 1 || o->layer > vit->depth)
        return fail(err, "option layer: %d is not one of the backbone's blocks 1 to %d", o->layer,
                    vit->depth);
    float *pixels = aligned_array((size_t)s.in_h * (size_t)s.in_w * 3, sizeof(float));
    float *patches = aligned_array((size_t)s.patch_h * (size_t)s.patch_w * C, sizeof(float));
    scene->objects.features = scene->features =
        aligned_array((size_t)s.grid_h * (size_t)s.grid_w * C, sizeof(float));
    scene->mean_patch = aligned_array(C, sizeof(float));
    scene->cls = aligned_array(C, sizeof(float));
    int status;
    if (!pixels || !patches || !scene->features || !scene->mean_patch || !scene->cls)
        status =
            fail_memory(err, "features", (unsigned long long)s.grid_h * (unsigned long long)s.grid_w * C * 4);
    else
        status = ensure_vit_state(m, &s, err);
    if (!status)
        status = vit_preprocess(vit, pixels, s.in_h, s.in_w, rgb, scene->height, scene->width, err);
    if (!status)
        status = run_features(scene, m, o, &s, pixels, patches, dump, err);
    if (!status && !all_finite(scene->features, (size_t)s.grid_h * (size_t)s.grid_w * C))
        status =
            fail(err, "%s%s%s: these weights give features that are not finite numbers", st_path(m->vit_file),
                 sharpens(m, o) ? " with " : "", sharpens(m, o) ? st_path(m->featup_file) : "");
    free(pixels), free(patches);
    return status;
}

/* ================================================================================================
 * Objects
 * ============================================================================================== */

static int compute_objects(Scene *scene, Models *m, const Options *o, const uint8_t *rgb, StWriter *dump,
                           Error *err)
{
    scene->labels = aligned_array((size_t)scene->height * (size_t)scene->width, sizeof *scene->labels);
    if (!scene->labels)
        return fail_memory(err, "the objects of an image",
                           (unsigned long long)scene->height * (unsigned long long)scene->width * 4);
    if (o->no_objects) {
        memset(scene->labels, 0, (size_t)scene->height * (size_t)scene->width * sizeof *scene->labels);
        return whole_image_object(&scene->objects, err);
    }
    if (!m->sam)
        return fail(err, "no Segment Anything weights: give --sam, or --no-objects 1 to do without objects");
    AmgMasks masks = {0};
    if (amg_generate(m->sam, m->sam_state, &masks, &o->amg, rgb, scene->height, scene->width, NULL, NULL,
                     err))
        return -1;
    int status = dump ? dump_masks(dump, &masks, scene->height, scene->width, err) ||
                            dump_sam(dump, m->sam, m->sam_state, rgb, scene->height, scene->width, err)
                      : 0;
    Rle *rles = aligned_array(masks.n + 1, sizeof *rles);
    if (!rles && !status)
        status = fail_memory(err, "the objects of an image", masks.n * sizeof *rles);
    for (size_t i = 0; i < masks.n && !status; i++)
        rles[i] = masks.masks[i].segmentation;
    if (!status)
        status = masks_to_objects(&scene->objects, scene->labels, rles, (int)masks.n, scene->height,
                                  scene->width, &o->objects, err);
    free(rles);
    amg_masks_free(&masks);
    return status ? -1 : 0;
}

int scene_analyse(Scene *scene, Models *models, const Options *options, const uint8_t *rgb, int height,
                  int width, StWriter *dump, Error *err)
{
    *scene = (Scene){.height = height, .width = width};
    if (height < 1 || width < 1)
        return fail(err, "a picture of %d x %d pixels has nothing to look at", width, height);
    if (compute_features(scene, models, options, rgb, dump, err) ||
        compute_objects(scene, models, options, rgb, dump, err) ||
        (dump && dump_objects(dump, &scene->objects, err))) {
        scene_free(scene);
        return -1;
    }
    return 0;
}

void scene_free(Scene *scene)
{
    free(scene->features), free(scene->mean_patch), free(scene->cls), free(scene->labels);
    objects_free(&scene->objects);
    *scene = (Scene){0};
}
