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

/* weights [n_out][n_in]: what a column of n_in features, enlarged bilinearly to n_up, gives on n_out cells.
 * Found by doing so with the unit vectors: channel i is 1 in place i. room [n_up][n_in] */
static void axis_weights(float *weights, int n_out, int n_up, int n_in, int pooled, float *units, float *room)
{
    memset(units, 0, (size_t)n_in * (size_t)n_in * sizeof *units);
    for (int i = 0; i < n_in; i++)
        units[(size_t)i * (size_t)n_in + (size_t)i] = 1;
    interpolate_bilinear(room, n_up, 1, units, n_in, 1, n_in, 0, 0);
    if (pooled)
        adaptive_avg_pool(weights, n_out, 1, room, n_up, 1, n_in);
    else
        interpolate_bilinear(weights, n_out, 1, room, n_up, 1, n_in, 0, 0);
}

/* The same grid as to_grid's of bilinearly enlarged features, which are never written down: both steps are
 * linear and act on rows and columns apart, so that they are one small matrix an axis. */
static int bilinear_grid(float *grid, const float *patches, const Sizes *s, int channels, Error *err)
{
    const int side_in = s->patch_h > s->patch_w ? s->patch_h : s->patch_w;
    const int side_up = s->up_h > s->up_w ? s->up_h : s->up_w;
    const int side_out = s->grid_h > s->grid_w ? s->grid_h : s->grid_w;
    const int pooled = s->grid_h <= s->up_h && s->grid_w <= s->up_w, width = s->grid_w * channels;
    const size_t in = (size_t)side_in, n_units = in * in, n_room = in * (size_t)side_up;
    const size_t n_weights = in * (size_t)side_out, n_rows = (size_t)s->patch_h * (size_t)width;
    float *units = aligned_array(n_units + n_room + n_weights + n_rows, sizeof(float));
    if (!units)
        return fail_memory(err, "features", (n_units + n_room + n_weights + n_rows) * sizeof(float));
    float *room = units + n_units, *weights = room + n_room, *rows = weights + n_weights;
    axis_weights(weights, s->grid_w, s->up_w, s->patch_w, pooled, units, room);
    for (ptrdiff_t y = 0; y < s->patch_h; y++)
        matmul(rows + y * width, channels, weights, s->patch_w, patches + y * s->patch_w * channels, channels,
               s->grid_w, channels, s->patch_w, 0);
    axis_weights(weights, s->grid_h, s->up_h, s->patch_h, pooled, units, room);
    matmul(grid, width, weights, s->patch_h, rows, width, s->grid_h, width, s->patch_h, 0);
    free(units);
    return 0;
}

/* Upsampled features -> the grid: adaptive average pooling down [ours: 8x, then 2x2 mean], bilinear up. */
static void to_grid(float *grid, const float *up, const Sizes *s, int channels)
{
    if (s->grid_h <= s->up_h && s->grid_w <= s->up_w)
        adaptive_avg_pool(grid, s->grid_h, s->grid_w, up, s->up_h, s->up_w, channels);
    else
        interpolate_bilinear(grid, s->grid_h, s->grid_w, up, s->up_h, s->up_w, channels, 0, 0);
}

static int featup_grid(float *grid, const Featup *featup, const float *patches, const float *pixels,
                       const Sizes *s, int channels, int stages, Error *err)
{
    float *up = aligned_array((size_t)s->up_h * (size_t)s->up_w * (size_t)channels, sizeof *up);
    if (!up)
        return fail_memory(err, "features",
                           (unsigned long long)s->up_h * (unsigned long long)s->up_w * (size_t)channels * 4);
    int status = featup_upsample(featup, up, patches, s->patch_h, s->patch_w, channels, pixels, s->in_h,
                                 s->in_w, stages, err);
    if (!status)
        to_grid(grid, up, s, channels);
    free(up);
    return status;
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
    vit_forward(m->vit, m->vit_state, pixels, s->in_h, s->in_w, o->layer, scene->cls, patches,
                dump ? dump_tap : NULL, &tap);
    if (tap.status || dump_floats(dump, "query.pixels", 3, (int64_t[]){3, s->in_h, s->in_w}, pixels, err))
        return -1;
    mean_unit(scene->mean_patch, patches, s->patch_h * s->patch_w, C);
    l2_normalise(scene->cls, 1, scene->cls_dim, 1e-12f);
    if (sharpens(m, o) ? featup_grid(scene->features, m->featup, patches, pixels, s, C, o->featup_stages, err)
                       : bilinear_grid(scene->features, patches, s, C, err))
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
