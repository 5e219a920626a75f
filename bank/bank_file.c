/* bank_file.c - saving and mapping a bank. bank.h lists the file's contents. */
#include "bank/bank.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/number.h"
#include "tensor.h"

#define BANK_VERSION "2" /* of the file's layout. */

/* Metadata keys that each hold one float of the bank. */
static const struct {
    const char *key;
    size_t offset;
} NUMBERS[] = {{"calibration.alpha", offsetof(Bank, alpha)},
               {"calibration.structural.median", offsetof(Bank, structural.median)},
               {"calibration.structural.q95", offsetof(Bank, structural.q95)},
               {"calibration.structural.delta", offsetof(Bank, structural.delta)},
               {"calibration.nearest_unit", offsetof(Bank, nearest_unit)},
               {"calibration.raster_unit", offsetof(Bank, raster_unit)}};

/* Metadata "weights.ROLE.name" and "weights.ROLE.sha256". */
static const struct {
    const char *role;
    size_t offset;
} WEIGHTS[] = {{"vit", offsetof(Bank, vit)},
               {"sam", offsetof(Bank, sam)},
               {"featup", offsetof(Bank, featup)},
               {"dcga", offsetof(Bank, dcga_weights)}};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ================================================================================================
 * Saving
 * ============================================================================================== */

static int add_weights(StWriter *w, const Bank *bank, Error *err)
{
    char key[96];
    for (size_t i = 0; i < COUNT(WEIGHTS); i++) {
        const WeightsId *id = (const void *)((const char *)bank + WEIGHTS[i].offset);
        if (!id->name[0])
            continue;
        snprintf(key, sizeof key, "weights.%s.name", WEIGHTS[i].role);
        if (st_writer_meta(w, key, id->name, err))
            return -1;
        snprintf(key, sizeof key, "weights.%s.sha256", WEIGHTS[i].role);
        if (st_writer_meta(w, key, id->sha256, err))
            return -1;
    }
    return 0;
}

static int add_options(StWriter *w, const Bank *bank, Error *err)
{
    char key[96], value[64];
    for (int i = 0; i < option_count; i++) {
        snprintf(key, sizeof key, "option.%s", option_table[i].name);
        option_text(&bank->options, &option_table[i], value, sizeof value);
        if (st_writer_meta(w, key, value, err))
            return -1;
    }
    return 0;
}

static int add_numbers(StWriter *w, const Bank *bank, Error *err)
{
    char value[64];
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        const float *number = (const void *)((const char *)bank + NUMBERS[i].offset);
        number_write(value, sizeof value, 9, (double)*number);
        if (st_writer_meta(w, NUMBERS[i].key, value, err))
            return -1;
    }
    return 0;
}

static int add_names(StWriter *w, const Bank *bank, Error *err)
{
    char key[96];
    for (int i = 0; i < bank->n_images; i++) {
        snprintf(key, sizeof key, "image.%d", i);
        if (st_writer_meta(w, key, bank->names[i], err))
            return -1;
    }
    return bank->unreadable ? st_writer_meta(w, "unreadable", bank->unreadable, err) : 0;
}

static int add_metadata(StWriter *w, const Bank *bank, Error *err)
{
    return st_writer_meta(w, "samlad.kind", "bank", err) ||
                   st_writer_meta(w, "samlad.bank_version", BANK_VERSION, err) || add_weights(w, bank, err) ||
                   add_options(w, bank, err) || add_numbers(w, bank, err) || add_names(w, bank, err)
               ? -1
               : 0;
}

typedef struct Entry {
    const char *name;
    StDtype dtype;
    int n_dims;
    int64_t shape[4];
    const void *data; /* NULL: the tensor is left out of the file. */
} Entry;

static int add_tensors(StWriter *w, const Bank *bank, Error *err)
{
    int64_t N = bank->n_images, h = bank->grid_h, width = bank->grid_w, C = bank->channels,
            O = bank->first[N], L = bank->n_loo;
    const Raster *r = &bank->raster;
    const Entry entries[] = {
        {"features", ST_F16, 4, {N, h, width, C}, bank->features},
        {"mean_patch", ST_F32, 2, {N, C}, bank->mean_patch},
        {"cls", ST_F32, 2, {N, bank->cls_dim}, bank->cls},
        {"objects.first", ST_I32, 1, {N + 1}, bank->first},
        {"objects.weights", ST_U8, 3, {O, h, width}, bank->coverage},
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
        {"loo.raster", ST_F32, 1, {L}, r->dim ? bank->loo_raster : NULL},
        {"raster.mean", ST_F32, 1, {C}, r->mean},
        {"raster.basis", ST_F32, 2, {r->kept, C}, r->basis},
        {"raster.within", ST_F32, 2, {r->dim, r->dim}, r->within},
        {"raster.centre", ST_F32, 1, {r->dim}, r->centre},
        {"raster.all", ST_F32, 2, {r->dim, r->dim}, r->all},
        {"raster.vectors", ST_F32, 2, {O, r->dim}, r->dim ? bank->rasters : NULL},
        {"raster.scores", ST_F32, 1, {O}, r->dim ? bank->raster_scores : NULL},
        {"loo.extra", ST_F32, 1, {L}, bank->loo_extra},
        {"loo.missing", ST_F32, 1, {L}, bank->loo_missing},
    };
    for (size_t i = 0; i < COUNT(entries); i++) {
        const Entry *e = &entries[i];
        if (e->data && st_writer_add(w, e->name, e->dtype, e->n_dims, e->shape, e->data, err))
            return -1;
    }
    return 0;
}

int bank_save(const Bank *bank, const char *path, Error *err)
{
    StWriter *w = st_writer_new();
    if (!w)
        return fail_memory(err, "writing the bank", sizeof(void *));
    int status = add_metadata(w, bank, err) || add_tensors(w, bank, err) || st_writer_save(w, path, err);
    st_writer_free(w);
    return status ? -1 : 0;
}

/* ================================================================================================
 * Loading: the images
 * ============================================================================================== */

/* The tensor's data, if it has this dtype and shape (-1: any, up to 2^31-1) and its floats are finite. NULL
 * on failure. */
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

static int load_features(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    b->features = expect(st, "features", ST_F16, 4, (int64_t[]){-1, -1, -1, -1}, err);
    if (!b->features)
        return -1;
    const int64_t *shape = st_find(st, "features")->shape;
    const int64_t N = shape[0], h = shape[1], w = shape[2], C = shape[3];
    if (N < 1 || h < 1 || w < 1 || C < 1 || h > 1024 || w > 1024 || C > 65536 || N > (1 << 24))
        return fail(err, "%s: tensor features has shape [%lld][%lld][%lld][%lld]: not a bank's", st_path(st),
                    (long long)N, (long long)h, (long long)w, (long long)C);
    b->n_images = (int)N, b->grid_h = (int)h, b->grid_w = (int)w, b->channels = (int)C;
    b->mean_patch = expect(st, "mean_patch", ST_F32, 2, (int64_t[]){N, C}, err);
    b->cls = b->mean_patch ? expect(st, "cls", ST_F32, 2, (int64_t[]){N, -1}, err) : NULL;
    if (!b->cls)
        return -1;
    b->cls_dim = (int)st_find(st, "cls")->shape[1];
    return 0;
}

static int load_objects(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    const int64_t N = b->n_images, h = b->grid_h, w = b->grid_w, C = b->channels;
    const int *first = b->first = expect(st, "objects.first", ST_I32, 1, (int64_t[]){N + 1}, err);
    if (!first)
        return -1;
    for (int64_t i = 0; i < N; i++)
        if (first[0] != 0 || first[i + 1] < first[i] || first[i + 1] - first[i] > SCENE_MAX_OBJECTS ||
            first[i + 1] > BANK_MAX_OBJECTS)
            return fail(err, "%s: objects.first does not rise from 0 by 0 to %d at image %lld", st_path(st),
                        SCENE_MAX_OBJECTS, (long long)i);
    const int64_t O = first[N];
    return (b->coverage = expect(st, "objects.weights", ST_U8, 3, (int64_t[]){O, h, w}, err)) &&
                   (b->pooled = expect(st, "objects.pooled", ST_F32, 2, (int64_t[]){O, C}, err)) &&
                   (b->centroids = expect(st, "objects.centroids", ST_F32, 2, (int64_t[]){O, 2}, err)) &&
                   (b->areas = expect(st, "objects.areas", ST_F32, 1, &O, err))
               ? 0
               : -1;
}

/* ================================================================================================
 * Loading: the settings
 * ============================================================================================== */

static void load_weights(Bank *b)
{
    char key[64];
    for (size_t i = 0; i < COUNT(WEIGHTS); i++) {
        WeightsId *id = (void *)((char *)b + WEIGHTS[i].offset);
        snprintf(key, sizeof key, "weights.%s.name", WEIGHTS[i].role);
        const char *name = st_meta(b->file, key);
        snprintf(key, sizeof key, "weights.%s.sha256", WEIGHTS[i].role);
        const char *sha = st_meta(b->file, key);
        snprintf(id->name, sizeof id->name, "%s", name ? name : "");
        snprintf(id->sha256, sizeof id->sha256, "%s", sha ? sha : "");
    }
}

/* "image.17" -> 17; -1: not the key of an image of this bank. */
static int image_number(const char *key, int n_images)
{
    char *end;
    if (strncmp(key, "image.", 6) != 0 || key[6] < '0' || key[6] > '9')
        return -1;
    long number = strtol(key + 6, &end, 10);
    return *end || number >= n_images ? -1 : (int)number;
}

/* One pass over the metadata. A search for each name would be a pass for each image. */
static int load_names(Bank *b, Error *err)
{
    b->names = calloc((size_t)b->n_images, sizeof *b->names);
    if (!b->names)
        return fail_memory(err, "the bank's names", (size_t)b->n_images * sizeof *b->names);
    for (size_t i = 0; i < st_meta_count(b->file); i++) {
        const char *key, *value;
        st_meta_at(b->file, i, &key, &value);
        int image = image_number(key, b->n_images);
        if (image >= 0 && !b->names[image] && !(b->names[image] = strdup(value)))
            return fail_memory(err, "the bank's names", strlen(value));
    }
    for (int i = 0; i < b->n_images; i++)
        if (!b->names[i] && !(b->names[i] = strdup("?")))
            return fail_memory(err, "the bank's names", 2);
    const char *unreadable = st_meta(b->file, "unreadable");
    if (unreadable && !(b->unreadable = strdup(unreadable)))
        return fail_memory(err, "the bank's names", strlen(unreadable));
    return 0;
}

/* A bank without one of the options is of an older version: the default need not be what it was made with. */
static int load_options(Bank *b, Error *err)
{
    unsigned char found[MAX_OPTIONS] = {0};
    options_default(&b->options);
    for (size_t i = 0; i < st_meta_count(b->file); i++) {
        const char *key, *value;
        char where[ERROR_SIZE / 2];
        st_meta_at(b->file, i, &key, &value);
        if (strncmp(key, "option.", 7) != 0)
            continue;
        const OptionSpec *spec = option_find(key + 7);
        if (!spec)
            return fail(err, "%s: setting %s is unknown: the bank is of another version of samlad",
                        st_path(b->file), key);
        snprintf(where, sizeof where, "%s: setting %s", st_path(b->file), key);
        if (option_set(&b->options, spec, value, where, err))
            return -1;
        found[spec - option_table] = 1;
    }
    for (int i = 0; i < option_count; i++)
        if (!found[i])
            return fail(err, "%s: setting option.%s is missing: the bank is of another version of samlad",
                        st_path(b->file), option_table[i].name);
    return 0;
}

/* ================================================================================================
 * Loading: the calibration
 * ============================================================================================== */

static int load_numbers(Bank *b, Error *err)
{
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        double value;
        if (st_meta_float(b->file, NUMBERS[i].key, -1e30, 1e30, &value, err))
            return -1;
        float *number = (void *)((char *)b + NUMBERS[i].offset);
        *number = (float)value;
    }
    return 0;
}

/* Copy a float32 or int32 tensor, because another calibration replaces its values. */
static int copy_to(void *copy, const Safetensors *st, const char *name, StDtype dtype, int64_t n, Error *err)
{
    const void *data = expect(st, name, dtype, 1, &n, err);
    if (data)
        memcpy(copy, data, (size_t)n * 4);
    return data ? 0 : -1;
}

/* A copy of a statistic of dcga, which dcga frees. NULL on failure. */
static float *copy_of(const Safetensors *st, const char *name, int n_dims, const int64_t *shape, Error *err)
{
    const void *data = expect(st, name, ST_F32, n_dims, shape, err);
    if (!data)
        return NULL;
    const size_t n = st_find(st, name)->n_elements;
    float *copy = aligned_array(n, sizeof *copy);
    if (!copy)
        fail_memory(err, name, n * sizeof *copy);
    else
        memcpy(copy, data, n * sizeof *copy);
    return copy;
}

static int load_dcga(Bank *b, Error *err)
{
    const int64_t C = b->channels, O = b->first[b->n_images];
    b->dcga.options = b->options.dcga;
    b->dcga.channels = b->channels;
    if (!(b->dcga.mean = copy_of(b->file, "dcga.mean", 1, &C, err)) ||
        !(b->dcga.std = copy_of(b->file, "dcga.std", 1, &C, err)))
        return -1;
    if (st_find(b->file, "dcga.filter") &&
        !(b->dcga.filter = copy_of(b->file, "dcga.filter", 2, (int64_t[]){C, C}, err)))
        return -1;
    b->descriptors = expect(b->file, "dcga.descriptors", ST_F32, 2, (int64_t[]){O, C}, err);
    return b->descriptors ? 0 : -1;
}

/* The number of images that were left out in turn; -1 on failure. */
static int loo_count(const Safetensors *st, Error *err)
{
    const StTensor *t = st_find(st, "loo.index");
    return expect(st, "loo.index", ST_I32, 1, (int64_t[]){-1}, err) ? (int)t->shape[0] : -1;
}

/* Copy a float32 tensor of this shape. */
static int copy_shape(float *copy, const Safetensors *st, const char *name, int n_dims, const int64_t *shape,
                      Error *err)
{
    const void *data = expect(st, name, ST_F32, n_dims, shape, err);
    if (data)
        memcpy(copy, data, st_find(st, name)->n_bytes);
    return data ? 0 : -1;
}

/* The rasters' statistics and the values of the objects. The settings tell whether a bank has rasters. */
static int load_rasters(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    const Raster *r = &b->raster;
    const int64_t C = b->channels, O = b->first[b->n_images], D = r->dim, L = b->n_loo;
    if (D == 0)
        return 0;
    return copy_shape(r->mean, st, "raster.mean", 1, &C, err) ||
                   copy_shape(r->basis, st, "raster.basis", 2, (int64_t[]){r->kept, C}, err) ||
                   copy_shape(r->within, st, "raster.within", 2, (int64_t[]){D, D}, err) ||
                   copy_shape(r->centre, st, "raster.centre", 1, &D, err) ||
                   copy_shape(r->all, st, "raster.all", 2, (int64_t[]){D, D}, err) ||
                   copy_shape(b->rasters, st, "raster.vectors", 2, (int64_t[]){O, D}, err) ||
                   copy_shape(b->raster_scores, st, "raster.scores", 1, &O, err) ||
                   copy_shape(b->loo_raster, st, "loo.raster", 1, &L, err)
               ? -1
               : 0;
}

static int load_scores(Bank *b, Error *err)
{
    const Safetensors *st = b->file;
    const int64_t C = b->channels, O = b->first[b->n_images], L = loo_count(st, err);
    return L < 0 || bank_calibration_buffers(b, (int)L, err) || load_rasters(b, err) ||
                   copy_to(b->channel_std, st, "channel_std", ST_F32, C, err) ||
                   copy_to(b->units, st, "objects.scale", ST_F32, O, err) ||
                   copy_to(b->loo_index, st, "loo.index", ST_I32, L, err) ||
                   copy_to(b->loo_structural, st, "loo.structural", ST_F32, L, err) ||
                   copy_to(b->loo_logical, st, "loo.logical", ST_F32, L, err) ||
                   copy_to(b->loo_score, st, "loo.score", ST_F32, L, err) ||
                   copy_to(b->loo_extra, st, "loo.extra", ST_F32, L, err) ||
                   copy_to(b->loo_missing, st, "loo.missing", ST_F32, L, err)
               ? -1
               : 0;
}

/* Features and scores are divided by these values. */
static int check_positive(const Bank *b, const char *name, const float *values, int n, Error *err)
{
    for (int i = 0; i < n; i++)
        if (!(values[i] >= FLT_MIN) || isinf(values[i]))
            return fail(err, "%s: tensor %s holds %g at %d, expected a number above 0", st_path(b->file),
                        name, (double)values[i], i);
    return 0;
}

static int check_spread(const Bank *b, const char *name, const Spread *spread, Error *err)
{
    if (spread->delta >= 0 && spread->q95 >= spread->median)
        return 0;
    return fail(err,
                "%s: metadata calibration.%s: median %g, q95 %g, delta %g: expected q95 >= median, "
                "delta >= 0",
                st_path(b->file), name, (double)spread->median, (double)spread->q95, (double)spread->delta);
}

static int check_unit(const Bank *b, const char *name, float unit, Error *err)
{
    if (unit == 0 || unit >= FLT_MIN)
        return 0;
    return fail(err, "%s: metadata calibration.%s is %g, expected 0 or a number above 0", st_path(b->file),
                name, (double)unit);
}

static int load_calibration(Bank *b, Error *err)
{
    const int C = b->channels, O = b->first[b->n_images];
    if (load_numbers(b, err) || load_dcga(b, err) || load_scores(b, err))
        return -1;
    if (check_positive(b, "dcga.std", b->dcga.std, C, err) ||
        check_positive(b, "channel_std", b->channel_std, C, err) ||
        check_positive(b, "objects.scale", b->units, O, err) ||
        check_spread(b, "structural", &b->structural, err) ||
        check_unit(b, "nearest_unit", b->nearest_unit, err) ||
        check_unit(b, "raster_unit", b->raster_unit, err))
        return -1;
    bank_thresholds(b);
    return 0;
}

/* ================================================================================================
 * Loading
 * ============================================================================================== */

static int check_kind(const Safetensors *st, Error *err)
{
    const char *kind = st_meta(st, "samlad.kind"), *version = st_meta(st, "samlad.bank_version");
    if (!kind || strcmp(kind, "bank") != 0)
        return fail(err, "%s: not a samlad bank (metadata samlad.kind is not \"bank\")", st_path(st));
    if (!version || strcmp(version, BANK_VERSION) != 0)
        return fail(err, "%s: a bank of version %.20s, this program knows version %s: build it again",
                    st_path(st), version ? version : "(none)", BANK_VERSION);
    return 0;
}

int bank_load(Bank *bank, const char *path, Error *err)
{
    *bank = (Bank){.file = st_open(path, err)};
    if (!bank->file)
        return -1;
    if (check_kind(bank->file, err) || load_features(bank, err) || load_objects(bank, err) ||
        load_options(bank, err) || load_names(bank, err) || load_calibration(bank, err)) {
        bank_free(bank);
        return -1;
    }
    load_weights(bank);
    return 0;
}
