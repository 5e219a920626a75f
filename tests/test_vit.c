/* test_vit.c - vit.c against the official DINOv2 and timm classes (make_golden_vit.py), and hostile files. */
#include "damage.h"
#include "test.h"

#include "io/safetensors.h"
#include "vit.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define GOLDEN "tests/golden/"
static const double TOLERANCE = 1e-5; /* of the output's largest magnitude */

/* The golden tensor KEY.NAME, or NULL if this case has none. */
static const StTensor *golden_find(Safetensors *golden, const char *key, const char *name)
{
    char full_name[128];
    snprintf(full_name, sizeof full_name, "%s.%s", key, name);
    return st_find(golden, full_name);
}

static const float *golden_data(Safetensors *golden, const StTensor *t)
{
    Error err = {""};
    const float *data = st_f32(golden, t->name, t->n_dims, t->shape, &err);
    CHECK_MSG(data, "%s", err.message);
    return data;
}

/* The golden tensors that the tap compares with. */
typedef struct Taps {
    Safetensors *golden;
    const char *key;
    int n_compared;
} Taps;

static void compare_tap(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    Taps *taps = user;
    CHECK(strncmp(name, "vit.", 4) == 0);
    const StTensor *t = golden_find(taps->golden, taps->key, name + 4);
    if (!t)
        return;
    taps->n_compared++;
    CHECK(t->n_dims == n_dims);
    for (int i = 0; i < n_dims && i < t->n_dims; i++)
        CHECK_MSG(t->shape[i] == shape[i], "%s: shape[%d] is %lld", name, i, (long long)shape[i]);
    const float *expected = golden_data(taps->golden, t);
    double error = expected ? test_relative_error(data, expected, t->n_elements) : 1;
    CHECK_MSG(error < TOLERANCE, "%s at %s: relative error %.2g", name, taps->key, error);
}

/* cls and patches of an inner layer in the golden file. */
static void compare_layer(const Vit *vit, VitState *state, Taps *taps, const float *pixels, int h, int w,
                          int layer)
{
    const VitConfig *c = vit_config(vit);
    char name[64];
    snprintf(name, sizeof name, "layer%d.patches", layer);
    const StTensor *patches = golden_find(taps->golden, taps->key, name);
    snprintf(name, sizeof name, "layer%d.cls", layer);
    const StTensor *cls = golden_find(taps->golden, taps->key, name);
    if (!patches || !cls)
        return;
    size_t n = (size_t)(h / c->patch_size) * (size_t)(w / c->patch_size) * (size_t)c->dim;
    CHECK(patches->n_elements == n);
    float *out = malloc((n + (size_t)c->dim) * sizeof *out);
    REQUIRE(out);
    CHECK(!vit_forward(vit, state, &(VitImage){pixels, h, w}, layer, out + n, out, NULL, NULL, NULL));
    double error = test_relative_error(out, golden_data(taps->golden, patches), n);
    CHECK_MSG(error < TOLERANCE, "layer %d at %s: patches' relative error %.2g", layer, taps->key, error);
    error = test_relative_error(out + n, golden_data(taps->golden, cls), (size_t)c->dim);
    CHECK_MSG(error < TOLERANCE, "layer %d at %s: class token's relative error %.2g", layer, taps->key,
              error);
    free(out);
}

/* Every size in vit_NAME_golden with one state for all. Returns the number of compared tensors. */
static int compare_model(const char *name, VitConfig *config)
{
    char path[128];
    Error err = {""};
    int n_compared = 0;
    snprintf(path, sizeof path, GOLDEN "vit_%s_model.safetensors", name);
    Safetensors *weights = st_open(path, &err);
    CHECK_MSG(weights, "%s", err.message);
    snprintf(path, sizeof path, GOLDEN "vit_%s_golden.safetensors", name);
    Safetensors *golden = st_open(path, &err);
    CHECK_MSG(golden, "%s", err.message);
    Vit *vit = weights ? vit_open(weights, &err) : NULL;
    CHECK_MSG(vit, "%s", err.message);
    VitState *state = vit ? vit_state_new(vit, 11, 11, &err) : NULL;
    for (size_t i = 0; state && golden && i < st_count(golden); i++) {
        const StTensor *pixels = st_at(golden, i);
        char key[64];
        int h, w, used = 0;
        if (sscanf(pixels->name, "%dx%d.pixels%n", &h, &w, &used) != 2 || !used)
            continue;
        snprintf(key, sizeof key, "%dx%d", h, w);
        Taps taps = {.golden = golden, .key = key};
        const float *data = golden_data(golden, pixels);
        CHECK(!vit_forward(vit, state, &(VitImage){data, h, w}, vit_config(vit)->depth, NULL, NULL,
                           compare_tap, &taps, NULL));
        for (int layer = 1; layer < vit_config(vit)->depth; layer++)
            compare_layer(vit, state, &taps, data, h, w, layer);
        n_compared += taps.n_compared;
    }
    if (vit)
        *config = *vit_config(vit);
    vit_state_free(state);
    vit_close(vit);
    st_close(golden);
    st_close(weights);
    return n_compared;
}

static void test_dinov2(void)
{
    VitConfig c = {0};
    CHECK(compare_model("dinov2", &c) ==
          4 * 2 + 4); /* cls and patches of 4 sizes; embed and 3 blocks of one */
    CHECK(c.depth == 3 && c.n_heads == 3 && c.pos_grid == 4 && c.layer_scale && !c.swiglu && !c.timm);
    CHECK(c.interpolate_offset == 0.1 && !c.interpolate_antialias && c.hidden_dim == 96);
}

static void test_dinov2_registers(void)
{
    VitConfig c = {0};
    CHECK(compare_model("registers", &c) == 4 * 2 + 4);
    CHECK(c.n_registers == 4 && c.interpolate_offset == 0 && c.interpolate_antialias);
}

static void test_dinov2_swiglu(void)
{
    VitConfig c = {0};
    CHECK(compare_model("swiglu", &c) == 2 * 2 + 3);
    CHECK(c.swiglu && c.hidden_dim == 56); /* 80*2/3 = 53, rounded up to a multiple of 8 */
}

/* Half precision and no metadata: names and shapes are enough. */
static void test_dinov2_without_metadata(void)
{
    VitConfig c = {0};
    CHECK(compare_model("raw", &c) == 2 * 2 + 2);
    CHECK(c.n_heads == 1 && c.dim == 64 && c.depth == 1 && c.n_registers == 4 && c.patch_size == 14);
    CHECK(c.image_size == 56 && c.layer_scale && !c.timm && fabsf(c.mean[0] - 0.485f) < 1e-6f);
}

/* timm's and MAE's ViT-Huge have 16 heads of 80 channels, others of that width heads of 64. */
static void test_heads_of_wide_models(void)
{
    static const int dims[][2] = {{1280, 16}, {1024, 16}, {1152, 16}, {1216, 19}};
    static const char path[] = "test_vit_wide.tmp.safetensors";
    Error err = {""};
    Safetensors *narrow = st_open(GOLDEN "vit_timm_model.safetensors", &err);
    REQUIRE(narrow);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        const int dim = dims[i][0];
        const Resize wide = {.prefix = "", .n_sizes = 2, .sizes = {{24, dim}, {72, 3 * dim}}};
        REQUIRE(write_resized(narrow, &wide, path) == 0);
        Safetensors *st = st_open(path, &err);
        Vit *vit = st ? vit_open(st, &err) : NULL;
        CHECK_MSG(vit, "%s", err.message);
        CHECK(!vit || vit_config(vit)->n_heads == dims[i][1]);
        vit_close(vit);
        st_close(st);
        remove(path);
    }
    st_close(narrow);
}

static void test_timm(void)
{
    VitConfig c = {0};
    CHECK(compare_model("timm", &c) == 3 * 2 + 4);
    CHECK(c.timm && !c.layer_scale && c.pos_cls && c.interpolate_offset == 0);
}

/* As in deit3: the class token has no position. */
static void test_timm_without_class_position(void)
{
    VitConfig c = {0};
    CHECK(compare_model("timm_nocls", &c) == 2 * 2);
    CHECK(c.timm && !c.pos_cls && c.pos_grid == 4);
}

/* ---- the real ViT-Tiny ------------------------------------------------------------------------------*/

/* Every 4th patch against the golden tensor, in relative error. */
static void compare_real(Safetensors *golden, const char *key, const char *name, const float *patches,
                         int dim)
{
    const StTensor *t = golden_find(golden, key, name);
    REQUIRE(t && t->n_dims == 2 && t->shape[1] == dim);
    float *picked = malloc(t->n_elements * sizeof *picked);
    REQUIRE(picked);
    for (int64_t i = 0; i < t->shape[0]; i++)
        memcpy(picked + i * dim, patches + 4 * i * dim, (size_t)dim * sizeof *picked);
    double error = test_relative_error(picked, golden_data(golden, t), t->n_elements);
    CHECK_MSG(error < 1e-4, "%s.%s: relative error %.2g", key, name, error);
    free(picked);
}

static void real_at_size(const Vit *vit, Safetensors *golden, const StTensor *image, int h, int w)
{
    const VitConfig *c = vit_config(vit);
    const size_t n_patches = (size_t)(h / 16) * (size_t)(w / 16);
    Error err = {""};
    char key[64];
    snprintf(key, sizeof key, "%dx%d", h, w);
    VitState *state = vit_state_new(vit, h / 16, w / 16, &err);
    float *pixels = malloc((size_t)(3 * h * w) * sizeof *pixels);
    float *patches = malloc(n_patches * (size_t)c->dim * sizeof *patches);
    float cls[192];
    REQUIRE(state && pixels && patches);
    CHECK(vit_state_bytes(vit, h / 16, w / 16) > n_patches * (size_t)c->dim * 4);
    const Picture picture = {image->data, (int)image->shape[0], (int)image->shape[1]};
    CHECK(vit_preprocess(c, pixels, h, w, &picture, &err) == 0);
    const float *row = golden_data(golden, golden_find(golden, key, "resized_row"));
    for (int channel = 0; channel < 3; channel++)
        CHECK(memcmp(row + channel * w, pixels + (channel * h + h / 3) * w, (size_t)w * sizeof *row) == 0);

    const VitImage input = {pixels, h, w};
    CHECK(!vit_forward(vit, state, &input, c->depth, cls, patches, NULL, NULL, NULL));
    double error = test_relative_error(cls, golden_data(golden, golden_find(golden, key, "cls")), 192);
    CHECK_MSG(error < 1e-4, "%s.cls: relative error %.2g", key, error);
    compare_real(golden, key, "patches", patches, c->dim);
    CHECK(!vit_forward(vit, state, &input, 9, NULL, patches, NULL, NULL, NULL));
    compare_real(golden, key, "layer9.patches", patches, c->dim);
    free(patches);
    free(pixels);
    vit_state_free(state);
}

static void test_real_vit_tiny(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set (the pretrained ViT-Tiny)");
    char path[1024];
    Error err = {""};
    snprintf(path, sizeof path, "%s/vit_tiny/vit_tiny_patch16_224.safetensors", test_data_dir());
    Safetensors *weights = st_open(path, &err), *golden = st_open(GOLDEN "vit_tiny_golden.safetensors", &err);
    CHECK_MSG(weights && golden, "%s", err.message);
    REQUIRE(weights && golden);
    Vit *vit = vit_open(weights, &err);
    CHECK_MSG(vit, "%s", err.message);
    REQUIRE(vit);
    const VitConfig *c = vit_config(vit);
    CHECK(c->dim == 192 && c->depth == 12 && c->n_heads == 3 && c->patch_size == 16 && c->image_size == 224);
    CHECK(c->timm && c->hidden_dim == 768 && c->mean[1] == 0.5f && c->std[2] == 0.5f);
    const StTensor *image = st_find(golden, "image");
    REQUIRE(image && image->dtype == ST_U8 && image->n_dims == 3);
    real_at_size(vit, golden, image, 224, 224);
    real_at_size(vit, golden, image, 160, 256);
    vit_close(vit);
    st_close(golden);
    st_close(weights);
}

/* ---- threads ----------------------------------------------------------------------------------------*/

static void test_threads_give_the_same_bits(void)
{
#ifdef _OPENMP
    enum { H = 98, W = 126, N = 7 * 9 * 24 };
    Error err = {""};
    Safetensors *weights = st_open(GOLDEN "vit_dinov2_model.safetensors", &err);
    REQUIRE(weights);
    Vit *vit = vit_open(weights, &err);
    REQUIRE(vit);
    VitState *state = vit_state_new(vit, 7, 9, &err);
    float *pixels = malloc(3 * H * W * sizeof *pixels), *one = malloc(N * sizeof *one),
          *many = malloc(N * sizeof *many);
    REQUIRE(state && pixels && one && many);
    for (int i = 0; i < 3 * H * W; i++)
        pixels[i] = (float)(i * 7919 % 1000) / 250.0f - 2.0f;
    const VitImage image = {pixels, H, W};
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    CHECK(!vit_forward(vit, state, &image, 3, NULL, one, NULL, NULL, NULL));
    omp_set_num_threads(3);
    CHECK(!vit_forward(vit, state, &image, 3, NULL, many, NULL, NULL, NULL));
    omp_set_num_threads(before);
    CHECK(memcmp(one, many, N * sizeof *one) == 0);
    free(many);
    free(one);
    free(pixels);
    vit_state_free(state);
    vit_close(vit);
    st_close(weights);
#else
    SKIP("built without OpenMP");
#endif
}

/* ---- files that must be refused ---------------------------------------------------------------------*/

#define BROKEN "test_vit_broken.tmp.safetensors"

/* The damaged file is refused with a sentence that names the file and `word`. */
static void refuse(Damage damage, const char *word)
{
    Error err = {""};
    Safetensors *good = st_open(GOLDEN "vit_dinov2_model.safetensors", &err);
    REQUIRE(good && write_damaged(good, &damage, BROKEN) == 0);
    st_close(good);
    Safetensors *st = st_open(BROKEN, &err);
    REQUIRE(st);
    Vit *vit = vit_open(st, &err);
    CHECK_MSG(!vit, "opened although %s is wrong", word);
    CHECK_MSG(strstr(err.message, BROKEN) && strstr(err.message, word), "no clear sentence: %s", err.message);
    vit_close(vit);
    st_close(st);
    remove(BROKEN);
}

static void test_metadata_is_checked(void)
{
    refuse((Damage){.key = "samlad.model", .value = "sam"}, "samlad.model");
    refuse((Damage){.key = "samlad.model"}, "24"); /* no metadata: a dim of 24 does not say how many heads */
    refuse((Damage){.key = "vit.family", .value = "clip"}, "vit.family");
    refuse((Damage){.key = "vit.depth", .value = "1000000000"}, "vit.depth");
    refuse((Damage){.key = "vit.depth", .value = "-1"}, "vit.depth");
    refuse((Damage){.key = "vit.depth", .value = "2"}, "blocks.2.");
    refuse((Damage){.key = "vit.depth", .value = "4"}, "blocks.3.");
    refuse((Damage){.key = "vit.dim", .value = "2147483647"}, "vit.dim");
    refuse((Damage){.key = "vit.dim", .value = "48"}, "patch_embed.proj.weight");
    refuse((Damage){.key = "vit.n_heads", .value = "0"}, "vit.n_heads");
    refuse((Damage){.key = "vit.n_heads", .value = "5"}, "heads");
    refuse((Damage){.key = "vit.mlp_ratio", .value = "nan"}, "vit.mlp_ratio");
    refuse((Damage){.key = "vit.mlp_ratio", .value = "2"}, "blocks.0.mlp.fc1.weight");
    refuse((Damage){.key = "vit.ffn", .value = "swiglu"}, "blocks.0.mlp.w12.weight");
    refuse((Damage){.key = "vit.n_registers", .value = "4"}, "register_tokens");
    refuse((Damage){.key = "vit.layer_scale", .value = "0"}, "ls1.gamma");
    refuse((Damage){.key = "vit.patch_size"}, "vit.patch_size");
    refuse((Damage){.key = "vit.patch_size", .value = "7"}, "vit.image_size");
    refuse((Damage){.key = "vit.image_size", .value = "518"}, "vit.image_size");
    refuse((Damage){.key = "vit.interpolate_offset", .value = "1e300"}, "vit.interpolate_offset");
    refuse((Damage){.key = "vit.std", .value = "0,1,1"}, "vit.std");
    refuse((Damage){.key = "vit.mean", .value = "0,1"}, "vit.mean");
}

static void test_tensors_are_checked(void)
{
    refuse((Damage){.without = "pos_embed"}, "pos_embed");
    refuse((Damage){.without = "blocks.1.attn.proj.bias"}, "blocks.1.attn.proj.bias");
    refuse((Damage){.without = "norm.weight"}, "norm.weight");
    refuse((Damage){.halved = "blocks.2.attn.qkv.weight"}, "blocks.2.attn.qkv.weight");
    refuse((Damage){.halved = "patch_embed.proj.weight"}, "patch_embed.proj.weight");
    refuse((Damage){.added = "blocks.0.attn.q_norm.weight"}, "q_norm");
    refuse((Damage){.added = "blocks.3.norm1.weight"}, "blocks.3.norm1.weight");
    refuse((Damage){.added = "reg_token"}, "reg_token");
}

static void test_state_bounds(void)
{
    Error err = {""};
    Safetensors *weights = st_open(GOLDEN "vit_dinov2_model.safetensors", &err);
    REQUIRE(weights);
    Vit *vit = vit_open(weights, &err);
    REQUIRE(vit);
    CHECK(!vit_state_new(vit, 0, 3, &err) && strstr(err.message, "0 x 3"));
    CHECK(!vit_state_new(vit, 1 << 30, 1 << 30, &err));
    vit_close(vit);
    st_close(weights);
    vit_close(NULL);
    vit_state_free(NULL);
}

int main(void)
{
    RUN(test_dinov2);
    RUN(test_dinov2_registers);
    RUN(test_dinov2_swiglu);
    RUN(test_dinov2_without_metadata);
    RUN(test_heads_of_wide_models);
    RUN(test_timm);
    RUN(test_timm_without_class_position);
    RUN(test_real_vit_tiny);
    RUN(test_threads_give_the_same_bits);
    RUN(test_metadata_is_checked);
    RUN(test_tensors_are_checked);
    RUN(test_state_bounds);
    return test_summary();
}
