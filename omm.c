/* omm.c - retrieval's cosine, score matrix, dustbin, Sinkhorn, mutual matches, verification, counting, alpha.
 * See omm.h; docs/METHOD.md 2 and 6.
 *
 *   S_ij = h_i·h_j - w_p‖c_i - c_j‖²            [n_q][n_r]
 *   P = Sinkhorn of S/τ with dustbins            [n_q+1][n_r+1]
 *   match: mutual best of P above a threshold    U_i = P[i, bin], V_j = P[bin, j]
 *   verify: U_i or V_j = 0 where the other image shows a similar object under its mask
 *   count: U and V of similar objects together. */
#include "omm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Retrieval (docs/METHOD.md 2)
 * ============================================================================================== */

void retrieval_mean(float *mean, const float *patches, ptrdiff_t n, ptrdiff_t C)
{
    for (ptrdiff_t c = 0; c < C; c++) {
        double sum = 0;
        for (ptrdiff_t p = 0; p < n; p++)
            sum += patches[p * C + c];
        mean[c] = (float)(sum / n);
    }
    l2_normalise(mean, 1, C, 1e-12f);
}

float retrieval_cosine(const float *a, const float *b, int dim)
{
    return dot(a, b, dim);
}

float retrieval_l2(const float *features, const uint16_t *features16, size_t n)
{
    enum { BLOCK = 512 };
    float difference[BLOCK];
    double sum = 0;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t count = n - at < BLOCK ? n - at : BLOCK;
        f16_to_f32_row(difference, features16 + at, count);
        for (size_t i = 0; i < count; i++)
            difference[i] -= features[at + i];
        sum += dot(difference, difference, (int)count);
    }
    return (float)-sum;
}

/* ================================================================================================
 * Scores and optimal transport (docs/METHOD.md 6)
 * ============================================================================================== */

static float distance_cost(const float *a, const float *b, float position_weight)
{
    const float dx = a[0] - b[0], dy = a[1] - b[1];
    return position_weight * (dx * dx + dy * dy);
}

void omm_scores(float *scores, const Objects *q, const Objects *r, float position_weight)
{
    const ptrdiff_t n = q->n, m = r->n, C = q->channels;
    matmul_nt(scores, m, q->descriptors, C, r->descriptors, C, n, m, C, 0);
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j < m; j++)
            scores[i * m + j] -= distance_cost(q->centroids + 2 * i, r->centroids + 2 * j, position_weight);
}

/* log Σ_j exp(z[j·stride] + add[j]). The largest term is subtracted first, so that nothing overflows. */
static double log_sum_exp(const float *z, ptrdiff_t stride, const double *add, int n)
{
    double largest = -INFINITY; /* not by fmax: gcc 12 for ARM fails to compile its reduction. */
    for (int j = 0; j < n; j++) {
        const double term = z[j * stride] + add[j];
        largest = term > largest ? term : largest;
    }
    double sum = 0;
    for (int j = 0; j < n; j++)
        sum += expf((float)(z[j * stride] + add[j] - largest));
    return largest + log(sum);
}

/* SuperGlue's log_optimal_transport [block]. The total mass is n + m: each object has 1, and each dustbin has
 * the number of objects on the other side. So all objects may end up unmatched. The potentials u and v are
 * double. Adding a constant to u and taking it from v changes little where objects fit well. Rounding to
 * float would let the two drift apart. */
int omm_sinkhorn(float *assignment, const float *scores, int n, int m, float dustbin, float tau, int iters,
                 Error *err)
{
    const ptrdiff_t rows = (ptrdiff_t)n + 1, cols = (ptrdiff_t)m + 1;
    const double norm = -log(n + m);
    float *z = aligned_array(rows * cols, sizeof *z);
    double *u = calloc(rows, sizeof *u), *v = calloc(cols, sizeof *v);
    if (!z || !u || !v) {
        free(z), free(u), free(v);
        return fail_memory(err, "a matching", rows * cols * sizeof *z);
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < cols; j++)
            z[i * cols + j] = (i < n && j < m ? scores[i * m + j] : dustbin) / tau;
    for (int t = 0; t < iters; t++) {
        for (ptrdiff_t i = 0; i < rows; i++)
            u[i] = norm + (i < n ? 0 : log(m)) - log_sum_exp(z + i * cols, 1, v, cols);
        for (ptrdiff_t j = 0; j < cols; j++)
            v[j] = norm + (j < m ? 0 : log(n)) - log_sum_exp(z + j, cols, u, rows);
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < cols; j++)
            assignment[i * cols + j] = expf((float)(z[i * cols + j] + u[i] + v[j] - norm));
    free(z), free(u), free(v);
    return 0;
}

/* Why alpha is not the dustbin itself. Take one matching pair (i, j) among other matching pairs; b is the
 * bins' index. In the transport plan P_ij·P_bb / (P_ib·P_bj) = exp((S_ij - dustbin)/τ). Rows and columns of
 * objects sum to 1, so P_ib = P_bj = U and P_ij = 1 - U. P_bb, the mass between the two bins, is about the
 * number of matches, min(n, m). So U²/(1 - U) = min(n, m)·exp(-(S - dustbin)/τ). The more objects there are,
 * the more of every match leaks into the bins. At S = dustbin nearly all of it leaks. The weakest normal
 * match has S = alpha and shall have U = u. Solved for the dustbin, this gives dustbin = alpha - τ·(log
 * min(n, m) - log(u²/(1 - u))) [ours]. */
float omm_dustbin(float alpha, int n, int m, const OmmOptions *options)
{
    float u = options->alpha_unmatched;
    if (u <= 0 || n < 1 || m < 1)
        return alpha;
    return alpha - options->tau * (logf((float)(n < m ? n : m)) - (2 * logf(u) - log1pf(-u)));
}

/* ================================================================================================
 * Matches
 * ============================================================================================== */

/* Mutual best by table [n_q][ld], above the threshold [block]. */
static void pick_matches(Matching *m, const float *table, ptrdiff_t ld, float threshold)
{
    for (ptrdiff_t i = 0; i < m->n_q; i++) {
        const int j = mutual_best(table, ld, m->n_q, m->n_r, i);
        if (j >= 0 && table[i * ld + j] > threshold) {
            m->match_q[i] = j;
            m->match_r[j] = (int)i;
        }
    }
}

/* Without optimal transport P is 1 or 0, and so are U and V. */
static void assign_matches(Matching *m)
{
    const ptrdiff_t cols = (ptrdiff_t)m->n_r + 1;
    for (int i = 0; i < m->n_q; i++)
        m->assignment[i * cols + (m->match_q[i] >= 0 ? m->match_q[i] : m->n_r)] = 1;
    for (int j = 0; j < m->n_r; j++)
        if (m->match_r[j] < 0)
            m->assignment[m->n_q * cols + j] = 1;
}

static void layout_matching(Matching *m, Arena *arena)
{
    const size_t n_q = m->n_q, n_r = m->n_r;
    m->scores = arena_floats(arena, n_q * n_r);
    m->assignment = arena_floats(arena, (n_q + 1) * (n_r + 1));
    m->match_q = arena_take(arena, n_q * sizeof *m->match_q);
    m->match_r = arena_take(arena, n_r * sizeof *m->match_r);
    m->unmatched_q = arena_floats(arena, n_q);
    m->unmatched_r = arena_floats(arena, n_r);
    m->counted_q = arena_floats(arena, n_q);
    m->counted_r = arena_floats(arena, n_r);
}

/* A matching without any match, with all of P 0. */
static int matching_new(Matching *m, int n_q, int n_r, Error *err)
{
    *m = (Matching){.n_q = n_q, .n_r = n_r};
    layout_matching(m, &m->memory);
    if (arena_allocate(&m->memory))
        return fail_memory(err, "a matching", m->memory.size);
    layout_matching(m, &m->memory);
    memset(m->memory.base, 0, m->memory.size);
    for (int i = 0; i < n_q; i++)
        m->match_q[i] = -1;
    for (int j = 0; j < n_r; j++)
        m->match_r[j] = -1;
    return 0;
}

int omm_match(Matching *m, const Objects *q, const Objects *r, float alpha, const OmmOptions *options,
              Error *err)
{
    const ptrdiff_t cols = (ptrdiff_t)r->n + 1;
    if (matching_new(m, q->n, r->n, err))
        return -1;
    if (q->n == 0 || r->n == 0) { /* no object to match with: all is in the dustbin. */
        assign_matches(m);
    } else if (options->nearest) { /* ablation: mutual nearest with S >= alpha. */
        omm_scores(m->scores, q, r, options->position_weight);
        pick_matches(m, m->scores, r->n, nextafterf(alpha, -INFINITY));
        assign_matches(m);
    } else {
        omm_scores(m->scores, q, r, options->position_weight);
        if (omm_sinkhorn(m->assignment, m->scores, q->n, r->n, omm_dustbin(alpha, q->n, r->n, options),
                         options->tau, options->sinkhorn_iters, err)) {
            matching_free(m);
            return -1;
        }
        pick_matches(m, m->assignment, cols, options->match_threshold);
    }
    for (int i = 0; i < q->n; i++)
        m->unmatched_q[i] = m->assignment[i * cols + r->n];
    for (int j = 0; j < r->n; j++)
        m->unmatched_r[j] = m->assignment[q->n * cols + j];
    return 0;
}

void omm_match_whole(Matching *m)
{
    m->match_q[0] = m->match_r[0] = 0;
    m->unmatched_q[0] = m->unmatched_r[0] = 0;
}

void matching_free(Matching *m)
{
    free(m->memory.base);
    *m = (Matching){0};
}

/* ================================================================================================
 * Verification by mask transfer [ours]
 * ============================================================================================== */

/* Move the mask [h*w] by (dx, dy) cells -> moved [h*w]. pooled [C] is the weighted mean of the image's
 * features under it. Returns 0 if nothing of the mask stays on the grid, else 1. */
static int pool_moved(float *pooled, float *moved, const Objects *image, const float *mask, int dx, int dy)
{
    const ptrdiff_t C = image->channels, h = image->grid_h, w = image->grid_w;
    double total = 0;
    memset(pooled, 0, C * sizeof *pooled);
    memset(moved, 0, h * w * sizeof *moved);
    for (ptrdiff_t y = 0; y < h; y++)
        for (ptrdiff_t x = 0; x < w; x++) {
            const float covered = mask[y * w + x];
            if (!(covered > 0) || x + dx < 0 || y + dy < 0 || x + dx >= w || y + dy >= h)
                continue;
            const ptrdiff_t p = (y + dy) * w + x + dx;
            const float *f = image->features + p * C;
            for (ptrdiff_t c = 0; c < C; c++)
                pooled[c] += covered * f[c];
            moved[p] = covered;
            total += covered;
        }
    for (ptrdiff_t c = 0; c < C && total > 0; c++)
        pooled[c] /= (float)total;
    return total > 0;
}

/* Buffers of a verification. */
typedef struct VerifyWork {
    float *moved;  /* [h*w] the mask in the other image */
    float *pooled; /* [C] of the features under it */
    float *h;      /* [C] the descriptor there */
} VerifyWork;

static void layout_verify(VerifyWork *work, Arena *arena, const Objects *image)
{
    work->moved = arena_floats(arena, grid_cells(image));
    work->pooled = arena_floats(arena, image->channels);
    work->h = arena_floats(arena, image->channels);
}

/* 1 if the image shows an object similar to object i of `mine` under its mask, else 0; -1: no memory. The
 * mask is also moved by up to `shift` cells, because parts never lie exactly alike. */
static int shown_there(const Objects *image, const Objects *mine, ptrdiff_t i, const Dcga *dcga, float alpha,
                       int shift, const VerifyWork *work, Error *err)
{
    const ptrdiff_t C = image->channels;
    const float *mask = mine->coverage + i * grid_cells(image);
    for (int dy = -shift; dy <= shift; dy++)
        for (int dx = -shift; dx <= shift; dx++) {
            if (!pool_moved(work->pooled, work->moved, image, mask, dx, dy))
                continue;
            if (dcga_describe_region(dcga, work->h, image, work->pooled, work->moved, err))
                return -1;
            if (dot(mine->descriptors + i * C, work->h, C) >= alpha)
                return 1;
        }
    return 0;
}

/* Look for an object with U above verify_above at the same place in the other image. If the region there is
 * as similar as normal matches are (cosine >= alpha), the segmentation failed, not the product. Then U
 * becomes 0. No match is invented. */
int omm_verify(float *unmatched, const Objects *mine, const Objects *other, const Dcga *dcga, float alpha,
               const OmmOptions *options, Error *err)
{
    Arena arena = {0};
    VerifyWork work;
    layout_verify(&work, &arena, other);
    if (arena_allocate(&arena))
        return fail_memory(err, "verification", arena.size);
    layout_verify(&work, &arena, other);
    int shown = 0;
    for (int i = 0; i < mine->n && shown >= 0; i++) {
        if (!(unmatched[i] > options->verify_above))
            continue;
        shown = shown_there(other, mine, i, dcga, alpha, options->verify_shift, &work, err);
        if (shown > 0)
            unmatched[i] = 0;
    }
    free(arena.base);
    return shown < 0 ? -1 : 0;
}

/* ================================================================================================
 * Counting [ours]
 * ============================================================================================== */

int omm_alike(const Objects *a, ptrdiff_t i, const Objects *b, ptrdiff_t j, float alpha,
              const OmmOptions *options)
{
    const ptrdiff_t C = a->channels;
    const float likeness = dot(a->descriptors + i * C, b->descriptors + j * C, C);
    const float cost = distance_cost(a->centroids + 2 * i, b->centroids + 2 * j, options->position_weight);
    return likeness - cost >= alpha;
}

/* One of the two images, whose objects are counted. */
typedef struct Side {
    const Objects *mine, *other;
    const float *unmatched; /* [mine->n] U, or V */
    const int *match;       /* [other->n] the object of mine, or -1. */
    const float *cross;     /* S of object i of mine and object j of the other is at i·row + j·column. */
    ptrdiff_t row, column;
} Side;

/* Fill counted [mine->n], see omm_count. own [mine->n][mine->n]: S of `mine` with itself. */
static void count_side(float *counted, const Side *s, const float *own, float alpha)
{
    const ptrdiff_t n = s->mine->n;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *like = own + i * n;
        float left = 0, area = 0, other_area = 0;
        int n_other = 0;
        for (ptrdiff_t j = 0; j < n; j++)
            if (j == i || like[j] >= alpha) {
                left += s->unmatched[j];
                area += s->mine->areas[j];
            }
        for (ptrdiff_t j = 0; j < s->other->n; j++) {
            const int matched = s->match[j];
            if (matched == i || (matched >= 0 && like[matched] >= alpha) ||
                s->cross[i * s->row + j * s->column] >= alpha) {
                other_area += s->other->areas[j];
                n_other++;
            }
        }
        if (other_area > 0)
            left = fminf(left, (area - other_area) / (other_area / n_other));
        counted[i] = fmaxf(s->unmatched[i], left);
    }
}

int omm_count(Matching *m, const Objects *q, const Objects *r, float alpha, const OmmOptions *options,
              Error *err)
{
    const size_t n_q = m->n_q, n_r = m->n_r, most = n_q > n_r ? n_q : n_r;
    memcpy(m->counted_q, m->unmatched_q, n_q * sizeof *m->counted_q);
    memcpy(m->counted_r, m->unmatched_r, n_r * sizeof *m->counted_r);
    if (!options->count)
        return 0;
    float *own = aligned_array(most * most, sizeof *own);
    if (!own)
        return fail_memory(err, "counting", most * most * sizeof *own);
    const Side query = {q, r, m->unmatched_q, m->match_r, m->scores, m->n_r, 1};
    const Side reference = {r, q, m->unmatched_r, m->match_q, m->scores, 1, m->n_r};
    omm_scores(own, q, q, options->position_weight);
    count_side(m->counted_q, &query, own, alpha);
    omm_scores(own, r, r, options->position_weight);
    count_side(m->counted_r, &reference, own, alpha);
    free(own);
    return 0;
}

/* ================================================================================================
 * The calibration of alpha [ours]. samlad.c:calibrate_alpha collects the scores over the bank.
 * ============================================================================================== */

int omm_pair_scores(float *scores, const Objects *a, const Objects *b, const OmmOptions *options, Error *err)
{
    const size_t n = a->n, m = b->n;
    float *s = aligned_array(n * m, sizeof *s);
    int(*pairs)[2] = aligned_array(n, sizeof *pairs);
    if (!s || !pairs) {
        free(s), free(pairs);
        return fail_memory(err, "the calibration of alpha", n * m * sizeof *s);
    }
    omm_scores(s, a, b, options->position_weight);
    const int n_pairs = mutual_pairs(pairs, s, a->n, b->n);
    for (int p = 0; p < n_pairs; p++)
        scores[p] = s[pairs[p][0] * m + pairs[p][1]];
    free(s), free(pairs);
    return n_pairs;
}

float omm_alpha(float *scores, size_t n, double quantile)
{
    qsort(scores, n, sizeof *scores, compare_floats);
    return quantile_sorted(scores, n, quantile);
}
