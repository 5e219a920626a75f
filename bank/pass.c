/* pass.c - see pass.h. The images are independent of each other; each thread takes one at a time. Every
 * thread counts, but only the caller's thread reports progress. So the program's callback may take locks that
 * the caller's thread holds. */
#include "bank/pass.h"

#include "io/fail.h"
#include "io/threads.h"

/* The data that the threads of a pass share. */
typedef struct Running {
    const Pass *pass;
    int done, told, status;
    Error *err;
} Running;

/* The first failure of all threads is reported. */
static void take_failure(Running *r, const Error *err)
{
    int before;
#pragma omp atomic capture
    {
        before = r->status;
        r->status = -1;
    }
    if (before == 0)
        fail(r->err, "%s", err->message);
}

static void tell(Running *r, int done)
{
    const Pass *p = r->pass;
    if (p->progress && done != r->told)
        p->progress(p->user, p->before + done, p->total);
    r->told = done;
}

int run_pass(const Pass *pass, Error *err)
{
    Running r = {.pass = pass, .err = err};
#pragma omp parallel for schedule(dynamic, 1)
    for (int at = 0; at < pass->n; at++) {
        Error own;
        if (pass->image(pass->context, at, &own))
            take_failure(&r, &own);
        const int done = count_done(&r.done, 1);
        if (thread_number() == 0)
            tell(&r, done);
    }
    tell(&r, r.done);
    return r.status;
}
