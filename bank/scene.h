/* scene.h - an image in the method's form: features on the grid and objects (docs/METHOD.md 1, 3, 4).
 * samlad.c makes scenes; a scene can be a file. */
#ifndef SAMLAD_SCENE_H
#define SAMLAD_SCENE_H

#include "dcga.h"
#include "io/error.h"

/* The most objects of one image in a file or a bank. The scores of two images with this many, and their
 * assignment, take 400 MB each. */
enum { SCENE_MAX_OBJECTS = 10000 };

typedef struct Scene {
    int height, width; /* of the image. */
    int cls_dim;
    float *features;   /* [grid_h*grid_w][channels] of the objects' grid; objects.features points to them. */
    float *mean_patch; /* [channels] unit vector */
    float *cls;        /* [cls_dim] unit vector */
    Objects objects;
    int32_t *labels; /* [height][width] the object of each pixel, or -1; NULL for a bank's image. */
} Scene;

/* Allocate features, mean_patch and cls of `channels` numbers, for a grid of this size. 0, or -1: no memory.
 * Free the scene in either case. */
int scene_new_features(Scene *scene, int grid_h, int grid_w, int channels, Error *err);
void scene_free(Scene *scene);
/* A scene as a file, bit for bit. made_by is a text that identifies the weights and settings of the maker. A
 * file with another text is refused. */
int scene_save(const Scene *scene, const char *made_by, const char *path, Error *err);
int scene_load(Scene *scene, const char *made_by, const char *path, Error *err);

#endif
