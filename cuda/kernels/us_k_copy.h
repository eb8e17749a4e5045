/*
 * A rectangle of a map, converted (us_copy_desc). Without a conversion the bits are moved as they
 * are.
 */
#ifndef US_K_COPY_H
#define US_K_COPY_H

#include "kernels/us_k_vec.h"

US_HD int64_t us_k_copy_count(const struct us_k_copy *a)
{
    return us_k_pieces(&a->grid);
}

US_HD void us_k_copy_vec(const struct us_k_copy *a, int64_t i, int32_t vec)
{
    float v[US_K_VEC];
    struct us_k_place at = us_k_place(&a->grid, i);
    int64_t to = us_k_out_at(&a->out, &at);
    if (a->in.dtype == US_BF16 && a->out.dtype == US_BF16) {
        struct us_k_words q = {{0, 0, 0, 0}};
        int in = us_k_holds(&a->in, at.y, at.x);
        int64_t from = in ? us_k_in_at(&a->in, at.n, at.y, at.x, at.c) : 0;
        const uint16_t *src = (const uint16_t *)a->in.p + from;
        uint16_t *dst = (uint16_t *)a->out.p + to;
        if (vec == 1) {
            dst[0] = in ? src[0] : (uint16_t)0;
            return;
        }
        if (in)
            q = us_k_get(src, 2 * vec);
        us_k_put(dst, &q, 2 * vec);
        return;
    }
    us_k_read(&a->in, &at, vec, v);
    us_k_store(a->out.p, a->out.dtype, to, vec, v);
}

US_HD void us_k_copy_at(const struct us_k_copy *a, int64_t i)
{
    if (a->grid.vec == 8)
        us_k_copy_vec(a, i, 8);
    else if (a->grid.vec == 4)
        us_k_copy_vec(a, i, 4);
    else
        us_k_copy_vec(a, i, 1);
}

#endif
