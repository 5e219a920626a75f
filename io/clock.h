/* io/clock.h - time for progress and measurements. */
#ifndef SAMLAD_IO_CLOCK_H
#define SAMLAD_IO_CLOCK_H

/* Seconds of a clock that never goes back. */
double clock_seconds(void);

#endif
