/* tensor.h - the hand-written routines under the networks: one contract, two implementations.
 *
 * tensor.c is the plain form, complete: each routine is the loop that its formula says. fast/ defines the
 * costly ones again, under the same names, with blocked products, vectors and threads. fast/replaces.h lists
 * them. `make PLAIN=1` builds without fast/.
 *
 * Everything is row-major float32 on plain pointers. Images and feature maps are channel-last, [h][w][c].
 * Weights keep PyTorch's layout: Linear [n_out][n_in], Conv2d [c_out][c_in][kh][kw]. ld* is the distance
 * between the rows of a matrix, in floats. Unless a comment says otherwise, no function can fail and none
 * allocates. Scratch comes from the caller or from the stack: at most 900 KB, and 24 bytes per key in
 * tensor.c's attention. Pointers may not overlap unless a comment says so.
 *
 * The duties of an implementation:
 * - Threads divide the outputs, never a sum. So the number of threads does not change a bit of any result.
 *   Called inside a parallel region, a function runs on one thread.
 * - Sums may go in any order, with float32's rounding. tests/test_tensor.c accepts a relative error of 2e-6
 *   in products and norms, 1e-6 in convolutions, 3e-6 in attention (more with large logits). resize_u8 equals
 *   PIL's integers, and bf16_round is exact. In bf16 every implementation rounds the same inputs.
 * - Pointers are aligned as their type is, no more; only bf16_scratch is aligned to 64 bytes. Nothing is read
 *   or written outside the arrays.
 * - A number of rows or outputs may be 0: then nothing is written. A sum over no terms is 0, or the bias, or
 *   what is accumulated; attention over no keys gives zeros. Rows of norms and softmax, and the inputs of
 *   resampling, have at least one element.
 * - A NaN or an infinity spoils only the outputs that depend on it: in products one row or column, in norms
 *   and softmax one row. relu, gelu, and sigmoid keep a NaN. Features in float16 are finite.
 * - The functions *_scratch tell the size of scratch memory: those of bf16 in bytes, those of convolutions in
 *   floats. The answer belongs to the implementation. */
#ifndef SAMLAD_TENSOR_H
#define SAMLAD_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "io/memory.h"
#include "io/threads.h"

static inline int round_up(int n, int step)
{
    return (n + step - 1) / step * step;
}

/* ---- matrix products ---------------------------------------------------------------------------*/

/* y[m][n] = x[m][k]·wᵀ + bias; w [n][k] as PyTorch's Linear stores it; bias [n] or NULL. */
void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k);
/* c[m][n] = a[m][k]·b[k][n]; with accumulate c += a·b. */
void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate);
/* c[m][n] = a[m][k]·b[n][k]ᵀ; with accumulate c += a·bᵀ. */
void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate);
float dot(const float *a, const float *b, int n);

/* ---- precision ---------------------------------------------------------------------------------
 * In bf16 the inputs of a product are rounded to bfloat16, the upper half of a float32. Weights are rounded
 * once, activations on the way in. Sums, biases, softmax, and everything between the products stay
 * float32. */
typedef enum Precision { PRECISION_FP32, PRECISION_BF16 } Precision;

/* Layers and heads whose sums have fewer terms stay in float32. There bf16 is no faster, and in short sums
 * the rounding errors do not average out. */
enum { BF16_LEAST_TERMS = 32 };

/* y[n] = x[n], rounded to the nearest bf16, ties to even. A NaN stays a NaN; subnormal numbers become
 * zero. */
void bf16_round(uint16_t *y, const float *x, size_t n);

/* A linear layer and its precision, so that a forward pass is written once. */
typedef struct Linear {
    const float *weight, *bias; /* [n_out][n_in], [n_out] or NULL */
    const void *packed; /* the weight in bf16, in the form's own order; NULL: the layer is in float32. */
    int n_out, n_in;
} Linear;

/* LayerNorm's affine part, or LayerNorm2d's. */
typedef struct Norm {
    const float *weight, *bias; /* [dim] */
} Norm;

/* y[m][n_out] = x[m][n_in]·weightᵀ + bias, in the layer's precision. */
void linear_layer(float *y, const float *x, const Linear *layer, int m);
/* y = gelu(x·weightᵀ + bias). */
void linear_layer_gelu(float *y, const float *x, const Linear *layer, int m);
/* Take memory for the packed weight, and fill it unless the arena only counts. A layer with fewer
 * than BF16_LEAST_TERMS inputs stays in float32. */
void linear_pack(Linear *layer, Arena *arena);

/* ---- attention ---------------------------------------------------------------------------------*/

/* SAM's decomposed relative positions (segment_anything/modeling/image_encoder.py). The logit of query
 * (qh,qw) and key (kh,kw) gets q·rel_h[qh][kh] + q·rel_w[qw][kw], with q unscaled. Each position of a query
 * has a matrix of head_dim rows, with one column per position of a key. relative_position_stride columns are
 * stored. */
#define REL_ALIGN 16
typedef struct RelativePosition {
    const float *rel_h; /* [grid_h][head_dim][relative_position_stride(grid_h)] */
    const float *rel_w; /* [grid_w][head_dim][relative_position_stride(grid_w)] */
    int grid_h, grid_w; /* n_q = n_k = grid_h*grid_w */
    /* Or the attention biases of LeViT and TinyViT: the logit gets bias[head][|qh - kh|][|qw - kw|], in the
     * layout of distance_bias. Then rel_h and rel_w are NULL. Not supported by attention in bf16. */
    const float *bias;
} RelativePosition;

static inline int relative_position_stride(int size)
{
    return round_up(size, REL_ALIGN);
}

/* get_rel_pos: out[q][d][k] = table[q - k + size - 1][d]; table [2·size - 1][head_dim]. */
size_t relative_position_floats(int size, int head_dim);
void relative_position(float *out, const float *table, int size, int head_dim);

/* Floats in a row of biases: the distances -(grid_w - 1) to grid_w - 1, then zeros. So a vector can be read
 * from any distance on. */
static inline int distance_bias_stride(int grid_w)
{
    return 2 * grid_w + REL_ALIGN;
}

/* table [n_heads][grid_h][grid_w], by distance -> RelativePosition.bias. */
size_t distance_bias_floats(int n_heads, int grid_h, int grid_w);
void distance_bias(float *out, const float *table, int n_heads, int grid_h, int grid_w);

/* For every head h: out[i][h*head_dim+d] = sum_j softmax_j(scale·q_i·k_j (+ rel)) v_j[d]. q, k, v, out are
 * [n][n_heads*head_dim]; they can be slices of one qkv matrix. rel NULL: no positions.
 *
 * bf16_scratch NULL: in float32. Else q, k, and v are rounded to bf16, unless head_dim is below
 * BF16_LEAST_TERMS. The fast form also rounds the softmax's probabilities, but not q for the relative
 * positions. The scratch is aligned to 64 bytes. */
void attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v, int ldv,
               int n_q, int n_k, int n_heads, int head_dim, float scale, const RelativePosition *rel,
               void *bf16_scratch);
/* Attention inside windows of rel->grid_h × rel->grid_w tokens of a grid [grid_h][grid_w]. qkv
 * [grid_h*grid_w][3][n_heads*head_dim], out [grid_h*grid_w][n_heads*head_dim]. Where a window reaches over
 * the lower or right edge of the grid, its tokens are padding. Their keys and values are those of pad
 * [3][n_heads*head_dim]. rel is needed; bf16_scratch as above. */
void window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w, int n_heads,
                      int head_dim, float scale, const RelativePosition *rel, void *bf16_scratch);
/* Take this thread's scratch (io/threads.h) for attentions of up to n_k keys. Call it in the thread that calls
 * them: without it a lack of memory ends the program there. 0 / -1. */
int attention_reserve(int n_k, int head_dim, Error *err);
/* Bytes of scratch. rel_h × rel_w is the grid of relative positions, 0 without. */
size_t bf16_attention_scratch(int n_q, int n_k, int n_heads, int head_dim, int rel_h, int rel_w);
size_t bf16_window_scratch(int grid_h, int grid_w, int window_h, int window_w, int n_heads, int head_dim);

/* ---- rows and elements -------------------------------------------------------------------------*/

/* y = (x - mean)/sqrt(var + eps)·gamma + beta over each row of dim. gamma and beta may be NULL (no affine); y
 * == x allowed. On channel-last maps it is also SAM's LayerNorm2d. */
void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim,
                float eps);
/* x += ls∘branch, then y = layer_norm(x). ls [dim] is LayerScale's factor, or NULL: 1. y == branch
 * allowed. */
void add_layer_norm(float *y, float *x, const float *branch, const float *ls, const float *gamma,
                    const float *beta, int rows, int dim, float eps);
void softmax_rows(float *x, int rows, int cols);               /* in place, over each row. */
void gelu(float *x, size_t n);                                 /* in place, exact: x/2·(1+erf(x/√2)). */
void relu(float *x, size_t n);                                 /* in place */
void sigmoid(float *x, size_t n);                              /* in place */
void swiglu(float *y, const float *x12, int rows, int dim);    /* y[r][i] = silu(x12[r][i])·x12[r][dim+i] */
void add(float *y, const float *x, size_t n);                  /* y += x */
void add_rows(float *y, const float *bias, int rows, int dim); /* y[r] += bias */
void add_scaled(float *y, const float *x, const float *ls, int rows, int dim); /* y[r] += ls∘x[r] */
void l2_normalise(float *x, int rows, int dim, float eps); /* x[r] /= max(‖x[r]‖, eps) */

/* Are all n float32 finite numbers? The address may be unaligned. */
int all_finite(const void *floats, size_t n);

/* ---- convolutions, channel-last -----------------------------------------------------------------*/

/* A convolution whose stride is its kernel is a Linear on patches. pixels [3][h][w] -> patches [h/patch *
 * w/patch][3][patch][patch], in the weight's order; patch divides h and w. */
void gather_patches(float *patches, const float *pixels, int h, int w, int patch);
/* y[oh][ow][c_out], oh = (h+2·pad-kernel)/stride+1; x [h][w][c_in]; weight [c_out][c_in][kernel][kernel]
 * (official layout); zero padding; bias or NULL. scratch: conv2d_scratch(...) floats. */
size_t conv2d_scratch(int h, int w, int c_in, int c_out, int kernel, int stride, int pad);
void conv2d(float *y, const float *x, const float *weight, const float *bias, int h, int w, int c_in,
            int c_out, int kernel, int stride, int pad, float *scratch);
/* A depthwise convolution, 3 × 3, stride 1 or 2, zero padding of 1, of a slice of rows. Whole: x [h][w][c],
 * y [oh][ow][c] with oh = (h-1)/stride+1, ow likewise. Here y points to row y_first of the result and gets
 * y_rows rows. x points to row x_first of the input. It holds the rows that these need: at least
 * y_first·stride - 1 to (y_first+y_rows-1)·stride + 1 where they exist. weight [3][3][c]: the official
 * [c][1][3][3] transposed, so that channels are adjacent; bias [c]. */
void depthwise_conv3x3(float *y, int y_first, int y_rows, const float *x, int x_first, const float *weight,
                       const float *bias, int h, int w, int c, int stride);
/* ConvTranspose2d with kernel == stride (no overlap). y [h·s][w·s][c_out]; x [h][w][c_in]; weight
 * [c_in][c_out][s][s]. scratch: conv_transpose2d_scratch(...) floats. */
size_t conv_transpose2d_scratch(int h, int w, int c_out, int stride);
void conv_transpose2d(float *y, const float *x, const float *weight, const float *bias, int h, int w,
                      int c_in, int c_out, int stride, float *scratch);

/* ---- resampling --------------------------------------------------------------------------------*/

/* torch.nn.functional.interpolate(align_corners=False), channel-last. scale_h/w is the scale_factor given to
 * interpolate. Coordinates then go by 1/scale_factor, as with recompute_scale_factor=None, and the caller
 * sets oh, ow = floor(in·scale_factor). 0 is the size form (in/out). antialias is torch's antialias=True
 * (separable, support scaled), for windows of at most 4096 inputs. */
void interpolate_bilinear(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                          double scale_h, double scale_w);
void interpolate_bicubic(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                         double scale_h, double scale_w, int antialias);
/* Bilinear output i of an axis of `in` inputs: the indices of its two inputs, and their weights. step: inputs
 * per output. */
void bilinear_places(int at[2], float weight[2], int i, int in, float step);
/* Inputs per output: torch's area_pixel_compute_scale; scale_factor as above. */
float interpolation_step(int in, int out, double scale_factor);
/* torch.nn.AdaptiveAvgPool2d: output i averages the bin [floor(i·in/out), ceil((i+1)·in/out)). */
void adaptive_avg_pool(float *y, int oh, int ow, const float *x, int ih, int iw, int channels);
/* Separable Gaussian blur, sigma in grid cells, radius ceil(4σ), borders reflected (scipy 'reflect'). y == x
 * allowed. scratch: h·w·channels floats. */
void gaussian_blur(float *y, const float *x, int h, int w, int channels, float sigma, float *scratch);

/* PIL's Image.resize on uint8 [h][w][channels], equal to the last integer. It is antialiased, in two passes
 * (horizontal first), with an 8-bit intermediate and fixed-point coefficients of 22 bits. 0 or -1 (no memory,
 * or a side below 1). */
typedef enum ResizeFilter { RESIZE_BILINEAR, RESIZE_BICUBIC } ResizeFilter;
int resize_u8(uint8_t *y, int oh, int ow, const uint8_t *x, int ih, int iw, int channels,
              ResizeFilter filter);
/* PIL's fixed-point weights of output i, normalised: weight[j] belongs to input first + j. weight holds at
 * most resize_taps(...) numbers. Returns the number of weights. */
int resize_taps(int in, int out, ResizeFilter filter);
int resize_weights(int32_t *weight, int *first, int i, int in, int out, ResizeFilter filter);
enum { RESIZE_PRECISION_BITS = 32 - 8 - 2 }; /* fractional bits: 8 bits of pixel and 2 of headroom in 32. */

/* ---- one vector among samples ------------------------------------------------------------------
 * A cell of the query among the cells of m references: the sums of the Mahalanobis distance (amm.c). The
 * anomaly map takes most of its time here. x [m + 1][stride] has a row of c features for each reference, and the
 * query's row last. stride is c rounded up to a multiple of ROW_STEP; the floats behind the c features are 0.
 * Features are divided by their standard deviations: inverse_std [c] holds 1/std. Let x_r be row r, d = x_m:
 *
 *     sample_half     x_r = features at a place of reference r
 *     centre_rows     x_r -= mean, d -= mean
 *     gram_rows       X·Xᵀ, X·d, ‖d‖²       as one matrix, with d as X's last row
 *     residual_rows   ‖d - Xᵀ·y‖² */
enum { ROW_STEP = 16 };

/* y [stride] = inverse_std [c] ∘ x [h][w][c] of float16 at (at_x, at_y) in cells (centres at .5). Bilinear,
 * clamped at the borders, as torch's grid_sample with padding_mode='border'. */
void sample_half(float *y, const uint16_t *x, int h, int w, int c, float at_x, float at_y,
                 const float *inverse_std);
/* ‖(a - b)∘inverse_std‖ of n numbers each, b in float16. */
float distance_half(const float *a, const uint16_t *b, const float *inverse_std, int n);
/* Subtract from rows 0 .. m of x [m+1][stride] the mean of rows 0 .. m-1. */
void centre_rows(float *x, int stride, int m);
/* gram[i·ld + j] = row i · row j for j <= i < n. */
void gram_rows(float *gram, int ld, const float *x, int stride, int n);
/* ‖row m - Σ_r y_r·row r‖² over r < m. */
float residual_rows(const float *x, int stride, int m, const float *y);

/* ---- quantiles ---------------------------------------------------------------------------------*/

int compare_floats(const void *a, const void *b); /* ascending, as qsort needs it */
/* Linear-interpolated quantile of n sorted values (numpy's default); 0 if n is 0. */
float quantile_sorted(const float *sorted, size_t n, double q);

/* ---- around the networks -----------------------------------------------------------------------*/

/* Receives a network's intermediate tensors, for parity tests and --dump. NULL: off. */
typedef void (*TensorTap)(void *user, const char *name, int n_dims, const int64_t *shape, const float *data);

#endif
