/* io/tiff.h - TIFF (revision 6.0, and BigTIFF), read in steps: the directory and the rows (tiff.c), their
 * compression (tiff_unpack.c), and what the rows mean: pictures (tiff_picture.c), maps of floats
 * (tiff_map.c).
 *
 *   header      "II" (little-endian) or "MM" (big-endian), 42, 4 bytes: offset of the first directory.
 *               BigTIFF: 43, 8, 0, 8 bytes: the offset
 *   directory   number of fields (2 bytes; BigTIFF 8), then the fields
 *   field       tag (2), type (2), count (4; 8), the values, or their offset if they take more than 4 (8)
 *               bytes
 *   pixels      in strips (groups of rows) or tiles, each compressed on its own; all channels of a pixel
 *               together, or plane by plane. A predictor may have replaced samples by differences to the
 *               pixel on their left
 *
 * Of several images in a file, the first is read. */
#ifndef SAMLAD_IO_TIFF_H
#define SAMLAD_IO_TIFF_H

#include <stddef.h>
#include <stdint.h>

#include "io/bytes.h"
#include "io/error.h"

enum { /* tags */
       TIFF_WIDTH = 256,
       TIFF_HEIGHT = 257,
       TIFF_BITS = 258,
       TIFF_COMPRESSION = 259,
       TIFF_PHOTOMETRIC = 262,
       TIFF_FILL_ORDER = 266,
       TIFF_STRIP_OFFSETS = 273,
       TIFF_ORIENTATION = 274,
       TIFF_SAMPLES = 277,
       TIFF_ROWS_PER_STRIP = 278,
       TIFF_STRIP_BYTE_COUNTS = 279,
       TIFF_PLANAR = 284,
       TIFF_PREDICTOR = 317,
       TIFF_COLOR_MAP = 320,
       TIFF_TILE_WIDTH = 322,
       TIFF_TILE_LENGTH = 323,
       TIFF_TILE_OFFSETS = 324,
       TIFF_TILE_BYTE_COUNTS = 325,
       TIFF_EXTRA_SAMPLES = 338,
       TIFF_SAMPLE_FORMAT = 339
};
enum { TIFF_TYPE_BYTE = 1, TIFF_TYPE_SHORT = 3, TIFF_TYPE_LONG = 4, TIFF_TYPE_LONG8 = 16 };
enum { TIFF_PLAIN = 1, TIFF_LZW = 5, TIFF_DEFLATE = 8, TIFF_OLD_DEFLATE = 32946, TIFF_PACKBITS = 32773 };
enum { TIFF_UINT = 1, TIFF_FLOAT = 3, TIFF_UNDEFINED = 4 };     /* sample format */
enum { TIFF_WHITE_IS_ZERO, TIFF_GREY, TIFF_RGB, TIFF_INDEXED }; /* photometric */

typedef struct TiffField {
    size_t type_size;
    uint64_t count; /* 0: absent */
    const uint8_t *values;
} TiffField;

typedef struct Tiff {
    const uint8_t *bytes;
    size_t n;
    const char *name;
    Error *err;
    int big_endian, is_big; /* is_big: BigTIFF */
    size_t directory;
    uint64_t n_fields;
    uint32_t width, height, compression, predictor, photometric, format;
    uint32_t bits, samples;           /* of a sample; of a pixel. */
    uint32_t n_planes, plane_samples; /* 1 plane of all samples, or as many planes of 1. */
    uint32_t part_width, part_height; /* of a strip or tile. */
    uint64_t across, down, n_parts;   /* n_parts: of all planes. */
    TiffField offsets, counts;        /* of the parts' bytes in the file. */
} Tiff;

/* A part of an unpacked row, without predictor: n pixels from (x, y) on, of one plane. Samples are in the
 * file's byte order. */
typedef struct TiffRow {
    const uint8_t *bytes;
    uint32_t plane, x, y, n;
} TiffRow;

/* Fill t from the header and the directory of t->bytes. Afterwards the file has enough data for its size, so
 * that memory may be asked for. */
int tiff_open(Tiff *t);
int tiff_find_field(const Tiff *t, unsigned tag, TiffField *field);
uint64_t tiff_field_value(const Tiff *t, const TiffField *field, uint64_t i);
/* A field of one number; `absent` when the field is missing. */
int tiff_find_number(const Tiff *t, unsigned tag, uint32_t absent, uint32_t *value);
/* Unpack all strips or tiles, and give their rows to `take`. */
int tiff_read_rows(const Tiff *t, void (*take)(void *user, const TiffRow *row), void *user);
/* fail() with a sentence that begins with the file's name. */
int tiff_bad(const Tiff *t, const char *what);

/* Is the compression one that tiff_unpack knows? */
int tiff_check_compression(const Tiff *t);
/* Unpack one strip or tile of n bytes: exactly n_out bytes. most: the size of a whole one. */
int tiff_unpack(const Tiff *t, uint8_t *out, size_t n_out, size_t most, const uint8_t *in, size_t n);
/* Undo the predictor in a row of part_width pixels. scratch: as long as the row. */
void tiff_undo_predictor(const Tiff *t, uint8_t *row, uint8_t *scratch);

/* A number of n bytes in the file's order. */
static inline uint64_t tiff_get(const Tiff *t, const uint8_t *p, size_t n)
{
    return bytes_number(p, n, t->big_endian);
}

/* Bytes of a row of a strip or tile: at most 2^28 pixels of 2^16 samples of 2^16 bits. */
static inline uint64_t tiff_row_bytes(const Tiff *t)
{
    return ((uint64_t)t->part_width * t->plane_samples * t->bits + 7) / 8;
}

#endif
