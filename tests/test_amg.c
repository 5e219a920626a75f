/* test_amg.c - automatic mask generation against the official generator (make_golden_amg.py): small goldens
 * in the repository, and a real photo with the shipped weights. */
#include "numbers.h"
#include "sam_case.h"
#include "test.h"

#include "amg.h"
#include "io/file.h"
#include "io/image.h"

#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- a case of a golden file ------------------------------------------------------------------*/

typedef struct Golden {
    Safetensors *file;
    const char *name;
    int n; /* records */
    const float *bbox, *predicted_iou, *stability_score, *point, *crop_box;
    const int32_t *area;
    Rle *masks; /* [n] */
    AmgOptions options;
    double margin; /* distance of the official generator's scores from a threshold */
} Golden;

static const char *golden_note(const Golden *g, const char *key)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", g->name, key);
    return st_meta(g->file, full);
}

static void golden_number(const Golden *g, const char *key, double *value)
{
    const char *text = golden_note(g, key);
    if (text)
        *value = strtod(text, NULL);
}

static void golden_int(const Golden *g, const char *key, int *value)
{
    const char *text = golden_note(g, key);
    if (text)
        *value = atoi(text);
}

static const float *golden_floats(const Golden *g, const char *key)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", g->name, key);
    const StTensor *t = st_find(g->file, full);
    return t ? st_f32(g->file, full, t->n_dims, t->shape, NULL) : NULL;
}

/* One number of pack() in make_golden_amg.py. */
static int64_t next_packed(const uint8_t **at, const uint8_t *end)
{
    uint64_t v = 0;
    for (int shift = 0; *at < end && shift < 63; shift += 7) {
        uint8_t byte = *(*at)++;
        v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            break;
    }
    return v & 1 ? -(int64_t)(v / 2) - 1 : (int64_t)(v / 2);
}

/* The golden masks from their packed run lengths. */
static int golden_unpack(Golden *g, int h, int w)
{
    char full[96];
    size_t n_bytes;
    snprintf(full, sizeof full, "%s.runs", g->name);
    const StTensor *packed = st_find(g->file, full);
    uint8_t *bytes =
        packed ? zlib_inflate(packed->data, packed->n_bytes, 1 << 28, &n_bytes, full, NULL) : NULL;
    if (!bytes)
        return -1;
    const uint8_t *at = bytes, *end = bytes + n_bytes;
    for (int i = 0; i < g->n; i++) {
        Rle *rle = &g->masks[i];
        rle->height = h;
        rle->width = w;
        rle->n_counts = (size_t)next_packed(&at, end);
        rle->counts = malloc((rle->n_counts + 1) * sizeof *rle->counts);
        for (size_t k = 0; k < rle->n_counts; k++)
            rle->counts[k] = (uint32_t)(next_packed(&at, end) + (k > 1 ? rle->counts[k - 2] : 0));
    }
    int complete = at == end;
    free(bytes);
    return complete ? 0 : -1;
}

static void golden_free(Golden *g)
{
    for (int i = 0; g->masks && i < g->n; i++)
        rle_free(&g->masks[i]);
    free(g->masks);
}

/* Case `name` of an open golden file for a picture of h x w; options begin with *options. */
static int golden_open(Golden *g, Safetensors *file, const char *name, const AmgOptions *options, int h,
                       int w)
{
    double margin_iou = 1, margin_stability = 1, margin_nms = 1;
    char full[96];
    *g = (Golden){.file = file, .name = name, .n = -1, .options = *options};
    golden_int(g, "n", &g->n);
    if (g->n < 0)
        return -1;
    golden_int(g, "points_per_side", &g->options.points_per_side);
    golden_number(g, "pred_iou_thresh", &g->options.pred_iou_thresh);
    golden_number(g, "stability_score_thresh", &g->options.stability_score_thresh);
    golden_number(g, "stability_score_offset", &g->options.stability_score_offset);
    golden_number(g, "box_nms_thresh", &g->options.box_nms_thresh);
    golden_int(g, "crop_n_layers", &g->options.crop_n_layers);
    golden_number(g, "crop_nms_thresh", &g->options.crop_nms_thresh);
    golden_number(g, "crop_overlap_ratio", &g->options.crop_overlap_ratio);
    golden_int(g, "crop_n_points_downscale_factor", &g->options.crop_n_points_downscale_factor);
    golden_int(g, "min_mask_region_area", &g->options.min_mask_region_area);
    golden_number(g, "margin_iou", &margin_iou);
    golden_number(g, "margin_stability", &margin_stability);
    golden_number(g, "margin_nms", &margin_nms);
    g->margin = fmin(fmin(margin_iou, margin_stability), 100 * margin_nms); /* 1e-6 among overlapping masks */
    g->masks = calloc((size_t)g->n + 1, sizeof *g->masks);
    if (g->n == 0)
        return 0;
    g->bbox = golden_floats(g, "bbox");
    g->predicted_iou = golden_floats(g, "predicted_iou");
    g->stability_score = golden_floats(g, "stability_score");
    g->point = golden_floats(g, "point");
    g->crop_box = golden_floats(g, "crop_box");
    snprintf(full, sizeof full, "%s.area", name);
    const StTensor *area = st_find(file, full);
    g->area = area ? area->data : NULL;
    if (!g->masks || !g->bbox || !g->predicted_iou || !g->stability_score || !g->point || !g->crop_box ||
        !g->area)
        return -1;
    return golden_unpack(g, h, w);
}

/* ---- comparison -------------------------------------------------------------------------------*/

/* Pixels in which two masks of the same size differ, without decoding them. */
static int64_t rle_difference(const Rle *a, const Rle *b)
{
    size_t i = 0, k = 0;
    int64_t different = 0;
    uint32_t left_a = a->n_counts ? a->counts[0] : 0, left_b = b->n_counts ? b->counts[0] : 0;
    while (i < a->n_counts && k < b->n_counts) {
        uint32_t step = left_a < left_b ? left_a : left_b;
        if ((i & 1) != (k & 1))
            different += step;
        left_a -= step;
        left_b -= step;
        if (left_a == 0 && ++i < a->n_counts)
            left_a = a->counts[i];
        if (left_b == 0 && ++k < b->n_counts)
            left_b = b->counts[k];
    }
    return different;
}

/* A logit within rounding of the threshold may fall on either side. This many pixels of a mask may differ. */
static int64_t pixels_allowed(int64_t area)
{
    return 1 + area / 20000;
}

static void check_record(const Golden *g, int i, const AmgMask *m)
{
    const int64_t different = rle_difference(&m->segmentation, &g->masks[i]);
    CHECK_MSG(different <= pixels_allowed(g->area[i]), "%s mask %d: %lld of %d pixels differ", g->name, i,
              (long long)different, g->area[i]);
    CHECK(m->area == rle_area(&m->segmentation) && llabs(m->area - g->area[i]) <= different);
    CHECK(fabsf(m->predicted_iou - g->predicted_iou[i]) < 2e-5f * (1 + fabsf(g->predicted_iou[i])));
    if (isnan(g->stability_score[i]))
        CHECK(isnan(m->stability_score));
    else
        CHECK_MSG(fabsf(m->stability_score - g->stability_score[i]) * (float)g->area[i] < 4,
                  "%s mask %d: stability %.6f, expected %.6f", g->name, i, m->stability_score,
                  g->stability_score[i]);
    for (int k = 0; k < 4; k++) {
        CHECK(m->crop_box[k] == g->crop_box[4 * i + k]);
        CHECK_MSG(different > 0 || m->bbox[k] == g->bbox[4 * i + k], "%s mask %d: bbox[%d] = %g, expected %g",
                  g->name, i, k, m->bbox[k], g->bbox[4 * i + k]);
    }
    for (int k = 0; k < 2; k++)
        CHECK(fabs(m->point[k] - (double)g->point[2 * i + k]) < 1e-3);
}

/* The unused found mask that comes from the same point as golden mask i and is most like it; -1: none. */
static int find_mask(const Golden *g, int i, const AmgMasks *found, const uint8_t *used)
{
    int64_t least = g->area[i] / 2 + 1;
    int best = -1;
    for (size_t k = 0; k < found->n; k++) {
        const AmgMask *m = &found->masks[k];
        if (used[k] || fabs(m->point[0] - (double)g->point[2 * i]) > 1e-3 ||
            fabs(m->point[1] - (double)g->point[2 * i + 1]) > 1e-3 ||
            memcmp(m->crop_box, g->crop_box + 4 * i, sizeof m->crop_box) != 0)
            continue;
        const int64_t different = rle_difference(&m->segmentation, &g->masks[i]);
        if (different < least) {
            least = different;
            best = (int)k;
        }
    }
    return best;
}

/* The same masks in the same order. Masks may change places only if their scores are equal except for
 * rounding. One mask may be missing, and one too many, only if a score is within 1e-4 of a threshold. The
 * same holds if rounding decides which of two overlapping masks is better (the golden's margin). */
static void check_masks(const Golden *g, const AmgMasks *found)
{
    uint8_t *used = calloc(found->n + 1, 1);
    const size_t allowed = g->margin < 1e-4 ? 1 : 0;
    size_t n_matched = 0;
    int last = -1, last_golden = -1;
    REQUIRE(used);
    for (int i = 0; i < g->n; i++) {
        const int k = find_mask(g, i, found, used);
        if (k < 0)
            continue;
        used[k] = 1;
        n_matched++;
        check_record(g, i, &found->masks[k]);
        CHECK_MSG(k > last || fabsf(g->predicted_iou[i] - g->predicted_iou[last_golden]) < 2e-6f,
                  "%s mask %d stands at %d, after %d", g->name, i, k, last);
        last = k;
        last_golden = i;
    }
    CHECK_MSG((size_t)g->n - n_matched <= allowed && found->n - n_matched <= allowed,
              "%s: %zu masks, expected %d; %zu agree", g->name, found->n, g->n, n_matched);
    free(used);
}

/* ---- the small goldens ------------------------------------------------------------------------*/

typedef struct Model {
    Safetensors *weights, *golden;
    Sam *sam;
    SamState *state;
    Picture picture;
} Model;

static void model_close(Model *m)
{
    sam_state_free(m->state);
    sam_close(m->sam);
    st_close(m->weights);
    st_close(m->golden);
}

static int model_open(Model *m)
{
    Error err = {""};
    *m = (Model){.weights = st_open(GOLDEN "amg_model.safetensors", &err)};
    m->golden = m->weights ? st_open(GOLDEN "amg_golden.safetensors", &err) : NULL;
    m->sam = m->golden ? sam_open(m->weights, &err) : NULL;
    m->state = m->sam ? sam_state_new(m->sam, &err) : NULL;
    const StTensor *image = m->state ? st_find(m->golden, "image") : NULL;
    CHECK_MSG(image && image->n_dims == 3 && image->dtype == ST_U8, "%s", err.message);
    if (!image) {
        model_close(m);
        return 0;
    }
    m->picture = (Picture){image->data, (int)image->shape[0], (int)image->shape[1]};
    return 1;
}

typedef struct Calls {
    int n, done, total;
} Calls;

static void count_calls(void *user, int done, int total)
{
    Calls *calls = user;
    CHECK(done > calls->done && done <= total && (calls->n == 0 || total == calls->total));
    *calls = (Calls){calls->n + 1, done, total};
}

static void check_case(const char *name, int at_least)
{
    Model model;
    Golden golden;
    AmgOptions defaults;
    AmgMasks masks;
    Calls calls = {0};
    Error err = {""};
    REQUIRE(model_open(&model));
    amg_defaults(&defaults);
    REQUIRE(golden_open(&golden, model.golden, name, &defaults, model.picture.height, model.picture.width) ==
            0);
    CHECK_MSG(golden.n >= at_least, "%s: the golden holds %d masks only", name, golden.n);
    CHECK_MSG(amg_generate(model.sam, model.state, &masks, &golden.options, &model.picture, count_calls,
                           &calls, &err) == 0,
              "%s", err.message);
    CHECK(calls.n > 0 && calls.done == calls.total);
    check_masks(&golden, &masks);
    amg_masks_free(&masks);
    golden_free(&golden);
    model_close(&model);
}

static void test_plain(void)
{
    check_case("plain", 4);
}

static void test_crops(void)
{
    check_case("crops", 4);
}

static void test_small_regions(void)
{
    check_case("regions", 4);
}

static void test_everything(void)
{
    check_case("all", 4);
}

static void test_without_filters(void)
{
    check_case("unfiltered", 100);
}

static void test_no_mask_at_all(void)
{
    check_case("nothing", 0);
}

/* Along one axis: 1 if the mask's point is nearest to its own crop's centre. Compared are the crops of its
 * layer that made masks. */
static int is_own(const AmgMasks *all, const AmgMask *mask, int axis)
{
    const float at = (float)mask->point[axis], length = mask->crop_box[2 + axis];
    const float distance = fabsf(at - mask->crop_box[axis] - length / 2);
    for (size_t i = 0; i < all->n; i++) {
        const float *box = all->masks[i].crop_box;
        if (box[2 + axis] == length && fabsf(at - box[axis] - length / 2) < distance)
            return 0;
    }
    return 1;
}

/* Without filters: crops that ask only at their own points give the masks of all points, minus those of the
 * others' points. */
static void test_own_points(void)
{
    Model model;
    AmgMasks all, own;
    AmgOptions o;
    REQUIRE(model_open(&model));
    amg_defaults(&o);
    o.points_per_side = 7;
    o.pred_iou_thresh = o.stability_score_thresh = 0;
    o.box_nms_thresh = o.crop_nms_thresh = 1;
    o.crop_n_layers = 1;
    o.crop_overlap_ratio = 0.75;
    REQUIRE(amg_generate(model.sam, model.state, &all, &o, &model.picture, NULL, NULL, NULL) == 0);
    o.crop_own_points = 1;
    REQUIRE(amg_generate(model.sam, model.state, &own, &o, &model.picture, NULL, NULL, NULL) == 0);
    size_t at = 0;
    for (size_t i = 0; i < all.n; i++) {
        const AmgMask *expected = &all.masks[i];
        if (!is_own(&all, expected, 0) || !is_own(&all, expected, 1))
            continue;
        REQUIRE(at < own.n);
        const AmgMask *mask = &own.masks[at++];
        CHECK(memcmp(mask->point, expected->point, sizeof mask->point) == 0);
        CHECK(memcmp(mask->crop_box, expected->crop_box, sizeof mask->crop_box) == 0);
        CHECK(rle_difference(&mask->segmentation, &expected->segmentation) == 0);
    }
    CHECK_MSG(at == own.n && own.n < all.n, "%zu masks, %zu of %zu expected", own.n, at, all.n);
    amg_masks_free(&all);
    amg_masks_free(&own);
    model_close(&model);
}

static void test_threads_do_not_change_bits(void)
{
#ifdef _OPENMP
    Model model;
    Golden golden;
    AmgOptions defaults;
    AmgMasks masks[2];
    const int before = omp_get_max_threads();
    REQUIRE(model_open(&model));
    amg_defaults(&defaults);
    REQUIRE(golden_open(&golden, model.golden, "all", &defaults, model.picture.height, model.picture.width) ==
            0);
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i == 0 ? 1 : 5);
        CHECK(amg_generate(model.sam, model.state, &masks[i], &golden.options, &model.picture, NULL, NULL,
                           NULL) == 0);
    }
    omp_set_num_threads(before);
    REQUIRE(masks[0].n == masks[1].n);
    for (size_t i = 0; i < masks[0].n; i++) {
        const AmgMask *a = &masks[0].masks[i], *b = &masks[1].masks[i];
        CHECK(memcmp(&a->predicted_iou, &b->predicted_iou, sizeof(float)) == 0);
        CHECK(memcmp(&a->stability_score, &b->stability_score, sizeof(float)) == 0);
        CHECK(memcmp(a->bbox, b->bbox, sizeof a->bbox) == 0 &&
              rle_difference(&a->segmentation, &b->segmentation) == 0);
    }
    for (int i = 0; i < 2; i++)
        amg_masks_free(&masks[i]);
    golden_free(&golden);
    model_close(&model);
#else
    SKIP("built without OpenMP");
#endif
}

/* A file of metadata only: keys with their values, up to a NULL. */
static Safetensors *metadata_file(const char *path, const char *const (*pairs)[2])
{
    StWriter *w = st_writer_new();
    int status = w ? 0 : -1;
    for (; status == 0 && (*pairs)[0]; pairs++)
        status = st_writer_meta(w, (*pairs)[0], (*pairs)[1], NULL);
    if (status == 0)
        status = st_writer_save(w, path, NULL);
    st_writer_free(w);
    return status == 0 ? st_open(path, NULL) : NULL;
}

static void test_recommendations(void)
{
    static const char *const good[][2] = {{"amg.points_per_side", "16"},
                                          {"amg.box_nms_thresh", "0.9"},
                                          {"amg.crop_n_layers", "2"},
                                          {"objects.box_nms_thresh", "0.8"},
                                          {"objects.crop_n_layers", "1"},
                                          {"objects.pred_iou_thresh", "0.6"},
                                          {NULL, NULL}};
    static const char *const bad[][2] = {{"objects.points_per_side", "0"}, {NULL, NULL}};
    char path[64];
    Error err = {""};
    AmgOptions o, official;
    snprintf(path, sizeof path, "/tmp/test_amg.%d.safetensors", (int)getpid());
    Safetensors *file = metadata_file(path, good);
    REQUIRE(file);
    amg_defaults(&official);
    CHECK(amg_recommended(&o, AMG_FOR_MASKS, file, &err) == 0);
    CHECK(o.points_per_side == 16 && o.box_nms_thresh == (double)0.9 && o.crop_n_layers == 2);
    CHECK(o.pred_iou_thresh == official.pred_iou_thresh && o.crop_nms_thresh == official.crop_nms_thresh);
    CHECK(amg_recommended(&o, AMG_FOR_OBJECTS, file, &err) == 0);
    CHECK(o.points_per_side == 16 && o.box_nms_thresh == (double)0.8 && o.crop_n_layers == 1);
    CHECK(o.pred_iou_thresh == (double)0.6 && o.crop_nms_thresh == official.crop_nms_thresh);
    st_close(file);
    file = metadata_file(path, bad);
    REQUIRE(file);
    CHECK(amg_recommended(&o, AMG_FOR_MASKS, file, &err) == 0);
    CHECK(amg_recommended(&o, AMG_FOR_OBJECTS, file, &err) != 0);
    CHECK_MSG(strstr(err.message, "objects.points_per_side"), "%s", err.message);
    st_close(file);
    remove(path);
}

static void test_options_are_checked(void)
{
    Model model;
    AmgOptions o;
    AmgMasks masks;
    Error err = {""};
    REQUIRE(model_open(&model));
    static const struct {
        int points, layers, factor, area;
        double overlap, iou;
        const char *expected;
    } bad[] = {{0, 0, 1, 0, 0.3, 0.8, "points per side"}, {5000, 0, 1, 0, 0.3, 0.8, "points per side"},
               {8, -1, 1, 0, 0.3, 0.8, "crop layers"},    {8, 40, 1, 0, 0.3, 0.8, "crop layers"},
               {8, 1, 0, 0, 0.3, 0.8, "divided by"},      {8, 4, 2, 0, 0.3, 0.8, "divided by"},
               {1024, 6, 1, 0, 0.3, 0.8, "points in"},    {8, 0, 1, -5, 0.3, 0.8, "region area"},
               {8, 1, 1, 0, 1.5, 0.8, "overlap"},         {8, 1, 1, 0, 0.3, NAN, "not a number"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        amg_defaults(&o);
        o.points_per_side = bad[i].points;
        o.crop_n_layers = bad[i].layers;
        o.crop_n_points_downscale_factor = bad[i].factor;
        o.min_mask_region_area = bad[i].area;
        o.crop_overlap_ratio = bad[i].overlap;
        o.pred_iou_thresh = bad[i].iou;
        CHECK(amg_generate(model.sam, model.state, &masks, &o, &model.picture, NULL, NULL, &err) == -1);
        CHECK_MSG(strstr(err.message, bad[i].expected), "expected a word on %s, got: %s", bad[i].expected,
                  err.message);
        CHECK(masks.n == 0 && masks.masks == NULL);
    }
    amg_defaults(&o);
    CHECK(amg_generate(model.sam, model.state, &masks, &o, &(Picture){model.picture.rgb, 0, 7}, NULL, NULL,
                       &err) == -1);
    model_close(&model);
}

/* A weight that is not a number, anywhere on the way to a mask, ends in a sentence. It does not end in an
 * empty list. */
static void test_damaged_weights(void)
{
    static const struct {
        const char *tensor, *expected;
    } damages[] = {{"image_encoder.neck.0.weight", "embedding"},
                   {"mask_decoder.transformer.layers.0.norm1.weight", "IoU prediction"},
                   {"mask_decoder.iou_prediction_head.layers.2.bias", "IoU prediction"},
                   {"mask_decoder.output_hypernetworks_mlps.1.layers.2.bias", "mask logits"}};
    Model model;
    AmgOptions o;
    Error err = {""};
    size_t n;
    REQUIRE(model_open(&model));
    amg_defaults(&o);
    o.points_per_side = 2, o.pred_iou_thresh = -10, o.stability_score_thresh = 0;
    uint8_t *bytes = file_read(GOLDEN "amg_model.safetensors", 1 << 28, &n, &err);
    REQUIRE(bytes != NULL);
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const uint16_t nan = 0x7e00; /* its tensors are float16 */
        uint16_t whole;
        AmgMasks masks;
        Safetensors *file = st_open_memory("damaged", bytes, n, &err);
        const StTensor *tensor = file ? st_find(file, damages[i].tensor) : NULL;
        REQUIRE(tensor && tensor->dtype == ST_F16);
        uint8_t *at = bytes + ((const uint8_t *)tensor->data - bytes);
        memcpy(&whole, at, sizeof whole);
        memcpy(at, &nan, sizeof nan);
        Sam *sam = sam_open(file, &err);
        SamState *state = sam ? sam_state_new(sam, &err) : NULL;
        REQUIRE(state != NULL);
        CHECK(amg_generate(sam, state, &masks, &o, &model.picture, NULL, NULL, &err) == -1);
        CHECK_MSG(strstr(err.message, damages[i].expected) && strstr(err.message, "damaged"),
                  "expected a word on %s, got: %s", damages[i].expected, err.message);
        memcpy(at, &whole, sizeof whole);
        sam_state_free(state);
        sam_close(sam);
        st_close(file);
    }
    free(bytes);
    model_close(&model);
}

/* The mask among all that has these runs, or NULL. */
static const AmgMask *mask_of_runs(const AmgMasks *masks, const Rle *rle)
{
    for (size_t i = 0; i < masks->n; i++) {
        const Rle *other = &masks->masks[i].segmentation;
        if (other->n_counts == rle->n_counts &&
            memcmp(other->counts, rle->counts, rle->n_counts * sizeof *rle->counts) == 0)
            return &masks->masks[i];
    }
    return NULL;
}

/* The mask of these full-size logits, by threshold and count, is in the list with its box and stability. */
static void check_mask(const AmgMasks *masks, const float *logits, int h, int w, float iou, uint8_t *binary)
{
    int64_t area = 0, high = 0, low = 0;
    int x0 = w, x1 = -1, y0 = h, y1 = -1;
    Rle rle;
    for (int i = 0; i < h * w; i++) {
        binary[i] = logits[i] > 0;
        area += logits[i] > 0, high += logits[i] > 1, low += logits[i] > -1;
        if (!binary[i])
            continue;
        x0 = i % w < x0 ? i % w : x0, x1 = i % w > x1 ? i % w : x1;
        y0 = i / w < y0 ? i / w : y0, y1 = i / w > y1 ? i / w : y1;
    }
    REQUIRE(rle_encode(&rle, binary, h, w, NULL) == 0);
    const AmgMask *mask = mask_of_runs(masks, &rle);
    rle_free(&rle);
    CHECK_MSG(mask || area == 0, "a mask of %lld pixels is not there", (long long)area);
    if (!mask || area == 0)
        return;
    CHECK(mask->area == area && mask->stability_score == (float)((float)high / (float)low) &&
          mask->predicted_iou == iou);
    CHECK(mask->bbox[0] == (float)x0 && mask->bbox[1] == (float)y0 && mask->bbox[2] == (float)(x1 - x0) &&
          mask->bbox[3] == (float)(y1 - y0));
}

/* A picture so large that masks are computed only along their edges. They are the same as from all logits. */
static void test_large_picture(void)
{
    enum { W = 900, H = 610, SIDE = 3 };
    Model model;
    AmgOptions o;
    AmgMasks masks;
    SamImage image;
    Error err = {""};
    REQUIRE(model_open(&model));
    const int n_masks = sam_config(model.sam)->n_multimask;
    const size_t side = 4 * (size_t)model.sam->weights.grid, n_low = side * side;
    uint8_t *rgb = enlarged(&model.picture, H, W), *binary = malloc(W * H);
    float *low_res = malloc((size_t)n_masks * n_low * sizeof *low_res),
          *logits = malloc(W * H * sizeof *logits);
    const Picture large = {rgb, H, W};
    REQUIRE(rgb && binary && low_res && logits);
    amg_defaults(&o);
    o.points_per_side = SIDE, o.pred_iou_thresh = -10, o.stability_score_thresh = 0, o.box_nms_thresh = 1;
    o.stability_score_offset = 1;
    REQUIRE(!amg_generate(model.sam, model.state, &masks, &o, &large, NULL, NULL, &err));
    REQUIRE(!sam_encode(model.sam, model.state, &image, &large, NULL, &err));
    for (int i = 0; i < SIDE * SIDE; i++) {
        const float point[2] = {(float)(W * (i % SIDE + 0.5) / SIDE), (float)(H * (i / SIDE + 0.5) / SIDE)};
        const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (const int[]){1}};
        float iou[SAM_MAX_MASK_TOKENS];
        REQUIRE(!decode_by_scratch(model.sam, &image, &prompt, 1, low_res, iou));
        for (int k = 0; k < n_masks; k++) {
            REQUIRE(!sam_postprocess_masks(model.sam, &image, low_res + (size_t)k * n_low, logits, &err));
            check_mask(&masks, logits, H, W, iou[k], binary);
        }
    }
    sam_image_free(&image);
    amg_masks_free(&masks);
    free(rgb), free(binary), free(low_res), free(logits);
    model_close(&model);
}

/* The number of masks with the box of an earlier one. */
static size_t count_twins(const AmgMasks *masks)
{
    size_t n = 0;
    for (size_t i = 0; i < masks->n; i++)
        for (size_t k = 0; k < i; k++)
            if (memcmp(masks->masks[i].bbox, masks->masks[k].bbox, sizeof masks->masks[i].bbox) == 0) {
                n++;
                break;
            }
    return n;
}

/* Pictures with fewer pixels than crops: crops beyond the picture are left out, without an error. Boxes of one
 * pixel or one line have no area, but equal ones are suppressed as others are. */
static void test_small_pictures(void)
{
    static const int sizes[][2] = {{1, 1}, {1, 9}, {9, 1}, {3, 3}};
    Model model;
    AmgOptions o;
    Error err = {""};
    REQUIRE(model_open(&model));
    amg_defaults(&o);
    o.points_per_side = 2, o.crop_n_layers = 3, o.pred_iou_thresh = -10, o.stability_score_thresh = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        AmgMasks masks;
        const int h = sizes[i][0], w = sizes[i][1];
        REQUIRE(!amg_generate(model.sam, model.state, &masks, &o, &(Picture){model.picture.rgb, h, w}, NULL,
                              NULL, &err));
        for (size_t m = 0; m < masks.n; m++) {
            const float *crop = masks.masks[m].crop_box;
            CHECK(crop[2] >= 1 && crop[3] >= 1 && crop[0] + crop[2] <= (float)w &&
                  crop[1] + crop[3] <= (float)h);
        }
        CHECK_MSG(count_twins(&masks) == 0, "%dx%d: %zu of %zu masks are twins", w, h, count_twins(&masks),
                  masks.n);
        CHECK(masks.n >= 1 && (h * w > 1 || masks.n == 1));
        amg_masks_free(&masks);
    }
    model_close(&model);
}

/* ---- small regions against a flood fill -------------------------------------------------------*/

typedef struct Filler {
    uint8_t *mask; /* [h][w] */
    int *stack, *label;
    int h, w;
} Filler;

/* Label the component of pixel `from`, 8-connected. Returns its area, and its first 2×2 block in raster
 * order. */
static int flood(Filler *f, int from, int label, int *first_block)
{
    int n = 1, area = 0;
    f->stack[0] = from;
    f->label[from] = label;
    *first_block = INT32_MAX;
    while (n > 0) {
        int p = f->stack[--n], y = p / f->w, x = p % f->w, block = y / 2 * f->w + x / 2;
        *first_block = block < *first_block ? block : *first_block;
        area++;
        for (int dy = -1; dy <= 1; dy++)
            for (int dx = -1; dx <= 1; dx++) {
                int q = p + dy * f->w + dx;
                if (y + dy < 0 || y + dy >= f->h || x + dx < 0 || x + dx >= f->w || f->label[q] ||
                    f->mask[q] != f->mask[p])
                    continue;
                f->label[q] = label;
                f->stack[n++] = q;
            }
    }
    return area;
}

/* remove_small_regions as in the official code, on pixels. Returns whether there was a small one. */
static int remove_plainly(Filler *f, int min_area, int islands)
{
    const int n = f->h * f->w;
    int *area = calloc((size_t)n + 1, sizeof *area), n_labels = 0, best = 0, best_block = 0, any_large = 0,
        any_small = 0;
    memset(f->label, 0, (size_t)n * sizeof *f->label);
    for (int i = 0; i < n; i++) {
        if (f->mask[i] != islands || f->label[i])
            continue;
        int block;
        n_labels++;
        area[n_labels] = flood(f, i, n_labels, &block);
        any_small |= area[n_labels] < min_area;
        any_large |= area[n_labels] >= min_area;
        if (!best || area[n_labels] > area[best] || (area[n_labels] == area[best] && block < best_block)) {
            best = n_labels;
            best_block = block;
        }
    }
    for (int i = 0; i < n; i++)
        if (f->label[i] && area[f->label[i]] < min_area && !(islands && !any_large && f->label[i] == best))
            f->mask[i] = !islands;
    free(area);
    return any_small;
}

static void test_small_regions_against_flood_fill(void)
{
    static const int sizes[][2] = {{1, 1}, {1, 9}, {9, 1}, {2, 2}, {7, 8}, {16, 13}, {31, 40}};
    uint32_t seed = 1;
    uint8_t mask[31 * 40], ours[31 * 40];
    int stack[31 * 40], label[31 * 40];
    for (int round = 0; round < 1400; round++) {
        const int h = sizes[round % 7][0], w = sizes[round % 7][1], n = h * w;
        const uint32_t density = 1 + next_random(&seed) % 9;
        const int min_area = 1 + (int)(next_random(&seed) % 12), islands = round / 7 % 2;
        for (int i = 0; i < n; i++)
            mask[i] = next_random(&seed) % 10 < density;
        Filler filler = {mask, stack, label, h, w};
        Rle rle;
        int changed;
        REQUIRE(rle_encode(&rle, mask, h, w, NULL) == 0);
        CHECK(amg_remove_small_regions(&rle, min_area, islands ? REGION_ISLANDS : REGION_HOLES, &changed,
                                       NULL) == 0);
        CHECK(remove_plainly(&filler, min_area, islands) == changed);
        rle_decode(ours, &rle);
        CHECK_MSG(memcmp(ours, mask, (size_t)n) == 0, "round %d: %d x %d, least area %d, islands %d", round,
                  w, h, min_area, islands);
        Rle canonical; /* the runs must be those of a fresh encoding */
        REQUIRE(rle_encode(&canonical, mask, h, w, NULL) == 0);
        CHECK(canonical.n_counts == rle.n_counts &&
              memcmp(canonical.counts, rle.counts, rle.n_counts * sizeof *rle.counts) == 0);
        rle_free(&canonical);
        rle_free(&rle);
        if (!test_ok)
            return;
    }
}

/* ---- a real photo with the shipped weights ----------------------------------------------------*/

static void check_photo(Safetensors *golden_file, Safetensors *weights, const uint8_t *rgb, int w, int h)
{
    Error err = {""};
    AmgOptions recommended;
    Golden golden;
    AmgMasks masks;
    Sam *sam = sam_open(weights, &err);
    SamState *state = sam ? sam_state_new(sam, &err) : NULL;
    REQUIRE(state);
    REQUIRE(amg_recommended(&recommended, AMG_FOR_MASKS, weights, &err) == 0);
    REQUIRE(golden_open(&golden, golden_file, "photo", &recommended, h, w) == 0);
    CHECK(golden.n > 0);
    CHECK_MSG(amg_generate(sam, state, &masks, &golden.options, &(Picture){rgb, h, w}, NULL, NULL, &err) == 0,
              "%s", err.message);
    check_masks(&golden, &masks);
    amg_masks_free(&masks);
    golden_free(&golden);
    sam_state_free(state);
    sam_close(sam);
}

static void test_photo(void)
{
    static const char *golden_path = GOLDEN "amg_photo.safetensors",
                      *weights_path = "weights/sam_tiny.safetensors";
    char path[1024], hex[65];
    int w, h;
    Error err = {""};
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    if (!file_exists(golden_path) || !file_exists(weights_path))
        SKIP("the shipped weights and their golden are not there");
    Safetensors *golden = st_open(golden_path, &err), *weights = st_open(weights_path, &err);
    REQUIRE(golden && weights);
    st_sha256(weights, hex);
    CHECK_MSG(strcmp(hex, st_meta(golden, "weights_sha256")) == 0,
              "the golden was made with other weights: make it anew");
    snprintf(path, sizeof path, "%s/photos/%s", test_data_dir(), st_meta(golden, "photo"));
    uint8_t *rgb = image_read_rgb8(path, &w, &h, &err);
    CHECK_MSG(rgb, "%s", err.message);
    if (rgb) {
        sha256(rgb, 3 * (size_t)w * h, hex);
        CHECK_MSG(strcmp(hex, st_meta(golden, "pixels_sha256")) == 0,
                  "%s is decoded to other pixels than PIL's", path);
        check_photo(golden, weights, rgb, w, h);
    }
    free(rgb);
    st_close(weights);
    st_close(golden);
}

int main(void)
{
    RUN(test_plain);
    RUN(test_crops);
    RUN(test_small_regions);
    RUN(test_everything);
    RUN(test_without_filters);
    RUN(test_no_mask_at_all);
    RUN(test_own_points);
    RUN(test_threads_do_not_change_bits);
    RUN(test_recommendations);
    RUN(test_options_are_checked);
    RUN(test_damaged_weights);
    RUN(test_large_picture);
    RUN(test_small_pictures);
    RUN(test_small_regions_against_flood_fill);
    RUN(test_photo);
    return test_summary();
}
