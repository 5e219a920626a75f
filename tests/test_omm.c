/* test_omm.c - scores, Sinkhorn, matches against SuperGlue's formula in float64 (make_golden_method.py). */
#include "omm.h"

#include "method_golden.h"

static Objects side(int c, char which)
{
    const StTensor *h = golden_tensor("%d.h%c", c, which);
    return (Objects){.n = (int)h->shape[0],
                     .channels = (int)h->shape[1],
                     .descriptors = h->data,
                     .centroids = GOLDEN_F32("%d.c%c", c, which)};
}

static void one_case(int c)
{
    const float *s = GOLDEN_F32("%d.settings", c);
    REQUIRE(s);
    Objects q = side(c, 'q'), r = side(c, 'r');
    OmmOptions options = {
        .position_weight = s[3], .tau = s[1], .sinkhorn_iters = (int)s[2], .match_threshold = 0.2f};
    Matching m;
    Error err;
    REQUIRE(!omm_match(&m, &q, &r, s[0], &options, &err));
    CHECK_GOLDEN(m.scores, 1e-6, "%d.scores", c);
    /* S/τ is float32. At τ = 0.005 it reaches 200, where floats are 1.5e-5 apart. That is P's relative
     * error. */
    double tolerance = s[1] < 0.01f ? 2e-5 : 1e-5;
    CHECK_GOLDEN(m.assignment, tolerance, "%d.assignment", c);
    CHECK_GOLDEN(m.unmatched_q, tolerance, "%d.u", c);
    CHECK_GOLDEN(m.unmatched_r, tolerance, "%d.v", c);
    CHECK_GOLDEN_INTS(m.match_q, "%d.match", c);
    int n_back = 0, n_forth = 0;
    for (int j = 0; j < m.n_r; j++) {
        n_back += m.match_r[j] >= 0;
        CHECK(m.match_r[j] < 0 || m.match_q[m.match_r[j]] == j);
    }
    for (int i = 0; i < m.n_q; i++)
        n_forth += m.match_q[i] >= 0;
    CHECK(n_back == n_forth);
    matching_free(&m);
    options.nearest = 1;
    REQUIRE(!omm_match(&m, &q, &r, s[0], &options, &err));
    CHECK_GOLDEN_INTS(m.match_q, "%d.nearest", c);
    for (int i = 0; i < m.n_q; i++)
        CHECK(m.unmatched_q[i] == (m.match_q[i] < 0 ? 1.0f : 0.0f));
    for (int j = 0; j < m.n_r; j++)
        CHECK(m.unmatched_r[j] == (m.match_r[j] < 0 ? 1.0f : 0.0f));
    matching_free(&m);
}

static void test_golden(void)
{
    REQUIRE(golden_open("method_omm"));
    int n = GOLDEN_I32("cases")[0];
    CHECK(n >= 9);
    for (int c = 0; c < n; c++)
        one_case(c);
}

/* After many iterations the columns' marginals hold exactly and the rows' nearly. They are 1 for an object, n
 * and m for the dustbins. */
static void test_marginals(void)
{
    enum { N = 6, M = 9 };
    float scores[N * M], p[(N + 1) * (M + 1)];
    Error err;
    for (int i = 0; i < N * M; i++)
        scores[i] = (float)((unsigned)(i + 1) * 2654435761u >> 8) / (1 << 24);
    REQUIRE(!omm_sinkhorn(p, scores, N, M, 0.4f, 0.1f, 300, &err));
    for (int i = 0; i <= N; i++) {
        double sum = 0;
        for (int j = 0; j <= M; j++)
            sum += p[i * (M + 1) + j];
        CHECK_MSG(fabs(sum - (i < N ? 1 : M)) < 1e-4, "row %d sums to %g", i, sum);
    }
    for (int j = 0; j <= M; j++) {
        double sum = 0;
        for (int i = 0; i <= N; i++)
            sum += p[i * (M + 1) + j];
        CHECK_MSG(fabs(sum - (j < M ? 1 : N)) < 1e-4, "column %d sums to %g", j, sum);
    }
}

/* The extremes of the options end in numbers between 0 and 1 for an object, not in NaN. */
static void test_extremes(void)
{
    static const float h[3][2] = {{1, 0}, {0, 1}, {-1, 0}}, c[3][2] = {{0, 0}, {1, 1}, {0.5f, 0.5f}};
    static const float settings[][3] = {
        {-1e6f, 1e-5f, 0.7f}, {1e6f, 1e-5f, 0.7f}, {0, 1e5f, 1000}, {0, 1e-5f, 1000}, {0, 1e-5f, 0}};
    Objects q = {.n = 3, .channels = 2, .descriptors = h[0], .centroids = c[0]}, r = q;
    r.n = 2;
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
        OmmOptions options = {.position_weight = settings[s][2],
                              .tau = settings[s][1],
                              .sinkhorn_iters = 30,
                              .match_threshold = 0.2f};
        Matching m;
        Error err;
        REQUIRE(!omm_match(&m, &q, &r, settings[s][0], &options, &err));
        for (int i = 0; i < 3; i++)
            CHECK_MSG(m.unmatched_q[i] >= 0 && m.unmatched_q[i] <= 3.001f, "setting %zu: U[%d] = %g", s, i,
                      (double)m.unmatched_q[i]);
        matching_free(&m);
    }
}

static void test_nothing_on_both_sides(void)
{
    Objects none = {.channels = 4};
    OmmOptions options = {.tau = 0.02f, .sinkhorn_iters = 30};
    Matching m;
    Error err;
    REQUIRE(!omm_match(&m, &none, &none, 0.5f, &options, &err));
    CHECK(m.n_q == 0 && m.n_r == 0 && m.assignment[0] == 0);
    matching_free(&m);
    matching_free(&m); /* twice is fine */
}

/* The promise of omm_dustbin: n pairs that all match as weakly as alpha keep U = alpha_unmatched, for any
 * n. */
static void test_dustbin(void)
{
    OmmOptions options = {.tau = 0.02f, .sinkhorn_iters = 200, .alpha_unmatched = 0.05f};
    const float alpha = 0.7f;
    for (int n = 1; n <= 64; n *= 2) {
        float *scores = malloc(sizeof(float) * (size_t)(n * n)),
              *p = malloc(sizeof(float) * (size_t)((n + 1) * (n + 1)));
        Error err;
        REQUIRE(scores && p);
        for (int i = 0; i < n * n; i++)
            scores[i] = i % (n + 1) == 0 ? alpha : -1; /* only the diagonal matches */
        REQUIRE(!omm_sinkhorn(p, scores, n, n, omm_dustbin(alpha, n, n, &options), options.tau,
                              options.sinkhorn_iters, &err));
        for (int i = 0; i < n; i++)
            CHECK_MSG(fabsf(p[i * (n + 1) + n] - 0.05f) < 0.004f, "n = %d: U = %g, not 0.05", n,
                      (double)p[i * (n + 1) + n]);
        free(scores), free(p);
    }
    options.alpha_unmatched = 0;
    CHECK(omm_dustbin(alpha, 5, 9, &options) == alpha);
}

/* ---- docs/METHOD.md's examples, worked out by hand ----------------------------------------------------*/

/* Two objects beside two, S = (log 31, 0; 0, log 31), τ = 1, the bin's score 0. P = (p, q, U; q, p, U; U, U, W):
 *     p·W/U² = 31, q·W/U² = 1, p + q + U = 1, 2U + W = 2, so U = 0.2, W = 1.6, p = 0.775, q = 0.025 */
static void test_example_sinkhorn(void)
{
    static const float expected[9] = {0.775f, 0.025f, 0.2f, 0.025f, 0.775f, 0.2f, 0.2f, 0.2f, 1.6f};
    const float scores[4] = {logf(31), 0, 0, logf(31)};
    float p[9];
    Error err;
    REQUIRE(!omm_sinkhorn(p, scores, 2, 2, 0, 1, 100, &err));
    for (int i = 0; i < 9; i++)
        CHECK_MSG(fabsf(p[i] - expected[i]) < 1e-6f, "P[%d] is %g, not %g", i, (double)p[i],
                  (double)expected[i]);
    REQUIRE(!omm_sinkhorn(p, scores, 2, 2, 0, 1, 1, &err));
    CHECK(fabsf(p[0] - 0.574f) < 5e-4f && fabsf(p[2] - 0.083f) < 5e-4f);
    REQUIRE(!omm_sinkhorn(p, scores, 2, 2, 0, 1, 10, &err));
    CHECK(fabsf(p[0] - 0.774985f) < 1e-6f && fabsf(p[2] - 0.199985f) < 1e-6f);
}

/* In this example the dustbin's derivation says U²/(1 - U) = 2·exp(-log 31), U = 0.22 instead of 0.2. */
static void test_example_dustbin(void)
{
    const float ratio = 2 / 31.0f, u = (sqrtf(ratio * ratio + 4 * ratio) - ratio) / 2;
    const OmmOptions options = {.tau = 1, .alpha_unmatched = u};
    CHECK(fabsf(u - 0.22f) < 0.005f && fabsf(omm_dustbin(logf(31), 2, 2, &options)) < 1e-5f);
}

/* Two parts of a kind are expected and three are there, at one place and all alike. Each has U = 1/3. Counted
 * together they have 1, the area of one part: 3·0.1 - 2·0.1. */
static void test_example_count(void)
{
    static const float h[3][2] = {{1, 0}, {1, 0}, {1, 0}}, c[3][2] = {{0}}, areas[3] = {0.1f, 0.1f, 0.1f};
    const Objects q = {.n = 3, .channels = 2, .descriptors = h[0], .centroids = c[0], .areas = areas};
    Objects r = q;
    r.n = 2;
    const OmmOptions options = {.tau = 1, .sinkhorn_iters = 100, .match_threshold = 2, .count = 1};
    Matching m;
    Error err;
    REQUIRE(!omm_match(&m, &q, &r, 0.9f, &options, &err));
    for (int i = 0; i < 3; i++)
        m.unmatched_q[i] = 1 / 3.0f;
    REQUIRE(!omm_count(&m, &q, &r, 0.9f, &options, &err));
    for (int i = 0; i < 3; i++)
        CHECK(fabsf(m.counted_q[i] - 1) < 1e-5f);
    matching_free(&m);
}

int main(void)
{
    RUN(test_golden);
    RUN(test_marginals);
    RUN(test_extremes);
    RUN(test_nothing_on_both_sides);
    st_close(golden);
    RUN(test_dustbin);
    RUN(test_example_sinkhorn);
    RUN(test_example_dustbin);
    RUN(test_example_count);
    return test_summary();
}
