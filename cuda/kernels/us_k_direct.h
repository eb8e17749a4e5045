/*
 * Convolution by plain sums, with its whole epilogue: for the first layers (one input channel: the
 * output is all the traffic there is), the head (few output channels), and whatever shape the
 * library refuses. The sum of an output is one chain of fused multiply-adds over taps and input
 * channels, the same for every width of access.
 */
#ifndef US_K_DIRECT_H
#define US_K_DIRECT_H

#include "kernels/us_k_vec.h"

US_HD int64_t us_k_direct_count(const struct us_k_direct *a)
{
    return us_k_pieces(&a->grid);
}

/* Input row (or column) under tap k of output o, or -1. */
US_HD int64_t us_k_direct_source(const struct us_k_direct *a, int64_t o, int32_t before, int32_t k,
                                 int64_t size)
{
    int64_t at = o * a->stride - before + k;
    if (a->transposed) {
        int64_t t = o + before - k;
        at = us_k_divide(t < 0 ? 0 : t, a->stride);
        if (t != at * a->stride)
            return -1;
    }
    return at >= 0 && at < size ? at : -1;
}

/* sum[p] += in[p] * w for `n` input channels from ci of one tap. */
US_HD void us_k_direct_channels(const struct us_k_direct *a, const int64_t *from, int64_t tap,
                                int32_t ci, int32_t n, int32_t co, int32_t vec,
                                float (*sum)[US_K_VEC])
{
    float in[US_K_RUN][US_K_VEC], w[US_K_VEC];
    for (int32_t p = 0; p < US_K_RUN; p++) {
        for (int32_t j = 0; j < n; j++)
            in[p][j] = 0.0f;
        if (from[p] >= 0)
            us_k_load(a->x.p, a->x.dtype, from[p] + ci, n, in[p]);
    }
    US_K_UNROLL
    for (int32_t j = 0; j < n; j++) {
        us_k_load(a->w, US_F32, (tap * a->in_c + ci + j) * a->grid.c + co, vec, w);
        for (int32_t p = 0; p < US_K_RUN; p++)
            for (int32_t k = 0; k < vec; k++)
                sum[p][k] = fmaf(in[p][j], w[k], sum[p][k]);
    }
}

US_HD void us_k_direct_tap(const struct us_k_direct *a, const struct us_k_place *at, int64_t y,
                           int32_t ky, int32_t kx, int32_t vec, float (*sum)[US_K_VEC])
{
    int64_t from[US_K_RUN];
    int any = 0;
    for (int32_t p = 0; p < US_K_RUN; p++) {
        int64_t x = us_k_direct_source(a, at->x * US_K_RUN + p, a->left, kx, a->x.x1);
        from[p] = x < 0 ? -1 : us_k_in_at(&a->x, at->n, y, x, 0);
        any |= x >= 0;
    }
    if (!any)
        return;
    int64_t tap = (int64_t)ky * a->k + kx;
    if (a->in_vec == 8)
        for (int32_t ci = 0; ci < a->in_c; ci += 8)
            us_k_direct_channels(a, from, tap, ci, 8, at->c, vec, sum);
    else
        for (int32_t ci = 0; ci < a->in_c; ci++)
            us_k_direct_channels(a, from, tap, ci, 1, at->c, vec, sum);
}

US_HD void us_k_direct_vec(const struct us_k_direct *a, int64_t i, int32_t vec)
{
    float sum[US_K_RUN][US_K_VEC];
    struct us_k_place at = us_k_place(&a->grid, i);
    for (int32_t p = 0; p < US_K_RUN; p++)
        for (int32_t k = 0; k < vec; k++)
            sum[p][k] = 0.0f;
    for (int32_t ky = 0; ky < a->k; ky++) {
        int64_t y = us_k_direct_source(a, at.y, a->top, ky, a->x.y1);
        for (int32_t kx = 0; kx < a->k && y >= 0; kx++)
            us_k_direct_tap(a, &at, y, ky, kx, vec, sum);
    }
    struct us_k_place pixel = at;
    US_K_UNROLL
    for (int32_t p = 0; p < US_K_RUN; p++) {
        pixel.x = at.x * US_K_RUN + p;
        if (pixel.x < a->ow) {
            us_k_bias_act_res(a->bias, a->elu, &a->res, &pixel, vec, sum[p]);
            us_k_finish(&a->finish, &pixel, vec, sum[p]);
        }
    }
}

US_HD void us_k_direct_at(const struct us_k_direct *a, int64_t i)
{
    if (a->grid.vec == 8)
        us_k_direct_vec(a, i, 8);
    else if (a->grid.vec == 4)
        us_k_direct_vec(a, i, 4);
    else
        us_k_direct_vec(a, i, 1);
}

#endif
