/*
 * The predictor: settings checked against the model, a plan, and what every frame needs whichever
 * route it takes (us_predict_impl.h).
 */
#include "us_predict.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "us_frame_ops.h"
#include "us_predict_impl.h"

#define POOL_BATCH 1 /* patches: a turn is passed on after that many */

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

/* 0: so many patches that the device is busy, or so few that the pool's workers end together. */
static int32_t choose_batch(const struct us_predictor *p)
{
    const struct us_frame_ops *frame = us_backend_ops(p->be)->frame;
    if (p->cfg.batch > 0)
        return p->cfg.batch;
    if (frame == NULL)
        return POOL_BATCH;
    int64_t n = frame->pixels / ((int64_t)p->geo.size * p->geo.size);
    return n < 1 ? 1 : n > US_MAX_BATCH ? US_MAX_BATCH : (int32_t)n;
}

/* ---- life ---------------------------------------------------------------------------------- */

enum us_status usi_predict_plan(struct us_predictor *p, int32_t batch, bool resident,
                                struct us_err *err)
{
    const struct us_model *m = p->model;
    const bool own = p->geo.size != m->patch_size;
    if (own && p->net == NULL)
        US_TRY(us_net_build(&m->arch, m->patch_size, p->geo.size, &p->net, err));
    const struct us_plan_config cfg = {
        .dtype = p->cfg.precision == US_PREC_BF16 ? US_BF16 : US_F32,
        .batch = batch,
        .latent_mean = p->cfg.latent_mean,
        .reuse_encoder = p->geo.samples > p->geo.passes,
        .resident = resident,
        .keep = {p->geo.pad, p->geo.pad, p->geo.grid, p->geo.grid},
        .whole_maps = p->cfg.whole_maps,
        .align = p->cfg.align,
    };
    return us_plan_build(own ? p->net : m->net, m->weights, p->be, &cfg, &p->plan, err);
}

static enum us_status prepare(struct us_predictor *p, struct us_err *err)
{
    US_TRY(resolve_precision(p, err));
    p->cfg.batch = choose_batch(p);
    if (us_backend_ops(p->be)->frame != NULL)
        return usi_batched_new(p, err);
    p->cfg.threads = p->cfg.threads > 0 ? p->cfg.threads : available_processors();
    US_TRY(usi_predict_plan(p, 1, false, err));
    return usi_pool_start(p, err);
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
    (void)pthread_mutex_init(&p->busy, NULL);
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->wake, NULL);
    (void)pthread_cond_init(&p->idle, NULL);
    enum us_status status = prepare(p, err);
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
    usi_pool_stop(p);
    usi_batched_free(p);
    us_plan_free(p->plan);
    us_net_free(p->net);
    (void)pthread_cond_destroy(&p->idle);
    (void)pthread_cond_destroy(&p->wake);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_mutex_destroy(&p->busy);
    free(p);
}

struct us_predictor_stats us_predictor_stats(const struct us_predictor *p)
{
    struct us_plan_stats s = us_plan_stats(p->plan);
    const bool batched = p->batched != NULL;
    return (struct us_predictor_stats){.backend = us_backend_ops(p->be)->name,
                                       .precision = p->cfg.precision,
                                       .threads = batched ? 1 : p->n_workers,
                                       .batch = p->cfg.batch,
                                       .grid = p->geo.grid,
                                       .passes = p->geo.passes,
                                       .packed_bytes = s.packed_bytes,
                                       .worker_bytes = s.block_bytes + usi_batched_bytes(p),
                                       .flops_patch = s.flops / (batched ? p->cfg.batch : 1)};
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

double us_predict_flops(const struct us_predictor *p, int64_t h, int64_t w)
{
    const struct us_plan_stats s = us_plan_stats(p->plan);
    double sum = 0.0;
    for (int32_t k = 0; k < p->geo.passes; k++) {
        const struct us_tiling_pass t = usi_tiling_pass(&p->geo, k, h, w);
        sum += (double)(t.rows * t.cols) * (s.flops + (t.n - 1) * s.flops_sample);
    }
    return p->batched != NULL ? sum / p->cfg.batch : sum;
}

size_t us_predict_frame_bytes(const struct us_predictor *p, int64_t h, int64_t w)
{
    return p->batched != NULL ? usi_batched_frame_bytes(p, h, w) : 0;
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

bool usi_predict_turn_wanted(struct us_predict_job *job)
{
    const struct us_predict_turns *t = job->frame->turns;
    if (t == NULL)
        return false;
    if (!atomic_load(&job->paused) && t->wanted(t->arg))
        atomic_store(&job->paused, true);
    return atomic_load(&job->paused);
}

void usi_predict_pass_on(struct us_predictor *p, struct us_predict_job *job)
{
    const struct us_predict_turns *t = job->frame->turns;
    pthread_mutex_unlock(&p->busy);
    t->pass_on(t->arg);
    pthread_mutex_lock(&p->busy);
    atomic_store(&job->paused, false);
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum us_status run_frame(struct us_predictor *p, const struct us_pyramid *pyramid,
                                struct us_predict_frame *f, struct us_err *err)
{
    struct us_predict_job job = {.pyramid = pyramid,
                                 .frame = f,
                                 .total = us_predict_n_patches(p, f->h, f->w),
                                 .seed = f->seed != NULL ? *f->seed : p->cfg.seed};
    double start = now_s();
    enum us_status status =
        p->batched != NULL ? usi_batched_run(p, &job, err) : usi_pool_run(p, &job, err);
    f->seconds = now_s() - start;
    return status;
}

enum us_status us_predict_run(struct us_predictor *p, struct us_predict_frame *f,
                              struct us_err *err)
{
    if (pthread_mutex_trylock(&p->busy) != 0)
        return us_fail(err, US_E_BUSY, "this predictor is already predicting a frame");
    struct us_pyramid pyramid = {0};
    enum us_status status = check_frame(p, f, err);
    if (status == US_OK) {
        /* A device makes the smaller scales itself. */
        int32_t n_scales = p->batched != NULL ? 1 : p->model->arch.lc_scales;
        status = us_pyramid_build(f->in, f->h, f->w, n_scales, us_model_input_clip(p->model),
                                  &pyramid, &f->n_clipped);
        if (status != US_OK)
            (void)us_fail(err, status, "frame of %lld x %lld: %s", (long long)f->h, (long long)f->w,
                          us_status_text(status));
    }
    if (status == US_OK)
        status = run_frame(p, &pyramid, f, err);
    us_pyramid_release(&pyramid);
    pthread_mutex_unlock(&p->busy);
    return status;
}
