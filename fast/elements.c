/* elements.c - dot, norms, softmax, and the element-wise routines, on vectors.
 *
 * They equal tensor.c's because each output is the same formula. Sums run in LANES interleaved parts. The
 * parts are added at the end, in an order that depends on the length alone. exp, erf, and the sigmoid are
 * simd.h's polynomials, within a few units of the last place. */
#include "fast/tile.h"

#include <math.h>

float dot(const float *a, const float *b, int n)
{
    Vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 = fmadd(load(a + i), load(b + i), s0);
        s1 = fmadd(load(a + i + LANES), load(b + i + LANES), s1);
        s2 = fmadd(load(a + i + 2 * LANES), load(b + i + 2 * LANES), s2);
        s3 = fmadd(load(a + i + 3 * LANES), load(b + i + 3 * LANES), s3);
    }
    for (; i + LANES <= n; i += LANES)
        s0 = fmadd(load(a + i), load(b + i), s0);
    if (i < n)
        s1 = fmadd(load_part(a + i, n - i), load_part(b + i, n - i), s1);
    return sum_lanes((s0 + s1) + (s2 + s3));
}

static float row_sum(const float *x, int n)
{
    Vec s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        s0 += load(x + i), s1 += load(x + i + LANES);
    for (; i < n; i += LANES)
        s0 += n - i >= LANES ? load(x + i) : load_part(x + i, n - i);
    return sum_lanes(s0 + s1);
}

/* sum (x - mean)², the second pass of the variance: without cancellation. */
static float row_deviation(const float *x, int n, float mean)
{
    Vec s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        Vec d0 = load(x + i) - splat(mean), d1 = load(x + i + LANES) - splat(mean);
        s0 = fmadd(d0, d0, s0);
        s1 = fmadd(d1, d1, s1);
    }
    float tail = 0;
    for (; i < n; i++)
        tail += (x[i] - mean) * (x[i] - mean);
    return sum_lanes(s0 + s1) + tail;
}

/* The row is read three times: mean, deviation, output. It stays in the L1 cache meanwhile. */
static void norm_row(float *y, const float *x, const float *gamma, const float *beta, int dim, float eps)
{
    float mean = row_sum(x, dim) / dim;
    float scale = 1 / sqrtf(row_deviation(x, dim, mean) / dim + eps);
    if (gamma && beta) {
        for (int i = 0; i < dim; i++)
            y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
        return;
    }
    for (int i = 0; i < dim; i++)
        y[i] = (x[i] - mean) * scale * (gamma ? gamma[i] : 1) + (beta ? beta[i] : 0);
}

void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim, float eps)
{
    if (threads_for((double)rows * dim, PARALLEL_ELEMENTS) == 1) {
        for (ptrdiff_t r = 0; r < rows; r++)
            norm_row(y + r * dim, x + r * dim, gamma, beta, dim, eps);
        return;
    }
#pragma omp parallel for
    for (ptrdiff_t r = 0; r < rows; r++)
        norm_row(y + r * dim, x + r * dim, gamma, beta, dim, eps);
}

void add_layer_norm(float *y, float *x, const float *branch, const float *ls, const float *gamma,
                    const float *beta, int rows, int dim, float eps)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = x + r * dim;
        const float *added = branch + r * dim;
        for (int i = 0; i < dim; i++)
            row[i] += ls ? ls[i] * added[i] : added[i];
        norm_row(y + r * dim, row, gamma, beta, dim, eps);
    }
}

static void softmax_row(float *x, int n)
{
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    Vec sum = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec e = vec_exp(load(x + i) - splat(max));
        store(x + i, e);
        sum += e;
    }
    float tail[LANES] = {0};
    if (i < n)
        store(tail, vec_exp(load_part(x + i, n - i) - splat(max)));
    for (int j = 0; i + j < n; j++)
        x[i + j] = tail[j];
    sum += load_part(tail, n - i);
    float total = sum_lanes(sum);
    for (i = 0; i < n; i++)
        x[i] /= total;
}

/* LANES rows of a few columns at once, one row per lane. A single row would leave most lanes idle. */
static void softmax_short_rows(float *x, int cols)
{
    float columns[LANES][LANES], totals[LANES];
    Vec max = splat(-INFINITY), sum = {0};
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < cols; c++)
            columns[c][r] = x[r * cols + c];
    for (int c = 0; c < cols; c++)
        max = choose(load(columns[c]) > max, load(columns[c]), max);
    for (int c = 0; c < cols; c++) {
        Vec e = vec_exp(load(columns[c]) - max);
        store(columns[c], e);
        sum += e;
    }
    store(totals, sum);
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < cols; c++)
            x[r * cols + c] = columns[c][r] / totals[r];
}

void softmax_rows(float *x, int rows, int cols)
{
    const int together = cols < LANES ? LANES : 1;
#pragma omp parallel for if ((double)rows * cols > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r += together) {
        if (together > 1 && r + LANES <= rows)
            softmax_short_rows(x + r * cols, cols);
        else
            for (ptrdiff_t i = r; i < rows && i < r + together; i++)
                softmax_row(x + i * cols, cols);
    }
}

/* Run an element-wise routine on slices of x, one after the other or in parallel. */
static void in_slices(float *x, size_t n, void (*run)(float *x, size_t n))
{
    const size_t slice = 4096;
    if (threads_for((double)n, PARALLEL_ELEMENTS) == 1) {
        run(x, n);
        return;
    }
#pragma omp parallel for
    for (size_t i = 0; i < n; i += slice)
        run(x + i, n - i < slice ? n - i : slice);
}

INLINE Vec vec_relu(Vec x)
{
    return choose(x < 0.0f, splat(0), x); /* a NaN stays */
}

static void gelu_slice(float *x, size_t n)
{
    map(x, n, vec_gelu);
}

static void relu_slice(float *x, size_t n)
{
    map(x, n, vec_relu);
}

static void sigmoid_slice(float *x, size_t n)
{
    map(x, n, vec_sigmoid);
}

void gelu(float *x, size_t n)
{
    in_slices(x, n, gelu_slice);
}

void relu(float *x, size_t n)
{
    in_slices(x, n, relu_slice);
}

void sigmoid(float *x, size_t n)
{
    in_slices(x, n, sigmoid_slice);
}

void swiglu(float *y, const float *x12, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *x1 = x12 + r * 2 * dim, *x2 = x1 + dim;
        float *out = y + r * dim;
        int i = 0;
        for (; i + LANES <= dim; i += LANES) {
            Vec x = load(x1 + i);
            store(out + i, x * vec_sigmoid(x) * load(x2 + i));
        }
        if (i < dim) {
            Vec x = load_part(x1 + i, dim - i);
            store_part(out + i, x * vec_sigmoid(x) * load_part(x2 + i, dim - i), dim - i);
        }
    }
}

void add(float *y, const float *x, size_t n)
{
    if (threads_for((double)n, PARALLEL_ELEMENTS) == 1) {
        for (size_t i = 0; i < n; i++)
            y[i] += x[i];
        return;
    }
#pragma omp parallel for simd
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

void add_rows(float *y, const float *bias, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += bias[i];
}

void add_scaled(float *y, const float *x, const float *ls, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += ls[i] * x[r * dim + i];
}

void l2_normalise(float *x, int rows, int dim, float eps)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = x + r * dim;
        float norm = sqrtf(dot(row, row, dim));
        if (!(norm > eps))
            norm = eps;
        for (int i = 0; i < dim; i++)
            row[i] /= norm;
    }
}
