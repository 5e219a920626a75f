/* command/outputs.h - the folder that a command writes (-o). It holds the outputs of one run, and one process writes
 * it. Its file written.list holds the path of each output, below the folder and with a NUL byte behind it. The
 * process that writes holds a lock on this file (flock). The system drops the lock when the process ends, however it
 * ends. */
#ifndef SAMLAD_COMMAND_OUTPUTS_H
#define SAMLAD_COMMAND_OUTPUTS_H

#include "command/args.h"

typedef struct OutputFolder {
    char folder[PATH_SIZE], list[PATH_SIZE];
    int lock;  /* written.list, open; -1: none. */
    int empty; /* 1: nothing is written yet. */
} OutputFolder;

/* Make the folder args->out and lock it. A folder with outputs is refused; with args->force what written.list names
 * is removed first, and nothing else. On a file system without locks a message says so, and the work goes on.
 * outputs_close is needed even after a failure. */
int outputs_open(OutputFolder *o, const Args *args, Error *err);
/* Before an output is written: `path` begins with the folder. A file that is there already is refused. */
int outputs_note(OutputFolder *o, const char *path, Error *err);
/* Refuse a folder with such outputs, for a command that shares its folder between processes. folder may be NULL. */
int outputs_refuse(const char *folder, Error *err);
/* Drop the lock; a list without outputs is removed. */
void outputs_close(OutputFolder *o);

#endif
