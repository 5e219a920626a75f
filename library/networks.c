/* networks.c - see networks.h. */
#include "library/networks.h"

#include "io/fail.h"
#include "load/foreign.h"

/* ================================================================================================
 * Opening and sharing
 * ============================================================================================== */

static int open_vit(Networks *n, const char *path, Error *err)
{
    n->vit_file = weights_open(path, err);
    n->vit = n->vit_file ? vit_open(n->vit_file, err) : NULL;
    return n->vit ? 0 : -1;
}

static int open_sam(Networks *n, const char *path, Error *err)
{
    if (!path)
        return 0;
    n->sam_file = weights_open(path, err);
    n->sam = n->sam_file ? sam_open(n->sam_file, err) : NULL;
    n->sam_state = n->sam ? sam_state_new(n->sam, err) : NULL;
    return n->sam_state ? 0 : -1;
}

static int open_featup(Networks *n, const char *path, Error *err)
{
    if (!path)
        return 0;
    n->featup_file = st_open(path, err);
    n->featup = n->featup_file ? featup_open(n->featup_file, err) : NULL;
    return n->featup ? 0 : -1;
}

/* The learned graph is needed only after all images are analysed. It is checked here, so that a wrong file
 * fails at once. */
static int open_dcga(Networks *n, const char *path, Error *err)
{
    Dcga tried = {.channels = vit_config(n->vit)->dim};
    if (!path)
        return 0;
    n->dcga_file = st_open(path, err);
    return n->dcga_file ? dcga_learned(&tried, n->dcga_file, err) : -1;
}

int networks_open(Networks *n, const char *vit, const char *sam, const char *featup, const char *dcga,
                  Error *err)
{
    *n = (Networks){0};
    if (open_vit(n, vit, err) || open_sam(n, sam, err) || open_featup(n, featup, err) ||
        open_dcga(n, dcga, err)) {
        networks_close(n);
        return -1;
    }
    return 0;
}

int networks_share(Networks *copy, const Networks *n, Error *err)
{
    *copy = *n;
    copy->shared = 1;
    copy->vit_state = NULL; /* made when the size of the first image is known. */
    copy->vit_state_grid = 0;
    copy->sam_state = n->sam ? sam_state_new(n->sam, err) : NULL;
    return n->sam && !copy->sam_state ? -1 : 0;
}

void networks_close(Networks *n)
{
    if (n->vit_state)
        vit_state_free(n->vit_state);
    if (n->sam_state)
        sam_state_free(n->sam_state);
    if (!n->shared) {
        if (n->vit)
            vit_close(n->vit);
        if (n->sam)
            sam_close(n->sam);
        if (n->featup)
            featup_close(n->featup);
        st_close(n->vit_file), st_close(n->sam_file), st_close(n->featup_file), st_close(n->dcga_file);
    }
    *n = (Networks){0};
}

size_t networks_image_bytes(const Networks *n, const Options *o)
{
    /* A square image needs the most memory, because the longer side is fixed. */
    const VitConfig *vit = vit_config(n->vit);
    const FeatureSizes s = feature_sizes(o, vit->patch_size, 1, 1);
    const int sharpens = n->featup && o->featup_stages > 0;
    const size_t n_views = o->views,
                 n_cells = (sharpens ? (size_t)s.up_h * s.up_w : 0) + n_views * s.grid_h * s.grid_w;
    return (n->sam_state ? sam_state_bytes(n->sam_state) : 0) +
           vit_state_bytes(n->vit, s.patch_h, s.patch_w) + n_cells * vit->dim * sizeof(float);
}

/* ================================================================================================
 * Recommendations of the weights
 * ============================================================================================== */

int networks_recommend(const Networks *n, Options *o, Error *err)
{
    return n->sam ? amg_recommended(&o->amg, AMG_FOR_OBJECTS, n->sam_file, err) : 0;
}

/* An optional whole number of the backbone's metadata. */
static int recommended(const Networks *n, const char *key, int most, int *value, Error *err)
{
    return st_meta(n->vit_file, key) ? st_meta_int(n->vit_file, key, 1, most, value, err) : 0;
}

int networks_complete(const Networks *n, Options *o, Error *err)
{
    const VitConfig *vit = vit_config(n->vit);
    if (o->size == 0) {
        /* DINOv2 was trained at 518. The size is 448, 32 patches of 14 [ours]. */
        o->size = vit->image_size == 518 ? 448 : vit->image_size;
        if (recommended(n, "method.size", 4096, &o->size, err))
            return -1;
        if (o->grid == 0 && recommended(n, "method.grid", 1024, &o->grid, err))
            return -1;
    }
    if (o->layer == 0) {
        /* DINOv2's last block. Of the ImageNet ViT, block 9 of 12 was best (docs/METHOD.md 1) [ours]. */
        o->layer = vit->timm ? (3 * vit->depth + 2) / 4 : vit->depth;
        return recommended(n, "method.layer", vit->depth, &o->layer, err);
    }
    return 0;
}

int networks_precision(Networks *n, const Options *o, Error *err)
{
    const Precision precision = o->precision;
    if (vit_set_precision(n->vit, precision, err))
        return -1;
    return n->sam && !o->no_objects ? sam_set_precision(n->sam, precision, err) : 0;
}
