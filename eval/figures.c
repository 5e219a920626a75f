/* eval/figures.c - see figures.h. metrics.h defines the figures; this file decides which images they are
 * taken over. */
#include "eval/figures.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/renew.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"
#include "tensor.h"
#include "eval/facts.h"
#include "eval/metrics.h"
#include "eval/run.h"

/* ================================================================================================
 * Figures
 * ============================================================================================== */

const char *method_name(int method)
{
    return method ? baseline_names[method - 1] : "samlad";
}

double figure_of(const Figures *figures, const char *name)
{
    for (int i = 0; i < figures->n; i++)
        if (strcmp(figures->list[i].name, name) == 0)
            return figures->list[i].value;
    return NAN;
}

static void add_figure(Figures *figures, double value, int n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add_figure(Figures *figures, double value, int n, const char *format, ...)
{
    if (figures->n == FIGURES_MAX)
        return;
    Figure *f = &figures->list[figures->n++];
    va_list args;
    va_start(args, format);
    vsnprintf(f->name, sizeof f->name, format, args);
    va_end(args);
    f->value = value;
    f->n = n;
}

/* The mean figures of one method. */
static void mean_of_method(Figures *mean, const CategoryFigures *categories, int n, int method)
{
    const Figures *first = &categories[0].methods[method];
    for (int f = 0; f < first->n; f++) {
        const char *name = first->list[f].name;
        double sum = 0;
        for (int i = 0; i < n; i++) /* a category without it makes the mean NAN. */
            sum += figure_of(&categories[i].methods[method], name);
        if (!isnan(sum) && strncmp(name, "threshold.", 10) != 0)
            add_figure(mean, sum / n, 0, "%s", name);
    }
}

void figures_mean(CategoryFigures *mean, const CategoryFigures *categories, int n)
{
    *mean = (CategoryFigures){.name = "mean", .n_methods = n > 0 ? categories[0].n_methods : 0};
    for (int m = 0; m < mean->n_methods; m++)
        mean_of_method(&mean->methods[m], categories, n, m);
    for (int i = 0; i < n; i++) {
        mean->n_bank += categories[i].n_bank;
        mean->n_good += categories[i].n_good;
        mean->n_images += categories[i].n_images;
    }
}

const char *image_figure(const CategoryFigures *c)
{
    return isnan(figure_of(&c->methods[0], "auroc.mean")) ? "auroc.all" : "auroc.mean";
}

int figure_is_shown(const Figure *f)
{
    return strncmp(f->name, "auroc.", 6) == 0 || strcmp(f->name, "auspro.5") == 0 ||
           strcmp(f->name, "aupro.30") == 0;
}

/* ================================================================================================
 * Measuring
 * ============================================================================================== */

/* What is measured: one method's results for a category of a run. */
typedef struct Subject {
    const char *out; /* the run's folder */
    DatasetKind kind;
    const DatasetCategory *category;
    int method;
} Subject;

/* scores [METHODS_MAX] from an image's record. Returns the number of methods in it, -1 on failure. */
static int read_scores(float *scores, const char *out, const DatasetCategory *c, const DatasetImage *image,
                       Error *err)
{
    char path[RUN_PATH];
    if (run_path(path, out, "records", c, image, ".json", err))
        return -1;
    if (!file_exists(path))
        return fail(err, "%s: this image is not done yet: run the shard that it belongs to", path);
    const Json *json = json_read(path, err);
    if (!json)
        return -1;
    const Json *baselines = json_get(json, "baselines");
    const int n = baselines ? METHODS_MAX : 1;
    const int is_of_image = run_is_of(json, image);
    int ok = 1;
    for (int m = 0; m < n; m++) {
        const Json *value = m ? json_get(baselines, method_name(m)) : json_get(json, "score");
        ok &= value && value->type == JSON_NUMBER;
        scores[m] = ok ? (float)value->number : 0;
    }
    json_free(json);
    if (!is_of_image)
        return fail(err, "%s: this result is of another image than %s: run samlad eval again", path,
                    image->path);
    return ok ? n : fail(err, "%s: there is no score in this record", path);
}

/* Groups of the pixel scores: the good images, then one group a kind. */
enum { GOOD_GROUP = 0 };

/* The group of image i: the number of kinds that begin up to it. */
static int group_of(const DatasetCategory *c, int i)
{
    int group = 0;
    for (int k = 0; k <= i; k++)
        group += !c->images[k].normal &&
                 (k == 0 || c->images[k - 1].normal || strcmp(c->images[k].kind, c->images[k - 1].kind) != 0);
    return group < PIXEL_GROUPS ? group : PIXEL_GROUPS - 1;
}

/* The method's map of the image. */
static float *read_own_map(const char *path, const DatasetImage *image, Error *err)
{
    int width, height;
    float *map = tiff_read_float(path, &width, &height, err);
    if (map && (width != image->width || height != image->height)) {
        fail(err, "%s: the map is %dx%d, its image %dx%d", path, width, height, image->width, image->height);
        free(map);
        return NULL;
    }
    return map;
}

/* A baseline's map, enlarged from its cells as the method's is. */
static float *read_baseline_map(const char *path, const DatasetImage *image, Error *err)
{
    int width, height;
    float *cells = tiff_read_float(path, &width, &height, err);
    if (!cells)
        return NULL;
    const size_t n = (size_t)image->width * (size_t)image->height;
    float *map = aligned_array(n, sizeof *map);
    if (map)
        interpolate_bilinear(map, image->height, image->width, cells, height, width, 1, 0, 0);
    else
        fail_memory(err, path, n * sizeof *map);
    free(cells);
    return map;
}

/* Add one image's map and truth to the pixel scores. */
static int add_map(PixelScores *scores, int group, const DefectTable *table, const Subject *of,
                   const DatasetImage *image, Error *err)
{
    char path[RUN_PATH];
    Truth truth = {0};
    const int width = image->width, height = image->height;
    int status = of->method
                     ? run_baseline_path(path, of->out, (Baseline)(of->method - 1), of->category, image, err)
                     : run_path(path, of->out, "anomaly_maps", of->category, image, ".tiff", err);
    float *map = status       ? NULL
                 : of->method ? read_baseline_map(path, image, err)
                              : read_own_map(path, image, err);
    if (!map)
        return -1;
    const MaskFit fit = {width, height, image->orientation, of->category->resize_masks};
    if (!image->normal)
        status =
            truth_fit(&truth, &fit, (const char *const *)image->masks, (size_t)image->n_masks, table, err);
    if (!status)
        status =
            pixel_scores_add(scores, group, map, width, height, image->normal ? NULL : &truth, path, err);
    truth_free(&truth);
    free(map);
    return status;
}

/* Add all maps with known truth; a defect without a mask is left out. */
static int add_maps(PixelScores *scores, const Subject *of, Error *err)
{
    const DatasetCategory *c = of->category;
    DefectTable *table = c->config ? calloc(1, sizeof *table) : NULL;
    int status = !c->config ? 0
                 : table    ? defect_table_read(table, c->config, err)
                            : fail_memory(err, "a table", sizeof *table);
    for (int i = 0; i < c->n_images && !status; i++)
        if (c->images[i].normal || c->images[i].n_masks > 0)
            status = add_map(scores, group_of(c, i), table, of, &c->images[i], err);
    free(table);
    return status;
}

/* AU-sPRO at each limit. LOCO's convention is the mean of both kinds, each with the good images. Without a
 * table of saturations it is AU-PRO. */
static int measure_spro(Figures *f, const Subject *of, PixelScores *scores, const PixelMetrics *all,
                        Error *err)
{
    const DatasetCategory *c = of->category;
    PixelMetrics kinds[2] = {*all, *all};
    int n = group_of(c, c->n_images - 1);
    for (int k = 0; of->kind == DATASET_LOCO && n == 2 && k < 2; k++)
        if (pixel_scores_measure(scores, 1u << GOOD_GROUP | 1u << (k + 1), &kinds[k], err))
            return -1;
    for (int i = 0; i < SPRO_LIMITS; i++)
        add_figure(f, (kinds[0].au_spro[i] + kinds[1].au_spro[i]) / 2, 0,
                   c->config ? "auspro.%.0f" : "aupro.%.0f", 100 * spro_limits[i]);
    return 0;
}

static int measure_maps(Figures *f, const Subject *of, Error *err)
{
    const DatasetCategory *c = of->category;
    int any = 0;
    PixelMetrics m = {.pixels = {.auroc = NAN, .average_precision = NAN, .best_f1 = NAN}};
    for (int i = 0; i < SPRO_LIMITS; i++)
        m.au_spro[i] = NAN;
    for (int i = 0; i < c->n_images; i++)
        any |= !c->images[i].normal && c->images[i].n_masks > 0;
    PixelScores *scores = any ? pixel_scores_new(of->out, err) : NULL;
    int status = !any ? 0 : scores ? add_maps(scores, of, err) : -1;
    if (!status && any)
        status = pixel_scores_measure(scores, ~0u, &m, err);
    if (!status) {
        add_figure(f, m.pixels.auroc, 0, "auroc.pixels");
        add_figure(f, m.pixels.average_precision, 0, "ap.pixels");
        add_figure(f, m.pixels.best_f1, 0, "f1.pixels");
        add_figure(f, any ? m.pixels.best_f1_threshold : NAN, 0, "threshold.pixels");
    }
    if (!status && any)
        status = measure_spro(f, of, scores, &m, err);
    pixel_scores_free(scores);
    return status;
}

/* Each kind, and all kinds together, against the good images. scores [n_images], the n_good ones first. */
static int measure_scores(Figures *f, const Subject *of, const float *scores, size_t n_good, Error *err)
{
    const DatasetCategory *c = of->category;
    const size_t n = (size_t)c->n_images;
    RankMetrics m;
    for (size_t first = n_good, end; first < n; first = end) {
        for (end = first; end < n && strcmp(c->images[end].kind, c->images[first].kind) == 0;)
            end++;
        if (rank_metrics(scores, n_good, scores + first, end - first, &m, err))
            return -1;
        add_figure(f, m.auroc, (int)(end - first), "auroc.%s", c->images[first].kind);
    }
    if (of->kind == DATASET_LOCO) /* LOCO's convention: both kinds weigh the same. */
        add_figure(f,
                   (figure_of(f, "auroc.logical_anomalies") + figure_of(f, "auroc.structural_anomalies")) / 2,
                   0, "auroc.mean");
    if (rank_metrics(scores, n_good, scores + n_good, n - n_good, &m, err))
        return -1;
    if (n_good == 0) /* without good images, every threshold is perfect. */
        m.average_precision = m.best_f1 = m.best_f1_threshold = NAN;
    add_figure(f, m.auroc, (int)(n - n_good), "auroc.all");
    add_figure(f, m.average_precision, (int)(n - n_good), "ap.all");
    add_figure(f, m.best_f1, (int)(n - n_good), "f1.all");
    add_figure(f, m.best_f1_threshold, (int)(n - n_good), "threshold.all");
    return 0;
}

/* Read the scores of all images: scores [METHODS_MAX][n_images]. */
static int read_all_scores(CategoryFigures *f, float *scores, const char *out, const DatasetCategory *c,
                           Error *err)
{
    float one[METHODS_MAX];
    for (int i = 0; i < c->n_images; i++) {
        const int n = read_scores(one, out, c, &c->images[i], err);
        if (n < 0)
            return -1;
        if (i > 0 && n != f->n_methods)
            return fail(err, "%s: some records of %s have baselines and some have none", out, c->name);
        f->n_methods = n;
        f->n_good += c->images[i].normal;
        for (int m = 0; m < n; m++)
            scores[m * c->n_images + i] = one[m];
    }
    return 0;
}

/* The number of normal images in the category's bank, as the run noted it. */
static int read_bank_size(int *n_bank, const char *out, const DatasetCategory *c, Error *err)
{
    Facts facts;
    char path[RUN_PATH];
    if (snprintf(path, sizeof path, "%s/categories/%s.json", out, c->name) >= RUN_PATH)
        return fail(err, "%s: the path is too long", out);
    if (facts_read(&facts, path, err))
        return -1;
    const char *count = facts_get(&facts, "normal.count");
    *n_bank = count ? atoi(count) : 0;
    facts_free(&facts);
    return 0;
}

int figures_measure(CategoryFigures *f, DatasetKind kind, const DatasetCategory *c, const char *out,
                    Error *err)
{
    *f = (CategoryFigures){.n_images = c->n_images};
    snprintf(f->name, sizeof f->name, "%s", c->name);
    if (run_same_images(out, c, err) || read_bank_size(&f->n_bank, out, c, err))
        return -1;
    float *scores = aligned_array((size_t)c->n_images * METHODS_MAX, sizeof *scores);
    int status = scores ? read_all_scores(f, scores, out, c, err)
                        : fail_memory(err, "the scores", (unsigned long long)c->n_images * METHODS_MAX * 4);
    for (int m = 0; m < f->n_methods && !status; m++) {
        const Subject of = {out, kind, c, m};
        status = measure_scores(&f->methods[m], &of, scores + m * c->n_images, (size_t)f->n_good, err) ||
                         measure_maps(&f->methods[m], &of, err)
                     ? -1
                     : 0;
    }
    free(scores);
    return status;
}
