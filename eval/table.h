/* eval/table.h - the tables of a run's figures: text, JSON, CSV, and Markdown with the paper's numbers. The
 * baselines stand beside the method in each. */
#ifndef SAMLAD_EVAL_TABLE_H
#define SAMLAD_EVAL_TABLE_H

#include <stdio.h>

#include "io/file.h"
#include "io/json.h"
#include "eval/dataset.h"
#include "eval/figures.h"

/* Write results.json, results.csv, results.md, and results.jsonl (the records, one a line). categories
 * [dataset->n + 1]: the last is their mean. */
int table_write(const CategoryFigures *categories, const Dataset *dataset, const char *out, Error *err);
void table_json(JsonWriter *w, const CategoryFigures *categories, const Dataset *dataset); /* one object */
void json_figures(JsonWriter *w, const char *key, const Figures *figures);                 /* KEY: {} */
/* Text as a field of CSV (RFC 4180: quoted when necessary), and as a cell of a Markdown table. */
void put_csv(OutFile *out, const char *text);
void put_markdown(OutFile *out, const char *text);
/* Says which baselines have a higher image AUROC than the method: one line, without its end. */
enum { VERDICT_SIZE = 256 };
void say_baselines(char text[VERDICT_SIZE], const CategoryFigures *c);
/* One category: a line a figure. Several: a line a category, then their mean. Then the baselines. */
void table_print(FILE *to, const CategoryFigures *categories, const Dataset *dataset);

#endif
