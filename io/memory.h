/* memory.h - the two kinds of memory that everything uses: an aligned array, and an arena that holds all
 * buffers of one model. */
#ifndef SAMLAD_MEMORY_H
#define SAMLAD_MEMORY_H

#include <stddef.h>

/* count*size bytes, aligned to 64; NULL without memory or if the product overflows. free() frees it. */
void *aligned_array(size_t count, size_t size);

/* A State struct is laid out twice by the same function: first on an arena without memory, which only counts,
 * then, after arena_allocate, on the real one. So a model has one malloc, and its size is known before. */
typedef struct Arena {
    char *base;  /* NULL: only count */
    size_t size; /* bytes at base */
    size_t used; /* bytes taken so far */
} Arena;

/* Allocate the memory that was counted; free(arena->base) frees it. 0, or -1 without memory: then arena->size
 * says how much was asked. */
int arena_allocate(Arena *arena);
/* n bytes aligned to 64, or NULL while counting. Taking more than was counted is a bug (an assertion). */
void *arena_take(Arena *arena, size_t n_bytes);
float *arena_floats(Arena *arena, size_t n_floats);

#endif
