/* test_bf16.c - bf16 in tensor.h's contract: rounding, layers and attention against the plain form. The
 * networks in bf16 are compared with themselves in float32. Sizes below BF16_LEAST_TERMS are in
 * test_bf16_kernels.c. */
#include "eval/synth.h"
#include "sam.h"
#include "vit.h"
#include "halves.h"
#include "numbers.h"
#include "plain.h"
#include "test.h"

/* ---- rounding ----------------------------------------------------------------------------------*/

static void rounding_is_to_the_nearest_even(void)
{
    for (size_t i = 0; i < sizeof rounding_cases / sizeof *rounding_cases; i++) {
        float x = float_of(rounding_cases[i].bits);
        uint16_t y;
        bf16_round(&y, &x, 1);
        CHECK_MSG(y == rounding_cases[i].half, "%08x becomes %04x, not %04x", rounding_cases[i].bits, y,
                  rounding_cases[i].half);
    }
}

static void rounding_equals_the_plain_one(void)
{
    enum { N = 4099 };
    float x[N] = {0};
    uint16_t y[N + 1], plain[N + 1];
    for (int round = 0; round < 50; round++) {
        size_t n = round < 40 ? (size_t)round : N;
        for (size_t i = 0; i < n; i++)
            x[i] = float_of(random_bits());
        y[n] = plain[n] = 0x1234;
        bf16_round(y, x, n);
        plain_bf16_round(plain, x, n);
        CHECK_MSG(memcmp(y, plain, (n + 1) * sizeof *y) == 0, "%zu numbers differ from the plain ones", n);
        for (size_t i = 0; i < n; i++)
            CHECK(isnan(x[i]) ? isnan(widen(y[i])) : fabs(widen(y[i]) - x[i]) <= fabs(x[i]) / 256 + 1.2e-38);
    }
}

/* ---- layers ------------------------------------------------------------------------------------*/

/* The layer in bf16; *memory holds its packed weight, the caller frees it. */
static Linear packed_layer(const float *w, const float *bias, int n_out, int n_in, void **memory)
{
    Linear layer = {w, bias, NULL, n_out, n_in};
    Arena arena = {0};
    linear_pack(&layer, &arena);
    CHECK(!layer.packed && arena.used > 0); /* only counts */
    *memory = aligned_array(arena.used, 1);
    if (!*memory)
        abort();
    arena = (Arena){*memory, arena.used, 0};
    linear_pack(&layer, &arena);
    CHECK(layer.packed && arena.used == arena.size);
    return layer;
}

static void layers_equal_the_plain_product(void)
{
    static const int sizes[][3] = {{1, 1, 32},      {5, 33, 37},   {17, 64, 65},
                                   {197, 576, 192}, {40, 70, 600}, {13, 40, 1027}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
        const size_t size = (size_t)m * (size_t)n;
        float *x = random_array((size_t)m * (size_t)k), *w = random_array((size_t)n * (size_t)k);
        float *bias = random_array((size_t)n), *y = random_array(size), *truth = random_array(size);
        float *rx = rounded_copy(x, (size_t)m * (size_t)k), *rw = rounded_copy(w, (size_t)n * (size_t)k);
        void *memory;
        const Linear layer = packed_layer(w, bias, n, k, &memory);
        plain_linear(truth, rx, rw, bias, m, n, k);
        linear_layer(y, x, &layer, m);
        double error = test_relative_error(y, truth, size);
        CHECK_MSG(error < 2e-6, "%d x %d x %d: relative error %.2g", m, n, k, error);
        gelu(truth, size);
        linear_layer_gelu(y, x, &layer, m);
        error = test_relative_error(y, truth, size);
        CHECK_MSG(error < 2e-6, "gelu of %d x %d x %d: relative error %.2g", m, n, k, error);
        free(x), free(w), free(bias), free(y), free(truth), free(rx), free(rw), free(memory);
    }
}

static void a_layer_has_its_precision(void)
{
    enum { M = 5, N = 33, K = 37 };
    float *x = random_array(M * K), *w = random_array(N * K), *bias = random_array(N);
    float single[M * N], half[M * N], y[M * N];
    void *memory;
    Linear layer = {w, bias, NULL, N, K};
    linear(single, x, w, bias, M, N, K);
    linear_layer(y, x, &layer, M);
    CHECK(memcmp(y, single, sizeof y) == 0);
    layer = packed_layer(w, bias, N, K, &memory);
    linear_layer(half, x, &layer, M);
    double error = test_relative_error(half, single, M * N);
    CHECK_MSG(error > 1e-5 && error < 1e-2, "bf16 differs from float32 by %.2g", error);
    Arena arena = {0};
    Linear narrow = {w, bias, layer.packed, N, BF16_LEAST_TERMS - 1};
    linear_pack(&narrow, &arena); /* too short a sum */
    CHECK(!narrow.packed && arena.used == 0);
    free(memory), free(x), free(w), free(bias);
}

/* ---- attention ---------------------------------------------------------------------------------*/

/* As in test_bf16_kernels.c: the truth has q, k, and v rounded, but not the probabilities. Rounding those
 * moves no output by more than 2/256 of the largest |v|, which is 1 here. The errors go in both directions,
 * so a quarter of the bound is never reached. */
static void compare_attention(int n_q, int n_k, int n_heads, int dim, int grid_h, int grid_w)
{
    const int width = n_heads * dim;
    const size_t n = (size_t)n_q * (size_t)width, nk = (size_t)n_k * (size_t)width;
    const float scale = 1 / sqrtf((float)dim);
    float *q = random_array(n), *k = random_array(nk), *v = random_array(nk);
    float *out = random_array(n), *truth = random_array(n), *single = random_array(n);
    float *rel_h = random_array(relative_position_floats(grid_h, dim));
    float *rel_w = random_array(relative_position_floats(grid_w, dim));
    float *rq = rounded_copy(q, n), *rk = rounded_copy(k, nk), *rv = rounded_copy(v, nk);
    void *scratch = aligned_array(bf16_attention_scratch(n_q, n_k, n_heads, dim, grid_h, grid_w), 1);
    const RelativePosition rel = {rel_h, rel_w, grid_h, grid_w, NULL}, *r = grid_h ? &rel : NULL;
    REQUIRE(scratch);
    plain_attention(truth, width, rq, width, rk, width, rv, width, n_q, n_k, n_heads, dim, scale, r, NULL);
    attention(out, width, rq, width, k, width, v, width, n_q, n_k, n_heads, dim, scale, r, scratch);
    double error = 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)out[i] - (double)truth[i]) <= error))
            error = fabs((double)out[i] - (double)truth[i]);
    CHECK_MSG(error < 2e-3, "%d x %d, %d heads of %d, grid %d x %d: error %.2g", n_q, n_k, n_heads, dim,
              grid_h, grid_w, error);
    plain_attention(truth, width, q, width, k, width, v, width, n_q, n_k, n_heads, dim, scale, r, NULL);
    attention(single, width, q, width, k, width, v, width, n_q, n_k, n_heads, dim, scale, r, NULL);
    error = test_relative_error(single, truth, n);
    CHECK_MSG(error < 1e-5, "without scratch, float32: relative error %.2g", error);
    free(q), free(k), free(v), free(out), free(truth), free(single), free(rel_h), free(rel_w);
    free(rq), free(rk), free(rv), free(scratch);
}

/* A head of too few dimensions stays in float32, scratch or not. */
static void a_narrow_head_stays_in_float32(void)
{
    enum { N = 20, DIM = BF16_LEAST_TERMS - 1 };
    float *x = random_array(N * DIM), single[N * DIM], out[N * DIM];
    void *scratch = aligned_array(bf16_attention_scratch(N, N, 1, DIM, 0, 0), 1);
    REQUIRE(scratch);
    attention(single, DIM, x, DIM, x, DIM, x, DIM, N, N, 1, DIM, 0.2f, NULL, NULL);
    attention(out, DIM, x, DIM, x, DIM, x, DIM, N, N, 1, DIM, 0.2f, NULL, scratch);
    CHECK(memcmp(single, out, sizeof out) == 0);
    free(x), free(scratch);
}

static void attention_equals_the_plain_one(void)
{
    compare_attention(97, 257, 2, 33, 0, 0);
    compare_attention(5, 600, 1, 64, 0, 0);
    compare_attention(3, 0, 1, 32, 0, 0);
    compare_attention(196, 196, 2, 64, 14, 14);
    compare_attention(35, 35, 3, 40, 5, 7);
}

/* A single window, copied out with its padding, is attention without windows. */
static void windows_equal_copies(void)
{
    enum {
        HEADS = 2,
        DIM = 40,
        WIDTH = HEADS * DIM,
        H = 7,
        W = 5,
        WINDOW_H = 3,
        WINDOW_W = 4,
        N = WINDOW_H * WINDOW_W
    };
    float *qkv = random_array(H * W * 3 * WIDTH), *pad = random_array(3 * WIDTH),
          *out = random_array(H * W * WIDTH);
    float *rel_h = random_array(relative_position_floats(WINDOW_H, DIM));
    float *rel_w = random_array(relative_position_floats(WINDOW_W, DIM));
    float in[N * 3 * WIDTH], copy[N * WIDTH];
    const RelativePosition rel = {rel_h, rel_w, WINDOW_H, WINDOW_W, NULL};
    void *scratch = aligned_array(bf16_window_scratch(H, W, WINDOW_H, WINDOW_W, HEADS, DIM), 1);
    void *copy_scratch = aligned_array(bf16_attention_scratch(N, N, HEADS, DIM, WINDOW_H, WINDOW_W), 1);
    REQUIRE(scratch && copy_scratch);
    window_attention(out, qkv, pad, H, W, HEADS, DIM, 0.3f, &rel, scratch);
    for (int y0 = 0; y0 < H; y0 += WINDOW_H)
        for (int x0 = 0; x0 < W; x0 += WINDOW_W) {
            for (int i = 0; i < N; i++) {
                const int y = y0 + i / WINDOW_W, x = x0 + i % WINDOW_W;
                memcpy(in + i * 3 * WIDTH, y < H && x < W ? qkv + (y * W + x) * 3 * WIDTH : pad,
                       3 * WIDTH * sizeof *in);
            }
            attention(copy, WIDTH, in, 3 * WIDTH, in + WIDTH, 3 * WIDTH, in + 2 * WIDTH, 3 * WIDTH, N, N,
                      HEADS, DIM, 0.3f, &rel, copy_scratch);
            for (int i = 0; i < N; i++) {
                const int y = y0 + i / WINDOW_W, x = x0 + i % WINDOW_W;
                if (y < H && x < W)
                    CHECK(!memcmp(out + (y * W + x) * WIDTH, copy + i * WIDTH, WIDTH * sizeof *copy));
            }
        }
    free(qkv), free(pad), free(out), free(rel_h), free(rel_w), free(scratch), free(copy_scratch);
}

/* ---- the networks ------------------------------------------------------------------------------*/

/* Intersection and union, summed over the prompts, of the masks of two embeddings of one picture. */
typedef struct Overlap {
    double both, either;
    int n;
} Overlap;

static int decode(const Sam *sam, const SamImage *image, const float *point, float *low_res, float *iou)
{
    Error err = {""};
    const int label = 1;
    const SamPrompt prompt = {.n_points = 1, .points = point, .labels = &label};
    int status = sam_decode(sam, image, &prompt, 1, low_res, iou, NULL, &err);
    CHECK_MSG(!status, "%s", err.message);
    return status;
}

/* The mask with the best predicted IoU in float32, at every point of a grid of side × side. */
static void compare_masks(Overlap *o, const Sam *sam, const SamImage *single, const SamImage *half, int side)
{
    const size_t pixels = 16 * (size_t)single->grid * (size_t)single->grid;
    const int n_masks = sam_config(sam)->n_multimask;
    float *a = random_array((size_t)n_masks * pixels), *b = random_array((size_t)n_masks * pixels);
    for (int i = 0; i < side * side; i++) {
        const float point[2] = {((float)(i % side) + 0.5f) * (float)single->original_w / (float)side,
                                ((float)(i / side) + 0.5f) * (float)single->original_h / (float)side};
        float iou[16], unused[16];
        if (decode(sam, single, point, a, iou) || decode(sam, half, point, b, unused))
            break;
        int best = 0;
        for (int m = 1; m < n_masks; m++)
            best = iou[m] > iou[best] ? m : best;
        double both = 0, either = 0;
        for (size_t p = (size_t)best * pixels; p < (size_t)(best + 1) * pixels; p++) {
            both += a[p] > 0 && b[p] > 0;
            either += a[p] > 0 || b[p] > 0;
        }
        o->both += both, o->either += either, o->n++;
    }
    free(a), free(b);
}

/* One picture in both precisions, then in float32 again, which must not have changed. All layers of a
 * `narrow` model have fewer than BF16_LEAST_TERMS inputs. */
static void compare_precisions(Overlap *o, Sam *sam, SamState *state, const TrayImage *picture, int size,
                               int side, int narrow)
{
    const Picture rgb = {picture->rgb, size, size};
    SamImage single, half, again;
    Error err = {""};
    const size_t n = (size_t)(sam_config(sam)->image_size / sam_config(sam)->patch_size);
    const size_t n_floats = n * n * (size_t)sam_config(sam)->out_chans;
    int status =
        sam_encode(sam, state, &single, &rgb, NULL, &err) || sam_set_precision(sam, PRECISION_BF16, &err) ||
        sam_encode(sam, state, &half, &rgb, NULL, &err) || sam_set_precision(sam, PRECISION_FP32, &err) ||
        sam_encode(sam, state, &again, &rgb, NULL, &err);
    CHECK_MSG(!status, "%s", err.message);
    if (status)
        return;
    CHECK(memcmp(single.embedding, again.embedding, n_floats * sizeof(float)) == 0);
    CHECK((memcmp(single.embedding, half.embedding, n_floats * sizeof(float)) == 0) == narrow);
    compare_masks(o, sam, &single, &half, side);
    sam_image_free(&single), sam_image_free(&half), sam_image_free(&again);
}

static Overlap masks_of(const char *path, int n_pictures, int side, int narrow)
{
    Overlap o = {0};
    Error err = {""};
    SynthTrayOptions options = synth_tray_defaults();
    Safetensors *weights = st_open(path, &err);
    Sam *sam = weights ? sam_open(weights, &err) : NULL;
    SamState *state = sam ? sam_state_new(sam, &err) : NULL;
    TrayProduct *product = state ? tray_product_new(&options, &err) : NULL;
    CHECK_MSG(product, "%s", err.message);
    for (int i = 0; product && i < n_pictures; i++) {
        TrayImage picture;
        CHECK(!tray_image_new(&picture, product, TRAY_TEST_GOOD, TRAY_GOOD, i, 0, &err));
        compare_precisions(&o, sam, state, &picture, options.width, side, narrow);
        tray_image_free(&picture);
    }
    tray_product_free(product);
    sam_state_free(state);
    sam_close(sam);
    st_close(weights);
    return o;
}

/* Random weights. */
static void masks_are_those_of_float32(void)
{
    static const char *const models[] = {"resampled", "window", "tiny_vit", "blocks"};
    for (int i = 0; i < 4; i++) {
        char path[80];
        snprintf(path, sizeof path, "tests/golden/sam_%s_model.safetensors", models[i]);
        Overlap o = masks_of(path, 1, 4, i == 3);
        CHECK(o.n == 16);
        CHECK_MSG(o.both >= 0.99 * o.either, "%s: IoU %.4f", path, o.both / o.either);
    }
}

static void shipped_masks_are_those_of_float32(void)
{
    FILE *f = fopen("weights/sam_tiny.safetensors", "rb");
    if (!f)
        SKIP("the shipped weights are not there");
    fclose(f);
    Overlap o = masks_of("weights/sam_tiny.safetensors", 2, 6, 0);
    CHECK(o.n == 72);
    CHECK_MSG(o.both >= 0.99 * o.either, "IoU %.4f", o.both / o.either);
}

/* Smallest cosine between the patch features of two precisions. */
static void compare_features(const char *name, double least)
{
    char path[80];
    Error err = {""};
    snprintf(path, sizeof path, "tests/golden/vit_%s_model.safetensors", name);
    Safetensors *weights = st_open(path, &err);
    Vit *vit = weights ? vit_open(weights, &err) : NULL;
    VitState *state = vit ? vit_state_new(vit, 5, 7, &err) : NULL;
    CHECK_MSG(state, "%s", err.message);
    if (state) {
        const int h = 5 * vit_config(vit)->patch_size, w = 7 * vit_config(vit)->patch_size;
        const size_t dim = (size_t)vit_config(vit)->dim, n = 35 * dim;
        float *pixels = random_array(3 * (size_t)h * (size_t)w), *y[3];
        for (int i = 0; i < 3; i++) {
            y[i] = random_array(n);
            CHECK(!vit_set_precision(vit, i == 1 ? PRECISION_BF16 : PRECISION_FP32, &err));
            CHECK(!vit_set_precision(vit, i == 1 ? PRECISION_BF16 : PRECISION_FP32, &err)); /* no change */
            CHECK(!vit_forward(vit, state, &(VitImage){pixels, h, w}, vit_config(vit)->depth, NULL, y[i],
                               NULL, NULL, NULL));
        }
        CHECK(memcmp(y[0], y[2], n * sizeof(float)) == 0 && memcmp(y[0], y[1], n * sizeof(float)) != 0);
        for (size_t p = 0; p < 35; p++) {
            const float *a = y[0] + p * dim, *b = y[1] + p * dim;
            float cosine = dot(a, b, (int)dim) / sqrtf(dot(a, a, (int)dim) * dot(b, b, (int)dim));
            CHECK_MSG((double)cosine >= least, "%s: patch %zu has cosine %.6f", name, p, (double)cosine);
        }
        for (int i = 0; i < 3; i++)
            free(y[i]);
        free(pixels);
    }
    vit_state_free(state);
    vit_close(vit);
    st_close(weights);
}

static void features_are_those_of_float32(void)
{
    compare_features("dinov2", 0.999);
    compare_features("registers", 0.999);
    compare_features("swiglu", 0.999);
    compare_features("timm", 0.999);
}

int main(void)
{
    RUN(rounding_is_to_the_nearest_even);
    RUN(rounding_equals_the_plain_one);
    RUN(layers_equal_the_plain_product);
    RUN(a_layer_has_its_precision);
    RUN(a_narrow_head_stays_in_float32);
    RUN(attention_equals_the_plain_one);
    RUN(windows_equal_copies);
    RUN(masks_are_those_of_float32);
    RUN(shipped_masks_are_those_of_float32);
    RUN(features_are_those_of_float32);
    return test_summary();
}
