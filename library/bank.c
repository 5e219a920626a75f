/* bank.c - the handle's bank: building, saving, loading, calibrating it again. See samlad.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "algorithm.h"
#include "io/fail.h"
#include "library/batch.h"
#include "library/white.h"

/* ================================================================================================
 * Building
 * ============================================================================================== */

/* A share uses its owner's bank and cannot replace it. */
static int begin_bank(Samlad *s, Error *err)
{
    if (s->shared)
        return fail(err, "a shared handle has its owner's bank: build or load banks there");
    handle_drop_bank(s);
    return 0;
}

static void tell_calibrating(void *listener, int done, int total)
{
    tell(listener, "calibrating", done, total);
}

/* Calibrate the bank's images with the handle's options. */
static int calibrate_bank(Samlad *s, Listener *listener, Error *err)
{
    s->bank.options = s->options;
    s->bank.dcga_weights = s->dcga;
    if (calibrate(&s->bank, s->networks.dcga_file, tell_calibrating, listener, err)) {
        bank_free(&s->bank);
        return -1;
    }
    s->has_bank = 1;
    return 0;
}

/* Make the bank of the builder's images. The builder is freed in any case. */
static int finish_bank(Samlad *s, BankBuilder *builder, Listener *listener, Error *err)
{
    if (bank_builder_finish(builder, &s->bank, err))
        return -1;
    s->bank.vit = s->vit;
    s->bank.sam = s->options.no_objects ? (WeightsId){0} : s->sam;
    s->bank.featup = s->featup;
    return calibrate_bank(s, listener, err);
}

int samlad_bank_build(Samlad *s, const char *const *paths, int n, SamladProgress progress, void *user,
                      Error *err)
{
    Listener listener = {progress, user};
    if (begin_bank(s, err) || white_settle(s, paths, n, err))
        return -1;
    BankBuilder *builder = bank_builder_new(err);
    if (!builder || batch_files(builder, s, paths, n, &listener, err)) {
        bank_builder_free(builder);
        return -1;
    }
    return finish_bank(s, builder, &listener, err);
}

int samlad_bank_from_scenes(Samlad *s, const char *const *scenes, const char *const *names, int n,
                            SamladProgress progress, void *user, Error *err)
{
    Listener listener = {progress, user};
    if (begin_bank(s, err))
        return -1;
    BankBuilder *builder = bank_builder_new(err);
    if (!builder || batch_scenes(builder, s, scenes, names, n, err)) {
        bank_builder_free(builder);
        return -1;
    }
    return finish_bank(s, builder, &listener, err);
}

/* ================================================================================================
 * Files
 * ============================================================================================== */

int samlad_bank_note_unreadable(Samlad *s, const char *const *names, int n, Error *err)
{
    size_t size = 32, at;
    for (int i = 0; i < n; i++)
        size += strlen(names[i]) + 2;
    char *text = malloc(size);
    if (!s->has_bank || !text) {
        free(text);
        return !s->has_bank ? fail(err, "there is no bank to note unreadable images in")
                            : fail_memory(err, "the names of unreadable images", size);
    }
    at = (size_t)snprintf(text, size, "%d:", n);
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, size - at, "%s %s", i ? "," : "", names[i]);
    free(s->bank.unreadable);
    s->bank.unreadable = text;
    return 0;
}

int samlad_bank_save(const Samlad *s, const char *path, Error *err)
{
    return s->has_bank ? bank_save(&s->bank, path, err) : fail(err, "%s: there is no bank to save", path);
}

/* Features of different weights cannot be compared, so the bank's weights must be the handle's. */
static int same_weights(const char *path, const char *role, const WeightsId *bank, const WeightsId *here,
                        Error *err)
{
    if (strcmp(bank->sha256, here->sha256) == 0)
        return 0;
    if (!bank->sha256[0])
        return fail(err, "%s: the bank was made without %s weights, but %s is given", path, role, here->name);
    if (!here->sha256[0])
        return fail(err, "%s: the bank was made with the %s weights %s (sha256 %.12s...), but none are given",
                    path, role, bank->name, bank->sha256);
    return fail(err, "%s: the bank was made with the %s weights %s (sha256 %.12s...), not with %s (%.12s...)",
                path, role, bank->name, bank->sha256, here->name, here->sha256);
}

/* Load the bank and check everything that its features depend on. */
static int load_images(Samlad *s, const char *path, Error *err)
{
    if (begin_bank(s, err) || bank_load(&s->bank, path, err))
        return -1;
    if (same_weights(path, "backbone", &s->bank.vit, &s->vit, err) ||
        same_weights(path, "featup", &s->bank.featup, &s->featup, err) ||
        (!s->bank.options.no_objects && same_weights(path, "sam", &s->bank.sam, &s->sam, err))) {
        bank_free(&s->bank);
        return -1;
    }
    return 0;
}

int samlad_bank_load(Samlad *s, const char *path, Error *err)
{
    if (load_images(s, path, err))
        return -1;
    if (same_weights(path, "dcga", &s->bank.dcga_weights, &s->dcga, err) ||
        (s->networks.dcga_file && dcga_learned(&s->bank.dcga, s->networks.dcga_file, err)) ||
        networks_precision(&s->networks, &s->bank.options, err)) {
        bank_free(&s->bank);
        return -1;
    }
    s->options = s->asked = s->bank.options;
    memset(s->was_set, 0, sizeof s->was_set); /* the bank's settings replace all earlier ones. */
    s->has_bank = 1;
    return 0;
}

/* The bank's settings, except those of the method that samlad_set has set. */
static int merge_options(Samlad *s, const char *path, Error *err)
{
    for (int i = 0; i < option_count; i++) {
        char value[64];
        if (!option_table[i].of_features && s->was_set[i])
            continue;
        option_text(&s->bank.options, &option_table[i], value, sizeof value);
        if (option_set(&s->asked, &option_table[i], value, path, err))
            return -1;
    }
    return handle_complete(s, err);
}

int samlad_bank_recalibrate(Samlad *s, const char *path, SamladProgress progress, void *user, Error *err)
{
    Listener listener = {progress, user};
    if (load_images(s, path, err) || merge_options(s, path, err) ||
        networks_precision(&s->networks, &s->options, err))
        return -1;
    return calibrate_bank(s, &listener, err);
}

/* ================================================================================================
 * Queries
 * ============================================================================================== */

int samlad_bank_size(const Samlad *s)
{
    return s->has_bank ? s->bank.n_images : 0;
}

float samlad_bank_threshold(const Samlad *s)
{
    return s->has_bank ? s->bank.threshold : NAN;
}

int samlad_bank_few_scores(const Samlad *s)
{
    return s->has_bank && bank_extends_threshold(&s->bank) ? s->bank.n_loo : 0;
}

const char *samlad_bank_name(const Samlad *s, int image)
{
    return s->has_bank && image >= 0 && image < s->bank.n_images ? s->bank.names[image] : "?";
}
