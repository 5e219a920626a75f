/* eval/baselines.c - see baselines.h. */
#include "eval/baselines.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "amm.h"
#include "io/fail.h"
#include "tensor.h"

const char *const baseline_names[BASELINES] = {"position-nn", "patchcore-like", "anomaly-dino"};

/* ================================================================================================
 * Cells
 * ============================================================================================== */

/* y [⌈h/2⌉][⌈w/2⌉][C] = the mean of x [h][w][C] over 2×2 cells. */
static void average_cells(float *y, const float *x, int h, int w, int channels)
{
    adaptive_avg_pool(y, (h + 1) / 2, (w + 1) / 2, x, h, w, channels);
}

static size_t count_cells(const BaselineBank *b)
{
    return (size_t)b->grid_h * (size_t)b->grid_w;
}

static int average_bank(BaselineBank *b, const Bank *bank, float *features, Error *err)
{
    const size_t n_cells = count_cells(b), C = (size_t)b->channels;
    for (int i = 0; i < bank->n_images; i++) {
        Objects view = {0};
        if (bank_with_features(&view, bank, i, features, err))
            return -1;
        average_cells(b->cells + (size_t)i * n_cells * C, features, bank->grid_h, bank->grid_w, b->channels);
    }
    for (size_t j = 0; j < (size_t)b->n_images * n_cells; j++)
        b->squared_norm[j] = dot(b->cells + j * C, b->cells + j * C, b->channels);
    return 0;
}

int baseline_bank_new(BaselineBank *b, const Bank *bank, Error *err)
{
    *b = (BaselineBank){.n_images = bank->n_images,
                        .grid_h = (bank->grid_h + 1) / 2,
                        .grid_w = (bank->grid_w + 1) / 2,
                        .channels = bank->channels};
    const size_t n = (size_t)b->n_images * count_cells(b), C = (size_t)b->channels;
    float *features = aligned_array(bank_cells(bank) * C, sizeof *features);
    b->cells = aligned_array(n * C, sizeof *b->cells);
    b->squared_norm = aligned_array(n, sizeof *b->squared_norm);
    const int status = features && b->cells && b->squared_norm
                           ? average_bank(b, bank, features, err)
                           : fail_memory(err, "the baselines", n * (C + 1) * sizeof(float));
    free(features);
    return status;
}

void baseline_bank_free(BaselineBank *b)
{
    free(b->cells), free(b->squared_norm);
    *b = (BaselineBank){0};
}

/* 1 - cos(a, b). */
static float cosine_distance(const float *a, const float *b, int n)
{
    return 1 - dot(a, b, n) / fmaxf(sqrtf(dot(a, a, n) * dot(b, b, n)), 1e-12f);
}

/* ================================================================================================
 * The nearest cell anywhere in the bank
 * ============================================================================================== */

enum { QUERY_BLOCK = 256, BANK_BLOCK = 256 }; /* a block's products take 256 KB. */

/* For the cells of one block of queries: the nearest cell of the bank so far, and how near it is. */
typedef struct Nearest {
    float l2[QUERY_BLOCK];     /* ‖b‖² - 2ab = ‖a - b‖² - ‖a‖² */
    float cosine[QUERY_BLOCK]; /* ab/‖b‖ = cos(a, b)·‖a‖ */
    int by_l2[QUERY_BLOCK], by_cosine[QUERY_BLOCK];
} Nearest;

/* Compare n queries with cell j of the bank; ab [n] holds its products with them. Loops over queries become
 * vectors, loops over the bank's cells would not. */
static void compare_cell(Nearest *nearest, const float *ab, int n, int j, float squared_norm)
{
    const float inverse_norm = 1 / fmaxf(sqrtf(squared_norm), 1e-12f);
    for (int q = 0; q < n; q++) {
        const float l2 = squared_norm - 2 * ab[q];
        nearest->by_l2[q] = l2 < nearest->l2[q] ? j : nearest->by_l2[q];
        nearest->l2[q] = l2 < nearest->l2[q] ? l2 : nearest->l2[q];
    }
    for (int q = 0; q < n; q++) {
        const float cosine = ab[q] * inverse_norm;
        nearest->by_cosine[q] = cosine > nearest->cosine[q] ? j : nearest->by_cosine[q];
        nearest->cosine[q] = cosine > nearest->cosine[q] ? cosine : nearest->cosine[q];
    }
}

/* The nearest cells of n <= QUERY_BLOCK queries [n][C]. ab [BANK_BLOCK][QUERY_BLOCK] is scratch. */
static void find_nearest(Nearest *nearest, const BaselineBank *b, const float *queries, int n, float *ab)
{
    const int n_bank = b->n_images * (int)count_cells(b), C = b->channels;
    for (int q = 0; q < n; q++) {
        nearest->l2[q] = INFINITY, nearest->cosine[q] = -INFINITY;
        nearest->by_l2[q] = nearest->by_cosine[q] = 0;
    }
    for (int first = 0; first < n_bank; first += BANK_BLOCK) {
        const int m = n_bank - first < BANK_BLOCK ? n_bank - first : BANK_BLOCK;
        matmul_nt(ab, QUERY_BLOCK, b->cells + (ptrdiff_t)first * C, C, queries, C, m, n, C, 0);
        for (int j = 0; j < m; j++)
            compare_cell(nearest, ab + j * QUERY_BLOCK, n, first + j, b->squared_norm[first + j]);
    }
}

/* by_l2 and by_cosine [cells]: the bank's cell that is nearest to each of the queries. Blocks of queries are
 * shared between threads; ab has a scratch for each. */
static void search_bank(int *by_l2, int *by_cosine, const BaselineBank *b, const float *queries, float *ab)
{
    const int n_cells = (int)count_cells(b);
#pragma omp parallel for schedule(dynamic)
    for (int first = 0; first < n_cells; first += QUERY_BLOCK) {
        const int n = n_cells - first < QUERY_BLOCK ? n_cells - first : QUERY_BLOCK;
        Nearest nearest;
        find_nearest(&nearest, b, queries + (ptrdiff_t)first * b->channels, n,
                     ab + (ptrdiff_t)thread_number() * BANK_BLOCK * QUERY_BLOCK);
        for (int q = 0; q < n; q++) {
            by_l2[first + q] = nearest.by_l2[q];
            by_cosine[first + q] = nearest.by_cosine[q];
        }
    }
}

/* ================================================================================================
 * The baselines
 * ============================================================================================== */

/* map [cells] of the queries [cells][C]. */
static void position_nn(float *map, const BaselineBank *b, const float *queries, const int *references, int k)
{
    const int h = b->grid_h, w = b->grid_w, C = b->channels;
#pragma omp parallel for
    for (int p = 0; p < h * w; p++) {
        map[p] = INFINITY;
        for (int r = 0; r < k; r++)
            for (int y = p / w > 0 ? p / w - 1 : 0; y <= p / w + 1 && y < h; y++)
                for (int x = p % w > 0 ? p % w - 1 : 0; x <= p % w + 1 && x < w; x++) {
                    const ptrdiff_t cell = ((ptrdiff_t)references[r] * h + y) * w + x;
                    map[p] = fminf(
                        map[p], sqrtf(squared_distance(queries + (ptrdiff_t)p * C, b->cells + cell * C, C)));
                }
    }
}

static void patchcore_like(float *map, const BaselineBank *b, const float *queries, const int *by_l2)
{
    const ptrdiff_t C = b->channels;
    for (int p = 0; p < (int)count_cells(b); p++)
        map[p] = sqrtf(squared_distance(queries + p * C, b->cells + by_l2[p] * C, b->channels));
}

static void anomaly_dino(float *map, const BaselineBank *b, const float *queries, const int *by_cosine)
{
    const ptrdiff_t C = b->channels;
    for (int p = 0; p < (int)count_cells(b); p++)
        map[p] = cosine_distance(queries + p * C, b->cells + by_cosine[p] * C, b->channels);
}

/* ================================================================================================
 * All of one image
 * ============================================================================================== */

typedef struct Work {
    float *queries; /* [cells][C] */
    float *ab;      /* [threads][BANK_BLOCK][QUERY_BLOCK] */
    float *sorted;  /* [cells] */
    int *by_l2, *by_cosine;
    Arena memory;
} Work;

static void layout(Work *work, const BaselineBank *b, int n_threads)
{
    const size_t n_cells = count_cells(b);
    work->queries = arena_floats(&work->memory, n_cells * (size_t)b->channels);
    work->ab = arena_floats(&work->memory, (size_t)n_threads * BANK_BLOCK * QUERY_BLOCK);
    work->sorted = arena_floats(&work->memory, n_cells);
    work->by_l2 = arena_take(&work->memory, n_cells * sizeof *work->by_l2);
    work->by_cosine = arena_take(&work->memory, n_cells * sizeof *work->by_cosine);
}

static int allocate(Work *work, BaselineMaps *maps, const BaselineBank *b, Error *err)
{
    const int n_threads = thread_team_size();
    *work = (Work){0};
    layout(work, b, n_threads);
    if (arena_allocate(&work->memory))
        return fail_memory(err, "the baselines", work->memory.size);
    layout(work, b, n_threads);
    for (int i = 0; i < BASELINES; i++)
        if (!(maps->map[i] = aligned_array(count_cells(b), sizeof(float))))
            return fail_memory(err, "the baselines' maps", count_cells(b) * sizeof(float));
    return 0;
}

/* The maximum of the map, or the mean of its largest 1 %. sorted [n_cells] is scratch. */
static float score_of(Baseline which, const float *map, float *sorted, int n_cells)
{
    memcpy(sorted, map, (size_t)n_cells * sizeof *sorted);
    const float largest_percent = amm_largest_percent(sorted, n_cells);
    return which == PATCHCORE_LIKE ? sorted[n_cells - 1] : largest_percent;
}

int baselines_measure(BaselineMaps *maps, const BaselineBank *b, const Scene *scene, const int *references,
                      int k, Error *err)
{
    Work work;
    *maps = (BaselineMaps){.grid_h = b->grid_h, .grid_w = b->grid_w};
    const int status = allocate(&work, maps, b, err);
    if (!status) {
        const Objects *grid = &scene->objects;
        average_cells(work.queries, scene->features, grid->grid_h, grid->grid_w, b->channels);
        search_bank(work.by_l2, work.by_cosine, b, work.queries, work.ab);
        position_nn(maps->map[POSITION_NN], b, work.queries, references, k);
        patchcore_like(maps->map[PATCHCORE_LIKE], b, work.queries, work.by_l2);
        anomaly_dino(maps->map[ANOMALY_DINO], b, work.queries, work.by_cosine);
        for (int i = 0; i < BASELINES; i++)
            maps->score[i] = score_of(i, maps->map[i], work.sorted, (int)count_cells(b));
    }
    free(work.memory.base);
    return status;
}

void baseline_maps_free(BaselineMaps *maps)
{
    for (int i = 0; i < BASELINES; i++)
        free(maps->map[i]);
    *maps = (BaselineMaps){0};
}
