/* segment.c - see segment.h. */
#include "library/segment.h"

#include <stdlib.h>
#include <string.h>

#include "bank/dump.h"
#include "io/fail.h"
#include "tensor.h"

/* Area, box (XYWH) and stability of a mask from its logits, as in the official generator. The thresholds are
 * float32 too. An empty mask's stability, 0/0 there, is 0. */
static void measure_mask(AmgMask *mask, const float *logits, int height, int width, float threshold,
                         double offset)
{
    const float high = (float)(threshold + offset), low = (float)(threshold - offset);
    int64_t inside = 0, above = 0, below = 0;
    int x0 = width, x1 = -1, y0 = height, y1 = -1;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, logits++) {
            above += *logits > high;
            below += *logits > low;
            if (!(*logits > threshold))
                continue;
            inside++;
            x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1, y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
        }
    mask->area = inside;
    mask->stability_score = below ? (float)above / (float)below : 0;
    if (inside) { /* the official box has inclusive corners, so one pixel has width 0. */
        const float box[4] = {(float)x0, (float)y0, (float)(x1 - x0), (float)(y1 - y0)};
        memcpy(mask->bbox, box, sizeof box);
    }
}

/* The place of the prompt: its first point, or the middle of its box. */
static void prompt_place(double place[2], const SegmentRequest *request)
{
    const float *box = request->box;
    for (int d = 0; d < 2; d++)
        place[d] = request->n_points > 0 ? request->points[d] : (box[d] + box[d + 2]) / 2;
}

/* Room for one mask at the image's size. */
typedef struct FullMask {
    float *logits; /* [height][width] */
    uint8_t *binary;
} FullMask;

/* low_res [4·grid][4·grid] logits -> the record of the mask at the image's size. */
static int record_mask(AmgMask *mask, FullMask *full, const Sam *sam, const SamImage *image,
                       const float *low_res, const SegmentRequest *request, Error *err)
{
    const int height = image->original_h, width = image->original_w;
    const ptrdiff_t n_pixels = (ptrdiff_t)height * width;
    const float threshold = sam_config(sam)->mask_threshold;
    if (sam_postprocess_masks(sam, image, low_res, full->logits, err))
        return -1;
    for (ptrdiff_t p = 0; p < n_pixels; p++)
        full->binary[p] = full->logits[p] > threshold;
    measure_mask(mask, full->logits, height, width, threshold, request->amg.stability_score_offset);
    prompt_place(mask->point, request);
    mask->crop_box[2] = (float)width, mask->crop_box[3] = (float)height;
    return rle_encode(&mask->segmentation, full->binary, height, width, err);
}

static int better_iou(const void *a, const void *b)
{
    const AmgMask *x = a, *y = b;
    return (x->predicted_iou < y->predicted_iou) - (x->predicted_iou > y->predicted_iou);
}

/* The prompt's n masks: low_res [n][low] of the decoder -> records, best first. */
static int decode_prompt(AmgMasks *out, float *low_res, int n, FullMask *full, const Sam *sam,
                         const SamImage *image, const SegmentRequest *request, Error *err)
{
    const size_t low = 16 * (size_t)image->grid * (size_t)image->grid;
    const SamPrompt prompt = {request->n_points, request->points, request->labels, request->box, NULL};
    float iou[SAM_MAX_MASK_TOKENS] = {0};
    if (sam_decode(sam, image, &prompt, !request->single, low_res, iou, NULL, err) ||
        sam_check_finite(sam, "IoU prediction", iou, n, err) ||
        sam_check_finite(sam, "array of mask logits", low_res, n * low, err))
        return -1;
    for (int i = 0; i < n; i++, out->n++) {
        out->masks[i].predicted_iou = iou[i];
        if (record_mask(&out->masks[i], full, sam, image, low_res + i * low, request, err))
            return -1;
    }
    qsort(out->masks, out->n, sizeof *out->masks, better_iou);
    return 0;
}

static int image_masks(AmgMasks *out, const Sam *sam, const SamImage *image, const SegmentRequest *request,
                       Error *err)
{
    const size_t n_pixels = (size_t)image->original_h * (size_t)image->original_w;
    const size_t low = 16 * (size_t)image->grid * (size_t)image->grid;
    const int n = request->single ? 1 : sam_config(sam)->n_multimask;
    float *low_res = aligned_array(n * low, sizeof *low_res);
    FullMask full = {aligned_array(n_pixels, sizeof *full.logits), aligned_array(n_pixels, 1)};
    out->masks = calloc(n, sizeof *out->masks);
    int status = low_res && full.logits && full.binary && out->masks
                     ? decode_prompt(out, low_res, n, &full, sam, image, request, err)
                     : fail_memory(err, "the masks", n_pixels * 5);
    free(low_res), free(full.logits), free(full.binary);
    if (status)
        amg_masks_free(out);
    return status;
}

int segment_prompted(const SegmentRequest *request)
{
    return request->n_points > 0 || request->box;
}

/* The masks of the request's prompt. */
static int prompted(AmgMasks *out, const Sam *sam, SamState *state, const SegmentRequest *request,
                    const Picture *picture, Error *err)
{
    SamImage image;
    if (sam_encode(sam, state, &image, picture, NULL, err))
        return -1;
    int status = image_masks(out, sam, &image, request, err);
    sam_image_free(&image);
    return status;
}

int segment(AmgMasks *out, const Sam *sam, SamState *state, const SegmentRequest *request,
            const Picture *picture, Error *err)
{
    StWriter *dump = request->dump;
    *out = (AmgMasks){0};
    int status = segment_prompted(request) ? prompted(out, sam, state, request, picture, err)
                                           : amg_generate(sam, state, out, &request->amg, picture,
                                                          request->progress, request->user, err);
    if (!status && dump)
        status = dump_masks(dump, out, picture->height, picture->width, err) ||
                 dump_sam(dump, sam, state, picture, err);
    if (status)
        amg_masks_free(out);
    return status ? -1 : 0;
}
