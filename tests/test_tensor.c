/* test_tensor.c - tensor.h's contract: the fast form against the plain one. Both are compared with libm in
 * double and with goldens of PyTorch, Pillow and SciPy (tests/make_golden_tensor.py). With SAMLAD_BENCH=1 it
 * also prints speeds. */
#include "tensor.h"
#include "io/safetensors.h"
#include "numbers.h"
#include "plain.h"
#include "test.h"

#include <sched.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

static void set_threads(int n)
{
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

/* ---- products ----------------------------------------------------------------------------------*/

/* One product in both layouts, with row gaps that must stay untouched. The tolerance is on the error relative
 * to the largest result. Products of small numbers have terms of about 1/3 and errors of a few float ulps. */
static void check_product(int m, int n, int k, int gap, int accumulate)
{
    int lda = k + gap, ldb = n + 2 * gap, ldbt = k + 3 * gap, ldc = n + gap;
    float *a = random_array((size_t)m * lda), *b = random_array((size_t)k * ldb);
    float *bt = random_array((size_t)n * ldbt), *c = random_array((size_t)m * ldc);
    float *fast = copy_array(c, (size_t)m * ldc), *truth = copy_array(c, (size_t)m * ldc);
    matmul(fast, ldc, a, lda, b, ldb, m, n, k, accumulate);
    plain_matmul(truth, ldc, a, lda, b, ldb, m, n, k, accumulate);
    double error = test_relative_error(fast, truth, (size_t)m * ldc); /* gaps included: equal in both */
    CHECK_MSG(error < 2e-6, "matmul %d×%d×%d gap %d: error %g", m, n, k, gap, error);
    memcpy(fast, c, (size_t)m * ldc * sizeof *c);
    memcpy(truth, c, (size_t)m * ldc * sizeof *c);
    matmul_nt(fast, ldc, a, lda, bt, ldbt, m, n, k, accumulate);
    plain_matmul_nt(truth, ldc, a, lda, bt, ldbt, m, n, k, accumulate);
    error = test_relative_error(fast, truth, (size_t)m * ldc);
    CHECK_MSG(error < 2e-6, "matmul_nt %d×%d×%d gap %d: error %g", m, n, k, gap, error);
    for (int i = 0; i < m; i++)
        for (int j = n; j < ldc; j++)
            CHECK(fast[i * ldc + j] == c[i * ldc + j]);
    free(a), free(b), free(bt), free(c), free(fast), free(truth);
}

static void products_equal_the_plain_ones(void)
{
    static const int edge[] = {0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 16, 17, 31, 32, 33};
    const int n_edges = sizeof edge / sizeof *edge;
    for (int i = 0; i < n_edges; i++)
        for (int j = 0; j < n_edges; j++)
            check_product(edge[i], edge[j], edge[(i * 7 + j) % n_edges], j % 3, i % 2);
    for (int t = 0; t < 150; t++)
        check_product(random_int(1, 200), random_int(1, 200), random_int(1, 200), random_int(0, 4), t % 2);
    check_product(193, 520, 257, 1, 0); /* more than one tile of each kind */
    check_product(400, 33, 513, 0, 1);
    check_product(2, 1030, 600, 3, 1);
    check_product(1033, 790, 300, 0, 0); /* enough rows to give each thread some */
    check_product(30, 40, 0, 1, 1);
}

static void linear_adds_its_bias(void)
{
    for (int t = 0; t < 60; t++) {
        int m = random_int(1, 210), n = random_int(1, 100), k = t % 7 == 0 ? 0 : random_int(1, 600);
        float *x = random_array((size_t)m * k), *w = random_array((size_t)n * k), *bias = random_array(n);
        float *y = random_array((size_t)m * n), *truth = random_array((size_t)m * n);
        for (int i = 0; i < m; i++)
            memcpy(truth + (size_t)i * n, bias, n * sizeof *bias);
        plain_matmul_nt(truth, n, x, k, w, k, m, n, k, 1);
        linear(y, x, w, bias, m, n, k);
        double error = test_relative_error(y, truth, (size_t)m * n);
        CHECK_MSG(error < 2e-6, "linear %d×%d×%d: error %g", m, n, k, error);
        plain_matmul_nt(truth, n, x, k, w, k, m, n, k, 0);
        linear(y, x, w, NULL, m, n, k);
        error = test_relative_error(y, truth, (size_t)m * n);
        CHECK_MSG(error < 2e-6, "linear without bias %d×%d×%d: error %g", m, n, k, error);
        free(x), free(w), free(bias), free(y), free(truth);
    }
}

/* A NaN or an infinity reaches exactly its own outputs: padding must not multiply it elsewhere. */
static void products_keep_non_finite_numbers_in_place(void)
{
    enum { M = 13, N = 35, K = 9 };
    float *a = random_array(M * K), *b = random_array(N * K), *c = random_array(M * N);
    a[(M - 1) * K + 3] = INFINITY;
    b[(N - 1) * K + 8] = NAN;
    matmul_nt(c, N, a, K, b, K, M, N, K, 0);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            if (j == N - 1)
                CHECK(isnan(c[i * N + j]));
            else if (i == M - 1)
                CHECK(isinf(c[i * N + j]));
            else
                CHECK(isfinite(c[i * N + j]));
        }
    free(a), free(b), free(c);
}

/* ---- attention ---------------------------------------------------------------------------------*/

/* A table [size][size][dim] as the official get_rel_pos gives it, in the layout that attention takes. */
static float *packed_relative(const float *table, int size, int dim)
{
    int stride = (size + REL_ALIGN - 1) / REL_ALIGN * REL_ALIGN;
    float *packed = random_array(relative_position_floats(size, dim)); /* the padding's values do not
                                                                          matter */
    for (int q = 0; q < size; q++)
        for (int k = 0; k < size; k++)
            for (int d = 0; d < dim; d++)
                packed[((size_t)q * dim + d) * stride + k] = table[((size_t)q * size + k) * dim + d];
    return packed;
}

/* Biases by distance, for every head. */
static float *random_biases(int heads, int grid_h, int grid_w)
{
    float *table = random_array((size_t)heads * grid_h * grid_w);
    float *bias = random_array(distance_bias_floats(heads, grid_h, grid_w));
    distance_bias(bias, table, heads, grid_h, grid_w);
    free(table);
    return bias;
}

/* grid_h 0: no relative positions; biased: biases by distance. */
static void check_attention(int n_q, int n_k, int heads, int dim, int grid_h, int grid_w, int biased,
                            float size)
{
    int width = heads * dim, ld = 2 * width + 1, ldo = width + 3;
    float *q = random_array((size_t)n_q * ld), *kv = random_array((size_t)n_k * ld);
    float *fast = random_array((size_t)n_q * ldo), *truth = copy_array(fast, (size_t)n_q * ldo);
    float *rel_h = random_array(relative_position_floats(grid_h, dim)),
          *rel_w = random_array(relative_position_floats(grid_w, dim));
    for (size_t i = 0; i < (size_t)n_q * ld; i++)
        q[i] *= size;
    float *bias = random_biases(heads, grid_h, grid_w);
    RelativePosition rel = {rel_h, rel_w, grid_h, grid_w, biased ? bias : NULL}, *r = grid_h ? &rel : NULL;
    float scale = 1 / sqrtf((float)dim);
    attention(fast, ldo, q, ld, kv, ld, kv + width, ld, n_q, n_k, heads, dim, scale, r);
    plain_attention(truth, ldo, q, ld, kv, ld, kv + width, ld, n_q, n_k, heads, dim, scale, r);
    double error = test_relative_error(fast, truth, (size_t)n_q * ldo);
    /* Logits of size s have errors of s·1e-7. The exponential turns them into relative errors. */
    double bound = 3e-6 + 2e-6 * size;
    CHECK_MSG(error < bound, "attention %d×%d, %d heads of %d, grid %d×%d: error %g", n_q, n_k, heads, dim,
              grid_h, grid_w, error);
    free(q), free(kv), free(fast), free(truth), free(rel_h), free(rel_w), free(bias);
}

static void attention_equals_the_plain_one(void)
{
    for (int t = 0; t < 60; t++)
        check_attention(random_int(1, 150), random_int(1, 300), random_int(1, 3), random_int(1, 90), 0, 0, 0,
                        t % 3 == 0 ? 30 : 1);
    for (int t = 0; t < 40; t++) {
        int grid_h = random_int(1, 14), grid_w = random_int(1, 14);
        check_attention(grid_h * grid_w, grid_h * grid_w, random_int(1, 3), random_int(1, 40), grid_h, grid_w,
                        t % 2, t % 3 == 0 ? 20 : 1);
    }
    check_attention(300, 1030, 1, 64, 0, 0, 0, 5);
    check_attention(5, 9, 2, 300, 0, 0, 0, 1); /* a head longer than a block */
    for (int biased = 0; biased < 2; biased++) {
        check_attention(570, 570, 1, 8, 1, 570, biased, 1); /* rows of the grid longer than a strip */
        check_attention(526, 526, 1, 8, 2, 263, biased, 1);
        check_attention(570, 570, 2, 8, 570, 1, biased, 1);
        check_attention(13 * 40, 13 * 40, 2, 8, 13, 40, biased,
                        1); /* rows that end within a sliver of keys */
    }
    check_attention(7, 1, 2, 16, 0, 0, 0, 1);
    check_attention(3, 0, 2, 16, 0, 0, 0, 1); /* no keys: zeros */
    check_attention(0, 5, 2, 16, 0, 0, 0, 1);
}

/* Windows are cut out, padded and put back by hand, each through the plain attention. */
static void check_windows(int grid_h, int grid_w, int window_h, int window_w, int heads, int dim, int biased)
{
    const int width = heads * dim, n = window_h * window_w;
    float *qkv = random_array((size_t)grid_h * grid_w * 3 * width), *pad = random_array(3 * (size_t)width);
    float *fast = random_array((size_t)grid_h * grid_w * width),
          *truth = copy_array(fast, grid_h * grid_w * width);
    float *rel_h = random_array(relative_position_floats(window_h, dim));
    float *rel_w = random_array(relative_position_floats(window_w, dim));
    float *in = random_array((size_t)n * 3 * width), *out = random_array((size_t)n * width);
    float *bias = random_biases(heads, window_h, window_w);
    RelativePosition rel = {rel_h, rel_w, window_h, window_w, biased ? bias : NULL};
    window_attention(fast, qkv, pad, grid_h, grid_w, heads, dim, 0.3f, &rel);
    for (int y0 = 0; y0 < grid_h; y0 += window_h)
        for (int x0 = 0; x0 < grid_w; x0 += window_w) {
            for (int i = 0; i < n; i++) {
                int y = y0 + i / window_w, x = x0 + i % window_w;
                memcpy(in + (size_t)i * 3 * width,
                       y < grid_h && x < grid_w ? qkv + ((size_t)y * grid_w + x) * 3 * width : pad,
                       3 * width * sizeof *in);
            }
            plain_attention(out, width, in, 3 * width, in + width, 3 * width, in + 2 * width, 3 * width, n, n,
                            heads, dim, 0.3f, &rel);
            for (int i = 0; i < n; i++) {
                int y = y0 + i / window_w, x = x0 + i % window_w;
                if (y < grid_h && x < grid_w)
                    memcpy(truth + ((size_t)y * grid_w + x) * width, out + (size_t)i * width,
                           width * sizeof *out);
            }
        }
    double error = test_relative_error(fast, truth, (size_t)grid_h * grid_w * width);
    CHECK_MSG(error < 5e-6, "windows %d×%d of a grid %d×%d, %d heads of %d: error %g", window_h, window_w,
              grid_h, grid_w, heads, dim, error);
    free(qkv), free(pad), free(fast), free(truth), free(rel_h), free(rel_w), free(bias), free(in), free(out);
}

static void windows_equal_the_plain_ones(void)
{
    for (int biased = 0; biased < 2; biased++) {
        check_windows(20, 20, 14, 14, 2, 16, biased);
        check_windows(14, 28, 14, 14, 1, 24, biased);
        check_windows(16, 16, 7, 7, 3, 32, biased);
        check_windows(5, 7, 3, 4, 3, 10, biased);
        check_windows(3, 2, 5, 6, 1, 8, biased);     /* one window, larger than the grid */
        check_windows(25, 21, 18, 20, 1, 8, biased); /* more keys than a tile */
    }
}

/* The bias of query (qy, qx) and key (ky, kx) depends only on their distance, in both directions. */
static void biases_go_by_distance(void)
{
    enum { HEADS = 2, H = 3, W = 4, N = H * W };
    float table[HEADS * N], zeros[N * HEADS * 2] = {0}, v[N * HEADS], out[N * HEADS];
    float *bias = random_array(distance_bias_floats(HEADS, H, W));
    for (int i = 0; i < HEADS * N; i++)
        table[i] = random_float();
    distance_bias(bias, table, HEADS, H, W);
    const RelativePosition rel = {NULL, NULL, H, W, bias};
    for (int key = 0; key < N; key++) { /* the values are 1 at this key: out is its probability */
        for (int i = 0; i < N * HEADS; i++)
            v[i] = i / HEADS == key;
        attention(out, HEADS, zeros, HEADS, zeros, HEADS, v, HEADS, N, N, HEADS, 1, 1, &rel);
        for (int i = 0; i < N * HEADS; i++) {
            const int query = i / HEADS, h = i % HEADS;
            double total = 0, wanted = 0;
            for (int k = 0; k < N; k++) {
                double e = exp(table[h * N + abs(k / W - query / W) * W + abs(k % W - query % W)]);
                total += e, wanted = k == key ? e : wanted;
            }
            CHECK(fabs(out[i] - wanted / total) < 1e-6);
        }
    }
    free(bias);
}

/* relative_position gathers as get_rel_pos: row q, column k is the table's row q - k + size - 1. */
static void relative_positions_are_gathered(void)
{
    enum { SIZE = 5, DIM = 3 };
    float table[(2 * SIZE - 1) * DIM], *packed = random_array(relative_position_floats(SIZE, DIM));
    for (int i = 0; i < (2 * SIZE - 1) * DIM; i++)
        table[i] = (float)i;
    relative_position(packed, table, SIZE, DIM);
    for (int q = 0; q < SIZE; q++)
        for (int k = 0; k < SIZE; k++)
            for (int d = 0; d < DIM; d++)
                CHECK(packed[(q * DIM + d) * REL_ALIGN + k] == (float)((q - k + SIZE - 1) * DIM + d));
    free(packed);
}

/* ---- functions ---------------------------------------------------------------------------------*/

static void gelu_is_exact(void)
{
    enum { N = 200001 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    REQUIRE(x && y);
    for (int i = 0; i < N; i++)
        x[i] = y[i] = (float)(i - N / 2) * 1e-4f;
    gelu(y, N);
    double worst = 0;
    for (int i = 0; i < N; i++) {
        double erf_found = fabs(x[i]) > 1e-3 ? 2 * (double)y[i] / x[i] - 1 : erf(x[i] / sqrt(2));
        worst = fmax(worst, fabs(erf_found - erf(x[i] / sqrt(2))));
    }
    CHECK_MSG(worst < 1e-6, "erf inside GELU is off by %g", worst);
    float odd[] = {NAN, INFINITY, 0, -0.0f, 1e30f, -1e30f, 1e-30f};
    gelu(odd, 7);
    CHECK(isnan(odd[0]) && odd[1] == INFINITY && odd[2] == 0 && odd[3] == 0);
    CHECK(odd[4] == 1e30f && odd[5] == 0 && odd[6] == 0.5e-30f);
    free(x), free(y);
}

/* vec_exp through softmax of two numbers: e^-d/(1 + e^-d). */
static void exponential_is_exact(void)
{
    double worst = 0;
    for (int i = 0; i <= 86000; i++) {
        float pair[2] = {0, -(float)i * 1e-3f};
        double e = exp((double)pair[1]), truth = e / (1 + e);
        softmax_rows(pair, 1, 2);
        worst = fmax(worst, fabs(pair[1] / truth - 1));
    }
    CHECK_MSG(worst < 4e-7, "softmax is off by %g of itself", worst);
    float far[3] = {0, -200, -INFINITY};
    softmax_rows(far, 1, 3);
    CHECK(far[0] == 1 && far[1] == 0 && far[2] == 0);
    float *rows = malloc(sizeof(float) * 37 * 20); /* short rows are done several at once, the last ones
                                                      singly */
    REQUIRE(rows);
    for (int cols = 1; cols <= 20; cols++) {
        for (int i = 0; i < 37 * cols; i++)
            rows[i] = (float)((i * 7919) % 1000) * 0.02f - 10;
        softmax_rows(rows, 37, cols);
        for (int r = 0; r < 37; r++) {
            double total = 0;
            for (int c = 0; c < cols; c++)
                total += exp((double)((float)(((r * cols + c) * 7919) % 1000) * 0.02f - 10));
            for (int c = 0; c < cols; c++) {
                double truth = exp((double)((float)(((r * cols + c) * 7919) % 1000) * 0.02f - 10)) / total;
                CHECK_MSG(fabs(rows[r * cols + c] - truth) < 1e-6, "softmax of %d columns: row %d", cols, r);
            }
        }
    }
    free(rows);
    float x[] = {-1000, -90, -20, 0, 20, 1000, NAN, -INFINITY, INFINITY};
    sigmoid(x, 9);
    CHECK(x[0] >= 0 && x[0] < 1e-37 && x[1] < 1e-37);
    CHECK(fabs(x[2] / (1 / (1 + exp(20.0))) - 1) < 4e-7);
    CHECK(x[3] == 0.5f && x[4] == 1 && x[5] == 1 && isnan(x[6]) && x[7] < 1e-37 && x[8] == 1);
}

/* Each element-wise routine at every length around the vectors' sizes. It must write nothing beyond the
 * end. */
static void elements_at_every_length(void)
{
    for (int n = 0; n < 70; n++) {
        float *x = random_array(n), *y = random_array(n), *z = copy_array(x, n);
        relu(z, n);
        for (int i = 0; i < n; i++)
            CHECK(z[i] == (x[i] > 0 ? x[i] : 0));
        memcpy(z, x, n * sizeof *x);
        sigmoid(z, n);
        for (int i = 0; i < n; i++)
            CHECK(fabs(z[i] - 1 / (1 + exp(-(double)x[i]))) < 2e-7);
        memcpy(z, x, n * sizeof *x);
        gelu(z, n);
        for (int i = 0; i < n; i++)
            CHECK(fabs(z[i] - 0.5 * x[i] * (1 + erf(x[i] / sqrt(2)))) < 5e-7);
        memcpy(z, x, n * sizeof *x);
        add(z, y, n);
        for (int i = 0; i < n; i++)
            CHECK(z[i] == x[i] + y[i]);
        double sum = 0;
        for (int i = 0; i < n; i++)
            sum += (double)x[i] * y[i];
        CHECK(fabs(dot(x, y, n) - sum) < 1e-5);
        free(x), free(y), free(z);
    }
}

static void rows_at_every_length(void)
{
    enum { ROWS = 3 };
    for (int dim = 1; dim < 70; dim++) {
        float *x = random_array(ROWS * 2 * dim), *y = random_array(ROWS * dim), *g = random_array(dim);
        float *z = copy_array(y, ROWS * dim);
        add_scaled(z, x, g, ROWS, dim);
        for (int i = 0; i < ROWS * dim; i++)
            CHECK(fabsf(z[i] - (y[i] + g[i % dim] * x[i])) < 3e-7f);
        memcpy(z, y, ROWS * dim * sizeof *y);
        add_rows(z, g, ROWS, dim);
        for (int i = 0; i < ROWS * dim; i++)
            CHECK(z[i] == y[i] + g[i % dim]);
        swiglu(z, x, ROWS, dim);
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < dim; i++) {
                double a = x[r * 2 * dim + i], b = x[r * 2 * dim + dim + i];
                CHECK(fabs(z[r * dim + i] - a / (1 + exp(-a)) * b) < 4e-7);
            }
        memcpy(z, y, ROWS * dim * sizeof *y);
        softmax_rows(z, ROWS, dim);
        for (int r = 0; r < ROWS; r++) {
            double total = 0;
            for (int i = 0; i < dim; i++)
                total += exp((double)y[r * dim + i]);
            for (int i = 0; i < dim; i++)
                CHECK(fabs(z[r * dim + i] - exp((double)y[r * dim + i]) / total) < 4e-7);
        }
        free(x), free(y), free(g), free(z);
    }
}

static void layer_norm_survives_a_large_mean(void)
{
    enum { DIM = 100 };
    float *x = random_array(DIM), *y = random_array(DIM);
    double mean = 0, var = 0;
    for (int i = 0; i < DIM; i++)
        x[i] += 1000, mean += x[i] / (double)DIM;
    for (int i = 0; i < DIM; i++)
        var += (x[i] - mean) * (x[i] - mean) / DIM;
    layer_norm(y, x, NULL, NULL, 1, DIM, 1e-6f);
    for (int i = 0; i < DIM; i++)
        CHECK(fabs(y[i] - (x[i] - mean) / sqrt(var + 1e-6)) < 3e-4);
    layer_norm(x, x, NULL, NULL, 1, DIM, 1e-6f); /* in place */
    CHECK(memcmp(x, y, DIM * sizeof *x) == 0);
    free(x), free(y);
}

static void fused_routines_equal_their_parts(void)
{
    enum { M = 37, N = 71, K = 210 };
    float *x = random_array(M * K), *w = random_array(N * K), *bias = random_array(N),
          *y = random_array(M * N);
    float *z = copy_array(y, M * N), *gamma = random_array(N), *beta = random_array(N),
          *scale = random_array(N);
    const Linear layer = {w, bias, NULL, N, K};
    linear_layer_gelu(y, x, &layer, M);
    linear(z, x, w, bias, M, N, K);
    gelu(z, M * N);
    CHECK(test_relative_error(y, z, M * N) < 1e-6);
    for (int with_scale = 0; with_scale < 2; with_scale++) {
        float *sum = random_array(M * N), *sum2 = copy_array(sum, M * N), *norm = random_array(M * N);
        add_layer_norm(norm, sum, y, with_scale ? scale : NULL, gamma, beta, M, N, 1e-6f);
        if (with_scale)
            add_scaled(sum2, y, scale, M, N);
        else
            add(sum2, y, M * N);
        CHECK(test_relative_error(sum, sum2, M * N) < 2e-7);
        layer_norm(z, sum2, gamma, beta, M, N, 1e-6f);
        CHECK(test_relative_error(norm, z, M * N) < 2e-6);
        free(sum), free(sum2), free(norm);
    }
    free(x), free(w), free(bias), free(y), free(z), free(gamma), free(beta), free(scale);
}

static void arena_counts_what_it_gives(void)
{
    Arena counting = {0};
    CHECK(arena_floats(&counting, 3) == NULL && arena_take(&counting, 1) == NULL &&
          arena_take(&counting, 64) == NULL);
    CHECK(counting.used == 192);
    Arena real = {aligned_array(1, counting.used), counting.used, 0};
    REQUIRE(real.base);
    float *a = arena_floats(&real, 3);
    char *b = arena_take(&real, 1), *c = arena_take(&real, 64);
    CHECK((uintptr_t)a % 64 == 0 && b == (char *)a + 64 && c == b + 64 && real.used == counting.used);
    free(real.base);
    CHECK(aligned_array(SIZE_MAX / 2, 4) == NULL && aligned_array(SIZE_MAX, SIZE_MAX) == NULL);
    void *none = aligned_array(0, 4);
    CHECK(none != NULL);
    free(none);
}

/* ---- threads -----------------------------------------------------------------------------------*/

typedef struct Results {
    float *data[16];
    size_t n[16];
    int count;
} Results;

static float *result(Results *r, size_t n)
{
    r->n[r->count] = n;
    return r->data[r->count++] = random_array(n);
}

/* Every routine that uses threads, at sizes at which it uses them. */
static void run_all(Results *r)
{
    random_state = 77;
    r->count = 0;
    enum { M = 431, N = 530, K = 300 };
    float *x = random_array(M * K), *w = random_array(N * K), *b = random_array(N);
    linear(result(r, M * N), x, w, b, M, N, K);
    matmul(result(r, M * N), N, x, K, w, N, M, N, K, 0);
    attention(result(r, 400 * 96), 96, w, 300, w + 96, 300, w + 192, 300, 400, 400, 2, 48, 0.2f, NULL);
    RelativePosition rel = {x, x + 20000, 20, 20, NULL};
    attention(result(r, 400 * 96), 96, w, 300, w + 96, 300, w + 192, 300, 400, 400, 2, 48, 0.2f, &rel);
    linear(result(r, 1100 * 40), x, w, b, 1100, 40, 117); /* enough rows for each thread */
    const RelativePosition window = {x, x + 20000, 7, 6, NULL};
    window_attention(result(r, 20 * 19 * 96), w, b, 20, 19, 2, 48, 0.2f, &window);
    layer_norm(result(r, M * K), x, b, b, M, K, 1e-6f);
    float *y = result(r, M * K);
    memcpy(y, x, M * K * sizeof *x);
    softmax_rows(y, M, K);
    gelu(y, M * K);
    sigmoid(y, M * K);
    l2_normalise(y, M, K, 1e-12f);
    add_scaled(y, x, b, M, K);
    float *scratch = random_array(conv2d_scratch(60, 50, 32, 24, 3, 1, 1));
    conv2d(result(r, 60 * 50 * 24), x, w, b, 60, 50, 32, 24, 3, 1, 1, scratch);
    free(scratch);
    scratch = random_array(conv_transpose2d_scratch(60, 50, 8, 2));
    conv_transpose2d(result(r, 120 * 100 * 8), x, w, b, 60, 50, 32, 8, 2, scratch);
    free(scratch);
    interpolate_bilinear(result(r, 300 * 211 * 2), 300, 211, x, 100, 90, 2, 0, 0);
    interpolate_bicubic(result(r, 200 * 211 * 2), 200, 211, x, 100, 90, 2, 0, 0, 0);
    interpolate_bicubic(result(r, 50 * 41 * 20), 50, 41, x, 60, 60, 20, 0, 0, 1);
    scratch = random_array(200 * 200);
    gaussian_blur(result(r, 200 * 200), x, 200, 200, 1, 2.5f, scratch);
    free(scratch);
    free(x), free(w), free(b);
}

static void free_results(Results *r)
{
    for (int i = 0; i < r->count; i++)
        free(r->data[i]);
}

static void bits_do_not_depend_on_threads(void)
{
    int before = tensor_max_threads();
    Results one, many;
    set_threads(1);
    run_all(&one);
    CHECK(tensor_max_threads() == 1);
    for (int threads = 2; threads <= 4; threads++) {
        set_threads(threads);
        run_all(&many);
        for (int i = 0; i < one.count; i++)
            CHECK_MSG(memcmp(one.data[i], many.data[i], one.n[i] * sizeof(float)) == 0,
                      "result %d differs between 1 and %d threads", i, threads);
        free_results(&many);
    }
    free_results(&one);
    set_threads(before);
}

#if defined(_OPENMP) && defined(__linux__)
/* Put the first thread alone on a core and the others together on another, if there are two. */
static void crowd_threads(int n, const cpu_set_t *allowed)
{
    int cores[2] = {-1, -1};
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, allowed))
            cores[1] = cores[0] < 0 ? cpu : cores[0], cores[0] = cpu;
#pragma omp parallel num_threads(n)
    {
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(cores[omp_get_thread_num() != 0], &own);
        sched_setaffinity(0, sizeof own, &own);
    }
}

static void free_threads(int n, const cpu_set_t *allowed)
{
#pragma omp parallel num_threads(n)
    sched_setaffinity(0, sizeof *allowed, allowed);
}

/* A thread that is three times as fast as the others takes over parts of their tiles. */
static void uneven_threads_compute_the_same_bits(void)
{
    enum { THREADS = 4, M = 2000, N = 130, K = 600 };
    const int before = tensor_max_threads();
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        SKIP("the system does not tell on which cores threads may run");
    float *x = random_array(M * K), *w = random_array(N * K), *bias = random_array(N);
    float *one = random_array(M * N), *many = random_array(M * N);
    set_threads(1);
    const Linear layer = {w, bias, NULL, N, K};
    linear_layer_gelu(one, x, &layer, M);
    set_threads(THREADS);
    crowd_threads(THREADS, &allowed);
    for (int run = 0; run < 3; run++) {
        memset(many, 0, M * N * sizeof *many);
        linear_layer_gelu(many, x, &layer, M);
        CHECK_MSG(memcmp(one, many, M * N * sizeof *one) == 0, "run %d gives other bits", run);
    }
    matmul(one, N, x, K, w, N, M, N, K, 1);
    set_threads(1);
    matmul(many, N, x, K, w, N, M, N, K, 1);
    CHECK(memcmp(one, many, M * N * sizeof *one) == 0);
    free_threads(THREADS, &allowed);
    set_threads(before);
    free(x), free(w), free(bias), free(one), free(many);
}
#else
static void uneven_threads_compute_the_same_bits(void)
{
    SKIP("there is one thread, or no way to tell it its core");
}
#endif

/* ---- goldens -----------------------------------------------------------------------------------*/

static Safetensors *open_golden(const char *file)
{
    char path[256];
    Error err;
    snprintf(path, sizeof path, "tests/golden/%s", file);
    Safetensors *st = st_open(path, &err);
    if (!st)
        printf("  %s\n", err.message);
    return st;
}

/* Tensor "NAME.NUMBER.PART", or NULL. */
static const StTensor *golden(const Safetensors *st, const char *name, int number, const char *part)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%d.%s", name, number, part);
    return st_find(st, full);
}

/* Its floats (copied: the file's alignment is not guaranteed), or NULL. The caller frees. */
static float *floats_of(const StTensor *t)
{
    if (!t || t->dtype != ST_F32)
        return NULL;
    float *x = malloc(t->n_bytes ? t->n_bytes : 1);
    if (!x)
        abort();
    memcpy(x, t->data, t->n_bytes);
    return x;
}

typedef enum MapKind { BILINEAR, BICUBIC, BICUBIC_AA, POOL, BLUR } MapKind;

static void check_map(const Safetensors *st, MapKind kind, const char *name, int expected_cases,
                      double tolerance)
{
    int i = 0;
    for (const StTensor *tx; (tx = golden(st, name, i, "x")) != NULL; i++) {
        const StTensor *ty = golden(st, name, i, "y"),
                       *options = golden(st, name, i, kind == BLUR ? "sigma" : "scale");
        REQUIRE(ty && tx->n_dims == 3 && ty->n_dims == 3 && (options || kind == POOL));
        int ih = (int)tx->shape[0], iw = (int)tx->shape[1], channels = (int)tx->shape[2];
        int oh = (int)ty->shape[0], ow = (int)ty->shape[1];
        float *x = floats_of(tx), *truth = floats_of(ty), *y = random_array(ty->n_elements), sigma = 0;
        double scale[2] = {0, 0};
        if (options)
            memcpy(kind == BLUR ? (void *)&sigma : (void *)scale, options->data, options->n_bytes);
        if (kind == BILINEAR)
            interpolate_bilinear(y, oh, ow, x, ih, iw, channels, scale[0], scale[1]);
        if (kind == BICUBIC)
            interpolate_bicubic(y, oh, ow, x, ih, iw, channels, scale[0], scale[1], 0);
        if (kind == BICUBIC_AA)
            interpolate_bicubic(y, oh, ow, x, ih, iw, channels, scale[0], scale[1], 1);
        if (kind == POOL)
            adaptive_avg_pool(y, oh, ow, x, ih, iw, channels);
        if (kind == BLUR) {
            float *scratch = random_array(tx->n_elements);
            memcpy(y, x, tx->n_bytes);
            gaussian_blur(y, y, ih, iw, channels, sigma, scratch); /* in place */
            free(scratch);
        }
        double error = test_relative_error(y, truth, ty->n_elements);
        CHECK_MSG(error <= tolerance, "%s.%d: error %g", name, i, error);
        free(x), free(truth), free(y);
    }
    CHECK(i == expected_cases);
}

static void interpolation_equals_torch(void)
{
    Safetensors *st = open_golden("tensor_interpolate.safetensors");
    REQUIRE(st);
    check_map(st, BILINEAR, "bilinear", 14, 2e-7);
    check_map(st, BICUBIC, "bicubic", 14, 1e-6);
    check_map(st, BICUBIC_AA, "bicubic_aa", 14, 5e-7);
    check_map(st, POOL, "pool", 4, 5e-7);
    check_map(st, BLUR, "blur", 4, 5e-7);
    st_close(st);
}

static void check_pil(const Safetensors *st, const char *name, ResizeFilter filter)
{
    int i = 0;
    for (const StTensor *tx; (tx = golden(st, name, i, "x")) != NULL; i++) {
        const StTensor *ty = golden(st, name, i, "y");
        REQUIRE(ty && ty->n_dims == 3 && tx->n_dims == 3 && tx->dtype == ST_U8 && ty->dtype == ST_U8);
        uint8_t *y = malloc(ty->n_bytes);
        REQUIRE(y);
        CHECK(resize_u8(y, (int)ty->shape[0], (int)ty->shape[1], tx->data, (int)tx->shape[0],
                        (int)tx->shape[1], (int)tx->shape[2], filter) == 0);
        CHECK_MSG(memcmp(y, ty->data, ty->n_bytes) == 0, "%s.%d differs", name, i);
        free(y);
    }
    CHECK(i == 10);
}

static void resize_equals_pil(void)
{
    Safetensors *st = open_golden("tensor_pil.safetensors");
    REQUIRE(st);
    check_pil(st, "pil_bilinear", RESIZE_BILINEAR);
    check_pil(st, "pil_bicubic", RESIZE_BICUBIC);
    st_close(st);
    uint8_t x = 7, y[4];
    CHECK(resize_u8(y, 0, 2, &x, 1, 1, 1, RESIZE_BILINEAR) == -1);
    CHECK(resize_u8(y, 2, 2, &x, 1, 0, 1, RESIZE_BICUBIC) == -1);
    CHECK(resize_u8(y, 2, 2, &x, 1, 1, 1, RESIZE_BICUBIC) == 0 && y[0] == 7 && y[3] == 7);
}

/* The fast forms of the integer and the bilinear resampling equal the plain ones to the last bit. */
static void resampling_equals_the_plain_one(void)
{
    static const int sizes[][4] = {
        {1, 1, 3, 5}, {37, 50, 21, 90}, {70, 3, 70, 19}, {9, 200, 30, 200}, {64, 64, 17, 1100}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int ih = sizes[i][0], iw = sizes[i][1], oh = sizes[i][2], ow = sizes[i][3];
        for (int channels = 1; channels <= 4; channels += 3) {
            const size_t n_in = (size_t)ih * iw * channels, n_out = (size_t)oh * ow * channels;
            uint8_t *x = malloc(n_in), *y = malloc(n_out), *truth = malloc(n_out);
            REQUIRE(x && y && truth);
            for (size_t p = 0; p < n_in; p++)
                x[p] = (uint8_t)random_bits();
            for (int filter = RESIZE_BILINEAR; filter <= RESIZE_BICUBIC; filter++) {
                CHECK(!resize_u8(y, oh, ow, x, ih, iw, channels, (ResizeFilter)filter));
                CHECK(!plain_resize_u8(truth, oh, ow, x, ih, iw, channels, (ResizeFilter)filter));
                CHECK(memcmp(y, truth, n_out) == 0);
            }
            float *map = random_array(n_in), *fast = random_array(n_out), *plain = random_array(n_out);
            interpolate_bilinear(fast, oh, ow, map, ih, iw, channels, 0, 0);
            plain_interpolate_bilinear(plain, oh, ow, map, ih, iw, channels, 0, 0);
            CHECK(memcmp(fast, plain, n_out * sizeof *fast) == 0);
            free(x), free(y), free(truth), free(map), free(fast), free(plain);
        }
    }
}

static void convolution_equals_torch(void)
{
    Safetensors *st = open_golden("tensor_network.safetensors");
    REQUIRE(st);
    int i = 0;
    for (const StTensor *tx; (tx = golden(st, "conv2d", i, "x")) != NULL; i++) {
        const StTensor *tw = golden(st, "conv2d", i, "weight"), *ty = golden(st, "conv2d", i, "y");
        const StTensor *options = golden(st, "conv2d", i, "options");
        REQUIRE(tw && ty && options && options->n_bytes == 12);
        int32_t o[3];
        memcpy(o, options->data, sizeof o);
        int h = (int)tx->shape[0], w = (int)tx->shape[1], c_in = (int)tx->shape[2], c_out = (int)ty->shape[2];
        float *x = floats_of(tx), *weight = floats_of(tw), *bias = floats_of(golden(st, "conv2d", i, "bias"));
        float *truth = floats_of(ty), *y = random_array(ty->n_elements);
        float *scratch = random_array(conv2d_scratch(h, w, c_in, c_out, o[0], o[1], o[2]));
        conv2d(y, x, weight, bias, h, w, c_in, c_out, o[0], o[1], o[2], scratch);
        double error = test_relative_error(y, truth, ty->n_elements);
        CHECK_MSG(error < 1e-6, "conv2d.%d: error %g", i, error);
        free(x), free(weight), free(bias), free(truth), free(y), free(scratch);
    }
    CHECK(i == 7);
    i = 0;
    for (const StTensor *tx; (tx = golden(st, "conv_transpose2d", i, "x")) != NULL; i++) {
        const StTensor *tw = golden(st, "conv_transpose2d", i, "weight"),
                       *ty = golden(st, "conv_transpose2d", i, "y");
        REQUIRE(tw && ty);
        int h = (int)tx->shape[0], w = (int)tx->shape[1], c_in = (int)tx->shape[2];
        int c_out = (int)tw->shape[1], stride = (int)tw->shape[2];
        float *x = floats_of(tx), *weight = floats_of(tw),
              *bias = floats_of(golden(st, "conv_transpose2d", i, "bias"));
        float *truth = floats_of(ty), *y = random_array(ty->n_elements);
        float *scratch = random_array(conv_transpose2d_scratch(h, w, c_out, stride));
        conv_transpose2d(y, x, weight, bias, h, w, c_in, c_out, stride, scratch);
        double error = test_relative_error(y, truth, ty->n_elements);
        CHECK_MSG(error < 1e-6, "conv_transpose2d.%d: error %g", i, error);
        free(x), free(weight), free(bias), free(truth), free(y), free(scratch);
    }
    CHECK(i == 3);
    st_close(st);
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* A depthwise convolution equals a convolution whose weights between different channels are zero, in strips
 * of rows too. */
static void check_depthwise(int h, int w, int c, int stride)
{
    const int oh = (h - 1) / stride + 1, ow = (w - 1) / stride + 1;
    float *x = random_array((size_t)h * w * c), *weight = random_array(9 * (size_t)c),
          *bias = random_array(c);
    float *dense = calloc((size_t)c * c * 9, sizeof *dense);
    float *scratch = random_array(conv2d_scratch(h, w, c, c, 3, stride, 1));
    float *truth = random_array((size_t)oh * ow * c), *y = random_array((size_t)oh * ow * c);
    REQUIRE(dense);
    for (int i = 0; i < c; i++)
        for (int t = 0; t < 9; t++)
            dense[((size_t)i * c + i) * 9 + t] = weight[(size_t)t * c + i];
    conv2d(truth, x, dense, bias, h, w, c, c, 3, stride, 1, scratch);
    for (int rows = 1; rows <= oh; rows = rows < oh ? smaller(3 * rows, oh) : oh + 1) {
        for (int first = 0; first < oh; first += rows) {
            const int n = smaller(rows, oh - first), above = first * stride > 0 ? first * stride - 1 : 0;
            const int end = smaller((first + n - 1) * stride + 2, h);
            float *strip = copy_array(x + (size_t)above * w * c, (size_t)(end - above) * w * c);
            depthwise_conv3x3(y + (size_t)first * ow * c, first, n, strip, above, weight, bias, h, w, c,
                              stride);
            free(strip);
        }
        double error = test_relative_error(y, truth, (size_t)oh * ow * c);
        CHECK_MSG(error < 1e-6, "%d×%d×%d, stride %d, strips of %d: error %g", h, w, c, stride, rows, error);
    }
    free(x), free(weight), free(bias), free(dense), free(scratch), free(truth), free(y);
}

static void depthwise_equals_the_dense_one(void)
{
    for (int stride = 1; stride <= 2; stride++) {
        check_depthwise(1, 1, 3, stride);
        check_depthwise(9, 14, 16, stride);
        check_depthwise(12, 7, 37, stride);
        check_depthwise(2, 31, 64, stride);
    }
}

static void attention_equals_torch(void)
{
    Safetensors *st = open_golden("tensor_network.safetensors");
    REQUIRE(st);
    static const int grid[][2] = {{5, 7}, {5, 7}, {14, 14}, {3, 11}};
    int i = 0;
    for (const StTensor *tx; (tx = golden(st, "attention", i, "qkv")) != NULL; i++) {
        const StTensor *ty = golden(st, "attention", i, "y");
        REQUIRE(i < 4 && ty && tx->n_dims == 4);
        int n = (int)tx->shape[0], heads = (int)tx->shape[2], dim = (int)tx->shape[3], width = heads * dim;
        float *qkv = floats_of(tx), *truth = floats_of(ty), *y = random_array(ty->n_elements);
        float *table_h = floats_of(golden(st, "attention", i, "rel_h"));
        float *table_w = floats_of(golden(st, "attention", i, "rel_w"));
        float *rel_h = table_h ? packed_relative(table_h, grid[i][0], dim) : NULL;
        float *rel_w = table_w ? packed_relative(table_w, grid[i][1], dim) : NULL;
        RelativePosition rel = {rel_h, rel_w, grid[i][0], grid[i][1], NULL};
        attention(y, width, qkv, 3 * width, qkv + width, 3 * width, qkv + 2 * width, 3 * width, n, n, heads,
                  dim, 1 / sqrtf((float)dim), rel_h ? &rel : NULL);
        double error = test_relative_error(y, truth, ty->n_elements);
        CHECK_MSG(error < 3e-6, "attention.%d: error %g", i, error);
        free(qkv), free(truth), free(y), free(rel_h), free(rel_w), free(table_h), free(table_w);
    }
    CHECK(i == 4);
    st_close(st);
}

static void rows_equal_torch(void)
{
    Safetensors *st = open_golden("tensor_network.safetensors");
    REQUIRE(st);
    int i = 0;
    for (const StTensor *tx; (tx = golden(st, "layer_norm", i, "x")) != NULL; i++) {
        const StTensor *ty = golden(st, "layer_norm", i, "y");
        float *x = floats_of(tx), *truth = floats_of(ty),
              *gamma = floats_of(golden(st, "layer_norm", i, "gamma"));
        float *beta = floats_of(golden(st, "layer_norm", i, "beta"));
        REQUIRE(x && truth);
        layer_norm(x, x, gamma, beta, (int)tx->shape[0], (int)tx->shape[1], 1e-6f);
        double error = test_relative_error(x, truth, tx->n_elements);
        CHECK_MSG(error < 1e-6, "layer_norm.%d: error %g", i, error);
        free(x), free(truth), free(gamma), free(beta);
    }
    CHECK(i == 4);
    float *softmax = floats_of(st_find(st, "softmax.x")), *softmax_y = floats_of(st_find(st, "softmax.y"));
    float *l2 = floats_of(st_find(st, "l2.x")), *l2_y = floats_of(st_find(st, "l2.y"));
    REQUIRE(softmax && softmax_y && l2 && l2_y);
    softmax_rows(softmax, 6, 77);
    CHECK(test_relative_error(softmax, softmax_y, 6 * 77) < 5e-7);
    l2_normalise(l2, 6, 77, 1e-12f);
    CHECK(test_relative_error(l2, l2_y, 6 * 77) < 3e-7);
    free(softmax), free(softmax_y), free(l2), free(l2_y);

    const StTensor *tx = st_find(st, "gelu.x");
    float *x = floats_of(tx), *gelu_y = floats_of(st_find(st, "gelu.y")),
          *silu_y = floats_of(st_find(st, "silu.y"));
    float *sigmoid_y = floats_of(st_find(st, "sigmoid.y"));
    REQUIRE(x && gelu_y && silu_y && sigmoid_y);
    int n = (int)tx->n_elements;
    float *y = copy_array(x, n), *pairs = random_array(2 * n);
    gelu(y, n);
    for (i = 0; i < n; i++)
        CHECK(fabsf(y[i] - gelu_y[i]) <= 1e-6f * fmaxf(1, fabsf(x[i])));
    memcpy(y, x, n * sizeof *x);
    sigmoid(y, n);
    CHECK(test_relative_error(y, sigmoid_y, n) < 3e-7);
    for (i = 0; i < n; i++)
        pairs[i] = x[i], pairs[n + i] = 1;
    swiglu(y, pairs, 1, n);
    for (i = 0; i < n; i++)
        CHECK(fabsf(y[i] - silu_y[i]) <= 3e-7f * fmaxf(1, fabsf(x[i])));
    free(x), free(gelu_y), free(silu_y), free(sigmoid_y), free(y), free(pairs);
    st_close(st);
}

/* ---- speed, on request -------------------------------------------------------------------------*/

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void print_speed(void)
{
    static const int shape[][3] = {
        {197, 576, 192}, {1370, 1152, 384}, {1370, 384, 1536}, {1024, 1024, 1024}, {7, 2048, 256}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        int m = shape[s][0], n = shape[s][1], k = shape[s][2];
        float *x = random_array((size_t)m * k), *w = random_array((size_t)n * k),
              *y = random_array((size_t)m * n);
        double best = 1e9;
        for (int i = 0; i < 10; i++) {
            double start = seconds();
            linear(y, x, w, NULL, m, n, k);
            best = fmin(best, seconds() - start);
        }
        printf("  linear %d×%d×%d: %.1f GFLOP/s\n", m, n, k, 2e-9 * m * n * k / best);
        free(x), free(w), free(y);
    }
    static const int heads[][4] = {{197, 3, 64, 0}, {1370, 6, 64, 0}, {196, 16, 80, 14}, {4096, 2, 80, 64}};
    for (size_t s = 0; s < sizeof heads / sizeof *heads; s++) {
        int n = heads[s][0], width = heads[s][1] * heads[s][2], grid = heads[s][3];
        float *qkv = random_array((size_t)n * 3 * width), *y = random_array((size_t)n * width);
        float *table = random_array(relative_position_floats(grid, heads[s][2]));
        RelativePosition rel = {table, table, grid, grid, NULL};
        double best = 1e9;
        for (int i = 0; i < 5; i++) {
            double start = seconds();
            attention(y, width, qkv, 3 * width, qkv + width, 3 * width, qkv + 2 * width, 3 * width, n, n,
                      heads[s][1], heads[s][2], 0.125f, grid ? &rel : NULL);
            best = fmin(best, seconds() - start);
        }
        printf("  attention %d, %d heads of %d, grid %d: %.1f GFLOP/s\n", n, heads[s][1], heads[s][2], grid,
               4e-9 * n * n * width / best);
        free(qkv), free(y), free(table);
    }
}

int main(void)
{
    RUN(products_equal_the_plain_ones);
    RUN(linear_adds_its_bias);
    RUN(products_keep_non_finite_numbers_in_place);
    RUN(attention_equals_the_plain_one);
    RUN(windows_equal_the_plain_ones);
    RUN(relative_positions_are_gathered);
    RUN(biases_go_by_distance);
    RUN(fused_routines_equal_their_parts);
    RUN(gelu_is_exact);
    RUN(exponential_is_exact);
    RUN(elements_at_every_length);
    RUN(rows_at_every_length);
    RUN(layer_norm_survives_a_large_mean);
    RUN(arena_counts_what_it_gives);
    RUN(bits_do_not_depend_on_threads);
    RUN(uneven_threads_compute_the_same_bits);
    RUN(interpolation_equals_torch);
    RUN(resize_equals_pil);
    RUN(resampling_equals_the_plain_one);
    RUN(convolution_equals_torch);
    RUN(depthwise_equals_the_dense_one);
    RUN(attention_equals_torch);
    RUN(rows_equal_torch);
    const char *bench = getenv("SAMLAD_BENCH");
    if (bench && *bench == '1')
        print_speed();
    return test_summary();
}
