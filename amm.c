/* amm.c - an object's place in a reference, Mahalanobis map, logical map, scores, z, fusion. See amm.h;
 * docs/METHOD.md 7.
 *
 *   places      position p of query object i ↦ x + zoom·p in reference r                    [n][k]
 *   claims      cells that the references' masks expect of an object become its own         [n][h·w]
 *   structural  Σ_i w_i(p)·M_i(p), M² = dᵀΣ⁻¹d, d = f(p) - μ over the samples at the places [h·w]
 *   in units    divided by the matched objects' own variation, their units                  [h·w]
 *   nearest     distance to the nearest features of the references, about the same place    [h·w]
 *   logical     U on the query's objects, V on the objects that it lacks                    [h·w]
 *   scores      A = power mean of the largest blocks of both together; L = the largest mean of U,
 *               or of the largest V; z of both; one score. */
#include "amm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* ================================================================================================
 * Where an object lies in a reference [ours]
 *
 * A match's centroids and areas give a first place: shift and zoom. But masks are noisy. A mask that lost a
 * rim has another centroid and another area. Then every edge inside the object would be compared with its
 * surroundings. So the first place is only one candidate, beside "same centroid, no zoom" and "same
 * position". The best candidate is shifted by up to `reach` cells; the place at which the features differ
 * least wins. The criterion is the mean of the distances, not of their squares. A scratch is a few cells of
 * large distance, and it must not move the object that carries it. An object without a match is compared with
 * the reference at its own place. So a poor segmentation without matches does not hide damage there.
 * ============================================================================================== */

enum { ALIGN_CELLS = 64 };

/* Up to ALIGN_CELLS cells, evenly spread over those of which object i covers at least half. Returns their
 * number. */
static int pick_cells(int *cells, const Objects *q, ptrdiff_t i)
{
    const int n_cells = (int)grid_cells(q);
    const float *w = q->coverage + i * n_cells;
    int total = 0, n, seen = 0, taken = 0;
    for (int p = 0; p < n_cells; p++)
        total += w[p] >= 0.5f;
    n = total < ALIGN_CELLS ? total : ALIGN_CELLS;
    for (int p = 0; p < n_cells && taken < n; p++)
        if (w[p] >= 0.5f && seen++ == taken * total / n)
            cells[taken++] = p;
    return n;
}

/* The cell of n in which x lies. Shifts are often whole fractions of a cell. The 1/512 decides a border
 * between two cells the same way for any last bit of x. */
static int cell_of(float x, int n)
{
    return (int)fminf(fmaxf(floorf(x + 1.0f / 512), 0), (float)(n - 1));
}

/* A query object to be registered in a reference. */
typedef struct Registered {
    const Objects *query, *reference;
    const float *inverse_std;
    int cells[ALIGN_CELLS], n_cells; /* of the query's object. */
} Registered;

/* Mean distance between the cells and their counterparts (nearest cells). Returns INFINITY as soon as it must
 * exceed `best`. */
static float misfit(const Registered *o, const Placement *at, float best)
{
    const ptrdiff_t C = o->query->channels, h = o->query->grid_h, w = o->query->grid_w;
    float sum = 0;
    for (int i = 0; i < o->n_cells; i++) {
        const ptrdiff_t p = o->cells[i];
        const ptrdiff_t x = cell_of(at->x + at->zoom * (p % w + 0.5f), w);
        const ptrdiff_t y = cell_of(at->y + at->zoom * (p / w + 0.5f), h);
        sum += distance_half(o->query->features + p * C, o->reference->features16 + (y * w + x) * C,
                             o->inverse_std, C);
        if (sum >= best * o->n_cells)
            return INFINITY;
    }
    return sum / o->n_cells;
}

/* The best of the candidates, then the best shift of it. */
static Placement register_object(const Registered *o, const Placement *candidates, int n_candidates,
                                 int reach)
{
    Placement found = candidates[0];
    float best = INFINITY;
    for (int c = 0; c < n_candidates; c++) {
        float fit = misfit(o, &candidates[c], best);
        if (fit < best)
            best = fit, found = candidates[c];
    }
    const Placement centre = found;
    for (int dy = -reach; dy <= reach; dy++)
        for (int dx = -reach; dx <= reach; dx++) {
            Placement at = centre;
            at.x += dx, at.y += dy;
            float fit = dx || dy ? misfit(o, &at, best) : INFINITY;
            if (fit < best)
                best = fit, found = at;
        }
    return found;
}

/* The place that puts object i's centroid on that of reference object j. */
static Placement by_match(const Objects *q, ptrdiff_t i, const Objects *r, ptrdiff_t j, float zoom)
{
    const float *c_q = q->centroids + 2 * i, *c_r = r->centroids + 2 * j;
    return (Placement){1, q->grid_w * (c_r[0] - c_q[0] * zoom), q->grid_h * (c_r[1] - c_q[1] * zoom), zoom};
}

/* The place of query object i in a reference. The object matched object j there, or none (-1). */
static Placement place_object(const Comparison *c, ptrdiff_t i, int reference, const float *inverse_std,
                              const AmmOptions *options)
{
    const Objects *q = &c->query, *r = &c->references[reference];
    const int j = c->matchings[reference].match_q[i];
    const int reach = options->align_pixel ? 0 : options->register_reach;
    Placement candidates[3];
    int n_candidates = 0;
    if (j < 0 && !options->register_unmatched)
        return (Placement){0};
    if (j >= 0 && !options->align_pixel && q->areas[i] <= options->large_object) {
        float zoom = r->areas[j] > 0 && q->areas[i] > 0 ? sqrtf(r->areas[j] / q->areas[i]) : 1;
        candidates[n_candidates++] = by_match(q, i, r, j, zoom);
        candidates[n_candidates++] = by_match(q, i, r, j, 1);
    }
    candidates[n_candidates++] = (Placement){1, 0, 0, 1}; /* the same position. */
    Registered object = {.query = q, .reference = r, .inverse_std = inverse_std};
    object.n_cells = reach > 0 ? pick_cells(object.cells, q, i) : 0;
    return object.n_cells > 0 ? register_object(&object, candidates, n_candidates, reach) : candidates[0];
}

void amm_places(Placement *places, const Comparison *c, const float *inverse_std, const AmmOptions *options)
{
#pragma omp parallel for schedule(dynamic, 1)
    for (int r = 0; r < c->k; r++)
        for (ptrdiff_t i = 0; i < c->query.n; i++)
            places[i * c->k + r] = place_object(c, i, r, inverse_std, options);
}

/* ================================================================================================
 * Claims [ours]
 *
 * If a piece broke off, the object's mask ends there. The cells of the piece are then compared with the
 * ground beside or under the references' parts. Parts never lie exactly alike, so nearly anything is normal
 * there. But the references' masks show that the part should continue, so the object claims the cells.
 * ============================================================================================== */

/* mask [h·w] at (x, y) in cells (centres at .5), bilinear, 0 beyond the borders. */
static float mask_at(const float *mask, int grid_h, int grid_w, float x, float y)
{
    float left = floorf(x - 0.5f), top = floorf(y - 0.5f), fx = x - 0.5f - left, fy = y - 0.5f - top, sum = 0;
    if (!(left >= -1 && top >= -1 && left < grid_w && top < grid_h))
        return 0;
    for (int corner = 0; corner < 4; corner++) {
        int right = corner & 1, low = corner >> 1, at_x = (int)left + right, at_y = (int)top + low;
        if (at_x >= 0 && at_y >= 0 && at_x < grid_w && at_y < grid_h)
            sum += (right ? fx : 1 - fx) * (low ? fy : 1 - fy) * mask[at_y * grid_w + at_x];
    }
    return sum;
}

/* The positions 0 .. n-1 of the query whose counterparts, shift + zoom·(position + 1/2), touch e. One more
 * position on either side is included: it costs little, and its mask is 0. */
static Span counterparts(Span e, float shift, float zoom, int n)
{
    float first = floorf((e.first - 0.5f - shift) / zoom - 1.5f),
          last = ceilf((e.last + 1.5f - shift) / zoom + 0.5f);
    return (Span){(int)fminf(fmaxf(first, 0), n), (int)fmaxf(fminf(last, n - 1), -1)};
}

/* Add mask/n_matched, moved to the object's place in the query, to expected [h·w]. */
static void add_moved(float *expected, const float *mask, const Placement *at, int h, int w, int n_matched)
{
    Span rows, columns;
    coverage_extent(&rows, &columns, mask, h, w);
    if (rows.last < 0)
        return;
    rows = counterparts(rows, at->y, at->zoom, h), columns = counterparts(columns, at->x, at->zoom, w);
    for (int y = rows.first; y <= rows.last; y++)
        for (int x = columns.first; x <= columns.last; x++)
            expected[y * w + x] +=
                mask_at(mask, h, w, at->x + at->zoom * (x + 0.5f), at->y + at->zoom * (y + 0.5f)) / n_matched;
}

/* expected [h·w]: the mean mask of the objects that object i matched, moved to its place in the query. It is
 * 0 if fewer than half of the references match it. */
static void expect_mask(float *expected, const Comparison *c, ptrdiff_t i, const Placement *places)
{
    const int h = c->query.grid_h, w = c->query.grid_w;
    const ptrdiff_t n_cells = grid_cells(&c->query);
    int n_matched = 0;
    for (int r = 0; r < c->k; r++)
        n_matched += c->matchings[r].match_q[i] >= 0;
    memset(expected, 0, n_cells * sizeof *expected);
    if (2 * n_matched < c->k)
        return;
    for (int r = 0; r < c->k; r++) {
        const ptrdiff_t j = c->matchings[r].match_q[i];
        if (j >= 0)
            add_moved(expected, c->references[r].coverage + j * n_cells, &places[i * c->k + r], h, w,
                      n_matched);
    }
}

/* The part of cell p that objects no larger than i cover. */
static float held_by_smaller(const Objects *q, int i, ptrdiff_t p)
{
    const ptrdiff_t n_cells = grid_cells(q);
    float held = 0;
    for (int j = 0; j < q->n; j++)
        if (q->areas[j] <= q->areas[i])
            held += q->coverage[j * n_cells + p];
    return held;
}

/* Settle the largest claim on cell p. A claim is the expected coverage minus the coverage of all objects no
 * larger than the claimant. The claimant gets this part from larger objects. claimed, expected [n][h·w]. */
static void settle_cell(float *claimed, const float *expected, const Objects *q, ptrdiff_t p)
{
    const ptrdiff_t n_cells = grid_cells(q);
    int claimant = -1;
    float claim = 0, rest = 0;
    for (int i = 0; i < q->n; i++) {
        float most = expected[i * n_cells + p];
        float missing = most > claim ? most - held_by_smaller(q, i, p) : 0;
        if (missing > claim)
            claim = missing, claimant = i;
    }
    for (int i = 0; i < q->n; i++) {
        claimed[i * n_cells + p] = q->coverage[i * n_cells + p];
        if (claimant >= 0 && q->areas[i] > q->areas[claimant])
            rest += q->coverage[i * n_cells + p];
    }
    if (!(rest > 0))
        return;
    claim = fminf(claim, rest);
    for (int i = 0; i < q->n; i++)
        if (q->areas[i] > q->areas[claimant])
            claimed[i * n_cells + p] *= (rest - claim) / rest;
    claimed[claimant * n_cells + p] += claim;
}

int amm_claims(float *claimed, const Comparison *c, const Placement *places, Error *err)
{
    const ptrdiff_t n_cells = grid_cells(&c->query), n = c->query.n;
    float *expected = aligned_array(n * n_cells, sizeof *expected);
    if (!expected)
        return fail_memory(err, "the structural map", n * n_cells * sizeof *expected);
    for (ptrdiff_t i = 0; i < n; i++)
        expect_mask(expected + i * n_cells, c, i, places);
    for (ptrdiff_t p = 0; p < n_cells; p++)
        settle_cell(claimed, expected, &c->query, p);
    free(expected);
    return 0;
}

/* ================================================================================================
 * Mahalanobis distance
 * ============================================================================================== */

/* Solve A·x = b for symmetric positive definite A [m][m] by Cholesky (A = Uᵀ·U). Only A's upper triangle is
 * given; U replaces it. Centred samples are linearly dependent; only ε makes A regular. If float32's rounding
 * leaves nothing of a pivot, the pivot counts as 0, and so does its unknown. least [m] is scratch. A finished
 * row is subtracted from all rows below it, so that the compiler vectorises whole rows. */
static void solve_spd(double *x, double *a, const double *b, double *least, int m)
{
    for (int j = 0; j < m; j++) {
        least[j] = 1e-7 * a[j * m + j];
        x[j] = b[j];
    }
    for (int j = 0; j < m; j++) { /* Uᵀ·y = b; y is in x */
        double *pivot = a + j * m;
        pivot[j] = pivot[j] > least[j] ? sqrt(pivot[j]) : 0;
        const double by = pivot[j] > 0 ? pivot[j] : INFINITY; /* a pivot of 0: dividing by infinity gives 0 */
        x[j] /= by;
        for (int i = j + 1; i < m; i++)
            pivot[i] /= by;
        for (int i = j + 1; i < m; i++)
            x[i] -= pivot[i] * x[j];
        for (int i = j + 1; i < m; i++) {
            double *row = a + i * m, factor = pivot[i];
            for (int k = i; k < m; k++)
                row[k] -= factor * pivot[k];
        }
    }
    for (int i = m - 1; i >= 0; i--) { /* U·x = y */
        for (int k = i + 1; k < m; k++)
            x[i] -= a[i * m + k] * x[k];
        x[i] = a[i * m + i] > 0 ? x[i] / a[i * m + i] : 0;
    }
}

void layout_amm(AmmWork *work, Arena *arena, int k, int channels)
{
    const size_t n_rows = (size_t)k + 1, n = k;
    work->stride = round_up(channels, ROW_STEP);
    work->ld = k + 1;
    work->rows = arena_floats(arena, n_rows * work->stride);
    work->gram = arena_floats(arena, n_rows * n_rows);
    work->y = arena_floats(arena, n);
    work->system = arena_take(arena, n * n * sizeof *work->system);
    work->right_side = arena_take(arena, n * sizeof *work->right_side);
    work->solution = arena_take(arena, n * sizeof *work->solution);
    work->least = arena_take(arena, n * sizeof *work->least);
}

/* Σ = XᵀX/(m-1) + εI [block: PaDiM], so Σ⁻¹ = (1/ε)·[I - Xᵀ(ε(m-1)I_m + XXᵀ)⁻¹X] (Woodbury). This is an m×m
 * system in place of C×C. With y = (ε(m-1)I_m + XXᵀ)⁻¹Xd, ‖d‖² - (Xd)ᵀy is the least value of ‖d - Xᵀy‖² +
 * ε(m-1)‖y‖². It is computed as this sum. The difference of two large numbers would cancel if d lies among
 * the samples. */
float amm_mahalanobis(const AmmWork *work, int m, float epsilon)
{
    const ptrdiff_t stride = work->stride, ld = work->ld;
    centre_rows(work->rows, stride, m);                   /* x_r -= μ for r < m; row m: d = f - μ */
    gram_rows(work->gram, ld, work->rows, stride, m + 1); /* XXᵀ; row m: (Xd)ᵀ, then ‖d‖² */
    const float *Xd = work->gram + m * ld;
    if (m == 1)
        return sqrtf(Xd[m] / epsilon); /* X = 0: M² = ‖d‖²/ε */
    const double ridge = (double)epsilon * (m - 1);
    for (int r = 0; r < m; r++) {
        work->right_side[r] = Xd[r];
        for (int s = 0; s <= r; s++) /* ε(m-1)I + XXᵀ */
            work->system[s * m + r] = work->gram[r * ld + s] + (r == s ? ridge : 0);
    }
    solve_spd(work->solution, work->system, work->right_side, work->least, m);
    double penalty = 0; /* ‖y‖² */
    for (int r = 0; r < m; r++) {
        work->y[r] = (float)work->solution[r];
        penalty += (double)work->y[r] * work->y[r];
    }
    const double residual = residual_rows(work->rows, stride, m, work->y); /* ‖d - Xᵀy‖² */
    return (float)sqrt((residual + ridge * penalty) / epsilon);
}

/* ================================================================================================
 * The structural map
 * ============================================================================================== */

float amm_distance_at(const AmmInput *input, const AmmWork *work, ptrdiff_t i, ptrdiff_t x, ptrdiff_t y)
{
    const Comparison *c = input->comparison;
    const Objects *q = &c->query;
    const ptrdiff_t C = q->channels, stride = work->stride;
    const float centre_x = x + 0.5f, centre_y = y + 0.5f;
    int m = 0;
    for (int r = 0; r < c->k; r++) {
        const Placement *at = &input->places[i * c->k + r];
        if (at->known) /* a sample: the reference's features at the counterpart of p, in deviations */
            sample_half(work->rows + m++ * stride, c->references[r].features16, q->grid_h, q->grid_w, C,
                        at->x + at->zoom * centre_x, at->y + at->zoom * centre_y, input->inverse_std);
    }
    if (m == 0)
        return 0;
    const float *f = q->features + (y * q->grid_w + x) * C;
    float *row = work->rows + m * stride;
    for (ptrdiff_t channel = 0; channel < C; channel++)
        row[channel] = f[channel] * input->inverse_std[channel];
    for (ptrdiff_t channel = C; channel < stride; channel++)
        row[channel] = 0;
    return amm_mahalanobis(work, m, input->epsilon);
}

int amm_structural(float *map, const AmmInput *input, Error *err)
{
    const Objects *q = &input->comparison->query;
    const ptrdiff_t n_cells = grid_cells(q);
    Arena arena = {0};
    AmmWork work;
    layout_amm(&work, &arena, input->comparison->k, q->channels);
    if (arena_allocate(&arena))
        return fail_memory(err, "the structural map", arena.size);
    layout_amm(&work, &arena, input->comparison->k, q->channels);
    memset(map, 0, n_cells * sizeof *map);
    for (int i = 0; i < q->n; i++)
        for (ptrdiff_t p = 0; p < n_cells; p++) {
            const float w = input->claimed[i * n_cells + p];
            if (w > 0)
                map[p] += w * amm_distance_at(input, &work, i, p % q->grid_w, p / q->grid_w);
        }
    free(arena.base);
    return 0;
}

/* Mean unit of the reference's objects at the place of query object i, weighted by their overlap with it. 0
 * without overlap. */
static double unit_of_place(const Objects *q, ptrdiff_t i, const Objects *r)
{
    const ptrdiff_t n_cells = grid_cells(q);
    const float *mine = q->coverage + i * n_cells;
    double sum = 0, covered = 0;
    for (ptrdiff_t j = 0; j < r->n; j++) {
        const float *other = r->coverage + j * n_cells;
        double both = 0;
        for (ptrdiff_t p = 0; p < n_cells; p++)
            both += (double)mine[p] * other[p];
        sum += both * r->units[j], covered += both;
    }
    return covered > 0 ? sum / covered : 0;
}

/* 1 / the mean unit of the objects that object i is compared with, or 0 if there are none. Without a match
 * these are the objects at its place. */
static float object_factor(const Comparison *c, int i)
{
    double sum = 0;
    int m = 0;
    for (int r = 0; r < c->k; r++)
        if (c->matchings[r].match_q[i] >= 0)
            sum += c->references[r].units[c->matchings[r].match_q[i]], m++;
    if (m == 0)
        for (int r = 0; r < c->k; r++) {
            const double unit = unit_of_place(&c->query, i, &c->references[r]);
            sum += unit, m += unit > 0;
        }
    return m && sum > 0 ? (float)(m / sum) : 0;
}

int amm_in_units(float *map, const Comparison *c, const float *claimed, Error *err)
{
    const ptrdiff_t n = c->query.n, n_cells = grid_cells(&c->query);
    float *factors = aligned_array(n, sizeof *factors);
    if (!factors)
        return fail_memory(err, "the structural map", n * sizeof *factors);
    for (ptrdiff_t i = 0; i < n; i++)
        factors[i] = object_factor(c, i);
    for (ptrdiff_t p = 0; p < n_cells; p++) {
        double factor = 0, covered = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            const double w = claimed[i * n_cells + p];
            covered += w, factor += w * factors[i];
        }
        map[p] = covered > 0 ? (float)(map[p] * factor / covered) : 0;
    }
    free(factors);
    return 0;
}

float amm_object_quantile(const float *map, const float *coverage, int n_cells, float quantile,
                          float *scratch)
{
    int n = 0;
    float largest = 0;
    for (int p = 0; p < n_cells; p++) {
        if (coverage[p] >= 0.5f)
            scratch[n++] = map[p];
        if (coverage[p] > 0 && map[p] > largest)
            largest = map[p];
    }
    if (n == 0)
        return largest;
    qsort(scratch, n, sizeof *scratch, compare_floats);
    return quantile_sorted(scratch, n, quantile);
}

/* ================================================================================================
 * The nearest feature at the same place [ours]
 * ============================================================================================== */

static int n_blocks(int n_cells)
{
    return (n_cells + 1) / 2;
}

/* Means of 2x2 cells of x [h][w][C] -> y [n_blocks(h)][n_blocks(w)][C]. */
static void block_means(float *y, const float *x, int h, int w, ptrdiff_t C)
{
    for (int top = 0; top < h; top += 2)
        for (int left = 0; left < w; left += 2, y += C) {
            const int bottom = top + 1 < h ? top + 1 : top, right = left + 1 < w ? left + 1 : left;
            const float *a = x + (top * (ptrdiff_t)w + left) * C, *b = x + (top * (ptrdiff_t)w + right) * C,
                        *c = x + (bottom * (ptrdiff_t)w + left) * C,
                        *d = x + (bottom * (ptrdiff_t)w + right) * C;
            for (ptrdiff_t i = 0; i < C; i++)
                y[i] = 0.25f * ((a[i] + b[i]) + (c[i] + d[i]));
        }
}

float squared_distance(const float *a, const float *b, ptrdiff_t n)
{
    enum { PART = 512 };
    float difference[PART], sum = 0;
    for (ptrdiff_t at = 0; at < n; at += PART) {
        const int count = (int)(n - at < PART ? n - at : PART);
        for (int i = 0; i < count; i++)
            difference[i] = a[at + i] - b[at + i];
        sum += dot(difference, difference, count);
    }
    return sum;
}

/* The least squared distance of f [C] to the blocks of reference [h][w][C] at most one block from (y, x). */
static float nearest_block(const float *f, const float *reference, int y, int x, int h, int w, ptrdiff_t C)
{
    float least = INFINITY;
    for (int v = y > 0 ? y - 1 : 0; v <= y + 1 && v < h; v++)
        for (int u = x > 0 ? x - 1 : 0; u <= x + 1 && u < w; u++)
            least = fminf(least, squared_distance(f, reference + (v * (ptrdiff_t)w + u) * C, C));
    return least;
}

typedef struct NearestWork {
    float *cells;             /* [h*w][C] features of a reference */
    float *query, *reference; /* [blocks][C] */
    float *least;             /* [blocks] squared distances */
} NearestWork;

static void layout_nearest(NearestWork *work, Arena *arena, const Objects *q)
{
    const size_t blocks = (size_t)n_blocks(q->grid_h) * n_blocks(q->grid_w), C = q->channels;
    work->cells = arena_floats(arena, grid_cells(q) * C);
    work->query = arena_floats(arena, blocks * C);
    work->reference = arena_floats(arena, blocks * C);
    work->least = arena_floats(arena, blocks);
}

int amm_nearest(float *nearest, const Comparison *c, Error *err)
{
    const Objects *q = &c->query;
    const int h = n_blocks(q->grid_h), w = n_blocks(q->grid_w);
    const ptrdiff_t C = q->channels;
    Arena arena = {0};
    NearestWork work;
    layout_nearest(&work, &arena, q);
    if (arena_allocate(&arena))
        return fail_memory(err, "the nearest features", arena.size);
    layout_nearest(&work, &arena, q);
    block_means(work.query, q->features, q->grid_h, q->grid_w, C);
    for (int b = 0; b < h * w; b++)
        work.least[b] = c->k ? INFINITY : 0;
    for (int r = 0; r < c->k; r++) {
        f16_to_f32_row(work.cells, c->references[r].features16, grid_cells(q) * C);
        block_means(work.reference, work.cells, q->grid_h, q->grid_w, C);
#pragma omp parallel for
        for (int b = 0; b < h * w; b++)
            work.least[b] = fminf(work.least[b],
                                  nearest_block(work.query + b * C, work.reference, b / w, b % w, h, w, C));
    }
    for (ptrdiff_t p = 0; p < grid_cells(q); p++)
        nearest[p] = sqrtf(work.least[p / q->grid_w / 2 * w + p % q->grid_w / 2]);
    free(arena.base);
    return 0;
}

/* ================================================================================================
 * The logical map
 * ============================================================================================== */

float amm_logical(float *map, float *unmatched, float *counted, const Comparison *c)
{
    const ptrdiff_t n = c->query.n, n_cells = grid_cells(&c->query);
    float worst_extra = 0, worst_missing = 0;
    memset(counted, 0, n * sizeof *counted);
    memset(unmatched, 0, n * sizeof *unmatched);
    memset(map, 0, n_cells * sizeof *map);
    for (int r = 0; r < c->k; r++) {
        const Matching *m = &c->matchings[r];
        float worst = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            counted[i] += m->counted_q[i] / c->k;
            unmatched[i] += m->unmatched_q[i] / c->k;
        }
        for (ptrdiff_t j = 0; j < m->n_r; j++) {
            const float *w = c->references[r].coverage + j * n_cells;
            worst = fmaxf(worst, m->counted_r[j]);
            for (ptrdiff_t p = 0; p < n_cells; p++)
                map[p] += w[p] * m->counted_r[j] / c->k;
        }
        worst_missing += worst / c->k;
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *w = c->query.coverage + i * n_cells;
        worst_extra = fmaxf(worst_extra, counted[i]);
        for (ptrdiff_t p = 0; p < n_cells; p++)
            map[p] = fmaxf(map[p], w[p] * counted[i]);
    }
    return fmaxf(worst_extra, worst_missing);
}

/* ================================================================================================
 * Scores
 * ============================================================================================== */

/* Sort the values. Returns how many are the largest 1 %, one at least. */
static int sort_for_percent(float *values, int n)
{
    qsort(values, n, sizeof *values, compare_floats);
    return (n + 99) / 100;
}

float amm_largest_percent(float *values, int n)
{
    const int top = sort_for_percent(values, n);
    double sum = 0;
    for (int i = n - top; i < n; i++)
        sum += values[i];
    return (float)(sum / top);
}

/* A mean loses a scratch of a few cells, and the maximum is one noisy cell: this lies between them. The
 * largest value is taken out, so no power overflows. */
float amm_power_mean(float *values, int n)
{
    const int top = sort_for_percent(values, n);
    const double largest = values[n - 1];
    double sum = 0;
    if (largest <= 0)
        return 0;
    for (int i = n - top; i < n; i++)
        sum += pow(fmax(0, values[i] / largest), 7);
    return (float)(largest * pow(sum / top, 1.0 / 7));
}

float amm_score(const float *map, int h, int w, AmmScore score, float *scratch)
{
    if (score == SCORE_MAX) {
        float largest = map[0];
        for (ptrdiff_t p = 1; p < (ptrdiff_t)h * w; p++)
            largest = fmaxf(largest, map[p]);
        return largest;
    }
    block_means(scratch, map, h, w, 1);
    return amm_power_mean(scratch, n_blocks(h) * n_blocks(w));
}

float amm_block_mean(const float *map, int h, int w, int p)
{
    const int top = p / w / 2 * 2, left = p % w / 2 * 2, bottom = top + 1 < h ? top + 1 : top,
              right = left + 1 < w ? left + 1 : left;
    return 0.25f * ((map[top * w + left] + map[top * w + right]) +
                    (map[bottom * w + left] + map[bottom * w + right]));
}

float amm_z(const Spread *spread, float v)
{
    float width = spread->q95 - spread->median + spread->delta;
    return (v - spread->median) / (width > 1e-12f ? width : 1e-12f);
}

Spread amm_spread(float *scores, int n, float delta)
{
    qsort(scores, n, sizeof *scores, compare_floats);
    return (Spread){quantile_sorted(scores, n, 0.5), quantile_sorted(scores, n, 0.95), delta};
}

/* The rank never claims more than n images can show: p is at least 1/(n + 2). The width keeps the order of
 * scores between those of the normal images, and a little beyond them. */
float amm_rank_z(const float *normal, int n, float width, float score)
{
    const double scale = sqrt(0.5) / fmax(width, 1e-6);
    double as_large = 1;
    if (n == 0)
        return score;
    for (int i = 0; i < n; i++)
        as_large += 0.5 * erfc((score - normal[i]) * scale);
    return (float)-log10(2 * as_large / (n + 2));
}

/* Where masks come and go in normal images, the largest normal L is about 1, and one object too many says
 * little. Where masks are quiet, it lies far beyond all of them. */
float amm_logical_z(const float *normal, int n, float width, float score)
{
    float largest = n ? normal[0] : INFINITY;
    for (int i = 1; i < n; i++)
        largest = fmaxf(largest, normal[i]);
    return amm_rank_z(normal, n, width, score) + fmaxf(0, score - largest);
}

/* If the two differ much, it is nearly the larger one, so the smaller one's noise does not blur it. */
float amm_fuse(float a, float l, Only only)
{
    if (only != ONLY_BOTH)
        return only == ONLY_STRUCTURAL ? a : l;
    return fmaxf(a, l) + 2 * (log1pf(expf(-0.5f * fabsf(a - l))) - log1pf(1));
}

/* One of n + 1 normal images is expected above the largest score of the other n. So few scores are extended:
 * half of the normal images exceed the median. If their excess is exponential with mean m, the part of all
 * that exceeds median + t is (1/2)·exp(-t/m). It is one in 20 at t = m·log(20/2). */
static float extended_threshold(const float *sorted, int n)
{
    const float median = quantile_sorted(sorted, n, 0.5);
    float excess = 0;
    int above = 0;
    for (int i = 0; i < n; i++)
        if (sorted[i] > median)
            excess += sorted[i] - median, above++;
    return above ? median + excess / above * logf(0.5f * AMM_FEW_SCORES) : median;
}

float amm_threshold(const float *sorted, int n, double quantile)
{
    const float threshold = quantile_sorted(sorted, n, quantile);
    return n < AMM_FEW_SCORES ? fmaxf(threshold, extended_threshold(sorted, n)) : threshold;
}
