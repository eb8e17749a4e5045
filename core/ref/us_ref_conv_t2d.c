/* Reference transposed convolution, 3x3, stride 2, padding 1, output padding 1 (model-spec 2). */
#include "us_ref.h"

/* out[2*iy-1+ky] += in[iy]: for a given output row, the taps whose iy = (y+1-ky)/2 is whole. */
static void conv_t2d_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                           int32_t y, int32_t x)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    double *acc = bufs->scratch;
    usi_ref_begin(op, bufs, acc);
    for (int32_t ky = 0; ky < 3; ky++)
        for (int32_t kx = 0; kx < 3; kx++) {
            int64_t y2 = (int64_t)y + 1 - ky;
            int64_t x2 = (int64_t)x + 1 - kx;
            if (y2 % 2 != 0 || x2 % 2 != 0) /* -1, before the map, is odd */
                continue;
            const float *p = usi_ref_pixel(&d->in, bufs->in[0], n, y2 / 2, x2 / 2);
            usi_ref_add_pixel(op, bufs, ky * 3 + kx, 0, d->in.c, p, acc);
        }
    int64_t at = us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++)
        usi_ref_store(op, bufs, at, c, (float)acc[c]);
}

enum us_status usi_ref_conv_t2d_init(struct usi_ref_op *op, struct us_err *err)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    US_TRY(usi_ref_need_f32("in", &d->in, err));
    US_TRY(usi_ref_need_f32("out", &d->out, err));
    op->taps = 9;
    op->in_first = true;
    op->n_in = d->in.c;
    op->n_out = d->out.c;
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->out2 = d->tail;
    op->out = d->out;
    op->pixel = conv_t2d_pixel;
    /* Of the nine taps 1, 2, 2 or 4 meet an output pixel: 9/4 on average. */
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * (double)op->n_in * 9.0 / 4.0;
    return US_OK;
}
