/* eval/synth_loco.c - a tiny data set to try an evaluation on. It has MVTec LOCO AD's five categories and
 * the defect tables of the caller. The pictures are trays (synth.c), one product a category. Each tray
 * defect takes one of the table's pixel values, so that AU-sPRO meets absolute and relative saturations.
 * The names of the defects in the table say nothing about the picture. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/fail.h"
#include "eval/synth.h"
#include "eval/truth.h"

enum { SIDE = 128, N_TRAIN = 10, N_VALIDATION = 2, N_GOOD = 6, N_EACH = 1 };

/* The table's pixel values, largest first. */
typedef struct Values {
    int n;
    uint8_t value[256];
} Values;

static Values values_of(const DefectTable *table)
{
    Values v = {0};
    for (int value = 255; value > 0; value--)
        if (table->by_value[value].name[0])
            v.value[v.n++] = (uint8_t)value;
    return v;
}

/* Tray defect i has value 255 - i. It becomes the table's value i, modulo the table's length. */
static void revalue(TrayImage *image, const Values *values, size_t n_pixels)
{
    for (int t = 0; t < image->n_truths; t++)
        for (size_t p = 0; p < n_pixels; p++)
            if (image->truth[t][p])
                image->truth[t][p] = values->value[(255 - image->truth[t][p]) % values->n];
}

typedef struct Category {
    const char *name;
    const SynthOutput *out;
    const TrayProduct *product;
    Values values;
} Category;

/* Write one image and its ground truths; folder: "test/good". */
static int write_one(const Category *c, TraySplit split, TrayDefect defect, const char *folder, int number,
                     Error *err)
{
    TrayImage image;
    char path[192];
    if (tray_image_new(&image, c->product, split, defect, number, 1, err))
        return -1;
    revalue(&image, &c->values, (size_t)SIDE * SIDE);
    snprintf(path, sizeof path, "%s/%s", c->name, folder);
    int status = synth_output_image(c->out, path, number, image.rgb, SIDE, SIDE, 3, err);
    const char *kind = strchr(folder, '/') + 1;
    snprintf(path, sizeof path, "%s/ground_truth/%s/%03d", c->name, kind, number);
    for (int t = 0; t < image.n_truths && !status; t++)
        status = synth_output_image(c->out, path, t, image.truth[t], SIDE, SIDE, 1, err);
    tray_image_free(&image);
    return status;
}

static int write_images(const Category *c, Error *err)
{
    static const char *const folders[] = {"train/good", "validation/good", "test/good"};
    static const int counts[] = {N_TRAIN, N_VALIDATION, N_GOOD};
    int number[2] = {0, 0};
    for (int split = TRAY_TRAIN; split <= TRAY_TEST_GOOD; split++)
        for (int i = 0; i < counts[split]; i++)
            if (write_one(c, (TraySplit)split, TRAY_GOOD, folders[split], i, err))
                return -1;
    for (int d = TRAY_MISSING; d < TRAY_DEFECT_COUNT; d++) {
        int structural = d >= TRAY_SCRATCH;
        const char *folder = structural ? "test/structural_anomalies" : "test/logical_anomalies";
        for (int i = 0; i < N_EACH; i++)
            if (write_one(c, TRAY_TEST_DEFECT, (TrayDefect)d, folder, number[structural]++, err))
                return -1;
    }
    return 0;
}

/* Copy the table unchanged. */
static int write_table(const SynthOutput *out, const char *table, const char *category, Error *err)
{
    size_t n;
    char path[PATH_MAX];
    uint8_t *bytes = file_read(table, 1 << 20, &n, err);
    int status = !bytes ? -1
                 : snprintf(path, sizeof path, "%s/%s/defects_config.json", out->tmp, category) < PATH_MAX
                     ? file_write(path, bytes, n, err)
                     : fail(err, "%s: the path is too long", out->dir);
    free(bytes);
    return status;
}

static int write_category(const SynthOutput *out, const char *tables, const char *category, uint64_t seed,
                          Error *err)
{
    char path[PATH_MAX];
    DefectTable *table = malloc(sizeof *table);
    SynthTrayOptions o = synth_tray_defaults();
    o.seed = seed;
    o.width = o.height = SIDE;
    int status = table ? 0 : fail_memory(err, "a defect table", sizeof *table);
    if (!status)
        status = snprintf(path, sizeof path, "%s/%s/defects_config.json", tables, category) < PATH_MAX
                     ? defect_table_read(table, path, err)
                     : fail(err, "%s: the path is too long", tables);
    Category c = {.name = category, .out = out, .values = status ? (Values){0} : values_of(table)};
    free(table);
    if (!status && c.values.n == 0)
        status = fail(err, "%s: there are no defects in this table", path);
    TrayProduct *product = status ? NULL : tray_product_new(&o, err);
    if (!product)
        return -1;
    c.product = product;
    status = write_images(&c, err) || write_table(out, path, category, err) ? -1 : 0;
    tray_product_free(product);
    return status;
}

int synth_loco(const char *tables, const char *dir, uint64_t seed, Error *err)
{
    static const char *const categories[] = {"breakfast_box", "juice_bottle", "pushpins", "screw_bag",
                                             "splicing_connectors"};
    SynthOutput out;
    if (synth_output_open(&out, dir, err))
        return -1;
    for (size_t i = 0; i < sizeof categories / sizeof *categories; i++)
        if (write_category(&out, tables, categories[i], seed * 5 + i, err)) {
            synth_output_drop(&out);
            return -1;
        }
    return synth_output_commit(&out, err);
}
