/* align.c - an object's place in a reference image. See align.h; METHOD.md section 7, all of it [ours].
 *
 *   match        centroids and areas of the two masks give a first place: shift and zoom
 *   registration masks are noisy: one that lost a rim has another centroid and another area, and every edge
 *                inside the object would then be compared with what lies beside it. So the first place is
 *                only a candidate, beside "same centroid, no zoom" and "same position"; the best of them, and
 *                its neighbours within `reach` cells, are tried, and the one at which the features differ
 *                least wins. The mean of distances (not of their squares) judges: a scratch is a few cells of
 *                large distance and must not move the object that carries it
 *   no match     the object is compared with what lies at its place, so that a poor segmentation, in which
 *                nothing matched, does not hide a damage there */
#include "align.h"

#include <math.h>

#include "kernels/simd.h"

/* Distance of two cells' features in units of the channels' spread. */
static float distance(const float *a, const float *b, const float *scale, int channels)
{
    Vec sum = {0};
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec d = (load(a + c) - load(b + c)) * load(scale + c);
        sum = fmadd(d, d, sum);
    }
    if (c < channels) {
        size_t n = (size_t)(channels - c);
        Vec d = (load_part(a + c, n) - load_part(b + c, n)) * load_part(scale + c, n);
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
