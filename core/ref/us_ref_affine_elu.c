/* Reference folded batch norm and ELU on its own (model-spec 3.1): the tail without a producer. */
#include "us_ref.h"

static void affine_elu_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                             int32_t y, int32_t x)
{
    const struct us_affine_elu_desc *d = &op->d.affine_elu;
    const float *scale = usi_ref_scale(op, bufs);
    const float *shift = usi_ref_shift(op, bufs);
    const float *p = usi_ref_pixel(&d->in, bufs->in[0], n, y, x);
    float *out = (float *)bufs->out + us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++)
        out[c] = us_elu(us_madd(scale[c], p != NULL ? p[c] : 0.0f, shift[c]));
}

enum us_status usi_ref_affine_elu_init(struct usi_ref_op *op, struct us_err *err)
{
    US_TRY(usi_ref_need_f32("in", &op->d.affine_elu.in, err));
    US_TRY(usi_ref_need_f32("out", &op->d.affine_elu.out, err));
    op->n_tail = op->d.affine_elu.out.c;
    op->out = op->d.affine_elu.out;
    op->pixel = affine_elu_pixel;
    return US_OK;
}
