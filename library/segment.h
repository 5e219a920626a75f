/* segment.h - Segment Anything alone: all masks of an image, or the masks of one prompt. */
#ifndef SAMLAD_LIBRARY_SEGMENT_H
#define SAMLAD_LIBRARY_SEGMENT_H

#include "amg.h"

typedef struct SegmentRequest {
    int n_points;
    const float *points;  /* [n_points][2] x, y in pixels */
    const int *labels;    /* [n_points] 1 foreground, 0 background */
    const float *box;     /* [4] x0 y0 x1 y1, or NULL */
    int single;           /* 1: one mask (official multimask_output=False), 0: three, best first. */
    AmgOptions amg;       /* a request without points and box asks for automatic masks, with these options. */
    AmgProgress progress; /* of automatic masks, or NULL. */
    void *user;           /* for progress */
    StWriter *dump;       /* the encoder's and the masks' tensors (docs/METHOD.md 11), or NULL. */
} SegmentRequest;

/* 1 if the request has a point or a box. */
int segment_prompted(const SegmentRequest *request);

/* Automatic masks, or the masks of one prompt as records of the same kind, the best predicted IoU first. Free
 * *out with amg_masks_free. */
int segment(AmgMasks *out, const Sam *sam, SamState *state, const SegmentRequest *request,
            const Picture *picture, Error *err);

#endif
