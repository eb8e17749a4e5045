/*
 * The descriptor check of training's convolutions: the one of prediction, and whole maps. Shared by
 * all backends, so that they refuse the same things with the same words.
 */
#include "us_train_ops.h"

static bool is_whole(const struct us_map *m)
{
    return m->rect.h == m->full_h && m->rect.w == m->full_w && !m->zero_outside;
}

enum us_status us_tconv_check(const struct us_tconv_desc *d, struct us_err *err)
{
    if (d->transposed) {
        const struct us_conv_t2d_desc t = {.in = d->in, .out = d->out};
        if (d->k != 3 || d->stride != 2 || d->pad != 1)
            return us_fail(err, US_E_ARG,
                           "transposed: kernel %d, stride %d, padding %d, not 3, 2, 1", d->k,
                           d->stride, d->pad);
        US_TRY(us_conv_t2d_check(&t, err));
    } else {
        const struct us_conv2d_desc c = {
            .in = d->in, .out = d->out, .k = d->k, .stride = d->stride, .pad = d->pad};
        US_TRY(us_conv2d_check(&c, err));
    }
    if (!is_whole(&d->in) || !is_whole(&d->out))
        return us_fail(err, US_E_ARG, "training computes whole maps only");
    return US_OK;
}
