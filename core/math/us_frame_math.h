/*
 * Tiles of a frame: its halving (model-spec 13.5), where a patch's pixels come from (13.6), and the
 * moments of several predictions of one pixel (Welford 1962; Chan, Golub, LeVeque 1979). Indices
 * and f64; f32 where a value enters or leaves a map. Called by us_pyramid.c, us_predict_tile.c and
 * the device.
 */
#ifndef US_FRAME_MATH_H
#define US_FRAME_MATH_H

#include "us_hd.h"

/* Index in [0, len) that position i, counted from the first content pixel and negative or beyond
 * len in the padding, repeats: reflected without repeating the edge, periodic; len 1 replicates. */
US_HD int64_t us_reflect(int64_t i, int64_t len)
{
    if (i >= 0 && i < len)
        return i;
    if (len == 1)
        return 0;
    int64_t period = 2 * (len - 1);
    if (i < 0)
        i = -i; /* the reflected signal is even */
    if (i >= period)
        i %= period;
    return i < len ? i : period - i;
}

#define US_HALVING_MAX_RADIUS 4 /* size 3 -> 1: sigma 1 */

/* How one axis of n pixels becomes n_out = max(1, n / 2); us_halving_of (us_pyramid.h). */
struct us_halving {
    int64_t n, n_out;
    double zoom;                              /* n / n_out */
    int32_t radius;                           /* 0: this axis is not filtered */
    double weight[US_HALVING_MAX_RADIUS + 1]; /* by distance; the whole kernel sums to 1 */
};

/* Output pixel i lies at *ret_fraction between source pixels *ret_left and the next one. */
US_HD void us_halving_source(const struct us_halving *a, int64_t i, int64_t *ret_left,
                             double *ret_fraction)
{
    double at = ((double)i + 0.5) * a->zoom - 0.5;
    double left = floor(at);
    *ret_left = (int64_t)left;
    *ret_fraction = at - left;
}

/* Between the four filtered pixels a, b above and c, d below, fy of the way down and fx to the
 * right. */
US_HD float us_halving_sample(float a, float b, float c, float d, double fy, double fx)
{
    double wy0 = 1.0 - fy, wy1 = 1.0 - wy0;
    double wx0 = 1.0 - fx, wx1 = 1.0 - wx0;
    double sum = (double)a * wy0 * wx0;
    sum += (double)b * wy0 * wx1;
    sum += (double)c * wy1 * wx0;
    sum += (double)d * wy1 * wx1;
    return (float)sum;
}

/* Where the frame's pixels [lo, lo + len) stand on one axis of a patch: from `before` on. */
struct us_patch_axis {
    int64_t lo, len, before;
};

/* An axis of `size` pixels from frame position `start` on; the frame has n. */
US_HD struct us_patch_axis us_patch_axis_of(int64_t start, int64_t size, int64_t n, int zero_pad)
{
    struct us_patch_axis a;
    int64_t lo = start > 0 ? start : 0;
    int64_t hi = start + size < n ? start + size : n;
    /* Entirely outside: zero padding has no content; for reflection the nearest edge pixel, which
     * then repeats over the whole axis, is the only sensible one. */
    int outside = lo >= hi;
    int64_t edge = start < 0 ? 0 : n - 1;
    a.lo = !outside ? lo : zero_pad ? 0 : edge;
    a.len = !outside ? hi - lo : zero_pad ? 0 : 1;
    a.before = !outside ? lo - start : 0;
    return a;
}

/* The frame's pixel that position i of the patch shows; -1: a padded zero. */
US_HD int64_t us_patch_source(struct us_patch_axis a, int64_t i, int zero_pad)
{
    int64_t at = i - a.before;
    if (zero_pad)
        return at >= 0 && at < a.len ? a.lo + at : -1;
    return a.lo + us_reflect(at, a.len);
}

/* First position of scale s's patch on one axis, in that scale's pixels, for the full-resolution
 * patch that begins at `start`: the centre halves, with the floor taken each time. */
US_HD int64_t us_patch_origin(int64_t start, int32_t s, int32_t size)
{
    int64_t centre = start + size / 2;
    for (int32_t k = 0; k < s; k++)
        centre = (centre - (centre & 1)) / 2; /* floor, also below zero */
    return centre - size / 2;
}

/* Normalised; a padded zero is one before this. */
US_HD float us_patch_value(float pixel, float mean, float std)
{
    return (pixel - mean) / std;
}

/* Mean and sum of squared deviations of what was seen so far. */
struct us_moments {
    double mean, m2;
};

/* One more value; weight = 1 / how many there are with it. */
US_HD struct us_moments us_moments_add(struct us_moments m, float value, double weight)
{
    double delta = (double)value - m.mean;
    m.mean += delta * weight;
    m.m2 += delta * ((double)value - m.mean);
    return m;
}

/* Those of `before` values joined by m, whose values are the part `share` of them all. */
US_HD struct us_moments us_moments_join(struct us_moments old, int32_t before, struct us_moments m,
                                        double share)
{
    double delta = m.mean - old.mean;
    m.mean = old.mean + delta * share;
    m.m2 += old.m2 + delta * delta * share * before;
    return m;
}

/* Standard deviation over n values; 0 for one. */
US_HD double us_moments_std(struct us_moments m, int32_t n)
{
    return n > 1 ? sqrt(m.m2 / (n - 1)) : 0.0;
}

#endif
