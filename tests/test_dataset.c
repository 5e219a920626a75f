/* test_dataset.c - the base of long runs: io/probe.c, bank/scene.c, the temporary names of io/file.c.
 * test_eval.sh tests data sets and runs from outside. */
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "eval/dataset.h"
#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"
#include "bank/scene.h"
#include "tensor.h"
#include "test.h"

static char folder[] = "/tmp/samlad_test_dataset.XXXXXX"; /* of this run */

static const char *path_in(const char *name)
{
    static char path[4][256];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", folder, name);
    return path[at];
}

/* If the decoder reads a file, the probe reads it with the same size. */
static void check_probe(const char *path, int *n)
{
    Image image;
    Error err, probe_err;
    int width = 0, height = 0, status = image_probe(path, &width, &height, &probe_err);
    if (image_read(&image, path, &err))
        return;
    CHECK_MSG(!status && width == image.width && height == image.height, "%s: %dx%d, expected %dx%d (%s)",
              path, width, height, image.width, image.height, status ? probe_err.message : "");
    image_free(&image);
    ++*n;
}

static void probe_folder(const char *dir, int depth, int *n)
{
    Error err;
    for (int dirs = 0; dirs <= 1 && depth < 4; dirs++) {
        size_t count;
        char **names = dir_list(dir, dirs, &count, &err);
        for (size_t i = 0; names && i < count; i++) {
            char *path = malloc(strlen(dir) + strlen(names[i]) + 2);
            if (path)
                sprintf(path, "%s/%s", dir, names[i]);
            if (path && dirs)
                probe_folder(path, depth + 1, n);
            else if (path && looks_like_image(names[i]))
                check_probe(path, n);
            free(path);
        }
        free(names);
    }
}

static void test_probe_written(void)
{
    static uint8_t samples[4 * 7 * 5];
    Error err;
    int n = 0;
    for (int channels = 1; channels <= 4; channels++) {
        CHECK(!png_write(path_in("p.png"), samples, 7, 5, channels, 8, &err));
        check_probe(path_in("p.png"), &n);
    }
    CHECK(!pnm_write(path_in("p.ppm"), samples, 7, 5, 3, 8, &err));
    check_probe(path_in("p.ppm"), &n);
    const char *odd = "P2 # a comment\n#another\n\t3\r\n#one more\n 2 9\n1 2 3 4 5 6\n";
    CHECK(!file_write(path_in("o.pgm"), odd, strlen(odd), &err));
    check_probe(path_in("o.pgm"), &n);
    CHECK(n == 6);
}

/* The probe skips the same bytes as the decoders. */
static void test_probe_odd(void)
{
    static const char *const pnm[] = {
        "P2\v\f3 2 9 1 2 3 4 5 6",
        "P2 # an old Mac's comment\r3 2 9 1 2 3 4 5 6",
        "P2 3# at once\n2 9 1 2 3 4 5 6",
        "P2 #\n#\n3 #\r#\n2 9 1 2 3 4 5 6",
        "P2 00000000003 0000000000000000002 9 1 2 3 4 5 6",
    };
    Error err;
    int n = 0, width, height;
    for (int i = 0; i < 5; i++) {
        CHECK(!file_write(path_in("o.pgm"), pnm[i], strlen(pnm[i]), &err));
        check_probe(path_in("o.pgm"), &n);
    }
    CHECK(n == 5);
    CHECK(!file_write(path_in("o.pgm"), "P2 3x2 9 1 2 3 4 5 6", 20, &err)); /* neither does */
    CHECK(image_probe(path_in("o.pgm"), &width, &height, &err) == -1);
    /* a JPEG with stray bytes behind its first segment, and FF as padding */
    Safetensors *st = st_open("tests/golden/jpeg.safetensors", &err);
    const StTensor *jpeg = st ? st_find(st, "wide_quant.file") : NULL;
    uint8_t *odd = jpeg ? malloc(jpeg->n_bytes + 8) : NULL;
    REQUIRE(odd);
    const uint8_t *bytes = jpeg->data;
    size_t first = 4 + ((size_t)bytes[4] << 8 | bytes[5]);
    memcpy(odd, bytes, first);
    memcpy(odd + first, "\x00\x12\xff\x00\x34\xff\xff\xff", 8);
    memcpy(odd + first + 8, bytes + first, jpeg->n_bytes - first);
    CHECK(!file_write(path_in("o.jpg"), odd, jpeg->n_bytes + 8, &err));
    check_probe(path_in("o.jpg"), &n);
    CHECK(n == 6);
    free(odd);
    st_close(st);
}

/* Photos that lie on their side have the size of the turned image. */
static void test_probe_turned(void)
{
    Error err;
    int n = 0;
    Safetensors *st = st_open("tests/golden/exif.safetensors", &err);
    REQUIRE(st);
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *file = st_at(st, i);
        if (!strstr(file->name, ".file"))
            continue;
        CHECK(!file_write(path_in("turned"), file->data, file->n_bytes, &err));
        check_probe(path_in("turned"), &n);
    }
    CHECK_MSG(n == 51, "%d files", n);
    st_close(st);
}

/* A chunk that claims 2^32 - 12 bytes: a walk in 32 bits would return to its own start forever. */
static void test_probe_endless(void)
{
    static const uint8_t samples[3];
    Error err;
    size_t n;
    int width, height;
    CHECK(!png_write(path_in("p.png"), samples, 1, 1, 3, 8, &err));
    uint8_t *bytes = file_read(path_in("p.png"), 1 << 20, &n, &err);
    REQUIRE(bytes && n > 37);
    memcpy(bytes + 33, "\xff\xff\xff\xf4zzzz", 8);
    CHECK(!file_write(path_in("p.png"), bytes, n, &err));
    CHECK(image_probe(path_in("p.png"), &width, &height, &err) == -1 &&
          strstr(err.message, "cut off or damaged"));
    free(bytes);
}

static void test_probe_real(void)
{
    int n = 0;
    char dir[1024];
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    const char *const folders[] = {"pngsuite", "jpeg", "photos"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(dir, sizeof dir, "%s/%s", test_data_dir(), folders[i]);
        probe_folder(dir, 0, &n);
    }
    CHECK_MSG(n > 150, "only %d images", n);
}

/* Cut anywhere, or with any byte of the header changed: an answer or a sentence. A cut PNG is noticed. */
static void test_probe_damaged(void)
{
    static uint8_t samples[3 * 40 * 30];
    Error err;
    size_t n;
    int width, height;
    for (size_t i = 0; i < sizeof samples; i++)
        samples[i] = (uint8_t)(i * i >> 3);
    REQUIRE(!png_write(path_in("d.png"), samples, 40, 30, 3, 8, &err));
    uint8_t *bytes = file_read(path_in("d.png"), 1 << 20, &n, &err);
    REQUIRE(bytes != NULL);
    for (size_t cut = 0; cut < n - 12; cut += 7) {
        CHECK(!file_write(path_in("c.png"), bytes, cut, &err));
        CHECK(image_probe(path_in("c.png"), &width, &height, &err) == -1);
    }
    for (size_t at = 0; at < 60; at++) {
        uint8_t kept = bytes[at];
        for (int value = 0; value < 256; value += 51) {
            bytes[at] = (uint8_t)value;
            CHECK(!file_write(path_in("c.png"), bytes, n, &err));
            if (!image_probe(path_in("c.png"), &width, &height, &err))
                CHECK(width > 0 && height > 0 && (int64_t)width * height <= IMAGE_MAX_PIXELS);
        }
        bytes[at] = kept;
    }
    free(bytes);
    static const char *const bad[] = {"P5",
                                      "P5 3",
                                      "P5 3 x",
                                      "P5 0 9 1",
                                      "P6 999999999999 2 1",
                                      "P4 # only a comment",
                                      "\xff\xd8\xff\xe0",
                                      "\xff\xd8\xff\xe0\x00\x02\xff\xd9",
                                      "GIF89a"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(!file_write(path_in("b"), bad[i], strlen(bad[i]), &err));
        CHECK_MSG(image_probe(path_in("b"), &width, &height, &err) == -1, "'%s' is %dx%d", bad[i], width,
                  height);
    }
    CHECK(image_probe(path_in("nowhere"), &width, &height, &err) == -1 && strstr(err.message, "nowhere"));
}

/* ---- scenes ------------------------------------------------------------------------------------*/

enum { GRID_H = 3, GRID_W = 4, CHANNELS = 5, HEIGHT = 6, WIDTH = 9, N = 2 };

static int make_scene(Scene *s, Error *err)
{
    float coverage[N * GRID_H * GRID_W];
    *s = (Scene){.height = HEIGHT, .width = WIDTH, .cls_dim = CHANNELS};
    s->features = aligned_array(GRID_H * GRID_W * CHANNELS, sizeof(float));
    s->mean_patch = aligned_array(CHANNELS, sizeof(float));
    s->cls = aligned_array(CHANNELS, sizeof(float));
    s->labels = aligned_array(HEIGHT * WIDTH, sizeof *s->labels);
    for (int i = 0; i < GRID_H * GRID_W * CHANNELS; i++)
        s->features[i] = sinf((float)i) / 3;
    for (int i = 0; i < CHANNELS; i++)
        s->mean_patch[i] = cosf((float)i), s->cls[i] = 1 / (float)(i + 1);
    for (int i = 0; i < HEIGHT * WIDTH; i++)
        s->labels[i] = i % 3 - 1;
    for (int i = 0; i < N * GRID_H * GRID_W; i++)
        coverage[i] = (float)(i % 7) / 7;
    s->objects = (Objects){.n = N,
                           .has_background = 1,
                           .grid_h = GRID_H,
                           .grid_w = GRID_W,
                           .channels = CHANNELS,
                           .features = s->features};
    return objects_new(&s->objects, coverage, err);
}

static void test_scene_file(void)
{
    Scene s, back;
    Error err = {""};
    REQUIRE(!make_scene(&s, &err));
    CHECK_MSG(!scene_save(&s, "these weights", path_in("s.scene"), &err), "%s", err.message);
    int status = scene_load(&back, "these weights", path_in("s.scene"), &err);
    CHECK_MSG(!status, "%s", err.message);
    REQUIRE(!status);
    const Objects *a = &s.objects, *b = &back.objects;
    CHECK(back.height == HEIGHT && back.width == WIDTH && b->grid_h == GRID_H && b->grid_w == GRID_W &&
          b->channels == CHANNELS && back.cls_dim == CHANNELS && b->n == N && b->has_background == 1);
    CHECK(memcmp(s.features, back.features, sizeof(float) * GRID_H * GRID_W * CHANNELS) == 0 &&
          memcmp(s.mean_patch, back.mean_patch, sizeof(float) * CHANNELS) == 0 &&
          memcmp(s.cls, back.cls, sizeof(float) * CHANNELS) == 0 &&
          memcmp(s.labels, back.labels, sizeof *s.labels * HEIGHT * WIDTH) == 0);
    CHECK(memcmp(a->coverage, b->coverage, sizeof(float) * N * GRID_H * GRID_W) == 0 &&
          memcmp(a->pooled, b->pooled, sizeof(float) * N * CHANNELS) == 0 &&
          memcmp(a->centroids, b->centroids, sizeof(float) * N * 2) == 0 &&
          memcmp(a->areas, b->areas, sizeof(float) * N) == 0);
    scene_free(&back);
    CHECK(scene_load(&back, "other weights", path_in("s.scene"), &err) == -1 &&
          strstr(err.message, "other weights"));
    s.labels[4] = N; /* an object that does not exist */
    CHECK(!scene_save(&s, "these weights", path_in("s.scene"), &err));
    CHECK(scene_load(&back, "these weights", path_in("s.scene"), &err) == -1 && strstr(err.message, "label"));
    s.labels[4] = 0;
    struct {
        float *at, value;
        const char *expected;
    } odd[] = {{s.features + 3, NAN, "tensor features"},
               {(float *)s.objects.centroids, INFINITY, "tensor objects.centroids"},
               {(float *)s.objects.coverage + 5, 1.5f, "tensor objects.weights holds 1.5 at 5"},
               {(float *)s.objects.coverage, -0.1f, "tensor objects.weights holds -0.1 at 0"}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        const float whole = *odd[i].at;
        *odd[i].at = odd[i].value;
        CHECK(!scene_save(&s, "these weights", path_in("s.scene"), &err));
        CHECK(scene_load(&back, "these weights", path_in("s.scene"), &err) == -1);
        CHECK_MSG(strstr(err.message, odd[i].expected), "%s", err.message);
        *odd[i].at = whole;
    }
    size_t n;
    CHECK(!scene_save(&s, "these weights", path_in("s.scene"), &err));
    uint8_t *bytes = file_read(path_in("s.scene"), 1 << 20, &n, &err);
    REQUIRE(bytes != NULL);
    for (size_t cut = 0; cut < n; cut += 101) {
        CHECK(!file_write(path_in("c.scene"), bytes, cut, &err));
        CHECK(scene_load(&back, "these weights", path_in("c.scene"), &err) == -1);
    }
    free(bytes);
    scene_free(&s);
}

/* ---- temporary names ---------------------------------------------------------------------------*/

/* Temporary files of a dead process are removed; those of this process and of others stay. */
static void test_sweep(void)
{
    Error err = {""};
    char left[2][256], *mine = temporary_name(path_in("mine"));
    REQUIRE(mine != NULL);
    CHECK(!file_write(mine, "x", 1, &err));
    CHECK(!dir_make(path_in("below"), &err));
    int fds[2];
    REQUIRE(pipe(fds) == 0);
    pid_t child = fork();
    if (child == 0) { /* leaves a file under its own temporary name and dies */
        char *name = temporary_name(path_in("below/theirs"));
        int bad = !name || file_write(name, "x", 1, NULL) || write(fds[1], name, strlen(name) + 1) < 0;
        _exit(bad);
    }
    int status = -1;
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(read(fds[0], left[0], sizeof left[0]) > 0 && file_exists(left[0]));
    close(fds[0]), close(fds[1]);
    snprintf(left[1], sizeof left[1], "%s", path_in("other.tmp.another-machine.1"));
    CHECK(!file_write(left[1], "x", 1, &err));
    CHECK_MSG(!dir_sweep(folder, &err), "%s", err.message);
    CHECK(!file_exists(left[0]) && file_exists(left[1]) && file_exists(mine));
    CHECK(file_publish(mine, path_in("mine"), &err) == 0 && !file_exists(mine));
    CHECK(!file_write(mine, "later", 5, &err) && file_publish(mine, path_in("mine"), &err) == 1);
    size_t n;
    uint8_t *bytes = file_read(path_in("mine"), 100, &n, &err);
    CHECK(bytes && n == 1 && !file_exists(mine)); /* the first one counts */
    free(bytes), free(mine);
}

/* Files with the ending are removed, and then empty folders. All else stays, also behind links. */
static void test_prune(void)
{
    Error err = {""};
    REQUIRE(!dir_make(path_in("prune/a/b"), &err) && !dir_make(path_in("prune/user"), &err));
    static const char *const ours[] = {"prune/1.scene", "prune/a/b/2.scene", "prune/user/3.scene"};
    static const char *const theirs[] = {"prune/user/notes", "prune/user/scene", "elsewhere/4.scene"};
    REQUIRE(!dir_make(path_in("elsewhere"), &err) && !symlink("../elsewhere", path_in("prune/link")));
    for (int i = 0; i < 3; i++)
        CHECK(!file_write(path_in(ours[i]), "x", 1, &err) && !file_write(path_in(theirs[i]), "x", 1, &err));
    CHECK_MSG(!dir_prune(path_in("prune"), ".scene", &err), "%s", err.message);
    for (int i = 0; i < 3; i++)
        CHECK(!file_exists(path_in(ours[i])) && file_exists(path_in(theirs[i])));
    CHECK(!dir_exists(path_in("prune/a")) && dir_exists(path_in("prune/link")));
    CHECK(!unlink(path_in("prune/link")) && !dir_remove(path_in("prune/user"), &err));
    CHECK(!dir_prune(path_in("prune"), ".scene", &err) && !dir_exists(path_in("prune")));
    CHECK(!dir_prune(path_in("prune"), ".scene", &err)); /* a missing folder is fine */
}

/* Files of lengths around whole blocks, different in one byte or in length only. */
static void test_same_and_copy(void)
{
    static const size_t lengths[] = {0, 1, 65535, 65536, 65537, 200000};
    static uint8_t bytes[200001];
    Error err = {""};
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * i >> 7);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t n = lengths[i];
        CHECK(!file_write(path_in("one"), bytes, n, &err));
        CHECK_MSG(!file_copy(path_in("one"), path_in("two"), &err), "%s", err.message);
        CHECK_MSG(file_same(path_in("one"), path_in("two"), &err) == 1, "%zu bytes", n);
        CHECK(!file_write(path_in("two"), bytes, n + 1, &err));
        CHECK_MSG(file_same(path_in("one"), path_in("two"), &err) == 0, "%zu bytes and one more", n);
        if (n > 0) {
            bytes[n - 1]++;
            CHECK(!file_write(path_in("two"), bytes, n, &err));
            CHECK_MSG(file_same(path_in("one"), path_in("two"), &err) == 0, "%zu bytes, the last another", n);
        }
    }
    CHECK(file_same(path_in("one"), path_in("nowhere"), &err) == -1 && strstr(err.message, "nowhere"));
    CHECK(file_same(path_in("."), path_in("."), &err) == -1 && strstr(err.message, "cannot read"));
    CHECK(file_copy(path_in("nowhere"), path_in("three"), &err) == -1 && !file_exists(path_in("three")));
    CHECK(file_copy(path_in("."), path_in("three"), &err) == -1 && !file_exists(path_in("three")));
}

/* Shards remove the analysed images of a category once its bank is there. Others still write then. */
static void test_remove_while_others_write(void)
{
    Error err = {""};
    char shared[256], file[320];
    snprintf(shared, sizeof shared, "%s", path_in("shared/a/b"));
    REQUIRE(!dir_make(shared, &err));
    pid_t child = fork();
    if (child == 0) {
        /* a write fails when the folder has just been removed: the shard handles that */
        for (unsigned i = 0;; i = (i + 1) % 64) {
            snprintf(file, sizeof file, "%s/%u", shared, i);
            if (dir_make(shared, NULL) == 0)
                file_write(file, "x", 1, NULL);
        }
    }
    REQUIRE(child > 0);
    int failed = 0;
    for (int i = 0; i < 400; i++)
        failed += dir_remove(path_in("shared"), &err) != 0 || dir_sweep(path_in("."), &err) != 0;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK_MSG(failed == 0, "%d of 400 failed: %s", failed, err.message);
    CHECK_MSG(!dir_remove(path_in("shared"), &err) && !dir_exists(path_in("shared")), "%s", err.message);
}

int main(void)
{
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    RUN(test_probe_written);
    RUN(test_probe_odd);
    RUN(test_probe_turned);
    RUN(test_probe_endless);
    RUN(test_probe_real);
    RUN(test_probe_damaged);
    RUN(test_scene_file);
    RUN(test_sweep);
    RUN(test_prune);
    RUN(test_same_and_copy);
    RUN(test_remove_while_others_write);
    dir_remove(folder, NULL);
    return test_summary();
}
