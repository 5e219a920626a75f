/* command/models.h - the models that a sub-command opens, and the weights that ship with the program. */
#ifndef SAMLAD_COMMAND_MODELS_H
#define SAMLAD_COMMAND_MODELS_H

#include "amg.h"
#include "command/args.h"

/* Look for a shipped weights file. If $SAMLAD_WEIGHTS is set, look there alone. Otherwise take the first
 * of: beside the program, one folder above it, PREFIX/share/samlad/weights, ./weights. Returns 1 when
 * `path` names it. */
int find_weights(char path[PATH_SIZE], const char *file);
/* Say that the shipped file is missing, and which option can replace it. Returns EXIT_FAILURE. */
int no_weights(const char *file, const char *option);

/* Open the models, the shipped ones where none is named, and set the options given. NULL after a message. */
Samlad *open_samlad(Args *args, Error *err);

/* The defaults with the SAM weights that ship, as help texts show them. */
void shipped_defaults(Options *options, AmgUse use);

#endif
