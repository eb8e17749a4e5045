/*
 * What training minimises: the posterior's sample with its KL (model-spec 5, 7) and the likelihood
 * of the head (6, 8), with their gradients. Sums per item are SUM kernels whose terms also write
 * their element of a map: each term is formed once.
 */
#ifndef US_K_LOSS_H
#define US_K_LOSS_H

#include "kernels/us_k_dense.h"
#include "kernels/us_k_sum.h"
#include "math/us_elbo_math.h"
#include "math/us_philox_math.h"

/* ---- posterior ---- */

/* Philox blocks of a pixel, and the one of piece i of an item: channels from the returned one on.
 */
US_HD int32_t us_k_kl_blocks(const struct us_posterior *d)
{
    return (d->ew.c + 3) / 4;
}

US_HD int32_t us_k_kl_block(const struct us_posterior *d, int64_t i, int64_t *ret_px)
{
    int32_t blocks = us_k_kl_blocks(d);
    *ret_px = us_k_divide(i, blocks);
    return (int32_t)(i - *ret_px * blocks) * 4;
}

US_HD int32_t us_k_kl_width(const struct us_posterior *d, int32_t c)
{
    return d->ew.c - c < 4 ? d->ew.c - c : 4;
}

/* eps of channels c .. c + 4 of pixel px of an item. */
US_HD struct us_normal4 us_k_kl_eps(const struct us_posterior *d, const struct us_draw *draw,
                                    int64_t px, int32_t c)
{
    struct us_normal4 r;
    if (draw->eps == NULL) {
        int64_t y = us_k_divide(px, d->w);
        return us_noise_normal4((uint32_t)draw->seed, (uint32_t)(draw->seed >> 32), draw->item,
                                us_noise_c1_patch((int32_t)y, (int32_t)(px - y * d->w)),
                                us_noise_c2(0, d->level, 0), draw->step, (uint32_t)c / 4);
    }
    const float *eps = draw->eps[d->level] + px * d->ew.c;
    for (int32_t j = 0; j < 4; j++)
        r.z[j] = c + j < d->ew.c ? eps[c + j] : 0.0f;
    return r;
}

/* Up to four neighbours of a map; those beyond n are zeros. */
US_HD void us_k_kl_load(const void *p, enum us_dtype t, int64_t at, int32_t n, int32_t vec,
                        float *v)
{
    if (vec == 4) {
        us_k_load(p, t, at, 4, v);
        return;
    }
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++) {
        v[j] = 0.0f;
        if (j < n)
            us_k_load(p, t, at + j, 1, &v[j]);
    }
}

US_HD void us_k_kl_store(void *p, enum us_dtype t, int64_t at, int32_t n, int32_t vec,
                         const float *v)
{
    if (vec == 4) {
        us_k_store(p, t, at, 4, v);
        return;
    }
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++)
        if (j < n)
            us_k_store(p, t, at + j, 1, &v[j]);
}

/* Raw channels of q and p at one block: means, then log-variances. */
struct us_k_kl_raw {
    float mean_q[4], lv_q[4], mean_p[4], lv_p[4];
};

US_HD void us_k_kl_read(const struct us_posterior *d, const void *q, const void *p, int64_t px,
                        int32_t c, int32_t vec, struct us_k_kl_raw *r)
{
    int64_t at = px * 2 * d->ew.c + c;
    int32_t n = us_k_kl_width(d, c);
    us_k_kl_load(q, d->ew.dtype, at, n, vec, r->mean_q);
    us_k_kl_load(q, d->ew.dtype, at + d->ew.c, n, vec, r->lv_q);
    us_k_kl_load(p, d->ew.dtype, at, n, vec, r->mean_p);
    us_k_kl_load(p, d->ew.dtype, at + d->ew.c, n, vec, r->lv_p);
}

enum { us_k_posterior_sums = 1, us_k_posterior_row_lanes = US_K_TERMS_ADJACENT };

US_HD int64_t us_k_posterior_rows(const struct us_k_posterior *a)
{
    return a->items;
}

US_HD int64_t us_k_posterior_terms(const struct us_k_posterior *a)
{
    return (int64_t)a->d.h * a->d.w * us_k_kl_blocks(&a->d);
}

US_HD void us_k_posterior_term(const struct us_k_posterior *a, int64_t row, int64_t i, double *v)
{
    const struct us_posterior *d = &a->d;
    struct us_k_kl_raw r;
    float z[4];
    int64_t px, first = row * d->h * d->w;
    int32_t c = us_k_kl_block(d, i, &px), n = us_k_kl_width(d, c);
    struct us_normal4 eps = us_k_kl_eps(d, &a->draw[row], px, c);
    us_k_kl_read(d, a->q, a->p, first + px, c, a->vec, &r);
    v[0] = 0.0;
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++) {
        struct us_kl_in k =
            us_kl_in_of(r.mean_q[j], r.lv_q[j], r.mean_p[j], r.lv_p[j], d->var_clip_max);
        z[j] = us_madd(sqrtf(k.var_q), eps.z[j], r.mean_q[j]);
        float kl = d->analytical ? us_kl_closed(&k) : us_kl_sampled(&k, eps.z[j]);
        v[0] += j < n ? (double)kl : 0.0;
    }
    us_k_kl_store(a->z, d->ew.dtype, (first + px) * d->ew.c + c, n, a->vec, z);
}

US_HD void us_k_posterior_store(const struct us_k_posterior *a, int64_t row, const double *sums)
{
    a->kl[row] = sums[0] / (double)((int64_t)a->d.h * a->d.w * a->d.ew.c);
}

US_HD int64_t us_k_kl_coef_count(const struct us_k_kl_coef *a)
{
    return a->items;
}

US_HD void us_k_kl_coef_at(const struct us_k_kl_coef *a, int64_t i)
{
    a->coef[i] = us_kl_coef(a->kl[i], a->d.free_bits, *a->kl_weight, a->d.levels, a->d.batch);
}

US_HD int64_t us_k_posterior_bwd_count(const struct us_k_posterior_bwd *a)
{
    return (int64_t)a->items * a->d.h * a->d.w * us_k_kl_blocks(&a->d);
}

US_HD void us_k_posterior_bwd_at(const struct us_k_posterior_bwd *a, int64_t i)
{
    const struct us_posterior *d = &a->d;
    struct us_k_kl_raw r;
    float back[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int64_t px, plane = (int64_t)d->h * d->w;
    int32_t c = us_k_kl_block(d, i, &px), n = us_k_kl_width(d, c);
    int64_t item = us_k_divide(px, plane), at = px * 2 * d->ew.c + c;
    struct us_normal4 eps = us_k_kl_eps(d, &a->draw[item], px - item * plane, c);
    float per = (float)((double)a->coef[item] / (double)(plane * d->ew.c));
    us_k_kl_read(d, a->q, a->p, px, c, a->vec, &r);
    if (a->dz != NULL)
        us_k_kl_load(a->dz, d->ew.dtype, px * d->ew.c + c, n, a->vec, back);
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++) {
        struct us_kl_in k =
            us_kl_in_of(r.mean_q[j], r.lv_q[j], r.mean_p[j], r.lv_p[j], d->var_clip_max);
        struct us_kl_grad g = d->analytical ? us_kl_closed_d(&k) : us_kl_sampled_d(&k, eps.z[j]);
        float lv_d = us_sample_lv_d(k.var_q, k.dvar_q, eps.z[j]);
        r.mean_q[j] = us_madd(per, g.mean_q, back[j]);
        r.lv_q[j] = us_madd(per, g.lv_q, us_mul(back[j], lv_d));
        r.mean_p[j] = us_mul(per, g.mean_p);
        r.lv_p[j] = us_mul(per, g.lv_p);
    }
    us_k_kl_store(a->dq, d->ew.dtype, at, n, a->vec, r.mean_q);
    us_k_kl_store(a->dq, d->ew.dtype, at + d->ew.c, n, a->vec, r.lv_q);
    us_k_kl_store(a->dp, d->ew.dtype, at, n, a->vec, r.mean_p);
    us_k_kl_store(a->dp, d->ew.dtype, at + d->ew.c, n, a->vec, r.lv_p);
}

/* ---- likelihood. Rows are [items][targets], terms an item's pixels. ---- */

US_HD int32_t us_k_head_channels(const struct us_likelihood *d)
{
    return d->logvar == US_LOGVAR_NONE ? d->targets : 2 * d->targets;
}

enum { us_k_pool_sums = 1, us_k_pool_row_lanes = US_K_TERMS_ADJACENT };

US_HD int64_t us_k_pool_rows(const struct us_k_pool *a)
{
    return (int64_t)a->items * a->d.targets;
}

US_HD int64_t us_k_pool_terms(const struct us_k_pool *a)
{
    return (int64_t)a->d.h * a->d.w;
}

US_HD void us_k_pool_term(const struct us_k_pool *a, int64_t row, int64_t i, double *v)
{
    int64_t item = us_k_divide(row, a->d.targets), c = row - item * a->d.targets;
    int64_t px = item * a->d.h * a->d.w + i;
    v[0] = (double)a->head[px * 2 * a->d.targets + a->d.targets + c];
}

US_HD void us_k_pool_store(const struct us_k_pool *a, int64_t row, const double *sums)
{
    a->pooled[row] = sums[0] / (double)((int64_t)a->d.h * a->d.w);
}

enum { us_k_likelihood_sums = 3, us_k_likelihood_row_lanes = US_K_TERMS_ADJACENT };

US_HD int64_t us_k_likelihood_rows(const struct us_k_likelihood *a)
{
    return (int64_t)a->items * a->d.targets;
}

US_HD int64_t us_k_likelihood_terms(const struct us_k_likelihood *a)
{
    return (int64_t)a->d.h * a->d.w;
}

/* The log-variance before its clip. `row` is item and channel. */
US_HD float us_k_likelihood_raw(const struct us_k_likelihood *a, int64_t item, int64_t c,
                                const float *head)
{
    int32_t n = a->d.targets;
    if (a->pooled == NULL)
        return head[n + c];
    if (a->d.logvar != US_LOGVAR_GLOBAL)
        return (float)a->pooled[item * n + c];
    double all = 0.0;
    for (int32_t k = 0; k < n; k++)
        all += a->pooled[item * n + k];
    return (float)(all / n);
}

/* v: negative log-likelihood, squared error, weighted derivative by a pooled log-variance. */
US_HD void us_k_likelihood_term(const struct us_k_likelihood *a, int64_t row, int64_t i, double *v)
{
    int32_t n = a->d.targets, head_c = us_k_head_channels(&a->d);
    int64_t item = us_k_divide(row, n), c = row - item * n, px = item * a->d.h * a->d.w + i;
    const float *head = a->head + px * head_c;
    float *out = a->dhead + px * head_c;
    float mean = head[c], x = a->target[px * n + c];
    v[1] = 2.0 * (double)us_nll_unit(mean, x);
    v[2] = 0.0;
    if (!a->gaussian) {
        double factor = a->d.mse ? 2.0 : 1.0;
        v[0] = factor * (double)us_nll_unit(mean, x);
        out[c] = (float)(a->weight[c] * factor * (double)(mean - x));
        if (head_c > n)
            out[n + c] = 0.0f;
        return;
    }
    float raw = us_k_likelihood_raw(a, item, c, head);
    float l = us_nll_logvar(raw, a->d.lower_bound), precision = us_expf(-l);
    float dlv = us_mul(us_nll_logvar_d(mean, precision, x), us_nll_pass(raw, a->d.lower_bound));
    v[0] = (double)us_nll(mean, l, precision, x);
    v[2] = a->weight[c] * (double)dlv;
    out[c] = (float)(a->weight[c] * (double)us_nll_mean_d(mean, precision, x));
    if (a->pooled == NULL)
        out[n + c] = (float)v[2];
}

US_HD void us_k_likelihood_store(const struct us_k_likelihood *a, int64_t row, const double *sums)
{
    double px = (double)((int64_t)a->d.h * a->d.w);
    a->rec[row] = sums[0] / px;
    a->se[row] = sums[1] / px;
    if (a->pooled != NULL)
        a->pooled_d[row] = sums[2];
}

US_HD int64_t us_k_spread_count(const struct us_k_spread *a)
{
    return (int64_t)a->items * a->d.h * a->d.w;
}

US_HD void us_k_spread_at(const struct us_k_spread *a, int64_t i)
{
    int32_t n = a->d.targets;
    int64_t px = (int64_t)a->d.h * a->d.w;
    const double *by = a->pooled_d + us_k_divide(i, px) * n;
    double all = 0.0;
    for (int32_t c = 0; c < n; c++)
        all += by[c];
    for (int32_t c = 0; c < n; c++) {
        double d = a->d.logvar == US_LOGVAR_GLOBAL ? all / n : by[c];
        a->dhead[i * 2 * n + n + c] = (float)(d / (double)px);
    }
}

#endif
