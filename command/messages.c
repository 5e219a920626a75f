/* command/messages.c - see messages.h. */
#include "command/messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/clock.h"
#include "io/fail.h"
#include "io/image.h"
#include "report/report.h"

/* The line is written in one piece, because other processes may write to the same place. report_plain escapes
 * control characters: file names and the user's words must not steer the terminal. */
static void put_line(FILE *out, const char *sentence, const char *hint)
{
    fputs("samlad: ", out);
    report_plain(out, sentence);
    fprintf(out, "%s\n", hint);
}

static void complain(const char *sentence, const char *hint)
{
    char *line = NULL;
    size_t n;
    FILE *memory = open_memstream(&line, &n);
    if (memory)
        put_line(memory, sentence, hint);
    if (memory && fclose(memory) == 0)
        fputs(line, stderr);
    else
        put_line(stderr, sentence, hint); /* no memory: in several pieces. */
    free(line);
}

int failed(const Error *err)
{
    complain(err->message, "");
    return EXIT_FAILURE;
}

int usage_error(const char *command, const char *format, const char *what)
{
    Error err;
    char hint[64];
    fail(&err, format, what);
    snprintf(hint, sizeof hint, " (see samlad %s --help)", command);
    complain(err.message, hint);
    return EXIT_USAGE;
}

void tell_dark(int brightest, int white, const char *images, const char *where)
{
    Error err;
    if (white != IMAGE_WHITE || !image_is_dark(brightest))
        return;
    fail(&err,
         "the largest value of the 16-bit %s is %d of %d, so they are nearly black: give %s--white auto, "
         "or --white %d",
         images, brightest, IMAGE_WHITE, where, image_white(brightest));
    failed(&err);
}

void show_progress(void *user, const char *what, int done, int total)
{
    Progress *p = user;
    double t = clock_seconds();
    if (p->what != what) {
        p->what = what;
        p->start = t;
    }
    if (!isatty(STDERR_FILENO) || (done < total && (t - p->start < 2 || t - p->shown < 0.2)) ||
        (done == total && !p->drawn))
        return;
    double left = done > 0 ? (t - p->start) * (total - done) / done : 0;
    int filled = total > 0 ? 30 * done / total : 30;
    fprintf(stderr, "\r%-14s [%.*s%.*s] %d/%d, %.0f s left   ", what, filled,
            "##############################", 30 - filled, "..............................", done, total,
            left);
    p->drawn = 1;
    p->shown = t;
    if (done == total) {
        fprintf(stderr, "\r%*s\r", 78, "");
        p->drawn = 0;
    }
}
