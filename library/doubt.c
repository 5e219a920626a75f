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

int find_doubt(Doubt *doubt, const SamladResult *r)
{
    if (r->anomalous != 1 || has_reason(r))
        return 0;
    /* With the option `only` the score is one of the two z. Otherwise the larger z made most of it. */
    doubt->logical =
        r->score != r->structural_z && (r->score == r->logical_z || r->logical_z > r->structural_z);
    const float *map = doubt->logical ? r->logical_map : r->structural_map;
    const int n_cells = r->grid_w * r->grid_h;
    int most = 0;
    for (int p = 1; p < n_cells; p++)
        most = map[p] > map[most] ? p : most;
    doubt->x = ((float)(most % r->grid_w) + 0.5f) * (float)r->width / (float)r->grid_w;
    doubt->y = ((float)(most / r->grid_w) + 0.5f) * (float)r->height / (float)r->grid_h;
    doubt->evidence = doubt->logical ? map[most] : r->structural_z;
    return 1;
}
