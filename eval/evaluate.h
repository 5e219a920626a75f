/* eval/evaluate.h - the whole of an evaluation: find the data set, check it, run it, measure it. */
#ifndef SAMLAD_EVAL_EVALUATE_H
#define SAMLAD_EVAL_EVALUATE_H

#include "samlad.h"
#include "eval/dataset.h"
#include "eval/run.h"
#include "eval/table.h"

typedef struct Evaluation {
    Dataset dataset;
    Problems problems;           /* when there are any, no work was begun. */
    /* [dataset.n + 1], the last is their mean; NULL while other shards are at work. */
    CategoryFigures *categories;
    RunTimes times;              /* work of this process. */
} Evaluation;

typedef struct EvaluateRequest {
    const char *data;
    DatasetRequest set; /* what to list of it. */
    int merging;  /* 1: measure what is there; normal images are not needed. */
    int skip_unreadable;                    /* 1: go on without the files that cannot be read. */
    void (*complain)(const char *sentence); /* one of each such file. */
    RunPlan plan; /* out NULL: a temporary folder, removed at the end. */
    void (*tell)(const char *sentence); /* called for each note of the data set before the work; or NULL. */
    /* Called before the work for the largest value in images of 16 bits, of which nobody has said what is white:
     * "images", or "normal images" and "test images" if only these are dark. */
    void (*dark)(int brightest, const char *images, int has_bank);
} EvaluateRequest;

/* Run and measure; resumes the run in plan.out. -1 also when the data set has problems: err gives their
 * number. */
int evaluate(Samlad *s, const EvaluateRequest *request, Evaluation *result, Error *err);
/* Merge folders of the same run into `out` and measure; no models are needed. request: data may be NULL,
 * then the data set is where the run found it. */
int evaluate_merge(const char *const *folders, int n, const char *out, const EvaluateRequest *request,
                   Evaluation *result, Error *err);
/* The first and last step of both: list and check the data set; measure and write the tables. */
int evaluation_prepare(const EvaluateRequest *request, const char *data, Evaluation *result, Error *err);
/* Look for 16-bit images. Settle the option white by the normal ones, or tell what is dark. */
int evaluation_white(Samlad *s, const EvaluateRequest *request, Evaluation *result, Error *err);
int evaluation_measure(Evaluation *result, const char *out, Error *err);
void evaluation_free(Evaluation *result);

#endif
