/* eval/draw.c - see draw.h. From bottom to top: random numbers, sine, value noise, outlines, the
 * rasteriser, textures, parts (shadow, bevel, damage), and the camera. The rasteriser computes exact area
 * coverage by signed accumulation. */
#include "eval/draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------------------------------- random numbers */

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void rng_seed(Rng *rng, uint64_t seed, uint64_t stream)
{
    uint64_t state = stream;
    state = splitmix64(&state) ^ seed;
    for (int i = 0; i < 4; i++)
        rng->s[i] = splitmix64(&state);
}

static inline uint64_t rotate_left(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

static inline uint64_t xoshiro(Rng *rng)
{
    uint64_t *s = rng->s, result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t rng_next(Rng *rng)
{
    return xoshiro(rng);
}

float rng_uniform(Rng *rng, float low, float high)
{
    return low + (high - low) * ((float)(xoshiro(rng) >> 40) * 0x1p-24f);
}

float rng_log_uniform(Rng *rng, float low, float high)
{
    /* (1 + u·(r-1)) with u squared twice is close enough to r^u here, and needs no exponential. */
    float ratio = sqrtf(sqrtf(sqrtf(high / low))), u = rng_uniform(rng, 0, 1);
    float x = 1 + u * (ratio - 1);
    x *= x;
    x *= x;
    return low * x * x;
}

int rng_below(Rng *rng, int n)
{
    return (int)(((xoshiro(rng) >> 32) * (uint64_t)n) >> 32);
}

int rng_chance(Rng *rng, float probability)
{
    return rng_uniform(rng, 0, 1) < probability;
}

float rng_normal(Rng *rng)
{
    uint64_t r = xoshiro(rng);
    int sum = (int)(r & 0xffff) + (int)(r >> 16 & 0xffff) + (int)(r >> 32 & 0xffff) + (int)(r >> 48);
    return (float)(sum - 131070) * (1.7320508f / 65535.0f);
}

/* Sine of an angle in turns: reduced to a quarter turn, then the Taylor polynomial (error < 1e-7). */
float draw_sin(float turns)
{
    float t = turns - floorf(turns); /* 0..1 */
    if (t > 0.75f)
        t -= 1.0f;
    else if (t > 0.25f)
        t = 0.5f - t;
    double x = 6.283185307179586 * (double)t, q = x * x;
    return (float)(x * (1 + q * (-1.0 / 6 +
                                 q * (1.0 / 120 + q * (-1.0 / 5040 + q * (1.0 / 362880 - q / 39916800))))));
}

float draw_cos(float turns)
{
    return draw_sin(turns + 0.25f);
}

static inline float clamp01(float x)
{
    return x < 0 ? 0 : x > 1 ? 1 : x;
}
static inline float mix(float a, float b, float t)
{
    return a + (b - a) * t;
}

void rng_color(Rng *rng, float *rgb)
{
    float hue = rng_uniform(rng, 0, 6), value = rng_uniform(rng, 0.12f, 0.95f);
    float saturation = rng_chance(rng, 0.4f) ? rng_uniform(rng, 0, 0.18f) : rng_uniform(rng, 0.15f, 0.95f);
    for (int k = 0; k < 3; k++) {
        float h = hue + 2.0f * (float)k;
        if (h >= 6)
            h -= 6;
        float d = h < 3 ? 3 - h : h - 3; /* distance from the opposite hue, 0..3. */
        float c = d - 1 < 0 ? 0 : d - 1 > 1 ? 1 : d - 1;
        rgb[k] = value * (1 - saturation * (1 - c));
    }
}

void rng_color_near(Rng *rng, const float *from, float *to, float amount)
{
    float all = rng_uniform(rng, -amount, amount);
    for (int k = 0; k < 3; k++)
        to[k] = clamp01(from[k] + all + rng_uniform(rng, -0.35f, 0.35f) * amount);
}

static inline uint32_t hash_cell(int x, int y, uint32_t seed)
{
    uint32_t h = (uint32_t)x * 0x8da6b343u ^ (uint32_t)y * 0xd8163841u ^ seed * 0xcb1ab31fu;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    h ^= h >> 12;
    h *= 0x297a2d39u;
    return h ^ (h >> 15);
}

static inline float cell_value(int x, int y, uint32_t seed)
{
    return (float)(hash_cell(x, y, seed) >> 8) * 0x1p-24f;
}

static inline int floor_int(float x)
{
    int i = (int)x;
    return i - (x < (float)i);
}

/* Value noise in 0..1: random values on the integer lattice, smoothly interpolated. */
static inline float value_noise(float x, float y, uint32_t seed)
{
    int ix = floor_int(x), iy = floor_int(y);
    float fx = x - (float)ix, fy = y - (float)iy;
    fx = fx * fx * (3 - 2 * fx);
    fy = fy * fy * (3 - 2 * fy);
    float top = mix(cell_value(ix, iy, seed), cell_value(ix + 1, iy, seed), fx);
    float bottom = mix(cell_value(ix, iy + 1, seed), cell_value(ix + 1, iy + 1, seed), fx);
    return mix(top, bottom, fy);
}

/* --------------------------------------------------------------------------------------- outlines */

static void path_point(Path *path, float x, float y)
{
    if (path->n_points < PATH_MAX_POINTS)
        path->points[path->n_points++] = (Point){x, y};
}

/* End the outline that began after the previous one. Reverse it when its direction is wrong. */
static void path_close(Path *path, int hole)
{
    int first = path->n_outlines ? path->ends[path->n_outlines - 1] : 0, n = path->n_points - first;
    if (n < 3 || path->n_outlines == PATH_MAX_OUTLINES) {
        path->n_points = first;
        return;
    }
    Point *p = path->points + first;
    float area = 0;
    for (int i = 0, j = n - 1; i < n; j = i++)
        area += p[j].x * p[i].y - p[i].x * p[j].y;
    if ((area < 0) != (hole != 0))
        for (int i = 0; i < n / 2; i++) {
            Point t = p[i];
            p[i] = p[n - 1 - i];
            p[n - 1 - i] = t;
        }
    path->ends[path->n_outlines++] = path->n_points;
}

static void add_ellipse(Path *path, float cx, float cy, float rx, float ry, int hole)
{
    for (int i = 0; i < 56; i++) {
        float t = (float)i / 56;
        path_point(path, cx + rx * draw_cos(t), cy + ry * draw_sin(t));
    }
    path_close(path, hole);
}

static void add_polygon(Path *path, int n, float radius, float turn, int hole)
{
    for (int i = 0; i < n; i++) {
        float t = turn + (float)i / (float)n;
        path_point(path, radius * draw_cos(t), radius * draw_sin(t));
    }
    path_close(path, hole);
}

/* A rectangle with rounded corners (corner = 0: plain). */
static void add_box(Path *path, float cx, float cy, float half_w, float half_h, float corner, int hole)
{
    float limit = half_w < half_h ? half_w : half_h;
    if (corner > limit)
        corner = limit;
    for (int k = 0; k < 4; k++) {
        float sx = k == 0 || k == 3 ? 1.0f : -1.0f, sy = k < 2 ? 1.0f : -1.0f;
        float x = cx + sx * (half_w - corner), y = cy + sy * (half_h - corner);
        int steps = corner > 0 ? 7 : 0;
        for (int i = 0; i <= steps; i++) {
            float t = 0.25f * (float)k + (steps ? 0.25f * (float)i / (float)steps : 0);
            path_point(path, x + corner * draw_cos(t), y + corner * draw_sin(t));
        }
    }
    path_close(path, hole);
}

/* A thick line with round ends. */
static void add_stroke(Path *path, Point a, Point b, float radius)
{
    float dx = b.x - a.x, dy = b.y - a.y, length = sqrtf(dx * dx + dy * dy);
    if (length > 1e-6f)
        dx /= length, dy /= length;
    else
        dx = 1, dy = 0;
    for (int end = 0; end < 2; end++)
        for (int i = 0; i <= 6; i++) {
            float t = -0.25f + 0.5f * (float)i / 6, c = draw_cos(t), s = draw_sin(t),
                  sign = end ? -1.0f : 1.0f;
            Point base = end ? a : b;
            path_point(path, base.x + radius * sign * (c * dx - s * dy),
                       base.y + radius * sign * (c * dy + s * dx));
        }
    path_close(path, 0);
}

static void add_star(Path *path, int n_tips, float inner, float turn)
{
    for (int i = 0; i < 2 * n_tips; i++) {
        float t = turn + (float)i / (float)(2 * n_tips), r = i & 1 ? inner : 1.0f;
        path_point(path, r * draw_cos(t), r * draw_sin(t));
    }
    path_close(path, 0);
}

static void add_gear(Path *path, int n_teeth, float root, float width)
{
    static const float offset[4] = {-0.5f, -0.32f, 0.32f, 0.5f};
    for (int i = 0; i < n_teeth; i++)
        for (int k = 0; k < 4; k++) {
            float t = ((float)i + offset[k] * width) / (float)n_teeth, r = k == 0 || k == 3 ? root : 1.0f;
            path_point(path, r * draw_cos(t), r * draw_sin(t));
        }
    path_close(path, 0);
}

static void add_blob(Path *path, Rng *rng, float roughness)
{
    enum { N = 72, HARMONICS = 6 };
    float a[HARMONICS], p[HARMONICS], radius[N], largest = 0;
    for (int k = 0; k < HARMONICS; k++) {
        a[k] = rng_uniform(rng, 0, roughness) / (float)(k + 1);
        p[k] = rng_uniform(rng, 0, 1);
    }
    for (int i = 0; i < N; i++) {
        float r = 1;
        for (int k = 0; k < HARMONICS; k++)
            r += a[k] * draw_cos((float)((k + 1) * i) / N + p[k]);
        radius[i] = r < 0.15f ? 0.15f : r;
        if (radius[i] > largest)
            largest = radius[i];
    }
    for (int i = 0; i < N; i++)
        path_point(path, radius[i] / largest * draw_cos((float)i / N),
                   radius[i] / largest * draw_sin((float)i / N));
    path_close(path, 0);
}

static void add_screw(Path *path, Rng *rng)
{
    float shank = rng_uniform(rng, 0.12f, 0.22f), head = rng_uniform(rng, 0.28f, 0.45f);
    float head_end = rng_uniform(rng, -0.8f, -0.55f), tip = rng_uniform(rng, 0, 0.3f),
          depth = rng_uniform(rng, 0, 0.06f);
    int n = 8 + rng_below(rng, 8);
    path_point(path, -1, -head);
    path_point(path, head_end, -head * rng_uniform(rng, 0.5f, 1));
    for (int i = 0; i <= n; i++)
        path_point(path, head_end + (1 - tip - head_end) * (float)i / (float)n, -shank + (i & 1 ? depth : 0));
    path_point(path, 1, 0);
    for (int i = n; i >= 0; i--)
        path_point(path, head_end + (1 - tip - head_end) * (float)i / (float)n, shank - (i & 1 ? 0 : depth));
    path_point(path, head_end, head);
    path_point(path, -1, head);
    path_close(path, 0);
}

/* The ten digits as polylines on a 4 x 6 raster. A pair of letters is a point (column, row); '|' lifts the
 * pen. */
static const char *const digit_strokes[10] = {
    "BACADBDECFBFAEABBA",     "BBCACF|BFDF", "ABBACADBDCAFDF",
    "AADABCCCDDDECFBFAE",     "CAADDD|CACF", "DAAAACCCDDDECFBFAF",
    "DABAADAEBFCFDEDDCCBCAD", "AADABF",      "BACADBCCBCABBA|BCADAEBFCFDEDDCC",
    "DCBDACABBACADBDDCF",
};

/* Strokes like handwriting: a polyline with shake, drawn with a thick pen. It is a digit's, or a random
 * one for letters. */
static void add_glyph(Path *path, Rng *rng, int digit)
{
    float pen = rng_uniform(rng, 0.09f, 0.2f), slant = rng_uniform(rng, -0.25f, 0.25f),
          shake = rng_uniform(rng, 0, 0.08f);
    float wide = rng_uniform(rng, 0.4f, 0.62f);
    Point last = {0, 0};
    int down = 0, n = digit < 0 ? 3 + rng_below(rng, 4) : (int)strlen(digit_strokes[digit]);
    for (int i = 0; i < n;) {
        Point p;
        if (digit < 0) {
            p.x = (float)rng_below(rng, 3) - 1;
            p.y = (float)rng_below(rng, 3) - 1;
            if (rng_chance(rng, 0.15f))
                down = 0;
            i++;
        } else {
            const char *s = digit_strokes[digit] + i;
            if (*s == '|') {
                down = 0;
                i++;
                continue;
            }
            p.x = (float)(s[0] - 'A') / 1.5f - 1;
            p.y = (float)(s[1] - 'A') / 2.5f - 1;
            i += 2;
        }
        p.x = wide * p.x - slant * p.y * 0.6f + shake * rng_normal(rng);
        p.y = 0.8f * p.y + shake * rng_normal(rng);
        if (down)
            add_stroke(path, last, p, pen);
        last = p;
        down = 1;
    }
    if (!path->n_outlines)
        add_stroke(path, last, (Point){-last.x, -last.y + 0.3f}, pen);
}

static void add_letter(Path *path, Rng *rng)
{
    if (rng_chance(rng, 0.5f))
        add_glyph(path, rng, -1);
    else
        add_glyph(path, rng, rng_below(rng, 10));
}

static void add_crescent(Path *path, Rng *rng)
{
    float bite = rng_uniform(rng, 0.3f, 0.75f);
    for (int i = 0; i <= 30; i++) {
        float t = 0.1f + 0.8f * (float)i / 30;
        path_point(path, draw_cos(t), draw_sin(t));
    }
    for (int i = 30; i >= 0; i--) {
        float t = 0.1f + 0.8f * (float)i / 30;
        float dent = bite * (1 - (2 * (float)i / 30 - 1) * (2 * (float)i / 30 - 1));
        path_point(path, draw_cos(t) + dent * 1.2f, draw_sin(t) * (1 - 0.15f * dent));
    }
    path_close(path, 0);
}

static void add_key(Path *path, Rng *rng)
{
    add_ellipse(path, -0.6f, 0, 0.4f, rng_uniform(rng, 0.32f, 0.4f), 0);
    add_ellipse(path, -0.68f, 0, 0.16f, 0.16f, 1);
    add_box(path, 0.35f, 0, 0.63f, rng_uniform(rng, 0.08f, 0.13f), 0.02f, 0);
    for (int i = 0, n = 1 + rng_below(rng, 3); i < n; i++)
        add_box(path, 0.9f - 0.22f * (float)i, 0.17f, 0.06f, rng_uniform(rng, 0.1f, 0.2f), 0, 0);
}

/* ---- the shapes: one function each ------------------------------------------------------------*/

/* The details of one shape, drawn from its form. */
typedef struct Form {
    Rng rng;
    uint64_t number;
    float thin, a, b; /* uniform: thin in 0.45..1, a and b in 0..1. */
} Form;

static void shape_ellipse(Path *path, Form *f)
{
    add_ellipse(path, 0, 0, 1, f->a < 0.4f ? 1 : f->thin, 0);
}

static void shape_rect(Path *path, Form *f)
{
    add_box(path, 0, 0, 1, f->thin, 0, 0);
}

static void shape_round_rect(Path *path, Form *f)
{
    add_box(path, 0, 0, 1, f->thin, 0.05f + 0.45f * f->a, 0);
}

static void shape_polygon(Path *path, Form *f)
{
    add_polygon(path, 3 + (int)(f->a * 5.99f), 1, f->b, 0);
}

static void shape_star(Path *path, Form *f)
{
    add_star(path, 4 + (int)(f->a * 5.99f), 0.35f + 0.4f * f->b, 0);
}

static void shape_ring(Path *path, Form *f)
{
    add_ellipse(path, 0, 0, 1, 1, 0);
    add_ellipse(path, 0, 0, 0.3f + 0.5f * f->a, 0.3f + 0.5f * f->a, 1);
}

static void shape_gear(Path *path, Form *f)
{
    add_gear(path, 7 + (int)(f->a * 10), 0.72f + 0.12f * f->b, 0.7f);
    if (f->thin > 0.6f)
        add_ellipse(path, 0, 0, 0.3f * f->thin, 0.3f * f->thin, 1);
}

static void shape_nut(Path *path, Form *f)
{
    add_polygon(path, 6, 1, 0, 0);
    add_ellipse(path, 0, 0, 0.35f + 0.25f * f->a, 0.35f + 0.25f * f->a, 1);
}

static void shape_screw(Path *path, Form *f)
{
    add_screw(path, &f->rng);
}

static void shape_rod(Path *path, Form *f)
{
    add_box(path, 0, 0, 1, 0.07f + 0.15f * f->a, f->b < 0.6f ? 1.0f : 0, 0);
}

static void shape_cross(Path *path, Form *f)
{
    add_box(path, 0, 0, 1, 0.18f + 0.2f * f->a, 0.1f * f->b, 0);
    add_box(path, 0, 0, 0.18f + 0.2f * f->a, f->thin, 0.1f * f->b, 0);
}

static void shape_blob(Path *path, Form *f)
{
    add_blob(path, &f->rng, 0.1f + 0.5f * f->a);
}

static void shape_crescent(Path *path, Form *f)
{
    add_crescent(path, &f->rng);
}

static void shape_letter(Path *path, Form *f)
{
    add_letter(path, &f->rng);
}

static void shape_arrow(Path *path, Form *f)
{
    add_box(path, -0.35f, 0, 0.65f, 0.12f + 0.15f * f->a, 0, 0);
    path_point(path, 0.2f, -0.6f * f->thin - 0.2f);
    path_point(path, 1, 0);
    path_point(path, 0.2f, 0.6f * f->thin + 0.2f);
    path_close(path, 0);
}

static void shape_key(Path *path, Form *f)
{
    add_key(path, &f->rng);
}

static void shape_l(Path *path, Form *f)
{
    add_box(path, 0, 0.65f, 0.9f, 0.3f, 0.08f * f->a, 0);
    add_box(path, -0.62f, 0, 0.28f, 0.95f, 0.08f * f->a, 0);
}

static void shape_digit(Path *path, Form *f)
{
    add_glyph(path, &f->rng, (int)(f->number % 10));
}

static void shape_panel(Path *path, Form *f)
{
    (void)f;
    add_box(path, 0, 0, 1, 1, 0.14f, 0);
}

static void shape_frame(Path *path, Form *f)
{
    add_box(path, 0, 0, 1, f->thin, 0.1f, 0);
    add_box(path, 0, 0, 0.72f, f->thin - 0.28f, 0.05f, 1);
}

void draw_shape(Path *path, int shape, uint64_t form)
{
    static void (*const draw[])(Path *, Form *) = {[SHAPE_ELLIPSE] = shape_ellipse,
                                                   [SHAPE_RECT] = shape_rect,
                                                   [SHAPE_ROUND_RECT] = shape_round_rect,
                                                   [SHAPE_POLYGON] = shape_polygon,
                                                   [SHAPE_STAR] = shape_star,
                                                   [SHAPE_RING] = shape_ring,
                                                   [SHAPE_GEAR] = shape_gear,
                                                   [SHAPE_NUT] = shape_nut,
                                                   [SHAPE_SCREW] = shape_screw,
                                                   [SHAPE_ROD] = shape_rod,
                                                   [SHAPE_CROSS] = shape_cross,
                                                   [SHAPE_BLOB] = shape_blob,
                                                   [SHAPE_CRESCENT] = shape_crescent,
                                                   [SHAPE_LETTER] = shape_letter,
                                                   [SHAPE_ARROW] = shape_arrow,
                                                   [SHAPE_KEY] = shape_key,
                                                   [SHAPE_L] = shape_l,
                                                   [SHAPE_DIGIT] = shape_digit,
                                                   [SHAPE_PANEL] = shape_panel,
                                                   [SHAPE_FRAME] = shape_frame};
    Form f = {.number = form};
    rng_seed(&f.rng, form, 7);
    f.thin = rng_uniform(&f.rng, 0.45f, 1.0f);
    f.a = rng_uniform(&f.rng, 0, 1);
    f.b = rng_uniform(&f.rng, 0, 1);
    path->n_points = path->n_outlines = 0;
    draw[shape](path, &f);
}

float draw_shape_aspect(int shape, uint64_t form, float height_over_width)
{
    Path path;
    float wide = 0, tall = 0;
    draw_shape(&path, shape, form);
    for (int i = 0; i < path.n_points; i++) {
        if (path.points[i].x > wide)
            wide = path.points[i].x;
        if (path.points[i].y > tall)
            tall = path.points[i].y;
    }
    return tall > 0 ? height_over_width * wide / tall : 1;
}

/* ------------------------------------------------------------------------------------- rasteriser */

/* A window of the canvas: origin (x0, y0), size w x h. Its planes have rows of w + 2 floats: the
 * rasteriser writes up to two cells past the end of a row. */
typedef struct {
    int x0, y0, w, h;
} Window;

/* Add one edge to the accumulation plane. Each cell receives the change of coverage from this cell to the
 * next. The running sum along a row is the exact covered area of every pixel. */
static void accumulate_edge(float *plane, const Window *win, Point p0, Point p1)
{
    if (p0.y == p1.y)
        return;
    float direction = 1;
    if (p0.y > p1.y) {
        Point t = p0;
        p0 = p1;
        p1 = t;
        direction = -1;
    }
    if (p1.y <= 0 || p0.y >= (float)win->h)
        return;
    float slope = (p1.x - p0.x) / (p1.y - p0.y), x = p0.x, right = (float)win->w;
    if (p0.y < 0)
        x -= p0.y * slope;
    int first = p0.y < 0 ? 0 : (int)p0.y, last = p1.y > (float)win->h ? win->h : (int)ceilf(p1.y);
    for (int row = first; row < last; row++) {
        float *line = plane + (long)row * (win->w + 2);
        float y_low = p0.y > (float)row ? p0.y : (float)row,
              y_high = p1.y < (float)(row + 1) ? p1.y : (float)(row + 1);
        float dy = y_high - y_low, x_next = x + slope * dy, d = dy * direction;
        float xa = x < x_next ? x : x_next, xb = x < x_next ? x_next : x;
        x = x_next;
        xa = xa < 0 ? 0 : xa > right ? right : xa;
        xb = xb < 0 ? 0 : xb > right ? right : xb;
        int ia = (int)xa, ib = (int)ceilf(xb);
        if (ib <= ia + 1) { /* the edge stays within one pixel of this row. */
            float middle = 0.5f * (xa + xb) - (float)ia;
            line[ia] += d - d * middle;
            line[ia + 1] += d * middle;
            continue;
        }
        float s = 1 / (xb - xa), fa = xa - (float)ia, fb = xb - (float)(ib - 1);
        float head = 0.5f * s * (1 - fa) * (1 - fa), tail = 0.5f * s * fb * fb;
        line[ia] += d * head;
        if (ib == ia + 2) {
            line[ia + 1] += d * (1 - head - tail);
        } else {
            float second = s * (1.5f - fa);
            line[ia + 1] += d * (second - head);
            for (int i = ia + 2; i < ib - 1; i++)
                line[i] += d * s;
            line[ib - 1] += d * (1 - (second + (float)(ib - ia - 3) * s) - tail);
        }
        line[ib] += d * tail;
    }
}

typedef struct {
    float cx, cy, cos_scale, sin_scale, aspect;
} Placement;

static Placement place(float cx, float cy, float angle, float scale, float aspect)
{
    return (Placement){cx, cy, draw_cos(angle) * scale, draw_sin(angle) * scale, aspect};
}

static Point transform(const Placement *t, Point p)
{
    float y = p.y * t->aspect;
    return (Point){t->cx + t->cos_scale * p.x - t->sin_scale * y,
                   t->cy + t->sin_scale * p.x + t->cos_scale * y};
}

/* The path's bounding box on the canvas, grown by `margin` and cut at the canvas. Returns 0 when it is
 * empty. */
static int path_window(const Canvas *canvas, const Path *path, const Placement *t, float margin, Window *win)
{
    float left = 1e9f, top = 1e9f, right = -1e9f, bottom = -1e9f;
    for (int i = 0; i < path->n_points; i++) {
        Point p = transform(t, path->points[i]);
        if (p.x < left)
            left = p.x;
        if (p.x > right)
            right = p.x;
        if (p.y < top)
            top = p.y;
        if (p.y > bottom)
            bottom = p.y;
    }
    if (!(right + margin >= 0 && left - margin <= (float)canvas->width))
        return 0;
    if (!(bottom + margin >= 0 && top - margin <= (float)canvas->height))
        return 0;
    int x1, y1;
    win->x0 = left - margin < 0 ? 0 : (int)(left - margin);
    win->y0 = top - margin < 0 ? 0 : (int)(top - margin);
    x1 = right + margin + 1 > (float)canvas->width ? canvas->width : (int)(right + margin + 1);
    y1 = bottom + margin + 1 > (float)canvas->height ? canvas->height : (int)(bottom + margin + 1);
    win->w = x1 - win->x0;
    win->h = y1 - win->y0;
    return win->w > 0 && win->h > 0;
}

/* Coverage 0..1 of every pixel of the window. */
static void rasterise(const Path *path, const Placement *t, const Window *win, float *plane)
{
    memset(plane, 0, sizeof(float) * (size_t)(win->w + 2) * (size_t)win->h);
    for (int k = 0, first = 0; k < path->n_outlines; first = path->ends[k++]) {
        Point before = transform(t, path->points[path->ends[k] - 1]);
        before.x -= (float)win->x0;
        before.y -= (float)win->y0;
        for (int i = first; i < path->ends[k]; i++) {
            Point p = transform(t, path->points[i]);
            p.x -= (float)win->x0;
            p.y -= (float)win->y0;
            accumulate_edge(plane, win, before, p);
            before = p;
        }
    }
    for (int y = 0; y < win->h; y++) {
        float *line = plane + (long)y * (win->w + 2), sum = 0;
        for (int x = 0; x < win->w; x++) {
            sum += line[x];
            /* the running sum leaves a rounding error: cut it off. */
            float c = sum < 0 ? -sum : sum;
            line[x] = c < 1e-3f ? 0 : c > 0.999f ? 1 : c;
        }
    }
}

static float *scratch_plane(const Canvas *canvas, int i)
{
    return canvas->scratch + (size_t)i * (size_t)(canvas->width + 2) * (size_t)canvas->height;
}

/* out = in averaged over 2r+1 pixels along every row; edges are replicated. */
static void blur_rows(const float *in, float *out, const Window *win, int r)
{
    int n = win->w, stride = n + 2;
    float inverse = 1 / (float)(2 * r + 1);
    for (int y = 0; y < win->h; y++, in += stride, out += stride) {
        float sum = in[0] * (float)(r + 1);
        for (int i = 0; i < r; i++)
            sum += in[i < n ? i : n - 1];
        for (int i = 0; i < n; i++) {
            sum += in[i + r < n ? i + r : n - 1];
            out[i] = sum * inverse;
            sum -= in[i - r > 0 ? i - r : 0];
        }
    }
}

/* The same along columns, one row of all columns at a time; sum has w floats. */
static void blur_columns(const float *in, float *out, const Window *win, int r, float *sum)
{
    int n = win->h, w = win->w;
    long stride = w + 2;
    float inverse = 1 / (float)(2 * r + 1);
    for (int x = 0; x < w; x++)
        sum[x] = in[x] * (float)(r + 1);
    for (int i = 0; i < r; i++) {
        const float *row = in + stride * (i < n ? i : n - 1);
        for (int x = 0; x < w; x++)
            sum[x] += row[x];
    }
    for (int i = 0; i < n; i++) {
        const float *add = in + stride * (i + r < n ? i + r : n - 1),
                    *drop = in + stride * (i - r > 0 ? i - r : 0);
        for (int x = 0; x < w; x++) {
            sum[x] += add[x];
            out[stride * i + x] = sum[x] * inverse;
            sum[x] -= drop[x];
        }
    }
}

/* Two box blurs along each axis: close to a Gaussian of deviation about 0.8 r. Uses scratch planes 2 and 3.
 */
static void box_blur(const Canvas *canvas, float *plane, const Window *win, int r)
{
    if (r < 1)
        return;
    float *other = scratch_plane(canvas, 3), *sum = scratch_plane(canvas, 2);
    for (int pass = 0; pass < 2; pass++) {
        blur_rows(plane, other, win, r);
        blur_columns(other, plane, win, r, sum);
    }
}

/* --------------------------------------------------------------------------------------- textures */

static inline float triangle_wave(float x)
{
    float f = x - (float)floor_int(x);
    return f < 0.5f ? 2 * f : 2 - 2 * f;
}

/* A 0/1 pattern whose edge is softened over about a pixel: v crosses 0.5 with `slope` per pixel. */
static inline float soft_step(float v, float slope)
{
    return clamp01((v - 0.5f) / (slope + 1e-6f) + 0.5f);
}

/* The texture's value in 0..1 (0 = color, 1 = color2) at (u, v), pixels in the object's own frame. */
static float texture_value(const Look *look, float u, float v)
{
    float p = look->period, x = u / p, y = v / p, n;
    uint32_t g = look->grain;
    switch (look->texture) {
    case TEXTURE_STRIPES:
        return soft_step(triangle_wave(x), 2 / p);
    case TEXTURE_CHECKS: {
        float a = soft_step(triangle_wave(x), 2 / p), b = soft_step(triangle_wave(y), 2 / p);
        return a + b - 2 * a * b;
    }
    case TEXTURE_DOTS: {
        float fx = x - (float)floor_int(x) - 0.5f, fy = y - (float)floor_int(y) - 0.5f;
        return clamp01((0.3f - sqrtf(fx * fx + fy * fy)) * p + 0.5f);
    }
    case TEXTURE_CLOUDS:
        n = 0.6f * value_noise(x, y, g) + 0.3f * value_noise(2.1f * x, 2.1f * y, g + 1);
        return n + 0.1f * value_noise(4.3f * x, 4.3f * y, g + 2);
    case TEXTURE_BRUSHED:
        return 0.6f * value_noise(0.12f * x, 3 * y, g) + 0.4f * value_noise(0.3f * x, 8 * y, g + 1);
    case TEXTURE_WOOD:
        n = 1.6f * value_noise(0.25f * x, 0.6f * y, g);
        return 0.75f * triangle_wave(0.35f * y + n) + 0.25f * value_noise(0.2f * x, 6 * y, g + 1);
    case TEXTURE_GRADIENT:
        return clamp01(0.5f + 0.12f * x);
    case TEXTURE_SPECKLE: {
        float c = cell_value(floor_int(4 * x), floor_int(4 * y), g);
        return c > 0.86f ? 1 : 0.25f * value_noise(x, y, g + 1);
    }
    case TEXTURE_MARBLE:
        n = value_noise(x, y, g) + 0.5f * value_noise(2 * x, 2 * y, g + 1);
        n = triangle_wave(0.5f * x + 1.5f * n);
        return n * n;
    case TEXTURE_WEAVE: {
        float a = triangle_wave(2 * x), b = triangle_wave(2 * y);
        int over = (floor_int(2 * x) + floor_int(2 * y)) & 1;
        return 0.8f * (over ? a : b) + 0.2f * value_noise(3 * x, 3 * y, g);
    }
    case TEXTURE_TURNED:
        return 0.5f * triangle_wave(1.5f * sqrtf(x * x + y * y)) + 0.3f * value_noise(2 * x, 2 * y, g);
    default:
        return 0;
    }
}

void canvas_background(Canvas *canvas, const Look *look)
{
    float c = draw_cos(look->angle), s = draw_sin(look->angle);
    memset(canvas->ids, 0, sizeof(uint16_t) * (size_t)canvas->width * (size_t)canvas->height);
    memset(canvas->damage, 0, (size_t)canvas->width * (size_t)canvas->height);
    for (int y = 0; y < canvas->height; y++)
        for (int x = 0; x < canvas->width; x++) {
            float *out = canvas->rgb + 3 * ((long)y * canvas->width + x), dx = (float)x, dy = (float)y;
            float t = look->texture == TEXTURE_FLAT ? 0
                                                    : texture_value(look, c * dx + s * dy + look->phase[0],
                                                                    c * dy - s * dx + look->phase[1]);
            for (int k = 0; k < 3; k++)
                out[k] = mix(look->color[k], look->color2[k], t);
        }
}

/* ------------------------------------------------------------------------------------------ parts */

/* Darken the canvas beneath: the coverage, shifted away from the light and blurred. */
static void cast_shadow(Canvas *canvas, const Part *part, const Window *win, const float *cover)
{
    float *soft = scratch_plane(canvas, 1);
    int dx = (int)(part->height * -canvas->light[0] + 64.5f) - 64,
        dy = (int)(part->height * -canvas->light[1] + 64.5f) - 64;
    int stride = win->w + 2;
    for (int y = 0; y < win->h; y++)
        for (int x = 0; x < win->w; x++) {
            int sx = x - dx, sy = y - dy;
            soft[(long)y * stride + x] =
                sx >= 0 && sy >= 0 && sx < win->w && sy < win->h ? cover[(long)sy * stride + sx] : 0;
        }
    box_blur(canvas, soft, win, 1 + (int)(0.5f * part->height));
    for (int y = 0; y < win->h; y++)
        for (int x = 0; x < win->w; x++) {
            float dark = 1 - part->shadow * soft[(long)y * stride + x];
            float *out = canvas->rgb + 3 * ((long)(win->y0 + y) * canvas->width + win->x0 + x);
            for (int k = 0; k < 3; k++)
                out[k] *= dark;
        }
}

/* Light and shade of a rounded edge. The blurred coverage is the height of the surface; its slope against
 * the light gives the brightness. Writes the change of brightness to scratch plane 1. */
static const float *edge_shade(Canvas *canvas, const Look *look, const Window *win, const float *cover)
{
    float *h = scratch_plane(canvas, 1), *shade = scratch_plane(canvas, 2);
    float width = look->bevel < 0 ? -look->bevel : look->bevel, sign = look->bevel < 0 ? -1.0f : 1.0f;
    int r = (int)(width + 0.5f), stride = win->w + 2;
    memcpy(h, cover, sizeof(float) * (size_t)stride * (size_t)win->h);
    box_blur(canvas, h, win, r < 1 ? 1 : r);
    float strength = sign * look->relief * width;
    for (int y = 0; y < win->h; y++) {
        const float *up = h + (long)(y > 0 ? y - 1 : y) * stride,
                    *down = h + (long)(y < win->h - 1 ? y + 1 : y) * stride;
        const float *row = h + (long)y * stride;
        for (int x = 0; x < win->w; x++) {
            float gx = row[x < win->w - 1 ? x + 1 : x] - row[x > 0 ? x - 1 : x], gy = down[x] - up[x];
            float s = -strength * (gx * canvas->light[0] + gy * canvas->light[1]);
            shade[(long)y * stride + x] = s + look->gloss * 0.8f * s * s * (s > 0 ? s : 0);
        }
    }
    return shade;
}

/* Paint the covered pixels with the part's surface. */
static void paint(Canvas *canvas, const Part *part, const Window *win, const float *cover, const float *shade,
                  int id)
{
    const Look *look = &part->look;
    float turn = part->angle + look->angle, c = draw_cos(turn), s = draw_sin(turn);
    int stride = win->w + 2;
    for (int y = 0; y < win->h; y++)
        for (int x = 0; x < win->w; x++) {
            float a = cover[(long)y * stride + x];
            if (a <= 0)
                continue;
            long at = (long)(win->y0 + y) * canvas->width + win->x0 + x;
            float dx = (float)(win->x0 + x) - part->cx, dy = (float)(win->y0 + y) - part->cy,
                  *out = canvas->rgb + 3 * at;
            float t = look->texture == TEXTURE_FLAT ? 0
                                                    : texture_value(look, c * dx + s * dy + look->phase[0],
                                                                    c * dy - s * dx + look->phase[1]);
            float light = 1, shine = 0;
            if (shade) {
                float e = shade[(long)y * stride + x];
                light = 1 + (e < -0.75f ? -0.75f : e);
                if (e > 0)
                    shine = look->gloss * 0.5f * e;
            }
            /* a curved surface is a little brighter on the side of the light. */
            light +=
                look->relief * 0.18f * (dx * canvas->light[0] + dy * canvas->light[1]) / (part->scale + 1);
            for (int k = 0; k < 3; k++)
                out[k] = mix(out[k], clamp01(mix(look->color[k], look->color2[k], t) * light + shine), a);
            if (a > 0.5f) {
                canvas->ids[at] = (uint16_t)id;
                canvas->damage[at] = 0;
            }
        }
}

static float luminance(const float *rgb)
{
    return 0.3f * rgb[0] + 0.6f * rgb[1] + 0.1f * rgb[2];
}

/* Blend `color` over the part where overlay x cover is positive, and mark the visible changes. */
static void overlay(Canvas *canvas, const Window *win, const float *cover, const float *over,
                    const float *color, float alpha)
{
    int stride = win->w + 2;
    for (int y = 0; y < win->h; y++)
        for (int x = 0; x < win->w; x++) {
            float a = cover[(long)y * stride + x] * over[(long)y * stride + x] * alpha, change = 0;
            if (a <= 0)
                continue;
            long at = (long)(win->y0 + y) * canvas->width + win->x0 + x;
            float *out = canvas->rgb + 3 * at;
            for (int k = 0; k < 3; k++) {
                float v = clamp01(mix(out[k], color[k], a));
                change += v > out[k] ? v - out[k] : out[k] - v;
                out[k] = v;
            }
            if (change > 0.07f && cover[(long)y * stride + x] > 0.5f)
                canvas->damage[at] = 1;
        }
}

/* A point within the part: on the shape's outline, moved towards its centre by 1 - reach. */
static Point point_on_part(const Path *path, const Placement *t, Rng *rng, float reach)
{
    int n = path->n_outlines ? path->ends[0] : 1;
    Point p = path->points[rng_below(rng, n)];
    p.x *= reach;
    p.y *= reach;
    return transform(t, p);
}

static void damage_scratch(Canvas *canvas, const Part *part, const Path *path, const Placement *t,
                           const Window *win, const float *cover, Rng *rng)
{
    float *over = scratch_plane(canvas, 1), width = canvas->unit * rng_uniform(rng, 0.9f, 1.7f);
    float color[3] = {0.95f, 0.95f, 0.92f};
    if (luminance(part->look.color) > 0.5f)
        color[0] = color[1] = color[2] = 0.12f;
    Path line = {.n_points = 0, .n_outlines = 0};
    for (int i = 0, n = 1 + rng_below(rng, 3); i < n; i++) {
        /* from near the edge across the centre; one draw a statement, because C leaves the order within a
         * statement open. */
        Point a = point_on_part(path, t, rng, rng_uniform(rng, 0.5f, 0.95f)), b, middle;
        float reach = rng_uniform(rng, 1.1f, 1.9f);
        b.x = mix(a.x, part->cx, reach);
        b.y = mix(a.y, part->cy, reach);
        b.x += rng_normal(rng) * 0.15f * part->scale;
        b.y += rng_normal(rng) * 0.15f * part->scale;
        middle.x = 0.5f * (a.x + b.x) + rng_normal(rng) * 0.1f * part->scale;
        middle.y = 0.5f * (a.y + b.y) + rng_normal(rng) * 0.1f * part->scale;
        add_stroke(&line, a, middle, width);
        add_stroke(&line, middle, b, width * 0.8f);
    }
    Placement identity = {0, 0, 1, 0, 1};
    rasterise(&line, &identity, win, over);
    overlay(canvas, win, cover, over, color, rng_uniform(rng, 0.75f, 1));
}

static void damage_stain(Canvas *canvas, const Part *part, const Path *path, const Placement *t,
                         const Window *win, const float *cover, Rng *rng)
{
    static const float stains[4][3] = {
        {0.35f, 0.2f, 0.08f}, {0.15f, 0.15f, 0.16f}, {0.55f, 0.3f, 0.1f}, {0.2f, 0.35f, 0.12f}};
    static const float pale[3] = {0.92f, 0.9f, 0.8f};
    int dark = luminance(part->look.color) < 0.22f;
    float *over = scratch_plane(canvas, 1), size = part->scale * rng_uniform(rng, 0.28f, 0.5f);
    const float *color = dark ? pale : stains[rng_below(rng, 4)];
    Point p = point_on_part(path, t, rng, rng_uniform(rng, 0.2f, 0.8f));
    Path blob = {.n_points = 0, .n_outlines = 0};
    add_blob(&blob, rng, 0.45f);
    Placement where =
        place(p.x, p.y, rng_uniform(rng, 0, 1), size < 4 * canvas->unit ? 4 * canvas->unit : size, 1);
    rasterise(&blob, &where, win, over);
    box_blur(canvas, over, win, 1 + (int)(0.04f * size));
    overlay(canvas, win, cover, over, color, rng_uniform(rng, 0.65f, 0.9f));
}

/* A dent: a round hollow, dark on the side of the light and bright opposite. */
static void damage_dent(Canvas *canvas, const Part *part, const Path *path, const Placement *t,
                        const Window *win, const float *cover, Rng *rng)
{
    static const float black[3] = {0.05f, 0.05f, 0.05f}, white[3] = {1, 1, 1};
    float *over = scratch_plane(canvas, 1), size = part->scale * rng_uniform(rng, 0.28f, 0.45f);
    if (size < 4.5f * canvas->unit)
        size = 4.5f * canvas->unit;
    Point p = point_on_part(path, t, rng, rng_uniform(rng, 0.1f, 0.65f));
    int stride = win->w + 2;
    for (int side = 0; side < 2; side++) {
        for (int y = 0; y < win->h; y++)
            for (int x = 0; x < win->w; x++) {
                float dx = ((float)(win->x0 + x) - p.x) / size, dy = ((float)(win->y0 + y) - p.y) / size;
                float r2 = dx * dx + dy * dy, slope = dx * canvas->light[0] + dy * canvas->light[1];
                if (side)
                    slope = -slope;
                /* the steepest place of the hollow's wall is at about 0.7 of its radius. */
                over[(long)y * stride + x] = r2 < 1 && slope > 0 ? clamp01(3.2f * slope * (1 - r2)) : 0;
            }
        overlay(canvas, win, cover, over, side ? white : black, side ? 0.6f : 0.75f);
    }
}

/* A chunk broken off at the edge. It is removed from the coverage before the part is drawn; `lost` keeps
 * its place. */
static void damage_broken(Canvas *canvas, const Part *part, const Path *path, const Placement *t,
                          const Window *win, float *cover, uint8_t *lost, Rng *rng)
{
    float *bite = scratch_plane(canvas, 1);
    int stride = win->w + 2;
    Path blob = {.n_points = 0, .n_outlines = 0};
    int corners = 5 + rng_below(rng, 3);
    add_polygon(&blob, corners, 1, rng_uniform(rng, 0, 1), 0);
    for (int i = 0; i < blob.n_points; i++) {
        float r = rng_uniform(rng, 0.6f, 1.1f);
        blob.points[i].x *= r;
        blob.points[i].y *= r;
    }
    Point p = point_on_part(path, t, rng, rng_uniform(rng, 0.8f, 0.98f));
    float size = part->scale * rng_uniform(rng, 0.38f, 0.6f), least = 4.5f * canvas->unit;
    Placement where = place(p.x, p.y, rng_uniform(rng, 0, 1), size < least ? least : size, 1);
    rasterise(&blob, &where, win, bite);
    for (int y = 0; y < win->h; y++)
        for (int x = 0; x < win->w; x++) {
            long i = (long)y * stride + x;
            float before = cover[i];
            cover[i] *= 1 - bite[i];
            lost[(long)y * win->w + x] = before > 0.5f && cover[i] <= 0.5f;
        }
}

void canvas_damage(Canvas *canvas, const Part *part)
{
    Path path;
    Window win;
    Rng rng;
    draw_shape(&path, part->shape, part->form);
    Placement t = place(part->cx, part->cy, part->angle, part->scale, part->aspect);
    if (!path_window(canvas, &path, &t, 2, &win))
        return;
    float *cover = scratch_plane(canvas, 0);
    rasterise(&path, &t, &win, cover);
    rng_seed(&rng, part->damage_seed, 11);
    if (part->damage == DAMAGE_SCRATCH)
        damage_scratch(canvas, part, &path, &t, &win, cover, &rng);
    if (part->damage == DAMAGE_STAIN)
        damage_stain(canvas, part, &path, &t, &win, cover, &rng);
    if (part->damage == DAMAGE_DENT)
        damage_dent(canvas, part, &path, &t, &win, cover, &rng);
}

void canvas_part(Canvas *canvas, const Part *part, int id)
{
    Path path;
    Window win;
    Rng rng;
    const Look *look = &part->look;
    draw_shape(&path, part->shape, part->form);
    Placement t = place(part->cx, part->cy, part->angle, part->scale, part->aspect);
    float margin = 2 + (part->shadow > 0 ? 2.2f * part->height + 2 : 0);
    if (!path_window(canvas, &path, &t, margin, &win))
        return;
    float *cover = scratch_plane(canvas, 0);
    uint8_t *lost = (uint8_t *)scratch_plane(canvas, 4);
    rasterise(&path, &t, &win, cover);
    rng_seed(&rng, part->damage_seed, 11);
    int broken = part->damage == DAMAGE_BROKEN;
    if (broken)
        damage_broken(canvas, part, &path, &t, &win, cover, lost, &rng);
    if (part->shadow > 0)
        cast_shadow(canvas, part, &win, cover);
    int rounded = look->bevel != 0 && look->relief > 0;
    paint(canvas, part, &win, cover, rounded ? edge_shade(canvas, look, &win, cover) : NULL, id);
    for (int y = 0; broken && y < win.h; y++)
        for (int x = 0; x < win.w; x++)
            if (lost[(long)y * win.w + x])
                canvas->damage[(long)(win.y0 + y) * canvas->width + win.x0 + x] = 1;
}

void canvas_silhouette(Canvas *canvas, const Part *part, uint8_t *mask)
{
    Path path;
    Window win;
    draw_shape(&path, part->shape, part->form);
    Placement t = place(part->cx, part->cy, part->angle, part->scale, part->aspect);
    if (!path_window(canvas, &path, &t, 1, &win))
        return;
    float *cover = scratch_plane(canvas, 0);
    rasterise(&path, &t, &win, cover);
    for (int y = 0; y < win.h; y++)
        for (int x = 0; x < win.w; x++)
            if (cover[(long)y * (win.w + 2) + x] > 0.5f)
                mask[(long)(win.y0 + y) * canvas->width + win.x0 + x] = 1;
}

/* ----------------------------------------------------------------------------------------- canvas */

enum { SCRATCH_PLANES = 5, MAX_SIDE = 8192 };

int canvas_init(Canvas *canvas, int width, int height)
{
    memset(canvas, 0, sizeof *canvas);
    if (width < 8 || height < 8 || width > MAX_SIDE || height > MAX_SIDE)
        return -1;
    size_t n = (size_t)width * (size_t)height, plane = (size_t)(width + 2) * (size_t)height;
    canvas->width = width;
    canvas->height = height;
    canvas->unit = (float)(width < height ? width : height) / 256.0f;
    canvas->rgb = malloc(sizeof(float) * 3 * n);
    canvas->ids = malloc(sizeof(uint16_t) * n);
    canvas->damage = malloc(n);
    canvas->scratch = malloc(sizeof(float) * SCRATCH_PLANES * plane);
    if (canvas->rgb && canvas->ids && canvas->damage && canvas->scratch)
        return 0;
    canvas_free(canvas);
    return -1;
}

void canvas_free(Canvas *canvas)
{
    free(canvas->rgb);
    free(canvas->ids);
    free(canvas->damage);
    free(canvas->scratch);
    memset(canvas, 0, sizeof *canvas);
}

/* A separable blur of deviation sigma: a five-tap kernel like the binomial one, with the wanted variance.
 * Larger deviations repeat it. */
static void lens_blur(Canvas *canvas, float sigma)
{
    float variance = sigma * sigma;
    int w = canvas->width, h = canvas->height;
    float *copy = canvas->scratch; /* SCRATCH_PLANES >= 3 planes: room for one rgb image. */
    while (variance > 1e-3f) {
        float v = variance > 0.6f ? 0.6f : variance, side = 0.5f * v, centre = 1 - v;
        variance -= v;
        for (int y = 0; y < h; y++) {
            const float *in = canvas->rgb + 3L * y * w;
            float *out = copy + 3L * y * w;
            for (int x = 0; x < w; x++) {
                const float *l = in + 3 * (x > 0 ? x - 1 : 0), *r = in + 3 * (x < w - 1 ? x + 1 : x);
                for (int k = 0; k < 3; k++)
                    out[3 * x + k] = centre * in[3 * x + k] + side * (l[k] + r[k]);
            }
        }
        for (int y = 0; y < h; y++) {
            const float *in = copy + 3L * y * w, *up = copy + 3L * (y > 0 ? y - 1 : 0) * w;
            const float *down = copy + 3L * (y < h - 1 ? y + 1 : y) * w;
            float *out = canvas->rgb + 3L * y * w;
            for (int x = 0; x < 3 * w; x++)
                out[x] = centre * in[x] + side * (up[x] + down[x]);
        }
    }
}

void canvas_develop(Canvas *canvas, const Camera *camera, uint8_t *rgb)
{
    int w = canvas->width, h = canvas->height;
    Rng rng;
    rng_seed(&rng, camera->noise_seed, 13);
    if (camera->blur > 0)
        lens_blur(canvas, camera->blur);
    for (int y = 0; y < h; y++) {
        float fy = ((float)y + 0.5f) / (float)h - 0.5f;
        for (int x = 0; x < w; x++) {
            float fx = ((float)x + 0.5f) / (float)w - 0.5f;
            float light = 1 + camera->gradient[0] * fx + camera->gradient[1] * fy -
                          2 * camera->vignette * (fx * fx + fy * fy);
            long at = 3 * ((long)y * w + x);
            for (int k = 0; k < 3; k++) {
                float v = canvas->rgb[at + k] * light * camera->gain[k];
                if (camera->noise > 0)
                    v += camera->noise * rng_normal(&rng);
                rgb[at + k] = (uint8_t)(clamp01(v) * 255.0f + 0.5f);
            }
        }
    }
}
