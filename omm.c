/* omm.c - score matrix, dustbin, Sinkhorn, mutual matches. See omm.h; METHOD.md section 6. */
#include "omm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

static float distance_cost(const float *a, const float *b, float position_weight)
{
    const float dx = a[0] - b[0], dy = a[1] - b[1];
    return position_weight * (dx * dx + dy * dy);
}

void omm_scores(float *scores, const OmmSide *q, const OmmSide *r, int dim, float position_weight)
{
    matmul_nt(scores, r->n, q->descriptors, dim, r->descriptors, dim, q->n, r->n, dim, 0);
    for (int i = 0; i < q->n; i++)
        for (int j = 0; j < r->n; j++)
            scores[(size_t)i * (size_t)r->n + (size_t)j] -=
                distance_cost(q->centroids + 2 * i, r->centroids + 2 * j, position_weight);
}

/* log Σ_j exp(z[j·stride] + add[j]), shifted by the largest so that nothing overflows. */
static double log_sum_exp(const float *z, size_t stride, const double *add, int n)
{
    double largest = -INFINITY; /* (not by fmax: gcc 12 for ARM fails to compile its reduction) */
    for (int j = 0; j < n; j++) {
        const double term = z[(size_t)j * stride] + add[j];
        largest = term > largest ? term : largest;
    }
    double sum = 0;
    for (int j = 0; j < n; j++)
        sum += expf((float)(z[(size_t)j * stride] + add[j] - largest));
    return largest + log(sum);
}

void omm_sinkhorn(float *assignment, const float *scores, int n, int m, float alpha, float tau, int iters,
                  double *scratch)
{
    /* SuperGlue's log_optimal_transport [block]: the total mass is n + m; each object has 1, each dustbin as
     * much as the other side has objects, so that all may end up unmatched. */
    int rows = n + 1, cols = m + 1;
    float *z = assignment;
    double *u = scratch, *v = scratch + rows, norm = -log(n + m);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            z[(size_t)i * (size_t)cols + (size_t)j] =
                (i < n && j < m ? scores[(size_t)i * (size_t)m + (size_t)j] : alpha) / tau;
    memset(scratch, 0, (size_t)(rows + cols) * sizeof *scratch);
    for (int t = 0; t < iters; t++) {
        for (int i = 0; i < rows; i++)
            u[i] = norm + (i < n ? 0 : log(m)) - log_sum_exp(z + (size_t)i * (size_t)cols, 1, v, cols);
        for (int j = 0; j < cols; j++)
            v[j] = norm + (j < m ? 0 : log(n)) - log_sum_exp(z + j, (size_t)cols, u, rows);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            size_t at = (size_t)i * (size_t)cols + (size_t)j;
            z[at] = expf((float)(z[at] + u[i] + v[j] - norm));
        }
}

static int best_in_row(const float *row, int n)
{
    int best = 0;
    for (int j = 1; j < n; j++)
        if (row[j] > row[best])
            best = j;
    return best;
}

static int best_in_column(const float *column, size_t stride, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (column[(size_t)i * stride] > column[(size_t)best * stride])
            best = i;
    return best;
}

/* Mutual best by table [n_q][stride], above the threshold. */
static void pick_matches(Matching *m, const float *table, size_t stride, float threshold)
{
    for (int i = 0; i < m->n_q; i++) {
        int j = best_in_row(table + (size_t)i * stride, m->n_r);
        if (table[(size_t)i * stride + (size_t)j] > threshold &&
            best_in_column(table + j, stride, m->n_q) == i) {
            m->match_q[i] = j;
            m->match_r[j] = i;
        }
    }
}

/* The ablation without optimal transport: a match or none, U and V are 0 or 1. */
static void match_nearest(Matching *m, float alpha)
{
    size_t cols = (size_t)m->n_r + 1;
    pick_matches(m, m->scores, (size_t)m->n_r, nextafterf(alpha, -INFINITY));
    memset(m->assignment, 0, ((size_t)m->n_q + 1) * cols * sizeof(float));
    for (int i = 0; i < m->n_q; i++)
        m->assignment[(size_t)i * cols + (size_t)(m->match_q[i] >= 0 ? m->match_q[i] : m->n_r)] = 1;
    for (int j = 0; j < m->n_r; j++)
        if (m->match_r[j] < 0)
            m->assignment[(size_t)m->n_q * cols + (size_t)j] = 1;
}

/* Why alpha is not the dustbin itself. Take one pair (i, j) that matches, among others that do. In the
 * transport plan P_ij·P_bb / (P_ib·P_bj) = exp((S_ij - dustbin)/τ), b the bins; rows and columns of objects
 * sum to 1, so P_ib = P_bj = U and P_ij = 1 - U; and P_bb, what the bins have to give each other, is about
 * the number of matches, min(n, m). So U²/(1 - U) = min(n, m)·exp(-(S - dustbin)/τ): the more objects, the
 * more of every match leaks into the bins, and at S = dustbin nearly all of it. Solving for the dustbin at
 * which the weakest normal match, S = alpha, still has U = u gives dustbin = alpha - τ·(log min(n, m) -
 * log(u²/(1 - u))). */
float omm_dustbin(float alpha, int n, int m, const OmmOptions *options)
{
    float u = options->alpha_unmatched;
    if (u <= 0 || n < 1 || m < 1)
        return alpha;
    return alpha - options->tau * (logf((float)(n < m ? n : m)) - (2 * logf(u) - log1pf(-u)));
}

int omm_match(Matching *m, const OmmSide *q, const OmmSide *r, int dim, float alpha,
              const OmmOptions *options, Error *err)
{
    size_t n = (size_t)q->n, k = (size_t)r->n, cols = k + 1;
    *m = (Matching){.n_q = q->n, .n_r = r->n};
    m->scores = aligned_array(n * k + 1, sizeof(float));
    m->assignment = aligned_array((n + 1) * cols, sizeof(float));
    m->match_q = aligned_array(n + 1, sizeof(int));
    m->match_r = aligned_array(k + 1, sizeof(int));
    m->unmatched_q = aligned_array(n + 1, sizeof(float));
    m->unmatched_r = aligned_array(k + 1, sizeof(float));
    m->counted_q = aligned_array(n + 1, sizeof(float));
    m->counted_r = aligned_array(k + 1, sizeof(float));
    double *scratch = aligned_array(n + k + 2, sizeof(double));
    if (!m->scores || !m->assignment || !m->match_q || !m->match_r || !m->unmatched_q || !m->unmatched_r ||
        !m->counted_q || !m->counted_r || !scratch) {
        matching_free(m);
        free(scratch);
        return fail_memory(err, "a matching", (n + 1) * cols * 8);
    }
    memset(m->match_q, -1, (n + 1) * sizeof(int));
    memset(m->match_r, -1, (k + 1) * sizeof(int));
    if (n > 0 && k > 0) {
        omm_scores(m->scores, q, r, dim, options->position_weight);
        if (options->nearest) {
            match_nearest(m, alpha);
        } else {
            omm_sinkhorn(m->assignment, m->scores, q->n, r->n, omm_dustbin(alpha, q->n, r->n, options),
                         options->tau, options->sinkhorn_iters, scratch);
            pick_matches(m, m->assignment, cols, options->match_threshold);
        }
        for (size_t i = 0; i < n; i++)
            m->unmatched_q[i] = m->assignment[i * cols + k];
        for (size_t j = 0; j < k; j++)
            m->unmatched_r[j] = m->assignment[n * cols + j];
    } else { /* nothing to match with: all is in the dustbin */
        memset(m->assignment, 0, (n + 1) * cols * sizeof(float));
        for (size_t i = 0; i < n; i++)
            m->assignment[i * cols + k] = m->unmatched_q[i] = 1;
        for (size_t j = 0; j < k; j++)
            m->assignment[n * cols + j] = m->unmatched_r[j] = 1;
    }
    free(scratch);
    return 0;
}

int omm_alike(const OmmSide *a, int i, const OmmSide *b, int j, int dim, float alpha,
              const OmmOptions *options)
{
    const float likeness = dot(a->descriptors + (ptrdiff_t)i * dim, b->descriptors + (ptrdiff_t)j * dim, dim);
    return likeness - distance_cost(a->centroids + 2 * i, b->centroids + 2 * j, options->position_weight) >=
           alpha;
}

/* One side of omm_count. own [n][n]: S of `mine` with itself; cross: S of mine's i and the other's j stands
 * at i·row + j·column; match: of the other's objects. */
static void count_side(float *counted, const float *unmatched, const OmmSide *mine, const OmmSide *other,
                       const float *own, const float *cross, size_t row, size_t column, const int *match,
                       float alpha)
{
    for (int i = 0; i < mine->n; i++) {
        const float *like = own + (size_t)i * (size_t)mine->n;
        float left = 0, area = 0, other_area = 0;
        int n_other = 0;
        for (int j = 0; j < mine->n; j++)
            if (j == i || like[j] >= alpha) {
                left += unmatched[j];
                area += mine->areas[j];
            }
        for (int j = 0; j < other->n; j++) {
            const int k = match[j];
            if (k == i || (k >= 0 && like[k] >= alpha) ||
                cross[(size_t)i * row + (size_t)j * column] >= alpha) {
                other_area += other->areas[j];
                n_other++;
            }
        }
        if (other_area > 0)
            left = fminf(left, (area - other_area) / (other_area / (float)n_other));
        counted[i] = fmaxf(unmatched[i], left);
    }
}

int omm_count(Matching *m, const OmmSide *q, const OmmSide *r, int dim, float alpha,
              const OmmOptions *options, Error *err)
{
    const size_t n = (size_t)m->n_q, k = (size_t)m->n_r, most = n > k ? n : k;
    memcpy(m->counted_q, m->unmatched_q, n * sizeof(float));
    memcpy(m->counted_r, m->unmatched_r, k * sizeof(float));
    if (!options->count)
        return 0;
    float *own = aligned_array(most * most + 1, sizeof *own);
    if (!own)
        return fail_memory(err, "counting", most * most * sizeof *own);
    omm_scores(own, q, q, dim, options->position_weight);
    count_side(m->counted_q, m->unmatched_q, q, r, own, m->scores, k, 1, m->match_r, alpha);
    omm_scores(own, r, r, dim, options->position_weight);
    count_side(m->counted_r, m->unmatched_r, r, q, own, m->scores, 1, k, m->match_q, alpha);
    free(own);
    return 0;
}

void matching_free(Matching *m)
{
    free(m->scores), free(m->assignment), free(m->match_q), free(m->match_r), free(m->unmatched_q),
        free(m->unmatched_r), free(m->counted_q), free(m->counted_r);
    *m = (Matching){0};
}
