/* algorithm.h - the algorithm as samlad.c spells it out: detection in an image, and the calibration of a bank. */
#ifndef SAMLAD_ALGORITHM_H
#define SAMLAD_ALGORITHM_H

#include "amm.h"
#include "bank/bank.h"
#include "bank/scene.h"
#include "verdict.h"

/* What is found in a scene, step by step. */
typedef struct Detection {
    int k, *references; /* [k] bank indices, nearest first */
    Comparison
        comparison;    /* the scene's objects, described, and those of the references, with their matches */
    Placement *places; /* [n][k] where each object lies in each reference */
    float *coverage;   /* [n][h*w] of the objects after claims (amm.h) */
    float *structural; /* [h*w] A before z, blurred, in the objects' units */
    float *logical;    /* [h*w] L before z */
    float *map;        /* [h*w] fused z */
    float *unmatched;  /* [n] mean of U over the references */
    float *counted;    /* [n] the same of U counted together with that of objects alike (omm_count) */
    float structural_score, logical_score;   /* A, L */
    float structural_z, logical_z, score;    /* score: fused */
    float *features, *inverse_std, *scratch; /* room: [h*w][C] a reference's features, [C], [h*w] */
    Arena memory;                            /* of all from comparison on */
} Detection;

/* Detect in a scene. `exclude`: a bank image that may not be its own reference, nor its copies, or -1. 0 / -1; to
 * be freed with detection_free either way. */
int detect_in_scene(Detection *d, const Bank *bank, const Scene *scene, int exclude, Error *err);
void detection_free(Detection *d);

/* What verdict.h asks for, from a bank's options and calibration. */
VerdictOptions bank_verdicts(const Bank *bank);

/* A bank image as a scene (features and objects; no labels). */
int bank_scene(Scene *scene, const Bank *bank, int image, Error *err);

/* Everything that a bank knows of itself: DCGA's statistics, descriptors, alpha, the objects' units,
 * leave-one-out scores. */
typedef void (*CalibrateProgress)(void *user, int done, int total);
int calibrate(Bank *bank, Safetensors *dcga_weights, CalibrateProgress progress, void *user, Error *err);

#endif
