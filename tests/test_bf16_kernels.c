/* test_bf16_kernels.c - fast/bf16.c: the instructions against their portable twins. The products and the
 * attention at every size are compared with the plain form on the same rounded numbers. Left out with
 * PLAIN=1. */
#include "fast/bf16.h"
#include "halves.h"
#include "numbers.h"
#include "plain.h"
#include "test.h"

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

/* ---- the two steps -----------------------------------------------------------------------------*/

static void rounding_is_to_the_nearest_even(void)
{
    for (size_t i = 0; i < sizeof rounding_cases / sizeof *rounding_cases; i++) {
        float x = float_of(rounding_cases[i].bits);
        uint16_t y, twin;
        bf16_round(&y, &x, 1);
        bf16_round_portable(&twin, &x, 1);
        CHECK_MSG(y == rounding_cases[i].half, "%08x becomes %04x, not %04x", rounding_cases[i].bits, y,
                  rounding_cases[i].half);
        CHECK_MSG(twin == y, "%08x becomes %04x, but %04x in the twin", rounding_cases[i].bits, y, twin);
    }
}

static void rounding_equals_its_twin(void)
{
    enum { N = 4099 };
    float x[N];
    uint16_t y[N + 1], twin[N + 1];
    for (int round = 0; round < 50; round++) {
        size_t n = round < 40 ? (size_t)round : N;
        for (size_t i = 0; i < n; i++)
            x[i] = float_of(random_bits());
        y[n] = twin[n] = 0x1234;
        bf16_round(y, x, n);
        bf16_round_portable(twin, x, n);
        CHECK_MSG(memcmp(y, twin, (n + 1) * sizeof *y) == 0, "%zu numbers differ from the twin's", n);
        CHECK(y[n] == 0x1234);
        for (size_t i = 0; i < n; i++)
            CHECK(isnan(x[i]) ? isnan(widen(y[i])) : fabs(widen(y[i]) - x[i]) <= fabs(x[i]) / 256 + 1.2e-38);
    }
}

/* Each of the two sums may be off by half a unit of its last place, and no more. */
static void check_dot(const float *before, const float *after, const uint16_t *a, const uint16_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double p0 = (double)widen(a[2 * i]) * widen(b[2 * i]);
        double p1 = (double)widen(a[2 * i + 1]) * widen(b[2 * i + 1]);
        double unit = fabs(before[i]) + fabs(p0) + fabs(p1);
        CHECK(fabs(after[i] - (before[i] + p0 + p1)) <= 1.2e-7 * unit);
    }
}

static void dot_pairs_equal_their_twin(void)
{
    enum { N = 203 };
    float sum[N], machine[N + 1], twin[N + 1];
    uint16_t a[2 * N], b[2 * N];
    for (int round = 0; round < 100; round++) {
        size_t n = round < 70 ? (size_t)round : N;
        float x[2 * N], y[2 * N];
        for (size_t i = 0; i < 2 * n; i++)
            x[i] = random_float() * 8, y[i] = random_float();
        for (size_t i = 0; i < n; i++)
            machine[i] = twin[i] = sum[i] = random_float() * (float)(1 << round % 8);
        machine[n] = twin[n] = 7;
        bf16_round(a, x, 2 * n), bf16_round(b, y, 2 * n);
        bf16_dot_pairs(machine, a, b, n);
        bf16_dot_pairs_portable(twin, a, b, n);
        check_dot(sum, machine, a, b, n), check_dot(sum, twin, a, b, n);
        CHECK(machine[n] == 7 && twin[n] == 7);
    }
    const uint16_t special[] = {0x7f80, 0x3f80, 0x7fc0, 0x3f80}, ones[] = {0x3f80, 0x3f80, 0x3f80, 0x3f80};
    float y[2] = {1, 1}, z[2] = {1, 1};
    bf16_dot_pairs(y, special, ones, 2), bf16_dot_pairs_portable(z, special, ones, 2);
    CHECK(isinf(y[0]) && isinf(z[0]) && isnan(y[1]) && isnan(z[1]));
}

/* ---- linear layers -----------------------------------------------------------------------------*/

static uint32_t *packed_copy(const float *weight, int n, int k)
{
    uint32_t *packed = malloc(bf16_packed_size(n, k) * sizeof *packed + 1);
    if (!packed)
        abort();
    bf16_pack(packed, weight, n, k);
    return packed;
}

static void compare_linear(int m, int n, int k, int with_bias)
{
    float *x = random_array((size_t)m * (size_t)k), *w = random_array((size_t)n * (size_t)k);
    float *bias = random_array((size_t)n), *y = random_array((size_t)m * (size_t)n);
    float *truth = random_array((size_t)m * (size_t)n);
    float *rx = rounded_copy(x, (size_t)m * (size_t)k), *rw = rounded_copy(w, (size_t)n * (size_t)k);
    uint32_t *packed = packed_copy(w, n, k);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            truth[i * n + j] = with_bias ? bias[j] : 0;
    plain_matmul_nt(truth, n, rx, k, rw, k, m, n, k, 1);
    linear_layer(y, x, &(Linear){NULL, with_bias ? bias : NULL, packed, n, k}, m);
    double error = test_relative_error(y, truth, (size_t)m * (size_t)n);
    CHECK_MSG(error < 2e-6, "%d x %d x %d: relative error %.2g", m, n, k, error);
    free(x), free(w), free(bias), free(y), free(truth), free(rx), free(rw), free(packed);
}

static void linear_equals_the_plain_one(void)
{
    static const int sizes[] = {1, 2, 3, 5, 7, 8, 12, 13, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65};
    enum { N_SIZES = sizeof sizes / sizeof *sizes };
    for (int i = 0; i < 150; i++)
        compare_linear(sizes[random_bits() % N_SIZES], sizes[random_bits() % N_SIZES],
                       sizes[random_bits() % N_SIZES], i & 1);
    compare_linear(5, 9, 0, 1);
    compare_linear(400, 70, 131, 1); /* two tiles of rows */
    compare_linear(756, 33, 20, 1);  /* two tiles of the largest size */
    compare_linear(768, 5, 9, 0);
    compare_linear(9, 530, 67, 1);    /* two tiles of columns */
    compare_linear(13, 40, 1027, 0);  /* five blocks of the sum */
    compare_linear(197, 576, 192, 1); /* ViT-Tiny */
}

static void gelu_follows_its_product(void)
{
    static const int sizes[][3] = {{1, 1, 1}, {15, 37, 20}, {40, 70, 600}, {400, 530, 30}, {3, 5, 0}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
        const size_t size = (size_t)m * (size_t)n;
        float *x = random_array((size_t)m * (size_t)k), *w = random_array((size_t)n * (size_t)k);
        float *bias = random_array((size_t)n), *y = random_array(size), *truth = random_array(size);
        uint32_t *packed = packed_copy(w, n, k);
        linear_layer(truth, x, &(Linear){NULL, bias, packed, n, k}, m);
        gelu(truth, size);
        linear_layer_gelu(y, x, &(Linear){NULL, bias, packed, n, k}, m);
        CHECK_MSG(memcmp(y, truth, size * sizeof *y) == 0, "%d x %d x %d", m, n, k);
        free(x), free(w), free(bias), free(y), free(truth), free(packed);
    }
}

static void a_layer_has_its_precision(void)
{
    enum { M = 5, N = 33, K = 37 };
    float *x = random_array(M * K), *w = random_array(N * K), *bias = random_array(N);
    float single[M * N], half[M * N], y[M * N];
    Linear layer = {w, bias, NULL, N, K};
    linear(single, x, w, bias, M, N, K);
    Arena arena = {0};
    linear_pack(&layer, &arena); /* only counts */
    CHECK(!layer.packed && arena.used >= bf16_packed_size(N, K) * sizeof(uint32_t));
    linear_layer(y, x, &layer, M);
    CHECK(memcmp(y, single, sizeof y) == 0);
    void *memory = aligned_array(arena.used, 1);
    REQUIRE(memory);
    arena = (Arena){memory, arena.used, 0};
    linear_pack(&layer, &arena);
    REQUIRE(layer.packed && arena.used == arena.size);
    linear_layer(half, x, &(Linear){NULL, bias, layer.packed, N, K}, M);
    linear_layer(y, x, &layer, M);
    CHECK(memcmp(y, half, sizeof y) == 0);
    double error = test_relative_error(half, single, M * N);
    CHECK_MSG(error > 1e-5 && error < 1e-2, "bf16 differs from float32 by %.2g", error);
    Linear narrow = {w, bias, layer.packed, N, BF16_LEAST_TERMS - 1};
    linear_pack(&narrow, &arena); /* too short a sum */
    CHECK(!narrow.packed && arena.used == arena.size);
    free(memory), free(x), free(w), free(bias);
}

static void linear_keeps_non_finite_numbers_in_place(void)
{
    enum { M = 14, N = 35, K = 70 };
    float *x = random_array(M * K), *w = random_array(N * K), y[M * N];
    x[3 * K + 11] = NAN;
    x[7 * K + 69] = INFINITY;
    uint32_t *packed = packed_copy(w, N, K);
    linear_layer(y, x, &(Linear){NULL, NULL, packed, N, K}, M);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            CHECK(i == 3 ? isnan(y[i * N + j]) : i == 7 ? isinf(y[i * N + j]) : isfinite(y[i * N + j]));
    free(x), free(w), free(packed);
}

/* ---- attention ---------------------------------------------------------------------------------*/

typedef struct Heads {
    int n_q, n_k, n_heads, dim, grid_h, grid_w; /* grid 0: no relative positions */
    float *q, *k, *v, *out, *truth, *rel_h, *rel_w;
    void *scratch;
    RelativePosition rel;
} Heads;

static Heads heads_new(int n_q, int n_k, int n_heads, int dim, int grid_h, int grid_w)
{
    const size_t width = (size_t)n_heads * (size_t)dim;
    Heads h = {.n_q = n_q, .n_k = n_k, .n_heads = n_heads, .dim = dim, .grid_h = grid_h, .grid_w = grid_w};
    h.q = random_array((size_t)n_q * width), h.k = random_array((size_t)n_k * width);
    h.v = random_array((size_t)n_k * width);
    h.out = random_array((size_t)n_q * width), h.truth = random_array((size_t)n_q * width);
    h.rel_h = random_array(relative_position_floats(grid_h, dim));
    h.rel_w = random_array(relative_position_floats(grid_w, dim));
    h.scratch = aligned_array(bf16_attention_scratch(n_q, n_k, n_heads, dim, grid_h, grid_w), 1);
    if (!h.scratch)
        abort();
    h.rel = (RelativePosition){h.rel_h, h.rel_w, grid_h, grid_w, NULL};
    return h;
}

static void heads_free(Heads *h)
{
    free(h->q), free(h->k), free(h->v), free(h->out), free(h->truth), free(h->rel_h), free(h->rel_w);
    free(h->scratch);
}

static void heads_run(Heads *h, float scale)
{
    const int width = h->n_heads * h->dim;
    bf16_attention(h->out, width, h->q, width, h->k, width, h->v, width, h->n_q, h->n_k, h->n_heads, h->dim,
                   scale, h->grid_h ? &h->rel : NULL, h->scratch);
}

/* The truth has q, k and v rounded, but not the probabilities. Rounding changes each by at most 1/256 of
 * itself. So no output moves by more than 2/256 of the largest |v|, which is 1 here. The errors go in both
 * directions, so a quarter of the bound is never reached. */
static void compare_attention(int n_q, int n_k, int n_heads, int dim, int grid_h, int grid_w)
{
    Heads h = heads_new(n_q, n_k, n_heads, dim, grid_h, grid_w);
    const int width = n_heads * dim;
    const size_t n = (size_t)n_q * (size_t)width, nk = (size_t)n_k * (size_t)width;
    const float scale = 1 / sqrtf((float)dim);
    float *rounded[3] = {rounded_copy(h.q, n), rounded_copy(h.k, nk), rounded_copy(h.v, nk)};
    memcpy(h.q, rounded[0], n * sizeof(float)); /* relative positions see q unrounded */
    plain_attention(h.truth, width, h.q, width, rounded[1], width, rounded[2], width, n_q, n_k, n_heads, dim,
                    scale, grid_h ? &h.rel : NULL, NULL);
    heads_run(&h, scale);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)h.out[i] - (double)h.truth[i]) <= error))
            error = fabs((double)h.out[i] - (double)h.truth[i]);
    CHECK_MSG(error < 2e-3, "%d x %d, %d heads of %d, grid %d x %d: error %.2g", n_q, n_k, n_heads, dim,
              grid_h, grid_w, error);
    for (int i = 0; i < 3; i++)
        free(rounded[i]);
    heads_free(&h);
}

static void attention_equals_the_plain_one(void)
{
    compare_attention(1, 1, 1, 1, 0, 0);
    compare_attention(7, 3, 2, 5, 0, 0);
    compare_attention(97, 257, 2, 33, 0, 0); /* one more than a block of queries, and than a tile of keys */
    compare_attention(5, 600, 1, 64, 0, 0);
    compare_attention(40, 515, 1, 300, 0, 0); /* two blocks of head dimensions */
    compare_attention(3, 0, 1, 8, 0, 0);
    compare_attention(196, 196, 2, 64, 14, 14);
    compare_attention(400, 400, 1, 80, 20, 20);
    compare_attention(35, 35, 3, 16, 5, 7);
    compare_attention(300, 300, 1, 16, 1, 300); /* a row longer than a tile */
    compare_attention(300, 300, 1, 16, 300, 1);
    compare_attention(529, 529, 1, 24, 23, 23);
}

/* If the probabilities are only 0 and 1, only float32 sums remain. Keys are zero, and the relative positions
 * forbid every odd row and every third column. */
static void attention_places_relative_positions(void)
{
    enum { GRID_H = 19, GRID_W = 21, N = GRID_H * GRID_W, DIM = 40 };
    enum { COLUMNS = (GRID_W + REL_ALIGN - 1) / REL_ALIGN * REL_ALIGN }; /* of both tables */
    Heads h = heads_new(N, N, 1, DIM, GRID_H, GRID_W);
    memset(h.k, 0, N * DIM * sizeof(float));
    memset(h.rel_h, 0, relative_position_floats(GRID_H, DIM) * sizeof(float));
    memset(h.rel_w, 0, relative_position_floats(GRID_W, DIM) * sizeof(float));
    for (int q = 0; q < GRID_H; q++)
        for (int k = 0; k < GRID_H; k++)
            h.rel_h[q * DIM * COLUMNS + k] = (q + k) % 2 ? -1000 : 0;
    for (int q = 0; q < GRID_W; q++)
        for (int k = 0; k < GRID_W; k++)
            h.rel_w[q * DIM * COLUMNS + k] = (q + k) % 3 == 1 ? -1000 : 0;
    for (int i = 0; i < N; i++)
        h.q[i * DIM] = 1;
    float *v = rounded_copy(h.v, N * DIM);
    for (int i = 0; i < N; i++)
        for (int d = 0; d < DIM; d++) {
            double sum = 0, count = 0;
            for (int j = 0; j < N; j++) {
                if ((i / GRID_W + j / GRID_W) % 2 || (i % GRID_W + j % GRID_W) % 3 == 1)
                    continue;
                sum += v[j * DIM + d], count++;
            }
            h.truth[i * DIM + d] = (float)(sum / count);
        }
    heads_run(&h, 0.5f);
    double error = test_relative_error(h.out, h.truth, N * DIM);
    CHECK_MSG(error < 2e-6, "relative error %.2g", error);
    free(v);
    heads_free(&h);
}

/* A single window, copied out with its padding, is attention without windows: the same bits. */
static void windows_equal_copies(int grid_h, int grid_w, int window_h, int window_w)
{
    enum { HEADS = 2, DIM = 24, WIDTH = HEADS * DIM };
    const int n = grid_h * grid_w, tokens = window_h * window_w;
    Heads h = heads_new(tokens, tokens, HEADS, DIM, window_h, window_w);
    float *qkv = random_array((size_t)n * 3 * WIDTH), *pad = random_array(3 * WIDTH);
    float *out = random_array((size_t)n * WIDTH);
    void *scratch = aligned_array(bf16_window_scratch(grid_h, grid_w, window_h, window_w, HEADS, DIM), 1);
    REQUIRE(scratch);
    bf16_window_attention(out, qkv, pad, grid_h, grid_w, HEADS, DIM, 0.3f, &h.rel, scratch);
    for (int y0 = 0; y0 < grid_h; y0 += window_h)
        for (int x0 = 0; x0 < grid_w; x0 += window_w) {
            for (int i = 0; i < tokens; i++) {
                int y = y0 + i / window_w, x = x0 + i % window_w;
                const float *token = y < grid_h && x < grid_w ? qkv + (y * grid_w + x) * 3 * WIDTH : pad;
                memcpy(h.q + i * WIDTH, token, WIDTH * sizeof(float));
                memcpy(h.k + i * WIDTH, token + WIDTH, WIDTH * sizeof(float));
                memcpy(h.v + i * WIDTH, token + 2 * WIDTH, WIDTH * sizeof(float));
            }
            heads_run(&h, 0.3f);
            for (int i = 0; i < tokens; i++) {
                int y = y0 + i / window_w, x = x0 + i % window_w;
                if (y < grid_h && x < grid_w)
                    CHECK(!memcmp(out + (y * grid_w + x) * WIDTH, h.out + i * WIDTH, WIDTH * sizeof(float)));
            }
        }
    free(qkv), free(pad), free(out), free(scratch);
    heads_free(&h);
}

static void windows_need_no_copies(void)
{
    windows_equal_copies(14, 14, 14, 14);
    windows_equal_copies(16, 18, 14, 14);
    windows_equal_copies(7, 5, 3, 4);
    windows_equal_copies(5, 20, 6, 17); /* larger than the grid, and wider than a vector */
}

static void bits_do_not_depend_on_threads(void)
{
    enum { M = 450, N = 600, K = 300 };
    float *x = random_array(M * K), *w = random_array(N * K), *first = random_array(M * N);
    float *y = random_array(M * N);
    uint32_t *packed = packed_copy(w, N, K);
    Heads h = heads_new(529, 529, 3, 32, 23, 23);
    set_threads(1);
    linear_layer(first, x, &(Linear){NULL, w, packed, N, K}, M);
    heads_run(&h, 0.2f);
    memcpy(h.truth, h.out, 529 * 96 * sizeof(float));
    for (int threads = 2; threads <= 5; threads++) {
        set_threads(threads);
        linear_layer(y, x, &(Linear){NULL, w, packed, N, K}, M);
        CHECK(memcmp(y, first, M * N * sizeof *y) == 0);
        heads_run(&h, 0.2f);
        CHECK(memcmp(h.out, h.truth, 529 * 96 * sizeof(float)) == 0);
    }
    set_threads(thread_max());
    free(x), free(w), free(first), free(y), free(packed);
    heads_free(&h);
}

/* On a machine with a matrix unit, all tests above ran on it. The vectors must do the same. */
static void vectors_do_what_the_matrix_unit_does(void)
{
    enum { M = 70, N = 100, K = 333 };
    float *x = random_array(M * K), *w = random_array(N * K), unit[M * N], vectors[M * N];
    uint32_t *packed = packed_copy(w, N, K);
    linear_layer(unit, x, &(Linear){NULL, NULL, packed, N, K}, M);
    bf16_without_matrix_unit(1);
    CHECK(!bf16_matrix_unit());
    linear_layer(vectors, x, &(Linear){NULL, NULL, packed, N, K}, M);
    double error = test_relative_error(vectors, unit, M * N);
    CHECK_MSG(error < 2e-6, "the matrix unit and the vectors differ by %.2g", error);
    linear_equals_the_plain_one();
    gelu_follows_its_product();
    linear_keeps_non_finite_numbers_in_place();
    attention_equals_the_plain_one();
    windows_need_no_copies();
    bits_do_not_depend_on_threads();
    bf16_without_matrix_unit(0);
    free(x), free(w), free(packed);
}

int main(void)
{
    RUN(rounding_is_to_the_nearest_even);
    RUN(rounding_equals_its_twin);
    RUN(dot_pairs_equal_their_twin);
    RUN(linear_equals_the_plain_one);
    RUN(gelu_follows_its_product);
    RUN(a_layer_has_its_precision);
    RUN(linear_keeps_non_finite_numbers_in_place);
    RUN(attention_equals_the_plain_one);
    RUN(attention_places_relative_positions);
    RUN(windows_need_no_copies);
    RUN(bits_do_not_depend_on_threads);
    RUN(vectors_do_what_the_matrix_unit_does);
    return test_summary();
}
