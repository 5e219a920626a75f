/* pass.h - work on all images of a bank, in threads, with progress. */
#ifndef SAMLAD_PASS_H
#define SAMLAD_PASS_H

#include "io/error.h"

typedef struct Pass {
    int n;                                           /* images */
    int (*image)(void *context, int at, Error *err); /* work on one of them: 0 / -1; it writes only its own
                                                        places. */
    void *context;
    void (*progress)(void *user, int done, int total); /* called by the caller's thread; or NULL. */
    void *user;
    int before, total; /* progress: done before this pass, and in all passes. */
} Pass;

/* Work on all images. 0, or -1 and the first failure's sentence. */
int run_pass(const Pass *pass, Error *err);

#endif
