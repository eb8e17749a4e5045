/*
 * The training step: workers, their meeting points and results (us_train_plan.h). Memory is in
 * us_train_memory.c.
 *
 * The calling thread is worker 0. Every worker owns the lanes l with l mod workers = its index,
 * so which thread does what never changes what is summed with what.
 */
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "us_train_impl.h"

/* ---- a worker's part of a step ------------------------------------------------------------- */

static void meet(struct us_train *t)
{
    (void)pthread_barrier_wait(&t->barrier);
}

void usi_train_note(struct us_train_worker *w, enum us_status s)
{
    if (s == US_OK)
        return;
    if (w->status == US_OK)
        w->status = s;
    atomic_store(&w->owner->failed, true);
}

static bool whole_batch(const struct us_instr *i)
{
    return i->kind == US_I_BN_FINISH || i->kind == US_I_BN_BWD_FINISH;
}

static void prepare(struct us_train_worker *w)
{
    struct us_train *t = w->owner;
    for (int32_t i = w->index; i < t->n_convs; i += t->n_workers) {
        const struct us_train_conv *c = &t->convs[i];
        const float *weights = t->weights;
        usi_train_note(w, t->ops->conv_pack(t->be, w->ctx[i],
                                            weights + t->net->params[c->param].offset,
                                            weights + t->net->params[c->param + 1].offset,
                                            t->packed + c->packed_offset));
    }
    for (int32_t l = w->index; l < t->n_lanes; l += t->n_workers)
        usi_train_note(w, t->ops->fill_zero(t->be, t->lanes + (int64_t)l * t->net->n_floats,
                                            (size_t)t->net->n_floats * sizeof(float)));
}

/* One item through instructions [from, to). */
static void run_item(struct us_train_worker *w, int32_t from, int32_t to, int32_t item)
{
    struct us_train *t = w->owner;
    for (int32_t i = from; i < to; i++) {
        if (atomic_load_explicit(&t->failed, memory_order_relaxed))
            return;
        usi_train_note(w, usi_train_exec(w, &t->program[i], item));
    }
}

static void run_program(struct us_train_worker *w)
{
    struct us_train *t = w->owner;
    int32_t calls = t->step.n / usi_train_items(t);
    for (int32_t s = 0; s < t->n_segments; s++) {
        int32_t from = t->segment_start[s], to = t->segment_start[s + 1];
        if (from < to && whole_batch(&t->program[from])) {
            if (w->index == 0 && !atomic_load(&t->failed))
                usi_train_note(w, usi_train_exec(w, &t->program[from], 0));
            from++;
            meet(t);
        }
        for (int32_t l = w->index; l < t->n_lanes; l += t->n_workers) {
            for (int32_t item = l; item < calls; item += t->n_lanes)
                run_item(w, from, to, item);
        }
        meet(t);
    }
}

static void reduce(struct us_train_worker *w)
{
    struct us_train *t = w->owner;
    for (int32_t c = w->index; c < t->n_chunks; c += t->n_workers) {
        const struct us_train_chunk *k = &t->chunks[c];
        usi_train_note(w, t->ops->reduce_lanes(t->be, t->lanes + k->offset, t->net->n_floats,
                                               t->n_lanes, k->n, t->gradients + k->offset,
                                               &t->chunk_sq[c]));
    }
}

static void update(struct us_train_worker *w)
{
    struct us_train *t = w->owner;
    double clip = (double)t->cfg.clip_norm;
    double scale = clip > 0.0 ? fmin(1.0, clip / (t->result.grad_norm + 1e-6)) : 1.0;
    const struct us_adamax a = {
        .lr = t->step.lr,
        .beta1 = t->cfg.beta1,
        .beta2 = t->cfg.beta2,
        .eps = t->cfg.eps,
        .bias = 1.0 - pow((double)t->cfg.beta1, (double)t->step.t),
        .grad_scale = (float)scale,
    };
    for (int32_t c = w->index; c < t->n_chunks; c += t->n_workers) {
        const struct us_train_chunk *k = &t->chunks[c];
        usi_train_note(w,
                       t->ops->adamax(t->be, &a, k->n, t->gradients + k->offset, t->m + k->offset,
                                      t->u + k->offset, t->weights + k->offset));
    }
}

/* Worker 0, between reduce and update. */
static void judge(struct us_train *t)
{
    const double *chunk_sq = t->seen_results + (t->chunk_sq - t->results);
    double sq = 0.0;
    for (int32_t c = 0; c < t->n_chunks; c++)
        sq += chunk_sq[c];
    struct us_train_result *r = &t->result;
    r->grad_norm = sqrt(sq);
    r->skipped = !isfinite(r->loss) || !isfinite(r->grad_norm);
    atomic_store(&t->skip, r->skipped || t->step.no_update || atomic_load(&t->failed));
}

/* ---- results ------------------------------------------------------------------------------- */

static double weight_sum(const struct us_train *t)
{
    double sum = 0.0;
    for (int32_t c = 0; c < t->net->arch.target_channels; c++)
        sum += (double)t->likelihood.weight[c];
    return sum;
}

/* Worker 0, when all items are through. */
static void collect(const struct us_train *t, struct us_train_result *r)
{
    int32_t n = t->step.n, targets = t->net->arch.target_channels, levels = t->net->arch.n_levels;
    double free_bits = t->cfg.free_bits >= 1e-6f ? (double)t->cfg.free_bits : -INFINITY;
    memset(r, 0, sizeof(*r));
    const double *rec = t->seen_results, *se = rec + (t->se - t->rec);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t c = 0; c < targets; c++) {
            r->rec[c] += rec[i * targets + c] / n;
            r->mse[c] += se[i * targets + c] / n;
        }
        for (int32_t l = 0; l < levels && t->latents[l].has_kl; l++) {
            double kl = rec[t->latents[l].kl - t->rec + i];
            r->kl_level[l] += kl / n;
            r->kl += fmax(kl, free_bits) / n / levels;
        }
    }
    for (int32_t c = 0; c < targets; c++)
        r->loss += (double)t->likelihood.weight[c] * r->rec[c] / weight_sum(t);
    r->loss += (double)t->step.kl_weight * r->kl;
}

void usi_train_work(struct us_train_worker *w)
{
    prepare(w);
    meet(w->owner);
    run_program(w);
    reduce(w);
    meet(w->owner);
}

static void worker_step(struct us_train_worker *w)
{
    struct us_train *t = w->owner;
    if (t->ops->batched)
        usi_train_device_work(t);
    else
        usi_train_work(w);
    if (w->index == 0) {
        collect(t, &t->result);
        judge(t);
    }
    meet(t);
    if (!atomic_load(&t->skip))
        update(w);
    meet(t);
}

static void *worker_main(void *arg)
{
    struct us_train_worker *w = arg;
    struct us_train *t = w->owner;
    if (us_backend_ops(t->be)->thread_init != NULL)
        us_backend_ops(t->be)->thread_init(t->be);
    /* Waits here until all threads exist: no barrier can be left by fewer than it counts. */
    pthread_mutex_lock(&t->gate);
    bool quit = t->abandoned;
    pthread_mutex_unlock(&t->gate);
    while (!quit) {
        meet(t);
        quit = t->quit;
        if (!quit)
            worker_step(w);
    }
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

enum us_status usi_train_bind(struct us_train *t, struct us_train_worker *w,
                              struct us_tconv *const *convs, struct us_err *err)
{
    w->ctx = calloc((size_t)t->n_convs + 1, sizeof(struct us_tconv_ctx *));
    if (w->ctx == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    for (int32_t i = 0; i < t->n_convs; i++) {
        const struct us_tconv *conv = convs != NULL ? convs[i] : t->convs[i].conv;
        enum us_status s = t->ops->conv_bind(t->be, conv, w->block + t->worker_bytes, &w->ctx[i]);
        if (s != US_OK)
            return us_fail(err, s, "training: binding a convolution: %s", us_status_text(s));
    }
    return US_OK;
}

void usi_train_unbind(struct us_train *t, struct us_train_worker *w)
{
    for (int32_t c = 0; w->ctx != NULL && c < t->n_convs; c++) {
        if (w->ctx[c] != NULL)
            t->ops->conv_unbind(t->be, w->ctx[c]);
    }
    free(w->ctx);
    if (w->block != NULL)
        us_backend_ops(t->be)->buf_free(t->be, w->block);
    w->ctx = NULL;
    w->block = NULL;
}

static enum us_status start_worker(struct us_train *t, int32_t index, struct us_err *err)
{
    struct us_train_worker *w = &t->workers[index];
    w->owner = t;
    w->index = index;
    US_TRY(
        usi_train_buffer(t, t->worker_bytes + t->worker_scratch + US_PLAN_ALIGN, &w->block, err));
    return usi_train_bind(t, w, NULL, err);
}

/* If one cannot be had, those that wait at the gate are told to go home. */
static enum us_status start_threads(struct us_train *t, struct us_err *err)
{
    enum us_status status = US_OK;
    pthread_mutex_lock(&t->gate);
    for (int32_t i = 1; i < t->n_workers && status == US_OK; i++) {
        struct us_train_worker *w = &t->workers[i];
        w->started = pthread_create(&w->thread, NULL, worker_main, w) == 0;
        if (!w->started)
            status = us_fail(err, US_E_NOMEM, "training: cannot start worker thread %d of %d",
                             i + 1, t->n_workers);
    }
    t->abandoned = status != US_OK;
    pthread_mutex_unlock(&t->gate);
    return status;
}

static enum us_status start_workers(struct us_train *t, struct us_err *err)
{
    if (us_backend_ops(t->be)->thread_init != NULL)
        us_backend_ops(t->be)->thread_init(t->be);
    t->n_workers = t->cfg.threads;
    for (int32_t i = 0; i < t->n_workers; i++)
        US_TRY(start_worker(t, i, err));
    t->barrier_made = pthread_barrier_init(&t->barrier, NULL, (unsigned)t->n_workers) == 0;
    if (!t->barrier_made)
        return us_fail(err, US_E_NOMEM, "training: no barrier");
    return start_threads(t, err);
}

static int32_t processors(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > US_TRAIN_LANES ? US_TRAIN_LANES : n;
}

static enum us_status check(const struct us_model *m, struct us_backend *be,
                            const struct us_train_config *cfg, struct us_err *err)
{
    if (us_backend_train_ops(be) == NULL)
        return us_fail(err, US_E_UNSUPPORTED, "backend %s only predicts; train on cpu",
                       us_backend_ops(be)->name);
    if (!us_backend_ops(be)->has_dtype(be, cfg->dtype))
        return us_fail(err, US_E_UNSUPPORTED, "backend %s has no %s on this machine",
                       us_backend_ops(be)->name, cfg->dtype == US_BF16 ? "bf16" : "f32");
    if (!m->complete)
        return us_fail(err, US_E_ARG,
                       "model %s lacks the tensors that only training needs "
                       "(conv_in_p, top_prior_params)",
                       m->name);
    if (cfg->batch < 1 || cfg->batch > US_MAX_BATCH)
        return us_fail(err, US_E_ARG, "batch is %d; expected 1 to %d", cfg->batch, US_MAX_BATCH);
    if (cfg->threads < 0 || cfg->threads > US_TRAIN_LANES)
        return us_fail(err, US_E_ARG, "threads is %d; expected 0 to %d", cfg->threads,
                       US_TRAIN_LANES);
    return US_OK;
}

static void set_likelihood(struct us_train *t)
{
    const struct us_arch *a = &t->net->arch;
    t->likelihood.targets = a->target_channels;
    t->likelihood.logvar = a->predict_logvar;
    t->likelihood.lower_bound = a->logvar_lower_bound;
    t->likelihood.mse = t->cfg.mse;
    float sum = 0.0f;
    for (int32_t c = 0; c < a->target_channels; c++)
        sum += t->cfg.channel_weight[c];
    for (int32_t c = 0; c < a->target_channels; c++)
        t->likelihood.weight[c] = sum > 0.0f ? t->cfg.channel_weight[c] : 1.0f;
}

static void set_defaults(struct us_train *t)
{
    struct us_train_config *c = &t->cfg;
    c->threads = c->threads > 0 ? c->threads : processors();
    if (t->ops->batched)
        c->threads = 1;
    c->beta1 = c->beta1 > 0.0f ? c->beta1 : 0.9f;
    c->beta2 = c->beta2 > 0.0f ? c->beta2 : 0.999f;
    c->eps = c->eps > 0.0f ? c->eps : 1e-8f;
}

static enum us_status build(struct us_train *t, struct us_err *err)
{
    US_TRY(usi_train_lower(t, err));
    US_TRY(usi_train_alloc(t, err));
    return start_workers(t, err);
}

enum us_status us_train_new(struct us_model *m, struct us_backend *be,
                            const struct us_train_config *cfg, struct us_train **ret,
                            struct us_err *err)
{
    US_TRY(check(m, be, cfg, err));
    struct us_train *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    t->model = m;
    t->net = m->net;
    t->be = be;
    t->ops = us_backend_train_ops(be);
    t->cfg = *cfg;
    (void)pthread_mutex_init(&t->gate, NULL);
    set_defaults(t);
    set_likelihood(t);
    usi_train_hold(t);
    enum us_status status = build(t, err);
    usi_train_let_go(t);
    if (status != US_OK) {
        us_train_free(t);
        return status;
    }
    *ret = t;
    return US_OK;
}

static void stop_workers(struct us_train *t)
{
    bool all = t->n_workers > 1 && !t->abandoned;
    for (int32_t i = 1; i < t->n_workers; i++)
        all = all && t->workers[i].started;
    if (all) { /* they wait for a step */
        t->quit = true;
        meet(t);
    }
    for (int32_t i = 0; i < t->n_workers; i++) {
        struct us_train_worker *w = &t->workers[i];
        if (w->started)
            (void)pthread_join(w->thread, NULL);
        usi_train_unbind(t, w);
    }
    if (t->barrier_made)
        (void)pthread_barrier_destroy(&t->barrier);
    (void)pthread_mutex_destroy(&t->gate);
}

void us_train_free(struct us_train *t)
{
    if (t == NULL)
        return;
    usi_train_hold(t);
    usi_train_device_release(t);
    stop_workers(t);
    for (int32_t i = 0; i < t->n_convs; i++) {
        if (t->convs[i].conv != NULL)
            t->ops->conv_free(t->be, t->convs[i].conv);
    }
    usi_train_release(t);
    usi_train_let_go(t);
    free(t);
}

/* ---- the step ------------------------------------------------------------------------------ */

float *us_train_input(struct us_train *t, int32_t item, int32_t s)
{
    int64_t plane = (int64_t)t->net->size * t->net->size;
    return t->host_input + ((int64_t)s * t->cfg.batch + item) * plane;
}

float *us_train_target(struct us_train *t, int32_t item)
{
    int64_t plane = (int64_t)t->net->size * t->net->size;
    return t->host_target + (int64_t)item * plane * t->net->arch.target_channels;
}

void us_train_set_eps(struct us_train *t, int32_t item, const float *const *eps)
{
    t->eps[item] = eps;
}

/* Keeps (restore: puts back) what the forward pass changes besides the loss. Averages that once
 * held a NaN hold it for ever, and every validation after it would fail. */
static enum us_status running_statistics(struct us_train *t, bool restore)
{
    float *kept = t->running_before;
    if (t->ops->batched) {
        const struct us_ew e = {US_F32, t->n_running, 1};
        return t->ops->accumulate(t->be, &e, restore ? kept : t->running,
                                  restore ? t->running : kept, false);
    }
    for (int32_t i = 0; i < t->n_bns; i++) {
        const struct us_train_bn *b = &t->bns[i];
        size_t bytes = (size_t)b->c * sizeof(float);
        memcpy(restore ? b->running_mean : kept, restore ? kept : b->running_mean, bytes);
        kept += b->c;
        memcpy(restore ? b->running_var : kept, restore ? kept : b->running_var, bytes);
        kept += b->c;
    }
    return US_OK;
}

/* Each batch norm counts its batches. */
static void count_batches(struct us_train *t)
{
    for (int32_t i = 0; i < t->n_bns; i++)
        t->model->counters[t->net->params[t->bns[i].param + 4].offset]++;
}

static void set_draws(struct us_train *t)
{
    for (int32_t i = 0; i < t->step.n; i++)
        t->draw[i] = (struct us_draw){
            .seed = t->cfg.seed, .step = t->step.step, .item = (uint32_t)i, .eps = t->eps[i]};
    *t->kl_weight = t->step.kl_weight;
}

static enum us_status run_step(struct us_train *t, struct us_train_result *ret, struct us_err *err)
{
    t->fresh = !t->ops->batched;
    atomic_store(&t->failed, false);
    if (us_backend_ops(t->be)->thread_init != NULL)
        us_backend_ops(t->be)->thread_init(t->be);
    set_draws(t);
    if (t->ops->batched)
        US_TRY(usi_train_device_size(t, t->step.n, err));
    US_TRY(running_statistics(t, false));
    meet(t); /* lets the other workers begin */
    worker_step(&t->workers[0]);
    *ret = t->result;
    for (int32_t i = 0; i < t->n_workers; i++) {
        enum us_status status = t->workers[i].status;
        t->workers[i].status = US_OK;
        if (status != US_OK)
            return us_fail(err, status, "training step %u: %s", t->step.step,
                           us_status_text(status));
    }
    if (ret->skipped)
        return running_statistics(t, true);
    count_batches(t);
    return US_OK;
}

enum us_status us_train_run(struct us_train *t, const struct us_train_step *s,
                            struct us_train_result *ret, struct us_err *err)
{
    if (s->n < 1 || s->n > t->cfg.batch)
        return us_fail(err, US_E_ARG, "step of %d items; expected 1 to %d", s->n, t->cfg.batch);
    t->step = *s;
    usi_train_hold(t);
    enum us_status status = run_step(t, ret, err);
    usi_train_let_go(t);
    return status;
}

float *us_train_moment_m(struct us_train *t)
{
    return t->seen_m;
}

float *us_train_moment_u(struct us_train *t)
{
    return t->seen_u;
}

struct us_train_stats us_train_stats(const struct us_train *t)
{
    size_t n = (size_t)t->net->n_floats * sizeof(float);
    struct us_train_stats s = {.threads = t->n_workers,
                               .n_steps = t->n_program,
                               .item_bytes = t->item_bytes,
                               .worker_bytes = t->worker_bytes + t->worker_scratch};
    s.total_bytes = (size_t)t->cfg.batch * s.item_bytes + (size_t)s.threads * s.worker_bytes +
                    t->packed_bytes + t->static_bytes + ((size_t)t->n_lanes + 3) * n;
    for (int32_t i = 0; i < t->n_program; i++) {
        enum us_instr_kind k = t->program[i].kind;
        if (k == US_I_CONV_FWD || k == US_I_CONV_DATA || k == US_I_CONV_WEIGHTS)
            s.flops += t->convs[t->program[i].index].conv->flops;
    }
    return s;
}
