/* planar.h - routines on tiles: [rows][TILE] floats, one column per image position.
 *
 * Thousands of positions go through the same small matrices. Here positions are the lanes of the vectors. A
 * softmax over 7 tokens, a norm over 64 channels, or a factor for each position then needs no sum across
 * lanes, and no head is too narrow for a register. A tile is small enough that what one position needs for a
 * whole layer stays in the L1 and L2 caches, so products take their operands in place. (gemm.c packs them
 * first, which pays for large products only.) The same holds for the few tokens of a prompt: skinny_linear.
 *
 * One thread; nothing is allocated. */
#ifndef SAMLAD_PLANAR_H
#define SAMLAD_PLANAR_H

#include <stddef.h>

#define TILE     64
#define TILE_PAD 16 /* widths of the small products are multiples of this */

/* c[m][n] = the sum of the terms a[m][k]·b[k][n], or c += ; n a multiple of TILE_PAD; ld* = distance between
 * rows. Each sum goes through the terms, and through k, in order. */
typedef struct SmallTerm {
    const float *a, *b; /* [m][k], [k][n] */
    int lda, ldb, k;
} SmallTerm;
void small_products(float *c, int ldc, const SmallTerm *terms, int n_terms, int m, int n, int accumulate);
/* One term. */
void small_product(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
                   int accumulate);
/* linear of tensor.h for a few rows (a skinny GEMM): w is read once and never packed. It adds up in another
 * order than linear, so it belongs to SAM's tokens alone. */
void skinny_linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k);
/* x *= factor */
static inline void multiply_floats(float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= factor;
}
/* quadratic[TILE] = zᵀ·G·z of each column of z [n][TILE], given the triangle that tile_triangle makes of
 * the symmetric G; scratch [n][TILE]. */
void tile_quadratic(float *quadratic, const float *z, const float *triangle, int ld, int n, float *scratch);
/* In place: G becomes Gᵤ, its upper triangle with doubled elements off the diagonal; zᵀ·Gᵤ·z = zᵀ·G·z. */
void tile_triangle(float *g, int ld, int n);
/* y[TILE][ld] = xᵀ, zero beyond column `rows`; ld a multiple of TILE_PAD. */
void tile_transpose(float *y, int ld, const float *x, int rows);

/* y[rows][TILE] = factor[TILE]∘x + z, in every row */
void tile_scale_add(float *y, const float *factor, const float *x, const float *z, int rows);
/* Softmax over n of x[heads][n][TILE], which is overwritten; y[heads][n-1][TILE] gets all but the last. */
void tile_softmax(float *y, float *x, int heads, int n);
/* The online softmax along the positions (see attention.c), for one tile: scores [rows][TILE], of which the
 * first `used` columns count, become e^(score - max). max[rows] and sum[rows] are kept from tile to tile;
 * factor[rows] scales the earlier sums. */
void tile_online_softmax(float *scores, int rows, int used, float *max, float *sum, float *factor);

/* LayerNorm over the rows of x [rows][TILE], then GELU, in place. */
void tile_norm_gelu(float *x, const float *gamma, const float *beta, int rows, float eps);
/* x = GELU(x + bias[row]), in place */
void tile_bias_gelu(float *x, const float *bias, int rows);

#endif
