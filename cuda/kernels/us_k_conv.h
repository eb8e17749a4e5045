/*
 * Bodies of the kernels that help cuDNN out (us_k_conv.def), for the device and the host. They
 * serve first layers and heads, whose one or two channels no matrix unit wants.
 */
#ifndef US_K_CONV_H
#define US_K_CONV_H

#include "kernels/us_k_conv_args.h"
#include "kernels/us_k_sum.h"
#include "math/us_bf16_math.h"

/* A row is an element of w; a term a pixel of y. */
enum { us_k_conv_filter_sums = 1, us_k_conv_filter_row_lanes = US_K_ROWS_ADJACENT };

US_HD int64_t us_k_conv_filter_rows(const struct us_k_conv_filter *a)
{
    return (int64_t)a->y_map.c * a->k * a->k * a->x_map.c;
}

US_HD int64_t us_k_conv_filter_terms(const struct us_k_conv_filter *a)
{
    return (int64_t)a->n * a->y_map.h * a->y_map.w;
}

US_HD double us_k_conv_load(const void *p, enum us_dtype dtype, int64_t i)
{
    return dtype == US_F32 ? (double)((const float *)p)[i]
                           : (double)us_f32_of_bf16(((const uint16_t *)p)[i]);
}

US_HD void us_k_conv_filter_term(const struct us_k_conv_filter *a, int64_t row, int64_t i,
                                 double *v)
{
    int64_t c = row % a->x_map.c, tap = row / a->x_map.c % (a->k * a->k);
    int64_t k = row / a->x_map.c / (a->k * a->k);
    int64_t ox = i % a->y_map.w, oy = i / a->y_map.w % a->y_map.h;
    int64_t n = i / a->y_map.w / a->y_map.h;
    int64_t ix = a->stride * ox - a->left + tap % a->k, iy = a->stride * oy - a->top + tap / a->k;
    v[0] = 0.0;
    if (ix < 0 || iy < 0 || ix >= a->x_map.w || iy >= a->x_map.h)
        return;
    v[0] = us_k_conv_load(a->x, a->dtype,
                          n * a->x_map.image_stride + iy * a->x_map.row_stride +
                              ix * a->x_map.pixel_stride + c) *
           us_k_conv_load(a->y, a->dtype,
                          n * a->y_map.image_stride + oy * a->y_map.row_stride +
                              ox * a->y_map.pixel_stride + k);
}

US_HD void us_k_conv_filter_store(const struct us_k_conv_filter *a, int64_t row, const double *sums)
{
    a->w[row] = (float)sums[0];
}

#endif
