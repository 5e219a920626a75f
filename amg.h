/* amg.h - automatic mask generation (segment_anything/automatic_mask_generator.py): same options, same
 * defaults, same masks in the same order. */
#ifndef SAMLAD_AMG_H
#define SAMLAD_AMG_H

#include "io/rle.h"
#include "sam.h"

/* Thresholds are double because Python's are: a box overlap is compared with 0.7, not with 0.7f, and the
 * crops' overlap is truncated to an integer. */
typedef struct AmgOptions {
    int points_per_side;                /* 32 */
    double pred_iou_thresh;             /* 0.88 */
    double stability_score_thresh;      /* 0.95 */
    double stability_score_offset;      /* 1.0 */
    double box_nms_thresh;              /* 0.7 */
    int crop_n_layers;                  /* 0 */
    double crop_nms_thresh;             /* 0.7 */
    double crop_overlap_ratio;          /* 512/1500 */
    int crop_n_points_downscale_factor; /* 1 */
    int crop_own_points;      /* 0 [ours]: 1: a crop is asked only at the points that lie nearer to its
                                 middle than to another's of its layer, where two would be asked */
    int min_mask_region_area; /* 0 */
} AmgOptions;

/* Limits of what weights or users may ask for; options.c has the same. */
enum {
    AMG_MAX_POINTS_PER_SIDE = 1024,
    AMG_MAX_CROP_LAYERS = 6,  /* 5,461 crops */
    AMG_MAX_POINTS = 1 << 24, /* in all crops together: hours, and no overflow */
    AMG_MAX_REGION_AREA = 1 << 30,
    AMG_MAX_LOGIT = 1000 /* of the predicted IoU's threshold and the stability score's offset */
};

/* What the masks are for. To look at: every part should be among them, though something may be there twice.
 * To become the method's objects (METHOD.md 4): each thing once, for doubles get lost in its matching. */
typedef enum AmgUse { AMG_FOR_MASKS, AMG_FOR_OBJECTS } AmgUse;

/* Official defaults, then what the weights' metadata recommends (the shipped tiny SAM has some): amg.* for
 * any use, for the method's objects then objects.* of the same names [ours]; of crop_overlap_ratio none
 * does. */
void amg_defaults(AmgOptions *options);
int amg_recommended(AmgOptions *options, AmgUse use, const Safetensors *weights, Error *err);

/* One record of the official generator's output. */
typedef struct AmgMask {
    Rle segmentation;
    int64_t area;
    float bbox[4]; /* XYWH */
    float predicted_iou, stability_score;
    double point[2];   /* the prompt, original pixels */
    float crop_box[4]; /* XYWH */
} AmgMask;

typedef struct AmgMasks {
    AmgMask *masks;
    size_t n;
} AmgMasks;

typedef void (*AmgProgress)(void *user, int done, int total);

/* All masks of rgb uint8 [h][w][3]. *out is to be freed with amg_masks_free. progress (or NULL) counts
 * points; the caller's thread calls it, each time with more of them. 0 / -1. */
int amg_generate(const Sam *sam, SamState *state, AmgMasks *out, const AmgOptions *options,
                 const uint8_t *rgb, int h, int w, AmgProgress progress, void *user, Error *err);
void amg_masks_free(AmgMasks *masks);

/* remove_small_regions of the official package: fill the mask's holes (islands 0), or erase its islands
 * (1), of less than min_area pixels, 8-connected. When every island is small the largest stays.
 * *changed: was there any? 0 / -1. */
int amg_remove_small_regions(Rle *rle, int min_area, int islands, int *changed, Error *err);

#endif
