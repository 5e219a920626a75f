/* test_tiff.c - grey TIFF. tests/golden/tiff.safetensors holds files by libtiff and by the writer in
 * make_golden_tiff.py. */
#include "test.h"

#include <unistd.h>

#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"

#define TMP "test_tiff.tmp"

static void test_golden(void)
{
    Error err = {""};
    Safetensors *st = st_open("tests/golden/tiff.safetensors", &err);
    REQUIRE(st);
    int n_files = 0;
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *file = st_at(st, i);
        char name[128];
        snprintf(name, sizeof name, "%s", file->name);
        char *suffix = strstr(name, ".file");
        if (!suffix)
            continue;
        strcpy(suffix, ".values");
        const StTensor *expected = st_find(st, name);
        REQUIRE(expected);
        int width, height;
        float *values = tiff_decode_float(file->data, file->n_bytes, file->name, &width, &height, &err);
        CHECK_MSG(values, "%s", err.message);
        if (values) {
            CHECK_MSG(height == expected->shape[0] && width == expected->shape[1], "%s: size", name);
            CHECK_MSG(memcmp(values, expected->data, expected->n_bytes) == 0, "%s: values differ", name);
        }
        free(values);
        n_files++;
    }
    CHECK_MSG(n_files == 25, "%d files", n_files);
    st_close(st);
}

static void test_round_trip(void)
{
    static const int sizes[][2] = {{1, 1}, {1, 700}, {700, 1}, {37, 53}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s][0] * sizes[s][1], width, height;
        float *values = malloc((size_t)n * sizeof *values);
        REQUIRE(values);
        for (int i = 0; i < n; i++)
            values[i] = i % 13 == 0   ? -INFINITY
                        : i % 17 == 0 ? NAN
                                      : sinf((float)i) * 1e-40f * (float)(i % 7);
        Error err;
        CHECK(tiff_write_float(TMP, values, sizes[s][0], sizes[s][1], &err) == 0);
        float *back = tiff_read_float(TMP, &width, &height, &err);
        REQUIRE(back);
        CHECK(width == sizes[s][0] && height == sizes[s][1]);
        CHECK(memcmp(back, values, (size_t)n * sizeof *values) == 0);
        free(back);
        free(values);
    }
    unlink(TMP);
}

/* The float file with one 16-bit word of its directory changed at a time. Each must be refused with this
 * sentence. */
static void test_refuses(void)
{
    static const struct {
        int field, offset; /* the directory entry, and the byte in it */
        uint16_t value;
        const char *says;
    } cases[] = {
        {0, 8, 0, "pixels"},       /* width 0 */
        {0, 10, 0xffff, "pixels"}, /* width beyond every limit */
        {0, 8, 9, "truncated"},    /* 9 x 2 needs 72 bytes, the strip has 24 */
        {2, 8, 24, "with 24 bits"},    {3, 8, 6, "compression 6"},
        {4, 8, 2, "one grey channel"},                               /* RGB */
        {5, 10, 0x7fff, "outside"},                                  /* offset of the strip */
        {6, 8, 3, "one grey channel"}, {8, 10, 0x7fff, "truncated"}, /* byte count */
        {8, 8, 3, "truncated"},        {9, 8, 2, "samples of format 2"},
        {5, 4, 0, "no value"},   /* a count of 0 */
        {5, 2, 5, "wrong type"}, /* a fraction for an offset */
    };
    Error err = {""};
    float values[6] = {0};
    int width, height;
    size_t n;
    CHECK(tiff_write_float(TMP, values, 3, 2, &err) == 0);
    uint8_t *file = file_read(TMP, 1000, &n, &err);
    REQUIRE(file);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *at = file + 10 + 12 * cases[i].field + cases[i].offset, kept[2] = {at[0], at[1]};
        at[0] = (uint8_t)cases[i].value, at[1] = (uint8_t)(cases[i].value >> 8);
        float *read = tiff_decode_float(file, n, "case.tiff", &width, &height, &err);
        CHECK_MSG(!read && strstr(err.message, cases[i].says), "case %zu: %s", i, err.message);
        free(read);
        at[0] = kept[0], at[1] = kept[1];
    }
    for (size_t cut = 0; cut < n; cut++)
        CHECK(!tiff_decode_float(file, cut, "cut.tiff", &width, &height, &err));
    float *whole = tiff_decode_float(file, n, "whole.tiff", &width, &height, &err);
    CHECK(whole);
    free(whole);
    file[2] = 43;
    CHECK(!tiff_decode_float(file, n, "big.tiff", &width, &height, &err) && strstr(err.message, "BigTIFF"));
    free(file);
    CHECK(!tiff_read_float("tests/test.h", &width, &height, &err) && strstr(err.message, "not a TIFF file"));
    unlink(TMP);
}

int main(void)
{
    RUN(test_golden);
    RUN(test_round_trip);
    RUN(test_refuses);
    return test_summary();
}
