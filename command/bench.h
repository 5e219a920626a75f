/* command/bench.h - samlad bench: the speed of each stage on this machine, beside the machine's own limit. */
#ifndef SAMLAD_BENCH_H
#define SAMLAD_BENCH_H

/* Run the sub-command with the arguments after its name. Returns the exit status. */
int bench_command(int argc, char **argv);

#endif
