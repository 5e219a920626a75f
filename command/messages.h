/* command/messages.h - the command's messages on stderr: failures, wrong usage, progress. */
#ifndef SAMLAD_COMMAND_MESSAGES_H
#define SAMLAD_COMMAND_MESSAGES_H

#include "io/error.h"

enum { EXIT_USAGE = 2 };

/* Print the sentence after "samlad: ". Returns EXIT_FAILURE. */
int failed(const Error *err);
/* Wrong usage of a sub-command: `format` has one %s, which takes `what`. Returns EXIT_USAGE. */
int usage_error(const char *command, const char *format, const char *what);

/* Say that 16-bit images are nearly black, when their largest value (0: there are none) is far below `white`, and
 * nobody has said what white is. images: "images", "test images"; where: the command that takes --white. */
void tell_dark(int brightest, int white, const char *images, const char *where);

/* A bar with an estimate. It appears on a terminal only, and only when the work takes over two seconds. */
typedef struct Progress {
    double start, shown; /* seconds of clock_seconds */
    const char *what;    /* the work that is under way. */
    int drawn;           /* 1: the bar is on the terminal. */
} Progress;

void show_progress(void *user, const char *what, int done, int total); /* a SamladProgress; user: Progress. */

#endif
