/*
 * The step of a batched backend (us_train_ops.h: batched): one thread queues the whole program once
 * for the whole batch; where the backend records graphs, the third step of a size and all later
 * ones are one start. In between nothing goes to the host: what changes from step to step (random
 * numbers' keys, the KL weight) stands in host memory that the device reads, and the losses and the
 * gradients' norm come back with one copy, on which the host decides whether to update.
 *
 * Convolutions are planned for a number of items: the full batch, and one other for the last batch
 * of an epoch. Both use the same maps and the same packed weights.
 */
#include <stdlib.h>
#include <string.h>

#include "us_train_impl.h"

/* ---- turns --------------------------------------------------------------------------------- */

void usi_train_hold(struct us_train *t)
{
    if (us_backend_ops(t->be)->hold != NULL)
        us_backend_ops(t->be)->hold(t->be);
}

void usi_train_let_go(struct us_train *t)
{
    if (us_backend_ops(t->be)->let_go != NULL)
        us_backend_ops(t->be)->let_go(t->be);
}

/* ---- sizes --------------------------------------------------------------------------------- */

static void release_size(struct us_train *t, struct us_train_size *z)
{
    if (z->graph != NULL)
        us_backend_ops(t->be)->graph_free(t->be, z->graph);
    if (z->worker == &t->other_worker) {
        if (z->worker->block == t->workers[0].block)
            z->worker->block = NULL; /* it was lent */
        usi_train_unbind(t, z->worker);
    }
    for (int32_t i = 0; z->convs != NULL && i < t->n_convs; i++) {
        if (z->convs[i] != NULL)
            t->ops->conv_free(t->be, z->convs[i]);
    }
    free(z->convs);
    memset(z, 0, sizeof(*z));
}

void usi_train_device_release(struct us_train *t)
{
    if (t->ops->batched) /* the last update may still be on its way */
        (void)us_backend_ops(t->be)->sync(t->be);
    for (size_t i = 0; i < US_COUNT(t->sizes); i++)
        release_size(t, &t->sizes[i]);
}

/* *ret_scratch: what the largest of them needs. */
static enum us_status plan_size(struct us_train *t, struct us_train_size *z, int32_t n,
                                size_t *ret_scratch, struct us_err *err)
{
    z->convs = calloc((size_t)t->n_convs + 1, sizeof(struct us_tconv *));
    if (z->convs == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    *ret_scratch = 0;
    for (int32_t i = 0; i < t->n_convs; i++) {
        struct us_tconv_desc d = t->convs[i].desc;
        d.in.n = d.out.n = n;
        US_TRY(t->ops->conv_plan(t->be, &d, &z->convs[i], err));
        if (z->convs[i]->packed_bytes != t->convs[i].conv->packed_bytes)
            return us_fail(err, US_E_BACKEND, "training: packed weights depend on the batch");
        if (z->convs[i]->scratch_bytes > *ret_scratch)
            *ret_scratch = z->convs[i]->scratch_bytes;
    }
    return US_OK;
}

static enum us_status make_size(struct us_train *t, struct us_train_size *z, int32_t n,
                                struct us_err *err)
{
    struct us_train_worker *w = z->worker = &t->other_worker;
    size_t scratch = 0;
    *w = (struct us_train_worker){.owner = t};
    US_TRY(plan_size(t, z, n, &scratch, err));
    if (scratch <= t->worker_scratch)
        w->block = t->workers[0].block;
    else
        US_TRY(usi_train_buffer(t, t->worker_bytes + scratch + US_PLAN_ALIGN, &w->block, err));
    return usi_train_bind(t, w, z->convs, err);
}

/* Makes t->size the one for n items. */
enum us_status usi_train_device_size(struct us_train *t, int32_t n, struct us_err *err)
{
    bool full = n == t->cfg.batch;
    struct us_train_size *z = t->size = &t->sizes[full ? 0 : 1];
    if (z->n == n)
        return US_OK;
    US_TRY(us_backend_ops(t->be)->sync(t->be)); /* nothing of the old one is on its way */
    release_size(t, z);
    if (full)
        z->worker = &t->workers[0];
    else
        US_TRY(make_size(t, z, n, err));
    z->n = n;
    return US_OK;
}

/* ---- the step ------------------------------------------------------------------------------ */

/* Makes or starts the work of this size. */
static enum us_status work(struct us_train *t, struct us_train_size *z)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    bool record = z->graph == NULL && z->ran && be->graph_begin != NULL;
    if (record)
        US_TRY(be->graph_begin(t->be));
    if (z->graph == NULL)
        usi_train_work(z->worker);
    if (record)
        US_TRY(be->graph_end(t->be, &z->graph));
    z->ran = true;
    if (z->graph == NULL || atomic_load(&t->failed))
        return US_OK;
    return be->graph_run(t->be, z->graph);
}

/* The test hook's noise, moved to where the device can read it. */
static enum us_status lend_eps(struct us_train *t)
{
    int32_t levels = t->net->arch.n_levels, batch = t->cfg.batch;
    int64_t count[US_MAX_LEVELS], item = 0;
    for (int32_t l = 0; l < levels; l++) {
        const struct us_posterior *d = &t->latents[l].desc;
        count[l] = (int64_t)d->h * d->w * d->ew.c;
        item += count[l];
    }
    size_t pointers = (size_t)batch * (size_t)levels;
    size_t bytes = pointers * sizeof(*t->device_eps) + (size_t)(batch * item) * sizeof(float);
    if (t->device_eps == NULL)
        US_TRY(usi_train_host(t, bytes, &t->device_eps, NULL));
    float *p = (float *)(void *)(t->device_eps + pointers);
    for (int32_t i = 0; i < t->step.n; i++) {
        const float **at = t->device_eps + (size_t)i * (size_t)levels;
        for (int32_t l = 0; t->eps[i] != NULL && l < levels; p += count[l++]) {
            at[l] = p;
            if (t->eps[i][l] != NULL)
                memcpy(p, t->eps[i][l], (size_t)count[l] * sizeof(float));
        }
        t->draw[i].eps = t->eps[i] != NULL ? at : NULL;
    }
    return US_OK;
}

/* The batch's inputs and targets, and what keys its random numbers: read by every thread of the
 * device, so from its own memory. */
static enum us_status stage(struct us_train *t)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    size_t plane = (size_t)t->net->size * (size_t)t->net->size, n = (size_t)t->step.n;
    for (int32_t s = 0; s < t->net->arch.lc_scales; s++) {
        size_t at = (size_t)s * (size_t)t->cfg.batch * plane;
        US_TRY(be->copy_in(t->be, t->input + at, t->host_input + at, n * plane * sizeof(float)));
    }
    size_t targets = (size_t)t->net->arch.target_channels;
    US_TRY(be->copy_in(t->be, t->target, t->host_target, n * plane * targets * sizeof(float)));
    bool hooked = false;
    for (int32_t i = 0; i < t->step.n; i++)
        hooked = hooked || t->eps[i] != NULL;
    if (hooked && be->host_alloc != NULL)
        US_TRY(lend_eps(t));
    return be->copy_in(t->be, t->keys, t->draw, n * sizeof(*t->draw));
}

void usi_train_device_work(struct us_train *t)
{
    struct us_train_worker *first = &t->workers[0], *w = t->size->worker;
    usi_train_note(first, stage(t));
    if (!atomic_load(&t->failed))
        usi_train_note(first, work(t, t->size));
    if (w != first) {
        usi_train_note(first, w->status);
        w->status = US_OK;
    }
    /* Also after a failure: nothing may still be running that reads this step's host memory. */
    usi_train_note(first, us_backend_ops(t->be)->copy_out(t->be, t->seen_results, t->results,
                                                          (size_t)t->n_results * sizeof(double)));
}

/* ---- to and fro ---------------------------------------------------------------------------- */

static enum us_status moved(struct us_train *t, enum us_status s, const char *what,
                            struct us_err *err)
{
    if (s == US_OK)
        return US_OK;
    return us_fail(err, s, "training: %s backend %s: %s", what, us_backend_ops(t->be)->name,
                   us_status_text(s));
}

static enum us_status pull_running(struct us_train *t)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    for (int32_t i = 0; i < t->n_bns; i++) {
        const struct us_train_bn *b = &t->bns[i];
        const struct us_param *p = &t->net->params[b->param];
        size_t bytes = (size_t)b->c * sizeof(float);
        US_TRY(be->copy_out(t->be, t->model->weights + p[2].offset, b->running_mean, bytes));
        US_TRY(be->copy_out(t->be, t->model->weights + p[3].offset, b->running_var, bytes));
    }
    return US_OK;
}

static enum us_status push_running(struct us_train *t)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    for (int32_t i = 0; i < t->n_bns; i++) {
        const struct us_train_bn *b = &t->bns[i];
        const struct us_param *p = &t->net->params[b->param];
        size_t bytes = (size_t)b->c * sizeof(float);
        US_TRY(be->copy_in(t->be, b->running_mean, t->model->weights + p[2].offset, bytes));
        US_TRY(be->copy_in(t->be, b->running_var, t->model->weights + p[3].offset, bytes));
    }
    return US_OK;
}

static enum us_status pull_all(struct us_train *t)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    size_t bytes = (size_t)t->net->n_floats * sizeof(float);
    US_TRY(be->copy_out(t->be, t->model->weights, t->weights, bytes));
    US_TRY(be->copy_out(t->be, t->seen_m, t->m, bytes));
    US_TRY(be->copy_out(t->be, t->seen_u, t->u, bytes));
    return pull_running(t);
}

static enum us_status push_all(struct us_train *t)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    size_t bytes = (size_t)t->net->n_floats * sizeof(float);
    US_TRY(be->copy_in(t->be, t->weights, t->model->weights, bytes));
    US_TRY(be->copy_in(t->be, t->m, t->seen_m, bytes));
    US_TRY(be->copy_in(t->be, t->u, t->seen_u, bytes));
    US_TRY(push_running(t));
    return be->sync(t->be); /* the host's may be written again */
}

enum us_status us_train_pull(struct us_train *t, struct us_err *err)
{
    if (t->fresh)
        return US_OK;
    usi_train_hold(t);
    enum us_status s = pull_all(t);
    usi_train_let_go(t);
    t->fresh = s == US_OK;
    return moved(t, s, "reading from", err);
}

enum us_status usi_train_push(struct us_train *t, struct us_err *err)
{
    enum us_status s = push_all(t);
    t->fresh = s == US_OK;
    return moved(t, s, "writing to", err);
}

enum us_status us_train_push(struct us_train *t, struct us_err *err)
{
    if (!t->ops->batched)
        return US_OK;
    usi_train_hold(t);
    enum us_status s = usi_train_push(t, err);
    usi_train_let_go(t);
    return s;
}

const float *us_train_gradients(struct us_train *t)
{
    if (!t->ops->batched)
        return t->seen_gradients;
    size_t bytes = (size_t)t->net->n_floats * sizeof(float);
    usi_train_hold(t);
    enum us_status s =
        us_backend_ops(t->be)->copy_out(t->be, t->seen_gradients, t->gradients, bytes);
    usi_train_let_go(t);
    return s == US_OK ? t->seen_gradients : NULL;
}
