/* fuzz_safetensors.c - safetensors: every byte of every tensor of an accepted file can be read, and its names
 * can be made official. See fuzz.h. */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/file.h"
#include "io/safetensors.h"
#include "load/foreign.h"
#include "vit.h"

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
{
    char path[64];
    Error err;
    snprintf(path, sizeof path, "fuzz_safetensors.%ld", (long)getpid());
    if (file_write(path, bytes, n, &err))
        return 0;
    err.message[0] = 0;
    Safetensors *st = st_open(path, &err);
    unlink(path);
    if (!st)
        return err.message[0] ? 0 : (abort(), 0);
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < st_count(st); i++) {
        const StTensor *tensor = st_at(st, i);
        for (size_t k = 0; k < tensor->n_bytes; k++)
            sum = (uint8_t)(sum + ((const uint8_t *)tensor->data)[k]);
        if (st_find(st, tensor->name) != tensor)
            abort();
        st_f32(st, tensor->name, tensor->n_dims, tensor->shape, &err);
    }
    Safetensors *official = weights_official(st, &err);
    Vit *vit = official ? vit_open(official, &err) : NULL;
    vit_close(vit);
    st_close(official ? official : st);
    return 0;
}
