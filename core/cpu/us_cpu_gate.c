/*
 * gate on the cpu backend: a 1x1 convolution to 2C channels, band by band into scratch, so that
 * the doubled map is never written to memory; an own pass makes ELU(a) * sigmoid(g) + res and the
 * tail from each band.
 */
#include "us_cpu_impl.h"

static enum us_status gate_pack(const struct usi_cpu_op *op, const struct us_op_weights *w,
                                void *packed)
{
    return usi_cpu_conv_pack(&op->conv[0], w->w, packed);
}

/* Band of rows y .. y+h; row by row where the residual's rows are longer than the output's. */
static void finish_band(const struct us_bound *b, int32_t n, int32_t y, int32_t h, const float *x)
{
    const struct us_gate_desc *d = &b->op->d.gate;
    const struct us_rect *r = &d->out.rect;
    bool dense = d->res.rect.x0 == r->x0 && d->res.rect.w == r->w;
    int32_t step = dense ? h : 1;
    for (int32_t i = 0; i < h; i += step) {
        struct usi_cpu_gate_args a = {
            .x = x + 2 * (int64_t)i * r->w * d->out.c,
            .res = usi_cpu_pixel(&d->res, b->bufs.in[1], n, y + i, r->x0),
            .out = usi_cpu_pixel_out(&d->out, b->bufs.out, n, y + i, r->x0),
            .tail = b->tail,
            .n_pixels = (int64_t)step * r->w,
            .c = d->out.c,
        };
        if (d->tail)
            a.out2 = usi_cpu_pixel_out(&d->out, b->bufs.out2, n, y + i, r->x0);
        b->op->gate(&a);
    }
}

static enum us_status gate_run(const struct us_bound *b)
{
    const struct us_gate_desc *d = &b->op->d.gate;
    const struct usi_cpu_conv *c = &b->op->conv[0];
    float *stage = usi_cpu_stage(b, 0);
    for (int32_t n = 0; n < d->out.n; n++) {
        const void *src = usi_cpu_source_item(b, 0, n);
        for (int32_t i = 0; i < c->n_bands; i++) {
            US_TRY(usi_cpu_conv_run(b, 0, i, src, stage));
            finish_band(b, n, d->out.rect.y0 + c->band[i].y0, c->band[i].h, stage);
        }
    }
    return US_OK;
}

enum us_status usi_cpu_gate_init(struct usi_cpu_op *op, struct us_err *err)
{
    const struct us_gate_desc *d = &op->d.gate;
    const struct us_rect *r = &d->out.rect;
    US_TRY(usi_cpu_limits(&d->in, 1, err));
    int64_t row_bytes = (int64_t)r->w * 2 * d->out.c * (int64_t)sizeof(float);
    int32_t rows = usi_cpu_band_rows(r->h, row_bytes);
    usi_cpu_source_plan(&op->src[0], &d->in, *r, 0, 0);
    struct usi_cpu_window w = {
        .kh = 1,
        .kw = 1,
        .stride = 1,
        .y0 = r->y0,
        .x0 = r->x0,
        .oh = r->h,
        .ow = r->w,
        .ic = d->in.c,
        .oc = 2 * d->out.c,
        .src = d->in.dtype,
        .dst = US_F32,
        .bias = true,
        .view = op->src[0].view,
        .first_rows = rows,
        .band_rows = rows,
    };
    op->stage_bytes[0] = (size_t)(rows * row_bytes);
    op->n_bias = 2 * d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->out2 = d->tail;
    op->n_in = 2;
    op->gate = op->be->kern->gate[d->res.dtype][d->out.dtype][d->tail];
    op->pack = gate_pack;
    op->run = gate_run;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * 2 * d->in.c;
    op->n_conv = 1;
    return usi_cpu_conv_plan(op->be, &w, &op->conv[0], err);
}
