/* names.h - the names of files and images. */
#ifndef SAMLAD_LIBRARY_NAMES_H
#define SAMLAD_LIBRARY_NAMES_H

#include "io/error.h"

/* The last part of a path. */
const char *path_name(const char *path);

/* n different names, as pointers into the paths: the file names, or, if two of these are equal, the paths
 * below the common folder. Free the array; NULL: no memory. */
const char **names_apart(const char *const *paths, int n, Error *err);

#endif
