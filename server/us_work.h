/*
 * The work queue: long tasks run here, off the HTTP threads. Bounded, and fair in who computes.
 *
 * A task that computes (exclusive) needs the turn, which one task has at a time: a prediction uses
 * every thread already. Loading, verifying and packing of replies overlap with it. A task has the
 * turn for as long as nobody else wants it; else, after US_WORK_TURN_MS or a quarter more than the
 * turn before it lasted (so that a client of small images, one after the other, does not wait a
 * long turn for each), it is asked to pass it on (us_work_wanted), does so between two patches, and
 * gets it back. The turn goes to the best class, within a class round the owners, within an owner
 * to the oldest task. A lower class that waited US_WORK_PATIENCE_MS counts as the next better one
 * for a turn, so that it is slowed, not stopped.
 *
 * A task that passed its turn on keeps its thread and its memory, hence only one of each owner and
 * class is begun at a time, and never so many that no thread is left for other work.
 */
#ifndef US_WORK_H
#define US_WORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_status.h"

#define US_WORK_TURN_MS     250
#define US_WORK_PATIENCE_MS 10000
#define US_WORK_OWNER_BYTES 128

struct us_work;

/* Embedded in the caller's own struct, which must live until finish is called. */
struct us_task {
    /* Called once on a worker thread. With exclusive set it has the turn, and at some point
     * us_work_compute_done may end that part early. Must look at cancel: a cancelled task may run
     * without having the turn. */
    void (*run)(struct us_task *t);
    /* Called once after run, when the queue has forgotten the task: may end its life. */
    void (*finish)(struct us_task *t);
    bool exclusive;
    int class;                       /* enum us_job_class: 0 goes first */
    char owner[US_WORK_OWNER_BYTES]; /* who takes turns; "" is one, too */
    atomic_bool cancel; /* set by us_work_cancel and at a stop; run still happens, and gives up */
    const atomic_bool
        *also_cancel; /* a second reason for a task that waits for the turn, or NULL */
    /* The queue's own. */
    struct us_work *work;
    struct us_task *next;
    bool counted, begun, computing;
    uint64_t number, served; /* in order of arrival; of the last turn of its owner and class */
    int64_t since_ns;        /* that turn began, or the waiting */
    int64_t used_ns;         /* all its turns so far */
    int as_class;            /* as which it has the turn */
    _Atomic int64_t until_ns;
};

/* n_workers threads, at most max_waiting tasks waiting. */
enum us_status us_work_new(int n_workers, int64_t max_waiting, struct us_work **ret,
                           struct us_err *err) US_WARN_UNUSED;

/* E_BUSY: the queue is full or stopping; neither callback will be called. */
enum us_status us_work_submit(struct us_work *w, struct us_task *t) US_WARN_UNUSED;

/* Sets cancel; a waiting task gives its place up at once and its run comes next. The caller
 * guarantees that the task is still alive (us_http.h: the watch lock does). */
void us_work_cancel(struct us_work *w, struct us_task *t);

/* For a thread of its own, with a task that is never submitted (its run and finish are not called):
 * waits for the turn. False: cancelled, the turn is not had. Ends with us_work_compute_done. */
bool us_work_enter(struct us_work *w, struct us_task *t);

/* Of the task that has the turn; arg is the struct us_task, as us_predict.h wants it. wanted:
 * somebody else's turn has come; cheap, from any thread. pass_on: returns with the turn, or
 * cancelled and without it. */
bool us_work_wanted(void *arg);
void us_work_pass_on(void *arg);

/* The rest of this task may overlap with another's compute part. Also for one without the turn. */
void us_work_compute_done(struct us_work *w, struct us_task *t);

struct us_work_counts {
    int64_t waiting, running; /* running: those that wait for their next turn, too */
    bool computing;           /* somebody has the turn */
    double task_s;            /* what a task computed, mean of the last few; 0: none has yet */
};
struct us_work_counts us_work_counts(struct us_work *w);

/* Refuses new tasks and cancels all there are; their callbacks are still called. */
void us_work_stop(struct us_work *w);
/* us_work_stop, then waits for every task and ends the threads. NULL is fine. */
void us_work_free(struct us_work *w);

#endif
