/* eval/evaluate.h - the whole of an evaluation: find the data set, check it, run it, measure it. */
#ifndef SAMLAD_EVAL_EVALUATE_H
#define SAMLAD_EVAL_EVALUATE_H

#include "samlad.h"
#include "eval/dataset.h"
#include "eval/run.h"
#include "eval/table.h"

typedef struct Evaluation {
    Dataset dataset;
    Problems problems;           /* when not 0, nothing was begun */
    CategoryFigures *categories; /* [dataset.n]; NULL while other shards are at work */
    RunTimes times;              /* of this process */
} Evaluation;

typedef struct EvaluateRequest {
    const char *data;
    DatasetKind kind;
    const char *const *categories; /* [n_categories] the wanted ones; 0: all */
    int n_categories;
    int merging;  /* 1: what is there is measured, no image is looked at for a bank */
    RunPlan plan; /* out NULL: a temporary folder, removed at the end */
} EvaluateRequest;

/* Resumes what is in plan.out. Fails with problems when the data set has some: err says how many. */
int evaluate(Samlad *s, const EvaluateRequest *request, Evaluation *result, Error *err);
/* Put folders of the same run together in `out` and measure: no models are needed. request: data may be NULL
 * (where the run found it). */
int evaluate_merge(const char *const *folders, int n, const char *out, const EvaluateRequest *request,
                   Evaluation *result, Error *err);
/* The two ends of both: list and check the data set; measure and write the tables. */
int evaluation_prepare(const EvaluateRequest *request, const char *data, Evaluation *result, Error *err);
int evaluation_measure(Evaluation *result, const char *out, Error *err);
void evaluation_free(Evaluation *result);

#endif
