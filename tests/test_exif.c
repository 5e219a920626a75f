/* test_exif.c - photos turned by their Exif data. tests/golden/exif.safetensors holds files and PIL's
 * turned images (make_golden_exif.py). */
#include "test.h"

#include "io/exif.h"
#include "io/image.h"
#include "io/safetensors.h"

/* The tensor whose name has `suffix` instead of .file; NULL: no such tensor. */
static const StTensor *beside(Safetensors *st, const StTensor *file, const char *suffix)
{
    char name[128];
    snprintf(name, sizeof name, "%.*s%s", (int)strcspn(file->name, "."), file->name, suffix);
    return st_find(st, name);
}

static void check_turned(Safetensors *st, const StTensor *file)
{
    Error err = {""};
    Image image;
    const StTensor *samples = beside(st, file, ".samples"), *indices = beside(st, file, ".indices");
    const int status = image_read_memory(&image, file->data, file->n_bytes, file->name, &err);
    REQUIRE(samples);
    CHECK_MSG(status == 0, "%s", err.message);
    if (status)
        return;
    const size_t n = (size_t)image.width * (size_t)image.height;
    CHECK_MSG(image.height == samples->shape[0] && image.width == samples->shape[1], "%s: size", file->name);
    CHECK_MSG(n * (size_t)image.channels * (size_t)(image.bits / 8) == samples->n_bytes &&
                  memcmp(image.samples, samples->data, samples->n_bytes) == 0,
              "%s: pixels differ", file->name);
    CHECK_MSG(!indices == !image.indices && (!indices || memcmp(image.indices, indices->data, n) == 0),
              "%s: indices differ", file->name);
    image_free(&image);
}

static void test_golden(void)
{
    Error err = {""};
    int n_files = 0;
    Safetensors *st = st_open("tests/golden/exif.safetensors", &err);
    REQUIRE(st);
    for (size_t i = 0; i < st_count(st); i++)
        if (strstr(st_at(st, i)->name, ".file"))
            check_turned(st, st_at(st, i)), n_files++;
    CHECK_MSG(n_files == 51, "%d files", n_files);
    st_close(st);
}

/* From a copy of exactly this length, so that a sanitizer notices reads behind its end. */
static int orientation_of_copy(int (*orientation)(const uint8_t *p, size_t n), const uint8_t *bytes, size_t n)
{
    uint8_t *copy = malloc(n + !n);
    if (!copy)
        return -1;
    memcpy(copy, bytes, n);
    const int said = orientation(copy, n);
    free(copy);
    return said;
}

static const uint8_t SEGMENT[] = {'E', 'x', 'i', 'f', 0, 0, 'M', 'M', 0, '*', 0, 0, 0, 10,
                                  9,   9,   0,   2,   1, 0, 0,   4,   0, 0,   0, 1, 0, 0,
                                  0,   7,   1,   18,  0, 3, 0,   0,   0, 1,   0, 6, 0, 0};
enum { PREFIX = 6 }; /* "Exif\0\0"; a PNG file's chunk may have it */

/* Damaged data give no orientation. */
static void test_damaged(void)
{
    static const struct {
        size_t at;
        uint8_t value;
        int expected;
    } cases[] = {{0, 'e', 0}, {6, 'I', 1},  {9, '+', 1},  {10, 255, 1}, {13, 35, 1},
                 {13, 34, 1}, {16, 255, 6}, {17, 255, 6}, {17, 1, 1},   {33, 4, 1},
                 {39, 0, 1},  {39, 9, 1},   {38, 1, 1},   {39, 8, 8},   {31, 19, 1}};
    const size_t n = sizeof SEGMENT;
    for (size_t cut = 0; cut <= n; cut++) {
        const int said = cut < n ? 1 : 6;
        CHECK(orientation_of_copy(exif_of_segment, SEGMENT, cut) == (cut < PREFIX ? 0 : said));
        CHECK(orientation_of_copy(exif_of_chunk, SEGMENT, cut) == said);
        if (cut >= PREFIX)
            CHECK(orientation_of_copy(exif_of_chunk, SEGMENT + PREFIX, cut - PREFIX) == said);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t damaged[sizeof SEGMENT];
        memcpy(damaged, SEGMENT, n);
        damaged[cases[i].at] = cases[i].value;
        const int said = orientation_of_copy(exif_of_segment, damaged, n);
        CHECK_MSG(said == cases[i].expected, "case %zu: %d", i, said);
        if (cases[i].at >= PREFIX)
            CHECK(orientation_of_copy(exif_of_chunk, damaged + PREFIX, n - PREFIX) == cases[i].expected);
    }
}

/* The probe reads no further into a PNG file's chunk than this, so the decoder must not either. */
static void test_long_chunk(void)
{
    const size_t n = EXIF_MAX + 100;
    uint8_t *chunk = calloc(n, 1);
    REQUIRE(chunk);
    memcpy(chunk, SEGMENT + PREFIX, sizeof SEGMENT - PREFIX);
    CHECK(exif_of_chunk(chunk, n) == 6);
    memcpy(chunk + 4, "\0\0\xff\xe6", 4); /* its directory ends at the limit, or one byte behind it */
    memcpy(chunk + 0xffe6, SEGMENT + 16, sizeof SEGMENT - 16);
    CHECK(exif_of_chunk(chunk, n) == 6);
    chunk[7] = 0xe7;
    memcpy(chunk + 0xffe7, SEGMENT + 16, sizeof SEGMENT - 16);
    CHECK(exif_of_chunk(chunk, n) == 1);
    free(chunk);
}

int main(void)
{
    RUN(test_golden);
    RUN(test_damaged);
    RUN(test_long_chunk);
    return test_summary();
}
