/* conv.c - convolutions as matrix products, and the depthwise one on vectors of channels.
 *
 * conv2d takes the output pixels in bands of about BAND_PIXELS. Per band, the patches under the kernel become
 * the rows of a matrix (im2col), which is multiplied by the weight. The sums are those of tensor.c, with
 * zeros for the padding. Patches are channel-last, [ky][kx][c_in], so that they are copied in long runs. The
 * weight is brought into the same order once per call. */
#include "fast/tile.h"

#include <string.h>

#define BAND_PIXELS 1024

static int band_rows(int width)
{
    return width >= BAND_PIXELS ? 1 : BAND_PIXELS / (width > 0 ? width : 1);
}

static int conv_out(int n, int kernel, int stride, int pad)
{
    return n + 2 * pad < kernel ? 0 : (n + 2 * pad - kernel) / stride + 1;
}

static int is_pointwise(int kernel, int stride, int pad)
{
    return kernel == 1 && stride == 1 && pad == 0;
}

size_t conv2d_scratch(int h, int w, int c_in, int c_out, int kernel, int stride, int pad)
{
    if (is_pointwise(kernel, stride, pad))
        return 0;
    int oh = conv_out(h, kernel, stride, pad), ow = conv_out(w, kernel, stride, pad);
    size_t patch = (size_t)kernel * kernel * c_in;
    return patch * c_out + patch * min_int(band_rows(ow), oh) * ow;
}

/* patch[ky][kx][c_in] = the kernel × kernel pixels of x from (y0, x0) on; zero outside. */
static void copy_patch(float *patch, const float *x, int h, int w, int c_in, int kernel, int y0, int x0)
{
    int from = x0 < 0 ? -x0 : 0, to = x0 + kernel > w ? w - x0 : kernel; /* columns inside */
    if (from > kernel)
        from = kernel;
    if (to < from)
        to = from;
    size_t run = (size_t)kernel * c_in;
    for (int ky = 0; ky < kernel; ky++, patch += run) {
        if (y0 + ky < 0 || y0 + ky >= h || from == to) {
            memset(patch, 0, run * sizeof *patch);
            continue;
        }
        const float *row = x + ((ptrdiff_t)(y0 + ky) * w + x0 + from) * c_in;
        memset(patch, 0, (size_t)from * c_in * sizeof *patch);
        memcpy(patch + (size_t)from * c_in, row, (size_t)(to - from) * c_in * sizeof *patch);
        memset(patch + (size_t)to * c_in, 0, (size_t)(kernel - to) * c_in * sizeof *patch);
    }
}

void conv2d(float *y, const float *x, const float *weight, const float *bias, int h, int w, int c_in,
            int c_out, int kernel, int stride, int pad, float *scratch)
{
    if (is_pointwise(kernel, stride, pad)) {
        linear(y, x, weight, bias, h * w, c_out, c_in);
        return;
    }
    int oh = conv_out(h, kernel, stride, pad), ow = conv_out(w, kernel, stride, pad);
    int taps = kernel * kernel, rows = band_rows(ow);
    size_t patch = (size_t)taps * c_in;
    float *ordered = scratch, *patches = scratch + patch * c_out;
#pragma omp parallel for if (patch * c_out > PARALLEL_ELEMENTS)
    for (int co = 0; co < c_out; co++)
        for (int t = 0; t < taps; t++)
            for (int ci = 0; ci < c_in; ci++)
                ordered[co * patch + (size_t)t * c_in + ci] = weight[co * patch + (size_t)ci * taps + t];
    for (int oy = 0; oy < oh; oy += rows) {
        int pixels = min_int(rows, oh - oy) * ow;
#pragma omp parallel for if (patch * pixels > PARALLEL_ELEMENTS)
        for (int i = 0; i < pixels; i++)
            copy_patch(patches + i * patch, x, h, w, c_in, kernel, (oy + i / ow) * stride - pad,
                       i % ow * stride - pad);
        linear(y + (size_t)oy * ow * c_out, patches, ordered, bias, pixels, c_out, (int)patch);
    }
}

/* All channels of a pixel. taps[3·ky + kx] is the pixel of x under that tap of the kernel, NULL outside. */
static void depthwise_pixel(float *y, const float *const taps[9], const float *weight, const float *bias,
                            int channels)
{
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec sum = load(bias + c);
        for (int t = 0; t < 9; t++)
            if (taps[t])
                sum += load(taps[t] + c) * load(weight + (size_t)t * channels + c);
        store(y + c, sum);
    }
    for (; c < channels; c++) {
        float sum = bias[c];
        for (int t = 0; t < 9; t++)
            if (taps[t])
                sum += taps[t][c] * weight[(size_t)t * channels + c];
        y[c] = sum;
    }
}

void depthwise_conv3x3(float *y, int y_first, int y_rows, const float *x, int x_first, const float *weight,
                       const float *bias, int h, int w, int c, int stride)
{
    const int ow = conv_out(w, 3, stride, 1);
#pragma omp parallel for if ((size_t)y_rows * ow * c > PARALLEL_ELEMENTS)
    for (int row = 0; row < y_rows; row++)
        for (int ox = 0; ox < ow; ox++) {
            const float *taps[9];
            for (int t = 0; t < 9; t++) {
                const int iy = (y_first + row) * stride + t / 3 - 1, ix = ox * stride + t % 3 - 1;
                const int inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
                taps[t] = inside ? x + ((size_t)(iy - x_first) * w + ix) * c : NULL;
            }
            depthwise_pixel(y + ((size_t)row * ow + ox) * c, taps, weight, bias, c);
        }
}

size_t conv_transpose2d_scratch(int h, int w, int c_out, int stride)
{
    return (size_t)min_int(band_rows(w), h) * w * c_out * stride * stride;
}

/* Every input pixel becomes a square of stride × stride output pixels. One product gives
 * [c_out][stride][stride] for each pixel. Then the squares are copied into y. */
void conv_transpose2d(float *y, const float *x, const float *weight, const float *bias, int h, int w,
                      int c_in, int c_out, int stride, float *scratch)
{
    int square = stride * stride, cols = c_out * square, rows = band_rows(w);
    for (int first = 0; first < h; first += rows) {
        int pixels = min_int(rows, h - first) * w;
        matmul(scratch, cols, x + (size_t)first * w * c_in, c_in, weight, cols, pixels, cols, c_in, 0);
#pragma omp parallel for if ((size_t)pixels * cols > PARALLEL_ELEMENTS)
        for (int i = 0; i < pixels; i++) {
            const float *in = scratch + (size_t)i * cols;
            size_t top = (size_t)(first + i / w) * stride, left = (size_t)(i % w) * stride;
            for (int s = 0; s < square; s++) {
                float *out = y + ((top + s / stride) * w * stride + left + s % stride) * c_out;
                for (int co = 0; co < c_out; co++)
                    out[co] = in[co * square + s] + (bias ? bias[co] : 0);
            }
        }
    }
}
