/* featup.c - FeatUp: low-resolution features + image -> high-resolution features (docs/METHOD.md 3 [block]),
 * and features on the maps' grid [ours].
 *
 * Follows mhamilton723/FeatUp, featup/upsamplers.py, JBUStack and JBULearnedRange, step by step and with
 * their names. Each stage doubles the size and takes the edges from the image:
 *
 *     source [h][w][c], guidance [H][W][3] (the image, average-pooled) -> [H][W][c], H = 2h, W = 2w
 *
 *     range_kernel(p)[n]  = softmax over the 7x7 neighbours n of t * <proj_x(n), proj_x(p)>
 *                           proj_x = range_proj(guidance), t = clamp(exp(range_temp), 1e-4, 1e4)
 *     spatial_kernel[n]   = exp(-(dy^2 + dx^2) / (2 sigma_spatial^2)), dy and dx from -1 to 1
 *     combined_kernel     = range_kernel * spatial_kernel, normalised to sum 1
 *     combined_kernel    += 0.1 * fixup_proj([combined_kernel, guidance])     (not normalised again)
 *     hr_source           = bicubic enlargement of source
 *     result(p)           = sum over n of combined_kernel(p)[n] * hr_source(n)
 *
 * Neighbours beyond the borders are mirrored. After all four stages: x + 0.1 * fixup_proj(x).
 *
 * The fast build takes featup_upsample and features_to_grid from fast/featup_fold.c, which never makes
 * hr_source. */
#include "featup.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

enum { RADIUS = FEATUP_RADIUS, DIAMETER = FEATUP_DIAMETER, TAPS = FEATUP_TAPS };
enum { FIXUP_IN = TAPS + 3 }; /* kernel and guidance. */

/* ---- the kernels of a stage ---------------------------------------------------------------------------*/

/* One JBULearnedRange at work, H = 2h, W = 2w. The kernels of one row of pixels are kept at a time. */
typedef struct Stage {
    const JbuLearnedRange *up;
    int h, w, channels;         /* of the source. */
    const float *source;        /* [h][w][channels] */
    float *guidance;            /* [H][W][3] */
    float *plane;               /* [H][W] scratch of the pooling. */
    float *hidden, *proj_x;     /* [H][W][key_dim] */
    float *hr_source;           /* [H][W][channels] */
    float *kernel;              /* [W][49] */
    float *fixup_in, *fixup[2]; /* [W][52], [W][49], [W][49] */
    float *result;              /* [H][W][channels] */
} Stage;

int featup_reflect(int i, int n)
{
    while (i < 0 || i >= n)
        i = i < 0 ? -i : 2 * (n - 1) - i;
    return i;
}

/* The tap-th of the 7x7 neighbours of pixel (y, x), as an index into [H][W]. */
static size_t neighbour(const Stage *s, int y, int x, int tap)
{
    const int ny = featup_reflect(y + tap / DIAMETER - RADIUS, 2 * s->h);
    const int nx = featup_reflect(x + tap % DIAMETER - RADIUS, 2 * s->w);
    return (size_t)ny * 2 * s->w + nx;
}

float featup_range_factor(const JbuLearnedRange *up)
{
    return fminf(fmaxf(expf(up->range_temp), 1e-4f), 1e4f);
}

/* kernel [W][49] of row y = range_kernel. */
static void range_kernel(const Stage *s, int y)
{
    const int W = 2 * s->w, key_dim = s->up->key_dim;
    const float factor = featup_range_factor(s->up);
    for (int x = 0; x < W; x++) {
        const float *query = s->proj_x + ((size_t)y * W + x) * key_dim;
        for (int tap = 0; tap < TAPS; tap++)
            s->kernel[x * TAPS + tap] =
                factor * dot(s->proj_x + neighbour(s, y, x, tap) * key_dim, query, key_dim);
    }
    softmax_rows(s->kernel, W, TAPS);
}

void featup_spatial_kernel(float kernel[FEATUP_TAPS], const JbuLearnedRange *up)
{
    const float twice_variance = 2 * up->sigma_spatial * up->sigma_spatial;
    for (int tap = 0; tap < TAPS; tap++) {
        const float y = (float)(tap / DIAMETER - RADIUS) / RADIUS,
                    x = (float)(tap % DIAMETER - RADIUS) / RADIUS;
        kernel[tap] = expf(-(x * x + y * y) / twice_variance);
    }
}

/* kernel [W][49] of row y = range_kernel * spatial_kernel, normalised, plus the fixup. */
static void combined_kernel(const Stage *s, int y)
{
    const int W = 2 * s->w;
    float spatial_kernel[TAPS];
    range_kernel(s, y);
    featup_spatial_kernel(spatial_kernel, s->up);
    for (int x = 0; x < W; x++) {
        float *kernel = s->kernel + x * TAPS, sum = 0;
        for (int tap = 0; tap < TAPS; tap++)
            sum += kernel[tap] *= spatial_kernel[tap];
        for (int tap = 0; tap < TAPS; tap++)
            kernel[tap] /= fmaxf(sum, 1e-7f);
        memcpy(s->fixup_in + x * FIXUP_IN, kernel, TAPS * sizeof(float));
        memcpy(s->fixup_in + x * FIXUP_IN + TAPS, s->guidance + ((size_t)y * W + x) * 3, 3 * sizeof(float));
    }
    linear_layer_gelu(s->fixup[0], s->fixup_in, &s->up->fixup_proj[0], W);
    linear_layer(s->fixup[1], s->fixup[0], &s->up->fixup_proj[1], W);
    for (int i = 0; i < W * TAPS; i++)
        s->kernel[i] += 0.1f * s->fixup[1][i];
}

/* ---- a stage ------------------------------------------------------------------------------------------*/

void featup_pool_guidance(float *pooled, int h, int w, const FeatupInput *in, float *plane)
{
    const size_t n = (size_t)h * w;
    for (int channel = 0; channel < 3; channel++) {
        adaptive_avg_pool(plane, h, w, in->guidance + (size_t)channel * in->guidance_h * in->guidance_w,
                          in->guidance_h, in->guidance_w, 1);
        for (size_t i = 0; i < n; i++)
            pooled[3 * i + channel] = plane[i];
    }
}

/* Row y of the result: for each pixel the weighted sum of its neighbours in hr_source. All channels share the
 * kernel. */
static void adaptive_conv(const Stage *s, int y)
{
    const int W = 2 * s->w, channels = s->channels;
    for (int x = 0; x < W; x++) {
        float *result = s->result + ((size_t)y * W + x) * channels;
        memset(result, 0, channels * sizeof(float));
        for (int tap = 0; tap < TAPS; tap++) {
            const float weight = s->kernel[x * TAPS + tap];
            const float *pixel = s->hr_source + neighbour(s, y, x, tap) * channels;
            for (int c = 0; c < channels; c++)
                result[c] += weight * pixel[c];
        }
    }
}

/* The buffers of a stage. Called twice (io/memory.h). */
static void layout_stage(Stage *s, Arena *arena)
{
    const size_t W = 2 * (size_t)s->w, n = 2 * (size_t)s->h * W;
    s->guidance = arena_floats(arena, n * 3);
    s->plane = arena_floats(arena, n);
    s->hidden = arena_floats(arena, n * s->up->key_dim);
    s->proj_x = arena_floats(arena, n * s->up->key_dim);
    s->hr_source = arena_floats(arena, n * s->channels);
    s->kernel = arena_floats(arena, W * TAPS);
    s->fixup_in = arena_floats(arena, W * FIXUP_IN);
    s->fixup[0] = arena_floats(arena, W * TAPS);
    s->fixup[1] = arena_floats(arena, W * TAPS);
}

/* JBULearnedRange.forward, with the guidance's pooling of JBUStack.upsample. */
static int upsample_stage(float *result, const JbuLearnedRange *up, const FeatupInput *in, Error *err)
{
    Stage s = {
        .up = up, .h = in->h, .w = in->w, .channels = in->channels, .source = in->source, .result = result};
    const int H = 2 * s.h, W = 2 * s.w;
    Arena arena = {0};
    layout_stage(&s, &arena);
    if (arena_allocate(&arena))
        return fail_memory(err, "FeatUp's activations", arena.size);
    layout_stage(&s, &arena);
    featup_pool_guidance(s.guidance, H, W, in, s.plane);
    linear_layer_gelu(s.hidden, s.guidance, &up->range_proj[0], H * W);
    linear_layer(s.proj_x, s.hidden, &up->range_proj[1], H * W);
    interpolate_bicubic(s.hr_source, H, W, s.source, s.h, s.w, s.channels, 0, 0, 0);
    for (int y = 0; y < H; y++) {
        combined_kernel(&s, y);
        adaptive_conv(&s, y);
    }
    free(arena.base);
    return 0;
}

/* ---- the stack ----------------------------------------------------------------------------------------*/

int featup_check(const Featup *featup, const FeatupInput *in, int stages, Error *err)
{
    if (stages < 0 || stages > FEATUP_MAX_STAGES || (featup && stages > featup->n_stages))
        return fail(err, "option featup-stages: %d are asked for, these weights have %d", stages,
                    featup ? featup->n_stages : FEATUP_MAX_STAGES);
    const int largest = 1 << 16, c = in->channels;
    if (in->h < 1 || in->w < 1 || c < 1 || in->h > largest || in->w > largest || c > largest)
        return fail(err, "features of %d x %d x %d cannot be upsampled, expected 1 to %d each", in->h, in->w,
                    c, largest);
    return 0;
}

/* The stack's fixup_proj was trained for all four stages and for its own number of channels. */
static int has_fixup(const Featup *featup, int channels, int stages)
{
    return stages == FEATUP_MAX_STAGES && featup->fixup_proj.n_out == channels;
}

/* x [h][w][channels] += 0.1 * fixup_proj(x). Row by row, so that the buffer `row` is small. */
static void stack_fixup(const Featup *featup, float *x, int h, int w, float *row)
{
    const size_t n = (size_t)w * featup->fixup_proj.n_out;
    for (int y = 0; y < h; y++, x += n) {
        linear_layer(row, x, &featup->fixup_proj, w);
        for (size_t i = 0; i < n; i++)
            x[i] += 0.1f * row[i];
    }
}

/* Every stage's result but the last, which is the caller's. */
typedef struct Results {
    float *of_stage[FEATUP_MAX_STAGES];
    float *fixup_row; /* [W][channels] of the stack's fixup_proj. */
} Results;

static void layout_results(Results *results, Arena *arena, const FeatupInput *in, int stages)
{
    const size_t row = (size_t)in->w * in->channels;
    for (int i = 1; i < stages; i++)
        results->of_stage[i - 1] = arena_floats(arena, ((size_t)in->h << i) * (row << i));
    results->fixup_row = arena_floats(arena, row << stages);
}

/* JBUStack.forward. */
int featup_stack(const Featup *featup, float *out, const FeatupInput *in, int stages, FeatupStage *stage,
                 Error *err)
{
    if (featup_check(featup, in, stages, err))
        return -1;
    if (!featup || stages == 0) {
        interpolate_bilinear(out, in->h << stages, in->w << stages, in->source, in->h, in->w, in->channels, 0,
                             0);
        return 0;
    }

    Results results = {0};
    Arena arena = {0};
    layout_results(&results, &arena, in, stages);
    if (arena_allocate(&arena))
        return fail_memory(err, "FeatUp's results", arena.size);
    layout_results(&results, &arena, in, stages);
    results.of_stage[stages - 1] = out;

    FeatupInput at = *in;
    int status = 0;
    for (int i = 0; i < stages && !status; i++) {
        status = stage(results.of_stage[i], &featup->up[i], &at, err);
        at.source = results.of_stage[i], at.h *= 2, at.w *= 2;
    }
    if (!status && has_fixup(featup, in->channels, stages))
        stack_fixup(featup, out, at.h, at.w, results.fixup_row);
    free(arena.base);
    return status;
}

int featup_upsample(const Featup *featup, float *out, const FeatupInput *in, int stages, Error *err)
{
    return featup_stack(featup, out, in, stages, upsample_stage, err);
}

/* ---- the maps' grid -----------------------------------------------------------------------------------*/

void features_move_back(float *x, int h, int w, int channels, int by)
{
    const size_t cell = (size_t)channels;
    for (ptrdiff_t y = h - 1; y >= 0; y--)
        for (ptrdiff_t i = w - 1; i >= 0; i--) {
            const ptrdiff_t from_y = y > by ? y - by : 0, from_i = i > by ? i - by : 0;
            memmove(x + (y * w + i) * cell, x + (from_y * w + from_i) * cell, cell * sizeof *x);
        }
}

/* Adaptive average pooling down, bilinear up [ours]. */
void features_resize(float *grid, GridSize size, const float *upsampled, int h, int w, int channels)
{
    if (size.h <= h && size.w <= w)
        adaptive_avg_pool(grid, size.h, size.w, upsampled, h, w, channels);
    else
        interpolate_bilinear(grid, size.h, size.w, upsampled, h, w, channels, 0, 0);
}

int features_to_grid(float *grid, GridSize size, const Featup *featup, const FeatupInput *in, int stages,
                     int back, Error *err)
{
    if (featup_check(featup, in, stages, err))
        return -1;
    const int h = in->h << stages, w = in->w << stages;
    const size_t n = (size_t)h * w * in->channels;
    float *upsampled = aligned_array(n, sizeof *upsampled);
    if (!upsampled)
        return fail_memory(err, "upsampled features", n * sizeof *upsampled);
    const int status = featup_upsample(featup, upsampled, in, stages, err);
    if (status == 0 && back)
        features_move_back(upsampled, h, w, in->channels, back);
    if (status == 0)
        features_resize(grid, size, upsampled, h, w, in->channels);
    free(upsampled);
    return status;
}
