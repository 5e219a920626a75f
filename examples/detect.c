/* detect.c - is this picture normal? A bank from a few normal pictures, then one detection.
 *
 *     make && make vit && cc -O2 -I. examples/detect.c libsamlad.a libvit.a -lm -fopenmp -o detect
 *     ./detect PICTURE NORMAL...
 *
 * Only samlad.h belongs to the library. The reader of pictures is from libvit.a. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "io/image.h"
#include "samlad.h"

static void print_findings(const SamladResult *r)
{
    printf("score %.3f, threshold %.3f: %s\n", r->score, r->threshold,
           isnan(r->threshold) ? "unknown"
           : r->anomalous > 0  ? "anomalous"
                               : "normal");
    for (int i = 0; i < r->n_objects; i++) {
        const SamladObject *o = &r->objects[i];
        if (o->verdict != VERDICT_NORMAL)
            printf("%s at %.0f, %.0f\n", o->verdict == VERDICT_EXTRA ? "extra" : "damaged", o->box[0],
                   o->box[1]);
    }
    for (int i = 0; i < r->n_missing; i++)
        printf("missing at %.0f, %.0f\n", r->missing[i].box[0], r->missing[i].box[1]);
}

int main(int argc, char **argv)
{
    const SamladWeights weights = {.vit = "weights/vit_tiny.safetensors",
                                   .sam = "weights/sam_tiny.safetensors"};
    const char *const *normal = (const char *const *)argv + 2;
    Error err = {"usage: detect PICTURE NORMAL..."};
    int w, h;
    uint8_t *rgb = argc > 2 ? image_read_rgb8(argv[1], &w, &h, &err) : NULL;
    Samlad *s = rgb ? samlad_open(&weights, &err) : NULL;
    SamladResult result;
    if (!s || samlad_bank_build(s, normal, argc - 2, NULL, NULL, &err) ||
        samlad_detect(s, rgb, h, w, &result, NULL, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    print_findings(&result);
    samlad_result_free(&result);
    samlad_close(s);
    free(rgb);
    return 0;
}
