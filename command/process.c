/* command/process.c - see process.h. */
#include "command/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "io/threads.h"

static volatile sig_atomic_t stopped_by;

/* SIGBUS: a mapped page is no longer in its file. Only calls that are safe in a signal handler. */
static void lost_page(int signal_number)
{
    static const char sentence[] = "samlad: a file of weights, a bank or an image was cut short while it was "
                                   "read\n";
    (void)signal_number;
    if (write(STDERR_FILENO, sentence, sizeof sentence - 1) < 0)
        _exit(1); /* nobody listens */
    _exit(1);
}

void process_begin(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY) != fd)
            _exit(1);
    threads_clamp();
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGBUS, lost_page);
}

static void stop(int signal_number)
{
    stopped_by = signal_number;
    signal(signal_number, SIG_DFL);
}

/* Ignored signals stay ignored: nohup ignores SIGHUP, and a shell ignores SIGINT for background jobs. */
static void stop_on(int signal_number)
{
    struct sigaction before;
    if (sigaction(signal_number, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        signal(signal_number, stop);
}

void process_stop_gently(void)
{
    stop_on(SIGINT);
    stop_on(SIGTERM);
    stop_on(SIGHUP);
    signal(SIGPIPE, SIG_IGN);
}

int process_stopped(void)
{
    return stopped_by;
}

void process_end_stopped(void)
{
    signal(stopped_by, SIG_DFL);
    raise(stopped_by);
}
