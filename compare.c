/* compare.c - the paper on one page: a scene is compared with its nearest normal images. See compare.h.
 *
 *   retrieve     k nearest images of the bank                          METHOD.md 2
 *   describe     objects -> descriptors (DCGA)                         METHOD.md 5
 *   match        descriptors -> matches (OMM), verified                METHOD.md 6
 *   measure      matches -> structural and logical maps (AMM)          METHOD.md 7
 *   fuse         both as z of the bank's own leave-one-out scores      METHOD.md 7 */
#include "compare.h"
#include "explain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

/* What a comparison holds of its references while it runs. Their features, by far the most, stay in the bank;
 * those of one are widened at a time. */
typedef struct References {
    float *features; /* [h*w][C] of one */
    float *weights;  /* [sum of n_r][h*w] */
    float **of;      /* [k] where each reference's weights begin */
} References;

static void references_free(References *r)
{
    free(r->features), free(r->weights), free(r->of);
}

static int references_load(References *r, const Bank *bank, const int *index, int k, Error *err)
{
    size_t n_cells = bank_cells(bank), one = n_cells * (size_t)bank->channels, objects = 0;
    for (int i = 0; i < k; i++)
        objects += (size_t)bank_objects(bank, index[i]);
    r->features = aligned_array(one + 1, sizeof(float));
    r->weights = aligned_array(objects * n_cells + 1, sizeof(float));
    r->of = aligned_array((size_t)k + 1, sizeof *r->of);
    if (!r->features || !r->weights || !r->of)
        return fail_memory(err, "the references", (one + objects * n_cells) * 4);
    float *at = r->weights;
    for (int i = 0; i < k; i++) {
        bank_weights(bank, index[i], at);
        r->of[i] = at;
        at += (size_t)bank_objects(bank, index[i]) * n_cells;
    }
    return 0;
}

/* r->features [h*w][C] = those of the bank's image, widened; -1 when one of them is not a finite number. */
static int reference_features(const References *r, const Bank *bank, int image, Error *err)
{
    bank_features(bank, image, r->features);
    return all_finite(r->features, bank_cells(bank) * (size_t)bank->channels)
               ? 0
               : fail(err, "the bank's image %d (%s) has features that are not finite numbers", image,
                      bank->names[image]);
}

/* ================================================================================================
 * OMM: verification by mask transfer [ours]
 * ============================================================================================== */

/* The mask w [h*w] moved by (dx, dy) cells -> moved, and the weighted mean of features [h*w][C] under it ->
 * pooled. Returns 0 when nothing of the mask stays on the grid, else 1. */
static int pool_moved(float *pooled, float *moved, const Bank *bank, const float *w, const float *features,
                      int dx, int dy)
{
    size_t C = (size_t)bank->channels;
    double total = 0;
    memset(pooled, 0, C * sizeof *pooled);
    memset(moved, 0, bank_cells(bank) * sizeof *moved);
    for (int y = 0; y < bank->grid_h; y++)
        for (int x = 0; x < bank->grid_w; x++) {
            float weight = w[y * bank->grid_w + x];
            int at_x = x + dx, at_y = y + dy;
            if (!(weight > 0) || at_x < 0 || at_y < 0 || at_x >= bank->grid_w || at_y >= bank->grid_h)
                continue;
            size_t at = (size_t)at_y * (size_t)bank->grid_w + (size_t)at_x;
            const float *f = features + at * C;
            for (size_t c = 0; c < C; c++)
                pooled[c] += weight * f[c];
            moved[at] = weight;
            total += weight;
        }
    for (size_t c = 0; c < C && total > 0; c++)
        pooled[c] /= (float)total;
    return total > 0;
}

/* Objects of one image whose U is above `verify_above`: look at the same place in the other image, and up
 * to `verify_shift` cells around it, for parts never lie exactly alike. When what lies there, pooled under
 * the same mask, is as like it as normal matches are (cosine >= alpha), segmentation failed there, not the
 * product, and U becomes 0. The match itself is not made up. unmatched [n], descriptors [n][C], weights
 * [n][h*w] of this image; other [h*w][C] features of the other one. */
static int verify(const Bank *bank, float *unmatched, const float *descriptors, const float *weights, int n,
                  const float *other, Error *err)
{
    size_t C = (size_t)bank->channels, n_cells = bank_cells(bank);
    int reach = bank->options.omm.verify_shift, status = 0;
    float *pooled = aligned_array(2 * C + n_cells, sizeof(float));
    if (!pooled)
        return fail_memory(err, "verification", (2 * C + n_cells) * sizeof(float));
    float *described = pooled + C, *moved = described + C;
    for (int i = 0; i < n && !status; i++) {
        const float *w = weights + (size_t)i * n_cells, *h = descriptors + (size_t)i * C;
        if (!(unmatched[i] > bank->options.omm.verify_above))
            continue;
        for (int dy = -reach; dy <= reach && !status && unmatched[i] > 0; dy++)
            for (int dx = -reach; dx <= reach && !status && unmatched[i] > 0; dx++) {
                if (!pool_moved(pooled, moved, bank, w, other, dx, dy))
                    continue;
                status = dcga_describe(&bank->dcga, described, pooled, other, moved, 1, bank->grid_h,
                                       bank->grid_w, 0, err);
                if (!status && dot(h, described, bank->channels) >= bank->alpha)
                    unmatched[i] = 0;
            }
    }
    free(pooled);
    return status;
}

static int match_one(Matching *m, const Bank *bank, const Scene *scene, int image, const float *features,
                     const float *weights, Error *err)
{
    const Objects *q = &scene->objects;
    const OmmSide query = {q->n, q->descriptors, q->centroids, q->areas}, reference = bank_side(bank, image);
    if (omm_match(m, &query, &reference, bank->channels, bank->alpha, &bank->options.omm, err))
        return -1;
    if (bank->options.no_objects && m->n_q == 1 &&
        m->n_r == 1) { /* ablation: the whole is compared with the whole */
        m->match_q[0] = m->match_r[0] = 0;
        m->unmatched_q[0] = m->unmatched_r[0] = 0;
    } else if (bank->options.omm.verify &&
               (verify(bank, m->unmatched_q, q->descriptors, q->weights, q->n, features, err) ||
                verify(bank, m->unmatched_r, reference.descriptors, weights, m->n_r, scene->features, err))) {
        return -1;
    }
    return omm_count(m, &query, &reference, bank->channels, bank->alpha, &bank->options.omm, err);
}

/* ================================================================================================
 * AMM: measurement
 * ============================================================================================== */

/* L = max(max_i mean_r U_i, mean_r max_j V_j), U and V counted together; map = U on the query's objects, mean
 * over r of V on the reference's missing ones [ours]. */
static void measure_logical(Comparison *c, const Bank *bank, const Scene *scene, const References *refs)
{
    int n_cells = (int)bank_cells(bank), n = scene->objects.n;
    float *extra = c->counted, worst_extra = 0, worst_missing = 0;
    memset(extra, 0, (size_t)n * sizeof *extra);
    memset(c->unmatched, 0, (size_t)n * sizeof *c->unmatched);
    memset(c->logical, 0, (size_t)n_cells * sizeof(float));
    for (int r = 0; r < c->k; r++) {
        const Matching *m = &c->matchings[r];
        float worst = 0;
        for (int i = 0; i < n; i++) {
            extra[i] += m->counted_q[i] / (float)c->k;
            c->unmatched[i] += m->unmatched_q[i] / (float)c->k;
        }
        for (int j = 0; j < m->n_r; j++) {
            const float *w = refs->of[r] + (size_t)j * (size_t)n_cells;
            worst = fmaxf(worst, m->counted_r[j]);
            for (int p = 0; p < n_cells; p++)
                c->logical[p] += w[p] * m->counted_r[j] / (float)c->k;
        }
        worst_missing += worst / (float)c->k;
    }
    for (int i = 0; i < n; i++) {
        const float *w = scene->objects.weights + (size_t)i * (size_t)n_cells;
        worst_extra = fmaxf(worst_extra, extra[i]);
        for (int p = 0; p < n_cells; p++)
            c->logical[p] = fmaxf(c->logical[p], w[p] * extra[i]);
    }
    c->logical_score = fmaxf(worst_extra, worst_missing);
}

/* The structural map, in which every channel counts in units of its standard deviation over the bank. */
static int measure_structural(Comparison *c, const Bank *bank, const Scene *scene, const References *refs,
                              int raw, Error *err)
{
    size_t n_cells = bank_cells(bank), C = (size_t)bank->channels, one = n_cells * C;
    const Objects *o = &scene->objects;
    float *scale = aligned_array(C + n_cells, sizeof(float));
    AmmReference *references = aligned_array((size_t)c->k + 1, sizeof *references);
    int status = scale && references ? 0 : fail_memory(err, "the structural map", (C + n_cells) * 4);
    if (!status) {
        for (size_t i = 0; i < C; i++)
            scale[i] = 1 / bank->channel_std[i];
        for (int r = 0; r < c->k; r++) {
            int first = bank->first[c->references[r]];
            references[r] = (AmmReference){bank->features + (size_t)c->references[r] * one,
                                           bank->centroids + 2 * first,
                                           bank->areas + first,
                                           c->matchings[r].match_q,
                                           bank_objects(bank, c->references[r]),
                                           refs->of[r],
                                           bank->scale + first};
        }
        AmmQuery query = {.n = o->n,
                          .grid_h = bank->grid_h,
                          .grid_w = bank->grid_w,
                          .channels = bank->channels,
                          .features = scene->features,
                          .weights = o->weights,
                          .centroids = o->centroids,
                          .areas = o->areas,
                          .claimed = c->claimed,
                          .scale = scale};
        status = amm_structural(c->structural, &query, references, c->k, &bank->options.amm, err);
        if (!status && !raw)
            status = amm_normalise(c->structural, &query, references, c->k, err);
        if (!status)
            c->structural_score = amm_score(c->structural, (int)n_cells, bank->options.amm.score, scale + C);
    }
    free(scale), free(references);
    return status;
}

/* One score of two [ours]. smoothmax: log(e^zA + e^zL) - log 2, nearly the larger of the two where they
 * differ, so that the noise of the quiet one does not blur what the other one says. sum: max(zA, -1) +
 * max(zL, -1). */
static float fused(const Options *options, float a, float l)
{
    if (options->only != ONLY_BOTH)
        return options->only == ONLY_STRUCTURAL ? a : l;
    if (options->fusion == FUSION_SUM)
        return fmaxf(a, -1) + fmaxf(l, -1);
    return fmaxf(a, l) + log1pf(expf(-fabsf(a - l))) - log1pf(1);
}

/* score: see fused; map = pointwise max of the two z-maps [ours]. */
static void fuse(Comparison *c, const Bank *bank)
{
    int only = bank->options.only;
    c->structural_z = amm_z(&bank->structural, c->structural_score);
    c->logical_z = amm_z(&bank->logical, c->logical_score);
    c->score = fused(&bank->options, c->structural_z, c->logical_z);
    for (size_t p = 0; p < bank_cells(bank); p++) {
        float a = amm_z(&bank->structural, c->structural[p]), l = amm_z(&bank->logical, c->logical[p]);
        c->map[p] = only == ONLY_STRUCTURAL ? a : only == ONLY_LOGICAL ? l : fmaxf(a, l);
    }
}

/* ================================================================================================
 * One comparison
 * ============================================================================================== */

static int comparison_new(Comparison *c, const Bank *bank, int n_objects, Error *err)
{
    size_t n_cells = bank_cells(bank), room = bank->options.amm.claims ? (size_t)n_objects * n_cells : 0,
           k = (size_t)(bank->options.k < bank->n_images ? bank->options.k : bank->n_images);
    *c = (Comparison){.references = aligned_array(k + 1, sizeof(int)),
                      .matchings = calloc(k + 1, sizeof(Matching)),
                      .structural = aligned_array(n_cells, sizeof(float)),
                      .logical = aligned_array(n_cells, sizeof(float)),
                      .map = aligned_array(n_cells, sizeof(float)),
                      .claimed = room ? aligned_array(room, sizeof(float)) : NULL,
                      .unmatched = aligned_array((size_t)n_objects + 1, sizeof(float)),
                      .counted = aligned_array((size_t)n_objects + 1, sizeof(float))};
    if (c->references && c->matchings && c->structural && c->logical && c->map && (c->claimed || !room) &&
        c->unmatched && c->counted)
        return 0;
    comparison_free(c);
    return fail_memory(err, "a comparison", (room + n_cells * 3) * 4);
}

static int dump_comparison(StWriter *dump, const Comparison *c, const Scene *scene, Error *err)
{
    const Objects *o = &scene->objects;
    int64_t k = c->k;
    int status =
        dump_floats(dump, "dcga.descriptors", 2, (int64_t[]){o->n, o->channels}, o->descriptors, err) ||
        st_writer_copy(dump, "references", ST_I32, 1, &k, c->references, err);
    for (int r = 0; r < c->k && !status; r++) {
        const Matching *m = &c->matchings[r];
        char name[48];
        snprintf(name, sizeof name, "omm.scores.%d", r);
        status = dump_floats(dump, name, 2, (int64_t[]){m->n_q, m->n_r}, m->scores, err);
        snprintf(name, sizeof name, "omm.assignment.%d", r);
        status =
            status || dump_floats(dump, name, 2, (int64_t[]){m->n_q + 1, m->n_r + 1}, m->assignment, err);
    }
    int64_t grid[2] = {scene->grid_h, scene->grid_w}, three = 3;
    float scores[3] = {c->structural_score, c->logical_score, c->score};
    status = status || dump_floats(dump, "amm.structural", 2, grid, c->structural, err) ||
             dump_floats(dump, "amm.logical", 2, grid, c->logical, err) ||
             dump_floats(dump, "amm.map", 2, grid, c->map, err) ||
             dump_floats(dump, "scores", 1, &three, scores, err);
    return status ? -1 : 0;
}

int compare_scene(Comparison *c, const Bank *bank, Scene *scene, int exclude, int raw, StWriter *dump,
                  Error *err)
{
    Objects *o = &scene->objects;
    References refs = {0};
    if (scene->grid_h != bank->grid_h || scene->grid_w != bank->grid_w || scene->channels != bank->channels)
        return fail(err,
                    "the image's feature map is %dx%d with %d channels, the bank's are %dx%d with %d: "
                    "another aspect (see --resize)",
                    scene->grid_w, scene->grid_h, scene->channels, bank->grid_w, bank->grid_h,
                    bank->channels);
    if (scene->cls_dim != bank->cls_dim)
        return fail(err, "the image's class token has %d numbers, the bank's have %d", scene->cls_dim,
                    bank->cls_dim);
    if (comparison_new(c, bank, o->n, err))
        return -1;
    c->k = bank_retrieve(bank, bank->options.retrieval, scene->mean_patch, scene->cls, scene->features,
                         bank->options.k, exclude, c->references, err);
    int status = c->k < 0 ? -1 : references_load(&refs, bank, c->references, c->k, err);
    if (!status)
        status = dcga_describe(&bank->dcga, o->descriptors, o->pooled, scene->features, o->weights, o->n,
                               o->grid_h, o->grid_w, 1, err);
    for (int r = 0; r < c->k && !status; r++)
        if ((status = reference_features(&refs, bank, c->references[r], err)) == 0)
            status =
                match_one(&c->matchings[r], bank, scene, c->references[r], refs.features, refs.of[r], err);
    if (!status)
        measure_logical(c, bank, scene, &refs);
    if (!status)
        status = measure_structural(c, bank, scene, &refs, raw, err);
    if (!status && !raw) {
        fuse(c, bank);
        if (dump)
            status = dump_comparison(dump, c, scene, err);
    }
    references_free(&refs);
    if (status)
        comparison_free(c);
    return status;
}

void comparison_free(Comparison *c)
{
    for (int r = 0; r < c->k && c->matchings; r++)
        matching_free(&c->matchings[r]);
    free(c->references), free(c->matchings), free(c->structural), free(c->logical), free(c->map),
        free(c->claimed), free(c->unmatched), free(c->counted);
    *c = (Comparison){0};
}

/* ================================================================================================
 * Calibration: the bank compared with itself, one image left out at a time
 * ============================================================================================== */

int bank_scene(Scene *scene, const Bank *bank, int image, Error *err)
{
    size_t n_cells = bank_cells(bank), C = (size_t)bank->channels, D = (size_t)bank->cls_dim;
    int n = bank_objects(bank, image);
    *scene = (Scene){
        .grid_h = bank->grid_h, .grid_w = bank->grid_w, .channels = bank->channels, .cls_dim = bank->cls_dim};
    float *weights = aligned_array((size_t)n * n_cells + 1, sizeof(float));
    scene->features = aligned_array(n_cells * C, sizeof(float));
    scene->mean_patch = aligned_array(C, sizeof(float));
    scene->cls = aligned_array(D + 1, sizeof(float));
    int status = weights && scene->features && scene->mean_patch && scene->cls
                     ? 0
                     : fail_memory(err, "an image of the bank", n_cells * C * 4);
    if (!status) {
        bank_weights(bank, image, weights);
        bank_features(bank, image, scene->features);
        memcpy(scene->mean_patch, bank->mean_patch + (size_t)image * C, C * sizeof(float));
        memcpy(scene->cls, bank->cls + (size_t)image * D, D * sizeof(float));
        status = objects_new(&scene->objects, n, 0, bank->grid_h, bank->grid_w, bank->channels, weights,
                             scene->features, err);
    }
    free(weights);
    if (status)
        scene_free(scene);
    return status;
}

/* Are there two images that are not copies of each other? */
static int varies(const Bank *b)
{
    int i = 1;
    while (i < b->n_images && bank_same_image(b, 0, i))
        i++;
    return i < b->n_images;
}

static int calibrate_memory(Bank *b, Error *err)
{
    size_t N = (size_t)b->n_images, O = (size_t)b->first[N], C = (size_t)b->channels;
    b->n_loo = !varies(b) ? 0 : b->n_images < b->options.loo_images ? b->n_images : b->options.loo_images;
    size_t L = (size_t)b->n_loo + 1;
    b->descriptors = b->owned_descriptors = aligned_array(O * C + 1, sizeof(float));
    b->channel_std = aligned_array(C, sizeof(float));
    b->scale = aligned_array(O + 1, sizeof(float));
    b->loo_index = aligned_array(L, sizeof(int));
    b->loo_structural = aligned_array(L, sizeof(float));
    b->loo_logical = aligned_array(L, sizeof(float));
    b->loo_score = aligned_array(L, sizeof(float));
    b->loo_sorted = aligned_array(L, sizeof(float));
    b->loo_extra = aligned_array(L, sizeof(float));
    b->loo_missing = aligned_array(L, sizeof(float));
    return b->descriptors && b->channel_std && b->scale && b->loo_index && b->loo_structural &&
                   b->loo_logical && b->loo_score && b->loo_sorted && b->loo_extra && b->loo_missing
               ? 0
               : fail_memory(err, "the bank's calibration", O * C * 4);
}

/* Standard deviation of each channel over all cells of all images. */
static int channel_spread(Bank *b, Error *err)
{
    size_t C = (size_t)b->channels, n = (size_t)b->n_images * bank_cells(b);
    double *sums = calloc(2 * C, sizeof *sums);
    float *cell = aligned_array(C, sizeof *cell);
    if (!sums || !cell) {
        free(sums), free(cell);
        return fail_memory(err, "the bank's calibration", 20 * C);
    }
    for (size_t p = 0; p < n; p++) {
        f16_to_f32_row(cell, b->features + p * C, C);
        for (size_t c = 0; c < C; c++) {
            sums[c] += cell[c];
            sums[C + c] += (double)cell[c] * cell[c];
        }
    }
    for (size_t c = 0; c < C; c++) {
        double mean = sums[c] / (double)n, variance = sums[C + c] / (double)n - mean * mean;
        b->channel_std[c] = channel_unit(mean, sqrt(fmax(variance, 0)));
    }
    free(sums), free(cell);
    return 0;
}

static int describe_bank(Bank *b, const Safetensors *weights, Error *err)
{
    int status = 0;
    for (int i = 0; i < b->n_images && !status; i++) {
        Scene scene;
        if (bank_scene(&scene, b, i, err))
            return -1;
        const Objects *o = &scene.objects;
        size_t at = (size_t)b->first[i] * (size_t)b->channels;
        status = dcga_describe(&b->dcga, b->owned_descriptors + at, b->pooled + at, scene.features,
                               o->weights, o->n, o->grid_h, o->grid_w, 1, err);
        scene_free(&scene);
    }
    if (!status && !all_finite(b->owned_descriptors, (size_t)b->first[b->n_images] * (size_t)b->channels))
        status = fail(err, "%s gives descriptors that are not finite numbers",
                      weights ? st_path(weights) : "the channel graph with these settings");
    return status;
}

/* Scores of the mutual nearest pairs of image i with its k nearest others, appended to a growing array. */
static int pair_scores(const Bank *b, int i, float **scores, size_t *n, size_t *capacity, Error *err)
{
    int k = b->options.k, C = b->channels, status = 0;
    Scene scene;
    if (bank_scene(&scene, b, i, err))
        return -1;
    int *found = aligned_array((size_t)k + 1, sizeof *found);
    k = found ? bank_retrieve(b, b->options.retrieval, scene.mean_patch, scene.cls, scene.features, k, i,
                              found, err)
              : fail_memory(err, "retrieval", 4);
    const OmmSide q = bank_side(b, i);
    for (int r = 0; r < k && !status; r++) {
        const OmmSide ref = bank_side(b, found[r]);
        float *s = aligned_array((size_t)q.n * (size_t)ref.n + 1, sizeof *s);
        int(*pairs)[2] = aligned_array((size_t)q.n + 1, sizeof *pairs);
        if (*n + (size_t)q.n > *capacity) {
            *capacity = 2 * (*n + (size_t)q.n);
            float *grown = realloc(*scores, *capacity * sizeof **scores);
            *scores = grown ? grown : *scores;
            status = grown ? 0 : -1;
        }
        if (!s || !pairs || status) {
            status = fail_memory(err, "the calibration of alpha", *capacity * 4);
        } else {
            omm_scores(s, &q, &ref, C, b->options.omm.position_weight);
            int n_pairs = mutual_pairs(pairs, s, q.n, ref.n);
            for (int p = 0; p < n_pairs; p++)
                (*scores)[(*n)++] = s[(size_t)pairs[p][0] * (size_t)ref.n + (size_t)pairs[p][1]];
        }
        free(s), free(pairs);
    }
    free(found);
    scene_free(&scene);
    return k < 0 ? -1 : status;
}

/* alpha: the 0.1 % quantile of the scores of normal matches [ours]. What scores less is better left alone. */
static int calibrate_alpha(Bank *b, Error *err)
{
    float *scores = NULL;
    size_t n = 0, capacity = 0;
    int status = 0;
    b->alpha = (float)b->options.alpha;
    if (!isnan(b->options.alpha))
        return 0;
    for (int i = 0; i < b->n_images && !status; i++)
        status = pair_scores(b, i, &scores, &n, &capacity, err);
    if (n > 0)
        qsort(scores, n, sizeof *scores, compare_floats);
    b->alpha = n > 0 ? quantile_sorted(scores, (int)n, b->options.alpha_quantile) : 0;
    free(scores);
    return status;
}

typedef struct Loop {
    Bank *bank;
    const int *index; /* the images to do, or NULL: all */
    int n, raw, done, told;
    int status;
    Error *err;
    CalibrateProgress progress;
    void *user;
    int done_before, total;
} Loop;

/* First pass: an object's scale is the object-quantile (99 %) of its own leave-one-out map (-1: it was
 * compared with nothing). */
static int object_scales(Bank *b, const Comparison *c, const Scene *scene, int image, Error *err)
{
    int n_cells = (int)bank_cells(b);
    float *scratch = aligned_array((size_t)n_cells, sizeof *scratch);
    if (!scratch)
        return fail_memory(err, "the objects' scales", (unsigned long long)n_cells * 4);
    for (int i = 0; i < scene->objects.n; i++) {
        int matched = b->options.amm.register_unmatched;
        for (int r = 0; r < c->k; r++)
            matched |= c->matchings[r].match_q[i] >= 0;
        float scale = amm_object_quantile(c->structural, scene->objects.weights + (size_t)i * (size_t)n_cells,
                                          n_cells, (float)b->options.object_quantile, scratch);
        b->scale[b->first[image] + i] = matched && scale > 0 ? scale : -1;
    }
    free(scratch);
    return 0;
}

static int leave_one_out(Loop *loop, int at, Error *err)
{
    Bank *b = loop->bank;
    int image = loop->index ? loop->index[at] : at;
    Scene scene;
    Comparison c;
    if (bank_scene(&scene, b, image, err))
        return -1;
    int status = compare_scene(&c, b, &scene, image, loop->raw, NULL, err);
    if (!status) {
        if (loop->raw) {
            status = object_scales(b, &c, &scene, image, err);
        } else {
            b->loo_structural[at] = c.structural_score;
            b->loo_logical[at] = c.logical_score;
            status = explain_evidence(&b->loo_extra[at], &b->loo_missing[at], b, &c, scene.objects.n, err);
        }
        comparison_free(&c);
    }
    scene_free(&scene);
    return status;
}

/* The first failure of all threads' is the one that is told. */
static void take_failure(Loop *loop, const Error *err)
{
    int before;
#pragma omp atomic capture
    {
        before = loop->status;
        loop->status = -1;
    }
    if (before == 0)
        fail(loop->err, "%s", err->message);
}

static void tell(Loop *loop, int done)
{
    if (loop->progress && done != loop->told)
        loop->progress(loop->user, loop->done_before + done, loop->total);
    loop->told = done;
}

/* The images are independent of each other: threads take one at a time, each writes only its own places.
 * Every thread counts, the caller's tells what is new: progress is the program's, and what it locks may be
 * locked around us. */
static int run_loop(Loop *loop)
{
#pragma omp parallel for schedule(dynamic, 1)
    for (int at = 0; at < loop->n; at++) {
        Error err;
        int done;
        if (leave_one_out(loop, at, &err))
            take_failure(loop, &err);
#pragma omp atomic capture
        done = ++loop->done;
        if (tensor_thread() == 0)
            tell(loop, done);
    }
    tell(loop, loop->done);
    return loop->status;
}

/* Objects that matched nothing in their own leave-one-out get the median of the others. */
static int fill_scales(Bank *b, Error *err)
{
    int O = b->first[b->n_images], n = 0;
    float *known = aligned_array((size_t)O + 1, sizeof *known);
    if (!known)
        return fail_memory(err, "the objects' scales", (unsigned long long)O * 4);
    for (int i = 0; i < O; i++)
        if (b->scale[i] > 0)
            known[n++] = b->scale[i];
    qsort(known, (size_t)n, sizeof *known, compare_floats);
    float median = n ? quantile_sorted(known, n, 0.5) : 1;
    for (int i = 0; i < O; i++)
        if (!(b->scale[i] > 0))
            b->scale[i] = median;
    free(known);
    return 0;
}

/* Object scales make a normal image's structural score about 1; where nothing varies at all it is 0, and a
 * unit of its median would be none [ours]. */
static const float LEAST_UNIT = 1e-3f;

/* Fused scores need both spreads first. */
static int spread_scores(Bank *b, Error *err)
{
    int n = b->n_loo;
    float *sorted = aligned_array((size_t)n + 1, sizeof *sorted);
    if (!sorted)
        return fail_memory(err, "the leave-one-out scores", (unsigned long long)n * 4);
    memcpy(sorted, b->loo_structural, (size_t)n * sizeof *sorted);
    b->structural = amm_scale(sorted, n, 0);
    b->structural.delta = fmaxf(LEAST_UNIT, (float)b->options.delta_structural * fabsf(b->structural.median));
    memcpy(sorted, b->loo_logical, (size_t)n * sizeof *sorted);
    b->logical = amm_scale(sorted, n, (float)b->options.delta_logical);
    if (n == 0) /* one normal image, or copies of one: no spread is known, scores stay as they are */
        b->structural = b->logical = (AmmScale){0, 1, 0};
    for (int i = 0; i < n; i++) {
        float a = amm_z(&b->structural, b->loo_structural[i]), l = amm_z(&b->logical, b->loo_logical[i]);
        b->loo_score[i] = fused(&b->options, a, l);
    }
    bank_thresholds(b);
    free(sorted);
    return 0;
}

int calibrate(Bank *b, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err)
{
    bank_uncalibrate(b);
    if (calibrate_memory(b, err) || channel_spread(b, err) ||
        dcga_fit(&b->dcga, &b->options.dcga, b->channels, b->pooled, b->centroids, b->first, b->n_images,
                 err) ||
        (dcga_weights && dcga_learned(&b->dcga, dcga_weights, err)) || describe_bank(b, dcga_weights, err) ||
        calibrate_alpha(b, err))
        return -1;
    for (int i = 0; i < b->first[b->n_images]; i++)
        b->scale[i] = 1;
    for (int i = 0; i < b->n_loo; i++)
        b->loo_index[i] = (int)((int64_t)i * b->n_images / b->n_loo);
    Loop first = {.bank = b,
                  .n = b->n_loo ? b->n_images : 0,
                  .raw = 1,
                  .err = err,
                  .progress = progress,
                  .user = user,
                  .total = b->n_images + b->n_loo};
    if (run_loop(&first) || (b->n_loo && fill_scales(b, err)))
        return -1;
    Loop second = {.bank = b,
                   .index = b->loo_index,
                   .n = b->n_loo,
                   .err = err,
                   .progress = progress,
                   .user = user,
                   .done_before = first.done,
                   .total = first.total};
    return run_loop(&second) || spread_scores(b, err) ? -1 : 0;
}
