/* amm.c - Mahalanobis maps and their scores. See amm.h; METHOD.md section 7. (compare.c fuses them.) */
#include "amm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "io/fail.h"
#include "fast/simd.h"

/* Solve A·x = b for symmetric positive definite A [m][m], of which the upper triangle is given, by Cholesky
 * (A = Uᵀ·U), in place; b becomes x. A pivot of which float32's rounding of A leaves nothing (centred samples
 * are linearly dependent, only ε parts them) counts as 0, and so does its unknown; least [m] is room. A
 * finished row is subtracted from all below it: whole rows at a time, which the compiler takes in vectors. */
static void solve_spd(double *a, double *b, double *least, int m)
{
    for (int j = 0; j < m; j++)
        least[j] = 1e-7 * a[j * m + j];
    for (int j = 0; j < m; j++) {
        double *pivot = a + j * m;
        pivot[j] = pivot[j] > least[j] ? sqrt(pivot[j]) : 0;
        const double by = pivot[j] > 0 ? pivot[j] : INFINITY; /* makes 0 of what a pivot of 0 would divide */
        b[j] /= by;
        for (int i = j + 1; i < m; i++)
            pivot[i] /= by;
        for (int i = j + 1; i < m; i++)
            b[i] -= pivot[i] * b[j];
        for (int i = j + 1; i < m; i++) {
            double *row = a + i * m, factor = pivot[i];
            for (int k = i; k < m; k++)
                row[k] -= factor * pivot[k];
        }
    }
    for (int i = m - 1; i >= 0; i--) {
        for (int k = i + 1; k < m; k++)
            b[i] -= a[i * m + k] * b[k];
        b[i] = a[i * m + i] > 0 ? b[i] / a[i * m + i] : 0;
    }
}

/* Rows whose products are summed at once: GROUP x GROUP sums, GROUP rows of the one side and an element of
 * the other fill the registers of a machine that has 16 of them. */
enum { GROUP = 3 };

void amm_work(AmmWork *work, Arena *arena, int k, int channels)
{
    int n_rows = round_up(k + 1, GROUP);
    work->stride = (size_t)round_up(channels, LANES);
    work->rows = arena_floats(arena, (size_t)n_rows * work->stride);
    work->y = arena_floats(arena, (size_t)k);
    work->gram = arena_take(arena, (size_t)n_rows * (size_t)n_rows * sizeof *work->gram);
    work->system = arena_take(arena, (size_t)k * (size_t)k * sizeof *work->system);
    work->solved = arena_take(arena, (size_t)k * sizeof *work->solved);
    work->least = arena_take(arena, (size_t)k * sizeof *work->least);
}

/* Subtract from rows 0 .. m (the samples and the query's vector) the mean of the samples; rows from there to
 * a whole group become zero. */
static void centre_rows(const AmmWork *work, int m)
{
    const Vec share = splat(1 / (float)m);
    for (size_t c = 0; c < work->stride; c += LANES) {
        float *column = work->rows + c;
        Vec mean = load(column);
        for (int r = 1; r < m; r++)
            mean += load(column + (size_t)r * work->stride);
        mean *= share;
        for (int r = 0; r <= m; r++)
            store(column + (size_t)r * work->stride, load(column + (size_t)r * work->stride) - mean);
    }
    int n_rows = round_up(m + 1, GROUP);
    memset(work->rows + (size_t)(m + 1) * work->stride, 0,
           (size_t)(n_rows - m - 1) * work->stride * sizeof(float));
}

/* gram[i][j] = row i . row j for j <= i, n rows; ld = n rounded up to whole groups. */
static void gram_of_rows(const AmmWork *work, int n)
{
    const size_t stride = work->stride, ld = (size_t)round_up(n, GROUP);
    for (size_t i = 0; i < ld; i += GROUP)
        for (size_t j = 0; j <= i; j += GROUP) {
            const float *a = work->rows + i * stride, *b = work->rows + j * stride;
            Vec sum[GROUP][GROUP] = {{{0}}};
            for (size_t c = 0; c < stride; c += LANES) {
                Vec bc[GROUP];
                UNROLL for (int s = 0; s < GROUP; s++) bc[s] = load(b + (size_t)s * stride + c);
                UNROLL for (int r = 0; r < GROUP; r++)
                {
                    Vec ac = load(a + (size_t)r * stride + c);
                    UNROLL for (int s = 0; s < GROUP; s++) sum[r][s] = fmadd(ac, bc[s], sum[r][s]);
                }
            }
            for (size_t r = 0; r < GROUP; r++)
                for (size_t s = 0; s < GROUP; s++)
                    work->gram[(i + r) * ld + j + s] = sum_lanes(sum[r][s]);
        }
}

/* |d - X'y|^2, d being row m and X the m rows before it. */
static double residual(const AmmWork *work, int m)
{
    const size_t stride = work->stride;
    Vec sum = {0};
    for (size_t c = 0; c < stride; c += LANES) {
        const float *column = work->rows + c;
        Vec d = load(column + (size_t)m * stride);
        for (int r = 0; r < m; r++)
            d = fmadd(splat(-work->y[r]), load(column + (size_t)r * stride), d);
        sum = fmadd(d, d, sum);
    }
    return sum_lanes(sum);
}

float amm_mahalanobis(const AmmWork *work, int m, float epsilon)
{
    centre_rows(work, m);
    gram_of_rows(work, m + 1);
    const size_t ld = (size_t)round_up(m + 1, GROUP);
    const float *d_row = work->gram + (size_t)m * ld; /* X.d, then |d|^2 */
    if (m == 1)
        return sqrtf(d_row[m] / epsilon);
    /* Σ = XᵀX/(m-1) + εI, so Σ⁻¹ = (1/ε)·[I - Xᵀ(ε(m-1)I_m + XXᵀ)⁻¹X] (Woodbury): an m×m system in place of
     * C×C. With y = (ε(m-1)I_m + XXᵀ)⁻¹Xd, ‖d‖² - (Xd)ᵀy is the least value of ‖d - Xᵀy‖² + ε(m-1)‖y‖², and
     * is computed as that: the difference of two large numbers would leave nothing of a d that lies among the
     * samples. */
    const double ridge = (double)epsilon * (m - 1);
    for (int r = 0; r < m; r++) {
        work->solved[r] = d_row[r];
        for (int s = 0; s <= r; s++)
            work->system[s * m + r] = (double)work->gram[(size_t)r * ld + (size_t)s] + (r == s ? ridge : 0);
    }
    solve_spd(work->system, work->solved, work->least, m);
    double penalty = 0;
    for (int r = 0; r < m; r++) {
        work->y[r] = (float)work->solved[r];
        penalty += (double)work->y[r] * work->y[r];
    }
    return (float)sqrt((residual(work, m) + ridge * penalty) / epsilon);
}

/* The channels that lie `ahead` numbers after p (the next cell's) are called into the cache while this cell's
 * are summed: so many maps are read side by side that the machine does not foresee it. (A prefetch of an
 * address that does not exist does nothing.) */
static void prefetch(const uint16_t *p, size_t ahead)
{
    __builtin_prefetch((const void *)((uintptr_t)p + ahead * sizeof *p));
}

/* row [stride] = a reference's features [h·w][C] at (x, y) in cells (centres at .5), clamped at the borders,
 * bilinear, times scale [C]. */
static void sample(float *row, const AmmQuery *q, const uint16_t *features, float x, float y)
{
    int h = q->grid_h, w = q->grid_w;
    x = fminf(fmaxf(x - 0.5f, 0), (float)(w - 1));
    y = fminf(fmaxf(y - 0.5f, 0), (float)(h - 1));
    int x0 = (int)x, y0 = (int)y, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
    float fx = x - (float)x0, fy = y - (float)y0;
    size_t C = (size_t)q->channels, W = (size_t)w, c = 0;
    const uint16_t *p00 = features + ((size_t)y0 * W + (size_t)x0) * C,
                   *p01 = features + ((size_t)y0 * W + (size_t)x1) * C,
                   *p10 = features + ((size_t)y1 * W + (size_t)x0) * C,
                   *p11 = features + ((size_t)y1 * W + (size_t)x1) * C;
    Vec w00 = splat((1 - fy) * (1 - fx)), w01 = splat((1 - fy) * fx), w10 = splat(fy * (1 - fx)),
        w11 = splat(fy * fx);
    if (fx == 0 && fy == 0) { /* a cell's centre: the same position, or the image's corner */
        for (; c + LANES <= C; c += LANES) {
            prefetch(p00 + c, C);
            store(row + c, load_half(p00 + c) * load(q->scale + c));
        }
    } else {
        for (; c + LANES <= C; c += LANES) {
            Vec top = fmadd(w01, load_half(p01 + c), w00 * load_half(p00 + c));
            Vec bottom = fmadd(w11, load_half(p11 + c), w10 * load_half(p10 + c));
            prefetch(p11 + c, C);
            store(row + c, (top + bottom) * load(q->scale + c));
        }
    }
    if (c < C) {
        Vec top = fmadd(w01, load_half_part(p01 + c, C - c), w00 * load_half_part(p00 + c, C - c));
        Vec bottom = fmadd(w11, load_half_part(p11 + c, C - c), w10 * load_half_part(p10 + c, C - c));
        store(row + c, (top + bottom) * load_part(q->scale + c, C - c));
    }
}

/* row [stride] = the query's own features at cell p, times scale. */
static void own_features(float *row, const AmmQuery *q, size_t p)
{
    const size_t C = (size_t)q->channels;
    const float *features = q->features + p * C;
    size_t c = 0;
    for (; c + LANES <= C; c += LANES)
        store(row + c, load(features + c) * load(q->scale + c));
    if (c < C)
        store(row + c, load_part(features + c, C - c) * load_part(q->scale + c, C - c));
}

/* What the bands of a map share. */
typedef struct MapJob {
    float *map;
    const AmmQuery *query;
    const float *weights; /* [n_q][h*w] the query's, or what claims made of them */
    const AmmReference *references;
    int k;
    const AmmOptions *options;
    Placement *places; /* [n_q][k] */
} MapJob;

/* Mahalanobis distance at cell (x, y) of query object i over the references in which it has a place; 0 when
 * there is none. */
static float distance_at(const MapJob *job, const AmmWork *work, int i, int x, int y)
{
    const AmmQuery *q = job->query;
    const float centre_x = (float)x + 0.5f, centre_y = (float)y + 0.5f;
    int m = 0;
    for (int r = 0; r < job->k; r++) {
        const Placement *at = &job->places[(size_t)i * (size_t)job->k + (size_t)r];
        if (at->known)
            sample(work->rows + (size_t)m++ * work->stride, q, job->references[r].features,
                   at->x + at->zoom * centre_x, at->y + at->zoom * centre_y);
    }
    if (m == 0)
        return 0;
    own_features(work->rows + (size_t)m * work->stride, q, (size_t)y * (size_t)q->grid_w + (size_t)x);
    return amm_mahalanobis(work, m, job->options->epsilon);
}

/* The map is made in squares of at most SQUARE x SQUARE cells, row by row: two rows of the square in each
 * of several references (2 x 5 x 32 cells of 384 channels: 0.25 MB, with 40 references 2 MB) stay in a
 * cache, and the next row of cells finds one of them there. */
enum { SQUARE = 32, LEAST_SQUARE = 8 };

static int squares(int cells, int side)
{
    return (cells + side - 1) / side;
}

/* Smaller ones where threads would stand idle otherwise. */
static int square_side(const AmmQuery *q, int n_threads)
{
    int side = SQUARE;
    while (side > LEAST_SQUARE && squares(q->grid_h, side) * squares(q->grid_w, side) < 2 * n_threads)
        side /= 2;
    return side;
}

static void measure_square(const MapJob *job, const AmmWork *work, int square, int side)
{
    const AmmQuery *q = job->query;
    const size_t n_cells = (size_t)q->grid_h * (size_t)q->grid_w;
    const int y0 = square / squares(q->grid_w, side) * side, x0 = square % squares(q->grid_w, side) * side;
    for (int i = 0; i < q->n; i++)
        for (int y = y0; y < y0 + side && y < q->grid_h; y++)
            for (int x = x0; x < x0 + side && x < q->grid_w; x++) {
                size_t p = (size_t)y * (size_t)q->grid_w + (size_t)x;
                float w = job->weights[(size_t)i * n_cells + p];
                if (w > 0)
                    job->map[p] += w * distance_at(job, work, i, x, y);
            }
}

/* The weights that say which object a cell is compared as. */
static const float *masks(const AmmQuery *q)
{
    return q->claimed ? q->claimed : q->weights;
}

static void place_object(const MapJob *job, int i)
{
    int cells[ALIGN_CELLS];
    for (int r = 0; r < job->k; r++)
        job->places[(size_t)i * (size_t)job->k + (size_t)r] =
            align_object(job->query, i, &job->references[r], job->options, cells);
}

/* Each thread has a workspace of its own and takes every n_threads-th square, so that an object in a corner
 * does not fall to one of them alone. Cells share nothing: the bits do not depend on the number of threads.
 */
int amm_structural(float *map, const AmmQuery *q, const AmmReference *references, int k,
                   const AmmOptions *options, Error *err)
{
    const size_t n_cells = (size_t)q->grid_h * (size_t)q->grid_w;
    const int n_threads = tensor_team_size(), side = square_side(q, n_threads);
    const int n_squares = squares(q->grid_h, side) * squares(q->grid_w, side);
    const size_t n_places = (size_t)q->n * (size_t)k;
    const MapJob job = {
        map, q, masks(q), references, k, options, aligned_array(n_places + 1, sizeof(Placement))};
    Arena count = {0};
    AmmWork work;
    amm_work(&work, &count, k, q->channels);
    char *memory = aligned_array((size_t)n_threads, count.used);
    float *blurred = aligned_array(n_cells, sizeof(float));
    memset(map, 0, n_cells * sizeof *map);
    int ok = memory && blurred && job.places;
    if (ok) {
#pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < q->n; i++)
            place_object(&job, i);
        if (q->claimed)
            align_claims(q->claimed, q, job.places, references, k);
#pragma omp parallel for schedule(static, 1) private(work)
        for (int t = 0; t < n_threads; t++) {
            Arena arena = {memory + (size_t)t * count.used, count.used, 0};
            amm_work(&work, &arena, k, q->channels);
            for (int s = t; s < n_squares; s += n_threads)
                measure_square(&job, &work, s, side);
        }
        if (options->blur > 0)
            gaussian_blur(map, map, q->grid_h, q->grid_w, 1, options->blur, blurred);
    }
    free(memory), free(blurred), free(job.places);
    return ok ? 0
              : fail_memory(err, "the structural map",
                            (size_t)n_threads * count.used + n_cells * 4 + n_places * sizeof(Placement));
}

/* Mean scale of the reference's objects at the place of query object i, weighted by how much of it they
 * cover; 0 when they cover nothing of it. */
static double scale_of_place(const AmmQuery *q, int i, const AmmReference *r)
{
    const size_t n_cells = (size_t)q->grid_h * (size_t)q->grid_w;
    const float *w = q->weights + (size_t)i * n_cells;
    double sum = 0, covered = 0;
    for (int j = 0; j < r->n; j++) {
        const float *other = r->weights + (size_t)j * n_cells;
        double both = 0;
        for (size_t p = 0; p < n_cells; p++)
            both += (double)w[p] * other[p];
        sum += both * r->scale[j], covered += both;
    }
    return covered > 0 ? sum / covered : 0;
}

/* 1 / the mean scale of what object i is compared with, or 0 when it is compared with nothing. */
static float object_factor(const AmmQuery *q, int i, const AmmReference *references, int k)
{
    double sum = 0;
    int m = 0;
    for (int r = 0; r < k; r++)
        if (references[r].match_q[i] >= 0)
            sum += references[r].scale[references[r].match_q[i]], m++;
    for (int r = 0, matched = m; r < k && !matched; r++) {
        double scale = scale_of_place(q, i, &references[r]);
        sum += scale, m += scale > 0;
    }
    return m && sum > 0 ? (float)(m / sum) : 0;
}

int amm_normalise(float *map, const AmmQuery *q, const AmmReference *references, int k, Error *err)
{
    const int n_cells = q->grid_h * q->grid_w;
    float *factors = aligned_array((size_t)q->n + 1, sizeof *factors);
    if (!factors)
        return fail_memory(err, "the structural map", (unsigned long long)q->n * 4);
    for (int i = 0; i < q->n; i++)
        factors[i] = object_factor(q, i, references, k);
    for (int p = 0; p < n_cells; p++) {
        double factor = 0, covered = 0;
        for (int i = 0; i < q->n; i++) {
            double w = masks(q)[(size_t)i * (size_t)n_cells + (size_t)p];
            covered += w, factor += w * factors[i];
        }
        map[p] = covered > 0 ? (float)(map[p] * factor / covered) : 0;
    }
    free(factors);
    return 0;
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
