/* io/inflate.c - DEFLATE (RFC 1951) in both directions, with its zlib (RFC 1950) and gzip (RFC 1952)
 * envelopes. Their checksums are CRC-32 and Adler-32.
 *
 * DEFLATE in one paragraph: the data are a sequence of literals (bytes) and matches (copy `length` bytes
 * from `distance` back, at most 32 KiB). Both go through prefix codes; their code lengths stand at the
 * head of each block. Symbols 0..255 are literals, 256 ends the block, 257..285 begin a match's length. A
 * second code gives the distance. Bits are packed from the lowest upward; the bits of a prefix code come
 * highest first. */
#include "io/file.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

#define MAX_CODE_LENGTH 15
#define N_LITERALS      288 /* literal/length symbols: 286 used, 288 in the fixed code. */
#define N_DISTANCES     30
#define END_OF_BLOCK    256
#define WINDOW          32768
#define MIN_MATCH       3
#define MAX_MATCH       258

/* Symbol 257 + i: length LENGTH_BASE[i] plus the next LENGTH_EXTRA[i] bits; the same for distances. */
static const uint16_t LENGTH_BASE[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                         31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t LENGTH_EXTRA[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                         2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t DISTANCE_BASE[30] = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                           33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                           1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
static const uint8_t DISTANCE_EXTRA[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                           6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
/* The order of the code lengths of the code for code lengths in a block's head. */
static const uint8_t LENGTH_ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

/* ---- checksums -------------------------------------------------------------------------------------*/

/* Four bytes a step: table[k][b] is the effect of byte b with k zero bytes behind it. Each call makes the
 * tables anew (some 3,000 operations), so short inputs go bit by bit. */
uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, size_t n)
{
    uint32_t table[4][256];
    crc = ~crc;
    if (n >= 512) {
        for (uint32_t b = 0; b < 256; b++) {
            uint32_t c = b;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
            table[0][b] = c;
        }
        for (int k = 1; k < 4; k++)
            for (uint32_t b = 0; b < 256; b++)
                table[k][b] = table[k - 1][b] >> 8 ^ table[0][table[k - 1][b] & 255];
        for (; n >= 4; n -= 4, bytes += 4) {
            crc ^= (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                   (uint32_t)bytes[3] << 24;
            crc = table[3][crc & 255] ^ table[2][crc >> 8 & 255] ^ table[1][crc >> 16 & 255] ^
                  table[0][crc >> 24];
        }
    }
    for (; n > 0; n--, bytes++) {
        crc ^= *bytes;
        for (int k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    return ~crc;
}

uint32_t adler32_update(uint32_t adler, const uint8_t *bytes, size_t n)
{
    uint32_t a = adler & 0xffff, b = adler >> 16;
    while (n > 0) {
        size_t run = n < 5552 ? n : 5552; /* the longest run that keeps b below 2^32. */
        n -= run;
        for (; run > 0; run--) {
            a += *bytes++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

/* ---- inflate ---------------------------------------------------------------------------------------*/

#define FAST_BITS 10

/* A prefix code for decoding. Codes of up to FAST_BITS bits are one look-up of the next bits. Longer codes
 * are rare: a walk along the canonical code, length by length. */
typedef struct Decoder {
    uint16_t fast[1 << FAST_BITS];       /* symbol << 4 | length; 0: longer, or no code at all. */
    uint16_t count[MAX_CODE_LENGTH + 1]; /* codes of each length. */
    uint16_t symbols[N_LITERALS];        /* sorted by code */
} Decoder;

typedef struct Inflate {
    const uint8_t *in;
    size_t n, at;  /* at: next byte to load. */
    uint64_t bits; /* loaded, lowest first */
    int n_bits;
    size_t borrowed; /* zero bytes loaded beyond the end. */
    uint8_t *out;
    size_t length, capacity, max_out;
    const char *name;
    Error *err;
} Inflate;

static int bad(Inflate *s, const char *what)
{
    return fail(s->err, "%s: corrupt compressed data: %s", s->name, what);
}

/* Fill the buffer to at least 56 bits. Beyond the end come zeros, counted for overrun(). Far from the end
 * eight bytes are loaded at once; those that do not fit are loaded again next time, to the same bits. */
static inline void refill(Inflate *s)
{
    if (s->n - s->at >= 8 && s->n_bits < 56) {
        uint64_t eight = 0;
        for (int i = 0; i < 8; i++)
            eight |= (uint64_t)s->in[s->at + (size_t)i] << 8 * i;
        s->bits |= eight << s->n_bits;
        s->at += (size_t)(63 - s->n_bits) >> 3;
        s->n_bits |= 56;
        return;
    }
    while (s->n_bits <= 56) {
        uint64_t byte = 0;
        if (s->at < s->n)
            byte = s->in[s->at++];
        else
            s->borrowed++;
        s->bits |= byte << s->n_bits;
        s->n_bits += 8;
    }
}

/* 1 when more bits were taken than the input holds. */
static inline int overrun(const Inflate *s)
{
    return s->borrowed * 8 > (size_t)s->n_bits;
}

static inline unsigned take(Inflate *s, int n) /* n <= 16, after refill. */
{
    unsigned value = (unsigned)(s->bits & ((1u << n) - 1));
    s->bits >>= n;
    s->n_bits -= n;
    return value;
}

static unsigned reverse_bits(unsigned code, int length)
{
    unsigned reversed = 0;
    for (int i = 0; i < length; i++, code >>= 1)
        reversed = reversed << 1 | (code & 1);
    return reversed;
}

/* Make a decoder from lengths[n]. The code must fill the code space exactly. With may_be_incomplete, no
 * code or a single code of one bit is allowed too, as in zlib: a block without matches needs no distances. */
static int make_decoder(Decoder *d, const uint8_t *lengths, int n, int may_be_incomplete)
{
    unsigned next_code[MAX_CODE_LENGTH + 2] = {0}, first_symbol[MAX_CODE_LENGTH + 2] = {0};
    memset(d, 0, sizeof *d);
    for (int i = 0; i < n; i++)
        d->count[lengths[i]]++;
    int n_codes = n - d->count[0], left = 1;
    d->count[0] = 0;
    for (int length = 1; length <= MAX_CODE_LENGTH; length++) {
        left = 2 * left - d->count[length];
        if (left < 0)
            return -1; /* more codes than the code space holds. */
        next_code[length + 1] = (next_code[length] + d->count[length]) << 1;
        first_symbol[length + 1] = first_symbol[length] + d->count[length];
    }
    if (left > 0 && !(may_be_incomplete && (n_codes == 0 || (n_codes == 1 && d->count[1] == 1))))
        return -1;
    for (int i = 0; i < n; i++) {
        int length = lengths[i];
        if (length == 0)
            continue;
        d->symbols[first_symbol[length]++] = (uint16_t)i;
        unsigned code = next_code[length]++;
        if (length <= FAST_BITS)
            for (unsigned at = reverse_bits(code, length); at < 1u << FAST_BITS; at += 1u << length)
                d->fast[at] = (uint16_t)(i << 4 | length);
    }
    return 0;
}

/* The next symbol; -1 when the bits are no code. */
static inline int decode(Inflate *s, const Decoder *d)
{
    unsigned entry = d->fast[s->bits & ((1u << FAST_BITS) - 1)];
    if (entry) {
        take(s, (int)(entry & 15));
        return (int)(entry >> 4);
    }
    /* first: the first code of this length; index: the place of its symbol. */
    int code = 0, first = 0, index = 0;
    uint64_t bits = s->bits;
    for (int length = 1; length <= MAX_CODE_LENGTH; length++, bits >>= 1) {
        code |= (int)(bits & 1);
        int count = d->count[length];
        if (code - first < count) {
            take(s, length);
            return d->symbols[index + code - first];
        }
        index += count;
        first = (first + count) << 1;
        code <<= 1;
    }
    return -1;
}

/* Make room for n more bytes, by doubling, up to max_out. */
static int reserve(Inflate *s, size_t n)
{
    if (n <= s->capacity - s->length)
        return 0;
    if (n > s->max_out - s->length)
        return fail(s->err, "%s: the compressed data hold more than the %zu bytes expected", s->name,
                    s->max_out);
    size_t capacity = s->capacity > s->max_out / 2 ? s->max_out : 2 * s->capacity;
    if (capacity < s->length + n)
        capacity = s->length + n;
    uint8_t *grown = realloc(s->out, capacity + 1);
    if (!grown)
        return fail_memory(s->err, s->name, capacity);
    s->out = grown;
    s->capacity = capacity;
    return 0;
}

static int inflate_stored(Inflate *s)
{
    take(s, s->n_bits & 7); /* to the byte boundary. */
    refill(s);
    unsigned length = take(s, 16), complement = take(s, 16);
    if (overrun(s))
        return bad(s, "truncated");
    if ((length ^ complement) != 0xffff)
        return bad(s, "bad length of a stored block");
    /* Return the loaded bytes and copy from the input itself. */
    s->at -= (size_t)s->n_bits / 8 - s->borrowed;
    s->bits = 0, s->n_bits = 0, s->borrowed = 0;
    if (length > s->n - s->at)
        return bad(s, "truncated");
    if (reserve(s, length))
        return -1;
    if (length)
        memcpy(s->out + s->length, s->in + s->at, length);
    s->length += length;
    s->at += length;
    return 0;
}

/* The two codes at the head of a dynamic block. */
static int read_codes(Inflate *s, Decoder *literals, Decoder *distances)
{
    uint8_t lengths[N_LITERALS + 32] = {0};
    refill(s);
    int n_literals = (int)take(s, 5) + 257, n_distances = (int)take(s, 5) + 1,
        n_lengths = (int)take(s, 4) + 4;
    if (n_literals > 286 || n_distances > 30)
        return bad(s, "too many codes in a block's head");
    for (int i = 0; i < n_lengths; i++) {
        refill(s);
        lengths[LENGTH_ORDER[i]] = (uint8_t)take(s, 3);
    }
    if (make_decoder(literals, lengths, 19, 0))
        return bad(s, "the code for code lengths is not a prefix code");
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < n_literals + n_distances;) {
        refill(s);
        int symbol = decode(s, literals);
        if (symbol < 0 || overrun(s))
            return bad(s, symbol < 0 ? "bad code length" : "truncated");
        if (symbol < 16) {
            lengths[i++] = (uint8_t)symbol;
            continue;
        }
        if (symbol == 16 && i == 0)
            return bad(s, "a code length is repeated before there is one");
        uint8_t value = symbol == 16 ? lengths[i - 1] : 0;
        int repeat = symbol == 16   ? 3 + (int)take(s, 2)
                     : symbol == 17 ? 3 + (int)take(s, 3)
                                    : 11 + (int)take(s, 7);
        if (repeat > n_literals + n_distances - i)
            return bad(s, "too many code lengths");
        memset(lengths + i, value, (size_t)repeat);
        i += repeat;
    }
    if (lengths[END_OF_BLOCK] == 0)
        return bad(s, "a block without an end");
    if (make_decoder(literals, lengths, n_literals, 1) ||
        make_decoder(distances, lengths + n_literals, n_distances, 1))
        return bad(s, "code lengths that are not a prefix code");
    return 0;
}

static void fixed_lengths(uint8_t lengths[N_LITERALS])
{
    for (int i = 0; i < N_LITERALS; i++)
        lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
}

static void fixed_codes(Decoder *literals, Decoder *distances)
{
    uint8_t lengths[N_LITERALS];
    fixed_lengths(lengths);
    make_decoder(literals, lengths, N_LITERALS, 0);
    memset(lengths, 5, 32); /* 30 and 31 have codes but never occur. */
    make_decoder(distances, lengths, 32, 0);
}

/* Copy `length` bytes from `distance` back. They may overlap: distance 1 repeats the last byte. */
static inline void copy_match(uint8_t *to, size_t distance, size_t length)
{
    const uint8_t *from = to - distance;
    if (distance >= length)
        memcpy(to, from, length);
    else
        for (size_t i = 0; i < length; i++)
            to[i] = from[i];
}

static int inflate_coded(Inflate *s, const Decoder *literals, const Decoder *distances)
{
    for (;;) {
        refill(s); /* 56 bits hold a whole match: 15 + 5 + 15 + 13. */
        int symbol = decode(s, literals);
        if (overrun(s))
            return bad(s, "truncated");
        if (symbol >= 0 && symbol < 256) {
            if (s->length == s->capacity && reserve(s, 1))
                return -1;
            s->out[s->length++] = (uint8_t)symbol;
            continue;
        }
        if (symbol == END_OF_BLOCK)
            return 0;
        if (symbol < 0 || symbol > 285)
            return bad(s, "bad literal or length code");
        symbol -= 257;
        size_t length = LENGTH_BASE[symbol] + take(s, LENGTH_EXTRA[symbol]);
        symbol = decode(s, distances);
        if (symbol < 0 || symbol >= N_DISTANCES)
            return bad(s, "bad distance code");
        size_t distance = DISTANCE_BASE[symbol] + take(s, DISTANCE_EXTRA[symbol]);
        if (overrun(s))
            return bad(s, "truncated");
        if (distance > s->length)
            return bad(s, "a distance reaches before the start");
        if (reserve(s, length))
            return -1;
        copy_match(s->out + s->length, distance, length);
        s->length += length;
    }
}

/* Decode one DEFLATE stream from in[at..]; afterwards `at` is behind its last byte. */
static int inflate_blocks(Inflate *s)
{
    Decoder literals, distances, fixed_literals, fixed_distances;
    int last, have_fixed = 0; /* made once, because a block of ten bits must not cost more. */
    do {
        refill(s);
        last = (int)take(s, 1);
        unsigned type = take(s, 2);
        int status;
        if (overrun(s))
            return bad(s, "truncated");
        if (type == 0) {
            status = inflate_stored(s);
        } else if (type == 3) {
            return bad(s, "unknown block type");
        } else if (type == 1) {
            if (!have_fixed)
                fixed_codes(&fixed_literals, &fixed_distances);
            have_fixed = 1;
            status = inflate_coded(s, &fixed_literals, &fixed_distances);
        } else {
            status = read_codes(s, &literals, &distances) ? -1 : inflate_coded(s, &literals, &distances);
        }
        if (status)
            return -1;
    } while (!last);
    s->at -= (size_t)s->n_bits / 8 - s->borrowed;
    s->bits = 0, s->n_bits = 0, s->borrowed = 0;
    return 0;
}

static int inflate_begin(Inflate *s, const uint8_t *in, size_t n, size_t max_out, const char *name,
                         Error *err)
{
    *s = (Inflate){.in = in, .n = n, .max_out = max_out, .name = name, .err = err};
    s->capacity = n < 1u << 20 ? 4 * n + 256 : n + (3u << 20);
    if (s->capacity > max_out)
        s->capacity = max_out;
    s->out = malloc(s->capacity + 1);
    return s->out ? 0 : fail_memory(err, name, s->capacity);
}

static uint8_t *inflate_end(Inflate *s, int status, size_t *n_out)
{
    *n_out = status ? 0 : s->length;
    if (!status)
        return s->out;
    free(s->out);
    return NULL;
}

static int inflate_zlib(Inflate *s)
{
    if (s->n < 2)
        return bad(s, "truncated");
    if ((s->in[0] & 15) != 8 || s->in[0] >> 4 > 7 || (s->in[0] << 8 | s->in[1]) % 31 != 0)
        return bad(s, "not a zlib stream");
    if (s->in[1] & 0x20)
        return bad(s, "a preset dictionary is not supported");
    s->at = 2;
    if (inflate_blocks(s))
        return -1;
    if (s->n - s->at < 4)
        return bad(s, "truncated");
    const uint8_t *p = s->in + s->at;
    uint32_t adler = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    return adler == adler32_update(1, s->out, s->length) ? 0 : bad(s, "the Adler-32 checksum does not agree");
}

uint8_t *zlib_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err)
{
    Inflate s;
    *n_out = 0;
    if (inflate_begin(&s, in, n, max_out, name, err))
        return NULL;
    return inflate_end(&s, inflate_zlib(&s), n_out);
}

/* The length of a gzip member's header at s->at; 0 when it is truncated or no header. */
static size_t gzip_header(const Inflate *s)
{
    const uint8_t *p = s->in + s->at;
    size_t n = s->n - s->at, at = 10;
    if (n < 18 || p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || p[3] & 0xe0)
        return 0;
    if (p[3] & 4) /* extra field */
        at += 2 + (size_t)(p[10] | p[11] << 8);
    for (int field = 8; field <= 16; field *= 2) /* file name, comment: up to a NUL each. */
        if (p[3] & field) {
            while (at < n && p[at])
                at++;
            at++;
        }
    if (p[3] & 2) /* the checksum of the header. */
        at += 2;
    return at < n ? at : 0;
}

static int inflate_member(Inflate *s)
{
    size_t header = gzip_header(s), start = s->length;
    if (header == 0)
        return bad(s, "not a gzip file, or truncated");
    s->at += header;
    /* A match may reach back into the member before. No encoder writes that, and the checksum would reveal
     * it. */
    if (inflate_blocks(s))
        return -1;
    if (s->n - s->at < 8)
        return bad(s, "truncated");
    const uint8_t *p = s->in + s->at;
    uint32_t crc = (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
    uint32_t size = (uint32_t)p[7] << 24 | (uint32_t)p[6] << 16 | (uint32_t)p[5] << 8 | p[4];
    s->at += 8;
    if (crc != crc32_update(0, s->out + start, s->length - start) || size != (uint32_t)(s->length - start))
        return bad(s, "the CRC-32 or the length does not agree");
    return 0;
}

uint8_t *gzip_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err)
{
    Inflate s;
    *n_out = 0;
    if (inflate_begin(&s, in, n, max_out, name, err))
        return NULL;
    int status = inflate_member(&s);
    while (!status && s.at < n) /* more members, or zeros that pad the file (tapes do that). */
        if (in[s.at] == 0)
            s.at++;
        else
            status = inflate_member(&s);
    return inflate_end(&s, status, n_out);
}

/* ---- deflate: finding matches ----------------------------------------------------------------------*/

#define HASH_BITS    15
#define HASH_SIZE    (1 << HASH_BITS)
#define BLOCK_TOKENS 32768
#define MAX_CHAIN    128 /* candidates tried for one match. */
#define GOOD_MATCH   32  /* a match this long: try a quarter of them at the next position. */
#define LAZY_MATCH   128 /* a match this long: do not try the next position. */

typedef struct Deflate {
    const uint8_t *in;
    size_t n;
    uint8_t *out;
    size_t length; /* whole bytes written */
    uint64_t bits;
    int n_bits;
    size_t *head;     /* [HASH_SIZE] latest position + 1 with this hash, 0: none. */
    size_t *prev;     /* [WINDOW] the position + 1 before it with this hash, by position modulo WINDOW. */
    uint32_t *tokens; /* [BLOCK_TOKENS] distance << 16 | length, or a literal. */
    size_t n_tokens, block_start, block_end; /* the tokens encode in[block_start .. block_end). */
    uint32_t literal_counts[N_LITERALS], distance_counts[32];
} Deflate;

static inline unsigned hash3(const uint8_t *p)
{
    uint32_t v = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
    return v * 2654435761u >> (32 - HASH_BITS);
}

static inline size_t match_length(const uint8_t *a, const uint8_t *b, size_t limit)
{
    size_t n = 0;
    while (n + 8 <= limit) { /* eight bytes at a time; the lowest differing bit gives the byte. */
        uint64_t x, y;
        memcpy(&x, a + n, 8);
        memcpy(&y, b + n, 8);
        if (x != y)
            break;
        n += 8;
    }
    while (n < limit && a[n] == b[n])
        n++;
    return n;
}

/* Enter position `at` into the dictionary and return the one before it with the same hash (+ 1, or 0). */
static inline size_t insert_position(Deflate *d, size_t at)
{
    if (d->n - at < MIN_MATCH)
        return 0;
    unsigned hash = hash3(d->in + at);
    size_t before = d->head[hash];
    d->prev[at % WINDOW] = before;
    d->head[hash] = at + 1;
    return before;
}

/* The longest match at `at` longer than best; its length (or best) and distance. */
static size_t find_match(const Deflate *d, size_t at, size_t candidate, size_t best, size_t *distance)
{
    size_t limit = d->n - at < MAX_MATCH ? d->n - at : MAX_MATCH;
    int chain = best >= GOOD_MATCH ? MAX_CHAIN / 4 : MAX_CHAIN;
    for (; candidate && at - (candidate - 1) <= WINDOW && best < limit && chain > 0; chain--) {
        const uint8_t *there = d->in + candidate - 1;
        if (memcmp(there + best - 1, d->in + at + best - 1, 2) == 0) { /* otherwise it cannot be longer. */
            size_t length = match_length(there, d->in + at, limit);
            if (length > best) {
                best = length;
                *distance = at - (candidate - 1);
            }
        }
        size_t before = d->prev[(candidate - 1) % WINDOW];
        if (before >= candidate) /* a later position took the slot. */
            break;
        candidate = before;
    }
    return best;
}

/* Length 3..258 -> symbol - 257; distance 1..32768 -> symbol. */
static int length_symbol(size_t length)
{
    int symbol = 28;
    while (LENGTH_BASE[symbol] > length)
        symbol--;
    return symbol;
}

static int distance_symbol(size_t distance)
{
    if (distance <= 4)
        return (int)distance - 1;
    /* Each power of two has two symbols; the bit below the highest selects one. */
    int high = 63 - __builtin_clzll((unsigned long long)distance - 1);
    return 2 * high + (int)((distance - 1) >> (high - 1) & 1);
}

static void flush_block(Deflate *d, int last);

static void add_token(Deflate *d, uint32_t token, size_t n_bytes)
{
    if (d->n_tokens == BLOCK_TOKENS)
        flush_block(d, 0);
    d->tokens[d->n_tokens++] = token;
    d->block_end += n_bytes;
    if (token >> 16) {
        d->literal_counts[257 + length_symbol(token & 0xffff)]++;
        d->distance_counts[distance_symbol(token >> 16)]++;
    } else {
        d->literal_counts[token]++;
    }
}

/* Lazy matching: take a match only when the next position has no longer one. */
static void find_tokens(Deflate *d)
{
    size_t length = MIN_MATCH - 1, distance = 0; /* the match found at at - 1, not yet taken. */
    int pending = 0;                             /* 1: in[at - 1] is not yet encoded. */
    for (size_t at = 0; at < d->n;) {
        size_t before = insert_position(d, at), new_distance = 0, new_length = MIN_MATCH - 1;
        if (before && length < LAZY_MATCH)
            new_length = find_match(d, at, before, length, &new_distance);
        if (new_distance == 0)
            new_length = MIN_MATCH - 1;
        if (length >= MIN_MATCH && new_length <= length) { /* the previous match was better: take it. */
            add_token(d, (uint32_t)(distance << 16 | length), length);
            for (size_t i = at + 1; i < at - 1 + length; i++)
                insert_position(d, i);
            at += length - 1;
            length = MIN_MATCH - 1;
            pending = 0;
            continue;
        }
        if (pending)
            add_token(d, d->in[at - 1], 1);
        pending = 1;
        length = new_length;
        distance = new_distance;
        at++;
    }
    if (pending) /* no match is pending at the end: it needs two more positions. */
        add_token(d, d->in[d->n - 1], 1);
}

/* ---- deflate: codes --------------------------------------------------------------------------------*/

typedef struct Encoder {
    uint16_t codes[N_LITERALS]; /* bits reversed, ready to be put. */
    uint8_t lengths[N_LITERALS];
} Encoder;

typedef struct Leaf {
    uint32_t count;
    uint16_t symbol;
} Leaf;

static int compare_leaves(const void *a, const void *b)
{
    const Leaf *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? -1 : 1;
    return (int)x->symbol - (int)y->symbol;
}

/* Huffman's algorithm on n >= 2 sorted leaves: join the two lightest nodes until one is left. The joined
 * nodes come out in order of weight too, so two queues replace a heap. Returns the greatest depth;
 * depths[n]. */
static int huffman_depths(const Leaf *leaves, int n, uint8_t *depths)
{
    uint64_t weight[2 * N_LITERALS];
    uint16_t parent[2 * N_LITERALS];
    uint8_t depth[2 * N_LITERALS];
    int leaf = 0, joined = n, total = 2 * n - 1, deepest = 0;
    for (int i = 0; i < n; i++)
        weight[i] = leaves[i].count;
    for (int node = n; node < total; node++) {
        weight[node] = 0;
        for (int k = 0; k < 2; k++) {
            int child = leaf < n && (joined == node || weight[leaf] <= weight[joined]) ? leaf++ : joined++;
            weight[node] += weight[child];
            parent[child] = (uint16_t)node;
        }
    }
    depth[total - 1] = 0;
    for (int i = total - 2; i >= 0; i--) {
        depth[i] = (uint8_t)(depth[parent[i]] + 1 < 255 ? depth[parent[i]] + 1 : 255);
        if (i < n) {
            depths[i] = depth[i];
            deepest = depth[i] > deepest ? depth[i] : deepest;
        }
    }
    return deepest;
}

static void assign_codes(Encoder *e, int n)
{
    unsigned count[MAX_CODE_LENGTH + 1] = {0}, next[MAX_CODE_LENGTH + 2] = {0};
    for (int i = 0; i < n; i++)
        count[e->lengths[i]]++;
    count[0] = 0;
    for (int length = 1; length <= MAX_CODE_LENGTH; length++)
        next[length + 1] = (next[length] + count[length]) << 1;
    for (int i = 0; i < n; i++)
        e->codes[i] = e->lengths[i] ? (uint16_t)reverse_bits(next[e->lengths[i]]++, e->lengths[i]) : 0;
}

/* Make the code from counts[n], with no length above max_length. If Huffman's code is deeper, flatten the
 * counts until it is not. At least two symbols get a code, so that the code is complete. */
static void make_encoder(Encoder *e, const uint32_t *counts, int n, int max_length)
{
    Leaf leaves[N_LITERALS];
    uint8_t depths[N_LITERALS];
    int n_leaves = 0;
    memset(e, 0, sizeof *e);
    for (int i = 0; i < n; i++)
        if (counts[i])
            leaves[n_leaves++] = (Leaf){counts[i], (uint16_t)i};
    for (int i = 0; n_leaves < 2; i++)
        if (!counts[i])
            leaves[n_leaves++] = (Leaf){1, (uint16_t)i};
    qsort(leaves, (size_t)n_leaves, sizeof *leaves, compare_leaves);
    while (huffman_depths(leaves, n_leaves, depths) > max_length)
        for (int i = 0; i < n_leaves; i++)
            leaves[i].count = leaves[i].count / 2 + 1;
    for (int i = 0; i < n_leaves; i++)
        e->lengths[leaves[i].symbol] = depths[i];
    assign_codes(e, n);
}

/* Put at most 32 bits, from the lowest upward. The buffer has the size of the worst case. */
static inline void put_bits(Deflate *d, unsigned value, int n)
{
    d->bits |= (uint64_t)value << d->n_bits;
    d->n_bits += n;
    while (d->n_bits >= 8) {
        d->out[d->length++] = (uint8_t)d->bits;
        d->bits >>= 8;
        d->n_bits -= 8;
    }
}

/* The code lengths of both codes in the alphabet 0..15, 16 (repeat), 17 and 18 (runs of zeros). */
typedef struct LengthCode {
    uint8_t symbols[N_LITERALS + 32], extra[N_LITERALS + 32]; /* [n] */
    int n, n_literals, n_distances, n_order;
    Encoder encoder;
    size_t bits; /* of the whole head. */
} LengthCode;

static const uint8_t REPEAT_BITS[19] = {[16] = 2, [17] = 3, [18] = 7};

static void run_lengths(LengthCode *c, const uint8_t *lengths, int n)
{
    for (int i = 0; i < n;) {
        int run = 1, longest = lengths[i] ? 6 : 138;
        while (i + run < n && lengths[i + run] == lengths[i])
            run++;
        if (lengths[i] == 0 && run >= 3) {
            run = run < longest ? run : longest;
            c->symbols[c->n] = run < 11 ? 17 : 18;
            c->extra[c->n++] = (uint8_t)(run < 11 ? run - 3 : run - 11);
            i += run;
        } else if (i > 0 && lengths[i] == lengths[i - 1] && run >= 3) {
            run = run < longest ? run : longest;
            c->symbols[c->n] = 16;
            c->extra[c->n++] = (uint8_t)(run - 3);
            i += run;
        } else {
            c->symbols[c->n] = lengths[i++];
            c->extra[c->n++] = 0;
        }
    }
}

static void make_length_code(LengthCode *c, const Encoder *literals, const Encoder *distances)
{
    uint8_t lengths[N_LITERALS + 32];
    uint32_t counts[19] = {0};
    c->n = 0;
    c->n_literals = 286;
    while (c->n_literals > 257 && literals->lengths[c->n_literals - 1] == 0)
        c->n_literals--;
    c->n_distances = N_DISTANCES;
    while (c->n_distances > 1 && distances->lengths[c->n_distances - 1] == 0)
        c->n_distances--;
    memcpy(lengths, literals->lengths, (size_t)c->n_literals);
    memcpy(lengths + c->n_literals, distances->lengths, (size_t)c->n_distances);
    run_lengths(c, lengths, c->n_literals + c->n_distances);
    for (int i = 0; i < c->n; i++)
        counts[c->symbols[i]]++;
    make_encoder(&c->encoder, counts, 19, 7);
    c->n_order = 19;
    while (c->n_order > 4 && c->encoder.lengths[LENGTH_ORDER[c->n_order - 1]] == 0)
        c->n_order--;
    c->bits = 14 + 3 * (size_t)c->n_order;
    for (int i = 0; i < 19; i++)
        c->bits += counts[i] * (size_t)(c->encoder.lengths[i] + REPEAT_BITS[i]);
}

static void put_length_code(Deflate *d, const LengthCode *c)
{
    put_bits(d, (unsigned)c->n_literals - 257, 5);
    put_bits(d, (unsigned)c->n_distances - 1, 5);
    put_bits(d, (unsigned)c->n_order - 4, 4);
    for (int i = 0; i < c->n_order; i++)
        put_bits(d, c->encoder.lengths[LENGTH_ORDER[i]], 3);
    for (int i = 0; i < c->n; i++) {
        put_bits(d, c->encoder.codes[c->symbols[i]], c->encoder.lengths[c->symbols[i]]);
        put_bits(d, c->extra[i], REPEAT_BITS[c->symbols[i]]);
    }
}

/* ---- deflate: blocks -------------------------------------------------------------------------------*/

static size_t coded_bits(const Deflate *d, const Encoder *literals, const Encoder *distances)
{
    size_t bits = 0;
    for (int i = 0; i < 286; i++)
        bits += d->literal_counts[i] * (size_t)(literals->lengths[i] + (i > 256 ? LENGTH_EXTRA[i - 257] : 0));
    for (int i = 0; i < N_DISTANCES; i++)
        bits += d->distance_counts[i] * (size_t)(distances->lengths[i] + DISTANCE_EXTRA[i]);
    return bits;
}

static void put_tokens(Deflate *d, const Encoder *literals, const Encoder *distances)
{
    for (size_t i = 0; i < d->n_tokens; i++) {
        uint32_t token = d->tokens[i];
        if (token >> 16 == 0) {
            put_bits(d, literals->codes[token], literals->lengths[token]);
            continue;
        }
        unsigned length = token & 0xffff, distance = token >> 16;
        int symbol = length_symbol(length);
        put_bits(d, literals->codes[257 + symbol], literals->lengths[257 + symbol]);
        put_bits(d, length - LENGTH_BASE[symbol], LENGTH_EXTRA[symbol]);
        symbol = distance_symbol(distance);
        put_bits(d, distances->codes[symbol], distances->lengths[symbol]);
        put_bits(d, distance - DISTANCE_BASE[symbol], DISTANCE_EXTRA[symbol]);
    }
    put_bits(d, literals->codes[END_OF_BLOCK], literals->lengths[END_OF_BLOCK]);
}

static void put_stored(Deflate *d, int last)
{
    size_t at = d->block_start;
    do {
        size_t n = d->block_end - at < 65535 ? d->block_end - at : 65535;
        put_bits(d, last && at + n == d->block_end, 3);
        put_bits(d, 0, (8 - d->n_bits) & 7);
        put_bits(d, (unsigned)n, 16);
        put_bits(d, (unsigned)n ^ 0xffff, 16);
        if (n)
            memcpy(d->out + d->length, d->in + at, n);
        d->length += n;
        at += n;
    } while (at < d->block_end);
}

/* Write the collected tokens as the smallest kind of block. */
static void flush_block(Deflate *d, int last)
{
    Encoder literals, distances, fixed_literals, fixed_distances;
    LengthCode head;
    d->literal_counts[END_OF_BLOCK] = 1;
    make_encoder(&literals, d->literal_counts, 286, MAX_CODE_LENGTH);
    make_encoder(&distances, d->distance_counts, N_DISTANCES, MAX_CODE_LENGTH);
    make_length_code(&head, &literals, &distances);
    fixed_lengths(fixed_literals.lengths);
    assign_codes(&fixed_literals, N_LITERALS);
    memset(fixed_distances.lengths, 5, 32);
    assign_codes(&fixed_distances, 32);

    size_t n_bytes = d->block_end - d->block_start;
    size_t dynamic = head.bits + coded_bits(d, &literals, &distances);
    size_t fixed = coded_bits(d, &fixed_literals, &fixed_distances);
    size_t stored = 8 * n_bytes + 42 * (n_bytes / 65535 + 1);
    if (stored <= dynamic && stored <= fixed) {
        put_stored(d, last);
    } else if (fixed <= dynamic) {
        put_bits(d, (unsigned)last | 1u << 1, 3);
        put_tokens(d, &fixed_literals, &fixed_distances);
    } else {
        put_bits(d, (unsigned)last | 2u << 1, 3);
        put_length_code(d, &head);
        put_tokens(d, &literals, &distances);
    }
    memset(d->literal_counts, 0, sizeof d->literal_counts);
    memset(d->distance_counts, 0, sizeof d->distance_counts);
    d->n_tokens = 0;
    d->block_start = d->block_end;
}

uint8_t *zlib_deflate(const uint8_t *in, size_t n, size_t *n_out)
{
    *n_out = 0;
    if (n > SIZE_MAX / 2)
        return NULL;
    /* No block is larger than stored. Each block but the last covers at least BLOCK_TOKENS bytes. Stored,
     * it costs at most 42 bits for 65,535 bytes beyond its bytes. */
    size_t worst = n + 6 * (n / BLOCK_TOKENS + n / 65535 + 4) + 64;
    Deflate d = {.in = in, .n = n};
    d.out = malloc(worst);
    d.head = calloc(HASH_SIZE, sizeof *d.head);
    d.prev = calloc(WINDOW, sizeof *d.prev);
    d.tokens = malloc(BLOCK_TOKENS * sizeof *d.tokens);
    if (d.out && d.head && d.prev && d.tokens) {
        put_bits(&d, 0x78, 8); /* deflate, 32 KiB window. */
        put_bits(&d, 0x9c, 8); /* default effort; makes the 16 bits a multiple of 31. */
        find_tokens(&d);
        flush_block(&d, 1);
        put_bits(&d, 0, (8 - d.n_bits) & 7);
        uint32_t adler = adler32_update(1, in, n);
        for (int i = 24; i >= 0; i -= 8)
            put_bits(&d, adler >> i & 255, 8);
        *n_out = d.length;
    } else {
        free(d.out);
        d.out = NULL;
    }
    free(d.head);
    free(d.prev);
    free(d.tokens);
    return d.out;
}
