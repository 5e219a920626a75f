/* test_report.c - overlays and words from results that are made here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/image.h"
#include "io/json.h"
#include "report/report.h"
#include "test.h"

#define SIDE           600 /* is not enlarged, and has a unit of 1 */
#define PLATE(letters) ((12 * (letters) + 4) * 18)
#define TMP            "test_report.tmp.png"

static const uint8_t GREY = 128;

/* A grey picture without labels, and a result without anything in it. */
typedef struct Report {
    uint8_t *rgb;
    float map[2 * 2], logical[2 * 2];
    SamladObject objects[8];
    SamladResult r;
} Report;

static int picture_new(Report *p, int side)
{
    const size_t n = (size_t)side * (size_t)side;
    *p = (Report){.rgb = malloc(3 * n)};
    p->r = (SamladResult){.width = side,
                          .height = side,
                          .grid_w = 2,
                          .grid_h = 2,
                          .objects = p->objects,
                          .labels = malloc(n * sizeof(int32_t)),
                          .map = p->map,
                          .structural_map = p->map,
                          .logical_map = p->logical};
    if (!p->rgb || !p->r.labels)
        return -1;
    memset(p->rgb, GREY, 3 * n);
    memset(p->r.labels, 0xff, n * sizeof(int32_t));
    return 0;
}

static void picture_free(Report *p)
{
    free(p->rgb), free(p->r.labels);
}

/* How many pixels of the overlay are drawn: not grey. -1: no overlay of the expected size. */
static long drawn(const Report *p)
{
    Error err;
    int width, height;
    long n = 0;
    if (report_overlay(TMP, &p->r, p->rgb, &err))
        return -1;
    uint8_t *rgb = image_read_rgb8(TMP, &width, &height, &err);
    unlink(TMP);
    if (!rgb || width != p->r.width || height != p->r.height)
        n = -1;
    for (long i = 0; n >= 0 && i < (long)width * height; i++)
        n += rgb[3 * i] != GREY || rgb[3 * i + 1] != GREY || rgb[3 * i + 2] != GREY;
    free(rgb);
    return n;
}

static void add_object(Report *p, SamladVerdict verdict, float x, float y)
{
    p->objects[p->r.n_objects++] =
        (SamladObject){.box = {x, y, 40, 40}, .damage_at = {x, y}, .verdict = verdict};
}

/* Plates of letters never overlap while there is room, for any places of their objects. */
static void test_labels_stand_apart(void)
{
    static const float places[][2] = {{300, 300}, {0, 0}, {590, 590}, {590, 0}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        Report p;
        REQUIRE(!picture_new(&p, SIDE));
        for (int n = 1; n <= 8; n++) {
            add_object(&p, VERDICT_EXTRA, places[i][0], places[i][1]);
            CHECK_MSG(drawn(&p) == (long)n * PLATE(5), "%d labels at (%g, %g): %ld pixels", n,
                      (double)places[i][0], (double)places[i][1], drawn(&p));
        }
        picture_free(&p);
    }
}

/* Damage to several objects in one place gets one ring, and its letters do not cover it. */
static void test_one_ring_a_place(void)
{
    Report p;
    REQUIRE(!picture_new(&p, SIDE));
    add_object(&p, VERDICT_DAMAGED, 300, 300);
    const long one = drawn(&p), ring = one - PLATE(7);
    CHECK(ring > 2 * 14 * 3 && ring < 7 * 14 * 3); /* a circumference of some 2.5 pixels */
    add_object(&p, VERDICT_DAMAGED, 305, 296);
    CHECK(drawn(&p) == one);
    add_object(&p, VERDICT_DAMAGED, 300, 360);
    CHECK(drawn(&p) == 2 * one);
    picture_free(&p);
}

/* Lines and letters grow with the picture. */
static void test_large(void)
{
    Report p;
    REQUIRE(!picture_new(&p, 4 * 512));
    add_object(&p, VERDICT_EXTRA, 900, 900);
    CHECK(drawn(&p) == 16L * PLATE(5));
    picture_free(&p);
}

static void test_outlines(void)
{
    enum { A = 50 };
    static const struct {
        SamladVerdict verdict;
        int reach;
    } cases[] = {{VERDICT_NORMAL, 1}, {VERDICT_EXTRA, 3}};
    for (int i = 0; i < 2; i++) {
        Report p;
        const int side = A - 2 * cases[i].reach;
        REQUIRE(!picture_new(&p, SIDE));
        add_object(&p, cases[i].verdict, 300, 300);
        for (int y = 300; y < 300 + A; y++)
            for (int x = 300; x < 300 + A; x++)
                p.r.labels[y * SIDE + x] = 0;
        const long letters = cases[i].verdict == VERDICT_EXTRA ? PLATE(5) : 0;
        CHECK_MSG(drawn(&p) == A * A - side * side + letters, "%ld", drawn(&p));
        picture_free(&p);
    }
}

/* An anomalous image without a reason: the suspected place is shown in the picture, in words, in JSON. */
static void test_doubt(void)
{
    Report p;
    Error err;
    JsonWriter w;
    REQUIRE(!picture_new(&p, SIDE));
    p.map[1] = 3, p.logical[2] = 0.25f;
    p.r.structural_z = 2, p.r.logical_z = 1;
    add_object(&p, VERDICT_NORMAL, 0, 0);
    static const struct {
        int anomalous;
        float logical_z, layout_z;
        const char *kind;
        double x, y;
    } cases[] = {{1, 1, 0, "structural", 450, 150},
                 {1, 3, 1, "logical", 150, 450},
                 {1, 3, 2, "layout", 150, 300},
                 {1, 1, 1, "structural", 450, 150},
                 {0, 3, 0, NULL, 0, 0}};
    p.objects[0].centroid[0] = 0.25f, p.objects[0].centroid[1] = 0.5f;
    for (int i = 0; i < 5; i++) {
        p.r.anomalous = cases[i].anomalous;
        p.r.logical_z = cases[i].logical_z, p.r.layout_z = cases[i].layout_z;
        json_begin(&w);
        report_json(&w, NULL, &p.r, "image.png");
        const Json *json = json_parse(w.text, w.length, "the report", &err),
                   *doubt = json ? json_get(json, "doubt") : NULL;
        REQUIRE(doubt != NULL);
        CHECK((doubt->type == JSON_NULL) == !cases[i].kind);
        CHECK((drawn(&p) > PLATE(5)) == (cases[i].kind != NULL));
        CHECK(report_text(stdout, NULL, &p.r) == (cases[i].kind != NULL));
        if (cases[i].kind) {
            const Json *at = json_get(doubt, "at"), *kind = json_get(doubt, "kind");
            CHECK(kind && strcmp(kind->string, cases[i].kind) == 0);
            CHECK(at && at->n == 2 && at->children[0].number == cases[i].x &&
                  at->children[1].number == cases[i].y);
        }
        json_free(json);
        json_end(&w);
    }
    p.r.anomalous = 1;
    p.objects[0].verdict = VERDICT_EXTRA; /* a reason: no doubt */
    CHECK(report_text(stdout, NULL, &p.r) == 1);
    picture_free(&p);
}

int main(void)
{
    RUN(test_labels_stand_apart);
    RUN(test_one_ring_a_place);
    RUN(test_large);
    RUN(test_outlines);
    RUN(test_doubt);
    return test_summary();
}
