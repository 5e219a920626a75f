/* eval/category.c - see category.h. */
#include "eval/category.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

/* ================================================================================================
 * Notes
 * ============================================================================================== */

static void keep_sentence(Notes *notes, char *sentence)
{
    char **place = sentence ? list_grow((void **)&notes->sentences, notes->n, sizeof *place, NULL) : NULL;
    if (place) {
        *place = sentence;
        notes->n++;
    } else {
        free(sentence);
        notes->failed = 1;
    }
}

void note(Notes *notes, const char *format, ...)
{
    char text[ERROR_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    keep_sentence(notes, strdup(text));
}

void notes_move(Notes *to, Notes *from)
{
    for (int i = 0; i < from->n; i++)
        keep_sentence(to, from->sentences[i]);
    to->failed |= from->failed;
    free(from->sentences);
    *from = (Notes){0};
}

void notes_free(Notes *notes)
{
    for (int i = 0; i < notes->n; i++)
        free(notes->sentences[i]);
    free(notes->sentences);
    *notes = (Notes){0};
}

/* ================================================================================================
 * The images of a category
 * ============================================================================================== */

DatasetImage *category_add(DatasetCategory *c, char *path, const char *name, const char *kind, int normal,
                           Error *err)
{
    DatasetImage *image = path ? list_grow((void **)&c->images, c->n_images, sizeof *image, err) : NULL;
    if (!image) {
        free(path);
        return NULL;
    }
    c->n_images++;
    const char *slash = strrchr(name, '/'), *dot = strrchr(slash ? slash : name, '.');
    image->path = path;
    image->normal = normal;
    image->kind = strdup(kind);
    image->name = strdup(name);
    image->stem = strndup(name, dot ? (size_t)(dot - name) : strlen(name));
    if (image->kind && image->name && image->stem)
        return image;
    fail_memory(err, "the list of images", strlen(path));
    return NULL;
}

void image_drop(DatasetImage *image)
{
    for (int m = 0; m < image->n_masks; m++)
        free(image->masks[m]);
    free(image->path), free(image->kind), free(image->name), free(image->stem), free(image->masks);
}

void category_free(DatasetCategory *c)
{
    for (int i = 0; i < c->n_normal; i++)
        free(c->normal[i]);
    for (int i = 0; i < c->n_images; i++)
        image_drop(&c->images[i]);
    for (int i = 0; i < c->n_unreadable; i++)
        free(c->unreadable[i].name), free(c->unreadable[i].reason);
    path_list_free(&c->masks);
    free(c->unreadable), free(c->dir), free(c->config), free(c->normal), free(c->normal_sha256), free(c->images),
        free(c->masks_dir);
}

/* ================================================================================================
 * Its tests
 * ============================================================================================== */

/* A category while it is listed. The folders are malloc'd, NULL: there is none. */
typedef struct Listing {
    DatasetCategory *c;
    char *normal;    /* of the bank */
    char *anomalous; /* the given one; then only its images are anomalous. */
    char *masks;     /* the given one; then no other masks count. */
    char *tests;     /* the folder of tests; NULL: the kinds lie beside the normal images. */
    Notes *notes;
    Error *err;
} Listing;

/* Take the folders whose names say nothing out of a path: rgb/000.png is 000.png. */
static void drop_image_folders(char *name)
{
    char *to = name, *slash;
    for (char *part = name; (slash = strchr(part, '/')); part = slash + 1) {
        *slash = '\0';
        const int drop = folder_role(part) == FOLDER_IMAGES;
        *slash = '/';
        if (!drop) {
            memmove(to, part, (size_t)(slash + 1 - part));
            to += slash + 1 - part;
        }
        name = slash + 1;
    }
    memmove(to, name, strlen(name) + 1);
}

/* Add all images in and below `dir`. */
static int add_images(Listing *l, const char *dir, const char *kind, int normal)
{
    PathList images = {.left_out = &l->c->left_out}, masks = {0};
    int status = walk_images(&images, l->masks ? &masks : &l->c->masks, dir, l->err);
    for (int i = 0; i < images.n && !status; i++) {
        char *path = images.paths[i], *name = path_of(l->err, "%s", path + strlen(dir) + 1);
        if (name) {
            drop_image_folders(name);
            images.paths[i] = NULL; /* the category takes it over. */
        }
        if (!name || !category_add(l->c, path, name, kind, normal, l->err))
            status = -1;
        free(name);
    }
    path_list_free(&images), path_list_free(&masks);
    return status;
}

/* Does the folder hold only folders, none of them of plain images? Then each of them may be a kind. */
static int holds_kinds(const char *dir, Error *err)
{
    size_t n = 0, n_dirs = 0;
    char **names = dir_list(dir, 0, &n, err);
    int images = 0;
    for (size_t i = 0; names && i < n; i++)
        images |= is_picture(dir, names[i]);
    free(names);
    names = dir_list(dir, 1, &n_dirs, err);
    for (size_t i = 0; names && i < n_dirs; i++)
        images |= folder_role(names[i]) == FOLDER_IMAGES;
    free(names);
    return names && n_dirs > 0 && !images;
}

/* Add the anomalous images of a folder beside the normal ones whose name tells no kind (NG, bad): the
 * folders in it are the kinds, if it holds nothing else. */
static int add_anomalous(Listing *l, const char *dir, const char *kind)
{
    const int has_kinds = holds_kinds(dir, l->err);
    if (fail_any(l->err))
        return -1;
    if (!has_kinds)
        return add_images(l, dir, kind, 0);
    size_t n = 0;
    char **kinds = dir_list(dir, 1, &n, l->err);
    int status = kinds ? 0 : -1;
    for (size_t i = 0; i < n && !status; i++) {
        char *path = path_of(l->err, "%s/%s", dir, kinds[i]);
        PathList unused = {0}, *masks = l->masks ? &unused : &l->c->masks;
        if (!path)
            status = -1;
        else if (folder_role(kinds[i]) == FOLDER_MASKS)
            status = walk_images(masks, masks, path, l->err);
        else
            status = add_images(l, path, kinds[i], 0);
        path_list_free(&unused);
        free(path);
    }
    free(kinds);
    return status;
}

/* Say how many images lie in and below `path` and are not used. */
static int note_unused(Listing *l, const char *path, const char *why)
{
    PathList images = {0}, masks = {0};
    int status = walk_images(&images, &masks, path, l->err);
    if (!status && images.n)
        note(l->notes, "%s: %d image%s left out: %s", path, images.n, images.n == 1 ? " is" : "s are", why);
    path_list_free(&images), path_list_free(&masks);
    return status;
}

/* Say how many images lie beside the folders of the kinds. */
static int note_beside(Listing *l, const char *dir)
{
    size_t n = 0;
    int images = 0;
    char **names = dir_list(dir, 0, &n, l->err);
    for (size_t i = 0; names && i < n; i++)
        images += is_picture(dir, names[i]);
    free(names);
    if (names && images)
        note(l->notes, "%s: %d image%s left out: no folder tells whether they are normal", dir, images,
             images == 1 ? " is" : "s are");
    return names ? 0 : -1;
}

static int add_tests(Listing *l, const char *dir, int normal);

/* Look at one folder among the tests. normal 1: take good images, and masks; 0: anomalous ones. */
static int add_folder(Listing *l, const char *path, const char *name, int normal)
{
    PathList *masks = &l->c->masks;
    if (folder_is_within(path, l->normal, l->err) || folder_is_within(l->normal, path, l->err) ||
        folder_is_within(path, l->anomalous, l->err) || folder_is_within(path, l->masks, l->err))
        return 0;
    switch (folder_role(name)) {
    case FOLDER_IMAGES:
        return add_tests(l, path, normal);
    case FOLDER_NORMAL:
        return normal ? add_images(l, path, name, 1) : 0;
    case FOLDER_MASKS:
        return normal && !l->masks ? walk_images(masks, masks, path, l->err) : 0;
    case FOLDER_UNLABELLED:
        return normal ? note_unused(l, path, "they have no labels") : 0;
    case FOLDER_OTHER:
        if (!normal && !l->anomalous && folder_words(name) == FOLDER_NORMAL)
            return fail(
                l->err,
                "%s: is this a kind of anomaly? By its name it may be normal: rename it to good, or give "
                "the anomalous ones with --anomalous",
                path);
        /* fall through */
    case FOLDER_ANOMALOUS:
        return normal || l->anomalous                              ? 0
               : l->tests || folder_role(name) != FOLDER_ANOMALOUS ? add_images(l, path, name, 0)
                                                                   : add_anomalous(l, path, name);
    default:
        return 0;
    }
}

/* List the folders of tests in `dir`, by name. */
static int add_tests(Listing *l, const char *dir, int normal)
{
    size_t n = 0;
    char **names = dir_list(dir, 1, &n, l->err);
    int status = names ? 0 : -1;
    for (size_t i = 0; i < n && !status; i++) {
        char *path = path_of(l->err, "%s/%s", dir, names[i]);
        status = path ? add_folder(l, path, names[i], normal) : -1;
        free(path);
    }
    free(names);
    if (!status && normal && !folder_is_within(dir, l->normal, l->err))
        status = note_beside(l, dir);
    return status;
}

/* Beside a folder of tests, the category holds masks; other images there are told. */
static int look_beside_tests(Listing *l)
{
    size_t n = 0;
    const char *dir = l->c->dir;
    char **names = dir_list(dir, 1, &n, l->err);
    int status = names ? 0 : -1;
    for (size_t i = 0; i < n && !status; i++) {
        const FolderRole role = folder_role(names[i]);
        char *path = path_of(l->err, "%s/%s", dir, names[i]);
        if (!path)
            status = -1;
        else if (role == FOLDER_MASKS || role == FOLDER_UNLABELLED)
            status = add_folder(l, path, names[i], 1);
        else if (role != FOLDER_TRAIN && role != FOLDER_VALIDATION &&
                 !folder_is_within(path, l->tests, l->err) && !folder_is_within(l->normal, path, l->err) &&
                 !folder_is_within(path, l->anomalous, l->err) && !folder_is_within(path, l->masks, l->err))
            status = note_unused(l, path, "they lie beside the folder of tests");
        free(path);
    }
    free(names);
    return status;
}

/* ================================================================================================
 * Its normal images
 * ============================================================================================== */

/* Beside train/good, all in train is left out. */
static int look_beside_normal(Listing *l)
{
    size_t n = 0;
    char *train = folder_find(l->c->dir, FOLDER_TRAIN, l->err);
    char **names =
        train && !folder_is_within(train, l->normal, l->err) ? dir_list(train, 1, &n, l->err) : NULL;
    int status = 0;
    for (size_t i = 0; names && i < n && !status; i++) {
        char *path = path_of(l->err, "%s/%s", train, names[i]);
        if (!path || !folder_is_within(l->normal, path, l->err))
            status = path ? note_unused(l, path, "they lie beside the normal ones") : -1;
        free(path);
    }
    free(names), free(train);
    return status;
}

static int list_normal(Listing *l)
{
    PathList images = {.left_out = &l->c->left_out}, masks = {0};
    char *train = l->normal ? NULL : folder_find(l->c->dir, FOLDER_TRAIN, l->err),
         *dir = l->normal ? l->normal : train;
    int status =
        dir ? walk_images(&images, &masks, dir, l->err) : 0; /* without normal images, what else is there. */
    free(train);
    l->c->normal = images.paths;
    l->c->n_normal = images.n;
    path_list_free(&masks);
    return status || !l->normal ? status : look_beside_normal(l);
}

/* Keep some normal images for the test, evenly spread over the list. */
static int hold_out(Listing *l, int n_held)
{
    DatasetCategory *c = l->c;
    const int n = c->n_normal;
    int kept = 0;
    if (n_held >= n)
        return fail(l->err, "%s: --hold-out %d of %d normal images leaves none for the bank", c->dir, n_held,
                    n);
    for (int i = 0, held = 0; i < n; i++) {
        if (held == n_held || i != (int)((2LL * held + 1) * n / (2LL * n_held))) {
            c->normal[kept++] = c->normal[i];
            continue;
        }
        char *path = c->normal[i];
        c->normal[i] = NULL;
        if (!category_add(c, path, path + strlen(l->normal) + 1, "good", 1, l->err)) {
            memmove(c->normal + kept, c->normal + i + 1, (size_t)(n - i - 1) * sizeof *c->normal);
            c->n_normal = kept + n - i - 1;
            return -1;
        }
        held++;
    }
    c->n_normal = kept;
    c->n_held_out = n_held;
    return 0;
}

/* ================================================================================================
 * The whole
 * ============================================================================================== */

int is_category(const char *dir, const GivenFolders *given, Error *err)
{
    char *normal = folder_of_normal(dir, given->normal, err), *tests = folder_find(dir, FOLDER_TEST, err),
         *good = tests ? folder_find(tests, FOLDER_NORMAL, err) : NULL;
    const int is = normal || good;
    free(normal), free(tests), free(good);
    return is;
}

/* The test images: the good ones first, because their scores must come first. */
static int list_tests(Listing *l, int n_held)
{
    char kind[256];
    int status = l->tests ? look_beside_tests(l) : 0;
    const char *dir = l->tests ? l->tests : l->c->dir;
    if (!status)
        status = add_tests(l, dir, 1);
    if (!status && n_held && l->c->n_images)
        status = fail(l->err,
                      "%s: there are good test images, so --hold-out would change the bank for nothing", dir);
    else if (!status && n_held)
        status = hold_out(l, n_held);
    if (!status)
        status = add_tests(l, dir, 0);
    if (!status && l->anomalous) {
        status = folder_name(kind, l->anomalous, l->err);
        status = status ? status : add_anomalous(l, l->anomalous, kind);
    }
    return status;
}

int category_list(DatasetCategory *c, const char *dir, const CategoryRequest *r, Notes *notes, Error *err)
{
    const GivenFolders *given = &r->given, none = {0};
    Listing l = {.c = c,
                 .normal = folder_of_normal(dir, given->normal, err),
                 .anomalous = folder_given(dir, given->anomalous, err),
                 .masks = folder_given(dir, given->masks, err),
                 .tests = folder_find(dir, FOLDER_TEST, err),
                 .notes = notes,
                 .err = err};
    char *config = path_of(err, "%s/defects_config.json", dir);
    c->dir = path_of(err, "%s", dir);
    c->masks.left_out = &c->left_out;
    c->resize_masks = r->resize_masks;
    int status = c->dir && config ? fail_any(err) : -1;
    if (!status && file_exists(config)) {
        c->config = config;
        config = NULL;
    }
    if (!status &&
        (folder_is_within(l.anomalous, l.normal, err) || folder_is_within(l.normal, l.anomalous, err)))
        status = fail(err, "--anomalous %.600s: the normal images are in %.600s, so they would be both",
                      l.anomalous, l.normal);
    for (int i = 0; i < 2 && !status; i++) {
        const char *images = i ? l.anomalous : l.normal;
        if (folder_is_within(images, l.masks, err))
            status = fail(err, "--masks %.600s: the images in %.600s would be masks", l.masks, images);
    }
    if (!status && l.normal && !given->normal)
        status = folder_refuse_mixed(l.normal, &none, err);
    if (!status)
        status = list_normal(&l) || list_tests(&l, r->hold_out) ? -1 : fail_any(err);
    if (!status && l.masks)
        status = walk_images(&c->masks, &c->masks, l.masks, err);
    if (!status && notes->failed)
        status = fail_memory(err, "a note", ERROR_SIZE);
    free(config), free(l.tests), free(l.normal), free(l.anomalous);
    c->masks_dir = l.masks;
    return status;
}
