/* tile.h - shared by the files of fast/: the micro-kernel of products and attention, tasks for threads,
 * functions of rows. Private to fast/. */
#ifndef SAMLAD_TILE_H
#define SAMLAD_TILE_H

#include <assert.h>

#include "tensor.h"
#include "fast/simd.h"

/* The micro-kernel computes MR rows × NR columns of c. Its 2·MR sums, two vectors of b and one broadcast
 * element of a fit the register file: 28 + 3 of AVX-512's 32 registers, else 12 + 3 of 16. */
#if defined(__AVX512F__)
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * LANES)

/* Below these limits a parallel region costs more than it gains. */
#define PARALLEL_PRODUCT  (1 << 20) /* multiply-adds */
#define PARALLEL_ELEMENTS (1 << 15)

/* The number of threads among which this much work is divided. It is asked before a parallel region, not by
 * the region's `if`. A region of one thread inside another one costs memory and a system call, more than a
 * prompt's few rows. */
static inline int threads_for(double work, double least)
{
    return work > least ? thread_team_size() : 1;
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* thread_scratch after attention_reserve, which has made sure of it. */
static inline void *reserved_scratch(size_t n_bytes)
{
    void *scratch = thread_scratch(n_bytes);
    assert(scratch);
    return scratch;
}

/* This thread's number among the `threads` of run_tasks. A single thread makes no team: thread_number would then
 * be its number in the team around it. */
static inline int task_thread(int threads)
{
    return threads > 1 ? thread_number() : 0;
}

/* task(job, i) for all i < n, on `threads` threads (see threads_for). A thread that finds no task left calls
 * idle(job), unless idle is NULL. A single task or a single thread needs no team and no idle. In
 * threads.c. */
void run_tasks(int n, int threads, void (*task)(const void *job, int i), void (*idle)(const void *job),
               const void *job);

/* A product's last step on its outputs, while they are in the cache. */
typedef enum Epilogue { EPILOGUE_NONE, EPILOGUE_GELU } Epilogue;

/* linear, then the epilogue. In gemm.c. */
void linear_epilogue(float *y, const float *x, const float *w, const float *bias, int m, int n, int k,
                     Epilogue epilogue);

/* Prefetch row[n]. (A prefetch of an invalid address does nothing.). */
INLINE void prefetch_row(const float *row, int n)
{
    for (int i = 0; i < n; i += 16)
        __builtin_prefetch((const void *)((uintptr_t)row + i * sizeof *row));
}

/* The start of a block of c: NULL = zero, else rows `ld` apart (c itself: accumulate; ld 0: a bias). */
typedef struct Start {
    const float *data;
    ptrdiff_t ld;
} Start;

/* The data to prefetch for the next step: the first k floats of each of `rows` rows, `lines` cache lines per
 * call. */
typedef struct Prefetch {
    const float *row;
    ptrdiff_t ld;
    int rows, k, done, lines;
} Prefetch;

INLINE void prefetch_next(Prefetch *next)
{
    for (int i = 0; i < next->lines && next->rows > 0; i++) {
        __builtin_prefetch((const void *)((uintptr_t)next->row + next->done * sizeof *next->row));
        next->done += 16;
        if (next->done >= next->k) {
            next->done = 0;
            next->rows--;
            next->row = (const float *)((uintptr_t)next->row + next->ld * sizeof *next->row);
        }
    }
}

/* Hide from the compiler that the copy has the same address as p. */
#if LANES == 16
#define HIDE_ALIAS(p) __asm__("" : "+r"(p))
#else
#define HIDE_ALIAS(p) (void)(p)
#endif

/* A term of the micro-kernel's sums: a's column, with elements lda apart, times b's row. */
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

/* sum[rows][vecs·LANES] += a·b for a [rows][k] and b [k][vecs·LANES]; see micro_kernel.
 *
 * Two hardware threads on a core each get half of the instruction slots, about three a cycle. Two
 * multiply-adds a cycle, with their broadcasts and the loop, would need 3.4. AVX-512 can read the broadcast
 * operand from memory within the multiply-add: one instruction less, one load more. Half of the rows do so in
 * both vectors. Then instructions and loads suffice, with 2.75 instructions a cycle at two terms a round.
 * `again` hides from the compiler that both operands are the same. Otherwise it would load one register for
 * both. */
INLINE void add_terms(int rows, int vecs, Vec sum[MR][2], const float *a, ptrdiff_t lda, const float *b,
                      ptrdiff_t ldb, int k)
{
    const float *again = a;
    HIDE_ALIAS(again);
    for (int p = 0; p + 2 <= k; p += 2, a += 2, again += 2, b += 2 * ldb) {
        add_term(rows, vecs, sum, a, again, lda, b);
        add_term(rows, vecs, sum, a + 1, again + 1, lda, b + ldb);
    }
    if (k % 2)
        add_term(rows, vecs, sum, a, again, lda, b);
}

/* c[rows][vecs·LANES] = start + a·b for a [rows][k] and b [k][vecs·LANES], rows lda and ldb apart. `rows` and
 * `vecs` are constants at each call, so that `sum` stays in registers. `next` may be NULL. */
INLINE void micro_kernel(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a,
                         ptrdiff_t lda, const float *b, ptrdiff_t ldb, int k, Prefetch *next)
{
    Vec sum[MR][2];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = splat(0);
    /* c's old values are needed after the sums, and `next` after that. They are prefetched a few lines at a
     * time, between the terms. All at once would take every line-fill buffer of the L1 cache, and b would
     * wait. */
    for (int fetched = 0, done = 0; fetched < rows; fetched += 2) {
        for (int i = fetched; i < fetched + 2 && i < rows; i++) {
            __builtin_prefetch(c + i * ldc);
            __builtin_prefetch(c + i * ldc + LANES);
        }
        if (next)
            prefetch_next(next);
        const int until = fetched + 2 < rows ? k / rows * (fetched + 2) : k;
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

/* micro_kernel for 1 <= rows <= MR, 1 <= vecs <= 2, known only at run time. */
/* clang-format off */
#define KERNEL_CASE(n)                                                          \
    case n:                                                                   \
        if (vecs > 1)                                                         \
            micro_kernel(n, 2, c, ldc, start, a, lda, b, ldb, k, next);      \
        else                                                                  \
            micro_kernel(n, 1, c, ldc, start, a, lda, b, ldb, k, next);      \
        break;
INLINE void micro_kernel_any(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, ptrdiff_t lda,
                    const float *b, ptrdiff_t ldb, int k, Prefetch *next)
{
    switch (rows) {
        KERNEL_CASE(1) KERNEL_CASE(2) KERNEL_CASE(3) KERNEL_CASE(4) KERNEL_CASE(5) KERNEL_CASE(6)
#if MR == 14
        KERNEL_CASE(7) KERNEL_CASE(8) KERNEL_CASE(9) KERNEL_CASE(10) KERNEL_CASE(11) KERNEL_CASE(12)
        KERNEL_CASE(13) KERNEL_CASE(14)
#endif
    }
}
#undef KERNEL_CASE
/* clang-format on */

/* x[n] = f(x), in place. */
INLINE void map(float *x, size_t n, Vec (*f)(Vec))
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(x + i, f(load(x + i)));
    if (i < n)
        store_part(x + i, f(load_part(x + i, n - i)), n - i);
}

/* Apply GELU to rows of a product that are still in the cache. */
static inline void gelu_rows(float *c, ptrdiff_t ldc, int rows, int n)
{
    for (int i = 0; i < rows; i++)
        map(c + i * ldc, (size_t)n, vec_gelu);
}

#endif
