/* tensor.c - matrix products and the small routines of a transformer. See tensor.h for the contracts;
 * attention stands in fast/attention.c, resampling (interpolation, blur, PIL's resize) in
 * fast/resample.c.
 *
 * Speed comes from three habits, each written down once:
 *   - the compiler's vector types (`Vec` of simd.h, as wide as the machine's registers), so that one source
 *     serves AVX-512, AVX2, NEON and SSE. Few things need a name of their own, above all `fmadd`, the fused
 *     multiply-add;
 *   - the blocked matrix product of Goto and van de Geijn ("Anatomy of High-Performance Matrix
 *     Multiplication", 2008): a tile of c stays in registers while slices of a and b pass through the
 *     caches. linear(), matmul() and attention() are all built on the one `register_tile`;
 *   - threads take tiles of the output, and who has none left takes half of another's. No sum is worked on by
 *     two threads at once, and the order of its terms depends on the shape alone, so results are the same
 *     bits for any number of threads. */
#include "tensor.h"
#include "io/safetensors.h" /* f16_to_f32 */
#include "fast/tile.h"

#include <assert.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- memory and threads ------------------------------------------------------------------------*/

int arena_allocate(Arena *arena)
{
    const size_t n_bytes = arena->used;
    *arena = (Arena){aligned_array(n_bytes, 1), n_bytes, 0};
    return arena->base ? 0 : -1;
}

void *arena_take(Arena *arena, size_t n_bytes)
{
    size_t size = (n_bytes + 63) & ~(size_t)63;
    assert(!arena->base || size <= arena->size - arena->used);
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
    const size_t align = count * size >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
    size_t n_bytes = (count * size + align - 1) & ~(align - 1);
    void *array = aligned_alloc(align, n_bytes ? n_bytes : 64);
#ifdef MADV_HUGEPAGE
    if (array && align == HUGE_PAGE)
        madvise(array, n_bytes, MADV_HUGEPAGE);
#endif
    return array;
}

/* Without branches inside, so that it runs as fast as memory is read. */
int all_finite(const void *floats, size_t n)
{
    const char *from = floats;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + 4 * i, 4);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

int tensor_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int tensor_team_size(void)
{
#ifdef _OPENMP
    return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

int tensor_thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

enum { MOST_STRETCHES = 256 };

static int take_number(int *next)
{
    int number;
#pragma omp atomic capture
    number = (*next)++;
    return number;
}

/* The tasks are cut into as many stretches as there are threads. A thread works off its own, so that what it
 * reads is what it wrote in the layer before, and then helps with the others'. Threads side by side would
 * call for each other's lines of the cache, for a processor reads ahead into what another is writing: where
 * cores have no cache in common, as in AMD's larger machines, that costs a tenth of a product's speed and a
 * quarter of MobileSAM's. */
void run_tasks(int n, int threads, void (*task)(const void *job, int i), void (*idle)(const void *job),
               const void *job)
{
    int next[MOST_STRETCHES] = {0};
    const int stretches = min_int(min_int(threads, n), MOST_STRETCHES);
    if (stretches <= 1) {
        for (int i = 0; i < n; i++)
            task(job, i);
        return;
    }
#pragma omp parallel num_threads(threads) /* all of them: a smaller team would end the other threads */
    {
        for (int k = 0, own = tensor_thread(); k < stretches; k++) {
            const int s = (own + k) % stretches;
            const int first = (int)((int64_t)n * s / stretches);
            const int end = (int)((int64_t)n * (s + 1) / stretches);
            for (int i; (i = first + take_number(&next[s])) < end;)
                task(job, i);
        }
        if (idle)
            idle(job);
    }
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

/* ---- the blocked matrix product ----------------------------------------------------------------
 * c[m][n] = a[m][k] · B, B being b[k][n] or, transposed, b[n][k]. Loops from the outside in:
 *   output tiles of at most MC × NC              one thread each, in rows of its own: see rows_of_tiles
 *   blocks of KC terms of the sum                b's KC × NC block is packed on the stack (second cache)
 *   groups of MR rows                            a's MR × KC panel is copied to the stack (first cache)
 *   slivers of NR columns                        the register tile
 * The copies make every access of the register tile unit-stride, whatever the matrices' row distances. Of b,
 * usually the weights, each element is packed once for MC rows; of a, each is copied once for NC columns; c
 * is read and written once for KC terms. While one group of rows is worked off, the next is called into the
 * cache, a few lines at a time: see register_tile. The register tile's 2·MR sums, two vectors of b and one
 * broadcast element of a fit the register file: 28 + 3 of AVX-512's 32 registers, else 12 + 3 of 16. */
#define MC       2048
#define OWN_ROWS 512 /* see rows_of_tiles */
#if LANES >= 16
#define NC 768 /* 786 KB of b: machines with such vectors have a second cache of 1 MB and more */
#define KC 256
#else
#define NC 384 /* 295 KB. Both are multiples of every NR */
#define KC 192
#endif

typedef struct Operand {
    const float *data;
    ptrdiff_t ld;
    int transposed; /* 0: data[k][n], 1: data[n][k] */
} Operand;

static void any_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, const float *b,
                     int k, Ahead *ahead)
{
    tile_of(rows, vecs, c, ldc, start, a, KC, b, vecs * LANES, k, ahead);
}

/* A tile whose last vector is not full: worked out beside c, then its `cols` columns are copied. */
static void edge_tile(int rows, int cols, float *c, ptrdiff_t ldc, Start start, const float *a,
                      const float *b, int k, Ahead *ahead)
{
    float full[MR * NR];
    Start zero = {NULL, 0};
    any_tile(rows, cols > LANES ? 2 : 1, full, NR, zero, a, b, k, ahead);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] = full[i * NR + j] + (start.data ? start.data[i * start.ld + j] : 0);
}

/* Rows of b are far apart: those that come AHEAD rows later are called into the cache in time. */
#define AHEAD 16

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

/* panel[k][width] = b[cols][k]ᵀ, padded with zero columns. */
static void pack_transposed(float *panel, int width, const float *b, ptrdiff_t ldb, int k, int cols)
{
    static const float nothing[KC];
    for (int j = 0; j < width; j += LANES) {
        const float *row[LANES];
        for (int i = 0; i < LANES; i++) {
            prefetch_row((const float *)((uintptr_t)b + (j + i + AHEAD) * ldb * sizeof *b), k);
            row[i] = j + i < cols ? b + (j + i) * ldb : nothing;
        }
        rows_to_columns(panel + j, width, row, k);
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
    const int slivers = (n + NR - 1) / NR, lines = MR * ((k + 15) / 16), calls = slivers * ((rows + 1) / 2);
    Ahead ahead = {next, lda, MR, k, 0, (lines + calls - 1) / calls};
    for (int j = 0; j < n; j += NR) {
        const int cols = min_int(n - j, NR);
        Start s = {start.data ? start.data + j : NULL, start.ld};
        if (cols == NR)
            any_tile(rows, 2, c + j, ldc, s, panel, block + j * k, k, &ahead);
        else
            edge_tile(rows, cols, c + j, ldc, s, panel, block + j * k, k, &ahead);
    }
}

/* Rows and columns of the output that a thread works on; the sums lack the terms from `done` on. */
typedef struct Tile {
    int row, rows, col, cols, done;
} Tile;

/* Threads are seldom equally fast: a core has neighbours, or is one of the small ones of its processor. So a
 * thread that finds no tile left waits until another gives it a part of its own, with as much work as what
 * that one keeps. Where all are equally fast nobody waits, and this costs nothing. */
typedef struct Handover {
    atomic_flag locked;    /* of what follows, while it is changed together */
    atomic_int waiting;    /* threads for which there is nothing in `rests` */
    atomic_int unfinished; /* tiles, those handed over included */
    atomic_int n_rests;
    Tile rests[MOST_STRETCHES];
} Handover;

/* Of a few instructions. (OpenMP's critical sections have names that a program would see.) */
static void lock(Handover *h)
{
    while (atomic_flag_test_and_set_explicit(&h->locked, memory_order_acquire))
        sched_yield();
}

static void unlock(Handover *h)
{
    atomic_flag_clear_explicit(&h->locked, memory_order_release);
}

#define LEAST_HANDED (8 * MR) /* rows, for which packing b once more is worth it */

/* The whole product: equal tiles, at most MC × NC, the last ones smaller. */
typedef struct Product {
    float *c;
    const float *a;
    Operand b;
    Start start;
    ptrdiff_t ldc, lda;
    int m, n, k, with_gelu;
    int down, across, tile_n; /* tiles: how many below each other and side by side, their columns */
    int step;                 /* terms in a block, fewer in the last */
    Handover *handover;       /* NULL for one thread */
} Product;

/* Gives the last rows of a tile to a thread that waits; rows from i on have yet to get their current block of
 * terms. Both then have equally much to do: (rows - keep)·blocks = keep·blocks - i. */
static void hand_over(const Product *p, Tile *t, int i)
{
    Handover *h = p->handover;
    const int blocks = p->k > t->done ? (p->k - t->done + p->step - 1) / p->step : 1;
    const int half = (int)(((int64_t)t->rows * blocks + i) / (2 * blocks));
    const int keep = round_up(half > i ? half : i + 1, MR);
    if (t->rows - keep < LEAST_HANDED)
        return;
    lock(h);
    if (h->waiting > 0 && h->n_rests < MOST_STRETCHES) {
        h->rests[h->n_rests++] = (Tile){t->row + keep, t->rows - keep, t->col, t->cols, t->done};
        h->waiting--;
        h->unfinished++;
        t->rows = keep;
    }
    unlock(h);
}

/* The tile's next block of terms. It may lose its last rows meanwhile. (k = 0 still writes its start.) */
static void product_block(const Product *p, Tile *t)
{
    float block[NC * KC] __attribute__((aligned(64))), panel[MR * KC] __attribute__((aligned(64)));
    const int kc = min_int(p->k - t->done, p->step), is_last = t->done + p->step >= p->k;
    const Operand b = p->b;
    const ptrdiff_t b_row = b.transposed ? t->col : t->done, b_col = b.transposed ? t->done : t->col;
    const Start start = t->done ? (Start){p->c, p->ldc} : p->start;
    pack_block(block, (Operand){b.data + b_row * b.ld + b_col, b.ld, b.transposed}, t->cols, kc);
    for (int i = 0; i < t->rows; i += MR) {
        if (p->handover && atomic_load_explicit(&p->handover->waiting, memory_order_relaxed) > 0)
            hand_over(p, t, i);
        const int rows = min_int(t->rows - i, MR);
        const ptrdiff_t row = t->row + i;
        const float *group = p->a + row * p->lda + t->done;
        for (int r = 0; r < rows && kc > 0; r++)
            memcpy(panel + r * KC, group + r * p->lda, (size_t)kc * sizeof *group);
        float *c = p->c + row * p->ldc + t->col;
        Start s = {start.data ? start.data + row * start.ld + t->col : NULL, start.ld};
        product_rows(c, p->ldc, s, panel, block, rows, t->cols, kc, group + MR * p->lda, p->lda);
        if (p->with_gelu && is_last)
            gelu_rows(c, p->ldc, rows, t->cols);
    }
    t->done += p->step;
}

static void product_tile(const Product *p, Tile t)
{
    do
        product_block(p, &t);
    while (t.done < p->k);
    if (p->handover)
        p->handover->unfinished--;
}

static int take_rest(Handover *h, Tile *rest)
{
    lock(h);
    const int taken = h->n_rests > 0;
    if (taken)
        *rest = h->rests[--h->n_rests];
    unlock(h);
    return taken;
}

/* What a thread does when no tile is left. */
static void help(const void *job)
{
    const Product *p = job;
    Tile rest;
    p->handover->waiting++;
    while (p->handover->unfinished > 0) {
        if (p->handover->n_rests > 0 && take_rest(p->handover, &rest)) {
            product_tile(p, rest);
            p->handover->waiting++;
        } else {
            sched_yield(); /* where there are more threads than cores, the others need this one's */
        }
    }
}

/* Into how many rows of tiles the output is divided. Best every thread has rows of its own, see run_tasks,
 * unless that leaves so few rows that packing b for each would cost more; then there are as many tiles as
 * give every thread equally much. */
static int rows_of_tiles(int m, int n_tiles, int threads)
{
    int m_tiles = (m + MC - 1) / MC;
    while (m_tiles % threads != 0 && m / (m_tiles + 1) >= OWN_ROWS)
        m_tiles++;
    while (m_tiles * n_tiles % threads != 0 && m_tiles * n_tiles < 8 * threads && m / (m_tiles + 1) >= 4 * MR)
        m_tiles++;
    return m_tiles;
}

/* Where row `y` of tiles begins: rows of tiles have equally many groups of MR rows, or one more. */
static int first_row(const Product *p, int y)
{
    return min_int((int)((ptrdiff_t)((p->m + MR - 1) / MR) * y / p->down) * MR, p->m);
}

static void numbered_tile(const void *job, int i)
{
    const Product *p = job;
    const int y = i / p->across, row = first_row(p, y), col = i % p->across * p->tile_n;
    product_tile(p, (Tile){row, first_row(p, y + 1) - row, col, min_int(p->n - col, p->tile_n), 0});
}

/* With few rows a tile is one sliver, so that what is packed is still in the first cache when it is used. */
static void product(float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda, Operand b, int m,
                    int n, int k, int with_gelu)
{
    if (m <= 0 || n <= 0)
        return;
    const int threads = threads_for((double)m * n * (k + 1), PARALLEL_PRODUCT);
    const int most_n = m <= 2 * MR ? NR : NC, across = (n + most_n - 1) / most_n;
    const int down = rows_of_tiles(m, across, threads), n_tiles = down * across;
    const int blocks = (k + KC - 1) / KC;
    Handover handover; /* only what counts is set: a product may be a prompt's few rows */
    handover.unfinished = n_tiles;
    handover.waiting = handover.n_rests = 0;
    unlock(&handover);
    const Product p = {.c = c,
                       .ldc = ldc,
                       .start = start,
                       .a = a,
                       .lda = lda,
                       .b = b,
                       .m = m,
                       .n = n,
                       .k = k,
                       .with_gelu = with_gelu,
                       .down = down,
                       .across = across,
                       .tile_n = round_up((n + across - 1) / across, NR),
                       .step = blocks ? round_up((k + blocks - 1) / blocks, 16) : 1,
                       .handover = threads > 1 ? &handover : NULL};
    run_tasks(n_tiles, threads, numbered_tile, threads > 1 ? help : NULL, &p);
}

void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
    product(y, n, (Start){bias, 0}, x, k, (Operand){w, k, 1}, m, n, k, 0);
}

void linear_gelu(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
    product(y, n, (Start){bias, 0}, x, k, (Operand){w, k, 1}, m, n, k, 1);
}

void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 0}, m, n, k, 0);
}

void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 1}, m, n, k, 0);
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

/* ---- rows and elements -------------------------------------------------------------------------*/

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

/* Mean and 1/deviation are known when the row is read for the third time, all in the first cache. */
static void norm_row(float *y, const float *x, const float *gamma, const float *beta, int dim, float eps)
{
    float mean = row_sum(x, dim) / dim;
    float scale = 1 / sqrtf(row_deviation(x, dim, mean) / dim + eps);
    if (gamma && beta) {
        for (int i = 0; i < dim; i++)
            y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
        return;
    }
    for (int i = 0; i < dim; i++)
        y[i] = (x[i] - mean) * scale * (gamma ? gamma[i] : 1) + (beta ? beta[i] : 0);
}

void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim, float eps)
{
    if (threads_for((double)rows * dim, PARALLEL_ELEMENTS) == 1) {
        for (ptrdiff_t r = 0; r < rows; r++)
            norm_row(y + r * dim, x + r * dim, gamma, beta, dim, eps);
        return;
    }
#pragma omp parallel for
    for (ptrdiff_t r = 0; r < rows; r++)
        norm_row(y + r * dim, x + r * dim, gamma, beta, dim, eps);
}

void add_layer_norm(float *y, float *x, const float *branch, const float *scale, const float *gamma,
                    const float *beta, int rows, int dim, float eps)
{
#pragma omp parallel for if ((double)rows * dim > PARALLEL_ELEMENTS)
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = x + r * dim;
        const float *added = branch + r * dim;
        for (int i = 0; i < dim; i++)
            row[i] += scale ? scale[i] * added[i] : added[i];
        norm_row(y + r * dim, row, gamma, beta, dim, eps);
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
    if (threads_for((double)n, PARALLEL_ELEMENTS) == 1) {
        run(x, n);
        return;
    }
#pragma omp parallel for
    for (size_t i = 0; i < n; i += slice)
        run(x + i, n - i < slice ? n - i : slice);
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
    if (threads_for((double)n, PARALLEL_ELEMENTS) == 1) {
        for (size_t i = 0; i < n; i++)
            y[i] += x[i];
        return;
    }
#pragma omp parallel for simd
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

/* A pixel of all channels: taps[3·ky + kx] is the pixel of x below that place of the kernel, NULL outside. */
static void depthwise_pixel(float *y, const float *const taps[9], const float *weight, const float *bias,
                            int channels)
{
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec sum = load(bias + c);
        for (int t = 0; t < 9; t++)
            if (taps[t])
                sum += load(taps[t] + c) * load(weight + (size_t)t * channels + c);
        store(y + c, sum);
    }
    for (; c < channels; c++) {
        float sum = bias[c];
        for (int t = 0; t < 9; t++)
            if (taps[t])
                sum += taps[t][c] * weight[(size_t)t * channels + c];
        y[c] = sum;
    }
}

void depthwise_conv3x3(float *y, int y_first, int y_rows, const float *x, int x_first, const float *weight,
                       const float *bias, int h, int w, int c, int stride)
{
    const int ow = conv_out(w, 3, stride, 1);
#pragma omp parallel for if ((size_t)y_rows * ow * c > PARALLEL_ELEMENTS)
    for (int row = 0; row < y_rows; row++)
        for (int ox = 0; ox < ow; ox++) {
            const float *taps[9];
            for (int t = 0; t < 9; t++) {
                const int iy = (y_first + row) * stride + t / 3 - 1, ix = ox * stride + t % 3 - 1;
                const int inside = iy >= 0 && iy < h && ix >= 0 && ix < w;
                taps[t] = inside ? x + ((size_t)(iy - x_first) * w + ix) * c : NULL;
            }
            depthwise_pixel(y + ((size_t)row * ow + ox) * c, taps, weight, bias, c);
        }
}

void gather_patches(float *patches, const float *pixels, int h, int w, int patch)
{
    const size_t row_bytes = (size_t)patch * sizeof(float);
    for (int y0 = 0; y0 < h; y0 += patch)
        for (int x0 = 0; x0 < w; x0 += patch)
            for (int channel = 0; channel < 3; channel++)
                for (int y = y0; y < y0 + patch; y++, patches += patch)
                    memcpy(patches, pixels + ((size_t)channel * h + y) * w + x0, row_bytes);
}

size_t conv_transpose2d_scratch(int h, int w, int c_out, int stride)
{
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

/* ---- one vector among samples --------------------------------------------------------------------*/

void sample_half(float *y, const uint16_t *x, int h, int w, int c, float at_x, float at_y, const float *scale)
{
    at_x = fminf(fmaxf(at_x - 0.5f, 0), (float)(w - 1));
    at_y = fminf(fmaxf(at_y - 0.5f, 0), (float)(h - 1));
    const ptrdiff_t x0 = (int)at_x, y0 = (int)at_y, x1 = x0 + 1 < w ? x0 + 1 : x0, y1 = y0 + 1 < h ? y0 + 1 : y0;
    const float fx = at_x - (float)x0, fy = at_y - (float)y0;
    for (ptrdiff_t i = 0; i < c; i++) {
        const float top = (1 - fx) * f16_to_f32(x[(y0 * w + x0) * c + i]) + fx * f16_to_f32(x[(y0 * w + x1) * c + i]);
        const float bottom = (1 - fx) * f16_to_f32(x[(y1 * w + x0) * c + i]) + fx * f16_to_f32(x[(y1 * w + x1) * c + i]);
        y[i] = ((1 - fy) * top + fy * bottom) * scale[i];
    }
    for (int i = c; i < round_up(c, ROW_STEP); i++)
        y[i] = 0;
}

float distance_half(const float *a, const uint16_t *b, const float *scale, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double d = (a[i] - f16_to_f32(b[i])) * scale[i];
        sum += d * d;
    }
    return (float)sqrt(sum);
}

void centre_rows(float *x, int stride, int m)
{
    for (int c = 0; c < stride; c++) {
        double mean = 0;
        for (ptrdiff_t r = 0; r < m; r++)
            mean += x[r * stride + c] / (double)m;
        for (ptrdiff_t r = 0; r <= m; r++)
            x[r * stride + c] -= (float)mean;
    }
}

void gram_rows(float *gram, int ld, const float *x, int stride, int n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int c = 0; c < stride; c++)
                sum += (double)x[i * stride + c] * x[j * stride + c];
            gram[i * ld + j] = (float)sum;
        }
}

float residual_rows(const float *x, int stride, int m, const float *y)
{
    double sum = 0;
    for (ptrdiff_t c = 0; c < stride; c++) {
        double d = x[(ptrdiff_t)m * stride + c];
        for (ptrdiff_t r = 0; r < m; r++)
            d -= (double)y[r] * x[r * stride + c];
        sum += d * d;
    }
    return (float)sum;
}
