/* handle.c - opening, sharing and setting a handle. See samlad.h. */
#include "library/handle.h"

#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "library/names.h"
#include "tensor.h"

int handle_complete(Samlad *s, Error *err)
{
    s->options = s->asked;
    return networks_complete(&s->networks, &s->options, err);
}

void handle_drop_bank(Samlad *s)
{
    bank_free(&s->bank);
    s->has_bank = 0;
}

/* ================================================================================================
 * Opening
 * ============================================================================================== */

/* The settings beside a checkpoint of another library (load/foreign.h) are part of the model: other heads or
 * another mean give other features. */
static void add_settings(char hex[65], const Safetensors *file)
{
    char text[4096];
    int n = snprintf(text, sizeof text, "%s\n", hex);
    for (size_t i = 0; i < st_meta_count(file) && n < (int)sizeof text; i++) {
        const char *key, *value;
        st_meta_at(file, i, &key, &value);
        if (strncmp(key, "vit.", 4) == 0 || strncmp(key, "sam.", 4) == 0)
            n += snprintf(text + n, sizeof text - (size_t)n, "%s=%s\n", key, value);
    }
    sha256(text, strlen(text), hex);
}

static void identify(WeightsId *id, const Safetensors *file)
{
    if (!file)
        return;
    snprintf(id->name, sizeof id->name, "%s", path_name(st_path(file)));
    st_sha256(file, id->sha256);
    if (st_meta(file, "samlad.names"))
        add_settings(id->sha256, file);
}

static int open_weights(Samlad *s, const SamladWeights *weights, Error *err)
{
    options_default(&s->asked);
    if (!weights->vit)
        return fail(err, "no backbone is given");
    if (networks_open(&s->networks, weights->vit, weights->sam, weights->featup, weights->dcga, err) ||
        networks_recommend(&s->networks, &s->asked, err) || handle_complete(s, err))
        return -1;
    identify(&s->vit, s->networks.vit_file);
    identify(&s->sam, s->networks.sam_file);
    identify(&s->featup, s->networks.featup_file);
    identify(&s->dcga, s->networks.dcga_file);
    return 0;
}

static Samlad *handle_new(Error *err)
{
    Samlad *s = calloc(1, sizeof *s);
    if (!s)
        fail_memory(err, "a handle", sizeof *s);
    return s;
}

Samlad *samlad_open(const SamladWeights *weights, Error *err)
{
    threads_clamp();
    Samlad *s = handle_new(err);
    if (s && open_weights(s, weights, err)) {
        samlad_close(s);
        return NULL;
    }
    return s;
}

void samlad_close(Samlad *s)
{
    if (!s)
        return;
    if (!s->shared)
        bank_free(&s->bank);
    networks_close(&s->networks);
    free(s);
}

/* ================================================================================================
 * Sharing
 * ============================================================================================== */

Samlad *samlad_share(const Samlad *s, Error *err)
{
    Samlad *copy = handle_new(err);
    if (!copy)
        return NULL;
    *copy = *s;
    copy->shared = 1;
    if (networks_share(&copy->networks, &s->networks, err)) {
        samlad_close(copy);
        return NULL;
    }
    return copy;
}

int samlad_images_at_once(const Samlad *s)
{
    const size_t budget = (size_t)512 << 20; /* bytes of all handles' activations together [ours]. */
    const size_t at_most = budget / networks_image_bytes(&s->networks, &s->options);
    const int n_threads = thread_max();
    return (size_t)n_threads <= at_most ? n_threads : 1;
}

/* ================================================================================================
 * Settings
 * ============================================================================================== */

int samlad_set(Samlad *s, const char *name, const char *value, Error *err)
{
    const OptionSpec *spec = option_find(name);
    if (!spec)
        return fail(err, "there is no option %s", name);
    if (s->shared)
        return fail(err, "option %s: a shared handle has its owner's options: set them there", name);
    if (option_set(&s->asked, spec, value, name, err))
        return -1;
    s->was_set[spec - option_table] = 1;
    if (option_is_method(spec))
        options_follow_method(&s->asked, s->was_set);
    if (handle_complete(s, err))
        return -1;
    handle_drop_bank(s); /* it was made with other options. */
    return networks_precision(&s->networks, &s->options, err);
}

int samlad_backbone_blocks(const Samlad *s)
{
    return vit_config(s->networks.vit)->depth;
}

void samlad_describe(const Samlad *s, SamladEach each, void *user)
{
    const WeightsId *ids[] = {&s->vit, &s->sam, &s->featup, &s->dcga};
    static const char *const keys[] = {"weights.backbone.sha256", "weights.sam.sha256",
                                       "weights.featup.sha256", "weights.dcga.sha256"};
    char key[96], value[64];
    for (int i = 0; i < option_count; i++) {
        snprintf(key, sizeof key, "option.%s", option_table[i].name);
        option_text(&s->options, &option_table[i], value, sizeof value);
        each(user, key, value);
    }
    for (int i = 0; i < 4; i++)
        each(user, keys[i], ids[i]->sha256[0] ? ids[i]->sha256 : "none");
}

void handle_maker(const Samlad *s, char hex[65])
{
    const WeightsId *ids[] = {&s->vit, &s->sam, &s->featup};
    char text[4096], value[64];
    size_t n = 0;
    for (int i = 0; i < 3; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\n", ids[i]->sha256);
    for (int i = 0; i < option_count; i++) {
        if (!option_table[i].of_features || n >= sizeof text)
            continue;
        option_text(&s->options, &option_table[i], value, sizeof value);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s=%s\n", option_table[i].name, value);
    }
    sha256(text, n < sizeof text ? n : sizeof text, hex);
}
