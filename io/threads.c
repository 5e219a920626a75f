/* threads.c - see threads.h. */
#include "io/threads.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "io/fail.h"
#include "io/memory.h"

int thread_max(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int thread_team_size(void)
{
#ifdef _OPENMP
    return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

void threads_clamp(void)
{
#ifdef _OPENMP
    const int asked = omp_get_max_threads(), processors = omp_get_num_procs();
    if (asked > THREADS_MOST && asked > processors)
        omp_set_num_threads(processors);
#endif
}

/* ---- scratch ---------------------------------------------------------------------------------------*/

/* At the beginning of the memory; the caller's part follows. */
typedef struct Scratch {
    size_t n_bytes; /* of the caller's part. */
    char padding[64 - sizeof(size_t)];
} Scratch;

static pthread_key_t scratch_key;
static int scratch_key_made;

static void make_scratch_key(void)
{
    scratch_key_made = pthread_key_create(&scratch_key, free) == 0;
}

void *thread_scratch(size_t n_bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_scratch_key);
    Scratch *old = scratch_key_made ? pthread_getspecific(scratch_key) : NULL;
    if (old && old->n_bytes >= n_bytes)
        return old + 1;
    Scratch *grown = n_bytes < SIZE_MAX - sizeof *grown ? aligned_array(sizeof *grown + n_bytes, 1) : NULL;
    if (!grown || !scratch_key_made || pthread_setspecific(scratch_key, grown) != 0) {
        free(grown);
        return NULL;
    }
    free(old);
    grown->n_bytes = n_bytes;
    return grown + 1;
}

int thread_reserve(size_t n_bytes, const char *what, Error *err)
{
    return thread_scratch(n_bytes) ? 0 : fail_memory(err, what, n_bytes);
}

int count_done(int *done, int n)
{
    int sum;
#pragma omp atomic capture
    sum = *done += n;
    return sum;
}
