/* eval/table.c - see table.h. metrics.h defines the figures; this file decides which images they are taken
 * over. */
#include "eval/table.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"
#include "report/report.h"
#include "tensor.h"
#include "eval/facts.h"
#include "eval/metrics.h"
#include "eval/run.h"

/* ================================================================================================
 * Figures
 * ============================================================================================== */

double figure_of(const CategoryFigures *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->figures[i].name, name) == 0)
            return c->figures[i].value;
    return NAN;
}

static void add_figure(CategoryFigures *c, double value, int n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add_figure(CategoryFigures *c, double value, int n, const char *format, ...)
{
    if (c->n == FIGURES_MAX)
        return;
    Figure *f = &c->figures[c->n++];
    va_list args;
    va_start(args, format);
    vsnprintf(f->name, sizeof f->name, format, args);
    va_end(args);
    f->value = value;
    f->n = n;
}

void table_mean(CategoryFigures *mean, const CategoryFigures *categories, int n)
{
    *mean = (CategoryFigures){.name = "mean"};
    for (int f = 0; n > 0 && f < categories[0].n; f++) {
        double sum = 0;
        for (int i = 0; i < n; i++) /* a category without it makes the mean NAN. */
            sum += figure_of(&categories[i], categories[0].figures[f].name);
        if (!isnan(sum) && strncmp(categories[0].figures[f].name, "threshold.", 10) != 0)
            add_figure(mean, sum / n, 0, "%s", categories[0].figures[f].name);
    }
    for (int i = 0; i < n; i++) {
        mean->n_bank += categories[i].n_bank;
        mean->n_good += categories[i].n_good;
        mean->n_images += categories[i].n_images;
    }
}

/* ================================================================================================
 * Measuring
 * ============================================================================================== */

/* Read the score from an image's record. */
static int read_score(const char *out, const DatasetCategory *c, const DatasetImage *image, float *score,
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
    const Json *value = json_get(json, "score");
    int ok = value && value->type == JSON_NUMBER;
    *score = ok ? (float)value->number : 0;
    json_free(json);
    return ok ? 0 : fail(err, "%s: there is no score in this record", path);
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

/* Add one image's map and truth to the pixel scores. */
static int add_map(PixelScores *scores, int group, const DefectTable *table, const char *out,
                   const DatasetCategory *c, const DatasetImage *image, Error *err)
{
    char path[RUN_PATH];
    Truth truth = {0};
    int width, height, status = run_path(path, out, "anomaly_maps", c, image, ".tiff", err);
    float *map = status ? NULL : tiff_read_float(path, &width, &height, err);
    if (!map)
        return -1;
    if (width != image->width || height != image->height)
        status = fail(err, "%s: the map is %dx%d, its image %dx%d", path, width, height, image->width,
                      image->height);
    if (!status && !image->normal)
        status = truth_read(&truth, width, height, (const char *const *)image->masks, (size_t)image->n_masks,
                            table, err);
    if (!status)
        status =
            pixel_scores_add(scores, group, map, width, height, image->normal ? NULL : &truth, path, err);
    truth_free(&truth);
    free(map);
    return status;
}

/* Add all maps with known truth; a defect without a mask is left out. */
static int add_maps(PixelScores *scores, const DatasetCategory *c, const char *out, Error *err)
{
    DefectTable *table = c->config ? calloc(1, sizeof *table) : NULL;
    int status = !c->config ? 0
                 : table    ? defect_table_read(table, c->config, err)
                            : fail_memory(err, "a table", sizeof *table);
    for (int i = 0; i < c->n_images && !status; i++)
        if (c->images[i].normal || c->images[i].n_masks > 0)
            status = add_map(scores, group_of(c, i), table, out, c, &c->images[i], err);
    free(table);
    return status;
}

/* AU-sPRO at each limit. LOCO's convention is the mean of both kinds, each with the good images. Without a
 * table of saturations it is AU-PRO. */
static int measure_spro(CategoryFigures *f, DatasetKind kind, const DatasetCategory *c, PixelScores *scores,
                        const PixelMetrics *all, Error *err)
{
    PixelMetrics kinds[2] = {*all, *all};
    int n = group_of(c, c->n_images - 1);
    for (int k = 0; kind == DATASET_LOCO && n == 2 && k < 2; k++)
        if (pixel_scores_measure(scores, 1u << GOOD_GROUP | 1u << (k + 1), &kinds[k], err))
            return -1;
    for (int i = 0; i < SPRO_LIMITS; i++)
        add_figure(f, (kinds[0].au_spro[i] + kinds[1].au_spro[i]) / 2, 0,
                   c->config ? "auspro.%.0f" : "aupro.%.0f", 100 * spro_limits[i]);
    return 0;
}

static int measure_maps(CategoryFigures *f, DatasetKind kind, const DatasetCategory *c, const char *out,
                        Error *err)
{
    int any = 0;
    PixelMetrics m = {.pixels = {.auroc = NAN, .average_precision = NAN, .best_f1 = NAN}};
    for (int i = 0; i < SPRO_LIMITS; i++)
        m.au_spro[i] = NAN;
    for (int i = 0; i < c->n_images; i++)
        any |= c->images[i].n_masks > 0;
    PixelScores *scores = any ? pixel_scores_new(out, err) : NULL;
    int status = !any ? 0 : scores ? add_maps(scores, c, out, err) : -1;
    if (!status && any)
        status = pixel_scores_measure(scores, ~0u, &m, err);
    if (!status) {
        add_figure(f, m.pixels.auroc, 0, "auroc.pixels");
        add_figure(f, m.pixels.average_precision, 0, "ap.pixels");
        add_figure(f, m.pixels.best_f1, 0, "f1.pixels");
        add_figure(f, any ? m.pixels.best_f1_threshold : NAN, 0, "threshold.pixels");
    }
    if (!status && any)
        status = measure_spro(f, kind, c, scores, &m, err);
    pixel_scores_free(scores);
    return status;
}

/* Each kind, and all kinds together, against the good images. scores [n_images], the good ones first. */
static int measure_scores(CategoryFigures *f, DatasetKind kind, const DatasetCategory *c, const float *scores,
                          Error *err)
{
    size_t n_good = (size_t)f->n_good, n = (size_t)c->n_images;
    RankMetrics m;
    for (size_t first = n_good, end; first < n; first = end) {
        for (end = first; end < n && strcmp(c->images[end].kind, c->images[first].kind) == 0;)
            end++;
        if (rank_metrics(scores, n_good, scores + first, end - first, &m, err))
            return -1;
        add_figure(f, m.auroc, (int)(end - first), "auroc.%s", c->images[first].kind);
    }
    if (kind == DATASET_LOCO) /* LOCO's convention: both kinds weigh the same. */
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

int table_measure(CategoryFigures *f, DatasetKind kind, const DatasetCategory *c, const char *out, Error *err)
{
    Facts facts;
    char path[RUN_PATH];
    *f = (CategoryFigures){.n_images = c->n_images};
    snprintf(f->name, sizeof f->name, "%s", c->name);
    if (run_same_images(out, c, err) ||
        snprintf(path, sizeof path, "%s/categories/%s.json", out, c->name) >= RUN_PATH ||
        facts_read(&facts, path, err))
        return -1;
    const char *count = facts_get(&facts, "normal.count");
    f->n_bank = count ? atoi(count) : 0;
    facts_free(&facts);
    float *scores = aligned_array((size_t)c->n_images + 1, sizeof *scores);
    int status = scores ? 0 : fail_memory(err, "the scores", (unsigned long long)c->n_images * 4);
    for (int i = 0; i < c->n_images && !status; i++) {
        status = read_score(out, c, &c->images[i], &scores[i], err);
        f->n_good += c->images[i].normal;
    }
    if (!status)
        status = measure_scores(f, kind, c, scores, err) || measure_maps(f, kind, c, out, err) ? -1 : 0;
    free(scores);
    return status;
}

/* ================================================================================================
 * Text
 * ============================================================================================== */

int figure_is_shown(const Figure *f)
{
    return strncmp(f->name, "auroc.", 6) == 0 || strcmp(f->name, "auspro.5") == 0 ||
           strcmp(f->name, "aupro.30") == 0;
}

/* A folder's name, padded to 24 characters. */
static void print_name(FILE *to, const char *name)
{
    report_plain(to, name);
    fprintf(to, "%*s", (int)(strlen(name) < 24 ? 24 - strlen(name) : 0), "");
}

static void print_one(FILE *to, const CategoryFigures *c)
{
    for (int i = 0; i < c->n; i++) {
        const Figure *f = &c->figures[i];
        const char *what = strchr(f->name, '.') + 1;
        if (!figure_is_shown(f) || isnan(f->value))
            continue;
        if (strncmp(f->name, "auroc.", 6) != 0)
            fprintf(to, "%s %2s %%%*s %.3f\n", f->name[2] == 's' ? "AU-sPRO up to" : "AU-PRO up to", what,
                    f->name[2] == 's' ? 12 : 13, "", f->value);
        else if (f->n && strcmp(what, "all") != 0)
            print_name(to, what),
                fprintf(to, " AUROC %.3f  (%d against %d good)\n", f->value, f->n, c->n_good);
        else
            print_name(to, what), fprintf(to, " AUROC %.3f\n", f->value);
    }
}

/* The columns are the figures that all categories have. */
static void print_row(FILE *to, const CategoryFigures *c, const CategoryFigures *mean)
{
    print_name(to, c->name);
    for (int i = 0; i < mean->n; i++)
        if (figure_is_shown(&mean->figures[i]))
            fprintf(to, "  %*.3f", (int)strlen(mean->figures[i].name), figure_of(c, mean->figures[i].name));
    fprintf(to, "  %6d\n", c->n_images);
}

void table_print(FILE *to, const CategoryFigures *categories, const Dataset *d)
{
    CategoryFigures mean;
    if (d->n == 1) {
        print_one(to, categories);
        return;
    }
    table_mean(&mean, categories, d->n);
    fprintf(to, "%-24s", dataset_kind_name(d->kind));
    for (int i = 0; i < mean.n; i++)
        if (figure_is_shown(&mean.figures[i]))
            fprintf(to, "  %s", mean.figures[i].name);
    fprintf(to, "  images\n");
    for (int i = 0; i < d->n; i++)
        print_row(to, &categories[i], &mean);
    print_row(to, &mean, &mean);
}

/* ================================================================================================
 * JSON, CSV
 * ============================================================================================== */

static void json_category(JsonWriter *w, const CategoryFigures *c)
{
    json_open(w, '{');
    json_key(w, "category"), json_string(w, c->name);
    json_key(w, "bank_images"), json_int(w, c->n_bank);
    json_key(w, "good_images"), json_int(w, c->n_good);
    json_key(w, "test_images"), json_int(w, c->n_images);
    json_key(w, "figures");
    json_open(w, '{');
    for (int i = 0; i < c->n; i++)
        json_key(w, c->figures[i].name), json_number(w, c->figures[i].value);
    json_close(w, '}');
    json_close(w, '}');
}

void table_json(JsonWriter *w, const CategoryFigures *categories, const Dataset *d)
{
    CategoryFigures mean;
    table_mean(&mean, categories, d->n);
    json_open(w, '{');
    json_key(w, "dataset"), json_string(w, dataset_kind_name(d->kind));
    json_key(w, "categories");
    json_open(w, '[');
    for (int i = 0; i < d->n; i++)
        json_category(w, &categories[i]);
    json_close(w, ']');
    json_key(w, "mean"), json_category(w, &mean);
    json_close(w, '}');
}

static int write_json(const char *path, const CategoryFigures *categories, const Dataset *d, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    table_json(&w, categories, d);
    int status = w.failed ? fail_memory(err, path, w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

/* Append formatted text to a file. */
static void put_text(OutFile *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put_text(OutFile *out, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    out_put(out, text, strlen(text));
}

void put_csv(OutFile *out, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        out_put(out, text, strlen(text));
        return;
    }
    out_put(out, "\"", 1);
    for (; *text; text++) /* a quote is doubled. */
        out_put(out, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    out_put(out, "\"", 1);
}

void put_markdown(OutFile *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|' || *text == '\\')
            out_put(out, "\\", 1);
        out_put(out, (unsigned char)*text < ' ' ? " " : text, 1); /* a row is a line. */
    }
}

static void csv_category(OutFile *out, const CategoryFigures *c)
{
    for (int i = 0; i < c->n; i++) {
        put_csv(out, c->name);
        put_text(out, ",");
        put_csv(out, c->figures[i].name);
        put_text(out, ",");
        if (!isnan(c->figures[i].value))
            put_text(out, "%.9g", c->figures[i].value);
        put_text(out, ",");
        if (c->figures[i].n)
            put_text(out, "%d", c->figures[i].n);
        put_text(out, "\n");
    }
}

static int write_csv(const char *path, const CategoryFigures *categories, const CategoryFigures *mean,
                     const Dataset *d, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    put_text(&out, "category,figure,value,images\n");
    for (int i = 0; i < d->n; i++)
        csv_category(&out, &categories[i]);
    if (d->n > 1)
        csv_category(&out, mean);
    return out_commit(&out, err);
}

/* ================================================================================================
 * Markdown, with the paper's numbers beside ours
 * ============================================================================================== */

/* The numbers of the paper's abstract (Peng et al., arXiv 2406.00625), in percent; its tables could not be
 * read. Ours stand beside them only for the published test set, which the number of images identifies. */
static const struct {
    DatasetKind kind;
    const char *what, *figure;
    double paper;
    int published_images;
} PAPER[] = {
    {DATASET_LOCO, "MVTec LOCO AD, detection, mean AUROC", "auroc.mean", 90.7, 1568},
    {DATASET_LOCO, "MVTec LOCO AD, localisation, AU-sPRO at 5 %", "auspro.5", 83.2, 1568},
    {DATASET_AD, "MVTec AD, detection, AUROC", "auroc.all", 98.4, 1725},
    {DATASET_AD, "MVTec AD, segmentation, AUROC", "auroc.pixels", 98.5, 1725},
};

static void paper_table(OutFile *out, const CategoryFigures *mean, const Dataset *d)
{
    int others = 0;
    put_text(out,
             "\n## Beside the paper\n\nThe paper's numbers are those of its abstract (arXiv 2406.00625), in "
             "percent.\n\n| | the paper's | here |\n|---|---|---|\n");
    for (size_t i = 0; i < sizeof PAPER / sizeof *PAPER; i++) {
        double ours = figure_of(mean, PAPER[i].figure);
        put_text(out, "| %s | %.1f | ", PAPER[i].what, PAPER[i].paper);
        if (PAPER[i].kind == d->kind && mean->n_images == PAPER[i].published_images && !isnan(ours))
            put_text(out, "%.1f |\n", 100 * ours);
        else
            put_text(out, "|\n");
        others |= PAPER[i].kind == d->kind && mean->n_images != PAPER[i].published_images;
    }
    if (others)
        put_text(out,
                 "\nThe test images here are not all of the published data set: their figures do not stand "
                 "beside the paper's.\n");
    if (d->kind == DATASET_DIGITS)
        put_text(out,
                 "\nThese digit grids are generated, not the paper's test images: not to be compared with "
                 "published figures.\n");
}

static void markdown_row(OutFile *out, const CategoryFigures *c, const CategoryFigures *columns)
{
    put_text(out, "| ");
    put_markdown(out, c->name);
    put_text(out, " | %d | %d |", c->n_bank, c->n_images);
    for (int i = 0; i < columns->n; i++) {
        double value = figure_of(c, columns->figures[i].name);
        if (isnan(value))
            put_text(out, " |");
        else
            put_text(out, " %.3f |", value);
    }
    put_text(out, "\n");
}

static int write_markdown(const char *path, const CategoryFigures *categories, const CategoryFigures *mean,
                          const Dataset *d, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    put_text(&out, "# samlad %s on %s\n\n| category | bank | test |", SAMLAD_VERSION,
             dataset_kind_name(d->kind));
    for (int i = 0; i < mean->n; i++) {
        put_text(&out, " ");
        put_markdown(&out, mean->figures[i].name);
        put_text(&out, " |");
    }
    put_text(&out, "\n|---|---|---|");
    for (int i = 0; i < mean->n; i++)
        put_text(&out, "---|");
    put_text(&out, "\n");
    for (int i = 0; i < d->n; i++)
        markdown_row(&out, &categories[i], mean);
    if (d->n > 1)
        markdown_row(&out, mean, mean);
    if (d->kind != DATASET_FOLDER)
        paper_table(&out, mean, d);
    return out_commit(&out, err);
}

/* ================================================================================================
 * All of them
 * ============================================================================================== */

static int write_records(const char *path, const Dataset *d, const char *out_dir, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    for (int c = 0; c < d->n; c++)
        for (int i = 0; i < d->categories[c].n_images; i++) {
            char record[RUN_PATH];
            size_t n;
            uint8_t *text = NULL;
            if (!run_path(record, out_dir, "records", &d->categories[c], &d->categories[c].images[i], ".json",
                          err))
                text = file_read(record, (size_t)1 << 30, &n, err);
            if (!text) {
                out_drop(&out);
                return -1;
            }
            out_put(&out, text, n);
            free(text);
        }
    return out_commit(&out, err);
}

int table_write(const CategoryFigures *categories, const Dataset *d, const char *out, Error *err)
{
    CategoryFigures mean;
    char path[RUN_PATH];
    table_mean(&mean, categories, d->n);
    if (snprintf(path, sizeof path, "%s/results.jsonl", out) >= RUN_PATH - 128)
        return fail(err, "%s: the path is too long", out);
    if (write_records(path, d, out, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.csv", out);
    if (write_csv(path, categories, &mean, d, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.md", out);
    if (write_markdown(path, categories, &mean, d, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.json", out); /* last: it marks all as written (ablate.c). */
    return write_json(path, categories, d, err);
}
