/*
 * The prediction ops of the CUDA backend: how each is made of products and a finishing kernel
 * (us_cuda_infer.h), what memory that takes, and the packing of its weights. us_cuda_bind.c makes
 * the calls.
 */
#include "us_cuda_infer.h"

#include <stdlib.h>
#include <string.h>

#include "us_limits.h"

/* Kernel side up to which coordinates stay far from 2^31. */
#define MAX_KERNEL 4096

static enum us_status check_limits(const struct us_map *m, int32_t k, struct us_err *err)
{
    if (m->full_h > US_MAX_IMAGE_SIDE || m->full_w > US_MAX_IMAGE_SIDE || k > MAX_KERNEL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "a %dx%d map, kernel %d: the cuda backend takes sides up to %lld and "
                       "kernels up to %d",
                       m->full_h, m->full_w, k, (long long)US_MAX_IMAGE_SIDE, MAX_KERNEL);
    return US_OK;
}

/* Items per call: the largest divisor of the batch whose stage of `c` channels stays small. One
 * plan then serves all calls. */
static int32_t chunk_of(const struct us_backend *be, const struct us_map *out, int64_t c)
{
    int64_t item = (int64_t)out->rect.h * out->rect.w * c * (int64_t)sizeof(float);
    int32_t chunk = out->n;
    while (chunk > 1 && (out->n % chunk != 0 || item * chunk > be->stage_bytes))
        chunk--;
    return chunk;
}

static struct usi_cuda_want want_1x1(const struct us_map *in, const struct us_map *out, int32_t c,
                                     int32_t n)
{
    return (struct usi_cuda_want){
        .in = *in, .out = out->rect, .n = n, .c = c, .k = 1, .stride = 1, .pad = 0};
}

/* ---- the ops ---- */

/* conv2d and conv_t2d: whole by the library, whole by `direct`, or sums and an epilogue. */
static enum us_status conv_init(struct usi_cuda_op *op, const struct usi_cuda_want *want,
                                bool can_fuse, bool elu, struct us_err *err)
{
    struct usi_cuda_product *p = &op->product[0];
    struct usi_cuda_fuse fuse = {&op->out, op->in2, elu};
    struct us_err why = {0};
    enum us_status s = US_E_UNSUPPORTED;
    op->n_products = 1;
    op->n_bias = want->c;
    op->fused = true;
    if (can_fuse && !usi_cuda_wants_direct(want))
        s = usi_cuda_product_plan(op->be, want, &fuse, p, &why);
    if (s != US_E_UNSUPPORTED)
        return s == US_OK ? s : us_fail(err, s, "%s", why.msg);
    struct usi_cuda_want part = *want;
    part.n = op->chunk = chunk_of(op->be, &op->out, want->c);
    US_TRY(usi_cuda_product_plan(op->be, &part, NULL, p, err));
    op->fused = !p->empty && p->conv == NULL;
    if (op->fused)
        p->want.n = op->chunk = want->n;
    return US_OK;
}

static enum us_status init_conv2d(struct usi_cuda_op *op, struct us_err *err)
{
    const struct us_conv2d_desc *d = &op->d.conv2d;
    const struct usi_cuda_want want = {
        .in = d->in,
        .out = d->out.rect,
        .n = d->out.n,
        .c = d->out.c,
        .k = d->k,
        .stride = d->stride,
        .pad = d->pad,
    };
    op->out = d->out;
    op->in2 = d->residual ? &d->res : NULL;
    op->tail = d->tail;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * d->k * d->k * d->in.c;
    bool types = (d->out.dtype == d->in.dtype || d->out.dtype == US_F32) &&
                 (!d->residual || d->res.dtype == d->in.dtype);
    US_TRY(check_limits(&d->in, d->k, err));
    return conv_init(op, &want, types && !d->tail, d->act == US_ACT_ELU, err);
}

static enum us_status init_conv_t2d(struct usi_cuda_op *op, struct us_err *err)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    const struct usi_cuda_want want = {
        .in = d->in,
        .out = d->out.rect,
        .n = d->out.n,
        .c = d->out.c,
        .k = 3,
        .stride = 2,
        .pad = 1,
        .transposed = true,
    };
    op->out = d->out;
    op->tail = d->tail;
    /* Of the nine taps 1, 2, 2 or 4 meet an output pixel: 9/4 on average. */
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * d->in.c * 9.0 / 4.0;
    bool types = d->out.dtype == d->in.dtype || d->out.dtype == US_F32;
    US_TRY(check_limits(&d->out, 3, err));
    return conv_init(op, &want, types && !d->tail, false, err);
}

static enum us_status init_gate(struct usi_cuda_op *op, struct us_err *err)
{
    const struct us_gate_desc *d = &op->d.gate;
    op->out = d->out;
    op->in2 = &d->res;
    op->tail = d->tail;
    op->n_bias = 2 * d->out.c;
    op->n_products = 1;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * 2 * d->in.c;
    op->chunk = chunk_of(op->be, &d->out, 2 * (int64_t)d->out.c);
    US_TRY(check_limits(&d->out, 1, err));
    const struct usi_cuda_want want = want_1x1(&d->in, &d->out, 2 * d->out.c, op->chunk);
    return usi_cuda_product_plan(op->be, &want, NULL, &op->product[0], err);
}

/* Each input has a product over what it holds: nothing is concatenated, and a zero pad costs
 * nothing. */
static enum us_status init_merge(struct usi_cuda_op *op, struct us_err *err)
{
    const struct us_merge_desc *d = &op->d.merge;
    const struct us_map *in[2] = {&d->a, &d->b};
    op->out = d->out;
    op->in2 = &d->b;
    op->tail = d->tail;
    op->n_bias = d->out.c;
    op->n_products = 2;
    op->chunk = chunk_of(op->be, &d->out, 2 * (int64_t)d->out.c);
    US_TRY(check_limits(&d->out, 1, err));
    for (int32_t i = 0; i < 2; i++) {
        struct usi_cuda_product *p = &op->product[i];
        const struct usi_cuda_want want = want_1x1(in[i], &d->out, d->out.c, op->chunk);
        US_TRY(usi_cuda_product_plan(op->be, &want, NULL, p, err));
        if (!p->empty)
            op->base.flops += 2.0 * d->out.n * p->part.h * p->part.w * (double)in[i]->c * d->out.c;
    }
    return US_OK;
}

static enum us_status init_latent(struct usi_cuda_op *op, struct us_err *err)
{
    op->out = op->d.latent.out;
    return check_limits(&op->out, 1, err);
}

static enum us_status init_affine_elu(struct usi_cuda_op *op, struct us_err *err)
{
    op->out = op->d.affine_elu.out;
    op->n_tail = op->out.c;
    return check_limits(&op->out, 1, err);
}

static enum us_status init_copy(struct usi_cuda_op *op, struct us_err *err)
{
    op->out = op->d.copy.out;
    return check_limits(&op->out, 1, err);
}

/* ---- life ---- */

static size_t reserve(size_t *total, size_t bytes)
{
    size_t at = *total;
    *total += (bytes + USI_CUDA_ALIGN - 1) / USI_CUDA_ALIGN * USI_CUDA_ALIGN;
    return at;
}

static void lay_out(struct usi_cuda_op *op)
{
    size_t *packed = &op->base.packed_bytes, *scratch = &op->base.scratch_bytes;
    size_t workspace = 0;
    for (int32_t i = 0; i < op->n_products; i++) {
        struct usi_cuda_product *p = &op->product[i];
        p->weights_at = reserve(packed, usi_cuda_weight_bytes(p));
        p->view_at = reserve(scratch, usi_cuda_view_bytes(p));
        if (!op->fused)
            p->stage_at = reserve(scratch, usi_cuda_stage_bytes(p));
        workspace = p->workspace_bytes > workspace ? p->workspace_bytes : workspace;
    }
    if (op->tail)
        op->n_tail = op->out.c;
    op->bias_at = reserve(packed, (size_t)op->n_bias * sizeof(float));
    op->scale_at = reserve(packed, (size_t)op->n_tail * sizeof(float));
    op->shift_at = reserve(packed, (size_t)op->n_tail * sizeof(float));
    op->workspace_at = reserve(scratch, workspace);
    if (op->base.kind == US_OP_latent)
        op->noise_at = reserve(scratch, (size_t)op->out.n * sizeof(struct us_noise));
    /* A worker's scratch is aligned less than the library asks; bind rounds its address up. */
    if (*scratch > 0)
        *scratch += USI_CUDA_ALIGN;
}

void usi_cuda_op_free(struct us_backend *be, struct us_op *base)
{
    struct usi_cuda_op *op = (struct usi_cuda_op *)(void *)base;
    if (op == NULL)
        return;
    for (int32_t i = 0; i < op->n_products; i++)
        usi_cuda_product_release(be, &op->product[i]);
    free(op);
}

static enum us_status plan_op(struct us_backend *be, enum us_op_kind kind, const void *desc,
                              size_t desc_bytes,
                              enum us_status (*init)(struct usi_cuda_op *op, struct us_err *err),
                              struct us_op **ret, struct us_err *err)
{
    struct usi_cuda_op *op = calloc(1, sizeof(*op));
    if (op == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory for the op", us_op_name(kind));
    op->base.kind = kind;
    op->be = be;
    memcpy(&op->d, desc, desc_bytes);
    enum us_status s = init(op, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", us_op_name(kind));
        usi_cuda_op_free(be, &op->base);
        return s;
    }
    if (op->chunk == 0)
        op->chunk = op->out.n;
    lay_out(op);
    *ret = &op->base;
    return US_OK;
}

#define US_OP(name)                                                                                \
    enum us_status usi_cuda_##name##_plan(struct us_backend *be,                                   \
                                          const struct us_##name##_desc *desc, struct us_op **ret, \
                                          struct us_err *err)                                      \
    {                                                                                              \
        US_TRY(us_##name##_check(desc, err));                                                      \
        return plan_op(be, US_OP_##name, desc, sizeof(*desc), init_##name, ret, err);              \
    }
#include "us_ops.def"
#undef US_OP

/* ---- weights ---- */

static void pack_products(const struct usi_cuda_op *op, const float *w, char *packed)
{
    int32_t row = 0;
    for (int32_t i = 0; i < op->n_products; i++)
        row += op->product[i].want.in.c;
    for (int32_t i = 0, first = 0; i < op->n_products; i++) {
        const struct usi_cuda_product *p = &op->product[i];
        usi_cuda_product_pack(p, w, row, first, packed + p->weights_at);
        first += p->want.in.c;
    }
}

enum us_status usi_cuda_op_pack(struct us_backend *be, const struct us_op *base,
                                const struct us_op_weights *w, void *packed)
{
    const struct usi_cuda_op *op = (const struct usi_cuda_op *)(const void *)base;
    if ((op->n_products > 0 && w->w == NULL) || (op->n_bias > 0 && w->b == NULL) ||
        (op->n_tail > 0 && (w->tail_scale == NULL || w->tail_shift == NULL)))
        return US_E_ARG;
    if (base->packed_bytes == 0)
        return US_OK;
    char *host = calloc(1, base->packed_bytes);
    if (host == NULL)
        return US_E_NOMEM;
    pack_products(op, w->w, host);
    if (op->n_bias > 0)
        memcpy(host + op->bias_at, w->b, (size_t)op->n_bias * sizeof(float));
    if (op->n_tail > 0) {
        memcpy(host + op->scale_at, w->tail_scale, (size_t)op->n_tail * sizeof(float));
        memcpy(host + op->shift_at, w->tail_shift, (size_t)op->n_tail * sizeof(float));
    }
    enum us_status s = be->gpu->ops->to_device(be->gpu, packed, host, base->packed_bytes);
    if (s == US_OK)
        s = be->gpu->ops->sync(be->gpu); /* host goes away */
    free(host);
    return s;
}
