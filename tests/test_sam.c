/* test_sam.c - SAM against the official classes (make_golden_sam.py), the fast decoder against the plain
 * one, threads, hostile weights, and the real prompt encoder. */
#include "damage.h"
#include "test.h"

#include <unistd.h>

#include "io/file.h"
#include "sam.h"
#include "sam_model.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define GOLDEN "tests/golden/"
static const double TOLERANCE = 2e-5; /* of the output's largest magnitude */

/* ---- goldens ----------------------------------------------------------------------------------*/

/* A model, its golden file, and which picture and prompt of it is on. */
typedef struct Case {
    Safetensors *weights, *golden;
    Sam *sam;
    SamState *state;
    char key[64];
    int n_compared;
} Case;

static void case_close(Case *c)
{
    sam_state_free(c->state);
    sam_close(c->sam);
    st_close(c->weights);
    st_close(c->golden);
}

static int case_open(Case *c, const char *name)
{
    char path[128];
    Error err = {""};
    memset(c, 0, sizeof *c);
    snprintf(path, sizeof path, GOLDEN "sam_%s_model.safetensors", name);
    c->weights = st_open(path, &err);
    snprintf(path, sizeof path, GOLDEN "sam_%s_golden.safetensors", name);
    c->golden = c->weights ? st_open(path, &err) : NULL;
    c->sam = c->golden ? sam_open(c->weights, &err) : NULL;
    c->state = c->sam ? sam_state_new(c->sam, &err) : NULL;
    CHECK_MSG(c->state, "%s", err.message);
    if (!c->state)
        case_close(c);
    return c->state != NULL;
}

static const StTensor *case_find(const Case *c, const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", c->key, name);
    return st_find(c->golden, full);
}

static const float *case_data(Case *c, const char *name)
{
    const StTensor *t = case_find(c, name);
    return t ? st_f32(c->golden, t->name, t->n_dims, t->shape, NULL) : NULL;
}

static void compare(Case *c, const char *name, const float *data, size_t n)
{
    const StTensor *t = case_find(c, name);
    if (!t)
        return;
    const float *expected = case_data(c, name);
    CHECK_MSG(t->n_elements == n, "%s.%s: %zu elements, expected %zu", c->key, name, n, t->n_elements);
    if (!expected || t->n_elements != n)
        return;
    double error = test_relative_error(data, expected, n);
    CHECK_MSG(error < TOLERANCE, "%s.%s: relative error %.2g", c->key, name, error);
    c->n_compared++;
}

static void compare_tap(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    Case *c = user;
    const StTensor *t = case_find(c, name);
    if (!t)
        return;
    CHECK_MSG(t->n_dims == n_dims, "%s.%s: %d dimensions, expected %d", c->key, name, n_dims, t->n_dims);
    for (int i = 0; i < n_dims && i < t->n_dims; i++)
        CHECK_MSG(t->shape[i] == shape[i], "%s.%s: shape[%d] = %lld", c->key, name, i, (long long)shape[i]);
    compare(c, name, data, t->n_elements);
}

/* The golden prompt c->key of the picture; points and labels point into the golden file. */
static SamPrompt golden_prompt(Case *c, int labels[8])
{
    SamPrompt p = {0};
    const StTensor *given = case_find(c, "point_labels");
    if (given) {
        p.n_points = (int)given->n_elements;
        memcpy(labels, given->data, (size_t)p.n_points * sizeof *labels);
        p.labels = labels;
        p.points = case_data(c, "point_coords");
    }
    p.box = case_data(c, "box");
    p.mask = case_data(c, "mask_input");
    return p;
}

/* What is left out lies below the limit, the rest is the same as without leaving anything out. */
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
            for (int k = 0; k <= n_runs; k++) { /* what is below, then a run */
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

/* A blob in low-res logits that are low elsewhere: no more than its surroundings are looked at. */
static void check_blob(const Case *c, const SamImage *image)
{
    const int side = 4 * image->grid, h = image->original_h, w = image->original_w;
    float *low = malloc((size_t)side * side * sizeof *low), *logits = malloc((size_t)h * w * sizeof *logits);
    REQUIRE(low && logits);
    for (int i = 0; i < side * side; i++)
        low[i] = i / side == 2 && i % side >= 3 && i % side <= 4 ? 5 : -5;
    REQUIRE(sam_postprocess(c->sam, image, low, logits, NULL) == 0);
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

/* A picture that is much larger than the low-res logits: only a seam along the mask's edge is worked out. */
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
    REQUIRE(sam_postprocess(c->sam, &large, low, logits, NULL) == 0);
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
    if (w >= 16 * side) /* else columns are too narrow for runs of 64 pixels to leave much out */
        CHECK_MSG(known > 0 && worked_out < (int64_t)h * w * 3 / 4,
                  "%s: %lld of %d pixels worked out, %lld known", c->key, (long long)worked_out, h * w,
                  (long long)known);
    sam_rows_free(rows);
    free(low), free(logits);
}

static void check_prompt(Case *c, const SamImage *image, int multimask)
{
    const SamConfig *config = sam_config(c->sam);
    const size_t side = 4 * (size_t)image->grid, n_low = side * side;
    const int n_out = multimask ? config->n_multimask : 1;
    float *low = malloc(2 * n_out * n_low * sizeof *low), *plain = low + n_out * n_low;
    float *logits = malloc((size_t)image->original_h * image->original_w * sizeof *logits);
    float iou[SAM_MAX_MASK_TOKENS], plain_iou[SAM_MAX_MASK_TOKENS];
    int labels[8];
    Error err = {""};
    SamPrompt prompt = golden_prompt(c, labels);
    CHECK_MSG(sam_decode(c->sam, image, &prompt, multimask, low, iou, compare_tap, c, &err) == 0, "%s",
              err.message);
    CHECK(sam_decode_plain(c->sam, image, &prompt, multimask, plain, plain_iou, compare_tap, c, &err) == 0);
    double error = test_relative_error(low, plain, (size_t)n_out * n_low);
    CHECK_MSG(error < 5e-6, "%s: the fast decoder is %.2g from the plain one", c->key, error);
    CHECK(test_relative_error(iou, plain_iou, (size_t)n_out) < 5e-6);
    CHECK(sam_postprocess(c->sam, image, low, logits, &err) == 0);
    compare(c, "logits", logits, (size_t)image->original_h * image->original_w);
    check_left_out(c, image, low, logits);
    free(low);
    free(logits);
}

static void check_picture(Case *c, int picture)
{
    static const struct {
        const char *name;
        int multimask;
    } prompts[] = {{"point", 1}, {"points", 0}, {"box", 0}, {"box_points", 1}, {"mask", 1}, {"nothing", 1}};
    Error err = {""};
    SamImage image;
    snprintf(c->key, sizeof c->key, "%d", picture);
    const StTensor *rgb = case_find(c, "image");
    REQUIRE(rgb && rgb->n_dims == 3);
    REQUIRE(sam_encode(c->sam, c->state, &image, rgb->data, (int)rgb->shape[0], (int)rgb->shape[1], 1,
                       compare_tap, c, &err) == 0);
    compare(c, "sam.pixels", image.pixels, 3 * (size_t)c->sam->config.image_size * c->sam->config.image_size);
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        snprintf(c->key, sizeof c->key, "%d.%s", picture, prompts[i].name);
        if (case_find(c, "sam.low_res"))
            check_prompt(c, &image, prompts[i].multimask);
    }
    check_blob(c, &image);
    check_seam(c, &image);
    sam_image_free(&image);
}

/* n_compared: how many tensors must have been found and compared, so that none is passed over in silence. */
static void check_model(const char *name, int n_pictures, int n_compared)
{
    Case c;
    if (!case_open(&c, name))
        return;
    for (int i = 0; i < n_pictures; i++)
        check_picture(&c, i);
    CHECK_MSG(c.n_compared == n_compared, "%s: %d tensors were compared", name, c.n_compared);
    case_close(&c);
}

static void test_windows_with_padding(void)
{
    check_model("window", 4, 86);
}

static void test_resampled_relative_positions(void)
{
    check_model("resampled", 1, 43);
}

static void test_more_positions_than_a_block(void)
{
    check_model("blocks", 1, 21);
}

/* MobileSAM's image encoder. */
static void test_tiny_vit(void)
{
    check_model("tiny_vit", 2, 35);
}

/* ---- properties -------------------------------------------------------------------------------*/

static uint8_t *checkered(int h, int w)
{
    uint8_t *rgb = malloc(3 * (size_t)h * w);
    for (int i = 0; rgb && i < 3 * h * w; i++)
        rgb[i] = (uint8_t)(i * 37 % 251 ^ i / (3 * w) * 11);
    return rgb;
}

/* A long thin picture: the short side would round to no pixel at all. */
static void test_thin_pictures(void)
{
    static const int sizes[][2] = {{1, 400}, {300, 1}, {1, 1}, {2, 3}};
    Case c;
    REQUIRE(case_open(&c, "window"));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int h = sizes[i][0], w = sizes[i][1];
        uint8_t *rgb = checkered(h, w);
        float *low = malloc(28 * 28 * sizeof *low), *logits = malloc((size_t)h * w * sizeof *logits), iou;
        const float point[2] = {0, 0};
        SamPrompt prompt = {.n_points = 1, .points = point, .labels = (const int[]){1}};
        SamImage image;
        REQUIRE(sam_encode(c.sam, c.state, &image, rgb, h, w, 0, NULL, NULL, NULL) == 0);
        CHECK(image.pixels == NULL && image.input_h >= 1 && image.input_w >= 1);
        CHECK(sam_decode(c.sam, &image, &prompt, 0, low, &iou, NULL, NULL, NULL) == 0);
        CHECK(sam_postprocess(c.sam, &image, low, logits, NULL) == 0);
        for (int k = 0; k < h * w; k++)
            CHECK(isfinite(logits[k]));
        sam_image_free(&image);
        free(rgb);
        free(low);
        free(logits);
    }
    case_close(&c);
}

static void test_threads_do_not_change_bits(void)
{
#ifdef _OPENMP
    Case c;
    REQUIRE(case_open(&c, "blocks"));
    uint8_t *rgb = checkered(50, 70);
    const float points[4] = {20, 30, 66, 4};
    SamPrompt prompt = {.n_points = 2, .points = points, .labels = (const int[]){1, 0}};
    float low[2][3 * 52 * 52], iou[2][3];
    SamImage image[2];
    const int before = omp_get_max_threads();
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i == 0 ? 1 : 5);
        REQUIRE(sam_encode(c.sam, c.state, &image[i], rgb, 50, 70, 0, NULL, NULL, NULL) == 0);
        CHECK(sam_decode(c.sam, &image[i], &prompt, 1, low[i], iou[i], NULL, NULL, NULL) == 0);
    }
    omp_set_num_threads(before);
    CHECK(memcmp(image[0].embedding, image[1].embedding, 169 * 16 * sizeof(float)) == 0);
    CHECK(memcmp(low[0], low[1], sizeof low[0]) == 0);
    CHECK(memcmp(iou[0], iou[1], sizeof iou[0]) == 0);
    for (int i = 0; i < 2; i++)
        sam_image_free(&image[i]);
    free(rgb);
    case_close(&c);
#else
    SKIP("built without OpenMP");
#endif
}

/* A TinyViT's maps share their room, so another picture comes first. */
static void test_tiny_vit_gives_the_same_bits(void)
{
    Case c;
    REQUIRE(case_open(&c, "tiny_vit"));
    uint8_t *rgb = checkered(50, 70);
    SamImage image[3];
    for (int i = 0; i < 3; i++) {
#ifdef _OPENMP
        const int before = omp_get_max_threads();
        omp_set_num_threads(i < 2 ? 1 : 5);
#endif
        REQUIRE(sam_encode(c.sam, c.state, &image[i], rgb, i ? 50 : 31, i ? 70 : 19, 0, NULL, NULL, NULL) ==
                0);
#ifdef _OPENMP
        omp_set_num_threads(before);
#endif
    }
    const size_t n_bytes = 8 * 8 * 16 * sizeof(float);
    CHECK(memcmp(image[0].embedding, image[1].embedding, n_bytes) != 0);
    CHECK(memcmp(image[1].embedding, image[2].embedding, n_bytes) == 0);
    for (int i = 0; i < 3; i++)
        sam_image_free(&image[i]);
    free(rgb);
    case_close(&c);
}

/* One scratch serves prompt after prompt; wanted masks come out alone as they do together, and prompts that
 * go through the decoder together get the very answers that each gets alone. */
static void test_scratch_is_reusable(void)
{
    Case c;
    REQUIRE(case_open(&c, "blocks"));
    const size_t n_low = 52 * 52;
    uint8_t *rgb = checkered(52, 52);
    float *all = malloc(4 * n_low * sizeof *all), *one = malloc(n_low * sizeof *one), iou[4], again[3][4];
    const float points[3][2] = {{10, 11}, {40, 20}, {25, 47}};
    static const int label = 1;
    SamPrompt prompts[3];
    for (int i = 0; i < 3; i++)
        prompts[i] = (SamPrompt){.n_points = 1, .points = points[i], .labels = &label};
    SamImage image;
    REQUIRE(sam_encode(c.sam, c.state, &image, rgb, 52, 52, 0, NULL, NULL, NULL) == 0);
    SamDecoder *decoder = sam_decoder_new(c.sam, &image, NULL);
    SamScratch *scratch = sam_scratch_new(c.sam, 1, 3, NULL);
    REQUIRE(decoder && scratch && sam_scratch_prompts(scratch) == 3);
    sam_decode_prompts(decoder, scratch, &prompts[0], 1, iou);
    sam_decode_masks(decoder, scratch, 0, (const int[]){0, 1, 2, 3}, 4, all);
    sam_decode_prompts(decoder, scratch, &prompts[1], 1, again[0]);
    CHECK(memcmp(iou, again[0], sizeof iou) != 0);
    sam_decode_masks(decoder, scratch, 0, (const int[]){2}, 1, one);
    CHECK(memcmp(one, all + 2 * n_low, n_low * sizeof *one) != 0);
    for (int place = 0; place < 3; place++) {
        SamPrompt turned[3] = {prompts[(3 - place) % 3], prompts[(4 - place) % 3], prompts[(5 - place) % 3]};
        sam_decode_prompts(decoder, scratch, turned, 3, again[0]);
        CHECK(memcmp(iou, again[place], sizeof iou) == 0);
        sam_decode_masks(decoder, scratch, place, (const int[]){2}, 1, one);
        CHECK(memcmp(one, all + 2 * n_low, n_low * sizeof *one) == 0);
    }
    sam_scratch_free(scratch);
    sam_decoder_free(decoder);
    sam_image_free(&image);
    free(rgb);
    free(all);
    free(one);
    case_close(&c);
}

static void test_bad_prompts_are_refused(void)
{
    Case c;
    REQUIRE(case_open(&c, "window"));
    uint8_t *rgb = checkered(30, 30);
    float low[28 * 28], iou;
    const float points[4] = {1, 2, NAN, 3}, box[4] = {0, 0, INFINITY, 2};
    SamImage image, none;
    Error err = {""};
    REQUIRE(sam_encode(c.sam, c.state, &image, rgb, 30, 30, 0, NULL, NULL, NULL) == 0);
    SamPrompt label = {.n_points = 1, .points = points, .labels = (const int[]){2}};
    CHECK(sam_decode(c.sam, &image, &label, 0, low, &iou, NULL, NULL, &err) == -1 &&
          strstr(err.message, "label 2"));
    SamPrompt nan = {.n_points = 2, .points = points, .labels = (const int[]){1, 1}};
    CHECK(sam_decode(c.sam, &image, &nan, 0, low, &iou, NULL, NULL, &err) == -1 &&
          strstr(err.message, "point 1"));
    SamPrompt infinite = {.box = box};
    CHECK(sam_decode(c.sam, &image, &infinite, 0, low, &iou, NULL, NULL, &err) == -1 &&
          strstr(err.message, "box"));
    SamPrompt many = {.n_points = 1 << 30};
    CHECK(sam_decode(c.sam, &image, &many, 0, low, &iou, NULL, NULL, &err) == -1 &&
          strstr(err.message, "points"));
    CHECK(sam_encode(c.sam, c.state, &none, rgb, 0, 5, 0, NULL, NULL, &err) == -1);
    sam_image_free(&image);
    free(rgb);
    case_close(&c);
}

/* ---- hostile weights --------------------------------------------------------------------------*/

/* Every change of the model is refused with a sentence that names the file and what is expected. */
static void refuse_changes(const char *model, const Damage *changes, size_t n_changes)
{
    char path[64];
    snprintf(path, sizeof path, GOLDEN "sam_%s_model.safetensors", model);
    Safetensors *good = st_open(path, NULL);
    REQUIRE(good);
    snprintf(path, sizeof path, "/tmp/test_sam.%d.safetensors", (int)getpid());
    for (size_t i = 0; i < n_changes; i++) {
        Error err = {""};
        REQUIRE(write_damaged(good, &changes[i], path) == 0);
        Safetensors *bad = st_open(path, &err);
        REQUIRE(bad);
        Sam *sam = sam_open(bad, &err);
        CHECK_MSG(!sam, "change %zu was accepted", i);
        CHECK_MSG(strstr(err.message, changes[i].expected), "expected a word on %s, got: %s",
                  changes[i].expected, err.message);
        CHECK_MSG(strstr(err.message, path), "the file is not named: %s", err.message);
        sam_close(sam);
        st_close(bad);
    }
    unlink(path);
    st_close(good);
}

static void test_wrong_weights_are_refused(void)
{
    static const Damage changes[] = {
        {.without = "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias",
         .expected = "hypernetworks_mlps.2.layers.1.bias"},
        {.without = "image_encoder.blocks.1.attn.rel_pos_w", .expected = "blocks.1.attn.rel_pos_w"},
        {.without = "prompt_encoder.no_mask_embed.weight", .expected = "no_mask_embed"},
        {.flat = "image_encoder.blocks.2.mlp.lin2.weight", .expected = "blocks.2.mlp.lin2.weight"},
        {.flat = "mask_decoder.output_upscaling.0.weight", .expected = "output_upscaling.0.weight"},
        {.key = "samlad.model", .value = "vit", .expected = "samlad.model"},
        {.key = "samlad.model", .expected = "samlad.model"},
        {.key = "sam.window_size", .expected = "sam.window_size"},
        {.key = "sam.window_size", .value = "100000", .expected = "sam.window_size"},
        {.key = "sam.image_size", .value = "2147483647", .expected = "sam.image_size"},
        {.key = "sam.image_size", .value = "57", .expected = "sam.image_size"},
        {.key = "sam.image_size", .value = "1024", .expected = "pos_embed"},
        {.key = "sam.patch_size", .value = "0", .expected = "sam.patch_size"},
        {.key = "sam.depth", .value = "4", .expected = "blocks.3"},
        {.key = "sam.depth", .value = "-1", .expected = "sam.depth"},
        {.key = "sam.n_heads", .value = "5", .expected = "n_heads"},
        {.key = "sam.n_heads", .value = "24", .expected = "rel_pos_h"},
        {.key = "sam.mlp_ratio", .value = "nan", .expected = "sam.mlp_ratio"},
        {.key = "sam.global_attn_indexes", .value = "1,3", .expected = "sam.global_attn_indexes"},
        {.key = "sam.global_attn_indexes", .value = "x", .expected = "sam.global_attn_indexes"},
        {.key = "sam.depth", .value = "2", .expected = "sam.depth"},
        {.key = "sam.decoder_depth", .value = "1", .expected = "sam.decoder_depth"},
        {.key = "sam.iou_head_depth", .value = "2", .expected = "sam.iou_head_depth"},
        {.key = "sam.decoder_heads", .value = "3", .expected = "sam.decoder_heads"},
        {.key = "sam.num_multimask_outputs", .value = "15", .expected = "mask_tokens"},
        {.key = "sam.pixel_std", .value = "1,0,1", .expected = "sam.pixel_std"},
        {.key = "sam.pixel_mean", .value = "1,2", .expected = "sam.pixel_mean"},
    };
    refuse_changes("window", changes, sizeof changes / sizeof *changes);
}

static void test_wrong_tiny_vits_are_refused(void)
{
    static const Damage changes[] = {
        {.key = "sam.encoder", .value = "swin", .expected = "sam.encoder is swin"},
        {.key = "sam.encoder", .expected = "sam.depth"},
        {.key = "sam.image_size", .expected = "sam.image_size"},
        {.key = "sam.image_size", .value = "136", .expected = "multiple of TinyViT's 16"},
        {.key = "sam.image_size", .value = "1000000000", .expected = "sam.image_size"},
        {.key = "sam.embed_dim", .value = "24", .expected = "gives 16 channels, its neck takes 24"},
        {.without = "image_encoder.patch_embed.seq.0.c.weight", .expected = "seq.0.c.weight is missing"},
        {.without = "image_encoder.patch_embed.seq.2.bn.running_mean", .expected = "seq.2.bn.running_mean"},
        {.flat = "image_encoder.layers.0.blocks.1.conv2.c.weight", .expected = "blocks.1.conv2.c.weight"},
        {.without = "image_encoder.layers.0.blocks.0.conv1.c.weight", .expected = "stage 0 has 0 blocks"},
        {.without = "image_encoder.layers.1.downsample.conv1.c.weight",
         .expected = "layers.1.downsample.conv1"},
        {.without = "image_encoder.layers.2.downsample.conv3.bn.bias",
         .expected = "downsample.conv3.bn.bias"},
        {.flat = "image_encoder.layers.2.blocks.0.attn.attention_biases",
         .expected = "attention_biases is of another shape"},
        {.without = "image_encoder.layers.3.blocks.0.attn.attention_biases",
         .expected = "layers.3.blocks.0.attn.attention_biases is missing"},
        {.flat = "image_encoder.layers.2.blocks.1.attn.attention_biases",
         .expected = "layers.2.blocks.1.attn.attention_biases"},
        {.without = "image_encoder.layers.1.blocks.1.attn.qkv.bias", .expected = "blocks.1.attn.qkv.bias"},
        {.negated = "image_encoder.layers.1.blocks.0.local_conv.bn.running_var",
         .expected = "layers.1.blocks.0.local_conv.bn.running_var holds -"},
        {.empty = "image_encoder.layers.0.blocks.1.conv1.c.weight",
         .expected = "blocks.1.conv1.c.weight is of"},
        {.empty = "image_encoder.layers.1.blocks.0.mlp.fc1.weight",
         .expected = "mlp.fc1.weight is of another"},
        {.empty = "image_encoder.patch_embed.seq.0.c.weight", .expected = "expected 1 to 4096 channels"},
        {.without = "image_encoder.layers.3.blocks.0.mlp.fc1.weight", .expected = "mlp.fc1.weight"},
        {.flat = "image_encoder.layers.3.blocks.0.mlp.fc2.weight", .expected = "mlp.fc2.weight"},
    };
    refuse_changes("tiny_vit", changes, sizeof changes / sizeof *changes);
}

/* What the shapes tell may be left out of the metadata. */
static void test_sizes_from_shapes(void)
{
    static const char *keys[] = {"sam.image_size",
                                 "sam.patch_size",
                                 "sam.embed_dim",
                                 "sam.depth",
                                 "sam.n_heads",
                                 "sam.mlp_ratio",
                                 "sam.out_chans",
                                 "sam.mask_in_chans",
                                 "sam.decoder_depth",
                                 "sam.decoder_mlp_dim",
                                 "sam.attention_downsample_rate",
                                 "sam.num_multimask_outputs",
                                 "sam.iou_head_depth",
                                 "sam.iou_head_hidden_dim"};
    char path[64];
    Safetensors *full = st_open(GOLDEN "sam_resampled_model.safetensors", NULL);
    REQUIRE(full);
    Sam *expected = sam_open(full, NULL);
    REQUIRE(expected);
    snprintf(path, sizeof path, "/tmp/test_sam.%d.safetensors", (int)getpid());
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        Error err = {""};
        REQUIRE(write_damaged(full, &(Damage){.key = keys[i]}, path) == 0);
        Safetensors *st = st_open(path, &err);
        Sam *sam = st ? sam_open(st, &err) : NULL;
        CHECK_MSG(sam, "%s", err.message);
        if (sam)
            CHECK_MSG(memcmp(sam_config(sam), sam_config(expected), sizeof(SamConfig)) == 0, "%s differs",
                      keys[i]);
        sam_close(sam);
        st_close(st);
    }
    unlink(path);
    sam_close(expected);
    st_close(full);
}

/* Widths whose ratio, taken times the dim again, falls short of them: 61 / 28 * 28 is 60.99. */
static void test_ratio_that_rounds(void)
{
    static const char path[] = "test_sam_ratio.tmp.safetensors";
    const Resize awkward = {.prefix = "image_encoder.",
                            .n_sizes = 4,
                            .sizes = {{20, 28}, {60, 84}, {10, 14}, {50, 61}},
                            .metadata = 1,
                            .drop = {"sam.embed_dim", "sam.mlp_ratio"}};
    Error err = {""};
    Safetensors *good = st_open(GOLDEN "sam_resampled_model.safetensors", &err);
    REQUIRE(good);
    REQUIRE(write_resized(good, &awkward, path) == 0);
    Safetensors *st = st_open(path, &err);
    Sam *sam = st ? sam_open(st, &err) : NULL;
    CHECK_MSG(sam, "%s", err.message);
    CHECK(!sam || (int)(sam_config(sam)->mlp_ratio * 28) == 61);
    sam_close(sam);
    st_close(st);
    st_close(good);
    remove(path);
}

/* ---- the real prompt encoder ------------------------------------------------------------------*/

/* The n floats of a .npy file, or of a .npz file that holds one array uncompressed. Free *bytes. */
static const float *read_npy(const char *name, size_t n, uint8_t **bytes)
{
    char path[1024];
    size_t size;
    snprintf(path, sizeof path, "%s/mobile_sam/prompt_encoder/%s", test_data_dir(), name);
    *bytes = file_read(path, 1 << 20, &size, NULL);
    uint8_t *magic = *bytes ? memmem(*bytes, size, "\x93NUMPY", 6) : NULL;
    if (!magic)
        return NULL;
    size_t start = (size_t)(magic - *bytes) + 10 + magic[8] + 256 * (size_t)magic[9];
    if (start + n * sizeof(float) > size)
        return NULL;
    memmove(*bytes, *bytes + start, n * sizeof(float)); /* to an aligned place */
    return (const float *)(void *)*bytes;
}

/* Element i of the positional encoding of (x, y) in the input's pixels, in double precision. */
static double official_encoding(const float *gaussian, int i, double x, double y)
{
    const int k = i % 128;
    double angle =
        2 * 3.14159265358979323846 *
        ((2 * (x + 0.5) / 1024 - 1) * gaussian[k] + (2 * (y + 0.5) / 1024 - 1) * gaussian[128 + k]);
    return i < 128 ? sin(angle) : cos(angle);
}

static void test_real_prompt_encoder(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    uint8_t *files[4];
    const float *gaussian = read_npy("positional_encoding_gaussian_matrix.npy", 256, &files[0]);
    const float *corners = read_npy("point_embeddings.npz", 4 * 256, &files[1]);
    Sam sam = {.config = {.out_chans = 256, .image_size = 1024}, .gaussian = gaussian};
    sam.not_a_point = read_npy("not_a_point_embed_weight.npz", 256, &files[2]);
    sam.no_mask = read_npy("no_mask_embed_weight.npz", 256, &files[3]);
    REQUIRE(gaussian && corners && sam.not_a_point && sam.no_mask);
    for (int i = 0; i < 4; i++)
        sam.point_embeddings[i] = corners + 256 * i;
    /* 1800 x 1200 becomes 1024 x 683; the scale of y is 683/1200 */
    const SamImage image = {.original_h = 1200, .original_w = 1800, .input_h = 683, .input_w = 1024};
    const float points[6] = {500, 375, 1799, 1199, 0, 0}, box[4] = {425, 600, 700.5f, 875};
    const SamPrompt only_points = {.n_points = 3, .points = points, .labels = (const int[]){1, 0, -1}};
    const SamPrompt only_box = {.box = box};
    float out[8 * 256];
    double worst = 0;
    CHECK(sam_embed_sparse(&sam, &image, &only_points, out) == 4);
    for (int i = 0; i < 256; i++) {
        for (int p = 0; p < 2; p++) {
            double expected = official_encoding(gaussian, i, points[2 * p] * 1024.0 / 1800,
                                                points[2 * p + 1] * 683.0 / 1200);
            worst = fmax(worst, fabs(out[256 * p + i] - expected - corners[256 * (p == 0) + i]));
        }
        CHECK(out[512 + i] == sam.not_a_point[i] && out[768 + i] == sam.not_a_point[i]);
    }
    CHECK(sam_embed_sparse(&sam, &image, &only_box, out) == 2);
    for (int i = 0; i < 256; i++)
        for (int p = 0; p < 2; p++) {
            double expected =
                official_encoding(gaussian, i, box[2 * p] * 1024.0 / 1800, box[2 * p + 1] * 683.0 / 1200);
            worst = fmax(worst, fabs(out[256 * p + i] - expected - corners[256 * (2 + p) + i]));
        }
    CHECK_MSG(worst < 5e-6, "largest error %.2g", worst);
    for (int i = 0; i < 4; i++)
        free(files[i]);
}

int main(void)
{
    RUN(test_windows_with_padding);
    RUN(test_resampled_relative_positions);
    RUN(test_more_positions_than_a_block);
    RUN(test_tiny_vit);
    RUN(test_thin_pictures);
    RUN(test_threads_do_not_change_bits);
    RUN(test_tiny_vit_gives_the_same_bits);
    RUN(test_scratch_is_reusable);
    RUN(test_bad_prompts_are_refused);
    RUN(test_wrong_weights_are_refused);
    RUN(test_wrong_tiny_vits_are_refused);
    RUN(test_sizes_from_shapes);
    RUN(test_ratio_that_rounds);
    RUN(test_real_prompt_encoder);
    return test_summary();
}
