/* scene.h - an image as the method sees it: features on the grid and objects (METHOD.md 1, 3, 4). */
#ifndef SAMLAD_SCENE_H
#define SAMLAD_SCENE_H

#include "amg.h"
#include "bank/dump.h"
#include "dcga.h"
#include "featup.h"
#include "bank/options.h"
#include "vit.h"

/* The frozen networks. sam and featup may be absent. */
typedef struct Models {
    Safetensors *vit_file, *sam_file, *featup_file, *dcga_file;
    Vit *vit;
    VitState *vit_state;
    int vit_state_grid; /* patches a side that vit_state was made for */
    Sam *sam;
    SamState *sam_state;
    Featup *featup;
    int shared; /* 1: the networks belong to another Models */
} Models;

typedef struct Scene {
    int height, width; /* of the image */
    int cls_dim;
    float *features;   /* [grid_h*grid_w][channels] of the objects' grid; objects.features shows them */
    float *mean_patch; /* [channels] unit */
    float *cls;        /* [cls_dim] unit */
    Objects objects;
    int32_t *labels; /* [height][width] object of each pixel or -1; NULL for a bank's image */
} Scene;

/* Bytes that one more share costs while it works on an image: the networks' activations and the enlarged
 * features. Not counted is what grows with the picture: its pixels, labels and masks. */
size_t models_image_bytes(const Models *models, const Options *options);

/* rgb uint8 [height][width][3] -> scene. dump: every intermediate tensor goes there under METHOD.md 11's
 * names, or NULL. */
int scene_analyse(Scene *scene, Models *models, const Options *options, const uint8_t *rgb, int height,
                  int width, StWriter *dump, Error *err);
void scene_free(Scene *scene);
/* A scene as a file, bit for bit (scene_file.c). made_by: a text that stands for the weights and settings
 * that made it; a scene that others made is refused. */
int scene_save(const Scene *scene, const char *made_by, const char *path, Error *err);
int scene_load(Scene *scene, const char *made_by, const char *path, Error *err);

#endif
