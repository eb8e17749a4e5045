/*
 * The reference backend in the role of a device, for tests: work is queued and done at the next
 * sync or copy_out, in order, as a stream does it; graphs record and replay; host_alloc memory is
 * read when the work is done, not when it is queued; and frames stay in its memory (us_frame_ops.h,
 * in plain loops over us_patch_extract). What a caller may not do to a device fails the test.
 */
#ifndef US_QUEUE_BACKEND_H
#define US_QUEUE_BACKEND_H

#include "us_backend.h"

/* Caller frees with ops->free, which fails the test if anything of it is still held. */
struct us_backend *us_queue_open(void);

/* Bytes of buf_alloc that are held now, and how many there may be (SIZE_MAX: any). */
size_t us_queue_held(const struct us_backend *be);
void us_queue_set_limit(struct us_backend *be, size_t bytes);
/* The n-th run from now, counted from 0, fails with this status at the sync after it. */
void us_queue_fail_at(struct us_backend *be, int64_t n, enum us_status status);
/* Graphs recorded, and started. */
int64_t us_queue_graphs(const struct us_backend *be);
int64_t us_queue_replays(const struct us_backend *be);
/* Most graphs that were started before one wait. */
int64_t us_queue_longest(const struct us_backend *be);
/* How often somebody took a turn at it (us_backend.h, hold); nothing may be asked of it without. */
int64_t us_queue_turns(const struct us_backend *be);

#endif
