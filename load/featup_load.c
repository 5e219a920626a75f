/* featup_load.c - safetensors -> FeatUp's table of weights. See featup_load.h. */
#include "load/featup_load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"

enum { MAX_DIM = 65536 };

/* JBUStack is saved alone, inside an upsampler, or inside a Lightning model. The prefix of "up1.range_temp"
 * is the prefix of every name. */
static int find_prefix(char *prefix, size_t size, const Safetensors *st, Error *err)
{
    static const char first[] = "up1.range_temp";
    for (size_t i = 0; i < st_count(st); i++) {
        const char *name = st_at(st, i)->name;
        const size_t length = strlen(name), n = length - strlen(first);
        if (length < strlen(first) || strcmp(name + n, first) != 0 || n >= size)
            continue;
        memcpy(prefix, name, n);
        prefix[n] = '\0';
        return 0;
    }
    return fail(err, "%s: no tensor up1.range_temp: not a FeatUp JBU stack", st_path(st));
}

/* Takes the tensors of one upsampler, PREFIXupN.NAME, and remembers a failure. */
typedef struct Loader {
    Safetensors *st;
    char path[112]; /* PREFIXupN. */
    int failed;
    Error *err;
} Loader;

static const StTensor *find(const Loader *l, const char *name)
{
    char full_name[160];
    snprintf(full_name, sizeof full_name, "%s%s", l->path, name);
    return st_find(l->st, full_name);
}

/* The official code saves the scalars with shape [], others with [1]. */
static float take_scalar(Loader *l, const char *name)
{
    if (l->failed)
        return 0;
    const StTensor *tensor = find(l, name);
    const int n_dims = tensor && tensor->n_dims == 0 ? 0 : 1;
    const float *data = st_weight(l->st, l->err, n_dims, (int64_t[]){1}, "%s%s", l->path, name);
    l->failed = !data;
    if (data && !isfinite(*data)) {
        fail(l->err, "%s: tensor %s is not finite", st_path(l->st), tensor->name);
        l->failed = 1;
    }
    return data ? *data : 0;
}

/* NAME.weight [n_out][n_in][1][1] and NAME.bias [n_out]. */
static Linear take_conv1x1(Loader *l, int n_out, int n_in, const char *name)
{
    Linear layer = {.n_out = n_out, .n_in = n_in};
    if (!l->failed)
        layer.weight =
            st_weight(l->st, l->err, 4, (int64_t[]){n_out, n_in, 1, 1}, "%s%s.weight", l->path, name);
    if (layer.weight)
        layer.bias = st_weight(l->st, l->err, 1, (int64_t[]){n_out}, "%s%s.bias", l->path, name);
    l->failed = !layer.bias;
    return layer;
}

static int load_stage(JbuLearnedRange *up, Loader *l)
{
    const StTensor *proj = find(l, "range_proj.0.weight");
    const int64_t key_dim = proj && proj->n_dims == 4 ? proj->shape[0] : 32;
    if (key_dim < 1 || key_dim > FEATUP_MAX_KEY_DIM)
        return fail(l->err, "%s: tensor %s has %lld keys, expected 1 to %d", st_path(l->st), proj->name,
                    (long long)key_dim, FEATUP_MAX_KEY_DIM);
    up->key_dim = (int)key_dim;
    up->range_temp = take_scalar(l, "range_temp");
    up->sigma_spatial = take_scalar(l, "sigma_spatial");
    /* The spatial kernel divides by 2 sigma^2, which underflows to 0 if sigma is tiny. */
    const float twice_variance =
        2 * up->sigma_spatial * up->sigma_spatial; /* a float, whatever computes it. */
    if (!l->failed && twice_variance == 0)
        return fail(l->err, "%s: tensor %ssigma_spatial is %g, too close to 0", st_path(l->st), l->path,
                    (double)up->sigma_spatial);
    up->range_proj[0] = take_conv1x1(l, up->key_dim, 3, "range_proj.0");
    up->range_proj[1] = take_conv1x1(l, up->key_dim, up->key_dim, "range_proj.3");
    up->fixup_proj[0] = take_conv1x1(l, FEATUP_TAPS, FEATUP_TAPS + 3, "fixup_proj.0");
    up->fixup_proj[1] = take_conv1x1(l, FEATUP_TAPS, FEATUP_TAPS, "fixup_proj.3");
    return l->failed ? -1 : 0;
}

/* The stack's fixup_proj belongs to one backbone's channels. A file may leave it out. */
static int load_stack_fixup(Featup *featup, Loader *l)
{
    const StTensor *tensor = find(l, "fixup_proj.1.weight");
    if (!tensor)
        return 0;
    const int64_t dim = tensor->n_dims == 4 ? tensor->shape[0] : -1;
    if (dim > MAX_DIM)
        return fail(l->err, "%s: tensor %s is for %lld channels, expected at most %d", st_path(l->st),
                    tensor->name, (long long)dim, MAX_DIM);
    featup->fixup_proj = take_conv1x1(l, (int)dim, (int)dim, "fixup_proj.1");
    return l->failed ? -1 : 0;
}

static int load_stack(Featup *featup, Safetensors *st, Error *err)
{
    char prefix[96];
    Loader l = {.st = st, .err = err};
    if (find_prefix(prefix, sizeof prefix, st, err))
        return -1;
    while (featup->n_stages < FEATUP_MAX_STAGES) {
        snprintf(l.path, sizeof l.path, "%sup%d.", prefix, featup->n_stages + 1);
        if (!find(&l, "range_temp"))
            break;
        if (load_stage(&featup->up[featup->n_stages], &l))
            return -1;
        featup->n_stages++;
    }
    snprintf(l.path, sizeof l.path, "%s", prefix);
    return load_stack_fixup(featup, &l);
}

Featup *featup_open(Safetensors *weights, Error *err)
{
    Featup *featup = calloc(1, sizeof *featup);
    if (!featup) {
        fail_memory(err, "the FeatUp stack's table of weights", sizeof *featup);
        return NULL;
    }
    if (load_stack(featup, weights, err)) {
        free(featup);
        return NULL;
    }
    return featup;
}

void featup_close(Featup *featup)
{
    free(featup);
}

int featup_stages(const Featup *featup)
{
    return featup->n_stages;
}
