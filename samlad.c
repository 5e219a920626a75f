/* samlad.c - the library's face: models, bank, detection, reasons. See samlad.h.
 *
 * The algorithm in reading order: scene.c (features and objects of an image), bank.c (the normal images),
 * dcga.c (descriptors), omm.c (matches), amm.c (maps and scores), and compare.c, which calls them in the
 * paper's order. */
#include "samlad.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "io/image.h"
#include "tensor.h"

struct Samlad {
    Models models;
    Options options;
    WeightsId vit, sam, featup, dcga;
    Bank bank;
    int has_bank;
    int shared; /* 1: the bank belongs to another handle */
};

/* ================================================================================================
 * Opening
 * ============================================================================================== */

static void identify(WeightsId *id, const Safetensors *file)
{
    if (!file)
        return;
    const char *path = st_path(file), *slash = strrchr(path, '/');
    snprintf(id->name, sizeof id->name, "%s", slash ? slash + 1 : path);
    st_sha256(file, id->sha256);
}

Samlad *samlad_open(const SamladWeights *weights, Error *err)
{
    Samlad *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "samlad", sizeof *s);
        return NULL;
    }
    options_default(&s->options);
    if (!weights->vit) {
        fail(err, "no backbone is given");
        free(s);
        return NULL;
    }
    if (models_open(&s->models, weights->vit, weights->sam, weights->featup, weights->dcga, err) ||
        models_recommend(&s->models, &s->options, err)) {
        samlad_close(s);
        return NULL;
    }
    identify(&s->vit, s->models.vit_file);
    identify(&s->sam, s->models.sam_file);
    identify(&s->featup, s->models.featup_file);
    identify(&s->dcga, s->models.dcga_file);
    return s;
}

void samlad_close(Samlad *s)
{
    if (!s)
        return;
    if (!s->shared)
        bank_free(&s->bank);
    models_close(&s->models);
    free(s);
}

Samlad *samlad_share(const Samlad *s, Error *err)
{
    Samlad *copy = calloc(1, sizeof *copy);
    if (!copy) {
        fail_memory(err, "samlad", sizeof *copy);
        return NULL;
    }
    *copy = *s;
    copy->shared = 1;
    if (models_share(&copy->models, &s->models, err)) {
        samlad_close(copy);
        return NULL;
    }
    return copy;
}

int samlad_images_at_once(const Samlad *s)
{
    const size_t budget = (size_t)512 << 20;
    size_t one = models_state_bytes(&s->models) + 1;
    int threads = tensor_max_threads();
    return (size_t)threads <= budget / one ? threads : 1;
}

int samlad_set(Samlad *s, const char *name, const char *value, Error *err)
{
    const OptionSpec *spec = option_find(name);
    if (!spec)
        return fail(err, "there is no option %s", name);
    return option_set(&s->options, spec, value, name, err) || models_complete(&s->models, &s->options, err)
               ? -1
               : 0;
}

/* ================================================================================================
 * The bank
 * ============================================================================================== */

typedef struct Forward {
    SamladProgress progress;
    void *user;
} Forward;

static void forward_progress(void *user, int done, int total)
{
    Forward *f = user;
    if (f->progress)
        f->progress(f->user, "calibrating", done, total);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* One image of a batch: read and analysed by one thread, then added to the bank in the order of the list. */
typedef struct Normal {
    Scene scene;
    int status;
    Error err;
} Normal;

static void analyse_file(Normal *normal, Samlad *s, const char *path)
{
    int width, height;
    normal->status = -1;
    uint8_t *rgb = image_read_rgb8(path, &width, &height, &normal->err);
    if (rgb)
        normal->status =
            scene_analyse(&normal->scene, &s->models, &s->options, rgb, height, width, NULL, &normal->err);
    free(rgb);
}

/* Take a batch's images over in order; the first that failed ends it. Frees the scenes. */
static int add_batch(BankBuilder *builder, Normal *batch, const char *const *paths, int n, Error *err)
{
    int status = 0;
    for (int i = 0; i < n; i++) {
        Scene *scene = &batch[i].scene;
        if (batch[i].status) {
            status = status ? status : fail(err, "%s", batch[i].err.message);
            continue;
        }
        BankEntry entry = {base_name(paths[i]), scene->grid_h,  scene->grid_w,
                           scene->channels,     scene->cls_dim, scene->features,
                           scene->mean_patch,   scene->cls,     &scene->objects};
        status = status ? status : bank_builder_add(builder, &entry, err);
        scene_free(scene);
    }
    return status;
}

/* Analyse all images, as many at once as pay. */
static int add_images(Samlad *s, BankBuilder *builder, const char *const *paths, int n,
                      SamladProgress progress, void *user, Error *err)
{
    int at_once = samlad_images_at_once(s), status = 0, n_shares = 0;
    Samlad **shares = calloc((size_t)at_once, sizeof(*shares));
    Normal *batch = calloc((size_t)at_once, sizeof *batch);
    if (!shares || !batch)
        status = fail_memory(err, "a batch of images", (unsigned long long)at_once * sizeof *batch);
    for (; n_shares < at_once && !status; n_shares++)
        if (!(shares[n_shares] = samlad_share(s, err)))
            status = -1;
    for (int base = 0; base < n && !status; base += at_once) {
        int m = n - base < at_once ? n - base : at_once;
#pragma omp parallel for schedule(static, 1) if (m > 1)
        for (int i = 0; i < m; i++)
            analyse_file(&batch[i], shares[i], paths[base + i]);
        status = add_batch(builder, batch, paths + base, m, err);
        if (!status && progress)
            progress(user, "normal images", base + m, n);
    }
    for (int i = 0; shares && i < n_shares; i++)
        samlad_close(shares[i]);
    free(shares), free(batch);
    return status;
}

static int finish_bank(Samlad *s, SamladProgress progress, void *user, Error *err)
{
    s->bank.options = s->options;
    s->bank.dcga_weights = s->dcga;
    Forward forward = {progress, user};
    int status = calibrate(&s->bank, s->models.dcga_file, forward_progress, &forward, err);
    s->has_bank = status == 0;
    if (status)
        bank_free(&s->bank);
    return status;
}

int samlad_bank_build(Samlad *s, const char *const *paths, int n, SamladProgress progress, void *user,
                      Error *err)
{
    BankBuilder *builder = bank_builder_new(err);
    bank_free(&s->bank);
    s->has_bank = 0;
    int status = builder ? add_images(s, builder, paths, n, progress, user, err) : -1;
    if (status) {
        bank_builder_free(builder);
        return -1;
    }
    if (bank_builder_finish(builder, &s->bank, err))
        return -1;
    s->bank.vit = s->vit;
    s->bank.sam = s->options.no_objects ? (WeightsId){0} : s->sam;
    s->bank.featup = s->featup;
    return finish_bank(s, progress, user, err);
}

int samlad_bank_save(const Samlad *s, const char *path, Error *err)
{
    return s->has_bank ? bank_save(&s->bank, path, err) : fail(err, "%s: there is no bank to save", path);
}

/* Detection with other weights than the bank's would compare what can't be compared. */
static int same_weights(const char *path, const char *role, const WeightsId *bank, const WeightsId *here,
                        Error *err)
{
    if (strcmp(bank->sha256, here->sha256) == 0)
        return 0;
    if (!bank->sha256[0])
        return fail(err, "%s: the bank was made without %s weights, but %s is given", path, role, here->name);
    if (!here->sha256[0])
        return fail(err, "%s: the bank was made with the %s weights %s (sha256 %.12s...), but none are given",
                    path, role, bank->name, bank->sha256);
    return fail(err, "%s: the bank was made with the %s weights %s (sha256 %.12s...), not with %s (%.12s...)",
                path, role, bank->name, bank->sha256, here->name, here->sha256);
}

/* Load and check everything that concerns features. */
static int load_bank(Samlad *s, const char *path, Error *err)
{
    bank_free(&s->bank);
    s->has_bank = 0;
    if (bank_load(&s->bank, path, err))
        return -1;
    if (same_weights(path, "backbone", &s->bank.vit, &s->vit, err) ||
        same_weights(path, "featup", &s->bank.featup, &s->featup, err) ||
        (!s->bank.options.no_objects && same_weights(path, "sam", &s->bank.sam, &s->sam, err))) {
        bank_free(&s->bank);
        return -1;
    }
    return 0;
}

int samlad_bank_load(Samlad *s, const char *path, Error *err)
{
    if (load_bank(s, path, err))
        return -1;
    if (same_weights(path, "dcga", &s->bank.dcga_weights, &s->dcga, err) ||
        (s->models.dcga_file && dcga_learned(&s->bank.dcga, s->models.dcga_file, err))) {
        bank_free(&s->bank);
        return -1;
    }
    s->options = s->bank.options;
    s->has_bank = 1;
    return 0;
}

int samlad_bank_recalibrate(Samlad *s, const char *path, SamladProgress progress, void *user, Error *err)
{
    if (load_bank(s, path, err))
        return -1;
    for (int i = 0; i < option_count; i++) { /* what concerns features stays the bank's */
        char value[64];
        if (!option_table[i].of_features)
            continue;
        option_text(&s->bank.options, &option_table[i], value, sizeof value);
        if (option_set(&s->options, &option_table[i], value, path, err))
            return -1;
    }
    return finish_bank(s, progress, user, err);
}

int samlad_bank_size(const Samlad *s)
{
    return s->has_bank ? s->bank.n_images : 0;
}

const char *samlad_bank_name(const Samlad *s, int image)
{
    return s->has_bank && image >= 0 && image < s->bank.n_images ? s->bank.names[image] : "?";
}

/* ================================================================================================
 * Detection: from a comparison to a result that explains itself
 * ============================================================================================== */

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

/* Largest structural z on the object's cells and where it stands. */
static void find_damage(SamladObject *object, const Bank *bank, const Comparison *c, const float *weights,
                        int height, int width)
{
    int n_cells = (int)bank_cells(bank), at = -1;
    for (int p = 0; p < n_cells; p++)
        if (weights[p] >= 0.5f && (at < 0 || c->structural[p] > c->structural[at]))
            at = p;
    object->damage = at < 0 ? 0 : amm_z(&bank->structural, c->structural[at]);
    object->damage_at[0] =
        at < 0 ? 0 : ((float)(at % bank->grid_w) + 0.5f) * (float)width / (float)bank->grid_w;
    object->damage_at[1] =
        at < 0 ? 0 : ((float)(at / bank->grid_w) + 0.5f) * (float)height / (float)bank->grid_h;
}

static int explain_objects(SamladResult *r, const Bank *bank, const Comparison *c, const Objects *o,
                           Error *err)
{
    SamladMatch *matches = aligned_array((size_t)o->n * (size_t)c->k + 1, sizeof *matches);
    r->memory = matches; /* samlad_result_free knows */
    r->objects = calloc((size_t)o->n + 1, sizeof *r->objects);
    if (!matches || !r->objects)
        return fail_memory(err, "the result", (unsigned long long)o->n * sizeof *r->objects);
    r->n_objects = o->n;
    for (int i = 0; i < o->n; i++) {
        SamladObject *object = &r->objects[i];
        object->background = o->has_background && i == o->n - 1;
        object->area = o->areas[i];
        memcpy(object->centroid, o->centroids + 2 * i, sizeof object->centroid);
        object->unmatched = c->unmatched[i];
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
        find_damage(object, bank, c, o->weights + (size_t)i * bank_cells(bank), r->height, r->width);
        object->verdict =
            bank->options.only != ONLY_STRUCTURAL && object->unmatched > bank->options.flag_unmatched
                ? VERDICT_EXTRA
            : bank->options.only != ONLY_LOGICAL && object->damage > bank->options.flag_damage
                ? VERDICT_DAMAGED
                : VERDICT_NORMAL;
    }
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

/* Join (reference, object) with what is already listed at its place; the clearest stands for all. */
static void join_missing(SamladResult *r, const Bank *bank, const Comparison *c, int k, int j,
                         int *last_reference)
{
    size_t n_cells = bank_cells(bank);
    const uint8_t *mask = bank->weights + (size_t)(bank->first[c->references[k]] + j) * n_cells;
    float v = c->matchings[k].unmatched_r[j];
    for (int i = 0; i < r->n_missing; i++) {
        SamladMissing *m = &r->missing[i];
        const uint8_t *other =
            bank->weights + (size_t)(bank->first[c->references[m->reference]] + m->object) * n_cells;
        if (last_reference[i] == k || soft_iou(mask, other, n_cells) < 0.25)
            continue;
        m->support++;
        last_reference[i] = k;
        if (v > m->unmatched)
            m->reference = k, m->object = j, m->unmatched = v;
        return;
    }
    last_reference[r->n_missing] = k;
    r->missing[r->n_missing++] = (SamladMissing){.reference = k, .object = j, .unmatched = v, .support = 1};
}

/* An object of the normal images is missing when at least half of the references miss it [ours]. */
static int explain_missing(SamladResult *r, const Bank *bank, const Comparison *c, Error *err)
{
    size_t most = 1;
    for (int k = 0; k < c->k; k++)
        most += (size_t)c->matchings[k].n_r;
    r->missing = calloc(most, sizeof *r->missing);
    int *last_reference = calloc(most, sizeof *last_reference);
    float *weights = aligned_array(bank_cells(bank), sizeof *weights);
    if (!r->missing || !last_reference || !weights) {
        free(last_reference), free(weights);
        return fail_memory(err, "the result", most * sizeof *r->missing);
    }
    for (int k = 0; k < c->k && bank->options.only != ONLY_STRUCTURAL; k++)
        for (int j = 0; j < c->matchings[k].n_r; j++)
            if (c->matchings[k].unmatched_r[j] > bank->options.flag_unmatched)
                join_missing(r, bank, c, k, j, last_reference);
    int kept = 0;
    for (int i = 0; i < r->n_missing; i++) {
        SamladMissing m = r->missing[i];
        if (2 * m.support < c->k)
            continue;
        const uint8_t *mask =
            bank->weights + (size_t)(bank->first[c->references[m.reference]] + m.object) * bank_cells(bank);
        for (size_t p = 0; p < bank_cells(bank); p++)
            weights[p] = mask[p];
        cells_box(m.box, weights, bank->grid_h, bank->grid_w, r->height, r->width);
        r->missing[kept++] = m;
    }
    r->n_missing = kept;
    free(last_reference), free(weights);
    return 0;
}

static float rank_of(const Bank *bank, float score)
{
    int higher = 0;
    for (int i = 0; i < bank->n_loo; i++)
        higher += bank->loo_sorted[i] >= score;
    return (float)(1 + higher) / (float)(1 + bank->n_loo);
}

/* Move what the result keeps out of the comparison and the scene. */
static int make_result(SamladResult *r, const Bank *bank, Comparison *c, Scene *scene, Error *err)
{
    *r = (SamladResult){.width = scene->width,
                        .height = scene->height,
                        .grid_w = bank->grid_w,
                        .grid_h = bank->grid_h,
                        .score = c->score,
                        .structural = c->structural_score,
                        .logical = c->logical_score,
                        .structural_z = c->structural_z,
                        .logical_z = c->logical_z,
                        .rank = rank_of(bank, c->score),
                        .n_references = c->k,
                        .map_low = 0,
                        .map_high = 6};
    r->map = c->map, r->structural_map = c->structural, r->logical_map = c->logical,
    r->references = c->references, r->labels = scene->labels;
    int status =
        explain_objects(r, bank, c, &scene->objects, err) || explain_missing(r, bank, c, err) ? -1 : 0;
    c->map = c->structural = c->logical = NULL; /* the result's now */
    scene->labels = NULL;
    for (int k = 0; k < c->k; k++)
        matching_free(&c->matchings[k]);
    c->references = NULL;
    c->k = 0;
    if (status)
        samlad_result_free(r);
    return status;
}

int samlad_detect(Samlad *s, const uint8_t *rgb, int height, int width, SamladResult *result,
                  const char *dump, Error *err)
{
    *result = (SamladResult){0};
    if (!s->has_bank)
        return fail(err, "no bank: build or load one before detecting");
    StWriter *writer = NULL;
    if (dump && !(writer = st_writer_new()))
        return fail_memory(err, "the dump", sizeof(void *));
    Scene scene;
    Comparison c;
    int status = scene_analyse(&scene, &s->models, &s->options, rgb, height, width, writer, err);
    if (!status) {
        status = compare_scene(&c, &s->bank, &scene, -1, 0, writer, err);
        if (!status) {
            status = make_result(result, &s->bank, &c, &scene, err);
            comparison_free(&c);
        }
        scene_free(&scene);
    }
    if (!status && writer && st_writer_save(writer, dump, err)) {
        samlad_result_free(result);
        status = -1;
    }
    st_writer_free(writer);
    return status;
}

void samlad_result_free(SamladResult *r)
{
    free(r->map), free(r->structural_map), free(r->logical_map), free(r->references), free(r->objects),
        free(r->missing), free(r->labels), free(r->memory);
    *r = (SamladResult){0};
}

void samlad_full_map(const SamladResult *r, float *map)
{
    interpolate_bilinear(map, r->height, r->width, r->map, r->grid_h, r->grid_w, 1, 0, 0);
}
