/* sam_case.h - a SAM and its golden file (make_golden_sam.py), for the tests of its plain and fast form. */
#ifndef SAMLAD_TESTS_SAM_CASE_H
#define SAMLAD_TESTS_SAM_CASE_H

#include "sam.h"
#include "test.h"

#define GOLDEN "tests/golden/"
static const double TOLERANCE = 2e-5; /* of the output's largest magnitude */

/* A model, its golden file, and the current picture and prompt. */
typedef struct Case {
    Safetensors *weights, *golden;
    Sam *sam;
    SamState *state;
    char key[64];
    int n_compared;
} Case;

static inline void case_close(Case *c)
{
    sam_state_free(c->state);
    sam_close(c->sam);
    st_close(c->weights);
    st_close(c->golden);
}

static inline int case_open(Case *c, const char *name)
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

static inline const StTensor *case_find(const Case *c, const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", c->key, name);
    return st_find(c->golden, full);
}

static inline const float *case_data(Case *c, const char *name)
{
    const StTensor *t = case_find(c, name);
    return t ? st_f32(c->golden, t->name, t->n_dims, t->shape, NULL) : NULL;
}

static inline void compare(Case *c, const char *name, const float *data, size_t n)
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

static inline void compare_tap(void *user, const char *name, int n_dims, const int64_t *shape,
                               const float *data)
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
static inline SamPrompt golden_prompt(Case *c, int labels[8])
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

/* Picture 0, 1, ... of the golden file. 0: there is none. */
static inline int case_picture(Case *c, int i, Picture *picture)
{
    snprintf(c->key, sizeof c->key, "%d", i);
    const StTensor *rgb = case_find(c, "image");
    if (!rgb || rgb->n_dims != 3)
        return 0;
    *picture = (Picture){rgb->data, (int)rgb->shape[0], (int)rgb->shape[1]};
    return 1;
}

/* The golden prompts of each picture. */
static const struct {
    const char *name;
    int multimask;
} golden_prompts[] = {{"point", 1},      {"points", 0}, {"box", 0},
                      {"box_points", 1}, {"mask", 1},   {"nothing", 1}};
enum { N_GOLDEN_PROMPTS = sizeof golden_prompts / sizeof *golden_prompts };

/* The picture at another size, each pixel repeated: [h][w][3], malloc'd. */
static inline uint8_t *enlarged(const Picture *picture, int h, int w)
{
    uint8_t *rgb = malloc(3 * (size_t)h * (size_t)w);
    for (int i = 0; rgb && i < w * h; i++) {
        const int y = i / w * picture->height / h, x = i % w * picture->width / w;
        memcpy(rgb + 3 * i, picture->rgb + 3 * (y * picture->width + x), 3);
    }
    return rgb;
}

/* As sam_decode, by the functions for many prompts; no mask prompt. */
static inline int decode_by_scratch(const Sam *sam, const SamImage *image, const SamPrompt *prompt,
                                    int multimask, float *low_res, float *iou)
{
    float all_iou[SAM_MAX_MASK_TOKENS];
    int tokens[SAM_MAX_MASK_TOKENS];
    const int n_out = multimask ? sam_config(sam)->n_multimask : 1;
    SamDecoder *decoder = sam_decoder_new(sam, image, NULL);
    SamScratch *scratch = sam_scratch_new(sam, prompt->n_points, 1, NULL);
    if (decoder && scratch) {
        CHECK(!sam_decode_prompts(decoder, scratch, prompt, 1, all_iou, NULL));
        for (int i = 0; i < n_out; i++) {
            tokens[i] = i + (multimask != 0);
            iou[i] = all_iou[tokens[i]];
        }
        sam_decode_masks(decoder, scratch, 0, tokens, n_out, low_res);
    }
    const int status = decoder && scratch ? 0 : -1;
    sam_scratch_free(scratch);
    sam_decoder_free(decoder);
    return status;
}

#endif
