/*
 * The work queue: long jobs run here, off the HTTP threads. Bounded; first come, first served;
 * a task that computes waits until no other computes (a prediction uses every thread already),
 * while loading, verifying and packing of replies overlap with it.
 *
 * Issue E puts durable jobs, priorities and processes behind this interface.
 */
#ifndef US_WORK_H
#define US_WORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_status.h"

struct us_work;

/* Embedded in the caller's own struct, which must live until finish is called. */
struct us_task {
    /* Called once on a worker thread. With exclusive set, no other exclusive task is in its
     * compute part; us_work_compute_done ends that part early. Must look at cancel. */
    void (*run)(struct us_task *t);
    /* Called once after run, when the queue has forgotten the task: may end its life. */
    void (*finish)(struct us_task *t);
    bool exclusive;
    atomic_bool cancel; /* set by us_work_cancel and at a stop; run still happens, and gives up */
    /* The queue's own. */
    struct us_task *next;
    bool counted, computing;
};

/* n_workers threads, at most max_waiting tasks waiting. */
enum us_status us_work_new(int n_workers, int64_t max_waiting, struct us_work **ret,
                           struct us_err *err) US_WARN_UNUSED;

/* E_BUSY: the queue is full or stopping; neither callback will be called. */
enum us_status us_work_submit(struct us_work *w, struct us_task *t) US_WARN_UNUSED;

/* Sets cancel; a waiting task gives its place up at once and its run comes next. The caller
 * guarantees that the task is still alive (us_http.h: the watch lock does). */
void us_work_cancel(struct us_work *w, struct us_task *t);

/* Called from run: the rest of this task may overlap with another's compute part. */
void us_work_compute_done(struct us_work *w, struct us_task *t);

struct us_work_counts {
    int64_t waiting, running;
};
struct us_work_counts us_work_counts(struct us_work *w);

/* Refuses new tasks and cancels all there are; their callbacks are still called. */
void us_work_stop(struct us_work *w);
/* us_work_stop, then waits for every task and ends the threads. NULL is fine. */
void us_work_free(struct us_work *w);

#endif
