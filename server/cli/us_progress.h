/*
 * A progress bar on a terminal: share done, rate and time left, redrawn at most ten times a
 * second and cleared at the end. Where stderr is not a terminal nothing is printed.
 */
#ifndef US_PROGRESS_H
#define US_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct us_progress {
    bool on;
    const char *unit; /* "patches" */
    double start_s, drawn_s;
};

/* quiet: never draw. unit is borrowed until the end. */
void us_progress_start(struct us_progress *p, const char *unit, bool quiet);

/* arg is the struct us_progress; calls must not overlap, threads may differ. */
void us_progress_update(void *arg, int64_t done, int64_t total);

/* Clears the line. */
void us_progress_end(struct us_progress *p);

#endif
