/* io/rle.c - see rle.h. Runs go down the columns, but a mask lies in rows. So the encoder looks for the
 * ends of runs row by row. Pixel (y, x) begins a new run when it differs from (y-1, x), or for y = 0 from
 * the bottom of column x-1. A first pass counts these places in each column. A second writes each to its
 * column's part of the list, so the list is in order. */
#include "io/rle.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

/* The pixel before (0, x) in the order of the runs. Before the first comes a zero, because counts begin
 * with zeros. */
static int above_top(const uint8_t *mask, int height, int width, int x)
{
    return x > 0 && mask[(size_t)(height - 1) * (size_t)width + (size_t)x - 1] != 0;
}

/* Runs can begin in the box, one row below it, and at the top one column right of it. */
typedef struct Region {
    int x0, x1, top_x1, y0, y1; /* the ends excluded */
} Region;

static Region region_of(const int box[4], int height, int width)
{
    if (box[2] < box[0] || box[3] < box[1])
        return (Region){0};
    return (Region){.x0 = box[0],
                    .x1 = box[2] + 1,
                    .top_x1 = box[2] + 2 < width ? box[2] + 2 : width,
                    .y0 = box[1] > 0 ? box[1] : 1,
                    .y1 = box[3] + 2 < height ? box[3] + 2 : height};
}

/* Count the runs that begin in each column. */
static void count_starts(uint32_t *n_starts, const uint8_t *mask, int height, int width, const Region *r)
{
    for (int x = r->x0; x < r->top_x1; x++)
        n_starts[x] = above_top(mask, height, width, x) != (mask[x] != 0);
    for (int y = r->y0; y < r->y1; y++) {
        const uint8_t *row = mask + (size_t)y * (size_t)width, *above = row - width;
        for (int x = r->x0; x < r->x1; x++)
            n_starts[x] += (above[x] != 0) != (row[x] != 0);
    }
}

/* next[x]: the place of column x's next start. Most pixels equal the one above, so eight are skipped at
 * once. */
static void list_starts(uint32_t *starts, uint32_t *next, const uint8_t *mask, int height, int width,
                        const Region *r)
{
    for (int x = r->x0; x < r->top_x1; x++)
        if (above_top(mask, height, width, x) != (mask[x] != 0))
            starts[next[x]++] = (uint32_t)x * (uint32_t)height;
    for (int y = r->y0; y < r->y1; y++) {
        const uint8_t *row = mask + (size_t)y * (size_t)width, *above = row - width;
        for (int x = r->x0; x < r->x1; x++) {
            if (r->x1 - x >= 8 && memcmp(row + x, above + x, 8) == 0)
                x += 7;
            else if ((above[x] != 0) != (row[x] != 0))
                starts[next[x]++] = (uint32_t)x * (uint32_t)height + (uint32_t)y;
        }
    }
}

int rle_encode(Rle *rle, const uint8_t *mask, int height, int width, Error *err)
{
    return rle_encode_box(rle, mask, height, width, (int[4]){0, 0, width - 1, height - 1}, err);
}

int rle_encode_box(Rle *rle, const uint8_t *mask, int height, int width, const int box[4], Error *err)
{
    memset(rle, 0, sizeof *rle);
    if (height < 1 || width < 1 || (int64_t)height * width > UINT32_MAX)
        return fail(err, "run-length encoding: bad mask size %d x %d", width, height);
    const Region region = region_of(box, height, width);
    uint32_t *next = calloc((size_t)width, sizeof *next);
    if (!next)
        return fail_memory(err, "run-length encoding", (size_t)width * sizeof *next);
    count_starts(next, mask, height, width, &region);
    uint32_t n_starts = 0;
    for (int x = 0; x < width; x++) {
        uint32_t n = next[x];
        next[x] = n_starts;
        n_starts += n;
    }
    rle->n_counts = (size_t)n_starts + 1;
    rle->counts = malloc(rle->n_counts * sizeof *rle->counts);
    if (!rle->counts) {
        free(next);
        return fail_memory(err, "run-length encoding", rle->n_counts * sizeof *rle->counts);
    }
    list_starts(rle->counts, next, mask, height, width, &region);
    free(next);
    rle->counts[n_starts] = (uint32_t)((int64_t)height * width);
    for (size_t i = n_starts; i > 0; i--) /* from starts to lengths. */
        rle->counts[i] -= rle->counts[i - 1];
    rle->height = height;
    rle->width = width;
    return 0;
}

void rle_decode(uint8_t *mask, const Rle *rle)
{
    size_t height = (size_t)rle->height, width = (size_t)rle->width, size = height * width, at = 0;
    memset(mask, 0, size);
    for (size_t i = 0; i < rle->n_counts; i++) {
        size_t n = rle->counts[i] < size - at ? rle->counts[i] : size - at;
        if (i % 2 == 1)
            for (size_t k = at; k < at + n; k++)
                mask[k % height * width + k / height] = 1;
        at += n;
    }
}

int64_t rle_area(const Rle *rle)
{
    int64_t area = 0;
    for (size_t i = 1; i < rle->n_counts; i += 2)
        area += rle->counts[i];
    return area;
}

void rle_free(Rle *rle)
{
    free(rle->counts);
    memset(rle, 0, sizeof *rle);
}

static void json_size(const Rle *rle, JsonWriter *w)
{
    json_key(w, "size");
    json_open(w, '[');
    json_int(w, rle->height);
    json_int(w, rle->width);
    json_close(w, ']');
}

void rle_json(const Rle *rle, JsonWriter *w)
{
    json_open(w, '{');
    json_size(rle, w);
    json_key(w, "counts");
    json_open(w, '[');
    for (size_t i = 0; i < rle->n_counts; i++)
        json_int(w, rle->counts[i]);
    json_close(w, ']');
    json_close(w, '}');
}

/* Five bits a character, the lowest first, from '0' on; 32 says that more follow. The fifth bit of the last is the
 * sign. From the fourth count on, the difference from the last but one is coded: runs of one value are alike. */
char *rle_string(const Rle *rle)
{
    enum { MOST = 7 }; /* characters of a difference of two 32-bit counts: 33 bits. */
    char *text = malloc(rle->n_counts * MOST + 1), *at = text;
    for (size_t i = 0; text && i < rle->n_counts; i++) {
        int64_t x = i > 2 ? (int64_t)rle->counts[i] - rle->counts[i - 2] : rle->counts[i];
        int more = 1;
        while (more) {
            const int bits = (int)(x & 31);
            x = (x - bits) / 32;
            more = bits & 16 ? x != -1 : x != 0;
            *at++ = (char)('0' + bits + (more ? 32 : 0));
        }
    }
    if (text)
        *at = '\0';
    return text;
}

void rle_json_compressed(const Rle *rle, JsonWriter *w)
{
    char *text = rle_string(rle);
    json_open(w, '{');
    json_size(rle, w);
    json_key(w, "counts"), json_string(w, text ? text : "");
    json_close(w, '}');
    w->failed |= !text;
    free(text);
}
