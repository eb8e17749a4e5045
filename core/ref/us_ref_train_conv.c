/*
 * Reference convolutions in training: forward, backward to data, backward to weights (model-spec 2;
 * us_tconv_desc). All three walk the same triples (input pixel, tap, output pixel). A convolution
 * and the transposed one differ in which of the two maps is the large one:
 *
 *   large = small * stride - pad + tap
 *
 * so a pass is a gather for each pixel of one map over the taps that meet a pixel of the other.
 *
 * Packed: weights [tap][in][out] for forward | [tap][out][in] for backward-data | bias.
 */
#include "us_ref_train.h"

#include <stdlib.h>
#include <string.h>

struct ref_tconv {
    struct us_tconv base;
    struct us_tconv_desc d;
    int64_t taps, n_w;
};

struct us_tconv_ctx {
    const struct ref_tconv *conv;
    double *scratch;
};

/* The multiply-adds of one direction, each pixel of the small map meeting every tap. */
static double flops_of(const struct us_tconv_desc *d)
{
    const struct us_map *small = d->transposed ? &d->in : &d->out;
    return 2.0 * (double)us_map_count(small) * (double)(d->transposed ? d->out.c : d->in.c) *
           (double)d->k * (double)d->k;
}

enum us_status usi_ref_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                  struct us_tconv **ret, struct us_err *err)
{
    US_TRY(us_tconv_check(d, err));
    US_TRY(usi_ref_need_f32("in", &d->in, err));
    US_TRY(usi_ref_need_f32("out", &d->out, err));
    struct ref_tconv *conv = calloc(1, sizeof(*conv));
    if (conv == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    conv->d = *d;
    conv->taps = (int64_t)d->k * d->k;
    conv->n_w = conv->taps * d->in.c * d->out.c;
    conv->base.packed_bytes = (size_t)(2 * conv->n_w + d->out.c) * sizeof(float);
    /* The weights' gradient is summed in double, and is larger than a pixel of either map. */
    conv->base.scratch_bytes = (size_t)(conv->n_w + d->out.c) * sizeof(double);
    conv->base.flops = flops_of(d);
    *ret = &conv->base;
    return US_OK;
}

void usi_ref_tconv_free(struct us_backend *be, struct us_tconv *conv)
{
    free(conv);
}

enum us_status usi_ref_tconv_bind(struct us_backend *be, const struct us_tconv *conv, void *scratch,
                                  struct us_tconv_ctx **ret)
{
    if (scratch == NULL)
        return US_E_ARG;
    struct us_tconv_ctx *ctx = malloc(sizeof(*ctx));
    if (ctx == NULL)
        return US_E_NOMEM;
    ctx->conv = (const struct ref_tconv *)(const void *)conv;
    ctx->scratch = scratch;
    *ret = ctx;
    return US_OK;
}

void usi_ref_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx)
{
    free(ctx);
}

/* Where a weight stands in the state dict. */
static int64_t canonical(const struct ref_tconv *c, int64_t tap, int64_t ci, int64_t co)
{
    int64_t pair = c->d.transposed ? ci * c->d.out.c + co : co * c->d.in.c + ci;
    return pair * c->taps + tap;
}

enum us_status usi_ref_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                  const float *b, void *packed)
{
    const struct ref_tconv *c = ctx->conv;
    float *fwd = packed, *bwd = fwd + c->n_w, *bias = bwd + c->n_w;
    for (int64_t t = 0; t < c->taps; t++)
        for (int64_t ci = 0; ci < c->d.in.c; ci++)
            for (int64_t co = 0; co < c->d.out.c; co++) {
                float v = w[canonical(c, t, ci, co)];
                fwd[(t * c->d.in.c + ci) * c->d.out.c + co] = v;
                bwd[(t * c->d.out.c + co) * c->d.in.c + ci] = v;
            }
    memcpy(bias, b, (size_t)c->d.out.c * sizeof(*bias));
    return US_OK;
}

/* Along one axis, the position in the other map that tap k joins with `at`; -1: none. */
static int32_t partner(const struct us_tconv_desc *d, bool at_is_small, int32_t at, int32_t k,
                       int32_t size)
{
    int64_t p = (int64_t)at * d->stride - d->pad + k;
    if (!at_is_small) {
        int64_t scaled = (int64_t)at + d->pad - k;
        if (scaled < 0 || scaled % d->stride != 0)
            return -1;
        p = scaled / d->stride;
    }
    return p >= 0 && p < size ? (int32_t)p : -1;
}

/* Index of the pixel of `other` that a tap joins with pixel (y, x) of item n; -1: none. */
static int64_t partner_pixel(const struct us_tconv_desc *d, bool at_is_small, int32_t n, int32_t y,
                             int32_t x, int64_t tap, const struct us_map *other)
{
    int32_t oy = partner(d, at_is_small, y, (int32_t)(tap / d->k), other->full_h);
    int32_t ox = partner(d, at_is_small, x, (int32_t)(tap % d->k), other->full_w);
    return oy < 0 || ox < 0 ? -1 : us_map_index(other, n, oy, ox);
}

/* acc[j] += sum over i of x[i] * w[i][j] */
static void add_pixel(const float *x, int64_t n_x, const float *w, int64_t n_acc, double *acc)
{
    for (int64_t i = 0; i < n_x; i++, w += n_acc) {
        double v = (double)x[i];
        for (int64_t j = 0; j < n_acc; j++)
            acc[j] += v * (double)w[j];
    }
}

/* dst = sum over taps of src . w[tap] (+ bias). */
static void gather(const struct us_tconv_ctx *ctx, bool dst_is_small, const struct us_map *from,
                   const float *src, const float *w, const float *bias, const struct us_map *to,
                   float *dst)
{
    const struct ref_tconv *c = ctx->conv;
    double *acc = ctx->scratch;
    for (int32_t n = 0; n < to->n; n++)
        for (int32_t y = 0; y < to->full_h; y++)
            for (int32_t x = 0; x < to->full_w; x++, dst += to->c) {
                for (int32_t j = 0; j < to->c; j++)
                    acc[j] = bias != NULL ? (double)bias[j] : 0.0;
                for (int64_t t = 0; t < c->taps; t++) {
                    int64_t p = partner_pixel(&c->d, dst_is_small, n, y, x, t, from);
                    if (p >= 0)
                        add_pixel(src + p, from->c, w + t * from->c * to->c, to->c, acc);
                }
                for (int32_t j = 0; j < to->c; j++)
                    dst[j] = (float)acc[j];
            }
}

enum us_status usi_ref_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                 const void *packed, const void *x, void *y)
{
    const struct us_tconv_desc *d = &ctx->conv->d;
    const float *w = packed;
    gather(ctx, !d->transposed, &d->in, x, w, w + 2 * ctx->conv->n_w, &d->out, y);
    return US_OK;
}

enum us_status usi_ref_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                      const void *packed, const void *dy, void *dx)
{
    const struct us_tconv_desc *d = &ctx->conv->d;
    gather(ctx, d->transposed, &d->out, dy, (const float *)packed + ctx->conv->n_w, NULL, &d->in,
           dx);
    return US_OK;
}

/* dw[tap][ci][co] += x[ci] * dy[co], db[co] += dy[co] for one output pixel. */
static void add_outer(const struct ref_tconv *c, int32_t n, int32_t y, int32_t x, const float *in,
                      const float *dy, double *dw, double *db)
{
    int64_t n_in = c->d.in.c, n_out = c->d.out.c;
    for (int64_t t = 0; t < c->taps; t++) {
        int64_t p = partner_pixel(&c->d, !c->d.transposed, n, y, x, t, &c->d.in);
        double *row = dw + t * n_in * n_out;
        for (int64_t ci = 0; p >= 0 && ci < n_in; ci++, row += n_out) {
            double v = (double)in[p + ci];
            for (int64_t co = 0; co < n_out; co++)
                row[co] += v * (double)dy[co];
        }
    }
    for (int64_t co = 0; co < n_out; co++)
        db[co] += (double)dy[co];
}

enum us_status usi_ref_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                         const void *x, const void *dy, float *dw, float *db)
{
    const struct ref_tconv *c = ctx->conv;
    const struct us_map *out = &c->d.out;
    const float *g = dy;
    double *sum = ctx->scratch, *sum_b = sum + c->n_w;
    for (int64_t i = 0; i < c->n_w + out->c; i++)
        sum[i] = 0.0;
    for (int32_t n = 0; n < out->n; n++)
        for (int32_t oy = 0; oy < out->full_h; oy++)
            for (int32_t ox = 0; ox < out->full_w; ox++, g += out->c)
                add_outer(c, n, oy, ox, x, g, sum, sum_b);
    for (int64_t t = 0; t < c->taps; t++)
        for (int64_t ci = 0; ci < c->d.in.c; ci++)
            for (int64_t co = 0; co < out->c; co++)
                dw[canonical(c, t, ci, co)] += (float)*sum++;
    for (int64_t co = 0; co < out->c; co++)
        db[co] += (float)sum_b[co];
    return US_OK;
}
