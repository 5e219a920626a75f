/* raster.c - the layout of objects. See raster.h; docs/METHOD.md 6, "Layout", all of it [ours].
 *
 *   parts       4x4 parts of an object's box, each the mean of 3x3 bilinear samples    [16][C]
 *   vector y    the parts in the bank's principal channels                              [16·8]
 *   neighbours  the most similar objects of the normal images, by S of omm.h            [m]
 *   q           (y - μ)ᵀ Σ⁻¹ (y - μ) - (y - μ_0)ᵀ Σ_0⁻¹ (y - μ_0)
 *               μ, Σ of the neighbours, Σ shrunk to the deviations of all objects from theirs; μ_0, Σ_0 of all
 *
 * q is a difference of squared distances, as in a ratio of likelihoods. A raster that is rare, but no rarer here
 * than anywhere, is not unusual. A mirrored or foreign object is. */
#include "raster.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "omm.h"
#include "tensor.h"

/* ================================================================================================
 * Parts of an object
 * ============================================================================================== */

/* The object's box in cells: centre and half sides. */
typedef struct Box {
    float x, y, half_w, half_h;
} Box;

/* Cells of which it covers at least half as much as of its heaviest. The shorter side is at least 0.6 of the
 * longer, so that a thin object is not stretched into a square. */
static Box box_of(const Objects *o, ptrdiff_t i)
{
    const float *w = o->coverage + i * grid_cells(o);
    float heaviest = 0;
    for (ptrdiff_t p = 0; p < grid_cells(o); p++)
        heaviest = fmaxf(heaviest, w[p]);
    int left = o->grid_w, right = 0, top = o->grid_h, bottom = 0;
    for (int y = 0; y < o->grid_h; y++)
        for (int x = 0; x < o->grid_w; x++)
            if (w[y * o->grid_w + x] >= 0.5f * heaviest) {
                left = x < left ? x : left, right = x + 1 > right ? x + 1 : right;
                top = y < top ? y : top, bottom = y + 1;
            }
    const float width = (float)(right - left), height = (float)(bottom - top), longer = fmaxf(width, height);
    return (Box){0.5f * (float)(left + right), 0.5f * (float)(top + bottom),
                 0.5f * fmaxf(width, 0.6f * longer), 0.5f * fmaxf(height, 0.6f * longer)};
}

/* sum [C] += the features at (x, y) in cells (centres at .5), bilinear, clamped at the borders. */
static void add_sample(float *sum, const Objects *o, float x, float y)
{
    const ptrdiff_t C = o->channels, w = o->grid_w, h = o->grid_h;
    x = fminf(fmaxf(x - 0.5f, 0), (float)(w - 1)), y = fminf(fmaxf(y - 0.5f, 0), (float)(h - 1));
    const ptrdiff_t left = (ptrdiff_t)x, top = (ptrdiff_t)y, right = left + 1 < w ? left + 1 : left,
                    bottom = top + 1 < h ? top + 1 : top;
    const float fx = x - (float)left, fy = y - (float)top;
    const float *a = o->features + (top * w + left) * C, *b = o->features + (top * w + right) * C,
                *c = o->features + (bottom * w + left) * C, *d = o->features + (bottom * w + right) * C;
    for (ptrdiff_t i = 0; i < C; i++)
        sum[i] += (1 - fy) * ((1 - fx) * a[i] + fx * b[i]) + fy * ((1 - fx) * c[i] + fx * d[i]);
}

/* bins [RASTER_BINS][C] */
static void parts_of(float *bins, const Objects *o, ptrdiff_t i)
{
    enum { SAMPLES = 3, LINE = RASTER_SIDE * SAMPLES };
    const Box box = box_of(o, i);
    const ptrdiff_t C = o->channels;
    memset(bins, 0, RASTER_BINS * C * sizeof *bins);
    for (int v = 0; v < LINE; v++)
        for (int u = 0; u < LINE; u++) {
            const float x = box.x + box.half_w * ((2 * (float)u + 1) / LINE - 1),
                        y = box.y + box.half_h * ((2 * (float)v + 1) / LINE - 1);
            add_sample(bins + (v / SAMPLES * RASTER_SIDE + u / SAMPLES) * C, o, x, y);
        }
    for (ptrdiff_t c = 0; c < RASTER_BINS * C; c++)
        bins[c] /= SAMPLES * SAMPLES;
}

/* ================================================================================================
 * Principal channels
 * ============================================================================================== */

static void lay_out_raster(Raster *r, Arena *arena)
{
    const size_t C = r->channels, D = r->dim;
    r->mean = arena_floats(arena, C);
    r->basis = arena_floats(arena, r->kept * C);
    r->within = arena_floats(arena, D * D);
    r->centre = arena_floats(arena, D);
    r->all = arena_floats(arena, D * D);
}

int raster_new(Raster *r, int channels, Error *err)
{
    const int kept = channels < RASTER_MOST_CHANNELS ? channels : RASTER_MOST_CHANNELS;
    *r = (Raster){.channels = channels, .kept = kept, .dim = RASTER_BINS * kept};
    lay_out_raster(r, &r->memory);
    if (arena_allocate(&r->memory))
        return fail_memory(err, "the bank's rasters", r->memory.size);
    lay_out_raster(r, &r->memory);
    return 0;
}

void raster_free(Raster *r)
{
    free(r->memory.base);
    *r = (Raster){0};
}

static void lay_out_moments(RasterMoments *m, Arena *arena, size_t C)
{
    m->sum = arena_take(arena, C * sizeof *m->sum);
    m->product = arena_take(arena, C * C * sizeof *m->product);
}

int raster_moments_new(RasterMoments *m, int channels, Error *err)
{
    *m = (RasterMoments){0};
    lay_out_moments(m, &m->memory, channels);
    if (arena_allocate(&m->memory))
        return fail_memory(err, "the bank's rasters", m->memory.size);
    lay_out_moments(m, &m->memory, channels);
    memset(m->memory.base, 0, m->memory.size);
    return 0;
}

void raster_moments_free(RasterMoments *m)
{
    free(m->memory.base);
    *m = (RasterMoments){0};
}

void raster_add(RasterMoments *m, const Objects *o, ptrdiff_t i, float *bins)
{
    const ptrdiff_t C = o->channels;
    parts_of(bins, o, i);
    for (int bin = 0; bin < RASTER_BINS; bin++, bins += C, m->n++)
        for (ptrdiff_t a = 0; a < C; a++) {
            const double x = bins[a];
            m->sum[a] += x;
            for (ptrdiff_t b = 0; b <= a; b++)
                m->product[a * C + b] += x * bins[b];
        }
}

/* covariance [C][C] of the parts, both triangles. */
static void covariance_of(double *covariance, const RasterMoments *m, ptrdiff_t C)
{
    for (ptrdiff_t a = 0; a < C; a++)
        for (ptrdiff_t b = 0; b <= a; b++)
            covariance[a * C + b] = covariance[b * C + a] =
                m->product[a * C + b] / m->n - m->sum[a] / m->n * (m->sum[b] / m->n);
}

/* Make the rows of v [kept][C] orthonormal, the first one first. A row that depends on those before becomes
 * 0. */
static void orthonormalise(double *v, int kept, ptrdiff_t C)
{
    for (int k = 0; k < kept; k++) {
        double *row = v + k * C, before = 0, norm = 0;
        for (ptrdiff_t c = 0; c < C; c++)
            before += row[c] * row[c];
        for (int j = 0; j < k; j++) {
            double along = 0;
            for (ptrdiff_t c = 0; c < C; c++)
                along += row[c] * v[j * C + c];
            for (ptrdiff_t c = 0; c < C; c++)
                row[c] -= along * v[j * C + c];
        }
        for (ptrdiff_t c = 0; c < C; c++)
            norm += row[c] * row[c];
        const double by = norm > 1e-20 * before ? sqrt(norm) : INFINITY;
        for (ptrdiff_t c = 0; c < C; c++)
            row[c] /= by;
    }
}

/* v [kept][C] spans the largest eigenvectors of the covariance: orthogonal iteration. Later steps do not
 * depend on the basis of this space, so it needs no eigenvectors. v begins with single channels; next
 * [kept][C] is scratch. */
static void iterate(double *v, double *next, const double *covariance, int kept, ptrdiff_t C)
{
    for (int k = 0; k < kept; k++)
        for (ptrdiff_t c = 0; c < C; c++)
            v[k * C + c] = c % kept == k ? 1 : 0;
    for (int step = 0; step < 100; step++) {
        for (int k = 0; k < kept; k++)
            for (ptrdiff_t a = 0; a < C; a++) {
                double sum = 0;
                for (ptrdiff_t b = 0; b < C; b++)
                    sum += covariance[a * C + b] * v[k * C + b];
                next[k * C + a] = sum;
            }
        memcpy(v, next, kept * C * sizeof *v);
        orthonormalise(v, kept, C);
    }
}

int raster_principal(Raster *r, const RasterMoments *m, Error *err)
{
    const ptrdiff_t C = r->channels, n = r->kept * C;
    double *covariance = calloc(C * C + 2 * n, sizeof *covariance);
    if (!covariance)
        return fail_memory(err, "the bank's rasters", (C * C + 2 * n) * sizeof *covariance);
    double *v = covariance + C * C;
    for (ptrdiff_t c = 0; c < C; c++)
        r->mean[c] = m->n > 0 ? (float)(m->sum[c] / m->n) : 0;
    if (m->n > 0) {
        covariance_of(covariance, m, C);
        iterate(v, v + n, covariance, r->kept, C);
    }
    for (ptrdiff_t i = 0; i < n; i++)
        r->basis[i] = (float)v[i];
    free(covariance);
    return 0;
}

void raster_vector(const Raster *r, float *vector, const Objects *o, ptrdiff_t i, float *bins)
{
    const ptrdiff_t C = r->channels;
    parts_of(bins, o, i);
    for (int bin = 0; bin < RASTER_BINS; bin++, bins += C) {
        for (ptrdiff_t c = 0; c < C; c++)
            bins[c] -= r->mean[c];
        for (int k = 0; k < r->kept; k++)
            vector[bin * r->kept + k] = dot(bins, r->basis + k * C, (int)C);
    }
}

/* ================================================================================================
 * Neighbours
 * ============================================================================================== */

/* The most similar object of one image. */
typedef struct Similar {
    float score;
    int object;
} Similar;

/* Largest first, then the lower number. */
static int more_similar(const void *a, const void *b)
{
    const Similar *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score)
                                : (x->object > y->object) - (x->object < y->object);
}

static void lay_out_neighbours(Neighbours *nb, Arena *arena)
{
    nb->found = arena_take(arena, (size_t)nb->n * nb->m * sizeof *nb->found);
    nb->mutual = arena_floats(arena, nb->n);
}

/* best [n][n_images] of all objects, in image `at` of those with objects. scores [n][image->n] is scratch. */
static void search_image(Neighbours *nb, Similar *best, int at, int n_images, float *scores,
                         const Objects *mine, const Objects *image, int first, float position_weight)
{
    omm_scores(scores, mine, image, position_weight);
    for (ptrdiff_t i = 0; i < mine->n; i++) {
        int j = 0, other = 0;
        for (int c = 1; c < image->n; c++)
            j = scores[i * image->n + c] > scores[i * image->n + j] ? c : j;
        for (int r = 1; r < mine->n; r++)
            other = scores[r * (ptrdiff_t)image->n + j] > scores[other * (ptrdiff_t)image->n + j] ? r : other;
        best[i * n_images + at] = (Similar){scores[i * image->n + j], first + j};
        nb->mutual[i] += other == i ? 1.0f / (float)n_images : 0;
    }
}

int raster_n_neighbours(int n_images)
{
    const int most = (int)(0.7 * n_images);
    return most > RASTER_MOST_NEIGHBOURS ? RASTER_MOST_NEIGHBOURS : most > 0 ? most : n_images > 0;
}

double raster_share(int m)
{
    return m / (m + 33.0);
}

int raster_neighbours(Neighbours *nb, const Objects *mine, const NeighbourSearch *s, Error *err)
{
    int n_images = 0, most = 0, at = 0;
    for (int a = 0; a < s->n_allowed; a++) {
        const int n = s->images[s->allowed[a]].n;
        n_images += n > 0, most = n > most ? n : most;
    }
    *nb = (Neighbours){.n = mine->n, .m = raster_n_neighbours(n_images)};
    lay_out_neighbours(nb, &nb->memory);
    Similar *best = aligned_array((size_t)mine->n * n_images, sizeof *best);
    float *scores = aligned_array((size_t)mine->n * most, sizeof *scores);
    if (arena_allocate(&nb->memory) || !best || !scores) {
        free(best), free(scores);
        return fail_memory(err, "the neighbours of objects", (size_t)mine->n * n_images * sizeof *best);
    }
    lay_out_neighbours(nb, &nb->memory);
    memset(nb->mutual, 0, nb->n * sizeof *nb->mutual);
    for (int a = 0; a < s->n_allowed; a++) {
        const Objects *image = &s->images[s->allowed[a]];
        if (image->n > 0)
            search_image(nb, best, at++, n_images, scores, mine, image, s->first[s->allowed[a]],
                         s->position_weight);
    }
    for (ptrdiff_t i = 0; i < nb->n; i++) {
        qsort(best + i * n_images, n_images, sizeof *best, more_similar);
        for (int k = 0; k < nb->m; k++)
            nb->found[i * nb->m + k] = best[i * n_images + k].object;
    }
    free(best), free(scores);
    return 0;
}

void neighbours_free(Neighbours *nb)
{
    free(nb->memory.base);
    *nb = (Neighbours){0};
}

/* ================================================================================================
 * Distances
 * ============================================================================================== */

void raster_mean(float *mean, const float *vectors, const int *objects, int m, int dim)
{
    for (int c = 0; c < dim; c++) {
        double sum = 0;
        for (int k = 0; k < m; k++)
            sum += vectors[(ptrdiff_t)objects[k] * dim + c];
        mean[c] = m ? (float)(sum / m) : 0;
    }
}

/* a [dim][dim] (lower triangle) = mean of (x - centre)(x - centre)ᵀ over n rows. centre NULL: 0. */
static void second_moments(double *a, const float *x, const float *centre, ptrdiff_t n, ptrdiff_t dim)
{
    memset(a, 0, dim * dim * sizeof *a);
    for (ptrdiff_t i = 0; i < n; i++, x += dim)
        for (ptrdiff_t r = 0; r < dim; r++) {
            const double value = (x[r] - (centre ? centre[r] : 0)) / (double)n;
            for (ptrdiff_t c = 0; c <= r; c++)
                a[r * dim + c] += value * (x[c] - (centre ? centre[c] : 0));
        }
}

/* inverse [dim][dim] = L⁻¹ of a + ridge·I = L·Lᵀ. scratch [dim][dim]. */
static void invert(float *inverse, double *a, double ridge, double *scratch, ptrdiff_t dim)
{
    for (ptrdiff_t c = 0; c < dim; c++)
        a[c * dim + c] += ridge;
    if (cholesky(a, dim)) { /* not positive definite, by rounding: measure nothing. */
        memset(inverse, 0, dim * dim * sizeof *inverse);
        return;
    }
    invert_lower(scratch, a, dim);
    for (ptrdiff_t c = 0; c < dim * dim; c++)
        inverse[c] = (float)scratch[c];
}

int raster_fit(Raster *r, const float *vectors, const float *deviations, int n, Error *err)
{
    const ptrdiff_t dim = r->dim;
    double *a = aligned_array(2 * dim * dim, sizeof *a), trace = 0;
    if (!a)
        return fail_memory(err, "the bank's rasters", 2 * dim * dim * sizeof *a);
    second_moments(a, deviations, NULL, n, dim);
    for (ptrdiff_t c = 0; c < dim; c++)
        trace += a[c * dim + c];
    const double ridge = trace > 0 ? trace / (double)dim : 1;
    invert(r->within, a, ridge, a + dim * dim, dim);
    for (ptrdiff_t c = 0; c < dim; c++) {
        double sum = 0;
        for (ptrdiff_t i = 0; i < n; i++)
            sum += vectors[i * dim + c];
        r->centre[c] = n ? (float)(sum / n) : 0;
    }
    second_moments(a, vectors, r->centre, n, dim);
    invert(r->all, a, ridge, a + dim * dim, dim);
    free(a);
    return 0;
}

void raster_whiten(const Raster *r, float *y, const float *x, int n)
{
    linear(y, x, r->within, NULL, n, r->dim, r->dim);
}

/* Buffers of one distance. */
typedef struct DistanceWork {
    float *rows; /* [m + 1][dim] the neighbours, then the object; then both without the neighbours' mean */
    float *mean; /* [dim] */
    double *gram, *v; /* [m][m], [m] */
} DistanceWork;

static void lay_out_distance(DistanceWork *w, Arena *arena, size_t m, size_t dim)
{
    w->rows = arena_floats(arena, (m + 1) * dim);
    w->mean = arena_floats(arena, dim);
    w->gram = arena_take(arena, m * m * sizeof *w->gram);
    w->v = arena_take(arena, m * sizeof *w->v);
}

/* vᵀ·A⁻¹·v = ‖L⁻¹v‖² with A = L·Lᵀ in gram; v becomes L⁻¹v. */
static double quadratic_form(const double *gram, double *v, int m)
{
    double sum = 0;
    for (int i = 0; i < m; i++) {
        for (int k = 0; k < i; k++)
            v[i] -= gram[i * m + k] * v[k];
        v[i] /= gram[i * m + i];
        sum += v[i] * v[i];
    }
    return sum;
}

/* dᵀΣ⁻¹d with Σ = share·XᵀX/m + (1 - share)·I over the m centred neighbours X, by Woodbury's identity. share
 * = m/(m + 33): few neighbours tell little about their own covariance [ours]. */
static double neighbour_distance(const DistanceWork *w, int m, int dim)
{
    const float *d = w->rows + (ptrdiff_t)m * dim;
    const double share = raster_share(m), a = share / m, rest = 1 - share;
    for (int i = 0; i < m; i++) {
        const float *x = w->rows + (ptrdiff_t)i * dim;
        w->v[i] = dot(x, d, dim);
        for (int k = 0; k <= i; k++)
            w->gram[i * m + k] = a * dot(x, w->rows + (ptrdiff_t)k * dim, dim) + (i == k ? rest : 0);
    }
    const double square = dot(d, d, dim);
    return cholesky(w->gram, m) ? square : (square - a * quadratic_form(w->gram, w->v, m)) / rest;
}

int raster_distance(float *q, const Raster *r, const float *vector, const float *whitened, const int *found,
                    int m, Error *err)
{
    const int dim = r->dim;
    Arena arena = {0};
    DistanceWork w;
    lay_out_distance(&w, &arena, m, dim);
    if (arena_allocate(&arena))
        return fail_memory(err, "the distance of a raster", arena.size);
    lay_out_distance(&w, &arena, m, dim);
    raster_mean(w.mean, whitened, found, m, dim);
    for (int k = 0; k < m; k++)
        memcpy(w.rows + (ptrdiff_t)k * dim, whitened + (ptrdiff_t)found[k] * dim, dim * sizeof *w.rows);
    raster_whiten(r, w.rows + (ptrdiff_t)m * dim, vector, 1);
    for (int k = 0; k <= m; k++)
        for (int c = 0; c < dim; c++)
            w.rows[(ptrdiff_t)k * dim + c] -= w.mean[c];
    const double near = neighbour_distance(&w, m, dim);
    for (int c = 0; c < dim; c++)
        w.mean[c] = vector[c] - r->centre[c];
    linear(w.rows, w.mean, r->all, NULL, 1, dim, dim);
    *q = (float)(near - dot(w.rows, w.rows, dim));
    free(arena.base);
    return 0;
}

float raster_unit(const float *scores, const int *found, int m, float *scratch)
{
    for (int k = 0; k < m; k++)
        scratch[k] = scores[found[k]];
    qsort(scratch, m, sizeof *scratch, compare_floats);
    const float median = quantile_sorted(scratch, m, 0.5);
    return fmaxf(quantile_sorted(scratch, m, 0.95) - median,
                 2.44f * (quantile_sorted(scratch, m, 0.75) - median));
}
