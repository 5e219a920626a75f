/* eval/folders.c - see folders.h. */
#include "eval/folders.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "io/fail.h"
#include "io/file.h"

enum { PATH_SIZE = 4096, DEPTH_MAX = 32 };

/* ================================================================================================
 * The table of names
 * ============================================================================================== */

/* Where two folders have one role, the first in this table is taken: `normal` for the bank, and `good` beside
 * it for the test. */
static const struct {
    const char *word;
    FolderRole role;
} WORDS[] = {
    {"train", FOLDER_TRAIN},
    {"training", FOLDER_TRAIN},
    {"normal", FOLDER_NORMAL},
    {"ok", FOLDER_NORMAL},
    {"good", FOLDER_NORMAL},
    {"nominal", FOLDER_NORMAL},
    {"defect_free", FOLDER_NORMAL},
    {"pass", FOLDER_NORMAL},
    {"normal_test", FOLDER_NORMAL},
    {"test", FOLDER_TEST},
    {"test_public", FOLDER_TEST}, /* MVTec AD 2 */
    {"testing", FOLDER_TEST},
    {"tests", FOLDER_TEST},
    {"test_private", FOLDER_UNLABELLED},
    {"test_private_mixed", FOLDER_UNLABELLED},
    {"validation", FOLDER_VALIDATION},
    {"valid", FOLDER_VALIDATION},
    {"val", FOLDER_VALIDATION},
    {"bad", FOLDER_ANOMALOUS},
    {"ng", FOLDER_ANOMALOUS}, /* Real-IAD */
    {"ko", FOLDER_ANOMALOUS}, /* BTAD */
    {"nok", FOLDER_ANOMALOUS},
    {"abnormal", FOLDER_ANOMALOUS},
    {"anomalous", FOLDER_ANOMALOUS},
    {"anomaly", FOLDER_ANOMALOUS}, /* VisA */
    {"anomalies", FOLDER_ANOMALOUS},
    {"defect", FOLDER_ANOMALOUS},
    {"defects", FOLDER_ANOMALOUS},
    {"defective", FOLDER_ANOMALOUS},
    {"fail", FOLDER_ANOMALOUS},
    {"ground_truth", FOLDER_MASKS},
    {"groundtruth", FOLDER_MASKS},
    {"gt", FOLDER_MASKS}, /* MVTec 3D-AD */
    {"masks", FOLDER_MASKS},
    {"mask", FOLDER_MASKS},
    {"rgb", FOLDER_IMAGES},
    {"images", FOLDER_IMAGES},
    {"image", FOLDER_IMAGES},
    {"img", FOLDER_IMAGES},
    {"imgs", FOLDER_IMAGES},
    {"xyz", FOLDER_NO_IMAGES},
};
enum { N_WORDS = sizeof WORDS / sizeof *WORDS };

/* The letter as it is compared. */
static int plain_letter(char c)
{
    return c == '-' || c == ' ' ? '_' : tolower((unsigned char)c);
}

/* The length of the name without a final "_dir". */
static size_t word_length(const char *name)
{
    const size_t n = strlen(name);
    return n > 4 && strcasecmp(name + n - 4, "_dir") == 0 ? n - 4 : n;
}

int folder_same_word(const char *a, const char *b)
{
    const size_t n = word_length(a);
    int same = n == word_length(b);
    for (size_t i = 0; i < n && same; i++)
        same = plain_letter(a[i]) == plain_letter(b[i]);
    return same;
}

/* The word's place in the table, N_WORDS for another one. */
static int word_place(const char *name)
{
    int i = 0;
    while (i < N_WORDS && !folder_same_word(name, WORDS[i].word))
        i++;
    return i;
}

FolderRole folder_role(const char *name)
{
    const int place = word_place(name);
    return place < N_WORDS ? WORDS[place].role : FOLDER_OTHER;
}

/* Words that turn the others round: no_defect. */
static int is_negation(const char *word)
{
    static const char *const words[] = {"no", "non", "not", "free", "without", "zero"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (folder_same_word(word, words[i]))
            return 1;
    return 0;
}

FolderRole folder_words(const char *name)
{
    static const FolderRole order[] = {FOLDER_MASKS, FOLDER_ANOMALOUS, FOLDER_TEST, FOLDER_NORMAL};
    int found[FOLDER_NO_IMAGES + 1] = {0};
    char text[256], *next = NULL;
    snprintf(text, sizeof text, "%s", name);
    found[FOLDER_MASKS] = strncasecmp(text, "ground_truth", 12) == 0;
    for (char *word = strtok_r(text, "_- .0123456789", &next); word;
         word = strtok_r(NULL, "_- .0123456789", &next)) {
        if (is_negation(word))
            return FOLDER_OTHER;
        found[folder_role(word)] = 1;
    }
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (found[order[i]])
            return order[i];
    return FOLDER_OTHER;
}

/* ================================================================================================
 * Lists and paths
 * ============================================================================================== */

/* Capacities are powers of two, so none is stored. */
void *list_grow(void **items, int n, size_t size, Error *err)
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

char *path_of(Error *err, const char *format, ...)
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

int path_add(PathList *list, char *path, Error *err)
{
    char **place = path ? list_grow((void **)&list->paths, list->n, sizeof *place, err) : NULL;
    if (!place) {
        free(path);
        return -1;
    }
    *place = path;
    list->n++;
    return 0;
}

void path_list_free(PathList *list)
{
    for (int i = 0; i < list->n; i++)
        free(list->paths[i]);
    free(list->paths);
    *list = (PathList){.left_out = list->left_out};
}

int holds_no_images(const char *dir, const char *name)
{
    char rgb[PATH_SIZE];
    return folder_role(name) == FOLDER_NO_IMAGES && snprintf(rgb, sizeof rgb, "%s/rgb", dir) < PATH_SIZE &&
           dir_exists(rgb);
}

/* Did `samlad eval` write this folder? Its pictures are no inputs. */
static int is_run(const char *dir)
{
    char facts[PATH_SIZE], records[PATH_SIZE];
    return snprintf(facts, sizeof facts, "%s/run.json", dir) < PATH_SIZE && file_exists(facts) &&
           snprintf(records, sizeof records, "%s/records", dir) < PATH_SIZE && dir_exists(records);
}

static int walk(PathList *images, PathList *masks, const char *dir, int depth, Error *err)
{
    if (depth > DEPTH_MAX)
        return fail(err, "%s: folders are nested too deep", dir);
    if (is_run(dir))
        return 0;
    int status = 0;
    for (int dirs = 0; dirs <= 1 && !status; dirs++) {
        size_t n = 0;
        char **names = dir_list(dir, dirs, &n, err);
        status = names ? 0 : -1;
        for (size_t i = 0; i < n && !status; i++) {
            char *path = path_of(err, "%s/%s", dir, names[i]);
            if (!path)
                status = -1;
            else if (!dirs && is_picture(dir, names[i])) {
                status = path_add(images, path, err);
                path = NULL;
            } else if (!dirs && images->left_out) {
                left_out_note(images->left_out, dir, names[i]);
            } else if (dirs && !holds_no_images(dir, names[i]))
                status =
                    walk(folder_role(names[i]) == FOLDER_MASKS ? masks : images, masks, path, depth + 1, err);
            free(path);
        }
        free(names);
    }
    return status;
}

int walk_images(PathList *images, PathList *masks, const char *dir, Error *err)
{
    return walk(images, masks, dir, 0, err);
}

/* ================================================================================================
 * Places
 * ============================================================================================== */

char *folder_given(const char *dir, const char *given, Error *err)
{
    if (!given)
        return NULL;
    size_t n = strlen(given);
    while (n > 1 && given[n - 1] == '/')
        n--;
    char *below = path_of(err, "%s/%.*s", dir, (int)n, given);
    if (below && dir_exists(below))
        return below;
    free(below);
    return dir_exists(given) ? path_of(err, "%.*s", (int)n, given) : NULL;
}

char *folder_find(const char *dir, FolderRole role, Error *err)
{
    size_t n = 0, best = 0;
    int place = N_WORDS;
    /* a folder that is not ours to read has no roles. */
    char **names = access(dir, R_OK | X_OK) == 0 ? dir_list(dir, 1, &n, err) : NULL, *path = NULL;
    for (size_t i = 0; names && i < n; i++) {
        const int here = word_place(names[i]);
        if (here < place && WORDS[here].role == role)
            best = i, place = here;
    }
    if (place < N_WORDS)
        path = path_of(err, "%s/%s", dir, names[best]);
    free(names);
    return path;
}

/* The first image or mask below `dir`; malloc'd, NULL: none. */
static char *first_image(const char *dir, Error *err)
{
    PathList images = {0};
    walk_images(&images, &images, dir, err);
    char *first = images.n ? path_of(err, "%s", images.paths[0]) : NULL;
    path_list_free(&images);
    return first;
}

char *folder_of_normal(const char *dir, const char *given, Error *err)
{
    if (given)
        return folder_given(dir, given, err);
    char *train = folder_find(dir, FOLDER_TRAIN, err), *first = train ? first_image(train, err) : NULL;
    char *normal = first ? folder_find(train, FOLDER_NORMAL, err) : folder_find(dir, FOLDER_NORMAL, err);
    if (first && !normal) {
        normal = train;
        train = NULL;
    }
    free(train), free(first);
    return normal;
}

/* The path without links. NULL: there is none, or no memory. */
static char *real_path(const char *path, Error *err)
{
    char *real = path ? realpath(path, NULL) : NULL;
    if (path && !real && errno == ENOMEM)
        fail_memory(err, path, strlen(path));
    return real;
}

int folder_is_within(const char *inner, const char *outer, Error *err)
{
    char *in = real_path(inner, err), *out = real_path(outer, err);
    const size_t n = out ? strlen(out) : 0;
    const int within =
        in && out && strncmp(in, out, n) == 0 && (in[n] == '\0' || in[n] == '/' || out[n - 1] == '/');
    free(in), free(out);
    return within;
}

int folder_name(char name[256], const char *dir, Error *err)
{
    char *real = realpath(dir, NULL), *slash = real ? strrchr(real, '/') : NULL;
    if (!real)
        return fail(err, "%s: cannot be found: %s", dir, strerror(errno));
    snprintf(name, 256, "%.255s", slash && slash[1] ? slash + 1 : "data"); /* "/" has no name. */
    free(real);
    return 0;
}

/* ================================================================================================
 * Mixed folders
 * ============================================================================================== */

static int refuse(const char *dir, char *const spared[2], int depth, Error *err);

/* Refuse the images of `path`, which lie in the folder that holds `normal` (NULL: it holds none). Folders
 * of tests are refused empty, too. */
static int refuse_one(const char *path, FolderRole role, const char *normal, Error *err)
{
    const int whole = file_exists(path) || role == FOLDER_TEST || role == FOLDER_UNLABELLED;
    const char *what = role == FOLDER_MASKS       ? "masks"
                       : role == FOLDER_ANOMALOUS ? "anomalous images"
                                                  : "test images";
    char *first = whole ? path_of(err, "%s", path) : first_image(path, err);
    int status = 0;
    if (first && normal)
        status =
            fail(err, "%.600s: %s would be taken for normal ones: give %.600s instead", first, what, normal);
    else if (first)
        status =
            fail(err, "%.600s: %s would be taken for normal ones: give the folder of the normal ones alone",
                 first, what);
    free(first);
    return status ? status : fail_any(err);
}

/* A folder while it is checked. */
typedef struct Mixed {
    const char *dir;
    char *normal;        /* the folder of normal images in it, or NULL. */
    char *const *spared; /* [2] folders that the user named, or NULL; no image is taken from them. */
    int depth;
} Mixed;

/* Do folders of this name hold no normal images, or not only such? */
static int is_refused(FolderRole role)
{
    return role == FOLDER_MASKS || role == FOLDER_ANOMALOUS || role == FOLDER_TEST ||
           role == FOLDER_UNLABELLED;
}

/* The role of the name, or of its words. */
static FolderRole refused_role(const char *name)
{
    const FolderRole role = folder_role(name);
    const FolderRole words = role == FOLDER_OTHER ? folder_words(name) : FOLDER_OTHER;
    return words == FOLDER_OTHER || words == FOLDER_NORMAL ? role : words;
}

/* Check the folder `name`. Beside normal images all others are refused, but for validation. Without normal
 * ones the folders' names must tell. */
static int refuse_folder(const Mixed *m, const char *name, Error *err)
{
    const FolderRole role = refused_role(name);
    char *path = path_of(err, "%s/%s", m->dir, name);
    int status = path ? 0 : -1;
    if (status || folder_is_within(path, m->spared[0], err) || folder_is_within(path, m->spared[1], err) ||
        holds_no_images(m->dir, name))
        ;
    else if (m->normal ? !folder_is_within(m->normal, path, err) && role != FOLDER_VALIDATION
                       : is_refused(role))
        status = refuse_one(path, role, m->normal, err);
    else
        status = refuse(path, m->spared, m->depth + 1, err);
    free(path);
    return status;
}

/* Images that lie in the same folder as the folder of the normal ones. */
static int refuse_files(const Mixed *m, Error *err)
{
    size_t n = 0;
    char **names = m->normal ? dir_list(m->dir, 0, &n, err) : NULL;
    int status = m->normal && !names ? -1 : 0;
    for (size_t i = 0; i < n && !status; i++) {
        char *path = path_of(err, "%s/%s", m->dir, names[i]);
        if (!path || is_picture(m->dir, names[i]))
            status = path ? refuse_one(path, FOLDER_OTHER, m->normal, err) : -1;
        free(path);
    }
    free(names);
    return status;
}

static int refuse(const char *dir, char *const spared[2], int depth, Error *err)
{
    if (depth > DEPTH_MAX)
        return fail(err, "%s: folders are nested too deep", dir);
    Mixed m = {.dir = dir, .normal = folder_of_normal(dir, NULL, err), .spared = spared, .depth = depth};
    size_t n = 0;
    char **names = dir_list(dir, 1, &n, err);
    int status = names ? 0 : -1;
    /* folders with a role last: images/normal is a better hint than masks. */
    for (int named = 0; named <= 1; named++)
        for (size_t i = 0; i < n && !status; i++)
            if (named == is_refused(refused_role(names[i])))
                status = refuse_folder(&m, names[i], err);
    if (!status)
        status = refuse_files(&m, err);
    free(names), free(m.normal);
    return status;
}

int folder_refuse_mixed(const char *dir, const GivenFolders *given, Error *err)
{
    char name[256];
    fail_none(err);
    if (folder_name(name, dir, err))
        return -1;
    char *above = path_of(err, "%s/..", dir), parent[256];
    if (!above || folder_name(parent, above, err)) {
        free(above);
        return -1;
    }
    free(above);
    if (folder_role(name) == FOLDER_MASKS || folder_role(parent) == FOLDER_MASKS)
        return refuse_one(dir, FOLDER_MASKS, NULL, err);
    char *spared[2] = {folder_given(dir, given->anomalous, err), folder_given(dir, given->masks, err)};
    const int status = refuse(dir, spared, 0, err);
    free(spared[0]), free(spared[1]);
    return status ? status : fail_any(err);
}
