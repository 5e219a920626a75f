/* threads.h - OpenMP's threads, or one thread without OpenMP. */
#ifndef SAMLAD_THREADS_H
#define SAMLAD_THREADS_H

#include <stddef.h>

#include "io/error.h"

int thread_max(void);       /* 1 without OpenMP */
int thread_team_size(void); /* threads of a parallel region that begins here; 1 inside another region */
int thread_number(void);    /* this thread's number in its team, from 0 */

/* OMP_NUM_THREADS may ask for more threads than the system can start, and then OpenMP ends the program. If
 * it asks for more than THREADS_MOST and more than there are processors, the calling thread uses as many as
 * there are processors. */
enum { THREADS_MOST = 256 };
void threads_clamp(void);

/* This thread's scratch memory, at least n_bytes, aligned to 64. It is allocated once, grows when more is
 * asked, and is freed when the thread ends. Its contents last until the thread's next call. NULL without
 * memory; the earlier memory then stays. Products and attentions take it, because stacks of threads are small
 * (128 KB with musl). */
void *thread_scratch(size_t n_bytes);
/* thread_scratch, with a sentence: `what` needs it. Afterwards this thread's thread_scratch of as many bytes
 * cannot fail. 0 / -1. */
int thread_reserve(size_t n_bytes, const char *what, Error *err);

/* *done += n, by any thread. Returns the new sum. */
int count_done(int *done, int n);

#endif
