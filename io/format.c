/* io/format.c - see format.h. The formats are told by their first bytes. */
#include "io/format.h"

#include <stdio.h>
#include <string.h>

#include "io/fail.h"

/* Formats that begin with fixed bytes. */
static const struct {
    const char *begin;
    size_t n;
    const char *what;
} FORMATS[] = {
    {"version https://git-lfs", 23, "a Git LFS pointer: fetch the file behind it (git lfs pull)"},
    {"GGUF", 4, "a GGUF file: take the model's safetensors file"},
    {"\x93NUMPY", 6, "a NumPy array: take the model's safetensors file"},
    {"\x89HDF\r\n", 6, "an HDF5 file (Keras): take the model's safetensors file"},
    {"\x89PNG", 4, "a PNG image"},
    {"\xff\xd8\xff", 3, "a JPEG image"},
    {"%PDF", 4, "a PDF document"},
    {"\x1f\x8b", 2, "a gzip archive: unpack it first"},
    {"7z\xbc\xaf", 4, "a 7-Zip archive: unpack it first"},
};

int is_pytorch_name(const char *path)
{
    static const char *const endings[] = {".bin", ".pth", ".pt", ".ckpt"};
    const size_t n = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t m = strlen(endings[i]);
        if (n > m && strcmp(path + n - m, endings[i]) == 0)
            return 1;
    }
    return 0;
}

/* The path as a shell takes it: in quotes unless all its characters are plain. */
static const char *shell_word(char *word, size_t size, const char *path)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+,-@%";
    const int is_plain = path[strspn(path, plain)] == '\0';
    snprintf(word, size, is_plain ? "%s" : "'%s'", path);
    return word;
}

/* The length of the path without its endings; an index has three: pytorch_model.bin.index.json. */
static size_t stem_length(const char *path)
{
    static const char *const endings[] = {".json", ".index", ".bin", ".pth", ".pt", ".ckpt"};
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t m = strlen(endings[i]);
        if (n > m && path[n - m - 1] != '/' && memcmp(path + n - m, endings[i], m) == 0)
            n -= m;
    }
    return n;
}

int refuse_pytorch(const char *path, const char *kind, Error *err)
{
    char output[256], from[264], to[264];
    snprintf(output, sizeof output, "%.*s.safetensors", (int)stem_length(path), path);
    return fail(err, "%s: a PyTorch file (%s): convert it with: tools/convert.py %s -o %s", path, kind,
                shell_word(from, sizeof from, path), shell_word(to, sizeof to, output));
}

static int ends(const char *name, size_t n, const char *ending)
{
    const size_t m = strlen(ending);
    return n >= m && memcmp(name + n - m, ending, m) == 0;
}

/* The name of the first member tells who wrote the archive. It lies 30 bytes behind the archive's begin. */
static int refuse_zip(const char *path, const uint8_t *bytes, size_t n, Error *err)
{
    const char *name = (const char *)bytes + 30;
    size_t length = n > 30 ? (size_t)bytes[26] + 256u * bytes[27] : 0;
    if (length > n - 30)
        length = n - 30;
    if (n > 30 && ends(name, length, ".npy"))
        return fail(err, "%s: not a safetensors file, but NumPy arrays (npz): take the safetensors file",
                    path);
    if (n > 30 && (ends(name, length, "/data.pkl") || is_pytorch_name(path)))
        return refuse_pytorch(path, "a zip archive of torch.save", err);
    return fail(err, "%s: not a safetensors file, but a zip archive: unpack it first", path);
}

/* A sentence of a server ("Entry not found") or a pointer of another kind. */
static int refuse_text(const char *path, const uint8_t *bytes, size_t n, Error *err)
{
    char begin[48];
    size_t m = 0;
    while (m < n && m + 1 < sizeof begin && bytes[m] >= 0x20 && bytes[m] < 0x7f) {
        begin[m] = (char)bytes[m];
        m++;
    }
    begin[m] = '\0';
    if (m < 8)
        return fail(err, "%s: not a safetensors file (its header does not begin with '{')", path);
    return fail(err, "%s: not a safetensors file, but a text that begins with \"%s\"", path, begin);
}

int refuse_format(const char *path, const uint8_t *bytes, size_t n, Error *err)
{
    size_t space = n >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0 ? 3 : 0; /* a mark of UTF-8 */
    while (space < n && space < 4096 && strchr(" \t\r\n", bytes[space]) && bytes[space])
        space++;
    if (space < n && bytes[space] == '<')
        return fail(err,
                    "%s: not a safetensors file, but a web page, probably the server's refusal of a download",
                    path);
    if (n >= 4 && memcmp(bytes, "PK\3\4", 4) == 0)
        return refuse_zip(path, bytes, n, err);
    if (n >= 2 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5)
        return refuse_pytorch(path, "a pickle of torch.save", err);
    if (n > 262 && memcmp(bytes + 257, "ustar", 5) == 0)
        return fail(err, "%s: not a safetensors file, but a tar archive: unpack it first", path);
    if (n >= 4 && bytes[0] == 8 && bytes[1] < 32 && bytes[2] == 0x12) /* protobuf: ir_version, producer */
        return fail(err, "%s: not a safetensors file, but an ONNX file: take the model's safetensors file",
                    path);
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        if (n >= FORMATS[i].n && memcmp(bytes, FORMATS[i].begin, FORMATS[i].n) == 0)
            return fail(err, "%s: not a safetensors file, but %s", path, FORMATS[i].what);
    return refuse_text(path, bytes, n, err);
}
