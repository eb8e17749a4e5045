/*
 * Memory of a training plan (us_train_plan.h): what is trained and in which chunks, where each
 * tensor stands, and every block. All of it is taken before the first step; a step takes none.
 */
#include <stdlib.h>
#include <string.h>

#include "us_train_impl.h"

/* Floats in a chunk: 256 KiB, so that gradient, moments and weights of one stay in cache. */
#define CHUNK_FLOATS 65536

/* ---- what is trained ----------------------------------------------------------------------- */

static enum us_status add_chunks(struct us_train *t, int64_t offset, int64_t n, struct us_err *err)
{
    for (int64_t done = 0; done < n; done += CHUNK_FLOATS) {
        void *p = reallocarray(t->chunks, (size_t)t->n_chunks + 1, sizeof(*t->chunks));
        if (p == NULL)
            return us_fail(err, US_E_NOMEM, "training plan: out of memory");
        t->chunks = p;
        int64_t left = n - done;
        t->chunks[t->n_chunks++] =
            (struct us_train_chunk){offset + done, left < CHUNK_FLOATS ? left : CHUNK_FLOATS};
    }
    return US_OK;
}

/* The parameters that the program gives a gradient; the others are left alone (spec 15.1). */
static enum us_status find_trained(struct us_train *t, struct us_err *err)
{
    bool *trained = calloc((size_t)t->net->n_params + 1, sizeof(bool));
    if (trained == NULL)
        return us_fail(err, US_E_NOMEM, "training plan: out of memory");
    for (int32_t i = 0; i < t->n_convs; i++)
        trained[t->convs[i].param] = trained[t->convs[i].param + 1] = true;
    for (int32_t i = 0; i < t->n_bns; i++)
        trained[t->bns[i].param] = trained[t->bns[i].param + 1] = true;
    if (t->prior_param >= 0)
        trained[t->prior_param] = true;
    enum us_status status = US_OK;
    for (int32_t i = 0; i < t->net->n_params && status == US_OK; i++) {
        if (trained[i])
            status = add_chunks(t, t->net->params[i].offset, t->net->params[i].count, err);
    }
    free(trained);
    return status;
}

/* A device updates all there is with one call: where nothing is trained the gradient is zero, and
 * Adamax then changes no parameter. */
static enum us_status find_chunks(struct us_train *t, struct us_err *err)
{
    if (!t->ops->batched)
        return find_trained(t, err);
    t->chunks = calloc(1, sizeof(*t->chunks));
    if (t->chunks == NULL)
        return us_fail(err, US_E_NOMEM, "training plan: out of memory");
    t->chunks[0] = (struct us_train_chunk){0, t->net->n_floats};
    t->n_chunks = 1;
    return US_OK;
}

/* ---- blocks -------------------------------------------------------------------------------- */

static bool is_in(const struct us_train *t, const struct us_train_tensor *x, bool items)
{
    return x->first >= 0 && (t->ops->batched || x->per_item) == items;
}

/* Item tensors share one block per item, the others one block per worker; a batched backend has
 * one block for all, with the items of a tensor side by side. */
static enum us_status layout_one(struct us_train *t, bool items, size_t *ret_bytes)
{
    struct us_span *spans = calloc((size_t)t->n_tensors + 1, sizeof(*spans));
    if (spans == NULL)
        return US_E_NOMEM;
    size_t copies = t->ops->batched ? (size_t)t->cfg.batch : 1;
    int32_t n = 0;
    for (int32_t i = 0; i < t->n_tensors; i++) {
        const struct us_train_tensor *x = &t->tensors[i];
        if (is_in(t, x, items))
            spans[n++] = (struct us_span){copies * us_map_bytes(&x->map), x->first, x->last, 0};
    }
    enum us_status status = usi_layout(spans, n, ret_bytes);
    n = 0;
    for (int32_t i = 0; i < t->n_tensors; i++) {
        if (is_in(t, &t->tensors[i], items))
            t->tensors[i].offset = spans[n++].offset;
    }
    free(spans);
    return status;
}

static enum us_status layout(struct us_train *t)
{
    US_TRY(layout_one(t, true, &t->item_bytes));
    if (t->ops->batched) /* the block's share of an item */
        t->item_bytes = usi_aligned((t->item_bytes - 1) / (size_t)t->cfg.batch + 1);
    return layout_one(t, false, &t->worker_bytes);
}

enum us_status usi_train_buffer(struct us_train *t, size_t bytes, void *ret, struct us_err *err)
{
    void *p = NULL;
    if (us_backend_ops(t->be)->buf_alloc(t->be, bytes + US_PLAN_ALIGN, &p) != US_OK)
        return us_fail(err, US_E_NOMEM, "training: no memory for %zu bytes on backend %s", bytes,
                       us_backend_ops(t->be)->name);
    memcpy(ret, &p, sizeof(p));
    return US_OK;
}

enum us_status usi_train_host(struct us_train *t, size_t bytes, void *ret, struct us_err *err)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    void *p = NULL;
    if (be->host_alloc != NULL && be->host_alloc(t->be, bytes + US_PLAN_ALIGN, &p) == US_OK)
        memset(p, 0, bytes + US_PLAN_ALIGN);
    else if (be->host_alloc == NULL)
        p = calloc(1, bytes + US_PLAN_ALIGN);
    if (p == NULL)
        return us_fail(err, US_E_NOMEM, "training: no host memory for %zu bytes", bytes);
    memcpy(ret, &p, sizeof(p));
    return US_OK;
}

static void host_free(struct us_train *t, void *p)
{
    const struct us_backend_ops *be = us_backend_ops(t->be);
    if (be->host_alloc == NULL)
        free(p);
    else if (p != NULL)
        be->host_free(t->be, p);
}

/* Partial sums of a batch norm: one per call. */
static size_t parts_bytes(const struct us_train *t, const struct us_train_bn *b)
{
    size_t parts = t->ops->batched ? 1 : (size_t)t->cfg.batch;
    return usi_aligned(parts * 2 * (size_t)b->c * sizeof(double));
}

/* The losses stand together, so that one copy brings them to the host. */
static void place_results(struct us_train *t, double *p)
{
    int64_t batch = t->cfg.batch, targets = t->net->arch.target_channels;
    t->results = t->rec = p;
    t->se = t->rec + batch * targets;
    for (int32_t i = 0; i < t->net->arch.n_levels; i++)
        t->latents[i].kl = t->se + batch * targets + i * batch;
    t->chunk_sq = t->se + batch * targets + t->net->arch.n_levels * batch;
}

/* Batch-norm vectors, sums and the losses: small, for the whole batch, in backend memory. */
static enum us_status alloc_statics(struct us_train *t, struct us_err *err)
{
    size_t batch = (size_t)t->cfg.batch, levels = (size_t)t->net->arch.n_levels;
    t->n_results =
        (int64_t)batch * (2 * t->net->arch.target_channels + (int64_t)levels) + t->n_chunks;
    size_t bytes = usi_aligned((size_t)t->n_results * sizeof(double));
    for (int32_t i = 0; i < t->n_bns; i++)
        bytes += 7 * usi_aligned((size_t)t->bns[i].c * sizeof(float)) + parts_bytes(t, &t->bns[i]);
    bytes += levels * usi_aligned(batch * sizeof(float));
    t->static_bytes = bytes;
    US_TRY(usi_train_buffer(t, bytes, &t->statics, err));
    US_TRY(t->ops->fill_zero(t->be, t->statics, bytes));
    char *p = t->statics;
    for (int32_t i = 0; i < t->n_bns; i++) {
        struct us_train_bn *b = &t->bns[i];
        float **vectors[] = {&b->aff.mean, &b->aff.inv_std, &b->aff.scale, &b->aff.shift,
                             &b->grad.a,   &b->grad.b,      &b->grad.d};
        for (size_t v = 0; v < US_COUNT(vectors); v++) {
            *vectors[v] = (float *)(void *)p;
            p += usi_aligned((size_t)b->c * sizeof(float));
        }
        b->parts = (double *)(void *)p;
        p += parts_bytes(t, b);
    }
    for (size_t i = 0; i < levels; i++, p += usi_aligned(batch * sizeof(float)))
        t->latents[i].coef = (float *)(void *)p;
    place_results(t, (double *)(void *)p);
    return US_OK;
}

static size_t input_bytes(const struct us_train *t)
{
    return (size_t)t->cfg.batch * (size_t)t->net->arch.lc_scales * (size_t)t->net->size *
           (size_t)t->net->size * sizeof(float);
}

static size_t target_bytes(const struct us_train *t)
{
    return input_bytes(t) / (size_t)t->net->arch.lc_scales * (size_t)t->net->arch.target_channels;
}

/* What a step reads from the host, and what stays there. */
static enum us_status alloc_host(struct us_train *t, struct us_err *err)
{
    size_t n = (size_t)t->net->n_floats, batch = (size_t)t->cfg.batch;
    US_TRY(usi_train_host(t, input_bytes(t), &t->host_input, err));
    US_TRY(usi_train_host(t, target_bytes(t), &t->host_target, err));
    US_TRY(usi_train_host(t, batch * sizeof(*t->draw), &t->draw, err));
    US_TRY(usi_train_host(t, sizeof(*t->kl_weight), &t->kl_weight, err));
    t->eps = calloc(batch, sizeof(*t->eps));
    t->workers = calloc((size_t)t->cfg.threads, sizeof(*t->workers));
    t->seen_gradients = calloc(n, sizeof(float));
    t->seen_m = calloc(n, sizeof(float));
    t->seen_u = calloc(n, sizeof(float));
    if (!t->eps || !t->workers || !t->seen_gradients || !t->seen_m || !t->seen_u)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    for (int32_t i = 0; i < t->n_bns; i++)
        t->n_running += 2 * (int64_t)t->bns[i].c;
    return US_OK;
}

/* Workers on the host use its memory as it is. */
static enum us_status share_host(struct us_train *t, struct us_err *err)
{
    t->weights = t->model->weights;
    t->gradients = t->seen_gradients;
    t->m = t->seen_m;
    t->u = t->seen_u;
    t->input = t->host_input;
    t->target = t->host_target;
    t->keys = t->draw;
    t->seen_results = t->results;
    t->running_before = calloc((size_t)t->n_running + 1, sizeof(float));
    if (t->running_before == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    for (int32_t i = 0; i < t->n_bns; i++) {
        const struct us_param *p = &t->net->params[t->bns[i].param];
        t->bns[i].running_mean = t->weights + p[2].offset;
        t->bns[i].running_var = t->weights + p[3].offset;
    }
    return US_OK;
}

/* A device has all of it in its own. The one lane is the gradients. */
static enum us_status alloc_device(struct us_train *t, struct us_err *err)
{
    size_t bytes = (size_t)t->net->n_floats * sizeof(float);
    size_t running = (size_t)t->n_running * sizeof(float);
    US_TRY(usi_train_buffer(t, bytes, &t->weights, err));
    US_TRY(usi_train_buffer(t, bytes, &t->m, err));
    US_TRY(usi_train_buffer(t, bytes, &t->u, err));
    US_TRY(usi_train_buffer(t, input_bytes(t), &t->input, err));
    US_TRY(usi_train_buffer(t, target_bytes(t), &t->target, err));
    US_TRY(usi_train_buffer(t, (size_t)t->cfg.batch * sizeof(*t->keys), &t->keys, err));
    US_TRY(usi_train_buffer(t, running, &t->running, err));
    US_TRY(usi_train_buffer(t, running, &t->running_before, err));
    US_TRY(usi_train_host(t, (size_t)t->n_results * sizeof(double), &t->seen_results, err));
    t->gradients = t->lanes;
    US_TRY(t->ops->fill_zero(t->be, t->gradients, bytes));
    float *running_at = t->running;
    for (int32_t i = 0; i < t->n_bns; i++) {
        struct us_train_bn *b = &t->bns[i];
        b->running_mean = running_at;
        b->running_var = running_at + b->c;
        running_at += 2 * b->c;
    }
    return usi_train_push(t, err);
}

enum us_status usi_train_alloc(struct us_train *t, struct us_err *err)
{
    US_TRY(find_chunks(t, err));
    if (layout(t) != US_OK)
        return us_fail(err, US_E_NOMEM, "training plan: out of memory");
    for (int32_t i = 0; i < t->n_convs; i++) {
        struct us_train_conv *c = &t->convs[i];
        c->packed_offset = t->packed_bytes;
        t->packed_bytes += usi_aligned(c->conv->packed_bytes);
        if (c->conv->scratch_bytes > t->worker_scratch)
            t->worker_scratch = c->conv->scratch_bytes;
    }
    US_TRY(usi_train_buffer(t, (size_t)t->cfg.batch * t->item_bytes, &t->items, err));
    US_TRY(usi_train_buffer(t, t->packed_bytes, &t->packed, err));
    t->n_lanes = t->ops->batched ? 1 : US_TRAIN_LANES;
    US_TRY(usi_train_buffer(t, (size_t)t->n_lanes * (size_t)t->net->n_floats * sizeof(float),
                            &t->lanes, err));
    US_TRY(alloc_statics(t, err));
    US_TRY(alloc_host(t, err));
    return t->ops->batched ? alloc_device(t, err) : share_host(t, err);
}

static void release_device(struct us_train *t)
{
    void *const own[] = {t->weights, t->m,    t->u,       t->input,
                         t->target,  t->keys, t->running, t->running_before};
    for (size_t i = 0; i < US_COUNT(own); i++) {
        if (own[i] != NULL)
            us_backend_ops(t->be)->buf_free(t->be, own[i]);
    }
    host_free(t, t->seen_results);
    host_free(t, t->device_eps);
}

void usi_train_release(struct us_train *t)
{
    void *const device[] = {t->items, t->packed, t->statics, t->lanes};
    for (size_t i = 0; i < US_COUNT(device); i++) {
        if (device[i] != NULL)
            us_backend_ops(t->be)->buf_free(t->be, device[i]);
    }
    void *const read[] = {t->host_input, t->host_target, t->draw, t->kl_weight};
    for (size_t i = 0; i < US_COUNT(read); i++)
        host_free(t, read[i]);
    if (t->ops->batched)
        release_device(t);
    else
        free(t->running_before);
    void *const host[] = {t->program, t->segment_start, t->tensors, t->convs,
                          t->bns,     t->chunks,        t->eps,     t->seen_gradients,
                          t->seen_m,  t->seen_u,        t->workers};
    for (size_t i = 0; i < US_COUNT(host); i++)
        free(host[i]);
}
