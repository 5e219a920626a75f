/* command/bench.c - samlad bench: how fast each stage is on this machine, beside the machine's own limit.
 *
 * Each stage runs on random weights of the published sizes (bench_model.c), or on a file that is given. It
 * runs once to warm up, then several times. The limit is the speed of short bursts of multiply-adds in
 * registers, on as many threads. Bursts stand before and after each run: if the machine is slow for a
 * moment, both are slow, and their ratio holds. The table shows medians over the runs.
 *
 * A stage that ends in .bf16 computes the encoder's products in bf16, and its limit is that of bf16.
 *
 *   GFLOP         two per multiply-add of the stage's definition, without exponentials and norms. The mask
 *                 decoder counts the official formulation, prompt by prompt. samlad needs fewer, so it may
 *                 pass the limit.
 *   peak          most memory resident while the stage ran, with its random weights.
 *   page faults   of one run after the warm-up: memory that is taken from the system again and again. */
#include "command/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "amg.h"
#include "amm.h"
#include "bank/bank.h"
#include "io/clock.h"
#include "io/fail.h"
#include "command/bench_model.h"
#include "command/messages.h"
#include "featup.h"
#include "io/image.h"
#include "load/foreign.h"
#include "io/json.h"
#include "sam.h"
#include "tensor.h"
#include "vit.h"
#ifndef SAMLAD_PLAIN
#include "fast/machine.h"
#endif

enum { MAX_ONLY = 32, MAX_RUNS = 100 };

typedef struct BenchOptions {
    const char *only[MAX_ONLY]; /* beginnings of names */
    int n_only, json, runs;     /* runs 0: at least 3, until two seconds are spent */
    const char *sam, *backbone, *image, *dump;
    double pred_iou, stability; /* thresholds of masks_1024; NAN: see prepare_masks */
} BenchOptions;

/* A stage's data while it is measured. Unused fields stay NULL. */
typedef struct Work {
    const BenchOptions *options;
    StWriter *dump;
    BenchModel model;
    Safetensors *file; /* instead of the model */
    Sam *sam;
    SamState *sam_state;
    SamImage embedding;
    AmgOptions amg;
    AmgMasks masks;
    Vit *vit;
    VitState *vit_state;
    Featup *featup;
    Objects references[5];
    Matching matchings[5];
    Comparison comparison;
    Bank bank;
    uint8_t *rgb; /* [height][width][3] */
    int width, height;
    Linear layers[4]; /* of matmul */
    int size;         /* the stage's own parameter */
    Precision precision;
    float *buffers[20]; /* freed with the rest */
    int n_buffers;
    double gflop;
    double not_counted; /* seconds of the last run that belong to another stage */
} Work;

typedef struct Stage {
    const char *name, *what;
    int parameter;
    int (*prepare)(Work *work, Error *err); /* fills work and work->gflop */
    int (*run)(Work *work, Error *err);
    int (*dump)(Work *work, Error *err); /* the last run's result, or NULL */
    int once;                            /* too long to run several times */
    Precision precision;
} Stage;

typedef struct Result {
    const Stage *stage;
    double seconds, gflop, gflops, percent, peak_mb;
    long faults;
    int runs;
} Result;

/* ================================================================================================
 * The system: page faults, memory, processor
 * ============================================================================================== */

static long page_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt + usage.ru_majflt;
}

/* Linux resets the peak when 5 is written here. Elsewhere the peak is that of the whole program. */
static void forget_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (!f)
        return;
    fputs("5", f);
    fclose(f);
}

static double peak_mb(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(kb ? kb : usage.ru_maxrss) / 1024;
}

static void machine_name(char *name, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    snprintf(name, size, "unknown processor");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

/* ================================================================================================
 * Data
 * ============================================================================================== */

static float *new_buffer(Work *work, size_t n, Error *err)
{
    float *buffer = aligned_array(n, sizeof(float));
    if (!buffer) {
        fail_memory(err, "a benchmark's data", n * sizeof(float));
        return NULL;
    }
    return work->buffers[work->n_buffers++] = buffer;
}

static float *random_buffer(Work *work, size_t n, float mean, float deviation, Error *err)
{
    float *buffer = new_buffer(work, n, err);
    if (buffer)
        random_floats(buffer, n, mean, deviation, (uint64_t)work->n_buffers);
    return buffer;
}

/* n random float16; n is even. */
static uint16_t *random_halves(Work *work, size_t n, Error *err)
{
    enum { BLOCK = 1024 };
    float block[BLOCK];
    uint16_t *halves = (uint16_t *)new_buffer(work, n / 2, err);
    for (size_t i = 0; halves && i < n; i++) {
        if (i % BLOCK == 0)
            random_floats(block, BLOCK, 0, 1, (uint64_t)work->n_buffers << 32 | i);
        halves[i] = f32_to_f16(block[i % BLOCK]);
    }
    return halves;
}

static void work_free(Work *work)
{
    amg_masks_free(&work->masks);
    sam_image_free(&work->embedding);
    sam_state_free(work->sam_state);
    sam_close(work->sam);
    vit_state_free(work->vit_state);
    vit_close(work->vit);
    featup_close(work->featup);
    for (int i = 0; i < work->n_buffers; i++)
        free(work->buffers[i]);
    free(work->rgb);
    st_close(work->file);
    bench_model_free(&work->model);
}

/* A picture with flat regions, edges, gradients and a little noise: discs on a slope. */
static void draw_discs(uint8_t *rgb, int size)
{
    uint32_t noise = 1;
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            int colour[3] = {40 + 100 * x / size, 60 + 80 * y / size, 90};
            for (int i = 0; i < 24; i++) {
                int cx = (i * 7919 % 97) * size / 97, cy = (i * 104729 % 89) * size / 89;
                int radius = size / 60 + i * size / 300;
                if ((x - cx) * (x - cx) + (y - cy) * (y - cy) < radius * radius)
                    for (int c = 0; c < 3; c++)
                        colour[c] = (i * (37 + 11 * c) + 60 * c) % 200;
            }
            for (int c = 0; c < 3; c++) {
                noise = noise * 1664525u + 1013904223u;
                rgb[((size_t)y * (size_t)size + (size_t)x) * 3 + (size_t)c] =
                    (uint8_t)(colour[c] + (int)(noise >> 28));
            }
        }
}

static int prepare_picture(Work *work, int size, Error *err)
{
    if (work->options->image) {
        work->rgb = image_read_rgb8(work->options->image, &work->width, &work->height, err);
        return work->rgb ? 0 : -1;
    }
    work->width = work->height = size;
    work->rgb = aligned_array((size_t)size * (size_t)size, 3);
    if (!work->rgb)
        return fail_memory(err, "a picture", 3ull * (size_t)size * (size_t)size);
    draw_discs(work->rgb, size);
    return 0;
}

/* ================================================================================================
 * Stages
 * ============================================================================================== */

/* ---- limit.fma ----------------------------------------------------------------------------------------*/

/* A burst takes half a millisecond. Some processors lower their clock under the load of a stage and
 * recover within milliseconds (a Sapphire Rapids: by a tenth within 5 ms after a product). A short burst
 * still sees the clock of the stage. The fastest of BURSTS counts, because any other process can interrupt
 * one. */
enum { BURST_ROUNDS = 300000, BURSTS = 3 };

#ifdef SAMLAD_PLAIN /* the plain form has no instructions of its own; its limit is that of a plain loop */
static const char *instruction_set(void)
{
    return "plain C";
}

static double fma_burst(int rounds, Precision precision)
{
    enum { CHAINS = 12 };
    const int n_threads = thread_team_size();
    (void)precision;
#pragma omp parallel for
    for (int thread = 0; thread < n_threads; thread++) {
        float sum[CHAINS] = {0};
        for (int r = 0; r < rounds; r++)
            for (int i = 0; i < CHAINS; i++)
                sum[i] = sum[i] * 0.999f + 1e-3f;
        for (int i = 0; i < CHAINS; i++) {
            volatile float used = sum[i]; /* so that the sum is computed */
            (void)used;
        }
    }
    return 2e-9 * CHAINS * (double)rounds * n_threads;
}
#endif

static int run_limit(Work *work, Error *err)
{
    (void)err;
    work->gflop = fma_burst(BURST_ROUNDS, work->precision);
    return 0;
}

/* GFLOP/s of multiply-adds in registers, now. */
static double limit_now(Precision precision)
{
    double fastest = 0;
    for (int i = 0; i < BURSTS; i++) {
        double start = clock_seconds(), gflop = fma_burst(BURST_ROUNDS, precision);
        fastest = fmax(fastest, gflop / (clock_seconds() - start));
    }
    return fastest;
}

/* ---- matmul.vit_* : the four products of a transformer block -------------------------------------------*/

enum { N_PRODUCTS = 4 };

static int prepare_matmul(Work *work, Error *err)
{
    const size_t dim = (size_t)work->size, rows = dim == 384 ? 1370 : 4096; /* DINOv2 at 518, SAM at 1024 */
    const float deviation = 1 / sqrtf((float)dim);
    const int n = (int)dim, sizes[N_PRODUCTS][2] = {{3 * n, n}, {n, n}, {4 * n, n}, {n, 4 * n}};
    if (!random_buffer(work, rows * 4 * dim, 0, 1, err) || !new_buffer(work, rows * 4 * dim, err))
        return -1;
    for (int i = 0; i < N_PRODUCTS; i++) {
        const int n_out = sizes[i][0], n_in = sizes[i][1];
        float *weight = random_buffer(work, (size_t)n_out * (size_t)n_in, 0, deviation, err);
        float *bias = weight ? random_buffer(work, (size_t)n_out, 0, 0.02f, err) : NULL;
        work->layers[i] = (Linear){weight, bias, NULL, n_out, n_in};
        if (!bias)
            return -1;
        if (work->precision == PRECISION_BF16) {
            Arena arena = {0};
            linear_pack(&work->layers[i], &arena); /* counts */
            arena = (Arena){(char *)new_buffer(work, arena.used / sizeof(float), err), arena.used, 0};
            if (!arena.base)
                return -1;
            linear_pack(&work->layers[i], &arena);
        }
    }
    work->height = (int)rows;
    work->gflop = 2e-9 * (double)rows * 12 * (double)(dim * dim);
    return 0;
}

static int run_matmul(Work *work, Error *err)
{
    (void)err;
    for (int i = 0; i < N_PRODUCTS; i++)
        linear_layer(work->buffers[1], work->buffers[0], &work->layers[i], work->height);
    return 0;
}

/* ---- sam_vit_b.encoder, mobile_sam.encoder ------------------------------------------------------------*/

static const SamSizes VIT_B = {768, 12, 12, "2,5,8,11"};
/* One windowed and one global block of ViT-H: memory does not depend on the depth. */
static const SamSizes VIT_H_SHORT = {1280, 2, 16, "1"};
/* An encoder that costs next to nothing before the official decoder. */
static const SamSizes SMALL_ENCODER = {64, 1, 1, ""};

/* sizes NULL: MobileSAM. */
static int open_sam(Work *work, const SamSizes *sizes, int blank, Error *err)
{
    if (work->options->sam)
        work->file = weights_open(work->options->sam, err);
    else if (sizes ? bench_model_sam(&work->model, sizes, blank, err)
                   : bench_model_mobile_sam(&work->model, err))
        return -1;
    Safetensors *weights = work->file ? work->file : work->model.weights;
    if (!weights)
        return -1;
    work->sam = sam_open(weights, err);
    if (work->sam && !sam_set_precision(work->sam, work->precision, err))
        work->sam_state = sam_state_new(work->sam, err);
    return work->sam_state ? 0 : -1;
}

static int prepare_image(Work *work, const SamSizes *sizes, Error *err)
{
    if (open_sam(work, sizes, 0, err) || prepare_picture(work, 1024, err))
        return -1;
    work->gflop = 2e-9 * sam_encoder_multiply_adds(work->sam);
    return 0;
}

static int prepare_encoder(Work *work, Error *err)
{
    return prepare_image(work, &VIT_B, err);
}

static int prepare_mobile(Work *work, Error *err)
{
    return prepare_image(work, NULL, err);
}

static int run_encoder(Work *work, Error *err)
{
    sam_image_free(&work->embedding);
    const Picture picture = {work->rgb, work->height, work->width};
    return sam_encode(work->sam, work->sam_state, &work->embedding, &picture, NULL, err);
}

static int dump_encoder(Work *work, Error *err)
{
    const int64_t grid = work->embedding.grid, channels = sam_config(work->sam)->out_chans;
    const char *name = work->precision == PRECISION_BF16 ? "sam.embedding_hwc.bf16" : "sam.embedding_hwc";
    return st_writer_copy(work->dump, name, ST_F32, 3, (int64_t[]){grid, grid, channels},
                          work->embedding.embedding, err);
}

/* ---- sam_vit_b.masks_1024 : automatic masks without the encoder ----------------------------------------*/

/* The official formulation: every prompt projects all image positions. */
static double sam_decoder_gflop(const SamConfig *c)
{
    const double side = c->image_size / c->patch_size, n = side * side, dim = c->out_chans;
    const double inner = dim / c->attention_downsample_rate, tokens = 6 + c->n_multimask - 2.0;
    const double to_image = n * dim * inner * 2 + 2 * n * inner * tokens; /* keys, values; scores, sums */
    double sum = c->decoder_depth * 2 * to_image + to_image;              /* and back: queries, output */
    sum += n * dim * dim + 4 * n * dim * dim / 8 + 16 * n * dim / 8 * (c->n_multimask + 1);
    return 2e-9 * sum;
}

/* Random IoU heads cannot tell good masks from bad. This threshold lets a third of the masks pass, about
 * as many as trained weights do on photos. */
static int third_passes(Work *work, double *threshold, Error *err)
{
    enum { SIDE = 8 };
    const int n_multimask = sam_config(work->sam)->n_multimask;
    float *ious = new_buffer(work, (size_t)(SIDE * SIDE + 1) * (size_t)(n_multimask + 1), err);
    SamDecoder *decoder = ious ? sam_decoder_new(work->sam, &work->embedding, err) : NULL;
    SamScratch *scratch = decoder ? sam_scratch_new(work->sam, 1, 1, err) : NULL;
    int n = 0, status = scratch ? 0 : -1;
    for (int i = 0; !status && i < SIDE * SIDE; i++) {
        const float point[2] = {((float)(i % SIDE) + 0.5f) * (float)work->width / SIDE,
                                ((float)(i / SIDE) + 0.5f) * (float)work->height / SIDE};
        const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (const int[]){1}};
        status = sam_decode_prompts(decoder, scratch, &prompt, 1, ious + n, err);
        memmove(ious + n, ious + n + 1, (size_t)n_multimask * sizeof *ious);
        n += n_multimask;
    }
    if (!status) {
        qsort(ious, (size_t)n, sizeof *ious, compare_floats);
        *threshold = quantile_sorted(ious, n, 2.0 / 3);
    }
    sam_scratch_free(scratch);
    sam_decoder_free(decoder);
    return status;
}

static int prepare_masks(Work *work, Error *err)
{
    const BenchOptions *o = work->options;
    if (open_sam(work, &SMALL_ENCODER, 0, err) || prepare_picture(work, 1024, err))
        return -1;
    amg_defaults(&work->amg);
    if (!isnan(o->stability))
        work->amg.stability_score_thresh = o->stability;
    work->amg.pred_iou_thresh = o->pred_iou;
    if (isnan(o->pred_iou) && (run_encoder(work, err) || third_passes(work, &work->amg.pred_iou_thresh, err)))
        return -1;
    work->gflop =
        work->amg.points_per_side * work->amg.points_per_side * sam_decoder_gflop(sam_config(work->sam));
    return 0;
}

static int run_masks(Work *work, Error *err)
{
    const double start = clock_seconds();
    if (run_encoder(work, err))
        return -1;
    const double encoder = clock_seconds() - start;
    amg_masks_free(&work->masks);
    work->not_counted = 2 * encoder; /* this run, and the one inside amg_generate */
    const Picture picture = {work->rgb, work->height, work->width};
    return amg_generate(work->sam, work->sam_state, &work->masks, &work->amg, &picture, NULL, NULL, err);
}

static int dump_generated(Work *work, Error *err)
{
    const size_t n = work->masks.n;
    float *table = new_buffer(work, 9 * n + 1, err);
    if (!table)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const AmgMask *m = &work->masks.masks[i];
        const float row[9] = {m->bbox[0],         m->bbox[1],         m->bbox[2],
                              m->bbox[3],         (float)m->area,     m->predicted_iou,
                              m->stability_score, (float)m->point[0], (float)m->point[1]};
        memcpy(table + 9 * i, row, sizeof row);
    }
    return st_writer_copy(work->dump, "sam.records", ST_F32, 2, (int64_t[]){(int64_t)n, 9}, table, err);
}

/* ---- sam.prompt : one prompt on an encoded image, as `samlad segment --point` decodes it ---------------*/

static int prepare_prompt(Work *work, Error *err)
{
    if (open_sam(work, &SMALL_ENCODER, 0, err) || prepare_picture(work, 1024, err) || run_encoder(work, err))
        return -1;
    const SamConfig *c = sam_config(work->sam);
    const size_t low_res = 16 * (size_t)work->embedding.grid * (size_t)work->embedding.grid;
    work->gflop = sam_decoder_gflop(c);
    return new_buffer(work, (size_t)c->n_multimask * low_res, err) ? 0 : -1;
}

static int run_prompt(Work *work, Error *err)
{
    const float point[2] = {0.4f * (float)work->width, 0.6f * (float)work->height};
    const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (const int[]){1}};
    float iou[SAM_MAX_MASK_TOKENS];
    return sam_decode(work->sam, &work->embedding, &prompt, 1, work->buffers[0], iou, NULL, err);
}

static int dump_prompt(Work *work, Error *err)
{
    const int64_t side = 4 * work->embedding.grid;
    return st_writer_copy(work->dump, "sam.low_res", ST_F32, 3,
                          (int64_t[]){sam_config(work->sam)->n_multimask, side, side}, work->buffers[0], err);
}

/* ---- sam_vit_h.memory : all that segmenting with ViT-H takes beside its weights -----------------------*/

static int prepare_memory(Work *work, Error *err)
{
    if (open_sam(work, &VIT_H_SHORT, 1, err) || prepare_picture(work, 1024, err))
        return -1;
    amg_defaults(&work->amg);
    work->amg.points_per_side = 4;
    work->amg.pred_iou_thresh = work->amg.stability_score_thresh = 0; /* no mask is rejected */
    work->gflop = 2e-9 * sam_encoder_multiply_adds(work->sam) + 16 * sam_decoder_gflop(sam_config(work->sam));
    return 0;
}

static int run_memory(Work *work, Error *err)
{
    amg_masks_free(&work->masks);
    const Picture picture = {work->rgb, work->height, work->width};
    return amg_generate(work->sam, work->sam_state, &work->masks, &work->amg, &picture, NULL, NULL, err);
}

/* ---- dinov2_s.518 -------------------------------------------------------------------------------------*/

static double vit_gflop(const VitConfig *c, int side)
{
    const double dim = c->dim, patch = c->patch_size, grid = side / c->patch_size;
    const double n = grid * grid + 1 + c->n_registers, ffn = (c->swiglu ? 3.0 : 2.0) * c->hidden_dim;
    return 2e-9 * (grid * grid * dim * 3 * patch * patch + c->depth * n * dim * (4 * dim + ffn + 2 * n));
}

static int prepare_vit(Work *work, Error *err)
{
    const int size = work->size;
    if (work->options->backbone)
        work->file = weights_open(work->options->backbone, err);
    else if (bench_model_dinov2_s(&work->model, err))
        return -1;
    Safetensors *weights = work->file ? work->file : work->model.weights;
    work->vit = weights ? vit_open(weights, err) : NULL;
    if (!work->vit || vit_set_precision(work->vit, work->precision, err) || prepare_picture(work, size, err))
        return -1;
    const VitConfig *c = vit_config(work->vit);
    const size_t grid = (size_t)(size / c->patch_size), side = grid * (size_t)c->patch_size;
    float *pixels = new_buffer(work, 3 * side * side, err);
    float *patches = pixels ? new_buffer(work, (grid * grid + 1) * (size_t)c->dim, err) : NULL;
    work->vit_state = patches ? vit_state_new(work->vit, (int)grid, (int)grid, err) : NULL;
    const Picture picture = {work->rgb, work->height, work->width};
    if (!work->vit_state || vit_preprocess(c, pixels, (int)side, (int)side, &picture, err))
        return -1;
    work->size = (int)side;
    work->gflop = vit_gflop(c, work->size);
    return 0;
}

static int run_vit(Work *work, Error *err)
{
    const VitConfig *c = vit_config(work->vit);
    const VitImage image = {work->buffers[0], work->size, work->size};
    return vit_forward(work->vit, work->vit_state, &image, c->depth, work->buffers[1],
                       work->buffers[1] + c->dim, NULL, NULL, err);
}

static int dump_vit(Work *work, Error *err)
{
    const VitConfig *c = vit_config(work->vit);
    const int64_t grid = work->size / c->patch_size;
    const char *name = work->precision == PRECISION_BF16 ? "vit.tokens.bf16" : "vit.tokens";
    return st_writer_copy(work->dump, name, ST_F32, 2, (int64_t[]){1 + grid * grid, c->dim}, work->buffers[1],
                          err);
}

/* ---- featup.x8 ----------------------------------------------------------------------------------------*/

enum { CHANNELS = 384, FEATUP_SIZE = 448, FEATUP_GRID = FEATUP_SIZE / 14, FEATUP_STAGES = 3 };

static int prepare_featup(Work *work, Error *err)
{
    const size_t n = FEATUP_GRID * FEATUP_GRID, taps = 49, keys = 32;
    if (bench_model_featup(&work->model, err) || !(work->featup = featup_open(work->model.weights, err)))
        return -1;
    if (!random_buffer(work, n * CHANNELS, 0, 1, err) ||
        !random_buffer(work, 3 * FEATUP_SIZE * FEATUP_SIZE, 0, 1, err) ||
        !new_buffer(work, (n * CHANNELS) << 2 * FEATUP_STAGES, err))
        return -1;
    size_t cells = 0;
    for (int stage = 1; stage <= FEATUP_STAGES; stage++)
        cells += n << 2 * stage;
    work->gflop = 2e-9 * (double)(cells * (taps * CHANNELS                      /* weighted sums */
                                           + keys * (3 + keys) + taps * keys    /* range kernel */
                                           + taps * (taps + 3) + taps * taps)); /* fixup */
    return 0;
}

static int run_featup(Work *work, Error *err)
{
    const FeatupInput in = {work->buffers[0], FEATUP_GRID, FEATUP_GRID, CHANNELS,
                            work->buffers[1], FEATUP_SIZE, FEATUP_SIZE};
    return featup_upsample(work->featup, work->buffers[2], &in, FEATUP_STAGES, err);
}

/* ---- amm.k5 -------------------------------------------------------------------------------------------*/

enum { AMM_SIDE = 256, AMM_CELLS = AMM_SIDE * AMM_SIDE, AMM_K = 5, AMM_OBJECTS = 16 };

/* Objects are the 4 × 4 squares of the picture. Each moves a little in every reference. */
static int prepare_amm(Work *work, Error *err)
{
    static int match[AMM_OBJECTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float *coverage = new_buffer(work, (size_t)AMM_OBJECTS * AMM_CELLS, err);
    float *numbers =
        coverage ? new_buffer(work, (size_t)(AMM_K + 1) * 4 * AMM_OBJECTS + CHANNELS, err) : NULL;
    if (!numbers || !new_buffer(work, AMM_CELLS, err) || !new_buffer(work, AMM_CELLS, err))
        return -1;
    memset(coverage, 0, sizeof *coverage * AMM_OBJECTS * AMM_CELLS);
    for (int p = 0; p < AMM_CELLS; p++)
        coverage[p / AMM_SIDE / 64 * 4 * AMM_CELLS + p % AMM_SIDE / 64 * AMM_CELLS + p] = 1;
    float *inverse_std = numbers + (AMM_K + 1) * 4 * AMM_OBJECTS;
    for (int c = 0; c < CHANNELS; c++)
        inverse_std[c] = 1;
    float *features = random_buffer(work, (size_t)AMM_CELLS * CHANNELS, 0, 1, err); /* the query's */
    if (!features)
        return -1;
    for (int r = 0; r <= AMM_K; r++) { /* the last is the query */
        uint16_t *half = r < AMM_K ? random_halves(work, (size_t)AMM_CELLS * CHANNELS, err) : NULL;
        float *centroids = numbers + r * 4 * AMM_OBJECTS, *areas = centroids + 2 * AMM_OBJECTS;
        float *units = areas + AMM_OBJECTS;
        if (r < AMM_K && !half)
            return -1;
        for (int i = 0; i < AMM_OBJECTS; i++) {
            centroids[2 * i] = (float)(i % 4) / 4 + 0.125f + 0.003f * (float)(r * i % 7);
            centroids[2 * i + 1] = (float)(i / 4) / 4 + 0.125f - 0.003f * (float)(r * i % 5);
            areas[i] = 0.0625f + 0.001f * (float)(r * i % 3);
            units[i] = 1;
        }
        const Objects objects = {.n = AMM_OBJECTS,
                                 .grid_h = AMM_SIDE,
                                 .grid_w = AMM_SIDE,
                                 .channels = CHANNELS,
                                 .features = r < AMM_K ? NULL : features,
                                 .features16 = half,
                                 .coverage = coverage,
                                 .centroids = centroids,
                                 .areas = areas,
                                 .units = units};
        if (r < AMM_K)
            work->references[r] = objects, work->matchings[r].match_q = match;
        else
            work->comparison = (Comparison){objects, AMM_K, work->references, work->matchings};
    }
    /* Multiply-adds per cell and channel: k bilinear samples, centring, d, Gram matrix, Xd, residual,
     * norm. Registration is not counted: most places give it up early. */
    work->gflop =
        2e-9 * AMM_CELLS * CHANNELS * (AMM_K * 4 + AMM_K + 1 + AMM_K * (AMM_K + 1) / 2.0 + 2 * AMM_K + 1);
    return 0;
}

static int run_amm(Work *work, Error *err)
{
    const AmmOptions options = {.large_object = 0.15f, .register_reach = 2, .epsilon = 0.01f, .blur = 1};
    float *map = work->buffers[2], *scratch = work->buffers[3];
    const float *inverse_std = work->buffers[1] + (AMM_K + 1) * 4 * AMM_OBJECTS;
    const Comparison *c = &work->comparison;
    Placement places[AMM_OBJECTS * AMM_K];
    amm_places(places, c, inverse_std, &options);
    const AmmInput input = {c, inverse_std, places, c->query.coverage, options.epsilon};
    if (amm_structural(map, &input, err))
        return -1;
    gaussian_blur(map, map, AMM_SIDE, AMM_SIDE, 1, options.blur, scratch);
    return 0;
}

/* ---- retrieve.10000 -----------------------------------------------------------------------------------*/

enum { BANK_IMAGES = 10000 };

static int prepare_retrieval(Work *work, Error *err)
{
    float *query = random_buffer(work, CHANNELS, 0, 1, err);
    float *means = query ? random_buffer(work, (size_t)BANK_IMAGES * CHANNELS, 0, 1, err) : NULL;
    if (!means)
        return -1;
    l2_normalise(query, 1, CHANNELS, 1e-12f);
    l2_normalise(means, BANK_IMAGES, CHANNELS, 1e-12f);
    work->bank.n_images = BANK_IMAGES;
    work->bank.channels = CHANNELS;
    work->bank.mean_patch = means;
    work->gflop = 2e-9 * BANK_IMAGES * CHANNELS;
    return 0;
}

static int run_retrieval(Work *work, Error *err)
{
    int found[5];
    const Scene scene = {.mean_patch = work->buffers[0]};
    return bank_retrieve(&work->bank, &scene, 5, -1, found, err) == 5 ? 0 : -1;
}

static const Stage STAGES[] = {
    {"limit.fma", "multiply-adds in registers", 0, run_limit, run_limit, NULL, 0, PRECISION_FP32},
    {"limit.bf16", "the same, of pairs of bf16", 0, run_limit, run_limit, NULL, 0, PRECISION_BF16},
    {"matmul.vit_s", "a block's products, 1370 x 384", 384, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_FP32},
    {"matmul.vit_s.bf16", "a block's products, 1370 x 384, bf16", 384, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_BF16},
    {"matmul.vit_b", "a block's products, 4096 x 768", 768, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_FP32},
    {"matmul.vit_b.bf16", "a block's products, 4096 x 768, bf16", 768, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_BF16},
    {"matmul.vit_l", "a block's products, 4096 x 1024", 1024, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_FP32},
    {"matmul.vit_l.bf16", "a block's products, 4096 x 1024, bf16", 1024, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_BF16},
    {"matmul.vit_h", "a block's products, 4096 x 1280", 1280, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_FP32},
    {"matmul.vit_h.bf16", "a block's products, 4096 x 1280, bf16", 1280, prepare_matmul, run_matmul, NULL, 0,
     PRECISION_BF16},
    {"sam_vit_b.encoder", "image encoder, 1024 x 1024", 0, prepare_encoder, run_encoder, dump_encoder, 0,
     PRECISION_FP32},
    {"sam_vit_b.encoder.bf16", "image encoder, 1024 x 1024, bf16", 0, prepare_encoder, run_encoder,
     dump_encoder, 0, PRECISION_BF16},
    {"mobile_sam.encoder", "MobileSAM's image encoder, 1024 x 1024", 0, prepare_mobile, run_encoder,
     dump_encoder, 0, PRECISION_FP32},
    {"mobile_sam.encoder.bf16", "MobileSAM's image encoder, 1024 x 1024, bf16", 0, prepare_mobile,
     run_encoder, dump_encoder, 0, PRECISION_BF16},
    {"sam_vit_b.masks_1024", "automatic masks, 32 x 32 points, without the encoder", 0, prepare_masks,
     run_masks, dump_generated, 0, PRECISION_FP32},
    {"sam.prompt", "one point on an encoded image, 3 masks", 0, prepare_prompt, run_prompt, dump_prompt, 0,
     PRECISION_FP32},
    {"sam_vit_h.memory", "2 of 32 blocks, 16 points; peak without weights", 0, prepare_memory, run_memory,
     NULL, 1, PRECISION_FP32},
    {"dinov2_s.518", "ViT-S/14, 518 x 518", 518, prepare_vit, run_vit, dump_vit, 0, PRECISION_FP32},
    {"dinov2_s.518.bf16", "ViT-S/14, 518 x 518, bf16", 518, prepare_vit, run_vit, dump_vit, 0,
     PRECISION_BF16},
    {"featup.x8", "448 x 448, 384 channels", 0, prepare_featup, run_featup, NULL, 0, PRECISION_FP32},
    {"amm.k5", "256 x 256 cells, 384 channels, 5 references", 0, prepare_amm, run_amm, NULL, 0,
     PRECISION_FP32},
    {"retrieve.10000", "5 nearest of 10,000 images", 0, prepare_retrieval, run_retrieval, NULL, 0,
     PRECISION_FP32},
};
enum { N_STAGES = sizeof STAGES / sizeof *STAGES };

/* ================================================================================================
 * Measuring
 * ============================================================================================== */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

static int enough(const BenchOptions *o, const Stage *stage, int runs, double spent)
{
    if (stage->once || o->runs)
        return runs >= (stage->once ? 1 : o->runs);
    return runs >= MAX_RUNS || (runs >= 3 && spent >= 2);
}

/* Run a prepared stage several times, each run between two measurements of the limit. */
static int measure_runs(Work *work, const Stage *stage, Result *result, Error *err)
{
    double seconds[MAX_RUNS], percents[MAX_RUNS], spent = 0, before = limit_now(stage->precision);
    const long faults = page_faults();
    int n = 0;
    while (!enough(work->options, stage, n, spent)) {
        work->not_counted = 0;
        const double start = clock_seconds();
        if (stage->run(work, err))
            return -1;
        seconds[n] = clock_seconds() - start - work->not_counted;
        const double after = limit_now(stage->precision);
        percents[n] = 100 * work->gflop / seconds[n] / ((before + after) / 2);
        before = after;
        spent += seconds[n++];
    }
    result->faults = (page_faults() - faults + n / 2) / n;
    result->runs = n;
    result->gflop = work->gflop;
    result->seconds = median(seconds, n);
    result->gflops = work->gflop / result->seconds;
    result->percent = stage->run == run_limit ? 100 : median(percents, n);
    return 0;
}

static int measure(const BenchOptions *options, StWriter *dump, const Stage *stage, Result *result,
                   Error *err)
{
    Work *work = calloc(1, sizeof *work);
    if (!work)
        return fail_memory(err, "a benchmark", sizeof *work);
    work->options = options;
    work->dump = dump;
    work->size = stage->parameter;
    work->precision = stage->precision;
    *result = (Result){.stage = stage};
    forget_peak();
    int status = stage->prepare(work, err);
    if (!status)
        status = stage->run(work, err); /* touches the memory and warms the caches */
    if (!status)
        status = measure_runs(work, stage, result, err);
    result->peak_mb = peak_mb();
    if (!status && dump && stage->dump)
        status = stage->dump(work, err);
    work_free(work);
    free(work);
    return status;
}

/* ================================================================================================
 * The command
 * ============================================================================================== */

static const char HELP[] =
    "usage: samlad bench [options]\n"
    "\n"
    "Measure the speed of each stage on this machine, beside the machine's own limit.\n"
    "Random weights of the published sizes are made in memory; no files are needed. Each stage runs once to\n"
    "warm up, then at least three times. The table shows medians. The limit is the speed of multiply-adds "
    "in\n"
    "registers, on as many threads, timed between the runs. OMP_NUM_THREADS=1 samlad bench measures one "
    "core.\n"
    "\n"
    "  --only NAME       this stage, or all stages that begin with NAME (may be given several times)\n"
    "  --runs N          exactly N runs of each (1 to 100)\n"
    "  --json            an array of objects: name, seconds, gflop, gflops, percent_of_limit, peak_mb,\n"
    "                    page_faults (of one run), runs\n"
    "  --sam FILE        SAM's weights instead of random ones\n"
    "  --backbone FILE   the ViT's weights instead of random ones\n"
    "  --image FILE      a picture instead of the drawn one\n"
    "  --pred-iou-thresh X, --stability-score-thresh X\n"
    "                    of masks_1024; by default the first lets a third of the masks pass\n"
    "  --dump FILE       write the last results as safetensors, to compare them with other programs'\n"
    "\n"
    "GFLOP counts two for a multiply-add of the stage's definition. masks_1024 and sam.prompt count the\n"
    "official formulation. samlad computes only a part of it, and so may pass the limit.\n"
    "Stages:\n";

static void print_help(void)
{
    fputs(HELP, stdout);
    for (int i = 0; i < N_STAGES; i++)
        printf("  %-22s %s\n", STAGES[i].name, STAGES[i].what);
}

static int usage(const char *format, const char *what)
{
    return usage_error("bench", format, what);
}

static int begins_with(const char *name, const char *beginning)
{
    return strncmp(name, beginning, strlen(beginning)) == 0;
}

static int take_only(BenchOptions *o, const char *value)
{
    int known = 0;
    for (int i = 0; i < N_STAGES; i++)
        known |= begins_with(STAGES[i].name, value);
    if (!known || o->n_only == MAX_ONLY)
        return usage("no stage begins with '%s'", value);
    o->only[o->n_only++] = value;
    return 0;
}

static int take_number(double *into, const char *name, const char *value, double min, double max)
{
    char *end;
    *into = strtod(value, &end);
    return end == value || *end || !(*into >= min && *into <= max) ? usage("%s is out of range", name) : 0;
}

static int take_option(BenchOptions *o, const char *name, const char *value)
{
    double runs = 0;
    int status = 0;
    if (strcmp(name, "--only") == 0)
        status = take_only(o, value);
    else if (strcmp(name, "--runs") == 0)
        status = take_number(&runs, name, value, 1, MAX_RUNS), o->runs = (int)runs;
    else if (strcmp(name, "--pred-iou-thresh") == 0)
        status = take_number(&o->pred_iou, name, value, -1e3, 1e3);
    else if (strcmp(name, "--stability-score-thresh") == 0)
        status = take_number(&o->stability, name, value, 0, 1);
    else if (strcmp(name, "--sam") == 0)
        o->sam = value;
    else if (strcmp(name, "--backbone") == 0)
        o->backbone = value;
    else if (strcmp(name, "--image") == 0)
        o->image = value;
    else if (strcmp(name, "--dump") == 0)
        o->dump = value;
    else
        status = usage("there is no option %s", name);
    return status;
}

static int parse(BenchOptions *o, int argc, char **argv)
{
    *o = (BenchOptions){.pred_iou = NAN, .stability = NAN};
    for (int i = 0; i < argc; i++) {
        char name[64];
        const char *equals = strchr(argv[i], '=');
        if (strcmp(argv[i], "--json") == 0) {
            o->json = 1;
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - argv[i] : (long)strlen(argv[i])),
                 argv[i]);
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            return usage(begins_with(name, "--") ? "%s needs a value" : "there is no argument '%s'", name);
        int status = take_option(o, name, value);
        if (status)
            return status;
    }
    return 0;
}

static int is_name(const char *text)
{
    for (int i = 0; i < N_STAGES; i++)
        if (strcmp(STAGES[i].name, text) == 0)
            return 1;
    return 0;
}

/* A whole name selects that stage alone, even if other names begin with it. */
static int is_wanted(const BenchOptions *o, const Stage *stage)
{
    for (int i = 0; i < o->n_only; i++)
        if (is_name(o->only[i]) ? strcmp(stage->name, o->only[i]) == 0 : begins_with(stage->name, o->only[i]))
            return 1;
    return o->n_only == 0;
}

static void print_row(const Result *r)
{
    printf("%-22s %10.4f %9.2f %9.1f %7.1f %% %8.0f %8ld %5d  %s\n", r->stage->name, r->seconds, r->gflop,
           r->gflops, r->percent, r->peak_mb, r->faults, r->runs, r->stage->what);
    fflush(stdout);
}

static void print_json(const Result *results, int n)
{
    JsonWriter w;
    json_begin(&w);
    json_open(&w, '[');
    for (int i = 0; i < n; i++) {
        const Result *r = &results[i];
        json_open(&w, '{');
        json_key(&w, "name"), json_string(&w, r->stage->name);
        json_key(&w, "seconds"), json_number(&w, r->seconds);
        json_key(&w, "gflop"), json_number(&w, r->gflop);
        json_key(&w, "gflops"), json_number(&w, r->gflops);
        json_key(&w, "percent_of_limit"), json_number(&w, r->percent);
        json_key(&w, "peak_mb"), json_number(&w, r->peak_mb);
        json_key(&w, "page_faults"), json_int(&w, r->faults);
        json_key(&w, "runs"), json_int(&w, r->runs);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    printf("%s\n", w.failed ? "[]" : w.text);
    json_end(&w);
}

static void print_head(void)
{
    char machine[128];
    machine_name(machine, sizeof machine);
    printf("%s, %d threads, %s; medians of the runs\n", machine, thread_max(), instruction_set());
    printf("%-22s %10s %9s %9s %9s %8s %8s %5s\n", "stage", "seconds", "GFLOP", "GFLOP/s", "of limit",
           "peak MB", "faults", "runs");
}

static int run_stages(const BenchOptions *o, StWriter *dump, Error *err)
{
    Result results[N_STAGES];
    int n = 0;
    if (!o->json)
        print_head();
    for (int i = 0; i < N_STAGES; i++) {
        if (!is_wanted(o, &STAGES[i]))
            continue;
        const int progress = isatty(STDERR_FILENO);
        if (progress)
            fprintf(stderr, "%s ...", STAGES[i].name);
        int status = measure(o, dump, &STAGES[i], &results[n], err);
        if (progress)
            fprintf(stderr, "\r\033[K");
        if (status)
            return -1;
        if (!o->json)
            print_row(&results[n]);
        n++;
    }
    if (o->json)
        print_json(results, n);
    return 0;
}

int bench_command(int argc, char **argv)
{
    BenchOptions options;
    Error err;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help();
            return EXIT_SUCCESS;
        }
    int status = parse(&options, argc, argv);
    if (status)
        return status;
    StWriter *dump = options.dump ? st_writer_new() : NULL;
    if (options.dump && !dump)
        status = fail_memory(&err, "the dump", 0);
    if (!status)
        status = run_stages(&options, dump, &err);
    if (!status && dump)
        status = st_writer_save(dump, options.dump, &err);
    st_writer_free(dump);
    return status ? failed(&err) : EXIT_SUCCESS;
}
