/*
 * Error bodies: application/problem+json (RFC 9457) with an `error` member beside it, which is
 * what Triton's client shows (servers.md 2.6). Core statuses become HTTP statuses here, by a table
 * that is complete at compile time; core knows no HTTP.
 */
#ifndef US_PROBLEM_H
#define US_PROBLEM_H

#include "us_http.h"

/* The HTTP status of a core status: 422 for US_E_FORMAT and so on. */
int us_problem_status(enum us_status s);

/* The body's text (caller frees), or NULL without memory. Bytes that are not printable ASCII or
 * valid UTF-8 become '?'. path, id: of the request. */
char *us_problem_json(int status, const char *detail, const char *path, const char *id);

/* Sets an error reply, with Retry-After where the status calls for it. */
void us_problem(struct us_http_request *r, int status, const char *fmt, ...) US_PRINTF(3, 4);
/* The same from an error object. */
/* 503 or 429 with a Retry-After of so many seconds, 0: not known. */
void us_problem_busy(struct us_http_request *r, int status, double retry_s, const char *fmt, ...)
    US_PRINTF(4, 5);
void us_problem_err(struct us_http_request *r, const struct us_err *err);

#endif
