/* eval/run.c - see run.h. */
#include "eval/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/facts.h"
#include "eval/maps.h"
#include "eval/renew.h"
#include "io/clock.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "library/detect.h"
#include "report/report.h"

/* ================================================================================================
 * Paths
 * ============================================================================================== */

static int join3(char path[RUN_PATH], const char *a, const char *b, const char *c, const char *ending,
                 Error *err)
{
    return snprintf(path, RUN_PATH, "%s/%s/%s%s", a, b, c, ending) < RUN_PATH - 128
               ? 0
               : fail(err, "%s/%s: the path is too long", a, b);
}

static int join2(char path[RUN_PATH], const char *a, const char *b, Error *err)
{
    return snprintf(path, RUN_PATH, "%s/%s", a, b) < RUN_PATH - 128
               ? 0
               : fail(err, "%s/%s: the path is too long", a, b);
}

/* Make the folder of the file. */
static int make_parent(const char *path, Error *err)
{
    char dir[RUN_PATH];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (!slash)
        return 0;
    *slash = '\0';
    return dir_make(dir, err);
}

/* ================================================================================================
 * The facts of a run: all that its results depend on
 * ============================================================================================== */

static int bank_file_sha256(const char *path, char hex[65], Error *err)
{
    Safetensors *st = st_open(path, err); /* mapped: a bank may be larger than memory. */
    if (!st)
        return -1;
    st_sha256(st, hex);
    st_close(st);
    return 0;
}

/* How the data set was listed: a merge lists it again. */
static void add_layout(Facts *facts, const CategoryRequest *r)
{
    const struct {
        const char *key, *value;
    } given[] = {{"data.normal", r->given.normal},
                 {"data.anomalous", r->given.anomalous},
                 {"data.masks", r->given.masks}};
    for (int i = 0; i < 3; i++)
        if (given[i].value)
            facts_add(facts, given[i].key, given[i].value);
    if (r->hold_out)
        facts_add_int(facts, "data.hold-out", r->hold_out);
    if (r->resize_masks)
        facts_add_int(facts, "data.resize-masks", 1);
}

/* The facts of the whole run, and the path of their file. facts_free frees them, after a failure too. */
static int run_facts(Facts *facts, char path[RUN_PATH], const Samlad *s, const Dataset *d,
                     const RunPlan *plan, Error *err)
{
    char sha[65] = "made from the normal images";
    *facts = (Facts){0};
    if (snprintf(path, RUN_PATH, "%s/run.json", plan->out) >= RUN_PATH - 128)
        return fail(err, "%s: the path is too long", plan->out);
    if (plan->bank && bank_file_sha256(plan->bank, sha, err))
        return -1;
    char *real = realpath(d->root, NULL);
    if (!real)
        return fail(err, "%s: cannot be found: %s", d->root, strerror(errno));
    facts_add(facts, "samlad", SAMLAD_VERSION);
    facts_add(facts, "dataset", dataset_kind_name(d->kind));
    facts_add(facts, "data", real);
    add_layout(facts, &d->request);
    free(real);
    facts_add(facts, "bank", sha);
    facts_add_int(facts, "max-bank", plan->max_bank);
    facts_add(facts, "baselines", plan->baselines ? "on" : "off");
    return facts_describe(facts, s, err);
}

static int settle_run(const Samlad *s, const Dataset *d, const RunPlan *plan, Error *err)
{
    Facts facts;
    char path[RUN_PATH];
    int status = run_facts(&facts, path, s, d, plan, err);
    if (!status)
        status = facts_settle(&facts, path, err);
    facts_free(&facts);
    return status;
}

/* The data set may have moved, or lost categories, since run.json was written: a merge looks for what it names. */
static int follow_data(const Samlad *s, const Dataset *d, const RunPlan *plan, Error *err)
{
    Facts then, today;
    char path[RUN_PATH];
    int status = run_facts(&today, path, s, d, plan, err);
    if (!status && !(status = facts_read(&then, path, err))) {
        const char *old_place = facts_get(&then, "data");
        status = run_drop_categories(plan->out, d, old_place ? old_place : d->root, err);
        if (!status && facts_moved(&then, &today))
            status = facts_save(&today, path, err);
        facts_free(&then);
    }
    facts_free(&today);
    return status;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int count_normal(const DatasetCategory *c, const RunPlan *plan)
{
    return plan->max_bank > 0 && c->n_normal > plan->max_bank ? plan->max_bank : c->n_normal;
}

/* Names and contents of the normal images. */
static int digest_normal(Digest *d, const DatasetCategory *c, int n, Error *err)
{
    for (int i = 0; i < n; i++)
        if (digest_line(d, base_name(c->normal[i]), c->normal_sha256[i], err))
            return -1;
    return 0;
}

static int digest_masks(Digest *d, const DatasetCategory *c, Error *err)
{
    for (int i = 0; i < c->n_images; i++)
        if (digest_line(d, c->images[i].stem, c->images[i].masks_sha256, err))
            return -1;
    return 0;
}

static int add_digest(Facts *facts, const char *key, Digest *d, int status)
{
    char sha[65];
    if (!status) {
        digest_sha256(d, sha);
        facts_add(facts, key, sha);
    }
    free(d->text);
    return status;
}

static int settle_category(const Samlad *s, const DatasetCategory *c, const RunPlan *plan, Error *err)
{
    Facts facts = {0};
    Digest normal = {0}, masks = {0};
    char path[RUN_PATH], tests[65];
    int n = plan->bank ? 0 : count_normal(c, plan);
    facts_add_int(&facts, "normal.count", plan->bank ? samlad_bank_size(s) : n);
    int status = add_digest(&facts, "normal.sha256", &normal, digest_normal(&normal, c, n, err));
    if (!status && plan->fixed_tests) {
        status = tests_sha256(tests, c, err) ||
                 add_digest(&facts, "masks.sha256", &masks, digest_masks(&masks, c, err));
        facts_add(&facts, "test.sha256", status ? "" : tests);
    }
    if (!status)
        status = join3(path, plan->out, "categories", c->name, ".json", err) || make_parent(path, err) ||
                 facts_settle(&facts, path, err);
    facts_free(&facts);
    return status ? -1 : 0;
}

int run_settle(Samlad *s, const Dataset *d, const RunPlan *plan, Error *err)
{
    if (dir_make(plan->out, err) || dir_sweep(plan->out, err) || settle_run(s, d, plan, err))
        return -1;
    for (int i = 0; i < d->n; i++)
        if (settle_category(s, &d->categories[i], plan, err))
            return -1;
    return 0;
}

/* ================================================================================================
 * One process's work
 * ============================================================================================== */

typedef struct Job {
    Samlad *s;
    const RunPlan *plan;
    const DatasetCategory *category;
    BaselineBank baselines; /* of the category's bank, if the plan wants them. */
    RunTimes *times;
    int at_once;
    Samlad **shares; /* [at_once] */
    int done, total; /* for progress */
    int later;       /* test images to do in the categories after this one. */
    Error *err;
} Job;

static int open_shares(Job *job)
{
    job->at_once = samlad_images_at_once(job->s);
    job->shares = calloc((size_t)job->at_once, sizeof(*job->shares));
    if (!job->shares)
        return fail_memory(job->err, "a batch of images", (unsigned long long)job->at_once * 8);
    for (int i = 0; i < job->at_once; i++)
        if (!(job->shares[i] = samlad_share(job->s, job->err)))
            return -1;
    return 0;
}

static void close_shares(Job *job)
{
    for (int i = 0; job->shares && i < job->at_once; i++)
        samlad_close(job->shares[i]);
    free(job->shares);
    job->shares = NULL;
}

/* Work on image `index` of the category, with one of the handles. */
typedef int (*Work)(const Job *job, Samlad *s, int index, double *seconds, Error *err);

/* Do the work for all indices of the list, several at once. Each image writes its own files. The first
 * failure in the order of the list ends it. */
static int work_through(Job *job, Work work, const int *list, int n, const char *what)
{
    int status = open_shares(job), at_once = job->at_once;
    Error *errors = calloc((size_t)at_once, sizeof *errors);
    double *seconds = calloc((size_t)at_once, sizeof *seconds);
    int *failed = calloc((size_t)at_once, sizeof *failed);
    if (!status && (!errors || !seconds || !failed))
        status = fail_memory(job->err, "a batch of images", sizeof *errors);
    for (int base = 0; base < n && !status; base += at_once) {
        int m = n - base < at_once ? n - base : at_once;
#pragma omp parallel for schedule(static, 1) if (m > 1)
        for (int i = 0; i < m; i++)
            failed[i] = work(job, job->shares[i], list[base + i], &seconds[i], &errors[i]);
        for (int i = 0; i < m && !status; i++)
            if (failed[i])
                status = fail(job->err, "%s", errors[i].message);
        job->done += m;
        if (!status && job->plan->progress)
            job->plan->progress(job->plan->user, what, job->done, job->total);
    }
    close_shares(job);
    free(errors), free(seconds), free(failed);
    return status;
}

/* ---- the bank ----------------------------------------------------------------------------------*/

static int scene_path(const Job *job, int index, char path[RUN_PATH], Error *err)
{
    char name[64];
    snprintf(name, sizeof name, "%06d.scene", index);
    const char *keep = job->plan->scenes;
    return join3(path, keep ? keep : job->plan->out, keep ? "normal" : "scenes", job->category->name, "", err)
               ? -1
           : snprintf(path + strlen(path), RUN_PATH - strlen(path), "/%s", name) < 0
               ? fail(err, "%s: the path is too long", job->plan->out)
               : 0;
}

static int analyse_normal(const Job *job, Samlad *s, int index, double *seconds, Error *err)
{
    char path[RUN_PATH];
    int width, height;
    (void)seconds;
    if (scene_path(job, index, path, err) || file_exists(path)) /* another process did it. */
        return file_exists(path) ? 0 : -1;
    uint8_t *rgb = image_read_white(job->category->normal[index], samlad_white(s), &width, &height, err);
    int status = rgb ? samlad_scene_save(s, rgb, height, width, path, err) : -1;
    free(rgb);
    return status;
}

static int calibrate_bank(Job *job, int n, Error *err)
{
    char **scenes = calloc((size_t)n + 1, sizeof *scenes);
    int status = scenes ? 0 : fail_memory(err, "the list of images", (unsigned long long)n * 8);
    for (int i = 0; i < n && !status; i++) {
        char path[RUN_PATH];
        status = scene_path(job, i, path, err);
        if (!status && !(scenes[i] = strdup(path)))
            status = fail_memory(err, "the list of images", strlen(path));
    }
    if (!status)
        status = samlad_bank_from_scenes(job->s, (const char *const *)scenes,
                                         (const char *const *)job->category->normal, n, job->plan->progress,
                                         job->plan->user, err);
    for (int i = 0; scenes && i < n; i++)
        free(scenes[i]);
    free(scenes);
    return status;
}

static int publish_bank(Job *job, const char *path)
{
    char *temporary = temporary_name(path);
    int status =
        temporary ? samlad_bank_save(job->s, temporary, job->err) : fail_memory(job->err, path, strlen(path));
    if (!status)
        status = file_publish(temporary, path, job->err) < 0 ? -1 : 0;
    free(temporary);
    return status;
}

/* Analyse the normal images that are still to do, then make the bank if nobody has made it. Each process
 * begins at another place of the list, so that many share the work without waiting. */
static int make_bank(Job *job, const char *path)
{
    const RunPlan *plan = job->plan;
    int n = count_normal(job->category, plan), n_left = 0;
    int first = (int)((long long)n * plan->shard / plan->n_shards);
    int *left = calloc((size_t)n + 1, sizeof *left);
    if (!left)
        return fail_memory(job->err, "the list of images", (unsigned long long)n * sizeof *left);
    int status = 0;
    for (int i = 0; i < n && !status; i++) {
        char scene[RUN_PATH];
        status = scene_path(job, (first + i) % n, scene, job->err) || (i == 0 && make_parent(scene, job->err))
                     ? -1
                     : 0;
        if (!status && !file_exists(scene))
            left[n_left++] = (first + i) % n;
    }
    job->done = n - n_left, job->total = n;
    if (!status)
        status = work_through(job, analyse_normal, left, n_left, "normal images");
    free(left);
    if (!status && !file_exists(path))
        status = calibrate_bank(job, n, job->err) || publish_bank(job, path) ? -1 : 0;
    if (status && file_exists(path)) /* another process made the bank and removed the scenes. */
        status = 0;
    return status;
}

/* Load the category's bank from the file that all processes use; make it first if it is missing. */
static int have_bank(Job *job)
{
    char path[RUN_PATH], scenes[RUN_PATH];
    double start = clock_seconds();
    if (job->plan->bank)
        return samlad_bank_load(job->s, job->plan->bank, job->err);
    if (join3(path, job->plan->out, "banks", job->category->name, ".bank", job->err) ||
        join3(scenes, job->plan->out, "scenes", job->category->name, "", job->err) ||
        make_parent(path, job->err))
        return -1;
    if (!file_exists(path) && make_bank(job, path))
        return -1;
    if (dir_prune(scenes, ".scene", job->err) || samlad_bank_load(job->s, path, job->err))
        return -1;
    job->times->bank += clock_seconds() - start;
    return 0;
}

/* ---- test images -------------------------------------------------------------------------------*/

/* The record reaches the disk before it gets its name. */
static int write_record(const char *path, const JsonWriter *w, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    out.sync = 1;
    out_put(&out, w->text, w->length);
    out_put(&out, "\n", 1);
    return out_commit(&out, err);
}

/* All that is known of one test image. */
typedef struct Judged {
    Scene scene;
    SamladResult result;
    BaselineMaps baselines;
    uint8_t *rgb; /* for pictures; NULL: not read. */
} Judged;

static void judged_free(Judged *j)
{
    scene_free(&j->scene), samlad_result_free(&j->result), baseline_maps_free(&j->baselines), free(j->rgb);
}

static int write_maps(const Job *job, const Judged *j, const DatasetImage *image, Error *err)
{
    char path[RUN_PATH];
    const BaselineMaps *maps = &j->baselines;
    if (run_path(path, job->plan->out, "anomaly_maps", job->category, image, ".tiff", err) ||
        make_parent(path, err) || write_map(&j->result, path, err) || file_sync(path, err))
        return -1;
    for (int b = 0; b < BASELINES && job->plan->baselines; b++)
        if (run_baseline_path(path, job->plan->out, b, job->category, image, err) || make_parent(path, err) ||
            tiff_write_float(path, maps->map[b], maps->grid_w, maps->grid_h, err) || file_sync(path, err))
            return -1;
    return 0;
}

static void json_baselines(JsonWriter *w, const BaselineMaps *maps)
{
    json_key(w, "baselines"), json_open(w, '{');
    for (int b = 0; b < BASELINES; b++)
        json_key(w, baseline_names[b]), json_float(w, maps->score[b]);
    json_close(w, '}');
}

/* Pictures, maps, record, in this order: the record marks all as written. */
static int write_results(const Job *job, const Samlad *s, const Judged *j, const DatasetImage *image,
                         Error *err)
{
    const char *out = job->plan->out;
    const DatasetCategory *c = job->category;
    char path[RUN_PATH], name[RUN_PATH];
    if (job->plan->pictures && (run_path(path, out, "pictures", c, image, "", err) ||
                                make_parent(path, err) || write_pictures(&j->result, j->rgb, path, err)))
        return -1;
    if (write_maps(job, j, image, err) || run_path(path, out, "records", c, image, ".json", err) ||
        make_parent(path, err))
        return -1;
    JsonWriter w;
    json_begin(&w);
    snprintf(name, sizeof name, "%s/test/%s/%s", c->name, image->kind, image->name);
    json_open(&w, '{');
    report_members(&w, s, &j->result, name);
    json_key(&w, "sha256"), json_string(&w, image->sha256);
    if (job->plan->baselines)
        json_baselines(&w, &j->baselines);
    json_close(&w, '}');
    int status = w.failed ? fail_memory(err, "a record", w.length) : write_record(path, &w, err);
    json_end(&w);
    return status;
}

/* Times differ from run to run, so they stand in a file of their own; no result depends on them. One short
 * write keeps the lines of several processes apart. */
static int note_time(const Job *job, const DatasetImage *image, double seconds, Error *err)
{
    char path[RUN_PATH], name[RUN_PATH];
    JsonWriter w;
    snprintf(path, sizeof path, "%.*s/timings.jsonl", RUN_PATH - 32, job->plan->out);
    snprintf(name, sizeof name, "%s/test/%s/%s", job->category->name, image->kind, image->stem);
    json_begin(&w);
    json_open(&w, '{');
    json_key(&w, "image"), json_string(&w, name);
    json_key(&w, "seconds"), json_number(&w, round(seconds * 1e4) / 1e4);
    json_close(&w, '}');
    if (!w.failed)
        w.text[w.length++] = '\n'; /* replaces the NUL */
    /* do not follow a link to somebody's file, and do not wait for the reader of a pipe. */
    const int fd =
        w.failed ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (fd >= 0) {
        if (write(fd, w.text, w.length) < 0)
            errno = 0; /* a lost time does no harm. */
        close(fd);
    }
    int status = w.failed ? fail_memory(err, path, w.length) : 0;
    json_end(&w);
    return status;
}

/* Find the stored scene, or make it from the image. The image is also read if pictures are wanted. */
static int find_scene(const Job *job, Samlad *s, const DatasetImage *image, Judged *j, Error *err)
{
    char path[RUN_PATH] = "";
    const int keep = job->plan->scenes != NULL;
    Picture picture = {0};
    if (keep && run_path(path, job->plan->scenes, "test", job->category, image, ".scene", err))
        return -1;
    const int kept = keep && file_exists(path);
    if ((!kept || job->plan->pictures) &&
        !(picture.rgb = j->rgb = image_read_white(image->path, samlad_white(s), &picture.width, &picture.height, err)))
        return -1;
    if (j->rgb && (picture.width != image->width || picture.height != image->height))
        return fail(err, "%s: the image is %dx%d, its header says %dx%d", image->path, picture.width,
                    picture.height, image->width, image->height);
    if (kept)
        return scene_of_file(&j->scene, s, path, err);
    if (scene_of_image(&j->scene, s, &picture, err))
        return -1;
    return keep && (make_parent(path, err) || scene_keep(&j->scene, s, path, err)) ? -1 : 0;
}

/* Score the image, by the method and by the baselines. */
static int judge(const Job *job, Samlad *s, const DatasetImage *image, Judged *j, Error *err)
{
    if (find_scene(job, s, image, j, err) || scene_detect(&j->result, s, &j->scene, err))
        return -1;
    return job->plan->baselines ? baselines_measure(&j->baselines, &job->baselines, &j->scene,
                                                    j->result.references, j->result.n_references, err)
                                : 0;
}

static int detect_one(const Job *job, Samlad *s, int index, double *seconds, Error *err)
{
    const DatasetImage *image = &job->category->images[index];
    Judged j = {0};
    double start = clock_seconds();
    int status = judge(job, s, image, &j, err);
    if (!status) {
        status = write_results(job, s, &j, image, err);
    } else {
        Error inner = *err;
        if (!strstr(inner.message, image->path))
            fail(err, "%s: %.600s", image->path, inner.message);
    }
    judged_free(&j);
    *seconds = clock_seconds() - start;
    return status ? status : note_time(job, image, *seconds, err);
}

/* *done: there is a record, and there are pictures if they are wanted. */
static int is_done(const Job *job, const DatasetImage *image, int *done)
{
    char record[RUN_PATH], picture[RUN_PATH];
    if (run_path(record, job->plan->out, "records", job->category, image, ".json", job->err) ||
        run_path(picture, job->plan->out, "pictures", job->category, image, "_overlay.png", job->err))
        return -1;
    *done = file_exists(record) && (!job->plan->pictures || file_exists(picture));
    return 0;
}

/* *left: the category's test images of this shard that are still to do. */
static int list_left(const Job *job, int **left, int *n_left)
{
    const DatasetCategory *c = job->category;
    *n_left = 0;
    if (!(*left = calloc((size_t)c->n_images + 1, sizeof **left)))
        return fail_memory(job->err, "the list of images", (unsigned long long)c->n_images * sizeof **left);
    for (int i = 0; i < c->n_images; i++) {
        int done;
        if (i % job->plan->n_shards != job->plan->shard)
            continue;
        if (is_done(job, &c->images[i], &done))
            return -1;
        if (!done)
            (*left)[(*n_left)++] = i;
    }
    return 0;
}

/* Remove the results of other test images. job->later = the number of test images to do in all categories. */
static int find_left(Job *job, const Dataset *d)
{
    for (int i = 0; i < d->n; i++) {
        int *left = NULL, n_left = 0;
        job->category = &d->categories[i];
        int status =
            run_renew(job->plan->out, job->plan->shard, job->plan->n_shards, job->category, job->err) ||
            list_left(job, &left, &n_left);
        free(left);
        if (status)
            return -1;
        job->later += n_left;
    }
    return 0;
}

static int do_category(Job *job)
{
    int *left = NULL, n_left = 0;
    if (list_left(job, &left, &n_left)) {
        free(left);
        return -1;
    }
    int status = n_left > 0 ? have_bank(job) : 0;
    job->later -= n_left; /* another process may have done some. */
    job->later = job->later > 0 ? job->later : 0;
    job->done = 0, job->total = n_left + job->later; /* the estimate covers the whole run, except for banks */
    double start = clock_seconds();
    if (!status && n_left > 0 && job->plan->baselines)
        status = baseline_bank_new(&job->baselines, bank_of(job->s), job->err);
    if (!status && n_left > 0)
        status = work_through(job, detect_one, left, n_left, job->category->name);
    baseline_bank_free(&job->baselines);
    job->times->images += clock_seconds() - start;
    job->times->n_images += status ? 0 : n_left;
    free(left);
    return status;
}

int run_images(Samlad *s, const Dataset *d, const RunPlan *plan, RunTimes *times, Error *err)
{
    *times = (RunTimes){0};
    if (run_settle(s, d, plan, err) ||
        follow_data(s, d, plan, err)) /* refusals come before the first change. */
        return -1;
    Job job = {.s = s, .plan = plan, .times = times, .err = err};
    if (find_left(&job, d))
        return -1;
    for (int i = 0; i < d->n; i++) {
        /* each shard begins with another category, so that the banks are made in parallel. */
        job.category = &d->categories[(i + plan->shard) % d->n];
        if (do_category(&job))
            return -1;
    }
    char scenes[RUN_PATH];
    snprintf(scenes, sizeof scenes, "%.*s/scenes", RUN_PATH - 32, plan->out);
    rmdir(scenes); /* works when it is empty: another process may still use it. */
    return 0;
}

/* ================================================================================================
 * Results from several folders
 * ============================================================================================== */

/* Give the file another name: a hard link where the file system can, else a copy. */
static int take_file(const char *from, const char *to, Error *err)
{
    return link(from, to) == 0 || errno == EEXIST ? 0 : file_copy(from, to, err);
}

static int merge_file(const char *from, const char *to, int must_agree, Error *err)
{
    static const char *const why[] = {
        "", "Machines of different kinds make different banks: make them once and copy the folder banks",
        "They had other test images, or left out others: run samlad eval again on one of them"};
    if (!file_exists(to))
        return take_file(from, to, err);
    int same = must_agree ? file_same(from, to, err) : 1;
    return same < 0 ? -1
           : same   ? 0
                  : fail(err, "%s and %s differ: these runs cannot be merged. %s", from, to, why[must_agree]);
}

/* Merge all files in and below `from`, folder by folder. */
static int merge_folder(const char *from, const char *to, int must_agree, int depth, Error *err)
{
    if (!dir_exists(from))
        return 0;
    if (depth > 8)
        return fail(err, "%s: folders are nested too deep for a run", from);
    int status = dir_make(to, err);
    for (int dirs = 0; dirs <= 1 && !status; dirs++) {
        size_t n;
        char **names = dir_list(from, dirs, &n, err);
        status = names ? 0 : -1;
        for (size_t i = 0; names && i < n && !status; i++) {
            char a[RUN_PATH], b[RUN_PATH];
            if (snprintf(a, sizeof a, "%s/%s", from, names[i]) >= RUN_PATH - 128 ||
                snprintf(b, sizeof b, "%s/%s", to, names[i]) >= RUN_PATH - 128)
                status = fail(err, "%s: the path is too long", from);
            else if (dirs)
                status = merge_folder(a, b, must_agree, depth + 1, err);
            else if (!strstr(names[i], ".tmp."))
                status = merge_file(a, b, must_agree, err);
        }
        free(names);
    }
    return status;
}

static int merge_one(const char *out, const char *from, Error *err)
{
    /* records last: a record tells that the map is there. */
    static const char *const folders[] = {"categories",   "tests",     "banks",  "pictures",
                                          "anomaly_maps", "baselines", "records"};
    static const int must_agree[] = {1, 2, 1, 0, 0, 0, 1}; /* the sentence of merge_file; 0: need not. */
    char a[RUN_PATH], b[RUN_PATH];
    Facts facts;
    if (snprintf(a, sizeof a, "%s/run.json", from) >= RUN_PATH - 128 ||
        snprintf(b, sizeof b, "%s/run.json", out) >= RUN_PATH - 128)
        return fail(err, "%s: the path is too long", from);
    if (!file_exists(a))
        return fail(err, "%s: no run of samlad eval is in this folder", from);
    if (facts_read(&facts, a, err))
        return -1;
    int status = facts_settle(&facts, b, err);
    facts_free(&facts);
    for (size_t i = 0; i < sizeof folders / sizeof *folders && !status; i++)
        status = join2(a, from, folders[i], err) || join2(b, out, folders[i], err)
                     ? -1
                     : merge_folder(a, b, must_agree[i], 0, err);
    return status;
}

int run_merge(const char *out, const char *const *from, int n, Error *err)
{
    for (int i = 0; i < n; i++)
        if (!dir_exists(from[i]))
            return fail(err, "%s: there is no such folder to merge", from[i]);
    if (dir_make(out, err) || dir_sweep(out, err))
        return -1;
    for (int i = 0; i < n; i++) {
        char *a = realpath(out, NULL), *b = a ? realpath(from[i], NULL) : NULL;
        int status = b ? 0 : fail(err, "%s: cannot be found: %s", a ? from[i] : out, strerror(errno));
        if (!status && strcmp(a, b) != 0)
            status = merge_one(out, from[i], err);
        free(a), free(b);
        if (status)
            return -1;
    }
    return 0;
}
