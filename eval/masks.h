/* eval/masks.h - which mask file belongs to which test image. */
#ifndef SAMLAD_EVAL_MASKS_H
#define SAMLAD_EVAL_MASKS_H

#include "eval/category.h"

/* Give each mask file of the category to its image. Their paths are compared without the folders of masks,
 * those like rgb, and their endings. All folders of the mask's path must be the image's, in this order, and
 * the names must agree. So the mask of test/bad/000.jpg may be, in the folder of masks,
 *   bad/000.png or 000.PNG               by kind, or flat
 *   bad/000_mask.png, 000_GT.png         with a usual suffix: _mask _gt _label
 *   bad/000/000.png, bad/000/001.png     several in a folder (MVTec LOCO AD)
 * and beside the image 000_mask.png, or 000.png if its pixels are a mask's (Real-IAD).
 * A mask that belongs to no image, or that fits several, is told. */
int masks_assign(DatasetCategory *category, Notes *notes, Error *err);

#endif
