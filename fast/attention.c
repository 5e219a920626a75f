/* attention.c - attention and window_attention: softmax(q·kᵀ)·v over all tokens or inside windows, with SAM's
 * relative positions or TinyViT's biases by distance.
 *
 * A task is one head, a rectangle of at most QUERIES queries, and all keys. It goes through the keys in tiles
 * of at most KEYS with the online softmax (Milakov and Gimelshein 2018; FlashAttention's forward pass). Each
 * query has a running maximum and a running sum. When the maximum grows, the earlier sums are scaled down.
 * The result equals tensor.c's, because any maximum cancels between the numerator and the denominator of the
 * softmax.
 *
 *     for each tile of keys:        pack kᵀ and v                       (L2 cache)
 *         for each group of queries, at most MR:
 *             logits = bias + q·kᵀ   [MR][KEYS]                         (L1 cache)
 *             logits = 2^(logits - max)
 *             out = factor·out + logits·v
 *
 * Logits are in units of log 2: q is multiplied by scale·log2(e), because the machine computes powers of two.
 * Queries and keys are grids; without relative positions the grid has one row. A group never crosses a row of
 * queries. So the rows of q and out are always equally far apart, in windows too. In the tile of logits each
 * grid row of keys begins at a whole vector and is padded with -inf. The exponentials are then stored without
 * the padding: each row overwrites the end of the row before. */
#include "tensor.h"
#include "fast/bf16.h"
#include "fast/tile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define QUERIES         672             /* of a task; the keys are packed once for all of them. */
#define KEYS            512             /* columns of a tile of logits. */
#define STRIDE          (KEYS + LANES)  /* between rows of logits: a whole vector fits at the end. */
#define DIMS            96              /* of a head at a time; a multiple of every NR. */
#define REL_FLOATS      (QUERIES * 144) /* biases of a task's queries: 144 each for SAM's grid of 64 × 64. */
#define PREFETCH_TOKENS 24              /* see NextKeys */
#define TASKS_A_THREAD  4               /* at least, if there are enough queries. */
#define LOG2_E          1.44269504088896340736f

/* A token's vector is at first + (y·row_ld + x·ld). Tokens beyond h × w are the padding of a window that
 * reaches over the edge of the image. All of them have the vector `pad`. */
typedef struct Grid {
    const float *first;
    ptrdiff_t row_ld, ld;
    int h, w;
    const float *pad;
} Grid;

static const float *at(const Grid *g, int y, int x)
{
    return y < g->h && x < g->w ? g->first + y * g->row_ld + x * g->ld : g->pad;
}

/* One head. */
typedef struct Head {
    Grid q, k, v;
    float *out; /* like q's grid, with its own distances. */
    ptrdiff_t out_row_ld, out_ld;
    int key_h, key_w; /* keys, padding tokens included. */
    int head_dim;
    float scale;
    const RelativePosition *rel;
    const float *bias; /* this head's part of rel->bias, or NULL. */
} Head;

/* The rectangle of queries of a task. */
typedef struct Rectangle {
    int y, x, h, w;
} Rectangle;

/* A tile of keys: rows kh .. kh + rows, columns kw .. kw + cols of the grid of keys. */
typedef struct KeyTile {
    int kh, kw, rows, cols;
    int padded; /* cols rounded up to whole vectors. */
} KeyTile;

typedef struct Task {
    float panel[MR * STRIDE] __attribute__((aligned(64)));  /* a group's queries */
    float logits[MR * STRIDE] __attribute__((aligned(64))); /* then probabilities */
    float keys[KEYS * DIMS] __attribute__((aligned(64)));   /* slivers [dims][NR] of kᵀ */
    float values[KEYS * DIMS] __attribute__((aligned(64))); /* slivers [keys][NR] of v */
    float sum[QUERIES][LANES] __attribute__((aligned(64))); /* kept per lane until the end. */
    float max[QUERIES];
    float rel[REL_FLOATS]; /* [query][rel_h | rel_w]: q·rel of all rows and of the tile's columns. */
    int rel_h, rel_w;      /* their widths, see row_floats; 0 without. */
    Rectangle queries;
} Task;

static void tile(int rows, int vecs, float *c, ptrdiff_t ldc, Start start, const float *a, const float *b,
                 ptrdiff_t ldb, int k)
{
    micro_kernel_any(rows, vecs, c, ldc, start, a, STRIDE, b, ldb, k, NULL);
}

/* ---- packing ------------------------------------------------------------------------------------------*/

/* The next key to prefetch. The vectors of neighbouring tokens are far apart in memory. So each is prefetched
 * PREFETCH_TOKENS tokens before it is packed. This is more than the LANES tokens that are packed at once. */
typedef struct NextKeys {
    const Grid *grid;
    const KeyTile *tile;
    int r, c;
} NextKeys;

static void prefetch_key(NextKeys *next, int d0, int dims)
{
    const KeyTile *t = next->tile;
    if (next->r >= t->rows)
        return;
    prefetch_row(at(next->grid, t->kh + next->r, t->kw + next->c) + d0, dims);
    if (++next->c == t->cols)
        next->c = 0, next->r++;
}

static NextKeys prefetch_first(const Grid *grid, const KeyTile *t, int d0, int dims)
{
    NextKeys next = {grid, t, 0, 0};
    for (int i = 0; i < PREFETCH_TOKENS; i++)
        prefetch_key(&next, d0, dims);
    return next;
}

/* Dimensions d0 .. d0 + dims of the tile's keys. Padded rows are whole vectors. */
static void pack_keys(Task *task, const Head *head, const KeyTile *t, int d0, int dims)
{
    static const float zeros[DIMS];
    NextKeys next = prefetch_first(&head->k, t, d0, dims);
    for (int r = 0, j = 0; r < t->rows; r++)
        for (int c = 0; c < t->padded; c += LANES, j += LANES) {
            const float *key[LANES];
            for (int i = 0; i < LANES; i++) {
                key[i] = c + i < t->cols ? at(&head->k, t->kh + r, t->kw + c + i) + d0 : zeros;
                prefetch_key(&next, d0, dims);
            }
            rows_to_columns(task->keys + j / NR * NR * dims + j % NR, NR, key, dims);
        }
}

/* Dimensions d0 .. d0 + dims of the tile's values. The last sliver is padded with zeros. */
static void pack_values(Task *task, const Head *head, const KeyTile *t, int d0, int dims)
{
    const int n = t->rows * t->cols;
    NextKeys next = prefetch_first(&head->v, t, d0, dims);
    for (int r = 0, p = 0; r < t->rows; r++)
        for (int c = 0; c < t->cols; c++, p++) {
            const float *value = at(&head->v, t->kh + r, t->kw + c) + d0;
            prefetch_key(&next, d0, dims);
            for (int d = 0; d < dims; d += NR) {
                float *to = task->values + d * n + p * NR;
                if (d + NR <= dims) {
                    store(to, load(value + d));
                    store(to + LANES, load(value + d + LANES));
                } else {
                    memset(to, 0, NR * sizeof *to);
                    memcpy(to, value + d, (size_t)(dims - d) * sizeof *to);
                }
            }
        }
}

/* task->panel[rows][dims] = factor·q of rows `ld` apart. */
static void copy_queries(Task *task, const float *q, ptrdiff_t ld, int rows, int dims, float factor)
{
    for (int i = 0; i < rows; i++) {
        float *to = task->panel + i * STRIDE;
        int d = 0;
        for (; d + LANES <= dims; d += LANES)
            store(to + d, load(q + i * ld + d) * splat(factor));
        for (; d < dims; d++)
            to[d] = q[i * ld + d] * factor;
    }
}

/* ---- relative positions -------------------------------------------------------------------------------*/

/* out[rows][width] = log2(e)·q·table, table [head_dim][width]. q_ld and out_ld are the distances between
 * queries and between their biases. */
static void rel_product(Task *task, float *out, ptrdiff_t out_ld, const float *q, ptrdiff_t q_ld, int rows,
                        const float *table, int table_width, int width, int head_dim)
{
    for (int i = 0; i < rows; i += MR) {
        int group = min_int(rows - i, MR);
        for (int d = 0; d < head_dim; d += KEYS) {
            int dims = min_int(head_dim - d, KEYS);
            copy_queries(task, q + i * q_ld + d, q_ld, group, dims, LOG2_E);
            for (int j = 0; j < width; j += NR) {
                float *c = out + i * out_ld + j;
                Start start = {d ? c : NULL, out_ld};
                tile(group, width - j > LANES ? 2 : 1, c, out_ld, start, task->panel,
                     table + (ptrdiff_t)d * table_width + j, table_width, dims);
            }
        }
    }
}

static ptrdiff_t head_biases(const RelativePosition *rel)
{
    return (ptrdiff_t)rel->grid_h * distance_bias_stride(rel->grid_w);
}

/* Biases per query: by the keys' rows, and by the columns of a tile of keys. Both are whole vectors. Behind
 * the columns the first vector is repeated, see rel_columns. */
static int row_floats(int grid_h)
{
    return round_up(grid_h, LANES);
}

static int column_floats(int cols)
{
    return round_up(cols, LANES) + LANES;
}

/* The biases by the keys' rows, once per task. */
static void rel_rows(Task *task, const Head *head, const Rectangle *r)
{
    const RelativePosition *rel = head->rel;
    const int stride = relative_position_stride(rel->grid_h), width = task->rel_h + task->rel_w;
    for (int y = 0; y < r->h; y++)
        rel_product(task, task->rel + y * r->w * width, width, at(&head->q, r->y + y, r->x), head->q.ld, r->w,
                    rel->rel_h + (ptrdiff_t)(r->y + y) * head->head_dim * stride, stride, task->rel_h,
                    head->head_dim);
}

/* The biases by the keys' columns kw .. kw + cols. The last vector is padded with -inf. Behind it the first
 * vector is repeated, because a sliver of keys may reach into the next row. */
static void rel_columns(Task *task, const Head *head, const Rectangle *r, int kw, int cols)
{
    const RelativePosition *rel = head->rel;
    const int stride = relative_position_stride(rel->grid_w), width = task->rel_h + task->rel_w;
    const int padded = round_up(cols, LANES);
    float *out = task->rel + task->rel_h;
    for (int x = 0; x < r->w; x++)
        rel_product(task, out + x * width, r->w * width, at(&head->q, r->y, r->x + x), head->q.row_ld, r->h,
                    rel->rel_w + (ptrdiff_t)(r->x + x) * head->head_dim * stride + kw, stride, padded,
                    head->head_dim);
    for (int i = 0; i < r->h * r->w; i++, out += width) {
        for (int c = cols; c < padded; c++)
            out[c] = -INFINITY;
        store(out + padded, load(out));
    }
}

/* ---- one tile of keys, one group of queries -----------------------------------------------------------*/

/* The biases by row: one for `query` and each row of the tile's keys, to be added to the logits. */
static const float *row_biases(const Task *task, const KeyTile *t, int query)
{
    static const float none[KEYS / LANES];
    return task->rel_h ? task->rel + query * (task->rel_h + task->rel_w) + t->kh : none;
}

/* logits[rows][columns] = the biases by distance, one row of keys after the other. */
static void start_distances(Task *task, const Head *head, const KeyTile *t, int query, int rows)
{
    const Rectangle *r = &task->queries;
    const int qy = r->y + query / r->w, first = r->x + query % r->w,
              stride = distance_bias_stride(head->key_w);
    for (int i = 0; i < rows; i++) {
        float *to = task->logits + i * STRIDE;
        for (int k = 0; k < t->rows; k++, to += t->padded) {
            const float *from =
                head->bias + (ptrdiff_t)abs(qy - t->kh - k) * stride + (t->kw - first - i + head->key_w - 1);
            for (int c = 0; c < t->padded; c += LANES)
                store(to + c, load(from + c) * splat(LOG2_E));
            for (int c = t->cols; c < t->padded; c++)
                to[c] = -INFINITY;
        }
    }
}

/* logits[rows][columns] = q·k and all biases except those by the keys' rows. */
static void group_logits(Task *task, const Head *head, const KeyTile *t, const float *q, int query, int rows)
{
    const int columns = t->rows * t->padded, width = task->rel_h + task->rel_w;
    const float *by_column = task->rel + query * width + task->rel_h;
    if (head->bias)
        start_distances(task, head, t, query, rows);
    for (int d = 0; d < head->head_dim; d += DIMS) {
        int dims = min_int(head->head_dim - d, DIMS);
        if (head->head_dim > DIMS)
            pack_keys(task, head, t, d, dims);
        copy_queries(task, q + d, head->q.ld, rows, dims, head->scale * LOG2_E);
        for (int j = 0; j < columns; j += NR) {
            float *c = task->logits + j;
            Start start = {c, STRIDE};
            if (d == 0 && !head->bias)
                start = width ? (Start){by_column + j % t->padded, width} : (Start){NULL, 0};
            tile(rows, columns - j > LANES ? 2 : 1, c, STRIDE, start, task->panel, task->keys + j * dims, NR,
                 dims);
        }
    }
    if (!head->rel)
        for (int i = 0; i < rows; i++)
            for (int c = t->cols; c < t->padded; c++)
                task->logits[i * STRIDE + c] = -INFINITY;
}

/* The running maxima of a group of queries. factor[i] scales the earlier sums of query i; it is 1 if the
 * maximum does not grow. (Before the first tile there are no sums.). */
static void group_maxima(Task *task, const KeyTile *t, int query, int rows, float *factor)
{
    float grown[MR + LANES] = {0};
    for (int i = 0; i < rows; i++) {
        const float *row = task->logits + i * STRIDE, *by_row = row_biases(task, t, query + i);
        Vec most = splat(task->max[query + i]);
        for (int r = 0; r < t->rows; r++, row += t->padded) {
            Vec most0 = load(row), most1 = load(row + t->padded - LANES);
            for (int c = LANES; c + NR <= t->padded; c += NR) {
                most0 = vec_max(load(row + c), most0);
                most1 = vec_max(load(row + c + LANES), most1);
            }
            most = vec_max(vec_max(most0, most1) + splat(by_row[r]), most);
        }
        const float max = max_lanes(most);
        grown[i] = task->max[query + i] - max;
        task->max[query + i] = max;
    }
    for (int i = 0; i < rows; i += LANES)
        store(factor + i, vec_exp2(load(grown + i)));
}

/* Turn logits into powers of two relative to the maximum, without padding. */
static void group_powers(Task *task, const KeyTile *t, int query, int rows, const float *factor)
{
    for (int i = 0; i < rows; i++) {
        const float *logits = task->logits + i * STRIDE, *by_row = row_biases(task, t, query + i);
        float *powers = task->logits + i * STRIDE;
        Vec sum = load(task->sum[query + i]) * splat(factor[i]);
        for (int r = 0; r < t->rows; r++, logits += t->padded, powers += t->cols) {
            const Vec max = splat(task->max[query + i] - by_row[r]);
            for (int c = 0; c < t->padded; c += LANES) {
                Vec power = vec_exp2(load(logits + c) - max);
                store(powers + c, power);
                sum += power;
            }
        }
        store(task->sum[query + i], sum);
    }
}

/* out = out + probabilities·v; at the first tile out starts from 0. */
static void group_values(Task *task, const Head *head, const KeyTile *t, float *out, int rows, int first_tile)
{
    const int n = t->rows * t->cols;
    for (int d = 0; d < head->head_dim; d += DIMS) {
        int dims = min_int(head->head_dim - d, DIMS);
        if (head->head_dim > DIMS)
            pack_values(task, head, t, d, dims);
        for (int j = 0; j < dims; j += NR) {
            const float *values = task->values + j * n;
            float *c = out + d + j, edge[MR * NR];
            int cols = min_int(dims - j, NR);
            Start start = {first_tile ? NULL : c, head->out_ld}, none = {NULL, 0};
            if (cols % LANES == 0) {
                tile(rows, cols / LANES, c, head->out_ld, start, task->logits, values, NR, n);
                continue;
            }
            tile(rows, 2, edge, NR, none, task->logits, values, NR, n);
            for (int i = 0; i < rows; i++)
                for (int x = 0; x < cols; x++)
                    c[i * head->out_ld + x] = edge[i * NR + x] + (first_tile ? 0 : c[i * head->out_ld + x]);
        }
    }
}

static void scale_row(float *row, float factor, int n)
{
    for (int d = 0; d < n; d++)
        row[d] *= factor;
}

static void group_of_queries(Task *task, const Head *head, const KeyTile *t, const float *q, float *out,
                             int query, int rows, int first_tile)
{
    float factor[MR + LANES];
    group_logits(task, head, t, q, query, rows);
    group_maxima(task, t, query, rows, factor);
    group_powers(task, t, query, rows, factor);
    for (int i = 0; i < rows && !first_tile; i++)
        if (factor[i] != 1)
            scale_row(out + i * head->out_ld, factor[i], head->head_dim);
    group_values(task, head, t, out, rows, first_tile);
}

/* ---- one task -----------------------------------------------------------------------------------------*/

static void tile_of_keys(Task *task, const Head *head, const KeyTile *t, const Rectangle *r, int first_tile)
{
    if (head->head_dim <= DIMS) {
        pack_keys(task, head, t, 0, head->head_dim);
        pack_values(task, head, t, 0, head->head_dim);
    }
    const int groups = (r->w + MR - 1) / MR, step = (r->w + groups - 1) / groups;
    for (int y = 0; y < r->h; y++)
        for (int x = 0; x < r->w; x += step)
            group_of_queries(task, head, t, at(&head->q, r->y + y, r->x + x),
                             head->out + (r->y + y) * head->out_row_ld + (r->x + x) * head->out_ld,
                             y * r->w + x, min_int(r->w - x, step), first_tile);
}

/* Columns of keys in a tile. The grid is divided into strips of this width: equal, whole vectors, at most
 * KEYS columns. */
static int strip_of_keys(int key_w)
{
    int strips = (key_w + KEYS - 1) / KEYS;
    return strips <= 1 ? key_w : round_up((key_w + strips - 1) / strips, NR);
}

static void attend(Task *task, const Head *head, const Rectangle *r)
{
    const int strip = strip_of_keys(head->key_w), n = r->h * r->w;
    const int most_rows = head->key_w > strip ? 1 : KEYS / round_up(strip > 0 ? strip : 1, LANES);
    const int row_tiles = (head->key_h + most_rows - 1) / most_rows;
    const int tile_rows = row_tiles ? (head->key_h + row_tiles - 1) / row_tiles : 1;
    const int decomposed = head->rel && !head->bias;
    memset(task->sum, 0, (size_t)n * sizeof *task->sum);
    task->queries = *r;
    for (int i = 0; i < n; i++)
        task->max[i] = -INFINITY;
    task->rel_h = decomposed ? row_floats(head->rel->grid_h) : 0;
    task->rel_w = decomposed ? column_floats(strip) : 0;
    if (decomposed)
        rel_rows(task, head, r);
    int started = 0;
    for (int kw = 0; kw < head->key_w; kw += strip) {
        int cols = min_int(strip, head->key_w - kw);
        if (decomposed)
            rel_columns(task, head, r, kw, cols);
        for (int kh = 0; kh < head->key_h; kh += tile_rows, started = 1) {
            KeyTile t = {kh, kw, min_int(tile_rows, head->key_h - kh), cols, round_up(cols, LANES)};
            tile_of_keys(task, head, &t, r, !started);
        }
    }
    for (int y = 0; y < r->h; y++)
        for (int x = 0; x < r->w; x++) {
            float *out = head->out + (r->y + y) * head->out_row_ld + (r->x + x) * head->out_ld;
            if (started)
                scale_row(out, 1 / sum_lanes(load(task->sum[y * r->w + x])), head->head_dim);
            else
                memset(out, 0, (size_t)head->head_dim * sizeof *out);
        }
}

/* ---- all heads ----------------------------------------------------------------------------------------*/

/* The queries of a task: whole rows of the grid, or a part of a row that is too long. All tasks are equal.
 * There are at least `parts_wanted` of them if there are enough queries. */
static Rectangle task_size(int query_h, int query_w, const RelativePosition *rel, int parts_wanted)
{
    int most = (int)(((ptrdiff_t)query_h * query_w + parts_wanted - 1) / parts_wanted);
    most = min_int(QUERIES, most > MR ? most : MR);
    if (rel)
        most =
            min_int(most, REL_FLOATS / (row_floats(rel->grid_h) + column_floats(strip_of_keys(rel->grid_w))));
    int w = query_w, h = 1;
    if (query_w > most) {
        int parts = (query_w + most - 1) / most;
        w = min_int(round_up((query_w + parts - 1) / parts, MR), most);
    } else {
        int parts = (query_h + most / query_w - 1) / (most / query_w);
        h = (query_h + parts - 1) / parts;
    }
    return (Rectangle){0, 0, h, w};
}

/* All heads: the first one, and the tasks of each, down × across, of `size` queries. Tasks are numbered head
 * by head. */
typedef struct Heads {
    Head first;
    Rectangle size;
    int down, across, threads;
    Task *tasks; /* [threads] */
} Heads;

static void numbered_task(const void *job, int number)
{
    const Heads *all = job;
    const Rectangle size = all->size;
    const int number_of_head = number / (all->down * all->across);
    const int y = number / all->across % all->down * size.h, x = number % all->across * size.w;
    Head head = all->first;
    const ptrdiff_t h = (ptrdiff_t)number_of_head * head.head_dim;
    head.q.first += h;
    head.k.first += h;
    head.v.first += h;
    head.out += h;
    if (head.bias)
        head.bias += number_of_head * head_biases(head.rel);
    Rectangle r = {y, x, min_int(size.h, head.q.h - y), min_int(size.w, head.q.w - x)};
    attend(&all->tasks[task_thread(all->threads)], &head, &r);
}

int attention_reserve(int n_k, int head_dim, Error *err)
{
    (void)n_k, (void)head_dim;
    const size_t fp32 = sizeof(Task), bf16 = bf16_attention_task_bytes(), most = fp32 > bf16 ? fp32 : bf16;
    return thread_reserve((size_t)thread_team_size() * most, "attention", err);
}

void attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v, int ldv,
               int n_q, int n_k, int n_heads, int head_dim, float scale, const RelativePosition *rel,
               void *bf16_scratch)
{
    if (n_q <= 0)
        return;
    if (bf16_scratch && head_dim >= BF16_LEAST_TERMS) {
        bf16_attention(out, ldo, q, ldq, k, ldk, v, ldv, n_q, n_k, n_heads, head_dim, scale, rel,
                       bf16_scratch);
        return;
    }
    const int query_h = rel ? rel->grid_h : 1, query_w = rel ? rel->grid_w : n_q;
    const int key_h = rel ? rel->grid_h : 1, key_w = rel ? rel->grid_w : n_k;
    const int threads = threads_for((double)n_q * n_k * head_dim * n_heads, PARALLEL_PRODUCT);
    const int tasks = threads > 1 ? TASKS_A_THREAD * threads : 1;
    const Rectangle size = task_size(query_h, query_w, rel, (tasks + n_heads - 1) / n_heads);
    const int down = (query_h + size.h - 1) / size.h, across = (query_w + size.w - 1) / size.w;
    const Heads all = {.first = {.q = {q, (ptrdiff_t)query_w * ldq, ldq, query_h, query_w, NULL},
                                 .k = {k, (ptrdiff_t)key_w * ldk, ldk, key_h, key_w, NULL},
                                 .v = {v, (ptrdiff_t)key_w * ldv, ldv, key_h, key_w, NULL},
                                 .out = out,
                                 .out_row_ld = (ptrdiff_t)query_w * ldo,
                                 .out_ld = ldo,
                                 .key_h = key_h,
                                 .key_w = key_w,
                                 .head_dim = head_dim,
                                 .scale = scale,
                                 .rel = rel,
                                 .bias = rel ? rel->bias : NULL},
                       .size = size,
                       .down = down,
                       .across = across,
                       .threads = threads,
                       .tasks = reserved_scratch((size_t)threads * sizeof(Task))};
    run_tasks(n_heads * down * across, threads, numbered_task, NULL, &all);
}

/* Attention inside windows, see window_attention. */
typedef struct Windows {
    float *out;
    const float *qkv, *pad;
    int grid_h, grid_w, across; /* windows side by side. */
    int n_heads, head_dim;
    float scale;
    const RelativePosition *rel;
    int threads;
    Task *tasks; /* [threads] */
} Windows;

/* One head of one window. Beyond the edge of the grid there are no queries, and keys and values are pad's. */
static void head_of_window(const void *job, int number)
{
    const Windows *w = job;
    const RelativePosition *rel = w->rel;
    const int h = number % w->n_heads, window = number / w->n_heads;
    const int y0 = window / w->across * rel->grid_h, x0 = window % w->across * rel->grid_w;
    const int real_h = min_int(rel->grid_h, w->grid_h - y0), real_w = min_int(rel->grid_w, w->grid_w - x0);
    const ptrdiff_t dim = (ptrdiff_t)w->n_heads * w->head_dim, ld = 3 * dim, row_ld = w->grid_w * ld;
    const ptrdiff_t corner = (ptrdiff_t)y0 * w->grid_w + x0, first = (ptrdiff_t)h * w->head_dim;
    const float *q = w->qkv + corner * ld + first, *pad = w->pad + first;
    Head head = {.q = {q, row_ld, ld, real_h, real_w, NULL},
                 .k = {q + dim, row_ld, ld, real_h, real_w, pad + dim},
                 .v = {q + 2 * dim, row_ld, ld, real_h, real_w, pad + 2 * dim},
                 .out = w->out + corner * dim + first,
                 .out_row_ld = w->grid_w * dim,
                 .out_ld = dim,
                 .key_h = rel->grid_h,
                 .key_w = rel->grid_w,
                 .head_dim = w->head_dim,
                 .scale = w->scale,
                 .rel = rel,
                 .bias = rel->bias ? rel->bias + h * head_biases(rel) : NULL};
    const Rectangle size = task_size(real_h, real_w, rel, 1);
    for (int y = 0; y < real_h; y += size.h)
        for (int x = 0; x < real_w; x += size.w) {
            Rectangle r = {y, x, min_int(size.h, real_h - y), min_int(size.w, real_w - x)};
            attend(&w->tasks[task_thread(w->threads)], &head, &r);
        }
}

void window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w, int n_heads,
                      int head_dim, float scale, const RelativePosition *rel, void *bf16_scratch)
{
    if (bf16_scratch && head_dim >= BF16_LEAST_TERMS) {
        bf16_window_attention(out, qkv, pad, grid_h, grid_w, n_heads, head_dim, scale, rel, bf16_scratch);
        return;
    }
    const int down = (grid_h + rel->grid_h - 1) / rel->grid_h,
              across = (grid_w + rel->grid_w - 1) / rel->grid_w;
    const int threads = thread_team_size();
    Task *tasks = reserved_scratch((size_t)threads * sizeof *tasks);
    const Windows all = {out,     qkv,      pad,   grid_h, grid_w,  across,
                         n_heads, head_dim, scale, rel,    threads, tasks};
    run_tasks(down * across * n_heads, threads, head_of_window, NULL, &all);
}
