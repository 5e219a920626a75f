/* amg.h - automatic mask generation (segment_anything/automatic_mask_generator.py): same options, same
 * defaults, same masks in the same order. The options are in load/amg_load.h. */
#ifndef SAMLAD_AMG_H
#define SAMLAD_AMG_H

#include "io/rle.h"
#include "load/amg_load.h"
#include "sam.h"

/* One record of the official generator's output. */
typedef struct AmgMask {
    Rle segmentation;
    int64_t area;
    float bbox[4]; /* XYWH */
    float predicted_iou, stability_score;
    double point[2];   /* the prompt, original pixels. */
    float crop_box[4]; /* XYWH */
} AmgMask;

typedef struct AmgMasks {
    AmgMask *masks;
    size_t n;
} AmgMasks;

typedef void (*AmgProgress)(void *user, int done, int total);

/* SamAutomaticMaskGenerator.generate: all masks of a picture. Free *out with amg_masks_free. progress (or
 * NULL) counts points. Only the caller's thread calls it, each time with a larger count. 0 / -1. */
int amg_generate(const Sam *sam, SamState *state, AmgMasks *out, const AmgOptions *options,
                 const Picture *picture, AmgProgress progress, void *user, Error *err);
void amg_masks_free(AmgMasks *masks);

/* remove_small_regions' mode: "holes" fills the holes of a mask, "islands" erases its islands. */
typedef enum RegionMode { REGION_HOLES, REGION_ISLANDS } RegionMode;

/* remove_small_regions, of less than min_area pixels, 8-connected. If every island is small, the largest
 * stays. *changed: was anything filled or erased? 0 / -1. */
int amg_remove_small_regions(Rle *rle, int min_area, RegionMode mode, int *changed, Error *err);

#endif
