/* test_amm.c - distances, maps, quantiles against make_golden_method.py. */
#include "amm.h"

#include "method_golden.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static const AmmOptions AMM = {
    .align_pixel = 0, .large_object = 0.15f, .epsilon = 0.01f, .blur = 1, .score = SCORE_MAX};

/* Room for k samples of `channels` floats; free(memory). */
static AmmWork make_work(int k, int channels, void **memory)
{
    AmmWork work;
    Arena arena = {0};
    amm_work(&work, &arena, k, channels);
    *memory = aligned_array(arena.used, 1);
    arena = (Arena){*memory, arena.used, 0};
    amm_work(&work, &arena, k, channels);
    return work;
}

/* samples [m][C] and f [C] go into the rows, padded with zeros. */
static float distance(const AmmWork *work, const float *samples, const float *f, int m, int C, float epsilon)
{
    for (int r = 0; r <= m; r++) {
        float *row = work->rows + (size_t)r * work->stride;
        memset(row, 0, work->stride * sizeof *row);
        memcpy(row, r < m ? samples + (size_t)r * (size_t)C : f, (size_t)C * sizeof *row);
    }
    return amm_mahalanobis(work, m, epsilon);
}

/* The low-rank identity against the C×C inverse. */
static void test_mahalanobis(void)
{
    REQUIRE(golden_open("method_amm"));
    int n = GOLDEN_I32("mahalanobis")[0];
    CHECK(n >= 8);
    for (int c = 0; c < n; c++) {
        const StTensor *samples = golden_tensor("m%d.samples", c);
        int m = (int)samples->shape[0], C = (int)samples->shape[1];
        void *memory;
        AmmWork work = make_work(m, C, &memory);
        REQUIRE(memory);
        float found =
            distance(&work, samples->data, GOLDEN_F32("m%d.f", c), m, C, GOLDEN_F32("m%d.epsilon", c)[0]);
        CHECK_GOLDEN(&found, 1e-5, "m%d.distance", c);
        free(memory);
    }
}

/* The same identity one sum after the other, in double: the truth for the kernel. `most` samples at most. */
enum { MOST_SAMPLES = 11, MOST_CHANNELS = 400 };

static double plain_mahalanobis(const float *f, const float *samples, int m, int C, double epsilon)
{
    static double x[MOST_SAMPLES][MOST_CHANNELS], d[MOST_CHANNELS], a[MOST_SAMPLES][MOST_SAMPLES + 1];
    for (int c = 0; c < C; c++) {
        double mean = 0;
        for (int r = 0; r < m; r++)
            mean += samples[r * C + c] / (double)m;
        for (int r = 0; r < m; r++)
            x[r][c] = samples[r * C + c] - mean;
        d[c] = f[c] - mean;
    }
    for (int r = 0; r < m; r++) /* a = [eps(m-1)I + XX', Xd] */
        for (int s = 0; s <= m; s++) {
            a[r][s] = r == s ? epsilon * (m - 1) : 0;
            for (int c = 0; c < C; c++)
                a[r][s] += x[r][c] * (s < m ? x[s][c] : d[c]);
        }
    double squared = 0;
    for (int c = 0; c < C; c++)
        squared += d[c] * d[c];
    for (int p = 0; p < m && m > 1; p++) /* elimination: each pivot takes its part of |d|^2 away */
        for (int r = p + 1; r <= m; r++) {
            double factor = (r < m ? a[r][p] : a[p][m]) / a[p][p];
            if (r == m)
                squared -= factor * a[p][m];
            for (int s = p; s <= m && r < m; s++)
                a[r][s] -= factor * a[p][s];
        }
    return sqrt(squared / epsilon);
}

/* All numbers of samples around a group of rows, channels that fill no vector, and samples that lie far
 * beside the vector measured, where a Gram matrix without centring would lose its digits. */
static void test_kernel(void)
{
    static const int channels[] = {1, 3, 16, 17, 64, 83, 384};
    static float samples[MOST_SAMPLES * MOST_CHANNELS], f[MOST_CHANNELS];
    unsigned seed = 1;
    for (int m = 1; m <= MOST_SAMPLES; m++)
        for (int i = 0; i < 7; i++)
            for (int offset = 0; offset <= 10; offset += 10) {
                int C = channels[i];
                for (int j = 0; j < (m + 1) * C; j++) {
                    seed = seed * 1664525u + 1013904223u;
                    float value = (float)(seed >> 8) / (1 << 23) - 1;
                    *(j < C ? f + j : samples + j - C) = value + (float)offset;
                }
                void *memory;
                AmmWork work = make_work(m, C, &memory);
                REQUIRE(memory);
                double found = distance(&work, samples, f, m, C, 0.01f);
                double expected = plain_mahalanobis(f, samples, m, C, 0.01f);
                CHECK_MSG(fabs(found - expected) <= 1e-5 * expected,
                          "%d samples of %d channels: %.9g, not %.9g", m, C, found, expected);
                free(memory);
            }
}

static const float ONES[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

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
                      GOLDEN_F32("q.areas"),
                      ONES,
                      NULL};
}

static void references(AmmReference r[3])
{
    for (int i = 0; i < 3; i++)
        r[i] = (AmmReference){golden_tensor("r%d.features", i)->data,
                              GOLDEN_F32("r%d.centroids", i),
                              GOLDEN_F32("r%d.areas", i),
                              GOLDEN_I32("r%d.match_q", i),
                              (int)golden_tensor("r%d.weights", i)->shape[0],
                              GOLDEN_F32("r%d.weights", i),
                              GOLDEN_F32("r%d.scale", i)};
}

/* Object 1 matches nowhere. matches [3][16] takes the changed lists. */
static void without_match(AmmReference r[3], int matches[3][16], int n)
{
    for (int i = 0; i < 3; i++) {
        memcpy(matches[i], r[i].match_q, (size_t)n * sizeof(int));
        matches[i][1] = -1;
        r[i].match_q = matches[i];
    }
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

/* An object's place is searched; one without a match is compared with what lies at its place. */
static void test_registered(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    AmmOptions near = AMM, far = AMM, same = AMM;
    int matches[3][16];
    float map[512];
    Error err;
    references(r);
    without_match(r, matches, q.n);
    near.register_reach = 1;
    far.register_reach = 3, far.register_unmatched = 1;
    same.align_pixel = 1, same.register_unmatched = 1,
    same.register_reach = 3; /* pixel: nothing is searched */
    REQUIRE(!amm_structural(map, &q, r, 3, &near, &err));
    CHECK_GOLDEN(map, 1e-5, "map.registered");
    REQUIRE(!amm_structural(map, &q, r, 3, &far, &err));
    CHECK_GOLDEN(map, 1e-5, "map.searched");
    REQUIRE(!amm_structural(map, &q, r, 3, &same, &err));
    CHECK_GOLDEN(map, 1e-5, "map.same");
}

/* Cells that the references' masks expect of an object, and the query's mask does not have, are its own. */
static void test_claims(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    float map[512], claimed[8 * 512];
    int n_cells = q.grid_h * q.grid_w, moved = 0;
    Error err;
    REQUIRE(q.n <= 8 && n_cells <= 512);
    references(r);
    q.weights = GOLDEN_F32("broken.weights");
    q.claimed = claimed;
    REQUIRE(!amm_structural(map, &q, r, 3, &AMM, &err));
    CHECK_GOLDEN(claimed, 1e-5, "broken.claimed");
    CHECK_GOLDEN(map, 1e-5, "map.claims");
    REQUIRE(!amm_normalise(map, &q, r, 3, &err));
    CHECK_GOLDEN(map, 1e-5, "map.claims.normalised");
    for (int p = 0; p < n_cells; p++) {
        float before = 0, after = 0;
        for (int i = 0; i < q.n; i++)
            before += q.weights[i * n_cells + p], after += claimed[i * n_cells + p];
        CHECK(fabsf(before - after) < 1e-5f);
        moved += claimed[p] > q.weights[p] + 0.5f;
    }
    CHECK_MSG(moved >= 2, "object 0 got %d cells back", moved);
    REQUIRE(!amm_structural(map, &q, r, 0, &AMM, &err)); /* nothing to go by: the masks stay */
    CHECK(memcmp(claimed, q.weights, (size_t)(q.n * n_cells) * sizeof *claimed) == 0);
}

/* Features in other units, channel by channel, and the scale that undoes them: the same map. Powers of two,
 * so that float16 loses nothing. */
static void test_scale(void)
{
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    float map[512], scale[64], *scaled = NULL;
    uint16_t *halves[3];
    size_t n = (size_t)(q.grid_h * q.grid_w * q.channels);
    Error err;
    REQUIRE(q.channels <= 64);
    references(r);
    for (int c = 0; c < q.channels; c++)
        scale[c] = ldexpf(1, c % 5 - 2);
    REQUIRE(scaled = malloc(n * sizeof *scaled));
    for (size_t p = 0; p < n; p++)
        scaled[p] = q.features[p] / scale[p % (size_t)q.channels];
    for (int i = 0; i < 3; i++) {
        REQUIRE(halves[i] = malloc(n * sizeof(uint16_t)));
        for (size_t p = 0; p < n; p++)
            halves[i][p] = f32_to_f16(f16_to_f32(r[i].features[p]) / scale[p % (size_t)q.channels]);
        r[i].features = halves[i];
    }
    q.features = scaled;
    q.scale = scale;
    REQUIRE(!amm_structural(map, &q, r, 3, &AMM, &err));
    CHECK_GOLDEN(map, 1e-5, "map.object");
    for (int i = 0; i < 3; i++)
        free(halves[i]);
    free(scaled);
}

/* The same bits for any number of threads. */
static void test_threads(void)
{
#ifdef _OPENMP
    REQUIRE(golden_open("method_amm"));
    AmmQuery q = query();
    AmmReference r[3];
    float one[512], many[512];
    int before = omp_get_max_threads();
    Error err;
    references(r);
    omp_set_num_threads(1);
    REQUIRE(!amm_structural(one, &q, r, 3, &AMM, &err));
    omp_set_num_threads(3);
    REQUIRE(!amm_structural(many, &q, r, 3, &AMM, &err));
    omp_set_num_threads(before);
    CHECK(memcmp(one, many, (size_t)(q.grid_h * q.grid_w) * sizeof *one) == 0);
#else
    SKIP("built without OpenMP");
#endif
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
    int matches[3][16];
    Error err;
    references(r);
    options.blur = 0;
    without_match(r, matches, q.n);
    REQUIRE(!amm_structural(map, &q, r, 3, &options, &err));
    CHECK_GOLDEN(map, 1e-5, "map.none");
    REQUIRE(!amm_structural(map, &q, r, 0, &options, &err));
    REQUIRE(!amm_normalise(map, &q, r, 0, &err));
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
    int matches[3][16];
    Error err;
    references(r);
    const float *base = GOLDEN_F32("map.object");
    memcpy(map, base, (size_t)n_cells * sizeof *map);
    REQUIRE(!amm_normalise(map, &q, r, 3, &err));
    CHECK_GOLDEN(map, 1e-5, "map.normalised");
    memcpy(map, base, (size_t)n_cells * sizeof *map);
    without_match(r, matches, q.n);
    REQUIRE(!amm_normalise(map, &q, r, 3, &err));
    CHECK_GOLDEN(map, 1e-5, "map.normalised.none");
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
    AmmQuery q = {2, 1, 1, 2, features, weights, centroids, areas, ONES, NULL};
    static const uint16_t halves[2] = {0x3c00, 0x4000}; /* 1, 2 */
    AmmReference r = {halves, centroids, areas, match_q, 2, weights, scale};
    AmmOptions options = AMM;
    float map[1], scratch[1];
    Error err;
    options.blur = 100;
    REQUIRE(!amm_structural(map, &q, &r, 1, &options, &err));
    CHECK(map[0] == 0);
    REQUIRE(!amm_normalise(map, &q, &r, 1, &err));
    CHECK(map[0] == 0 && amm_score(map, 1, SCORE_TOP1, scratch) == 0 &&
          amm_score(map, 0, SCORE_MAX, scratch) == 0);
    CHECK(amm_object_quantile(map, weights + 1, 1, 0.95f, scratch) == 0);
}

int main(void)
{
    RUN(test_mahalanobis);
    RUN(test_kernel);
    RUN(test_structural);
    RUN(test_registered);
    RUN(test_claims);
    RUN(test_scale);
    RUN(test_threads);
    RUN(test_unmatched);
    RUN(test_normalise_and_scores);
    RUN(test_quantiles);
    RUN(test_one_cell);
    st_close(golden);
    return test_summary();
}
