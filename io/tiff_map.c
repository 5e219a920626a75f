/* io/tiff_map.c - anomaly maps are exchanged as one-channel float32 TIFF files. See tiff.h. */
#include "io/tiff.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/number.h"

#define TIFF_MAX_FILE ((size_t)1 << 31)

typedef struct Map {
    const Tiff *tiff;
    float *values; /* [height][width] */
} Map;

static float sample_value(const Tiff *t, const uint8_t *p)
{
    const uint64_t u = tiff_get(t, p, t->bits / 8);
    const uint32_t u32 = (uint32_t)u;
    float f;
    double d;
    if (t->format == TIFF_UINT)
        return (float)(t->photometric == TIFF_WHITE_IS_ZERO ? (1u << t->bits) - 1 - u32 : u32);
    if (t->bits == 16)
        return f16_to_f32((uint16_t)u);
    memcpy(&f, &u32, sizeof f);
    memcpy(&d, &u, sizeof d);
    return t->bits == 32 ? f : (float)d;
}

static void take_row(void *user, const TiffRow *row)
{
    const Map *map = user;
    const size_t size = map->tiff->bits / 8;
    float *to = map->values + (size_t)row->y * map->tiff->width + row->x;
    for (size_t i = 0; i < row->n; i++)
        to[i] = sample_value(map->tiff, row->bytes + i * size);
}

static int check_map(const Tiff *t)
{
    const uint32_t bits = t->bits;
    if (t->samples != 1 || t->photometric > TIFF_GREY)
        return tiff_bad(t, "expected one grey channel");
    if (!(t->format == TIFF_UINT && (bits == 8 || bits == 16)) &&
        !(t->format == TIFF_FLOAT && (bits == 16 || bits == 32 || bits == 64)))
        return fail(
            t->err,
            "%s: TIFF samples of format %u with %u bits, expected unsigned 8 or 16, float 16, 32 or 64",
            t->name, (unsigned)t->format, (unsigned)bits);
    return 0;
}

int tiff_is_float(const uint8_t *bytes, size_t n)
{
    Tiff t = {.bytes = bytes, .n = n, .name = ""};
    return tiff_open(&t) == 0 && t.format == TIFF_FLOAT;
}

float *tiff_decode_float(const uint8_t *bytes, size_t n, const char *name, int *width, int *height,
                         Error *err)
{
    Tiff t = {.bytes = bytes, .n = n, .name = name, .err = err};
    *width = *height = 0;
    if (tiff_open(&t) || check_map(&t))
        return NULL;
    const size_t n_values = (size_t)t.width * t.height;
    Map map = {&t, malloc(n_values * sizeof(float))};
    if (!map.values)
        fail_memory(err, name, n_values * sizeof(float));
    if (!map.values || tiff_read_rows(&t, take_row, &map)) {
        free(map.values);
        return NULL;
    }
    *width = (int)t.width, *height = (int)t.height;
    return map.values;
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
        {TIFF_WIDTH, TIFF_TYPE_LONG, (uint32_t)width},
        {TIFF_HEIGHT, TIFF_TYPE_LONG, (uint32_t)height},
        {TIFF_BITS, TIFF_TYPE_SHORT, 32},
        {TIFF_COMPRESSION, TIFF_TYPE_SHORT, TIFF_PLAIN},
        {TIFF_PHOTOMETRIC, TIFF_TYPE_SHORT, 1},
        {TIFF_STRIP_OFFSETS, TIFF_TYPE_LONG, DATA_AT},
        {TIFF_SAMPLES, TIFF_TYPE_SHORT, 1},
        {TIFF_ROWS_PER_STRIP, TIFF_TYPE_LONG, (uint32_t)height},
        {TIFF_STRIP_BYTE_COUNTS, TIFF_TYPE_LONG, n_bytes},
        {TIFF_SAMPLE_FORMAT, TIFF_TYPE_SHORT, TIFF_FLOAT},
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
