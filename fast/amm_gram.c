/* amm_gram.c - the structural map fast: the sums of tensor.h's "one vector among samples" in vectors, and the
 * map in squares.
 *
 * The results equal amm.c's: each distance is made by amm_distance_at, and cells are independent. The sums
 * below have another order than tensor.c's. The order is the same for any number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "amm.h"
#include "fast/simd.h"
#include "io/fail.h"

/* Prefetch the channels that lie `ahead` numbers after p (the next cell's) while this cell's are summed. Many
 * maps are read side by side, so the machine does not predict these reads. (A prefetch of an invalid address
 * does nothing.). */
static void prefetch(const uint16_t *p, size_t ahead)
{
    __builtin_prefetch((const void *)((uintptr_t)p + ahead * sizeof *p));
}

void sample_half(float *row, const uint16_t *features, int h, int w, int channels, float x, float y,
                 const float *inverse_std)
{
    x = fminf(fmaxf(x - 0.5f, 0), (float)(w - 1));
    y = fminf(fmaxf(y - 0.5f, 0), (float)(h - 1));
    int x0 = (int)x, y0 = (int)y, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
    float fx = x - (float)x0, fy = y - (float)y0;
    size_t C = (size_t)channels, W = (size_t)w, c = 0;
    const uint16_t *p00 = features + ((size_t)y0 * W + (size_t)x0) * C,
                   *p01 = features + ((size_t)y0 * W + (size_t)x1) * C,
                   *p10 = features + ((size_t)y1 * W + (size_t)x0) * C,
                   *p11 = features + ((size_t)y1 * W + (size_t)x1) * C;
    Vec w00 = splat((1 - fy) * (1 - fx)), w01 = splat((1 - fy) * fx), w10 = splat(fy * (1 - fx)),
        w11 = splat(fy * fx);
    if (fx == 0 && fy == 0) { /* a cell's centre: at an unchanged position, or in the image's corner. */
        for (; c + LANES <= C; c += LANES) {
            prefetch(p00 + c, C);
            store(row + c, load_half(p00 + c) * load(inverse_std + c));
        }
    } else {
        for (; c + LANES <= C; c += LANES) {
            Vec top = fmadd(w01, load_half(p01 + c), w00 * load_half(p00 + c));
            Vec bottom = fmadd(w11, load_half(p11 + c), w10 * load_half(p10 + c));
            prefetch(p11 + c, C);
            store(row + c, (top + bottom) * load(inverse_std + c));
        }
    }
    if (c < C) {
        Vec top = fmadd(w01, load_half_part(p01 + c, C - c), w00 * load_half_part(p00 + c, C - c));
        Vec bottom = fmadd(w11, load_half_part(p11 + c, C - c), w10 * load_half_part(p10 + c, C - c));
        store(row + c, (top + bottom) * load_part(inverse_std + c, C - c));
        c += LANES;
    }
    for (; c < (size_t)round_up(channels, ROW_STEP); c += LANES)
        store(row + c, (Vec){0});
}

float distance_half(const float *a, const uint16_t *b, const float *inverse_std, int channels)
{
    Vec sum = {0};
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec d = (load(a + c) - load_half(b + c)) * load(inverse_std + c);
        sum = fmadd(d, d, sum);
    }
    if (c < channels) {
        size_t n = (size_t)(channels - c);
        Vec d = (load_part(a + c, n) - load_half_part(b + c, n)) * load_part(inverse_std + c, n);
        sum = fmadd(d, d, sum);
    }
    return sqrtf(sum_lanes(sum));
}

void centre_rows(float *x, int stride, int m)
{
    const Vec share = splat(1 / (float)m);
    for (ptrdiff_t c = 0; c < stride; c += LANES) {
        Vec mean = load(x + c);
        for (ptrdiff_t r = 1; r < m; r++)
            mean += load(x + c + r * stride);
        mean *= share;
        for (ptrdiff_t r = 0; r <= m; r++)
            store(x + c + r * stride, load(x + c + r * stride) - mean);
    }
}

/* Rows whose products are summed at once. GROUP x GROUP sums, GROUP rows of one side and one element of the
 * other fill 16 registers. */
enum { GROUP = 3 };

/* The products of rows i .. i+2 with rows j .. j+2. Beyond the last row the last row is repeated. */
static void gram_group(float *gram, int ld, const float *x, ptrdiff_t stride, const ptrdiff_t at[2], int n)
{
    const float *a[GROUP], *b[GROUP];
    Vec sum[GROUP][GROUP] = {{{0}}};
    for (ptrdiff_t r = 0; r < GROUP; r++) {
        a[r] = x + (at[0] + r < n ? at[0] + r : n - 1) * stride;
        b[r] = x + (at[1] + r < n ? at[1] + r : n - 1) * stride;
    }
    for (ptrdiff_t c = 0; c < stride; c += LANES) {
        Vec bc[GROUP];
        UNROLL for (int s = 0; s < GROUP; s++) bc[s] = load(b[s] + c);
        UNROLL for (int r = 0; r < GROUP; r++)
        {
            Vec ac = load(a[r] + c);
            UNROLL for (int s = 0; s < GROUP; s++) sum[r][s] = fmadd(ac, bc[s], sum[r][s]);
        }
    }
    for (ptrdiff_t r = 0; r < GROUP && at[0] + r < n; r++)
        for (ptrdiff_t s = 0; s < GROUP && at[1] + s <= at[0] + r; s++)
            gram[(at[0] + r) * ld + at[1] + s] = sum_lanes(sum[r][s]);
}

void gram_rows(float *gram, int ld, const float *x, int stride, int n)
{
    for (ptrdiff_t i = 0; i < n; i += GROUP)
        for (ptrdiff_t j = 0; j <= i; j += GROUP)
            gram_group(gram, ld, x, stride, (const ptrdiff_t[]){i, j}, n);
}

float residual_rows(const float *x, int stride, int m, const float *y)
{
    Vec sum = {0};
    for (ptrdiff_t c = 0; c < stride; c += LANES) {
        Vec d = load(x + c + (ptrdiff_t)m * stride);
        for (ptrdiff_t r = 0; r < m; r++)
            d = fmadd(splat(-y[r]), load(x + c + r * stride), d);
        sum = fmadd(d, d, sum);
    }
    return sum_lanes(sum);
}

/* The map is made in squares of at most SQUARE x SQUARE cells, row by row. Two rows of the square in each
 * reference stay in a cache; one of them serves the next row of cells. With 5 references these are 2 x 5 x 32
 * cells of 384 channels, 0.25 MB; with 40 references 2 MB. */
enum { SQUARE = 32, LEAST_SQUARE = 8 };

static int squares(int cells, int side)
{
    return (cells + side - 1) / side;
}

/* Squares are smaller if threads would otherwise be idle. */
static int square_side(const Objects *q, int n_threads)
{
    int side = SQUARE;
    while (side > LEAST_SQUARE && squares(q->grid_h, side) * squares(q->grid_w, side) < 2 * n_threads)
        side /= 2;
    return side;
}

static void measure_square(float *map, const AmmInput *input, const AmmWork *work, int square, int side)
{
    const Objects *q = &input->comparison->query;
    const ptrdiff_t n_cells = grid_cells(q);
    const int y0 = square / squares(q->grid_w, side) * side, x0 = square % squares(q->grid_w, side) * side;
    for (int i = 0; i < q->n; i++)
        for (int y = y0; y < y0 + side && y < q->grid_h; y++)
            for (int x = x0; x < x0 + side && x < q->grid_w; x++) {
                const ptrdiff_t p = (ptrdiff_t)y * q->grid_w + x;
                const float w = input->claimed[i * n_cells + p];
                if (w > 0)
                    map[p] += w * amm_distance_at(input, work, i, x, y);
            }
}

/* Each thread has its own workspace and takes every n_threads-th square. So the squares of an object in a
 * corner are divided among the threads. Cells are independent, so the bits do not depend on the number of
 * threads. */
int amm_structural(float *map, const AmmInput *input, Error *err)
{
    const Objects *q = &input->comparison->query;
    const int k = input->comparison->k, n_threads = thread_team_size(), side = square_side(q, n_threads);
    const int n_squares = squares(q->grid_h, side) * squares(q->grid_w, side);
    Arena count = {0};
    AmmWork work;
    layout_amm(&work, &count, k, q->channels);
    char *memory = aligned_array(n_threads, count.used);
    if (!memory)
        return fail_memory(err, "the structural map", n_threads * count.used);
    memset(map, 0, grid_cells(q) * sizeof *map);
#pragma omp parallel for schedule(static, 1) private(work)
    for (int t = 0; t < n_threads; t++) {
        Arena arena = {memory + t * count.used, count.used, 0};
        layout_amm(&work, &arena, k, q->channels);
        for (int s = t; s < n_squares; s += n_threads)
            measure_square(map, input, &work, s, side);
    }
    free(memory);
    return 0;
}
