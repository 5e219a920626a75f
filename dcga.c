/* dcga.c - masks to objects, objects to descriptors. See dcga.h; METHOD.md sections 4 and 5.
 *
 *   masks [n][H][W] --smaller keeps the pixel--> labels [H][W] --area average--> weights [n][h·w]
 *   a_i = Σ w_i f / Σ w_i            pooled   [n][C]
 *   x_i = (a_i - μ)/σ                μ, σ over the bank's objects
 *   h_i = channel graph of x_i       nodes = channels, adjacency from the bank or from the object itself
 *   h_i <- GATv2 over the objects    only with learned weights
 *   h_i <- h_i / ‖h_i‖               descriptors [n][C]
 *   h_i <- object graph, unit again  nodes = the image's objects; only without learned weights */
#include "dcga.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Masks -> objects
 * ============================================================================================== */

typedef struct MaskArea {
    int index;
    int64_t area;
} MaskArea;

static int larger_first(const void *a, const void *b)
{
    const MaskArea *x = a, *y = b;
    if (x->area != y->area)
        return x->area > y->area ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* Write `value` at every pixel of the mask. Runs are column-major, as COCO has them. */
static void paint(int32_t *labels, const Rle *mask, int32_t value)
{
    size_t at = 0, height = (size_t)mask->height, width = (size_t)mask->width;
    for (size_t i = 0; i < mask->n_counts; i++) {
        for (size_t k = 0; (i & 1) && k < mask->counts[i]; k++)
            labels[(at + k) % height * width + (at + k) / height] = value;
        at += mask->counts[i];
    }
}

/* Largest first, so that the smaller one keeps the pixel. */
static void paint_all(int32_t *labels, const Rle *masks, const MaskArea *order, int n, size_t n_pixels)
{
    for (size_t p = 0; p < n_pixels; p++)
        labels[p] = -1;
    for (int i = 0; i < n; i++)
        if (order[i].index >= 0)
            paint(labels, &masks[order[i].index], order[i].index);
}

int objects_labels(int32_t *labels, int *kept, int *n_kept, const Rle *masks, int n_masks, int height,
                   int width, const ObjectsOptions *options, Error *err)
{
    size_t n_pixels = (size_t)height * (size_t)width;
    *n_kept = 0;
    if (n_masks <= 0) {
        for (size_t p = 0; p < n_pixels; p++)
            labels[p] = -1;
        return 0;
    }
    MaskArea *order = aligned_array((size_t)n_masks, sizeof *order);
    int64_t *owned = aligned_array((size_t)n_masks, sizeof *owned);
    int *rank = aligned_array((size_t)n_masks, sizeof *rank);
    if (!order || !owned || !rank) {
        free(order), free(owned), free(rank);
        return fail_memory(err, "the objects of an image", (unsigned long long)n_masks * 32);
    }
    int n = 0;
    for (int i = 0; i < n_masks; i++) {
        int64_t area = rle_area(&masks[i]);
        if (area > 0 && (double)area <= options->max_area * (double)n_pixels &&
            (double)area >= options->min_area * (double)n_pixels)
            order[n++] = (MaskArea){i, area};
    }
    qsort(order, (size_t)n, sizeof *order, larger_first);
    paint_all(labels, masks, order, n, n_pixels);
    memset(owned, 0, (size_t)n_masks * sizeof *owned);
    for (size_t p = 0; p < n_pixels; p++)
        if (labels[p] >= 0)
            owned[labels[p]]++;
    /* Dropping a mask can only give pixels to the others, so one repainting is enough. */
    for (int i = 0; i < n; i++)
        if ((double)owned[order[i].index] < options->min_kept * (double)order[i].area)
            order[i].index = -1;
    paint_all(labels, masks, order, n, n_pixels);
    for (int i = 0; i < n_masks; i++)
        rank[i] = -1;
    for (int i = 0; i < n; i++)
        if (order[i].index >= 0)
            rank[order[i].index] = 0;
    for (int i = 0; i < n_masks; i++)
        if (rank[i] == 0) {
            rank[i] = *n_kept;
            kept[(*n_kept)++] = i;
        }
    for (size_t p = 0; p < n_pixels; p++)
        if (labels[p] >= 0)
            labels[p] = rank[labels[p]];
    free(order), free(owned), free(rank);
    return 0;
}

/* Pixel i of n covers [i·m/n, (i+1)·m/n) of the m cells: first cell, last cell. */
static void pixel_span(int i, int n, int m, int *first, int *last)
{
    *first = (int)((int64_t)i * m / n);
    *last = (int)((((int64_t)i + 1) * m + n - 1) / n) - 1;
    if (*last >= m)
        *last = m - 1;
}

/* How much of cell c pixel i covers, as a part of the cell (1-D). */
static double overlap(int i, int n, int c, int m)
{
    double low = fmax((double)i * m / n, c), high = fmin((i + 1.0) * m / n, c + 1.0);
    return high > low ? high - low : 0;
}

int objects_weights(float *weights, const int32_t *labels, int n, int background, int height, int width,
                    int grid_h, int grid_w, Error *err)
{
    size_t n_cells = (size_t)grid_h * (size_t)grid_w;
    int n_all = n + (background != 0);
    double *sums = calloc((size_t)n_all * n_cells + 1, sizeof *sums);
    if (!sums)
        return fail_memory(err, "the objects of an image",
                           (unsigned long long)n_all * n_cells * sizeof *sums);
    for (int y = 0; y < height; y++) {
        int cy0, cy1;
        pixel_span(y, height, grid_h, &cy0, &cy1);
        for (int x = 0; x < width; x++) {
            int label = labels[(size_t)y * (size_t)width + (size_t)x];
            if (label < 0)
                label = n;
            if (label >= n_all)
                continue;
            int cx0, cx1;
            pixel_span(x, width, grid_w, &cx0, &cx1);
            for (int cy = cy0; cy <= cy1; cy++)
                for (int cx = cx0; cx <= cx1; cx++)
                    sums[(size_t)label * n_cells + (size_t)cy * (size_t)grid_w + (size_t)cx] +=
                        overlap(y, height, cy, grid_h) * overlap(x, width, cx, grid_w);
        }
    }
    for (size_t i = 0; i < (size_t)n_all * n_cells; i++)
        weights[i] = (float)fmin(sums[i], 1); /* at most rounding is above 1 */
    free(sums);
    return 0;
}

void objects_pool(float *pooled, const float *weights, const float *features, int n, int n_cells,
                  int channels)
{
    matmul(pooled, channels, weights, n_cells, features, channels, n, channels, n_cells, 0);
    for (int i = 0; i < n; i++) {
        double total = 0;
        for (int p = 0; p < n_cells; p++)
            total += weights[(size_t)i * (size_t)n_cells + (size_t)p];
        float scale = total > 0 ? (float)(1 / total) : 0;
        for (int c = 0; c < channels; c++)
            pooled[(size_t)i * (size_t)channels + (size_t)c] *= scale;
    }
}

static void locate(Objects *o)
{
    int n_cells = o->grid_h * o->grid_w;
    for (int i = 0; i < o->n; i++) {
        double sum = 0, x = 0, y = 0;
        for (int p = 0; p < n_cells; p++) {
            double w = o->weights[(size_t)i * (size_t)n_cells + (size_t)p];
            sum += w;
            x += w * (p % o->grid_w + 0.5) / o->grid_w;
            y += w * (p / o->grid_w + 0.5) / o->grid_h;
        }
        o->centroids[2 * i] = (float)(sum > 0 ? x / sum : 0.5);
        o->centroids[2 * i + 1] = (float)(sum > 0 ? y / sum : 0.5);
        o->areas[i] = (float)(sum / n_cells);
    }
}

int objects_new(Objects *o, int n, int has_background, int grid_h, int grid_w, int channels,
                const float *weights, const float *features, Error *err)
{
    size_t n_cells = (size_t)grid_h * (size_t)grid_w, count = (size_t)(n > 0 ? n : 1);
    *o = (Objects){
        .n = n, .has_background = has_background, .grid_h = grid_h, .grid_w = grid_w, .channels = channels};
    o->weights = aligned_array(count * n_cells, sizeof(float));
    o->pooled = aligned_array(count * (size_t)channels, sizeof(float));
    o->descriptors = aligned_array(count * (size_t)channels, sizeof(float));
    o->centroids = aligned_array(count * 2, sizeof(float));
    o->areas = aligned_array(count, sizeof(float));
    if (!o->weights || !o->pooled || !o->descriptors || !o->centroids || !o->areas) {
        objects_free(o);
        return fail_memory(err, "the objects of an image",
                           (unsigned long long)(count * (n_cells + 2 * (size_t)channels) * 4));
    }
    memcpy(o->weights, weights, (size_t)n * n_cells * sizeof(float));
    memset(o->descriptors, 0, count * (size_t)channels * sizeof(float));
    if (n > 0)
        objects_pool(o->pooled, o->weights, features, n, (int)n_cells, channels);
    locate(o);
    return 0;
}

void objects_free(Objects *o)
{
    free(o->weights), free(o->pooled), free(o->descriptors), free(o->centroids), free(o->areas);
    *o = (Objects){0};
}

/* ================================================================================================
 * The bank's statistics
 * ============================================================================================== */

int mutual_pairs(int (*pairs)[2], const float *score, int n, int m)
{
    int n_pairs = 0;
    for (int i = 0; i < n; i++) {
        int best = -1;
        for (int j = 0; j < m; j++)
            if (best < 0 ||
                score[(size_t)i * (size_t)m + (size_t)j] > score[(size_t)i * (size_t)m + (size_t)best])
                best = j;
        int back = 0;
        for (int k = 1; k < n && best >= 0; k++)
            if (score[(size_t)k * (size_t)m + (size_t)best] > score[(size_t)back * (size_t)m + (size_t)best])
                back = k;
        if (best >= 0 && back == i) {
            pairs[n_pairs][0] = i;
            pairs[n_pairs++][1] = best;
        }
    }
    return n_pairs;
}

/* In-place Cholesky A = L·Lᵀ of a symmetric positive definite [n][n] (lower triangle); -1 when it is not. */
static int cholesky(double *a, int n)
{
    for (int j = 0; j < n; j++) {
        double *row_j = a + (size_t)j * (size_t)n;
        for (int k = 0; k < j; k++)
            row_j[j] -= row_j[k] * row_j[k];
        if (!(row_j[j] > 0))
            return -1;
        row_j[j] = sqrt(row_j[j]);
        for (int i = j + 1; i < n; i++) {
            double *row_i = a + (size_t)i * (size_t)n, sum = row_i[j];
            for (int k = 0; k < j; k++)
                sum -= row_i[k] * row_j[k];
            row_i[j] = sum / row_j[j];
        }
    }
    return 0;
}

/* inverse [n][n] of the lower triangular l: forward substitution of the unit vectors, all columns at once. */
static void invert_lower(float *inverse, const double *l, double *work, int n)
{
    memset(work, 0, (size_t)n * (size_t)n * sizeof *work);
    for (int i = 0; i < n; i++) {
        double *row = work + (size_t)i * (size_t)n;
        row[i] = 1;
        for (int k = 0; k < i; k++) {
            double factor = l[(size_t)i * (size_t)n + (size_t)k];
            const double *above = work + (size_t)k * (size_t)n;
            for (int c = 0; c <= k; c++)
                row[c] -= factor * above[c];
        }
        for (int c = 0; c <= i; c++)
            row[c] /= l[(size_t)i * (size_t)n + (size_t)i];
    }
    for (size_t i = 0; i < (size_t)n * (size_t)n; i++)
        inverse[i] = (float)work[i];
}

static void standardise(const Dcga *dcga, float *x, const float *pooled, int n)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < dcga->channels; c++) {
            size_t at = (size_t)i * (size_t)dcga->channels + (size_t)c;
            x[at] = (pooled[at] - dcga->mean[c]) / dcga->std[c];
        }
}

float channel_unit(double mean, double std)
{
    return std > 1e-6 && std > fabs(mean) / 1024 ? (float)std : 1;
}

static void moments(Dcga *dcga, const float *pooled, int total)
{
    for (int c = 0; c < dcga->channels; c++) {
        double sum = 0, squares = 0;
        for (int i = 0; i < total; i++)
            sum += pooled[(size_t)i * (size_t)dcga->channels + (size_t)c];
        double mean = total ? sum / total : 0;
        for (int i = 0; i < total; i++) {
            double d = pooled[(size_t)i * (size_t)dcga->channels + (size_t)c] - mean;
            squares += d * d;
        }
        double std = total ? sqrt(squares / total) : 0;
        dcga->mean[c] = (float)mean;
        dcga->std[c] = channel_unit(mean, std);
    }
}

typedef struct Fit {
    const float *x, *h, *centroids; /* [total][C], [total][C], [total][2] */
    const int *first;
    int n_images, channels;
    double *covariance; /* [C][C] */
    float *score;       /* [most][most] objects of two images */
    int (*pairs)[2];    /* [most] */
    double *delta;      /* [C] */
} Fit;

/* Add δδᵀ of the mutual nearest pairs of images a and b under cos(h_i, h_j) - ‖c_i - c_j‖²; returns their
 * number. */
static int add_pairs(Fit *fit, int a, int b)
{
    int first_a = fit->first[a], first_b = fit->first[b], C = fit->channels;
    int n = fit->first[a + 1] - first_a, m = fit->first[b + 1] - first_b;
    if (n == 0 || m == 0)
        return 0;
    matmul_nt(fit->score, m, fit->h + (size_t)first_a * (size_t)C, C, fit->h + (size_t)first_b * (size_t)C, C,
              n, m, C, 0);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            float dx = fit->centroids[2 * (first_a + i)] - fit->centroids[2 * (first_b + j)];
            float dy = fit->centroids[2 * (first_a + i) + 1] - fit->centroids[2 * (first_b + j) + 1];
            fit->score[(size_t)i * (size_t)m + (size_t)j] -= dx * dx + dy * dy;
        }
    int n_pairs = mutual_pairs(fit->pairs, fit->score, n, m);
    for (int k = 0; k < n_pairs; k++) {
        const float *p = fit->x + (size_t)(first_a + fit->pairs[k][0]) * (size_t)C;
        const float *q = fit->x + (size_t)(first_b + fit->pairs[k][1]) * (size_t)C;
        for (int c = 0; c < C; c++)
            fit->delta[c] = (double)p[c] - q[c];
        for (int c = 0; c < C; c++)
            for (int d = 0; d <= c; d++)
                fit->covariance[(size_t)c * (size_t)C + (size_t)d] += fit->delta[c] * fit->delta[d];
    }
    return n_pairs;
}

/* Σ_w = Σ δδᵀ/(2n) + shrinkage·(tr/C)·I over each bank image and `partners` others spread over the bank. 1:
 * found, 0: no pairs. */
static int within_covariance(Fit *fit, int partners, float shrinkage)
{
    int C = fit->channels, N = fit->n_images;
    long n_pairs = 0;
    memset(fit->covariance, 0, (size_t)C * (size_t)C * sizeof(double));
    if (partners > N - 1)
        partners = N - 1;
    for (int a = 0; a < N; a++)
        for (int t = 0; t < partners; t++)
            n_pairs += add_pairs(fit, a, (int)((a + 1 + (int64_t)t * (N - 1) / partners) % N));
    double trace = 0;
    for (int c = 0; c < C; c++)
        trace += n_pairs ? fit->covariance[(size_t)c * (size_t)C + (size_t)c] / (2.0 * n_pairs) : 0;
    if (!(trace > 1e-12))
        return 0;
    for (size_t i = 0; i < (size_t)C * (size_t)C; i++)
        fit->covariance[i] /= 2.0 * n_pairs;
    for (int c = 0; c < C; c++)
        fit->covariance[(size_t)c * (size_t)C + (size_t)c] += shrinkage * trace / C;
    return 1;
}

/* The covariance channel graph [ours]. METHOD.md has x <- Σ_w^{-1/2} x; here x <- L^{-1} x with Σ_w = L·Lᵀ.
 * Both are square roots of Σ_w^{-1}, a rotation apart, and everything after sees only inner products xᵀ
 * Σ_w^{-1} x', which are the same: Cholesky needs no eigenvectors. */
static int fit_covariance(Dcga *dcga, const float *pooled, const float *centroids, const int *first,
                          int n_images, Error *err)
{
    int C = dcga->channels, total = first[n_images], most = 1, status = -1;
    for (int i = 0; i < n_images; i++)
        if (first[i + 1] - first[i] > most)
            most = first[i + 1] - first[i];
    size_t squared = (size_t)C * (size_t)C;
    float *x = aligned_array((size_t)total * (size_t)C, sizeof(float)),
          *h = aligned_array((size_t)total * (size_t)C, sizeof(float));
    float *filter = aligned_array(squared, sizeof(float));
    double *work = aligned_array(squared, sizeof(double));
    Fit fit = {x,
               h,
               centroids,
               first,
               n_images,
               C,
               aligned_array(squared, sizeof(double)),
               aligned_array((size_t)most * (size_t)most, sizeof(float)),
               aligned_array((size_t)most, sizeof(int[2])),
               aligned_array((size_t)C, sizeof(double))};
    if (!x || !h || !filter || !work || !fit.covariance || !fit.score || !fit.pairs || !fit.delta) {
        fail_memory(err, "the channel graph", squared * 20);
        goto done;
    }
    standardise(dcga, x, pooled, total);
    memcpy(h, x, (size_t)total * (size_t)C * sizeof(float));
    l2_normalise(h, total, C, 1e-12f);
    status = 0;
    for (int round = 0; round < dcga->options.rounds; round++) {
        if (!within_covariance(&fit, dcga->options.partners, dcga->options.shrinkage) ||
            cholesky(fit.covariance, C))
            break; /* one image, or all alike: nothing to filter by */
        invert_lower(filter, fit.covariance, work, C);
        dcga->filter = filter;
        linear(h, x, filter, NULL, total, C, C);
        l2_normalise(h, total, C, 1e-12f);
    }
done:
    if (dcga->filter != filter)
        free(filter);
    free(x), free(h), free(work), free(fit.covariance), free(fit.score), free(fit.pairs), free(fit.delta);
    return status;
}

int dcga_fit(Dcga *dcga, const DcgaOptions *options, int channels, const float *pooled,
             const float *centroids, const int *first, int n_images, Error *err)
{
    *dcga = (Dcga){.options = *options, .channels = channels};
    dcga->mean = aligned_array((size_t)channels, sizeof(float));
    dcga->std = aligned_array((size_t)channels, sizeof(float));
    if (!dcga->mean || !dcga->std) {
        dcga_free(dcga);
        return fail_memory(err, "the bank's statistics", (unsigned long long)channels * 8);
    }
    moments(dcga, pooled, first[n_images]);
    if (options->channel_graph == CHANNEL_COVARIANCE &&
        fit_covariance(dcga, pooled, centroids, first, n_images, err)) {
        dcga_free(dcga);
        return -1;
    }
    return 0;
}

void dcga_free(Dcga *dcga)
{
    free(dcga->mean), free(dcga->std), free(dcga->filter);
    *dcga = (Dcga){0};
}

/* ================================================================================================
 * Objects -> descriptors
 * ============================================================================================== */

/* The literal reading [ours]: channels of one object attend to each other, A = softmax_row(Z·Zᵀ/(n·τ)), x <-
 * x + λ·A·x, with Z [C][n] the object's standardised features at the n cells that it mostly covers. z
 * [C][n_cells], gram [C][C]: scratch. */
static void channel_softmax(const Dcga *dcga, float *x, const float *features, const float *weights,
                            int n_cells, float *z, float *gram)
{
    int C = dcga->channels, n = 0;
    for (int p = 0; p < n_cells; p++) {
        if (weights[p] < 0.5f)
            continue;
        for (int c = 0; c < C; c++)
            z[(size_t)c * (size_t)n_cells + (size_t)n] =
                (features[(size_t)p * (size_t)C + (size_t)c] - dcga->mean[c]) / dcga->std[c];
        n++;
    }
    if (n == 0)
        return; /* thinner than a cell: nothing to attend to */
    matmul_nt(gram, C, z, n_cells, z, n_cells, C, C, n, 0);
    float scale = 1 / ((float)n * dcga->options.channel_tau);
    for (size_t i = 0; i < (size_t)C * (size_t)C; i++)
        gram[i] *= scale;
    softmax_rows(gram, C, C);
    for (int c = 0; c < C; c++)
        z[c] = dot(gram + (size_t)c * (size_t)C, x, C);
    for (int c = 0; c < C; c++)
        x[c] += dcga->options.channel_strength * z[c];
}

/* GATv2 over n complete nodes with self-loops [block: Brody et al. 2022, eq. 7]: e_ij = aᵀ LeakyReLU(W_l x_j
 * + W_r x_i), softmax over j, out_i = Σ_j α_ij W_l x_j + b. x [n][d_in], out [n][d_out]; scratch: n·(2·d_out
 * + 1) floats. */
static void gat_v2(const GatWeights *g, float *out, const float *x, int n, float *scratch)
{
    size_t d = (size_t)g->d_out;
    float *left = scratch, *right = left + (size_t)n * d, *alpha = right + (size_t)n * d;
    linear(left, x, g->w_l, NULL, n, g->d_out, g->d_in);
    linear(right, x, g->w_r, NULL, n, g->d_out, g->d_in);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            float e = 0;
            for (size_t c = 0; c < d; c++) {
                float s = left[(size_t)j * d + c] + right[(size_t)i * d + c];
                e += g->a[c] * (s > 0 ? s : 0.2f * s);
            }
            alpha[j] = e;
        }
        softmax_rows(alpha, 1, n);
        for (size_t c = 0; c < d; c++)
            out[(size_t)i * d + c] = g->b[c];
        for (int j = 0; j < n; j++)
            for (size_t c = 0; c < d; c++)
                out[(size_t)i * d + c] += alpha[j] * left[(size_t)j * d + c];
    }
}

/* A channel as a node: its weighted means over a side×side raster of the object's box, [C][side²] [ours]. */
static void channel_layout(const Dcga *dcga, float *nodes, const float *features, const float *weights,
                           int grid_h, int grid_w, int side)
{
    int C = dcga->channels, bins = side * side, x0 = grid_w, x1 = -1, y0 = grid_h, y1 = -1;
    memset(nodes, 0, (size_t)C * (size_t)bins * sizeof(float));
    for (int p = 0; p < grid_h * grid_w; p++)
        if (weights[p] > 0) {
            int x = p % grid_w, y = p / grid_w;
            x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1, y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
        }
    for (int bin = 0; bin < bins && x1 >= 0; bin++) {
        double total = 0;
        for (int y = y0; y <= y1; y++)
            for (int x = x0; x <= x1; x++) {
                int p = y * grid_w + x;
                if ((y - y0) * side / (y1 - y0 + 1) != bin / side ||
                    (x - x0) * side / (x1 - x0 + 1) != bin % side)
                    continue;
                total += weights[p];
                for (int c = 0; c < C; c++)
                    nodes[(size_t)c * (size_t)bins + (size_t)bin] +=
                        weights[p] * (features[(size_t)p * (size_t)C + (size_t)c] - dcga->mean[c]) /
                        dcga->std[c];
            }
        for (int c = 0; c < C && total > 0; c++)
            nodes[(size_t)c * (size_t)bins + (size_t)bin] /= (float)total;
    }
}

/* The learned channel graph: nodes = channels, GATv2, then the mean over each node's outputs is the channel's
 * new value [ours]. */
static int channel_gat(const Dcga *dcga, float *x, const float *features, const float *weights, int n,
                       int grid_h, int grid_w, Error *err)
{
    const GatWeights *g = &dcga->channel_gat;
    int C = dcga->channels, side = (int)lround(sqrt(g->d_in));
    size_t d = (size_t)g->d_out, n_floats = (size_t)C * ((size_t)g->d_in + 3 * d + 1);
    float *nodes = aligned_array(n_floats, sizeof(float));
    if (!nodes)
        return fail_memory(err, "the learned channel graph", n_floats * 4);
    float *out = nodes + (size_t)C * (size_t)g->d_in, *scratch = out + (size_t)C * d;
    for (int i = 0; i < n; i++) {
        channel_layout(dcga, nodes, features, weights + (size_t)i * (size_t)grid_h * (size_t)grid_w, grid_h,
                       grid_w, side);
        gat_v2(g, out, nodes, C, scratch);
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (size_t k = 0; k < d; k++)
                sum += out[(size_t)c * d + k];
            x[(size_t)i * (size_t)C + (size_t)c] = (float)(sum / (double)d);
        }
    }
    free(nodes);
    return 0;
}

/* α_ij = softmax_j(cos(h_i, h_j)/τ), h_i <- h_i + λ Σ_j α_ij h_j over the image's objects [ours]. alpha
 * [n][n], mixed [n][C]: scratch. */
static void object_graph(const Dcga *dcga, float *h, int n, float *alpha, float *mixed)
{
    int C = dcga->channels;
    matmul_nt(alpha, n, h, C, h, C, n, n, C, 0);
    for (size_t i = 0; i < (size_t)n * (size_t)n; i++)
        alpha[i] /= dcga->options.object_tau;
    softmax_rows(alpha, n, n);
    matmul(mixed, C, alpha, n, h, C, n, C, n, 0);
    for (size_t i = 0; i < (size_t)n * (size_t)C; i++)
        h[i] += dcga->options.object_strength * mixed[i];
    l2_normalise(h, n, C, 1e-12f);
}

static int channel_graph(const Dcga *dcga, float *h, float *x, const float *features, const float *weights,
                         int n, int grid_h, int grid_w, Error *err)
{
    int C = dcga->channels, n_cells = grid_h * grid_w;
    if (dcga->has_channel_gat && channel_gat(dcga, x, features, weights, n, grid_h, grid_w, err))
        return -1;
    if (!dcga->has_channel_gat && dcga->options.channel_graph == CHANNEL_SOFTMAX) {
        size_t n_z = (size_t)C * (size_t)(n_cells > C ? n_cells : C), n_gram = (size_t)C * (size_t)C;
        float *z = aligned_array(n_z + n_gram, sizeof(float));
        if (!z)
            return fail_memory(err, "the channel graph", (n_z + n_gram) * 4);
        for (int i = 0; i < n; i++)
            channel_softmax(dcga, x + (size_t)i * (size_t)C, features, weights + (size_t)i * (size_t)n_cells,
                            n_cells, z, z + n_z);
        free(z);
    }
    if (dcga->filter && !dcga->has_channel_gat) /* a learned graph stands in its place */
        linear(h, x, dcga->filter, NULL, n, C, C);
    else
        memcpy(h, x, (size_t)n * (size_t)C * sizeof(float));
    return 0;
}

int dcga_describe(const Dcga *dcga, float *descriptors, const float *pooled, const float *features,
                  const float *weights, int n, int grid_h, int grid_w, int with_objects, Error *err)
{
    if (n == 0)
        return 0;
    int C = dcga->channels;
    const GatWeights *g = &dcga->object_gat;
    size_t n_x = (size_t)n * (size_t)C, n_alpha = (size_t)n * (size_t)n;
    size_t n_gat = dcga->has_object_gat ? (size_t)n * (2 * (size_t)g->d_out + 1) : 0;
    float *x = aligned_array(n_x + n_x + n_alpha + n_gat, sizeof(float));
    if (!x)
        return fail_memory(err, "descriptors", (n_x + n_x + n_alpha + n_gat) * 4);
    float *mixed = x + n_x, *alpha = mixed + n_x, *scratch = alpha + n_alpha;
    standardise(dcga, x, pooled, n);
    int status = channel_graph(dcga, descriptors, x, features, weights, n, grid_h, grid_w, err);
    if (!status) {
        if (dcga->has_object_gat) { /* who stands alone attends to itself: W_l x + b, in the same space as the
                                       others */
            for (int i = 0, group = with_objects ? n : 1; i < n; i += group)
                gat_v2(g, mixed + (size_t)i * (size_t)C, descriptors + (size_t)i * (size_t)C, group, scratch);
            memcpy(descriptors, mixed, n_x * sizeof(float));
        }
        l2_normalise(descriptors, n, C, 1e-12f);
        if (!dcga->has_object_gat && with_objects && dcga->options.object_strength > 0)
            object_graph(dcga, descriptors, n, alpha, mixed);
    }
    free(x);
    return status;
}

static int gat_open(GatWeights *g, int *has, Safetensors *st, const char *prefix, int64_t d_in, int64_t d_out,
                    Error *err)
{
    char name[64];
    snprintf(name, sizeof name, "%s.lin_l.weight", prefix);
    const StTensor *w = st_find(st, name);
    *has = w != NULL;
    if (!w)
        return 0;
    if (w->n_dims != 2 || (d_in > 0 && w->shape[1] != d_in) || (d_out > 0 && w->shape[0] != d_out) ||
        w->shape[0] < 1 || w->shape[0] > 65536 || w->shape[1] < 1 || w->shape[1] > 65536)
        return fail(err, "%s: tensor %s does not have the shape [%lld][%lld] of the features", st_path(st),
                    name, (long long)d_out, (long long)d_in);
    int64_t out = w->shape[0], in = w->shape[1];
    g->d_in = (int)in, g->d_out = (int)out;
    g->w_l = st_weight(st, err, 2, (int64_t[]){out, in}, "%s.lin_l.weight", prefix);
    g->w_r = g->w_l ? st_weight(st, err, 2, (int64_t[]){out, in}, "%s.lin_r.weight", prefix) : NULL;
    g->a = g->w_r ? st_weight(st, err, 1, (int64_t[]){out}, "%s.att", prefix) : NULL;
    g->b = g->a ? st_weight(st, err, 1, (int64_t[]){out}, "%s.bias", prefix) : NULL;
    return g->b ? 0 : -1;
}

int dcga_learned(Dcga *dcga, Safetensors *st, Error *err)
{
    if (gat_open(&dcga->object_gat, &dcga->has_object_gat, st, "object", dcga->channels, dcga->channels,
                 err) ||
        gat_open(&dcga->channel_gat, &dcga->has_channel_gat, st, "channel", 0, 0, err))
        return -1;
    if (!dcga->has_object_gat && !dcga->has_channel_gat)
        return fail(err,
                    "%s: neither object.lin_l.weight nor channel.lin_l.weight is there: not DCGA weights",
                    st_path(st));
    int side = (int)lround(sqrt(dcga->channel_gat.d_in));
    if (dcga->has_channel_gat && side * side != dcga->channel_gat.d_in)
        return fail(err, "%s: channel.lin_l.weight takes %d inputs, which is not a square raster",
                    st_path(st), dcga->channel_gat.d_in);
    return 0;
}
