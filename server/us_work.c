/* The work queue; see us_work.h. One mutex, one condition, a linked list. */
#include "us_work.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKERS 16

struct worker {
    struct us_work *w;
    struct us_task *task; /* in run, or NULL */
    pthread_t thread;
};

struct us_work {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct us_task *first, **last;  /* waiting, oldest first */
    int64_t n_waiting, max_waiting; /* cancelled tasks are not counted: their place is free */
    bool computing, stopping;
    int n_workers;
    struct worker worker[MAX_WORKERS];
};

static void unlink_task(struct us_work *w, struct us_task **at)
{
    struct us_task *t = *at;
    *at = t->next;
    if (w->last == &t->next)
        w->last = at;
    t->next = NULL;
}

/* The oldest task that may run now, taken out of the list, or NULL. Cancelled ones may always:
 * they only give up. */
static struct us_task *take(struct us_work *w)
{
    for (struct us_task **at = &w->first; *at != NULL; at = &(*at)->next) {
        struct us_task *t = *at;
        if (t->exclusive && w->computing && !atomic_load(&t->cancel))
            continue;
        unlink_task(w, at);
        w->n_waiting -= t->counted;
        t->counted = false;
        t->computing = t->exclusive && !w->computing;
        w->computing |= t->computing;
        return t;
    }
    return NULL;
}

/* With the lock held. */
static void leave_compute(struct us_work *w, struct us_task *t)
{
    if (!t->computing)
        return;
    t->computing = false;
    w->computing = false;
    (void)pthread_cond_broadcast(&w->wake);
}

static void *work_loop(void *arg)
{
    struct worker *self = arg;
    struct us_work *w = self->w;
    (void)pthread_mutex_lock(&w->lock);
    for (;;) {
        struct us_task *t = take(w);
        if (t == NULL && w->stopping && w->first == NULL)
            break;
        if (t == NULL) {
            (void)pthread_cond_wait(&w->wake, &w->lock);
            continue;
        }
        self->task = t;
        (void)pthread_mutex_unlock(&w->lock);
        t->run(t);
        (void)pthread_mutex_lock(&w->lock);
        leave_compute(w, t);
        self->task = NULL;
        (void)pthread_mutex_unlock(&w->lock);
        t->finish(t);
        (void)pthread_mutex_lock(&w->lock);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

enum us_status us_work_new(int n_workers, int64_t max_waiting, struct us_work **ret,
                           struct us_err *err)
{
    US_ASSERT(n_workers >= 1 && n_workers <= MAX_WORKERS);
    struct us_work *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the work queue");
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->wake, NULL);
    w->last = &w->first;
    w->max_waiting = max_waiting;
    for (int i = 0; i < n_workers; i++) {
        w->worker[i].w = w;
        if (pthread_create(&w->worker[i].thread, NULL, work_loop, &w->worker[i]) != 0) {
            us_work_free(w);
            return us_fail(err, US_E_NOMEM, "cannot start a worker thread");
        }
        w->n_workers = i + 1;
    }
    *ret = w;
    return US_OK;
}

enum us_status us_work_submit(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    bool refused = w->stopping || w->n_waiting >= w->max_waiting;
    if (!refused) {
        t->next = NULL;
        t->counted = true;
        *w->last = t;
        w->last = &t->next;
        w->n_waiting++;
        (void)pthread_cond_broadcast(&w->wake);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return refused ? US_E_BUSY : US_OK;
}

void us_work_cancel(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    atomic_store(&t->cancel, true);
    w->n_waiting -= t->counted;
    t->counted = false;
    (void)pthread_cond_broadcast(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
}

void us_work_compute_done(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    leave_compute(w, t);
    (void)pthread_mutex_unlock(&w->lock);
}

struct us_work_counts us_work_counts(struct us_work *w)
{
    (void)pthread_mutex_lock(&w->lock);
    struct us_work_counts c = {.waiting = w->n_waiting};
    for (int i = 0; i < w->n_workers; i++)
        c.running += w->worker[i].task != NULL;
    (void)pthread_mutex_unlock(&w->lock);
    return c;
}

void us_work_stop(struct us_work *w)
{
    (void)pthread_mutex_lock(&w->lock);
    w->stopping = true;
    for (struct us_task *t = w->first; t != NULL; t = t->next)
        atomic_store(&t->cancel, true);
    for (int i = 0; i < w->n_workers; i++) {
        if (w->worker[i].task != NULL)
            atomic_store(&w->worker[i].task->cancel, true);
    }
    (void)pthread_cond_broadcast(&w->wake);
    (void)pthread_mutex_unlock(&w->lock);
}

void us_work_free(struct us_work *w)
{
    if (w == NULL)
        return;
    us_work_stop(w);
    for (int i = 0; i < w->n_workers; i++)
        (void)pthread_join(w->worker[i].thread, NULL);
    (void)pthread_cond_destroy(&w->wake);
    (void)pthread_mutex_destroy(&w->lock);
    free(w);
}
