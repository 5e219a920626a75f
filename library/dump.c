/* dump.c - see dump.h. */
#include "library/dump.h"

#include "bank/dump.h"

static int dump_matching(StWriter *dump, const Matching *m, int r, Error *err)
{
    char name[48];
    snprintf(name, sizeof name, "omm.scores.%d", r);
    if (dump_floats(dump, name, 2, (int64_t[]){m->n_q, m->n_r}, m->scores, err))
        return -1;
    snprintf(name, sizeof name, "omm.assignment.%d", r);
    return dump_floats(dump, name, 2, (int64_t[]){m->n_q + 1, m->n_r + 1}, m->assignment, err);
}

int dump_detection(StWriter *dump, const Detection *d, Error *err)
{
    const Objects *o = &d->comparison.query;
    const int64_t n = o->n, C = o->channels, k = d->k, grid[2] = {o->grid_h, o->grid_w}, three = 3;
    const float scores[3] = {d->structural_score, d->logical_score, d->score};
    if (dump_floats(dump, "dcga.descriptors", 2, (int64_t[]){n, C}, o->descriptors, err) ||
        st_writer_copy(dump, "references", ST_I32, 1, &k, d->references, err))
        return -1;
    for (int r = 0; r < d->k; r++)
        if (dump_matching(dump, &d->comparison.matchings[r], r, err))
            return -1;
    return dump_floats(dump, "raster.unusual", 1, &n, d->unusual, err) ||
                   dump_floats(dump, "amm.nearest", 2, grid, d->nearest, err) ||
                   dump_floats(dump, "amm.structural", 2, grid, d->structural, err) ||
                   dump_floats(dump, "amm.logical", 2, grid, d->logical, err) ||
                   dump_floats(dump, "amm.map", 2, grid, d->map, err) ||
                   dump_floats(dump, "scores", 1, &three, scores, err)
               ? -1
               : 0;
}
