/* segment.h - the files of `samlad segment`. */
#ifndef SAMLAD_REPORT_SEGMENT_H
#define SAMLAD_REPORT_SEGMENT_H

#include "library/segment.h"

/* How the masks are written: output_mode of the official generator. */
typedef enum MasksForm { MASKS_UNCOMPRESSED_RLE, MASKS_COCO_RLE, MASKS_BINARY, MASKS_FORMS } MasksForm;
extern const char *const masks_form_names[MASKS_FORMS]; /* "uncompressed_rle" */

/* Write
 *   PREFIX_masks.png          indexed: 0 is no mask, else 1 + the mask's place in the records; from 256 on the
 *                             numbers begin again with 1; small masks lie on top of large ones.
 *   PREFIX_masks_overlay.png  the masks on the picture, or a prompt's candidates side by side, best first, with
 *                             the prompt; at most 4,096 pixels wide.
 *   PREFIX_masks.json         the official generator's fields, masks as COCO RLE; or, for MASKS_BINARY,
 *   PREFIX/                   the files of the official scripts/amg.py: 0.png, 1.png, ... (0 and 255), and
 *                             metadata.csv, written last. */
int segment_write(const char *prefix, const AmgMasks *masks, MasksForm form, const SegmentRequest *request,
                  const Picture *picture, Error *err);

#endif
