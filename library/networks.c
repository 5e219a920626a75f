/* networks.c - see networks.h. */
#include "library/networks.h"

#include "io/fail.h"

/* ================================================================================================
 * Opening and sharing
 * ============================================================================================== */

static int open_vit(Models *m, const char *path, Error *err)
{
    m->vit_file = st_open(path, err);
    m->vit = m->vit_file ? vit_open(m->vit_file, err) : NULL;
    return m->vit ? 0 : -1;
}

static int open_sam(Models *m, const char *path, Error *err)
{
    if (!path)
        return 0;
    m->sam_file = st_open(path, err);
    m->sam = m->sam_file ? sam_open(m->sam_file, err) : NULL;
    m->sam_state = m->sam ? sam_state_new(m->sam, err) : NULL;
    return m->sam_state ? 0 : -1;
}

static int open_featup(Models *m, const char *path, Error *err)
{
    if (!path)
        return 0;
    m->featup_file = st_open(path, err);
    m->featup = m->featup_file ? featup_open(m->featup_file, err) : NULL;
    return m->featup ? 0 : -1;
}

/* The learned graph is needed only after all images are analysed. Checked here, a wrong file fails at once. */
static int open_dcga(Models *m, const char *path, Error *err)
{
    Dcga tried = {.channels = vit_config(m->vit)->dim};
    if (!path)
        return 0;
    m->dcga_file = st_open(path, err);
    return m->dcga_file ? dcga_learned(&tried, m->dcga_file, err) : -1;
}

int models_open(Models *m, const char *vit, const char *sam, const char *featup, const char *dcga, Error *err)
{
    *m = (Models){0};
    if (open_vit(m, vit, err) || open_sam(m, sam, err) || open_featup(m, featup, err) ||
        open_dcga(m, dcga, err)) {
        models_close(m);
        return -1;
    }
    return 0;
}

int models_share(Models *copy, const Models *m, Error *err)
{
    *copy = *m;
    copy->shared = 1;
    copy->vit_state = NULL; /* made when the first image tells its size */
    copy->vit_state_grid = 0;
    copy->sam_state = m->sam ? sam_state_new(m->sam, err) : NULL;
    return m->sam && !copy->sam_state ? -1 : 0;
}

void models_close(Models *m)
{
    if (m->vit_state)
        vit_state_free(m->vit_state);
    if (m->sam_state)
        sam_state_free(m->sam_state);
    if (!m->shared) {
        if (m->vit)
            vit_close(m->vit);
        if (m->sam)
            sam_close(m->sam);
        if (m->featup)
            featup_close(m->featup);
        st_close(m->vit_file), st_close(m->sam_file), st_close(m->featup_file), st_close(m->dcga_file);
    }
    *m = (Models){0};
}

/* ================================================================================================
 * What the weights recommend
 * ============================================================================================== */

int models_recommend(const Models *m, Options *o, Error *err)
{
    return m->sam ? amg_recommended(&o->amg, AMG_FOR_OBJECTS, m->sam_file, err) : 0;
}

/* An optional whole number of the backbone's metadata. */
static int recommended(const Models *m, const char *key, int most, int *value, Error *err)
{
    return st_meta(m->vit_file, key) ? st_meta_int(m->vit_file, key, 1, most, value, err) : 0;
}

int models_complete(const Models *m, Options *o, Error *err)
{
    const VitConfig *vit = vit_config(m->vit);
    if (o->size == 0) {
        /* DINOv2 was trained at 518: 448, 32 patches of 14 [ours] */
        o->size = vit->image_size == 518 ? 448 : vit->image_size;
        if (recommended(m, "method.size", 4096, &o->size, err))
            return -1;
        if (o->grid == 0 && recommended(m, "method.grid", 1024, &o->grid, err))
            return -1;
    }
    if (o->layer == 0) {
        /* the last of DINOv2; of the ImageNet ViT, block 9 of 12 was best (docs/METHOD.md 1) [ours] */
        o->layer = vit->timm ? (3 * vit->depth + 2) / 4 : vit->depth;
        return recommended(m, "method.layer", vit->depth, &o->layer, err);
    }
    return 0;
}

int models_precision(Models *m, const Options *o, Error *err)
{
    const Precision precision = (Precision)o->precision;
    if (vit_set_precision(m->vit, precision, err))
        return -1;
    return m->sam && !o->no_objects ? sam_set_precision(m->sam, precision, err) : 0;
}
