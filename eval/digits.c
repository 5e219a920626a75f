/* eval/digits.c - DigitAnatomy, the paper's own data set, from MNIST (docs/METHOD.md 10; declared in
 * synth.h).
 *
 * An image is 96 x 96 grey: 3 x 3 MNIST digits, 1 to 9 in order, each a random resized crop. Anomalies are
 * missing, disordered or flipped cells, or a zero among them. Normal images for the bank come from MNIST's
 * training split, all test images from its test split. The paper's own test set is not public; this is one
 * like it. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/fail.h"
#include "tensor.h"
#include "eval/draw.h"
#include "eval/synth.h"

enum { DIGIT = 28, CELL = 32, GRID = 3, SHEET = GRID * CELL };

/* One split of MNIST: images [n][28][28] and, for each digit, the indices of its images. */
typedef struct {
    uint8_t *file; /* the whole file of images; the pixels begin after 16 bytes. */
    size_t n;
    uint32_t *index[10];
    size_t count[10];
} Mnist;

static void mnist_free(Mnist *m)
{
    free(m->file);
    for (int d = 0; d < 10; d++)
        free(m->index[d]);
    memset(m, 0, sizeof *m);
}

static uint32_t big_endian(const uint8_t *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* Read a whole idx file of bytes, plain or .gz: [n] items of item_size bytes behind a header of
 * header_size. */
static uint8_t *idx_read(const char *dir, const char *name, uint32_t magic, size_t item_size,
                         size_t header_size, size_t *n_items, Error *err)
{
    enum { MAX_IDX = 1 << 28 };
    char path[PATH_MAX];
    size_t n = 0, n_out = 0;
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (length < 0 || (size_t)length >= sizeof path - 4) {
        fail(err, "%s: the path is too long", dir);
        return NULL;
    }
    int packed = !file_exists(path);
    if (packed)
        strcat(path, ".gz");
    if (packed && !file_exists(path)) {
        fail(err, "%s: holds neither %s nor %s.gz (MNIST's idx files)", dir, name, name);
        return NULL;
    }
    uint8_t *bytes = file_read(path, MAX_IDX, &n, err);
    if (bytes && packed) {
        uint8_t *plain = gzip_inflate(bytes, n, MAX_IDX, &n_out, path, err);
        free(bytes);
        bytes = plain;
        n = n_out;
    }
    if (!bytes)
        return NULL;
    uint32_t found = n >= 4 ? big_endian(bytes) : 0;
    if (n < header_size || found != magic) {
        fail(err, "%s: begins with 0x%08x, expected 0x%08x (an idx file of MNIST)", path, found, magic);
    } else if (header_size == 16 && (big_endian(bytes + 8) != DIGIT || big_endian(bytes + 12) != DIGIT)) {
        fail(err, "%s: images of %u x %u, expected %d x %d", path, big_endian(bytes + 12),
             big_endian(bytes + 8), DIGIT, DIGIT);
    } else if ((n - header_size) / item_size != big_endian(bytes + 4) || (n - header_size) % item_size) {
        fail(err, "%s: %zu bytes, but the header says %u items of %zu bytes", path, n, big_endian(bytes + 4),
             item_size);
    } else {
        *n_items = big_endian(bytes + 4);
        return bytes;
    }
    free(bytes);
    return NULL;
}

/* Sort the images by their labels. */
static int index_labels(Mnist *m, const uint8_t *labels, const char *dir, const char *name, Error *err)
{
    for (size_t i = 0; i < m->n; i++) {
        if (labels[i] > 9)
            return fail(err, "%s/%s: label %u of image %zu is not a digit", dir, name, labels[i], i);
        m->count[labels[i]]++;
    }
    for (int d = 0; d < 10; d++) {
        if (m->count[d] == 0)
            return fail(err, "%s/%s: there is no image of the digit %d", dir, name, d);
        m->index[d] = malloc(m->count[d] * sizeof *m->index[d]);
        if (!m->index[d])
            return fail_memory(err, "MNIST's labels", m->count[d] * sizeof *m->index[d]);
        m->count[d] = 0;
    }
    for (size_t i = 0; i < m->n; i++)
        m->index[labels[i]][m->count[labels[i]]++] = (uint32_t)i;
    return 0;
}

static int mnist_read(Mnist *m, const char *dir, const char *prefix, Error *err)
{
    char images[64], names[64];
    size_t n_labels = 0;
    memset(m, 0, sizeof *m);
    snprintf(images, sizeof images, "%s-images-idx3-ubyte", prefix);
    snprintf(names, sizeof names, "%s-labels-idx1-ubyte", prefix);
    m->file = idx_read(dir, images, 0x803, DIGIT * DIGIT, 16, &m->n, err);
    if (!m->file)
        return -1;
    uint8_t *labels = idx_read(dir, names, 0x801, 1, 8, &n_labels, err);
    int status = labels ? 0 : -1;
    if (labels && n_labels != m->n)
        status = fail(err, "%s/%s: %zu labels for %zu images", dir, names, n_labels, m->n);
    if (status == 0)
        status = index_labels(m, labels + 8, dir, names, err);
    free(labels);
    if (status)
        mnist_free(m);
    return status;
}

typedef enum {
    DIGITS_GOOD,
    DIGITS_MISSING,
    DIGITS_DISORDERED,
    DIGITS_FLIPPED,
    DIGITS_ZERO,
    DIGITS_COUNT
} DigitsDefect;
typedef enum { FLIP_NONE, FLIP_MIRROR, FLIP_TURN } Flip;

/* The contents of the nine cells, and which cells are wrong. */
typedef struct {
    int digit[9]; /* -1: empty */
    Flip flip[9];
    int wrong[9];
} DigitPlan;

static void shuffle(int *v, int n, Rng *rng)
{
    for (int i = n - 1; i > 0; i--) {
        int j = rng_below(rng, i + 1), t = v[i];
        v[i] = v[j];
        v[j] = t;
    }
}

/* The anomalies of DigitAnatomy (docs/METHOD.md 10). */
static DigitPlan plan_digits(DigitsDefect defect, Rng *rng)
{
    /* 1 and 8 look alike when mirrored or turned; 2 and 5 when turned, so they are only mirrored. */
    static const int flips[] = {2, 3, 4, 5, 6, 7, 9};
    DigitPlan plan = {{1, 2, 3, 4, 5, 6, 7, 8, 9}, {FLIP_NONE}, {0}};
    int cell[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8}, n = 1;
    shuffle(cell, 9, rng);
    switch (defect) {
    case DIGITS_MISSING:
        n = 1 + rng_below(rng, 2);
        for (int i = 0; i < n; i++)
            plan.digit[cell[i]] = -1;
        break;
    case DIGITS_DISORDERED: /* each chosen cell gets the digit of the next: two are swapped, more rotate. */
        n = rng_chance(rng, 0.5f) ? 2 : 3 + rng_below(rng, 4);
        for (int i = 0; i < n; i++)
            plan.digit[cell[i]] = cell[(i + 1) % n] + 1;
        break;
    case DIGITS_FLIPPED:
        cell[0] = flips[rng_below(rng, (int)(sizeof flips / sizeof flips[0]))] - 1;
        plan.flip[cell[0]] = cell[0] == 1 || cell[0] == 4 || rng_chance(rng, 0.5f) ? FLIP_MIRROR : FLIP_TURN;
        break;
    case DIGITS_ZERO:
        plan.digit[cell[0]] = 0;
        break;
    default:
        n = 0;
        break;
    }
    for (int i = 0; i < n; i++)
        plan.wrong[cell[i]] = 1;
    return plan;
}

static void flip_digit(uint8_t *to, const uint8_t *from, Flip flip)
{
    for (int y = 0; y < DIGIT; y++)
        for (int x = 0; x < DIGIT; x++) {
            int sx = flip == FLIP_NONE ? x : DIGIT - 1 - x, sy = flip == FLIP_TURN ? DIGIT - 1 - y : y;
            to[y * DIGIT + x] = from[sy * DIGIT + sx];
        }
}

/* A random resized crop: a square of 0.6 to 1.3 times the digit's area. It lies within the digit, or
 * contains it if it is larger. Outside the digit it is zero. It is resized to the cell as in PIL
 * (bilinear). cell: [32][32]. */
static int crop_digit(uint8_t *cell, const uint8_t *digit, Rng *rng)
{
    uint8_t crop[64 * 64] = {0};
    float target = DIGIT * DIGIT * rng_uniform(rng, 0.6f, 1.3f);
    int side = 1;
    while ((float)side * (float)(side + 1) + 0.25f < target)
        side++; /* the square root, rounded. */
    int slack = DIGIT - side, x0, y0;
    x0 = slack >= 0 ? rng_below(rng, slack + 1) : -rng_below(rng, 1 - slack);
    y0 = slack >= 0 ? rng_below(rng, slack + 1) : -rng_below(rng, 1 - slack);
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            int sx = x0 + x, sy = y0 + y;
            if (sx >= 0 && sy >= 0 && sx < DIGIT && sy < DIGIT)
                crop[y * side + x] = digit[sy * DIGIT + sx];
        }
    return resize_u8(cell, CELL, CELL, crop, side, side, 1, RESIZE_BILINEAR);
}

static int draw_digits(uint8_t *sheet, const DigitPlan *plan, const Mnist *mnist, Rng *rng, Error *err)
{
    uint8_t digit[DIGIT * DIGIT], cell[CELL * CELL];
    memset(sheet, 0, SHEET * SHEET);
    for (int i = 0; i < 9; i++) {
        int d = plan->digit[i];
        if (d < 0)
            continue;
        uint32_t which = mnist->index[d][rng_below(rng, (int)mnist->count[d])];
        flip_digit(digit, mnist->file + 16 + (size_t)which * DIGIT * DIGIT, plan->flip[i]);
        if (crop_digit(cell, digit, rng))
            return fail_memory(err, "resizing a digit", CELL * CELL);
        for (int y = 0; y < CELL; y++)
            memcpy(sheet + (i / GRID * CELL + y) * SHEET + i % GRID * CELL, cell + y * CELL, CELL);
    }
    return 0;
}

static void mark_cell(uint8_t *truth, int cell, uint8_t value)
{
    for (int y = 0; y < CELL; y++)
        memset(truth + (cell / GRID * CELL + y) * SHEET + cell % GRID * CELL, value, CELL);
}

static const char *const digits_folders[DIGITS_COUNT] = {"good", "missing", "disordered", "flipped", "zero"};

/* One ground truth image a defect: each empty cell is a defect, disordered cells are one together. */
static int write_digit_truths(const SynthOutput *out, const DigitPlan *plan, DigitsDefect defect, int index,
                              Error *err)
{
    uint8_t truth[SHEET * SHEET];
    char path[128];
    int n = 0, open = 0;
    snprintf(path, sizeof path, "ground_truth/%s/%03d", digits_folders[defect], index);
    memset(truth, 0, sizeof truth);
    for (int i = 0; i < 9; i++) {
        if (!plan->wrong[i])
            continue;
        mark_cell(truth, i, (uint8_t)(256 - defect));
        open = 1;
        if (defect == DIGITS_DISORDERED)
            continue;
        if (synth_output_image(out, path, n++, truth, SHEET, SHEET, 1, err))
            return -1;
        memset(truth, 0, sizeof truth);
        open = 0;
    }
    return open ? synth_output_image(out, path, n, truth, SHEET, SHEET, 1, err) : 0;
}

static int write_digit_images(const SynthOutput *out, const SynthDigitsOptions *o, const Mnist *mnist,
                              const char *split, DigitsDefect defect, int n, int stream, Error *err)
{
    uint8_t sheet[SHEET * SHEET];
    char path[64];
    snprintf(path, sizeof path, "%s/%s", split, digits_folders[defect]);
    for (int i = 0; i < n; i++) {
        Rng rng;
        rng_seed(&rng, o->seed, 0x6469676900000000u ^ ((uint64_t)stream << 24) ^ (uint64_t)i);
        DigitPlan plan = plan_digits(defect, &rng);
        if (draw_digits(sheet, &plan, mnist, &rng, err))
            return -1;
        if (synth_output_image(out, path, i, sheet, SHEET, SHEET, 1, err))
            return -1;
        if (write_digit_truths(out, &plan, defect, i, err))
            return -1;
    }
    return 0;
}

static int write_digits(const SynthOutput *out, const SynthDigitsOptions *o, const Mnist *train,
                        const Mnist *test, Error *err)
{
    SynthDefect entries[DIGITS_COUNT - 1];
    if (write_digit_images(out, o, train, "train", DIGITS_GOOD, o->n_train, 0, err))
        return -1;
    if (write_digit_images(out, o, train, "validation", DIGITS_GOOD, o->n_validation, 1, err))
        return -1;
    if (write_digit_images(out, o, test, "test", DIGITS_GOOD, o->n_good, 2, err))
        return -1;
    for (int d = DIGITS_MISSING; d < DIGITS_COUNT; d++) {
        if (write_digit_images(out, o, test, "test", (DigitsDefect)d, o->n_each, 2 + d, err))
            return -1;
        snprintf(entries[d - 1].name, sizeof entries[d - 1].name, "%s", digits_folders[d]);
        entries[d - 1].threshold = 1;
    }
    return synth_output_config(out, entries, DIGITS_COUNT - 1, err);
}

SynthDigitsOptions synth_digits_defaults(void)
{
    return (SynthDigitsOptions){.seed = 1, .n_train = 100, .n_validation = 20, .n_good = 50, .n_each = 50};
}

int synth_digits(const char *mnist_dir, const char *out_dir, const SynthDigitsOptions *o, Error *err)
{
    SynthOutput out;
    Mnist train, test;
    if (synth_check_count("training images", o->n_train, err) ||
        synth_check_count("validation images", o->n_validation, err) ||
        synth_check_count("good test images", o->n_good, err) ||
        synth_check_count("images of a defect", o->n_each, err))
        return -1;
    if (mnist_read(&train, mnist_dir, "train", err))
        return -1;
    int status = mnist_read(&test, mnist_dir, "t10k", err);
    if (status == 0) {
        status = synth_output_open(&out, out_dir, err);
        if (status == 0) {
            status = write_digits(&out, o, &train, &test, err);
            if (status)
                synth_output_drop(&out);
            else
                status = synth_output_commit(&out, err);
        }
        mnist_free(&test);
    }
    mnist_free(&train);
    return status;
}
