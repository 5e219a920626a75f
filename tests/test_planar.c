/* test_planar.c - the routines of planar.c against loops in double precision and against the plain form. */
#include "fast/planar.h"
#include "tensor.h"
#include "numbers.h"
#include "plain.h"
#include "test.h"

static void test_small_product(void)
{
    static const int sizes[][3] = {{1, 16, 1},   {7, 64, 16},  {6, 16, 64},  {13, 48, 5},
                                   {56, 64, 99}, {25, 112, 0}, {48, 32, 33}, {12, 80, 7}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2], lda = k + 3, ldb = n + 16,
                      ldc = n + 5;
            float *a = random_array((size_t)m * lda), *b = random_array((size_t)k * ldb);
            float *c = random_array((size_t)m * ldc), *expected = random_array((size_t)m * ldc);
            float *start = random_array((size_t)m * ldc);
            memcpy(expected, c, (size_t)m * ldc * sizeof *c);
            memcpy(start, c, (size_t)m * ldc * sizeof *c);
            plain_matmul(expected, ldc, a, lda, b, ldb, m, n, k, accumulate);
            small_product(c, ldc, a, lda, b, ldb, m, n, k, accumulate);
            double error = test_relative_error(c, expected, (size_t)m * ldc);
            CHECK_MSG(error < 1e-6, "%d x %d x %d: %.2g", m, n, k, error);
            /* In two terms: the same sums in the same order. */
            const int first = k / 3;
            const SmallTerm terms[2] = {{a, b, lda, ldb, first},
                                        {a + first, b + (size_t)first * ldb, lda, ldb, k - first}};
            float *parts = random_array((size_t)m * ldc);
            for (int i = 0; i < m; i++)
                memcpy(parts + (size_t)i * ldc, start + (size_t)i * ldc, (size_t)n * sizeof *parts);
            small_products(parts, ldc, terms, 2, m, n, accumulate);
            for (int i = 0; i < m; i++)
                CHECK(memcmp(parts + (size_t)i * ldc, c + (size_t)i * ldc, (size_t)n * sizeof *c) == 0);
            free(parts);
            free(start);
            free(a);
            free(b);
            free(c);
            free(expected);
        }
}

static void test_few_rows(void)
{
    static const int sizes[][3] = {{1, 4, 256}, {7, 128, 64},  {7, 5, 33},
                                   {8, 32, 3},  {20, 17, 100}, {3, 1, 16}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int biased = 0; biased < 2; biased++) {
            const int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
            float *x = random_array((size_t)m * k), *w = random_array((size_t)n * k), *bias = random_array(n);
            float *y = random_array((size_t)m * n), *expected = random_array((size_t)m * n);
            for (int i = 0; i < m * n; i++)
                expected[i] = biased ? bias[i % n] : 0;
            plain_matmul_nt(expected, n, x, k, w, k, m, n, k, 1);
            skinny_linear(y, x, w, biased ? bias : NULL, m, n, k);
            double error = test_relative_error(y, expected, (size_t)m * n);
            CHECK_MSG(error < 2e-6, "%d x %d x %d: %.2g", m, n, k, error);
            free(x);
            free(w);
            free(bias);
            free(y);
            free(expected);
        }
}

static void test_quadratic(void)
{
    enum { N = 29, LD = 31 };
    float *root = random_array(N * N), *g = random_array(N * LD), *z = random_array(N * TILE);
    float *scratch = random_array(N * TILE), result[TILE], expected[TILE];
    matmul_nt(g, LD, root, N, root, N, N, N, N, 0);
    for (int j = 0; j < TILE; j++) {
        double sum = 0;
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++)
                sum += (double)z[i * TILE + j] * g[i * LD + k] * z[k * TILE + j];
        expected[j] = (float)sum;
    }
    tile_triangle(g, LD, N);
    tile_quadratic(result, z, g, LD, N, scratch);
    CHECK(test_relative_error(result, expected, TILE) < 2e-6);
    free(root);
    free(g);
    free(z);
    free(scratch);
}

static void test_transpose(void)
{
    for (int rows = 1; rows < 36; rows += 3) {
        const int ld = (rows + TILE_PAD - 1) / TILE_PAD * TILE_PAD;
        float *x = random_array((size_t)rows * TILE), *y = random_array((size_t)TILE * ld);
        tile_transpose(y, ld, x, rows);
        for (int j = 0; j < TILE; j++)
            for (int i = 0; i < ld; i++)
                CHECK(y[j * ld + i] == (i < rows ? x[i * TILE + j] : 0));
        free(x);
        free(y);
    }
}

static void test_softmax(void)
{
    enum { HEADS = 3, N = 5 };
    float *x = random_array(HEADS * N * TILE), *y = random_array(HEADS * (N - 1) * TILE);
    float *expected = random_array(HEADS * (N - 1) * TILE);
    for (int i = 0; i < HEADS * N * TILE; i++)
        x[i] *= 30;
    for (int h = 0; h < HEADS; h++)
        for (int j = 0; j < TILE; j++) {
            double sum = 0;
            for (int i = 0; i < N; i++)
                sum += exp(x[(h * N + i) * TILE + j]);
            for (int i = 0; i < N - 1; i++)
                expected[(h * (N - 1) + i) * TILE + j] = (float)(exp(x[(h * N + i) * TILE + j]) / sum);
        }
    tile_softmax(y, x, HEADS, N);
    CHECK(test_relative_error(y, expected, HEADS * (N - 1) * TILE) < 2e-6);
    free(x);
    free(y);
    free(expected);
}

/* Three tiles with growing scores; the last tile is partly used. The sums of weights and of weighted numbers
 * are those of a softmax over all tiles. */
static void test_online_softmax(void)
{
    enum { ROWS = 4, TILES = 3, USED = 11, N = 2 * TILE + USED };
    float *scores = random_array(ROWS * TILES * TILE), *value = random_array(TILES * TILE);
    float max[ROWS], sum[ROWS] = {0}, factor[ROWS], pooled[ROWS] = {0}, expected[ROWS], tile[ROWS * TILE];
    for (int i = 0; i < ROWS; i++) {
        double total = 0, weighted = 0;
        max[i] = -INFINITY;
        for (int j = 0; j < N; j++) {
            float *s = &scores[i * TILES * TILE + j];
            *s = *s * 10 + (float)j * (i - 1) * 0.5f;
            total += exp(*s);
            weighted += exp(*s) * value[j];
        }
        expected[i] = (float)(weighted / total);
    }
    for (int t = 0; t < TILES; t++) {
        for (int i = 0; i < ROWS; i++)
            memcpy(tile + i * TILE, scores + (i * TILES + t) * TILE, TILE * sizeof *tile);
        tile_online_softmax(tile, ROWS, t == TILES - 1 ? USED : TILE, max, sum, factor);
        for (int i = 0; i < ROWS; i++) {
            pooled[i] *= factor[i];
            for (int j = 0; j < TILE; j++)
                pooled[i] += tile[i * TILE + j] * value[t * TILE + j];
        }
    }
    for (int i = 0; i < ROWS; i++)
        pooled[i] /= sum[i];
    CHECK(test_relative_error(pooled, expected, ROWS) < 2e-6);
    free(scores);
    free(value);
}

/* A tile is the transpose of TILE rows of tensor.h's routines. */
static void test_norm_and_gelu(void)
{
    enum { C = 24 };
    float *x = random_array(C * TILE), *y = random_array(C * TILE), *rows = random_array(C * TILE);
    float *gamma = random_array(C), *beta = random_array(C), *factor = random_array(TILE);
    memcpy(y, x, C * TILE * sizeof *y);
    for (int j = 0; j < TILE; j++)
        for (int i = 0; i < C; i++)
            rows[j * C + i] = x[i * TILE + j];
    layer_norm(rows, rows, gamma, beta, TILE, C, 1e-6f);
    gelu(rows, C * TILE);
    tile_norm_gelu(x, gamma, beta, C, 1e-6f);
    for (int j = 0; j < TILE; j++)
        for (int i = 0; i < C; i++)
            CHECK(fabsf(rows[j * C + i] - x[i * TILE + j]) < 2e-6f);
    for (int j = 0; j < TILE; j++)
        for (int i = 0; i < C; i++)
            rows[j * C + i] = y[i * TILE + j] + beta[i];
    gelu(rows, C * TILE);
    tile_scale_add(x, factor, y, y, C);
    for (int i = 0; i < C * TILE; i++)
        CHECK(fabsf(x[i] - (factor[i % TILE] + 1) * y[i]) < 1e-6f);
    tile_bias_gelu(y, beta, C);
    for (int j = 0; j < TILE; j++)
        for (int i = 0; i < C; i++)
            CHECK(rows[j * C + i] == y[i * TILE + j]);
    free(x);
    free(y);
    free(rows);
    free(gamma);
    free(beta);
    free(factor);
}

int main(void)
{
    RUN(test_small_product);
    RUN(test_few_rows);
    RUN(test_quadratic);
    RUN(test_transpose);
    RUN(test_softmax);
    RUN(test_online_softmax);
    RUN(test_norm_and_gelu);
    return test_summary();
}
