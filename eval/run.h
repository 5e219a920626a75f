/* eval/run.h - a long run over a data set that can be killed at any moment and goes on where it stood.
 *
 * The run's folder:
 *   run.json                                   settings and checksums of the weights: what all results
 *                                              depend on
 *   categories/CATEGORY.json                   checksums of what was read: normal images, list of test images
 *   banks/CATEGORY.bank                        made once, by whoever is first
 *   anomaly_maps/CATEGORY/test/KIND/000.tiff   float32, in the layout of MVTec's evaluation scripts
 *   records/CATEGORY/test/KIND/000.json        the result; written last, so that it says: this image is done
 *   pictures/CATEGORY/test/KIND/000_*.png      heat map and overlay
 *   scenes/CATEGORY/                           normal images that are analysed, until their bank is there
 *   timings.jsonl                              seconds an image; the only file that differs from run to run
 *
 * Every file appears complete under its name or not at all, and none depends on which process made it: any
 * number of processes, on one machine or on many that share the folder, can work on one run. */
#ifndef SAMLAD_EVAL_RUN_H
#define SAMLAD_EVAL_RUN_H

#include <stdio.h>

#include "samlad.h"
#include "eval/dataset.h"

enum { RUN_PATH = 4096 };

typedef struct RunPlan {
    const char *out;     /* the run's folder */
    const char *bank;    /* use this bank file (one category), or NULL */
    const char *scenes;  /* keep all analysed images in this folder and take them from there, or NULL */
    int shard, n_shards; /* test images i with i mod n_shards == shard; 0 of 1: all */
    int max_bank;        /* at most so many normal images; 0: all */
    int with_masks;      /* 1: the masks are facts too: figures are kept, and cannot be measured again */
    int pictures;        /* 1: heat maps and overlays */
    SamladProgress progress;
    void *user;
} RunPlan;

typedef struct RunTimes {
    double bank, images; /* seconds of this process */
    int n_images;        /* that this process did */
} RunTimes;

/* Do what is not done yet. Refuses a folder of other settings, weights or images, naming what differs. */
int run_images(Samlad *s, const Dataset *dataset, const RunPlan *plan, RunTimes *times, Error *err);

/* The first part of it: what is recorded in the folder is what would be done today, or is recorded now. */
int run_settle(Samlad *s, const Dataset *dataset, const RunPlan *plan, Error *err);

/* Paths of one image's results: FOLDER/CATEGORY/test/KIND/STEM + ending, below the run's folder. */
int run_path(char path[RUN_PATH], const char *out, const char *folder, const DatasetCategory *category,
             const DatasetImage *image, const char *ending, Error *err);

/* Put the results of other folders of the same run into `out`: what each has done, banks too. They must have
 * been made with the same settings, weights and banks. */
int run_merge(const char *out, const char *const *from, int n, Error *err);
/* The test images of the category are those that the run was made with? */
int run_same_images(const char *out, const DatasetCategory *category, Error *err);

#endif
