/* bench.h - `samlad bench`: how fast each stage is on this machine, beside the machine's own limit. */
#ifndef SAMLAD_BENCH_H
#define SAMLAD_BENCH_H

/* The sub-command with the arguments after its name; returns the exit status. */
int bench_command(int argc, char **argv);

#endif
