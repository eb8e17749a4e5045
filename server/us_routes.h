/*
 * The router: finds the route of a request in the table (us_routes.def) and passes it on. A route
 * is a few functions; only routes that take a body have more than `end`.
 */
#ifndef US_ROUTES_H
#define US_ROUTES_H

#include "us_server.h"

/* One request being handled: r->app while it lives. */
struct us_call {
    struct us_server *server;
    struct us_http_request *r;
    const struct us_route_ops *ops;
    struct us_user user; /* who asks */
    /* {m}, {d}, {f} and {j} of the path, checked; NULL where the pattern has none. */
    const char *model, *dataset, *file, *job;
    void *state; /* the route's own; freed by ops->done */
};

struct us_route_ops {
    bool takes_body; /* else a body of more than a few bytes is refused */
    /* All but end may be NULL; see us_http.h for when each is called. */
    void (*head)(struct us_call *c);
    void (*body)(struct us_call *c, const void *bytes, size_t n);
    void (*end)(struct us_call *c);
    void (*gone)(struct us_call *c);
    void (*done)(struct us_call *c);
};

#define US_ROUTE(method, pattern, handler, scope, text)                                            \
    extern const struct us_route_ops us_route_##handler;
#include "us_routes.def"
#undef US_ROUTE

struct us_route {
    const char *method, *pattern;
    const struct us_route_ops *ops;
    enum us_scope scope;
    const char *text;
};
extern const struct us_route us_routes[];
extern const int us_n_routes;

/* The callbacks for us_http_start; arg is the server. */
struct us_http_app us_routes_app(struct us_server *s);

/* For routes with a body: sets the refusal (411, 400, 413) if the length is missing, zero or over
 * max_bytes. True: go on. */
bool us_call_check_length(struct us_call *c, int64_t max_bytes);

/* Who takes turns at computing (us_work.h): the user, or where nobody has a name the address. */
void us_call_owner(const struct us_call *c, char *ret, size_t size);

/* For routes with long work: 503 while stopping or with a full queue. True: go on. */
bool us_call_check_capacity(struct us_call *c);

#endif
