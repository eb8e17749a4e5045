/*
 * What every convolution provider refuses, in the same words (us_conv.h).
 */
#include "us_conv.h"

/* Strides that keep pixels apart, and no product near 2^63. */
static enum us_status check_map(const char *name, const struct us_conv_map *m, struct us_err *err)
{
    if (m->h < 1 || m->w < 1 || m->c < 1)
        return us_fail(err, US_E_ARG, "%s is %dx%d with %d channels", name, m->h, m->w, m->c);
    if (m->pixel_stride < m->c || m->row_stride < m->w * m->pixel_stride ||
        m->image_stride < m->h * m->row_stride - (m->row_stride - m->w * m->pixel_stride))
        return us_fail(err, US_E_ARG, "%s: the strides %lld, %lld, %lld make pixels overlap", name,
                       (long long)m->image_stride, (long long)m->row_stride,
                       (long long)m->pixel_stride);
    return US_OK;
}

/* y is what a convolution of x gives; rows or columns that no tap reaches may be left over. */
static enum us_status check_side(const char *name, const struct us_conv_desc *d, int64_t x,
                                 int64_t y, int64_t before, int64_t after, struct us_err *err)
{
    if (before < 0 || after < 0)
        return us_fail(err, US_E_ARG, "%s: padding of %lld and %lld", name, (long long)before,
                       (long long)after);
    int64_t room = x + before + after - d->k;
    if (room < 0 || room / d->stride + 1 != y)
        return us_fail(err, US_E_ARG,
                       "%s: %lld padded by %lld and %lld does not give %lld with kernel %d, "
                       "stride %d",
                       name, (long long)x, (long long)before, (long long)after, (long long)y, d->k,
                       d->stride);
    return US_OK;
}

enum us_status us_conv_check(const struct us_conv_desc *d, struct us_err *err)
{
    if (d->n < 1 || d->k < 1 || d->stride < 1)
        return us_fail(err, US_E_ARG, "%d images, kernel %d, stride %d", d->n, d->k, d->stride);
    US_TRY(check_map("x", &d->x, err));
    US_TRY(check_map("y", &d->y, err));
    US_TRY(check_side("height", d, d->x.h, d->y.h, d->top, d->bottom, err));
    US_TRY(check_side("width", d, d->x.w, d->y.w, d->left, d->right, err));
    if (d->kind == US_CONV_FILTER) {
        if (d->bias || d->elu || d->residual)
            return us_fail(err, US_E_ARG, "a gradient by weights has no epilogue");
        return US_OK;
    }
    if (d->out_dtype != d->dtype && d->out_dtype != US_F32)
        return us_fail(err, US_E_ARG, "a convolution writes its own type or f32");
    if (!d->residual)
        return US_OK;
    const struct us_conv_map *out = d->kind == US_CONV_DATA ? &d->x : &d->y;
    US_TRY(check_map("residual", &d->res, err));
    if (d->res.h != out->h || d->res.w != out->w || d->res.c != out->c)
        return us_fail(err, US_E_ARG, "the residual has another shape than the output");
    return US_OK;
}
