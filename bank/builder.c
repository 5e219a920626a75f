/* builder.c - collecting normal images for a bank, one after the other. See bank.h. */
#include "bank/bank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Growing arrays
 * ============================================================================================== */

/* Capacity grows by half, so the cost of adding is amortised. */
typedef struct Buffer {
    char *bytes;
    size_t used, capacity;
} Buffer;

/* Space for n_bytes more. NULL: no memory. For 0 bytes, as of an image without objects, it is not NULL
 * either. */
static void *buffer_grow(Buffer *b, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 4 - b->used)
        return NULL;
    const size_t needed = b->used + n_bytes;
    if (needed > b->capacity || !b->bytes) {
        const size_t capacity = needed + needed / 2 + 64;
        char *bytes = realloc(b->bytes, capacity);
        if (!bytes)
            return NULL;
        b->bytes = bytes;
        b->capacity = capacity;
    }
    void *at = b->bytes + b->used;
    b->used = needed;
    return at;
}

static int append(Buffer *b, const void *bytes, size_t n)
{
    void *at = buffer_grow(b, n);
    if (at && n)
        memcpy(at, bytes, n);
    return at ? 0 : -1;
}

static int append_floats(Buffer *b, const float *x, size_t n)
{
    return append(b, x, n * sizeof *x);
}

/* Append x [n] as a unit vector. */
static int append_unit(Buffer *b, const float *x, int n)
{
    float *at = buffer_grow(b, (size_t)n * sizeof *x);
    if (!at)
        return -1;
    memcpy(at, x, (size_t)n * sizeof *x);
    l2_normalise(at, 1, n, 1e-12f);
    return 0;
}

/* Append as float16. Too large numbers become the largest float16. */
static int append_halves(Buffer *b, const float *x, size_t n)
{
    const float largest = 65504;
    uint16_t *at = buffer_grow(b, n * sizeof *at);
    for (size_t i = 0; at && i < n; i++)
        at[i] = f32_to_f16(fminf(fmaxf(x[i], -largest), largest));
    return at ? 0 : -1;
}

/* Append 0..1 as 0..255. */
static int append_parts(Buffer *b, const float *x, size_t n)
{
    uint8_t *at = buffer_grow(b, n);
    for (size_t i = 0; at && i < n; i++)
        at[i] = (uint8_t)lrintf(x[i] * 255);
    return at ? 0 : -1;
}

static int append_name(Buffer *b, const char *name)
{
    char *copy = strdup(name);
    if (copy && !append(b, &copy, sizeof copy))
        return 0;
    free(copy);
    return -1;
}

/* ================================================================================================
 * The builder
 * ============================================================================================== */

struct BankBuilder {
    int n_images, n_objects, grid_h, grid_w, channels, cls_dim;
    Buffer names, features, mean_patch, cls, first, coverage, pooled, centroids, areas;
};

BankBuilder *bank_builder_new(Error *err)
{
    BankBuilder *b = calloc(1, sizeof *b);
    if (!b)
        fail_memory(err, "a bank", sizeof *b);
    return b;
}

void bank_builder_free(BankBuilder *b)
{
    if (!b)
        return;
    char **names = (char **)(void *)b->names.bytes;
    for (size_t i = 0; i < b->names.used / sizeof *names; i++)
        free(names[i]);
    Buffer *all[] = {&b->names,    &b->features, &b->mean_patch, &b->cls,  &b->first,
                     &b->coverage, &b->pooled,   &b->centroids,  &b->areas};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->bytes);
    free(b);
}

/* The first image sets the shape; the others must have the same. */
static int same_shape(BankBuilder *b, const char *name, const Scene *scene, Error *err)
{
    const Objects *o = &scene->objects;
    if (b->n_images == 0) {
        b->grid_h = o->grid_h, b->grid_w = o->grid_w, b->channels = o->channels, b->cls_dim = scene->cls_dim;
        return 0;
    }
    if (b->grid_h == o->grid_h && b->grid_w == o->grid_w && b->channels == o->channels &&
        b->cls_dim == scene->cls_dim)
        return 0;
    return fail(err,
                "%s: its feature map is %dx%d, the bank's are %dx%d: images of one bank need one aspect (or "
                "--resize squash)",
                name, o->grid_w, o->grid_h, b->grid_w, b->grid_h);
}

static int few_enough(const BankBuilder *b, const char *name, int n_objects, Error *err)
{
    if (n_objects <= SCENE_MAX_OBJECTS && b->n_objects <= BANK_MAX_OBJECTS - SCENE_MAX_OBJECTS)
        return 0;
    return fail(err,
                "%s: %d objects after %d of other images: a bank holds at most %d an image and %d in all",
                name, n_objects, b->n_objects, SCENE_MAX_OBJECTS, BANK_MAX_OBJECTS);
}

int bank_builder_add(BankBuilder *b, const char *name, const Scene *scene, Error *err)
{
    const Objects *o = &scene->objects;
    if (same_shape(b, name, scene, err) || few_enough(b, name, o->n, err))
        return -1;
    const size_t n = (size_t)o->n, C = (size_t)o->channels, n_cells = (size_t)o->grid_h * (size_t)o->grid_w;
    if (append_name(&b->names, name) || append_halves(&b->features, scene->features, n_cells * C) ||
        append_unit(&b->mean_patch, scene->mean_patch, o->channels) ||
        append_unit(&b->cls, scene->cls, scene->cls_dim) ||
        append(&b->first, &b->n_objects, sizeof b->n_objects) ||
        append_parts(&b->coverage, o->coverage, n * n_cells) || append_floats(&b->pooled, o->pooled, n * C) ||
        append_floats(&b->centroids, o->centroids, n * 2) || append_floats(&b->areas, o->areas, n))
        return fail_memory(err, "the bank's images", b->features.used);
    b->n_objects += o->n;
    b->n_images++;
    return 0;
}

/* Give the array to the bank. */
static void *give(Bank *bank, Buffer *b)
{
    void *bytes = b->bytes;
    bank->owned[bank->n_owned++] = bytes;
    *b = (Buffer){0};
    return bytes;
}

static int finish(BankBuilder *b, Bank *bank, Error *err)
{
    *bank = (Bank){0};
    if (b->n_images == 0)
        return fail(err, "a bank needs at least one normal image");
    if (append(&b->first, &b->n_objects, sizeof b->n_objects))
        return fail_memory(err, "the bank's images", sizeof b->n_objects);
    *bank = (Bank){.n_images = b->n_images,
                   .grid_h = b->grid_h,
                   .grid_w = b->grid_w,
                   .channels = b->channels,
                   .cls_dim = b->cls_dim,
                   .names = (char **)(void *)b->names.bytes};
    b->names = (Buffer){0};
    bank->features = give(bank, &b->features);
    bank->mean_patch = give(bank, &b->mean_patch);
    bank->cls = give(bank, &b->cls);
    bank->first = give(bank, &b->first);
    bank->coverage = give(bank, &b->coverage);
    bank->pooled = give(bank, &b->pooled);
    bank->centroids = give(bank, &b->centroids);
    bank->areas = give(bank, &b->areas);
    return 0;
}

int bank_builder_finish(BankBuilder *b, Bank *bank, Error *err)
{
    int status = finish(b, bank, err);
    bank_builder_free(b);
    return status;
}
