/* io/tiff.c - the directory of a TIFF file, and its rows. See tiff.h. */
#include "io/tiff.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"

/* No compression here expands further; refuse larger claims before memory is asked for. */
#define TIFF_MAX_RATIO 4096

int tiff_bad(const Tiff *t, const char *what)
{
    return fail(t->err, "%s: bad or unsupported TIFF file: %s", t->name, what);
}

/* ---- directory -------------------------------------------------------------------------------------*/

static size_t type_size(uint64_t type)
{
    return type == TIFF_TYPE_BYTE    ? 1
           : type == TIFF_TYPE_SHORT ? 2
           : type == TIFF_TYPE_LONG  ? 4
           : type == TIFF_TYPE_LONG8 ? 8
                                     : 0;
}

int tiff_find_field(const Tiff *t, unsigned tag, TiffField *field)
{
    const size_t word = t->is_big ? 8 : 4, entry_size = 4 + 2 * word;
    *field = (TiffField){0};
    for (uint64_t i = 0; i < t->n_fields; i++) {
        const uint8_t *entry = t->bytes + t->directory + entry_size * (size_t)i;
        if (tiff_get(t, entry, 2) != tag)
            continue;
        field->type_size = type_size(tiff_get(t, entry + 2, 2));
        field->count = tiff_get(t, entry + 4, word);
        field->values = entry + 4 + word;
        if (field->count == 0 || field->type_size == 0)
            return fail(t->err, "%s: bad TIFF file: field %u has no value, or one of a wrong type", t->name,
                        tag);
        if (field->count <= word / field->type_size)
            return 0;
        const uint64_t offset = tiff_get(t, field->values, word);
        if (offset > t->n || field->count > (t->n - offset) / field->type_size)
            return fail(t->err, "%s: bad TIFF file: field %u lies outside the file", t->name, tag);
        field->values = t->bytes + offset;
        return 0;
    }
    return 0;
}

uint64_t tiff_field_value(const Tiff *t, const TiffField *field, uint64_t i)
{
    return tiff_get(t, field->values + (size_t)i * field->type_size, field->type_size);
}

int tiff_find_number(const Tiff *t, unsigned tag, uint32_t absent, uint32_t *value)
{
    TiffField field;
    if (tiff_find_field(t, tag, &field))
        return -1;
    const uint64_t number = field.count ? tiff_field_value(t, &field, 0) : absent;
    *value = number > UINT32_MAX ? UINT32_MAX : (uint32_t)number;
    return 0;
}

int tiff_begins(const uint8_t *bytes, size_t n)
{
    return n >= 4 && (memcmp(bytes, "II*\0", 4) == 0 || memcmp(bytes, "MM\0*", 4) == 0 ||
                      memcmp(bytes, "II+\0", 4) == 0 || memcmp(bytes, "MM\0+", 4) == 0);
}

static int open_directory(Tiff *t)
{
    if (!tiff_begins(t->bytes, t->n))
        return fail(t->err, "%s: not a TIFF file", t->name);
    t->big_endian = t->bytes[0] == 'M';
    t->is_big = t->bytes[t->big_endian ? 3 : 2] == '+';
    const size_t word = t->is_big ? 8 : 4, count_size = t->is_big ? 8 : 2;
    if (t->n < 2 * word)
        return tiff_bad(t, "truncated: no directory");
    if (t->is_big && tiff_get(t, t->bytes + 4, 2) != 8)
        return tiff_bad(t, "BigTIFF with offsets that are not of 8 bytes");
    const uint64_t at = tiff_get(t, t->bytes + word, word);
    if (at > t->n || t->n - at < count_size)
        return tiff_bad(t, t->is_big ? "BigTIFF without a directory" : "truncated: no directory");
    t->n_fields = tiff_get(t, t->bytes + at, count_size);
    t->directory = (size_t)at + count_size;
    return t->n_fields > (t->n - t->directory) / (4 + 2 * word) ? tiff_bad(t, "truncated directory") : 0;
}

/* Which numbers stand for a pixel, as far as rows depend on it. */
static int read_samples(Tiff *t)
{
    uint32_t planar, fill_order;
    TiffField bits;
    if (tiff_find_field(t, TIFF_BITS, &bits) || tiff_find_number(t, TIFF_BITS, 1, &t->bits) ||
        tiff_find_number(t, TIFF_SAMPLES, 1, &t->samples) ||
        tiff_find_number(t, TIFF_SAMPLE_FORMAT, TIFF_UINT, &t->format) ||
        tiff_find_number(t, TIFF_PHOTOMETRIC, TIFF_GREY, &t->photometric) ||
        tiff_find_number(t, TIFF_PREDICTOR, 1, &t->predictor) ||
        tiff_find_number(t, TIFF_COMPRESSION, TIFF_PLAIN, &t->compression) ||
        tiff_find_number(t, TIFF_FILL_ORDER, 1, &fill_order) || tiff_find_number(t, TIFF_PLANAR, 1, &planar))
        return -1;
    for (uint64_t i = 1; i < bits.count; i++)
        if (tiff_field_value(t, &bits, i) != t->bits)
            return tiff_bad(t, "channels of different depths");
    if (t->samples < 1 || t->samples > UINT16_MAX || t->bits < 1 || t->bits > UINT16_MAX)
        return tiff_bad(t, "the number of its samples or their bits");
    if (planar != 1 && planar != 2)
        return tiff_bad(t, "unknown planar configuration");
    if (fill_order != 1)
        return tiff_bad(t, "reversed bit order");
    t->n_planes = planar == 2 ? t->samples : 1;
    t->plane_samples = planar == 2 ? 1 : t->samples;
    return 0;
}

/* The predictors know whole bytes, the third only floats. */
static int check_predictor(const Tiff *t)
{
    const int whole = t->bits == 8 || t->bits == 16 || t->bits == 32 || t->bits == 64;
    if (t->predictor < 1 || t->predictor > 3 || (t->predictor == 2 && !whole) ||
        (t->predictor == 3 && !(whole && t->format == TIFF_FLOAT)))
        return tiff_bad(t, "unknown predictor");
    return 0;
}

static int read_layout(Tiff *t)
{
    TiffField tiles;
    if (tiff_find_number(t, TIFF_WIDTH, 0, &t->width) || tiff_find_number(t, TIFF_HEIGHT, 0, &t->height) ||
        tiff_find_field(t, TIFF_TILE_OFFSETS, &tiles))
        return -1;
    if (t->width < 1 || t->height < 1 || (uint64_t)t->width * t->height > (uint64_t)IMAGE_MAX_PIXELS)
        return fail(t->err, "%s: bad TIFF file: %u x %u pixels", t->name, (unsigned)t->width,
                    (unsigned)t->height);
    const int is_tiled = tiles.count > 0;
    if (tiff_find_field(t, is_tiled ? TIFF_TILE_OFFSETS : TIFF_STRIP_OFFSETS, &t->offsets) ||
        tiff_find_field(t, is_tiled ? TIFF_TILE_BYTE_COUNTS : TIFF_STRIP_BYTE_COUNTS, &t->counts))
        return -1;
    t->part_width = t->width;
    if (is_tiled ? tiff_find_number(t, TIFF_TILE_WIDTH, 0, &t->part_width) ||
                       tiff_find_number(t, TIFF_TILE_LENGTH, 0, &t->part_height)
                 : tiff_find_number(t, TIFF_ROWS_PER_STRIP, UINT32_MAX, &t->part_height))
        return -1;
    if (!is_tiled && t->part_height > t->height)
        t->part_height = t->height;
    if (t->part_width < 1 || t->part_height < 1 ||
        (uint64_t)t->part_width * t->part_height > (uint64_t)IMAGE_MAX_PIXELS)
        return tiff_bad(t, "size of its strips or tiles");
    return 0;
}

/* ---- strips or tiles -------------------------------------------------------------------------------*/

typedef struct Part {
    uint32_t plane, x, y, n_rows; /* n_rows: those inside the image. */
    uint64_t offset, size;        /* of its bytes in the file. */
} Part;

static Part part_at(const Tiff *t, uint64_t i)
{
    const uint64_t in_plane = i % (t->across * t->down);
    Part part = {.plane = (uint32_t)(i / (t->across * t->down)),
                 .x = (uint32_t)(in_plane % t->across) * t->part_width,
                 .y = (uint32_t)(in_plane / t->across) * t->part_height};
    part.n_rows = t->height - part.y < t->part_height ? t->height - part.y : t->part_height;
    part.offset = tiff_field_value(t, &t->offsets, i);
    part.size = t->counts.count ? tiff_field_value(t, &t->counts, i) /* absent: not compressed. */
                                : part.n_rows * tiff_row_bytes(t);
    return part;
}

/* Count the parts. Enough offsets, and enough data for the claimed size? Parts that share bytes would let a
 * small file cost much time. So the sizes must add up to less than the file. */
static int check_parts(Tiff *t)
{
    uint64_t total = 0;
    t->across = ((uint64_t)t->width + t->part_width - 1) / t->part_width;
    t->down = ((uint64_t)t->height + t->part_height - 1) / t->part_height;
    t->n_parts = t->across * t->down * t->n_planes;
    if (t->offsets.count < t->n_parts ||
        (t->counts.count < t->n_parts && !(t->counts.count == 0 && t->compression == TIFF_PLAIN)))
        return tiff_bad(t, "it lacks offsets or byte counts of its strips or tiles");
    for (uint64_t i = 0; i < t->n_parts; i++) {
        const Part part = part_at(t, i);
        if (part.offset > t->n || part.size > t->n - part.offset)
            return tiff_bad(t, "truncated: a strip or tile lies outside the file");
        total += part.size; /* no overflow: each is at most the file, and so is their number. */
        if (total > t->n)
            return tiff_bad(t, "truncated, or strips share their bytes");
    }
    const uint64_t row_bytes = tiff_row_bytes(t), most = TIFF_MAX_RATIO * (total + 1);
    if (row_bytes > most / t->part_height || row_bytes * t->part_height > most / t->n_parts)
        return tiff_bad(t, "truncated: there is far too little data for its size");
    return row_bytes * t->part_height > SIZE_MAX / 2 ? fail_memory(t->err, t->name, row_bytes) : 0;
}

int tiff_open(Tiff *t)
{
    return open_directory(t) || read_samples(t) || check_predictor(t) || tiff_check_compression(t) ||
                   read_layout(t) || check_parts(t)
               ? -1
               : 0;
}

/* Unpack each part, and give its rows. bytes: one part; scratch: one row. */
static int read_parts(const Tiff *t, uint8_t *bytes, uint8_t *scratch,
                      void (*take)(void *user, const TiffRow *row), void *user)
{
    const size_t row_bytes = (size_t)tiff_row_bytes(t);
    for (uint64_t i = 0; i < t->n_parts; i++) {
        const Part part = part_at(t, i);
        if (tiff_unpack(t, bytes, part.n_rows * row_bytes, t->part_height * row_bytes, t->bytes + part.offset,
                        (size_t)part.size))
            return -1;
        TiffRow row = {.plane = part.plane, .x = part.x, .y = part.y};
        row.n = t->width - part.x < t->part_width ? t->width - part.x : t->part_width;
        for (uint8_t *at = bytes; row.y < part.y + part.n_rows; row.y++, at += row_bytes) {
            tiff_undo_predictor(t, at, scratch);
            row.bytes = at;
            take(user, &row);
        }
    }
    return 0;
}

int tiff_read_rows(const Tiff *t, void (*take)(void *user, const TiffRow *row), void *user)
{
    const size_t row_bytes = (size_t)tiff_row_bytes(t);
    uint8_t *bytes = malloc(t->part_height * row_bytes), *scratch = malloc(row_bytes);
    const int status = bytes && scratch ? read_parts(t, bytes, scratch, take, user)
                                        : fail_memory(t->err, t->name, t->part_height * row_bytes);
    free(bytes);
    free(scratch);
    return status;
}
