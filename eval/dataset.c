/* eval/dataset.c - finding, listing and checking data sets. See dataset.h. */
#include "eval/dataset.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "eval/masks.h"
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

void dataset_free(Dataset *d)
{
    for (int i = 0; i < d->n; i++)
        category_free(&d->categories[i]);
    free(d->categories), free(d->root);
    notes_free(&d->notes);
    *d = (Dataset){0};
}

/* ================================================================================================
 * VisA as it is published: split_csv/1cls.csv says object,split,label,image,mask
 * ============================================================================================== */

/* Take the quotes off a cell (RFC 4180: a quote in it is doubled). Returns what follows it, NULL: no second quote. */
static char *unquote(char *cell)
{
    char *to = cell, *from = cell + 1;
    for (; *from && (*from != '"' || from[1] == '"'); from += 1 + (*from == '"'))
        *to++ = *from;
    if (!*from)
        return NULL;
    *to = '\0';
    return from + 1;
}

/* Cut the line at commas. Returns the number of cells, 6 for more than 5; 0: a quote is not closed, or text follows it. */
static int split_cells(char *line, char *cells[5])
{
    int n = 0;
    line[strcspn(line, "\r\n")] = '\0';
    for (char *at = line; at && n < 5; n++) {
        cells[n] = at;
        char *end = *at == '"' ? unquote(at) : at + strcspn(at, ",");
        if (!end || (*end && *end != ','))
            return 0;
        at = *end ? end + 1 : NULL;
        *end = '\0';
        if (at && n == 4)
            return 6;
    }
    return n;
}

/* Does the path lead out of the data set's folder? */
static int leaves_folder(const char *path)
{
    for (const char *at = path; at; at = strchr(at, '/') ? strchr(at, '/') + 1 : NULL)
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || !at[2]))
            return 1;
    return *path == '/';
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

static int append(char ***paths, int *n, char *path, Error *err)
{
    PathList list = {.n = *n, .paths = *paths};
    int status = path_add(&list, path, err);
    *n = list.n;
    *paths = list.paths;
    return status;
}

static int visa_row(Dataset *d, char *fields[5], int n, const char *csv, int line, Error *err)
{
    int good, test;
    if (n < 4 || n > 5 || !*fields[3])
        return fail(err, "%s: line %d is not object,split,label,image,mask", csv, line);
    for (int i = 3; i < n; i++)
        if (leaves_folder(fields[i]))
            return fail(err, "%s: line %d: the %s '%.100s' does not lie in the data set", csv, line,
                        i == 3 ? "image" : "mask", fields[i]);
    if (!is_word(fields[1], "test", "train", &test))
        return fail(err, "%s: line %d: split '%.40s', expected train or test", csv, line, fields[1]);
    if (!is_word(fields[2], "normal", "anomaly", &good))
        return fail(err, "%s: line %d: label '%.40s', expected normal or anomaly", csv, line, fields[2]);
    DatasetCategory *c = find_category(d, fields[0]);
    if (!c) /* not a wanted category, or none. */
        return d->chosen || is_listed(VISA, fields[0])
                   ? 0
                   : fail(err, "%s: line %d: '%.100s' is no category of VisA", csv, line, fields[0]);
    char *path = path_of(err, "%s/%s", d->root, fields[3]);
    if (!test)
        return good ? append(&c->normal, &c->n_normal, path, err) : (free(path), 0);
    const char *slash = path ? strrchr(path, '/') : NULL;
    DatasetImage *image = category_add(c, path, slash ? slash + 1 : "", good ? "good" : "bad", good, err);
    if (!image)
        return -1;
    return !good && n == 5 && *fields[4]
               ? append(&image->masks, &image->n_masks, path_of(err, "%s/%s", d->root, fields[4]), err)
               : 0;
}

static int by_kind(const void *a, const void *b)
{
    const DatasetImage *x = a, *y = b;
    return x->normal != y->normal ? y->normal - x->normal : strcmp(x->path, y->path);
}

#define UTF8_MARK "\xef\xbb\xbf" /* some editors begin a file with it. */

/* The first line names the columns. */
static int visa_header(char *cells[5], int n, const char *csv, Error *err)
{
    static const char *const columns[] = {"object", "split", "label", "image", "mask"};
    int same = n == 5;
    for (int i = 0; i < 5 && same; i++)
        same = strcmp(cells[i], columns[i]) == 0;
    return same ? 0 : fail(err, "%s: the first line is not object,split,label,image,mask", csv);
}

static int list_visa(Dataset *d, Error *err)
{
    size_t n;
    char *csv = path_of(err, "%s/split_csv/1cls.csv", d->root);
    char *text = csv ? (char *)file_read(csv, (size_t)1 << 28, &n, err) : NULL;
    int status = text ? 0 : -1, number = 1;
    if (text && strlen(text) != n)
        status = fail(err, "%s: a NUL character at %zu: not a table of text", csv, strlen(text));
    char *line = text && strncmp(text, UTF8_MARK, strlen(UTF8_MARK)) == 0 ? text + strlen(UTF8_MARK) : text;
    for (; line && (*line || number == 1) && !status; number++) {
        char *next = strchr(line, '\n'), *cells[5] = {NULL};
        if (next)
            *next++ = '\0';
        const int found = split_cells(line, cells);
        if (number == 1)
            status = visa_header(cells, found, csv, err);
        else if (*line)
            status = visa_row(d, cells, found, csv, number, err);
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

/* The number of names that are folders in root and could be categories of a published data set. */
static int count_known(const char *root, const char *const *names)
{
    int n = 0;
    for (; names && *names; names++) {
        char path[PATH_SIZE];
        n += snprintf(path, sizeof path, "%s/%s/train/good", root, *names) < PATH_SIZE && dir_exists(path);
    }
    return n;
}

/* Names of folders that are looked for in a data set. Others hold parts of one category. */
static int may_be_category(const char *root, const char *name, const GivenFolders *given, Error *err)
{
    const FolderRole role = folder_role(name);
    char path[PATH_SIZE];
    return (role == FOLDER_OTHER || role == FOLDER_IMAGES) &&
           snprintf(path, sizeof path, "%s/%s", root, name) < PATH_SIZE &&
           (given->normal ? has_dir(path, given->normal) : is_category(path, given, err));
}

/* Is the folder itself one category? The given folder of normal images lies in it, or in none of its
 * folders. */
static int is_single(const char *root, const GivenFolders *given, Error *err)
{
    if (!given->normal || has_dir(root, given->normal))
        return is_category(root, given, err);
    size_t n = 0;
    int several = 0;
    char **names = dir_list(root, 1, &n, err);
    for (size_t i = 0; names && i < n; i++)
        several |= may_be_category(root, names[i], given, err);
    free(names);
    return !several;
}

static DatasetKind guess_kind(const char *root, const char *name, const GivenFolders *given, int single)
{
    if (given->normal || given->anomalous || given->masks)
        return DATASET_FOLDER;
    if (single) {
        int digits = 0;
        for (const char *const *kind = DIGITS; *kind; kind++) {
            char path[PATH_SIZE];
            snprintf(path, sizeof path, "test/%s", *kind);
            digits += has_dir(root, path);
        }
        return digits == 4                    ? DATASET_DIGITS
               : !has_dir(root, "train/good") ? DATASET_FOLDER
               : is_listed(LOCO, name)        ? DATASET_LOCO
               : is_listed(AD, name)          ? DATASET_AD
               : is_listed(VISA, name)        ? DATASET_VISA
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
    DatasetCategory *c = list_grow((void **)&d->categories, d->n, sizeof *c, err);
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
    for (size_t i = 0; names && i < n && !status; i++)
        if (may_be_category(d->root, names[i], &d->request.given, err))
            status = add_category(d, names[i], err);
    free(names);
    if (names && !status)
        status = fail_any(err);
    if (names && !status && d->n == 0)
        status = fail(
            err,
            "%s: no data set is recognised here: expected train/good and test, or good and bad, or folders "
            "with these, or split_csv/1cls.csv; or name the folder with --normal (see samlad eval --help)",
            d->root);
    return names ? status : -1;
}

static int open_category(Dataset *d, DatasetCategory *c, const char *dir, Error *err)
{
    return category_list(c, dir, &d->request, &d->notes, err) || masks_assign(c, &d->notes, err) ? -1 : 0;
}

static int open_single(Dataset *d, const DatasetRequest *r, Error *err)
{
    char name[256];
    if (folder_name(name, d->root, err))
        return -1;
    if (d->kind == DATASET_DIGITS)
        snprintf(name, sizeof name, "digit_anatomy");
    for (int i = 0; i < r->n_categories; i++)
        if (strcmp(r->categories[i], name) != 0)
            return fail(err, "%s: there is no category %s: the folder is the one category %s", d->root,
                        r->categories[i], name);
    return add_category(d, name, err) ? -1 : open_category(d, &d->categories[0], d->root, err);
}

static int by_category(const void *a, const void *b)
{
    return strcmp(((const DatasetCategory *)a)->name, ((const DatasetCategory *)b)->name);
}

/* VisA as published lies in the root, reorganised in 1cls. */
static int enter_visa(Dataset *d, Error *err)
{
    char *below = path_of(err, "%s/1cls", d->root);
    if (!below)
        return -1;
    free(d->root);
    d->root = below;
    return 0;
}

static int open_several(Dataset *d, const DatasetRequest *r, Problems *problems, Error *err)
{
    int csv = d->kind == DATASET_VISA && has_file(d->root, "split_csv/1cls.csv"), status = 0;
    if (d->kind == DATASET_VISA && !csv && has_dir(d->root, "1cls"))
        status = enter_visa(d, err);
    if (!status)
        status = name_categories(d, r->categories, r->n_categories, err);
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
            status = dir ? open_category(d, c, dir, err) : -1;
            free(dir);
        }
    }
    return status;
}

/* Do the folders that the user named exist, in the data set, in a category, or by themselves? */
static int check_given(const char *root, const GivenFolders *given, Error *err)
{
    const struct {
        const char *option, *folder;
    } all[] = {{"normal", given->normal}, {"anomalous", given->anomalous}, {"masks", given->masks}};
    size_t n = 0;
    char **names = dir_list(root, 1, &n, err);
    int status = names ? 0 : -1;
    for (int k = 0; k < 3 && !status; k++) {
        int found = !all[k].folder || has_dir(root, all[k].folder) || dir_exists(all[k].folder);
        for (size_t i = 0; i < n && !found; i++) {
            char path[PATH_SIZE];
            found = snprintf(path, sizeof path, "%s/%s", root, names[i]) < PATH_SIZE &&
                    has_dir(path, all[k].folder);
        }
        if (!found)
            status = fail(err, "--%s %s: there is no such folder, neither here nor in %s", all[k].option,
                          all[k].folder, root);
    }
    free(names);
    return status;
}

static int by_stem(const void *a, const void *b)
{
    const DatasetImage *x = *(DatasetImage *const *)a, *y = *(DatasetImage *const *)b;
    int kind = strcmp(x->kind, y->kind);
    return kind ? kind : strcmp(x->stem, y->stem);
}

/* The images by kind and stem: malloc'd, NULL: no memory. */
static DatasetImage **sort_by_stem(const DatasetCategory *c)
{
    DatasetImage **sorted = calloc((size_t)c->n_images + 1, sizeof *sorted);
    for (int i = 0; sorted && i < c->n_images; i++)
        sorted[i] = &c->images[i];
    if (sorted)
        qsort(sorted, (size_t)c->n_images, sizeof *sorted, by_stem);
    return sorted;
}

/* Give the images of one stem their whole names. *changed: some had none. */
static int name_twins(DatasetImage *const *sorted, int n, int *changed, Error *err)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(sorted[i]->stem, sorted[i]->name) == 0)
            continue;
        char *whole = path_of(err, "%s", sorted[i]->name);
        if (!whole)
            return -1;
        free(sorted[i]->stem);
        sorted[i]->stem = whole;
        *changed = 1;
    }
    return 0;
}

/* 000.png and 000.jpg of one kind: their results keep the ending. So does 000.png.png then. */
static int tell_twins_apart(DatasetCategory *c, Error *err)
{
    int status = 0;
    for (int changed = 1; changed && !status;) {
        DatasetImage **sorted = sort_by_stem(c);
        if (!sorted)
            return fail_memory(err, "the list of images", (size_t)c->n_images * sizeof *sorted);
        changed = 0;
        for (int i = 0, n; i < c->n_images && !status; i += n) {
            for (n = 1; i + n < c->n_images && by_stem(&sorted[i], &sorted[i + n]) == 0;)
                n++;
            if (n > 1)
                status = name_twins(sorted + i, n, &changed, err);
        }
        free(sorted);
    }
    return status;
}

int dataset_open(Dataset *d, const char *root, const DatasetRequest *r, Problems *problems, Error *err)
{
    *d = (Dataset){.kind = r->kind, .request = r->layout, .chosen = r->n_categories > 0};
    const GivenFolders *given = &r->layout.given;
    if (!dir_exists(root))
        return fail(err, "%s: there is no such folder", root);
    char trimmed[PATH_SIZE], name[256];
    snprintf(trimmed, sizeof trimmed, "%s", root);
    for (size_t n = strlen(trimmed); n > 1 && trimmed[n - 1] == '/'; n--)
        trimmed[n - 1] = '\0';
    if (!(d->root = path_of(err, "%s", trimmed)))
        return -1;
    fail_none(err);
    int status = check_given(d->root, given, err) || folder_name(name, d->root, err) ? -1 : 0;
    const int single = d->single = !status && is_single(d->root, given, err);
    if (!status)
        status = fail_any(err);
    if (!status && d->kind == DATASET_AUTO)
        d->kind = guess_kind(d->root, name, given, single);
    if (!status)
        status = single ? open_single(d, r, err) : open_several(d, r, problems, err);
    for (int i = 0; i < d->n && !status; i++) {
        d->categories[i].masks_needed = KINDS[d->kind].categories != NULL;
        status = tell_twins_apart(&d->categories[i], err);
    }
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

/* What is found in a file, or in some. */
typedef struct Found {
    Problems problems;
    Notes notes;
} Found;

/* Tell a mask that says nothing. */
static void check_truth(const Truth *truth, const DatasetImage *image, const char *mask, Notes *notes)
{
    const size_t n = (size_t)image->width * (size_t)image->height;
    if (image->normal && truth->n_anomalous)
        note(notes, "%s: this mask of a good image shows a defect: it is not used", mask);
    else if (!image->normal && truth->n_anomalous == 0)
        note(notes, "%s: this mask is empty: no pixel of its image counts as a defect", mask);
    else if (!image->normal && truth->n_anomalous == n)
        note(notes, "%s: this mask covers its whole image", mask);
}

/* A category while it is checked. */
typedef struct Check {
    const DatasetLook *look;
    DatasetCategory *c;
    DefectTable *table; /* the defects, or NULL. */
    int done, total;    /* files of the data set. */
} Check;

static void check_mask(const Check *check, DatasetImage *image, const char *mask, Found *found)
{
    Error err;
    Truth truth;
    const MaskFit fit = {image->width, image->height, image->orientation, check->c->resize_masks};
    if (truth_fit(&truth, &fit, &mask, 1, image->normal ? NULL : check->table, &err)) {
        problem(&found->problems, "%s", err.message);
    } else {
        check_truth(&truth, image, mask, &found->notes);
        truth_free(&truth);
    }
    if (check->look->with_masks)
        add_mask_sha256(image->masks_sha256, mask, &found->problems);
}

/* Check one image and its masks. */
static void check_image(const Check *check, DatasetImage *image, Found *found)
{
    Error err;
    if (image_probe_turn(image->path, &image->width, &image->height, &image->orientation, &err)) {
        problem(&found->problems, "%s", err.message);
        return;
    }
    file_sha256(image->path, image->sha256, &found->problems);
    if (!image->normal && check->c->masks_needed && image->n_masks == 0)
        problem(&found->problems, "%s: there is no ground truth for this image", image->path);
    const MaskFit fit = {image->width, image->height, image->orientation, 0};
    int turned = 0;
    for (int m = 0; m < image->n_masks; m++)
        turned |= !mask_tells_its_turn(image->masks[m]);
    if (!image->normal && turned && mask_fits_both_ways(&fit))
        note(&found->notes,
             "%s: its Exif data turn this photo, and its mask fits both ways: the mask is turned with it",
             image->path);
    for (int m = 0; m < image->n_masks; m++)
        check_mask(check, image, image->masks[m], found);
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

/* The number of normal images to look at. */
static int n_normal_of(const DatasetLook *look, const DatasetCategory *c)
{
    return look->with_bank ? c->n_normal : 0;
}

/* Check all files of a category in parallel. Problems are reported in the order of the list. */
static void check_each(Check *check, Problems *problems, Notes *notes)
{
    enum { BATCH = 64 };
    DatasetCategory *c = check->c;
    const DatasetLook *look = check->look;
    const int n_normal = n_normal_of(look, c), n = n_normal + c->n_images;
    for (int first = 0; first < n; first += BATCH) {
        Found found[BATCH] = {{.problems = {0}}};
        const int m = n - first < BATCH ? n - first : BATCH;
#pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < m; i++)
            if (first + i < n_normal)
                check_normal(c, first + i, first + i < look->n_contents, &found[i].problems);
            else
                check_image(check, &c->images[first + i - n_normal], &found[i]);
        for (int i = 0; i < m; i++) {
            problems_move(problems, &found[i].problems);
            notes_move(notes, &found[i].notes);
        }
        check->done += m;
        if (look->progress)
            look->progress(look->user, "looking", check->done, check->total);
    }
}

/* A file, and what it is taken for: 0 normal, 1 a good test image, 2 an anomalous one. */
typedef struct Role {
    dev_t device;
    ino_t file;
    int role;
    const char *path;
} Role;

static int by_file(const void *a, const void *b)
{
    const Role *x = a, *y = b;
    return x->device != y->device ? (x->device > y->device) - (x->device < y->device)
           : x->file != y->file   ? (x->file > y->file) - (x->file < y->file)
                                  : x->role - y->role;
}

/* Find a file that is taken for two things, under two names. */
static void check_roles(const DatasetCategory *c, int n_normal, Problems *problems, Notes *notes)
{
    const int n = n_normal + c->n_images;
    int n_files = 0;
    Role *roles = calloc((size_t)n + 1, sizeof *roles);
    if (!roles)
        problem(problems, "%s: not enough memory to check its files", c->name);
    for (int i = 0; i < n && roles; i++) {
        const DatasetImage *image = i < n_normal ? NULL : &c->images[i - n_normal];
        const char *path = image ? image->path : c->normal[i];
        struct stat info;
        if (stat(path, &info) == 0) /* a missing file is reported elsewhere. */
            roles[n_files++] = (Role){info.st_dev, info.st_ino, image ? 2 - image->normal : 0, path};
    }
    if (roles)
        qsort(roles, (size_t)n_files, sizeof *roles, by_file);
    for (int i = 1; i < n_files; i++) {
        const Role *a = &roles[i - 1], *b = &roles[i];
        if (a->device != b->device || a->file != b->file || a->role == b->role)
            continue;
        if (b->role == 2)
            problem(problems, "%.600s and %.600s: one file as a normal image and as an anomalous one",
                    a->path, b->path);
        else
            note(notes, "%.600s: this good test image is in the bank, too, as %.600s", b->path, a->path);
    }
    free(roles);
}

/* Find two images whose results would share a name: a.png, a.jpg and a.png.png of one kind. */
static void check_names(const DatasetCategory *c, Problems *problems)
{
    DatasetImage **sorted = sort_by_stem(c);
    if (!sorted)
        problem(problems, "%s: not enough memory to check its names", c->name);
    for (int i = 1; sorted && i < c->n_images; i++)
        if (by_stem(&sorted[i - 1], &sorted[i]) == 0)
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
static void check_files(Check *check, Problems *problems, Notes *notes)
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
        check_each(check, problems, notes);
    }
    free(check->table);
}

static void check_category(Dataset *d, Check *check, Problems *problems)
{
    enum { NAME_MOST = 240 };
    int published = KINDS[d->kind].categories != NULL, n_good = 0;
    DatasetCategory *c = check->c;
    if (!c->dir) /* missing: reported already */
        return;
    if (strlen(c->name) > NAME_MOST)
        problem(problems, "%s: the folder's name has more than %d bytes: files of the run are named after it",
                c->dir, NAME_MOST);
    if (check->look->with_bank && c->n_normal == 0)
        problem(problems, "%s: there are no normal images for the bank (train/good, train or good)%s%s",
                c->dir, c->left_out.n ? "; these are no pictures: " : "", c->left_out.names);
    check_files(check, problems, &d->notes);
    for (int i = 0; i < c->n_images; i++)
        n_good += c->images[i].normal;
    if (c->n_images == 0)
        problem(problems, "%s: there are no test images (--hold-out N keeps some of the normal ones)",
                c->dir);
    else if (published && n_good == 0)
        problem(problems, "%s: there are no good test images", c->dir);
    else if (published && n_good == c->n_images)
        problem(problems, "%s: there are no test images with defects", c->dir);
    if (d->kind == DATASET_LOCO && !c->config)
        problem(problems, "%s/defects_config.json is missing: AU-sPRO needs its saturation thresholds",
                c->dir);
    check_kinds(c, d->kind, problems);
    check_names(c, problems);
    check_roles(c, n_normal_of(check->look, c), problems, &d->notes);
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
