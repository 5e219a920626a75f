/* io/error.h - errors: a status and one clear sentence.
 *
 * A function that can fail takes an `Error *` as its last parameter. It returns 0 on success and -1 (or
 * NULL) on failure. The sentence names the file and the field, and says what was expected. Nothing below
 * the command line prints; `samlad` prints the sentence after "samlad: ". */
#ifndef SAMLAD_ERROR_H
#define SAMLAD_ERROR_H

#define ERROR_SIZE 768

typedef struct Error {
    char message[ERROR_SIZE];
} Error;

#endif
