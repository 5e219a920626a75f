/* eval/renew.c - see renew.h. */
#include "eval/renew.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/facts.h"
#include "eval/paths.h"
#include "eval/readable.h"
#include "io/fail.h"
#include "io/file.h"

/* ================================================================================================
 * tests/CATEGORY.json
 * ============================================================================================== */

static int tests_path(char path[RUN_PATH], const char *out, const DatasetCategory *c, Error *err)
{
    return snprintf(path, RUN_PATH, "%s/tests/%s.json", out, c->name) < RUN_PATH - 128
               ? 0
               : fail(err, "%s: the path is too long", out);
}

int tests_sha256(char sha[65], const DatasetCategory *c, Error *err)
{
    Digest tests = {0};
    int status = 0;
    for (int i = 0; i < c->n_images && !status; i++) {
        const DatasetImage *image = &c->images[i];
        char detail[400];
        snprintf(detail, sizeof detail, "%.255s %s", image->kind, image->sha256);
        status = digest_line(&tests, image->name, detail, err);
    }
    if (!status)
        digest_sha256(&tests, sha);
    free(tests.text);
    return status;
}

/* What the results of the folder are of. It may change from call to call. */
static int write_tests(const DatasetCategory *c, const char *out, Error *err)
{
    char path[RUN_PATH], sha[65];
    JsonWriter w;
    snprintf(path, sizeof path, "%.*s/tests", RUN_PATH - 32, out);
    if (dir_make(path, err) || tests_sha256(sha, c, err) || tests_path(path, out, c, err))
        return -1;
    json_begin(&w);
    json_open(&w, '{');
    json_key(&w, "count"), json_int(&w, c->n_images);
    json_key(&w, "sha256"), json_string(&w, sha);
    json_key(&w, "unreadable"), json_open(&w, '[');
    for (int i = 0; i < c->n_unreadable; i++)
        json_string(&w, c->unreadable[i].name);
    json_close(&w, ']'), json_close(&w, '}');
    int status = w.failed ? fail_memory(err, path, w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

/* The category's file of test images as JSON; json_free frees it. */
static const Json *read_tests(const char *out, const DatasetCategory *c, Error *err)
{
    char path[RUN_PATH];
    if (tests_path(path, out, c, err))
        return NULL;
    if (!file_exists(path)) {
        fail(err, "%s: the run has not done this category", path);
        return NULL;
    }
    return json_read(path, err);
}

int run_leave_out(const char *out, DatasetCategory *c, Error *err)
{
    const Json *tests = read_tests(out, c, err), *list = tests ? json_get(tests, "unreadable") : NULL;
    const char **names = tests ? calloc(list ? list->n + 1 : 1, sizeof *names) : NULL;
    int n = 0, status = !tests ? -1 : names ? 0 : fail_memory(err, "the list of files", sizeof *names);
    for (size_t i = 0; !status && list && i < list->n; i++)
        if (list->children[i].type == JSON_STRING)
            names[n++] = list->children[i].string;
    if (!status && n)
        status = dataset_leave_out(c, names, n, err);
    free(names), json_free(tests);
    return status;
}

int run_same_images(const char *out, const DatasetCategory *c, Error *err)
{
    char sha[65];
    const Json *then = read_tests(out, c, err), *was = then ? json_get(then, "sha256") : NULL;
    int status = then ? tests_sha256(sha, c, err) : -1;
    if (!status && !(was && was->type == JSON_STRING && strcmp(was->string, sha) == 0))
        status = fail(err, "%s/tests/%s.json: the test images in %s are not those of this run", out, c->name,
                      c->dir);
    json_free(then);
    return status;
}

/* ================================================================================================
 * Results of other images
 * ============================================================================================== */

int run_is_of(const Json *record, const DatasetImage *image)
{
    const Json *sha = json_get(record, "sha256");
    return sha && sha->type == JSON_STRING && strcmp(sha->string, image->sha256) == 0;
}

/* Remove a result's file, and the folders above it that are empty now. A missing file is fine. */
static int remove_file(const char *path, Error *err)
{
    char dir[RUN_PATH];
    if (remove(path) && errno != ENOENT && errno != ENOTDIR)
        return fail(err, "%s: cannot be removed: %s", path, strerror(errno));
    snprintf(dir, sizeof dir, "%s", path);
    do
        *strrchr(dir, '/') = '\0';
    while (rmdir(dir) == 0);
    return 0;
}

/* Remove all results of an image. The record goes last, because it marks that there are others. */
static int remove_results(const char *out, const DatasetCategory *c, const DatasetImage *image, Error *err)
{
    static const char *const files[][2] = {{"pictures", "_heat.png"},
                                           {"pictures", "_overlay.png"},
                                           {"anomaly_maps", ".tiff"},
                                           {"records", ".json"}};
    char path[RUN_PATH];
    for (int b = 0; b < BASELINES; b++)
        if (run_baseline_path(path, out, b, c, image, err) || remove_file(path, err))
            return -1;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (run_path(path, out, files[i][0], c, image, files[i][1], err) || remove_file(path, err))
            return -1;
    return 0;
}

/* Is there a record, and is it of other contents than the image? A damaged record counts as such. */
static int is_stale(int *stale, const char *out, const DatasetCategory *c, const DatasetImage *image,
                    Error *err)
{
    char path[RUN_PATH];
    *stale = 0;
    if (run_path(path, out, "records", c, image, ".json", err))
        return -1;
    if (!file_exists(path))
        return 0;
    const Json *record = json_read(path, NULL);
    *stale = !record || !run_is_of(record, image);
    json_free(record);
    return 0;
}

/* Remove the results of this shard's test images that are others now. */
static int drop_stale(const char *out, int shard, int n_shards, const DatasetCategory *c, Error *err)
{
    int stale;
    for (int i = shard; i < c->n_images; i += n_shards)
        if (is_stale(&stale, out, c, &c->images[i], err) ||
            (stale && remove_results(out, c, &c->images[i], err)))
            return -1;
    return 0;
}

/* Only a long stem is cut. */
static int has_stem(const DatasetImage *image, const char *stem)
{
    char cut[RUN_PATH];
    if (strlen(image->stem) < OUTPUT_NAME)
        return strcmp(image->stem, stem) == 0;
    run_stem(cut, image);
    return strcmp(cut, stem) == 0;
}

/* name: KIND/STEM, and the stem may have folders, too. */
static int has_image(const DatasetCategory *c, const char *name)
{
    for (int i = 0; i < c->n_images; i++) {
        const DatasetImage *image = &c->images[i];
        const size_t n = strlen(image->kind);
        if (strncmp(name, image->kind, n) == 0 && name[n] == '/' && has_stem(image, name + n + 1))
            return 1;
    }
    return 0;
}

/* Remove the results of the image KIND/STEM.json if it is gone. Other files are not ours. */
static int drop_if_gone(const char *out, const DatasetCategory *c, char *name, Error *err)
{
    char *dot = strrchr(name, '.'), *slash = strchr(name, '/');
    if (!dot || strcmp(dot, ".json") != 0 || !slash)
        return 0;
    *dot = '\0';
    if (has_image(c, name))
        return 0;
    *slash = '\0';
    return remove_results(out, c, &(DatasetImage){.kind = name, .stem = slash + 1}, err);
}

/* Remove the results of the category's test images that are gone: `below` is a folder of records, from the kind on. */
static int drop_gone(const char *out, const DatasetCategory *c, const char *below, Error *err)
{
    char records[RUN_PATH];
    if (snprintf(records, sizeof records, "%s/records/%s/test/%s", out, c->name, below) >= RUN_PATH)
        return fail(err, "%s: the path is too long", out);
    int status = 0;
    for (int dirs = 1; dirs >= 0 && !status && dir_exists(records);
         dirs--) { /* it goes with its last file. */
        size_t n;
        char **names = dir_list(records, dirs, &n, err);
        status = names ? 0 : -1;
        for (size_t i = 0; names && i < n && !status; i++) {
            char name[RUN_PATH];
            if (snprintf(name, sizeof name, dirs ? "%s%s/" : "%s%s", below, names[i]) >= RUN_PATH)
                status = fail(err, "%s: the path is too long", records);
            else
                status = dirs ? drop_gone(out, c, name, err) : drop_if_gone(out, c, name, err);
        }
        free(names);
    }
    return status;
}

int run_renew(const char *out, int shard, int n_shards, const DatasetCategory *c, Error *err)
{
    return write_tests(c, out, err) || drop_stale(out, shard, n_shards, c, err) || drop_gone(out, c, "", err)
               ? -1
               : 0;
}

/* ================================================================================================
 * Results of other categories
 * ============================================================================================== */

static int is_gone(const Dataset *d, const char *name, const char *old_place)
{
    char path[RUN_PATH];
    for (int i = 0; i < d->n; i++)
        if (strcmp(d->categories[i].name, name) == 0)
            return 0;
    if (d->single)
        return !dir_exists(old_place);
    return snprintf(path, sizeof path, "%s/%s", d->root, name) < RUN_PATH && !dir_exists(path);
}

/* Remove OUT/FOLDER/NAME, a folder or a file. */
static int drop_below(const char *out, const char *folder, const char *name, const char *ending, Error *err)
{
    char path[RUN_PATH];
    if (snprintf(path, sizeof path, "%s/%s/%s%s", out, folder, name, ending) >= RUN_PATH)
        return fail(err, "%s: the path is too long", out);
    return *ending ? remove_file(path, err) : dir_remove(path, err);
}

/* categories/NAME.json goes last, because it marks that there are others. */
static int drop_category(const char *out, const char *name, Error *err)
{
    static const char *const places[][2] = {{"records", ""},        {"pictures", ""},   {"anomaly_maps", ""},
                                            {"scenes", ""},         {"banks", ".bank"}, {"tests", ".json"},
                                            {"categories", ".json"}};
    char baselines[64];
    for (int b = 0; b < BASELINES; b++) {
        snprintf(baselines, sizeof baselines, "baselines/%s", baseline_names[b]);
        if (drop_below(out, baselines, name, "", err))
            return -1;
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (drop_below(out, places[i][0], name, places[i][1], err))
            return -1;
    return 0;
}

int run_drop_categories(const char *out, const Dataset *d, const char *old_place, Error *err)
{
    static const char *const json[] = {".json", NULL};
    char path[RUN_PATH];
    size_t n = 0;
    if (d->chosen)
        return 0;
    if (snprintf(path, sizeof path, "%s/categories", out) >= RUN_PATH)
        return fail(err, "%s: the path is too long", out);
    char **names = dir_list(path, 0, &n, err);
    int status = names ? 0 : -1;
    for (size_t i = 0; i < n && !status; i++) {
        if (!has_ending(names[i], json))
            continue;
        *strrchr(names[i], '.') = '\0';
        if (is_gone(d, names[i], old_place))
            status = drop_category(out, names[i], err);
    }
    free(names);
    return status;
}
