/* bank.c - building, saving, mapping and searching the template bank. See bank.h. */
#include "bank/bank.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/number.h"
#include "tensor.h"

#define BANK_VERSION "1" /* of the file's layout */

/* ================================================================================================
 * Building
 * ============================================================================================== */

/* A growing array of bytes: capacity doubles, so that adding is amortised. */
typedef struct Buffer {
    char *bytes;
    size_t used, capacity;
} Buffer;

static void *buffer_grow(Buffer *b, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 4 - b->used)
        return NULL;
    if (b->used + n_bytes > b->capacity ||
        !b->bytes) { /* never NULL, also for no bytes: an image may have no objects */
        size_t capacity = (b->used + n_bytes) + (b->used + n_bytes) / 2 + 64;
        char *bytes = realloc(b->bytes, capacity);
        if (!bytes)
            return NULL;
        b->bytes = bytes;
        b->capacity = capacity;
    }
    void *at = b->bytes + b->used;
    b->used += n_bytes;
    return at;
}

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
    for (size_t at = 0; at + sizeof(char *) <= b->names.used; at += sizeof(char *))
        free(*(char **)(void *)(b->names.bytes + at));
    Buffer *all[] = {&b->names,    &b->features, &b->mean_patch, &b->cls,  &b->first,
                     &b->coverage, &b->pooled,   &b->centroids,  &b->areas};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->bytes);
    free(b);
}

/* The first image sets the shape. */
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

static int append(Buffer *b, const void *bytes, size_t n)
{
    void *at = buffer_grow(b, n);
    if (!at)
        return -1;
    if (n)
        memcpy(at, bytes, n);
    return 0;
}

static int append_unit(Buffer *b, const float *x, int n)
{
    float *at = buffer_grow(b, (size_t)n * sizeof *x);
    if (!at)
        return -1;
    memcpy(at, x, (size_t)n * sizeof *x);
    l2_normalise(at, 1, n, 1e-12f);
    return 0;
}

static uint16_t to_f16(float f)
{
    return f32_to_f16(fminf(fmaxf(f, -65504), 65504));
}

int bank_builder_add(BankBuilder *b, const char *image, const Scene *scene, Error *err)
{
    const Objects *o = &scene->objects;
    if (same_shape(b, image, scene, err))
        return -1;
    if (o->n > BANK_MAX_OBJECTS || b->n_objects > BANK_MAX_ALL_OBJECTS - BANK_MAX_OBJECTS)
        return fail(err,
                    "%s: %d objects after %d of other images: a bank holds at most %d an image and %d in all",
                    image, o->n, b->n_objects, BANK_MAX_OBJECTS, BANK_MAX_ALL_OBJECTS);
    size_t n_cells = (size_t)o->grid_h * (size_t)o->grid_w, C = (size_t)o->channels, n = (size_t)o->n;
    char *name = strdup(image);
    uint16_t *features = buffer_grow(&b->features, n_cells * C * sizeof *features);
    uint8_t *coverage = buffer_grow(&b->coverage, n * n_cells);
    if (!name || !features || !coverage || append(&b->names, &name, sizeof name)) {
        free(name);
        return fail_memory(err, "the bank's images", b->features.used);
    }
    for (size_t i = 0; i < n_cells * C; i++)
        features[i] = to_f16(scene->features[i]);
    for (size_t i = 0; i < n * n_cells; i++)
        coverage[i] = (uint8_t)lrintf(o->coverage[i] * 255);
    if (append_unit(&b->mean_patch, scene->mean_patch, o->channels) ||
        append_unit(&b->cls, scene->cls, scene->cls_dim) ||
        append(&b->first, &b->n_objects, sizeof b->n_objects) ||
        append(&b->pooled, o->pooled, n * C * sizeof(float)) ||
        append(&b->centroids, o->centroids, n * 2 * sizeof(float)) ||
        append(&b->areas, o->areas, n * sizeof(float)))
        return fail_memory(err, "the bank's images", b->features.used);
    b->n_objects += o->n;
    b->n_images++;
    return 0;
}

static void *take(Bank *bank, Buffer *b)
{
    void *bytes = b->bytes;
    bank->owned[bank->n_owned++] = bytes;
    *b = (Buffer){0};
    return bytes;
}

int bank_builder_finish(BankBuilder *b, Bank *bank, Error *err)
{
    *bank = (Bank){0};
    if (b->n_images == 0) {
        bank_builder_free(b);
        return fail(err, "a bank needs at least one normal image");
    }
    if (append(&b->first, &b->n_objects, sizeof b->n_objects)) {
        bank_builder_free(b);
        return fail_memory(err, "the bank's images", sizeof(int));
    }
    bank->n_images = b->n_images, bank->grid_h = b->grid_h, bank->grid_w = b->grid_w;
    bank->channels = b->channels, bank->cls_dim = b->cls_dim;
    bank->features = take(bank, &b->features);
    bank->mean_patch = take(bank, &b->mean_patch);
    bank->cls = take(bank, &b->cls);
    bank->first = take(bank, &b->first);
    bank->coverage = take(bank, &b->coverage);
    bank->pooled = take(bank, &b->pooled);
    bank->centroids = take(bank, &b->centroids);
    bank->areas = take(bank, &b->areas);
    bank->names = (char **)(void *)b->names.bytes;
    b->names = (Buffer){0};
    bank_builder_free(b);
    return 0;
}

void bank_uncalibrate(Bank *bank)
{
    dcga_free(&bank->dcga);
    free(bank->owned_descriptors), free(bank->channel_std), free(bank->units), free(bank->loo_index);
    free(bank->loo_structural), free(bank->loo_logical), free(bank->loo_score), free(bank->loo_sorted);
    free(bank->loo_extra), free(bank->loo_missing);
    bank->loo_extra = bank->loo_missing = NULL;
    bank->descriptors = bank->owned_descriptors = bank->channel_std = bank->units = NULL;
    bank->loo_structural = bank->loo_logical = bank->loo_score = bank->loo_sorted = NULL;
    bank->loo_index = NULL;
    bank->n_loo = 0;
}

void bank_free(Bank *bank)
{
    bank_uncalibrate(bank);
    if (bank->names && (bank->n_owned || bank->file)) {
        for (int i = 0; i < bank->n_images; i++)
            free(bank->names[i]);
        free(bank->names);
    }
    for (int i = 0; i < bank->n_owned; i++)
        free(bank->owned[i]);
    st_close(bank->file);
    *bank = (Bank){0};
}

/* ================================================================================================
 * Looking
 * ============================================================================================== */

int bank_object_count(const Bank *bank, int image)
{
    return bank->first[image + 1] - bank->first[image];
}

Objects bank_objects(const Bank *bank, int image, float *coverage)
{
    const size_t n_cells = bank_cells(bank), C = (size_t)bank->channels, first = (size_t)bank->first[image];
    Objects o = {.n = bank_object_count(bank, image),
                 .grid_h = bank->grid_h,
                 .grid_w = bank->grid_w,
                 .channels = bank->channels,
                 .features16 = bank->features + (size_t)image * n_cells * C,
                 .coverage = coverage,
                 .pooled = bank->pooled + first * C,
                 .centroids = bank->centroids + 2 * first,
                 .areas = bank->areas + first,
                 .descriptors = bank->descriptors ? bank->descriptors + first * C : NULL,
                 .units = bank->units ? bank->units + first : NULL};
    for (size_t i = 0; coverage && i < (size_t)o.n * n_cells; i++)
        coverage[i] = (float)bank->coverage[first * n_cells + i] * (1.0f / 255);
    return o;
}

size_t bank_cells(const Bank *bank)
{
    return (size_t)bank->grid_h * (size_t)bank->grid_w;
}

void bank_features(const Bank *bank, int image, float *features)
{
    size_t C = (size_t)bank->channels, n = bank_cells(bank) * C;
    f16_to_f32_row(features, bank->features + (size_t)image * n, n);
}

/* scores [n_images], larger is nearer, a query that is not a number is infinitely far. Of the file only what
 * `by` compares is read: 1.5 KB an image, or, for L2, all features. */
static void score_images(float *scores, const Bank *bank, Retrieval by, const float *mean, const float *cls,
                         const float *features)
{
#pragma omp parallel for if (by == RETRIEVAL_L2)
    for (int i = 0; i < bank->n_images; i++) {
        const size_t at = (size_t)i, n = bank_cells(bank) * (size_t)bank->channels;
        float score =
            by == RETRIEVAL_MEAN
                ? retrieval_cosine(mean, bank->mean_patch + at * (size_t)bank->channels, bank->channels)
            : by == RETRIEVAL_CLS
                ? retrieval_cosine(cls, bank->cls + at * (size_t)bank->cls_dim, bank->cls_dim)
                : retrieval_l2(features, bank->features + at * n, n);
        scores[i] = isnan(score) ? -INFINITY : score;
    }
}

/* Is image a a better answer than image b? Ties go to the lower index. */
static int nearer(const float *scores, int a, int b)
{
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
}

/* found[n] is a heap, the farthest image on top: none is nearer than its two children 2i+1 and 2i+2, except
 * perhaps found[at], which sinks to where that is true again. */
static void sink(int *found, int at, int n, const float *scores)
{
    for (int child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && nearer(scores, found[child], found[child + 1]))
            child++;
        if (!nearer(scores, found[at], found[child]))
            return;
        int moved = found[at];
        found[at] = found[child], found[child] = moved;
    }
}

int bank_same_image(const Bank *b, int i, int j)
{
    const size_t C = (size_t)b->channels, one = bank_cells(b) * C;
    return i == j ||
           (memcmp(b->mean_patch + (size_t)i * C, b->mean_patch + (size_t)j * C, C * sizeof(float)) == 0 &&
            memcmp(b->features + (size_t)i * one, b->features + (size_t)j * one, one * sizeof *b->features) ==
                0);
}

/* May the image be a reference when `exclude` is left out? Not a copy of it either. */
static int may_be_found(const Bank *bank, int image, int exclude)
{
    return exclude < 0 || !bank_same_image(bank, image, exclude);
}

int bank_retrieve(const Bank *bank, Retrieval by, const float *mean, const float *cls, const float *features,
                  int k, int exclude, int *found, Error *err)
{
    float *scores = aligned_array((size_t)bank->n_images, sizeof *scores);
    if (!scores)
        return fail_memory(err, "retrieval", (unsigned long long)bank->n_images * sizeof *scores);
    score_images(scores, bank, by, mean, cls, features);
    int n = 0, image = 0;
    for (; image < bank->n_images && n < k; image++)
        if (may_be_found(bank, image, exclude))
            found[n++] = image;
    for (int at = n / 2 - 1; at >= 0; at--)
        sink(found, at, n, scores);
    for (; n > 0 && image < bank->n_images; image++)
        if (nearer(scores, image, found[0]) && may_be_found(bank, image, exclude)) {
            found[0] = image;
            sink(found, 0, n, scores);
        }
    for (int last = n - 1; last > 0; last--) { /* the farthest goes to the end, and so on */
        int farthest = found[0];
        found[0] = found[last], found[last] = farthest;
        sink(found, 0, last, scores);
    }
    free(scores);
    return n;
}

/* ================================================================================================
 * Calibration
 * ============================================================================================== */

/* Are there two images that are not copies of each other? */
static int varies(const Bank *b)
{
    int i = 1;
    while (i < b->n_images && bank_same_image(b, 0, i))
        i++;
    return i < b->n_images;
}

int bank_begin_calibration(Bank *b, Error *err)
{
    bank_uncalibrate(b);
    size_t N = (size_t)b->n_images, O = (size_t)b->first[N], C = (size_t)b->channels;
    b->n_loo = !varies(b) ? 0 : b->n_images < b->options.loo_images ? b->n_images : b->options.loo_images;
    size_t L = (size_t)b->n_loo + 1;
    b->descriptors = b->owned_descriptors = aligned_array(O * C + 1, sizeof(float));
    b->channel_std = aligned_array(C, sizeof(float));
    b->units = aligned_array(O + 1, sizeof(float));
    b->loo_index = aligned_array(L, sizeof(int));
    b->loo_structural = aligned_array(L, sizeof(float));
    b->loo_logical = aligned_array(L, sizeof(float));
    b->loo_score = aligned_array(L, sizeof(float));
    b->loo_sorted = aligned_array(L, sizeof(float));
    b->loo_extra = aligned_array(L, sizeof(float));
    b->loo_missing = aligned_array(L, sizeof(float));
    if (!b->descriptors || !b->channel_std || !b->units || !b->loo_index || !b->loo_structural ||
        !b->loo_logical || !b->loo_score || !b->loo_sorted || !b->loo_extra || !b->loo_missing)
        return fail_memory(err, "the bank's calibration", O * C * 4);
    for (size_t i = 0; i < O; i++)
        b->units[i] = 1;
    for (int i = 0; i < b->n_loo; i++)
        b->loo_index[i] = (int)((int64_t)i * b->n_images / b->n_loo);
    return 0;
}

/* The quantile of n unsorted values; sorted [n] is left in order. */
static float quantile_of(float *sorted, const float *values, int n, double q)
{
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_floats);
    return quantile_sorted(sorted, (size_t)n, q);
}

void bank_thresholds(Bank *b)
{
    b->flag_extra = b->flag_missing = 0;
    b->threshold = NAN;
    if (b->n_loo == 0)
        return;
    b->flag_extra = quantile_of(b->loo_sorted, b->loo_extra, b->n_loo, b->options.flag_quantile);
    b->flag_missing = quantile_of(b->loo_sorted, b->loo_missing, b->n_loo, b->options.flag_quantile);
    b->threshold = quantile_of(b->loo_sorted, b->loo_score, b->n_loo, b->options.threshold_quantile);
}

/* ================================================================================================
 * The file
 * ============================================================================================== */

static int add_metadata(StWriter *w, const Bank *bank, Error *err)
{
    char key[96], value[64];
    const WeightsId *ids[] = {&bank->vit, &bank->sam, &bank->featup, &bank->dcga_weights};
    const char *roles[] = {"vit", "sam", "featup", "dcga"};
    if (st_writer_meta(w, "samlad.kind", "bank", err) ||
        st_writer_meta(w, "samlad.bank_version", BANK_VERSION, err))
        return -1;
    for (int i = 0; i < 4; i++) {
        if (!ids[i]->name[0])
            continue;
        snprintf(key, sizeof key, "weights.%s.name", roles[i]);
        if (st_writer_meta(w, key, ids[i]->name, err))
            return -1;
        snprintf(key, sizeof key, "weights.%s.sha256", roles[i]);
        if (st_writer_meta(w, key, ids[i]->sha256, err))
            return -1;
    }
    for (int i = 0; i < option_count; i++) {
        snprintf(key, sizeof key, "option.%s", option_table[i].name);
        option_text(&bank->options, &option_table[i], value, sizeof value);
        if (st_writer_meta(w, key, value, err))
            return -1;
    }
    const struct {
        const char *name;
        float value;
    } numbers[] = {{"calibration.alpha", bank->alpha},
                   {"calibration.structural.median", bank->structural.median},
                   {"calibration.structural.q95", bank->structural.q95},
                   {"calibration.structural.delta", bank->structural.delta},
                   {"calibration.logical.median", bank->logical.median},
                   {"calibration.logical.q95", bank->logical.q95},
                   {"calibration.logical.delta", bank->logical.delta}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        number_write(value, sizeof value, 9, (double)numbers[i].value);
        if (st_writer_meta(w, numbers[i].name, value, err))
            return -1;
    }
    for (int i = 0; i < bank->n_images; i++) {
        snprintf(key, sizeof key, "image.%d", i);
        if (st_writer_meta(w, key, bank->names[i], err))
            return -1;
    }
    return 0;
}

typedef struct Entry {
    const char *name;
    StDtype dtype;
    int n_dims;
    int64_t shape[4];
    const void *data;
} Entry;

int bank_save(const Bank *bank, const char *path, Error *err)
{
    int64_t N = bank->n_images, h = bank->grid_h, w = bank->grid_w, C = bank->channels, O = bank->first[N],
            L = bank->n_loo;
    const Entry entries[] = {
        {"features", ST_F16, 4, {N, h, w, C}, bank->features},
        {"mean_patch", ST_F32, 2, {N, C}, bank->mean_patch},
        {"cls", ST_F32, 2, {N, bank->cls_dim}, bank->cls},
        {"objects.first", ST_I32, 1, {N + 1}, bank->first},
        {"objects.weights", ST_U8, 3, {O, h, w}, bank->coverage},
        {"objects.pooled", ST_F32, 2, {O, C}, bank->pooled},
        {"objects.centroids", ST_F32, 2, {O, 2}, bank->centroids},
        {"objects.areas", ST_F32, 1, {O}, bank->areas},
        {"objects.scale", ST_F32, 1, {O}, bank->units},
        {"dcga.mean", ST_F32, 1, {C}, bank->dcga.mean},
        {"dcga.std", ST_F32, 1, {C}, bank->dcga.std},
        {"dcga.filter", ST_F32, 2, {C, C}, bank->dcga.filter},
        {"dcga.descriptors", ST_F32, 2, {O, C}, bank->descriptors},
        {"channel_std", ST_F32, 1, {C}, bank->channel_std},
        {"loo.index", ST_I32, 1, {L}, bank->loo_index},
        {"loo.structural", ST_F32, 1, {L}, bank->loo_structural},
        {"loo.logical", ST_F32, 1, {L}, bank->loo_logical},
        {"loo.score", ST_F32, 1, {L}, bank->loo_score},
        {"loo.extra", ST_F32, 1, {L}, bank->loo_extra},
        {"loo.missing", ST_F32, 1, {L}, bank->loo_missing},
    };
    StWriter *writer = st_writer_new();
    if (!writer)
        return fail_memory(err, "writing the bank", sizeof(void *));
    int status = add_metadata(writer, bank, err);
    for (size_t i = 0; !status && i < sizeof entries / sizeof *entries; i++)
        if (entries[i].data)
            status = st_writer_add(writer, entries[i].name, entries[i].dtype, entries[i].n_dims,
                                   entries[i].shape, entries[i].data, err);
    if (!status)
        status = st_writer_save(writer, path, err);
    st_writer_free(writer);
    return status;
}

/* The tensor's data when dtype and shape are as expected (-1: any, up to 2^31-1) and its floats are numbers.
 * NULL on failure. */
static const void *expect(const Safetensors *st, const char *name, StDtype dtype, int n_dims,
                          const int64_t *shape, Error *err)
{
    const StTensor *t = st_find(st, name);
    if (!t) {
        fail(err, "%s: tensor %s is missing: not a whole bank", st_path(st), name);
        return NULL;
    }
    int ok = t->dtype == dtype && t->n_dims == n_dims && (uintptr_t)t->data % st_dtype_size(dtype) == 0;
    for (int d = 0; ok && d < n_dims; d++)
        ok = (shape[d] < 0 || t->shape[d] == shape[d]) && t->shape[d] <= INT32_MAX;
    if (!ok) {
        fail(err, "%s: tensor %s has another type, shape or alignment than a bank's", st_path(st), name);
        return NULL;
    }
    if (dtype == ST_F32 && !all_finite(t->data, t->n_elements)) {
        fail(err, "%s: tensor %s holds a value that is not a finite number", st_path(st), name);
        return NULL;
    }
    return t->data;
}

/* A malloc'd copy of an optional or required float/int tensor of n 4-byte elements. */
static void *copy_of(const Safetensors *st, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                     Error *err)
{
    const void *data = expect(st, name, dtype, n_dims, shape, err);
    if (!data)
        return NULL;
    size_t n = st_find(st, name)->n_elements;
    void *copy = aligned_array(n + 1, 4);
    if (!copy)
        fail_memory(err, name, n * 4);
    else
        memcpy(copy, data, n * 4);
    return copy;
}

static int load_images(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    const int64_t any[4] = {-1, -1, -1, -1};
    b->features = expect(st, "features", ST_F16, 4, any, err);
    if (!b->features)
        return -1;
    const int64_t *shape = st_find(st, "features")->shape;
    int64_t N = shape[0], h = shape[1], w = shape[2], C = shape[3];
    if (N < 1 || h < 1 || w < 1 || C < 1 || h > 1024 || w > 1024 || C > 65536 || N > (1 << 24))
        return fail(err, "%s: tensor features has shape [%lld][%lld][%lld][%lld]: not a bank's", st_path(st),
                    (long long)N, (long long)h, (long long)w, (long long)C);
    b->n_images = (int)N, b->grid_h = (int)h, b->grid_w = (int)w, b->channels = (int)C;
    b->first = expect(st, "objects.first", ST_I32, 1, (int64_t[]){N + 1}, err);
    b->mean_patch = b->first ? expect(st, "mean_patch", ST_F32, 2, (int64_t[]){N, C}, err) : NULL;
    b->cls = b->mean_patch ? expect(st, "cls", ST_F32, 2, (int64_t[]){N, -1}, err) : NULL;
    if (!b->cls)
        return -1;
    b->cls_dim = (int)st_find(st, "cls")->shape[1];
    for (int64_t i = 0; i < N; i++)
        if (b->first[0] != 0 || b->first[i + 1] < b->first[i] ||
            b->first[i + 1] - b->first[i] > BANK_MAX_OBJECTS || b->first[i + 1] > BANK_MAX_ALL_OBJECTS)
            return fail(err, "%s: objects.first does not rise from 0 by 0 to %d at image %lld", st_path(st),
                        BANK_MAX_OBJECTS, (long long)i);
    int64_t O = b->first[N];
    b->coverage = expect(st, "objects.weights", ST_U8, 3, (int64_t[]){O, h, w}, err);
    b->pooled = b->coverage ? expect(st, "objects.pooled", ST_F32, 2, (int64_t[]){O, C}, err) : NULL;
    b->centroids = b->pooled ? expect(st, "objects.centroids", ST_F32, 2, (int64_t[]){O, 2}, err) : NULL;
    b->areas = b->centroids ? expect(st, "objects.areas", ST_F32, 1, (int64_t[]){O}, err) : NULL;
    return b->areas ? 0 : -1;
}

/* What features and scores are divided by. */
static int check_positive(const Safetensors *st, const char *name, const float *values, size_t n, Error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!(values[i] >= FLT_MIN) || isinf(values[i]))
            return fail(err, "%s: tensor %s holds %g at %zu, expected a number above 0", st_path(st), name,
                        (double)values[i], i);
    return 0;
}

/* What z is made of: see Spread. */
static int check_spread(const Safetensors *st, const char *name, const Spread *spread, Error *err)
{
    return spread->delta >= 0 && spread->q95 >= spread->median
               ? 0
               : fail(err,
                      "%s: metadata calibration.%s: median %g, q95 %g, delta %g: expected q95 >= median, "
                      "delta >= 0",
                      st_path(st), name, (double)spread->median, (double)spread->q95, (double)spread->delta);
}

static int load_calibration(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    int64_t C = b->channels, O = b->first[b->n_images];
    double v[7];
    const char *keys[] = {"calibration.alpha",          "calibration.structural.median",
                          "calibration.structural.q95", "calibration.structural.delta",
                          "calibration.logical.median", "calibration.logical.q95",
                          "calibration.logical.delta"};
    for (int i = 0; i < 7; i++)
        if (st_meta_float(st, keys[i], -1e30, 1e30, &v[i], err))
            return -1;
    b->alpha = (float)v[0];
    b->structural = (Spread){(float)v[1], (float)v[2], (float)v[3]};
    b->logical = (Spread){(float)v[4], (float)v[5], (float)v[6]};
    b->dcga.options = b->options.dcga;
    b->dcga.channels = b->channels;
    const StTensor *loo = st_find(st, "loo.index");
    int64_t L = loo && loo->n_dims == 1 ? loo->shape[0] : -1;
    if (!(b->dcga.mean = copy_of(st, "dcga.mean", ST_F32, 1, &C, err)) ||
        !(b->dcga.std = copy_of(st, "dcga.std", ST_F32, 1, &C, err)) ||
        (st_find(st, "dcga.filter") &&
         !(b->dcga.filter = copy_of(st, "dcga.filter", ST_F32, 2, (int64_t[]){C, C}, err))) ||
        !(b->descriptors = expect(st, "dcga.descriptors", ST_F32, 2, (int64_t[]){O, C}, err)) ||
        !(b->channel_std = copy_of(st, "channel_std", ST_F32, 1, &C, err)) ||
        !(b->units = copy_of(st, "objects.scale", ST_F32, 1, &O, err)) ||
        !(b->loo_index = copy_of(st, "loo.index", ST_I32, 1, &L, err)) ||
        !(b->loo_structural = copy_of(st, "loo.structural", ST_F32, 1, &L, err)) ||
        !(b->loo_logical = copy_of(st, "loo.logical", ST_F32, 1, &L, err)) ||
        !(b->loo_score = copy_of(st, "loo.score", ST_F32, 1, &L, err)) ||
        !(b->loo_extra = copy_of(st, "loo.extra", ST_F32, 1, &L, err)) ||
        !(b->loo_missing = copy_of(st, "loo.missing", ST_F32, 1, &L, err)))
        return -1;
    b->loo_sorted = aligned_array((size_t)L + 1, sizeof(float));
    if (!b->loo_sorted)
        return fail_memory(err, "the leave-one-out scores", (unsigned long long)L * sizeof(float));
    if (check_positive(st, "dcga.std", b->dcga.std, (size_t)C, err) ||
        check_positive(st, "channel_std", b->channel_std, (size_t)C, err) ||
        check_positive(st, "objects.scale", b->units, (size_t)O, err) ||
        check_spread(st, "structural", &b->structural, err) || check_spread(st, "logical", &b->logical, err))
        return -1;
    b->n_loo = (int)L;
    bank_thresholds(b);
    return 0;
}

static void load_id(const Safetensors *st, const char *role, WeightsId *id)
{
    char key[64];
    snprintf(key, sizeof key, "weights.%s.name", role);
    const char *name = st_meta(st, key);
    snprintf(key, sizeof key, "weights.%s.sha256", role);
    const char *sha = st_meta(st, key);
    snprintf(id->name, sizeof id->name, "%s", name ? name : "");
    snprintf(id->sha256, sizeof id->sha256, "%s", sha ? sha : "");
}

/* "image.17" -> 17, or -1: not the name of an image of the bank. */
static int image_number(const char *key, int n_images)
{
    char *end;
    if (strncmp(key, "image.", 6) != 0 || key[6] < '0' || key[6] > '9')
        return -1;
    long number = strtol(key + 6, &end, 10);
    return *end || number >= n_images ? -1 : (int)number;
}

/* One pass over the metadata: a search for each name would be a pass for each image. */
static int load_names(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    b->names = calloc((size_t)b->n_images, sizeof *b->names);
    if (!b->names)
        return fail_memory(err, "the bank's names", (unsigned long long)b->n_images * sizeof *b->names);
    for (size_t i = 0; i < st_meta_count(st); i++) {
        const char *key, *value;
        st_meta_at(st, i, &key, &value);
        int image = image_number(key, b->n_images);
        if (image >= 0 && !b->names[image] && !(b->names[image] = strdup(value)))
            return fail_memory(err, "the bank's names", strlen(value));
    }
    for (int i = 0; i < b->n_images; i++)
        if (!b->names[i] && !(b->names[i] = strdup("?")))
            return fail_memory(err, "the bank's names", 2);
    return 0;
}

static int load_settings(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    options_default(&b->options);
    /* A bank without these two settings is older than they are: it was calibrated with both off. */
    b->options.amm.claims = b->options.omm.count = 0;
    for (size_t i = 0; i < st_meta_count(st); i++) {
        const char *key, *value;
        char where[ERROR_SIZE / 2];
        st_meta_at(st, i, &key, &value);
        if (strncmp(key, "option.", 7) != 0)
            continue;
        const OptionSpec *spec = option_find(key + 7);
        if (!spec)
            return fail(err, "%s: setting %s is unknown: the bank is of another version of samlad",
                        st_path(st), key);
        snprintf(where, sizeof where, "%s: setting %s", st_path(st), key);
        if (option_set(&b->options, spec, value, where, err))
            return -1;
    }
    load_id(st, "vit", &b->vit), load_id(st, "sam", &b->sam), load_id(st, "featup", &b->featup),
        load_id(st, "dcga", &b->dcga_weights);
    return load_names(b, err);
}

int bank_load(Bank *bank, const char *path, Error *err)
{
    *bank = (Bank){0};
    bank->file = st_open(path, err);
    if (!bank->file)
        return -1;
    const char *kind = st_meta(bank->file, "samlad.kind"),
               *version = st_meta(bank->file, "samlad.bank_version");
    int status = !kind || strcmp(kind, "bank") != 0
                     ? fail(err, "%s: not a samlad bank (metadata samlad.kind is not \"bank\")", path)
                 : !version || strcmp(version, BANK_VERSION) != 0
                     ? fail(err, "%s: a bank of version %.20s, this program knows version %s", path,
                            version ? version : "(none)", BANK_VERSION)
                     : load_images(bank, err);
    if (!status)
        status = load_settings(bank, err);
    if (!status)
        status = load_calibration(bank, err);
    if (status)
        bank_free(bank);
    return status;
}
