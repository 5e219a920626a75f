/* test_fuzz.c - the fuzz targets over valid files, each damaged in a few hundred reproducible ways. Bytes
 * are changed, cut off, doubled, or replaced by extreme numbers. A target aborts when its promise is
 * broken; `make asan` finds the rest. */
#define FUZZ_TARGET fuzz_png
#include "fuzz_png.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_pnm
#include "fuzz_pnm.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_jpeg
#include "fuzz_jpeg.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_bmp
#include "fuzz_bmp.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_tiff
#include "fuzz_tiff.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_json
#include "fuzz_json.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_inflate
#include "fuzz_inflate.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#define FUZZ_TARGET fuzz_safetensors
#include "fuzz_safetensors.c"
#undef FUZZ_TARGET
#undef SAMLAD_FUZZ_H
#include "numbers.h"
#include "test.h"

typedef int (*Target)(const uint8_t *bytes, size_t n);

/* Damage bytes[n] in place (room for n + 64) and return the new length. */
static size_t damage(uint8_t *bytes, size_t n, uint32_t *state)
{
    static const uint8_t extremes[] = {0, 1, 0x7f, 0x80, 0xff, 0xfe};
    for (uint32_t k = 1 + next_random(state) % 4; k > 0 && n > 0; k--) {
        size_t at = next_random(state) % n, run = 1 + next_random(state) % 8;
        switch (next_random(state) % 6) {
        case 0:
            bytes[at] ^= (uint8_t)(1u << next_random(state) % 8);
            break;
        case 1:
            bytes[at] = (uint8_t)next_random(state);
            break;
        case 2:
            bytes[at] = extremes[next_random(state) % sizeof extremes];
            break;
        case 3: /* a whole number becomes extreme */
            memset(bytes + at, extremes[next_random(state) % sizeof extremes], n - at < 4 ? n - at : 4);
            break;
        case 4: /* remove a piece, or the rest */
            run = next_random(state) % 8 == 0 ? n - at : run < n - at ? run : n - at;
            memmove(bytes + at, bytes + at + run, n - at - run);
            n -= run;
            break;
        default: /* double a piece */
            run = run < n - at ? run : n - at;
            memmove(bytes + at + run, bytes + at, n - at);
            n += run;
            break;
        }
    }
    return n;
}

static void attack(Target target, const uint8_t *bytes, size_t n, int n_times, uint32_t seed)
{
    uint8_t *copy = malloc(n + 64);
    REQUIRE(copy);
    target(bytes, n);
    for (int i = 0; i < n_times; i++) {
        memcpy(copy, bytes, n);
        size_t length = damage(copy, n, &seed);
        uint8_t *exact = malloc(length ? length : 1); /* so that the sanitizer notices one byte too far */
        REQUIRE(exact);
        memcpy(exact, copy, length);
        target(exact, length);
        free(exact);
    }
    free(copy);
}

/* The files of a golden set whose names begin so, n_times each. */
static void attack_golden(Target target, const char *path, const char *kind, int n_times)
{
    Error err = {""};
    Safetensors *st = st_open(path, &err);
    CHECK_MSG(st, "%s", err.message);
    for (size_t i = 0; st && i < st_count(st); i++)
        if (strncmp(st_at(st, i)->name, kind, strlen(kind)) == 0 && strstr(st_at(st, i)->name, ".file"))
            attack(target, st_at(st, i)->data, st_at(st, i)->n_bytes, n_times, (uint32_t)i);
    st_close(st);
}

static void attack_file(Target target, const char *path, int n_times)
{
    Error err = {""};
    size_t n;
    uint8_t *bytes = file_read(path, 1 << 20, &n, &err);
    CHECK_MSG(bytes, "%s", err.message);
    if (bytes)
        attack(target, bytes, n, n_times, 1);
    free(bytes);
}

static void test_jpeg(void)
{
    attack_golden(fuzz_jpeg, "tests/golden/jpeg.safetensors", "", 12);
    attack_golden(fuzz_jpeg, "tests/golden/exif.safetensors", "", 12);
}

static void test_tiff(void)
{
    attack_golden(fuzz_tiff, "tests/golden/tiff.safetensors", "", 40);
    attack_golden(fuzz_tiff, "tests/golden/pictures.safetensors", "tiff", 40);
}

static void test_bmp(void)
{
    attack_golden(fuzz_bmp, "tests/golden/pictures.safetensors", "bmp", 60);
    attack_golden(fuzz_bmp, "tests/golden/pictures.safetensors", "dib", 60);
}

/* CRCs would stop nearly every change. They are corrected, so that damage reaches the code behind them. */
static int fuzz_png_mended(const uint8_t *bytes, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy)
        return 0;
    memcpy(copy, bytes, n);
    for (size_t at = 8; n >= 12 && at <= n - 12;) {
        size_t length =
            (size_t)copy[at] << 24 | (size_t)copy[at + 1] << 16 | (size_t)copy[at + 2] << 8 | copy[at + 3];
        if (length > n - at - 12)
            break;
        uint32_t crc = crc32_update(0, copy + at + 4, length + 4);
        for (size_t k = 0; k < 4; k++)
            copy[at + 8 + length + k] = (uint8_t)(crc >> (24 - 8 * k));
        at += length + 12;
    }
    fuzz_png(copy, n);
    free(copy);
    return 0;
}

static void test_png(void)
{
    static const char tmp[] = "test_fuzz.tmp";
    uint8_t samples[23 * 11 * 8], palette[48] = {1, 2, 3};
    Error err;
    for (size_t i = 0; i < sizeof samples; i++)
        samples[i] = (uint8_t)(i * 7 + i / 23 * 3);
    for (int mode = 0; mode < 8; mode++) {
        CHECK(png_write(tmp, samples, 23, 11, 1 + mode % 4, mode < 4 ? 8 : 16, &err) == 0);
        attack_file(fuzz_png, tmp, 50);
        attack_file(fuzz_png_mended, tmp, 150);
    }
    for (int i = 0; i < 23 * 11; i++)
        samples[i] %= 16;
    CHECK(png_write_indexed(tmp, samples, 23, 11, palette, 16, palette, &err) == 0);
    attack_file(fuzz_png_mended, tmp, 300);
    unlink(tmp);
    attack_golden(fuzz_png_mended, "tests/golden/exif.safetensors", "", 12);
}

static void test_png_suite(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    static const char *names[] = {"basi0g01", "basi3p04", "basi6a16", "tbbn3p08",
                                  "tbrn2c08", "tm3n3p02", "s07i3p02"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/pngsuite/%s.png", test_data_dir(), names[i]);
        attack_file(fuzz_png_mended, path, 200);
    }
}

static void test_pnm(void)
{
    static const char *texts[] = {
        "P1 5 3\n10101 01010 11111\n", "P2\n# a comment\n3 2 100\n0 10 20 30 40 100\n",
        "P3 2 1 255 1 2 3 4 5 6",      "P4 9 2\n\x80\x80\xff\x00",
        "P5 3 2 300\nabcdefghijkl",    "P6 2 1 255\nabcdef"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        attack(fuzz_pnm, (const uint8_t *)texts[i], strlen(texts[i]), 500, (uint32_t)i);
}

static void test_json(void)
{
    static const char text[] = "{\"key\": [1, -2.5e-3, true, null, \"a\\u00e9\\ud83d\\ude00\\n\", {\"b\": "
                               "{}}],\"\xc3\xa9\": [[[]]]}";
    attack(fuzz_json, (const uint8_t *)text, strlen(text), 5000, 1);
}

static void test_inflate(void)
{
    uint8_t bytes[6000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * i / 77 % 50);
    size_t n;
    uint8_t *packed = zlib_deflate(bytes, sizeof bytes, &n);
    REQUIRE(packed);
    attack(fuzz_inflate, packed, n, 500, 1);
    free(packed);
}

static void test_safetensors(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"a\":\"1\"},\"x\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
        "\"y\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[16,22]}}";
    uint8_t bytes[8 + sizeof header - 1 + 22] = {sizeof header - 1};
    memcpy(bytes + 8, header, sizeof header - 1);
    attack(fuzz_safetensors, bytes, sizeof bytes, 1500, 1);
    attack_file(fuzz_safetensors, "tests/golden/names/timm/model.safetensors", 300);
    attack_file(fuzz_safetensors, "tests/golden/names/hf/model-00001-of-00002.safetensors", 300);
}

int main(void)
{
    RUN(test_png);
    RUN(test_png_suite);
    RUN(test_pnm);
    RUN(test_jpeg);
    RUN(test_bmp);
    RUN(test_tiff);
    RUN(test_json);
    RUN(test_inflate);
    RUN(test_safetensors);
    return test_summary();
}
