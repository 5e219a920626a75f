/* pca.c - a picture's features as colours: three principal components. Parts that look alike get one colour.
 *
 *     make vit && cc -O2 -I. examples/pca.c libvit.a -lm -fopenmp -o pca
 *     ./pca PICTURE OUT.png [WEIGHTS]      e.g. weights/official/dinov2_vits14.safetensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/image.h"
#include "vit.h"

/* x [n][dim] loses its largest principal component, found by power iteration; its values go to value [n]. */
static void component(float *value, float *x, int n, int dim)
{
    float direction[dim];
    memcpy(direction, x, sizeof direction); /* any start */
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < n; i++)
            value[i] = dot(x + i * dim, direction, dim);
        memset(direction, 0, sizeof direction);
        for (int i = 0; i < n * dim; i++)
            direction[i % dim] += value[i / dim] * x[i];
        l2_normalise(direction, 1, dim, 1e-12f);
    }
    for (int i = 0; i < n * dim; i++)
        x[i] -= value[i / dim] * direction[i % dim];
}

int main(int argc, char **argv)
{
    Error err = {"usage: pca PICTURE OUT.png [WEIGHTS]"};
    int w, h;
    uint8_t *rgb = argc > 2 ? image_read_rgb8(argv[1], &w, &h, &err) : NULL;
    Safetensors *st = rgb ? st_open(argc > 3 ? argv[3] : "weights/vit_tiny.safetensors", &err) : NULL;
    Vit *vit = st ? vit_open(st, &err) : NULL;
    const int grid = 32, n = grid * grid, dim = vit ? vit_config(vit)->dim : 0;
    const int side = vit ? grid * vit_config(vit)->patch_size : 0;
    VitState *state = vit ? vit_state_new(vit, grid, grid, &err) : NULL;
    float *in = calloc(3 * side * side + 1, sizeof *in), *x = calloc(n * dim + 1, sizeof *x);
    if (!state || !in || !x ||
        vit_preprocess(vit_config(vit), in, side, side, &(Picture){rgb, h, w}, &err) ||
        vit_forward(vit, state, &(VitImage){in, side, side}, vit_config(vit)->depth, NULL, x, NULL, NULL, &err))
        return fprintf(stderr, "%s\n", err.message), 1;
    float mean[dim], value[n];
    uint8_t colours[3 * n];
    for (int i = 0; i < n * dim; i++)
        mean[i % dim] = (i < dim ? 0 : mean[i % dim]) + x[i] / n;
    for (int i = 0; i < n * dim; i++)
        x[i] -= mean[i % dim];
    for (int k = 0; k < 3; k++) {
        component(value, x, n, dim);
        const float range = 2 * sqrtf(dot(value, value, n) / n) + 1e-12f; /* two standard deviations. */
        for (int i = 0; i < n; i++)
            colours[3 * i + k] = 127.5f + 127.5f * fmaxf(-1, fminf(1, value[i] / range));
    }
    if (resize_u8(rgb, h, w, colours, grid, grid, 3, RESIZE_BICUBIC) || png_write(argv[2], rgb, w, h, 3, 8, &err))
        return fprintf(stderr, "%s\n", err.message), 1;
    return printf("%d x %d patches of %d channels: %s\n", grid, grid, dim, argv[2]) < 0;
}
