/* planar.c - see planar.h. Vectors and their functions come from simd.h, the micro-kernel's rows MR from
 * tile.h. */
#include "fast/planar.h"

#include <math.h>

#include "fast/simd.h"
#include "fast/tile.h"

/* ---- products ---------------------------------------------------------------------------------*/

/* c[rows][vecs·LANES] at (row, column) of the result = the sum of the terms, or c +=. `rows` and `vecs` are
 * constants as in micro_kernel of tile.h. Its prefetching would cost more here than the product. Its
 * add_terms is no faster in sums this short: SAM's masks took 8 % longer with it. */
INLINE void small_tile(int rows, int vecs, float *c, ptrdiff_t ldc, const SmallTerm *terms, int n_terms,
                       ptrdiff_t row, ptrdiff_t column, int accumulate)
{
    Vec sum[MR][2];
    UNROLL for (int i = 0; i < rows; i++)
    {
        sum[i][0] = accumulate ? load(c + i * ldc) : splat(0);
        sum[i][1] = accumulate && vecs > 1 ? load(c + i * ldc + LANES) : splat(0);
    }
    for (int t = 0; t < n_terms; t++) {
        const ptrdiff_t lda = terms[t].lda, ldb = terms[t].ldb;
        const float *a = terms[t].a + row * lda, *b = terms[t].b + column, *end = a + terms[t].k;
        for (; a < end; a++, b += ldb) {
            const Vec b0 = load(b), b1 = vecs > 1 ? load(b + LANES) : b0;
            UNROLL for (int i = 0; i < rows; i++)
            {
                const Vec ai = splat(a[i * lda]);
                sum[i][0] = fmadd(ai, b0, sum[i][0]);
                if (vecs > 1)
                    sum[i][1] = fmadd(ai, b1, sum[i][1]);
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
    {
        store(c + i * ldc, sum[i][0]);
        if (vecs > 1)
            store(c + i * ldc + LANES, sum[i][1]);
    }
}

/* clang-format off */
#define SMALL_CASE(n)                                                                       \
    case n:                                                                                 \
        if (vecs > 1)                                                                       \
            small_tile(n, 2, c, ldc, terms, n_terms, row, column, accumulate);              \
        else                                                                                \
            small_tile(n, 1, c, ldc, terms, n_terms, row, column, accumulate);              \
        break;
static void any_small_tile(int rows, int vecs, float *c, ptrdiff_t ldc, const SmallTerm *terms, int n_terms,
                           ptrdiff_t row, ptrdiff_t column, int accumulate)
{
    switch (rows) {
        SMALL_CASE(1) SMALL_CASE(2) SMALL_CASE(3) SMALL_CASE(4) SMALL_CASE(5) SMALL_CASE(6)
#if MR == 14
        SMALL_CASE(7) SMALL_CASE(8) SMALL_CASE(9) SMALL_CASE(10) SMALL_CASE(11) SMALL_CASE(12) SMALL_CASE(13)
        SMALL_CASE(14)
#endif
    }
}
#undef SMALL_CASE
/* clang-format on */

void small_products(float *c, int ldc, const SmallTerm *terms, int n_terms, int m, int n, int accumulate)
{
    for (int j = 0; j < n; j += 2 * LANES)
        for (int i = 0; i < m; i += MR)
            any_small_tile(min_int(m - i, MR), n - j > LANES ? 2 : 1, c + (ptrdiff_t)i * ldc + j, ldc, terms,
                           n_terms, i, j, accumulate);
}

/* The number of rows of x whose sums with 4 rows of w fit the registers. */
#if LANES == 16
#define FEW 7
#else
#define FEW 3
#endif

/* y[rows][4] = x[rows][k]·w[4][k]ᵀ + bias[4]. */
INLINE void few_rows(int rows, float *y, ptrdiff_t ldy, const float *x, const float *w, const float *bias,
                     int k)
{
    Vec sum[FEW][4];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = splat(0);
    for (int p = 0; p < k; p += LANES) {
        const int whole = p + LANES <= k;
        Vec wj[4];
        UNROLL for (int j = 0; j < 4; j++)
        {
            const float *from = w + (ptrdiff_t)j * k + p;
            wj[j] = whole ? load(from) : load_part(from, (size_t)(k - p));
        }
        UNROLL for (int i = 0; i < rows; i++)
        {
            const float *from = x + (ptrdiff_t)i * k + p;
            const Vec xi = whole ? load(from) : load_part(from, (size_t)(k - p));
            UNROLL for (int j = 0; j < 4; j++) sum[i][j] = fmadd(xi, wj[j], sum[i][j]);
        }
    }
    Vec4 b = {0};
    if (bias)
        memcpy(&b, bias, sizeof b);
    UNROLL for (int i = 0; i < rows; i++)
    {
        Vec4 part[4];
        UNROLL for (int j = 0; j < 4; j++) part[j] = fold_lanes(sum[i][j]);
        transpose4(part);
        part[0] = (part[0] + part[1]) + (part[2] + part[3]) + b;
        memcpy(y + i * ldy, &part[0], sizeof part[0]);
    }
}

void skinny_linear(float *y, const float *x, const Linear *layer, int m)
{
    const float *w = layer->weight, *bias = layer->bias;
    const int n = layer->n_out, k = layer->n_in;
    int j = 0;
    if (m > SKINNY_ROWS) {
        linear(y, x, w, bias, m, n, k);
        return;
    }
    for (; j + 4 <= n; j += 4)
        for (ptrdiff_t i = 0; i < m; i += FEW) {
            float *out = y + i * n + j;
            const float *xi = x + i * k, *wj = w + (ptrdiff_t)j * k, *b = bias ? bias + j : NULL;
            /* clang-format off */
            switch (m - i < FEW ? m - (int)i : FEW) {
            case 1: few_rows(1, out, n, xi, wj, b, k); break;
            case 2: few_rows(2, out, n, xi, wj, b, k); break;
            case 3: few_rows(3, out, n, xi, wj, b, k); break;
#if FEW == 7
            case 4: few_rows(4, out, n, xi, wj, b, k); break;
            case 5: few_rows(5, out, n, xi, wj, b, k); break;
            case 6: few_rows(6, out, n, xi, wj, b, k); break;
            case 7: few_rows(7, out, n, xi, wj, b, k); break;
#endif
            }
            /* clang-format on */
        }
    for (; j < n; j++)
        for (ptrdiff_t i = 0; i < m; i++)
            y[i * n + j] = dot(x + i * k, w + (ptrdiff_t)j * k, k) + (bias ? bias[j] : 0);
}

void tile_triangle(float *g, int ld, int n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j < n; j++)
            g[i * ld + j] *= j < i ? 0 : j > i ? 2 : 1;
}

/* G is upper triangular, so a block of rows needs no column before its first. */
void tile_quadratic(float *quadratic, const float *z, const float *triangle, int ld, int n, float *scratch)
{
    for (ptrdiff_t i = 0; i < n; i += MR)
        small_products(scratch + i * TILE, TILE,
                       &(SmallTerm){triangle + i * ld + i, z + i * TILE, ld, TILE, n - (int)i}, 1,
                       min_int(n - (int)i, MR), TILE, 0);
    for (int j = 0; j < TILE; j += LANES) {
        Vec sum = splat(0);
        for (int i = 0; i < n; i++)
            sum = fmadd(load(z + i * TILE + j), load(scratch + i * TILE + j), sum);
        store(quadratic + j, sum);
    }
}

/* Squares of 4 × 4 are transposed in registers. */
void tile_transpose(float *y, int ld, const float *x, int rows)
{
    int i = 0;
    for (; i + 4 <= rows; i += 4)
        for (int j = 0; j < TILE; j += 4) {
            Vec4 r[4];
            for (int k = 0; k < 4; k++)
                memcpy(&r[k], x + (i + k) * TILE + j, sizeof r[k]);
            transpose4(r);
            for (int k = 0; k < 4; k++)
                memcpy(y + (ptrdiff_t)(j + k) * ld + i, &r[k], sizeof r[k]);
        }
    for (; i < ld; i++)
        for (ptrdiff_t j = 0; j < TILE; j++)
            y[j * ld + i] = i < rows ? x[i * TILE + j] : 0;
}

/* ---- softmax ----------------------------------------------------------------------------------*/

void tile_scale_add(float *y, const float *factor, const float *x, const float *z, int rows)
{
    for (int i = 0; i < rows; i++, x += TILE, y += TILE, z += TILE)
        for (int j = 0; j < TILE; j += LANES)
            store(y + j, fmadd(load(factor + j), load(x + j), load(z + j)));
}

void tile_softmax(float *y, float *x, int heads, int n)
{
    for (int h = 0; h < heads; h++, x += n * TILE, y += (n - 1) * TILE)
        for (int j = 0; j < TILE; j += LANES) {
            Vec max = load(x + j), sum = splat(0);
            for (int i = 1; i < n; i++)
                max = vec_max(load(x + i * TILE + j), max);
            for (int i = 0; i < n; i++) {
                const Vec e = vec_exp(load(x + i * TILE + j) - max);
                store(x + i * TILE + j, e);
                sum += e;
            }
            const Vec inverse = 1.0f / sum;
            for (int i = 0; i < n - 1; i++)
                store(y + i * TILE + j, load(x + i * TILE + j) * inverse);
        }
}

void tile_online_softmax(float *scores, int rows, int used, float *max, float *sum, float *factor)
{
    for (int i = 0; i < rows; i++, scores += TILE) {
        for (int j = used; j < TILE; j++)
            scores[j] = -INFINITY;
        Vec most = load(scores), total = splat(0);
        for (int j = LANES; j < TILE; j += LANES)
            most = vec_max(load(scores + j), most);
        const float before = max[i], now = max_lanes(most);
        if (now > before)
            max[i] = now;
        for (int j = 0; j < TILE; j += LANES) {
            const Vec e = vec_exp(load(scores + j) - splat(max[i]));
            store(scores + j, e);
            total += e;
        }
        factor[i] = now > before ? expf(before - now) : 1; /* the first time e^-inf = 0. */
        sum[i] = sum[i] * factor[i] + sum_lanes(total);
    }
}

/* ---- norm and GELU ----------------------------------------------------------------------------*/

void tile_norm_gelu(float *x, const float *gamma, const float *beta, int rows, float eps)
{
    for (int j = 0; j < TILE; j += LANES) {
        Vec sum = splat(0), squares = splat(0);
        for (int i = 0; i < rows; i++)
            sum += load(x + i * TILE + j);
        const Vec mean = sum / splat((float)rows);
        for (int i = 0; i < rows; i++) {
            const Vec d = load(x + i * TILE + j) - mean;
            squares = fmadd(d, d, squares);
        }
        float scale[LANES];
        store(scale, squares / splat((float)rows) + splat(eps));
        for (int i = 0; i < LANES; i++)
            scale[i] = 1 / sqrtf(scale[i]);
        for (int i = 0; i < rows; i++) {
            const Vec y = (load(x + i * TILE + j) - mean) * load(scale);
            store(x + i * TILE + j, vec_gelu(fmadd(y, splat(gamma[i]), splat(beta[i]))));
        }
    }
}

void tile_bias_gelu(float *x, const float *bias, int rows)
{
    for (int i = 0; i < rows; i++, x += TILE)
        for (int j = 0; j < TILE; j += LANES)
            store(x + j, vec_gelu(load(x + j) + splat(bias[i])));
}
