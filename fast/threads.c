/* threads.c - tasks for threads. See tile.h for the contracts. */
#include "fast/tile.h"

enum { MAX_CHUNKS = 256 };

static int take_number(int *next)
{
    int number;
#pragma omp atomic capture
    number = (*next)++;
    return number;
}

/* Contiguous chunks per thread avoid false sharing, and a thread reads the rows that it wrote in the layer
 * before. A thread that has finished its chunk helps with the others'. Tasks dealt out in turn would cost a
 * tenth of a product's speed, and a quarter of MobileSAM's. This was measured on machines whose cores share
 * no cache (AMD's larger ones). There the prefetcher reads ahead into lines that a neighbour writes. */
void run_tasks(int n, int threads, void (*task)(const void *job, int i), void (*idle)(const void *job),
               const void *job)
{
    int next[MAX_CHUNKS] = {0};
    const int chunks = min_int(min_int(threads, n), MAX_CHUNKS);
    if (chunks <= 1) {
        for (int i = 0; i < n; i++)
            task(job, i);
        return;
    }
#pragma omp parallel num_threads(threads) /* all of them: a smaller team would end the other threads. */
    {
        for (int k = 0, own = tensor_thread(); k < chunks; k++) {
            const int c = (own + k) % chunks;
            const int first = (int)((int64_t)n * c / chunks);
            const int end = (int)((int64_t)n * (c + 1) / chunks);
            for (int i; (i = first + take_number(&next[c])) < end;)
                task(job, i);
        }
        if (idle)
            idle(job);
    }
}
