/* detect.c - one image, or one stored scene, against the handle's bank. See samlad.h and detect.h. */
#include "library/detect.h"

#include <math.h>

#include "algorithm.h"
#include "io/fail.h"
#include "library/dump.h"
#include "library/handle.h"
#include "library/result.h"

static int needs_bank(const Samlad *s, Error *err)
{
    return s->has_bank ? 0 : fail(err, "no bank: build or load one before detecting");
}

/* Make the result of a detection. It also goes to the dump, unless dump is NULL. */
static int make_result(SamladResult *result, const Bank *bank, Detection *d, Scene *scene, StWriter *dump,
                       Error *err)
{
    if (dump && dump_detection(dump, d, err))
        return -1;
    if (!isfinite(d->score))
        return fail(err, "the score is not a finite number: the bank's calibration is damaged");
    return result_make(result, bank, d, scene, err);
}

/* dump may be NULL. */
static int detect_image(SamladResult *result, Samlad *s, const Picture *picture, StWriter *dump, Error *err)
{
    Detection d;
    Scene scene;
    const int status = detect(&d, &scene, &s->networks, &s->bank, picture, dump, err) ||
                       make_result(result, &s->bank, &d, &scene, dump, err);
    detection_free(&d), scene_free(&scene);
    return status ? -1 : 0;
}

/* A picture without pixels is refused. */
static int check_picture(const Picture *picture, Error *err)
{
    return picture->height > 0 && picture->width > 0
               ? 0
               : fail(err, "a picture of %d x %d pixels has nothing to look at", picture->width,
                      picture->height);
}

int samlad_detect(Samlad *s, const uint8_t *rgb, int height, int width, SamladResult *result,
                  const char *dump, Error *err)
{
    const Picture picture = {rgb, height, width};
    *result = (SamladResult){0};
    if (needs_bank(s, err) || check_picture(&picture, err))
        return -1;
    if (!dump)
        return detect_image(result, s, &picture, NULL, err);
    StWriter *writer = st_writer_new();
    if (!writer)
        return fail_memory(err, "the dump", sizeof(void *));
    int status = detect_image(result, s, &picture, writer, err);
    if (!status && st_writer_save(writer, dump, err)) {
        samlad_result_free(result);
        status = -1;
    }
    st_writer_free(writer);
    return status;
}

/* ================================================================================================
 * In steps
 * ============================================================================================== */

int scene_of_image(Scene *scene, Samlad *s, const Picture *picture, Error *err)
{
    *scene = (Scene){0};
    return check_picture(picture, err) || scene_analyse(scene, &s->networks, &s->options, picture, err) ? -1
                                                                                                        : 0;
}

int scene_of_file(Scene *scene, const Samlad *s, const char *path, Error *err)
{
    char maker[65];
    handle_maker(s, maker);
    return scene_load(scene, maker, path, err);
}

int scene_keep(const Scene *scene, const Samlad *s, const char *path, Error *err)
{
    char maker[65];
    handle_maker(s, maker);
    return scene_save(scene, maker, path, err);
}

int scene_detect(SamladResult *result, const Samlad *s, Scene *scene, Error *err)
{
    Detection d;
    *result = (SamladResult){0};
    if (needs_bank(s, err))
        return -1;
    const int status =
        detect_in_scene(&d, &s->bank, scene, -1, err) || make_result(result, &s->bank, &d, scene, NULL, err);
    detection_free(&d);
    return status ? -1 : 0;
}

const Bank *bank_of(const Samlad *s)
{
    return s->has_bank ? &s->bank : NULL;
}

int samlad_detect_scene(Samlad *s, const char *path, SamladResult *result, Error *err)
{
    Scene scene;
    *result = (SamladResult){0};
    if (needs_bank(s, err) || scene_of_file(&scene, s, path, err))
        return -1;
    const int status = scene_detect(result, s, &scene, err);
    scene_free(&scene);
    return status;
}

int samlad_scene_save(Samlad *s, const uint8_t *rgb, int height, int width, const char *path, Error *err)
{
    const Picture picture = {rgb, height, width};
    Scene scene;
    if (scene_of_image(&scene, s, &picture, err))
        return -1;
    const int status = scene_keep(&scene, s, path, err);
    scene_free(&scene);
    return status;
}
