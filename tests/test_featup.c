/* test_featup.c - featup.c and fast/featup_fold.c against the official JBU stack (make_golden_featup.py) and
 * against each other. Hostile files are refused. */
#include "damage.h"
#include "numbers.h"
#include "test.h"

#include "featup.h"
#include "io/safetensors.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define GOLDEN "tests/golden/"
static const double TOLERANCE = 1e-5; /* of the output's largest magnitude */

/* The plain form is plain_* in the fast build, and the only one with PLAIN=1. */
#ifdef SAMLAD_PLAIN
#define plain_featup_upsample  featup_upsample
#define plain_features_to_grid features_to_grid
#else
extern __typeof__(featup_upsample) plain_featup_upsample;
extern __typeof__(features_to_grid) plain_features_to_grid;
#endif
static __typeof__(featup_upsample) *upsample_form = featup_upsample; /* the form under test */

static const float *golden_data(Safetensors *golden, const char *key, const char *name, int64_t shape[3])
{
    char full_name[128];
    Error err = {""};
    snprintf(full_name, sizeof full_name, "%s.%s", key, name);
    const StTensor *t = st_find(golden, full_name);
    if (!t || t->n_dims != 3)
        return NULL;
    memcpy(shape, t->shape, 3 * sizeof *shape);
    return st_f32(golden, full_name, 3, t->shape, &err);
}

/* Stages 1..n_stages of one case. The golden files hold only every every[i]-th row. */
static void compare_case(const Featup *featup, Safetensors *golden, const char *key, int n_stages,
                         const int *every)
{
    int64_t in[3], guide[3], want[3];
    Error err = {""};
    const float *features = golden_data(golden, key, "features", in);
    const float *guidance = golden_data(golden, key, "guidance", guide);
    REQUIRE(features && guidance && guide[0] == 3);
    for (int stages = 1; stages <= n_stages; stages++) {
        char name[16];
        snprintf(name, sizeof name, "stage%d", stages);
        const float *expected = golden_data(golden, key, name, want);
        const int64_t h = in[0] << stages, w = in[1] << stages, c = in[2], step = every[stages - 1];
        REQUIRE(expected && want[0] == (h + step - 1) / step && want[1] == w && want[2] == c);
        float *out = malloc((size_t)(h * w * c) * sizeof *out);
        REQUIRE(out);
        const FeatupInput input = {features, (int)in[0],    (int)in[1],   (int)c,
                                   guidance, (int)guide[1], (int)guide[2]};
        int status = upsample_form(featup, out, &input, stages, &err);
        CHECK_MSG(status == 0, "%s", err.message);
        for (int64_t row = 0; row < want[0]; row++) /* bring the golden rows together */
            memmove(out + row * w * c, out + row * step * w * c, (size_t)(w * c) * sizeof *out);
        double error = test_relative_error(out, expected, (size_t)(want[0] * w * c));
        CHECK_MSG(error < TOLERANCE, "%s, stage %d: relative error %.2g", key, stages, error);
        free(out);
    }
}

static Featup *open_stack(const char *path, Safetensors **st)
{
    Error err = {""};
    *st = st_open(path, &err);
    Featup *featup = *st ? featup_open(*st, &err) : NULL;
    CHECK_MSG(featup, "%s", err.message);
    return featup;
}

static void test_random_stack(void)
{
    Error err = {""};
    Safetensors *st, *golden = st_open(GOLDEN "featup_golden.safetensors", &err);
    Featup *featup = open_stack(GOLDEN "featup_model.safetensors", &st);
    REQUIRE(golden && featup);
    CHECK(featup_stages(featup) == 4);
    compare_case(featup, golden, "5x6x7", 4, (int[]){1, 2, 4, 16}); /* 7 channels: with the final fixup */
    compare_case(featup, golden, "3x4x83", 2, (int[]){2, 5});
    compare_case(featup, golden, "2x35x3", 2, (int[]){1, 2});
    featup_close(featup);
    st_close(st);
    st_close(golden);
}

/* The published stack, trained for 512 channels, on 8 channels: its last fixup is not used. */
static void test_real_stack(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set (FeatUp's published stack)");
    char path[1024];
    Error err = {""};
    snprintf(path, sizeof path, "%s/featup/clip_jbu_stack.safetensors", test_data_dir());
    Safetensors *st, *golden = st_open(GOLDEN "featup_real_golden.safetensors", &err);
    Featup *featup = open_stack(path, &st);
    REQUIRE(golden && featup);
    CHECK(featup_stages(featup) == 4);
    compare_case(featup, golden, "6x6x8", 4, (int[]){1, 2, 4, 8});
    featup_close(featup);
    st_close(st);
    st_close(golden);
}

/* The fast grid is the plain one: pooled and enlarged, with FeatUp and bilinearly, displaced or not. */
static void test_grids_agree(void)
{
    static const GridSize sizes[] = {{9, 13}, {40, 48}, {45, 47}, {50, 70}};
    enum { H = 5, W = 6, C = 37, LARGEST = 50 * 70 * C };
    Safetensors *st;
    Error err = {""};
    Featup *featup = open_stack(GOLDEN "featup_model.safetensors", &st);
    REQUIRE(featup);
    float *source = random_array(H * W * C), *guidance = random_array(3 * 20 * 21);
    float *fast = random_array(LARGEST), *plain = random_array(LARGEST);
    const FeatupInput in = {source, H, W, C, guidance, 20, 21};
    for (size_t i = 0; i < 4 * sizeof sizes / sizeof *sizes; i++) {
        const GridSize size = sizes[i / 4];
        const Featup *stack = i % 2 ? featup : NULL;
        const int back = i / 2 % 2 ? 4 : 0;
        REQUIRE(features_to_grid(fast, size, stack, &in, 3, back, &err) == 0);
        REQUIRE(plain_features_to_grid(plain, size, stack, &in, 3, back, &err) == 0);
        const double error = test_relative_error(fast, plain, (size_t)size.h * (size_t)size.w * C);
        CHECK_MSG(error < TOLERANCE, "grid %d x %d, back %d: relative error %.2g", size.h, size.w, back,
                  error);
    }
    CHECK(features_to_grid(fast, sizes[0], featup, &in, 5, 0, &err) == -1);
    free(plain);
    free(fast);
    free(guidance);
    free(source);
    featup_close(featup);
    st_close(st);
}

/* docs/METHOD.md 3, the example of two views: one row of three patches, enlarged by 2. */
static void test_example_views(void)
{
    static const float first[3] = {0, 2, 4}, second[3] = {0, 4, 4},
                       expected[6] = {0, 0.25f, 1.25f, 2.75f, 3.75f, 4};
    float a[12], b[12];
    const GridSize size = {2, 6};
    Error err = {""};
    REQUIRE(!features_to_grid(a, size, NULL, &(FeatupInput){first, 1, 3, 1, first, 1, 1}, 1, 0, &err));
    REQUIRE(!features_to_grid(b, size, NULL, &(FeatupInput){second, 1, 3, 1, second, 1, 1}, 1, 1, &err));
    for (int i = 0; i < 12; i++)
        CHECK(fabsf(0.5f * (a[i] + b[i]) - expected[i % 6]) < 1e-6f);
}

/* Without a stack: torch's bilinear, and a copy at stage 0. */
static void test_bilinear(void)
{
    const float features[4] = {0, 1, 2, 3}, guidance[3] = {0};
    const float row0[4] = {0, 0.25f, 0.75f, 1}; /* torch.nn.functional.interpolate of [0, 1] to 4 */
    float out[16];
    const FeatupInput in = {features, 2, 2, 1, guidance, 1, 1};
    Error err = {""};
    CHECK(featup_upsample(NULL, out, &in, 1, &err) == 0);
    for (int y = 0; y < 4; y++)
        for (int x = 0; x < 4; x++)
            CHECK(fabsf(out[4 * y + x] - (row0[x] + 2 * row0[y])) < 1e-6f);
    CHECK(featup_upsample(NULL, out, &in, 0, &err) == 0);
    CHECK(memcmp(out, features, sizeof features) == 0);
}

/* Features of one pixel. The official code cannot mirror there. Ours gives the result of a constant map: the
 * constant times the kernel's sum, the same for every channel up to its factor. */
static void test_one_pixel(void)
{
    Safetensors *st;
    Error err = {""};
    Featup *featup = open_stack(GOLDEN "featup_model.safetensors", &st);
    REQUIRE(featup);
    const float features[2] = {1, -3}, guidance[12] = {1, -1, 0.5f, 0, 2, 1, -1, 0, 0, 1, 0.2f, -0.3f};
    float out[2 * 4 * 2];
    const FeatupInput two = {features, 1, 2, 1, guidance, 2, 2}, one = {features, 1, 1, 2, guidance, 2, 2};
    CHECK(upsample_form(featup, out, &two, 1, &err) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(isfinite(out[i]));
    CHECK(upsample_form(featup, out, &one, 1, &err) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(fabsf(out[2 * i] * -3 - out[2 * i + 1]) < 1e-5f && fabsf(out[2 * i] - 1) < 0.9f);
    featup_close(featup);
    st_close(st);
}

/* The plain form passes the same tests. */
static void with_plain_form(void (*test)(void))
{
    upsample_form = plain_featup_upsample;
    test();
    upsample_form = featup_upsample;
}

static void test_plain_random_stack(void)
{
    with_plain_form(test_random_stack);
}

static void test_plain_real_stack(void)
{
    with_plain_form(test_real_stack);
}

static void test_plain_one_pixel(void)
{
    with_plain_form(test_one_pixel);
}

static void test_threads_give_the_same_bits(void)
{
#ifdef _OPENMP
    enum { H = 11, W = 37, C = 24, G = 64, N = 16 * H * W * C };
    Safetensors *st;
    Error err = {""};
    Featup *featup = open_stack(GOLDEN "featup_model.safetensors", &st);
    float *features = malloc(H * W * C * sizeof *features), *guidance = malloc(3 * G * G * sizeof *guidance);
    float *one = malloc(N * sizeof *one), *many = malloc(N * sizeof *many);
    REQUIRE(featup && features && guidance && one && many);
    for (int i = 0; i < H * W * C; i++)
        features[i] = (float)(i * 7919 % 1000) / 250.0f - 2.0f;
    for (int i = 0; i < 3 * G * G; i++)
        guidance[i] = (float)(i * 104729 % 1000) / 250.0f - 2.0f;
    const FeatupInput in = {features, H, W, C, guidance, G, G};
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    CHECK(featup_upsample(featup, one, &in, 2, &err) == 0);
    omp_set_num_threads(3);
    CHECK(featup_upsample(featup, many, &in, 2, &err) == 0);
    omp_set_num_threads(before);
    CHECK(memcmp(one, many, N * sizeof *one) == 0);
    free(many);
    free(one);
    free(guidance);
    free(features);
    featup_close(featup);
    st_close(st);
#else
    SKIP("built without OpenMP");
#endif
}

/* ---- files that must be refused ---------------------------------------------------------------------*/

#define BROKEN "test_featup_broken.tmp.safetensors"

static int write_damaged_stack(const Damage *damage)
{
    Error err = {""};
    Safetensors *good = st_open(GOLDEN "featup_model.safetensors", &err);
    const int status = good ? write_damaged(good, damage, BROKEN) : -1;
    st_close(good);
    return status;
}

static void refuse(Damage damage, const char *word)
{
    Error err = {""};
    REQUIRE(write_damaged_stack(&damage) == 0);
    Safetensors *st = st_open(BROKEN, &err);
    REQUIRE(st);
    Featup *featup = featup_open(st, &err);
    CHECK_MSG(!featup, "opened although %s is wrong", word);
    CHECK_MSG(strstr(err.message, BROKEN) && strstr(err.message, word), "no clear sentence: %s", err.message);
    featup_close(featup);
    st_close(st);
    remove(BROKEN);
}

static void test_tensors_are_checked(void)
{
    refuse((Damage){.without = "up1.range_temp"}, "up1.range_temp");
    refuse((Damage){.without = "up3.sigma_spatial"}, "up3.sigma_spatial");
    refuse((Damage){.without = "up2.fixup_proj.3.bias"}, "up2.fixup_proj.3.bias");
    refuse((Damage){.without = "fixup_proj.1.bias"}, "fixup_proj.1.bias");
    refuse((Damage){.halved = "up1.range_proj.0.weight"}, "up1.range_proj");
    refuse((Damage){.halved = "up4.fixup_proj.0.weight"}, "up4.fixup_proj.0.weight");
    refuse((Damage){.halved = "fixup_proj.1.weight"}, "fixup_proj.1.weight");
    refuse((Damage){.changed = "up2.sigma_spatial", .number = 0}, "up2.sigma_spatial");
    refuse((Damage){.changed = "up2.sigma_spatial", .number = 1e-25f}, "up2.sigma_spatial");
    refuse((Damage){.changed = "up2.range_temp", .number = NAN}, "up2.range_temp");
}

static void test_arguments_are_checked(void)
{
    Safetensors *st;
    Error err = {""};
    float x[64] = {0};
    const FeatupInput in = {x, 1, 1, 1, x, 1, 1}, empty = {x, 0, 1, 1, x, 1, 1};
    REQUIRE(write_damaged_stack(&(Damage){.without = "up3.range_temp"}) == 0); /* a stack of two stages */
    Featup *featup = open_stack(BROKEN, &st);
    REQUIRE(featup);
    CHECK(featup_stages(featup) == 2);
    CHECK(featup_upsample(featup, x, &in, 3, &err) == -1 &&
          strstr(err.message, "featup-stages: 3 are asked for"));
    CHECK(featup_upsample(featup, x, &in, -1, &err) == -1);
    CHECK(featup_upsample(featup, x, &empty, 1, &err) == -1 && strstr(err.message, "0 x 1"));
    featup_close(featup);
    featup_close(NULL);
    st_close(st);
    remove(BROKEN);
}

int main(void)
{
    RUN(test_random_stack);
    RUN(test_real_stack);
    RUN(test_grids_agree);
    RUN(test_example_views);
    RUN(test_bilinear);
    RUN(test_one_pixel);
    RUN(test_plain_random_stack);
    RUN(test_plain_real_stack);
    RUN(test_plain_one_pixel);
    RUN(test_threads_give_the_same_bits);
    RUN(test_tensors_are_checked);
    RUN(test_arguments_are_checked);
    return test_summary();
}
