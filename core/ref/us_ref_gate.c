/* Reference gate: 1x1 convolution to [a | g], res + ELU(a) * sigmoid(g), tail (model-spec 3.2). */
#include "us_ref.h"

static void gate_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                       int32_t y, int32_t x)
{
    const struct us_gate_desc *d = &op->d.gate;
    double *acc = bufs->scratch;
    usi_ref_begin(op, bufs, acc);
    usi_ref_add_pixel(op, bufs, 0, 0, d->in.c, usi_ref_pixel(&d->in, bufs->in[0], n, y, x), acc);
    const float *res = usi_ref_pixel(&d->res, bufs->in[1], n, y, x);
    int64_t at = us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++)
        usi_ref_store(op, bufs, at, c, res[c] + us_glu((float)acc[c], (float)acc[d->out.c + c]));
}

enum us_status usi_ref_gate_init(struct usi_ref_op *op, struct us_err *err)
{
    const struct us_gate_desc *d = &op->d.gate;
    US_TRY(usi_ref_need_f32("in", &d->in, err));
    US_TRY(usi_ref_need_f32("res", &d->res, err));
    US_TRY(usi_ref_need_f32("out", &d->out, err));
    op->taps = 1;
    op->n_in = d->in.c;
    op->n_out = 2 * (int64_t)d->out.c;
    op->n_bias = op->n_out;
    op->n_tail = d->tail ? d->out.c : 0;
    op->in2 = true;
    op->out2 = d->tail;
    op->out = d->out;
    op->pixel = gate_pixel;
    op->base.flops = 2.0 * 2.0 * (double)us_map_count(&d->out) * (double)op->n_in;
    return US_OK;
}
