/* test_dcga.c - masks to objects to descriptors, against make_golden_method.py and against properties that
 * hold for any input. */
#include "dcga.h"

#include "tensor.h"
#include "method_golden.h"
#include "plain.h"

static const ObjectsOptions OBJECTS = {.max_area = 0.9, .min_area = 0.0005, .min_kept = 0.5, .background = 1};
static const DcgaOptions DCGA = {.channel_graph = CHANNEL_COVARIANCE,
                                 .rounds = 2,
                                 .partners = 4,
                                 .shrinkage = 0.3f,
                                 .channel_strength = 0.1f,
                                 .channel_tau = 1,
                                 .object_strength = 0,
                                 .object_tau = 0.1f};

/* ---- objects -------------------------------------------------------------------------------------------*/

static Rle *encode_all(const uint8_t *masks, int n, int height, int width)
{
    Rle *rles = calloc((size_t)n + 1, sizeof *rles);
    Error err;
    for (int i = 0; i < n; i++)
        CHECK_MSG(
            !rle_encode(&rles[i], masks + (size_t)i * (size_t)height * (size_t)width, height, width, &err),
            "%s", err.message);
    return rles;
}

static void free_all(Rle *rles, int n)
{
    for (int i = 0; i < n; i++)
        rle_free(&rles[i]);
    free(rles);
}

static void one_objects_case(int c)
{
    const StTensor *masks = golden_tensor("%d.masks", c), *features = golden_tensor("%d.features", c);
    REQUIRE(masks->data && features->data);
    int n_masks = (int)masks->shape[0], height = (int)masks->shape[1], width = (int)masks->shape[2];
    int has_background = GOLDEN_I32("%d.background", c)[1];
    int32_t *labels = malloc((size_t)height * (size_t)width * sizeof *labels);
    int *kept = malloc(((size_t)n_masks + 1) * sizeof *kept);
    Rle *rles = encode_all(masks->data, n_masks, height, width);
    Error err;
    int n_kept = objects_labels(labels, kept, rles, n_masks, height, width, &OBJECTS, &err);
    CHECK_GOLDEN_INTS(labels, "%d.labels", c);
    CHECK_MSG(n_kept == (int)golden_tensor("%d.kept", c)->n_elements, "case %d keeps %d masks, expected %zu",
              c, n_kept, golden_tensor("%d.kept", c)->n_elements);
    if (n_kept == (int)golden_tensor("%d.kept", c)->n_elements) {
        CHECK_GOLDEN_INTS(kept, "%d.kept", c);
        Objects o = {.n = n_kept + has_background,
                     .has_background = has_background,
                     .grid_h = (int)features->shape[0],
                     .grid_w = (int)features->shape[1],
                     .channels = (int)features->shape[2],
                     .features = features->data};
        Objects all = o, copy;
        float *coverage = malloc(((size_t)o.n + 1) * (size_t)(o.grid_h * o.grid_w) * sizeof *coverage);
        CHECK(!objects_coverage(coverage, &o, labels, height, width, &err));
        CHECK_GOLDEN(coverage, 1e-6, "%d.weights", c);
        REQUIRE(!objects_new(&o, coverage, &err));
        CHECK_GOLDEN(o.pooled, 1e-5, "%d.pooled", c);
        CHECK_GOLDEN(o.centroids, 1e-6, "%d.centroids", c);
        CHECK_GOLDEN(o.areas, 1e-6, "%d.areas", c);
        ObjectsOptions options = OBJECTS;
        options.background = GOLDEN_I32("%d.background", c)[0];
        REQUIRE(!masks_to_objects(&all, labels, rles, n_masks, height, width, &options, &err) &&
                !objects_copy(&copy, &all, &err));
        CHECK(copy.n == o.n && copy.has_background == has_background && copy.features == o.features);
        CHECK(memcmp(copy.coverage, coverage, (size_t)(o.n * o.grid_h * o.grid_w) * sizeof(float)) == 0 &&
              memcmp(copy.pooled, o.pooled, (size_t)(o.n * o.channels) * sizeof(float)) == 0 &&
              memcmp(copy.centroids, o.centroids, (size_t)(2 * o.n) * sizeof(float)) == 0 &&
              memcmp(copy.areas, o.areas, (size_t)o.n * sizeof(float)) == 0);
        objects_free(&o), objects_free(&all), objects_free(&copy);
        free(coverage);
    }
    free_all(rles, n_masks);
    free(kept), free(labels);
}

static void test_objects_golden(void)
{
    REQUIRE(golden_open("method_objects"));
    int n = GOLDEN_I32("cases")[0];
    CHECK(n >= 10);
    for (int c = 0; c < n; c++)
        one_objects_case(c);
}

/* Every pixel belongs to one object or the background, so the coverage of a cell sums to 1. This holds for
 * all shapes, also very large ones. */
static void test_coverage_sums_to_one(void)
{
    static const int shapes[][4] = {{1, 1, 1, 1},     {1, 1, 7, 5},      {1, 5000, 56, 56},  {5000, 1, 3, 2},
                                    {13, 17, 13, 17}, {97, 101, 56, 55}, {2900, 2100, 4, 3}, {3, 2, 64, 64}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        Error err;
        int height = shapes[s][0], width = shapes[s][1], h = shapes[s][2], w = shapes[s][3];
        int32_t *labels = malloc((size_t)height * (size_t)width * sizeof *labels);
        for (int p = 0; p < height * width; p++)
            labels[p] = (int)((unsigned)p * 2654435761u >> 30) - 1; /* -1 .. 2 */
        float *coverage = malloc(4 * (size_t)h * (size_t)w * sizeof *coverage);
        const Objects shape = {.n = 4, .has_background = 1, .grid_h = h, .grid_w = w};
        CHECK(!objects_coverage(coverage, &shape, labels, height, width, &err));
        double worst = 0;
        for (int p = 0; p < h * w; p++) {
            double sum = 0;
            for (int i = 0; i < 4; i++)
                sum += coverage[i * h * w + p];
            worst = fabs(sum - 1) > worst ? fabs(sum - 1) : worst; /* not by fmax: see omm.c */
        }
        CHECK_MSG(worst < 2e-6, "%dx%d on %dx%d: coverage sums to 1 +- %g", width, height, w, h, worst);
        free(coverage), free(labels);
    }
}

/* Options at their limits: everything is dropped, or nothing. */
static void test_objects_options(void)
{
    uint8_t masks[3][16] = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1}, {1}};
    Rle *rles = encode_all(masks[0], 3, 4, 4);
    int32_t labels[16];
    int kept[3];
    Error err;
    ObjectsOptions all = {.max_area = 1, .min_area = 0, .min_kept = 0, .background = 1},
                   none = {.max_area = 0, .min_area = 0, .min_kept = 0};
    CHECK(objects_labels(labels, kept, rles, 3, 4, 4, &all, &err) == 3);
    CHECK(labels[0] == 2 && labels[1] == 1 && labels[15] == 0);
    CHECK(objects_labels(labels, NULL, rles, 3, 4, 4, &none, &err) == 0);
    CHECK(labels[0] == -1 && labels[15] == -1);
    free_all(rles, 3);
}

/* ---- descriptors ---------------------------------------------------------------------------------------*/

typedef struct Fitted {
    Dcga dcga;
    Objects image;
} Fitted;

/* Fit to objects [first[n_images]][C] of which image i owns first[i] to first[i+1]-1; at most 16 images. */
static int fit_flat(Dcga *dcga, const DcgaOptions *options, int channels, const float *pooled,
                    const float *centroids, const int *first, int n_images, Error *err)
{
    Objects images[16];
    CHECK(n_images <= 16);
    for (int i = 0; i < n_images; i++)
        images[i] = (Objects){.n = first[i + 1] - first[i],
                              .channels = channels,
                              .pooled = pooled + first[i] * channels,
                              .centroids = centroids + 2 * first[i]};
    return dcga_fit(dcga, options, images, n_images, err);
}

static int fit(Fitted *f, const DcgaOptions *options)
{
    const StTensor *pooled = golden_tensor("pooled"), *first = golden_tensor("first"),
                   *features = golden_tensor("one.features");
    Error err;
    *f = (Fitted){.image = {.n = (int)golden_tensor("one.pooled")->shape[0],
                            .grid_h = (int)features->shape[0],
                            .grid_w = (int)features->shape[1],
                            .channels = (int)features->shape[2],
                            .features = features->data,
                            .coverage = GOLDEN_F32("one.weights"),
                            .pooled = GOLDEN_F32("one.pooled")}};
    int status = fit_flat(&f->dcga, options, f->image.channels, pooled->data, GOLDEN_F32("centroids"),
                          first->data, (int)first->n_elements - 1, &err);
    CHECK_MSG(!status, "%s", err.message);
    return status;
}

/* Descriptors of the image's objects together, or of each as a region alone. */
static float *describe(const Fitted *f)
{
    Error err;
    float *h = calloc((size_t)f->image.n * (size_t)f->image.channels, sizeof *h);
    CHECK(!dcga_describe(&f->dcga, h, &f->image, &err));
    return h;
}

static float *describe_alone(const Fitted *f)
{
    const Objects *o = &f->image;
    Error err;
    float *h = calloc((size_t)o->n * (size_t)o->channels, sizeof *h);
    for (int i = 0; i < o->n; i++)
        CHECK(!dcga_describe_region(&f->dcga, h + i * o->channels, o, o->pooled + i * o->channels,
                                    o->coverage + i * o->grid_h * o->grid_w, &err));
    return h;
}

/* The C code filters by a Cholesky factor, the golden by the symmetric root. Their inner products are the
 * same. */
static void test_covariance(void)
{
    static const struct {
        int rounds, partners;
        float shrinkage;
    } settings[] = {{1, 4, 0.3f}, {2, 4, 0.3f}, {3, 100, 0.05f}};
    REQUIRE(golden_open("method_dcga"));
    const StTensor *pooled = golden_tensor("pooled");
    for (int s = 0; s < 3; s++) {
        DcgaOptions options = DCGA;
        Fitted f;
        Error err;
        options.rounds = settings[s].rounds, options.partners = settings[s].partners,
        options.shrinkage = settings[s].shrinkage;
        if (fit(&f, &options))
            return;
        CHECK_GOLDEN(f.dcga.mean, 1e-6, "mean");
        CHECK_GOLDEN(f.dcga.std, 1e-6, "std");
        int n = (int)pooled->shape[0], C = f.image.channels;
        const Objects bank = {.n = n, .channels = C, .pooled = pooled->data};
        float *h = calloc((size_t)n * (size_t)C, sizeof *h),
              *gram = calloc((size_t)n * (size_t)n, sizeof *gram);
        CHECK(!dcga_describe(&f.dcga, h, &bank, &err));
        plain_matmul_nt(gram, n, h, C, h, C, n, n, C, 0);
        CHECK_GOLDEN(gram, 1e-5, "covariance.%d.gram", options.rounds);
        free(h), free(gram);
        dcga_free(&f.dcga);
    }
}

static void check_described(const DcgaOptions *options, const char *name)
{
    Fitted f;
    if (fit(&f, options))
        return;
    float *h = describe(&f);
    CHECK_GOLDEN(h, 1e-5, "%s", name);
    free(h);
    dcga_free(&f.dcga);
}

static void test_softmax_graph(void)
{
    DcgaOptions options = DCGA;
    REQUIRE(golden_open("method_dcga"));
    options.channel_graph = CHANNEL_SOFTMAX;
    check_described(&options, "softmax.h");
    options.channel_strength = 0.7f, options.channel_tau = 2.5f;
    check_described(&options, "softmax.strong");
}

static void test_object_graph(void)
{
    DcgaOptions options = DCGA;
    Fitted f;
    REQUIRE(golden_open("method_dcga"));
    options.channel_graph = CHANNEL_OFF;
    options.object_strength = 0.4f;
    check_described(&options, "graph.h");
    options.object_strength = 3, options.object_tau = 1;
    check_described(&options, "graph.soft");
    /* Left out: as without a graph. */
    if (fit(&f, &options))
        return;
    float *alone = describe_alone(&f);
    f.dcga.options.object_strength = 0;
    float *without = describe(&f);
    CHECK(memcmp(alone, without, (size_t)f.image.n * (size_t)f.image.channels * sizeof(float)) == 0);
    free(alone), free(without);
    dcga_free(&f.dcga);
}

static Safetensors *attach(Fitted *f, const char *path)
{
    Error err;
    Safetensors *st = st_open(path, &err);
    CHECK_MSG(st && !dcga_learned(&f->dcga, st, &err), "%s", err.message);
    return st;
}

static void test_learned(void)
{
    DcgaOptions options = DCGA;
    Fitted f;
    REQUIRE(golden_open("method_dcga"));
    options.channel_graph = CHANNEL_OFF;
    if (fit(&f, &options))
        return;
    Safetensors *st = attach(&f, "tests/golden/method_gat_object.safetensors");
    float *h = describe(&f), *alone = describe_alone(&f);
    CHECK_GOLDEN(h, 1e-5, "gat.object");
    CHECK_GOLDEN(alone, 1e-5, "gat.alone"); /* each object has only itself to attend to */
    free(h), free(alone);
    dcga_free(&f.dcga);
    st_close(st);
    if (fit(&f, &options))
        return;
    st = attach(&f, "tests/golden/method_gat_channel.safetensors");
    h = describe(&f);
    CHECK_GOLDEN(h, 1e-5, "gat.channel");
    free(h);
    dcga_free(&f.dcga);
    st_close(st);
}

static void test_learned_refused(void)
{
    Fitted f;
    Error err = {""};
    REQUIRE(golden_open("method_dcga"));
    if (fit(&f, &DCGA))
        return;
    CHECK(dcga_learned(&f.dcga, golden, &err) == -1 && strstr(err.message, "not DCGA weights"));
    f.dcga.channels++;
    Safetensors *st = st_open("tests/golden/method_gat_object.safetensors", &err);
    CHECK(st && dcga_learned(&f.dcga, st, &err) == -1 && strstr(err.message, "object.lin_l.weight"));
    st_close(st);
    dcga_free(&f.dcga);
}

/* Banks without anything to fit a filter to: one image, no objects at all, all objects the same. */
static void test_poor_banks(void)
{
    static const float same[6][3] = {{1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}},
                       centroids[6][2] = {{0.1f, 0.2f}};
    static const int firsts[3][3] = {{0, 6, 6}, {0, 0, 0}, {0, 3, 6}};
    for (int c = 0; c < 3; c++) {
        Dcga d;
        Error err;
        float h[3] = {9, 9, 9};
        REQUIRE(!fit_flat(&d, &DCGA, 3, same[0], centroids[0], firsts[c], 2, &err));
        CHECK(d.filter == NULL);
        const Objects one = {.n = 1, .channels = 3, .pooled = (const float[]){2, 2, 4}},
                      none = {.channels = 3};
        CHECK(!dcga_describe(&d, h, &one, &err));
        CHECK(fabs(h[0] * h[0] + h[1] * h[1] + h[2] * h[2] - 1) < 1e-6);
        CHECK(!dcga_describe(&d, h, &none, &err)); /* no object, nothing to do */
        dcga_free(&d);
    }
}

/* A channel that is constant except for rounding must not be amplified. Descriptors that differ only by
 * float16's rounding of it stay alike. */
static void test_constant_channel(void)
{
    enum { N = 8 };
    float pooled[N][4], centroids[N][2];
    const int first[3] = {0, N / 2, N};
    for (int i = 0; i < N; i++) {
        const int k = i % (N / 2);
        const float row[4] = {1.36f + 4e-6f * (float)(i % 3), (float)(k % 2), (float)(k / 2),
                              0.1f * (float)k};
        memcpy(pooled[i], row, sizeof row);
        centroids[i][0] = 0.2f + 0.2f * (float)k, centroids[i][1] = 0.5f;
    }
    for (int graph = CHANNEL_OFF; graph <= CHANNEL_COVARIANCE; graph++) {
        DcgaOptions options = DCGA;
        Dcga d;
        Error err;
        float exact[4], rounded[4], stored[4];
        options.channel_graph = (ChannelGraph)graph;
        REQUIRE(!fit_flat(&d, &options, 4, pooled[0], centroids[0], first, 2, &err));
        memcpy(stored, pooled[3], sizeof stored);
        stored[0] = 1.3603516f; /* the nearest float16 */
        CHECK(!dcga_describe(&d, exact, &(Objects){.n = 1, .channels = 4, .pooled = pooled[3]}, &err));
        CHECK(!dcga_describe(&d, rounded, &(Objects){.n = 1, .channels = 4, .pooled = stored}, &err));
        CHECK(test_relative_error(rounded, exact, 4) < 2e-3);
        dcga_free(&d);
    }
    CHECK(channel_deviation(0, 0) == 1 && channel_deviation(5, 0.5) == 0.5f &&
          channel_deviation(-5, 4e-3) == 1);
}

/* ---- docs/METHOD.md's example, worked out by hand ----------------------------------------------------*/

/* A grid of 1×4 cells, two channels, two objects; a bank of two images with a left and a right object each.
 *     a_1 = ((4, 0.1) + 0.5·(5.5, 1))/1.5 = (4.5, 0.4)      a_2 = (0.5·(-8, 0.5) + (-5, 0.2))/1.5 = (-6, 0.3)
 *     c_1 = (0.125 + 0.5·0.375)/1.5 = 0.2083, A_1 = 1.5/4;  c_2 and A_2 likewise from the right
 *     μ = (0, 0), σ = (√((49 + 1 + 1 + 49)/4), 1) = (5, 1); of left with left and right with right δ = ±(1.2, 0)
 *     Σ_w = diag(0.72, 0) + 0.25·0.36·I = diag(0.81, 0.09), L = diag(0.9, 0.3)
 *     x_1 = (0.9, 0.4), L⁻¹x_1 = (1, 4/3), h_1 = (0.6, 0.8); x_2 = (-1.2, 0.3), h_2 = (-0.8, 0.6) */
static void test_example(void)
{
    static const float features[4][2] = {{4, 0.1f}, {5.5f, 1}, {-8, 0.5f}, {-5, 0.2f}};
    static const float coverage[2][4] = {{1, 0.5f, 0, 0}, {0, 0, 0.5f, 1}};
    static const float bank[4][2] = {{7, 1}, {-1, -1}, {1, 1}, {-7, -1}};
    static const float places[4][2] = {{0.25f, 0.5f}, {0.75f, 0.5f}, {0.25f, 0.5f}, {0.75f, 0.5f}};
    static const float pooled[4] = {4.5f, 0.4f, -6, 0.3f}, expected[4] = {0.6f, 0.8f, -0.8f, 0.6f};
    static const float centroids[4] = {0.3125f / 1.5f, 0.5f, 1 - 0.3125f / 1.5f, 0.5f};
    static const int first[3] = {0, 2, 4};
    Objects o = {.n = 2, .grid_h = 1, .grid_w = 4, .channels = 2, .features = features[0]};
    DcgaOptions options = DCGA;
    float h[4];
    Dcga d;
    Error err;
    options.shrinkage = 0.25f;
    REQUIRE(!objects_new(&o, coverage[0], &err));
    REQUIRE(!fit_flat(&d, &options, 2, bank[0], places[0], first, 2, &err));
    CHECK(d.mean[0] == 0 && d.mean[1] == 0 && d.std[0] == 5 && d.std[1] == 1);
    CHECK(d.filter && fabsf(d.filter[0] - 1 / 0.9f) < 1e-6f && fabsf(d.filter[3] - 1 / 0.3f) < 1e-5f);
    REQUIRE(!dcga_describe(&d, h, &o, &err));
    for (int i = 0; i < 4; i++) {
        CHECK(fabsf(o.pooled[i] - pooled[i]) < 1e-6f && fabsf(o.centroids[i] - centroids[i]) < 1e-6f);
        CHECK_MSG(fabsf(h[i] - expected[i]) < 1e-6f, "h[%d] is %g", i, (double)h[i]);
    }
    CHECK(o.areas[0] == 0.375f && o.areas[1] == 0.375f);
    dcga_free(&d);
    objects_free(&o);
}

static void test_mutual_pairs(void)
{
    static const float score[3][4] = {{1, 5, 2, 0}, {0, 6, 7, 0}, {3, 1, 1, 1}};
    int pairs[3][2];
    CHECK(mutual_pairs(pairs, score[0], 3, 4) == 2);
    CHECK(pairs[0][0] == 1 && pairs[0][1] == 2 && pairs[1][0] == 2 && pairs[1][1] == 0);
    CHECK(mutual_pairs(pairs, score[0], 0, 4) == 0 && mutual_pairs(pairs, score[0], 3, 0) == 0);
    const float nan[2][2] = {{NAN, NAN}, {NAN, NAN}};
    int n = mutual_pairs(pairs, nan[0], 2, 2);
    CHECK(n >= 0 && n <= 2);
}

int main(void)
{
    RUN(test_objects_golden);
    RUN(test_coverage_sums_to_one);
    RUN(test_objects_options);
    RUN(test_example);
    RUN(test_mutual_pairs);
    RUN(test_constant_channel);
    RUN(test_covariance);
    RUN(test_softmax_graph);
    RUN(test_object_graph);
    RUN(test_learned);
    RUN(test_learned_refused);
    RUN(test_poor_banks);
    st_close(golden);
    return test_summary();
}
