/* eval/synth.h - data sets without a download: drawn trays (synth.c), the paper's DigitAnatomy from MNIST
 * (digits.c), and a tiny set with LOCO's five categories (synth_loco.c).
 *
 * Each is written in the layout of MVTec LOCO AD; of the last set each category is:
 *     train/good/000.png ...  validation/good/...  test/good/...  test/KIND/000.png ...
 *     ground_truth/KIND/000/000.png ...   one 8-bit grey image a defect; its pixel value names the defect
 *     defects_config.json                 pixel value -> name, saturation threshold (the official keys)
 *     parts/test/good/000.png ...         trays, when asked for: which pixel shows which part
 *
 * KIND is logical_anomalies or structural_anomalies for the trays, as in LOCO. For the digits it is
 * missing, disordered, flipped or zero (all logical). Same options, same bytes. */
#ifndef SAMLAD_SYNTH_H
#define SAMLAD_SYNTH_H

#include <limits.h>
#include <stdint.h>

#include "io/error.h"

/* ---- trays ---- */
typedef struct SynthTrayOptions {
    uint64_t seed;                     /* decides the product (tray, kinds, counts) and every image. */
    int width, height;                 /* 256 x 256; 64 ... 4096, within a factor of two. */
    int n_train, n_validation, n_good; /* 40, 8, 20 normal images (n_good: in test). */
    int n_logical;                     /* 6 of each: missing, extra, wrong kind, swapped, wrong count. */
    int n_structural;                  /* 6 of each: scratch, stain, dent, broken. */
    int parts; /* also write parts/test/good/000.png ...: TrayImage's parts of every image. */
} SynthTrayOptions;

SynthTrayOptions synth_tray_defaults(void);

/* Write the data set. `dir` must be empty or missing; it appears complete or not at all. */
int synth_tray(const char *dir, const SynthTrayOptions *options, Error *err);

/* ---- one tray image at a time, for tests and for viewing ---- */
typedef enum TrayDefect {
    TRAY_GOOD,
    TRAY_MISSING,
    TRAY_EXTRA,
    TRAY_WRONG_KIND,
    TRAY_SWAPPED,
    TRAY_WRONG_COUNT,
    TRAY_SCRATCH,
    TRAY_STAIN,
    TRAY_DENT,
    TRAY_BROKEN,
    TRAY_DEFECT_COUNT
} TrayDefect;

typedef enum TraySplit { TRAY_TRAIN, TRAY_VALIDATION, TRAY_TEST_GOOD, TRAY_TEST_DEFECT } TraySplit;

enum { TRAY_MAX_TRUTHS = 2 };

typedef struct TrayImage {
    uint8_t *rgb;   /* [height][width][3] */
    uint8_t *parts; /* [height][width], 1 + the part's number (a part with its cap), else 0. */
    int n_truths;   /* ground truth images: 0 for a normal tray, else 1 or 2. */
    uint8_t *truth[TRAY_MAX_TRUTHS]; /* [height][width], 0 or value[i]. */
    int value[TRAY_MAX_TRUTHS];      /* the defect's pixel value. */
} TrayImage;

typedef struct TrayProduct TrayProduct;

TrayProduct *tray_product_new(const SynthTrayOptions *options, Error *err);
void tray_product_free(TrayProduct *product);
/* Draw image `index` of a split. `defect` counts with TRAY_TEST_DEFECT. show_defect = 0 draws the same
 * image without the defect and without truths. */
int tray_image_new(TrayImage *image, const TrayProduct *product, TraySplit split, TrayDefect defect,
                   int index, int show_defect, Error *err);
void tray_image_free(TrayImage *image);

/* ---- digits ---- */
typedef struct SynthDigitsOptions {
    uint64_t seed;
    int n_train, n_validation, n_good; /* 100, 20 from MNIST's training split; 50 from its test split. */
    int n_each;                        /* 50 of each: missing, disordered, flipped, zero. */
} SynthDigitsOptions;

SynthDigitsOptions synth_digits_defaults(void);

/* mnist_dir holds the four idx files, plain or .gz. 96 x 96 grey images of 3 x 3 digits 1 ... 9. */
int synth_digits(const char *mnist_dir, const char *out_dir, const SynthDigitsOptions *options, Error *err);

/* ---- LOCO's categories (synth_loco.c) ---- */
/* Reads tables/CATEGORY/defects_config.json for each of MVTec LOCO AD's five categories; `dir` as in
 * synth_tray. Tiny: 10 normal and 15 test images of 128x128 a category. */
int synth_loco(const char *tables, const char *dir, uint64_t seed, Error *err);

/* ---- the folder as a whole, shared by all three ---- */
typedef struct SynthOutput {
    const char *dir;
    char target[PATH_MAX]; /* the same with links resolved. */
    char tmp[PATH_MAX];    /* all files are written here; at the end the folder is renamed. */
} SynthOutput;

typedef struct SynthDefect {
    char name[48];
    double threshold; /* saturation threshold, relative to the area of the ground truth. */
} SynthDefect;

/* Refuse a folder that is not empty: data sets must not mix, and the user's files must survive. */
int synth_output_open(SynthOutput *out, const char *dir, Error *err);
int synth_output_commit(SynthOutput *out, Error *err);
void synth_output_drop(SynthOutput *out);
/* Write an 8-bit image to FOLDER/NNN.png below the output folder, and make FOLDER. */
int synth_output_image(const SynthOutput *out, const char *folder, int index, const uint8_t *samples,
                       int width, int height, int channels, Error *err);
/* Write defects_config.json with the keys of MVTec LOCO AD; entry i has pixel value 255 - i. */
int synth_output_config(const SynthOutput *out, const SynthDefect *entries, int n, Error *err);
/* -1 when n, the number of `what`, is negative or too large. */
int synth_check_count(const char *what, int n, Error *err);

#endif
