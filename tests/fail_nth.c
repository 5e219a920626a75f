/* fail_nth.c - the command whose n-th allocation fails, for test_failing.sh. The linker's --wrap leads the calls of
 * these functions here; it works in static programs, too. What libc and libgomp allocate inside is not counted.
 *
 *   SAMLAD_FAIL=N       the N-th call fails: NULL, -1 or MAP_FAILED, and ENOMEM; N+: all calls after it, too
 *   SAMLAD_COUNT=FILE   write the number of all calls to FILE at the end */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static long n_calls;

/* Nothing is allocated here. */
static void write_count(void)
{
    const char *path = getenv("SAMLAD_COUNT");
    char digits[24];
    const int n = snprintf(digits, sizeof digits, "%ld\n", n_calls);
    const int file = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    if (file < 0 || write(file, digits, (size_t)n) != n)
        return;
    close(file);
}

/* Is it this call's turn? Threads may call at once. */
static int fails(void)
{
    static long wanted = -1;
    static int and_after;
    int failing;
#pragma omp critical(fail_nth)
    {
        if (wanted < 0) {
            const char *text = getenv("SAMLAD_FAIL");
            wanted = text ? atol(text) : 0;
            and_after = text && strchr(text, '+');
            atexit(write_count);
        }
        n_calls++;
        failing = n_calls == wanted || (and_after && n_calls > wanted);
    }
    if (failing)
        errno = ENOMEM;
    return failing;
}

#define WRAP(type, name, parameters, arguments, failure)                                                     \
    type __real_##name parameters;                                                                           \
    type __wrap_##name parameters;                                                                           \
    type __wrap_##name parameters                                                                            \
    {                                                                                                        \
        return fails() ? failure : __real_##name arguments;                                                  \
    }

typedef int (*Visit)(const char *, const struct stat *, int, struct FTW *);

WRAP(void *, malloc, (size_t n), (n), NULL)
WRAP(void *, calloc, (size_t n, size_t size), (n, size), NULL)
WRAP(void *, realloc, (void *old, size_t n), (old, n), NULL)
WRAP(void *, aligned_alloc, (size_t align, size_t n), (align, n), NULL)
WRAP(char *, strdup, (const char *s), (s), NULL)
WRAP(char *, strndup, (const char *s, size_t n), (s, n), NULL)
WRAP(char *, realpath, (const char *path, char *into), (path, into), NULL)
WRAP(FILE *, open_memstream, (char **text, size_t *n), (text, n), NULL)
WRAP(void *, opendir, (const char *path), (path), NULL)
#if defined(__GLIBC__) /* with _FILE_OFFSET_BITS=64 */
WRAP(FILE *, fopen64, (const char *path, const char *mode), (path, mode), NULL)
WRAP(int, nftw64, (const char *path, Visit visit, int n, int flags), (path, visit, n, flags), -1)
WRAP(void *, mmap64, (void *at, size_t n, int protection, int flags, int file, off_t offset),
     (at, n, protection, flags, file, offset), MAP_FAILED)
#else
WRAP(FILE *, fopen, (const char *path, const char *mode), (path, mode), NULL)
WRAP(int, nftw, (const char *path, Visit visit, int n, int flags), (path, visit, n, flags), -1)
WRAP(void *, mmap, (void *at, size_t n, int protection, int flags, int file, off_t offset),
     (at, n, protection, flags, file, offset), MAP_FAILED)
#endif
