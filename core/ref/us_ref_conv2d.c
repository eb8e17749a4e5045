/* Reference convolution: cross-correlation, zero padding, activation, residual, tail
 * (model-spec 0, 2; us_conv2d_desc). */
#include "us_ref.h"

static void conv2d_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                         int32_t y, int32_t x)
{
    const struct us_conv2d_desc *d = &op->d.conv2d;
    double *acc = bufs->scratch;
    usi_ref_begin(op, bufs, acc);
    for (int32_t ky = 0; ky < d->k; ky++)
        for (int32_t kx = 0; kx < d->k; kx++) {
            const float *p =
                usi_ref_pixel(&d->in, bufs->in[0], n, (int64_t)y * d->stride - d->pad + ky,
                              (int64_t)x * d->stride - d->pad + kx);
            usi_ref_add_pixel(op, bufs, (int64_t)ky * d->k + kx, 0, d->in.c, p, acc);
        }
    const float *res = d->residual ? usi_ref_pixel(&d->res, bufs->in[1], n, y, x) : NULL;
    int64_t at = us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++) {
        float v = (float)acc[c];
        if (d->act == US_ACT_ELU)
            v = us_elu(v);
        if (res != NULL)
            v += res[c];
        usi_ref_store(op, bufs, at, c, v);
    }
}

enum us_status usi_ref_conv2d_init(struct usi_ref_op *op, struct us_err *err)
{
    const struct us_conv2d_desc *d = &op->d.conv2d;
    US_TRY(usi_ref_need_f32("in", &d->in, err));
    US_TRY(usi_ref_need_f32("out", &d->out, err));
    if (d->residual)
        US_TRY(usi_ref_need_f32("res", &d->res, err));
    op->taps = (int64_t)d->k * d->k;
    op->n_in = d->in.c;
    op->n_out = d->out.c;
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->in2 = d->residual;
    op->out2 = d->tail;
    op->out = d->out;
    op->pixel = conv2d_pixel;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * (double)(op->taps * op->n_in);
    return US_OK;
}
