/* test_pictures.c - pictures by Pillow, OpenCV and ImageMagick, and the pixels that these read
 * (make_golden_pictures.py): a table of kinds and writers. */
#include "test.h"

#include <unistd.h>

#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"

#define TMP "test_pictures.tmp"

/* The image's sample as RGB: grey is repeated, alpha left out. */
static unsigned rgb_sample(const Image *image, size_t pixel, size_t c)
{
    const size_t at = pixel * (size_t)image->channels + (image->channels < 3 ? 0 : c);
    return image->bits == 16 ? ((const uint16_t *)image->samples)[at] : ((const uint8_t *)image->samples)[at];
}

/* The number of samples that differ from the golden [height][width][3]; -1: another size or depth. */
static int n_different(const Image *image, const StTensor *pixels)
{
    int n = 0;
    const int bits = pixels->dtype == ST_U8 ? 8 : 16;
    if (image->height != pixels->shape[0] || image->width != pixels->shape[1] || image->bits != bits)
        return -1;
    for (size_t i = 0; i < (size_t)image->width * (size_t)image->height * 3; i++) {
        const unsigned expected =
            bits == 8 ? ((const uint8_t *)pixels->data)[i] : ((const uint16_t *)pixels->data)[i];
        n += rgb_sample(image, i / 3, i % 3) != expected;
    }
    return n;
}

static void check_picture(const StTensor *file, const StTensor *pixels, char *cell)
{
    Image image;
    Error err = {""};
    int width = 0, height = 0;
    CHECK(file_write(TMP, file->data, file->n_bytes, &err) == 0);
    const int status = image_read(&image, TMP, &err);
    CHECK_MSG(status == 0, "%s: %s", file->name, err.message);
    if (status)
        return;
    const int n = n_different(&image, pixels);
    CHECK_MSG(n == 0, "%s: %d samples differ", file->name, n);
    CHECK_MSG(image_probe(TMP, &width, &height, &err) == 0, "%s: probe: %s", file->name, err.message);
    CHECK_MSG(width == image.width && height == image.height, "%s: probe says %dx%d", file->name, width,
              height);
    strcpy(cell, n == 0 ? "equal" : "DIFFERS");
    image_free(&image);
}

typedef struct Row {
    char kind[64], cells[4][8]; /* a cell is empty when this writer does not write the kind. */
} Row;

static void print_row(const Row *row)
{
    if (row->kind[0])
        printf("%-28s %-8s %-8s %-8s %-8s\n", row->kind, row->cells[0], row->cells[1], row->cells[2],
               row->cells[3]);
}

/* One row a kind, one column a writer. */
static void test_table(void)
{
    static const char *const writers[] = {"pillow", "opencv", "magick", "hand"};
    Error err = {""};
    Safetensors *st = st_open("tests/golden/pictures.safetensors", &err);
    REQUIRE(st);
    Row row = {"kind", {"Pillow", "OpenCV", "Magick", "by hand"}};
    for (size_t i = 0; i < st_count(st); i++) {
        char kind[64], name[96];
        const StTensor *file = st_at(st, i);
        if (!strstr(file->name, ".file"))
            continue;
        snprintf(kind, sizeof kind, "%.*s", (int)strcspn(file->name, "."), file->name);
        if (strcmp(kind, row.kind) != 0) {
            print_row(&row);
            memset(&row, 0, sizeof row);
            strcpy(row.kind, kind);
        }
        for (size_t w = 0; w < 4; w++) {
            snprintf(name, sizeof name, "%s.%s.file", kind, writers[w]);
            if (strcmp(name, file->name) != 0)
                continue;
            snprintf(name, sizeof name, "%s.%s.pixels", kind, writers[w]);
            REQUIRE(st_find(st, name));
            check_picture(file, st_find(st, name), row.cells[w]);
        }
    }
    print_row(&row);
    st_close(st);
    unlink(TMP);
}

/* What is not read is named. The same file's size is not told either. */
static void test_refused(void)
{
    static const struct {
        const char *name, *says;
    } cases[] = {
        {"tiff-8-cmyk.pillow.refused", "photometric 5 (CMYK) is not supported"},
        {"tiff-8-ycbcr.pillow.refused", "photometric 6 (YCbCr) is not supported"},
        {"tiff-8-rgb-jpeg.pillow.refused", "compression 7 (JPEG) is not supported"},
        {"tiff-1-fax.pillow.refused", "compression 4 (CCITT fax) is not supported"},
        {"tiff-1-fax3.pillow.refused", "compression 3 (CCITT fax) is not supported"},
        {"tiff-8-rgb-zstd.pillow.refused", "compression 50000 (Zstandard) is not supported"},
        {"tiff-float.pillow.refused", "float samples: not a picture"},
        {"tiff-32.pillow.refused", "(signed) are not supported"},
    };
    Safetensors *st = st_open("tests/golden/pictures.safetensors", NULL);
    REQUIRE(st);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Image image;
        Error err = {""};
        int width, height;
        const StTensor *file = st_find(st, cases[i].name);
        REQUIRE(file);
        CHECK(file_write(TMP, file->data, file->n_bytes, &err) == 0);
        CHECK(image_read(&image, TMP, &err) == -1 && !image.samples);
        CHECK_MSG(strstr(err.message, cases[i].says), "%s: %s", cases[i].name, err.message);
        CHECK(image_probe(TMP, &width, &height, &err) == -1);
        CHECK_MSG(strstr(err.message, cases[i].says), "%s: %s", cases[i].name, err.message);
    }
    st_close(st);
    unlink(TMP);
}

/* A golden file with the 32-bit number at an offset changed. Each must be refused with this sentence, and
 * before memory is asked for its claims. */
static void test_hostile(void)
{
    static const struct {
        const char *name;
        size_t at;
        uint32_t value;
        const char *says;
    } cases[] = {
        {"bmp-24.pillow.file", 18, 0x7fffffff, "pixels, expected"}, /* width */
        {"bmp-24.pillow.file", 22, 0x80000000, "pixels, expected"}, /* height -2^31 */
        {"bmp-24.pillow.file", 18, 16000, "truncated"},
        {"bmp-24.pillow.file", 10, 0xffffffff, "outside the file"}, /* offset of the pixels */
        {"bmp-24.pillow.file", 10, 20, "in its header"},
        {"bmp-24.pillow.file", 14, 41, "a header of 41 bytes"},
        {"bmp-24.pillow.file", 14, 124, "in its header"},
        {"bmp-24.pillow.file", 28, 7, "of 7 bits"},
        {"bmp-24.pillow.file", 30, 1, "compression 1 with 24"},
        {"bmp-24.pillow.file", 30, 4, "around a JPEG"},
        {"bmp-24.pillow.file", 30, 5, "around a PNG"},
        {"bmp-8-rle.magick.file", 18, 1 << 24, "far too little data"}, /* 2^24 x 7 */
        {"bmp-8-no-palette.hand.file", 46, 1, NULL},                   /* one colour, but no palette */
        {"bmp-16-rgb565.magick.file", 54, 0, NULL},                    /* one mask less: a channel of zeros */
    };
    Safetensors *st = st_open("tests/golden/pictures.safetensors", NULL);
    REQUIRE(st);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Image image;
        Error err = {""};
        const StTensor *file = st_find(st, cases[i].name);
        REQUIRE(file);
        uint8_t *bytes = malloc(file->n_bytes);
        REQUIRE(bytes);
        memcpy(bytes, file->data, file->n_bytes);
        for (size_t k = 0; k < 4; k++)
            bytes[cases[i].at + k] = (uint8_t)(cases[i].value >> 8 * k);
        const int status = image_read_memory(&image, bytes, file->n_bytes, "hostile", &err);
        CHECK_MSG(cases[i].says ? status && strstr(err.message, cases[i].says) : !status, "case %zu: %s", i,
                  err.message);
        image_free(&image);
        free(bytes);
    }
    st_close(st);
}

/* A file that is cut anywhere gives a sentence; BMP may lack the filling of its last row. */
static void test_cut(void)
{
    static const char *const names[] = {"bmp-24.pillow.file",           "bmp-8-runs.hand.file",
                                        "bmp-16-rgb565.magick.file",    "tiff-8-rgb-lzw.opencv.file",
                                        "tiff-1-packbits.pillow.file",  "tiff-8-rgb-big.pillow.file",
                                        "tiff-8-rgb-strips.pillow.file"};
    Safetensors *st = st_open("tests/golden/pictures.safetensors", NULL);
    REQUIRE(st);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const StTensor *file = st_find(st, names[i]);
        REQUIRE(file);
        for (size_t n = 0; n + 4 < file->n_bytes; n++) {
            Image image;
            Error err = {""};
            uint8_t *bytes = malloc(n + 1); /* so that the sanitizer notices one byte too far */
            REQUIRE(bytes);
            memcpy(bytes, file->data, n);
            const int status = image_read_memory(&image, bytes, n, "cut", &err);
            CHECK_MSG(status == -1 && err.message[0] && !image.samples, "%s is read from %zu of %zu bytes",
                      names[i], n, file->n_bytes);
            image_free(&image);
            free(bytes);
        }
    }
    st_close(st);
}

/* 16-bit samples: 255 v / white, rounded; brighter ones are white. Alpha is no brightness. */
static void test_white(void)
{
    static const uint16_t samples[] = {0, 8, 9, 2048, 4095, 4096, 60000, 65535};
    static const uint8_t expected[] = {0, 0, 1, 128, 255, 255, 255, 255};
    static const uint16_t grey_alpha[] = {700, 65535, 1024, 65535};
    Error err = {""};
    const Image image = {.width = 8, .height = 1, .channels = 1, .bits = 16, .samples = (void *)samples};
    uint8_t *rgb = image_rgb8_white(&image, 4095, &err);
    REQUIRE(rgb);
    for (size_t i = 0; i < 8; i++)
        CHECK_MSG(rgb[3 * i] == expected[i] && rgb[3 * i + 2] == expected[i], "%d: %d", samples[i],
                  rgb[3 * i]);
    free(rgb);
    CHECK(image_white(255) == 255 && image_white(256) == 1023 && image_white(1023) == 1023 &&
          image_white(1024) == 4095);
    CHECK(image_white(4096) == 16383 && image_white(16384) == IMAGE_WHITE &&
          image_white(65535) == IMAGE_WHITE);
    CHECK(!png_write(TMP, grey_alpha, 2, 1, 2, 16, &err) && image_brightest(TMP) == 1024);
    CHECK(!png_write(TMP, expected, 8, 1, 1, 8, &err) && image_brightest(TMP) == 0);
    /* one sample of 10,000 may be hot, two may not. */
    static uint16_t hot[10000] = {[5] = 255, [17] = 65535};
    CHECK(!png_write(TMP, hot, 100, 100, 1, 16, &err) && image_brightest(TMP) == 255);
    hot[18] = 65535;
    CHECK(!png_write(TMP, hot, 100, 100, 1, 16, &err) && image_brightest(TMP) == 65535);
    CHECK(image_brightest("no such file") == 0);
    unlink(TMP);
}

int main(void)
{
    RUN(test_table);
    RUN(test_refused);
    RUN(test_hostile);
    RUN(test_cut);
    RUN(test_white);
    return test_summary();
}
