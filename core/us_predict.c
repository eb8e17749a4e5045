/*
 * The predictor: settings checked against the model, a plan, and a pool of single-threaded workers
 * that take patches from one counter. Within a pass tiles do not overlap and each is computed
 * alone, and a pass begins when the one before has ended, so neither the number of workers nor the
 * order can change a byte.
 */
#include "us_predict.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_predict_impl.h"

#define DEFAULT_BATCH                                                                              \
    4 /* patches a worker takes at a time: few, so that the last ones end together */

struct us_predict_config us_predict_defaults(const struct us_model *m)
{
    return (struct us_predict_config){.precision = US_PREC_AUTO,
                                      .tiling = US_TILING_INNER,
                                      .padding = m->inner_padding,
                                      .samples = m->samples,
                                      .noise = US_NOISE_PATCH};
}

/* ---- settings ------------------------------------------------------------------------------ */

struct bound {
    const char *name;
    int64_t value, min, max;
};

static enum us_status check_settings(const struct us_model *m, const struct us_predict_config *cfg,
                                     struct us_err *err)
{
    bool inner = cfg->tiling == US_TILING_INNER;
    const struct bound bounds[] = {
        {"samples", cfg->samples, 1, US_MAX_SAMPLES},
        {"threads", cfg->threads, 0, US_MAX_THREADS},
        {"batch", cfg->batch, 0, US_MAX_BATCH},
        {inner ? "inner padding" : "outer padding", cfg->padding, 0,
         inner ? m->patch_size / 2 - 1 : (US_MAX_PATCH - m->patch_size) / 2},
    };
    for (size_t i = 0; i < US_COUNT(bounds); i++) {
        const struct bound *b = &bounds[i];
        if (b->value < b->min || b->value > b->max)
            return us_fail(err, US_E_ARG, "%s is %lld; expected %lld to %lld for patch size %d",
                           b->name, (long long)b->value, (long long)b->min, (long long)b->max,
                           m->patch_size);
    }
    return US_OK;
}

static int32_t available_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > US_MAX_THREADS ? US_MAX_THREADS : n;
}

static enum us_status resolve_precision(struct us_predictor *p, struct us_err *err)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    bool bf16 = ops->has_dtype(p->be, US_BF16);
    if (p->cfg.precision == US_PREC_AUTO)
        p->cfg.precision = bf16 ? US_PREC_BF16 : US_PREC_F32;
    if (p->cfg.precision == US_PREC_BF16 && !bf16)
        return us_fail(err, US_E_UNSUPPORTED,
                       "precision bf16: backend %s on this processor has f32 only", ops->name);
    return US_OK;
}

/* ---- workers ------------------------------------------------------------------------------- */

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
    while (!atomic_load(&job->stop)) {
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

static enum us_status start_workers(struct us_predictor *p, struct us_err *err)
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

/* ---- life ---------------------------------------------------------------------------------- */

static enum us_status build_plan(struct us_predictor *p, struct us_err *err)
{
    const struct us_model *m = p->model;
    const struct us_net *net = m->net;
    if (p->geo.size != m->patch_size) {
        US_TRY(us_net_build(&m->arch, m->patch_size, p->geo.size, &p->net, err));
        net = p->net;
    }
    const struct us_plan_config cfg = {
        .dtype = p->cfg.precision == US_PREC_BF16 ? US_BF16 : US_F32,
        .batch = 1,
        .latent_mean = p->cfg.latent_mean,
        .reuse_encoder = p->geo.samples > p->geo.passes,
        .keep = {p->geo.pad, p->geo.pad, p->geo.grid, p->geo.grid},
        .whole_maps = p->cfg.whole_maps,
        .align = p->cfg.align,
    };
    return us_plan_build(net, m->weights, p->be, &cfg, &p->plan, err);
}

enum us_status us_predictor_new(const struct us_model *m, struct us_backend *be,
                                const struct us_predict_config *cfg, struct us_predictor **ret,
                                struct us_err *err)
{
    US_TRY(check_settings(m, cfg, err));
    struct us_predictor *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return us_fail(err, US_E_NOMEM, "predictor: out of memory");
    p->model = m;
    p->be = be;
    p->cfg = *cfg;
    p->geo = usi_tiling_geometry(m, cfg);
    p->cfg.batch = cfg->batch > 0 ? cfg->batch : DEFAULT_BATCH;
    p->cfg.threads = cfg->threads > 0 ? cfg->threads : available_processors();
    (void)pthread_mutex_init(&p->busy, NULL);
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->wake, NULL);
    (void)pthread_cond_init(&p->idle, NULL);
    enum us_status status = resolve_precision(p, err);
    if (status == US_OK)
        status = build_plan(p, err);
    if (status == US_OK)
        status = start_workers(p, err);
    if (status != US_OK) {
        us_predictor_free(p);
        return status;
    }
    *ret = p;
    return US_OK;
}

void us_predictor_free(struct us_predictor *p)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->n_workers; i++) {
        if (p->workers[i].started)
            (void)pthread_join(p->workers[i].thread, NULL);
    }
    us_plan_free(p->plan);
    us_net_free(p->net);
    free(p->workers);
    (void)pthread_cond_destroy(&p->idle);
    (void)pthread_cond_destroy(&p->wake);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_mutex_destroy(&p->busy);
    free(p);
}

void us_predictor_set_seed(struct us_predictor *p, uint64_t seed)
{
    pthread_mutex_lock(&p->busy);
    p->cfg.seed = seed;
    pthread_mutex_unlock(&p->busy);
}

struct us_predictor_stats us_predictor_stats(const struct us_predictor *p)
{
    struct us_plan_stats s = us_plan_stats(p->plan);
    return (struct us_predictor_stats){.backend = us_backend_ops(p->be)->name,
                                       .precision = p->cfg.precision,
                                       .threads = p->n_workers,
                                       .batch = p->cfg.batch,
                                       .grid = p->geo.grid,
                                       .passes = p->geo.passes,
                                       .packed_bytes = s.packed_bytes,
                                       .worker_bytes = s.block_bytes,
                                       .flops_patch = s.flops};
}

/* ---- a frame ------------------------------------------------------------------------------- */

int64_t us_predict_n_patches(const struct us_predictor *p, int64_t h, int64_t w)
{
    int64_t n = 0;
    for (int32_t k = 0; k < p->geo.passes; k++) {
        struct us_tiling_pass t = usi_tiling_pass(&p->geo, k, h, w);
        n += t.rows * t.cols;
    }
    return n;
}

static enum us_status check_frame(const struct us_predictor *p, const struct us_predict_frame *f,
                                  struct us_err *err)
{
    if (f->h < 1 || f->w < 1 || f->h > US_MAX_IMAGE_SIDE || f->w > US_MAX_IMAGE_SIDE ||
        f->h > US_MAX_PLANE_PIXELS / f->w)
        return us_fail(err, US_E_TOO_LARGE, "frame is %lld x %lld; expected 1 to %lld pixels",
                       (long long)f->h, (long long)f->w, (long long)US_MAX_PLANE_PIXELS);
    if (us_predict_n_patches(p, f->h, f->w) > UINT32_MAX)
        return us_fail(err, US_E_TOO_LARGE, "frame of %lld x %lld at grid %d has too many patches",
                       (long long)f->h, (long long)f->w, p->geo.grid);
    if (f->mean == NULL || (p->cfg.want_std && f->std == NULL))
        return us_fail(err, US_E_ARG, "no memory given for the result");
    for (int64_t i = 0; i < f->h * f->w; i++) {
        if (!isfinite(f->in[i]))
            return us_fail(err, US_E_FORMAT,
                           "pixel at row %lld, column %lld is %s; expected finite intensities",
                           (long long)(i / f->w), (long long)(i % f->w),
                           isnan(f->in[i]) ? "NaN" : "infinite");
    }
    return US_OK;
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Sets the workers on the job's current pass and waits for them. */
static void run_pass(struct us_predictor *p, struct us_predict_job *job)
{
    atomic_store(&job->next, 0);
    pthread_mutex_lock(&p->lock);
    p->job = job;
    p->generation++;
    p->running = p->n_workers;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    wait_idle(p);
}

static enum us_status run_frame(struct us_predictor *p, const struct us_pyramid *pyramid,
                                struct us_predict_frame *f)
{
    struct us_predict_job job = {
        .pyramid = pyramid, .frame = f, .total = us_predict_n_patches(p, f->h, f->w)};
    double start = now_s();
    for (int32_t k = 0; k < p->geo.passes && job.status == US_OK; k++) {
        job.pass = usi_tiling_pass(&p->geo, k, f->h, f->w);
        run_pass(p, &job);
    }
    f->seconds = now_s() - start;
    return job.status;
}

enum us_status us_predict_run(struct us_predictor *p, struct us_predict_frame *f,
                              struct us_err *err)
{
    if (pthread_mutex_trylock(&p->busy) != 0)
        return us_fail(err, US_E_BUSY, "this predictor is already predicting a frame");
    struct us_pyramid pyramid = {0};
    enum us_status status = check_frame(p, f, err);
    if (status == US_OK) {
        status = us_pyramid_build(f->in, f->h, f->w, p->model->arch.lc_scales,
                                  us_model_input_clip(p->model), &pyramid, &f->n_clipped);
        if (status != US_OK)
            (void)us_fail(err, status, "frame of %lld x %lld: %s", (long long)f->h, (long long)f->w,
                          us_status_text(status));
    }
    if (status == US_OK) {
        status = run_frame(p, &pyramid, f);
        if (status != US_OK)
            (void)us_fail(err, status, "prediction: %s", us_status_text(status));
    }
    us_pyramid_release(&pyramid);
    pthread_mutex_unlock(&p->busy);
    return status;
}
