/*
 * The CUDA backend's training half: the table (us_train_ops.h), batch norm and the passes over
 * maps. Every op is one kernel, two where a sum is followed by what it is for; convolutions are in
 * us_cuda_train_conv.c, losses and the end of a step in us_cuda_train_loss.c.
 */
#include "us_cuda_train.h"

/* ---- pieces -------------------------------------------------------------------------------- */

/* Whether n elements from p on are accesses of up to 16 bytes. */
static bool aligned(const void *p, enum us_dtype dtype, int32_t n)
{
    size_t bytes = (size_t)n * us_dtype_bytes(dtype);
    return (uintptr_t)p % (bytes > 16 ? 16 : bytes) == 0;
}

struct us_k_dense usi_cuda_dense(const struct us_ew *e, int32_t widest, const void *const *p,
                                 int32_t n)
{
    struct us_k_dense m = {e->n_px, e->c, 1, e->dtype};
    for (int32_t vec = widest; vec >= 4 && m.vec == 1; vec /= 2) {
        bool fits = e->c % vec == 0;
        for (int32_t i = 0; i < n; i++)
            fits = fits && aligned(p[i], e->dtype, vec);
        m.vec = fits ? vec : 1;
    }
    return m;
}

#define DENSE(e, widest, ...)                                                                      \
    usi_cuda_dense(e, widest, (const void *const[]){__VA_ARGS__},                                  \
                   (int32_t)US_COUNT(((const void *const[]){__VA_ARGS__})))

/* 16 bytes of channels. */
static int32_t wide(const struct us_ew *e)
{
    return e->dtype == US_BF16 ? 8 : 4;
}

/* The same elements where channels mean nothing. */
static struct us_ew flat(const struct us_ew *e)
{
    int64_t n = e->n_px * e->c;
    if (n % US_K_VEC == 0)
        return (struct us_ew){e->dtype, n / US_K_VEC, US_K_VEC};
    return (struct us_ew){e->dtype, n, 1};
}

/* ---- batch norm + ELU ---------------------------------------------------------------------- */

static enum us_status cuda_bn_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                    double *part)
{
    const struct us_k_bn_stats k = {.m = DENSE(e, 4, x), .x = x, .part = part};
    return be->gpu->kernels->bn_stats(be->gpu, &k);
}

static enum us_status cuda_bn_finish(struct us_backend *be, int32_t c, const double *parts,
                                     int32_t n_parts, int64_t count, const float *gamma,
                                     const float *beta, struct us_bn_affine *aff,
                                     float *running_mean, float *running_var)
{
    const struct us_k_bn_finish k = {.c = c,
                                     .n_parts = n_parts,
                                     .count = count,
                                     .parts = parts,
                                     .gamma = gamma,
                                     .beta = beta,
                                     .aff = *aff,
                                     .running_mean = running_mean,
                                     .running_var = running_var};
    return be->gpu->kernels->bn_finish(be->gpu, &k);
}

static enum us_status cuda_bn_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                      const struct us_bn_affine *aff, void *h)
{
    const struct us_k_bn_elu k = {.m = DENSE(e, wide(e), x, h, aff->scale, aff->shift),
                                  .x = x,
                                  .scale = aff->scale,
                                  .shift = aff->shift,
                                  .h = h};
    return be->gpu->kernels->bn_elu(be->gpu, &k);
}

static enum us_status cuda_bn_elu_bwd_stats(struct us_backend *be, const struct us_ew *e,
                                            const void *x, const void *dh,
                                            const struct us_bn_affine *aff, double *part)
{
    const struct us_k_bn_bwd_stats k = {
        .m = DENSE(e, 4, x, dh, aff->mean, aff->inv_std, aff->scale, aff->shift),
        .x = x,
        .dh = dh,
        .aff = *aff,
        .part = part};
    return be->gpu->kernels->bn_bwd_stats(be->gpu, &k);
}

static enum us_status cuda_bn_bwd_finish(struct us_backend *be, int32_t c, const double *parts,
                                         int32_t n_parts, int64_t count, const float *gamma,
                                         const struct us_bn_affine *aff, struct us_bn_grad *g,
                                         float *dgamma, float *dbeta)
{
    const struct us_k_bn_bwd_finish k = {.c = c,
                                         .n_parts = n_parts,
                                         .count = count,
                                         .parts = parts,
                                         .gamma = gamma,
                                         .aff = *aff,
                                         .grad = *g,
                                         .dgamma = dgamma,
                                         .dbeta = dbeta};
    return be->gpu->kernels->bn_bwd_finish(be->gpu, &k);
}

static enum us_status cuda_bn_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                      const void *dh, const struct us_bn_affine *aff,
                                      const struct us_bn_grad *g, void *dx, bool add)
{
    const struct us_k_bn_bwd k = {
        .m = DENSE(e, wide(e), x, dh, dx, aff->scale, aff->shift, g->a, g->b, g->d),
        .x = x,
        .dh = dh,
        .scale = aff->scale,
        .shift = aff->shift,
        .grad = *g,
        .dx = dx,
        .add = add};
    return be->gpu->kernels->bn_bwd(be->gpu, &k);
}

/* ---- activations --------------------------------------------------------------------------- */

static enum us_status cuda_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                   void *y)
{
    const struct us_ew f = flat(e);
    const struct us_k_elu_fwd k = {.m = DENSE(&f, wide(e), x, y), .x = x, .y = y};
    return be->gpu->kernels->elu_fwd(be->gpu, &k);
}

static enum us_status cuda_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *y,
                                   const void *dy, void *dx)
{
    const struct us_ew f = flat(e);
    const struct us_k_elu_bwd k = {.m = DENSE(&f, wide(e), y, dy, dx), .y = y, .dy = dy, .dx = dx};
    return be->gpu->kernels->elu_bwd(be->gpu, &k);
}

static enum us_status cuda_dropout2d(struct us_backend *be, const struct us_ew *e, void *x, float p,
                                     const struct us_draw *draw, int32_t items, uint32_t node)
{
    const struct us_k_drop k = {.m = DENSE(e, wide(e), x),
                                .px = e->n_px / items,
                                .items = items,
                                .x = x,
                                .p = p,
                                .draw = draw,
                                .node = node};
    return be->gpu->kernels->drop(be->gpu, &k);
}

static enum us_status cuda_glu_fwd(struct us_backend *be, const struct us_ew *e, const void *g,
                                   const void *res, void *out)
{
    const struct us_k_glu_fwd k = {
        .m = DENSE(e, wide(e), g, res, out), .g = g, .res = res, .out = out};
    return be->gpu->kernels->glu_fwd(be->gpu, &k);
}

static enum us_status cuda_glu_bwd(struct us_backend *be, const struct us_ew *e, const void *g,
                                   const void *dout, void *dg)
{
    const struct us_k_glu_bwd k = {
        .m = DENSE(e, wide(e), g, dout, dg), .g = g, .dout = dout, .dg = dg};
    return be->gpu->kernels->glu_bwd(be->gpu, &k);
}

/* ---- sums, copies -------------------------------------------------------------------------- */

static enum us_status cuda_accumulate(struct us_backend *be, const struct us_ew *e, const void *src,
                                      void *dst, bool add)
{
    if (!add)
        return be->gpu->ops->copy(be->gpu, dst, src,
                                  (size_t)(e->n_px * e->c) * us_dtype_bytes(e->dtype));
    const struct us_ew f = flat(e);
    const struct us_k_accumulate k = {
        .m = DENSE(&f, wide(e), src, dst), .src = src, .dst = dst, .add = add};
    return be->gpu->kernels->accumulate(be->gpu, &k);
}

static enum us_status cuda_scale(struct us_backend *be, const struct us_ew *e, void *x,
                                 float factor)
{
    const struct us_ew f = flat(e);
    const struct us_k_scale k = {.m = DENSE(&f, wide(e), x), .x = x, .factor = factor};
    return be->gpu->kernels->scale(be->gpu, &k);
}

/* The rectangle's first element, and the strides of the whole. */
static int64_t window_at(const struct us_window *w)
{
    return ((int64_t)w->y0 * w->w + w->x0) * w->c_total + w->c_offset;
}

static enum us_status cuda_window(struct us_backend *be, enum us_dtype dtype, int32_t items,
                                  int32_t rh, int32_t rw, int32_t c, const void *src,
                                  const struct us_window *from, void *dst,
                                  const struct us_window *to, bool add)
{
    size_t bytes = us_dtype_bytes(dtype);
    const char *s = (const char *)src + (size_t)window_at(from) * bytes;
    char *d = (char *)dst + (size_t)window_at(to) * bytes;
    /* A piece's width must divide the channels and both steps from pixel to pixel. */
    const struct us_ew e = {dtype, (int64_t)rh * rw, c | from->c_total | to->c_total};
    const struct us_k_dense m = DENSE(&e, dtype == US_BF16 ? 8 : 4, s, d);
    int64_t from_row = (int64_t)from->w * from->c_total, to_row = (int64_t)to->w * to->c_total;
    const struct us_k_window k = {
        .grid = {items, rh, rw, c, m.vec},
        .from = {s, from->h * from_row, from_row, from->c_total, 0, 0, rh, rw, dtype},
        .to = {d, to->h * to_row, to_row, to->c_total, dtype},
        .add = add};
    return rh > 0 && rw > 0 && c > 0 ? be->gpu->kernels->window(be->gpu, &k) : US_OK;
}

static enum us_status cuda_fill_zero(struct us_backend *be, void *dst, size_t bytes)
{
    return be->gpu->ops->zero(be->gpu, dst, bytes);
}

static enum us_status cuda_convert(struct us_backend *be, const struct us_ew *e, const void *src,
                                   enum us_dtype from, void *dst)
{
    const struct us_ew to = flat(e), of = {from, to.n_px, to.c};
    struct us_k_convert k = {.m = DENSE(&to, 8, dst), .src = src, .from = from, .dst = dst};
    int32_t other = DENSE(&of, 8, src).vec;
    k.m.vec = other < k.m.vec ? other : k.m.vec;
    return be->gpu->kernels->convert(be->gpu, &k);
}

static enum us_status cuda_prior_load(struct us_backend *be, const struct us_ew *e, int32_t items,
                                      const float *prior, void *p)
{
    const struct us_k_prior_load k = {
        .m = {items * e->n_px, e->c, 1, e->dtype}, .px = e->n_px, .prior = prior, .p = p};
    return be->gpu->kernels->prior_load(be->gpu, &k);
}

static enum us_status cuda_prior_grad(struct us_backend *be, const struct us_ew *e, int32_t items,
                                      const void *dp, float *dprior)
{
    const struct us_k_prior_grad k = {
        .px = e->n_px, .c = e->c, .items = items, .dtype = e->dtype, .dp = dp, .dprior = dprior};
    return be->gpu->kernels->prior_grad(be->gpu, &k);
}

const struct us_train_ops usi_cuda_train_ops = {
    .batched = true,
    .conv_plan = usi_cuda_tconv_plan,
    .conv_free = usi_cuda_tconv_free,
    .conv_bind = usi_cuda_tconv_bind,
    .conv_unbind = usi_cuda_tconv_unbind,
    .conv_pack = usi_cuda_tconv_pack,
    .conv_fwd = usi_cuda_tconv_fwd,
    .conv_bwd_data = usi_cuda_tconv_bwd_data,
    .conv_bwd_weights = usi_cuda_tconv_bwd_weights,
    .bn_stats = cuda_bn_stats,
    .bn_finish = cuda_bn_finish,
    .bn_elu_fwd = cuda_bn_elu_fwd,
    .bn_elu_bwd_stats = cuda_bn_elu_bwd_stats,
    .bn_bwd_finish = cuda_bn_bwd_finish,
    .bn_elu_bwd = cuda_bn_elu_bwd,
    .elu_fwd = cuda_elu_fwd,
    .elu_bwd = cuda_elu_bwd,
    .dropout2d = cuda_dropout2d,
    .glu_fwd = cuda_glu_fwd,
    .glu_bwd = cuda_glu_bwd,
    .accumulate = cuda_accumulate,
    .scale = cuda_scale,
    .window = cuda_window,
    .fill_zero = cuda_fill_zero,
    .convert = cuda_convert,
    .prior_load = cuda_prior_load,
    .prior_grad = cuda_prior_grad,
    .posterior_fwd = usi_cuda_posterior_fwd,
    .kl_coef = usi_cuda_kl_coef,
    .posterior_bwd = usi_cuda_posterior_bwd,
    .likelihood = usi_cuda_likelihood,
    .reduce_lanes = usi_cuda_reduce_lanes,
    .adamax = usi_cuda_adamax,
};
