/* io/rle.h - COCO's run-length encoding of binary masks (column-major, begins with zeros): uncompressed, the output
 * of mask_to_rle_pytorch in segment_anything/utils/amg.py, and compressed, that of coco_encode_rle there. */
#ifndef SAMLAD_IO_RLE_H
#define SAMLAD_IO_RLE_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"
#include "io/json.h"

typedef struct Rle {
    int height, width;
    uint32_t *counts; /* [n_counts], sum = height·width. */
    size_t n_counts;
} Rle;

int rle_encode(Rle *rle, const uint8_t *mask /* [height][width] 0 or not. */, int height, int width,
               Error *err);
/* Encode a mask that is 0 outside of the box x0 y0 x1 y1 (the last included); only the box is read. x1 <
 * x0: it is 0 everywhere. */
int rle_encode_box(Rle *rle, const uint8_t *mask, int height, int width, const int box[4], Error *err);
void rle_decode(uint8_t *mask /* [height][width] 0/1 */, const Rle *rle);
int64_t rle_area(const Rle *rle);
void rle_free(Rle *rle);
void rle_json(const Rle *rle, JsonWriter *w); /* {"size":[h,w],"counts":[...]} */
/* The counts as pycocotools' string (rleToString of maskApi.c). malloc'd; NULL: no memory. */
char *rle_string(const Rle *rle);
/* {"size":[h,w],"counts":"..."}: pycocotools.mask.decode reads it. */
void rle_json_compressed(const Rle *rle, JsonWriter *w);

#endif
