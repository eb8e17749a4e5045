/*
 * Exponential and natural logarithm, f32, without libm. The coefficients are our own weighted
 * minimax fits, rounded to f32 one after the other; tests/unit/test_math.c holds the bounds.
 *
 * exp: x = n ln2 + r, |r| <= ln2/2, and e^r - 1 = r + r^2 q(r) with q(0) = 1/2 exactly, so that
 * the same polynomial serves expm1 (us_elu_math.h) with a small relative error at r -> 0.
 * log: x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), log(1 + f) = f - f^2/2 + f^3 q(f).
 */
#ifndef US_EXP_MATH_H
#define US_EXP_MATH_H

#include "us_hd.h"

#define US_EXP_MAX 88.7228317f  /* largest x with a finite e^x */
#define US_EXP_MIN -87.3365402f /* -126 ln2: below, e^x is under the smallest normal float */

#define US_LOG2_E 1.44269502f
/* ln2 in two parts; the first has 9 bits, so that n * US_LN2_HI is exact. */
#define US_LN2_HI 0.693359375f
#define US_LN2_LO -2.12194442e-4f
/* 1.5 * 2^23: adding it rounds to an integer that then stands in the low bits of the sum. */
#define US_ROUND_MAGIC      12582912.0f
#define US_ROUND_MAGIC_BITS 0x4b400000u

/* x = n ln2 + r. *ret_n is the two's complement of n, meaningful for |x| < 2^21; r is NaN for
 * infinite or NaN x. No float is converted to an integer, so no input is undefined behaviour. */
US_HD float us_exp_reduce(float x, uint32_t *ret_n)
{
    float t = us_madd(x, US_LOG2_E, US_ROUND_MAGIC);
    float n = t - US_ROUND_MAGIC;
    *ret_n = us_bits_of_float(t) - US_ROUND_MAGIC_BITS;
    float r = us_madd(n, -US_LN2_HI, x);
    return us_madd(n, -US_LN2_LO, r);
}

/* e^r - 1 for |r| <= ln2/2 (and a little beyond). */
US_HD float us_expm1_poly(float r)
{
    float q = 0.00139399897f;
    q = us_madd(q, r, 0.0083665764f);
    q = us_madd(q, r, 0.0416664109f);
    q = us_madd(q, r, 0.166665435f);
    q = us_madd(q, r, 0.5f);
    return us_madd(us_mul(q, r), r, r);
}

/* 2^n for n in -126..127, from the two's complement of n. */
US_HD float us_exp2_int(uint32_t n)
{
    return us_float_of_bits((n + 127u) << 23);
}

/* e^x. 0 below US_EXP_MIN, +inf above US_EXP_MAX. */
US_HD float us_expf(float x)
{
    uint32_t n;
    float r = us_exp_reduce(x, &n);
    float p = us_expm1_poly(r) + 1.0f;
    /* Into the exponent field, not times 2^n: n = 128 happens and 2^128 is no float. */
    float y = us_float_of_bits(us_bits_of_float(p) + (n << 23));
    y = x < US_EXP_MIN ? 0.0f : y;
    y = x > US_EXP_MAX ? INFINITY : y;
    return x == x ? y : x;
}

/* e^x for x in US_EXP_MIN..88, where no select is needed: the inner part of clamped formulas.
 * NaN gives NaN. */
US_HD float us_exp_inner(float x)
{
    uint32_t n;
    float r = us_exp_reduce(x, &n);
    return us_mul(us_expm1_poly(r) + 1.0f, us_exp2_int(n));
}

/* e^x - 1 for x in US_EXP_MIN..88, with a small relative error near 0 also. */
US_HD float us_expm1_inner(float x)
{
    uint32_t n;
    float r = us_exp_reduce(x, &n);
    float s = us_exp2_int(n);
    return us_madd(us_expm1_poly(r), s, s - 1.0f);
}

#define US_SQRT_HALF_BITS   0x3f3504f3u
#define US_FLOAT_MIN_NORMAL 1.17549435e-38f

/* ln x for a normal, finite, positive x; anything else gives an unspecified number. */
US_HD float us_log_inner(float x)
{
    /* Moves the mantissa's range from [1, 2) to [sqrt(1/2), sqrt(2)). */
    uint32_t d = us_bits_of_float(x) - US_SQRT_HALF_BITS;
    float e = (float)(us_int_of_bits(d) >> 23);
    float f = us_float_of_bits((d & 0x007fffffu) + US_SQRT_HALF_BITS) - 1.0f;
    float q = -0.07861159f;
    q = us_madd(q, f, 0.128827393f);
    q = us_madd(q, f, -0.131285578f);
    q = us_madd(q, f, 0.141809657f);
    q = us_madd(q, f, -0.166245565f);
    q = us_madd(q, f, 0.20002301f);
    q = us_madd(q, f, -0.250008106f);
    q = us_madd(q, f, 0.333333164f);
    float f2 = us_mul(f, f);
    float y = us_madd(e, US_LN2_LO, us_mul(us_mul(q, f), f2));
    y = us_madd(f2, -0.5f, y) + f;
    return us_madd(e, US_LN2_HI, y);
}

/* ln x. -inf at 0 (subnormal numbers count as 0), NaN below, +inf at +inf. */
US_HD float us_logf(float x)
{
    float y = us_log_inner(x);
    y = x < US_FLOAT_MIN_NORMAL ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    y = x > 3.40282347e+38f ? x : y;
    return x == x ? y : x;
}

#endif
