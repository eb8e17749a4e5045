/* Routes of the jobs: submit, list, show, cancel, and what a job leaves and tells. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_jobs.h"
#include "us_problem.h"
#include "us_slow_call.h"

#define PING_EVERY_S 15

/* ---- POST /v1/jobs ------------------------------------------------------------------------- */

static char *read_body(const struct us_spool_file *f)
{
    char *text = malloc((size_t)f->bytes + 1);
    for (int64_t at = 0; text != NULL && at < f->bytes;) {
        ssize_t n = pread(f->fd, text + at, (size_t)(f->bytes - at), at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            free(text);
            return NULL;
        }
        at += n;
    }
    return text;
}

static void refuse_job(struct us_http_request *r, enum us_status st, const struct us_err *err)
{
    if (st == US_E_BUSY)
        us_problem(r, 429, "%s", err->msg);
    else
        us_problem_err(r, err);
}

static void post_run(struct us_task *t)
{
    struct us_slow_call *s = (struct us_slow_call *)(void *)t;
    struct us_call *c = s->call;
    struct us_err err = {0};
    const char *key = NULL;
    char id[US_JOB_ID_BYTES];
    bool repeated = false;
    json_t *job = NULL;
    char *body = read_body(&s->body.file);
    if (atomic_load(&t->cancel) || body == NULL) {
        us_problem(c->r, 503, body == NULL ? "no memory for the job" : "the daemon is stopping");
        free(body);
        return;
    }
    enum us_status st = us_head_single(&c->r->head, "Idempotency-Key", &key, &err);
    if (st == US_OK)
        st = us_jobs_submit(c->server->jobs, &c->user, body, (size_t)s->body.file.bytes, key, id,
                            &repeated, &job, &err);
    free(body);
    if (st != US_OK) {
        refuse_job(c->r, st, &err);
        return;
    }
    us_call_reply_json(c->r, 201, job);
    us_http_header(c->r, "Location", "/v1/jobs/%s", id);
    if (repeated)
        us_http_header(c->r, "Idempotency-Replayed", "true");
}

static void post_head(struct us_call *c)
{
    us_slow_call_head(c, post_run, "job as JSON", US_MAX_JOB_BODY_BYTES);
}

const struct us_route_ops us_route_job_post = {.takes_body = true,
                                               .head = post_head,
                                               .body = us_slow_call_body,
                                               .end = us_slow_call_end,
                                               .gone = us_slow_call_gone,
                                               .done = us_slow_call_done};

/* ---- GET, DELETE --------------------------------------------------------------------------- */

static void list_end(struct us_call *c)
{
    struct us_err err = {0};
    json_t *list = NULL;
    const char *owner = us_user_is_admin(&c->user) ? NULL : c->user.name;
    if (us_jobs_list(c->server->jobs, owner, &list, &err) != US_OK)
        us_problem_err(c->r, &err);
    else
        us_call_reply_json(c->r, 200, list);
}

const struct us_route_ops us_route_jobs_list = {.end = list_end};

static void reply_job(struct us_call *c, int status)
{
    struct us_err err = {0};
    json_t *job = NULL;
    if (us_jobs_get(c->server->jobs, c->job, &job, &err) != US_OK)
        us_problem_err(c->r, &err);
    else
        us_call_reply_json(c->r, status, job);
}

static void get_end(struct us_call *c)
{
    reply_job(c, 200);
}

const struct us_route_ops us_route_job_get = {.end = get_end};

/* 202: a running one ends within a step, its state tells when. */
static void ask(struct us_call *c, enum us_job_verb verb)
{
    struct us_err err = {0};
    if (us_jobs_ask(c->server->jobs, c->job, verb, &err) != US_OK)
        us_problem_err(c->r, &err);
    else
        reply_job(c, 202);
}

static void delete_end(struct us_call *c)
{
    ask(c, US_JOB_CANCEL);
}

const struct us_route_ops us_route_job_delete = {.end = delete_end};

static void pause_end(struct us_call *c)
{
    ask(c, US_JOB_PAUSE);
}

const struct us_route_ops us_route_job_pause = {.end = pause_end};

static void resume_end(struct us_call *c)
{
    ask(c, US_JOB_RESUME);
}

const struct us_route_ops us_route_job_resume = {.end = resume_end};

static bool open_file(struct us_call *c, enum us_job_file file, int *fd, int64_t *n)
{
    struct us_err err = {0};
    if (us_jobs_open(c->server->jobs, c->job, file, fd, n, &err) == US_OK)
        return true;
    us_problem_err(c->r, &err);
    return false;
}

static void metrics_end(struct us_call *c)
{
    int fd;
    int64_t n;
    if (!open_file(c, US_JOB_HISTORY, &fd, &n))
        return;
    if (n > 0)
        us_http_reply_fd(c->r, 200, "application/x-ndjson", fd, n);
    else
        us_http_reply_bytes(c->r, 200, "application/x-ndjson", NULL, 0);
    if (fd >= 0 && n == 0)
        (void)close(fd);
    us_http_header(c->r, "Cache-Control", "no-cache");
}

const struct us_route_ops us_route_job_metrics = {.end = metrics_end};

static void result_end(struct us_call *c)
{
    int fd;
    int64_t n;
    if (!open_file(c, US_JOB_RESULT, &fd, &n))
        return;
    if (fd < 0) {
        us_problem(c->r, 404, "the job '%s' has no result; its state says why", c->job);
        return;
    }
    us_http_reply_fd(c->r, 200, "application/octet-stream", fd, n);
    us_http_header(c->r, "Content-Disposition", "attachment; filename=\"%s.safetensors\"", c->job);
    us_http_header(c->r, "Cache-Control", "private, no-cache");
}

const struct us_route_ops us_route_job_result = {.end = result_end};

/* ---- GET /v1/jobs/{j}/events --------------------------------------------------------------- */

struct listener {
    struct us_jobs *jobs;
    char id[US_JOB_ID_BYTES];
    uint64_t after;
    time_t last_s; /* something was sent */
};

static time_t now_s(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec;
}

static int64_t next_events(void *arg, char *buf, size_t max)
{
    static const char ping[] = ": ping\n\n";
    struct listener *l = arg;
    int64_t n = us_jobs_events(l->jobs, l->id, &l->after, buf, max);
    if (n == 0 && now_s() - l->last_s >= PING_EVERY_S && max > sizeof(ping)) {
        n = (int64_t)sizeof(ping) - 1;
        memcpy(buf, ping, (size_t)n);
    }
    if (n > 0)
        l->last_s = now_s();
    return n;
}

/* A client that reconnects names the last event it saw; anything else starts from the oldest. */
static uint64_t last_event_id(const struct us_head *head)
{
    const char *t = us_head_get(head, "Last-Event-ID");
    char *end = NULL;
    if (t == NULL || t[0] < '0' || t[0] > '9')
        return 0;
    unsigned long long id = strtoull(t, &end, 10);
    return *end == '\0' ? id : 0;
}

static void events_end(struct us_call *c)
{
    struct us_err err = {0};
    json_t *job = NULL;
    if (us_jobs_get(c->server->jobs, c->job, &job, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    json_decref(job);
    struct listener *l = calloc(1, sizeof(*l));
    if (l == NULL) {
        us_problem(c->r, 503, "no memory for the request");
        return;
    }
    l->jobs = c->server->jobs;
    l->after = last_event_id(&c->r->head);
    l->last_s = now_s();
    (void)snprintf(l->id, sizeof(l->id), "%s", c->job);
    c->state = l;
    us_http_reply_stream(c->r, 200, "text/event-stream; charset=utf-8", next_events, l);
    us_http_header(c->r, "Cache-Control", "no-store");
    us_http_header(c->r, "X-Accel-Buffering", "no"); /* nginx would hold events back */
}

static void events_done(struct us_call *c)
{
    free(c->state);
}

const struct us_route_ops us_route_job_events = {.end = events_end, .done = events_done};
