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
 *   folder          ROOT or ROOT/CATEGORY with train/good or normal/, tests in test/KIND or beside normal/,
 *                   masks (optional) in ground_truth/ or masks/ by any of the names above
 *
 * The folder of one category is a data set too. */
#ifndef SAMLAD_EVAL_DATASET_H
#define SAMLAD_EVAL_DATASET_H

#include "eval/pictures.h"
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

typedef struct DatasetImage {
    char *path, *kind, *stem; /* kind: the folder under test; stem: the file's name without its ending. */
    int normal;               /* 1: a good image. */
    int width, height;        /* from the file's header; dataset_check fills this and the checksum. */
    char sha256[65];          /* of the file's bytes. */
    int n_masks;
    char **masks;          /* [n_masks] files of ground truth; pixels that are not 0: defect. */
    char masks_sha256[65]; /* of their files' checksums; "" unless dataset_check was asked for it. */
} DatasetImage;

typedef struct DatasetCategory {
    char name[128];
    char *dir, *config; /* config: defects_config.json, or NULL. */
    int n_normal;       /* for the bank */
    char **normal;
    char (*normal_sha256)[65]; /* [n_normal]; "" unless dataset_check was asked for it. */
    int n_images;              /* test images: the good ones first, then kind by kind. */
    DatasetImage *images;
    LeftOut left_out; /* files in the folders of both that are no pictures. */
} DatasetCategory;

typedef struct Dataset {
    DatasetKind kind;
    char *root;
    int n;
    DatasetCategory *categories;
} Dataset;

/* Problems of a data set: the first sentences, and their number. */
enum { PROBLEMS_KEPT = 20 };
typedef struct Problems {
    int n;
    char *sentences[PROBLEMS_KEPT];
} Problems;

const char *dataset_kind_name(DatasetKind kind); /* "mvtec-loco" */
DatasetKind dataset_kind_find(const char *name); /* DATASET_KINDS: no such kind. */

/* List the data set. wanted [n_wanted]: only these categories (0: all). Problems of its layout go to
 * `problems`; -1 only when the data set cannot be listed at all. */
int dataset_open(Dataset *dataset, const char *root, DatasetKind kind, const char *const *wanted,
                 int n_wanted, Problems *problems, Error *err);
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

/* Where a category's normal images may lie; NULL at the end. */
extern const char *const DATASET_NORMAL_PLACES[];

#endif
