/* eval/table.c - see table.h. */
#include "eval/table.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "report/report.h"
#include "eval/run.h"

/* ================================================================================================
 * Writing
 * ============================================================================================== */

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

/* ================================================================================================
 * Text
 * ============================================================================================== */

/* A folder's name, padded to `width` characters. */
static void print_name(FILE *to, const char *name, size_t width)
{
    report_plain(to, name);
    fprintf(to, "%*s", (int)(strlen(name) < width ? width - strlen(name) : 0), "");
}

static void print_one(FILE *to, const CategoryFigures *c)
{
    for (int i = 0; i < c->methods[0].n; i++) {
        const Figure *f = &c->methods[0].list[i];
        const char *what = strchr(f->name, '.') + 1;
        if (!figure_is_shown(f) || isnan(f->value))
            continue;
        if (strncmp(f->name, "auroc.", 6) != 0)
            fprintf(to, "%s %2s %%%*s %.3f\n", f->name[2] == 's' ? "AU-sPRO up to" : "AU-PRO up to", what,
                    f->name[2] == 's' ? 12 : 13, "", f->value);
        else if (f->n && strcmp(what, "all") != 0)
            print_name(to, what, 24),
                fprintf(to, " AUROC %.3f  (%d against %d good)\n", f->value, f->n, c->n_good);
        else
            print_name(to, what, 24), fprintf(to, " AUROC %.3f\n", f->value);
    }
}

/* The columns are the figures that all categories have. */
static void print_row(FILE *to, const CategoryFigures *c, const CategoryFigures *mean)
{
    const Figures *columns = &mean->methods[0];
    print_name(to, c->name, 24);
    for (int i = 0; i < columns->n; i++)
        if (figure_is_shown(&columns->list[i]))
            fprintf(to, "  %*.3f", (int)strlen(columns->list[i].name),
                    figure_of(&c->methods[0], columns->list[i].name));
    fprintf(to, "  %6d\n", c->n_images);
}

static void print_all(FILE *to, const CategoryFigures *categories, const CategoryFigures *mean,
                      const Dataset *d)
{
    const Figures *columns = &mean->methods[0];
    fprintf(to, "%-24s", dataset_kind_name(d->kind));
    for (int i = 0; i < columns->n; i++)
        if (figure_is_shown(&columns->list[i]))
            fprintf(to, "  %s", columns->list[i].name);
    fprintf(to, "  images\n");
    for (int i = 0; i < d->n; i++)
        print_row(to, &categories[i], mean);
    print_row(to, mean, mean);
}

/* ================================================================================================
 * The baselines beside the method
 * ============================================================================================== */

void say_baselines(char text[VERDICT_SIZE], const CategoryFigures *c)
{
    const char *figure = image_figure(c);
    const double own = figure_of(&c->methods[0], figure);
    size_t n = 0;
    for (int m = 1; m < c->n_methods; m++) {
        const double its = figure_of(&c->methods[m], figure);
        if (its > own)
            n += (size_t)snprintf(text + n, VERDICT_SIZE - n, "%s%s (%.3f)",
                                  n ? ", " : "better than samlad: ", method_name(m), its);
    }
    if (!n)
        n = (size_t)snprintf(text, VERDICT_SIZE, "no baseline is better than samlad");
    snprintf(text + n, VERDICT_SIZE - n, " in image AUROC (%s %.3f)", figure, own);
}

static void print_methods(FILE *to, const char *title)
{
    fprintf(to, "\n%-28s", title);
    for (int m = 0; m < METHODS_MAX; m++)
        fprintf(to, "  %s", method_name(m));
    fprintf(to, "\n");
}

/* Is there something to compare? Without baselines, or without good images, there is not. */
static int has_comparison(const CategoryFigures *mean)
{
    return mean->n_methods > 1 && !isnan(figure_of(&mean->methods[0], image_figure(mean)));
}

/* One figure of all methods; a star marks a baseline that is better. */
static void print_beside(FILE *to, const char *name, const CategoryFigures *c, const char *figure)
{
    const double own = figure_of(&c->methods[0], figure);
    print_name(to, name, 28);
    for (int m = 0; m < c->n_methods; m++) {
        const double value = figure_of(&c->methods[m], figure);
        fprintf(to, "  %*.3f%s", (int)strlen(method_name(m)) - 1, value, value > own ? "*" : " ");
    }
    fprintf(to, "\n");
}

/* One category: a line a figure. */
static void print_baselines_of_one(FILE *to, const CategoryFigures *c)
{
    print_methods(to, "on the same features");
    for (int i = 0; i < c->methods[0].n; i++) {
        const Figure *f = &c->methods[0].list[i];
        if (figure_is_shown(f) && !isnan(f->value))
            print_beside(to, f->name, c, f->name);
    }
}

/* Several categories: a block for images, one for pixels and one for regions; a line a category. */
static void print_baselines_of_all(FILE *to, const CategoryFigures *categories, const CategoryFigures *mean,
                                   const Dataset *d)
{
    const char *const figures[] = {image_figure(mean), "auroc.pixels", "auspro.5", "aupro.30"};
    for (size_t f = 0; f < sizeof figures / sizeof *figures; f++) {
        if (isnan(figure_of(&mean->methods[0], figures[f])))
            continue;
        print_methods(to, figures[f]);
        for (int i = 0; i < d->n; i++)
            print_beside(to, categories[i].name, &categories[i], figures[f]);
        print_beside(to, mean->name, mean, figures[f]);
    }
}

static void print_baselines(FILE *to, const CategoryFigures *categories, const CategoryFigures *mean,
                            const Dataset *d)
{
    char verdict[VERDICT_SIZE];
    if (!has_comparison(mean))
        return;
    if (d->n == 1)
        print_baselines_of_one(to, categories);
    else
        print_baselines_of_all(to, categories, mean, d);
    say_baselines(verdict, mean);
    fprintf(to, "%s\n", verdict);
}

static void markdown_beside(OutFile *out, const CategoryFigures *c, int method, const Figures *columns)
{
    put_text(out, "| ");
    put_markdown(out, c->name);
    put_text(out, " | %s |", method_name(method));
    for (int i = 0; i < columns->n; i++) {
        const char *name = columns->list[i].name;
        const double value = figure_of(&c->methods[method], name), own = figure_of(&c->methods[0], name);
        if (figure_is_shown(&columns->list[i]))
            put_text(out, isnan(value) ? " |" : value > own ? " **%.3f** |" : " %.3f |", value);
    }
    put_text(out, "\n");
}

/* All methods of all categories; bold: better than samlad. */
static void markdown_baselines(OutFile *out, const CategoryFigures *categories, const CategoryFigures *mean,
                               const Dataset *d)
{
    const Figures *columns = &mean->methods[0];
    char verdict[VERDICT_SIZE];
    if (!has_comparison(mean))
        return;
    put_text(out,
             "\n## Baselines on the same features\n\nBold: better than samlad.\n\n| category | method |");
    for (int i = 0; i < columns->n; i++)
        if (figure_is_shown(&columns->list[i])) {
            put_text(out, " ");
            put_markdown(out, columns->list[i].name);
            put_text(out, " |");
        }
    put_text(out, "\n|---|---|");
    for (int i = 0; i < columns->n; i++)
        put_text(out, figure_is_shown(&columns->list[i]) ? "---|" : "");
    put_text(out, "\n");
    for (int i = 0; i < d->n + (d->n > 1); i++)
        for (int m = 0; m < mean->n_methods; m++)
            markdown_beside(out, i < d->n ? &categories[i] : mean, m, columns);
    say_baselines(verdict, mean);
    put_text(out, "\n%s.\n", verdict);
}

void table_print(FILE *to, const CategoryFigures *categories, const Dataset *d)
{
    const CategoryFigures *mean = &categories[d->n];
    if (d->n == 1)
        print_one(to, categories);
    else
        print_all(to, categories, mean, d);
    print_baselines(to, categories, mean, d);
}

/* ================================================================================================
 * JSON, CSV
 * ============================================================================================== */

void json_figures(JsonWriter *w, const char *key, const Figures *figures)
{
    json_key(w, key), json_open(w, '{');
    for (int i = 0; i < figures->n; i++)
        json_key(w, figures->list[i].name), json_number(w, figures->list[i].value);
    json_close(w, '}');
}

/* Copy the sentence, with `name` for the path `root` at the beginning of words. malloc'd; NULL: no memory. */
static char *name_root(const char *sentence, const char *root, const char *name)
{
    const size_t n = strlen(root), n_name = strlen(name);
    char *copy = malloc(strlen(sentence) * (n_name + 1) + 1), *to = copy;
    for (const char *at = sentence; copy && *at;)
        if ((at == sentence || at[-1] == ' ') && strncmp(at, root, n) == 0 && strchr("/: ", at[n])) {
            to = (char *)memcpy(to, name, n_name) + n_name;
            at += n;
        } else {
            *to++ = *at++;
        }
    if (copy)
        *to = '\0';
    return copy;
}

/* They name the data set, not its place: a merge looks for it elsewhere. */
static void json_warnings(JsonWriter *w, const Dataset *d)
{
    char name[256];
    w->failed |= folder_name(name, d->root, NULL) != 0;
    json_key(w, "warnings"), json_open(w, '[');
    for (int i = 0; i < d->notes.n && !w->failed; i++) {
        char *sentence = name_root(d->notes.sentences[i], d->root, name);
        w->failed |= sentence == NULL;
        json_string(w, sentence ? sentence : "");
        free(sentence);
    }
    json_close(w, ']');
}

/* The normal images that were kept for the test. */
static void json_held_out(JsonWriter *w, const DatasetCategory *c)
{
    json_key(w, "held_out"), json_open(w, '[');
    for (int i = 0; i < c->n_held_out; i++)
        json_string(w, c->images[i].name);
    json_close(w, ']');
}

/* The files that are left out. */
static void json_unreadable(JsonWriter *w, const DatasetCategory *c)
{
    json_key(w, "unreadable"), json_open(w, '[');
    for (int i = 0; i < c->n_unreadable; i++)
        json_string(w, c->unreadable[i].name);
    json_close(w, ']');
}

/* c: NULL for the mean. */
static void json_category(JsonWriter *w, const CategoryFigures *f, const DatasetCategory *c)
{
    json_open(w, '{');
    json_key(w, "category"), json_string(w, f->name);
    json_key(w, "bank_images"), json_int(w, f->n_bank);
    json_key(w, "good_images"), json_int(w, f->n_good);
    json_key(w, "test_images"), json_int(w, f->n_images);
    if (c) {
        json_held_out(w, c);
        json_unreadable(w, c);
    }
    json_figures(w, "figures", &f->methods[0]);
    if (f->n_methods > 1)
        json_key(w, "baselines"), json_open(w, '{');
    for (int m = 1; m < f->n_methods; m++)
        json_figures(w, method_name(m), &f->methods[m]);
    if (f->n_methods > 1)
        json_close(w, '}');
    json_close(w, '}');
}

void table_json(JsonWriter *w, const CategoryFigures *categories, const Dataset *d)
{
    const CategoryFigures *mean = &categories[d->n];
    json_open(w, '{');
    json_key(w, "dataset"), json_string(w, dataset_kind_name(d->kind));
    json_key(w, "categories");
    json_open(w, '[');
    for (int i = 0; i < d->n; i++)
        json_category(w, &categories[i], &d->categories[i]);
    json_close(w, ']');
    json_key(w, "mean"), json_category(w, mean, NULL);
    json_warnings(w, d);
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

/* A baseline's figures begin with its name: position-nn.auroc.all. */
static void csv_category(OutFile *out, const CategoryFigures *c)
{
    for (int m = 0; m < c->n_methods; m++)
        for (int i = 0; i < c->methods[m].n; i++) {
            const Figure *f = &c->methods[m].list[i];
            char name[sizeof f->name + 32];
            snprintf(name, sizeof name, "%s%s%s", m ? method_name(m) : "", m ? "." : "", f->name);
            put_csv(out, c->name);
            put_text(out, ",");
            put_csv(out, name);
            put_text(out, isnan(f->value) ? "," : ",%.9g", f->value);
            put_text(out, f->n ? ",%d\n" : ",\n", f->n);
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
        double ours = figure_of(&mean->methods[0], PAPER[i].figure);
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

static void markdown_row(OutFile *out, const CategoryFigures *c, const Figures *columns)
{
    put_text(out, "| ");
    put_markdown(out, c->name);
    put_text(out, " | %d | %d |", c->n_bank, c->n_images);
    for (int i = 0; i < columns->n; i++) {
        double value = figure_of(&c->methods[0], columns->list[i].name);
        if (isnan(value))
            put_text(out, " |");
        else
            put_text(out, " %.3f |", value);
    }
    put_text(out, "\n");
}

/* Name the files that are left out. */
static void markdown_unreadable(OutFile *out, const DatasetCategory *c)
{
    if (c->n_unreadable == 0)
        return;
    put_text(out, "\n");
    put_markdown(out, c->name);
    put_text(out, ": %d file%s could not be read and %s left out:", c->n_unreadable,
             c->n_unreadable == 1 ? "" : "s", c->n_unreadable == 1 ? "is" : "are");
    for (int i = 0; i < c->n_unreadable; i++) {
        put_text(out, i ? ", " : " ");
        put_markdown(out, c->unreadable[i].name);
    }
    put_text(out, ".\n");
}

static int write_markdown(const char *path, const CategoryFigures *categories, const CategoryFigures *mean,
                          const Dataset *d, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    put_text(&out, "# samlad %s on %s\n\n| category | bank | test |", SAMLAD_VERSION,
             dataset_kind_name(d->kind));
    const Figures *columns = &mean->methods[0];
    for (int i = 0; i < columns->n; i++) {
        put_text(&out, " ");
        put_markdown(&out, columns->list[i].name);
        put_text(&out, " |");
    }
    put_text(&out, "\n|---|---|---|");
    for (int i = 0; i < columns->n; i++)
        put_text(&out, "---|");
    put_text(&out, "\n");
    for (int i = 0; i < d->n; i++)
        markdown_row(&out, &categories[i], columns);
    if (d->n > 1)
        markdown_row(&out, mean, columns);
    for (int i = 0; i < d->n; i++)
        markdown_unreadable(&out, &d->categories[i]);
    markdown_baselines(&out, categories, mean, d);
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
    const CategoryFigures *mean = &categories[d->n];
    char path[RUN_PATH];
    if (snprintf(path, sizeof path, "%s/results.jsonl", out) >= RUN_PATH - 128)
        return fail(err, "%s: the path is too long", out);
    if (write_records(path, d, out, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.csv", out);
    if (write_csv(path, categories, mean, d, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.md", out);
    if (write_markdown(path, categories, mean, d, err))
        return -1;
    snprintf(path, sizeof path, "%s/results.json", out); /* last: it marks all as written (ablate.c). */
    return write_json(path, categories, d, err);
}
