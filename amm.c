/* amm.c - Mahalanobis maps, scores, fusion. See amm.h; METHOD.md section 7. */
#include "amm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

/* Bilinear sample of features [h·w][C] at (x, y) in cells (centres at .5), clamped at the borders. */
static void sample(float *out, const float *features, int h, int w, int channels, float x, float y)
{
    x = fminf(fmaxf(x - 0.5f, 0), (float)(w - 1));
    y = fminf(fmaxf(y - 0.5f, 0), (float)(h - 1));
    int x0 = (int)x, y0 = (int)y, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
    float fx = x - (float)x0, fy = y - (float)y0;
    size_t C = (size_t)channels, W = (size_t)w;
    const float *a = features + ((size_t)y0 * W + (size_t)x0) * C,
                *b = features + ((size_t)y0 * W + (size_t)x1) * C;
    const float *c = features + ((size_t)y1 * W + (size_t)x0) * C,
                *d = features + ((size_t)y1 * W + (size_t)x1) * C;
    float wa = (1 - fy) * (1 - fx), wb = (1 - fy) * fx, wc = fy * (1 - fx), wd = fy * fx;
    for (size_t i = 0; i < C; i++)
        out[i] = wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

static double divide(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* Solve A·x = b for symmetric positive definite A [m][m] by Cholesky, in place; b becomes x. A pivot of which
 * float32's rounding of A leaves nothing (centred samples are linearly dependent, only ε parts them) counts
 * as 0, and so does its unknown. */
static void solve_spd(double *a, double *b, int m)
{
    for (int j = 0; j < m; j++) {
        double least = 1e-7 * a[j * m + j];
        for (int k = 0; k < j; k++)
            a[j * m + j] -= a[j * m + k] * a[j * m + k];
        a[j * m + j] = a[j * m + j] > least ? sqrt(a[j * m + j]) : 0;
        for (int i = j + 1; i < m; i++) {
            for (int k = 0; k < j; k++)
                a[i * m + j] -= a[i * m + k] * a[j * m + k];
            a[i * m + j] = divide(a[i * m + j], a[j * m + j]);
        }
    }
    for (int i = 0; i < m; i++) {
        for (int k = 0; k < i; k++)
            b[i] -= a[i * m + k] * b[k];
        b[i] = divide(b[i], a[i * m + i]);
    }
    for (int i = m - 1; i >= 0; i--) {
        for (int k = i + 1; k < m; k++)
            b[i] -= a[k * m + i] * b[k];
        b[i] = divide(b[i], a[i * m + i]);
    }
}

float amm_mahalanobis(const float *f, float *samples, int m, int channels, float epsilon, float *d,
                      double *work)
{
    for (int c = 0; c < channels; c++) {
        float mean = 0;
        for (int r = 0; r < m; r++)
            mean += samples[(size_t)r * (size_t)channels + (size_t)c];
        mean /= (float)m;
        for (int r = 0; r < m; r++)
            samples[(size_t)r * (size_t)channels + (size_t)c] -= mean;
        d[c] = f[c] - mean;
    }
    if (m == 1)
        return sqrtf(dot(d, d, channels) / epsilon);
    /* Σ = XᵀX/(m-1) + εI, so Σ⁻¹ = (1/ε)·[I - Xᵀ(ε(m-1)I_m + XXᵀ)⁻¹X] (Woodbury): an m×m system in place of
     * C×C. With y = (ε(m-1)I_m + XXᵀ)⁻¹Xd, ‖d‖² - (Xd)ᵀy is the least value of ‖d - Xᵀy‖² + ε(m-1)‖y‖², and
     * is computed as that: the difference of two large numbers would leave nothing of a d that lies among the
     * samples. */
    double *gram = work, *solved = work + m * m;
    for (int r = 0; r < m; r++) {
        const float *row = samples + (size_t)r * (size_t)channels;
        solved[r] = dot(row, d, channels);
        for (int s = 0; s <= r; s++)
            gram[r * m + s] = gram[s * m + r] = dot(row, samples + (size_t)s * (size_t)channels, channels);
        gram[r * m + r] += (double)epsilon * (m - 1);
    }
    solve_spd(gram, solved, m);
    double penalty = 0;
    for (int r = 0; r < m; r++) {
        const float *row = samples + (size_t)r * (size_t)channels, y = (float)solved[r];
        for (int c = 0; c < channels; c++)
            d[c] -= y * row[c];
        penalty += (double)y * y;
    }
    return (float)sqrt((dot(d, d, channels) + (double)epsilon * (m - 1) * penalty) / epsilon);
}

/* The place in reference object j that corresponds to (x, y) of query object i, in cells [ours]. */
static void corresponding(const AmmQuery *q, int i, const AmmReference *r, int j, const AmmOptions *options,
                          float *x, float *y)
{
    if (options->align_pixel || q->areas[i] > options->large_object)
        return;
    float s = r->areas[j] > 0 && q->areas[i] > 0 ? sqrtf(q->areas[i] / r->areas[j]) : 1;
    float width = (float)q->grid_w, height = (float)q->grid_h;
    *x = width * (r->centroids[2 * j] + (*x / width - q->centroids[2 * i]) / s);
    *y = height * (r->centroids[2 * j + 1] + (*y / height - q->centroids[2 * i + 1]) / s);
}

typedef struct Scratch {
    float *samples; /* [k][channels] */
    float *d;       /* [channels] */
    double *work;   /* [k·k + k] */
} Scratch;

/* Mahalanobis distance at cell p of query object i over the references that it matched; 0 when there is none.
 */
static float distance_at(const AmmQuery *q, int i, int p, const AmmReference *references, int k,
                         const AmmOptions *options, Scratch *scratch)
{
    int m = 0, C = q->channels;
    for (int r = 0; r < k; r++) {
        int j = references[r].match_q[i];
        if (j < 0)
            continue;
        float x = (float)(p % q->grid_w) + 0.5f, y = (float)(p / q->grid_w) + 0.5f;
        corresponding(q, i, &references[r], j, options, &x, &y);
        sample(scratch->samples + (size_t)m++ * (size_t)C, references[r].features, q->grid_h, q->grid_w, C, x,
               y);
    }
    if (m == 0)
        return 0;
    return amm_mahalanobis(q->features + (size_t)p * (size_t)C, scratch->samples, m, C, options->epsilon,
                           scratch->d, scratch->work);
}

int amm_structural(float *map, const AmmQuery *q, const AmmReference *references, int k,
                   const AmmOptions *options, Error *err)
{
    int n_cells = q->grid_h * q->grid_w;
    size_t n_work = (size_t)k * (size_t)k + (size_t)k;
    Scratch scratch = {aligned_array((size_t)(k + 1) * (size_t)q->channels, sizeof(float)),
                       aligned_array((size_t)q->channels, sizeof(float)),
                       aligned_array(n_work + 1, sizeof(double))};
    float *blurred = aligned_array((size_t)n_cells, sizeof(float));
    int ok = scratch.samples && scratch.d && scratch.work && blurred;
    memset(map, 0, (size_t)n_cells * sizeof *map);
    for (int i = 0; ok && i < q->n; i++)
        for (int p = 0; p < n_cells; p++) {
            float w = q->weights[(size_t)i * (size_t)n_cells + (size_t)p];
            if (w > 0)
                map[p] += w * distance_at(q, i, p, references, k, options, &scratch);
        }
    if (ok && options->blur > 0)
        gaussian_blur(map, map, q->grid_h, q->grid_w, 1, options->blur, blurred);
    free(scratch.samples), free(scratch.d), free(scratch.work), free(blurred);
    return ok ? 0
              : fail_memory(err, "the structural map",
                            n_work * 8 + (unsigned long long)k * (unsigned long long)q->channels * 4);
}

void amm_normalise(float *map, const AmmQuery *q, const AmmReference *references, int k)
{
    int n_cells = q->grid_h * q->grid_w;
    for (int p = 0; p < n_cells; p++) {
        double factor = 0, covered = 0;
        for (int i = 0; i < q->n; i++) {
            double w = q->weights[(size_t)i * (size_t)n_cells + (size_t)p], sum = 0;
            if (w <= 0)
                continue;
            int m = 0;
            for (int r = 0; r < k; r++)
                if (references[r].match_q[i] >= 0) {
                    sum += references[r].scale[references[r].match_q[i]];
                    m++;
                }
            covered += w;
            factor += m && sum > 0 ? w * m / sum : 0;
        }
        map[p] = covered > 0 ? (float)(map[p] * factor / covered) : 0;
    }
}

int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

float quantile_sorted(const float *sorted, int n, double q)
{
    if (n == 0)
        return 0;
    double at = q * (n - 1);
    int low = (int)at, high = low + 1 < n ? low + 1 : low;
    return (float)(sorted[low] + (at - low) * ((double)sorted[high] - sorted[low]));
}

float amm_object_quantile(const float *map, const float *weights, int n_cells, float quantile, float *scratch)
{
    int n = 0;
    float largest = 0;
    for (int p = 0; p < n_cells; p++) {
        if (weights[p] >= 0.5f)
            scratch[n++] = map[p];
        if (weights[p] > 0 && map[p] > largest)
            largest = map[p];
    }
    if (n == 0)
        return largest;
    qsort(scratch, (size_t)n, sizeof *scratch, compare_floats);
    return quantile_sorted(scratch, n, quantile);
}

float amm_score(const float *map, int n, AmmScore score, float *scratch)
{
    if (score == SCORE_MAX) {
        float largest = n ? map[0] : 0;
        for (int p = 1; p < n; p++)
            largest = fmaxf(largest, map[p]);
        return largest;
    }
    memcpy(scratch, map, (size_t)n * sizeof *map);
    qsort(scratch, (size_t)n, sizeof *scratch, compare_floats);
    int top = (n + 99) / 100;
    double sum = 0;
    for (int p = n - top; p < n; p++)
        sum += scratch[p];
    return top ? (float)(sum / top) : 0;
}

float amm_z(const AmmScale *scale, float v)
{
    float width = scale->q95 - scale->median + scale->delta;
    return (v - scale->median) / (width > 1e-12f ? width : 1e-12f);
}

AmmScale amm_scale(float *scores, int n, float delta)
{
    qsort(scores, (size_t)n, sizeof *scores, compare_floats);
    return (AmmScale){quantile_sorted(scores, n, 0.5), quantile_sorted(scores, n, 0.95), delta};
}
