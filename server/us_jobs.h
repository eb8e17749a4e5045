/*
 * Training jobs: a bounded queue, one training at a time on a thread of its own, predictions served
 * meanwhile. A job is a folder, DATA-DIR/jobs/ID: job.json (written whole at each change of state),
 * history.jsonl, the checkpoints, and result.safetensors once it succeeded.
 *
 * States: queued -> running -> succeeded, failed or cancelled. What a stop or crash of the daemon
 * left unfinished is listed as failed after the restart, its checkpoint kept. Keys of
 * Idempotency-Key live as long as the daemon.
 *
 * The queue is in memory; a durable one can replace it behind this interface (issue E).
 */
#ifndef US_JOBS_H
#define US_JOBS_H

#include <jansson.h>

#include "us_backend.h"
#include "us_datasets.h"
#include "us_predictors.h"
#include "us_registry.h"
#include "us_work.h"

#define US_MAX_JOB_BODY_BYTES (2LL << 20)
#define US_MAX_JOB_KEY        255 /* bytes of an Idempotency-Key */

struct us_jobs;

/* What jobs work with; all borrowed and outliving them. */
struct us_jobs_env {
    const char *dir, *spool_dir;
    struct us_datasets *datasets;
    struct us_registry *registry;
    struct us_predictors *predictors; /* those of a replaced model are dropped */
    struct us_work *work;             /* training waits a moment while a prediction runs */
    struct us_backend *backend;       /* of the trainings alone */
    int64_t max_queued;
    int32_t threads; /* where a job does not say; 0: one per processor */
};

enum us_status us_jobs_new(const struct us_jobs_env *env, struct us_jobs **ret,
                           struct us_err *err) US_WARN_UNUSED;
/* fn is called, with a lock held, whenever a job has a new event. */
void us_jobs_on_event(struct us_jobs *jobs, void (*fn)(void *arg), void *arg);
/* Refuses new jobs and tells the running one to save and end. */
void us_jobs_stop(struct us_jobs *jobs);
/* us_jobs_stop, then waits for the training to end: after this fn is not called again. */
void us_jobs_join(struct us_jobs *jobs);
void us_jobs_free(struct us_jobs *jobs); /* us_jobs_join first, if a thread runs. NULL is fine */

/* A new job from the body of POST /v1/jobs (slow: the data's headers are read). E_ARG, E_FORMAT:
 * names the member. E_NOT_FOUND: no such data set. E_EXISTS: the model's name is taken. E_BUSY: the
 * queue is full. E_CANCELLED: stopping. key: Idempotency-Key or NULL; the same key and body give
 * the same job again (*repeated), another body is E_ARG. *ret_job: its JSON, caller's; *id too. */
#define US_JOB_ID_BYTES 48
enum us_status us_jobs_submit(struct us_jobs *jobs, const char *body, size_t n, const char *key,
                              char id[US_JOB_ID_BYTES], bool *repeated, json_t **ret_job,
                              struct us_err *err) US_WARN_UNUSED;

/* {"jobs": [..]}, newest first, and one job; NULL: no memory, for one also no such job. */
json_t *us_jobs_list(struct us_jobs *jobs);
json_t *us_jobs_get(struct us_jobs *jobs, const char *id);

/* A queued job never runs, a running one ends within a step. E_NOT_FOUND; E_EXISTS: it ended. */
enum us_status us_jobs_cancel(struct us_jobs *jobs, const char *id,
                              struct us_err *err) US_WARN_UNUSED;

/* Opens a file of a job. E_NOT_FOUND: no such job. *ret_fd is -1 if the job has no such file yet.
 */
enum us_job_file { US_JOB_HISTORY = 0, US_JOB_RESULT };
enum us_status us_jobs_open(struct us_jobs *jobs, const char *id, enum us_job_file file,
                            int *ret_fd, int64_t *ret_bytes, struct us_err *err) US_WARN_UNUSED;

/* Events after *after in the text form of server-sent events: as many whole ones as fit (max at
 * least US_MAX_EVENT_BYTES), *after moved on. Returns the bytes; -1: the job has ended and all of
 * it was told, or there is no such job. An *after that was never given starts from the oldest. */
#define US_MAX_EVENT_BYTES 4096
int64_t us_jobs_events(struct us_jobs *jobs, const char *id, uint64_t *after, char *buf,
                       size_t max);

#endif
