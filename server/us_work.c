/* The work queue; see us_work.h. One mutex, one condition, a linked list of all that wait: tasks
 * for a thread, and begun ones for their next turn. */
#include "us_work.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_WORKERS   16
#define SPARE         2 /* threads that no task waiting for its turn may hold */
#define MS            1000000LL
#define LOOK_EVERY_MS 100 /* at also_cancel */
#define LEAST_MS      10  /* of a turn */
#define NEW_PART      0.2 /* of the latest task in the mean */

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
    struct us_task *holder;         /* of the turn, or NULL */
    uint64_t numbers, turns;
    double task_s;
    int64_t turn_ns, before_ns; /* the holder may have; the turn before lasted */
    int n_idle, n_begun;        /* workers without a task; exclusive tasks on workers */
    bool stopping;
    int n_workers;
    struct worker worker[MAX_WORKERS];
};

static int64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

/* ---- who is next; everything here with the lock held ---------------------------------------- */

static bool same_line(const struct us_task *a, const struct us_task *b)
{
    return a->class == b->class && strcmp(a->owner, b->owner) == 0;
}

static bool is_cancelled(const struct us_task *t)
{
    return atomic_load(&t->cancel) || (t->also_cancel != NULL && atomic_load(t->also_cancel));
}

/* Whether the task could use the turn now. */
static bool is_eligible(const struct us_work *w, const struct us_task *t)
{
    if (!t->exclusive || is_cancelled(t))
        return false;
    int most = w->n_workers > SPARE + 1 ? w->n_workers - SPARE : 1;
    return t->begun || (w->n_idle > 0 && w->n_begun < most);
}

static int class_now(const struct us_task *t, int64_t now)
{
    bool patient = now - t->since_ns < US_WORK_PATIENCE_MS * MS;
    return patient || t->class == 0 ? t->class : t->class - 1;
}

static bool is_before(const struct us_task *a, const struct us_task *b, int64_t now)
{
    int ca = class_now(a, now), cb = class_now(b, now);
    if (ca != cb)
        return ca < cb;
    return a->served != b->served ? a->served < b->served : a->number < b->number;
}

/* Whose turn is next, or NULL. */
static struct us_task *best(const struct us_work *w)
{
    struct us_task *b = NULL;
    int64_t now = now_ns();
    for (struct us_task *t = w->first; t != NULL; t = t->next) {
        if (is_eligible(w, t) && (b == NULL || is_before(t, b, now)))
            b = t;
    }
    return b;
}

/* Until when the holder may go on: whoever waits now has an opinion. */
static void set_until(struct us_work *w)
{
    struct us_task *h = w->holder;
    int64_t until = INT64_MAX;
    if (h == NULL)
        return;
    for (const struct us_task *t = w->first; t != NULL; t = t->next) {
        if (!is_eligible(w, t) || (same_line(t, h) && t->number > h->number))
            continue;
        int64_t turn = h->since_ns + w->turn_ns;
        int64_t patience = t->since_ns + US_WORK_PATIENCE_MS * MS;
        int64_t at = t->class < h->as_class                       ? h->since_ns
                     : t->class == h->as_class || turn > patience ? turn
                                                                  : patience;
        until = at < until ? at : until;
    }
    atomic_store(&h->until_ns, until);
}

/* The turn is the task's; its owner has had one. */
static void give_turn(struct us_work *w, struct us_task *t)
{
    const int64_t now = now_ns();
    w->holder = t;
    w->turns++;
    t->as_class = class_now(t, now);
    w->turn_ns = US_WORK_TURN_MS * MS;
    if (t->as_class == t->class && w->before_ns + w->before_ns / 4 < w->turn_ns)
        w->turn_ns = w->before_ns + w->before_ns / 4;
    if (w->turn_ns < LEAST_MS * MS)
        w->turn_ns = LEAST_MS * MS;
    t->computing = true;
    t->served = w->turns;
    t->since_ns = now;
    for (struct us_task *o = w->first; o != NULL; o = o->next) {
        if (!same_line(o, t))
            continue;
        o->served = t->served;
        o->since_ns = now;
    }
    set_until(w);
}

static void append(struct us_work *w, struct us_task *t)
{
    t->next = NULL;
    *w->last = t;
    w->last = &t->next;
}

/* A newcomer comes after all that wait and before the holder, unless its owner has a place already.
 */
static void arrive(struct us_work *w, struct us_task *t)
{
    t->work = w;
    t->number = ++w->numbers;
    t->served = w->turns - (w->holder != NULL); /* the holder has had its turn, we have not */
    t->since_ns = now_ns();
    for (const struct us_task *o = w->first; o != NULL; o = o->next) {
        if (!same_line(o, t))
            continue;
        t->served = o->served;
        t->since_ns = o->since_ns;
    }
    append(w, t);
}

static void unlink_task(struct us_work *w, struct us_task *t)
{
    struct us_task **at = &w->first;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    if (w->last == &t->next)
        w->last = at;
    t->next = NULL;
    w->n_waiting -= t->counted;
    t->counted = false;
}

/* Something changed: a free turn goes to whoever is next, if that one has a thread; else a worker
 * takes it up (take). */
static void settle(struct us_work *w)
{
    struct us_task *t = w->holder == NULL ? best(w) : NULL;
    if (t != NULL && t->begun) {
        unlink_task(w, t);
        give_turn(w, t);
    }
    set_until(w);
    (void)pthread_cond_broadcast(&w->wake);
}

static void leave_turn(struct us_work *w, struct us_task *t)
{
    if (!t->computing)
        return;
    t->computing = false;
    w->before_ns = now_ns() - t->since_ns;
    t->used_ns += w->before_ns;
    w->holder = NULL;
}

/* What a task cost, for those who ask how long the queue will take. */
static void remember_cost(struct us_work *w, const struct us_task *t)
{
    double s = (double)t->used_ns / (double)(1000 * MS);
    if (t->used_ns > 0)
        w->task_s = w->task_s > 0 ? (1 - NEW_PART) * w->task_s + NEW_PART * s : s;
}

/* With the task in the list, begun: until it has the turn, or is cancelled. */
static bool await_turn(struct us_work *w, struct us_task *t)
{
    settle(w);
    while (!t->computing && !is_cancelled(t)) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_EVERY_MS * MS;
        until.tv_sec += until.tv_nsec / (1000 * MS);
        until.tv_nsec %= 1000 * MS;
        (void)pthread_cond_timedwait(&w->wake, &w->lock, &until);
    }
    if (!t->computing)
        unlink_task(w, t);
    return t->computing;
}

/* ---- workers -------------------------------------------------------------------------------- */

/* The task that an idle worker may begin now, taken out of the list, or NULL. Cancelled ones may
 * always: they only give up. */
static struct us_task *take(struct us_work *w)
{
    struct us_task *t = w->holder == NULL ? best(w) : NULL;
    if (t != NULL && t->begun) { /* it has a thread */
        settle(w);
        t = NULL;
    }
    if (t == NULL) {
        t = w->first;
        while (t != NULL && (t->begun || (t->exclusive && !is_cancelled(t))))
            t = t->next;
    }
    if (t == NULL)
        return NULL;
    unlink_task(w, t);
    if (t->exclusive) {
        t->begun = true;
        w->n_begun++;
        if (w->holder == NULL && !is_cancelled(t))
            give_turn(w, t);
    }
    return t;
}

static void run_task(struct us_work *w, struct worker *self, struct us_task *t)
{
    const bool exclusive = t->exclusive;
    self->task = t;
    w->n_idle--;
    (void)pthread_mutex_unlock(&w->lock);
    t->run(t);
    (void)pthread_mutex_lock(&w->lock);
    leave_turn(w, t);
    if (!is_cancelled(t))
        remember_cost(w, t);
    w->n_begun -= exclusive;
    w->n_idle++;
    self->task = NULL;
    settle(w);
    (void)pthread_mutex_unlock(&w->lock);
    t->finish(t);
    (void)pthread_mutex_lock(&w->lock);
}

static void *work_loop(void *arg)
{
    struct worker *self = arg;
    struct us_work *w = self->w;
    (void)pthread_mutex_lock(&w->lock);
    w->n_idle++;
    for (;;) {
        struct us_task *t = take(w);
        if (t == NULL && w->stopping && w->first == NULL)
            break;
        if (t != NULL)
            run_task(w, self, t);
        else
            (void)pthread_cond_wait(&w->wake, &w->lock);
    }
    w->n_idle--;
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- for everybody -------------------------------------------------------------------------- */

static void init(struct us_work *w, int64_t max_waiting)
{
    pthread_condattr_t attr;
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&w->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    w->last = &w->first;
    w->max_waiting = max_waiting;
    w->before_ns = US_WORK_TURN_MS * MS;
}

enum us_status us_work_new(int n_workers, int64_t max_waiting, struct us_work **ret,
                           struct us_err *err)
{
    US_ASSERT(n_workers >= 1 && n_workers <= MAX_WORKERS);
    struct us_work *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the work queue");
    init(w, max_waiting);
    (void)pthread_mutex_lock(&w->lock); /* workers read n_workers */
    int started = 0;
    for (; started < n_workers; started++) {
        w->worker[started].w = w;
        if (pthread_create(&w->worker[started].thread, NULL, work_loop, &w->worker[started]) != 0)
            break;
    }
    w->n_workers = started;
    (void)pthread_mutex_unlock(&w->lock);
    if (started < n_workers) {
        us_work_free(w);
        return us_fail(err, US_E_NOMEM, "cannot start a worker thread");
    }
    *ret = w;
    return US_OK;
}

enum us_status us_work_submit(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    bool refused = w->stopping || w->n_waiting >= w->max_waiting;
    if (!refused) {
        t->begun = t->computing = false;
        t->used_ns = 0;
        arrive(w, t);
        t->counted = true;
        w->n_waiting++;
        settle(w);
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
    settle(w);
    (void)pthread_mutex_unlock(&w->lock);
}

bool us_work_enter(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    if (w->stopping)
        atomic_store(&t->cancel, true);
    t->exclusive = t->begun = true;
    t->computing = false;
    arrive(w, t);
    bool had = await_turn(w, t);
    (void)pthread_mutex_unlock(&w->lock);
    return had;
}

bool us_work_wanted(void *arg)
{
    const struct us_task *t = arg;
    int64_t until = atomic_load(&t->until_ns);
    return until != INT64_MAX && now_ns() >= until;
}

void us_work_pass_on(void *arg)
{
    struct us_task *t = arg;
    struct us_work *w = t->work;
    (void)pthread_mutex_lock(&w->lock);
    if (t->computing) { /* a cancelled one may have none */
        leave_turn(w, t);
        append(w, t);
        (void)await_turn(w, t);
    }
    (void)pthread_mutex_unlock(&w->lock);
}

void us_work_compute_done(struct us_work *w, struct us_task *t)
{
    (void)pthread_mutex_lock(&w->lock);
    leave_turn(w, t);
    settle(w);
    (void)pthread_mutex_unlock(&w->lock);
}

struct us_work_counts us_work_counts(struct us_work *w)
{
    (void)pthread_mutex_lock(&w->lock);
    struct us_work_counts c = {
        .waiting = w->n_waiting, .computing = w->holder != NULL, .task_s = w->task_s};
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
    if (w->holder != NULL)
        atomic_store(&w->holder->cancel, true);
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
