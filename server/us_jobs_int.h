/* Inside the jobs: us_jobs.c threads and clients' questions, us_job_submit.c new ones,
 * us_job_files.c their folders, us_job_tell.c what is told of them, us_job_train.c one training. */
#ifndef US_JOBS_INT_H
#define US_JOBS_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "us_jobs.h"
#include "us_train_config.h"

#define USI_JOB_LEASE_MS    60000
#define USI_JOB_CHECKPOINT  "last.usplit-ckpt"
#define USI_JOB_CHECKPOINT2 "previous.usplit-ckpt"
#define USI_JOB_HISTORY     "history.jsonl"
#define USI_JOB_RESULT      "result.safetensors"

/* What a client asked for, taken apart. */
struct usi_order {
    char model[US_MAX_MODEL_NAME + 1], dataset[US_MAX_DATASET_NAME + 1];
    bool replace;
    struct us_train_settings settings;
};
/* From the body of a POST, or the spec of a stored job. */
enum us_status usi_order_parse(const char *text, size_t n, struct usi_order *ret,
                               struct us_err *err) US_WARN_UNUSED;

struct usi_progress {
    bool any, validated; /* a step, an epoch was reported */
    struct us_trainer_event last;
    double val_loss, val_psnr, val_psnr_channel[US_MAX_TARGETS], best_psnr;
};

/* A job while it runs here. */
struct usi_run {
    struct us_jobs *jobs;
    struct us_store_claim claim;
    struct usi_order order;
    int32_t n_targets;     /* channels that it splits into */
    atomic_bool cancel;    /* stop at the next step, whoever wants it */
    char model_sha256[65]; /* of the result */
    /* Of the training thread. */
    struct usi_progress progress;
    int64_t step_told_ns, pass_told_ns; /* each is told at most twice a second */
    bool warned;                        /* that the store does not take what is told */
};

struct us_jobs {
    struct us_jobs_env env;
    char dir[PATH_MAX / 2];
    char worker[US_STORE_NAME_BYTES];
    pthread_mutex_t submit_lock; /* outside of lock: one new job at a time */
    pthread_mutex_t lock;        /* never held over a call of the store */
    pthread_cond_t wake;
    bool stopping, changed; /* changed: the store has, since the job thread looked */
    struct usi_run *live;   /* or NULL */
    void (*on_event)(void *arg);
    void *on_event_arg;
    pthread_t thread, keeper;
    bool thread_running, keeper_running;
};

static inline const struct us_store_ops *usi_ops(const struct us_jobs *jobs)
{
    return jobs->env.store->ops;
}

/* us_job_tell.c */
json_t *usi_job_json(const struct us_store_job *j);
void usi_run_on_trainer(struct usi_run *run, const struct us_trainer_event *e);
/* {"progress":..,"metrics":..} so far; NULL: nothing yet, or no memory. Caller frees. */
char *usi_run_progress(const struct usi_run *run);

/* us_job_files.c: folders. path is PATH_MAX bytes. */
void usi_job_path(const struct us_jobs *jobs, const char *id, const char *file, char *path);
enum us_status usi_job_make_dir(struct us_jobs *jobs, char id[US_JOB_ID_BYTES],
                                struct us_err *err) US_WARN_UNUSED;
void usi_job_remove_dir(const struct us_jobs *jobs, const char *id);
/* Takes in what a version without a store left, removes folders of jobs that never were; before any
 * thread runs. */
enum us_status usi_jobs_settle_dirs(struct us_jobs *jobs, struct us_err *err) US_WARN_UNUSED;

/* us_job_train.c. Where the images of a data set are: its folder, or its one stack. */
enum us_status usi_job_open_frames(struct us_jobs *jobs, const char *dataset,
                                   const struct us_train_settings *s, struct us_frames **ret,
                                   struct us_err *err) US_WARN_UNUSED;
/* The whole training, from its checkpoint if there is one; the model is in the registry at the end.
 */
enum us_status usi_job_train(struct usi_run *run, struct us_err *err) US_WARN_UNUSED;

#endif
