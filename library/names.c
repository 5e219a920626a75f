/* names.c - see names.h. */
#include "library/names.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"

const char *path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* 1 if two file names are equal. names [n] is scratch. */
static int any_twice(const char **names, const char *const *paths, int n)
{
    for (int i = 0; i < n; i++)
        names[i] = path_name(paths[i]);
    qsort(names, (size_t)n, sizeof *names, compare_names);
    for (int i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return 1;
    return 0;
}

/* Bytes of the folder that all paths share, with its slash. */
static size_t common_folder(const char *const *paths, int n)
{
    size_t length = n > 0 ? (size_t)(path_name(paths[0]) - paths[0]) : 0;
    for (int i = 1; i < n; i++)
        while (length > 0 && (strncmp(paths[i], paths[0], length) != 0 || paths[0][length - 1] != '/'))
            length--;
    return length;
}

const char **names_apart(const char *const *paths, int n, Error *err)
{
    const char **names = calloc((size_t)n + 1, sizeof(*names));
    if (!names) {
        fail_memory(err, "the images' names", ((size_t)n + 1) * sizeof *names);
        return NULL;
    }
    const int with_folders = any_twice(names, paths, n);
    const size_t common = common_folder(paths, n);
    for (int i = 0; i < n; i++)
        names[i] = with_folders ? paths[i] + common : path_name(paths[i]);
    return names;
}
