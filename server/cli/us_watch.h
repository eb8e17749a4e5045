/*
 * `usplit watch` without its command line: a folder is read again and again, what has stopped
 * growing goes to the daemon, one result comes back for each file, whatever breaks in between.
 *
 * One thread reads the folder and decides when a file has settled, by the monotonic clock and by
 * size and time of change staying the same, so that no clock need be right. `parallel` workers
 * send. Everything they share stands in one table behind one mutex.
 */
#ifndef US_WATCH_H
#define US_WATCH_H

#include "us_cli.h"
#include "us_watch_send.h"

struct us_watch_config {
    struct us_watch_place place; /* its journal is filled in here */
    const char *request;         /* model and query: results of another request are not mixed in */
    const char *ca_file;
    const struct us_cli_texts *match;
    double settle_s, rescan_s;
    double backoff_s;  /* first pause after a failure; doubles, up to a minute */
    int64_t silence_s; /* of the server, before a request is given up */
    int64_t parallel;
    int64_t attempts; /* with once: of a file, or of the server, before it is left */
    bool recursive, once, json, retry_failed, redo_missing;
};

struct us_watch_totals {
    int64_t n_done, n_failed, n_left; /* of files that are there; done in this run */
};

/* Runs until a signal, or with `once` until nothing is left to do. US_OK: an orderly end; what
 * could not be done is in *ret. E_CANCELLED: a signal ended `once`. Everything else: cannot go on.
 */
enum us_status us_watch_run(const struct us_watch_config *c, struct us_watch_totals *ret,
                            struct us_err *err) US_WARN_UNUSED;

#endif
