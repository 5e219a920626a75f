/* featup_load.h - the weights of FeatUp's JBU stack under their official names. featup.c computes with them.
 *
 * mhamilton723/FeatUp, featup/upsamplers.py, JBUStack. */
#ifndef SAMLAD_FEATUP_LOAD_H
#define SAMLAD_FEATUP_LOAD_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

#define FEATUP_MAX_STAGES  4   /* up1 .. up4 */
#define FEATUP_RADIUS      3   /* of the kernel. */
#define FEATUP_DIAMETER    7   /* 2*radius + 1 */
#define FEATUP_TAPS        49  /* diameter^2 */
#define FEATUP_MAX_KEY_DIM 128 /* 32 in every published stack. */

/* upN of the file. Its convolutions are 1x1: linear layers on the channels of a pixel. */
typedef struct JbuLearnedRange {
    int key_dim;
    float range_temp;     /* logarithm of the softmax's factor. */
    float sigma_spatial;  /* of the spatial kernel, in units of the kernel's radius. */
    Linear range_proj[2]; /* range_proj.0 [key_dim][3], range_proj.3 [key_dim][key_dim] */
    Linear fixup_proj[2]; /* fixup_proj.0 [49][49 + 3], fixup_proj.3 [49][49] */
} JbuLearnedRange;

typedef struct Featup {
    int n_stages;
    JbuLearnedRange up[FEATUP_MAX_STAGES];
    Linear fixup_proj; /* of the whole stack: fixup_proj.1 [dim][dim]; n_out 0: not in the file. */
} Featup;

/* Opens up1 .. upN (as many as the file has, under any prefix). Opens the stack's fixup_proj if it is there.
 * The Safetensors stays the caller's and must outlive the stack. NULL on failure. */
Featup *featup_open(Safetensors *weights, Error *err);
void featup_close(Featup *featup); /* NULL allowed */
int featup_stages(const Featup *featup);

#endif
