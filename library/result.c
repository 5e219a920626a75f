/* result.c - SamladResult from a detection. See result.h. */
#include "library/result.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* Box of the cells that weigh at least half of the heaviest, in pixels. */
static void cells_box(float box[4], const float *coverage, int grid_h, int grid_w, int height, int width)
{
    float most = 0;
    int x0 = grid_w, x1 = -1, y0 = grid_h, y1 = -1;
    for (int p = 0; p < grid_h * grid_w; p++)
        most = fmaxf(most, coverage[p]);
    for (int p = 0; p < grid_h * grid_w && most > 0; p++)
        if (coverage[p] >= most / 2) {
            int x = p % grid_w, y = p / grid_w;
            x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1, y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
        }
    float sx = (float)width / (float)grid_w, sy = (float)height / (float)grid_h;
    box[0] = x1 < 0 ? 0 : (float)x0 * sx;
    box[1] = x1 < 0 ? 0 : (float)y0 * sy;
    box[2] = (float)(x1 < 0 ? 0 : x1 - x0 + 1) * sx;
    box[3] = (float)(x1 < 0 ? 0 : y1 - y0 + 1) * sy;
}

/* Pixel boxes of all objects from the labels; the background is label -1. */
static void pixel_boxes(SamladResult *r, const Objects *o)
{
    for (int i = 0; i < r->n_objects; i++)
        r->objects[i].box[0] = r->objects[i].box[1] = INFINITY,
        r->objects[i].box[2] = r->objects[i].box[3] = -INFINITY;
    for (int y = 0; y < r->height; y++)
        for (int x = 0; x < r->width; x++) {
            int label = r->labels[(size_t)y * (size_t)r->width + (size_t)x];
            if (label < 0 && o->has_background)
                label = o->n - 1;
            if (label < 0)
                continue;
            float *b = r->objects[label].box;
            b[0] = fminf(b[0], (float)x), b[1] = fminf(b[1], (float)y);
            b[2] = fmaxf(b[2], (float)x + 1), b[3] = fmaxf(b[3], (float)y + 1);
        }
    for (int i = 0; i < r->n_objects; i++) {
        float *b = r->objects[i].box;
        b[2] -= b[0], b[3] -= b[1];
        if (!(b[2] > 0)) /* owns no pixel */
            b[0] = b[1] = b[2] = b[3] = 0;
    }
}

/* The matches of object i, one a reference at the most; returns how many. */
static int list_matches(SamladMatch *matches, const Comparison *c, int i)
{
    int n = 0;
    for (int k = 0; k < c->k; k++) {
        const Matching *m = &c->matchings[k];
        int j = m->match_q[i];
        if (j >= 0)
            matches[n++] = (SamladMatch){k, j, m->assignment[(size_t)i * ((size_t)m->n_r + 1) + (size_t)j],
                                         m->scores[(size_t)i * (size_t)m->n_r + (size_t)j]};
    }
    return n;
}

static void set_verdict(SamladObject *object, const SamladResult *r, const Verdict *v, const Bank *bank,
                        const float *structural)
{
    const int at = v->damage_cell;
    object->alike = v->alike;
    object->verdict = v->extra ? VERDICT_EXTRA : v->damaged ? VERDICT_DAMAGED : VERDICT_NORMAL;
    if (at < 0)
        return;
    object->damage = amm_z(&bank->structural, structural[at]);
    object->damage_at[0] = ((float)(at % bank->grid_w) + 0.5f) * (float)r->width / (float)bank->grid_w;
    object->damage_at[1] = ((float)(at / bank->grid_w) + 0.5f) * (float)r->height / (float)bank->grid_h;
}

int result_objects(SamladResult *r, const Bank *bank, const Detection *d, Error *err)
{
    const Objects *o = &d->comparison.query;
    const VerdictOptions options = bank_verdicts(bank);
    const VerdictInput input = {&d->comparison, d->unmatched, d->counted, d->structural, d->coverage};
    SamladMatch *matches = r->matches = aligned_array((size_t)o->n * (size_t)d->k, sizeof *matches);
    Verdict *verdicts = aligned_array((size_t)o->n, sizeof *verdicts);
    r->objects = calloc((size_t)o->n + 1, sizeof *r->objects);
    if (!matches || !r->objects || !verdicts || verdict_objects(verdicts, &input, &options, err)) {
        free(verdicts);
        return fail_memory(err, "the result", (unsigned long long)o->n * sizeof *r->objects);
    }
    r->n_objects = o->n;
    for (int i = 0; i < o->n; i++) {
        SamladObject *object = &r->objects[i];
        object->background = o->has_background && i == o->n - 1;
        object->area = o->areas[i];
        memcpy(object->centroid, o->centroids + 2 * i, sizeof object->centroid);
        object->unmatched = fminf(1, d->unmatched[i]); /* above 1 a little: rows are not normalised last */
        object->counted = d->counted[i];
        object->matches = matches;
        object->n_matches = list_matches(matches, &d->comparison, i);
        matches += object->n_matches;
        set_verdict(object, r, &verdicts[i], bank, d->structural);
    }
    free(verdicts);
    pixel_boxes(r, o);
    return 0;
}

int result_missing(SamladResult *r, const Bank *bank, const Detection *d, Error *err)
{
    const VerdictOptions options = bank_verdicts(bank);
    MissingList list;
    int status = verdict_missing(&list, &d->comparison, &options, err);
    r->missing = calloc((size_t)list.n + 1, sizeof *r->missing);
    if (!r->missing && !status)
        status = fail_memory(err, "the result", (unsigned long long)list.n * sizeof *r->missing);
    for (int i = 0; i < list.n && !status; i++) {
        const Missing *m = &list.items[i];
        const Objects *reference = &d->comparison.references[m->reference];
        SamladMissing *missing = &r->missing[r->n_missing++];
        *missing = (SamladMissing){.reference = m->reference,
                                   .object = m->object,
                                   .unmatched = m->unmatched,
                                   .alike = m->alike,
                                   .evidence = m->evidence,
                                   .support = m->support};
        cells_box(missing->box, reference->coverage + (size_t)m->object * bank_cells(bank), bank->grid_h,
                  bank->grid_w, r->height, r->width);
    }
    free(list.items);
    return status;
}

static float rank_of(const Bank *bank, float score)
{
    int higher = 0;
    for (int i = 0; i < bank->n_loo; i++)
        higher += bank->loo_sorted[i] >= score;
    return (float)(1 + higher) / (float)(1 + bank->n_loo);
}

/* Six spreads are clearly anomalous. A bank of one image knows no spread: its maps are shown up to their
 * largest value. */
static float map_high(const Bank *bank, const float *map)
{
    if (bank->n_loo > 0)
        return 6;
    float largest = 0;
    for (size_t p = 0; p < bank_cells(bank); p++)
        largest = map[p] > largest ? map[p] : largest;
    return largest > 0 ? largest : 1;
}

static float *copy_map(const Bank *bank, const float *map)
{
    float *copy = aligned_array(bank_cells(bank), sizeof *copy);
    if (copy)
        memcpy(copy, map, bank_cells(bank) * sizeof *copy);
    return copy;
}

int result_make(SamladResult *r, const Bank *bank, Detection *d, Scene *scene, Error *err)
{
    *r = (SamladResult){.width = scene->width,
                        .height = scene->height,
                        .grid_w = bank->grid_w,
                        .grid_h = bank->grid_h,
                        .score = d->score,
                        .structural = d->structural_score,
                        .logical = d->logical_score,
                        .structural_z = d->structural_z,
                        .logical_z = d->logical_z,
                        .rank = rank_of(bank, d->score),
                        .threshold = bank->threshold,
                        .anomalous = isnan(bank->threshold) ? -1 : d->score > bank->threshold,
                        .n_references = d->k,
                        .map = copy_map(bank, d->map),
                        .structural_map = copy_map(bank, d->structural),
                        .logical_map = copy_map(bank, d->logical),
                        .references = d->references,
                        .labels = scene->labels,
                        .map_low = 0,
                        .map_high = map_high(bank, d->map)};
    d->references = NULL; /* the result's now */
    scene->labels = NULL;
    int status = r->map && r->structural_map && r->logical_map
                     ? 0
                     : fail_memory(err, "the result", bank_cells(bank) * sizeof(float));
    if (!status && (result_objects(r, bank, d, err) || result_missing(r, bank, d, err)))
        status = -1;
    if (status)
        samlad_result_free(r);
    return status;
}
