/* test_pixels.c - the streaming localization metrics against a plain computation of their definitions:
 * each distinct score is a threshold, and everything is counted anew. (test_mvtec.c compares with MVTec's
 * own scripts.) */
#include "eval/metrics.h"

#include "test.h"

enum { WIDTH = 23, HEIGHT = 17, PIXELS = WIDTH * HEIGHT, IMAGES = 7 };

typedef struct Image7 {
    float map[PIXELS];
    Truth truth;
    int group;
} Image7;

static uint32_t next_random(uint32_t *state)
{
    return *state = *state * 1664525u + 1013904223u;
}

/* Maps of `levels` distinct scores, some negative. Boxes are regions; the second of each pair overlaps the
 * first. */
static int make_images(Image7 *images, uint32_t seed, int levels, Error *err)
{
    for (int i = 0; i < IMAGES; i++) {
        Image7 *image = &images[i];
        image->group = i % 3;
        if (truth_begin(&image->truth, WIDTH, HEIGHT, err))
            return -1;
        for (int k = 0; image->group > 0 && k < 2; k++) {
            uint8_t mask[PIXELS] = {0};
            int x0 = (int)(next_random(&seed) >> 16) % 10, y0 = (int)(next_random(&seed) >> 16) % 8;
            for (int y = y0; y < y0 + 6; y++)
                for (int x = x0; x < x0 + 7; x++)
                    mask[y * WIDTH + x] = 1;
            if (truth_add_region(&image->truth, mask, k ? 42 : 15, err))
                return -1;
        }
        for (int p = 0; p < PIXELS; p++)
            image->map[p] = (float)((int)((next_random(&seed) >> 8) % (uint32_t)levels) - levels / 3 +
                                    (image->truth.anomalous[p] ? levels / 5 : 0)) /
                            8;
    }
    return 0;
}

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* One threshold: count the pixels and regions with score >= t from zero. */
typedef struct Counts {
    double fp, tp, negatives, positives, spro;
} Counts;

static Counts count_at(const Image7 *images, uint32_t groups, float t)
{
    Counts c = {0};
    double regions = 0;
    for (int i = 0; i < IMAGES; i++) {
        const Truth *truth = &images[i].truth;
        if (!(groups >> images[i].group & 1))
            continue;
        for (int p = 0; p < PIXELS; p++) {
            int positive = truth->anomalous[p], called = images[i].map[p] >= t;
            c.positives += positive, c.negatives += !positive;
            c.tp += positive && called, c.fp += !positive && called;
        }
        for (size_t r = 0; r < truth->n_regions; r++) {
            double found = 0;
            for (size_t m = 0; m < truth->n_marks; m++)
                found += truth->marks[m].region == r && images[i].map[truth->marks[m].pixel] >= t;
            c.spro += fmin(found / truth->saturation[r], 1);
            regions++;
        }
    }
    c.spro = regions > 0 ? c.spro / regions : NAN;
    return c;
}

static double area_to(const double *x, const double *y, int n, double limit)
{
    double area = 0;
    for (int i = 1; i < n && x[i - 1] < limit; i++) {
        double end = fmin(x[i], limit), height = y[i];
        if (x[i] > limit)
            height = y[i - 1] + (y[i] - y[i - 1]) * (limit - x[i - 1]) / (x[i] - x[i - 1]);
        area += (end - x[i - 1]) * (height + y[i - 1]) / 2;
    }
    return area / limit;
}

static PixelMetrics plain(const Image7 *images, uint32_t groups)
{
    static float scores[IMAGES * PIXELS];
    static double fpr[IMAGES * PIXELS + 1], tpr[IMAGES * PIXELS + 1], spro[IMAGES * PIXELS + 1];
    int n = 0, points = 1;
    PixelMetrics m = {0};
    for (int i = 0; i < IMAGES; i++)
        if (groups >> images[i].group & 1) {
            memcpy(scores + n, images[i].map, sizeof images[i].map);
            n += PIXELS;
            m.n_images++, m.n_regions += images[i].truth.n_regions;
        }
    qsort(scores, (size_t)n, sizeof *scores, descending);
    fpr[0] = tpr[0] = spro[0] = 0;
    for (int i = 0; i < n; i++) {
        if (i && scores[i] == scores[i - 1])
            continue;
        Counts c = count_at(images, groups, scores[i]);
        m.pixels.n_negative = (uint64_t)c.negatives, m.pixels.n_positive = (uint64_t)c.positives;
        fpr[points] = c.fp / c.negatives, tpr[points] = c.tp / c.positives, spro[points] = c.spro;
        m.pixels.average_precision += (tpr[points] - tpr[points - 1]) * c.tp / (c.tp + c.fp);
        double f1 = 2 * c.tp / (c.tp + c.fp + c.positives);
        if (f1 > m.pixels.best_f1)
            m.pixels.best_f1 = f1, m.pixels.best_f1_threshold = scores[i];
        points++;
    }
    m.pixels.auroc = area_to(fpr, tpr, points, 1);
    for (int i = 0; i < SPRO_LIMITS; i++)
        m.au_spro[i] = area_to(fpr, spro, points, spro_limits[i]);
    return m;
}

static int close_to(double a, double b)
{
    return fabs(a - b) <= 1e-12;
}

static int same(const PixelMetrics *a, const PixelMetrics *b)
{
    int equal = a->n_images == b->n_images && a->n_regions == b->n_regions &&
                a->pixels.n_negative == b->pixels.n_negative &&
                a->pixels.n_positive == b->pixels.n_positive && close_to(a->pixels.auroc, b->pixels.auroc) &&
                close_to(a->pixels.average_precision, b->pixels.average_precision) &&
                close_to(a->pixels.best_f1, b->pixels.best_f1) &&
                a->pixels.best_f1_threshold == b->pixels.best_f1_threshold;
    for (int i = 0; i < SPRO_LIMITS; i++)
        equal = equal && close_to(a->au_spro[i], b->au_spro[i]);
    return equal;
}

static int add_all(PixelScores *scores, const Image7 *images, Error *err)
{
    for (int i = 0; i < IMAGES; i++)
        if (pixel_scores_add(scores, images[i].group, images[i].map, WIDTH, HEIGHT,
                             images[i].group ? &images[i].truth : NULL, "map", err))
            return -1;
    return 0;
}

/* Many and few distinct scores (ties across images, classes and regions), every subset of groups. */
static void test_against_plain(void)
{
    static Image7 images[IMAGES];
    const int levels[4] = {100000, 60, 7, 2};
    Error err;
    for (uint32_t trial = 0; trial < 4; trial++) {
        REQUIRE(make_images(images, 17 + trial, levels[trial], &err) == 0);
        PixelScores *scores = pixel_scores_new(NULL, &err);
        REQUIRE(scores && add_all(scores, images, &err) == 0);
        const uint32_t subsets[3] = {7, 3, 5};
        for (int k = 0; k < 3; k++) {
            PixelMetrics got, want = plain(images, subsets[k]);
            REQUIRE(pixel_scores_measure(scores, subsets[k], &got, &err) == 0);
            CHECK_MSG(same(&got, &want),
                      "trial %u, groups %u: AUROC %.15g %.15g, AP %.15g %.15g, F1 at %g %g, sPRO %.15g %.15g",
                      trial, subsets[k], got.pixels.auroc, want.pixels.auroc, got.pixels.average_precision,
                      want.pixels.average_precision, (double)got.pixels.best_f1_threshold,
                      (double)want.pixels.best_f1_threshold, got.au_spro[1], want.au_spro[1]);
        }
        pixel_scores_free(scores);
        for (int i = 0; i < IMAGES; i++)
            truth_free(&images[i].truth);
    }
}

/* A reader's buffer holds fewer than 40,000 normal pixels when there are many readers: the refills must
 * join. */
static void test_refill(void)
{
    enum { SIDE = 200, MAPS = 150 };
    static float map[SIDE * SIDE];
    static uint8_t mask[SIDE * SIDE];
    Error err;
    uint32_t seed = 5;
    PixelScores *scores = pixel_scores_new(NULL, &err);
    REQUIRE(scores);
    Truth truth;
    REQUIRE(truth_begin(&truth, SIDE, SIDE, &err) == 0);
    for (int p = 0; p < 20000; p++)
        mask[p] = 1;
    REQUIRE(truth_add_components(&truth, mask, &err) == 0 && truth.n_regions == 1 &&
            truth.saturation[0] == 20000);
    for (int i = 0; i < MAPS; i++) {
        for (int p = 0; p < SIDE * SIDE; p++)
            map[p] = (float)(next_random(&seed) >> 8) / 16777216.0f;
        map[SIDE * SIDE - 1] = 2; /* one normal pixel above all, in each image */
        for (int p = 0; p < 20000; p++)
            map[p] += i < 75 ? 3 : -3;
        REQUIRE(pixel_scores_add(scores, 0, map, SIDE, SIDE, &truth, "map", &err) == 0);
    }
    PixelMetrics m;
    REQUIRE(pixel_scores_measure(scores, 1, &m, &err) == 0);
    CHECK(m.n_images == MAPS && m.n_regions == MAPS && m.pixels.n_negative == 150 * 20000);
    CHECK(close_to(m.pixels.auroc, 0.5)); /* half of the anomalous above all, half below all */
    for (int i = 0; i < SPRO_LIMITS - 1; i++)
        CHECK_MSG(close_to(m.au_spro[i], 0.5), "%.17g", m.au_spro[i]);
    CHECK(m.pixels.best_f1 == (double)(2.0 / 3)); /* 1.5 of 3 M found without a false one */
    pixel_scores_free(scores);
    truth_free(&truth);
}

static void test_degenerate(void)
{
    Error err;
    PixelMetrics m;
    const float map[4] = {1, 1, 1, 1}, ends[4] = {-INFINITY, -0.0f, 0, INFINITY};
    Truth truth, all;
    REQUIRE(truth_begin(&truth, 2, 2, &err) == 0 && truth_begin(&all, 2, 2, &err) == 0);
    REQUIRE(truth_add_components(&truth, (const uint8_t[4]){0, 0, 0, 9}, &err) == 0);
    REQUIRE(truth_add_components(&all, (const uint8_t[4]){1, 1, 1, 1}, &err) == 0);
    PixelScores *scores = pixel_scores_new(NULL, &err);
    REQUIRE(scores);
    REQUIRE(pixel_scores_measure(scores, ~0u, &m, &err) == 0); /* no image at all */
    CHECK(m.n_images == 0 && isnan(m.pixels.auroc) && isnan(m.au_spro[0]));
    REQUIRE(pixel_scores_add(scores, 0, map, 2, 2, NULL, "good", &err) == 0);
    REQUIRE(pixel_scores_add(scores, 1, map, 2, 2, &truth, "constant", &err) == 0);
    REQUIRE(pixel_scores_add(scores, 2, ends, 2, 2, &truth, "ends", &err) == 0);
    REQUIRE(pixel_scores_add(scores, 3, map, 2, 2, &all, "all", &err) == 0);
    REQUIRE(pixel_scores_measure(scores, 1, &m, &err) == 0); /* no anomaly */
    CHECK(m.n_regions == 0 && isnan(m.pixels.auroc) && isnan(m.pixels.average_precision) &&
          isnan(m.pixels.best_f1) && isnan(m.au_spro[3]));
    REQUIRE(pixel_scores_measure(scores, 2, &m, &err) == 0); /* one score: the curve is the diagonal */
    CHECK(m.pixels.auroc == 0.5 && close_to(m.au_spro[1], 0.025) && close_to(m.au_spro[4], 0.5));
    CHECK(m.pixels.average_precision == 0.25 && m.pixels.best_f1_threshold == 1);
    REQUIRE(pixel_scores_measure(scores, 4, &m, &err) == 0);
    CHECK(m.pixels.auroc == 1 && m.pixels.best_f1 == 1 && m.pixels.best_f1_threshold == INFINITY);
    CHECK(m.au_spro[0] == 1 && m.au_spro[4] == 1);
    REQUIRE(pixel_scores_measure(scores, 8, &m, &err) == 0); /* no normal pixel */
    CHECK(isnan(m.pixels.auroc) && isnan(m.au_spro[3]) && m.pixels.average_precision == 1);
    pixel_scores_free(scores);
    pixel_scores_free(NULL);
    truth_free(&truth), truth_free(&all);
}

static void test_refused(void)
{
    Error err = {""};
    float map[6] = {0, 1, 2, 3, NAN, 5};
    Truth truth;
    REQUIRE(truth_begin(&truth, 2, 3, &err) == 0);
    PixelScores *scores = pixel_scores_new(NULL, &err);
    REQUIRE(scores);
    CHECK(pixel_scores_add(scores, 0, map, 3, 2, NULL, "a.tiff", &err) < 0 && strstr(err.message, "a.tiff") &&
          strstr(err.message, "x 1, y 1") && strstr(err.message, "not a number"));
    map[4] = 0;
    CHECK(pixel_scores_add(scores, 0, map, 3, 2, &truth, "b.tiff", &err) < 0 &&
          strstr(err.message, "b.tiff") && strstr(err.message, "3x2") && strstr(err.message, "2x3"));
    CHECK(pixel_scores_add(scores, PIXEL_GROUPS, map, 3, 2, NULL, "c", &err) < 0);
    CHECK(pixel_scores_new("/nonexistent/folder", &err) == NULL &&
          strstr(err.message, "/nonexistent/folder"));
    RankMetrics m;
    CHECK(rank_metrics(map, 2, (float[2]){1, NAN}, 2, &m, &err) < 0 &&
          strstr(err.message, "anomalous image 1 is not a number"));
    pixel_scores_free(scores);
    truth_free(&truth);
}

/* Diagonal neighbours are one component. A ring's inside is not part of it. The border does not wrap
 * round. */
static void test_components(void)
{
    Error err;
    Truth truth;
    static const char picture[6][9] = {
        "#..###.#", ".#.#.#..", "...###..", "#.......", "#......#", "........",
    };
    uint8_t mask[48];
    for (int p = 0; p < 48; p++)
        mask[p] = picture[p / 8][p % 8] == '#' ? 200 : 0;
    REQUIRE(truth_begin(&truth, 8, 6, &err) == 0 && truth_add_components(&truth, mask, &err) == 0);
    CHECK(truth.n_regions == 5 && truth.n_anomalous == 14 && truth.n_marks == 14);
    const uint32_t areas[5] = {2, 8, 1, 2, 1};
    for (size_t r = 0; r < truth.n_regions && r < 5; r++)
        CHECK(truth.saturation[r] == areas[r]);
    truth_free(&truth);
    CHECK(truth_begin(&truth, 0, 6, &err) < 0 && truth_begin(&truth, 1 << 20, 1 << 20, &err) < 0);
}

static void test_saturation(void)
{
    const Defect absolute = {"a", 0, 100}, part = {"b", 1, 0.29}, tiny = {"c", 1, 0.01};
    CHECK(defect_saturation(&absolute, 99) == 99 && defect_saturation(&absolute, 101) == 100);
    CHECK(defect_saturation(&part, 100) ==
          28); /* 0.29 x 100 is below 29 in binary, and the scripts truncate */
    CHECK(defect_saturation(&tiny, 99) == 1 && defect_saturation(&tiny, 250) == 2);
}

int main(void)
{
    RUN(test_against_plain);
    RUN(test_refill);
    RUN(test_degenerate);
    RUN(test_refused);
    RUN(test_components);
    RUN(test_saturation);
    return test_summary();
}
