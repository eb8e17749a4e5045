/*
 * Reference losses: the posterior with its KL (model-spec 5, 7) and the likelihood of the head
 * (6, 8). The formulas of an element stand in math/us_elbo_math.h.
 */
#include "us_ref_train.h"

#include "math/us_elbo_math.h"
#include "math/us_philox_math.h"

/* ---- posterior ---- */

/* eps of the channels from 4 * group on, of pixel i of the item's map. */
static struct us_normal4 noise4(const struct us_posterior *d, const struct us_draw *draw, int64_t i,
                                int32_t group)
{
    int32_t y = (int32_t)(i / d->w), x = (int32_t)(i % d->w);
    return us_noise_normal4((uint32_t)draw->seed, (uint32_t)(draw->seed >> 32), draw->item,
                            us_noise_c1_patch(y, x), us_noise_c2(0, d->level, 0), draw->step,
                            (uint32_t)group);
}

/* eps of all Z channels of pixel i, into ret; f32 [Z] of the hook, or drawn. */
static float eps_of(const struct us_posterior *d, const struct us_draw *draw, int64_t i, int32_t c,
                    struct us_normal4 *block)
{
    if (draw->eps != NULL)
        return draw->eps[d->level][i * d->ew.c + c];
    if (c % 4 == 0)
        *block = noise4(d, draw, i, c / 4);
    return block->z[c % 4];
}

/* One pixel: writes z, returns the sum of its elements' KL. */
static double posterior_pixel(const struct us_posterior *d, const struct us_draw *draw, int64_t i,
                              const float *q, const float *p, float *z)
{
    int32_t n = d->ew.c;
    struct us_normal4 block = {{0}};
    double sum = 0.0;
    for (int32_t c = 0; c < n; c++) {
        float eps = eps_of(d, draw, i, c, &block);
        struct us_kl_in k = us_kl_in_of(q[c], q[n + c], p[c], p[n + c], d->var_clip_max);
        z[c] = us_madd(sqrtf(k.var_q), eps, q[c]);
        sum += (double)(d->analytical ? us_kl_closed(&k) : us_kl_sampled(&k, eps));
    }
    return sum;
}

/* An HAE's z: the mean half of q. */
static void take_means(const struct us_posterior *d, int64_t px, const float *q, float *z)
{
    for (int64_t i = 0; i < px; i++)
        for (int32_t c = 0; c < d->ew.c; c++)
            z[i * d->ew.c + c] = q[i * 2 * d->ew.c + c];
}

enum us_status usi_ref_posterior_fwd(struct us_backend *be, const struct us_posterior *d,
                                     int32_t items, const void *q, const void *p,
                                     const struct us_draw *draw, void *z, double *kl)
{
    int64_t px = (int64_t)d->h * d->w, n = d->ew.c;
    REF_NEED_F32(d->ew.dtype);
    for (int32_t item = 0; item < items; item++) {
        const float *qi = (const float *)q + item * px * 2 * n;
        float *zi = (float *)z + item * px * n;
        double sum = 0.0;
        if (d->deterministic) {
            take_means(d, px, qi, zi);
        } else {
            const float *pi = (const float *)p + item * px * 2 * n;
            for (int64_t i = 0; i < px; i++)
                sum +=
                    posterior_pixel(d, &draw[item], i, qi + i * 2 * n, pi + i * 2 * n, zi + i * n);
        }
        kl[item] = sum / (double)(px * n);
    }
    return US_OK;
}

enum us_status usi_ref_kl_coef(struct us_backend *be, const struct us_kl_share *d, int32_t items,
                               const double *kl, const float *kl_weight, float *coef)
{
    for (int32_t i = 0; i < items; i++)
        coef[i] = us_kl_coef(kl[i], d->free_bits, *kl_weight, d->levels, d->batch);
    return US_OK;
}

/* One pixel. per: the loss's derivative by an element's KL; dz may be NULL. */
static void posterior_pixel_bwd(const struct us_posterior *d, const struct us_draw *draw, int64_t i,
                                const float *q, const float *p, const float *dz, float per,
                                float *dq, float *dp)
{
    int32_t n = d->ew.c;
    struct us_normal4 block = {{0}};
    for (int32_t c = 0; c < n; c++) {
        float eps = eps_of(d, draw, i, c, &block);
        float back = dz != NULL ? dz[c] : 0.0f;
        struct us_kl_in k = us_kl_in_of(q[c], q[n + c], p[c], p[n + c], d->var_clip_max);
        struct us_kl_grad g = d->analytical ? us_kl_closed_d(&k) : us_kl_sampled_d(&k, eps);
        float lv_d = us_sample_lv_d(k.var_q, k.dvar_q, eps);
        dq[c] = us_madd(per, g.mean_q, back);
        dq[n + c] = us_madd(per, g.lv_q, us_mul(back, lv_d));
        dp[c] = us_mul(per, g.mean_p);
        dp[n + c] = us_mul(per, g.lv_p);
    }
}

/* An HAE's dq: dz for the means, nothing for what would be log-variances. */
static void give_means(const struct us_posterior *d, int64_t px, const float *dz, float *dq)
{
    for (int64_t i = 0; i < px; i++)
        for (int32_t c = 0; c < d->ew.c; c++) {
            dq[i * 2 * d->ew.c + c] = dz != NULL ? dz[i * d->ew.c + c] : 0.0f;
            dq[(i * 2 + 1) * d->ew.c + c] = 0.0f;
        }
}

enum us_status usi_ref_posterior_bwd(struct us_backend *be, const struct us_posterior *d,
                                     int32_t items, const void *q, const void *p,
                                     const struct us_draw *draw, const void *dz, const float *coef,
                                     void *dq, void *dp)
{
    int64_t px = (int64_t)d->h * d->w, n = d->ew.c;
    REF_NEED_F32(d->ew.dtype);
    for (int32_t item = 0; item < items; item++) {
        const float *back = dz != NULL ? (const float *)dz + item * px * n : NULL;
        float *dqi = (float *)dq + item * px * 2 * n;
        if (d->deterministic) {
            give_means(d, px, back, dqi);
            continue;
        }
        const float *qi = (const float *)q + item * px * 2 * n;
        const float *pi = (const float *)p + item * px * 2 * n;
        float *dpi = (float *)dp + item * px * 2 * n;
        float per = (float)((double)coef[item] / (double)(px * n));
        for (int64_t i = 0; i < px; i++)
            posterior_pixel_bwd(d, &draw[item], i, qi + i * 2 * n, pi + i * 2 * n,
                                back != NULL ? back + i * n : NULL, per, dqi + i * 2 * n,
                                dpi + i * 2 * n);
    }
    return US_OK;
}

/* ---- likelihood ---- */

/* One item: where it lies, and what its pixels share. */
struct item {
    const struct us_likelihood *d;
    const float *head, *target;
    float *dhead;
    int64_t px;
    int32_t head_c;
    bool pooled;                     /* one log-variance for all pixels */
    float lv[US_MAX_TARGETS];        /* it, before the clip */
    double weight[US_MAX_TARGETS];   /* the gradient's, per pixel */
    double pooled_d[US_MAX_TARGETS]; /* sum of the derivatives by it */
};

static double weight_sum(const struct us_likelihood *d)
{
    double s = 0.0;
    for (int32_t c = 0; c < d->targets; c++)
        s += (double)d->weight[c];
    return s;
}

/* Log-variances averaged over pixels, and for "global" over channels also (spec 6). */
static void pool_logvar(struct item *it)
{
    int32_t n = it->d->targets;
    double all = 0.0;
    for (int32_t c = 0; c < n; c++) {
        double s = 0.0;
        for (int64_t i = 0; i < it->px; i++)
            s += (double)it->head[i * it->head_c + n + c];
        it->lv[c] = (float)(s / (double)it->px);
        all += s / (double)it->px;
    }
    for (int32_t c = 0; c < n && it->d->logvar == US_LOGVAR_GLOBAL; c++)
        it->lv[c] = (float)(all / n);
}

/* One pixel of one channel with a log-variance: writes its gradients, returns its nll. */
static double gaussian_pixel(struct item *it, int64_t i, int32_t c)
{
    int32_t n = it->d->targets;
    float mean = it->head[i * it->head_c + c], x = it->target[i * n + c];
    float raw = it->pooled ? it->lv[c] : it->head[i * it->head_c + n + c];
    float l = us_nll_logvar(raw, it->d->lower_bound);
    float precision = us_expf(-l);
    double dlv =
        (double)us_mul(us_nll_logvar_d(mean, precision, x), us_nll_pass(raw, it->d->lower_bound));
    float *out = it->dhead + i * it->head_c;
    out[c] = (float)(it->weight[c] * (double)us_nll_mean_d(mean, precision, x));
    if (it->pooled)
        it->pooled_d[c] += it->weight[c] * dlv;
    else
        out[n + c] = (float)(it->weight[c] * dlv);
    return (double)us_nll(mean, l, precision, x);
}

/* The same without: half the squared error, or all of it where mse. */
static double unit_pixel(struct item *it, int64_t i, int32_t c)
{
    int32_t n = it->d->targets;
    float mean = it->head[i * it->head_c + c], x = it->target[i * n + c];
    double factor = it->d->mse ? 2.0 : 1.0;
    float *out = it->dhead + i * it->head_c;
    out[c] = (float)(it->weight[c] * factor * (double)(mean - x));
    if (it->head_c > n)
        out[n + c] = 0.0f;
    return factor * (double)us_nll_unit(mean, x);
}

/* A mean's gradient is shared out equally among what it was made of. */
static void spread_pooled(const struct item *it)
{
    int32_t n = it->d->targets;
    double all = 0.0;
    for (int32_t c = 0; c < n; c++)
        all += it->pooled_d[c];
    for (int32_t c = 0; c < n; c++) {
        double d = it->d->logvar == US_LOGVAR_GLOBAL ? all / n : it->pooled_d[c];
        for (int64_t i = 0; i < it->px; i++)
            it->dhead[i * it->head_c + n + c] = (float)(d / (double)it->px);
    }
}

static void likelihood_item(struct item *it, double *rec, double *se)
{
    bool gaussian = it->d->logvar != US_LOGVAR_NONE && !it->d->mse;
    it->pooled = gaussian && it->d->logvar != US_LOGVAR_PIXELWISE;
    if (it->pooled)
        pool_logvar(it);
    for (int32_t c = 0; c < it->d->targets; c++) {
        double loss = 0.0, square = 0.0;
        it->pooled_d[c] = 0.0;
        for (int64_t i = 0; i < it->px; i++) {
            square += 2.0 * (double)us_nll_unit(it->head[i * it->head_c + c],
                                                it->target[i * it->d->targets + c]);
            loss += gaussian ? gaussian_pixel(it, i, c) : unit_pixel(it, i, c);
        }
        rec[c] = loss / (double)it->px;
        se[c] = square / (double)it->px;
    }
    if (it->pooled)
        spread_pooled(it);
}

enum us_status usi_ref_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                  int32_t items, const float *head, const float *target,
                                  float grad_weight, double *rec, double *se, float *dhead)
{
    if (d->targets < 1 || d->targets > US_MAX_TARGETS)
        return US_E_ARG;
    struct item it = {.d = d, .px = (int64_t)d->h * d->w};
    it.head_c = d->logvar == US_LOGVAR_NONE ? d->targets : 2 * d->targets;
    for (int32_t c = 0; c < d->targets; c++)
        it.weight[c] = (double)grad_weight * (double)d->weight[c] / (weight_sum(d) * (double)it.px);
    for (int32_t n = 0; n < items; n++) {
        it.head = head + n * it.px * it.head_c;
        it.dhead = dhead + n * it.px * it.head_c;
        it.target = target + n * it.px * d->targets;
        likelihood_item(&it, rec + (int64_t)n * d->targets, se + (int64_t)n * d->targets);
    }
    return US_OK;
}
