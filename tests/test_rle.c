/* test_rle.c - compressed run lengths and areas against pycocotools (make_golden_rle.py). */
#include "io/rle.h"
#include "tests/test.h"

enum { LONGEST = 1 << 16 };

/* "3,1,20" -> rle->counts. 0 / -1. */
static int read_counts(Rle *rle, const char *text)
{
    rle->counts = malloc((strlen(text) + 1) * sizeof *rle->counts);
    rle->n_counts = 0;
    for (char *end; rle->counts && *text; text = *end ? end + 1 : end)
        rle->counts[rle->n_counts++] = (uint32_t)strtoul(text, &end, 10);
    return rle->counts ? 0 : -1;
}

/* Decoded and encoded again, the counts are the same. */
static void check_round_trip(const Rle *rle)
{
    Rle again;
    uint8_t *mask = malloc((size_t)rle->height * (size_t)rle->width);
    REQUIRE(mask);
    rle_decode(mask, rle);
    REQUIRE(rle_encode(&again, mask, rle->height, rle->width, NULL) == 0);
    CHECK(again.n_counts == rle->n_counts &&
          memcmp(again.counts, rle->counts, rle->n_counts * sizeof *rle->counts) == 0);
    rle_free(&again);
    free(mask);
}

static void check_line(const char *line, const char *counts, const char *expected)
{
    Rle rle;
    long long area;
    REQUIRE(sscanf(line, "%d %d %lld", &rle.height, &rle.width, &area) == 3);
    REQUIRE(read_counts(&rle, counts) == 0);
    char *text = rle_string(&rle);
    REQUIRE(text);
    CHECK_MSG(strcmp(text, expected) == 0, "%dx%d: %.60s, pycocotools %.60s", rle.width, rle.height, text,
              expected);
    CHECK(rle_area(&rle) == area);
    if (rle.height < 1000)
        check_round_trip(&rle);
    free(text);
    rle_free(&rle);
}

static void test_against_pycocotools(void)
{
    static char line[LONGEST], counts[LONGEST], expected[LONGEST];
    FILE *file = fopen("tests/golden/rle.txt", "r");
    int n = 0;
    REQUIRE(file);
    for (; fgets(line, sizeof line, file); n++) {
        REQUIRE(sscanf(line, "%*d %*d %*d %65535s %65535s", counts, expected) == 2);
        check_line(line, counts, expected);
    }
    CHECK_MSG(n > 20, "%d lines", n);
    fclose(file);
}

/* JSON escapes the backslash of some strings. */
static void test_json(void)
{
    uint32_t counts[] = {5, 44, 7};
    const Rle rle = {8, 7, counts, 3};
    JsonWriter w;
    json_begin(&w);
    rle_json_compressed(&rle, &w);
    CHECK_MSG(!w.failed && strcmp(w.text, "{\"size\":[8,7],\"counts\":\"5\\\\17\"}") == 0, "%s", w.text);
    json_end(&w);
}

int main(void)
{
    RUN(test_against_pycocotools);
    RUN(test_json);
    return test_summary();
}
