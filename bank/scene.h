/* scene.h - an image as the method sees it, features on the grid and objects (docs/METHOD.md 1, 3, 4), and as a
 * file. samlad.c makes it. */
#ifndef SAMLAD_SCENE_H
#define SAMLAD_SCENE_H

#include "dcga.h"
#include "io/error.h"

typedef struct Scene {
    int height, width; /* of the image */
    int cls_dim;
    float *features;   /* [grid_h*grid_w][channels] of the objects' grid; objects.features shows them */
    float *mean_patch; /* [channels] unit */
    float *cls;        /* [cls_dim] unit */
    Objects objects;
    int32_t *labels; /* [height][width] object of each pixel or -1; NULL for a bank's image */
} Scene;

void scene_free(Scene *scene);
/* A scene as a file, bit for bit. made_by: a text that stands for the weights and settings
 * that made it; a scene that others made is refused. */
int scene_save(const Scene *scene, const char *made_by, const char *path, Error *err);
int scene_load(Scene *scene, const char *made_by, const char *path, Error *err);

#endif
