/* eval/paths.c - see paths.h. */
#include "eval/paths.h"

#include <stdio.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

void run_stem(char stem[RUN_PATH], const DatasetImage *image)
{
    const char *slash = strrchr(image->stem, '/'), *last = slash ? slash + 1 : image->stem;
    char name[OUTPUT_NAME];
    output_name(name, last, strlen(last));
    snprintf(stem, RUN_PATH, "%.*s%s", (int)(last - image->stem), image->stem, name);
}

int run_path(char path[RUN_PATH], const char *out, const char *folder, const DatasetCategory *c,
             const DatasetImage *image, const char *ending, Error *err)
{
    char stem[RUN_PATH];
    run_stem(stem, image);
    return snprintf(path, RUN_PATH, "%s/%s/%s/test/%s/%s%s", out, folder, c->name, image->kind, stem,
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
