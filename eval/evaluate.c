/* eval/evaluate.c - a bank, a test set, the areas under their curves. See evaluate.h. */
#include "evaluate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "../io/file.h"
#include "../io/image.h"
#include "../report.h"
#include "../tensor.h"
#include "metrics.h"

enum { PATH_SIZE = 4096 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int join(char path[PATH_SIZE], const char *dir, const char *name, Error *err)
{
    return snprintf(path, PATH_SIZE, "%s/%s", dir, name) < PATH_SIZE
               ? 0
               : fail(err, "%s/%s: the path is too long", dir, name);
}

int looks_like_image(const char *name)
{
    static const char *const endings[] = {".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pnm", ".pbm"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0)
            return 1;
    return 0;
}

/* dir_list of what looks like an image. */
static char **list_images(const char *dir, size_t *n, Error *err)
{
    char **names = dir_list(dir, 0, n, err);
    size_t kept = 0;
    for (size_t i = 0; names && i < *n; i++)
        if (looks_like_image(names[i]))
            names[kept++] = names[i];
    if (names)
        *n = kept;
    return names;
}

/* ================================================================================================
 * One image's outputs
 * ============================================================================================== */

int write_pictures(const SamladResult *r, const uint8_t *rgb, const char *prefix, Error *err)
{
    char path[PATH_SIZE];
    size_t n = (size_t)r->width * (size_t)r->height;
    float *map = aligned_array(n, sizeof *map);
    if (!map)
        return fail_memory(err, "a map", n * sizeof *map);
    samlad_full_map(r, map);
    int status = snprintf(path, sizeof path, "%s_overlay.png", prefix) < PATH_SIZE
                     ? 0
                     : fail(err, "%s: the path is too long", prefix);
    if (!status)
        status = report_overlay(path, r, rgb, err);
    snprintf(path, sizeof path, "%s_heat.png", prefix);
    if (!status)
        status = report_heat(path, map, r->width, r->height, r->map_low, r->map_high, err);
    snprintf(path, sizeof path, "%s.tiff", prefix);
    if (!status)
        status = tiff_write_float(path, map, r->width, r->height, err);
    free(map);
    return status;
}

/* ================================================================================================
 * Ground truth
 * ============================================================================================== */

/* Set truth where any channel of the image is not 0. */
static int merge_truth(uint8_t *truth, const char *path, int width, int height, Error *err)
{
    Image image;
    if (image_read(&image, path, err))
        return -1;
    if (image.width != width || image.height != height) {
        fail(err, "%s: the ground truth is %dx%d, its image %dx%d", path, image.width, image.height, width,
             height);
        image_free(&image);
        return -1;
    }
    size_t n = (size_t)width * (size_t)height, channels = (size_t)image.channels,
           colors = channels < 3 ? 1 : 3;
    for (size_t p = 0; p < n; p++)
        for (size_t c = 0; c < colors; c++)
            truth[p] |= image.bits == 16 ? ((const uint16_t *)image.samples)[p * channels + c] != 0
                                         : ((const uint8_t *)image.samples)[p * channels + c] != 0;
    image_free(&image);
    return 0;
}

/* ground_truth/KIND/STEM/ *.png (LOCO) or ground_truth/KIND/STEM_mask.png (MVTec AD). 1: found, 0: there is
 * none, -1. */
static int read_truth(uint8_t *truth, const char *dir, const char *kind, const char *file, int width,
                      int height, Error *err)
{
    char base[PATH_SIZE], path[PATH_SIZE];
    int stem = (int)(strrchr(file, '.') ? strrchr(file, '.') - file : (long)strlen(file));
    memset(truth, 0, (size_t)width * (size_t)height);
    if (snprintf(base, sizeof base, "%s/ground_truth/%s/%.*s", dir, kind, stem, file) >= PATH_SIZE - 16)
        return fail(err, "%s: the path is too long", base);
    if (!dir_exists(base)) {
        snprintf(path, sizeof path, "%.*s_mask.png", PATH_SIZE - 16, base);
        return !file_exists(path) ? 0 : merge_truth(truth, path, width, height, err) ? -1 : 1;
    }
    size_t n;
    char **names = list_images(base, &n, err);
    int status = names ? 0 : -1;
    for (size_t i = 0; names && i < n && !status; i++)
        status = join(path, base, names[i], err) || merge_truth(truth, path, width, height, err) ? -1 : 0;
    free(names);
    return status ? -1 : 1;
}

/* ================================================================================================
 * The run
 * ============================================================================================== */

typedef struct Item Item;

typedef struct Run {
    Samlad *s;
    const char *dir, *out;
    Evaluation *result;
    PixelRoc *roc;
    int any_truth, any_missing_truth;
    FILE *jsonl;
    float *scores; /* of all test images, folder by folder */
    int n_scores, capacity;
    int done, total;
    int at_once;
    Samlad **shares; /* [at_once] */
    Item *batch;     /* [at_once] */
    EvaluateProgress progress;
    void *user;
    Error *err;
} Run;

static int load_bank(Run *run, const char *bank)
{
    double start = now();
    if (samlad_bank_load(run->s, bank, run->err))
        return -1;
    run->result->seconds_bank = now() - start;
    run->result->n_bank = samlad_bank_size(run->s);
    return 0;
}

static int build_bank(Run *run, int max_bank)
{
    char dir[PATH_SIZE];
    size_t n;
    if (join(dir, run->dir, "train/good", run->err))
        return -1;
    char **names = list_images(dir, &n, run->err);
    if (!names)
        return -1;
    if (max_bank > 0 && n > (size_t)max_bank)
        n = (size_t)max_bank;
    char **paths = calloc(n + 1, sizeof *paths);
    int status = paths ? 0 : fail_memory(run->err, "the list of images", n * 8);
    for (size_t i = 0; i < n && !status; i++) {
        char path[PATH_SIZE];
        status = join(path, dir, names[i], run->err);
        if (!status && !(paths[i] = strdup(path)))
            status = fail_memory(run->err, "the list of images", strlen(path));
    }
    if (!status && n == 0)
        status = fail(run->err, "%s: no normal images", dir);
    double start = now();
    if (!status)
        status =
            samlad_bank_build(run->s, (const char *const *)paths, (int)n, run->progress, run->user, run->err);
    run->result->seconds_bank = now() - start;
    run->result->n_bank = (int)n;
    for (size_t i = 0; paths && i < n; i++)
        free(paths[i]);
    free(paths), free(names);
    return status;
}

static int write_outputs(Run *run, const SamladResult *r, const uint8_t *rgb, const char *kind,
                         const char *file)
{
    char prefix[PATH_SIZE], image[PATH_SIZE];
    if (!run->out)
        return 0;
    JsonWriter w;
    json_begin(&w);
    snprintf(image, sizeof image, "test/%s/%s", kind, file);
    report_json(&w, run->s, r, image);
    int status = w.failed || fprintf(run->jsonl, "%s\n", w.text) < 0
                     ? fail(run->err, "%s/results.jsonl: cannot be written", run->out)
                     : 0;
    json_end(&w);
    snprintf(prefix, sizeof prefix, "%s/%s", run->out, kind);
    if (!status)
        status = dir_make(prefix, run->err);
    int stem = (int)(strrchr(file, '.') ? strrchr(file, '.') - file : (long)strlen(file));
    if (!status && snprintf(prefix, sizeof prefix, "%s/%s/%.*s", run->out, kind, stem, file) >= PATH_SIZE)
        status = fail(run->err, "%s: the path is too long", run->out);
    return status ? status : write_pictures(r, rgb, prefix, run->err);
}

static int score_pixels(Run *run, const SamladResult *r, const char *kind, const char *file)
{
    size_t n = (size_t)r->width * (size_t)r->height;
    float *map = aligned_array(n, sizeof *map);
    uint8_t *truth = aligned_array(n, 1);
    int found = map && truth ? 0 : fail_memory(run->err, "the pixels' scores", n * 5);
    if (!found && strcmp(kind, "good") != 0) {
        found = read_truth(truth, run->dir, kind, file, r->width, r->height, run->err);
        run->any_truth |= found > 0;
        run->any_missing_truth |= found == 0;
    } else if (!found) {
        memset(truth, 0, n);
        found = 1;
    }
    if (found > 0) {
        samlad_full_map(r, map);
        pixel_roc_add(run->roc, map, truth, n);
    }
    free(map), free(truth);
    return found < 0 ? -1 : 0;
}

/* One image of a batch: read and detected by one thread, then scored and written in the order of the list. */
struct Item {
    uint8_t *rgb;
    SamladResult result;
    int status;
    Error err;
};

static void detect_file(Item *item, Samlad *s, const char *dir, const char *kind, const char *file)
{
    char path[PATH_SIZE];
    int width, height;
    *item = (Item){.status = -1};
    if (snprintf(path, sizeof path, "%s/test/%s/%s", dir, kind, file) >= PATH_SIZE) {
        fail(&item->err, "%s: the path is too long", dir);
        return;
    }
    item->rgb = image_read_rgb8(path, &width, &height, &item->err);
    if (item->rgb)
        item->status = samlad_detect(s, item->rgb, height, width, &item->result, NULL, &item->err);
}

/* Take a batch's results over in order; the first that failed ends it. Frees the items. */
static int finish_batch(Run *run, Item *batch, const char *kind, char **names, int n)
{
    int status = 0;
    for (int i = 0; i < n; i++) {
        Item *item = &batch[i];
        if (!status && item->status)
            status = fail(run->err, "%s", item->err.message);
        else if (!status && run->n_scores == run->total)
            status = fail(run->err, "%s/test/%s: images were added while the test ran", run->dir, kind);
        else if (!status) {
            run->scores[run->n_scores++] = item->result.score;
            if (score_pixels(run, &item->result, kind, names[i]) ||
                write_outputs(run, &item->result, item->rgb, kind, names[i]))
                status = -1;
        }
        if (!item->status)
            samlad_result_free(&item->result);
        free(item->rgb);
        run->done++;
    }
    if (!status && run->progress)
        run->progress(run->user, "test images", run->done, run->total);
    return status;
}

/* All images of test/KIND; their scores are the last ones of run->scores. Returns how many, or -1. */
static int detect_kind(Run *run, const char *kind)
{
    char dir[PATH_SIZE], name[256];
    size_t n;
    snprintf(name, sizeof name, "test/%s", kind);
    if (join(dir, run->dir, name, run->err))
        return -1;
    char **names = list_images(dir, &n, run->err);
    int status = names ? 0 : -1;
    for (size_t base = 0; names && base < n && !status; base += (size_t)run->at_once) {
        int m = n - base < (size_t)run->at_once ? (int)(n - base) : run->at_once;
#pragma omp parallel for schedule(static, 1) if (m > 1)
        for (int i = 0; i < m; i++)
            detect_file(&run->batch[i], run->shares[i], run->dir, kind, names[base + (size_t)i]);
        status = finish_batch(run, run->batch, kind, names + base, m);
    }
    free(names);
    return status ? -1 : (int)n;
}

/* Handles for as many images at once as pay. */
static int open_shares(Run *run)
{
    run->at_once = samlad_images_at_once(run->s);
    run->shares = calloc((size_t)run->at_once, sizeof(*run->shares));
    run->batch = calloc((size_t)run->at_once, sizeof *run->batch);
    if (!run->shares || !run->batch)
        return fail_memory(run->err, "a batch of images",
                           (unsigned long long)run->at_once * sizeof *run->batch);
    for (int i = 0; i < run->at_once; i++)
        if (!(run->shares[i] = samlad_share(run->s, run->err)))
            return -1;
    return 0;
}

static void close_shares(Run *run)
{
    for (int i = 0; run->shares && i < run->at_once; i++)
        samlad_close(run->shares[i]);
    free(run->shares), free(run->batch);
}

/* Count all test images, so that the scores' array and the estimate are right from the start. */
static int count_images(Run *run, const char *test, char **kinds, size_t n_kinds)
{
    for (size_t k = 0; k < n_kinds; k++) {
        char dir[PATH_SIZE];
        size_t n;
        if (join(dir, test, kinds[k], run->err))
            return -1;
        char **names = list_images(dir, &n, run->err);
        if (!names)
            return -1;
        free(names);
        run->total += (int)n;
    }
    run->scores = aligned_array((size_t)run->total + 1, sizeof *run->scores);
    return run->scores ? 0 : fail_memory(run->err, "the scores", (unsigned long long)run->total * 4);
}

static int detect_all(Run *run, char **kinds, size_t n_kinds)
{
    Evaluation *e = run->result;
    int n_good = detect_kind(run, "good"); /* first, so that the good ones stand at scores[0] */
    if (n_good < 0)
        return -1;
    e->n_good = n_good;
    for (size_t k = 0; k < n_kinds; k++) {
        if (strcmp(kinds[k], "good") == 0)
            continue;
        if (e->n_kinds == EVALUATE_MAX_KINDS)
            return fail(run->err, "%s/test: more than %d kinds of anomalies", run->dir, EVALUATE_MAX_KINDS);
        int first = run->n_scores, n = detect_kind(run, kinds[k]);
        if (n < 0)
            return -1;
        EvaluateKind *kind = &e->kinds[e->n_kinds++];
        snprintf(kind->name, sizeof kind->name, "%s", kinds[k]);
        kind->n = n;
        kind->auroc = auroc(run->scores, (size_t)n_good, run->scores + first, (size_t)n, run->err);
    }
    e->n_images = run->n_scores;
    e->auroc =
        auroc(run->scores, (size_t)n_good, run->scores + n_good, (size_t)(run->n_scores - n_good), run->err);
    e->pixel_auroc = run->any_truth ? pixel_roc_area(run->roc) : NAN;
    return 0;
}

static int run_test(Run *run)
{
    char test[PATH_SIZE], jsonl[PATH_SIZE], temporary[PATH_SIZE + 8];
    size_t n_kinds;
    if (join(test, run->dir, "test", run->err))
        return -1;
    char **kinds = dir_list(test, 1, &n_kinds, run->err);
    if (!kinds)
        return -1;
    int status = count_images(run, test, kinds, n_kinds);
    if (!status && run->out) {
        status = dir_make(run->out, run->err) || join(jsonl, run->out, "results.jsonl", run->err) ? -1 : 0;
        snprintf(temporary, sizeof temporary, "%s.tmp", status ? "" : jsonl);
        if (!status && !(run->jsonl = fopen(temporary, "w")))
            status = fail(run->err, "%s: cannot be written", temporary);
    }
    double start = now();
    if (!status)
        status = open_shares(run);
    if (!status)
        status = detect_all(run, kinds, n_kinds);
    close_shares(run);
    run->result->seconds_detect = now() - start;
    if (run->jsonl) {
        int closed = fclose(run->jsonl);
        if (!status && (closed || rename(temporary, jsonl)))
            status = fail(run->err, "%s: cannot be written", jsonl);
        if (status)
            remove(temporary);
    }
    free(kinds);
    return status;
}

int evaluate(Samlad *s, const char *dir, const char *bank, const char *out, int max_bank, Evaluation *result,
             EvaluateProgress progress, void *user, Error *err)
{
    *result = (Evaluation){.auroc = NAN, .pixel_auroc = NAN};
    Run run = {
        .s = s, .dir = dir, .out = out, .result = result, .progress = progress, .user = user, .err = err};
    run.roc = pixel_roc_new(err);
    int status = !run.roc ? -1 : bank ? load_bank(&run, bank) : build_bank(&run, max_bank);
    if (!status)
        status = run_test(&run);
    pixel_roc_free(run.roc);
    free(run.scores);
    return status;
}
