/* result.c - see result.h and samlad.h. */
#include "library/result.h"

#include <math.h>
#include <stdlib.h>

#include "explain.h"
#include "tensor.h"

/* The part of the leave-one-out scores at least as high, counting this score as one of them. */
static float rank_of(const Bank *bank, float score)
{
    int higher = 0;
    for (int i = 0; i < bank->n_loo; i++)
        higher += bank->loo_sorted[i] >= score;
    return (float)(1 + higher) / (float)(1 + bank->n_loo);
}

/* The map's value that pictures show brightest: six spreads are clearly anomalous [ours]. A bank of one image
 * has no spread: then the map's largest value. */
static float map_high(const Bank *bank, const float *map)
{
    if (bank->n_loo > 0)
        return 6;
    float largest = 0;
    for (size_t p = 0; p < bank_cells(bank); p++)
        largest = map[p] > largest ? map[p] : largest;
    return largest > 0 ? largest : 1;
}

static void fill_scores(SamladResult *r, const Bank *bank, const Comparison *c)
{
    r->score = c->score;
    r->structural = c->structural_score, r->structural_z = c->structural_z;
    r->logical = c->logical_score, r->logical_z = c->logical_z;
    r->rank = rank_of(bank, c->score);
    r->threshold = bank->threshold;
    r->anomalous = isnan(bank->threshold) ? -1 : c->score > bank->threshold;
}

int result_make(SamladResult *r, const Bank *bank, Comparison *c, Scene *scene, Error *err)
{
    *r = (SamladResult){.width = scene->width,
                        .height = scene->height,
                        .grid_w = bank->grid_w,
                        .grid_h = bank->grid_h,
                        .map = c->map,
                        .structural_map = c->structural,
                        .logical_map = c->logical,
                        .map_high = map_high(bank, c->map),
                        .n_references = c->k,
                        .references = c->references,
                        .labels = scene->labels};
    fill_scores(r, bank, c);
    int status =
        explain_objects(r, bank, c, &scene->objects, err) || explain_missing(r, bank, c, err) ? -1 : 0;
    c->map = c->structural = c->logical = NULL; /* they are the result's now */
    c->references = NULL;
    scene->labels = NULL;
    if (status)
        samlad_result_free(r);
    return status;
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
