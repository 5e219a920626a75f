/* io/safetensors.c - see safetensors.h. The checks follow the official Rust implementation
 * (huggingface/safetensors, `validate`). Sorted by offset, the tensors must tile the data exactly. Each
 * must have as many bytes as its shape and dtype need. */
#include "io/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/bytes.h"
#include "io/fail.h"
#include "io/file.h"
#include "io/format.h"
#include "io/json.h"
#include "io/memory.h"
#include "io/number.h"

#define ST_MAX_HEADER 100000000 /* bytes; the official limit. */

struct Safetensors {
    char *path;
    const uint8_t *map; /* the whole file; NULL: a view of parts. */
    size_t map_size;
    int borrowed;        /* map is the caller's memory. */
    Safetensors **parts; /* [n_parts] the files of a view; the writer has its names and the copies. */
    size_t n_parts;
    StWriter *writer;
    uint8_t *swapped; /* on big-endian machines: the data, each number in the machine's order. Else NULL. */
    const Json *header;
    const Json *meta;         /* the "__metadata__" object or NULL. */
    StTensor *tensors;        /* [n_tensors] in file order. */
    const StTensor **by_name; /* [n_tensors] sorted */
    float **converted;        /* [n_tensors] converted copies made by st_f32, else NULL. */
    size_t n_tensors;
};

static const struct {
    const char *name;
    size_t size;
} DTYPES[ST_N_DTYPES] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},   [ST_I8] = {"I8", 1},     [ST_U16] = {"U16", 2},
    [ST_I16] = {"I16", 2},   [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2}, [ST_U32] = {"U32", 4},
    [ST_I32] = {"I32", 4},   [ST_F32] = {"F32", 4}, [ST_U64] = {"U64", 8},   [ST_I64] = {"I64", 8},
    [ST_F64] = {"F64", 8},
};

size_t st_dtype_size(StDtype dtype)
{
    return (unsigned)dtype < ST_N_DTYPES ? DTYPES[dtype].size : 0;
}

const char *st_dtype_name(StDtype dtype)
{
    return (unsigned)dtype < ST_N_DTYPES ? DTYPES[dtype].name : "?";
}

/* ---- reading the header ----------------------------------------------------------------------------*/

/* "[2,3,?]" into text, for messages. */
static const char *shape_text(char *text, size_t size, const int64_t *shape, int n_dims)
{
    size_t at = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < n_dims && at < size; i++)
        at += (size_t)(shape[i] < 0
                           ? snprintf(text + at, size - at, "%s?", i ? "," : "")
                           : snprintf(text + at, size - at, "%s%lld", i ? "," : "", (long long)shape[i]));
    if (at < size)
        snprintf(text + at, size - at, "]");
    return text;
}

/* A JSON number that is a whole number in 0 .. 2^53. */
static int whole_number(const Json *value, uint64_t *out)
{
    if (!value || value->type != JSON_NUMBER ||
        !(value->number >= 0 && value->number <= 9007199254740992.0) || value->number != floor(value->number))
        return -1;
    *out = (uint64_t)value->number;
    return 0;
}

static int read_dtype(StTensor *tensor, const Json *info, const char *path, Error *err)
{
    const Json *dtype = json_get(info, "dtype");
    if (!dtype || dtype->type != JSON_STRING)
        return fail(err, "%s: tensor %.200s has no dtype", path, tensor->name);
    for (int i = 0; i < ST_N_DTYPES; i++)
        if (strcmp(dtype->string, DTYPES[i].name) == 0) {
            tensor->dtype = (StDtype)i;
            return 0;
        }
    return fail(err, "%s: tensor %.200s has dtype %.40s, which is not supported", path, tensor->name,
                dtype->string);
}

static int read_shape(StTensor *tensor, const Json *info, const char *path, Error *err)
{
    const Json *shape = json_get(info, "shape");
    if (!shape || shape->type != JSON_ARRAY)
        return fail(err, "%s: tensor %.200s has no shape", path, tensor->name);
    if (shape->n > ST_MAX_DIMS)
        return fail(err, "%s: tensor %.200s has %zu dimensions, at most %d are supported", path, tensor->name,
                    shape->n, ST_MAX_DIMS);
    tensor->n_dims = (int)shape->n;
    uint64_t n_bytes = DTYPES[tensor->dtype].size, length;
    for (size_t i = 0; i < shape->n; i++) {
        if (whole_number(&shape->children[i], &length))
            return fail(err, "%s: tensor %.200s: shape[%zu] is not a whole number", path, tensor->name, i);
        tensor->shape[i] = (int64_t)length;
        if (__builtin_mul_overflow(n_bytes, length, &n_bytes) || n_bytes > SIZE_MAX)
            return fail(err, "%s: tensor %.200s: the product of its shape overflows", path, tensor->name);
    }
    tensor->n_bytes = (size_t)n_bytes;
    tensor->n_elements = tensor->n_bytes / DTYPES[tensor->dtype].size;
    return 0;
}

/* Read one member of the header. data_size: the bytes behind the header. */
static int read_tensor(StTensor *tensor, const Json *info, const uint8_t *data, size_t data_size,
                       const char *path, Error *err)
{
    tensor->name = info->key;
    for (const char *c = info->key; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) /* would garble messages and terminals. */
            return fail(err, "%s: a tensor's name holds control characters", path);
    if (info->type != JSON_OBJECT)
        return fail(err, "%s: the entry of tensor %.200s is not an object", path, tensor->name);
    if (read_dtype(tensor, info, path, err) || read_shape(tensor, info, path, err))
        return -1;
    const Json *offsets = json_get(info, "data_offsets");
    uint64_t begin, end;
    if (!offsets || offsets->type != JSON_ARRAY || offsets->n != 2 ||
        whole_number(&offsets->children[0], &begin) || whole_number(&offsets->children[1], &end))
        return fail(err, "%s: tensor %.200s: data_offsets is not a pair of whole numbers", path,
                    tensor->name);
    if (begin > end || end > data_size)
        return fail(err, "%s: tensor %.200s lies at %llu..%llu, outside the file's %zu bytes of data", path,
                    tensor->name, (unsigned long long)begin, (unsigned long long)end, data_size);
    if (end - begin != tensor->n_bytes)
        return fail(err, "%s: tensor %.200s takes %llu bytes, but its shape and dtype need %zu", path,
                    tensor->name, (unsigned long long)(end - begin), tensor->n_bytes);
    tensor->data = data + begin;
    return 0;
}

static int compare_places(const void *a, const void *b)
{
    const StTensor *x = a, *y = b;
    if (x->data != y->data)
        return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    if (x->n_bytes != y->n_bytes) /* an empty tensor sorts before the tensor that begins at its place. */
        return x->n_bytes < y->n_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_tensor_names(const void *a, const void *b)
{
    return strcmp((*(const StTensor *const *)a)->name, (*(const StTensor *const *)b)->name);
}

static int check_meta(const Json *meta, const char *path, Error *err)
{
    if (meta->type != JSON_OBJECT)
        return fail(err, "%s: __metadata__ is not an object", path);
    for (size_t i = 0; i < meta->n; i++)
        if (meta->children[i].type != JSON_STRING)
            return fail(err, "%s: __metadata__.%.200s is not a string", path, meta->children[i].key);
    return 0;
}

/* Fill st->tensors from st->header, in file order. Check that they tile the data without hole or overlap. */
static int read_tensors(Safetensors *st, const uint8_t *data, size_t data_size, Error *err)
{
    const Json *header = st->header;
    st->tensors = calloc(header->n + 1, sizeof *st->tensors);
    st->by_name = calloc(header->n + 1, sizeof *st->by_name);
    st->converted = calloc(header->n + 1, sizeof *st->converted);
    if (!st->tensors || !st->by_name || !st->converted)
        return fail_memory(err, st->path, (header->n + 1) * sizeof *st->tensors);
    for (size_t i = 0; i < header->n; i++) {
        const Json *info = &header->children[i];
        if (strcmp(info->key, "__metadata__") == 0) {
            if (check_meta(info, st->path, err))
                return -1;
            st->meta = info;
        } else if (read_tensor(&st->tensors[st->n_tensors++], info, data, data_size, st->path, err)) {
            return -1;
        }
    }
    qsort(st->tensors, st->n_tensors, sizeof *st->tensors, compare_places);
    const uint8_t *end = data;
    for (size_t i = 0; i < st->n_tensors; i++) {
        const StTensor *tensor = &st->tensors[i];
        if (tensor->data != end)
            return fail(
                err, "%s: tensor %.200s begins at byte %zu of the data, expected %zu (no holes, no overlaps)",
                st->path, tensor->name, (size_t)((const uint8_t *)tensor->data - data), (size_t)(end - data));
        end += tensor->n_bytes;
        st->by_name[i] = tensor;
    }
    if ((size_t)(end - data) != data_size)
        return fail(err, "%s: the tensors take %zu bytes, but %zu follow the header", st->path,
                    (size_t)(end - data), data_size);
    qsort(st->by_name, st->n_tensors, sizeof *st->by_name, compare_tensor_names);
    return 0;
}

/* The numbers are little-endian, and most are used in place. A big-endian machine takes a copy. */
static int native_order(Safetensors *st, const uint8_t *data, size_t data_size, Error *err)
{
    if (!BIG_ENDIAN_MEMORY)
        return 0;
    st->swapped = aligned_array(data_size, 1);
    if (!st->swapped)
        return fail_memory(err, st->path, data_size);
    for (size_t i = 0; i < st->n_tensors; i++) {
        StTensor *tensor = &st->tensors[i];
        const uint8_t *from = tensor->data;
        uint8_t *to = st->swapped + (from - data);
        bytes_reverse(to, from, tensor->n_elements, DTYPES[tensor->dtype].size);
        tensor->data = to;
    }
    return 0;
}

static int map_file(Safetensors *st, Error *err)
{
    int fd = open(st->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* refuse a pipe, do not wait for it. */
    if (fd < 0)
        return fail(err, "%s: cannot open: %s", st->path, strerror(errno));
    struct stat info;
    int status = 0;
    if (fstat(fd, &info) != 0)
        status = fail(err, "%s: cannot read: %s", st->path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = fail(err, "%s: not a regular file", st->path);
    else if (info.st_size < 8)
        status = fail(err, "%s: not a safetensors file (%lld bytes)", st->path, (long long)info.st_size);
    else if ((unsigned long long)info.st_size > PTRDIFF_MAX)
        status = fail(err, "%s: %lld bytes, more than this machine's addresses reach", st->path,
                      (long long)info.st_size);
    if (!status) {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            status = fail(err, "%s: cannot map: %s", st->path, strerror(errno));
        else {
            st->map = map;
            st->map_size = (size_t)info.st_size;
        }
    }
    close(fd);
    return status;
}

static int read_header(Safetensors *st, Error *err)
{
    const uint64_t length = bytes_number(st->map, 8, 0);
    const char *text = (const char *)st->map + 8;
    if (st->map_size < 10 || text[0] != '{')
        return refuse_format(st->path, st->map, st->map_size, err);
    if (length < 2 || length > st->map_size - 8 || length > ST_MAX_HEADER)
        return fail(err, "%s: not a safetensors file, or truncated (its header would take %llu of %zu bytes)",
                    st->path, (unsigned long long)length, st->map_size);
    st->header = json_parse(text, (size_t)length, st->path, err);
    if (!st->header)
        return -1;
    const uint8_t *data = st->map + 8 + length;
    const size_t data_size = st->map_size - 8 - (size_t)length;
    return read_tensors(st, data, data_size, err) || native_order(st, data, data_size, err) ? -1 : 0;
}

static Safetensors *st_new(const char *path, Error *err)
{
    Safetensors *st = calloc(1, sizeof *st);
    if (st && (st->path = strdup(path)))
        return st;
    free(st);
    fail_memory(err, path, sizeof *st + strlen(path) + 1);
    return NULL;
}

Safetensors *st_open(const char *path, Error *err)
{
    Safetensors *st = st_new(path, err);
    if (st && (map_file(st, err) || read_header(st, err))) {
        st_close(st);
        return NULL;
    }
    return st;
}

Safetensors *st_open_memory(const char *name, const void *bytes, size_t n, Error *err)
{
    if (n < 8) {
        fail(err, "%s: not a safetensors file (%zu bytes)", name, n);
        return NULL;
    }
    Safetensors *st = st_new(name, err);
    if (!st)
        return NULL;
    st->map = bytes;
    st->map_size = n;
    st->borrowed = 1;
    if (read_header(st, err)) {
        st_close(st);
        return NULL;
    }
    return st;
}

void st_close(Safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; st->converted && i < st->n_tensors; i++)
        free(st->converted[i]);
    free(st->converted);
    free(st->swapped);
    free(st->by_name);
    free(st->tensors);
    json_free(st->header);
    st_writer_free(st->writer);
    for (size_t i = 0; i < st->n_parts; i++)
        st_close(st->parts[i]);
    free(st->parts);
    if (st->map && !st->borrowed)
        munmap((void *)(uintptr_t)st->map, st->map_size);
    free(st->path);
    free(st);
}

/* ---- taking things out -----------------------------------------------------------------------------*/

const char *st_path(const Safetensors *st)
{
    return st->path;
}

size_t st_count(const Safetensors *st)
{
    return st->n_tensors;
}

const StTensor *st_at(const Safetensors *st, size_t i)
{
    return i < st->n_tensors ? &st->tensors[i] : NULL;
}

const StTensor *st_find(const Safetensors *st, const char *name)
{
    size_t low = 0, high = st->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, st->by_name[middle]->name);
        if (order == 0)
            return st->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

size_t st_meta_count(const Safetensors *st)
{
    return st->meta ? st->meta->n : 0;
}

void st_meta_at(const Safetensors *st, size_t i, const char **key, const char **value)
{
    int there = i < st_meta_count(st);
    *key = there ? st->meta->children[i].key : NULL;
    *value = there ? st->meta->children[i].string : NULL;
}

const char *st_meta(const Safetensors *st, const char *key)
{
    const Json *value = json_get(st->meta, key);
    return value ? value->string : NULL;
}

/* The number at the beginning of text; *end is behind it and the spaces that follow. -1: no finite number. */
static int leading_number(const char *text, double *value, const char **end)
{
    char *stop;
    *value = number_read(text, &stop);
    if (stop == text || !isfinite(*value))
        return -1;
    while (*stop == ' ')
        stop++;
    *end = stop;
    return 0;
}

int st_meta_float(const Safetensors *st, const char *key, double min, double max, double *out, Error *err)
{
    const char *text = st_meta(st, key), *end;
    double value;
    if (!text)
        return fail(err, "%s: __metadata__ has no %s", st->path, key);
    if (leading_number(text, &value, &end) || *end)
        return fail(err, "%s: __metadata__.%s is \"%.40s\", expected a number", st->path, key, text);
    if (value < min || value > max)
        return fail(err, "%s: __metadata__.%s is %g, expected %g to %g", st->path, key, value, min, max);
    *out = value;
    return 0;
}

int st_meta_int(const Safetensors *st, const char *key, int min, int max, int *out, Error *err)
{
    double value = 0;
    if (st_meta_float(st, key, min, max, &value, err))
        return -1;
    if (value != floor(value))
        return fail(err, "%s: __metadata__.%s is %g, expected a whole number", st->path, key, value);
    *out = (int)value;
    return 0;
}

int st_meta_floats(const Safetensors *st, const char *key, int n, float *out, Error *err)
{
    const char *text = st_meta(st, key), *p = text;
    if (!text)
        return fail(err, "%s: __metadata__ has no %s", st->path, key);
    for (int i = 0; i < n; i++) {
        double value;
        int last = i == n - 1;
        if (leading_number(p, &value, &p) || *p != (last ? 0 : ',') || !isfinite((float)value))
            return fail(err, "%s: __metadata__.%s is \"%.100s\", expected %d numbers with commas", st->path,
                        key, text, n);
        out[i] = (float)value;
        p += !last;
    }
    return 0;
}

static int shape_fits(const StTensor *tensor, int n_dims, const int64_t *shape)
{
    if (tensor->n_dims != n_dims)
        return 0;
    for (int i = 0; i < n_dims; i++)
        if (shape[i] >= 0 && shape[i] != tensor->shape[i])
            return 0;
    return 1;
}

/* Convert any floating dtype to float32. Loads use memcpy, because the source may have an odd address. */
static void convert_to_f32(float *out, const StTensor *tensor)
{
    const uint8_t *in = tensor->data;
    size_t n = tensor->n_elements;
    if (tensor->dtype == ST_F32) {
        memcpy(out, in, n * sizeof *out);
    } else if (tensor->dtype == ST_F16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            out[i] = f16_to_f32(h);
        }
    } else if (tensor->dtype == ST_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            uint32_t u = (uint32_t)h << 16;
            memcpy(out + i, &u, 4);
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            double d;
            memcpy(&d, in + 8 * i, 8);
            out[i] = (float)d;
        }
    }
}

/* Release the mapped pages that lie wholly in the tensor: otherwise converted data are in memory twice.
 * They stay in the system's cache, and come back when they are read again. */
static void let_go(const Safetensors *st, const StTensor *tensor)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)tensor->data,
                    end = begin + tensor->n_elements * st_dtype_size(tensor->dtype);
    const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    if (!st->borrowed && !BIG_ENDIAN_MEMORY && first < last) /* else it is a copy. */
        madvise((void *)first, last - first, MADV_DONTNEED);
}

const float *st_f32(Safetensors *st, const char *name, int n_dims, const int64_t *shape, Error *err)
{
    char wanted[192], found[192];
    const StTensor *tensor = st_find(st, name);
    if (!tensor) {
        fail(err, "%s: tensor %s is missing (expected shape %s)", st->path, name,
             shape_text(wanted, sizeof wanted, shape, n_dims));
        return NULL;
    }
    if (!shape_fits(tensor, n_dims, shape)) {
        fail(err, "%s: tensor %s has shape %s, expected %s", st->path, name,
             shape_text(found, sizeof found, tensor->shape, tensor->n_dims),
             shape_text(wanted, sizeof wanted, shape, n_dims));
        return NULL;
    }
    StDtype dtype = tensor->dtype;
    if (dtype != ST_F32 && dtype != ST_F16 && dtype != ST_BF16 && dtype != ST_F64) {
        fail(err, "%s: tensor %s has dtype %s, expected F32, F16, BF16 or F64", st->path, name,
             st_dtype_name(dtype));
        return NULL;
    }
    if (dtype == ST_F32 && (uintptr_t)tensor->data % sizeof(float) == 0)
        return tensor->data;
    float **kept = &st->converted[tensor - st->tensors];
    if (!*kept) {
        if (tensor->n_elements <= SIZE_MAX / sizeof(float) - 1)
            *kept = malloc((tensor->n_elements + 1) * sizeof(float));
        if (*kept) {
            convert_to_f32(*kept, tensor);
            let_go(st, tensor);
        } else {
            fail_memory(err, name, (unsigned long long)tensor->n_elements * sizeof(float));
        }
    }
    return *kept;
}

const float *st_weight(Safetensors *st, Error *err, int n_dims, const int64_t *shape, const char *name_format,
                       ...)
{
    char name[512];
    va_list args;
    va_start(args, name_format);
    int n = vsnprintf(name, sizeof name, name_format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof name) {
        fail(err, "%s: a tensor name made from \"%s\" is longer than %zu bytes", st->path, name_format,
             sizeof name - 1);
        return NULL;
    }
    return st_f32(st, name, n_dims, shape, err);
}

/* The sums of the parts, one behind the other; NULL: no memory. */
static char *sums_of_parts(const Safetensors *st)
{
    char *sums = malloc(st->n_parts * 64 + 1);
    for (size_t i = 0; sums && i < st->n_parts; i++)
        st_sha256(st->parts[i], sums + 64 * i);
    return sums;
}

void st_sha256(const Safetensors *st, char hex[65])
{
    if (st->map) {
        sha256(st->map, st->map_size, hex);
        return;
    }
    if (st->n_parts == 1) {
        st_sha256(st->parts[0], hex);
        return;
    }
    char *sums = sums_of_parts(st);
    hex[0] = '\0';
    if (sums)
        sha256(sums, st->n_parts * 64, hex);
    free(sums);
}

/* ---- writing ---------------------------------------------------------------------------------------*/

typedef struct StEntry {
    StTensor tensor;
    char *name;
    void *copy; /* owned data or NULL. */
    size_t order;
} StEntry;

struct StWriter {
    StEntry *entries;
    size_t n_entries, entries_capacity;
    char **meta; /* key, value, key, value ... */
    size_t n_meta, meta_capacity;
};

StWriter *st_writer_new(void)
{
    return calloc(1, sizeof(StWriter));
}

void st_writer_free(StWriter *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->n_entries; i++) {
        free(w->entries[i].name);
        free(w->entries[i].copy);
    }
    for (size_t i = 0; i < 2 * w->n_meta; i++)
        free(w->meta[i]);
    free(w->entries);
    free(w->meta);
    free(w);
}

/* Fill *tensor from the description: check its shape and compute its sizes. */
static int describe(StTensor *tensor, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                    Error *err)
{
    if ((unsigned)dtype >= ST_N_DTYPES)
        return fail(err, "tensor %s: unknown dtype %d", name, (int)dtype);
    if (n_dims < 0 || n_dims > ST_MAX_DIMS)
        return fail(err, "tensor %s: %d dimensions, at most %d are supported", name, n_dims, ST_MAX_DIMS);
    if (strcmp(name, "__metadata__") == 0)
        return fail(err, "tensor %s: this name is reserved", name);
    *tensor = (StTensor){.dtype = dtype, .n_dims = n_dims};
    uint64_t n_bytes = DTYPES[dtype].size;
    for (int i = 0; i < n_dims; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(n_bytes, (uint64_t)shape[i], &n_bytes) ||
            n_bytes > SIZE_MAX / 2)
            return fail(err, "tensor %s: bad shape[%d] = %lld", name, i, (long long)shape[i]);
        tensor->shape[i] = shape[i];
    }
    tensor->n_bytes = (size_t)n_bytes;
    tensor->n_elements = tensor->n_bytes / DTYPES[dtype].size;
    return 0;
}

int st_writer_add(StWriter *w, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                  const void *data, Error *err)
{
    StTensor tensor;
    if (describe(&tensor, name, dtype, n_dims, shape, err))
        return -1;
    if (w->n_entries == w->entries_capacity) {
        size_t capacity = 2 * w->entries_capacity + 32;
        StEntry *grown = realloc(w->entries, capacity * sizeof *grown);
        if (!grown)
            return fail_memory(err, name, capacity * sizeof *grown);
        w->entries = grown;
        w->entries_capacity = capacity;
    }
    char *copied_name = strdup(name);
    if (!copied_name)
        return fail_memory(err, name, strlen(name) + 1);
    tensor.name = copied_name;
    tensor.data = data;
    w->entries[w->n_entries] = (StEntry){tensor, copied_name, NULL, w->n_entries};
    w->n_entries++;
    return 0;
}

int st_writer_copy(StWriter *w, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                   const void *data, Error *err)
{
    if (st_writer_add(w, name, dtype, n_dims, shape, data, err))
        return -1;
    StEntry *entry = &w->entries[w->n_entries - 1];
    entry->copy = malloc(entry->tensor.n_bytes + 1);
    if (!entry->copy) {
        free(entry->name);
        w->n_entries--;
        return fail_memory(err, name, entry->tensor.n_bytes);
    }
    if (entry->tensor.n_bytes)
        memcpy(entry->copy, data, entry->tensor.n_bytes);
    entry->tensor.data = entry->copy;
    return 0;
}

int st_writer_meta(StWriter *w, const char *key, const char *value, Error *err)
{
    if (w->n_meta == w->meta_capacity) {
        size_t capacity = 2 * w->meta_capacity + 16;
        char **grown = realloc(w->meta, 2 * capacity * sizeof *grown);
        if (!grown)
            return fail_memory(err, key, 2 * capacity * sizeof *grown);
        w->meta = grown;
        w->meta_capacity = capacity;
    }
    char *copied_key = strdup(key), *copied_value = strdup(value);
    if (!copied_key || !copied_value) {
        free(copied_key);
        free(copied_value);
        return fail_memory(err, key, strlen(key) + strlen(value) + 2);
    }
    w->meta[2 * w->n_meta] = copied_key;
    w->meta[2 * w->n_meta + 1] = copied_value;
    w->n_meta++;
    return 0;
}

/* Wide elements first: then every tensor lies at a multiple of its element's size, for any shapes. */
static int compare_entries(const void *a, const void *b)
{
    const StEntry *x = a, *y = b;
    size_t x_size = DTYPES[x->tensor.dtype].size, y_size = DTYPES[y->tensor.dtype].size;
    if (x_size != y_size)
        return x_size > y_size ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* Sort n names; returns a name that occurs twice, or NULL. */
static const char *find_twice(const char **names, size_t n)
{
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return names[i];
    return NULL;
}

/* Check once at the end, because a bank has a key an image. */
static int check_names(const StWriter *w, const char *path, Error *err)
{
    const size_t n = w->n_entries > w->n_meta ? w->n_entries : w->n_meta;
    const char *twice, **names = malloc((n + 1) * sizeof *names);
    if (!names)
        return fail_memory(err, path, n * sizeof *names);
    int status = 0;
    for (size_t i = 0; i < w->n_entries; i++)
        names[i] = w->entries[i].name;
    if ((twice = find_twice(names, w->n_entries)))
        status = fail(err, "%s: tensor %s was given twice", path, twice);
    for (size_t i = 0; i < w->n_meta; i++)
        names[i] = w->meta[2 * i];
    if (!status && (twice = find_twice(names, w->n_meta)))
        status = fail(err, "%s: __metadata__: key %s was given twice", path, twice);
    free(names);
    return status;
}

/* The header's JSON; st_writer_save pads it with spaces. */
static void write_header(const StWriter *w, JsonWriter *json)
{
    json_open(json, '{');
    if (w->n_meta > 0) {
        json_key(json, "__metadata__");
        json_open(json, '{');
        for (size_t i = 0; i < w->n_meta; i++) {
            json_key(json, w->meta[2 * i]);
            json_string(json, w->meta[2 * i + 1]);
        }
        json_close(json, '}');
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < w->n_entries; i++) {
        const StTensor *tensor = &w->entries[i].tensor;
        json_key(json, tensor->name);
        json_open(json, '{');
        json_key(json, "dtype");
        json_string(json, DTYPES[tensor->dtype].name);
        json_key(json, "shape");
        json_open(json, '[');
        for (int d = 0; d < tensor->n_dims; d++)
            json_int(json, tensor->shape[d]);
        json_close(json, ']');
        json_key(json, "data_offsets");
        json_open(json, '[');
        json_int(json, (long long)offset);
        offset += tensor->n_bytes;
        json_int(json, (long long)offset);
        json_close(json, ']');
        json_close(json, '}');
    }
    json_close(json, '}');
}

/* Numbers in memory, to the file: little-endian. */
static void put_numbers(OutFile *out, const void *numbers, size_t n, size_t size)
{
    if (!BIG_ENDIAN_MEMORY) {
        out_put(out, numbers, n * size);
        return;
    }
    uint8_t block[4096];
    const size_t most = sizeof block / size;
    for (size_t i = 0; i < n; i += most) {
        const size_t count = n - i < most ? n - i : most;
        bytes_reverse(block, (const uint8_t *)numbers + i * size, count, size);
        out_put(out, block, count * size);
    }
}

int st_writer_save(StWriter *w, const char *path, Error *err)
{
    if (check_names(w, path, err))
        return -1;
    if (w->n_entries)
        qsort(w->entries, w->n_entries, sizeof *w->entries, compare_entries);
    JsonWriter json;
    OutFile out;
    json_begin(&json);
    write_header(w, &json);
    if (json.failed || json.length > ST_MAX_HEADER - 8) {
        int failed = json.failed;
        json_end(&json);
        return failed ? fail_memory(err, path, 0)
                      : fail(err, "%s: its header would be larger than 100 MB", path);
    }
    if (out_open(&out, path, err)) {
        json_end(&json);
        return -1;
    }
    out.sync = 1;
    static const char spaces[8] = "        "; /* the data then begin at a multiple of 8. */
    size_t padding = (8 - json.length % 8) % 8;
    uint64_t length = json.length + padding;
    put_numbers(&out, &length, 1, 8);
    out_put(&out, json.text, json.length);
    out_put(&out, spaces, padding);
    json_end(&json);
    for (size_t i = 0; i < w->n_entries; i++) {
        const StTensor *tensor = &w->entries[i].tensor;
        put_numbers(&out, tensor->data, tensor->n_elements, DTYPES[tensor->dtype].size);
    }
    return out_commit(&out, err);
}

/* ---- views -----------------------------------------------------------------------------------------*/

int st_writer_stack(StWriter *w, const char *name, const Safetensors *file, const StTensor *const *pieces,
                    int n, Error *err)
{
    StTensor whole = *pieces[0];
    for (int i = 0; i < n; i++) {
        const StTensor *piece = pieces[i];
        if (piece->dtype != ST_F32 && piece->dtype != ST_F16 && piece->dtype != ST_BF16 &&
            piece->dtype != ST_F64)
            return fail(err, "%s: tensor %s has dtype %s, expected F32, F16, BF16 or F64", file->path,
                        piece->name, st_dtype_name(piece->dtype));
        if (piece->n_dims != whole.n_dims || whole.n_dims < 1 ||
            memcmp(piece->shape + 1, whole.shape + 1, (size_t)(whole.n_dims - 1) * sizeof *whole.shape) != 0)
            return fail(err, "%s: tensors %s and %s have rows of different shapes", file->path,
                        pieces[0]->name, piece->name);
        if (i > 0)
            whole.shape[0] += piece->shape[0], whole.n_elements += piece->n_elements;
    }
    float *rows = calloc(whole.n_elements + 1, sizeof *rows);
    if (!rows)
        return fail_memory(err, name, (unsigned long long)whole.n_elements * sizeof *rows);
    if (st_writer_add(w, name, ST_F32, whole.n_dims, whole.shape, rows, err)) {
        free(rows);
        return -1;
    }
    w->entries[w->n_entries - 1].copy = rows;
    for (int i = 0; i < n; i++) {
        convert_to_f32(rows, pieces[i]);
        let_go(file, pieces[i]);
        rows += pieces[i]->n_elements;
    }
    return 0;
}

/* The writer's metadata as the header of a file has them. */
static int view_meta(Safetensors *st, Error *err)
{
    JsonWriter json;
    const StWriter only_meta = {.meta = st->writer->meta, .n_meta = st->writer->n_meta};
    json_begin(&json);
    write_header(&only_meta, &json);
    st->header = json.failed ? NULL : json_parse(json.text, json.length, st->path, err);
    const int failed = json.failed;
    json_end(&json);
    if (!st->header)
        return failed ? fail_memory(err, st->path, 0) : -1;
    st->meta = json_get(st->header, "__metadata__");
    return 0;
}

static int view_tensors(Safetensors *st, Error *err)
{
    const size_t n = st->writer->n_entries;
    st->tensors = calloc(n + 1, sizeof *st->tensors);
    st->by_name = calloc(n + 1, sizeof *st->by_name);
    st->converted = calloc(n + 1, sizeof *st->converted);
    if (!st->tensors || !st->by_name || !st->converted)
        return fail_memory(err, st->path, (n + 1) * sizeof *st->tensors);
    st->n_tensors = n;
    for (size_t i = 0; i < n; i++) {
        st->tensors[i] = st->writer->entries[i].tensor;
        st->by_name[i] = &st->tensors[i];
    }
    qsort(st->by_name, n, sizeof *st->by_name, compare_tensor_names);
    return check_names(st->writer, st->path, err);
}

Safetensors *st_view(const char *path, StWriter *w, Safetensors *const *parts, size_t n_parts, Error *err)
{
    Safetensors *st = st_new(path, err);
    if (!st)
        return NULL;
    st->writer = w;
    st->parts = malloc((n_parts + 1) * sizeof *st->parts);
    for (size_t i = 0; st->parts && i < n_parts; i++) {
        st->parts[i] = parts[i];
        st->borrowed |= parts[i]->borrowed;
    }
    if (!st->parts)
        fail_memory(err, path, n_parts * sizeof *st->parts);
    else if (!view_meta(st, err) && !view_tensors(st, err)) {
        st->n_parts = n_parts;
        return st;
    }
    st->writer = NULL; /* all stays the caller's. */
    st_close(st);
    return NULL;
}
