/* command/commands.h - the sub-commands. Each runs with parsed arguments and returns the exit status; each prints
 * its own help. */
#ifndef SAMLAD_COMMAND_COMMANDS_H
#define SAMLAD_COMMAND_COMMANDS_H

#include "command/args.h"

int command_bank(Args *args); /* bank.c */
void help_bank(void);
int command_detect(Args *args); /* detect.c */
void help_detect(void);
int command_segment(Args *args); /* segment.c */
void help_segment(void);
int command_info(Args *args); /* info.c */
void help_info(void);
int command_synth(Args *args); /* synth.c */
void help_synth(void);
int command_eval(Args *args); /* eval.c */
void help_eval(void);
int command_ablate(Args *args);
void help_ablate(void);

#endif
