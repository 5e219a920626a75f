/* threads.h - OpenMP's threads, or one thread without OpenMP. */
#ifndef SAMLAD_THREADS_H
#define SAMLAD_THREADS_H

int tensor_max_threads(void); /* 1 without OpenMP */
int tensor_team_size(void);   /* threads of a parallel region that begins here; 1 inside another region */
int tensor_thread(void);      /* this thread's number in its team, from 0 */

#endif
