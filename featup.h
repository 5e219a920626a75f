/* featup.h - FeatUp's joint bilateral upsampling, and features on the maps' grid (docs/METHOD.md 3). */
#ifndef SAMLAD_FEATUP_H
#define SAMLAD_FEATUP_H

#include "io/error.h"
#include "load/featup_load.h"
#include "tensor.h"

/* Low-resolution features and the image that guides them to a higher resolution. */
typedef struct FeatupInput {
    const float *source;   /* [h][w][channels]: the ViT's patches */
    int h, w, channels;    /* each 1 to 65,536 */
    const float *guidance; /* [3][guidance_h][guidance_w]: the ViT's normalised pixels, at any size. */
    int guidance_h, guidance_w;
} FeatupInput;

/* source -> out [h*2^stages][w*2^stages][channels]. featup NULL: bilinear to that size. stages 0: a copy.
 * The stack's own fixup_proj applies only to 4 stages on the channels that it was trained for.
 * 0 / -1 (memory, more stages than the stack has, a size out of range). */
int featup_upsample(const Featup *featup, float *out, const FeatupInput *in, int stages, Error *err);

/* The grid of maps and objects. */
typedef struct GridSize {
    int h, w;
} GridSize;

/* source -> grid [size.h][size.w][channels]: featup_upsample, then the mean of each cell. A grid finer than
 * the upsampled features is their bilinear enlargement. back: how many upsampled cells source and guidance are
 * displaced up and left, to be moved back; 0: none. Fails as featup_upsample. */
int features_to_grid(float *grid, GridSize size, const Featup *featup, const FeatupInput *in, int stages,
                     int back, Error *err);

/* ---- steps that the fast form shares (fast/featup_fold.c) ---------------------------------------------*/

/* 0 if these arguments of featup_upsample are valid, else -1 and a sentence. */
int featup_check(const Featup *featup, const FeatupInput *in, int stages, Error *err);
/* One stage: in's source -> result [2h][2w][channels]. 0 / -1 (memory). */
typedef int FeatupStage(float *result, const JbuLearnedRange *up, const FeatupInput *in, Error *err);
/* featup_upsample with this form of its stage: featup.c's own, or the folded one. */
int featup_stack(const Featup *featup, float *out, const FeatupInput *in, int stages, FeatupStage *stage,
                 Error *err);
/* The softmax's factor, and the spatial kernel. */
float featup_range_factor(const JbuLearnedRange *up);
void featup_spatial_kernel(float kernel[FEATUP_TAPS], const JbuLearnedRange *up);
/* The guidance at a stage's size: pooled [h][w][3]; plane [h][w] is scratch. */
void featup_pool_guidance(float *pooled, int h, int w, const FeatupInput *in, float *plane);
/* Move x [h][w][channels] down and right by `by`; the first row and column fill the place [ours]. */
void features_move_back(float *x, int h, int w, int channels, int by);
/* upsampled [h][w][channels] -> grid, the last step of features_to_grid. */
void features_resize(float *grid, GridSize size, const float *upsampled, int h, int w, int channels);
/* torch's padding 'reflect': ... 2 1 | 0 1 2 ... n-1 | n-2 ...; n is at least 2. */
int featup_reflect(int i, int n);

#endif
