/* bf16.c - linear layers and attention in bfloat16.
 *
 * They equal tensor.c's within rounding: the inputs are rounded alike, and the sums are float32 in another
 * order. The blocked product and the online softmax are those of gemm.c and attention.c; only the innermost
 * step differs. The machine's instruction takes two vectors of *pairs* of bf16. To each float of the sum it
 * adds the two products of its pair (Intel's VDPBF16PS). A pair holds adjacent terms of the sum, k and k+1:
 *
 *     sum[lane] += a[2·lane]·b[2·lane] + a[2·lane+1]·b[2·lane+1]
 *
 * So a pair, one uint32_t, takes the place of a float in gemm.c. A register holds LANES pairs. One pair of a
 * is broadcast against a vector of b, and one instruction does the work of two. Both operands come in pairs,
 * the even term first in memory. An odd k ends with a pair whose second half is zero.
 *
 * Processors with a matrix unit (amx.h) compute a whole block of 32 rows with it, from the same operands. */
#include "fast/bf16.h"

#include <math.h>

#include "fast/amx.h"
#include "io/bytes.h"

static int pairs_of(int k)
{
    return (k + 1) / 2;
}

/* Pairs in memory: whole steps of the matrix unit, the last one padded with zeros. */
static int stored_pairs(int k)
{
    return round_up(pairs_of(k), AMX_STEP);
}

/* ---- the two steps -----------------------------------------------------------------------------*/

INLINE BitsVec load_bits(const uint32_t *p)
{
    BitsVec v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* As tensor.c's bf16_round, lane by lane. The instruction treats subnormal numbers as zero, and so does this
 * function. */
INLINE HalfVec round_half(Vec x)
{
    BitsVec bits = (BitsVec)x, magnitude = bits & 0x7fffffff;
    BitsVec nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
    BitsVec is_nan = (BitsVec)(magnitude > 0x7f800000), is_tiny = (BitsVec)(magnitude < 0x00800000);
    nearest = (nearest & ~is_tiny) | (bits >> 16 & 0x8000 & is_tiny);
    return __builtin_convertvector((nearest & ~is_nan) | (nan & is_nan), HalfVec);
}

/* Turn 2·LANES adjacent floats into LANES pairs. */
INLINE BitsVec round_pairs_portable(Vec first, Vec second)
{
    HalfVec half[2] = {round_half(first), round_half(second)};
    BitsVec pairs;
    memcpy(&pairs, half, sizeof pairs);
    return pairs;
}

INLINE BitsVec round_pairs(Vec first, Vec second)
{
#ifdef __AVX512BF16__
    return (BitsVec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    return round_pairs_portable(first, second);
#endif
}

/* A bf16 is a float32 whose lower half is zero. So each term of a pair is one operation away. The order of
 * the two sums is that of AMD's processors; Intel's description has the other order. Both treat subnormal
 * numbers as zero. */
INLINE Vec dot_pairs_portable(BitsVec a, BitsVec b, Vec sum)
{
    sum = fmadd((Vec)(a & 0xffff0000), (Vec)(b & 0xffff0000), sum);
    return fmadd((Vec)(a << 16), (Vec)(b << 16), sum);
}

INLINE Vec dot_pairs(BitsVec a, BitsVec b, Vec sum)
{
#ifdef __AVX512BF16__
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return dot_pairs_portable(a, b, sum);
#endif
}

INLINE void round_all(uint16_t *y, const float *x, size_t n, BitsVec (*round)(Vec, Vec))
{
    for (size_t i = 0; i < n; i += NR) {
        float part[NR] = {0};
        size_t m = n - i < NR ? n - i : NR;
        memcpy(part, x + i, m * sizeof *x);
        BitsVec pairs = round(load(part), load(part + LANES));
        memcpy(y + i, &pairs, m * sizeof *y);
    }
}

void bf16_round(uint16_t *y, const float *x, size_t n)
{
    round_all(y, x, n, round_pairs);
}

void bf16_round_portable(uint16_t *y, const float *x, size_t n)
{
    round_all(y, x, n, round_pairs_portable);
}

INLINE void dot_all(float *sum, const uint16_t *a, const uint16_t *b, size_t n,
                    Vec (*dot_step)(BitsVec, BitsVec, Vec))
{
    for (size_t i = 0; i < n; i += LANES) {
        uint32_t pa[LANES] = {0}, pb[LANES] = {0};
        size_t m = n - i < LANES ? n - i : LANES;
        memcpy(pa, a + 2 * i, m * sizeof *pa);
        memcpy(pb, b + 2 * i, m * sizeof *pb);
        store_part(sum + i, dot_step(load_bits(pa), load_bits(pb), load_part(sum + i, m)), m);
    }
}

void bf16_dot_pairs(float *sum, const uint16_t *a, const uint16_t *b, size_t n)
{
    dot_all(sum, a, b, n, dot_pairs);
}

void bf16_dot_pairs_portable(float *sum, const uint16_t *a, const uint16_t *b, size_t n)
{
    dot_all(sum, a, b, n, dot_pairs_portable);
}

int bf16_matrix_unit(void)
{
    return amx_usable();
}

void bf16_without_matrix_unit(int without)
{
    atomic_store_explicit(&amx_unwanted, without, memory_order_relaxed);
}

double bf16_burst(int rounds)
{
    enum { CHAINS = 12 };
    int n_threads = 0;
    float total = 0;
    if (amx_usable()) {
        double multiply_adds = 0;
#pragma omp parallel reduction(+ : multiply_adds)
        multiply_adds += amx_burst(rounds / 32); /* for about the same time. */
        return 2e-9 * multiply_adds;
    }
#pragma omp parallel reduction(+ : n_threads, total)
    {
        Vec sum[CHAINS];
        BitsVec a = round_pairs(splat(1e-3f), splat(1e-3f)), b = round_pairs(splat(0.5f), splat(0.5f));
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = splat((float)i);
        for (int r = 0; r < rounds; r++)
            UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = dot_pairs(a, b, sum[i]);
        UNROLL for (int i = 0; i < CHAINS; i++) total += sum[i][0];
        n_threads++;
    }
    double gflop = 4e-9 * CHAINS * LANES * (double)rounds * n_threads;
    return total == 12345.0f ? 0 : gflop; /* uses the sums, so that they are computed. */
}

/* ---- packing -----------------------------------------------------------------------------------
 * Left operands are rows of pairs, PAIRS apart. Right operands are panels of NR columns; the last may be one
 * vector wide. Each panel is [stored pairs of the whole sum][width]. The register tile reads a panel from one
 * end to the other. The panel that begins with column j starts at j·pairs, because all panels before it are
 * NR wide. */
#define PAIRS 128 /* of a block of the sum. */
#define KC    (2 * PAIRS)
_Static_assert(PAIRS % AMX_STEP == 0 && PAIRS % LANES == 0, "a block is whole steps and vectors");

/* out[pairs_of(k)] = x[k], the last vector padded with zeros. */
static void round_row(uint32_t *out, const float *x, int k)
{
    int p = 0;
    for (; p + NR <= k; p += NR) {
        BitsVec pairs = round_pairs(load(x + p), load(x + p + LANES));
        memcpy(out + p / 2, &pairs, sizeof pairs);
    }
    if (p < k) {
        float part[NR] = {0};
        memcpy(part, x + p, (size_t)(k - p) * sizeof *x);
        BitsVec pairs = round_pairs(load(part), load(part + LANES));
        memcpy(out + p / 2, &pairs, sizeof pairs);
    }
}

static int panel_width(int columns_left)
{
    return columns_left > LANES ? NR : LANES;
}

size_t bf16_packed_size(int n_out, int n_in)
{
    return (size_t)stored_pairs(n_in) * (size_t)round_up(n_out, LANES);
}

/* panel[stored_pairs(k)][width] = the `cols` rows of k as columns, padded with zero columns. Rows are
 * rounded, then pairs become columns. */
static void pack_columns(uint32_t *panel, int width, const float *const *rows, int k, int cols)
{
    uint32_t rounded[NR * PAIRS] __attribute__((aligned(64)));
    for (int j = cols; j < width; j++)
        memset(rounded + j * PAIRS, 0, PAIRS * sizeof *rounded);
    for (int p0 = 0; p0 < k; p0 += KC, panel += PAIRS * width) {
        int kc = min_int(k - p0, KC), pairs = pairs_of(kc), stored = stored_pairs(kc);
        for (int j = 0; j < cols; j++)
            round_row(rounded + j * PAIRS, rows[j] + p0, kc);
        for (int j = 0; j < width; j += LANES) {
            const float *row[LANES];
            for (int i = 0; i < LANES; i++)
                row[i] = (const float *)(const void *)(rounded + (j + i) * PAIRS);
            rows_to_columns((float *)(void *)(panel + j), width, row, pairs);
        }
        memset(panel + pairs * width, 0, (size_t)((stored - pairs) * width) * sizeof *panel);
    }
}

/* In memory the even term comes first, as when a row is rounded. */
static uint32_t pair_of(uint16_t even, uint16_t odd)
{
    return BIG_ENDIAN_MEMORY ? (uint32_t)even << 16 | odd : even | (uint32_t)odd << 16;
}

/* panel[stored_pairs(k)][width] = k rows' columns from first on, `cols` of them, padded with zero columns. */
static void pack_rows(uint32_t *panel, int width, const float *const *rows, int first, int k, int cols)
{
    float even[NR] = {0}, odd[NR] = {0};
    for (int p = 0; p < k; p += 2, panel += width) {
        memcpy(even, rows[p] + first, (size_t)cols * sizeof *even);
        if (p + 1 < k)
            memcpy(odd, rows[p + 1] + first, (size_t)cols * sizeof *odd);
        else
            memset(odd, 0, sizeof odd);
        for (int j = 0; j < width; j += LANES) {
            BitsVec pairs = round_pairs(load(even + j), load(odd + j));
            uint16_t half[NR];
            memcpy(half, &pairs, sizeof half);
            for (int i = 0; i < LANES; i++)
                panel[j + i] = pair_of(half[i], half[LANES + i]);
        }
    }
    memset(panel, 0, (size_t)((stored_pairs(k) - pairs_of(k)) * width) * sizeof *panel);
}

void bf16_pack(uint32_t *packed, const float *weight, int n_out, int n_in)
{
    const ptrdiff_t pairs = stored_pairs(n_in);
#pragma omp parallel for schedule(dynamic)
    for (int j = 0; j < n_out; j += NR) {
        const float *rows[NR];
        const int cols = min_int(n_out - j, NR);
        for (int i = 0; i < cols; i++)
            rows[i] = weight + (ptrdiff_t)(j + i) * n_in;
        pack_columns(packed + j * pairs, panel_width(n_out - j), rows, n_in, cols);
    }
}

/* ---- the blocked matrix product ----------------------------------------------------------------*/

/* An output tile: its rounded rows of a stay in the L2 cache, and so do its sums. Beside the matrix unit the
 * rounding of a's rows takes a noticeable share of the time. So its tiles are wider, and each row is rounded
 * less often. */
#define MC     (112 / MR * MR) /* whole register tiles; the rounded rows are 57 KB of the stack. */
#define NC     768
#define AMX_MC 96
#define AMX_NC 1536
_Static_assert(MC % MR == 0 && NC % NR == 0 && AMX_MC % AMX_ROWS == 0 && AMX_NC % NR == 0 && AMX_MC <= MC,
               "tiles are whole register tiles");

/* c[rows][vecs·LANES] = start + a·b: a [rows][pairs] with rows PAIRS apart, b [pairs][vecs·LANES]. `rows` and
 * `vecs` are constants at each call, so that `sum` stays in registers. */
INLINE void pair_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const uint32_t *a,
                      const uint32_t *b, int pairs)
{
    Vec sum[MR][2];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = splat(0);
    for (int p = 0; p < pairs; p++) {
        BitsVec b0 = load_bits(b), b1 = vecs > 1 ? load_bits(b + LANES) : b0;
        b += vecs * LANES;
        UNROLL for (int i = 0; i < rows; i++)
        {
            BitsVec ai = a[i * PAIRS + p] - (BitsVec){0};
            sum[i][0] = dot_pairs(ai, b0, sum[i][0]);
            if (vecs > 1)
                sum[i][1] = dot_pairs(ai, b1, sum[i][1]);
        }
    }
    if (start.data) {
        UNROLL for (int i = 0; i < rows; i++)
        {
            sum[i][0] += load(start.data + i * start.ld);
            if (vecs > 1)
                sum[i][1] += load(start.data + i * start.ld + LANES);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
    {
        store(c + i * ldc, sum[i][0]);
        if (vecs > 1)
            store(c + i * ldc + LANES, sum[i][1]);
    }
}

/* pair_tile for 1 <= rows <= MR, 1 <= vecs <= 2, known only at run time. */
static void any_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const uint32_t *a,
                     const uint32_t *b, int pairs)
{
    /* clang-format off */
#define CASE(n)                                                       \
    case n:                                                           \
        if (vecs > 1)                                                 \
            pair_tile(n, 2, c, ldc, start, a, b, pairs);          \
        else                                                          \
            pair_tile(n, 1, c, ldc, start, a, b, pairs);          \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MR == 14
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
    /* clang-format on */
}

/* The number of rows that one step of product_panel takes. */
static int group_rows(int with_amx)
{
    return with_amx ? AMX_ROWS : MR;
}

/* c[rows][width] = start + a·b for one group of rows, by the matrix unit or by vectors. */
static void group_product(Amx *amx, int rows, int width, float *c, ptrdiff_t ldc, Start start,
                          const uint32_t *a, const uint32_t *b, int pairs)
{
    if (amx->usable)
        amx_product(amx, rows, width, c, ldc, start, a, PAIRS, b, round_up(pairs, AMX_STEP));
    else
        any_tile(rows, width / LANES, c, ldc, start, a, b, pairs);
}

/* A group whose last vector is not full. It is computed in a buffer, and its `cols` columns are copied. */
static void edge_product(Amx *amx, int rows, int width, int cols, float *c, ptrdiff_t ldc, Start start,
                         const uint32_t *a, const uint32_t *b, int pairs)
{
    float full[AMX_ROWS * NR] __attribute__((aligned(64)));
    group_product(amx, rows, width, full, NR, (Start){NULL, 0}, a, b, pairs);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] = full[i * NR + j] + (start.data ? start.data[i * start.ld + j] : 0);
}

/* c[m][cols] = start + a·panel, panel [pairs][width]; only these cols columns of c and start are touched. */
static void product_panel(Amx *amx, float *c, ptrdiff_t ldc, Start start, const uint32_t *a,
                          const uint32_t *panel, int width, int m, int cols, int pairs)
{
    const int group = group_rows(amx->usable);
    for (int i = 0; i < m; i += group) {
        int rows = min_int(m - i, group);
        Start s = {start.data ? start.data + i * start.ld : NULL, start.ld};
        if (cols == width)
            group_product(amx, rows, width, c + i * ldc, ldc, s, a + i * PAIRS, panel, pairs);
        else
            edge_product(amx, rows, width, cols, c + i * ldc, ldc, s, a + i * PAIRS, panel, pairs);
    }
}

/* One output tile (m <= MC): all blocks of the sum, one after the other. Each tile of a row of tiles rounds
 * the rows of a again. That is one instruction for 2·LANES terms, against NC products with each. packed
 * points to the tile's first column. */
static void product_tile(float *c, ptrdiff_t ldc, Start start, const float *a, const uint32_t *packed, int m,
                         int n, int k, Epilogue epilogue)
{
    uint32_t block[MC * PAIRS] __attribute__((aligned(64)));
    Amx amx = amx_begin();
    for (int p = 0; p == 0 || p < k; p += KC) { /* k = 0 still writes its start. */
        int kc = min_int(k - p, KC);
        for (ptrdiff_t i = 0; i < m && kc > 0; i++)
            round_row(block + i * PAIRS, a + i * k + p, kc);
        for (ptrdiff_t j = 0; j < n; j += NR) {
            int cols = min_int(n - (int)j, NR), width = panel_width(cols);
            Start s = {start.data ? start.data + j : NULL, start.ld};
            product_panel(&amx, c + j, ldc, s, block, packed + j * stored_pairs(k) + p / 2 * width, width, m,
                          cols, pairs_of(kc));
            if (epilogue == EPILOGUE_GELU && p + KC >= k)
                gelu_rows(c + j, ldc, m, cols);
        }
        start = (Start){c, ldc};
    }
    amx_end(&amx);
}

/* The whole product: equal tiles, the last ones smaller. */
typedef struct Product {
    float *y;
    const float *x, *bias;
    const uint32_t *packed;
    int m, n, k;
    Epilogue epilogue;
    int tile_m, tile_n, across; /* tiles: their size, tiles side by side. */
} Product;

static void numbered_tile(const void *job, int t)
{
    const Product *p = job;
    const ptrdiff_t i = (ptrdiff_t)(t / p->across) * p->tile_m, j = (ptrdiff_t)(t % p->across) * p->tile_n;
    if (i >= p->m || j >= p->n)
        return;
    product_tile(p->y + i * p->n + j, p->n, (Start){p->bias ? p->bias + j : NULL, 0}, p->x + i * p->k,
                 p->packed + j * stored_pairs(p->k), min_int(p->m - (int)i, p->tile_m),
                 min_int(p->n - (int)j, p->tile_n), p->k, p->epilogue);
}

static void product(float *y, const float *x, const uint32_t *packed, const float *bias, int m, int n, int k,
                    Epilogue epilogue)
{
    if (m <= 0 || n <= 0)
        return;
    const int amx = amx_usable(), most_m = amx ? AMX_MC : MC, most_n = amx ? AMX_NC : NC;
    const int down = (m + most_m - 1) / most_m, across = (n + most_n - 1) / most_n;
    const Product p = {.y = y,
                       .x = x,
                       .bias = bias,
                       .packed = packed,
                       .m = m,
                       .n = n,
                       .k = k,
                       .epilogue = epilogue,
                       .tile_m = round_up((m + down - 1) / down, group_rows(amx)),
                       .tile_n = round_up((n + across - 1) / across, NR),
                       .across = across};
    run_tasks(down * across, threads_for((double)m * n * (k + 1), PARALLEL_PRODUCT), numbered_tile, NULL, &p);
}

void linear_layer(float *y, const float *x, const Linear *l, int m)
{
    if (l->packed)
        product(y, x, l->packed, l->bias, m, l->n_out, l->n_in, EPILOGUE_NONE);
    else
        linear(y, x, l->weight, l->bias, m, l->n_out, l->n_in);
}

void linear_layer_gelu(float *y, const float *x, const Linear *l, int m)
{
    if (l->packed)
        product(y, x, l->packed, l->bias, m, l->n_out, l->n_in, EPILOGUE_GELU);
    else
        linear_epilogue(y, x, l->weight, l->bias, m, l->n_out, l->n_in, EPILOGUE_GELU);
}

void linear_pack(Linear *l, Arena *arena)
{
    if (l->n_in < BF16_LEAST_TERMS) {
        l->packed = NULL;
        return;
    }
    uint32_t *packed = arena_take(arena, bf16_packed_size(l->n_out, l->n_in) * sizeof *packed);
    if (packed)
        bf16_pack(packed, l->weight, l->n_out, l->n_in);
    l->packed = packed;
}

/* ---- attention ---------------------------------------------------------------------------------
 * A problem is one head of one window (without windows: of all tokens). First each problem's keys, values and
 * relative positions are prepared in the scratch, once for all of its queries. A task is at most QUERIES
 * queries of a problem. It goes through the keys in tiles of KEYS with the online softmax, as in attention.c.
 * Logits are in units of log 2. */
#define QUERIES (98 / MR * MR) /* whole groups of rows; the buffers below stay under 200 KiB a thread. */
#define KEYS    KC             /* so a tile of probabilities is a block of the sum of the product with v. */
#define LOG2_E  1.44269504088896340736f

typedef struct Grid {
    int h, w;
} Grid;

typedef struct Attention {
    float *out;
    const float *q, *k, *v;
    ptrdiff_t ldo, ldq, ldk, ldv;
    const float *pad_k, *pad_v;    /* of keys beyond the edge of the grid, or NULL without windows. */
    Grid queries, keys;            /* whole grids; 1 × n without relative positions. */
    Grid query_window, key_window; /* grids of a problem, padding included. */
    int across, n_problems;        /* windows side by side; windows × heads. */
    int query_blocks, block;       /* blocks of a problem, and queries of a block. */
    int n_heads, head_dim;
    float scale;
    const RelativePosition *rel; /* or NULL */
    int rel_h_ld, rel_w_ld;      /* rows of rel_h and rel_w below; 0 without. */
    int sums_ld;                 /* head_dim in whole vectors. */
    size_t keys_size, values_size;
    uint32_t *packed_keys, *packed_values; /* [n_problems][keys_size], [n_problems][values_size] */
    float *rel_h, *rel_w;                  /* [n_problems][n_q][rel_*_ld]: log2(e)·q·rel */
    float *sums;                           /* [n_problems][n_q][sums_ld]: probabilities·v */
    int threads;
    struct AttentionTask *tasks; /* [threads] */
} Attention;

static int area(Grid g)
{
    return g.h * g.w;
}

static void set_windows(Attention *a, Grid queries, Grid keys, Grid query_window, Grid key_window)
{
    const int down = (queries.h + query_window.h - 1) / query_window.h;
    a->queries = queries, a->keys = keys;
    a->query_window = query_window, a->key_window = key_window;
    a->across = (queries.w + query_window.w - 1) / query_window.w;
    a->n_problems = down * a->across * a->n_heads;
}

/* Rows of rel_w have a spare vector, so that whole vectors can be read from any place. */
static void lay_out(Attention *a, Arena *arena, int with_rel)
{
    const size_t n = (size_t)a->n_problems, rows = n * (size_t)area(a->query_window);
    a->rel_h_ld = with_rel ? round_up(a->key_window.h, REL_ALIGN) : 0;
    a->rel_w_ld = with_rel ? round_up(a->key_window.w, REL_ALIGN) + LANES : 0;
    a->sums_ld = round_up(a->head_dim, LANES);
    a->keys_size = bf16_packed_size(area(a->key_window), a->head_dim);
    a->values_size = bf16_packed_size(a->head_dim, area(a->key_window));
    a->packed_keys = arena_take(arena, n * a->keys_size * sizeof *a->packed_keys);
    a->packed_values = arena_take(arena, n * a->values_size * sizeof *a->packed_values);
    a->rel_h = arena_floats(arena, rows * (size_t)a->rel_h_ld);
    a->rel_w = arena_floats(arena, rows * (size_t)a->rel_w_ld);
    a->sums = arena_floats(arena, rows * (size_t)a->sums_ld);
}

/* The origin of a window, and the number of its queries inside the grid. */
typedef struct Window {
    int y, x, h, w;
} Window;

static Window window_of(const Attention *a, int problem)
{
    const int window = problem / a->n_heads;
    Window w = {window / a->across * a->query_window.h, window % a->across * a->query_window.w, 0, 0};
    w.h = min_int(a->query_window.h, a->queries.h - w.y);
    w.w = min_int(a->query_window.w, a->queries.w - w.x);
    return w;
}

/* The row in q and out of a window's query i; padding is not counted. */
static ptrdiff_t query_row(const Attention *a, const Window *w, int i)
{
    return (ptrdiff_t)(w->y + i / w->w) * a->queries.w + w->x + i % w->w;
}

/* rows[n] = the keys (or values) of a window from `first` on, padding included. */
static void key_rows(const float **rows, const Attention *a, const Window *w, const float *base, ptrdiff_t ld,
                     const float *pad, int first, int n)
{
    for (int i = 0; i < n; i++) {
        int y = w->y + (first + i) / a->key_window.w, x = w->x + (first + i) % a->key_window.w;
        rows[i] = y < a->keys.h && x < a->keys.w ? base + ((ptrdiff_t)y * a->keys.w + x) * ld : pad;
    }
}

/* Pack at most KEYS keys and values of a problem from `first` on. */
static void pack_keys(const Attention *a, int problem, int first)
{
    const float *rows[KEYS];
    const Window w = window_of(a, problem);
    const int n = min_int(area(a->key_window) - first, KEYS), dim = a->head_dim;
    const ptrdiff_t head = (ptrdiff_t)(problem % a->n_heads) * dim, pairs = stored_pairs(area(a->key_window));
    uint32_t *k = a->packed_keys + (size_t)problem * a->keys_size;
    uint32_t *v = a->packed_values + (size_t)problem * a->values_size;
    key_rows(rows, a, &w, a->k + head, a->ldk, a->pad_k ? a->pad_k + head : NULL, first, n);
    for (int j = 0; j < n; j += NR)
        pack_columns(k + (ptrdiff_t)(first + j) * stored_pairs(dim), panel_width(n - j), rows + j, dim,
                     min_int(n - j, NR));
    key_rows(rows, a, &w, a->v + head, a->ldv, a->pad_v ? a->pad_v + head : NULL, first, n);
    for (int d = 0; d < dim; d += NR) {
        int width = panel_width(dim - d);
        pack_rows(v + d * pairs + (ptrdiff_t)(first / 2) * width, width, rows, d, n, min_int(dim - d, NR));
    }
}

/* out[rows][width] = log2(e)·q·table, in float32; table [head_dim][table_ld], width in whole vectors. */
static void rel_product(float *out, ptrdiff_t ldo, const float *q, ptrdiff_t ldq, int rows,
                        const float *table, int table_ld, int width, int head_dim)
{
    const Start none = {NULL, 0};
    for (int i = 0; i < rows; i += MR)
        for (int j = 0; j < width; j += NR)
            micro_kernel_any(min_int(rows - i, MR), width - j > LANES ? 2 : 1, out + i * ldo + j, ldo, none,
                             q + i * ldq, ldq, table + j, table_ld, head_dim, NULL);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < width; j += LANES)
            store(out + i * ldo + j, load(out + i * ldo + j) * splat(LOG2_E));
}

/* The queries of one row of the window share rel_h's matrix, those of one column rel_w's. `line` numbers the
 * rows, then, from the window's height on, the columns. */
static void rel_line(const Attention *a, int problem, int line)
{
    const Window w = window_of(a, problem);
    const int dim = a->head_dim, column = line - a->query_window.h;
    const float *q = a->q + (ptrdiff_t)(problem % a->n_heads) * dim;
    const ptrdiff_t first = (ptrdiff_t)problem * area(a->query_window);
    if (line < w.h) {
        int stride = a->rel_h_ld, query = line * w.w;
        rel_product(a->rel_h + (first + query) * stride, stride, q + query_row(a, &w, query) * a->ldq, a->ldq,
                    w.w, a->rel->rel_h + (ptrdiff_t)line * dim * stride, stride,
                    round_up(a->key_window.h, LANES), dim);
    } else if (column >= 0 && column < w.w) {
        int stride = a->rel_w_ld - LANES;
        rel_product(a->rel_w + (first + column) * a->rel_w_ld, (ptrdiff_t)w.w * a->rel_w_ld,
                    q + query_row(a, &w, column) * a->ldq, a->queries.w * a->ldq, w.h,
                    a->rel->rel_w + (ptrdiff_t)column * dim * stride, stride,
                    round_up(a->key_window.w, LANES), dim);
    }
}

typedef struct AttentionTask {
    uint32_t q[QUERIES * PAIRS] __attribute__((aligned(64)));             /* a block of columns of q. */
    float logits[QUERIES * KEYS] __attribute__((aligned(64)));            /* of a tile */
    uint32_t probabilities[QUERIES * PAIRS] __attribute__((aligned(64))); /* the same, rounded. */
    float max[QUERIES], sum[QUERIES];
    const float *rows[QUERIES]; /* of q */
    Amx amx;
} AttentionTask;

/* c[m][n] = start + a·B over the block of `pairs` pairs that begins with `first`. B has `all_pairs` stored
 * pairs. The rows of c and start are padded to whole vectors, so all columns of a panel are computed. */
static void product_block(Amx *amx, float *c, ptrdiff_t ldc, Start start, const uint32_t *a,
                          const uint32_t *b, int all_pairs, int m, int n, int first, int pairs)
{
    for (ptrdiff_t j = 0; j < n; j += NR) {
        const int width = panel_width(n - (int)j);
        Start s = {start.data ? start.data + j : NULL, start.ld};
        product_panel(amx, c + j, ldc, s, a, b + j * all_pairs + (ptrdiff_t)first * width, width, m, width,
                      pairs);
    }
}

/* task->logits[n_q][n_keys] = q·kᵀ, in blocks of KC of the head's dimensions. In the usual case there is one
 * block. It is rounded into task->q before the first tile and stays there. */
static void tile_logits(AttentionTask *task, const uint32_t *keys, int dim, int n_q, int n_keys,
                        int first_tile)
{
    for (int d = 0; d < dim; d += KC) {
        int dims = min_int(dim - d, KC);
        if (first_tile || dim > KC)
            for (int i = 0; i < n_q; i++)
                round_row(task->q + i * PAIRS, task->rows[i] + d, dims);
        product_block(&task->amx, task->logits, KEYS, (Start){d ? task->logits : NULL, KEYS}, task->q, keys,
                      stored_pairs(dim), n_q, n_keys, d / 2, pairs_of(dims));
    }
}

/* Turn row i's dot products into probabilities relative to the running maximum. bias is added to the scaled
 * products. The sum is that of the rounded probabilities, so that the weights of the values sum to one.
 * Returns the factor of the earlier sums. */
static float tile_softmax(AttentionTask *task, int i, int keys, float scale, const float *bias)
{
    float *row = task->logits + i * KEYS;
    uint32_t *probability = task->probabilities + i * PAIRS;
    const int padded = round_up(keys, NR);
    for (int j = keys; j < padded; j++)
        row[j] = -INFINITY;
    const float before = task->max[i];
    Vec most0 = splat(before), most1 = most0;
    for (int j = 0; j < padded; j += NR) {
        Vec x0 = load(row + j) * splat(scale), x1 = load(row + j + LANES) * splat(scale);
        if (bias)
            x0 += load(bias + j), x1 += load(bias + j + LANES);
        store(row + j, x0);
        store(row + j + LANES, x1);
        most0 = vec_max(x0, most0);
        most1 = vec_max(x1, most1);
    }
    const float max = max_lanes(vec_max(most0, most1));
    const BitsVec ones = (BitsVec){0} + 0x3f803f80u;
    Vec sum = {0};
    for (int j = 0; j < padded; j += NR) {
        BitsVec pairs =
            round_pairs(vec_exp2(load(row + j) - splat(max)), vec_exp2(load(row + j + LANES) - splat(max)));
        memcpy(probability + j / 2, &pairs, sizeof pairs);
        sum = dot_pairs(pairs, ones, sum);
    }
    float factor = max == before ? 1 : exp2f(before - max); /* the first time 2^-inf = 0. */
    task->sum[i] = task->sum[i] * factor + sum_lanes(sum);
    task->max[i] = max;
    return factor;
}

/* bias[keys] = h[kh] + w[kw] of one query and the keys from `first` on. Whole vectors are written. A vector
 * that reaches into the next row of keys is overwritten by that row. Beyond the last key are zeros. */
static void rel_bias(float *bias, const float *h, const float *w, int key_w, int first, int keys)
{
    int kh = first / key_w, kw = first % key_w;
    for (int at = 0; at < keys; kh++, kw = 0) {
        int run = min_int(key_w - kw, keys - at);
        for (int c = 0; c < run; c += LANES)
            store(bias + at + c, load(w + kw + c) + splat(h[kh]));
        at += run;
    }
    store(bias + keys, splat(0));
    store(bias + keys + LANES, splat(0));
}

static void scale_row(float *to, const float *from, float factor, int n)
{
    for (int d = 0; d < n; d++)
        to[d] = from[d] * factor;
}

/* One tile of keys: sums = factor·sums + probabilities·v. */
static void tile_of_keys(AttentionTask *task, const Attention *a, int problem, int first_query, int n_q,
                         int first_key)
{
    const int n_k = area(a->key_window), keys = min_int(n_k - first_key, KEYS), dim = a->head_dim;
    const size_t first = (size_t)problem * (size_t)area(a->query_window) + (size_t)first_query;
    float *sums = a->sums + first * (size_t)a->sums_ld, bias[KEYS + NR];
    tile_logits(task,
                a->packed_keys + (size_t)problem * a->keys_size + (ptrdiff_t)first_key * stored_pairs(dim),
                dim, n_q, keys, first_key == 0);
    for (int i = 0; i < n_q; i++) {
        const size_t row = first + (size_t)i;
        if (a->rel)
            rel_bias(bias, a->rel_h + row * (size_t)a->rel_h_ld, a->rel_w + row * (size_t)a->rel_w_ld,
                     a->key_window.w, first_key, keys);
        float factor = tile_softmax(task, i, keys, a->scale * LOG2_E, a->rel ? bias : NULL);
        if (first_key > 0 && factor != 1)
            scale_row(sums + i * a->sums_ld, sums + i * a->sums_ld, factor, dim);
    }
    product_block(&task->amx, sums, a->sums_ld, (Start){first_key > 0 ? sums : NULL, a->sums_ld},
                  task->probabilities, a->packed_values + (size_t)problem * a->values_size, stored_pairs(n_k),
                  n_q, dim, first_key / 2, pairs_of(keys));
}

/* n_q <= QUERIES queries of a problem from first_query on. */
static void attention_task(AttentionTask *task, const Attention *a, int problem, int first_query, int n_q)
{
    const Window w = window_of(a, problem);
    const int dim = a->head_dim, head = problem % a->n_heads * dim;
    const size_t first = (size_t)problem * (size_t)area(a->query_window) + (size_t)first_query;
    n_q = min_int(n_q, w.h * w.w - first_query);
    task->amx = amx_begin();
    for (int i = 0; i < n_q; i++) {
        task->rows[i] = a->q + query_row(a, &w, first_query + i) * a->ldq + head;
        task->max[i] = -INFINITY, task->sum[i] = 0;
    }
    for (int first_key = 0; first_key < area(a->key_window); first_key += KEYS)
        tile_of_keys(task, a, problem, first_query, n_q, first_key);
    amx_end(&task->amx);
    for (int i = 0; i < n_q; i++) {
        float *out = a->out + query_row(a, &w, first_query + i) * a->ldo + head;
        if (area(a->key_window) > 0)
            scale_row(out, a->sums + (first + (size_t)i) * (size_t)a->sums_ld, 1 / task->sum[i], dim);
        else
            memset(out, 0, (size_t)dim * sizeof *out);
    }
}

/* The tasks of an attention by number. Those of a problem follow each other. */

static int key_tiles(const Attention *a)
{
    return (area(a->key_window) + KEYS - 1) / KEYS;
}

static int rel_lines(const Attention *a)
{
    return a->rel ? a->query_window.h + a->query_window.w : 0;
}

static void numbered_keys(const void *job, int t)
{
    const Attention *a = job;
    pack_keys(a, t / key_tiles(a), t % key_tiles(a) * KEYS);
}

static void numbered_line(const void *job, int t)
{
    const Attention *a = job;
    rel_line(a, t / rel_lines(a), t % rel_lines(a));
}

static void numbered_queries(const void *job, int t)
{
    const Attention *a = job;
    attention_task(&a->tasks[task_thread(a->threads)], a, t / a->query_blocks, t % a->query_blocks * a->block,
                   a->block);
}

static void attend(Attention *a)
{
    const int group = group_rows(amx_usable()), most = QUERIES / group * group, n_q = area(a->query_window);
    const double work = (double)n_q * area(a->key_window) * a->head_dim * a->n_problems;
    const int threads = threads_for(work, PARALLEL_PRODUCT);
    a->query_blocks = (n_q + most - 1) / most;
    if (a->query_blocks <= 0)
        return;
    a->threads = threads;
    a->tasks = reserved_scratch((size_t)threads * sizeof *a->tasks);
    a->block = min_int(round_up((n_q + a->query_blocks - 1) / a->query_blocks, group), most);
    run_tasks(a->n_problems * key_tiles(a), threads, numbered_keys, NULL, a);
    run_tasks(a->n_problems * rel_lines(a), threads, numbered_line, NULL, a);
    run_tasks(a->n_problems * a->query_blocks, threads, numbered_queries, NULL, a);
}

static void set_attention(Attention *a, int n_q, int n_k, int rel_h, int rel_w)
{
    Grid queries = rel_h ? (Grid){rel_h, rel_w} : (Grid){1, n_q};
    Grid keys = rel_h ? queries : (Grid){1, n_k};
    set_windows(a, queries, keys, queries, keys);
}

size_t bf16_attention_task_bytes(void)
{
    return sizeof(AttentionTask);
}

size_t bf16_attention_scratch(int n_q, int n_k, int n_heads, int head_dim, int rel_h, int rel_w)
{
    Attention a = {.n_heads = n_heads, .head_dim = head_dim};
    Arena arena = {0};
    set_attention(&a, n_q, n_k, rel_h, rel_w);
    lay_out(&a, &arena, rel_h > 0);
    return arena.used;
}

size_t bf16_window_scratch(int grid_h, int grid_w, int window_h, int window_w, int n_heads, int head_dim)
{
    Attention a = {.n_heads = n_heads, .head_dim = head_dim};
    Arena arena = {0};
    const Grid grid = {grid_h, grid_w}, window = {window_h, window_w};
    set_windows(&a, grid, grid, window, window);
    lay_out(&a, &arena, 1);
    return arena.used;
}

void bf16_attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                    int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                    const RelativePosition *rel, void *scratch)
{
    Attention a = {.out = out, .q = q, .k = k, .v = v, .ldo = ldo, .ldq = ldq, .ldk = ldk, .ldv = ldv};
    if (n_q <= 0)
        return;
    a.n_heads = n_heads, a.head_dim = head_dim, a.scale = scale, a.rel = rel;
    set_attention(&a, n_q, n_k, rel ? rel->grid_h : 0, rel ? rel->grid_w : 0);
    lay_out(&a, &(Arena){.base = scratch, .size = SIZE_MAX}, rel != NULL);
    attend(&a);
}

void bf16_window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w,
                           int n_heads, int head_dim, float scale, const RelativePosition *rel, void *scratch)
{
    const ptrdiff_t dim = (ptrdiff_t)n_heads * head_dim;
    const Grid grid = {grid_h, grid_w}, window = {rel->grid_h, rel->grid_w};
    Attention a = {.out = out, .q = qkv, .k = qkv + dim, .v = qkv + 2 * dim, .ldo = dim};
    a.ldq = a.ldk = a.ldv = 3 * dim;
    a.pad_k = pad + dim, a.pad_v = pad + 2 * dim;
    a.n_heads = n_heads, a.head_dim = head_dim, a.scale = scale, a.rel = rel;
    set_windows(&a, grid, grid, window, window);
    lay_out(&a, &(Arena){.base = scratch, .size = SIZE_MAX}, 1);
    attend(&a);
}
