/* tensor.h - the hand-written routines under the networks. Speed lives here and in fast/; three sums with
 * a shape of their own use fast/simd.h where they stand: featup.c, amm.c, align.c.
 *
 * Everything is row-major float32 on plain pointers; images and feature maps are channel-last, [h][w][c];
 * weights keep PyTorch's layout (Linear [n_out][n_in], Conv2d [c_out][c_in][kh][kw]). None of these
 * functions can fail, unless its comment says so: they allocate nothing, their scratch is given by the
 * caller or on the stack (up to 900 KB of a thread's, with AVX-512). OpenMP divides *outputs* among
 * threads and never a sum, so that the bits of a result do not depend on the number of threads. Called
 * inside a parallel region they run on one thread. Pointers may not overlap unless a comment says so. */
#ifndef SAMLAD_TENSOR_H
#define SAMLAD_TENSOR_H

#include <stddef.h>
#include <stdint.h>

/* ---- memory ------------------------------------------------------------------------------------
 * A State struct is laid out twice by the same function: once on an arena without memory, which only counts,
 * and, after arena_allocate, once on the real one. So there is one malloc a model, and its size is known
 * before. */
typedef struct Arena {
    char *base;  /* NULL: only count */
    size_t size; /* bytes at base */
    size_t used; /* bytes taken so far */
} Arena;

/* The memory that was counted; free(arena->base) frees it. 0 / -1: no memory (size says how much was
 * asked). */
int arena_allocate(Arena *arena);
/* n bytes aligned to 64, or NULL while counting. To take more than was counted is a mistake of the program
 * (an assertion). */
void *arena_take(Arena *arena, size_t n_bytes);
float *arena_floats(Arena *arena, size_t n_floats);
/* malloc, aligned to 64 bytes, of count*size with an overflow check; NULL on failure. free() frees it. */
void *aligned_array(size_t count, size_t size);
static inline int round_up(int n, int step)
{
    return (n + step - 1) / step * step;
}

/* ---- matrix products ---------------------------------------------------------------------------*/

/* y[m][n] = x[m][k] · wᵀ + bias; w [n][k] as PyTorch's Linear stores it; bias [n] or NULL. */
void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k);
/* y = gelu(x · wᵀ + bias), see gelu below: applied to rows that are still in the cache. */
void linear_gelu(float *y, const float *x, const float *w, const float *bias, int m, int n, int k);

/* c[m][n] = a[m][k] · b[k][n]; ld* = distance between rows in floats. accumulate != 0: c += . */
void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate);
/* c[m][n] = a[m][k] · b[n][k]ᵀ */
void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate);
/* The three-loop versions of both, the tests' truth (sums in double). */
void matmul_naive(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
                  int accumulate);
void matmul_nt_naive(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
                     int accumulate);

/* ---- attention ---------------------------------------------------------------------------------*/

/* SAM's decomposed relative positions (segment_anything/modeling/image_encoder.py): the logit of query
 * (qh,qw) and key (kh,kw) gets q·rel_h[qh][kh] + q·rel_w[qw][kw], with q unscaled. For each place of a query,
 * a matrix of head_dim rows and a column for each place of a key, the columns filled up to a multiple of
 * REL_ALIGN. */
#define REL_ALIGN 16
typedef struct RelativePosition {
    const float *rel_h; /* [grid_h][head_dim][grid_h filled up] */
    const float *rel_w; /* [grid_w][head_dim][grid_w filled up] */
    int grid_h, grid_w; /* n_q = n_k = grid_h*grid_w */
    /* Or LeViT's and TinyViT's attention biases: the logit gets bias[head][|qh - kh|][|qw - kw|], whatever q
     * is; as distance_bias lays them out. rel_h and rel_w are NULL then. Not in bf16's attention. */
    const float *bias;
} RelativePosition;

/* get_rel_pos: out[q][d][k] = table[q - k + size - 1][d]; table [2·size - 1][head_dim]. */
size_t relative_position_floats(int size, int head_dim);
void relative_position(float *out, const float *table, int size, int head_dim);
/* table [n_heads][grid_h][grid_w], by distance -> RelativePosition.bias. */
size_t distance_bias_floats(int n_heads, int grid_h, int grid_w);
void distance_bias(float *out, const float *table, int n_heads, int grid_h, int grid_w);

/* out[i][h*head_dim+d] = sum_j softmax_j(scale·q_i·k_j (+ rel)) v_j for every head h. q, k, v, out are
 * [n][n_heads*head_dim] with row strides ld* (so they can be slices of one qkv matrix). Works block of
 * queries by block: the n_q×n_k matrix of all heads never exists. rel NULL: none. */
void attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v, int ldv,
               int n_q, int n_k, int n_heads, int head_dim, float scale, const RelativePosition *rel);
/* The same inside each window of rel->grid_h × rel->grid_w tokens of a grid [grid_h][grid_w]: qkv
 * [grid_h*grid_w] [3][n_heads*head_dim], out [grid_h*grid_w][n_heads*head_dim]. Windows that reach over the
 * grid's lower and right edges have there keys and values from pad [3][n_heads*head_dim]. rel is needed. */
void window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w, int n_heads,
                      int head_dim, float scale, const RelativePosition *rel);
void attention_naive(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                     int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                     const RelativePosition *rel);

/* ---- rows and elements -------------------------------------------------------------------------*/

/* y = (x - mean)/sqrt(var + eps)·gamma + beta over each row of dim; gamma and beta may be NULL (no
 * affine); y == x allowed. On channel-last maps it is also SAM's LayerNorm2d. */
void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim,
                float eps);
/* x += scale∘branch, y = layer_norm(x), in one walk; scale [dim], or NULL: 1; y == branch allowed. */
void add_layer_norm(float *y, float *x, const float *branch, const float *scale, const float *gamma,
                    const float *beta, int rows, int dim, float eps);
void softmax_rows(float *x, int rows, int cols);               /* in place, over each row */
void gelu(float *x, size_t n);                                 /* in place, exact: x/2·(1+erf(x/√2)) */
void relu(float *x, size_t n);                                 /* in place */
void sigmoid(float *x, size_t n);                              /* in place */
void swiglu(float *y, const float *x12, int rows, int dim);    /* y[r][i] = silu(x12[r][i])·x12[r][dim+i] */
void add(float *y, const float *x, size_t n);                  /* y += x */
void add_rows(float *y, const float *bias, int rows, int dim); /* y[r] += bias */
void add_scaled(float *y, const float *x, const float *gamma, int rows, int dim); /* y[r] += gamma∘x[r] */
float dot(const float *a, const float *b, int n);
void l2_normalise(float *x, int rows, int dim, float eps); /* x[r] /= max(‖x[r]‖, eps) */

/* ---- convolutions, channel-last -----------------------------------------------------------------*/

/* A convolution whose stride is its kernel is a Linear on patches: pixels [3][h][w] -> patches
 * [h/patch * w/patch][3][patch][patch], in the weight's order; patch divides h and w. */
void gather_patches(float *patches, const float *pixels, int h, int w, int patch);
/* y[oh][ow][c_out], oh = (h+2·pad-kernel)/stride+1; x[h][w][c_in]; weight [c_out][c_in][kernel][kernel]
 * (official layout); zero padding; bias or NULL. scratch: conv2d_scratch(...) floats. */
size_t conv2d_scratch(int h, int w, int c_in, int c_out, int kernel, int stride, int pad);
void conv2d(float *y, const float *x, const float *weight, const float *bias, int h, int w, int c_in,
            int c_out, int kernel, int stride, int pad, float *scratch);
/* A convolution 3 × 3 of each channel by itself, stride 1 or 2, zero padding of 1: rows y_first .. y_first +
 * y_rows of y [oh][ow][c], oh = (h-1)/stride+1, ow likewise; x: rows x_first .. of [h][w][c], as far as they
 * are needed; weight [3][3][c] (the official [c][1][3][3] turned round), bias [c]. */
void depthwise_conv3x3(float *y, int y_first, int y_rows, const float *x, int x_first, const float *weight,
                       const float *bias, int h, int w, int c, int stride);
/* ConvTranspose2d with kernel == stride (no overlap): y[h·s][w·s][c_out]; weight [c_in][c_out][s][s].
 * scratch: conv_transpose2d_scratch(...) floats. */
size_t conv_transpose2d_scratch(int h, int w, int c_out, int stride);
void conv_transpose2d(float *y, const float *x, const float *weight, const float *bias, int h, int w,
                      int c_in, int c_out, int stride, float *scratch);

/* ---- resampling --------------------------------------------------------------------------------*/

/* torch.nn.functional.interpolate(align_corners=False), channel-last. scale_h/w: the scale_factor that
 * interpolate was given (coordinates then go by 1/scale_factor, as with recompute_scale_factor=None; oh, ow
 * are still the caller's: floor(in·scale_factor)); 0 = the size form (in/out). antialias as in torch's
 * antialias=True (separable, support scaled). */
void interpolate_bilinear(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                          double scale_h, double scale_w);
/* Which two of `in` samples on an axis output i mixes, and how; step: inputs an output, in/out. */
void bilinear_places(int at[2], float weight[2], int i, int in, float step);
void interpolate_bicubic(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                         double scale_h, double scale_w, int antialias);
/* torch.nn.AdaptiveAvgPool2d: bins [floor(i·in/out), ceil((i+1)·in/out)). */
void adaptive_avg_pool(float *y, int oh, int ow, const float *x, int ih, int iw, int channels);
/* Separable Gaussian blur, sigma in grid cells, radius ceil(4σ), borders reflected (scipy 'reflect');
 * y == x allowed. scratch: h·w·channels floats. */
void gaussian_blur(float *y, const float *x, int h, int w, int channels, float sigma, float *scratch);

/* PIL's Image.resize on uint8 [h][w][channels], to the last integer: antialiased, two passes (horizontal
 * first), 8-bit intermediate, fixed-point coefficients of 22 bits. 0 or -1 (no memory, or a side below 1). */
typedef enum ResizeFilter { RESIZE_BILINEAR, RESIZE_BICUBIC } ResizeFilter;
int resize_u8(uint8_t *y, int oh, int ow, const uint8_t *x, int ih, int iw, int channels,
              ResizeFilter filter);

/* ---- one vector among samples -------------------------------------------------------------------
 * What the anomaly map takes most of its time for (amm.c). Rows lie `stride` floats apart, a multiple of
 * ROW_STEP; behind their values they are 0. */
enum { ROW_STEP = 16 };

/* y [stride] = scale [c] ∘ x [h][w][c] of float16 at (at_x, at_y) in cells (centres at .5): bilinear, clamped at
 * the borders, as torch's grid_sample with padding_mode='border'. */
void sample_half(float *y, const uint16_t *x, int h, int w, int c, float at_x, float at_y, const float *scale);
/* ‖(a - b)∘scale‖ of n numbers each, b in float16. */
float distance_half(const float *a, const uint16_t *b, const float *scale, int n);
/* Subtract from rows 0 .. m of x [m+1][stride] the mean of rows 0 .. m-1. */
void centre_rows(float *x, int stride, int m);
/* gram[i·ld + j] = row i · row j for j <= i < n. */
void gram_rows(float *gram, int ld, const float *x, int stride, int n);
/* ‖row m - Σ_r y_r·row r‖² over r < m. */
float residual_rows(const float *x, int stride, int m, const float *y);

/* ---- what is between ---------------------------------------------------------------------------*/

/* Is each of n float32, at any address, a finite number? */
int all_finite(const void *floats, size_t n);

/* Receives a network's intermediate tensors, for parity tests and --dump. NULL: off. */
typedef void (*TensorTap)(void *user, const char *name, int n_dims, const int64_t *shape, const float *data);

/* ---- threads -----------------------------------------------------------------------------------*/
int tensor_max_threads(void); /* 1 without OpenMP */
int tensor_team_size(void);   /* of a parallel region begun here: inside of another one 1 */
int tensor_thread(void);      /* which of its team this one is, from 0 */
/* `rounds` × a dozen vector multiply-adds on every thread, all in registers: an upper limit for every routine
 * here. Returns the work in 10^9 floating-point operations; the caller takes the time. */
double fma_burst(int rounds);

#endif
