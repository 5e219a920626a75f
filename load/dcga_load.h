/* dcga_load.h - the learned graphs of --dcga: GATv2 (Brody et al., 2022) [block]. Weights have the names of
 * PyTorch Geometric's GATv2Conv below "object." and "channel.": lin_l.weight, lin_r.weight, att, bias. */
#ifndef SAMLAD_DCGA_LOAD_H
#define SAMLAD_DCGA_LOAD_H

#include "io/safetensors.h"

typedef struct GatWeights {
    const float *w_l, *w_r; /* [d_out][d_in]; NULL: no such graph. */
    const float *a;         /* [d_out] */
    const float *b;         /* [d_out] */
    int d_in, d_out;
} GatWeights;

/* Either graph may be absent, but not both. The object graph takes and gives descriptors of `channels`
 * numbers. The channel graph takes a square raster. The weights' arrays stay in the file. */
int dcga_load(GatWeights *object, GatWeights *channel, Safetensors *file, int channels, Error *err);

#endif
