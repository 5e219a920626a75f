/* algorithm.h - the algorithm as samlad.c spells it out: detection in an image, and the calibration of a
 * bank. */
#ifndef SAMLAD_ALGORITHM_H
#define SAMLAD_ALGORITHM_H

#include "amg.h"
#include "amm.h"
#include "bank/bank.h"
#include "bank/scene.h"
#include "featup.h"
#include "sam.h"
#include "verdict.h"
#include "vit.h"

/* The frozen networks. sam and featup may be absent. library/networks.h opens them. */
typedef struct Networks {
    Safetensors *vit_file, *sam_file, *featup_file, *dcga_file;
    Vit *vit;
    VitState *vit_state;
    int vit_state_grid; /* patches a side that vit_state was made for */
    Sam *sam;
    SamState *sam_state;
    Featup *featup;
    int shared; /* 1: the networks belong to another Networks */
} Networks;

typedef struct Photo {
    const uint8_t *rgb; /* [height][width][3] */
    int height, width;  /* at least 1 */
} Photo;

/* What an image of this size becomes on its way to the grid. */
typedef struct FeatureSizes {
    int in_h, in_w;       /* pixels of the network's input */
    int patch_h, patch_w; /* patches */
    int up_h, up_w;       /* upsampled features */
    int grid_h, grid_w;   /* cells of maps and objects */
} FeatureSizes;
FeatureSizes feature_sizes(const Options *options, int patch_size, int height, int width);

/* An image as a scene: features and objects. 0 / -1, and the scene is empty. */
int scene_analyse(Scene *scene, Networks *networks, const Options *options, const Photo *photo, Error *err);

/* What is found in a scene, step by step. */
typedef struct Detection {
    int k, *references;    /* [k] bank indices, nearest first */
    Comparison comparison; /* the scene's objects, described, those of the references, and their matches */
    float *descriptors;    /* [n][C] of the scene's objects */
    Placement *places;     /* [n][k] where each object lies in each reference */
    float *coverage;       /* [n][h*w] of the objects after claims (amm.h) */
    float *structural;     /* [h*w] A before z, blurred, in the objects' units */
    float *logical;        /* [h*w] L before z */
    float *map;            /* [h*w] fused z */
    float *unmatched;      /* [n] mean of U over the references */
    float *counted;        /* [n] the same of U counted together with that of objects alike (omm_count) */
    float structural_score, logical_score;   /* A, L */
    float structural_z, logical_z, score;    /* score: fused */
    float *reference_coverage;               /* [all objects of the references][h*w] */
    float *features, *inverse_std, *scratch; /* room: [h*w][C] a reference's features, [C], [h*w] */
    Arena memory;                            /* of all from comparison on */
} Detection;

/* The whole method on an image. dump: intermediate tensors go there under the names of docs/METHOD.md 11;
 * NULL: nowhere. The detection points into the scene. 0 / -1; both are to be freed either way. */
int detect(Detection *d, Scene *scene, Networks *networks, const Bank *bank, const Photo *photo,
           StWriter *dump, Error *err);
/* The same from a scene that is there already. `exclude`: a bank image that may not be its own reference,
 * nor may its copies; -1: none. 0 / -1; to be freed with detection_free either way. */
int detect_in_scene(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err);
void detection_free(Detection *d);

/* What verdict.h asks for, from a bank's options and calibration. */
VerdictOptions bank_verdicts(const Bank *bank);

/* Everything that a bank knows of itself: DCGA's statistics, descriptors, alpha, the objects' units,
 * leave-one-out scores. */
typedef void (*CalibrateProgress)(void *user, int done, int total);
int calibrate(Bank *bank, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err);

#endif
