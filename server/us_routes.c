/* The router; see us_routes.h. */
#include "us_routes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_access.h"
#include "us_problem.h"

/* A body that a route does not want is dropped up to here, to keep the connection. */
#define MAX_IGNORED_BODY_BYTES (64 << 10)

const struct us_route us_routes[] = {
#define US_ROUTE(method, pattern, handler, scope, text)                                            \
    {method, pattern, &us_route_##handler, US_SCOPE_##scope, text},
#include "us_routes.def"
#undef US_ROUTE
};
const int us_n_routes = US_COUNT(us_routes);

/* What stands for the placeholders of a pattern, by their letter. */
struct names {
    const char *of[128];
};

static bool is_placeholder(const char *p, size_t n)
{
    return n == 3 && p[0] == '{' && p[2] == '}';
}

/* Whether the target has the shape of the pattern. */
static bool matches(const char *pattern, const struct us_target *t, struct names *names)
{
    int i = 0;
    memset(names, 0, sizeof(*names));
    for (const char *p = pattern + 1; *p != '\0'; i++) {
        size_t n = strcspn(p, "/");
        if (i == t->n_segments)
            return false;
        if (is_placeholder(p, n) && t->segment[i][0] != '\0')
            names->of[(unsigned char)p[1] & 127] = t->segment[i];
        else if (strlen(t->segment[i]) != n || memcmp(p, t->segment[i], n) != 0)
            return false;
        p += n + (p[n] == '/');
    }
    return i == t->n_segments;
}

static bool method_fits(const char *route_method, const char *method)
{
    return strcmp(route_method, method) == 0 ||
           (strcmp(route_method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* Finds the route or sets the 404 or 405. */
static const struct us_route *find_route(struct us_http_request *r, struct names *names)
{
    char allow[64] = "";
    size_t n = 0;
    for (int i = 0; i < us_n_routes; i++) {
        const struct us_route *route = &us_routes[i];
        if (!matches(route->pattern, &r->target, names))
            continue;
        if (method_fits(route->method, r->method))
            return route;
        n += (size_t)snprintf(allow + n, sizeof(allow) - n, "%s%s%s", n > 0 ? ", " : "",
                              route->method, strcmp(route->method, "GET") == 0 ? ", HEAD" : "");
        US_ASSERT(n < sizeof(allow));
    }
    if (n == 0) {
        us_problem(r, 404, "there is nothing at this path; GET / lists what there is");
        return NULL;
    }
    us_problem(r, 405, "%s is not allowed here; allowed: %s", r->method, allow);
    us_http_header(r, "Allow", "%s", allow);
    return NULL;
}

static void check_name(struct us_http_request *r, const char *what, const char *name)
{
    if (name != NULL && !us_model_name_ok(name))
        us_problem(r, 422,
                   "'%.100s' is no %s name; allowed: 1 to %d characters of A-Z a-z 0-9 . _ "
                   "-, not beginning with a dot",
                   name, what, US_MAX_MODEL_NAME);
}

static void on_head(void *arg, struct us_http_request *r)
{
    struct names names;
    struct us_user user;
    const struct us_route *route = find_route(r, &names);
    if (route == NULL)
        return;
    r->route = (int)(route - us_routes) + 1;
    us_access_authorize(arg, r, route, &user);
    if (r->reply.status != 0)
        return;
    check_name(r, "model", names.of['m']);
    check_name(r, "dataset", names.of['d']);
    check_name(r, "file", names.of['f']);
    check_name(r, "job", names.of['j']);
    if (r->reply.status != 0)
        return;
    if (!route->ops->takes_body &&
        (r->framing.chunked || r->framing.length > MAX_IGNORED_BODY_BYTES)) {
        us_problem(r, 413, "this route takes no body");
        return;
    }
    struct us_call *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        us_problem(r, 503, "no memory for the request");
        return;
    }
    *c = (struct us_call){.server = arg,
                          .r = r,
                          .ops = route->ops,
                          .user = user,
                          .model = names.of['m'],
                          .dataset = names.of['d'],
                          .file = names.of['f'],
                          .job = names.of['j']};
    r->app = c;
    r->log_model = c->model;
    us_access_check_names(c, route);
    if (r->reply.status == 0 && route->ops->head != NULL)
        route->ops->head(c);
}

static void on_body(void *arg, struct us_http_request *r, const void *bytes, size_t n)
{
    struct us_call *c = r->app;
    if (c->ops->body != NULL)
        c->ops->body(c, bytes, n);
}

static void on_end(void *arg, struct us_http_request *r)
{
    struct us_call *c = r->app;
    c->ops->end(c);
}

static void on_gone(void *arg, struct us_http_request *r)
{
    struct us_call *c = r->app;
    if (c->ops->gone != NULL)
        c->ops->gone(c);
}

static void on_done(void *arg, struct us_http_request *r)
{
    struct us_server *s = arg;
    struct us_call *c = r->app;
    us_telemetry_request(&s->metrics, r->route - 1, r->sent ? r->reply.status : 499,
                         us_http_age_s(r), r->in_bytes, r->sent ? r->reply_bytes : 0);
    if (c == NULL)
        return;
    if (c->ops->done != NULL)
        c->ops->done(c);
    free(c);
    r->app = NULL;
}

struct us_http_app us_routes_app(struct us_server *s)
{
    return (struct us_http_app){s, on_head, on_body, on_end, on_gone, on_done};
}

bool us_call_check_length(struct us_call *c, int64_t max_bytes)
{
    const struct us_framing *f = &c->r->framing;
    if (!f->has_length && !f->chunked)
        us_problem(c->r, 411, "the request needs a body with a Content-Length or chunked");
    else if (f->has_length && f->length == 0)
        us_problem(c->r, 400, "the body is empty");
    else if (f->has_length && f->length > (uint64_t)max_bytes)
        us_problem(c->r, 413, "the body has %" PRIu64 " bytes; allowed: up to %" PRId64, f->length,
                   max_bytes);
    return c->r->reply.status == 0;
}

void us_call_owner(const struct us_call *c, char *ret, size_t size)
{
    char client[64];
    if (c->user.name[0] != '\0')
        (void)snprintf(ret, size, "%s", c->user.name);
    else if (us_http_client(c->r, client, sizeof(client)) != NULL)
        (void)snprintf(ret, size, "@%s", client); /* no user is called so */
    else
        ret[0] = '\0';
}

bool us_call_check_capacity(struct us_call *c)
{
    const struct us_work_counts n = us_work_counts(c->server->work);
    if (atomic_load(&c->server->draining))
        us_problem(c->r, 503, "the daemon is stopping");
    else if (n.waiting >= c->server->config.max_queue)
        us_problem_busy(c->r, 503, n.task_s, "the queue is full: %" PRId64 " requests are waiting",
                        n.waiting);
    return c->r->reply.status == 0;
}
