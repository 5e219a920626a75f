/* threads.c - see threads.h. */
#include "io/threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif

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

int count_done(int *done, int n)
{
    int sum;
#pragma omp atomic capture
    sum = *done += n;
    return sum;
}
