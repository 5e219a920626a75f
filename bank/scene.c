/* scene.c - a scene as a safetensors file, bit for bit, so that a long run keeps its analysed images.
 *
 *   features [h][w][C]    mean_patch [C]    cls [D]                        F32
 *   objects.weights [n][h][w] coverage    objects.pooled [n][C]
 *   objects.centroids [n][2]              objects.areas [n]                F32
 *   labels [H][W]                                                          I16
 *   metadata: samlad.kind "scene"    background    made_by: the weights and settings of its maker. */
#include "bank/scene.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Saving
 * ============================================================================================== */

/* The labels as the file has them; NULL: no memory. */
static int16_t *short_labels(const Scene *s, Error *err)
{
    const size_t n_pixels = (size_t)s->height * s->width;
    int16_t *labels = aligned_array(n_pixels, sizeof *labels);
    if (!labels)
        fail_memory(err, "a scene", n_pixels * sizeof *labels);
    for (size_t p = 0; labels && p < n_pixels; p++)
        labels[p] = (int16_t)s->labels[p];
    return labels;
}

static int add_all(StWriter *w, const Scene *s, const int16_t *labels, const char *made_by, Error *err)
{
    const Objects *o = &s->objects;
    const int64_t n = o->n, height = o->grid_h, width = o->grid_w, C = o->channels, D = s->cls_dim;
    return st_writer_meta(w, "samlad.kind", "scene", err) || st_writer_meta(w, "made_by", made_by, err) ||
           st_writer_meta(w, "background", o->has_background ? "1" : "0", err) ||
           st_writer_add(w, "features", ST_F32, 3, (int64_t[]){height, width, C}, s->features, err) ||
           st_writer_add(w, "mean_patch", ST_F32, 1, &C, s->mean_patch, err) ||
           st_writer_add(w, "cls", ST_F32, 1, &D, s->cls, err) ||
           st_writer_add(w, "objects.weights", ST_F32, 3, (int64_t[]){n, height, width}, o->coverage, err) ||
           st_writer_add(w, "objects.pooled", ST_F32, 2, (int64_t[]){n, C}, o->pooled, err) ||
           st_writer_add(w, "objects.centroids", ST_F32, 2, (int64_t[]){n, 2}, o->centroids, err) ||
           st_writer_add(w, "objects.areas", ST_F32, 1, &n, o->areas, err) ||
           st_writer_add(w, "labels", ST_I16, 2, (int64_t[]){s->height, s->width}, labels, err);
}

int scene_new_features(Scene *scene, int grid_h, int grid_w, int channels, Error *err)
{
    const size_t n_cells = (size_t)grid_h * grid_w, C = channels;
    scene->features = aligned_array(n_cells * C, sizeof(float));
    scene->mean_patch = aligned_array(C, sizeof(float));
    scene->cls = aligned_array(C, sizeof(float));
    scene->cls_dim = channels;
    scene->objects =
        (Objects){.grid_h = grid_h, .grid_w = grid_w, .channels = channels, .features = scene->features};
    return scene->features && scene->mean_patch && scene->cls
               ? 0
               : fail_memory(err, "features", n_cells * C * sizeof(float));
}

void scene_free(Scene *scene)
{
    free(scene->features), free(scene->mean_patch), free(scene->cls), free(scene->labels);
    objects_free(&scene->objects);
    *scene = (Scene){0};
}

int scene_save(const Scene *s, const char *made_by, const char *path, Error *err)
{
    if (s->objects.n > SCENE_MAX_OBJECTS)
        return fail(err, "%s: %d objects, at most %d are kept", path, s->objects.n, SCENE_MAX_OBJECTS);
    int16_t *labels = short_labels(s, err);
    if (!labels)
        return -1;
    StWriter *w = st_writer_new();
    int status = w ? add_all(w, s, labels, made_by, err) || st_writer_save(w, path, err)
                   : fail_memory(err, "a scene", sizeof(void *));
    st_writer_free(w);
    free(labels);
    return status ? -1 : 0;
}

/* ================================================================================================
 * Loading
 * ============================================================================================== */

/* The tensor's data in the file, if it has this type and shape and its floats are finite. NULL on failure. */
static const void *expect(const Safetensors *file, const char *name, StDtype dtype, int n_dims,
                          const int64_t *shape, Error *err)
{
    const StTensor *t = st_find(file, name);
    int ok = t && t->dtype == dtype && t->n_dims == n_dims && (uintptr_t)t->data % st_dtype_size(dtype) == 0;
    for (int d = 0; ok && d < n_dims; d++)
        ok = t->shape[d] == shape[d];
    if (!ok) {
        fail(err, "%s: tensor %s is missing or not of a scene's type and shape", st_path(file), name);
        return NULL;
    }
    if (dtype == ST_F32 && !all_finite(t->data, t->n_elements)) {
        fail(err, "%s: tensor %s holds a value that is not a finite number", st_path(file), name);
        return NULL;
    }
    return t->data;
}

/* A copy of a float32 tensor. NULL on failure. */
static float *copy_of(const Safetensors *file, const char *name, int n_dims, const int64_t *shape, Error *err)
{
    const void *data = expect(file, name, ST_F32, n_dims, shape, err);
    if (!data)
        return NULL;
    const size_t n_bytes = st_find(file, name)->n_bytes;
    float *copy = aligned_array(n_bytes, 1);
    if (!copy)
        fail_memory(err, "a scene", n_bytes);
    else
        memcpy(copy, data, n_bytes);
    return copy;
}

static int check_kind(const Safetensors *file, const char *made_by, Error *err)
{
    const char *kind = st_meta(file, "samlad.kind"), *maker = st_meta(file, "made_by");
    if (!kind || strcmp(kind, "scene") != 0)
        return fail(err, "%s: not a scene of samlad", st_path(file));
    if (!maker || strcmp(maker, made_by) != 0)
        return fail(err, "%s: the scene was made with other weights or other settings of features",
                    st_path(file));
    return 0;
}

/* Shape of a tensor of n_dims dimensions; NULL if there is none. */
static const int64_t *shape_of(const Safetensors *file, const char *name, int n_dims)
{
    const StTensor *t = st_find(file, name);
    return t && t->n_dims == n_dims ? t->shape : NULL;
}

/* Grid, channels, objects and image size, within the method's limits. */
static int load_sizes(Scene *s, const Safetensors *file, Error *err)
{
    const int64_t *features = shape_of(file, "features", 3), *cls = shape_of(file, "cls", 1),
                  *areas = shape_of(file, "objects.areas", 1), *labels = shape_of(file, "labels", 2);
    if (!features || !cls || !areas || !labels)
        return fail(err, "%s: not a scene of samlad", st_path(file));
    const int64_t height = features[0], width = features[1], C = features[2], most = 1 << 28;
    if (height < 1 || width < 1 || C < 1 || height > 1024 || width > 1024 || C > 65536 || labels[0] < 1 ||
        labels[1] < 1 || labels[0] > most || labels[1] > most || cls[0] > 65536 ||
        areas[0] > SCENE_MAX_OBJECTS)
        return fail(err, "%s: a grid of %lldx%lld with %lld channels is not a scene's", st_path(file),
                    (long long)width, (long long)height, (long long)C);
    s->height = (int)labels[0], s->width = (int)labels[1], s->cls_dim = (int)cls[0];
    Objects *o = &s->objects;
    o->n = (int)areas[0], o->grid_h = (int)height, o->grid_w = (int)width, o->channels = (int)C;
    if (st_meta_int(file, "background", 0, 1, &o->has_background, err))
        return -1;
    return o->has_background > o->n ? fail(err, "%s: a background but no object", st_path(file)) : 0;
}

static int load_features(Scene *s, const Safetensors *file, Error *err)
{
    const Objects *o = &s->objects;
    const int64_t C = o->channels, D = s->cls_dim;
    return (s->features = copy_of(file, "features", 3, (int64_t[]){o->grid_h, o->grid_w, C}, err)) &&
                   (s->mean_patch = copy_of(file, "mean_patch", 1, &C, err)) &&
                   (s->cls = copy_of(file, "cls", 1, &D, err))
               ? 0
               : -1;
}

/* Coverage must be 0 to 1, because a bank keeps it in a byte. */
static int check_coverage(const Objects *o, const char *path, Error *err)
{
    const size_t n = o->n * grid_cells(o);
    for (size_t i = 0; i < n; i++)
        if (!(o->coverage[i] >= 0 && o->coverage[i] <= 1))
            return fail(err, "%s: tensor objects.weights holds %g at %zu, expected 0 to 1", path,
                        (double)o->coverage[i], i);
    return 0;
}

/* Copy the objects from a view of the file. */
static int load_objects(Scene *s, const Safetensors *file, Error *err)
{
    Objects view = s->objects;
    const int64_t n = view.n, height = view.grid_h, width = view.grid_w, C = view.channels;
    view.features = s->features;
    if (!(view.coverage = expect(file, "objects.weights", ST_F32, 3, (int64_t[]){n, height, width}, err)) ||
        !(view.pooled = expect(file, "objects.pooled", ST_F32, 2, (int64_t[]){n, C}, err)) ||
        !(view.centroids = expect(file, "objects.centroids", ST_F32, 2, (int64_t[]){n, 2}, err)) ||
        !(view.areas = expect(file, "objects.areas", ST_F32, 1, &n, err)) ||
        check_coverage(&view, st_path(file), err))
        return -1;
    return objects_copy(&s->objects, &view, err);
}

static int load_labels(Scene *s, const Safetensors *file, Error *err)
{
    const size_t n_pixels = (size_t)s->height * s->width;
    const int16_t *labels = expect(file, "labels", ST_I16, 2, (int64_t[]){s->height, s->width}, err);
    if (!labels)
        return -1;
    s->labels = aligned_array(n_pixels, sizeof *s->labels);
    if (!s->labels)
        return fail_memory(err, "a scene", n_pixels * sizeof *s->labels);
    for (size_t p = 0; p < n_pixels; p++) {
        s->labels[p] = labels[p];
        if (labels[p] < -1 || labels[p] >= s->objects.n)
            return fail(err, "%s: pixel %zu has label %d, there are %d objects", st_path(file), p, labels[p],
                        s->objects.n);
    }
    return 0;
}

int scene_load(Scene *s, const char *made_by, const char *path, Error *err)
{
    *s = (Scene){0};
    Safetensors *file = st_open(path, err);
    if (!file)
        return -1;
    int status = check_kind(file, made_by, err) || load_sizes(s, file, err) || load_features(s, file, err) ||
                 load_objects(s, file, err) || load_labels(s, file, err);
    st_close(file);
    if (status)
        scene_free(s);
    return status ? -1 : 0;
}
