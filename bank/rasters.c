/* rasters.c - the rasters of a bank's objects, and how unusual an image's rasters are beside them (raster.h). See
 * bank.h; docs/METHOD.md 6.
 *
 * An object's q would be too small if the covariances had seen it. So the images are divided into four folds, and an
 * object is measured with the covariances of the other three. */
#include "bank/bank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bank/pass.h"
#include "io/fail.h"
#include "tensor.h"

enum { FOLDS = 4 };

/* A smaller unit of q is rounding: the object has one neighbour, or its neighbours are alike. */
static const float LEAST_UNIT = 1e-3f;

/* ================================================================================================
 * Neighbours in the bank
 * ============================================================================================== */

/* The neighbours of an image's objects. Image `exclude` (or -1) and its copies give none. */
static int neighbours_of(Neighbours *nb, const Bank *b, const Objects *mine, int exclude, Error *err)
{
    int *allowed = aligned_array(b->n_images, sizeof *allowed), n = 0, status = -1;
    Objects *images = bank_all_objects(b, err);
    *nb = (Neighbours){0};
    if (images && allowed) {
        for (int i = 0; i < b->n_images; i++)
            if (exclude < 0 || !bank_same_image(b, i, exclude))
                allowed[n++] = i;
        const NeighbourSearch search = {images, b->first, allowed, n, b->options.omm.position_weight};
        status = raster_neighbours(nb, mine, &search, err);
    } else if (images) {
        fail_memory(err, "the neighbours of objects", b->n_images * sizeof *allowed);
    }
    free(allowed), free(images);
    return status;
}

/* z of q among the neighbours' own q. scratch [m]. */
static float unusual_z(const Bank *b, float q, const int *found, int m, float *scratch)
{
    const float unit = raster_unit(b->raster_scores, found, m, scratch);
    return (q - quantile_sorted(scratch, m, 0.5)) / fmaxf(fmaxf(unit, b->raster_unit / 4), LEAST_UNIT);
}

int bank_unusual(float *unusual, const Bank *b, const Objects *mine, int exclude, Error *err)
{
    const Raster *r = &b->raster;
    memset(unusual, 0, mine->n * sizeof *unusual);
    if (r->dim == 0 || mine->n == 0)
        return 0;
    Neighbours nb;
    float *bins =
        aligned_array(RASTER_BINS * (size_t)r->channels + r->dim + RASTER_MOST_NEIGHBOURS, sizeof *bins);
    int status = bins ? neighbours_of(&nb, b, mine, exclude, err)
                      : fail_memory(err, "rasters", RASTER_BINS * (size_t)r->channels * sizeof *bins);
    for (ptrdiff_t i = 0; i < mine->n && !status && nb.m; i++) {
        float *vector = bins + RASTER_BINS * (ptrdiff_t)r->channels, q;
        const int *found = nb.found + i * nb.m;
        raster_vector(r, vector, mine, i, bins);
        status = raster_distance(&q, r, vector, b->rasters, found, nb.m, err);
        unusual[i] = status ? 0 : nb.mutual[i] * unusual_z(b, q, found, nb.m, vector + r->dim);
    }
    if (bins)
        neighbours_free(&nb);
    free(bins);
    return status;
}

/* ================================================================================================
 * The fit
 * ============================================================================================== */

/* A bank whose rasters are being fitted; O objects. */
typedef struct RasterFit {
    Bank *bank;
    Neighbours *neighbours;                /* [N] of the images' objects */
    float *vectors, *deviations;           /* [O][dim]; deviations from the mean of the neighbours */
    float *some_vectors, *some_deviations; /* [O][dim] those of some folds */
    float *bins;                           /* [BINS][C] */
    int fold;                              /* being measured */
    Arena memory;
} RasterFit;

static void lay_out_fit(RasterFit *f, Arena *arena)
{
    const size_t O = f->bank->first[f->bank->n_images], D = f->bank->raster.dim;
    f->neighbours = arena_take(arena, f->bank->n_images * sizeof *f->neighbours);
    f->vectors = arena_floats(arena, O * D);
    f->deviations = arena_floats(arena, O * D);
    f->some_vectors = arena_floats(arena, O * D);
    f->some_deviations = arena_floats(arena, O * D);
    f->bins = arena_floats(arena, RASTER_BINS * (size_t)f->bank->channels);
}

/* The principal channels, from at most RASTER_MOST_SAMPLES objects, evenly spread. */
static int fit_channels(const RasterFit *f, Error *err)
{
    Bank *b = f->bank;
    const int step = b->first[b->n_images] / RASTER_MOST_SAMPLES + 1;
    RasterMoments moments;
    int status = raster_moments_new(&moments, b->channels, err);
    for (int i = 0; i < b->n_images && !status; i++) {
        Scene scene;
        status = bank_scene(&scene, b, i, err);
        for (int j = 0; j < bank_object_count(b, i) && !status; j++)
            if ((b->first[i] + j) % step == 0)
                raster_add(&moments, &scene.objects, j, f->bins);
        if (!status)
            scene_free(&scene);
    }
    status = status || raster_principal(&b->raster, &moments, err);
    raster_moments_free(&moments);
    return status ? -1 : 0;
}

/* The raster and the neighbours of each object of an image. */
static int measure_image(RasterFit *f, int i, Error *err)
{
    Bank *b = f->bank;
    const Objects mine = bank_objects(b, i, NULL);
    Scene scene;
    if (bank_scene(&scene, b, i, err))
        return -1;
    for (int j = 0; j < mine.n; j++)
        raster_vector(&b->raster, f->vectors + (ptrdiff_t)(b->first[i] + j) * b->raster.dim, &scene.objects,
                      j, f->bins);
    scene_free(&scene);
    return neighbours_of(&f->neighbours[i], b, &mine, i, err);
}

static void deviate(const RasterFit *f, int i)
{
    const Bank *b = f->bank;
    const int dim = b->raster.dim;
    const Neighbours *nb = &f->neighbours[i];
    for (ptrdiff_t j = 0; j < nb->n; j++) {
        const ptrdiff_t at = (b->first[i] + j) * dim;
        raster_mean(f->deviations + at, f->vectors, nb->found + j * nb->m, nb->m, dim);
        for (int c = 0; c < dim; c++)
            f->deviations[at + c] = f->vectors[at + c] - f->deviations[at + c];
    }
}

/* Fit the statistics to the objects of all folds but one (-1: to all), and whiten all rasters with it. */
static int fit_without(RasterFit *f, int fold, Error *err)
{
    Bank *b = f->bank;
    const size_t dim = b->raster.dim, O = b->first[b->n_images];
    int n = 0;
    for (int i = 0; i < b->n_images; i++)
        if (i % FOLDS != fold) {
            const size_t count = bank_object_count(b, i), from = b->first[i] * dim;
            memcpy(f->some_vectors + n * dim, f->vectors + from, count * dim * sizeof(float));
            memcpy(f->some_deviations + n * dim, f->deviations + from, count * dim * sizeof(float));
            n += (int)count;
        }
    if (raster_fit(&b->raster, f->some_vectors, f->some_deviations, n, err))
        return -1;
    raster_whiten(&b->raster, b->rasters, f->vectors, (int)O);
    return 0;
}

/* q of the objects of an image of the fold. */
static int score_image(void *context, int at, Error *err)
{
    const RasterFit *f = context;
    Bank *b = f->bank;
    const int i = at * FOLDS + f->fold;
    const Neighbours *nb = &f->neighbours[i];
    for (ptrdiff_t j = 0; j < nb->n; j++) {
        const ptrdiff_t object = b->first[i] + j;
        b->raster_scores[object] = 0;
        if (nb->m &&
            raster_distance(&b->raster_scores[object], &b->raster, f->vectors + object * b->raster.dim,
                            b->rasters, nb->found + j * nb->m, nb->m, err))
            return -1;
    }
    return 0;
}

/* The median unit of the objects' q, then R of the images that are left out in turn. */
static int score_images(const RasterFit *f, Error *err)
{
    Bank *b = f->bank;
    const int O = b->first[b->n_images];
    float scratch[RASTER_MOST_NEIGHBOURS], *units = aligned_array(O, sizeof *units);
    int n = 0;
    if (!units)
        return fail_memory(err, "the bank's rasters", O * sizeof *units);
    for (int i = 0; i < b->n_images; i++)
        for (ptrdiff_t j = 0; j < f->neighbours[i].n && f->neighbours[i].m; j++)
            units[n++] = raster_unit(b->raster_scores, f->neighbours[i].found + j * f->neighbours[i].m,
                                     f->neighbours[i].m, scratch);
    qsort(units, n, sizeof *units, compare_floats);
    const float median = quantile_sorted(units, n, 0.5);
    b->raster_unit = median > LEAST_UNIT ? median : 1;
    free(units);
    for (int at = 0; at < b->n_loo; at++) {
        const int i = b->loo_index[at];
        const Neighbours *nb = &f->neighbours[i];
        b->loo_raster[at] = 0;
        for (ptrdiff_t j = 0; j < nb->n && nb->m; j++)
            b->loo_raster[at] =
                fmaxf(b->loo_raster[at], nb->mutual[j] * unusual_z(b, b->raster_scores[b->first[i] + j],
                                                                   nb->found + j * nb->m, nb->m, scratch));
    }
    return 0;
}

static int fit(RasterFit *f, Error *err)
{
    const int N = f->bank->n_images;
    if (fit_channels(f, err))
        return -1;
    for (int i = 0; i < N; i++)
        if (measure_image(f, i, err))
            return -1;
    for (int i = 0; i < N; i++)
        deviate(f, i);
    for (f->fold = 0; f->fold < FOLDS; f->fold++) {
        const Pass scores = {(N - f->fold + FOLDS - 1) / FOLDS, score_image, f, NULL, NULL, 0, 1};
        if (fit_without(f, f->fold, err) || run_pass(&scores, err))
            return -1;
    }
    return fit_without(f, -1, err) || score_images(f, err) ? -1 : 0;
}

int bank_fit_rasters(Bank *b, Error *err)
{
    RasterFit f = {.bank = b};
    if (b->raster.dim == 0)
        return 0;
    lay_out_fit(&f, &f.memory);
    if (arena_allocate(&f.memory))
        return fail_memory(err, "the bank's rasters", f.memory.size);
    lay_out_fit(&f, &f.memory);
    memset(f.neighbours, 0, b->n_images * sizeof *f.neighbours);
    const int status = fit(&f, err);
    for (int i = 0; i < b->n_images; i++)
        neighbours_free(&f.neighbours[i]);
    free(f.memory.base);
    return status;
}
