/*
 * What training minimises, per element, f32, and its derivatives: KL divergence of the posterior
 * from the prior (model-spec 5.2, 5.5) and negative log-likelihood of the target (6, 8).
 *
 * Derivatives are total: the sample z = mean_q + std_q eps carries the posterior's parameters into
 * log p(z), and that path is part of them. Clips pass the gradient where the clipped value is still
 * the argument, ends included (spec 2). Each derivative is that of the f32 formula above it, with
 * the same rounded variances, so forward and backward of all backends see one set of numbers.
 */
#ifndef US_ELBO_MATH_H
#define US_ELBO_MATH_H

#include "us_gauss_math.h"

#define US_LN_2PI 1.83787707f

/* d us_gauss_var / d lv: e^lv up to 0, then 1, nothing above the clip. Where e^lv would be under
 * the smallest normal float, it stays there; the variance is the floor 1e-6 by then. */
US_HD float us_gauss_var_d(float lv, float clip_max)
{
    float t = lv > 0.0f ? 0.0f : lv;
    t = t < US_EXP_MIN ? US_EXP_MIN : t;
    float d = us_exp_inner(t); /* e^0 is 1 to the bit: no second select for lv > 0 */
    return lv > clip_max ? 0.0f : d;
}

/* A posterior q and a prior p at one element: means, variances, and the variances' derivatives by
 * their log-variances. */
struct us_kl_in {
    float mean_q, var_q, dvar_q;
    float mean_p, var_p, dvar_p;
};

struct us_kl_grad {
    float mean_q, lv_q, mean_p, lv_p;
};

/* From the raw channels of q and p. */
US_HD struct us_kl_in us_kl_in_of(float mean_q, float lv_q, float mean_p, float lv_p,
                                  float clip_max)
{
    struct us_kl_in k;
    k.mean_q = mean_q;
    k.var_q = us_gauss_var(lv_q, clip_max);
    k.dvar_q = us_gauss_var_d(lv_q, clip_max);
    k.mean_p = mean_p;
    k.var_p = us_gauss_var(lv_p, clip_max);
    k.dvar_p = us_gauss_var_d(lv_p, clip_max);
    return k;
}

/* z - mean_p, not by way of z: means of similar size leave eps its digits. */
US_HD float us_kl_offset(const struct us_kl_in *k, float eps)
{
    return us_madd(sqrtf(k->var_q), eps, k->mean_q - k->mean_p);
}

/* One sample of the KL: log q(z) - log p(z), with log q(z) = -eps^2/2 - ln std_q - const and
 * ln std = ln(var) / 2. */
US_HD float us_kl_sampled(const struct us_kl_in *k, float eps)
{
    float d = us_kl_offset(k, eps);
    float t = us_mul(d, d) / k->var_p;
    t = us_madd(-eps, eps, t);
    return us_mul(0.5f, t + (us_log_inner(k->var_p) - us_log_inner(k->var_q)));
}

US_HD struct us_kl_grad us_kl_sampled_d(const struct us_kl_in *k, float eps)
{
    struct us_kl_grad g;
    float d = us_kl_offset(k, eps);
    float s = d / k->var_p; /* d KL / dz */
    /* dz / d var_q = eps / (2 std_q) */
    float vq = us_madd(s, eps / sqrtf(k->var_q), -1.0f / k->var_q);
    float vp = us_madd(-s, s, 1.0f / k->var_p);
    g.mean_q = s;
    g.lv_q = us_mul(us_mul(0.5f, vq), k->dvar_q);
    g.mean_p = -s;
    g.lv_p = us_mul(us_mul(0.5f, vp), k->dvar_p);
    return g;
}

/* The KL in closed form: (r + ((mean_q - mean_p) / std_p)^2 - 1 - ln r) / 2, r = var_q / var_p. */
US_HD float us_kl_closed(const struct us_kl_in *k)
{
    float d = k->mean_q - k->mean_p;
    float t = us_madd(d, d, k->var_q) / k->var_p;
    return us_mul(0.5f, t - 1.0f + (us_log_inner(k->var_p) - us_log_inner(k->var_q)));
}

US_HD struct us_kl_grad us_kl_closed_d(const struct us_kl_in *k)
{
    struct us_kl_grad g;
    float d = k->mean_q - k->mean_p;
    float s = d / k->var_p;
    float inv_p = 1.0f / k->var_p;
    float vq = inv_p - 1.0f / k->var_q;
    float vp = us_mul(1.0f - us_madd(d, d, k->var_q) / k->var_p, inv_p);
    g.mean_q = s;
    g.lv_q = us_mul(us_mul(0.5f, vq), k->dvar_q);
    g.mean_p = -s;
    g.lv_p = us_mul(us_mul(0.5f, vp), k->dvar_p);
    return g;
}

/* Derivative of the loss by one item's KL of one level (spec 5.5): the mean over levels and batch
 * times the weight; nothing below the free bits. */
US_HD float us_kl_coef(double kl, float free_bits, float kl_weight, int32_t levels, int32_t batch)
{
    float c = kl_weight / us_mul((float)levels, (float)batch);
    return free_bits >= 1e-6f && kl < (double)free_bits ? 0.0f : c;
}

/* dz / d lv_q: what the gradient that comes back through z is multiplied by; d z / d mean_q is 1.
 */
US_HD float us_sample_lv_d(float var, float dvar, float eps)
{
    return us_mul(us_mul(0.5f, eps / sqrtf(var)), dvar);
}

/* ---- likelihood: nll = ((x - mean)^2 e^-l + l + ln 2 pi) / 2, l = max(lv, lower_bound) ---- */

US_HD float us_nll_logvar(float lv, float lower_bound)
{
    return lv < lower_bound ? lower_bound : lv;
}

/* precision = e^-l, by us_expf(-l). */
US_HD float us_nll(float mean, float l, float precision, float x)
{
    float d = mean - x;
    return us_mul(0.5f, us_madd(us_mul(d, d), precision, l + US_LN_2PI));
}

US_HD float us_nll_mean_d(float mean, float precision, float x)
{
    return us_mul(mean - x, precision);
}

/* By l; by lv after us_nll_pass. */
US_HD float us_nll_logvar_d(float mean, float precision, float x)
{
    float d = mean - x;
    return us_mul(0.5f, us_madd(-us_mul(d, d), precision, 1.0f));
}

/* Derivative of the lower bound's clip: 1 from the bound upwards. */
US_HD float us_nll_pass(float lv, float lower_bound)
{
    return lv < lower_bound ? 0.0f : 1.0f;
}

/* Without a predicted log-variance: nll = (mean - x)^2 / 2, whose derivative is mean - x. The mean
 * squared error is twice that. */
US_HD float us_nll_unit(float mean, float x)
{
    float d = mean - x;
    return us_mul(0.5f, us_mul(d, d));
}

#endif
