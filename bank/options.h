/* options.h - the constants of the method as options. One table serves the command line, --help, and the
 * settings recorded in a bank. */
#ifndef SAMLAD_OPTIONS_H
#define SAMLAD_OPTIONS_H

#include <stdio.h>

#include "amg.h"
#include "amm.h"
#include "dcga.h"
#include "io/error.h"
#include "omm.h"

typedef enum Resize { RESIZE_SQUASH, RESIZE_FIT } Resize;
typedef enum Retrieval { RETRIEVAL_MEAN, RETRIEVAL_CLS, RETRIEVAL_L2 } Retrieval;
typedef enum Method { METHOD_SAMLAD, METHOD_PAPER } Method;

typedef struct Options {
    /* Features. To change one of these, a bank must be built again from its images. */
    int size; /* S; 0: the model's recommendation. */
    Resize resize;
    int white;           /* of images with 16 bits a sample: 65535; 0: by the normal images (io/image.h) [ours]. */
    int layer;           /* 0: the model's recommendation, else DINOv2's last, timm's at three quarters. */
    int views; /* 2: the features are the mean of two views, half a patch apart [ours]; 1: one view. */
    int featup_stages;   /* 0: bilinear */
    int grid;            /* cells of the longer side; 0: S/4, or the model's recommendation for its size. */
    int no_objects;      /* ablation: the whole image is one object (PaDiM on the k references). */
    Precision precision; /* of the products in the ViT and in SAM's image encoder. */
    ObjectsOptions objects;
    AmgOptions amg;
    /* The method. To change one of these, `samlad bank --from` calibrates a bank again. */
    Method method; /* a word for other options, see options_follow_method; no step reads it. */
    int k;
    Retrieval retrieval;
    DcgaOptions dcga;
    OmmOptions omm;
    double alpha;          /* score of the weakest normal match, for the dustbin's score; NAN: calibrated. */
    double alpha_quantile; /* of the scores of mutual nearest pairs: 0.001 [ours]. */
    float raster_weight;   /* of z of the rasters beside z of L: 4 [ours]; 0: without them. */
    AmmOptions amm;
    double object_quantile; /* of an object's own leave-one-out map: 0.99; 0: no objects' units [ours]. */
    double delta_logical;   /* width of each normal image's L: 0.05 [ours] */
    double delta_structural; /* times |median|, added to the spread: 0.1 [ours] */
    int loo_images;          /* leave-one-out scores of at most this many images: 60 [ours]. */
    Only only;
    double flag_damage;    /* z above which an object is called damaged: 3 [ours]. */
    double flag_unmatched; /* U or V above which it is called extra or missing: 0.5 [ours] */
    double flag_quantile;  /* and above this quantile of the normal images' own evidence: 0.95 [ours]. */
    /* An image is anomalous above this quantile of the leave-one-out scores: 0.97 [ours]. */
    double threshold_quantile;
} Options;

typedef enum OptionKind { OPTION_INT, OPTION_FLOAT, OPTION_DOUBLE, OPTION_CHOICE, OPTION_FLAG } OptionKind;

typedef struct OptionSpec {
    const char *name; /* "sinkhorn-iters" */
    OptionKind kind;
    size_t offset; /* into Options */
    double min, max;
    const char *choices; /* OPTION_CHOICE: "squash|fit", values 0, 1, …. */
    int of_features;     /* 1: of the features, 0: of the method (see Options). */
    const char *help;
} OptionSpec;

enum { MAX_OPTIONS = 128 };
extern const OptionSpec option_table[];
extern const int option_count;

void options_default(Options *options);
const OptionSpec *option_find(const char *name);
/* Set an option by text. Flags take 0 or 1. `where` ("--k", or a bank's name) begins the error's sentence. */
int option_set(Options *options, const OptionSpec *spec, const char *value, const char *where, Error *err);
/* 1: the option is the word `method`, which stands for others. Set it before them. */
int option_is_method(const OptionSpec *spec);
/* Set every option that the word options->method stands for, and mark it in was_set [option_count]. */
void options_follow_method(Options *options, unsigned char *was_set);
/* The value as text that option_set reads back exactly. */
void option_text(const Options *options, const OptionSpec *spec, char *text, size_t size);
/* The same for readers: 0.7, not 0.699999988. */
void option_brief(const Options *options, const OptionSpec *spec, char *text, size_t size);
/* Print the options' part of --help, with the values of `options` as defaults, and those of method paper. */
void options_help(FILE *out, const Options *options, int of_features);

#endif
