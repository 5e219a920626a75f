/* eval/ablate.h - what each choice of the method is worth: a data set under many settings, one table
 * (METHOD.md 9).
 *
 * The folder:
 *   settings/NAME/     a run (run.h) under one setting; its maps and banks go when it is measured
 *   scenes/            every image as analysed, shared by the settings that leave features alone; goes at
 *                      the end
 *   ablation.md, ablation.json, ablation.csv
 *
 * As a run, it can be killed at any moment and goes on where it stood. */
#ifndef SAMLAD_EVAL_ABLATE_H
#define SAMLAD_EVAL_ABLATE_H

#include "eval/evaluate.h"

/* A setting: changes of options, "k=3" or "k=3 align=pixel"; "" is the default. */
typedef struct Ablation {
    char changes[128];
    CategoryFigures mean; /* over the categories */
} Ablation;

enum { ABLATIONS_MAX = 64 };
typedef struct AblationTable {
    Evaluation evaluation; /* the data set and its problems */
    int n;
    Ablation settings[ABLATIONS_MAX];
} AblationTable;

/* METHOD.md 9's list for the opened models: layers and sizes are taken around their own. */
void ablation_list(AblationTable *table, const Samlad *s);
/* One setting more; refused when it is malformed or an option does not take its value. */
int ablation_add(AblationTable *table, const char *changes, Error *err);
/* Do what is not done yet, write the tables. request->plan.out: the folder. */
int ablate(Samlad *s, const EvaluateRequest *request, AblationTable *table, Error *err);
void ablation_print(FILE *to, const AblationTable *table);
void ablation_free(AblationTable *table);

#endif
