/* io/file.h - whole files and folders. */
#ifndef SAMLAD_IO_FILE_H
#define SAMLAD_IO_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* Read the whole file, malloc'd, with a NUL after it that *n does not count. max_bytes is the limit. */
uint8_t *file_read(const char *path, size_t max_bytes, size_t *n, Error *err);
/* Map the whole file instead: only what is looked at is read. NULL on failure, also of an empty file. */
const uint8_t *file_map(const char *path, size_t *n, Error *err);
void file_unmap(const uint8_t *bytes, size_t n);
/* Write to "PATH.tmp.HOST.PID", then rename. On failure nothing is left behind. */
int file_write(const char *path, const void *bytes, size_t n, Error *err);

/* Write in pieces: open, put any number of times, then commit (rename) or drop. A put after a failed put
 * does nothing, so only the status of commit needs a check. Commit and drop both end the life of the
 * struct.
 *
 * If the path is a link, the file behind it is replaced and the link stays. A device, a pipe
 * or an open stream (/dev/stdout) gets the bytes directly, because a rename would replace it. */
typedef struct OutFile {
    void *stream;     /* FILE * */
    char *path, *tmp; /* path: with links followed; tmp NULL: write straight to path. */
    int failed;       /* the errno of the first failed put. */
    int sync;         /* set it after open: commit then waits for the disk (weights and banks; slow). */
} OutFile;
int out_open(OutFile *out, const char *path, Error *err);
void out_put(OutFile *out, const void *bytes, size_t n);
int out_commit(OutFile *out, Error *err);
void out_drop(OutFile *out);
/* Can the file be written? Ask before long work: nothing is left behind, and an old file stays. */
int out_try(const char *path, Error *err);

/* The name that an image's outputs begin with: the first n bytes of the image's own. If an ending of 24 bytes would
 * make it too long for a file, its last bytes give way to a checksum of the whole. */
enum { OUTPUT_NAME = 255 - 24 + 1 };
void output_name(char cut[OUTPUT_NAME], const char *name, size_t n);
/* The path with ".tmp.HOST.PID" after it; a long name is cut first. No other process has this name, on
 * this machine or on another that shares the folder. malloc'd; NULL: no memory. */
char *temporary_name(const char *path);
/* 1 when both files have the same bytes, 0 when not, -1 on failure. It compares block by block, and
 * file_copy copies so: files may be larger than memory. */
int file_same(const char *a, const char *b, Error *err);
int file_copy(const char *from, const char *to, Error *err);
/* Wait until the file is on the disk. */
int file_sync(const char *path, Error *err);
/* Rename `from` to `to` unless `to` exists (then 1). `from` is removed either way; only after -1 it may
 * stay. */
int file_publish(const char *from, const char *to, Error *err);
/* Remove temporary files of killed processes of this machine, in and below the folder. */
int dir_sweep(const char *path, Error *err);
int dir_sweep_flat(const char *path, Error *err); /* in the folder alone, if it can be read. */
/* Remove the folder and its contents; a missing folder is fine. Files that other processes add meanwhile
 * stay, and the folder with them: those processes remove it later. */
int dir_remove(const char *path, Error *err);

/* Remove our files in a folder that others may use too: in and below it, the files with this ending, then
 * the empty folders. A missing folder is fine. Links to folders are not followed. */
int dir_prune(const char *path, const char *ending, Error *err);

int file_exists(const char *path);
int dir_exists(const char *path);
int dir_make(const char *path, Error *err); /* with parents; an existing folder is fine. */
/* For qsort of char *: order by bytes. */
int compare_names(const void *a, const void *b);
/* Names (not paths) of folders (want_dirs 1) or of all else (0) in `path`, sorted by bytes; links are followed, and those
 * that lead nowhere are no folders. Names that begin with '.' are left out. Returns a malloc'd array with its strings in
 * the same block, so free(names) frees all. NULL on failure, also when only a part of the folder could be
 * read. */
char **dir_list(const char *path, int want_dirs, size_t *n, Error *err);

/* SHA-256 (FIPS 180-4). */
void sha256(const void *bytes, size_t n, char hex[65]);

/* Unpack zlib and gzip streams (RFC 1950, 1951, 1952) with their checksums, to at most max_out bytes.
 * malloc'd, NULL on failure. `name` is for messages. */
uint8_t *zlib_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err);
uint8_t *gzip_inflate(const uint8_t *in, size_t n, size_t max_out, size_t *n_out, const char *name,
                      Error *err);
/* malloc'd zlib stream; NULL: no memory. */
uint8_t *zlib_deflate(const uint8_t *in, size_t n, size_t *n_out);
uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, size_t n);     /* start with 0 */
uint32_t adler32_update(uint32_t adler, const uint8_t *bytes, size_t n); /* start with 1 */

#endif
