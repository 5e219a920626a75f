/* library.c - the library's face: models, bank, detection, reasons. See samlad.h.
 *
 * The algorithm in reading order: scene.c (features and objects of an image), bank.c (the normal images),
 * dcga.c (descriptors), omm.c (matches), amm.c (maps and scores), verdict.c (what they mean), and samlad.c, which
 * calls them in the paper's order. */
#include "samlad.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "algorithm.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "library/result.h"
#include "tensor.h"

struct Samlad {
    Models models;
    Options asked;   /* as it was set: 0 may stand for what the weights recommend */
    Options options; /* the same with that filled in */
    WeightsId vit, sam, featup, dcga;
    Bank bank;
    int has_bank;
    int shared;                         /* 1: the bank belongs to another handle */
    unsigned char was_set[MAX_OPTIONS]; /* by samlad_set */
};

/* ================================================================================================
 * Opening
 * ============================================================================================== */

/* The settings that hold: those that were asked for, and where they say 0 what the weights recommend. */
static int complete(Samlad *s, Error *err)
{
    s->options = s->asked;
    return models_complete(&s->models, &s->options, err);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static void identify(WeightsId *id, const Safetensors *file)
{
    if (!file)
        return;
    snprintf(id->name, sizeof id->name, "%s", base_name(st_path(file)));
    st_sha256(file, id->sha256);
}

Samlad *samlad_open(const SamladWeights *weights, Error *err)
{
    Samlad *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "samlad", sizeof *s);
        return NULL;
    }
    options_default(&s->asked);
    if (!weights->vit) {
        fail(err, "no backbone is given");
        free(s);
        return NULL;
    }
    if (models_open(&s->models, weights->vit, weights->sam, weights->featup, weights->dcga, err) ||
        models_recommend(&s->models, &s->asked, err) || complete(s, err)) {
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
    const size_t budget = (size_t)512 << 20; /* what all handles' activations together may take */
    size_t one = models_image_bytes(&s->models, &s->options);
    int threads = tensor_max_threads();
    return (size_t)threads <= budget / one ? threads : 1;
}

static void drop_bank(Samlad *s)
{
    bank_free(&s->bank);
    s->has_bank = 0;
}

int samlad_set(Samlad *s, const char *name, const char *value, Error *err)
{
    const OptionSpec *spec = option_find(name);
    if (!spec)
        return fail(err, "there is no option %s", name);
    if (s->shared)
        return fail(err, "option %s: a shared handle has its owner's options: set them there", name);
    if (option_set(&s->asked, spec, value, name, err) || complete(s, err))
        return -1;
    s->was_set[spec - option_table] = 1;
    drop_bank(s); /* its images were analysed, and its scores calibrated, with other options */
    return models_precision(&s->models, &s->options, err);
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

/* What tells n paths apart in a bank, as pointers into them: the last parts, or, where two of these are
 * equal, all behind the folders that they share. malloc'd; NULL: no memory. */
static const char **tell_apart(const char *const *paths, int n, Error *err)
{
    const char **names = calloc((size_t)n + 1, sizeof(*names));
    if (!names) {
        fail_memory(err, "the images' names", (unsigned long long)n * sizeof *names);
        return NULL;
    }
    int repeated = 0;
    size_t shared = n > 0 ? (size_t)(base_name(paths[0]) - paths[0]) : 0;
    for (int i = 0; i < n; i++)
        names[i] = base_name(paths[i]);
    qsort(names, (size_t)n, sizeof *names, compare_names);
    for (int i = 1; i < n; i++) {
        repeated |= strcmp(names[i - 1], names[i]) == 0;
        while (shared > 0 && (strncmp(paths[i], paths[0], shared) != 0 || paths[0][shared - 1] != '/'))
            shared--;
    }
    for (int i = 0; i < n; i++)
        names[i] = repeated ? paths[i] + shared : base_name(paths[i]);
    return names;
}

/* Take a batch's images over in order; the first that failed ends it. Frees the scenes. */
static int add_batch(BankBuilder *builder, Normal *batch, const char *const *names, int n, Error *err)
{
    int status = 0;
    for (int i = 0; i < n; i++) {
        Scene *scene = &batch[i].scene;
        if (batch[i].status) {
            status = status ? status : fail(err, "%s", batch[i].err.message);
            continue;
        }
        status = status ? status : bank_builder_add(builder, names[i], scene, err);
        scene_free(scene);
    }
    return status;
}

/* A share sees its owner's bank, which is not its own to replace. */
static int begin_bank(Samlad *s, Error *err)
{
    if (s->shared)
        return fail(err, "a shared handle has its owner's bank: build or load banks there");
    drop_bank(s);
    return 0;
}

/* Analyse all images, as many at once as pay. */
static int add_images(Samlad *s, BankBuilder *builder, const char *const *paths, int n,
                      SamladProgress progress, void *user, Error *err)
{
    int at_once = samlad_images_at_once(s), status = 0, n_shares = 0;
    Samlad **shares = calloc((size_t)at_once, sizeof(*shares));
    Normal *batch = calloc((size_t)at_once, sizeof *batch);
    const char **names = tell_apart(paths, n, err);
    if (!names)
        status = -1;
    else if (!shares || !batch)
        status = fail_memory(err, "a batch of images", (unsigned long long)at_once * sizeof *batch);
    for (; n_shares < at_once && !status; n_shares++)
        if (!(shares[n_shares] = samlad_share(s, err)))
            status = -1;
    for (int base = 0; base < n && !status; base += at_once) {
        int m = n - base < at_once ? n - base : at_once;
#pragma omp parallel for schedule(static, 1) if (m > 1)
        for (int i = 0; i < m; i++)
            analyse_file(&batch[i], shares[i], paths[base + i]);
        status = add_batch(builder, batch, names + base, m, err);
        if (!status && progress)
            progress(user, "normal images", base + m, n);
    }
    for (int i = 0; shares && i < n_shares; i++)
        samlad_close(shares[i]);
    free(shares), free(batch), free(names);
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

/* The builder's images become the bank, which is calibrated. The builder is freed whatever happens. */
static int adopt_bank(Samlad *s, BankBuilder *builder, SamladProgress progress, void *user, Error *err)
{
    if (bank_builder_finish(builder, &s->bank, err))
        return -1;
    s->bank.vit = s->vit;
    s->bank.sam = s->options.no_objects ? (WeightsId){0} : s->sam;
    s->bank.featup = s->featup;
    return finish_bank(s, progress, user, err);
}

/* Weights and settings of features as one checksum: what made a scene. */
static void scene_maker(const Samlad *s, char hex[65])
{
    const WeightsId *ids[] = {&s->vit, &s->sam, &s->featup};
    char text[4096], value[64];
    size_t n = 0;
    for (int i = 0; i < 3; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\n", ids[i]->sha256);
    for (int i = 0; i < option_count; i++) {
        if (!option_table[i].of_features || n >= sizeof text)
            continue;
        option_text(&s->options, &option_table[i], value, sizeof value);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s=%s\n", option_table[i].name, value);
    }
    sha256(text, n < sizeof text ? n : sizeof text, hex);
}

int samlad_bank_from_scenes(Samlad *s, const char *const *scenes, const char *const *names, int n,
                            SamladProgress progress, void *user, Error *err)
{
    if (begin_bank(s, err))
        return -1;
    BankBuilder *builder = bank_builder_new(err);
    const char **apart = tell_apart(names, n, err);
    int status = builder && apart ? 0 : -1;
    char maker[65];
    scene_maker(s, maker);
    for (int i = 0; i < n && !status; i++) {
        Normal normal = {.status = 0};
        status = scene_load(&normal.scene, maker, scenes[i], err);
        if (!status)
            status = add_batch(builder, &normal, apart + i, 1, err);
    }
    free(apart);
    if (status) {
        bank_builder_free(builder);
        return -1;
    }
    return adopt_bank(s, builder, progress, user, err);
}

int samlad_bank_build(Samlad *s, const char *const *paths, int n, SamladProgress progress, void *user,
                      Error *err)
{
    if (begin_bank(s, err))
        return -1;
    BankBuilder *builder = bank_builder_new(err);
    int status = builder ? add_images(s, builder, paths, n, progress, user, err) : -1;
    if (status) {
        bank_builder_free(builder);
        return -1;
    }
    return adopt_bank(s, builder, progress, user, err);
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
    if (begin_bank(s, err) || bank_load(&s->bank, path, err))
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
    if (models_precision(&s->models, &s->bank.options, err)) {
        bank_free(&s->bank);
        return -1;
    }
    s->options = s->asked = s->bank.options;
    memset(s->was_set, 0, sizeof s->was_set); /* nothing that was asked for is left */
    s->has_bank = 1;
    return 0;
}

int samlad_bank_recalibrate(Samlad *s, const char *path, SamladProgress progress, void *user, Error *err)
{
    if (load_bank(s, path, err))
        return -1;
    for (int i = 0; i < option_count; i++) { /* all else stays the bank's */
        char value[64];
        if (!option_table[i].of_features && s->was_set[i])
            continue;
        option_text(&s->bank.options, &option_table[i], value, sizeof value);
        if (option_set(&s->asked, &option_table[i], value, path, err))
            return -1;
    }
    if (complete(s, err) || models_precision(&s->models, &s->options, err))
        return -1;
    return finish_bank(s, progress, user, err);
}

int samlad_bank_size(const Samlad *s)
{
    return s->has_bank ? s->bank.n_images : 0;
}

float samlad_bank_threshold(const Samlad *s)
{
    return s->has_bank ? s->bank.threshold : NAN;
}

const char *samlad_bank_name(const Samlad *s, int image)
{
    return s->has_bank && image >= 0 && image < s->bank.n_images ? s->bank.names[image] : "?";
}

/* ================================================================================================
 * Detection
 * ============================================================================================== */

static int dump_detection(StWriter *dump, const Detection *d, Error *err)
{
    const Objects *o = &d->comparison.query;
    int64_t k = d->k;
    int status =
        dump_floats(dump, "dcga.descriptors", 2, (int64_t[]){o->n, o->channels}, o->descriptors, err) ||
        st_writer_copy(dump, "references", ST_I32, 1, &k, d->references, err);
    for (int r = 0; r < d->k && !status; r++) {
        const Matching *m = &d->comparison.matchings[r];
        char name[48];
        snprintf(name, sizeof name, "omm.scores.%d", r);
        status = dump_floats(dump, name, 2, (int64_t[]){m->n_q, m->n_r}, m->scores, err);
        snprintf(name, sizeof name, "omm.assignment.%d", r);
        status =
            status || dump_floats(dump, name, 2, (int64_t[]){m->n_q + 1, m->n_r + 1}, m->assignment, err);
    }
    int64_t grid[2] = {o->grid_h, o->grid_w}, three = 3;
    float scores[3] = {d->structural_score, d->logical_score, d->score};
    status = status || dump_floats(dump, "amm.structural", 2, grid, d->structural, err) ||
             dump_floats(dump, "amm.logical", 2, grid, d->logical, err) ||
             dump_floats(dump, "amm.map", 2, grid, d->map, err) ||
             dump_floats(dump, "scores", 1, &three, scores, err);
    return status ? -1 : 0;
}

/* Compare a scene with the bank's and say what is found. dump: or NULL. */
static int detect_in(SamladResult *result, const Samlad *s, Scene *scene, StWriter *dump, Error *err)
{
    Detection d;
    int status = detect_in_scene(&d, &s->bank, scene, -1, err);
    if (!status && dump)
        status = dump_detection(dump, &d, err);
    if (!status)
        status = isfinite(d.score)
                     ? result_make(result, &s->bank, &d, scene, err)
                     : fail(err, "the score is no finite number: the bank's calibration is damaged");
    detection_free(&d);
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
    int status = scene_analyse(&scene, &s->models, &s->options, rgb, height, width, writer, err);
    if (!status) {
        status = detect_in(result, s, &scene, writer, err);
        scene_free(&scene);
    }
    if (!status && writer && st_writer_save(writer, dump, err)) {
        samlad_result_free(result);
        status = -1;
    }
    st_writer_free(writer);
    return status;
}

int samlad_detect_scene(Samlad *s, const char *path, SamladResult *result, Error *err)
{
    Scene scene;
    *result = (SamladResult){0};
    if (!s->has_bank)
        return fail(err, "no bank: build or load one before detecting");
    char maker[65];
    scene_maker(s, maker);
    if (scene_load(&scene, maker, path, err))
        return -1;
    int status = detect_in(result, s, &scene, NULL, err);
    scene_free(&scene);
    return status;
}

int samlad_scene_save(Samlad *s, const uint8_t *rgb, int height, int width, const char *path, Error *err)
{
    Scene scene;
    if (scene_analyse(&scene, &s->models, &s->options, rgb, height, width, NULL, err))
        return -1;
    char maker[65];
    scene_maker(s, maker);
    int status = scene_save(&scene, maker, path, err);
    scene_free(&scene);
    return status;
}

int samlad_backbone_blocks(const Samlad *s)
{
    return vit_config(s->models.vit)->depth;
}

void samlad_describe(const Samlad *s, SamladEach each, void *user)
{
    const WeightsId *ids[] = {&s->vit, &s->sam, &s->featup, &s->dcga};
    static const char *const keys[] = {"weights.backbone.sha256", "weights.sam.sha256",
                                       "weights.featup.sha256", "weights.dcga.sha256"};
    char key[96], value[64];
    for (int i = 0; i < option_count; i++) {
        snprintf(key, sizeof key, "option.%s", option_table[i].name);
        option_text(&s->options, &option_table[i], value, sizeof value);
        each(user, key, value);
    }
    for (int i = 0; i < 4; i++)
        each(user, keys[i], ids[i]->sha256[0] ? ids[i]->sha256 : "none");
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
