/* featup.c - FeatUp's joint bilateral upsampling (METHOD.md 3 [block]).
 *
 * Follows mhamilton723/FeatUp, featup/upsamplers.py, JBUStack and JBULearnedRange. Each stage doubles the
 * features' size and takes the edges from the image:
 *
 *     features [h][w][c], guidance [2h][2w][3] (the image, average-pooled) --> features [2h][2w][c]
 *
 *     range(y,x)[tap]  = softmax over the 7x7 taps of t * <proj(y+dy, x+dx), proj(y,x)>; proj = MLP(guidance)
 *     kernel(y,x)      = range * gaussian(dy,dx), normalised to sum 1
 *     kernel          += 0.1 * fixup([kernel, guidance(y,x)])             (not normalised again)
 *     output(y,x)      = sum over taps of kernel(y,x)[tap] * bicubic_x2(features)(y+dy, x+dx)
 *
 * with the enlarged features mirrored at the borders.
 *
 * How we compute the last line. Bicubic enlargement is linear, so kernel and enlargement can be multiplied
 * together first: each of the 7 enlarged rows around row y is a mixture of small rows, all of them among
 * m-3 .. m+3 with m = y/2, hence a 7x7 kernel on the enlarged image is a 7x7 kernel on the small one,
 *
 *     folded[i][j] = sum over dy, dx of kernel[dy][dx] * mix_y[dy][i] * mix_x[dx][j].
 *
 * The same 49 products a channel as before, but the enlarged image never exists, and the four outputs
 * (2m,2n) (2m,2n+1) (2m+1,2n) (2m+1,2n+1) read the same 49 small pixels, so that each value that is
 * loaded serves four sums. Mirroring and clamping at the borders go into mix_y and mix_x.
 *
 * Threads divide the rows of the output. Rows share nothing and no sum is divided, so the bits do not
 * depend on the number of threads. */
#include "featup.h"
#include "io/fail.h"
#include "fast/simd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RADIUS = 3, SIDE = 2 * RADIUS + 1, TAPS = SIDE * SIDE };
enum { PADDED_SIDE = 8 };     /* SIDE rounded up for the vector unit; what is beyond SIDE is zero */
enum { FIXUP_IN = TAPS + 3 }; /* kernel and guidance */
enum { MAX_KEY_DIM = 128 };   /* 32 in every published stack */
enum { COLUMNS = 32, COLUMNS2 = 2 * COLUMNS }; /* columns, small and enlarged, that are worked on at a time */

typedef struct Stage {
    int key_dim;
    float temperature;                        /* clamp(exp(range_temp), 1e-4, 1e4) */
    float spatial[TAPS];                      /* exp(-(x^2+y^2) / (2 sigma^2)) */
    const float *range0_weight, *range0_bias; /* [key_dim][3] */
    const float *range3_weight, *range3_bias; /* [key_dim][key_dim] */
    const float *fixup0_weight, *fixup0_bias; /* [49][52] */
    const float *fixup3_weight, *fixup3_bias; /* [49][49] */
} Stage;

struct Featup {
    int n_stages;
    Stage stages[FEATUP_MAX_STAGES];
    int fixup_dim;                          /* channels of the stack's last fixup, 0: none in the file */
    const float *fixup_weight, *fixup_bias; /* [fixup_dim][fixup_dim] */
};

/* ---- the weights --------------------------------------------------------------------------------------*/

/* JBUStack is saved on its own, inside an upsampler, or inside a Lightning model: whatever stands before
 * "up1.range_temp" stands before every name. */
static int find_prefix(char *prefix, size_t size, const Safetensors *st, Error *err)
{
    static const char first[] = "up1.range_temp";
    for (size_t i = 0; i < st_count(st); i++) {
        const char *name = st_at(st, i)->name;
        size_t length = strlen(name), n = length - strlen(first);
        if (length < strlen(first) || strcmp(name + n, first) != 0 || n >= size)
            continue;
        memcpy(prefix, name, n);
        prefix[n] = '\0';
        return 0;
    }
    return fail(err, "%s: no tensor up1.range_temp: not a FeatUp JBU stack", st_path(st));
}

/* Where a stage's tensors are: PREFIXupN.NAME */
typedef struct StageLoader {
    Safetensors *st;
    const char *prefix;
    int number;
    Error *err;
} StageLoader;

static const float *take(const StageLoader *l, int n_dims, const int64_t *shape, const char *name)
{
    return st_weight(l->st, l->err, n_dims, shape, "%sup%d.%s", l->prefix, l->number, name);
}

static const StTensor *find(const StageLoader *l, const char *name)
{
    char full_name[160];
    snprintf(full_name, sizeof full_name, "%sup%d.%s", l->prefix, l->number, name);
    return st_find(l->st, full_name);
}

/* The scalars are saved with shape [] by the official code and with [1] by others. */
static int take_scalar(float *value, const StageLoader *l, const char *name)
{
    const StTensor *tensor = find(l, name);
    const float *data = take(l, tensor && tensor->n_dims == 0 ? 0 : 1, (int64_t[]){1}, name);
    if (!data)
        return -1;
    if (!isfinite(*data))
        return fail(l->err, "%s: tensor %s is not finite", st_path(l->st), tensor->name);
    *value = *data;
    return 0;
}

static int load_stage(Stage *stage, Safetensors *st, const char *prefix, int number, Error *err)
{
    const StageLoader l = {.st = st, .prefix = prefix, .number = number, .err = err};
    const StTensor *proj = find(&l, "range_proj.0.weight");
    const int64_t keys = proj && proj->n_dims == 4 ? proj->shape[0] : 32;
    float log_temperature, sigma;
    if (keys < 1 || keys > MAX_KEY_DIM)
        return fail(err, "%s: tensor %s has %lld keys, expected 1 to %d", st_path(st), proj->name,
                    (long long)keys, MAX_KEY_DIM);
    stage->key_dim = (int)keys;
    if (take_scalar(&log_temperature, &l, "range_temp") || take_scalar(&sigma, &l, "sigma_spatial"))
        return -1;
    const float twice_variance = 2 * sigma * sigma; /* what it is divided by; of a tiny sigma it is 0 too */
    if (twice_variance == 0)
        return fail(err, "%s: tensor %sup%d.sigma_spatial is %g, too near to 0", st_path(st), prefix, number,
                    (double)sigma);
    if (!(stage->range0_weight = take(&l, 4, (int64_t[]){keys, 3, 1, 1}, "range_proj.0.weight")) ||
        !(stage->range0_bias = take(&l, 1, (int64_t[]){keys}, "range_proj.0.bias")) ||
        !(stage->range3_weight = take(&l, 4, (int64_t[]){keys, keys, 1, 1}, "range_proj.3.weight")) ||
        !(stage->range3_bias = take(&l, 1, (int64_t[]){keys}, "range_proj.3.bias")) ||
        !(stage->fixup0_weight = take(&l, 4, (int64_t[]){TAPS, FIXUP_IN, 1, 1}, "fixup_proj.0.weight")) ||
        !(stage->fixup0_bias = take(&l, 1, (int64_t[]){TAPS}, "fixup_proj.0.bias")) ||
        !(stage->fixup3_weight = take(&l, 4, (int64_t[]){TAPS, TAPS, 1, 1}, "fixup_proj.3.weight")) ||
        !(stage->fixup3_bias = take(&l, 1, (int64_t[]){TAPS}, "fixup_proj.3.bias")))
        return -1;

    stage->temperature = fminf(fmaxf(expf(log_temperature), 1e-4f), 1e4f);
    for (int tap = 0; tap < TAPS; tap++) {
        float y = (float)(tap / SIDE - RADIUS) / RADIUS, x = (float)(tap % SIDE - RADIUS) / RADIUS;
        stage->spatial[tap] = expf(-(x * x + y * y) / twice_variance);
    }
    return 0;
}

/* fixup_proj.1 belongs to one backbone's channels; a file may have left it out. */
static int load_final_fixup(Featup *featup, Safetensors *st, const char *prefix, Error *err)
{
    char name[160];
    snprintf(name, sizeof name, "%sfixup_proj.1.weight", prefix);
    const StTensor *tensor = st_find(st, name);
    if (!tensor)
        return 0;
    const int64_t dim = tensor->n_dims == 4 ? tensor->shape[0] : -1;
    if (dim > 65536)
        return fail(err, "%s: tensor %s is for %lld channels, expected at most 65536", st_path(st), name,
                    (long long)dim);
    featup->fixup_weight = st_f32(st, name, 4, (int64_t[]){dim, dim, 1, 1}, err);
    if (!featup->fixup_weight)
        return -1;
    featup->fixup_bias = st_weight(st, err, 1, (int64_t[]){dim}, "%sfixup_proj.1.bias", prefix);
    featup->fixup_dim = (int)dim;
    return featup->fixup_bias ? 0 : -1;
}

static int load_stack(Featup *featup, Safetensors *st, Error *err)
{
    char prefix[96], name[160];
    if (find_prefix(prefix, sizeof prefix, st, err))
        return -1;
    while (featup->n_stages < FEATUP_MAX_STAGES) {
        snprintf(name, sizeof name, "%sup%d.range_temp", prefix, featup->n_stages + 1);
        if (!st_find(st, name))
            break;
        if (load_stage(&featup->stages[featup->n_stages], st, prefix, featup->n_stages + 1, err))
            return -1;
        featup->n_stages++;
    }
    return load_final_fixup(featup, st, prefix, err);
}

Featup *featup_open(Safetensors *weights, Error *err)
{
    Featup *featup = calloc(1, sizeof *featup);
    if (!featup) {
        fail_memory(err, "the FeatUp stack's table of weights", sizeof *featup);
        return NULL;
    }
    if (load_stack(featup, weights, err)) {
        free(featup);
        return NULL;
    }
    return featup;
}

void featup_close(Featup *featup)
{
    free(featup);
}

int featup_stages(const Featup *featup)
{
    return featup->n_stages;
}

/* ---- one axis: mirror, then bicubic x2 ----------------------------------------------------------------*/

/* How the 7 enlarged pixels around one enlarged pixel p are mixed from the small pixels p/2-3 .. p/2+3. */
typedef struct Mix {
    float weight[SIDE][PADDED_SIDE]; /* [enlarged tap][small tap] */
} Mix;

/* 'reflect': ... 2 1 | 0 1 2 ... n-1 | n-2 ...; repeated where the image is smaller than the radius (the
 * official code refuses those). */
static int reflect(int i, int n)
{
    while (i < 0 || i >= n)
        i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
}

static int clamp_index(int i, int n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

/* Bicubic weights (Keys, a = -0.75, as torch) of the four small pixels around an enlarged one, which lies t
 * after the second of them. */
static void bicubic_weights(float weight[4], float t)
{
    const float a = -0.75f;
    for (int k = 0; k < 4; k++) {
        float d = fabsf(t - (float)(k - 1));
        weight[k] = d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : (((d - 5) * d + 8) * d - 4) * a;
    }
}

/* mix[2n]. Enlarged pixel q lies at (q + 0.5)/2 - 0.5 on the small grid: a quarter before small pixel q/2
 * when q is even, a quarter after it when q is odd. All that is read lies within p/2-3 .. p/2+3, since
 * mirroring and clamping only move inwards. */
static void make_mix(Mix *mix, int n)
{
    memset(mix, 0, 2 * (size_t)n * sizeof *mix);
    for (int p = 0; p < 2 * n; p++)
        for (int tap = 0; tap < SIDE; tap++) {
            int q = reflect(p + tap - RADIUS, 2 * n);
            int left = (q + 1) / 2 - 1; /* floor((q + 0.5)/2 - 0.5) */
            float weight[4];
            bicubic_weights(weight, q % 2 ? 0.25f : 0.75f);
            for (int k = 0; k < 4; k++)
                mix[p].weight[tap][clamp_index(left - 1 + k, n) - (p / 2 - RADIUS)] += weight[k];
        }
}

/* ---- the kernels --------------------------------------------------------------------------------------*/

/* What the rows of one stage share. */
typedef struct Job {
    const Stage *stage;
    const float *source; /* [h][w][c] */
    float *out;          /* [2h][2w][c] */
    int h, w, c;
    float *guidance;    /* [2h][2w][3] */
    float *keys;        /* [2h][key_dim][2w + 2*RADIUS]: channel by channel, mirrored to both sides, so that
                              the neighbours of a run of pixels are a run of floats */
    Mix *mix_y, *mix_x; /* [2h], [2w] */
} Job;

static size_t key_row_floats(const Job *job)
{
    return 2 * (size_t)job->w + 2 * RADIUS;
}

/* keys of row y = conv1x1(GELU(conv1x1(guidance))), transposed and mirrored */
static void make_key_row(const Job *job, int y)
{
    const Stage *s = job->stage;
    const int w2 = 2 * job->w, dim = s->key_dim;
    const size_t stride = key_row_floats(job);
    float *row = job->keys + (size_t)y * (size_t)dim * stride;
    float hidden[COLUMNS2 * MAX_KEY_DIM], keys[COLUMNS2 * MAX_KEY_DIM];
    for (int x0 = 0; x0 < w2; x0 += COLUMNS2) {
        const int n = w2 - x0 < COLUMNS2 ? w2 - x0 : COLUMNS2;
        const float *guidance = job->guidance + ((size_t)y * (size_t)w2 + (size_t)x0) * 3;
        linear(hidden, guidance, s->range0_weight, s->range0_bias, n, dim, 3);
        gelu(hidden, (size_t)n * (size_t)dim);
        linear(keys, hidden, s->range3_weight, s->range3_bias, n, dim, dim);
        for (int k = 0; k < dim; k++)
            for (int i = 0; i < n; i++)
                row[(size_t)k * stride + (size_t)(RADIUS + x0 + i)] = keys[i * dim + k];
    }
    for (int k = 0; k < dim; k++) {
        float *line = row + (size_t)k * stride + RADIUS;
        for (int i = 1; i <= RADIUS; i++) {
            line[-i] = line[reflect(-i, w2)];
            line[w2 - 1 + i] = line[reflect(w2 - 1 + i, w2)];
        }
    }
}

/* similarity[dx][i] = <key(y+dy, x0+i+dx), key(y, x0+i)> for the 7 dx and a tile of pixels */
static void similarity_row(float similarity[SIDE][COLUMNS2], const Job *job, int y, int dy, int x0, int n)
{
    const int dim = job->stage->key_dim;
    const size_t stride = key_row_floats(job);
    const float *centre = job->keys + (size_t)y * (size_t)dim * stride + (size_t)(x0 + RADIUS);
    const float *other = job->keys + (size_t)reflect(y + dy, 2 * job->h) * (size_t)dim * stride + (size_t)x0;
    memset(similarity, 0, sizeof(float) * SIDE * COLUMNS2);
    for (int k = 0; k < dim; k++, centre += stride, other += stride)
        for (int dx = 0; dx < SIDE; dx++)
            for (int i = 0; i < n; i++)
                similarity[dx][i] += other[i + dx] * centre[i];
}

/* kernels[n][49] of the pixels x0 .. x0+n-1 in enlarged row y: range x spatial, normalised, plus the fixup */
static void make_kernels(float *kernels, const Job *job, int y, int x0, int n)
{
    const Stage *s = job->stage;
    const float *guidance = job->guidance + ((size_t)y * 2 * (size_t)job->w + (size_t)x0) * 3;
    float similarity[SIDE][COLUMNS2], input[COLUMNS2 * FIXUP_IN], hidden[COLUMNS2 * TAPS];

    for (int dy = 0; dy < SIDE; dy++) {
        similarity_row(similarity, job, y, dy - RADIUS, x0, n);
        for (int i = 0; i < n; i++)
            for (int dx = 0; dx < SIDE; dx++)
                kernels[i * TAPS + dy * SIDE + dx] = s->temperature * similarity[dx][i];
    }
    softmax_rows(kernels, n, TAPS);
    for (int i = 0; i < n; i++) {
        float *kernel = kernels + i * TAPS, sum = 0;
        for (int tap = 0; tap < TAPS; tap++)
            sum += kernel[tap] *= s->spatial[tap];
        sum = fmaxf(sum, 1e-7f);
        for (int tap = 0; tap < TAPS; tap++)
            input[i * FIXUP_IN + tap] = kernel[tap] / sum;
        memcpy(input + i * FIXUP_IN + TAPS, guidance + 3 * i, 3 * sizeof(float));
    }
    linear(hidden, input, s->fixup0_weight, s->fixup0_bias, n, TAPS, FIXUP_IN);
    gelu(hidden, (size_t)n * TAPS);
    linear(kernels, hidden, s->fixup3_weight, s->fixup3_bias, n, TAPS, TAPS);
    for (int i = 0; i < n; i++)
        for (int tap = 0; tap < TAPS; tap++)
            kernels[i * TAPS + tap] = input[i * FIXUP_IN + tap] + 0.1f * kernels[i * TAPS + tap];
}

/* A small pixel's window with the weights of its four outputs beside each other. */
typedef struct Folded {
    float weight[SIDE][SIDE][4]; /* [small row][small column][output: 00 01 10 11] */
} Folded;

/* folded.weight[.][.][output] = mix_y^T kernel mix_x */
static void fold_kernel(Folded *folded, int output, const float *kernel, const Mix *mix_y, const Mix *mix_x)
{
    float padded[SIDE][PADDED_SIDE] = {{0}}, half[PADDED_SIDE], row[PADDED_SIDE];
    for (int dy = 0; dy < SIDE; dy++)
        memcpy(padded[dy], kernel + dy * SIDE, SIDE * sizeof(float));
    for (int i = 0; i < SIDE; i++) {
        memset(half, 0, sizeof half);
        memset(row, 0, sizeof row);
        for (int dy = 0; dy < SIDE; dy++)
            for (int dx = 0; dx < PADDED_SIDE; dx++)
                half[dx] += mix_y->weight[dy][i] * padded[dy][dx];
        for (int dx = 0; dx < SIDE; dx++)
            for (int j = 0; j < PADDED_SIDE; j++)
                row[j] += half[dx] * mix_x->weight[dx][j];
        for (int j = 0; j < SIDE; j++)
            folded->weight[i][j][output] = row[j];
    }
}

/* ---- the weighted sum ---------------------------------------------------------------------------------*/

/* The part of a window that lies inside the small image, and where the four sums go. */
typedef struct Window {
    const float *first;          /* channels of the first pixel */
    size_t row_stride, channels; /* in floats */
    int n_rows, n_columns;
    const float (*weight)[SIDE][4]; /* of that first pixel */
    float *out[4];                  /* [c] each */
} Window;

/* Vectors of channels that are summed at once: 4 x VECS sums and what they are made of fill the registers, of
 * which AVX-512 has 32 and others 16. */
enum { VECS = LANES == 16 ? 4 : 2 };

/* out[k][c0 .. c0 + n_vecs*LANES) = sum over the window of weight[k] * pixel. n_vecs is a constant where
 * this is inlined, so that 4 x n_vecs sums stay in registers. */
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

/* The four outputs (2m..2m+1, 2n..2n+1) as weighted sums of the small pixels around (m, n) */
static void adaptive_conv(const Job *job, const Folded *folded, int m, int n)
{
    const size_t c = (size_t)job->c, out_row = 2 * (size_t)job->w * c;
    const int y0 = m > RADIUS ? m - RADIUS : 0, y1 = m + RADIUS < job->h ? m + RADIUS + 1 : job->h;
    const int x0 = n > RADIUS ? n - RADIUS : 0, x1 = n + RADIUS < job->w ? n + RADIUS + 1 : job->w;
    float *out = job->out + 2 * (size_t)m * out_row + 2 * (size_t)n * c;
    const Window window = {
        .first = job->source + ((size_t)y0 * (size_t)job->w + (size_t)x0) * c,
        .row_stride = (size_t)job->w * c,
        .channels = c,
        .n_rows = y1 - y0,
        .n_columns = x1 - x0,
        .weight = (const float(*)[SIDE][4]) & folded->weight[y0 - (m - RADIUS)][x0 - (n - RADIUS)],
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

/* ---- stages and stack ---------------------------------------------------------------------------------*/

/* Enlarged rows 2m and 2m+1, a tile of columns at a time, so that the kernels stay in the nearest cache. */
static void upsample_row_pair(const Job *job, int m)
{
    Folded folded[COLUMNS];
    float kernels[COLUMNS2 * TAPS];
    for (int n0 = 0; n0 < job->w; n0 += COLUMNS) {
        const int n_tile = job->w - n0 < COLUMNS ? job->w - n0 : COLUMNS;
        for (int row = 0; row < 2; row++) {
            make_kernels(kernels, job, 2 * m + row, 2 * n0, 2 * n_tile);
            for (int i = 0; i < 2 * n_tile; i++)
                fold_kernel(&folded[i / 2], 2 * row + i % 2, kernels + i * TAPS, &job->mix_y[2 * m + row],
                            &job->mix_x[2 * n0 + i]);
        }
        for (int i = 0; i < n_tile; i++)
            adaptive_conv(job, &folded[i], m, n0 + i);
    }
}

/* guidance [3][gh][gw] -> job->guidance [2h][2w][3]; plane [2h][2w] is scratch */
static void pool_guidance(const Job *job, float *plane, const float *guidance, int gh, int gw)
{
    const size_t n = 4 * (size_t)job->h * (size_t)job->w;
    for (int channel = 0; channel < 3; channel++) {
        adaptive_avg_pool(plane, 2 * job->h, 2 * job->w, guidance + (size_t)channel * (size_t)gh * (size_t)gw,
                          gh, gw, 1);
        for (size_t i = 0; i < n; i++)
            job->guidance[3 * i + (size_t)channel] = plane[i];
    }
}

static void upsample_stage(const Job *job, float *plane, const float *guidance, int gh, int gw)
{
    pool_guidance(job, plane, guidance, gh, gw);
    make_mix(job->mix_y, job->h);
    make_mix(job->mix_x, job->w);
#pragma omp parallel for schedule(static)
    for (int y = 0; y < 2 * job->h; y++)
        make_key_row(job, y);
#pragma omp parallel for schedule(dynamic)
    for (int m = 0; m < job->h; m++)
        upsample_row_pair(job, m);
}

/* out += 0.1 * conv1x1(out), a row at a time; row [w][c] is scratch */
static void final_fixup(const Featup *f, float *out, int h, int w, int c, float *row)
{
    const size_t n = (size_t)w * (size_t)c;
    for (int y = 0; y < h; y++, out += n) {
        linear(row, out, f->fixup_weight, f->fixup_bias, w, c, c);
        for (size_t i = 0; i < n; i++)
            out[i] += 0.1f * row[i];
    }
}

/* Scratch of a whole call, sized for its last stage, whose input is h x w: laid out twice (tensor.h). */
typedef struct Scratch {
    float *guidance, *keys, *plane, *row;
    Mix *mix_y, *mix_x;
    float *between[2]; /* features between the stages: the last stage's input, and the one's before */
} Scratch;

static void lay_out(Scratch *s, Arena *arena, size_t h, size_t w, size_t c, size_t key_dim, int stages,
                    int with_fixup)
{
    s->guidance = arena_floats(arena, 4 * h * w * 3);
    s->plane = arena_floats(arena, 4 * h * w);
    s->keys = arena_floats(arena, 2 * h * key_dim * (2 * w + 2 * RADIUS));
    s->mix_y = arena_take(arena, 2 * h * sizeof(Mix));
    s->mix_x = arena_take(arena, 2 * w * sizeof(Mix));
    s->between[0] = stages > 1 ? arena_floats(arena, h * w * c) : NULL;
    s->between[1] = stages > 2 ? arena_floats(arena, h / 2 * (w / 2) * c) : NULL;
    s->row = with_fixup ? arena_floats(arena, 2 * w * c) : NULL;
}

int featup_upsample(const Featup *featup, float *out, const float *features, int h, int w, int c,
                    const float *guidance, int gh, int gw, int stages, Error *err)
{
    if (stages < 0 || stages > FEATUP_MAX_STAGES || (featup && stages > featup->n_stages))
        return fail(err, "option featup-stages: %d are asked for, these weights have %d", stages,
                    featup ? featup->n_stages : FEATUP_MAX_STAGES);
    if (h < 1 || w < 1 || c < 1 || h > 1 << 16 || w > 1 << 16 || c > 1 << 16)
        return fail(err, "features of %d x %d x %d cannot be upsampled, expected 1 to 65536 each", h, w, c);
    if (!featup || stages == 0) {
        interpolate_bilinear(out, h << stages, w << stages, features, h, w, c, 0, 0);
        return 0;
    }

    const int last_h = h << (stages - 1), last_w = w << (stages - 1);
    const int with_fixup = stages == FEATUP_MAX_STAGES && featup->fixup_dim == c;
    int key_dim = 0;
    for (int i = 0; i < stages; i++)
        if (featup->stages[i].key_dim > key_dim)
            key_dim = featup->stages[i].key_dim;
    Scratch s;
    Arena arena = {0};
    lay_out(&s, &arena, (size_t)last_h, (size_t)last_w, (size_t)c, (size_t)key_dim, stages, with_fixup);
    if (arena_allocate(&arena))
        return fail_memory(err, "FeatUp's activations", arena.size);
    lay_out(&s, &arena, (size_t)last_h, (size_t)last_w, (size_t)c, (size_t)key_dim, stages, with_fixup);

    const float *source = features;
    for (int i = 0; i < stages; i++) {
        const int remaining = stages - 1 - i; /* 0: the last stage writes the result */
        const Job job = {
            .stage = &featup->stages[i],
            .source = source,
            .h = h << i,
            .w = w << i,
            .c = c,
            .out = remaining == 0 ? out : s.between[(remaining - 1) % 2],
            .guidance = s.guidance,
            .keys = s.keys,
            .mix_y = s.mix_y,
            .mix_x = s.mix_x,
        };
        upsample_stage(&job, s.plane, guidance, gh, gw);
        source = job.out;
    }
    if (with_fixup)
        final_fixup(featup, out, 2 * last_h, 2 * last_w, c, s.row);
    free(arena.base);
    return 0;
}
