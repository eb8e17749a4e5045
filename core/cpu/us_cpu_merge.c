/*
 * merge on the cpu backend: the two halves of the 1x1 convolution are computed separately, so that
 * nothing is concatenated and a half whose input is zero outside its rectangle is computed on that
 * rectangle only (for the padded maps of lateral context: a quarter of the output). One input, the
 * carrier, makes every output pixel and brings the bias; the other adds to its part.
 *
 * Band by band: both products as f32 into scratch, then an own pass adds, rounds once, and makes
 * the tail.
 */
#include <stdlib.h>
#include <string.h>

#include "us_cpu_impl.h"

enum { CARRIER, OTHER }; /* indices into conv and stage */

/* us_op_bufs.in index of the carrier: b, unless only a holds the whole output. */
static int32_t carrier_of(const struct us_merge_desc *d)
{
    bool a = us_rect_contains(&d->a.rect, &d->out.rect);
    bool b = us_rect_contains(&d->b.rect, &d->out.rect);
    return a && !b ? 0 : 1;
}

static const struct us_map *input(const struct us_merge_desc *d, int32_t i)
{
    return i == 0 ? &d->a : &d->b;
}

/* w [oc, a.c + b.c]: convolution i takes the columns of its input. */
static enum us_status merge_pack(const struct usi_cpu_op *op, const struct us_op_weights *w,
                                 void *packed)
{
    const struct us_merge_desc *d = &op->d.merge;
    int32_t carrier = carrier_of(d);
    size_t oc = (size_t)d->out.c, row = (size_t)d->a.c + (size_t)d->b.c;
    float *half = calloc(oc * row, sizeof(*half));
    enum us_status s = half == NULL ? US_E_NOMEM : US_OK;
    for (int32_t i = 0; i < op->n_conv && s == US_OK; i++) {
        int32_t in = i == CARRIER ? carrier : 1 - carrier;
        size_t ic = (size_t)input(d, in)->c, first = in == 0 ? 0 : (size_t)d->a.c;
        for (size_t co = 0; co < oc; co++)
            memcpy(half + co * ic, w->w + co * row + first, ic * sizeof(*half));
        s = usi_cpu_conv_pack(&op->conv[i], half, packed);
    }
    free(half);
    return s;
}

/* Pixels x .. x+n of one row; x1 f32 [n, c], x2 the same or NULL. */
static void finish_run(const struct us_bound *b, int32_t n, int32_t y, int32_t x, int32_t n_pixels,
                       const float *x1, const float *x2)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_map *out = &op->d.merge.out;
    enum usi_cpu_res res = x2 != NULL ? US_CPU_RES_F32 : US_CPU_RES_NONE;
    struct usi_cpu_epilogue e = {
        .x = x1, .res = x2, .tail = b->tail, .n = (int64_t)n_pixels * out->c};
    if (n_pixels <= 0)
        return;
    e.out = usi_cpu_pixel_out(out, b->bufs.out, n, y, x);
    if (op->n_tail > 0)
        e.out2 = usi_cpu_pixel_out(out, b->bufs.out2, n, y, x);
    op->be->kern->epilogue[0][res][out->dtype][op->n_tail > 0](&e);
}

/* Band i of the carrier and, where it has rows there, band j of the other are staged. */
static void finish_band(const struct us_bound *b, int32_t n, const struct usi_cpu_band *band,
                        const struct usi_cpu_band *other)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_rect *r = &op->d.merge.out.rect;
    const float *x1 = usi_cpu_stage(b, CARRIER), *x2 = usi_cpu_stage(b, OTHER);
    int64_t c = op->d.merge.out.c, row = r->w * c;
    int32_t y = r->y0 + band->y0, h = band->h;
    if (other == NULL) {
        finish_run(b, n, y, r->x0, h * r->w, x1, NULL);
        return;
    }
    const struct usi_cpu_window *w = &op->conv[OTHER].win;
    int32_t left = w->x0 - r->x0, right = r->w - left - w->ow;
    if (left == 0 && right == 0 && other->h == h) {
        finish_run(b, n, y, r->x0, h * r->w, x1, x2);
        return;
    }
    int32_t above = w->y0 - r->y0 + other->y0 - band->y0;
    for (int32_t i = 0; i < h; i++, x1 += row) {
        bool in = i >= above && i < above + other->h;
        if (!in) {
            finish_run(b, n, y + i, r->x0, r->w, x1, NULL);
            continue;
        }
        finish_run(b, n, y + i, r->x0, left, x1, NULL);
        finish_run(b, n, y + i, w->x0, w->ow, x1 + left * c, x2);
        finish_run(b, n, y + i, w->x0 + w->ow, right, x1 + (left + w->ow) * c, NULL);
        x2 += w->ow * c;
    }
}

static enum us_status merge_run(const struct us_bound *b)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_merge_desc *d = &op->d.merge;
    int32_t carrier = carrier_of(d);
    const struct usi_cpu_conv *c = &op->conv[CARRIER], *o = &op->conv[OTHER];
    bool two = op->n_conv > OTHER;
    for (int32_t n = 0; n < d->out.n; n++) {
        const void *src = usi_cpu_source_item(b, carrier, n);
        const void *other = two ? usi_cpu_source_item(b, 1 - carrier, n) : NULL;
        /* The other's bands end where the carrier's end, see plan_other. */
        int32_t skip = two ? (o->win.y0 - d->out.rect.y0) / c->win.band_rows : c->n_bands;
        for (int32_t i = 0; i < c->n_bands; i++) {
            int32_t j = i - skip;
            bool with = two && j >= 0 && j < o->n_bands;
            US_TRY(usi_cpu_conv_run(b, CARRIER, i, src, usi_cpu_stage(b, CARRIER)));
            if (with)
                US_TRY(usi_cpu_conv_run(b, OTHER, j, other, usi_cpu_stage(b, OTHER)));
            finish_band(b, n, &c->band[i], with ? &o->band[j] : NULL);
        }
    }
    return US_OK;
}

/* Plans the product of one input over `part` of the output. */
static enum us_status plan_half(struct usi_cpu_op *op, int32_t in, struct us_rect part,
                                int32_t first_rows, int32_t band_rows, bool bias,
                                struct us_err *err)
{
    const struct us_map *m = input(&op->d.merge, in);
    struct usi_cpu_source *src = &op->src[in];
    usi_cpu_source_plan(src, m, part, 0, 0);
    struct usi_cpu_window w = {
        .kh = 1,
        .kw = 1,
        .stride = 1,
        .y0 = part.y0,
        .x0 = part.x0,
        .oh = part.h,
        .ow = part.w,
        .ic = m->c,
        .oc = op->d.merge.out.c,
        .src = m->dtype,
        .dst = US_F32,
        .bias = bias,
        .view = src->view,
        .first_rows = first_rows,
        .band_rows = band_rows,
    };
    size_t rows = (size_t)usi_cpu_min(band_rows, part.h);
    op->stage_bytes[op->n_conv] = rows * (size_t)w.ow * (size_t)w.oc * sizeof(float);
    op->base.flops += 2.0 * op->d.merge.out.n * part.h * part.w * (double)w.ic * w.oc;
    return usi_cpu_conv_plan(op->be, &w, &op->conv[op->n_conv++], err);
}

enum us_status usi_cpu_merge_init(struct usi_cpu_op *op, struct us_err *err)
{
    const struct us_merge_desc *d = &op->d.merge;
    const struct us_rect *r = &d->out.rect;
    US_TRY(usi_cpu_limits(&d->out, 1, err));
    int32_t carrier = carrier_of(d);
    int32_t rows = usi_cpu_band_rows(r->h, (int64_t)r->w * d->out.c * (int64_t)sizeof(float));
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->out2 = d->tail;
    op->n_in = 2;
    op->pack = merge_pack;
    op->run = merge_run;
    US_TRY(plan_half(op, carrier, *r, rows, rows, true, err));
    struct us_rect part = usi_cpu_rect_meet(*r, input(d, 1 - carrier)->rect);
    if (part.h <= 0 || part.w <= 0)
        return US_OK;
    /* Its first band is as short as it takes to end with a band of the carrier. */
    int32_t first = rows - (part.y0 - r->y0) % rows;
    return plan_half(op, 1 - carrier, part, first, rows, false, err);
}
