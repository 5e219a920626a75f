/* command/args.h - the command line of a sub-command: its options and its inputs. */
#ifndef SAMLAD_COMMAND_ARGS_H
#define SAMLAD_COMMAND_ARGS_H

#include <stdint.h>

#include "bank/options.h"
#include "samlad.h"

enum { PATH_SIZE = 4096, MAX_POINTS = 256, MAX_WORDS = 64, MAX_METHOD_OPTIONS = 128 };

/* The options of all sub-commands; each sub-command names those that it takes. */
typedef struct Args {
    const char *command; /* its name */
    const char *takes;   /* names of its options, separated by spaces; "*": every option of the method. */
    SamladWeights weights;
    char vit[PATH_SIZE], sam[PATH_SIZE]; /* paths of the default weights (models.h). */
    int no_featup;                       /* --featup none */
    const char *out, *bank, *from, *dump, *mnist, *defects;
    const char *dataset, *data, *shard, *output_mode;
    const char *normal, *anomalous, *masks; /* folders of a data set. */
    int n_categories, n_settings;
    const char *categories[MAX_WORDS], *settings[MAX_WORDS];
    int json, single, pictures, baselines, merge, parts, force, max_bank,
        hold_out, resize_masks, skip_unreadable;
    uint64_t seed;
    int has_seed;
    int n_set; /* options of the method, in the order given. */
    const OptionSpec *set[MAX_METHOD_OPTIONS];
    const char *set_value[MAX_METHOD_OPTIONS];
    int n_points, has_box;
    float points[MAX_POINTS][2], box[4];
    int labels[MAX_POINTS];
    int n_inputs;
    const char **inputs; /* malloc'd; the strings are the command line's. */
} Args;

/* Fill args from the command line after the sub-command's name; args->command and args->takes are set. Returns
 * 0, or an exit status after a message. */
int args_parse(Args *args, int argc, char **argv);

#endif
