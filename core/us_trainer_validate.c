/*
 * Validation (model-spec 15.4): evaluation mode, one posterior sample, the loss without KL, PSNR
 * per channel from the mean of the patches' MSE and the range of all normalised targets.
 *
 * Threads take patches from a counter; what they find is kept per patch and summed in order.
 */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

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
    int64_t n;
    _Atomic int64_t next;
    struct patch_figures *figures;
};

struct job {
    struct validation *v;
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

static enum us_status one_patch(struct job *j, struct us_exec *e, int64_t index, float *target,
                                float *dhead)
{
    struct validation *v = j->v;
    struct us_trainer *t = v->t;
    float *input[US_MAX_SCALES];
    for (int32_t s = 0; s < t->m->arch.lc_scales; s++)
        input[s] = us_exec_input(e, s);
    US_TRY(us_dataset_patch(t->d, US_SPLIT_VAL, 0, index, input, target, &j->err));
    *us_exec_noise(e) = (struct us_noise){.seed = t->cfg.seed,
                                          .frame = t->state.epoch,
                                          .sample = US_MAX_SAMPLES, /* apart from training's */
                                          .patch = (uint32_t)index};
    US_TRY(us_exec_run(e));
    struct patch_figures *f = &v->figures[index];
    target_range(target, (int64_t)v->likelihood.h * v->likelihood.w, v->likelihood.targets, f);
    return us_backend_train_ops(t->be)->likelihood(t->be, &v->likelihood, 1, us_exec_output(e),
                                                   target, 1.0f, f->rec, f->se, dhead);
}

static void *validate_main(void *arg)
{
    struct job *j = arg;
    struct validation *v = j->v;
    size_t pixels = (size_t)v->likelihood.h * (size_t)v->likelihood.w;
    size_t head = pixels * (size_t)us_plan_out_channels(v->plan);
    float *target = calloc(pixels * (size_t)v->likelihood.targets, sizeof(float));
    float *dhead = calloc(head, sizeof(float));
    struct us_exec *e = NULL;
    j->status = target != NULL && dhead != NULL
                    ? us_exec_new(v->plan, &e, &j->err)
                    : us_fail(&j->err, US_E_NOMEM, "validation: out of memory");
    while (j->status == US_OK) {
        int64_t i = atomic_fetch_add(&v->next, 1);
        if (i >= v->n)
            break;
        j->status = one_patch(j, e, i, target, dhead);
    }
    us_exec_free(e);
    free(target);
    free(dhead);
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
    set_likelihood(&v);
    v.figures = calloc((size_t)v.n, sizeof(*v.figures));
    if (v.figures == NULL)
        return us_fail(err, US_E_NOMEM, "validation: out of memory");
    const struct us_plan_config cfg = {
        .dtype = t->cfg.train.dtype, .batch = 1, .keep_logvar = true};
    enum us_status s = us_plan_build(t->m->net, t->m->weights, t->be, &cfg, &v.plan, err);
    if (s == US_OK)
        s = run_jobs(&v, us_train_stats(t->train).threads, err);
    if (s == US_OK)
        summarise(&v, ret);
    us_plan_free(v.plan);
    free(v.figures);
    return s;
}
