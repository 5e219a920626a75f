/* point.c - the mask under a point: Segment Anything with one prompt. Outside the mask the picture is
 * darkened.
 *
 *     make sam-lib && cc -O2 -I. examples/point.c libsam.a -lm -fopenmp -o point
 *     ./point PICTURE X Y OUT.png [WEIGHTS]      e.g. weights/official/sam_vit_b.safetensors. */
#include <stdio.h>
#include <stdlib.h>

#include "io/image.h"
#include "sam.h"

int main(int argc, char **argv)
{
    Error err = {"usage: point PICTURE X Y OUT.png [WEIGHTS]"};
    int w, h;
    uint8_t *rgb = argc > 4 ? image_read_rgb8(argv[1], &w, &h, &err) : NULL;
    Safetensors *st = rgb ? st_open(argc > 5 ? argv[5] : "weights/sam_tiny.safetensors", &err) : NULL;
    Sam *sam = st ? sam_open(st, &err) : NULL;
    SamState *state = sam ? sam_state_new(sam, &err) : NULL;
    SamImage image;
    if (!state || sam_encode(sam, state, &image, &(Picture){rgb, h, w}, NULL, &err))
        return fprintf(stderr, "%s\n", err.message), 1;

    /* One point gives several masks, from a part to the whole object. The model predicts the quality of
     * each. */
    const float point[2] = {atof(argv[2]), atof(argv[3])};
    const SamPrompt prompt = {.n_points = 1, .points = point, .labels = (int[]){1}};
    const int n_masks = sam_config(sam)->n_multimask, low_side = 4 * image.grid;
    float *low_res = malloc(sizeof *low_res * n_masks * low_side * low_side);
    float *logits = malloc(sizeof *logits * h * w), iou[SAM_MAX_MASK_TOKENS];
    if (!low_res || !logits)
        return fprintf(stderr, "no memory\n"), 1;
    if (sam_decode(sam, &image, &prompt, 1, low_res, iou, NULL, &err))
        return fprintf(stderr, "%s\n", err.message), 1;
    int best = 0, n_pixels = 0;
    for (int i = 1; i < n_masks; i++)
        best = iou[i] > iou[best] ? i : best;
    if (sam_postprocess_masks(sam, &image, low_res + best * low_side * low_side, logits, &err))
        return fprintf(stderr, "%s\n", err.message), 1;

    for (int i = 0; i < h * w; i++) {
        const int inside = logits[i] > sam_config(sam)->mask_threshold;
        n_pixels += inside;
        for (int k = 0; k < 3 && !inside; k++)
            rgb[3 * i + k] /= 4;
    }
    if (png_write(argv[4], rgb, w, h, 3, 8, &err))
        return fprintf(stderr, "%s\n", err.message), 1;
    printf("predicted IoU %.2f, %d of %d pixels: %s\n", iou[best], n_pixels, h * w, argv[4]);
    return 0;
}
