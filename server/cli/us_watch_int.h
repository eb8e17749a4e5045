/* What the two halves of a watcher share: us_watch.c finds, us_watch_work.c sends. */
#ifndef US_WATCH_INT_H
#define US_WATCH_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "us_watch.h"
#include "us_watch_say.h"
#include "us_watch_scan.h"

struct us_watch {
    const struct us_watch_config *cfg;
    struct us_watch_place place;
    atomic_bool stop;             /* workers: finish and return; breaks requests off */
    const atomic_bool *interrupt; /* a signal asks for the end */
    int wake_fd;                  /* workers write, the finder polls */
    int inotify_fd;
    bool complained; /* that the folder cannot be read */

    pthread_mutex_t mutex; /* of all below */
    pthread_cond_t work;   /* something may be WAITING */
    struct us_watch_table table;
    struct us_watch_totals totals;
    double resume_s;        /* nothing is sent before: the server or the disk is not there */
    int64_t n_server_fails; /* in a row */
    bool broken;
    struct us_err err; /* of broken */
};

/* Seconds of the monotonic clock. */
double us_watch_now(void);
/* A worker thread; arg: struct us_watch. */
void *us_watch_worker(void *arg);

#endif
