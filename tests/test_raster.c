/* test_raster.c - the layout of objects: parts by hand, principal channels, neighbours, distances. Checked against
 * make_golden_method.py. test_bank.c checks whole banks with rasters. */
#include "raster.h"

#include "tensor.h"
#include "method_golden.h"

/* A raster whose vectors are the parts themselves: one channel, mean 0. */
static int raw_raster(Raster *r)
{
    Error err;
    if (raster_new(r, 1, &err))
        return -1;
    r->mean[0] = 0, r->basis[0] = 1;
    return 0;
}

/* ---- parts -------------------------------------------------------------------------------------*/

/* The example of METHOD.md: a slope and its mirror image have one mean, and two rasters. */
static void test_example_parts(void)
{
    static const float line[4] = {1 / 9.0f, 1, 2, 3 - 1 / 9.0f};
    float features[16], mirrored[16], vector[16], bins[16];
    float coverage[16];
    Raster r;
    REQUIRE(!raw_raster(&r));
    CHECK(r.kept == 1 && r.dim == 16);
    for (int p = 0; p < 16; p++)
        features[p] = (float)(p % 4), mirrored[p] = (float)(3 - p % 4), coverage[p] = 1;
    Objects o = {.n = 1, .grid_h = 4, .grid_w = 4, .channels = 1, .coverage = coverage};
    o.features = features;
    raster_vector(&r, vector, &o, 0, bins);
    for (int p = 0; p < 16; p++)
        CHECK(fabsf(vector[p] - line[p % 4]) < 1e-6f);
    o.features = mirrored;
    raster_vector(&r, vector, &o, 0, bins);
    for (int p = 0; p < 16; p++)
        CHECK(fabsf(vector[p] - line[3 - p % 4]) < 1e-6f);
    raster_free(&r);
}

/* The box has the cells of at least half of the heaviest one. A thin object keeps its shape: the shorter side is
 * 0.6 of the longer. An object that covers nothing has the whole grid. */
static void test_box(void)
{
    enum { SIDE = 20 };
    static float features[SIDE * SIDE], coverage[3 * SIDE * SIDE];
    float vector[16], bins[16];
    Raster r;
    REQUIRE(!raw_raster(&r));
    for (int p = 0; p < SIDE * SIDE; p++)
        features[p] = (float)(p % SIDE) + 100 * (float)(p / SIDE); /* x + 100 y */
    for (int x = 5; x < 15; x++)
        coverage[10 * SIDE + x] = 0.4f; /* row 10, columns 5 to 14 */
    coverage[11 * SIDE + 5] = 0.1f;     /* less than half of it */
    for (int p = 8; p < 16; p++)
        coverage[SIDE * SIDE + p * SIDE + 2] = coverage[SIDE * SIDE + p * SIDE + 3] = 1;
    const Objects o = {
        .n = 3, .grid_h = SIDE, .grid_w = SIDE, .channels = 1, .features = features, .coverage = coverage};
    /* Centre (10, 10.5), 10 wide and 6 high: the parts' middles are 2.5 and 1.5 cells apart. A cell's centre is
     * at .5, and there f is x + 100 y of its number. */
    raster_vector(&r, vector, &o, 0, bins);
    for (int p = 0; p < 16; p++)
        CHECK(fabsf(vector[p] - (10 - 3.75f + 2.5f * (float)(p % 4) - 0.5f) -
                    100 * (10.5f - 2.25f + 1.5f * (float)(p / 4) - 0.5f)) < 1e-3f);
    /* Centre (3, 12), 4.8 wide and 8 high. */
    raster_vector(&r, vector, &o, 1, bins);
    for (int p = 0; p < 16; p++)
        CHECK(fabsf(vector[p] - (3 - 1.8f + 1.2f * (float)(p % 4) - 0.5f) -
                    100 * (12 - 3 + 2 * (float)(p / 4) - 0.5f)) < 0.2f); /* its left edge is clamped */
    raster_vector(&r, vector, &o, 2, bins);
    CHECK(fabsf(vector[5] - 7 - 700) < 1e-3f && fabsf(vector[10] - 12 - 1200) < 1e-3f);
    raster_free(&r);
}

/* ---- principal channels ------------------------------------------------------------------------*/

/* The principal channels of the golden's objects. 0 on success. */
static int fit_golden(Raster *r, Objects *o, float *bins)
{
    Error err;
    RasterMoments moments;
    *o = (Objects){.n = (int)golden_tensor("weights")->shape[0],
                   .grid_h = (int)golden_tensor("features")->shape[0],
                   .grid_w = (int)golden_tensor("features")->shape[1],
                   .channels = (int)golden_tensor("features")->shape[2],
                   .features = GOLDEN_F32("features"),
                   .coverage = GOLDEN_F32("weights")};
    if (raster_new(r, o->channels, &err) || raster_moments_new(&moments, o->channels, &err))
        return -1;
    for (int i = 0; i < o->n; i++)
        raster_add(&moments, o, i, bins);
    CHECK(moments.n == 16 * o->n);
    const int status = raster_principal(r, &moments, &err);
    raster_moments_free(&moments);
    return status;
}

/* The rows are orthonormal, and span the reference's space. */
static void test_principal(void)
{
    enum { MOST = 16 };
    static float bins[16 * MOST], vectors[8 * 128], gram[64], space[MOST * MOST];
    Raster r;
    Objects o;
    REQUIRE(golden_open("method_raster") && !fit_golden(&r, &o, bins));
    const int C = r.channels;
    CHECK(r.kept == 8 && r.dim == 128 && C <= MOST);
    CHECK_GOLDEN(r.mean, 1e-5, "mean");
    for (int a = 0; a < r.kept; a++)
        for (int b = 0; b < r.kept; b++)
            CHECK(fabsf(dot(r.basis + a * C, r.basis + b * C, C) - (a == b ? 1.0f : 0)) < 1e-6f);
    memset(space, 0, sizeof space);
    for (int k = 0; k < r.kept; k++)
        for (int a = 0; a < C; a++)
            for (int b = 0; b < C; b++)
                space[a * C + b] += r.basis[k * C + a] * r.basis[k * C + b];
    CHECK_GOLDEN(space, 1e-5, "space"); /* the space counts, not its basis */
    for (int i = 0; i < o.n; i++)
        raster_vector(&r, vectors + i * r.dim, &o, i, bins);
    for (int i = 0; i < o.n; i++)
        for (int j = 0; j < o.n; j++)
            gram[i * o.n + j] = dot(vectors + i * r.dim, vectors + j * r.dim, r.dim);
    CHECK_GOLDEN(gram, 1e-5, "gram");
    raster_free(&r);
}

/* Features of rank 1: one row is the direction, the others are 0. No object at all: all are 0. */
static void test_principal_without_variance(void)
{
    float features[3 * 12], coverage[12], bins[16 * 3];
    Raster r;
    RasterMoments moments;
    Error err;
    for (int p = 0; p < 12; p++) {
        coverage[p] = 1;
        for (int c = 0; c < 3; c++)
            features[3 * p + c] = 5 + (float)(p * p) * (float)(c - 1); /* along (-1, 0, 1) */
    }
    const Objects o = {
        .n = 1, .grid_h = 3, .grid_w = 4, .channels = 3, .features = features, .coverage = coverage};
    for (int n = 0; n <= 1; n++) {
        REQUIRE(!raster_new(&r, 3, &err) && !raster_moments_new(&moments, 3, &err));
        if (n)
            raster_add(&moments, &o, 0, bins);
        CHECK(!raster_principal(&r, &moments, &err));
        float length[3];
        for (int k = 0; k < 3; k++)
            length[k] = dot(r.basis + 3 * k, r.basis + 3 * k, 3);
        CHECK(fabsf(length[0] - (float)n) < 1e-5f);
        CHECK(!n || fabsf(fabsf(r.basis[2] - r.basis[0]) - sqrtf(2)) < 1e-4f);
        CHECK(n || (length[1] == 0 && length[2] == 0 && r.mean[0] == 0));
        raster_moments_free(&moments), raster_free(&r);
    }
}

/* ---- neighbours --------------------------------------------------------------------------------*/

static const float CENTRE[2 * 4] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};

/* Objects with these descriptors [n][2], all at one place. */
static Objects objects_at(int n, const float *descriptors)
{
    return (Objects){.n = n, .channels = 2, .descriptors = descriptors, .centroids = CENTRE};
}

/* Six images, of which one has no object and one is not allowed. 0.7 of the four others are two neighbours. */
static void test_neighbours(void)
{
    static const float mine[2 * 2] = {1, 0, 0, 1}, far[2] = {-1, 0}, twins[3 * 2] = {0, -1, 1, 0, 1, 0},
                                both[2 * 2] = {0, 1, 1, 0}, own[2 * 2] = {1, 0, 0, 1};
    const Objects images[6] = {objects_at(1, far),  objects_at(0, NULL), objects_at(3, twins),
                               objects_at(2, both), objects_at(2, own),  objects_at(1, far)};
    const int first[7] = {0, 1, 1, 4, 6, 8, 9}, allowed[5] = {0, 1, 2, 3, 5};
    const Objects query = objects_at(2, mine);
    Neighbours nb;
    Error err;
    NeighbourSearch search = {images, first, allowed, 5, 0.7f};
    REQUIRE(!raster_neighbours(&nb, &query, &search, &err));
    CHECK(nb.n == 2 && nb.m == 2);
    /* (1, 0) finds itself in two images: of the twins the first, and of both images the first. */
    CHECK(nb.found[0] == 2 && nb.found[1] == 5);
    /* (0, 1) finds itself once. Then all score 0, and the lowest number counts. */
    CHECK(nb.found[2] == 4 && nb.found[3] == 0);
    /* What (1, 0) finds in images 2 and 3 finds it, too. In images 0 and 5 it does not. (0, 1) is found by its like
     * in image 3, and by both far ones: -1 against 0. */
    CHECK(fabsf(nb.mutual[0] - 0.5f) < 1e-6f && fabsf(nb.mutual[1] - 0.75f) < 1e-6f);
    neighbours_free(&nb);
    search.n_allowed = 2; /* one with an object */
    REQUIRE(!raster_neighbours(&nb, &query, &search, &err));
    CHECK(nb.m == 1 && nb.found[0] == 0 && nb.found[1] == 0);
    neighbours_free(&nb);
    search.n_allowed = 0;
    REQUIRE(!raster_neighbours(&nb, &query, &search, &err));
    CHECK(nb.m == 0 && nb.mutual[0] == 0 && nb.mutual[1] == 0);
    neighbours_free(&nb);
    const Objects nothing = objects_at(0, NULL);
    search.n_allowed = 5;
    CHECK(!raster_neighbours(&nb, &nothing, &search, &err) && nb.n == 0);
    neighbours_free(&nb);
}

/* Never more than RASTER_MOST_NEIGHBOURS, the most similar first. */
static void test_most_neighbours(void)
{
    enum { N = 300 };
    static Objects images[N];
    static float descriptors[N][2];
    static int first[N + 1], allowed[N];
    for (int i = 0; i < N; i++) {
        descriptors[i][0] = (float)(i * 7 % N), descriptors[i][1] = 1;
        images[i] = objects_at(1, descriptors[i]);
        first[i] = allowed[i] = i;
    }
    first[N] = N;
    const float one[2] = {1, 0};
    const Objects query = objects_at(1, one);
    const NeighbourSearch search = {images, first, allowed, N, 0.7f};
    Neighbours nb;
    Error err;
    REQUIRE(!raster_neighbours(&nb, &query, &search, &err));
    CHECK(nb.m == RASTER_MOST_NEIGHBOURS && fabsf(nb.mutual[0] - 1) < 1e-5f);
    for (int k = 0; k < nb.m; k++)
        CHECK(nb.found[k] * 7 % N == N - 1 - k);
    neighbours_free(&nb);
}

/* ---- distances ---------------------------------------------------------------------------------*/

/* The example of METHOD.md: one part differs by 3. One neighbour at 0, then two at 1 and -1. */
static void test_example_distance(void)
{
    float vector[16] = {3}, whitened[3 * 16] = {0}, q = 0;
    Raster r;
    Error err;
    REQUIRE(!raw_raster(&r));
    memset(r.within, 0, 256 * sizeof *r.within), memset(r.all, 0, 256 * sizeof *r.all);
    memset(r.centre, 0, 16 * sizeof *r.centre);
    for (int c = 0; c < 16; c++)
        r.within[17 * c] = 1, r.all[17 * c] = 0.5f;
    whitened[16] = 1, whitened[32] = -1;
    CHECK(!raster_distance(&q, &r, vector, whitened, (int[]){0}, 1, &err));
    CHECK(fabsf(q - (34 / 33.0f * 9 - 2.25f)) < 1e-5f);
    CHECK(!raster_distance(&q, &r, vector, whitened, (int[]){2, 1}, 2, &err));
    CHECK(fabsf(q - 6.75f) < 1e-5f);
    raster_free(&r);
}

/* The reference inverts the whole covariance, with symmetric square roots. */
static void test_distance(void)
{
    enum { DIM = 128, N = 90 };
    static float whitened[N * DIM];
    REQUIRE(golden_open("method_raster"));
    for (int c = 0; c < 4; c++) {
        Raster r;
        Error err;
        float q = 0;
        REQUIRE(!raster_new(&r, 8, &err) && r.dim == DIM && golden_tensor("%d.vectors", c)->shape[0] == N);
        const float *vectors = GOLDEN_F32("%d.vectors", c);
        CHECK(!raster_fit(&r, vectors, GOLDEN_F32("%d.deviations", c), N, &err));
        raster_whiten(&r, whitened, vectors, N);
        CHECK(!raster_distance(&q, &r, GOLDEN_F32("%d.vector", c), whitened, GOLDEN_I32("%d.found", c),
                               (int)golden_tensor("%d.found", c)->n_elements, &err));
        CHECK_GOLDEN(&q, 1e-5, "%d.q", c);
        raster_free(&r);
    }
}

/* Rasters without any deviation, and no rasters at all: the ridge is 1, nothing is unusual. */
static void test_fit_of_equals(void)
{
    static float vectors[5 * 16], deviations[5 * 16], whitened[5 * 16];
    for (int i = 0; i < 5 * 16; i++)
        vectors[i] = 7;
    for (int n = 0; n <= 5; n += 5) {
        Raster r;
        Error err;
        float q = 1;
        REQUIRE(!raw_raster(&r));
        CHECK(!raster_fit(&r, vectors, deviations, n, &err));
        raster_whiten(&r, whitened, vectors, 5);
        CHECK(r.centre[3] == (n ? 7 : 0) && r.within[0] == 1 && r.all[17] == 1);
        CHECK(!raster_distance(&q, &r, vectors, whitened, (int[]){0, 1, 2, 3}, 4, &err));
        CHECK(q == (n ? 0 : -16 * 49.0f)); /* exactly where its neighbours are */
        raster_free(&r);
    }
}

static void test_mean(void)
{
    static const float vectors[3 * 2] = {1, 2, 5, 8, 3, -4};
    float mean[2];
    raster_mean(mean, vectors, (int[]){2, 0}, 2, 2);
    CHECK(mean[0] == 2 && mean[1] == -1);
    raster_mean(mean, vectors, NULL, 0, 2);
    CHECK(mean[0] == 0 && mean[1] == 0);
}

/* 0 to 4: median 2, three quarters 3, 95 % 3.8. The tail's 1.8 is less than 2.44 times 1. */
static void test_unit(void)
{
    static const int counts[5] = {1, 2, 3, 10, 64};
    static const float some[6] = {4, 0, 100, 1, 3, 2};
    float scratch[RASTER_MOST_NEIGHBOURS];
    CHECK(fabsf(raster_unit(some, (int[]){0, 1, 3, 4, 5}, 5, scratch) - 2.44f) < 1e-6f);
    CHECK(scratch[0] == 0 && scratch[2] == 2 && scratch[4] == 4);
    CHECK(raster_unit(some, (int[]){2}, 1, scratch) == 0 && scratch[0] == 100);
    REQUIRE(golden_open("method_raster"));
    int found[64];
    float units[5];
    for (int k = 0; k < 64; k++)
        found[k] = k;
    for (int i = 0; i < 5; i++)
        units[i] = raster_unit(GOLDEN_F32("scores"), found, counts[i], scratch);
    CHECK_GOLDEN(units, 1e-5, "units");
}

int main(void)
{
    RUN(test_example_parts);
    RUN(test_box);
    RUN(test_principal);
    RUN(test_principal_without_variance);
    RUN(test_neighbours);
    RUN(test_most_neighbours);
    RUN(test_example_distance);
    RUN(test_distance);
    RUN(test_fit_of_equals);
    RUN(test_mean);
    RUN(test_unit);
    st_close(golden);
    return test_summary();
}
