/* test_jpeg.c - JPEG. tests/golden/jpeg.safetensors holds files and PIL's pixels of them
 * (make_golden_jpeg.py). */
#include "test.h"

#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"

/* Every pixel equals libjpeg's. */
static void test_golden(void)
{
    Error err = {""};
    Safetensors *st = st_open("tests/golden/jpeg.safetensors", &err);
    REQUIRE(st);
    int n_files = 0;
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *file = st_at(st, i);
        char name[128];
        snprintf(name, sizeof name, "%s", file->name);
        char *suffix = strstr(name, ".file");
        if (!suffix)
            continue;
        strcpy(suffix, ".rgb");
        const StTensor *expected = st_find(st, name);
        REQUIRE(expected);
        n_files++;
        Image image;
        int status = image_read_memory(&image, file->data, file->n_bytes, file->name, &err);
        CHECK_MSG(status == 0, "%s", err.message);
        if (status)
            continue;
        CHECK_MSG(image.height == expected->shape[0] && image.width == expected->shape[1], "%s: size", name);
        uint8_t *rgb = image_rgb8(&image, &err);
        REQUIRE(rgb);
        CHECK_MSG(memcmp(rgb, expected->data, expected->n_bytes) == 0, "%s: pixels differ", name);
        free(rgb);
        image_free(&image);
    }
    CHECK_MSG(n_files == 100, "%d files", n_files);
    st_close(st);
}

/* A file of the golden set, every truncation of it, and single changes of its header. */
static void test_refuses(void)
{
    static const struct {
        int from_marker, offset,
            value; /* the marker of the segment, and the byte in it (0: the marker's second byte) */
        const char *says;
    } cases[] = {
        {0xc1, 0, 0xc3, "lossless"},
        {0xc1, 0, 0xc9, "arithmetic"},
        {0xc1, 0, 0xc5, "hierarchical"},
        {0xc1, 0, 0xfe, "before the frame header"}, /* the frame becomes a comment */
        {0xc1, 3, 12, "12 bits"},
        {0xc1, 5, 0, "pixels"},
        {0xc1, 8, 2, "components"},
        {0xc1, 8, 4, "wrong length"},
        {0xc1, 10, 0x51, "sampling factor"},
        {0xc1, 10, 0x10, "sampling factor"},
        {0xc1, 11, 4, "quantisation table"},
        {0xc1, 11, 1, "quantisation table that is not there"},
        {0xc1, 12, 1, "same identifier"},
        {0xc1, 4, 0xff, "far too little data"},
        {0xdb, 3, 0x24, "quantisation table is malformed"},
        {0xdb, 3, 0x04, "quantisation table is malformed"},
        {0xc4, 3, 0x20, "Huffman table is malformed"},
        {0xc4, 4, 3, "Huffman table is malformed"},
        {0xc4, 20, 16, "size above 15"},
        {0xda, 3, 4, "scan header"},
        {0xda, 4, 77, "not there, or one twice"},
        {0xda, 6, 1, "not there, or one twice"},
        {0xda, 5, 0x21, "Huffman table that is not there"},
    };
    Error err = {""};
    Image image;
    Safetensors *st = st_open("tests/golden/jpeg.safetensors", &err);
    REQUIRE(st);
    const StTensor *file = st_find(st, "wide_quant.file");
    REQUIRE(file);
    size_t n = file->n_bytes;
    uint8_t *bytes = malloc(n);
    REQUIRE(bytes);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(bytes, file->data, n);
        size_t at = 2;
        while (at + 4 < n && bytes[at + 1] != cases[i].from_marker)
            at += 2 + (size_t)(bytes[at + 2] << 8 | bytes[at + 3]);
        REQUIRE(at + 4 < n);
        bytes[at + 1 + (size_t)cases[i].offset] = (uint8_t)cases[i].value;
        strcpy(err.message, "nothing");
        int status = jpeg_decode(&image, bytes, n, "case.jpg", &err);
        CHECK_MSG(status && strstr(err.message, cases[i].says), "case %zu: %s, expected %s", i, err.message,
                  cases[i].says);
        image_free(&image);
    }
    memcpy(bytes, file->data, n);
    for (size_t cut = 0; cut < n; cut++) {
        CHECK_MSG(jpeg_decode(&image, bytes, cut, "cut.jpg", &err), "cut at %zu was read", cut);
        image_free(&image);
    }
    free(bytes);
    st_close(st);
}

static void check_digest(const char *name, const char *digest)
{
    char path[1024], hex[65];
    Error err = {""};
    int width, height;
    snprintf(path, sizeof path, "%s/%s", test_data_dir(), name);
    uint8_t *rgb = image_read_rgb8(path, &width, &height, &err);
    CHECK_MSG(rgb, "%s", err.message);
    if (!rgb)
        return;
    sha256(rgb, 3 * (size_t)width * (size_t)height, hex);
    CHECK_MSG(strcmp(hex, digest) == 0, "%s: the pixels differ from PIL's", name);
    free(rgb);
}

/* Digests of the pixels of PIL 9.4 with libjpeg-turbo 2.1.5. */
static void test_photos(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    check_digest("photos/dog.jpg", "224a37ca29f2d699aa7884fb202fed7ba1254be144e883c4dd2177363976beb2");
    check_digest("photos/groceries.jpg", "fc57e3cc25a0c723e4755648e0bf0f10f91cf779b74fd7d18d4117cc94e44a6c");
    check_digest("photos/truck.jpg", "1cbb6e2115d8fdc1867cfdea972fad51506bd1c7f55c17065f264c1b3bee6ee3");
}

static void test_reftest(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    static const char *const files[][2] = {
        {"16bit-qtables.jpg", "861f9848c62da2e60d2cf47b2a07b719854bda6d1696127614ddd05234a5ab44"},
        {"blank_800x280.jpg", "33da4c5a6af4fdc2e3f384cb483c0118eace4cd7a4ca6304818f7a3c45bba193"},
        {"extraneous-data.jpg", "001671073b43bceefb1e6bdf8294a2cd22875165b63276058602dcf8caaf008e"},
        {"grayscale_16x24_sampling2x2.jpg",
         "32b62fbd9c8d928ac868c1cf7d5762f8ca188a92b91673f01e528fc8b81b6729"},
        {"grayscale_24x16_sampling2x2.jpg",
         "62714aaa9704e27b2c7035ca55b8870d6f8c383e5c38906570f2ae2d1d27221f"},
        {"grayscale_large.jpg", "69033ba484c07fa3f1af14859e6a6271e83ea0a25be726ee125ae4c5e5fbf844"},
        {"grayscale_long.jpg", "226012e9273521d3aba0c89261ce1d6a0ab50a8646c82f72ee8a4d021e61e39c"},
        {"grayscale_square.jpg", "7245b8fce25456c0cb3b4261dbea1ce761d05a244b9af16d45d57f2c46b1011e"},
        {"mjpeg.jpg", "49a8894fcd4e353bc7b00bf8c08e102bea0923d62e90cc7db21adfd611e372b7"},
        {"mozilla/jpg-cmyk-1.jpg", "82bf496c5f738767168732b711c365b67278b928f271d98d7bebc23e88e86418"},
        {"mozilla/jpg-cmyk-2.jpg", "148c9046f02b42d3dd2bcc97f80f9d29b4a18c92bc40e26036fa07d0c3e441a4"},
        {"mozilla/jpg-gray.jpg", "d84cd6820fdf5f8b52c1911e52394d004bbd368d2f0db2c120dd4dfe5e8f6314"},
        {"mozilla/jpg-progressive.jpg", "590e563a299023f1c4d84387a93e3c4fcc7b972580747166d7d2532b38e65a38"},
        {"mozilla/jpg-size-15x15.jpg", "cc1f8892eb0df05e25d6d507af50fad2ce8005ae6bacb7b951443a49b6087be2"},
        {"mozilla/jpg-size-16x16.jpg", "001671073b43bceefb1e6bdf8294a2cd22875165b63276058602dcf8caaf008e"},
        {"mozilla/jpg-size-17x17.jpg", "9c7b5cf4213bf050e9eba3a898940c4908ea445a944a8eb373ecc7d46b4ecc54"},
        {"mozilla/jpg-size-1x1.jpg", "05718bc75cc4458d16ec2a75f9b158d5c60c783c06047f44118c045fb9cf3030"},
        {"mozilla/jpg-size-2x2.jpg", "01ca88e59e05eff6318584cd297901a02269cdd552117ad011edf0fcbb2870d9"},
        {"mozilla/jpg-size-31x31.jpg", "aa3d6c06b25d79212223c5bb78dbbf28deb05f81964730c5cb76e0d462950bcf"},
        {"mozilla/jpg-size-32x32.jpg", "590e563a299023f1c4d84387a93e3c4fcc7b972580747166d7d2532b38e65a38"},
        {"mozilla/jpg-size-33x33.jpg", "6340502bd9eee348ed28878f89fe5251f6f74cd40f68d4a469d71e562e235129"},
        {"mozilla/jpg-size-3x3.jpg", "3180d4065c146b4a699e973a21552d7441bb048c4069a699c2ee03184b58c2a0"},
        {"mozilla/jpg-size-4x4.jpg", "f82c4e69d9c447a0aa5df1462a04f201dbb895c2aebdaefcbb3abb5e396a7897"},
        {"mozilla/jpg-size-5x5.jpg", "d8da45abe81a15928fda43420ab6f3b7924aae2ca3494204758f37fe9b2ae522"},
        {"mozilla/jpg-size-6x6.jpg", "d84403c021d52bab8b4546c452e2f5d33399ede07fa16ee13e0f5b57346050f4"},
        {"mozilla/jpg-size-7x7.jpg", "37f67f056b301850dc1efa991bd367b219746d934f9e1eaa6fcaea6452ef75b2"},
        {"mozilla/jpg-size-8x8.jpg", "4f213d7f644bfddaf672191c408b9c00eca7e95f07121615b53b2aa115b1c252"},
        {"mozilla/jpg-size-9x9.jpg", "4fbd4070b610a9de4b538be80d8901267250b575f038d29ff7fe6ce22367a0d9"},
        {"mozilla/jpg-srgb-icc.jpg", "709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c"},
        {"non-interleaved-mcu.jpg", "65e412792ceef5f6a2d4fc2ae237917575d38412290dc694c2890c6857a541bb"},
        {"partial_progressive.jpg", "4c7db9bc4b333b931c027e610ac6a67dcb4dfe54327788a205ded389feee7a0c"},
        {"progressive-missing-ac.jpg", "8f62c344eff1568474fb693b8c18526629db443b9653a84264189c97693605de"},
        {"progressive-missing-dc.jpg", "d7b9aaf1ee9dc179404bca3d4cc1c18fdf96ba9c92725287e8f6b6aaaeaad938"},
        {"progressive3.jpg", "e7446959fe4bdf3d00495de93217546c5cb1607f727162e5eeff28f25e3b3e6a"},
        {"restarts.jpg", "3f873955c15dd99505d4f1cb7cd76d8abe24abce8058664dd72dadf75ccec6f2"},
        {"rgb.jpg", "aa695b8383012f4f33741053e1fe8b8a9f72e66ae575e5b6834cc3bb572c9202"},
        {"ycck.jpg", "94747aacd22d8498fa30fcc5abb095222eee8a7d3a0b56593b552810f68674de"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char name[256];
        snprintf(name, sizeof name, "jpeg/reftest/images/%s", files[i][0]);
        check_digest(name, files[i][1]);
    }
}

/* Files that crashed other decoders, and lossless ones, must give a sentence or an image. */
static void test_crashtest(void)
{
    if (!test_data_dir())
        SKIP("SAMLAD_DATA is not set");
    static const char *const folders[] = {"jpeg/crashtest/images", "jpeg/reftest/images/lossless/1",
                                          "jpeg/reftest/images/lossless/2"};
    int n_read = 0, n_refused = 0;
    for (size_t f = 0; f < 3; f++) {
        char folder[1000], path[1300];
        Error err = {""};
        size_t n;
        snprintf(folder, sizeof folder, "%s/%s", test_data_dir(), folders[f]);
        char **names = dir_list(folder, 0, &n, &err);
        REQUIRE(names);
        for (size_t i = 0; i < n; i++) {
            size_t length = strlen(names[i]);
            if (length < 4 || strcmp(names[i] + length - 4, ".jpg") != 0)
                continue;
            Image image;
            REQUIRE(snprintf(path, sizeof path, "%s/%s", folder, names[i]) < (int)sizeof path);
            int status = image_read(&image, path, &err);
            CHECK(status == 0 || strstr(err.message, path) == err.message);
            n_read += status == 0, n_refused += status != 0;
            CHECK_MSG(f == 0 || strstr(err.message, "lossless"), "%s: %s", path, err.message);
            image_free(&image);
        }
        free(names);
    }
    CHECK_MSG(n_read == 4 && n_refused == 20, "%d read, %d refused", n_read, n_refused);
}

int main(void)
{
    RUN(test_golden);
    RUN(test_refuses);
    RUN(test_photos);
    RUN(test_reftest);
    RUN(test_crashtest);
    return test_summary();
}
