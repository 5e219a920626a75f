/* test_baselines.c - the baselines of eval against numpy (make_golden_baselines.py), the example of
 * docs/METHOD.md 9, and threads. */
#include "eval/baselines.h"

#include "io/number.h"
#include "method_golden.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* A bank of these features, f16 [n][h][w][C]. */
static Bank bank_of_features(const uint16_t *features, int n, int h, int w, int channels)
{
    static char *names[8] = {"0", "1", "2", "3", "4", "5", "6", "7"};
    return (Bank){
        .n_images = n, .grid_h = h, .grid_w = w, .channels = channels, .names = names, .features = features};
}

static Bank golden_bank(void)
{
    const StTensor *t = golden_tensor("features");
    return bank_of_features(t->data, (int)t->shape[0], (int)t->shape[1], (int)t->shape[2], (int)t->shape[3]);
}

static int measure(BaselineMaps *maps, const Bank *bank, const float *query, const int *references, int k)
{
    Error err;
    BaselineBank cells;
    float *features = (float *)(uintptr_t)query; /* a scene owns its features; nobody writes to these. */
    const Scene scene = {
        .features = features,
        .objects = {.grid_h = bank->grid_h, .grid_w = bank->grid_w, .channels = bank->channels}};
    *maps = (BaselineMaps){0};
    int status =
        baseline_bank_new(&cells, bank, &err) || baselines_measure(maps, &cells, &scene, references, k, &err);
    baseline_bank_free(&cells);
    return status;
}

static void test_golden(void)
{
    BaselineMaps maps;
    REQUIRE(golden_open("baselines"));
    const Bank bank = golden_bank();
    REQUIRE(!measure(&maps, &bank, GOLDEN_F32("query"), GOLDEN_I32("references"),
                     (int)golden_tensor("references")->n_elements));
    CHECK(maps.grid_h == 14 && maps.grid_w == 20);
    for (int i = 0; i < BASELINES; i++)
        CHECK_GOLDEN(maps.map[i], 5e-6, "map.%s", baseline_names[i]);
    CHECK_GOLDEN(maps.score, 5e-6, "scores");
    baseline_maps_free(&maps);
}

/* Two cells: the bank's are (3, 4) and (0, 2), the query's (3, 0) and (0, 2). Each is four equal cells of the
 * method's grid. */
static void test_example(void)
{
    const float bank_cells_[2][2] = {{3, 4}, {0, 2}}, query_cells[2][2] = {{3, 0}, {0, 2}};
    uint16_t features[2 * 4 * 2];
    float query[2 * 4 * 2];
    for (int p = 0; p < 8; p++)
        for (int c = 0; c < 2; c++) {
            features[2 * p + c] = f32_to_f16(bank_cells_[p % 4 / 2][c]);
            query[2 * p + c] = query_cells[p % 4 / 2][c];
        }
    const Bank bank = bank_of_features(features, 1, 2, 4, 2);
    BaselineMaps maps;
    REQUIRE(!measure(&maps, &bank, query, (int[]){0}, 1));
    CHECK(fabs(maps.map[PATCHCORE_LIKE][0] - sqrt(13)) < 1e-6); /* (0, 2) is nearer than (3, 4), */
    CHECK(fabs(maps.map[ANOMALY_DINO][0] - 0.4) < 1e-6);        /* but (3, 4) has the smaller angle. */
    CHECK(fabs(maps.map[POSITION_NN][0] - sqrt(13)) < 1e-6);
    for (int i = 0; i < BASELINES; i++)
        CHECK(fabs(maps.map[i][1] - 0) < 1e-6);
    CHECK(fabs(maps.score[PATCHCORE_LIKE] - sqrt(13)) < 1e-6);
    baseline_maps_free(&maps);
}

/* The bits do not depend on the number of threads. */
static void test_threads(void)
{
#ifdef _OPENMP
    BaselineMaps one, three;
    REQUIRE(golden_open("baselines"));
    const Bank bank = golden_bank();
    const int n_threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const int status = measure(&one, &bank, GOLDEN_F32("query"), GOLDEN_I32("references"), 3);
    omp_set_num_threads(3);
    REQUIRE(!status && !measure(&three, &bank, GOLDEN_F32("query"), GOLDEN_I32("references"), 3));
    omp_set_num_threads(n_threads);
    for (int i = 0; i < BASELINES; i++)
        CHECK(memcmp(one.map[i], three.map[i], sizeof(float) * (size_t)one.grid_h * (size_t)one.grid_w) ==
                  0 &&
              one.score[i] == three.score[i]);
    baseline_maps_free(&one), baseline_maps_free(&three);
#endif
}

int main(void)
{
    RUN(test_golden);
    RUN(test_example);
    RUN(test_threads);
    st_close(golden);
    return test_summary();
}
