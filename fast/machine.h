/* machine.h - the instructions that fast/ is compiled for, and their speed limit: what bench compares with. */
#ifndef SAMLAD_FAST_MACHINE_H
#define SAMLAD_FAST_MACHINE_H

#include "tensor.h"

/* The instructions that the routines use, such as "AVX-512". */
const char *instruction_set(void);
/* Run `rounds` times a dozen multiply-adds on every thread, all in registers. This is an upper limit for
 * every product of this precision. Returns the work in 10^9 floating-point operations; the caller takes the
 * time. */
double fma_burst(int rounds, Precision precision);

#endif
