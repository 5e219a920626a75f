/* eval/synth.c - see synth.h. The seed decides a product once: tray, compartments, kinds of parts, counts.
 * An image is the product with small changes of place, light and texture. A defect changes the list of
 * parts (logical) or the surface of one part (structural).
 *
 * Random numbers: one draw a statement. So the order, and with it every byte, is the same with any
 * compiler. */
#include "eval/synth.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"
#include "eval/draw.h"

/* ------------------------------------------------------------------------------- the folder as a whole */

void synth_output_drop(SynthOutput *out)
{
    dir_remove(out->tmp, NULL); /* our own files: a file that stays does no harm. */
}

/* The name DIR.tmp.HOST.PID, where DIR is the first n characters of dir. */
static int temporary_dir(char tmp[PATH_MAX], const char *dir, size_t n, Error *err)
{
    char *path = strndup(dir, n), *name = path ? temporary_name(path) : NULL;
    int length = name ? snprintf(tmp, PATH_MAX, "%s", name) : -1;
    free(path), free(name);
    return length < 0          ? fail_memory(err, dir, n)
           : length < PATH_MAX ? 0
                               : fail(err, "%s: the path is too long", dir);
}

int synth_output_open(SynthOutput *out, const char *dir, Error *err)
{
    struct stat st;
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (n == 0)
        return fail(err, "the output folder's name is empty");
    if (dir[n - 1] == '.' && (n == 1 || dir[n - 2] == '/' || dir[n - 2] == '.'))
        return fail(err, "%s: name the output folder itself, not '.' or '..'", dir);
    out->dir = dir;
    if (n >= sizeof out->target)
        return fail(err, "%.600s...: the path is too long", dir);
    snprintf(out->target, sizeof out->target, "%.*s", (int)n, dir);
    if (stat(dir, &st) == 0) {
        if (!S_ISDIR(st.st_mode))
            return fail(err, "%s: exists and is not a folder", dir);
        DIR *d = opendir(dir);
        if (!d)
            return fail(err, "%s: cannot be read: %s", dir, strerror(errno));
        int holds = 0;
        for (struct dirent *e; (e = readdir(d));)
            if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
                holds = 1;
        closedir(d);
        if (holds)
            return fail(err, "%s: the folder is not empty: name a new or an empty one", dir);
        if (!realpath(dir, out->target)) /* a link stays; its folder is replaced. */
            return fail(err, "%s: cannot be found: %s", dir, strerror(errno));
    } else if (lstat(out->target, &st) == 0) {
        return fail(err, "%s: is a link that leads nowhere", dir);
    }
    if (temporary_dir(out->tmp, out->target, strlen(out->target), err))
        return -1;
    if (stat(out->tmp, &st) == 0)
        return fail(err, "%s: this folder is in the way: remove it", out->tmp);
    return dir_make(out->tmp, err);
}

int synth_output_commit(SynthOutput *out, Error *err)
{
    if (rename(out->tmp, out->target) == 0)
        return 0;
    int reason = errno;
    synth_output_drop(out);
    return fail(err, "%s: the finished folder cannot be moved there: %s", out->dir, strerror(reason));
}

/* path = the output folder and a name below it. */
static int path_below(const SynthOutput *out, char path[PATH_MAX], Error *err, const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (length >= 0 && length < (int)sizeof name)
        length = snprintf(path, PATH_MAX, "%s/%s", out->tmp, name);
    else
        length = PATH_MAX;
    return length >= 0 && length < PATH_MAX ? 0 : fail(err, "%s: the path is too long", out->dir);
}

int synth_output_image(const SynthOutput *out, const char *folder, int index, const uint8_t *samples,
                       int width, int height, int channels, Error *err)
{
    char path[PATH_MAX];
    if (path_below(out, path, err, "%s", folder) || dir_make(path, err))
        return -1;
    if (path_below(out, path, err, "%s/%03d.png", folder, index))
        return -1;
    return png_write(path, samples, width, height, channels, 8, err);
}

int synth_output_config(const SynthOutput *out, const SynthDefect *entries, int n, Error *err)
{
    char path[PATH_MAX];
    JsonWriter w;
    if (path_below(out, path, err, "defects_config.json"))
        return -1;
    json_begin(&w);
    json_open(&w, '[');
    for (int i = 0; i < n; i++) {
        json_open(&w, '{');
        json_key(&w, "defect_name");
        json_string(&w, entries[i].name);
        json_key(&w, "pixel_value");
        json_int(&w, 255 - i);
        json_key(&w, "saturation_threshold");
        json_number(&w, entries[i].threshold);
        json_key(&w, "relative_saturation");
        json_bool(&w, 1);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    int status = json_save(&w, path, err);
    json_end(&w);
    return status;
}

enum { MAX_IMAGES = 100000 };

int synth_check_count(const char *what, int n, Error *err)
{
    if (n >= 0 && n <= MAX_IMAGES)
        return 0;
    return fail(err, "the number of %s is %d, expected 0 to %d", what, n, MAX_IMAGES);
}

/* ------------------------------------------------------------------------------------------ the product */

enum { MAX_COMPARTMENTS = 6, MAX_COUNT = 5, MAX_PLACED = MAX_COMPARTMENTS * MAX_COUNT + 2, MAX_ENTRIES = 32 };

typedef struct {
    Part body, cap; /* cap: a smaller part on top of the body, which moves with it. */
    int has_cap;
    int turns; /* it may lie in any direction. */
    const char *name;
} PartKind;

/* Places are in the tray's own frame: pixels from its centre, before the tray is moved and turned. */
typedef struct {
    float x, y, half_w, half_h;
    int kind, n;
    int loose; /* parts lie anywhere in it, not on slots. */
    Point slot[MAX_COUNT];
    float play_x, play_y; /* the parts deviate from their slots uniformly within this. */
    float angle;
    int missing_entry, few_entry; /* rows of the defect table, -1 = none. */
} Compartment;

struct TrayProduct {
    SynthTrayOptions options;
    float unit; /* pixels per 1/256 of the shorter side. */
    Look table;
    Part tray, floor;
    int n_compartments;
    Compartment compartments[MAX_COMPARTMENTS];
    PartKind kinds[MAX_COMPARTMENTS + 1]; /* one kind a compartment; the last is foreign. */
    float light_angle;
    Camera camera;
    int n_entries;
    SynthDefect entries[MAX_ENTRIES];
    int entry_of[TRAY_DEFECT_COUNT];
};

/* Names of the drawn shapes in defects_config.json. Slender shapes are drawn somewhat stouter. */
static const struct {
    int shape;
    const char *name;
    float aspect;
} part_names[] = {
    {SHAPE_ELLIPSE, "disc", 1},   {SHAPE_ROUND_RECT, "block", 1}, {SHAPE_POLYGON, "tile", 1},
    {SHAPE_STAR, "star", 1},      {SHAPE_RING, "ring", 1},        {SHAPE_GEAR, "gear", 1},
    {SHAPE_NUT, "nut", 1},        {SHAPE_SCREW, "screw", 1.4f},   {SHAPE_CROSS, "cross", 1},
    {SHAPE_BLOB, "pebble", 1},    {SHAPE_KEY, "key", 1.3f},       {SHAPE_L, "bracket", 1},
    {SHAPE_ARROW, "arrow", 1.2f}, {SHAPE_FRAME, "frame", 1},      {SHAPE_CRESCENT, "clip", 1},
};
enum { N_PART_NAMES = (int)(sizeof part_names / sizeof part_names[0]) };

static float color_distance(const float *a, const float *b)
{
    float sum = 0;
    for (int k = 0; k < 3; k++)
        sum += a[k] > b[k] ? a[k] - b[k] : b[k] - a[k];
    return sum / 3;
}

static float brightness(const float *color)
{
    return (color[0] + color[1] + color[2]) / 3;
}

/* A random colour, at least `least` away from the floor's and, if possible, from the n other colours. */
static void distinct_color(Rng *rng, float *color, const float *floor, float least, const PartKind *others,
                           int n)
{
    float best = -1, candidate[3];
    for (int attempt = 0; attempt < 60; attempt++) {
        rng_color(rng, candidate);
        float margin = color_distance(candidate, floor) / least;
        for (int i = 0; i < n; i++) {
            float d = color_distance(candidate, others[i].body.look.color) / 0.2f;
            if (d < margin)
                margin = d;
        }
        if (margin <= best)
            continue;
        best = margin;
        memcpy(color, candidate, sizeof candidate);
    }
}

/* A quiet surface: textures of a product are fine and of low contrast. */
static Look product_look(Rng *rng, const float *color, float unit, float contrast)
{
    static const int textures[] = {TEXTURE_FLAT, TEXTURE_BRUSHED, TEXTURE_CLOUDS, TEXTURE_SPECKLE,
                                   TEXTURE_WOOD, TEXTURE_WEAVE,   TEXTURE_TURNED};
    Look look = {0};
    look.texture = textures[rng_below(rng, (int)(sizeof textures / sizeof textures[0]))];
    memcpy(look.color, color, sizeof look.color);
    rng_color_near(rng, color, look.color2, contrast);
    look.period = unit * rng_uniform(rng, 5, 14);
    look.angle = rng_uniform(rng, 0, 1);
    look.grain = (uint32_t)rng_next(rng);
    return look;
}

static void draw_up_tray(TrayProduct *p, Rng *rng)
{
    float unit = p->unit, color[3], width = (float)p->options.width, height = (float)p->options.height;
    rng_color(rng, color);
    p->table = product_look(rng, color, unit, 0.12f);
    p->table.period *= 2;
    do
        rng_color(rng, color);
    while (color_distance(color, p->table.color) < 0.15f);
    Part *tray = &p->tray, *bottom = &p->floor;
    memset(tray, 0, sizeof *tray);
    tray->shape = SHAPE_PANEL;
    tray->cx = 0.5f * width;
    tray->cy = 0.5f * height;
    tray->scale = 0.47f * width;
    tray->aspect = draw_shape_aspect(tray->shape, tray->form, height / width);
    tray->look = product_look(rng, color, unit, 0.1f);
    tray->look.bevel = unit * rng_uniform(rng, 1.5f, 3.5f);
    tray->look.relief = rng_uniform(rng, 0.5f, 0.9f);
    tray->shadow = 0.5f;
    tray->height = 5 * unit;
    *bottom = *tray;
    bottom->shadow = 0;
    do
        rng_color_near(rng, color, bottom->look.color, 0.5f);
    while (color_distance(color, bottom->look.color) < 0.08f || brightness(bottom->look.color) < 0.15f ||
           brightness(bottom->look.color) >
               0.75f); /* neither black nor overexposed: shades must stay visible. */
    rng_color_near(rng, bottom->look.color, bottom->look.color2, 0.07f);
    bottom->look.grain++;
    bottom->look.bevel = -unit * rng_uniform(rng, 2, 4);
    bottom->look.relief = rng_uniform(rng, 0.6f, 1);
    p->light_angle = rng_uniform(rng, 0, 1);
}

/* Two or three rows with two or three compartments each, six at most, of different widths. */
static void cut_compartments(TrayProduct *p, Rng *rng)
{
    float half_w = 0.47f * (float)p->options.width, half_h = 0.47f * (float)p->options.height;
    float gap = p->unit * rng_uniform(rng, 5, 8);
    int rows = 2 + rng_chance(rng, 0.3f), n = 0;
    float first = rng_uniform(rng, 0.9f, 1.15f), room_h = 2 * half_h - gap * (float)(rows + 1),
          y = -half_h + gap;
    for (int r = 0; r < rows; r++) {
        int columns = rows == 3 ? 2 : 2 + rng_chance(rng, 0.6f);
        float h = room_h * (r ? 1 : first) / (first + (float)(rows - 1)), cut = rng_uniform(rng, 0.75f, 1.4f);
        float room_w = 2 * half_w - gap * (float)(columns + 1), x = -half_w + gap;
        for (int c = 0; c < columns; c++) {
            float w = room_w * (c ? 1 : cut) / (cut + (float)(columns - 1));
            Compartment *box = &p->compartments[n++];
            *box = (Compartment){.x = x + w / 2, .y = y + h / 2, .half_w = w / 2, .half_h = h / 2};
            x += w + gap;
        }
        y += h + gap;
    }
    p->n_compartments = n;
}

/* Put n slots on the raster that gives the largest cells. Returns half the smaller side of a cell. */
static float lay_out_slots(Compartment *box)
{
    float best = 0;
    for (int columns = 1; columns <= box->n; columns++) {
        int rows = (box->n + columns - 1) / columns;
        float w = box->half_w / (float)columns, h = box->half_h / (float)rows, cell = w < h ? w : h;
        if (cell <= best)
            continue;
        best = cell;
        for (int i = 0; i < box->n; i++) {
            int r = i / columns, in_row = r < rows - 1 ? columns : box->n - columns * (rows - 1);
            box->slot[i].x = box->x + (2 * (float)(i % columns) + 1 - (float)in_row) * w;
            box->slot[i].y = box->y + (2 * (float)r + 1 - (float)rows) * h;
        }
    }
    return best;
}

/* The number, places and size of the parts in a compartment. One compartment is always loose, and one on
 * slots holds at least three, so that every defect has a place. */
static float fill_plan(TrayProduct *p, Compartment *box, int index, int loose_index, Rng *rng)
{
    float shorter = box->half_w < box->half_h ? box->half_w : box->half_h;
    box->loose = index == loose_index;
    box->angle = rng_uniform(rng, 0, 1);
    if (box->loose) {
        box->n = 3 + rng_below(rng, 2);
        lay_out_slots(box);
        return shorter * 0.42f;
    }
    int plenty = index == (loose_index + 1) % p->n_compartments;
    box->n = plenty ? 3 + rng_below(rng, 2) : 1 + rng_below(rng, 2);
    float cell = lay_out_slots(box), scale = 0.84f * cell, most = 30 * p->unit;
    if (scale > most)
        scale = most;
    box->play_x = box->play_y = 0.8f * (cell - scale);
    if (box->play_x > 5 * p->unit)
        box->play_x = box->play_y = 5 * p->unit;
    return scale;
}

static PartKind draw_up_kind(const TrayProduct *p, int index, int name, float scale, Rng *rng)
{
    PartKind kind;
    float color[3] = {0, 0, 0};
    memset(&kind, 0, sizeof kind);
    kind.name = part_names[name].name;
    kind.body.shape = part_names[name].shape;
    kind.body.form = rng_next(rng);
    kind.body.aspect = part_names[name].aspect;
    kind.body.scale = scale;
    distinct_color(rng, color, p->floor.look.color, 0.3f, p->kinds, index);
    kind.body.look = product_look(rng, color, p->unit, 0.16f);
    kind.body.look.bevel = scale * rng_uniform(rng, 0.06f, 0.18f);
    kind.body.look.relief = rng_uniform(rng, 0.5f, 1);
    kind.body.look.gloss = rng_uniform(rng, 0, 0.8f);
    kind.body.shadow = rng_uniform(rng, 0.3f, 0.55f);
    kind.body.height = p->unit * rng_uniform(rng, 1.5f, 4);
    kind.turns = rng_chance(rng, 0.3f);
    int solid = kind.body.shape == SHAPE_ELLIPSE || kind.body.shape == SHAPE_ROUND_RECT ||
                kind.body.shape == SHAPE_POLYGON || kind.body.shape == SHAPE_STAR ||
                kind.body.shape == SHAPE_BLOB;
    if (solid && rng_chance(rng, 0.5f)) {
        kind.has_cap = 1;
        kind.cap = kind.body;
        kind.cap.shape = rng_chance(rng, 0.5f) ? SHAPE_ELLIPSE : SHAPE_CROSS;
        kind.cap.form = rng_next(rng);
        kind.cap.scale = scale * rng_uniform(rng, 0.25f, 0.38f);
        kind.cap.shadow = 0;
        do
            rng_color(rng, kind.cap.look.color);
        while (color_distance(kind.cap.look.color, color) < 0.2f);
        memcpy(kind.cap.look.color2, kind.cap.look.color, sizeof color);
    }
    return kind;
}

static void add_entry(TrayProduct *p, double threshold, const char *format, const char *name)
{
    SynthDefect *e = &p->entries[p->n_entries++];
    snprintf(e->name, sizeof e->name, "%s%s", format, name);
    e->threshold = threshold;
}

static void place_on_tray(const Part *tray, float x, float y, float angle, Part *part)
{
    float c = draw_cos(tray->angle), s = draw_sin(tray->angle);
    part->cx = tray->cx + c * x - s * y;
    part->cy = tray->cy + s * x + c * y;
    part->angle = tray->angle + angle;
}

/* Mark all pixels that a part on this slot may cover: its silhouette, moved by its play to all sides. */
static void mark_slot(const TrayProduct *p, Canvas *canvas, const Part *tray, const Compartment *box,
                      int slot, uint8_t *mask)
{
    const PartKind *kind = &p->kinds[box->kind];
    for (int i = 0; i < 8; i++)
        for (int turn = 0; turn < (kind->turns ? 4 : 1); turn++) {
            Part part = kind->body;
            float x = box->slot[slot].x + box->play_x * draw_cos((float)i / 8);
            float y = box->slot[slot].y + box->play_y * draw_sin((float)i / 8);
            place_on_tray(tray, x, y,
                          box->angle + 0.25f * (float)turn + 0.125f * (float)(i & 1) * (float)kind->turns,
                          &part);
            canvas_silhouette(canvas, &part, mask);
        }
}

static long count_marked(const uint8_t *mask, size_t n)
{
    long sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += mask[i] != 0;
    return sum;
}

static void mark_floor(const TrayProduct *p, Canvas *canvas, const Part *tray, const Compartment *box,
                       uint8_t *mask)
{
    Part part = p->floor;
    place_on_tray(tray, box->x, box->y, 0, &part);
    part.scale = box->half_w;
    part.aspect = draw_shape_aspect(part.shape, part.form, box->half_h / box->half_w);
    canvas_silhouette(canvas, &part, mask);
}

/* The share of the ground truth of one missing part that the part itself would cover (LOCO's saturation).
 * The ground truth is every place where the part may stand; a detector that finds this share has found the
 * defect. Rounded to 2 digits. */
static int saturation_of_missing(const TrayProduct *p, Canvas *canvas, const Compartment *box,
                                 double *threshold, Error *err)
{
    size_t n = (size_t)canvas->width * (size_t)canvas->height;
    uint8_t *mask = calloc(2, n);
    if (!mask)
        return fail_memory(err, "a ground truth image", 2 * n);
    Part part = p->kinds[box->kind].body;
    place_on_tray(&p->tray, box->slot[0].x, box->slot[0].y, box->angle, &part);
    canvas_silhouette(canvas, &part, mask);
    if (box->loose)
        mark_floor(p, canvas, &p->tray, box, mask + n);
    else
        mark_slot(p, canvas, &p->tray, box, 0, mask + n);
    long own = count_marked(mask, n), all = count_marked(mask + n, n);
    if (box->loose)
        all -= (box->n - 1) * own; /* pixels under the other parts are not marked. */
    long percent = all > 0 ? (100 * own + all / 2) / all : 100;
    *threshold = (double)(percent < 5 ? 5 : percent > 100 ? 100 : percent) / 100;
    free(mask);
    return 0;
}

static int write_defect_table(TrayProduct *p, Error *err)
{
    static const char *const global[TRAY_DEFECT_COUNT] = {
        NULL,      NULL,    "extra_part", "wrong_kind", "swapped", "wrong_count_too_many",
        "scratch", "stain", "dent",       "broken"};
    Canvas canvas;
    int status = 0;
    if (canvas_init(&canvas, p->options.width, p->options.height))
        return fail_memory(err, "a canvas", 0);
    for (int i = 0; i < p->n_compartments && !status; i++) {
        Compartment *box = &p->compartments[i];
        double threshold = 1;
        status = saturation_of_missing(p, &canvas, box, &threshold, err);
        if (status)
            break;
        box->missing_entry = p->n_entries;
        add_entry(p, threshold, "missing_", p->kinds[box->kind].name);
        box->few_entry = box->n >= 3 ? p->n_entries : -1;
        if (box->loose)
            threshold = threshold >= 0.5 ? 1 : 2 * threshold; /* one region for both. */
        if (box->n >= 3)
            add_entry(p, threshold, "wrong_count_too_few_", p->kinds[box->kind].name);
    }
    for (int d = TRAY_EXTRA; d < TRAY_DEFECT_COUNT; d++) {
        p->entry_of[d] = p->n_entries;
        add_entry(p, 1, global[d], "");
    }
    canvas_free(&canvas);
    return status;
}

TrayProduct *tray_product_new(const SynthTrayOptions *options, Error *err)
{
    int w = options->width, h = options->height;
    if (w < 64 || h < 64 || w > 4096 || h > 4096) {
        fail(err, "the tray's image size is %d x %d, expected 64 to 4096 pixels each way", w, h);
        return NULL;
    }
    if (w > 2 * h || h > 2 * w) {
        fail(err, "the tray's image size is %d x %d, expected sides within a factor of two", w, h);
        return NULL;
    }
    TrayProduct *p = calloc(1, sizeof *p);
    if (!p) {
        fail_memory(err, "a tray", sizeof *p);
        return NULL;
    }
    Rng rng;
    int names[N_PART_NAMES];
    rng_seed(&rng, options->seed, 0x7261790000000000u); /* seeds that the training scenes do not use. */
    p->options = *options;
    p->unit = (float)(w < h ? w : h) / 256;
    draw_up_tray(p, &rng);
    cut_compartments(p, &rng);
    for (int i = 0; i < N_PART_NAMES; i++) {
        int j = rng_below(&rng, i + 1);
        names[i] = names[j];
        names[j] = i;
    }
    int loose = rng_below(&rng, p->n_compartments);
    float sum = 0;
    for (int i = 0; i < p->n_compartments; i++) {
        p->compartments[i].kind = i;
        float scale = fill_plan(p, &p->compartments[i], i, loose, &rng);
        p->kinds[i] = draw_up_kind(p, i, names[i], scale, &rng);
        if (p->compartments[i].loose)
            p->kinds[i].turns = 1;
        sum += scale;
    }
    p->kinds[p->n_compartments] =
        draw_up_kind(p, p->n_compartments, names[p->n_compartments], sum / (float)p->n_compartments, &rng);
    p->camera = (Camera){{0}, 0, {1, 1, 1}, 0.55f * p->unit, 0.014f, 0};
    for (int k = 0; k < 2; k++)
        p->camera.gradient[k] = rng_uniform(&rng, -0.12f, 0.12f);
    p->camera.vignette = rng_uniform(&rng, 0, 0.15f);
    if (write_defect_table(p, err) == 0)
        return p;
    free(p);
    return NULL;
}

void tray_product_free(TrayProduct *product)
{
    free(product);
}

/* ------------------------------------------------------------------------------------------ one image */

typedef struct {
    int kind, compartment, slot; /* slot -1: on no slot of its own. */
    float x, y, angle;           /* in the tray's frame. */
    float scale;
    float phase[2];
    int gone, damage;
    uint64_t damage_seed;
} Placed;

typedef enum { REGION_NONE, REGION_PART, REGION_SLOT, REGION_FLOOR, REGION_DAMAGE } RegionKind;

/* One piece of ground truth: its pixels, its truth image, and its row of the defect table. */
typedef struct {
    RegionKind kind;
    int placed, truth, entry;
} Region;

typedef struct {
    const TrayProduct *p;
    Part tray; /* moved and turned */
    Placed parts[MAX_PLACED];
    int n_parts;
    int floor_damage[MAX_COMPARTMENTS]; /* DAMAGE_..., drawn with the seed below. */
    uint64_t floor_seed;
    float table_phase[2], tray_phase[2];
    float light_angle;
    Camera camera;
    Region regions[4];
    int n_regions;
} Arrangement;

/* Distance in pixels from a part at (x, y) to its nearest neighbour (negative: they overlap). */
static float free_room(const Arrangement *a, float x, float y, float scale, int self)
{
    float least = 1e9f;
    for (int i = 0; i < a->n_parts; i++) {
        const Placed *other = &a->parts[i];
        if (i == self || other->gone)
            continue;
        float dx = other->x - x, dy = other->y - y, touch = 0.95f * (scale + other->scale);
        float room =
            dx * dx + dy * dy - touch * touch; /* has the sign and the order of the distance itself. */
        if (room < least)
            least = room;
    }
    return least;
}

/* A random place in the compartment: the first of many where nothing touches, else the roomiest. */
static float find_place(const Arrangement *a, const Compartment *box, float scale, int self, Rng *rng,
                        float *x, float *y)
{
    float best = -1e30f, w = box->half_w - 1.02f * scale, h = box->half_h - 1.02f * scale;
    if (w < 0)
        w = 0;
    if (h < 0)
        h = 0;
    for (int attempt = 0; attempt < 200 && best < 0; attempt++) {
        float tx = box->x + rng_uniform(rng, -w, w), ty = box->y;
        ty += rng_uniform(rng, -h, h);
        float room = free_room(a, tx, ty, scale, self);
        if (room <= best)
            continue;
        best = room;
        *x = tx;
        *y = ty;
    }
    return best;
}

static float part_angle(const TrayProduct *p, const Compartment *box, int kind, Rng *rng)
{
    float any = rng_uniform(rng, 0, 1), little = rng_uniform(rng, -0.018f, 0.018f);
    return p->kinds[kind].turns ? any : box->angle + little;
}

static void arrange(Arrangement *a, const TrayProduct *p, Rng *rng)
{
    memset(a, 0, sizeof *a);
    a->p = p;
    a->tray = p->tray;
    a->tray.cx += p->unit * rng_uniform(rng, -3, 3);
    a->tray.cy += p->unit * rng_uniform(rng, -3, 3);
    a->tray.angle = rng_uniform(rng, -0.004f, 0.004f);
    for (int k = 0; k < 2; k++) {
        a->table_phase[k] = rng_uniform(rng, 0, 400);
        a->tray_phase[k] = rng_uniform(rng, 0, 400);
    }
    for (int i = 0; i < p->n_compartments; i++) {
        const Compartment *box = &p->compartments[i];
        for (int s = 0; s < box->n; s++) {
            Placed *part = &a->parts[a->n_parts];
            *part = (Placed){
                .kind = box->kind, .compartment = i, .slot = s, .scale = p->kinds[box->kind].body.scale};
            if (box->loose) {
                find_place(a, box, part->scale, a->n_parts, rng, &part->x, &part->y);
            } else {
                part->x = box->slot[s].x + box->play_x * 0.7f * rng_uniform(rng, -1, 1);
                part->y = box->slot[s].y + box->play_y * 0.7f * rng_uniform(rng, -1, 1);
            }
            part->angle = part_angle(p, box, part->kind, rng);
            for (int k = 0; k < 2; k++)
                part->phase[k] = rng_uniform(rng, 0, 400);
            a->n_parts++;
        }
    }
    a->light_angle = p->light_angle + rng_uniform(rng, -0.02f, 0.02f);
    a->camera = p->camera;
    for (int k = 0; k < 2; k++)
        a->camera.gradient[k] += rng_uniform(rng, -0.06f, 0.06f);
    float exposure = rng_uniform(rng, 0.95f, 1.05f);
    for (int k = 0; k < 3; k++)
        a->camera.gain[k] = exposure * rng_uniform(rng, 0.99f, 1.01f);
    a->camera.noise_seed = rng_next(rng);
}

/* Ids on the canvas: 1 the tray, 2... the floors, then the parts. */
static int part_id(const Arrangement *a, int part)
{
    return 2 + a->p->n_compartments + part;
}

static void draw_placed(const Arrangement *a, Canvas *canvas, int index)
{
    const Placed *placed = &a->parts[index];
    const PartKind *kind = &a->p->kinds[placed->kind];
    Part body = kind->body;
    place_on_tray(&a->tray, placed->x, placed->y, placed->angle, &body);
    memcpy(body.look.phase, placed->phase, sizeof body.look.phase);
    body.scale = placed->scale;
    body.damage = placed->damage;
    body.damage_seed = placed->damage_seed;
    canvas_part(canvas, &body, part_id(a, index));
    if (kind->has_cap) {
        Part cap = kind->cap;
        place_on_tray(&a->tray, placed->x, placed->y, placed->angle, &cap);
        cap.scale *= placed->scale / kind->body.scale;
        canvas_part(canvas, &cap, part_id(a, index));
    }
    canvas_damage(canvas, &body);
}

/* The scene before the camera: canvas->rgb, ids and damage. */
static void draw_arrangement(const Arrangement *a, Canvas *canvas)
{
    const TrayProduct *p = a->p;
    Look table = p->table;
    memcpy(table.phase, a->table_phase, sizeof table.phase);
    canvas->light[0] = draw_cos(a->light_angle);
    canvas->light[1] = draw_sin(a->light_angle);
    canvas_background(canvas, &table);
    Part part = a->tray;
    memcpy(part.look.phase, a->tray_phase, sizeof part.look.phase);
    canvas_part(canvas, &part, 1);
    for (int i = 0; i < p->n_compartments; i++) {
        const Compartment *box = &p->compartments[i];
        part = p->floor;
        memcpy(part.look.phase, a->tray_phase, sizeof part.look.phase);
        place_on_tray(&a->tray, box->x, box->y, 0, &part);
        part.scale = box->half_w;
        part.aspect = draw_shape_aspect(part.shape, part.form, box->half_h / box->half_w);
        part.damage = a->floor_damage[i];
        part.damage_seed = a->floor_seed;
        canvas_part(canvas, &part, 2 + i);
        canvas_damage(canvas, &part);
    }
    for (int i = 0; i < a->n_parts; i++)
        if (!a->parts[i].gone)
            draw_placed(a, canvas, i);
}

/* ------------------------------------------------------------------------------------- logical defects */

static void add_region(Arrangement *a, RegionKind kind, int placed, int truth, int entry)
{
    a->regions[a->n_regions++] = (Region){kind, placed, truth, entry};
}

/* Index of the n-th part that stands in a compartment. */
static int part_of(const Arrangement *a, int compartment, int n)
{
    for (int i = 0; i < a->n_parts; i++)
        if (a->parts[i].compartment == compartment && n-- == 0)
            return i;
    return 0;
}

static void defect_missing(Arrangement *a, Rng *rng)
{
    int i = rng_below(rng, a->n_parts);
    const Compartment *box = &a->p->compartments[a->parts[i].compartment];
    a->parts[i].gone = 1;
    add_region(a, box->loose ? REGION_FLOOR : REGION_SLOT, i, 0, box->missing_entry);
}

/* Remove two or more parts from a compartment that should hold at least three. */
static void defect_too_few(Arrangement *a, Rng *rng)
{
    const TrayProduct *p = a->p;
    int c = rng_below(rng, p->n_compartments);
    while (p->compartments[c].few_entry < 0)
        c = (c + 1) % p->n_compartments;
    const Compartment *box = &p->compartments[c];
    int first = rng_below(rng, box->n), second = rng_below(rng, box->n - 1);
    if (second >= first)
        second++;
    int gone[2] = {part_of(a, c, first), part_of(a, c, second)};
    for (int k = 0; k < 2; k++) {
        a->parts[gone[k]].gone = 1;
        if (box->loose && k > 0)
            continue; /* one region, the whole floor, for both. */
        add_region(a, box->loose ? REGION_FLOOR : REGION_SLOT, gone[k], k, box->few_entry);
    }
}

/* Add n parts of the kind that lies in a compartment already, where there is room. */
static void defect_too_many(Arrangement *a, int n, int entry, Rng *rng)
{
    const TrayProduct *p = a->p;
    int chosen = 0, first = rng_below(rng, p->n_compartments);
    float roomiest = -1e30f;
    for (int i = 0; i < p->n_compartments && roomiest < 0;
         i++) { /* the first with room, starting at a random one. */
        int c = (first + i) % p->n_compartments;
        const Compartment *box = &p->compartments[c];
        float x, y, room = find_place(a, box, p->kinds[box->kind].body.scale, -1, rng, &x, &y);
        if (room <= roomiest)
            continue;
        roomiest = room;
        chosen = c;
    }
    const Compartment *box = &p->compartments[chosen];
    for (int k = 0; k < n; k++) {
        Placed *part = &a->parts[a->n_parts];
        *part = (Placed){
            .kind = box->kind, .compartment = chosen, .slot = -1, .scale = p->kinds[box->kind].body.scale};
        find_place(a, box, part->scale, -1, rng, &part->x, &part->y);
        part->angle = part_angle(p, box, box->kind, rng);
        for (int j = 0; j < 2; j++)
            part->phase[j] = rng_uniform(rng, 0, 400);
        add_region(a, REGION_PART, a->n_parts, k, entry);
        a->n_parts++;
    }
}

/* Replace one part by another kind of about the same size: a foreign one, or one of another compartment. */
static void defect_wrong_kind(Arrangement *a, Rng *rng)
{
    const TrayProduct *p = a->p;
    int i = rng_below(rng, a->n_parts), kind = p->n_compartments;
    Placed *part = &a->parts[i];
    if (rng_chance(rng, 0.5f)) {
        int first = rng_below(rng, p->n_compartments);
        for (int k = 0; k < p->n_compartments; k++) {
            int other = (first + k) % p->n_compartments;
            float ratio = p->kinds[other].body.scale / part->scale;
            if (other != part->kind && ratio > 0.7f && ratio < 1.4f)
                kind = other;
        }
    }
    part->kind = kind;
    if (kind < p->n_compartments)
        part->scale = p->kinds[kind].body.scale;
    add_region(a, REGION_PART, i, 0, p->entry_of[TRAY_WRONG_KIND]);
}

/* Swap two parts of different compartments: a random pair of about the same size, else the most similar
 * pair of those tried. */
static void defect_swapped(Arrangement *a, Rng *rng)
{
    int best_i = 0, best_j = part_of(a, 1, 0);
    float best = 1e9f;
    for (int attempt = 0; attempt < 40 && best > 1.25f; attempt++) {
        int i = rng_below(rng, a->n_parts), j = rng_below(rng, a->n_parts);
        if (a->parts[i].compartment == a->parts[j].compartment)
            continue;
        float si = a->parts[i].scale, sj = a->parts[j].scale, ratio = si > sj ? si / sj : sj / si;
        if (ratio >= best)
            continue;
        best = ratio;
        best_i = i;
        best_j = j;
    }
    Placed *one = &a->parts[best_i], *two = &a->parts[best_j];
    int kind = one->kind;
    one->kind = two->kind;
    two->kind = kind;
    float angle = one->angle, scale = one->scale;
    one->angle = two->angle;
    two->angle = angle;
    one->scale = two->scale;
    two->scale = scale;
    add_region(a, REGION_PART, best_i, 0, a->p->entry_of[TRAY_SWAPPED]);
    add_region(a, REGION_PART, best_j, 0, a->p->entry_of[TRAY_SWAPPED]);
}

/* ---------------------------------------------------------------------------------- structural defects */

/* The visibility of a damage: the number of damaged pixels, or 0 when they hardly differ from the
 * undamaged. */
static long visible_damage(const Canvas *damaged, const Canvas *whole)
{
    long n = 0, total = (long)damaged->width * damaged->height;
    double change = 0;
    for (long i = 0; i < total; i++) {
        if (!damaged->damage[i])
            continue;
        n++;
        change += (double)color_distance(damaged->rgb + 3 * i, whole->rgb + 3 * i);
    }
    return n > 0 && change / (double)n > 0.13 ? n : 0;
}

/* Damage one part or, for a third of the scratches and stains, a floor. Draw until the damage covers a
 * visible share of the part and of the image. After a number of tries take the largest so far. */
static int defect_structural(Arrangement *a, int damage, int entry, Rng *rng, Canvas *canvas, Error *err)
{
    const TrayProduct *p = a->p;
    Canvas whole;
    if (canvas_init(&whole, canvas->width, canvas->height))
        return fail_memory(err, "a canvas", 0);
    draw_arrangement(a, &whole);
    int on_floor = (damage == DAMAGE_SCRATCH || damage == DAMAGE_STAIN) && rng_chance(rng, 0.33f);
    int place = rng_below(rng, on_floor ? p->n_compartments : a->n_parts), best_place = place;
    uint64_t best_seed = rng_next(rng);
    long best = -1, enough = (long)(110 * p->unit * p->unit);
    for (int attempt = 0; attempt < 40 && best < enough; attempt++) {
        uint64_t seed = rng_next(rng);
        if (attempt % 4 == 3)
            place = rng_below(rng, on_floor ? p->n_compartments : a->n_parts);
        if (on_floor) {
            a->floor_damage[place] = damage;
            a->floor_seed = seed;
        } else {
            a->parts[place].damage = damage;
            a->parts[place].damage_seed = seed;
        }
        draw_arrangement(a, canvas);
        long n = visible_damage(canvas, &whole);
        if (on_floor)
            a->floor_damage[place] = DAMAGE_NONE;
        else
            a->parts[place].damage = DAMAGE_NONE;
        if (n <= best)
            continue;
        best = n;
        best_place = place;
        best_seed = seed;
    }
    if (on_floor) {
        a->floor_damage[best_place] = damage;
        a->floor_seed = best_seed;
    } else {
        a->parts[best_place].damage = damage;
        a->parts[best_place].damage_seed = best_seed;
    }
    add_region(a, REGION_DAMAGE, best_place, 0, entry);
    canvas_free(&whole);
    return 0;
}

static int apply_defect(Arrangement *a, TrayDefect defect, int index, Rng *rng, Canvas *canvas, Error *err)
{
    const int *entry = a->p->entry_of;
    switch (defect) {
    case TRAY_MISSING:
        defect_missing(a, rng);
        break;
    case TRAY_EXTRA:
        defect_too_many(a, 1, entry[TRAY_EXTRA], rng);
        break;
    case TRAY_WRONG_KIND:
        defect_wrong_kind(a, rng);
        break;
    case TRAY_SWAPPED:
        defect_swapped(a, rng);
        break;
    case TRAY_WRONG_COUNT:
        if (index % 2)
            defect_too_many(a, 2, entry[TRAY_WRONG_COUNT], rng);
        else
            defect_too_few(a, rng);
        break;
    case TRAY_SCRATCH:
        return defect_structural(a, DAMAGE_SCRATCH, entry[defect], rng, canvas, err);
    case TRAY_STAIN:
        return defect_structural(a, DAMAGE_STAIN, entry[defect], rng, canvas, err);
    case TRAY_DENT:
        return defect_structural(a, DAMAGE_DENT, entry[defect], rng, canvas, err);
    case TRAY_BROKEN:
        return defect_structural(a, DAMAGE_BROKEN, entry[defect], rng, canvas, err);
    default:
        break;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------- ground truth, files */

static void mark_parts(const Arrangement *a, const Canvas *canvas, uint8_t *parts)
{
    long n = (long)canvas->width * canvas->height;
    int first = part_id(a, 0);
    for (long i = 0; i < n; i++)
        parts[i] = canvas->ids[i] >= first ? (uint8_t)(canvas->ids[i] - first + 1) : 0;
}

static void mark_region(const Arrangement *a, const Region *region, Canvas *canvas, uint8_t *mask)
{
    const Compartment *box = &a->p->compartments[a->parts[region->placed].compartment];
    long n = (long)canvas->width * canvas->height;
    int id = part_id(a, region->placed), first_part = part_id(a, 0);
    for (long i = 0; i < n; i++) {
        if (region->kind == REGION_PART && canvas->ids[i] == id)
            mask[i] = 1;
        if (region->kind == REGION_DAMAGE && canvas->damage[i])
            mask[i] = 1;
    }
    if (region->kind != REGION_SLOT && region->kind != REGION_FLOOR)
        return;
    if (region->kind == REGION_SLOT)
        mark_slot(a->p, canvas, &a->tray, box, a->parts[region->placed].slot, mask);
    else
        mark_floor(a->p, canvas, &a->tray, box, mask);
    for (long i = 0; i < n; i++) /* a part stands there, so the place is not empty. */
        if (canvas->ids[i] >= first_part)
            mask[i] = 0;
}

static int make_truths(TrayImage *image, const Arrangement *a, Canvas *canvas, Error *err)
{
    size_t n = (size_t)canvas->width * (size_t)canvas->height;
    for (int r = 0; r < a->n_regions; r++) {
        const Region *region = &a->regions[r];
        uint8_t **mask = &image->truth[region->truth];
        if (!*mask)
            *mask = calloc(1, n);
        if (!*mask)
            return fail_memory(err, "a ground truth image", n);
        image->value[region->truth] = 255 - region->entry;
        if (region->truth >= image->n_truths)
            image->n_truths = region->truth + 1;
        mark_region(a, region, canvas, *mask);
    }
    for (int t = 0; t < image->n_truths; t++)
        for (size_t i = 0; i < n; i++)
            if (image->truth[t][i])
                image->truth[t][i] = (uint8_t)image->value[t];
    return 0;
}

int tray_image_new(TrayImage *image, const TrayProduct *p, TraySplit split, TrayDefect defect, int index,
                   int show_defect, Error *err)
{
    Canvas canvas;
    Rng rng;
    memset(image, 0, sizeof *image);
    size_t n = (size_t)p->options.width * (size_t)p->options.height;
    Arrangement *a = malloc(sizeof *a);
    image->rgb = malloc(3 * n);
    image->parts = malloc(n);
    if (!a || !image->rgb || !image->parts || canvas_init(&canvas, p->options.width, p->options.height)) {
        free(a);
        tray_image_free(image);
        return fail_memory(err, "a tray image", 3 * n);
    }
    /* Two random sequences an image: one for ordinary variation, one for the defect. So the good and the
     * defective version agree in everything else. */
    uint64_t which = (uint64_t)split << 48 | (uint64_t)defect << 40 | (uint64_t)(uint32_t)index;
    rng_seed(&rng, p->options.seed, 0x7261790100000000u ^ which);
    arrange(a, p, &rng);
    int status = 0;
    if (show_defect && split == TRAY_TEST_DEFECT) {
        rng_seed(&rng, p->options.seed, 0x7261790200000000u ^ which);
        status = apply_defect(a, defect, index, &rng, &canvas, err);
    }
    if (status == 0) {
        draw_arrangement(a, &canvas);
        mark_parts(a, &canvas, image->parts);
        status = make_truths(image, a, &canvas, err);
        canvas_develop(&canvas, &a->camera, image->rgb);
    }
    canvas_free(&canvas);
    free(a);
    if (status)
        tray_image_free(image);
    return status;
}

void tray_image_free(TrayImage *image)
{
    free(image->rgb);
    free(image->parts);
    for (int i = 0; i < TRAY_MAX_TRUTHS; i++)
        free(image->truth[i]);
    memset(image, 0, sizeof *image);
}

SynthTrayOptions synth_tray_defaults(void)
{
    return (SynthTrayOptions){.seed = 1,
                              .width = 256,
                              .height = 256,
                              .n_train = 40,
                              .n_validation = 8,
                              .n_good = 20,
                              .n_logical = 6,
                              .n_structural = 6};
}

/* An image of the data set: its contents and its place. */
typedef struct TrayItem {
    TraySplit split;
    TrayDefect defect;
    int index; /* index among its kind. */
    const char *folder;
    int number; /* index in the folder. */
} TrayItem;

/* Draw and write one image with its ground truths and, when asked for, the map of its parts. */
static int write_tray_image(const SynthOutput *out, const TrayProduct *p, const TrayItem *item, Error *err)
{
    TrayImage image;
    char path[128];
    int w = p->options.width, h = p->options.height;
    if (tray_image_new(&image, p, item->split, item->defect, item->index, 1, err))
        return -1;
    snprintf(path, sizeof path, "%s%s", item->split == TRAY_TEST_DEFECT ? "test/" : "", item->folder);
    int status = synth_output_image(out, path, item->number, image.rgb, w, h, 3, err);
    snprintf(path, sizeof path, "ground_truth/%s/%03d", item->folder, item->number);
    for (int t = 0; t < image.n_truths && !status; t++)
        status = synth_output_image(out, path, t, image.truth[t], w, h, 1, err);
    snprintf(path, sizeof path, "parts/%s%s", item->split == TRAY_TEST_DEFECT ? "test/" : "", item->folder);
    if (p->options.parts && !status)
        status = synth_output_image(out, path, item->number, image.parts, w, h, 1, err);
    tray_image_free(&image);
    return status;
}

/* List all images of the data set; list NULL: only count them. */
static int list_tray(const SynthTrayOptions *o, TrayItem *items)
{
    static const char *const folders[] = {"train/good", "validation/good", "test/good"};
    const int counts[] = {o->n_train, o->n_validation, o->n_good};
    int n = 0, numbers[2] = {0, 0};
    for (int split = TRAY_TRAIN; split <= TRAY_TEST_GOOD; split++)
        for (int i = 0; i < counts[split]; i++, n++)
            if (items)
                items[n] = (TrayItem){(TraySplit)split, TRAY_GOOD, i, folders[split], i};
    for (int d = TRAY_MISSING; d < TRAY_DEFECT_COUNT; d++) {
        const int logical = d < TRAY_SCRATCH;
        const char *folder = logical ? "logical_anomalies" : "structural_anomalies";
        for (int i = 0; i < (logical ? o->n_logical : o->n_structural); i++, n++, numbers[logical]++)
            if (items)
                items[n] = (TrayItem){TRAY_TEST_DEFECT, (TrayDefect)d, i, folder, numbers[logical]};
    }
    return n;
}

/* Each image has its own random numbers, so threads may draw them in any order. */
static int write_tray(const SynthOutput *out, const TrayProduct *p, Error *err)
{
    const int n = list_tray(&p->options, NULL);
    int failed = 0;
    TrayItem *items = malloc(((size_t)n + 1) * sizeof *items);
    if (!items)
        return fail_memory(err, "the list of images", ((size_t)n + 1) * sizeof *items);
    list_tray(&p->options, items);
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < n; i++) {
        Error own;
        int stop;
#pragma omp atomic read
        stop = failed;
        if (stop || write_tray_image(out, p, &items[i], &own) == 0)
            continue;
#pragma omp critical
        if (!failed) {
            fail(err, "%s", own.message);
#pragma omp atomic write
            failed = 1;
        }
    }
    free(items);
    return failed ? -1 : synth_output_config(out, p->entries, p->n_entries, err);
}

int synth_tray(const char *dir, const SynthTrayOptions *o, Error *err)
{
    SynthOutput out;
    if (synth_check_count("training images", o->n_train, err) ||
        synth_check_count("validation images", o->n_validation, err) ||
        synth_check_count("good test images", o->n_good, err) ||
        synth_check_count("images of a logical defect", o->n_logical, err) ||
        synth_check_count("images of a structural defect", o->n_structural, err))
        return -1;
    TrayProduct *p = tray_product_new(o, err);
    if (!p)
        return -1;
    int status = synth_output_open(&out, dir, err);
    if (status == 0) {
        status = write_tray(&out, p, err);
        if (status)
            synth_output_drop(&out);
        else
            status = synth_output_commit(&out, err);
    }
    tray_product_free(p);
    return status;
}
