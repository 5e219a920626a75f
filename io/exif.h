/* io/exif.h - the orientation of a photo. The camera stores the rows of its sensor, and beside them how to
 * turn them (Exif 2.32, tag 274 "Orientation"). Converters carry the tag over from JPEG to PNG. */
#ifndef SAMLAD_IO_EXIF_H
#define SAMLAD_IO_EXIF_H

#include <stddef.h>
#include <stdint.h>

#include "io/image.h"

/* Exif data in a JPEG file are at most this long. Of a PNG file's, only this many bytes are read. */
#define EXIF_MAX ((size_t)1 << 16)

/* Read the orientation from p [n]: a JPEG file's APP1 segment without marker and length, or a PNG file's
 * eXIf chunk. The chunk should leave out the segment's first six bytes. Returns 1 to 8; 1 (unturned)
 * without a tag; 0 when the segment is not Exif. Never reads past n. */
int exif_of_segment(const uint8_t *p, size_t n);
int exif_of_chunk(const uint8_t *p, size_t n);
/* 1 when the turn exchanges width and height. */
int exif_swaps(int orientation);
/* Turn the image and its indices by the orientation (0: leave them), as PIL's ImageOps.exif_transpose
 * does. -1: no memory; the image is unchanged. */
int exif_turn(Image *image, int orientation, const char *name, Error *err);

#endif
