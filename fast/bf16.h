/* bf16.h - the products of a transformer in bfloat16: half the bytes and, where the machine has an
 * instruction for it, a multiple of float32's speed: AVX512-BF16's dot products or, several times faster,
 * AMX's products of matrices. What `--precision bf16` switches on.
 *
 * A bf16 is the upper half of a float32: same exponent, 8 bits of mantissa. The inputs of a product are
 * rounded to it (weights once, activations on the way in); sums, biases, softmax and everything between
 * the products stay float32. Where the instruction is missing a portable twin takes its place, which
 * rounds its inputs alike; sums agree within rounding, for processors differ in the order of a pair's two
 * products. As in tensor.h: no function here allocates or can fail, and results are the same bits for any
 * number of threads. */
#ifndef SAMLAD_BF16_H
#define SAMLAD_BF16_H

#include "tensor.h"

typedef enum Precision { PRECISION_FP32, PRECISION_BF16 } Precision;

/* Layers and heads whose sums have fewer terms stay in float32: the sum is filled up to so many (a step of the
 * matrix unit), which takes back what bf16 gains, and in short sums rounding errors do not average out. */
enum { BF16_LEAST_TERMS = 32 };

/* ---- linear layers -----------------------------------------------------------------------------*/

/* The weights [n_out][n_in] of a Linear, rounded and in the order in which the product reads them. */
size_t bf16_packed_size(int n_out, int n_in); /* in uint32_t */
void bf16_pack(uint32_t *packed, const float *weight, int n_out, int n_in);

/* y[m][n] = x[m][k] · wᵀ + bias, as linear() in tensor.h, or its gelu; packed: of w [n][k]. */
void bf16_linear(float *y, const float *x, const uint32_t *packed, const float *bias, int m, int n, int k);
void bf16_linear_gelu(float *y, const float *x, const uint32_t *packed, const float *bias, int m, int n,
                      int k);

/* A layer and the precision that it is computed in, so that a forward pass is written once. */
typedef struct Linear {
    const float *weight, *bias; /* [n_out][n_in], [n_out] or NULL */
    const uint32_t *packed;     /* the weight for bf16_linear, or NULL: float32 */
    int n_out, n_in;
} Linear;

/* y[m][n_out] = x[m][n_in] · weightᵀ + bias */
void linear_layer(float *y, const float *x, const Linear *layer, int m);
void linear_layer_gelu(float *y, const float *x, const Linear *layer, int m); /* the gelu of it */
/* Take room for the packed weight from the arena, and fill it when there is memory behind it; a layer with
 * fewer than BF16_LEAST_TERMS inputs stays in float32. */
void linear_pack(Linear *layer, Arena *arena);

/* ---- attention ---------------------------------------------------------------------------------*/

/* Bytes of scratch that the functions below need; rel_h × rel_w: the grid of relative positions, 0 without.
 */
size_t bf16_attention_scratch(int n_q, int n_k, int n_heads, int head_dim, int rel_h, int rel_w);
size_t bf16_window_scratch(int grid_h, int grid_w, int window_h, int window_w, int n_heads, int head_dim);
/* As attention() and window_attention() in tensor.h: both products in bf16; logits, relative positions and
 * softmax in float32. scratch is aligned to 64 bytes. */
void bf16_attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                    int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                    const RelativePosition *rel, void *scratch);
void bf16_window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w,
                           int n_heads, int head_dim, float scale, const RelativePosition *rel,
                           void *scratch);
/* The same, or, without scratch (NULL) or for heads below BF16_LEAST_TERMS, those in float32. */
void attention_any(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                   int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                   const RelativePosition *rel, void *scratch);
void window_attention_any(float *out, const float *qkv, const float *pad, int grid_h, int grid_w, int n_heads,
                          int head_dim, float scale, const RelativePosition *rel, void *scratch);

/* ---- the two steps that are an instruction each where the machine has them ---------------------------*/

/* y[n] = x[n], rounded to the nearest bf16, ties to even. A NaN stays a NaN, subnormal numbers become zero.
 */
void bf16_round(uint16_t *y, const float *x, size_t n);
/* sum[i] += a[2i]·b[2i] + a[2i+1]·b[2i+1], i < n. */
void bf16_dot_pairs(float *sum, const uint16_t *a, const uint16_t *b, size_t n);
/* Their portable twins: what every other machine computes, and what the tests compare with. */
void bf16_round_portable(uint16_t *y, const float *x, size_t n);
void bf16_dot_pairs_portable(float *sum, const uint16_t *a, const uint16_t *b, size_t n);
/* As fma_burst, with the instructions that the functions above use here: their limit. */
double bf16_burst(int rounds);
/* 1 where they use the matrix unit: built for it, and the system lets this process. */
int bf16_matrix_unit(void);
/* 1: do without it, 0: use it again. So that a test sees both ways; not while another thread computes. */
void bf16_without_matrix_unit(int without);

#endif
