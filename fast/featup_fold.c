/* featup_fold.c - the fast form of featup.c: FeatUp without the enlarged features.
 *
 * featup.c enlarges the source bicubically (hr_source) and takes a 7x7 weighted sum of it at each pixel. The
 * enlargement is linear, so kernel and enlargement can be multiplied together first. Each of the 7 enlarged
 * rows around row y is a mixture of source rows. All of these are among m-3 .. m+3 with m = y/2. So a 7x7
 * kernel on the enlarged features is a 7x7 kernel on the source:
 *
 *     folded[i][j] = sum over dy, dx of kernel[dy][dx] * mix_y[dy][i] * mix_x[dx][j]
 *
 * There are as many products as before, 49 a channel, but hr_source never exists. The four outputs (2m,2n)
 * (2m,2n+1) (2m+1,2n) (2m+1,2n+1) read the same 49 source pixels. So each loaded value serves four sums.
 * Mirroring and clamping at the borders are part of mix_y and mix_x. Only the rounding differs from featup.c.
 *
 * features_to_grid folds too: bilinear enlargement and pooling are one small matrix for each axis.
 *
 * Threads divide the rows of the output. Rows are independent and no sum is divided, so the bits do not
 * depend on the number of threads. */
#include "featup.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/simd.h"
#include "io/fail.h"

enum { RADIUS = FEATUP_RADIUS, DIAMETER = FEATUP_DIAMETER, TAPS = FEATUP_TAPS };
enum { PADDED = 8 };                           /* DIAMETER rounded up for the vector unit; the rest is zero */
enum { FIXUP_IN = TAPS + 3 };                  /* kernel and guidance. */
enum { COLUMNS = 32, COLUMNS2 = 2 * COLUMNS }; /* columns of a tile: of the source, and enlarged. */

/* ---- one axis: mirror, then bicubic x2 ----------------------------------------------------------------*/

/* The 7 enlarged pixels around one enlarged pixel p, as mixtures of the source pixels p/2-3 .. p/2+3. */
typedef struct Mix {
    float weight[DIAMETER][PADDED]; /* [enlarged tap][source tap] */
} Mix;

static int clamp_index(int i, int n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

/* Bicubic weights (Keys, a = -0.75, as torch) of the four source pixels around an enlarged one. The enlarged
 * pixel lies t after the second of them. */
static void bicubic_weights(float weight[4], float t)
{
    const float a = -0.75f;
    for (int k = 0; k < 4; k++) {
        float d = fabsf(t - (float)(k - 1));
        weight[k] = d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : (((d - 5) * d + 8) * d - 4) * a;
    }
}

/* mix[2n]. Enlarged pixel q lies at (q + 0.5)/2 - 0.5 on the source. That is a quarter before source pixel
 * q/2 if q is even, a quarter after it if q is odd. Mirroring and clamping only move inwards, so all reads
 * lie within p/2-3 .. p/2+3. */
static void make_mix(Mix *mix, int n)
{
    memset(mix, 0, 2 * (size_t)n * sizeof *mix);
    for (int p = 0; p < 2 * n; p++)
        for (int tap = 0; tap < DIAMETER; tap++) {
            int q = featup_reflect(p + tap - RADIUS, 2 * n);
            int left = (q + 1) / 2 - 1; /* floor((q + 0.5)/2 - 0.5) */
            float weight[4];
            bicubic_weights(weight, q % 2 ? 0.25f : 0.75f);
            for (int k = 0; k < 4; k++)
                mix[p].weight[tap][clamp_index(left - 1 + k, n) - (p / 2 - RADIUS)] += weight[k];
        }
}

/* ---- the kernels, a tile of pixels at a time ----------------------------------------------------------*/

/* The window of a source pixel, with the weights of its four outputs side by side. */
typedef struct Folded {
    float weight[DIAMETER][DIAMETER][4]; /* [source row][source column][output: 00 01 10 11] */
} Folded;

/* A thread's tile. */
typedef struct Buffers {
    float hidden[COLUMNS2 * FEATUP_MAX_KEY_DIM], keys[COLUMNS2 * FEATUP_MAX_KEY_DIM];
    float kernels[COLUMNS2 * TAPS], input[COLUMNS2 * FIXUP_IN], fixup[COLUMNS2 * TAPS];
    Folded folded[COLUMNS];
} Buffers;

/* One stage; all its rows share these data. */
typedef struct Job {
    const JbuLearnedRange *up;
    float range_factor, spatial_kernel[TAPS];
    int h, w, channels;  /* of the source. */
    const float *source; /* [h][w][channels] */
    float *guidance;     /* [2h][2w][3] */
    float *plane;        /* [2h][2w] scratch of the pooling. */
    float *keys;         /* proj_x as [2h][key_dim][2w + 2*RADIUS], channel by channel. Each row is mirrored
                            to both sides, so the neighbours of a run of pixels are a run of floats. */
    Mix *mix_y, *mix_x;  /* [2h], [2w] */
    float *result;       /* [2h][2w][channels] */
    Buffers *buffers;    /* [threads] */
} Job;

static size_t key_row_floats(const Job *job)
{
    return 2 * (size_t)job->w + 2 * RADIUS;
}

/* keys of row y = range_proj(guidance), transposed and mirrored. */
static void make_key_row(const Job *job, int y)
{
    const JbuLearnedRange *up = job->up;
    const int w2 = 2 * job->w, dim = up->key_dim;
    const size_t stride = key_row_floats(job);
    float *row = job->keys + (size_t)y * (size_t)dim * stride;
    Buffers *own = &job->buffers[thread_number()];
    float *hidden = own->hidden, *keys = own->keys;
    for (int x0 = 0; x0 < w2; x0 += COLUMNS2) {
        const int n = w2 - x0 < COLUMNS2 ? w2 - x0 : COLUMNS2;
        const float *guidance = job->guidance + ((size_t)y * (size_t)w2 + (size_t)x0) * 3;
        linear_layer(hidden, guidance, &up->range_proj[0], n);
        gelu(hidden, (size_t)n * (size_t)dim);
        linear_layer(keys, hidden, &up->range_proj[1], n);
        for (int k = 0; k < dim; k++)
            for (int i = 0; i < n; i++)
                row[(size_t)k * stride + (size_t)(RADIUS + x0 + i)] = keys[i * dim + k];
    }
    for (int k = 0; k < dim; k++) {
        float *line = row + (size_t)k * stride + RADIUS;
        for (int i = 1; i <= RADIUS; i++) {
            line[-i] = line[featup_reflect(-i, w2)];
            line[w2 - 1 + i] = line[featup_reflect(w2 - 1 + i, w2)];
        }
    }
}

/* similarity[dx][i] = <key(y+dy, x0+i+dx), key(y, x0+i)> for the 7 dx and a tile of pixels. */
static void similarity_row(float similarity[DIAMETER][COLUMNS2], const Job *job, int y, int dy, int x0, int n)
{
    const int dim = job->up->key_dim;
    const size_t stride = key_row_floats(job);
    const float *centre = job->keys + (size_t)y * (size_t)dim * stride + (size_t)(x0 + RADIUS);
    const float *other =
        job->keys + (size_t)featup_reflect(y + dy, 2 * job->h) * (size_t)dim * stride + (size_t)x0;
    memset(similarity, 0, sizeof(float) * DIAMETER * COLUMNS2);
    for (int k = 0; k < dim; k++, centre += stride, other += stride)
        for (int dx = 0; dx < DIAMETER; dx++)
            for (int i = 0; i < n; i++)
                similarity[dx][i] += other[i + dx] * centre[i];
}

/* combined_kernel [n][49] of the pixels x0 .. x0+n-1 in enlarged row y: range x spatial, normalised, plus the
 * fixup. */
static void make_kernels(Buffers *own, const Job *job, int y, int x0, int n)
{
    float *kernels = own->kernels, *input = own->input, *hidden = own->fixup;
    const float *guidance = job->guidance + ((size_t)y * 2 * (size_t)job->w + (size_t)x0) * 3;
    float similarity[DIAMETER][COLUMNS2];
    for (int dy = 0; dy < DIAMETER; dy++) {
        similarity_row(similarity, job, y, dy - RADIUS, x0, n);
        for (int i = 0; i < n; i++)
            for (int dx = 0; dx < DIAMETER; dx++)
                kernels[i * TAPS + dy * DIAMETER + dx] = job->range_factor * similarity[dx][i];
    }
    softmax_rows(kernels, n, TAPS);
    for (int i = 0; i < n; i++) {
        float *kernel = kernels + i * TAPS, sum = 0;
        for (int tap = 0; tap < TAPS; tap++)
            sum += kernel[tap] *= job->spatial_kernel[tap];
        sum = fmaxf(sum, 1e-7f);
        for (int tap = 0; tap < TAPS; tap++)
            input[i * FIXUP_IN + tap] = kernel[tap] / sum;
        memcpy(input + i * FIXUP_IN + TAPS, guidance + 3 * i, 3 * sizeof(float));
    }
    linear_layer(hidden, input, &job->up->fixup_proj[0], n);
    gelu(hidden, (size_t)n * TAPS);
    linear_layer(kernels, hidden, &job->up->fixup_proj[1], n);
    for (int i = 0; i < n; i++)
        for (int tap = 0; tap < TAPS; tap++)
            kernels[i * TAPS + tap] = input[i * FIXUP_IN + tap] + 0.1f * kernels[i * TAPS + tap];
}

/* ---- folding ------------------------------------------------------------------------------------------*/

/* folded.weight[.][.][output] = mix_y^T kernel mix_x. */
static void fold_kernel(Folded *folded, int output, const float *kernel, const Mix *mix_y, const Mix *mix_x)
{
    float padded[DIAMETER][PADDED] = {{0}}, half[PADDED], row[PADDED];
    for (int dy = 0; dy < DIAMETER; dy++)
        memcpy(padded[dy], kernel + dy * DIAMETER, DIAMETER * sizeof(float));
    for (int i = 0; i < DIAMETER; i++) {
        memset(half, 0, sizeof half);
        memset(row, 0, sizeof row);
        for (int dy = 0; dy < DIAMETER; dy++)
            for (int dx = 0; dx < PADDED; dx++)
                half[dx] += mix_y->weight[dy][i] * padded[dy][dx];
        for (int dx = 0; dx < DIAMETER; dx++)
            for (int j = 0; j < PADDED; j++)
                row[j] += half[dx] * mix_x->weight[dx][j];
        for (int j = 0; j < DIAMETER; j++)
            folded->weight[i][j][output] = row[j];
    }
}

/* ---- the weighted sum ---------------------------------------------------------------------------------*/

/* The part of a window that lies inside the source, and the targets of the four sums. */
typedef struct Window {
    const float *first;          /* channels of the first pixel. */
    size_t row_stride, channels; /* in floats */
    int n_rows, n_columns;
    const float (*weight)[DIAMETER][4]; /* of that first pixel. */
    float *out[4];                      /* [channels] each */
} Window;

/* Vectors of channels that are summed at once. 4 x VECS sums and their operands fill the registers: 32 in
 * AVX-512, 16 elsewhere. */
enum { VECS = LANES == 16 ? 4 : 2 };

/* out[k][c0 .. c0 + n_vecs*LANES) = sum over the window of weight[k] * pixel. n_vecs is a constant at each
 * call, so that 4 x n_vecs sums stay in registers. */
INLINE void weigh(const Window *v, size_t c0, const int n_vecs)
{
    Vec sum[4][VECS] = {{{0}}};
    for (int i = 0; i < v->n_rows; i++) {
        const float *pixel = v->first + (size_t)i * v->row_stride + c0;
        for (int j = 0; j < v->n_columns; j++, pixel += v->channels) {
            const float *weight = v->weight[i][j];
            UNROLL for (int l = 0; l < n_vecs; l++)
            {
                const Vec x = load(pixel + l * LANES);
                UNROLL for (int k = 0; k < 4; k++) sum[k][l] = fmadd(splat(weight[k]), x, sum[k][l]);
            }
        }
    }
    UNROLL for (int k = 0; k < 4; k++) UNROLL for (int l = 0; l < n_vecs; l++)
        store(v->out[k] + c0 + l * LANES, sum[k][l]);
}

static void weigh_one_channel(const Window *v, size_t channel)
{
    float sum[4] = {0};
    for (int i = 0; i < v->n_rows; i++)
        for (int j = 0; j < v->n_columns; j++)
            for (int k = 0; k < 4; k++)
                sum[k] += v->weight[i][j][k] *
                          v->first[(size_t)i * v->row_stride + (size_t)j * v->channels + channel];
    for (int k = 0; k < 4; k++)
        v->out[k][channel] = sum[k];
}

/* The four outputs (2m..2m+1, 2n..2n+1) as weighted sums of the source pixels around (m, n). */
static void adaptive_conv(const Job *job, const Folded *folded, int m, int n)
{
    const size_t c = (size_t)job->channels, out_row = 2 * (size_t)job->w * c;
    const int y0 = m > RADIUS ? m - RADIUS : 0, y1 = m + RADIUS < job->h ? m + RADIUS + 1 : job->h;
    const int x0 = n > RADIUS ? n - RADIUS : 0, x1 = n + RADIUS < job->w ? n + RADIUS + 1 : job->w;
    float *out = job->result + 2 * (size_t)m * out_row + 2 * (size_t)n * c;
    const Window window = {
        .first = job->source + ((size_t)y0 * (size_t)job->w + (size_t)x0) * c,
        .row_stride = (size_t)job->w * c,
        .channels = c,
        .n_rows = y1 - y0,
        .n_columns = x1 - x0,
        .weight = (const float(*)[DIAMETER][4]) & folded->weight[y0 - (m - RADIUS)][x0 - (n - RADIUS)],
        .out = {out, out + c, out + out_row, out + out_row + c},
    };
    size_t channel = 0;
    for (; channel + VECS * LANES <= c; channel += VECS * LANES)
        weigh(&window, channel, VECS);
    for (; channel + LANES <= c; channel += LANES)
        weigh(&window, channel, 1);
    for (; channel < c; channel++)
        weigh_one_channel(&window, channel);
}

/* ---- a stage -------------------------------------------------------------------------------------------*/

/* Enlarged rows 2m and 2m+1, a tile of columns at a time. So the kernels stay in the L1 cache. */
static void upsample_row_pair(const Job *job, int m)
{
    Buffers *own = &job->buffers[thread_number()];
    Folded *folded = own->folded;
    for (int n0 = 0; n0 < job->w; n0 += COLUMNS) {
        const int n_tile = job->w - n0 < COLUMNS ? job->w - n0 : COLUMNS;
        for (int row = 0; row < 2; row++) {
            make_kernels(own, job, 2 * m + row, 2 * n0, 2 * n_tile);
            for (int i = 0; i < 2 * n_tile; i++)
                fold_kernel(&folded[i / 2], 2 * row + i % 2, own->kernels + i * TAPS,
                            &job->mix_y[2 * m + row], &job->mix_x[2 * n0 + i]);
        }
        for (int i = 0; i < n_tile; i++)
            adaptive_conv(job, &folded[i], m, n0 + i);
    }
}

/* The buffers of a stage. Called twice (io/memory.h). */
static void layout_job(Job *job, Arena *arena)
{
    const size_t h2 = 2 * (size_t)job->h, w2 = 2 * (size_t)job->w;
    job->guidance = arena_floats(arena, h2 * w2 * 3);
    job->plane = arena_floats(arena, h2 * w2);
    job->keys = arena_floats(arena, h2 * (size_t)job->up->key_dim * key_row_floats(job));
    job->mix_y = arena_take(arena, h2 * sizeof(Mix));
    job->mix_x = arena_take(arena, w2 * sizeof(Mix));
    job->buffers = arena_take(arena, thread_team_size() * sizeof(Buffers));
}

static int upsample_stage(float *result, const JbuLearnedRange *up, const FeatupInput *in, Error *err)
{
    Job job = {
        .up = up, .h = in->h, .w = in->w, .channels = in->channels, .source = in->source, .result = result};
    Arena arena = {0};
    layout_job(&job, &arena);
    if (arena_allocate(&arena))
        return fail_memory(err, "FeatUp's activations", arena.size);
    layout_job(&job, &arena);
    job.range_factor = featup_range_factor(up);
    featup_spatial_kernel(job.spatial_kernel, up);
    featup_pool_guidance(job.guidance, 2 * job.h, 2 * job.w, in, job.plane);
    make_mix(job.mix_y, job.h);
    make_mix(job.mix_x, job.w);
#pragma omp parallel for schedule(static)
    for (int y = 0; y < 2 * job.h; y++)
        make_key_row(&job, y);
#pragma omp parallel for schedule(dynamic)
    for (int m = 0; m < job.h; m++)
        upsample_row_pair(&job, m);
    free(arena.base);
    return 0;
}

int featup_upsample(const Featup *featup, float *out, const FeatupInput *in, int stages, Error *err)
{
    return featup_stack(featup, out, in, stages, upsample_stage, err);
}

/* ---- the maps' grid -----------------------------------------------------------------------------------*/

/* weights [n_out][n_in]: enlarge a column of n_in features to n_up bilinearly, move it back by `back`, then pool
 * it to n_out. If the grid is finer, enlarge it to n_out. The matrix is found by applying these steps to the
 * unit vectors: channel i is 1 in place i. enlarged [n_up][n_in]. */
static void axis_weights(float *weights, int n_out, int n_up, int n_in, int back, int pooled, float *units,
                         float *enlarged)
{
    memset(units, 0, (size_t)n_in * (size_t)n_in * sizeof *units);
    for (int i = 0; i < n_in; i++)
        units[(size_t)i * (size_t)n_in + (size_t)i] = 1;
    interpolate_bilinear(enlarged, n_up, 1, units, n_in, 1, n_in, 0, 0);
    if (back)
        features_move_back(enlarged, n_up, 1, n_in, back);
    if (pooled)
        adaptive_avg_pool(weights, n_out, 1, enlarged, n_up, 1, n_in);
    else
        interpolate_bilinear(weights, n_out, 1, enlarged, n_up, 1, n_in, 0, 0);
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* All steps are linear and act on rows and columns separately. So they are one small matrix for each axis,
 * and the enlarged features are never stored. */
static int bilinear_to_grid(float *grid, GridSize size, const FeatupInput *in, int stages, int back,
                            Error *err)
{
    const int up_h = in->h << stages, up_w = in->w << stages, channels = in->channels;
    const int pooled = size.h <= up_h && size.w <= up_w, width = size.w * channels;
    const size_t n_in = (size_t)larger(in->h, in->w), n_units = n_in * n_in;
    const size_t n_enlarged = n_in * (size_t)larger(up_h, up_w);
    const size_t n_weights = n_in * (size_t)larger(size.h, size.w), n_rows = (size_t)in->h * (size_t)width;
    const size_t n = n_units + n_enlarged + n_weights + n_rows;
    float *units = aligned_array(n, sizeof(float));
    if (!units)
        return fail_memory(err, "features", n * sizeof(float));
    float *enlarged = units + n_units, *weights = enlarged + n_enlarged, *rows = weights + n_weights;
    axis_weights(weights, size.w, up_w, in->w, back, pooled, units, enlarged);
    for (ptrdiff_t y = 0; y < in->h; y++)
        matmul(rows + y * width, channels, weights, in->w, in->source + y * in->w * channels, channels,
               size.w, channels, in->w, 0);
    axis_weights(weights, size.h, up_h, in->h, back, pooled, units, enlarged);
    matmul(grid, width, weights, in->h, rows, width, size.h, width, in->h, 0);
    free(units);
    return 0;
}

int features_to_grid(float *grid, GridSize size, const Featup *featup, const FeatupInput *in, int stages,
                     int back, Error *err)
{
    if (featup_check(featup, in, stages, err))
        return -1;
    if (!featup)
        return bilinear_to_grid(grid, size, in, stages, back, err);
    const int h = in->h << stages, w = in->w << stages;
    const size_t n = (size_t)h * (size_t)w * (size_t)in->channels;
    float *upsampled = aligned_array(n, sizeof *upsampled);
    if (!upsampled)
        return fail_memory(err, "features", n * sizeof *upsampled);
    const int status = featup_upsample(featup, upsampled, in, stages, err);
    if (status == 0 && back)
        features_move_back(upsampled, h, w, in->channels, back);
    if (status == 0)
        features_resize(grid, size, upsampled, h, w, in->channels);
    free(upsampled);
    return status;
}
