/* dcga.h - objects and their descriptors: Dynamic Channel Graph Attention (METHOD.md 4 and 5).
 *
 * Masks become objects on the feature grid, each object a "keypoint" [paper]; its feature map is pooled to a
 * vector and passed through two graphs, one over channels and one over the image's objects. What the two
 * graphs are made of could not be read in the paper; each choice below is marked. */
#ifndef SAMLAD_DCGA_H
#define SAMLAD_DCGA_H

#include "io/error.h"
#include "io/rle.h"
#include "io/safetensors.h"

/* ---- masks -> objects ---------------------------------------------------------------------------*/

typedef struct Objects {
    int n; /* objects; the background, when there is one, is the last */
    int has_background;
    int grid_h, grid_w, channels;
    float *weights;     /* [n][grid_h*grid_w] w_i(p): the part of cell p that the object covers, 0..1 */
    float *pooled;      /* [n][channels] a_i = sum_p w_i f / sum_p w_i */
    float *centroids;   /* [n][2] x, y in 0..1 */
    float *areas;       /* [n] part of the image, 0..1 */
    float *descriptors; /* [n][channels] unit vectors h_i, filled by dcga_describe */
} Objects;

/* Thresholds are double, as in amg.h: a mask of exactly 90 % stays, and 0.9f is less than 90 %. */
typedef struct ObjectsOptions {
    double max_area; /* masks above this part of the image are dropped: 0.90 [ours] */
    double min_area; /* and below this: 0.0005 [ours] */
    double min_kept; /* a mask that keeps less of itself under smaller ones is dropped: 0.5 [ours] */
    int background;  /* 1: what no mask covers is one more object [ours] */
} ObjectsOptions;

/* Masks of an image [height][width] -> labels [height][width]: the object that owns each pixel, or -1. Where
 * masks overlap the smaller one keeps the pixel. kept [n_masks] lists the surviving masks in their given
 * order; *n_kept. */
int objects_labels(int32_t *labels, int *kept, int *n_kept, const Rle *masks, int n_masks, int height,
                   int width, const ObjectsOptions *options, Error *err);

/* Labels -> soft weights on the grid by exact area averaging, for n labels 0..n-1 (+ label -1 as object n
 * when background is set). weights [n (+1)][grid_h*grid_w]. Sums are double: a cell of a large image has a
 * hundred thousand pixels. */
int objects_weights(float *weights, const int32_t *labels, int n, int background, int height, int width,
                    int grid_h, int grid_w, Error *err);

/* Allocate for n objects and fill from weights (copied): pooled, centroids, areas. features
 * [grid_h*grid_w][channels]. */
int objects_new(Objects *objects, int n, int has_background, int grid_h, int grid_w, int channels,
                const float *weights, const float *features, Error *err);
void objects_free(Objects *objects);
/* pooled[c] = sum_p w(p) f(p)[c] / sum_p w(p) (0 for an empty mask) for n weight maps. */
void objects_pool(float *pooled, const float *weights, const float *features, int n, int n_cells,
                  int channels);

/* ---- objects -> descriptors ----------------------------------------------------------------------*/

/* What a channel of this mean and standard deviation is measured in: its deviation, or 1 when the channel
 * never changes and so says nothing either way. Trained networks have such channels. A bank keeps features
 * as float16, so what varies by less than 1/1024 of its mean is rounding [ours]. */
float channel_unit(double mean, double std);

typedef enum ChannelGraph { CHANNEL_OFF, CHANNEL_COVARIANCE, CHANNEL_SOFTMAX } ChannelGraph;

typedef struct DcgaOptions {
    ChannelGraph channel_graph; /* covariance [ours] */
    int rounds;                 /* of pairing and filtering: 2 [ours] */
    int partners;               /* other bank images that each is paired with: 4 [ours] */
    float shrinkage;            /* of the within-object covariance: 0.3 [ours] */
    float channel_strength;     /* lambda_c of the softmax graph: 0.1 [ours] */
    float channel_tau;          /* tau_c: 1 [ours] */
    float object_strength;      /* lambda_o of the object graph: 0 [ours] */
    float object_tau;           /* tau_o: 0.1 [ours] */
} DcgaOptions;

/* The learned form: GATv2 (Brody et al., 2022) [block]; weights of --dcga. */
typedef struct GatWeights {
    const float *w_l, *w_r; /* [d_out][d_in] */
    const float *a;         /* [d_out] */
    const float *b;         /* [d_out] */
    int d_in, d_out;
} GatWeights;

typedef struct Dcga {
    DcgaOptions options;
    int channels;
    float *mean, *std; /* [channels] of the bank's pooled objects */
    float *filter;     /* [channels][channels] L^-1 of the within-object covariance L·Lᵀ, or NULL */
    int has_object_gat;
    GatWeights object_gat; /* over objects: d_in = channels, d_out = channels */
    int has_channel_gat;
    GatWeights
        channel_gat; /* over channels: d_in = the bins of a channel's layout inside the object, d_out any */
} Dcga;

/* Statistics of the bank: pooled [total][channels], centroids [total][2], image i owns objects
 * first[i]..first[i+1]-1. */
int dcga_fit(Dcga *dcga, const DcgaOptions *options, int channels, const float *pooled,
             const float *centroids, const int *first, int n_images, Error *err);
/* Attach learned GATv2 weights ("object.*", "channel.*": lin_l.weight, lin_r.weight, att, bias). */
int dcga_learned(Dcga *dcga, Safetensors *weights, Error *err);
void dcga_free(Dcga *dcga);

/* descriptors [n][channels], unit vectors. features [n_cells][channels] and weights [n][n_cells] are those
 * that pooled was made from (the softmax channel graph and the learned one look at them). with_objects 0:
 * each stands alone in the object graph, for a mask that is not an object of the image (verification in
 * compare.c). */
int dcga_describe(const Dcga *dcga, float *descriptors, const float *pooled, const float *features,
                  const float *weights, int n, int grid_h, int grid_w, int with_objects, Error *err);

/* Mutual nearest neighbours between two sets under score [n][m]: pairs of indices; returns how many (<=
 * min(n, m)). */
int mutual_pairs(int (*pairs)[2], const float *score, int n, int m);

#endif
