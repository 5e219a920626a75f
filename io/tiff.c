/* io/tiff.c - grey TIFF (revision 6.0): anomaly maps are exchanged as one-channel float32 TIFF files.
 *
 * A file is a header (byte order, offset of the first directory) and a directory of fields. A field is
 * tag, type, count, and the values or their offset. The pixels lie in strips (groups of rows) or tiles,
 * each compressed on its own. A predictor may have replaced samples by differences to their left
 * neighbours. Of several images in a file, the first is read. */
#include "io/image.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/bytes.h"
#include "io/file.h"
#include "io/number.h"

#define TIFF_MAX_FILE ((size_t)1 << 31)
#define TIFF_MAX_RATIO                                                                                       \
    4096 /* no compression here expands further; refuse larger claims before memory is asked for. */

enum { /* tags */
       IMAGE_WIDTH = 256,
       IMAGE_LENGTH = 257,
       BITS_PER_SAMPLE = 258,
       COMPRESSION = 259,
       PHOTOMETRIC = 262,
       FILL_ORDER = 266,
       STRIP_OFFSETS = 273,
       SAMPLES_PER_PIXEL = 277,
       ROWS_PER_STRIP = 278,
       STRIP_BYTE_COUNTS = 279,
       PREDICTOR = 317,
       TILE_WIDTH = 322,
       TILE_LENGTH = 323,
       TILE_OFFSETS = 324,
       TILE_BYTE_COUNTS = 325,
       SAMPLE_FORMAT = 339
};
enum { TYPE_BYTE = 1, TYPE_SHORT = 3, TYPE_LONG = 4 };
enum { NO_COMPRESSION = 1, LZW = 5, DEFLATE = 8, OLD_DEFLATE = 32946, PACKBITS = 32773 };
enum { FORMAT_UINT = 1, FORMAT_FLOAT = 3 };

typedef struct Tiff {
    const uint8_t *bytes;
    size_t n;
    const char *name;
    Error *err;
    int big_endian;
    size_t directory;
    unsigned n_fields;
    uint32_t width, height, compression, predictor, photometric, format;
    size_t sample_bytes;
    uint32_t part_width, part_height; /* of a strip or tile. */
    unsigned offsets_tag, counts_tag;
} Tiff;

static int bad(const Tiff *t, const char *what)
{
    return fail(t->err, "%s: bad or unsupported TIFF file: %s", t->name, what);
}

/* ---- directory -------------------------------------------------------------------------------------*/

/* A number of n bytes in the file's order. */
static uint64_t get(const Tiff *t, const uint8_t *p, size_t n)
{
    return bytes_number(p, n, t->big_endian);
}

typedef struct Field {
    size_t type_size;
    uint32_t count; /* 0: absent */
    const uint8_t *values;
} Field;

static int find_field(const Tiff *t, unsigned tag, Field *field)
{
    *field = (Field){0};
    for (unsigned i = 0; i < t->n_fields; i++) {
        const uint8_t *entry = t->bytes + t->directory + 12 * (size_t)i;
        if (get(t, entry, 2) != tag)
            continue;
        unsigned type = (unsigned)get(t, entry + 2, 2);
        field->type_size = type == TYPE_BYTE ? 1 : type == TYPE_SHORT ? 2 : type == TYPE_LONG ? 4 : 0;
        field->count = (uint32_t)get(t, entry + 4, 4);
        field->values = entry + 8;
        uint64_t size = (uint64_t)field->count * field->type_size, offset = get(t, entry + 8, 4);
        if (size == 0)
            return fail(t->err, "%s: bad TIFF file: field %u has no value, or one of a wrong type", t->name,
                        tag);
        if (size > 4) {
            if (offset > t->n || size > t->n - offset)
                return fail(t->err, "%s: bad TIFF file: field %u lies outside the file", t->name, tag);
            field->values = t->bytes + offset;
        }
        return 0;
    }
    return 0;
}

static uint32_t field_value(const Tiff *t, const Field *field, size_t i)
{
    return (uint32_t)get(t, field->values + i * field->type_size, field->type_size);
}

/* A field of one number; `absent` when the field is missing. */
static int find_number(const Tiff *t, unsigned tag, uint32_t absent, uint32_t *value)
{
    Field field;
    if (find_field(t, tag, &field))
        return -1;
    *value = field.count ? field_value(t, &field, 0) : absent;
    return 0;
}

static int open_directory(Tiff *t)
{
    if (t->n < 8 || (memcmp(t->bytes, "II", 2) != 0 && memcmp(t->bytes, "MM", 2) != 0))
        return fail(t->err, "%s: not a TIFF file", t->name);
    t->big_endian = t->bytes[0] == 'M';
    uint64_t version = get(t, t->bytes + 2, 2), at = get(t, t->bytes + 4, 4);
    if (version != 42)
        return version == 43 ? bad(t, "BigTIFF is not supported")
                             : fail(t->err, "%s: not a TIFF file", t->name);
    if (at > t->n || t->n - at < 2)
        return bad(t, "truncated: no directory");
    t->n_fields = (unsigned)get(t, t->bytes + at, 2);
    t->directory = (size_t)at + 2;
    return 12 * (size_t)t->n_fields > t->n - t->directory ? bad(t, "truncated directory") : 0;
}

static int read_sample_type(Tiff *t)
{
    uint32_t bits, samples, fill_order;
    if (find_number(t, BITS_PER_SAMPLE, 1, &bits) || find_number(t, SAMPLES_PER_PIXEL, 1, &samples) ||
        find_number(t, SAMPLE_FORMAT, FORMAT_UINT, &t->format) ||
        find_number(t, FILL_ORDER, 1, &fill_order) || find_number(t, PHOTOMETRIC, 1, &t->photometric) ||
        find_number(t, PREDICTOR, 1, &t->predictor) ||
        find_number(t, COMPRESSION, NO_COMPRESSION, &t->compression))
        return -1;
    if (samples != 1 || t->photometric > 1)
        return bad(t, "expected one grey channel");
    if (!(t->format == FORMAT_UINT && (bits == 8 || bits == 16)) &&
        !(t->format == FORMAT_FLOAT && (bits == 16 || bits == 32 || bits == 64)))
        return fail(
            t->err,
            "%s: TIFF samples of format %u with %u bits, expected unsigned 8 or 16, float 16, 32 or 64",
            t->name, (unsigned)t->format, (unsigned)bits);
    if (fill_order != 1)
        return bad(t, "reversed bit order");
    if (t->predictor < 1 || t->predictor > 3 || (t->predictor == 3 && t->format != FORMAT_FLOAT))
        return bad(t, "unknown predictor");
    t->sample_bytes = bits / 8;
    return 0;
}

static int read_layout(Tiff *t)
{
    Field tiles;
    if (find_number(t, IMAGE_WIDTH, 0, &t->width) || find_number(t, IMAGE_LENGTH, 0, &t->height) ||
        find_field(t, TILE_OFFSETS, &tiles))
        return -1;
    if (t->width < 1 || t->height < 1 || (uint64_t)t->width * t->height > (uint64_t)IMAGE_MAX_PIXELS)
        return fail(t->err, "%s: bad TIFF file: %u x %u pixels", t->name, (unsigned)t->width,
                    (unsigned)t->height);
    int is_tiled = tiles.count > 0;
    t->offsets_tag = is_tiled ? TILE_OFFSETS : STRIP_OFFSETS;
    t->counts_tag = is_tiled ? TILE_BYTE_COUNTS : STRIP_BYTE_COUNTS;
    t->part_width = t->width;
    if (is_tiled
            ? find_number(t, TILE_WIDTH, 0, &t->part_width) || find_number(t, TILE_LENGTH, 0, &t->part_height)
            : find_number(t, ROWS_PER_STRIP, UINT32_MAX, &t->part_height))
        return -1;
    if (!is_tiled && t->part_height > t->height)
        t->part_height = t->height;
    if (t->part_width < 1 || t->part_height < 1 ||
        (uint64_t)t->part_width * t->part_height > (uint64_t)IMAGE_MAX_PIXELS)
        return bad(t, "size of its strips or tiles");
    return 0;
}

/* ---- decompression: exactly n_out bytes of one strip or tile, -1 when there are fewer ---------------*/

static int unpack_bits(uint8_t *out, size_t n_out, const uint8_t *in, size_t n)
{
    size_t at = 0, to = 0;
    while (to < n_out) {
        if (at >= n)
            return -1;
        int head = (int8_t)in[at++];
        size_t run = (size_t)(head < 0 ? 1 - head : 1 + head), room = n_out - to;
        size_t used = run < room ? run : room;
        if (head == -128)
            continue;
        if (head >= 0 ? n - at < used : at >= n)
            return -1;
        if (head >= 0)
            memcpy(out + to, in + at, used);
        else
            memset(out + to, in[at], used);
        at += head >= 0 ? run : 1;
        to += used;
    }
    return 0;
}

/* TIFF's LZW: codes of 9 to 12 bits, highest bit first; 256 empties the table, 257 ends. Entry c is the
 * output string at start[c], length[c]. Each is the string before it plus one byte, so it always lies
 * whole in the output. */
static int unpack_lzw(uint8_t *out, size_t n_out, const uint8_t *in, size_t n)
{
    enum { CLEAR = 256, END = 257, FIRST = 258, LAST = 4096 };
    size_t start[LAST], length[LAST], to = 0, at = 0, last_start = 0, last_length = 0;
    uint32_t bits = 0;
    int n_bits = 0, width = 9, next = FIRST;
    while (to < n_out) {
        for (; n_bits < width; n_bits += 8) {
            if (at == n)
                return -1;
            bits = bits << 8 | in[at++];
        }
        int code = (int)(bits >> (n_bits - width) & ((1u << width) - 1));
        n_bits -= width;
        if (code == END)
            return -1;
        if (code == CLEAR) {
            next = FIRST, width = 9, last_length = 0;
            continue;
        }
        /* The new entry: the last string and the next byte of the output, which is about to be written. */
        if (last_length > 0 && next < LAST) {
            start[next] = last_start;
            length[next] = last_length + 1;
            next++;
        }
        if (code >= next)
            return -1;
        last_start = to;
        last_length = code < CLEAR ? 1 : length[code];
        for (size_t i = 0; i < last_length && to < n_out; i++) /* byte by byte: it may overlap itself. */
            out[to++] = code < CLEAR ? (uint8_t)code : out[start[code] + i];
        /* The encoder widens its codes one entry early. */
        width = next + 1 >= 2048 ? 12 : next + 1 >= 1024 ? 11 : next + 1 >= 512 ? 10 : 9;
    }
    return 0;
}

static int unpack_part(const Tiff *t, uint8_t *out, size_t n_out, size_t needed, const uint8_t *in, size_t n)
{
    int status = -1;
    if (t->compression == NO_COMPRESSION) {
        if (n >= needed)
            memcpy(out, in, needed), status = 0;
    } else if (t->compression == PACKBITS) {
        status = unpack_bits(out, needed, in, n);
    } else if (t->compression == LZW) {
        status = unpack_lzw(out, needed, in, n);
    } else if (t->compression == DEFLATE || t->compression == OLD_DEFLATE) {
        size_t n_inflated;
        uint8_t *inflated = zlib_inflate(in, n, n_out, &n_inflated, t->name, t->err);
        if (!inflated)
            return -1;
        if (n_inflated >= needed)
            memcpy(out, inflated, needed), status = 0;
        free(inflated);
    } else {
        return fail(t->err, "%s: TIFF compression %u is not supported", t->name, (unsigned)t->compression);
    }
    return status ? bad(t, "truncated or corrupt pixels") : 0;
}

/* ---- samples ---------------------------------------------------------------------------------------*/

/* Undo predictor 2: each sample, as an integer, is the difference to its left neighbour. */
static void undo_differences(const Tiff *t, uint8_t *row, size_t width)
{
    size_t size = t->sample_bytes;
    uint64_t sum = 0;
    for (size_t x = 0; x < width; x++) {
        sum += get(t, row + x * size, size);
        for (size_t i = 0; i < size; i++)
            row[x * size + i] = (uint8_t)(sum >> 8 * (t->big_endian ? size - 1 - i : i));
    }
}

/* Undo predictor 3. The row holds the highest bytes of all samples first, then the next bytes, and so on.
 * In that sequence each byte is the difference to the one before. */
static void undo_float_predictor(const Tiff *t, uint8_t *row, size_t width, uint8_t *scratch)
{
    size_t size = t->sample_bytes;
    scratch[0] = row[0];
    for (size_t i = 1; i < width * size; i++)
        scratch[i] = (uint8_t)(scratch[i - 1] + row[i]);
    for (size_t x = 0; x < width; x++)
        for (size_t k = 0; k < size; k++)
            row[x * size + (t->big_endian ? k : size - 1 - k)] = scratch[k * width + x];
}

static float sample_value(const Tiff *t, const uint8_t *p)
{
    uint64_t u = get(t, p, t->sample_bytes);
    uint32_t u32 = (uint32_t)u;
    float f;
    double d;
    if (t->format == FORMAT_UINT) /* photometric 0: white is zero. */
        return (float)(t->photometric == 0 ? (1u << 8 * t->sample_bytes) - 1 - u32 : u32);
    if (t->sample_bytes == 2)
        return f16_to_f32((uint16_t)u);
    memcpy(&f, &u32, sizeof f);
    memcpy(&d, &u, sizeof d);
    return t->sample_bytes == 4 ? f : (float)d;
}

/* Copy one unpacked strip or tile, with its upper left corner at (x0, y0), into the image. */
static void place_part(const Tiff *t, float *values, uint8_t *part, uint32_t x0, uint32_t y0, uint32_t n_rows,
                       uint8_t *scratch)
{
    size_t row_bytes = t->part_width * t->sample_bytes;
    uint32_t n_columns = t->width - x0 < t->part_width ? t->width - x0 : t->part_width;
    for (uint32_t y = 0; y < n_rows; y++) {
        uint8_t *row = part + y * row_bytes;
        if (t->predictor == 2)
            undo_differences(t, row, t->part_width);
        else if (t->predictor == 3)
            undo_float_predictor(t, row, t->part_width, scratch);
        float *to = values + (size_t)(y0 + y) * t->width + x0;
        for (uint32_t x = 0; x < n_columns; x++)
            to[x] = sample_value(t, row + x * t->sample_bytes);
    }
}

/* Read all strips or tiles. part: one of them; scratch: one row. */
static int read_parts(const Tiff *t, float *values, uint8_t *part, uint8_t *scratch, const Field *offsets,
                      const Field *counts)
{
    size_t across = (t->width + t->part_width - 1) / t->part_width,
           row_bytes = t->part_width * t->sample_bytes;
    size_t down = (t->height + t->part_height - 1) / t->part_height;
    for (size_t i = 0; i < across * down; i++) {
        uint32_t x0 = (uint32_t)(i % across) * t->part_width, y0 = (uint32_t)(i / across) * t->part_height;
        uint32_t offset = field_value(t, offsets, i), n = field_value(t, counts, i);
        uint32_t n_rows = t->height - y0 < t->part_height ? t->height - y0 : t->part_height;
        if (offset > t->n || n > t->n - offset)
            return bad(t, "truncated: a strip or tile lies outside the file");
        if (unpack_part(t, part, t->part_height * row_bytes, n_rows * row_bytes, t->bytes + offset, n))
            return -1;
        place_part(t, values, part, x0, y0, n_rows, scratch);
    }
    return 0;
}

/* Check before memory is asked for: enough offsets, and enough data for the claimed size. Parts that share
 * bytes would let a small file cost much time. So the counts must add up to less than the file. */
static int check_parts(const Tiff *t, const Field *offsets, const Field *counts)
{
    uint64_t across = ((uint64_t)t->width + t->part_width - 1) / t->part_width;
    uint64_t n_parts = across * (((uint64_t)t->height + t->part_height - 1) / t->part_height), total = 0;
    if (offsets->count < n_parts || counts->count < n_parts)
        return bad(t, "it lacks offsets or byte counts of its strips or tiles");
    for (size_t i = 0; i < n_parts; i++)
        total += field_value(t, counts, i);
    uint64_t part_bytes = (uint64_t)t->part_width * t->part_height * t->sample_bytes;
    if (total > t->n)
        return bad(t, "truncated, or strips share their bytes");
    if (part_bytes / TIFF_MAX_RATIO > total || part_bytes * n_parts / TIFF_MAX_RATIO > total)
        return bad(t, "truncated: there is far too little data for its size");
    return 0;
}

static float *read_image(Tiff *t)
{
    Field offsets, counts;
    if (open_directory(t) || read_sample_type(t) || read_layout(t) ||
        find_field(t, t->offsets_tag, &offsets) || find_field(t, t->counts_tag, &counts) ||
        check_parts(t, &offsets, &counts))
        return NULL;
    size_t n_values = (size_t)t->width * t->height, row_bytes = t->part_width * t->sample_bytes;
    float *values = malloc(n_values * sizeof *values);
    uint8_t *part = malloc(t->part_height * row_bytes), *scratch = malloc(row_bytes);
    int status = -1;
    if (values && part && scratch)
        status = read_parts(t, values, part, scratch, &offsets, &counts);
    else
        fail_memory(t->err, t->name, n_values * sizeof *values);
    free(part);
    free(scratch);
    if (status) {
        free(values);
        return NULL;
    }
    return values;
}

float *tiff_decode_float(const uint8_t *bytes, size_t n, const char *name, int *width, int *height,
                         Error *err)
{
    Tiff t = {.bytes = bytes, .n = n, .name = name, .err = err};
    float *values = read_image(&t);
    *width = values ? (int)t.width : 0;
    *height = values ? (int)t.height : 0;
    return values;
}

float *tiff_read_float(const char *path, int *width, int *height, Error *err)
{
    size_t n;
    *width = *height = 0;
    uint8_t *bytes = file_read(path, TIFF_MAX_FILE, &n, err);
    if (!bytes)
        return NULL;
    float *values = tiff_decode_float(bytes, n, path, width, height, err);
    free(bytes);
    return values;
}

/* ---- writing ---------------------------------------------------------------------------------------*/

static void put_little(uint8_t *p, uint32_t value, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

int tiff_write_float(const char *path, const float *values, int width, int height, Error *err)
{
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS)
        return fail(err, "%s: cannot write a TIFF of %d x %d pixels", path, width, height);
    enum {
        N_FIELDS = 10,
        DATA_AT = 8 + 2 + 12 * N_FIELDS + 4 + 2
    }; /* 2 bytes, so that the data lie at a multiple of 4. */
    const uint32_t n_bytes = (uint32_t)width * (uint32_t)height * 4;
    const struct {
        uint32_t tag, type, value;
    } fields[N_FIELDS] = {
        {IMAGE_WIDTH, TYPE_LONG, (uint32_t)width},
        {IMAGE_LENGTH, TYPE_LONG, (uint32_t)height},
        {BITS_PER_SAMPLE, TYPE_SHORT, 32},
        {COMPRESSION, TYPE_SHORT, NO_COMPRESSION},
        {PHOTOMETRIC, TYPE_SHORT, 1},
        {STRIP_OFFSETS, TYPE_LONG, DATA_AT},
        {SAMPLES_PER_PIXEL, TYPE_SHORT, 1},
        {ROWS_PER_STRIP, TYPE_LONG, (uint32_t)height},
        {STRIP_BYTE_COUNTS, TYPE_LONG, n_bytes},
        {SAMPLE_FORMAT, TYPE_SHORT, FORMAT_FLOAT},
    };
    uint8_t head[DATA_AT] = {'I', 'I', 42, 0, 8, 0, 0, 0, N_FIELDS};
    for (int i = 0; i < N_FIELDS; i++) {
        uint8_t *entry = head + 10 + 12 * i;
        put_little(entry, fields[i].tag, 2);
        put_little(entry + 2, fields[i].type, 2);
        put_little(entry + 4, 1, 4);
        put_little(entry + 8, fields[i].value, 4);
    }
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    out_put(&out, head, sizeof head);
    uint8_t chunk[4096];
    for (size_t i = 0, n = (size_t)width * (size_t)height; i < n;) {
        size_t used = 0;
        for (; used < sizeof chunk && i < n; used += 4, i++) {
            uint32_t u;
            memcpy(&u, values + i, 4);
            put_little(chunk + used, u, 4);
        }
        out_put(&out, chunk, used);
    }
    return out_commit(&out, err);
}
