/* test_amm.c - distances, maps, quantiles against make_golden_method.py. */
#include "amm.h"

#include "method_golden.h"
#include "plain.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static const AmmOptions AMM = {
    .align_pixel = 0, .large_object = 0.15f, .epsilon = 0.01f, .blur = 1, .score = SCORE_MAX};

/* Buffers for k samples of `channels` floats; free(memory). */
static AmmWork make_work(int k, int channels, void **memory)
{
    AmmWork work;
    Arena arena = {0};
    layout_amm(&work, &arena, k, channels);
    *memory = aligned_array(arena.used, 1);
    arena = (Arena){*memory, arena.used, 0};
    layout_amm(&work, &arena, k, channels);
    return work;
}

/* samples [m][C] and f [C] go into the rows, padded with zeros. */
static float distance(const AmmWork *work, const float *samples, const float *f, int m, int C, float epsilon)
{
    for (int r = 0; r <= m; r++) {
        float *row = work->rows + r * work->stride;
        memset(row, 0, (size_t)work->stride * sizeof *row);
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

/* The same identity, one sum after the other in double: the truth for the kernel. There are `most` samples at
 * most. */
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
    for (int p = 0; p < m && m > 1; p++) /* elimination: each pivot removes its part of |d|^2 */
        for (int r = p + 1; r <= m; r++) {
            double factor = (r < m ? a[r][p] : a[p][m]) / a[p][p];
            if (r == m)
                squared -= factor * a[p][m];
            for (int s = p; s <= m && r < m; s++)
                a[r][s] -= factor * a[p][s];
        }
    return sqrt(squared / epsilon);
}

/* All numbers of samples around a group of rows, with channels that fill no vector. Samples also lie far
 * beside the measured vector, where a Gram matrix without centring would lose its digits. */
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

/* tensor.h's routines of one vector among samples, fast and plain. All numbers of rows around a group,
 * channels that fill no vector, places beyond the borders. */
static void test_sums(void)
{
    enum { H = 3, W = 4, MOST_C = 83, MOST_STRIDE = 96, M = 7 };
    static const int channels[] = {1, 3, 16, 17, 64, 83};
    static uint16_t map[H * W * MOST_C];
    static float scale[MOST_C], f[MOST_C], rows[2][(M + 1) * MOST_STRIDE], gram[2][(M + 1) * (M + 1)], y[M];
    unsigned seed = 1;
    for (int i = 0; i < H * W * MOST_C; i++)
        map[i] = f32_to_f16((float)((seed = seed * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1);
    for (int i = 0; i < MOST_C; i++)
        scale[i] = 0.5f + (float)(i % 5), f[i] = sinf((float)i);
    for (int i = 0; i < 6; i++) {
        const int C = channels[i], stride = round_up(C, ROW_STEP);
        const float distance[2] = {distance_half(f, map + C, scale, C),
                                   plain_distance_half(f, map + C, scale, C)};
        CHECK(fabsf(distance[0] - distance[1]) <= 1e-5f * distance[1]);
        for (int r = 0; r <= M; r++) {
            const float x = 1.3f * (float)r - 2, place_y = 0.5f * (float)r; /* some beyond the borders */
            sample_half(rows[0] + r * stride, map, H, W, C, x, place_y, scale);
            plain_sample_half(rows[1] + r * stride, map, H, W, C, x, place_y, scale);
        }
        CHECK(test_relative_error(rows[0], rows[1], (size_t)((M + 1) * stride)) < 1e-6);
        memcpy(rows[0], rows[1], sizeof rows[0]);
        for (int m = 1; m <= M; m++) {
            y[m - 1] = 1 / (float)(m + 1);
            centre_rows(rows[0], stride, m), plain_centre_rows(rows[1], stride, m);
            CHECK(test_relative_error(rows[0], rows[1], (size_t)((m + 1) * stride)) < 1e-5);
            memcpy(rows[0], rows[1], sizeof rows[0]);
            memset(gram, 0, sizeof gram);
            gram_rows(gram[0], M + 1, rows[0], stride, m + 1),
                plain_gram_rows(gram[1], M + 1, rows[0], stride, m + 1);
            CHECK(test_relative_error(gram[0], gram[1], (M + 1) * (M + 1)) < 1e-5);
            const float left = residual_rows(rows[0], stride, m, y),
                        plain = plain_residual_rows(rows[0], stride, m, y);
            CHECK(fabsf(left - plain) <= 1e-5f * plain);
        }
    }
}

static const float ONES[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* The golden's query and its three references. */
typedef struct Three {
    Comparison c;
    Objects references[3];
    Matching matchings[3];
    int matches[3][16];
    Placement places[16 * 3];
    const float *inverse_std;
} Three;

static Objects objects(const char *which, const StTensor *weights)
{
    return (Objects){.n = (int)weights->shape[0],
                     .grid_h = (int)golden_tensor("q.features")->shape[0],
                     .grid_w = (int)golden_tensor("q.features")->shape[1],
                     .channels = (int)golden_tensor("q.features")->shape[2],
                     .coverage = weights->data,
                     .centroids = GOLDEN_F32("%s.centroids", which),
                     .areas = GOLDEN_F32("%s.areas", which)};
}

static void three_new(Three *t)
{
    *t = (Three){.inverse_std = ONES};
    t->c = (Comparison){objects("q", golden_tensor("q.weights")), 3, t->references, t->matchings};
    t->c.query.features = GOLDEN_F32("q.features");
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%d", i);
        t->references[i] = objects(name, golden_tensor("r%d.weights", i));
        t->references[i].features16 = golden_tensor("r%d.features", i)->data;
        t->references[i].units = GOLDEN_F32("r%d.scale", i);
        memcpy(t->matches[i], GOLDEN_I32("r%d.match_q", i), (size_t)t->c.query.n * sizeof(int));
        t->matchings[i].match_q = t->matches[i];
    }
}

/* Object 1 matches nowhere. */
static void without_match(Three *t)
{
    for (int i = 0; i < 3; i++)
        t->matches[i][1] = -1;
}

/* map of the first k references. claimed is room for the coverage after claims, or NULL: no claims. */
static int structural(float *map, Three *t, int k, const AmmOptions *options, float *claimed)
{
    const Objects *q = &t->c.query;
    float scratch[512];
    Error err;
    t->c.k = k;
    amm_places(t->places, &t->c, t->inverse_std, options);
    if (claimed && amm_claims(claimed, &t->c, t->places, &err))
        return -1;
    const AmmInput input = {&t->c, t->inverse_std, t->places, claimed ? claimed : q->coverage,
                            options->epsilon};
    if (amm_structural(map, &input, &err))
        return -1;
    if (options->blur > 0)
        gaussian_blur(map, map, q->grid_h, q->grid_w, 1, options->blur, scratch);
    return 0;
}

static void check_map(const AmmOptions *options, const char *name)
{
    Three t;
    float map[512];
    three_new(&t);
    REQUIRE(t.c.query.grid_h * t.c.query.grid_w <= 512 && t.c.query.n <= 16);
    REQUIRE(!structural(map, &t, 3, options, NULL));
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

/* An object's place is searched. An object without a match is compared at its own place. */
static void test_registered(void)
{
    REQUIRE(golden_open("method_amm"));
    Three t;
    AmmOptions near = AMM, far = AMM, same = AMM;
    float map[512];
    three_new(&t);
    without_match(&t);
    near.register_reach = 1;
    far.register_reach = 3, far.register_unmatched = 1;
    same.align_pixel = 1, same.register_unmatched = 1, same.register_reach = 3; /* pixel: no search */
    REQUIRE(!structural(map, &t, 3, &near, NULL));
    CHECK_GOLDEN(map, 1e-5, "map.registered");
    REQUIRE(!structural(map, &t, 3, &far, NULL));
    CHECK_GOLDEN(map, 1e-5, "map.searched");
    REQUIRE(!structural(map, &t, 3, &same, NULL));
    CHECK_GOLDEN(map, 1e-5, "map.same");
}

/* Cells that the references' masks expect of an object, and that the query's mask lacks, become its own. */
static void test_claims(void)
{
    REQUIRE(golden_open("method_amm"));
    Three t;
    three_new(&t);
    Objects *q = &t.c.query;
    float map[512], claimed[8 * 512];
    int n_cells = q->grid_h * q->grid_w, moved = 0;
    Error err;
    REQUIRE(q->n <= 8 && n_cells <= 512);
    q->coverage = GOLDEN_F32("broken.weights");
    REQUIRE(!structural(map, &t, 3, &AMM, claimed));
    CHECK_GOLDEN(claimed, 1e-5, "broken.claimed");
    CHECK_GOLDEN(map, 1e-5, "map.claims");
    REQUIRE(!amm_in_units(map, &t.c, claimed, &err));
    CHECK_GOLDEN(map, 1e-5, "map.claims.normalised");
    for (int p = 0; p < n_cells; p++) {
        float before = 0, after = 0;
        for (int i = 0; i < q->n; i++)
            before += q->coverage[i * n_cells + p], after += claimed[i * n_cells + p];
        CHECK(fabsf(before - after) < 1e-5f);
        moved += claimed[p] > q->coverage[p] + 0.5f;
    }
    CHECK_MSG(moved >= 2, "object 0 got %d cells back", moved);
    REQUIRE(!structural(map, &t, 0, &AMM, claimed)); /* no reference matches: the masks stay */
    CHECK(memcmp(claimed, q->coverage, (size_t)(q->n * n_cells) * sizeof *claimed) == 0);
}

/* Features in other units, channel by channel, with the inverse_std that cancels them, give the same map. The
 * factors are powers of two, so that float16 loses nothing. */
static void test_inverse_std(void)
{
    REQUIRE(golden_open("method_amm"));
    Three t;
    three_new(&t);
    Objects *q = &t.c.query;
    float map[512], inverse_std[64], *scaled = NULL;
    uint16_t *halves[3];
    size_t n = (size_t)(q->grid_h * q->grid_w * q->channels);
    REQUIRE(q->channels <= 64);
    for (int c = 0; c < q->channels; c++)
        inverse_std[c] = ldexpf(1, c % 5 - 2);
    REQUIRE(scaled = malloc(n * sizeof *scaled));
    for (size_t p = 0; p < n; p++)
        scaled[p] = q->features[p] / inverse_std[p % (size_t)q->channels];
    for (int i = 0; i < 3; i++) {
        REQUIRE(halves[i] = malloc(n * sizeof(uint16_t)));
        for (size_t p = 0; p < n; p++)
            halves[i][p] =
                f32_to_f16(f16_to_f32(t.references[i].features16[p]) / inverse_std[p % (size_t)q->channels]);
        t.references[i].features16 = halves[i];
    }
    q->features = scaled;
    t.inverse_std = inverse_std;
    REQUIRE(!structural(map, &t, 3, &AMM, NULL));
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
    Three t;
    float one[512], many[512];
    int before = omp_get_max_threads();
    three_new(&t);
    omp_set_num_threads(1);
    REQUIRE(!structural(one, &t, 3, &AMM, NULL));
    omp_set_num_threads(3);
    REQUIRE(!structural(many, &t, 3, &AMM, NULL));
    omp_set_num_threads(before);
    CHECK(memcmp(one, many, (size_t)(t.c.query.grid_h * t.c.query.grid_w) * sizeof *one) == 0);
#else
    SKIP("built without OpenMP");
#endif
}

/* An object that matches nothing has no structural map; the logical one reports it. Without references all is
 * 0. */
static void test_unmatched(void)
{
    REQUIRE(golden_open("method_amm"));
    Three t;
    AmmOptions options = AMM;
    float map[512];
    Error err;
    three_new(&t);
    options.blur = 0;
    without_match(&t);
    REQUIRE(!structural(map, &t, 3, &options, NULL));
    CHECK_GOLDEN(map, 1e-5, "map.none");
    REQUIRE(!structural(map, &t, 0, &options, NULL));
    REQUIRE(!amm_in_units(map, &t.c, t.c.query.coverage, &err));
    for (int p = 0; p < t.c.query.grid_h * t.c.query.grid_w; p++)
        CHECK(map[p] == 0);
}

static void test_units_and_scores(void)
{
    REQUIRE(golden_open("method_amm"));
    Three t;
    three_new(&t);
    const Objects *q = &t.c.query;
    int n_cells = q->grid_h * q->grid_w;
    float map[512], scratch[512], found[64];
    Error err;
    const float *base = GOLDEN_F32("map.object");
    memcpy(map, base, (size_t)n_cells * sizeof *map);
    REQUIRE(!amm_in_units(map, &t.c, q->coverage, &err));
    CHECK_GOLDEN(map, 1e-5, "map.normalised");
    memcpy(map, base, (size_t)n_cells * sizeof *map);
    without_match(&t);
    REQUIRE(!amm_in_units(map, &t.c, q->coverage, &err));
    CHECK_GOLDEN(map, 1e-5, "map.normalised.none");
    static const float levels[] = {0.95f, 0.5f, 1};
    for (int i = 0; i < q->n; i++)
        for (int l = 0; l < 3; l++)
            found[3 * i + l] =
                amm_object_quantile(base, q->coverage + i * n_cells, n_cells, levels[l], scratch);
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
    Spread spread = amm_spread(sorted, 37, 0.05f);
    for (int i = 0; i < 7; i++)
        found[i] = quantile_sorted(sorted, 37, levels[i]);
    CHECK_GOLDEN(found, 1e-6, "values.quantiles");
    for (int i = 0; i < 37; i++)
        found[i] = amm_z(&spread, values[i]);
    CHECK_GOLDEN(found, 1e-6, "values.z");
    CHECK(quantile_sorted(sorted, 0, 0.5) == 0 && quantile_sorted(sorted, 1, 0.95) == sorted[0]);
    Spread flat = amm_spread((float[]){2, 2, 2}, 3, 0); /* no spread at all: z is large, but a number */
    CHECK(isfinite(amm_z(&flat, 2.5f)) && amm_z(&flat, 2) == 0);
}

/* A grid of one cell and an object without weight: divisors of zero. */
static void test_one_cell(void)
{
    static const float features[2] = {1, 2}, coverage[2] = {1, 0}, centroids[4] = {0.5f, 0.5f, 0.5f, 0.5f},
                       areas[2] = {1, 0}, units[2] = {1, 1};
    static const uint16_t halves[2] = {0x3c00, 0x4000}; /* 1, 2 */
    Three t = {.matches = {{1, 0}}, .inverse_std = ONES};
    t.c = (Comparison){.query = {.n = 2, .grid_h = 1, .grid_w = 1, .channels = 2}, .k = 1};
    t.c.references = t.references, t.c.matchings = t.matchings;
    t.c.query.coverage = coverage, t.c.query.centroids = centroids, t.c.query.areas = areas;
    t.references[0] = t.c.query;
    t.c.query.features = features, t.references[0].features16 = halves, t.references[0].units = units;
    t.matchings[0].match_q = t.matches[0];
    AmmOptions options = AMM;
    float map[1], scratch[1];
    Error err;
    options.blur = 100;
    REQUIRE(!structural(map, &t, 1, &options, NULL));
    CHECK(map[0] == 0);
    REQUIRE(!amm_in_units(map, &t.c, coverage, &err));
    CHECK(map[0] == 0 && amm_score(map, 1, SCORE_TOP1, scratch) == 0 &&
          amm_score(map, 0, SCORE_MAX, scratch) == 0);
    CHECK(amm_object_quantile(map, coverage + 1, 1, 0.95f, scratch) == 0);
}

/* docs/METHOD.md's example, worked out by hand: f = (3, 5) among the references' (0, 0), (2, 0), (1, 3), ε = 1.
 *     μ = (1, 1), d = (2, 4), X = (-1, -1; 1, -1; 0, 2), Σ = XᵀX/2 + I = diag(2, 4), M² = 4/2 + 16/4 = 6
 *     low rank: Xd = (-6, -2, 8), XXᵀ + 2·I = (4, 0, -2; 0, 4, -2; -2, -2, 6), y = (-1, 0, 1)
 *     d - Xᵀy = (1, 1), M² = 2 + 1·2·‖y‖² = 6 */
static void test_example(void)
{
    static const uint16_t cells[3][2] = {{0, 0}, {0x4000, 0}, {0x3c00, 0x4200}};
    static const float f[2] = {3, 5}, samples[6] = {0, 0, 2, 0, 1, 3}, y[3] = {-1, 0, 1}, whole[1] = {1};
    static const Placement same[3] = {{1, 0, 0, 1}, {1, 0, 0, 1}, {1, 0, 0, 1}};
    Objects references[3] = {{.features16 = cells[0]}, {.features16 = cells[1]}, {.features16 = cells[2]}};
    const Comparison c = {
        .query = {.n = 1, .grid_h = 1, .grid_w = 1, .channels = 2, .features = f, .coverage = whole},
        .k = 3,
        .references = references};
    const AmmInput input = {&c, ONES, same, whole, 1};
    float map[1];
    void *memory;
    Error err;
    REQUIRE(!amm_structural(map, &input, &err));
    CHECK_MSG(fabsf(map[0] - sqrtf(6)) < 1e-6f, "%g", (double)map[0]);
    AmmWork work = make_work(3, 2, &memory);
    REQUIRE(memory);
    CHECK(fabsf(distance(&work, samples, f, 3, 2, 1) - sqrtf(6)) < 1e-6f);
    for (int r = 0; r < 3; r++)
        CHECK(fabsf(work.y[r] - y[r]) < 1e-6f);
    free(memory);
}

int main(void)
{
    RUN(test_mahalanobis);
    RUN(test_kernel);
    RUN(test_sums);
    RUN(test_structural);
    RUN(test_registered);
    RUN(test_claims);
    RUN(test_inverse_std);
    RUN(test_threads);
    RUN(test_unmatched);
    RUN(test_units_and_scores);
    RUN(test_quantiles);
    RUN(test_one_cell);
    RUN(test_example);
    st_close(golden);
    return test_summary();
}
