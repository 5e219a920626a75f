/* segment.c - see segment.h. */
#include "report/segment.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"
#include "io/json.h"
#include "bank/scene.h"
#include "tensor.h"

/* Box (XYWH) and stability of a mask from its logits, as the official generator has them (its thresholds are
 * float32 numbers too; an empty mask's stability, 0/0 there, is 0). */
static void measure_mask(AmgMask *mask, const float *logits, int height, int width, float threshold,
                         double offset)
{
    const float high = (float)(threshold + offset), low = (float)(threshold - offset);
    int64_t inside = 0, above = 0, below = 0;
    int x0 = width, x1 = -1, y0 = height, y1 = -1;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            float v = logits[(size_t)y * (size_t)width + (size_t)x];
            above += v > high;
            below += v > low;
            if (!(v > threshold))
                continue;
            inside++;
            x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1, y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
        }
    mask->area = inside;
    mask->stability_score = below ? (float)above / (float)below : 0;
    if (inside) /* the official box: inclusive corners, so one pixel has width 0 */
        mask->bbox[0] = (float)x0, mask->bbox[1] = (float)y0, mask->bbox[2] = (float)(x1 - x0),
        mask->bbox[3] = (float)(y1 - y0);
}

static int better_iou(const void *a, const void *b)
{
    float x = ((const AmgMask *)a)->predicted_iou, y = ((const AmgMask *)b)->predicted_iou;
    return (x < y) - (x > y);
}

static int record(AmgMask *mask, const Sam *sam, const SamImage *image, const float *low_res, float *logits,
                  uint8_t *binary, const SegmentRequest *request, Error *err)
{
    int height = image->original_h, width = image->original_w;
    if (sam_postprocess_masks(sam, image, low_res, logits, err))
        return -1;
    float threshold = sam_config(sam)->mask_threshold;
    for (size_t p = 0; p < (size_t)height * (size_t)width; p++)
        binary[p] = logits[p] > threshold;
    measure_mask(mask, logits, height, width, threshold, request->amg.stability_score_offset);
    if (request->n_points > 0)
        mask->point[0] = request->points[0], mask->point[1] = request->points[1];
    else if (request->box)
        mask->point[0] = (request->box[0] + request->box[2]) / 2,
        mask->point[1] = (request->box[1] + request->box[3]) / 2;
    mask->crop_box[2] = (float)width, mask->crop_box[3] = (float)height;
    return rle_encode(&mask->segmentation, binary, height, width, err);
}

static int prompted(AmgMasks *out, const Sam *sam, const SamImage *image, const SegmentRequest *request,
                    Error *err)
{
    size_t pixels = (size_t)image->original_h * (size_t)image->original_w,
           low = 16 * (size_t)image->grid * (size_t)image->grid;
    int n = request->single ? 1 : sam_config(sam)->n_multimask, status = 0;
    float *low_res = aligned_array((size_t)n * low, sizeof(float)),
          *logits = aligned_array(pixels, sizeof(float)), iou[SAM_MAX_MASK_TOKENS] = {0};
    uint8_t *binary = aligned_array(pixels, 1);
    out->masks = calloc((size_t)n, sizeof *out->masks);
    if (!low_res || !logits || !binary || !out->masks)
        status = fail_memory(err, "the masks", pixels * 5);
    SamPrompt prompt = {request->n_points, request->points, request->labels, request->box, NULL};
    if (!status)
        status = sam_decode(sam, image, &prompt, !request->single, low_res, iou, NULL, err) ||
                 sam_check_finite(sam, "IoU prediction", iou, (size_t)n, err) ||
                 sam_check_finite(sam, "array of mask logits", low_res, (size_t)n * low, err);
    for (int i = 0; i < n && !status; i++) {
        out->masks[i].predicted_iou = iou[i];
        status = record(&out->masks[i], sam, image, low_res + (size_t)i * low, logits, binary, request, err);
        out->n += status == 0;
    }
    if (!status)
        qsort(out->masks, out->n, sizeof *out->masks, better_iou);
    free(low_res), free(logits), free(binary);
    if (status)
        amg_masks_free(out);
    return status;
}

int segment(AmgMasks *out, const Sam *sam, SamState *state, const SegmentRequest *request, const uint8_t *rgb,
            int height, int width, AmgProgress progress, void *user, StWriter *dump, Error *err)
{
    const SamPicture picture = {rgb, height, width};
    *out = (AmgMasks){0};
    if (request->n_points == 0 && !request->box) {
        if (amg_generate(sam, state, out, &request->amg, &picture, progress, user, err))
            return -1;
    } else {
        SamImage image;
        if (sam_encode(sam, state, &image, &picture, NULL, err))
            return -1;
        int status = prompted(out, sam, &image, request, err);
        sam_image_free(&image);
        if (status)
            return -1;
    }
    if (dump &&
        (dump_masks(dump, out, height, width, err) || dump_sam(sam, state, rgb, height, width, dump, err))) {
        amg_masks_free(out);
        return -1;
    }
    return 0;
}

/* ================================================================================================
 * Files
 * ============================================================================================== */

/* Colours that neighbours in number do not share: hue by the golden angle. */
static void palette_color(uint8_t rgb[3], int i)
{
    double hue = fmod(i * 0.61803398875, 1) * 6, value = 255 - 60 * (i % 3), f = hue - floor(hue);
    double v[6][3] = {{1, f, 0}, {1 - f, 1, 0}, {0, 1, f}, {0, 1 - f, 1}, {f, 0, 1}, {1, 0, 1 - f}};
    for (int c = 0; c < 3; c++)
        rgb[c] = (uint8_t)(value * (0.25 + 0.75 * v[(int)hue % 6][c]));
}

static int larger_mask(const void *a, const void *b)
{
    const AmgMask *x = *(const AmgMask *const *)a, *y = *(const AmgMask *const *)b;
    return x->area != y->area ? (x->area < y->area ? 1 : -1) : (x > y) - (x < y);
}

/* labels [height][width]: 0 nothing, 1 + i mask i, the smaller upon the larger. */
static int paint_masks(int32_t *labels, const AmgMasks *masks, int height, int width, Error *err)
{
    const size_t pixels = (size_t)height * (size_t)width;
    uint8_t *mask = aligned_array(pixels, 1);
    const AmgMask **order = aligned_array(masks->n + 1, sizeof(*order));
    int status = mask && order ? 0 : fail_memory(err, "the masks' picture", pixels);
    memset(labels, 0, pixels * sizeof *labels);
    for (size_t i = 0; i < masks->n && !status; i++)
        order[i] = &masks->masks[i];
    if (!status && masks->n)
        qsort(order, masks->n, sizeof *order, larger_mask);
    for (size_t i = 0; i < masks->n && !status; i++) {
        rle_decode(mask, &order[i]->segmentation);
        for (size_t p = 0; p < pixels; p++)
            if (mask[p])
                labels[p] = (int32_t)(1 + (order[i] - masks->masks));
    }
    free(mask), free(order);
    return status;
}

/* Colours recur after 255 masks. */
static int color_of(int32_t label)
{
    return label > 0 ? 1 + (label - 1) % 255 : 0;
}

/* [256][3]: black, then colours. */
static void fill_palette(uint8_t palette[256][3])
{
    memset(palette[0], 0, 3);
    for (int i = 1; i < 256; i++)
        palette_color(palette[i], i);
}

static int write_png(const int32_t *labels, const char *path, int height, int width, Error *err)
{
    const size_t pixels = (size_t)height * (size_t)width;
    uint8_t palette[256][3], *indices = aligned_array(pixels, 1);
    if (!indices)
        return fail_memory(err, "the masks' picture", pixels);
    for (size_t p = 0; p < pixels; p++)
        indices[p] = (uint8_t)color_of(labels[p]);
    fill_palette(palette);
    const int status = png_write_indexed(path, indices, width, height, &palette[0][0], 256, NULL, err);
    free(indices);
    return status;
}

/* ---- to look at -------------------------------------------------------------------------------*/

enum { WIDEST = 4096 }; /* pixels of an overlay */

/* One panel or several side by side, each the photo, of which every step-th pixel is taken. */
typedef struct Overlay {
    uint8_t *rgb; /* [h][panels·w][3] */
    int w, h, panels, step;
    uint8_t palette[256][3];
} Overlay;

static void put_pixel(Overlay *o, int panel, int x, int y, const uint8_t color[3])
{
    if (x >= 0 && y >= 0 && x < o->w && y < o->h)
        memcpy(o->rgb + 3 * ((size_t)y * (size_t)o->w * (size_t)o->panels + (size_t)(panel * o->w + x)),
               color, 3);
}

/* The photo, darker where no mask lies, else tinted; white where two labels meet. */
static void draw_panel(Overlay *o, int panel, const int32_t *labels, const uint8_t *rgb, int width)
{
    static const uint8_t white[3] = {255, 255, 255};
    for (int y = 0; y < o->h; y++)
        for (int x = 0; x < o->w; x++) {
            const size_t at = (size_t)(y * o->step) * (size_t)width + (size_t)(x * o->step);
            const int32_t right = x + 1 < o->w ? labels[at + (size_t)o->step] : labels[at],
                          below = y + 1 < o->h ? labels[at + (size_t)o->step * (size_t)width] : labels[at];
            const uint8_t *tint = o->palette[color_of(labels[at])];
            uint8_t color[3];
            for (int c = 0; c < 3; c++)
                color[c] = (uint8_t)((rgb[3 * at + (size_t)c] + tint[c]) / 2);
            put_pixel(o, panel, x, y, labels[at] != right || labels[at] != below ? white : color);
        }
}

/* Points that should lie inside are green, others red, and the box yellow. */
static void draw_prompt(Overlay *o, int panel, const SegmentRequest *request)
{
    static const uint8_t green[3] = {60, 220, 90}, red[3] = {235, 50, 50}, yellow[3] = {255, 220, 40},
                         black[3] = {0, 0, 0};
    const int longer = o->w > o->h ? o->w : o->h, radius = 3 + longer / 150, thick = 1 + longer / 500;
    const float s = 1 / (float)o->step, *b = request->box;
    for (int i = 0; i < request->n_points; i++) {
        const int cx = (int)(request->points[2 * i] * s), cy = (int)(request->points[2 * i + 1] * s);
        for (int y = -radius - 1; y <= radius + 1; y++)
            for (int x = -radius - 1; x <= radius + 1; x++)
                if (hypot(x, y) < radius + 1)
                    put_pixel(o, panel, cx + x, cy + y,
                              hypot(x, y) >= radius - 1 ? black
                              : request->labels[i]      ? green
                                                        : red);
    }
    if (!b)
        return;
    /* the box may reach far beyond the picture */
    const int x0 = (int)fmaxf(b[0] * s, -1), x1 = (int)fminf(b[2] * s, (float)o->w);
    const int y0 = (int)fmaxf(b[1] * s, -1), y1 = (int)fminf(b[3] * s, (float)o->h);
    for (int t = 0; t < thick; t++) {
        for (int x = x0; x <= x1; x++)
            put_pixel(o, panel, x, y0 + t, yellow), put_pixel(o, panel, x, y1 - t, yellow);
        for (int y = y0; y <= y1; y++)
            put_pixel(o, panel, x0 + t, y, yellow), put_pixel(o, panel, x1 - t, y, yellow);
    }
}

/* A prompt's candidates overlap, so each has a panel of its own. labels: of all masks, then scratch. */
static int write_overlay(int32_t *labels, const AmgMasks *masks, const SegmentRequest *request,
                         const uint8_t *rgb, const char *path, int height, int width, Error *err)
{
    const int prompted = request->n_points > 0 || request->box,
              panels = prompted && masks->n ? (int)masks->n : 1;
    const int step = (int)(((int64_t)panels * width + WIDEST - 1) / WIDEST);
    Overlay o = {
        .w = (width + step - 1) / step, .h = (height + step - 1) / step, .panels = panels, .step = step};
    fill_palette(o.palette);
    o.rgb = aligned_array((size_t)o.w * (size_t)o.h * (size_t)panels, 3);
    int status = o.rgb ? 0 : fail_memory(err, "the masks' overlay", (size_t)o.w * (size_t)o.h * 3);
    for (int i = 0; i < panels && !status; i++) {
        const AmgMasks one = {.masks = masks->masks + i, .n = 1};
        if (panels > 1)
            status = paint_masks(labels, &one, height, width, err);
        if (!status)
            draw_panel(&o, i, labels, rgb, width), draw_prompt(&o, i, request);
    }
    if (!status)
        status = png_write(path, o.rgb, o.w * panels, o.h, 3, 8, err);
    free(o.rgb);
    return status;
}

static int write_json(const AmgMasks *masks, const char *path, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    json_open(&w, '[');
    for (size_t i = 0; i < masks->n; i++) {
        const AmgMask *m = &masks->masks[i];
        json_open(&w, '{');
        json_key(&w, "segmentation");
        rle_json(&m->segmentation, &w);
        json_key(&w, "area"), json_int(&w, m->area);
        json_floats(&w, "bbox", m->bbox, 4);
        json_key(&w, "predicted_iou"), json_float(&w, m->predicted_iou);
        json_key(&w, "point_coords");
        json_open(&w, '[');
        json_open(&w, '[');
        json_number(&w, m->point[0]), json_number(&w, m->point[1]);
        json_close(&w, ']');
        json_close(&w, ']');
        json_key(&w, "stability_score"), json_float(&w, m->stability_score);
        json_floats(&w, "crop_box", m->crop_box, 4);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    int status = w.failed ? fail_memory(err, "the masks' JSON", w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

int segment_write(const AmgMasks *masks, const SegmentRequest *request, const uint8_t *rgb,
                  const char *prefix, int height, int width, Error *err)
{
    char json[4096], png[4096], overlay[4096];
    const size_t pixels = (size_t)height * (size_t)width;
    if (snprintf(overlay, sizeof overlay, "%s_masks_overlay.png", prefix) >= (int)sizeof overlay ||
        snprintf(json, sizeof json, "%s_masks.json", prefix) < 0 ||
        snprintf(png, sizeof png, "%s_masks.png", prefix) < 0)
        return fail(err, "%s: the path is too long", prefix);
    int32_t *labels = aligned_array(pixels, sizeof *labels);
    if (!labels)
        return fail_memory(err, "the masks' picture", pixels * sizeof *labels);
    int status = write_json(masks, json, err) || paint_masks(labels, masks, height, width, err) ||
                 write_png(labels, png, height, width, err) ||
                 write_overlay(labels, masks, request, rgb, overlay, height, width, err);
    free(labels);
    return status ? -1 : 0;
}
