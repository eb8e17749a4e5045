/*
 * How both programs have libc hold large blocks.
 */
#ifndef US_HEAP_H
#define US_HEAP_H

/* Once, first thing in main: large blocks go back to the system when they are freed. */
void us_heap_init(void);

#endif
