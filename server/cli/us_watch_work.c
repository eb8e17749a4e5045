/* The workers of a watcher: which file is next, and what follows from how it went. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_watch_int.h"

#define MAX_PAUSE_S 60.0

double us_watch_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Doubling, with a quarter of chance either way so that many watchers do not come back at once,
 * never sooner than the server asked for. */
static double pause_s(const struct us_watch *w, int64_t attempt, double asked_s)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    double chance = (double)(((uint64_t)t.tv_nsec * 2654435761U + (uint64_t)getpid()) % 1000) / 999;
    double s = w->cfg->backoff_s * exp2((double)(attempt < 20 ? attempt - 1 : 19));
    s = fmin(s, fmax(MAX_PAUSE_S, w->cfg->backoff_s)) * (0.75 + 0.5 * chance);
    return fmax(s, asked_s);
}

/* The first file whose time has come; else NULL, and *ret_s is when to look again at the latest. */
static struct us_watch_file *next_file(struct us_watch *w, double *ret_s)
{
    double now = us_watch_now();
    *ret_s = now + 1;
    if (w->resume_s > now) {
        *ret_s = fmin(*ret_s, w->resume_s);
        return NULL;
    }
    for (size_t i = 0; i < w->table.n; i++) {
        struct us_watch_file *f = w->table.all[i];
        if (f->state != US_WATCH_WAITING)
            continue;
        if (f->not_before_s <= now)
            return f;
        *ret_s = fmin(*ret_s, f->not_before_s);
    }
    return NULL;
}

static void wait_until(struct us_watch *w, double when_s)
{
    struct timespec t = {.tv_sec = (time_t)when_s};
    t.tv_nsec = (long)((when_s - (double)t.tv_sec) * 1e9);
    (void)pthread_cond_timedwait(&w->work, &w->mutex, &t);
}

/* A failure that time may heal. */
static void put_back(struct us_watch *w, struct us_watch_file *f, const struct us_watch_job *job,
                     bool all, struct us_watch_event *e)
{
    double now = us_watch_now();
    f->state = US_WATCH_WAITING;
    f->attempts++;
    e->event = "retry";
    e->reason = job->err.msg;
    e->attempt = all ? ++w->n_server_fails : f->attempts;
    e->wait_s = pause_s(w, e->attempt, job->answer.retry_after_s);
    if (all)
        w->resume_s = now + e->wait_s;
    else
        f->not_before_s = now + e->wait_s;
    /* A wrong token or model does not mend itself within one run. */
    int status = job->answer.status;
    bool lasting = all && status >= 400 && status < 500 && status != 429;
    if (!w->cfg->once || (e->attempt < w->cfg->attempts && !lasting))
        return;
    f->state = US_WATCH_LEFT;
    w->totals.n_left++;
    e->event = "left";
    e->wait_s = 0;
    /* Without a server there is no use in asking for each of the others as often. */
    for (size_t i = 0; all && i < w->table.n; i++) {
        struct us_watch_file *o = w->table.all[i];
        if (o->state == US_WATCH_WAITING || o->state == US_WATCH_SETTLING) {
            o->state = US_WATCH_LEFT;
            w->totals.n_left++;
        }
    }
}

/* What follows from a verdict, under the mutex. */
static void conclude(struct us_watch *w, struct us_watch_file *f, struct us_watch_job *job,
                     enum us_watch_verdict v, struct us_watch_event *e)
{
    f->said = job->said;
    if (v != US_WATCH_AGAIN_ALL && job->answer.status != 0)
        w->n_server_fails = 0;
    switch (v) {
    case US_WATCH_GOT:
        f->state = US_WATCH_DONE;
        w->totals.n_done++;
        e->event = "done";
        e->result = job->result;
        break;
    case US_WATCH_REFUSED:
        f->state = US_WATCH_FAILED;
        e->event = "failed";
        e->reason = job->err.msg;
        break;
    case US_WATCH_AGAIN:
    case US_WATCH_AGAIN_ALL:
        put_back(w, f, job, v == US_WATCH_AGAIN_ALL, e);
        break;
    case US_WATCH_CHANGED:
        f->state = US_WATCH_SETTLING;
        f->since_s = us_watch_now();
        e->event = "changed";
        break;
    case US_WATCH_VANISHED:
        f->state = US_WATCH_GONE;
        e->event = "gone";
        break;
    case US_WATCH_STOPPED:
        f->state = US_WATCH_WAITING;
        break;
    case US_WATCH_BROKEN:
        f->state = US_WATCH_WAITING;
        w->broken = true;
        w->err = job->err;
        atomic_store(&w->stop, true);
        break;
    }
}

/* Takes f through; the mutex is held, and let go meanwhile. */
static void work_on(struct us_watch *w, struct us_watch_file *f, struct us_http_client *client)
{
    struct us_watch_job job = {
        .place = &w->place, .client = client, .path = f->path, .id = f->id, .said = f->said};
    struct us_watch_event e = {.file = f->path};
    const struct us_watch_file *rival = us_watch_table_rival(&w->table, f);
    enum us_watch_verdict v = US_WATCH_REFUSED;
    double began = us_watch_now();
    job.id.sha256[0] = '\0';
    f->state = US_WATCH_BUSY;
    if (rival != NULL)
        (void)us_fail(&job.err, US_E_EXISTS, "its result would have the name of that of %s",
                      rival->path);
    (void)pthread_mutex_unlock(&w->mutex);
    v = rival != NULL ? us_watch_refuse(&job) : us_watch_send(&job);
    (void)pthread_mutex_lock(&w->mutex);
    conclude(w, f, &job, v, &e);
    e.status = job.answer.status;
    e.model = v == US_WATCH_GOT && job.answer.model[0] != '\0' ? job.answer.model : NULL;
    e.seconds = v == US_WATCH_GOT ? us_watch_now() - began : 0;
    if (e.event != NULL)
        us_watch_say(w->cfg->json, &e);
    const uint64_t one = 1;
    (void)!write(w->wake_fd, &one, sizeof(one));
}

void *us_watch_worker(void *arg)
{
    struct us_watch *w = arg;
    const struct us_http_client_config cfg = {
        .ca_file = w->cfg->ca_file, .silence_s = w->cfg->silence_s, .cancel = &w->stop};
    struct us_http_client *client = NULL;
    struct us_err err = {0};
    enum us_status st = us_http_client_new(&cfg, &client, &err);
    (void)pthread_mutex_lock(&w->mutex);
    if (st != US_OK) {
        w->broken = true;
        w->err = err;
        atomic_store(&w->stop, true);
    }
    while (!atomic_load(&w->stop)) {
        double until = 0;
        struct us_watch_file *f = next_file(w, &until);
        if (f != NULL)
            work_on(w, f, client);
        else
            wait_until(w, until);
    }
    (void)pthread_mutex_unlock(&w->mutex);
    us_http_client_free(client);
    return NULL;
}
