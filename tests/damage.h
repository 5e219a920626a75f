/* damage.h - copies of a weights file with one error each, which its model must refuse. */
#ifndef SAMLAD_TEST_DAMAGE_H
#define SAMLAD_TEST_DAMAGE_H

#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"

/* Names of tensors; NULL: not used. */
typedef struct Damage {
    const char *without; /* is left out */
    const char *added;   /* 24 zeros under a new name */
    const char *flat;    /* has one dimension, [n] */
    const char *halved;  /* has half of its rows */
    const char *empty;   /* has none */
    const char *negated; /* float16, has the other sign */
    const char *changed; /* float32, of one number: this one */
    float number;
    const char *key, *value; /* of the metadata; value NULL: the key is left out */
    const char *expected;    /* must stand in the sentence */
} Damage;

static inline int damage_is(const char *wanted, const StTensor *t)
{
    return wanted && strcmp(wanted, t->name) == 0;
}

static inline uint16_t *negative_copy(const StTensor *halves)
{
    uint16_t *copy = malloc(halves->n_bytes);
    if (!copy)
        abort();
    memcpy(copy, halves->data, halves->n_bytes);
    for (size_t i = 0; i < halves->n_elements; i++)
        copy[i] ^= 0x8000;
    return copy;
}

/* Copy all metadata, `key` with this value (NULL: without it), and without `other`. 0 / -1 */
static inline int copy_metadata(StWriter *w, const Safetensors *from, const char *key, const char *value,
                                const char *other)
{
    int status = 0;
    for (size_t i = 0; status == 0 && i < st_meta_count(from); i++) {
        const char *name, *text;
        st_meta_at(from, i, &name, &text);
        if (key && strcmp(key, name) == 0)
            text = value;
        if (text && (!other || strcmp(other, name) != 0))
            status = st_writer_meta(w, name, text, NULL);
    }
    return status;
}

/* 0 / -1 */
static inline int write_damaged(const Safetensors *from, const Damage *d, const char *path)
{
    static const float zeros[24];
    StWriter *w = st_writer_new();
    uint16_t *negated = NULL;
    int status = w ? 0 : -1;
    for (size_t i = 0; status == 0 && i < st_count(from); i++) {
        const StTensor *t = st_at(from, i);
        const void *data = damage_is(d->changed, t) ? &d->number : t->data;
        int64_t shape[ST_MAX_DIMS];
        memcpy(shape, t->shape, sizeof shape);
        if (damage_is(d->without, t))
            continue;
        if (damage_is(d->flat, t))
            shape[0] = (int64_t)t->n_elements;
        if (damage_is(d->halved, t))
            shape[0] /= 2;
        if (damage_is(d->empty, t))
            shape[0] = 0;
        if (damage_is(d->negated, t))
            data = negated = negative_copy(t);
        status =
            st_writer_add(w, t->name, t->dtype, damage_is(d->flat, t) ? 1 : t->n_dims, shape, data, NULL);
    }
    if (status == 0 && d->added)
        status = st_writer_add(w, d->added, ST_F32, 1, (int64_t[]){24}, zeros, NULL);
    if (status == 0)
        status = copy_metadata(w, from, d->key, d->value, NULL);
    if (status == 0)
        status = st_writer_save(w, path, NULL);
    st_writer_free(w);
    free(negated);
    return status;
}

/* A copy with other widths, all zeros in float16. A dimension sizes[i][0] of a tensor whose name begins
 * with `prefix` becomes sizes[i][1]. metadata: with the metadata, except the keys `drop`. 0 / -1 */
typedef struct Resize {
    const char *prefix;
    int n_sizes, sizes[4][2];
    int metadata;
    const char *drop[2];
} Resize;

static inline void resize_shape(const Resize *r, const StTensor *t, int64_t shape[ST_MAX_DIMS], size_t *n)
{
    *n = 1;
    for (int d = 0; d < t->n_dims; d++) {
        shape[d] = t->shape[d];
        for (int i = 0; i < r->n_sizes && strncmp(t->name, r->prefix, strlen(r->prefix)) == 0; i++)
            if (t->shape[d] == r->sizes[i][0])
                shape[d] = r->sizes[i][1];
        *n *= (size_t)shape[d];
    }
}

static inline int write_resized(const Safetensors *from, const Resize *r, const char *path)
{
    int64_t shape[ST_MAX_DIMS];
    size_t n, most = 0;
    for (size_t i = 0; i < st_count(from); i++) {
        resize_shape(r, st_at(from, i), shape, &n);
        most = n > most ? n : most;
    }
    uint16_t *zeros = calloc(most + 1, sizeof *zeros);
    StWriter *w = st_writer_new();
    int status = zeros && w ? 0 : -1;
    for (size_t i = 0; status == 0 && i < st_count(from); i++) {
        const StTensor *t = st_at(from, i);
        resize_shape(r, t, shape, &n);
        status = st_writer_add(w, t->name, ST_F16, t->n_dims, shape, zeros, NULL);
    }
    if (status == 0 && r->metadata)
        status = copy_metadata(w, from, r->drop[0], NULL, r->drop[1]);
    if (status == 0)
        status = st_writer_save(w, path, NULL);
    st_writer_free(w);
    free(zeros);
    return status;
}

#endif
