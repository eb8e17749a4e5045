/* Inside the jobs: us_jobs.c queue and thread, us_job_submit.c new ones, us_job_store.c what is on
 * disk, us_job_events.c what is told, us_job_train.c one training. */
#ifndef US_JOBS_INT_H
#define US_JOBS_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "us_jobs.h"
#include "us_train_config.h"

#define USI_RING 256 /* events kept per job */

enum usi_job_state {
    USI_JOB_QUEUED = 0,
    USI_JOB_RUNNING,
    USI_JOB_SUCCEEDED,
    USI_JOB_FAILED,
    USI_JOB_CANCELLED
};

struct usi_progress {
    bool any, validated; /* a step, an epoch was reported */
    struct us_trainer_event last;
    double val_loss, val_psnr, val_psnr_channel[US_MAX_TARGETS], best_psnr;
};

struct us_job {
    /* Set once, before the job is in the list. */
    char id[US_JOB_ID_BYTES];
    char model[US_MAX_MODEL_NAME + 1], dataset[US_MAX_DATASET_NAME + 1];
    bool replace;
    char key[US_MAX_JOB_KEY + 1]; /* "" = none */
    uint8_t fingerprint[32];      /* SHA-256 of the body */
    struct us_train_settings settings;
    int32_t n_targets; /* channels that it splits into */
    json_t *config;    /* as the client gave it */
    json_t *frozen;    /* of an earlier daemon: all there is to tell; else NULL */
    double created;    /* seconds since 1970 */
    atomic_bool cancel;
    /* With jobs->lock held. */
    enum usi_job_state state;
    bool cancel_asked; /* by a client, not by a stop */
    char reason[US_ERR_MSG_BYTES + 64];
    double started, ended;
    char model_sha256[65]; /* of the result */
    struct usi_progress progress;
    int64_t step_told_ns; /* steps are told at most twice a second */
    struct {
        uint64_t id;
        char *text;
    } ring[USI_RING]; /* event i at i % USI_RING */
    uint64_t next_event;
    struct us_job *next;
};

struct us_jobs {
    struct us_jobs_env env;
    char dir[PATH_MAX / 2];
    pthread_mutex_t submit_lock; /* outside of lock: one new job at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct us_job *first, **last; /* oldest first */
    int64_t n_jobs;
    bool stopping;
    void (*on_event)(void *arg);
    void *on_event_arg;
    pthread_t thread;
    bool thread_running;
};

const char *usi_job_state_name(enum usi_job_state s);
bool usi_job_ended(const struct us_job *j);
double usi_now(void); /* seconds since 1970 */

/* All with jobs->lock held. */
struct us_job *usi_job_find(struct us_jobs *jobs, const char *id);
int64_t usi_jobs_queued(const struct us_jobs *jobs, const struct us_job *before);
json_t *usi_job_json(const struct us_jobs *jobs, const struct us_job *j);
void usi_job_tell_state(struct us_jobs *jobs, struct us_job *j);
/* Without the lock: from the training. */
void usi_job_on_trainer(struct us_jobs *jobs, struct us_job *j, const struct us_trainer_event *e);

/* us_job_store.c: folders. path is PATH_MAX bytes. */
void usi_job_path(const struct us_jobs *jobs, const char *id, const char *file, char *path);
enum us_status usi_job_make_dir(struct us_jobs *jobs, char id[US_JOB_ID_BYTES],
                                struct us_err *err) US_WARN_UNUSED;
void usi_job_remove_dir(const struct us_jobs *jobs, const char *id);
enum us_status usi_job_store(const struct us_jobs *jobs, const char *id, const char *text,
                             struct us_err *err) US_WARN_UNUSED;
/* Lists what earlier daemons left; before the thread starts. */
enum us_status usi_jobs_recover(struct us_jobs *jobs, struct us_err *err) US_WARN_UNUSED;

void usi_job_free(struct us_job *j);

/* us_job_train.c. Where the images of a data set are: its folder, or its one stack. */
enum us_status usi_job_open_frames(struct us_jobs *jobs, const char *dataset,
                                   const struct us_train_settings *s, struct us_frames **ret,
                                   struct us_err *err) US_WARN_UNUSED;
/* The whole training; the model is in the registry at the end. */
enum us_status usi_job_train(struct us_jobs *jobs, struct us_job *j,
                             struct us_err *err) US_WARN_UNUSED;

#endif
