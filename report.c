/* report.c - heat maps, overlays, sentences and JSON from a result. See report.h. */
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "io/image.h"
#include "tensor.h"

/* ================================================================================================
 * Pictures
 * ============================================================================================== */

typedef struct Color {
    uint8_t r, g, b;
} Color;

static const Color GREEN = {60, 200, 90}, RED = {235, 50, 50}, ORANGE = {255, 150, 20}, BLUE = {70, 140, 255},
                   BLACK = {0, 0, 0};

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

typedef struct Canvas {
    int width, height;
    Color *pixels;
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
    {'A', {14, 17, 17, 31, 17, 17, 17}}, {'D', {30, 17, 17, 17, 17, 17, 30}},
    {'E', {31, 16, 16, 30, 16, 16, 31}}, {'G', {14, 17, 16, 23, 17, 17, 15}},
    {'I', {14, 4, 4, 4, 4, 4, 14}},      {'M', {17, 27, 21, 21, 17, 17, 17}},
    {'N', {17, 25, 21, 19, 17, 17, 17}}, {'R', {30, 17, 17, 30, 20, 18, 17}},
    {'S', {15, 16, 16, 14, 1, 1, 30}},   {'T', {31, 4, 4, 4, 4, 4, 4}},
    {'X', {17, 17, 10, 4, 10, 17, 17}},
};

static void write_letter(Canvas *c, int x, int y, char letter, Color color)
{
    for (size_t i = 0; i < sizeof FONT / sizeof *FONT; i++)
        for (int row = 0; FONT[i].letter == letter && row < 7; row++)
            for (int column = 0; column < 5; column++)
                if (FONT[i].rows[row] >> (4 - column) & 1)
                    fill(c, x + 2 * column, y + 2 * row, x + 2 * column + 2, y + 2 * row + 2, color);
}

/* Letters of 10x14 pixels on a plate of their colour, kept inside the picture. */
static void write_text(Canvas *c, int x, int y, const char *text, Color plate)
{
    int width = (int)strlen(text) * 12 + 4, height = 18;
    x = x + width > c->width ? c->width - width : x;
    y = y + height > c->height ? c->height - height : y;
    x = x < 0 ? 0 : x;
    y = y < 0 ? 0 : y;
    fill(c, x, y, x + width, y + height, plate);
    for (int i = 0; text[i]; i++)
        write_letter(c, x + 3 + 12 * i, y + 2, text[i], BLACK);
}

static void dashed_box(Canvas *c, int x0, int y0, int x1, int y1, Color color)
{
    for (int x = x0; x < x1; x++)
        if ((x - x0) / 6 % 2 == 0)
            fill(c, x, y0, x + 1, y0 + 2, color), fill(c, x, y1 - 2, x + 1, y1, color);
    for (int y = y0; y < y1; y++)
        if ((y - y0) / 6 % 2 == 0)
            fill(c, x0, y, x0 + 2, y + 1, color), fill(c, x1 - 2, y, x1, y + 1, color);
}

static void ring(Canvas *c, int x, int y, int radius, Color color)
{
    for (int dy = -radius - 1; dy <= radius + 1; dy++)
        for (int dx = -radius - 1; dx <= radius + 1; dx++) {
            double d = sqrt((double)dx * dx + (double)dy * dy) - radius;
            if (d > -1.5 && d < 1)
                put(c, x + dx, y + dy, color);
        }
}

static Color verdict_color(SamladVerdict verdict)
{
    return verdict == VERDICT_EXTRA ? RED : verdict == VERDICT_DAMAGED ? ORANGE : GREEN;
}

/* A pixel of the enlarged picture belongs to an outline when the label within `reach` pixels differs from its
 * own. */
static void outline(Canvas *c, const SamladResult *r, int scale)
{
    for (int y = 0; y < c->height; y++)
        for (int x = 0; x < c->width; x++) {
            int label = r->labels[(size_t)(y / scale) * (size_t)r->width + (size_t)(x / scale)];
            if (label < 0 || label >= r->n_objects)
                continue;
            int reach = r->objects[label].verdict == VERDICT_NORMAL ? 1 : 3, edge = 0;
            for (int d = -reach; d <= reach && !edge; d++) {
                int nx = x + d < 0 ? 0 : x + d >= c->width ? c->width - 1 : x + d;
                int ny = y + d < 0 ? 0 : y + d >= c->height ? c->height - 1 : y + d;
                edge = r->labels[(size_t)(y / scale) * (size_t)r->width + (size_t)(nx / scale)] != label ||
                       r->labels[(size_t)(ny / scale) * (size_t)r->width + (size_t)(x / scale)] != label;
            }
            if (edge)
                put(c, x, y, verdict_color(r->objects[label].verdict));
        }
}

static void annotate(Canvas *c, const SamladResult *r, int scale)
{
    float s = (float)scale;
    for (int i = 0; i < r->n_missing; i++) {
        const float *b = r->missing[i].box;
        int x0 = (int)(b[0] * s), y0 = (int)(b[1] * s), x1 = (int)((b[0] + b[2]) * s),
            y1 = (int)((b[1] + b[3]) * s);
        dashed_box(c, x0, y0, x1, y1, BLUE);
        write_text(c, x0, y0 - 18, "MISSING", BLUE);
    }
    for (int i = 0; i < r->n_objects; i++) {
        const SamladObject *o = &r->objects[i];
        if (o->verdict == VERDICT_NORMAL)
            continue;
        if (o->verdict == VERDICT_DAMAGED) {
            int x = (int)(o->damage_at[0] * s), y = (int)(o->damage_at[1] * s);
            ring(c, x, y, 14, ORANGE);
            write_text(c, x - 40, y + 18, "DAMAGED", ORANGE);
        } else {
            write_text(c, (int)(o->box[0] * s), (int)(o->box[1] * s) - 18, "EXTRA", RED);
        }
    }
}

int report_overlay(const char *path, const SamladResult *r, const uint8_t *rgb, Error *err)
{
    int longer = r->width > r->height ? r->width : r->height,
        scale = longer < 512 ? (511 + longer) / longer : 1;
    Canvas c = {
        r->width * scale, r->height * scale,
        aligned_array((size_t)r->width * (size_t)scale * (size_t)r->height * (size_t)scale, sizeof(Color))};
    if (!c.pixels)
        return fail_memory(err, "an overlay", (unsigned long long)c.width * (unsigned long long)c.height * 3);
    for (int y = 0; y < c.height; y++)
        for (int x = 0; x < c.width; x++) {
            const uint8_t *from = rgb + 3 * ((size_t)(y / scale) * (size_t)r->width + (size_t)(x / scale));
            put(&c, x, y, (Color){from[0], from[1], from[2]});
        }
    outline(&c, r, scale);
    annotate(&c, r, scale);
    int status = png_write(path, c.pixels, c.width, c.height, 3, 8, err);
    free(c.pixels);
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

int report_text(FILE *out, const Samlad *s, const SamladResult *r)
{
    char text[512];
    int n = 0;
    for (int i = 0; i < r->n_missing; i++, n++) {
        describe_missing(text, sizeof text, s, r, i);
        fputs("  missing: ", out);
        report_plain(out, text);
        fputs("\n", out);
    }
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict != VERDICT_NORMAL) {
            describe_object(text, sizeof text, r, i);
            fprintf(out, "  %s: %s\n", verdict_name(r->objects[i].verdict), text);
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
    json_close(w, '}');
}
