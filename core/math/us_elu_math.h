/*
 * Activations, f32: ELU (alpha 1, model-spec 2), the logistic function, the gate (model-spec 3.2)
 * and their derivatives. Saturated inputs are clamped before the exponential: ELU is -1 to the last
 * bit below -30 already, and beyond +-87 the logistic function is 1 or below 2e-38.
 */
#ifndef US_ELU_MATH_H
#define US_ELU_MATH_H

#include "us_exp_math.h"

#define US_ELU_FLOOR    -30.0f
#define US_SIGMOID_EDGE 87.0f

/* x > 0: x, else e^x - 1. */
US_HD float us_elu(float x)
{
    float t = x > 0.0f ? 0.0f : x;
    t = t < US_ELU_FLOOR ? US_ELU_FLOOR : t;
    float y = us_expm1_inner(t);
    return x > 0.0f ? x : y;
}

/* d ELU / dx: x > 0: 1, else e^x. */
US_HD float us_elu_d(float x)
{
    float t = x > 0.0f ? 0.0f : x;
    t = t < US_EXP_MIN ? US_EXP_MIN : t;
    return us_exp_inner(t);
}

/* The same from y = ELU(x): y > 0: 1, else y + 1 = e^x. */
US_HD float us_elu_d_of_y(float y)
{
    return y > 0.0f ? 1.0f : y + 1.0f;
}

/* 1 / (1 + e^-x). */
US_HD float us_sigmoid(float x)
{
    float t = x < -US_SIGMOID_EDGE ? -US_SIGMOID_EDGE : x;
    t = t > US_SIGMOID_EDGE ? US_SIGMOID_EDGE : t;
    return 1.0f / (1.0f + us_exp_inner(-t));
}

/* The gate: ELU(a) * sigmoid(g). */
US_HD float us_glu(float a, float g)
{
    return us_mul(us_elu(a), us_sigmoid(g));
}

struct us_glu_grad {
    float a, g;
};

/* Its derivatives by a and g, times dout. */
US_HD struct us_glu_grad us_glu_d(float a, float g, float dout)
{
    struct us_glu_grad r;
    float s = us_sigmoid(g);
    float y = us_elu(a);
    r.a = us_mul(dout, us_mul(us_elu_d_of_y(y), s));
    r.g = us_mul(us_mul(dout, y), us_mul(s, 1.0f - s));
    return r;
}

#endif
