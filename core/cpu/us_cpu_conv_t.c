/*
 * conv_t2d on the cpu backend. oneDNN's transposed convolution reaches a third of its
 * convolutions' rate (bf16: a fifteenth), so this is four small convolutions, one per parity
 * (a, b) of the output pixel:
 *
 *   out[2y+a, 2x+b] = bias + sum over i <= a, j <= b of in[y+i, x+j] * w[ky, kx],
 *   ky = 1 for a = 0; 2, 0 for a = 1 (i = 0, 1); likewise kx.
 *
 * Exactly the 9 multiply-adds of the definition. The two parities of a row come out as dense
 * rows and are woven together; the same pass rounds and makes the tail.
 */
#include <stdlib.h>
#include <string.h>

#include "us_cpu_impl.h"

/* Convolution of parity (a, b). */
static int32_t phase(int32_t a, int32_t b)
{
    return 2 * a + b;
}

/* The kernel index under tap i of parity a. */
static int32_t kernel_index(int32_t a, int32_t i)
{
    return a == 0 ? 1 : 2 - 2 * i;
}

/* Half-open range of y with 2y+a in [y0, y1). */
static void phase_range(int32_t a, int32_t y0, int32_t h, int32_t *ret_first, int32_t *ret_n)
{
    *ret_first = (y0 - a + 1) / 2; /* y0 >= 0: rounds up, also for y0 - a = -1 */
    *ret_n = (y0 + h - a + 1) / 2 - *ret_first;
}

static enum us_status conv_t2d_pack(const struct usi_cpu_op *op, const struct us_op_weights *w,
                                    void *packed)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    size_t ic = (size_t)d->in.c, oc = (size_t)d->out.c;
    float *part = calloc(ic * oc, 4 * sizeof(*part));
    enum us_status s = part == NULL ? US_E_NOMEM : US_OK;
    for (int32_t p = 0; p < op->n_conv && s == US_OK; p++) {
        if (op->conv[p].n_bands == 0)
            continue;
        int32_t a = p / 2, b = p % 2;
        float *to = part;
        for (size_t co = 0; co < oc; co++)
            for (size_t ci = 0; ci < ic; ci++)
                for (int32_t i = 0; i <= a; i++)
                    for (int32_t j = 0; j <= b; j++)
                        *to++ = w->w[(ci * oc + co) * 9 +
                                     (size_t)(kernel_index(a, i) * 3 + kernel_index(b, j))];
        s = usi_cpu_conv_pack(&op->conv[p], part, packed);
    }
    free(part);
    return s;
}

/* Row of out from the rows of its two parities; from[b] points at the first pixel of parity b that
 * the row needs. bytes is one pixel. */
static void weave(char *to, const char *from[2], int32_t x0, int32_t w, size_t bytes)
{
    for (int32_t x = 0; x < w; x++) {
        int32_t b = (x0 + x) & 1;
        memcpy(to, from[b], bytes);
        to += bytes;
        from[b] += bytes;
    }
}

/* Output rows of parity a whose two parities of columns are staged as one band. */
static void finish_band(const struct us_bound *b, int32_t n, int32_t a, int32_t band)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    const struct us_rect *r = &d->out.rect;
    bool direct = op->stage_bytes[1] == 0;
    const struct usi_cpu_conv *some = &op->conv[phase(a, 0)];
    some = some->n_bands > 0 ? some : &op->conv[phase(a, 1)];
    size_t pixel = (size_t)d->out.c * us_dtype_bytes(some->win.dst);
    const char *stage = usi_cpu_stage(b, 0);
    for (int32_t i = 0; i < some->band[band].h; i++) {
        int32_t y = 2 * (some->win.y0 + some->band[band].y0 + i) + a;
        const char *from[2];
        size_t at = 0;
        for (int32_t p = 0; p < 2; p++) {
            const struct usi_cpu_window *w = &op->conv[phase(a, p)].win;
            int32_t first, count;
            phase_range(p, r->x0, r->w, &first, &count);
            from[p] = stage + (at + (size_t)(i * w->ow + first - w->x0)) * pixel;
            at += (size_t)w->band_rows * (size_t)w->ow;
        }
        char *row = direct ? usi_cpu_pixel_out(&d->out, b->bufs.out, n, y, r->x0)
                           : (char *)usi_cpu_stage(b, 1);
        weave(row, from, r->x0, r->w, pixel);
        if (op->epilogue != NULL)
            usi_cpu_epilogue_rows(b, &d->out, NULL, n, y, 1, (const float *)(const void *)row);
    }
}

static enum us_status conv_t2d_run(const struct us_bound *b)
{
    const struct usi_cpu_op *op = b->op;
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    for (int32_t n = 0; n < d->out.n; n++) {
        const void *src = usi_cpu_source_item(b, 0, n);
        for (int32_t a = 0; a < 2; a++) {
            const struct usi_cpu_conv *c = &op->conv[phase(a, 0)];
            int32_t n_bands = usi_cpu_max(c[0].n_bands, c[1].n_bands);
            for (int32_t i = 0; i < n_bands; i++) {
                char *dst = usi_cpu_stage(b, 0);
                for (int32_t p = 0; p < 2; p++) {
                    const struct usi_cpu_window *w = &c[p].win;
                    if (c[p].n_bands > 0)
                        US_TRY(usi_cpu_conv_run(b, phase(a, p), i, src, dst));
                    dst += (size_t)w->band_rows * (size_t)w->ow * (size_t)w->oc *
                           us_dtype_bytes(w->dst);
                }
                finish_band(b, n, a, i);
            }
        }
    }
    return US_OK;
}

static enum us_status plan_phase(struct usi_cpu_op *op, int32_t a, int32_t b, int32_t band_rows,
                                 enum us_dtype dst, struct us_err *err)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    const struct us_rect *r = &d->out.rect, *v = &op->src[0].view;
    struct usi_cpu_conv *c = &op->conv[phase(a, b)];
    int32_t y, h, x, w;
    phase_range(a, r->y0, r->h, &y, &h);
    phase_range(b, r->x0, r->w, &x, &w);
    op->n_conv = phase(a, b) + 1;
    if (h <= 0 || w <= 0)
        return US_OK; /* an output one pixel high or wide */
    struct usi_cpu_window win = {
        .kh = a + 1,
        .kw = b + 1,
        .stride = 1,
        .y0 = y,
        .x0 = v->x0,
        .oh = h,
        /* All columns of the view, as its rows must be dense; at most one more than needed. */
        .ow = b == 0 ? v->w : x + w - v->x0,
        .ic = d->in.c,
        .oc = d->out.c,
        .src = d->in.dtype,
        .dst = dst,
        .bias = true,
        .view = *v,
        .first_rows = band_rows,
        .band_rows = band_rows,
    };
    return usi_cpu_conv_plan(op->be, &win, c, err);
}

enum us_status usi_cpu_conv_t2d_init(struct usi_cpu_op *op, struct us_err *err)
{
    const struct us_conv_t2d_desc *d = &op->d.conv_t2d;
    const struct us_rect *r = &d->out.rect;
    US_TRY(usi_cpu_limits(&d->out, 3, err));
    struct us_rect need = {r->y0 / 2, r->x0 / 2, (r->y0 + r->h) / 2 + 1 - r->y0 / 2,
                           (r->x0 + r->w) / 2 + 1 - r->x0 / 2};
    /* Only beyond the map's own border, below and to the right, can the phases pad. */
    struct us_rect full = {0, 0, d->in.full_h, d->in.full_w};
    struct us_rect real = usi_cpu_rect_meet(need, full);
    int32_t pad = us_rect_contains(&d->in.rect, &real) ? 1 : 0;
    usi_cpu_source_plan(&op->src[0], &d->in, need, pad, pad);
    enum us_dtype to = d->out.dtype, dst = d->tail || d->in.dtype == US_F32 ? US_F32 : to;
    size_t pixel = (size_t)d->out.c * us_dtype_bytes(dst);
    int64_t row_bytes = (int64_t)pixel * 2 * op->src[0].view.w;
    int32_t rows = usi_cpu_band_rows((r->h + 1) / 2, row_bytes);
    op->stage_bytes[0] = (size_t)(rows * row_bytes);
    /* A woven row that is not yet the output's. */
    op->stage_bytes[1] = dst == to ? 0 : (size_t)r->w * pixel;
    if (d->tail || dst != to)
        op->epilogue = op->be->kern->epilogue[0][US_CPU_RES_NONE][to][d->tail];
    op->n_bias = d->out.c;
    op->n_tail = d->tail ? d->out.c : 0;
    op->out2 = d->tail;
    op->pack = conv_t2d_pack;
    op->run = conv_t2d_run;
    /* 9 products per four output pixels. */
    op->base.flops = 2.0 * (double)us_map_count(&d->out) * d->in.c * 9 / 4;
    for (int32_t a = 0; a < 2; a++)
        for (int32_t b = 0; b < 2; b++)
            US_TRY(plan_phase(op, a, b, rows, dst, err));
    return US_OK;
}
