/* The threads that run jobs, and clients' questions about them; see us_jobs.h. */
#include "us_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "us_failpoint.h"
#include "us_jobs_int.h"
#include "us_log.h"

#define LOOK_EVERY_S   1 /* for jobs whose waiting time is over, and after an error */
#define KEEP_EVERY_S   5 /* heartbeat, leases that ended, retention */
#define DISK_DELAY_MS  10000
#define FORGET_AT_ONCE 64
#define DAY_MS         86400000LL

/* With the lock held: until woken, at most so long. */
static void wait_s(struct us_jobs *jobs, int64_t seconds)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    (void)pthread_cond_timedwait(&jobs->wake, &jobs->lock, &until);
}

/* From any thread, on every change of the store. */
static void on_change(void *arg)
{
    struct us_jobs *jobs = arg;
    (void)pthread_mutex_lock(&jobs->lock);
    jobs->changed = true;
    (void)pthread_cond_broadcast(&jobs->wake);
    if (jobs->on_event != NULL)
        jobs->on_event(jobs->on_event_arg);
    (void)pthread_mutex_unlock(&jobs->lock);
}

static bool is_stopping(struct us_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->lock);
    bool stopping = jobs->stopping;
    (void)pthread_mutex_unlock(&jobs->lock);
    return stopping;
}

/* ---- one job ------------------------------------------------------------------------------- */

/* Writes down what became of a training. */
static enum us_status settle(struct usi_run *run, enum us_status st, const struct us_err *why,
                             enum us_job_state *ret, struct us_err *err)
{
    struct us_jobs *jobs = run->jobs;
    struct us_store *s = jobs->env.store;
    char text[US_ERR_MSG_BYTES + 64], result[128];
    if (st == US_OK) {
        char *progress = usi_run_progress(run);
        (void)snprintf(result, sizeof(result), "{\"model_sha256\":\"%s\"}", run->model_sha256);
        enum us_status done = usi_ops(jobs)->complete(s, &run->claim, progress, result, err);
        free(progress);
        *ret = US_JOB_SUCCEEDED;
        return done;
    }
    if (st == US_E_CANCELLED)
        return usi_ops(jobs)->requeue(s, &run->claim, is_stopping(jobs) ? "the daemon stopped" : "",
                                      0, ret, err);
    if (st == US_E_DISK_FULL) { /* not the job's fault: it waits for room */
        (void)snprintf(text, sizeof(text), "waits for space on the disk: %s", why->msg);
        return usi_ops(jobs)->requeue(s, &run->claim, text, DISK_DELAY_MS, ret, err);
    }
    *ret = US_JOB_FAILED;
    return usi_ops(jobs)->fail(s, &run->claim, why->msg[0] != '\0' ? why->msg : us_status_text(st),
                               err);
}

/* Until it is written down; what cannot be is found by the next start, which runs the end of the
 * job again. */
static void end_run(struct usi_run *run, enum us_status st, const struct us_err *why)
{
    struct us_jobs *jobs = run->jobs;
    enum us_job_state state = US_JOB_QUEUED;
    struct us_err err = {0};
    bool warned = false;
    for (;;) {
        enum us_status done = settle(run, st, why, &state, &err);
        if (done == US_OK) {
            us_log(US_LOG_INFO, "job %s: %s%s%s", run->claim.id, us_job_state_name(state),
                   why->msg[0] != '\0' ? ": " : "", why->msg);
            return;
        }
        if (!warned)
            us_log(US_LOG_WARN, "job %s: its end is not on disk: %s", run->claim.id, err.msg);
        warned = true;
        if (done == US_E_CANCELLED || is_stopping(jobs) || usi_ops(jobs)->broken(jobs->env.store))
            return;
        (void)pthread_mutex_lock(&jobs->lock);
        wait_s(jobs, LOOK_EVERY_S);
        (void)pthread_mutex_unlock(&jobs->lock);
    }
}

static void set_live(struct us_jobs *jobs, struct usi_run *run)
{
    (void)pthread_mutex_lock(&jobs->lock);
    jobs->live = run;
    if (run != NULL && jobs->stopping)
        atomic_store(&run->cancel, true);
    (void)pthread_cond_broadcast(&jobs->wake);
    (void)pthread_mutex_unlock(&jobs->lock);
}

/* A wish between the claim and set_live would otherwise be heard with the first step only. */
static void hear_wish(struct usi_run *run)
{
    const struct us_store_beat beat = {.lease_ms = USI_JOB_LEASE_MS};
    enum us_job_wish wish = US_WISH_NONE;
    enum us_status st =
        usi_ops(run->jobs)->heartbeat(run->jobs->env.store, &run->claim, &beat, &wish, NULL);
    if (st == US_E_CANCELLED || wish != US_WISH_NONE)
        atomic_store(&run->cancel, true);
}

static void run_job(struct us_jobs *jobs, const struct us_store_claim *claim,
                    const struct us_store_job *job)
{
    struct us_err err = {0};
    struct usi_run *run = calloc(1, sizeof(*run));
    if (run == NULL) {
        us_log(US_LOG_WARN, "job %s: no memory to run it", claim->id);
        enum us_job_state state;
        (void)!usi_ops(jobs)->requeue(jobs->env.store, claim, "no memory to run it", DISK_DELAY_MS,
                                      &state, &err);
        return;
    }
    run->jobs = jobs;
    run->claim = *claim;
    enum us_status st = usi_order_parse(job->spec, strlen(job->spec), &run->order, &err);
    set_live(jobs, run);
    hear_wish(run);
    us_log(US_LOG_INFO, "job %s: training '%s' on data set '%s', attempt %lld", claim->id,
           job->model, job->dataset, (long long)job->attempts);
    if (st == US_OK)
        st = us_failpoint("job.claimed", &err);
    if (st == US_OK)
        st = usi_job_train(run, &err);
    end_run(run, st, &err);
    set_live(jobs, NULL);
    free(run);
}

/* ---- the threads --------------------------------------------------------------------------- */

/* Whether there was one. */
static bool run_next(struct us_jobs *jobs, bool *warned)
{
    struct us_store_claim claim;
    struct us_store_job job;
    struct us_err err = {0};
    enum us_status st = usi_ops(jobs)->claim(jobs->env.store, jobs->worker, 1U << US_JOB_TRAIN,
                                             USI_JOB_LEASE_MS, &claim, &job, &err);
    if (st != US_OK && st != US_E_NOT_FOUND && !*warned)
        us_log(US_LOG_WARN, "no job can be begun: %s", err.msg);
    *warned = st != US_OK && st != US_E_NOT_FOUND;
    if (st != US_OK)
        return false;
    run_job(jobs, &claim, &job);
    us_store_job_release(&job);
    return true;
}

static void *job_loop(void *arg)
{
    struct us_jobs *jobs = arg;
    bool warned = false;
    (void)pthread_mutex_lock(&jobs->lock);
    while (!jobs->stopping) {
        jobs->changed = false;
        (void)pthread_mutex_unlock(&jobs->lock);
        bool ran = run_next(jobs, &warned);
        (void)pthread_mutex_lock(&jobs->lock);
        if (!ran && !jobs->stopping && !jobs->changed)
            wait_s(jobs, LOOK_EVERY_S);
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    return NULL;
}

/* A step may take longer than a lease: the process lives, so does the claim. */
static void keep_lease(struct us_jobs *jobs)
{
    const struct us_store_beat beat = {.lease_ms = USI_JOB_LEASE_MS};
    struct us_store_claim claim = {.id = ""};
    enum us_job_wish wish = US_WISH_NONE;
    (void)pthread_mutex_lock(&jobs->lock);
    if (jobs->live != NULL)
        claim = jobs->live->claim;
    (void)pthread_mutex_unlock(&jobs->lock);
    if (claim.id[0] == '\0')
        return;
    enum us_status st = usi_ops(jobs)->heartbeat(jobs->env.store, &claim, &beat, &wish, NULL);
    if (st != US_E_CANCELLED && wish == US_WISH_NONE)
        return;
    (void)pthread_mutex_lock(&jobs->lock);
    if (jobs->live != NULL && jobs->live->claim.token == claim.token)
        atomic_store(&jobs->live->cancel, true);
    (void)pthread_mutex_unlock(&jobs->lock);
}

static void forget_old(struct us_jobs *jobs)
{
    char ids[FORGET_AT_ONCE][US_STORE_ID_BYTES];
    int64_t n = 0;
    do {
        n = 0;
        if (usi_ops(jobs)->forget(jobs->env.store, jobs->env.keep_days * DAY_MS,
                                  jobs->env.keep_jobs, ids, FORGET_AT_ONCE, &n, NULL) != US_OK)
            return; /* again in a few seconds */
        if (n > 0)
            (void)!us_failpoint("job.forgotten", NULL);
        for (int64_t i = 0; i < n; i++)
            usi_job_remove_dir(jobs, ids[i]);
    } while (n == FORGET_AT_ONCE && !is_stopping(jobs));
}

static void *keep_loop(void *arg)
{
    struct us_jobs *jobs = arg;
    (void)pthread_mutex_lock(&jobs->lock);
    struct timespec next;
    (void)clock_gettime(CLOCK_MONOTONIC, &next);
    while (!jobs->stopping || jobs->live != NULL) {
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec < next.tv_sec) {
            (void)pthread_cond_timedwait(&jobs->wake, &jobs->lock, &next);
            if (jobs->stopping && jobs->live != NULL) /* its end wakes nobody */
                next.tv_sec = now.tv_sec + 1;
            continue;
        }
        next.tv_sec = now.tv_sec + KEEP_EVERY_S;
        (void)pthread_mutex_unlock(&jobs->lock);
        keep_lease(jobs);
        (void)!usi_ops(jobs)->expire(jobs->env.store, jobs->env.max_attempts, NULL);
        forget_old(jobs);
        (void)pthread_mutex_lock(&jobs->lock);
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

static enum us_status prepare(struct us_jobs *jobs, struct us_err *err)
{
    const struct us_jobs_env *env = &jobs->env;
    if (snprintf(jobs->dir, sizeof(jobs->dir), "%s", env->dir) >= (int)sizeof(jobs->dir))
        return us_fail(err, US_E_TOO_LARGE, "the data folder's path is too long");
    if (mkdir(env->dir, 0755) != 0 && errno != EEXIST)
        return us_fail(err, us_status_of_errno(errno), "%s: %s", env->dir, strerror(errno));
    (void)snprintf(jobs->worker, sizeof(jobs->worker), "train");
    US_TRY(usi_jobs_settle_dirs(jobs, err));
    US_TRY(usi_ops(jobs)->begin(env->store, jobs->worker, env->max_attempts, err));
    usi_ops(jobs)->on_change(env->store, on_change, jobs);
    return US_OK;
}

enum us_status us_jobs_new(const struct us_jobs_env *env, struct us_jobs **ret, struct us_err *err)
{
    pthread_condattr_t attr;
    struct us_jobs *jobs = calloc(1, sizeof(*jobs));
    if (jobs == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the jobs");
    (void)pthread_mutex_init(&jobs->submit_lock, NULL);
    (void)pthread_mutex_init(&jobs->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&jobs->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    jobs->env = *env;
    enum us_status st = prepare(jobs, err);
    if (st == US_OK && pthread_create(&jobs->thread, NULL, job_loop, jobs) != 0)
        st = us_fail(err, US_E_NOMEM, "cannot start the job thread");
    jobs->thread_running = st == US_OK;
    if (st == US_OK && pthread_create(&jobs->keeper, NULL, keep_loop, jobs) != 0)
        st = us_fail(err, US_E_NOMEM, "cannot start the job thread");
    jobs->keeper_running = st == US_OK;
    if (st != US_OK) {
        us_jobs_free(jobs);
        return st;
    }
    *ret = jobs;
    return US_OK;
}

void us_jobs_on_event(struct us_jobs *jobs, void (*fn)(void *arg), void *arg)
{
    (void)pthread_mutex_lock(&jobs->lock);
    jobs->on_event = fn;
    jobs->on_event_arg = arg;
    (void)pthread_mutex_unlock(&jobs->lock);
}

void us_jobs_stop(struct us_jobs *jobs)
{
    (void)pthread_mutex_lock(&jobs->lock);
    jobs->stopping = true;
    if (jobs->live != NULL)
        atomic_store(&jobs->live->cancel, true);
    (void)pthread_cond_broadcast(&jobs->wake);
    (void)pthread_mutex_unlock(&jobs->lock);
}

void us_jobs_join(struct us_jobs *jobs)
{
    if (jobs == NULL)
        return;
    us_jobs_stop(jobs);
    if (jobs->thread_running)
        (void)pthread_join(jobs->thread, NULL);
    if (jobs->keeper_running)
        (void)pthread_join(jobs->keeper, NULL);
    jobs->thread_running = jobs->keeper_running = false;
    usi_ops(jobs)->on_change(jobs->env.store, NULL, NULL);
}

void us_jobs_free(struct us_jobs *jobs)
{
    if (jobs == NULL)
        return;
    us_jobs_join(jobs);
    (void)pthread_cond_destroy(&jobs->wake);
    (void)pthread_mutex_destroy(&jobs->lock);
    (void)pthread_mutex_destroy(&jobs->submit_lock);
    free(jobs);
}

/* ---- asking -------------------------------------------------------------------------------- */

enum us_status us_jobs_list(struct us_jobs *jobs, const char *owner, json_t **ret,
                            struct us_err *err)
{
    const struct us_store_filter newest = {.owner = owner, .limit = US_JOBS_LISTED};
    struct us_store_job *list = NULL;
    int64_t n = 0;
    US_TRY(usi_ops(jobs)->list(jobs->env.store, &newest, &list, &n, err));
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        (void)json_array_append_new(array, usi_job_json(&list[i]));
        us_store_job_release(&list[i]);
    }
    free(list);
    *ret = json_pack("{s:o}", "jobs", array);
    return US_OK;
}

enum us_status us_jobs_get(struct us_jobs *jobs, const char *id, json_t **ret, struct us_err *err)
{
    struct us_store_job job;
    US_TRY(usi_ops(jobs)->get(jobs->env.store, id, &job, err));
    *ret = usi_job_json(&job);
    us_store_job_release(&job);
    return US_OK;
}

enum us_status us_jobs_ask(struct us_jobs *jobs, const char *id, enum us_job_verb verb,
                           struct us_err *err)
{
    struct us_store *s = jobs->env.store;
    enum us_job_state state = US_JOB_QUEUED;
    enum us_status st = verb == US_JOB_CANCEL
                            ? usi_ops(jobs)->cancel(s, id, "cancelled by a client", &state, err)
                        : verb == US_JOB_PAUSE ? usi_ops(jobs)->pause(s, id, &state, err)
                                               : usi_ops(jobs)->resume(s, id, &state, err);
    if (st != US_OK || state != US_JOB_RUNNING || verb == US_JOB_RESUME)
        return st;
    (void)pthread_mutex_lock(&jobs->lock);
    if (jobs->live != NULL && strcmp(jobs->live->claim.id, id) == 0)
        atomic_store(&jobs->live->cancel, true);
    (void)pthread_mutex_unlock(&jobs->lock);
    return US_OK;
}

enum us_status us_jobs_count_users(void *arg, const char *dataset, int64_t *n, struct us_err *err)
{
    const struct us_jobs *jobs = arg;
    const struct us_store_filter f = {.states = US_JOBS_UNFINISHED, .dataset = dataset};
    return usi_ops(jobs)->count(jobs->env.store, &f, n, err);
}

enum us_status us_jobs_open(struct us_jobs *jobs, const char *id, enum us_job_file file,
                            int *ret_fd, int64_t *ret_bytes, struct us_err *err)
{
    const struct us_store_filter f = {.id = id};
    char path[PATH_MAX];
    struct stat st;
    int64_t n = 0;
    US_TRY(usi_ops(jobs)->count(jobs->env.store, &f, &n, err));
    if (n == 0)
        return us_fail(err, US_E_NOT_FOUND, "there is no job '%s'", id);
    usi_job_path(jobs, id, file == US_JOB_HISTORY ? USI_JOB_HISTORY : USI_JOB_RESULT, path);
    *ret_bytes = 0;
    *ret_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*ret_fd < 0 && errno != ENOENT)
        return us_fail(err, US_E_IO, "job '%s': its file cannot be read: %s", id, strerror(errno));
    if (*ret_fd >= 0 && fstat(*ret_fd, &st) == 0)
        *ret_bytes = st.st_size;
    return US_OK;
}
