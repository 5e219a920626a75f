/* eval/truth.c - ground truth as regions. See truth.h; the definitions are those of MVTec's evaluation
 * scripts for MVTec AD (Bergmann et al. 2021, components) and MVTec LOCO AD (Bergmann et al. 2022,
 * saturation). */
#include "eval/truth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/image.h"
#include "io/json.h"

/* ================================================================================================
 * The table of defects
 * ============================================================================================== */

static const Json *field(const Json *entry, const char *key, JsonType type)
{
    const Json *value = json_get(entry, key);
    return value && value->type == type ? value : NULL;
}

static int read_defect(DefectTable *table, const Json *entry, size_t index, const char *path, Error *err)
{
    const Json *name = field(entry, "defect_name", JSON_STRING);
    const Json *value = field(entry, "pixel_value", JSON_NUMBER);
    const Json *saturation = field(entry, "saturation_threshold", JSON_NUMBER);
    const Json *relative = field(entry, "relative_saturation", JSON_BOOL);
    if (!name || !value || !saturation || !relative)
        return fail(err,
                    "%s: entry %zu lacks defect_name (string), pixel_value (number), saturation_threshold "
                    "(number) or relative_saturation (true or false)",
                    path, index);
    if (!(value->number >= 1 && value->number <= 255) || value->number != floor(value->number))
        return fail(err, "%s: %.60s: pixel_value is %g, expected a whole number from 1 to 255", path,
                    name->string, value->number);
    double s = saturation->number;
    if (relative->number != 0 ? !(s > 0 && s <= 1) : !(s >= 1 && s <= 4294967295.0) || s != floor(s))
        return fail(err, "%s: %.60s: saturation_threshold is %g, expected %s", path, name->string, s,
                    relative->number != 0 ? "a part in (0, 1]" : "a whole number of pixels");
    /* two entries of one value: the last counts, as in the scripts. */
    Defect *defect = &table->by_value[(int)value->number];
    snprintf(defect->name, sizeof defect->name, "%s", *name->string ? name->string : "unnamed");
    defect->relative = relative->number != 0;
    defect->saturation = s;
    return 0;
}

int defect_table_read(DefectTable *table, const char *path, Error *err)
{
    memset(table, 0, sizeof *table);
    const Json *root = json_read(path, err);
    if (!root)
        return -1;
    int status =
        root->type == JSON_ARRAY && root->n > 0 ? 0 : fail(err, "%s: expected a list of defects", path);
    for (size_t i = 0; i < root->n && !status; i++)
        status = read_defect(table, &root->children[i], i, path, err);
    json_free(root);
    return status;
}

uint32_t defect_saturation(const Defect *defect, size_t area)
{
    double pixels =
        defect->relative ? floor(defect->saturation * (double)area) : fmin(defect->saturation, (double)area);
    return pixels >= 1 ? (uint32_t)pixels : 1;
}

/* ================================================================================================
 * Regions
 * ============================================================================================== */

int truth_begin(Truth *truth, int width, int height, Error *err)
{
    *truth = (Truth){.width = width, .height = height};
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS)
        return fail(err, "a ground truth cannot have %dx%d pixels", width, height);
    size_t n = (size_t)width * (size_t)height;
    truth->anomalous = calloc(n, 1);
    return truth->anomalous ? 0 : fail_memory(err, "a ground truth", n);
}

void truth_free(Truth *truth)
{
    free(truth->anomalous), free(truth->saturation), free(truth->marks);
    *truth = (Truth){0};
}

/* Make room for one more item of `size` bytes in *array. */
static int grow(void **array, size_t n, size_t *capacity, size_t size, Error *err)
{
    if (n < *capacity)
        return 0;
    size_t wanted = *capacity ? 2 * *capacity : 64;
    void *more = realloc(*array, wanted * size);
    if (!more)
        return fail_memory(err, "a ground truth's regions", wanted * size);
    *array = more;
    *capacity = wanted;
    return 0;
}

static int mark(Truth *truth, size_t pixel, size_t region, Error *err)
{
    if (grow((void **)&truth->marks, truth->n_marks, &truth->mark_capacity, sizeof *truth->marks, err))
        return -1;
    truth->marks[truth->n_marks++] = (TruthMark){(uint32_t)pixel, (uint32_t)region, truth->anomalous[pixel]};
    truth->n_anomalous += !truth->anomalous[pixel];
    truth->anomalous[pixel] = 1;
    return 0;
}

static int close_region(Truth *truth, uint32_t saturation, Error *err)
{
    if (grow((void **)&truth->saturation, truth->n_regions, &truth->region_capacity,
             sizeof *truth->saturation, err))
        return -1;
    truth->saturation[truth->n_regions++] = saturation;
    return 0;
}

int truth_add_region(Truth *truth, const uint8_t *mask, uint32_t saturation, Error *err)
{
    size_t n = (size_t)truth->width * (size_t)truth->height, before = truth->n_marks;
    for (size_t p = 0; p < n; p++)
        if (mask[p] && mark(truth, p, truth->n_regions, err))
            return -1;
    if (truth->n_marks == before)
        return fail(err, "a ground truth region without a pixel");
    return close_region(truth, saturation ? saturation : 1, err);
}

/* Grow the component from `first` over its 8 neighbours. The marks of the component are the queue: each
 * mark is visited in turn, and appends its neighbours. */
static int flood(Truth *truth, const uint8_t *mask, uint8_t *seen, size_t first, Error *err)
{
    int width = truth->width, height = truth->height;
    size_t begin = truth->n_marks;
    seen[first] = 1;
    if (mark(truth, first, truth->n_regions, err))
        return -1;
    for (size_t i = begin; i < truth->n_marks; i++) {
        int x = (int)(truth->marks[i].pixel % (uint32_t)width),
            y = (int)(truth->marks[i].pixel / (uint32_t)width);
        for (int ny = y > 0 ? y - 1 : 0; ny <= y + 1 && ny < height; ny++)
            for (int nx = x > 0 ? x - 1 : 0; nx <= x + 1 && nx < width; nx++) {
                size_t p = (size_t)ny * (size_t)width + (size_t)nx;
                if (!mask[p] || seen[p])
                    continue;
                seen[p] = 1;
                if (mark(truth, p, truth->n_regions, err))
                    return -1;
            }
    }
    return close_region(truth, (uint32_t)(truth->n_marks - begin), err);
}

int truth_add_components(Truth *truth, const uint8_t *mask, Error *err)
{
    size_t n = (size_t)truth->width * (size_t)truth->height;
    uint8_t *seen = calloc(n, 1);
    int status = seen ? 0 : fail_memory(err, "a ground truth's components", n);
    for (size_t p = 0; p < n && !status; p++)
        if (mask[p] && !seen[p])
            status = flood(truth, mask, seen, p, err);
    free(seen);
    return status;
}

/* ================================================================================================
 * Mask files
 * ============================================================================================== */

/* The value of pixel p in channel c. For a palette image this is the index, as numpy sees it. */
static unsigned sample(const Image *image, size_t p, size_t c)
{
    if (image->indices)
        return image->indices[p];
    size_t i = p * (size_t)image->channels + c;
    return image->bits == 16 ? ((const uint16_t *)image->samples)[i] : ((const uint8_t *)image->samples)[i];
}

/* The number of channels without alpha. */
static size_t n_values(const Image *image)
{
    return image->indices || image->channels < 3 ? 1 : 3;
}

/* Set mask where any channel is not 0. */
static void merge_mask(uint8_t *mask, const Image *image)
{
    size_t n = (size_t)image->width * (size_t)image->height;
    for (size_t c = 0; c < n_values(image); c++)
        for (size_t p = 0; p < n; p++)
            mask[p] |= sample(image, p, c) != 0;
}

/* The file's only pixel value that is not 0. -1 with a sentence: there is none, or more than one, or no defect
 * has it. */
static int defect_value(const Image *image, const DefectTable *table, const char *path, Error *err)
{
    size_t n = (size_t)image->width * (size_t)image->height;
    unsigned value = 0;
    if (n_values(image) != 1)
        return fail(err, "%s: a mask of a defect must be grey, this one is in colour", path);
    for (size_t p = 0; p < n; p++) {
        unsigned here = sample(image, p, 0);
        if (here && value && here != value)
            return fail(err, "%s: the mask holds the values %u and %u, expected 0 and one defect's value",
                        path, value, here);
        value = here ? here : value;
    }
    if (!value)
        return fail(err, "%s: the mask is empty, expected the pixels of one defect", path);
    if (value > 255 || !table->by_value[value].name[0])
        return fail(err, "%s: the pixel value %u is in no entry of defects_config.json", path, value);
    return (int)value;
}

static int add_defect(Truth *truth, uint8_t *mask, const Image *image, const DefectTable *table,
                      const char *path, Error *err)
{
    size_t n = (size_t)truth->width * (size_t)truth->height, area = 0;
    int value = defect_value(image, table, path, err);
    if (value < 0)
        return -1;
    memset(mask, 0, n);
    merge_mask(mask, image);
    for (size_t p = 0; p < n; p++)
        area += mask[p];
    return truth_add_region(truth, mask, defect_saturation(&table->by_value[value], area), err);
}

int truth_read(Truth *truth, int width, int height, const char *const *masks, size_t n_masks,
               const DefectTable *table, Error *err)
{
    if (truth_begin(truth, width, height, err))
        return -1;
    size_t n = (size_t)width * (size_t)height;
    uint8_t *mask = n_masks ? calloc(n, 1) : NULL;
    int status = mask || !n_masks ? 0 : fail_memory(err, "a ground truth", n);
    for (size_t i = 0; i < n_masks && !status; i++) {
        Image image;
        if ((status = image_read(&image, masks[i], err)))
            break;
        if (image.width != width || image.height != height)
            status = fail(err, "%s: the ground truth is %dx%d, its image %dx%d", masks[i], image.width,
                          image.height, width, height);
        else if (table)
            status = add_defect(truth, mask, &image, table, masks[i], err);
        else
            merge_mask(mask, &image);
        image_free(&image);
    }
    if (!status && n_masks && !table)
        status = truth_add_components(truth, mask, err);
    free(mask);
    if (status)
        truth_free(truth);
    return status;
}
