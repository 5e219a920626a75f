/* command/inputs.h - the images that a command is given: files, and folders to be searched. */
#ifndef SAMLAD_COMMAND_INPUTS_H
#define SAMLAD_COMMAND_INPUTS_H

#include <stdio.h>

#include "command/args.h"

typedef struct ImageList {
    char **paths, **names; /* names: below the folder that was given, for output files */
    int n, capacity;
    int whole_names; /* 1: outputs are called a.jpg_heat.png, for a.png is there too */
    int n_other;     /* files in the folders of formats that we cannot read, and the name of one */
    char other[64];
} ImageList;

/* The files, and all images in and below the folders, sorted, but for the pictures that `samlad segment` put
 * there. A folder without any is an error. */
int list_inputs(ImageList *list, const Args *args, Error *err);
/* Say when pictures of other formats lie in the folders: nobody should think that they count. */
void tell_left_out(FILE *out, const ImageList *list);
void list_free(ImageList *list);
/* Take out what is there already: the same file once more, under whatever name. *n_dropped: how many.
 * 0 / -1 (memory). */
int list_drop_repeats(ImageList *list, int *n_dropped, Error *err);

/* Refuse the root of a data set as normal images: its test images, anomalies among them, would all count. */
int refuse_data_sets(const ImageList *list, Error *err);
/* Refuse an output folder among the images: pictures would replace some of them, and be images next time. */
int check_apart(const Args *args, Error *err);
/* Refuse an output that is one of the images, the bank or the weights: it would be lost. list: or NULL. */
int check_spared(const char *out, const Args *args, const ImageList *list, Error *err);
/* Refuse to write a bank over a file that is neither a bank nor weights: `bank -o *.png` names an image. */
int check_replaceable(const char *out, Error *err);
/* Find names for the images' pictures: without endings, or with them where a.jpg and a.png are there. Two
 * images that would have one name even so (good/000.png and bad/000.png given as files) are refused. */
int check_outputs(ImageList *list, const char *out, Error *err);
/* How much of the image's name its pictures take. */
int output_length(const ImageList *list, int i);

/* Length of a path without its ending. */
int stem_length(const char *path);

#endif
