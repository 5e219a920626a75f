/* test_names.c - checkpoints as Hugging Face transformers and timm save them (load/foreign.h, io/shards.h).
 *
 * Each folder of golden/names, and with SAMLAD_DATA each of its names/, holds a tiny model as the library wrote
 * it, and io.safetensors: an input and the library's own output. The features agree to 1e-5 of the largest. */
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "io/shards.h"
#include "load/foreign.h"
#include "sam.h"
#include "test.h"
#include "vit.h"

#define PARITY 1e-5

static char made[] = "/tmp/samlad_names_XXXXXX"; /* a folder for files that the tests write */

/* ---- the libraries' own outputs -----------------------------------------------------------------------*/

/* The first tensor of these names that the file has, and its size. */
static const StTensor *output_of(const Safetensors *io)
{
    const StTensor *t = st_find(io, "last_hidden_state");
    return t ? t : st_find(io, "forward_features");
}

static void compare_vit(const char *path, Safetensors *weights, Safetensors *io)
{
    Error err;
    Vit *vit = vit_open(weights, &err);
    const StTensor *pixels = st_find(io, "pixels"), *expected = output_of(io);
    CHECK_MSG(vit, "%s", err.message);
    REQUIRE(vit && pixels && expected && expected->dtype == ST_F32 && pixels->dtype == ST_F32);
    const VitConfig *c = vit_config(vit);
    const int h = (int)pixels->shape[2], w = (int)pixels->shape[3],
              n = h / c->patch_size * (w / c->patch_size);
    const float *values = expected->data;
    VitState *state = vit_state_new(vit, h / c->patch_size, w / c->patch_size, &err);
    float *out = malloc((size_t)(n + 1) * c->dim * sizeof *out);
    REQUIRE(state && out && expected->shape[1] == 1 + c->n_registers + n && expected->shape[2] == c->dim);
    vit_forward(vit, state, &(VitImage){pixels->data, h, w}, c->depth, out, out + c->dim, NULL, NULL);
    const double cls = test_relative_error(out, values, c->dim),
                 patches = test_relative_error(out + c->dim, values + (1 + c->n_registers) * c->dim,
                                               (size_t)n * c->dim);
    CHECK_MSG(cls < PARITY && patches < PARITY, "%s: class token %g, patches %g", path, cls, patches);
    free(out);
    vit_state_free(state);
    vit_close(vit);
}

/* Receives the taps of sam_encode: puts the library's own pixels in place of the picture's, and keeps the
 * embedding. */
typedef struct SamTaps {
    const StTensor *pixels;
    float *embedding;
} SamTaps;

static void sam_tap(void *user, const char *name, int n_dims, const int64_t *shape, const float *data)
{
    SamTaps *taps = user;
    size_t n = 1;
    for (int i = 0; i < n_dims; i++)
        n *= (size_t)shape[i];
    if (strcmp(name, "sam.pixels") == 0 && n == taps->pixels->n_elements)
        memcpy((float *)(uintptr_t)data, taps->pixels->data, n * sizeof(float));
    if (strcmp(name, "sam.embedding") == 0) {
        taps->embedding = malloc(n * sizeof(float));
        if (taps->embedding)
            memcpy(taps->embedding, data, n * sizeof(float));
    }
}

/* One point, in the plain form and in the form of automatic generation. */
static void compare_decoder(const char *path, const Sam *sam, const SamImage *image, Safetensors *io)
{
    const SamConfig *c = sam_config(sam);
    const float *point = st_find(io, "point")->data, *iou_expected = st_find(io, "iou_scores")->data;
    const StTensor *masks = st_find(io, "pred_masks");
    const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (int[]){1}};
    float iou[8], all[8], *low_res = malloc(masks->n_bytes);
    Error err;
    REQUIRE(low_res && c->n_multimask < 8 && masks->shape[0] == c->n_multimask);
    REQUIRE(sam_decode(sam, image, &prompt, 1, low_res, iou, NULL, &err) == 0);
    SamDecoder *decoder = sam_decoder_new(sam, image, &err);
    SamScratch *scratch = sam_scratch_new(sam, 1, 1, &err);
    REQUIRE(decoder && scratch);
    sam_decode_prompts(decoder, scratch, &prompt, 1, all);
    const double error[3] = {test_relative_error(low_res, masks->data, masks->n_elements),
                             test_relative_error(iou, iou_expected, (size_t)c->n_multimask),
                             test_relative_error(all + 1, iou_expected, (size_t)c->n_multimask)};
    CHECK_MSG(error[0] < PARITY && error[1] < PARITY && error[2] < PARITY,
              "%s: masks %g, IoU %g, together %g", path, error[0], error[1], error[2]);
    sam_scratch_free(scratch);
    sam_decoder_free(decoder);
    free(low_res);
}

static void compare_sam(const char *path, Safetensors *weights, Safetensors *io)
{
    Error err;
    Sam *sam = sam_open(weights, &err);
    CHECK_MSG(sam, "%s", err.message);
    REQUIRE(sam);
    const int size = sam_config(sam)->image_size;
    SamState *state = sam_state_new(sam, &err);
    SamTaps taps = {.pixels = st_find(io, "pixels")};
    uint8_t *grey = calloc((size_t)size * size, 3);
    SamImage image;
    REQUIRE(state && grey && taps.pixels);
    REQUIRE(sam_encode(sam, state, &image, &(Picture){grey, size, size}, &(SamTap){sam_tap, &taps}, &err) ==
            0);
    const StTensor *expected = st_find(io, "image_embedding");
    REQUIRE(taps.embedding && expected);
    const double error = test_relative_error(taps.embedding, expected->data, expected->n_elements);
    CHECK_MSG(error < PARITY, "%s: embedding %g", path, error);
    compare_decoder(path, sam, &image, io);
    free(taps.embedding);
    free(grey);
    sam_image_free(&image);
    sam_state_free(state);
    sam_close(sam);
}

static void compare_path(const char *path, Safetensors *io)
{
    Error err;
    Safetensors *weights = weights_open(path, &err);
    CHECK_MSG(weights, "%s", err.message);
    if (!weights)
        return;
    if (st_find(io, "image_embedding"))
        compare_sam(path, weights, io);
    else
        compare_vit(path, weights, io);
    st_close(weights);
}

/* A folder by its own path, and by that of the file or index in it. PyTorch files are left to convert.py. */
static int compare_folder(const char *folder)
{
    static const char *const files[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[700];
    snprintf(path, sizeof path, "%s/io.safetensors", folder);
    Safetensors *io = st_open(path, NULL);
    int n = 0;
    for (int i = 0; io && i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        if (file_exists(path)) {
            compare_path(path, io);
            compare_path(folder, io);
            n++;
        }
    }
    st_close(io);
    return n;
}

static int compare_folders(const char *root)
{
    size_t n;
    int compared = 0;
    char path[512], **names = dir_list(root, 1, &n, NULL);
    for (size_t i = 0; names && i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", root, names[i]);
        const int found = compare_folder(path);
        compared += found;
        if (!found)
            printf("  left to convert.py: %s\n", names[i]);
    }
    free(names);
    return compared;
}

static void test_committed_models(void)
{
    CHECK(compare_folders("tests/golden/names") >= 0);
}

static void test_models_of_the_libraries(void)
{
    const char *data = getenv("SAMLAD_NAMES"), *root = getenv("SAMLAD_DATA");
    char path[512];
    if (!root && !data)
        SKIP("SAMLAD_DATA is not set: the thirteen models of transformers and timm");
    snprintf(path, sizeof path, "%s%s", data ? data : root, data ? "" : "/names");
    if (!dir_exists(path))
        SKIP("SAMLAD_DATA has no names/");
    CHECK(compare_folders(path) >= 12);
}

int main(void)
{
    if (!mkdtemp(made))
        return 1;
    RUN(test_committed_models);
    RUN(test_models_of_the_libraries);
    dir_remove(made, NULL);
    return test_summary();
}
