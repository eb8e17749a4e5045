/* Routes about the daemon itself: index, healthz, readyz. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_problem.h"
#include "us_slow_call.h"
#include "us_web.h"

/* To a browser the dashboard, to everybody else the table of routes. */
static void index_end(struct us_call *c)
{
    if (us_media_wants_html(us_head_get(&c->r->head, "Accept"))) {
        us_web_reply(c->r, "index.html");
        return;
    }
    json_t *list = json_array();
    for (int i = 0; i < us_n_routes; i++)
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:s}", "method", us_routes[i].method, "path",
                            us_routes[i].pattern, "text", us_routes[i].text));
    us_call_reply_json(c->r, 200, json_pack("{s:s, s:o}", "version", US_VERSION, "routes", list));
    us_http_header(c->r, "Vary", "Accept, Accept-Encoding");
}

const struct us_route_ops us_route_index = {.end = index_end};

static void healthz_end(struct us_call *c)
{
    us_http_reply_bytes(c->r, 200, "text/plain; charset=utf-8", "ok\n", 3);
    us_http_header(c->r, "Cache-Control", "no-store");
}

const struct us_route_ops us_route_healthz = {.end = healthz_end};

static void readyz_end(struct us_call *c)
{
    struct us_server *s = c->server;
    struct us_work_counts n = us_work_counts(s->work);
    bool draining = atomic_load(&s->draining);
    bool ready = !draining && atomic_load(&s->checked);
    json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:I}", "status",
                          ready      ? "ready"
                          : draining ? "stopping"
                                     : "checking models",
                          "version", US_VERSION, "backend", us_backend_ops(s->backend)->name,
                          "waiting", (json_int_t)n.waiting, "running", (json_int_t)n.running);
    char *text = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (text != NULL)
        us_http_reply_bytes(c->r, ready ? 200 : 503, "application/json", text, strlen(text));
    else
        us_problem(c->r, 503, "no memory for the reply");
    us_http_header(c->r, "Cache-Control", "no-store");
    free(text);
}

const struct us_route_ops us_route_readyz = {.end = readyz_end};
