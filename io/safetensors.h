/* io/safetensors.h - read (memory-mapped) and write safetensors files, and take weights from them.
 *
 * Format (huggingface/safetensors): u64 little-endian N, N bytes of JSON {name: {dtype, shape,
 * data_offsets}, "__metadata__": {string: string}}, then the data. The reader trusts nothing. On opening
 * it checks the header length, the depth of the JSON and duplicate names. It checks ranges (no overlap, no
 * hole), shape products and offsets against the file's size. */
#ifndef SAMLAD_IO_SAFETENSORS_H
#define SAMLAD_IO_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"
#include "io/number.h" /* float16, the conversion of an F16 tensor */

#define ST_MAX_DIMS 8

typedef enum StDtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_U16,
    ST_I16,
    ST_F16,
    ST_BF16,
    ST_U32,
    ST_I32,
    ST_F32,
    ST_U64,
    ST_I64,
    ST_F64,
    ST_N_DTYPES
} StDtype;

typedef struct StTensor {
    const char *name;
    StDtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[ST_MAX_DIMS];
    size_t n_elements, n_bytes;
    const void
        *data; /* in the mapping, or in a copy on big-endian machines, whose order it then has; alignment
                         is NOT guaranteed by the format. */
} StTensor;

typedef struct Safetensors Safetensors;
typedef struct StWriter StWriter;

/* Map the file and check all of it. NULL on failure. The path is kept for messages. */
Safetensors *st_open(const char *path, Error *err);
/* Open the bytes of a file in memory. They stay the caller's and must outlive it. `name` is for messages. */
Safetensors *st_open_memory(const char *name, const void *bytes, size_t n, Error *err);
void st_close(Safetensors *st); /* NULL allowed; pointers into it die with it. */
const char *st_path(const Safetensors *st);
size_t st_count(const Safetensors *st);
const StTensor *st_at(const Safetensors *st, size_t i);           /* in file order */
const StTensor *st_find(const Safetensors *st, const char *name); /* NULL when absent; O(log n). */
size_t st_meta_count(const Safetensors *st);
void st_meta_at(const Safetensors *st, size_t i, const char **key, const char **value);
const char *st_meta(const Safetensors *st, const char *key); /* NULL when absent */
/* Metadata as numbers, with a clear sentence when absent, malformed or outside [min, max]. */
int st_meta_int(const Safetensors *st, const char *key, int min, int max, int *out, Error *err);
int st_meta_float(const Safetensors *st, const char *key, double min, double max, double *out, Error *err);
/* A comma-separated list of exactly n floats. */
int st_meta_floats(const Safetensors *st, const char *key, int n, float *out, Error *err);

/* The tensor as float32. F32 is used in place when it is aligned. Otherwise it is converted once and kept
 * until st_close, as F16, BF16 and F64 are. Its shape must be exactly `shape` (-1 matches any). NULL on
 * failure; the sentence names file, tensor and both shapes. Not thread-safe: call it when the model opens. */
const float *st_f32(Safetensors *st, const char *name, int n_dims, const int64_t *shape, Error *err);
/* st_f32 with a printf-style name, whose values are the varargs:
 *   st_weight(st, err, 2, (int64_t[]){n, k}, "blocks.%d.attn.qkv.weight", i). */
const float *st_weight(Safetensors *st, Error *err, int n_dims, const int64_t *shape, const char *name_format,
                       ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 5, 6)))
#endif
    ;

/* SHA-256 of the whole file as 64 hex digits + NUL. Of several files (st_view): of their sums in a row. */
void st_sha256(const Safetensors *st, char hex[65]);

/* ---- writing: collect, then write in one go to a temporary name, fsync, rename --------------------*/
StWriter *st_writer_new(void); /* NULL: no memory */
/* `data` must stay valid until st_writer_save. Names and keys are copied. 0 / -1. */
int st_writer_add(StWriter *w, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                  const void *data, Error *err);
/* Add a private copy of the data. */
int st_writer_copy(StWriter *w, const char *name, StDtype dtype, int n_dims, const int64_t *shape,
                   const void *data, Error *err);
int st_writer_meta(StWriter *w, const char *key, const char *value, Error *err);
/* Write the file. Wide dtypes come first, so that all are aligned. -1 also when a name or key was given
 * twice. */
int st_writer_save(StWriter *w, const char *path, Error *err);
void st_writer_free(StWriter *w);

/* ---- views: files as one, and tensors under other names --------------------------------------------*/
/* Add a copy of its own, in float32: the pieces' rows, one piece below the other. Their pages of `file`, in
 * which they lie, are released. */
int st_writer_stack(StWriter *w, const char *name, const Safetensors *file, const StTensor *const *pieces,
                    int n, Error *err);
/* What st_writer_save would write, without writing it: the tensors stay where they are. The view owns the
 * writer and the parts, which are the files that the tensors lie in. On failure (NULL) they stay the caller's. */
Safetensors *st_view(const char *path, StWriter *w, Safetensors *const *parts, size_t n_parts, Error *err);

size_t st_dtype_size(StDtype dtype);
const char *st_dtype_name(StDtype dtype);

#endif
