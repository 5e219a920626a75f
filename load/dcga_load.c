/* dcga_load.c - names and shapes of the learned graphs. See dcga_load.h. */
#include "load/dcga_load.h"

#include <math.h>
#include <stdio.h>

#include "io/fail.h"

/* d_in, d_out: the required sizes, or 0: any. */
static int gat_load(GatWeights *g, Safetensors *st, const char *prefix, int64_t d_in, int64_t d_out,
                    Error *err)
{
    char name[64];
    *g = (GatWeights){0};
    snprintf(name, sizeof name, "%s.lin_l.weight", prefix);
    const StTensor *w = st_find(st, name);
    if (!w)
        return 0;
    if (w->n_dims != 2 || (d_in > 0 && w->shape[1] != d_in) || (d_out > 0 && w->shape[0] != d_out) ||
        w->shape[0] < 1 || w->shape[0] > 65536 || w->shape[1] < 1 || w->shape[1] > 65536)
        return fail(err, "%s: tensor %s does not have the shape [%lld][%lld] of the features", st_path(st),
                    name, (long long)d_out, (long long)d_in);
    int64_t out = w->shape[0], in = w->shape[1];
    g->d_in = (int)in, g->d_out = (int)out;
    g->w_l = st_weight(st, err, 2, (int64_t[]){out, in}, "%s.lin_l.weight", prefix);
    g->w_r = g->w_l ? st_weight(st, err, 2, (int64_t[]){out, in}, "%s.lin_r.weight", prefix) : NULL;
    g->a = g->w_r ? st_weight(st, err, 1, (int64_t[]){out}, "%s.att", prefix) : NULL;
    g->b = g->a ? st_weight(st, err, 1, (int64_t[]){out}, "%s.bias", prefix) : NULL;
    return g->b ? 0 : -1;
}

int dcga_load(GatWeights *object, GatWeights *channel, Safetensors *st, int channels, Error *err)
{
    if (gat_load(object, st, "object", channels, channels, err) ||
        gat_load(channel, st, "channel", 0, 0, err))
        return -1;
    if (!object->w_l && !channel->w_l)
        return fail(err,
                    "%s: neither object.lin_l.weight nor channel.lin_l.weight is there: not DCGA weights",
                    st_path(st));
    int side = (int)lround(sqrt(channel->d_in));
    if (channel->w_l && side * side != channel->d_in)
        return fail(err, "%s: channel.lin_l.weight takes %d inputs, which is not a square raster",
                    st_path(st), channel->d_in);
    return 0;
}
