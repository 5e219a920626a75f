/* bitmap.h - pixels, and the few shapes of the overlays. Parts outside the bitmap are not drawn. */
#ifndef SAMLAD_BITMAP_H
#define SAMLAD_BITMAP_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

typedef struct Color {
    uint8_t r, g, b;
} Color;

/* Columns x0 .. x1-1 of rows y0 .. y1-1. */
typedef struct Box {
    int x0, y0, x1, y1;
} Box;

/* One bitmap may be a part of another, so rows lie `stride` pixels apart. */
typedef struct Bitmap {
    int width, height;
    ptrdiff_t stride;
    Color *pixels;
} Bitmap;

int bitmap_new(Bitmap *bitmap, int width, int height, Error *err);
void bitmap_free(Bitmap *bitmap);
/* A bitmap without gaps between its rows as an RGB PNG. */
int bitmap_write(const Bitmap *bitmap, const char *path, Error *err);

static inline void bitmap_put(Bitmap *c, int x, int y, Color color)
{
    if (x >= 0 && y >= 0 && x < c->width && y < c->height)
        c->pixels[y * c->stride + x] = color;
}

void bitmap_fill(Bitmap *bitmap, Box box, Color color);
/* All pixels whose distance from (x, y) is above `inner` and below `outer`. */
void bitmap_ring(Bitmap *bitmap, int x, int y, double inner, double outer, Color color);
/* The edge of a box, dashed. */
void bitmap_dashes(Bitmap *bitmap, Box box, int dash, int thickness, Color color);
/* A capital letter of 5x7 dots, each `dot` pixels wide and high. */
void bitmap_letter(Bitmap *bitmap, int x, int y, char letter, int dot, Color color);

#endif
