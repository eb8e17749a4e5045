/*
 * What a watcher tells: a line per event, as text on stderr or as JSON on stdout. And the form in
 * which JSON carries names of files, which are bytes and not always UTF-8.
 */
#ifndef US_WATCH_SAY_H
#define US_WATCH_SAY_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "us_status.h"

#define US_WATCH_TIME 32
/* Now in UTC as RFC 3339 has it, into and as buf. */
const char *us_watch_time(char buf[US_WATCH_TIME]);

/* Sets `key`, or `key_hex` where text is not UTF-8. NULL text: nothing. */
void us_watch_json_text(json_t *o, const char *key, const char *text);
/* The text of `key` or `key_hex`; caller frees; NULL: neither, or damaged. */
char *us_watch_json_text_of(const json_t *o, const char *key);

struct us_watch_event {
    const char *event, *file, *result, *reason, *model; /* all but event may be NULL */
    int status;                                         /* HTTP; 0: none */
    int64_t attempt;                                    /* 0: does not apply */
    double wait_s, seconds;                             /* 0: do not apply */
};

/* One whole line; threads may call it. */
void us_watch_say(bool json, const struct us_watch_event *e);

#endif
