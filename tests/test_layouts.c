/* test_layouts.c - data sets in the layouts that people have: which images and masks are found, what is
 * told, and which folders `bank` refuses. And masks in their forms. */
#include <stdarg.h>
#include <unistd.h>

#include "eval/dataset.h"
#include "eval/truth.h"
#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"
#include "test.h"

static char folder[] = "/tmp/samlad_test_layouts.XXXXXX"; /* the tests run in it. */
static char start[512];                                   /* where they were started */

enum { WIDTH = 6, HEIGHT = 4 };
static uint8_t photo[3 * WIDTH * HEIGHT], defect[WIDTH * HEIGHT], red_defect[4 * WIDTH * HEIGHT];

/* Write the files, separated by blanks, in the folder `root`, after removing it. A name with a bar is a
 * mask: it is written without the bar. One with a ^ is a mask in colour. A name that ends in '/' is an empty folder. */
static int make(const char *root, const char *files)
{
    char text[4096], path[512], dir[512];
    Error err = {""};
    int status = dir_remove(root, &err);
    snprintf(text, sizeof text, "%s", files);
    for (char *next = NULL, *name = strtok_r(text, " ", &next); name && !status;
         name = strtok_r(NULL, " ", &next)) {
        char *bar = strpbrk(name, "|^"), kind = bar ? *bar : ' ';
        if (bar)
            memmove(bar, bar + 1, strlen(bar));
        snprintf(path, sizeof path, "%s/%s", root, name);
        snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path, '/') - path), path);
        status = dir_make(dir, &err);
        if (!status && name[strlen(name) - 1] != '/')
            status = has_ending(name, (const char *const[]){".tiff", NULL}) ? file_write(path, "II*", 3, &err)
                     : kind == '|' ? png_write(path, defect, WIDTH, HEIGHT, 1, 8, &err)
                     : kind == '^' ? png_write(path, red_defect, WIDTH, HEIGHT, 4, 8, &err)
                                   : png_write(path, photo, WIDTH, HEIGHT, 3, 8, &err);
    }
    CHECK_MSG(!status, "%s", err.message);
    return status;
}

typedef struct Text {
    char text[4096];
    size_t n;
} Text;

static void put(Text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(Text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    t->n += (size_t)vsnprintf(t->text + t->n, sizeof t->text - t->n, format, args);
    va_end(args);
    if (t->n >= sizeof t->text)
        t->n = sizeof t->text - 1;
}

/* The path below the category's folder; whole when it lies elsewhere. */
static const char *shown(const DatasetCategory *c, const char *path)
{
    const size_t n = strlen(c->dir);
    return strncmp(path, c->dir, n) == 0 && path[n] == '/' ? path + n + 1 : path;
}

/* "NORMAL...; KIND/STEM=MASK,MASK ...": a plus marks good ones. */
static void describe(Text *t, const DatasetCategory *c)
{
    for (int i = 0; i < c->n_normal; i++)
        put(t, "%s%s", i ? " " : "", shown(c, c->normal[i]));
    put(t, ";");
    for (int i = 0; i < c->n_images; i++) {
        const DatasetImage *image = &c->images[i];
        put(t, " %s%s/%s", image->normal ? "+" : "", image->kind, image->stem);
        for (int m = 0; m < image->n_masks; m++)
            put(t, "%s%s", m ? "," : "=", shown(c, image->masks[m]));
    }
}

/* List and check the data set. Its categories go to `t`, one a line; then notes and problems. */
static void list(Text *t, const char *root, const CategoryRequest *layout)
{
    Dataset d;
    Error err = {""};
    Problems problems = {0};
    const DatasetLook look = {.with_bank = 1};
    DatasetRequest request = {.kind = DATASET_AUTO};
    if (layout)
        request.layout = *layout;
    *t = (Text){.n = 0};
    if (dataset_open(&d, root, &request, &problems, &err)) {
        put(t, "%s", err.message);
        return;
    }
    dataset_check(&d, &look, &problems);
    for (int i = 0; i < d.n; i++) {
        put(t, "%s%s: ", i ? "\n" : "", d.categories[i].name);
        describe(t, &d.categories[i]);
    }
    for (int i = 0; i < d.notes.n; i++)
        put(t, "\n%s", d.notes.sentences[i]);
    for (int i = 0; i < problems.n; i++)
        put(t, "\nproblem: %s", problems.sentences[i]);
    problems_free(&problems);
    dataset_free(&d);
}

static void check_list(const char *files, const CategoryRequest *layout, const char *expected)
{
    Text t;
    if (make("s", files))
        return;
    list(&t, "s", layout);
    CHECK_MSG(strcmp(t.text, expected) == 0, "%s\n    lists as\n%s\n    expected\n%s", files, t.text,
              expected);
}

/* `bank` of the folder: the sentence of its refusal, "" when it is taken. */
static void check_bank(const char *files, const GivenFolders *given, const char *expected)
{
    Error err = {""};
    const GivenFolders none = {0};
    if (make("s", files))
        return;
    int status = folder_refuse_mixed("s", given ? given : &none, &err);
    CHECK_MSG((status != 0) == (*expected != '\0') && strcmp(err.message, expected) == 0,
              "%s\n    %d: '%s'\n    expected '%s'", files, status, err.message, expected);
}

static void test_names(void)
{
    static const struct {
        const char *name;
        FolderRole role;
    } names[] = {{"Good", FOLDER_NORMAL},
                 {"OK", FOLDER_NORMAL},
                 {"normal_dir", FOLDER_NORMAL},
                 {"Defect-Free", FOLDER_NORMAL},
                 {"TRAIN", FOLDER_TRAIN},
                 {"test_public", FOLDER_TEST},
                 {"NG", FOLDER_ANOMALOUS},
                 {"ko", FOLDER_ANOMALOUS},
                 {"abnormal_dir", FOLDER_ANOMALOUS},
                 {"Ground Truth", FOLDER_MASKS},
                 {"gt", FOLDER_MASKS},
                 {"mask_dir", FOLDER_MASKS},
                 {"masks", FOLDER_MASKS},
                 {"scratch", FOLDER_OTHER},
                 {"_dir", FOLDER_OTHER},
                 {"goods", FOLDER_OTHER},
                 {"logical_anomalies", FOLDER_OTHER}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK_MSG(folder_role(names[i].name) == names[i].role, "%s", names[i].name);
}

/* The published sets, and those of other programs. */
static void test_published(void)
{
    check_list("train/good/0.png test/good/0.png test/hole/0.png ground_truth/hole/|0_mask.png", NULL,
               "s: train/good/0.png; +good/0 hole/0=ground_truth/hole/0_mask.png"); /* MVTec AD, MPDD */
    check_list("train/good/0.png validation/good/0.png test/good/0.png test/a/0.png ground_truth/a/0/|0.png "
               "ground_truth/a/0/|1.png",
               NULL,
               "s: train/good/0.png; +good/0 a/0=ground_truth/a/0/0.png,ground_truth/a/0/1.png"); /* LOCO */
    check_list("can/train/good/0_r.png can/validation/good/0_r.png can/test_public/good/0_r.png "
               "can/test_public/bad/0_r.png can/test_public/ground_truth/bad/|0_r_mask.png "
               "can/test_private/0.png can/test_private_mixed/0.png can/test_private_mixed/1.png",
               NULL,
               "can: train/good/0_r.png; +good/0_r bad/0_r=test_public/ground_truth/bad/0_r_mask.png\n"
               "s/can/test_private: 1 image is left out: they have no labels\n"
               "s/can/test_private_mixed: 2 images are left out: they have no labels"); /* MVTec AD 2 */
    check_list("01/train/ok/0.ppm 01/test/ok/0.png 01/test/ko/0.ppm 01/ground_truth/ko/|0.png "
               "02/train/ok/0.png 02/test/ok/0.png 02/test/ko/1.png 02/ground_truth/ko/|1.png",
               NULL,
               "01: train/ok/0.ppm; +ok/0 ko/0=ground_truth/ko/0.png\n"
               "02: train/ok/0.png; +ok/0 ko/1=ground_truth/ko/1.png"); /* BTAD */
    check_list("train/good/rgb/0.png train/good/xyz/0.tiff test/good/rgb/0.png test/good/xyz/0.tiff "
               "test/bent/rgb/0.png test/bent/xyz/0.tiff test/bent/gt/|0.png",
               NULL, "s: train/good/rgb/0.png; +good/0 bent/0=test/bent/gt/0.png"); /* MVTec 3D-AD */
    check_list("OK/S1/c_OK_C1.png OK/S2/c_OK_C1.png NG/AK/S1/c_NG.ppm NG/AK/S1/|c_NG.png NG/BX/S9/d_NG.ppm "
               "NG/BX/S9/|d_NG.png",
               &(CategoryRequest){.hold_out = 1},
               "s: OK/S1/c_OK_C1.png; +good/S2/c_OK_C1 AK/S1/c_NG=NG/AK/S1/c_NG.png "
               "BX/S9/d_NG=NG/BX/S9/d_NG.png"); /* Real-IAD */
    check_list("normal_dir/0.png normal_test_dir/1.png abnormal_dir/2.png mask_dir/|2.png", NULL,
               "s: normal_dir/0.png; +normal_test_dir/1 abnormal_dir/2=mask_dir/2.png");
}

static void test_own_folders(void)
{
    check_list("train/0.png test/OK/0.png test/NG/b/0.png gt/NG/|0.png", NULL,
               "s: train/0.png; +OK/0 NG/b/0=gt/NG/0.png"); /* flat, and deeper */
    check_list("train/good/a/0.png test/good/a/0.png test/bad/a/0.png test/bad/b/0.png masks/bad/b/|0.png",
               NULL, "s: train/good/a/0.png; +good/a/0 bad/a/0 bad/b/0=masks/bad/b/0.png");
    check_list("good/0.png Bad/1.png Bad/2.png", NULL, "s: good/0.png; Bad/1 Bad/2");
    check_list("normal/0.png good/1.png scratch/2.png masks/scratch/|2.png", NULL,
               "s: normal/0.png; +good/1 scratch/2=masks/scratch/2.png");
    check_list("train/good/0.png train/bad/0.png test/good/1.png test/bad/1.png other/2.png test/3.png", NULL,
               "s: train/good/0.png; +good/1 bad/1\n"
               "s/train/bad: 1 image is left out: they lie beside the normal ones\n"
               "s/other: 1 image is left out: they lie beside the folder of tests\n"
               "s/test: 1 image is left out: no folder tells whether they are normal");
    check_list("good/0.png bad/1.png out/records/ out/run.json out/pictures/s/test/bad/1_heat.png", NULL,
               "s: good/0.png; bad/1"); /* the folder of a run */
    check_list(
        "a/0.png b/1.png", NULL,
        "s: no data set is recognised here: expected train/good and test, or good and bad, or folders with "
        "these, or split_csv/1cls.csv; or name the folder with --normal (see samlad eval --help)");
    check_list(
        "train/0.png train/NG/1.png test/good/0.png", NULL,
        "s/train/NG/1.png: anomalous images would be taken for normal ones: give the folder of the normal "
        "ones alone");
    check_list(
        "train/good/0.png", NULL,
        "s: train/good/0.png;\nproblem: s: there are no test images (--hold-out N keeps some of the normal "
        "ones)");
}

/* Folders that the user names: in the data set, or anywhere. */
static void test_given_folders(void)
{
    const CategoryRequest in = {.given = {"fine", "broken", "labels"}};
    const CategoryRequest out = {.given = {"s/fine", "s/broken", "s/labels/"}, .hold_out = 1};
    const char *files = "fine/0.png fine/1.png test/good/2.png broken/3.png labels/|3_label.png";
    check_list(files, &in, "s: fine/0.png fine/1.png; +good/2 broken/3=labels/3_label.png");
    check_list("fine/0.png fine/1.png broken/a/3.png broken/b/3.png labels/a/|3.png", &out,
               "s: fine/0.png; +good/1 a/3=labels/a/3.png b/3");
    check_list("p/fine/0.png p/broken/3.png p/labels/|3.png q/fine/0.png q/broken/1.png", &in,
               "p: fine/0.png; broken/3=labels/3.png\nq: fine/0.png; broken/1");
    check_list(files, &(CategoryRequest){.given = {.normal = "nowhere"}},
               "--normal nowhere: there is no such folder, neither here nor in s");
    /* without a folder above them: the normal images are the category */
    Text t;
    if (make("s", files))
        return;
    list(&t, "s/fine", &out);
    CHECK_MSG(strcmp(t.text, "fine: 0.png; +good/1 broken/3=s/labels/3_label.png") == 0, "%s", t.text);
}

static void test_hold_out(void)
{
    const char *files = "good/0.png good/1.png good/2.png good/3.png good/4.png bad/9.png";
    check_list(files, &(CategoryRequest){.hold_out = 2},
               "s: good/0.png good/2.png good/4.png; +good/1 +good/3 bad/9");
    check_list(files, &(CategoryRequest){.hold_out = 1},
               "s: good/0.png good/1.png good/3.png good/4.png; +good/2 bad/9");
    check_list(files, &(CategoryRequest){.hold_out = 5},
               "s: --hold-out 5 of 5 normal images leaves none for the bank");
    check_list("train/good/0.png test/good/0.png test/bad/1.png", &(CategoryRequest){.hold_out = 1},
               "s/test: there are good test images, so --hold-out would change the bank for nothing");
}

static void test_mask_names(void)
{
    static const char *const names[] = {"0.PNG",    "0_mask.png", "0_gt.png",  "0_label.png",
                                        "0_GT.png", "0_Mask.pgm", "0.ppm.png", "0.ppm_mask.png"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int by_kind = 0; by_kind <= 1; by_kind++) {
            char files[256], expected[256];
            snprintf(files, sizeof files, "good/0.png bad/0.ppm masks/%s|%s", by_kind ? "bad/" : "",
                     names[i]);
            snprintf(expected, sizeof expected, "s: good/0.png; bad/0=masks/%s%s", by_kind ? "bad/" : "",
                     names[i]);
            check_list(files, NULL, expected);
        }
    check_list("good/0.png bad/0.png bad/|0_mask.png", NULL, "s: good/0.png; bad/0=bad/0_mask.png");
    /* masks of good images, and those of none */
    check_list("train/0.png test/good/0.png test/bad/0.png gt/|0.png gt/good/|0.png gt/bad/|7.png gt/|x.png",
               NULL,
               "s: train/0.png; +good/0=gt/good/0.png bad/0=gt/0.png\n"
               "s/gt/x.png: this mask belongs to no test image\n"
               "s/gt/bad/7.png: this mask belongs to no test image\n"
               "s/gt/good/0.png: this mask of a good image shows a defect: it is not used");
    check_list("good/0.png bad/0.png dent/0.png masks/|0.png", NULL,
               "s: good/0.png; bad/0 dent/0\n"
               "s/masks/0.png: this mask fits s/bad/0.png and s/dent/0.png: it is not used");
    /* two masks of one image that are no parts of one */
    check_list(
        "good/0.png bad/0.ppm masks/bad/|0.png masks/bad/|0_mask.png", NULL,
        "s: good/0.png; bad/0=masks/bad/0.png,masks/bad/0_mask.png\n"
        "s/masks/bad/0.png and s/masks/bad/0_mask.png: this image has both masks: they count together");
    check_list("good/0.png bad/0.ppm masks/bad/0/|0.png masks/bad/0/|1.png", NULL,
               "s: good/0.png; bad/0=masks/bad/0/0.png,masks/bad/0/1.png");
    check_list("good/0.png bad/0.ppm masks/bad/|0.png masks/bad/0/|1.png", NULL,
               "s: good/0.png; bad/0=masks/bad/0.png,masks/bad/0/1.png\n"
               "s/masks/bad/0.png and s/masks/bad/0/1.png: this image has both masks: they count together");
    /* beside the image, grey or in colour; a photo is none */
    check_list("good/0.png bad/0.ppm bad/|0.png", NULL, "s: good/0.png; bad/0=bad/0.png");
    check_list("good/0.png bad/0.ppm bad/^0.png", NULL, "s: good/0.png; bad/0=bad/0.png");
    /* two files of one stem: both are judged, and share a mask that is not named after one of them */
    check_list("good/0.png bad/a.png bad/a.ppm masks/bad/|a.png", NULL,
               "s: good/0.png; bad/a.png=masks/bad/a.png bad/a.ppm=masks/bad/a.png");
    check_list("good/0.png bad/a.png bad/a.ppm bad/a.ppm.ppm", NULL,
               "s: good/0.png; bad/a.png bad/a.ppm bad/a.ppm.ppm");
}

static void test_bank_folders(void)
{
    const char *const taken[] = {"0.png 1.png",
                                 "a/0.png b/c/1.png notes/",
                                 "good/0.png",
                                 "train/good/0.png validation/good/1.png",
                                 "good/rgb/0.png good/xyz/0.tiff",
                                 "c1/train/good/0.png c2/train/good/0.png",
                                 "good/0.png bad/"};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        check_bank(taken[i], NULL, "");
    check_bank("good/0.png bad/1.png ground_truth/bad/|1.png", NULL,
               "s/bad/1.png: anomalous images would be taken for normal ones: give s/good instead");
    check_bank("OK/S1/0.png NG/a/S1/1.png", NULL,
               "s/NG/a/S1/1.png: anomalous images would be taken for normal ones: give s/OK instead");
    check_bank("normal_dir/0.png mask_dir/|1.png", NULL,
               "s/mask_dir/1.png: masks would be taken for normal ones: give s/normal_dir instead");
    check_bank(
        "can/train/good/0.png can/test_public/bad/0.png", NULL,
        "s/can/test_public: test images would be taken for normal ones: give s/can/train/good instead");
    check_bank("01/train/ok/0.png 01/test/ko/0.png", NULL,
               "s/01/test: test images would be taken for normal ones: give s/01/train/ok instead");
    check_bank("train/0.png test/0.png", NULL,
               "s/test: test images would be taken for normal ones: give s/train instead");
    check_bank("ok/0.png 1.png", NULL,
               "s/1.png: test images would be taken for normal ones: give s/ok instead");
    check_bank("train/good/0.png train/hole/0.png", NULL,
               "s/train/hole/0.png: test images would be taken for normal ones: give s/train/good instead");
    check_bank("0.png gt/|0.png", NULL,
               "s/gt/0.png: masks would be taken for normal ones: give the folder of the normal ones alone");
    check_bank(
        "a/0.png b/KO/1.png", NULL,
        "s/b/KO/1.png: anomalous images would be taken for normal ones: give the folder of the normal ones "
        "alone");
    /* names of several words, and the folder itself */
    check_bank("0_normal/0.png 1_defect/1.png", NULL,
               "s/1_defect/1.png: anomalous images would be taken for normal ones: give the folder of the "
               "normal ones "
               "alone");
    check_bank("train_good/0.png test-bad/1.png", NULL,
               "s/test-bad/1.png: anomalous images would be taken for normal ones: give the folder of the "
               "normal ones "
               "alone");
    check_bank("a/0.png test_images/1.png", NULL,
               "s/test_images: test images would be taken for normal ones: give the folder of the normal "
               "ones alone");
    check_bank("pass/0.png fail/1.png", NULL,
               "s/fail/1.png: anomalous images would be taken for normal ones: give s/pass instead");
    check_bank(
        "a/0.png test2/1.png", NULL,
        "s/test2: test images would be taken for normal ones: give the folder of the normal ones alone");
    check_bank("a/0.png ground_truth_2/|1.png", NULL,
               "s/ground_truth_2/1.png: masks would be taken for normal ones: give the folder of the normal "
               "ones alone");
    check_bank("no_defect/0.png free-of-defects/1.png a/2.png", NULL, "");
    check_bank("good/0.png x/1.png y/2.png", &(GivenFolders){.anomalous = "x", .masks = "y"}, "");
}

/* ---- masks ------------------------------------------------------------------------------------------*/

/* The mask file's pixels as a row of 0 and 1; "" after a failure. */
static void read_pixels(char text[ERROR_SIZE], const char *path, const MaskFit *fit)
{
    Truth truth;
    Error err;
    text[0] = '\0';
    if (truth_fit(&truth, fit, &path, 1, NULL, &err)) {
        snprintf(text, ERROR_SIZE, "%s", err.message);
        return;
    }
    const size_t n = (size_t)fit->width * (size_t)fit->height;
    for (size_t p = 0; p < n; p++)
        text[p] = (char)('0' + truth.anomalous[p]), text[p + 1] = '\0';
    truth_free(&truth);
}

static void check_pixels(const char *path, const MaskFit *fit, const char *expected)
{
    char text[ERROR_SIZE];
    read_pixels(text, path, fit);
    CHECK_MSG(strcmp(text, expected) == 0, "%s: %s, expected %s", path, text, expected);
}

static void test_mask_forms(void)
{
    const MaskFit fit = {.width = 3, .height = 1};
    Error err;
    static const uint8_t indices[3] = {0, 1, 0}, from_one[3] = {1, 2, 1}, black_first[9] = {0, 0, 0, 9, 0, 0},
                         white_first[9] = {255, 255, 255}, unused_first[9] = {7, 7, 7, 0, 0, 0, 0, 0, 9};
    CHECK(!png_write_indexed("p.png", indices, 3, 1, black_first, 2, NULL, &err));
    check_pixels("p.png", &fit, "010");
    CHECK(!png_write_indexed("p.png", indices, 3, 1, white_first, 2, NULL, &err));
    check_pixels("p.png", &fit, "101");
    CHECK(!png_write_indexed("p.png", from_one, 3, 1, unused_first, 3, NULL, &err));
    check_pixels("p.png", &fit, "010");
    static const uint8_t alpha[12] = {5, 5, 5, 0, 5, 5, 5, 200, 5, 5, 5, 0},
                         opaque[12] = {0, 0, 0, 255, 0, 8, 0, 255, 0, 0, 0, 255},
                         grey_alpha[6] = {0, 0, 0, 1, 0, 0};
    CHECK(!png_write("p.png", alpha, 3, 1, 4, 8, &err));
    check_pixels("p.png", &fit, "010");
    CHECK(!png_write("p.png", opaque, 3, 1, 4, 8, &err));
    check_pixels("p.png", &fit, "010");
    CHECK(!png_write("p.png", grey_alpha, 3, 1, 2, 8, &err));
    check_pixels("p.png", &fit, "010");
}

/* JPEG: from 128 on, in any channel. */
static void test_jpeg_mask(void)
{
    static const char *const golden = "tests/golden/jpeg.safetensors";
    Error err = {""};
    Image image;
    Truth truth;
    char back[512], path[600];
    REQUIRE(getcwd(back, sizeof back) && chdir(start) == 0);
    Safetensors *st = st_open(golden, &err);
    const StTensor *jpeg = st ? st_find(st, "wide_quant.file") : NULL;
    REQUIRE(jpeg && chdir(back) == 0);
    snprintf(path, sizeof path, "%s/mask.JPG", back);
    const char *file = path;
    CHECK(!file_write(path, jpeg->data, jpeg->n_bytes, &err));
    REQUIRE(!image_read(&image, path, &err));
    const MaskFit fit = {.width = image.width, .height = image.height};
    REQUIRE(!truth_fit(&truth, &fit, &file, 1, NULL, &err));
    size_t n_wrong = 0, n_set = 0;
    for (size_t p = 0; p < (size_t)image.width * (size_t)image.height; p++) {
        int most = 0;
        for (int c = 0; c < image.channels; c++) {
            const int v = ((const uint8_t *)image.samples)[p * (size_t)image.channels + (size_t)c];
            most = v > most ? v : most;
        }
        n_wrong += truth.anomalous[p] != (most >= 128);
        n_set += truth.anomalous[p];
    }
    CHECK_MSG(n_wrong == 0 && n_set > 0 && n_set < (size_t)image.width * (size_t)image.height, "%zu, %zu",
              n_wrong, n_set);
    truth_free(&truth), image_free(&image), st_close(st);
}

/* Of another size: refused, or resized by the centres of its pixels. */
static void test_mask_sizes(void)
{
    const MaskFit strict = {.width = 6, .height = 2}, resized = {.width = 6, .height = 2, .resize = 1},
                  smaller = {.width = 2, .height = 1, .resize = 1};
    Error err;
    static const uint8_t mask[3] = {0, 9, 0}, wide[8] = {0, 9, 9, 9, 0, 0, 0, 0};
    CHECK(!png_write("p.png", mask, 3, 1, 1, 8, &err));
    check_pixels("p.png", &strict,
                 "p.png: the ground truth is 3x1, its image 6x2 (--resize-masks resizes such masks)");
    check_pixels("p.png", &resized, "001100001100");
    CHECK(!png_write("p.png", wide, 8, 1, 1, 8, &err));
    check_pixels("p.png", &smaller, "10");
}

/* A mask that lies as the rows of its photo do. 6: turned clockwise; 3: by half; 2: mirrored. */
static void test_turned_masks(void)
{
    Error err;
    static const uint8_t upright[6] = {1, 0, 0, 0, 1, 1}, /* 3 wide */
        stored6[6] = {0, 1, 0, 1, 1, 0};                  /* 2 wide, 3 high */
    const MaskFit on_side = {.width = 3, .height = 2, .orientation = 6},
                  half = {.width = 3, .height = 2, .orientation = 3},
                  mirrored = {.width = 3, .height = 2, .orientation = 2},
                  square = {.width = 2, .height = 2, .orientation = 6};
    CHECK(!png_write("p.png", stored6, 2, 3, 1, 8, &err));
    check_pixels("p.png", &on_side, "100011");
    CHECK(!png_write("p.png", upright, 3, 2, 1, 8, &err));
    check_pixels("p.png", &on_side, "100011"); /* its shape says that it is turned already. */
    check_pixels("p.png", &half, "110001");
    check_pixels("p.png", &mirrored, "001110");
    CHECK(!png_write("p.png", (const uint8_t[]){1, 0, 0, 0}, 2, 2, 1, 8, &err));
    check_pixels("p.png", &square, "0100");
    CHECK(mask_fits_both_ways(&half) && mask_fits_both_ways(&square) && !mask_fits_both_ways(&on_side));
    /* a mask whose own Exif data say that it lies upright (1) is not turned. */
    size_t n;
    uint8_t with_exif[256], *file = file_read("p.png", sizeof with_exif, &n, &err);
    static const uint8_t chunk[] = {0, 0, 0, 26, 'e', 'X', 'I', 'f', 'M', 'M', 0,   '*', 0,
                                    0, 0, 8, 0,  1,   1,   18,  0,   3,   0,   0,   0,   1,
                                    0, 1, 0, 0,  0,   0,   0,   0,   19,  192, 117, 231};
    enum { HEAD = 8 + 25 }; /* the signature and IHDR */
    REQUIRE(file && n + sizeof chunk <= sizeof with_exif);
    memcpy(with_exif, file, HEAD);
    memcpy(with_exif + HEAD, chunk, sizeof chunk);
    memcpy(with_exif + HEAD + sizeof chunk, file + HEAD, n - HEAD);
    CHECK(!file_write("p.png", with_exif, n + sizeof chunk, &err));
    free(file);
    CHECK(mask_tells_its_turn("p.png"));
    check_pixels("p.png", &square, "1000");
}

static void test_odd_masks(void)
{
    Error err;
    static uint8_t none[WIDTH * HEIGHT], all[WIDTH * HEIGHT];
    Text t;
    memset(all, 9, sizeof all);
    if (make("s", "good/0.png bad/0.png bad/1.png masks/|0.png masks/|1.png"))
        return;
    CHECK(!png_write("s/masks/0.png", none, WIDTH, HEIGHT, 1, 8, &err) &&
          !png_write("s/masks/1.png", all, WIDTH, HEIGHT, 1, 8, &err));
    list(&t, "s", NULL);
    CHECK_MSG(strstr(t.text, "s/masks/0.png: this mask is empty: no pixel of its image counts as a defect\n"
                             "s/masks/1.png: this mask covers its whole image"),
              "%s", t.text);
}

int main(void)
{
    if (!getcwd(start, sizeof start) || !mkdtemp(folder) || chdir(folder)) {
        perror(folder);
        return 1;
    }
    for (int i = 0; i < WIDTH * HEIGHT; i++)
        defect[i] = red_defect[4 * i] = i % 5 == 1 ? 255 : 0, red_defect[4 * i + 3] = 255;
    for (int i = 0; i < 3 * WIDTH * HEIGHT; i++)
        photo[i] = (uint8_t)(i * i >> 2);
    RUN(test_names);
    RUN(test_published);
    RUN(test_own_folders);
    RUN(test_given_folders);
    RUN(test_hold_out);
    RUN(test_mask_names);
    RUN(test_bank_folders);
    RUN(test_mask_forms);
    RUN(test_jpeg_mask);
    RUN(test_mask_sizes);
    RUN(test_turned_masks);
    RUN(test_odd_masks);
    dir_remove(folder, NULL);
    return test_summary();
}
