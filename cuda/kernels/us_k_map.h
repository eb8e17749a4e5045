/*
 * Training's elementwise passes over maps: activations, gate, dropout, sums, windows, conversions,
 * and the learned prior's change of layout.
 */
#ifndef US_K_MAP_H
#define US_K_MAP_H

#include "kernels/us_k_dense.h"
#include "math/us_philox_math.h"

/* ---- activations ---- */

US_HD int64_t us_k_elu_fwd_count(const struct us_k_elu_fwd *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_elu_fwd_vec(const struct us_k_elu_fwd *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC];
    us_k_load(a->x, a->m.dtype, i * vec, vec, v);
    for (int32_t j = 0; j < vec; j++)
        v[j] = us_elu(v[j]);
    us_k_store(a->y, a->m.dtype, i * vec, vec, v);
}
US_K_BY_WIDTH(elu_fwd, a->m.vec)

US_HD int64_t us_k_elu_bwd_count(const struct us_k_elu_bwd *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_elu_bwd_vec(const struct us_k_elu_bwd *a, int64_t i, int32_t vec)
{
    float y[US_K_VEC], d[US_K_VEC];
    us_k_load(a->y, a->m.dtype, i * vec, vec, y);
    us_k_load(a->dy, a->m.dtype, i * vec, vec, d);
    for (int32_t j = 0; j < vec; j++)
        d[j] = us_mul(d[j], us_elu_d_of_y(y[j]));
    us_k_store(a->dx, a->m.dtype, i * vec, vec, d);
}
US_K_BY_WIDTH(elu_bwd, a->m.vec)

US_HD int64_t us_k_glu_fwd_count(const struct us_k_glu_fwd *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_glu_fwd_vec(const struct us_k_glu_fwd *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], s[US_K_VEC], r[US_K_VEC];
    int64_t px;
    int32_t c = us_k_dense_channel(&a->m, i, &px);
    us_k_load(a->g, a->m.dtype, px * 2 * a->m.c + c, vec, v);
    us_k_load(a->g, a->m.dtype, px * 2 * a->m.c + a->m.c + c, vec, s);
    us_k_load(a->res, a->m.dtype, i * vec, vec, r);
    for (int32_t j = 0; j < vec; j++)
        r[j] = r[j] + us_glu(v[j], s[j]);
    us_k_store(a->out, a->m.dtype, i * vec, vec, r);
}
US_K_BY_WIDTH(glu_fwd, a->m.vec)

US_HD int64_t us_k_glu_bwd_count(const struct us_k_glu_bwd *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_glu_bwd_vec(const struct us_k_glu_bwd *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], s[US_K_VEC], d[US_K_VEC];
    int64_t px;
    int32_t c = us_k_dense_channel(&a->m, i, &px);
    int64_t at = px * 2 * a->m.c + c;
    us_k_load(a->g, a->m.dtype, at, vec, v);
    us_k_load(a->g, a->m.dtype, at + a->m.c, vec, s);
    us_k_load(a->dout, a->m.dtype, i * vec, vec, d);
    for (int32_t j = 0; j < vec; j++) {
        struct us_glu_grad r = us_glu_d(v[j], s[j], d[j]);
        v[j] = r.a;
        s[j] = r.g;
    }
    us_k_store(a->dg, a->m.dtype, at, vec, v);
    us_k_store(a->dg, a->m.dtype, at + a->m.c, vec, s);
}
US_K_BY_WIDTH(glu_bwd, a->m.vec)

/* ---- dropout ---- */

US_HD int64_t us_k_drop_runs(const struct us_k_drop *a)
{
    return (a->px + US_K_DROP_RUN - 1) / US_K_DROP_RUN;
}

US_HD int64_t us_k_drop_count(const struct us_k_drop *a)
{
    return a->items * us_k_drop_runs(a) * (a->m.c / a->m.vec);
}

/* What channels c .. c + vec are multiplied by. */
US_HD void us_k_drop_factors(const struct us_k_drop *a, int64_t item, int32_t c, int32_t vec,
                             float *f)
{
    const struct us_draw *d = &a->draw[item];
    struct us_philox r = {{0, 0, 0, 0}};
    US_K_UNROLL
    for (int32_t j = 0; j < vec; j++) {
        if (j % 4 == 0)
            r = us_dropout_words((uint32_t)d->seed, (uint32_t)(d->seed >> 32), d->item, a->node,
                                 d->step, (uint32_t)(c + j) / 4);
        /* Of one channel alone, its own word of the block. */
        uint32_t word = r.w[j % 4];
        if (vec == 1)
            word = c % 4 == 0 ? r.w[0] : c % 4 == 1 ? r.w[1] : c % 4 == 2 ? r.w[2] : r.w[3];
        f[j] = us_dropout_factor(word, a->p);
    }
}

US_HD void us_k_drop_vec(const struct us_k_drop *a, int64_t i, int32_t vec)
{
    float f[US_K_VEC], v[US_K_VEC];
    int32_t groups = a->m.c / vec;
    int64_t run = us_k_divide(i, groups), runs = us_k_drop_runs(a);
    int32_t c = (int32_t)(i - run * groups) * vec;
    int64_t item = us_k_divide(run, runs), px = (run - item * runs) * US_K_DROP_RUN;
    us_k_drop_factors(a, item, c, vec, f);
    for (int32_t k = 0; k < US_K_DROP_RUN && px < a->px; k++, px++) {
        int64_t at = (item * a->px + px) * a->m.c + c;
        us_k_load(a->x, a->m.dtype, at, vec, v);
        for (int32_t j = 0; j < vec; j++)
            v[j] = us_mul(v[j], f[j]);
        us_k_store(a->x, a->m.dtype, at, vec, v);
    }
}
US_K_BY_WIDTH(drop, a->m.vec)

/* ---- sums and copies ---- */

US_HD int64_t us_k_accumulate_count(const struct us_k_accumulate *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_accumulate_vec(const struct us_k_accumulate *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], d[US_K_VEC];
    us_k_load(a->src, a->m.dtype, i * vec, vec, v);
    if (a->add) {
        us_k_load(a->dst, a->m.dtype, i * vec, vec, d);
        for (int32_t j = 0; j < vec; j++)
            v[j] = d[j] + v[j];
    }
    us_k_store(a->dst, a->m.dtype, i * vec, vec, v);
}
US_K_BY_WIDTH(accumulate, a->m.vec)

US_HD int64_t us_k_scale_count(const struct us_k_scale *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_scale_vec(const struct us_k_scale *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC];
    us_k_load(a->x, a->m.dtype, i * vec, vec, v);
    for (int32_t j = 0; j < vec; j++)
        v[j] = us_mul(v[j], a->factor);
    us_k_store(a->x, a->m.dtype, i * vec, vec, v);
}
US_K_BY_WIDTH(scale, a->m.vec)

US_HD int64_t us_k_window_count(const struct us_k_window *a)
{
    return us_k_pieces(&a->grid);
}

US_HD void us_k_window_vec(const struct us_k_window *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC], d[US_K_VEC];
    struct us_k_place at = us_k_place(&a->grid, i);
    int64_t to = us_k_out_at(&a->to, &at);
    us_k_load(a->from.p, a->from.dtype, us_k_in_at(&a->from, at.n, at.y, at.x, at.c), vec, v);
    if (a->add) {
        us_k_load(a->to.p, a->to.dtype, to, vec, d);
        for (int32_t j = 0; j < vec; j++)
            v[j] = d[j] + v[j];
    }
    us_k_store(a->to.p, a->to.dtype, to, vec, v);
}
US_K_BY_WIDTH(window, a->grid.vec)

US_HD int64_t us_k_convert_count(const struct us_k_convert *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_convert_vec(const struct us_k_convert *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC];
    us_k_load(a->src, a->from, i * vec, vec, v);
    us_k_store(a->dst, a->m.dtype, i * vec, vec, v);
}
US_K_BY_WIDTH(convert, a->m.vec)

/* ---- the learned prior ---- */

US_HD int64_t us_k_prior_load_count(const struct us_k_prior_load *a)
{
    return us_k_dense_pieces(&a->m);
}

US_HD void us_k_prior_load_at(const struct us_k_prior_load *a, int64_t i)
{
    int64_t px;
    int32_t c = us_k_dense_channel(&a->m, i, &px);
    float v = a->prior[c * a->px + (px - us_k_divide(px, a->px) * a->px)];
    us_k_store(a->p, a->m.dtype, i, 1, &v);
}

US_HD int64_t us_k_prior_grad_count(const struct us_k_prior_grad *a)
{
    return a->px * a->c;
}

US_HD void us_k_prior_grad_at(const struct us_k_prior_grad *a, int64_t i)
{
    int64_t px = us_k_divide(i, a->c), c = i - px * a->c;
    float sum = a->dprior[c * a->px + px], v;
    for (int32_t n = 0; n < a->items; n++) {
        us_k_load(a->dp, a->dtype, (n * a->px + px) * a->c + c, 1, &v);
        sum += v;
    }
    a->dprior[c * a->px + px] = sum;
}

#endif
