/* io/shards.c - see shards.h. */
#include "io/shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/format.h"
#include "io/json.h"

enum { MAX_SHARDS = 1024, MAX_PATH_LENGTH = 4096 };

/* ---- an index -----------------------------------------------------------------------------------------*/

/* The shards of an index while they are opened. */
typedef struct Shards {
    const char *index;    /* its path */
    const Json **entries; /* [n_entries] weight_map's, sorted by file */
    size_t n_entries;
    Safetensors *files[MAX_SHARDS];
    size_t n_files;
    StWriter *writer;
    Error *err;
} Shards;

static int has_ending(const char *name, const char *ending)
{
    const size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp((*(const Json *const *)a)->string, (*(const Json *const *)b)->string);
}

/* A shard lies beside its index: a name with a folder in it could lead anywhere. */
static int check_entry(const Shards *s, const Json *entry)
{
    if (entry->type != JSON_STRING)
        return fail(s->err, "%s: weight_map: the file of tensor %.100s is not a string", s->index,
                    entry->key);
    const char *name = entry->string;
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '/' || *c == '\\')
            return fail(s->err,
                        "%s: weight_map: tensor %.100s is in \"%.100s\", expected a file beside the index",
                        s->index, entry->key, name);
    if (is_pytorch_name(name))
        return refuse_pytorch(s->index, "an index of PyTorch files", s->err);
    if (name[0] == '.' || !has_ending(name, ".safetensors"))
        return fail(s->err, "%s: weight_map: tensor %.100s is in \"%.100s\", expected a .safetensors file",
                    s->index, entry->key, name);
    return 0;
}

static int read_entries(Shards *s, const Json *root)
{
    const Json *map = json_get(root, "weight_map");
    if (!map || map->type != JSON_OBJECT || map->n == 0)
        return fail(s->err,
                    "%s: has no weight_map, so it is no index of shards: give the safetensors file or "
                    "its folder",
                    s->index);
    s->entries = malloc(map->n * sizeof *s->entries);
    if (!s->entries)
        return fail_memory(s->err, s->index, map->n * sizeof *s->entries);
    for (; s->n_entries < map->n; s->n_entries++) {
        if (check_entry(s, &map->children[s->n_entries]))
            return -1;
        s->entries[s->n_entries] = &map->children[s->n_entries];
    }
    qsort(s->entries, s->n_entries, sizeof *s->entries, compare_files);
    return 0;
}

/* Open the file of these n entries, which must name all its tensors. */
static int open_shard(Shards *s, const Json *const *entries, size_t n)
{
    const char *slash = strrchr(s->index, '/'), *name = entries[0]->string;
    char path[MAX_PATH_LENGTH];
    const int length =
        snprintf(path, sizeof path, "%.*s%s", slash ? (int)(slash + 1 - s->index) : 0, s->index, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return fail(s->err, "%s: the path of shard %.100s is too long", s->index, name);
    if (s->n_files == MAX_SHARDS)
        return fail(s->err, "%s: weight_map names more than %d files", s->index, MAX_SHARDS);
    if (!file_exists(path))
        return fail(s->err, "%s: the shard %.200s, which weight_map names, is missing", s->index, name);
    Safetensors *file = st_open(path, s->err);
    if (!file)
        return -1;
    s->files[s->n_files++] = file;
    for (size_t i = 0; i < n; i++)
        if (!st_find(file, entries[i]->key))
            return fail(s->err, "%s: weight_map: tensor %.200s is not in %.200s", s->index, entries[i]->key,
                        name);
    if (st_count(file) != n)
        return fail(s->err, "%s: %.200s holds %zu tensors, but weight_map names %zu of them", s->index, name,
                    st_count(file), n);
    for (size_t i = 0; i < n; i++) {
        const StTensor *t = st_at(file, i);
        if (st_writer_add(s->writer, t->name, t->dtype, t->n_dims, t->shape, t->data, s->err))
            return -1;
    }
    return 0;
}

static int open_shards(Shards *s, const Json *root)
{
    if (read_entries(s, root))
        return -1;
    s->writer = st_writer_new();
    if (!s->writer)
        return fail_memory(s->err, s->index, 0);
    for (size_t i = 0, n; i < s->n_entries; i += n) {
        n = 1;
        while (i + n < s->n_entries && strcmp(s->entries[i]->string, s->entries[i + n]->string) == 0)
            n++;
        if (open_shard(s, s->entries + i, n))
            return -1;
    }
    return 0;
}

static Safetensors *open_index(const char *path, Error *err)
{
    const Json *root = json_read(path, err);
    Shards *s = root ? calloc(1, sizeof *s) : NULL;
    Safetensors *view = NULL;
    if (s) {
        s->index = path;
        s->err = err;
        if (open_shards(s, root) == 0)
            view = st_view(path, s->writer, s->files, s->n_files, err);
        for (size_t i = 0; !view && i < s->n_files; i++)
            st_close(s->files[i]);
        if (!view)
            st_writer_free(s->writer);
        free(s->entries);
        free(s);
    } else if (root) {
        fail_memory(err, path, sizeof *s);
    }
    json_free(root);
    return view;
}

/* ---- a folder -----------------------------------------------------------------------------------------*/

/* The only name that ends so. NULL: none, or several. */
static const char *only_name(char **names, size_t n, const char *ending)
{
    const char *found = NULL;
    for (size_t i = 0; i < n; i++)
        if (has_ending(names[i], ending)) {
            if (found)
                return NULL;
            found = names[i];
        }
    return found;
}

static int has_name(char **names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return 1;
    return 0;
}

/* The checkpoint among these names of a folder, or NULL. Beside a pytorch_model.bin, a safetensors file of
 * another name is something else. */
static const char *choose(char **names, size_t n)
{
    static const char *const usual[] = {"model.safetensors", "model.safetensors.index.json"};
    for (size_t i = 0; i < 2; i++)
        if (has_name(names, n, usual[i]))
            return usual[i];
    if (has_name(names, n, "pytorch_model.bin") || has_name(names, n, "pytorch_model.bin.index.json"))
        return NULL;
    const char *index = only_name(names, n, ".safetensors.index.json");
    return index ? index : only_name(names, n, ".safetensors");
}

/* A folder of Hugging Face or timm without safetensors has pytorch_model.bin. */
static int refuse_folder(const char *path, char **names, size_t n, Error *err)
{
    char file[MAX_PATH_LENGTH];
    for (size_t i = 0; i < n; i++)
        if (is_pytorch_name(names[i]) || has_ending(names[i], ".bin.index.json")) {
            snprintf(file, sizeof file, "%s/%s", path, names[i]);
            return refuse_pytorch(file, "the folder has no safetensors file", err);
        }
    return fail(err,
                "%s: a folder without a checkpoint: expected model.safetensors, "
                "model.safetensors.index.json, or one other safetensors file",
                path);
}

static Safetensors *open_folder(const char *path, Error *err)
{
    size_t n;
    char **names = dir_list(path, 0, &n, err), file[MAX_PATH_LENGTH];
    if (!names)
        return NULL;
    const char *name = choose(names, n);
    const size_t bare = strlen(path) - (path[strlen(path) - 1] == '/');
    int length = 0;
    if (!name)
        refuse_folder(path, names, n, err);
    else
        length = snprintf(file, sizeof file, "%.*s/%s", (int)bare, path, name);
    free(names);
    if (length >= (int)sizeof file)
        fail(err, "%s: the path is too long", path);
    if (length <= 0 || length >= (int)sizeof file)
        return NULL;
    return has_ending(file, ".json") ? open_index(file, err) : st_open(file, err);
}

Safetensors *st_open_checkpoint(const char *path, Error *err)
{
    if (*path && dir_exists(path))
        return open_folder(path, err);
    return has_ending(path, ".json") ? open_index(path, err) : st_open(path, err);
}
