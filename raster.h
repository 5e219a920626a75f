/* raster.h - the layout of an object: what lies where in it [ours] (docs/METHOD.md 6).
 *
 * A descriptor is a mean under a mask, so it forgets what lies where: a mirrored part and its original have the
 * same. A raster keeps it: 4x4 parts of the object's box, each with its mean feature, in a few principal channels.
 * An object is compared with its neighbours, the most similar objects of the normal images. Its raster is unusual
 * if it is far from theirs, and not merely far from all rasters. */
#ifndef SAMLAD_RASTER_H
#define SAMLAD_RASTER_H

#include "dcga.h"
#include "io/error.h"

enum {
    RASTER_SIDE = 4,
    RASTER_BINS = RASTER_SIDE * RASTER_SIDE,
    RASTER_MOST_CHANNELS = 8,    /* principal channels [ours] */
    RASTER_MOST_NEIGHBOURS = 64, /* of an object [ours] */
    RASTER_MOST_SAMPLES = 500    /* objects that give the principal channels [ours] */
};

/* The statistics of a bank's rasters. dim is RASTER_BINS*kept, 0 in a bank without rasters. */
typedef struct Raster {
    int channels, kept, dim;
    float *mean, *basis; /* [C] mean of the parts, [kept][C] orthonormal rows: the principal channels. */
    float *within;       /* [dim][dim] L^-1 of the rasters' covariance about the mean of their neighbours. */
    float *centre, *all; /* [dim] mean of all rasters, [dim][dim] L^-1 of their covariance. */
    Arena memory;
} Raster;

/* 0, or -1: no memory. Free it in either case. */
int raster_new(Raster *raster, int channels, Error *err);
void raster_free(Raster *raster);

/* The sums of the parts of some objects: their number, sums [C], products [C][C] (lower triangle). */
typedef struct RasterMoments {
    double n, *sum, *product;
    Arena memory;
} RasterMoments;
int raster_moments_new(RasterMoments *moments, int channels, Error *err);
/* bins [RASTER_BINS][C] is scratch. */
void raster_add(RasterMoments *moments, const Objects *o, ptrdiff_t i, float *bins);
/* mean and basis from the sums. 0, or -1: no memory. */
int raster_principal(Raster *raster, const RasterMoments *moments, Error *err);
void raster_moments_free(RasterMoments *moments);

/* vector [dim]: the raster of object i. bins [RASTER_BINS][C] is scratch. */
void raster_vector(const Raster *raster, float *vector, const Objects *o, ptrdiff_t i, float *bins);

/* The neighbours of each object of an image: in every other image the object with the largest S, then the
 * best 70 % of these, at most RASTER_MOST_NEIGHBOURS. */
typedef struct Neighbours {
    int n, m;      /* objects, neighbours of each */
    int *found;    /* [n][m] objects of the bank */
    float *mutual; /* [n] part of the images whose most similar object finds it the most similar, too. */
    Arena memory;
} Neighbours;
/* images [n_images] have descriptors and centroids. Image a owns the bank's objects first[a] ..
 * first[a+1]-1. Only the images in `allowed` [n_allowed] give neighbours. 0, or -1: no memory. */
typedef struct NeighbourSearch {
    const Objects *images;
    const int *first, *allowed;
    int n_allowed;
    float position_weight;
} NeighbourSearch;
int raster_neighbours(Neighbours *neighbours, const Objects *mine, const NeighbourSearch *search, Error *err);
void neighbours_free(Neighbours *neighbours);

/* The number of neighbours that n other images with objects give: 70 %, 1 to RASTER_MOST_NEIGHBOURS. */
int raster_n_neighbours(int n_images);
/* m/(m + 33): what m neighbours tell about their covariance, and once more about what is usual [ours]. */
double raster_share(int m);

/* mean [dim] of the vectors [..][dim] of some objects [m]. */
void raster_mean(float *mean, const float *vectors, const int *objects, int m, int dim);
/* within, centre and all from n vectors and their deviations from the mean of their neighbours, both
 * [n][dim]. 0, or -1: no memory. */
int raster_fit(Raster *raster, const float *vectors, const float *deviations, int n, Error *err);
/* y [n][dim] = within·x [n][dim]. */
void raster_whiten(const Raster *raster, float *y, const float *x, int n);

/* q: how far a raster is from its neighbours', less how far it is from all. vector [dim]; whitened [..][dim]
 * of the bank's objects, of which `found` [m] are the neighbours. 0, or -1: no memory. */
int raster_distance(float *q, const Raster *raster, const float *vector, const float *whitened,
                    const int *found, int m, Error *err);

/* The unit of q among the neighbours' own q: the distance of their 95 % quantile from their median, or 2.44
 * times that of their 75 % quantile, if this is larger. scores [..] of the bank's objects. scratch [m]; it
 * holds the neighbours' q in order. */
float raster_unit(const float *scores, const int *found, int m, float *scratch);

#endif
