/* test_amm.c - distances, maps, quantiles against make_golden_method.py. */
#include "../amm.h"

#include "method_golden.h"

static const AmmOptions AMM = {
    .align_pixel = 0, .large_object = 0.15f, .epsilon = 0.01f, .blur = 1, .score = SCORE_MAX};

/* The low-rank identity against the C×C inverse. */
static void test_mahalanobis(void)
{
    REQUIRE(golden_open("method_amm"));
    int n = GOLDEN_I32("mahalanobis")[0];
    CHECK(n >= 8);
    for (int c = 0; c < n; c++) {
        const StTensor *samples = golden_tensor("m%d.samples", c);
        int m = (int)samples->shape[0], C = (int)samples->shape[1];
        float *copy = malloc(samples->n_bytes), *d = malloc((size_t)C * sizeof *d);
        double *work = malloc(((size_t)m * (size_t)m + (size_t)m) * sizeof *work);
        memcpy(copy, samples->data, samples->n_bytes);
        float found =
            amm_mahalanobis(GOLDEN_F32("m%d.f", c), copy, m, C, GOLDEN_F32("m%d.epsilon", c)[0], d, work);
        CHECK_GOLDEN(&found, 1e-5, "m%d.distance", c);
        free(copy), free(d), free(work);
    }
}

static AmmQuery query(void)
{
    const StTensor *f = golden_tensor("q.features");
    return (AmmQuery){(int)golden_tensor("q.weights")->shape[0],
                      (int)f->shape[0],
                      (int)f->shape[1],
                      (int)f->shape[2],
                      f->data,
                      GOLDEN_F32("q.weights"),
                      GOLDEN_F32("q.centroids"),
                      GOLDEN_F32("q.areas")};
}

static void references(AmmReference r[3])
{
    for (int i = 0; i < 3; i++)
        r[i] = (AmmReference){GOLDEN_F32("r%d.features", i), GOLDEN_F32("r%d.centroids", i),
                              GOLDEN_F32("r%d.areas", i), GOLDEN_I32("r%d.match_q", i),
                              GOLDEN_F32("r%d.scale", i)};
}

static void check_map(const AmmOptions *options, const char *name)
{
    AmmQuery q = query();
    AmmReference r[3];
    float map[512];
    Error err;
    REQUIRE(q.grid_h * q.grid_w <= 512);
    references(r);
    REQUIRE(!amm_structural(map, &q, r, 3, options, &err));
    CHECK_GOLDEN(map, 1e-5, "map.%s", name);
}

static void test_structural(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmOptions pixel = AMM, large = AMM, plain = AMM, wide = AMM;
    pixel.align_pixel = 1, large.large_object = 1, plain.blur = 0, plain.epsilon = 1, wide.blur = 2.5f;
    check_map(&AMM, "object");
    check_map(&pixel, "pixel");
    check_map(&large, "large");
    check_map(&plain, "plain");
    check_map(&wide, "wide");
}

/* An object that matches nothing has no structural map: the logical one speaks of it. Without references all
 * is 0. */
static void test_unmatched(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    AmmOptions options = AMM;
    float map[512];
    int matches[3][8];
    Error err;
    references(r);
    options.blur = 0;
    for (int i = 0; i < 3; i++) {
        memcpy(matches[i], r[i].match_q, (size_t)q.n * sizeof(int));
        matches[i][1] = -1;
        r[i].match_q = matches[i];
    }
    REQUIRE(!amm_structural(map, &q, r, 3, &options, &err));
    CHECK_GOLDEN(map, 1e-5, "map.none");
    REQUIRE(!amm_structural(map, &q, r, 0, &options, &err));
    amm_normalise(map, &q, r, 0);
    for (int p = 0; p < q.grid_h * q.grid_w; p++)
        CHECK(map[p] == 0);
}

static void test_normalise_and_scores(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    int n_cells = q.grid_h * q.grid_w;
    float map[512], scratch[512], found[64];
    references(r);
    const float *base = GOLDEN_F32("map.object");
    memcpy(map, base, (size_t)n_cells * sizeof *map);
    amm_normalise(map, &q, r, 3);
    CHECK_GOLDEN(map, 1e-5, "map.normalised");
    static const float levels[] = {0.95f, 0.5f, 1};
    for (int i = 0; i < q.n; i++)
        for (int l = 0; l < 3; l++)
            found[3 * i + l] =
                amm_object_quantile(base, q.weights + i * n_cells, n_cells, levels[l], scratch);
    CHECK_GOLDEN(found, 1e-5, "quantiles");
    found[0] = amm_score(base, n_cells, SCORE_MAX, scratch);
    found[1] = amm_score(base, n_cells, SCORE_TOP1, scratch);
    CHECK_GOLDEN(found, 1e-6, "scores");
}

static void test_quantiles(void)
{
    static const double levels[] = {0, 0.001, 0.05, 0.5, 0.95, 0.999, 1};
    float sorted[37], found[37];
    REQUIRE(golden_open("method_amm"));
    const float *values = GOLDEN_F32("values");
    memcpy(sorted, values, sizeof sorted);
    AmmScale scale = amm_scale(sorted, 37, 0.05f);
    for (int i = 0; i < 7; i++)
        found[i] = quantile_sorted(sorted, 37, levels[i]);
    CHECK_GOLDEN(found, 1e-6, "values.quantiles");
    for (int i = 0; i < 37; i++)
        found[i] = amm_z(&scale, values[i]);
    CHECK_GOLDEN(found, 1e-6, "values.z");
    CHECK(quantile_sorted(sorted, 0, 0.5) == 0 && quantile_sorted(sorted, 1, 0.95) == sorted[0]);
    AmmScale flat = amm_scale((float[]){2, 2, 2}, 3, 0); /* no spread at all: large, but a number */
    CHECK(isfinite(amm_z(&flat, 2.5f)) && amm_z(&flat, 2) == 0);
}

/* A grid of one cell, an object without weight: nothing to divide by. */
static void test_one_cell(void)
{
    static const float features[2] = {1, 2}, weights[2] = {1, 0}, centroids[4] = {0.5f, 0.5f, 0.5f, 0.5f},
                       areas[2] = {1, 0}, scale[2] = {1, 1};
    static const int match_q[2] = {1, 0};
    AmmQuery q = {2, 1, 1, 2, features, weights, centroids, areas};
    AmmReference r = {features, centroids, areas, match_q, scale};
    AmmOptions options = AMM;
    float map[1], scratch[1];
    Error err;
    options.blur = 100;
    REQUIRE(!amm_structural(map, &q, &r, 1, &options, &err));
    CHECK(map[0] == 0);
    amm_normalise(map, &q, &r, 1);
    CHECK(map[0] == 0 && amm_score(map, 1, SCORE_TOP1, scratch) == 0 &&
          amm_score(map, 0, SCORE_MAX, scratch) == 0);
    CHECK(amm_object_quantile(map, weights + 1, 1, 0.95f, scratch) == 0);
}

int main(void)
{
    RUN(test_mahalanobis);
    RUN(test_structural);
    RUN(test_unmatched);
    RUN(test_normalise_and_scores);
    RUN(test_quantiles);
    RUN(test_one_cell);
    st_close(golden);
    return test_summary();
}
