/* test_bank.c - banks: building, calibration, files, retrieval. One comparison is checked end to end against
 * make_golden_method.py. */
#ifdef _OPENMP
#include <omp.h>
#endif
#include <unistd.h>

#include "algorithm.h"
#include "library/networks.h"
#include "library/result.h"
#include "tensor.h"
#include "method_golden.h"

/* ---- banks from the golden's images ------------------------------------------------------------*/

/* Image i of the golden. Its numbers stay in the file; only the objects are to be freed. */
static int picture_new(Scene *s, int i)
{
    const StTensor *f = golden_tensor("%d.features", i), *w = golden_tensor("%d.weights", i);
    Error err;
    *s = (Scene){.cls_dim = (int)golden_tensor("%d.cls", i)->n_elements,
                 .features = (float *)GOLDEN_F32("%d.features", i),
                 .mean_patch = (float *)GOLDEN_F32("%d.mean", i),
                 .cls = (float *)GOLDEN_F32("%d.cls", i),
                 .objects = {.n = (int)w->shape[0],
                             .grid_h = (int)f->shape[0],
                             .grid_w = (int)f->shape[1],
                             .channels = (int)f->shape[2],
                             .features = f->data}};
    return objects_new(&s->objects, w->data, &err);
}

/* The golden's first n images, each `times` times, as a calibrated bank. 0 on success. */
static int build_repeated(Bank *bank, int n, int times, const Options *options)
{
    Error err = {""};
    BankBuilder *b = bank_builder_new(&err);
    int status = b ? 0 : -1;
    for (int i = 0; i < n * times && !status; i++) {
        Scene p;
        status = picture_new(&p, i % n) || bank_builder_add(b, "image.png", &p, &err);
        objects_free(&p.objects);
    }
    if (!status)
        status = bank_builder_finish(b, bank, &err);
    else
        bank_builder_free(b);
    if (!status) {
        bank->options = *options;
        snprintf(bank->vit.name, sizeof bank->vit.name, "vit.safetensors");
        snprintf(bank->vit.sha256, sizeof bank->vit.sha256, "%064d", 7);
        status = calibrate(bank, NULL, NULL, NULL, &err);
    }
    CHECK_MSG(!status, "%s", err.message);
    return status;
}

static int build(Bank *bank, int n, const Options *options)
{
    return build_repeated(bank, n, 1, options);
}

/* The golden's last image as a scene, with unit vectors as in scene_analyse. */
static int query_new(Scene *s)
{
    int i = GOLDEN_I32("n")[0];
    const StTensor *f = golden_tensor("%d.features", i), *w = golden_tensor("%d.weights", i);
    size_t C = (size_t)f->shape[2], D = golden_tensor("%d.cls", i)->n_elements;
    Error err;
    *s = (Scene){.height = 40, .width = 48, .cls_dim = (int)D};
    s->features = malloc(f->n_bytes), s->mean_patch = malloc(C * sizeof(float)),
    s->cls = malloc(D * sizeof(float));
    memcpy(s->features, f->data, f->n_bytes);
    memcpy(s->mean_patch, GOLDEN_F32("%d.mean", i), C * sizeof(float));
    memcpy(s->cls, GOLDEN_F32("%d.cls", i), D * sizeof(float));
    l2_normalise(s->cls, 1, (int)D, 1e-12f);
    s->objects = (Objects){.n = (int)w->shape[0],
                           .grid_h = (int)f->shape[0],
                           .grid_w = (int)f->shape[1],
                           .channels = (int)C,
                           .features = s->features};
    return objects_new(&s->objects, w->data, &err);
}

static void set(Options *o, const char *name, const char *value)
{
    Error err = {""};
    CHECK_MSG(option_find(name) && !option_set(o, option_find(name), value, name, &err), "%s: %s", name,
              err.message);
}

/* METHOD.md's constants as in the goldens, whatever the program's defaults are. */
static Options defaults(void)
{
    static const char *const texts[][2] = {{"k", "3"},
                                           {"retrieval", "mean"},
                                           {"channel-graph", "covariance"},
                                           {"dcga-rounds", "2"},
                                           {"dcga-partners", "4"},
                                           {"shrinkage", "0.3"},
                                           {"channel-strength", "0.1"},
                                           {"channel-tau", "1"},
                                           {"object-strength", "0"},
                                           {"object-tau", "0.1"},
                                           {"position-weight", "0.7"},
                                           {"tau", "0.02"},
                                           {"sinkhorn-iters", "30"},
                                           {"match-threshold", "0.2"},
                                           {"matcher", "sinkhorn"},
                                           {"verify", "1"},
                                           {"verify-above", "0.3"},
                                           {"verify-shift", "0"},
                                           {"count", "0"},
                                           {"alpha", "auto"},
                                           {"alpha-unmatched", "0"},
                                           {"alpha-quantile", "0.001"},
                                           {"align", "object"},
                                           {"large-object", "0.15"},
                                           {"claims", "0"},
                                           {"register-reach", "0"},
                                           {"register-unmatched", "0"},
                                           {"epsilon", "0.01"},
                                           {"blur", "1"},
                                           {"nearest-weight", "0"},
                                           {"raster-weight", "0"},
                                           {"score", "max"},
                                           {"object-quantile", "0.95"},
                                           {"delta-logical", "0.05"},
                                           {"delta-structural", "0.1"},
                                           {"loo-images", "60"},
                                           {"only", "both"},
                                           {"threshold-quantile", "0.97"}};
    Options o;
    options_default(&o);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        set(&o, texts[i][0], texts[i][1]);
    return o;
}

/* The rasters of a bank and of a query in it, against the reference. */
static void check_rasters(const char *name, const Bank *bank, const Detection *c)
{
    /* A q is a difference of two squares, and a unit of z a difference of two q. */
    CHECK_GOLDEN(bank->raster_scores, 3e-5, "%s.raster.q", name);
    CHECK_GOLDEN(bank->loo_raster, 2e-4, "%s.raster.loo", name);
    CHECK_GOLDEN(c->unusual, 2e-4, "%s.unusual", name);
    CHECK_GOLDEN(((float[]){c->layout_score, bank->raster_unit}), 2e-4, "%s.raster", name);
}

static void check_variant(const char *name, const Options *options)
{
    Bank bank;
    Scene scene;
    Detection c;
    Error err = {""};
    if (build(&bank, GOLDEN_I32("n")[0], options))
        return;
    REQUIRE(!query_new(&scene));
    CHECK_GOLDEN(&bank.alpha, 1e-5, "%s.alpha", name);
    CHECK_GOLDEN(bank.channel_std, 1e-5, "%s.channel_std", name);
    CHECK_GOLDEN(bank.units, 2e-5, "%s.scale", name);
    const float *loo = GOLDEN_F32("%s.loo", name), *spread = GOLDEN_F32("%s.spread", name);
    CHECK(bank.n_loo == (int)golden_tensor("%s.loo", name)->shape[0]);
    for (int i = 0; i < bank.n_loo; i++) {
        CHECK_MSG(fabsf(bank.loo_structural[i] - loo[3 * i]) < 3e-5f,
                  "%s: structural score %d without itself is %g, expected %g", name, i,
                  (double)bank.loo_structural[i], (double)loo[3 * i]);
        CHECK_MSG(fabsf(bank.loo_logical[i] - loo[3 * i + 1]) < 3e-5f,
                  "%s: logical score %d without itself is %g, expected %g", name, i,
                  (double)bank.loo_logical[i], (double)loo[3 * i + 1]);
        CHECK(fabsf(bank.loo_score[i] - loo[3 * i + 2]) < 3e-4f &&
              (i == 0 || bank.loo_sorted[i - 1] <= bank.loo_sorted[i]));
    }
    const float width = bank.structural.q95 - bank.structural.median + bank.structural.delta;
    CHECK(fabsf(bank.structural.median - spread[0]) < 3e-5f && fabsf(width - spread[1]) < 3e-5f);
    CHECK_MSG(fabsf(bank.nearest_unit - spread[2]) <= 1e-5f * spread[2], "%s: nearest unit %g, expected %g",
              name, (double)bank.nearest_unit, (double)spread[2]);
    CHECK(fabsf(bank.threshold - GOLDEN_F32("%s.threshold", name)[0]) < 3e-4f);
    REQUIRE(!detect_in_scene(&c, &bank, &scene, -1, &err));
    CHECK_GOLDEN_INTS(c.references, "%s.references", name);
    for (int r = 0; r < c.k; r++) {
        CHECK_GOLDEN(c.comparison.matchings[r].scores, 1e-5, "%s.scores.%d", name, r);
        CHECK_GOLDEN(c.comparison.matchings[r].assignment, 3e-5, "%s.assignment.%d", name, r);
    }
    CHECK_GOLDEN(c.unmatched, 3e-5, "%s.unmatched", name);
    CHECK_GOLDEN(c.counted, 3e-5, "%s.counted", name);
    if (bank.nearest_unit > 0)
        CHECK_GOLDEN(c.nearest, 1e-5, "%s.nearest", name);
    if (bank.raster.dim > 0)
        check_rasters(name, &bank, &c);
    CHECK((bank.raster.dim > 0) == (options->raster_weight > 0));
    CHECK_GOLDEN(c.structural, 3e-5, "%s.structural", name);
    CHECK_GOLDEN(c.logical, 3e-5, "%s.logical", name);
    /* z divides by the spread of seven scores, which enlarges the errors. */
    CHECK_GOLDEN(c.map, 2e-4, "%s.map", name);
    CHECK_GOLDEN(((float[]){c.structural_score, c.logical_score, c.score}), 2e-4, "%s.results", name);
    detection_free(&c);
    scene_free(&scene);
    bank_free(&bank);
}

static void test_golden(void)
{
    REQUIRE(golden_open("method_bank"));
    Options plain = defaults(), pixel = defaults(), softmax = defaults(), few = defaults(),
            dustbin = defaults(), shifted = defaults(), registered = defaults(), nearest = defaults(),
            rasters = defaults();
    check_variant("default", &plain);
    pixel.amm.align_pixel = 1, pixel.retrieval = RETRIEVAL_L2, pixel.k = 2;
    check_variant("pixel_l2", &pixel);
    softmax.dcga.channel_graph = CHANNEL_SOFTMAX, softmax.dcga.object_strength = 0.2f,
    softmax.retrieval = RETRIEVAL_CLS;
    check_variant("softmax_cls", &softmax);
    few.loo_images = 3, few.k = 100; /* k larger than the bank means all */
    check_variant("few_loo", &few);
    set(&dustbin, "alpha-unmatched", "0.05");
    check_variant("dustbin", &dustbin);
    set(&shifted, "verify-shift", "1");
    check_variant("shifted", &shifted);
    set(&shifted, "verify-shift", "2"), set(&shifted, "channel-strength", "3");
    shifted.dcga.channel_graph = CHANNEL_SOFTMAX;
    check_variant("shifted_softmax", &shifted);
    set(&registered, "register-reach", "2"), set(&registered, "register-unmatched", "1");
    check_variant("registered", &registered);
    set(&registered, "claims", "1");
    check_variant("claims", &registered);
    set(&nearest, "nearest-weight", "0.5"), set(&nearest, "score", "power");
    check_variant("nearest", &nearest);
    set(&nearest, "nearest-weight", "2"), set(&nearest, "score", "max");
    set(&nearest, "object-quantile", "0"), set(&nearest, "delta-logical", "0.3");
    check_variant("nearest_alone", &nearest);
    set(&rasters, "raster-weight", "40");
    check_variant("rasters", &rasters);
    set(&rasters, "raster-weight", "20"), set(&rasters, "loo-images", "3"), set(&rasters, "k", "2");
    set(&rasters, "position-weight", "0");
    check_variant("rasters_few", &rasters);
}

/* The text of every option. */
typedef char Texts[MAX_OPTIONS][64];

static void texts_of(Texts texts, const Options *o)
{
    for (int i = 0; i < option_count; i++)
        option_text(o, &option_table[i], texts[i], sizeof texts[i]);
}

/* The word of --method sets these options, all of them options of the method that stand after it, and no
 * others. */
static void test_method(void)
{
    static const char *const paper[][2] = {{"channel-graph", "softmax"},
                                           {"object-strength", "0.1"},
                                           {"position-weight", "0"},
                                           {"sinkhorn-iters", "100"},
                                           {"verify", "0"},
                                           {"count", "0"},
                                           {"alpha-unmatched", "0"},
                                           {"align", "pixel"},
                                           {"register-reach", "0"},
                                           {"register-unmatched", "0"},
                                           {"claims", "0"},
                                           {"object-quantile", "0"},
                                           {"nearest-weight", "0"},
                                           {"raster-weight", "0"}};
    static Texts ours, found;
    unsigned char was_set[MAX_OPTIONS] = {0};
    const OptionSpec *word = option_find("method");
    Options o;
    options_default(&o);
    texts_of(ours, &o);
    set(&o, "method", "paper");
    options_follow_method(&o, was_set);
    texts_of(found, &o);
    int n_set = 0;
    for (size_t i = 0; i < sizeof paper / sizeof *paper; i++) {
        const OptionSpec *spec = option_find(paper[i][0]);
        char value[64];
        option_brief(&o, spec, value, sizeof value);
        CHECK_MSG(strcmp(value, paper[i][1]) == 0, "%s is %s", paper[i][0], value);
        CHECK(was_set[spec - option_table] && !spec->of_features && spec > word);
    }
    for (int i = 0; i < option_count; i++) {
        const OptionSpec *spec = &option_table[i];
        n_set += was_set[i];
        CHECK(option_is_method(spec) == (spec == word));
        CHECK_MSG(was_set[i] || spec == word || strcmp(ours[i], found[i]) == 0, "%s: %s", spec->name,
                  found[i]);
    }
    CHECK(n_set == (int)(sizeof paper / sizeof *paper));
    /* The other word takes all of it back. */
    set(&o, "method", "samlad");
    options_follow_method(&o, was_set);
    texts_of(found, &o);
    for (int i = 0; i < option_count; i++)
        CHECK_MSG(strcmp(ours[i], found[i]) == 0, "%s: %s", option_table[i].name, found[i]);
}

/* The float64 reference under the same word. */
static void test_paper(void)
{
    Options o;
    unsigned char was_set[MAX_OPTIONS];
    REQUIRE(golden_open("method_paper"));
    options_default(&o);
    set(&o, "method", "paper");
    options_follow_method(&o, was_set);
    check_variant("paper", &o);
}

/* The golden's query, judged by a bank of the first n images. */
typedef struct Judged {
    Bank bank;
    Scene scene;
    Detection c;
    SamladResult result;
    int32_t labels[40 * 48];
} Judged;

/* 0 on success. */
static int judge(Judged *j, int n, const Options *options)
{
    Error err = {""};
    *j = (Judged){.result = {.width = 48, .height = 40, .labels = j->labels}};
    return build(&j->bank, n, options) || query_new(&j->scene) ||
                   detect_in_scene(&j->c, &j->bank, &j->scene, -1, &err)
               ? -1
               : 0;
}

static int judge_objects(Judged *j)
{
    Error err = {""};
    return result_objects(&j->result, &j->bank, &j->c, &err);
}

static void judged_free(Judged *j)
{
    free(j->result.matches), free(j->result.objects);
    detection_free(&j->c);
    scene_free(&j->scene);
    bank_free(&j->bank);
}

/* Three of a kind in the bank, and a query with four, one of them in two pieces. */
static void test_count(void)
{
    REQUIRE(golden_open("method_count"));
    Options o = defaults();
    set(&o, "alpha-unmatched", "0.05");
    check_variant("apart", &o);
    set(&o, "count", "1");
    check_variant("counted", &o);
    /* A piece alone is extra. With counting, the fourth of the kind is extra too. */
    for (int count = 0; count <= 1; count++) {
        Judged judged;
        const SamladResult *result = &judged.result;
        o.omm.count = count;
        REQUIRE(!judge(&judged, 7, &o));
        CHECK(!judge_objects(&judged));
        int n_extra = 0;
        for (int i = 0; i < result->n_objects; i++)
            n_extra += result->objects[i].verdict == VERDICT_EXTRA;
        CHECK_MSG(n_extra == 1 + count && result->objects[5].verdict == VERDICT_EXTRA, "%d too many",
                  n_extra);
        CHECK(!count || result->objects[4].verdict == VERDICT_EXTRA);
        CHECK((result->objects[4].alike > 1) == count && result->objects[3].alike == 1);
        judged_free(&judged);
    }
}

/* An impossible number of iterations (the option's least is 1) leaves U without bound. Naming the surplus
 * must still end, with all of them named. */
static void test_count_without_bound(void)
{
    Options o = defaults();
    Judged judged;
    REQUIRE(golden_open("method_count"));
    set(&o, "count", "1");
    REQUIRE(!judge(&judged, 7, &o));
    for (int i = 0; i < judged.scene.objects.n; i++)
        judged.c.counted[i] = 1e17f;
    CHECK(!judge_objects(&judged));
    for (int i = 0; i < judged.result.n_objects; i++)
        CHECK(judged.result.objects[i].verdict == VERDICT_EXTRA);
    judged_free(&judged);
}

/* ---- the same comparison again -----------------------------------------------------------------*/

/* All numbers of a comparison, one after another, so that two can be compared bit for bit. */
static size_t flatten(float *out, const Bank *bank)
{
    Scene scene;
    Detection c;
    Error err = {""};
    size_t n = 0, cells = bank_cells(bank);
    if (query_new(&scene) || detect_in_scene(&c, bank, &scene, -1, &err)) {
        CHECK_MSG(0, "%s", err.message);
        return 0;
    }
    const float *maps[] = {c.structural, c.logical, c.map};
    for (int m = 0; m < 3; m++, n += cells)
        memcpy(out + n, maps[m], cells * sizeof(float));
    for (int r = 0; r < c.k; r++) {
        size_t size =
            ((size_t)c.comparison.matchings[r].n_q + 1) * ((size_t)c.comparison.matchings[r].n_r + 1);
        memcpy(out + n, c.comparison.matchings[r].assignment, size * sizeof(float));
        n += size;
        out[n++] = (float)c.references[r];
    }
    for (int i = 0; i < c.comparison.query.n; i++)
        out[n++] = c.unusual[i];
    for (int i = 0; i < bank->n_loo && bank->raster.dim > 0; i++)
        out[n++] = bank->loo_raster[i];
    out[n++] = c.structural_score, out[n++] = c.logical_score, out[n++] = c.score;
    for (int i = 0; i < bank->n_loo; i++)
        out[n++] = bank->loo_score[i];
    detection_free(&c);
    scene_free(&scene);
    return n;
}

enum { MOST = 4096 };

static char *temporary(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/samlad_test_bank.%ld", (long)getpid());
    return path;
}

/* Save and load: the same comparison, bit for bit, and the same settings. Saved again: the same file. */
static void test_round_trip(void)
{
    static float before[MOST], after[MOST];
    Options options = defaults();
    Bank bank, loaded;
    Error err = {""};
    char again[80];
    REQUIRE(golden_open("method_bank"));
    options.amm.nearest_weight = 0.7f, options.raster_weight = 1.5f;
    options.amm.epsilon = 1e-9f, options.omm.tau = 0.0123456789f, options.flag_damage = 1 / 3.0,
    options.dcga.object_tau = 1e-6f;
    if (build(&bank, 7, &options))
        return;
    size_t n = flatten(before, &bank);
    int status = bank_save(&bank, temporary(), &err) || bank_load(&loaded, temporary(), &err);
    CHECK_MSG(!status, "%s", err.message);
    REQUIRE(!status);
    CHECK(n > 0 && flatten(after, &loaded) == n && memcmp(before, after, n * sizeof(float)) == 0);
    CHECK(memcmp(&loaded.options.omm, &options.omm, sizeof options.omm) == 0 &&
          memcmp(&loaded.options.amm, &options.amm, sizeof options.amm) == 0 &&
          loaded.options.flag_damage == options.flag_damage && isnan(loaded.options.alpha) &&
          loaded.options.dcga.object_tau == options.dcga.object_tau);
    CHECK(strcmp(loaded.names[3], "image.png") == 0 && strcmp(loaded.vit.sha256, bank.vit.sha256) == 0 &&
          !loaded.sam.name[0]);
    CHECK(bank.nearest_unit > 0 && loaded.nearest_unit == bank.nearest_unit);
    CHECK(loaded.raster.dim > 0 && loaded.raster_unit == bank.raster_unit);
    CHECK(loaded.threshold == bank.threshold && loaded.flag_extra == bank.flag_extra &&
          loaded.flag_missing == bank.flag_missing);
    snprintf(again, sizeof again, "%s.again", temporary());
    CHECK(!bank_save(&loaded, again, &err));
    Safetensors *a = st_open(temporary(), &err), *b = st_open(again, &err);
    char sha_a[65] = "a", sha_b[65] = "b";
    if (a && b)
        st_sha256(a, sha_a), st_sha256(b, sha_b);
    CHECK(strcmp(sha_a, sha_b) == 0);
    st_close(a), st_close(b);
    /* Calibrated again from the loaded images: the file rounds nothing more, so nothing changes. */
    CHECK(!calibrate(&loaded, NULL, NULL, NULL, &err));
    CHECK(flatten(after, &loaded) == n && memcmp(before, after, n * sizeof(float)) == 0);
    loaded.options.amm.nearest_weight = 0; /* then its unit is not kept, either */
    CHECK(!calibrate(&loaded, NULL, NULL, NULL, &err) && loaded.nearest_unit == 0);
    unlink(temporary()), unlink(again);
    bank_free(&bank), bank_free(&loaded);
}

/* Every option at both ends of its range can be written and read back. */
static void test_options_round_trip(void)
{
    for (int i = 0; i < option_count; i++)
        for (int end = 0; end < 2; end++) {
            const OptionSpec *spec = &option_table[i];
            Options o, back;
            char text[64], again[64];
            Error err = {""};
            options_default(&o), options_default(&back);
            if (spec->kind == OPTION_CHOICE)
                snprintf(text, sizeof text, "%.*s", end ? 60 : (int)strcspn(spec->choices, "|"),
                         end ? strrchr(spec->choices, '|') + 1 : spec->choices);
            else
                snprintf(text, sizeof text, "%.17g", end ? spec->max : spec->min);
            CHECK_MSG(!option_set(&o, spec, text, "end", &err), "%s: %s", spec->name, err.message);
            option_text(&o, spec, text, sizeof text);
            CHECK_MSG(!option_set(&back, spec, text, "again", &err), "%s: %s", spec->name, err.message);
            option_text(&back, spec, again, sizeof again);
            CHECK_MSG(strcmp(text, again) == 0, "%s: %s came back as %s", spec->name, text, again);
            CHECK(option_set(&back, spec, "nan", "x", &err) == -1 &&
                  option_set(&back, spec, "", "x", &err) == -1 &&
                  option_set(&back, spec, "1e999", "x", &err) == -1 &&
                  option_set(&back, spec, "1 ", "x", &err) == -1);
        }
}

static void test_threads(void)
{
#ifdef _OPENMP
    static float one[MOST], more[MOST];
    Options options = defaults();
    options.amm.nearest_weight = 0.5f, options.raster_weight = 2;
    REQUIRE(golden_open("method_bank"));
    int before = omp_get_max_threads();
    size_t n = 0;
    for (int threads = 1; threads <= 4; threads *= 2) {
        Bank bank;
        omp_set_num_threads(threads);
        if (build(&bank, 7, &options))
            break;
        if (threads == 1)
            n = flatten(one, &bank);
        else
            CHECK_MSG(n > 0 && flatten(more, &bank) == n && memcmp(one, more, n * sizeof(float)) == 0,
                      "other bits with %d threads", threads);
        bank_free(&bank);
    }
    omp_set_num_threads(before);
#else
    SKIP("built without OpenMP");
#endif
}

/* Threshold and flags are quantiles of the normal images' own scores and evidence. 21 scores are enough for
 * the threshold. */
static void test_thresholds(void)
{
    REQUIRE(golden_open("method_bank"));
    for (int end = 0; end < 2; end++) {
        Options options = defaults();
        Bank bank;
        options.flag_quantile = options.threshold_quantile = end;
        if (build_repeated(&bank, 7, 3, &options))
            return;
        int last = bank.n_loo - 1;
        CHECK(bank.n_loo == 21 && !bank_extends_threshold(&bank));
        CHECK(bank.threshold == bank.loo_sorted[end ? last : 0] &&
              bank.loo_sorted[0] < bank.loo_sorted[last]);
        float extra = bank.loo_extra[0], missing = bank.loo_missing[0];
        for (int i = 1; i < bank.n_loo; i++) {
            extra = end ? fmaxf(extra, bank.loo_extra[i]) : fminf(extra, bank.loo_extra[i]);
            missing = end ? fmaxf(missing, bank.loo_missing[i]) : fminf(missing, bank.loo_missing[i]);
        }
        CHECK(bank.flag_extra == extra && bank.flag_missing == missing && extra <= 1.0001f &&
              missing <= 1.0001f);
        /* An image's logical score is at least its evidence for an extra object. */
        for (int i = 0; i < bank.n_loo; i++)
            CHECK(bank.loo_extra[i] <= bank.loo_logical[i] &&
                  bank.loo_missing[i] <= bank.loo_logical[i] + 1e-6f);
        bank_free(&bank);
    }
}

/* Few scores: the threshold is at least the extended one, against the reference. */
static void test_few_scores(void)
{
    static const int counts[] = {1, 2, 3, 19, 20, 37};
    REQUIRE(golden_open("method_amm"));
    const float *values = GOLDEN_F32("values");
    for (int i = 0; i < 6; i++) {
        const int n = counts[i];
        float score[37], sorted[37], evidence[37] = {0};
        Bank bank = {.n_loo = n,
                     .loo_score = score,
                     .loo_sorted = sorted,
                     .loo_extra = evidence,
                     .loo_missing = evidence,
                     .options = defaults()};
        memcpy(score, values, sizeof score);
        bank_thresholds(&bank);
        const float *expected = GOLDEN_F32("threshold.%d", n); /* extended, then of the bank */
        CHECK_MSG(fabsf(bank.threshold - expected[1]) < 1e-5f, "%d scores: %g, not %g", n,
                  (double)bank.threshold, (double)expected[1]);
        CHECK(bank_extends_threshold(&bank) == (n < 20) &&
              (n >= 20 || bank.threshold >= expected[0] - 1e-5f));
    }
    /* Two scores: median 2, mean excess 1, threshold 2 + log 10. Equal scores have no excess. */
    float score[2] = {3, 1}, sorted[2], evidence[2] = {0};
    Bank two = {.n_loo = 2,
                .loo_score = score,
                .loo_sorted = sorted,
                .loo_extra = evidence,
                .loo_missing = evidence,
                .options = defaults()};
    bank_thresholds(&two);
    CHECK(fabsf(two.threshold - 2 - logf(10)) < 1e-6f);
    score[0] = 1;
    bank_thresholds(&two);
    CHECK(two.threshold == 1);
}

/* ---- unusual banks -----------------------------------------------------------------------------*/

/* One normal image: no leave-one-out, scores stay unchanged. Nothing is called damaged, because no spread is
 * known. */
static void test_one_image(void)
{
    static float flat[MOST];
    Options options = defaults();
    Judged judged;
    const Bank *bank = &judged.bank;
    REQUIRE(golden_open("method_bank"));
    REQUIRE(!judge(&judged, 1, &options));
    CHECK(bank->n_loo == 0 && bank->structural.median == 0 && bank->structural.q95 == 1);
    CHECK(isnan(bank->threshold) && bank->flag_extra == 0 && bank->flag_missing == 0);
    size_t n = flatten(flat, bank);
    const float results[3] = {flat[n - 3], flat[n - 2], flat[n - 1]};
    CHECK_GOLDEN(results, 1e-4, "one.results");
    CHECK(!judge_objects(&judged));
    float worst = 0;
    const int h = bank->grid_h, w = bank->grid_w;
    for (int i = 0; i < judged.result.n_objects; i++) {
        const SamladObject *o = &judged.result.objects[i];
        const int x = (int)(o->damage_at[0] * (float)w / 48), y = (int)(o->damage_at[1] * (float)h / 40);
        worst = fmaxf(worst, o->damage);
        CHECK(o->verdict != VERDICT_DAMAGED);
        CHECK(o->damage == amm_z(&bank->structural,
                                 amm_block_mean(judged.c.structural, h, w, y * w + x))); /* of a block */
    }
    CHECK(worst > (float)options.flag_damage);
    judged_free(&judged);
}

/* The text of a handle's option, as samlad_describe reports it. */
typedef struct Asked {
    const char *key;
    char value[64];
} Asked;

static void hear(void *user, const char *key, const char *value)
{
    Asked *asked = user;
    if (strcmp(key, asked->key) == 0)
        snprintf(asked->value, sizeof asked->value, "%s", value);
}

static int option_is(const Samlad *s, const char *key, const char *value)
{
    Asked asked = {.key = key};
    samlad_describe(s, hear, &asked);
    if (strcmp(asked.value, value) != 0)
        printf("  %s is '%s', expected '%s'\n", key, asked.value, value);
    return strcmp(asked.value, value) == 0;
}

/* The weights' recommendation holds until an option is set, and again when the option is reset. The
 * recommended grid belongs to the recommended size. */
static void test_settings(void)
{
    Error err = {""};
    Samlad *s = samlad_open(&(SamladWeights){.vit = "weights/vit_tiny.safetensors"}, &err);
    REQUIRE(s);
    CHECK(option_is(s, "option.size", "352") && option_is(s, "option.grid", "64"));
    CHECK(!samlad_set(s, "k", "7", &err) && !samlad_set(s, "size", "224", &err));
    CHECK(option_is(s, "option.size", "224") && option_is(s, "option.grid", "0"));
    CHECK(!samlad_set(s, "grid", "50", &err) && option_is(s, "option.grid", "50"));
    CHECK(!samlad_set(s, "size", "0", &err) && option_is(s, "option.size", "352"));
    CHECK(option_is(s, "option.grid", "50"));
    CHECK(!samlad_set(s, "grid", "0", &err) && option_is(s, "option.grid", "64"));
    CHECK(samlad_set(s, "size", "-1", &err) == -1 && option_is(s, "option.size", "352"));
    CHECK(option_is(s, "option.k", "7"));
    samlad_close(s);
}

/* A bank can store every recommendation of weights: both have the same limits. */
static void test_recommendations_can_be_saved(void)
{
    static const char *const recommended[][2] = {{"points_per_side", "1024"},
                                                 {"pred_iou_thresh", "-1000"},
                                                 {"stability_score_offset", "1000"},
                                                 {"crop_n_layers", "6"},
                                                 {"min_mask_region_area", "1073741824"},
                                                 {"crop_n_points_downscale_factor", "1024"}};
    for (size_t i = 0; i < sizeof recommended / sizeof *recommended; i++) {
        Error err = {""};
        Options o, again;
        char key[64], text[64];
        StWriter *w = st_writer_new();
        snprintf(key, sizeof key, "objects.%s", recommended[i][0]);
        REQUIRE(w && !st_writer_meta(w, key, recommended[i][1], &err) &&
                !st_writer_save(w, temporary(), &err));
        st_writer_free(w);
        Safetensors *st = st_open(temporary(), &err);
        REQUIRE(st);
        options_default(&o), options_default(&again);
        CHECK(!amg_recommended(&o.amg, AMG_FOR_OBJECTS, st, &err));
        for (int k = 0; k < option_count; k++) {
            option_text(&o, &option_table[k], text, sizeof text);
            CHECK_MSG(!option_set(&again, &option_table[k], text, "bank", &err), "%s", err.message);
        }
        st_close(st);
        unlink(temporary());
    }
}

/* A bank of n images with counts[i] objects each, on a grid of h×w with C channels. All values come from a
 * counter. */
static int random_bank(Bank *bank, const int *counts, int n_images, int h, int w, int C,
                       const Options *options, Error *err)
{
    BankBuilder *b = bank_builder_new(err);
    unsigned state = 1;
    int status = 0;
    for (int i = 0; i < n_images && !status; i++) {
        size_t cells = (size_t)h * (size_t)w, n = (size_t)counts[i];
        float *features = malloc(cells * (size_t)C * sizeof *features),
              *coverage = malloc((n + 1) * cells * sizeof *coverage);
        for (size_t p = 0; p < cells * (size_t)C; p++)
            features[p] = (float)((state = state * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1;
        for (size_t p = 0; p < n * cells; p++)
            coverage[p] = p % cells == (p / cells) % cells ? 0.75f : 0;
        Scene s = {.cls_dim = C,
                   .features = features,
                   .mean_patch = features,
                   .cls = features,
                   .objects = {.n = (int)n, .grid_h = h, .grid_w = w, .channels = C, .features = features}};
        status = objects_new(&s.objects, coverage, err) || bank_builder_add(b, "x", &s, err) ? -1 : 0;
        objects_free(&s.objects);
        free(features), free(coverage);
    }
    if (status) {
        bank_builder_free(b);
        return status;
    }
    if (bank_builder_finish(b, bank, err))
        return -1;
    bank->options = *options;
    return calibrate(bank, NULL, NULL, NULL, err);
}

/* Save, load, and compare each image with the others: all results are numbers. */
static void check_works_with(float raster_weight, const int *counts, int n_images, int h, int w, int C,
                             const char *what)
{
    Options options = defaults();
    options.raster_weight = raster_weight;
    Bank bank, loaded;
    Scene scene;
    Detection c;
    Error err = {""};
    int status = random_bank(&bank, counts, n_images, h, w, C, &options, &err);
    CHECK_MSG(!status, "%s: %s", what, err.message);
    if (status)
        return;
    CHECK_MSG(!bank_save(&bank, temporary(), &err), "%s: %s", what, err.message);
    status = bank_load(&loaded, temporary(), &err);
    CHECK_MSG(!status, "%s: %s", what, err.message);
    unlink(temporary());
    for (int i = 0; i < n_images && !status; i++) {
        REQUIRE(!bank_scene(&scene, &loaded, i, &err));
        CHECK_MSG(!detect_in_scene(&c, &loaded, &scene, i, &err), "%s: %s", what, err.message);
        CHECK_MSG(isfinite(c.score) && isfinite(c.structural_score) && isfinite(c.logical_score),
                  "%s: image %d scores %g", what, i, (double)c.score);
        for (size_t p = 0; p < bank_cells(&bank); p++)
            CHECK(isfinite(c.map[p]));
        for (int o = 0; o < c.comparison.query.n; o++)
            CHECK(isfinite(c.unusual[o]) && (raster_weight > 0 || c.unusual[o] == 0));
        detection_free(&c);
        scene_free(&scene);
    }
    if (!status)
        bank_free(&loaded);
    bank_free(&bank);
}

static void check_works(const int *counts, int n_images, int h, int w, int C, const char *what)
{
    check_works_with(0, counts, n_images, h, w, C, what);
    check_works_with(2, counts, n_images, h, w, C, what);
}

static void test_unusual(void)
{
    check_works((int[]){0, 3, 2, 0}, 4, 3, 4, 5, "first and last image without objects");
    check_works((int[]){0, 0, 0}, 3, 3, 4, 5, "no image has objects");
    check_works((int[]){0}, 1, 2, 2, 3, "one image without objects");
    check_works((int[]){1, 1}, 2, 1, 1, 1, "one cell, one channel");
    check_works((int[]){3, 2}, 2, 5, 4, 3, "two images");
    check_works((int[]){3, 0, 2}, 3, 5, 4, 1, "one channel");
    check_works((int[]){0, 1, 0, 0, 0}, 5, 5, 4, 9, "one object in all");
    check_works((int[]){300, 250, 310}, 3, 20, 20, 8, "hundreds of objects");
    check_works((int[]){2, 2, 2}, 3, 1, 300, 4, "one row of cells");
}

/* A bank without rasters has none of their numbers, whatever it had before. */
static void check_without_rasters(const Bank *bank, const char *what)
{
    char path[80];
    Error err = {""};
    CHECK_MSG(bank->raster.dim == 0 && bank->raster_unit == 0, "%s has rasters", what);
    snprintf(path, sizeof path, "%s", temporary());
    REQUIRE(!bank_save(bank, path, &err));
    Safetensors *st = st_open(path, &err);
    REQUIRE(st);
    CHECK_MSG(!st_find(st, "raster.mean") && !st_find(st, "loo.raster"), "%s keeps rasters", what);
    st_close(st);
    unlink(path);
}

static void test_without_rasters(void)
{
    static float with[MOST], without[MOST], again[MOST];
    Options options = defaults();
    Bank bank, one;
    Error err = {""};
    REQUIRE(golden_open("method_bank"));
    options.raster_weight = 2;
    if (build(&bank, 7, &options) || build_repeated(&one, 1, 3, &options))
        return;
    check_without_rasters(&one, "a bank of copies");
    size_t n = flatten(with, &bank);
    bank.options.raster_weight = 0;
    CHECK(!calibrate(&bank, NULL, NULL, NULL, &err));
    check_without_rasters(&bank, "a bank without their weight");
    CHECK(flatten(without, &bank) == n - (size_t)bank.n_loo);
    bank.options.raster_weight = 2;
    CHECK(!calibrate(&bank, NULL, NULL, NULL, &err));
    CHECK(flatten(again, &bank) == n && memcmp(with, again, n * sizeof(float)) == 0);
    bank.options.no_objects = 1;
    CHECK(!calibrate(&bank, NULL, NULL, NULL, &err));
    check_without_rasters(&bank, "a bank without objects");
    bank_free(&bank), bank_free(&one);
}

static void test_builder_refuses(void)
{
    Error err = {""};
    Bank bank;
    CHECK(bank_builder_finish(bank_builder_new(&err), &bank, &err) == -1 &&
          strstr(err.message, "at least one"));
    bank_free(&bank);
    REQUIRE(golden_open("method_bank"));
    Scene a, b;
    REQUIRE(!picture_new(&a, 0) && !picture_new(&b, 1));
    BankBuilder *builder = bank_builder_new(&err);
    CHECK(!bank_builder_add(builder, "image.png", &a, &err));
    b.objects.grid_w--;
    CHECK(bank_builder_add(builder, "image.png", &b, &err) == -1 && strstr(err.message, "image.png"));
    bank_builder_free(builder);
    objects_free(&a.objects), objects_free(&b.objects);
}

/* NaN and infinite features become float16's extremes when a bank is built. A query's are passed on, without
 * a crash. */
static void test_not_finite(void)
{
    Options options = defaults();
    Bank bank;
    Scene scene;
    Detection c;
    Error err = {""};
    REQUIRE(golden_open("method_bank"));
    if (build(&bank, 7, &options))
        return;
    REQUIRE(!query_new(&scene));
    for (int p = 0; p < 50; p++)
        scene.features[7 * p] = p % 3 ? NAN : INFINITY;
    scene.mean_patch[0] = NAN;
    CHECK(!detect_in_scene(&c, &bank, &scene, -1, &err));
    detection_free(&c);
    scene_free(&scene);
    bank_free(&bank);
}

/* A normal image that is there twice is not its own reference when it is left out. Otherwise it would seem
 * perfect, and every other image strange. */
static void test_copies(void)
{
    Options options = defaults();
    options.k = 6;
    Bank once, twice, copies;
    Error err = {""};
    int found[14];
    REQUIRE(golden_open("method_bank"));
    if (build_repeated(&once, 7, 1, &options) || build_repeated(&twice, 7, 2, &options) ||
        build_repeated(&copies, 1, 4, &options))
        return;
    CHECK(bank_same_image(&twice, 3, 10) && !bank_same_image(&twice, 3, 4));
    const size_t C = (size_t)twice.channels;
    const Scene fourth = {.mean_patch = (float *)twice.mean_patch + 3 * C};
    CHECK(bank_retrieve(&twice, &fourth, 14, 10, found, &err) == 12);
    for (int i = 0; i < 12; i++)
        CHECK(found[i] != 3 && found[i] != 10);
    CHECK(once.n_loo == 7 && twice.n_loo == 14);
    for (int i = 0; i < 7; i++) {
        CHECK(twice.loo_structural[i] == twice.loo_structural[i + 7]);
        CHECK_MSG(twice.loo_structural[i] > 0.4f * once.loo_structural[i] &&
                      twice.loo_structural[i] < 2.5f * once.loo_structural[i],
                  "image %d: %g alone, %g with copies", i, (double)once.loo_structural[i],
                  (double)twice.loo_structural[i]);
    }
    CHECK(copies.n_loo == 0 && isnan(copies.threshold)); /* as of one image */
    bank_free(&once), bank_free(&twice), bank_free(&copies);
}

/* ---- retrieval ---------------------------------------------------------------------------------*/

static void test_retrieval(void)
{
    Options options = defaults();
    Bank bank;
    Error err = {""};
    float features[3 * 4 * 5], mean[5], cls[5];
    const Scene scene = {.features = features, .mean_patch = mean, .cls = cls};
    int found[10];
    REQUIRE(!random_bank(&bank, (int[]){1, 1, 1, 1}, 4, 3, 4, 5, &options, &err));
    for (int i = 0; i < 4; i++) { /* an image is its own nearest by all three; excluded, it is not found */
        bank_features(&bank, i, features);
        memcpy(mean, bank.mean_patch + 5 * i, sizeof mean), memcpy(cls, bank.cls + 5 * i, sizeof cls);
        for (int by = 0; by < 3; by++) {
            bank.options.retrieval = by;
            CHECK(bank_retrieve(&bank, &scene, 1, -1, found, &err) == 1 && found[0] == i);
            CHECK(bank_retrieve(&bank, &scene, 100, -1, found, &err) == 4 && found[0] == i);
            CHECK(bank_retrieve(&bank, &scene, 100, i, found, &err) == 3);
            CHECK(found[0] != i && found[1] != i && found[2] != i);
        }
    }
    memset(mean, 0, sizeof mean); /* all scores equal: by index */
    bank.options.retrieval = RETRIEVAL_MEAN;
    CHECK(bank_retrieve(&bank, &scene, 4, 1, found, &err) == 3 && found[0] == 0 && found[1] == 2 &&
          found[2] == 3);
    bank_free(&bank);
}

/* A full sort is the truth for the heap: many ties, every k, an excluded image, scores that are not
 * numbers. */
typedef struct Ranked {
    float score;
    int image;
} Ranked;

static int by_score_then_image(const void *a, const void *b)
{
    const Ranked *x = a, *y = b;
    return x->score != y->score ? (x->score > y->score ? -1 : 1) : x->image - y->image;
}

static void test_retrieval_is_a_sort(void)
{
    enum { N = 67 };
    float means[N][2];
    int found[N];
    Ranked ranked[N];
    Error err = {""};
    uint16_t features[N][2];
    Bank bank = {.n_images = N,
                 .grid_h = 1,
                 .grid_w = 1,
                 .channels = 2,
                 .mean_patch = means[0],
                 .features = features[0]};
    for (int i = 0; i < N; i++) /* no two images are copies */
        features[i][0] = features[i][1] = (uint16_t)i;
    for (int exclude = -1; exclude < 20; exclude += 10)
        for (int k = 0; k <= N + 1; k++) {
            int n = 0;
            for (int i = 0; i < N; i++) {
                means[i][0] = i % 13 == 12 ? NAN : (float)(i * 37 % 11), means[i][1] = 1;
                if (i != exclude)
                    ranked[n++] = (Ranked){i % 13 == 12 ? -INFINITY : means[i][0] + 1, i};
            }
            qsort(ranked, (size_t)n, sizeof *ranked, by_score_then_image);
            int wanted = k < n ? k : n;
            const Scene scene = {.mean_patch = (float[]){1, 1}};
            REQUIRE(bank_retrieve(&bank, &scene, k < N ? k : N, exclude, found, &err) == wanted);
            for (int i = 0; i < wanted; i++)
                CHECK(found[i] == ranked[i].image);
        }
}

/* ---- hostile files -----------------------------------------------------------------------------*/

/* A change to one tensor or one line of metadata of a good bank. */
typedef struct Damage {
    const char *what;
    const char *tensor; /* left out if nothing below is set */
    int64_t shape[4];   /* another shape (and that many bytes) if n_dims > 0 */
    int n_dims;
    int f32_at, int_at; /* or an element + 1 that becomes f32 / integer */
    float f32;
    int integer;
    const char *key, *value; /* or metadata: value NULL leaves it out */
    const char *expect;      /* in the sentence */
} Damage;

static const Damage DAMAGES[] = {
    {.what = "no kind", .key = "samlad.kind", .expect = "not a samlad bank"},
    {.what = "not a bank", .key = "samlad.kind", .value = "model", .expect = "not a samlad bank"},
    {.what = "no features", .tensor = "features", .expect = "features"},
    {.what = "no first", .tensor = "objects.first", .expect = "objects.first"},
    {.what = "no mean_patch", .tensor = "mean_patch", .expect = "mean_patch"},
    {.what = "no cls", .tensor = "cls", .expect = "cls"},
    {.what = "no weights", .tensor = "objects.weights", .expect = "objects.weights"},
    {.what = "no pooled", .tensor = "objects.pooled", .expect = "objects.pooled"},
    {.what = "no centroids", .tensor = "objects.centroids", .expect = "objects.centroids"},
    {.what = "no areas", .tensor = "objects.areas", .expect = "objects.areas"},
    {.what = "no scale", .tensor = "objects.scale", .expect = "objects.scale"},
    {.what = "no dcga.mean", .tensor = "dcga.mean", .expect = "dcga.mean"},
    {.what = "no dcga.std", .tensor = "dcga.std", .expect = "dcga.std"},
    {.what = "no descriptors", .tensor = "dcga.descriptors", .expect = "dcga.descriptors"},
    {.what = "no channel_std", .tensor = "channel_std", .expect = "channel_std"},
    {.what = "no loo.index", .tensor = "loo.index", .expect = "loo.index"},
    {.what = "no loo.extra", .tensor = "loo.extra", .expect = "loo.extra"},
    {.what = "NaN loo.missing", .tensor = "loo.missing", .f32_at = 1, .f32 = NAN, .expect = "loo.missing"},
    {.what = "no loo.score", .tensor = "loo.score", .expect = "loo.score"},
    {.what = "short first", .tensor = "objects.first", .shape = {3}, .n_dims = 1, .expect = "objects.first"},
    {.what = "flat features", .tensor = "features", .shape = {7, 72, 10}, .n_dims = 3, .expect = "features"},
    {.what = "no image", .tensor = "features", .shape = {0, 8, 9, 10}, .n_dims = 4, .expect = "features"},
    {.what = "wide grid", .tensor = "features", .shape = {1, 1, 5040, 1}, .n_dims = 4, .expect = "features"},
    {.what = "short loo", .tensor = "loo.logical", .shape = {2}, .n_dims = 1, .expect = "loo.logical"},
    {.what = "square filter",
     .tensor = "dcga.filter",
     .shape = {4, 25},
     .n_dims = 2,
     .expect = "dcga.filter"},
    {.what = "first from 1", .tensor = "objects.first", .int_at = 1, .integer = 1, .expect = "does not rise"},
    {.what = "first falls", .tensor = "objects.first", .int_at = 3, .integer = 1, .expect = "does not rise"},
    {.what = "first is negative",
     .tensor = "objects.first",
     .int_at = 2,
     .integer = -5,
     .expect = "does not rise"},
    {.what = "huge count",
     .tensor = "objects.first",
     .int_at = 8,
     .integer = 2147483647,
     .expect = "does not rise"},
    {.what = "too many",
     .tensor = "objects.first",
     .int_at = 8,
     .integer = 9999,
     .expect = "objects.weights"},
    {.what = "NaN mean", .tensor = "dcga.mean", .f32_at = 2, .f32 = NAN, .expect = "dcga.mean"},
    {.what = "std 0", .tensor = "dcga.std", .f32_at = 2, .f32 = 0, .expect = "dcga.std"},
    {.what = "negative std", .tensor = "channel_std", .f32_at = 10, .f32 = -1, .expect = "channel_std"},
    {.what = "scale 0", .tensor = "objects.scale", .f32_at = 1, .f32 = 0, .expect = "objects.scale"},
    {.what = "infinite descriptor",
     .tensor = "dcga.descriptors",
     .f32_at = 9,
     .f32 = INFINITY,
     .expect = "dcga.descriptors"},
    {.what = "NaN score", .tensor = "loo.score", .f32_at = 1, .f32 = NAN, .expect = "loo.score"},
    {.what = "NaN centroid",
     .tensor = "objects.centroids",
     .f32_at = 1,
     .f32 = NAN,
     .expect = "objects.centroids"},
    {.what = "no raster.mean", .tensor = "raster.mean", .expect = "raster.mean"},
    {.what = "no raster.vectors", .tensor = "raster.vectors", .expect = "raster.vectors"},
    {.what = "no loo.raster", .tensor = "loo.raster", .expect = "loo.raster"},
    {.what = "narrow basis",
     .tensor = "raster.basis",
     .shape = {7, 10},
     .n_dims = 2,
     .expect = "raster.basis"},
    {.what = "flat within",
     .tensor = "raster.within",
     .shape = {16384},
     .n_dims = 1,
     .expect = "raster.within"},
    {.what = "NaN raster.all", .tensor = "raster.all", .f32_at = 5, .f32 = NAN, .expect = "raster.all"},
    {.what = "infinite q",
     .tensor = "raster.scores",
     .f32_at = 1,
     .f32 = INFINITY,
     .expect = "raster.scores"},
    {.what = "infinite centre",
     .tensor = "raster.centre",
     .f32_at = 1,
     .f32 = INFINITY,
     .expect = "raster.centre"},
    {.what = "no raster unit", .key = "calibration.raster_unit", .expect = "calibration.raster_unit"},
    {.what = "negative raster unit",
     .key = "calibration.raster_unit",
     .value = "-1",
     .expect = "calibration.raster_unit"},
    {.what = "raster weight in words",
     .key = "option.raster-weight",
     .value = "heavy",
     .expect = "option.raster-weight"},
    {.what = "NaN alpha", .key = "calibration.alpha", .value = "nan", .expect = "calibration.alpha"},
    {.what = "no median", .key = "calibration.structural.median", .expect = "calibration.structural.median"},
    {.what = "no nearest unit", .key = "calibration.nearest_unit", .expect = "calibration.nearest_unit"},
    {.what = "negative nearest unit",
     .key = "calibration.nearest_unit",
     .value = "-1",
     .expect = "calibration.nearest_unit"},
    {.what = "vanishing nearest unit",
     .key = "calibration.nearest_unit",
     .value = "1e-44",
     .expect = "calibration.nearest_unit"},
    {.what = "an old bank",
     .key = "samlad.bank_version",
     .value = "1",
     .expect = "a bank of version 1, this program knows version 2: build it again"},
    {.what = "no version", .key = "samlad.bank_version", .expect = "version (none)"},
    {.what = "infinite q95",
     .key = "calibration.structural.q95",
     .value = "inf",
     .expect = "calibration.structural.q95"},
    {.what = "k of 0", .key = "option.k", .value = "0", .expect = "option.k"},
    {.what = "k in words", .key = "option.k", .value = "five", .expect = "option.k"},
    {.what = "unknown option", .key = "option.magic", .value = "1", .expect = "option.magic"},
    {.what = "a bank from before an option", .key = "option.views", .expect = "option.views is missing"},
    {.what = "option that went out", .key = "option.fusion", .value = "sum", .expect = "option.fusion"},
};

/* A copy of the good bank with the damage. */
static int write_damaged(const Safetensors *good, const Damage *d, const char *path)
{
    Error err = {""};
    StWriter *w = st_writer_new();
    int status = w ? 0 : -1, known = 0;
    for (size_t i = 0; i < st_meta_count(good) && !status; i++) {
        const char *key, *value;
        st_meta_at(good, i, &key, &value);
        int hit = d->key && strcmp(d->key, key) == 0;
        known |= hit;
        if (!hit || d->value)
            status = st_writer_meta(w, key, hit ? d->value : value, &err);
    }
    if (!status && d->key && d->value && !known)
        status = st_writer_meta(w, d->key, d->value, &err);
    for (size_t i = 0; i < st_count(good) && !status; i++) {
        const StTensor *t = st_at(good, i);
        int hit = d->tensor && strcmp(d->tensor, t->name) == 0;
        if (hit && !d->n_dims && !d->f32_at && !d->int_at)
            continue;
        char *bytes = malloc(t->n_bytes + 1);
        memcpy(bytes, t->data, t->n_bytes);
        if (hit && d->f32_at)
            memcpy(bytes + 4 * (d->f32_at - 1), &d->f32, 4);
        if (hit && d->int_at)
            memcpy(bytes + 4 * (d->int_at - 1), &d->integer, 4);
        status = st_writer_copy(w, t->name, t->dtype, hit && d->n_dims ? d->n_dims : t->n_dims,
                                hit && d->n_dims ? d->shape : t->shape, bytes, &err);
        free(bytes);
    }
    if (!status)
        status = st_writer_save(w, path, &err);
    st_writer_free(w);
    return status;
}

static int one_sentence(const char *message, const char *path)
{
    return strstr(message, path) && !strchr(message, '\n') && strlen(message) > strlen(path) + 8;
}

static void test_hostile(void)
{
    Options options = defaults();
    Bank bank, loaded;
    Error err = {""};
    char damaged[80];
    REQUIRE(golden_open("method_bank"));
    options.raster_weight = 2;
    if (build(&bank, 7, &options))
        return;
    CHECK(bank.channels == 10 && bank.dcga.filter);
    REQUIRE(!bank_save(&bank, temporary(), &err));
    bank_free(&bank);
    Safetensors *good = st_open(temporary(), &err);
    REQUIRE(good);
    snprintf(damaged, sizeof damaged, "%s.damaged", temporary());
    REQUIRE(!write_damaged(good, &(Damage){0}, damaged) &&
            !bank_load(&loaded, damaged, &err)); /* the undamaged copy is accepted */
    bank_free(&loaded);
    for (size_t i = 0; i < sizeof DAMAGES / sizeof *DAMAGES; i++) {
        const Damage *d = &DAMAGES[i];
        err.message[0] = '\0';
        CHECK_MSG(!write_damaged(good, d, damaged), "%s could not be written", d->what);
        int status = bank_load(&loaded, damaged, &err);
        CHECK_MSG(status == -1 && one_sentence(err.message, damaged) && strstr(err.message, d->expect),
                  "%s: status %d, \"%s\"", d->what, status, err.message);
        CHECK_MSG(!loaded.file && !loaded.names && !loaded.descriptors && loaded.n_images == 0,
                  "%s: something is left", d->what);
        if (!status)
            bank_free(&loaded);
    }
    st_close(good);
    unlink(damaged), unlink(temporary());
}

/* Features that are not numbers are found when the image is used. A check at loading would read all of a
 * large bank. */
static void test_hostile_features(void)
{
    Options options = defaults();
    Bank bank;
    Scene scene;
    Detection c;
    Error err = {""};
    REQUIRE(golden_open("method_bank"));
    options.k = 7;
    if (build(&bank, 7, &options))
        return;
    ((uint16_t *)bank.owned[0])[17] = 0x7e00;
    CHECK(bank.features[17] == 0x7e00);
    REQUIRE(!query_new(&scene));
    CHECK(detect_in_scene(&c, &bank, &scene, -1, &err) == -1 && strstr(err.message, "image 0 (image.png)"));
    ((uint16_t *)bank.owned[0])[17] = 0;
    detection_free(&c);
    bank.cls_dim++; /* as of a bank with another class token: it would read past the scene's */
    CHECK(detect_in_scene(&c, &bank, &scene, -1, &err) == -1 && strstr(err.message, "class token"));
    detection_free(&c);
    bank.cls_dim--;
    bank.grid_h--;
    CHECK(detect_in_scene(&c, &bank, &scene, -1, &err) == -1 && strstr(err.message, "feature map"));
    detection_free(&c);
    bank.grid_h++;
    scene_free(&scene);
    bank_free(&bank);
}

/* Cut anywhere, a bank is refused. */
static void test_truncated(void)
{
    Options options = defaults();
    Bank bank;
    Error err = {""};
    REQUIRE(golden_open("method_bank"));
    if (build(&bank, 2, &options))
        return;
    REQUIRE(!bank_save(&bank, temporary(), &err));
    bank_free(&bank);
    FILE *f = fopen(temporary(), "rb");
    REQUIRE(f);
    static char bytes[1 << 20];
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    for (size_t cut = 0; cut < n; cut += n / 40 + 1) {
        f = fopen(temporary(), "wb");
        REQUIRE(f && fwrite(bytes, 1, cut, f) == cut && !fclose(f));
        CHECK_MSG(bank_load(&bank, temporary(), &err) == -1 && one_sentence(err.message, temporary()),
                  "cut at %zu of %zu", cut, n);
    }
    unlink(temporary());
    CHECK(bank_load(&bank, temporary(), &err) == -1 &&
          one_sentence(err.message, temporary())); /* and so is a missing file */
}

/* The file of a backbone recommends a size and, for this size, a grid. */
static void test_recommended_grid(void)
{
    static const char *const grids[] = {"72", "0"};
    Networks networks;
    Error err = {""};
    REQUIRE(!networks_open(&networks, "weights/vit_tiny.safetensors", NULL, NULL, NULL, &err));
    Safetensors *shipped = networks.vit_file;
    for (size_t i = 0; i < 2; i++) {
        Options left = defaults(), chosen = defaults();
        left.size = left.grid = chosen.grid = 0, chosen.size = 240;
        StWriter *w = st_writer_new();
        REQUIRE(w && !st_writer_meta(w, "method.size", "336", &err) &&
                !st_writer_meta(w, "method.grid", grids[i], &err) && !st_writer_save(w, temporary(), &err));
        st_writer_free(w);
        networks.vit_file = st_open(temporary(), &err);
        REQUIRE(networks.vit_file);
        CHECK(!networks_complete(&networks, &chosen, &err) && chosen.size == 240 && chosen.grid == 0);
        if (i == 0)
            CHECK(!networks_complete(&networks, &left, &err) && left.size == 336 && left.grid == 72);
        else
            CHECK(networks_complete(&networks, &left, &err) && strstr(err.message, "method.grid"));
        st_close(networks.vit_file);
    }
    networks.vit_file = shipped;
    networks_close(&networks);
    unlink(temporary());
}

/* Features computed directly on the grid equal those by way of enlarged features. */
static void test_bilinear_grid(void)
{
    enum { H = 30, W = 50, SIZE = 48, SIDE = SIZE / 8, UP = 8 * SIDE };
    static const int grids[] = {7, 12, 48, 60};
    uint8_t rgb[H * W * 3];
    Networks networks;
    Error err = {""};
    for (int i = 0; i < H * W * 3; i++)
        rgb[i] = (uint8_t)(i * 7919 % 251);
    REQUIRE(!networks_open(&networks, "weights/vit_tiny.safetensors", NULL, NULL, NULL, &err));
    const int C = vit_config(networks.vit)->dim;
    float *pixels = malloc(3 * SIZE * SIZE * sizeof(float)), *cls = malloc((size_t)C * sizeof(float));
    float *patches = malloc((size_t)(SIDE * SIDE * C) * sizeof(float));
    float *up = malloc((size_t)(UP * UP * C) * sizeof(float));
    float *expected = malloc((size_t)(60 * 60 * C) * sizeof(float));
    VitState *state = vit_state_new(networks.vit, SIDE, SIDE, &err);
    REQUIRE(pixels && cls && patches && up && expected && state);
    REQUIRE(!vit_preprocess(vit_config(networks.vit), pixels, SIZE, SIZE, &(Picture){rgb, H, W}, &err));
    CHECK(!vit_forward(networks.vit, state, &(VitImage){pixels, SIZE, SIZE}, 6, cls, patches, NULL, NULL,
                       NULL));
    interpolate_bilinear(up, UP, UP, patches, SIDE, SIDE, C, 0, 0);
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++) {
        Options o = defaults();
        Scene scene;
        o.size = SIZE, o.grid = grids[i], o.layer = 6, o.no_objects = 1, o.views = 1;
        REQUIRE(!scene_analyse(&scene, &networks, &o, &(Picture){rgb, H, W}, &err));
        CHECK(scene.objects.grid_h == grids[i] && scene.objects.grid_w == grids[i]);
        if (grids[i] <= UP)
            adaptive_avg_pool(expected, grids[i], grids[i], up, UP, UP, C);
        else
            interpolate_bilinear(expected, grids[i], grids[i], up, UP, UP, C, 0, 0);
        float worst = 0;
        for (int p = 0; p < grids[i] * grids[i] * C; p++)
            worst = fmaxf(worst, fabsf(scene.features[p] - expected[p]));
        CHECK_MSG(worst < 2e-5f, "grid %d: %g", grids[i], (double)worst);
        scene_free(&scene);
    }
    vit_state_free(state);
    networks_close(&networks);
    free(pixels), free(cls), free(patches), free(up), free(expected);
}

/* The mean of two views, against torch and the official class (make_golden_vit.py). */
static void test_views(void)
{
    Error err = {""};
    Networks networks;
    Safetensors *views = st_open("tests/golden/vit_views_golden.safetensors", &err);
    REQUIRE(views &&
            !networks_open(&networks, "tests/golden/vit_dinov2_model.safetensors", NULL, NULL, NULL, &err));
    const StTensor *image = st_find(views, "image"), *expected = st_find(views, "features");
    REQUIRE(image && expected && expected->n_dims == 3);
    const Picture picture = {image->data, (int)image->shape[0], (int)image->shape[1]};
    Options o = defaults();
    Scene scene;
    o.size = 70, o.grid = 16, o.layer = 3, o.no_objects = 1, o.resize = RESIZE_FIT;
    for (o.views = 2; o.views >= 1; o.views--) {
        REQUIRE(!scene_analyse(&scene, &networks, &o, &picture, &err));
        REQUIRE(scene.objects.grid_h == expected->shape[0] && scene.objects.grid_w == expected->shape[1] &&
                scene.objects.channels == expected->shape[2]);
        const double error = test_relative_error(scene.features, expected->data, expected->n_elements);
        CHECK_MSG(o.views == 2 ? error < 1e-5 : error > 0.1, "%d views: relative error %.2g", o.views, error);
        scene_free(&scene);
    }
    networks_close(&networks);
    st_close(views);
}

/* Half a patch of 7 pixels is no whole number of pixels. */
static void test_odd_patches(void)
{
    uint8_t rgb[30 * 40 * 3];
    Error err = {""};
    Networks networks;
    Scene scenes[2];
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 7919 % 251);
    REQUIRE(
        !networks_open(&networks, "tests/golden/vit_registers_model.safetensors", NULL, NULL, NULL, &err));
    for (int v = 0; v < 2; v++) {
        Options o = defaults();
        o.size = 35, o.grid = 10, o.layer = 1, o.no_objects = 1, o.views = v + 1;
        REQUIRE(!scene_analyse(&scenes[v], &networks, &o, &(Picture){rgb, 30, 40}, &err));
    }
    CHECK(memcmp(scenes[0].features, scenes[1].features, 10 * 10 * 24 * sizeof(float)) == 0);
    scene_free(&scenes[0]);
    scene_free(&scenes[1]);
    networks_close(&networks);
}

int main(void)
{
    RUN(test_golden);
    RUN(test_method);
    RUN(test_paper);
    RUN(test_count);
    RUN(test_round_trip);
    RUN(test_options_round_trip);
    RUN(test_threads);
    RUN(test_thresholds);
    RUN(test_few_scores);
    RUN(test_one_image);
    RUN(test_count_without_bound);
    RUN(test_recommended_grid);
    RUN(test_settings);
    RUN(test_recommendations_can_be_saved);
    RUN(test_bilinear_grid);
    RUN(test_views);
    RUN(test_odd_patches);
    RUN(test_unusual);
    RUN(test_without_rasters);
    RUN(test_builder_refuses);
    RUN(test_not_finite);
    RUN(test_copies);
    RUN(test_retrieval);
    RUN(test_retrieval_is_a_sort);
    RUN(test_hostile);
    RUN(test_hostile_features);
    RUN(test_truncated);
    st_close(golden);
    return test_summary();
}
