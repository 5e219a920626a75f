/* eval/evaluate.c - see evaluate.h. */
#include "eval/evaluate.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/facts.h"
#include "eval/readable.h"
#include "eval/renew.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"

/* Tell every file that cannot be read. Without skip_unreadable they are problems. */
static void tell_unreadable(const EvaluateRequest *r, const Dataset *d)
{
    const int n = dataset_unreadable(d);
    Error err;
    for (int i = 0; i < d->n; i++)
        for (int k = 0; k < d->categories[i].n_unreadable; k++)
            r->complain(d->categories[i].unreadable[k].reason);
    if (n && r->skip_unreadable) {
        fail(&err, "%s: %d file%s cannot be read and %s left out", d->root, n, n == 1 ? "" : "s",
             n == 1 ? "is" : "are");
        r->complain(err.message);
    }
}

static int fail_problems(const EvaluateRequest *r, const Evaluation *e, Error *err)
{
    const int n_unreadable = r->skip_unreadable ? 0 : dataset_unreadable(&e->dataset),
              n = e->problems.n + n_unreadable;
    return n ? fail(err, "%s: %d problem%s in this data set, nothing was begun%s", e->dataset.root, n,
                    n == 1 ? "" : "s",
                    n_unreadable ? " (--skip-unreadable goes on without files that cannot be read)" : "")
             : 0;
}

/* Leave out the files that the run of the request's folder has left out. */
static int leave_out_again(const EvaluateRequest *r, Dataset *d, Error *err)
{
    for (int i = 0; i < d->n; i++)
        if (run_leave_out(r->plan.out, &d->categories[i], err))
            return -1;
    return 0;
}

int evaluation_prepare(const EvaluateRequest *r, const char *data, Evaluation *result, Error *err)
{
    *result = (Evaluation){0};
    if (dataset_open(&result->dataset, data, &r->set, &result->problems, err))
        return -1;
    const DatasetLook look = {.with_bank = !r->plan.bank && !r->merging,
                              .n_contents = r->plan.max_bank > 0 ? r->plan.max_bank : INT_MAX,
                              .with_masks = r->plan.fixed_tests,
                              .progress = r->plan.progress,
                              .user = r->plan.user};
    if (r->merging ? leave_out_again(r, &result->dataset, err) : dataset_read(&result->dataset, &look, err))
        return -1;
    if (!r->merging)
        tell_unreadable(r, &result->dataset);
    dataset_check(&result->dataset, &look, &result->problems);
    for (int i = 0; r->tell && i < result->dataset.notes.n; i++)
        r->tell(result->dataset.notes.sentences[i]);
    if (fail_problems(r, result, err))
        return -1;
    if (r->plan.bank && result->dataset.n > 1)
        return fail(err, "%s: %d categories, but one bank: choose one with --category", data,
                    result->dataset.n);
    return 0;
}

/* The largest value in the normal images of 16 bits; 0: there are none, -1: no memory. */
static int brightest_normal(const Dataset *d)
{
    int brightest = 0;
    for (int i = 0; i < d->n && brightest >= 0; i++) {
        const DatasetCategory *c = &d->categories[i];
        const int here = samlad_brightest((const char *const *)c->normal, c->n_normal);
        brightest = here < 0 || here > brightest ? here : brightest;
    }
    return brightest;
}

/* The same in the test images. */
static int brightest_test(const Dataset *d)
{
    int brightest = 0;
    for (int i = 0; i < d->n && brightest >= 0; i++) {
        const DatasetCategory *c = &d->categories[i];
        const char **paths = calloc((size_t)c->n_images + 1, sizeof *paths);
        for (int k = 0; paths && k < c->n_images; k++)
            paths[k] = c->images[k].path;
        const int here = paths ? samlad_brightest(paths, c->n_images) : -1;
        brightest = here < 0 || here > brightest ? here : brightest;
        free(paths);
    }
    return brightest;
}

static void tell_dark_images(const EvaluateRequest *r, int normal, int test)
{
    const int has_bank = r->plan.bank != NULL;
    Error err;
    if (image_is_dark(test) && !image_is_dark(normal) && !has_bank) { /* no white would make them alike. */
        fail(&err,
             "the largest value of the 16-bit test images is %d of %d, so they are nearly black beside the "
             "normal ones: save both alike",
             test, IMAGE_WHITE);
        r->complain(err.message);
    } else if (image_is_dark(normal) || image_is_dark(test))
        r->dark(normal > test ? normal : test,
                !image_is_dark(test) ? "normal images"
                : has_bank           ? "test images"
                                     : "images",
                has_bank);
}

/* One white for all categories: a run has one list of settings. A bank that is given brings its own. */
int evaluation_white(Samlad *s, const EvaluateRequest *r, Evaluation *e, Error *err)
{
    char text[16];
    const int is_auto = !samlad_white(s), normal = r->plan.bank ? 0 : brightest_normal(&e->dataset);
    if (normal < 0)
        return fail(err, "out of memory for the largest value of the images");
    snprintf(text, sizeof text, "%d", normal ? image_white(normal) : IMAGE_WHITE);
    if (is_auto && samlad_set(s, "white", text, err))
        return -1;
    const int test = samlad_white(s) == IMAGE_WHITE ? brightest_test(&e->dataset) : 0;
    if (test < 0)
        return fail(err, "out of memory for the largest value of the images");
    if (samlad_white(s) == IMAGE_WHITE && r->dark)
        tell_dark_images(r, normal, test);
    return 0;
}

int evaluation_measure(Evaluation *e, const char *out, Error *err)
{
    free(e->categories);
    e->categories = calloc((size_t)e->dataset.n + 1, sizeof *e->categories);
    if (!e->categories)
        return fail_memory(err, "the figures",
                           ((unsigned long long)e->dataset.n + 1) * sizeof *e->categories);
    for (int i = 0; i < e->dataset.n; i++)
        if (figures_measure(&e->categories[i], e->dataset.kind, &e->dataset.categories[i], out, err))
            return -1;
    figures_mean(&e->categories[e->dataset.n], e->categories, e->dataset.n);
    return table_write(e->categories, &e->dataset, out, err);
}

/* A folder for a run whose results are not kept. malloc'd; NULL after a sentence. */
static char *temporary_folder(Error *err)
{
    char name[RUN_PATH];
    const char *tmp = getenv("TMPDIR");
    snprintf(name, sizeof name, "%.*s/samlad-eval.XXXXXX", RUN_PATH - 64, tmp && *tmp ? tmp : "/tmp");
    const int is_made = mkdtemp(name) != NULL;
    char *copy = is_made ? strdup(name) : NULL;
    if (!copy)
        fail(err, "%s: cannot make a temporary folder: %s (give one with -o)", name, strerror(errno));
    if (is_made && !copy)
        rmdir(name);
    return copy;
}

/* Would the results lie among the images? Then the next run would judge its own pictures. */
static int refuse_among_images(const Dataset *d, const char *out, Error *err)
{
    fail_none(err);
    for (int i = 0; i < d->n && dir_exists(out); i++) {
        const DatasetCategory *c = &d->categories[i];
        for (int k = 0; k < c->n_normal + c->n_images; k++) {
            const char *path = k < c->n_normal ? c->normal[k] : c->images[k - c->n_normal].path;
            if (folder_is_within(path, out, err))
                return fail(err,
                            "%.600s: the results would lie among the images, as %.600s: give another folder",
                            out, path);
        }
    }
    return fail_any(err);
}

int evaluate(Samlad *s, const EvaluateRequest *r, Evaluation *result, Error *err)
{
    RunPlan plan = r->plan;
    if (evaluation_prepare(r, r->data, result, err) ||
        (plan.bank && samlad_bank_load(s, plan.bank, err)) || /* the settings come from the bank. */
        evaluation_white(s, r, result, err))
        return -1;
    if (plan.out && refuse_among_images(&result->dataset, plan.out, err))
        return -1;
    char *temporary = plan.out ? NULL : temporary_folder(err);
    plan.out = plan.out ? plan.out : temporary;
    if (!plan.out)
        return -1;
    int status = run_images(s, &result->dataset, &plan, &result->times, err);
    if (!status && plan.n_shards == 1)
        status = evaluation_measure(result, plan.out, err);
    if (temporary && dir_remove(temporary, status ? NULL : err))
        status = -1;
    free(temporary);
    return status;
}

/* Keep the names [n] that have the ending, without it; other files may be temporary. Returns their number. */
static int keep_stems(char **names, size_t n, const char *ending)
{
    int kept = 0;
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(names[i]), n_ending = strlen(ending);
        if (length <= n_ending || strcmp(names[i] + length - n_ending, ending) != 0)
            continue;
        names[i][length - n_ending] = '\0';
        names[kept++] = names[i];
    }
    return kept;
}

/* What a merge reads from the run's folder. */
typedef struct Recalled {
    char data[RUN_PATH], normal[RUN_PATH], anomalous[RUN_PATH], masks[RUN_PATH];
    char **names; /* of the categories; malloc'd. */
} Recalled;

/* *value, unless it is set: the run's fact, kept in `text`. */
static void recall_text(const char **value, char text[RUN_PATH], const Facts *facts, const char *key)
{
    const char *fact = facts_get(facts, key);
    if (*value || !fact)
        return;
    snprintf(text, RUN_PATH, "%s", fact);
    *value = text;
}

/* How the run listed the data set, unless the request says otherwise. */
static void recall_layout(CategoryRequest *layout, Recalled *recalled, const Facts *facts)
{
    const char *held = facts_get(facts, "data.hold-out");
    recall_text(&layout->given.normal, recalled->normal, facts, "data.normal");
    recall_text(&layout->given.anomalous, recalled->anomalous, facts, "data.anomalous");
    recall_text(&layout->given.masks, recalled->masks, facts, "data.masks");
    layout->hold_out = layout->hold_out ? layout->hold_out : held ? atoi(held) : 0;
    layout->resize_masks |= facts_get(facts, "data.resize-masks") != NULL;
}

/* Read from the run's folder: the kind and place of the data set, its layout, and the categories. */
static int recall(const char *out, EvaluateRequest *r, Recalled *recalled, Error *err)
{
    char path[RUN_PATH], version[32];
    Facts facts;
    if (snprintf(path, sizeof path, "%s/run.json", out) >= RUN_PATH || facts_read(&facts, path, err))
        return -1;
    const char *kind = facts_get(&facts, "dataset"), *where = facts_get(&facts, "data"),
               *bank = facts_get(&facts, "bank");
    r->set.kind = kind ? dataset_kind_find(kind) : DATASET_KINDS;
    if (bank && strlen(bank) == 64) /* a checksum: the bank was given, so no normal images are needed. */
        r->plan.bank = out;
    const char *by = facts_get(&facts, "samlad");
    snprintf(version, sizeof version, "%s", by ? by : "of no version");
    snprintf(recalled->data, RUN_PATH, "%s", r->data ? r->data : where ? where : "");
    recall_layout(&r->set.layout, recalled, &facts);
    facts_free(&facts);
    if (r->set.kind == DATASET_KINDS)
        return fail(err, "%s: the kind of data set is unknown", path);
    if (strcmp(version, SAMLAD_VERSION) != 0)
        return fail(err, "%s: the run was made by samlad %s; samlad %s identifies images in another way",
                    path, version, SAMLAD_VERSION);
    if (!dir_exists(recalled->data))
        return fail(err, "%s: the data set of this run is missing: give its place with --data",
                    recalled->data);
    if (r->set.n_categories)
        return 0;
    size_t n;
    snprintf(path, sizeof path, "%.*s/categories", RUN_PATH - 32, out);
    char **names = recalled->names = dir_list(path, 0, &n, err);
    r->set.categories = (const char *const *)names;
    r->set.n_categories = names ? keep_stems(names, n, ".json") : 0;
    return names ? 0 : -1;
}

int evaluate_merge(const char *const *folders, int n, const char *out, const EvaluateRequest *request,
                   Evaluation *result, Error *err)
{
    EvaluateRequest r = *request;
    r.merging = r.skip_unreadable = 1;
    r.plan.out = out;
    *result = (Evaluation){0};
    Recalled *recalled = calloc(1, sizeof *recalled);
    if (!recalled)
        return fail_memory(err, "a run's settings", sizeof *recalled);
    int status = run_merge(out, folders, n, err) || recall(out, &r, recalled, err) ||
                 evaluation_prepare(&r, recalled->data, result, err) || evaluation_measure(result, out, err);
    result->dataset.request = (CategoryRequest){0}; /* its strings end here. */
    free(recalled->names);
    free(recalled);
    return status ? -1 : 0;
}

void evaluation_free(Evaluation *e)
{
    dataset_free(&e->dataset);
    problems_free(&e->problems);
    free(e->categories);
    *e = (Evaluation){0};
}
