/* amg.c - automatic mask generation (segment_anything/automatic_mask_generator.py and utils/amg.py).
 *
 *   picture -> crops (the whole, then 2×2, 4×4, ... overlapping ones)
 *   crop -> embedding -> a grid of points -> SAM's masks of each
 *        -> filters: predicted IoU, stability, crop edge -> box NMS within the crop
 *   all crops -> box NMS among them (the smaller crop wins) -> small regions removed, NMS again
 *
 * Where crops overlap, each asks about the same things. With crop_own_points [ours] only the crop whose
 * middle is nearest asks, which sees them best: a third of the points fewer.
 *
 * The official code decodes 64 points at a time and keeps all their full-size logits. Here few points
 * together (SAM_TOGETHER) are worked off by any thread: masks whose predicted IoU is too low are never
 * upscaled, the others pass row by row through the filters, and only what survives is kept, as run lengths.
 * Each answer has its place by point and mask, so order and bits do not depend on the number of threads.
 *
 * Connected components are found on the runs themselves: no label image is made. */
#include "amg.h"

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

#define POINTS_PER_BATCH 256   /* whose survivors wait to be brought into order */
#define CROP_EDGE        20.0f /* is_box_near_crop_edge's atol, in pixels */

/* ---- options ----------------------------------------------------------------------------------*/

void amg_defaults(AmgOptions *options)
{
    *options = (AmgOptions){.points_per_side = 32,
                            .pred_iou_thresh = 0.88,
                            .stability_score_thresh = 0.95,
                            .stability_score_offset = 1.0,
                            .box_nms_thresh = 0.7,
                            .crop_n_layers = 0,
                            .crop_nms_thresh = 0.7,
                            .crop_overlap_ratio = 512.0 / 1500,
                            .crop_n_points_downscale_factor = 1,
                            .crop_own_points = 0,
                            .min_mask_region_area = 0};
}

typedef struct Recommendation {
    const char *name;
    int is_int;
    size_t offset; /* into AmgOptions */
    double min, max;
} Recommendation;

#define AT(field) offsetof(AmgOptions, field)
static const Recommendation recommendations[] = {
    {"points_per_side", 1, AT(points_per_side), 1, AMG_MAX_POINTS_PER_SIDE},
    {"pred_iou_thresh", 0, AT(pred_iou_thresh), -AMG_MAX_LOGIT, AMG_MAX_LOGIT},
    {"stability_score_thresh", 0, AT(stability_score_thresh), 0, 1},
    {"stability_score_offset", 0, AT(stability_score_offset), 0, AMG_MAX_LOGIT},
    {"box_nms_thresh", 0, AT(box_nms_thresh), 0, 1},
    {"crop_n_layers", 1, AT(crop_n_layers), 0, AMG_MAX_CROP_LAYERS},
    {"crop_nms_thresh", 0, AT(crop_nms_thresh), 0, 1},
    {"crop_n_points_downscale_factor", 1, AT(crop_n_points_downscale_factor), 1, AMG_MAX_POINTS_PER_SIDE},
    {"crop_own_points", 1, AT(crop_own_points), 0, 1},
    {"min_mask_region_area", 1, AT(min_mask_region_area), 0, AMG_MAX_REGION_AREA},
};
#undef AT

/* Overwrite the option when the file has <group>.<name>. */
static int take_recommendation(AmgOptions *o, const Recommendation *r, const char *group,
                               const Safetensors *st, Error *err)
{
    char key[64], *field = (char *)o + r->offset;
    snprintf(key, sizeof key, "%s.%s", group, r->name);
    if (!st_meta(st, key))
        return 0;
    return r->is_int ? st_meta_int(st, key, (int)r->min, (int)r->max, (int *)(void *)field, err)
                     : st_meta_float(st, key, r->min, r->max, (double *)(void *)field, err);
}

int amg_recommended(AmgOptions *o, AmgUse use, const Safetensors *weights, Error *err)
{
    static const char *const groups[] = {"amg", "objects"};
    amg_defaults(o);
    for (int g = 0; g <= (use == AMG_FOR_OBJECTS); g++)
        for (size_t i = 0; i < sizeof recommendations / sizeof *recommendations; i++)
            if (take_recommendation(o, &recommendations[i], groups[g], weights, err))
                return -1;
    return 0;
}

/* Points a side in a crop layer: int(points_per_side / factor^layer). */
static int points_in_layer(const AmgOptions *o, int layer)
{
    return (int)(o->points_per_side / pow(o->crop_n_points_downscale_factor, layer));
}

static int check_options(const AmgOptions *o, Error *err)
{
    if (o->points_per_side < 1 || o->points_per_side > AMG_MAX_POINTS_PER_SIDE)
        return fail(err, "mask generation: %d points per side, expected 1 to %d", o->points_per_side,
                    AMG_MAX_POINTS_PER_SIDE);
    if (o->crop_n_layers < 0 || o->crop_n_layers > AMG_MAX_CROP_LAYERS)
        return fail(err, "mask generation: %d crop layers, expected 0 to %d", o->crop_n_layers,
                    AMG_MAX_CROP_LAYERS);
    if (o->crop_n_points_downscale_factor < 1 || points_in_layer(o, o->crop_n_layers) < 1)
        return fail(
            err,
            "mask generation: %d points per side, divided by %d once a crop layer, leave none for layer %d",
            o->points_per_side, o->crop_n_points_downscale_factor, o->crop_n_layers);
    int64_t n_points = 0;
    for (int layer = 0; layer <= o->crop_n_layers; layer++)
        n_points += ((int64_t)points_in_layer(o, layer) * points_in_layer(o, layer)) << 2 * layer;
    if (n_points > AMG_MAX_POINTS)
        return fail(err, "mask generation: %lld points in %d crop layers, expected at most %d",
                    (long long)n_points, o->crop_n_layers, AMG_MAX_POINTS);
    if (!(o->crop_overlap_ratio >= 0 && o->crop_overlap_ratio < 1))
        return fail(err, "mask generation: crop overlap ratio %g, expected 0 to 1", o->crop_overlap_ratio);
    if (o->min_mask_region_area < 0)
        return fail(err, "mask generation: smallest region area %d, expected 0 or more",
                    o->min_mask_region_area);
    if (isnan(o->pred_iou_thresh) || isnan(o->stability_score_thresh) || isnan(o->stability_score_offset) ||
        isnan(o->box_nms_thresh) || isnan(o->crop_nms_thresh))
        return fail(err, "mask generation: a threshold is not a number");
    return 0;
}

/* ---- candidates -------------------------------------------------------------------------------*/

typedef struct Crop {
    int x0, y0, x1, y1; /* in the picture; x1, y1 exclusive */
    int layer;
    double own[4]; /* x0 y0 x1 y1 in the picture: what is nearer to this crop's middle than to that of another
                      of its layer */
} Crop;

typedef struct Candidate {
    Rle rle;      /* over the whole picture */
    float box[4]; /* x0 y0 x1 y1, inclusive, as batched_mask_to_box has them */
    float iou, stability;
    double point[2];
    Crop crop;
    int used; /* passed all filters */
} Candidate;

typedef struct Candidates {
    Candidate *items;
    size_t n, capacity;
} Candidates;

static void candidates_free(Candidates *list)
{
    for (size_t i = 0; i < list->n; i++)
        rle_free(&list->items[i].rle);
    free(list->items);
    *list = (Candidates){0};
}

/* The run lengths pass to the list. */
static int candidates_push(Candidates *list, const Candidate *candidate, Error *err)
{
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        Candidate *items = realloc(list->items, capacity * sizeof *items);
        if (!items)
            return fail_memory(err, "masks", capacity * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->n++] = *candidate;
    return 0;
}

/* ---- non-maximum suppression ------------------------------------------------------------------*/

typedef struct Ranked {
    float score;
    size_t index;
} Ranked;

/* Highest score first; equal ones in their order (torchvision sorts stably); a NaN counts as the highest
 * (torch). */
static int by_score(const void *a, const void *b)
{
    const Ranked *p = a, *q = b;
    int p_nan = isnan(p->score) != 0, q_nan = isnan(q->score) != 0;
    if (p_nan != q_nan)
        return q_nan - p_nan;
    if (p->score != q->score && !p_nan)
        return p->score > q->score ? -1 : 1;
    return p->index < q->index ? -1 : p->index > q->index;
}

/* torchvision's nms_kernel, with its float arithmetic: IoU of two boxes, (x1-x0)·(y1-y0) their areas. */
static float box_iou(const float *a, const float *b)
{
    float width = fminf(a[2], b[2]) - fmaxf(a[0], b[0]), height = fminf(a[3], b[3]) - fmaxf(a[1], b[1]);
    float area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
    float common = fmaxf(0, width) * fmaxf(0, height);
    return common / (area_a + area_b - common); /* 0/0 for two empty boxes: NaN, which suppresses nothing */
}

/* Keep the candidates that no better kept one overlaps by more than the threshold, in the order of their
 * scores [list->n]. All are one category, so torchvision's batched_nms is plain NMS. */
static int suppress(Candidates *list, const float *scores, double threshold, Error *err)
{
    const size_t n = list->n;
    if (n == 0)
        return 0;
    Ranked *order = malloc(n * sizeof *order);
    Candidate *kept = malloc(n * sizeof *kept);
    if (!order || !kept) {
        free(order);
        free(kept);
        return fail_memory(err, "non-maximum suppression", n * (sizeof *order + sizeof *kept));
    }
    for (size_t i = 0; i < n; i++)
        order[i] = (Ranked){scores[i], i};
    qsort(order, n, sizeof *order, by_score);
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        Candidate *candidate = &list->items[order[i].index];
        int overlapped = 0;
        for (size_t k = 0; k < n_kept && !overlapped; k++)
            overlapped = (double)box_iou(kept[k].box, candidate->box) > threshold;
        if (overlapped)
            rle_free(&candidate->rle);
        else
            kept[n_kept++] = *candidate;
    }
    memcpy(list->items, kept, n_kept * sizeof *kept);
    list->n = n_kept;
    free(order);
    free(kept);
    return 0;
}

static int suppress_within_crop(Candidates *list, double threshold, Error *err)
{
    float *scores = malloc((list->n + 1) * sizeof *scores);
    if (!scores)
        return fail_memory(err, "mask scores", list->n * sizeof *scores);
    for (size_t i = 0; i < list->n; i++)
        scores[i] = list->items[i].iou;
    int status = suppress(list, scores, threshold, err);
    free(scores);
    return status;
}

/* Among crops: masks of smaller crops are preferred. */
static int suppress_among_crops(Candidates *list, double threshold, Error *err)
{
    float *scores = malloc((list->n + 1) * sizeof *scores);
    if (!scores)
        return fail_memory(err, "mask scores", list->n * sizeof *scores);
    for (size_t i = 0; i < list->n; i++) {
        const Crop *crop = &list->items[i].crop;
        scores[i] = 1.0f / (float)((int64_t)(crop->x1 - crop->x0) * (crop->y1 - crop->y0));
    }
    int status = suppress(list, scores, threshold, err);
    free(scores);
    return status;
}

/* ---- crops ------------------------------------------------------------------------------------*/

static int crop_length(int length, int n_crops, int overlap)
{
    return (int)ceil(((double)overlap * (n_crops - 1) + length) / n_crops);
}

/* The own part of crop i of a row of crops, each `length` long and `step` from the next, the last one cut. */
static void own_part(double *from, double *to, int i, int n_crops, int length, int step)
{
    *from = i == 0 ? -INFINITY : step * (i - 0.5) + length / 2.0;
    *to = i == n_crops - 1 ? INFINITY : step * (i + 0.5) + length / 2.0;
}

/* generate_crop_boxes: the whole picture, then layer after layer 2^layer by 2^layer overlapping crops,
 * column by column. *n crops, malloc'd. */
static Crop *make_crops(const AmgOptions *o, int h, int w, int *n, Error *err)
{
    size_t total = 1;
    for (int layer = 1; layer <= o->crop_n_layers; layer++)
        total += (size_t)1 << 2 * layer;
    Crop *crops = malloc(total * sizeof *crops);
    if (!crops) {
        fail_memory(err, "crops", total * sizeof *crops);
        return NULL;
    }
    *n = 0;
    crops[(*n)++] = (Crop){0, 0, w, h, 0, {-INFINITY, -INFINITY, INFINITY, INFINITY}};
    for (int layer = 1; layer <= o->crop_n_layers; layer++) {
        const int per_side = 1 << layer;
        const int overlap = (int)(o->crop_overlap_ratio * (h < w ? h : w) * (2.0 / per_side));
        const int crop_w = crop_length(w, per_side, overlap), crop_h = crop_length(h, per_side, overlap);
        for (int i = 0; i < per_side; i++)
            for (int j = 0; j < per_side; j++) {
                Crop c = {.x0 = (crop_w - overlap) * i, .y0 = (crop_h - overlap) * j, .layer = layer};
                own_part(&c.own[0], &c.own[2], i, per_side, crop_w, crop_w - overlap);
                own_part(&c.own[1], &c.own[3], j, per_side, crop_h, crop_h - overlap);
                c.x1 = c.x0 + crop_w < w ? c.x0 + crop_w : w;
                c.y1 = c.y0 + crop_h < h ? c.y0 + crop_h : h;
                if (c.x1 > c.x0 && c.y1 > c.y0) /* else the others cover a picture of few pixels */
                    crops[(*n)++] = c;
            }
    }
    return crops;
}

/* Does the box end near an edge of the crop that is not an edge of the picture? */
static int near_crop_edge(const float *box, const Crop *crop, int h, int w)
{
    const float edges[4] = {(float)crop->x0, (float)crop->y0, (float)crop->x1, (float)crop->y1};
    const float picture[4] = {0, 0, (float)w, (float)h};
    for (int i = 0; i < 4; i++)
        if (fabsf(box[i] - edges[i]) <= CROP_EDGE && !(fabsf(box[i] - picture[i]) <= CROP_EDGE))
            return 1;
    return 0;
}

/* ---- one point --------------------------------------------------------------------------------*/

/* What a thread needs to work off a point. */
typedef struct Worker {
    SamScratch *scratch;
    SamRows *rows;  /* of the current crop */
    float *low_res; /* [n_multimask][4g][4g] */
    float *iou;     /* [prompts together][n_multimask + 1] */
    int *tokens;    /* [n_multimask] the masks that are worth upscaling */
    uint8_t *mask;  /* [h][w] of the picture; zero between two masks */
    int box[4];     /* of the mask, x0 y0 x1 y1 in the picture, the last included; x1 < x0: no pixel */
    Error error;
    int failed;
} Worker;

typedef struct Generator {
    const Sam *sam;
    const AmgOptions *options;
    const uint8_t *rgb;
    int h, w;
    SamDecoder *decoder; /* of the current crop */
    Crop crop;
    Worker *workers;
    int n_workers;
    uint8_t *crop_rgb; /* room for the largest crop, NULL without crops */
    double *points;    /* [points_per_side²][2] of the current crop */
    Candidate *batch;  /* [POINTS_PER_BATCH][n_multimask] */
} Generator;

/* Pass the logits through the thresholds: the mask goes to worker->mask, its box, in the crop, and
 * stability to c. */
static void threshold_mask(const Generator *g, Worker *worker, const float *low_res, Candidate *c)
{
    const float middle = sam_config(g->sam)->mask_threshold;
    const float high = (float)((double)middle + g->options->stability_score_offset);
    const float low = (float)((double)middle - g->options->stability_score_offset);
    const int crop_w = g->crop.x1 - g->crop.x0, crop_h = g->crop.y1 - g->crop.y0;
    const float limits[3] = {fminf(low, high), middle, fmaxf(low, high)}; /* an offset may be negative */
    const int for_low = low <= high ? 1 : 3, for_high = 4 - for_low;
    int64_t above_high = 0, above_low = 0;
    int x0 = crop_w, x1 = -1, y0 = crop_h, y1 = -1;
    sam_rows_begin(worker->rows, low_res, limits, 3);
    for (int y = 0; y < crop_h; y++) {
        uint8_t *mask = worker->mask + ((size_t)(g->crop.y0 + y) * g->w + g->crop.x0);
        int n_runs, n_high = 0, n_low = 0, n = 0;
        const SamRun *runs;
        const float *logits = sam_rows_next(worker->rows, &runs, &n_runs);
        for (int i = 0; i < n_runs; i++) {
            const SamRun run = runs[i];
            if (run.above != SAM_BETWEEN) {
                const int length = run.end - run.first;
                if (run.above >= 2)
                    memset(mask + run.first, 1, (size_t)length);
                n += run.above >= 2 ? length : 0;
                n_high += run.above >= for_high ? length : 0;
                n_low += run.above >= for_low ? length : 0;
                continue;
            }
            for (int x = run.first; x < run.end; x++) {
                mask[x] = logits[x] > middle;
                n += logits[x] > middle;
                n_high += logits[x] > high;
                n_low += logits[x] > low;
            }
        }
        above_high += n_high;
        above_low += n_low;
        if (n == 0)
            continue;
        y0 = y < y0 ? y : y0;
        y1 = y;
        int left = runs[0].first, right = runs[n_runs - 1].end - 1; /* beyond, the mask is 0 */
        while (left < x0 && !mask[left])
            left++;
        while (right > x1 && !mask[right])
            right--;
        x0 = left < x0 ? left : x0;
        x1 = right > x1 ? right : x1;
    }
    c->stability = (float)above_high / (float)above_low; /* 0/0 is NaN and fails the filter, as in torch */
    const int empty = y1 < 0;
    c->box[0] = empty ? 0 : (float)x0;
    c->box[1] = empty ? 0 : (float)y0;
    c->box[2] = empty ? 0 : (float)x1;
    c->box[3] = empty ? 0 : (float)y1;
    worker->box[0] = g->crop.x0 + x0, worker->box[2] = g->crop.x0 + x1;
    worker->box[1] = g->crop.y0 + y0, worker->box[3] = g->crop.y0 + y1;
}

static void clear_mask(const Generator *g, Worker *worker)
{
    const int *b = worker->box;
    for (int y = b[1]; y <= b[3]; y++)
        memset(worker->mask + (size_t)y * g->w + b[0], 0, (size_t)(b[2] - b[0] + 1));
}

/* Stability and crop-edge filters; what passes gets its run lengths. The box moves into the picture's
 * frame. */
static int judge_mask(const Generator *g, Worker *worker, const float *low_res, Candidate *c)
{
    const double threshold = g->options->stability_score_thresh;
    int status = 0;
    threshold_mask(g, worker, low_res, c);
    for (int i = 0; i < 4; i++)
        c->box[i] += (float)(i % 2 == 0 ? g->crop.x0 : g->crop.y0);
    if ((!(threshold > 0) || c->stability >= (float)threshold) &&
        !near_crop_edge(c->box, &g->crop, g->h, g->w)) {
        status = rle_encode_box(&c->rle, worker->mask, g->h, g->w, worker->box, &worker->error);
        c->used = status == 0;
    }
    clear_mask(g, worker);
    return status;
}

/* Masks of one of the prompts that have just been decoded; `out` [n_multimask] gets what survives. */
static void work_off_point(const Generator *g, Worker *worker, int prompt, const double *point,
                           Candidate *out)
{
    const SamConfig *config = sam_config(g->sam);
    const double threshold = g->options->pred_iou_thresh;
    const float *iou = worker->iou + (size_t)prompt * (size_t)(config->n_multimask + 1);
    const size_t n_low =
        16 * (size_t)(config->image_size / config->patch_size) * (config->image_size / config->patch_size);
    int n_tokens = 0;
    for (int i = 1; i <= config->n_multimask; i++)
        if (!(threshold > 0) || iou[i] > (float)threshold)
            worker->tokens[n_tokens++] = i;
    if (n_tokens == 0)
        return;
    sam_decode_masks(g->decoder, worker->scratch, prompt, worker->tokens, n_tokens, worker->low_res);
    worker->failed = sam_check_finite(g->sam, "array of mask logits", worker->low_res,
                                      n_low * (size_t)n_tokens, &worker->error) != 0;
    for (int i = 0; i < n_tokens && !worker->failed; i++) {
        Candidate *c = &out[worker->tokens[i] - 1];
        c->iou = iou[worker->tokens[i]];
        c->point[0] = point[0] + g->crop.x0;
        c->point[1] = point[1] + g->crop.y0;
        c->crop = g->crop;
        worker->failed = judge_mask(g, worker, worker->low_res + (size_t)i * n_low, c) != 0;
    }
}

/* Prompt SAM with n foreground points [n][2] of the crop, n no more than the worker takes together; out
 * [n][n_multimask]. */
static void work_off_points(const Generator *g, Worker *worker, const double *points, int n, Candidate *out)
{
    static const int foreground = 1;
    SamPrompt prompts[SAM_TOGETHER];
    float xy[SAM_TOGETHER][2]; /* the official code has doubles until it encodes them: 6e-8 of a side */
    for (int i = 0; i < n; i++) {
        xy[i][0] = (float)points[2 * i];
        xy[i][1] = (float)points[2 * i + 1];
        prompts[i] = (SamPrompt){.n_points = 1, .points = xy[i], .labels = &foreground};
    }
    sam_decode_prompts(g->decoder, worker->scratch, prompts, n, worker->iou);
    const int n_masks = sam_config(g->sam)->n_multimask;
    worker->failed = sam_check_finite(g->sam, "IoU prediction", worker->iou,
                                      (size_t)n * (size_t)(n_masks + 1), &worker->error) != 0;
    for (int i = 0; i < n && !worker->failed; i++)
        work_off_point(g, worker, i, points + 2 * i, out + (size_t)i * n_masks);
}

/* ---- one crop ---------------------------------------------------------------------------------*/

/* np.linspace(1/2n, 1 - 1/2n, n)[i] */
static double grid_coordinate(int i, int n)
{
    const double start = 1.0 / (2 * n), stop = 1 - start;
    if (n == 1)
        return start;
    return i == n - 1 ? stop : start + i * ((stop - start) / (n - 1));
}

/* The points of a crop's grid, row by row, in its own pixels: [n][2], or NULL: counted only. Returns n. */
static int crop_points(const AmgOptions *o, const Crop *crop, double *points)
{
    const int per_side = points_in_layer(o, crop->layer);
    int n = 0;
    for (int row = 0; row < per_side; row++)
        for (int column = 0; column < per_side; column++) {
            const double x = grid_coordinate(column, per_side) * (crop->x1 - crop->x0),
                         y = grid_coordinate(row, per_side) * (crop->y1 - crop->y0);
            if (o->crop_own_points && !(x + crop->x0 >= crop->own[0] && x + crop->x0 < crop->own[2] &&
                                        y + crop->y0 >= crop->own[1] && y + crop->y0 < crop->own[3]))
                continue;
            if (points) {
                points[2 * n] = x;
                points[2 * n + 1] = y;
            }
            n++;
        }
    return n;
}

typedef struct Progress {
    AmgProgress call; /* or NULL */
    void *user;
    int done, told, total; /* points */
} Progress;

/* Every thread counts, the caller's tells what is new. */
static void count_points(Progress *progress, int n)
{
    int done;
#pragma omp atomic capture
    done = progress->done += n;
    if (!progress->call || tensor_thread() != 0 || done == progress->told)
        return;
    progress->told = done;
    progress->call(progress->user, done, progress->total);
}

/* n points [n][2] of the crop, in parallel; survivors go to the list in the order of the points. */
static int work_off_batch(Generator *g, Candidates *list, const double *points, int n, Progress *progress,
                          Error *err)
{
    const int n_masks = sam_config(g->sam)->n_multimask,
              together = sam_scratch_prompts(g->workers[0].scratch);
    memset(g->batch, 0, (size_t)n * n_masks * sizeof *g->batch);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g->n_workers)
    for (int i = 0; i < n; i += together) {
        Worker *worker = &g->workers[tensor_thread()];
        const int count = n - i < together ? n - i : together;
        if (!worker->failed)
            work_off_points(g, worker, points + 2 * i, count, g->batch + (size_t)i * n_masks);
        if (!worker->failed)
            count_points(progress, count);
    }
    int status = 0;
    for (int i = 0; i < g->n_workers && status == 0; i++)
        if (g->workers[i].failed)
            status = fail(err, "%s", g->workers[i].error.message);
    for (int i = 0; i < n * n_masks; i++) {
        if (!g->batch[i].used)
            continue;
        if (status == 0)
            status = candidates_push(list, &g->batch[i], err);
        if (status != 0)
            rle_free(&g->batch[i].rle);
    }
    return status;
}

/* The crop's pixels, contiguous. */
static const uint8_t *crop_pixels(Generator *g)
{
    const Crop *c = &g->crop;
    const size_t row_bytes = 3 * (size_t)(c->x1 - c->x0);
    if (c->layer == 0)
        return g->rgb;
    for (int y = c->y0; y < c->y1; y++)
        memcpy(g->crop_rgb + (size_t)(y - c->y0) * row_bytes, g->rgb + 3 * ((size_t)y * g->w + c->x0),
               row_bytes);
    return g->crop_rgb;
}

/* Make the workers ready for the current crop, whose image is encoded. */
static int enter_crop(Generator *g, const SamImage *image, Error *err)
{
    g->decoder = sam_decoder_new(g->sam, image, err);
    if (!g->decoder)
        return -1;
    for (int i = 0; i < g->n_workers; i++) {
        g->workers[i].rows = sam_rows_new(g->sam, image, err);
        if (!g->workers[i].rows)
            return -1;
    }
    return 0;
}

static void leave_crop(Generator *g)
{
    for (int i = 0; i < g->n_workers; i++) {
        sam_rows_free(g->workers[i].rows);
        g->workers[i].rows = NULL;
    }
    sam_decoder_free(g->decoder);
    g->decoder = NULL;
}

/* All points of g->crop; the survivors of its NMS are appended to `all`. */
static int process_crop(Generator *g, SamState *state, Candidates *all, Progress *progress, Error *err)
{
    const int n_points = crop_points(g->options, &g->crop, g->points);
    Candidates list = {0};
    SamImage image;
    if (sam_encode(g->sam, state, &image, crop_pixels(g), g->crop.y1 - g->crop.y0, g->crop.x1 - g->crop.x0, 0,
                   NULL, NULL, err))
        return -1;
    int status = enter_crop(g, &image, err);
    for (int first = 0; first < n_points && status == 0; first += POINTS_PER_BATCH) {
        const int n = n_points - first < POINTS_PER_BATCH ? n_points - first : POINTS_PER_BATCH;
        status = work_off_batch(g, &list, g->points + 2 * first, n, progress, err);
        if (status == 0)
            count_points(progress, 0); /* another thread may have counted the last */
    }
    leave_crop(g);
    sam_image_free(&image);
    if (status == 0)
        status = suppress_within_crop(&list, g->options->box_nms_thresh, err);
    size_t moved = 0;
    while (status == 0 && moved < list.n) {
        status = candidates_push(all, &list.items[moved], err);
        moved += status == 0;
    }
    for (size_t i = 0; i < moved; i++)
        list.items[i].rle = (Rle){0}; /* `all` has them now */
    candidates_free(&list);
    return status;
}

/* ---- small regions ----------------------------------------------------------------------------*/

/* A vertical run of one value inside one column: rows y0 to y1 (exclusive). */
typedef struct Run {
    int x, y0, y1;
    uint8_t value;
    size_t parent; /* union-find over runs of the same component */
    int64_t area;  /* of the component, at its root */
    int64_t first; /* the component's first 2×2 block in raster order, at its root */
} Run;

/* The mask as vertical runs in column-major order, split at the columns' ends. malloc'd, *n of them. */
static Run *split_runs(const Rle *rle, size_t *n, Error *err)
{
    const size_t h = (size_t)rle->height, limit = rle->n_counts + (size_t)rle->width;
    Run *runs = malloc(limit * sizeof *runs);
    if (!runs) {
        fail_memory(err, "a mask's runs", limit * sizeof *runs);
        return NULL;
    }
    size_t at = 0;
    *n = 0;
    for (size_t i = 0; i < rle->n_counts; i++)
        for (size_t left = rle->counts[i]; left > 0;) {
            const size_t x = at / h, y = at % h, length = left < h - y ? left : h - y;
            runs[(*n)++] = (Run){.x = (int)x, .y0 = (int)y, .y1 = (int)(y + length), .value = i & 1};
            at += length;
            left -= length;
        }
    return runs;
}

static size_t find_root(Run *runs, size_t i)
{
    while (runs[i].parent != i) {
        runs[i].parent = runs[runs[i].parent].parent;
        i = runs[i].parent;
    }
    return i;
}

/* Join runs of `value` that touch, also by a corner (8-connected), and sum the components' areas. */
static void connect_runs(Run *runs, size_t n, uint8_t value, int width)
{
    const int64_t blocks_wide = (width + 1) / 2;
    for (size_t i = 0; i < n; i++) {
        runs[i].parent = i;
        runs[i].area = runs[i].y1 - runs[i].y0;
        runs[i].first = (int64_t)(runs[i].y0 / 2) * blocks_wide + runs[i].x / 2;
    }
    for (size_t a = 0, b = 0; b < n;) {
        /* a walks through the column before b's; a run that ends first can touch nothing further on */
        if (runs[b].value != value || runs[b].x == 0)
            b++;
        else if (runs[a].value != value || runs[a].x < runs[b].x - 1)
            a++;
        else if (runs[a].x >= runs[b].x)
            b++;
        else {
            if (runs[a].y0 <= runs[b].y1 && runs[b].y0 <= runs[a].y1)
                runs[find_root(runs, b)].parent = find_root(runs, a);
            if (runs[a].y1 < runs[b].y1)
                a++;
            else
                b++;
        }
    }
    for (size_t i = 0; i < n; i++) {
        const size_t root = find_root(runs, i);
        if (root == i)
            continue;
        runs[root].area += runs[i].area;
        if (runs[i].first < runs[root].first)
            runs[root].first = runs[i].first;
    }
}

/* The runs as run lengths again. */
static int join_runs(Rle *rle, const Run *runs, size_t n, Error *err)
{
    uint32_t *counts = malloc((n + 2) * sizeof *counts);
    if (!counts)
        return fail_memory(err, "a mask's run lengths", (n + 2) * sizeof *counts);
    size_t n_counts = 1;
    counts[0] = 0; /* zeros come first, maybe none */
    for (size_t i = 0; i < n; i++) {
        if (runs[i].value != ((n_counts - 1) & 1))
            counts[n_counts++] = 0;
        counts[n_counts - 1] += (uint32_t)(runs[i].y1 - runs[i].y0);
    }
    free(rle->counts);
    rle->counts = counts;
    rle->n_counts = n_counts;
    return 0;
}

/* See amg.h. Each component's area stands at its root; equal largest islands are told apart by where
 * OpenCV's labelling, which goes by 2×2 blocks, meets them first. */
int amg_remove_small_regions(Rle *rle, int min_area, int islands, int *changed, Error *err)
{
    const uint8_t value = islands != 0;
    size_t n, n_large = 0, largest = SIZE_MAX;
    Run *runs = split_runs(rle, &n, err);
    if (!runs)
        return -1;
    connect_runs(runs, n, value, rle->width);
    *changed = 0;
    for (size_t i = 0; i < n; i++) {
        if (runs[i].value != value || runs[i].parent != i)
            continue;
        if (runs[i].area < min_area)
            *changed = 1;
        else
            n_large++;
        if (largest == SIZE_MAX || runs[i].area > runs[largest].area ||
            (runs[i].area == runs[largest].area && runs[i].first < runs[largest].first))
            largest = i;
    }
    const size_t spared = islands && n_large == 0 ? largest : SIZE_MAX;
    int status = 0;
    if (*changed) {
        for (size_t i = 0; i < n; i++) {
            const size_t root = find_root(runs, i);
            if (runs[i].value == value && runs[root].area < min_area && root != spared)
                runs[i].value = !value; /* areas stay at the roots */
        }
        status = join_runs(rle, runs, n, err);
    }
    free(runs);
    return status;
}

/* batched_mask_to_box: inclusive corners; zeros for an empty mask. */
static void box_of_rle(const Rle *rle, float box[4])
{
    const size_t h = (size_t)rle->height;
    size_t at = 0, x0 = SIZE_MAX, y0 = SIZE_MAX, x1 = 0, y1 = 0;
    for (size_t i = 0; i < rle->n_counts; at += rle->counts[i], i++) {
        if (i % 2 == 0 || rle->counts[i] == 0)
            continue;
        const size_t last = at + rle->counts[i] - 1;
        const int one_column = at / h == last / h;
        const size_t top = one_column ? at % h : 0, bottom = one_column ? last % h : h - 1;
        x0 = at / h < x0 ? at / h : x0;
        x1 = last / h > x1 ? last / h : x1;
        y0 = top < y0 ? top : y0;
        y1 = bottom > y1 ? bottom : y1;
    }
    const int empty = x0 == SIZE_MAX;
    box[0] = empty ? 0 : (float)x0;
    box[1] = empty ? 0 : (float)y0;
    box[2] = empty ? 0 : (float)x1;
    box[3] = empty ? 0 : (float)y1;
}

/* postprocess_small_regions: clean every mask, then NMS that prefers masks that needed no cleaning. */
static int clean_masks(Candidates *list, int min_area, double nms_threshold, Error *err)
{
    float *scores = malloc((list->n + 1) * sizeof *scores);
    if (!scores)
        return fail_memory(err, "mask scores", list->n * sizeof *scores);
    int status = 0;
    for (size_t i = 0; i < list->n && status == 0; i++) {
        int filled = 0, erased = 0;
        status = amg_remove_small_regions(&list->items[i].rle, min_area, 0, &filled, err);
        if (status == 0)
            status = amg_remove_small_regions(&list->items[i].rle, min_area, 1, &erased, err);
        scores[i] = filled || erased ? 0 : 1;
        if (filled || erased)
            box_of_rle(&list->items[i].rle, list->items[i].box);
    }
    if (status == 0)
        status = suppress(list, scores, nms_threshold, err);
    free(scores);
    return status;
}

/* ---- the whole --------------------------------------------------------------------------------*/

static void generator_free(Generator *g)
{
    for (int i = 0; g->workers && i < g->n_workers; i++) {
        Worker *worker = &g->workers[i];
        sam_scratch_free(worker->scratch);
        sam_rows_free(worker->rows);
        free(worker->low_res);
        free(worker->iou);
        free(worker->tokens);
        free(worker->mask);
    }
    sam_decoder_free(g->decoder);
    free(g->workers);
    free(g->crop_rgb);
    free(g->points);
    free(g->batch);
}

static int worker_init(Worker *worker, const Generator *g, Error *err)
{
    const SamConfig *c = sam_config(g->sam);
    const size_t side = 4 * (size_t)(c->image_size / c->patch_size), n_masks = (size_t)c->n_multimask;
    /* as many points together as the decoder likes, but enough portions of a batch for all workers */
    worker->scratch = sam_scratch_new(g->sam, 1, POINTS_PER_BATCH / (4 * g->n_workers), err);
    if (!worker->scratch)
        return -1;
    worker->low_res = aligned_array(n_masks * side * side, sizeof(float));
    worker->iou = malloc(SAM_TOGETHER * (n_masks + 1) * sizeof(float));
    worker->tokens = malloc(n_masks * sizeof(int));
    worker->mask = calloc((size_t)g->h, (size_t)g->w);
    if (!worker->low_res || !worker->iou || !worker->tokens || !worker->mask)
        return fail_memory(err, "mask generation",
                           (unsigned long long)g->h * g->w + n_masks * side * side * sizeof(float));
    return 0;
}

static int generator_init(Generator *g, Error *err)
{
    const size_t n_slots = (size_t)POINTS_PER_BATCH * (size_t)sam_config(g->sam)->n_multimask;
    const size_t n_points = (size_t)g->options->points_per_side * (size_t)g->options->points_per_side;
    const size_t crop_bytes = g->options->crop_n_layers > 0 ? 3 * (size_t)g->h * g->w : 0;
    int n_threads = tensor_team_size(); /* not more, where each image has a thread */
    g->n_workers = n_threads < POINTS_PER_BATCH ? n_threads : POINTS_PER_BATCH;
    g->workers = calloc((size_t)g->n_workers, sizeof *g->workers);
    g->batch = calloc(n_slots, sizeof *g->batch);
    g->crop_rgb = crop_bytes ? malloc(crop_bytes) : NULL;
    g->points = malloc(2 * n_points * sizeof *g->points);
    if (!g->workers || !g->batch || !g->points || (crop_bytes && !g->crop_rgb))
        return fail_memory(err, "mask generation", n_slots * sizeof *g->batch + crop_bytes);
    for (int i = 0; i < g->n_workers; i++)
        if (worker_init(&g->workers[i], g, err))
            return -1;
    return 0;
}

static int generate(Generator *g, SamState *state, Candidates *all, Progress *progress, Error *err)
{
    const AmgOptions *o = g->options;
    int n_crops, status = 0;
    Crop *crops = make_crops(o, g->h, g->w, &n_crops, err);
    if (!crops)
        return -1;
    for (int i = 0; i < n_crops; i++)
        progress->total += crop_points(o, &crops[i], NULL);
    for (int i = 0; i < n_crops && status == 0; i++) {
        g->crop = crops[i];
        status = process_crop(g, state, all, progress, err);
    }
    free(crops);
    if (status == 0 && n_crops > 1)
        status = suppress_among_crops(all, o->crop_nms_thresh, err);
    if (status == 0 && o->min_mask_region_area > 0)
        status =
            clean_masks(all, o->min_mask_region_area,
                        o->box_nms_thresh > o->crop_nms_thresh ? o->box_nms_thresh : o->crop_nms_thresh, err);
    return status;
}

/* The records of the official generator; the run lengths pass to them. */
static int write_records(AmgMasks *out, Candidates *all, Error *err)
{
    out->masks = calloc(all->n + 1, sizeof *out->masks);
    if (!out->masks)
        return fail_memory(err, "masks", (all->n + 1) * sizeof *out->masks);
    out->n = all->n;
    for (size_t i = 0; i < all->n; i++) {
        Candidate *c = &all->items[i];
        AmgMask *m = &out->masks[i];
        m->segmentation = c->rle;
        c->rle = (Rle){0};
        m->area = rle_area(&m->segmentation);
        m->predicted_iou = c->iou;
        m->stability_score = c->stability;
        const float bbox[4] = {c->box[0], c->box[1], c->box[2] - c->box[0], c->box[3] - c->box[1]};
        const float crop[4] = {(float)c->crop.x0, (float)c->crop.y0, (float)(c->crop.x1 - c->crop.x0),
                               (float)(c->crop.y1 - c->crop.y0)};
        memcpy(m->bbox, bbox, sizeof bbox);
        memcpy(m->crop_box, crop, sizeof crop);
        memcpy(m->point, c->point, sizeof m->point);
    }
    return 0;
}

int amg_generate(const Sam *sam, SamState *state, AmgMasks *out, const AmgOptions *options,
                 const uint8_t *rgb, int h, int w, AmgProgress progress, void *user, Error *err)
{
    *out = (AmgMasks){0};
    if (h < 1 || w < 1 || (int64_t)h * w > INT_MAX)
        return fail(err, "mask generation: a picture of %d x %d pixels is not from 1 to %d pixels large", w,
                    h, INT_MAX);
    if (check_options(options, err))
        return -1;
    Generator generator = {.sam = sam, .options = options, .rgb = rgb, .h = h, .w = w};
    Progress report = {.call = progress, .user = user};
    Candidates all = {0};
    int status = generator_init(&generator, err);
    if (status == 0)
        status = generate(&generator, state, &all, &report, err);
    if (status == 0)
        status = write_records(out, &all, err);
    generator_free(&generator);
    candidates_free(&all);
    return status;
}

void amg_masks_free(AmgMasks *masks)
{
    if (!masks)
        return;
    for (size_t i = 0; i < masks->n; i++)
        rle_free(&masks->masks[i].segmentation);
    free(masks->masks);
    *masks = (AmgMasks){0};
}
