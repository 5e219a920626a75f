/* dcga.c - masks to objects, objects to descriptors. See dcga.h; docs/METHOD.md 4 and 5.
 *
 *   masks [n][H][W] --smaller keeps the pixel--> labels [H][W] --area average--> coverage w [n][h·w]
 *   a_i = Σ w_i f / Σ w_i            pooled   [n][C]
 *   x_i = (a_i - μ)/σ                μ, σ over the bank's objects
 *   h_i = channel graph of x_i       nodes = channels, adjacency from the bank or from the object itself
 *   h_i <- GATv2 over the objects    only with learned weights
 *   h_i <- h_i / ‖h_i‖               descriptors [n][C]
 *   h_i <- object graph, unit again  nodes = the image's objects; only without learned weights
 *
 * Sizes are ptrdiff_t where they are multiplied: an int would overflow. */
#include "dcga.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* ================================================================================================
 * Masks -> objects (docs/METHOD.md 4)
 * ============================================================================================== */

/* A mask that is neither too large nor too small. */
typedef struct Candidate {
    int mask;
    int64_t area;  /* in pixels */
    int64_t owned; /* pixels that smaller masks do not cover. */
} Candidate;

static int larger_first(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->area != y->area)
        return x->area > y->area ? -1 : 1;
    return (x->mask > y->mask) - (x->mask < y->mask);
}

/* The candidates among the masks, the largest first. Returns their number. */
static int choose_candidates(Candidate *candidates, const Rle *masks, int n_masks, double n_pixels,
                             const ObjectsOptions *options)
{
    int n = 0;
    for (int i = 0; i < n_masks; i++) {
        int64_t area = rle_area(&masks[i]);
        if (area > 0 && area <= options->max_area * n_pixels && area >= options->min_area * n_pixels)
            candidates[n++] = (Candidate){i, area, 0};
    }
    qsort(candidates, n, sizeof *candidates, larger_first);
    return n;
}

/* Write `value` at every pixel of the mask. Its runs are column-major, as in COCO. */
static void paint(int32_t *labels, const Rle *mask, int32_t value)
{
    size_t at = 0, height = mask->height, width = mask->width;
    for (size_t i = 0; i < mask->n_counts; i++) {
        for (size_t k = 0; (i & 1) && k < mask->counts[i]; k++)
            labels[(at + k) % height * width + (at + k) / height] = value;
        at += mask->counts[i];
    }
}

/* labels = index of the candidate. The largest is painted first, so that the smaller one keeps the pixel
 * [ours]. */
static void paint_all(int32_t *labels, const Rle *masks, const Candidate *candidates, int n,
                      ptrdiff_t n_pixels)
{
    for (ptrdiff_t p = 0; p < n_pixels; p++)
        labels[p] = -1;
    for (int i = 0; i < n; i++)
        paint(labels, &masks[candidates[i].mask], i);
}

/* Drop the candidates that keep too little of their area [ours]. Returns the number left. */
static int drop_hidden(Candidate *candidates, int n, const int32_t *labels, ptrdiff_t n_pixels,
                       double min_kept)
{
    int left = 0;
    for (ptrdiff_t p = 0; p < n_pixels; p++)
        if (labels[p] >= 0)
            candidates[labels[p]].owned++;
    for (int i = 0; i < n; i++)
        if (!(candidates[i].owned < min_kept * candidates[i].area))
            candidates[left++] = candidates[i];
    return left;
}

/* Turn labels by size into labels in the masks' given order. rank [n_masks] is scratch, kept may be NULL. */
static void number_objects(int32_t *labels, int *kept, const Candidate *candidates, int n, int *rank,
                           int n_masks, ptrdiff_t n_pixels)
{
    for (int i = 0; i < n_masks; i++)
        rank[i] = -1;
    for (int i = 0; i < n; i++)
        rank[candidates[i].mask] = 0;
    for (int i = 0, next = 0; i < n_masks; i++)
        if (rank[i] == 0) {
            if (kept)
                kept[next] = i;
            rank[i] = next++;
        }
    for (ptrdiff_t p = 0; p < n_pixels; p++)
        if (labels[p] >= 0)
            labels[p] = rank[candidates[labels[p]].mask];
}

int objects_labels(int32_t *labels, int *kept, const Rle *masks, int n_masks, int height, int width,
                   const ObjectsOptions *options, Error *err)
{
    ptrdiff_t n_pixels = (ptrdiff_t)height * width;
    Candidate *candidates = aligned_array(n_masks + 1, sizeof *candidates);
    int *rank = aligned_array(n_masks + 1, sizeof *rank);
    if (!candidates || !rank) {
        free(candidates), free(rank);
        return fail_memory(err, "the objects of an image", n_masks * (sizeof *candidates + sizeof *rank));
    }
    int n = choose_candidates(candidates, masks, n_masks, n_pixels, options);
    paint_all(labels, masks, candidates, n, n_pixels);
    /* A dropped mask can only give pixels to the others, so one repainting is enough. */
    n = drop_hidden(candidates, n, labels, n_pixels, options->min_kept);
    paint_all(labels, masks, candidates, n, n_pixels);
    number_objects(labels, kept, candidates, n, rank, n_masks, n_pixels);
    free(candidates), free(rank);
    return n;
}

/* The cells that pixel i of n touches. It covers [i·m/n, (i+1)·m/n) of the m cells. */
static Span pixel_span(int64_t i, int n, int m)
{
    const int first = (int)(i * m / n), last = (int)(((i + 1) * m + n - 1) / n) - 1;
    return (Span){first, last < m ? last : m - 1};
}

/* The part of cell c that pixel i covers (1-D). */
static double overlap(int i, int n, int c, int m)
{
    double low = fmax((double)i * m / n, c), high = fmin((i + 1.0) * m / n, c + 1.0);
    return high > low ? high - low : 0;
}

/* Sums are double: a cell of a large image has a hundred thousand pixels. */
int objects_coverage(float *coverage, const Objects *o, const int32_t *labels, int height, int width,
                     Error *err)
{
    const ptrdiff_t n_cells = grid_cells(o), n_sums = o->n * n_cells;
    double *sums = calloc(n_sums + 1, sizeof *sums);
    if (!sums)
        return fail_memory(err, "the objects of an image", n_sums * sizeof *sums);
    for (int y = 0; y < height; y++) {
        const Span rows = pixel_span(y, height, o->grid_h);
        for (int x = 0; x < width; x++) {
            const int label = labels[(ptrdiff_t)y * width + x];
            if (label < 0 && !o->has_background)
                continue;
            double *object = sums + (label < 0 ? o->n - 1 : label) * n_cells;
            const Span columns = pixel_span(x, width, o->grid_w);
            for (int cy = rows.first; cy <= rows.last; cy++)
                for (int cx = columns.first; cx <= columns.last; cx++)
                    object[cy * o->grid_w + cx] +=
                        overlap(y, height, cy, o->grid_h) * overlap(x, width, cx, o->grid_w);
        }
    }
    for (ptrdiff_t i = 0; i < n_sums; i++)
        coverage[i] = (float)fmin(sums[i], 1); /* only rounding can exceed 1. */
    free(sums);
    return 0;
}

/* pooled [n][C]: a_i = Σ_p w_i(p) f(p) / Σ_p w_i(p); 0 if an object covers nothing. */
static void pool(float *pooled, const Objects *o)
{
    const ptrdiff_t C = o->channels, n_cells = grid_cells(o);
    if (o->n == 0)
        return;
    matmul(pooled, C, o->coverage, n_cells, o->features, C, o->n, C, n_cells, 0);
    for (ptrdiff_t i = 0; i < o->n; i++) {
        double total = 0;
        for (ptrdiff_t p = 0; p < n_cells; p++)
            total += o->coverage[i * n_cells + p];
        float share = total > 0 ? (float)(1 / total) : 0;
        for (ptrdiff_t c = 0; c < C; c++)
            pooled[i * C + c] *= share;
    }
}

/* Centroids [n][2] and areas [n]. An object that covers nothing lies in the middle. */
static void locate(float *centroids, float *areas, const Objects *o)
{
    const ptrdiff_t n_cells = grid_cells(o);
    for (ptrdiff_t i = 0; i < o->n; i++) {
        double sum = 0, x = 0, y = 0;
        for (ptrdiff_t p = 0; p < n_cells; p++) {
            double w = o->coverage[i * n_cells + p];
            sum += w;
            x += w * (p % o->grid_w + 0.5) / o->grid_w;
            y += w * (p / o->grid_w + 0.5) / o->grid_h;
        }
        centroids[2 * i] = (float)(sum > 0 ? x / sum : 0.5);
        centroids[2 * i + 1] = (float)(sum > 0 ? y / sum : 0.5);
        areas[i] = (float)(sum / n_cells);
    }
}

/* The arrays that Objects own, writable while they are filled. */
typedef struct OwnedArrays {
    float *coverage, *pooled, *centroids, *areas;
} OwnedArrays;

static OwnedArrays layout_objects(Arena *arena, const Objects *o)
{
    const ptrdiff_t n = o->n;
    OwnedArrays arrays;
    arrays.coverage = arena_floats(arena, n * grid_cells(o));
    arrays.pooled = arena_floats(arena, n * o->channels);
    arrays.centroids = arena_floats(arena, n * 2);
    arrays.areas = arena_floats(arena, n);
    return arrays;
}

/* Allocate the arrays for o->n objects, and let o point to them. */
static int allocate(OwnedArrays *arrays, Objects *o, Error *err)
{
    o->memory = (Arena){0};
    layout_objects(&o->memory, o);
    if (arena_allocate(&o->memory))
        return fail_memory(err, "the objects of an image", o->memory.size);
    *arrays = layout_objects(&o->memory, o);
    o->coverage = arrays->coverage, o->pooled = arrays->pooled, o->centroids = arrays->centroids,
    o->areas = arrays->areas;
    o->descriptors = o->units = NULL;
    return 0;
}

int objects_new(Objects *o, const float *coverage, Error *err)
{
    OwnedArrays own;
    if (allocate(&own, o, err))
        return -1;
    memcpy(own.coverage, coverage, o->n * grid_cells(o) * sizeof(float));
    pool(own.pooled, o);
    locate(own.centroids, own.areas, o);
    return 0;
}

int objects_copy(Objects *o, const Objects *view, Error *err)
{
    const ptrdiff_t n = view->n;
    OwnedArrays own;
    *o = *view;
    if (allocate(&own, o, err))
        return -1;
    memcpy(own.coverage, view->coverage, n * grid_cells(o) * sizeof(float));
    memcpy(own.pooled, view->pooled, n * o->channels * sizeof(float));
    memcpy(own.centroids, view->centroids, n * 2 * sizeof(float));
    memcpy(own.areas, view->areas, n * sizeof(float));
    return 0;
}

int masks_to_objects(Objects *o, int32_t *labels, const Rle *masks, int n_masks, int height, int width,
                     const ObjectsOptions *options, Error *err)
{
    const ptrdiff_t n_pixels = (ptrdiff_t)height * width;
    OwnedArrays own;
    o->n = objects_labels(labels, NULL, masks, n_masks, height, width, options, err);
    if (o->n < 0)
        return -1;
    o->has_background = 0;
    for (ptrdiff_t p = 0; p < n_pixels && options->background && !o->has_background; p++)
        o->has_background = labels[p] < 0;
    o->n += o->has_background;
    if (allocate(&own, o, err) || objects_coverage(own.coverage, o, labels, height, width, err))
        return -1;
    pool(own.pooled, o);
    locate(own.centroids, own.areas, o);
    return 0;
}

int whole_image_object(Objects *o, Error *err)
{
    OwnedArrays own;
    o->n = 1, o->has_background = 0;
    if (allocate(&own, o, err))
        return -1;
    for (int p = 0; p < o->grid_h * o->grid_w; p++)
        own.coverage[p] = 1;
    pool(own.pooled, o);
    locate(own.centroids, own.areas, o);
    return 0;
}

void objects_free(Objects *o)
{
    free(o->memory.base);
    *o = (Objects){0};
}

void coverage_extent(Span *rows, Span *columns, const float *coverage, int grid_h, int grid_w)
{
    *rows = (Span){grid_h, -1}, *columns = (Span){grid_w, -1};
    for (int y = 0; y < grid_h; y++)
        for (int x = 0; x < grid_w; x++)
            if (coverage[y * grid_w + x] > 0) {
                rows->first = y < rows->first ? y : rows->first;
                rows->last = y;
                columns->first = x < columns->first ? x : columns->first;
                columns->last = x > columns->last ? x : columns->last;
            }
}

/* ================================================================================================
 * The bank's statistics (docs/METHOD.md 5)
 * ============================================================================================== */

/* Index of the largest of n >= 1 numbers that are `stride` apart; of equal ones the first. */
static ptrdiff_t largest(const float *x, ptrdiff_t stride, ptrdiff_t n)
{
    ptrdiff_t best = 0;
    for (ptrdiff_t i = 1; i < n; i++)
        if (x[i * stride] > x[best * stride])
            best = i;
    return best;
}

int mutual_best(const float *score, ptrdiff_t ld, int n, int m, ptrdiff_t i)
{
    if (m == 0)
        return -1;
    const ptrdiff_t j = largest(score + i * ld, 1, m);
    return largest(score + j, ld, n) == i ? (int)j : -1;
}

int mutual_pairs(int (*pairs)[2], const float *score, int n, int m)
{
    int n_pairs = 0;
    for (int i = 0; i < n; i++) {
        const int j = mutual_best(score, m, n, m, i);
        if (j >= 0)
            pairs[n_pairs][0] = i, pairs[n_pairs++][1] = j;
    }
    return n_pairs;
}

float channel_deviation(double mean, double std)
{
    return std > 1e-6 && std > fabs(mean) / 1024 ? (float)std : 1;
}

/* μ and σ [C] over the objects of all images. */
static void moments(Dcga *dcga, const Objects *images, int n_images)
{
    const ptrdiff_t C = dcga->channels;
    ptrdiff_t total = 0;
    for (int a = 0; a < n_images; a++)
        total += images[a].n;
    for (ptrdiff_t c = 0; c < C; c++) {
        double sum = 0, squares = 0;
        for (int a = 0; a < n_images; a++)
            for (ptrdiff_t i = 0; i < images[a].n; i++)
                sum += images[a].pooled[i * C + c];
        const double mean = total ? sum / total : 0;
        for (int a = 0; a < n_images; a++)
            for (ptrdiff_t i = 0; i < images[a].n; i++) {
                const double d = images[a].pooled[i * C + c] - mean;
                squares += d * d;
            }
        dcga->mean[c] = (float)mean;
        dcga->std[c] = channel_deviation(mean, total ? sqrt(squares / total) : 0);
    }
}

/* x [n][C]: x_i = (a_i - μ)/σ. */
static void standardise(const Dcga *dcga, float *x, const Objects *o)
{
    const ptrdiff_t C = dcga->channels;
    for (ptrdiff_t i = 0; i < o->n; i++)
        for (ptrdiff_t c = 0; c < C; c++)
            x[i * C + c] = (o->pooled[i * C + c] - dcga->mean[c]) / dcga->std[c];
}

int cholesky(double *a, ptrdiff_t n)
{
    for (ptrdiff_t j = 0; j < n; j++) {
        double *row_j = a + j * n;
        for (ptrdiff_t k = 0; k < j; k++)
            row_j[j] -= row_j[k] * row_j[k];
        if (!(row_j[j] > 0))
            return -1;
        row_j[j] = sqrt(row_j[j]);
        for (ptrdiff_t i = j + 1; i < n; i++) {
            double *row_i = a + i * n, sum = row_i[j];
            for (ptrdiff_t k = 0; k < j; k++)
                sum -= row_i[k] * row_j[k];
            row_i[j] = sum / row_j[j];
        }
    }
    return 0;
}

/* By forward substitution of the unit vectors, all columns at once. */
void invert_lower(double *inverse, const double *l, ptrdiff_t n)
{
    memset(inverse, 0, n * n * sizeof *inverse);
    for (ptrdiff_t i = 0; i < n; i++) {
        double *row = inverse + i * n;
        row[i] = 1;
        for (ptrdiff_t k = 0; k < i; k++) {
            double factor = l[i * n + k];
            const double *above = inverse + k * n;
            for (ptrdiff_t c = 0; c <= k; c++)
                row[c] -= factor * above[c];
        }
        for (ptrdiff_t c = 0; c <= i; c++)
            row[c] /= l[i * n + i];
    }
}

/* The bank's objects during the fit of the covariance filter. */
typedef struct Fit {
    const Objects *images;
    ptrdiff_t n_images, C, total, most; /* total: all objects; most: the largest number of one image */
    ptrdiff_t *first;                   /* [n_images + 1] image a owns rows first[a] .. first[a+1]-1 */
    float *x, *h;                       /* [total][C] standardised; filtered to unit vectors. */
    double *covariance;                 /* [C][C] lower triangle of Σ_w, then L. */
    double *inverse;                    /* [C][C] L⁻¹ */
    float *score;                       /* [most][most] objects of two images. */
    int (*pairs)[2];                    /* [most] */
    double *delta;                      /* [C] */
} Fit;

static void layout_fit(Fit *fit, Arena *arena)
{
    const ptrdiff_t C = fit->C;
    fit->first = arena_take(arena, (fit->n_images + 1) * sizeof *fit->first);
    fit->x = arena_floats(arena, fit->total * C);
    fit->h = arena_floats(arena, fit->total * C);
    fit->covariance = arena_take(arena, C * C * sizeof *fit->covariance);
    fit->inverse = arena_take(arena, C * C * sizeof *fit->inverse);
    fit->score = arena_floats(arena, fit->most * fit->most);
    fit->pairs = arena_take(arena, fit->most * sizeof *fit->pairs);
    fit->delta = arena_take(arena, C * sizeof *fit->delta);
}

/* Add δδᵀ of the mutual nearest pairs of images a and b under cos(h_i, h_j) - ‖c_i - c_j‖². Returns the
 * number of pairs. */
static int add_pairs(const Fit *fit, ptrdiff_t a, ptrdiff_t b)
{
    const ptrdiff_t C = fit->C, first_a = fit->first[a], first_b = fit->first[b];
    const ptrdiff_t n = fit->images[a].n, m = fit->images[b].n;
    const float *c_a = fit->images[a].centroids, *c_b = fit->images[b].centroids;
    if (n == 0 || m == 0)
        return 0;
    matmul_nt(fit->score, m, fit->h + first_a * C, C, fit->h + first_b * C, C, n, m, C, 0);
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j < m; j++) {
            float dx = c_a[2 * i] - c_b[2 * j], dy = c_a[2 * i + 1] - c_b[2 * j + 1];
            fit->score[i * m + j] -= dx * dx + dy * dy;
        }
    int n_pairs = mutual_pairs(fit->pairs, fit->score, n, m);
    for (int k = 0; k < n_pairs; k++) {
        const float *p = fit->x + (first_a + fit->pairs[k][0]) * C;
        const float *q = fit->x + (first_b + fit->pairs[k][1]) * C;
        for (ptrdiff_t c = 0; c < C; c++)
            fit->delta[c] = (double)p[c] - q[c];
        for (ptrdiff_t c = 0; c < C; c++)
            for (ptrdiff_t d = 0; d <= c; d++)
                fit->covariance[c * C + d] += fit->delta[c] * fit->delta[d];
    }
    return n_pairs;
}

/* Σ_w = Σ δδᵀ/(2n) + shrinkage·(tr/C)·I. The n pairs are of each bank image with `partners` others, spread
 * over the bank. Returns 1, or 0 if there are no pairs or they do not differ. */
static int within_covariance(const Fit *fit, int partners, float shrinkage)
{
    const ptrdiff_t C = fit->C, N = fit->n_images, P = partners < N - 1 ? partners : N - 1;
    long n_pairs = 0;
    memset(fit->covariance, 0, C * C * sizeof(double));
    for (ptrdiff_t a = 0; a < N; a++)
        for (ptrdiff_t t = 0; t < P; t++)
            n_pairs += add_pairs(fit, a, (a + 1 + t * (N - 1) / P) % N);
    double trace = 0;
    for (ptrdiff_t c = 0; c < C; c++)
        trace += n_pairs ? fit->covariance[c * C + c] / (2.0 * n_pairs) : 0;
    if (!(trace > 1e-12))
        return 0;
    for (ptrdiff_t i = 0; i < C * C; i++)
        fit->covariance[i] /= 2.0 * n_pairs;
    for (ptrdiff_t c = 0; c < C; c++)
        fit->covariance[c * C + c] += shrinkage * trace / C;
    return 1;
}

/* The covariance channel graph [ours], in rounds: pairs under h, Σ_w of the pairs' x, h from x by the filter.
 * docs/METHOD.md 5 has x <- Σ_w^{-1/2} x; here x <- L^{-1} x with Σ_w = L·Lᵀ. L^{-1} equals Σ_w^{-1/2} up to
 * a rotation. Every later step sees only inner products xᵀ Σ_w^{-1} x', which are the same. Cholesky is used
 * because it needs no eigenvectors. filter [C][C]. Returns 0 if there is nothing to fit: one image, or all
 * images alike. */
static int covariance_filter(float *filter, const Fit *fit, const DcgaOptions *options)
{
    int found = 0;
    memcpy(fit->h, fit->x, fit->total * fit->C * sizeof(float));
    l2_normalise(fit->h, fit->total, fit->C, 1e-12f);
    for (int round = 0; round < options->rounds; round++) {
        if (!within_covariance(fit, options->partners, options->shrinkage) ||
            cholesky(fit->covariance, fit->C))
            break;
        invert_lower(fit->inverse, fit->covariance, fit->C);
        for (ptrdiff_t i = 0; i < fit->C * fit->C; i++)
            filter[i] = (float)fit->inverse[i];
        found = 1;
        linear(fit->h, fit->x, filter, NULL, fit->total, fit->C, fit->C);
        l2_normalise(fit->h, fit->total, fit->C, 1e-12f);
    }
    return found;
}

/* dcga->filter, or NULL if there is nothing to fit. 0, or -1: no memory. */
static int fit_filter(Dcga *dcga, const Objects *images, int n_images, Error *err)
{
    Fit fit = {.images = images, .n_images = n_images, .C = dcga->channels, .most = 1};
    for (int a = 0; a < n_images; a++) {
        fit.total += images[a].n;
        fit.most = images[a].n > fit.most ? images[a].n : fit.most;
    }
    Arena arena = {0};
    layout_fit(&fit, &arena);
    float *filter = aligned_array(fit.C * fit.C, sizeof *filter);
    if (!filter || arena_allocate(&arena)) {
        free(filter);
        return fail_memory(err, "the channel graph", arena.size);
    }
    layout_fit(&fit, &arena);
    fit.first[0] = 0;
    for (int a = 0; a < n_images; a++) {
        fit.first[a + 1] = fit.first[a] + images[a].n;
        standardise(dcga, fit.x + fit.first[a] * fit.C, &images[a]);
    }
    if (covariance_filter(filter, &fit, &dcga->options))
        dcga->filter = filter;
    else
        free(filter);
    free(arena.base);
    return 0;
}

int dcga_fit(Dcga *dcga, const DcgaOptions *options, const Objects *images, int n_images, Error *err)
{
    const int C = images[0].channels;
    *dcga = (Dcga){.options = *options, .channels = C};
    dcga->mean = aligned_array(C, sizeof(float));
    dcga->std = aligned_array(C, sizeof(float));
    if (!dcga->mean || !dcga->std) {
        dcga_free(dcga);
        return fail_memory(err, "the bank's statistics", 2 * C * sizeof(float));
    }
    moments(dcga, images, n_images);
    if (options->channel_graph == CHANNEL_COVARIANCE && fit_filter(dcga, images, n_images, err)) {
        dcga_free(dcga);
        return -1;
    }
    return 0;
}

int dcga_learned(Dcga *dcga, Safetensors *weights, Error *err)
{
    return dcga_load(&dcga->object_gat, &dcga->channel_gat, weights, dcga->channels, err);
}

void dcga_free(Dcga *dcga)
{
    free(dcga->mean), free(dcga->std), free(dcga->filter);
    *dcga = (Dcga){0};
}

/* ================================================================================================
 * Objects -> descriptors (docs/METHOD.md 5)
 * ============================================================================================== */

/* Buffers of one description. Only those of the chosen graphs have a size. */
typedef struct DescribeWork {
    float *x; /* [n][C] */
    /* channel_softmax */
    float *z;         /* [C][n_cells] */
    float *attention; /* [C][C] */
    float *change;    /* [C] */
    /* gat_v2 */
    float *nodes;              /* [C][d_in] of the channels */
    float *left, *right, *out; /* [nodes][d_out] */
    float *alpha;              /* [nodes] */
    /* object_graph */
    float *object_alpha, *mixed; /* [n][n], [n][C] */
} DescribeWork;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void layout_describe(DescribeWork *work, Arena *arena, const Dcga *dcga, const Objects *o)
{
    const GatWeights *channel_gat = &dcga->channel_gat, *object_gat = &dcga->object_gat;
    const size_t n = o->n, C = dcga->channels;
    const size_t softmax_C = !channel_gat->w_l && dcga->options.channel_graph == CHANNEL_SOFTMAX ? C : 0;
    const size_t graph_n = !object_gat->w_l && dcga->options.object_strength > 0 ? n : 0;
    const size_t n_nodes = larger(channel_gat->w_l ? C : 0, object_gat->w_l ? n : 0);
    const size_t n_outputs =
        larger(channel_gat->w_l ? C * channel_gat->d_out : 0, object_gat->w_l ? n * C : 0);
    work->x = arena_floats(arena, n * C);
    work->z = arena_floats(arena, softmax_C * grid_cells(o));
    work->attention = arena_floats(arena, softmax_C * softmax_C);
    work->change = arena_floats(arena, softmax_C);
    work->nodes = arena_floats(arena, channel_gat->w_l ? C * channel_gat->d_in : 0);
    work->left = arena_floats(arena, n_outputs);
    work->right = arena_floats(arena, n_outputs);
    work->out = arena_floats(arena, n_outputs);
    work->alpha = arena_floats(arena, n_nodes);
    work->object_alpha = arena_floats(arena, graph_n * graph_n);
    work->mixed = arena_floats(arena, graph_n * C);
}

/* Z [C][n_cells] = the object's standardised features at the n cells of which it covers at least half.
 * Returns n. */
static ptrdiff_t standardised_cells(const Dcga *dcga, float *z, const float *features, const float *coverage,
                                    ptrdiff_t n_cells)
{
    const ptrdiff_t C = dcga->channels;
    ptrdiff_t n = 0;
    for (ptrdiff_t p = 0; p < n_cells; p++) {
        if (coverage[p] < 0.5f)
            continue;
        for (ptrdiff_t c = 0; c < C; c++)
            z[c * n_cells + n] = (features[p * C + c] - dcga->mean[c]) / dcga->std[c];
        n++;
    }
    return n;
}

/* The literal reading of the paper [ours]: the channels of one object attend to each other. A =
 * softmax_row(Z·Zᵀ/(n·τ)), x <- x + λ·A·x; x [n][C]. */
static void channel_softmax(const Dcga *dcga, float *x, const Objects *o, const DescribeWork *work)
{
    const ptrdiff_t C = dcga->channels, n_cells = grid_cells(o);
    float *attention = work->attention;
    for (ptrdiff_t i = 0; i < o->n; i++, x += C) {
        const ptrdiff_t n =
            standardised_cells(dcga, work->z, o->features, o->coverage + i * n_cells, n_cells);
        if (n == 0)
            continue; /* covers half of no cell: nothing to attend to. */
        const float share = 1 / (n * dcga->options.channel_tau);
        matmul_nt(attention, C, work->z, n_cells, work->z, n_cells, C, C, n, 0);
        for (ptrdiff_t c = 0; c < C * C; c++)
            attention[c] *= share;
        softmax_rows(attention, C, C);
        for (ptrdiff_t c = 0; c < C; c++)
            work->change[c] = dot(attention + c * C, x, C);
        for (ptrdiff_t c = 0; c < C; c++)
            x[c] += dcga->options.channel_strength * work->change[c];
    }
}

/* GATv2 over n complete nodes with self-loops [block: Brody et al. 2022, eq. 7]: e_ij = aᵀ LeakyReLU(W_l x_j
 * + W_r x_i), α_i = softmax_j(e_ij), out_i = Σ_j α_ij W_l x_j + b. x [n][d_in] -> work->out [n][d_out]. */
static void gat_v2(const GatWeights *g, const float *x, ptrdiff_t n, const DescribeWork *work)
{
    const ptrdiff_t d = g->d_out;
    const float *left = work->left, *right = work->right;
    float *out = work->out, *alpha = work->alpha;
    linear(work->left, x, g->w_l, NULL, n, g->d_out, g->d_in);
    linear(work->right, x, g->w_r, NULL, n, g->d_out, g->d_in);
    for (ptrdiff_t i = 0; i < n; i++) {
        for (ptrdiff_t j = 0; j < n; j++) {
            float e = 0;
            for (ptrdiff_t c = 0; c < d; c++) {
                float s = left[j * d + c] + right[i * d + c];
                e += g->a[c] * (s > 0 ? s : 0.2f * s);
            }
            alpha[j] = e;
        }
        softmax_rows(alpha, 1, n);
        for (ptrdiff_t c = 0; c < d; c++)
            out[i * d + c] = g->b[c];
        for (ptrdiff_t j = 0; j < n; j++)
            for (ptrdiff_t c = 0; c < d; c++)
                out[i * d + c] += alpha[j] * left[j * d + c];
    }
}

/* A channel as a node [ours]: its weighted means over a side×side raster of object i's box. nodes
 * [C][side²]. */
static void channel_layout(const Dcga *dcga, float *nodes, const Objects *o, ptrdiff_t i, int side)
{
    const ptrdiff_t C = dcga->channels, bins = side * side;
    const float *coverage = o->coverage + i * grid_cells(o);
    Span rows, columns;
    coverage_extent(&rows, &columns, coverage, o->grid_h, o->grid_w);
    const int box_h = rows.last - rows.first + 1, box_w = columns.last - columns.first + 1;
    memset(nodes, 0, C * bins * sizeof *nodes);
    for (int bin = 0; bin < bins && box_w > 0; bin++) {
        double total = 0;
        for (int y = rows.first; y <= rows.last; y++)
            for (int x = columns.first; x <= columns.last; x++) {
                const ptrdiff_t p = y * o->grid_w + x;
                if ((y - rows.first) * side / box_h != bin / side ||
                    (x - columns.first) * side / box_w != bin % side)
                    continue;
                total += coverage[p];
                for (ptrdiff_t c = 0; c < C; c++)
                    nodes[c * bins + bin] +=
                        coverage[p] * (o->features[p * C + c] - dcga->mean[c]) / dcga->std[c];
            }
        for (ptrdiff_t c = 0; c < C && total > 0; c++)
            nodes[c * bins + bin] /= (float)total;
    }
}

/* The learned channel graph [ours]: nodes are channels. A channel's new value is the mean over its node's
 * GATv2 outputs. x [n][C]. */
static void channel_gat(const Dcga *dcga, float *x, const Objects *o, const DescribeWork *work)
{
    const GatWeights *g = &dcga->channel_gat;
    const ptrdiff_t C = dcga->channels, d = g->d_out;
    for (ptrdiff_t i = 0; i < o->n; i++) {
        channel_layout(dcga, work->nodes, o, i, (int)lround(sqrt(g->d_in)));
        gat_v2(g, work->nodes, C, work);
        for (ptrdiff_t c = 0; c < C; c++) {
            double sum = 0;
            for (ptrdiff_t k = 0; k < d; k++)
                sum += work->out[c * d + k];
            x[i * C + c] = (float)(sum / d);
        }
    }
}

/* h [n][C] = the channel graph of the standardised objects, not yet unit vectors. A learned graph replaces
 * the others. */
static void channel_graph(const Dcga *dcga, float *h, const Objects *o, const DescribeWork *work)
{
    const ptrdiff_t C = dcga->channels, n = o->n;
    standardise(dcga, work->x, o);
    if (dcga->channel_gat.w_l)
        channel_gat(dcga, work->x, o, work);
    else if (dcga->options.channel_graph == CHANNEL_SOFTMAX)
        channel_softmax(dcga, work->x, o, work);
    if (dcga->filter && !dcga->channel_gat.w_l)
        linear(h, work->x, dcga->filter, NULL, n, C, C);
    else
        memcpy(h, work->x, n * C * sizeof *h);
}

/* The learned object graph over n nodes h [n][C], in place. A single node attends to itself: W_l x + b, in
 * the same space as the others. */
static void object_gat(const Dcga *dcga, float *h, ptrdiff_t n, const DescribeWork *work)
{
    gat_v2(&dcga->object_gat, h, n, work);
    memcpy(h, work->out, n * dcga->channels * sizeof *h);
}

/* The object graph [ours]: α_ij = softmax_j(cos(h_i, h_j)/τ), h_i <- h_i + λ Σ_j α_ij h_j over the image's
 * objects. h [n][C] are unit vectors before and after. */
static void object_graph(const Dcga *dcga, float *h, ptrdiff_t n, const DescribeWork *work)
{
    const ptrdiff_t C = dcga->channels;
    matmul_nt(work->object_alpha, n, h, C, h, C, n, n, C, 0);
    for (ptrdiff_t i = 0; i < n * n; i++)
        work->object_alpha[i] /= dcga->options.object_tau;
    softmax_rows(work->object_alpha, n, n);
    matmul(work->mixed, C, work->object_alpha, n, h, C, n, C, n, 0);
    for (ptrdiff_t i = 0; i < n * C; i++)
        h[i] += dcga->options.object_strength * work->mixed[i];
    l2_normalise(h, n, C, 1e-12f);
}

/* Channel graph, learned object graph, unit vectors: the steps that an image's objects and a region share. */
static void describe(const Dcga *dcga, float *h, const Objects *o, const DescribeWork *work)
{
    channel_graph(dcga, h, o, work);
    if (dcga->object_gat.w_l)
        object_gat(dcga, h, o->n, work);
    l2_normalise(h, o->n, dcga->channels, 1e-12f);
}

/* Lay the buffers out and allocate them; free(arena->base). */
static int new_describe_work(DescribeWork *work, Arena *arena, const Dcga *dcga, const Objects *o, Error *err)
{
    *arena = (Arena){0};
    layout_describe(work, arena, dcga, o);
    if (arena_allocate(arena))
        return fail_memory(err, "descriptors", arena->size);
    layout_describe(work, arena, dcga, o);
    return 0;
}

int dcga_describe(const Dcga *dcga, float *descriptors, const Objects *o, Error *err)
{
    DescribeWork work;
    Arena arena;
    if (o->n == 0)
        return 0;
    if (new_describe_work(&work, &arena, dcga, o, err))
        return -1;
    describe(dcga, descriptors, o, &work);
    if (!dcga->object_gat.w_l && dcga->options.object_strength > 0)
        object_graph(dcga, descriptors, o->n, &work);
    free(arena.base);
    return 0;
}

int dcga_describe_region(const Dcga *dcga, float *h, const Objects *image, const float *pooled,
                         const float *coverage, Error *err)
{
    DescribeWork work;
    Arena arena;
    Objects region = *image;
    region.n = 1, region.pooled = pooled, region.coverage = coverage;
    if (new_describe_work(&work, &arena, dcga, &region, err))
        return -1;
    describe(dcga, h, &region, &work);
    free(arena.base);
    return 0;
}
