/*
 * Batch norm with ELU in training (model-spec 2, 3.1): sums over pixels, four channels of a pixel
 * at a time; the few numbers per channel; and the two passes over maps.
 */
#ifndef US_K_NORM_H
#define US_K_NORM_H

#include "kernels/us_k_dense.h"
#include "kernels/us_k_sum.h"
#include "math/us_bn_math.h"

/* v[0..4) and v[4..8): the two sums of four channels. */
enum { us_k_bn_stats_sums = 8, us_k_bn_stats_row_lanes = US_K_ROWS_ADJACENT };
enum { us_k_bn_bwd_stats_sums = 8, us_k_bn_bwd_stats_row_lanes = US_K_ROWS_ADJACENT };

/* Channels that a row does not have count as zeros. */
US_HD void us_k_norm_clear(double *v)
{
    US_K_UNROLL
    for (int32_t j = 0; j < 8; j++)
        v[j] = 0.0;
}

US_HD void us_k_norm_store(const struct us_k_dense *m, int64_t row, const double *sums,
                           double *part)
{
    for (int32_t j = 0; j < m->vec; j++) {
        part[row * m->vec + j] = sums[j];
        part[m->c + row * m->vec + j] = sums[4 + j];
    }
}

US_HD int64_t us_k_bn_stats_rows(const struct us_k_bn_stats *a)
{
    return us_k_dense_rows(&a->m);
}

US_HD int64_t us_k_bn_stats_terms(const struct us_k_bn_stats *a)
{
    return a->m.n_px;
}

US_HD void us_k_bn_stats_vec(const struct us_k_bn_stats *a, int64_t row, int64_t i, int32_t vec,
                             double *v)
{
    float x[4];
    us_k_load(a->x, a->m.dtype, i * a->m.c + row * vec, vec, x);
    for (int32_t j = 0; j < vec; j++) {
        v[j] = (double)x[j];
        v[4 + j] = (double)x[j] * (double)x[j];
    }
}

US_HD void us_k_bn_stats_term(const struct us_k_bn_stats *a, int64_t row, int64_t i, double *v)
{
    us_k_norm_clear(v);
    if (a->m.vec == 4)
        us_k_bn_stats_vec(a, row, i, 4, v);
    else
        us_k_bn_stats_vec(a, row, i, 1, v);
}

US_HD void us_k_bn_stats_store(const struct us_k_bn_stats *a, int64_t row, const double *sums)
{
    us_k_norm_store(&a->m, row, sums, a->part);
}

/* Entry i of all parts, in order. */
US_HD double us_k_norm_parts(const double *parts, int32_t n_parts, int32_t c, int64_t i)
{
    double s = 0.0;
    for (int32_t p = 0; p < n_parts; p++)
        s += parts[(int64_t)p * 2 * c + i];
    return s;
}

US_HD int64_t us_k_bn_finish_count(const struct us_k_bn_finish *a)
{
    return a->c;
}

US_HD void us_k_bn_finish_at(const struct us_k_bn_finish *a, int64_t i)
{
    struct us_bn_moments m =
        us_bn_moments_of(us_k_norm_parts(a->parts, a->n_parts, a->c, i),
                         us_k_norm_parts(a->parts, a->n_parts, a->c, a->c + i), a->count);
    double inv_std = us_bn_inv_std(m.var);
    double scale = (double)a->gamma[i] * inv_std;
    a->aff.mean[i] = (float)m.mean;
    a->aff.inv_std[i] = (float)inv_std;
    a->aff.scale[i] = (float)scale;
    a->aff.shift[i] = (float)((double)a->beta[i] - m.mean * scale);
    a->running_mean[i] = us_bn_running(a->running_mean[i], m.mean);
    a->running_var[i] = us_bn_running(a->running_var[i], m.unbiased);
}

US_HD int64_t us_k_bn_elu_count(const struct us_k_bn_elu *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_bn_elu_vec(const struct us_k_bn_elu *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], s[US_K_VEC], t[US_K_VEC];
    int64_t px;
    int32_t c = us_k_dense_channel(&a->m, i, &px);
    us_k_load(a->x, a->m.dtype, i * vec, vec, v);
    us_k_load(a->scale, US_F32, c, vec, s);
    us_k_load(a->shift, US_F32, c, vec, t);
    for (int32_t j = 0; j < vec; j++)
        v[j] = us_elu(us_madd(s[j], v[j], t[j]));
    us_k_store(a->h, a->m.dtype, i * vec, vec, v);
}
US_K_BY_WIDTH(bn_elu, a->m.vec)

/* ---- backward ---- */

/* d[j] becomes the gradient at the ELU's input; x: the batch norm's input. */
US_HD void us_k_norm_dy(const float *scale, const float *shift, int32_t c, int32_t vec,
                        const float *x, float *d)
{
    float s[US_K_VEC], t[US_K_VEC];
    us_k_load(scale, US_F32, c, vec, s);
    us_k_load(shift, US_F32, c, vec, t);
    for (int32_t j = 0; j < vec; j++)
        d[j] = us_mul(d[j], us_elu_d(us_madd(s[j], x[j], t[j])));
}

US_HD int64_t us_k_bn_bwd_stats_rows(const struct us_k_bn_bwd_stats *a)
{
    return us_k_dense_rows(&a->m);
}

US_HD int64_t us_k_bn_bwd_stats_terms(const struct us_k_bn_bwd_stats *a)
{
    return a->m.n_px;
}

US_HD void us_k_bn_bwd_stats_vec(const struct us_k_bn_bwd_stats *a, int64_t row, int64_t i,
                                 int32_t vec, double *v)
{
    float x[4], d[4], mean[4], inv[4];
    int32_t c = (int32_t)row * vec;
    us_k_load(a->x, a->m.dtype, i * a->m.c + c, vec, x);
    us_k_load(a->dh, a->m.dtype, i * a->m.c + c, vec, d);
    us_k_load(a->aff.mean, US_F32, c, vec, mean);
    us_k_load(a->aff.inv_std, US_F32, c, vec, inv);
    us_k_norm_dy(a->aff.scale, a->aff.shift, c, vec, x, d);
    for (int32_t j = 0; j < vec; j++) {
        v[j] = (double)d[j];
        v[4 + j] = (double)d[j] * (((double)x[j] - (double)mean[j]) * (double)inv[j]);
    }
}

US_HD void us_k_bn_bwd_stats_term(const struct us_k_bn_bwd_stats *a, int64_t row, int64_t i,
                                  double *v)
{
    us_k_norm_clear(v);
    if (a->m.vec == 4)
        us_k_bn_bwd_stats_vec(a, row, i, 4, v);
    else
        us_k_bn_bwd_stats_vec(a, row, i, 1, v);
}

US_HD void us_k_bn_bwd_stats_store(const struct us_k_bn_bwd_stats *a, int64_t row,
                                   const double *sums)
{
    us_k_norm_store(&a->m, row, sums, a->part);
}

US_HD int64_t us_k_bn_bwd_finish_count(const struct us_k_bn_bwd_finish *a)
{
    return a->c;
}

US_HD void us_k_bn_bwd_finish_at(const struct us_k_bn_bwd_finish *a, int64_t i)
{
    double s1 = us_k_norm_parts(a->parts, a->n_parts, a->c, i);
    double s2 = us_k_norm_parts(a->parts, a->n_parts, a->c, a->c + i);
    struct us_bn_dx d = us_bn_dx_of(s1, s2, a->count, (double)a->gamma[i], (double)a->aff.mean[i],
                                    (double)a->aff.inv_std[i]);
    a->grad.a[i] = (float)d.a;
    a->grad.b[i] = (float)d.b;
    a->grad.d[i] = (float)d.d;
    a->dbeta[i] += (float)s1;
    a->dgamma[i] += (float)s2;
}

US_HD int64_t us_k_bn_bwd_count(const struct us_k_bn_bwd *a)
{
    return us_k_dense_pieces(&a->m);
}

/* In f32, as the CPU's vector code: double is slow on most GPUs, and a pass over a map gains
 * nothing from it. */
US_HD void us_k_bn_bwd_vec(const struct us_k_bn_bwd *a, int64_t i, int32_t vec)
{
    float x[US_K_VEC], d[US_K_VEC], f[US_K_VEC], e[US_K_VEC];
    int64_t px;
    int32_t c = us_k_dense_channel(&a->m, i, &px);
    us_k_load(a->x, a->m.dtype, i * vec, vec, x);
    us_k_load(a->dh, a->m.dtype, i * vec, vec, d);
    us_k_norm_dy(a->scale, a->shift, c, vec, x, d);
    us_k_load(a->grad.b, US_F32, c, vec, f);
    us_k_load(a->grad.d, US_F32, c, vec, e);
    for (int32_t j = 0; j < vec; j++)
        e[j] = us_madd(f[j], x[j], e[j]);
    us_k_load(a->grad.a, US_F32, c, vec, f);
    for (int32_t j = 0; j < vec; j++)
        d[j] = us_madd(f[j], d[j], e[j]);
    if (a->add) {
        us_k_load(a->dx, a->m.dtype, i * vec, vec, x);
        for (int32_t j = 0; j < vec; j++)
            d[j] = x[j] + d[j];
    }
    us_k_store(a->dx, a->m.dtype, i * vec, vec, d);
}
US_K_BY_WIDTH(bn_bwd, a->m.vec)

#endif
