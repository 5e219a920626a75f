/* test_sam.c - SAM against the official classes (make_golden_sam.py), many prompts against one, threads,
 * hostile weights, and the real prompt encoder. */
#include "damage.h"
#include "sam_case.h"
#include "test.h"

#include <unistd.h>

#include "io/file.h"
#include "sam.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- goldens ----------------------------------------------------------------------------------*/

/* The rows of a mask equal those of all its logits. */
static void check_rows(const Case *c, const SamImage *image, const float *low, const float *logits)
{
    const int h = image->original_h, w = image->original_w;
    SamRows *rows = sam_rows_new(c->sam, image, NULL);
    REQUIRE(rows);
    int wrong = 0, n_runs;
    const SamRun *runs;
    sam_rows_begin(rows, low, NULL, 0);
    for (int y = 0; y < h; y++) {
        const float *row = sam_rows_next(rows, &runs, &n_runs), *expected = logits + (size_t)y * w;
        CHECK(n_runs == 1 && runs[0].first == 0 && runs[0].end == w && runs[0].above == SAM_BETWEEN);
        wrong += memcmp(row, expected, (size_t)w * sizeof *row) != 0;
    }
    CHECK_MSG(wrong == 0, "%s: %d rows are wrong", c->key, wrong);
    sam_rows_free(rows);
}

static void check_prompt(Case *c, const SamImage *image, int multimask)
{
    const SamConfig *config = sam_config(c->sam);
    const size_t side = 4 * (size_t)image->grid, n_low = side * side;
    const int n_out = multimask ? config->n_multimask : 1;
    float *low = malloc(2 * n_out * n_low * sizeof *low), *together = low + n_out * n_low;
    float *logits = malloc((size_t)image->original_h * image->original_w * sizeof *logits);
    float iou[SAM_MAX_MASK_TOKENS], together_iou[SAM_MAX_MASK_TOKENS];
    int labels[8];
    Error err = {""};
    SamPrompt prompt = golden_prompt(c, labels);
    CHECK_MSG(sam_decode(c->sam, image, &prompt, multimask, low, iou, &(SamTap){compare_tap, c}, &err) == 0,
              "%s", err.message);
    if (!prompt.mask) {
        CHECK(decode_by_scratch(c->sam, image, &prompt, multimask, together, together_iou) == 0);
        compare(c, "sam.low_res", together, (size_t)n_out * n_low);
        compare(c, "sam.iou_predictions", together_iou, (size_t)n_out);
        double error = test_relative_error(together, low, (size_t)n_out * n_low);
        CHECK_MSG(error < 5e-6, "%s: many prompts are %.2g from one", c->key, error);
        CHECK(test_relative_error(together_iou, iou, (size_t)n_out) < 5e-6);
    }
    CHECK(sam_postprocess_masks(c->sam, image, low, logits, &err) == 0);
    compare(c, "logits", logits, (size_t)image->original_h * image->original_w);
    check_rows(c, image, low, logits);
    free(low);
    free(logits);
}

static void check_picture(Case *c, int i)
{
    Error err = {""};
    SamImage image;
    Picture picture;
    REQUIRE(case_picture(c, i, &picture));
    REQUIRE(sam_encode(c->sam, c->state, &image, &picture, &(SamTap){compare_tap, c}, &err) == 0);
    for (int k = 0; k < N_GOLDEN_PROMPTS; k++) {
        snprintf(c->key, sizeof c->key, "%d.%s", i, golden_prompts[k].name);
        if (case_find(c, "sam.low_res"))
            check_prompt(c, &image, golden_prompts[k].multimask);
    }
    sam_image_free(&image);
}

/* n_compared: all tensors of the golden file, and the results of the functions for many prompts as well. */
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
    check_model("window", 4, 71);
}

static void test_resampled_relative_positions(void)
{
    check_model("resampled", 1, 34);
}

static void test_more_positions_than_a_block(void)
{
    check_model("blocks", 1, 15);
}

/* MobileSAM's image encoder. */
static void test_tiny_vit(void)
{
    check_model("tiny_vit", 2, 30);
}

/* ---- properties -------------------------------------------------------------------------------*/

static uint8_t *checkered(int h, int w)
{
    uint8_t *rgb = malloc(3 * (size_t)h * w);
    for (int i = 0; rgb && i < 3 * h * w; i++)
        rgb[i] = (uint8_t)(i * 37 % 251 ^ i / (3 * w) * 11);
    return rgb;
}

/* A long thin picture: its short side would round to 0 pixels. */
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
        REQUIRE(sam_encode(c.sam, c.state, &image, &(Picture){rgb, h, w}, NULL, NULL) == 0);
        CHECK(image.input_h >= 1 && image.input_w >= 1);
        CHECK(sam_decode(c.sam, &image, &prompt, 0, low, &iou, NULL, NULL) == 0);
        CHECK(sam_postprocess_masks(c.sam, &image, low, logits, NULL) == 0);
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
        REQUIRE(sam_encode(c.sam, c.state, &image[i], &(Picture){rgb, 50, 70}, NULL, NULL) == 0);
        CHECK(sam_decode(c.sam, &image[i], &prompt, 1, low[i], iou[i], NULL, NULL) == 0);
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

/* A TinyViT's maps share their memory, so another picture is encoded first. */
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
        const Picture picture = {rgb, i ? 50 : 31, i ? 70 : 19};
        REQUIRE(sam_encode(c.sam, c.state, &image[i], &picture, NULL, NULL) == 0);
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

/* One scratch serves one prompt after the other. Wanted masks are the same alone and together. Prompts that
 * go through the decoder together get exactly the results that each gets alone. */
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
    REQUIRE(sam_encode(c.sam, c.state, &image, &(Picture){rgb, 52, 52}, NULL, NULL) == 0);
    SamDecoder *decoder = sam_decoder_new(c.sam, &image, NULL);
    SamScratch *scratch = sam_scratch_new(c.sam, 1, 3, NULL);
    REQUIRE(decoder && scratch && sam_scratch_prompts(scratch) == 3);
    CHECK(!sam_decode_prompts(decoder, scratch, &prompts[0], 1, iou, NULL));
    sam_decode_masks(decoder, scratch, 0, (const int[]){0, 1, 2, 3}, 4, all);
    CHECK(!sam_decode_prompts(decoder, scratch, &prompts[1], 1, again[0], NULL));
    CHECK(memcmp(iou, again[0], sizeof iou) != 0);
    sam_decode_masks(decoder, scratch, 0, (const int[]){2}, 1, one);
    CHECK(memcmp(one, all + 2 * n_low, n_low * sizeof *one) != 0);
    for (int place = 0; place < 3; place++) {
        SamPrompt turned[3] = {prompts[(3 - place) % 3], prompts[(4 - place) % 3], prompts[(5 - place) % 3]};
        CHECK(!sam_decode_prompts(decoder, scratch, turned, 3, again[0], NULL));
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
    REQUIRE(sam_encode(c.sam, c.state, &image, &(Picture){rgb, 30, 30}, NULL, NULL) == 0);
    SamPrompt label = {.n_points = 1, .points = points, .labels = (const int[]){2}};
    CHECK(sam_decode(c.sam, &image, &label, 0, low, &iou, NULL, &err) == -1 &&
          strstr(err.message, "label 2"));
    SamPrompt nan = {.n_points = 2, .points = points, .labels = (const int[]){1, 1}};
    CHECK(sam_decode(c.sam, &image, &nan, 0, low, &iou, NULL, &err) == -1 && strstr(err.message, "point 1"));
    SamPrompt infinite = {.box = box};
    CHECK(sam_decode(c.sam, &image, &infinite, 0, low, &iou, NULL, &err) == -1 && strstr(err.message, "box"));
    SamPrompt many = {.n_points = 1 << 30};
    CHECK(sam_decode(c.sam, &image, &many, 0, low, &iou, NULL, &err) == -1 && strstr(err.message, "points"));
    CHECK(sam_encode(c.sam, c.state, &none, &(Picture){rgb, 0, 5}, NULL, &err) == -1);
    sam_image_free(&image);
    free(rgb);
    case_close(&c);
}

/* ---- hostile weights --------------------------------------------------------------------------*/

/* Every change of the model is refused with a sentence that names the file and the expected value. */
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
        {.without = "image_encoder.layers.0.blocks.0.conv1.c.weight", .expected = "layer 0 has 0 blocks"},
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

/* Metadata that the shapes tell may be missing. */
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

/* Widths whose ratio times the dim falls short of them: 61 / 28 * 28 is 60.99. */
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

/* The n floats of a .npy file, or of a .npz file that holds one uncompressed array. Free *bytes. */
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
    SamWeights weights = {.config = {.out_chans = 256, .image_size = 1024}};
    SamPromptEncoder *encoder = &weights.prompt_encoder;
    encoder->positional_encoding_gaussian_matrix = gaussian;
    encoder->not_a_point_embed = read_npy("not_a_point_embed_weight.npz", 256, &files[2]);
    encoder->no_mask_embed = read_npy("no_mask_embed_weight.npz", 256, &files[3]);
    REQUIRE(gaussian && corners && encoder->not_a_point_embed && encoder->no_mask_embed);
    for (int i = 0; i < 4; i++)
        encoder->point_embeddings[i] = corners + 256 * i;
    /* 1800 x 1200 becomes 1024 x 683; the scale of y is 683/1200. */
    const SamImage image = {.original_h = 1200, .original_w = 1800, .input_h = 683, .input_w = 1024};
    const float points[6] = {500, 375, 1799, 1199, 0, 0}, box[4] = {425, 600, 700.5f, 875};
    const SamPrompt only_points = {.n_points = 3, .points = points, .labels = (const int[]){1, 0, -1}};
    const SamPrompt only_box = {.box = box};
    float out[8 * 256];
    double worst = 0;
    CHECK(sam_embed_sparse(&weights, &image, &only_points, out) == 4);
    for (int i = 0; i < 256; i++) {
        for (int p = 0; p < 2; p++) {
            double expected = official_encoding(gaussian, i, points[2 * p] * 1024.0 / 1800,
                                                points[2 * p + 1] * 683.0 / 1200);
            worst = fmax(worst, fabs(out[256 * p + i] - expected - corners[256 * (p == 0) + i]));
        }
        CHECK(out[512 + i] == encoder->not_a_point_embed[i] && out[768 + i] == encoder->not_a_point_embed[i]);
    }
    CHECK(sam_embed_sparse(&weights, &image, &only_box, out) == 2);
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
