/* test_metrics.c - areas under ROC curves, of images and of pixels, against the count of all pairs
 * (make_golden_method.py). */
#include "eval/metrics.h"

#include "method_golden.h"

static double pixel_area(const float *map, const uint8_t *mask, size_t n)
{
    Error err;
    PixelMetrics m = {.pixels.auroc = -1};
    PixelScores *scores = pixel_scores_new(NULL, &err);
    Truth truth = {0};
    size_t half = n / 2; /* in two parts, because it streams */
    int status = scores ? 0 : -1;
    for (int part = 0; part < 2 && !status; part++) {
        int width = (int)(part ? n - half : half);
        status = truth_begin(&truth, width, 1, &err);
        if (!status && mask)
            status = truth_add_components(&truth, mask + (part ? half : 0), &err);
        if (!status)
            status = pixel_scores_add(scores, 0, map + (part ? half : 0), width, 1, &truth, "map", &err);
        truth_free(&truth);
    }
    if (!status)
        status = pixel_scores_measure(scores, 1, &m, &err);
    pixel_scores_free(scores);
    return m.pixels.auroc;
}

static void test_golden(void)
{
    Error err;
    REQUIRE(golden_open("method_metrics"));
    const StTensor *a = golden_tensor("negatives"), *b = golden_tensor("positives");
    float area = (float)auroc(a->data, a->n_elements, b->data, b->n_elements, &err);
    CHECK_GOLDEN(&area, 1e-7, "auroc");
    area = (float)pixel_area(GOLDEN_F32("pixels"), GOLDEN_U8("truth"), golden_tensor("pixels")->n_elements);
    CHECK_GOLDEN(&area, 1e-7, "pixel_auroc"); /* -0 and 0 are a tie */
}

static void test_corners(void)
{
    Error err;
    const float low[2] = {-1, -2}, high[3] = {1, 1, 3}, infinite[2] = {-INFINITY, INFINITY};
    CHECK(auroc(low, 2, high, 3, &err) == 1 && auroc(high, 3, low, 2, &err) == 0 &&
          auroc(high, 2, high, 2, &err) == 0.5);
    CHECK(isnan(auroc(low, 0, high, 3, &err)) && isnan(auroc(low, 2, high, 0, &err)));
    CHECK(auroc(infinite, 1, low, 2, &err) == 1 && auroc(infinite + 1, 1, low, 2, &err) == 0);
    const uint8_t truth[5] = {0, 0, 1, 1, 1};
    const float map[5] = {-1, -2, 1, 1, 3};
    CHECK(pixel_area(map, truth, 5) == 1 && isnan(pixel_area(map, NULL, 5)) &&
          isnan(pixel_area(map + 2, truth + 2, 3)));
}

/* A score that is not a number has no order: the area is not a number either, and nothing hangs. */
static void test_not_a_number(void)
{
    Error err;
    const float some[4] = {1, NAN, 2, 0}, fine[3] = {1, 2, 3};
    const uint8_t truth[4] = {0, 1, 1, 0};
    CHECK(isnan(auroc(some, 4, fine, 3, &err)) && isnan(auroc(fine, 3, some, 4, &err)));
    CHECK(pixel_area(some, truth, 4) == -1); /* refused, see test_pixels.c */
}

int main(void)
{
    RUN(test_golden);
    RUN(test_corners);
    RUN(test_not_a_number);
    st_close(golden);
    return test_summary();
}
