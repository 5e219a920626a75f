/* eval/masks.c - see masks.h. */
#include "eval/masks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "eval/truth.h"
#include "io/fail.h"

static const char *const SUFFIXES[] = {"_mask", "_gt", "_label"};

/* The length of the name without a usual suffix; its own length when it has none. */
static size_t bare_length(const char *name)
{
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof SUFFIXES / sizeof *SUFFIXES; i++) {
        const size_t m = strlen(SUFFIXES[i]);
        if (n > m && strcasecmp(name + n - m, SUFFIXES[i]) == 0)
            return n - m;
    }
    return n;
}

/* ================================================================================================
 * Trails: the folders of a file, and its name
 * ============================================================================================== */

enum { TRAIL_MAX = 40 };
typedef struct Trail {
    char *text; /* the parts, each with a NUL behind it. */
    int n;
    char *part[TRAIL_MAX]; /* the last one is the file's name without its ending. */
} Trail;

/* Cut the path at its slashes. Folders of masks and those like rgb are left out. */
static int trail_of(Trail *t, const char *path, Error *err)
{
    *t = (Trail){.text = strdup(path)};
    if (!t->text)
        return fail_memory(err, "a path", strlen(path));
    char *part = t->text, *slash;
    for (; (slash = strchr(part, '/')); part = slash + 1) {
        *slash = '\0';
        const FolderRole role = folder_role(part);
        if (*part && role != FOLDER_MASKS && role != FOLDER_IMAGES && t->n < TRAIL_MAX - 1)
            t->part[t->n++] = part;
    }
    char *dot = strrchr(part, '.');
    if (dot)
        *dot = '\0';
    t->part[t->n++] = part;
    return 0;
}

/* Are the first n folders of the mask's trail all among the image's, in this order? */
static int folders_agree(const Trail *mask, int n, const Trail *image)
{
    int at = 0;
    for (int i = 0; i < image->n - 1 && at < n; i++)
        at += folder_same_word(mask->part[at], image->part[i]);
    return at == n;
}

/* How a mask's name may lead to its image. */
typedef enum Form { FORM_NAME, FORM_SUFFIX, FORM_FOLDER, FORMS } Form;

/* Does the mask belong to the image, in this form? */
static int belongs(const Trail *mask, Form form, const Trail *image, const char *file)
{
    const int last = mask->n - 1 - (form == FORM_FOLDER);
    if (last < 0)
        return 0;
    const char *name = mask->part[last];
    const size_t n = form == FORM_SUFFIX ? bare_length(name) : strlen(name);
    const char *stem = image->part[image->n - 1];
    return ((strlen(stem) == n && strncmp(name, stem, n) == 0) ||
            (strlen(file) == n && strncmp(name, file, n) == 0)) &&
           folders_agree(mask, last, image);
}

/* ================================================================================================
 * Masks beside their images
 * ============================================================================================== */

static int same_folder(const DatasetImage *a, const DatasetImage *b)
{
    const char *x = strrchr(a->path, '/'), *y = strrchr(b->path, '/');
    return x - a->path == y - b->path && strncmp(a->path, b->path, (size_t)(x - a->path)) == 0;
}

/* Is `mask` the mask of `image`, another file of the same folder? */
static int is_mask_of(const DatasetImage *mask, const DatasetImage *image)
{
    if (strcmp(mask->stem, image->stem) == 0)
        return truth_looks_like_mask(mask->path) && !truth_looks_like_mask(image->path);
    const size_t n = bare_length(mask->stem);
    return n < strlen(mask->stem) && n == strlen(image->stem) && strncmp(mask->stem, image->stem, n) == 0;
}

/* Move the masks among the test images to the list of masks. The images of a folder stand together. */
static int take_beside(DatasetCategory *c, Error *err)
{
    char *is_mask = calloc((size_t)c->n_images + 1, 1);
    int kept = 0, status = is_mask ? 0 : fail_memory(err, "the list of masks", (size_t)c->n_images);
    for (int i = 0, first = 0; i < c->n_images && !status; i++) {
        first = same_folder(&c->images[first], &c->images[i]) ? first : i;
        for (int k = first; k < i; k++) {
            is_mask[k] |= (char)is_mask_of(&c->images[k], &c->images[i]);
            is_mask[i] |= (char)is_mask_of(&c->images[i], &c->images[k]);
        }
    }
    for (int i = 0; i < c->n_images && is_mask; i++)
        if (is_mask[i]) {
            status = path_add(&c->masks, path_of(err, "%s", c->images[i].path), err) ? -1 : status;
            image_drop(&c->images[i]);
        } else {
            c->images[kept++] = c->images[i];
        }
    c->n_images = is_mask ? kept : c->n_images;
    free(is_mask);
    return status;
}

/* ================================================================================================
 * Masks in folders of their own
 * ============================================================================================== */

/* The part of the path below the folder; NULL: it lies elsewhere. */
static const char *below(const char *path, const char *dir)
{
    const size_t n = dir ? strlen(dir) : 0;
    return n && strncmp(path, dir, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

static int image_trail(Trail *t, const DatasetCategory *c, const DatasetImage *image, Error *err)
{
    const char *inside = below(image->path, c->dir);
    char *path = inside ? path_of(err, "%s", inside) : path_of(err, "%s/%s", image->kind, image->name);
    int status = path ? trail_of(t, path, err) : -1;
    free(path);
    return status;
}

static int same_trail(const Trail *a, const Trail *b)
{
    int same = a->n == b->n;
    for (int i = 0; i < a->n && same; i++)
        same = strcmp(a->part[i], b->part[i]) == 0;
    return same;
}

/* The images that a mask fits in one form: of the wanted ones, those with the fewest folders. */
typedef struct Fit {
    int n;             /* images of different trails. */
    int first, second; /* the first of each of two of them. */
} Fit;

static Fit find_fit(const DatasetCategory *c, const Trail *trails, const Trail *mask, Form form, int normal)
{
    Fit fit = {0};
    for (int i = 0; i < c->n_images; i++) {
        const char *slash = strrchr(c->images[i].name, '/'), *file = slash ? slash + 1 : c->images[i].name;
        if (c->images[i].normal != normal || !belongs(mask, form, &trails[i], file))
            continue;
        if (fit.n == 0 || trails[i].n < trails[fit.first].n)
            fit = (Fit){1, i, i};
        else if (trails[i].n == trails[fit.first].n && !same_trail(&trails[i], &trails[fit.first]))
            fit.n++, fit.second = i;
    }
    return fit;
}

/* Tell two masks of one image that do not lie in a folder of its name: 000.png and 000_mask.png. */
static void note_second(const DatasetImage *image, Form form, const char *path, Notes *notes)
{
    const char *before = image->n_masks ? image->masks[image->n_masks - 1] : "",
               *slash = strrchr(before, '/');
    const size_t n = slash ? (size_t)(slash + 1 - before) : 0;
    if (image->n_masks == 1 &&
        (form != FORM_FOLDER || strncmp(before, path, n) != 0 || strchr(path + n, '/')))
        note(notes, "%.300s and %.300s: this image has both masks: they count together", image->masks[0],
             path);
}

/* Give the mask to all images of this trail: 000.png and 000.jpg have one mask, unless it is named after
 * one of them. */
static int give_mask(DatasetCategory *c, const Trail *trails, const Trail *mask, Form form, int first,
                     const char *path, Notes *notes, Error *err)
{
    int status = 0;
    for (int i = first; i < c->n_images && !status; i++) {
        DatasetImage *image = &c->images[i];
        const char *slash = strrchr(image->name, '/'), *file = slash ? slash + 1 : image->name;
        if (!same_trail(&trails[i], &trails[first]) || !belongs(mask, form, &trails[i], file))
            continue;
        PathList list = {.n = image->n_masks, .paths = image->masks};
        note_second(image, form, path, notes);
        status = path_add(&list, path_of(err, "%s", path), err);
        image->n_masks = list.n;
        image->masks = list.paths;
    }
    return status;
}

static int assign_mask(DatasetCategory *c, const Trail *trails, const char *path, Notes *notes, Error *err)
{
    Trail mask;
    const char *inside = below(path, c->masks_dir);
    inside = inside ? inside : below(path, c->dir);
    if (trail_of(&mask, inside ? inside : path, err))
        return -1;
    Fit fit = {0};
    Form form = FORM_NAME;
    for (; form < FORMS && !fit.n; form++) {
        fit = find_fit(c, trails, &mask, form, 0);
        if (!fit.n)
            fit = find_fit(c, trails, &mask, form, 1);
    }
    int status = 0;
    if (fit.n == 0)
        note(notes, "%s: this mask belongs to no test image", path);
    else if (fit.n > 1)
        note(notes, "%.300s: this mask fits %.300s and %.300s: it is not used", path,
             c->images[fit.first].path, c->images[fit.second].path);
    else
        status = give_mask(c, trails, &mask, form - 1, fit.first, path, notes, err);
    free(mask.text);
    return status;
}

int masks_assign(DatasetCategory *c, Notes *notes, Error *err)
{
    int status = take_beside(c, err);
    Trail *trails = calloc((size_t)c->n_images + 1, sizeof *trails);
    if (!trails)
        return fail_memory(err, "the list of masks", (size_t)c->n_images * sizeof *trails);
    for (int i = 0; i < c->n_images && !status; i++)
        status = image_trail(&trails[i], c, &c->images[i], err);
    for (int i = 0; i < c->masks.n && !status; i++)
        status = assign_mask(c, trails, c->masks.paths[i], notes, err);
    for (int i = 0; i < c->n_images; i++)
        free(trails[i].text);
    free(trails);
    path_list_free(&c->masks);
    return status;
}
