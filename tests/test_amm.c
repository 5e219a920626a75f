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
    float one[512], many[512], nearest_one[512], nearest_many[512];
    Error err;
    int before = omp_get_max_threads();
    three_new(&t);
    const size_t bytes = (size_t)(t.c.query.grid_h * t.c.query.grid_w) * sizeof *one;
    omp_set_num_threads(1);
    REQUIRE(!structural(one, &t, 3, &AMM, NULL) && !amm_nearest(nearest_one, &t.c, &err));
    omp_set_num_threads(3);
    REQUIRE(!structural(many, &t, 3, &AMM, NULL) && !amm_nearest(nearest_many, &t.c, &err));
    omp_set_num_threads(before);
    CHECK(memcmp(one, many, bytes) == 0 && memcmp(nearest_one, nearest_many, bytes) == 0);
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
    found[0] = amm_score(base, q->grid_h, q->grid_w, SCORE_MAX, scratch);
    found[1] = amm_score(base, q->grid_h, q->grid_w, SCORE_POWER, scratch);
    CHECK_GOLDEN(found, 1e-6, "scores");
}

/* 12x18 blocks at an odd grid's borders: the largest percent are three. */
static void test_block_score(void)
{
    float found[2], scratch[1024];
    REQUIRE(golden_open("method_amm"));
    const StTensor *wide = golden_tensor("wide");
    const int h = (int)wide->shape[0], w = (int)wide->shape[1];
    REQUIRE(h == 23 && w == 35);
    found[0] = amm_score(wide->data, h, w, SCORE_MAX, scratch);
    found[1] = amm_score(wide->data, h, w, SCORE_POWER, scratch);
    CHECK_GOLDEN(found, 1e-6, "wide.scores");
    /* One percent of at most 100 blocks is one block. A single cell counts a quarter, but not at a corner of
     * an odd grid. */
    float map[9 * 9] = {0};
    map[4 * 9 + 4] = 8;
    CHECK(amm_score(map, 9, 9, SCORE_POWER, scratch) == 2 && amm_score(map, 9, 9, SCORE_MAX, scratch) == 8);
    map[8 * 9 + 8] = 5;
    CHECK(amm_score(map, 9, 9, SCORE_POWER, scratch) == 5);
    CHECK(amm_block_mean(map, 9, 9, 5 * 9 + 5) == 2 && amm_block_mean(map, 9, 9, 8 * 9 + 8) == 5 &&
          amm_block_mean(map, 9, 9, 3 * 9 + 4) == 0 && amm_block_mean(map, 9, 9, 8 * 9 + 7) == 0);
    map[0] = -1; /* the largest cell of a map below 0 */
    CHECK(amm_score(map, 1, 1, SCORE_MAX, scratch) == -1 && amm_score(map, 1, 1, SCORE_POWER, scratch) == 0);
}

/* The examples of docs/METHOD.md 7. */
static void test_example_score(void)
{
    float values[300] = {[7] = 2, [40] = 3, [99] = 1, [200] = 0.9f}, large[1] = {1e30f};
    CHECK(fabs(amm_power_mean(values, 300) - 2.585) < 1e-3);
    CHECK(fabs(amm_power_mean(large, 1) / 1e30 - 1) < 1e-6);
    CHECK(fabs(amm_fuse(2, 0, ONLY_BOTH) - 1.240) < 1e-3);
    CHECK(fabs(amm_fuse(0, 2, ONLY_BOTH) - 1.240) < 1e-3);
    CHECK(fabs(amm_fuse(3, 3, ONLY_BOTH) - 3) < 1e-6);
    CHECK(fabs(amm_fuse(200, -200, ONLY_BOTH) - 198.614) < 1e-3);
}

/* ---- the nearest features ----------------------------------------------------------------------*/

/* The first k references and the query, cut to h×w cells. Free with cut_free. */
typedef struct Cut {
    Three t;
    float *features;
    uint16_t *halves[3];
} Cut;

static int cut_new(Cut *cut, int h, int w, int k)
{
    three_new(&cut->t);
    Objects *q = &cut->t.c.query;
    const size_t C = (size_t)q->channels, row = (size_t)w * C, whole_row = (size_t)q->grid_w * C;
    cut->features = malloc((size_t)h * row * sizeof(float));
    for (int i = 0; i < 3; i++)
        cut->halves[i] = malloc((size_t)h * row * sizeof(uint16_t));
    if (!cut->features || !cut->halves[0] || !cut->halves[1] || !cut->halves[2])
        return -1;
    for (size_t y = 0; y < (size_t)h; y++) {
        memcpy(cut->features + y * row, q->features + y * whole_row, row * sizeof(float));
        for (int i = 0; i < 3; i++)
            memcpy(cut->halves[i] + y * row, cut->t.references[i].features16 + y * whole_row,
                   row * sizeof(uint16_t));
    }
    for (int i = 0; i < 3; i++)
        cut->t.references[i].features16 = cut->halves[i];
    q->features = cut->features, q->grid_h = h, q->grid_w = w, cut->t.c.k = k;
    return 0;
}

static void cut_free(Cut *cut)
{
    free(cut->features);
    for (int i = 0; i < 3; i++)
        free(cut->halves[i]);
}

/* Odd and even grids, one row, one column, one cell; several references, one, none. */
static void test_nearest(void)
{
    static const struct {
        const char *name;
        int h, w;
    } grids[] = {{"odd", 9, 11}, {"even", 8, 10}, {"row", 1, 11}, {"column", 9, 1}, {"cell", 1, 1}};
    static const int counts[] = {3, 1, 0};
    REQUIRE(golden_open("method_amm"));
    for (int g = 0; g < 5; g++)
        for (int i = 0; i < 3; i++) {
            Cut cut;
            Error err;
            float nearest[512];
            REQUIRE(!cut_new(&cut, grids[g].h, grids[g].w, counts[i]));
            CHECK(!amm_nearest(nearest, &cut.t.c, &err));
            CHECK_GOLDEN(nearest, 1e-6, "nearest.%s.%d", grids[g].name, counts[i]);
            cut_free(&cut);
        }
}

/* Channels beyond squared_distance's part of 512, and a rest that fills no vector. */
static void test_nearest_channels(void)
{
    enum { H = 3, W = 2, C = 1187 };
    static float features[H * W * C];
    static uint16_t halves[H * W * C];
    unsigned seed = 1;
    double expected = 0;
    float nearest[H * W];
    Error err;
    for (int i = 0; i < H * W * C; i++) {
        features[i] = (float)((seed = seed * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1;
        halves[i] = f32_to_f16((float)((seed = seed * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1);
    }
    Objects reference = {.features16 = halves};
    const Comparison c = {.query = {.grid_h = H, .grid_w = W, .channels = C, .features = features},
                          .k = 1,
                          .references = &reference};
    REQUIRE(!amm_nearest(nearest, &c, &err));
    for (int block = 0; block < 2; block++) { /* the query's upper block and each of the reference's */
        double sum = 0;
        for (int i = 0; i < C; i++) {
            double mine = 0, other = 0;
            for (int p = 0; p < 4; p++)
                mine += features[p * C + i] / 4.0;
            for (int p = 0; p < (block ? 2 : 4); p++)
                other += f16_to_f32(halves[(4 * block + p) * C + i]) / (block ? 2.0 : 4.0);
            sum += (mine - other) * (mine - other);
        }
        expected = block ? fmin(expected, sum) : sum;
    }
    CHECK_MSG(fabs(nearest[0] - sqrt(expected)) < 1e-5 * sqrt(expected), "%.9g, not %.9g", (double)nearest[0],
              sqrt(expected));
    CHECK(nearest[1] == nearest[0] && nearest[2] == nearest[0] && nearest[3] == nearest[0]);
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

/* z of logical scores: normal images of many values, of one value, one image, none; scores far beyond
 * them. */
static void test_logical_z(void)
{
    static const struct {
        const char *name;
        int n;
    } banks[] = {{"37", 37}, {"5", 5}, {"1", 1}, {"0", 0}, {"equal", 5}};
    static const char *const widths[] = {"0.05", "0.7"};
    REQUIRE(golden_open("method_amm"));
    const float *values = GOLDEN_F32("values"), *asked = GOLDEN_F32("logical.asked");
    const int n = (int)golden_tensor("logical.asked")->n_elements;
    REQUIRE(n <= 64);
    for (int b = 0; b < 5; b++)
        for (int width = 0; width < 2; width++) {
            float normal[37], found[64];
            for (int i = 0; i < banks[b].n; i++)
                normal[i] = strcmp(banks[b].name, "equal") == 0 ? values[0] : values[i];
            for (int i = 0; i < n; i++)
                found[i] = amm_logical_z(normal, banks[b].n, width ? 0.7f : 0.05f, asked[i]);
            CHECK_GOLDEN(found, 1e-6, "logical.%s.%s", banks[b].name, widths[width]);
            for (int i = 0; i < n; i++)
                found[i] = amm_rank_z(normal, banks[b].n, width ? 0.7f : 0.05f, asked[i]);
            CHECK_GOLDEN(found, 1e-6, "rank.%s.%s", banks[b].name, widths[width]);
        }
    const float normal[3] = {0, 0.1f, 0.2f}, far = amm_rank_z(normal, 3, 0.05f, 1e30f);
    CHECK(fabsf(far - log10f(2.5f)) < 1e-6f); /* p = 1/5: no rank claims more than three images show */
    CHECK(fabsf(amm_rank_z(normal, 3, 0.05f, -1e30f) - log10f(0.625f)) < 1e-6f); /* p = 4/5 */
    CHECK(fabsf(amm_logical_z(normal, 3, 0.05f, 2.2f) - far - 2) <
          1e-6f);               /* two objects beyond all of them */
    for (int i = 0; i < 3; i++) /* a width of 0 is a step: 1/2 of an equal score counts */
        CHECK(fabsf(amm_logical_z(normal, 3, 0, normal[i]) + log10f(2 * (3.5f - (float)i) / 5)) < 1e-6f);
    float before = -INFINITY;
    for (int i = -20; i <= 40; i++) { /* between and beyond the normal scores the order of scores is kept */
        const float z = amm_logical_z(normal, 3, 0.05f, 0.01f * (float)i);
        CHECK(z > before);
        before = z;
    }
}

/* docs/METHOD.md's example: z of L = 0.2 and of L = 1 beside the L of three normal images, 0.1, 0.2 and
 * 0.3. */
static void test_example_logical_z(void)
{
    const float normal[3] = {0.1f, 0.2f, 0.3f};
    const float between = amm_logical_z(normal, 3, 0.05f, 0.2f), far = amm_logical_z(normal, 3, 0.05f, 1);
    CHECK_MSG(fabsf(between) < 1e-6f, "%g", (double)between);
    CHECK_MSG(fabsf(far - 1.09794f) < 1e-5f, "%g", (double)far);
}

/* docs/METHOD.md's example: one cell of the query's 4x4 is 4, one of the reference's is 3, anywhere. */
static void test_example_nearest(void)
{
    for (int place = 0; place < 16; place++) {
        const float features[16] = {[5] = 4};
        uint16_t halves[16] = {0};
        float nearest[16];
        Objects reference = {.features16 = halves};
        const Comparison c = {.query = {.grid_h = 4, .grid_w = 4, .channels = 1, .features = features},
                              .k = 1,
                              .references = &reference};
        Error err;
        halves[place] = f32_to_f16(3);
        REQUIRE(!amm_nearest(nearest, &c, &err));
        for (int p = 0; p < 16; p++)
            CHECK_MSG(nearest[p] == (p == 0 || p == 1 || p == 4 || p == 5 ? 0.25f : 0), "cell %d: %g", p,
                      (double)nearest[p]);
    }
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
    CHECK(map[0] == 0 && amm_score(map, 1, 1, SCORE_POWER, scratch) == 0 &&
          amm_score(map, 1, 1, SCORE_MAX, scratch) == 0);
    CHECK(amm_object_quantile(map, coverage + 1, 1, 0.95f, scratch) == 0);
}

/* docs/METHOD.md's example, worked out by hand: f = (3, 5) among the references' (0, 0), (2, 0), (1, 3), ε =
 * 1. μ = (1, 1), d = (2, 4), X = (-1, -1; 1, -1; 0, 2), Σ = XᵀX/2 + I = diag(2, 4), M² = 4/2 + 16/4 = 6 low
 * rank: Xd = (-6, -2, 8), XXᵀ + 2·I = (4, 0, -2; 0, 4, -2; -2, -2, 6), y = (-1, 0, 1) d - Xᵀy = (1, 1), M² =
 * 2 + 1·2·‖y‖² = 6 */
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
    RUN(test_block_score);
    RUN(test_example_score);
    RUN(test_nearest);
    RUN(test_nearest_channels);
    RUN(test_logical_z);
    RUN(test_quantiles);
    RUN(test_one_cell);
    RUN(test_example);
    RUN(test_example_logical_z);
    RUN(test_example_nearest);
    st_close(golden);
    return test_summary();
}
