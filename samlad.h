/* samlad.h - the public API of libsamlad: SAM-LAD (Peng et al., arXiv 2406.00625), zero-shot detection of
 * logical and structural anomalies. Open models, build or load a bank of normal images, detect, free.
 *
 *     Error err;
 *     Samlad *s = samlad_open(&(SamladWeights){.vit = "vit.safetensors", .sam = "sam.safetensors"}, &err);
 *     samlad_bank_build(s, paths, n, NULL, NULL, &err);       // or samlad_bank_load(s, "normal.bank", &err)
 *     SamladResult result;
 *     samlad_detect(s, rgb, height, width, &result, NULL, &err);
 *     printf("%g\n", result.score);
 *     samlad_result_free(&result);
 *     samlad_close(s);
 *
 * Functions return 0, or -1 (a pointer: NULL) with one sentence in err. A Samlad belongs to one thread;
 * another thread takes samlad_share's. Banks are built from files (PNG, JPEG, PNM), detection takes pixels
 * that the program has. cc program.c -lsamlad -lm -fopenmp (without -fopenmp if the library was made with
 * OPENMP=0). */
#ifndef SAMLAD_H
#define SAMLAD_H

#include <stdint.h>

#include "io/error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SAMLAD_VERSION "0.2.0"

typedef struct Samlad Samlad;

typedef struct SamladWeights {
    const char *vit;    /* backbone, safetensors: needed */
    const char *sam;    /* needed unless the option no-objects is set */
    const char *featup; /* NULL: bilinear upsampling */
    const char *dcga;   /* NULL: no learned graph (METHOD.md 5) */
} SamladWeights;

Samlad *samlad_open(const SamladWeights *weights, Error *err);
void samlad_close(Samlad *s);

/* Several images at once: another handle on the same models and bank for another thread. `s` must outlive it,
 * and its options and bank must not change meanwhile; a share can get no bank of its own. Close it with
 * samlad_close. */
Samlad *samlad_share(const Samlad *s, Error *err);
/* How many images at once pay: the number of threads for small models, 1 where each handle's activations
 * would take much memory (then the threads work inside one image). The results are the same bits either way.
 */
int samlad_images_at_once(const Samlad *s);

/* Options by name and text, as on the command line ("k", "5"), for the next bank that is built or calibrated
 * anew; one that is loaded brings its own, and these are forgotten. A handle that has a bank loses it, for
 * it was made with other options. -1 for a share, which has its owner's. */
int samlad_set(Samlad *s, const char *name, const char *value, Error *err);

/* Called by the calling thread as images are finished, done of total; done may grow by several at once. */
typedef void (*SamladProgress)(void *user, const char *what, int done, int total);

/* ---- the bank ------------------------------------------------------------------------------------*/
/* The images are called by the last parts of their paths, or, where two of these are equal, by all that stands
 * behind the folders that they share. */
int samlad_bank_build(Samlad *s, const char *const *paths, int n, SamladProgress progress, void *user,
                      Error *err);
int samlad_bank_save(const Samlad *s, const char *path, Error *err);
/* Takes the settings from the bank; refuses one that was made with other weights than the opened ones. */
int samlad_bank_load(Samlad *s, const char *path, Error *err);
/* Take the images and settings of another bank and calibrate them anew with the options that samlad_set has
 * set (those that do not concern features). */
int samlad_bank_recalibrate(Samlad *s, const char *path, SamladProgress progress, void *user, Error *err);
/* The same bank from scenes that samlad_scene_save kept with these weights and settings; names [n] of the
 * images, as samlad_bank_build has paths. */
int samlad_bank_from_scenes(Samlad *s, const char *const *scenes, const char *const *names, int n,
                            SamladProgress progress, void *user, Error *err);
int samlad_bank_size(const Samlad *s);
/* Scores above it are called anomalous: the option threshold-quantile of the leave-one-out scores; NAN: one
 * normal image, or copies of one, have none. */
float samlad_bank_threshold(const Samlad *s);
const char *samlad_bank_name(const Samlad *s, int image);

/* ---- what long runs need -------------------------------------------------------------------------*/
/* Analyse an image and keep it (features, objects) as a file, to build a bank or to detect from, bit for bit
 * as from the image itself. */
int samlad_scene_save(Samlad *s, const uint8_t *rgb, int height, int width, const char *path, Error *err);
int samlad_backbone_blocks(const Samlad *s); /* the option layer goes from 1 to it */
/* Everything that decides results, as text: "option.k" = "10", "weights.sam.sha256" = ... */
typedef void (*SamladEach)(void *user, const char *key, const char *value);
void samlad_describe(const Samlad *s, SamladEach each, void *user);

/* ---- detection -----------------------------------------------------------------------------------*/
typedef enum SamladVerdict { VERDICT_NORMAL, VERDICT_EXTRA, VERDICT_DAMAGED } SamladVerdict;

typedef struct SamladMatch {
    int reference;    /* index into SamladResult.references */
    int object;       /* of that reference */
    float assignment; /* P_ij */
    float similarity; /* S_ij */
} SamladMatch;

typedef struct SamladObject {
    int background;     /* 1: what no mask covered */
    float box[4];       /* x, y, width, height in pixels */
    float area;         /* part of the image */
    float centroid[2];  /* x, y in 0..1 */
    float unmatched;    /* mean of U over the references, 0..1 */
    int alike;          /* so many objects are like it, itself among them */
    float counted;      /* mean of what all of them are left with: about 1 when one of them is too many */
    float damage;       /* largest structural z on the object */
    float damage_at[2]; /* where, x, y in pixels */
    SamladVerdict verdict;
    int n_matches;
    SamladMatch *matches; /* one a reference at the most */
} SamladObject;

/* An object of the normal images that the query lacks. */
typedef struct SamladMissing {
    int reference, object; /* where it looks clearest */
    float box[4];          /* in pixels of the query */
    float unmatched;       /* V there, of all alike together, at most 1 */
    int alike;             /* so many objects of that reference are like it, itself among them */
    float evidence;        /* sum of V over the references that miss it, by the number of all of them */
    int support;           /* so many of the references miss it */
} SamladMissing;

typedef struct SamladResult {
    int width, height;         /* of the image */
    int grid_w, grid_h;        /* of the maps */
    float score;               /* fused; what to sort by */
    float structural, logical; /* A and L */
    float structural_z, logical_z;
    float rank; /* part of the bank's leave-one-out scores at least as high, (1+n≥)/(1+n): like a p-value */
    float threshold; /* quantile of the bank's leave-one-out scores; NAN: one image, or copies of one */
    int anomalous;   /* score > threshold: 1 or 0; -1 when there is no threshold */
    float *map;      /* [grid_h][grid_w] fused z */
    float *structural_map, *logical_map; /* [grid_h][grid_w] A and L before z */
    int n_references;
    int *references; /* bank indices, nearest first */
    int n_objects;
    SamladObject *objects;
    int n_missing;
    SamladMissing *missing;
    int32_t *labels;         /* [height][width] object of each pixel, or -1 */
    float map_low, map_high; /* a scale for pictures: z of a typical and of a clearly anomalous place */
    SamladMatch *matches;    /* of all objects, which point into it */
} SamladResult;

/* rgb uint8 [height][width][3]. dump: file for every intermediate tensor (METHOD.md 11), or NULL. */
int samlad_detect(Samlad *s, const uint8_t *rgb, int height, int width, SamladResult *result,
                  const char *dump, Error *err);
/* The same from a scene that samlad_scene_save kept. */
int samlad_detect_scene(Samlad *s, const char *scene, SamladResult *result, Error *err);
void samlad_result_free(SamladResult *result);
/* The fused map at the image's size, bilinear: map [height][width]. */
void samlad_full_map(const SamladResult *result, float *map);

#ifdef __cplusplus
}
#endif

#endif
