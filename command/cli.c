/* cli.c - the `samlad` command: sub-commands, options, messages, progress. No algorithm. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command/bench.h"
#include "io/fail.h"
#include "command/cli.h"
#include "command/inputs.h"
#include "command/process.h"
#include "eval/maps.h"
#include "io/clock.h"
#include "io/file.h"
#include "io/image.h"
#include "report/report.h"
#include "report/segment.h"
#include "vit.h"

/* ================================================================================================
 * Arguments
 * ============================================================================================== */

/* One line in one piece, for other processes may write to the same place. Names of files and words of the
 * user's are in it, which must not steer the terminal. */
static void complain(const char *sentence, const char *hint)
{
    char *line = NULL;
    size_t n;
    FILE *memory = open_memstream(&line, &n);
    if (memory) {
        fputs("samlad: ", memory);
        report_plain(memory, sentence);
        fprintf(memory, "%s\n", hint);
        fclose(memory);
    }
    fputs(line ? line : "samlad: out of memory for a sentence\n", stderr);
    free(line);
}

int failed(const Error *err)
{
    complain(err->message, "");
    return EXIT_FAILURE;
}

int usage_error(const Args *args, const char *format, const char *what)
{
    Error err;
    char hint[64];
    fail(&err, format, what);
    snprintf(hint, sizeof hint, " (see samlad %s --help)", args->command);
    complain(err.message, hint);
    return EXIT_USAGE;
}

/* Is `name` among the words of the list? */
static int is_taken(const char *list, const char *name)
{
    for (size_t n; *list; list += n + (list[n] != '\0')) {
        n = strcspn(list, " ");
        if ((n == strlen(name) && strncmp(list, name, n) == 0) ||
            (n == 1 && *list == '*' && option_find(name)))
            return 1;
    }
    return 0;
}

/* n comma-separated numbers, and nothing after them. */
static int parse_floats(const char *text, float *values, int n)
{
    for (int i = 0; i < n; i++) {
        char *end;
        values[i] = strtof(text, &end);
        if (end == text || !isfinite(values[i]) || *end != (i + 1 < n ? ',' : '\0'))
            return -1;
        text = end + 1;
    }
    return 0;
}

static int parse_point(Args *args, const char *text)
{
    float v[3] = {0, 0, 1};
    if (parse_floats(text, v, 2) && (parse_floats(text, v, 3) || (v[2] != 0 && v[2] != 1)))
        return usage_error(args, "--point '%s' is not X,Y or X,Y,LABEL with label 1 or 0", text);
    if (args->n_points == MAX_POINTS)
        return usage_error(args, "%s", "more than 256 points");
    args->points[args->n_points][0] = v[0];
    args->points[args->n_points][1] = v[1];
    args->labels[args->n_points++] = (int)v[2];
    return 0;
}

static int parse_number(const char *text, uint64_t max, uint64_t *value)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (end == text || *end || errno || !isdigit((unsigned char)*text) || v > max)
        return -1;
    *value = v;
    return 0;
}

/* --featup takes a file, "none", or the number of stages. */
static void parse_featup(Args *args, const char *value)
{
    if (value[0] >= '0' && value[0] <= '4' && !value[1]) {
        args->set[args->n_set] = option_find("featup-stages");
        args->set_value[args->n_set++] = value;
    } else if (strcmp(value, "none") == 0) {
        args->no_featup = 1;
    } else {
        args->weights.featup = value;
    }
}

/* One named argument with its value; 0, or an exit status. */
static int take_option(Args *args, const char *name, const char *value)
{
    uint64_t number;
    if (args->n_set >= 127)
        return usage_error(args, "too many options at --%s", name);
    const struct {
        const char *name;
        const char **into;
    } texts[] = {{"backbone", &args->weights.vit},
                 {"sam", &args->weights.sam},
                 {"dcga", &args->weights.dcga},
                 {"out", &args->out},
                 {"bank", &args->bank},
                 {"from", &args->from},
                 {"dump", &args->dump},
                 {"mnist", &args->mnist},
                 {"defects", &args->defects},
                 {"dataset", &args->dataset},
                 {"data", &args->data},
                 {"shard", &args->shard}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(name, texts[i].name) == 0) {
            *texts[i].into = value;
            return *value ? 0 : usage_error(args, "--%s is given an empty name", name);
        }
    if (strcmp(name, "featup") == 0) {
        if (!*value)
            return usage_error(args, "--%s is given an empty name", name);
        parse_featup(args, value);
    } else if (strcmp(name, "point") == 0) {
        return parse_point(args, value);
    } else if (strcmp(name, "box") == 0) {
        if (parse_floats(value, args->box, 4))
            return usage_error(args, "--box '%s' is not X0,Y0,X1,Y1", value);
        if (args->box[0] >= args->box[2] || args->box[1] >= args->box[3])
            return usage_error(args, "--box '%s': expected X0 < X1 and Y0 < Y1", value);
        args->has_box = 1;
    } else if (strcmp(name, "category") == 0) {
        if (args->n_categories == (int)(sizeof args->categories / sizeof *args->categories))
            return usage_error(args, "%s", "more than 64 categories");
        if (!*value || strchr(value, '/') || strcmp(value, ".") == 0 || strcmp(value, "..") == 0)
            return usage_error(args, "--category '%s' is not the name of a folder in the data set", value);
        args->categories[args->n_categories++] = value;
    } else if (strcmp(name, "setting") == 0) {
        if (args->n_settings == (int)(sizeof args->settings / sizeof *args->settings))
            return usage_error(args, "%s", "more than 64 settings");
        args->settings[args->n_settings++] = value;
    } else if (strcmp(name, "seed") == 0) {
        if (parse_number(value, UINT64_MAX, &args->seed))
            return usage_error(args, "--seed '%s' is not a whole number", value);
        args->has_seed = 1;
    } else if (strcmp(name, "max-bank") == 0) {
        if (parse_number(value, 1 << 24, &number) || number == 0)
            return usage_error(args, "--max-bank '%s' is not a whole number above 0", value);
        args->max_bank = (int)number;
    } else if (option_find(name)) {
        Options scratch;
        Error err;
        char where[80];
        options_default(&scratch);
        snprintf(where, sizeof where, "--%s", name);
        if (option_set(&scratch, option_find(name), value, where, &err))
            return usage_error(args, "%s", err.message);
        args->set[args->n_set] = option_find(name);
        args->set_value[args->n_set++] = value;
    } else {
        return usage_error(args, "there is no option --%s", name);
    }
    return 0;
}

static int take_flag(Args *args, const char *name)
{
    if (strcmp(name, "json") == 0)
        return args->json = 1;
    if (strcmp(name, "single") == 0)
        return args->single = 1;
    if (strcmp(name, "merge") == 0)
        return args->merge = 1;
    if (strcmp(name, "parts") == 0)
        return args->parts = 1;
    if (strcmp(name, "no-pictures") == 0) {
        args->pictures = 0;
        return 1;
    }
    return 0;
}

/* Fill args from the command line after the sub-command's name. 0, or an exit status. */
static int parse(Args *args, int argc, char **argv)
{
    args->pictures = 1;
    args->inputs = calloc((size_t)argc + 1, sizeof *args->inputs);
    if (!args->inputs)
        return EXIT_FAILURE;
    int only_inputs = 0; /* after "--" */
    for (int i = 0; i < argc; i++) {
        const char *arg = strcmp(argv[i], "-o") == 0 ? "--out" : argv[i];
        char name[64];
        if (!only_inputs && strcmp(arg, "--") == 0) {
            only_inputs = 1;
            continue;
        }
        if (only_inputs || strncmp(arg, "--", 2) != 0) {
            if (!only_inputs && arg[0] == '-' && arg[1])
                return usage_error(args, "there is no option %s", arg);
            args->inputs[args->n_inputs++] = only_inputs ? argv[i] : arg;
            continue;
        }
        const char *equals = strchr(arg, '=');
        snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - arg - 2 : (long)strlen(arg) - 2),
                 arg + 2);
        if (!is_taken(args->takes, name))
            return usage_error(args, "there is no option --%s", name);
        if (take_flag(args, name)) {
            if (equals)
                return usage_error(args, "--%s takes no value", name);
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            return usage_error(args, "--%s needs a value", name);
        int status = take_option(args, name, value);
        if (status)
            return status;
    }
    return 0;
}

/* ================================================================================================
 * Weights that ship
 * ============================================================================================== */

/* In $SAMLAD_WEIGHTS when it is set, and nowhere else; else the first of: beside the program, one folder
 * above it, PREFIX/share/samlad/weights, ./weights. */
static int find_weights(char path[PATH_SIZE], const char *file)
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

/* Say where they were looked for. */
static int no_weights(const char *file, const char *option)
{
    Error err;
    const char *set = getenv("SAMLAD_WEIGHTS");
    if (set && *set)
        fail(&err, "%s/%s is not there: SAMLAD_WEIGHTS names another folder, or give %s FILE", set, file,
             option);
    else
        fail(&err, "weights/%s is not beside the program: give %s FILE, or set SAMLAD_WEIGHTS to the folder",
             file, option);
    return failed(&err);
}

/* Weights that were not named are the shipped ones; FeatUp's only when it ships. */
static int default_weights(Args *args)
{
    SamladWeights *w = &args->weights;
    if (!w->vit)
        w->vit = find_weights(args->vit, "vit_tiny.safetensors") ? args->vit : NULL;
    if (!w->sam)
        w->sam = find_weights(args->sam, "sam_tiny.safetensors") ? args->sam : NULL;
    if (!w->featup && !args->no_featup)
        w->featup = find_weights(args->featup, "featup_tiny.safetensors") ? args->featup : NULL;
    if (args->no_featup)
        w->featup = NULL;
    return w->vit ? 0 : no_weights("vit_tiny.safetensors", "--backbone");
}

/* Stages of FeatUp that were asked for, without its weights. */
static int has_idle_stages(const Args *args)
{
    int idle = 0;
    for (int i = 0; i < args->n_set; i++)
        if (strcmp(args->set[i]->name, "featup-stages") == 0)
            idle = !args->weights.featup && strcmp(args->set_value[i], "0") != 0;
    return idle;
}

/* Open the models and set the options given. NULL after a message. */
Samlad *open_samlad(Args *args, Error *err)
{
    if (default_weights(args))
        return NULL;
    if (has_idle_stages(args)) {
        fprintf(stderr,
                "samlad: stages of FeatUp are asked for, but no weights are there: give --featup FILE\n");
        return NULL;
    }
    Samlad *s = samlad_open(&args->weights, err);
    if (!s) {
        failed(err);
        return NULL;
    }
    for (int i = 0; i < args->n_set; i++)
        if (samlad_set(s, args->set[i]->name, args->set_value[i], err)) {
            failed(err);
            samlad_close(s);
            return NULL;
        }
    return s;
}

/* ================================================================================================
 * Progress: a bar with an estimate, only on a terminal, only when the work takes over two seconds
 * ============================================================================================== */

void show_progress(void *user, const char *what, int done, int total)
{
    Progress *p = user;
    double t = clock_seconds();
    if (p->what != what) {
        p->what = what;
        p->start = t;
    }
    if (!isatty(STDERR_FILENO) || (done < total && (t - p->start < 2 || t - p->shown < 0.2)) ||
        (done == total && !p->drawn))
        return;
    double left = done > 0 ? (t - p->start) * (total - done) / done : 0;
    int filled = total > 0 ? 30 * done / total : 30;
    fprintf(stderr, "\r%-14s [%.*s%.*s] %d/%d, %.0f s left   ", what, filled,
            "##############################", 30 - filled, "..............................", done, total,
            left);
    p->drawn = 1;
    p->shown = t;
    if (done == total) {
        fprintf(stderr, "\r%*s\r", 78, "");
        p->drawn = 0;
    }
}

/* The mask generator's progress has no name of its work. */
static void show_points(void *user, int done, int total)
{
    show_progress(user, "prompts", done, total);
}

/* ================================================================================================
 * samlad bank
 * ============================================================================================== */

static const char BANK_HELP[] =
    "usage: samlad bank DIR|IMAGE... -o BANK [options]\n"
    "\n"
    "Study normal images and keep what is known of them in one file (safetensors).\n"
    "A few dozen images of one product, taken alike, are enough; folders are searched.\n"
    "\n"
    "  samlad bank good/ -o screws.bank             with the weights that ship\n"
    "  samlad bank good/ -o screws.bank --backbone dinov2_vits14.safetensors --sam sam_vit_h.safetensors\n"
    "  samlad bank --from screws.bank -o k10.bank --k 10      the same images, another method setting\n"
    "\n"
    "  -o, --out FILE        the bank to write\n"
    "  --backbone FILE       ViT weights (samlad info FILE; tools/convert.py makes them)\n"
    "  --sam FILE            Segment Anything weights\n"
    "  --featup FILE|none|N  FeatUp weights; none: bilinear; a number: stages\n"
    "  --dcga FILE           learned graph weights (none by default)\n"
    "  --from BANK           take a bank's images and settings, and calibrate anew with the options given\n";

/* Defaults as they are with the SAM weights that ship, where these are to be found. */
static void shipped_defaults(Options *o, AmgUse use)
{
    char path[PATH_SIZE];
    options_default(o);
    Safetensors *file = find_weights(path, "sam_tiny.safetensors") ? st_open(path, NULL) : NULL;
    if (file && amg_recommended(&o->amg, use, file, NULL))
        options_default(o);
    st_close(file);
}

static void bank_help(void)
{
    Options o;
    shipped_defaults(&o, AMG_FOR_OBJECTS);
    fputs(BANK_HELP, stdout);
    printf(
        "\nFeatures and objects (defaults with the SAM weights that ship; others may recommend their own,\n"
        "samlad info BANK shows what was used):\n");
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

static int write_bank(Args *args, const ImageList *list, Samlad *s, Error *err)
{
    double start = clock_seconds();
    if (bank_make(args, list, s, err) || samlad_bank_save(s, args->out, err))
        return -1;
    const int n = samlad_bank_size(s);
    printf("%s: %d normal image%s, %.1f s\n", args->out, n, n == 1 ? "" : "s", clock_seconds() - start);
    if (!isnan(samlad_bank_threshold(s)))
        printf("scores above %.4f are called anomalous (--threshold-quantile of the images' own)\n",
               (double)samlad_bank_threshold(s));
    else
        printf("one image, or copies of one: no verdicts, only the order of the scores will say something\n");
    return 0;
}

static int command_bank(Args *args)
{
    Error err;
    ImageList list = {0};
    if (!args->out)
        return usage_error(args, "%s", "where to? -o BANK is missing");
    if ((args->n_inputs == 0) == !args->from)
        return usage_error(args, "%s",
                           args->from ? "either --from or images, not both" : "no normal images are given");
    for (int i = 0; args->from && i < args->n_set; i++)
        if (args->set[i]->of_features)
            return usage_error(args, "--%s needs the images again: leave out --from and name them",
                               args->set[i]->name);
    /* all that can be wrong is said before the work, which may take hours */
    int repeats = 0;
    if (out_try(args->out, &err) || list_inputs(&list, args, &err) || refuse_data_sets(&list, &err) ||
        list_drop_repeats(&list, &repeats, &err) || check_spared(args->out, args, &list, &err) ||
        check_replaceable(args->out, &err)) {
        list_free(&list);
        return failed(&err);
    }
    tell_left_out(stdout, &list);
    if (repeats)
        printf("%d image%s given more than once: each counts once\n", repeats, repeats == 1 ? "" : "s");
    Samlad *s = open_samlad(args, &err);
    int status = !s ? EXIT_FAILURE : write_bank(args, &list, s, &err) ? failed(&err) : EXIT_SUCCESS;
    samlad_close(s);
    list_free(&list);
    return status;
}

/* ================================================================================================
 * samlad detect
 * ============================================================================================== */

static const char DETECT_HELP[] =
    "usage: samlad detect --bank BANK IMAGE|DIR... [-o OUT] [--json]\n"
    "\n"
    "Score images against a bank of normal ones: higher is more anomalous. Prints a line an image (score, "
    "rank,\n"
    "verdict, path) and below it what is missing, extra or damaged. rank is the part of the bank's own "
    "leave-one-out\n"
    "scores that are as high: small means unusual, near 1 means normal. The verdict is 'anomalous' above the "
    "bank's\n"
    "threshold, a quantile of those scores (samlad bank --threshold-quantile).\n"
    "An image that cannot be read is told on stderr, the others are judged, and the status is 1.\n"
    "\n"
    "  samlad detect --bank screws.bank new/ -o results\n"
    "  samlad detect --bank screws.bank photo.jpg --json | jq .score\n"
    "\n"
    "  --bank BANK           made by samlad bank; settings are taken from it\n"
    "  -o, --out DIR         write NAME_heat.png, NAME_overlay.png (outlines: green normal, red extra, "
    "orange\n"
    "                        damaged, dashed blue missing; a white ring where an anomalous image in which\n"
    "                        nothing can be named is suspected most), NAME.tiff (float map), results.jsonl\n"
    "  --no-pictures         only results.jsonl\n"
    "  --json                print JSON lines instead of words\n"
    "  --backbone, --sam, --featup, --dcga FILE   the weights that the bank was made with, when not the "
    "shipped ones\n"
    "  --dump FILE           every intermediate tensor of one image, as safetensors\n";

typedef struct Detect {
    Args *args;
    Samlad *s;
    OutFile *jsonl; /* results.jsonl, or NULL */
    int n_failed;   /* images that could not be judged */
    int n_told;     /* lines in results.jsonl */
    int stopped;    /* before all images were judged */
} Detect;

/* OUT/NAME, without its ending unless names need it. */
static int output_prefix(char prefix[PATH_SIZE], const char *out, const ImageList *list, int i, Error *err)
{
    if (snprintf(prefix, PATH_SIZE, "%s/%.*s", out, output_length(list, i), list->names[i]) >= PATH_SIZE - 32)
        return fail(err, "%s: the path is too long", out);
    char *last = strrchr(prefix, '/');
    *last = '\0';
    int status = dir_make(prefix, err);
    *last = '/';
    return status;
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
        if (d->jsonl->failed) /* not only at the end of a long list */
            status = fail(err, "%s: cannot write: %s", d->jsonl->path, strerror(d->jsonl->failed));
        d->n_told += !status;
    }
    json_end(&w);
    char prefix[PATH_SIZE];
    if (!status && d->args->out && d->args->pictures)
        status = output_prefix(prefix, d->args->out, list, index, err) ||
                         write_pictures(r, rgb, prefix, err) || write_map(r, strcat(prefix, ".tiff"), err)
                     ? -1
                     : 0;
    if ((fflush(stdout) || ferror(stdout)) && !status)
        status = fail(err, "the output cannot be written: %s", strerror(errno));
    return status;
}

/* One image of a batch: read and compared by one thread, then told in the order of the list. */
typedef struct Detected {
    uint8_t *rgb; /* NULL: it could not be read */
    SamladResult result;
    int status;
    Error err;
} Detected;

static void detect_file(Detected *one, Samlad *s, const char *path, const char *dump)
{
    int width, height;
    one->status = -1;
    one->rgb = image_read_rgb8(path, &width, &height, &one->err);
    if (!one->rgb)
        return;
    one->status = samlad_detect(s, one->rgb, height, width, &one->result, dump, &one->err);
    if (one->status) {
        Error inner = one->err;
        fail(&one->err, "%s: %.600s", path, inner.message);
    }
}

/* Tell of the images base .. base+n-1 in order. One that could not be read is told on stderr, and the others
 * go on; output that cannot be written ends it. Frees them all. */
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
        if (!status && !isatty(STDOUT_FILENO)) /* results on a terminal are progress enough */
            show_progress(progress, "images", base + i + 1, list->n);
    }
    return status;
}

/* As many images at once as pay. shares[0] is the command's own handle. */
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

static int detect_list(Detect *d, const ImageList *list, Error *err)
{
    char path[PATH_SIZE];
    OutFile jsonl;
    if (!d->args->out)
        return detect_images(d, list, err);
    if (dir_make(d->args->out, err))
        return -1;
    dir_sweep_flat(d->args->out);
    if (snprintf(path, sizeof path, "%s/results.jsonl", d->args->out) >= PATH_SIZE)
        return fail(err, "%s: the path is too long", d->args->out);
    if (out_open(&jsonl, path, err))
        return -1;
    d->jsonl = &jsonl;
    process_stop_gently();
    int status = detect_images(d, list, err);
    d->jsonl = NULL;
    if (d->n_told == 0) {
        out_drop(&jsonl); /* nothing to say */
        return status;
    }
    if (!status)
        return out_commit(&jsonl, err);
    Error kept;
    if (jsonl.failed)
        out_drop(&jsonl);
    else if (out_commit(&jsonl, NULL) == 0) {
        fail(&kept, "%s has %d line%s", path, d->n_told, d->n_told == 1 ? "" : "s");
        failed(&kept);
    }
    return status;
}

static int command_detect(Args *args)
{
    Error err;
    ImageList list = {0};
    if (!args->bank)
        return usage_error(args, "%s", "which normal images? --bank BANK is missing");
    if (args->n_inputs == 0)
        return usage_error(args, "%s", "no image is given");
    if (args->n_set > 0)
        return usage_error(
            args,
            "--%s is a setting of the bank: make one with samlad bank (--from takes the images of this one)",
            args->set[0]->name);
    if (list_inputs(&list, args, &err) ||
        (args->out && args->pictures && (check_apart(args, &err) || check_outputs(&list, args->out, &err))) ||
        (args->dump && (check_spared(args->dump, args, &list, &err) || out_try(args->dump, &err)))) {
        list_free(&list);
        return failed(&err);
    }
    tell_left_out(stderr, &list);
    if (args->dump && list.n != 1) {
        list_free(&list);
        return usage_error(args, "%s", "--dump takes one image");
    }
    Samlad *s = open_samlad(args, &err);
    if (!s) {
        list_free(&list);
        return EXIT_FAILURE;
    }
    Detect d = {.args = args, .s = s};
    int status =
        samlad_bank_load(s, args->bank, &err) || detect_list(&d, &list, &err) ? failed(&err) : EXIT_SUCCESS;
    if (d.n_failed > 1)
        fprintf(stderr, "samlad: %d of %d images could not be judged\n", d.n_failed, list.n);
    status = d.n_failed ? EXIT_FAILURE : status;
    samlad_close(s);
    list_free(&list);
    if (d.stopped)
        process_end_stopped();
    return status;
}

/* ================================================================================================
 * samlad segment
 * ============================================================================================== */

static const char SEGMENT_HELP[] =
    "usage: samlad segment IMAGE [-o PREFIX] [--point X,Y[,LABEL]]... [--box X0,Y0,X1,Y1] [--single]\n"
    "\n"
    "Segment Anything on one image. Without a prompt: automatic masks. Writes PREFIX_masks_overlay.png to\n"
    "look at (a prompt's candidates side by side, best first), PREFIX_masks.png (indexed, in the JSON's "
    "order)\n"
    "and PREFIX_masks.json (the official generator's fields; masks as uncompressed COCO run lengths).\n"
    "\n"
    "  samlad segment photo.jpg                          every object\n"
    "  samlad segment photo.jpg --point 520,310          three candidates for what is there, best first\n"
    "  samlad segment photo.jpg --point 520,310 --point 90,40,0 --single\n"
    "\n"
    "  -o, --out PREFIX      default: the image's name without its ending\n"
    "  --sam FILE            weights (default: the tiny ones that ship)\n"
    "  --point X,Y[,LABEL]   pixel; label 1 (default) inside, 0 outside\n"
    "  --box X0,Y0,X1,Y1     pixels\n"
    "  --single              one mask instead of three\n"
    "  --precision fp32|bf16 of the image encoder's products: bf16 is faster where the machine has it\n"
    "  --dump FILE           the encoder's tensors and the masks, as safetensors\n"
    "  --points N, --pred-iou-thresh N, --stability-score-thresh N, --stability-score-offset N, "
    "--box-nms-thresh N,\n"
    "  --crop-n-layers N, --crop-nms-thresh N, --crop-overlap-ratio N, --crop-n-points-downscale-factor N,\n"
    "  --min-mask-region-area N    as the official generator. Default: what the weights recommend for masks\n"
    "                        to look at (those for the objects of bank and detect may be others), else\n"
    "                        the official values\n"
    "  --crop-own-points 0|1       ours: where crops overlap, ask only the one whose middle is nearer; "
    "fewer\n"
    "                        points, sooner done\n";

/* Prompts that lie in the picture, at least in part. */
static int check_prompts(const Args *args, int height, int width, Error *err)
{
    for (int i = 0; i < args->n_points; i++) {
        const float x = args->points[i][0], y = args->points[i][1];
        if (x < 0 || y < 0 || x > (float)width || y > (float)height)
            return fail(err, "%s: --point %g,%g lies outside the image of %dx%d pixels", args->inputs[0],
                        (double)x, (double)y, width, height);
    }
    const float *b = args->box;
    if (args->has_box && (b[2] <= 0 || b[3] <= 0 || b[0] >= (float)width || b[1] >= (float)height))
        return fail(err, "%s: --box %g,%g,%g,%g lies outside the image of %dx%d pixels", args->inputs[0],
                    (double)b[0], (double)b[1], (double)b[2], (double)b[3], width, height);
    return 0;
}

/* All that is to be written can be, and is none of what is read: said before the work. */
static int check_segment_outputs(const Args *args, const char *prefix, Error *err)
{
    static const char *const endings[] = {"_masks.json", "_masks.png", "_masks_overlay.png"};
    char path[PATH_SIZE];
    for (int i = 0; i < 3; i++) {
        if (snprintf(path, sizeof path, "%s%s", prefix, endings[i]) >= PATH_SIZE)
            return fail(err, "%s: the path is too long", prefix);
        if (check_spared(path, args, NULL, err) || out_try(path, err))
            return -1;
    }
    return args->dump && (check_spared(args->dump, args, NULL, err) || out_try(args->dump, err)) ? -1 : 0;
}

static void print_masks(const char *path, const char *prefix, size_t n)
{
    report_plain(stdout, path);
    printf(": %zu mask%s in ", n, n == 1 ? "" : "s");
    report_plain(stdout, prefix);
    printf("_masks.png, _masks.json, _masks_overlay.png\n");
}

static int segment_file(Args *args, const Sam *sam, SamState *state, const Options *o, Error *err)
{
    char prefix[PATH_SIZE];
    const char *path = args->inputs[0];
    snprintf(prefix, sizeof prefix, "%.*s", stem_length(path), path);
    int width, height;
    if (args->out)
        snprintf(prefix, sizeof prefix, "%.*s", PATH_SIZE - 32, args->out);
    if (check_segment_outputs(args, prefix, err))
        return -1;
    uint8_t *rgb = image_read_rgb8(path, &width, &height, err);
    if (!rgb)
        return -1;
    SegmentRequest request = {args->n_points, &args->points[0][0],
                              args->labels,   args->has_box ? args->box : NULL,
                              args->single,   o->amg};
    Progress progress = {0};
    AmgMasks masks;
    StWriter *dump = args->dump ? st_writer_new() : NULL;
    int status = args->dump && !dump ? fail_memory(err, "the dump", sizeof(void *)) : 0;
    if (!status)
        status = check_prompts(args, height, width, err);
    if (!status)
        status = segment(&masks, sam, state, &request, rgb, height, width, show_points, &progress, dump, err);
    if (!status) {
        status = segment_write(&masks, &request, rgb, prefix, height, width, err);
        if (!status && dump)
            status = st_writer_save(dump, args->dump, err);
        if (!status)
            print_masks(path, prefix, masks.n);
        amg_masks_free(&masks);
    }
    st_writer_free(dump);
    free(rgb);
    return status;
}

/* What is of no use with a prompt, or without one. */
static int check_segment_options(const Args *args)
{
    static const char *const always[] = {"precision", "stability-score-offset"};
    const int prompted = args->n_points > 0 || args->has_box;
    if (args->single && !prompted)
        return usage_error(args, "%s", "--single is for a --point or a --box");
    for (int i = 0; prompted && i < args->n_set; i++) {
        int used = 0;
        for (size_t k = 0; k < sizeof always / sizeof *always; k++)
            used |= strcmp(args->set[i]->name, always[k]) == 0;
        if (!used)
            return usage_error(args, "--%s is for automatic masks, not with --point or --box",
                               args->set[i]->name);
    }
    return 0;
}

static int command_segment(Args *args)
{
    Error err;
    Options o;
    if (args->n_inputs != 1)
        return usage_error(args, "%s", "one image, please");
    if (check_segment_options(args))
        return EXIT_USAGE;
    if (!args->weights.sam && !find_weights(args->sam, "sam_tiny.safetensors")) {
        return no_weights("sam_tiny.safetensors", "--sam");
    }
    Safetensors *file = st_open(args->weights.sam ? args->weights.sam : args->sam, &err);
    Sam *sam = file ? sam_open(file, &err) : NULL;
    SamState *state = sam ? sam_state_new(sam, &err) : NULL;
    options_default(&o);
    int status = state ? amg_recommended(&o.amg, AMG_FOR_MASKS, file, &err) : -1;
    for (int i = 0; i < args->n_set && !status; i++)
        status = option_set(&o, args->set[i], args->set_value[i], args->set[i]->name, &err);
    if (!status)
        status = sam_set_precision(sam, (Precision)o.precision, &err);
    if (!status)
        status = segment_file(args, sam, state, &o, &err);
    if (state)
        sam_state_free(state);
    if (sam)
        sam_close(sam);
    st_close(file);
    return status ? failed(&err) : EXIT_SUCCESS;
}

/* ================================================================================================
 * samlad info
 * ============================================================================================== */

static const char INFO_HELP[] =
    "usage: samlad info FILE...\n"
    "\n"
    "Print what a weights file or a bank is: its configuration, its tensors, its checksum.\n";

static void print_tensor(const StTensor *t)
{
    char shape[128] = "scalar";
    int at = 0;
    for (int d = 0; d < t->n_dims && at < (int)sizeof shape - 24; d++)
        at += snprintf(shape + at, sizeof shape - (size_t)at, "[%lld]", (long long)t->shape[d]);
    printf("  ");
    report_plain(stdout, t->name);
    printf("%*s %-5s %s\n", (int)(strlen(t->name) < 60 ? 60 - strlen(t->name) : 0), "",
           st_dtype_name(t->dtype), shape);
}

/* A setting of the method as --help shows it: the file has all digits that it takes to read it back. */
static void print_value(const char *key, const char *value)
{
    Options o;
    char brief[64];
    const OptionSpec *spec = strncmp(key, "option.", 7) == 0 ? option_find(key + 7) : NULL;
    options_default(&o);
    if (spec && option_set(&o, spec, value, key, NULL) == 0) {
        option_brief(&o, spec, brief, sizeof brief);
        value = brief;
    }
    report_plain(stdout, value);
}

static int info_one(const char *path, Error *err)
{
    Safetensors *st = st_open(path, err);
    if (!st)
        return -1;
    char sha[65];
    const char *model = st_meta(st, "samlad.model"), *kind = st_meta(st, "samlad.kind");
    size_t elements = 0, bytes = 0;
    for (size_t i = 0; i < st_count(st); i++) {
        elements += st_at(st, i)->n_elements;
        bytes += st_at(st, i)->n_bytes;
    }
    st_sha256(st, sha);
    report_plain(stdout, path);
    printf(": ");
    report_plain(stdout, model ? model : kind ? kind : "no samlad metadata");
    printf("\n");
    printf("  sha256 %s\n  %zu tensors, %zu numbers, %zu bytes\n", sha, st_count(st), elements, bytes);
    for (size_t i = 0; i < st_meta_count(st); i++) {
        const char *key, *value;
        st_meta_at(st, i, &key, &value);
        printf("  ");
        report_plain(stdout, key);
        printf(" = ");
        print_value(key, value);
        printf("\n");
    }
    printf("\n");
    for (size_t i = 0; i < st_count(st); i++)
        print_tensor(st_at(st, i));
    int status = 0;
    if (model && strcmp(model, "sam") == 0) {
        Sam *sam = sam_open(st, err);
        status = sam ? 0 : -1;
        if (sam)
            sam_close(sam);
    } else if (model && strcmp(model, "vit") == 0) {
        Vit *vit = vit_open(st, err);
        status = vit ? 0 : -1;
        if (vit)
            vit_close(vit);
    }
    st_close(st);
    return status; /* a model that can't be opened says why, after what is in it */
}

static int command_info(Args *args)
{
    Error err;
    if (args->n_inputs == 0)
        return usage_error(args, "%s", "which file?");
    for (int i = 0; i < args->n_inputs; i++)
        if (info_one(args->inputs[i], &err)) {
            fflush(stdout);
            return failed(&err);
        }
    return EXIT_SUCCESS;
}

/* ================================================================================================
 * main
 * ============================================================================================== */

static const char HELP[] =
    "samlad " SAMLAD_VERSION
    " - SAM-LAD in C: zero-shot detection of logical and structural anomalies in images\n"
    "\n"
    "  samlad bank good/ -o normal.bank             study normal images\n"
    "  samlad detect --bank normal.bank new/ -o out score others: what is missing, extra, damaged?\n"
    "\n"
    "  bank      normal images -> template bank\n"
    "  detect    bank + images -> scores, maps, reasons\n"
    "  segment   Segment Anything on one image\n"
    "  info      what is in a weights file or a bank\n"
    "  synth     write a data set: trays, DigitAnatomy from MNIST, or LOCO's five categories, drawn\n"
    "  eval      run a data set: MVTec LOCO, MVTec AD, VisA, DigitAnatomy, or folders of your own\n"
    "  ablate    the same under many settings of the method\n"
    "  bench     how fast each stage is on this machine\n"
    "\n"
    "samlad COMMAND --help tells more. OMP_NUM_THREADS sets the threads, SAMLAD_WEIGHTS names the folder of\n"
    "the weights that ship.\n";

static void help_detect(void)
{
    fputs(DETECT_HELP, stdout);
}
static void help_segment(void)
{
    Options o;
    shipped_defaults(&o, AMG_FOR_MASKS);
    fputs(SEGMENT_HELP, stdout);
    printf("\nAutomatic masks with the weights that ship (others may recommend their own):\n");
    for (int i = 0; i < option_count; i++) {
        char value[64];
        if (strncmp(option_table[i].help, "SAM:", 4) != 0)
            continue;
        option_brief(&o, &option_table[i], value, sizeof value);
        printf("  --%s %s\n", option_table[i].name, value);
    }
}
static void help_info(void)
{
    fputs(INFO_HELP, stdout);
}

static const struct {
    const char *name;
    int (*run)(Args *args);
    void (*help)(void);
    const char *takes;
} COMMANDS[] = {
    {"bank", command_bank, bank_help, "out from backbone sam featup dcga *"},
    {"detect", command_detect, help_detect,
     "bank out json no-pictures dump backbone sam featup dcga *"}, /* * for a better message */
    {"segment", command_segment, help_segment,
     "out sam point box single dump precision points pred-iou-thresh stability-score-thresh "
     "stability-score-offset "
     "box-nms-thresh crop-n-layers "
     "crop-nms-thresh crop-overlap-ratio crop-n-points-downscale-factor crop-own-points "
     "min-mask-region-area"},
    {"info", command_info, help_info, ""},
    {"synth", command_synth, help_synth, "seed parts mnist defects"},
    {"eval", command_eval, help_eval,
     "bank out json max-bank dataset data category shard merge no-pictures backbone sam featup dcga *"},
    {"ablate", command_ablate, help_ablate,
     "out max-bank dataset category setting backbone sam featup dcga *"},
};

static int wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return 1;
    return 0;
}

/* What was printed has arrived, or the status says that it has not. */
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
    if (!args)
        return EXIT_FAILURE;
    args->command = COMMANDS[command].name;
    args->takes = COMMANDS[command].takes;
    int status = parse(args, argc, argv);
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
