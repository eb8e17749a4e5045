/*
 * Batch norm of one channel in training (model-spec 2), double: from sums over the batch to the
 * affine map that normalises, and to the three numbers that its backward needs. O(channels) work,
 * so double costs nothing; the loops over pixels are f32. A device may fuse these multiply-adds:
 * its sums over pixels have another order, and so other bits, anyway.
 */
#ifndef US_BN_MATH_H
#define US_BN_MATH_H

#include "us_hd.h"

#define US_BN_EPS      1e-5
#define US_BN_MOMENTUM 0.1

struct us_bn_moments {
    double mean, var; /* var is biased: what normalises */
    double unbiased;  /* what the running variance averages; the biased one for a single pixel */
};

/* From sum x and sum x^2. Rounding may leave a constant channel a variance of -1e-20: 0 then. */
US_HD struct us_bn_moments us_bn_moments_of(double sum, double sum2, int64_t count)
{
    struct us_bn_moments m;
    double n = (double)count;
    double v;
    m.mean = sum / n;
    v = sum2 / n - m.mean * m.mean;
    m.var = v < 0.0 ? 0.0 : v;
    m.unbiased = m.var * (n / (count > 1 ? n - 1.0 : 1.0));
    return m;
}

US_HD double us_bn_inv_std(double var)
{
    return 1.0 / sqrt(var + US_BN_EPS);
}

US_HD float us_bn_running(float old, double now)
{
    return (float)((1.0 - US_BN_MOMENTUM) * (double)old + US_BN_MOMENTUM * now);
}

/* dx = a dy + b x + d, from dx = gamma inv_std (dy - S1/N - xhat S2/N), xhat = (x - mean) inv_std,
 * S1 = sum dy, S2 = sum dy xhat. */
struct us_bn_dx {
    double a, b, d;
};

US_HD struct us_bn_dx us_bn_dx_of(double s1, double s2, int64_t count, double gamma, double mean,
                                  double inv_std)
{
    struct us_bn_dx g;
    double scale = gamma * inv_std;
    double per = scale / (double)count;
    g.a = scale;
    g.b = -per * inv_std * s2;
    g.d = -per * s1 - g.b * mean;
    return g;
}

#endif
