/*
 * Losses and the end of a training step on the CUDA backend (us_train_ops.h).
 */
#include "us_cuda_train.h"

/* Pooled log-variances and their gradients: [items][targets] each. */
#define POOL_COUNT ((size_t)US_MAX_BATCH * US_MAX_TARGETS)

static struct us_ew f32_row(int64_t n)
{
    return n % 4 == 0 ? (struct us_ew){US_F32, n / 4, 4} : (struct us_ew){US_F32, n, 1};
}

/* ---- posterior ----------------------------------------------------------------------------- */

/* The mean half of q and z are windows of each other (an HAE). */
static enum us_status copy_means(struct us_backend *be, const struct us_posterior *d, int32_t items,
                                 const void *from, int32_t from_c, void *to, int32_t to_c)
{
    int32_t rows = items * d->h;
    const struct us_window in = {rows, d->w, from_c, 0, 0, 0};
    const struct us_window out = {rows, d->w, to_c, 0, 0, 0};
    return usi_cuda_train_ops.window(be, d->ew.dtype, 1, rows, d->w, d->ew.c, from, &in, to, &out,
                                     false);
}

static int32_t block_width(const struct us_posterior *d, const void *const *p, int32_t n)
{
    return usi_cuda_dense(&d->ew, 4, p, n).vec;
}

enum us_status usi_cuda_posterior_fwd(struct us_backend *be, const struct us_posterior *d,
                                      int32_t items, const void *q, const void *p,
                                      const struct us_draw *draw, void *z, double *kl)
{
    if (d->deterministic) {
        US_TRY(be->gpu->ops->zero(be->gpu, kl, (size_t)items * sizeof(*kl)));
        return copy_means(be, d, items, q, 2 * d->ew.c, z, d->ew.c);
    }
    const void *const maps[] = {q, p, z};
    const struct us_k_posterior k = {.d = *d,
                                     .items = items,
                                     .vec = block_width(d, maps, (int32_t)US_COUNT(maps)),
                                     .q = q,
                                     .p = p,
                                     .draw = draw,
                                     .z = z,
                                     .kl = kl};
    return be->gpu->kernels->posterior(be->gpu, &k);
}

enum us_status usi_cuda_kl_coef(struct us_backend *be, const struct us_kl_share *d, int32_t items,
                                const double *kl, const float *kl_weight, float *coef)
{
    const struct us_k_kl_coef k = {
        .d = *d, .items = items, .kl = kl, .kl_weight = kl_weight, .coef = coef};
    return be->gpu->kernels->kl_coef(be->gpu, &k);
}

enum us_status usi_cuda_posterior_bwd(struct us_backend *be, const struct us_posterior *d,
                                      int32_t items, const void *q, const void *p,
                                      const struct us_draw *draw, const void *dz, const float *coef,
                                      void *dq, void *dp)
{
    if (d->deterministic) {
        size_t bytes = (size_t)items * (size_t)d->h * (size_t)d->w * 2 * (size_t)d->ew.c;
        US_TRY(be->gpu->ops->zero(be->gpu, dq, bytes * us_dtype_bytes(d->ew.dtype)));
        return dz != NULL ? copy_means(be, d, items, dz, d->ew.c, dq, 2 * d->ew.c) : US_OK;
    }
    const void *const maps[] = {q, p, dz, dq, dp};
    const struct us_k_posterior_bwd k = {.d = *d,
                                         .items = items,
                                         .vec = block_width(d, maps, (int32_t)US_COUNT(maps)),
                                         .q = q,
                                         .p = p,
                                         .dz = dz,
                                         .draw = draw,
                                         .coef = coef,
                                         .dq = dq,
                                         .dp = dp};
    return be->gpu->kernels->posterior_bwd(be->gpu, &k);
}

/* ---- likelihood ---------------------------------------------------------------------------- */

static void set_weights(const struct us_likelihood *d, float grad_weight, double *weight)
{
    double sum = 0.0, px = (double)((int64_t)d->h * d->w);
    for (int32_t c = 0; c < d->targets; c++)
        sum += (double)d->weight[c];
    for (int32_t c = 0; c < d->targets; c++)
        weight[c] = (double)grad_weight * (double)d->weight[c] / (sum * px);
}

/* Log-variances per item: their means first, their gradients last. */
static enum us_status pooled_likelihood(struct us_backend *be, struct us_k_likelihood *k)
{
    struct us_gpu *g = be->gpu;
    if (be->pooled == NULL) { /* once, and never within a recording: see graph_begin */
        void *p = NULL;
        US_TRY(g->ops->alloc(g, 2 * POOL_COUNT * sizeof(double), &p));
        be->pooled = p;
    }
    k->pooled = be->pooled;
    k->pooled_d = be->pooled + POOL_COUNT;
    const struct us_k_pool pool = {
        .d = k->d, .items = k->items, .head = k->head, .pooled = be->pooled};
    const struct us_k_spread spread = {
        .d = k->d, .items = k->items, .pooled_d = k->pooled_d, .dhead = k->dhead};
    US_TRY(g->kernels->pool(g, &pool));
    US_TRY(g->kernels->likelihood(g, k));
    return g->kernels->spread(g, &spread);
}

enum us_status usi_cuda_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                   int32_t items, const float *head, const float *target,
                                   float grad_weight, double *rec, double *se, float *dhead)
{
    if (d->targets < 1 || d->targets > US_MAX_TARGETS || items > US_MAX_BATCH)
        return US_E_ARG;
    struct us_k_likelihood k = {.d = *d,
                                .items = items,
                                .gaussian = d->logvar != US_LOGVAR_NONE && !d->mse,
                                .head = head,
                                .target = target,
                                .rec = rec,
                                .se = se,
                                .dhead = dhead};
    set_weights(d, grad_weight, k.weight);
    if (k.gaussian && d->logvar != US_LOGVAR_PIXELWISE)
        return pooled_likelihood(be, &k);
    return be->gpu->kernels->likelihood(be->gpu, &k);
}

/* ---- the end of a step --------------------------------------------------------------------- */

enum us_status usi_cuda_reduce_lanes(struct us_backend *be, const float *lanes, int64_t stride,
                                     int32_t n_lanes, int64_t n, float *dst, double *sq)
{
    struct us_gpu *g = be->gpu;
    const struct us_k_lanes sum = {
        .lanes = lanes, .stride = stride, .n = n, .n_lanes = n_lanes, .to = dst};
    if (n_lanes != 1 || dst != lanes)
        US_TRY(g->kernels->lanes(g, &sum));
    const struct us_ew e = f32_row(n);
    const void *const rows[] = {dst};
    const struct us_k_squares k = {
        .x = dst, .n = n, .vec = usi_cuda_dense(&e, 4, rows, 1).vec, .sum = sq};
    return g->kernels->squares(g, &k);
}

enum us_status usi_cuda_adamax(struct us_backend *be, const struct us_adamax *a, int64_t n,
                               const float *g, float *m, float *u, float *p)
{
    const struct us_ew e = f32_row(n);
    const void *const rows[] = {g, m, u, p};
    const struct us_k_adamax k = {.step =
                                      us_adamax_step_of(a->lr, a->beta1, a->beta2, a->eps, a->bias),
                                  .grad_scale = a->grad_scale,
                                  .n = n,
                                  .vec = usi_cuda_dense(&e, 4, rows, (int32_t)US_COUNT(rows)).vec,
                                  .g = g,
                                  .m = m,
                                  .u = u,
                                  .p = p};
    return be->gpu->kernels->adamax(be->gpu, &k);
}
