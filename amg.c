/* amg.c - automatic mask generation (segment_anything/automatic_mask_generator.py and utils/amg.py), with the
 * official names.
 *
 *   picture -> generate_crop_boxes: the whole, then 2 x 2, 4 x 4, ... overlapping crops
 *   _process_crop: crop -> embedding -> build_point_grid -> SAM's masks of each point
 *        -> filters: predicted IoU, stability, crop edge -> box NMS within the crop
 *   all crops -> box NMS among them (the smaller crop wins) -> small regions removed, NMS again
 *   -> records [n]: run lengths, box, area, predicted IoU, stability, point, crop
 *
 * Where crops overlap, each prompts SAM for the same objects. With crop_own_points [ours] only the crop whose
 * centre is nearest prompts. It shows the objects best, and a third of the points is saved.
 *
 * The official code decodes 64 points at a time and keeps all their full-size logits. Here each thread takes
 * a few points at a time (SAM_TOGETHER). Masks with a low predicted IoU are never upscaled. The others pass
 * row by row through the filters, and only survivors are kept, as run lengths. Each answer has its place by
 * point and mask. So neither order nor bits depend on the number of threads.
 *
 * Connected components are found on the runs themselves: no label image is made. */
#include "amg.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

#define POINTS_PER_BATCH 256   /* points; a batch's survivors wait until their order is known. */
#define CROP_EDGE        20.0f /* is_box_near_crop_edge's atol, in pixels. */

/* ---- options ----------------------------------------------------------------------------------*/

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

/* ---- candidates (MaskData) --------------------------------------------------------------------*/

typedef struct Crop {
    int x0, y0, x1, y1; /* in the picture; x1, y1 exclusive. */
    int layer;
    /* x0 y0 x1 y1 in the picture: the part that lies nearest to this crop's centre among the crops of its
     * layer. */
    double own[4];
} Crop;

typedef struct Candidate {
    Rle rle;      /* over the whole picture. */
    float box[4]; /* x0 y0 x1 y1, inclusive, as in batched_mask_to_box. */
    float iou_pred, stability_score;
    double point[2];
    Crop crop;
    float nms_score; /* of the current NMS. */
    int used;        /* passed all filters. */
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

/* The run lengths pass to the list; on failure they stay the caller's. */
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

/* Move all of `from` to the end of `to`. */
static int candidates_move(Candidates *to, Candidates *from, Error *err)
{
    for (size_t i = 0; i < from->n; i++) {
        if (candidates_push(to, &from->items[i], err))
            return -1;
        from->items[i].rle = (Rle){0};
    }
    return 0;
}

/* ---- batched_nms (torchvision) ----------------------------------------------------------------*/

typedef struct Ranked {
    float score;
    size_t index;
} Ranked;

/* Highest score first. Equal scores keep their order (torchvision sorts stably). A NaN counts as the highest
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

/* torchvision's nms_kernel, with its float arithmetic: the IoU of two boxes of areas (x1-x0)·(y1-y0). Corners
 * are inclusive, so a box of one pixel or one line has no area. Of two such boxes the quotient is 0/0, NaN,
 * which suppresses nothing there: all equal masks of a single pixel would stay. [ours] They are compared by
 * their pixels, both ends included. */
static float box_iou(const float *a, const float *b)
{
    float width = fminf(a[2], b[2]) - fmaxf(a[0], b[0]), height = fminf(a[3], b[3]) - fmaxf(a[1], b[1]);
    float area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
    if (area_a + area_b == 0) {
        width++, height++;
        area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1), area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1);
    }
    float common = fmaxf(0, width) * fmaxf(0, height);
    return common / (area_a + area_b - common);
}

static int overlaps_any(const Candidate *kept, size_t n_kept, const float *box, double threshold)
{
    for (size_t k = 0; k < n_kept; k++)
        if (box_iou(kept[k].box, box) > threshold)
            return 1;
    return 0;
}

/* Go through the candidates from the highest nms_score. Keep those that overlap no kept one by more than the
 * threshold. All are one category, so batched_nms is plain NMS. */
static int batched_nms(Candidates *list, double threshold, Error *err)
{
    const size_t n = list->n;
    Ranked *order = malloc((n + 1) * sizeof *order);
    Candidate *kept = malloc((n + 1) * sizeof *kept);
    if (!order || !kept) {
        free(order);
        free(kept);
        return fail_memory(err, "non-maximum suppression", n * (sizeof *order + sizeof *kept));
    }
    for (size_t i = 0; i < n; i++)
        order[i] = (Ranked){list->items[i].nms_score, i};
    qsort(order, n, sizeof *order, by_score);
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        Candidate *candidate = &list->items[order[i].index];
        if (overlaps_any(kept, n_kept, candidate->box, threshold))
            rle_free(&candidate->rle);
        else
            kept[n_kept++] = *candidate;
    }
    if (n_kept > 0)
        memcpy(list->items, kept, n_kept * sizeof *kept);
    list->n = n_kept;
    free(order);
    free(kept);
    return 0;
}

/* ---- generate_crop_boxes ----------------------------------------------------------------------*/

static int crop_length(int length, int n_crops, int overlap)
{
    return (int)ceil(((double)overlap * (n_crops - 1) + length) / n_crops);
}

/* The own part of crop i of a row of crops. Each crop is `length` long and `step` from the next; the last one
 * is cut. */
static void own_part(double *from, double *to, int i, int n_crops, int length, int step)
{
    *from = i == 0 ? -INFINITY : step * (i - 0.5) + length / 2.0;
    *to = i == n_crops - 1 ? INFINITY : step * (i + 0.5) + length / 2.0;
}

/* The 2^layer by 2^layer overlapping crops of a layer of a picture h x w, column by column. Returns their
 * number. */
static int crop_boxes_of_layer(Crop *crops, const AmgOptions *o, int layer, int h, int w)
{
    const int per_side = 1 << layer;
    const int overlap = (int)(o->crop_overlap_ratio * (h < w ? h : w) * (2.0 / per_side));
    const int crop_w = crop_length(w, per_side, overlap), crop_h = crop_length(h, per_side, overlap);
    int n = 0;
    for (int i = 0; i < per_side; i++)
        for (int j = 0; j < per_side; j++) {
            Crop c = {.x0 = (crop_w - overlap) * i, .y0 = (crop_h - overlap) * j, .layer = layer};
            own_part(&c.own[0], &c.own[2], i, per_side, crop_w, crop_w - overlap);
            own_part(&c.own[1], &c.own[3], j, per_side, crop_h, crop_h - overlap);
            c.x1 = c.x0 + crop_w < w ? c.x0 + crop_w : w;
            c.y1 = c.y0 + crop_h < h ? c.y0 + crop_h : h;
            if (c.x1 > c.x0 && c.y1 > c.y0) /* false in pictures of few pixels: other crops cover them. */
                crops[n++] = c;
        }
    return n;
}

/* The whole picture, then layer after layer. *n crops, malloc'd. */
static Crop *generate_crop_boxes(const AmgOptions *o, const Picture *picture, int *n, Error *err)
{
    size_t total = 1;
    for (int layer = 1; layer <= o->crop_n_layers; layer++)
        total += (size_t)1 << 2 * layer;
    Crop *crops = malloc(total * sizeof *crops);
    if (!crops) {
        fail_memory(err, "crops", total * sizeof *crops);
        return NULL;
    }
    crops[0] = (Crop){0, 0, picture->width, picture->height, 0, {-INFINITY, -INFINITY, INFINITY, INFINITY}};
    *n = 1;
    for (int layer = 1; layer <= o->crop_n_layers; layer++)
        *n += crop_boxes_of_layer(crops + *n, o, layer, picture->height, picture->width);
    return crops;
}

/* Does the box, in the picture, end near an edge of the crop? Edges of the picture do not count. */
static int is_box_near_crop_edge(const float *box, const Crop *crop, const Picture *picture)
{
    const float crop_box[4] = {crop->x0, crop->y0, crop->x1, crop->y1};
    const float orig_box[4] = {0, 0, picture->width, picture->height};
    for (int i = 0; i < 4; i++)
        if (fabsf(box[i] - crop_box[i]) <= CROP_EDGE && !(fabsf(box[i] - orig_box[i]) <= CROP_EDGE))
            return 1;
    return 0;
}

/* ---- build_point_grid -------------------------------------------------------------------------*/

/* np.linspace(1/2n, 1 - 1/2n, n)[i]. */
static double grid_coordinate(int i, int n)
{
    const double start = 1.0 / (2 * n), stop = 1 - start;
    if (n == 1)
        return start;
    return i == n - 1 ? stop : start + i * ((stop - start) / (n - 1));
}

static int is_own_point(const Crop *crop, double x, double y)
{
    return x + crop->x0 >= crop->own[0] && x + crop->x0 < crop->own[2] && y + crop->y0 >= crop->own[1] &&
           y + crop->y0 < crop->own[3];
}

/* The points of a crop's grid, row by row, in the crop's pixels: [n][2]. points NULL: they are only counted.
 * Returns n. */
static int build_point_grid(const AmgOptions *o, const Crop *crop, double *points)
{
    const int per_side = points_in_layer(o, crop->layer);
    int n = 0;
    for (int row = 0; row < per_side; row++)
        for (int column = 0; column < per_side; column++) {
            const double x = grid_coordinate(column, per_side) * (crop->x1 - crop->x0);
            const double y = grid_coordinate(row, per_side) * (crop->y1 - crop->y0);
            if (o->crop_own_points && !is_own_point(crop, x, y))
                continue;
            if (points) {
                points[2 * n] = x;
                points[2 * n + 1] = y;
            }
            n++;
        }
    return n;
}

/* ---- one mask ---------------------------------------------------------------------------------*/

/* Inclusive corners; x1 < x0: no pixel. */
typedef struct Box {
    int x0, y0, x1, y1;
} Box;

/* The memory of a thread that works on points. */
typedef struct Worker {
    SamScratch *scratch;
    SamRows *rows;  /* of the current crop. */
    float *low_res; /* [n_multimask][4g][4g] */
    float *iou;     /* [prompts together][n_multimask + 1] */
    int *tokens;    /* [n_multimask] the masks worth upscaling. */
    uint8_t *mask;  /* [h][w] of the picture; all zeros between two masks. */
    Error error;
    int failed;
} Worker;

typedef struct Generator {
    const Sam *sam;
    const AmgOptions *options;
    const Picture *picture;
    size_t n_masks, n_low_res; /* n_multimask; [4g][4g] */
    SamDecoder *decoder;       /* of the current crop. */
    Crop crop;
    Worker *workers;
    int n_workers;
    uint8_t *crop_rgb; /* buffer for the largest crop, NULL without crops */
    double *points;    /* [points_per_side²][2] of the current crop */
    Candidate *batch;  /* [POINTS_PER_BATCH][n_multimask] */
} Generator;

/* A row of a mask's logits, see sam_rows_next. */
typedef struct Row {
    const float *logits; /* [crop_w] */
    const SamRun *runs;
    int n_runs;
} Row;

/* The limits by which the rows' runs are sorted, and the index of each threshold among them. */
typedef struct Thresholds {
    float limits[3]; /* from the lowest. */
    int low, mask, high;
} Thresholds;

static Thresholds thresholds_of(const Generator *g)
{
    const float middle = sam_config(g->sam)->mask_threshold;
    const float high = middle + g->options->stability_score_offset;
    const float low = middle - g->options->stability_score_offset;
    if (low <= high)
        return (Thresholds){{low, middle, high}, 0, 1, 2};
    return (Thresholds){{high, middle, low}, 2, 1, 0}; /* an offset may be negative. */
}

/* How many of n logits lie above the limit. */
static int count_logits(const float *logits, int n, float limit)
{
    int above = 0;
    for (int i = 0; i < n; i++)
        above += logits[i] > limit;
    return above;
}

/* Pixels of the row above limit i. */
static int count_above(const Row *row, const Thresholds *t, int i)
{
    int n = 0;
    for (const SamRun *run = row->runs; run < row->runs + row->n_runs; run++) {
        const int length = run->end - run->first;
        if (run->above == SAM_BETWEEN)
            n += count_logits(row->logits + run->first, length, t->limits[i]);
        else if (run->above > i)
            n += length;
    }
    return n;
}

/* mask = logits > limit i. The row of the mask is 0 before. */
static void threshold_row(uint8_t *mask, const Row *row, const Thresholds *t, int i)
{
    const float *logits = row->logits, limit = t->limits[i];
    for (const SamRun *run = row->runs; run < row->runs + row->n_runs; run++)
        if (run->above == SAM_BETWEEN)
            for (int x = run->first, end = run->end; x < end; x++)
                mask[x] = logits[x] > limit;
        else if (run->above > i)
            memset(mask + run->first, 1, run->end - run->first);
}

/* Extend the box by row y of the mask. The row has pixels, all of them in the row's runs. */
static void extend_box(Box *box, int y, const uint8_t *mask, const Row *row)
{
    int left = row->runs[0].first, right = row->runs[row->n_runs - 1].end - 1;
    while (left < box->x0 && !mask[left])
        left++;
    while (right > box->x1 && !mask[right])
        right--;
    box->x0 = left < box->x0 ? left : box->x0;
    box->x1 = right > box->x1 ? right : box->x1;
    box->y0 = y < box->y0 ? y : box->y0;
    box->y1 = y;
}

/* A mask's measurements after some of its rows. */
typedef struct MaskRows {
    Box box;                       /* batched_mask_to_box, in the crop */
    int64_t intersections, unions; /* pixels above the high and the low threshold */
} MaskRows;

/* mask [crop_w] is row y of the mask, 0 before. */
static void add_row(MaskRows *m, int y, uint8_t *mask, const Row *row, const Thresholds *t)
{
    m->intersections += count_above(row, t, t->high);
    m->unions += count_above(row, t, t->low);
    threshold_row(mask, row, t, t->mask);
    if (count_above(row, t, t->mask) > 0)
        extend_box(&m->box, y, mask, row);
}

/* worker->mask = low_res at the picture's size > mask_threshold. */
static MaskRows threshold_mask(const Generator *g, Worker *worker, const float *low_res)
{
    const Thresholds thresholds = thresholds_of(g);
    const size_t w = g->picture->width;
    const int crop_h = g->crop.y1 - g->crop.y0;
    uint8_t *mask = worker->mask + g->crop.y0 * w + g->crop.x0;
    MaskRows m = {.box = {.x0 = g->crop.x1 - g->crop.x0, .y0 = crop_h, .x1 = -1, .y1 = -1}};
    sam_rows_begin(worker->rows, low_res, thresholds.limits, 3);
    for (int y = 0; y < crop_h; y++, mask += w) {
        Row row;
        row.logits = sam_rows_next(worker->rows, &row.runs, &row.n_runs);
        add_row(&m, y, mask, &row, &thresholds);
    }
    return m;
}

/* 0/0 is NaN and fails the filter, as in torch. */
static float calculate_stability_score(const MaskRows *m)
{
    return (float)m->intersections / (float)m->unions;
}

/* Stability and crop-edge filters. A mask that passes gets its run lengths. */
static int filter_mask(const Generator *g, Worker *worker, const float *low_res, Candidate *c)
{
    const double threshold = g->options->stability_score_thresh;
    const int h = g->picture->height, w = g->picture->width, x = g->crop.x0, y = g->crop.y0;
    const MaskRows m = threshold_mask(g, worker, low_res);
    const Box box = m.box;
    const int in_picture[4] = {box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y}; /* uncrop_boxes_xyxy */
    for (int i = 0; i < 4; i++) /* the official box of an empty mask is zero */
        c->box[i] = box.y1 >= 0 ? in_picture[i] : i % 2 == 0 ? x : y;
    c->stability_score = calculate_stability_score(&m);
    int status = 0;
    if ((!(threshold > 0) || c->stability_score >= (float)threshold) &&
        !is_box_near_crop_edge(c->box, &g->crop, g->picture)) {
        status = rle_encode_box(&c->rle, worker->mask, h, w, in_picture, &worker->error);
        c->used = status == 0;
    }
    for (int row = in_picture[1]; row <= in_picture[3]; row++)
        memset(worker->mask + (size_t)row * w + in_picture[0], 0, box.x1 - box.x0 + 1);
    return status;
}

/* ---- _process_batch ---------------------------------------------------------------------------*/

/* Masks of one of the prompts decoded last. `out` [n_multimask] gets the survivors. 0 / -1. */
static int decode_masks_of_point(const Generator *g, Worker *worker, int prompt, const double *point,
                                 Candidate *out)
{
    const double threshold = g->options->pred_iou_thresh;
    const float *iou = worker->iou + prompt * (g->n_masks + 1);
    int n_tokens = 0;
    for (int i = 1; i <= (int)g->n_masks; i++)
        if (!(threshold > 0) || iou[i] > (float)threshold)
            worker->tokens[n_tokens++] = i;
    if (n_tokens == 0)
        return 0;
    sam_decode_masks(g->decoder, worker->scratch, prompt, worker->tokens, n_tokens, worker->low_res);
    if (sam_check_finite(g->sam, "array of mask logits", worker->low_res, g->n_low_res * n_tokens,
                         &worker->error))
        return -1;
    for (int i = 0; i < n_tokens; i++) {
        Candidate *c = &out[worker->tokens[i] - 1];
        c->iou_pred = iou[worker->tokens[i]];
        c->point[0] = point[0] + g->crop.x0;
        c->point[1] = point[1] + g->crop.y0;
        c->crop = g->crop;
        if (filter_mask(g, worker, worker->low_res + i * g->n_low_res, c))
            return -1;
    }
    return 0;
}

/* Prompt SAM with n foreground points [n][2] of the crop; n is at most the scratch's number of prompts. out
 * [n][n_multimask]. 0 / -1 and worker->error. */
static int prompt_points(const Generator *g, Worker *worker, const double *points, int n, Candidate *out)
{
    static const int foreground = 1;
    SamPrompt prompts[SAM_TOGETHER];
    float xy[SAM_TOGETHER][2]; /* the official code encodes doubles: a difference of 6e-8 of a side. */
    for (int i = 0; i < n; i++) {
        xy[i][0] = points[2 * i];
        xy[i][1] = points[2 * i + 1];
        prompts[i] = (SamPrompt){.n_points = 1, .points = xy[i], .labels = &foreground};
    }
    if (sam_decode_prompts(g->decoder, worker->scratch, prompts, n, worker->iou, &worker->error) ||
        sam_check_finite(g->sam, "IoU prediction", worker->iou, n * (g->n_masks + 1), &worker->error))
        return -1;
    for (int i = 0; i < n; i++)
        if (decode_masks_of_point(g, worker, i, points + 2 * i, out + i * g->n_masks))
            return -1;
    return 0;
}

typedef struct Progress {
    AmgProgress call; /* or NULL */
    void *user;
    int done, told, total; /* points */
} Progress;

/* Every thread counts; only the caller's thread reports progress. */
static void count_points(Progress *progress, int n)
{
    const int done = count_done(&progress->done, n);
    if (!progress->call || thread_number() != 0 || done == progress->told)
        return;
    progress->told = done;
    progress->call(progress->user, done, progress->total);
}

static int check_workers(const Generator *g, Error *err)
{
    for (int i = 0; i < g->n_workers; i++)
        if (g->workers[i].failed)
            return fail(err, "%s", g->workers[i].error.message);
    return 0;
}

/* Move the survivors of the first n places of the batch to the list. On failure they are freed. */
static int collect_batch(Generator *g, Candidates *list, size_t n, Error *err)
{
    size_t i = 0;
    if (!check_workers(g, err))
        while (i < n && (!g->batch[i].used || !candidates_push(list, &g->batch[i], err)))
            i++;
    const int status = i == n ? 0 : -1;
    for (; i < n; i++)
        rle_free(&g->batch[i].rle);
    return status;
}

/* Process n points [n][2] of the crop in parallel. Survivors go to the list in the order of the points. */
static int process_batch(Generator *g, Candidates *list, const double *points, int n, Progress *progress,
                         Error *err)
{
    const int together = sam_scratch_prompts(g->workers[0].scratch);
    const size_t n_places = n * g->n_masks;
    memset(g->batch, 0, n_places * sizeof *g->batch);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g->n_workers)
    for (int i = 0; i < n; i += together) {
        Worker *worker = &g->workers[thread_number()];
        const int count = n - i < together ? n - i : together;
        if (worker->failed)
            continue;
        worker->failed = prompt_points(g, worker, points + 2 * i, count, g->batch + i * g->n_masks) != 0;
        if (!worker->failed)
            count_points(progress, count);
    }
    return collect_batch(g, list, n_places, err);
}

/* ---- _process_crop ----------------------------------------------------------------------------*/

/* The crop as a picture with contiguous pixels. */
static Picture crop_picture(Generator *g)
{
    const Crop *c = &g->crop;
    const size_t w = g->picture->width, row_bytes = 3 * (size_t)(c->x1 - c->x0);
    if (c->layer == 0)
        return *g->picture;
    const uint8_t *from = g->picture->rgb + 3 * (c->y0 * w + c->x0);
    uint8_t *to = g->crop_rgb;
    for (int y = c->y0; y < c->y1; y++, from += 3 * w, to += row_bytes)
        memcpy(to, from, row_bytes);
    return (Picture){g->crop_rgb, c->y1 - c->y0, c->x1 - c->x0};
}

/* Make the workers ready for the current crop. Its image is encoded already. */
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

/* The points of the crop's grid, POINTS_PER_BATCH at a time. */
static int process_batches(Generator *g, Candidates *list, Progress *progress, Error *err)
{
    const int n_points = build_point_grid(g->options, &g->crop, g->points);
    for (int first = 0; first < n_points; first += POINTS_PER_BATCH) {
        const int n = n_points - first < POINTS_PER_BATCH ? n_points - first : POINTS_PER_BATCH;
        if (process_batch(g, list, g->points + 2 * first, n, progress, err))
            return -1;
        count_points(progress, 0); /* another thread may have counted the last. */
    }
    return 0;
}

/* NMS within a crop: masks of a high predicted IoU are preferred. */
static int nms_within_crop(Candidates *list, double threshold, Error *err)
{
    for (size_t i = 0; i < list->n; i++)
        list->items[i].nms_score = list->items[i].iou_pred;
    return batched_nms(list, threshold, err);
}

/* Process all points of g->crop. The survivors of its NMS are appended to `all`. */
static int process_crop(Generator *g, SamState *state, Candidates *all, Progress *progress, Error *err)
{
    const Picture picture = crop_picture(g);
    Candidates list = {0};
    SamImage image;
    if (sam_encode(g->sam, state, &image, &picture, NULL, err))
        return -1;
    const int status = enter_crop(g, &image, err) || process_batches(g, &list, progress, err) ||
                       nms_within_crop(&list, g->options->box_nms_thresh, err) ||
                       candidates_move(all, &list, err);
    leave_crop(g);
    sam_image_free(&image);
    candidates_free(&list);
    return status ? -1 : 0;
}

/* ---- remove_small_regions ---------------------------------------------------------------------*/

/* A vertical run of one value inside one column: rows y0 to y1 (exclusive). */
typedef struct Run {
    int x, y0, y1;
    uint8_t value;
    size_t parent; /* union-find over runs of the same component. */
    int64_t area;  /* of the component, at its root. */
    int64_t first; /* the component's first 2×2 block in raster order, at its root. */
} Run;

/* The mask as vertical runs in column-major order, split at the columns' ends. Returns *n runs, malloc'd. */
static Run *split_runs(const Rle *rle, size_t *n, Error *err)
{
    const size_t h = rle->height, limit = rle->n_counts + rle->width;
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
            runs[(*n)++] = (Run){.x = x, .y0 = y, .y1 = y + length, .value = i & 1};
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

/* Make every run a component. */
static void isolate_runs(Run *runs, size_t n, int width)
{
    const int64_t blocks_wide = (width + 1) / 2;
    for (size_t i = 0; i < n; i++) {
        runs[i].parent = i;
        runs[i].area = runs[i].y1 - runs[i].y0;
        runs[i].first = runs[i].y0 / 2 * blocks_wide + runs[i].x / 2;
    }
}

/* Join runs of `value` that touch, also by a corner (8-connected). a goes through the column before b's. Of a
 * and b, the run that ends first cannot touch any later run, so its index advances. */
static void connect_runs(Run *runs, size_t n, uint8_t value)
{
    for (size_t a = 0, b = 0; b < n;) {
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
}

/* Sum each component's area, and find its first block, at its root. */
static void measure_components(Run *runs, size_t n)
{
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
    counts[0] = 0; /* zeros come first, maybe none. */
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

/* Of equally large islands the larger is the one that OpenCV's labelling meets first. OpenCV goes by 2×2
 * blocks. */
static int is_larger(const Run *a, const Run *b)
{
    return a->area != b->area ? a->area > b->area : a->first < b->first;
}

/* The components of `value`: how many are small, how many are not, and the root of the largest (SIZE_MAX:
 * none). */
typedef struct Components {
    size_t n_small, n_large, largest;
} Components;

static Components count_components(const Run *runs, size_t n, uint8_t value, int min_area)
{
    Components c = {.largest = SIZE_MAX};
    for (size_t i = 0; i < n; i++) {
        if (runs[i].value != value || runs[i].parent != i)
            continue;
        if (runs[i].area < min_area)
            c.n_small++;
        else
            c.n_large++;
        if (c.largest == SIZE_MAX || is_larger(&runs[i], &runs[c.largest]))
            c.largest = i;
    }
    return c;
}

int amg_remove_small_regions(Rle *rle, int min_area, RegionMode mode, int *changed, Error *err)
{
    const uint8_t value = mode == REGION_ISLANDS;
    size_t n;
    Run *runs = split_runs(rle, &n, err);
    if (!runs)
        return -1;
    isolate_runs(runs, n, rle->width);
    connect_runs(runs, n, value);
    measure_components(runs, n);
    const Components components = count_components(runs, n, value, min_area);
    const size_t spared = mode == REGION_ISLANDS && components.n_large == 0 ? components.largest : SIZE_MAX;
    int status = 0;
    *changed = components.n_small > 0;
    for (size_t i = 0; i < n && *changed; i++) {
        const size_t root = find_root(runs, i);
        if (runs[i].value == value && runs[root].area < min_area && root != spared)
            runs[i].value = !value; /* the areas at the roots stay unchanged. */
    }
    if (*changed)
        status = join_runs(rle, runs, n, err);
    free(runs);
    return status;
}

/* batched_mask_to_box: inclusive corners; zeros for an empty mask. */
static void batched_mask_to_box(const Rle *rle, float box[4])
{
    const size_t h = rle->height;
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
    box[0] = empty ? 0 : x0;
    box[1] = empty ? 0 : y0;
    box[2] = empty ? 0 : x1;
    box[3] = empty ? 0 : y1;
}

/* Clean every mask. Then NMS prefers masks that needed no cleaning. */
static int postprocess_small_regions(Candidates *list, int min_area, double nms_thresh, Error *err)
{
    for (Candidate *c = list->items; c < list->items + list->n; c++) {
        int filled, erased;
        if (amg_remove_small_regions(&c->rle, min_area, REGION_HOLES, &filled, err) ||
            amg_remove_small_regions(&c->rle, min_area, REGION_ISLANDS, &erased, err))
            return -1;
        c->nms_score = filled || erased ? 0 : 1;
        if (filled || erased)
            batched_mask_to_box(&c->rle, c->box);
    }
    return batched_nms(list, nms_thresh, err);
}

/* ---- generate ---------------------------------------------------------------------------------*/

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
    const size_t n_pixels = (size_t)g->picture->height * g->picture->width,
                 n_logits = g->n_masks * g->n_low_res;
    /* As many points at a time as the decoder takes, but enough portions of a batch for all workers. */
    worker->scratch = sam_scratch_new(g->sam, 1, POINTS_PER_BATCH / (4 * g->n_workers), err);
    if (!worker->scratch)
        return -1;
    worker->low_res = aligned_array(n_logits, sizeof(float));
    worker->iou = malloc(SAM_TOGETHER * (g->n_masks + 1) * sizeof(float));
    worker->tokens = malloc(g->n_masks * sizeof(int));
    worker->mask = calloc(n_pixels, 1);
    if (!worker->low_res || !worker->iou || !worker->tokens || !worker->mask)
        return fail_memory(err, "mask generation", n_pixels + n_logits * sizeof(float));
    return 0;
}

static int generator_init(Generator *g, Error *err)
{
    const size_t side = g->options->points_per_side, n_places = POINTS_PER_BATCH * g->n_masks;
    const size_t n_pixels = (size_t)g->picture->height * g->picture->width;
    const size_t crop_bytes = g->options->crop_n_layers > 0 ? 3 * n_pixels : 0;
    int n_threads = thread_team_size(); /* 1 if the caller runs one image per thread. */
    g->n_workers = n_threads < POINTS_PER_BATCH ? n_threads : POINTS_PER_BATCH;
    g->workers = calloc(g->n_workers, sizeof *g->workers);
    g->batch = calloc(n_places, sizeof *g->batch);
    g->crop_rgb = crop_bytes ? malloc(crop_bytes) : NULL;
    g->points = malloc(2 * side * side * sizeof *g->points);
    if (!g->workers || !g->batch || !g->points || (crop_bytes && !g->crop_rgb))
        return fail_memory(err, "mask generation", n_places * sizeof *g->batch + crop_bytes);
    for (int i = 0; i < g->n_workers; i++)
        if (worker_init(&g->workers[i], g, err))
            return -1;
    return 0;
}

/* NMS among the crops: masks of smaller crops are preferred. */
static int nms_among_crops(Candidates *all, double threshold, Error *err)
{
    for (Candidate *c = all->items; c < all->items + all->n; c++) {
        const int64_t area = (int64_t)(c->crop.x1 - c->crop.x0) * (c->crop.y1 - c->crop.y0);
        c->nms_score = 1.0f / area;
    }
    return batched_nms(all, threshold, err);
}

static int process_crops(Generator *g, SamState *state, const Crop *crops, int n, Candidates *all,
                         Progress *progress, Error *err)
{
    for (int i = 0; i < n; i++)
        progress->total += build_point_grid(g->options, &crops[i], NULL);
    for (int i = 0; i < n; i++) {
        g->crop = crops[i];
        if (process_crop(g, state, all, progress, err))
            return -1;
    }
    return n > 1 ? nms_among_crops(all, g->options->crop_nms_thresh, err) : 0;
}

/* _generate_masks, and the small regions. */
static int generate_masks(Generator *g, SamState *state, Candidates *all, Progress *progress, Error *err)
{
    const AmgOptions *o = g->options;
    int n_crops;
    Crop *crops = generate_crop_boxes(o, g->picture, &n_crops, err);
    if (!crops)
        return -1;
    const int status = process_crops(g, state, crops, n_crops, all, progress, err);
    free(crops);
    if (status || o->min_mask_region_area == 0)
        return status;
    return postprocess_small_regions(all, o->min_mask_region_area,
                                     fmax(o->box_nms_thresh, o->crop_nms_thresh), err);
}

/* Fill in the records of the official generator. The run lengths pass to them. */
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
        m->predicted_iou = c->iou_pred;
        m->stability_score = c->stability_score;
        const float bbox[4] = {c->box[0], c->box[1], c->box[2] - c->box[0], c->box[3] - c->box[1]};
        const float crop[4] = {c->crop.x0, c->crop.y0, c->crop.x1 - c->crop.x0, c->crop.y1 - c->crop.y0};
        memcpy(m->bbox, bbox, sizeof bbox);
        memcpy(m->crop_box, crop, sizeof crop);
        memcpy(m->point, c->point, sizeof m->point);
    }
    return 0;
}

int amg_generate(const Sam *sam, SamState *state, AmgMasks *out, const AmgOptions *options,
                 const Picture *picture, AmgProgress progress, void *user, Error *err)
{
    const SamConfig *c = sam_config(sam);
    const size_t low_res_side = 4 * (c->image_size / c->patch_size);
    *out = (AmgMasks){0};
    if (picture->height < 1 || picture->width < 1 || (int64_t)picture->height * picture->width > INT_MAX)
        return fail(err, "mask generation: a picture of %d x %d pixels is not from 1 to %d pixels large",
                    picture->width, picture->height, INT_MAX);
    if (check_options(options, err))
        return -1;
    Generator generator = {.sam = sam,
                           .options = options,
                           .picture = picture,
                           .n_masks = c->n_multimask,
                           .n_low_res = low_res_side * low_res_side};
    Progress report = {.call = progress, .user = user};
    Candidates all = {0};
    int status = generator_init(&generator, err) || generate_masks(&generator, state, &all, &report, err) ||
                 write_records(out, &all, err);
    generator_free(&generator);
    candidates_free(&all);
    return status ? -1 : 0;
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
