/* cli_eval.c - the commands that run experiments: samlad synth, samlad eval. No algorithm: see eval/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "eval/evaluate.h"
#include "eval/synth.h"
#include "io/json.h"

/* ================================================================================================
 * samlad synth, samlad eval
 * ============================================================================================== */

static const char SYNTH_HELP[] =
    "usage: samlad synth tray DIR [--seed N]\n"
    "       samlad synth digits --mnist MNIST OUT [--seed N]\n"
    "\n"
    "Write a data set in MVTec LOCO's layout, to an empty or new folder. Same seed, same bytes.\n"
    "\n"
    "  tray    a tray with compartments and parts: logical anomalies (missing, extra, wrong kind, swapped, "
    "wrong count)\n"
    "          and structural ones (scratch, stain, dent, broken part), with ground truth\n"
    "  digits  DigitAnatomy: 3x3 grids of MNIST digits (missing, disordered, flipped, zero) from the folder "
    "of the four\n"
    "          idx files, plain or .gz\n";

int command_synth(Args *args)
{
    Error err;
    if (args->n_inputs != 2)
        return usage_error(args, "%s", "samlad synth tray DIR, or samlad synth digits --mnist MNIST OUT");
    int status;
    if (strcmp(args->inputs[0], "tray") == 0) {
        SynthTrayOptions o = synth_tray_defaults();
        o.seed = args->has_seed ? args->seed : o.seed;
        status = synth_tray(args->inputs[1], &o, &err);
    } else if (strcmp(args->inputs[0], "digits") == 0) {
        SynthDigitsOptions o = synth_digits_defaults();
        o.seed = args->has_seed ? args->seed : o.seed;
        if (!args->mnist)
            return usage_error(args, "%s", "--mnist MNIST is missing: the folder of MNIST's idx files");
        status = synth_digits(args->mnist, args->inputs[1], &o, &err);
    } else {
        return usage_error(args, "'%s' is neither tray nor digits", args->inputs[0]);
    }
    if (status)
        return failed(&err);
    printf("%s: written\n", args->inputs[1]);
    return EXIT_SUCCESS;
}

static const char EVAL_HELP[] =
    "usage: samlad eval DIR [-o OUT] [--max-bank N] [options of samlad bank]\n"
    "\n"
    "Measure on one category in MVTec LOCO's layout: DIR/train/good becomes the bank, DIR/test/good is "
    "compared with every\n"
    "other folder of DIR/test. Prints the area under the ROC curve of each, and of pixels where ground_truth "
    "is.\n"
    "\n"
    "  samlad synth tray trays && samlad eval trays -o out\n"
    "\n"
    "  -o, --out DIR         results.jsonl and, for each test image, heat map, overlay and float TIFF\n"
    "  --bank BANK           use this bank instead of DIR/train/good\n"
    "  --max-bank N          use at most N normal images\n"
    "  --json                print the figures as JSON\n";

static void print_evaluation(const Evaluation *e, int json)
{
    JsonWriter w;
    double per_image = e->n_images ? e->seconds_detect / e->n_images : 0;
    if (!json) {
        for (int i = 0; i < e->n_kinds; i++)
            printf("%-24s AUROC %.3f  (%d against %d good)\n", e->kinds[i].name, e->kinds[i].auroc,
                   e->kinds[i].n, e->n_good);
        printf(
            "%-24s AUROC %.3f\n%-24s AUROC %.3f\nbank of %d images in %.1f s, %d test images, %.3f s/image\n",
            "all", e->auroc, "pixels", e->pixel_auroc, e->n_bank, e->seconds_bank, e->n_images, per_image);
        return;
    }
    json_begin(&w);
    json_open(&w, '{');
    json_key(&w, "auroc"), json_number(&w, e->auroc);
    json_key(&w, "pixel_auroc"), json_number(&w, e->pixel_auroc);
    json_key(&w, "bank_images"), json_int(&w, e->n_bank);
    json_key(&w, "good_images"), json_int(&w, e->n_good);
    json_key(&w, "test_images"), json_int(&w, e->n_images);
    json_key(&w, "seconds_bank"), json_number(&w, e->seconds_bank);
    json_key(&w, "seconds_per_image"), json_number(&w, per_image);
    json_key(&w, "kinds");
    json_open(&w, '{');
    for (int i = 0; i < e->n_kinds; i++)
        json_key(&w, e->kinds[i].name), json_number(&w, e->kinds[i].auroc);
    json_close(&w, '}');
    json_close(&w, '}');
    printf("%s\n", w.failed ? "{}" : w.text);
    json_end(&w);
}

int command_eval(Args *args)
{
    Error err;
    Evaluation e;
    Progress progress = {0};
    if (args->n_inputs != 1)
        return usage_error(args, "%s", "one folder, please");
    if (args->bank && args->n_set > 0)
        return usage_error(args,
                           "--%s is a setting of the bank: leave out --bank, or make one with samlad bank",
                           args->set[0]->name);
    Samlad *s = open_samlad(args, &err);
    if (!s)
        return EXIT_FAILURE;
    int status = evaluate(s, args->inputs[0], args->bank, args->out, args->max_bank, &e, show_progress,
                          &progress, &err);
    if (!status)
        print_evaluation(&e, args->json);
    samlad_close(s);
    return status ? failed(&err) : EXIT_SUCCESS;
}

/* The helps of this chapter. */
void help_synth(void)
{
    fputs(SYNTH_HELP, stdout);
}
void help_eval(void)
{
    fputs(EVAL_HELP, stdout);
}
