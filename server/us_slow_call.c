/* Requests that work off the HTTP threads; see us_slow_call.h. */
#include "us_slow_call.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "us_problem.h"

void us_call_reply_json(struct us_http_request *r, int status, json_t *j)
{
    char *text = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (text != NULL)
        us_http_reply_bytes(r, status, "application/json", text, strlen(text));
    else
        us_problem(r, 503, "no memory for the reply");
    us_http_header(r, "Cache-Control", "no-cache");
    free(text);
}

static void finish(struct us_task *t)
{
    us_http_resume(((struct us_slow_call *)(void *)t)->call->r);
}

struct us_slow_call *us_slow_call_new(struct us_call *c, void (*run)(struct us_task *t))
{
    struct us_slow_call *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        us_problem(c->r, 503, "no memory for the request");
        return NULL;
    }
    s->task = (struct us_task){.run = run, .finish = finish};
    s->call = c;
    s->body.file.fd = -1;
    c->state = s;
    return s;
}

void us_slow_call_submit(struct us_call *c)
{
    struct us_slow_call *s = c->state;
    struct us_server *server = c->server;
    struct us_http_request *r = c->r;
    us_http_suspend(r);
    if (us_work_submit(server->work, &s->task) != US_OK) {
        us_problem(r, 503, "the queue is full or the daemon is stopping");
        us_http_resume(r);
    }
}

void us_slow_call_gone(struct us_call *c)
{
    struct us_slow_call *s = c->state;
    us_work_cancel(c->server->work, &s->task);
}

void us_slow_call_done(struct us_call *c)
{
    struct us_slow_call *s = c->state;
    if (s != NULL)
        us_body_release(&s->body);
    free(s);
}

/* Browsers' form encodings wrap the file; everything else is taken for the file itself. */
static bool is_form(const char *type)
{
    return type != NULL && (strncasecmp(type, "multipart/", 10) == 0 ||
                            strncasecmp(type, "application/x-www-form-urlencoded", 33) == 0);
}

void us_slow_call_head(struct us_call *c, void (*run)(struct us_task *t), const char *what,
                       int64_t max_decoded)
{
    const struct us_config *conf = &c->server->config;
    const struct us_body_limits limits = {conf->max_body_bytes, max_decoded};
    struct us_err err = {0};
    if (is_form(us_head_get(&c->r->head, "Content-Type"))) {
        us_problem(c->r, 415, "send the %s itself as the body (curl -T FILE), not a form", what);
        return;
    }
    if (!us_call_check_length(c, conf->max_body_bytes) || !us_call_check_capacity(c))
        return;
    struct us_slow_call *s = us_slow_call_new(c, run);
    if (s == NULL)
        return;
    us_body_reply(c->r,
                  us_body_init(&s->body, us_head_get(&c->r->head, "Content-Encoding"),
                               c->server->spool_dir, &limits, &err),
                  &err);
}

void us_slow_call_body(struct us_call *c, const void *bytes, size_t n)
{
    struct us_slow_call *s = c->state;
    struct us_err err = {0};
    us_body_reply(c->r, us_body_feed(&s->body, bytes, n, &err), &err);
}

void us_slow_call_end(struct us_call *c)
{
    struct us_slow_call *s = c->state;
    struct us_err err = {0};
    us_body_reply(c->r, us_body_end(&s->body, &err), &err);
    if (c->r->reply.status == 0)
        us_slow_call_submit(c);
}
