/* io/file.c - whole files, folders, and SHA-256 (FIPS 180-4). A file is written under a temporary name and
 * renamed when it is complete. So a reader never meets half a file, and a failed run leaves the old file
 * unchanged. */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/fail.h"

/* ---- reading ---------------------------------------------------------------------------------------*/

/* Read until the end; the buffer doubles. Pipes and /proc files have no size to ask for. */
static uint8_t *read_all(FILE *f, const char *path, size_t capacity, size_t max_bytes, size_t *n, Error *err)
{
    uint8_t *bytes = malloc(capacity + 1);
    size_t length = 0;
    while (bytes) {
        length += fread(bytes + length, 1, capacity - length, f);
        if (length < capacity)
            break;
        if (capacity >= max_bytes) { /* full: is there a byte beyond the limit? */
            if (fgetc(f) == EOF)
                break;
            fail(err, "%s: larger than the %zu bytes allowed here", path, max_bytes);
            free(bytes);
            return NULL;
        }
        capacity = capacity > max_bytes / 2 ? max_bytes : capacity * 2;
        uint8_t *grown = realloc(bytes, capacity + 1);
        if (!grown)
            free(bytes);
        bytes = grown;
    }
    if (!bytes) {
        fail_memory(err, path, capacity + 1);
        return NULL;
    }
    if (ferror(f)) {
        fail(err, "%s: cannot read: %s", path, strerror(errno));
        free(bytes);
        return NULL;
    }
    bytes[length] = 0;
    *n = length;
    return bytes;
}

uint8_t *file_read(const char *path, size_t max_bytes, size_t *n, Error *err)
{
    *n = 0;
    FILE *f = fopen(path, "rbe");
    if (!f) {
        fail(err, "%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    struct stat info;
    uint8_t *bytes = NULL;
    if (fstat(fileno(f), &info) != 0)
        fail(err, "%s: cannot read: %s", path, strerror(errno));
    else if (S_ISDIR(info.st_mode))
        fail(err, "%s: is a folder, expected a file", path);
    else if (S_ISREG(info.st_mode) && (unsigned long long)info.st_size > max_bytes)
        fail(err, "%s: %lld bytes, larger than the %zu allowed here", path, (long long)info.st_size,
             max_bytes);
    else {
        /* Ask for one byte more than the size: the first read then already meets the end. */
        size_t capacity = S_ISREG(info.st_mode) && info.st_size > 0 ? (size_t)info.st_size + 1 : 4096;
        bytes = read_all(f, path, capacity < max_bytes ? capacity : max_bytes, max_bytes, n, err);
    }
    fclose(f);
    return bytes;
}

/* ---- temporary names -------------------------------------------------------------------------------*/

/* Machines that share a folder may have equal process numbers, so the name contains the machine's. */
static void host_name(char host[64])
{
    if (gethostname(host, 63) != 0)
        strcpy(host, "host");
    host[63] = 0;
    for (char *c = host; *c; c++)
        *c = *c == '/' ? '_' : *c;
}

enum { LONGEST_NAME = 255 }; /* longest file name on nearly every file system. */

/* cut [longest + 1] = the n bytes of `name` if there is room, else the first of them, "~" and a checksum (FNV-1a)
 * of all. It tells the name from others cut alike. Characters of UTF-8 stay whole. */
static void cut_name(char *cut, const char *name, size_t n, size_t longest)
{
    if (n <= longest) {
        snprintf(cut, longest + 1, "%.*s", (int)n, name);
        return;
    }
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        sum = (sum ^ (unsigned char)name[i]) * 0x100000001b3u;
    size_t kept = longest - 17;
    while (kept > 0 && ((unsigned char)name[kept] & 0xc0) == 0x80)
        kept--;
    snprintf(cut, longest + 1, "%.*s~%016llx", (int)kept, name, (unsigned long long)sum);
}

void output_name(char cut[OUTPUT_NAME], const char *name, size_t n)
{
    cut_name(cut, name, n, OUTPUT_NAME - 1);
}

char *temporary_name(const char *path)
{
    char host[64], ending[128], cut[LONGEST_NAME + 1];
    host_name(host);
    snprintf(ending, sizeof ending, ".tmp.%s.%ld", host, (long)getpid());
    const char *slash = strrchr(path, '/');
    const size_t folder = slash ? (size_t)(slash + 1 - path) : 0, size = strlen(path) + 160;
    char *name = malloc(size);
    if (!name)
        return NULL;
    cut_name(cut, path + folder, strlen(path + folder), LONGEST_NAME - strlen(ending));
    snprintf(name, size, "%.*s%s%s", (int)folder, path, cut, ending);
    return name;
}

/* Did a process of this machine leave the file, and is that process gone? */
static int is_stale(const char *name)
{
    char host[64], rest[96];
    const char *found = NULL;
    for (const char *at = name; (at = strstr(at, ".tmp.")) != NULL; at++)
        found = at;
    host_name(host);
    snprintf(rest, sizeof rest, ".tmp.%s.", host);
    if (!found || strncmp(found, rest, strlen(rest)) != 0)
        return 0;
    char *end;
    long pid = strtol(found + strlen(rest), &end, 10);
    return *end == 0 && pid > 0 && pid != (long)getpid() && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

static int sweep_one(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info;
    if (type == FTW_F && is_stale(path + at->base))
        unlink(path); /* another process may have been first. */
    return 0;
}

/* nftw for folders that other processes change. A folder that vanishes under the walk ends it, and the
 * walk begins again. Each round needs a folder that vanished, so the rounds end. */
static int walk(const char *path, int (*visit)(const char *, const struct stat *, int, struct FTW *),
                int flags)
{
    while (dir_exists(path)) {
        if (nftw(path, visit, 16, FTW_PHYS | flags) == 0)
            break;
        if (errno != ENOENT)
            return -1;
    }
    return 0;
}

int dir_sweep(const char *path, Error *err)
{
    return walk(path, sweep_one, 0) == 0
               ? 0
               : fail(err, "%s: cannot look through the folder: %s", path, strerror(errno));
}

int dir_sweep_flat(const char *path, Error *err)
{
    size_t n;
    char **names = access(path, R_OK) == 0 ? dir_list(path, 0, &n, err) : NULL, file[PATH_MAX];
    if (!names)
        return access(path, R_OK) == 0 ? -1 : 0;
    for (size_t i = 0; i < n; i++)
        if (is_stale(names[i]) && snprintf(file, sizeof file, "%s/%s", path, names[i]) < PATH_MAX)
            unlink(file); /* another process may have been first. */
    free(names);
    return 0;
}

/* A folder that another process has filled again stays, with its files. */
static int remove_one(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info, (void)at;
    if (remove(path) == 0 || errno == ENOENT)
        return 0;
    return type == FTW_DP && (errno == ENOTEMPTY || errno == EEXIST) ? 0 : -1;
}

int dir_remove(const char *path, Error *err)
{
    return walk(path, remove_one, FTW_DEPTH) == 0
               ? 0
               : fail(err, "%s: cannot remove the folder: %s", path, strerror(errno));
}

static int prune_entry(const char *dir, const char *name, int is_dir, const char *ending, int depth,
                       Error *err);

/* Prune the folder's entries, files first. An entry that another process has removed is fine. */
static int prune(const char *path, const char *ending, int depth, Error *err)
{
    if (depth > 32)
        return fail(err, "%s: folders are nested too deep", path);
    int status = 0;
    for (int dirs = 0; dirs <= 1 && !status && dir_exists(path); dirs++) {
        size_t n;
        char **names = dir_list(path, dirs, &n, err);
        if (!names)
            return dir_exists(path) ? -1 : 0;
        for (size_t i = 0; i < n && !status; i++)
            status = prune_entry(path, names[i], dirs, ending, depth, err);
        free(names);
    }
    if (!status)
        rmdir(path); /* fails while something is in it. */
    return status;
}

static int prune_entry(const char *dir, const char *name, int is_dir, const char *ending, int depth,
                       Error *err)
{
    struct stat info;
    size_t n = strlen(name), n_ending = strlen(ending);
    if (!is_dir && (n < n_ending || strcmp(name + n - n_ending, ending) != 0))
        return 0;
    char *path = malloc(strlen(dir) + n + 2);
    if (!path)
        return fail_memory(err, dir, strlen(dir) + n + 2);
    sprintf(path, "%s/%s", dir, name);
    int status = 0;
    if (!is_dir && unlink(path) != 0 && errno != ENOENT)
        status = fail(err, "%s: cannot remove: %s", path, strerror(errno));
    else if (is_dir && lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
        status = prune(path, ending, depth + 1, err);
    free(path);
    return status;
}

int dir_prune(const char *path, const char *ending, Error *err)
{
    return prune(path, ending, 0, err);
}

int file_sync(const char *path, Error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), status = fd < 0 || fsync(fd) != 0 ? -1 : 0;
    if (status)
        fail(err, "%s: cannot be brought to the disk: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return status;
}

int file_publish(const char *from, const char *to, Error *err)
{
    int existed = 0;
    if (link(from, to) != 0) {
        existed = errno == EEXIST;
        /* file systems without hard links: the last process wins. */
        if (!existed && rename(from, to) != 0)
            return fail(err, "%s: cannot be renamed to %s: %s", from, to, strerror(errno));
    }
    unlink(from);
    return existed;
}

/* ---- writing ---------------------------------------------------------------------------------------*/

/* Is the path an open stream, such as /dev/stdout? A rename cannot replace its file. */
static int is_open_file(const char *path)
{
    return strncmp(path, "/dev/std", 8) == 0 || strncmp(path, "/dev/fd/", 8) == 0 ||
           strncmp(path, "/proc/", 6) == 0;
}

static int is_special(const char *path)
{
    struct stat info;
    return is_open_file(path) || (stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode));
}

/* Follow the link *at by one step. 1: there is no link to follow. -1: no memory, or a path that is too
 * long. */
static int follow_link(char **at)
{
    char target[PATH_MAX];
    ssize_t length = is_open_file(*at) ? -1 : readlink(*at, target, sizeof target);
    if (length < 0)
        return 1;
    const char *slash = strrchr(*at, '/');
    size_t folder = target[0] != '/' && slash ? (size_t)(slash + 1 - *at) : 0;
    char *next = length < PATH_MAX ? malloc(folder + (size_t)length + 1) : NULL;
    if (!next)
        return -1;
    memcpy(next, *at, folder);
    memcpy(next + folder, target, (size_t)length);
    next[folder + (size_t)length] = 0;
    free(*at);
    *at = next;
    return 0;
}

/* The path, or the target of its link, which may be missing. malloc'd; NULL after a sentence. */
static char *behind_links(const char *path, Error *err)
{
    enum { MOST_LINKS = 40 }; /* as Linux */
    char *at = strdup(path);
    int status = at ? 0 : -1;
    for (int n = 0; status == 0 && n < MOST_LINKS; n++)
        status = follow_link(&at);
    if (status > 0)
        return at;
    fail(err, "%s: cannot follow the link: %s", path, strerror(status < 0 ? ENOMEM : ELOOP));
    free(at);
    return NULL;
}

static void out_release(OutFile *out)
{
    free(out->path);
    free(out->tmp);
    memset(out, 0, sizeof *out);
}

int out_open(OutFile *out, const char *path, Error *err)
{
    memset(out, 0, sizeof *out);
    out->path = behind_links(path, err);
    if (!out->path)
        return -1;
    int special = is_special(out->path);
    out->tmp = special ? NULL : temporary_name(out->path);
    if (!special && !out->tmp) {
        out_release(out);
        return fail_memory(err, path, strlen(path) + 1);
    }
    /* append to an open stream: the shell's >> must not lose its contents. */
    out->stream = fopen(special ? out->path : out->tmp, is_open_file(out->path) ? "abe" : "wbe");
    if (!out->stream) {
        fail(err, "%s: cannot create: %s", out->path, strerror(errno));
        out_release(out);
        return -1;
    }
    return 0;
}

void out_put(OutFile *out, const void *bytes, size_t n)
{
    if (!out->failed && n > 0 && fwrite(bytes, 1, n, out->stream) != n)
        out->failed = errno ? errno : EIO;
}

void out_drop(OutFile *out)
{
    if (out->stream) {
        fclose(out->stream);
        if (out->tmp)
            unlink(out->tmp);
    }
    out_release(out);
}

int out_try(const char *path, Error *err)
{
    OutFile out;
    if (dir_exists(path))
        return fail(err, "%s: is a folder, expected the name of a file", path);
    if (is_special(path)) /* the reader of a pipe would take this for the end. */
        return 0;
    if (out_open(&out, path, err))
        return -1;
    out_drop(&out);
    return 0;
}

int out_commit(OutFile *out, Error *err)
{
    FILE *f = out->stream;
    if (!out->failed && fflush(f) != 0)
        out->failed = errno;
    if (!out->failed && out->sync && out->tmp && fsync(fileno(f)) != 0)
        out->failed = errno;
    if (fclose(f) != 0 && !out->failed)
        out->failed = errno;
    if (!out->failed && out->tmp && rename(out->tmp, out->path) != 0)
        out->failed = errno;
    int status = 0;
    if (out->failed) {
        if (out->tmp)
            unlink(out->tmp);
        status = fail(err, "%s: cannot write: %s", out->path, strerror(out->failed));
    }
    out_release(out);
    return status;
}

const uint8_t *file_map(const char *path, size_t *n, Error *err)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would block. */
    const int known = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0 &&
                      (uint64_t)info.st_size <= SIZE_MAX;
    *n = known ? (size_t)info.st_size : 0;
    void *map = known ? mmap(NULL, *n, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (fd >= 0)
        close(fd);
    if (map != MAP_FAILED)
        return map;
    fail(err, "%s: cannot read: %s", path, fd >= 0 && !known ? "not a file with contents" : strerror(errno));
    return NULL;
}

void file_unmap(const uint8_t *bytes, size_t n)
{
    if (bytes)
        munmap((void *)(uintptr_t)bytes, n);
}

int file_write(const char *path, const void *bytes, size_t n, Error *err)
{
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    out_put(&out, bytes, n);
    return out_commit(&out, err);
}

/* ---- file by file ----------------------------------------------------------------------------------*/

enum { BLOCK = 1 << 14 }; /* on the stack, which may be small. */

/* The next block of the file; -1 after a sentence. */
static long read_block(FILE *f, const char *path, uint8_t block[BLOCK], Error *err)
{
    size_t n = fread(block, 1, BLOCK, f);
    return ferror(f) ? fail(err, "%s: cannot read: %s", path, strerror(errno)) : (long)n;
}

static FILE *open_to_read(const char *path, Error *err)
{
    FILE *f = fopen(path, "rbe");
    if (!f)
        fail(err, "%s: cannot open: %s", path, strerror(errno));
    return f;
}

int file_same(const char *a, const char *b, Error *err)
{
    uint8_t block[2][BLOCK];
    FILE *fa = open_to_read(a, err), *fb = fa ? open_to_read(b, err) : NULL;
    int same = fb ? 1 : -1;
    for (long n = BLOCK; same == 1 && n == BLOCK;) { /* a short block is the last one. */
        n = read_block(fa, a, block[0], err);
        long m = n < 0 ? n : read_block(fb, b, block[1], err);
        same = n < 0 || m < 0 ? -1 : n == m && memcmp(block[0], block[1], (size_t)n) == 0;
    }
    if (fa)
        fclose(fa);
    if (fb)
        fclose(fb);
    return same;
}

int file_copy(const char *from, const char *to, Error *err)
{
    uint8_t block[BLOCK];
    OutFile out;
    FILE *f = open_to_read(from, err);
    if (!f)
        return -1;
    int status = out_open(&out, to, err);
    for (long n = BLOCK; !status && n == BLOCK;) {
        n = read_block(f, from, block, err);
        if (n > 0)
            out_put(&out, block, (size_t)n);
        else if (n < 0) {
            out_drop(&out);
            status = -1;
        }
    }
    fclose(f);
    return status ? -1 : out_commit(&out, err);
}

/* ---- folders ---------------------------------------------------------------------------------------*/

int file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

int dir_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

int dir_make(const char *path, Error *err)
{
    char *partial = strdup(path);
    if (!partial)
        return fail_memory(err, path, strlen(path) + 1);
    int status = 0;
    /* "a/b/c": make "a", "a/b", then the whole. The first character may be the root's slash. */
    for (char *p = partial; !status && *p; p++) {
        int last = p[1] == 0;
        if (p[1] != '/' && !last)
            continue;
        char kept = p[1];
        p[1] = 0;
        int why = mkdir(partial, 0777) != 0 ? errno : 0;
        if (why && !dir_exists(partial)) /* fine: another process may have been first. */
            status = fail(err, "%s: cannot make the folder: %s", partial, strerror(why));
        p[1] = kept;
    }
    free(partial);
    return status;
}

int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The wanted names one after the other, each with its NUL, in a buffer that grows. */
typedef struct NameList {
    char *text;
    size_t length, capacity, count;
} NameList;

static int add_name(NameList *list, const char *name)
{
    size_t size = strlen(name) + 1;
    if (list->length + size > list->capacity) {
        size_t capacity = 2 * (list->capacity + size);
        char *grown = realloc(list->text, capacity);
        if (!grown)
            return -1;
        list->text = grown;
        list->capacity = capacity;
    }
    memcpy(list->text + list->length, name, size);
    list->length += size;
    list->count++;
    return 0;
}

/* Pointers first, strings after them, one block. */
static char **pack_names(const NameList *list)
{
    char **names = malloc((list->count + 1) * sizeof *names + list->length);
    if (!names)
        return NULL;
    char *text = (char *)(names + list->count + 1);
    if (list->length)
        memcpy(text, list->text, list->length);
    for (size_t i = 0; i < list->count; i++) {
        names[i] = text;
        text += strlen(text) + 1;
    }
    names[list->count] = NULL;
    qsort(names, list->count, sizeof *names, compare_names);
    return names;
}

char **dir_list(const char *path, int want_dirs, size_t *n, Error *err)
{
    *n = 0;
    DIR *dir = opendir(path);
    if (!dir) {
        fail(err, "%s: cannot open the folder: %s", path, strerror(errno));
        return NULL;
    }
    NameList list = {0};
    int full = 0, status = 0;
    struct dirent *entry;
    while (!full && !status && (errno = 0, entry = readdir(dir)) != NULL) {
        struct stat info;
        if (entry->d_name[0] == '.')
            continue;
        if (fstatat(dirfd(dir), entry->d_name, &info, 0) == 0) {
            if (!!want_dirs == !!S_ISDIR(info.st_mode))
                full = add_name(&list, entry->d_name);
        } else if (errno == ENOENT ||
                   errno == ELOOP) { /* a link that leads nowhere; else it was just removed. */
            if (!want_dirs && fstatat(dirfd(dir), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0)
                full = add_name(&list, entry->d_name);
        } else {
            status = fail(err, "%s/%s: cannot be read: %s", path, entry->d_name, strerror(errno));
        }
    }
    if (!entry && errno) /* readdir failed: the names so far are not the whole folder. */
        status = fail(err, "%s: cannot list the folder: %s", path, strerror(errno));
    closedir(dir);
    if (status) {
        free(list.text);
        return NULL;
    }
    char **names = full ? NULL : pack_names(&list);
    if (names)
        *n = list.count;
    else
        fail_memory(err, path, list.length);
    free(list.text);
    return names;
}

/* ---- SHA-256 ---------------------------------------------------------------------------------------*/

static const uint32_t SHA256_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t rotate_right(uint32_t x, int k)
{
    return x >> k | x << (32 - k);
}

/* Compress one block of 64 bytes into the state. The eight working variables stay in their array; the
 * round number rotates their roles. Unrolled by eight, the compiler keeps them in registers. */
static void sha256_block(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64], v[8];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 |
               (uint32_t)block[4 * t + 2] << 8 | (uint32_t)block[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    memcpy(v, state, sizeof v);
    for (int base = 0; base < 64; base += 8) {
#if defined(__clang__)
#pragma clang loop unroll(full)
#elif defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int r = 0; r < 8; r++) { /* roles a..h stand at (0..7 - r) mod 8. */
            uint32_t a = v[-r & 7], b = v[(1 - r) & 7], c = v[(2 - r) & 7];
            uint32_t e = v[(4 - r) & 7], f = v[(5 - r) & 7], g = v[(6 - r) & 7], h = v[(7 - r) & 7];
            uint32_t s1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
            uint32_t t1 = h + s1 + (g ^ (e & (f ^ g))) + SHA256_K[base + r] + w[base + r];
            uint32_t s0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
            v[(3 - r) & 7] += t1;
            v[(7 - r) & 7] = t1 + s0 + ((a & b) | (c & (a | b)));
        }
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

void sha256(const void *bytes, size_t n, char hex[65])
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const uint8_t *p = bytes;
    size_t left = n;
    for (; left >= 64; left -= 64, p += 64)
        sha256_block(state, p);
    /* Finish: the rest, one bit 1, zeros, the length in bits as 64-bit big-endian. This is one block or
     * two. */
    uint8_t tail[128] = {0};
    if (left)
        memcpy(tail, p, left);
    tail[left] = 0x80;
    size_t size = left < 56 ? 64 : 128;
    for (int i = 0; i < 8; i++)
        tail[size - 1 - (size_t)i] = (uint8_t)((uint64_t)n * 8 >> 8 * i);
    for (size_t at = 0; at < size; at += 64)
        sha256_block(state, tail + at);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", (unsigned)state[i]);
}
