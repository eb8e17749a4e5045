/*
 * Weights of training's convolutions: from the state dict's layout to those that products read, and
 * their gradients back.
 */
#ifndef US_K_WEIGHTS_H
#define US_K_WEIGHTS_H

#include "kernels/us_k_dense.h"
#include "kernels/us_k_sum.h"

/* Index i of [y_c][taps][x_c] in the canonical [y_c][x_c][taps]. */
US_HD int64_t us_k_canonical(int64_t i, int32_t x_c, int32_t taps)
{
    int64_t row = us_k_divide(i, x_c), c = i - row * x_c;
    int64_t y = us_k_divide(row, taps), tap = row - y * taps;
    return (y * x_c + c) * taps + tap;
}

US_HD int64_t us_k_pack_count(const struct us_k_pack *a)
{
    return (int64_t)a->y_c * a->taps * a->x_c;
}

US_HD void us_k_pack_at(const struct us_k_pack *a, int64_t i)
{
    float v = a->from[us_k_canonical(i, a->x_c, a->taps)];
    us_k_store(a->to, a->dtype, i, 1, &v);
}

US_HD int64_t us_k_unpack_add_count(const struct us_k_unpack_add *a)
{
    return (int64_t)a->y_c * a->taps * a->x_c;
}

US_HD void us_k_unpack_add_at(const struct us_k_unpack_add *a, int64_t i)
{
    a->to[us_k_canonical(i, a->x_c, a->taps)] += a->from[i];
}

US_HD int64_t us_k_pack_direct_count(const struct us_k_pack_direct *a)
{
    return (int64_t)a->y_c * a->taps * a->x_c;
}

/* Index of [taps][in][out]. */
US_HD void us_k_pack_direct_at(const struct us_k_pack_direct *a, int64_t i)
{
    int32_t in_c = a->from_y ? a->y_c : a->x_c, out_c = a->from_y ? a->x_c : a->y_c;
    int64_t row = us_k_divide(i, out_c), out = i - row * out_c;
    int64_t tap = us_k_divide(row, in_c), in = row - tap * in_c;
    int64_t y = a->from_y ? in : out, x = a->from_y ? out : in;
    a->to[i] = a->from[(y * a->x_c + x) * a->taps + tap];
}

/* ---- gradients ---- */

enum { us_k_filter_sums = 1, us_k_filter_row_lanes = US_K_ROWS_ADJACENT };

/* Rows [taps][x_c][y_c]: neighbours share x's pixel and read adjacent channels of y. */
US_HD int64_t us_k_filter_rows(const struct us_k_filter *a)
{
    return (int64_t)a->k * a->k * a->x_c * a->y_c;
}

US_HD int64_t us_k_filter_terms(const struct us_k_filter *a)
{
    return (int64_t)a->n * a->y_h * a->y_w;
}

US_HD void us_k_filter_term(const struct us_k_filter *a, int64_t row, int64_t i, double *v)
{
    int64_t rest = us_k_divide(row, a->y_c), yc = row - rest * a->y_c;
    int64_t tap = us_k_divide(rest, a->x_c), xc = rest - tap * a->x_c;
    int64_t line = us_k_divide(i, a->y_w), x = i - line * a->y_w;
    int64_t item = us_k_divide(line, a->y_h), y = line - item * a->y_h;
    int64_t ky = us_k_divide(tap, a->k), kx = tap - ky * a->k;
    y = y * a->stride - a->pad + ky;
    x = x * a->stride - a->pad + kx;
    v[0] = 0.0;
    if (y < 0 || x < 0 || y >= a->x_h || x >= a->x_w)
        return;
    float p, q;
    us_k_load(a->x, a->dtype, ((item * a->x_h + y) * a->x_w + x) * a->x_c + xc, 1, &p);
    us_k_load(a->y, a->dtype, i * a->y_c + yc, 1, &q);
    v[0] = (double)p * (double)q;
}

US_HD void us_k_filter_store(const struct us_k_filter *a, int64_t row, const double *sums)
{
    int64_t rest = us_k_divide(row, a->y_c), yc = row - rest * a->y_c;
    int64_t tap = us_k_divide(rest, a->x_c), xc = rest - tap * a->x_c;
    a->to[(yc * a->x_c + xc) * a->k * a->k + tap] += (float)sums[0];
}

enum { us_k_bias_grad_sums = 4, us_k_bias_grad_row_lanes = US_K_ROWS_ADJACENT };

US_HD int64_t us_k_bias_grad_rows(const struct us_k_bias_grad *a)
{
    return us_k_dense_rows(&a->m);
}

US_HD int64_t us_k_bias_grad_terms(const struct us_k_bias_grad *a)
{
    return a->m.n_px;
}

US_HD void us_k_bias_grad_vec(const struct us_k_bias_grad *a, int64_t row, int64_t i, int32_t vec,
                              double *v)
{
    float d[4];
    us_k_load(a->dy, a->m.dtype, i * a->m.c + row * vec, vec, d);
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++)
        v[j] = j < vec ? (double)d[j] : 0.0;
}

US_HD void us_k_bias_grad_term(const struct us_k_bias_grad *a, int64_t row, int64_t i, double *v)
{
    if (a->m.vec == 4)
        us_k_bias_grad_vec(a, row, i, 4, v);
    else
        us_k_bias_grad_vec(a, row, i, 1, v);
}

US_HD void us_k_bias_grad_store(const struct us_k_bias_grad *a, int64_t row, const double *sums)
{
    for (int32_t j = 0; j < a->m.vec; j++)
        a->to[row * a->m.vec + j] += (float)sums[j];
}

#endif
