/*
 * W3C trace context: the ids that join a request here to what caused it elsewhere. A header that is
 * not well-formed counts as none, and a trace is begun here. Source: "Trace Context" (W3C, level
 * 1).
 */
#ifndef US_TRACE_H
#define US_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#define US_TRACEPARENT_BYTES 56 /* with NUL */

struct us_trace {
    char id[33];   /* of the whole trace */
    char span[17]; /* of the caller, or our own */
    char flags[3];
};

/* Takes a traceparent header apart (NULL: none came). False: it is not one. */
bool us_trace_parse(const char *header, struct us_trace *ret);
/* Our span in the caller's trace, or in a new one. random: any 24 bytes. */
struct us_trace us_trace_begin(const char *header, const uint8_t random[24]);
void us_trace_text(const struct us_trace *t, char text[US_TRACEPARENT_BYTES]);

#endif
