/*
 * The cpu backend's training half: the table (us_train_ops.h). Convolutions stand in
 * us_cpu_train_conv.c, vector code in us_cpu_train_kernels.c. What has the size of a channel
 * vector or of the head's few planes is the reference's own code: O(c) work in double cannot be
 * made faster to any effect, and cannot differ.
 */
#include "us_cpu_train.h"

#include <string.h>

#include "ref/us_ref_train.h"
#include "us_cpu_train_kernels.h"

static const struct usi_cpu_train_kernels *kernels(const struct us_backend *be)
{
    return be->kern->train;
}

static int64_t count(const struct us_ew *e)
{
    return e->n_px * e->c;
}

/* ---- batch norm + ELU ---- */

static enum us_status cpu_bn_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                   double *part)
{
    kernels(be)->bn_stats[e->dtype](e, x, part);
    return US_OK;
}

static enum us_status cpu_bn_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                     const struct us_bn_affine *aff, void *h)
{
    kernels(be)->bn_elu_fwd[e->dtype](e, x, aff, h);
    return US_OK;
}

static enum us_status cpu_bn_elu_bwd_stats(struct us_backend *be, const struct us_ew *e,
                                           const void *x, const void *dh,
                                           const struct us_bn_affine *aff, double *part)
{
    kernels(be)->bn_elu_bwd_stats[e->dtype](e, x, dh, aff, part);
    return US_OK;
}

static enum us_status cpu_bn_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                     const void *dh, const struct us_bn_affine *aff,
                                     const struct us_bn_grad *g, void *dx, bool add)
{
    kernels(be)->bn_elu_bwd[e->dtype][add](e, x, dh, aff, g, dx);
    return US_OK;
}

/* ---- activations ---- */

static enum us_status cpu_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                  void *y)
{
    kernels(be)->elu_fwd[e->dtype](x, y, count(e));
    return US_OK;
}

static enum us_status cpu_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *y,
                                  const void *dy, void *dx)
{
    kernels(be)->elu_bwd[e->dtype](y, dy, dx, count(e));
    return US_OK;
}

static enum us_status cpu_dropout2d(struct us_backend *be, const struct us_ew *e, void *x, float p,
                                    const struct us_draw *draw, int32_t items, uint32_t node)
{
    const struct us_ew one = {e->dtype, e->n_px / items, e->c};
    size_t bytes = (size_t)count(&one) * us_dtype_bytes(e->dtype);
    for (int32_t i = 0; i < items; i++)
        kernels(be)->dropout2d[e->dtype](&one, (char *)x + (size_t)i * bytes, p, &draw[i], node);
    return US_OK;
}

static enum us_status cpu_glu_fwd(struct us_backend *be, const struct us_ew *e, const void *g,
                                  const void *res, void *out)
{
    kernels(be)->glu_fwd[e->dtype](e, g, res, out);
    return US_OK;
}

static enum us_status cpu_glu_bwd(struct us_backend *be, const struct us_ew *e, const void *g,
                                  const void *dout, void *dg)
{
    kernels(be)->glu_bwd[e->dtype](e, g, dout, dg);
    return US_OK;
}

/* ---- maps ---- */

static void copy_or_add(struct us_backend *be, enum us_dtype dtype, const void *src, void *dst,
                        int64_t n, bool add)
{
    if (add)
        kernels(be)->accumulate[dtype](src, dst, n);
    else
        memcpy(dst, src, (size_t)n * us_dtype_bytes(dtype));
}

static enum us_status cpu_accumulate(struct us_backend *be, const struct us_ew *e, const void *src,
                                     void *dst, bool add)
{
    copy_or_add(be, e->dtype, src, dst, count(e), add);
    return US_OK;
}

static enum us_status cpu_scale(struct us_backend *be, const struct us_ew *e, void *x, float factor)
{
    kernels(be)->scale[e->dtype](x, factor, count(e));
    return US_OK;
}

/* First byte of the rectangle's row y, item n. */
static size_t window_at(const struct us_window *w, int32_t n, int32_t y, enum us_dtype dtype)
{
    int64_t row = (int64_t)n * w->h + w->y0 + y;
    return (size_t)((row * w->w + w->x0) * w->c_total + w->c_offset) * us_dtype_bytes(dtype);
}

static enum us_status cpu_window(struct us_backend *be, enum us_dtype dtype, int32_t items,
                                 int32_t rh, int32_t rw, int32_t c, const void *src,
                                 const struct us_window *from, void *dst,
                                 const struct us_window *to, bool add)
{
    bool dense = from->c_total == c && to->c_total == c; /* a row is one run of elements */
    int32_t runs = dense ? 1 : rw;
    int64_t run = dense ? (int64_t)rw * c : c;
    size_t from_step = (size_t)from->c_total * us_dtype_bytes(dtype);
    size_t to_step = (size_t)to->c_total * us_dtype_bytes(dtype);
    for (int32_t n = 0; n < items; n++)
        for (int32_t y = 0; y < rh; y++) {
            const char *s = (const char *)src + window_at(from, n, y, dtype);
            char *d = (char *)dst + window_at(to, n, y, dtype);
            for (int32_t i = 0; i < runs; i++, s += from_step, d += to_step)
                copy_or_add(be, dtype, s, d, run, add);
        }
    return US_OK;
}

static enum us_status cpu_fill_zero(struct us_backend *be, void *dst, size_t bytes)
{
    if (bytes > 0)
        memset(dst, 0, bytes);
    return US_OK;
}

static enum us_status cpu_convert(struct us_backend *be, const struct us_ew *e, const void *src,
                                  enum us_dtype from, void *dst)
{
    be->kern->convert[from][e->dtype](src, dst, count(e));
    return US_OK;
}

static enum us_status cpu_prior_load(struct us_backend *be, const struct us_ew *e, int32_t items,
                                     const float *prior, void *p)
{
    size_t bytes = (size_t)count(e) * us_dtype_bytes(e->dtype);
    for (int32_t i = 0; i < items; i++)
        kernels(be)->prior_load[e->dtype](e, prior, (char *)p + (size_t)i * bytes);
    return US_OK;
}

static enum us_status cpu_prior_grad(struct us_backend *be, const struct us_ew *e, int32_t items,
                                     const void *dp, float *dprior)
{
    size_t bytes = (size_t)count(e) * us_dtype_bytes(e->dtype);
    for (int32_t i = 0; i < items; i++)
        kernels(be)->prior_grad[e->dtype](e, (const char *)dp + (size_t)i * bytes, dprior);
    return US_OK;
}

/* ---- posterior ---- */

/* Elements of z per item, and where channel 0 of an item's map of c channels lies. */
static int64_t z_count(const struct us_posterior *d)
{
    return (int64_t)d->h * d->w * d->ew.c;
}

static size_t item_at(const struct us_posterior *d, int32_t item, int32_t halves)
{
    return (size_t)(item * z_count(d) * halves) * us_dtype_bytes(d->ew.dtype);
}

/* An HAE's z is the mean half of q; back, dz goes there and the other half of dq is zero. */
static void take_means(const struct us_posterior *d, int32_t items, const char *q, char *z)
{
    size_t bytes = (size_t)d->ew.c * us_dtype_bytes(d->ew.dtype);
    for (int64_t i = 0; i < (int64_t)items * d->h * d->w; i++, q += 2 * bytes, z += bytes)
        memcpy(z, q, bytes);
}

static void give_means(const struct us_posterior *d, int32_t items, const char *dz, char *dq)
{
    size_t bytes = (size_t)d->ew.c * us_dtype_bytes(d->ew.dtype);
    for (int64_t i = 0; i < (int64_t)items * d->h * d->w; i++, dq += 2 * bytes) {
        memset(dq, 0, 2 * bytes);
        if (dz != NULL)
            memcpy(dq, dz + (size_t)i * bytes, bytes);
    }
}

static enum us_status cpu_posterior_fwd(struct us_backend *be, const struct us_posterior *d,
                                        int32_t items, const void *q, const void *p,
                                        const struct us_draw *draw, void *z, double *kl)
{
    if (d->deterministic) {
        take_means(d, items, q, z);
        for (int32_t i = 0; i < items; i++)
            kl[i] = 0.0;
        return US_OK;
    }
    for (int32_t i = 0; i < items; i++) {
        const struct usi_cpu_posterior_args a = {
            .d = d,
            .draw = &draw[i],
            .q = (const char *)q + item_at(d, i, 2),
            .p = (const char *)p + item_at(d, i, 2),
            .z = (char *)z + item_at(d, i, 1),
        };
        kl[i] = kernels(be)->posterior_fwd[d->ew.dtype](&a) / (double)z_count(d);
    }
    return US_OK;
}

static enum us_status cpu_posterior_bwd(struct us_backend *be, const struct us_posterior *d,
                                        int32_t items, const void *q, const void *p,
                                        const struct us_draw *draw, const void *dz,
                                        const float *coef, void *dq, void *dp)
{
    if (d->deterministic) {
        give_means(d, items, dz, dq);
        return US_OK;
    }
    for (int32_t i = 0; i < items; i++) {
        const struct usi_cpu_posterior_args a = {
            .d = d,
            .draw = &draw[i],
            .q = (const char *)q + item_at(d, i, 2),
            .p = (const char *)p + item_at(d, i, 2),
            .dz = dz == NULL ? NULL : (const char *)dz + item_at(d, i, 1),
            .per = (float)((double)coef[i] / (double)z_count(d)),
            .dq = (char *)dq + item_at(d, i, 2),
            .dp = (char *)dp + item_at(d, i, 2),
        };
        kernels(be)->posterior_bwd[d->ew.dtype](&a);
    }
    return US_OK;
}

/* ---- the end of a step ---- */

static enum us_status cpu_reduce_lanes(struct us_backend *be, const float *lanes, int64_t stride,
                                       int32_t n_lanes, int64_t n, float *dst, double *sq)
{
    *sq = kernels(be)->reduce_lanes(lanes, stride, n_lanes, n, dst);
    return US_OK;
}

static enum us_status cpu_adamax(struct us_backend *be, const struct us_adamax *a, int64_t n,
                                 const float *g, float *m, float *u, float *p)
{
    kernels(be)->adamax(a, n, g, m, u, p);
    return US_OK;
}

const struct us_train_ops us_cpu_train_ops = {
    .conv_plan = usi_cpu_tconv_plan,
    .conv_free = usi_cpu_tconv_free,
    .conv_bind = usi_cpu_tconv_bind,
    .conv_unbind = usi_cpu_tconv_unbind,
    .conv_pack = usi_cpu_tconv_pack,
    .conv_fwd = usi_cpu_tconv_fwd,
    .conv_bwd_data = usi_cpu_tconv_bwd_data,
    .conv_bwd_weights = usi_cpu_tconv_bwd_weights,
    .bn_stats = cpu_bn_stats,
    .bn_finish = usi_ref_bn_finish,
    .bn_elu_fwd = cpu_bn_elu_fwd,
    .bn_elu_bwd_stats = cpu_bn_elu_bwd_stats,
    .bn_bwd_finish = usi_ref_bn_bwd_finish,
    .bn_elu_bwd = cpu_bn_elu_bwd,
    .elu_fwd = cpu_elu_fwd,
    .elu_bwd = cpu_elu_bwd,
    .dropout2d = cpu_dropout2d,
    .glu_fwd = cpu_glu_fwd,
    .glu_bwd = cpu_glu_bwd,
    .accumulate = cpu_accumulate,
    .scale = cpu_scale,
    .window = cpu_window,
    .fill_zero = cpu_fill_zero,
    .convert = cpu_convert,
    .prior_load = cpu_prior_load,
    .prior_grad = cpu_prior_grad,
    .posterior_fwd = cpu_posterior_fwd,
    .kl_coef = usi_ref_kl_coef,
    .posterior_bwd = cpu_posterior_bwd,
    .likelihood = usi_ref_likelihood,
    .reduce_lanes = cpu_reduce_lanes,
    .adamax = cpu_adamax,
};
