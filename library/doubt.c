/* doubt.c - see doubt.h. [ours]. */
#include "library/doubt.h"

/* 1 if an object is missing, extra or damaged. */
static int has_reason(const SamladResult *r)
{
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict != VERDICT_NORMAL)
            return 1;
    return r->n_missing > 0;
}

/* What made most of the score. With the option `only` it is one of the two z, else the larger one. z of the
 * layout is a part of logical_z. */
static DoubtKind kind_of(const SamladResult *r)
{
    if (r->score == r->structural_z || (r->score != r->logical_z && r->logical_z <= r->structural_z))
        return DOUBT_STRUCTURAL;
    return r->layout_z > r->logical_z - r->layout_z ? DOUBT_LAYOUT : DOUBT_LOGICAL;
}

/* The middle of the object whose layout is the most unusual. */
static void doubt_layout(Doubt *doubt, const SamladResult *r)
{
    for (int i = 0; i < r->n_objects; i++) {
        const SamladObject *o = &r->objects[i];
        if (i > 0 && o->unusual <= doubt->evidence)
            continue;
        doubt->evidence = o->unusual;
        doubt->x = o->centroid[0] * (float)r->width, doubt->y = o->centroid[1] * (float)r->height;
    }
}

/* The largest cell of the map. */
static void doubt_map(Doubt *doubt, const SamladResult *r)
{
    const float *map = doubt->kind == DOUBT_LOGICAL ? r->logical_map : r->structural_map;
    const int n_cells = r->grid_w * r->grid_h;
    int most = 0;
    for (int p = 1; p < n_cells; p++)
        most = map[p] > map[most] ? p : most;
    doubt->x = ((float)(most % r->grid_w) + 0.5f) * (float)r->width / (float)r->grid_w;
    doubt->y = ((float)(most / r->grid_w) + 0.5f) * (float)r->height / (float)r->grid_h;
    doubt->evidence = doubt->kind == DOUBT_LOGICAL ? map[most] : r->structural_z;
}

int find_doubt(Doubt *doubt, const SamladResult *r)
{
    if (r->anomalous != 1 || has_reason(r))
        return 0;
    *doubt = (Doubt){.kind = kind_of(r)};
    if (doubt->kind == DOUBT_LAYOUT)
        doubt_layout(doubt, r);
    else
        doubt_map(doubt, r);
    return 1;
}
