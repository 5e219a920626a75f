/* eval/metrics.c - see metrics.h. Every number comes from one walk down the scores, from the highest to
 * the lowest. The walk stops once at every distinct score, and calls everything of this score anomalous
 * from there on. For images the walk is over a sorted array. Pixels are too many for memory: there it is
 * over the merge of sorted files. */
#include "eval/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/fail.h"
#include "io/file.h"

const double spro_limits[SPRO_LIMITS] = {0.01, 0.05, 0.1, 0.3, 1};

/* The bits of a float, changed so that unsigned order is the reverse order of the numbers: the highest
 * score has the smallest key. -0 is 0. */
static uint32_t descending_key(float score)
{
    uint32_t bits;
    score = score == 0 ? 0 : score;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static float key_score(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key : ~key & 0x7fffffffu;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* A sum of many terms without loss to rounding (Kahan). */
typedef struct Sum {
    double value, lost;
} Sum;

static void add(Sum *sum, double term)
{
    double corrected = term - sum->lost, value = sum->value + corrected;
    sum->lost = (value - sum->value) - corrected;
    sum->value = value;
}

/* ================================================================================================
 * The walk: ROC, precision and F1
 * ============================================================================================== */

typedef struct Walk {
    double n_positive;
    double fp, tp; /* called anomalous so far. */
    Sum ordered;   /* pairs of a positive above a negative, ties half. */
    Sum precision; /* at each positive */
    double best_f1;
    uint32_t best_key;
} Walk;

static void walk_step(Walk *walk, uint32_t key, double n_negative, double n_positive)
{
    add(&walk->ordered, n_negative * (walk->tp + n_positive / 2));
    walk->fp += n_negative;
    walk->tp += n_positive;
    if (n_positive == 0) /* recall stays and precision falls: no gain. */
        return;
    add(&walk->precision, n_positive * (walk->tp / (walk->tp + walk->fp)));
    double f1 = 2 * walk->tp / (walk->tp + walk->fp + walk->n_positive);
    if (f1 > walk->best_f1) {
        walk->best_f1 = f1;
        walk->best_key = key;
    }
}

static void walk_end(const Walk *walk, RankMetrics *m)
{
    double n = (double)m->n_negative, p = (double)m->n_positive;
    m->auroc = n > 0 && p > 0 ? walk->ordered.value / (n * p) : NAN;
    m->average_precision = p > 0 ? walk->precision.value / p : NAN;
    m->best_f1 = p > 0 ? walk->best_f1 : NAN;
    m->best_f1_threshold = p > 0 ? key_score(walk->best_key) : NAN;
}

/* ================================================================================================
 * Images
 * ============================================================================================== */

/* A key in the upper half, its payload in the lower. */
static uint64_t record(uint32_t key, uint32_t what)
{
    return (uint64_t)key << 32 | what;
}

static int by_record(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int rank_metrics(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
                 RankMetrics *metrics, Error *err)
{
    size_t n = n_negatives + n_positives;
    uint64_t *all = malloc((n + 1) * sizeof *all);
    if (!all)
        return fail_memory(err, "the scores' order", (n + 1) * sizeof *all);
    for (size_t i = 0; i < n; i++) {
        int positive = i >= n_negatives;
        float score = positive ? positives[i - n_negatives] : negatives[i];
        if (isnan(score)) {
            free(all);
            return fail(err, "the score of %s image %zu is not a number", positive ? "anomalous" : "good",
                        positive ? i - n_negatives : i);
        }
        all[i] = record(descending_key(score), (uint32_t)positive);
    }
    qsort(all, n, sizeof *all, by_record);
    Walk walk = {.n_positive = (double)n_positives};
    for (size_t i = 0; i < n;) {
        uint32_t key = (uint32_t)(all[i] >> 32);
        double count[2] = {0, 0};
        for (; i < n && (uint32_t)(all[i] >> 32) == key; i++)
            count[all[i] & 1]++;
        walk_step(&walk, key, count[0], count[1]);
    }
    free(all);
    *metrics = (RankMetrics){.n_negative = n_negatives, .n_positive = n_positives};
    walk_end(&walk, metrics);
    return 0;
}

double auroc(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
             Error *err)
{
    RankMetrics metrics;
    return rank_metrics(negatives, n_negatives, positives, n_positives, &metrics, err) ? NAN : metrics.auroc;
}

/* ================================================================================================
 * Pixels, first half: each image becomes two sorted runs in the scratch file
 * ============================================================================================== */

/* Normal pixels are keys of 4 bytes. An anomalous pixel is a record of 8 bytes for each of its regions.
 * The lower half holds the region's number, and AGAIN when another region's record has counted the pixel. */
enum { AGAIN = 1 << 30, MAX_REGIONS = AGAIN };

typedef struct Run {
    uint64_t offset, n; /* place in the file, and number of keys or records. */
    int group, marks;   /* marks: of anomalous pixels. */
} Run;

struct PixelScores {
    int file;
    uint64_t file_size;
    size_t n_runs, run_capacity;
    Run *runs;
    size_t n_regions, region_capacity;
    uint32_t *saturation;                                   /* [n_regions] */
    uint64_t images[PIXEL_GROUPS], regions[PIXEL_GROUPS];   /* images, by group */
    uint64_t normal[PIXEL_GROUPS], anomalous[PIXEL_GROUPS]; /* pixels */
};

/* Open a file without a name, which disappears with the process. For a moment it has a random name, so
 * that threads and processes do not collide. It is a temporary name, so that dir_sweep removes it after a
 * kill. -1 after a sentence. */
static int scratch_file(const char *dir, Error *err)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/scores.XXXXXX", dir) >= (int)sizeof path)
        return fail(err, "%s: the path is too long", dir);
    char *name = temporary_name(path);
    if (!name)
        return fail_memory(err, path, strlen(path));
    int file = mkstemps(name, (int)(strlen(name) - strlen(path)));
    if (file < 0)
        fail(err, "%s: a scratch file cannot be made here: %s", dir, strerror(errno));
    else
        unlink(name);
    free(name);
    return file;
}

PixelScores *pixel_scores_new(const char *scratch_dir, Error *err)
{
    if (!scratch_dir)
        scratch_dir = getenv("TMPDIR") && *getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    PixelScores *scores = calloc(1, sizeof *scores);
    if (!scores) {
        fail_memory(err, "the pixels' scores", sizeof *scores);
        return NULL;
    }
    scores->file = scratch_file(scratch_dir, err);
    if (scores->file >= 0)
        return scores;
    free(scores);
    return NULL;
}

void pixel_scores_free(PixelScores *scores)
{
    if (!scores)
        return;
    close(scores->file);
    free(scores->runs), free(scores->saturation);
    free(scores);
}

/* Sort records by key (radix, 11 bits at a time from below). Returns the array that holds them: `records`
 * or `spare`. */
static uint64_t *sort_by_key(uint64_t *records, uint64_t *spare, size_t n)
{
    enum { BITS = 11, BUCKETS = 1 << BITS };
    for (int shift = 32; shift < 64; shift += BITS) {
        size_t start[BUCKETS] = {0}, sum = 0;
        for (size_t i = 0; i < n; i++)
            start[records[i] >> shift & (BUCKETS - 1)]++;
        for (int b = 0; b < BUCKETS; b++) {
            size_t count = start[b];
            start[b] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++)
            spare[start[records[i] >> shift & (BUCKETS - 1)]++] = records[i];
        uint64_t *swap = records;
        records = spare;
        spare = swap;
    }
    return records;
}

static int write_run(PixelScores *s, const void *bytes, size_t n, size_t size, int group, int marks,
                     Error *err)
{
    if (n == 0)
        return 0;
    if (s->n_runs == s->run_capacity) {
        size_t wanted = s->run_capacity ? 2 * s->run_capacity : 64;
        Run *more = realloc(s->runs, wanted * sizeof *more);
        if (!more)
            return fail_memory(err, "the pixels' scores", wanted * sizeof *more);
        s->runs = more;
        s->run_capacity = wanted;
    }
    s->runs[s->n_runs++] = (Run){s->file_size, n, group, marks};
    const char *p = bytes;
    for (size_t left = n * size; left > 0;) {
        ssize_t written = pwrite(s->file, p, left, (off_t)s->file_size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return fail(err, "the scratch file of the pixels' scores cannot be written: %s", strerror(errno));
        p += written;
        left -= (size_t)written;
        s->file_size += (uint64_t)written;
    }
    return 0;
}

static int add_normal_run(PixelScores *s, int group, const float *map, size_t n, const Truth *truth,
                          uint64_t *records, uint64_t *spare, Error *err)
{
    size_t m = 0;
    for (size_t p = 0; p < n; p++)
        if (!truth || !truth->anomalous[p])
            records[m++] = record(descending_key(map[p]), 0);
    uint64_t *sorted = sort_by_key(records, spare, m);
    uint32_t *keys = (uint32_t *)(sorted == records ? spare : records);
    for (size_t i = 0; i < m; i++)
        keys[i] = (uint32_t)(sorted[i] >> 32);
    s->normal[group] += m;
    return write_run(s, keys, m, sizeof *keys, group, 0, err);
}

static int add_marked_run(PixelScores *s, int group, const float *map, const Truth *truth, uint64_t *records,
                          uint64_t *spare, Error *err)
{
    for (size_t i = 0; i < truth->n_marks; i++) {
        const TruthMark *mark = &truth->marks[i];
        records[i] = record(descending_key(map[mark->pixel]),
                            (uint32_t)(s->n_regions + mark->region) | (mark->again ? AGAIN : 0));
    }
    s->anomalous[group] += truth->n_anomalous;
    return write_run(s, sort_by_key(records, spare, truth->n_marks), truth->n_marks, sizeof *records, group,
                     1, err);
}

/* Append the image's regions to the list of all. Call it after the run is written, which counts from the
 * old end. */
static int add_regions(PixelScores *s, int group, const Truth *truth, Error *err)
{
    size_t n = s->n_regions + truth->n_regions;
    if (n > s->region_capacity) {
        uint32_t *more = realloc(s->saturation, 2 * n * sizeof *more);
        if (!more)
            return fail_memory(err, "the regions", 2 * n * sizeof *more);
        s->saturation = more;
        s->region_capacity = 2 * n;
    }
    if (truth->n_regions)
        memcpy(s->saturation + s->n_regions, truth->saturation, truth->n_regions * sizeof *s->saturation);
    s->n_regions = n;
    s->regions[group] += truth->n_regions;
    return 0;
}

static int check_image(const PixelScores *s, int group, const float *map, int width, int height,
                       const Truth *truth, const char *name, Error *err)
{
    if (group < 0 || group >= PIXEL_GROUPS || width < 1 || height < 1)
        return fail(err, "%s: a map of %dx%d in group %d is impossible", name, width, height, group);
    if (truth && (truth->width != width || truth->height != height))
        return fail(err, "%s: the map is %dx%d, its ground truth %dx%d", name, width, height, truth->width,
                    truth->height);
    if (truth && truth->n_regions > MAX_REGIONS - s->n_regions)
        return fail(err, "%s: more than %d regions", name, MAX_REGIONS);
    for (size_t p = 0; p < (size_t)width * (size_t)height; p++)
        if (isnan(map[p]))
            return fail(err, "%s: the score at x %zu, y %zu is not a number", name, p % (size_t)width,
                        p / (size_t)width);
    return 0;
}

int pixel_scores_add(PixelScores *scores, int group, const float *map, int width, int height,
                     const Truth *truth, const char *name, Error *err)
{
    if (check_image(scores, group, map, width, height, truth, name, err))
        return -1;
    size_t n = (size_t)width * (size_t)height, most = truth && truth->n_marks > n ? truth->n_marks : n;
    uint64_t *records = malloc(2 * most * sizeof *records);
    if (!records)
        return fail_memory(err, "a map's scores in order", 2 * most * sizeof *records);
    int status = add_normal_run(scores, group, map, n, truth, records, records + most, err);
    if (!status && truth)
        status = add_marked_run(scores, group, map, truth, records, records + most, err);
    if (!status && truth)
        status = add_regions(scores, group, truth, err);
    scores->images[group] += !status;
    free(records);
    return status;
}

/* ================================================================================================
 * Pixels, second half: the runs are merged, and the walk goes down the merge
 * ============================================================================================== */

/* The curve of mean region overlap over the false positive rate, and the area under it up to each limit. */
typedef struct Curve {
    double x, y; /* its end so far. */
    Sum area[SPRO_LIMITS];
} Curve;

/* Draw a straight line to (x, y). */
static void curve_to(Curve *c, double x, double y)
{
    for (int i = 0; i < SPRO_LIMITS; i++) {
        double limit = spro_limits[i];
        if (x <= limit)
            add(&c->area[i], (x - c->x) * (y + c->y) / 2);
        else if (c->x < limit) {
            double at_limit = c->y + (y - c->y) * (limit - c->x) / (x - c->x);
            add(&c->area[i], (limit - c->x) * (at_limit + c->y) / 2);
        }
    }
    c->x = x;
    c->y = y;
}

/* A run while it is read. Its next records are the bytes [begin, end) of the buffer. */
typedef struct Reader {
    Run run; /* the rest in the file. */
    unsigned char *buffer;
    size_t begin, end;
} Reader;

typedef struct Merge {
    int file;
    size_t n_readers;
    Reader *readers;
    size_t buffer_size;
    unsigned char *buffers; /* [n_readers][buffer_size] */
    size_t heap_size;
    uint64_t
        *heap; /* [n_readers] record(next key, reader), the smallest first, children of i at 2i+1, 2i+2. */
    uint32_t *found; /* [n_regions] pixels called anomalous so far. */
} Merge;

static size_t run_item(const Run *run)
{
    return run->marks ? sizeof(uint64_t) : sizeof(uint32_t);
}

/* Fill the reader's empty buffer. 1: it has records; 0: the run is at its end; -1. */
static int refill(Merge *m, Reader *r, Error *err)
{
    size_t item = run_item(&r->run), wanted = m->buffer_size / item;
    if (wanted > r->run.n)
        wanted = (size_t)r->run.n;
    r->begin = r->end = 0;
    while (r->end < wanted * item) {
        ssize_t got =
            pread(m->file, r->buffer + r->end, wanted * item - r->end, (off_t)(r->run.offset + r->end));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail(err, "the scratch file of the pixels' scores cannot be read: %s",
                        got < 0 ? strerror(errno) : "it is too short");
        r->end += (size_t)got;
    }
    r->run.offset += r->end;
    r->run.n -= wanted;
    return wanted > 0;
}

static uint32_t next_key(const Reader *r)
{
    uint64_t marked;
    uint32_t key;
    if (!r->run.marks) {
        memcpy(&key, r->buffer + r->begin, sizeof key);
        return key;
    }
    memcpy(&marked, r->buffer + r->begin, sizeof marked);
    return (uint32_t)(marked >> 32);
}

/* heap[i] has grown: sift it down. */
static void sink(uint64_t *heap, size_t n, size_t i)
{
    uint64_t value = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= value)
            break;
        heap[i] = heap[child];
    }
    heap[i] = value;
}

static int merge_open(Merge *m, const PixelScores *s, uint32_t groups, Error *err)
{
    enum { ALL_BUFFERS = 32 << 20, LEAST_BUFFER = 4 << 10, MOST_BUFFER = 256 << 10 };
    *m = (Merge){.file = s->file};
    for (size_t i = 0; i < s->n_runs; i++)
        m->n_readers += groups >> s->runs[i].group & 1;
    m->buffer_size = ALL_BUFFERS / (m->n_readers + 1) / 8 * 8;
    m->buffer_size = m->buffer_size < LEAST_BUFFER  ? LEAST_BUFFER
                     : m->buffer_size > MOST_BUFFER ? MOST_BUFFER
                                                    : m->buffer_size;
    m->readers = calloc(m->n_readers + 1, sizeof *m->readers);
    m->buffers = malloc((m->n_readers + 1) * m->buffer_size);
    m->heap = malloc((m->n_readers + 1) * sizeof *m->heap);
    m->found = calloc(s->n_regions + 1, sizeof *m->found);
    if (!m->readers || !m->buffers || !m->heap || !m->found)
        return fail_memory(err, "the merge of the pixels' scores",
                           (m->n_readers + 1) * m->buffer_size + s->n_regions * sizeof *m->found);
    for (size_t i = 0; i < s->n_runs; i++) {
        if (!(groups >> s->runs[i].group & 1))
            continue;
        Reader *r = &m->readers[m->heap_size];
        *r = (Reader){.run = s->runs[i], .buffer = m->buffers + m->heap_size * m->buffer_size};
        if (refill(m, r, err) < 0)
            return -1;
        m->heap[m->heap_size] = record(next_key(r), (uint32_t)m->heap_size);
        m->heap_size++;
    }
    for (size_t i = m->heap_size / 2; i-- > 0;)
        sink(m->heap, m->heap_size, i);
    return 0;
}

static void merge_close(Merge *m)
{
    free(m->readers), free(m->buffers), free(m->heap), free(m->found);
}

/* One step of the walk: all pixels of one score. */
typedef struct Step {
    uint32_t key;
    double n_negative, n_positive;
    Sum overlap; /* sum over regions of min(found / saturation, 1); goes on from step to step. */
    int marked;  /* some region grew */
} Step;

/* Take all of the reader's next items that have the step's key. */
static int take_equal(Merge *m, Reader *r, const PixelScores *s, Step *step, Error *err)
{
    size_t item = run_item(&r->run);
    do {
        for (; r->begin < r->end; r->begin += item) {
            if (next_key(r) != step->key)
                return 1;
            if (!r->run.marks) {
                step->n_negative++;
                continue;
            }
            uint64_t marked;
            memcpy(&marked, r->buffer + r->begin, sizeof marked);
            uint32_t region = (uint32_t)marked & (AGAIN - 1);
            step->n_positive += !(marked & AGAIN);
            step->marked = 1;
            if (m->found[region]++ < s->saturation[region])
                add(&step->overlap, 1.0 / s->saturation[region]);
        }
        int more = refill(m, r, err);
        if (more <= 0)
            return more;
    } while (1);
}

/* The next distinct score. 1: there was one, 0: all is merged, -1. */
static int merge_step(Merge *m, const PixelScores *s, Step *step, Error *err)
{
    if (m->heap_size == 0)
        return 0;
    step->key = (uint32_t)(m->heap[0] >> 32);
    step->n_negative = step->n_positive = 0;
    step->marked = 0;
    while (m->heap_size > 0 && (uint32_t)(m->heap[0] >> 32) == step->key) {
        uint32_t reader = (uint32_t)m->heap[0];
        int more = take_equal(m, &m->readers[reader], s, step, err);
        if (more < 0)
            return -1;
        m->heap[0] = more ? record(next_key(&m->readers[reader]), reader) : m->heap[--m->heap_size];
        if (m->heap_size > 0)
            sink(m->heap, m->heap_size, 0);
    }
    return 1;
}

int pixel_scores_measure(PixelScores *scores, uint32_t groups, PixelMetrics *metrics, Error *err)
{
    PixelMetrics out = {0};
    for (int g = 0; g < PIXEL_GROUPS; g++)
        if (groups >> g & 1) {
            out.n_images += scores->images[g];
            out.n_regions += scores->regions[g];
            out.pixels.n_negative += scores->normal[g];
            out.pixels.n_positive += scores->anomalous[g];
        }
    double n_negative = (double)out.pixels.n_negative, n_regions = (double)out.n_regions;
    Merge merge;
    Walk walk = {.n_positive = (double)out.pixels.n_positive};
    Curve curve = {0};
    Step step = {0};
    int status = merge_open(&merge, scores, groups, err) ? -1 : 1;
    while (status > 0 && (status = merge_step(&merge, scores, &step, err)) > 0) {
        double fp_before = walk.fp;
        walk_step(&walk, step.key, step.n_negative, step.n_positive);
        if (!step.marked || n_negative == 0) /* the curve stays flat, and becomes one line when it rises. */
            continue;
        curve_to(&curve, fp_before / n_negative, curve.y);
        curve_to(&curve, walk.fp / n_negative, fmin(step.overlap.value / n_regions, 1));
    }
    merge_close(&merge);
    if (status < 0)
        return -1;
    curve_to(&curve, 1, curve.y);
    walk_end(&walk, &out.pixels);
    for (int i = 0; i < SPRO_LIMITS; i++)
        out.au_spro[i] = n_regions > 0 && n_negative > 0 ? curve.area[i].value / spro_limits[i] : NAN;
    *metrics = out;
    return 0;
}
