/*
 * A request whose work is too slow for an HTTP thread (it reads or verifies a file): the body, if
 * there is one, streams into a spool file, then a worker runs the rest while the request is parked.
 */
#ifndef US_SLOW_CALL_H
#define US_SLOW_CALL_H

#include <jansson.h>

#include "us_body.h"
#include "us_routes.h"

struct us_slow_call {
    struct us_task task; /* first: the queue hands it back */
    struct us_call *call;
    struct us_body body; /* of routes that take one */
};

/* The state of a call whose run is to be called on a worker; NULL: the refusal is set. */
struct us_slow_call *us_slow_call_new(struct us_call *c, void (*run)(struct us_task *t));
/* For ops.head: the same for a call with a body of at most max_decoded bytes. Refuses forms, wrong
 * lengths and unknown codings. `what` names the file in the refusal of a form. */
void us_slow_call_head(struct us_call *c, void (*run)(struct us_task *t), const char *what,
                       int64_t max_decoded);
/* Parks the request and queues its work. */
void us_slow_call_submit(struct us_call *c);
/* For ops.body, ops.end, ops.gone, ops.done. */
void us_slow_call_body(struct us_call *c, const void *bytes, size_t n);
void us_slow_call_end(struct us_call *c);
void us_slow_call_gone(struct us_call *c);
void us_slow_call_done(struct us_call *c);

/* A JSON reply; takes j over. NULL: no memory, 503. */
void us_call_reply_json(struct us_http_request *r, int status, json_t *j);

#endif
