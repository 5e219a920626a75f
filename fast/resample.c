/* resample.c - changing the size of images and feature maps: torch's interpolate, average pooling, Gaussian
 * blur, and PIL's resize. Declared in tensor.h. All maps are channel-last, [h][w][channels].
 *
 * Follows, in behaviour, ATen/native/cpu/UpSampleKernel.cpp (PyTorch 1.13 to 2.x), scipy.ndimage's
 * gaussian_filter, and Pillow's libImaging/Resample.c. Coordinates are half-pixel: output i looks at
 * (i + 1/2)·scale - 1/2. What is float in torch is float here, in the same order, since the goldens
 * are compared to the last digits; what is double in Pillow is double here. */
#include "fast/tile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* PIL's coefficients must not gain a bit from a fused multiply-add (gcc obeys -std=c11 by itself). */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

static int clamp_int(int i, int low, int high)
{
    return i < low ? low : i > high ? high : i;
}

/* ---- bilinear and bicubic ----------------------------------------------------------------------*/

/* One output coordinate: which inputs it mixes, and how. */
typedef struct Taps {
    int at[4];
    float weight[4];
} Taps;

/* Inputs per output step: torch's area_pixel_compute_scale. */
static float input_step(int in, int out, double scale_factor)
{
    return scale_factor > 0 ? (float)(1.0 / scale_factor) : (float)in / (float)out;
}

/* The step is a float, the coordinate a double, the weights floats: as torch 1.13 has it on a CPU. */
static double coordinate(int i, float step)
{
    return (double)step * (i + 0.5) - 0.5;
}

void bilinear_places(int at[2], float weight[2], int i, int in, float step)
{
    double real = coordinate(i, step);
    if (!(real > 0))
        real = 0;
    int first = real < in - 1 ? (int)real : in - 1;
    float t = (float)(real - first);
    if (t > 1)
        t = 1;
    at[0] = first, at[1] = min_int(first + 1, in - 1);
    weight[0] = 1 - t, weight[1] = t;
}

static Taps linear_taps(int i, int in, float step)
{
    Taps taps = {{0}, {0}};
    bilinear_places(taps.at, taps.weight, i, in, step);
    return taps;
}

/* Keys' cubic convolution with parameter a: ((a+2)·x - (a+3))·x² + 1 for |x| <= 1, ((a·x - 5a)·x + 8a)·x - 4a
 * for 1 < |x| < 2. With fused multiply-adds, as the compiler of torch makes it: the second cancels, plain
 * float is off by up to 1e-6. */
static float cubic_near(float x, float a)
{
    return fmaf(fmaf(a + 2, x, -(a + 3)) * x, x, 1);
}

static float cubic_far(float x, float a)
{
    return fmaf(fmaf(fmaf(a, x, -5 * a), x, 8 * a), x, -4 * a);
}

static Taps cubic_taps(int i, int in, float step)
{
    const float a = -0.75f;
    double real = coordinate(i, step), whole = floor(real);
    float t = (float)(real - whole);
    /* Beyond the border every tap is the border's pixel, however far. */
    int first = whole < -4 ? -4 : whole > in + 4.0 ? in + 4 : (int)whole;
    Taps taps = {{0}, {cubic_far(t + 1, a), cubic_near(t, a), cubic_near(1 - t, a), cubic_far(1 - t + 1, a)}};
    for (int j = 0; j < 4; j++)
        taps.at[j] = clamp_int(first - 1 + j, 0, in - 1);
    return taps;
}

static Taps taps_at(int i, int in, float step, int n_taps)
{
    return n_taps == 2 ? linear_taps(i, in, step) : cubic_taps(i, in, step);
}

/* The work is cut into strips of at most STRIP floats of an output row (pixels × channels), each walked down
 * over BAND output rows. The input rows that an output row mixes are interpolated horizontally once and kept
 * in `line`: neighbouring output rows share them. n_taps (2 or 4) input rows follow each other, so row % 4 is
 * a place of its own. */
#define STRIP 1024
#define BAND  64

typedef struct Strip {
    Taps column[STRIP]; /* of the strip's output columns */
    float line[4][STRIP];
    int line_row[4]; /* the input row that each line holds, -1: none */
} Strip;

/* line[pixels][channels] = row ix... of x, interpolated horizontally; `width` = all channels of a pixel. */
static void fill_line(float *line, const float *row, const Taps *column, int n_taps, int pixels, int channels,
                      int width)
{
    for (int i = 0; i < pixels; i++) {
        const Taps *t = &column[i];
        float *out = line + i * channels;
        const float *p0 = row + (ptrdiff_t)t->at[0] * width, *p1 = row + (ptrdiff_t)t->at[1] * width;
        if (n_taps == 2) {
            for (int c = 0; c < channels; c++)
                out[c] = p0[c] * t->weight[0] + p1[c] * t->weight[1];
            continue;
        }
        const float *p2 = row + (ptrdiff_t)t->at[2] * width, *p3 = row + (ptrdiff_t)t->at[3] * width;
        for (int c = 0; c < channels; c++)
            out[c] =
                p0[c] * t->weight[0] + p1[c] * t->weight[1] + p2[c] * t->weight[2] + p3[c] * t->weight[3];
    }
}

static void mix_lines(float *y, const float *const *line, const float *weight, int n_taps, int n)
{
    if (n_taps == 2)
        for (int i = 0; i < n; i++)
            y[i] = line[0][i] * weight[0] + line[1][i] * weight[1];
    else
        for (int i = 0; i < n; i++)
            y[i] = line[0][i] * weight[0] + line[1][i] * weight[1] + line[2][i] * weight[2] +
                   line[3][i] * weight[3];
}

typedef struct Interpolation {
    float *y;
    const float *x;
    int oh, ow, ih, iw, channels, n_taps;
    float step_h, step_w;
} Interpolation;

/* Output rows y0..y1-1, columns x0..x0+pixels-1, channels c0..c0+channels-1: pixels·channels <= STRIP, and a
 * part of the channels only for a single pixel. */
static void interpolate_strip(const Interpolation *p, int y0, int y1, int x0, int pixels, int c0,
                              int channels)
{
    Strip strip;
    for (int i = 0; i < 4; i++)
        strip.line_row[i] = -1;
    for (int i = 0; i < pixels; i++)
        strip.column[i] = taps_at(x0 + i, p->iw, p->step_w, p->n_taps);
    for (int oy = y0; oy < y1; oy++) {
        Taps rows = taps_at(oy, p->ih, p->step_h, p->n_taps);
        const float *line[4] = {0};
        for (int t = 0; t < p->n_taps; t++) {
            int row = rows.at[t], place = row % 4;
            if (strip.line_row[place] != row)
                fill_line(strip.line[place], p->x + (ptrdiff_t)row * p->iw * p->channels + c0, strip.column,
                          p->n_taps, pixels, channels, p->channels);
            strip.line_row[place] = row;
            line[t] = strip.line[place];
        }
        float *out = p->y + ((ptrdiff_t)oy * p->ow + x0) * p->channels + c0;
        mix_lines(out, line, rows.weight, p->n_taps, pixels * channels);
    }
}

static void interpolate(const Interpolation *p)
{
    int channels = min_int(p->channels, STRIP), pixels = p->channels < STRIP ? STRIP / p->channels : 1;
    int bands = (p->oh + BAND - 1) / BAND, strips = (p->ow + pixels - 1) / pixels;
    int parallel = (double)p->oh * p->ow * p->channels > PARALLEL_ELEMENTS;
    (void)parallel; /* without OpenMP */
#pragma omp parallel for collapse(2) schedule(dynamic) if (parallel)
    for (int b = 0; b < bands; b++)
        for (int s = 0; s < strips; s++)
            for (int c = 0; c < p->channels; c += channels)
                interpolate_strip(p, b * BAND, min_int((b + 1) * BAND, p->oh), s * pixels,
                                  min_int(pixels, p->ow - s * pixels), c, min_int(channels, p->channels - c));
}

void interpolate_bilinear(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                          double scale_h, double scale_w)
{
    Interpolation p = {
        y, x, oh, ow, ih, iw, channels, 2, input_step(ih, oh, scale_h), input_step(iw, ow, scale_w)};
    if (oh == ih)
        p.step_h = 1; /* torch copies an axis that keeps its size, whatever the scale factor */
    if (ow == iw)
        p.step_w = 1;
    if (oh > 0 && ow > 0 && ih > 0 && iw > 0 && channels > 0)
        interpolate(&p);
}

/* ---- bicubic with antialiasing (torch's _upsample_bicubic2d_aa) ----------------------------------*/

/* The window of inputs of one output coordinate: the cubic filter (here a = -0.5, as PIL) widened by the
 * step. */
typedef struct Window {
    int first, count;
    float centre, shrink, total; /* total: the sum of the weights, by which each is divided */
} Window;

static float window_weight(const Window *w, int j)
{
    const float a = -0.5f;
    float x = fabsf(((float)(j + w->first) - w->centre + 0.5f) * w->shrink);
    return x < 1 ? cubic_near(x, a) : x < 2 ? cubic_far(x, a) : 0;
}

static Window window_at(int i, int in, float step)
{
    float support = step >= 1 ? 2 * step : 2;
    Window w = {0, 0, step * ((float)i + 0.5f), step >= 1 ? 1 / step : 1, 0};
    float low = w.centre - support + 0.5f, high = w.centre + support + 0.5f;
    w.first = low > 0 ? min_int((int)fminf(low, (float)in), in - 1) : 0;
    int end = high < (float)in ? (int)high : in;
    w.count = end > w.first ? end - w.first : 1;
    for (int j = 0; j < w.count; j++)
        w.total += window_weight(&w, j);
    if (w.total == 0)
        w.total = 1;
    return w;
}

/* One output row. Horizontal sums are made anew for every output row that needs them: the windows may be of
 * any size, there is no room to keep them, and only small maps (position embeddings) come here. */
static void antialias_row(const Interpolation *p, int oy)
{
    Window rows = window_at(oy, p->ih, p->step_h);
    for (int ox = 0; ox < p->ow; ox++) {
        Window cols = window_at(ox, p->iw, p->step_w);
        float *out = p->y + ((ptrdiff_t)oy * p->ow + ox) * p->channels;
        for (int c0 = 0; c0 < p->channels; c0 += 256) {
            int n = min_int(256, p->channels - c0);
            for (int c = 0; c < n; c++)
                out[c0 + c] = 0;
            for (int j = 0; j < rows.count; j++) {
                float sum[256] = {0}, wy = window_weight(&rows, j) / rows.total;
                const float *row =
                    p->x + ((ptrdiff_t)(rows.first + j) * p->iw + cols.first) * p->channels + c0;
                for (int i = 0; i < cols.count; i++, row += p->channels) {
                    float wx = window_weight(&cols, i) / cols.total;
                    for (int c = 0; c < n; c++)
                        sum[c] += row[c] * wx;
                }
                for (int c = 0; c < n; c++)
                    out[c0 + c] += sum[c] * wy;
            }
        }
    }
}

void interpolate_bicubic(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                         double scale_h, double scale_w, int antialias)
{
    Interpolation p = {
        y, x, oh, ow, ih, iw, channels, 4, input_step(ih, oh, scale_h), input_step(iw, ow, scale_w)};
    if (oh <= 0 || ow <= 0 || ih <= 0 || iw <= 0 || channels <= 0)
        return;
    if (!antialias) {
        interpolate(&p);
        return;
    }
#pragma omp parallel for schedule(dynamic) if ((double)oh * ow * channels > PARALLEL_ELEMENTS)
    for (int oy = 0; oy < oh; oy++)
        antialias_row(&p, oy);
}

/* ---- pooling and blur --------------------------------------------------------------------------*/

void adaptive_avg_pool(float *y, int oh, int ow, const float *x, int ih, int iw, int channels)
{
#pragma omp parallel for if ((double)ih * iw * channels > PARALLEL_ELEMENTS)
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            int y0 = (int)((int64_t)oy * ih / oh), y1 = (int)(((int64_t)(oy + 1) * ih + oh - 1) / oh);
            int x0 = (int)((int64_t)ox * iw / ow), x1 = (int)(((int64_t)(ox + 1) * iw + ow - 1) / ow);
            float *out = y + ((ptrdiff_t)oy * ow + ox) * channels;
            for (int c = 0; c < channels; c++)
                out[c] = 0;
            for (int iy = y0; iy < y1; iy++)
                for (int ix = x0; ix < x1; ix++) {
                    const float *in = x + ((ptrdiff_t)iy * iw + ix) * channels;
                    for (int c = 0; c < channels; c++)
                        out[c] += in[c];
                }
            float height = (float)(y1 - y0), width = (float)(x1 - x0);
            for (int c = 0; c < channels; c++)
                out[c] = out[c] / height / width;
        }
}

/* The index that i means when the n cells are continued by mirror images (d c b a | a b c d | d c b a). */
static int reflect(int i, int n)
{
    int period = 2 * n; /* n < 2^30: maps are far smaller */
    i %= period;
    if (i < 0)
        i += period;
    return i < n ? i : period - 1 - i;
}

/* out[n][run] = the blur of in[n][run] along its first axis; consecutive cells are `run` floats apart. */
static void blur_axis(float *out, const float *in, int n, int run, float sigma)
{
    /* Beyond 40 lengths of the axis the weights of a huge sigma are the same everywhere: nothing to gain. */
    double radius_limit = 40.0 * n, radius_wanted = ceil(4.0 * (double)sigma);
    int radius = (int)(radius_wanted < radius_limit || radius_wanted < 64 ? radius_wanted : radius_limit);
    double total = 1, k = -0.5 / ((double)sigma * (double)sigma);
    for (int t = 1; t <= radius; t++)
        total += 2 * exp(k * t * t);
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n * run; i++)
        out[i] = 0;
    for (int t = -radius; t <= radius; t++) {
        float weight = (float)(exp(k * t * t) / total);
        for (int i = 0; i < n; i++) {
            const float *from = in + (ptrdiff_t)reflect(i + t, n) * run;
            float *to = out + (ptrdiff_t)i * run;
            for (int j = 0; j < run; j++)
                to[j] += weight * from[j];
        }
    }
}

void gaussian_blur(float *y, const float *x, int h, int w, int channels, float sigma, float *scratch)
{
    if (h <= 0 || w <= 0 || channels <= 0)
        return;
    if (!(sigma > 0)) {
        if (y != x)
            memcpy(y, x, (size_t)h * w * channels * sizeof *y);
        return;
    }
    blur_axis(scratch, x, h, w * channels, sigma);
#pragma omp parallel for if ((double)h * w * channels > PARALLEL_ELEMENTS)
    for (int i = 0; i < h; i++) {
        ptrdiff_t row = (ptrdiff_t)i * w * channels;
        blur_axis(y + row, scratch + row, w, channels, sigma);
    }
}

/* ---- PIL's resize ------------------------------------------------------------------------------*/

/* Coefficients are integers of 22 fractional bits: 8 bits of pixel, 2 of headroom, 32 in all. */
#define PRECISION_BITS (32 - 8 - 2)

/* For each output coordinate a run of inputs and their weights. */
typedef struct PilTaps {
    int *first, *count; /* [out] */
    int32_t *weight;    /* [out][most] */
    int most;
} PilTaps;

static double pil_filter(ResizeFilter filter, double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (filter == RESIZE_BILINEAR)
        return x < 1 ? 1 - x : 0;
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void pil_taps_free(PilTaps *taps)
{
    free(taps->first);
    free(taps->count);
    free(taps->weight);
    *taps = (PilTaps){0};
}

/* The weights of one output coordinate, normalised in double, then rounded to fixed point. */
static void pil_weights(PilTaps *taps, int i, double *w, int in, double scale, double support,
                        ResizeFilter filter)
{
    double stretch = scale < 1 ? 1 : scale, centre = (i + 0.5) * scale, inverse = 1 / stretch, total = 0;
    int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
    if (first < 0)
        first = 0;
    if (end > in)
        end = in;
    int count = end - first;
    for (int j = 0; j < count; j++) {
        w[j] = pil_filter(filter, (j + first - centre + 0.5) * inverse);
        total += w[j];
    }
    int32_t *fixed = taps->weight + (size_t)i * taps->most;
    for (int j = 0; j < count; j++) {
        double v = (total != 0 ? w[j] / total : w[j]) * (1 << PRECISION_BITS);
        fixed[j] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    taps->first[i] = first;
    taps->count[i] = count;
}

static int pil_taps_make(PilTaps *taps, int in, int out, ResizeFilter filter)
{
    double scale = (double)in / out, stretch = scale < 1 ? 1 : scale;
    double support = (filter == RESIZE_BILINEAR ? 1.0 : 2.0) * stretch;
    taps->most = (int)ceil(support) * 2 + 1;
    taps->first = aligned_array(out, sizeof(int));
    taps->count = aligned_array(out, sizeof(int));
    taps->weight = aligned_array(out, (size_t)taps->most * sizeof(int32_t));
    double *w = aligned_array(taps->most, sizeof(double));
    int ok = taps->first && taps->count && taps->weight && w;
    for (int i = 0; i < out && ok; i++)
        pil_weights(taps, i, w, in, scale, support, filter);
    free(w);
    if (!ok)
        pil_taps_free(taps);
    return ok ? 0 : -1;
}

static uint8_t clip8(int32_t sum)
{
    int32_t v = sum >> PRECISION_BITS; /* arithmetic: rounds down, 1/2 was added before */
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* y[rows][ow][channels] from x[rows][iw][channels] */
static void pil_horizontal(uint8_t *y, const uint8_t *x, int rows, int ow, int iw, int channels,
                           const PilTaps *taps)
{
#pragma omp parallel for if ((double)rows * ow * channels > PARALLEL_ELEMENTS)
    for (int r = 0; r < rows; r++) {
        const uint8_t *in = x + (size_t)r * iw * channels;
        uint8_t *out = y + (size_t)r * ow * channels;
        for (int i = 0; i < ow; i++) {
            const int32_t *weight = taps->weight + (size_t)i * taps->most;
            const uint8_t *from = in + (size_t)taps->first[i] * channels;
            for (int c = 0; c < channels; c++) {
                int32_t sum = 1 << (PRECISION_BITS - 1);
                for (int j = 0; j < taps->count[i]; j++)
                    sum += from[(size_t)j * channels + c] * weight[j];
                out[(size_t)i * channels + c] = clip8(sum);
            }
        }
    }
}

/* y[oh][run] from x[ih][run] */
static void pil_vertical(uint8_t *y, const uint8_t *x, int oh, size_t run, const PilTaps *taps)
{
#pragma omp parallel for if ((double)oh * run > PARALLEL_ELEMENTS)
    for (int i = 0; i < oh; i++) {
        const int32_t *weight = taps->weight + (size_t)i * taps->most;
        for (size_t at = 0; at < run; at += 256) {
            int n = run - at < 256 ? (int)(run - at) : 256;
            int32_t sum[256];
            for (int c = 0; c < n; c++)
                sum[c] = 1 << (PRECISION_BITS - 1);
            for (int j = 0; j < taps->count[i]; j++) {
                const uint8_t *from = x + (size_t)(taps->first[i] + j) * run + at;
                for (int c = 0; c < n; c++)
                    sum[c] += from[c] * weight[j];
            }
            for (int c = 0; c < n; c++)
                y[(size_t)i * run + at + c] = clip8(sum[c]);
        }
    }
}

int resize_u8(uint8_t *y, int oh, int ow, const uint8_t *x, int ih, int iw, int channels, ResizeFilter filter)
{
    if (oh <= 0 || ow <= 0 || ih <= 0 || iw <= 0 || channels <= 0)
        return -1;
    PilTaps across = {0}, down = {0};
    uint8_t *middle = NULL; /* [ih][ow][channels] */
    int status = -1;
    if (ow != iw && pil_taps_make(&across, iw, ow, filter) != 0)
        return -1;
    if (oh != ih && pil_taps_make(&down, ih, oh, filter) != 0)
        goto done;
    if (ow != iw && oh != ih && !(middle = aligned_array((size_t)ih * ow, channels)))
        goto done;
    if (ow == iw && oh == ih)
        memcpy(y, x, (size_t)oh * ow * channels);
    if (ow != iw)
        pil_horizontal(middle ? middle : y, x, ih, ow, iw, channels, &across);
    if (oh != ih)
        pil_vertical(y, middle ? middle : x, oh, (size_t)ow * channels, &down);
    status = 0;
done:
    pil_taps_free(&across);
    pil_taps_free(&down);
    free(middle);
    return status;
}
