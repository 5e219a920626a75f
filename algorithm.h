/* algorithm.h - the algorithm as samlad.c spells it out: detection in an image, and the calibration of a
 * bank. */
#ifndef SAMLAD_ALGORITHM_H
#define SAMLAD_ALGORITHM_H

#include "amg.h"
#include "amm.h"
#include "bank/bank.h"
#include "bank/scene.h"
#include "featup.h"
#include "io/image.h"
#include "sam.h"
#include "verdict.h"
#include "vit.h"

/* The frozen networks. sam and featup may be absent. library/networks.h opens them. */
typedef struct Networks {
    Safetensors *vit_file, *sam_file, *featup_file, *dcga_file;
    Vit *vit;
    VitState *vit_state;
    int vit_state_grid; /* patches a side of the grid that vit_state was made for. */
    Sam *sam;
    SamState *sam_state;
    Featup *featup;
    int shared; /* 1: the networks belong to another Networks. */
} Networks;

/* The sizes of an image of this size on its way to the grid. */
typedef struct FeatureSizes {
    int in_h, in_w;       /* pixels of the network's input. */
    int patch_h, patch_w; /* patches */
    int up_h, up_w;       /* upsampled features */
    int grid_h, grid_w;   /* cells of maps and objects. */
} FeatureSizes;
FeatureSizes feature_sizes(const Options *options, int patch_size, int height, int width);

/* An image of at least one pixel as a scene: features and objects. 0 / -1, and the scene is empty. */
int scene_analyse(Scene *scene, Networks *networks, const Options *options, const Picture *picture,
                  Error *err);

/* The results of a detection in a scene, step by step. */
typedef struct Detection {
    int k, *references;    /* [k] bank indices, nearest first. */
    Comparison comparison; /* the scene's objects (described), those of the references, and the matches. */
    float *descriptors;    /* [n][C] of the scene's objects. */
    Placement *places;     /* [n][k] where each object lies in each reference. */
    float *claimed;        /* [n][h*w] coverage of the objects after claims (amm.h) */
    float *structural;     /* [h*w] A before z: distances in the objects' units, plus nearest in its own. */
    float *nearest;        /* [h*w] distance to the nearest features (amm_nearest); 0 without them. */
    float *logical;        /* [h*w] L before z */
    float *map;            /* [h*w] fused z */
    float *unmatched;      /* [n] mean of U over the references. */
    float *counted;        /* [n] the same of U counted together with similar objects (omm_count). */
    float *unusual;        /* [n] z of the layout of each object (bank_unusual) */
    float structural_score, logical_score, layout_score; /* A, L, R */
    float structural_z, logical_z, layout_z, score;      /* layout_z: a summand of logical_z; score: fused */
    float *reference_coverage;               /* [all objects of the references][h*w]. */
    float *features, *inverse_std, *scratch; /* buffers: [h*w][C] a reference's features, [C], [h*w] */
    Arena memory;                            /* of all arrays from comparison on. */
} Detection;

/* The whole method on an image. dump receives the intermediate tensors under the names of docs/METHOD.md 11;
 * NULL: none. The detection points into the scene. 0 / -1; free both in either case. */
int detect(Detection *d, Scene *scene, Networks *networks, const Bank *bank, const Picture *picture,
           StWriter *dump, Error *err);
/* The same from a scene that exists already. `exclude` is a bank image that may not be its own reference, nor
 * may its copies; -1: none. 0 / -1; free it with detection_free in either case. */
int detect_in_scene(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err);
void detection_free(Detection *d);

/* Compute everything that a bank knows about itself: DCGA's statistics, descriptors, alpha, the units of
 * objects and of the nearest features, leave-one-out scores. */
typedef void (*CalibrateProgress)(void *user, int done, int total);
int calibrate(Bank *bank, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err);

#endif
