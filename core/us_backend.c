/*
 * Op names and the descriptor checks that every backend calls first in plan, so that all refuse
 * the same descriptors with the same words. The rules are those written above each descriptor in
 * us_backend.h. All arithmetic is 64-bit: a descriptor may hold any 32-bit numbers.
 */
#include "us_backend.h"

#include <math.h>

#include "us_limits.h"

static const char *const op_names[US_OP_COUNT] = {
#define US_OP(name) [US_OP_##name] = #name,
#include "us_ops.def"
#undef US_OP
};

const char *us_op_name(enum us_op_kind kind)
{
    return (unsigned)kind < US_OP_COUNT ? op_names[kind] : "unknown op";
}

/* a * b * c * d elements of 4 bytes are addressable (each factor is at least 1). */
static bool count_fits(int64_t a, int64_t b, int64_t c, int64_t d)
{
    int64_t p;
    return !__builtin_mul_overflow(a, b, &p) && !__builtin_mul_overflow(p, c, &p) &&
           !__builtin_mul_overflow(p, d, &p) && p <= PTRDIFF_MAX / 8;
}

static enum us_status check_map(const char *name, const struct us_map *m, struct us_err *err)
{
    const struct us_rect *r = &m->rect;
    if (m->n < 1 || m->c < 1 || m->full_h < 1 || m->full_w < 1)
        return us_fail(err, US_E_ARG, "%s: %d items, %d channels, map %dx%d: each must be positive",
                       name, m->n, m->c, m->full_h, m->full_w);
    if (m->dtype != US_F32 && m->dtype != US_BF16)
        return us_fail(err, US_E_ARG, "%s: unknown dtype %d", name, (int)m->dtype);
    if (r->h < 1 || r->w < 1)
        return us_fail(err, US_E_ARG, "%s: rectangle of %dx%d pixels is empty", name, r->h, r->w);
    if (r->y0 < 0 || r->x0 < 0 || (int64_t)r->y0 + r->h > m->full_h ||
        (int64_t)r->x0 + r->w > m->full_w)
        return us_fail(err, US_E_ARG, "%s: rectangle %dx%d at (%d,%d) is not inside the %dx%d map",
                       name, r->h, r->w, r->y0, r->x0, m->full_h, m->full_w);
    if (!count_fits(m->n, r->h, r->w, m->c))
        return us_fail(err, US_E_ARG, "%s: %d x %dx%d x %d elements do not fit in memory", name,
                       m->n, r->h, r->w, m->c);
    return US_OK;
}

static enum us_status check_items(const char *name, const struct us_map *m,
                                  const struct us_map *out, struct us_err *err)
{
    if (m->n != out->n)
        return us_fail(err, US_E_ARG, "%s has %d items, out has %d", name, m->n, out->n);
    return US_OK;
}

static enum us_status check_channels(const char *name, const struct us_map *m, int64_t want,
                                     struct us_err *err)
{
    if (m->c != want)
        return us_fail(err, US_E_ARG, "%s has %d channels, not %lld", name, m->c, (long long)want);
    return US_OK;
}

static enum us_status check_full(const char *name, const struct us_map *m, int64_t h, int64_t w,
                                 struct us_err *err)
{
    if (m->full_h != h || m->full_w != w)
        return us_fail(err, US_E_ARG, "%s is a %dx%d map, not %lldx%lld", name, m->full_h,
                       m->full_w, (long long)h, (long long)w);
    return US_OK;
}

/* The op reads the half-open span of rows and columns; what lies outside the full map is zero. */
struct span {
    int64_t y0, y1, x0, x1;
};

static struct span span_of_rect(const struct us_rect *r)
{
    return (struct span){r->y0, (int64_t)r->y0 + r->h, r->x0, (int64_t)r->x0 + r->w};
}

static enum us_status check_reads(const char *name, const struct us_map *m, struct span s,
                                  struct us_err *err)
{
    if (m->zero_outside)
        return US_OK;
    struct span have = span_of_rect(&m->rect);
    s.y0 = s.y0 < 0 ? 0 : s.y0;
    s.x0 = s.x0 < 0 ? 0 : s.x0;
    s.y1 = s.y1 > m->full_h ? m->full_h : s.y1;
    s.x1 = s.x1 > m->full_w ? m->full_w : s.x1;
    if (s.y0 < have.y0 || s.x0 < have.x0 || s.y1 > have.y1 || s.x1 > have.x1)
        return us_fail(err, US_E_ARG,
                       "%s holds rows %lld..%lld, columns %lld..%lld; the output needs rows "
                       "%lld..%lld, columns %lld..%lld",
                       name, (long long)have.y0, (long long)have.y1 - 1, (long long)have.x0,
                       (long long)have.x1 - 1, (long long)s.y0, (long long)s.y1 - 1,
                       (long long)s.x0, (long long)s.x1 - 1);
    return US_OK;
}

/* An input that lies pixel on pixel under the output. */
static enum us_status check_under(const char *name, const struct us_map *m,
                                  const struct us_map *out, struct us_err *err)
{
    US_TRY(check_map(name, m, err));
    US_TRY(check_items(name, m, out, err));
    US_TRY(check_full(name, m, out->full_h, out->full_w, err));
    return check_reads(name, m, span_of_rect(&out->rect), err);
}

/* A residual: also the output's channels, and no pixel of it may be missing. */
static enum us_status check_residual(const struct us_map *res, const struct us_map *out,
                                     struct us_err *err)
{
    US_TRY(check_under("res", res, out, err));
    US_TRY(check_channels("res", res, out->c, err));
    if (!us_rect_contains(&res->rect, &out->rect))
        return us_fail(err, US_E_ARG, "res does not hold the whole output rectangle");
    return US_OK;
}

static enum us_status check_weights(int64_t out_c, int64_t in_c, int64_t k, struct us_err *err)
{
    if (!count_fits(out_c, in_c, k, k))
        return us_fail(err, US_E_ARG, "%lldx%lldx%lldx%lld weights do not fit in memory",
                       (long long)out_c, (long long)in_c, (long long)k, (long long)k);
    return US_OK;
}

static enum us_status check_window(const struct us_conv2d_desc *d, struct us_err *err)
{
    if (d->k < 1 || d->stride < 1 || d->pad < 0 || d->pad >= d->k)
        return us_fail(err, US_E_ARG,
                       "kernel %d, stride %d, padding %d: need kernel and stride >= 1 and "
                       "0 <= padding < kernel",
                       d->k, d->stride, d->pad);
    if (d->act != US_ACT_NONE && d->act != US_ACT_ELU)
        return us_fail(err, US_E_ARG, "unknown activation %d", (int)d->act);
    int64_t room_h = (int64_t)d->in.full_h + 2 * (int64_t)d->pad - d->k;
    int64_t room_w = (int64_t)d->in.full_w + 2 * (int64_t)d->pad - d->k;
    if (room_h < 0 || room_w < 0)
        return us_fail(err, US_E_ARG, "kernel %d with padding %d is larger than the %dx%d map",
                       d->k, d->pad, d->in.full_h, d->in.full_w);
    return check_full("out", &d->out, room_h / d->stride + 1, room_w / d->stride + 1, err);
}

static enum us_status check_conv2d(const struct us_conv2d_desc *d, struct us_err *err)
{
    US_TRY(check_map("in", &d->in, err));
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_items("in", &d->in, &d->out, err));
    US_TRY(check_window(d, err));
    US_TRY(check_weights(d->out.c, d->in.c, d->k, err));
    struct span o = span_of_rect(&d->out.rect);
    struct span need = {o.y0 * d->stride - d->pad, (o.y1 - 1) * d->stride - d->pad + d->k,
                        o.x0 * d->stride - d->pad, (o.x1 - 1) * d->stride - d->pad + d->k};
    US_TRY(check_reads("in", &d->in, need, err));
    return d->residual ? check_residual(&d->res, &d->out, err) : US_OK;
}

static enum us_status check_conv_t2d(const struct us_conv_t2d_desc *d, struct us_err *err)
{
    US_TRY(check_map("in", &d->in, err));
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_items("in", &d->in, &d->out, err));
    US_TRY(check_full("out", &d->out, 2 * (int64_t)d->in.full_h, 2 * (int64_t)d->in.full_w, err));
    US_TRY(check_weights(d->out.c, d->in.c, 3, err));
    /* An even output row reads input row y/2, an odd one (y-1)/2 and (y+1)/2. */
    struct span o = span_of_rect(&d->out.rect);
    struct span need = {o.y0 / 2, o.y1 / 2 + 1, o.x0 / 2, o.x1 / 2 + 1};
    return check_reads("in", &d->in, need, err);
}

static enum us_status check_gate(const struct us_gate_desc *d, struct us_err *err)
{
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_under("in", &d->in, &d->out, err));
    US_TRY(check_channels("in", &d->in, d->out.c, err));
    US_TRY(check_weights(2 * (int64_t)d->out.c, d->in.c, 1, err));
    return check_residual(&d->res, &d->out, err);
}

static enum us_status check_merge(const struct us_merge_desc *d, struct us_err *err)
{
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_under("a", &d->a, &d->out, err));
    US_TRY(check_under("b", &d->b, &d->out, err));
    return check_weights(d->out.c, (int64_t)d->a.c + d->b.c, 1, err);
}

static enum us_status check_latent(const struct us_latent_desc *d, struct us_err *err)
{
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_under("in", &d->in, &d->out, err));
    US_TRY(check_channels("in", &d->in, 2 * (int64_t)d->out.c, err));
    /* The fields of a Philox counter (math/us_philox_math.h). */
    if (d->level < 0 || d->level >= US_MAX_LEVELS)
        return us_fail(err, US_E_ARG, "level %d is not in 0..%d", d->level, US_MAX_LEVELS - 1);
    if (d->out.c > US_MAX_ZDIM)
        return us_fail(err, US_E_ARG, "%d latent channels, at most %d", d->out.c, US_MAX_ZDIM);
    if (d->out.full_h > 65536 || d->out.full_w > 65536)
        return us_fail(err, US_E_ARG, "a latent map of %dx%d; a side is at most 65536",
                       d->out.full_h, d->out.full_w);
    if (isnan(d->var_clip_max))
        return us_fail(err, US_E_ARG, "var_clip_max is not a number");
    return US_OK;
}

static enum us_status check_affine_elu(const struct us_affine_elu_desc *d, struct us_err *err)
{
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_under("in", &d->in, &d->out, err));
    return check_channels("in", &d->in, d->out.c, err);
}

static enum us_status check_copy(const struct us_copy_desc *d, struct us_err *err)
{
    US_TRY(check_map("out", &d->out, err));
    US_TRY(check_under("in", &d->in, &d->out, err));
    return check_channels("in", &d->in, d->out.c, err);
}

/* The public functions: the check, with the op's name before its message. */
#define US_OP(name)                                                                                \
    enum us_status us_##name##_check(const struct us_##name##_desc *desc, struct us_err *err)      \
    {                                                                                              \
        enum us_status s = check_##name(desc, err);                                                \
        if (s != US_OK)                                                                            \
            us_err_prefix(err, #name);                                                             \
        return s;                                                                                  \
    }
#include "us_ops.def"
#undef US_OP
