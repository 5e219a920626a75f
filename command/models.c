/* command/models.c - see models.h. */
#include "command/models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command/messages.h"
#include "io/fail.h"
#include "io/file.h"

int find_weights(char path[PATH_SIZE], const char *file)
{
    char exe[PATH_SIZE] = "";
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(exe, '/');
    if (slash)
        *slash = '\0';
    const char *set = getenv("SAMLAD_WEIGHTS");
    const char *const places[] = {"weights", "../weights", "../share/samlad/weights"};
    if (set && *set)
        return snprintf(path, PATH_SIZE, "%s/%s", set, file) < PATH_SIZE && file_exists(path);
    for (size_t i = 0; i < 3 && slash; i++)
        if (snprintf(path, PATH_SIZE, "%s/%s/%s", exe, places[i], file) < PATH_SIZE && file_exists(path))
            return 1;
    return snprintf(path, PATH_SIZE, "weights/%s", file) < PATH_SIZE && file_exists(path);
}

int no_weights(const char *file, const char *option)
{
    Error err;
    const char *set = getenv("SAMLAD_WEIGHTS");
    if (set && *set)
        fail(&err, "%s/%s is missing: correct SAMLAD_WEIGHTS, or give %s FILE", set, file, option);
    else
        fail(&err, "weights/%s is not beside the program: give %s FILE, or set SAMLAD_WEIGHTS to the folder",
             file, option);
    return failed(&err);
}

/* Fill in the shipped weights where none are named. No FeatUp weights ship. */
static int default_weights(Args *args)
{
    SamladWeights *w = &args->weights;
    if (!w->vit)
        w->vit = find_weights(args->vit, "vit_tiny.safetensors") ? args->vit : NULL;
    if (!w->sam)
        w->sam = find_weights(args->sam, "sam_tiny.safetensors") ? args->sam : NULL;
    if (args->no_featup)
        w->featup = NULL;
    return w->vit ? 0 : no_weights("vit_tiny.safetensors", "--backbone");
}

/* Are stages of FeatUp asked for without its weights? */
static int has_idle_stages(const Args *args)
{
    int idle = 0;
    for (int i = 0; i < args->n_set; i++)
        if (strcmp(args->set[i]->name, "featup-stages") == 0)
            idle = !args->weights.featup && strcmp(args->set_value[i], "0") != 0;
    return idle;
}

/* The word of --method comes first, so that single options hold wherever they stand. */
static int set_options(Samlad *s, const Args *args, Error *err)
{
    for (int word = 1; word >= 0; word--)
        for (int i = 0; i < args->n_set; i++)
            if (option_is_method(args->set[i]) == word &&
                samlad_set(s, args->set[i]->name, args->set_value[i], err))
                return -1;
    return 0;
}

Samlad *open_samlad(Args *args, Error *err)
{
    if (default_weights(args))
        return NULL;
    if (has_idle_stages(args)) {
        fail(err, "stages of FeatUp need its weights: give --featup FILE");
        failed(err);
        return NULL;
    }
    Samlad *s = samlad_open(&args->weights, err);
    if (s && set_options(s, args, err) == 0)
        return s;
    failed(err);
    samlad_close(s);
    return NULL;
}

void shipped_defaults(Options *o, AmgUse use)
{
    char path[PATH_SIZE];
    options_default(o);
    Safetensors *file = find_weights(path, "sam_tiny.safetensors") ? st_open(path, NULL) : NULL;
    if (file && amg_recommended(&o->amg, use, file, NULL))
        options_default(o);
    st_close(file);
}
