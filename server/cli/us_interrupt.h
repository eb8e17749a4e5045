/*
 * Stopping on request: SIGINT, SIGTERM and SIGHUP raise a flag that long work polls, so that a
 * command can remove what it has not finished. A second signal of the same kind kills at once.
 */
#ifndef US_INTERRUPT_H
#define US_INTERRUPT_H

#include <stdatomic.h>

/* Installs the handlers and returns the flag (static). */
const atomic_bool *us_interrupt_install(void);

/* The signal that raised the flag, or 0. */
int us_interrupt_signal(void);

#endif
