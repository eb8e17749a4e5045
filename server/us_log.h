/*
 * The daemon's log: one line per event on stderr, for journald or a terminal: `key=value` pairs
 * (logfmt), or one JSON object.
 * Only server/ logs. Bytes from outside are masked: no CR, LF, escape or quote of a stranger
 * reaches the log unescaped. Threads may log at once; lines do not mix.
 */
#ifndef US_LOG_H
#define US_LOG_H

#include <stdint.h>

#include "us_status.h"

/* In the order of the setting log-level. */
enum us_log_level { US_LOG_ERROR = 0, US_LOG_WARN, US_LOG_INFO, US_LOG_DEBUG };

/* In the order of the setting log-format. */
enum us_log_format { US_LOG_LOGFMT = 0, US_LOG_JSON };

/* Before the first thread starts. */
void us_log_init(enum us_log_level least, enum us_log_format format);

/* time=... level=... msg="..." */
void us_log(enum us_log_level level, const char *fmt, ...) US_PRINTF(2, 3);

/* The line of one finished request. status 499: the client went away before the reply. */
struct us_log_request {
    const char *method, *path, *id, *model, *error; /* model, error: NULL = leave out */
    const char *user, *token, *client;              /* NULL or "" = leave out */
    const char *trace;                              /* hex digits, or NULL */
    int status;
    double ms;
    int64_t in_bytes, out_bytes;
};
void us_log_request(const struct us_log_request *q);

#endif
