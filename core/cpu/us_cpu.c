/*
 * The cpu backend: oneDNN for convolutions, own vector code for everything between them
 * (performance.md 2 and 6). One worker is one thread: nothing here starts threads, ops are
 * immutable and shared, what a run writes to belongs to the bound op. So the bytes of a result
 * depend neither on the thread nor on how many there are.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "us_cpu_impl.h"
#include "us_limits.h"
#include "us_train_ops.h"

/* Kernel side up to which coordinates stay far from 2^31. */
#define US_CPU_MAX_KERNEL 4096

#define US_CPU_HUGE_PAGE (2u << 20)

/* ---- memory ---- */

static bool cpu_has_dtype(struct us_backend *be, enum us_dtype dtype)
{
    return dtype == US_F32 || (dtype == US_BF16 && usi_dnn_has_bf16(be->dnn));
}

static void cpu_thread_init(struct us_backend *be)
{
    usi_dnn_thread_init();
}

static enum us_status cpu_buf_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    /* A worker's block is megabytes and touched all over: with huge pages it needs few of the
     * processor's address entries. */
    size_t align = bytes >= US_CPU_HUGE_PAGE ? US_CPU_HUGE_PAGE : US_CPU_ALIGN;
    if (bytes > PTRDIFF_MAX - align)
        return US_E_NOMEM;
    size_t rounded = bytes == 0 ? align : (bytes + align - 1) / align * align;
    void *p = aligned_alloc(align, rounded);
    if (p == NULL)
        return US_E_NOMEM;
    if (align == US_CPU_HUGE_PAGE)
        (void)madvise(p, rounded, MADV_HUGEPAGE); /* only a hint */
    *ret = p;
    return US_OK;
}

static void cpu_buf_free(struct us_backend *be, void *p)
{
    free(p);
}

static enum us_status cpu_copy(struct us_backend *be, void *dst, const void *src, size_t bytes)
{
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return US_OK;
}

static enum us_status cpu_sync(struct us_backend *be)
{
    return US_OK;
}

/* ---- ops ---- */

/* Also for an op whose init failed half way: n_conv counts a convolution before it is planned. */
static void cpu_op_free(struct us_backend *be, struct us_op *base)
{
    struct usi_cpu_op *op = (struct usi_cpu_op *)(void *)base;
    if (op == NULL)
        return;
    for (int32_t i = 0; i < op->n_conv; i++)
        usi_cpu_conv_release(&op->conv[i]);
    free(op);
}

/* The next place in a block that so far takes *total bytes. */
static size_t reserve(size_t *total, size_t bytes)
{
    size_t at = *total;
    *total += usi_cpu_aligned(bytes);
    return at;
}

/* Lays out packed weights and scratch once the op's init has said what it needs. */
static void lay_out(struct usi_cpu_op *op)
{
    size_t dnn = 0;
    for (int32_t i = 0; i < op->n_conv; i++) {
        struct usi_cpu_conv *c = &op->conv[i];
        c->packed_at = reserve(&op->base.packed_bytes, c->weight_bytes);
        c->first_call = op->n_calls;
        op->n_calls += c->n_prims;
        dnn = c->scratch_bytes > dnn ? c->scratch_bytes : dnn;
    }
    op->bias_at = reserve(&op->base.packed_bytes, (size_t)op->n_bias * sizeof(float));
    if (op->n_tail > 0) {
        int64_t repeat = usi_cpu_max(1, US_CPU_PERIOD / op->n_tail);
        op->tail_period = repeat * op->n_tail;
        size_t bytes = (size_t)op->tail_period * sizeof(float);
        op->scale_at = reserve(&op->base.packed_bytes, bytes);
        op->shift_at = reserve(&op->base.packed_bytes, bytes);
    }
    op->dnn_at = reserve(&op->base.scratch_bytes, dnn);
    for (size_t i = 0; i < US_COUNT(op->stage_at); i++)
        op->stage_at[i] = reserve(&op->base.scratch_bytes, op->stage_bytes[i]);
    for (size_t i = 0; i < US_COUNT(op->src); i++)
        op->src[i].copy_at = reserve(&op->base.scratch_bytes, op->src[i].copy_bytes);
}

static enum us_status plan_op(struct us_backend *be, enum us_op_kind kind, const void *desc,
                              size_t desc_bytes,
                              enum us_status (*init)(struct usi_cpu_op *op, struct us_err *err),
                              struct us_op **ret, struct us_err *err)
{
    struct usi_cpu_op *op = calloc(1, sizeof(*op));
    if (op == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory for the op", us_op_name(kind));
    op->base.kind = kind;
    op->be = be;
    op->n_in = 1;
    memcpy(&op->d, desc, desc_bytes);
    enum us_status s = init(op, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", us_op_name(kind));
        cpu_op_free(be, &op->base);
        return s;
    }
    lay_out(op);
    *ret = &op->base;
    return US_OK;
}

#define US_OP(name)                                                                                \
    static enum us_status cpu_##name##_plan(struct us_backend *be,                                 \
                                            const struct us_##name##_desc *desc,                   \
                                            struct us_op **ret, struct us_err *err)                \
    {                                                                                              \
        US_TRY(us_##name##_check(desc, err));                                                      \
        return plan_op(be, US_OP_##name, desc, sizeof(*desc), usi_cpu_##name##_init, ret, err);    \
    }
#include "us_ops.def"
#undef US_OP

enum us_status usi_cpu_limits(const struct us_map *m, int32_t k, struct us_err *err)
{
    if (m->full_h > US_MAX_IMAGE_SIDE || m->full_w > US_MAX_IMAGE_SIDE || k > US_CPU_MAX_KERNEL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "a %dx%d map, kernel %d: the cpu backend takes sides up to %lld and kernels "
                       "up to %d",
                       m->full_h, m->full_w, k, (long long)US_MAX_IMAGE_SIDE, US_CPU_MAX_KERNEL);
    return US_OK;
}

/* Whole repeats fill the period, see struct usi_cpu_tail. */
static void repeat_channels(const float *from, int32_t n, float *to, int64_t period)
{
    for (int64_t at = 0; at < period; at += n)
        memcpy(to + at, from, (size_t)n * sizeof(float));
}

static enum us_status cpu_op_pack(struct us_backend *be, const struct us_op *base,
                                  const struct us_op_weights *w, void *packed)
{
    const struct usi_cpu_op *op = (const struct usi_cpu_op *)(const void *)base;
    char *at = packed;
    if ((op->n_conv > 0 && w->w == NULL) || (op->n_bias > 0 && w->b == NULL) ||
        (op->n_tail > 0 && (w->tail_scale == NULL || w->tail_shift == NULL)))
        return US_E_ARG;
    if (op->pack != NULL)
        US_TRY(op->pack(op, w, packed));
    if (op->n_bias > 0)
        memcpy(at + op->bias_at, w->b, (size_t)op->n_bias * sizeof(float));
    if (op->n_tail > 0) {
        repeat_channels(w->tail_scale, op->n_tail, (float *)(void *)(at + op->scale_at),
                        op->tail_period);
        repeat_channels(w->tail_shift, op->n_tail, (float *)(void *)(at + op->shift_at),
                        op->tail_period);
    }
    return US_OK;
}

static void cpu_bound_free(struct us_backend *be, struct us_bound *b)
{
    if (b == NULL)
        return;
    if (b->call != NULL)
        for (int32_t i = 0; i < b->op->n_calls; i++)
            usi_dnn_call_free(b->call[i]);
    free(b->call);
    free(b);
}

/* Every convolution's arguments but source and destination are fixed from here on. All share the
 * one scratchpad, as only one runs at a time. */
static enum us_status bind_convs(struct us_bound *b)
{
    const struct usi_cpu_op *op = b->op;
    const char *packed = b->bufs.packed;
    char *scratch = b->bufs.scratch;
    for (int32_t i = 0; i < op->n_conv; i++) {
        const struct usi_cpu_conv *c = &op->conv[i];
        const float *bias = (const float *)(const void *)(packed + op->bias_at);
        for (int32_t j = 0; j < c->n_prims; j++)
            US_TRY(usi_dnn_call_new(c->prim[j].conv, packed + c->packed_at + c->prim[j].weights_at,
                                    c->win.bias ? bias : NULL, scratch + op->dnn_at,
                                    &b->call[c->first_call + j]));
    }
    return US_OK;
}

/* Whether every address a run will use is there. */
static bool has_all(const struct usi_cpu_op *op, const struct us_op_bufs *bufs)
{
    return bufs->in[0] != NULL && (op->n_in < 2 || bufs->in[1] != NULL) && bufs->out != NULL &&
           (!op->out2 || bufs->out2 != NULL) &&
           (op->base.packed_bytes == 0 || bufs->packed != NULL) &&
           (op->base.scratch_bytes == 0 || bufs->scratch != NULL) &&
           (op->base.kind != US_OP_latent || bufs->noise != NULL);
}

static enum us_status cpu_op_bind(struct us_backend *be, const struct us_op *base,
                                  const struct us_op_bufs *bufs, struct us_bound **ret)
{
    const struct usi_cpu_op *op = (const struct usi_cpu_op *)(const void *)base;
    if (!has_all(op, bufs))
        return US_E_ARG;
    struct us_bound *b = calloc(1, sizeof(*b));
    if (b == NULL)
        return US_E_NOMEM;
    b->op = op;
    b->bufs = *bufs;
    if (op->n_tail > 0) {
        const char *packed = bufs->packed;
        b->tail.scale = (const float *)(const void *)(packed + op->scale_at);
        b->tail.shift = (const float *)(const void *)(packed + op->shift_at);
        b->tail.period = op->tail_period;
    }
    enum us_status s = US_OK;
    if (op->n_calls > 0) {
        b->call = calloc((size_t)op->n_calls, sizeof(*b->call));
        s = b->call == NULL ? US_E_NOMEM : bind_convs(b);
    }
    if (s != US_OK) {
        cpu_bound_free(be, b);
        return s;
    }
    *ret = b;
    return US_OK;
}

static enum us_status cpu_run(struct us_backend *be, struct us_bound *b)
{
    return b->op->run(b);
}

/* ---- life ---- */

static void cpu_free(struct us_backend *be)
{
    if (be == NULL)
        return;
    usi_dnn_close(be->dnn);
    free(be);
}

static const struct us_backend_ops cpu_ops = {
    .name = "cpu",
    .train = &us_cpu_train_ops,
    .has_dtype = cpu_has_dtype,
    .free = cpu_free,
    .thread_init = cpu_thread_init,
    .buf_alloc = cpu_buf_alloc,
    .buf_free = cpu_buf_free,
    .copy_in = cpu_copy,
    .copy_out = cpu_copy,
    .sync = cpu_sync,
#define US_OP(name) .name##_plan = cpu_##name##_plan,
#include "us_ops.def"
#undef US_OP
    .op_free = cpu_op_free,
    .op_pack = cpu_op_pack,
    .op_bind = cpu_op_bind,
    .bound_free = cpu_bound_free,
    .run = cpu_run,
};

enum us_status us_cpu_open(struct us_backend **ret, struct us_err *err)
{
    int n;
    const struct usi_cpu_kernels *const *kernels = usi_cpu_kernels_list(&n);
    struct us_backend *be = calloc(1, sizeof(*be));
    if (be == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the cpu backend");
    be->base.ops = &cpu_ops;
    be->kern = kernels[n - 1];
    enum us_status s = usi_dnn_open(&be->dnn, err);
    if (s != US_OK) {
        cpu_free(be);
        return s;
    }
    /* The one place for this choice; performance.md 2 has the measurements. */
    be->fuse_elu[US_F32] = true;
    be->fuse_elu[US_BF16] = !usi_dnn_has_amx(be->dnn);
    *ret = be;
    return US_OK;
}
