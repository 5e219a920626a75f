/* bitmap.c - see bitmap.h. */
#include "report/bitmap.h"

#include <math.h>
#include <stdlib.h>

#include "io/fail.h"
#include "io/image.h"
#include "tensor.h"

int bitmap_new(Bitmap *c, int width, int height, Error *err)
{
    const size_t n = (size_t)width * (size_t)height;
    *c = (Bitmap){width, height, width, aligned_array(n, sizeof(Color))};
    return c->pixels ? 0 : fail_memory(err, "a picture", n * sizeof(Color));
}

void bitmap_free(Bitmap *c)
{
    free(c->pixels);
    *c = (Bitmap){0};
}

int bitmap_write(const Bitmap *c, const char *path, Error *err)
{
    return png_write(path, c->pixels, c->width, c->height, 3, 8, err);
}

void bitmap_fill(Bitmap *c, Box b, Color color)
{
    for (int y = b.y0; y < b.y1; y++)
        for (int x = b.x0; x < b.x1; x++)
            bitmap_put(c, x, y, color);
}

void bitmap_ring(Bitmap *c, int x, int y, double inner, double outer, Color color)
{
    const int reach = (int)ceil(outer);
    for (int dy = -reach; dy <= reach; dy++)
        for (int dx = -reach; dx <= reach; dx++) {
            const double distance = hypot(dx, dy);
            if (distance > inner && distance < outer)
                bitmap_put(c, x + dx, y + dy, color);
        }
}

void bitmap_dashes(Bitmap *c, Box b, int dash, int thickness, Color color)
{
    const int t = thickness;
    for (int x = b.x0; x < b.x1; x++)
        if ((x - b.x0) / dash % 2 == 0) {
            bitmap_fill(c, (Box){x, b.y0, x + 1, b.y0 + t}, color);
            bitmap_fill(c, (Box){x, b.y1 - t, x + 1, b.y1}, color);
        }
    for (int y = b.y0; y < b.y1; y++)
        if ((y - b.y0) / dash % 2 == 0) {
            bitmap_fill(c, (Box){b.x0, y, b.x0 + t, y + 1}, color);
            bitmap_fill(c, (Box){b.x1 - t, y, b.x1, y + 1}, color);
        }
}

/* One byte a row, the highest of five bits is the leftmost dot. */
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

void bitmap_letter(Bitmap *c, int x, int y, char letter, int dot, Color color)
{
    for (size_t i = 0; i < sizeof FONT / sizeof *FONT; i++)
        for (int row = 0; FONT[i].letter == letter && row < 7; row++)
            for (int column = 0; column < 5; column++) {
                const int left = x + dot * column, top = y + dot * row;
                if (FONT[i].rows[row] >> (4 - column) & 1)
                    bitmap_fill(c, (Box){left, top, left + dot, top + dot}, color);
            }
}
