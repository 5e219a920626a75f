/* verdict.c - from matches and maps to verdicts: extra, damaged, missing. See verdict.h; docs/METHOD.md 7,
 * all of it [ours]. */
#include "verdict.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* ================================================================================================
 * Objects alike
 * ============================================================================================== */

static int alike(const Objects *o, int i, int j, const VerdictOptions *options)
{
    return i == j || (options->omm->count && omm_alike(o, i, o, j, options->alpha, options->omm));
}

static int count_alike(const Objects *o, int i, const VerdictOptions *options)
{
    int n = 0;
    for (int j = 0; j < o->n; j++)
        n += alike(o, i, j, options);
    return n;
}

typedef enum Role { ROLE_OPEN, ROLE_NAMED, ROLE_EXPLAINED } Role;

/* Of the objects like object `kind`, name the n with the largest U; n is the kind's count. The named ones
 * explain the others. */
static void name_kind(Role *roles, const Objects *o, int kind, const float *unmatched, long n,
                      const VerdictOptions *options)
{
    for (; n > 0; n--) {
        int best = -1;
        for (int j = 0; j < o->n; j++)
            if (roles[j] == ROLE_OPEN && alike(o, kind, j, options) &&
                (best < 0 || unmatched[j] > unmatched[best]))
                best = j;
        if (best < 0)
            break; /* all of the kind are named. */
        roles[best] = ROLE_NAMED;
    }
    for (int j = 0; j < o->n; j++)
        if (roles[j] == ROLE_OPEN && alike(o, kind, j, options))
            roles[j] = ROLE_EXPLAINED;
}

/* Name objects of the kinds whose count exceeds `least`, the largest count first. roles [n]. */
static void name_surplus(Role *roles, const Objects *o, const float *unmatched, const float *counted,
                         double least, const VerdictOptions *options)
{
    for (int i = 0; i < o->n; i++)
        roles[i] = ROLE_OPEN;
    for (;;) {
        int most = -1;
        for (int i = 0; i < o->n; i++)
            if (roles[i] == ROLE_OPEN && counted[i] > least && (most < 0 || counted[i] > counted[most]))
                most = i;
        if (most < 0)
            return;
        name_kind(roles, o, most, unmatched, lroundf(fmaxf(1, counted[most])), options);
    }
}

/* ================================================================================================
 * Extra and damaged
 * ============================================================================================== */

/* The cell where the map is largest, among cells covered at least to this part. -1: there is none. */
static int worst_cell(const float *map, const float *coverage, int n_cells, float least)
{
    int at = -1;
    for (int p = 0; p < n_cells; p++)
        if (coverage[p] >= least && (at < 0 || map[p] > map[at]))
            at = p;
    return at;
}

/* Is this value of the map far above the scores of normal images? */
static int is_damage(float value, const VerdictOptions *options)
{
    return options->only != ONLY_LOGICAL && options->spread &&
           amm_z(options->spread, value) > options->flag_damage;
}

int verdict_objects(Verdict *verdicts, const VerdictInput *input, const VerdictOptions *options, Error *err)
{
    const Objects *o = &input->comparison->query;
    const ptrdiff_t n_cells = grid_cells(o);
    const float *map = input->structural;
    Role *roles = aligned_array(o->n, sizeof *roles);
    if (!roles)
        return fail_memory(err, "the result", o->n * sizeof *roles);
    name_surplus(roles, o, input->unmatched, input->counted,
                 fmax(options->flag_unmatched, options->flag_extra), options);
    for (int i = 0; i < o->n; i++) {
        const float *claimed = input->claimed + i * n_cells;
        int cell = worst_cell(map, claimed, n_cells, 0.5f);
        if (cell < 0) /* too thin to cover half of a cell: take all cells that it touches. */
            cell = worst_cell(map, claimed, n_cells, FLT_TRUE_MIN);
        verdicts[i] = (Verdict){.alike = count_alike(o, i, options), .damage_cell = cell};
        if (cell >= 0)
            verdicts[i].damage = amm_block_mean(map, o->grid_h, o->grid_w, cell);
        if (options->only != ONLY_STRUCTURAL && roles[i] == ROLE_NAMED)
            verdicts[i].verdict = OBJECT_EXTRA;
        else if (cell >= 0 && is_damage(verdicts[i].damage, options))
            verdicts[i].verdict = OBJECT_DAMAGED;
    }
    free(roles);
    return 0;
}

/* ================================================================================================
 * Missing
 * ============================================================================================== */

/* Do two reference objects lie at the same place? Returns the intersection over union of their coverage. It
 * counts whole 255ths of a cell, as in a bank, so the sums are exact. */
static double soft_iou(const float *a, const float *b, ptrdiff_t n_cells)
{
    double both = 0, either = 0;
    for (ptrdiff_t p = 0; p < n_cells; p++) {
        const float x = rintf(a[p] * 255), y = rintf(b[p] * 255);
        both += x < y ? x : y;
        either += x > y ? x : y;
    }
    return either > 0 ? both / either : 0;
}

/* Are a and b the same missing object: two references' objects at one place, or two of a kind at any
 * place? */
static int same_missing(const Comparison *c, const Missing *a, const Missing *b,
                        const VerdictOptions *options)
{
    const Objects *in_a = &c->references[a->reference], *in_b = &c->references[b->reference];
    const ptrdiff_t n_cells = grid_cells(in_a);
    return soft_iou(in_a->coverage + a->object * n_cells, in_b->coverage + b->object * n_cells, n_cells) >=
               0.25 ||
           (a->alike > 1 && b->alike > 1 &&
            omm_alike(in_a, a->object, in_b, b->object, options->alpha, options->omm));
}

/* Join a missing object with one that is already listed. The one with the largest V stands for all. */
static void join_missing(MissingList *list, const Comparison *c, const Missing *found,
                         const VerdictOptions *options)
{
    for (int i = 0; i < list->n; i++) {
        Missing *m = &list->items[i];
        if (m->last_reference == found->reference || !same_missing(c, found, m, options))
            continue;
        const int support = m->support + 1;
        const float evidence = m->evidence + found->evidence;
        if (found->unmatched > m->unmatched)
            *m = *found;
        m->support = support;
        m->evidence = evidence;
        m->last_reference = found->reference;
        return;
    }
    list->items[list->n++] = *found;
}

/* List the objects that reference r has and the query lacks. roles [its objects]. */
static void list_missing_of(MissingList *list, const Comparison *c, int r, Role *roles,
                            const VerdictOptions *options)
{
    const Matching *m = &c->matchings[r];
    const Objects *o = &c->references[r];
    name_surplus(roles, o, m->unmatched_r, m->counted_r, options->flag_unmatched, options);
    for (int j = 0; j < m->n_r; j++)
        if (roles[j] == ROLE_NAMED) {
            const float v = fminf(1, fmaxf(m->counted_r[j], m->unmatched_r[j]));
            const Missing found = {.reference = r,
                                   .object = j,
                                   .unmatched = v,
                                   .alike = count_alike(o, j, options),
                                   .evidence = v, /* a sum at first; list_missing divides it. */
                                   .support = 1,
                                   .last_reference = r};
            join_missing(list, c, &found, options);
        }
}

/* List the objects that at least half of the references have and the query lacks. */
static int list_missing(MissingList *list, const Comparison *c, const VerdictOptions *options, Error *err)
{
    size_t most = 1;
    for (int r = 0; r < c->k; r++)
        most += c->matchings[r].n_r;
    *list = (MissingList){0, calloc(most, sizeof(Missing))};
    Role *roles = aligned_array(most, sizeof *roles);
    if (!list->items || !roles) {
        free(roles);
        return fail_memory(err, "the missing objects", most * sizeof *list->items);
    }
    for (int r = 0; r < c->k && options->only != ONLY_STRUCTURAL; r++)
        list_missing_of(list, c, r, roles, options);
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

/* Report it only above the quantile of normal images, each left out in turn. */
int verdict_missing(MissingList *list, const Comparison *c, const VerdictOptions *options, Error *err)
{
    if (list_missing(list, c, options, err))
        return -1;
    int kept = 0;
    for (int i = 0; i < list->n; i++)
        if (list->items[i].evidence > options->flag_missing)
            list->items[kept++] = list->items[i];
    list->n = kept;
    return 0;
}

int verdict_evidence(float *extra, float *missing, const Comparison *c, const float *counted,
                     const VerdictOptions *options, Error *err)
{
    MissingList list;
    const int status = list_missing(&list, c, options, err);
    *extra = *missing = 0;
    for (int i = 0; i < c->query.n; i++)
        *extra = fmaxf(*extra, counted[i]);
    for (int i = 0; i < list.n && !status; i++)
        *missing = fmaxf(*missing, list.items[i].evidence);
    free(list.items);
    return status;
}
