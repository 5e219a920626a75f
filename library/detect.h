/* detect.h - detection in steps: image or file -> scene -> result. samlad.h takes both steps at once. Rooms
 * after this one that need the scene too (eval/baselines.h compares its features) take them one by one. */
#ifndef SAMLAD_LIBRARY_DETECT_H
#define SAMLAD_LIBRARY_DETECT_H

#include "bank/bank.h"
#include "io/image.h"
#include "samlad.h"

/* The image, or a file of samlad_scene_save, as a scene. 0 / -1, and the scene is empty. */
int scene_of_image(Scene *scene, Samlad *s, const Picture *picture, Error *err);
int scene_of_file(Scene *scene, const Samlad *s, const char *path, Error *err);
/* Save a scene of this handle, as samlad_scene_save does. */
int scene_keep(const Scene *scene, const Samlad *s, const char *path, Error *err);
/* Detect in the scene. Its labels become the result's; the rest stays the caller's. The result is that of
 * samlad_detect. 0 / -1, and the result is empty. */
int scene_detect(SamladResult *result, const Samlad *s, Scene *scene, Error *err);
/* The handle's bank, or NULL. */
const Bank *bank_of(const Samlad *s);

#endif
