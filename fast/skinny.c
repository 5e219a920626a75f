/* skinny.c - linear_skinny: a product with few rows of x (a skinny GEMM), SAM's tokens.
 *
 * It equals tensor.c's linear because each output is the same dot product, in LANES interleaved parts that are added at
 * the end. w is read once and never packed: with few rows, packing would cost as much as the product. */
#include "fast/tile.h"

/* The sums of ROWS rows of x with 4 rows of w are in registers at once. */
#if LANES == 16
#define ROWS 7
#else
#define ROWS 3
#endif

/* y[rows][4] = x[rows][k]·w[4][k]ᵀ + bias[4] */
INLINE void skinny_rows(int rows, float *y, ptrdiff_t ldy, const float *x, const float *w, const float *bias,
                     int k)
{
    Vec sum[ROWS][4];
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

void linear_skinny(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
    int j = 0;
    for (; j + 4 <= n; j += 4)
        for (ptrdiff_t i = 0; i < m; i += ROWS) {
            float *out = y + i * n + j;
            const float *xi = x + i * k, *wj = w + (ptrdiff_t)j * k, *b = bias ? bias + j : NULL;
            /* clang-format off */
            switch (m - i < ROWS ? m - (int)i : ROWS) {
            case 1: skinny_rows(1, out, n, xi, wj, b, k); break;
            case 2: skinny_rows(2, out, n, xi, wj, b, k); break;
            case 3: skinny_rows(3, out, n, xi, wj, b, k); break;
#if ROWS == 7
            case 4: skinny_rows(4, out, n, xi, wj, b, k); break;
            case 5: skinny_rows(5, out, n, xi, wj, b, k); break;
            case 6: skinny_rows(6, out, n, xi, wj, b, k); break;
            case 7: skinny_rows(7, out, n, xi, wj, b, k); break;
#endif
            }
            /* clang-format on */
        }
    for (; j < n; j++)
        for (ptrdiff_t i = 0; i < m; i++)
            y[i * n + j] = dot(x + i * k, w + (ptrdiff_t)j * k, k) + (bias ? bias[j] : 0);
}
