/* tensor.c - matrix products, attention, and the small routines of a transformer. See tensor.h for the
 * contracts; resampling (interpolation, blur, PIL's resize) stands in resample.c.
 *
 * Speed comes from three habits, each written down once:
 *   - the compiler's vector types (`Vec` of simd.h, as wide as the machine's registers), so that one source
 *     serves AVX-512, AVX2, NEON and SSE. Only the fused multiply-add needs a name of its own, `fmadd`;
 *   - the blocked matrix product of Goto and van de Geijn ("Anatomy of High-Performance Matrix
 *     Multiplication", 2008): a tile of c stays in registers while slices of a and b pass through the
 *     caches. linear(), matmul() and attention() are all built on the one `register_tile`;
 *   - threads take whole tiles of the output. No sum is ever divided among threads, and the order of the
 *     terms in a sum depends on the shape alone, so results are the same bits for any number of threads. */
#include "tensor.h"
#include "simd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- memory and threads ------------------------------------------------------------------------*/

void *arena_take(Arena *arena, size_t n_bytes)
{
    size_t size = (n_bytes + 63) & ~(size_t)63;
    char *taken = arena->base ? arena->base + arena->used : NULL;
    arena->used += size;
    return taken;
}

float *arena_floats(Arena *arena, size_t n_floats)
{
    return arena_take(arena, n_floats * sizeof(float));
}

#define HUGE_PAGE ((size_t)2 << 20)

void *aligned_array(size_t count, size_t size)
{
    if (size != 0 && count > (SIZE_MAX / 2) / size)
        return NULL;
    /* Large arrays in huge pages where the system has them: a walk over rows that are far apart then finds
     * its addresses in the processor's table, and a 512th of the page faults remains. */
    const size_t align = count * size >= 4 * HUGE_PAGE ? HUGE_PAGE : 64;
    size_t n_bytes = (count * size + align - 1) & ~(align - 1);
    void *array = aligned_alloc(align, n_bytes ? n_bytes : 64);
#ifdef MADV_HUGEPAGE
    if (array && align == HUGE_PAGE)
        madvise(array, n_bytes, MADV_HUGEPAGE);
#endif
    return array;
}

int tensor_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* Threads that a parallel region begun here would have. */
static int team_size(void)
{
#ifdef _OPENMP
    return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

/* The chains of sums are enough to keep every unit busy in spite of each one's latency. */
double fma_burst(int rounds)
{
    enum { CHAINS = 12 };
    int n_threads = 0;
    float total = 0;
#pragma omp parallel reduction(+ : n_threads, total)
    {
        volatile float factor = 0.999f,
                       term = 1e-3f; /* so that both stay in registers: else gcc reads them again */
        Vec sum[CHAINS], a = splat(factor), b = splat(term);
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = splat((float)i);
        for (int r = 0; r < rounds; r++)
            UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = fmadd(sum[i], a, b);
        UNROLL for (int i = 0; i < CHAINS; i++) total += sum[i][0];
        n_threads++;
    }
    double gflop = 2e-9 * CHAINS * LANES * (double)rounds * n_threads;
    return total == 12345.0f ? 0 : gflop; /* the sums are used, so that they are worked out */
}

/* Below these a parallel region costs more than it gains. */
#define PARALLEL_PRODUCT  (1 << 20) /* multiply-adds */
#define PARALLEL_ELEMENTS (1 << 15)

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static int round_up(int n, int step)
{
    return (n + step - 1) / step * step;
}

/* ---- the blocked matrix product ----------------------------------------------------------------
 * c[m][n] = a[m][k] · B, B being b[k][n] or, transposed, b[n][k]. Loops from the outside in:
 *   output tiles of at most MC × NC              one thread each; kept balanced, see `product`
 *   blocks of KC terms of the sum                b's KC × NC block is packed on the stack (second cache)
 *   groups of MR rows                            a's MR × KC panel is copied to the stack (first cache)
 *   slivers of NR columns                        the register tile
 * The copies make every access of the register tile unit-stride, whatever the matrices' row distances. Of b,
 * usually the weights, each element is packed once for MC rows; of a, each is copied once for NC columns; c
 * is read and written once for KC terms. While one group of rows is worked off, the next is called into the
 * cache. The register tile's 2·MR sums, two vectors of b and one broadcast element of a fit the register
 * file: 28 + 3 of AVX-512's 32 registers, else 12 + 3 of 16. */
#if defined(__AVX512F__)
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * LANES)
#define MC 2048
#define NC 384 /* a multiple of every NR */
#define KC 192

typedef struct Operand {
    const float *data;
    ptrdiff_t ld;
    int transposed; /* 0: data[k][n], 1: data[n][k] */
} Operand;

/* What a block of c starts from: NULL = zero, else rows `ld` apart (c itself: accumulate; ld 0: a bias). */
typedef struct Start {
    const float *data;
    ptrdiff_t ld;
} Start;

/* c[rows][vecs·LANES] = start + a·b for a [rows][k] with rows KC apart and b [k][vecs·LANES] packed. `rows`
 * and `vecs` are constants where this is inlined, so that `sum` lives in registers. */
INLINE void register_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a,
                          const float *b, int k)
{
    Vec sum[MR][2];
    UNROLL for (int i = 0; i < rows; i++)
    {
        sum[i][0] = sum[i][1] = splat(0);
        __builtin_prefetch(c + i * ldc); /* needed when the sums are done */
        __builtin_prefetch(c + i * ldc + LANES);
    }
    for (int p = 0; p < k; p++) {
        Vec b0 = load(b), b1 = vecs > 1 ? load(b + LANES) : b0;
        b += vecs * LANES;
        UNROLL for (int i = 0; i < rows; i++)
        {
            Vec ai = splat(a[i * KC + p]);
            sum[i][0] = fmadd(ai, b0, sum[i][0]);
            if (vecs > 1)
                sum[i][1] = fmadd(ai, b1, sum[i][1]);
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

/* register_tile for 1 <= rows <= MR, 1 <= vecs <= 2 known at run time only. */
static void any_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, const float *b,
                     int k)
{
#define CASE(n)                                                                                              \
    case n:                                                                                                  \
        if (vecs > 1)                                                                                        \
            register_tile(n, 2, c, ldc, start, a, b, k);                                                     \
        else                                                                                                 \
            register_tile(n, 1, c, ldc, start, a, b, k);                                                     \
        break;
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4) CASE(5) CASE(6)
#if MR == 14
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
    }
#undef CASE
    /* clang-format on */
}

/* A tile whose last vector is not full: worked out beside c, then its `cols` columns are copied. */
static void edge_tile(int rows, int cols, float *c, ptrdiff_t ldc, Start start, const float *a,
                      const float *b, int k)
{
    float full[MR * NR];
    Start zero = {NULL, 0};
    any_tile(rows, cols > LANES ? 2 : 1, full, NR, zero, a, b, k);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] = full[i * NR + j] + (start.data ? start.data[i * start.ld + j] : 0);
}

/* Rows of b are far apart: those that come AHEAD rows later are called into the cache in time. (A prefetch of
 * an address that does not exist does nothing.) */
#define AHEAD 16

INLINE void prefetch_row(const float *row, int n)
{
    for (int i = 0; i < n; i += 16)
        __builtin_prefetch((const void *)((uintptr_t)row + i * sizeof *row));
}

/* panel[k][width] = b[k][cols], padded with zero columns. */
static void pack_rows(float *panel, int width, const float *b, ptrdiff_t ldb, int k, int cols)
{
    if (cols == width && width == NR) { /* the usual case, with a copy of constant size */
        for (int p = 0; p < k; p++) {
            prefetch_row((const float *)((uintptr_t)b + (p + AHEAD) * ldb * sizeof *b), NR);
            store(panel + p * NR, load(b + p * ldb));
            store(panel + p * NR + LANES, load(b + p * ldb + LANES));
        }
        return;
    }
    for (int p = 0; p < k; p++) {
        memcpy(panel + p * width, b + p * ldb, cols * sizeof *b);
        memset(panel + p * width + cols, 0, (width - cols) * sizeof *b);
    }
}

/* panel[k][width] = b[cols][k]ᵀ, padded with zero columns: squares of 4 × 4 through registers. */
static void pack_transposed(float *panel, int width, const float *b, ptrdiff_t ldb, int k, int cols)
{
    int j = 0;
    for (; j + 4 <= cols; j += 4) {
        const float *row = b + j * ldb;
        for (int i = 0; i < 4; i++)
            prefetch_row((const float *)((uintptr_t)row + (i + AHEAD) * ldb * sizeof *b), k);
        int p = 0;
        for (; p + 4 <= k; p += 4) {
            Vec4 r[4];
            for (int i = 0; i < 4; i++)
                memcpy(&r[i], row + i * ldb + p, sizeof r[i]);
            transpose4(r);
            for (int i = 0; i < 4; i++)
                memcpy(panel + (p + i) * width + j, &r[i], sizeof r[i]);
        }
        for (; p < k; p++)
            for (int i = 0; i < 4; i++)
                panel[p * width + j + i] = row[i * ldb + p];
    }
    for (; j < width; j++)
        for (int p = 0; p < k; p++)
            panel[p * width + j] = j < cols ? b[j * ldb + p] : 0;
}

/* c[m][n] = start + a·B, where a [m][k] has rows KC apart and k <= KC: one block of the sum, one thread.
 * `roomy`: the rows of c and start have room for n rounded up to whole vectors, and what is written there
 * does not matter. */
static void product_block(float *c, ptrdiff_t ldc, Start start, const float *a, Operand b, int m, int n,
                          int k, int roomy)
{
    float panel[KC * NR] __attribute__((aligned(64)));
    for (int j = 0; j < n; j += NR) {
        int cols = min_int(n - j, NR), vecs = cols > LANES ? 2 : 1;
        if (b.transposed)
            pack_transposed(panel, vecs * LANES, b.data + j * b.ld, b.ld, k, cols);
        else
            pack_rows(panel, vecs * LANES, b.data + j, b.ld, k, cols);
        int full = roomy || cols == vecs * LANES;
        for (int i = 0; i < m; i += MR) {
            int rows = min_int(m - i, MR);
            Start s = {start.data ? start.data + i * start.ld + j : NULL, start.ld};
            float *ci = c + i * ldc + j;
            if (full)
                any_tile(rows, vecs, ci, ldc, s, a + i * KC, panel, k);
            else
                edge_tile(rows, cols, ci, ldc, s, a + i * KC, panel, k);
        }
    }
}

/* Sliver j of a block of b: [k][width], width being NR or, for the last few columns, LANES. */
static void pack_block(float *block, Operand b, int n, int k)
{
    for (int j = 0; j < n; j += NR) {
        int cols = min_int(n - j, NR), width = cols > LANES ? NR : LANES;
        if (b.transposed)
            pack_transposed(block + j * k, width, b.data + j * b.ld, b.ld, k, cols);
        else
            pack_rows(block + j * k, width, b.data + j, b.ld, k, cols);
    }
}

/* c[rows][n] = start + panel·block for one group of rows; `next` is where a's next group begins. */
static void product_rows(float *c, ptrdiff_t ldc, Start start, const float *panel, const float *block,
                         int rows, int n, int k, const float *next, ptrdiff_t lda)
{
    int slivers = (n + NR - 1) / NR, prefetched = 0;
    for (int j = 0; j < n; j += NR) {
        int cols = min_int(n - j, NR), until = MR * (j / NR + 1) / slivers; /* a share of MR rows each time */
        for (; prefetched < until; prefetched++)
            prefetch_row((const float *)((uintptr_t)next + prefetched * lda * sizeof *next), k);
        Start s = {start.data ? start.data + j : NULL, start.ld};
        if (cols == NR)
            any_tile(rows, 2, c + j, ldc, s, panel, block + j * k, k);
        else
            edge_tile(rows, cols, c + j, ldc, s, panel, block + j * k, k);
    }
}

/* One output tile, all blocks of the sum one after the other. (k = 0 still writes its start.) */
static void product_tile(float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda, Operand b,
                         int m, int n, int k)
{
    float block[NC * KC] __attribute__((aligned(64))), panel[MR * KC] __attribute__((aligned(64)));
    int blocks = (k + KC - 1) / KC, step = blocks ? round_up((k + blocks - 1) / blocks, 16) : 1;
    for (int p = 0; p == 0 || p < k; p += step) {
        int kc = min_int(k - p, step);
        pack_block(block, (Operand){b.data + (b.transposed ? p : p * b.ld), b.ld, b.transposed}, n, kc);
        for (ptrdiff_t i = 0; i < m; i += MR) {
            int rows = min_int(m - (int)i, MR);
            const float *group = a + i * lda + p;
            for (int r = 0; r < rows && kc > 0; r++)
                memcpy(panel + r * KC, group + r * lda, kc * sizeof *a);
            Start s = {start.data ? start.data + i * start.ld : NULL, start.ld};
            product_rows(c + i * ldc, ldc, s, panel, block, rows, n, kc, group + MR * lda, lda);
        }
        start = (Start){c, ldc};
    }
}

/* Into how many rows of tiles the output is divided: enough that every thread gets as much as the others. */
static int rows_of_tiles(int m, int n_tiles, int threads)
{
    int m_tiles = (m + MC - 1) / MC;
    while (m_tiles * n_tiles % threads != 0 && m_tiles * n_tiles < 8 * threads && m / (m_tiles + 1) >= 4 * MR)
        m_tiles++;
    return m_tiles;
}

/* The whole product: equal tiles, at most MC × NC, the last ones smaller. With few rows a tile is one sliver,
 * so that what is packed is still in the first cache when it is used. */
static void product(float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda, Operand b, int m,
                    int n, int k)
{
    if (m <= 0 || n <= 0)
        return;
    int parallel = (double)m * n * (k + 1) > PARALLEL_PRODUCT;
    int most_n = m <= 2 * MR ? NR : NC, n_tiles = (n + most_n - 1) / most_n;
    int m_tiles = rows_of_tiles(m, n_tiles, parallel ? team_size() : 1);
    int tile_m = round_up((m + m_tiles - 1) / m_tiles, MR);
    int tile_n = round_up((n + n_tiles - 1) / n_tiles, NR);
#pragma omp parallel for collapse(2) schedule(dynamic) if (parallel)
    for (int ti = 0; ti < m_tiles; ti++)
        for (int tj = 0; tj < n_tiles; tj++) {
            ptrdiff_t i = (ptrdiff_t)ti * tile_m, j = (ptrdiff_t)tj * tile_n;
            if (i >= m || j >= n)
                continue;
            Start s = {start.data ? start.data + i * start.ld + j : NULL, start.ld};
            Operand bj = {b.data + (b.transposed ? j * b.ld : j), b.ld, b.transposed};
            product_tile(c + i * ldc + j, ldc, s, a + i * lda, lda, bj, min_int(m - (int)i, tile_m),
                         min_int(n - (int)j, tile_n), k);
        }
}

void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
    product(y, n, (Start){bias, 0}, x, k, (Operand){w, k, 1}, m, n, k);
}

void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 0}, m, n, k);
}

void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 1}, m, n, k);
}

void matmul_naive(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
                  int accumulate)
{
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double sum = accumulate ? c[i * ldc + j] : 0;
            for (ptrdiff_t p = 0; p < k; p++)
                sum += (double)a[i * lda + p] * b[p * ldb + j];
            c[i * ldc + j] = (float)sum;
        }
}

void matmul_nt_naive(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
                     int accumulate)
{
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double sum = accumulate ? c[i * ldc + j] : 0;
            for (ptrdiff_t p = 0; p < k; p++)
                sum += (double)a[i * lda + p] * b[j * ldb + p];
            c[i * ldc + j] = (float)sum;
        }
}

/* ---- attention ---------------------------------------------------------------------------------
 * One task = one head and at most QUERIES queries. It walks over the keys in tiles of at most KC with the
 * streaming softmax (Milakov and Gimelshein 2018; FlashAttention's forward pass): per query a running maximum
 * and a running sum; when the maximum grows, what was summed up is scaled down. The logits of a tile are rows
 * KC apart, so that they are at once the packed left operand of the product with v. */
#define QUERIES  126 /* a multiple of both MRs */
#define REL_COLS 128

typedef struct AttentionTask {
    float q[QUERIES * KC] __attribute__((aligned(64)));      /* a block of columns of q */
    float logits[QUERIES * KC] __attribute__((aligned(64))); /* then probabilities */
    float rel_w[QUERIES * REL_COLS];                         /* q·rel_w of the columns at hand */
    float max[QUERIES], sum[QUERIES];
} AttentionTask;

float dot(const float *a, const float *b, int n)
{
    Vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 = fmadd(load(a + i), load(b + i), s0);
        s1 = fmadd(load(a + i + LANES), load(b + i + LANES), s1);
        s2 = fmadd(load(a + i + 2 * LANES), load(b + i + 2 * LANES), s2);
        s3 = fmadd(load(a + i + 3 * LANES), load(b + i + 3 * LANES), s3);
    }
    for (; i + LANES <= n; i += LANES)
        s0 = fmadd(load(a + i), load(b + i), s0);
    if (i < n)
        s1 = fmadd(load_part(a + i, n - i), load_part(b + i, n - i), s1);
    return sum_lanes((s0 + s1) + (s2 + s3));
}

/* out[n] = q · row of each of n rows of dim floats. Four at a time, so that they share the adding up of
 * lanes. */
static void dots(float *out, const float *q, const float *row, int n, int dim)
{
    int j = 0, whole = dim / LANES * LANES;
    for (; j + 4 <= n; j += 4, row += 4 * (ptrdiff_t)dim) {
        Vec sum[4] = {{0}};
        for (int d = 0; d < whole; d += LANES) {
            Vec qd = load(q + d);
            UNROLL for (int i = 0; i < 4; i++) sum[i] = fmadd(qd, load(row + i * (ptrdiff_t)dim + d), sum[i]);
        }
        if (whole < dim) {
            Vec qd = load_part(q + whole, dim - whole);
            for (int i = 0; i < 4; i++)
                sum[i] = fmadd(qd, load_part(row + i * (ptrdiff_t)dim + whole, dim - whole), sum[i]);
        }
        Vec4 part[4];
        UNROLL for (int i = 0; i < 4; i++) part[i] = fold_lanes(sum[i]);
        transpose4(part);
        part[0] = (part[0] + part[1]) + (part[2] + part[3]);
        memcpy(out + j, &part[0], sizeof part[0]);
    }
    for (; j < n; j++, row += dim)
        out[j] = dot(q, row, dim);
}

/* task->logits[n_q][keys] = q·kᵀ, in blocks of KC of the head's dimensions. One block, the usual case, is
 * copied into task->q before the first tile and stays there. */
static void tile_logits(AttentionTask *task, const float *q, int ldq, const float *k, int ldk, int n_q,
                        int keys, int head_dim, int first_tile)
{
    for (int d = 0; d == 0 || d < head_dim; d += KC) {
        int dims = min_int(head_dim - d, KC);
        if (first_tile || head_dim > KC)
            for (ptrdiff_t i = 0; i < n_q; i++)
                memcpy(task->q + i * KC, q + i * ldq + d, dims * sizeof *q);
        Start start = {d ? task->logits : NULL, KC};
        product_block(task->logits, KC, start, task->q, (Operand){k + d, ldk, 1}, n_q, keys, dims, 1);
    }
}

/* Turn row i's dot products into probabilities relative to the running maximum; bias: what to add to the
 * scaled ones, or NULL. Returns the factor by which what was summed up before must be scaled (1 when the
 * maximum stays). */
static float tile_softmax(AttentionTask *task, int i, int keys, float scale, const float *bias)
{
    float *row = task->logits + i * KC;
    int padded = round_up(keys, LANES);
    for (int j = keys; j < padded; j++)
        row[j] = -INFINITY;
    Vec most = splat(task->max[i]);
    for (int j = 0; j < padded; j += LANES) {
        Vec x = load(row + j) * scale;
        if (bias)
            x += load(bias + j);
        store(row + j, x);
        most = vec_max(x, most);
    }
    float before = task->max[i], max = max_lanes(most);
    Vec sum = {0};
    for (int j = 0; j < padded; j += LANES) {
        Vec e = vec_exp(load(row + j) - max);
        store(row + j, e);
        sum += e;
    }
    float factor = max == before ? 1 : expf(before - max); /* the first time e^-inf = 0 */
    task->sum[i] = task->sum[i] * factor + sum_lanes(sum);
    task->max[i] = max;
    return factor;
}

/* task->rel_w[n_q][cols] = q·rel_w[qw][kw...] */
static void rel_columns(AttentionTask *task, const RelativePosition *rel, const float *q, int ldq,
                        int first_query, int n_q, int kw, int cols, int head_dim)
{
    for (ptrdiff_t i = 0; i < n_q; i++) {
        ptrdiff_t qw = (first_query + i) % rel->grid_w;
        dots(task->rel_w + i * REL_COLS, q + i * ldq, rel->rel_w + (qw * rel->grid_w + kw) * head_dim, cols,
             head_dim);
        for (int c = cols; c < REL_COLS; c++)
            task->rel_w[i * REL_COLS + c] = 0;
    }
}

/* bias[rows·cols] = q·rel_h[qh][kh] + q·rel_w[qw][kw] of the task's query i and the tile's keys. Whole
 * vectors are written: what reaches into the next row of keys is overwritten when its turn comes, what lies
 * beyond the last, in bias's spare lanes, is finite and will be added to -inf. */
static void rel_bias(float *bias, const AttentionTask *task, const RelativePosition *rel, const float *q,
                     int query, int i, int kh, int rows, int cols, int head_dim)
{
    float h[KC];
    const float *w = task->rel_w + i * REL_COLS;
    store(bias + rows * cols, splat(0));
    dots(h, q, rel->rel_h + ((ptrdiff_t)(query / rel->grid_w) * rel->grid_h + kh) * head_dim, rows, head_dim);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c += LANES)
            store(bias + r * cols + c, load(w + c) + h[r]);
}

/* One head (the pointers stand at its columns), n_q <= QUERIES queries. The keys are a grid of key_h × key_w
 * (1 × n_k without rel); a tile is some full rows of it, or a part of one row when rows are long: always
 * adjacent keys. */
static void attention_task(float *out, int ldo, const float *q, int ldq, const float *k, int ldk,
                           const float *v, int ldv, int first_query, int n_q, int key_h, int key_w,
                           int head_dim, float scale, const RelativePosition *rel)
{
    AttentionTask task;
    for (int i = 0; i < n_q; i++)
        task.max[i] = -INFINITY, task.sum[i] = 0;
    int started = 0, most_cols = rel ? REL_COLS : KC;
    int strips = key_w > most_cols ? (key_w + most_cols - 1) / most_cols : 1;
    int strip = strips == 1 ? key_w : min_int(round_up((key_w + strips - 1) / strips, NR), most_cols);
    int tile_rows = strip == key_w && key_w > 0 ? KC / key_w : 1;
    for (int kw = 0; kw < key_w; kw += strip) {
        int cols = min_int(strip, key_w - kw);
        if (rel)
            rel_columns(&task, rel, q, ldq, first_query, n_q, kw, cols, head_dim);
        for (int kh = 0; kh < key_h; kh += tile_rows) {
            int rows = min_int(tile_rows, key_h - kh), keys = rows * cols;
            ptrdiff_t first_key = (ptrdiff_t)kh * key_w + kw;
            tile_logits(&task, q, ldq, k + first_key * ldk, ldk, n_q, keys, head_dim, !started);
            for (ptrdiff_t i = 0; i < n_q; i++) {
                float bias[KC + LANES];
                if (rel)
                    rel_bias(bias, &task, rel, q + i * ldq, first_query + (int)i, (int)i, kh, rows, cols,
                             head_dim);
                float factor = tile_softmax(&task, (int)i, keys, scale, rel ? bias : NULL);
                if (!started || factor == 1)
                    continue;
                for (int d = 0; d < head_dim; d++)
                    out[i * ldo + d] *= factor;
            }
            Start start = {started ? out : NULL, ldo};
            product_block(out, ldo, start, task.logits, (Operand){v + first_key * ldv, ldv, 0}, n_q, head_dim,
                          keys, 0);
            started = 1;
        }
    }
    for (ptrdiff_t i = 0; i < n_q; i++) {
        float inverse = started ? 1 / task.sum[i] : 0;
        for (int d = 0; d < head_dim; d++)
            out[i * ldo + d] = started ? out[i * ldo + d] * inverse : 0;
    }
}

void attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v, int ldv,
               int n_q, int n_k, int n_heads, int head_dim, float scale, const RelativePosition *rel)
{
    int blocks = (n_q + QUERIES - 1) / QUERIES;
    if (blocks <= 0)
        return;
    int per_block = min_int(round_up((n_q + blocks - 1) / blocks, MR), QUERIES);
    int key_h = rel ? rel->grid_h : 1, key_w = rel ? rel->grid_w : n_k;
    int parallel = (double)n_q * n_k * head_dim * n_heads > PARALLEL_PRODUCT;
    (void)parallel;
#pragma omp parallel for collapse(2) schedule(dynamic) if (parallel)
    for (int h = 0; h < n_heads; h++)
        for (int block = 0; block < blocks; block++) {
            int first = block * per_block, head = h * head_dim;
            if (first >= n_q)
                continue;
            attention_task(out + (ptrdiff_t)first * ldo + head, ldo, q + (ptrdiff_t)first * ldq + head, ldq,
                           k + head, ldk, v + head, ldv, first, min_int(per_block, n_q - first), key_h, key_w,
                           head_dim, scale, rel);
        }
}

/* The logit of query i and key j of one head, in double. */
static double naive_logit(const float *q, const float *k, int i, int j, int head_dim, float scale,
                          const RelativePosition *rel)
{
    double qk = 0, bias = 0;
    for (int d = 0; d < head_dim; d++)
        qk += (double)q[d] * k[d];
    if (rel) {
        int qh = i / rel->grid_w, qw = i % rel->grid_w, kh = j / rel->grid_w, kw = j % rel->grid_w;
        const float *h = rel->rel_h + ((ptrdiff_t)qh * rel->grid_h + kh) * head_dim;
        const float *w = rel->rel_w + ((ptrdiff_t)qw * rel->grid_w + kw) * head_dim;
        for (int d = 0; d < head_dim; d++)
            bias += (double)q[d] * h[d] + (double)q[d] * w[d];
    }
    return qk * scale + bias;
}

void attention_naive(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v,
                     int ldv, int n_q, int n_k, int n_heads, int head_dim, float scale,
                     const RelativePosition *rel)
{
    for (int h = 0; h < n_heads; h++)
        for (int i = 0; i < n_q; i++) {
            const float *qi = q + (ptrdiff_t)i * ldq + h * head_dim, *kh = k + h * head_dim,
                        *vh = v + h * head_dim;
            float *oi = out + (ptrdiff_t)i * ldo + h * head_dim;
            double max = -INFINITY, total = 0;
            for (ptrdiff_t j = 0; j < n_k; j++)
                max = fmax(max, naive_logit(qi, kh + j * ldk, i, (int)j, head_dim, scale, rel));
            for (ptrdiff_t j = 0; j < n_k; j++)
                total += exp(naive_logit(qi, kh + j * ldk, i, (int)j, head_dim, scale, rel) - max);
            for (int first = 0; first < head_dim; first += 64) { /* 64 sums at a time */
                double sum[64] = {0};
                int dims = min_int(head_dim - first, 64);
                for (ptrdiff_t j = 0; j < n_k; j++) {
                    double p = exp(naive_logit(qi, kh + j * ldk, i, (int)j, head_dim, scale, rel) - max);
                    for (int d = 0; d < dims; d++)
                        sum[d] += p * vh[j * ldv + first + d];
                }
                for (int d = 0; d < dims; d++)
                    oi[first + d] = n_k > 0 ? (float)(sum[d] / total) : 0;
            }
        }
}

/* ---- rows and elements -------------------------------------------------------------------------*/

static float row_sum(const float *x, int n)
{
    Vec s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        s0 += load(x + i), s1 += load(x + i + LANES);
    for (; i < n; i += LANES)
        s0 += n - i >= LANES ? load(x + i) : load_part(x + i, n - i);
    return sum_lanes(s0 + s1);
}

/* sum (x - mean)², the second pass of the variance: no cancellation. */
static float row_deviation(const float *x, int n, float mean)
{
    Vec s0 = {0}, s1 = {0};
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        Vec d0 = load(x + i) - mean, d1 = load(x + i + LANES) - mean;
        s0 = fmadd(d0, d0, s0);
        s1 = fmadd(d1, d1, s1);
    }
    float tail = 0;
    for (; i < n; i++)
        tail += (x[i] - mean) * (x[i] - mean);
    return sum_lanes(s0 + s1) + tail;
}

void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim, float eps)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *in = x + r * dim;
        float *out = y + r * dim;
        float mean = row_sum(in, dim) / dim;
        float scale = 1 / sqrtf(row_deviation(in, dim, mean) / dim + eps);
        for (int i = 0; i < dim; i++)
            out[i] = (in[i] - mean) * scale;
        if (gamma)
            for (int i = 0; i < dim; i++)
                out[i] *= gamma[i];
        if (beta)
            for (int i = 0; i < dim; i++)
                out[i] += beta[i];
    }
}

static void softmax_row(float *x, int n)
{
    float max = -INFINITY;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    Vec sum = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec e = vec_exp(load(x + i) - max);
        store(x + i, e);
        sum += e;
    }
    float tail[LANES] = {0};
    if (i < n)
        store(tail, vec_exp(load_part(x + i, n - i) - max));
    for (int j = 0; i + j < n; j++)
        x[i + j] = tail[j];
    sum += load_part(tail, n - i);
    float total = sum_lanes(sum);
    for (i = 0; i < n; i++)
        x[i] /= total;
}

/* LANES rows of a few columns at once, each lane a row: a row alone would leave most lanes idle. */
static void softmax_short_rows(float *x, int cols)
{
    float columns[LANES][LANES], totals[LANES];
    Vec max = splat(-INFINITY), sum = {0};
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < cols; c++)
            columns[c][r] = x[r * cols + c];
    for (int c = 0; c < cols; c++)
        max = choose(load(columns[c]) > max, load(columns[c]), max);
    for (int c = 0; c < cols; c++) {
        Vec e = vec_exp(load(columns[c]) - max);
        store(columns[c], e);
        sum += e;
    }
    store(totals, sum);
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < cols; c++)
            x[r * cols + c] = columns[c][r] / totals[r];
}

void softmax_rows(float *x, int rows, int cols)
{
    const int together = cols < LANES ? LANES : 1;
#pragma omp parallel for if ((double)rows * cols > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r += together) {
        if (together > 1 && r + LANES <= rows)
            softmax_short_rows(x + r * cols, cols);
        else
            for (ptrdiff_t i = r; i < rows && i < r + together; i++)
                softmax_row(x + i * cols, cols);
    }
}

/* Run an element-wise routine on slices of x. */
static void in_slices(float *x, size_t n, void (*run)(float *x, size_t n))
{
    const size_t slice = 4096;
#pragma omp parallel for if (n > PARALLEL_ELEMENTS)
    for (size_t i = 0; i < n; i += slice)
        run(x + i, n - i < slice ? n - i : slice);
}

INLINE void map(float *x, size_t n, Vec (*f)(Vec))
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(x + i, f(load(x + i)));
    if (i < n)
        store_part(x + i, f(load_part(x + i, n - i)), n - i);
}

INLINE Vec vec_relu(Vec x)
{
    return choose(x < 0.0f, splat(0), x); /* a NaN stays */
}

static void gelu_slice(float *x, size_t n)
{
    map(x, n, vec_gelu);
}

static void relu_slice(float *x, size_t n)
{
    map(x, n, vec_relu);
}

static void sigmoid_slice(float *x, size_t n)
{
    map(x, n, vec_sigmoid);
}

void gelu(float *x, size_t n)
{
    in_slices(x, n, gelu_slice);
}

void relu(float *x, size_t n)
{
    in_slices(x, n, relu_slice);
}

void sigmoid(float *x, size_t n)
{
    in_slices(x, n, sigmoid_slice);
}

void swiglu(float *y, const float *x12, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *x1 = x12 + r * 2 * dim, *x2 = x1 + dim;
        float *out = y + r * dim;
        int i = 0;
        for (; i + LANES <= dim; i += LANES) {
            Vec x = load(x1 + i);
            store(out + i, x * vec_sigmoid(x) * load(x2 + i));
        }
        if (i < dim) {
            Vec x = load_part(x1 + i, dim - i);
            store_part(out + i, x * vec_sigmoid(x) * load_part(x2 + i, dim - i), dim - i);
        }
    }
}

void add(float *y, const float *x, size_t n)
{
#pragma omp parallel for simd if (n > PARALLEL_ELEMENTS)
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

void add_rows(float *y, const float *bias, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += bias[i];
}

void add_scaled(float *y, const float *x, const float *gamma, int rows, int dim)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += gamma[i] * x[r * dim + i];
}

void l2_normalise(float *x, int rows, int dim, float eps)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = x + r * dim;
        float norm = sqrtf(dot(row, row, dim));
        if (!(norm > eps))
            norm = eps;
        for (int i = 0; i < dim; i++)
            row[i] /= norm;
    }
}

/* ---- convolutions ------------------------------------------------------------------------------
 * Output pixels in bands of about BAND_PIXELS: per band the patches under the kernel are laid out as rows of
 * a matrix ("im2col") and multiplied by the weight. Patches are channel-last, [ky][kx][c_in], so that they
 * are copied in long runs; the weight is brought into the same order once per call. */
#define BAND_PIXELS 1024

static int band_rows(int width)
{
    return width >= BAND_PIXELS ? 1 : BAND_PIXELS / (width > 0 ? width : 1);
}

static int conv_out(int n, int kernel, int stride, int pad)
{
    return n + 2 * pad < kernel ? 0 : (n + 2 * pad - kernel) / stride + 1;
}

static int is_pointwise(int kernel, int stride, int pad)
{
    return kernel == 1 && stride == 1 && pad == 0;
}

size_t conv2d_scratch(int h, int w, int c_in, int c_out, int kernel, int stride, int pad)
{
    if (is_pointwise(kernel, stride, pad))
        return 0;
    int oh = conv_out(h, kernel, stride, pad), ow = conv_out(w, kernel, stride, pad);
    size_t patch = (size_t)kernel * kernel * c_in;
    return patch * c_out + patch * min_int(band_rows(ow), oh) * ow;
}

/* patch[ky][kx][c_in] = the kernel × kernel pixels of x whose first is at (y0, x0); zero outside. */
static void copy_patch(float *patch, const float *x, int h, int w, int c_in, int kernel, int y0, int x0)
{
    int from = x0 < 0 ? -x0 : 0, to = x0 + kernel > w ? w - x0 : kernel; /* columns inside */
    if (from > kernel)
        from = kernel;
    if (to < from)
        to = from;
    size_t run = (size_t)kernel * c_in;
    for (int ky = 0; ky < kernel; ky++, patch += run) {
        if (y0 + ky < 0 || y0 + ky >= h || from == to) {
            memset(patch, 0, run * sizeof *patch);
            continue;
        }
        const float *row = x + ((ptrdiff_t)(y0 + ky) * w + x0 + from) * c_in;
        memset(patch, 0, (size_t)from * c_in * sizeof *patch);
        memcpy(patch + (size_t)from * c_in, row, (size_t)(to - from) * c_in * sizeof *patch);
        memset(patch + (size_t)to * c_in, 0, (size_t)(kernel - to) * c_in * sizeof *patch);
    }
}

void conv2d(float *y, const float *x, const float *weight, const float *bias, int h, int w, int c_in,
            int c_out, int kernel, int stride, int pad, float *scratch)
{
    if (is_pointwise(kernel, stride, pad)) {
        linear(y, x, weight, bias, h * w, c_out, c_in);
        return;
    }
    int oh = conv_out(h, kernel, stride, pad), ow = conv_out(w, kernel, stride, pad);
    int taps = kernel * kernel, rows = band_rows(ow);
    size_t patch = (size_t)taps * c_in;
    float *ordered = scratch, *patches = scratch + patch * c_out;
#pragma omp parallel for if (patch * c_out > PARALLEL_ELEMENTS)
    for (int co = 0; co < c_out; co++)
        for (int t = 0; t < taps; t++)
            for (int ci = 0; ci < c_in; ci++)
                ordered[co * patch + (size_t)t * c_in + ci] = weight[co * patch + (size_t)ci * taps + t];
    for (int oy = 0; oy < oh; oy += rows) {
        int pixels = min_int(rows, oh - oy) * ow;
#pragma omp parallel for if (patch * pixels > PARALLEL_ELEMENTS)
        for (int i = 0; i < pixels; i++)
            copy_patch(patches + i * patch, x, h, w, c_in, kernel, (oy + i / ow) * stride - pad,
                       i % ow * stride - pad);
        linear(y + (size_t)oy * ow * c_out, patches, ordered, bias, pixels, c_out, (int)patch);
    }
}

size_t conv_transpose2d_scratch(int h, int w, int c_in, int c_out, int stride)
{
    (void)c_in;
    return (size_t)min_int(band_rows(w), h) * w * c_out * stride * stride;
}

/* Every input pixel becomes a square of stride × stride output pixels: one product gives
 * [c_out][stride][stride] for each, which is then put in its place. */
void conv_transpose2d(float *y, const float *x, const float *weight, const float *bias, int h, int w,
                      int c_in, int c_out, int stride, float *scratch)
{
    int square = stride * stride, cols = c_out * square, rows = band_rows(w);
    for (int first = 0; first < h; first += rows) {
        int pixels = min_int(rows, h - first) * w;
        matmul(scratch, cols, x + (size_t)first * w * c_in, c_in, weight, cols, pixels, cols, c_in, 0);
#pragma omp parallel for if ((size_t)pixels * cols > PARALLEL_ELEMENTS)
        for (int i = 0; i < pixels; i++) {
            const float *in = scratch + (size_t)i * cols;
            size_t top = (size_t)(first + i / w) * stride, left = (size_t)(i % w) * stride;
            for (int s = 0; s < square; s++) {
                float *out = y + ((top + s / stride) * w * stride + left + s % stride) * c_out;
                for (int co = 0; co < c_out; co++)
                    out[co] = in[co * square + s] + (bias ? bias[co] : 0);
            }
        }
    }
}
