/* eval/dataset.h - data sets for anomaly detection on disk: recognised by their layout, listed, checked.
 *
 *   mvtec-loco      ROOT/CATEGORY/{train/good, validation/good,
 *                   test/{good,logical_anomalies,structural_anomalies},
 *                   ground_truth/KIND/000/000.png ..., defects_config.json}
 *   mvtec-ad        ROOT/CATEGORY/{train/good, test/{good,KIND...}, ground_truth/KIND/000_mask.png}
 *   visa            ROOT/split_csv/1cls.csv with
 *                   ROOT/CATEGORY/Data/{Images/{Normal,Anomaly}, Masks/Anomaly}, or reorganised:
 *                   ROOT/1cls/CATEGORY/{train/good, test/{good,bad}, ground_truth/bad/000.png}
 *   digit-anatomy   written by `samlad synth digits`: LOCO's layout without categories
 *   folder          ROOT or ROOT/CATEGORY by the names of folders.c: normal images in train/good, train or
 *                   good, tests in test/KIND or beside good, masks (optional) in ground_truth by the rules
 *                   of masks.h. So are MVTec AD 2, BTAD, MPDD, Real-IAD, MVTec 3D-AD, and sets of one's own
 *
 * The folder of one category is a data set too. */
#ifndef SAMLAD_EVAL_DATASET_H
#define SAMLAD_EVAL_DATASET_H

#include "eval/category.h"
#include "io/error.h"

typedef enum DatasetKind {
    DATASET_AUTO,
    DATASET_LOCO,
    DATASET_AD,
    DATASET_VISA,
    DATASET_DIGITS,
    DATASET_FOLDER,
    DATASET_KINDS
} DatasetKind;

typedef struct Dataset {
    DatasetKind kind;
    char *root;
    CategoryRequest request; /* how its categories were listed. */
    int single, chosen;      /* 1: the root is itself the category; only chosen categories are listed. */
    int n;
    DatasetCategory *categories;
    Notes notes; /* what is told of it: files that are not used, odd masks. */
} Dataset;

/* Problems of a data set: the first sentences, and their number. */
enum { PROBLEMS_KEPT = 20 };
typedef struct Problems {
    int n;
    char *sentences[PROBLEMS_KEPT];
} Problems;

const char *dataset_kind_name(DatasetKind kind); /* "mvtec-loco" */
DatasetKind dataset_kind_find(const char *name); /* DATASET_KINDS: no such kind. */

/* What to list. */
typedef struct DatasetRequest {
    DatasetKind kind;
    const char *const *categories; /* [n_categories] only these; 0: all. */
    int n_categories;
    CategoryRequest layout; /* its strings live as long as the data set. */
} DatasetRequest;
/* List the data set. Problems of its layout go to `problems`; -1 only when the data set cannot be listed at
 * all. */
int dataset_open(Dataset *dataset, const char *root, const DatasetRequest *request, Problems *problems,
                 Error *err);
/* What dataset_check reads beside the test images. */
typedef struct DatasetLook {
    int with_bank;  /* 1: the headers of the normal images. */
    int n_contents; /* and the contents of this many of a category, for their checksums. */
    int with_masks; /* 1: the checksums of the masks. */
    void (*progress)(void *user, const char *what, int done, int total); /* or NULL */
    void *user;
} DatasetLook;
/* Read every test image's header and checksum, and every mask: problems must be known before hours of
 * work. */
void dataset_check(Dataset *dataset, const DatasetLook *look, Problems *problems);
enum { DATASET_MAX_KINDS = 80 }; /* kinds of tests in a category; more are a problem. */
void dataset_free(Dataset *dataset);
void problems_free(Problems *problems);

#endif
