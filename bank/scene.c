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
 * Models
 * ============================================================================================== */

static int open_sam(Models *m, const char *path, Error *err)
{
    if (!path)
        return 0;
    m->sam_file = st_open(path, err);
    m->sam = m->sam_file ? sam_open(m->sam_file, err) : NULL;
    m->sam_state = m->sam ? sam_state_new(m->sam, err) : NULL;
    return m->sam_state ? 0 : -1;
}

static int open_featup(Models *m, const char *path, Error *err)
{
    if (!path)
        return 0;
    m->featup_file = st_open(path, err);
    m->featup = m->featup_file ? featup_open(m->featup_file, err) : NULL;
    return m->featup ? 0 : -1;
}

/* Looked at already here, for it is needed only when all images are analysed. */
static int open_dcga(Models *m, const char *path, Error *err)
{
    Dcga looked = {.channels = vit_config(m->vit)->dim};
    if (!path)
        return 0;
    m->dcga_file = st_open(path, err);
    return m->dcga_file ? dcga_learned(&looked, m->dcga_file, err) : -1;
}

int models_open(Models *m, const char *vit, const char *sam, const char *featup, const char *dcga, Error *err)
{
    *m = (Models){0};
    m->vit_file = st_open(vit, err);
    m->vit = m->vit_file ? vit_open(m->vit_file, err) : NULL;
    int status = m->vit ? 0 : -1;
    if (!status)
        status = open_sam(m, sam, err);
    if (!status)
        status = open_featup(m, featup, err);
    if (!status)
        status = open_dcga(m, dcga, err);
    if (status)
        models_close(m);
    return status;
}

void models_close(Models *m)
{
    if (m->vit_state)
        vit_state_free(m->vit_state);
    if (m->sam_state)
        sam_state_free(m->sam_state);
    if (m->vit && !m->shared)
        vit_close(m->vit);
    if (m->sam && !m->shared)
        sam_close(m->sam);
    if (m->featup && !m->shared)
        featup_close(m->featup);
    if (!m->shared)
        st_close(m->vit_file), st_close(m->sam_file), st_close(m->featup_file), st_close(m->dcga_file);
    *m = (Models){0};
}

int models_share(Models *copy, const Models *m, Error *err)
{
    *copy = *m;
    copy->shared = 1;
    copy->vit_state = NULL; /* made when the first image tells its size */
    copy->vit_state_grid = 0;
    copy->sam_state = m->sam ? sam_state_new(m->sam, err) : NULL;
    return m->sam && !copy->sam_state ? -1 : 0;
}

int models_complete(const Models *m, Options *o, Error *err)
{
    const VitConfig *vit = vit_config(m->vit);
    if (o->size == 0) {
        /* DINOv2 was trained at 518: 448, 32 patches of 14 [ours] */
        o->size = vit->image_size == 518 ? 448 : vit->image_size;
        if (st_meta(m->vit_file, "method.size") &&
            st_meta_int(m->vit_file, "method.size", 1, 4096, &o->size, err))
            return -1;
        /* A grid is recommended for that size, and not for another that the user chose. */
        if (o->grid == 0 && st_meta(m->vit_file, "method.grid") &&
            st_meta_int(m->vit_file, "method.grid", 1, 1024, &o->grid, err))
            return -1;
    }
    if (o->layer == 0) { /* METHOD.md 1: the last for DINOv2; for the ImageNet ViT block 9 of 12 was best */
        o->layer = vit->timm ? (3 * vit->depth + 2) / 4 : vit->depth;
        if (st_meta(m->vit_file, "method.layer") &&
            st_meta_int(m->vit_file, "method.layer", 1, vit->depth, &o->layer, err))
            return -1;
    }
    return 0;
}

int models_precision(Models *m, const Options *o, Error *err)
{
    const Precision precision = (Precision)o->precision;
    if (vit_set_precision(m->vit, precision, err))
        return -1;
    return m->sam && !o->no_objects ? sam_set_precision(m->sam, precision, err) : 0;
}

int models_recommend(const Models *m, Options *o, Error *err)
{
    return m->sam ? amg_recommended(&o->amg, AMG_FOR_OBJECTS, m->sam_file, err) : 0;
}

/* ================================================================================================
 * Dumping
 * ============================================================================================== */

int dump_floats(StWriter *dump, const char *name, int n_dims, const int64_t *shape, const float *data,
                Error *err)
{
    return dump ? st_writer_copy(dump, name, ST_F32, n_dims, shape, data, err) : 0;
}

typedef struct Tap {
    StWriter *dump;
    Error *err;
    int status;
} Tap;

static void tap_tensor(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    Tap *tap = user;
    if (!tap->status)
        tap->status = dump_floats(tap->dump, name, n_dims, shape, data, tap->err);
}

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
    const FeatupInput in = {patches, s->patch_h, s->patch_w, scene->channels, pixels, s->in_h, s->in_w};
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
    int C = scene->channels;
    Tap tap = {dump, err, 0};
    vit_forward(m->vit, m->vit_state, &(VitImage){pixels, s->in_h, s->in_w}, o->layer, scene->cls, patches,
                dump ? tap_tensor : NULL, &tap);
    if (tap.status || dump_floats(dump, "query.pixels", 3, (int64_t[]){3, s->in_h, s->in_w}, pixels, err))
        return -1;
    mean_unit(scene->mean_patch, patches, s->patch_h * s->patch_w, C);
    l2_normalise(scene->cls, 1, scene->cls_dim, 1e-12f);
    if (patches_to_grid(scene, m, o, s, patches, pixels, err))
        return -1;
    return dump_floats(dump, "featup.features", 3, (int64_t[]){scene->grid_h, scene->grid_w, C},
                       scene->features, err);
}

static int compute_features(Scene *scene, Models *m, const Options *o, const uint8_t *rgb, StWriter *dump,
                            Error *err)
{
    const VitConfig *vit = vit_config(m->vit);
    Sizes s = choose_sizes(o, vit->patch_size, scene->height, scene->width);
    size_t C = (size_t)vit->dim;
    scene->grid_h = s.grid_h, scene->grid_w = s.grid_w;
    scene->channels = scene->cls_dim = vit->dim;
    if (o->layer < 1 || o->layer > vit->depth)
        return fail(err, "option layer: %d is not one of the backbone's blocks 1 to %d", o->layer,
                    vit->depth);
    float *pixels = aligned_array((size_t)s.in_h * (size_t)s.in_w * 3, sizeof(float));
    float *patches = aligned_array((size_t)s.patch_h * (size_t)s.patch_w * C, sizeof(float));
    scene->features = aligned_array((size_t)s.grid_h * (size_t)s.grid_w * C, sizeof(float));
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

int dump_masks(StWriter *dump, const AmgMasks *masks, int height, int width, Error *err)
{
    size_t n = masks->n, pixels = (size_t)height * (size_t)width;
    uint8_t *all = aligned_array(n * pixels + 1, 1);
    float *numbers = aligned_array(n * 8 + 1, sizeof(float));
    if (!all || !numbers) {
        free(all), free(numbers);
        return fail_memory(err, "the dump of the masks", n * pixels);
    }
    float *iou = numbers, *stability = iou + n, *boxes = stability + n, *points = boxes + 4 * n;
    for (size_t i = 0; i < n; i++) {
        rle_decode(all + i * pixels, &masks->masks[i].segmentation);
        iou[i] = masks->masks[i].predicted_iou;
        stability[i] = masks->masks[i].stability_score;
        memcpy(boxes + 4 * i, masks->masks[i].bbox, sizeof(float[4]));
        points[2 * i] = (float)masks->masks[i].point[0];
        points[2 * i + 1] = (float)masks->masks[i].point[1];
    }
    int64_t count = (int64_t)n;
    int status = st_writer_copy(dump, "sam.masks", ST_U8, 3, (int64_t[]){count, height, width}, all, err) ||
                 dump_floats(dump, "sam.iou_predictions", 1, &count, iou, err) ||
                 dump_floats(dump, "sam.stability_scores", 1, &count, stability, err) ||
                 dump_floats(dump, "sam.boxes", 2, (int64_t[]){count, 4}, boxes, err) ||
                 dump_floats(dump, "sam.points", 2, (int64_t[]){count, 2}, points, err);
    free(all), free(numbers);
    return status ? -1 : 0;
}

/* Takes the network's input and its embedding. */
static void dump_encoder_tensor(void *user, const char *name, int n_dims, const int64_t *shape,
                                const float *data)
{
    Tap *tap = user;
    if (!tap->status && (!strcmp(name, "sam.pixels") || !strcmp(name, "sam.embedding")))
        tap->status = dump_floats(tap->dump, name, n_dims, shape, data, tap->err);
}

/* The encoder's tensors: the mask generator keeps its embeddings to itself, so a dump encodes the image once
 * more. */
int dump_sam(const Sam *sam, SamState *state, const uint8_t *rgb, int height, int width, StWriter *dump,
             Error *err)
{
    const SamPicture picture = {rgb, height, width};
    Tap tap = {.dump = dump, .err = err};
    SamImage image;
    if (sam_encode(sam, state, &image, &picture, &(SamTap){dump_encoder_tensor, &tap}, err))
        return -1;
    sam_image_free(&image);
    return tap.status;
}

/* masks -> labels -> weights -> objects */
static int masks_to_objects(Scene *scene, const AmgMasks *masks, const Options *o, Error *err)
{
    int n_masks = (int)masks->n, n_kept = 0, background = o->objects.background;
    size_t n_cells = (size_t)scene->grid_h * (size_t)scene->grid_w;
    Rle *rles = aligned_array((size_t)n_masks + 1, sizeof *rles);
    int *kept = aligned_array((size_t)n_masks + 1, sizeof *kept);
    float *weights = aligned_array(((size_t)n_masks + 1) * n_cells, sizeof *weights);
    int status = rles && kept && weights
                     ? 0
                     : fail_memory(err, "the objects of an image", ((size_t)n_masks + 1) * n_cells * 4);
    for (int i = 0; !status && i < n_masks; i++)
        rles[i] = masks->masks[i].segmentation;
    if (!status)
        status = objects_labels(scene->labels, kept, &n_kept, rles, n_masks, scene->height, scene->width,
                                &o->objects, err);
    if (!status) {
        int uncovered = 0;
        for (size_t p = 0; p < (size_t)scene->height * (size_t)scene->width && !uncovered; p++)
            uncovered = scene->labels[p] < 0;
        background = background && uncovered;
        status = objects_weights(weights, scene->labels, n_kept, background, scene->height, scene->width,
                                 scene->grid_h, scene->grid_w, err);
    }
    if (!status)
        status = objects_new(&scene->objects, n_kept + background, background, scene->grid_h, scene->grid_w,
                             scene->channels, weights, scene->features, err);
    free(rles), free(kept), free(weights);
    return status;
}

static int whole_image(Scene *scene, Error *err)
{
    size_t n_cells = (size_t)scene->grid_h * (size_t)scene->grid_w;
    float *weights = aligned_array(n_cells, sizeof *weights);
    if (!weights)
        return fail_memory(err, "the objects of an image", n_cells * 4);
    for (size_t p = 0; p < n_cells; p++)
        weights[p] = 1;
    for (size_t p = 0; p < (size_t)scene->height * (size_t)scene->width; p++)
        scene->labels[p] = 0;
    int status = objects_new(&scene->objects, 1, 0, scene->grid_h, scene->grid_w, scene->channels, weights,
                             scene->features, err);
    free(weights);
    return status;
}

static int compute_objects(Scene *scene, Models *m, const Options *o, const uint8_t *rgb, StWriter *dump,
                           Error *err)
{
    scene->labels = aligned_array((size_t)scene->height * (size_t)scene->width, sizeof *scene->labels);
    if (!scene->labels)
        return fail_memory(err, "the objects of an image",
                           (unsigned long long)scene->height * (unsigned long long)scene->width * 4);
    if (o->no_objects)
        return whole_image(scene, err);
    if (!m->sam)
        return fail(err, "no Segment Anything weights: give --sam, or --no-objects 1 to do without objects");
    AmgMasks masks = {0};
    const SamPicture picture = {rgb, scene->height, scene->width};
    if (amg_generate(m->sam, m->sam_state, &masks, &o->amg, &picture, NULL, NULL, err))
        return -1;
    int status = dump ? dump_masks(dump, &masks, scene->height, scene->width, err) ||
                            dump_sam(m->sam, m->sam_state, rgb, scene->height, scene->width, dump, err)
                      : 0;
    if (!status)
        status = masks_to_objects(scene, &masks, o, err);
    amg_masks_free(&masks);
    return status ? -1 : 0;
}

static int dump_objects(StWriter *dump, const Objects *o, Error *err)
{
    return dump_floats(dump, "objects.weights", 3, (int64_t[]){o->n, o->grid_h, o->grid_w}, o->weights,
                       err) ||
           dump_floats(dump, "objects.pooled", 2, (int64_t[]){o->n, o->channels}, o->pooled, err) ||
           dump_floats(dump, "objects.centroids", 2, (int64_t[]){o->n, 2}, o->centroids, err);
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
