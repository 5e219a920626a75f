/* align.c - an object's place in a reference image. See align.h; METHOD.md section 7, all of it [ours].
 *
 *   match        centroids and areas of the two masks give a first place: shift and zoom
 *   registration masks are noisy: one that lost a rim has another centroid and another area, and every edge
 *                inside the object would then be compared with what lies beside it. So the first place is
 *                only a candidate, beside "same centroid, no zoom" and "same position"; the best of them, and
 *                its neighbours within `reach` cells, are tried, and the one at which the features differ
 *                least wins. The mean of distances (not of their squares) judges: a scratch is a few cells of
 *                large distance and must not move the object that carries it
 *   claims       a mask ends where a piece broke off, and what lies there is compared with the ground that
 *                the references show beside their parts, or under them, for parts never lie exactly alike:
 *                nearly anything is normal there. Their masks say that the part should go on
 *   no match     the object is compared with what lies at its place, so that a poor segmentation, in which
 *                nothing matched, does not hide a damage there */
#include "align.h"

#include <math.h>
#include <string.h>

#include "fast/simd.h"

/* Distance of two cells' features, b's in float16, in units of the channels' spread. */
static float distance(const float *a, const uint16_t *b, const float *scale, int channels)
{
    Vec sum = {0};
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec d = (load(a + c) - load_half(b + c)) * load(scale + c);
        sum = fmadd(d, d, sum);
    }
    if (c < channels) {
        size_t n = (size_t)(channels - c);
        Vec d = (load_part(a + c, n) - load_half_part(b + c, n)) * load_part(scale + c, n);
        sum = fmadd(d, d, sum);
    }
    return sqrtf(sum_lanes(sum));
}

/* Up to ALIGN_CELLS cells that are mostly object i, evenly spread over them. */
static int pick_cells(int *cells, const AmmQuery *q, int i)
{
    const int n_cells = q->grid_h * q->grid_w;
    const float *w = q->weights + (size_t)i * (size_t)n_cells;
    int total = 0, n, seen = 0, taken = 0;
    for (int p = 0; p < n_cells; p++)
        total += w[p] >= 0.5f;
    n = total < ALIGN_CELLS ? total : ALIGN_CELLS;
    for (int p = 0; p < n_cells && taken < n; p++)
        if (w[p] >= 0.5f && seen++ == (int)((int64_t)taken * total / n))
            cells[taken++] = p;
    return n;
}

/* The cell of n in which x lies. Shifts are often whole fractions of a cell; the 1/512 decides a border
 * between two cells the same way whatever the last bit of x is. */
static int cell_of(float x, int n)
{
    return (int)fminf(fmaxf(floorf(x + 1.0f / 512), 0), (float)(n - 1));
}

/* Mean distance between the cells and their counterparts (nearest cells); given up, as INFINITY, once it must
 * exceed `best`. */
static float misfit(const AmmQuery *q, const int *cells, int n, const AmmReference *r, const Placement *at,
                    float best)
{
    const size_t C = (size_t)q->channels;
    float sum = 0;
    for (int i = 0; i < n; i++) {
        int p = cells[i], x = cell_of(at->x + at->zoom * ((float)(p % q->grid_w) + 0.5f), q->grid_w),
            y = cell_of(at->y + at->zoom * ((float)(p / q->grid_w) + 0.5f), q->grid_h);
        sum += distance(q->features + (size_t)p * C,
                        r->features + ((size_t)y * (size_t)q->grid_w + (size_t)x) * C, q->scale, q->channels);
        if (sum >= best * (float)n)
            return INFINITY;
    }
    return sum / (float)n;
}

/* The best of the candidates, then the best shift of it. */
static Placement register_object(const AmmQuery *q, const int *cells, int n, const AmmReference *r,
                                 const Placement *candidates, int n_candidates, int reach)
{
    Placement found = candidates[0];
    float best = INFINITY;
    for (int c = 0; c < n_candidates; c++) {
        float fit = misfit(q, cells, n, r, &candidates[c], best);
        if (fit < best)
            best = fit, found = candidates[c];
    }
    const Placement centre = found;
    for (int dy = -reach; dy <= reach; dy++)
        for (int dx = -reach; dx <= reach; dx++) {
            Placement at = centre;
            at.x += (float)dx, at.y += (float)dy;
            float fit = dx || dy ? misfit(q, cells, n, r, &at, best) : INFINITY;
            if (fit < best)
                best = fit, found = at;
        }
    return found;
}

/* The match's centroid, and its size relative to the object's. */
static Placement by_match(const AmmQuery *q, int i, const AmmReference *r, int j, float zoom)
{
    float width = (float)q->grid_w, height = (float)q->grid_h;
    return (Placement){1, width * (r->centroids[2 * j] - q->centroids[2 * i] * zoom),
                       height * (r->centroids[2 * j + 1] - q->centroids[2 * i + 1] * zoom), zoom};
}

Placement align_object(const AmmQuery *q, int i, const AmmReference *r, const AmmOptions *options, int *cells)
{
    const Placement same = {1, 0, 0, 1};
    const int j = r->match_q[i], reach = options->align_pixel ? 0 : options->register_reach;
    Placement candidates[3];
    int n_candidates = 0;
    if (j < 0 && !options->register_unmatched)
        return (Placement){0};
    if (j >= 0 && !options->align_pixel && q->areas[i] <= options->large_object) {
        float zoom = r->areas[j] > 0 && q->areas[i] > 0 ? sqrtf(r->areas[j] / q->areas[i]) : 1;
        candidates[n_candidates++] = by_match(q, i, r, j, zoom);
        candidates[n_candidates++] = by_match(q, i, r, j, 1);
    }
    candidates[n_candidates++] = same;
    int n = reach > 0 ? pick_cells(cells, q, i) : 0;
    return n > 0 ? register_object(q, cells, n, r, candidates, n_candidates, reach) : candidates[0];
}

/* w [h·w] at (x, y) in cells (centres at .5), bilinear, 0 beyond the borders. */
static float mask_at(const float *w, int grid_h, int grid_w, float x, float y)
{
    float left = floorf(x - 0.5f), top = floorf(y - 0.5f), fx = x - 0.5f - left, fy = y - 0.5f - top, sum = 0;
    if (!(left >= -1 && top >= -1 && left < (float)grid_w && top < (float)grid_h))
        return 0;
    for (int corner = 0; corner < 4; corner++) {
        int right = corner & 1, low = corner >> 1, at_x = (int)left + right, at_y = (int)top + low;
        if (at_x >= 0 && at_y >= 0 && at_x < grid_w && at_y < grid_h)
            sum += (right ? fx : 1 - fx) * (low ? fy : 1 - fy) * w[at_y * grid_w + at_x];
    }
    return sum;
}

/* From the first to the last of some rows or columns; last < first: none. */
typedef struct Extent {
    int first, last;
} Extent;

static Extent extended(Extent e, int at)
{
    return (Extent){at < e.first ? at : e.first, at > e.last ? at : e.last};
}

/* The rows and the columns of w [h·w] in which something lies. */
static void extents_of(Extent *rows, Extent *columns, const float *w, int grid_h, int grid_w)
{
    *rows = (Extent){grid_h, -1}, *columns = (Extent){grid_w, -1};
    for (int y = 0; y < grid_h; y++)
        for (int x = 0; x < grid_w; x++)
            if (w[y * grid_w + x] > 0)
                *rows = extended(*rows, y), *columns = extended(*columns, x);
}

/* The positions 0 .. n-1 of the query whose counterparts, shift + zoom·(position + 1/2), touch e; one more on
 * either side, for nothing is lost by asking there. */
static Extent counterparts(Extent e, float shift, float zoom, int n)
{
    float first = floorf(((float)e.first - 0.5f - shift) / zoom - 1.5f),
          last = ceilf(((float)e.last + 1.5f - shift) / zoom + 0.5f);
    return (Extent){(int)fminf(fmaxf(first, 0), (float)n), (int)fmaxf(fminf(last, (float)(n - 1)), -1)};
}

/* expected [h·w]: the mean mask of what object i matched, moved to where the object lies in the query; 0 when
 * fewer than half of the references match it. */
static void expected_mask(float *expected, const AmmQuery *q, int i, const Placement *places,
                          const AmmReference *references, int k)
{
    const int h = q->grid_h, w = q->grid_w;
    int matched = 0;
    for (int r = 0; r < k; r++)
        matched += references[r].match_q[i] >= 0;
    memset(expected, 0, (size_t)h * (size_t)w * sizeof *expected);
    if (2 * matched < k)
        return;
    for (int r = 0; r < k; r++) {
        const int j = references[r].match_q[i];
        const Placement *at = &places[(size_t)i * (size_t)k + (size_t)r];
        if (j < 0)
            continue;
        const float *mask = references[r].weights + (size_t)j * (size_t)(h * w);
        Extent rows, columns;
        extents_of(&rows, &columns, mask, h, w);
        if (rows.last < 0)
            continue;
        rows = counterparts(rows, at->y, at->zoom, h), columns = counterparts(columns, at->x, at->zoom, w);
        for (int y = rows.first; y <= rows.last; y++)
            for (int x = columns.first; x <= columns.last; x++)
                expected[y * w + x] += mask_at(mask, h, w, at->x + at->zoom * ((float)x + 0.5f),
                                               at->y + at->zoom * ((float)y + 0.5f)) /
                                       (float)matched;
    }
}

/* Of a cell, what objects no larger than i hold. */
static float held_by_smaller(const AmmQuery *q, int i, size_t p)
{
    const size_t n_cells = (size_t)q->grid_h * (size_t)q->grid_w;
    float held = 0;
    for (int j = 0; j < q->n; j++)
        if (q->areas[j] <= q->areas[i])
            held += q->weights[(size_t)j * n_cells + p];
    return held;
}

/* column: cell p's entries of `claimed`, n_cells apart; in: the expected masks, out: the weights. The largest
 * claim counts. */
static void settle_cell(float *column, const AmmQuery *q, size_t p)
{
    const size_t n_cells = (size_t)q->grid_h * (size_t)q->grid_w;
    int claimant = -1;
    float claim = 0, rest = 0;
    for (int i = 0; i < q->n; i++) {
        float expected = column[(size_t)i * n_cells];
        float missing = expected > claim ? expected - held_by_smaller(q, i, p) : 0;
        if (missing > claim)
            claim = missing, claimant = i;
    }
    for (int i = 0; i < q->n; i++) {
        column[(size_t)i * n_cells] = q->weights[(size_t)i * n_cells + p];
        if (claimant >= 0 && q->areas[i] > q->areas[claimant])
            rest += column[(size_t)i * n_cells];
    }
    if (!(rest > 0))
        return;
    claim = fminf(claim, rest);
    for (int i = 0; i < q->n; i++)
        if (q->areas[i] > q->areas[claimant])
            column[(size_t)i * n_cells] *= (rest - claim) / rest;
    column[(size_t)claimant * n_cells] += claim;
}

void align_claims(float *claimed, const AmmQuery *q, const Placement *places, const AmmReference *references,
                  int k)
{
    const int n_cells = q->grid_h * q->grid_w;
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < q->n; i++)
        expected_mask(claimed + (size_t)i * (size_t)n_cells, q, i, places, references, k);
#pragma omp parallel for schedule(static)
    for (int p = 0; p < n_cells; p++)
        settle_cell(claimed + p, q, (size_t)p);
}
