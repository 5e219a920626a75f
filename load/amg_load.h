/* amg_load.h - options of automatic mask generation, and the options that a SAM's weights recommend. */
#ifndef SAMLAD_AMG_LOAD_H
#define SAMLAD_AMG_LOAD_H

#include "io/error.h"
#include "io/safetensors.h"

/* Thresholds are double because Python's are. A box overlap is compared with 0.7, not with 0.7f, and the
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
    int crop_own_points;      /* 0; 1 [ours]: where crops of a layer overlap, only the crop with the nearest
                                 centre is asked at a point. */
    int min_mask_region_area; /* 0 */
} AmgOptions;

/* Limits of the values that weights or users may give; options.c has the same. */
enum {
    AMG_MAX_POINTS_PER_SIDE = 1024,
    AMG_MAX_CROP_LAYERS = 6,  /* 5,461 crops */
    AMG_MAX_POINTS = 1 << 24, /* in all crops together: takes hours, but does not overflow. */
    AMG_MAX_REGION_AREA = 1 << 30,
    AMG_MAX_LOGIT = 1000 /* of the predicted IoU's threshold and the stability score's offset. */
};

/* The purpose of the masks. For viewing, every part should be among the masks, even if a part is there twice.
 * As the method's objects (docs/METHOD.md 4), each part should be there once, because doubles get lost in
 * matching. */
typedef enum AmgUse { AMG_FOR_MASKS, AMG_FOR_OBJECTS } AmgUse;

/* Official defaults, then the values that the weights' metadata recommends (the shipped tiny SAM has some).
 * Metadata amg.* is for any use. Metadata objects.* of the same names is for the method's objects only
 * [ours]. No metadata recommends crop_overlap_ratio. */
void amg_defaults(AmgOptions *options);
int amg_recommended(AmgOptions *options, AmgUse use, const Safetensors *weights, Error *err);

#endif
