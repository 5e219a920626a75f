/* bank.h - the template bank: the data of the normal images (docs/METHOD.md 2), in one safetensors file.
 *
 * Tensors of the file (N images, O objects in all, h×w cells, C channels):
 *   features [N][h][w][C] F16      mean_patch [N][C], cls [N][D] unit vectors
 *   objects.first [N+1] I32        image i owns objects first[i] .. first[i+1]-1
 *   objects.weights [O][h][w] U8   coverage (an older word): 255 is the whole cell
 *   objects.pooled [O][C], objects.centroids [O][2], objects.areas [O]
 *   dcga.mean, dcga.std [C], dcga.filter [C][C], dcga.descriptors [O][C]
 *   channel_std [C], objects.scale [O]: units of the structural maps (an older word)
 *   loo.index I32, loo.structural, loo.logical, loo.score [n]    leave-one-out scores
 *   loo.extra, loo.missing [n]     the strongest evidence in each normal image for an extra, a missing object
 *
 * __metadata__ holds the settings ("option.k"), the calibration, the images' names, the names of images that could
 * not be read ("unreadable"), and the weights' checksums. */
#ifndef SAMLAD_BANK_H
#define SAMLAD_BANK_H

#include "bank/options.h"
#include "bank/scene.h"
#include "dcga.h"
#include "raster.h"
#include "tensor.h"
#include "verdict.h"

enum { BANK_MAX_OBJECTS = 1 << 30 }; /* of all images together. */

/* The weights that made a bank. Detection refuses other weights. */
typedef struct WeightsId {
    char name[256]; /* file name without folder; empty: no such weights. */
    char sha256[65];
} WeightsId;

typedef struct Bank {
    Options options;
    WeightsId vit, sam, featup, dcga_weights;
    /* the images: */
    int n_images, grid_h, grid_w, channels, cls_dim;
    char **names;                  /* [n_images] */
    char *unreadable; /* "2: a.png, b.png", images that were given and could not be read; NULL: none. */
    const uint16_t *features;      /* [N][h*w][C] float16 */
    const float *mean_patch, *cls; /* [N][C], [N][D] unit vectors */
    const int *first;              /* [N+1] */
    const uint8_t *coverage;       /* [O][h*w] in 255ths of a cell. */
    const float *pooled, *centroids, *areas;
    /* the calibration, filled by calibrate of samlad.c: */
    Dcga dcga;
    const float *descriptors; /* [O][C] */
    Raster raster;            /* dim 0: without rasters. */
    float *rasters;           /* [O][dim] of the objects, whitened (raster_whiten) */
    float *raster_scores;     /* [O] q of the objects, each left out */
    float raster_unit;        /* the median unit of q of the objects */
    float *channel_std;       /* [C] over all cells of all images. */
    float *units;             /* [O] of the objects' structural maps. */
    float *nearest;     /* [N] scores of the images' maps of nearest features; only in the first pass. */
    float nearest_unit; /* of the map of nearest features: median of these scores; 0: it is not used. */
    float alpha;
    Spread structural; /* of loo_structural. */
    int n_loo;
    int *loo_index;                                  /* [n_loo] the images that are left out in turn. */
    float *loo_structural, *loo_logical, *loo_score; /* [n_loo] */
    float *loo_raster;                               /* [n_loo] R of the images (samlad.c) */
    float *loo_sorted;                               /* [n_loo] fused scores in order, for ranks. */
    float *loo_extra, *loo_missing;                  /* [n_loo] evidence (verdict.h) */
    float flag_extra, flag_missing; /* quantiles of the evidence in normal images: a verdict needs more. */
    float threshold;                /* quantile of the scores, extended if they are few; NAN: of one image. */
    /* memory: */
    Arena calibration;        /* of channel_std, units, nearest and loo_*. */
    float *owned_descriptors; /* the descriptors; NULL: they are in the file. */
    Safetensors *file;        /* of a loaded bank: images and descriptors point into it. */
    void *owned[8];           /* of a built bank: the images' arrays. */
    int n_owned;
} Bank;

/* ---- building (builder.c) ----------------------------------------------------------------------------*/

/* Add images one by one, in their order; growth is amortised. mean_patch and cls of a scene may have any
 * length. The bank keeps unit vectors. */
typedef struct BankBuilder BankBuilder;
BankBuilder *bank_builder_new(Error *err);
int bank_builder_add(BankBuilder *builder, const char *name, const Scene *scene, Error *err);
/* Make a bank of the images; at least one is needed. The arrays become the bank's. The builder is freed in
 * any case. */
int bank_builder_finish(BankBuilder *builder, Bank *bank, Error *err);
void bank_builder_free(BankBuilder *builder);

/* ---- the file (bank_file.c) --------------------------------------------------------------------------*/

int bank_save(const Bank *bank, const char *path, Error *err);
int bank_load(Bank *bank, const char *path, Error *err);

/* ---- the images (bank.c) -----------------------------------------------------------------------------*/

size_t bank_cells(const Bank *bank);
int bank_object_count(const Bank *bank, int image);
/* The image's objects as a view of the bank, with features16 and without features. coverage [n][h*w]: buffer
 * for their coverage as float32; NULL: the view has none. */
Objects bank_objects(const Bank *bank, int image, float *coverage);
/* The views of all images [n_images], without coverage; free() frees the array. NULL: no memory. */
Objects *bank_all_objects(const Bank *bank, Error *err);
void bank_features(const Bank *bank, int image, float *features); /* as float32 [h*w][C] */
/* Give the image's view its features as float32, in features [h*w][C]. -1: they are not finite numbers. */
int bank_with_features(Objects *view, const Bank *bank, int image, float *features, Error *err);
/* Only images of one grid, and of one backbone, can be compared. 0, or -1. */
int bank_check_shape(const Bank *bank, const Scene *scene, Error *err);
/* The image as a scene: features and objects, no labels. Its objects are measured again from the rounded
 * features and coverage. 0, or -1: no memory. */
int bank_scene(Scene *scene, const Bank *bank, int image, Error *err);
/* 1 if i and j are one image, or exact copies (features and mean patch, bit for bit). */
int bank_same_image(const Bank *bank, int i, int j);

/* ---- the calibration (bank.c) ------------------------------------------------------------------------*/

/* Buffers of channel_std, units, nearest, and leave-one-out scores of n_loo images. */
int bank_calibration_buffers(Bank *bank, int n_loo, Error *err);
/* Drop an earlier calibration and allocate the next. Objects' units are 1, loo_index holds the images that
 * are left out in turn, and the rest has no values. */
int bank_begin_calibration(Bank *bank, Error *err);
/* channel_std: standard deviation of each channel over all cells of all images. 0, or -1: no memory. */
int bank_channel_std(Bank *bank, Error *err);
/* loo_sorted, flags and threshold from the leave-one-out scores. */
void bank_thresholds(Bank *bank);
/* 1 if the leave-one-out scores are so few, below AMM_FEW_SCORES, that the threshold is extended. */
int bank_extends_threshold(const Bank *bank);
/* The options of verdict.h, from a bank's options and calibration. */
VerdictOptions bank_verdicts(const Bank *bank);
/* Drop the calibration, keep the images. */
void bank_uncalibrate(Bank *bank);
void bank_free(Bank *bank);

/* ---- rasters (rasters.c) -----------------------------------------------------------------------------*/

/* Fit the rasters of a bank whose objects have descriptors: raster, rasters, raster_scores, raster_unit and
 * loo_raster. Nothing to do if raster.dim is 0. 0, or -1: no memory. */
int bank_fit_rasters(Bank *bank, Error *err);
/* unusual [mine->n]: z of the raster of each described object of an image, times the part of the normal images in
 * which its most similar object finds it the most similar, too. `exclude` (or -1) and its copies give no neighbours.
 * 0 without rasters. 0, or -1: no memory. */
int bank_unusual(float *unusual, const Bank *bank, const Objects *mine, int exclude, Error *err);

/* ---- retrieval (retrieve.c) --------------------------------------------------------------------------*/

/* The k images nearest to the scene by the option `retrieval`, best first, ties by index: found [k].
 * `exclude` (or -1) and its copies are left out. Returns the number found, which is smaller than k if the
 * bank has no more images; -1: no memory. Of the scene it reads only mean_patch, or cls (unit vectors), or
 * features. */
int bank_retrieve(const Bank *bank, const Scene *scene, int k, int exclude, int *found, Error *err);

#endif
