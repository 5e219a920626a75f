/* bank.c - a bank's images, the memory of its calibration, and freeing it. See bank.h. */
#include "bank/bank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * The images
 * ============================================================================================== */

size_t bank_cells(const Bank *bank)
{
    return (size_t)bank->grid_h * bank->grid_w;
}

int bank_object_count(const Bank *bank, int image)
{
    return bank->first[image + 1] - bank->first[image];
}

Objects bank_objects(const Bank *bank, int image, float *coverage)
{
    const size_t n_cells = bank_cells(bank), C = bank->channels, first = bank->first[image];
    const Objects o = {.n = bank_object_count(bank, image),
                       .grid_h = bank->grid_h,
                       .grid_w = bank->grid_w,
                       .channels = bank->channels,
                       .features16 = bank->features + image * n_cells * C,
                       .coverage = coverage,
                       .pooled = bank->pooled + first * C,
                       .centroids = bank->centroids + 2 * first,
                       .areas = bank->areas + first,
                       .descriptors = bank->descriptors ? bank->descriptors + first * C : NULL,
                       .units = bank->units ? bank->units + first : NULL};
    for (size_t i = 0; coverage && i < o.n * n_cells; i++)
        coverage[i] = (float)bank->coverage[first * n_cells + i] * (1.0f / 255);
    return o;
}

Objects *bank_all_objects(const Bank *bank, Error *err)
{
    Objects *images = aligned_array(bank->n_images, sizeof *images);
    if (!images)
        fail_memory(err, "the bank's objects", bank->n_images * sizeof *images);
    for (int i = 0; images && i < bank->n_images; i++)
        images[i] = bank_objects(bank, i, NULL);
    return images;
}

void bank_features(const Bank *bank, int image, float *features)
{
    const size_t n = bank_cells(bank) * bank->channels;
    f16_to_f32_row(features, bank->features + image * n, n);
}

int bank_with_features(Objects *view, const Bank *bank, int image, float *features, Error *err)
{
    bank_features(bank, image, features);
    view->features = features;
    return all_finite(features, bank_cells(bank) * bank->channels)
               ? 0
               : fail(err, "the bank's image %d (%s) has features that are not finite numbers", image,
                      bank->names[image]);
}

int bank_check_shape(const Bank *bank, const Scene *scene, Error *err)
{
    const Objects *o = &scene->objects;
    if (o->grid_h != bank->grid_h || o->grid_w != bank->grid_w || o->channels != bank->channels)
        return fail(err,
                    "the image's feature map is %dx%d with %d channels, the bank's are %dx%d with %d: "
                    "another aspect (see --resize)",
                    o->grid_w, o->grid_h, o->channels, bank->grid_w, bank->grid_h, bank->channels);
    if (scene->cls_dim != bank->cls_dim)
        return fail(err, "the image's class token has %d numbers, the bank's have %d", scene->cls_dim,
                    bank->cls_dim);
    return 0;
}

int bank_scene(Scene *scene, const Bank *bank, int image, Error *err)
{
    const size_t n_cells = bank_cells(bank), C = bank->channels, D = bank->cls_dim,
                 n = bank_object_count(bank, image);
    *scene = (Scene){.cls_dim = bank->cls_dim};
    float *coverage = aligned_array(n * n_cells, sizeof *coverage);
    scene->features = aligned_array(n_cells * C, sizeof(float));
    scene->mean_patch = aligned_array(C, sizeof(float));
    scene->cls = aligned_array(D, sizeof(float));
    if (!coverage || !scene->features || !scene->mean_patch || !scene->cls) {
        free(coverage);
        scene_free(scene);
        return fail_memory(err, "an image of the bank", n_cells * C * 4);
    }
    bank_features(bank, image, scene->features);
    memcpy(scene->mean_patch, bank->mean_patch + image * C, C * sizeof(float));
    memcpy(scene->cls, bank->cls + image * D, D * sizeof(float));
    scene->objects = bank_objects(bank, image, coverage);
    scene->objects.features = scene->features;
    const int status = objects_new(&scene->objects, coverage, err);
    free(coverage);
    if (status)
        scene_free(scene);
    return status;
}

int bank_same_image(const Bank *bank, int i, int j)
{
    const size_t C = bank->channels, n = bank_cells(bank) * C, a = i, b = j;
    const float *mean = bank->mean_patch;
    const uint16_t *features = bank->features;
    return a == b || (memcmp(mean + a * C, mean + b * C, C * sizeof *mean) == 0 &&
                      memcmp(features + a * n, features + b * n, n * sizeof *features) == 0);
}

/* ================================================================================================
 * The calibration
 * ============================================================================================== */

static void layout_calibration(Bank *b, Arena *arena)
{
    const size_t C = b->channels, n_objects = b->first[b->n_images], L = b->n_loo;
    b->channel_std = arena_floats(arena, C);
    b->units = arena_floats(arena, n_objects);
    b->nearest = arena_floats(arena, b->n_images);
    b->loo_index = arena_take(arena, L * sizeof *b->loo_index);
    b->loo_structural = arena_floats(arena, L);
    b->loo_logical = arena_floats(arena, L);
    b->loo_score = arena_floats(arena, L);
    b->loo_raster = arena_floats(arena, L);
    b->rasters = arena_floats(arena, n_objects * b->raster.dim);
    b->raster_scores = arena_floats(arena, b->raster.dim ? n_objects : 0);
    b->loo_sorted = arena_floats(arena, L);
    b->loo_extra = arena_floats(arena, L);
    b->loo_missing = arena_floats(arena, L);
}

/* Without scores of normal images, or without objects, there is nothing to compare a raster with. */
static int uses_rasters(const Bank *b)
{
    return b->n_loo > 0 && b->options.raster_weight > 0 && !b->options.no_objects;
}

int bank_calibration_buffers(Bank *b, int n_loo, Error *err)
{
    Arena arena = {0};
    b->n_loo = n_loo;
    if (uses_rasters(b) && raster_new(&b->raster, b->channels, err))
        return -1;
    layout_calibration(b, &arena);
    if (arena_allocate(&arena))
        return fail_memory(err, "the bank's calibration", arena.size);
    layout_calibration(b, &arena);
    b->calibration = arena;
    return 0;
}

int bank_channel_std(Bank *b, Error *err)
{
    const size_t C = b->channels, n = b->n_images * bank_cells(b);
    double *sums = calloc(2 * C, sizeof *sums);
    float *cell = aligned_array(C, sizeof *cell);
    if (!sums || !cell) {
        free(sums), free(cell);
        return fail_memory(err, "the bank's calibration", 20 * C);
    }
    for (size_t p = 0; p < n; p++) {
        f16_to_f32_row(cell, b->features + p * C, C);
        for (size_t c = 0; c < C; c++) {
            sums[c] += cell[c];
            sums[C + c] += (double)cell[c] * cell[c];
        }
    }
    for (size_t c = 0; c < C; c++) {
        double mean = sums[c] / (double)n, variance = sums[C + c] / (double)n - mean * mean;
        b->channel_std[c] = channel_deviation(mean, sqrt(fmax(variance, 0)));
    }
    free(sums), free(cell);
    return 0;
}

/* 1 if there are two images that are not copies of each other. */
static int varies(const Bank *b)
{
    int i = 1;
    while (i < b->n_images && bank_same_image(b, 0, i))
        i++;
    return i < b->n_images;
}

int bank_begin_calibration(Bank *b, Error *err)
{
    const int n_objects = b->first[b->n_images], most = b->options.loo_images;
    bank_uncalibrate(b);
    const int n_loo = !varies(b) ? 0 : b->n_images < most ? b->n_images : most;
    if (bank_calibration_buffers(b, n_loo, err))
        return -1;
    b->descriptors = b->owned_descriptors = aligned_array((size_t)n_objects * b->channels, sizeof(float));
    if (!b->descriptors)
        return fail_memory(err, "the objects' descriptors", (size_t)n_objects * b->channels * sizeof(float));
    b->nearest_unit = b->raster_unit = 0;
    for (int i = 0; i < n_objects; i++)
        b->units[i] = 1;
    for (int i = 0; i < b->n_loo; i++)
        b->loo_index[i] = (int)((int64_t)i * b->n_images / b->n_loo);
    return 0;
}

/* Sort n values into sorted [n]. */
static void sort_into(float *sorted, const float *values, int n)
{
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare_floats);
}

/* The quantile of n unsorted values; sorted [n] is scratch. */
static float quantile_of(float *sorted, const float *values, int n, double q)
{
    sort_into(sorted, values, n);
    return quantile_sorted(sorted, n, q);
}

void bank_thresholds(Bank *b)
{
    b->flag_extra = b->flag_missing = 0;
    b->threshold = NAN;
    if (b->n_loo == 0)
        return;
    b->flag_extra = quantile_of(b->loo_sorted, b->loo_extra, b->n_loo, b->options.flag_quantile);
    b->flag_missing = quantile_of(b->loo_sorted, b->loo_missing, b->n_loo, b->options.flag_quantile);
    sort_into(b->loo_sorted, b->loo_score, b->n_loo);
    b->threshold = amm_threshold(b->loo_sorted, b->n_loo, b->options.threshold_quantile);
}

int bank_extends_threshold(const Bank *bank)
{
    return bank->n_loo > 0 && bank->n_loo < AMM_FEW_SCORES;
}

VerdictOptions bank_verdicts(const Bank *bank)
{
    return (VerdictOptions){.omm = &bank->options.omm,
                            .alpha = bank->alpha,
                            .only = bank->options.only,
                            .flag_unmatched = bank->options.flag_unmatched,
                            .flag_damage = bank->options.flag_damage,
                            .flag_extra = bank->flag_extra,
                            .flag_missing = bank->flag_missing,
                            .spread = bank->n_loo > 0 ? &bank->structural : NULL};
}

/* ================================================================================================
 * Freeing
 * ============================================================================================== */

void bank_uncalibrate(Bank *b)
{
    dcga_free(&b->dcga), raster_free(&b->raster);
    free(b->owned_descriptors), free(b->calibration.base);
    b->descriptors = b->owned_descriptors = NULL;
    b->n_loo = 0;
    b->calibration = (Arena){0};
    b->channel_std = b->units = b->nearest = b->rasters = b->raster_scores = b->loo_raster =
        b->loo_structural = b->loo_logical = b->loo_score = b->loo_sorted = b->loo_extra = b->loo_missing =
            NULL;
    b->loo_index = NULL;
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
    free(bank->unreadable);
    st_close(bank->file);
    *bank = (Bank){0};
}
