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
    REQUIRE(vit_forward(vit, state, &(VitImage){pixels->data, h, w}, c->depth, out, out + c->dim, NULL, NULL,
                        &err) == 0);
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
    REQUIRE(sam_decode_prompts(decoder, scratch, &prompt, 1, all, &err) == 0);
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
    CHECK(compare_folders("tests/golden/names") == 2);
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
    CHECK(compare_folders(path) >= (data ? 1 : 12));
}

/* ---- what is refused, in which words ------------------------------------------------------------------*/

/* made/NAME */
static const char *in_made(char path[512], const char *name)
{
    snprintf(path, 512, "%s/%s", made, name);
    return path;
}

static void write_text(const char *name, const char *text, size_t n)
{
    char path[512];
    CHECK(file_write(in_made(path, name), text, n, NULL) == 0);
}

/* Opening is refused, with all words in the sentence. */
static void refused(const char *path, const char *word, const char *other)
{
    Error err = {""};
    Safetensors *st = weights_open(path, &err);
    CHECK_MSG(!st, "%s: opened, expected %s", path, word);
    CHECK_MSG(st || (strstr(err.message, word) && strstr(err.message, other)), "expected %s, %s in: %s", word,
              other, err.message);
    st_close(st);
}

static void refused_in_made(const char *name, const char *word, const char *other)
{
    char path[512];
    refused(in_made(path, name), word, other);
}

/* made/NAME with one tensor. */
static void write_one(const char *name, const char *tensor)
{
    static const float values[8];
    char path[512];
    StWriter *w = st_writer_new();
    CHECK(w && st_writer_add(w, tensor, ST_F32, 1, (int64_t[]){8}, values, NULL) == 0 &&
          st_writer_save(w, in_made(path, name), NULL) == 0);
    st_writer_free(w);
}

static void test_strangers_are_named(void)
{
    static const char *const cases[][2] = {
        {"rope_embed.periods", "DINOv3"},
        {"embeddings.patch_embeddings.weight", "DINOv3"},
        {"visual.transformer.resblocks.0.ln_1.weight", "CLIP"},
        {"vision_model.embeddings.class_embedding", "CLIP"},
        {"vision_model.embeddings.patch_embedding.weight", "SigLIP"},
        {"image_encoder.trunk.patch_embed.proj.weight", "SAM 2"},
        {"vision_encoder.backbone.patch_embed.projection.weight", "SAM 2"},
        {"detr_decoder.layers.0.norm.weight", "SAM 3"},
        {"mask_decoder.hf_token.weight", "HQ-SAM"},
        {"mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM"},
        {"encoder.layer.0.lambda_1", "BEiT"},
        {"dist_token", "distillation token"},
        {"encoder.stages.0.layers.0.dwconv.weight", "ConvNeXt"},
        {"stages.0.layers.0.depthwise_conv.weight", "DINOv3's ConvNeXt"},
        {"vision_encoder.patch_embed.projection.weight", "the image encoder of a SAM alone"},
        {"image_encoder.patch_embed.proj.weight", "the image encoder of a SAM alone"},
        {"mask_decoder.iou_token.weight", "the mask decoder of a SAM alone"},
        {"iou_token.weight", "the mask decoder of a SAM alone"},
        {"prompt_encoder.not_a_point_embed.weight", "the prompt encoder of a SAM alone"},
        {"layers.0.attn.rel_pos_h", "the image encoder of a SAM alone"},
        {"resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", "ResNet"},
        {"segformer.encoder.block.0.0.mlp.dwconv.dwconv.weight", "SegFormer"},
        {"base_model.model.encoder.layer.0.lora_A.weight", "LoRA"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_one("stranger.safetensors", cases[i][0]);
        refused_in_made("stranger.safetensors", cases[i][1],
                        strstr(cases[i][1], "alone") ? "--base" : cases[i][0]);
    }
}

#define BYTES(text) text, sizeof(text) - 1

static void test_other_files_are_named(void)
{
    static const struct {
        const char *name, *bytes;
        size_t n;
        const char *word;
    } cases[] = {
        {"page.safetensors", BYTES("\n<!DOCTYPE html><html><body>Not found</body></html>"), "web page"},
        {"lfs.safetensors", BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "Git LFS"},
        {"old.pth",
         "\x80\x02\x8a\nl\xfc\x9c"
         "F\xf9 j\xa8P\x19.\x80\x02M",
         18, "convert.py"},
        {"it's.pth",
         "\x80\x02\x8a\nl\xfc\x9c"
         "F\xf9 j\xa8P\x19.\x80\x02M",
         18, "pickle"},
        {"zip.bin", BYTES("PK\3\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pkl"),
         "convert.py"},
        {"a.npz", BYTES("PK\3\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\5\0\0\0a.npyxx"), "NumPy"},
        {"a.gguf", BYTES("GGUF\3\0\0\0\0\0\0\0"), "GGUF"},
        {"a.onnx", BYTES("\x08\x08\x12\x07pytorch"), "ONNX"},
        {"denied.safetensors", BYTES("Access to this model is restricted"), "Access to this model"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(cases[i].name, cases[i].bytes, cases[i].n);
        refused_in_made(cases[i].name, cases[i].word, cases[i].name + (cases[i].name[2] == '\''));
    }
}

#define SHARD "model-00001-of-00002.safetensors"

static void test_indexes_are_checked(void)
{
    static const char *const cases[][2] = {
        {"{}", "no weight_map"},
        {"[]", "no weight_map"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{\"weight_map\":[\"" SHARD "\"]}", "no weight_map"},
        {"{\"weight_map\":{\"t\":1}}", "not a string"},
        {"{\"weight_map\":{\"t\":\"gone.safetensors\"}}",
         "gone.safetensors, which weight_map names, is missing"},
        {"{\"weight_map\":{\"t\":\"../one.safetensors\"}}", "expected a file beside the index"},
        {"{\"weight_map\":{\"t\":\"/etc/passwd\"}}", "expected a file beside the index"},
        {"{\"weight_map\":{\"t\":\"..\"}}", "expected a .safetensors file"},
        {"{\"weight_map\":{\"t\":\"model.safetensors.index.json\"}}", "expected a .safetensors file"},
        {"{\"weight_map\":{\"t\":\"pytorch_model-1.bin\"}}", "convert.py"},
        {"{\"weight_map\":{\"other\":\"one.safetensors\"}}", "tensor other is not in one.safetensors"},
        {"{\"weight_map\":{\"t\":\"one.safetensors\",\"t\":\"one.safetensors\"}}", "twice"},
        {"{\"weight_map\":{\"t\":\"two.safetensors\"}}", "holds 2 tensors, but weight_map names 1"},
        {"{\"weight_map\":{\"t\":\"one.safetensors\"", "JSON error"},
        {"{\"weight_map\":{\"t\":\"loop.safetensors\"}}", "missing"},
    };
    char path[512];
    StWriter *w = st_writer_new();
    static const float value;
    REQUIRE(w && st_writer_add(w, "t", ST_F32, 0, NULL, &value, NULL) == 0 &&
            st_writer_add(w, "u", ST_F32, 0, NULL, &value, NULL) == 0 &&
            st_writer_save(w, in_made(path, "two.safetensors"), NULL) == 0);
    st_writer_free(w);
    write_one("one.safetensors", "t");
    CHECK(symlink("loop.safetensors", in_made(path, "loop.safetensors")) == 0); /* a circle */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text("bad.index.json", cases[i][0], strlen(cases[i][0]));
        refused_in_made("bad.index.json", cases[i][1], "bad.index.json");
    }
    unlink(in_made(path, "loop.safetensors"));
}

/* transformers 5 saves one class with the blocks outside the prefix: the network is the same. */
static void test_blocks_outside_the_prefix(void)
{
    static const char prefix[] = "dinov2_with_registers.";
    char path[512];
    Error err = {""};
    Safetensors *st = st_open_checkpoint("tests/golden/names/hf", NULL);
    StWriter *w = st_writer_new();
    REQUIRE(st && w && dir_make(in_made(path, "outside"), NULL) == 0);
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *t = st_at(st, i);
        const char *name = strstr(t->name, "encoder.layer.") ? t->name + sizeof prefix - 1 : t->name;
        CHECK(st_writer_add(w, name, t->dtype, t->n_dims, t->shape, t->data, NULL) == 0);
    }
    CHECK(st_writer_save(w, in_made(path, "outside/model.safetensors"), NULL) == 0);
    st_writer_free(w);
    Safetensors *usual = weights_official(st, &err), *outside = weights_open(in_made(path, "outside"), &err);
    REQUIRE(usual && outside);
    CHECK(st_count(usual) == st_count(outside));
    for (size_t i = 0; i < st_count(usual); i++) {
        const StTensor *a = st_at(usual, i), *b = st_find(outside, a->name);
        CHECK_MSG(b && a->n_bytes == b->n_bytes && memcmp(a->data, b->data, a->n_bytes) == 0, "%s", a->name);
    }
    st_close(usual), st_close(outside);
}

/* golden/names/hf as one file in made/hf, without one tensor and with another one. NULL: no change. */
static void write_hf(const char *without, const char *added)
{
    static const float zeros[8];
    char path[512];
    Safetensors *st = st_open_checkpoint("tests/golden/names/hf", NULL);
    StWriter *w = st_writer_new();
    REQUIRE(st && w && dir_make(in_made(path, "hf"), NULL) == 0);
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *t = st_at(st, i);
        if (!without || strcmp(t->name, without) != 0)
            CHECK(st_writer_add(w, t->name, t->dtype, t->n_dims, t->shape, t->data, NULL) == 0);
    }
    if (added)
        CHECK(st_writer_add(w, added, ST_F32, 1, (int64_t[]){8}, zeros, NULL) == 0);
    CHECK(st_writer_save(w, in_made(path, "hf/model.safetensors"), NULL) == 0);
    st_writer_free(w);
    st_close(st);
}

#define PREFIX "dinov2_with_registers."
#define LAYER  PREFIX "encoder.layer.1."

static void test_pieces_and_places(void)
{
    char path[512];
    unlink(in_made(path, "hf/config.json"));
    write_hf(LAYER "attention.attention.key.weight", NULL);
    refused_in_made("hf", "not piece 2 of 3", "blocks.1.attn.qkv.weight");
    write_hf(NULL, LAYER "attention.q_norm.weight");
    refused_in_made("hf", "no place", LAYER "attention.q_norm.weight");
    write_hf(NULL, LAYER "attention.k_proj.bias"); /* both spellings at once */
    refused_in_made("hf", "are both blocks.1.attn.qkv.bias", LAYER "attention.k_proj.bias");
    write_hf(NULL, LAYER "attention.o_proj.bias");
    refused_in_made("hf", "are both blocks.1.attn.proj.bias", LAYER);
    write_hf(NULL, "head.0.something"); /* outside the prefix: a head */
    Error err = {""};
    Safetensors *st = weights_open(in_made(path, "hf"), &err);
    CHECK_MSG(st, "%s", err.message);
    CHECK(st && !vit_open(st, &err) && strstr(err.message, "number of heads")); /* 16 wide, no config.json */
    st_close(st);
}

static void test_settings_are_checked(void)
{
    static const char *const cases[][2] = {
        {"{\"model_type\":\"dinov2\",\"hidden_size\":16,\"num_attention_heads\":\"two\"}",
         "num_attention_heads"},
        {"{\"hidden_size\":16,\"num_attention_heads\":0}", "num_attention_heads"},
        {"{\"hidden_size\":16,\"num_attention_heads\":1e9}", "num_attention_heads"},
        {"{\"hidden_size\":16,\"num_attention_heads\":3}", "num_attention_heads is 3, which does not divide"},
        {"{\"hidden_size\":16,\"num_attention_heads\":2.5}",
         "num_attention_heads is 2.5, which does not divide"},
        {"{\"hidden_size\":768}", "another model"},
        {"{}", "another model"}, /* the class has 768 */
        {"{\"hidden_size\":16}", "num_attention_heads is 12 by default"},
        {"{\"hidden_size\":16,\"num_attention_heads\":4,\"layer_norm_eps\":-1}", "layer_norm_eps"},
        {"{\"hidden_size\":16,\"hidden_act\":\"quick_gelu\"}", "quick_gelu"},
        {"{\"hidden_size\":16,\"hidden_act\":[]}", "hidden_act"},
        {"[1]", "not an object"},
        {"{\"hidden_size\":", "JSON error"},
    };
    char path[512];
    Error err = {""};
    write_hf(NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text("hf/config.json", cases[i][0], strlen(cases[i][0]));
        refused_in_made("hf", cases[i][1], "hf/config.json");
    }
    static const char fine[] = "{\"hidden_size\":16,\"num_attention_heads\":4,\"layer_norm_eps\":1e-05}";
    write_text("hf/config.json", fine, sizeof fine - 1);
    static const char *const processors[][2] = {
        {"{\"image_mean\":[1,2],\"image_std\":[1,1,1]}", "image_mean"},
        {"{\"image_mean\":[1,2,3]}", "image_mean is there, but not image_std"},
        {"{\"image_std\":[1,-2,3]}", "image_std is there, but not image_mean"},
        {"{\"image_mean\":[1,2,3],\"image_std\":[1,0,1]}", "image_std"},
        {"{\"image_mean\":[1,2,\"x\"],\"image_std\":[1,1,1]}", "image_mean"},
        {"{\"image_mean\":[1e300,2,3],\"image_std\":[1,1,1]}", "image_mean"},
        {"{\"image_mean\":0.5,\"image_std\":0.5,\"rescale_factor\":0}", "rescale_factor"},
    };
    for (size_t i = 0; i < sizeof processors / sizeof *processors; i++) {
        write_text("hf/preprocessor_config.json", processors[i][0], strlen(processors[i][0]));
        refused_in_made("hf", processors[i][1], "hf/preprocessor_config.json");
    }
    static const char bit[] =
        "{\"image_processor_type\":\"BitImageProcessorFast\",\"image_std\":[0.5,0.25,1]}";
    write_text("hf/preprocessor_config.json", bit, sizeof bit - 1);
    Safetensors *st = weights_open(in_made(path, "hf"), &err);
    Vit *vit = st ? vit_open(st, &err) : NULL;
    REQUIRE(vit);
    const VitConfig *c = vit_config(vit);
    CHECK(c->n_heads == 4 && c->eps == 1e-5f && c->mean[0] == 0.48145466f && c->std[1] == 0.25f);
    vit_close(vit);
    st_close(st);
}

/* The settings of timm, and the identity of both forms of a model. */
static void test_settings_of_timm(void)
{
    Error err = {""};
    Safetensors *st = weights_open("tests/golden/names/timm", &err);
    Vit *vit = st ? vit_open(st, &err) : NULL;
    REQUIRE(vit);
    const VitConfig *c = vit_config(vit);
    CHECK(c->mean[1] == 0.25f && c->std[2] == 1 && c->hidden_dim == 5 && c->swiglu && c->n_registers == 2 &&
          !c->pos_cls);
    CHECK(!c->timm && c->layer_scale && c->interpolate_antialias && c->n_heads == 1 && c->image_size == 12);
    vit_close(vit);
    st_close(st);
}

static void test_folders_without_a_checkpoint(void)
{
    char path[512];
    CHECK(dir_make(in_made(path, "empty"), NULL) == 0 && dir_make(in_made(path, "torch"), NULL) == 0);
    refused_in_made("empty", "a folder without a checkpoint", "empty");
    write_text("torch/pytorch_model.bin", "PK\3\4", 4);
    write_one("torch/io.safetensors", "t"); /* not the model */
    refused_in_made("torch", "tools/convert.py", "torch/pytorch_model.safetensors");
    refused_in_made("nowhere.safetensors", "cannot open", "nowhere");
    refused("tests/golden/names/hf/model-00001-of-00002.safetensors", "one shard of several", "index");
}

/* With an argument: only the models of the folder SAMLAD_NAMES (test_convert). */
int main(int argc, char **argv)
{
    (void)argv;
    RUN(test_models_of_the_libraries);
    if (argc > 1)
        return test_summary();
    if (!mkdtemp(made))
        return 1;
    RUN(test_committed_models);
    RUN(test_strangers_are_named);
    RUN(test_other_files_are_named);
    RUN(test_indexes_are_checked);
    RUN(test_blocks_outside_the_prefix);
    RUN(test_pieces_and_places);
    RUN(test_settings_are_checked);
    RUN(test_settings_of_timm);
    RUN(test_folders_without_a_checkpoint);
    dir_remove(made, NULL);
    return test_summary();
}
