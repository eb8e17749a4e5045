/*
 * The reference backend: plain loops, one thread, host memory. It is the referee of the op
 * conformance test and the definition of every op; speed matters only so far that a whole
 * network's parity test takes seconds.
 */
#include "us_ref.h"

#include <stdlib.h>
#include <string.h>

#include "us_train_ops.h"

struct us_backend {
    struct us_backend_base base;
};

struct us_bound {
    const struct usi_ref_op *op;
    struct us_op_bufs bufs;
};

#define REF_ALIGN 64

const float *usi_ref_pixel(const struct us_map *m, const void *buf, int32_t n, int64_t y, int64_t x)
{
    if (!usi_ref_holds(m, y, x))
        return NULL;
    return (const float *)buf + us_map_index(m, n, (int32_t)y, (int32_t)x);
}

void usi_ref_begin(const struct usi_ref_op *op, const struct us_op_bufs *bufs, double *acc)
{
    const float *bias = usi_ref_bias(op, bufs);
    for (int64_t co = 0; co < op->n_out; co++)
        acc[co] = (double)bias[co];
}

void usi_ref_add_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int64_t tap,
                       int64_t first, int64_t n_x, const float *x, double *acc)
{
    if (x == NULL)
        return;
    const float *w = usi_ref_w(bufs) + (tap * op->n_in + first) * op->n_out;
    for (int64_t ci = 0; ci < n_x; ci++, w += op->n_out) {
        double v = (double)x[ci];
        for (int64_t co = 0; co < op->n_out; co++)
            acc[co] += v * (double)w[co];
    }
}

enum us_status usi_ref_need_f32(const char *name, const struct us_map *m, struct us_err *err)
{
    if (m->dtype != US_F32)
        return us_fail(err, US_E_UNSUPPORTED, "%s: the reference backend computes in f32 only",
                       name);
    return US_OK;
}

static bool ref_has_dtype(struct us_backend *be, enum us_dtype dtype)
{
    return dtype == US_F32;
}

static void ref_free(struct us_backend *be)
{
    free(be);
}

static void ref_thread_init(struct us_backend *be)
{
}

static enum us_status ref_buf_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    if (bytes > PTRDIFF_MAX - REF_ALIGN)
        return US_E_NOMEM;
    /* aligned_alloc wants a multiple of the alignment; never zero bytes. */
    size_t rounded = (bytes / REF_ALIGN + 1) * REF_ALIGN;
    void *p = aligned_alloc(REF_ALIGN, rounded);
    if (p == NULL)
        return US_E_NOMEM;
    *ret = p;
    return US_OK;
}

static void ref_buf_free(struct us_backend *be, void *p)
{
    free(p);
}

static enum us_status ref_copy(struct us_backend *be, void *dst, const void *src, size_t bytes)
{
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return US_OK;
}

static enum us_status ref_sync(struct us_backend *be)
{
    return US_OK;
}

/* Counts that the init functions left, to bytes. */
static void size_op(struct usi_ref_op *op)
{
    int64_t floats = op->taps * op->n_in * op->n_out + op->n_bias + 2 * op->n_tail;
    op->base.packed_bytes = (size_t)floats * sizeof(float);
    op->base.scratch_bytes = op->taps > 0 ? (size_t)op->n_out * sizeof(double) : 0;
}

#define US_OP(name)                                                                                \
    static enum us_status ref_##name##_plan(struct us_backend *be,                                 \
                                            const struct us_##name##_desc *desc,                   \
                                            struct us_op **ret, struct us_err *err)                \
    {                                                                                              \
        US_TRY(us_##name##_check(desc, err));                                                      \
        struct usi_ref_op *op = calloc(1, sizeof(*op));                                            \
        if (op == NULL)                                                                            \
            return us_fail(err, US_E_NOMEM, "no memory for an op");                                \
        op->base.kind = US_OP_##name;                                                              \
        op->d.name = *desc;                                                                        \
        enum us_status s = usi_ref_##name##_init(op, err);                                         \
        if (s != US_OK) {                                                                          \
            free(op);                                                                              \
            return s;                                                                              \
        }                                                                                          \
        size_op(op);                                                                               \
        *ret = &op->base;                                                                          \
        return US_OK;                                                                              \
    }
#include "us_ops.def"
#undef US_OP

static void ref_op_free(struct us_backend *be, struct us_op *op)
{
    free(op);
}

/* Canonical [out, in, tap] or [in, out, tap] to [tap][in][out]. */
static void pack_taps(const struct usi_ref_op *op, const float *w, float *dst)
{
    for (int64_t t = 0; t < op->taps; t++)
        for (int64_t ci = 0; ci < op->n_in; ci++)
            for (int64_t co = 0; co < op->n_out; co++) {
                int64_t pair = op->in_first ? ci * op->n_out + co : co * op->n_in + ci;
                *dst++ = w[pair * op->taps + t];
            }
}

static enum us_status ref_op_pack(struct us_backend *be, const struct us_op *base,
                                  const struct us_op_weights *w, void *packed)
{
    const struct usi_ref_op *op = (const struct usi_ref_op *)(const void *)base;
    float *p = packed;
    if ((op->taps > 0 && w->w == NULL) || (op->n_bias > 0 && w->b == NULL) ||
        (op->n_tail > 0 && (w->tail_scale == NULL || w->tail_shift == NULL)))
        return US_E_ARG;
    pack_taps(op, w->w, p);
    p += op->taps * op->n_in * op->n_out;
    US_TRY(ref_copy(be, p, w->b, (size_t)op->n_bias * sizeof(float)));
    p += op->n_bias;
    US_TRY(ref_copy(be, p, w->tail_scale, (size_t)op->n_tail * sizeof(float)));
    p += op->n_tail;
    return ref_copy(be, p, w->tail_shift, (size_t)op->n_tail * sizeof(float));
}

static enum us_status ref_op_bind(struct us_backend *be, const struct us_op *base,
                                  const struct us_op_bufs *bufs, struct us_bound **ret)
{
    const struct usi_ref_op *op = (const struct usi_ref_op *)(const void *)base;
    if (bufs->in[0] == NULL || (op->in2 && bufs->in[1] == NULL) || bufs->out == NULL ||
        (op->out2 && bufs->out2 == NULL) || (base->packed_bytes > 0 && bufs->packed == NULL) ||
        (base->scratch_bytes > 0 && bufs->scratch == NULL) ||
        (base->kind == US_OP_latent && bufs->noise == NULL))
        return US_E_ARG;
    struct us_bound *b = malloc(sizeof(*b));
    if (b == NULL)
        return US_E_NOMEM;
    b->op = op;
    b->bufs = *bufs;
    *ret = b;
    return US_OK;
}

static void ref_bound_free(struct us_backend *be, struct us_bound *b)
{
    free(b);
}

static enum us_status ref_run(struct us_backend *be, struct us_bound *b)
{
    const struct us_map *out = &b->op->out;
    const struct us_rect *r = &out->rect;
    for (int32_t n = 0; n < out->n; n++)
        for (int32_t y = r->y0; y < r->y0 + r->h; y++)
            for (int32_t x = r->x0; x < r->x0 + r->w; x++)
                b->op->pixel(b->op, &b->bufs, n, y, x);
    return US_OK;
}

static const struct us_backend_ops ref_ops = {
    .name = "ref",
    .train = &us_ref_train_ops,
    .has_dtype = ref_has_dtype,
    .free = ref_free,
    .thread_init = ref_thread_init,
    .buf_alloc = ref_buf_alloc,
    .buf_free = ref_buf_free,
    .copy_in = ref_copy,
    .copy_out = ref_copy,
    .sync = ref_sync,
#define US_OP(name) .name##_plan = ref_##name##_plan,
#include "us_ops.def"
#undef US_OP
    .op_free = ref_op_free,
    .op_pack = ref_op_pack,
    .op_bind = ref_op_bind,
    .bound_free = ref_bound_free,
    .run = ref_run,
};

enum us_status us_ref_open(struct us_backend **ret, struct us_err *err)
{
    struct us_backend *be = calloc(1, sizeof(*be));
    if (be == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the reference backend");
    be->base.ops = &ref_ops;
    *ret = be;
    return US_OK;
}
