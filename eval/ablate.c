/* eval/ablate.c - see ablate.h. */
#include "eval/ablate.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/facts.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/json.h"
#include "bank/options.h"

/* ================================================================================================
 * Settings
 * ============================================================================================== */

/* Split off the next "name=value" of the changes. Returns the rest, NULL at the end. *bad: it is
 * malformed. */
static const char *next_change(const char *changes, char name[64], char value[64], int *bad)
{
    changes += strspn(changes, " ");
    *bad = 0;
    if (!*changes)
        return NULL;
    size_t length = strcspn(changes, " "), equals = strcspn(changes, "=");
    *bad =
        equals >= length || equals >= 64 || equals == 0 || length - equals - 1 >= 64 || length - equals == 1;
    if (*bad)
        return NULL;
    snprintf(name, 64, "%.*s", (int)equals, changes);
    snprintf(value, 64, "%.*s", (int)(length - equals - 1), changes + equals + 1);
    return changes + length;
}

int ablation_add(AblationTable *t, const char *changes, Error *err)
{
    char name[64], value[64];
    int bad;
    Options scratch;
    options_default(&scratch);
    for (const char *at = next_change(changes, name, value, &bad); at;
         at = next_change(at, name, value, &bad)) {
        const OptionSpec *spec = option_find(name);
        if (!spec)
            return fail(err, "setting '%.100s': there is no option %s", changes, name);
        if (option_set(&scratch, spec, value, name, err))
            return -1;
    }
    if (bad || strlen(changes) >= sizeof t->settings[0].changes)
        return fail(err, "setting '%.100s': expected NAME=VALUE, or several with blanks between them",
                    changes);
    for (int i = 0; i < t->n; i++)
        if (strcmp(t->settings[i].changes, changes) == 0)
            return 0;
    if (t->n == ABLATIONS_MAX)
        return fail(err, "more than %d settings", ABLATIONS_MAX);
    snprintf(t->settings[t->n++].changes, sizeof t->settings[0].changes, "%s", changes);
    return 0;
}

static void add_number(AblationTable *t, const char *name, int value)
{
    char changes[96];
    snprintf(changes, sizeof changes, "%s=%d", name, value);
    ablation_add(t, changes, NULL);
}

static int fact_number(const Facts *facts, const char *key)
{
    const char *value = facts_get(facts, key);
    return value ? atoi(value) : 0;
}

int ablation_list(AblationTable *t, const Samlad *s, Error *err)
{
    static const char *const switches[] = {
        "",                     /* the default */
        "method=paper views=1", /* the paper's values where one is known, and one view */
        "views=1",
        "featup-stages=0", /* no FeatUp: bilinear */
        "featup-stages=1",
        "featup-stages=2",
        "featup-stages=4",
        "channel-graph=off",
        "channel-graph=softmax",
        "object-strength=0.1", /* the object graph's lambda_o. */
        "object-strength=0.5",
        "position-weight=0",
        "alpha=0.2",       /* fixed */
        "matcher=nearest", /* instead of Sinkhorn */
        "verify=0",
        "count=0",           /* no counting of look-alike objects. */
        "verify-shift=0",    /* mask transfer to the same place only. */
        "alpha-unmatched=0", /* alpha is the dustbin. */
        "align=pixel",
        "register-reach=0",
        "register-unmatched=0",
        "claims=0",
        "object-quantile=0", /* no objects' units. */
        "nearest-weight=0",  /* no nearest features. */
        "raster-weight=0",   /* no layout of objects. */
        "score=max",         /* the largest cell, no blocks. */
        "no-objects=1",      /* PaDiM on the k references. */
        "only=structural",
        "only=logical",
    };
    static const int references[] = {1, 3, 5, 10, 20};
    Facts base = {0};
    const int status = facts_describe(&base, s, err);
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        ablation_add(t, switches[i], NULL);
    int k = fact_number(&base, "option.k"), layer = fact_number(&base, "option.layer"),
        size = fact_number(&base, "option.size"), blocks = samlad_backbone_blocks(s);
    for (size_t i = 0; i < sizeof references / sizeof *references; i++)
        if (references[i] != k)
            add_number(t, "k", references[i]);
    for (int quarter = 2; quarter <= 4; quarter++)
        if (blocks * quarter / 4 != layer && blocks * quarter / 4 > 0)
            add_number(t, "layer", blocks * quarter / 4);
    add_number(t, "size", size * 3 / 4);
    add_number(t, "size", size * 3 / 2);
    facts_free(&base);
    return status;
}

/* Set the base options in their table's order, then the changes. *features: a change concerns features. The
 * word of the method comes first each time, so that single options hold. */
static int apply(Samlad *s, const Facts *base, const char *changes, int *features, Error *err)
{
    char name[64], value[64];
    int bad;
    *features = 0;
    for (int i = 0; i < base->n; i++)
        if (strncmp(base->keys[i], "option.", 7) == 0 &&
            samlad_set(s, base->keys[i] + 7, base->values[i], err))
            return -1;
    for (int word = 1; word >= 0; word--)
        for (const char *at = next_change(changes, name, value, &bad); at;
             at = next_change(at, name, value, &bad)) {
            const OptionSpec *spec = option_find(name);
            *features |= spec->of_features;
            if (option_is_method(spec) == word && samlad_set(s, name, value, err))
                return -1;
        }
    return 0;
}

/* A folder's name for a setting: "k=3 align=pixel" -> "k=3,align=pixel". */
static void folder_of(char name[128], const char *changes)
{
    snprintf(name, 128, "%s", *changes ? changes : "default");
    for (char *c = name; *c; c++)
        if (*c == ' ' || *c == '/')
            *c = ',';
}

/* ================================================================================================
 * One setting after the other
 * ============================================================================================== */

/* The figures of one method. */
static void read_figures(Figures *figures, const Json *json)
{
    *figures = (Figures){0};
    for (size_t i = 0; json && i < json->n && figures->n < FIGURES_MAX; i++) {
        const Json *f = &json->children[i];
        Figure *figure = &figures->list[figures->n++];
        snprintf(figure->name, sizeof figure->name, "%s", f->key ? f->key : "?");
        figure->value = f->type == JSON_NUMBER ? f->number : NAN;
    }
}

/* Read the means over the categories from results.json. */
static int read_mean(CategoryFigures *mean, const char *path, Error *err)
{
    const Json *json = json_read(path, err), *row = json ? json_get(json, "mean") : NULL,
               *figures = row ? json_get(row, "figures") : NULL,
               *baselines = row ? json_get(row, "baselines") : NULL;
    if (!json)
        return -1;
    *mean = (CategoryFigures){.name = "mean", .n_methods = baselines ? METHODS_MAX : 1};
    for (int m = 0; m < mean->n_methods; m++)
        read_figures(&mean->methods[m], m ? json_get(baselines, method_name(m)) : figures);
    json_free(json);
    return figures ? 0 : fail(err, "%s: this is no file of samlad eval", path);
}

/* Remove the files that a measured setting no longer needs. Folders of the same names may hold the user's files,
 * which stay. */
static int remove_bulk(const char *out, Error *err)
{
    static const char *const folders[][2] = {
        {"anomaly_maps", ".tiff"}, {"baselines", ".tiff"}, {"banks", ".bank"}, {"scenes", ".scene"}};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[RUN_PATH];
        snprintf(path, sizeof path, "%.*s/%s", RUN_PATH - 32, out, folders[i][0]);
        if (dir_prune(path, folders[i][1], err))
            return -1;
    }
    return 0;
}

static int do_setting(Samlad *s, const EvaluateRequest *r, AblationTable *t, Ablation *a, const Facts *base,
                      Error *err)
{
    char folder[128], out[RUN_PATH], scenes[RUN_PATH], results[RUN_PATH];
    int features;
    RunPlan plan = r->plan; /* fixed tests, because the maps are removed when a setting is measured. */
    Evaluation *e = &t->evaluation;
    RunTimes times;
    folder_of(folder, a->changes);
    if (snprintf(out, sizeof out, "%s/settings/%s", r->plan.out, folder) >= RUN_PATH - 128)
        return fail(err, "%s: the path is too long", r->plan.out);
    snprintf(scenes, sizeof scenes, "%.*s/scenes", RUN_PATH - 160, r->plan.out);
    snprintf(results, sizeof results, "%.*s/results.json", RUN_PATH - 32, out);
    if (apply(s, base, a->changes, &features, err))
        return -1;
    plan.out = out;
    plan.scenes = features ? NULL : scenes;
    plan.baselines = !*a->changes; /* they depend on features and k alone, so one row has them. */
    if (run_images(s, &e->dataset, &plan, &times, err))
        return -1;
    if (!file_exists(results) && evaluation_measure(e, out, err))
        return -1;
    e->times.n_images += times.n_images;
    return remove_bulk(out, err) || read_mean(&a->mean, results, err) ? -1 : 0;
}

/* ================================================================================================
 * Tables
 * ============================================================================================== */

/* A row of the tables: a setting, or behind them a baseline of the default setting. */
typedef struct Row {
    const char *name;
    const Figures *figures;
} Row;

/* The setting that has baselines, or NULL. */
static const Ablation *with_baselines(const AblationTable *t)
{
    for (int i = 0; i < t->n; i++)
        if (t->settings[i].mean.n_methods > 1)
            return &t->settings[i];
    return NULL;
}

static int count_rows(const AblationTable *t)
{
    return t->n + (with_baselines(t) ? BASELINES : 0);
}

static Row row_of(const AblationTable *t, int i)
{
    const Ablation *a = i < t->n ? &t->settings[i] : with_baselines(t);
    const int method = i < t->n ? 0 : 1 + i - t->n;
    return (Row){method        ? method_name(method)
                 : *a->changes ? a->changes
                               : "default",
                 &a->mean.methods[method]};
}

/* The columns are the figures of the first row that tables show. A row without one says nan. */
void ablation_print(FILE *to, const AblationTable *t)
{
    const Figures *first = &t->settings[0].mean.methods[0];
    char verdict[VERDICT_SIZE];
    fprintf(to, "%-24s", "setting");
    for (int f = 0; f < first->n; f++)
        if (figure_is_shown(&first->list[f]))
            fprintf(to, "  %s", first->list[f].name);
    for (int i = 0; i < count_rows(t); i++) {
        const Row row = row_of(t, i);
        fprintf(to, "\n%-24s", row.name);
        for (int f = 0; f < first->n; f++)
            if (figure_is_shown(&first->list[f]))
                fprintf(to, "  %*.3f", (int)strlen(first->list[f].name),
                        figure_of(row.figures, first->list[f].name));
    }
    fprintf(to, "\n");
    if (!with_baselines(t))
        return;
    say_baselines(verdict, &with_baselines(t)->mean);
    fprintf(to, "%s\n", verdict);
}

static int write_ablation_json(const AblationTable *t, const char *path, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    json_open(&w, '{');
    json_key(&w, "dataset"), json_string(&w, dataset_kind_name(t->evaluation.dataset.kind));
    for (int i = 0; i < count_rows(t); i++) {
        const Row row = row_of(t, i);
        if (i == 0 || i == t->n)
            json_key(&w, i ? "baselines" : "settings"), json_open(&w, '[');
        json_open(&w, '{');
        json_key(&w, i < t->n ? "setting" : "baseline"), json_string(&w, row.name);
        json_figures(&w, "figures", row.figures);
        json_close(&w, '}');
        if (i == t->n - 1 || i == count_rows(t) - 1)
            json_close(&w, ']');
    }
    json_close(&w, '}');
    int status = w.failed ? fail_memory(err, path, w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

/* Append formatted lines to a text. */
static void put_line(OutFile *out, const char *text)
{
    out_put(out, text, strlen(text));
}

static int write_ablation_csv(const AblationTable *t, const char *path, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    put_line(&out, "setting,figure,value\n");
    for (int i = 0; i < count_rows(t); i++) {
        const Row row = row_of(t, i);
        for (int f = 0; f < row.figures->n; f++) {
            const Figure *figure = &row.figures->list[f];
            char value[64];
            put_csv(&out, row.name);
            put_line(&out, ",");
            put_csv(&out, figure->name);
            snprintf(value, sizeof value, isnan(figure->value) ? ",\n" : ",%.9g\n", figure->value);
            put_line(&out, value);
        }
    }
    return out_commit(&out, err);
}

static void put_ablation_head(OutFile *out, const AblationTable *t, const Figures *columns)
{
    char line[160];
    snprintf(line, sizeof line, "# samlad %s on %s: ablations\n\n| setting |", SAMLAD_VERSION,
             dataset_kind_name(t->evaluation.dataset.kind));
    put_line(out, line);
    for (int pass = 0; pass < 2; pass++) {
        put_line(out, pass ? "\n|---|" : "");
        for (int f = 0; f < columns->n; f++)
            if (figure_is_shown(&columns->list[f])) {
                put_line(out, pass ? "---" : " ");
                put_markdown(out, pass ? "" : columns->list[f].name);
                put_line(out, pass ? "|" : " |");
            }
    }
}

static int write_ablation_markdown(const AblationTable *t, const char *path, Error *err)
{
    OutFile out;
    const Figures *first = &t->settings[0].mean.methods[0];
    char cell[32], verdict[VERDICT_SIZE];
    if (out_open(&out, path, err))
        return -1;
    put_ablation_head(&out, t, first);
    for (int i = 0; i < count_rows(t); i++) {
        const Row row = row_of(t, i);
        put_line(&out, "\n| ");
        put_markdown(&out, row.name);
        put_line(&out, " |");
        for (int f = 0; f < first->n; f++) {
            double value = figure_of(row.figures, first->list[f].name);
            snprintf(cell, sizeof cell, isnan(value) ? " |" : " %.3f |", value);
            if (figure_is_shown(&first->list[f]))
                put_line(&out, cell);
        }
    }
    put_line(&out, "\n");
    if (with_baselines(t)) {
        say_baselines(verdict, &with_baselines(t)->mean);
        put_line(&out, "\nThe last rows are baselines on the features of the default: ");
        put_line(&out, verdict);
        put_line(&out, ".\n");
    }
    return out_commit(&out, err);
}

int ablate(Samlad *s, const EvaluateRequest *r, AblationTable *t, Error *err)
{
    char path[RUN_PATH];
    Facts base = {0};
    if (evaluation_prepare(r, r->data, &t->evaluation, err) || evaluation_white(s, r, &t->evaluation, err) ||
        run_settle(s, &t->evaluation.dataset, &r->plan,
                   err)) /* the scenes are shared, so there must be one base. */
        return -1;
    int status = facts_describe(&base, s, err), features;
    for (int i = 0; i < t->n && !status; i++)
        status = do_setting(s, r, t, &t->settings[i], &base, err);
    if (!status)
        status = apply(s, &base, "", &features, err);
    facts_free(&base);
    if (status)
        return -1;
    snprintf(path, sizeof path, "%.*s/scenes", RUN_PATH - 32, r->plan.out);
    if (dir_prune(path, ".scene", err))
        return -1;
    snprintf(path, sizeof path, "%.*s/ablation.json", RUN_PATH - 32, r->plan.out);
    if (write_ablation_json(t, path, err))
        return -1;
    snprintf(path, sizeof path, "%.*s/ablation.csv", RUN_PATH - 32, r->plan.out);
    if (write_ablation_csv(t, path, err))
        return -1;
    snprintf(path, sizeof path, "%.*s/ablation.md", RUN_PATH - 32, r->plan.out);
    return write_ablation_markdown(t, path, err);
}

void ablation_free(AblationTable *t)
{
    evaluation_free(&t->evaluation);
}
