/* command/inputs.c - see inputs.h. */
#include "command/inputs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "command/messages.h"
#include "eval/folders.h"
#include "eval/readable.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "library/names.h"

/* ---- the list ----------------------------------------------------------------------------------*/

static int list_add(ImageList *list, const char *path, const char *name, Error *err)
{
    if (list->n == list->capacity) {
        int capacity = 2 * list->capacity + 16;
        char **paths = realloc(list->paths, (size_t)capacity * sizeof *paths);
        list->paths = paths ? paths : list->paths;
        char **names = paths ? realloc(list->names, (size_t)capacity * sizeof *names) : NULL;
        list->names = names ? names : list->names;
        if (!names)
            return fail_memory(err, "the list of images", (unsigned long long)capacity * 16);
        list->capacity = capacity;
    }
    char *a = strdup(path), *b = a ? strdup(name) : NULL;
    if (!b) {
        free(a);
        return fail_memory(err, "the list of images", strlen(path));
    }
    list->paths[list->n] = a;
    list->names[list->n++] = b;
    return 0;
}

void list_free(ImageList *list)
{
    for (int i = 0; i < list->n; i++)
        free(list->paths[i]), free(list->names[i]);
    for (int i = 0; i < list->n_unreadable; i++)
        free(list->unreadable[i]);
    free(list->paths), free(list->names), free(list->unreadable), free(list->is_twin);
}

/* Add all images of a folder and of the folders in it, sorted. `below` is the path under the folder that
 * was given. */
static int list_folder(ImageList *list, const char *dir, const char *below, int depth, Error *err)
{
    if (depth > 32)
        return fail(err, "%s: folders are nested too deep", dir);
    for (int want_dirs = 0; want_dirs <= 1; want_dirs++) {
        size_t n;
        char **names = dir_list(dir, want_dirs, &n, err);
        int status = names ? 0 : -1;
        for (size_t i = 0; names && i < n && !status; i++) {
            char path[PATH_SIZE], name[PATH_SIZE];
            if (snprintf(path, sizeof path, dir[strlen(dir) - 1] == '/' ? "%s%s" : "%s/%s", dir, names[i]) >=
                    PATH_SIZE ||
                snprintf(name, sizeof name, "%s%s", below, names[i]) >= PATH_SIZE - 1)
                status = fail(err, "%s: the path is too long", dir);
            else if (want_dirs && holds_no_images(dir, names[i]))
                status = 0;
            else if (want_dirs)
                status = list_folder(list, path, strcat(name, "/"), depth + 1, err);
            else if (is_picture(dir, names[i]))
                status = list_add(list, path, name, err);
            else
                left_out_note(&list->left_out, dir, names[i]);
        }
        free(names);
        if (status)
            return status;
    }
    return 0;
}

int list_inputs(ImageList *list, const Args *args, Error *err)
{
    for (int i = 0; i < args->n_inputs; i++) {
        const char *path = args->inputs[i], *slash = strrchr(path, '/');
        int before = list->n;
        if (!dir_exists(path)) {
            if (list_add(list, path, slash ? slash + 1 : path, err))
                return -1;
        } else if (list_folder(list, path, "", 0, err)) {
            return -1;
        } else if (list->n == before) {
            return fail(
                err,
                "%s: no images in this folder (.png .jpg .jpeg .pgm .ppm .pnm .pbm .bmp .dib .tif .tiff)%s%s",
                path, list->left_out.n ? "; these are no pictures: " : "", list->left_out.names);
        }
    }
    return 0;
}

/* Drop the images in and below the folder. */
static void drop_folder(ImageList *list, const char *folder, Error *err)
{
    int kept = 0;
    for (int i = 0; i < list->n; i++)
        if (folder_is_within(list->paths[i], folder, err)) {
            free(list->paths[i]), free(list->names[i]);
        } else {
            list->paths[kept] = list->paths[i];
            list->names[kept++] = list->names[i];
        }
    list->n = kept;
}

/* Leave out the folders of anomalous images and masks that were given. */
static int drop_given(ImageList *list, const Args *args, Error *err)
{
    const char *const given[] = {args->anomalous, args->masks}, *const options[] = {"anomalous", "masks"};
    fail_none(err);
    for (int k = 0; k < 2; k++) {
        int found = !given[k];
        for (int i = -1; i < args->n_inputs && given[k]; i++) {
            char *folder = folder_given(i < 0 ? "." : args->inputs[i], given[k], err);
            found |= folder != NULL;
            drop_folder(list, folder, err);
            free(folder);
        }
        if (!found && !fail_any(err))
            return fail(err, "--%s %s: there is no such folder, neither here nor in an input", options[k],
                        given[k]);
    }
    return fail_any(err);
}

/* The folder --normal of each input, or by itself. */
static int list_given_normal(ImageList *list, const Args *args, Error *err)
{
    for (int i = 0; i < args->n_inputs || (i == 0 && args->n_inputs == 0); i++) {
        fail_none(err);
        char *folder = folder_given(args->n_inputs ? args->inputs[i] : ".", args->normal, err);
        int status = folder          ? list_folder(list, folder, "", 0, err)
                     : fail_any(err) ? -1
                                     : fail(err, "--normal %s: there is no such folder", args->normal);
        free(folder);
        if (status)
            return -1;
    }
    return 0;
}

int list_normal(ImageList *list, const Args *args, Error *err)
{
    const GivenFolders given = {NULL, args->anomalous, args->masks};
    int status = args->normal ? list_given_normal(list, args, err) : list_inputs(list, args, err);
    for (int i = 0; i < args->n_inputs && !args->normal && !status; i++)
        if (dir_exists(args->inputs[i]))
            status = folder_refuse_mixed(args->inputs[i], &given, err);
    if (!status)
        status = drop_given(list, args, err);
    return !status && list->n == 0 && !args->from ? fail(err, "there are no normal images") : status;
}

typedef struct FileId {
    dev_t device;
    ino_t file;
    int index; /* in the list */
} FileId;

static int by_file(const void *a, const void *b)
{
    const FileId *x = a, *y = b;
    return x->device != y->device ? (x->device > y->device) - (x->device < y->device)
           : x->file != y->file   ? (x->file > y->file) - (x->file < y->file)
                                  : x->index - y->index;
}

int list_drop_repeats(ImageList *list, int *n_dropped, Error *err)
{
    int n = 0, kept = 0;
    FileId *ids = calloc((size_t)list->n + 1, sizeof *ids);
    if (!ids)
        return fail_memory(err, "the list of images", (unsigned long long)list->n * sizeof *ids);
    for (int i = 0; i < list->n; i++) {
        struct stat info;
        if (stat(list->paths[i], &info) == 0) /* a missing file is reported when it is read. */
            ids[n++] = (FileId){info.st_dev, info.st_ino, i};
    }
    qsort(ids, (size_t)n, sizeof *ids, by_file);
    for (int i = n - 1; i > 0; i--)
        if (ids[i].device == ids[i - 1].device && ids[i].file == ids[i - 1].file) {
            free(list->paths[ids[i].index]), free(list->names[ids[i].index]);
            list->paths[ids[i].index] = NULL;
        }
    for (int i = 0; i < list->n; i++)
        if (list->paths[i]) {
            list->paths[kept] = list->paths[i];
            list->names[kept++] = list->names[i];
        }
    *n_dropped = list->n - kept;
    list->n = kept;
    free(ids);
    return 0;
}

/* ---- unreadable images -----------------------------------------------------------------------*/

/* Move the names of images that have a reason to list->unreadable, which has room for all. */
static void drop_unreadable(ImageList *list, char *const *reasons)
{
    int kept = 0;
    for (int i = 0; i < list->n; i++)
        if (reasons[i]) {
            list->unreadable[list->n_unreadable++] = list->names[i];
            free(list->paths[i]);
        } else {
            list->paths[kept] = list->paths[i];
            list->names[kept++] = list->names[i];
        }
    list->n = kept;
}

/* Tell the reasons. A single one that ends the command is the command's one line. */
static int tell_unreadable(const ImageList *list, char *const *reasons, int n, int skip, Error *err)
{
    static const char *const hint = "--skip-unreadable goes on without";
    Error line;
    for (int i = 0; i < list->n; i++)
        if (reasons[i] && n == 1 && !skip)
            return fail(err, "%s (%s it)", reasons[i], hint);
        else if (reasons[i])
            fail(&line, "%s", reasons[i]), failed(&line);
    if (!skip)
        return fail(err, "%d of %d images cannot be read, nothing was begun (%s them)", n, list->n, hint);
    if (n == list->n)
        return fail(err, "none of the images can be read");
    fail(&line, "%d of %d images cannot be read and %s left out", n, list->n, n == 1 ? "is" : "are");
    failed(&line);
    return 0;
}

int list_check_readable(ImageList *list, int skip, Error *err)
{
    Progress progress = {0};
    int n = 0, status = 0;
    char **reasons = calloc((size_t)list->n + 1, sizeof *reasons);
    list->unreadable = calloc((size_t)list->n + 1, sizeof *list->unreadable);
    if (!reasons || !list->unreadable)
        status = fail_memory(err, "the list of images", (unsigned long long)list->n * sizeof *reasons);
    else
        find_unreadable(reasons, (const char *const *)list->paths, list->n, show_progress, &progress);
    for (int i = 0; i < list->n && !status; i++)
        n += reasons[i] != NULL;
    if (n)
        status = tell_unreadable(list, reasons, n, skip, err);
    if (n && !status)
        drop_unreadable(list, reasons);
    for (int i = 0; reasons && i < list->n + list->n_unreadable; i++)
        free(reasons[i]);
    free(reasons);
    return status;
}

/* ---- refusals ---------------------------------------------------------------------------------*/

/* The real path of the folder that `path` names or will lie in: parts that do not exist yet are left out.
 * malloc'd; NULL after a sentence. */
static char *real_folder(const char *path, Error *err)
{
    char above[PATH_SIZE];
    if (snprintf(above, sizeof above, "%s", path) >= PATH_SIZE) {
        fail(err, "%s: the path is too long", path);
        return NULL;
    }
    while (!dir_exists(above)) {
        if (strcmp(above, ".") == 0) { /* it is unreadable, or gone. */
            fail(err, "%s: the current folder cannot be read", path);
            return NULL;
        }
        char *slash = strrchr(above, '/');
        if (!slash)
            strcpy(above, ".");
        else
            slash[slash == above] = '\0'; /* the first slash is a folder itself. */
    }
    char *real = realpath(above, NULL);
    if (!real)
        fail(err, "%s: cannot be found: %s", above, strerror(errno));
    return real;
}

/* Is the folder `inner` the folder `outer`, or below it? Both are real paths. */
static int is_within(const char *inner, const char *outer)
{
    size_t n = strlen(outer);
    return strncmp(inner, outer, n) == 0 && (inner[n] == '\0' || inner[n] == '/' || outer[n - 1] == '/');
}

/* Folders that are given are searched. The folder of a file that is given is not. */
int check_apart(const Args *args, Error *err)
{
    char *out = real_folder(args->out, err);
    int status = out ? 0 : -1;
    for (int i = 0; i < args->n_inputs && !status; i++) {
        const char *input = args->inputs[i];
        int is_dir = dir_exists(input);
        char *folder = real_folder(input, err);
        if (!folder)
            status = -1;
        else if (is_dir ? is_within(out, folder) : dir_exists(args->out) && strcmp(out, folder) == 0)
            status = fail(err, "%s: the results would lie among the images of %s: give another folder",
                          args->out, input);
        free(folder);
    }
    free(out);
    return status;
}

/* Do both names lead to one file? Another hard link is another name that we cannot see. */
static int is_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return a && b && stat(a, &x) == 0 && stat(b, &y) == 0 && S_ISREG(x.st_mode) && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

int check_spared(const char *out, const Args *args, const ImageList *list, Error *err)
{
    const SamladWeights *w = &args->weights;
    const char *const others[] = {args->bank, w->vit, w->sam, w->featup, w->dcga};
    const char *lost = NULL;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        lost = is_same_file(out, others[i]) ? others[i] : lost;
    for (int i = 0; list && i < list->n; i++)
        lost = is_same_file(out, list->paths[i]) ? list->paths[i] : lost;
    for (int i = 0; i < args->n_inputs; i++)
        lost = is_same_file(out, args->inputs[i]) ? args->inputs[i] : lost;
    return lost ? fail(err, "%.300s: %.300s is an input and would be overwritten: give another name", out,
                       lost)
                : 0;
}

int check_replaceable(const char *out, Error *err)
{
    struct stat info;
    if (stat(out, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0)
        return 0;
    Safetensors *file = st_open(out, NULL);
    st_close(file);
    return file ? 0
                : fail(err, "%s: this file exists and is not a bank: remove it, or give another name", out);
}

/* Length of a path without its ending. */
static int stem_length(const char *path)
{
    const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
    return (int)(dot && (!slash || dot > slash) ? dot - path : (long)strlen(path));
}

/* The name that the image's outputs begin with, with its folders: malloc'd; NULL: no memory. */
static char *output_stem(const ImageList *list, int i)
{
    const char *name = list->names[i], *slash = strrchr(name, '/');
    const size_t n = list->is_twin && list->is_twin[i] ? strlen(name) : (size_t)stem_length(name);
    const size_t folders = slash ? (size_t)(slash + 1 - name) : 0;
    char *stem = malloc(folders + OUTPUT_NAME);
    if (!stem)
        return NULL;
    memcpy(stem, name, folders);
    output_name(stem + folders, name + folders, n - folders);
    return stem;
}

/* The name of an image's outputs. */
typedef struct OutputName {
    char *stem;
    int image; /* in the list */
} OutputName;

static int by_stem(const void *a, const void *b)
{
    return strcmp(((const OutputName *)a)->stem, ((const OutputName *)b)->stem);
}

static void output_names_free(OutputName *names, int n)
{
    for (int i = 0; names && i < n; i++)
        free(names[i].stem);
    free(names);
}

/* The names of all outputs [n], sorted; NULL: no memory. */
static OutputName *output_names(const ImageList *list, Error *err)
{
    OutputName *names = calloc((size_t)list->n + 1, sizeof *names);
    int complete = names != NULL;
    for (int i = 0; i < list->n && complete; i++) {
        names[i] = (OutputName){output_stem(list, i), i};
        complete = names[i].stem != NULL;
    }
    if (complete) {
        qsort(names, (size_t)list->n, sizeof *names, by_stem);
        return names;
    }
    fail_memory(err, "the list of outputs", (unsigned long long)list->n * sizeof *names);
    output_names_free(names, list->n);
    return NULL;
}

/* Mark the images whose outputs share a name. *changed: some were not marked. */
static int mark_twins(ImageList *list, int *changed, Error *err)
{
    OutputName *names = output_names(list, err);
    *changed = 0;
    for (int i = 1; names && i < list->n; i++)
        if (by_stem(&names[i - 1], &names[i]) == 0) {
            char *one = &list->is_twin[names[i - 1].image], *other = &list->is_twin[names[i].image];
            *changed |= !*one || !*other;
            *one = *other = 1;
        }
    output_names_free(names, list->n);
    return names ? 0 : -1;
}

int check_outputs(ImageList *list, const char *out, Error *err)
{
    if (!(list->is_twin = calloc((size_t)list->n + 1, 1)))
        return fail_memory(err, "the list of outputs", (size_t)list->n);
    for (int changed = 1; changed;) /* a.png beside a.jpg keeps its ending, and then a.png.png, too. */
        if (mark_twins(list, &changed, err))
            return -1;
    OutputName *names = output_names(list, err);
    int status = names ? 0 : -1;
    for (int i = 1; i < list->n && !status; i++)
        if (by_stem(&names[i - 1], &names[i]) == 0)
            status =
                fail(err,
                     "%s%s%.300s: two images would write outputs of this name: give them in two calls, or "
                     "give a folder above both",
                     out ? out : "", out ? "/" : "", names[i].stem);
    output_names_free(names, list->n);
    return status;
}

int output_prefix(char prefix[PATH_SIZE], const char *out, const ImageList *list, int i, Error *err)
{
    char *stem = output_stem(list, i);
    if (!stem)
        return fail_memory(err, "the name of an output", strlen(list->names[i]));
    const int n = snprintf(prefix, PATH_SIZE, "%s%s%s", out ? out : "", out ? "/" : "", stem);
    free(stem);
    if (n >= PATH_SIZE - 32)
        return fail(err, "%s: the path is too long", list->paths[i]);
    char *last = out ? strrchr(prefix, '/') : NULL;
    if (!last) /* beside the image: the folder is there. */
        return 0;
    *last = '\0';
    int status = dir_make(prefix, err);
    *last = '/';
    return status;
}

/* Give the images new names [n], which are copied. */
static int rename_images(ImageList *list, const char *const *names, Error *err)
{
    for (int i = 0; i < list->n; i++) {
        char *name = strdup(names[i]);
        if (!name)
            return fail_memory(err, "the list of images", strlen(names[i]));
        free(list->names[i]);
        list->names[i] = name;
    }
    return 0;
}

int list_name_beside(ImageList *list, Error *err)
{
    return rename_images(list, (const char *const *)list->paths, err);
}

/* Real paths: names with ".." would leave the folder of the outputs. */
static int name_by_folders(ImageList *list, Error *err)
{
    char **real = calloc((size_t)list->n + 1, sizeof *real);
    const char **names = NULL;
    int status = real ? 0 : fail_memory(err, "the list of images", (size_t)list->n * sizeof *real);
    for (int i = 0; i < list->n && !status; i++)
        if (!(real[i] = realpath(list->paths[i], NULL)))
            status = fail(err, "%s: cannot be found: %s", list->paths[i], strerror(errno));
    if (!status)
        status = (names = names_apart((const char *const *)real, list->n, err)) ? 0 : -1;
    if (!status)
        status = rename_images(list, names, err);
    for (int i = 0; real && i < list->n; i++)
        free(real[i]);
    free(real), free(names);
    return status;
}

int list_name_apart(ImageList *list, Error *err)
{
    char **names = calloc((size_t)list->n + 1, sizeof *names);
    int has_twins = 0;
    if (!names)
        return fail_memory(err, "the list of images", (unsigned long long)list->n * sizeof *names);
    for (int i = 0; i < list->n; i++)
        names[i] = list->names[i];
    qsort(names, (size_t)list->n, sizeof *names, compare_names);
    for (int i = 1; i < list->n; i++)
        has_twins |= strcmp(names[i - 1], names[i]) == 0;
    free(names);
    return has_twins ? name_by_folders(list, err) : 0;
}
