/* result.c - see result.h and samlad.h. */
#include "library/result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Boxes
 * ============================================================================================== */

/* Columns x0 .. x1-1 of rows y0 .. y1-1; empty if x1 <= x0. */
typedef struct Extent {
    int x0, y0, x1, y1;
} Extent;

static const Extent NOTHING = {INT32_MAX, INT32_MAX, 0, 0};

static void extend(Extent *e, int x, int y)
{
    e->x0 = x < e->x0 ? x : e->x0, e->x1 = x >= e->x1 ? x + 1 : e->x1;
    e->y0 = y < e->y0 ? y : e->y0, e->y1 = y >= e->y1 ? y + 1 : e->y1;
}

/* box: x, y, width, height in pixels; all 0 if empty. A unit of the extent is sx × sy pixels. */
static void set_box(float box[4], const Extent *e, float sx, float sy)
{
    const int some = e->x1 > e->x0;
    box[0] = some ? (float)e->x0 * sx : 0;
    box[1] = some ? (float)e->y0 * sy : 0;
    box[2] = some ? (float)(e->x1 - e->x0) * sx : 0;
    box[3] = some ? (float)(e->y1 - e->y0) * sy : 0;
}

/* The box of the cells with at least half of the largest coverage. coverage [h*w] is of the objects' grid. */
static void cells_box(float box[4], const float *coverage, const Objects *grid, const SamladResult *r)
{
    const int w = grid->grid_w, n_cells = grid->grid_h * w;
    Extent extent = NOTHING;
    float most = 0;
    for (int p = 0; p < n_cells; p++)
        most = fmaxf(most, coverage[p]);
    for (int p = 0; p < n_cells && most > 0; p++)
        if (coverage[p] >= most / 2)
            extend(&extent, p % w, p / w);
    set_box(box, &extent, (float)r->width / w, (float)r->height / grid->grid_h);
}

/* In a picture of a few pixels cells are smaller than pixels: then the box is the pixel at its middle. An object
 * too small for a bank's coverage has an empty box; its middle is the centroid (x, y in 0..1). */
static void box_of_pixels(float box[4], const float centroid[2], const SamladResult *r)
{
    const float size[2] = {(float)r->width, (float)r->height};
    const int is_empty = !(box[2] > 0);
    for (int i = 0; i < 2; i++) {
        const float middle = is_empty ? centroid[i] * size[i] : box[i] + box[2 + i] / 2;
        if (box[2 + i] >= 1)
            continue;
        box[i] = fminf(floorf(middle), size[i] - 1);
        box[2 + i] = 1;
    }
}

/* Boxes of all objects from the labels; the background has label -1. */
static int pixel_boxes(SamladResult *r, const Objects *o, Error *err)
{
    Extent *extents = aligned_array(o->n, sizeof *extents);
    if (!extents)
        return fail_memory(err, "the objects' boxes", o->n * sizeof *extents);
    for (int i = 0; i < o->n; i++)
        extents[i] = NOTHING;
    const int32_t *label = r->labels;
    for (int y = 0; y < r->height; y++)
        for (int x = 0; x < r->width; x++, label++) {
            const int i = *label < 0 && o->has_background ? o->n - 1 : *label;
            if (i >= 0)
                extend(&extents[i], x, y);
        }
    for (int i = 0; i < o->n; i++)
        set_box(r->objects[i].box, &extents[i], 1, 1);
    free(extents);
    return 0;
}

/* ================================================================================================
 * Objects
 * ============================================================================================== */

/* List the matches of object i. Returns their number. */
static int list_matches(SamladMatch *matches, const Comparison *c, int i)
{
    int n = 0;
    for (int r = 0; r < c->k; r++) {
        const Matching *m = &c->matchings[r];
        const ptrdiff_t n_r = m->n_r, j = m->match_q[i];
        if (j >= 0)
            matches[n++] = (SamladMatch){r, (int)j, m->assignment[i * (n_r + 1) + j], m->scores[i * n_r + j]};
    }
    return n;
}

static SamladObject object_of(const Detection *d, int i)
{
    const Objects *o = &d->comparison.query;
    return (SamladObject){.background = o->has_background && i == o->n - 1,
                          .area = o->areas[i],
                          .centroid = {o->centroids[2 * i], o->centroids[2 * i + 1]},
                          /* Sinkhorn does not normalise the rows last, so U may slightly exceed 1. */
                          .unmatched = fminf(1, d->unmatched[i]),
                          .counted = d->counted[i],
                          .unusual = d->unusual[i]};
}

/* The verdicts of the chapter, in the words of samlad.h. */
static SamladVerdict verdict_of(ObjectVerdict verdict)
{
    switch (verdict) {
    case OBJECT_EXTRA:
        return VERDICT_EXTRA;
    case OBJECT_DAMAGED:
        return VERDICT_DAMAGED;
    default:
        return VERDICT_NORMAL;
    }
}

static void set_verdict(SamladObject *object, const Verdict *v, const Spread *spread, const Detection *d,
                        const SamladResult *r)
{
    const int at = v->damage_cell, h = d->comparison.query.grid_h, w = d->comparison.query.grid_w;
    object->alike = v->alike;
    object->verdict = verdict_of(v->verdict);
    if (at < 0)
        return;
    object->damage = amm_z(spread, v->damage);
    object->damage_at[0] = (at % w + 0.5f) * r->width / w;
    object->damage_at[1] = (at / w + 0.5f) * r->height / h;
}

/* Allocate n objects and their matches with k references. */
static int new_objects(SamladResult *r, int n, int k, Error *err)
{
    const size_t n_objects = n, n_matches = n_objects * k;
    r->n_objects = n;
    r->objects = calloc(n_objects + 1, sizeof *r->objects);
    r->matches = aligned_array(n_matches, sizeof *r->matches);
    return r->objects && r->matches
               ? 0
               : fail_memory(err, "the result",
                             n_objects * sizeof *r->objects + n_matches * sizeof *r->matches);
}

/* verdicts [n]; free() frees them. NULL: no memory. */
static Verdict *new_verdicts(const Bank *bank, const Detection *d, Error *err)
{
    const int n = d->comparison.query.n;
    const VerdictOptions options = bank_verdicts(bank);
    const VerdictInput input = {&d->comparison, d->unmatched, d->counted, d->structural, d->claimed};
    Verdict *verdicts = aligned_array(n, sizeof *verdicts);
    if (!verdicts)
        fail_memory(err, "the verdicts", n * sizeof *verdicts);
    if (verdicts && !verdict_objects(verdicts, &input, &options, err))
        return verdicts;
    free(verdicts);
    return NULL;
}

int result_objects(SamladResult *r, const Bank *bank, const Detection *d, Error *err)
{
    const Objects *o = &d->comparison.query;
    if (new_objects(r, o->n, d->k, err))
        return -1;
    Verdict *verdicts = new_verdicts(bank, d, err);
    if (!verdicts)
        return -1;
    SamladMatch *matches = r->matches;
    for (int i = 0; i < o->n; i++) {
        SamladObject *object = &r->objects[i];
        *object = object_of(d, i);
        object->matches = matches;
        object->n_matches = list_matches(matches, &d->comparison, i);
        matches += object->n_matches;
        set_verdict(object, &verdicts[i], &bank->structural, d, r);
    }
    free(verdicts);
    return pixel_boxes(r, o, err);
}

/* ================================================================================================
 * Missing objects
 * ============================================================================================== */

static SamladMissing missing_of(const Missing *m, const Detection *d, const SamladResult *r)
{
    const Objects *reference = &d->comparison.references[m->reference];
    SamladMissing missing = {.reference = m->reference,
                             .object = m->object,
                             .unmatched = m->unmatched,
                             .alike = m->alike,
                             .evidence = m->evidence,
                             .support = m->support};
    cells_box(missing.box, reference->coverage + m->object * grid_cells(reference), reference, r);
    box_of_pixels(missing.box, reference->centroids + 2 * m->object, r);
    return missing;
}

int result_missing(SamladResult *r, const Bank *bank, const Detection *d, Error *err)
{
    const VerdictOptions options = bank_verdicts(bank);
    MissingList list;
    if (verdict_missing(&list, &d->comparison, &options, err)) {
        free(list.items);
        return -1;
    }
    r->missing = calloc((size_t)list.n + 1, sizeof *r->missing);
    for (int i = 0; r->missing && i < list.n; i++)
        r->missing[r->n_missing++] = missing_of(&list.items[i], d, r);
    free(list.items);
    return r->missing ? 0 : fail_memory(err, "the result", list.n * sizeof *r->missing);
}

/* ================================================================================================
 * Scores and maps
 * ============================================================================================== */

/* The part of the leave-one-out scores that are at least as high; this score counts as one of them. */
static float rank_of(const Bank *bank, float score)
{
    int higher = 0;
    for (int i = 0; i < bank->n_loo; i++)
        higher += bank->loo_sorted[i] >= score;
    return (float)(1 + higher) / (float)(1 + bank->n_loo);
}

/* The value of the map that pictures show brightest. Six spreads are clearly anomalous [ours]. A bank of one
 * image has no spread; then it is the largest value. */
static float map_high(const Bank *bank, const float *map)
{
    if (bank->n_loo > 0)
        return 6;
    float largest = 0;
    for (size_t p = 0; p < bank_cells(bank); p++)
        largest = map[p] > largest ? map[p] : largest;
    return largest > 0 ? largest : 1;
}

static void set_scores(SamladResult *r, const Bank *bank, const Detection *d)
{
    r->score = d->score;
    r->structural = d->structural_score, r->structural_z = d->structural_z;
    r->logical = d->logical_score, r->logical_z = d->logical_z;
    r->layout = d->layout_score, r->layout_z = d->layout_z;
    r->rank = rank_of(bank, d->score);
    r->threshold = bank->threshold;
    r->anomalous = isnan(bank->threshold) ? -1 : d->score > bank->threshold;
}

static float *copy_map(const Bank *bank, const float *map)
{
    const size_t n_cells = bank_cells(bank);
    float *copy = aligned_array(n_cells, sizeof *copy);
    return copy ? memcpy(copy, map, n_cells * sizeof *copy) : NULL;
}

static int set_maps(SamladResult *r, const Bank *bank, const Detection *d, Error *err)
{
    r->map_low = 0, r->map_high = map_high(bank, d->map);
    r->map = copy_map(bank, d->map);
    r->structural_map = copy_map(bank, d->structural);
    r->logical_map = copy_map(bank, d->logical);
    return r->map && r->structural_map && r->logical_map
               ? 0
               : fail_memory(err, "the result", 3 * bank_cells(bank) * sizeof(float));
}

int result_make(SamladResult *r, const Bank *bank, Detection *d, Scene *scene, Error *err)
{
    *r = (SamladResult){.width = scene->width,
                        .height = scene->height,
                        .grid_w = bank->grid_w,
                        .grid_h = bank->grid_h,
                        .labels = scene->labels,
                        .n_references = d->k,
                        .references = d->references};
    scene->labels = NULL, d->references = NULL; /* they are the result's now. */
    set_scores(r, bank, d);
    if (set_maps(r, bank, d, err) || result_objects(r, bank, d, err) || result_missing(r, bank, d, err)) {
        samlad_result_free(r);
        return -1;
    }
    return 0;
}

void samlad_result_free(SamladResult *r)
{
    free(r->map), free(r->structural_map), free(r->logical_map), free(r->references), free(r->objects),
        free(r->missing), free(r->labels), free(r->matches);
    *r = (SamladResult){0};
}

void samlad_full_map(const SamladResult *r, float *map)
{
    interpolate_bilinear(map, r->height, r->width, r->map, r->grid_h, r->grid_w, 1, 0, 0);
}
