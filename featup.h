/* featup.h - FeatUp's joint bilateral upsampling stack (mhamilton723/FeatUp, featup/upsamplers.py; METHOD.md 3). */
#ifndef SAMLAD_FEATUP_H
#define SAMLAD_FEATUP_H

#include "error.h"
#include "io/safetensors.h"
#include "tensor.h"

#define FEATUP_MAX_STAGES 4

typedef struct Featup Featup;

/* Open up1..upN (N <= 4 as found) and, when there, the stack's last fixup_proj. NULL on failure. */
Featup *featup_open(Safetensors *weights, Error *err);
void featup_close(Featup *featup);
int featup_stages(const Featup *featup);

/* Upsample features [h][w][c] by 2^stages -> out [h·2^stages][w·2^stages][c], guided by guidance [3][gh][gw] (the ViT's
 * normalised input pixels). The final fixup x + 0.1·conv1x1(x) is applied when stages == 4 and the file has one for c
 * channels (METHOD.md 3). stages 0, or featup NULL: bilinear to the same size. 0 / -1 (memory). */
int featup_upsample(const Featup *featup, float *out, const float *features, int h, int w, int c, const float *guidance,
                    int gh, int gw, int stages, Error *err);

#endif
