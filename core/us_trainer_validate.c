/*
 * Validation (model-spec 15.4): evaluation mode, one posterior sample, the loss without KL, PSNR
 * per channel from the mean of the patches' MSE and the range of all normalised targets.
 *
 * Threads take patches from a counter; what they find is kept per patch and summed in order.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "us_train_ops.h"
#include "us_trainer_impl.h"

#define MAX_THREADS 64

/* What one patch contributes. */
struct patch_figures {
    double rec[US_MAX_TARGETS], se[US_MAX_TARGETS];
    float min[US_MAX_TARGETS], max[US_MAX_TARGETS];
};

struct validation {
    struct us_trainer *t;
    struct us_plan *plan;
    struct us_likelihood likelihood;
    int32_t batch; /* patches per run */
    int64_t n;
    _Atomic int64_t next;
    struct patch_figures *figures;
};

/* One thread's: the network, and the figures' operands in the backend's memory. */
struct place {
    struct us_exec *e;
    float *host_target; /* [batch] */
    float *head, *target, *dhead;
    double *figures; /* rec [batch][targets], then se */
};

struct job {
    struct validation *v;
    bool tells; /* the training thread's own */
    enum us_status status;
    struct us_err err;
};

static void target_range(const float *target, int64_t n, int32_t channels, struct patch_figures *f)
{
    for (int32_t c = 0; c < channels; c++)
        f->min[c] = f->max[c] = target[c];
    for (int64_t i = 0; i < n; i++) {
        for (int32_t c = 0; c < channels; c++) {
            float x = target[i * channels + c];
            f->min[c] = x < f->min[c] ? x : f->min[c];
            f->max[c] = x > f->max[c] ? x : f->max[c];
        }
    }
}

static int64_t target_count(const struct validation *v)
{
    return (int64_t)v->likelihood.h * v->likelihood.w * v->likelihood.targets;
}

static int64_t head_count(const struct validation *v)
{
    return (int64_t)v->likelihood.h * v->likelihood.w * us_plan_out_channels(v->plan);
}

/* Patch `index` as item i of the next run. */
static enum us_status place_patch(struct job *j, struct place *p, int32_t i, int64_t index)
{
    struct validation *v = j->v;
    struct us_trainer *t = v->t;
    int64_t plane = (int64_t)v->likelihood.h * v->likelihood.w;
    float *input[US_MAX_SCALES], *target = p->host_target + i * target_count(v);
    for (int32_t s = 0; s < t->m->arch.lc_scales; s++)
        input[s] = us_exec_input(p->e, s) + i * plane;
    US_TRY(us_dataset_patch(t->d, US_SPLIT_VAL, 0, index, input, target, &j->err));
    us_exec_noise(p->e)[i] = (struct us_noise){.seed = t->cfg.seed,
                                               .frame = t->state.epoch,
                                               .sample = US_MAX_SAMPLES, /* not training's */
                                               .patch = (uint32_t)index};
    target_range(target, plane, v->likelihood.targets, &v->figures[index]);
    return US_OK;
}

/* A turn at the backend, which predictions may use meanwhile (us_backend.h, hold). */
static void hold(const struct validation *v)
{
    if (us_backend_ops(v->t->be)->hold != NULL)
        us_backend_ops(v->t->be)->hold(v->t->be);
}

static void let_go(const struct validation *v)
{
    if (us_backend_ops(v->t->be)->let_go != NULL)
        us_backend_ops(v->t->be)->let_go(v->t->be);
}

/* The n patches that are in place, in one run; the first is patch `first`. */
static enum us_status run_placed(struct job *j, struct place *p, int64_t first, int32_t n)
{
    struct validation *v = j->v;
    struct us_backend *be = v->t->be;
    const struct us_backend_ops *ops = us_backend_ops(be);
    int32_t targets = v->likelihood.targets;
    US_TRY(us_exec_run(p->e));
    US_TRY(ops->copy_in(be, p->head, us_exec_output(p->e),
                        (size_t)(n * head_count(v)) * sizeof(float)));
    US_TRY(
        ops->copy_in(be, p->target, p->host_target, (size_t)(n * target_count(v)) * sizeof(float)));
    double *rec = p->figures, *se = rec + v->batch * targets;
    US_TRY(us_backend_train_ops(be)->likelihood(be, &v->likelihood, n, p->head, p->target, 1.0f,
                                                rec, se, p->dhead));
    size_t bytes = (size_t)targets * sizeof(double);
    for (int32_t i = 0; i < n; i++) {
        struct patch_figures *f = &v->figures[first + i];
        US_TRY(ops->copy_out(be, f->rec, rec + i * targets, bytes));
        US_TRY(ops->copy_out(be, f->se, se + i * targets, bytes));
    }
    return US_OK;
}

static enum us_status run_patches(struct job *j, struct place *p, int64_t first, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        US_TRY(place_patch(j, p, i, first + i));
    hold(j->v);
    enum us_status s = run_placed(j, p, first, n);
    let_go(j->v);
    return s;
}

static enum us_status take(const struct validation *v, size_t bytes, void *ret)
{
    void *p = NULL;
    enum us_status s = us_backend_ops(v->t->be)->buf_alloc(v->t->be, bytes, &p);
    memcpy(ret, &p, sizeof(p));
    return s;
}

static enum us_status open_place(const struct validation *v, struct place *p, struct us_err *err)
{
    size_t head = (size_t)(v->batch * head_count(v)) * sizeof(float);
    size_t target = (size_t)(v->batch * target_count(v)) * sizeof(float);
    US_TRY(us_exec_new(v->plan, &p->e, err));
    p->host_target = calloc(1, target);
    enum us_status s = p->host_target != NULL ? take(v, head, &p->head) : US_E_NOMEM;
    if (s == US_OK)
        s = take(v, target, &p->target);
    if (s == US_OK)
        s = take(v, head, &p->dhead);
    if (s == US_OK)
        s = take(v, 2 * sizeof(double) * (size_t)(v->batch * v->likelihood.targets), &p->figures);
    return s == US_OK ? US_OK : us_fail(err, s, "validation: %s", us_status_text(s));
}

static void close_place(const struct validation *v, struct place *p)
{
    void *const own[] = {p->head, p->target, p->dhead, p->figures};
    for (size_t i = 0; i < US_COUNT(own); i++) {
        if (own[i] != NULL)
            us_backend_ops(v->t->be)->buf_free(v->t->be, own[i]);
    }
    free(p->host_target);
    us_exec_free(p->e);
}

static void *validate_main(void *arg)
{
    struct job *j = arg;
    struct validation *v = j->v;
    struct place p = {0};
    hold(v);
    j->status = open_place(v, &p, &j->err);
    let_go(v);
    while (j->status == US_OK) {
        int64_t i = atomic_fetch_add(&v->next, v->batch);
        int64_t n = v->n - i < v->batch ? v->n - i : v->batch;
        if (i >= v->n)
            break;
        if (usi_trainer_cancelled(v->t))
            j->status = us_fail(&j->err, US_E_CANCELLED, "cancelled");
        else
            j->status = run_patches(j, &p, i, (int32_t)n);
        if (j->tells)
            usi_trainer_progress(v->t, i + n, v->n);
    }
    hold(v);
    close_place(v, &p);
    let_go(v);
    return NULL;
}

static enum us_status run_jobs(struct validation *v, int32_t threads, struct us_err *err)
{
    struct job job[MAX_THREADS] = {{0}};
    pthread_t id[MAX_THREADS];
    int32_t started = 0;
    for (int32_t i = 0; i < threads; i++)
        job[i].v = v;
    for (; started + 1 < threads; started++) {
        if (pthread_create(&id[started], NULL, validate_main, &job[started]) != 0)
            break; /* fewer threads do the same work */
    }
    job[started].tells = true;
    (void)validate_main(&job[started]);
    for (int32_t i = 0; i < started; i++)
        (void)pthread_join(id[i], NULL);
    for (int32_t i = 0; i <= started; i++) {
        if (job[i].status == US_OK)
            continue;
        if (job[i].err.status == US_OK)
            return us_fail(err, job[i].status, "validation: %s", us_status_text(job[i].status));
        return us_fail(err, job[i].status, "validation: %s", job[i].err.msg);
    }
    return US_OK;
}

static void summarise(const struct validation *v, struct us_validation *ret)
{
    int32_t targets = v->likelihood.targets;
    double weights = 0.0;
    *ret = (struct us_validation){0};
    for (int32_t c = 0; c < targets; c++) {
        double mse = 0.0, rec = 0.0, min = INFINITY, max = -INFINITY;
        int64_t n = 0;
        for (int64_t i = 0; i < v->n; i++) {
            const struct patch_figures *f = &v->figures[i];
            min = fmin(min, (double)f->min[c]);
            max = fmax(max, (double)f->max[c]);
            rec += f->rec[c] / (double)v->n;
            if (isfinite(f->se[c])) { /* patches with NaN are left out (15.4) */
                mse += f->se[c];
                n++;
            }
        }
        ret->psnr_channel[c] = 20.0 * log10((max - min) / sqrt(mse / (double)n));
        ret->psnr += ret->psnr_channel[c] / targets;
        ret->loss += (double)v->likelihood.weight[c] * rec;
        weights += (double)v->likelihood.weight[c];
    }
    ret->loss /= weights;
}

static void set_likelihood(struct validation *v)
{
    const struct us_trainer *t = v->t;
    const struct us_arch *a = &t->m->arch;
    float sum = 0.0f;
    v->likelihood = (struct us_likelihood){.h = t->m->patch_size,
                                           .w = t->m->patch_size,
                                           .targets = a->target_channels,
                                           .logvar = a->predict_logvar,
                                           .lower_bound = a->logvar_lower_bound,
                                           .mse = t->cfg.train.mse};
    for (int32_t c = 0; c < a->target_channels; c++)
        sum += t->cfg.train.channel_weight[c];
    for (int32_t c = 0; c < a->target_channels; c++)
        v->likelihood.weight[c] = sum > 0.0f ? t->cfg.train.channel_weight[c] : 1.0f;
}

enum us_status usi_trainer_validate(struct us_trainer *t, struct us_validation *ret,
                                    struct us_err *err)
{
    struct validation v = {.t = t, .n = us_dataset_n_patches(t->d, US_SPLIT_VAL)};
    if (t->cfg.val_patches_max > 0 && v.n > t->cfg.val_patches_max)
        v.n = t->cfg.val_patches_max;
    *ret = (struct us_validation){.loss = NAN, .psnr = NAN};
    if (v.n == 0)
        return US_OK;
    t->pass = "validation";
    set_likelihood(&v);
    v.batch = us_backend_train_ops(t->be)->batched ? t->cfg.batch : 1;
    v.figures = calloc((size_t)v.n, sizeof(*v.figures));
    if (v.figures == NULL)
        return us_fail(err, US_E_NOMEM, "validation: out of memory");
    const struct us_plan_config cfg = {
        .dtype = t->cfg.train.dtype, .batch = v.batch, .keep_logvar = true};
    hold(&v);
    enum us_status s = us_plan_build(t->m->net, t->m->weights, t->be, &cfg, &v.plan, err);
    let_go(&v);
    if (s == US_OK)
        s = run_jobs(&v, us_train_stats(t->train).threads, err);
    if (s == US_OK)
        summarise(&v, ret);
    hold(&v);
    us_plan_free(v.plan);
    let_go(&v);
    free(v.figures);
    return s;
}
