/* command/process.h - what the command owes the process that it is: standard streams and signals. */
#ifndef SAMLAD_COMMAND_PROCESS_H
#define SAMLAD_COMMAND_PROCESS_H

/* At the start of main. Standard streams that are closed lead to /dev/null, so that no file that is opened
 * gets their place and what was meant for the terminal; writing to standard output still fails. A file
 * larger than allowed is an error of writing. A file that is cut short while it is mapped ends with a
 * sentence. */
void process_begin(void);

/* From now on Ctrl-C and the like, and a reader that goes away, do not end the process at once, so that what
 * is done can be kept: the signal's number is in process_stopped(), a second signal ends it. Signals that are
 * ignored already, as below nohup, stay so. */
void process_stop_gently(void);
int process_stopped(void); /* 0: by nothing */
/* End as the signal would have done, so that who waits for us learns of it. */
void process_end_stopped(void);

#endif
