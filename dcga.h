/* dcga.h - objects and their descriptors: Dynamic Channel Graph Attention (docs/METHOD.md 4 and 5).
 *
 * Masks become objects on the feature grid, each object a "keypoint" [paper]. An object's feature map is
 * pooled to a vector. The vector passes through two graphs, one over channels and one over the image's
 * objects. The two graphs' formulas could not be read in the paper; each choice below is marked. */
#ifndef SAMLAD_DCGA_H
#define SAMLAD_DCGA_H

#include "io/error.h"
#include "io/rle.h"
#include "load/dcga_load.h"
#include "tensor.h"

/* ---- masks -> objects ---------------------------------------------------------------------------*/

/* The objects of one image on the feature grid. They either own their memory (objects_new, objects_copy, then
 * objects_free) or are a view of other arrays, such as a bank's. In a view memory.base is NULL. */
typedef struct Objects {
    int n, has_background; /* the background, if there is one, is the last. */
    int grid_h, grid_w, channels;
    const float *features;      /* [grid_h*grid_w][channels] f of the image; NULL in a view of a bank. */
    const uint16_t *features16; /* the same in float16, as in a bank; NULL elsewhere. */
    const float *coverage;      /* [n][grid_h*grid_w] w_i(p): the part of cell p that object i covers, 0..1 */
    const float *pooled;        /* [n][channels] a_i = sum_p w_i f / sum_p w_i */
    const float *centroids;     /* [n][2] c_i: x, y in 0..1 */
    const float *areas;         /* [n] A_i: part of the image, 0..1. */
    const float *descriptors;   /* [n][channels] h_i, unit vectors (dcga_describe); NULL before. */
    const float *units;         /* [n] unit of the object's structural map (amm.h); NULL outside a bank. */
    Arena memory;               /* of coverage, pooled, centroids, areas. */
} Objects;

static inline ptrdiff_t grid_cells(const Objects *o)
{
    return (ptrdiff_t)o->grid_h * o->grid_w;
}

/* Some rows, or columns, of a grid; last < first: none. */
typedef struct Span {
    int first, last;
} Span;

/* The rows and columns that coverage [grid_h*grid_w] touches. */
void coverage_extent(Span *rows, Span *columns, const float *coverage, int grid_h, int grid_w);

/* Thresholds are double, as in amg.h: a mask of exactly 90 % stays, although 0.9f is less than 90 %. */
typedef struct ObjectsOptions {
    double max_area; /* masks above this part of the image are dropped: 0.90 [ours]. */
    double min_area; /* masks below this part are dropped: 0.0005 [ours]. */
    double min_kept; /* masks that keep less of themselves under smaller ones are dropped: 0.5 [ours]. */
    int background;  /* 1: the area without a mask is one more object [ours]. */
} ObjectsOptions;

/* Masks of an image [height][width] -> labels [height][width]: the object that owns each pixel, or -1. Where
 * masks overlap, the smaller one keeps the pixel [ours]. kept [n_masks], or NULL: the surviving masks in
 * their given order. Returns the number of survivors; -1: no memory. */
int objects_labels(int32_t *labels, int *kept, const Rle *masks, int n_masks, int height, int width,
                   const ObjectsOptions *options, Error *err);

/* Labels [height][width] -> coverage [n][grid_h*grid_w] by exact area averaging. `shape` gives n,
 * has_background (label -1 is the last object) and the grid. */
int objects_coverage(float *coverage, const Objects *shape, const int32_t *labels, int height, int width,
                     Error *err);

/* The functions below take objects whose n, has_background, grid, channels and features are set. They
 * allocate the rest. 0, or -1: no memory. */

/* Objects with this coverage [n][grid_h*grid_w], which is copied. Fills pooled, centroids, areas. */
int objects_new(Objects *objects, const float *coverage, Error *err);
/* A copy that owns coverage, pooled, centroids, areas of a view. */
int objects_copy(Objects *objects, const Objects *view, Error *err);
/* Objects of an image's masks: labels, coverage, then as objects_new. Sets n and has_background. */
int masks_to_objects(Objects *objects, int32_t *labels, const Rle *masks, int n_masks, int height, int width,
                     const ObjectsOptions *options, Error *err);
/* The whole image as one object (ablation: PaDiM on the references). Sets n and has_background. */
int whole_image_object(Objects *objects, Error *err);
void objects_free(Objects *objects);

/* ---- objects -> descriptors ----------------------------------------------------------------------*/

/* The standard deviation by which a channel is divided: `std`, or 1 when the channel never changes. Trained
 * networks have such channels, and they tell nothing. A bank keeps features as float16, so a deviation below
 * 1/1024 of the mean is rounding [ours]. */
float channel_deviation(double mean, double std);

typedef enum ChannelGraph { CHANNEL_OFF, CHANNEL_COVARIANCE, CHANNEL_SOFTMAX } ChannelGraph;

typedef struct DcgaOptions {
    ChannelGraph channel_graph; /* covariance [ours] */
    int rounds;                 /* of pairing and filtering: 2 [ours]. */
    int partners;               /* other bank images that each image is paired with: 4 [ours]. */
    float shrinkage;            /* of the within-object covariance: 0.3 [ours]. */
    float channel_strength;     /* lambda_c of the softmax graph: 0.1 [ours]. */
    float channel_tau;          /* tau_c: 1 [ours] */
    float object_strength;      /* lambda_o of the object graph: 0 [ours]. */
    float object_tau;           /* tau_o: 0.1 [ours] */
} DcgaOptions;

typedef struct Dcga {
    DcgaOptions options;
    int channels;
    float *mean, *std;     /* [channels] of the bank's pooled objects. */
    float *filter;         /* [channels][channels] L^-1 of the within-object covariance L·Lᵀ, or NULL. */
    GatWeights object_gat; /* learned graph over objects: d_in = d_out = channels. */
    GatWeights
        channel_gat; /* over channels: d_in = bins of a channel's layout inside the object, d_out any. */
} Dcga;

/* Statistics of the objects of n_images >= 1 normal images, from their pooled features and centroids. 0, or
 * -1: no memory. */
int dcga_fit(Dcga *dcga, const DcgaOptions *options, const Objects *images, int n_images, Error *err);
/* Attach the learned weights of --dcga. Their arrays stay in the file. */
int dcga_learned(Dcga *dcga, Safetensors *weights, Error *err);
void dcga_free(Dcga *dcga);

/* descriptors [n][channels]: h_i of all objects of an image, unit vectors. 0, or -1: no memory. */
int dcga_describe(const Dcga *dcga, float *descriptors, const Objects *objects, Error *err);
/* h [channels] of a region that is no object of its image, such as a mask moved from another image. The
 * region is the only node of the object graph. pooled and coverage are the region's, grid and features the
 * image's. 0, or -1: no memory. */
int dcga_describe_region(const Dcga *dcga, float *h, const Objects *image, const float *pooled,
                         const float *coverage, Error *err);

/* In-place Cholesky A = L·Lᵀ of a symmetric positive definite [n][n] (lower triangle). -1 if A is not
 * positive definite. */
int cholesky(double *a, ptrdiff_t n);
/* inverse [n][n] of the lower triangular l. */
void invert_lower(double *inverse, const double *l, ptrdiff_t n);

/* The j that is the best of row i while i is the best of column j; -1: there is none. score [n][ld] has m
 * columns. Of equal scores the first counts. */
int mutual_best(const float *score, ptrdiff_t ld, int n, int m, ptrdiff_t i);
/* Mutual nearest neighbours between two sets under score [n][m]: pairs of indices. Returns the number of
 * pairs, at most min(n, m). */
int mutual_pairs(int (*pairs)[2], const float *score, int n, int m);

#endif
