/* command/bank.c - samlad bank: normal images -> a bank. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/inputs.h"
#include "command/messages.h"
#include "command/models.h"
#include "io/clock.h"
#include "io/file.h"
#include "report/report.h"

static const char BANK_HELP[] =
    "usage: samlad bank DIR|IMAGE... -o BANK [options]\n"
    "\n"
    "Store the features and objects of normal images in one file, the bank (safetensors).\n"
    "A few dozen images of one product are enough. Folders are searched for images. All images are decoded\n"
    "before the work begins, and all unreadable ones are told.\n"
    "\n"
    "  samlad bank good/ -o screws.bank             with the weights that ship\n"
    "  samlad bank good/ -o screws.bank --backbone dinov2_vits14.safetensors --sam sam_vit_h.safetensors\n"
    "  samlad bank --from screws.bank -o k10.bank --k 10      the same images with another setting\n"
    "  samlad bank good/ -o paper.bank --method paper         without our additions to the paper\n"
    "\n"
    "  -o, --out FILE        the bank to write\n"
    "  --normal DIR          take this folder, in the given one or anywhere, whatever its folders are called.\n"
    "                        Otherwise folders that hold normal images beside others (OK and NG, masks,\n"
    "                        tests) are refused\n"
    "  --anomalous DIR       leave this folder out, and --masks DIR\n"
    "  --backbone FILE       ViT weights: a safetensors file, or a folder of Hugging Face or timm;\n"
    "                        tools/convert.py makes one of a PyTorch file\n"
    "  --sam FILE            Segment Anything weights, likewise\n"
    "  --featup FILE|none|N  FeatUp weights; none: bilinear; a number: stages\n"
    "  --dcga FILE           learned graph weights (none by default)\n"
    "  --skip-unreadable     go on without the images that cannot be read; the bank names them\n"
    "  --from BANK           take images and settings from a bank; recalibrate with the options given\n";

void help_bank(void)
{
    Options o;
    shipped_defaults(&o, AMG_FOR_OBJECTS);
    fputs(BANK_HELP, stdout);
    printf("\nFeatures and objects, with the defaults of the SAM weights that ship. Other weights may "
           "recommend\n"
           "others; samlad info BANK shows those of a bank:\n");
    options_help(stdout, &o, 1);
    printf("\nMethod (can be changed with --from):\n");
    options_help(stdout, &o, 0);
}

static int bank_make(Args *args, const ImageList *list, Samlad *s, Error *err)
{
    Progress progress = {0};
    if (args->from)
        return samlad_bank_recalibrate(s, args->from, show_progress, &progress, err);
    return samlad_bank_build(s, (const char *const *)list->paths, list->n, show_progress, &progress, err);
}

/* What the verdicts of this bank rest on. */
static void tell_threshold(const Samlad *s)
{
    const int few = samlad_bank_few_scores(s);
    if (isnan(samlad_bank_threshold(s))) {
        printf("one image, or copies of one: no verdicts, only the order of the scores will say something\n");
        return;
    }
    printf("scores above %.4f are called anomalous (--threshold-quantile of the images' own)\n",
           (double)samlad_bank_threshold(s));
    if (few)
        printf("of %d normal images one is expected above the largest score of the other %d, so the "
               "threshold is extended: excesses over the median are taken as exponential\n",
               few + 1, few);
}

/* The length of the path's folder; 0: none. */
static int folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (int)(slash - path) : 0;
}

/* Images of several folders: how many of each. The images of a folder stand together. */
static void tell_folders(const ImageList *list)
{
    enum { NAMED = 3 };
    char folder[PATH_SIZE];
    int n_folders = 0;
    for (int i = 0, n = 1; i < list->n; i += n, n = 1) {
        const char *path = list->paths[i];
        const int length = folder_length(path);
        while (i + n < list->n && folder_length(list->paths[i + n]) == length &&
               strncmp(path, list->paths[i + n], (size_t)length) == 0)
            n++;
        if (n == list->n) /* one folder */
            return;
        if (n_folders++ < NAMED) {
            fputs(n_folders == 1 ? "images from " : ", ", stdout);
            snprintf(folder, sizeof folder, "%.*s", length, length ? path : ".");
            report_plain(stdout, folder);
            printf(" (%d)", n);
        }
    }
    if (n_folders > NAMED)
        printf(", and from %d more folder%s", n_folders - NAMED, n_folders - NAMED == 1 ? "" : "s");
    if (n_folders)
        printf("\n");
}

static int write_bank(Args *args, const ImageList *list, Samlad *s, Error *err)
{
    double start = clock_seconds();
    const int is_auto = !samlad_white(s);
    if (!args->from && !is_auto)
        tell_dark(samlad_brightest((const char *const *)list->paths, list->n), samlad_white(s), "images", "");
    if (bank_make(args, list, s, err))
        return -1;
    if (list->n_unreadable &&
        samlad_bank_note_unreadable(s, (const char *const *)list->unreadable, list->n_unreadable, err))
        return -1;
    if (samlad_bank_save(s, args->out, err))
        return -1;
    const int n = samlad_bank_size(s);
    printf("%s: %d normal image%s, %.1f s\n", args->out, n, n == 1 ? "" : "s", clock_seconds() - start);
    if (is_auto)
        printf("16-bit images: %d is white (--white auto)\n", samlad_white(s));
    tell_threshold(s);
    return 0;
}

int command_bank(Args *args)
{
    Error err;
    ImageList list = {0};
    if (!args->out)
        return usage_error(args->command, "%s", "-o BANK is missing: the file to write");
    if ((args->n_inputs == 0 && !args->normal) == !args->from)
        return usage_error(args->command, "%s",
                           args->from ? "--from and images exclude each other"
                                      : "no normal images are given");
    if (args->from && (args->anomalous || args->masks || args->skip_unreadable))
        return usage_error(args->command, "--%s says something of images, and --from has none",
                           args->anomalous ? "anomalous"
                           : args->masks   ? "masks"
                                           : "skip-unreadable");
    for (int i = 0; args->from && i < args->n_set; i++)
        if (args->set[i]->of_features)
            return usage_error(args->command, "--%s needs the images again: give them instead of --from",
                               args->set[i]->name);
    /* check everything before the work, which may take hours. */
    int repeats = 0;
    if (out_try(args->out, &err) || list_normal(&list, args, &err) ||
        list_drop_repeats(&list, &repeats, &err) || check_spared(args->out, args, &list, &err) ||
        check_replaceable(args->out, &err)) {
        list_free(&list);
        return failed(&err);
    }
    left_out_tell(stdout, &list.left_out);
    tell_folders(&list);
    if (repeats)
        printf("%d image%s given more than once: each counts once\n", repeats, repeats == 1 ? "" : "s");
    Samlad *s = open_samlad(args, &err);
    int status = !s ? EXIT_FAILURE
                 : list_check_readable(&list, args->skip_unreadable, &err) || write_bank(args, &list, s, &err)
                     ? failed(&err)
                     : EXIT_SUCCESS;
    samlad_close(s);
    list_free(&list);
    return status;
}
