/* planar.h - routines on tiles: [rows][TILE] floats, one column per image position.
 *
 * Thousands of positions go through the same small matrices. Here positions are the lanes of the vectors.
 * Then no sum across lanes is needed in a softmax over 7 tokens or a norm over 64 channels. No head is too
 * narrow for a register. A tile is so small that a position's data of a whole layer stays in the L1 and L2
 * caches. So products take their operands in place. (gemm.c packs them first, which pays only in large
 * products.) The same holds for the few tokens of a prompt: skinny_linear.
 *
 * One thread; nothing is allocated. */
#ifndef SAMLAD_PLANAR_H
#define SAMLAD_PLANAR_H

#include <stddef.h>

#include "tensor.h"

#define TILE     64
#define TILE_PAD 16 /* widths of the small products are multiples of this. */

/* c[m][n] = the sum of the terms a[m][k]·b[k][n], or c += that sum. n is a multiple of TILE_PAD; ld* is the
 * distance between rows. Each sum goes through the terms, and through k, in order. */
typedef struct SmallTerm {
    const float *a, *b; /* [m][k], [k][n] */
    int lda, ldb, k;
} SmallTerm;
void small_products(float *c, int ldc, const SmallTerm *terms, int n_terms, int m, int n, int accumulate);
/* linear for the tokens of SAM's prompts, in float32. With at most SKINNY_ROWS rows it is a skinny GEMM: it
 * reads w once and never packs it. Its sums go in another order than linear's. The order of linear must
 * depend on k alone, so linear cannot choose this form itself; only SAM's tokens take it. */
enum { SKINNY_ROWS = 32 };
void skinny_linear(float *y, const float *x, const Linear *layer, int m);
/* x *= factor. */
static inline void multiply_floats(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}
/* quadratic[TILE] = zᵀ·G·z of each column of z [n][TILE]. triangle is tile_triangle of the symmetric G;
 * scratch [n][TILE]. */
void tile_quadratic(float *quadratic, const float *z, const float *triangle, int ld, int n, float *scratch);
/* In place: G becomes Gᵤ, its upper triangle with doubled elements off the diagonal. zᵀ·Gᵤ·z = zᵀ·G·z. */
void tile_triangle(float *g, int ld, int n);
/* y[TILE][ld] = xᵀ, zero beyond column `rows`; ld a multiple of TILE_PAD. */
void tile_transpose(float *y, int ld, const float *x, int rows);

/* y[rows][TILE] = factor[TILE]∘x + z, in every row. */
void tile_scale_add(float *y, const float *factor, const float *x, const float *z, int rows);
/* Softmax over n of x[heads][n][TILE], which is overwritten. y[heads][n-1][TILE] gets all but the last. */
void tile_softmax(float *y, float *x, int heads, int n);
/* The online softmax along the positions (see attention.c), for one tile: the first `used` columns of scores
 * [rows][TILE] become e^(score - max). max[rows] and sum[rows] are kept from tile to tile; factor[rows]
 * scales the earlier sums. */
void tile_online_softmax(float *scores, int rows, int used, float *max, float *sum, float *factor);

/* LayerNorm over the rows of x [rows][TILE], then GELU, in place. */
void tile_norm_gelu(float *x, const float *gamma, const float *beta, int rows, float eps);
/* x = GELU(x + bias[row]), in place. */
void tile_bias_gelu(float *x, const float *bias, int rows);

#endif
