/* test_synth.c - the drawing library and the two synthetic data sets. Areas are exact. The same seed gives
 * the same bytes (also those of tests/golden/synth.txt). The folder's layout is right. The ground truth
 * agrees with the config, and with the image without the defect. Hostile input is refused. */
#include "test.h"

#include <stdint.h>
#include <unistd.h>

#include "eval/draw.h"
#include "eval/synth.h"
#include "io/file.h"
#include "io/image.h"
#include "io/json.h"

static char work_dir[] = "/tmp/samlad-synth-XXXXXX"; /* a folder of our own below /tmp, removed at the end */

static const char *work_path(char path[512], const char *name)
{
    snprintf(path, 512, "%s/%s", work_dir, name);
    return path;
}

/* ---- folders ---- */

/* SHA-256 over all files of a folder, in order of their names. It is over the bytes, or over their meaning
 * (PNGs decoded): the meaning stays when the PNG writer packs better. */
typedef struct {
    char text[1 << 16];
    size_t length;
    int decode, n_files;
} FolderHash;

static void hash_file(FolderHash *hash, const char *path, const char *name)
{
    char hex[65];
    size_t n = 0;
    Error err = {""};
    uint8_t *bytes = file_read(path, 1 << 24, &n, &err);
    CHECK_MSG(bytes, "%s", err.message);
    if (!bytes)
        return;
    size_t length = strlen(name);
    if (hash->decode && length > 4 && strcmp(name + length - 4, ".png") == 0) {
        Image image;
        int status = png_decode(&image, bytes, n, path, &err);
        CHECK_MSG(status == 0, "%s", err.message);
        if (status == 0) {
            sha256(image.samples, (size_t)image.width * (size_t)image.height * (size_t)image.channels, hex);
            image_free(&image);
        }
    } else {
        sha256(bytes, n, hex);
    }
    free(bytes);
    int added = snprintf(hash->text + hash->length, sizeof hash->text - hash->length, "%s %s\n", name, hex);
    CHECK(hash->length + (size_t)added < sizeof hash->text);
    if (hash->length + (size_t)added < sizeof hash->text)
        hash->length += (size_t)added;
    hash->n_files++;
}

static void hash_folder(FolderHash *hash, const char *dir)
{
    char path[1024];
    for (int want_dirs = 0; want_dirs < 2; want_dirs++) {
        size_t n = 0;
        Error err = {""};
        char **names = dir_list(dir, want_dirs, &n, &err);
        CHECK_MSG(names, "%s", err.message);
        for (size_t i = 0; names && i < n; i++) {
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            if (want_dirs)
                hash_folder(hash, path);
            else
                hash_file(hash, path, names[i]);
        }
        free(names);
    }
}

static int folder_hash(const char *dir, int decode, char hex[65])
{
    FolderHash *hash = calloc(1, sizeof *hash);
    if (!hash)
        return -1;
    hash->decode = decode;
    hash_folder(hash, dir);
    sha256(hash->text, hash->length, hex);
    int n = hash->n_files;
    free(hash);
    return n;
}

/* Compare with the line "NAME HEX" of the golden file. */
static void check_golden(const char *name, const char *hex)
{
    char line[256], key[64], value[128];
    FILE *f = fopen("tests/golden/synth.txt", "r");
    REQUIRE(f);
    int found = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%63s %127s", key, value) == 2 && strcmp(key, name) == 0) {
            found = 1;
            CHECK_MSG(strcmp(value, hex) == 0, "%s is %s, the golden file says %s", name, hex, value);
        }
    CHECK_MSG(found, "tests/golden/synth.txt has no line for %s (it is %s)", name, hex);
    fclose(f);
}

static size_t count_entries(const char *dir, const char *sub, int want_dirs)
{
    char path[1024];
    size_t n = 0;
    Error err;
    snprintf(path, sizeof path, "%s/%s", dir, sub);
    char **names = dir_list(path, want_dirs, &n, &err);
    for (size_t i = 0; names && i < n; i++) { /* 000, 001 ... without a gap */
        char expected[32];
        snprintf(expected, sizeof expected, want_dirs ? "%03zu" : "%03zu.png", i);
        CHECK_MSG(strcmp(names[i], expected) == 0, "%s: %s, expected %s", path, names[i], expected);
    }
    free(names);
    return names ? n : 0;
}

static void remove_folder(const char *dir)
{
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    CHECK(system(command) == 0);
}

/* ---- draw.c ---- */

static void test_sine_and_random_numbers(void)
{
    double worst = 0;
    for (int i = -3000; i <= 3000; i++) {
        float turns = (float)i / 911;
        double d = fabs((double)draw_sin(turns) - sin(2 * 3.14159265358979323846 * (double)turns));
        if (d > worst)
            worst = d;
    }
    CHECK_MSG(worst < 3e-7, "draw_sin is off by %g", worst);

    /* the reference values of xoshiro256** for the state 1, 2, 3, 4 */
    static const uint64_t expected[4] = {11520u, 0u, 1509978240u, 1215971899390074240u};
    Rng rng = {{1, 2, 3, 4}};
    for (int i = 0; i < 4; i++)
        CHECK(rng_next(&rng) == expected[i]);

    rng_seed(&rng, 5, 6);
    double sum = 0, squares = 0;
    int counts[7] = {0}, n = 70000;
    for (int i = 0; i < n; i++) {
        double v = (double)rng_normal(&rng);
        sum += v;
        squares += v * v;
        counts[rng_below(&rng, 7)]++;
    }
    CHECK(fabs(sum / n) < 0.02 && fabs(squares / n - 1) < 0.03);
    for (int i = 0; i < 7; i++)
        CHECK_MSG(abs(counts[i] - n / 7) < 500, "%d came %d times", i, counts[i]);
}

/* The sum of all coverage is the exact area, for any place of the outline. */
static double drawn_area(Canvas *canvas, int shape, uint64_t form, float cx, float cy, float angle,
                         float scale)
{
    Look black = {0};
    Part part = {
        .shape = shape, .form = form, .cx = cx, .cy = cy, .angle = angle, .scale = scale, .aspect = 1};
    for (int k = 0; k < 3; k++)
        part.look.color[k] = part.look.color2[k] = 1;
    canvas_background(canvas, &black);
    canvas_part(canvas, &part, 1);
    double sum = 0;
    for (long i = 0; i < (long)canvas->width * canvas->height; i++)
        sum += (double)canvas->rgb[3 * i];
    return sum;
}

static void test_exact_area(void)
{
    Canvas canvas;
    Rng rng;
    REQUIRE(canvas_init(&canvas, 200, 150) == 0);
    canvas.light[0] = 1;
    rng_seed(&rng, 3, 0);
    /* a square whose four corners are 7-step arcs of radius 0.14: the polygon's area in closed form */
    double r = 0.14, step = 3.14159265358979323846 / 2 / 7;
    double unit_area = 4 - 4 * r * r + 4 * 7 * 0.5 * r * r * sin(step);
    for (int i = 0; i < 40; i++) {
        float scale = rng_uniform(&rng, 1, 40), x = rng_uniform(&rng, 62, 130), y = rng_uniform(&rng, 62, 88);
        double expected = unit_area * (double)scale * (double)scale;
        double area = drawn_area(&canvas, SHAPE_PANEL, 0, x, y, rng_uniform(&rng, 0, 1), scale);
        CHECK_MSG(fabs(area - expected) < 2e-3 * expected + 0.05, "area %g, expected %g (scale %g)", area,
                  expected, (double)scale);
        /* half of it beyond the left side, a quarter within the corner */
        area = drawn_area(&canvas, SHAPE_PANEL, 0, 0, y, 0.25f * (float)(i % 4), scale);
        CHECK_MSG(fabs(area - expected / 2) < 2e-3 * expected + 0.05, "half area %g, expected %g", area,
                  expected / 2);
        area = drawn_area(&canvas, SHAPE_PANEL, 0, 200, 150, 0, scale);
        CHECK_MSG(fabs(area - expected / 4) < 2e-3 * expected + 0.05, "quarter %g, expected %g", area,
                  expected / 4);
    }
    CHECK(drawn_area(&canvas, SHAPE_GEAR, 1, -500, 70, 0, 40) == 0);
    canvas_free(&canvas);
    CHECK(canvas_init(&canvas, 4, 100) == -1);
    CHECK(canvas_init(&canvas, 100, 1 << 20) == -1);
}

/* Every shape of many forms stays within its unit frame, and its pixels carry its id. */
static void test_all_shapes(void)
{
    Canvas canvas;
    REQUIRE(canvas_init(&canvas, 96, 96) == 0);
    canvas.light[1] = -1;
    for (int shape = 0; shape <= SHAPE_PANEL; shape++)
        for (uint64_t form = 0; form < 60; form++) {
            Look black = {0};
            Part part = {.shape = shape,
                         .form = form,
                         .cx = 48,
                         .cy = 48,
                         .scale = 30,
                         .aspect = 1,
                         .damage_seed = form};
            part.look.texture = (int)(form % TEXTURE_COUNT);
            part.look.period = 6;
            part.look.bevel = 2;
            part.look.relief = 0.5f;
            part.damage = (int)(form % DAMAGE_COUNT);
            for (int k = 0; k < 3; k++)
                part.look.color[k] = part.look.color2[k] = 0.5f;
            canvas_background(&canvas, &black);
            canvas_part(&canvas, &part, 7);
            canvas_damage(&canvas, &part);
            long n = 0, outside = 0;
            for (int y = 0; y < 96; y++)
                for (int x = 0; x < 96; x++) {
                    int id = canvas.ids[y * 96 + x];
                    CHECK(id == 0 || id == 7);
                    n += id == 7;
                    int dx = abs(x - 48), dy = abs(y - 48);
                    if (id == 7 && (dx > 47 || dy > 47))
                        outside++;
                }
            CHECK_MSG(n > 30 && outside == 0, "shape %d form %d: %ld pixels, %ld far outside", shape,
                      (int)form, n, outside);
        }
    canvas_free(&canvas);
}

/* ---- trays ---- */

static SynthTrayOptions tiny_tray(uint64_t seed)
{
    return (SynthTrayOptions){.seed = seed,
                              .width = 96,
                              .height = 80,
                              .n_train = 3,
                              .n_validation = 1,
                              .n_good = 2,
                              .n_logical = 2,
                              .n_structural = 1};
}

/* The defect's name for a pixel value, from defects_config.json. */
static const char *defect_name(const Json *config, int value, double *threshold)
{
    for (size_t i = 0; config && i < config->n; i++) {
        const Json *d = &config->children[i], *v = json_get(d, "pixel_value"),
                   *name = json_get(d, "defect_name");
        const Json *t = json_get(d, "saturation_threshold"), *relative = json_get(d, "relative_saturation");
        if (!v || !name || !t || !relative || (int)v->number != value)
            continue;
        CHECK(relative->type == JSON_BOOL && relative->number == 1);
        *threshold = t->number;
        return name->string;
    }
    return NULL;
}

/* All ground truth images of one folder: one grey channel, one value, named in the config, with the wanted
 * name. */
static void check_truths(const char *dir, const char *kind, size_t number, const Json *config,
                         const char *prefix)
{
    char path[1024], sub[128];
    snprintf(sub, sizeof sub, "ground_truth/%s/%03zu", kind, number);
    size_t n = count_entries(dir, sub, 0);
    CHECK_MSG(n == 1 || n == 2, "%s holds %zu images", sub, n);
    for (size_t i = 0; i < n; i++) {
        Image image;
        Error err = {""};
        snprintf(path, sizeof path, "%s/%s/%03zu.png", dir, sub, i);
        int status = image_read(&image, path, &err);
        CHECK_MSG(status == 0, "%s", err.message);
        if (status)
            continue;
        CHECK(image.channels == 1 && image.bits == 8);
        const uint8_t *v = image.samples;
        int value = 0;
        for (long p = 0; p < (long)image.width * image.height; p++) {
            if (v[p] && !value)
                value = v[p];
            CHECK(v[p] == 0 || v[p] == value);
        }
        double threshold = 0;
        const char *name = defect_name(config, value, &threshold);
        CHECK_MSG(name && strncmp(name, prefix, strlen(prefix)) == 0, "%s: value %d is %s, expected %s...",
                  path, value, name ? name : "nothing", prefix);
        CHECK(threshold > 0 && threshold <= 1);
        image_free(&image);
    }
}

static void test_tray_folder(void)
{
    static const char *const logical[] = {"missing", "extra_part", "wrong_kind", "swapped", "wrong_count"};
    static const char *const structural[] = {"scratch", "stain", "dent", "broken"};
    char dir[512], path[600], hex[65], again[65];
    Error err = {""};
    SynthTrayOptions options = tiny_tray(7);
    work_path(dir, "tray");
    int status = synth_tray(dir, &options, &err);
    CHECK_MSG(status == 0, "%s", err.message);
    REQUIRE(status == 0);
    CHECK(count_entries(dir, "train/good", 0) == 3);
    CHECK(count_entries(dir, "validation/good", 0) == 1);
    CHECK(count_entries(dir, "test/good", 0) == 2);
    CHECK(count_entries(dir, "test/logical_anomalies", 0) == 10);
    CHECK(count_entries(dir, "test/structural_anomalies", 0) == 4);
    CHECK(count_entries(dir, "ground_truth/logical_anomalies", 1) == 10);
    CHECK(count_entries(dir, "ground_truth/structural_anomalies", 1) == 4);
    CHECK(count_entries(dir, "ground_truth/good", 1) == 0);

    snprintf(path, sizeof path, "%s/defects_config.json", dir);
    const Json *config = json_read(path, &err);
    REQUIRE(config && config->type == JSON_ARRAY);
    for (size_t i = 0; i < config->n; i++)
        CHECK((int)json_get(&config->children[i], "pixel_value")->number == 255 - (int)i);
    for (size_t i = 0; i < 10; i++)
        check_truths(dir, "logical_anomalies", i, config, logical[i / 2]);
    for (size_t i = 0; i < 4; i++)
        check_truths(dir, "structural_anomalies", i, config, structural[i]);
    json_free(config);

    int n_files = folder_hash(dir, 1, hex);
    CHECK(n_files >= 6 + 14 + 14 + 1);
    check_golden("tray", hex);

    /* the same options give the same bytes, another seed others */
    folder_hash(dir, 0, hex);
    char dir2[512];
    work_path(dir2, "tray2");
    REQUIRE(dir_make(dir2, &err) == 0); /* an empty folder is fine */
    REQUIRE(synth_tray(dir2, &options, &err) == 0);
    folder_hash(dir2, 0, again);
    CHECK(strcmp(hex, again) == 0);
    remove_folder(dir2);
    options.seed++;
    REQUIRE(synth_tray(dir2, &options, &err) == 0);
    folder_hash(dir2, 0, again);
    CHECK(strcmp(hex, again) != 0);
    remove_folder(dir2);
    remove_folder(dir);
}

static int pixel_change(const uint8_t *a, const uint8_t *b, long i)
{
    return abs(a[3 * i] - b[3 * i]) + abs(a[3 * i + 1] - b[3 * i + 1]) + abs(a[3 * i + 2] - b[3 * i + 2]);
}

/* near[p] = 1 within `reach` pixels (square) of the truth. */
static void grow_truth(const TrayImage *image, int w, int h, int reach, uint8_t *near)
{
    memset(near, 0, (size_t)w * (size_t)h);
    for (int t = 0; t < image->n_truths; t++)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                if (!image->truth[t][y * w + x])
                    continue;
                int x0 = x - reach < 0 ? 0 : x - reach, x1 = x + reach >= w ? w - 1 : x + reach;
                int y0 = y - reach < 0 ? 0 : y - reach, y1 = y + reach >= h ? h - 1 : y + reach;
                for (int v = y0; v <= y1; v++)
                    memset(near + (long)v * w + x0, 1, (size_t)(x1 - x0 + 1));
            }
}

/* Marked pixels differ clearly from the same image without the defect. Pixels far away have the same bits. */
static void test_truth_is_where_the_image_changed(void)
{
    Error err = {""};
    SynthTrayOptions options = synth_tray_defaults();
    options.width = options.height = 128;
    uint8_t *near = malloc(128 * 128);
    REQUIRE(near);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        options.seed = seed * 1001;
        TrayProduct *product = tray_product_new(&options, &err);
        REQUIRE(product);
        for (int d = TRAY_MISSING; d < TRAY_DEFECT_COUNT; d++)
            for (int index = 0; index < 2; index++) {
                TrayImage with, without;
                REQUIRE(tray_image_new(&with, product, TRAY_TEST_DEFECT, (TrayDefect)d, index, 1, &err) == 0);
                REQUIRE(tray_image_new(&without, product, TRAY_TEST_DEFECT, (TrayDefect)d, index, 0, &err) ==
                        0);
                CHECK(with.n_truths >= 1 && with.n_truths <= TRAY_MAX_TRUTHS && without.n_truths == 0);
                long marked = 0, changed = 0, far_changed = 0;
                grow_truth(&with, 128, 128, 22, near);
                for (long i = 0; i < 128 * 128; i++) {
                    int truth = 0, change = pixel_change(with.rgb, without.rgb, i);
                    for (int t = 0; t < with.n_truths; t++)
                        truth |= with.truth[t][i];
                    marked += truth != 0;
                    changed += truth && change > 36;
                    far_changed += !near[i] && change != 0;
                }
                /* a missing part changes only some of its possible places; damage blends softly */
                int missing = d == TRAY_MISSING || (d == TRAY_WRONG_COUNT && index == 0);
                double least = missing ? 0.04 : 0.5;
                CHECK_MSG(marked >= 12 && (double)changed >= least * (double)marked && changed >= 10,
                          "seed %d defect %d image %d: %ld pixels marked, %ld of them changed", (int)seed, d,
                          index, marked, changed);
                CHECK_MSG(far_changed == 0, "seed %d defect %d image %d: %ld far pixels changed", (int)seed,
                          d, index, far_changed);
                tray_image_free(&with);
                tray_image_free(&without);
            }
        tray_product_free(product);
    }
    free(near);
}

/* Any sensible size and seed gives a product in which every defect can be drawn. */
static void test_many_products(void)
{
    static const int sizes[][2] = {{64, 64}, {64, 128}, {160, 96}, {100, 75}};
    Error err = {""};
    for (uint64_t seed = 0; seed < 16; seed++) {
        SynthTrayOptions options = synth_tray_defaults();
        options.seed = seed * 0x9e3779b97f4a7c15u;
        options.width = sizes[seed % 4][0];
        options.height = sizes[seed % 4][1];
        TrayProduct *product = tray_product_new(&options, &err);
        REQUIRE(product);
        for (int d = TRAY_MISSING; d < TRAY_DEFECT_COUNT; d++) {
            TrayImage image;
            REQUIRE(tray_image_new(&image, product, TRAY_TEST_DEFECT, (TrayDefect)d, (int)seed, 1, &err) ==
                    0);
            CHECK(image.n_truths > 0);
            for (int t = 0; t < image.n_truths; t++) {
                long n = 0;
                for (long i = 0; i < (long)options.width * options.height; i++)
                    n += image.truth[t][i] != 0;
                CHECK_MSG(n > 0, "seed %d defect %d: truth %d is empty", (int)seed, d, t);
            }
            tray_image_free(&image);
        }
        tray_product_free(product);
    }
}

/* The number of parts in the map; they are numbered from 1. */
static int count_parts(const uint8_t *parts, size_t n)
{
    int seen[256] = {0}, count = 0;
    for (size_t i = 0; i < n; i++)
        seen[parts[i]] = 1;
    for (int k = 1; k < 256; k++)
        count += seen[k];
    return count;
}

/* The map shows the parts that the defect leaves. An extra part's ground truth is that part. The place of
 * a missing part shows none. */
static void test_parts(void)
{
    enum { SIZE = 128 };
    Error err = {""};
    SynthTrayOptions options = synth_tray_defaults();
    options.width = options.height = SIZE;
    for (uint64_t seed = 11; seed < 15; seed++) {
        options.seed = seed;
        TrayProduct *product = tray_product_new(&options, &err);
        REQUIRE(product);
        for (int d = TRAY_MISSING; d <= TRAY_EXTRA; d++) {
            TrayImage with, without;
            REQUIRE(tray_image_new(&with, product, TRAY_TEST_DEFECT, (TrayDefect)d, 0, 1, &err) == 0);
            REQUIRE(tray_image_new(&without, product, TRAY_TEST_DEFECT, (TrayDefect)d, 0, 0, &err) == 0);
            int n = count_parts(without.parts, SIZE * SIZE), changed = count_parts(with.parts, SIZE * SIZE);
            CHECK_MSG(n >= 2 && changed == n + (d == TRAY_EXTRA ? 1 : -1), "seed %d defect %d: %d parts, %d",
                      (int)seed, d, n, changed);
            long marked = 0, off = 0, ids[256] = {0};
            for (long i = 0; i < SIZE * SIZE; i++)
                if (with.truth[0][i]) {
                    marked++, ids[with.parts[i]]++;
                    off += d == TRAY_MISSING ? with.parts[i] != 0 : with.parts[i] == 0;
                }
            int kinds = 0;
            for (int k = 1; k < 256; k++)
                kinds += ids[k] > 0;
            CHECK(marked > 0 && off == 0 && kinds == (d == TRAY_EXTRA));
            tray_image_free(&with);
            tray_image_free(&without);
        }
        tray_product_free(product);
    }
}

/* --parts adds a folder and changes nothing else. */
static void test_parts_folder(void)
{
    char dir[512], plain[512], path[700], hex[65], plain_hex[65];
    Error err = {""};
    SynthTrayOptions options = tiny_tray(3);
    REQUIRE(synth_tray(work_path(plain, "without-parts"), &options, &err) == 0);
    options.parts = 1;
    REQUIRE(synth_tray(work_path(dir, "with-parts"), &options, &err) == 0);
    TrayProduct *product = tray_product_new(&options, &err);
    REQUIRE(product);
    TrayImage image;
    REQUIRE(tray_image_new(&image, product, TRAY_TRAIN, TRAY_GOOD, 0, 0, &err) == 0);
    snprintf(path, sizeof path, "%s/parts/train/good/000.png", dir);
    Image read;
    REQUIRE(image_read(&read, path, &err) == 0);
    CHECK(read.channels == 1 && read.width == options.width && read.height == options.height);
    CHECK(memcmp(read.samples, image.parts, (size_t)(options.width * options.height)) == 0);
    image_free(&read);
    tray_image_free(&image);
    tray_product_free(product);
    snprintf(path, sizeof path, "%s/parts", dir);
    REQUIRE(dir_remove(path, &err) == 0);
    CHECK(folder_hash(dir, 0, hex) == folder_hash(plain, 0, plain_hex) && strcmp(hex, plain_hex) == 0);
}

static void test_refusals(void)
{
    char dir[512], path[600];
    Error err = {""};
    SynthTrayOptions options = tiny_tray(1);
    work_path(dir, "full");
    REQUIRE(dir_make(dir, &err) == 0);
    snprintf(path, sizeof path, "%s/.hidden", dir);
    REQUIRE(file_write(path, "x", 1, &err) == 0);
    CHECK(synth_tray(dir, &options, &err) == -1 && strstr(err.message, "not empty"));
    CHECK(file_exists(path));
    CHECK(synth_tray(path, &options, &err) == -1 && strstr(err.message, "not a folder"));
    CHECK(synth_tray("", &options, &err) == -1);
    char target[512], lost[512];
    REQUIRE(dir_make(work_path(target, "target"), &err) == 0);
    work_path(lost, "lost"), snprintf(path, sizeof path, "%s/link", work_dir);
    REQUIRE(symlink("nowhere", lost) == 0 && symlink(target, path) == 0);
    CHECK(synth_tray(lost, &options, &err) == -1 && strstr(err.message, "leads nowhere"));
    CHECK_MSG(synth_tray(path, &options, &err) == 0, "%s", err.message); /* into the folder behind it */
    snprintf(path, sizeof path, "%s/defects_config.json", target);
    CHECK(file_exists(path));
    CHECK(synth_tray(".", &options, &err) == -1);

    char dir2[512];
    work_path(dir2, "never");
    options.width = 63;
    CHECK(synth_tray(dir2, &options, &err) == -1 && strstr(err.message, "63 x 80"));
    options.width = 512;
    CHECK(synth_tray(dir2, &options, &err) == -1);
    options = tiny_tray(1);
    options.n_logical = -1;
    CHECK(synth_tray(dir2, &options, &err) == -1);
    options.n_logical = 1 << 30;
    CHECK(synth_tray(dir2, &options, &err) == -1);
    CHECK(synth_digits(dir, dir2, &(SynthDigitsOptions){.n_train = 1}, &err) == -1);
    CHECK_MSG(strstr(err.message, "train-images-idx3-ubyte"), "%s", err.message);
    CHECK(!dir_exists(dir2));
    remove_folder(dir);
}

/* ---- digits ---- */

enum { FAKE_IMAGES = 30 };

/* A stand-in for MNIST: image i shows digit i % 10 as a square of brightness 100 + 15 digit. Its upper
 * left corner is brighter, so that every flip shows. */
static void fake_split(const char *dir, const char *prefix, int label_shift)
{
    uint8_t images[16 + FAKE_IMAGES * 784] = {0, 0, 8, 3, 0, 0, 0, FAKE_IMAGES, 0, 0, 0, 28, 0, 0, 0, 28};
    uint8_t labels[8 + FAKE_IMAGES] = {0, 0, 8, 1, 0, 0, 0, FAKE_IMAGES};
    char path[700];
    Error err;
    for (int i = 0; i < FAKE_IMAGES; i++) {
        labels[8 + i] = (uint8_t)(i % 10 + label_shift);
        for (int y = 0; y < 28; y++)
            for (int x = 0; x < 28; x++)
                images[16 + i * 784 + y * 28 + x] = (uint8_t)(x < 14 && y < 14 ? 250 : 100 + 15 * (i % 10));
    }
    snprintf(path, sizeof path, "%s/%s-images-idx3-ubyte", dir, prefix);
    CHECK(file_write(path, images, sizeof images, &err) == 0);
    snprintf(path, sizeof path, "%s/%s-labels-idx1-ubyte", dir, prefix);
    CHECK(file_write(path, labels, sizeof labels, &err) == 0);
}

/* The fake digit in a cell (-1: none), and which of its four quarters is the bright one. The brightness in
 * the middle of each quarter survives any crop of 0.6 or more of the area. */
static int cell_digit(const uint8_t *sheet, int cell, int *bright)
{
    int seen[256] = {0}, most = 0;
    const uint8_t *p = sheet + (cell / 3 * 32) * 96 + cell % 3 * 32;
    long sums[4] = {0};
    for (int y = 0; y < 32; y++)
        for (int x = 0; x < 32; x++) {
            int v = p[y * 96 + x];
            sums[(y >= 16) * 2 + (x >= 16)] += v == 250;
            if (v >= 100 && v < 250 && (v - 100) % 15 == 0)
                seen[v]++;
        }
    for (int v = 0; v < 256; v++)
        if (seen[v] > seen[most])
            most = v;
    *bright = 0;
    for (int q = 1; q < 4; q++)
        if (sums[q] > sums[*bright])
            *bright = q;
    return seen[most] > 100 ? (most - 100) / 15 : -1;
}

typedef struct {
    int digit[9], bright[9], wrong[9], n_wrong, n_truths;
} SeenDigits;

static int look_at_digits(const char *dir, const char *split, const char *kind, int index, SeenDigits *seen)
{
    char path[1024], sub[128];
    Image image;
    Error err = {""};
    memset(seen, 0, sizeof *seen);
    snprintf(path, sizeof path, "%s/%s/%s/%03d.png", dir, split, kind, index);
    int status = image_read(&image, path, &err);
    CHECK_MSG(status == 0, "%s", err.message);
    if (status)
        return -1;
    CHECK(image.width == 96 && image.height == 96 && image.channels == 1);
    for (int c = 0; c < 9; c++)
        seen->digit[c] = cell_digit(image.samples, c, &seen->bright[c]);
    image_free(&image);
    if (strcmp(kind, "good") == 0)
        return 0;
    snprintf(sub, sizeof sub, "ground_truth/%s/%03d", kind, index);
    seen->n_truths = (int)count_entries(dir, sub, 0);
    for (int t = 0; t < seen->n_truths; t++) {
        snprintf(path, sizeof path, "%s/%s/%03d.png", dir, sub, t);
        if (image_read(&image, path, &err))
            return -1;
        const uint8_t *v = image.samples;
        for (int c = 0; c < 9; c++) { /* a cell is marked as a whole or not at all */
            int n = 0;
            for (int y = 0; y < 32; y++)
                for (int x = 0; x < 32; x++)
                    n += v[(c / 3 * 32 + y) * 96 + c % 3 * 32 + x] != 0;
            CHECK(n == 0 || n == 1024);
            if (n)
                seen->wrong[c] = 1, seen->n_wrong++;
        }
        image_free(&image);
    }
    return 0;
}

static void check_digits(const SeenDigits *s, const char *kind)
{
    int times[10] = {0}, n_flipped = 0;
    for (int c = 0; c < 9; c++) {
        if (s->digit[c] >= 0)
            times[s->digit[c]]++;
        n_flipped += s->digit[c] >= 0 && s->bright[c] != 0;
        if (!s->wrong[c])
            CHECK_MSG(s->digit[c] == c + 1 && s->bright[c] == 0, "%s: cell %d shows %d", kind, c,
                      s->digit[c]);
    }
    if (strcmp(kind, "good") == 0)
        CHECK(s->n_wrong == 0);
    if (strcmp(kind, "missing") == 0) {
        CHECK((s->n_wrong == 1 || s->n_wrong == 2) && s->n_truths == s->n_wrong);
        for (int c = 0; c < 9; c++)
            CHECK(!s->wrong[c] || s->digit[c] == -1);
    }
    if (strcmp(kind, "disordered") == 0) {
        CHECK(s->n_wrong >= 2 && s->n_wrong <= 6 && s->n_truths == 1);
        for (int c = 0; c < 9; c++)
            CHECK(!s->wrong[c] || s->digit[c] != c + 1);
        for (int d = 1; d <= 9; d++)
            CHECK(times[d] == 1);
    }
    if (strcmp(kind, "flipped") == 0)
        CHECK(s->n_wrong == 1 && n_flipped == 1 && s->digit[0] == 1 && s->digit[7] == 8);
    if (strcmp(kind, "zero") == 0)
        CHECK(s->n_wrong == 1 && times[0] == 1);
}

static void test_digits_say_what_they_are(void)
{
    static const char *const kinds[] = {"good", "missing", "disordered", "flipped", "zero"};
    char mnist[512], out[512], path[700], hex[65];
    Error err = {""};
    work_path(mnist, "mnist");
    work_path(out, "digits");
    REQUIRE(dir_make(mnist, &err) == 0);
    fake_split(mnist, "train", 0);
    fake_split(mnist, "t10k", 0);
    SynthDigitsOptions options = {.seed = 5, .n_train = 2, .n_validation = 1, .n_good = 3, .n_each = 12};
    int status = synth_digits(mnist, out, &options, &err);
    CHECK_MSG(status == 0, "%s", err.message);
    REQUIRE(status == 0);
    CHECK(count_entries(out, "train/good", 0) == 2 && count_entries(out, "validation/good", 0) == 1);
    for (int k = 0; k < 5; k++) {
        int n = k ? 12 : 3;
        snprintf(path, sizeof path, "test/%s", kinds[k]);
        CHECK(count_entries(out, path, 0) == (size_t)n);
        for (int i = 0; i < n; i++) {
            SeenDigits seen;
            REQUIRE(look_at_digits(out, "test", kinds[k], i, &seen) == 0);
            check_digits(&seen, kinds[k]);
        }
    }
    snprintf(path, sizeof path, "%s/defects_config.json", out);
    const Json *config = json_read(path, &err);
    REQUIRE(config);
    CHECK(config->n == 4);
    for (int k = 1; k < 5; k++)
        check_truths(out, kinds[k], 3, config, kinds[k]);
    json_free(config);
    folder_hash(out, 1, hex);
    check_golden("digits", hex);
    remove_folder(out);

    /* hostile files: labels out of range, a file cut short, another kind of file */
    fake_split(mnist, "t10k", 1);
    CHECK(synth_digits(mnist, out, &options, &err) == -1);
    CHECK_MSG(strstr(err.message, "t10k-labels") && strstr(err.message, "10"), "%s", err.message);
    fake_split(mnist, "t10k", 0);
    snprintf(path, sizeof path, "%s/train-images-idx3-ubyte", mnist);
    for (long cut = 0; cut < 40; cut += 3) {
        CHECK(truncate(path, cut) == 0);
        CHECK(synth_digits(mnist, out, &options, &err) == -1 && strstr(err.message, "train-images"));
    }
    REQUIRE(file_write(path, "\x1f\x8b\x08\0\0\0\0\0\0\x03 not gzip", 20, &err) == 0);
    CHECK(synth_digits(mnist, out, &options, &err) == -1);
    CHECK(!dir_exists(out));
    remove_folder(mnist);
}

/* Mean brightness of all pixels: the right digits in the right proportion of ink. */
static void test_digits_from_mnist(void)
{
    char mnist[512], out[512], hex[65];
    Error err = {""};
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set (real MNIST)");
    snprintf(mnist, sizeof mnist, "%s/mnist", test_data_dir());
    work_path(out, "digits");
    SynthDigitsOptions options = {.seed = 9, .n_train = 4, .n_validation = 1, .n_good = 2, .n_each = 3};
    int status = synth_digits(mnist, out, &options, &err);
    CHECK_MSG(status == 0, "%s", err.message);
    REQUIRE(status == 0);
    CHECK(count_entries(out, "train/good", 0) == 4);
    CHECK(count_entries(out, "test/zero", 0) == 3);
    Image image;
    char path[700];
    snprintf(path, sizeof path, "%s/train/good/000.png", out);
    REQUIRE(image_read(&image, path, &err) == 0);
    for (int c = 0; c < 9; c++) { /* ink in every cell, and a black margin somewhere */
        const uint8_t *p = (const uint8_t *)image.samples + (c / 3 * 32) * 96 + c % 3 * 32;
        int ink = 0, black = 0;
        for (int y = 0; y < 32; y++)
            for (int x = 0; x < 32; x++)
                ink += p[y * 96 + x] > 128, black += p[y * 96 + x] < 8;
        CHECK_MSG(ink > 15 && ink < 500 && black > 300, "cell %d: %d pixels of ink, %d black", c, ink, black);
    }
    image_free(&image);
    folder_hash(out, 1, hex);
    check_golden("digits-mnist", hex);
    remove_folder(out);
}

int main(void)
{
    if (!mkdtemp(work_dir)) { /* a new name, because process numbers recur after a killed run */
        perror(work_dir);
        return 1;
    }
    RUN(test_sine_and_random_numbers);
    RUN(test_exact_area);
    RUN(test_all_shapes);
    RUN(test_tray_folder);
    RUN(test_truth_is_where_the_image_changed);
    RUN(test_many_products);
    RUN(test_parts);
    RUN(test_parts_folder);
    RUN(test_refusals);
    RUN(test_digits_say_what_they_are);
    RUN(test_digits_from_mnist);
    remove_folder(work_dir);
    return test_summary();
}
