/* eval/readable.h - which files can be read. One damaged file must not end hours of work, so all are decoded
 * before it begins. */
#ifndef SAMLAD_EVAL_READABLE_H
#define SAMLAD_EVAL_READABLE_H

#include "eval/dataset.h"

/* Decode n image files, several at once, and keep nothing of them. reasons [n]: NULL for a file that can be
 * read, else a sentence that names the file, malloc'd. At most IMAGE_MAX_PIXELS pixels are in memory at once.
 * progress may be NULL. */
void find_unreadable(char **reasons, const char *const *paths, int n,
                     void (*progress)(void *user, const char *what, int done, int total), void *user);

/* Decode every file of the data set, and move those that cannot be read to the categories' lists. A test image
 * goes with its masks: where one of them cannot be read, the image is left out. with_bank: normal images
 * count. 0, or -1: no memory. */
int dataset_read(Dataset *dataset, const DatasetLook *look, Error *err);
/* Leave out the files of these names, as an earlier run has done. 0, or -1: no memory. */
int dataset_leave_out(DatasetCategory *category, const char *const *names, int n, Error *err);
/* The number of files that are left out in all categories. */
int dataset_unreadable(const Dataset *dataset);

#endif
