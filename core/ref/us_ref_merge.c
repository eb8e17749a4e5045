/* Reference merge: 1x1 convolution of two maps side by side, a's channels first (model-spec 3.4).
 */
#include "us_ref.h"

static void merge_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                        int32_t y, int32_t x)
{
    const struct us_merge_desc *d = &op->d.merge;
    double *acc = bufs->scratch;
    usi_ref_begin(op, bufs, acc);
    usi_ref_add_pixel(op, bufs, 0, 0, d->a.c, usi_ref_pixel(&d->a, bufs->in[0], n, y, x), acc);
    usi_ref_add_pixel(op, bufs, 0, d->a.c, d->b.c, usi_ref_pixel(&d->b, bufs->in[1], n, y, x), acc);
    int64_t at = us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++)
        usi_ref_store(op, bufs, at, c, (float)acc[c]);
}

enum us_status usi_ref_merge_init(struct usi_ref_op *op, struct us_err *err)
{
    const struct us_merge_desc *d = &op->d.merge;
    US_TRY(usi_ref_need_f32("a", &d->a, err));
    US_TRY(usi_ref_need_f32("b", &d->b, err));
    US_TRY(usi_ref_need_f32("out", &d->out, err));
    op->taps = 1;
    op->n_in = (int64_t)d->a.c + d->b.c;
    op->n_out = d->out.c;
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->in2 = true;
    op->out2 = d->tail;
    op->out = d->out;
    op->pixel = merge_pixel;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * (double)op->n_in;
    return US_OK;
}
