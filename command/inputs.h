/* command/inputs.h - the images that a command is given, as files and as folders to search. */
#ifndef SAMLAD_COMMAND_INPUTS_H
#define SAMLAD_COMMAND_INPUTS_H

#include <stdio.h>

#include "command/args.h"
#include "eval/pictures.h"

typedef struct ImageList {
    char **paths, **names; /* names: paths below the folder that was given; outputs are named so. */
    int n, capacity;
    char *is_twin; /* [n] 1: outputs are named a.jpg_heat.png, as a.png is listed too. NULL: no names yet. */
    LeftOut left_out; /* files in the folders that are no pictures. */
    char **unreadable; /* [n_unreadable] names of images that are left out. */
    int n_unreadable;
} ImageList;

/* List the files, and all images in and below the folders, sorted. The pictures that `samlad segment`
 * wrote are left out. A folder without images is an error. */
int list_inputs(ImageList *list, const Args *args, Error *err);
/* List the normal images of a bank: list_inputs, or the folder --normal of the inputs. A folder that holds
 * normal images beside others is refused, but for those of --anomalous and --masks, which are left out. */
int list_normal(ImageList *list, const Args *args, Error *err);
void list_free(ImageList *list);
/* Drop repeats: the same file again, under any name. *n_dropped: how many. 0 / -1 (memory). */
int list_drop_repeats(ImageList *list, int *n_dropped, Error *err);

/* Decode all images. Those that cannot be read are told on stderr, a line each. With `skip` they leave the list,
 * else they are a failure. */
int list_check_readable(ImageList *list, int skip, Error *err);

/* Refuse an output folder among the images: pictures would replace some, and be inputs next time. */
int check_apart(const Args *args, Error *err);
/* Refuse an output that is one of the images, the bank or the weights: it would be overwritten. list may
 * be NULL. */
int check_spared(const char *out, const Args *args, const ImageList *list, Error *err);
/* Refuse to write a bank over a file that is neither bank nor weights: `bank -o *.png` names an image. */
int check_replaceable(const char *out, Error *err);
/* Decide the names of the pictures: without endings, or with them when a.jpg and a.png are both there.
 * Refuse two images that would share a name even so (good/000.png and bad/000.png given as files). */
int check_outputs(ImageList *list, const char *out, Error *err);
/* prefix = OUT/NAME of image i, without its ending, unless names need it; a long name is cut (output_name).
 * Makes the folder. */
int output_prefix(char prefix[PATH_SIZE], const char *out, const ImageList *list, int i, Error *err);
/* If two images have one name, as good/000.png and bad/000.png given as files, name all by their paths below their
 * common folder. */
int list_name_apart(ImageList *list, Error *err);
/* Name the images by their whole paths: their outputs lie beside them. */
int list_name_beside(ImageList *list, Error *err);

#endif
