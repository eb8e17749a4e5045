/*
 * Pieces of dense maps (struct us_k_dense), for the bodies of training's kernels.
 */
#ifndef US_K_DENSE_H
#define US_K_DENSE_H

#include "kernels/us_k_train_args.h"
#include "kernels/us_k_vec.h"

/* The body us_k_<name>_at from us_k_<name>_vec(a, i, vec), with a constant width. */
#define US_K_BY_WIDTH(name, width)                                                                 \
    US_HD void us_k_##name##_at(const struct us_k_##name *a, int64_t i)                            \
    {                                                                                              \
        if ((width) == 8)                                                                          \
            us_k_##name##_vec(a, i, 8);                                                            \
        else if ((width) == 4)                                                                     \
            us_k_##name##_vec(a, i, 4);                                                            \
        else                                                                                       \
            us_k_##name##_vec(a, i, 1);                                                            \
    }

US_HD int64_t us_k_dense_pieces(const struct us_k_dense *m)
{
    return m->n_px * (m->c / m->vec);
}

/* First channel of piece i; *ret_px: its pixel. */
US_HD int32_t us_k_dense_channel(const struct us_k_dense *m, int64_t i, int64_t *ret_px)
{
    int32_t groups = m->c / m->vec;
    *ret_px = us_k_divide(i, groups);
    return (int32_t)(i - *ret_px * groups) * m->vec;
}

/* Rows of a sum per channel: `vec` channels each. */
US_HD int64_t us_k_dense_rows(const struct us_k_dense *m)
{
    return m->c / m->vec;
}

#endif
