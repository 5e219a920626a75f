/* io/jpeg.c - JPEG (ITU T.81) with Huffman coding and 8-bit samples: baseline, extended and progressive.
 * Components: 1 (grey), 3 (YCbCr or RGB) or 4 (CMYK or YCCK, with Adobe's inversion). Any sampling factors
 * and restart intervals.
 *
 * The integers are those of libjpeg's default settings, which PIL and every official pipeline use: the
 * "islow" inverse DCT, triangular ("fancy") upsampling of chroma, 16-bit fixed-point colour conversion. So
 * the pixels are the same to the last integer. This holds for corrupt data too, as far as libjpeg
 * tolerates them: bits that are no code read as 0, and lost blocks stay grey. Corrupt headers and
 * truncated files are refused. One difference: progressive files without some scans are not smoothed
 * between blocks.
 *
 * Three steps. Markers and scans fill arrays of quantised coefficients [blocks_h][blocks_w][64] for each
 * component. Dequantisation and inverse DCT make planes of samples. Row by row, these are upsampled and
 * converted to RGB. In the end the picture is turned by its Exif segment (exif.h), as viewers and OpenCV
 * do. */
#include "io/exif.h"
#include "io/fail.h"
#include "io/image.h"

#include <stdlib.h>
#include <string.h>

#define MAX_COMPONENTS 4
#define MAX_SCANS      200       /* real files have about 10. */
#define MAX_VISITS     (1 << 28) /* of blocks, half a minute; 10 scans of 200 Mpixels: 60 million. */
#define FAST_BITS      9

typedef struct HuffmanTable {
    int defined;
    uint16_t fast[1 << FAST_BITS]; /* by the next bits: symbol << 4 | length, 0 where the code is longer. */
    uint32_t limit[18];            /* codes of this length, shifted to 16 bits, lie below limit[length]. */
    int32_t offset[17];            /* code + offset[length]: the place of its symbol. */
    uint8_t symbols[256];
} HuffmanTable;

typedef struct Component {
    int id, h, v;           /* sampling factors */
    int width, height;      /* samples that belong to the image. */
    int blocks_w, blocks_h; /* blocks that belong to the image. */
    int stored_w, stored_h; /* blocks in memory: whole MCUs. */
    int16_t *coefficients;  /* [stored_h][stored_w][64], in rows, not zigzag. */
    uint8_t *plane;         /* [8 stored_h][8 stored_w] */
    int quant_index;
    uint16_t quant[64];     /* the table at the beginning of the first scan, in rows. */
    int coded;              /* a scan has held it. */
    int dc_table, ac_table; /* of the current scan. */
    uint32_t dc;            /* DC of the last block; the next is coded as a difference. */
} Component;

typedef struct Jpeg {
    const uint8_t *bytes;
    size_t n, at; /* at: the next byte to look at. */
    const char *name;
    Error *err;
    int width, height, progressive, n_components, max_h, max_v, mcus_w, mcus_h, n_scans;
    int64_t n_visits;    /* blocks read by all scans so far. */
    int saw_jfif, adobe; /* adobe: -1 or the transform of its marker. */
    int orientation;     /* orientation from the first Exif segment, 0: none. */
    int restart_interval;
    Component components[MAX_COMPONENTS];
    uint16_t quant[4][64];
    int quant_defined[4];
    HuffmanTable dc_tables[4], ac_tables[4];
    /* the current scan */
    Component *scan[MAX_COMPONENTS];
    int n_scan, first, last, high, low; /* spectral selection; successive approximation. */
    unsigned eob_run;                   /* blocks to come without anything in this band. */
    uint64_t bits;
    int n_bits;
    size_t borrowed; /* zero bytes read behind the end of the scan's data. */
} Jpeg;

/* The place in the block of the file's k-th coefficient. Corrupt runs may lead up to 16 beyond the last. */
static const uint8_t ZIGZAG[80] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                   12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                   35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                   58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
                                   63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

static int bad(const Jpeg *j, const char *what)
{
    return fail(j->err, "%s: bad JPEG file: %s (near byte %zu)", j->name, what, j->at);
}

static int truncated(const Jpeg *j)
{
    return fail(j->err, "%s: bad JPEG file: truncated (it ends at byte %zu)", j->name, j->n);
}

/* ---- Huffman tables --------------------------------------------------------------------------------*/

/* Make a table. counts[16]: number of codes of each length; symbols[n]: their symbols. -1 when there are
 * more codes than fit. */
static int make_table(HuffmanTable *table, const uint8_t counts[16], const uint8_t *symbols, int n)
{
    uint32_t code = 0;
    int at = 0;
    memset(table, 0, sizeof *table);
    memcpy(table->symbols, symbols, (size_t)n);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = at - (int32_t)code;
        for (int i = 0; i < counts[length - 1]; i++, at++, code++)
            if (length <= FAST_BITS && code < 1u << length)
                for (uint32_t low = 0; low < 1u << (FAST_BITS - length); low++)
                    table->fast[code << (FAST_BITS - length) | low] = (uint16_t)(symbols[at] << 4 | length);
        if (code > 1u << length)
            return -1;
        table->limit[length] = code << (16 - length);
    }
    table->limit[17] = UINT32_MAX;
    table->defined = 1;
    return 0;
}

/* The tables of T.81 annex K.3. Motion-JPEG frames leave them out. */
static void default_tables(Jpeg *j)
{
    static const uint8_t dc_counts[2][16] = {{0, 1, 5, 1, 1, 1, 1, 1, 1}, {0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    static const uint8_t dc_symbols[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    static const uint8_t ac_counts[2][16] = {{0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125},
                                             {0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119}};
    static const uint8_t ac_symbols[2][162] = {
        {0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22,
         0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33,
         0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34,
         0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55,
         0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76,
         0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96,
         0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5,
         0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4,
         0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1,
         0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa},
        {0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13,
         0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62,
         0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29,
         0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54,
         0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75,
         0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94,
         0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3,
         0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2,
         0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea,
         0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa}};
    for (int i = 0; i < 2; i++) {
        make_table(&j->dc_tables[i], dc_counts[i], dc_symbols, 12);
        make_table(&j->ac_tables[i], ac_counts[i], ac_symbols[i], 162);
    }
}

/* ---- bits ------------------------------------------------------------------------------------------*/

/* The next byte of the scan's data. A 0xff before 0x00 is a byte; otherwise it begins a marker and ends
 * the data. */
static int data_byte(Jpeg *j)
{
    if (j->at >= j->n)
        return -1;
    if (j->bytes[j->at] != 0xff)
        return j->bytes[j->at++];
    size_t next = j->at + 1;
    while (next < j->n && j->bytes[next] == 0xff)
        next++;
    if (next >= j->n || j->bytes[next] != 0)
        return -1;
    j->at = next + 1;
    return 0xff;
}

/* Fill the buffer to at least 48 bits. Behind the end come zeros, counted for overrun(). */
static void refill(Jpeg *j)
{
    while (j->n_bits <= 48) {
        int byte = data_byte(j);
        j->borrowed += byte < 0;
        j->bits = j->bits << 8 | (uint64_t)(byte < 0 ? 0 : byte);
        j->n_bits += 8;
    }
}

static inline void need(Jpeg *j, int n)
{
    if (j->n_bits < n)
        refill(j);
}

static inline uint32_t peek(const Jpeg *j, int n)
{
    return (uint32_t)(j->bits >> (j->n_bits - n)) & ((1u << n) - 1);
}

static inline uint32_t take(Jpeg *j, int n) /* after need() */
{
    uint32_t value = peek(j, n);
    j->n_bits -= n;
    return value;
}

static inline uint32_t take_bit(Jpeg *j)
{
    need(j, 1);
    return take(j, 1);
}

static inline int overrun(const Jpeg *j)
{
    return j->borrowed * 8 > (size_t)j->n_bits;
}

/* The next symbol; 0 when the bits are no code. At least 15 bits stay for the value behind it. */
static inline int decode(Jpeg *j, const HuffmanTable *table)
{
    need(j, 32);
    unsigned entry = table->fast[peek(j, FAST_BITS)];
    if (entry) {
        j->n_bits -= entry & 15;
        return (int)(entry >> 4);
    }
    uint32_t code = peek(j, 16);
    int length = FAST_BITS + 1;
    while (code >= table->limit[length])
        length++;
    j->n_bits -= length;
    if (length > 16)
        return 0;
    return table->symbols[(int32_t)(code >> (16 - length)) + table->offset[length]];
}

/* A value of n bits in T.81's form: a leading 0 means negative. */
static inline int extend(Jpeg *j, int n)
{
    if (n == 0)
        return 0;
    int value = (int)take(j, n);
    return value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
}

/* ---- blocks ----------------------------------------------------------------------------------------*/

/* Decode the DC coefficient, a difference to the last block's. */
static inline void decode_dc(Jpeg *j, Component *c, int16_t *block)
{
    int size = decode(j, &j->dc_tables[c->dc_table]);
    c->dc += (uint32_t)extend(j, size & 15);
    block[0] = (int16_t)(c->dc << j->low);
}

static void decode_sequential(Jpeg *j, Component *c, int16_t *block)
{
    const HuffmanTable *table = &j->ac_tables[c->ac_table];
    decode_dc(j, c, block);
    for (int k = 1; k < 64; k++) {
        int symbol = decode(j, table), run = symbol >> 4, size = symbol & 15;
        k += run;
        if (size)
            block[ZIGZAG[k]] = (int16_t)extend(j, size);
        else if (run < 15) /* end of block; otherwise sixteen zeros. */
            return;
    }
}

static void refine_dc(Jpeg *j, Component *c, int16_t *block)
{
    (void)c;
    if (take_bit(j))
        block[0] = (int16_t)(block[0] | 1 << j->low);
}

static void decode_ac_band(Jpeg *j, Component *c, int16_t *block)
{
    const HuffmanTable *table = &j->ac_tables[c->ac_table];
    if (j->eob_run > 0) {
        j->eob_run--;
        return;
    }
    for (int k = j->first; k <= j->last; k++) {
        int symbol = decode(j, table), run = symbol >> 4, size = symbol & 15;
        if (size == 0 && run < 15) { /* this block and 2^run - 1 + some more end here. */
            j->eob_run = (1u << run) - 1 + (run ? take(j, run) : 0);
            return;
        }
        k += run;
        if (size)
            block[ZIGZAG[k]] = (int16_t)((uint32_t)extend(j, size) << j->low);
    }
}

/* Refine a coefficient that is not zero by one bit. */
static inline void refine(Jpeg *j, int16_t *coefficient)
{
    int bit = 1 << j->low;
    if (take_bit(j) && !(*coefficient & bit))
        *coefficient = (int16_t)(*coefficient + (*coefficient < 0 ? -bit : bit));
}

/* From k on, refine the non-zero coefficients and pass over `zeros` zeros. Returns the place of the zero
 * after those. */
static int refine_run(Jpeg *j, int16_t *block, int k, int zeros)
{
    for (; k <= j->last; k++) {
        int16_t *coefficient = &block[ZIGZAG[k]];
        if (*coefficient)
            refine(j, coefficient);
        else if (zeros-- == 0)
            break;
    }
    return k;
}

static void refine_ac_band(Jpeg *j, Component *c, int16_t *block)
{
    const HuffmanTable *table = &j->ac_tables[c->ac_table];
    int k = j->first;
    while (j->eob_run == 0 && k <= j->last) {
        int symbol = decode(j, table), run = symbol >> 4, value = 0;
        if (symbol & 15) { /* a new coefficient: its sign. */
            value = take(j, 1) ? 1 << j->low : -(1 << j->low);
        } else if (run < 15) {
            j->eob_run = (1u << run) + (run ? take(j, run) : 0);
            break;
        }
        k = refine_run(j, block, k, run);
        if (value)
            block[ZIGZAG[k]] = (int16_t)value;
        k++;
    }
    if (j->eob_run > 0) {
        refine_run(j, block, k, 64);
        j->eob_run--;
    }
}

/* ---- scans -----------------------------------------------------------------------------------------*/

typedef void (*BlockDecoder)(Jpeg *j, Component *c, int16_t *block);

static BlockDecoder choose_decoder(const Jpeg *j)
{
    if (!j->progressive)
        return decode_sequential;
    if (j->first == 0)
        return j->high == 0 ? decode_dc : refine_dc;
    return j->high == 0 ? decode_ac_band : refine_ac_band;
}

static void reset_decoder(Jpeg *j)
{
    for (int i = 0; i < j->n_scan; i++)
        j->scan[i]->dc = 0;
    j->eob_run = 0;
    j->bits = 0, j->n_bits = 0, j->borrowed = 0;
}

/* Move to the next marker and return its second byte, -1 at the end of the file. Bytes before it are
 * skipped. */
static int next_marker(Jpeg *j)
{
    for (; j->n - j->at >= 2; j->at++)
        if (j->bytes[j->at] == 0xff && j->bytes[j->at + 1] != 0 && j->bytes[j->at + 1] != 0xff) {
            j->at += 2;
            return j->bytes[j->at - 1];
        }
    return -1;
}

static int16_t *block_at(const Component *c, int x, int y)
{
    return c->coefficients + 64 * ((size_t)y * (size_t)c->stored_w + (size_t)x);
}

/* Decode all blocks of MCU number i of the scan: one block if the scan has one component, h x v blocks of
 * each if it has several. */
static void decode_mcu(Jpeg *j, BlockDecoder decoder, int i)
{
    if (j->n_scan == 1) {
        Component *c = j->scan[0];
        decoder(j, c, block_at(c, i % c->blocks_w, i / c->blocks_w));
        return;
    }
    int mx = i % j->mcus_w, my = i / j->mcus_w;
    for (int s = 0; s < j->n_scan; s++) {
        Component *c = j->scan[s];
        for (int y = 0; y < c->v; y++)
            for (int x = 0; x < c->h; x++)
                decoder(j, c, block_at(c, mx * c->h + x, my * c->v + y));
    }
}

/* Move to the restart marker that is due. If another marker comes first, follow libjpeg. A restart marker
 * that is due soon stays, and so does a marker of another kind; this segment is then empty. A restart
 * marker from before is passed over. One that is far away counts as the one that is due. Returns 1 when
 * the marker was taken, 0 when not, -1 at the end of the file. */
static int take_restart(Jpeg *j, int due)
{
    for (;;) {
        int marker = next_marker(j);
        if (marker < 0)
            return -1;
        int is_restart = marker >= 0xd0 && marker <= 0xd7, ahead = (marker - 0xd0 - due) & 7;
        if (is_restart ? ahead == 1 || ahead == 2 : marker >= 0xc0) {
            j->at -= 2;
            return 0;
        }
        if (is_restart && ahead < 6)
            return 1;
    }
}

/* n_blocks: of an MCU. */
static int decode_scan(Jpeg *j, int n_blocks)
{
    BlockDecoder decoder = choose_decoder(j);
    int n_mcus = j->n_scan == 1 ? j->scan[0]->blocks_w * j->scan[0]->blocks_h : j->mcus_w * j->mcus_h;
    j->n_visits += (int64_t)n_mcus * n_blocks;
    if (j->n_scans > j->n_components && j->n_visits > MAX_VISITS)
        return fail(j->err, "%s: JPEG with too many scans (%d) for its size", j->name, j->n_scans);
    int until_restart = j->restart_interval, restart = 0, starved = 0;
    reset_decoder(j);
    for (int i = 0; i < n_mcus; i++) {
        if (j->restart_interval && until_restart-- == 0) {
            int taken = take_restart(j, restart);
            if (taken < 0)
                return truncated(j);
            restart = (restart + 1) & 7;
            until_restart = j->restart_interval - 1;
            reset_decoder(j);
            starved = starved && !taken;
        }
        if (starved)
            continue;
        decode_mcu(j, decoder, i);
        /* The scan's data ended early. At the end of the file they are truncated. Before a marker some
         * were lost, but the data behind it may be whole. As in libjpeg, the blocks up to the next restart
         * stay unchanged. */
        starved = overrun(j);
        if (starved && j->at >= j->n)
            return truncated(j);
    }
    return 0;
}

/* ---- markers: p[n] is the segment behind its length ------------------------------------------------- */

static int read_quant_tables(Jpeg *j, const uint8_t *p, size_t n)
{
    while (n > 0) {
        int wide = p[0] >> 4, index = p[0] & 15;
        size_t size = wide ? 129 : 65;
        if (wide > 1 || index > 3 || n < size)
            return bad(j, "a quantisation table is malformed");
        for (size_t k = 0; k < 64; k++)
            j->quant[index][ZIGZAG[k]] = (uint16_t)(wide ? p[1 + 2 * k] << 8 | p[2 + 2 * k] : p[1 + k]);
        j->quant_defined[index] = 1;
        p += size, n -= size;
    }
    return 0;
}

static int read_huffman_tables(Jpeg *j, const uint8_t *p, size_t n)
{
    while (n > 0) {
        if (n < 17 || p[0] >> 4 > 1 || (p[0] & 15) > 3)
            return bad(j, "a Huffman table is malformed");
        HuffmanTable *table = p[0] >> 4 ? &j->ac_tables[p[0] & 15] : &j->dc_tables[p[0] & 15];
        int n_codes = 0;
        for (int i = 1; i <= 16; i++)
            n_codes += p[i];
        if (n_codes > 256 || n - 17 < (size_t)n_codes || make_table(table, p + 1, p + 17, n_codes))
            return bad(j, "a Huffman table is malformed");
        for (int i = 0; p[0] >> 4 == 0 && i < n_codes; i++)
            if (p[17 + i] > 15)
                return bad(j, "a Huffman table for DC has a size above 15");
        p += 17 + n_codes, n -= 17 + (size_t)n_codes;
    }
    return 0;
}

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

static int read_frame_components(Jpeg *j, const uint8_t *p)
{
    j->max_h = j->max_v = 1;
    for (int i = 0; i < j->n_components; i++, p += 3) {
        Component *c = &j->components[i];
        c->id = p[0], c->h = p[1] >> 4, c->v = p[1] & 15, c->quant_index = p[2];
        if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4 || c->quant_index > 3)
            return bad(j, "sampling factor or quantisation table of a component");
        for (int k = 0; k < i; k++)
            if (j->components[k].id == c->id)
                return bad(j, "two components have the same identifier");
        j->max_h = c->h > j->max_h ? c->h : j->max_h;
        j->max_v = c->v > j->max_v ? c->v : j->max_v;
    }
    return 0;
}

static int allocate_coefficients(Jpeg *j)
{
    int64_t n_blocks = 0;
    j->mcus_w = ceil_div(j->width, 8 * j->max_h);
    j->mcus_h = ceil_div(j->height, 8 * j->max_v);
    for (int i = 0; i < j->n_components; i++) {
        Component *c = &j->components[i];
        c->width = ceil_div(j->width * c->h, j->max_h), c->height = ceil_div(j->height * c->v, j->max_v);
        c->blocks_w = ceil_div(c->width, 8), c->blocks_h = ceil_div(c->height, 8);
        c->stored_w = j->mcus_w * c->h, c->stored_h = j->mcus_h * c->v;
        n_blocks += (int64_t)c->blocks_w * c->blocks_h;
    }
    if ((uint64_t)n_blocks / 8 > j->n) /* a block takes at least one bit: refuse before memory is asked for */
        return bad(j, "there is far too little data for its size");
    for (int i = 0; i < j->n_components; i++) {
        Component *c = &j->components[i];
        size_t n = 64 * (size_t)c->stored_w * (size_t)c->stored_h;
        c->coefficients = calloc(n, sizeof *c->coefficients);
        if (!c->coefficients)
            return fail_memory(j->err, j->name, n * sizeof *c->coefficients);
    }
    return 0;
}

static int read_frame(Jpeg *j, const uint8_t *p, size_t n)
{
    if (j->n_components)
        return bad(j, "two frame headers");
    if (n < 6)
        return bad(j, "the frame header is too short");
    j->height = p[1] << 8 | p[2], j->width = p[3] << 8 | p[4];
    if (p[0] != 8)
        return fail(j->err, "%s: JPEG with %d bits per sample is not supported, only 8", j->name, p[0]);
    if (j->width == 0 || j->height == 0 || (int64_t)j->width * j->height > IMAGE_MAX_PIXELS)
        return fail(j->err, "%s: bad JPEG file: %d x %d pixels", j->name, j->width, j->height);
    if (p[5] != 1 && p[5] != 3 && p[5] != 4)
        return fail(j->err, "%s: JPEG with %d components is not supported, only 1, 3 and 4", j->name, p[5]);
    if (n != 6 + 3 * (size_t)p[5])
        return bad(j, "the frame header has a wrong length");
    j->n_components = p[5];
    return read_frame_components(j, p + 6) ? -1 : allocate_coefficients(j);
}

/* Progressive scans name their coefficients (zigzag first..last) and their lowest bit. */
static int check_progression(Jpeg *j)
{
    if (!j->progressive) {
        j->first = 0, j->last = 63, j->high = j->low = 0;
        return 0;
    }
    if (j->first == 0 ? j->last != 0 : j->n_scan != 1 || j->last < j->first || j->last > 63)
        return bad(j, "a progressive scan with a wrong band");
    if (j->low > 13 || (j->high != 0 && j->low != j->high - 1))
        return bad(j, "a progressive scan with a wrong bit position");
    return 0;
}

static int check_tables(Jpeg *j, Component *c)
{
    int needs_dc = j->first == 0 && j->high == 0, needs_ac = j->last > 0;
    if (c->dc_table > 3 || c->ac_table > 3 || (needs_dc && !j->dc_tables[c->dc_table].defined) ||
        (needs_ac && !j->ac_tables[c->ac_table].defined))
        return bad(j, "a scan uses a Huffman table that is not there");
    if (c->coded)
        return j->progressive ? 0 : bad(j, "a component is coded twice");
    if (!j->quant_defined[c->quant_index])
        return bad(j, "a component uses a quantisation table that is not there");
    memcpy(c->quant, j->quant[c->quant_index], sizeof c->quant);
    c->coded = 1;
    return 0;
}

static int read_scan(Jpeg *j, const uint8_t *p, size_t n)
{
    if (j->n_components == 0)
        return bad(j, "a scan before the frame header");
    if (n < 1 || p[0] < 1 || p[0] > j->n_components || n != 4 + 2 * (size_t)p[0])
        return bad(j, "a scan header has a wrong length");
    if (++j->n_scans > MAX_SCANS)
        return fail(j->err, "%s: JPEG with more than %d scans", j->name, MAX_SCANS);
    j->n_scan = p[0];
    const uint8_t *progression = p + 1 + 2 * j->n_scan;
    j->first = progression[0], j->last = progression[1];
    j->high = progression[2] >> 4, j->low = progression[2] & 15;
    if (check_progression(j))
        return -1;
    int n_blocks = 0;
    for (int s = 0; s < j->n_scan; s++) {
        Component *c = NULL;
        for (int i = 0; i < j->n_components; i++)
            if (j->components[i].id == p[1 + 2 * s])
                c = &j->components[i];
        for (int k = 0; k < s; k++)
            if (j->scan[k] == c)
                c = NULL;
        if (!c)
            return bad(j, "a scan names a component that is not there, or one twice");
        j->scan[s] = c;
        c->dc_table = p[2 + 2 * s] >> 4, c->ac_table = p[2 + 2 * s] & 15;
        n_blocks += c->h * c->v;
        if (check_tables(j, c))
            return -1;
    }
    if (j->n_scan > 1 && n_blocks > 10)
        return bad(j, "an MCU of more than ten blocks");
    return decode_scan(j, j->n_scan == 1 ? 1 : n_blocks);
}

static int refuse_frame(Jpeg *j, int marker)
{
    const char *kind = marker == 0xc3 ? "lossless" : marker >= 0xc9 ? "arithmetic coding" : "hierarchical";
    return fail(
        j->err,
        "%s: JPEG of this kind is not supported (%s, marker 0x%x), only baseline and progressive Huffman",
        j->name, kind, marker);
}

static int read_segment(Jpeg *j, int marker, const uint8_t *p, size_t n)
{
    switch (marker) {
    case 0xc0: /* baseline, extended, progressive */
    case 0xc1:
    case 0xc2:
        j->progressive = marker == 0xc2;
        return read_frame(j, p, n);
    case 0xc3:
    case 0xc5:
    case 0xc6:
    case 0xc7:
    case 0xc9:
    case 0xca:
    case 0xcb:
    case 0xcd:
    case 0xce:
    case 0xcf:
        return refuse_frame(j, marker);
    case 0xc4:
        return read_huffman_tables(j, p, n);
    case 0xda:
        return read_scan(j, p, n);
    case 0xdb:
        return read_quant_tables(j, p, n);
    case 0xdd:
        if (n != 2)
            return bad(j, "the restart interval has a wrong length");
        j->restart_interval = p[0] << 8 | p[1];
        return 0;
    case 0xe0:
        if (n >= 14 && memcmp(p, "JFIF", 5) == 0)
            j->saw_jfif = 1;
        return 0;
    case 0xe1:
        if (!j->orientation && !j->n_components)
            j->orientation = exif_of_segment(p, n);
        return 0;
    case 0xee:
        if (n >= 12 && memcmp(p, "Adobe", 5) == 0)
            j->adobe = p[11];
        return 0;
    default:
        return 0; /* comments, colour profiles ... */
    }
}

static int read_markers(Jpeg *j)
{
    for (;;) {
        int marker = next_marker(j);
        if (marker < 0)
            return truncated(j);
        if (marker == 0xd9) /* end of image */
            break;
        if (marker == 1 || (marker >= 0xd0 && marker <= 0xd8)) /* these have no length. */
            continue;
        if (j->n - j->at < 2)
            return truncated(j);
        size_t length = (size_t)j->bytes[j->at] << 8 | j->bytes[j->at + 1];
        if (length < 2)
            return bad(j, "a segment is shorter than its length field");
        if (length > j->n - j->at)
            return truncated(j);
        const uint8_t *p = j->bytes + j->at + 2;
        j->at += length;
        if (read_segment(j, marker, p, length - 2))
            return -1;
    }
    for (int i = 0; i < j->n_components; i++)
        if (!j->components[i].coded)
            return bad(j, "a component has no scan");
    return j->n_components ? 0 : bad(j, "no frame header");
}

/* ---- inverse DCT -----------------------------------------------------------------------------------*/

/* Eight-point transform of Loeffler, Ligtenberg and Moschytz in fixed point (13 bits). It takes the eight
 * columns of a block at once: in[k][c], out[k][c], both [8][8]. Two bits of fraction stay between the
 * passes. The arithmetic is unsigned, because corrupt data may overflow. */
static inline void idct_columns(int32_t *restrict out, const int32_t *restrict in, int shift)
{
    for (int c = 0; c < 8; c++) {
        uint32_t x[8];
        for (int k = 0; k < 8; k++)
            x[k] = (uint32_t)in[8 * k + c];
        uint32_t z = (x[2] + x[6]) * 4433u;                           /* 0.541196100 */
        uint32_t even2 = z - x[6] * 15137u, even3 = z + x[2] * 6270u; /* 1.847759065, 0.765366865 */
        uint32_t even0 = (x[0] + x[4]) << 13, even1 = (x[0] - x[4]) << 13;
        uint32_t e[4] = {even0 + even3, even1 + even2, even1 - even2, even0 - even3};

        uint32_t z1 = (x[7] + x[1]) * 7373u, z2 = (x[5] + x[3]) * 20995u; /* 0.899976223, 2.562915447 */
        uint32_t z5 = (x[7] + x[3] + x[5] + x[1]) * 9633u;                /* 1.175875602 */
        uint32_t z3 = z5 - (x[7] + x[3]) * 16069u,
                 z4 = z5 - (x[5] + x[1]) * 3196u;                          /* 1.961570560, 0.390180644 */
        uint32_t o[4] = {x[1] * 12299u - z1 + z4, x[3] * 25172u - z2 + z3, /* 1.501321110, 3.072711026 */
                         x[5] * 16819u - z2 + z4, x[7] * 2446u - z1 + z3}; /* 2.053119869, 0.298631336 */
        uint32_t half = 1u << (shift - 1);
        for (int k = 0; k < 4; k++) {
            out[8 * k + c] = (int32_t)(e[k] + o[k] + half) >> shift;
            out[8 * (7 - k) + c] = (int32_t)(e[k] - o[k] + half) >> shift;
        }
    }
}

static inline void transpose(int32_t *restrict out, const int32_t *restrict in)
{
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 8; x++)
            out[8 * x + y] = in[8 * y + x];
}

static inline uint8_t clamp(int32_t v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void inverse_block(uint8_t *out, size_t stride, const int16_t *coefficients, const uint16_t *quant)
{
    int32_t a[64], b[64];
    for (int i = 0; i < 64; i++)
        a[i] = coefficients[i] * quant[i];
    idct_columns(b, a, 13 - 2);
    transpose(a, b);
    idct_columns(b, a, 13 + 2 + 3); /* 3: the factor 1/8 of the two-dimensional transform. */
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 8; x++)
            out[(size_t)y * stride + (size_t)x] = clamp(b[8 * x + y] + 128);
}

static int make_planes(Jpeg *j)
{
    for (int i = 0; i < j->n_components; i++) {
        Component *c = &j->components[i];
        size_t stride = 8 * (size_t)c->stored_w;
        c->plane = malloc(stride * 8 * (size_t)c->stored_h);
        if (!c->plane)
            return fail_memory(j->err, j->name, stride * 8 * (size_t)c->stored_h);
        for (int y = 0; y < c->blocks_h; y++)
            for (int x = 0; x < c->blocks_w; x++)
                inverse_block(c->plane + 8 * (size_t)y * stride + 8 * (size_t)x, stride, block_at(c, x, y),
                              c->quant);
        free(c->coefficients);
        c->coefficients = NULL;
    }
    return 0;
}

/* ---- upsampling ------------------------------------------------------------------------------------*/

static const uint8_t *plane_row(const Component *c, int y)
{
    y = y < 0 ? 0 : y >= c->height ? c->height - 1 : y;
    return c->plane + (size_t)y * 8 * (size_t)c->stored_w;
}

/* Double the width by a triangle filter: 3/4 of the nearer sample, 1/4 of the farther. The two roundings
 * alternate, so that no bias builds up. n > 2 samples in, 2 n out. */
static void double_width(uint8_t *out, const uint8_t *in, int n)
{
    out[0] = in[0];
    for (int x = 0; x < n; x++) {
        if (x > 0)
            out[2 * x] = (uint8_t)((3 * in[x] + in[x - 1] + 1) >> 2);
        if (x < n - 1)
            out[2 * x + 1] = (uint8_t)((3 * in[x] + in[x + 1] + 2) >> 2);
    }
    out[2 * n - 1] = in[n - 1];
}

/* Double the height: near and far are rows. */
static void double_height(uint8_t *out, const uint8_t *near, const uint8_t *far, int n, int is_lower)
{
    for (int x = 0; x < n; x++)
        out[x] = (uint8_t)((3 * near[x] + far[x] + (is_lower ? 2 : 1)) >> 2);
}

/* Double both, rounded once: weights 9, 3, 3, 1 of 16. */
static void double_both(uint8_t *out, const uint8_t *near, const uint8_t *far, int n)
{
    int before = 0, sum = 3 * near[0] + far[0];
    for (int x = 0; x < n; x++) {
        int after = x < n - 1 ? 3 * near[x + 1] + far[x + 1] : 0;
        out[2 * x] = (uint8_t)(x > 0 ? (3 * sum + before + 8) >> 4 : (4 * sum + 8) >> 4);
        out[2 * x + 1] = (uint8_t)(x < n - 1 ? (3 * sum + after + 7) >> 4 : (4 * sum + 7) >> 4);
        before = sum;
        sum = after;
    }
}

/* Row y of the image for one component. At full resolution this is a row of its plane, otherwise it is
 * made in scratch. As in libjpeg, factors of two use the triangle filter (unless the row is narrower than
 * three samples); others repeat samples. */
static const uint8_t *upsampled_row(const Jpeg *j, const Component *c, int y, uint8_t *scratch)
{
    int wide = j->max_h == 2 * c->h, high = j->max_v == 2 * c->v, same_h = j->max_h == c->h,
        same_v = j->max_v == c->v;
    int from = y * c->v / j->max_v;
    const uint8_t *near = plane_row(c, from), *far = plane_row(c, y % 2 ? from + 1 : from - 1);
    if (same_h && same_v)
        return near;
    if (wide && same_v && c->width > 2)
        double_width(scratch, near, c->width);
    else if (wide && high && c->width > 2)
        double_both(scratch, near, far, c->width);
    else if (same_h && high)
        double_height(scratch, near, far, c->width, y % 2);
    else
        for (int x = 0; x < j->width; x++)
            scratch[x] = near[x * c->h / j->max_h];
    return scratch;
}

/* ---- colour ----------------------------------------------------------------------------------------*/

typedef enum ColorModel { MODEL_GREY, MODEL_RGB, MODEL_YCC, MODEL_CMYK, MODEL_YCCK } ColorModel;

/* The file does not say which colours the components are. libjpeg's rules: the JFIF marker, Adobe's, the
 * identifiers, YCbCr. */
static ColorModel color_model(const Jpeg *j)
{
    const Component *c = j->components;
    if (j->n_components == 1)
        return MODEL_GREY;
    if (j->n_components == 4)
        return j->adobe <= 0 ? MODEL_CMYK : MODEL_YCCK;
    if (j->saw_jfif)
        return MODEL_YCC;
    if (j->adobe >= 0)
        return j->adobe == 0 ? MODEL_RGB : MODEL_YCC;
    return c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B' ? MODEL_RGB : MODEL_YCC;
}

#define FIXED(x) ((int32_t)((x)*65536 + 0.5))

/* YCbCr to RGB (ITU-R BT.601, full range). Red and blue are rounded before the sum, green after it. */
static inline void ycc_to_rgb(uint8_t rgb[3], int y, int cb, int cr)
{
    cb -= 128, cr -= 128;
    rgb[0] = clamp(y + ((FIXED(1.40200) * cr + 32768) >> 16));
    rgb[1] = clamp(y + ((-FIXED(0.34414) * cb + 32768 - FIXED(0.71414) * cr) >> 16));
    rgb[2] = clamp(y + ((FIXED(1.77200) * cb + 32768) >> 16));
}

/* Ink to light as in PIL. Adobe stores CMYK inverted, so `c` is 255 minus the ink. */
static inline uint8_t ink_to_light(int c, int k)
{
    int product = (255 - c) * k + 128;
    return clamp(k - (((product >> 8) + product) >> 8));
}

static void convert_row(uint8_t *out, const uint8_t *const rows[4], int width, ColorModel model)
{
    for (int x = 0; x < width; x++, out += 3) {
        int first = rows[0][x], second = rows[1][x], third = rows[2][x];
        if (model == MODEL_YCC) {
            ycc_to_rgb(out, first, second, third);
            continue;
        }
        uint8_t color[3] = {(uint8_t)first, (uint8_t)second, (uint8_t)third};
        if (model == MODEL_YCCK) { /* its RGB is the inverse of the stored CMY. */
            ycc_to_rgb(color, first, second, third);
            for (int i = 0; i < 3; i++)
                color[i] = (uint8_t)(255 - color[i]);
        }
        for (int i = 0; i < 3; i++)
            out[i] = model == MODEL_RGB ? color[i] : ink_to_light(color[i], rows[3][x]);
    }
}

static int make_image(const Jpeg *j, Image *image)
{
    ColorModel model = color_model(j);
    int channels = model == MODEL_GREY ? 1 : 3;
    size_t row_bytes = (size_t)j->width * (size_t)channels, scratch_bytes = (size_t)j->width + 16;
    uint8_t *samples = malloc(row_bytes * (size_t)j->height), *scratch = malloc(4 * scratch_bytes);
    if (!samples || !scratch) {
        free(samples);
        free(scratch);
        return fail_memory(j->err, j->name, row_bytes * (size_t)j->height);
    }
    for (int y = 0; y < j->height; y++) {
        const uint8_t *rows[4] = {0};
        for (int i = 0; i < j->n_components; i++)
            rows[i] = upsampled_row(j, &j->components[i], y, scratch + (size_t)i * scratch_bytes);
        uint8_t *out = samples + (size_t)y * row_bytes;
        if (model == MODEL_GREY)
            memcpy(out, rows[0], row_bytes);
        else
            convert_row(out, rows, j->width, model);
    }
    free(scratch);
    *image = (Image){j->width, j->height, channels, 8, samples, NULL};
    return 0;
}

int jpeg_decode(Image *image, const uint8_t *bytes, size_t n, const char *name, Error *err)
{
    memset(image, 0, sizeof *image);
    if (n < 3 || memcmp(bytes, "\xff\xd8\xff", 3) != 0)
        return fail(err, "%s: not a JPEG file", name);
    Jpeg *j = calloc(1, sizeof *j);
    if (!j)
        return fail_memory(err, name, sizeof *j);
    j->bytes = bytes, j->n = n, j->at = 2, j->name = name, j->err = err, j->adobe = -1;
    default_tables(j);
    int status = read_markers(j) || make_planes(j) || make_image(j, image) ? -1 : 0;
    if (!status && exif_turn(image, j->orientation, name, err)) {
        image_free(image);
        status = -1;
    }
    for (int i = 0; i < MAX_COMPONENTS; i++) {
        free(j->components[i].coefficients);
        free(j->components[i].plane);
    }
    free(j);
    return status;
}
