/*
 * The passes behind a convolution: epilogue (bias, ELU, residual, tail) and gate (model-spec 3.1,
 * 3.2). Each reads the convolution's f32 sums once and rounds once per output.
 */
#ifndef US_K_EPILOGUE_H
#define US_K_EPILOGUE_H

#include "kernels/us_k_vec.h"

US_HD int64_t us_k_epilogue_count(const struct us_k_epilogue *a)
{
    return us_k_pieces(&a->grid);
}

US_HD void us_k_epilogue_vec(const struct us_k_epilogue *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC];
    struct us_k_place at = us_k_place(&a->grid, i);
    us_k_read(&a->x, &at, vec, v);
    us_k_add(&a->x2, &at, vec, v);
    us_k_bias_act_res(a->bias, a->elu, &a->res, &at, vec, v);
    us_k_finish(&a->finish, &at, vec, v);
}

US_HD void us_k_epilogue_at(const struct us_k_epilogue *a, int64_t i)
{
    if (a->grid.vec == 8)
        us_k_epilogue_vec(a, i, 8);
    else if (a->grid.vec == 4)
        us_k_epilogue_vec(a, i, 4);
    else
        us_k_epilogue_vec(a, i, 1);
}

US_HD int64_t us_k_gate_count(const struct us_k_gate *a)
{
    return us_k_pieces(&a->grid);
}

US_HD void us_k_gate_vec(const struct us_k_gate *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], g[US_K_VEC], b[US_K_VEC];
    struct us_k_place at = us_k_place(&a->grid, i), half = at;
    half.c += a->grid.c;
    us_k_read(&a->x, &at, vec, v);
    us_k_read(&a->x, &half, vec, g);
    us_k_load(a->bias, US_F32, at.c, vec, b);
    for (int32_t j = 0; j < vec; j++)
        v[j] += b[j];
    us_k_load(a->bias, US_F32, half.c, vec, b);
    for (int32_t j = 0; j < vec; j++)
        v[j] = us_glu(v[j], g[j] + b[j]);
    us_k_add(&a->res, &at, vec, v);
    us_k_finish(&a->finish, &at, vec, v);
}

US_HD void us_k_gate_at(const struct us_k_gate *a, int64_t i)
{
    if (a->grid.vec == 8)
        us_k_gate_vec(a, i, 8);
    else if (a->grid.vec == 4)
        us_k_gate_vec(a, i, 4);
    else
        us_k_gate_vec(a, i, 1);
}

#endif
