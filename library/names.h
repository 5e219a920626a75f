/* names.h - what files are called. */
#ifndef SAMLAD_LIBRARY_NAMES_H
#define SAMLAD_LIBRARY_NAMES_H

#include "io/error.h"

/* The last part of a path. */
const char *path_name(const char *path);

/* Names that tell n paths apart, as pointers into the paths: the file names, or, if two of these are equal, the
 * paths below the common folder. The array is to be freed; NULL: no memory. */
const char **names_apart(const char *const *paths, int n, Error *err);

#endif
