/* scenes.c - procedural scenes for training the shipped tiny weights, called from scenes.py through ctypes.
 *
 * scene_render(seed, jitter_seed, difficulty, kind, size) draws one square image and says which object every
 * pixel belongs to. `seed` decides layout and appearance. `jitter_seed` != 0 draws the same scene again with
 * small changes of place, rotation, light, texture and noise: object i of both views is the same thing. Three
 * families of scenes: general (anything on anything), trays (compartments with parts, like inspection
 * images), and grids of glyphs (like handwritten digits). The drawing itself is eval/draw.c. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "eval/draw.h"

typedef struct {
    int32_t parent; /* the object that this one is a part of, or -1 */
    int32_t shape, texture, damage;
    float color[3], color2[3];
    float cx, cy, angle, scale; /* pixels, turns */
    int32_t area;               /* visible pixels; 0 = hidden */
} SceneObject;

enum {
    KIND_MIXED, KIND_GENERAL, KIND_TRAY, KIND_GLYPHS, KIND_MASK = 15, KIND_NO_DAMAGE = 16,
    KIND_ALL_DAMAGED = 32
};
enum { MAX_NODES = 256 };

/* A part with its place in the scene: free (frame = -1: part.cx, cy, angle as they are), or carried along by
 * another node, at an offset in that node's unrotated frame. */
typedef struct {
    Part part;
    int frame, parent;
    float shift, turn; /* deviation of the jitter: pixels, turns */
} Node;

typedef struct {
    Rng layout;
    float difficulty, size, unit;
    int n, max;
    Node nodes[MAX_NODES];
    Look background;
    float damage_rate;
    float light_angle;
} Scene;

/* ------------------------------------------------------------------------------------- appearance */

static float clamp01(float x)
{
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

/* Any surface; `strength` 0..1 is how strong textures may be. */
static Look random_look(Rng *rng, float strength, float unit)
{
    Look look = {0};
    rng_color(rng, look.color);
    look.texture = rng_chance(rng, 0.75f * strength) ? 1 + rng_below(rng, TEXTURE_COUNT - 1) : TEXTURE_FLAT;
    if (rng_chance(rng, 0.35f))
        rng_color(rng, look.color2);
    else
        rng_color_near(rng, look.color, look.color2, rng_uniform(rng, 0.05f, 0.45f));
    look.period = unit * rng_log_uniform(rng, 3.5f, 30);
    look.angle = rng_uniform(rng, 0, 1);
    look.phase[0] = rng_uniform(rng, 0, 500);
    look.phase[1] = rng_uniform(rng, 0, 500);
    look.grain = (uint32_t)rng_next(rng);
    if (rng_chance(rng, 0.75f * strength)) {
        look.bevel = unit * rng_log_uniform(rng, 1, 8);
        look.relief = rng_uniform(rng, 0.2f, 1.1f);
        look.gloss = rng_chance(rng, 0.5f) ? rng_uniform(rng, 0, 1) : 0;
    }
    return look;
}

static Part random_part(Scene *scene, float radius)
{
    Rng *rng = &scene->layout;
    Part part = {0};
    part.shape = rng_below(rng, SHAPE_COUNT);
    if (rng_chance(rng, 0.25f)) part.shape = SHAPE_BLOB;
    part.form = rng_next(rng);
    part.angle = rng_uniform(rng, 0, 1);
    part.aspect = rng_chance(rng, 0.3f) ? rng_uniform(rng, 0.5f, 1.2f) : 1;
    part.scale = radius;
    part.look = random_look(rng, scene->difficulty, scene->unit);
    if (part.look.bevel > 0.4f * radius) part.look.bevel = 0.4f * radius;
    if (rng_chance(rng, 0.55f * scene->difficulty)) {
        part.shadow = rng_uniform(rng, 0.15f, 0.65f);
        part.height = scene->unit * rng_uniform(rng, 1, 7);
    }
    part.damage_seed = rng_next(rng);
    if (rng_chance(rng, scene->damage_rate)) part.damage = 1 + rng_below(rng, DAMAGE_COUNT - 1);
    return part;
}

static int add_node(Scene *scene, const Part *part, int frame, int parent, float shift, float turn)
{
    if (scene->n == scene->max) return -1;
    scene->nodes[scene->n] = (Node){*part, frame, parent, shift, turn};
    return scene->n++;
}

/* ---------------------------------------------------------------------------------------- general */

/* Sub-parts on a part: holes, caps, slots, prints. They are objects of their own, with the carrier as parent.
 */
static void add_sub_parts(Scene *scene, int owner)
{
    Rng *rng = &scene->layout;
    const Part *base = &scene->nodes[owner].part;
    float radius = base->scale * rng_uniform(rng, 0.14f, 0.4f);
    int n = 1 + rng_below(rng, 4), around = rng_chance(rng, 0.5f);
    Part child = random_part(scene, radius);
    child.shadow = 0;
    if (around) {
        float ring = base->scale * rng_uniform(rng, 0.3f, 0.5f), start = rng_uniform(rng, 0, 1);
        for (int i = 0; i < n; i++) {
            child.scale = radius < 0.6f * ring ? radius : 0.6f * ring;
            child.cx = ring * draw_cos(start + (float)i / (float)n);
            child.cy = ring * draw_sin(start + (float)i / (float)n) * base->aspect * 0.8f;
            add_node(scene, &child, owner, owner, 0, 0);
        }
    } else {
        child.cx = child.cy = 0;
        int inner = add_node(scene, &child, owner, owner, 0, 0);
        if (inner >= 0 && n > 2) {
            Part slot = random_part(scene, child.scale * rng_uniform(rng, 0.35f, 0.65f));
            slot.shadow = 0;
            add_node(scene, &slot, inner, inner, 0, 0);
        }
    }
}

static void lay_out_general(Scene *scene)
{
    Rng *rng = &scene->layout;
    float d = scene->difficulty, size = scene->size;
    float many = (2 + 28 * d) * rng_uniform(rng, 0, 1); /* one draw a statement: C leaves the order open */
    int n = 1 + (int)(many * rng_uniform(rng, 0.2f, 1));
    float radii[32], similar = rng_chance(rng, 0.25f) ? rng_uniform(rng, 0.04f, 0.16f) : 0;
    scene->background = random_look(rng, d, scene->unit);
    if (scene->background.texture != TEXTURE_FLAT && rng_chance(rng, 0.65f)) /* calm more often than not */
        rng_color_near(rng, scene->background.color, scene->background.color2, 0.15f);
    for (int i = 0; i < n; i++) {
        /* radius of a disc that covers 0.3 % to 40 % of the image */
        float r = rng_log_uniform(rng, 0.035f, n > 12 ? 0.2f : 0.4f);
        if (similar > 0) r = similar * rng_uniform(rng, 0.85f, 1.2f);
        int j = i;
        for (; j > 0 && radii[j - 1] < r; j--) radii[j] = radii[j - 1]; /* large ones first */
        radii[j] = r;
    }
    int low_contrast = rng_chance(rng, 0.15f * d), repeat = similar > 0 && rng_chance(rng, 0.7f);
    Part pattern = {0};
    for (int i = 0; i < n; i++) {
        Part part = random_part(scene, radii[i] * size * 1.12f);
        if (repeat && i > 0) {
            float angle = part.angle;
            uint64_t damage_seed = part.damage_seed;
            int damage = part.damage;
            if (rng_chance(rng, 0.75f)) part = pattern;
            part.angle = angle;
            part.damage_seed = damage_seed;
            part.damage = damage;
            if (part.shadow <= 0 && part.look.bevel <= 0) { /* or overlapping twins would melt into one */
                part.look.bevel = 1.5f * scene->unit;
                part.look.relief = 0.8f;
            }
        }
        if (i == 0 || !repeat) pattern = part;
        if (low_contrast) rng_color_near(rng, scene->background.color, part.look.color, 0.3f);
        part.cx = size * rng_uniform(rng, 0.02f, 0.98f);
        part.cy = size * rng_uniform(rng, 0.02f, 0.98f);
        int node = add_node(scene, &part, -1, -1, 0.02f * size, 0.015f);
        if (node >= 0 && part.scale > 0.07f * size && rng_chance(rng, 0.3f)) add_sub_parts(scene, node);
    }
}

/* ------------------------------------------------------------------------------------------- tray */

typedef struct {
    float x, y, half_w, half_h; /* in the tray's frame */
} Box;

/* Cuts the tray into rows and columns; sometimes one row has its own number of columns. */
static int cut_compartments(Rng *rng, float half_w, float half_h, float gap, Box *boxes)
{
    int rows = 1 + rng_below(rng, 3), columns = 1 + rng_below(rng, 4), n = 0;
    int ragged = rng_chance(rng, 0.35f);
    float y = -half_h + gap, row_cut = rng_uniform(rng, 0.75f, 1.3f);
    float weight_sum = row_cut + (float)(rows - 1), usable_h = 2 * half_h - gap * (float)(rows + 1);
    for (int r = 0; r < rows; r++) {
        int cols = ragged && r > 0 ? 1 + rng_below(rng, 4) : columns;
        float h = usable_h * (r == 0 ? row_cut : 1) / weight_sum, x = -half_w + gap;
        float cut = rng_chance(rng, 0.5f) ? 1 : rng_uniform(rng, 0.7f, 1.6f);
        float usable_w = 2 * half_w - gap * (float)(cols + 1);
        for (int c = 0; c < cols; c++) {
            float w = usable_w * (c == 0 ? cut : 1) / (cut + (float)(cols - 1));
            boxes[n++] = (Box){x + w / 2, y + h / 2, w / 2, h / 2};
            x += w + gap;
        }
        y += h + gap;
    }
    return n;
}

/* Places `n` parts in a compartment by trying random spots, keeping `spacing` x (r1 + r2) between centres;
 * what finds no spot is left out. */
static void fill_compartment(Scene *scene, int tray, const Box *box, const Part *kinds, int n_kinds)
{
    Rng *rng = &scene->layout;
    Point placed[24];
    float reach[24], spacing = rng_uniform(rng, 0.7f, 1.05f),
                     shortest = box->half_w < box->half_h ? box->half_w : box->half_h;
    int n = 0, wanted = 1 + rng_below(rng, 1 + rng_below(rng, 8)), first = rng_below(rng, n_kinds),
        mixed = rng_chance(rng, 0.25f);
    if (rng_chance(rng, 0.06f)) return; /* an empty compartment */
    for (int i = 0; i < wanted; i++) {
        Part part = kinds[mixed ? rng_below(rng, n_kinds) : first];
        part.damage_seed = rng_next(rng);
        part.damage = rng_chance(rng, scene->damage_rate) ? 1 + rng_below(rng, DAMAGE_COUNT - 1) : 0;
        if (part.scale > 0.92f * shortest) part.scale = 0.92f * shortest;
        float r = part.scale * 0.95f;
        for (int attempt = 0; attempt < 25; attempt++) {
            float x = rng_uniform(rng, -1, 1) * (box->half_w - r),
                  y = rng_uniform(rng, -1, 1) * (box->half_h - r);
            int free = 1;
            for (int k = 0; k < n; k++) {
                float dx = placed[k].x - x, dy = placed[k].y - y, least = spacing * (r + reach[k]);
                if (dx * dx + dy * dy < least * least) free = 0;
            }
            if (!free) continue;
            placed[n] = (Point){x, y};
            reach[n++] = r;
            part.cx = box->x + x;
            part.cy = box->y + y;
            part.angle = rng_chance(rng, 0.7f) ? rng_uniform(rng, 0, 1) : part.angle;
            int node = add_node(scene, &part, tray, -1, 0.1f * part.scale, 0.02f);
            if (node >= 0 && part.scale > 0.05f * scene->size && (part.form & 7) == 0)
                add_sub_parts(scene, node);
            break;
        }
    }
}

static void lay_out_tray(Scene *scene)
{
    Rng *rng = &scene->layout;
    float d = scene->difficulty, size = scene->size, unit = scene->unit;
    Box boxes[16];
    scene->background = random_look(rng, d, unit);
    rng_color_near(rng, scene->background.color, scene->background.color2, 0.2f);

    Part tray = {0};
    tray.shape = SHAPE_ROUND_RECT;
    float half_w = size * rng_uniform(rng, 0.36f, 0.5f), half_h = size * rng_uniform(rng, 0.3f, 0.5f);
    tray.aspect = 1;
    tray.cx = tray.cy = 0.5f * size;
    tray.angle = rng_chance(rng, 0.7f) ? rng_uniform(rng, -0.012f, 0.012f) : rng_uniform(rng, -0.06f, 0.06f);
    tray.look = random_look(rng, d, unit);
    if (rng_chance(rng, 0.75f)) rng_color_near(rng, tray.look.color, tray.look.color2, 0.1f);
    tray.look.bevel = unit * rng_uniform(rng, 1, 4);
    tray.look.relief = rng_uniform(rng, 0.3f, 1);
    tray.shadow = 0.5f * d;
    tray.height = unit * rng_uniform(rng, 2, 6);
    tray.scale = half_w;
    tray.form = rng_next(rng);
    tray.aspect = draw_shape_aspect(tray.shape, tray.form, half_h / half_w);
    int owner = add_node(scene, &tray, -1, -1, 0.012f * size, 0.004f);

    float gap = unit * rng_uniform(rng, 2.5f, 9);
    int n_boxes = cut_compartments(rng, half_w - 2 * unit, half_h - 2 * unit, gap, boxes);
    Part floor_part = tray;
    floor_part.shadow = 0;
    if (rng_chance(rng, 0.5f))
        floor_part.look = random_look(rng, d, unit);
    else
        rng_color_near(rng, tray.look.color, floor_part.look.color, 0.35f);
    rng_color_near(rng, floor_part.look.color, floor_part.look.color2, 0.12f);
    floor_part.look.bevel = -unit * rng_uniform(rng, 1.5f, 5);
    floor_part.look.relief = rng_uniform(rng, 0.5f, 1.2f);
    for (int i = 0; i < n_boxes; i++) {
        floor_part.cx = boxes[i].x;
        floor_part.cy = boxes[i].y;
        floor_part.angle = 0;
        floor_part.scale = boxes[i].half_w;
        floor_part.aspect = draw_shape_aspect(tray.shape, tray.form, boxes[i].half_h / boxes[i].half_w);
        add_node(scene, &floor_part, owner, owner, 0, 0);
    }
    Part kinds[6];
    int n_kinds = 2 + rng_below(rng, 5);
    float smallest = rng_uniform(rng, 0.035f, 0.07f);
    for (int i = 0; i < n_kinds; i++) {
        kinds[i] = random_part(scene, size * rng_log_uniform(rng, smallest, 0.16f));
        kinds[i].shadow = d * rng_uniform(rng, 0.2f, 0.6f);
        kinds[i].height = unit * rng_uniform(rng, 1, 5);
    }
    for (int i = 0; i < n_boxes; i++) fill_compartment(scene, owner, &boxes[i], kinds, n_kinds);
}

/* ----------------------------------------------------------------------------------------- glyphs */

static void lay_out_glyphs(Scene *scene)
{
    Rng *rng = &scene->layout;
    int square = rng_chance(rng, 0.75f), rows = square ? 3 : 1 + rng_below(rng, 4),
        columns = square ? 3 : 1 + rng_below(rng, 4);
    float cell_w = scene->size / (float)columns, cell_h = scene->size / (float)rows,
          ink = rng_uniform(rng, 0.75f, 1);
    float cell = cell_w < cell_h ? cell_w : cell_h;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            Part part = {0};
            part.shape = rng_chance(rng, 0.8f) ? SHAPE_DIGIT : SHAPE_LETTER;
            part.form = rng_next(rng);
            part.aspect = 1;
            part.scale = cell * rng_uniform(rng, 0.34f, 0.6f);
            part.angle = rng_normal(rng) * 0.02f;
            part.cx = cell_w * ((float)c + 0.5f) + rng_normal(rng) * 0.05f * cell;
            part.cy = cell_h * ((float)r + 0.5f) + rng_normal(rng) * 0.05f * cell;
            float shade = ink * rng_uniform(rng, 0.85f, 1);
            for (int k = 0; k < 3; k++) part.look.color[k] = part.look.color2[k] = shade;
            part.look.period = 8;
            part.damage_seed = rng_next(rng);
            if (rng_chance(rng, scene->damage_rate))
                part.damage = rng_chance(rng, 0.5f) ? DAMAGE_BROKEN : DAMAGE_STAIN;
            if (rng_chance(rng, 0.06f)) continue; /* an empty cell */
            add_node(scene, &part, -1, -1, 0.03f * cell, 0.012f);
        }
}

/* ----------------------------------------------------------------------------------------- render */

/* Turns offsets within frames into places on the canvas, with jitter. Frames always come before what they
 * carry. */
static void settle(Scene *scene, Rng *jitter)
{
    for (int i = 0; i < scene->n; i++) {
        Node *node = &scene->nodes[i];
        Part *part = &node->part;
        if (node->frame >= 0) {
            const Part *frame = &scene->nodes[node->frame].part;
            float c = draw_cos(frame->angle), s = draw_sin(frame->angle), x = part->cx, y = part->cy;
            part->cx = frame->cx + c * x - s * y;
            part->cy = frame->cy + s * x + c * y;
            part->angle += frame->angle;
        }
        if (!jitter) continue;
        float dx = rng_normal(jitter), dy = rng_normal(jitter), turn = rng_normal(jitter);
        part->cx += node->shift * dx;
        part->cy += node->shift * dy;
        part->angle += node->turn * turn;
        for (int k = 0; k < 2; k++)
            part->look.phase[k] += rng_uniform(jitter, -0.5f, 0.5f) * part->look.period;
    }
}

static Camera random_camera(Rng *rng, float difficulty, float unit, int glyphs)
{
    Camera camera = {{0}, 0, {1, 1, 1}, 0, 0, 0};
    float exposure = 1 + difficulty * rng_uniform(rng, -0.25f, 0.2f);
    for (int k = 0; k < 2; k++) camera.gradient[k] = difficulty * rng_uniform(rng, -0.35f, 0.35f);
    camera.vignette = rng_chance(rng, 0.4f) ? difficulty * rng_uniform(rng, 0, 0.35f) : 0;
    for (int k = 0; k < 3; k++) camera.gain[k] = exposure + difficulty * rng_uniform(rng, -0.06f, 0.06f);
    camera.blur = rng_chance(rng, 0.6f) ? difficulty * unit * rng_uniform(rng, 0, 1.3f) : 0;
    camera.noise = rng_chance(rng, 0.75f) ? difficulty * rng_uniform(rng, 0, 1) : 0;
    camera.noise *= rng_uniform(rng, 0, 0.06f);
    if (glyphs) {
        camera = (Camera){{0}, 0, {1, 1, 1}, 0, 0, 0};
        camera.blur = unit * rng_uniform(rng, 0.3f, 2.2f);
        camera.noise = rng_chance(rng, 0.3f) ? difficulty * rng_uniform(rng, 0, 0.03f) : 0;
    }
    camera.noise_seed = rng_next(rng);
    return camera;
}

static void vary_camera(Camera *camera, Rng *rng, float difficulty, int glyphs)
{
    if (!glyphs)
        for (int k = 0; k < 2; k++) camera->gradient[k] += difficulty * rng_uniform(rng, -0.12f, 0.12f);
    float exposure = rng_uniform(rng, 0.94f, 1.06f);
    for (int k = 0; k < 3; k++) camera->gain[k] *= exposure * (glyphs ? 1 : rng_uniform(rng, 0.985f, 1.015f));
    camera->noise_seed = rng_next(rng);
}

static int choose_kind(Rng *rng, int kind)
{
    float u = rng_uniform(rng, 0, 1);
    if (kind != KIND_MIXED) return kind;
    return u < 0.55f ? KIND_GENERAL : u < 0.9f ? KIND_TRAY : KIND_GLYPHS;
}

/* Decides everything about the scene, and the camera, before a pixel is drawn. */
static Camera compose(Scene *scene, uint64_t seed, uint64_t jitter_seed, int kind)
{
    Rng jitter;
    rng_seed(&scene->layout, seed, 1);
    rng_seed(&jitter, seed ^ jitter_seed * 0x9e3779b97f4a7c15u, 2);
    int chosen = choose_kind(&scene->layout, kind & KIND_MASK), glyphs = chosen == KIND_GLYPHS;
    scene->damage_rate = rng_chance(&scene->layout, 0.25f * scene->difficulty) ? 0.35f : 0;
    if (kind & KIND_ALL_DAMAGED) scene->damage_rate = 1;
    scene->light_angle = rng_uniform(&scene->layout, 0, 1);
    Camera camera = random_camera(&scene->layout, scene->difficulty, scene->unit, glyphs);
    if (chosen == KIND_GENERAL)
        lay_out_general(scene);
    else if (chosen == KIND_TRAY)
        lay_out_tray(scene);
    else
        lay_out_glyphs(scene);
    settle(scene, jitter_seed ? &jitter : NULL);
    if (!jitter_seed) return camera;
    vary_camera(&camera, &jitter, scene->difficulty, glyphs);
    scene->light_angle += rng_uniform(&jitter, -0.03f, 0.03f);
    for (int k = 0; k < 2; k++)
        scene->background.phase[k] += rng_uniform(&jitter, -1, 1) * scene->background.period;
    return camera;
}

static void describe(const Node *node, SceneObject *o)
{
    const Part *part = &node->part;
    memset(o, 0, sizeof *o);
    o->parent = node->parent;
    o->shape = part->shape;
    o->texture = part->look.texture;
    o->damage = part->damage;
    o->cx = part->cx;
    o->cy = part->cy;
    o->angle = part->angle;
    o->scale = part->scale;
    memcpy(o->color, part->look.color, sizeof o->color);
    memcpy(o->color2, part->look.color2, sizeof o->color2);
}

/* See above. rgb: [size][size][3]; ids: [size][size], 0 background, i + 1 = object i is what is seen; damage:
 * [size][size], 1 = changed by a damage. Returns the number of objects, or -1. */
int scene_render(uint64_t seed, uint64_t jitter_seed, float difficulty, int kind, int size, uint8_t *rgb,
                 uint16_t *ids, uint8_t *damage, SceneObject *objects, int max_objects)
{
    Canvas canvas;
    if (max_objects < 1 || canvas_init(&canvas, size, size)) return -1;
    Scene *scene = calloc(1, sizeof *scene);
    if (!scene) {
        canvas_free(&canvas);
        return -1;
    }
    scene->difficulty = clamp01(difficulty);
    scene->size = (float)size;
    scene->unit = canvas.unit;
    scene->max = max_objects < MAX_NODES ? max_objects : MAX_NODES;
    Camera camera = compose(scene, seed, jitter_seed, kind);

    canvas.light[0] = draw_cos(scene->light_angle);
    canvas.light[1] = draw_sin(scene->light_angle);
    canvas_background(&canvas, &scene->background);
    for (int i = 0; i < scene->n; i++) {
        Part *part = &scene->nodes[i].part;
        if (kind & KIND_NO_DAMAGE) part->damage = DAMAGE_NONE;
        canvas_part(&canvas, part, i + 1);
        canvas_damage(&canvas, part);
        describe(&scene->nodes[i], &objects[i]);
    }
    size_t n_pixels = (size_t)size * (size_t)size;
    for (size_t i = 0; i < n_pixels; i++)
        if (canvas.ids[i]) objects[canvas.ids[i] - 1].area++;
    memcpy(ids, canvas.ids, sizeof(uint16_t) * n_pixels);
    memcpy(damage, canvas.damage, n_pixels);
    canvas_develop(&canvas, &camera, rgb);
    int n = scene->n;
    free(scene);
    canvas_free(&canvas);
    return n;
}
