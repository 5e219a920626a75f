/* threads.h - OpenMP's threads, or one thread without OpenMP. */
#ifndef SAMLAD_THREADS_H
#define SAMLAD_THREADS_H

int thread_max(void);       /* 1 without OpenMP */
int thread_team_size(void); /* threads of a parallel region that begins here; 1 inside another region */
int thread_number(void);    /* this thread's number in its team, from 0 */

/* *done += n, by any thread. Returns the new sum. */
int count_done(int *done, int n);

#endif
