/*
 * What the bodies of the prediction kernels share: a few channels of a pixel as floats, from and to
 * either dtype, in 16-byte accesses where `vec` allows; and which pixel a piece is. `vec` is a
 * constant at every call, so that the arrays stand in registers on the device.
 */
#ifndef US_K_VEC_H
#define US_K_VEC_H

#include "kernels/us_k_infer_args.h"
#include "math/us_bf16_math.h"
#include "math/us_elu_math.h"

/* Before a loop whose counter indexes an array that should stand in registers. */
#if defined(__CUDACC__)
#define US_K_UNROLL _Pragma("unroll")
#else
#define US_K_UNROLL
#endif

/* ---- memory ---- */

struct us_k_words {
    uint32_t w[4];
};

/* 16 or 8 bytes, aligned to their size. */
US_HD struct us_k_words us_k_get(const void *p, int32_t bytes)
{
    struct us_k_words r = {{0, 0, 0, 0}};
#if defined(__CUDA_ARCH__)
    if (bytes == 16) {
        uint4 q = *(const uint4 *)p;
        r.w[0] = q.x;
        r.w[1] = q.y;
        r.w[2] = q.z;
        r.w[3] = q.w;
    } else {
        uint2 q = *(const uint2 *)p;
        r.w[0] = q.x;
        r.w[1] = q.y;
    }
#else
    memcpy(r.w, p, (size_t)bytes);
#endif
    return r;
}

US_HD void us_k_put(void *p, const struct us_k_words *v, int32_t bytes)
{
#if defined(__CUDA_ARCH__)
    if (bytes == 16)
        *(uint4 *)p = make_uint4(v->w[0], v->w[1], v->w[2], v->w[3]);
    else
        *(uint2 *)p = make_uint2(v->w[0], v->w[1]);
#else
    memcpy(p, v->w, (size_t)bytes);
#endif
}

/* v[0 .. vec) = elements at .. at + vec of p; vec 8, 4 (aligned to their bytes) or 1. */
US_HD void us_k_load(const void *p, enum us_dtype dtype, int64_t at, int32_t vec, float *v)
{
    if (dtype == US_F32) {
        const float *f = (const float *)p + at;
        if (vec == 1)
            v[0] = f[0];
        for (int32_t j = 0; j + 4 <= vec; j += 4) {
            struct us_k_words q = us_k_get(f + j, 16);
            for (int32_t k = 0; k < 4; k++)
                v[j + k] = us_float_of_bits(q.w[k]);
        }
        return;
    }
    const uint16_t *h = (const uint16_t *)p + at;
    if (vec == 1) {
        v[0] = us_f32_of_bf16(h[0]);
        return;
    }
    struct us_k_words q = us_k_get(h, 2 * vec);
    for (int32_t j = 0; j + 2 <= vec; j += 2) { /* little-endian, as x86 and the device are */
        v[j] = us_float_of_bits(q.w[j / 2] << 16);
        v[j + 1] = us_float_of_bits(q.w[j / 2] & 0xffff0000u);
    }
}

US_HD void us_k_store(void *p, enum us_dtype dtype, int64_t at, int32_t vec, const float *v)
{
    struct us_k_words q = {{0, 0, 0, 0}};
    if (dtype == US_F32) {
        float *f = (float *)p + at;
        if (vec == 1)
            f[0] = v[0];
        for (int32_t j = 0; j + 4 <= vec; j += 4) {
            for (int32_t k = 0; k < 4; k++)
                q.w[k] = us_bits_of_float(v[j + k]);
            us_k_put(f + j, &q, 16);
        }
        return;
    }
    uint16_t *h = (uint16_t *)p + at;
    if (vec == 1) {
        h[0] = us_bf16_of_f32(v[0]);
        return;
    }
    for (int32_t j = 0; j + 2 <= vec; j += 2)
        q.w[j / 2] = (uint32_t)us_bf16_of_f32(v[j]) | (uint32_t)us_bf16_of_f32(v[j + 1]) << 16;
    us_k_put(h, &q, 2 * vec);
}

/* ---- pieces ---- */

struct us_k_place {
    int64_t n, y, x;
    int32_t c; /* the piece's first channel */
};

US_HD int64_t us_k_pieces(const struct us_k_grid *g)
{
    return g->n * g->h * g->w * (g->c / g->vec);
}

/* Divisions of 64 bits take the device far longer than those of 32. */
US_HD int64_t us_k_divide(int64_t a, int64_t b)
{
    return (a | b) >> 32 == 0 ? (int64_t)((uint32_t)a / (uint32_t)b) : a / b;
}

/* Piece i of a grid with `groups` pieces per pixel; channels are left to the caller. */
US_HD struct us_k_place us_k_place_of(const struct us_k_grid *g, int64_t i, int32_t groups,
                                      int32_t *ret_group)
{
    struct us_k_place at = {0, 0, 0, 0};
    at.x = us_k_divide(i, groups);
    *ret_group = (int32_t)(i - at.x * groups);
    if (g->h == 1 && g->n == 1)
        return at;
    int64_t row = us_k_divide(at.x, g->w);
    at.x -= row * g->w;
    at.n = us_k_divide(row, g->h);
    at.y = row - at.n * g->h;
    return at;
}

US_HD struct us_k_place us_k_place(const struct us_k_grid *g, int64_t i)
{
    int32_t group;
    struct us_k_place at = us_k_place_of(g, i, g->c / g->vec, &group);
    at.c = group * g->vec;
    return at;
}

US_HD int us_k_holds(const struct us_k_in *m, int64_t y, int64_t x)
{
    return m->p != NULL && y >= m->y0 && y < m->y1 && x >= m->x0 && x < m->x1;
}

/* Element of channel c of pixel (y, x), which m holds. */
US_HD int64_t us_k_in_at(const struct us_k_in *m, int64_t n, int64_t y, int64_t x, int64_t c)
{
    return n * m->image + (y - m->y0) * m->row + (x - m->x0) * m->pixel + c;
}

US_HD int64_t us_k_out_at(const struct us_k_out *m, const struct us_k_place *at)
{
    return at->n * m->image + at->y * m->row + at->x * m->pixel + at->c;
}

/* v += what m has at a place (channels from at->c + first); nothing where it has nothing. */
US_HD void us_k_add(const struct us_k_in *m, const struct us_k_place *at, int32_t vec, float *v)
{
    float r[US_K_VEC];
    if (!us_k_holds(m, at->y, at->x))
        return;
    us_k_load(m->p, m->dtype, us_k_in_at(m, at->n, at->y, at->x, at->c), vec, r);
    for (int32_t j = 0; j < vec; j++)
        v[j] += r[j];
}

US_HD void us_k_read(const struct us_k_in *m, const struct us_k_place *at, int32_t vec, float *v)
{
    for (int32_t j = 0; j < vec; j++)
        v[j] = 0.0f;
    if (us_k_holds(m, at->y, at->x))
        us_k_load(m->p, m->dtype, us_k_in_at(m, at->n, at->y, at->x, at->c), vec, v);
}

US_HD void us_k_finish(const struct us_k_finish *f, const struct us_k_place *at, int32_t vec,
                       const float *v)
{
    float s[US_K_VEC], t[US_K_VEC];
    if (f->out.p != NULL)
        us_k_store(f->out.p, f->out.dtype, us_k_out_at(&f->out, at), vec, v);
    if (f->out2.p == NULL)
        return;
    us_k_load(f->scale, US_F32, at->c, vec, s);
    us_k_load(f->shift, US_F32, at->c, vec, t);
    for (int32_t j = 0; j < vec; j++)
        t[j] = us_elu(us_madd(s[j], v[j], t[j]));
    us_k_store(f->out2.p, f->out2.dtype, us_k_out_at(&f->out2, at), vec, t);
}

/* act(v + bias) + res. */
US_HD void us_k_bias_act_res(const float *bias, int32_t elu, const struct us_k_in *res,
                             const struct us_k_place *at, int32_t vec, float *v)
{
    float b[US_K_VEC];
    if (bias != NULL) {
        us_k_load(bias, US_F32, at->c, vec, b);
        for (int32_t j = 0; j < vec; j++)
            v[j] += b[j];
    }
    if (elu)
        for (int32_t j = 0; j < vec; j++)
            v[j] = us_elu(v[j]);
    us_k_add(res, at, vec, v);
}

#endif
