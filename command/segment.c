/* command/segment.c - samlad segment: Segment Anything on one image. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/inputs.h"
#include "command/messages.h"
#include "command/models.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/image.h"
#include "report/report.h"
#include "report/segment.h"
#include "sam.h"

static const char SEGMENT_HELP[] =
    "usage: samlad segment IMAGE [-o PREFIX] [--point X,Y[,LABEL]]... [--box X0,Y0,X1,Y1] [--single]\n"
    "\n"
    "Run Segment Anything on one image. Without a prompt it makes automatic masks. It writes\n"
    "\n"
    "  PREFIX_masks_overlay.png   to look at; the candidates of a prompt side by side, the best first\n"
    "  PREFIX_masks.png           indexed, in the order of the JSON\n"
    "  PREFIX_masks.json          the fields of the official generator; masks as uncompressed COCO run "
    "lengths\n"
    "\n"
    "  samlad segment photo.jpg                          every object\n"
    "  samlad segment photo.jpg --point 520,310          three candidates at this point, the best first\n"
    "  samlad segment photo.jpg --point 520,310 --point 90,40,0 --single\n"
    "\n"
    "  -o, --out PREFIX      default: the image's name without its ending\n"
    "  --sam FILE            weights (default: the tiny ones that ship)\n"
    "  --point X,Y[,LABEL]   pixel; label 1 (default) inside, 0 outside\n"
    "  --box X0,Y0,X1,Y1     pixels\n"
    "  --single              one mask instead of three\n"
    "  --precision fp32|bf16 of the image encoder's products; bf16 is faster on machines that have it\n"
    "  --white N|auto        the value in a 16-bit image that is white [65535]; auto: 1023, 4095, 16383 or "
    "65535\n"
    "  --dump FILE           write the encoder's tensors and the masks, as safetensors\n"
    "  --points N, --pred-iou-thresh N, --stability-score-thresh N, --stability-score-offset N,\n"
    "  --box-nms-thresh N, --crop-n-layers N, --crop-nms-thresh N, --crop-overlap-ratio N,\n"
    "  --crop-n-points-downscale-factor N, --min-mask-region-area N\n"
    "                        as in the official generator. Default: the recommendation in the weights file\n"
    "                        for masks to look at, else the official values. bank and detect may use others\n"
    "  --crop-own-points 0|1 ours: where crops overlap, only the crop with the nearer middle asks.\n"
    "                        Fewer points, sooner done\n";

/* Prompts must lie in the picture, at least in part. */
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

/* Before the work: every output can be written, and none of them is an input. */
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

/* The mask generator reports its progress without a name. */
static void show_points(void *user, int done, int total)
{
    show_progress(user, "prompts", done, total);
}

/* white: the value in a 16-bit image that is white; 0: by the image. */
static uint8_t *read_picture(const char *path, int white, int *width, int *height, Error *err)
{
    const int brightest = image_brightest(path);
    if (white)
        tell_dark(brightest, white, "");
    return image_read_white(path, white ? white : image_white(brightest), width, height, err);
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
    uint8_t *rgb = read_picture(path, o->white, &width, &height, err);
    if (!rgb)
        return -1;
    const Picture picture = {rgb, height, width};
    Progress progress = {0};
    AmgMasks masks;
    StWriter *dump = args->dump ? st_writer_new() : NULL;
    const SegmentRequest request = {.n_points = args->n_points,
                                    .points = &args->points[0][0],
                                    .labels = args->labels,
                                    .box = args->has_box ? args->box : NULL,
                                    .single = args->single,
                                    .amg = o->amg,
                                    .progress = show_points,
                                    .user = &progress,
                                    .dump = dump};
    int status = args->dump && !dump ? fail_memory(err, "the dump", sizeof(void *)) : 0;
    if (!status)
        status = check_prompts(args, height, width, err);
    if (!status)
        status = segment(&masks, sam, state, &request, &picture, err);
    if (!status) {
        status = segment_write(prefix, &masks, &request, &picture, err);
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

int command_segment(Args *args)
{
    Error err;
    Options o;
    if (args->n_inputs != 1)
        return usage_error(args->command, "%s", "expected one image");
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
