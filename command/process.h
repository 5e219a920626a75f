/* command/process.h - standard streams and signals of the process. */
#ifndef SAMLAD_COMMAND_PROCESS_H
#define SAMLAD_COMMAND_PROCESS_H

/* Call at the start of main. Closed standard streams are opened on /dev/null, so that no other file takes
 * their place; writing to standard output still fails. More threads than can be started become fewer. A file
 * larger than allowed becomes an error of writing. A file that is cut short while it is mapped ends the process
 * with a sentence. */
void process_begin(void);

/* From now on Ctrl-C, SIGTERM, SIGHUP and a reader that goes away do not end the process at once. So finished
 * results can be kept. process_stopped() holds the signal's number; a second signal ends the
 * process. Signals that are ignored already, as below nohup, stay ignored. */
void process_stop_gently(void);
int process_stopped(void); /* 0: not stopped */
/* End as the signal would have ended us, so that the parent process learns of it. */
void process_end_stopped(void);

#endif
