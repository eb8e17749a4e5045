/*
 * Reference elementwise ops of training: activations, gate, dropout, sums, windows (concatenation,
 * pad, crop), conversions and the learned prior's change of layout.
 */
#include "us_ref_train.h"

#include <string.h>

#include "math/us_bf16_math.h"
#include "math/us_philox_math.h"

enum us_status usi_ref_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x, void *y)
{
    const float *v = x;
    float *out = y;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px * e->c; i++)
        out[i] = us_elu(v[i]);
    return US_OK;
}

enum us_status usi_ref_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *y,
                               const void *dy, void *dx)
{
    const float *v = y, *g = dy;
    float *out = dx;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px * e->c; i++)
        out[i] = us_mul(g[i], us_elu_d_of_y(v[i]));
    return US_OK;
}

/* The factor of one channel of one sample. */
static float factor_of(const struct us_draw *draw, uint32_t node, int32_t c, float p)
{
    struct us_philox r = us_dropout_words((uint32_t)draw->seed, (uint32_t)(draw->seed >> 32),
                                          draw->item, node, draw->step, (uint32_t)c / 4);
    return us_dropout_factor(r.w[c % 4], p);
}

enum us_status usi_ref_dropout2d(struct us_backend *be, const struct us_ew *e, void *x, float p,
                                 const struct us_draw *draw, int32_t items, uint32_t node)
{
    float *v = x;
    int64_t px = e->n_px / items;
    REF_NEED_F32(e->dtype);
    for (int32_t n = 0; n < items; n++, v += px * e->c)
        for (int32_t c = 0; c < e->c; c++) {
            float f = factor_of(&draw[n], node, c, p);
            for (int64_t i = 0; i < px; i++)
                v[i * e->c + c] = us_mul(v[i * e->c + c], f);
        }
    return US_OK;
}

enum us_status usi_ref_glu_fwd(struct us_backend *be, const struct us_ew *e, const void *g,
                               const void *res, void *out)
{
    const float *v = g, *r = res;
    float *o = out;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px; i++, v += 2 * e->c, r += e->c, o += e->c)
        for (int32_t c = 0; c < e->c; c++)
            o[c] = r[c] + us_glu(v[c], v[e->c + c]);
    return US_OK;
}

enum us_status usi_ref_glu_bwd(struct us_backend *be, const struct us_ew *e, const void *g,
                               const void *dout, void *dg)
{
    const float *v = g, *d = dout;
    float *o = dg;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px; i++, v += 2 * e->c, d += e->c, o += 2 * e->c)
        for (int32_t c = 0; c < e->c; c++) {
            struct us_glu_grad r = us_glu_d(v[c], v[e->c + c], d[c]);
            o[c] = r.a;
            o[e->c + c] = r.g;
        }
    return US_OK;
}

enum us_status usi_ref_accumulate(struct us_backend *be, const struct us_ew *e, const void *src,
                                  void *dst, bool add)
{
    const float *v = src;
    float *out = dst;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px * e->c; i++)
        out[i] = add ? out[i] + v[i] : v[i];
    return US_OK;
}

enum us_status usi_ref_scale_map(struct us_backend *be, const struct us_ew *e, void *x,
                                 float factor)
{
    float *v = x;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px * e->c; i++)
        v[i] = us_mul(v[i], factor);
    return US_OK;
}

/* First element of pixel (y, x) of the rectangle, item n. */
static int64_t window_at(const struct us_window *w, int32_t n, int32_t y, int32_t x)
{
    int64_t row = (int64_t)n * w->h + w->y0 + y;
    return (row * w->w + w->x0 + x) * w->c_total + w->c_offset;
}

enum us_status usi_ref_window(struct us_backend *be, enum us_dtype dtype, int32_t items, int32_t rh,
                              int32_t rw, int32_t c, const void *src, const struct us_window *from,
                              void *dst, const struct us_window *to, bool add)
{
    REF_NEED_F32(dtype);
    for (int32_t n = 0; n < items; n++)
        for (int32_t y = 0; y < rh; y++)
            for (int32_t x = 0; x < rw; x++) {
                const float *v = (const float *)src + window_at(from, n, y, x);
                float *out = (float *)dst + window_at(to, n, y, x);
                for (int32_t i = 0; i < c; i++)
                    out[i] = add ? out[i] + v[i] : v[i];
            }
    return US_OK;
}

enum us_status usi_ref_fill_zero(struct us_backend *be, void *dst, size_t bytes)
{
    if (bytes > 0)
        memset(dst, 0, bytes);
    return US_OK;
}

static float load(const void *p, enum us_dtype dtype, int64_t i)
{
    return dtype == US_F32 ? ((const float *)p)[i] : us_f32_of_bf16(((const uint16_t *)p)[i]);
}

/* Also to and from bf16: other backends' maps are compared here. */
enum us_status usi_ref_convert(struct us_backend *be, const struct us_ew *e, const void *src,
                               enum us_dtype from, void *dst)
{
    for (int64_t i = 0; i < e->n_px * e->c; i++) {
        float v = load(src, from, i);
        if (e->dtype == US_F32)
            ((float *)dst)[i] = v;
        else
            ((uint16_t *)dst)[i] = us_bf16_of_f32(v);
    }
    return US_OK;
}

enum us_status usi_ref_prior_load(struct us_backend *be, const struct us_ew *e, int32_t items,
                                  const float *prior, void *p)
{
    float *out = p;
    REF_NEED_F32(e->dtype);
    for (int32_t n = 0; n < items; n++)
        for (int64_t i = 0; i < e->n_px; i++)
            for (int32_t c = 0; c < e->c; c++)
                *out++ = prior[c * e->n_px + i];
    return US_OK;
}

enum us_status usi_ref_prior_grad(struct us_backend *be, const struct us_ew *e, int32_t items,
                                  const void *dp, float *dprior)
{
    const float *g = dp;
    REF_NEED_F32(e->dtype);
    for (int32_t n = 0; n < items; n++)
        for (int64_t i = 0; i < e->n_px; i++)
            for (int32_t c = 0; c < e->c; c++)
                dprior[c * e->n_px + i] += *g++;
    return US_OK;
}
