/* test_mvtec.c - our metrics against MVTec's own evaluation scripts and scikit-learn, on the same masks
 * and maps (tests/golden/mvtec.safetensors, made by make_golden_mvtec.py). Masks go through PNG files and
 * maps through TIFF files, as in a real evaluation.
 *
 *   test_mvtec --write-maps ad.bottle DIR    writes the golden's maps to DIR/0.tiff ..
 *
 * make_golden_mvtec.py reads these maps with tifffile, PIL and the scripts. */
#include <unistd.h>

#include "eval/metrics.h"
#include "io/file.h"
#include "io/image.h"
#include "method_golden.h"

#define TMP "test_mvtec.tmp"

/* A category's maps [n][height][width] and the kind of each image. */
typedef struct Category {
    const char *name; /* "ad.bottle" */
    int n, width, height;
    const float *maps;
    const uint8_t *kinds; /* [n] 0: good */
} Category;

static int category_open(Category *c, const char *name)
{
    const StTensor *maps = golden_tensor("%s.maps", name), *kinds = golden_tensor("%s.kinds", name);
    if (!maps->data || !kinds->data || (size_t)maps->shape[0] != kinds->n_elements)
        return 0;
    *c = (Category){name,       (int)maps->shape[0], (int)maps->shape[2], (int)maps->shape[1],
                    maps->data, kinds->data};
    return 1;
}

static size_t n_pixels(const Category *c)
{
    return (size_t)c->width * (size_t)c->height;
}

/* found[n] equals the golden's float64 tensor, to the project's tolerance. */
static void check_official(const double *found, size_t n, const char *category, const char *what)
{
    const StTensor *t = golden_tensor("%s.%s", category, what);
    if (!t->data || t->dtype != ST_F64 || t->n_elements != n) {
        test_ok = 0;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double official = ((const double *)t->data)[i];
        CHECK_MSG(fabs(found[i] - official) <= 1e-6, "%s.%s[%zu]: %.12g, official %.12g", category, what, i,
                  found[i], official);
    }
}

static void check_ranks(const RankMetrics *m, const double *by_sklearn, const char *what)
{
    CHECK_MSG(fabs(m->auroc - by_sklearn[0]) <= 1e-12, "%s: AUROC %.15g %.15g", what, m->auroc,
              by_sklearn[0]);
    CHECK_MSG(fabs(m->average_precision - by_sklearn[1]) <= 1e-12, "%s: AP %.15g %.15g", what,
              m->average_precision, by_sklearn[1]);
    CHECK_MSG(fabs(m->best_f1 - by_sklearn[2]) <= 1e-12, "%s: F1 %.15g %.15g", what, m->best_f1,
              by_sklearn[2]);
    CHECK_MSG((double)m->best_f1_threshold == by_sklearn[3], "%s: F1 at %.9g %.9g", what,
              (double)m->best_f1_threshold, by_sklearn[3]);
}

static float map_maximum(const Category *c, int i)
{
    float top = -INFINITY;
    for (size_t p = 0; p < n_pixels(c); p++)
        top = fmaxf(top, c->maps[(size_t)i * n_pixels(c) + p]);
    return top;
}

/* Add one image; its map goes through a TIFF file. */
static int add_image(PixelScores *scores, const Category *c, int i, int group, const Truth *truth, Error *err)
{
    int width, height;
    if (tiff_write_float(TMP ".tiff", c->maps + (size_t)i * n_pixels(c), c->width, c->height, err))
        return -1;
    float *map = tiff_read_float(TMP ".tiff", &width, &height, err);
    unlink(TMP ".tiff");
    int status = map ? pixel_scores_add(scores, group, map, width, height, truth, c->name, err) : -1;
    free(map);
    return status;
}

/* ---- MVTec AD ----------------------------------------------------------------------------------------*/

static void check_ad(const char *name)
{
    Error err = {""};
    Category c;
    REQUIRE(golden_open("mvtec") && category_open(&c, name));
    const uint8_t *masks = GOLDEN_U8("%s.masks", name);
    const double *sklearn_pixels = golden_tensor("%s.pixels", name)->data,
                 *sklearn_images = golden_tensor("%s.images", name)->data;
    float tops[2][64];
    size_t n_tops[2] = {0, 0};
    PixelScores *scores = pixel_scores_new(".", &err);
    REQUIRE(scores && masks && sklearn_pixels && sklearn_images && c.n <= 64);
    for (int i = 0; i < c.n; i++) {
        Truth truth;
        const char *file = TMP ".png";
        REQUIRE(png_write(file, masks + (size_t)i * n_pixels(&c), c.width, c.height, 1, 8, &err) == 0);
        CHECK_MSG(truth_read(&truth, c.width, c.height, &file, 1, NULL, &err) == 0, "%s", err.message);
        unlink(file);
        int anomalous = truth.n_regions > 0; /* by the mask, not by the folder, as in the script */
        tops[anomalous][n_tops[anomalous]++] = map_maximum(&c, i);
        CHECK_MSG(add_image(scores, &c, i, c.kinds[i], &truth, &err) == 0, "%s", err.message);
        truth_free(&truth);
    }
    PixelMetrics m;
    RankMetrics images;
    REQUIRE(pixel_scores_measure(scores, ~0u, &m, &err) == 0 &&
            rank_metrics(tops[0], n_tops[0], tops[1], n_tops[1], &images, &err) == 0);
    check_official(m.au_spro, SPRO_LIMITS, name, "au_pro");
    check_official(&images.auroc, 1, name, "image_auroc");
    check_ranks(&m.pixels, sklearn_pixels, "pixels");
    check_ranks(&images, sklearn_images, "images");
    pixel_scores_free(scores);
}

static void test_ad(void)
{
    check_ad("ad.bottle");
}

static void test_ad_ties(void)
{
    check_ad("ad.cable");
}

static void test_ad_all_equal(void)
{
    check_ad("ad.capsule");
}

/* ---- MVTec LOCO AD -------------------------------------------------------------------------------------*/

static int write_table(DefectTable *table, Error *err)
{
    const char *text = st_meta(golden, "defects_config");
    if (!text || file_write(TMP ".json", text, strlen(text), err))
        return -1;
    int status = defect_table_read(table, TMP ".json", err);
    unlink(TMP ".json");
    return status;
}

/* The truth of image i, through its PNG files, one a defect. */
static int read_defects(Truth *truth, const Category *c, int i, const DefectTable *table, Error *err)
{
    const StTensor *owners = golden_tensor("%s.owners", c->name);
    const uint8_t *channels = GOLDEN_U8("%s.channels", c->name);
    char names[8][32];
    const char *paths[8];
    size_t n = 0;
    int status = 0;
    for (size_t k = 0; k < owners->n_elements && n < 8 && !status; k++)
        if (((const uint8_t *)owners->data)[k] == i) {
            snprintf(names[n], sizeof names[n], TMP ".%zu.png", n);
            paths[n] = names[n];
            status = png_write(names[n++], channels + k * n_pixels(c), c->width, c->height, 1, 8, err);
        }
    status = status ? status : truth_read(truth, c->width, c->height, paths, n, table, err);
    for (size_t k = 0; k < n; k++)
        unlink(names[k]);
    return status;
}

/* tied: the script's image AUROC is known to be wrong (see test_loco_tied_images). */
static void check_loco(const char *name, int tied)
{
    Error err = {""};
    Category c;
    DefectTable table;
    REQUIRE(golden_open("mvtec") && category_open(&c, name) && write_table(&table, &err) == 0);
    const double *sklearn_pixels = golden_tensor("%s.pixels", name)->data,
                 *sklearn_images = golden_tensor("%s.images", name)->data;
    float tops[3][64];
    size_t n_tops[3] = {0, 0, 0};
    PixelScores *scores = pixel_scores_new(".", &err);
    REQUIRE(scores && sklearn_pixels && sklearn_images && c.n <= 64);
    for (int i = 0; i < c.n; i++) {
        Truth truth;
        int kind = c.kinds[i];
        REQUIRE(kind < 3);
        tops[kind][n_tops[kind]++] = map_maximum(&c, i);
        CHECK_MSG(read_defects(&truth, &c, i, &table, &err) == 0, "%s", err.message);
        CHECK_MSG(add_image(scores, &c, i, kind, kind ? &truth : NULL, &err) == 0, "%s", err.message);
        truth_free(&truth);
    }
    PixelMetrics all, m[2];
    RankMetrics images[2];
    double spro[3][SPRO_LIMITS], rocs[3];
    for (int k = 0; k < 2; k++) {
        REQUIRE(pixel_scores_measure(scores, 1u | 2u << k, &m[k], &err) == 0 &&
                rank_metrics(tops[0], n_tops[0], tops[k + 1], n_tops[k + 1], &images[k], &err) == 0);
        memcpy(spro[k], m[k].au_spro, sizeof spro[k]);
        rocs[k] = images[k].auroc;
        check_ranks(&images[k], sklearn_images + 4 * k, "images");
    }
    for (int i = 0; i < SPRO_LIMITS; i++)
        spro[2][i] = (spro[0][i] + spro[1][i]) / 2;
    rocs[2] = (rocs[0] + rocs[1]) / 2;
    check_official(&spro[0][0], 3 * SPRO_LIMITS, name, "au_spro");
    if (!tied)
        check_official(rocs, 3, name, "image_auroc");
    REQUIRE(pixel_scores_measure(scores, 7, &all, &err) == 0);
    check_ranks(&all.pixels, sklearn_pixels, "pixels");
    pixel_scores_free(scores);
}

/* The script as published, with a small --curve_max_distance. */
static void test_loco(void)
{
    check_loco("loco.pushpins", 0);
}

/* The script's classes on all thresholds. */
static void test_loco_continuous(void)
{
    check_loco("loco.screw_bag", 0);
}

/* The script handles equal scores of good and anomalous images wrongly: points of its ROC curve lie beside
 * the ends of the tied groups. It says 0.8 and 0.65; scikit-learn and we say 0.65 and 0.475. If the golden
 * is ever made with corrected scripts, this test fails: then let it compare. */
static void test_loco_tied_images(void)
{
    check_loco("loco.juice_bottle", 1);
    const double *script = golden_tensor("loco.juice_bottle.image_auroc")->data,
                 *sklearn = golden_tensor("loco.juice_bottle.images")->data;
    REQUIRE(script && sklearn);
    CHECK(script[0] - sklearn[0] > 0.1 && script[1] - sklearn[4] > 0.1);
}

/* The script's default search for thresholds, which users will see, is within 1e-3 of the exact curve. */
static void test_loco_default_thresholds(void)
{
    double worst = 0;
    static const char *const names[3] = {"loco.pushpins", "loco.screw_bag", "loco.juice_bottle"};
    REQUIRE(golden_open("mvtec"));
    for (int k = 0; k < 3; k++) {
        const StTensor *exact = golden_tensor("%s.au_spro", names[k]),
                       *found = golden_tensor("%s.au_spro_default", names[k]);
        REQUIRE(exact->data && found->data && exact->n_elements == found->n_elements);
        for (size_t i = 0; i < exact->n_elements; i++)
            worst = fmax(worst, fabs(((const double *)exact->data)[i] - ((const double *)found->data)[i]));
    }
    CHECK_MSG(worst > 1e-5 && worst < 1e-3, "%g", worst);
}

/* ---- what is refused
 * -------------------------------------------------------------------------------------*/

static int read_one(const uint8_t *mask, int channels, const DefectTable *table, Error *err)
{
    Truth truth;
    const char *file = TMP ".png";
    if (png_write(file, mask, 2, 2, channels, 8, err))
        return -2;
    int status = truth_read(&truth, 2, 2, &file, 1, table, err);
    unlink(file);
    if (!status)
        truth_free(&truth);
    return status;
}

static void test_bad_masks(void)
{
    Error err = {""};
    DefectTable table;
    REQUIRE(golden_open("mvtec") && write_table(&table, &err) == 0);
    CHECK(read_one((const uint8_t[4]){0, 7, 7, 0}, 1, &table, &err) == 0);
    CHECK(read_one((const uint8_t[4]){0, 7, 255, 0}, 1, &table, &err) == -1 &&
          strstr(err.message, "7 and 255"));
    CHECK(read_one((const uint8_t[4]){0}, 1, &table, &err) == -1 && strstr(err.message, "empty"));
    CHECK(read_one((const uint8_t[4]){9, 9, 9, 9}, 1, &table, &err) == -1 &&
          strstr(err.message, "pixel value 9"));
    CHECK(read_one((const uint8_t[12]){7, 7, 7}, 3, &table, &err) == -1 && strstr(err.message, "colour"));
    CHECK(read_one((const uint8_t[12]){0, 7, 0}, 3, NULL, &err) == 0);
    CHECK(read_one((const uint8_t[4]){0}, 1, NULL, &err) == 0); /* MVTec AD: an empty mask is a good image */
    Truth truth;
    const char *file = TMP ".png";
    REQUIRE(png_write(file, (const uint8_t[6]){0}, 3, 2, 1, 8, &err) == 0);
    CHECK(truth_read(&truth, 2, 2, &file, 1, NULL, &err) == -1 && strstr(err.message, "3x2"));
    unlink(file);
    CHECK(truth_read(&truth, 2, 2, &file, 1, NULL, &err) == -1 && strstr(err.message, file));
}

static void test_bad_tables(void)
{
    static const struct {
        const char *text, *complaint;
    } cases[] = {
        {"{}", "list"},
        {"[]", "list"},
        {"[{\"defect_name\":\"a\",\"pixel_value\":255,\"saturation_threshold\":1.0}]", "relative_saturation"},
        {"[{\"defect_name\":\"a\",\"pixel_value\":0,\"saturation_threshold\":1.0,\"relative_saturation\":"
         "true}]",
         "pixel_value"},
        {"[{\"defect_name\":\"a\",\"pixel_value\":1.5,\"saturation_threshold\":1.0,\"relative_saturation\":"
         "true}]",
         "pixel_value"},
        {"[{\"defect_name\":\"a\",\"pixel_value\":9,\"saturation_threshold\":1.1,\"relative_saturation\":"
         "true}]",
         "(0, 1]"},
        {"[{\"defect_name\":\"a\",\"pixel_value\":9,\"saturation_threshold\":0.5,\"relative_saturation\":"
         "false}]",
         "whole number of pixels"},
    };
    DefectTable table;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        REQUIRE(file_write(TMP ".json", cases[i].text, strlen(cases[i].text), &err) == 0);
        CHECK_MSG(defect_table_read(&table, TMP ".json", &err) < 0 && strstr(err.message, cases[i].complaint),
                  "%s: '%s'", cases[i].text, err.message);
    }
    unlink(TMP ".json");
}

/* The five real tables, transcribed. */
static void test_real_tables(void)
{
    static const char *const categories[5] = {"breakfast_box", "juice_bottle", "pushpins", "screw_bag",
                                              "splicing_connectors"};
    const char *dir = test_data_dir();
    if (!dir)
        SKIP("SAMLAD_DATA is not set");
    for (int i = 0; i < 5; i++) {
        Error err = {""};
        DefectTable table;
        char path[1024];
        snprintf(path, sizeof path, "%s/loco/%s/defects_config.json", dir, categories[i]);
        CHECK_MSG(defect_table_read(&table, path, &err) == 0, "%s", err.message);
        CHECK(table.by_value[255].name[0]);
    }
}

static int write_maps(const char *name, const char *dir)
{
    Error err = {""};
    Category c;
    char path[1024];
    if (!golden_open("mvtec") || !category_open(&c, name))
        return 1;
    int status = dir_make(dir, &err);
    for (int i = 0; i < c.n && !status; i++) {
        snprintf(path, sizeof path, "%s/%d.tiff", dir, i);
        status = tiff_write_float(path, c.maps + (size_t)i * n_pixels(&c), c.width, c.height, &err);
    }
    if (status)
        printf("%s\n", err.message);
    st_close(golden);
    return status != 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--write-maps") == 0)
        return write_maps(argv[2], argv[3]);
    RUN(test_ad);
    RUN(test_ad_ties);
    RUN(test_ad_all_equal);
    RUN(test_loco);
    RUN(test_loco_continuous);
    RUN(test_loco_tied_images);
    RUN(test_loco_default_thresholds);
    RUN(test_bad_masks);
    RUN(test_bad_tables);
    RUN(test_real_tables);
    st_close(golden);
    return test_summary();
}
