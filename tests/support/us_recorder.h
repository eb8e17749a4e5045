/*
 * The reference backend in the part of a device that trains, for tests: whole batches
 * (us_train_ops.h: batched), work that is queued and done at the next sync or copy_out, graphs that
 * record and replay, host memory that is read when the work is done. Prediction's ops are ref's.
 * One at a time; what a caller may not do to a device fails the test.
 */
#ifndef US_RECORDER_H
#define US_RECORDER_H

#include "us_backend.h"

/* Caller frees with ops->free. */
enum us_status us_recorder_open(struct us_backend **ret, struct us_err *err);

/* Since it was opened: graphs recorded, and started. */
int us_recorder_graphs(void);
int us_recorder_replays(void);
/* The n-th piece of work from now, counted from 0, fails with this status. */
void us_recorder_fail_at(int n, enum us_status status);

#endif
