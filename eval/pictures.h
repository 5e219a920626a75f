/* eval/pictures.h - which files of a folder are pictures to look at, and which are told to be none. */
#ifndef SAMLAD_EVAL_PICTURES_H
#define SAMLAD_EVAL_PICTURES_H

#include <stdio.h>

/* The files of folders that are no pictures: their number, and the names of the first. */
typedef struct LeftOut {
    int n;
    char names[288]; /* "a.txt, b.tiff (floats)" */
} LeftOut;

/* Does the name end in one of these (".png", any case; NULL at the end)? */
int has_ending(const char *name, const char *const *endings);
/* Does the name end like an image's (.png .jpg .jpeg .pgm .ppm .pnm .pbm .bmp .dib .tif .tiff, any case)? */
int looks_like_image(const char *name);
/* 1 when `samlad segment` wrote this picture: NAME_masks.png and NAME_masks_overlay.png beside
 * NAME_masks.json are no inputs. */
int is_segmented(const char *path);

/* 1 when the file DIR/NAME is to be looked at: it has a picture's ending, it is a file or a link that leads nowhere, no
 * TIFF of floats, and neither `samlad segment` nor `samlad detect` wrote it. */
int is_picture(const char *dir, const char *name);
/* Note the file DIR/NAME unless it is a picture, our own output, or JSON or CSV. These belong to data
 * sets. */
void left_out_note(LeftOut *left_out, const char *dir, const char *name);
/* left_out_note for all files of the folder; a folder that cannot be read has none. */
void left_out_note_folder(LeftOut *left_out, const char *dir);
/* Print one sentence, "2 files are no pictures: a.txt, b.webp", or nothing. */
void left_out_tell(FILE *out, const LeftOut *left_out);

#endif
