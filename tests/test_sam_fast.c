/* test_sam_fast.c - SAM's functions that only fast/ has: planes of the image's positions against the official
 * order, and the seams of large masks. */
#include "sam_case.h"
#include "test.h"

#include "sam.h"

/* ---- seams ------------------------------------------------------------------------------------*/

/* The pixels left out lie below the limit. The others are the same as when no pixel is left out. */
static void check_left_out(const Case *c, const SamImage *image, const float *low, const float *logits)
{
    const int h = image->original_h, w = image->original_w;
    const float lowest = logits[0], limits[] = {-INFINITY, lowest, lowest + 0.05f, 0, INFINITY};
    SamRows *rows = sam_rows_new(c->sam, image, NULL);
    REQUIRE(rows);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const float both[] = {limits[i], limits[i] + 0.1f};
        int left_out = 0, wrong = 0, n_runs;
        sam_rows_begin(rows, low, both, i == 0 ? 0 : 2);
        for (int y = 0; y < h; y++) {
            const SamRun *runs;
            const float *expected = logits + (size_t)y * w, *row = sam_rows_next(rows, &runs, &n_runs);
            int x = 0;
            for (int k = 0; k <= n_runs; k++) { /* the pixels below, then a run */
                const int first = k < n_runs ? runs[k].first : w;
                wrong += x > first;
                left_out += first - x;
                for (; x < first; x++)
                    wrong += !(expected[x] < limits[i]);
                for (; k < n_runs && x < runs[k].end; x++)
                    wrong += runs[k].above == SAM_BETWEEN ? row[x] != expected[x]
                             : runs[k].above == 1         ? !(expected[x] > both[0] && expected[x] < both[1])
                                                          : !(expected[x] > both[1]);
            }
        }
        CHECK_MSG(wrong == 0, "%s: limit %g: %d logits are wrong", c->key, (double)limits[i], wrong);
        CHECK(i > 0 || left_out == 0);
        CHECK(i < 4 || left_out == h * w);
    }
    sam_rows_free(rows);
}

/* A blob in low-res logits that are low elsewhere: only its surroundings are computed. */
static void check_blob(const Case *c, const SamImage *image)
{
    const int side = 4 * image->grid, h = image->original_h, w = image->original_w;
    float *low = malloc((size_t)side * side * sizeof *low), *logits = malloc((size_t)h * w * sizeof *logits);
    REQUIRE(low && logits);
    for (int i = 0; i < side * side; i++)
        low[i] = i / side == 2 && i % side >= 3 && i % side <= 4 ? 5 : -5;
    REQUIRE(sam_postprocess_masks(c->sam, image, low, logits, NULL) == 0);
    check_left_out(c, image, low, logits);
    SamRows *rows = sam_rows_new(c->sam, image, NULL);
    REQUIRE(rows);
    int looked_at = 0, n_runs;
    const SamRun *runs;
    sam_rows_begin(rows, low, (float[]){-1, 1}, 2);
    for (int y = 0; y < h; y++) {
        sam_rows_next(rows, &runs, &n_runs);
        for (int k = 0; k < n_runs; k++)
            looked_at += runs[k].end - runs[k].first;
    }
    CHECK_MSG(looked_at > 0 && looked_at < h * w / 2, "%s: %d of %d pixels looked at", c->key, looked_at,
              h * w);
    sam_rows_free(rows);
    free(low);
    free(logits);
}

/* A picture much larger than the low-res logits: only a seam along the mask's edge is computed. */
static void check_seam(const Case *c, const SamImage *image)
{
    SamImage large = *image;
    large.original_h = image->original_h * 1500 / (image->original_h + image->original_w);
    large.original_w = image->original_w * 1500 / (image->original_h + image->original_w);
    const int side = 4 * image->grid, h = large.original_h, w = large.original_w;
    float *low = malloc((size_t)side * side * sizeof *low), *logits = malloc((size_t)h * w * sizeof *logits);
    REQUIRE(low && logits);
    for (int i = 0; i < side * side; i++) { /* slopes, steps, and a few odd logits */
        const float x = (float)(i % side) / (float)side, y = (float)(i / side) / (float)side;
        low[i] = i % 97 == 0 ? 0 : (x - 0.2f) * (0.6f - y) * 40 - 0.3f;
    }
    REQUIRE(sam_postprocess_masks(c->sam, &large, low, logits, NULL) == 0);
    check_left_out(c, &large, low, logits);
    SamRows *rows = sam_rows_new(c->sam, &large, NULL);
    REQUIRE(rows);
    int64_t worked_out = 0, known = 0;
    sam_rows_begin(rows, low, (float[]){-0.5f, 0.5f}, 2);
    for (int y = 0; y < h; y++) {
        const SamRun *runs;
        int n_runs;
        sam_rows_next(rows, &runs, &n_runs);
        for (int k = 0; k < n_runs; k++)
            *(runs[k].above == SAM_BETWEEN ? &worked_out : &known) += runs[k].end - runs[k].first;
    }
    if (w >= 16 * side) /* otherwise columns are too narrow for runs of 64 pixels to leave much out */
        CHECK_MSG(known > 0 && worked_out < (int64_t)h * w * 3 / 4,
                  "%s: %lld of %d pixels worked out, %lld known", c->key, (long long)worked_out, h * w,
                  (long long)known);
    sam_rows_free(rows);
    free(low), free(logits);
}

/* Every golden prompt of the model: fast rows against all logits. */
static void check_model(const char *name, int n_pictures)
{
    Case c;
    REQUIRE(case_open(&c, name));
    const SamConfig *config = sam_config(c.sam);
    const size_t side = 4 * (size_t)(config->image_size / config->patch_size);
    float *low = malloc((size_t)config->n_multimask * side * side * sizeof *low), iou[SAM_MAX_MASK_TOKENS];
    REQUIRE(low);
    for (int i = 0; i < n_pictures; i++) {
        Picture picture;
        SamImage image;
        REQUIRE(case_picture(&c, i, &picture));
        REQUIRE(sam_encode(c.sam, c.state, &image, &picture, NULL, NULL) == 0);
        float *logits = malloc((size_t)picture.height * (size_t)picture.width * sizeof *logits);
        REQUIRE(logits);
        for (int k = 0; k < N_GOLDEN_PROMPTS; k++) {
            int labels[8];
            snprintf(c.key, sizeof c.key, "%d.%s", i, golden_prompts[k].name);
            if (!case_find(&c, "sam.low_res"))
                continue;
            const SamPrompt prompt = golden_prompt(&c, labels);
            CHECK(sam_decode(c.sam, &image, &prompt, golden_prompts[k].multimask, low, iou, NULL, NULL) == 0);
            CHECK(sam_postprocess_masks(c.sam, &image, low, logits, NULL) == 0);
            check_left_out(&c, &image, low, logits);
        }
        check_blob(&c, &image);
        check_seam(&c, &image);
        free(logits);
        sam_image_free(&image);
    }
    free(low);
    case_close(&c);
}

static void test_rows_of_golden_masks(void)
{
    check_model("window", 4);
    check_model("resampled", 1);
    check_model("blocks", 1);
    check_model("tiny_vit", 2);
}

/* The number of the mask's pixels in runs that need not be computed. */
static int64_t count_known(SamRows *rows, const float *low_res, int h)
{
    int64_t known = 0;
    sam_rows_begin(rows, low_res, (float[]){-1, 0, 1}, 3);
    for (int y = 0; y < h; y++) {
        const SamRun *runs;
        int n;
        sam_rows_next(rows, &runs, &n);
        for (int i = 0; i < n; i++)
            known += runs[i].above != SAM_BETWEEN ? runs[i].end - runs[i].first : 0;
    }
    return known;
}

/* The masks of test_amg's large picture leave much to their seams. */
static void test_large_masks_have_seams(void)
{
    enum { W = 900, H = 610, SIDE = 3 };
    Error err = {""};
    Safetensors *file = st_open(GOLDEN "amg_model.safetensors", &err);
    Safetensors *golden = st_open(GOLDEN "amg_golden.safetensors", &err);
    REQUIRE(file && golden);
    const StTensor *t = st_find(golden, "image");
    Sam *sam = sam_open(file, &err);
    SamState *state = sam ? sam_state_new(sam, &err) : NULL;
    REQUIRE(state && t);
    const int n_masks = sam_config(sam)->n_multimask;
    const size_t side = 4 * (size_t)sam->weights.grid, n_low = side * side;
    const Picture small = {t->data, (int)t->shape[0], (int)t->shape[1]};
    const Picture large = {enlarged(&small, H, W), H, W};
    float *low_res = malloc((size_t)n_masks * n_low * sizeof *low_res);
    SamImage image;
    REQUIRE(large.rgb && low_res && !sam_encode(sam, state, &image, &large, NULL, &err));
    SamRows *rows = sam_rows_new(sam, &image, &err);
    REQUIRE(rows);
    int64_t known = 0;
    for (int i = 0; i < SIDE * SIDE; i++) {
        const float point[2] = {(float)(W * (i % SIDE + 0.5) / SIDE), (float)(H * (i / SIDE + 0.5) / SIDE)};
        const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (const int[]){1}};
        float iou[SAM_MAX_MASK_TOKENS];
        REQUIRE(!sam_decode(sam, &image, &prompt, 1, low_res, iou, NULL, &err));
        for (int k = 0; k < n_masks; k++)
            known += count_known(rows, low_res + (size_t)k * n_low, H);
    }
    CHECK_MSG(known > (int64_t)W * H, "%lld pixels known", (long long)known);
    sam_rows_free(rows);
    sam_image_free(&image);
    free((void *)(uintptr_t)large.rgb), free(low_res);
    sam_state_free(state);
    sam_close(sam);
    st_close(file), st_close(golden);
}

/* ---- planes -----------------------------------------------------------------------------------*/

/* Heads times tokens beyond the planes' limit: the bits are those of the official order. */
static void test_many_points_take_the_plain_form(void)
{
    enum { N = 400 };
    Case c;
    Picture picture;
    SamImage image;
    REQUIRE(case_open(&c, "blocks"));
    REQUIRE(case_picture(&c, 0, &picture));
    REQUIRE(sam_encode(c.sam, c.state, &image, &picture, NULL, NULL) == 0);
    const SamConfig *config = sam_config(c.sam);
    const size_t n_low = 16 * (size_t)c.sam->weights.n_positions;
    float points[2 * N], iou[2][SAM_MAX_MASK_TOKENS];
    int labels[N];
    for (int i = 0; i < N; i++) {
        points[2 * i] = (float)(i * 7 % picture.width);
        points[2 * i + 1] = (float)(i * 13 % picture.height);
        labels[i] = i % 3 != 0;
    }
    const SamPrompt prompt = {.n_points = N, .points = points, .labels = labels};
    const size_t n_floats = (size_t)config->n_multimask * n_low;
    float *low = malloc(2 * n_floats * sizeof *low);
    REQUIRE(low && config->decoder_heads * N > 512);
    CHECK(sam_decode(c.sam, &image, &prompt, 1, low, iou[0], NULL, NULL) == 0);
    CHECK(decode_by_scratch(c.sam, &image, &prompt, 1, low + n_floats, iou[1]) == 0);
    CHECK(memcmp(low, low + n_floats, n_floats * sizeof *low) == 0);
    CHECK(memcmp(iou[0], iou[1], (size_t)config->n_multimask * sizeof(float)) == 0);
    free(low);
    sam_image_free(&image);
    case_close(&c);
}

int main(void)
{
    RUN(test_rows_of_golden_masks);
    RUN(test_large_masks_have_seams);
    RUN(test_many_points_take_the_plain_form);
    return test_summary();
}
