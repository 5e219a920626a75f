/* error.h - how samlad reports what went wrong: a status and one clear sentence.
 *
 * A function that can fail takes an `Error *` as its last parameter, returns 0 on success and -1 (or
 * NULL) on failure, and leaves one sentence that names the file and the field and says what was
 * expected. Nothing below the command line prints; `samlad` puts the sentence after "samlad: ". */
#ifndef SAMLAD_ERROR_H
#define SAMLAD_ERROR_H

#define ERROR_SIZE 768

typedef struct Error {
    char message[ERROR_SIZE];
} Error;

/* Write the sentence into err (NULL is allowed: the caller does not care) and return -1, so that
 * `return fail(err, "%s: not a PNG file", path);` is the whole of an error path. */
int fail(Error *err, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* fail() for an allocation of n_bytes for the named purpose. */
int fail_memory(Error *err, const char *purpose, unsigned long long n_bytes);

#endif
