/* compare.h - one scene against its references: the middle of the paper (METHOD.md 5 to 7). */
#ifndef SAMLAD_COMPARE_H
#define SAMLAD_COMPARE_H

#include "bank/bank.h"
#include "bank/scene.h"

typedef struct Comparison {
    int k;               /* references, nearest first */
    int *references;     /* [k] bank indices */
    Matching *matchings; /* [k] */
    float *structural;   /* [h*w] A before z, blurred; divided by object scale unless raw was asked for */
    float *logical;      /* [h*w] L before z */
    float *map;          /* [h*w] fused z */
    float *claimed;      /* [n_q][h*w] the objects' weights after claims (align.h), or NULL: none are made */
    float *unmatched;    /* [n_q] mean of U over the references */
    float *counted;      /* [n_q] the same of U counted together with that of objects alike (omm_count) */
    float structural_score, logical_score; /* A, L */
    float structural_z, logical_z, score;  /* fused */
} Comparison;

/* The scene's objects get their descriptors. `exclude`: a bank image that may not be its own reference,
 * nor its copies, or -1. raw: stop after the structural map, before it is divided by the objects' scales
 * (calibration's first pass). */
int compare_scene(Comparison *out, const Bank *bank, Scene *scene, int exclude, int raw, StWriter *dump,
                  Error *err);
void comparison_free(Comparison *comparison);

/* A bank image as a scene (features and objects; no labels). */
int bank_scene(Scene *scene, const Bank *bank, int image, Error *err);

/* Everything that a bank knows of itself: DCGA's statistics, descriptors, alpha, the objects' scales,
 * leave-one-out scores. */
typedef void (*CalibrateProgress)(void *user, int done, int total);
int calibrate(Bank *bank, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err);

#endif
