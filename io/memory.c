/* memory.c - see memory.h. */
#include "io/memory.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)

/* Large arrays take huge pages where the system has them. There are then 512 times fewer page faults, and a
 * walk over rows that are far apart misses the TLB less often. */
void *aligned_array(size_t count, size_t size)
{
    if (size != 0 && count > (SIZE_MAX / 2) / size)
        return NULL;
    const size_t align = count * size >= 2 * HUGE_PAGE ? HUGE_PAGE : 64;
    size_t n_bytes = (count * size + align - 1) & ~(align - 1);
    void *array = aligned_alloc(align, n_bytes ? n_bytes : 64);
#ifdef MADV_HUGEPAGE
    if (array && align == HUGE_PAGE)
        madvise(array, n_bytes, MADV_HUGEPAGE);
#endif
    return array;
}

int arena_allocate(Arena *arena)
{
    const size_t n_bytes = arena->used;
    *arena = (Arena){aligned_array(n_bytes, 1), n_bytes, 0};
    return arena->base ? 0 : -1;
}

void *arena_take(Arena *arena, size_t n_bytes)
{
    size_t size = (n_bytes + 63) & ~(size_t)63;
    assert(!arena->base || size <= arena->size - arena->used);
    char *taken = arena->base ? arena->base + arena->used : NULL;
    arena->used += size;
    return taken;
}

float *arena_floats(Arena *arena, size_t n_floats)
{
    return arena_take(arena, n_floats * sizeof(float));
}
