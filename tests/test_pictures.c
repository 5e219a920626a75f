/* test_pictures.c - pictures by Pillow, OpenCV and ImageMagick, and the pixels that these read
 * (make_golden_pictures.py): a table of kinds and writers. */
#include "test.h"

#include <unistd.h>

#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"

#define TMP "test_pictures.tmp"

/* The image's sample as RGB: grey is repeated, alpha left out. */
static unsigned rgb_sample(const Image *image, size_t pixel, size_t c)
{
    const size_t at = pixel * (size_t)image->channels + (image->channels < 3 ? 0 : c);
    return image->bits == 16 ? ((const uint16_t *)image->samples)[at] : ((const uint8_t *)image->samples)[at];
}

/* The number of samples that differ from the golden [height][width][3]; -1: another size or depth. */
static int n_different(const Image *image, const StTensor *pixels)
{
    int n = 0;
    const int bits = pixels->dtype == ST_U8 ? 8 : 16;
    if (image->height != pixels->shape[0] || image->width != pixels->shape[1] || image->bits != bits)
        return -1;
    for (size_t i = 0; i < (size_t)image->width * (size_t)image->height * 3; i++) {
        const unsigned expected =
            bits == 8 ? ((const uint8_t *)pixels->data)[i] : ((const uint16_t *)pixels->data)[i];
        n += rgb_sample(image, i / 3, i % 3) != expected;
    }
    return n;
}

static void check_picture(const StTensor *file, const StTensor *pixels, char *cell)
{
    Image image;
    Error err = {""};
    int width = 0, height = 0;
    CHECK(file_write(TMP, file->data, file->n_bytes, &err) == 0);
    const int status = image_read(&image, TMP, &err);
    CHECK_MSG(status == 0, "%s: %s", file->name, err.message);
    if (status)
        return;
    const int n = n_different(&image, pixels);
    CHECK_MSG(n == 0, "%s: %d samples differ", file->name, n);
    CHECK_MSG(image_probe(TMP, &width, &height, &err) == 0, "%s: probe: %s", file->name, err.message);
    CHECK_MSG(width == image.width && height == image.height, "%s: probe says %dx%d", file->name, width,
              height);
    strcpy(cell, n == 0 ? "equal" : "DIFFERS");
    image_free(&image);
}

typedef struct Row {
    char kind[64], cells[4][8]; /* a cell is empty when this writer does not write the kind. */
} Row;

static void print_row(const Row *row)
{
    if (row->kind[0])
        printf("%-28s %-8s %-8s %-8s %-8s\n", row->kind, row->cells[0], row->cells[1], row->cells[2],
               row->cells[3]);
}

/* One row a kind, one column a writer. */
static void test_table(void)
{
    static const char *const writers[] = {"pillow", "opencv", "magick", "hand"};
    Error err = {""};
    Safetensors *st = st_open("tests/golden/pictures.safetensors", &err);
    REQUIRE(st);
    Row row = {"kind", {"Pillow", "OpenCV", "Magick", "by hand"}};
    for (size_t i = 0; i < st_count(st); i++) {
        char kind[64], name[96];
        const StTensor *file = st_at(st, i);
        if (!strstr(file->name, ".file"))
            continue;
        snprintf(kind, sizeof kind, "%.*s", (int)strcspn(file->name, "."), file->name);
        if (strcmp(kind, row.kind) != 0) {
            print_row(&row);
            memset(&row, 0, sizeof row);
            strcpy(row.kind, kind);
        }
        for (size_t w = 0; w < 4; w++) {
            snprintf(name, sizeof name, "%s.%s.file", kind, writers[w]);
            if (strcmp(name, file->name) != 0)
                continue;
            snprintf(name, sizeof name, "%s.%s.pixels", kind, writers[w]);
            REQUIRE(st_find(st, name));
            check_picture(file, st_find(st, name), row.cells[w]);
        }
    }
    print_row(&row);
    st_close(st);
    unlink(TMP);
}

int main(void)
{
    RUN(test_table);
    return test_summary();
}
