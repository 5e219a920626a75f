/* test_png.c - PNG, PNM, zlib streams, and run-length encoding. tests/golden/pngsuite.txt holds the
 * digests of PngSuite's images, made by make_golden_pngsuite.py. */
#include "numbers.h"
#include "test.h"

#include <time.h>
#include <unistd.h>

#include "io/file.h"
#include "io/image.h"
#include "io/rle.h"

#define TMP "test_png.tmp"

/* ---- checksums and DEFLATE -------------------------------------------------------------------------*/

static void test_checksums(void)
{
    const uint8_t *digits = (const uint8_t *)"123456789";
    CHECK(crc32_update(0, digits, 9) == 0xcbf43926);
    CHECK(adler32_update(1, digits, 9) == 0x091e01de);
    /* long inputs take the fast path: the result equals that of pieces */
    uint8_t bytes[3000];
    uint32_t state = 1, crc = 0;
    for (int i = 0; i < 3000; i++)
        bytes[i] = (uint8_t)next_random(&state);
    for (int i = 0; i < 3000; i += 100)
        crc = crc32_update(crc, bytes + i, 100);
    CHECK(crc == crc32_update(0, bytes, 3000));
    char hex[65];
    sha256("", 0, hex);
    CHECK(strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0);
    sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    CHECK(strcmp(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1") == 0);
}

/* Ten bits are a whole, empty block of the fixed code. Two million of them must read as fast as their
 * bytes (some hundredths of a second). It took seconds when each block made its codes anew. */
static void test_empty_blocks(void)
{
    enum { FOURS = 500000, SIZE = 2 + 5 * FOURS + 2 + 4 };
    static const uint8_t four[5] = {0x02, 0x08, 0x20, 0x80, 0x00}; /* blocks, each 0, 1 0, 0000000 */
    static const uint8_t last[6] = {0x03, 0x00, 0, 0, 0, 1};       /* the last block, Adler-32 of nothing */
    Error err;
    size_t n = 1;
    uint8_t *stream = malloc(SIZE);
    REQUIRE(stream);
    memcpy(stream, "\x78\x9c", 2);
    for (size_t i = 0; i < FOURS; i++)
        memcpy(stream + 2 + 5 * i, four, 5);
    memcpy(stream + 2 + 5 * FOURS, last, 6);
    clock_t start = clock();
    uint8_t *bytes = zlib_inflate(stream, SIZE, 10, &n, "empty blocks", &err);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK_MSG(bytes && n == 0, "%s", err.message);
    CHECK_MSG(seconds < 1, "%.1f s for nothing", seconds);
    free(bytes), free(stream);
}

static void check_round_trip(const uint8_t *bytes, size_t n)
{
    Error err;
    size_t n_packed, n_back;
    uint8_t *packed = zlib_deflate(bytes, n, &n_packed);
    REQUIRE(packed);
    uint8_t *back = zlib_inflate(packed, n_packed, n, &n_back, "round trip", &err);
    CHECK_MSG(back && n_back == n && memcmp(back, bytes, n) == 0, "round trip of %zu bytes", n);
    free(back);
    if (n > 0) { /* refuse one byte less room than needed, and one byte less input */
        CHECK(!zlib_inflate(packed, n_packed, n - 1, &n_back, "small", &err));
        CHECK(strstr(err.message, "more than the"));
    }
    CHECK(!zlib_inflate(packed, n_packed - 1, n, &n_back, "cut", &err));
    packed[n_packed - 1] ^= 1;
    CHECK(!zlib_inflate(packed, n_packed, n, &n_back, "checksum", &err));
    CHECK(strstr(err.message, "Adler"));
    free(packed);
}

static void test_deflate(void)
{
    size_t n = 300000;
    uint8_t *bytes = malloc(n);
    REQUIRE(bytes);
    for (int kind = 0; kind < 6; kind++) {
        uint32_t state = 7;
        for (size_t i = 0; i < n; i++) {
            uint32_t r = next_random(&state);
            bytes[i] = (uint8_t)(kind == 0   ? 0                             /* longest matches */
                                 : kind == 1 ? r                             /* stored blocks */
                                 : kind == 2 ? 'a' + (r & 1)                 /* short codes */
                                 : kind == 3 ? i % 32768 * 2654435761u >> 20 /* distances of a whole window */
                                 : kind == 4 ? (uint32_t)__builtin_ctz(r | 1u << 23) /* very unequal counts */
                                             : (i / 997 % 2 ? r : (uint32_t)i / 3)   /* a mixture */
            );
        }
        check_round_trip(bytes, n);
    }
    for (size_t small = 0; small < 300; small++)
        check_round_trip(bytes, small);
    free(bytes);
}

/* Hand-made streams that break one rule each. The last byte of a text has no meaning. */
static void test_inflate_refuses(void)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } cases[] = {
        {"\x78", 1, "truncated"},
        {"\x78\x9d\x03\x00\x00\x00\x00\x01", 8, "not a zlib stream"},
        {"\x78\xbb\x00\x00\x00\x00\x03\x00", 8, "preset dictionary"},
        {"\x78\x9c\x07", 3, "unknown block type"},
        {"\x78\x9c\x01\x01\x00\x00\x00\x41", 8, "stored block"},
        {"\x78\x9c\x01\x05\x00\xfa\xff\x41", 8, "truncated"},
        {"\x78\x9c\x4b\x04\x12\x00", 6, "before the start"}, /* "a", then a match that reaches too far */
        {"\x78\x9c\x05\xe0\x81\x08\x00\x00\x00\x00", 10, "corrupt"}, /* bad dynamic head */
        {"\x78\x9c\xfd\xff\xff\xff", 6, "too many codes"},
        {"\x78\x9c\x03\x00\x00\x00\x00\x02", 8, "Adler"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        size_t n_out;
        uint8_t *out = zlib_inflate((const uint8_t *)cases[i].bytes, cases[i].n, 1000, &n_out, "bytes", &err);
        CHECK_MSG(!out && strstr(err.message, cases[i].says), "case %zu: %s, expected %s", i, err.message,
                  cases[i].says);
        free(out);
    }
}

static void test_gzip(void)
{
    /* printf 'hello' | gzip -n, twice, with a file name in the second, zeros behind */
    static const uint8_t bytes[] =
        "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00"
        "\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03nm\x00\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00"
        "\x00\x00\x00";
    Error err;
    size_t n;
    uint8_t *out = gzip_inflate(bytes, sizeof bytes - 1, 100, &n, "hello.gz", &err);
    REQUIRE(out);
    CHECK(n == 10 && memcmp(out, "hellohello", 10) == 0);
    free(out);
    CHECK(!gzip_inflate(bytes, 24, 100, &n, "cut.gz", &err));
    CHECK(!gzip_inflate(bytes, sizeof bytes - 1, 9, &n, "large.gz", &err));
}

static void test_gzip_mnist(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    char path[1024], hex[65];
    snprintf(path, sizeof path, "%s/mnist/t10k-images-idx3-ubyte.gz", test_data_dir());
    Error err;
    size_t n, n_out;
    uint8_t *bytes = file_read(path, 1 << 26, &n, &err);
    REQUIRE(bytes);
    uint8_t *out = gzip_inflate(bytes, n, 1 << 26, &n_out, path, &err);
    free(bytes);
    REQUIRE(out);
    CHECK(n_out == 7840016);
    sha256(out, n_out, hex);
    CHECK_MSG(strcmp(hex, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7") == 0, "%s",
              hex);
    free(out);
}

/* ---- PNG -------------------------------------------------------------------------------------------*/

/* Any image as RGBA at its own bit depth; n: bytes. */
static uint8_t *to_rgba(const Image *image, size_t *n)
{
    size_t n_pixels = (size_t)image->width * (size_t)image->height, size = (size_t)image->bits / 8;
    size_t channels = (size_t)image->channels;
    uint8_t *rgba = malloc(4 * n_pixels * size);
    *n = 4 * n_pixels * size;
    for (size_t i = 0; rgba && i < n_pixels; i++)
        for (size_t c = 0; c < 4; c++) {
            const uint8_t *pixel = (const uint8_t *)image->samples + i * channels * size;
            uint8_t *to = rgba + (4 * i + c) * size;
            if (c == 3 && channels % 2 == 1)
                memset(to, 255, size);
            else
                memcpy(to, pixel + (c == 3 ? channels - 1 : channels < 3 ? 0 : c) * size, size);
        }
    return rgba;
}

static void test_pngsuite(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    FILE *list = fopen("tests/golden/pngsuite.txt", "r");
    REQUIRE(list);
    char name[64], digest[65], hex[65], path[1024];
    int width, height, bits, n_files = 0;
    while (fscanf(list, "%63s %d %d %d %64s", name, &width, &height, &bits, digest) == 5) {
        Error err = {""};
        Image image;
        snprintf(path, sizeof path, "%s/pngsuite/%s", test_data_dir(), name);
        int status = image_read(&image, path, &err);
        CHECK_MSG(status == 0, "%s", err.message);
        if (status)
            continue;
        CHECK_MSG(image.width == width && image.height == height && image.bits == bits, "%s: size", name);
        size_t n;
        uint8_t *rgba = to_rgba(&image, &n);
        sha256(rgba, n, hex);
        CHECK_MSG(strcmp(hex, digest) == 0, "%s: the pixels differ", name);
        CHECK_MSG((image.indices != NULL) == (strstr(name, "3p") != NULL), "%s: indices", name);
        free(rgba);
        image_free(&image);
        n_files++;
    }
    fclose(list);
    CHECK_MSG(n_files == 161, "%d files", n_files);
}

static void test_pngsuite_corrupt(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    char folder[1000], path[1024];
    snprintf(folder, sizeof folder, "%s/pngsuite", test_data_dir());
    Error err;
    size_t n, n_corrupt = 0;
    char **names = dir_list(folder, 0, &n, &err);
    REQUIRE(names);
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(names[i]);
        if (names[i][0] != 'x' || strcmp(names[i] + length - 4, ".png") != 0)
            continue;
        Image image;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        CHECK_MSG(image_read(&image, path, &err) != 0 && !image.samples, "%s was read", names[i]);
        image_free(&image);
        n_corrupt++;
    }
    free(names);
    CHECK(n_corrupt == 14);
}

static void fill(uint8_t *bytes, size_t n, int width, int channels, int noise)
{
    uint32_t state = 3;
    for (size_t i = 0; i < n; i++) {
        size_t x = i / (size_t)channels % (size_t)width, y = i / (size_t)(channels * width);
        bytes[i] = (uint8_t)(noise ? next_random(&state) : x * 3 + y * 5 + (i % (size_t)channels) * 40);
    }
}

static void test_png_round_trip(void)
{
    static const int sizes[][2] = {{1, 1}, {1, 9}, {9, 1}, {7, 5}, {64, 48}, {257, 131}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int mode = 0; mode < 16; mode++) {
            int channels = 1 + mode % 4, bits = mode & 4 ? 16 : 8, width = sizes[s][0], height = sizes[s][1];
            size_t n = (size_t)(width * height * channels * bits / 8);
            uint8_t *bytes = malloc(n);
            REQUIRE(bytes);
            fill(bytes, n, width, channels, mode & 8);
            Error err = {""};
            Image image;
            CHECK(png_write(TMP, bytes, width, height, channels, bits, &err) == 0);
            CHECK_MSG(image_read(&image, TMP, &err) == 0, "%s", err.message);
            CHECK(image.width == width && image.height == height && image.channels == channels &&
                  image.bits == bits);
            CHECK(image.samples && memcmp(image.samples, bytes, n) == 0);
            image_free(&image);
            image_free(&image);
            free(bytes);
        }
    unlink(TMP);
}

static void test_png_indexed(void)
{
    static const int counts[] = {1, 2, 3, 4, 5, 16, 17, 256};
    uint8_t palette[768], alpha[256], indices[37 * 11];
    fill(palette, sizeof palette, 256, 3, 1);
    fill(alpha, sizeof alpha, 256, 1, 1);
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++)
        for (int with_alpha = 0; with_alpha < 2; with_alpha++) {
            Error err = {""};
            Image image;
            for (int i = 0; i < 37 * 11; i++)
                indices[i] = (uint8_t)(i * 7 % counts[k]);
            CHECK(png_write_indexed(TMP, indices, 37, 11, palette, counts[k], with_alpha ? alpha : NULL,
                                    &err) == 0);
            CHECK_MSG(image_read(&image, TMP, &err) == 0, "%s", err.message);
            REQUIRE(image.indices && image.channels == 3 + with_alpha);
            CHECK(memcmp(image.indices, indices, sizeof indices) == 0);
            for (int i = 0; i < 37 * 11; i++) {
                const uint8_t *pixel = (const uint8_t *)image.samples + i * image.channels;
                CHECK(memcmp(pixel, palette + 3 * indices[i], 3) == 0);
                CHECK(!with_alpha || pixel[3] == alpha[indices[i]]);
            }
            image_free(&image);
        }
    Error err;
    CHECK(png_write_indexed(TMP, indices, 37, 11, palette, 3, NULL, &err) !=
          0); /* an index without a colour */
    unlink(TMP);
}

/* A header that claims 16384 x 16384 pixels of 16-bit RGBA, without data, must not cost 2 GiB. */
static void test_png_bomb(void)
{
    uint8_t file[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x40\0\0\0\x40\0\x10\6\0\0\0CCCC\0\0\0\x8IDAT\x78\x9c"
                     "\3\0\0\0\0\1CCCC"
                     "\0\0\0\0IENDCCCC";
    size_t crc_at[] = {29, 49, 61}, lengths[] = {17, 12, 4};
    for (int i = 0; i < 3; i++) {
        uint32_t crc = crc32_update(0, file + crc_at[i] - lengths[i], lengths[i]);
        for (size_t k = 0; k < 4; k++)
            file[crc_at[i] + k] = (uint8_t)(crc >> (24 - 8 * k));
    }
    Error err = {""};
    Image image;
    CHECK(png_decode(&image, file, sizeof file - 1, "bomb.png", &err) != 0);
    CHECK_MSG(strstr(err.message, "far too little data"), "%s", err.message);
}

/* ---- PNM, conversion, dispatch ---------------------------------------------------------------------*/

static int read_text(Image *image, const char *text, size_t n, Error *err)
{
    return image_read_memory(image, (const uint8_t *)text, n, "text.pnm", err);
}

static void test_pnm(void)
{
    static const struct {
        const char *text;
        size_t n;
        int width, height, channels, bits;
        uint16_t first, last;
    } cases[] = {
        {"P1\n# a comment\n3 2\n1 0 1\n010", 28, 3, 2, 1, 8, 0, 255},
        {"P2 2 1 100\n0 50\n", 16, 2, 1, 1, 8, 0, 128},
        {"P2 2 1 255 7 250", 16, 2, 1, 1, 8, 7, 250},
        {"P2 1 1 1000 1000", 16, 1, 1, 1, 16, 65535, 65535},
        {"P3 1 1 255 1 2 3", 16, 1, 1, 3, 8, 1, 3},
        {"P4 9 1\n\x80\x80", 9, 9, 1, 1, 8, 0, 0},
        {"P5 2 1 255\n\x07\xfa", 13, 2, 1, 1, 8, 7, 250},
        {"P5\n1 2\n65535\n\x12\x34\xff\xfe", 17, 1, 2, 1, 16, 0x1234, 0xfffe},
        {"P6 1 1 255\nabc", 14, 1, 1, 3, 8, 'a', 'c'},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        Image image;
        int status = read_text(&image, cases[i].text, cases[i].n, &err);
        CHECK_MSG(status == 0, "case %zu: %s", i, err.message);
        if (status)
            continue;
        size_t last = (size_t)(image.width * image.height * image.channels - 1);
        int wide = image.bits == 16;
        const uint8_t *s8 = image.samples;
        const uint16_t *s16 = image.samples;
        CHECK(image.width == cases[i].width && image.height == cases[i].height);
        CHECK(image.channels == cases[i].channels && image.bits == cases[i].bits);
        CHECK_MSG((wide ? s16[0] : s8[0]) == cases[i].first && (wide ? s16[last] : s8[last]) == cases[i].last,
                  "case %zu: samples %d and %d", i, wide ? s16[0] : s8[0], wide ? s16[last] : s8[last]);
        image_free(&image);
    }
}

static void test_pnm_refuses(void)
{
    static const char *cases[] = {"P5 2 2 255\nabc",   "P5 0 2 255\n",   "P5 2 2 65536\nabcdefgh",
                                  "P2 1 1 9 10",       "P5 1 1 9\n\x0b", "P1 2 1 1",
                                  "P1 1 1 2",          "P3 1 1 255 1 2", "P6",
                                  "P5 99999 99999 1 ", "P5 -1 1 255\na", "P5 1 1 255"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        Image image;
        CHECK_MSG(read_text(&image, cases[i], strlen(cases[i]), &err) != 0, "case %zu was read", i);
        CHECK(strstr(err.message, "text.pnm: ") == err.message);
        image_free(&image);
    }
}

static void test_pnm_round_trip(void)
{
    for (int mode = 0; mode < 4; mode++) {
        int channels = mode & 1 ? 3 : 1, bits = mode & 2 ? 16 : 8;
        uint8_t bytes[13 * 7 * 3 * 2];
        fill(bytes, sizeof bytes, 13, channels, 1);
        Error err;
        Image image;
        CHECK(pnm_write(TMP, bytes, 13, 7, channels, bits, &err) == 0);
        REQUIRE(image_read(&image, TMP, &err) == 0);
        CHECK(image.channels == channels && image.bits == bits);
        CHECK(memcmp(image.samples, bytes, (size_t)(13 * 7 * channels * bits / 8)) == 0);
        image_free(&image);
    }
    unlink(TMP);
}

static void test_rgb8(void)
{
    uint16_t wide[4] = {0, 128, 129, 65535}; /* one RGBA pixel */
    uint8_t grey_alpha[4] = {10, 0, 20, 255};
    Error err;
    uint8_t *rgb = image_rgb8(&(Image){1, 1, 4, 16, wide, NULL}, &err);
    REQUIRE(rgb);
    CHECK(rgb[0] == 0 && rgb[1] == 0 && rgb[2] == 1); /* 128 / 257 = 0.498, 129 / 257 = 0.502 */
    free(rgb);
    rgb = image_rgb8(&(Image){2, 1, 2, 8, grey_alpha, NULL}, &err);
    REQUIRE(rgb);
    CHECK(rgb[0] == 10 && rgb[1] == 10 && rgb[2] == 10 && rgb[3] == 20 && rgb[5] == 20);
    free(rgb);
    int width, height;
    CHECK(!image_read_rgb8("tests/test.h", &width, &height, &err));
    CHECK_MSG(strcmp(err.message, "tests/test.h: not a PNG, JPEG, PNM, BMP or TIFF image") == 0, "%s", err.message);
    CHECK(!image_read_rgb8("no/such/file.png", &width, &height, &err));
    CHECK(strstr(err.message, "no/such/file.png: cannot open"));
    CHECK(!image_read_rgb8("tests", &width, &height, &err));
    CHECK(strstr(err.message, "is a folder"));
}

/* ---- run-length encoding ---------------------------------------------------------------------------*/

/* The definition, pixel by pixel, for comparison with the row-wise encoder. */
static size_t plain_counts(uint32_t *counts, const uint8_t *mask, int height, int width)
{
    size_t n = 1;
    int value = 0;
    counts[0] = 0;
    for (int x = 0; x < width; x++)
        for (int y = 0; y < height; y++) {
            if ((mask[y * width + x] != 0) != value) {
                value = !value;
                counts[n++] = 0;
            }
            counts[n - 1]++;
        }
    return n;
}

static void test_rle(void)
{
    uint8_t mask[40 * 30], back[40 * 30];
    uint32_t counts[40 * 30 + 1], state = 5;
    for (int trial = 0; trial < 200; trial++) {
        int height = 1 + (int)(next_random(&state) % 30), width = 1 + (int)(next_random(&state) % 40),
            area = 0;
        uint32_t rarity = 1 + next_random(&state) % 40;
        for (int i = 0; i < height * width; i++) {
            uint32_t r = next_random(&state);
            const int inside =
                trial % 3 || (i % width > width / 4 && i % width < width / 2 && i / width > height / 3);
            mask[i] = (uint8_t)(trial == 0                  ? 0
                                : trial == 1                ? 1
                                : inside && r % rarity == 0 ? 1 + r % 255
                                                            : 0);
            area += mask[i] != 0;
        }
        Rle rle;
        Error err;
        REQUIRE(rle_encode(&rle, mask, height, width, &err) == 0);
        size_t n = plain_counts(counts, mask, height, width);
        CHECK(rle.n_counts == n && memcmp(rle.counts, counts, n * sizeof *counts) == 0);
        CHECK(rle_area(&rle) == area);
        memset(back, 9, sizeof back);
        rle_decode(back, &rle);
        int differences = 0;
        for (int i = 0; i < height * width; i++)
            differences += back[i] != (mask[i] != 0);
        CHECK(differences == 0);
        rle_free(&rle);
        int box[4] = {width, height, -1, -1}; /* and the same from its box alone */
        for (int i = 0; i < height * width; i++) {
            const int x = i % width, y = i / width;
            if (!mask[i])
                continue;
            box[0] = x < box[0] ? x : box[0], box[1] = y < box[1] ? y : box[1];
            box[2] = x > box[2] ? x : box[2], box[3] = y > box[3] ? y : box[3];
        }
        REQUIRE(rle_encode_box(&rle, mask, height, width, box, &err) == 0);
        CHECK(rle.n_counts == n && memcmp(rle.counts, counts, n * sizeof *counts) == 0);
        rle_free(&rle);
    }
}

static void test_rle_json(void)
{
    static const uint8_t mask[2 * 3] = {1, 0, 1, 1, 0, 0};
    Rle rle;
    Error err;
    JsonWriter w;
    REQUIRE(rle_encode(&rle, mask, 2, 3, &err) == 0);
    json_begin(&w);
    rle_json(&rle, &w);
    CHECK_MSG(strcmp(w.text, "{\"size\":[2,3],\"counts\":[0,2,2,1,1]}") == 0, "%s", w.text);
    json_end(&w);
    rle_free(&rle);
    CHECK(rle_encode(&rle, mask, 0, 3, &err) != 0);
}

int main(void)
{
    RUN(test_checksums);
    RUN(test_empty_blocks);
    RUN(test_deflate);
    RUN(test_inflate_refuses);
    RUN(test_gzip);
    RUN(test_gzip_mnist);
    RUN(test_pngsuite);
    RUN(test_pngsuite_corrupt);
    RUN(test_png_round_trip);
    RUN(test_png_indexed);
    RUN(test_png_bomb);
    RUN(test_pnm);
    RUN(test_pnm_refuses);
    RUN(test_pnm_round_trip);
    RUN(test_rgb8);
    RUN(test_rle);
    RUN(test_rle_json);
    return test_summary();
}
