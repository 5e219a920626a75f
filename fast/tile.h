/* tile.h - what products and attention share: the register tile, tasks for threads, functions of rows.
 * Private to tensor.c and to the kernels beside it. */
#ifndef SAMLAD_TILE_H
#define SAMLAD_TILE_H

#include "tensor.h"
#include "fast/simd.h"

/* The register tile is MR rows × NR columns of c. Its 2·MR sums, two vectors of b and one broadcast element
 * of a fit the register file: 28 + 3 of AVX-512's 32 registers, else 12 + 3 of 16. */
#if defined(__AVX512F__)
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * LANES)

/* Below these a parallel region costs more than it gains. */
#define PARALLEL_PRODUCT  (1 << 20) /* multiply-adds */
#define PARALLEL_ELEMENTS (1 << 15)

/* How many threads so much work is divided among. Asked before a parallel region is entered, not by its `if`:
 * a region of one thread inside another's costs memory and a system call, more than a prompt's few rows. */
static inline int threads_for(double work, double least)
{
    return work > least ? tensor_team_size() : 1;
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* task(job, i) for all i < n, by as many threads as threads_for has said, each of which calls idle(job), where
 * it isn't NULL, when all tasks are taken. A single task, or a single thread, needs no team and no idle. In
 * tensor.c. */
void run_tasks(int n, int threads, void (*task)(const void *job, int i), void (*idle)(const void *job),
               const void *job);

/* Calls row[n] into the cache. (A prefetch of an address that does not exist does nothing.) */
INLINE void prefetch_row(const float *row, int n)
{
    for (int i = 0; i < n; i += 16)
        __builtin_prefetch((const void *)((uintptr_t)row + i * sizeof *row));
}

/* What a block of c starts from: NULL = zero, else rows `ld` apart (c itself: accumulate; ld 0: a bias). */
typedef struct Start {
    const float *data;
    ptrdiff_t ld;
} Start;

/* What will be needed next and is called into the cache meanwhile: the first k floats of each of `rows` rows,
 * so many lines at a call. */
typedef struct Ahead {
    const float *row;
    ptrdiff_t ld;
    int rows, k, done, lines;
} Ahead;

INLINE void call_ahead(Ahead *ahead)
{
    for (int i = 0; i < ahead->lines && ahead->rows > 0; i++) {
        __builtin_prefetch((const void *)((uintptr_t)ahead->row + ahead->done * sizeof *ahead->row));
        ahead->done += 16;
        if (ahead->done >= ahead->k) {
            ahead->done = 0;
            ahead->rows--;
            ahead->row = (const float *)((uintptr_t)ahead->row + ahead->ld * sizeof *ahead->row);
        }
    }
}

/* The same address, but the compiler does not know that it is. */
#if LANES == 16
#define RENAMED(p) __asm__("" : "+r"(p))
#else
#define RENAMED(p) (void)(p)
#endif

/* A term of the register tile's sums: a's column, whose elements lie lda apart, times b's row. */
INLINE void add_term(int rows, int vecs, Vec sum[MR][2], const float *a, const float *again, ptrdiff_t lda,
                     const float *b)
{
    const Vec b0 = load(b), b1 = vecs > 1 ? load(b + LANES) : b0;
    UNROLL for (int i = 0; i < rows; i++)
    {
        const Vec ai = splat(a[i * lda]);
        sum[i][0] = fmadd(ai, b0, sum[i][0]);
        if (vecs > 1)
            sum[i][1] = fmadd(i < rows / 2 ? ai : splat(again[i * lda]), b1, sum[i][1]);
    }
}

/* sum[rows][vecs·LANES] += a·b for a [rows][k] and b [k][vecs·LANES]; see register_tile.
 *
 * While another thread runs on the same core, a processor has half of its instructions for each: three in a
 * cycle, say, and a cycle's two multiply-adds, their operand and a part of the loop are 3.4. AVX-512 can take
 * the operand from memory within the multiply-add; then both of a row's do so, which is one instruction less
 * and one load more. In half of the rows, neither is more than such a processor has: 2.75 instructions with
 * two terms a round. `again` is for compilers that would see that both operands are the same and load one. */
INLINE void add_terms(int rows, int vecs, Vec sum[MR][2], const float *a, ptrdiff_t lda, const float *b,
                      ptrdiff_t ldb, int k)
{
    const float *again = a;
    RENAMED(again);
    for (int p = 0; p + 2 <= k; p += 2, a += 2, again += 2, b += 2 * ldb) {
        add_term(rows, vecs, sum, a, again, lda, b);
        add_term(rows, vecs, sum, a + 1, again + 1, lda, b + ldb);
    }
    if (k % 2)
        add_term(rows, vecs, sum, a, again, lda, b);
}

/* c[rows][vecs·LANES] = start + a·b for a [rows][k] and b [k][vecs·LANES], rows lda and ldb apart. `rows` and
 * `vecs` are constants where this is inlined, so that `sum` lives in registers. `ahead` may be NULL. */
INLINE void register_tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a,
                          ptrdiff_t lda, const float *b, ptrdiff_t ldb, int k, Ahead *ahead)
{
    Vec sum[MR][2];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = splat(0);
    /* c's old values are needed when the sums are done, and what is `ahead` after that. They are called into
     * the cache a few lines at a time, between the terms: all at once they would take every slot that the
     * processor has for misses of its first cache, and b would wait behind them. */
    for (int called = 0, done = 0; called < rows; called += 2) {
        for (int i = called; i < called + 2 && i < rows; i++) {
            __builtin_prefetch(c + i * ldc);
            __builtin_prefetch(c + i * ldc + LANES);
        }
        if (ahead)
            call_ahead(ahead);
        const int until = called + 2 < rows ? k / rows * (called + 2) : k;
        add_terms(rows, vecs, sum, a + done, lda, b + done * ldb, ldb, until - done);
        done = until;
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
/* clang-format off */
#define TILE_CASE(n)                                                          \
    case n:                                                                   \
        if (vecs > 1)                                                         \
            register_tile(n, 2, c, ldc, start, a, lda, b, ldb, k, ahead);     \
        else                                                                  \
            register_tile(n, 1, c, ldc, start, a, lda, b, ldb, k, ahead);     \
        break;
INLINE void tile_of(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda,
                    const float *b, ptrdiff_t ldb, int k, Ahead *ahead)
{
    switch (rows) {
        TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6)
#if MR == 14
        TILE_CASE(7) TILE_CASE(8) TILE_CASE(9) TILE_CASE(10) TILE_CASE(11) TILE_CASE(12) TILE_CASE(13) TILE_CASE(14)
#endif
    }
}
#undef TILE_CASE
/* clang-format on */

/* x[n] = f(x), where it stands. */
INLINE void map(float *x, size_t n, Vec (*f)(Vec))
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(x + i, f(load(x + i)));
    if (i < n)
        store_part(x + i, f(load_part(x + i, n - i)), n - i);
}

/* Rows of a product that are still in the cache. */
static inline void gelu_rows(float *c, ptrdiff_t ldc, int rows, int n)
{
    for (int i = 0; i < rows; i++)
        map(c + i * ldc, (size_t)n, vec_gelu);
}

#endif
