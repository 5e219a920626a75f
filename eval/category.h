/* eval/category.h - one category of a data set: its normal images and its tests, found in its folders by
 * their names (folders.h). */
#ifndef SAMLAD_EVAL_CATEGORY_H
#define SAMLAD_EVAL_CATEGORY_H

#include "eval/folders.h"
#include "io/error.h"

typedef struct DatasetImage {
    /* kind: the folder under test. name: the path below it, without folders like rgb. stem: the name
     * without its ending, or with it if 000.png and 000.jpg are both there; results are named so. */
    char *path, *kind, *name, *stem;
    int normal;        /* 1: a good image. */
    int width, height; /* from the file's header; dataset_check fills this, the turn and the checksum. */
    int orientation;   /* of its Exif data: the file's rows lie so (io/exif.h). */
    char sha256[65];   /* of the file's bytes. */
    int n_masks;
    char **masks;          /* [n_masks] files of ground truth */
    char masks_sha256[65]; /* of their files' checksums; "" unless dataset_check was asked for it. */
} DatasetImage;

/* A file that cannot be read, by its name in the category's folder, and the reason. */
typedef struct Unreadable {
    char *name, *reason;
} Unreadable;

typedef struct DatasetCategory {
    char name[256];     /* a folder's has at most 255 bytes. */
    char *dir, *config; /* config: defects_config.json, or NULL. */
    int n_normal;       /* for the bank */
    char **normal;
    char (*normal_sha256)[65]; /* [n_normal]; "" unless dataset_check was asked for it. */
    int n_images;              /* test images: the good ones first, then kind by kind. */
    DatasetImage *images;
    int n_held_out;   /* the first of them are normal images, kept for the test. */
    int resize_masks; /* 1: masks of another size are resized. */
    int masks_needed; /* 1: an anomalous image without a mask is refused, as in published data sets. */
    PathList masks;   /* mask files in the category's folders, until masks_assign hands them out. */
    LeftOut left_out; /* files beside the images that are no pictures. */
    int n_unreadable; /* files that dataset_read has left out (readable.h). */
    Unreadable *unreadable;
    char *masks_dir;  /* the folder of masks that was given, or NULL; all of `masks` lie in it then. */
} DatasetCategory;

/* Sentences that are told, but do not stop the work. */
typedef struct Notes {
    int n, failed; /* failed: no memory for a sentence. */
    char **sentences;
} Notes;
void note(Notes *notes, const char *format, ...) __attribute__((format(printf, 2, 3)));
void notes_move(Notes *to, Notes *from);
void notes_free(Notes *notes);

/* How a category is listed. */
typedef struct CategoryRequest {
    GivenFolders given;
    int hold_out;     /* keep this many normal images for the test if it has no good ones. */
    int resize_masks; /* 1: resize masks to their images. */
} CategoryRequest;

/* Does the folder hold normal images, or tests with good ones? */
int is_category(const char *dir, const GivenFolders *given, Error *err); /* ask fail_any(err). */
/* List the category in `dir`. The name is set already. */
int category_list(DatasetCategory *category, const char *dir, const CategoryRequest *request, Notes *notes,
                  Error *err);
/* Append an image. The list takes `path` over. name: its path below the kind. NULL after a sentence. */
DatasetImage *category_add(DatasetCategory *category, char *path, const char *name, const char *kind,
                           int normal, Error *err);
void image_drop(DatasetImage *image); /* free what it holds. */
void category_free(DatasetCategory *category);

#endif
