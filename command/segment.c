/* command/segment.c - samlad segment: Segment Anything alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/inputs.h"
#include "command/messages.h"
#include "command/models.h"
#include "command/outputs.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "load/foreign.h"
#include "report/report.h"
#include "report/segment.h"
#include "sam.h"

static const char SEGMENT_HELP[] =
    "usage: samlad segment IMAGE|DIR... [-o OUT] [--point X,Y[,LABEL]]... [--box X0,Y0,X1,Y1] [--single]\n"
    "\n"
    "Run Segment Anything on images, one after the other. Without a prompt it makes automatic masks.\n"
    "It writes for each image NAME\n"
    "\n"
    "  NAME_masks_overlay.png   to look at; the candidates of a prompt side by side, the best first\n"
    "  NAME_masks.png           indexed, in the order of the records\n"
    "  NAME_masks.json          the records of the official generator; masks as COCO run lengths\n"
    "\n"
    "An image that cannot be read is reported on stderr. The others go on, and the exit status is 1.\n"
    "\n"
    "  samlad segment photo.jpg                          every object\n"
    "  samlad segment photos/ -o masks --output-mode coco_rle\n"
    "  samlad segment photo.jpg --point 520,310          three candidates at this point, the best first\n"
    "  samlad segment photo.jpg --point 520,310 --point 90,40,0 --single\n"
    "\n"
    "  -o, --out OUT         the folder to write to, with the folders below DIR; default: beside each image\n"
    "                        A folder with outputs of an earlier run is refused\n"
    "  --force               remove the outputs of an earlier run from OUT first, and no other file\n"
    "  --output-mode MODE    as in the official generator [uncompressed_rle]:\n"
    "                        uncompressed_rle   run lengths as numbers\n"
    "                        coco_rle           as the string of pycocotools, as amg.py writes RLE\n"
    "                        binary_mask        no JSON, but the folder NAME with 0.png, 1.png, ... and\n"
    "                                           metadata.csv, as amg.py; needs -o\n"
    "  --sam FILE            weights (default: the tiny ones that ship)\n"
    "  --point X,Y[,LABEL]   pixel; label 1 (default) inside, 0 outside\n"
    "  --box X0,Y0,X1,Y1     pixels\n"
    "  --single              one mask instead of three\n"
    "  --precision fp32|bf16 of the image encoder's products; bf16 is faster on machines that have it\n"
    "  --white N|auto        the value in a 16-bit image that is white [65535]; auto: 1023, 4095, 16383 or "
    "65535\n"
    "  --dump FILE           write the encoder's tensors and the masks of one image, as safetensors\n"
    "  --points N, --pred-iou-thresh N, --stability-score-thresh N, --stability-score-offset N,\n"
    "  --box-nms-thresh N, --crop-n-layers N, --crop-nms-thresh N, --crop-overlap-ratio N,\n"
    "  --crop-n-points-downscale-factor N, --min-mask-region-area N\n"
    "                        as in the official generator. Default: the recommendation in the weights file\n"
    "                        for masks to look at, else the official values. bank and detect may use others\n"
    "  --crop-own-points 0|1 ours: where crops overlap, only the crop with the nearer middle asks.\n"
    "                        Fewer points, sooner done\n";

/* The command at work. */
typedef struct Segmenter {
    const Args *args;
    const Sam *sam;
    SamState *state;
    Options options;
    MasksForm form;
    ImageList list;
    OutputFolder folder; /* args->out */
    int n_failed;        /* images without masks. */
} Segmenter;

/* Prompts must lie in the picture, at least in part. */
static int check_prompts(const Args *args, const char *path, int height, int width, Error *err)
{
    for (int i = 0; i < args->n_points; i++) {
        const float x = args->points[i][0], y = args->points[i][1];
        if (x < 0 || y < 0 || x > (float)width || y > (float)height)
            return fail(err, "%s: --point %g,%g lies outside the image of %dx%d pixels", path, (double)x,
                        (double)y, width, height);
    }
    const float *b = args->box;
    if (args->has_box && (b[2] <= 0 || b[3] <= 0 || b[0] >= (float)width || b[1] >= (float)height))
        return fail(err, "%s: --box %g,%g,%g,%g lies outside the image of %dx%d pixels", path, (double)b[0],
                    (double)b[1], (double)b[2], (double)b[3], width, height);
    return 0;
}

/* Note the files that segment_write will write for `prefix`. */
static int note_outputs(Segmenter *s, const char *prefix, size_t n_masks, Error *err)
{
    static const char *const endings[] = {"_masks.png", "_masks_overlay.png", "_masks.json", "/metadata.csv"};
    const int binary = s->form == MASKS_BINARY;
    char path[PATH_SIZE + 32];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s%s", prefix, endings[i]);
        if (i != (binary ? 2 : 3) && outputs_note(&s->folder, path, err))
            return -1;
    }
    for (size_t i = 0; binary && i < n_masks; i++) {
        snprintf(path, sizeof path, "%s/%zu.png", prefix, i);
        if (outputs_note(&s->folder, path, err))
            return -1;
    }
    return 0;
}

/* Before the work: every output of the image can be written, and none of them is an input. */
static int check_segment_outputs(const Segmenter *s, const char *prefix, Error *err)
{
    static const char *const endings[] = {"_masks.png", "_masks_overlay.png", "_masks.json"};
    const int n = s->form == MASKS_BINARY ? 2 : 3;
    char path[PATH_SIZE];
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s%s", prefix, endings[i]);
        if (check_spared(path, s->args, &s->list, err) || out_try(path, err))
            return -1;
    }
    const char *dump = s->args->dump;
    return dump && (check_spared(dump, s->args, &s->list, err) || out_try(dump, err)) ? -1 : 0;
}

/* amg.py refuses a folder that exists, too: it may hold more masks than the new ones. */
static int check_folders(const Segmenter *s, Error *err)
{
    char prefix[PATH_SIZE];
    for (int i = 0; s->form == MASKS_BINARY && i < s->list.n; i++)
        if (output_prefix(prefix, s->args->out, &s->list, i, err))
            return -1;
        else if (dir_exists(prefix))
            return fail(err, "%s: this folder exists: remove it, or give another one with -o", prefix);
    return 0;
}

static void print_masks(const Segmenter *s, const char *path, const char *prefix, size_t n)
{
    report_plain(stdout, path);
    printf(": %zu mask%s in ", n, n == 1 ? "" : "s");
    report_plain(stdout, prefix);
    printf(s->form == MASKS_BINARY ? "/, _masks.png, _masks_overlay.png\n"
                                   : "_masks.png, _masks.json, _masks_overlay.png\n");
}

/* The mask generator reports its progress without a name. */
static void show_points(void *user, int done, int total)
{
    show_progress(user, "prompts", done, total);
}

/* white: the value in a 16-bit image that is white; 0: by the image. */
static uint8_t *read_picture(const char *path, int white, int *width, int *height, Error *err)
{
    const int brightest = image_brightest(path);
    if (brightest < 0) {
        fail_memory(err, path, strlen(path));
        return NULL;
    }
    if (white)
        tell_dark(brightest, white, "images", "");
    return image_read_white(path, white ? white : image_white(brightest), width, height, err);
}

static int write_dump(StWriter *dump, const char *path, Error *err)
{
    return dump ? st_writer_save(dump, path, err) : 0;
}

/* Write the picture's masks. *judged: 0 if the image failed, not its output. */
static int segment_picture(Segmenter *s, const Picture *picture, const char *path, const char *prefix,
                           int *judged, Error *err)
{
    const Args *args = s->args;
    Progress progress = {0};
    AmgMasks masks;
    StWriter *dump = args->dump ? st_writer_new() : NULL;
    const SegmentRequest request = {.n_points = args->n_points,
                                    .points = &args->points[0][0],
                                    .labels = args->labels,
                                    .box = args->has_box ? args->box : NULL,
                                    .single = args->single,
                                    .amg = s->options.amg,
                                    .progress = show_points,
                                    .user = &progress,
                                    .dump = dump};
    int status = args->dump && !dump ? fail_memory(err, "the dump", sizeof(void *))
                                     : segment(&masks, s->sam, s->state, &request, picture, err);
    *judged = !status;
    if (!status) {
        status = (args->out && note_outputs(s, prefix, masks.n, err)) ||
                 segment_write(prefix, &masks, s->form, &request, picture, err) ||
                 write_dump(dump, args->dump, err);
        if (!status)
            print_masks(s, path, prefix, masks.n);
        amg_masks_free(&masks);
    }
    st_writer_free(dump);
    return status;
}

/* An image that fails is told and counted. -1: an output cannot be written, so the others could not either. */
static int segment_file(Segmenter *s, int i, Error *err)
{
    char prefix[PATH_SIZE];
    const char *path = s->list.paths[i];
    int width, height, judged = 0;
    if (output_prefix(prefix, s->args->out, &s->list, i, err) || check_segment_outputs(s, prefix, err))
        return -1;
    uint8_t *rgb = read_picture(path, s->options.white, &width, &height, err);
    int status = rgb ? check_prompts(s->args, path, height, width, err) : -1;
    if (!status)
        status = segment_picture(s, &(Picture){rgb, height, width}, path, prefix, &judged, err);
    free(rgb);
    if (!status || judged)
        return status;
    failed(err);
    s->n_failed++;
    return 0;
}

static int segment_list(Segmenter *s, Error *err)
{
    if (s->args->out && outputs_open(&s->folder, s->args, err))
        return -1;
    if (check_folders(s, err))
        return -1;
    for (int i = 0; i < s->list.n; i++) {
        if (segment_file(s, i, err))
            return -1;
        fflush(stdout);
    }
    if (s->n_failed > 1)
        fprintf(stderr, "samlad: %d of %d images could not be segmented\n", s->n_failed, s->list.n);
    return 0;
}

/* List the images, and give their outputs names of their own. */
static int list_segmented(ImageList *list, const Args *args, Error *err)
{
    int repeats;
    if (list_inputs(list, args, err) || list_drop_repeats(list, &repeats, err) ||
        (args->out ? check_apart(args, err) || list_name_apart(list, err) : list_name_beside(list, err)) ||
        check_outputs(list, args->out ? args->out : "", err))
        return -1;
    left_out_tell(stdout, &list->left_out);
    return 0;
}

/* Refuse options that have no effect with a prompt, or without one. */
static int check_segment_options(const Args *args)
{
    static const char *const always[] = {"precision", "stability-score-offset", "white"};
    const int prompted = args->n_points > 0 || args->has_box;
    if (args->single && !prompted)
        return usage_error(args->command, "%s", "--single needs --point or --box");
    for (int i = 0; prompted && i < args->n_set; i++) {
        int used = 0;
        for (size_t k = 0; k < sizeof always / sizeof *always; k++)
            used |= strcmp(args->set[i]->name, always[k]) == 0;
        if (!used)
            return usage_error(args->command, "--%s applies to automatic masks, not to --point or --box",
                               args->set[i]->name);
    }
    return 0;
}

/* uncompressed_rle by default; MASKS_FORMS: no such mode. */
static MasksForm form_of(const char *mode)
{
    int form = 0;
    while (mode && form < MASKS_FORMS && strcmp(masks_form_names[form], mode) != 0)
        form++;
    return (MasksForm)form;
}

/* Open the model with its settings, then work. */
static int segment_all(Segmenter *s, const char *weights, Error *err)
{
    const Args *args = s->args;
    Safetensors *file = weights_open(weights, err);
    Sam *sam = file ? sam_open(file, err) : NULL;
    s->sam = sam;
    s->state = sam ? sam_state_new(sam, err) : NULL;
    options_default(&s->options);
    int status = s->state ? amg_recommended(&s->options.amg, AMG_FOR_MASKS, file, err) : -1;
    for (int i = 0; i < args->n_set && !status; i++)
        status = option_set(&s->options, args->set[i], args->set_value[i], args->set[i]->name, err);
    if (!status)
        status = sam_set_precision(sam, (Precision)s->options.precision, err);
    s->folder.lock = -1;
    if (!status)
        status = segment_list(s, err);
    outputs_close(&s->folder);
    if (s->state)
        sam_state_free(s->state);
    if (sam)
        sam_close(sam);
    st_close(file);
    return status;
}

int command_segment(Args *args)
{
    Error err;
    Segmenter s = {.args = args, .form = form_of(args->output_mode)};
    if (args->n_inputs == 0)
        return usage_error(args->command, "%s", "no image is given");
    if (s.form == MASKS_FORMS)
        return usage_error(args->command,
                           "--output-mode '%s' is none of uncompressed_rle, coco_rle, binary_mask",
                           args->output_mode);
    if (s.form == MASKS_BINARY && !args->out)
        return usage_error(args->command, "%s",
                           "--output-mode binary_mask needs -o OUT: the folder to write to");
    if (args->force && !args->out)
        return usage_error(args->command, "%s", "--force needs -o OUT: the folder to clear");
    if (check_segment_options(args))
        return EXIT_USAGE;
    int status = list_segmented(&s.list, args, &err) ? failed(&err) : EXIT_SUCCESS;
    if (!status && args->dump && s.list.n != 1)
        status = usage_error(args->command, "%s", "--dump takes one image");
    if (!status && !args->weights.sam && !find_weights(args->sam, "sam_tiny.safetensors"))
        status = no_weights("sam_tiny.safetensors", "--sam");
    if (!status)
        status = segment_all(&s, args->weights.sam ? args->weights.sam : args->sam, &err) ? failed(&err)
                 : s.n_failed                                                             ? EXIT_FAILURE
                                                                                          : EXIT_SUCCESS;
    list_free(&s.list);
    return status;
}

void help_segment(void)
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
