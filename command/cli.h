/* cli.h - what the chapters of the `samlad` command share: arguments, messages, models, progress. cli.c holds
 * them and the commands that look at images; cli_eval.c the commands that run experiments; inputs.c lists of
 * images. */
#ifndef SAMLAD_CLI_H
#define SAMLAD_CLI_H

#include <stdint.h>

#include "bank/options.h"
#include "samlad.h"

enum { PATH_SIZE = 4096, EXIT_USAGE = 2, MAX_POINTS = 256 };

/* What all sub-commands may be given; each says which of them it takes. */
typedef struct Args {
    const char *command, *takes; /* takes: the names of its options; "*": all of METHOD.md's */
    SamladWeights weights;
    char vit[PATH_SIZE], sam[PATH_SIZE], featup[PATH_SIZE]; /* found defaults */
    int no_featup;
    const char *out, *bank, *from, *dump, *mnist, *defects;
    const char *dataset, *data, *shard;
    int n_categories, n_settings;
    const char *categories[64], *settings[64];
    int json, single, pictures, merge, parts, max_bank;
    uint64_t seed;
    int has_seed;
    int n_set;
    const OptionSpec *set[128]; /* method options in the order given */
    const char *set_value[128];
    int n_points, has_box;
    float points[MAX_POINTS][2], box[4];
    int labels[MAX_POINTS];
    int n_inputs;
    const char **inputs;
} Args;

/* One sentence on stderr and the exit status: 2 for wrong usage (`format` has one %s), 1 for a failure. */
int usage_error(const Args *args, const char *format, const char *what);
int failed(const Error *err);

/* Open the models, the shipped ones where none is named, and set the options given. NULL after a message. */
Samlad *open_samlad(Args *args, Error *err);

/* A bar with an estimate, only on a terminal, only when the work takes over two seconds. */
typedef struct Progress {
    double start, shown;
    const char *what;
    int drawn;
} Progress;

void show_progress(void *user, const char *what, int done, int total); /* a SamladProgress */

/* cli_eval.c */
int command_synth(Args *args);
int command_eval(Args *args);
int command_ablate(Args *args);
void help_synth(void);
void help_eval(void);
void help_ablate(void);

#endif
