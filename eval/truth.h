/* eval/truth.h - the ground truth of a test image, pixel by pixel: its regions.
 *
 * A region is one thing to be found, in the definitions of MVTec's localization metrics:
 *   without a defect table (MVTec AD)   a connected component, diagonals included, of the pixels that are
 *                                       not 0. It is found in full when all of its pixels are found
 *   with one (MVTec LOCO AD)            all pixels of one mask file, connected or not. Its pixel value names
 *                                       the defect; the defect's saturation is the number of pixels that
 *                                       suffice
 *
 * Regions may overlap in the second case. Such a pixel is anomalous once, but counts for each of its
 * regions. */
#ifndef SAMLAD_EVAL_TRUTH_H
#define SAMLAD_EVAL_TRUTH_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* defects_config.json of one category: an array of
 *   {"defect_name": .., "pixel_value": 1..255, "saturation_threshold": .., "relative_saturation": true|false}
 * Relative: a part of the region's own area, in (0, 1]. Absolute: a number of pixels. */
typedef struct Defect {
    char name[96]; /* "": no defect has this pixel value. */
    int relative;
    double saturation;
} Defect;
typedef struct DefectTable {
    Defect by_value[256];
} DefectTable;
int defect_table_read(DefectTable *table, const char *path, Error *err);

typedef struct TruthMark {
    uint32_t pixel, region;
    uint32_t again; /* 1: an earlier mark, of another region, is at the same pixel. */
} TruthMark;

typedef struct Truth {
    int width, height;
    uint8_t *anomalous; /* [height][width] 1: in some region. */
    size_t n_anomalous;
    size_t n_regions, region_capacity;
    uint32_t *saturation; /* [n_regions] this many found pixels count as all; at least 1. */
    size_t n_marks, mark_capacity;
    TruthMark *marks; /* [n_marks] every pixel of every region. */
} Truth;

/* The image that masks are laid on. */
typedef struct MaskFit {
    int width, height;
    int orientation; /* of the photo's Exif data (io/exif.h); masks that lie as the stored rows are turned. */
    int resize;      /* 1: masks of another size are resized, nearest neighbour; 0: refused. */
} MaskFit;

/* The regions of one image, from its mask files masks[n_masks] (none: a good image).
 * Without a table: the components of their union. With a table: one region a file. A file with other
 * values than 0 and one value of the table is refused, as in MVTec's scripts. On failure *truth holds
 * nothing.
 *
 * A pixel is a defect where any channel is not 0. Exceptions:
 *   JPEG                  from 128, without a table
 *   palette               by index if 0 is black; else by colour
 *   only alpha varies     by alpha */
int truth_fit(Truth *truth, const MaskFit *fit, const char *const *masks, size_t n_masks,
              const DefectTable *table, Error *err);
/* The same for an image of width x height that is not turned, without resizing. */
int truth_read(Truth *truth, int width, int height, const char *const *masks, size_t n_masks,
               const DefectTable *table, Error *err);
/* Does a mask of this photo's size fit it turned and unturned? Then it is taken for the stored rows'. */
int mask_fits_both_ways(const MaskFit *fit);
/* Has the mask Exif data of its own that say how it lies? Then it is never turned with its photo. */
int mask_tells_its_turn(const char *path);
/* Are the file's pixels a mask's: no JPEG, nine tenths of them (in colour: all) 0 or the largest value? */
int truth_looks_like_mask(const char *path);
void truth_free(Truth *truth); /* safe on a zeroed struct. */

/* The same from masks in memory [height][width]: begin, then add. */
int truth_begin(Truth *truth, int width, int height, Error *err);
int truth_add_components(Truth *truth, const uint8_t *mask, Error *err);
/* Add the pixels where the mask is not 0 (at least one) as one region. */
int truth_add_region(Truth *truth, const uint8_t *mask, uint32_t saturation, Error *err);

/* The number of pixels that saturates a region of `area` pixels: floor(part x area), or min(pixels, area).
 * At least 1: a relative part of a tiny region can be 0 pixels, and MVTec's script would divide by it. */
uint32_t defect_saturation(const Defect *defect, size_t area);

#endif
