/* eval/table.h - the figures of a run, and their tables: text, JSON, CSV, and Markdown with the paper's
 * numbers. They are computed from the records and maps in the run's folder. */
#ifndef SAMLAD_EVAL_TABLE_H
#define SAMLAD_EVAL_TABLE_H

#include <stdio.h>

#include "io/file.h"
#include "io/json.h"
#include "eval/dataset.h"

enum { FIGURES_MAX = DATASET_MAX_KINDS + 16 }; /* one a kind, and the figures over all kinds. */

typedef struct Figure {
    char name[96]; /* "auroc.logical_anomalies", "auroc.all", "auroc.pixels", ... */
    double value;  /* NAN: this data set does not give it. */
    int n;         /* anomalous images in it; 0: does not apply. */
} Figure;

typedef struct CategoryFigures {
    char name[128];
    int n_bank, n_good, n_images;
    int n;
    Figure figures[FIGURES_MAX];
} CategoryFigures;

/* Do the text tables show it? The files have all figures. */
int figure_is_shown(const Figure *figure);
/* The figure's value, or NAN. */
double figure_of(const CategoryFigures *category, const char *name);

/* Measure one category from OUT/records and OUT/anomaly_maps. Fails when an image has no record yet. */
int table_measure(CategoryFigures *figures, DatasetKind kind, const DatasetCategory *category,
                  const char *out, Error *err);
/* The mean over categories of every figure that all of them have. */
void table_mean(CategoryFigures *mean, const CategoryFigures *categories, int n);
/* Write results.json, results.csv, results.md, and results.jsonl (the records, one a line). categories
 * [dataset->n]. */
int table_write(const CategoryFigures *categories, const Dataset *dataset, const char *out, Error *err);
void table_json(JsonWriter *w, const CategoryFigures *categories, const Dataset *dataset); /* one object */
/* Text as a field of CSV (RFC 4180: quoted when necessary), and as a cell of a Markdown table. */
void put_csv(OutFile *out, const char *text);
void put_markdown(OutFile *out, const char *text);
/* One category: a line a figure. Several: a line a category, then their mean. */
void table_print(FILE *to, const CategoryFigures *categories, const Dataset *dataset);

#endif
