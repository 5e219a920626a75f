/* eval/paths.h - the files of a run's folder (run.h lists them). */
#ifndef SAMLAD_EVAL_PATHS_H
#define SAMLAD_EVAL_PATHS_H

#include "eval/baselines.h"
#include "eval/dataset.h"

enum { RUN_PATH = 4096 };

/* The image's stem in the names of its results: a long one is cut (output_name). */
void run_stem(char stem[RUN_PATH], const DatasetImage *image);
/* The path of one image's result: FOLDER/CATEGORY/test/KIND/STEM + ending, below the run's folder. */
int run_path(char path[RUN_PATH], const char *out, const char *folder, const DatasetCategory *category,
             const DatasetImage *image, const char *ending, Error *err);
/* The path of the image's map of one baseline. */
int run_baseline_path(char path[RUN_PATH], const char *out, Baseline baseline,
                      const DatasetCategory *category, const DatasetImage *image, Error *err);

#endif
