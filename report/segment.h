/* segment.h - `samlad segment`: Segment Anything alone, automatic or prompted. */
#ifndef SAMLAD_SEGMENT_H
#define SAMLAD_SEGMENT_H

#include "amg.h"

typedef struct SegmentRequest {
    int n_points;
    const float *points; /* [n_points][2] x, y in pixels */
    const int *labels;   /* [n_points] 1 foreground, 0 background */
    const float *box;    /* [4] x0 y0 x1 y1, or NULL */
    int single;          /* 1: one mask (official multimask_output=False), 0: the three, best first */
    AmgOptions amg;      /* without points and box: automatic masks */
} SegmentRequest;

/* Automatic masks, or the masks of one prompt as records of the same kind (best predicted IoU first). dump:
 * the encoder's and the masks' tensors (METHOD.md 11), or NULL. */
int segment(AmgMasks *out, const Sam *sam, SamState *state, const SegmentRequest *request, const uint8_t *rgb,
            int height, int width, AmgProgress progress, void *user, StWriter *dump, Error *err);

/* PREFIX_masks.png (indexed: 0 = nothing, else 1 + the mask's place in the JSON, from 256 on beginning anew;
 * small masks lie upon large ones), PREFIX_masks.json (the official generator's fields, uncompressed COCO RLE)
 * and PREFIX_masks_overlay.png to look at: the masks on the picture, or a prompt's candidates side by side,
 * best first, with the prompt; at most 4,096 pixels wide. */
int segment_write(const AmgMasks *masks, const SegmentRequest *request, const uint8_t *rgb,
                  const char *prefix, int height, int width, Error *err);

#endif
