/* command/detect.c - samlad detect: images against a bank. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command/commands.h"
#include "command/inputs.h"
#include "command/messages.h"
#include "command/models.h"
#include "command/outputs.h"
#include "command/process.h"
#include "eval/maps.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"
#include "report/report.h"

static const char DETECT_HELP[] =
    "usage: samlad detect --bank BANK IMAGE|DIR... [-o OUT] [--json]\n"
    "\n"
    "Score images against a bank of normal ones; a higher score is more anomalous. Print one line an image\n"
    "(score, rank, verdict, path), and below it every missing, extra or damaged object.\n"
    "\n"
    "  rank      share of the bank's own leave-one-out scores that are at least as high: small is unusual\n"
    "  verdict   'anomalous' above the bank's threshold, a quantile of those scores (samlad bank\n"
    "            --threshold-quantile); of fewer than 20 scores it is extended\n"
    "\n"
    "An image that cannot be read is reported on stderr. The others are scored, and the exit status is 1.\n"
    "\n"
    "  samlad detect --bank screws.bank new/ -o results\n"
    "  samlad detect --bank screws.bank photo.jpg --json | jq .score\n"
    "\n"
    "  --bank BANK           made by samlad bank; it holds the settings\n"
    "  -o, --out DIR         write NAME_heat.png, NAME_overlay.png, NAME.tiff (float map), results.jsonl.\n"
    "                        Outlines in the overlay: green normal, red extra, orange damaged, dashed blue\n"
    "                        missing. A white ring marks the most suspicious place of an anomalous image\n"
    "                        in which no object is named\n"
    "                        A folder with outputs of an earlier run is refused\n"
    "  --force               remove the outputs of an earlier run from DIR first, and no other file\n"
    "  --no-pictures         write results.jsonl only\n"
    "  --json                print JSON lines instead of words\n"
    "  --backbone, --sam, --featup, --dcga FILE\n"
    "                        the weights that the bank was made with, unless they are the shipped ones\n"
    "  --white N|auto        is the bank's; another one is refused. In 16-bit images brighter values are "
    "white\n"
    "  --dump FILE           write every intermediate tensor of one image, as safetensors\n";

typedef struct Detect {
    Args *args;
    Samlad *s;
    OutputFolder folder; /* args->out */
    OutFile *jsonl;      /* results.jsonl, or NULL */
    int n_failed;        /* images that could not be judged. */
    int n_told;          /* lines in results.jsonl */
    int stopped;         /* before all images were judged. */
} Detect;

/* Pictures and map of one image. */
static int output_pictures(Detect *d, const SamladResult *r, const uint8_t *rgb, const ImageList *list,
                           int index, Error *err)
{
    static const char *const endings[] = {"_heat.png", "_overlay.png", ".tiff"};
    char prefix[PATH_SIZE], path[PATH_SIZE + 16];
    if (output_prefix(prefix, d->args->out, list, index, err))
        return -1;
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", prefix, endings[i]);
        if (outputs_note(&d->folder, path, err))
            return -1;
    }
    return write_pictures(r, rgb, prefix, err) || write_map(r, path, err) ? -1 : 0;
}

static int output_one(Detect *d, const SamladResult *r, const uint8_t *rgb, const ImageList *list, int index,
                      Error *err)
{
    const char *path = list->paths[index];
    JsonWriter w;
    json_begin(&w);
    report_json(&w, d->s, r, path);
    int status = w.failed ? fail_memory(err, "the result's JSON", w.length) : 0;
    if (!status && d->args->json) {
        printf("%s\n", w.text);
    } else if (!status) {
        printf("%9.4f  rank %.3f  %-9s  ", (double)r->score, (double)r->rank,
               r->anomalous < 0 ? "unknown"
               : r->anomalous   ? "anomalous"
                                : "normal");
        report_plain(stdout, path);
        printf("\n");
        report_text(stdout, d->s, r);
    }
    if (!status && d->jsonl) {
        out_put(d->jsonl, w.text, w.length);
        out_put(d->jsonl, "\n", 1);
        if (d->jsonl->failed) /* tell it now, not at the end of a long list. */
            status = fail(err, "%s: cannot write: %s", d->jsonl->path, strerror(d->jsonl->failed));
        d->n_told += !status;
    }
    json_end(&w);
    if (!status && d->args->out && d->args->pictures)
        status = output_pictures(d, r, rgb, list, index, err);
    if ((fflush(stdout) || ferror(stdout)) && !status)
        status = fail(err, "the output cannot be written: %s", strerror(errno));
    return status;
}

/* One image of a batch. One thread reads and scores it; the output follows in the order of the list. */
typedef struct Detected {
    uint8_t *rgb; /* NULL: it could not be read. */
    SamladResult result;
    int status;
    Error err;
} Detected;

static void detect_file(Detected *one, Samlad *s, const char *path, const char *dump)
{
    int width, height;
    one->status = -1;
    one->rgb = image_read_white(path, samlad_white(s), &width, &height, &one->err);
    if (!one->rgb)
        return;
    one->status = samlad_detect(s, one->rgb, height, width, &one->result, dump, &one->err);
    if (one->status) {
        Error inner = one->err;
        fail(&one->err, "%s: %.600s", path, inner.message);
    }
}

/* Print the images base .. base+n-1 in order and free them. An image that could not be read is reported on
 * stderr, and the others go on. A failure to write output ends the run. */
static int output_batch(Detect *d, Detected *batch, const ImageList *list, int base, int n,
                        Progress *progress, Error *err)
{
    int status = 0;
    for (int i = 0; i < n; i++) {
        Detected *one = &batch[i];
        if (!status && one->status) {
            failed(&one->err);
            d->n_failed++;
        } else if (!status) {
            status = output_one(d, &one->result, one->rgb, list, base + i, err);
        }
        if (!one->status)
            samlad_result_free(&one->result);
        free(one->rgb);
        if (!status && !isatty(STDOUT_FILENO)) /* on a terminal the results show the progress. */
            show_progress(progress, "images", base + i + 1, list->n);
    }
    return status;
}

/* Score as many images at once as is worthwhile. shares[0] is the command's own handle. */
static int detect_images(Detect *d, const ImageList *list, Error *err)
{
    int at_once = samlad_images_at_once(d->s), n_shares = 1, status = 0;
    if (at_once > list->n)
        at_once = list->n;
    Samlad **shares = calloc((size_t)at_once + 1, sizeof(*shares));
    Detected *batch = calloc((size_t)at_once + 1, sizeof *batch);
    Progress progress = {0};
    if (!shares || !batch)
        status = fail_memory(err, "a batch of images", (unsigned long long)at_once * sizeof *batch);
    else
        shares[0] = d->s;
    for (; n_shares < at_once && !status; n_shares++)
        if (!(shares[n_shares] = samlad_share(d->s, err)))
            status = -1;
    for (int base = 0; base < list->n && !status; base += at_once) {
        int m = list->n - base < at_once ? list->n - base : at_once;
#pragma omp parallel for schedule(static, 1) if (m > 1)
        for (int i = 0; i < m; i++)
            detect_file(&batch[i], shares[i], list->paths[base + i], d->args->dump);
        status = output_batch(d, batch, list, base, m, &progress, err);
        d->stopped = process_stopped() && !status && base + m < list->n;
        if (d->stopped)
            status = fail(err, "stopped at image %d of %d", base + m + 1, list->n);
    }
    for (int i = 1; shares && i < n_shares; i++)
        samlad_close(shares[i]);
    free(shares), free(batch);
    return status;
}

/* Judge the images, and keep the lines of a run that ended early. */
static int detect_to(Detect *d, const ImageList *list, const char *path, Error *err)
{
    OutFile jsonl;
    if (out_open(&jsonl, path, err))
        return -1;
    d->jsonl = &jsonl;
    process_stop_gently();
    int status = detect_images(d, list, err);
    d->jsonl = NULL;
    if (d->n_told == 0) {
        out_drop(&jsonl); /* no result, no file. */
        return status;
    }
    if (!status)
        return out_commit(&jsonl, err);
    const Error why = *err;
    if (jsonl.failed)
        out_drop(&jsonl);
    else if (out_commit(&jsonl, NULL) == 0)
        fail(err, "%s (%s has %d line%s)", why.message, path, d->n_told, d->n_told == 1 ? "" : "s");
    return status;
}

static int detect_list(Detect *d, const ImageList *list, Error *err)
{
    char path[PATH_SIZE + 16];
    if (!d->args->out)
        return detect_images(d, list, err);
    int status = outputs_open(&d->folder, d->args, err);
    if (!status) {
        snprintf(path, sizeof path, "%s/results.jsonl", d->folder.folder);
        status = outputs_note(&d->folder, path, err) || detect_to(d, list, path, err) ? -1 : 0;
        d->folder.empty |= d->n_told == 0;
    }
    outputs_close(&d->folder);
    return status;
}

/* The option that is a setting of the bank, and must be left out; NULL: none is given. */
static const OptionSpec *setting_of_bank(const Args *args)
{
    for (int i = 0; i < args->n_set; i++)
        if (strcmp(args->set[i]->name, "white") != 0)
            return args->set[i];
    return NULL;
}

/* --white may be said again, but not otherwise than the bank says. */
static int check_white(const Args *args, const Samlad *s, Error *err)
{
    for (int i = 0; i < args->n_set; i++)
        if (strcmp(args->set_value[i], "auto") != 0 && atoi(args->set_value[i]) != samlad_white(s))
            return fail(err,
                        "%s: the bank was made with --white %d, so --white %s contradicts it: leave it out, "
                        "or make a bank with it",
                        args->bank, samlad_white(s), args->set_value[i]);
    return 0;
}

/* Load the bank, and look at what it cannot know of the images. */
static int load_bank(const Args *args, Samlad *s, const ImageList *list, Error *err)
{
    if (samlad_bank_load(s, args->bank, err) || check_white(args, s, err))
        return -1;
    if (samlad_white(s) == IMAGE_WHITE)
        tell_dark(samlad_brightest((const char *const *)list->paths, list->n), samlad_white(s), "images",
                  "samlad bank ");
    return 0;
}

int command_detect(Args *args)
{
    Error err;
    ImageList list = {0};
    if (!args->bank)
        return usage_error(args->command, "%s", "--bank BANK is missing: the bank of normal images");
    if (args->n_inputs == 0)
        return usage_error(args->command, "%s", "no image is given");
    if (args->force && !args->out)
        return usage_error(args->command, "%s", "--force needs -o DIR: the folder to clear");
    const OptionSpec *setting = setting_of_bank(args);
    if (setting)
        return usage_error(args->command,
                           setting->of_features
                               ? "--%s is a setting of the bank: make one of its images with samlad bank"
                               : "--%s is a setting of the bank: make one with samlad bank (--from takes the "
                                 "images of this one)",
                           setting->name);
    if (list_inputs(&list, args, &err) ||
        (args->out && args->pictures && (check_apart(args, &err) || check_outputs(&list, args->out, &err))) ||
        (args->dump && (check_spared(args->dump, args, &list, &err) || out_try(args->dump, &err)))) {
        list_free(&list);
        return failed(&err);
    }
    left_out_tell(stderr, &list.left_out);
    if (args->dump && list.n != 1) {
        list_free(&list);
        return usage_error(args->command, "%s", "--dump takes one image");
    }
    Samlad *s = open_samlad(args, &err);
    if (!s) {
        list_free(&list);
        return EXIT_FAILURE;
    }
    Detect d = {.args = args, .s = s};
    int status =
        load_bank(args, s, &list, &err) || detect_list(&d, &list, &err) ? failed(&err) : EXIT_SUCCESS;
    if (d.n_failed > 1)
        fprintf(stderr, "samlad: %d of %d images could not be judged\n", d.n_failed, list.n);
    status = d.n_failed ? EXIT_FAILURE : status;
    samlad_close(s);
    list_free(&list);
    if (d.stopped)
        process_end_stopped();
    return status;
}

void help_detect(void)
{
    fputs(DETECT_HELP, stdout);
}
