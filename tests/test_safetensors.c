/* test_safetensors.c - reading and writing safetensors, hostile headers, half precision. */
#include "test.h"

#include <unistd.h>

#include "io/bytes.h"
#include "io/file.h"
#include "io/safetensors.h"

#define TMP "test_safetensors.tmp"

/* A file begins with its header's length, little-endian. */
static void put_length(uint8_t bytes[8], uint64_t length)
{
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(length >> 8 * i);
}

/* Write header text and n_data bytes 0, 1, 2 ... as a file. */
static void write_raw(const char *header, size_t n_data)
{
    uint8_t bytes[4096];
    uint64_t length = strlen(header);
    put_length(bytes, length);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < n_data; i++)
        bytes[8 + length + i] = (uint8_t)i;
    Error err;
    if (file_write(TMP, bytes, 8 + length + n_data, &err))
        printf("  %s\n", err.message);
}

#define T(name, dtype, shape, from, to)                                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

/* The same bytes from memory: data are used in place unless they must be swapped, and all checks are made. */
static void test_memory(void)
{
    static const char header[] = "{" T("a", "F32", "[2]", 0, 8) "}";
    _Alignas(64) uint8_t bytes[8 + sizeof header - 1 + 8];
    const uint64_t length = sizeof header - 1;
    static const uint8_t values[8] = {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}; /* 1 and -2 */
    Error err = {""};
    put_length(bytes, length);
    memcpy(bytes + 8, header, length);
    memcpy(bytes + 8 + length, values, 8);
    Safetensors *st = st_open_memory("here", bytes, sizeof bytes, &err);
    CHECK_MSG(st, "%s", err.message);
    REQUIRE(st);
    const float *a = st_weight(st, &err, 1, (int64_t[]){2}, "a");
    CHECK(a && a[0] == 1 && a[1] == -2);
    CHECK((st_find(st, "a")->data == bytes + 8 + length) == !BIG_ENDIAN_MEMORY);
    st_close(st);
    CHECK(!st_open_memory("here", bytes, sizeof bytes - 1, &err) && strstr(err.message, "here"));
    CHECK(!st_open_memory("here", bytes, 7, &err));
}

static void test_read(void)
{
    Error err = {""};
    write_raw(
        "{\"__metadata__\":{\"k\":\"v\",\"n\":\"12\"}," T("b", "F32", "[2,3]", 4, 28) "," T(
            "a", "U8", "[4]", 0, 4) "," T("s", "F64", "[]", 28, 36) "," T("e", "I16", "[0,5]", 36, 36) "}   ",
        36);
    Safetensors *st = st_open(TMP, &err);
    CHECK_MSG(st, "%s", err.message);
    REQUIRE(st);
    CHECK(st_count(st) == 4 && strcmp(st_path(st), TMP) == 0);
    CHECK(strcmp(st_at(st, 0)->name, "a") == 0 && strcmp(st_at(st, 3)->name, "e") == 0 && !st_at(st, 4));
    const StTensor *b = st_find(st, "b");
    REQUIRE(b);
    CHECK(b->dtype == ST_F32 && b->n_dims == 2 && b->shape[0] == 2 && b->shape[1] == 3);
    CHECK(b->n_elements == 6 && b->n_bytes == 24 &&
          ((const uint8_t *)b->data)[BIG_ENDIAN_MEMORY ? 3 : 0] == 4);
    CHECK(st_find(st, "s")->n_dims == 0 && st_find(st, "s")->n_elements == 1);
    CHECK(st_find(st, "e")->n_elements == 0);
    CHECK(!st_find(st, "c") && !st_find(st, ""));
    CHECK(strcmp(st_meta(st, "k"), "v") == 0 && !st_meta(st, "x") && st_meta_count(st) == 2);
    const char *key, *value;
    st_meta_at(st, 1, &key, &value);
    CHECK(strcmp(key, "n") == 0 && strcmp(value, "12") == 0);
    st_close(st);
    st_close(NULL);
    unlink(TMP);
}

static void test_meta_numbers(void)
{
    Error err = {""};
    write_raw("{\"__metadata__\":{\"i\":\"12\",\"f\":\" 1.5 \",\"l\":\"0.5, "
              "1,-2e1\",\"bad\":\"12x\",\"nan\":\"nan\",\"none\":\"\"}}",
              0);
    Safetensors *st = st_open(TMP, &err);
    REQUIRE(st);
    int i = 0;
    double d = 0;
    float list[3] = {0};
    CHECK(st_meta_int(st, "i", 0, 12, &i, &err) == 0 && i == 12);
    CHECK(st_meta_int(st, "i", 0, 11, &i, &err) != 0 && strstr(err.message, "expected 0 to 11"));
    CHECK(st_meta_int(st, "f", 0, 11, &i, &err) != 0 && strstr(err.message, "whole number"));
    CHECK(st_meta_float(st, "f", 0, 2, &d, &err) == 0 && d == 1.5);
    CHECK(st_meta_float(st, "bad", 0, 20, &d, &err) != 0 && st_meta_float(st, "nan", 0, 20, &d, &err) != 0);
    CHECK(st_meta_float(st, "none", 0, 20, &d, &err) != 0 &&
          st_meta_float(st, "missing", 0, 20, &d, &err) != 0);
    CHECK(strstr(err.message, "has no missing"));
    CHECK(st_meta_floats(st, "l", 3, list, &err) == 0 && list[0] == 0.5f && list[1] == 1 && list[2] == -20);
    CHECK(st_meta_floats(st, "l", 2, list, &err) != 0 && st_meta_floats(st, "l", 4, list, &err) != 0);
    CHECK(st_meta_floats(st, "bad", 1, list, &err) != 0);
    st_close(st);
    unlink(TMP);
}

static void test_refuses(void)
{
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"{" T("a", "F32", "[2]", 0, 8) "}", 7, "outside"},
        {"{" T("a", "F32", "[2]", 0, 8) "}", 9, "follow the header"},
        {"{" T("a", "F32", "[2]", 4, 12) "}", 12, "no holes"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 2, 6) "}", 6, "no overlaps"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 0, 4) "}", 4, "no overlaps"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 6, 10) "}", 10, "no holes"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("a", "U8", "[4]", 4, 8) "}", 8, "twice"},
        {"{" T("a", "U8", "[4]", 4, 0) "}", 4, "outside"},
        {"{" T("a", "F32", "[3]", 0, 8) "}", 8, "need 12"},
        {"{" T("a", "F32", "[4294967296,4294967296]", 0, 8) "}", 8, "overflows"},
        {"{" T("a", "F32", "[9007199254740992,9007199254740992,0]", 0, 0) "}", 0, "overflows"},
        {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "9 dimensions"},
        {"{" T("a", "U8", "[-1]", 0, 1) "}", 1, "shape[0]"},
        {"{" T("a", "U8", "[1.5]", 0, 1) "}", 1, "shape[0]"},
        {"{" T("a", "U8", "[1e300]", 0, 1) "}", 1, "shape[0]"},
        {"{" T("a", "U8", "[\"1\"]", 0, 1) "}", 1, "shape[0]"},
        {"{" T("a", "F8_E4M3", "[1]", 0, 1) "}", 1, "F8_E4M3"},
        {"{" T("a\\u001b[2J", "U8", "[1]", 0, 1) "}", 1, "control characters"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "no dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "no shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, "data_offsets"},
        {"{\"a\":[]}", 0, "not an object"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
        {"[]", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"{", 0, "not a safetensors file"},
        {"{}", 3, "follow the header"},
        {"{\"a\":", 0, "JSON error"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        write_raw(cases[i].header, cases[i].n_data);
        Safetensors *st = st_open(TMP, &err);
        CHECK_MSG(!st && strstr(err.message, cases[i].says), "case %zu: %s, expected %s", i, err.message,
                  cases[i].says);
        CHECK_MSG(st || strstr(err.message, TMP) == err.message, "case %zu: %s does not begin with the path",
                  i, err.message);
        st_close(st);
    }
    Error err = {""};
    CHECK(file_write(TMP, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, &err) == 0 && !st_open(TMP, &err));
    CHECK(file_write(TMP, "1234567", 7, &err) == 0 && !st_open(TMP, &err));
    CHECK(file_write(TMP, "", 0, &err) == 0 && !st_open(TMP, &err));
    CHECK(!st_open("tests", &err) && strstr(err.message, "not a regular file"));
    unlink(TMP);
    CHECK(!st_open(TMP, &err) && strstr(err.message, "cannot open"));
}

/* ---- half precision --------------------------------------------------------------------------------*/

static float half_by_definition(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float value = exponent == 0    ? ldexpf((float)mantissa, -24)
                  : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                   : ldexpf((float)(1024 + mantissa), exponent - 25);
    return h & 0x8000 ? -value : value;
}

static void test_half(void)
{
    int wrong = 0;
    for (unsigned h = 0; h < 65536; h++) {
        float expected = half_by_definition((uint16_t)h), found = f16_to_f32((uint16_t)h);
        wrong += isnan(expected) ? !isnan(found) : memcmp(&expected, &found, 4) != 0;
        wrong += isnan(expected) ? (f32_to_f16(found) & 0x7fff) <= 0x7c00 : f32_to_f16(found) != h;
    }
    CHECK_MSG(wrong == 0, "%d wrong", wrong);
    uint16_t row[37]; /* whole rows run as vector code: the same as number by number */
    float converted[37];
    for (unsigned h = 0; h < 65536; h += 37) {
        for (unsigned i = 0; i < 37; i++)
            row[i] = (uint16_t)(h + i);
        f16_to_f32_row(converted, row, 37);
        for (unsigned i = 0; i < 37; i++) {
            float expected = f16_to_f32(row[i]);
            CHECK(memcmp(&expected, &converted[i], 4) == 0);
        }
    }
    /* between neighbours: the nearer one; in the middle the even one */
    for (unsigned h = 0; h < 0x7bff; h++) {
        float a = f16_to_f32((uint16_t)h), b = f16_to_f32((uint16_t)(h + 1)), middle = (a + b) / 2;
        wrong += f32_to_f16(middle) != (h & 1 ? h + 1 : h);
        wrong += f32_to_f16(nextafterf(middle, a)) != h ||
                 f32_to_f16(-nextafterf(middle, b)) != ((h + 1) | 0x8000);
    }
    CHECK_MSG(wrong == 0, "%d rounded wrong", wrong);
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(1e30f) == 0x7c00);
    CHECK(f32_to_f16(INFINITY) == 0x7c00 && f32_to_f16(-INFINITY) == 0xfc00 && f32_to_f16(1e-30f) == 0);
}

/* ---- st_f32 and writing ----------------------------------------------------------------------------*/

static void test_f32(void)
{
    static const float f32[3] = {1.5f, -2, 3e-20f};
    static const double f64[3] = {0.1, 1e300, -1};
    uint16_t f16[3] = {f32_to_f16(1.5f), f32_to_f16(-2), 1}, bf16[3] = {0x3fc0, 0xc000, 0x7f80};
    static const int32_t i32[3] = {1, 2, 3};
    const int64_t shape[1] = {3};
    Error err = {""};
    StWriter *w = st_writer_new();
    REQUIRE(w);
    CHECK(st_writer_add(w, "b", ST_BF16, 1, shape, bf16, &err) == 0);
    CHECK(st_writer_copy(w, "h", ST_F16, 1, shape, f16, &err) == 0);
    memset(f16, 0, sizeof f16); /* the writer has its own copy */
    CHECK(st_writer_add(w, "f", ST_F32, 1, shape, f32, &err) == 0);
    CHECK(st_writer_add(w, "d", ST_F64, 1, shape, f64, &err) == 0);
    CHECK(st_writer_add(w, "layer.3.i", ST_I32, 1, shape, i32, &err) == 0);
    CHECK(st_writer_meta(w, "key \"1\"", "line\n\xc3\xa9", &err) == 0);
    CHECK_MSG(st_writer_save(w, TMP, &err) == 0, "%s", err.message);
    st_writer_free(w);

    Safetensors *st = st_open(TMP, &err);
    REQUIRE(st);
    CHECK(strcmp(st_at(st, 0)->name, "d") == 0); /* widest first */
    for (size_t i = 0; i < st_count(st); i++)
        CHECK((uintptr_t)st_at(st, i)->data % st_dtype_size(st_at(st, i)->dtype) == 0);
    CHECK(strcmp(st_meta(st, "key \"1\""), "line\n\xc3\xa9") == 0);
    const float *f = st_f32(st, "f", 1, shape, &err), *h = st_f32(st, "h", 1, shape, &err);
    const float *b = st_f32(st, "b", 1, shape, &err), *d = st_f32(st, "d", 1, (int64_t[]){-1}, &err);
    REQUIRE(f && h && b && d);
    CHECK((const void *)f == st_find(st, "f")->data && memcmp(f, f32, sizeof f32) == 0);
    CHECK(h[0] == 1.5f && h[1] == -2 && h[2] == ldexpf(1, -24));
    CHECK(b[0] == 1.5f && b[1] == -2 && isinf(b[2]));
    CHECK(d[0] == (float)0.1f && isinf(d[1]) && d[2] == -1);
    CHECK(st_f32(st, "h", 1, shape, &err) == h); /* converted once */
    CHECK(!st_f32(st, "f", 2, (int64_t[]){3, 1}, &err));
    CHECK_MSG(strcmp(err.message, TMP ": tensor f has shape [3], expected [3,1]") == 0, "%s", err.message);
    CHECK(!st_f32(st, "f", 1, (int64_t[]){4}, &err) && !st_f32(st, "g", 1, (int64_t[]){-1}, &err));
    CHECK_MSG(strcmp(err.message, TMP ": tensor g is missing (expected shape [?])") == 0, "%s", err.message);
    CHECK(!st_weight(st, &err, 1, shape, "layer.%d.%s", 3, "i") &&
          strstr(err.message, "layer.3.i has dtype I32"));
    CHECK(st_weight(st, &err, 1, shape, "%c", 'f') == f);
    char hex[65], again[65];
    size_t n;
    uint8_t *bytes = file_read(TMP, 10000, &n, &err);
    REQUIRE(bytes);
    sha256(bytes, n, hex);
    st_sha256(st, again);
    CHECK(strcmp(hex, again) == 0);
    free(bytes);
    st_close(st);
    unlink(TMP);
}

/* F32 at an odd address (the format allows it) is copied, not read in place. */
static void test_unaligned(void)
{
    for (int pad = 0; pad < 4; pad++) {
        char header[256];
        Error err = {""};
        snprintf(header, sizeof header, "{%s}%.*s", T("f", "F32", "[2]", 0, 8), pad, "    ");
        write_raw(header, 8);
        Safetensors *st = st_open(TMP, &err);
        REQUIRE(st);
        const float *f = st_f32(st, "f", 1, (int64_t[]){2}, &err);
        REQUIRE(f);
        CHECK((uintptr_t)f % sizeof(float) == 0 && memcmp(f, st_find(st, "f")->data, 8) == 0);
        st_close(st);
    }
    unlink(TMP);
}

static void test_writer_refuses(void)
{
    Error err = {""};
    float x[2] = {0};
    StWriter *w = st_writer_new();
    REQUIRE(w);
    CHECK(st_writer_add(w, "a", ST_F32, 9, (int64_t[9]){0}, x, &err) != 0);
    CHECK(st_writer_add(w, "a", ST_F32, 1, (int64_t[]){-1}, x, &err) != 0);
    CHECK(st_writer_add(w, "a", ST_F32, 2, (int64_t[]){INT64_MAX, 4}, x, &err) != 0);
    CHECK(st_writer_add(w, "a", ST_N_DTYPES, 1, (int64_t[]){1}, x, &err) != 0);
    CHECK(st_writer_add(w, "__metadata__", ST_F32, 1, (int64_t[]){2}, x, &err) != 0);
    CHECK(st_writer_add(w, "a", ST_F32, 1, (int64_t[]){2}, x, &err) == 0);
    CHECK(st_writer_add(w, "a", ST_F32, 0, NULL, x, &err) == 0);
    CHECK(st_writer_save(w, TMP, &err) != 0 && strstr(err.message, "given twice"));
    CHECK(!file_exists(TMP));
    st_writer_free(w);
    w = st_writer_new();
    CHECK(st_writer_meta(w, "key", "once", &err) == 0 && st_writer_meta(w, "other", "once", &err) == 0);
    CHECK(st_writer_meta(w, "key", "again", &err) == 0);
    CHECK(st_writer_save(w, TMP, &err) != 0 && strstr(err.message, "key key was given twice"));
    CHECK(!file_exists(TMP));
    st_writer_free(w);
    w = st_writer_new(); /* an empty file is a file */
    CHECK(st_writer_save(w, TMP, &err) == 0);
    st_writer_free(w);
    Safetensors *st = st_open(TMP, &err);
    CHECK(st && st_count(st) == 0 && !st_find(st, "a"));
    st_close(st);
    unlink(TMP);
}

static void test_vit_tiny(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    char path[1024], hex[65];
    Error err = {""};
    snprintf(path, sizeof path, "%s/vit_tiny/vit_tiny_patch16_224.safetensors", test_data_dir());
    Safetensors *st = st_open(path, &err);
    REQUIRE(st);
    size_t n_parameters = 0;
    for (size_t i = 0; i < st_count(st); i++)
        n_parameters += st_at(st, i)->n_elements;
    CHECK(st_count(st) == 152 && n_parameters == 5717416);
    CHECK(st_weight(st, &err, 2, (int64_t[]){576, 192}, "blocks.%d.attn.qkv.weight", 11));
    st_sha256(st, hex);
    CHECK(strcmp(hex, "6ca131103f5672de649280980cfbf13fe3a9d941532492a5fe6f3b75b49f5c0c") == 0);
    st_close(st);
}

int main(void)
{
    RUN(test_read);
    RUN(test_meta_numbers);
    RUN(test_refuses);
    RUN(test_half);
    RUN(test_memory);
    RUN(test_f32);
    RUN(test_unaligned);
    RUN(test_writer_refuses);
    RUN(test_vit_tiny);
    return test_summary();
}
