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
static enum us_status find_chunks(struct us_train *t, struct us_err *err)
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

/* ---- blocks -------------------------------------------------------------------------------- */

/* Item tensors share one block per item, the others one block per worker. */
static enum us_status layout(struct us_train *t)
{
    struct us_span *spans = calloc((size_t)t->n_tensors + 1, sizeof(*spans));
    if (spans == NULL)
        return US_E_NOMEM;
    enum us_status status = US_OK;
    for (int32_t pass = 0; pass < 2 && status == US_OK; pass++) {
        int32_t n = 0;
        for (int32_t i = 0; i < t->n_tensors; i++) {
            const struct us_train_tensor *x = &t->tensors[i];
            if (x->per_item == (pass == 0) && x->first >= 0)
                spans[n++] = (struct us_span){us_map_bytes(&x->map), x->first, x->last, 0};
        }
        status = usi_layout(spans, n, pass == 0 ? &t->item_bytes : &t->worker_bytes);
        n = 0;
        for (int32_t i = 0; i < t->n_tensors; i++) {
            struct us_train_tensor *x = &t->tensors[i];
            if (x->per_item == (pass == 0) && x->first >= 0)
                x->offset = spans[n++].offset;
        }
    }
    free(spans);
    return status;
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

/* Batch-norm vectors, sums and the losses: small, for the whole batch, in backend memory. */
static enum us_status alloc_statics(struct us_train *t, struct us_err *err)
{
    size_t batch = (size_t)t->cfg.batch, targets = (size_t)t->net->arch.target_channels;
    size_t bytes = 2 * usi_aligned(batch * targets * sizeof(double));
    for (int32_t i = 0; i < t->n_bns; i++)
        bytes += 7 * usi_aligned((size_t)t->bns[i].c * sizeof(float)) +
                 usi_aligned(batch * 2 * (size_t)t->bns[i].c * sizeof(double));
    bytes += (size_t)t->net->arch.n_levels *
             (usi_aligned(batch * sizeof(double)) + usi_aligned(batch * sizeof(float)));
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
        p += usi_aligned(batch * 2 * (size_t)b->c * sizeof(double));
    }
    for (int32_t i = 0; i < t->net->arch.n_levels; i++) {
        t->latents[i].kl = (double *)(void *)p;
        p += usi_aligned(batch * sizeof(double));
        t->latents[i].coef = (float *)(void *)p;
        p += usi_aligned(batch * sizeof(float));
    }
    t->rec = (double *)(void *)p;
    t->se = (double *)(void *)(p + usi_aligned(batch * targets * sizeof(double)));
    return US_OK;
}

static enum us_status alloc_host(struct us_train *t, struct us_err *err)
{
    size_t batch = (size_t)t->cfg.batch, plane = (size_t)t->net->size * (size_t)t->net->size;
    size_t n = (size_t)t->net->n_floats;
    t->host_input = calloc(batch * (size_t)t->net->arch.lc_scales * plane, sizeof(float));
    t->host_target = calloc(batch * (size_t)t->net->arch.target_channels * plane, sizeof(float));
    t->draw = calloc(batch, sizeof(*t->draw));
    t->gradients = calloc(n, sizeof(float));
    t->m = calloc(n, sizeof(float));
    t->u = calloc(n, sizeof(float));
    t->chunk_sq = calloc((size_t)t->n_chunks + 1, sizeof(double));
    t->workers = calloc((size_t)t->cfg.threads, sizeof(*t->workers));
    size_t running = 1;
    for (int32_t i = 0; i < t->n_bns; i++)
        running += 2 * (size_t)t->bns[i].c;
    t->running_before = calloc(running, sizeof(float));
    if (!t->host_input || !t->host_target || !t->draw || !t->gradients || !t->m || !t->u ||
        !t->chunk_sq || !t->workers || !t->running_before)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    return US_OK;
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
    US_TRY(usi_train_buffer(t, (size_t)US_TRAIN_LANES * (size_t)t->net->n_floats * sizeof(float),
                            &t->lanes, err));
    US_TRY(alloc_statics(t, err));
    return alloc_host(t, err);
}

void usi_train_release(struct us_train *t)
{
    void *const device[] = {t->items, t->packed, t->statics, t->lanes};
    for (size_t i = 0; i < US_COUNT(device); i++) {
        if (device[i] != NULL)
            us_backend_ops(t->be)->buf_free(t->be, device[i]);
    }
    void *const host[] = {
        t->program,    t->segment_start, t->tensors,       t->convs,     t->bns, t->chunks,
        t->host_input, t->host_target,   t->draw,          t->gradients, t->m,   t->u,
        t->chunk_sq,   t->workers,       t->running_before};
    for (size_t i = 0; i < US_COUNT(host); i++)
        free(host[i]);
}
