/* command/eval.c - samlad eval and samlad ablate: data sets and their figures. No algorithm: see eval/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/messages.h"
#include "command/models.h"
#include "command/outputs.h"
#include "eval/ablate.h"
#include "eval/evaluate.h"
#include "eval/readable.h"
#include "io/fail.h"
#include "io/json.h"
#include "report/report.h"

/* ================================================================================================
 * samlad eval
 * ============================================================================================== */

static const char EVAL_HELP[] =
    "usage: samlad eval DATA [-o OUT] [options of samlad bank]\n"
    "       samlad eval --normal DIR --anomalous DIR [--masks DIR] [-o OUT] [options of samlad bank]\n"
    "       samlad eval --merge RUN... [-o OUT]\n"
    "\n"
    "Run a data set: make a bank of each category's normal images, score every test image, write the "
    "tables.\n"
    "The data set is checked first: every file is decoded. All missing and unreadable ones are reported\n"
    "before any work.\n"
    "\n"
    "  samlad synth tray trays && samlad eval trays -o out\n"
    "  samlad eval mvtec_loco/ -o loco --sam sam_vit_h.safetensors --backbone dinov2_vits14.safetensors\n"
    "\n"
    "A run can be killed at any moment: the same command resumes it, and the bytes are the same.\n"
    "With other settings, weights or normal images the command refuses to resume. Where test images were\n"
    "replaced, removed or added, only these are judged again.\n"
    "\n"
    "  -o, --out OUT         the run's folder: results.md, results.json, results.csv, results.jsonl, and\n"
    "                        anomaly_maps/CATEGORY/test/KIND/000.tiff (float32, the layout of MVTec's\n"
    "                        evaluation scripts), records, pictures, baselines, banks.\n"
    "                        Without -o only the figures are printed\n"
    "  --dataset KIND        auto|mvtec-loco|mvtec-ad|visa|digit-anatomy|folder [auto: by the layout]\n"
    "  --category NAME       only this category; may be given several times\n"
    "  --normal DIR          the folder of the normal images, in DATA or anywhere, whatever it is called\n"
    "  --anomalous DIR       the anomalous ones; folders in it are kinds\n"
    "  --masks DIR           their ground truth\n"
    "  --resize-masks        resize masks that do not have their image's size (nearest neighbour)\n"
    "  --hold-out N          without good test images: keep N normal images, evenly spread, for the test\n"
    "  --bank BANK           use this bank instead of the normal images (one category)\n"
    "  --max-bank N          use at most N normal images\n"
    "  --skip-unreadable     go on without the files that cannot be read; results.json names them\n"
    "  --no-pictures         no heat maps and overlays\n"
    "  --no-baselines        do not compare three plain baselines on the same features (docs/METHOD.md 9)\n"
    "  --json                print the figures as JSON\n"
    "\n"
    "Several processes can share a run, on one machine or on several that share OUT:\n"
    "\n"
    "  parallel samlad eval DATA -o OUT --shard {}/8 ::: 1 2 3 4 5 6 7 8 && samlad eval --merge OUT\n"
    "\n"
    "  --shard I/N           do every N-th test image, starting with the I-th; N processes make one run\n"
    "  --merge RUN...        merge the results of these folders (into OUT, or into the only one)\n"
    "  --data DATA           with --merge: where the data set is now\n"
    "\n"
    "A folder of your own: DIR/train/good, DIR/train or DIR/good for the bank, DIR/test/good and DIR/test/KIND\n"
    "for the test; or DIR/good and DIR/KIND. Ground truth is optional: ground_truth/KIND/NAME.png,\n"
    "NAME_mask.png or NAME/*.png, or flat. DIR may hold several such folders. docs/ACCEPTED.md lists all names\n"
    "and published layouts (MVTec AD 2, BTAD, Real-IAD, MPDD, MVTec 3D-AD).\n";

static int print_json(const Evaluation *e, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    table_json(&w, e->categories, &e->dataset);
    int status = w.failed ? fail_memory(err, "the figures' JSON", w.length) : 0;
    if (!status)
        printf("%s\n", w.text);
    json_end(&w);
    return status;
}

/* Name the normal images that were kept for the test. */
static void print_held_out(const DatasetCategory *c)
{
    if (!c->n_held_out)
        return;
    report_plain(stdout, c->name);
    printf(": %d of %d normal images are kept for the test:", c->n_held_out, c->n_held_out + c->n_normal);
    for (int i = 0; i < c->n_held_out; i++) {
        printf(i ? ", " : " ");
        report_plain(stdout, c->images[i].name);
    }
    printf("\n");
}

/* Say which figures are missing, and which use fewer images than the category has. */
static void print_gaps(const DatasetCategory *c)
{
    int n_good = 0, n_masked = 0;
    for (int i = 0; i < c->n_images; i++) {
        n_good += c->images[i].normal;
        n_masked += !c->images[i].normal && c->images[i].n_masks > 0;
    }
    const int n_anomalous = c->n_images - n_good;
    if (n_good == 0 || n_anomalous == 0) {
        report_plain(stdout, c->name);
        printf(n_good == 0 ? ": no good test images, so nothing to compare the anomalous ones with "
                             "(--hold-out N keeps some of the normal ones for it)\n"
                           : ": no anomalous test images, so nothing was measured\n");
    }
    print_held_out(c);
    if (n_masked > 0 && n_masked < n_anomalous) {
        report_plain(stdout, c->name);
        printf(": %d of %d anomalous images have no ground truth and are not in the pixels' figures\n",
               n_anomalous - n_masked, n_anomalous);
    }
    if (c->n_unreadable) {
        report_plain(stdout, c->name);
        printf(": %d file%s could not be read and %s left out\n", c->n_unreadable,
               c->n_unreadable == 1 ? "" : "s", c->n_unreadable == 1 ? "is" : "are");
    }
}

static int print_evaluation(const Args *args, const Evaluation *e, Error *err)
{
    if (!e->categories) {
        printf("shard %s: %d test images done; when all shards are done: samlad eval --merge %s\n",
               args->shard, e->times.n_images, args->out);
        return 0;
    }
    if (args->json)
        return print_json(e, err);
    table_print(stdout, e->categories, &e->dataset);
    for (int i = 0; i < e->dataset.n; i++)
        print_gaps(&e->dataset.categories[i]);
    const CategoryFigures *all = &e->categories[e->dataset.n];
    if (e->times.n_images == all->n_images)
        printf("bank of %d images in %.1f s, %d test images, %.3f s/image\n", all->n_bank, e->times.bank,
               all->n_images, e->times.images / all->n_images);
    else
        printf("bank of %d images, %d test images, %d of them done now\n", all->n_bank, all->n_images,
               e->times.n_images);
    return 0;
}

static void warn(const char *sentence)
{
    Error err;
    fail(&err, "warning: %s", sentence);
    failed(&err);
}

/* What nobody should think to be judged. */
static void tell_left_out(const Evaluation *e)
{
    for (int i = 0; i < e->dataset.n; i++)
        left_out_tell(stderr, &e->dataset.categories[i].left_out);
}

static void say_dark(int brightest, const char *images, int has_bank)
{
    tell_dark(brightest, IMAGE_WHITE, images, has_bank ? "samlad bank " : "");
}

static void say_problem(const char *sentence)
{
    Error err;
    fail(&err, "%s", sentence);
    failed(&err);
}

/* Print the problems of the data set, a line each, then their number. A single problem stands alone. Files that
 * cannot be read were told already. */
static int failed_evaluation(const Evaluation *e, const Error *err)
{
    for (int i = 0; i < e->problems.n && i < PROBLEMS_KEPT; i++)
        say_problem(e->problems.sentences[i] ? e->problems.sentences[i] : "out of memory for the sentence of a problem");
    return e->problems.n == 1 && dataset_unreadable(&e->dataset) == 0 ? EXIT_FAILURE : failed(err);
}

/* "I/N" with 1 <= I <= N. */
static int parse_shard(const char *text, int *shard, int *n_shards)
{
    char end;
    *shard = 0, *n_shards = 1;
    if (!text)
        return 0;
    if (sscanf(text, "%9d/%9d%c", shard, n_shards, &end) != 2 || *shard < 1 || *shard > *n_shards)
        return -1;
    --*shard;
    return 0;
}

/* The first option given that a merge cannot use: the settings come from the runs. */
static const char *not_for_merge(const Args *args)
{
    const SamladWeights *w = &args->weights;
    return args->n_set > 0         ? args->set[0]->name
           : args->bank            ? "bank"
           : args->max_bank        ? "max-bank"
           : args->shard           ? "shard"
           : args->dataset         ? "dataset"
           : !args->pictures       ? "no-pictures"
           : !args->baselines      ? "no-baselines"
           : args->skip_unreadable ? "skip-unreadable"
           : w->vit || w->sam || w->dcga || w->featup || args->no_featup
               ? "backbone, --sam, --featup or --dcga"
               : NULL;
}

static int merge_runs(Args *args, const EvaluateRequest *request)
{
    Error err;
    Evaluation e;
    const char *out = args->out ? args->out : args->inputs[0];
    if (args->n_inputs == 0 || (args->n_inputs > 1 && !args->out))
        return usage_error(args->command, "%s", "--merge needs the folder of a run, or several and -o OUT");
    int status = evaluate_merge(args->inputs, args->n_inputs, out, request, &e, &err);
    if (!status)
        status = print_evaluation(args, &e, &err);
    status = status ? failed_evaluation(&e, &err) : EXIT_SUCCESS;
    evaluation_free(&e);
    return status;
}

/* One folder, or the folders of both kinds of images alone. */
static int has_data(const Args *args)
{
    return args->n_inputs == 1 || (args->n_inputs == 0 && args->normal && args->anomalous);
}

/* Fill the request from the command line. Returns 0, or an exit status. */
static int make_request(Args *args, EvaluateRequest *request, Progress *progress)
{
    *request = (EvaluateRequest){
        .data = args->merge      ? args->data
                : args->n_inputs ? args->inputs[0]
                                 : args->normal,
        .set = {.kind = args->dataset ? dataset_kind_find(args->dataset) : DATASET_AUTO,
                .categories = args->categories,
                .n_categories = args->n_categories,
                .layout = {.given = {args->normal, args->anomalous, args->masks},
                           .hold_out = args->hold_out,
                           .resize_masks = args->resize_masks}},
        .skip_unreadable = args->skip_unreadable,
        .complain = say_problem,
        .tell = warn,
        .dark = say_dark,
        .plan = {.out = args->out,
                 .bank = args->bank,
                 .max_bank = args->max_bank,
                 .pictures = args->pictures && args->out,
                 .baselines = args->baselines,
                 .progress = show_progress,
                 .user = progress},
    };
    if (request->set.kind == DATASET_KINDS)
        return usage_error(
            args->command,
            "--dataset '%s' is none of auto, mvtec-loco, mvtec-ad, visa, digit-anatomy, folder",
            args->dataset);
    if (parse_shard(args->shard, &request->plan.shard, &request->plan.n_shards))
        return usage_error(args->command, "--shard '%s' is not I/N with I from 1 to N", args->shard);
    return 0;
}

int command_eval(Args *args)
{
    Error err;
    Evaluation e;
    Progress progress = {0};
    EvaluateRequest request;
    if (!args->merge && !has_data(args))
        return usage_error(args->command, "%s", "expected one folder, or --normal DIR and --anomalous DIR");
    if (args->merge && not_for_merge(args))
        return usage_error(args->command, "--%s cannot be used with --merge: the settings come from the runs",
                           not_for_merge(args));
    if (!args->merge && args->data)
        return usage_error(args->command, "%s", "--data needs --merge: it says where the data set is now");
    int status = make_request(args, &request, &progress);
    if (status || args->merge)
        return status ? status : merge_runs(args, &request);
    if (args->bank && args->n_set > 0)
        return usage_error(args->command,
                           "--%s is a setting of the bank: leave out --bank, or make one with samlad bank",
                           args->set[0]->name);
    if (args->shard && !args->out)
        return usage_error(args->command, "%s", "--shard needs -o OUT: the folder that the shards work on");
    if (outputs_refuse(args->out, &err))
        return failed(&err);
    Samlad *s = open_samlad(args, &err);
    if (!s)
        return EXIT_FAILURE;
    status = evaluate(s, &request, &e, &err);
    tell_left_out(&e);
    if (!status)
        status = print_evaluation(args, &e, &err);
    status = status ? failed_evaluation(&e, &err) : EXIT_SUCCESS;
    evaluation_free(&e);
    samlad_close(s);
    return status;
}

void help_eval(void)
{
    fputs(EVAL_HELP, stdout);
}

/* ================================================================================================
 * samlad ablate
 * ============================================================================================== */

static const char ABLATE_HELP[] =
    "usage: samlad ablate DATA -o OUT [--setting 'NAME=VALUE ...']... [options of samlad bank]\n"
    "\n"
    "Measure the worth of each choice of the method: run a data set (see samlad eval --help) under many\n"
    "settings and print one table. Settings that leave features and objects alone share the analysed "
    "images.\n"
    "A run can be killed at any moment: the same command resumes it.\n"
    "\n"
    "  samlad ablate trays/ -o ablation\n"
    "  samlad ablate trays/ -o ks --setting '' --setting k=1 --setting 'k=3 align=pixel'\n"
    "\n"
    "  -o, --out OUT         ablation.md, ablation.json, ablation.csv, and a run for each setting below\n"
    "                        settings/\n"
    "  --setting CHANGES     the options that this row changes; '' changes none.\n"
    "                        Without any --setting, the rows of docs/METHOD.md 9: the paper's method,\n"
    "                        FeatUp's stages, both graphs, each addition of ours taken out, fixed alpha,\n"
    "                        nearest neighbours, no objects, structural only, logical only, k, layers,\n"
    "                        sizes.\n"
    "                        Plain baselines on the features of '' follow as rows of their own\n"
    "  --dataset, --category, --max-bank, --normal, --anomalous, --masks, --resize-masks, --hold-out,\n"
    "  --skip-unreadable     as in samlad eval\n"
    "  other options         the base that every row starts from\n";

static int run_ablation(Args *args, Samlad *s, AblationTable *t, const EvaluateRequest *request, Error *err)
{
    int status = args->n_settings ? 0 : ablation_list(t, s, err);
    for (int i = 0; i < args->n_settings && !status; i++)
        status = ablation_add(t, args->settings[i], err);
    return status ? status : ablate(s, request, t, err);
}

int command_ablate(Args *args)
{
    Error err;
    Progress progress = {0};
    EvaluateRequest request;
    if (!has_data(args))
        return usage_error(args->command, "%s", "expected one folder, or --normal DIR and --anomalous DIR");
    if (!args->out)
        return usage_error(args->command, "%s", "-o OUT is missing: the folder to write");
    int status = make_request(args, &request, &progress);
    if (status)
        return status;
    request.plan.pictures = 0;
    request.plan.fixed_tests = 1;
    AblationTable *table = calloc(1, sizeof *table);
    if (!table) {
        fail_memory(&err, "the table", sizeof *table);
        return failed(&err);
    }
    Samlad *s = open_samlad(args, &err);
    if (!s) {
        free(table);
        return EXIT_FAILURE;
    }
    status = run_ablation(args, s, table, &request, &err);
    tell_left_out(&table->evaluation);
    if (!status)
        ablation_print(stdout, table);
    status = status ? failed_evaluation(&table->evaluation, &err) : EXIT_SUCCESS;
    ablation_free(table);
    free(table);
    samlad_close(s);
    return status;
}

void help_ablate(void)
{
    fputs(ABLATE_HELP, stdout);
}
