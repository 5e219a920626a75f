/* eval/truth.c - ground truth as regions. See truth.h; the definitions are those of MVTec's evaluation
 * scripts for MVTec AD (Bergmann et al. 2021, components) and MVTec LOCO AD (Bergmann et al. 2022,
 * saturation). */
#include "eval/truth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/exif.h"
#include "io/fail.h"
#include "io/file.h"
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

/* A mask file's pixels: what counts is whether they are 0. */
typedef struct Mask {
    int width, height, in_colour;
    uint16_t *values; /* [height][width] grey, or the largest channel, or a palette's index. */
} Mask;

static unsigned sample(const Image *image, size_t p, int c)
{
    size_t i = p * (size_t)image->channels + (size_t)c;
    return image->bits == 16 ? ((const uint16_t *)image->samples)[i] : ((const uint8_t *)image->samples)[i];
}

/* The largest channel of pixel p, without alpha. */
static unsigned brightest(const Image *image, size_t p)
{
    unsigned most = sample(image, p, 0);
    for (int c = 1; c < (image->channels < 3 ? 1 : 3); c++)
        most = sample(image, p, c) > most ? sample(image, p, c) : most;
    return most;
}

/* Is the palette's index 0 black, so that the indices can be the mask's values? Without such a pixel we
 * cannot know. */
static int background_is_black(const Image *image)
{
    const size_t n = (size_t)image->width * (size_t)image->height;
    for (size_t p = 0; p < n; p++)
        if (image->indices[p] == 0)
            return brightest(image, p) == 0;
    return 0;
}

/* Has the image alpha, and nothing else that varies? */
static int only_alpha_varies(const Image *image)
{
    const size_t n = (size_t)image->width * (size_t)image->height;
    const int last = image->channels - 1;
    int varies = 0;
    if (image->channels != 2 && image->channels != 4)
        return 0;
    for (size_t p = 1; p < n; p++) {
        for (int c = 0; c < last; c++)
            if (sample(image, p, c) != sample(image, 0, c))
                return 0;
        varies |= sample(image, p, last) != sample(image, 0, last);
    }
    return varies;
}

/* A palette's mask are its indices, as numpy sees them, if 0 is black; else its colours. */
static int mask_of_image(Mask *mask, const Image *image, Error *err)
{
    const size_t n = (size_t)image->width * (size_t)image->height;
    const int by_index = image->indices && background_is_black(image),
              by_alpha = !by_index && only_alpha_varies(image);
    *mask = (Mask){.width = image->width,
                   .height = image->height,
                   .in_colour = !by_index && !by_alpha && image->channels >= 3,
                   .values = malloc(n * sizeof *mask->values)};
    if (!mask->values)
        return fail_memory(err, "a ground truth", n * sizeof *mask->values);
    for (size_t p = 0; p < n; p++)
        mask->values[p] = (uint16_t)(by_index   ? image->indices[p]
                                     : by_alpha ? sample(image, p, image->channels - 1)
                                                : brightest(image, p));
    return 0;
}

int mask_fits_both_ways(const MaskFit *fit)
{
    return fit->orientation > 1 && (!exif_swaps(fit->orientation) || fit->width == fit->height);
}

int mask_tells_its_turn(const char *path)
{
    int width, height, own = 0;
    return image_probe_turn(path, &width, &height, &own, NULL) == 0 && own > 0;
}

/* Does the mask lie as the rows of a turned photo do? Its shape tells, where it can. A mask that has Exif data of
 * its own lies right, be it turned by them or not. */
static int lies_as_stored(const Image *mask, const char *path, const MaskFit *fit)
{
    if (fit->orientation <= 1 || mask_tells_its_turn(path))
        return 0;
    return mask_fits_both_ways(fit) || (mask->width > mask->height) != (fit->width > fit->height);
}

/* Read the file; *jpeg: it is a JPEG file. */
static int read_mask(Mask *mask, const char *path, const MaskFit *fit, int *jpeg, Error *err)
{
    Image image;
    size_t n;
    uint8_t *bytes = file_read(path, (size_t)1 << 30, &n, err);
    if (!bytes)
        return -1;
    *jpeg = n > 2 && memcmp(bytes, "\xff\xd8\xff", 3) == 0;
    int status = image_read_memory(&image, bytes, n, path, err);
    free(bytes);
    if (status)
        return -1;
    if (lies_as_stored(&image, path, fit))
        status = exif_turn(&image, fit->orientation, path, err);
    if (!status)
        status = mask_of_image(mask, &image, err);
    image_free(&image);
    return status;
}

/* Lossy coding blurs the border: half of white is the limit. */
static void threshold_mask(Mask *mask)
{
    const size_t n = (size_t)mask->width * (size_t)mask->height;
    for (size_t p = 0; p < n; p++)
        mask->values[p] = mask->values[p] >= 128 ? 255 : 0;
}

/* Nearest neighbour, by the centres of the pixels. */
static int resize_mask(Mask *mask, int width, int height, Error *err)
{
    const size_t n = (size_t)width * (size_t)height;
    uint16_t *values = malloc(n * sizeof *values);
    if (!values)
        return fail_memory(err, "a ground truth", n * sizeof *values);
    for (int y = 0; y < height; y++) {
        const int64_t from_y = (2 * (int64_t)y + 1) * mask->height / (2 * (int64_t)height);
        for (int x = 0; x < width; x++) {
            const int64_t from_x = (2 * (int64_t)x + 1) * mask->width / (2 * (int64_t)width);
            values[(size_t)y * (size_t)width + (size_t)x] = mask->values[from_y * mask->width + from_x];
        }
    }
    free(mask->values);
    *mask = (Mask){width, height, mask->in_colour, values};
    return 0;
}

/* Read a mask and lay it on its image. */
static int fit_mask(Mask *mask, const char *path, const MaskFit *fit, int by_value, Error *err)
{
    int jpeg;
    if (read_mask(mask, path, fit, &jpeg, err))
        return -1;
    if (jpeg && !by_value)
        threshold_mask(mask);
    int status = 0;
    if (mask->width != fit->width || mask->height != fit->height)
        status = fit->resize ? resize_mask(mask, fit->width, fit->height, err)
                             : fail(err,
                                    "%s: the ground truth is %dx%d, its image %dx%d (--resize-masks resizes "
                                    "such masks)",
                                    path, mask->width, mask->height, fit->width, fit->height);
    if (status)
        free(mask->values);
    return status;
}

int truth_looks_like_mask(const char *path)
{
    const MaskFit any = {0};
    Mask mask;
    int jpeg;
    if (read_mask(&mask, path, &any, &jpeg, NULL))
        return 0;
    const size_t n = (size_t)mask.width * (size_t)mask.height;
    size_t n_ends = 0;
    unsigned most = 0;
    for (size_t p = 0; p < n; p++)
        most = mask.values[p] > most ? mask.values[p] : most;
    for (size_t p = 0; p < n; p++)
        n_ends += mask.values[p] == 0 || mask.values[p] == most;
    free(mask.values);
    return !jpeg && 10 * n_ends >= (mask.in_colour ? 10 : 9) * n;
}

/* The file's only pixel value that is not 0. -1 with a sentence: there is none, or more than one, or no
 * defect has it. */
static int defect_value(const Mask *mask, const DefectTable *table, const char *path, Error *err)
{
    size_t n = (size_t)mask->width * (size_t)mask->height;
    unsigned value = 0;
    if (mask->in_colour)
        return fail(err, "%s: a mask of a defect must be grey, this one is in colour", path);
    for (size_t p = 0; p < n; p++) {
        unsigned here = mask->values[p];
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

/* Set the pixels that the mask sets. Returns their number. */
static size_t merge_mask(uint8_t *merged, const Mask *mask)
{
    const size_t n = (size_t)mask->width * (size_t)mask->height;
    size_t area = 0;
    for (size_t p = 0; p < n; p++) {
        merged[p] |= mask->values[p] != 0;
        area += mask->values[p] != 0;
    }
    return area;
}

static int add_defect(Truth *truth, uint8_t *pixels, const Mask *mask, const DefectTable *table,
                      const char *path, Error *err)
{
    int value = defect_value(mask, table, path, err);
    if (value < 0)
        return -1;
    memset(pixels, 0, (size_t)truth->width * (size_t)truth->height);
    const size_t area = merge_mask(pixels, mask);
    return truth_add_region(truth, pixels, defect_saturation(&table->by_value[value], area), err);
}

int truth_fit(Truth *truth, const MaskFit *fit, const char *const *masks, size_t n_masks,
              const DefectTable *table, Error *err)
{
    if (truth_begin(truth, fit->width, fit->height, err))
        return -1;
    size_t n = (size_t)fit->width * (size_t)fit->height;
    uint8_t *pixels = n_masks ? calloc(n, 1) : NULL;
    int status = pixels || !n_masks ? 0 : fail_memory(err, "a ground truth", n);
    for (size_t i = 0; i < n_masks && !status; i++) {
        Mask mask;
        if ((status = fit_mask(&mask, masks[i], fit, table != NULL, err)))
            break;
        if (table)
            status = add_defect(truth, pixels, &mask, table, masks[i], err);
        else
            merge_mask(pixels, &mask);
        free(mask.values);
    }
    if (!status && n_masks && !table)
        status = truth_add_components(truth, pixels, err);
    free(pixels);
    if (status)
        truth_free(truth);
    return status;
}

int truth_read(Truth *truth, int width, int height, const char *const *masks, size_t n_masks,
               const DefectTable *table, Error *err)
{
    const MaskFit fit = {.width = width, .height = height};
    return truth_fit(truth, &fit, masks, n_masks, table, err);
}
