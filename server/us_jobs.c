/* The job list, its queue and its thread; see us_jobs.h. */
#include "us_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "us_jobs_int.h"
#include "us_log.h"

const char *usi_job_state_name(enum usi_job_state s)
{
    static const char *const names[] = {"queued", "running", "succeeded", "failed", "cancelled"};
    return (unsigned)s < US_COUNT(names) ? names[s] : "unknown";
}

bool usi_job_ended(const struct us_job *j)
{
    return j->state != USI_JOB_QUEUED && j->state != USI_JOB_RUNNING;
}

double usi_now(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void usi_job_free(struct us_job *j)
{
    if (j == NULL)
        return;
    for (int i = 0; i < USI_RING; i++)
        free(j->ring[i].text);
    json_decref(j->config);
    json_decref(j->frozen);
    free(j);
}

struct us_job *usi_job_find(struct us_jobs *jobs, const char *id)
{
    struct us_job *j = jobs->first;
    while (j != NULL && strcmp(j->id, id) != 0)
        j = j->next;
    return j;
}

int64_t usi_jobs_queued(const struct us_jobs *jobs, const struct us_job *before)
{
    int64_t n = 0;
    for (const struct us_job *j = jobs->first; j != NULL && j != before; j = j->next)
        n += j->state == USI_JOB_QUEUED;
    return n;
}

/* With the lock held. Returns what job.json is to say (caller frees). */
static char *set_state(struct us_jobs *jobs, struct us_job *j, enum usi_job_state state)
{
    j->state = state;
    if (state == USI_JOB_RUNNING)
        j->started = usi_now();
    else
        j->ended = usi_now();
    usi_job_tell_state(jobs, j);
    json_t *doc = usi_job_json(jobs, j);
    char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(doc);
    return text;
}

/* Without the lock. A state that cannot be written is only lost for the next daemon. */
static void store(struct us_jobs *jobs, const char *id, char *text)
{
    struct us_err err = {0};
    if (usi_job_store(jobs, id, text, &err) != US_OK)
        us_log(US_LOG_WARN, "job %s: its state is not on disk: %s", id, err.msg);
    free(text);
}

/* ---- the thread ---------------------------------------------------------------------------- */

/* With the lock held: what became of a training. */
static enum usi_job_state judge(struct us_job *j, enum us_status st, const struct us_err *err)
{
    if (st == US_OK)
        return USI_JOB_SUCCEEDED;
    if (st == US_E_CANCELLED && j->cancel_asked) {
        (void)snprintf(j->reason, sizeof(j->reason), "cancelled by a client");
        return USI_JOB_CANCELLED;
    }
    if (st == US_E_CANCELLED)
        (void)snprintf(j->reason, sizeof(j->reason), "the daemon stopped; %s", err->msg);
    else
        (void)snprintf(j->reason, sizeof(j->reason), "%s",
                       err->msg[0] != '\0' ? err->msg : us_status_text(st));
    return USI_JOB_FAILED;
}

static void run_job(struct us_jobs *jobs, struct us_job *j)
{
    struct us_err err = {0};
    us_log(US_LOG_INFO, "job %s: training '%s' on data set '%s' begins", j->id, j->model,
           j->dataset);
    enum us_status st = usi_job_train(jobs, j, &err);
    us_datasets_release(jobs->env.datasets, j->dataset);
    (void)pthread_mutex_lock(&jobs->lock);
    char *text = set_state(jobs, j, judge(j, st, &err));
    us_log(US_LOG_INFO, "job %s: %s%s%s", j->id, usi_job_state_name(j->state),
           j->reason[0] != '\0' ? ": " : "", j->reason);
    (void)pthread_mutex_unlock(&jobs->lock);
    store(jobs, j->id, text); /* j may be forgotten from here on, its id not yet: see forget */
}

static struct us_job *next_queued(struct us_jobs *jobs)
{
    struct us_job *j = jobs->first;
    while (j != NULL && j->state != USI_JOB_QUEUED)
        j = j->next;
    return j;
}

/* With the lock held; gives it up meanwhile. */
static void begin_or_drop(struct us_jobs *jobs, struct us_job *j)
{
    if (jobs->stopping)
        (void)snprintf(j->reason, sizeof(j->reason), "the daemon stopped before it began");
    bool drop = jobs->stopping;
    char *text = set_state(jobs, j, drop ? USI_JOB_FAILED : USI_JOB_RUNNING);
    (void)pthread_mutex_unlock(&jobs->lock);
    store(jobs, j->id, text);
    if (drop)
        us_datasets_release(jobs->env.datasets, j->dataset);
    else
        run_job(jobs, j);
    (void)pthread_mutex_lock(&jobs->lock);
}

static void *job_loop(void *arg)
{
    struct us_jobs *jobs = arg;
    (void)pthread_mutex_lock(&jobs->lock);
    for (;;) {
        struct us_job *j = next_queued(jobs);
        if (j != NULL)
            begin_or_drop(jobs, j);
        else if (jobs->stopping)
            break;
        else
            (void)pthread_cond_wait(&jobs->wake, &jobs->lock);
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

enum us_status us_jobs_new(const struct us_jobs_env *env, struct us_jobs **ret, struct us_err *err)
{
    enum us_status st = US_OK;
    struct us_jobs *jobs = calloc(1, sizeof(*jobs));
    if (jobs == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the jobs");
    (void)pthread_mutex_init(&jobs->submit_lock, NULL);
    (void)pthread_mutex_init(&jobs->lock, NULL);
    (void)pthread_cond_init(&jobs->wake, NULL);
    jobs->env = *env;
    jobs->last = &jobs->first;
    if (snprintf(jobs->dir, sizeof(jobs->dir), "%s", env->dir) >= (int)sizeof(jobs->dir))
        st = us_fail(err, US_E_TOO_LARGE, "the data folder's path is too long");
    else if (mkdir(env->dir, 0755) != 0 && errno != EEXIST)
        st = us_fail(err, us_status_of_errno(errno), "%s: %s", env->dir, strerror(errno));
    else
        st = usi_jobs_recover(jobs, err);
    if (st == US_OK && pthread_create(&jobs->thread, NULL, job_loop, jobs) != 0)
        st = us_fail(err, US_E_NOMEM, "cannot start the job thread");
    jobs->thread_running = st == US_OK;
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
    for (struct us_job *j = jobs->first; j != NULL; j = j->next)
        atomic_store(&j->cancel, true);
    (void)pthread_cond_broadcast(&jobs->wake);
    (void)pthread_mutex_unlock(&jobs->lock);
}

void us_jobs_join(struct us_jobs *jobs)
{
    if (jobs == NULL || !jobs->thread_running)
        return;
    us_jobs_stop(jobs);
    (void)pthread_join(jobs->thread, NULL);
    jobs->thread_running = false;
}

void us_jobs_free(struct us_jobs *jobs)
{
    if (jobs == NULL)
        return;
    us_jobs_join(jobs);
    for (struct us_job *j = jobs->first, *next; j != NULL; j = next) {
        next = j->next;
        usi_job_free(j);
    }
    (void)pthread_cond_destroy(&jobs->wake);
    (void)pthread_mutex_destroy(&jobs->lock);
    (void)pthread_mutex_destroy(&jobs->submit_lock);
    free(jobs);
}

/* ---- asking -------------------------------------------------------------------------------- */

json_t *us_jobs_list(struct us_jobs *jobs)
{
    json_t *array = json_array();
    (void)pthread_mutex_lock(&jobs->lock);
    for (const struct us_job *j = jobs->first; j != NULL; j = j->next)
        (void)json_array_insert_new(array, 0, usi_job_json(jobs, j));
    (void)pthread_mutex_unlock(&jobs->lock);
    return json_pack("{s:o}", "jobs", array);
}

json_t *us_jobs_get(struct us_jobs *jobs, const char *id)
{
    (void)pthread_mutex_lock(&jobs->lock);
    const struct us_job *j = usi_job_find(jobs, id);
    json_t *doc = j != NULL ? usi_job_json(jobs, j) : NULL;
    (void)pthread_mutex_unlock(&jobs->lock);
    return doc;
}

static enum us_status no_such_job(const char *id, struct us_err *err)
{
    return us_fail(err, US_E_NOT_FOUND, "there is no job '%s'", id);
}

enum us_status us_jobs_cancel(struct us_jobs *jobs, const char *id, struct us_err *err)
{
    char dataset[US_MAX_DATASET_NAME + 1] = "", *text = NULL;
    enum us_status st = US_OK;
    (void)pthread_mutex_lock(&jobs->lock);
    struct us_job *j = usi_job_find(jobs, id);
    if (j == NULL) {
        st = no_such_job(id, err);
    } else if (usi_job_ended(j)) {
        st = us_fail(err, US_E_EXISTS, "the job has ended: %s", usi_job_state_name(j->state));
    } else {
        j->cancel_asked = true;
        atomic_store(&j->cancel, true);
        if (j->state == USI_JOB_QUEUED) {
            (void)snprintf(j->reason, sizeof(j->reason), "cancelled by a client before it began");
            memcpy(dataset, j->dataset, sizeof(dataset));
            text = set_state(jobs, j, USI_JOB_CANCELLED);
        }
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    if (dataset[0] != '\0') {
        us_datasets_release(jobs->env.datasets, dataset);
        store(jobs, id, text);
    }
    return st;
}

enum us_status us_jobs_open(struct us_jobs *jobs, const char *id, enum us_job_file file,
                            int *ret_fd, int64_t *ret_bytes, struct us_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    (void)pthread_mutex_lock(&jobs->lock);
    bool known = usi_job_find(jobs, id) != NULL;
    (void)pthread_mutex_unlock(&jobs->lock);
    if (!known)
        return no_such_job(id, err);
    usi_job_path(jobs, id, file == US_JOB_HISTORY ? "history.jsonl" : "result.safetensors", path);
    *ret_bytes = 0;
    *ret_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*ret_fd < 0 && errno != ENOENT)
        return us_fail(err, US_E_IO, "job '%s': its file cannot be read: %s", id, strerror(errno));
    if (*ret_fd >= 0 && fstat(*ret_fd, &st) == 0)
        *ret_bytes = st.st_size;
    return US_OK;
}
