/* overlay.c - the heat map, and the image with its findings drawn on it: outlines, boxes, rings, letters. See
 * report.h. Nothing is decided here: a SamladResult holds every verdict, library/doubt.c finds the doubt. */
#include "report/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "library/doubt.h"
#include "report/bitmap.h"
#include "tensor.h"

/* ================================================================================================
 * Heat maps
 * ============================================================================================== */

/* Black, purple, red, orange, yellow, white: brightness rises steadily, so the map also reads in grey. */
static Color heat_color(float t)
{
    static const float stops[6][3] = {{0, 0, 8},      {75, 12, 107},  {165, 44, 96},
                                      {237, 105, 37}, {251, 190, 35}, {252, 255, 200}};
    t = fminf(fmaxf(t, 0), 1) * 5;
    int i = t >= 5 ? 4 : (int)t;
    float f = t - (float)i, v[3];
    for (int c = 0; c < 3; c++)
        v[c] = stops[i][c] + f * (stops[i + 1][c] - stops[i][c]);
    return (Color){(uint8_t)lrintf(v[0]), (uint8_t)lrintf(v[1]), (uint8_t)lrintf(v[2])};
}

int report_heat(const char *path, const float *map, int width, int height, float low, float high, Error *err)
{
    Bitmap bitmap;
    const ptrdiff_t n = (ptrdiff_t)width * height;
    if (bitmap_new(&bitmap, width, height, err))
        return -1;
    for (ptrdiff_t p = 0; p < n; p++)
        bitmap.pixels[p] = heat_color((map[p] - low) / (high - low));
    int status = bitmap_write(&bitmap, path, err);
    bitmap_free(&bitmap);
    return status;
}

/* ================================================================================================
 * Overlays
 * ============================================================================================== */

static const Color GREEN = {60, 200, 90}, RED = {235, 50, 50}, ORANGE = {255, 150, 20}, BLUE = {70, 140, 255},
                   WHITE = {255, 255, 255}, BLACK = {0, 0, 0};

#define RING 14 /* radius in units. */

/* Lines and letters are measured in units: 1 pixel up to 1,024 pixels, then a 512th of the longer side. They
 * grow with the picture, so they are still visible when a photo is shrunk to a screen. */
typedef struct Overlay {
    Bitmap bitmap;
    const SamladResult *result;
    int enlarged; /* pixels of the bitmap for one of the image, a side. */
    int unit;
    Box *taken; /* rings, then plates of letters: no other plate may cover them. */
    int n_taken;
} Overlay;

static int is_taken(const Overlay *o, Box b)
{
    for (int i = 0; i < o->n_taken; i++) {
        const Box *t = &o->taken[i];
        if (b.x0 < t->x1 && t->x0 < b.x1 && b.y0 < t->y1 && t->y0 < b.y1)
            return 1;
    }
    return 0;
}

static int kept_inside(int x, int size, int most)
{
    x = x + size > most ? most - size : x;
    return x < 0 ? 0 : x;
}

/* A plate of this size with its corner at (x, y), moved into the picture. */
static Box plate_at(const Overlay *o, int x, int y, int width, int height)
{
    x = kept_inside(x, width, o->bitmap.width), y = kept_inside(y, height, o->bitmap.height);
    return (Box){x, y, x + width, y + height};
}

/* The free place nearest to (x, y), in steps of half a plate. If all are taken, (x, y) itself. */
static Box free_place(const Overlay *o, int x, int y, int width, int height)
{
    enum { STEPS = 8 };
    Box best = plate_at(o, x, y, width, height);
    long nearest = -1;
    for (int j = -STEPS; j <= STEPS; j++)
        for (int i = -STEPS; i <= STEPS; i++) {
            const Box b = plate_at(o, x + i * width / 2, y + j * height / 2, width, height);
            const long dx = b.x0 - x, dy = b.y0 - y, far = dx * dx + dy * dy;
            if ((nearest < 0 || far < nearest) && !is_taken(o, b))
                best = b, nearest = far;
        }
    return best;
}

/* Black letters of 10x14 units on a coloured plate, inside the picture and beside the taken places. */
static void write_text(Overlay *o, int x, int y, const char *text, Color plate)
{
    const int u = o->unit;
    const Box b = free_place(o, x, y, ((int)strlen(text) * 12 + 4) * u, 18 * u);
    o->taken[o->n_taken++] = b;
    bitmap_fill(&o->bitmap, b, plate);
    for (int i = 0; text[i]; i++)
        bitmap_letter(&o->bitmap, b.x0 + (3 + 12 * i) * u, b.y0 + 2 * u, text[i], 2 * u, BLACK);
}

static void ring(Overlay *o, int x, int y, int radius, Color color)
{
    const int u = o->unit, reach = (RING + 2) * u;
    bitmap_ring(&o->bitmap, x, y, (radius - 1.5) * u, (radius + 1) * u, color);
    o->taken[o->n_taken++] = (Box){x - reach, y - reach, x + reach + 1, y + reach + 1};
}

/* One scratch may damage a part, its compartment and the background: they share one ring. */
static void ring_once(Overlay *o, int x, int y, Color color)
{
    for (int i = 0; i < o->n_taken; i++) {
        const Box *b = &o->taken[i];
        if (hypot((b->x0 + b->x1 - 1) / 2 - x, (b->y0 + b->y1 - 1) / 2 - y) < RING * o->unit)
            return;
    }
    ring(o, x, y, RING, color);
}

static Color verdict_color(SamladVerdict verdict)
{
    return verdict == VERDICT_EXTRA ? RED : verdict == VERDICT_DAMAGED ? ORANGE : GREEN;
}

/* The labels under row y of the bitmap. */
static const int32_t *label_row(const Overlay *o, int y)
{
    return o->result->labels + (ptrdiff_t)(y / o->enlarged) * o->result->width;
}

/* One row or column of an object's outline: from the pixel (x, y) at its edge inwards by (dx, dy). */
static void outline_inwards(Overlay *o, int x, int y, int dx, int dy)
{
    const SamladResult *r = o->result;
    const int label = label_row(o, y)[x / o->enlarged];
    if (label < 0 || label >= r->n_objects)
        return;
    const SamladVerdict verdict = r->objects[label].verdict;
    const int reach = (verdict == VERDICT_NORMAL ? 1 : 3) * o->unit;
    for (int i = 0; i < reach; i++, x += dx, y += dy) {
        if (x < 0 || y < 0 || x >= o->bitmap.width || y >= o->bitmap.height ||
            label_row(o, y)[x / o->enlarged] != label)
            return;
        bitmap_put(&o->bitmap, x, y, verdict_color(verdict));
    }
}

/* Where two neighbours of the bitmap have different labels, both get an outline inwards. */
static void outline(Overlay *o)
{
    const int width = o->bitmap.width, height = o->bitmap.height, enlarged = o->enlarged;
    for (int y = 0; y < height; y++) {
        const int32_t *row = label_row(o, y), *below = label_row(o, y + 1 < height ? y + 1 : y);
        for (int x = 0; x < width; x++) {
            const int at = x / enlarged, right = (x + 1 < width ? x + 1 : x) / enlarged;
            if (row[at] != row[right]) {
                outline_inwards(o, x, y, -1, 0);
                outline_inwards(o, x + 1, y, 1, 0);
            }
            if (row[at] != below[at]) {
                outline_inwards(o, x, y, 0, -1);
                outline_inwards(o, x, y + 1, 0, 1);
            }
        }
    }
}

static void draw_photo(Overlay *o, const uint8_t *rgb)
{
    for (int y = 0; y < o->bitmap.height; y++) {
        const uint8_t *row = rgb + 3 * (ptrdiff_t)(y / o->enlarged) * o->result->width;
        for (int x = 0; x < o->bitmap.width; x++) {
            const uint8_t *from = row + 3 * (x / o->enlarged);
            bitmap_put(&o->bitmap, x, y, (Color){from[0], from[1], from[2]});
        }
    }
}

/* An x or y of the image on the bitmap. */
static int on_canvas(const Overlay *o, float at)
{
    return (int)(at * (float)o->enlarged);
}

/* Boxes and rings first, so that no letters cover them. */
static void mark_places(Overlay *o)
{
    const SamladResult *r = o->result;
    for (int i = 0; i < r->n_missing; i++) {
        const float *b = r->missing[i].box;
        const Box box = {on_canvas(o, b[0]), on_canvas(o, b[1]), on_canvas(o, b[0] + b[2]),
                         on_canvas(o, b[1] + b[3])};
        bitmap_dashes(&o->bitmap, box, 6 * o->unit, 2 * o->unit, BLUE);
    }
    for (int i = 0; i < r->n_objects; i++) {
        const float *at = r->objects[i].damage_at;
        if (r->objects[i].verdict == VERDICT_DAMAGED)
            ring_once(o, on_canvas(o, at[0]), on_canvas(o, at[1]), ORANGE);
    }
}

/* Only rings are taken so far. */
static void name_places(Overlay *o)
{
    const SamladResult *r = o->result;
    const int u = o->unit;
    for (int i = 0, n_rings = o->n_taken; i < n_rings; i++)
        write_text(o, o->taken[i].x0 - 26 * u, o->taken[i].y1 + 3 * u, "DAMAGED", ORANGE);
    for (int i = 0; i < r->n_missing; i++) {
        const float *b = r->missing[i].box;
        write_text(o, on_canvas(o, b[0]), on_canvas(o, b[1]) - 18 * u, "MISSING", BLUE);
    }
    for (int i = 0; i < r->n_objects; i++) {
        const float *b = r->objects[i].box;
        if (r->objects[i].verdict == VERDICT_EXTRA)
            write_text(o, on_canvas(o, b[0]), on_canvas(o, b[1]) - 18 * u, "EXTRA", RED);
    }
}

/* The dark edge makes the white ring visible on white. */
static void mark_doubt(Overlay *o)
{
    Doubt doubt;
    if (!find_doubt(&doubt, o->result))
        return;
    const int x = on_canvas(o, doubt.x), y = on_canvas(o, doubt.y);
    ring(o, x, y, RING + 1, BLACK);
    ring(o, x, y, RING, WHITE);
    write_text(o, x - 32 * o->unit, y + 18 * o->unit, "DOUBT", WHITE);
}

/* Images below 512 pixels are enlarged by a whole factor. */
static int overlay_new(Overlay *o, const SamladResult *r, Error *err)
{
    const int longer = r->width > r->height ? r->width : r->height,
              enlarged = longer < 512 ? (511 + longer) / longer : 1;
    const size_t most_taken = 2 * (size_t)r->n_objects + (size_t)r->n_missing + 3;
    *o = (Overlay){
        .result = r, .enlarged = enlarged, .unit = longer * enlarged > 1024 ? longer * enlarged / 512 : 1};
    if (bitmap_new(&o->bitmap, r->width * enlarged, r->height * enlarged, err))
        return -1;
    o->taken = aligned_array(most_taken, sizeof *o->taken);
    return o->taken ? 0 : fail_memory(err, "an overlay", most_taken * sizeof *o->taken);
}

int report_overlay(const char *path, const SamladResult *r, const uint8_t *rgb, Error *err)
{
    Overlay o;
    int status = overlay_new(&o, r, err);
    if (!status) {
        draw_photo(&o, rgb);
        outline(&o);
        mark_places(&o);
        name_places(&o);
        mark_doubt(&o);
        status = bitmap_write(&o.bitmap, path, err);
    }
    bitmap_free(&o.bitmap), free(o.taken);
    return status;
}
