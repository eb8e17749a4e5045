/*
 * Training's convolutions on the cpu backend (us_train_ops.h, model-spec 2).
 *
 * The transposed convolution from [h, w] to [2h, 2w] is the backward-data of the stride-2
 * convolution from [2h, 2w] to [h, w], with the state dict's weights as they stand: [in, out, 3, 3]
 * is that convolution's [oc, ic, k, k]. So
 *
 *   its forward          = backward-data of the stride-2 convolution, plus the bias
 *   its backward-data    = forward of the stride-2 convolution
 *   its backward-weights = backward-weights, the two maps in exchanged roles
 *
 * which avoids oneDNN's transposed weight gradient, 15 times slower (performance.md 2). Its forward
 * comes out in f32, so that the bias is added before the one rounding.
 */
#include <stdlib.h>
#include <string.h>

#include "us_cpu_dnn_train.h"
#include "us_cpu_train.h"
#include "us_cpu_train_kernels.h"

/* First member: base, so that the two pointers convert into each other. */
struct cpu_tconv {
    struct us_tconv base;
    struct us_tconv_desc d;
    struct usi_dnn_tconv *dnn;
    struct us_ew out; /* the output map */
    size_t bias_at;   /* in packed */
    size_t sums_at;   /* in scratch: the bias's gradient of one call */
    size_t stage_at;  /* in scratch: a transposed convolution's output before the bias */
};

struct us_tconv_ctx {
    const struct cpu_tconv *conv;
    struct usi_dnn_tcall *call;
    char *scratch;
};

/* The convolution that oneDNN computes. */
static struct usi_dnn_tconv_spec spec_of(const struct us_tconv_desc *d)
{
    const struct us_map *src = d->transposed ? &d->out : &d->in;
    const struct us_map *dst = d->transposed ? &d->in : &d->out;
    struct usi_dnn_tconv_spec p = {
        .n = src->n,
        .ic = src->c,
        .oc = dst->c,
        .k = d->k,
        .stride = d->stride,
        .pad = d->pad,
        .ih = src->full_h,
        .iw = src->full_w,
        .oh = dst->full_h,
        .ow = dst->full_w,
        .type = d->in.dtype,
        .dst = dst->dtype,
        .diff_src = d->transposed ? US_F32 : src->dtype,
        .bias = !d->transposed,
        .forward = true,
        .backward = d->in.dtype == d->out.dtype,
    };
    return p;
}

static enum us_status check_types(struct us_backend *be, const struct us_tconv_desc *d,
                                  struct us_err *err)
{
    if (!us_backend_ops(be)->has_dtype(be, d->in.dtype))
        return us_fail(err, US_E_UNSUPPORTED, "this processor does not multiply bf16");
    if (d->in.dtype != d->out.dtype && (d->transposed || d->out.dtype != US_F32))
        return us_fail(err, US_E_UNSUPPORTED,
                       "a convolution's output has its input's type, or is f32");
    US_TRY(usi_cpu_limits(&d->in, d->k, err));
    return usi_cpu_limits(&d->out, d->k, err);
}

/* Behind what oneDNN needs: the bias in packed; sums and the staged output in scratch. */
static void lay_out(struct cpu_tconv *c)
{
    const struct us_tconv_desc *d = &c->d;
    bool staged = d->transposed && d->out.dtype != US_F32;
    c->bias_at = usi_cpu_aligned(usi_dnn_tconv_packed_bytes(c->dnn));
    c->base.packed_bytes = c->bias_at + (size_t)d->out.c * sizeof(float);
    c->sums_at = usi_cpu_aligned(usi_dnn_tconv_scratch_bytes(c->dnn));
    c->stage_at = c->sums_at + usi_cpu_aligned(2 * (size_t)d->out.c * sizeof(double));
    c->base.scratch_bytes =
        c->stage_at + (staged ? (size_t)us_map_count(&d->out) * sizeof(float) : 0);
}

enum us_status usi_cpu_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                  struct us_tconv **ret, struct us_err *err)
{
    US_TRY(us_tconv_check(d, err));
    US_TRY(check_types(be, d, err));
    struct cpu_tconv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->d = *d;
    c->out = (struct us_ew){d->out.dtype, us_map_count(&d->out) / d->out.c, d->out.c};
    const struct usi_dnn_tconv_spec spec = spec_of(d);
    enum us_status s = usi_dnn_tconv_new(be->dnn, &spec, &c->dnn, err);
    if (s != US_OK) {
        free(c);
        return s;
    }
    lay_out(c);
    c->base.flops = 2.0 * (double)spec.n * spec.oh * spec.ow * spec.oc * spec.ic * d->k * d->k;
    *ret = &c->base;
    return US_OK;
}

void usi_cpu_tconv_free(struct us_backend *be, struct us_tconv *conv)
{
    struct cpu_tconv *c = (struct cpu_tconv *)(void *)conv;
    if (c == NULL)
        return;
    usi_dnn_tconv_free(c->dnn);
    free(c);
}

enum us_status usi_cpu_tconv_bind(struct us_backend *be, const struct us_tconv *conv, void *scratch,
                                  struct us_tconv_ctx **ret)
{
    const struct cpu_tconv *c = (const struct cpu_tconv *)(const void *)conv;
    if (scratch == NULL)
        return US_E_ARG;
    struct us_tconv_ctx *ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL)
        return US_E_NOMEM;
    ctx->conv = c;
    ctx->scratch = scratch;
    enum us_status s = usi_dnn_tcall_new(c->dnn, scratch, &ctx->call);
    if (s != US_OK) {
        free(ctx);
        return s;
    }
    *ret = ctx;
    return US_OK;
}

void usi_cpu_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx)
{
    if (ctx == NULL)
        return;
    usi_dnn_tcall_free(ctx->call);
    free(ctx);
}

static const float *bias_of(const struct cpu_tconv *c, const void *packed)
{
    return (const float *)(const void *)((const char *)packed + c->bias_at);
}

enum us_status usi_cpu_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                  const float *b, void *packed)
{
    memcpy((char *)packed + ctx->conv->bias_at, b, (size_t)ctx->conv->d.out.c * sizeof(*b));
    return usi_dnn_tcall_pack(ctx->call, w, packed);
}

enum us_status usi_cpu_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                 const void *packed, const void *x, void *y)
{
    const struct cpu_tconv *c = ctx->conv;
    if (!c->d.transposed)
        return usi_dnn_tcall_forward(ctx->call, packed, bias_of(c, packed), x, y);
    void *stage = c->out.dtype == US_F32 ? y : ctx->scratch + c->stage_at;
    US_TRY(usi_dnn_tcall_data(ctx->call, packed, x, stage));
    be->kern->train->bias[c->out.dtype](&c->out, stage, bias_of(c, packed), y);
    return US_OK;
}

enum us_status usi_cpu_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                      const void *packed, const void *dy, void *dx)
{
    if (ctx->conv->d.transposed)
        return usi_dnn_tcall_forward(ctx->call, packed, NULL, dy, dx);
    return usi_dnn_tcall_data(ctx->call, packed, dy, dx);
}

enum us_status usi_cpu_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                         const void *x, const void *dy, float *dw, float *db)
{
    const struct cpu_tconv *c = ctx->conv;
    void *sums = ctx->scratch + c->sums_at;
    if (c->d.transposed) {
        double *part = sums;
        US_TRY(usi_dnn_tcall_weights(ctx->call, dy, x, dw, NULL));
        be->kern->train->bn_stats[c->out.dtype](&c->out, dy, part);
        for (int32_t i = 0; i < c->d.out.c; i++)
            db[i] += (float)part[i];
        return US_OK;
    }
    float *part = sums;
    US_TRY(usi_dnn_tcall_weights(ctx->call, x, dy, dw, part));
    for (int32_t i = 0; i < c->d.out.c; i++)
        db[i] += part[i];
    return US_OK;
}
