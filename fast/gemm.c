/* gemm.c - linear, matmul, and matmul_nt: the blocked matrix product of Goto and van de Geijn ("Anatomy of
 * High-Performance Matrix Multiplication", 2008). c[m][n] = a[m][k]·B, where B is b[k][n] or, transposed,
 * b[n][k].
 *
 * It equals tensor.c's because each output is the same sum, in another order: blocks of KC terms, one after
 * the other. The order depends on k alone, so neither the tiles nor the threads change a bit. The errors are
 * those of float sums.
 *
 * Loops from the outside in:
 *   output tiles of at most MC × NC              one thread each, in rows of its own: see rows_of_tiles
 *   blocks of KC terms of the sum                b's KC × NC block is packed (L2 cache)
 *   groups of MR rows                            a's MR × KC panel is packed (L1 cache)
 *   slivers of NR columns                        the micro-kernel, in registers
 * Packing makes every access of the micro-kernel unit-stride, for any distance between the matrices' rows.
 * Each element of b, usually the weights, is packed once for MC rows. Each element of a is packed once for NC
 * columns. c is read and written once for KC terms. During one group of rows the next is prefetched, a few
 * lines at a time. */
#include "fast/tile.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#define MC       2048
#define OWN_ROWS 512 /* see rows_of_tiles */
#if LANES >= 16
#define NC 768 /* 786 KB of b: machines with AVX-512 have an L2 cache of 1 MB or more. */
#define KC 256
#else
#define NC 384 /* 295 KB. Both are multiples of every NR. */
#define KC 192
#endif

#define PACKED (NC * KC + MR * KC) /* floats of a thread's packed block and panel. */

typedef struct Operand {
    const float *data;
    ptrdiff_t ld;
    int transposed; /* 0: data[k][n], 1: data[n][k] */
} Operand;

static void tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, const float *b,
                 int k, Prefetch *prefetch)
{
    micro_kernel_any(rows, vecs, c, ldc, start, a, KC, b, vecs * LANES, k, prefetch);
}

/* A tile whose last vector is not full. It is computed in a buffer, and its `cols` columns are copied. */
static void edge_tile(int rows, int cols, float *c, ptrdiff_t ldc, Start start, const float *a,
                      const float *b, int k, Prefetch *prefetch)
{
    float full[MR * NR];
    Start zero = {NULL, 0};
    tile(rows, cols > LANES ? 2 : 1, full, NR, zero, a, b, k, prefetch);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] = full[i * NR + j] + (start.data ? start.data[i * start.ld + j] : 0);
}

/* Rows of b are far apart in memory, so each is prefetched this many rows before it is packed. */
#define PREFETCH_ROWS 16

/* panel[k][width] = b[k][cols], padded with zero columns. */
static void pack_rows(float *panel, int width, const float *b, ptrdiff_t ldb, int k, int cols)
{
    if (cols == width && width == NR) { /* the usual case, with a copy of constant size. */
        for (int p = 0; p < k; p++) {
            prefetch_row((const float *)((uintptr_t)b + (p + PREFETCH_ROWS) * ldb * sizeof *b), NR);
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
    static const float zeros[KC];
    for (int j = 0; j < width; j += LANES) {
        const float *row[LANES];
        for (int i = 0; i < LANES; i++) {
            prefetch_row((const float *)((uintptr_t)b + (j + i + PREFETCH_ROWS) * ldb * sizeof *b), k);
            row[i] = j + i < cols ? b + (j + i) * ldb : zeros;
        }
        rows_to_columns(panel + j, width, row, k);
    }
}

/* Sliver j of a block of b: [k][width]. width is NR or, for the last few columns, LANES. */
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

/* c[rows][n] = start + panel·block for one group of rows. `next` is the start of a's next group. */
static void product_rows(float *c, ptrdiff_t ldc, Start start, const float *panel, const float *block,
                         int rows, int n, int k, const float *next, ptrdiff_t lda)
{
    const int slivers = (n + NR - 1) / NR, lines = MR * ((k + 15) / 16), calls = slivers * ((rows + 1) / 2);
    Prefetch prefetch = {next, lda, MR, k, 0, (lines + calls - 1) / calls};
    for (int j = 0; j < n; j += NR) {
        const int cols = min_int(n - j, NR);
        Start s = {start.data ? start.data + j : NULL, start.ld};
        if (cols == NR)
            tile(rows, 2, c + j, ldc, s, panel, block + j * k, k, &prefetch);
        else
            edge_tile(rows, cols, c + j, ldc, s, panel, block + j * k, k, &prefetch);
    }
}

/* The rows and columns of the output that a thread works on. Its sums have the terms before `done` so far. */
typedef struct Tile {
    int row, rows, col, cols, done;
} Tile;

/* Work stealing. Threads are seldom equally fast: a core has neighbours, or is one of its processor's small
 * cores. So a thread that finds no tile left waits. A thread at work gives it half of the remaining part of
 * its own tile. If all threads are equally fast, no thread waits, and stealing costs nothing. */
enum { MAX_STOLEN = 256 };
typedef struct Stealing {
    atomic_flag locked;    /* guards the members below, which change together. */
    atomic_int waiting;    /* waiting threads that have no tile in `stolen` yet. */
    atomic_int unfinished; /* tiles, stolen ones included. */
    atomic_int n_stolen;
    Tile stolen[MAX_STOLEN];
} Stealing;

/* A spin lock, held for a few instructions. (The names of OpenMP's critical sections would be visible to a
 * user's program.). */
static void lock(Stealing *s)
{
    while (atomic_flag_test_and_set_explicit(&s->locked, memory_order_acquire))
        sched_yield();
}

static void unlock(Stealing *s)
{
    atomic_flag_clear_explicit(&s->locked, memory_order_release);
}

#define LEAST_STOLEN (8 * MR) /* rows: fewer are not worth packing b again. */

/* The whole product: equal tiles, at most MC × NC; the last ones are smaller. */
typedef struct Product {
    float *c;
    const float *a;
    Operand b;
    Start start;
    ptrdiff_t ldc, lda;
    int m, n, k;
    Epilogue epilogue;
    int down, across, tile_n; /* tiles below each other, tiles side by side, columns of a tile. */
    int threads;
    int step;                 /* terms in a block, fewer in the last. */
    Stealing *stealing;       /* NULL for one thread. */
    float *packed;            /* [threads][PACKED], or NULL without memory, or if tiles are one sliver. */
} Product;

/* Give the last rows of a tile to a waiting thread. Rows from i on have yet to get their current block of
 * terms. Both threads then have equal work: (rows - keep)·blocks = keep·blocks - i. */
static void split_tile(const Product *p, Tile *t, int i)
{
    Stealing *s = p->stealing;
    const int blocks = p->k > t->done ? (p->k - t->done + p->step - 1) / p->step : 1;
    const int half = (int)(((int64_t)t->rows * blocks + i) / (2 * blocks));
    const int keep = round_up(half > i ? half : i + 1, MR);
    if (t->rows - keep < LEAST_STOLEN)
        return;
    lock(s);
    if (s->waiting > 0 && s->n_stolen < MAX_STOLEN) {
        s->stolen[s->n_stolen++] = (Tile){t->row + keep, t->rows - keep, t->col, t->cols, t->done};
        s->waiting--;
        s->unfinished++;
        t->rows = keep;
    }
    unlock(s);
}

/* The tile's next block of terms. Meanwhile its last rows may be stolen. (k = 0 still writes its start.).
 * block has KC rows of the tile's columns in whole slivers, panel MR·KC numbers. */
static void product_block(const Product *p, Tile *t, float *block, float *panel)
{
    const int kc = min_int(p->k - t->done, p->step), is_last = t->done + p->step >= p->k;
    const Operand b = p->b;
    const ptrdiff_t b_row = b.transposed ? t->col : t->done, b_col = b.transposed ? t->done : t->col;
    const Start start = t->done ? (Start){p->c, p->ldc} : p->start;
    pack_block(block, (Operand){b.data + b_row * b.ld + b_col, b.ld, b.transposed}, t->cols, kc);
    for (int i = 0; i < t->rows; i += MR) {
        if (p->stealing && atomic_load_explicit(&p->stealing->waiting, memory_order_relaxed) > 0)
            split_tile(p, t, i);
        const int rows = min_int(t->rows - i, MR);
        const ptrdiff_t row = t->row + i;
        const float *group = p->a + row * p->lda + t->done;
        for (int r = 0; r < rows && kc > 0; r++)
            memcpy(panel + r * KC, group + r * p->lda, (size_t)kc * sizeof *group);
        float *c = p->c + row * p->ldc + t->col;
        Start s = {start.data ? start.data + row * start.ld + t->col : NULL, start.ld};
        product_rows(c, p->ldc, s, panel, block, rows, t->cols, kc, group + MR * p->lda, p->lda);
        if (p->epilogue == EPILOGUE_GELU && is_last)
            gelu_rows(c, p->ldc, rows, t->cols);
    }
    t->done += p->step;
}

static void all_blocks(const Product *p, Tile t, float *block, float *panel)
{
    do
        product_block(p, &t, block, panel);
    while (t.done < p->k);
}

/* A tile of one sliver fits on a small stack. */
static __attribute__((noinline)) void sliver_tile(const Product *p, Tile t)
{
    float block[NR * KC] __attribute__((aligned(64))), panel[MR * KC] __attribute__((aligned(64)));
    all_blocks(p, t, block, panel);
}

/* Without memory for packed slivers, one after the other: the same sums. */
static void product_tile(const Product *p, Tile t)
{
    if (p->packed && t.cols > NR) {
        float *block = p->packed + (size_t)task_thread(p->threads) * PACKED;
        all_blocks(p, t, block, block + NC * KC);
    } else {
        for (int j = 0; j < t.cols; j += NR)
            sliver_tile(p, (Tile){t.row, t.rows, t.col + j, min_int(t.cols - j, NR), t.done});
    }
    if (p->stealing)
        p->stealing->unfinished--;
}

static int steal(Stealing *s, Tile *stolen)
{
    lock(s);
    const int taken = s->n_stolen > 0;
    if (taken)
        *stolen = s->stolen[--s->n_stolen];
    unlock(s);
    return taken;
}

/* A thread without a tile steals. */
static void steal_tiles(const void *job)
{
    const Product *p = job;
    Tile stolen;
    p->stealing->waiting++;
    while (p->stealing->unfinished > 0) {
        if (p->stealing->n_stolen > 0 && steal(p->stealing, &stolen)) {
            product_tile(p, stolen);
            p->stealing->waiting++;
        } else {
            sched_yield(); /* with more threads than cores, other threads need this core. */
        }
    }
}

/* The number of rows of tiles into which the output is divided. It is best if every thread has its own rows,
 * see run_tasks. If a thread then has too few rows to pay for packing b, every thread gets equally many
 * tiles. */
static int rows_of_tiles(int m, int n_tiles, int threads)
{
    int m_tiles = (m + MC - 1) / MC;
    while (m_tiles % threads != 0 && m / (m_tiles + 1) >= OWN_ROWS)
        m_tiles++;
    while (m_tiles * n_tiles % threads != 0 && m_tiles * n_tiles < 8 * threads && m / (m_tiles + 1) >= 4 * MR)
        m_tiles++;
    return m_tiles;
}

/* The first row of row `y` of tiles. Rows of tiles have equally many groups of MR rows, or one more. */
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

/* With few rows a tile is one sliver. So packed data is still in the L1 cache when it is used. */
static void product(float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda, Operand b, int m,
                    int n, int k, Epilogue epilogue)
{
    if (m <= 0 || n <= 0)
        return;
    const int threads = threads_for((double)m * n * (k + 1), PARALLEL_PRODUCT);
    const int most_n = m <= 2 * MR ? NR : NC, across = (n + most_n - 1) / most_n;
    const int down = rows_of_tiles(m, across, threads), n_tiles = down * across;
    const int blocks = (k + KC - 1) / KC;
    Stealing stealing; /* `stolen` is left unset: a product may be a prompt's few rows. */
    stealing.unfinished = n_tiles;
    stealing.waiting = stealing.n_stolen = 0;
    unlock(&stealing);
    const Product p = {.c = c,
                       .ldc = ldc,
                       .start = start,
                       .a = a,
                       .lda = lda,
                       .b = b,
                       .m = m,
                       .n = n,
                       .k = k,
                       .epilogue = epilogue,
                       .down = down,
                       .across = across,
                       .tile_n = round_up((n + across - 1) / across, NR),
                       .step = blocks ? round_up((k + blocks - 1) / blocks, 16) : 1,
                       .threads = threads,
                       .stealing = threads > 1 ? &stealing : NULL,
                       .packed =
                           most_n > NR ? thread_scratch((size_t)threads * PACKED * sizeof(float)) : NULL};
    run_tasks(n_tiles, threads, numbered_tile, threads > 1 ? steal_tiles : NULL, &p);
}

void linear_epilogue(float *y, const float *x, const float *w, const float *bias, int m, int n, int k,
                     Epilogue epilogue)
{
    product(y, n, (Start){bias, 0}, x, k, (Operand){w, k, 1}, m, n, k, epilogue);
}

void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
    linear_epilogue(y, x, w, bias, m, n, k, EPILOGUE_NONE);
}

void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 0}, m, n, k,
            EPILOGUE_NONE);
}

void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate)
{
    product(c, ldc, (Start){accumulate ? c : NULL, ldc}, a, lda, (Operand){b, ldb, 1}, m, n, k,
            EPILOGUE_NONE);
}
