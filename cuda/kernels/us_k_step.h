/*
 * The end of a training step (model-spec 15): the lanes' gradients to one, the squares of their
 * norm, and Adamax.
 */
#ifndef US_K_STEP_H
#define US_K_STEP_H

#include "kernels/us_k_dense.h"
#include "kernels/us_k_sum.h"

US_HD int64_t us_k_lanes_count(const struct us_k_lanes *a)
{
    return a->n;
}

US_HD void us_k_lanes_at(const struct us_k_lanes *a, int64_t i)
{
    double s = 0.0;
    for (int32_t l = 0; l < a->n_lanes; l++)
        s += (double)a->lanes[l * a->stride + i];
    a->to[i] = (float)s;
}

enum { us_k_squares_sums = 1, us_k_squares_row_lanes = US_K_TERMS_ADJACENT };

US_HD int64_t us_k_squares_rows(const struct us_k_squares *a)
{
    return 1;
}

US_HD int64_t us_k_squares_terms(const struct us_k_squares *a)
{
    return a->n / a->vec;
}

US_HD void us_k_squares_term(const struct us_k_squares *a, int64_t row, int64_t i, double *v)
{
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (a->vec == 4)
        us_k_load(a->x, US_F32, 4 * i, 4, x);
    else
        us_k_load(a->x, US_F32, i, 1, x);
    v[0] = 0.0;
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++)
        v[0] += (double)x[j] * (double)x[j];
}

US_HD void us_k_squares_store(const struct us_k_squares *a, int64_t row, const double *sums)
{
    a->sum[0] = sums[0];
}

US_HD int64_t us_k_adamax_count(const struct us_k_adamax *a)
{
    return a->n / a->vec;
}

US_HD void us_k_adamax_vec(const struct us_k_adamax *a, int64_t i, int32_t vec)
{
    float g[4], m[4], u[4], p[4];
    us_k_load(a->g, US_F32, i * vec, vec, g);
    us_k_load(a->m, US_F32, i * vec, vec, m);
    us_k_load(a->u, US_F32, i * vec, vec, u);
    us_k_load(a->p, US_F32, i * vec, vec, p);
    for (int32_t j = 0; j < vec; j++)
        us_adamax_update(&a->step, us_mul(g[j], a->grad_scale), &m[j], &u[j], &p[j]);
    us_k_store(a->m, US_F32, i * vec, vec, m);
    us_k_store(a->u, US_F32, i * vec, vec, u);
    us_k_store(a->p, US_F32, i * vec, vec, p);
}

US_HD void us_k_adamax_at(const struct us_k_adamax *a, int64_t i)
{
    if (a->vec == 4)
        us_k_adamax_vec(a, i, 4);
    else
        us_k_adamax_vec(a, i, 1);
}

#endif
