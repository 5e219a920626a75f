/* io/file.h - whole files and folders. */
#ifndef SAMLAD_IO_FILE_H
#define SAMLAD_IO_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* The whole file, malloc'd, with a NUL after it (not counted in *n). max_bytes bounds it. */
uint8_t *file_read(const char *path, size_t max_bytes, size_t *n, Error *err);
/* Write to "PATH.tmp.HOST.PID", then rename; on failure nothing is left behind. */
int file_write(const char *path, const void *bytes, size_t n, Error *err);

/* The same in pieces: open, put any number of times, then commit (rename) or drop. A put after a failed
 * one does nothing, so that only commit's status needs a look. Commit and drop both end the struct's life.
 * When the path is a link, the file behind it is replaced, and the link stays. When it names a device, a pipe
 * or what the shell has opened (/dev/stdout), the bytes go straight to it: a rename would replace it. */
typedef struct OutFile {
    void *stream;     /* FILE * */
    char *path, *tmp; /* path: behind the links; tmp NULL: straight to path */
    int failed;       /* the errno of the first failed put */
    int sync;         /* set it after open: commit waits until the disk has it (weights and banks; slow) */
} OutFile;
int out_open(OutFile *out, const char *path, Error *err);
void out_put(OutFile *out, const void *bytes, size_t n);
int out_commit(OutFile *out, Error *err);
void out_drop(OutFile *out);
/* Can a file be written there? For asking before long work: nothing is left behind, an old file stays. */
int out_try(const char *path, Error *err);

/* The path with ".tmp.HOST.PID" after it (a name that grows too long by this is cut before it): what this
 * process may write without meeting another, on this machine or on another that shares the folder. malloc'd;
 * NULL: no memory. */
char *temporary_name(const char *path);
/* The same bytes in both? 1, 0, or -1. Block by block, as is the copy: they may be larger than memory. */
int file_same(const char *a, const char *b, Error *err);
int file_copy(const char *from, const char *to, Error *err);
/* Wait until the disk has the file. */
int file_sync(const char *path, Error *err);
/* Give `from` the name `to` unless that exists (1); `from` is gone either way, but stays when neither can be
 * done (-1). */
int file_publish(const char *from, const char *to, Error *err);
/* Remove files in and below the folder that killed processes of this machine left under temporary names. */
int dir_sweep(const char *path, Error *err);
void dir_sweep_flat(const char *path); /* in the folder alone, where it can be read */
/* Remove the folder and all that is in it; none is fine. What other processes put there meanwhile stays, and
 * the folder with it: they remove it when they are through. */
int dir_remove(const char *path, Error *err);

/* Remove what is ours in a folder that others may use as well: the files in and below it whose names have
 * this ending, and the folders that are empty then. None is fine; links to folders are not followed. */
int dir_prune(const char *path, const char *ending, Error *err);

int file_exists(const char *path);
int dir_exists(const char *path);
int dir_make(const char *path, Error *err); /* with parents; existing is fine */
/* For qsort of char *: by bytes. */
int compare_names(const void *a, const void *b);
/* Names (not paths) of regular files (want_dirs 0) or folders (1) in `path`, sorted by bytes, without those
 * that begin with '.' and links that lead nowhere. Returns a malloc'd array whose strings are in the same
 * block (free(names) frees all), or NULL, also where only a part of the folder could be read. */
char **dir_list(const char *path, int want_dirs, size_t *n, Error *err);

/* SHA-256 (FIPS 180-4). */
void sha256(const void *bytes, size_t n, char hex[65]);

/* zlib and gzip streams (RFC 1950, 1951, 1952), checksums verified; at most max_out bytes. malloc'd, NULL on
 * failure. `name` is for messages. */
uint8_t *zlib_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err);
uint8_t *gzip_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err);
/* malloc'd zlib stream; NULL: no memory. */
uint8_t *zlib_deflate(const uint8_t *in, size_t n, size_t *n_out);
uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, size_t n);     /* start with 0 */
uint32_t adler32_update(uint32_t adler, const uint8_t *bytes, size_t n); /* start with 1 */

#endif
