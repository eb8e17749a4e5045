/*
 * The route of a frame through a pool of single-threaded workers that take patches from one
 * counter, for backends that compute where they are called. Within a pass tiles do not overlap and
 * each is computed alone, and a pass begins when the one before has ended, so neither the number of
 * workers nor the order can change a byte.
 */
#include <stdlib.h>

#include "us_predict_impl.h"

/* Marks the job failed; the first failure names it. */
static void job_failed(struct us_predictor *p, struct us_predict_job *job, enum us_status s)
{
    pthread_mutex_lock(&p->lock);
    if (job->status == US_OK)
        job->status = s;
    pthread_mutex_unlock(&p->lock);
    atomic_store(&job->stop, true);
}

static void report_done(struct us_predictor *p, struct us_predict_job *job)
{
    pthread_mutex_lock(&p->lock);
    job->done++;
    if (job->frame->progress != NULL)
        job->frame->progress(job->frame->progress_arg, job->done, job->total);
    pthread_mutex_unlock(&p->lock);
}

static void run_job(struct us_worker *w, struct us_predict_job *job)
{
    struct us_predictor *p = w->owner;
    const int64_t n = job->pass.rows * job->pass.cols;
    while (!atomic_load(&job->stop) && !usi_predict_turn_wanted(job)) {
        int64_t first = atomic_fetch_add(&job->next, p->cfg.batch);
        if (first >= n)
            return;
        int64_t end = first + p->cfg.batch < n ? first + p->cfg.batch : n;
        for (int64_t i = first; i < end && !atomic_load(&job->stop); i++) {
            enum us_status s = usi_predict_tile(w, job, i);
            if (s != US_OK) {
                job_failed(p, job, s);
                return;
            }
            report_done(p, job);
        }
    }
}

static enum us_status worker_start(struct us_worker *w)
{
    const struct us_predictor *p = w->owner;
    size_t n = (size_t)p->geo.grid * (size_t)p->geo.grid * (size_t)p->model->arch.target_channels;
    w->mean = calloc(n, sizeof(*w->mean));
    w->m2 = calloc(n, sizeof(*w->m2));
    if (w->mean == NULL || w->m2 == NULL)
        return us_fail(&w->err, US_E_NOMEM, "worker: out of memory");
    return us_exec_new(p->plan, &w->exec, &w->err);
}

/* Tells the pool that this worker is done with the current generation. */
static void worker_checks_in(struct us_predictor *p)
{
    if (--p->running == 0)
        pthread_cond_broadcast(&p->idle);
}

static void *worker_main(void *arg)
{
    struct us_worker *w = arg;
    struct us_predictor *p = w->owner;
    w->status = worker_start(w);
    pthread_mutex_lock(&p->lock);
    uint64_t seen = 0;
    worker_checks_in(p);
    for (;;) {
        while (!p->quit && p->generation == seen)
            pthread_cond_wait(&p->wake, &p->lock);
        if (p->quit)
            break;
        seen = p->generation;
        struct us_predict_job *job = p->job;
        pthread_mutex_unlock(&p->lock);
        run_job(w, job);
        pthread_mutex_lock(&p->lock);
        worker_checks_in(p);
    }
    pthread_mutex_unlock(&p->lock);
    us_exec_free(w->exec);
    free(w->mean);
    free(w->m2);
    return NULL;
}

static void wait_idle(struct us_predictor *p)
{
    pthread_mutex_lock(&p->lock);
    while (p->running > 0)
        pthread_cond_wait(&p->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

enum us_status usi_pool_start(struct us_predictor *p, struct us_err *err)
{
    p->workers = calloc((size_t)p->cfg.threads, sizeof(*p->workers));
    if (p->workers == NULL)
        return us_fail(err, US_E_NOMEM, "predictor: out of memory");
    p->n_workers = p->cfg.threads;
    p->running = p->n_workers;
    enum us_status status = US_OK;
    for (int32_t i = 0; i < p->n_workers; i++) {
        struct us_worker *w = &p->workers[i];
        w->owner = p;
        w->started = pthread_create(&w->thread, NULL, worker_main, w) == 0;
        if (w->started)
            continue;
        pthread_mutex_lock(&p->lock);
        worker_checks_in(p);
        pthread_mutex_unlock(&p->lock);
        status =
            us_fail(err, US_E_NOMEM, "cannot start worker thread %d of %d", i + 1, p->n_workers);
    }
    wait_idle(p);
    for (int32_t i = 0; i < p->n_workers && status == US_OK; i++) {
        if (p->workers[i].status != US_OK)
            status = us_fail(err, p->workers[i].status, "%s", p->workers[i].err.msg);
    }
    return status;
}

/* Sets the workers on the rest of the job's current pass and waits for them: until its end, or
 * until another's turn has come. */
static void run_slice(struct us_predictor *p, struct us_predict_job *job)
{
    pthread_mutex_lock(&p->lock);
    p->job = job;
    p->generation++;
    p->running = p->n_workers;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    wait_idle(p);
}

static void run_pass(struct us_predictor *p, struct us_predict_job *job)
{
    const int64_t n = job->pass.rows * job->pass.cols;
    atomic_store(&job->next, 0);
    while (job->status == US_OK && atomic_load(&job->next) < n) {
        run_slice(p, job);
        if (job->status == US_OK && atomic_load(&job->paused))
            usi_predict_pass_on(p, job);
    }
}

enum us_status usi_pool_run(struct us_predictor *p, struct us_predict_job *job, struct us_err *err)
{
    const struct us_predict_frame *f = job->frame;
    for (int32_t k = 0; k < p->geo.passes && job->status == US_OK; k++) {
        job->pass = usi_tiling_pass(&p->geo, k, f->h, f->w);
        run_pass(p, job);
    }
    if (job->status != US_OK)
        return us_fail(err, job->status, "prediction: %s", us_status_text(job->status));
    return US_OK;
}

void usi_pool_stop(struct us_predictor *p)
{
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->n_workers; i++) {
        if (p->workers[i].started)
            (void)pthread_join(p->workers[i].thread, NULL);
    }
    free(p->workers);
}
