/*
 * Adamax for one parameter, f32 (model-spec 15.1):
 *   m <- beta1 m + (1 - beta1) g;  u <- max(beta2 u, |g| + eps);  p <- p - lr / (1 - beta1^t) m / u
 * u is at least eps after the first step, so nothing divides by zero. A NaN gradient makes m, u and
 * p NaN; whoever steps looks at the gradients' norm first.
 */
#ifndef US_ADAMAX_MATH_H
#define US_ADAMAX_MATH_H

#include "us_hd.h"

/* A step's constants, from the host: one_minus_beta1 and rate are rounded once from double. */
struct us_adamax_step {
    float beta1, one_minus_beta1, beta2, eps;
    float rate; /* lr / (1 - beta1^t) */
};

US_HD struct us_adamax_step us_adamax_step_of(float lr, float beta1, float beta2, float eps,
                                              double bias)
{
    struct us_adamax_step s;
    s.beta1 = beta1;
    s.one_minus_beta1 = (float)(1.0 - (double)beta1);
    s.beta2 = beta2;
    s.eps = eps;
    s.rate = (float)((double)lr / bias);
    return s;
}

/* g is scaled already. */
US_HD void us_adamax_update(const struct us_adamax_step *s, float g, float *m, float *u, float *p)
{
    float a = (g < 0.0f ? -g : g) + s->eps;
    float old = us_mul(s->beta2, *u);
    float m1 = us_madd(s->beta1, *m, us_mul(s->one_minus_beta1, g));
    float u1 = old > a ? old : a;
    *m = m1;
    *u = u1;
    *p = us_madd(-s->rate, m1 / u1, *p);
}

#endif
