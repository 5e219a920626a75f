/* eval/folders.h - what the folders of a data set are called, and a walk through them. `eval` lists data sets
 * by this table, and `bank` refuses test images by it. */
#ifndef SAMLAD_EVAL_FOLDERS_H
#define SAMLAD_EVAL_FOLDERS_H

#include <stddef.h>

#include "eval/pictures.h"
#include "io/error.h"

/* What a folder holds, by its name. Case does not matter, nor '-' for '_', nor a final "_dir". */
typedef enum FolderRole {
    FOLDER_OTHER,      /* any other name: beside normal images, a kind of anomaly. */
    FOLDER_TRAIN,      /* the normal images, or a folder of them. */
    FOLDER_NORMAL,     /* good, ok, ... */
    FOLDER_TEST,       /* a folder for each kind. */
    FOLDER_UNLABELLED, /* tests whose labels are secret. */
    FOLDER_VALIDATION, /* more normal images; not used. */
    FOLDER_ANOMALOUS,  /* bad, ng, ...: anomalous, of no special kind. */
    FOLDER_MASKS,      /* ground truth */
    FOLDER_IMAGES,     /* rgb, images: the name says nothing of what they show. */
    FOLDER_NO_IMAGES   /* xyz: other measurements beside rgb. */
} FolderRole;
FolderRole folder_role(const char *name);
/* The role that a name of several words claims by one of them: 1_defect, my_masks, test2, 0_normal. no_defect claims none. */
FolderRole folder_words(const char *name);
/* Are both the same word, by the rules above? */
int folder_same_word(const char *a, const char *b);

/* The folders that the user names, in the place of the table; NULL: by the table. */
typedef struct GivenFolders {
    const char *normal, *anomalous, *masks;
} GivenFolders;
/* The next functions return no status: ask fail_any(err) after them.
 *
 * DIR/GIVEN if it is a folder, else GIVEN if it is one. malloc'd; NULL: neither, or given is NULL. */
char *folder_given(const char *dir, const char *given, Error *err);
/* The folder in `dir` that has the role; of several, the one that stands first in the table. malloc'd path;
 * NULL: none. */
char *folder_find(const char *dir, FolderRole role, Error *err);
/* The folder of the normal images: the given one, or train/good, train, good. malloc'd path; NULL: none. */
char *folder_of_normal(const char *dir, const char *given, Error *err);
/* Is `inner` the folder `outer`, or below it? Links are followed. NULL is nowhere. */
int folder_is_within(const char *inner, const char *outer, Error *err);
/* The last part of the path, with "." and links resolved; "data" for the root. */
int folder_name(char name[256], const char *dir, Error *err);

/* -1 with a sentence when images below `dir` lie beside normal ones: tests, anomalous ones, masks. It tells
 * the folder to give instead. */
int folder_refuse_mixed(const char *dir, const GivenFolders *given, Error *err);

/* A list of paths, each malloc'd. */
typedef struct PathList {
    int n;
    char **paths;
    LeftOut *left_out; /* notes the files beside the images that are no pictures; NULL: nobody does. */
} PathList;
/* Append; the list takes the path over, and a failure frees it. -1 also when path is NULL. */
int path_add(PathList *list, char *path, Error *err);
void path_list_free(PathList *list);
/* A formatted path, malloc'd; NULL after a sentence. */
char *path_of(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* List the images in and below `dir`, sorted: the files of a folder first. Those in folders of masks go to
 * `masks`. Folders that `samlad eval` wrote are left out. */
int walk_images(PathList *images, PathList *masks, const char *dir, Error *err);

/* Append a zeroed place of `size` bytes to *items, which holds n. NULL after a sentence. */
void *list_grow(void **items, int n, size_t size, Error *err);

/* 1 when the folder DIR/NAME holds no pictures but other measurements: xyz beside rgb (MVTec 3D-AD). */
int holds_no_images(const char *dir, const char *name);

#endif
