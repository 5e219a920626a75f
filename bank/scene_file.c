/* scene_file.c - a scene as a safetensors file, bit for bit, so that a long run keeps what it has analysed.
 *
 *   features [h][w][C]    mean_patch [C]    cls [D]                        F32
 *   objects.weights [n][h][w]    objects.pooled [n][C]
 *   objects.centroids [n][2]     objects.areas [n]                         F32
 *   labels [H][W]                                                          I16
 *   metadata: samlad.kind "scene"    background    made_by, what weights and settings made it */
#include <stdlib.h>
#include <string.h>

#include "bank/bank.h"
#include "io/fail.h"
#include "bank/scene.h"
#include "tensor.h"

int scene_save(const Scene *s, const char *made_by, const char *path, Error *err)
{
    const Objects *o = &s->objects;
    size_t n_pixels = (size_t)s->height * (size_t)s->width;
    int64_t h = o->grid_h, w = o->grid_w, C = o->channels, n = o->n;
    if (o->n > BANK_MAX_OBJECTS)
        return fail(err, "%s: %d objects, at most %d are kept", path, o->n, BANK_MAX_OBJECTS);
    int16_t *labels = aligned_array(n_pixels, sizeof *labels);
    StWriter *writer = labels ? st_writer_new() : NULL;
    if (!writer) {
        free(labels);
        return fail_memory(err, "a scene", n_pixels * sizeof *labels);
    }
    for (size_t p = 0; p < n_pixels; p++)
        labels[p] = (int16_t)s->labels[p];
    int status =
        st_writer_meta(writer, "samlad.kind", "scene", err) ||
        st_writer_meta(writer, "made_by", made_by, err) ||
        st_writer_meta(writer, "background", o->has_background ? "1" : "0", err) ||
        st_writer_add(writer, "features", ST_F32, 3, (int64_t[]){h, w, C}, s->features, err) ||
        st_writer_add(writer, "mean_patch", ST_F32, 1, &C, s->mean_patch, err) ||
        st_writer_add(writer, "cls", ST_F32, 1, (int64_t[]){s->cls_dim}, s->cls, err) ||
        st_writer_add(writer, "objects.weights", ST_F32, 3, (int64_t[]){n, h, w}, o->coverage, err) ||
        st_writer_add(writer, "objects.pooled", ST_F32, 2, (int64_t[]){n, C}, o->pooled, err) ||
        st_writer_add(writer, "objects.centroids", ST_F32, 2, (int64_t[]){n, 2}, o->centroids, err) ||
        st_writer_add(writer, "objects.areas", ST_F32, 1, &n, o->areas, err) ||
        st_writer_add(writer, "labels", ST_I16, 2, (int64_t[]){s->height, s->width}, labels, err) ||
        st_writer_save(writer, path, err);
    st_writer_free(writer);
    free(labels);
    return status ? -1 : 0;
}

/* The tensor's data in the file, or NULL after a sentence. */
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

/* A copy of it. */
static void *take(const Safetensors *file, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                  Error *err)
{
    const void *data = expect(file, name, dtype, n_dims, shape, err);
    if (!data)
        return NULL;
    const size_t n_bytes = st_find(file, name)->n_bytes;
    void *copy = aligned_array(n_bytes + 1, 1);
    if (!copy)
        fail_memory(err, "a scene", n_bytes);
    else
        memcpy(copy, data, n_bytes);
    return copy;
}

/* Grid, channels, objects and image size, within what the method can hold. */
static int take_sizes(Scene *s, const Safetensors *file, const char *made_by, Error *err)
{
    const char *kind = st_meta(file, "samlad.kind");
    const StTensor *features = st_find(file, "features"), *cls = st_find(file, "cls"),
                   *areas = st_find(file, "objects.areas"), *labels = st_find(file, "labels");
    if (!kind || strcmp(kind, "scene") != 0 || !features || features->n_dims != 3 || !cls ||
        cls->n_dims != 1 || !areas || areas->n_dims != 1 || !labels || labels->n_dims != 2)
        return fail(err, "%s: not a scene of samlad", st_path(file));
    const char *maker = st_meta(file, "made_by");
    if (!maker || strcmp(maker, made_by) != 0)
        return fail(err, "%s: the scene was made with other weights or other settings of features",
                    st_path(file));
    const int64_t *f = features->shape, *l = labels->shape;
    if (f[0] < 1 || f[1] < 1 || f[2] < 1 || f[0] > 1024 || f[1] > 1024 || f[2] > 65536 || l[0] < 1 ||
        l[1] < 1 || l[0] > 1 << 28 || l[1] > 1 << 28 || cls->shape[0] > 65536 ||
        areas->shape[0] > BANK_MAX_OBJECTS)
        return fail(err, "%s: a grid of %lldx%lld with %lld channels is not a scene's", st_path(file),
                    (long long)f[1], (long long)f[0], (long long)f[2]);
    s->height = (int)l[0], s->width = (int)l[1], s->cls_dim = (int)cls->shape[0];
    int background;
    if (st_meta_int(file, "background", 0, 1, &background, err))
        return -1;
    s->objects = (Objects){.n = (int)areas->shape[0],
                           .has_background = background,
                           .grid_h = (int)f[0],
                           .grid_w = (int)f[1],
                           .channels = (int)f[2]};
    return background > s->objects.n ? fail(err, "%s: a background but no object", st_path(file)) : 0;
}

static int take_labels(Scene *s, const Safetensors *file, Error *err)
{
    int16_t *labels = take(file, "labels", ST_I16, 2, (int64_t[]){s->height, s->width}, err);
    size_t n_pixels = (size_t)s->height * (size_t)s->width;
    s->labels = labels ? aligned_array(n_pixels, sizeof *s->labels) : NULL;
    int status = s->labels ? 0 : labels ? fail_memory(err, "a scene", n_pixels * 4) : -1;
    for (size_t p = 0; p < n_pixels && !status; p++) {
        s->labels[p] = labels[p];
        if (labels[p] < -1 || labels[p] >= s->objects.n)
            status = fail(err, "%s: pixel %zu has label %d, there are %d objects", st_path(file), p,
                          labels[p], s->objects.n);
    }
    free(labels);
    return status;
}

/* What a bank keeps in a byte. */
static int check_coverage(const Objects *o, const char *path, Error *err)
{
    const size_t n = (size_t)o->n * (size_t)o->grid_h * (size_t)o->grid_w;
    for (size_t i = 0; i < n; i++)
        if (!(o->coverage[i] >= 0 && o->coverage[i] <= 1))
            return fail(err, "%s: tensor objects.weights holds %g at %zu, expected 0 to 1", path,
                        (double)o->coverage[i], i);
    return 0;
}

/* The objects in the file, which is then only copied. */
static int take_objects(Scene *s, const Safetensors *file, Error *err)
{
    Objects view = s->objects;
    int64_t h = view.grid_h, w = view.grid_w, C = view.channels, n = view.n;
    view.features = s->features;
    if (!(view.coverage = expect(file, "objects.weights", ST_F32, 3, (int64_t[]){n, h, w}, err)) ||
        !(view.pooled = expect(file, "objects.pooled", ST_F32, 2, (int64_t[]){n, C}, err)) ||
        !(view.centroids = expect(file, "objects.centroids", ST_F32, 2, (int64_t[]){n, 2}, err)) ||
        !(view.areas = expect(file, "objects.areas", ST_F32, 1, &n, err)) ||
        check_coverage(&view, st_path(file), err))
        return -1;
    return objects_copy(&s->objects, &view, err);
}

int scene_load(Scene *s, const char *made_by, const char *path, Error *err)
{
    *s = (Scene){0};
    Safetensors *file = st_open(path, err);
    if (!file)
        return -1;
    const Objects *o = &s->objects;
    int status = take_sizes(s, file, made_by, err);
    int64_t h = o->grid_h, w = o->grid_w, C = o->channels, D = s->cls_dim;
    if (!status && (!(s->features = take(file, "features", ST_F32, 3, (int64_t[]){h, w, C}, err)) ||
                    !(s->mean_patch = take(file, "mean_patch", ST_F32, 1, &C, err)) ||
                    !(s->cls = take(file, "cls", ST_F32, 1, &D, err)) || take_objects(s, file, err) ||
                    take_labels(s, file, err)))
        status = -1;
    st_close(file);
    if (status)
        scene_free(s);
    return status;
}
