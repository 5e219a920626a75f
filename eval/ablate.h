/* eval/ablate.h - the worth of each choice of the method: a data set under many settings, one table
 * (docs/METHOD.md 9). The baselines on the default's features are rows of their own.
 *
 * The folder:
 *   settings/NAME/     a run (run.h) under one setting; its maps and banks are removed when it is measured
 *   scenes/            every analysed image, shared by the settings that leave features alone; removed at
 *                      the end
 *   ablation.md, ablation.json, ablation.csv
 *
 * Like a run, an ablation can be killed at any moment and resumes. */
#ifndef SAMLAD_EVAL_ABLATE_H
#define SAMLAD_EVAL_ABLATE_H

#include "eval/evaluate.h"

/* A setting changes options: "k=3", or "k=3 align=pixel"; "" is the default. */
typedef struct Ablation {
    char changes[128];
    CategoryFigures mean; /* over the categories */
} Ablation;

enum { ABLATIONS_MAX = 64 };
typedef struct AblationTable {
    Evaluation evaluation; /* the data set and its problems. */
    int n;
    Ablation settings[ABLATIONS_MAX];
} AblationTable;

/* The list of docs/METHOD.md 9 for the opened models; their own layers and sizes are its centre. */
int ablation_list(AblationTable *table, const Samlad *s, Error *err);
/* Append a setting. -1: it is malformed, or an option refuses its value. */
int ablation_add(AblationTable *table, const char *changes, Error *err);
/* Do the missing work and write the tables. request->plan.out: the folder. */
int ablate(Samlad *s, const EvaluateRequest *request, AblationTable *table, Error *err);
void ablation_print(FILE *to, const AblationTable *table);
void ablation_free(AblationTable *table);

#endif
