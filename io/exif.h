/* io/exif.h - which way up a photo is: the camera writes the rows as its sensor gives them, and beside them
 * how they are to be turned (Exif 2.32, tag 274 "Orientation"). Converters carry it over from JPEG to PNG. */
#ifndef SAMLAD_IO_EXIF_H
#define SAMLAD_IO_EXIF_H

#include <stddef.h>
#include <stdint.h>

#include "io/image.h"

/* Exif data are no longer than this in a JPEG file; of a PNG file's, no more is looked at. */
#define EXIF_MAX ((size_t)1 << 16)

/* p [n]: a JPEG file's APP1 segment without marker and length, or the data of a PNG file's eXIf chunk, which
 * leaves out the segment's first six bytes, or should. 1 .. 8; 1, as it lies, where nothing is said; 0 where
 * the segment isn't Exif. Never reads past n. */
int exif_of_segment(const uint8_t *p, size_t n);
int exif_of_chunk(const uint8_t *p, size_t n);
/* Do width and height change places? */
int exif_swaps(int orientation);
/* Turn the image, and its indices, as the orientation (0: not at all) says, as PIL's
 * ImageOps.exif_transpose does. -1: no memory, the image as it was. */
int exif_turn(Image *image, int orientation, const char *name, Error *err);

#endif
