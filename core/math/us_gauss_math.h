/*
 * The posterior's normal distribution (model-spec 5.2, 5.3), f32: variance from the raw
 * log-variance ("ExpLin"), and the reparameterised sample.
 */
#ifndef US_GAUSS_MATH_H
#define US_GAUSS_MATH_H

#include "us_exp_math.h"

#define US_VAR_FLOOR 1e-6f

/* lv' = min(lv, clip_max); (lv' <= 0 ? e^lv' : 1 + lv') + 1e-6. clip_max = +INFINITY: no clip. */
US_HD float us_gauss_var(float lv, float clip_max)
{
    float c = lv > clip_max ? clip_max : lv;
    float t = c > 0.0f ? 0.0f : c;
    t = t < US_EXP_MIN ? US_EXP_MIN : t;
    float e = us_exp_inner(t);
    e = c > 0.0f ? 1.0f + c : e;
    return e + US_VAR_FLOOR;
}

/* z = mean + sqrt(var) * eps. */
US_HD float us_gauss_sample(float mean, float lv, float clip_max, float eps)
{
    return us_madd(sqrtf(us_gauss_var(lv, clip_max)), eps, mean);
}

#endif
