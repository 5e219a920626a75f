/* eval/renew.h - the test images of a run's results. They may change between two calls: a finished run is renewed.
 * The record of an image carries the checksum of its file, so every result says of what it is. */
#ifndef SAMLAD_EVAL_RENEW_H
#define SAMLAD_EVAL_RENEW_H

#include "eval/dataset.h"
#include "io/json.h"

/* Note the category's test images in tests/CATEGORY.json of the run's folder. Remove the results of images that are
 * gone, and of this shard's images (run.h) whose contents are others now. */
int run_renew(const char *out, int shard, int n_shards, const DatasetCategory *category, Error *err);
/* Remove the results of the categories that are gone: the run's folder has them, but the data set has no such folder
 * any more. A data set that is itself the category was renamed if nothing is in its old place. */
int run_drop_categories(const char *out, const Dataset *dataset, const char *old_place, Error *err);
/* 1 if the record is of the image's contents. */
int run_is_of(const Json *record, const DatasetImage *image);

/* Leave out the files of the category that the run has left out, because they could not be read. */
int run_leave_out(const char *out, DatasetCategory *category, Error *err);
/* 0 when the category's test images are those of the run, else -1. */
int run_same_images(const char *out, const DatasetCategory *category, Error *err);
/* One checksum over kinds, names and contents of the test images. Masks do not count: no record depends on them. */
int tests_sha256(char sha[65], const DatasetCategory *category, Error *err);

#endif
