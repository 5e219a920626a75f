/* eval/dataset.c - finding, listing and checking data sets. See dataset.h. */
#include "eval/dataset.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "eval/truth.h"

enum { PATH_SIZE = 4096 };

/* The categories of the published data sets. A missing one is reported before hours of work. */
static const char *const LOCO[] = {"breakfast_box", "juice_bottle",        "pushpins",
                                   "screw_bag",     "splicing_connectors", NULL};
static const char *const AD[] = {"bottle",     "cable",     "capsule", "carpet", "grid", "hazelnut",
                                 "leather",    "metal_nut", "pill",    "screw",  "tile", "toothbrush",
                                 "transistor", "wood",      "zipper",  NULL};
static const char *const VISA[] = {"candle",    "capsules",   "cashew", "chewinggum", "fryum",
                                   "macaroni1", "macaroni2",  "pcb1",   "pcb2",       "pcb3",
                                   "pcb4",      "pipe_fryum", NULL};
static const char *const DIGITS[] = {"missing", "disordered", "flipped", "zero", NULL};

static const struct {
    const char *name;
    const char *const *categories;
} KINDS[DATASET_KINDS] = {
    [DATASET_AUTO] = {"auto", NULL},
    [DATASET_LOCO] = {"mvtec-loco", LOCO},
    [DATASET_AD] = {"mvtec-ad", AD},
    [DATASET_VISA] = {"visa", VISA},
    [DATASET_DIGITS] = {"digit-anatomy", NULL},
    [DATASET_FOLDER] = {"folder", NULL},
};

const char *dataset_kind_name(DatasetKind kind)
{
    return KINDS[kind].name;
}

DatasetKind dataset_kind_find(const char *name)
{
    int kind = 0;
    while (kind < DATASET_KINDS && strcmp(KINDS[kind].name, name) != 0)
        kind++;
    return (DatasetKind)kind;
}

/* ================================================================================================
 * Small helpers
 * ============================================================================================== */

static int is_listed(const char *const *list, const char *name)
{
    for (; list && *list; list++)
        if (strcmp(*list, name) == 0)
            return 1;
    return 0;
}

static int is_normal_kind(const char *kind)
{
    return is_listed((const char *const[]){"good", "normal", "ok", NULL}, kind);
}

static void problem(Problems *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void problem(Problems *p, const char *format, ...)
{
    char text[ERROR_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (p->n < PROBLEMS_KEPT)
        p->sentences[p->n] = strdup(text); /* NULL (no memory): it still counts. */
    p->n++;
}

void problems_free(Problems *p)
{
    for (int i = 0; i < p->n && i < PROBLEMS_KEPT; i++)
        free(p->sentences[i]);
    *p = (Problems){0};
}

static void problems_move(Problems *to, Problems *from)
{
    for (int i = 0; i < from->n; i++, to->n++) {
        char *sentence = i < PROBLEMS_KEPT ? from->sentences[i] : NULL;
        if (to->n < PROBLEMS_KEPT)
            to->sentences[to->n] = sentence;
        else
            free(sentence);
    }
    *from = (Problems){0};
}

/* A formatted path, malloc'd; NULL after a sentence. */
static char *path_of(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
static char *path_of(Error *err, const char *format, ...)
{
    char text[PATH_SIZE];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || n >= PATH_SIZE - 64) {
        fail(err, "%.600s: the path is too long", text);
        return NULL;
    }
    char *copy = strdup(text);
    if (!copy)
        fail_memory(err, "a path", (unsigned long long)n);
    return copy;
}

/* Does DIR/NAME exist? NAME may have several parts. */
static int has_dir(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    return snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_SIZE && dir_exists(path);
}

static int has_file(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    return snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_SIZE && file_exists(path);
}

/* dir_list of the pictures' names. */
static char **list_images(const char *dir, size_t *n, Error *err)
{
    char **names = dir_list(dir, 0, n, err);
    size_t kept = 0;
    for (size_t i = 0; names && i < *n; i++)
        if (is_picture(dir, names[i]))
            names[kept++] = names[i];
    if (names)
        *n = kept;
    return names;
}

/* ================================================================================================
 * Growing lists
 * ============================================================================================== */

/* Append a zeroed place to *items. Capacities are powers of two, so none is stored. */
static void *grow(void **items, int n, size_t size, Error *err)
{
    if ((n & (n - 1)) == 0) {
        size_t capacity = n ? 2 * (size_t)n : 1;
        void *grown = n < INT_MAX / 2 ? realloc(*items, capacity * size) : NULL;
        if (!grown) {
            fail_memory(err, "the list of images", capacity * size);
            return NULL;
        }
        *items = grown;
    }
    void *place = (char *)*items + (size_t)n * size;
    memset(place, 0, size);
    return place;
}

/* Append a path. The list takes it over, and a failure frees it. -1 also when path is NULL. */
static int add_path(char ***paths, int *n, char *path, Error *err)
{
    char **place = path ? grow((void **)paths, *n, sizeof *place, err) : NULL;
    if (!place) {
        free(path);
        return -1;
    }
    *place = path;
    ++*n;
    return 0;
}

/* Append an image. The list takes over `path`. */
static DatasetImage *add_image(DatasetCategory *c, char *path, const char *kind, int normal, Error *err)
{
    DatasetImage *image = path ? grow((void **)&c->images, c->n_images, sizeof *image, err) : NULL;
    if (!image) {
        free(path);
        return NULL;
    }
    c->n_images++;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path, *dot = strrchr(file, '.');
    image->path = path;
    image->normal = normal;
    image->kind = strdup(kind);
    image->stem = strndup(file, dot ? (size_t)(dot - file) : strlen(file));
    if (image->kind && image->stem)
        return image;
    fail_memory(err, "the list of images", strlen(path));
    return NULL;
}

static void category_free(DatasetCategory *c)
{
    for (int i = 0; i < c->n_normal; i++)
        free(c->normal[i]);
    for (int i = 0; i < c->n_images; i++) {
        DatasetImage *image = &c->images[i];
        for (int m = 0; m < image->n_masks; m++)
            free(image->masks[m]);
        free(image->path), free(image->kind), free(image->stem), free(image->masks);
    }
    free(c->dir), free(c->config), free(c->normal), free(c->normal_sha256), free(c->images);
}

void dataset_free(Dataset *d)
{
    for (int i = 0; i < d->n; i++)
        category_free(&d->categories[i]);
    free(d->categories), free(d->root);
    *d = (Dataset){0};
}

/* ================================================================================================
 * A category whose folders give its layout
 * ============================================================================================== */

const char *const DATASET_NORMAL_PLACES[] = {"train/good", "train/normal", "normal", NULL};

/* The folder of the normal images; NULL: this is no category. */
static const char *bank_folder(const char *dir)
{
    const char *const *place = DATASET_NORMAL_PLACES;
    while (*place && !has_dir(dir, *place))
        place++;
    return *place;
}

/* ground_truth/KIND/STEM/ *.png (LOCO), STEM_mask.png (MVTec AD), or STEM.png (VisA, reorganised). */
static int find_masks(DatasetImage *image, const char *dir, Error *err)
{
    static const char *const places[] = {"ground_truth", "masks"};
    static const char *const endings[] = {"_mask.png", ".png", "_mask.pgm", ".pgm"};
    for (size_t p = 0; p < 2; p++) {
        char *base = path_of(err, "%s/%s/%s/%s", dir, places[p], image->kind, image->stem);
        int status = base ? 0 : -1;
        if (base && dir_exists(base)) {
            size_t n;
            char **names = list_images(base, &n, err);
            status = names ? 0 : -1;
            for (size_t i = 0; names && i < n && !status; i++)
                status = add_path(&image->masks, &image->n_masks, path_of(err, "%s/%s", base, names[i]), err);
            free(names);
        }
        for (size_t e = 0; !status && !image->n_masks && e < sizeof endings / sizeof *endings; e++) {
            char path[PATH_SIZE + 16];
            snprintf(path, sizeof path, "%s%s", base, endings[e]);
            if (file_exists(path))
                status = add_path(&image->masks, &image->n_masks, path_of(err, "%s", path), err);
        }
        free(base);
        if (status || image->n_masks)
            return status;
    }
    return 0;
}

static int list_kind(DatasetCategory *c, const char *tests, const char *kind, Error *err)
{
    size_t n;
    char *dir = path_of(err, "%s/%s", tests, kind), **names = dir ? list_images(dir, &n, err) : NULL;
    int status = names ? 0 : -1;
    if (names)
        left_out_note_folder(&c->left_out, dir);
    for (size_t i = 0; names && i < n && !status; i++) {
        DatasetImage *image =
            add_image(c, path_of(err, "%s/%s", dir, names[i]), kind, is_normal_kind(kind), err);
        status = !image ? -1 : image->normal ? 0 : find_masks(image, c->dir, err);
    }
    free(names), free(dir);
    return status;
}

/* List the kinds under `tests`, by name, but the good ones first: their scores must come first. */
static int list_tests(DatasetCategory *c, Error *err)
{
    static const char *const no_kinds[] = {"normal", "train", "validation", "ground_truth", "masks", NULL};
    int below = has_dir(c->dir, "test"), status = 0;
    char *tests = path_of(err, below ? "%s/test" : "%s", c->dir);
    size_t n;
    char **kinds = tests ? dir_list(tests, 1, &n, err) : NULL;
    if (!kinds)
        status = -1;
    for (int normal = 1; normal >= 0 && !status; normal--)
        for (size_t i = 0; i < n && !status; i++)
            if (is_normal_kind(kinds[i]) == normal && (below || !is_listed(no_kinds, kinds[i])))
                status = list_kind(c, tests, kinds[i], err);
    free(kinds), free(tests);
    return status;
}

static int list_category(DatasetCategory *c, const char *dir, Error *err)
{
    const char *bank = bank_folder(dir);
    size_t n = 0;
    if (!(c->dir = path_of(err, "%s", dir)) ||
        (has_file(dir, "defects_config.json") && !(c->config = path_of(err, "%s/defects_config.json", dir))))
        return -1;
    char *folder = bank ? path_of(err, "%s/%s", dir, bank) : NULL;
    char **names = folder ? list_images(folder, &n, err) : NULL;
    int status = bank && !names ? -1 : 0;
    if (names)
        left_out_note_folder(&c->left_out, folder);
    for (size_t i = 0; i < n && !status; i++)
        status = add_path(&c->normal, &c->n_normal, path_of(err, "%s/%s", folder, names[i]), err);
    free(names), free(folder);
    return status ? status : list_tests(c, err);
}

/* ================================================================================================
 * VisA as it is published: split_csv/1cls.csv says object,split,label,image,mask
 * ============================================================================================== */

/* Cut the line at commas. Returns the number of fields, 6 for more than 5. */
static int split_fields(char *line, char *fields[5])
{
    int n = 0;
    line[strcspn(line, "\r\n")] = '\0';
    for (char *at = line; at && n < 5; n++) {
        fields[n] = at;
        at = strchr(at, ',');
        if (at)
            *at++ = '\0';
        if (at && n == 4)
            return 6;
    }
    return n;
}

static DatasetCategory *find_category(const Dataset *d, const char *name)
{
    for (int i = 0; i < d->n; i++)
        if (strcmp(d->categories[i].name, name) == 0)
            return &d->categories[i];
    return NULL;
}

/* 1 when the field is one of the two words. *first: it is the first. */
static int is_word(const char *field, const char *one, const char *other, int *first)
{
    *first = strcmp(field, one) == 0;
    return *first || strcmp(field, other) == 0;
}

/* Take one line. A path that leaves the folder is refused. */
static int visa_row(Dataset *d, char *fields[5], int n, const char *csv, int line, Error *err)
{
    int good, test;
    if (n < 4 || n > 5 || !*fields[3] || strstr(fields[3], "..") || (n == 5 && strstr(fields[4], "..")))
        return fail(err, "%s: line %d is not object,split,label,image,mask", csv, line);
    if (!is_word(fields[1], "test", "train", &test))
        return fail(err, "%s: line %d: split '%.40s', expected train or test", csv, line, fields[1]);
    if (!is_word(fields[2], "normal", "anomaly", &good))
        return fail(err, "%s: line %d: label '%.40s', expected normal or anomaly", csv, line, fields[2]);
    DatasetCategory *c = find_category(d, fields[0]);
    if (!c) /* not a wanted category. */
        return 0;
    char *path = path_of(err, "%s/%s", d->root, fields[3]);
    if (!test)
        return good ? add_path(&c->normal, &c->n_normal, path, err) : (free(path), 0);
    DatasetImage *image = add_image(c, path, good ? "good" : "bad", good, err);
    if (!image)
        return -1;
    return !good && n == 5 && *fields[4]
               ? add_path(&image->masks, &image->n_masks, path_of(err, "%s/%s", d->root, fields[4]), err)
               : 0;
}

static int by_kind(const void *a, const void *b)
{
    const DatasetImage *x = a, *y = b;
    return x->normal != y->normal ? y->normal - x->normal : strcmp(x->path, y->path);
}

#define VISA_COLUMNS "object,split,label,image,mask"

static int list_visa(Dataset *d, Error *err)
{
    size_t n;
    char *csv = path_of(err, "%s/split_csv/1cls.csv", d->root);
    char *text = csv ? (char *)file_read(csv, (size_t)1 << 28, &n, err) : NULL;
    int status = text ? 0 : -1, number = 1;
    if (text && strlen(text) != n)
        status = fail(err, "%s: a NUL character at %zu: not a table of text", csv, strlen(text));
    if (!status && strncmp(text, VISA_COLUMNS, strlen(VISA_COLUMNS)) != 0)
        status = fail(err, "%s: the first line is not " VISA_COLUMNS, csv);
    for (char *line = text; line && *line && !status; number++) {
        char *next = strchr(line, '\n'), *fields[5];
        if (next)
            *next++ = '\0';
        int found = split_fields(line, fields);
        if (number > 1 && *line) /* the first names the columns. */
            status = visa_row(d, fields, found, csv, number, err);
        line = next;
    }
    for (int i = 0; i < d->n && !status; i++) {
        DatasetCategory *c = &d->categories[i];
        if (c->n_images)
            qsort(c->images, (size_t)c->n_images, sizeof *c->images, by_kind);
        if (!(c->dir = path_of(err, "%s/%s", d->root, c->name)))
            status = -1;
    }
    free(text), free(csv);
    return status;
}

/* ================================================================================================
 * Which layout?
 * ============================================================================================== */

/* The last part of the path, with "." and links resolved. */
static void folder_name(char name[128], const char *dir)
{
    char *real = realpath(dir, NULL), *slash = real ? strrchr(real, '/') : NULL;
    snprintf(name, 128, "%.127s", slash && slash[1] ? slash + 1 : "data");
    free(real);
}

/* The number of names that are folders in root and could be categories. */
static int count_known(const char *root, const char *const *names)
{
    int n = 0;
    for (; names && *names; names++) {
        char path[PATH_SIZE];
        n += snprintf(path, sizeof path, "%s/%s", root, *names) < PATH_SIZE && dir_exists(path) &&
             bank_folder(path);
    }
    return n;
}

static int is_single(const char *root)
{
    return bank_folder(root) || has_dir(root, "test/good");
}

static DatasetKind guess_kind(const char *root)
{
    char name[128];
    if (is_single(root)) {
        int digits = 0;
        for (const char *const *kind = DIGITS; *kind; kind++) {
            char path[PATH_SIZE];
            snprintf(path, sizeof path, "test/%s", *kind);
            digits += has_dir(root, path);
        }
        folder_name(name, root);
        return digits == 4             ? DATASET_DIGITS
               : is_listed(LOCO, name) ? DATASET_LOCO
               : is_listed(AD, name)   ? DATASET_AD
               : is_listed(VISA, name) ? DATASET_VISA
                                       : DATASET_FOLDER;
    }
    if (has_file(root, "split_csv/1cls.csv") || has_dir(root, "1cls"))
        return DATASET_VISA;
    int loco = count_known(root, LOCO), ad = count_known(root, AD), visa = count_known(root, VISA);
    if (loco + ad + visa == 0)
        return DATASET_FOLDER;
    return loco >= ad && loco >= visa ? DATASET_LOCO : ad >= visa ? DATASET_AD : DATASET_VISA;
}

static int add_category(Dataset *d, const char *name, Error *err)
{
    DatasetCategory *c = grow((void **)&d->categories, d->n, sizeof *c, err);
    if (!c)
        return -1;
    snprintf(c->name, sizeof c->name, "%s", name);
    d->n++;
    return 0;
}

/* The names of the categories: the wanted ones, else the published ones, else every folder that looks like
 * one. */
static int name_categories(Dataset *d, const char *const *wanted, int n_wanted, Error *err)
{
    const char *const *known = KINDS[d->kind].categories;
    int status = 0;
    if (n_wanted || known) {
        for (int i = 0; !status && (n_wanted ? i < n_wanted : known[i] != NULL); i++)
            if (!find_category(d, n_wanted ? wanted[i] : known[i]))
                status = add_category(d, n_wanted ? wanted[i] : known[i], err);
        return status;
    }
    size_t n;
    char **names = dir_list(d->root, 1, &n, err);
    for (size_t i = 0; names && i < n && !status; i++) {
        char path[PATH_SIZE];
        if (snprintf(path, sizeof path, "%s/%s", d->root, names[i]) < PATH_SIZE && bank_folder(path))
            status = add_category(d, names[i], err);
    }
    free(names);
    if (names && !status && d->n == 0)
        status =
            fail(err,
                 "%s: no data set is recognised here: expected train/good and test, or folders with these, "
                 "or split_csv/1cls.csv (see samlad eval --help)",
                 d->root);
    return names ? status : -1;
}

static int open_single(Dataset *d, const char *const *wanted, int n_wanted, Error *err)
{
    char name[128];
    folder_name(name, d->root);
    if (d->kind == DATASET_DIGITS)
        snprintf(name, sizeof name, "digit_anatomy");
    for (int i = 0; i < n_wanted; i++)
        if (strcmp(wanted[i], name) != 0)
            return fail(err, "%s: there is no category %s: the folder is the one category %s", d->root,
                        wanted[i], name);
    return add_category(d, name, err) ? -1 : list_category(&d->categories[0], d->root, err);
}

static int by_category(const void *a, const void *b)
{
    return strcmp(((const DatasetCategory *)a)->name, ((const DatasetCategory *)b)->name);
}

static int open_several(Dataset *d, const char *const *wanted, int n_wanted, Problems *problems, Error *err)
{
    int csv = d->kind == DATASET_VISA && has_file(d->root, "split_csv/1cls.csv"), status;
    if (d->kind == DATASET_VISA && !csv && has_dir(d->root, "1cls")) {
        char *below = path_of(err, "%s/1cls", d->root);
        if (!below)
            return -1;
        free(d->root);
        d->root = below;
    }
    status = name_categories(d, wanted, n_wanted, err);
    if (!status) /* one order, independent of the order of the options. */
        qsort(d->categories, (size_t)d->n, sizeof *d->categories, by_category);
    if (!status && csv)
        status = list_visa(d, err);
    for (int i = 0; i < d->n && !status; i++) {
        DatasetCategory *c = &d->categories[i];
        if (!has_dir(d->root, c->name))
            problem(problems, "%s/%s: the category %s of %s is missing (--category names the wanted ones)",
                    d->root, c->name, c->name, dataset_kind_name(d->kind));
        else if (!csv) {
            char *dir = path_of(err, "%s/%s", d->root, c->name);
            status = dir ? list_category(c, dir, err) : -1;
            free(dir);
        }
    }
    return status;
}

int dataset_open(Dataset *d, const char *root, DatasetKind kind, const char *const *wanted, int n_wanted,
                 Problems *problems, Error *err)
{
    *d = (Dataset){.kind = kind};
    if (!dir_exists(root))
        return fail(err, "%s: there is no such folder", root);
    char trimmed[PATH_SIZE];
    snprintf(trimmed, sizeof trimmed, "%s", root);
    for (size_t n = strlen(trimmed); n > 1 && trimmed[n - 1] == '/'; n--)
        trimmed[n - 1] = '\0';
    if (!(d->root = path_of(err, "%s", trimmed)))
        return -1;
    if (kind == DATASET_AUTO)
        d->kind = guess_kind(d->root);
    int status = is_single(d->root) ? open_single(d, wanted, n_wanted, err)
                                    : open_several(d, wanted, n_wanted, problems, err);
    if (status)
        dataset_free(d);
    return status;
}

/* ================================================================================================
 * Checking
 * ============================================================================================== */

/* The checksum of a file's bytes; "" when it cannot be read. */
static void file_sha256(const char *path, char hex[65], Problems *problems)
{
    size_t n;
    Error err;
    uint8_t *bytes = file_read(path, (size_t)1 << 30, &n, &err);
    hex[0] = '\0';
    if (bytes)
        sha256(bytes, n, hex);
    else
        problem(problems, "%s", err.message);
    free(bytes);
}

/* Add the mask's checksum to the sum over the image's masks. */
static void add_mask_sha256(char sum[65], const char *mask, Problems *problems)
{
    char both[130];
    file_sha256(mask, both, problems);
    strcat(both, sum);
    sha256(both, strlen(both), sum);
}

/* Check one image and its masks. table: the defects, or NULL. masks_needed: a defect without a mask is a
 * problem. */
static void check_image(DatasetImage *image, const DefectTable *table, int masks_needed, int with_masks,
                        Problems *problems)
{
    Error err;
    if (image_probe(image->path, &image->width, &image->height, &err)) {
        problem(problems, "%s", err.message);
        return;
    }
    file_sha256(image->path, image->sha256, problems);
    if (!image->normal && masks_needed && image->n_masks == 0)
        problem(problems, "%s: there is no ground truth for this image", image->path);
    for (int m = 0; m < image->n_masks; m++) {
        const char *const mask = image->masks[m];
        Truth truth;
        if (truth_read(&truth, image->width, image->height, &mask, 1, table, &err))
            problem(problems, "%s", err.message);
        else
            truth_free(&truth);
        if (with_masks)
            add_mask_sha256(image->masks_sha256, mask, problems);
    }
}

static void check_normal(DatasetCategory *c, int index, int with_contents, Problems *problems)
{
    Error err;
    int width, height;
    if (image_probe(c->normal[index], &width, &height, &err))
        problem(problems, "%s", err.message);
    else if (with_contents)
        file_sha256(c->normal[index], c->normal_sha256[index], problems);
}

/* A category while it is checked. */
typedef struct Check {
    const DatasetLook *look;
    DatasetCategory *c;
    DefectTable *table;
    int masks_needed;
    int done, total; /* files of the data set. */
} Check;

/* The number of normal images to look at. */
static int n_normal_of(const DatasetLook *look, const DatasetCategory *c)
{
    return look->with_bank ? c->n_normal : 0;
}

/* Check all files of a category in parallel. Problems are reported in the order of the list. */
static void check_each(Check *check, Problems *problems)
{
    enum { BATCH = 64 };
    DatasetCategory *c = check->c;
    const DatasetLook *look = check->look;
    const int n_normal = n_normal_of(look, c), n = n_normal + c->n_images;
    for (int first = 0; first < n; first += BATCH) {
        Problems found[BATCH] = {{0}};
        const int m = n - first < BATCH ? n - first : BATCH;
#pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < m; i++)
            if (first + i < n_normal)
                check_normal(c, first + i, first + i < look->n_contents, &found[i]);
            else
                check_image(&c->images[first + i - n_normal], check->table, check->masks_needed,
                            look->with_masks, &found[i]);
        for (int i = 0; i < m; i++)
            problems_move(problems, &found[i]);
        check->done += m;
        if (look->progress)
            look->progress(look->user, "looking", check->done, check->total);
    }
}

static int by_name(const void *a, const void *b)
{
    const DatasetImage *x = *(const DatasetImage *const *)a, *y = *(const DatasetImage *const *)b;
    int kind = strcmp(x->kind, y->kind);
    return kind ? kind : strcmp(x->stem, y->stem);
}

/* Find two images whose results would share a name: 000.png and 000.jpg of one kind. */
static void check_names(const DatasetCategory *c, Problems *problems)
{
    const DatasetImage **sorted = calloc((size_t)c->n_images + 1, sizeof *sorted);
    if (!sorted) {
        problem(problems, "%s: not enough memory to check its names", c->name);
        return;
    }
    for (int i = 0; i < c->n_images; i++)
        sorted[i] = &c->images[i];
    qsort(sorted, (size_t)c->n_images, sizeof *sorted, by_name);
    for (int i = 1; i < c->n_images; i++)
        if (by_name(&sorted[i - 1], &sorted[i]) == 0)
            problem(problems, "%s and %s: both results would have the same name", sorted[i - 1]->path,
                    sorted[i]->path);
    free(sorted);
}

/* Refuse kinds of tests that are named like a figure: auroc.all, auroc.pixels, LOCO's auroc.mean. */
static void check_kinds(const DatasetCategory *c, DatasetKind kind, Problems *problems)
{
    const char *const taken[] = {"all", "pixels", kind == DATASET_LOCO ? "mean" : NULL, NULL};
    int n_kinds = 0;
    for (int i = 0; i < c->n_images; i++) {
        const DatasetImage *image = &c->images[i];
        if (i > 0 && strcmp(image->kind, c->images[i - 1].kind) == 0)
            continue;
        if (++n_kinds == DATASET_MAX_KINDS + 1)
            problem(problems, "%s: more than %d kinds of tests", c->dir, DATASET_MAX_KINDS);
        if (is_listed(taken, image->kind))
            problem(problems, "%.*s: give this folder another name: the figure auroc.%s is of something else",
                    (int)(strrchr(image->path, '/') - image->path), image->path, image->kind);
    }
}

/* Check the category's files; masks by its table of defects if it has one. */
static void check_files(Check *check, Problems *problems)
{
    Error err;
    DatasetCategory *c = check->c;
    const int n_normal = n_normal_of(check->look, c);
    c->normal_sha256 = n_normal ? calloc((size_t)n_normal, sizeof *c->normal_sha256) : NULL;
    check->table = c->config ? calloc(1, sizeof *check->table) : NULL;
    if ((n_normal && !c->normal_sha256) || (c->config && !check->table)) {
        problem(problems, "%s: not enough memory to check it", c->name);
    } else {
        if (c->config && defect_table_read(check->table, c->config, &err)) {
            problem(problems, "%s", err.message);
            free(check->table);
            check->table = NULL;
        }
        check_each(check, problems);
    }
    free(check->table);
}

static void check_category(const Dataset *d, Check *check, Problems *problems)
{
    int published = KINDS[d->kind].categories != NULL, n_good = 0;
    DatasetCategory *c = check->c;
    if (!c->dir) /* missing: reported already */
        return;
    if (check->look->with_bank && c->n_normal == 0)
        problem(problems, "%s: there are no normal images for the bank (train/good or normal)", c->dir);
    check->masks_needed = published;
    check_files(check, problems);
    for (int i = 0; i < c->n_images; i++)
        n_good += c->images[i].normal;
    if (c->n_images == 0)
        problem(problems, "%s: there are no test images", c->dir);
    else if (published && n_good == 0)
        problem(problems, "%s: there are no good test images", c->dir);
    else if (published && n_good == c->n_images)
        problem(problems, "%s: there are no test images with defects", c->dir);
    if (d->kind == DATASET_LOCO && !c->config)
        problem(problems, "%s/defects_config.json is missing: AU-sPRO needs its saturation thresholds",
                c->dir);
    check_kinds(c, d->kind, problems);
    check_names(c, problems);
}

void dataset_check(Dataset *d, const DatasetLook *look, Problems *problems)
{
    Check check = {.look = look};
    for (int i = 0; i < d->n; i++)
        check.total += d->categories[i].n_images + n_normal_of(look, &d->categories[i]);
    for (int i = 0; i < d->n; i++) {
        check.c = &d->categories[i];
        check_category(d, &check, problems);
    }
}
