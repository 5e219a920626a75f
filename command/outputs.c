/* command/outputs.c - see outputs.h. */
#include "command/outputs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command/messages.h"
#include "io/fail.h"
#include "io/file.h"

static int lock_list(OutputFolder *o, Error *err)
{
    Error told;
    struct stat info;
    o->lock = open(o->list, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (o->lock < 0)
        return fail(err, "%s: cannot create: %s", o->list, strerror(errno));
    const int status = flock(o->lock, LOCK_EX | LOCK_NB);
    const int why = errno;
    /* an empty list is removed at the end, so the file that was opened may have no name any more. */
    if (fstat(o->lock, &info) != 0)
        return fail(err, "%s: cannot read: %s", o->list, strerror(errno));
    if ((status && why == EWOULDBLOCK) || info.st_nlink == 0)
        return fail(err, "%s: another process writes to this folder: give another one", o->folder);
    o->empty = info.st_size == 0;
    if (status) {
        fail(&told, "%s: no lock: %s: take care that no other process writes to this folder", o->list,
             strerror(why));
        failed(&told);
    }
    return 0;
}

/* Could this line of the list lead out of the folder? Then it is not ours. */
static int leads_out(const char *name)
{
    return !*name || name[0] == '/' || strcmp(name, "..") == 0 || strncmp(name, "../", 3) == 0 ||
           strstr(name, "/../");
}

/* Remove one output, and the folders that are empty then. */
static int remove_output(const char *folder, const char *name, Error *err)
{
    char path[PATH_SIZE];
    if (leads_out(name) || snprintf(path, sizeof path, "%s/%s", folder, name) >= PATH_SIZE)
        return fail(err, "%s/written.list: '%.300s' is no output of samlad", folder, name);
    if (unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR)
        return fail(err, "%s: cannot remove: %s", path, strerror(errno));
    for (char *slash; (slash = strrchr(path, '/')) > path + strlen(folder);) {
        *slash = '\0';
        if (rmdir(path) != 0)
            break;
    }
    return 0;
}

/* Remove the outputs, then empty the list. A path without its NUL was never written to. */
static int remove_outputs(OutputFolder *o, const char *names, size_t n, Error *err)
{
    for (size_t at = 0; at < n; at += strlen(names + at) + 1)
        if (at + strlen(names + at) < n && remove_output(o->folder, names + at, err))
            return -1;
    if (ftruncate(o->lock, 0) != 0)
        return fail(err, "%s: cannot write: %s", o->list, strerror(errno));
    o->empty = 1;
    return 0;
}

/* Outputs of other commands, or of a samlad without lists, cannot be told from other files. */
static int check_foreign(const OutputFolder *o, Error *err)
{
    char path[PATH_SIZE + 16];
    snprintf(path, sizeof path, "%s/results.jsonl", o->folder);
    return file_exists(path)
               ? fail(err, "%s: this file exists and is not in written.list: give another folder", path)
               : 0;
}

int outputs_open(OutputFolder *o, const Args *args, Error *err)
{
    enum { LARGEST_LIST = 1 << 30 };
    *o = (OutputFolder){.lock = -1};
    snprintf(o->folder, sizeof o->folder, "%s", args->out);
    if (snprintf(o->list, sizeof o->list, "%s/written.list", args->out) >= PATH_SIZE)
        return fail(err, "%s: the path is too long", args->out);
    if (dir_make(o->folder, err) || lock_list(o, err) || dir_sweep_flat(o->folder, err))
        return -1;
    size_t n;
    char *names = (char *)file_read(o->list, LARGEST_LIST, &n, err);
    int status = names ? 0 : -1;
    if (names && n > 0)
        status = args->force
                     ? remove_outputs(o, names, n, err)
                     : fail(err,
                            "%s: this folder has outputs of an earlier run: give another one, or remove "
                            "them with --force",
                            o->folder);
    free(names);
    return status ? -1 : check_foreign(o, err);
}

int outputs_refuse(const char *folder, Error *err)
{
    char list[PATH_SIZE];
    return folder && snprintf(list, sizeof list, "%s/written.list", folder) < PATH_SIZE && file_exists(list)
               ? fail(err, "%s: this folder has outputs of detect or segment: give another one", folder)
               : 0;
}

int outputs_note(OutputFolder *o, const char *path, Error *err)
{
    const char *name = path + strlen(o->folder) + 1;
    const size_t n = strlen(name) + 1;
    struct stat info;
    if (lstat(path, &info) == 0) /* somebody's, or a link to somebody's. */
        return fail(err, "%s: this file exists and is not in written.list: give another folder", path);
    o->empty = 0;
    return write(o->lock, name, n) == (ssize_t)n
               ? 0
               : fail(err, "%s: cannot write: %s", o->list, strerror(errno ? errno : EIO));
}

void outputs_close(OutputFolder *o)
{
    if (o->lock < 0)
        return;
    if (o->empty)
        unlink(o->list);
    close(o->lock);
}
