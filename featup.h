/* featup.h - FeatUp's joint bilateral upsampling stack (METHOD.md 3).
 * Follows mhamilton723/FeatUp, featup/upsamplers.py. */
#ifndef SAMLAD_FEATUP_H
#define SAMLAD_FEATUP_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

#define FEATUP_MAX_STAGES 4

typedef struct Featup Featup;

/* Open up1..upN (N <= 4 as found, under any prefix) and, when there, the stack's last fixup_proj. NULL on
 * failure. The Safetensors stays the caller's and must outlive the stack. */
Featup *featup_open(Safetensors *weights, Error *err);
void featup_close(Featup *featup);
int featup_stages(const Featup *featup);

/* Upsample features [h][w][c] by 2^stages -> out [h*2^stages][w*2^stages][c], guided by guidance [3][gh][gw]
 * (the ViT's normalised input pixels, any size). The final fixup x + 0.1*conv1x1(x) comes when stages == 4
 * and the file has one for c channels (METHOD.md 3). featup NULL: bilinear to that size. stages 0: a copy.
 * 0 / -1 (memory, more stages than the stack has, a side or channels outside 1 to 65,536). */
int featup_upsample(const Featup *featup, float *out, const float *features, int h, int w, int c,
                    const float *guidance, int gh, int gw, int stages, Error *err);

#endif
