/* resample.c - interpolate_bilinear and resize_u8, with each axis' places and weights computed once.
 *
 * They equal tensor.c's to the last bit: the places and weights come from its functions (bilinear_places,
 * resize_weights), and the float sums have the same order. */
#include "fast/tile.h"

#include <stdlib.h>
#include <string.h>

/* ---- bilinear ----------------------------------------------------------------------------------
 * The work is cut into strips of at most STRIP floats of an output row (pixels × channels). Each strip is
 * walked down over BAND output rows. An output row mixes two input rows. They are interpolated horizontally
 * once and kept in `line`, because neighbouring output rows share them. */
#define STRIP 1024
#define BAND  64

/* One output coordinate: its two inputs, and their weights. */
typedef struct Taps {
    int at[2];
    float weight[2];
} Taps;

typedef struct Strip {
    Taps column[STRIP]; /* of the strip's output columns. */
    float line[2][STRIP];
    int line_row[2]; /* the input row in each line, -1: none; row r is in line r % 2. */
} Strip;

typedef struct Interpolation {
    float *y;
    const float *x;
    int oh, ow, ih, iw, channels;
    float step_h, step_w;
} Interpolation;

static Taps taps_at(int i, int in, float step)
{
    Taps taps;
    bilinear_places(taps.at, taps.weight, i, in, step);
    return taps;
}

/* line[pixels][channels] = a row of x, interpolated horizontally; `width`: all channels of a pixel. */
static void fill_line(float *line, const float *row, const Taps *column, int pixels, int channels, int width)
{
    for (int i = 0; i < pixels; i++) {
        const Taps *t = &column[i];
        float *out = line + i * channels;
        const float *left = row + (ptrdiff_t)t->at[0] * width, *right = row + (ptrdiff_t)t->at[1] * width;
        for (int c = 0; c < channels; c++)
            out[c] = left[c] * t->weight[0] + right[c] * t->weight[1];
    }
}

/* Output rows y0 .. y1-1, columns x0 .. x0+pixels-1, channels c0 .. c0+channels-1; pixels·channels <= STRIP.
 * channels is fewer than all only if pixels is 1. */
static void interpolate_strip(const Interpolation *p, int y0, int y1, int x0, int pixels, int c0,
                              int channels)
{
    Strip strip;
    strip.line_row[0] = strip.line_row[1] = -1;
    for (int i = 0; i < pixels; i++)
        strip.column[i] = taps_at(x0 + i, p->iw, p->step_w);
    for (int oy = y0; oy < y1; oy++) {
        const Taps rows = taps_at(oy, p->ih, p->step_h);
        for (int t = 0; t < 2; t++) {
            const int row = rows.at[t];
            if (strip.line_row[row % 2] != row)
                fill_line(strip.line[row % 2], p->x + (ptrdiff_t)row * p->iw * p->channels + c0, strip.column,
                          pixels, channels, p->channels);
            strip.line_row[row % 2] = row;
        }
        const float *top = strip.line[rows.at[0] % 2], *bottom = strip.line[rows.at[1] % 2];
        float *out = p->y + ((ptrdiff_t)oy * p->ow + x0) * p->channels + c0;
        for (int i = 0; i < pixels * channels; i++)
            out[i] = top[i] * rows.weight[0] + bottom[i] * rows.weight[1];
    }
}

void interpolate_bilinear(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                          double scale_h, double scale_w)
{
    if (oh <= 0 || ow <= 0 || ih <= 0 || iw <= 0 || channels <= 0)
        return;
    const Interpolation p = {.y = y,
                             .x = x,
                             .oh = oh,
                             .ow = ow,
                             .ih = ih,
                             .iw = iw,
                             .channels = channels,
                             .step_h = oh == ih ? 1 : interpolation_step(ih, oh, scale_h),
                             .step_w = ow == iw ? 1 : interpolation_step(iw, ow, scale_w)};
    const int together = min_int(channels, STRIP), pixels = channels < STRIP ? STRIP / channels : 1;
    const int bands = (oh + BAND - 1) / BAND, strips = (ow + pixels - 1) / pixels;
    const int parallel = (double)oh * ow * channels > PARALLEL_ELEMENTS;
    (void)parallel; /* without OpenMP */
#pragma omp parallel for collapse(2) schedule(dynamic) if (parallel)
    for (int b = 0; b < bands; b++)
        for (int s = 0; s < strips; s++)
            for (int c = 0; c < channels; c += together)
                interpolate_strip(&p, b * BAND, min_int((b + 1) * BAND, oh), s * pixels,
                                  min_int(pixels, ow - s * pixels), c, min_int(together, channels - c));
}

/* ---- PIL's resize ------------------------------------------------------------------------------*/

/* For each output coordinate a run of inputs and their weights. */
typedef struct PilTaps {
    int *first, *count; /* [out] */
    int32_t *weight;    /* [out][most] */
    int most;
} PilTaps;

static void pil_taps_free(PilTaps *taps)
{
    free(taps->first);
    free(taps->count);
    free(taps->weight);
    *taps = (PilTaps){0};
}

static int pil_taps_make(PilTaps *taps, int in, int out, ResizeFilter filter)
{
    taps->most = resize_taps(in, out, filter);
    taps->first = aligned_array((size_t)out, sizeof *taps->first);
    taps->count = aligned_array((size_t)out, sizeof *taps->count);
    taps->weight = aligned_array((size_t)out, (size_t)taps->most * sizeof *taps->weight);
    if (!taps->first || !taps->count || !taps->weight) {
        pil_taps_free(taps);
        return -1;
    }
    for (int i = 0; i < out; i++)
        taps->count[i] =
            resize_weights(taps->weight + (size_t)i * taps->most, &taps->first[i], i, in, out, filter);
    return 0;
}

static uint8_t clip8(int32_t sum)
{
    int32_t v = sum >> RESIZE_PRECISION_BITS; /* arithmetic: rounds down, 1/2 was added before. */
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* y[rows][ow][channels] from x[rows][iw][channels]. */
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
                int32_t sum = 1 << (RESIZE_PRECISION_BITS - 1);
                for (int j = 0; j < taps->count[i]; j++)
                    sum += from[(size_t)j * channels + c] * weight[j];
                out[(size_t)i * channels + c] = clip8(sum);
            }
        }
    }
}

/* y[oh][run] from x[ih][run]. */
static void pil_vertical(uint8_t *y, const uint8_t *x, int oh, size_t run, const PilTaps *taps)
{
#pragma omp parallel for if ((double)oh * run > PARALLEL_ELEMENTS)
    for (int i = 0; i < oh; i++) {
        const int32_t *weight = taps->weight + (size_t)i * taps->most;
        for (size_t at = 0; at < run; at += 256) {
            int n = run - at < 256 ? (int)(run - at) : 256;
            int32_t sum[256];
            for (int c = 0; c < n; c++)
                sum[c] = 1 << (RESIZE_PRECISION_BITS - 1);
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
