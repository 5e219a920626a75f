/* samlad.h - the public API of libsamlad: SAM-LAD (Peng et al., arXiv 2406.00625) detects logical and structural
 * anomalies zero-shot. Open weights, build or load a bank of normal images, detect, free.
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
 * Functions return 0 on success. On failure they return -1, or NULL for a pointer, and leave one sentence in err.
 * A handle (Samlad) belongs to one thread; samlad_share makes one for another thread. A bank is built from image
 * files (PNG, JPEG, PNM, BMP, TIFF); detection takes pixels. Compile with cc program.c -lsamlad -lm -fopenmp; leave -fopenmp
 * out if the library was made with OPENMP=0. */
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
    const char *vit;    /* the backbone's safetensors file: required. */
    const char *sam;    /* required unless the option no-objects is set. */
    const char *featup; /* NULL: bilinear upsampling */
    const char *dcga;   /* NULL: no learned graph (docs/METHOD.md 5). */
} SamladWeights;

Samlad *samlad_open(const SamladWeights *weights, Error *err);
void samlad_close(Samlad *s);

/* A second handle on the same networks and bank, so that another thread can analyse images at the same time. `s`
 * must outlive the share, and its options and bank must not change meanwhile. A share cannot get a bank or options
 * of its own. Close it with samlad_close. */
Samlad *samlad_share(const Samlad *s, Error *err);
/* The best number of images to analyse at the same time: the number of threads, or 1 for large models. The
 * activations of many handles of a large model would take much memory, so all threads work on one image. The
 * results are the same bits either way. */
int samlad_images_at_once(const Samlad *s);

/* Set an option by name and text, as on the command line ("k", "5"). "method" sets several at once: set single
 * options after it. An option applies to the next bank that is built or calibrated again. The handle's bank is
 * dropped, because it was made with other options. A loaded bank brings its own options, which replace all set
 * options. -1 for a share: set options on its owner. */
int samlad_set(Samlad *s, const char *name, const char *value, Error *err);

/* The option white: the value in 16-bit images that is white; brighter values are clipped. 0: auto, which
 * samlad_bank_build settles by its images. Scale the pixels for samlad_detect by it. */
int samlad_white(const Samlad *s);
/* The largest value in the 16-bit files among these, but for one sample in 10,000 of each; 0: none is of 16 bits; -1:
 * no memory. Far below samlad_white they are nearly black. */
int samlad_brightest(const char *const *paths, int n);

/* The calling thread calls it as images are finished: done of total. done may grow by several at once. */
typedef void (*SamladProgress)(void *user, const char *what, int done, int total);

/* ---- the bank ------------------------------------------------------------------------------------*/
/* Build and calibrate a bank of n image files. An image is named by its file name; if two are equal, by its path
 * below their common folder. */
int samlad_bank_build(Samlad *s, const char *const *paths, int n, SamladProgress progress, void *user,
                      Error *err);
/* Record in the bank the names of images that were given and could not be read, in place of earlier ones. */
int samlad_bank_note_unreadable(Samlad *s, const char *const *names, int n, Error *err);
int samlad_bank_save(const Samlad *s, const char *path, Error *err);
/* Load a bank and take its options. A bank that was made with other weights is refused. */
int samlad_bank_load(Samlad *s, const char *path, Error *err);
/* Load a bank and calibrate it again. Options of the method set by samlad_set replace the bank's. Options of
 * features stay the bank's. */
int samlad_bank_recalibrate(Samlad *s, const char *path, SamladProgress progress, void *user, Error *err);
/* As samlad_bank_build, from files of samlad_scene_save. These were made with the same weights and options of
 * features. names [n]: the images' paths. The bank is the same bits. */
int samlad_bank_from_scenes(Samlad *s, const char *const *scenes, const char *const *names, int n,
                            SamladProgress progress, void *user, Error *err);
int samlad_bank_size(const Samlad *s); /* normal images; 0: no bank. */
/* A score above it is anomalous. It is the quantile threshold-quantile of the bank's leave-one-out scores. If these
 * are few, it is extended. NAN: no bank, or a bank of one image or of copies of one. */
float samlad_bank_threshold(const Samlad *s);
/* The number n of leave-one-out scores if it is below 20; else 0. Of n + 1 normal images one is expected above the
 * largest score of the other n, so the threshold is extended: excesses over the median are taken as exponential. */
int samlad_bank_few_scores(const Samlad *s);
const char *samlad_bank_name(const Samlad *s, int image);

/* ---- for long runs -----------------------------------------------------------------------------*/
/* Analyse an image and save its features and objects. Building a bank or detecting from the file gives the same
 * bits as from the image. */
int samlad_scene_save(Samlad *s, const uint8_t *rgb, int height, int width, const char *path, Error *err);
int samlad_backbone_blocks(const Samlad *s); /* the largest value of the option layer. */
/* Report every setting that decides results, as text: "option.k" = "10", "weights.sam.sha256" = ... */
typedef void (*SamladEach)(void *user, const char *key, const char *value);
void samlad_describe(const Samlad *s, SamladEach each, void *user);

/* ---- detection -----------------------------------------------------------------------------------*/
typedef enum SamladVerdict { VERDICT_NORMAL, VERDICT_EXTRA, VERDICT_DAMAGED } SamladVerdict;

typedef struct SamladMatch {
    int reference;    /* index into SamladResult.references. */
    int object;       /* of that reference. */
    float assignment; /* P_ij */
    float similarity; /* S_ij */
} SamladMatch;

typedef struct SamladObject {
    int background;     /* 1: the area without a mask. */
    float box[4];       /* x, y, width, height in pixels. */
    float area;         /* part of the image. */
    float centroid[2];  /* x, y in 0..1 */
    float unmatched;    /* mean of U over the references, 0..1. */
    int alike;          /* number of objects that are alike, this one included. */
    float counted;      /* mean of U of all alike together: about 1 when one of them is too many. */
    float unusual;      /* z of its layout beside the most similar objects of the normal images. */
    float damage;       /* structural z of the 2x2 block around the largest value on the object. */
    float damage_at[2]; /* its place: x, y in pixels. */
    SamladVerdict verdict;
    int n_matches;
    SamladMatch *matches; /* at most one a reference. */
} SamladObject;

/* An object of the normal images that the query lacks. */
typedef struct SamladMissing {
    int reference, object; /* the reference that shows it most clearly, and its object there. */
    float box[4];          /* x, y, width, height in pixels of the query. */
    float unmatched;       /* V there, of all alike together, at most 1. */
    int alike;             /* number of objects of that reference that are alike, this one included. */
    float evidence; /* sum of V over the references that miss it, divided by the number of references. */
    int support;    /* number of references that miss it. */
} SamladMissing;

typedef struct SamladResult {
    int width, height;         /* of the image. */
    int grid_w, grid_h;        /* of the maps. */
    float score;               /* fused: sort by it. */
    float structural, logical, layout; /* A, L and R, the largest `unusual` */
    /* layout_z is a summand of logical_z. */
    float structural_z, logical_z, layout_z;
    float rank; /* part of the bank's leave-one-out scores at least as high, (1+n≥)/(1+n): like a p-value. */
    float threshold; /* as samlad_bank_threshold */
    int anomalous;   /* 1: the score is above the threshold, 0: it is not, -1: there is no threshold. */
    float *map;      /* [grid_h][grid_w] fused z */
    float *structural_map, *logical_map; /* [grid_h][grid_w] A and L before z */
    int n_references;
    int *references; /* bank indices, nearest first. */
    int n_objects;
    SamladObject *objects;
    int n_missing;
    SamladMissing *missing;
    int32_t *labels;         /* [height][width] object of each pixel, or -1. */
    float map_low, map_high; /* the map's range for pictures: a typical z, and a clearly anomalous one. */
    SamladMatch *matches;    /* of all objects; SamladObject.matches points into it. */
} SamladResult;

/* rgb uint8 [height][width][3]. dump: file for every intermediate tensor (docs/METHOD.md 11), or NULL. Free the
 * result with samlad_result_free. */
int samlad_detect(Samlad *s, const uint8_t *rgb, int height, int width, SamladResult *result,
                  const char *dump, Error *err);
/* The same from a file of samlad_scene_save, which needs the same weights and options of features. */
int samlad_detect_scene(Samlad *s, const char *scene, SamladResult *result, Error *err);
void samlad_result_free(SamladResult *result);
/* The fused map at the image's size, bilinear: map [height][width]. */
void samlad_full_map(const SamladResult *result, float *map);

#ifdef __cplusplus
}
#endif

#endif
