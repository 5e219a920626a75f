/* bank.h - the template bank: what is known of the normal images (METHOD.md 2), kept as one safetensors file.
 *
 * Tensors of the file (N images, O objects in all, h×w cells, C channels):
 *   features [N][h][w][C] F16      mean_patch [N][C], cls [N][D] unit vectors
 *   objects.first [N+1] I32        image i owns objects first[i] .. first[i+1]-1
 *   objects.weights [O][h][w] U8   coverage of a cell, 255 = all of it
 *   objects.pooled [O][C], objects.centroids [O][2], objects.areas [O]
 *   dcga.mean, dcga.std [C], dcga.filter [C][C], dcga.descriptors [O][C]
 *   channel_std [C], objects.scale [O], loo.index I32, loo.structural, loo.logical, loo.score [n]
 *   loo.extra, loo.missing [n]     the strongest evidence of each normal image that something is extra,
 *                                missing
 *
 * and in __metadata__ the settings ("option.k"), the calibration, the images' names and the weights'
 * checksums. */
#ifndef SAMLAD_BANK_H
#define SAMLAD_BANK_H

#include "bank/options.h"
#include "bank/scene.h"
#include "dcga.h"

/* Neither a bank's image nor a file may have more objects: the scores of two such images, and their
 * assignment, take 400 MB each. */
enum { BANK_MAX_OBJECTS = 10000, BANK_MAX_ALL_OBJECTS = 1 << 30 };

/* Which weights made a bank: detect refuses others. */
typedef struct WeightsId {
    char name[256]; /* file name without folder; empty: none used */
    char sha256[65];
} WeightsId;

typedef struct Bank {
    Options options;
    WeightsId vit, sam, featup, dcga_weights;
    int n_images, grid_h, grid_w, channels, cls_dim;
    char **names;             /* [n_images] */
    const uint16_t *features; /* [N][h*w][C] float16 */
    const float *mean_patch, *cls;
    const int *first;        /* [N+1] */
    const uint8_t *coverage; /* [O][h*w] in 255ths of a cell */
    const float *pooled, *centroids, *areas;
    /* calibration (calibrate in samlad.c fills it) */
    Dcga dcga;
    const float *descriptors; /* [O][C] */
    float *owned_descriptors; /* the same, or NULL: they are in the file */
    float *channel_std;       /* [C] over all cells of all images */
    float *units;             /* [O] of the objects' structural maps */
    float alpha;
    Spread structural, logical;
    int n_loo;
    int *loo_index;                                  /* [n_loo] */
    float *loo_structural, *loo_logical, *loo_score; /* [n_loo] */
    float *loo_sorted;                               /* [n_loo] fused scores in order, for ranks */
    float *loo_extra, *loo_missing;                  /* [n_loo] evidence (verdict.h) */
    float flag_extra, flag_missing; /* their quantile: what normal images show is no reason */
    float threshold;                /* quantile of the scores; NAN: one image has none */
    Safetensors *file;              /* when loaded: the first block and descriptors point into it */
    void *owned[8];                 /* when built: the malloc'd arrays */
    int n_owned;
} Bank;

/* Building: images one by one, in order; growth is amortised. The scene's mean_patch and cls may be of any length:
 * they are normalised here. */
typedef struct BankBuilder BankBuilder;
BankBuilder *bank_builder_new(Error *err);
int bank_builder_add(BankBuilder *builder, const char *name, const Scene *scene, Error *err);
/* The arrays become the bank's; the builder is freed whatever happens. At least one image. */
int bank_builder_finish(BankBuilder *builder, Bank *bank, Error *err);
void bank_builder_free(BankBuilder *builder);

int bank_save(const Bank *bank, const char *path, Error *err);
int bank_load(Bank *bank, const char *path, Error *err);
/* loo_sorted, flags and threshold from the leave-one-out scores. */
void bank_thresholds(Bank *bank);
/* Room for calibration: units of 1, the images that are left out in turn (loo_index), nothing else filled. What an
 * earlier one made goes. */
int bank_begin_calibration(Bank *bank, Error *err);
/* Drop what calibration made, keep the images. */
void bank_uncalibrate(Bank *bank);
void bank_free(Bank *bank);

int bank_object_count(const Bank *bank, int image);
/* The image's objects as a view of the bank, with features16 and no features. coverage [n][h*w] is room for theirs as
 * float32, or NULL: the view has none. */
Objects bank_objects(const Bank *bank, int image, float *coverage);
size_t bank_cells(const Bank *bank);
void bank_features(const Bank *bank, int image, float *features); /* as float32 [h*w][C] */

/* Are i and j one image, or exact copies (features and mean patch, bit for bit)? */
int bank_same_image(const Bank *bank, int i, int j);
/* The k nearest images: best first, ties by index; `exclude` (or -1) and its copies are left out; returns
 * how many (k larger than the bank: all), -1: no memory. mean [C] and cls [D] are unit vectors, features
 * [h*w][C]; found [k]. */
int bank_retrieve(const Bank *bank, Retrieval by, const float *mean, const float *cls, const float *features,
                  int k, int exclude, int *found, Error *err);

#endif
