/* eval/readable.c - see readable.h. */
#include "eval/readable.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"

/* ================================================================================================
 * Files
 * ============================================================================================== */

/* NULL, or why the file cannot be read. Without memory for the sentence the file passes: it is met again. */
static char *reason_of(const char *path)
{
    Error err;
    Image image;
    if (image_read(&image, path, &err))
        return strdup(err.message);
    image_free(&image);
    return NULL;
}

/* The number of files, from the first on, that are decoded together: at least one. */
static int batch_size(const char *const *paths, int n)
{
    enum { MOST = 256 };
    int64_t pixels = 0;
    int count = 0;
    for (; count < n && count < MOST; count++) {
        int width, height;
        if (image_probe(paths[count], &width, &height, NULL) == 0)
            pixels += (int64_t)width * height;
        if (count > 0 && pixels > IMAGE_MAX_PIXELS)
            break;
    }
    return count;
}

void find_unreadable(char **reasons, const char *const *paths, int n,
                     void (*progress)(void *user, const char *what, int done, int total), void *user)
{
    for (int first = 0, count; first < n; first += count) {
        count = batch_size(paths + first, n - first);
#pragma omp parallel for schedule(dynamic, 1)
        for (int i = first; i < first + count; i++)
            reasons[i] = reason_of(paths[i]);
        if (progress)
            progress(user, "reading", first + count, n);
    }
}

/* ================================================================================================
 * Data sets
 * ============================================================================================== */

/* The files of a data set, category by category: normal images, then each test image and its masks. */
typedef struct Files {
    int n;
    const char **paths; /* [n] */
    char **reasons;     /* [n] NULL: it can be read. */
} Files;

static void files_free(Files *files)
{
    for (int i = 0; files->reasons && i < files->n; i++)
        free(files->reasons[i]);
    free(files->reasons), free(files->paths);
}

static int count_files(const DatasetCategory *c, int n_normal)
{
    int n = n_normal + c->n_images;
    for (int i = 0; i < c->n_images; i++)
        n += c->images[i].n_masks;
    return n;
}

static void add_files(Files *files, const DatasetCategory *c, int n_normal)
{
    for (int i = 0; i < n_normal; i++)
        files->paths[files->n++] = c->normal[i];
    for (int i = 0; i < c->n_images; i++) {
        files->paths[files->n++] = c->images[i].path;
        for (int m = 0; m < c->images[i].n_masks; m++)
            files->paths[files->n++] = c->images[i].masks[m];
    }
}

static int files_new(Files *files, int n, Error *err)
{
    *files = (Files){.paths = calloc((size_t)n + 1, sizeof *files->paths),
                     .reasons = calloc((size_t)n + 1, sizeof *files->reasons)};
    return files->paths && files->reasons
               ? 0
               : fail_memory(err, "the list of files", 2 * ((unsigned long long)n + 1) * sizeof(char *));
}

/* The file's name in the category's folder, so that it does not depend on the folder's place. */
static const char *name_below(const DatasetCategory *c, const char *path)
{
    const size_t n = c->dir ? strlen(c->dir) : 0;
    return n && strncmp(path, c->dir, n) == 0 && path[n] == '/' ? path + n + 1 : path;
}

/* Put the files [n] that have a reason on the category's list. */
static int note_files(DatasetCategory *c, const char *const *paths, char *const *reasons, int n, Error *err)
{
    int n_bad = 0;
    for (int i = 0; i < n; i++)
        n_bad += reasons[i] != NULL;
    if (n_bad && !(c->unreadable = calloc((size_t)n_bad, sizeof *c->unreadable)))
        return fail_memory(err, "the list of files", (unsigned long long)n_bad * sizeof *c->unreadable);
    for (int i = 0; i < n; i++) {
        if (!reasons[i])
            continue;
        Unreadable *u = &c->unreadable[c->n_unreadable];
        u->name = strdup(name_below(c, paths[i]));
        u->reason = strdup(reasons[i]);
        c->n_unreadable++;
        if (!u->name || !u->reason)
            return fail_memory(err, "the list of files", strlen(paths[i]));
    }
    return 0;
}

/* Free the image's masks: without one of them, the others do not show all of its defects. */
static void drop_masks(DatasetImage *image)
{
    for (int m = 0; m < image->n_masks; m++)
        free(image->masks[m]);
    free(image->masks);
    image->masks = NULL;
    image->n_masks = 0;
}

/* Remove the files that have a reason from the category. An image goes with its mask where masks are needed; else it
 * stays without. Returns the number of files that were looked at. */
static int drop_files(DatasetCategory *c, int n_normal, char *const *reasons)
{
    int at = 0, kept = 0, n_held_out = c->n_held_out;
    for (int i = 0; i < n_normal; i++)
        if (reasons[at++])
            free(c->normal[i]);
        else
            c->normal[kept++] = c->normal[i];
    c->n_normal = n_normal ? kept : c->n_normal;
    kept = 0;
    for (int i = 0; i < c->n_images; i++) {
        int bad = reasons[at++] != NULL, bad_mask = 0;
        for (int m = 0; m < c->images[i].n_masks; m++)
            bad_mask |= reasons[at++] != NULL;
        bad |= bad_mask && c->masks_needed && !c->images[i].normal;
        if (bad_mask && !bad)
            drop_masks(&c->images[i]);
        n_held_out -= bad && i < c->n_held_out;
        if (bad)
            image_drop(&c->images[i]);
        else
            c->images[kept++] = c->images[i];
    }
    c->n_images = kept;
    c->n_held_out = n_held_out;
    return at;
}

int dataset_read(Dataset *d, const DatasetLook *look, Error *err)
{
    Files files;
    int n = 0, at = 0;
    for (int i = 0; i < d->n; i++)
        n += count_files(&d->categories[i], look->with_bank ? d->categories[i].n_normal : 0);
    int status = files_new(&files, n, err);
    for (int i = 0; i < d->n && !status; i++)
        add_files(&files, &d->categories[i], look->with_bank ? d->categories[i].n_normal : 0);
    if (!status)
        find_unreadable(files.reasons, files.paths, files.n, look->progress, look->user);
    for (int i = 0; i < d->n && !status; i++) {
        DatasetCategory *c = &d->categories[i];
        const int n_normal = look->with_bank ? c->n_normal : 0;
        status = note_files(c, files.paths + at, files.reasons + at, count_files(c, n_normal), err);
        at += status ? 0 : drop_files(c, n_normal, files.reasons + at);
    }
    files_free(&files);
    return status;
}

int dataset_leave_out(DatasetCategory *c, const char *const *names, int n, Error *err)
{
    Files files;
    int status = files_new(&files, count_files(c, c->n_normal), err);
    if (!status)
        add_files(&files, c, c->n_normal);
    for (int i = 0; i < files.n && !status; i++)
        for (int k = 0; k < n && !status && !files.reasons[i]; k++)
            if (strcmp(names[k], name_below(c, files.paths[i])) == 0 &&
                !(files.reasons[i] = strdup("left out")))
                status = fail_memory(err, "the list of files", strlen(names[k]));
    if (!status)
        status = note_files(c, files.paths, files.reasons, files.n, err);
    if (!status)
        drop_files(c, c->n_normal, files.reasons);
    files_free(&files);
    return status;
}

int dataset_unreadable(const Dataset *d)
{
    int n = 0;
    for (int i = 0; i < d->n; i++)
        n += d->categories[i].n_unreadable;
    return n;
}
