/* samlad.c - SAM-LAD on one page (Peng et al., arXiv 2406.00625), then the calibration of a bank. See
 * algorithm.h.
 *
 *   features   image -> ViT -> FeatUp -> f [h][w][C]                                  docs/METHOD.md 1, 3
 *   retrieve   the k nearest normal images of the bank                                docs/METHOD.md 2
 *   segment    image -> Segment Anything's masks -> objects on the grid               docs/METHOD.md 4
 *   describe   objects -> descriptors (DCGA)                                          docs/METHOD.md 5
 *   match      descriptors -> matches with each reference (OMM), verified, counted    docs/METHOD.md 6
 *   layout     objects -> how unusual the layout of each is beside its like           docs/METHOD.md 6
 *   measure    matches -> structural and logical maps and scores (AMM)                docs/METHOD.md 7
 *   fuse       both as z of the bank's own leave-one-out scores -> one score          docs/METHOD.md 7. */
#include "algorithm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bank/dump.h"
#include "bank/pass.h"
#include "io/fail.h"

/* The steps. Each returns 0, or -1 after a sentence in err. dump receives the intermediate tensors; NULL:
 * none. */
static int features(Scene *scene, Networks *n, const Options *o, const Picture *picture, StWriter *dump,
                    Error *err);
static int retrieve(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err);
static int segment(Scene *scene, Networks *n, const Options *o, const Picture *picture, StWriter *dump,
                   Error *err);
static int open_comparison(Detection *d, const Bank *bank, const Scene *scene, Error *err);
static int describe(Detection *d, const Bank *bank, Error *err);
static int match(Detection *d, const Bank *bank, Error *err);
static int layout(Detection *d, const Bank *bank, int exclude, Error *err);
static int measure(Detection *d, const Bank *bank, Error *err);
static void fuse(Detection *d, const Bank *bank);

int detect(Detection *d, Scene *scene, Networks *networks, const Bank *bank, const Picture *picture,
           StWriter *dump, Error *err)
{
    const Options *o = &bank->options;
    *d = (Detection){0}, *scene = (Scene){0};
    if (features(scene, networks, o, picture, dump, err) || /* docs/METHOD.md 1, 3 */
        retrieve(d, bank, scene, -1, err) ||                /* docs/METHOD.md 2 */
        segment(scene, networks, o, picture, dump, err) ||  /* docs/METHOD.md 4 */
        open_comparison(d, bank, scene, err) ||             /* the objects of both sides, and buffers */
        describe(d, bank, err) ||                           /* docs/METHOD.md 5 */
        match(d, bank, err) ||                              /* docs/METHOD.md 6 */
        layout(d, bank, -1, err) ||                         /* docs/METHOD.md 6 */
        measure(d, bank, err))                              /* docs/METHOD.md 7 */
        return -1;
    fuse(d, bank); /* docs/METHOD.md 7 */
    return 0;
}

/* From a scene to its matches. Detection in a stored scene and both passes of calibration begin so. `exclude`
 * may not be a reference, nor may its copies. */
static int compare(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err)
{
    *d = (Detection){0};
    return retrieve(d, bank, scene, exclude, err) || open_comparison(d, bank, scene, err) ||
                   describe(d, bank, err) || match(d, bank, err)
               ? -1
               : 0;
}

int detect_in_scene(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err)
{
    if (compare(d, bank, scene, exclude, err) || layout(d, bank, exclude, err) || measure(d, bank, err))
        return -1;
    fuse(d, bank);
    return 0;
}

/* An image as a scene: a bank is built from scenes, and a long run keeps them. */
int scene_analyse(Scene *scene, Networks *networks, const Options *options, const Picture *picture,
                  Error *err)
{
    *scene = (Scene){0};
    if (features(scene, networks, options, picture, NULL, err) || /* docs/METHOD.md 1, 3 */
        segment(scene, networks, options, picture, NULL, err)) {  /* docs/METHOD.md 4 */
        scene_free(scene);
        return -1;
    }
    return 0;
}

/* ================================================================================================
 * The steps that make a scene of an image
 * ============================================================================================== */

static int at_least_one(double x)
{
    int i = (int)floor(x + 0.5);
    return i > 1 ? i : 1;
}

/* FeatUp's stages of ×2; without FeatUp the features are enlarged as much. */
static int enlargement_stages(const Options *o)
{
    return o->featup_stages > 0 ? o->featup_stages : 3; /* [secondary: 8] */
}

FeatureSizes feature_sizes(const Options *o, int patch, int height, int width)
{
    const double longer = height > width ? height : width;
    const double aspect_h = o->resize == RESIZE_FIT ? height / longer : 1,
                 aspect_w = o->resize == RESIZE_FIT ? width / longer : 1;
    FeatureSizes s;
    s.patch_h = at_least_one(o->size * aspect_h / patch);
    s.patch_w = at_least_one(o->size * aspect_w / patch);
    s.in_h = s.patch_h * patch;
    s.in_w = s.patch_w * patch;
    s.up_h = s.patch_h << enlargement_stages(o);
    s.up_w = s.patch_w << enlargement_stages(o);
    const double cells =
        o->grid > 0 ? (double)o->grid / (s.in_h > s.in_w ? s.in_h : s.in_w) : 0.25; /* [ours] */
    s.grid_h = at_least_one(s.in_h * cells);
    s.grid_w = at_least_one(s.in_w * cells);
    return s;
}

/* Allocate the activations for images of this size. */
static int fit_vit_state(Networks *n, const FeatureSizes *s, Error *err)
{
    const int side = s->patch_h > s->patch_w ? s->patch_h : s->patch_w;
    if (n->vit_state && n->vit_state_grid >= side)
        return 0;
    vit_state_free(n->vit_state);
    n->vit_state = vit_state_new(n->vit, side, side, err);
    n->vit_state_grid = n->vit_state ? side : 0;
    return n->vit_state ? 0 : -1;
}

/* pixels [3][in_h][in_w] -> patches [patch_h*patch_w][C], the scene's mean patch and class token
 * [paper: pre-trained backbone]. */
static int patch_features(Scene *scene, const Networks *n, int layer, const VitImage *image, float *patches,
                          StWriter *dump, Error *err)
{
    const VitConfig *vit = vit_config(n->vit);
    const int patch = vit->patch_size, n_patches = image->h / patch * (image->w / patch);
    DumpTap tap = {dump, err, 0};
    if (vit_forward(n->vit, n->vit_state, image, layer, scene->cls, patches, dump ? dump_tap : NULL, &tap,
                    err))
        return -1;
    retrieval_mean(scene->mean_patch, patches, n_patches, vit->dim);
    l2_normalise(scene->cls, 1, vit->dim, 1e-12f);
    return tap.status || dump_floats(dump, "query.pixels", 3, (int64_t[]){3, image->h, image->w},
                                     image->pixels, err)
               ? -1
               : 0;
}

static const Featup *featup_of(const Networks *n, const Options *o)
{
    return o->featup_stages > 0 ? n->featup : NULL; /* NULL: bilinear (ablation) */
}

typedef struct FeatureWork {
    float *pixels;  /* [3][in_h][in_w] */
    float *patches; /* [patch_h*patch_w][C] */
    float *view;    /* [3][in_h][in_w] the second view's pixels. */
    float *grid;    /* [grid_h*grid_w][C] the second view's features. */
} FeatureWork;

static void layout_features(FeatureWork *work, Arena *arena, const FeatureSizes *s, size_t channels,
                            int n_views)
{
    work->pixels = arena_floats(arena, (size_t)3 * s->in_h * s->in_w);
    work->patches = arena_floats(arena, channels * s->patch_h * s->patch_w);
    work->view = n_views > 1 ? arena_floats(arena, (size_t)3 * s->in_h * s->in_w) : NULL;
    work->grid = n_views > 1 ? arena_floats(arena, channels * s->grid_h * s->grid_w) : NULL;
}

/* Half a patch must be whole pixels, so patches of an odd size have one view. */
static int n_views(const Networks *n, const Options *o)
{
    return vit_config(n->vit)->patch_size % 2 ? 1 : o->views;
}

/* view [3][h][w] = the image, moved up and left by `by`. Beyond the border it is mirrored. */
static void displace(float *view, const VitImage *image, int by)
{
    const size_t w = image->w, n = image->h * w;
    for (int channel = 0; channel < 3; channel++)
        for (int y = 0; y < image->h; y++) {
            const float *row = image->pixels + channel * n + featup_reflect(y + by, image->h) * w;
            for (int x = 0; x < image->w; x++)
                *view++ = row[featup_reflect(x + by, image->w)];
        }
}

/* The network sees the image again, half a patch away. What the patches' borders cut in one view often lies
 * whole in the other. The features are the mean of both [ours]. */
static int second_view(Scene *scene, const Networks *n, const Options *o, const FeatureWork *work,
                       const FeatupInput *first, Error *err)
{
    const Objects *grid = &scene->objects;
    const VitImage image = {work->pixels, first->guidance_h, first->guidance_w},
                   view = {work->view, image.h, image.w};
    const int half_patch = (1 << enlargement_stages(o)) / 2; /* in upsampled cells. */
    FeatupInput second = *first;
    second.guidance = work->view;
    displace(work->view, &image, vit_config(n->vit)->patch_size / 2);
    if (vit_forward(n->vit, n->vit_state, &view, o->layer, NULL, work->patches, NULL, NULL, err) ||
        features_to_grid(work->grid, (GridSize){grid->grid_h, grid->grid_w}, featup_of(n, o), &second,
                         enlargement_stages(o), half_patch, err))
        return -1;
    for (ptrdiff_t i = 0; i < grid_cells(grid) * grid->channels; i++)
        scene->features[i] = 0.5f * (scene->features[i] + work->grid[i]);
    return 0;
}

/* patches, upsampled -> the scene's features on the grid [secondary: FeatUp]. */
static int grid_features(Scene *scene, const Networks *n, const Options *o, const FeatureWork *work,
                         const FeatupInput *in, StWriter *dump, Error *err)
{
    const Objects *grid = &scene->objects;
    const Featup *featup = featup_of(n, o);
    if (features_to_grid(scene->features, (GridSize){grid->grid_h, grid->grid_w}, featup, in,
                         enlargement_stages(o), 0, err) ||
        (n_views(n, o) == 2 && second_view(scene, n, o, work, in, err)) ||
        dump_floats(dump, "featup.features", 3, (int64_t[]){grid->grid_h, grid->grid_w, grid->channels},
                    scene->features, err))
        return -1;
    return all_finite(scene->features, grid_cells(grid) * grid->channels)
               ? 0
               : fail(err, "%s%s%s: these weights give features that are not finite numbers",
                      st_path(n->vit_file), featup ? " with " : "", featup ? st_path(n->featup_file) : "");
}

/* Patch tokens of the ViT, upsampled, on the grid. */
static int features(Scene *scene, Networks *n, const Options *o, const Picture *picture, StWriter *dump,
                    Error *err)
{
    const VitConfig *vit = vit_config(n->vit);
    const FeatureSizes s = feature_sizes(o, vit->patch_size, picture->height, picture->width);
    if (o->layer < 1 || o->layer > vit->depth)
        return fail(err, "option layer: %d is not one of the backbone's blocks 1 to %d", o->layer,
                    vit->depth);
    if (scene_new_features(scene, s.grid_h, s.grid_w, vit->dim, err) || fit_vit_state(n, &s, err))
        return -1;
    Arena arena = {0};
    FeatureWork work;
    layout_features(&work, &arena, &s, vit->dim, n_views(n, o));
    if (arena_allocate(&arena))
        return fail_memory(err, "features", arena.size);
    layout_features(&work, &arena, &s, vit->dim, n_views(n, o));
    const VitImage image = {work.pixels, s.in_h, s.in_w};
    const FeatupInput low = {work.patches, s.patch_h, s.patch_w, vit->dim, work.pixels, s.in_h, s.in_w};
    const int status = vit_preprocess(vit, work.pixels, s.in_h, s.in_w, picture, err) ||
                       patch_features(scene, n, o->layer, &image, work.patches, dump, err) ||
                       grid_features(scene, n, o, &work, &low, dump, err);
    free(arena.base);
    return status ? -1 : 0;
}

static int objects_of_masks(Scene *scene, const AmgMasks *masks, const Options *o, Error *err)
{
    Rle *rles = aligned_array(masks->n, sizeof *rles);
    if (!rles)
        return fail_memory(err, "the objects of an image", masks->n * sizeof *rles);
    for (size_t i = 0; i < masks->n; i++)
        rles[i] = masks->masks[i].segmentation;
    const int status = masks_to_objects(&scene->objects, scene->labels, rles, (int)masks->n, scene->height,
                                        scene->width, &o->objects, err);
    free(rles);
    return status;
}

/* Segment Anything's automatic masks [paper], as objects on the features' grid. */
static int segment(Scene *scene, Networks *n, const Options *o, const Picture *picture, StWriter *dump,
                   Error *err)
{
    const int h = picture->height, w = picture->width;
    const size_t n_pixels = (size_t)h * w;
    AmgMasks masks = {0};
    scene->height = h, scene->width = w;
    scene->labels = calloc(n_pixels, sizeof *scene->labels);
    if (!scene->labels)
        return fail_memory(err, "the objects of an image", n_pixels * sizeof *scene->labels);
    if (o->no_objects)
        return whole_image_object(&scene->objects, err) || dump_objects(dump, &scene->objects, err) ? -1 : 0;
    if (!n->sam)
        return fail(err, "no Segment Anything weights: give --sam, or --no-objects 1 to do without objects");
    if (amg_generate(n->sam, n->sam_state, &masks, &o->amg, picture, NULL, NULL, err))
        return -1;
    const int status = objects_of_masks(scene, &masks, o, err) ||
                       (dump && (dump_masks(dump, &masks, h, w, err) ||
                                 dump_sam(dump, n->sam, n->sam_state, picture, err))) ||
                       dump_objects(dump, &scene->objects, err);
    amg_masks_free(&masks);
    return status ? -1 : 0;
}

/* ================================================================================================
 * The steps that compare a scene with the bank
 * ============================================================================================== */

/* The references, nearest first [paper: nearest neighbour search]. */
static int retrieve(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err)
{
    const int k = bank->options.k < bank->n_images ? bank->options.k : bank->n_images;
    if (bank_check_shape(bank, scene, err))
        return -1;
    d->references = aligned_array(k, sizeof *d->references);
    if (!d->references)
        return fail_memory(err, "retrieval", k * sizeof *d->references);
    d->k = bank_retrieve(bank, scene, k, exclude, d->references, err);
    return d->k < 0 ? -1 : 0;
}

/* The buffers of all later steps, for n objects of the scene and n_r of all references. */
static void layout_detection(Detection *d, const Bank *bank, size_t n, size_t n_r, Arena *arena)
{
    const size_t n_cells = bank_cells(bank), C = bank->channels, k = d->k;
    d->comparison.references = arena_take(arena, k * sizeof *d->comparison.references);
    d->comparison.matchings = arena_take(arena, k * sizeof *d->comparison.matchings);
    d->descriptors = arena_floats(arena, n * C);
    d->places = arena_take(arena, n * k * sizeof *d->places);
    d->claimed = arena_floats(arena, n * n_cells);
    d->structural = arena_floats(arena, n_cells);
    d->nearest = arena_floats(arena, n_cells);
    d->logical = arena_floats(arena, n_cells);
    d->map = arena_floats(arena, n_cells);
    d->unmatched = arena_floats(arena, n);
    d->counted = arena_floats(arena, n);
    d->unusual = arena_floats(arena, n);
    d->reference_coverage = arena_floats(arena, n_r * n_cells);
    d->features = arena_floats(arena, n_cells * C);
    d->inverse_std = arena_floats(arena, C);
    d->scratch = arena_floats(arena, n_cells);
}

/* Put the scene's objects and those of the references together. */
static int open_comparison(Detection *d, const Bank *bank, const Scene *scene, Error *err)
{
    Comparison *c = &d->comparison;
    const size_t n = scene->objects.n;
    size_t n_r = 0;
    for (int r = 0; r < d->k; r++)
        n_r += bank_object_count(bank, d->references[r]);
    layout_detection(d, bank, n, n_r, &d->memory);
    if (arena_allocate(&d->memory))
        return fail_memory(err, "a detection", d->memory.size);
    layout_detection(d, bank, n, n_r, &d->memory);
    c->query = scene->objects;
    float *coverage = d->reference_coverage;
    for (c->k = 0; c->k < d->k; c->k++) {
        c->references[c->k] = bank_objects(bank, d->references[c->k], coverage);
        c->matchings[c->k] = (Matching){0};
        coverage += c->references[c->k].n * bank_cells(bank);
    }
    return 0;
}

/* Describe the scene's objects. The references' descriptors are in the bank. */
static int describe(Detection *d, const Bank *bank, Error *err)
{
    if (dcga_describe(&bank->dcga, d->descriptors, &d->comparison.query, err))
        return -1;
    d->comparison.query.descriptors = d->descriptors;
    return 0;
}

/* Match the objects with each reference's, verify the unmatched ones, and count them. */
static int match(Detection *d, const Bank *bank, Error *err)
{
    const OmmOptions *o = &bank->options.omm;
    const Objects *query = &d->comparison.query;
    for (int r = 0; r < d->k; r++) {
        Matching *m = &d->comparison.matchings[r];
        Objects reference = d->comparison.references[r];
        if (bank_with_features(&reference, bank, d->references[r], d->features, err) ||
            omm_match(m, query, &reference, bank->alpha, o, err))
            return -1;
        if (bank->options.no_objects && m->n_q == 1 && m->n_r == 1)
            omm_match_whole(m);
        else if (o->verify &&
                 (omm_verify(m->unmatched_q, query, &reference, &bank->dcga, bank->alpha, o, err) ||
                  omm_verify(m->unmatched_r, &reference, query, &bank->dcga, bank->alpha, o, err)))
            return -1;
        if (omm_count(m, query, &reference, bank->alpha, o, err))
            return -1;
    }
    return 0;
}

/* How unusual the layout of each object is; R, the layout's score, is the largest. */
static int layout(Detection *d, const Bank *bank, int exclude, Error *err)
{
    if (bank_unusual(d->unusual, bank, &d->comparison.query, exclude, err))
        return -1;
    d->layout_score = 0;
    for (int i = 0; i < d->comparison.query.n; i++)
        d->layout_score = fmaxf(d->layout_score, d->unusual[i]);
    return 0;
}

/* The structural map before the division by the objects' units. Every channel is measured in its standard
 * deviation over the bank. */
static int measure_distances(Detection *d, const Bank *bank, Error *err)
{
    const AmmOptions *o = &bank->options.amm;
    const Comparison *c = &d->comparison;
    for (int i = 0; i < bank->channels; i++)
        d->inverse_std[i] = 1 / bank->channel_std[i];
    amm_places(d->places, c, d->inverse_std, o);
    if (o->claims && amm_claims(d->claimed, c, d->places, err))
        return -1;
    if (!o->claims)
        memcpy(d->claimed, c->query.coverage, c->query.n * bank_cells(bank) * sizeof *d->claimed);
    const AmmInput input = {c, d->inverse_std, d->places, d->claimed, o->epsilon};
    if (amm_structural(d->structural, &input, err))
        return -1;
    if (o->blur > 0)
        gaussian_blur(d->structural, d->structural, bank->grid_h, bank->grid_w, 1, o->blur, d->scratch);
    return 0;
}

/* Add the map of nearest features, in its unit. Without a unit there is no such map: the option's weight is
 * 0, or the bank has one image, or its images do not differ. */
static int add_nearest(Detection *d, const Bank *bank, Error *err)
{
    memset(d->nearest, 0, bank_cells(bank) * sizeof *d->nearest);
    if (bank->nearest_unit == 0)
        return 0;
    if (amm_nearest(d->nearest, &d->comparison, err))
        return -1;
    const float factor = bank->options.amm.nearest_weight / bank->nearest_unit;
    for (size_t p = 0; p < bank_cells(bank); p++)
        d->structural[p] += factor * d->nearest[p];
    return 0;
}

/* Both maps and scores, A and L. */
static int measure(Detection *d, const Bank *bank, Error *err)
{
    if (measure_distances(d, bank, err) || amm_in_units(d->structural, &d->comparison, d->claimed, err) ||
        add_nearest(d, bank, err))
        return -1;
    d->structural_score =
        amm_score(d->structural, bank->grid_h, bank->grid_w, bank->options.amm.score, d->scratch);
    d->logical_score = amm_logical(d->logical, d->unmatched, d->counted, &d->comparison);
    return 0;
}

/* z of a value of L, or of the logical map, beside the bank's own L. */
static float matching_z(const Bank *bank, float score)
{
    return amm_logical_z(bank->loo_logical, bank->n_loo, (float)bank->options.delta_logical, score);
}

/* z of R, with its weight. 0 without rasters. Few neighbours tell little about their covariance, and again little
 * about what is usual: so the share counts twice. The width smooths over the few images of a bank [ours]. */
static float layout_z(const Bank *bank, float score)
{
    const float width = 0.2f, share = (float)raster_share(raster_n_neighbours(bank->n_images - 1));
    return bank->raster.dim == 0 ? 0
                                 : bank->options.raster_weight * share * share *
                                       amm_rank_z(bank->loo_raster, bank->n_loo, width, score);
}

/* The fused score. The map is the pointwise maximum of the two z-maps [ours]. */
static void fuse(Detection *d, const Bank *bank)
{
    const Only only = bank->options.only;
    d->structural_z = amm_z(&bank->structural, d->structural_score);
    d->layout_z = layout_z(bank, d->layout_score);
    d->logical_z = matching_z(bank, d->logical_score) + d->layout_z;
    d->score = amm_fuse(d->structural_z, d->logical_z, only);
    for (size_t p = 0; p < bank_cells(bank); p++) {
        const float a = amm_z(&bank->structural, d->structural[p]), l = matching_z(bank, d->logical[p]);
        d->map[p] = only == ONLY_STRUCTURAL ? a : only == ONLY_LOGICAL ? l : fmaxf(a, l);
    }
}

void detection_free(Detection *d)
{
    for (int r = 0; r < d->comparison.k; r++)
        matching_free(&d->comparison.matchings[r]);
    free(d->references), free(d->memory.base);
    *d = (Detection){0};
}

/* ================================================================================================
 * Calibration: the bank's statistics of its own images (docs/METHOD.md 7)
 * ============================================================================================== */

/* The statistics of the channel graph, and the learned graphs if there are any. */
static int fit_descriptors(Bank *b, Safetensors *weights, Error *err)
{
    Objects *images = bank_all_objects(b, err);
    const int status = !images || dcga_fit(&b->dcga, &b->options.dcga, images, b->n_images, err) ||
                       (weights && dcga_learned(&b->dcga, weights, err));
    free(images);
    return status ? -1 : 0;
}

/* Descriptors of all objects, from the pooled features before the bank rounded them. */
static int describe_bank(Bank *b, const Safetensors *weights, Error *err)
{
    for (int i = 0; i < b->n_images; i++) {
        const size_t at = (size_t)b->first[i] * b->channels;
        Scene scene;
        if (bank_scene(&scene, b, i, err))
            return -1;
        Objects described = scene.objects;
        described.pooled = b->pooled + at;
        const int status = dcga_describe(&b->dcga, b->owned_descriptors + at, &described, err);
        scene_free(&scene);
        if (status)
            return -1;
    }
    return all_finite(b->owned_descriptors, (size_t)b->first[b->n_images] * b->channels)
               ? 0
               : fail(err, "%s gives descriptors that are not finite numbers",
                      weights ? st_path(weights) : "the channel graph with these settings");
}

/* Append the scores of the mutual nearest pairs of image i with its k nearest others. found [k] is
 * scratch. */
static int pair_scores(float *scores, size_t *n, const Bank *b, int i, int k, int *found, Error *err)
{
    Scene scene;
    if (bank_scene(&scene, b, i, err))
        return -1;
    k = bank_retrieve(b, &scene, k, i, found, err);
    scene_free(&scene);
    const Objects mine = bank_objects(b, i, NULL);
    for (int r = 0; r < k; r++) {
        const Objects other = bank_objects(b, found[r], NULL);
        const int n_pairs = omm_pair_scores(scores + *n, &mine, &other, &b->options.omm, err);
        if (n_pairs < 0)
            return -1;
        *n += n_pairs;
    }
    return k < 0 ? -1 : 0;
}

/* alpha from the pairs of all images, or the option's value. */
static int calibrate_alpha(Bank *b, Error *err)
{
    const int k = b->options.k < b->n_images ? b->options.k : b->n_images;
    const size_t most = (size_t)b->first[b->n_images] * k;
    b->alpha = (float)b->options.alpha;
    if (!isnan(b->options.alpha))
        return 0;
    float *scores = aligned_array(most, sizeof *scores);
    int *found = aligned_array(k, sizeof *found), status = 0;
    size_t n = 0;
    if (!scores || !found)
        status = fail_memory(err, "the calibration of alpha", most * sizeof *scores);
    for (int i = 0; i < b->n_images && !status; i++)
        status = pair_scores(scores, &n, b, i, k, found, err);
    if (!status)
        b->alpha = omm_alpha(scores, n, b->options.alpha_quantile);
    free(scores), free(found);
    return status;
}

/* An object's unit is the object-quantile (99 %) of its own leave-one-out map [ours]. -1: it was compared
 * with no object. */
static int measure_units(float *units, Detection *d, const Bank *bank, Error *err)
{
    const Options *o = &bank->options;
    const Comparison *c = &d->comparison;
    const ptrdiff_t n_cells = grid_cells(&c->query);
    if (measure_distances(d, bank, err))
        return -1;
    for (int i = 0; i < c->query.n; i++) {
        int compared = o->amm.register_unmatched;
        for (int r = 0; r < c->k; r++)
            compared |= c->matchings[r].match_q[i] >= 0;
        const float unit = amm_object_quantile(d->structural, c->query.coverage + i * n_cells, n_cells,
                                               o->object_quantile, d->scratch);
        units[i] = compared && unit > 0 ? unit : -1;
    }
    return 0;
}

/* How far the nearest features are in a normal image, left out [ours]: as the baseline position-nn scores. */
static int measure_nearest(float *score, Detection *d, const Bank *bank, Error *err)
{
    const int n_cells = bank->grid_h * bank->grid_w;
    if (amm_nearest(d->nearest, &d->comparison, err))
        return -1;
    memcpy(d->scratch, d->nearest, n_cells * sizeof *d->scratch);
    *score = amm_largest_percent(d->scratch, n_cells);
    return 0;
}

/* Which units the first pass has to find. Without the option's value the objects' units stay 1. */
static int uses_objects_units(const Options *o)
{
    return o->object_quantile > 0;
}

static int uses_nearest(const Options *o)
{
    return o->amm.nearest_weight > 0;
}

/* The first pass: an image against the others, up to both structural maps before their units. */
static int first_pass(void *context, int image, Error *err)
{
    Bank *b = context;
    Scene scene;
    Detection d = {0};
    const int status =
        bank_scene(&scene, b, image, err) || compare(&d, b, &scene, image, err) ||
        (uses_objects_units(&b->options) && measure_units(b->units + b->first[image], &d, b, err)) ||
        (uses_nearest(&b->options) && measure_nearest(&b->nearest[image], &d, b, err));
    detection_free(&d), scene_free(&scene);
    return status ? -1 : 0;
}

/* The second pass: leave-one-out scores with these units, and the evidence for verdicts. */
static int second_pass(void *context, int at, Error *err)
{
    Bank *b = context;
    const VerdictOptions verdicts = bank_verdicts(b);
    const int image = b->loo_index[at];
    Scene scene;
    Detection d = {0};
    const int status =
        bank_scene(&scene, b, image, err) || compare(&d, b, &scene, image, err) || measure(&d, b, err) ||
        verdict_evidence(&b->loo_extra[at], &b->loo_missing[at], &d.comparison, d.counted, &verdicts, err);
    b->loo_structural[at] = d.structural_score;
    b->loo_logical[at] = d.logical_score;
    detection_free(&d), scene_free(&scene);
    return status ? -1 : 0;
}

/* Objects that matched nothing in their own leave-one-out get the median unit of the others. */
static int fill_units(Bank *b, Error *err)
{
    const int n_objects = b->first[b->n_images];
    float *known = aligned_array(n_objects, sizeof *known);
    size_t n = 0;
    if (!known)
        return fail_memory(err, "the objects' units", n_objects * sizeof *known);
    for (int i = 0; i < n_objects; i++)
        if (b->units[i] > 0)
            known[n++] = b->units[i];
    qsort(known, n, sizeof *known, compare_floats);
    const float median = n ? quantile_sorted(known, n, 0.5) : 1;
    for (int i = 0; i < n_objects; i++)
        if (!(b->units[i] > 0))
            b->units[i] = median;
    free(known);
    return 0;
}

/* The unit of the nearest features is the median of the images' scores [ours]. */
static int settle_units(Bank *b, Error *err)
{
    if (uses_nearest(&b->options)) {
        qsort(b->nearest, b->n_images, sizeof *b->nearest, compare_floats);
        b->nearest_unit = quantile_sorted(b->nearest, b->n_images, 0.5);
    }
    return uses_objects_units(&b->options) ? fill_units(b, err) : 0;
}

/* In the objects' units a normal image's structural score is 1 to 2. Without any variation the median is 0, and
 * so would be a delta relative to it [ours]. */
static const float LEAST_DELTA = 1e-3f;

/* Spread of the structural scores, then the fused scores. */
static int spread_scores(Bank *b, Error *err)
{
    const int n = b->n_loo;
    float *sorted = aligned_array(n, sizeof *sorted);
    if (!sorted)
        return fail_memory(err, "the leave-one-out scores", n * sizeof *sorted);
    memcpy(sorted, b->loo_structural, n * sizeof *sorted);
    b->structural = amm_spread(sorted, n, 0);
    b->structural.delta =
        fmaxf(LEAST_DELTA, (float)b->options.delta_structural * fabsf(b->structural.median));
    if (n == 0) /* one normal image, or copies of one: no spread is known, scores stay unchanged. */
        b->structural = (Spread){0, 1, 0};
    for (int i = 0; i < n; i++)
        b->loo_score[i] =
            amm_fuse(amm_z(&b->structural, b->loo_structural[i]),
                     matching_z(b, b->loo_logical[i]) + layout_z(b, b->loo_raster[i]), b->options.only);
    bank_thresholds(b);
    free(sorted);
    return 0;
}

int calibrate(Bank *b, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err)
{
    /* The statistics that describe and match objects. */
    if (bank_begin_calibration(b, err) || bank_channel_std(b, err) || fit_descriptors(b, dcga_weights, err) ||
        describe_bank(b, dcga_weights, err) || calibrate_alpha(b, err) || bank_fit_rasters(b, err))
        return -1;

    /* First pass: every image against the others, for the units of its objects and of the nearest
     * features. */
    const int has_units = uses_objects_units(&b->options) || uses_nearest(&b->options);
    const int n_first = b->n_loo && has_units ? b->n_images : 0, total = n_first + b->n_loo;
    const Pass first = {n_first, first_pass, b, progress, user, 0, total};
    if (run_pass(&first, err) || (n_first && settle_units(b, err)))
        return -1;

    /* Second pass: the scores of some images, then spreads and thresholds from these scores. */
    const Pass second = {b->n_loo, second_pass, b, progress, user, n_first, total};
    return run_pass(&second, err) || spread_scores(b, err) ? -1 : 0;
}
