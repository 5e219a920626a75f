/* command/synth.c - samlad synth: write drawn data sets. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/messages.h"
#include "eval/synth.h"

static const char SYNTH_HELP[] =
    "usage: samlad synth tray DIR [--seed N] [--parts]\n"
    "       samlad synth digits --mnist MNIST OUT [--seed N]\n"
    "       samlad synth loco --defects TABLES OUT [--seed N]\n"
    "\n"
    "Write a data set in MVTec LOCO's layout, to an empty or new folder. Same seed, same bytes.\n"
    "\n"
    "  tray    a tray with compartments and parts, and ground truth.\n"
    "          Logical anomalies: missing, extra, wrong kind, swapped, wrong count.\n"
    "          Structural anomalies: scratch, stain, dent, broken part.\n"
    "          --parts also writes which pixel shows which part, as parts/test/good/000.png and so on\n"
    "          (0 none, 1 the first part, ...)\n"
    "  digits  DigitAnatomy: 3x3 grids of MNIST digits (missing, disordered, flipped, zero).\n"
    "          MNIST is the folder of the four idx files, plain or .gz\n"
    "  loco    a tiny set with MVTec LOCO's five categories: small trays.\n"
    "          Their defects take the pixel values of TABLES/CATEGORY/defects_config.json\n";

/* Each option but --seed belongs to one of the data sets. */
static int check_synth_options(const Args *args)
{
    const struct {
        int given;
        const char *set, *sentence;
    } options[] = {{args->parts, "tray", "--parts belongs to samlad synth tray"},
                   {args->mnist != NULL, "digits", "--mnist belongs to samlad synth digits"},
                   {args->defects != NULL, "loco", "--defects belongs to samlad synth loco"}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].given && strcmp(args->inputs[0], options[i].set) != 0)
            return usage_error(args->command, "%s", options[i].sentence);
    return 0;
}

int command_synth(Args *args)
{
    Error err;
    if (args->n_inputs != 2)
        return usage_error(args->command, "%s",
                           "samlad synth tray DIR, digits --mnist MNIST OUT, or loco --defects TABLES OUT");
    if (check_synth_options(args))
        return EXIT_USAGE;
    int status;
    if (strcmp(args->inputs[0], "tray") == 0) {
        SynthTrayOptions o = synth_tray_defaults();
        o.seed = args->has_seed ? args->seed : o.seed;
        o.parts = args->parts;
        status = synth_tray(args->inputs[1], &o, &err);
    } else if (strcmp(args->inputs[0], "digits") == 0) {
        SynthDigitsOptions o = synth_digits_defaults();
        o.seed = args->has_seed ? args->seed : o.seed;
        if (!args->mnist)
            return usage_error(args->command, "%s",
                               "--mnist MNIST is missing: the folder of MNIST's idx files");
        status = synth_digits(args->mnist, args->inputs[1], &o, &err);
    } else if (strcmp(args->inputs[0], "loco") == 0) {
        if (!args->defects)
            return usage_error(args->command, "%s",
                               "--defects TABLES is missing: the folder of CATEGORY/defects_config.json");
        status = synth_loco(args->defects, args->inputs[1], args->has_seed ? args->seed : 1, &err);
    } else {
        return usage_error(args->command, "'%s' is none of tray, digits, loco", args->inputs[0]);
    }
    if (status)
        return failed(&err);
    printf("%s: written\n", args->inputs[1]);
    return EXIT_SUCCESS;
}

void help_synth(void)
{
    fputs(SYNTH_HELP, stdout);
}
