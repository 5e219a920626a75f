/* amg_load.c - see amg_load.h. */
#include "load/amg_load.h"

#include <stddef.h>
#include <stdio.h>

void amg_defaults(AmgOptions *options)
{
    *options = (AmgOptions){.points_per_side = 32,
                            .pred_iou_thresh = 0.88,
                            .stability_score_thresh = 0.95,
                            .stability_score_offset = 1.0,
                            .box_nms_thresh = 0.7,
                            .crop_n_layers = 0,
                            .crop_nms_thresh = 0.7,
                            .crop_overlap_ratio = 512.0 / 1500,
                            .crop_n_points_downscale_factor = 1,
                            .crop_own_points = 0,
                            .min_mask_region_area = 0};
}

typedef struct Recommendation {
    const char *name;
    int is_int;
    size_t offset; /* into AmgOptions */
    double min, max;
} Recommendation;

#define AT(field) offsetof(AmgOptions, field)
static const Recommendation recommendations[] = {
    {"points_per_side", 1, AT(points_per_side), 1, AMG_MAX_POINTS_PER_SIDE},
    {"pred_iou_thresh", 0, AT(pred_iou_thresh), -AMG_MAX_LOGIT, AMG_MAX_LOGIT},
    {"stability_score_thresh", 0, AT(stability_score_thresh), 0, 1},
    {"stability_score_offset", 0, AT(stability_score_offset), 0, AMG_MAX_LOGIT},
    {"box_nms_thresh", 0, AT(box_nms_thresh), 0, 1},
    {"crop_n_layers", 1, AT(crop_n_layers), 0, AMG_MAX_CROP_LAYERS},
    {"crop_nms_thresh", 0, AT(crop_nms_thresh), 0, 1},
    {"crop_n_points_downscale_factor", 1, AT(crop_n_points_downscale_factor), 1, AMG_MAX_POINTS_PER_SIDE},
    {"crop_own_points", 1, AT(crop_own_points), 0, 1},
    {"min_mask_region_area", 1, AT(min_mask_region_area), 0, AMG_MAX_REGION_AREA},
};
#undef AT

/* Overwrite the option if the file has <group>.<name>. */
static int take_recommendation(AmgOptions *o, const Recommendation *r, const char *group,
                               const Safetensors *st, Error *err)
{
    char key[64], *field = (char *)o + r->offset;
    snprintf(key, sizeof key, "%s.%s", group, r->name);
    if (!st_meta(st, key))
        return 0;
    return r->is_int ? st_meta_int(st, key, (int)r->min, (int)r->max, (int *)(void *)field, err)
                     : st_meta_float(st, key, r->min, r->max, (double *)(void *)field, err);
}

int amg_recommended(AmgOptions *o, AmgUse use, const Safetensors *weights, Error *err)
{
    static const char *const groups[] = {"amg", "objects"};
    amg_defaults(o);
    for (int g = 0; g <= (use == AMG_FOR_OBJECTS); g++)
        for (size_t i = 0; i < sizeof recommendations / sizeof *recommendations; i++)
            if (take_recommendation(o, &recommendations[i], groups[g], weights, err))
                return -1;
    return 0;
}
