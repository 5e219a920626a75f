/* report.c - heat maps, overlays, sentences and JSON from a result. See report.h. */
#include "report/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"
#include "tensor.h"

/* ================================================================================================
 * An anomalous image in which nothing is clear enough to be named
 * ============================================================================================== */

/* Where it is suspected most. */
typedef struct Doubt {
    int logical;    /* 1: something missing or too many, 0: damage */
    float x, y;     /* in pixels */
    float evidence; /* logical: the part that finds no counterpart; else z */
} Doubt;

/* 1 when the image is anomalous and has no other reason, else 0. */
static int find_doubt(Doubt *doubt, const SamladResult *r)
{
    const size_t n_cells = (size_t)r->grid_w * (size_t)r->grid_h;
    if (r->anomalous != 1 || r->n_missing > 0)
        return 0;
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict != VERDICT_NORMAL)
            return 0;
    /* with --only the score is one of the two */
    doubt->logical =
        r->score != r->structural_z && (r->score == r->logical_z || r->logical_z > r->structural_z);
    const float *map = doubt->logical ? r->logical_map : r->structural_map;
    size_t most = 0;
    for (size_t p = 1; p < n_cells; p++)
        most = map[p] > map[most] ? p : most;
    doubt->x = ((float)(most % (size_t)r->grid_w) + 0.5f) * (float)r->width / (float)r->grid_w;
    doubt->y = ((float)(most / (size_t)r->grid_w) + 0.5f) * (float)r->height / (float)r->grid_h;
    doubt->evidence = doubt->logical ? map[most] : r->structural_z;
    return 1;
}

static void describe_doubt(char *text, size_t size, const Doubt *doubt)
{
    if (doubt->logical)
        snprintf(
            text, size,
            "what is missing or too many is suspected most around (%.0f, %.0f), not clearly enough to be "
            "named (unmatched %.2f)",
            (double)doubt->x, (double)doubt->y, (double)doubt->evidence);
    else
        snprintf(
            text, size,
            "the image differs most from normal ones around (%.0f, %.0f), not enough to be called damaged "
            "(z %.1f)",
            (double)doubt->x, (double)doubt->y, (double)doubt->evidence);
}

/* ================================================================================================
 * Pictures
 * ============================================================================================== */

typedef struct Color {
    uint8_t r, g, b;
} Color;

static const Color GREEN = {60, 200, 90}, RED = {235, 50, 50}, ORANGE = {255, 150, 20}, BLUE = {70, 140, 255},
                   WHITE = {255, 255, 255}, BLACK = {0, 0, 0};

/* Black, purple, red, orange, yellow, white: brightness rises all the way, so that it also reads in grey. */
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
    size_t n = (size_t)width * (size_t)height;
    Color *rgb = aligned_array(n, sizeof *rgb);
    if (!rgb)
        return fail_memory(err, "a heat map", n * 3);
    for (size_t p = 0; p < n; p++)
        rgb[p] = heat_color((map[p] - low) / (high - low));
    int status = png_write(path, rgb, width, height, 3, 8, err);
    free(rgb);
    return status;
}

typedef struct Box {
    int x0, y0, x1, y1;
} Box;

/* What is drawn grows with the picture, so that a photo that is shrunk to a screen still shows it: `unit` is
 * 1 up to 1,024 pixels, then a 512th of the longer side. */
typedef struct Canvas {
    int width, height, unit;
    Color *pixels;
    Box *taken; /* rings, then plates of letters: no other plate shall cover them */
    int n_taken;
} Canvas;

static void put(Canvas *c, int x, int y, Color color)
{
    if (x >= 0 && y >= 0 && x < c->width && y < c->height)
        c->pixels[(size_t)y * (size_t)c->width + (size_t)x] = color;
}

static void fill(Canvas *c, int x0, int y0, int x1, int y1, Color color)
{
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++)
            put(c, x, y, color);
}

/* 5x7 letters, one byte a row, the highest of five bits leftmost. */
static const struct {
    char letter;
    uint8_t rows[7];
} FONT[] = {
    {'A', {14, 17, 17, 31, 17, 17, 17}}, {'B', {30, 17, 17, 30, 17, 17, 30}},
    {'D', {30, 17, 17, 17, 17, 17, 30}}, {'E', {31, 16, 16, 30, 16, 16, 31}},
    {'G', {14, 17, 16, 23, 17, 17, 15}}, {'I', {14, 4, 4, 4, 4, 4, 14}},
    {'M', {17, 27, 21, 21, 17, 17, 17}}, {'N', {17, 25, 21, 19, 17, 17, 17}},
    {'O', {14, 17, 17, 17, 17, 17, 14}}, {'R', {30, 17, 17, 30, 20, 18, 17}},
    {'S', {15, 16, 16, 14, 1, 1, 30}},   {'T', {31, 4, 4, 4, 4, 4, 4}},
    {'U', {17, 17, 17, 17, 17, 17, 14}}, {'X', {17, 17, 10, 4, 10, 17, 17}},
};

static void write_letter(Canvas *c, int x, int y, char letter, Color color)
{
    const int dot = 2 * c->unit;
    for (size_t i = 0; i < sizeof FONT / sizeof *FONT; i++)
        for (int row = 0; FONT[i].letter == letter && row < 7; row++)
            for (int column = 0; column < 5; column++)
                if (FONT[i].rows[row] >> (4 - column) & 1)
                    fill(c, x + dot * column, y + dot * row, x + dot * (column + 1), y + dot * (row + 1),
                         color);
}

static int is_taken(const Canvas *c, Box b)
{
    for (int i = 0; i < c->n_taken; i++) {
        const Box *t = &c->taken[i];
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

/* The free place nearest to (x, y) for a plate, by steps of half a plate; (x, y) where all are taken. */
static Box free_place(const Canvas *c, int x, int y, int width, int height)
{
    enum { STEPS = 8 };
    Box best = {0};
    long nearest = -1;
    for (int j = -STEPS; j <= STEPS; j++)
        for (int i = -STEPS; i <= STEPS; i++) {
            const int at_x = kept_inside(x + i * width / 2, width, c->width),
                      at_y = kept_inside(y + j * height / 2, height, c->height);
            const Box b = {at_x, at_y, at_x + width, at_y + height};
            const long dx = at_x - x, dy = at_y - y, far = dx * dx + dy * dy;
            if ((nearest < 0 || far < nearest) && !is_taken(c, b))
                best = b, nearest = far;
        }
    x = kept_inside(x, width, c->width), y = kept_inside(y, height, c->height);
    return nearest < 0 ? (Box){x, y, x + width, y + height} : best;
}

/* Letters of 10x14 units on a plate of their colour, inside the picture, beside what is there already. */
static void write_text(Canvas *c, int x, int y, const char *text, Color plate)
{
    const int u = c->unit;
    const Box b = free_place(c, x, y, ((int)strlen(text) * 12 + 4) * u, 18 * u);
    c->taken[c->n_taken++] = b;
    fill(c, b.x0, b.y0, b.x1, b.y1, plate);
    for (int i = 0; text[i]; i++)
        write_letter(c, b.x0 + (3 + 12 * i) * u, b.y0 + 2 * u, text[i], BLACK);
}

static void dashed_box(Canvas *c, int x0, int y0, int x1, int y1, Color color)
{
    const int dash = 6 * c->unit, thick = 2 * c->unit;
    for (int x = x0; x < x1; x++)
        if ((x - x0) / dash % 2 == 0)
            fill(c, x, y0, x + 1, y0 + thick, color), fill(c, x, y1 - thick, x + 1, y1, color);
    for (int y = y0; y < y1; y++)
        if ((y - y0) / dash % 2 == 0)
            fill(c, x0, y, x0 + thick, y + 1, color), fill(c, x1 - thick, y, x1, y + 1, color);
}

#define RING 14 /* its radius in units */

static Box ring_box(const Canvas *c, int x, int y)
{
    const int reach = (RING + 2) * c->unit;
    return (Box){x - reach, y - reach, x + reach + 1, y + reach + 1};
}

static void ring(Canvas *c, int x, int y, int radius, Color color)
{
    const Box b = ring_box(c, x, y);
    for (int at_y = b.y0; at_y < b.y1; at_y++)
        for (int at_x = b.x0; at_x < b.x1; at_x++) {
            const double d = hypot(at_x - x, at_y - y) / c->unit - radius;
            if (d > -1.5 && d < 1)
                put(c, at_x, at_y, color);
        }
    c->taken[c->n_taken++] = b;
}

static Color verdict_color(SamladVerdict verdict)
{
    return verdict == VERDICT_EXTRA ? RED : verdict == VERDICT_DAMAGED ? ORANGE : GREEN;
}

/* From the pixel at an object's edge inwards, a row or column of its outline. */
static void outline_inwards(Canvas *c, const SamladResult *r, int scale, int x, int y, int dx, int dy)
{
    const int label = r->labels[(size_t)(y / scale) * (size_t)r->width + (size_t)(x / scale)];
    if (label < 0 || label >= r->n_objects)
        return;
    const SamladVerdict verdict = r->objects[label].verdict;
    const int reach = (verdict == VERDICT_NORMAL ? 1 : 3) * c->unit;
    for (int i = 0; i < reach && x >= 0 && y >= 0 && x < c->width && y < c->height; i++, x += dx, y += dy) {
        if (r->labels[(size_t)(y / scale) * (size_t)r->width + (size_t)(x / scale)] != label)
            return;
        put(c, x, y, verdict_color(verdict));
    }
}

/* Where two neighbours of the enlarged picture have different labels, both get an outline inwards. */
static void outline(Canvas *c, const SamladResult *r, int scale)
{
    for (int y = 0; y < c->height; y++) {
        const int32_t *row = r->labels + (size_t)(y / scale) * (size_t)r->width;
        const int32_t *below =
            y + 1 < c->height ? r->labels + (size_t)((y + 1) / scale) * (size_t)r->width : row;
        for (int x = 0; x < c->width; x++) {
            const int32_t label = row[x / scale], right = row[(x + 1 < c->width ? x + 1 : x) / scale];
            if (label != right) {
                outline_inwards(c, r, scale, x, y, -1, 0);
                outline_inwards(c, r, scale, x + 1, y, 1, 0);
            }
            if (label != below[x / scale]) {
                outline_inwards(c, r, scale, x, y, 0, -1);
                outline_inwards(c, r, scale, x, y + 1, 0, 1);
            }
        }
    }
}

/* One scratch may damage a part, its compartment and the background: a place within a ring gets no other. */
static void ring_once(Canvas *c, int x, int y, Color color)
{
    for (int i = 0; i < c->n_taken; i++) {
        const Box *b = &c->taken[i];
        if (hypot((b->x0 + b->x1 - 1) / 2 - x, (b->y0 + b->y1 - 1) / 2 - y) < RING * c->unit)
            return;
    }
    ring(c, x, y, RING, color);
}

/* Boxes and rings first, so that no letters cover them. Only rings are taken so far. */
static void mark(Canvas *c, const SamladResult *r, float s)
{
    for (int i = 0; i < r->n_missing; i++) {
        const float *b = r->missing[i].box;
        dashed_box(c, (int)(b[0] * s), (int)(b[1] * s), (int)((b[0] + b[2]) * s), (int)((b[1] + b[3]) * s),
                   BLUE);
    }
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict == VERDICT_DAMAGED)
            ring_once(c, (int)(r->objects[i].damage_at[0] * s), (int)(r->objects[i].damage_at[1] * s),
                      ORANGE);
}

static void annotate(Canvas *c, const SamladResult *r, float s)
{
    const int u = c->unit;
    Doubt doubt;
    mark(c, r, s);
    for (int i = 0, n_rings = c->n_taken; i < n_rings; i++)
        write_text(c, c->taken[i].x0 - 26 * u, c->taken[i].y1 + 3 * u, "DAMAGED", ORANGE);
    for (int i = 0; i < r->n_missing; i++)
        write_text(c, (int)(r->missing[i].box[0] * s), (int)(r->missing[i].box[1] * s) - 18 * u, "MISSING",
                   BLUE);
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict == VERDICT_EXTRA)
            write_text(c, (int)(r->objects[i].box[0] * s), (int)(r->objects[i].box[1] * s) - 18 * u, "EXTRA",
                       RED);
    if (find_doubt(&doubt, r)) {
        ring(c, (int)(doubt.x * s), (int)(doubt.y * s), RING + 1, BLACK); /* seen on white, too */
        ring(c, (int)(doubt.x * s), (int)(doubt.y * s), RING, WHITE);
        write_text(c, (int)(doubt.x * s) - 32 * u, (int)(doubt.y * s) + 18 * u, "DOUBT", WHITE);
    }
}

int report_overlay(const char *path, const SamladResult *r, const uint8_t *rgb, Error *err)
{
    int longer = r->width > r->height ? r->width : r->height,
        scale = longer < 512 ? (511 + longer) / longer : 1;
    const size_t most_taken = 2 * (size_t)r->n_objects + (size_t)r->n_missing + 3;
    Canvas c = {.width = r->width * scale,
                .height = r->height * scale,
                .unit = longer * scale > 1024 ? longer * scale / 512 : 1,
                .pixels = aligned_array((size_t)r->width * (size_t)scale * (size_t)r->height * (size_t)scale,
                                        sizeof(Color)),
                .taken = aligned_array(most_taken, sizeof(Box))};
    if (!c.pixels || !c.taken) {
        free(c.pixels), free(c.taken);
        return fail_memory(err, "an overlay", (unsigned long long)c.width * (unsigned long long)c.height * 3);
    }
    for (int y = 0; y < c.height; y++)
        for (int x = 0; x < c.width; x++) {
            const uint8_t *from = rgb + 3 * ((size_t)(y / scale) * (size_t)r->width + (size_t)(x / scale));
            put(&c, x, y, (Color){from[0], from[1], from[2]});
        }
    outline(&c, r, scale);
    annotate(&c, r, (float)scale);
    int status = png_write(path, c.pixels, c.width, c.height, 3, 8, err);
    free(c.pixels), free(c.taken);
    return status;
}

/* ================================================================================================
 * Words and JSON
 * ============================================================================================== */

static const char *verdict_name(SamladVerdict verdict)
{
    return verdict == VERDICT_EXTRA ? "extra" : verdict == VERDICT_DAMAGED ? "damaged" : "normal";
}

static void describe_object(char *text, size_t size, const SamladResult *r, int i)
{
    const SamladObject *o = &r->objects[i];
    const char *what = o->background ? "the background" : "an object";
    if (o->verdict == VERDICT_EXTRA && o->alike > 1)
        snprintf(text, size,
                 "%s at (%.0f, %.0f) of %.0fx%.0f pixels, or another of the %d alike, is one too many "
                 "(unmatched together %.2f)",
                 what, (double)o->box[0], (double)o->box[1], (double)o->box[2], (double)o->box[3], o->alike,
                 (double)o->counted);
    else if (o->verdict == VERDICT_EXTRA)
        snprintf(
            text, size,
            "%s at (%.0f, %.0f) of %.0fx%.0f pixels has no counterpart in the normal images (unmatched %.2f)",
            what, (double)o->box[0], (double)o->box[1], (double)o->box[2], (double)o->box[3],
            (double)o->unmatched);
    else
        snprintf(text, size,
                 "%s at (%.0f, %.0f) of %.0fx%.0f pixels differs from its counterparts around (%.0f, %.0f) "
                 "(z %.1f)",
                 what, (double)o->box[0], (double)o->box[1], (double)o->box[2], (double)o->box[3],
                 (double)o->damage_at[0], (double)o->damage_at[1], (double)o->damage);
}

static void describe_missing(char *text, size_t size, const Samlad *s, const SamladResult *r, int i)
{
    const SamladMissing *m = &r->missing[i];
    char alike[64] = "";
    if (m->alike > 1)
        snprintf(alike, sizeof alike, "or another of the %d alike, ", m->alike);
    snprintf(text, size,
             "object %d of %s, %sexpected at (%.0f, %.0f) within %.0fx%.0f pixels, was not found (unmatched "
             "%.2f in %d of %d references)",
             m->object, samlad_bank_name(s, r->references[m->reference]), alike, (double)m->box[0],
             (double)m->box[1], (double)m->box[2], (double)m->box[3], (double)m->unmatched, m->support,
             r->n_references);
}

void report_plain(FILE *out, const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        int second = c > (const unsigned char *)text && c[-1] == 0xc2 && *c >= 0x80 && *c < 0xa0;
        int first = *c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0;
        fprintf(out, *c < ' ' || *c == 0x7f || first || second ? "\\x%02x" : "%c", *c);
    }
}

#define INDENT "           " /* below the rank, for scores take nine characters */

int report_text(FILE *out, const Samlad *s, const SamladResult *r)
{
    char text[512];
    int n = 0;
    for (int i = 0; i < r->n_missing; i++, n++) {
        describe_missing(text, sizeof text, s, r, i);
        fputs(INDENT "missing: ", out);
        report_plain(out, text);
        fputs("\n", out);
    }
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict != VERDICT_NORMAL) {
            describe_object(text, sizeof text, r, i);
            fprintf(out, INDENT "%s: %s\n", verdict_name(r->objects[i].verdict), text);
            n++;
        }
    Doubt doubt;
    if (find_doubt(&doubt, r)) {
        describe_doubt(text, sizeof text, &doubt);
        fprintf(out, INDENT "doubtful: %s\n", text);
        n++;
    }
    return n;
}

static void key_float(JsonWriter *w, const char *key, float value)
{
    json_key(w, key);
    json_float(w, value);
}

static void json_object(JsonWriter *w, const SamladResult *r, int i)
{
    const SamladObject *o = &r->objects[i];
    char text[512];
    json_open(w, '{');
    json_key(w, "id"), json_int(w, i);
    json_key(w, "verdict"), json_string(w, verdict_name(o->verdict));
    json_key(w, "background"), json_bool(w, o->background);
    json_floats(w, "bbox", o->box, 4);
    key_float(w, "area", o->area);
    json_floats(w, "centroid", o->centroid, 2);
    key_float(w, "unmatched", o->unmatched);
    json_key(w, "alike"), json_int(w, o->alike);
    key_float(w, "counted", o->counted);
    key_float(w, "damage", o->damage);
    json_key(w, "matches");
    json_open(w, '[');
    for (int k = 0; k < o->n_matches; k++) {
        json_open(w, '{');
        json_key(w, "reference"), json_int(w, o->matches[k].reference);
        json_key(w, "object"), json_int(w, o->matches[k].object);
        key_float(w, "assignment", o->matches[k].assignment);
        key_float(w, "similarity", o->matches[k].similarity);
        json_close(w, '}');
    }
    json_close(w, ']');
    if (o->verdict != VERDICT_NORMAL) {
        describe_object(text, sizeof text, r, i);
        json_key(w, "reason"), json_string(w, text);
    }
    json_close(w, '}');
}

static void json_doubt(JsonWriter *w, const SamladResult *r)
{
    Doubt doubt;
    char text[512];
    json_key(w, "doubt");
    if (!find_doubt(&doubt, r)) {
        json_null(w);
        return;
    }
    describe_doubt(text, sizeof text, &doubt);
    json_open(w, '{');
    json_key(w, "kind"), json_string(w, doubt.logical ? "logical" : "structural");
    json_floats(w, "at", (float[]){doubt.x, doubt.y}, 2);
    key_float(w, doubt.logical ? "unmatched" : "z", doubt.evidence);
    json_key(w, "reason"), json_string(w, text);
    json_close(w, '}');
}

void report_json(JsonWriter *w, const Samlad *s, const SamladResult *r, const char *image)
{
    char text[512];
    json_open(w, '{');
    json_key(w, "image"), json_string(w, image);
    json_key(w, "width"), json_int(w, r->width);
    json_key(w, "height"), json_int(w, r->height);
    key_float(w, "score", r->score);
    key_float(w, "structural", r->structural);
    key_float(w, "logical", r->logical);
    key_float(w, "structural_z", r->structural_z);
    key_float(w, "logical_z", r->logical_z);
    key_float(w, "rank", r->rank);
    key_float(w, "threshold", r->threshold);
    json_key(w, "anomalous");
    if (r->anomalous < 0)
        json_null(w);
    else
        json_bool(w, r->anomalous);
    json_key(w, "references");
    json_open(w, '[');
    for (int k = 0; k < r->n_references; k++)
        json_string(w, samlad_bank_name(s, r->references[k]));
    json_close(w, ']');
    json_key(w, "objects");
    json_open(w, '[');
    for (int i = 0; i < r->n_objects; i++)
        json_object(w, r, i);
    json_close(w, ']');
    json_key(w, "missing");
    json_open(w, '[');
    for (int i = 0; i < r->n_missing; i++) {
        const SamladMissing *m = &r->missing[i];
        describe_missing(text, sizeof text, s, r, i);
        json_open(w, '{');
        json_key(w, "reference"), json_int(w, m->reference);
        json_key(w, "object"), json_int(w, m->object);
        json_floats(w, "bbox", m->box, 4);
        key_float(w, "unmatched", m->unmatched);
        json_key(w, "alike"), json_int(w, m->alike);
        key_float(w, "evidence", m->evidence);
        json_key(w, "support"), json_int(w, m->support);
        json_key(w, "reason"), json_string(w, text);
        json_close(w, '}');
    }
    json_close(w, ']');
    json_doubt(w, r);
    json_close(w, '}');
}
