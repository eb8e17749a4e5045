/*
 * conv2d on the cpu backend. Where oneDNN can write the output itself it does, in one call;
 * where something follows that it cannot do (residual after the activation, tail), the sums come
 * out as f32 band by band and an own pass finishes each band, rounding once. With f32 output the
 * sums land in the output buffer and are finished there.
 */
#include "us_cpu_impl.h"

static enum us_status conv2d_pack(const struct usi_cpu_op *op, const struct us_op_weights *w,
                                  void *packed)
{
    return usi_cpu_conv_pack(&op->conv[0], w->w, packed);
}

void usi_cpu_epilogue_rows(const struct us_bound *b, const struct us_map *out,
                           const struct us_map *res, int32_t n, int32_t y, int32_t h,
                           const float *x)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_rect *r = &out->rect;
    /* Rows that follow each other in every buffer are one long row. */
    bool dense = res == NULL || (res->rect.x0 == r->x0 && res->rect.w == r->w);
    int32_t step = dense ? h : 1;
    int64_t row = (int64_t)r->w * out->c;
    for (int32_t i = 0; i < h; i += step) {
        struct usi_cpu_epilogue e = {.x = x + i * row, .n = step * row, .tail = b->tail};
        e.out = usi_cpu_pixel_out(out, b->bufs.out, n, y + i, r->x0);
        if (res != NULL)
            e.res = usi_cpu_pixel(res, b->bufs.in[1], n, y + i, r->x0);
        if (op->n_tail > 0)
            e.out2 = usi_cpu_pixel_out(out, b->bufs.out2, n, y + i, r->x0);
        op->epilogue(&e);
    }
}

static enum us_status conv2d_run(const struct us_bound *b)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_conv2d_desc *d = &op->d.conv2d;
    const struct us_rect *r = &d->out.rect;
    const struct usi_cpu_conv *c = &op->conv[0];
    for (int32_t n = 0; n < d->out.n; n++) {
        const void *src = usi_cpu_source_item(b, 0, n);
        for (int32_t i = 0; i < c->n_bands; i++) {
            int32_t y = r->y0 + c->band[i].y0;
            void *dst = op->stage_bytes[0] > 0
                            ? usi_cpu_stage(b, 0)
                            : usi_cpu_pixel_out(&d->out, b->bufs.out, n, y, r->x0);
            US_TRY(usi_cpu_conv_run(b, 0, i, src, dst));
            if (op->epilogue != NULL)
                usi_cpu_epilogue_rows(b, &d->out, d->residual ? &d->res : NULL, n, y, c->band[i].h,
                                      (const float *)dst);
        }
    }
    return US_OK;
}

/* Chooses between oneDNN's own finish and ours. */
static void choose_finish(struct usi_cpu_op *op, struct usi_cpu_window *w)
{
    const struct us_conv2d_desc *d = &op->d.conv2d;
    bool elu = d->act == US_ACT_ELU;
    enum us_dtype to = d->out.dtype;
    bool own = d->tail || d->residual || (elu && !op->be->fuse_elu[d->in.dtype]) ||
               (d->in.dtype == US_F32 && to == US_BF16);
    w->elu = elu && !own;
    w->dst = own ? US_F32 : to;
    w->band_rows = w->oh;
    if (own) {
        enum usi_cpu_res res = d->residual ? (enum usi_cpu_res)d->res.dtype : US_CPU_RES_NONE;
        int64_t row_bytes = (int64_t)w->ow * w->oc * (int64_t)sizeof(float);
        op->epilogue = op->be->kern->epilogue[elu][res][to][d->tail];
        w->band_rows = usi_cpu_band_rows(w->oh, row_bytes);
        if (to != US_F32)
            op->stage_bytes[0] = (size_t)(w->band_rows * row_bytes);
    }
    w->first_rows = w->band_rows;
}

enum us_status usi_cpu_conv2d_init(struct usi_cpu_op *op, struct us_err *err)
{
    const struct us_conv2d_desc *d = &op->d.conv2d;
    const struct us_rect *r = &d->out.rect;
    US_TRY(usi_cpu_limits(&d->in, d->k, err));
    struct us_rect need = {r->y0 * d->stride - d->pad, r->x0 * d->stride - d->pad,
                           (r->h - 1) * d->stride + d->k, (r->w - 1) * d->stride + d->k};
    usi_cpu_source_plan(&op->src[0], &d->in, need, d->k - 1, d->k - 1);
    struct usi_cpu_window w = {
        .kh = d->k,
        .kw = d->k,
        .stride = d->stride,
        .y0 = need.y0,
        .x0 = need.x0,
        .oh = r->h,
        .ow = r->w,
        .ic = d->in.c,
        .oc = d->out.c,
        .src = d->in.dtype,
        .bias = true,
        .view = op->src[0].view,
    };
    choose_finish(op, &w);
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->out2 = d->tail;
    op->n_in = d->residual ? 2 : 1;
    op->pack = conv2d_pack;
    op->run = conv2d_run;
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * d->k * d->k * d->in.c;
    op->n_conv = 1;
    return usi_cpu_conv_plan(op->be, &w, &op->conv[0], err);
}
