/* command/cli.c - the `samlad` command: it finds the sub-command, and its help. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/bench.h"
#include "command/commands.h"
#include "command/messages.h"
#include "command/process.h"
#include "io/fail.h"

static const char HELP[] =
    "samlad " SAMLAD_VERSION
    " - SAM-LAD in C: zero-shot detection of logical and structural anomalies in images\n"
    "\n"
    "  samlad bank good/ -o normal.bank             study normal images\n"
    "  samlad detect --bank normal.bank new/ -o out score others, and name missing, extra, damaged objects\n"
    "\n"
    "  bank      normal images -> template bank\n"
    "  detect    bank + images -> scores, maps, reasons\n"
    "  segment   Segment Anything alone: images -> masks\n"
    "  info      the contents of a weights file or a bank\n"
    "  synth     write a data set: trays, DigitAnatomy from MNIST, or LOCO's five categories, drawn\n"
    "  eval      measure on a data set: MVTec LOCO, MVTec AD, VisA, DigitAnatomy, or folders of your own\n"
    "  ablate    eval under many settings of the method\n"
    "  bench     the speed of each stage on this machine\n"
    "\n"
    "See samlad COMMAND --help. OMP_NUM_THREADS sets the number of threads. SAMLAD_WEIGHTS names the folder\n"
    "of the weights that ship.\n";

static const struct {
    const char *name;
    int (*run)(Args *args);
    void (*help)(void);
    const char *takes;
} COMMANDS[] = {
    {"bank", command_bank, help_bank,
     "out from normal anomalous masks skip-unreadable backbone sam featup dcga *"},
    /* detect takes the method's options (*) only to refuse them with a sentence of its own. */
    {"detect", command_detect, help_detect,
     "bank out force json no-pictures dump backbone sam featup dcga *"},
    {"segment", command_segment, help_segment,
     "out force output-mode sam point box single dump precision white points pred-iou-thresh "
     "stability-score-thresh "
     "stability-score-offset box-nms-thresh crop-n-layers crop-nms-thresh crop-overlap-ratio "
     "crop-n-points-downscale-factor crop-own-points min-mask-region-area"},
    {"info", command_info, help_info, ""},
    {"synth", command_synth, help_synth, "seed parts mnist defects"},
    {"eval", command_eval, help_eval,
     "bank out json max-bank dataset data category normal anomalous masks resize-masks hold-out shard merge "
     "no-pictures no-baselines skip-unreadable backbone sam featup dcga *"},
    {"ablate", command_ablate, help_ablate,
     "out max-bank dataset category normal anomalous masks resize-masks hold-out setting "
     "skip-unreadable backbone sam featup dcga *"},
};

static int wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return 1;
    return 0;
}

/* The exit status: `status`, or a failure when the printed text was not delivered. */
static int finish(int status)
{
    if ((!fflush(stdout) && !ferror(stdout)) || status)
        return status;
    fprintf(stderr, "samlad: the output cannot be written: %s\n", strerror(errno));
    return EXIT_FAILURE;
}

static int run_command(size_t command, int want_help, int argc, char **argv)
{
    if (want_help || wants_help(argc, argv)) {
        COMMANDS[command].help();
        return EXIT_SUCCESS;
    }
    Args *args = calloc(1, sizeof *args);
    if (!args) {
        Error err;
        fail_memory(&err, "the arguments", sizeof *args);
        return failed(&err);
    }
    args->command = COMMANDS[command].name;
    args->takes = COMMANDS[command].takes;
    int status = args_parse(args, argc, argv);
    if (!status)
        status = COMMANDS[command].run(args);
    free(args->inputs);
    free(args);
    return status;
}

int main(int argc, char **argv)
{
    process_begin();
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        (strcmp(argv[1], "help") == 0 && argc == 2)) {
        fputs(HELP, argc < 2 ? stderr : stdout);
        return finish(argc < 2 ? EXIT_USAGE : EXIT_SUCCESS);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("samlad %s\n", SAMLAD_VERSION);
        return finish(EXIT_SUCCESS);
    }
    const int want_help = strcmp(argv[1], "help") == 0; /* samlad help COMMAND */
    const char *name = argv[1 + want_help];
    if (strcmp(name, "bench") == 0)
        return finish(bench_command(want_help ? 1 : argc - 2, want_help ? (char *[]){"--help"} : argv + 2));
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (strcmp(name, COMMANDS[i].name) == 0)
            return finish(run_command(i, want_help, argc - 2, argv + 2));
    Error err;
    fail(&err, "there is no command '%s' (see samlad --help)", name);
    failed(&err);
    return EXIT_USAGE;
}
