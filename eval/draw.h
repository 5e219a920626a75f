/* eval/draw.h - a small deterministic drawing library for synthetic inspection scenes.
 *
 * It draws the demo's trays and the training scenes of the shipped weights: antialiased outlines,
 * procedural textures, bevels, shadows, damage, light and sensor noise.
 *
 * Floats see only + - * / and sqrt, whose results IEEE 754 fixes; the random generator and the sine are
 * our own. So the same seed gives the same bytes on every machine, if the compiler keeps to the standard:
 * no fast-math, no fused multiply-add (gcc -std=c11, or -ffp-contract=off). Angles are in turns (1 = 360
 * degrees), x runs right, y runs down, colours are linear in [0,1]. */
#ifndef SAMLAD_DRAW_H
#define SAMLAD_DRAW_H

#include <stdint.h>

/* gcc -std=c11 fuses no multiply-adds. clang does by default; the pragma forbids it in the file that
 * includes this. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

/* ---- random numbers: xoshiro256** seeded by splitmix64; `stream`s of one seed are independent ---- */
typedef struct {
    uint64_t s[4];
} Rng;

void rng_seed(Rng *rng, uint64_t seed, uint64_t stream);
uint64_t rng_next(Rng *rng);
float rng_uniform(Rng *rng, float low, float high);     /* [low, high) */
float rng_log_uniform(Rng *rng, float low, float high); /* roughly uniform in the logarithm; low > 0. */
int rng_below(Rng *rng, int n);                         /* 0 ... n-1; n >= 1. */
int rng_chance(Rng *rng, float probability);
float rng_normal(Rng *rng); /* mean 0, deviation 1, bounded by 3.5 (sum of four uniforms). */

/* A random colour, often greyish; and one near another (`amount`: about how far a channel moves). */
void rng_color(Rng *rng, float *rgb);
void rng_color_near(Rng *rng, const float *from, float *to, float amount);

float draw_sin(float turns);
float draw_cos(float turns);

/* ---- outlines ---- */
typedef struct {
    float x, y;
} Point;

enum { PATH_MAX_POINTS = 1536, PATH_MAX_OUTLINES = 64 };

/* Closed outlines in a unit frame (the shape fits in about [-1,1]²). One direction of turning is filled,
 * the other is a hole; the builders below choose the direction. */
typedef struct {
    int n_points, n_outlines;
    Point points[PATH_MAX_POINTS];
    int ends[PATH_MAX_OUTLINES];
} Path;

enum {
    SHAPE_ELLIPSE,
    SHAPE_RECT,
    SHAPE_ROUND_RECT,
    SHAPE_POLYGON,
    SHAPE_STAR,
    SHAPE_RING,
    SHAPE_GEAR,
    SHAPE_NUT,
    SHAPE_SCREW,
    SHAPE_ROD,
    SHAPE_CROSS,
    SHAPE_BLOB,
    SHAPE_CRESCENT,
    SHAPE_LETTER,
    SHAPE_ARROW,
    SHAPE_KEY,
    SHAPE_L,
    SHAPE_DIGIT,
    SHAPE_FRAME,
    SHAPE_COUNT,
    SHAPE_PANEL = SHAPE_COUNT /* a slightly rounded square, for trays; never picked at random. */
};

/* Fill *path with a shape. `form` picks its details (number of teeth, aspect, waviness ...). */
void draw_shape(Path *path, int shape, uint64_t form);
/* The aspect that gives this shape the wanted height / width; the shape is at most as high as wide. */
float draw_shape_aspect(int shape, uint64_t form, float height_over_width);

/* ---- surfaces ---- */
enum {
    TEXTURE_FLAT,
    TEXTURE_STRIPES,
    TEXTURE_CHECKS,
    TEXTURE_DOTS,
    TEXTURE_CLOUDS,
    TEXTURE_BRUSHED,
    TEXTURE_WOOD,
    TEXTURE_GRADIENT,
    TEXTURE_SPECKLE,
    TEXTURE_MARBLE,
    TEXTURE_WEAVE,
    TEXTURE_TURNED,
    TEXTURE_COUNT
};

typedef struct {
    int texture;
    float color[3], color2[3]; /* the texture runs between the two. */
    float period;              /* texture period, pixels */
    float angle;               /* texture direction within the object, turns. */
    float phase[2];            /* texture offset, pixels */
    uint32_t grain;            /* seed of the texture's noise. */
    float bevel;               /* width of the rounded edge, pixels; 0 = flat; negative = a recess. */
    float relief;              /* strength of the edge's light and shade, about 0..1. */
    float gloss;               /* strength of the highlight, 0..1. */
} Look;

enum { DAMAGE_NONE, DAMAGE_SCRATCH, DAMAGE_STAIN, DAMAGE_DENT, DAMAGE_BROKEN, DAMAGE_COUNT };

typedef struct {
    int shape;
    uint64_t form;
    float cx, cy; /* centre, pixels */
    float angle;  /* turns */
    float scale;  /* unit frame -> pixels. */
    float aspect; /* the unit frame's y is multiplied by this first. */
    Look look;
    float shadow; /* 0 = none */
    float height; /* length of the cast shadow, pixels. */
    int damage;
    uint64_t damage_seed;
} Part;

/* ---- the canvas ---- */
typedef struct {
    int width, height;
    float *rgb;      /* [height][width][3], linear 0..1 */
    uint16_t *ids;   /* [height][width], 0 = background, else the front-most object covering more than half */
    uint8_t *damage; /* [height][width], 1 = changed by a damage and still visible. */
    float light[2];  /* unit vector towards the light, in the image plane. */
    float unit;      /* pixels per 1/256 of the shorter side. */
    float *scratch;  /* five planes of [height][width + 2]. */
} Canvas;

int canvas_init(Canvas *canvas, int width, int height); /* 0 ok, -1 no memory (or a senseless size). */
void canvas_free(Canvas *canvas);

/* Cover the whole canvas (id 0) with one surface. */
void canvas_background(Canvas *canvas, const Look *look);
/* Draw one part in front of all others, broken if it is. The pixels of which it covers more than half get
 * its id (1...). */
void canvas_part(Canvas *canvas, const Part *part, int id);
/* Scratch, stain or dent the drawing in the area of the part (canvas_part draws a broken part broken). */
void canvas_damage(Canvas *canvas, const Part *part);
/* mask [height][width] = 1 where the undamaged part covers more than half of the pixel. */
void canvas_silhouette(Canvas *canvas, const Part *part, uint8_t *mask);

typedef struct {
    float gradient[2]; /* relative brightness change from one side to the other, per axis. */
    float vignette;    /* darkening of the corners, 0..1. */
    float gain[3];     /* exposure and white balance. */
    float blur;        /* deviation of a Gaussian-like blur, pixels (0..3). */
    float noise;       /* deviation of white noise, 0..1. */
    uint64_t noise_seed;
} Camera;

/* Light, lens and sensor: canvas -> 8-bit RGB [height][width][3] (the canvas' rgb is used up). */
void canvas_develop(Canvas *canvas, const Camera *camera, uint8_t *rgb);

#endif
