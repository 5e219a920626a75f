/* eval/paths.c - see paths.h. */
#include "eval/paths.h"

#include <stdio.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

int run_path(char path[RUN_PATH], const char *out, const char *folder, const DatasetCategory *c,
             const DatasetImage *image, const char *ending, Error *err)
{
    char name[OUTPUT_NAME];
    output_name(name, image->stem, strlen(image->stem));
    return snprintf(path, RUN_PATH, "%s/%s/%s/test/%s/%s%s", out, folder, c->name, image->kind, name,
                    ending) < RUN_PATH - 128
               ? 0
               : fail(err, "%s/%s/%s: the path is too long", out, folder, c->name);
}

int run_baseline_path(char path[RUN_PATH], const char *out, Baseline baseline, const DatasetCategory *c,
                      const DatasetImage *image, Error *err)
{
    char folder[64];
    snprintf(folder, sizeof folder, "baselines/%s", baseline_names[baseline]);
    return run_path(path, out, folder, c, image, ".tiff", err);
}
