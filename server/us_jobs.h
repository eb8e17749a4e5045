/*
 * Training jobs: one training at a time on a thread of its own, predictions served meanwhile. Which
 * jobs there are, their states and events are in the store (us_store.h); a job's folder,
 * DATA-DIR/jobs/ID, has its bytes: history.jsonl, checkpoints, result.safetensors.
 *
 * A job that was accepted runs to an end, whatever happens to the daemon in between: after a stop
 * or a crash it is queued again and goes on from its last checkpoint, with the bits that it would
 * have had without the interruption. Its result is published once: a crash between the model's file
 * and the job's state finds the same bytes there and only writes down the state.
 */
#ifndef US_JOBS_H
#define US_JOBS_H

#include <jansson.h>

#include "us_backend.h"
#include "us_datasets.h"
#include "us_owners.h"
#include "us_predictors.h"
#include "us_registry.h"
#include "us_store.h"
#include "us_work.h"

#define US_MAX_JOB_BODY_BYTES (2LL << 20)
#define US_JOBS_LISTED        1000
#define US_MAX_JOB_KEY        255 /* bytes of an Idempotency-Key */

struct us_jobs;

/* What jobs work with; all borrowed and outliving them. */
struct us_jobs_env {
    const char *dir, *spool_dir;
    struct us_store *store;
    struct us_datasets *datasets;
    struct us_owners *owners;
    struct us_registry *registry;
    struct us_predictors *predictors; /* those of a replaced model are dropped */
    struct us_work *work;             /* training waits a moment while a prediction runs */
    struct us_backend *backend;       /* of the trainings alone */
    int64_t max_queued;
    int64_t max_attempts;         /* claims in a row that ended in a crash, without a checkpoint */
    int64_t keep_jobs, keep_days; /* ended ones; days 0: for ever */
    int32_t threads;              /* where a job does not say; 0: one per processor */
};

enum us_status us_jobs_new(const struct us_jobs_env *env, struct us_jobs **ret,
                           struct us_err *err) US_WARN_UNUSED;
/* fn is called, from any thread and with a lock held, when a job may have a new event. */
void us_jobs_on_event(struct us_jobs *jobs, void (*fn)(void *arg), void *arg);
/* Refuses new jobs and tells the running one to save and go back into the queue. */
void us_jobs_stop(struct us_jobs *jobs);
/* us_jobs_stop, then waits for the training to end: after this fn is not called again. */
void us_jobs_join(struct us_jobs *jobs);
void us_jobs_free(struct us_jobs *jobs); /* us_jobs_join first, if a thread runs. NULL is fine */

/* A new job from the body of POST /v1/jobs (slow: the data's headers are read). E_ARG, E_FORMAT:
 * names the member. E_NOT_FOUND: no such data set. E_EXISTS: the model's name is taken. E_BUSY: the
 * queue is full. E_CANCELLED: stopping. key: Idempotency-Key or NULL; the same key and body give
 * the same job again (*repeated), another body is E_ARG. *ret_job: its JSON, caller's; *id too.
 * The job is the user's, whose right to data set and model, and quota, are looked at: E_NOT_FOUND,
 * E_EXISTS, E_BUSY, E_DISK_FULL. */
#define US_JOB_ID_BYTES US_STORE_ID_BYTES
enum us_status us_jobs_submit(struct us_jobs *jobs, const struct us_user *user, const char *body,
                              size_t n, const char *key, char id[US_JOB_ID_BYTES], bool *repeated,
                              json_t **ret_job, struct us_err *err) US_WARN_UNUSED;

/* {"jobs": [..]}, newest first, at most so many: it is an HTTP thread that waits; and one job,
 * E_NOT_FOUND. *ret: caller's, NULL for want of memory. owner NULL: everybody's.
 */
enum us_status us_jobs_list(struct us_jobs *jobs, const char *owner, json_t **ret,
                            struct us_err *err) US_WARN_UNUSED;
enum us_status us_jobs_get(struct us_jobs *jobs, const char *id, json_t **ret,
                           struct us_err *err) US_WARN_UNUSED;

/* Cancel: a queued job never runs, a running one ends within a step. Pause: the same, but its
 * checkpoint waits for resume. E_NOT_FOUND; E_EXISTS: it ended, or is being cancelled. */
enum us_job_verb { US_JOB_CANCEL = 0, US_JOB_PAUSE, US_JOB_RESUME };
enum us_status us_jobs_ask(struct us_jobs *jobs, const char *id, enum us_job_verb verb,
                           struct us_err *err) US_WARN_UNUSED;

/* Whether a job that has not ended reads this data set; for us_datasets_set_users. */
enum us_status us_jobs_count_users(void *jobs, const char *dataset, int64_t *n,
                                   struct us_err *err) US_WARN_UNUSED;

/* Opens a file of a job. E_NOT_FOUND: no such job. *ret_fd is -1 if the job has no such file yet.
 */
enum us_job_file { US_JOB_HISTORY = 0, US_JOB_RESULT };
enum us_status us_jobs_open(struct us_jobs *jobs, const char *id, enum us_job_file file,
                            int *ret_fd, int64_t *ret_bytes, struct us_err *err) US_WARN_UNUSED;

/* Events after *after in the text form of server-sent events: as many whole ones as fit (max at
 * least US_MAX_EVENT_BYTES), *after moved on. Returns the bytes; -1: the job has ended and all of
 * it was told, or there is no such job, or the store cannot be read. An *after that was never given
 * starts from the oldest. */
#define US_MAX_EVENT_BYTES 4096
int64_t us_jobs_events(struct us_jobs *jobs, const char *id, uint64_t *after, char *buf,
                       size_t max);

#endif
