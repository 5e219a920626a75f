/* eval/run.h - a long run over a data set. It can be killed at any moment and resumes.
 *
 * The run's folder:
 *   run.json                                   settings and checksums of the weights: all results depend on
 *                                              them
 *   categories/CATEGORY.json                   checksum of the normal images
 *   tests/CATEGORY.json                        checksum of the test images, names of unreadable files (renew.h)
 *   banks/CATEGORY.bank                        made once, by the first process
 *   anomaly_maps/CATEGORY/test/KIND/000.tiff   float32, in the layout of MVTec's evaluation scripts
 *   baselines/NAME/CATEGORY/test/KIND/000.tiff
 *                                              float32, maps of eval/baselines.h on their own cells
 *   records/CATEGORY/test/KIND/000.json        the result, with the image's checksum; written last, so it marks
 *                                              the image as done
 *   pictures/CATEGORY/test/KIND/000_*.png      heat map and overlay
 *   scenes/CATEGORY/                           analysed normal images, until their bank is made
 *   timings.jsonl                              seconds an image; no other file differs from run to run
 *
 * A file appears complete under its name or not at all, and does not depend on the process that made it.
 * So any number of processes can share one run, on one machine or on several that share the folder. */
#ifndef SAMLAD_EVAL_RUN_H
#define SAMLAD_EVAL_RUN_H

#include <stdio.h>

#include "samlad.h"
#include "eval/baselines.h"
#include "eval/dataset.h"
#include "eval/paths.h"

typedef struct RunPlan {
    const char *out;     /* the run's folder */
    const char *bank;    /* use this bank file (one category), which is loaded, or NULL. */
    const char *scenes;  /* keep all analysed images in this folder and reuse them, or NULL. */
    int shard, n_shards; /* test images i with i mod n_shards == shard; 0 of 1: all. */
    int max_bank;        /* use at most this many normal images; 0: all. */
    int fixed_tests;     /* 1: test images and masks are facts too: the maps are removed after measuring. */
    int pictures;        /* 1: heat maps and overlays. */
    int baselines;       /* 1: compare the baselines on the same features. */
    SamladProgress progress;
    void *user;
} RunPlan;

typedef struct RunTimes {
    double bank, images; /* seconds of this process. */
    int n_images;        /* done by this process. */
} RunTimes;

/* Do the missing work. Refuses a folder of other settings, weights or normal images, and names the difference.
 * Results of test images that are others now, or gone, are removed first, so the folder becomes that of a fresh
 * run. */
int run_images(Samlad *s, const Dataset *dataset, const RunPlan *plan, RunTimes *times, Error *err);

/* The first step of run_images: check the facts in the folder against today's, or write them. */
int run_settle(Samlad *s, const Dataset *dataset, const RunPlan *plan, Error *err);

/* Merge the results of other folders of the same run into `out`, banks too. Settings, weights and banks
 * must be the same. */
int run_merge(const char *out, const char *const *from, int n, Error *err);

#endif
