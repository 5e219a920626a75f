/* bf16.h - bf16.c's functions beside tensor.h's contract. The products without the choice by size, so that
 * the tests can compare them at every size. The hardware's instructions with their portable twins.
 *
 * The instructions are AVX512-BF16's dot products or, several times faster, AMX's products of matrices. Where
 * both are missing, the portable twin replaces them. It rounds its inputs alike. Sums agree within rounding,
 * because processors add a pair's two products in different orders. */
#ifndef SAMLAD_BF16_H
#define SAMLAD_BF16_H

#include "tensor.h"

/* ---- linear layers -----------------------------------------------------------------------------*/

/* The weights [n_out][n_in] of a Linear, rounded and in the order in which the product reads them. */
size_t bf16_packed_size(int n_out, int n_in); /* in uint32_t */
void bf16_pack(uint32_t *packed, const float *weight, int n_out, int n_in);

/* ---- attention ---------------------------------------------------------------------------------*/

size_t bf16_attention_task_bytes(void); /* of a thread's scratch, see attention_reserve. */
/* attention and window_attention in bf16, for every head_dim. */
void bf16_attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                    int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                    const RelativePosition *rel, void *scratch);
void bf16_window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w,
                           int n_heads, int head_dim, float scale, const RelativePosition *rel,
                           void *scratch);

/* ---- the two steps: one instruction each on machines that have them ----------------------------*/

/* sum[i] += a[2i]·b[2i] + a[2i+1]·b[2i+1], i < n. */
void bf16_dot_pairs(float *sum, const uint16_t *a, const uint16_t *b, size_t n);
/* The portable twins of this and of bf16_round. Every other machine uses them. */
void bf16_round_portable(uint16_t *y, const float *x, size_t n);
void bf16_dot_pairs_portable(float *sum, const uint16_t *a, const uint16_t *b, size_t n);
/* fma_burst with the instructions that these functions use on this machine. */
double bf16_burst(int rounds);
/* 1 if they use AMX: the build has it, and the system lets this process use it. */
int bf16_matrix_unit(void);
/* 1: do without it, 0: use it again. A test compares both. Not to be called while another thread computes. */
void bf16_without_matrix_unit(int without);

#endif
