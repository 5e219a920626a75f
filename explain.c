/* explain.c - from a comparison to reasons: which objects are extra or damaged, what is missing. See
 * explain.h. */
#include "explain.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* Box of the cells that weigh at least half of the heaviest, in pixels. */
static void cells_box(float box[4], const float *weights, int grid_h, int grid_w, int height, int width)
{
    float most = 0;
    int x0 = grid_w, x1 = -1, y0 = grid_h, y1 = -1;
    for (int p = 0; p < grid_h * grid_w; p++)
        most = fmaxf(most, weights[p]);
    for (int p = 0; p < grid_h * grid_w && most > 0; p++)
        if (weights[p] >= most / 2) {
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

/* Where the map is largest among the cells of at least this weight; -1: there is none. */
static int worst_cell(const float *map, const float *weights, int n_cells, float least)
{
    int at = -1;
    for (int p = 0; p < n_cells; p++)
        if (weights[p] >= least && (at < 0 || map[p] > map[at]))
            at = p;
    return at;
}

/* Largest structural z on the object's cells and where it stands. An object too thin to hold half of a
 * cell has the cells that it touches. */
static void find_damage(SamladObject *object, const Bank *bank, const Comparison *c, const float *weights,
                        int height, int width)
{
    int n_cells = (int)bank_cells(bank), at = worst_cell(c->structural, weights, n_cells, 0.5f);
    if (at < 0)
        at = worst_cell(c->structural, weights, n_cells, FLT_TRUE_MIN);
    object->damage = at < 0 ? 0 : amm_z(&bank->structural, c->structural[at]);
    object->damage_at[0] =
        at < 0 ? 0 : ((float)(at % bank->grid_w) + 0.5f) * (float)width / (float)bank->grid_w;
    object->damage_at[1] =
        at < 0 ? 0 : ((float)(at / bank->grid_w) + 0.5f) * (float)height / (float)bank->grid_h;
}

static int alike(const Bank *bank, const OmmSide *side, int i, int j)
{
    return i == j || (bank->options.omm.count &&
                      omm_alike(side, i, side, j, bank->channels, bank->alpha, &bank->options.omm));
}

static int count_alike(const Bank *bank, const OmmSide *side, int i)
{
    int n = 0;
    for (int j = 0; j < side->n; j++)
        n += alike(bank, side, i, j);
    return n;
}

typedef enum Role { ROLE_OPEN, ROLE_NAMED, ROLE_EXPLAINED } Role;

/* Whom to name when a kind counts as too many: of all alike as many as are counted, those with the largest U,
 * and they explain the others. From the largest count down to `least`. roles [n] */
static void name_surplus(Role *roles, const Bank *bank, const OmmSide *side, const float *unmatched,
                         const float *counted, double least)
{
    for (int i = 0; i < side->n; i++)
        roles[i] = ROLE_OPEN;
    for (;;) {
        int most = -1;
        for (int i = 0; i < side->n; i++)
            if (roles[i] == ROLE_OPEN && counted[i] > least && (most < 0 || counted[i] > counted[most]))
                most = i;
        if (most < 0)
            return;
        for (long n = lroundf(fmaxf(1, counted[most])); n > 0; n--) {
            int best = -1;
            for (int j = 0; j < side->n; j++)
                if (roles[j] == ROLE_OPEN && alike(bank, side, most, j) &&
                    (best < 0 || unmatched[j] > unmatched[best]))
                    best = j;
            if (best < 0)
                break; /* every one of the kind is named */
            roles[best] = ROLE_NAMED;
        }
        for (int j = 0; j < side->n; j++)
            if (roles[j] == ROLE_OPEN && alike(bank, side, most, j))
                roles[j] = ROLE_EXPLAINED;
    }
}

int explain_objects(SamladResult *r, const Bank *bank, const Comparison *c, const Objects *o, Error *err)
{
    SamladMatch *matches = aligned_array((size_t)o->n * (size_t)c->k + 1, sizeof *matches);
    Role *roles = aligned_array((size_t)o->n + 1, sizeof *roles);
    r->matches = matches; /* freed by samlad_result_free */
    r->objects = calloc((size_t)o->n + 1, sizeof *r->objects);
    if (!matches || !r->objects || !roles) {
        free(roles);
        return fail_memory(err, "the result", (unsigned long long)o->n * sizeof *r->objects);
    }
    r->n_objects = o->n;
    const OmmSide side = {o->n, o->descriptors, o->centroids, o->areas};
    name_surplus(roles, bank, &side, c->unmatched, c->counted,
                 fmax(bank->options.flag_unmatched, bank->flag_extra));
    for (int i = 0; i < o->n; i++) {
        SamladObject *object = &r->objects[i];
        object->background = o->has_background && i == o->n - 1;
        object->area = o->areas[i];
        memcpy(object->centroid, o->centroids + 2 * i, sizeof object->centroid);
        object->unmatched = fminf(1, c->unmatched[i]); /* above 1 a little: rows are not normalised last */
        object->counted = c->counted[i];
        object->alike = count_alike(bank, &side, i);
        object->matches = matches;
        for (int k = 0; k < c->k; k++) {
            const Matching *m = &c->matchings[k];
            int j = m->match_q[i];
            if (j >= 0)
                object->matches[object->n_matches++] =
                    (SamladMatch){k, j, m->assignment[(size_t)i * ((size_t)m->n_r + 1) + (size_t)j],
                                  m->scores[(size_t)i * (size_t)m->n_r + (size_t)j]};
        }
        matches += object->n_matches;
        find_damage(object, bank, c, (c->claimed ? c->claimed : o->weights) + (size_t)i * bank_cells(bank),
                    r->height, r->width);
        /* damage is a z only where other normal images have told the spread (a bank of one has none) */
        const int damaged = bank->options.only != ONLY_LOGICAL && bank->n_loo > 0 &&
                            object->damage > bank->options.flag_damage;
        object->verdict = bank->options.only != ONLY_STRUCTURAL && roles[i] == ROLE_NAMED ? VERDICT_EXTRA
                          : damaged                                                       ? VERDICT_DAMAGED
                                                                                          : VERDICT_NORMAL;
    }
    free(roles);
    pixel_boxes(r, o);
    return 0;
}

/* Do two reference objects stand at the same place? Intersection over union of their soft masks. */
static double soft_iou(const uint8_t *a, const uint8_t *b, size_t n_cells)
{
    double both = 0, either = 0;
    for (size_t p = 0; p < n_cells; p++) {
        both += a[p] < b[p] ? a[p] : b[p];
        either += a[p] > b[p] ? a[p] : b[p];
    }
    return either > 0 ? both / either : 0;
}

/* Places where references have an object that the query lacks; last_reference: whose object joined last. */
typedef struct MissingList {
    int n, *last_reference;
    SamladMissing *items;
} MissingList;

/* Are the same thing missing: objects of two references at one place, or two of a kind, wherever they lie?
 * a, b count over all of the bank's objects. */
static int same_missing(const Bank *bank, size_t a, size_t b, int of_a_kind)
{
    const size_t n_cells = bank_cells(bank);
    const OmmSide all = {bank->first[bank->n_images], bank->descriptors, bank->centroids, bank->areas};
    return soft_iou(bank->weights + a * n_cells, bank->weights + b * n_cells, n_cells) >= 0.25 ||
           (of_a_kind &&
            omm_alike(&all, (int)a, &all, (int)b, bank->channels, bank->alpha, &bank->options.omm));
}

/* Join a missing object of reference k with what is already listed; the clearest stands for all. */
static void join_missing(MissingList *list, const Bank *bank, const Comparison *c, int k,
                         const SamladMissing *found)
{
    const size_t object = (size_t)(bank->first[c->references[k]] + found->object);
    for (int i = 0; i < list->n; i++) {
        SamladMissing *m = &list->items[i];
        const size_t other = (size_t)(bank->first[c->references[m->reference]] + m->object);
        if (list->last_reference[i] == k ||
            !same_missing(bank, object, other, found->alike > 1 && m->alike > 1))
            continue;
        const int support = m->support + 1;
        const float evidence = m->evidence + found->evidence;
        if (found->unmatched > m->unmatched)
            *m = *found;
        m->support = support;
        m->evidence = evidence;
        list->last_reference[i] = k;
        return;
    }
    list->last_reference[list->n] = k;
    list->items[list->n++] = *found;
}

/* What reference k has and the query lacks. roles [its objects] */
static void list_missing_of(MissingList *list, const Bank *bank, const Comparison *c, int k, Role *roles)
{
    const Matching *m = &c->matchings[k];
    const OmmSide side = bank_side(bank, c->references[k]);
    name_surplus(roles, bank, &side, m->unmatched_r, m->counted_r, bank->options.flag_unmatched);
    for (int j = 0; j < m->n_r; j++)
        if (roles[j] == ROLE_NAMED) {
            const float v = fminf(1, fmaxf(m->counted_r[j], m->unmatched_r[j]));
            const SamladMissing found = {.reference = k,
                                         .object = j,
                                         .unmatched = v,
                                         .alike = count_alike(bank, &side, j),
                                         .evidence = v, /* a sum; list_missing divides it */
                                         .support = 1};
            join_missing(list, bank, c, k, &found);
        }
}

/* An object of the normal images is missing when at least half of the references miss it [ours]. The list is
 * to be freed by its caller, whatever happens. */
static int list_missing(MissingList *list, const Bank *bank, const Comparison *c, Error *err)
{
    size_t most = 1;
    for (int k = 0; k < c->k; k++)
        most += (size_t)c->matchings[k].n_r;
    *list = (MissingList){0, calloc(most, sizeof(int)), calloc(most, sizeof(SamladMissing))};
    Role *roles = aligned_array(most, sizeof *roles);
    if (!list->items || !list->last_reference || !roles) {
        free(roles);
        return fail_memory(err, "what is missing", most * sizeof *list->items);
    }
    for (int k = 0; k < c->k && bank->options.only != ONLY_STRUCTURAL; k++)
        list_missing_of(list, bank, c, k, roles);
    free(roles);
    int kept = 0;
    for (int i = 0; i < list->n; i++)
        if (2 * list->items[i].support >= c->k) {
            list->items[kept] = list->items[i];
            list->items[kept++].evidence /= (float)c->k;
        }
    list->n = kept;
    return 0;
}

/* ... and when normal images, left out in turn, do not look so too [ours]. */
int explain_missing(SamladResult *r, const Bank *bank, const Comparison *c, Error *err)
{
    MissingList list;
    size_t n_cells = bank_cells(bank);
    float *weights = aligned_array(n_cells, sizeof *weights);
    int status = list_missing(&list, bank, c, err);
    if (!weights && !status)
        status = fail_memory(err, "the result", n_cells * sizeof *weights);
    for (int i = 0; i < list.n && !status; i++) {
        SamladMissing m = list.items[i];
        if (!(m.evidence > bank->flag_missing))
            continue;
        const uint8_t *mask =
            bank->weights + (size_t)(bank->first[c->references[m.reference]] + m.object) * n_cells;
        for (size_t p = 0; p < n_cells; p++)
            weights[p] = mask[p];
        cells_box(m.box, weights, bank->grid_h, bank->grid_w, r->height, r->width);
        list.items[r->n_missing++] = m;
    }
    r->missing = list.items; /* samlad_result_free frees it */
    free(list.last_reference), free(weights);
    return status;
}

int explain_evidence(float *extra, float *missing, const Bank *bank, const Comparison *c, int n_objects,
                     Error *err)
{
    MissingList list;
    int status = list_missing(&list, bank, c, err);
    *extra = *missing = 0;
    for (int i = 0; i < n_objects; i++)
        *extra = fmaxf(*extra, c->counted[i]);
    for (int i = 0; i < list.n && !status; i++)
        *missing = fmaxf(*missing, list.items[i].evidence);
    free(list.items), free(list.last_reference);
    return status;
}
