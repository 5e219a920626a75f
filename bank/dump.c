/* dump.c - see dump.h. */
#include "bank/dump.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "tensor.h"

int dump_floats(StWriter *dump, const char *name, int n_dims, const int64_t *shape, const float *data,
                Error *err)
{
    return dump ? st_writer_copy(dump, name, ST_F32, n_dims, shape, data, err) : 0;
}

void dump_tap(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    DumpTap *tap = user;
    if (!tap->status)
        tap->status = dump_floats(tap->dump, name, n_dims, shape, data, tap->err);
}

/* ================================================================================================
 * Segment Anything
 * ============================================================================================== */

static int dump_segmentations(StWriter *dump, const AmgMasks *masks, int height, int width, Error *err)
{
    const size_t n_pixels = (size_t)height * (size_t)width;
    uint8_t *all = aligned_array(masks->n * n_pixels + 1, 1);
    if (!all)
        return fail_memory(err, "the dump of the masks", masks->n * n_pixels);
    for (size_t i = 0; i < masks->n; i++)
        rle_decode(all + i * n_pixels, &masks->masks[i].segmentation);
    const int64_t shape[3] = {(int64_t)masks->n, height, width};
    int status = st_writer_copy(dump, "sam.masks", ST_U8, 3, shape, all, err);
    free(all);
    return status;
}

static int dump_records(StWriter *dump, const AmgMasks *masks, Error *err)
{
    const size_t n = masks->n;
    float *iou = aligned_array(8 * n + 1, sizeof *iou);
    if (!iou)
        return fail_memory(err, "the dump of the masks", 8 * n * sizeof *iou);
    float *stability = iou + n, *boxes = stability + n, *points = boxes + 4 * n;
    for (size_t i = 0; i < n; i++) {
        const AmgMask *m = &masks->masks[i];
        iou[i] = m->predicted_iou;
        stability[i] = m->stability_score;
        memcpy(boxes + 4 * i, m->bbox, sizeof m->bbox);
        points[2 * i] = (float)m->point[0], points[2 * i + 1] = (float)m->point[1];
    }
    const int64_t count = (int64_t)n;
    int status = dump_floats(dump, "sam.iou_predictions", 1, &count, iou, err) ||
                 dump_floats(dump, "sam.stability_scores", 1, &count, stability, err) ||
                 dump_floats(dump, "sam.boxes", 2, (int64_t[]){count, 4}, boxes, err) ||
                 dump_floats(dump, "sam.points", 2, (int64_t[]){count, 2}, points, err);
    free(iou);
    return status ? -1 : 0;
}

int dump_masks(StWriter *dump, const AmgMasks *masks, int height, int width, Error *err)
{
    return dump_segmentations(dump, masks, height, width, err) || dump_records(dump, masks, err) ? -1 : 0;
}

/* Passes on two of the encoder's tensors: the network's input and the embedding. */
static void encoder_tap(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    if (strcmp(name, "sam.pixels") == 0 || strcmp(name, "sam.embedding") == 0)
        dump_tap(user, name, n_dims, shape, data);
}

int dump_sam(StWriter *dump, const Sam *sam, SamState *state, const Picture *picture, Error *err)
{
    DumpTap tap = {.dump = dump, .err = err};
    SamImage image;
    if (sam_encode(sam, state, &image, picture, &(SamTap){encoder_tap, &tap}, err))
        return -1;
    sam_image_free(&image);
    return tap.status;
}

/* ================================================================================================
 * Objects
 * ============================================================================================== */

int dump_objects(StWriter *dump, const Objects *o, Error *err)
{
    const int64_t n = o->n, h = o->grid_h, w = o->grid_w, C = o->channels;
    return dump_floats(dump, "objects.weights", 3, (int64_t[]){n, h, w}, o->coverage, err) ||
                   dump_floats(dump, "objects.pooled", 2, (int64_t[]){n, C}, o->pooled, err) ||
                   dump_floats(dump, "objects.centroids", 2, (int64_t[]){n, 2}, o->centroids, err)
               ? -1
               : 0;
}
