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

#endif
