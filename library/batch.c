/* batch.c - see batch.h. Each thread reads and analyses one image of a batch with its own handle. The images
 * then join the bank in their order. So the bank is the same bits for any number of threads. */
#include "library/batch.h"

#include <stdlib.h>

#include "io/fail.h"
#include "io/image.h"
#include "library/names.h"

typedef struct Analysed {
    Scene scene;
    int status;
    Error err;
} Analysed;

typedef struct Batch {
    int n;
    Samlad **shares;  /* [n] */
    Analysed *images; /* [n] */
} Batch;

static void batch_free(Batch *b)
{
    for (int i = 0; b->shares && i < b->n; i++)
        samlad_close(b->shares[i]);
    free(b->shares), free(b->images);
}

static int batch_new(Batch *b, const Samlad *s, Error *err)
{
    const int n = samlad_images_at_once(s);
    *b = (Batch){n, calloc((size_t)n, sizeof(Samlad *)), calloc((size_t)n, sizeof(Analysed))};
    if (!b->shares || !b->images)
        return fail_memory(err, "a batch of images", (size_t)n * sizeof(Analysed));
    for (int i = 0; i < n; i++)
        if (!(b->shares[i] = samlad_share(s, err)))
            return -1;
    return 0;
}

static void analyse_file(Analysed *image, Samlad *s, const char *path)
{
    int width, height;
    image->status = -1;
    uint8_t *rgb = image_read_white(path, s->options.white, &width, &height, &image->err);
    const Picture picture = {rgb, height, width};
    if (rgb)
        image->status = scene_analyse(&image->scene, &s->networks, &s->options, &picture, &image->err);
    free(rgb);
}

/* Add the batch's first n images and free them. The first failed image ends the bank. */
static int add_images(BankBuilder *builder, Batch *b, const char *const *names, int n, Error *err)
{
    int status = 0;
    for (int i = 0; i < n; i++) {
        Analysed *image = &b->images[i];
        if (!status)
            status = image->status ? fail(err, "%s", image->err.message)
                                   : bank_builder_add(builder, names[i], &image->scene, err);
        if (!image->status)
            scene_free(&image->scene);
    }
    return status;
}

static int run_batches(BankBuilder *builder, Batch *b, const char *const *paths, const char *const *names,
                       int n, const Listener *listener, Error *err)
{
    for (int first = 0; first < n; first += b->n) {
        const int now = n - first < b->n ? n - first : b->n;
#pragma omp parallel for schedule(static, 1) if (now > 1)
        for (int i = 0; i < now; i++)
            analyse_file(&b->images[i], b->shares[i], paths[first + i]);
        if (add_images(builder, b, names + first, now, err))
            return -1;
        tell(listener, "normal images", first + now, n);
    }
    return 0;
}

int batch_files(BankBuilder *builder, const Samlad *s, const char *const *paths, int n,
                const Listener *listener, Error *err)
{
    Batch batch;
    const char **names = names_apart(paths, n, err);
    if (!names)
        return -1;
    int status = batch_new(&batch, s, err);
    if (!status)
        status = run_batches(builder, &batch, paths, names, n, listener, err);
    batch_free(&batch), free(names);
    return status;
}

static int add_stored(BankBuilder *builder, const char *path, const char *name, const char *maker, Error *err)
{
    Scene scene;
    if (scene_load(&scene, maker, path, err))
        return -1;
    int status = bank_builder_add(builder, name, &scene, err);
    scene_free(&scene);
    return status;
}

int batch_scenes(BankBuilder *builder, const Samlad *s, const char *const *scenes, const char *const *names,
                 int n, Error *err)
{
    int status = 0;
    char maker[65];
    const char **apart = names_apart(names, n, err);
    if (!apart)
        return -1;
    handle_maker(s, maker);
    for (int i = 0; i < n && !status; i++)
        status = add_stored(builder, scenes[i], apart[i], maker, err);
    free(apart);
    return status;
}
