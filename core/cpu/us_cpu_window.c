/*
 * Sources and convolutions of the cpu backend (us_cpu_impl.h): from rectangles of maps to dense
 * buffers, paddings and bands of rows that oneDNN accepts.
 */
#include <stdlib.h>
#include <string.h>

#include "us_cpu_impl.h"

/* ---- sources ---- */

static size_t view_bytes(const struct usi_cpu_source *s)
{
    return (size_t)s->view.h * (size_t)s->view.w * (size_t)s->map.c * us_dtype_bytes(s->map.dtype);
}

void usi_cpu_source_plan(struct usi_cpu_source *s, const struct us_map *map, struct us_rect need,
                         int32_t pad_y, int32_t pad_x)
{
    const struct us_rect *have = &map->rect;
    struct us_rect in = usi_cpu_rect_meet(need, *have);
    s->map = *map;
    bool inside = in.h > 0 && in.w > 0;
    /* At most the kernel's overhang: then every band of rows touches the view. */
    bool padded = inside && in.y0 - need.y0 <= pad_y && in.x0 - need.x0 <= pad_x &&
                  need.y0 + need.h - (in.y0 + in.h) <= pad_y &&
                  need.x0 + need.w - (in.x0 + in.w) <= pad_x;
    s->copy_bytes = 0;
    if (padded && in.x0 == have->x0 && in.w == have->w) {
        s->view = *have; /* rows beyond the needed ones do no harm */
        return;
    }
    s->view = padded ? in : need;
    s->copy_bytes = view_bytes(s);
}

void usi_cpu_source_under(struct usi_cpu_source *s, const struct us_map *map,
                          const struct us_map *out)
{
    bool inside = us_rect_contains(&map->rect, &out->rect);
    s->map = *map;
    s->view = inside ? map->rect : out->rect;
    s->copy_bytes = inside ? 0 : view_bytes(s);
}

const void *usi_cpu_source_item(const struct us_bound *b, int32_t i, int32_t n)
{
    const struct usi_cpu_source *s = &b->op->src[i];
    const struct us_rect *v = &s->view;
    const void *buf = b->bufs.in[i];
    if (s->copy_bytes == 0)
        return usi_cpu_pixel(&s->map, buf, n, v->y0, v->x0);
    char *copy = (char *)b->bufs.scratch + s->copy_at;
    size_t pixel = (size_t)s->map.c * us_dtype_bytes(s->map.dtype);
    struct us_rect in = usi_cpu_rect_meet(*v, s->map.rect);
    /* All bits zero is 0.0 in both dtypes. */
    if (!us_rect_equal(&in, v))
        memset(copy, 0, s->copy_bytes);
    if (in.h <= 0 || in.w <= 0)
        return copy;
    for (int32_t y = in.y0; y < in.y0 + in.h; y++) {
        size_t at = (size_t)(y - v->y0) * (size_t)v->w + (size_t)(in.x0 - v->x0);
        memcpy(copy + at * pixel, usi_cpu_pixel(&s->map, buf, n, y, in.x0), (size_t)in.w * pixel);
    }
    return copy;
}

/* ---- convolutions ---- */

int32_t usi_cpu_band_rows(int32_t rows, int64_t row_bytes)
{
    int64_t bands = (rows * row_bytes + US_CPU_BAND_BYTES - 1) / US_CPU_BAND_BYTES;
    bands = bands < 1 ? 1 : bands > rows ? rows : bands;
    return (int32_t)((rows + bands - 1) / bands);
}

/* The primitive for output rows y .. y+h, and where in the view it begins to read. */
static void band_spec(const struct usi_cpu_window *w, int32_t y, int32_t h,
                      struct usi_dnn_conv_spec *spec, int64_t *ret_src_at)
{
    const struct us_rect *v = &w->view;
    int32_t top = w->y0 + w->stride * y, end = top + w->stride * (h - 1) + w->kh;
    int32_t from = usi_cpu_max(top, v->y0), to = usi_cpu_min(end, v->y0 + v->h);
    int32_t right = w->x0 + w->stride * (w->ow - 1) + w->kw;
    *spec = (struct usi_dnn_conv_spec){
        .ic = w->ic,
        .oc = w->oc,
        .kh = w->kh,
        .kw = w->kw,
        .stride = w->stride,
        .ih = to - from,
        .iw = v->w,
        .oh = h,
        .ow = w->ow,
        .pad_top = from - top,
        .pad_left = v->x0 - w->x0,
        .pad_bottom = end - to,
        .pad_right = right - (v->x0 + v->w),
        .src = w->src,
        .dst = w->dst,
        .bias = w->bias,
        .elu = w->elu,
    };
    *ret_src_at = (int64_t)(from - v->y0) * v->w * w->ic;
}

static bool same_spec(const struct usi_dnn_conv_spec *a, const struct usi_dnn_conv_spec *b)
{
    /* Within one convolution everything else is equal. */
    return a->ih == b->ih && a->oh == b->oh && a->pad_top == b->pad_top &&
           a->pad_bottom == b->pad_bottom;
}

/* Adds a primitive for spec, or finds the one that is there. */
static enum us_status find_prim(struct us_backend *be, struct usi_cpu_conv *c,
                                const struct usi_dnn_conv_spec *spec, int32_t *ret,
                                struct us_err *err)
{
    for (int32_t i = 0; i < c->n_prims; i++)
        if (same_spec(usi_dnn_conv_spec(c->prim[i].conv), spec)) {
            *ret = i;
            return US_OK;
        }
    struct usi_cpu_prim *p = &c->prim[c->n_prims];
    US_TRY(usi_dnn_conv_new(be->dnn, spec, &p->conv, err));
    *ret = c->n_prims++;
    size_t scratch = usi_dnn_conv_scratch_bytes(p->conv);
    if (scratch > c->scratch_bytes)
        c->scratch_bytes = scratch;
    for (int32_t i = 0; i < *ret; i++)
        if (usi_dnn_conv_same_weights(c->prim[i].conv, p->conv)) {
            p->weights_at = c->prim[i].weights_at;
            return US_OK;
        }
    p->first_use = true;
    p->weights_at = c->weight_bytes;
    c->weight_bytes += usi_cpu_aligned(usi_dnn_conv_weight_bytes(p->conv));
    return US_OK;
}

enum us_status usi_cpu_conv_plan(struct us_backend *be, const struct usi_cpu_window *win,
                                 struct usi_cpu_conv *c, struct us_err *err)
{
    int32_t first = usi_cpu_min(win->first_rows, win->oh);
    int32_t n_bands = 1 + (win->oh - first + win->band_rows - 1) / win->band_rows;
    c->win = *win;
    c->band = calloc((size_t)n_bands, sizeof(*c->band));
    c->prim = calloc((size_t)n_bands, sizeof(*c->prim));
    if (c->band == NULL || c->prim == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d bands of rows", n_bands);
    c->n_bands = n_bands;
    int32_t y = 0, h = first;
    for (int32_t i = 0; i < n_bands; i++, y += h, h = usi_cpu_min(win->band_rows, win->oh - y)) {
        struct usi_dnn_conv_spec spec;
        struct usi_cpu_band *b = &c->band[i];
        b->y0 = y;
        b->h = h;
        band_spec(win, y, h, &spec, &b->src_at);
        US_TRY(find_prim(be, c, &spec, &b->prim, err));
    }
    return US_OK;
}

void usi_cpu_conv_release(struct usi_cpu_conv *c)
{
    for (int32_t i = 0; i < c->n_prims; i++)
        usi_dnn_conv_free(c->prim[i].conv);
    free(c->prim);
    free(c->band);
}

enum us_status usi_cpu_conv_pack(const struct usi_cpu_conv *c, const float *w, void *packed)
{
    for (int32_t i = 0; i < c->n_prims; i++) {
        const struct usi_cpu_prim *p = &c->prim[i];
        if (p->first_use)
            US_TRY(usi_dnn_conv_pack(p->conv, w, (char *)packed + c->packed_at + p->weights_at));
    }
    return US_OK;
}

enum us_status usi_cpu_conv_run(const struct us_bound *b, int32_t i, int32_t band, const void *src,
                                void *dst)
{
    const struct usi_cpu_conv *c = &b->op->conv[i];
    const struct usi_cpu_band *r = &c->band[band];
    const char *from = (const char *)src + r->src_at * (int64_t)us_dtype_bytes(c->win.src);
    return usi_dnn_call_run(b->call[c->first_call + r->prim], from, dst);
}
