/* segment.h - the files of `samlad segment`. */
#ifndef SAMLAD_REPORT_SEGMENT_H
#define SAMLAD_REPORT_SEGMENT_H

#include "library/segment.h"

/* Write three files:
 *   PREFIX_masks.png          indexed: 0 is no mask, else 1 + the mask's place in the JSON; from 256 on the
 *                             numbers begin again with 1; small masks lie on top of large ones.
 *   PREFIX_masks.json         the official generator's fields, masks as uncompressed COCO RLE.
 *   PREFIX_masks_overlay.png  the masks on the picture, or a prompt's candidates side by side, best first, with
 *                             the prompt; at most 4,096 pixels wide. */
int segment_write(const char *prefix, const AmgMasks *masks, const SegmentRequest *request,
                  const Picture *picture, Error *err);

#endif
