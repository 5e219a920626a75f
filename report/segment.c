/* segment.c - see segment.h. */
#include "report/segment.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"
#include "report/bitmap.h"
#include "tensor.h"

/* A picture of masks: 0 without a mask, else 1 + the number of the mask on top. */
typedef struct Labels {
    int width, height;
    int32_t *of; /* [height][width] */
} Labels;

/* The larger first; equal ones in their order. */
static int larger_mask(const void *a, const void *b)
{
    const AmgMask *x = *(const AmgMask *const *)a, *y = *(const AmgMask *const *)b;
    return x->area != y->area ? (x->area < y->area ? 1 : -1) : (x > y) - (x < y);
}

/* Small masks cover large ones. */
static int paint_masks(Labels *labels, const AmgMasks *masks, Error *err)
{
    const size_t n_pixels = (size_t)labels->height * (size_t)labels->width;
    uint8_t *mask = aligned_array(n_pixels, 1);
    const AmgMask **order = aligned_array(masks->n + 1, sizeof(*order));
    if (!mask || !order) {
        free(mask), free(order);
        return fail_memory(err, "the masks' picture", n_pixels);
    }
    memset(labels->of, 0, n_pixels * sizeof *labels->of);
    for (size_t i = 0; i < masks->n; i++)
        order[i] = &masks->masks[i];
    qsort(order, masks->n, sizeof *order, larger_mask);
    for (size_t i = 0; i < masks->n; i++) {
        rle_decode(mask, &order[i]->segmentation);
        for (size_t p = 0; p < n_pixels; p++)
            if (mask[p])
                labels->of[p] = (int32_t)(1 + (order[i] - masks->masks));
    }
    free(mask), free(order);
    return 0;
}

/* ================================================================================================
 * Colours
 * ============================================================================================== */

typedef struct Palette {
    Color of[256]; /* black, then colours. */
} Palette;

/* Hue by the golden angle, so that masks with neighbouring numbers get unlike colours. */
static Color palette_color(int i)
{
    double hue = fmod(i * 0.61803398875, 1) * 6, value = 255 - 60 * (i % 3), f = hue - floor(hue);
    double v[6][3] = {{1, f, 0}, {1 - f, 1, 0}, {0, 1, f}, {0, 1 - f, 1}, {f, 0, 1}, {1, 0, 1 - f}};
    uint8_t rgb[3];
    for (int c = 0; c < 3; c++)
        rgb[c] = (uint8_t)(value * (0.25 + 0.75 * v[(int)hue % 6][c]));
    return (Color){rgb[0], rgb[1], rgb[2]};
}

static void palette_fill(Palette *palette)
{
    palette->of[0] = (Color){0, 0, 0};
    for (int i = 1; i < 256; i++)
        palette->of[i] = palette_color(i);
}

/* Colours recur after 255 masks. */
static int color_index(int32_t label)
{
    return label > 0 ? 1 + (label - 1) % 255 : 0;
}

static int write_indexed(const Labels *labels, const char *path, Error *err)
{
    const size_t n_pixels = (size_t)labels->height * (size_t)labels->width;
    Palette palette;
    uint8_t *indices = aligned_array(n_pixels, 1);
    if (!indices)
        return fail_memory(err, "the masks' picture", n_pixels);
    for (size_t p = 0; p < n_pixels; p++)
        indices[p] = (uint8_t)color_index(labels->of[p]);
    palette_fill(&palette);
    int status = png_write_indexed(path, indices, labels->width, labels->height, (const uint8_t *)palette.of,
                                   256, NULL, err);
    free(indices);
    return status;
}

/* ================================================================================================
 * The overlay
 * ============================================================================================== */

enum { WIDEST = 4096 }; /* pixels of all panels together. */

static const Color WHITE = {255, 255, 255}, BLACK = {0, 0, 0}, GREEN = {60, 220, 90}, RED = {235, 50, 50},
                   YELLOW = {255, 220, 40};

/* The colour of a pixel under a mask, or under none. */
static Color tinted(const uint8_t rgb[3], Color tint)
{
    return (Color){(uint8_t)((rgb[0] + tint.r) / 2), (uint8_t)((rgb[1] + tint.g) / 2),
                   (uint8_t)((rgb[2] + tint.b) / 2)};
}

/* Every step-th pixel of the photo: dark outside the masks, else tinted, and white where two labels meet. */
static void draw_masks(Bitmap *panel, const Labels *labels, const Palette *palette, const uint8_t *rgb,
                       int step)
{
    for (int y = 0; y < panel->height; y++) {
        const ptrdiff_t row = (ptrdiff_t)y * step * labels->width,
                        row_below = y + 1 < panel->height ? row + (ptrdiff_t)step * labels->width : row;
        for (int x = 0; x < panel->width; x++) {
            const int at = x * step, at_right = x + 1 < panel->width ? at + step : at;
            const int32_t label = labels->of[row + at];
            const int edge = label != labels->of[row + at_right] || label != labels->of[row_below + at];
            bitmap_put(panel, x, y,
                       edge ? WHITE : tinted(rgb + 3 * (row + at), palette->of[color_index(label)]));
        }
    }
}

/* The box may reach far beyond the picture. */
static void draw_box(Bitmap *panel, const float box[4], float scale, int thickness)
{
    const int x0 = (int)fmaxf(box[0] * scale, -1), x1 = (int)fminf(box[2] * scale, (float)panel->width);
    const int y0 = (int)fmaxf(box[1] * scale, -1), y1 = (int)fminf(box[3] * scale, (float)panel->height);
    bitmap_fill(panel, (Box){x0, y0, x1 + 1, y0 + thickness}, YELLOW);
    bitmap_fill(panel, (Box){x0, y1 - thickness + 1, x1 + 1, y1 + 1}, YELLOW);
    bitmap_fill(panel, (Box){x0, y0, x0 + thickness, y1 + 1}, YELLOW);
    bitmap_fill(panel, (Box){x1 - thickness + 1, y0, x1 + 1, y1 + 1}, YELLOW);
}

/* Points inside the object are green, points outside it red; both have a black edge. The box is yellow. */
static void draw_prompt(Bitmap *panel, const SegmentRequest *request, int step)
{
    const int longer = panel->width > panel->height ? panel->width : panel->height;
    const int radius = 3 + longer / 150;
    const float scale = 1 / (float)step;
    for (int i = 0; i < request->n_points; i++) {
        const int x = (int)(request->points[2 * i] * scale), y = (int)(request->points[2 * i + 1] * scale);
        bitmap_ring(panel, x, y, -1, radius + 1, BLACK);
        bitmap_ring(panel, x, y, -1, radius - 1, request->labels[i] ? GREEN : RED);
    }
    if (request->box)
        draw_box(panel, request->box, scale, 1 + longer / 500);
}

/* A prompt's candidates overlap, so each has its own panel beside the others, on the photo. labels: of all
 * masks at first, then scratch. */
static int draw_panels(Bitmap *bitmap, int n_panels, int step, const AmgMasks *masks,
                       const SegmentRequest *request, const uint8_t *rgb, Labels *labels, Error *err)
{
    Palette palette;
    palette_fill(&palette);
    Bitmap panel = *bitmap;
    panel.width /= n_panels;
    for (int i = 0; i < n_panels; i++, panel.pixels += panel.width) {
        const AmgMasks one = {.masks = masks->masks + i, .n = 1};
        if (n_panels > 1 && paint_masks(labels, &one, err))
            return -1;
        draw_masks(&panel, labels, &palette, rgb, step);
        draw_prompt(&panel, request, step);
    }
    return 0;
}

static int write_overlay(const char *path, const AmgMasks *masks, const SegmentRequest *request,
                         const uint8_t *rgb, Labels *labels, Error *err)
{
    const int n_panels = segment_prompted(request) && masks->n ? (int)masks->n : 1;
    const int step = (int)(((int64_t)n_panels * labels->width + WIDEST - 1) / WIDEST);
    const int width = (labels->width + step - 1) / step, height = (labels->height + step - 1) / step;
    Bitmap bitmap;
    if (bitmap_new(&bitmap, n_panels * width, height, err))
        return -1;
    int status = draw_panels(&bitmap, n_panels, step, masks, request, rgb, labels, err) ||
                 bitmap_write(&bitmap, path, err);
    bitmap_free(&bitmap);
    return status ? -1 : 0;
}

/* ================================================================================================
 * Files
 * ============================================================================================== */

const char *const masks_form_names[MASKS_FORMS] = {"uncompressed_rle", "coco_rle", "binary_mask"};

static void json_mask(JsonWriter *w, const AmgMask *m, MasksForm form)
{
    json_open(w, '{');
    json_key(w, "segmentation");
    if (form == MASKS_COCO_RLE)
        rle_json_compressed(&m->segmentation, w);
    else
        rle_json(&m->segmentation, w);
    json_key(w, "area"), json_int(w, m->area);
    json_floats(w, "bbox", m->bbox, 4);
    json_key(w, "predicted_iou"), json_float(w, m->predicted_iou);
    json_key(w, "point_coords");
    json_open(w, '['), json_open(w, '[');
    json_number(w, m->point[0]), json_number(w, m->point[1]);
    json_close(w, ']'), json_close(w, ']');
    json_key(w, "stability_score"), json_float(w, m->stability_score);
    json_floats(w, "crop_box", m->crop_box, 4);
    json_close(w, '}');
}

static int write_json(const AmgMasks *masks, MasksForm form, const char *prefix, Error *err)
{
    JsonWriter w;
    char path[4096];
    snprintf(path, sizeof path, "%s_masks.json", prefix);
    json_begin(&w);
    json_open(&w, '[');
    for (size_t i = 0; i < masks->n; i++)
        json_mask(&w, &masks->masks[i], form);
    json_close(&w, ']');
    int status = w.failed ? fail_memory(err, "the masks' JSON", w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

/* The mask as a grey picture, 0 and 255. */
static int write_binary(const Rle *rle, const char *path, Error *err)
{
    const size_t n_pixels = (size_t)rle->height * (size_t)rle->width;
    uint8_t *mask = aligned_array(n_pixels, 1);
    if (!mask)
        return fail_memory(err, "a mask's picture", n_pixels);
    rle_decode(mask, rle);
    for (size_t p = 0; p < n_pixels; p++)
        mask[p] = mask[p] ? 255 : 0;
    int status = png_write(path, mask, rle->width, rle->height, 1, 8, err);
    free(mask);
    return status;
}

/* A row of write_masks_to_folder's table, with all digits of Python's text. The writer of JSON puts the commas. */
static int put_row(OutFile *out, size_t id, const AmgMask *m, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    json_int(&w, (long long)id), json_int(&w, m->area);
    for (int i = 0; i < 4; i++)
        json_float(&w, m->bbox[i]);
    json_number(&w, m->point[0]), json_number(&w, m->point[1]);
    json_number(&w, (double)m->predicted_iou), json_number(&w, (double)m->stability_score);
    for (int i = 0; i < 4; i++)
        json_float(&w, m->crop_box[i]);
    int status = w.failed ? fail_memory(err, "the masks' table", w.length) : 0;
    if (!status)
        out_put(out, "\n", 1), out_put(out, w.text, w.length);
    json_end(&w);
    return status;
}

static int write_table(const AmgMasks *masks, const char *prefix, Error *err)
{
    static const char header[] =
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
        "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h";
    OutFile out;
    char path[4096];
    int status = 0;
    snprintf(path, sizeof path, "%s/metadata.csv", prefix);
    if (out_open(&out, path, err))
        return -1;
    out_put(&out, header, sizeof header - 1);
    for (size_t i = 0; i < masks->n && !status; i++)
        status = put_row(&out, i, &masks->masks[i], err);
    if (status)
        out_drop(&out);
    return status ? status : out_commit(&out, err);
}

/* The folder of scripts/amg.py:write_masks_to_folder. */
static int write_folder(const AmgMasks *masks, const char *prefix, Error *err)
{
    char path[4096];
    if (dir_make(prefix, err))
        return -1;
    for (size_t i = 0; i < masks->n; i++) {
        snprintf(path, sizeof path, "%s/%zu.png", prefix, i);
        if (write_binary(&masks->masks[i].segmentation, path, err))
            return -1;
    }
    return write_table(masks, prefix, err);
}

int segment_write(const char *prefix, const AmgMasks *masks, MasksForm form, const SegmentRequest *request,
                  const Picture *picture, Error *err)
{
    char png[4096], overlay[4096];
    const size_t n_pixels = (size_t)picture->height * (size_t)picture->width;
    if (snprintf(overlay, sizeof overlay, "%s_masks_overlay.png", prefix) >= (int)sizeof overlay - 16 ||
        snprintf(png, sizeof png, "%s_masks.png", prefix) < 0)
        return fail(err, "%s: the path is too long", prefix);
    Labels labels = {picture->width, picture->height, aligned_array(n_pixels, sizeof *labels.of)};
    if (!labels.of)
        return fail_memory(err, "the masks' picture", n_pixels * sizeof *labels.of);
    int status =
        (form == MASKS_BINARY ? write_folder(masks, prefix, err) : write_json(masks, form, prefix, err)) ||
        paint_masks(&labels, masks, err) || write_indexed(&labels, png, err) ||
        write_overlay(overlay, masks, request, picture->rgb, &labels, err);
    free(labels.of);
    return status ? -1 : 0;
}
