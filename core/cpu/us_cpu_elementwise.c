/*
 * latent, affine_elu and copy on the cpu backend: own vector code over the formulas of core/math,
 * the same bits as the reference backend's.
 */
#include <string.h>

#include "math/us_philox_math.h"
#include "us_cpu_impl.h"

/* ---- latent ---- */

/* Noise is keyed by what changes along the row in c0 or c1, the rest is the row's. */
static void latent_row(const struct us_bound *b, int32_t n, int32_t y, const char *in, char *out)
{
    const struct us_latent_desc *d = &b->op->d.latent;
    const struct us_rect *r = &d->out.rect;
    const struct us_noise *z = &b->bufs.noise[n];
    size_t in_bytes = (size_t)d->in.c * us_dtype_bytes(d->in.dtype);
    size_t out_bytes = (size_t)d->out.c * us_dtype_bytes(d->out.dtype);
    struct usi_cpu_latent_args a = {
        .z = d->out.c,
        .var_clip_max = d->var_clip_max,
        .k0 = (uint32_t)z->seed,
        .k1 = (uint32_t)(z->seed >> 32),
        .c0 = z->patch,
        .c2 = us_noise_c2(z->image_keyed, d->level, z->sample),
        .c3 = z->frame,
    };
    if (z->image_keyed)
        a.c1 = us_noise_position(z->centre_y, d->level, d->out.full_h, y);
    for (int32_t x = r->x0; x < r->x0 + r->w; x++, in += in_bytes, out += out_bytes) {
        a.in = in;
        a.out = out;
        if (z->image_keyed)
            a.c0 = us_noise_position(z->centre_x, d->level, d->out.full_w, x);
        else
            a.c1 = us_noise_c1_patch(y, x);
        if (z->eps != NULL)
            a.eps = z->eps[d->level] + ((int64_t)y * d->out.full_w + x) * d->out.c;
        b->op->be->kern->latent[d->in.dtype][d->out.dtype](&a);
    }
}

static enum us_status latent_run(const struct us_bound *b)
{
    const struct us_latent_desc *d = &b->op->d.latent;
    const struct us_rect *r = &d->out.rect, *v = &b->op->src[0].view;
    size_t pixel = (size_t)d->in.c * us_dtype_bytes(d->in.dtype);
    for (int32_t n = 0; n < d->out.n; n++) {
        const char *src = usi_cpu_source_item(b, 0, n);
        for (int32_t y = r->y0; y < r->y0 + r->h; y++) {
            size_t at = (size_t)(y - v->y0) * (size_t)v->w + (size_t)(r->x0 - v->x0);
            latent_row(b, n, y, src + at * pixel,
                       usi_cpu_pixel_out(&d->out, b->bufs.out, n, y, r->x0));
        }
    }
    return US_OK;
}

enum us_status usi_cpu_latent_init(struct usi_cpu_op *op, struct us_err *err)
{
    usi_cpu_source_under(&op->src[0], &op->d.latent.in, &op->d.latent.out);
    op->run = latent_run;
    return usi_cpu_limits(&op->d.latent.out, 1, err);
}

/* ---- affine_elu ---- */

static enum us_status affine_elu_run(const struct us_bound *b)
{
    const struct us_affine_elu_desc *d = &b->op->d.affine_elu;
    const struct us_rect *r = &d->out.rect, *v = &b->op->src[0].view;
    size_t pixel = (size_t)d->in.c * us_dtype_bytes(d->in.dtype);
    int32_t step = v->w == r->w ? r->h : 1;
    for (int32_t n = 0; n < d->out.n; n++) {
        const char *src = usi_cpu_source_item(b, 0, n);
        for (int32_t y = r->y0; y < r->y0 + r->h; y += step) {
            size_t at = (size_t)(y - v->y0) * (size_t)v->w + (size_t)(r->x0 - v->x0);
            void *out = usi_cpu_pixel_out(&d->out, b->bufs.out, n, y, r->x0);
            b->op->be->kern->affine_elu[d->in.dtype][d->out.dtype](src + at * pixel, out, &b->tail,
                                                                   (int64_t)step * r->w * d->out.c);
        }
    }
    return US_OK;
}

enum us_status usi_cpu_affine_elu_init(struct usi_cpu_op *op, struct us_err *err)
{
    usi_cpu_source_under(&op->src[0], &op->d.affine_elu.in, &op->d.affine_elu.out);
    op->n_tail = op->d.affine_elu.out.c;
    op->run = affine_elu_run;
    return usi_cpu_limits(&op->d.affine_elu.out, 1, err);
}

/* ---- copy ---- */

/* `in` is the part of out.rect that the input holds; zeros round it. */
static void copy_row(const struct us_bound *b, int32_t n, int32_t y, const struct us_rect *in)
{
    const struct us_copy_desc *d = &b->op->d.copy;
    const struct us_rect *r = &d->out.rect;
    size_t pixel = (size_t)d->out.c * us_dtype_bytes(d->out.dtype);
    char *out = usi_cpu_pixel_out(&d->out, b->bufs.out, n, y, r->x0);
    if (in->w <= 0 || y < in->y0 || y >= in->y0 + in->h) {
        memset(out, 0, (size_t)r->w * pixel);
        return;
    }
    size_t left = (size_t)(in->x0 - r->x0), w = (size_t)in->w;
    size_t right = (size_t)r->w - left - w;
    const void *src = usi_cpu_pixel(&d->in, b->bufs.in[0], n, y, in->x0);
    memset(out, 0, left * pixel);
    if (d->in.dtype == d->out.dtype)
        memcpy(out + left * pixel, src, w * pixel);
    else
        b->op->be->kern->convert[d->in.dtype][d->out.dtype](src, out + left * pixel,
                                                            (int64_t)in->w * d->out.c);
    memset(out + (left + w) * pixel, 0, right * pixel);
}

static enum us_status copy_run(const struct us_bound *b)
{
    const struct us_copy_desc *d = &b->op->d.copy;
    const struct us_rect *r = &d->out.rect;
    struct us_rect in = usi_cpu_rect_meet(*r, d->in.rect);
    for (int32_t n = 0; n < d->out.n; n++)
        for (int32_t y = r->y0; y < r->y0 + r->h; y++)
            copy_row(b, n, y, &in);
    return US_OK;
}

enum us_status usi_cpu_copy_init(struct usi_cpu_op *op, struct us_err *err)
{
    op->run = copy_run;
    return usi_cpu_limits(&op->d.copy.out, 1, err);
}
