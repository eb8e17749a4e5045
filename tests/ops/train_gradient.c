/*
 * Convolution, batch norm with ELU, gate and ELU: forward against the definition in double, and
 * gradients against its central differences.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train_test.h"

#define NEAR 2e-6 /* one f32 rounding, or a few */
#define GRAD 2e-5 /* differences of a double loss are good to 1e-9; the rest is f32 */

/* ---- convolutions ---- */

struct conv_case {
    int32_t n, h, w, in_c, out_c, k, stride, pad;
    bool transposed;
};

static const struct conv_case conv_cases[] = {
    {1, 5, 4, 3, 2, 1, 1, 0, false}, {2, 5, 4, 3, 2, 3, 1, 1, false},
    {1, 6, 7, 2, 3, 5, 1, 2, false}, {1, 6, 6, 2, 3, 3, 2, 1, false},
    {2, 7, 5, 3, 2, 5, 2, 2, false}, {1, 4, 4, 1, 1, 1, 2, 0, false},
    {1, 3, 4, 3, 2, 3, 2, 1, true},  {2, 1, 1, 2, 5, 3, 2, 1, true},
    {1, 1, 1, 1, 1, 3, 1, 1, false}, {1, 2, 3, 5, 7, 3, 1, 1, false},
};

/* The convolution with its variables [x | w | b] and the loss's gradient by its output. */
struct conv_loss {
    struct us_tconv_desc d;
    const float *dy;
    double *y; /* room for the output */
};

static struct us_tconv_desc conv_desc(const struct conv_case *c, enum us_dtype dtype)
{
    int32_t oh = c->transposed ? 2 * c->h : (c->h + 2 * c->pad - c->k) / c->stride + 1;
    int32_t ow = c->transposed ? 2 * c->w : (c->w + 2 * c->pad - c->k) / c->stride + 1;
    return (struct us_tconv_desc){
        .in = us_map_full(c->n, c->h, c->w, c->in_c, dtype),
        .out = us_map_full(c->n, oh, ow, c->out_c, dtype),
        .k = c->k,
        .stride = c->stride,
        .pad = c->pad,
        .transposed = c->transposed,
    };
}

/* y[co at output pixel] += x[ci at input pixel] * weight of the tap, for all channels. */
static void add_tap(const struct us_tconv_desc *d, const double *x, const double *w, int32_t tap,
                    double *y)
{
    int32_t taps = d->k * d->k;
    for (int32_t ci = 0; ci < d->in.c; ci++)
        for (int32_t co = 0; co < d->out.c; co++) {
            int32_t pair = d->transposed ? ci * d->out.c + co : co * d->in.c + ci;
            y[co] += x[ci] * w[(int64_t)pair * taps + tap];
        }
}

/* Scatters one pixel of the smaller map's grid: the definition reads "input at o*stride - pad + k"
 * for a convolution and "output at i*2 - 1 + k" for the transposed one. */
static void conv_pixel(const struct us_tconv_desc *d, int32_t n, int32_t sy, int32_t sx,
                       const double *x, const double *w, double *y)
{
    const struct us_map *big = d->transposed ? &d->out : &d->in;
    const struct us_map *small = d->transposed ? &d->in : &d->out;
    for (int32_t tap = 0; tap < d->k * d->k; tap++) {
        int32_t by = sy * d->stride - d->pad + tap / d->k;
        int32_t bx = sx * d->stride - d->pad + tap % d->k;
        if (by < 0 || bx < 0 || by >= big->full_h || bx >= big->full_w)
            continue;
        int64_t b = us_map_index(big, n, by, bx), s = us_map_index(small, n, sy, sx);
        add_tap(d, x + (d->transposed ? s : b), w, tap, y + (d->transposed ? b : s));
    }
}

static void conv_forward(const struct us_tconv_desc *d, const double *v, double *y)
{
    const struct us_map *small = d->transposed ? &d->in : &d->out;
    const double *w = v + us_map_count(&d->in);
    const double *b = w + (int64_t)d->k * d->k * d->in.c * d->out.c;
    for (int64_t i = 0; i < us_map_count(&d->out); i++)
        y[i] = b[i % d->out.c];
    for (int32_t n = 0; n < small->n; n++)
        for (int32_t sy = 0; sy < small->full_h; sy++)
            for (int32_t sx = 0; sx < small->full_w; sx++)
                conv_pixel(d, n, sy, sx, v, w, y);
}

static double conv_loss(const double *v, const void *ctx)
{
    const struct conv_loss *l = ctx;
    double sum = 0.0;
    conv_forward(&l->d, v, l->y);
    for (int64_t i = 0; i < us_map_count(&l->d.out); i++)
        sum += l->y[i] * (double)l->dy[i];
    return sum;
}

/* The gradients of weights and bias are added to what is there: begun is what was. */
static void expect_added(const char *what, int64_t n_v, const float *v, int64_t first, int64_t n,
                         const struct conv_loss *l, const float *begun, const float *got)
{
    float *change = malloc((size_t)n * sizeof(*change));
    assert_non_null(change);
    for (int64_t i = 0; i < n; i++)
        change[i] = got[i] - begun[i];
    tt_expect_gradient(what, n_v, v, first, n, conv_loss, l, change, GRAD);
    free(change);
}

static void check_conv(struct us_backend *be, const struct conv_case *c)
{
    struct tt tt;
    struct tt_conv conv;
    char name[64];
    (void)snprintf(name, sizeof(name), "conv %dx%dx%d k%d s%d%s", c->n, c->h, c->w, c->k, c->stride,
                   c->transposed ? " transposed" : "");
    tt_open(&tt, be, name);
    struct conv_loss l = {.d = conv_desc(c, US_F32)};
    int64_t n_x = us_map_count(&l.d.in), n_y = us_map_count(&l.d.out);
    int64_t n_w = (int64_t)c->k * c->k * c->in_c * c->out_c, n_v = n_x + n_w + c->out_c;
    float *v = tt_uniform(&tt, n_v, -1, 1);
    float *begun = tt_uniform(&tt, n_w + c->out_c, -1, 1);
    l.dy = tt_uniform(&tt, n_y, -1, 1);
    l.y = tt_zeros(&tt, n_y, sizeof(double));
    tt_ok(tt_conv_open(&tt, &l.d, v + n_x, v + n_x + n_w, &conv), "conv_plan");
    void *x = tt_map_in(&tt, n_x, v), *dy = tt_map_in(&tt, n_y, l.dy);
    void *y = tt_map_io(&tt, n_y, NULL), *dx = tt_map_io(&tt, n_x, NULL);
    float *dw = tt_f32_io(&tt, n_w, begun), *db = tt_f32_io(&tt, c->out_c, begun + n_w);
    tt_ok(tt.t->conv_fwd(be, conv.ctx, conv.packed, x, y), "conv_fwd");
    tt_ok(tt.t->conv_bwd_data(be, conv.ctx, conv.packed, dy, dx), "conv_bwd_data");
    tt_ok(tt.t->conv_bwd_weights(be, conv.ctx, x, dy, dw, db), "conv_bwd_weights");

    double *vd = tt_zeros(&tt, n_v, sizeof(double));
    for (int64_t i = 0; i < n_v; i++)
        vd[i] = (double)v[i];
    conv_forward(&l.d, vd, l.y);
    tt_expect_near(name, n_y, tt_get_map(&tt, y, n_y), l.y, NEAR);
    tt_expect_gradient(name, n_v, v, 0, n_x, conv_loss, &l, tt_get_map(&tt, dx, n_x), GRAD);
    expect_added(name, n_v, v, n_x, n_w, &l, begun, tt_get_f32(&tt, dw, n_w));
    expect_added(name, n_v, v, n_x + n_w, c->out_c, &l, begun + n_w, tt_get_f32(&tt, db, c->out_c));
    tt_conv_close(&tt, &conv);
    tt_close(&tt);
}

void convolutions_have_the_gradients_of_their_definition(void **state)
{
    for (size_t i = 0; i < US_COUNT(conv_cases); i++)
        check_conv(tt_backend(state), &conv_cases[i]);
}

static void expect_conv_refused(struct us_backend *be, const struct us_tconv_desc *d,
                                const char *words)
{
    struct us_err err = {0};
    struct us_tconv *conv = NULL;
    enum us_status s = us_backend_train_ops(be)->conv_plan(be, d, &conv, &err);
    if (s != US_E_ARG || conv != NULL || strstr(err.msg, words) == NULL)
        fail_msg("expected \"%s\", not %s: %s", words, us_status_name(s), err.msg);
}

void convolutions_that_do_not_fit_are_refused(void **state)
{
    struct us_backend *be = tt_backend(state);
    const struct us_tconv_desc good = conv_desc(&conv_cases[3], US_F32);
    const struct us_tconv_desc up = conv_desc(&conv_cases[6], US_F32);
    struct us_tconv_desc d = good;
    d.out.full_w++;
    d.out.rect.w++;
    expect_conv_refused(be, &d, "map, not"); /* not the size that stride and padding give */
    d = good;
    d.in.rect.h--; /* a part of the input: training has no regions of interest */
    expect_conv_refused(be, &d, "");
    d = good;
    d.out.rect.h--;
    expect_conv_refused(be, &d, "whole maps");
    d = good;
    d.k = 0;
    expect_conv_refused(be, &d, "kernel");
    d = good;
    d.in.n++;
    expect_conv_refused(be, &d, "items");
    d = up;
    d.pad = 0; /* only one kind of transposed convolution exists */
    expect_conv_refused(be, &d, "not 3, 2, 1");
}

/* ---- batch norm and ELU ---- */

#define BN_C  3
#define BN_PX 14 /* per part */

/* Variables [x (all parts) | gamma | beta]. */
struct bn_loss {
    int32_t parts;
    const float *dh;
};

static int64_t bn_count(const struct bn_loss *l)
{
    return (int64_t)l->parts * BN_PX;
}

static void bn_moments(const struct bn_loss *l, const double *x, int32_t c, double *mean,
                       double *var)
{
    int64_t n = bn_count(l);
    *mean = *var = 0.0;
    for (int64_t i = 0; i < n; i++)
        *mean += x[i * BN_C + c] / (double)n;
    for (int64_t i = 0; i < n; i++)
        *var += (x[i * BN_C + c] - *mean) * (x[i * BN_C + c] - *mean) / (double)n;
}

static double bn_out(const struct bn_loss *l, const double *v, int64_t i, int32_t c, double mean,
                     double var)
{
    const double *gamma = v + bn_count(l) * BN_C, *beta = gamma + BN_C;
    return ops_elu(gamma[c] * (v[i * BN_C + c] - mean) / sqrt(var + 1e-5) + beta[c]);
}

static double bn_loss(const double *v, const void *ctx)
{
    const struct bn_loss *l = ctx;
    double sum = 0.0, mean, var;
    for (int32_t c = 0; c < BN_C; c++) {
        bn_moments(l, v, c, &mean, &var);
        for (int64_t i = 0; i < bn_count(l); i++)
            sum += bn_out(l, v, i, c, mean, var) * (double)l->dh[i * BN_C + c];
    }
    return sum;
}

/* All that one layer owns on the device. */
struct bn {
    struct us_bn_affine aff;
    struct us_bn_grad grad;
    double *parts;
    float *gamma, *beta, *dgamma, *dbeta, *running_mean, *running_var;
};

static void make_bn(struct tt *tt, struct bn *b, int32_t parts, const float *gamma)
{
    static const float zero[BN_C];
    float **const outs[] = {&b->aff.mean, &b->aff.inv_std, &b->aff.scale, &b->aff.shift,
                            &b->grad.a,   &b->grad.b,      &b->grad.d};
    for (size_t i = 0; i < US_COUNT(outs); i++)
        *outs[i] = tt_f32_io(tt, BN_C, NULL);
    b->parts = tt_f64_io(tt, (int64_t)parts * 2 * BN_C, NULL);
    b->gamma = tt_f32_in(tt, BN_C, gamma);
    b->beta = tt_f32_in(tt, BN_C, gamma + BN_C);
    b->dgamma = tt_f32_io(tt, BN_C, zero);
    b->dbeta = tt_f32_io(tt, BN_C, zero);
    b->running_mean = tt_f32_io(tt, BN_C, zero);
    b->running_var = tt_f32_io(tt, BN_C, zero);
}

/* The whole chain as a plan runs it, a part at a time; dx is written, or added to `onto`. */
static void run_bn(struct tt *tt, struct bn *b, int32_t parts, const char *x, const char *dh,
                   char *h, char *dx, bool add)
{
    const struct us_ew e = {US_F32, BN_PX, BN_C};
    const int64_t step = BN_PX * BN_C * (int64_t)sizeof(float);
    for (int32_t i = 0; i < parts; i++)
        tt_ok(tt->t->bn_stats(tt->be, &e, x + i * step, b->parts + i * 2 * BN_C), "bn_stats");
    tt_ok(tt->t->bn_finish(tt->be, BN_C, b->parts, parts, (int64_t)parts * BN_PX, b->gamma, b->beta,
                           &b->aff, b->running_mean, b->running_var),
          "bn_finish");
    for (int32_t i = 0; i < parts; i++) {
        tt_ok(tt->t->bn_elu_fwd(tt->be, &e, x + i * step, &b->aff, h + i * step), "bn_elu_fwd");
        tt_ok(tt->t->bn_elu_bwd_stats(tt->be, &e, x + i * step, dh + i * step, &b->aff,
                                      b->parts + i * 2 * BN_C),
              "bn_elu_bwd_stats");
    }
    tt_ok(tt->t->bn_bwd_finish(tt->be, BN_C, b->parts, parts, (int64_t)parts * BN_PX, b->gamma,
                               &b->aff, &b->grad, b->dgamma, b->dbeta),
          "bn_bwd_finish");
    for (int32_t i = 0; i < parts; i++)
        tt_ok(tt->t->bn_elu_bwd(tt->be, &e, x + i * step, dh + i * step, &b->aff, &b->grad,
                                dx + i * step, add),
              "bn_elu_bwd");
}

static void check_bn(struct us_backend *be, int32_t parts, bool add)
{
    struct tt tt;
    struct bn b;
    struct bn_loss l = {.parts = parts};
    int64_t n = bn_count(&l) * BN_C, n_v = n + 2 * BN_C;
    double mean, var;
    tt_open(&tt, be, add ? "bn added" : "bn");
    float *v = tt_uniform(&tt, n_v, -2, 2);
    float *onto = tt_uniform(&tt, n, -1, 1);
    l.dh = tt_uniform(&tt, n, -1, 1);
    make_bn(&tt, &b, parts, v + n);
    char *h = tt_map_io(&tt, n, NULL), *dx = tt_map_io(&tt, n, add ? onto : NULL);
    run_bn(&tt, &b, parts, tt_map_in(&tt, n, v), tt_map_in(&tt, n, l.dh), h, dx, add);

    double *vd = tt_zeros(&tt, n_v, sizeof(double)), *want = tt_zeros(&tt, n, sizeof(double));
    for (int64_t i = 0; i < n_v; i++)
        vd[i] = (double)v[i];
    for (int64_t i = 0; i < n; i++) {
        bn_moments(&l, vd, (int32_t)(i % BN_C), &mean, &var);
        want[i] = bn_out(&l, vd, i / BN_C, (int32_t)(i % BN_C), mean, var);
    }
    tt_expect_near("bn_elu_fwd", n, tt_get_map(&tt, h, n), want, NEAR);
    float *got = tt_get_map(&tt, dx, n);
    for (int64_t i = 0; add && i < n; i++)
        got[i] -= onto[i];
    tt_expect_gradient("dx", n_v, v, 0, n, bn_loss, &l, got, GRAD);
    tt_expect_gradient("dgamma", n_v, v, n, BN_C, bn_loss, &l, tt_get_f32(&tt, b.dgamma, BN_C),
                       GRAD);
    tt_expect_gradient("dbeta", n_v, v, n + BN_C, BN_C, bn_loss, &l, tt_get_f32(&tt, b.dbeta, BN_C),
                       GRAD);
    tt_close(&tt);
}

void batch_norm_with_elu_has_the_gradients_of_its_definition(void **state)
{
    for (int32_t parts = 1; parts <= 3; parts++) {
        check_bn(tt_backend(state), parts, false);
        check_bn(tt_backend(state), parts, true);
    }
}

void batch_norm_keeps_running_statistics(void **state)
{
    /* Two parts of two pixels of one channel: 1 2 | 3 6. Mean 3, biased variance 3.5, unbiased
     * 14/3. Momentum 0.1 from 10 and 20. */
    struct tt tt;
    const double parts[] = {3.0, 5.0, 9.0, 45.0};
    const float gamma = 2.0f, beta = 0.5f, mean0 = 10.0f, var0 = 20.0f;
    tt_open(&tt, tt_backend(state), "running");
    struct us_bn_affine aff;
    aff.mean = tt_f32_io(&tt, 1, NULL);
    aff.inv_std = tt_f32_io(&tt, 1, NULL);
    aff.scale = tt_f32_io(&tt, 1, NULL);
    aff.shift = tt_f32_io(&tt, 1, NULL);
    float *rm = tt_f32_io(&tt, 1, &mean0), *rv = tt_f32_io(&tt, 1, &var0);
    tt_ok(tt.t->bn_finish(tt.be, 1, tt_f64_in(&tt, 4, parts), 2, 4, tt_f32_in(&tt, 1, &gamma),
                          tt_f32_in(&tt, 1, &beta), &aff, rm, rv),
          "bn_finish");
    const double inv_std = 1.0 / sqrt(3.5 + 1e-5);
    const double want[] = {3.0, inv_std, 2.0 * inv_std, 0.5 - 6.0 * inv_std, 9.3, 18.0 + 1.4 / 3.0};
    const float *const at[] = {aff.mean, aff.inv_std, aff.scale, aff.shift, rm, rv};
    for (size_t i = 0; i < US_COUNT(at); i++)
        tt_expect_near("statistic", 1, tt_get_f32(&tt, at[i], 1), &want[i], 2e-7);
    tt_close(&tt);
}

void a_constant_channel_has_finite_batch_norm(void **state)
{
    struct tt tt;
    struct bn b;
    const int64_t n = BN_PX * BN_C;
    tt_open(&tt, tt_backend(state), "constant");
    float *x = tt_zeros(&tt, n, sizeof(*x));
    for (int64_t i = 0; i < n; i++)
        x[i] = 1000.1f; /* its square's sum does not cancel to zero */
    const float *gamma = tt_uniform(&tt, 2 * BN_C, 0.5, 1);
    make_bn(&tt, &b, 1, gamma);
    char *h = tt_map_io(&tt, n, NULL), *dx = tt_map_io(&tt, n, NULL);
    run_bn(&tt, &b, 1, tt_map_in(&tt, n, x), tt_map_in(&tt, n, tt_uniform(&tt, n, -1, 1)), h, dx,
           false);
    const float *hv = tt_get_map(&tt, h, n), *dv = tt_get_map(&tt, dx, n);
    for (int64_t i = 0; i < n; i++) {
        /* x - mean is zero but for rounding, which 1 / sqrt(1e-5) makes 316 times larger. */
        assert_true(fabsf(hv[i] - gamma[BN_C + i % BN_C]) < 0.05f);
        assert_true(isfinite(dv[i]));
    }
    tt_close(&tt);
}

void a_variance_below_zero_counts_as_zero(void **state)
{
    /* Four pixels of 1e8 whose squares' sum was rounded down: the variance would be -2. */
    struct tt tt;
    struct us_bn_affine aff;
    const double part[] = {4e8, 4e16 - 8.0}, want = 1.0 / sqrt(1e-5);
    const float one = 1.0f;
    tt_open(&tt, tt_backend(state), "negative");
    float *all = tt_f32_io(&tt, 4, NULL);
    aff = (struct us_bn_affine){all, all + 1, all + 2, all + 3};
    float *rm = tt_f32_io(&tt, 1, &one), *rv = tt_f32_io(&tt, 1, &one);
    tt_ok(tt.t->bn_finish(tt.be, 1, tt_f64_in(&tt, 2, part), 1, 4, tt_f32_in(&tt, 1, &one),
                          tt_f32_in(&tt, 1, &one), &aff, rm, rv),
          "bn_finish");
    tt_expect_near("inv_std", 1, tt_get_f32(&tt, aff.inv_std, 1), &want, 2e-7);
    assert_float_equal(tt_get_f32(&tt, rv, 1)[0], 0.9f, 1e-6);
    tt_close(&tt);
}

/* ---- gate and ELU ---- */

#define GLU_PX 21
#define GLU_C  5

/* Variables: g [px][2c]; res does not matter to them. */
static double glu_at(const double *g, int64_t i)
{
    const double *px = g + i / GLU_C * 2 * GLU_C;
    return ops_elu(px[i % GLU_C]) / (1.0 + exp(-px[GLU_C + i % GLU_C]));
}

static double glu_loss(const double *g, const void *ctx)
{
    const float *dout = ctx;
    double sum = 0.0;
    for (int64_t i = 0; i < GLU_PX * GLU_C; i++)
        sum += glu_at(g, i) * (double)dout[i];
    return sum;
}

void gates_have_the_gradients_of_their_definition(void **state)
{
    struct tt tt;
    const struct us_ew e = {US_F32, GLU_PX, GLU_C};
    const int64_t n = GLU_PX * GLU_C;
    tt_open(&tt, tt_backend(state), "glu");
    float *g = tt_uniform(&tt, 2 * n, -6, 6), *dout = tt_uniform(&tt, n, -1, 1);
    float *res = tt_uniform(&tt, n, -1, 1);
    void *gd = tt_map_in(&tt, 2 * n, g), *dg = tt_map_io(&tt, 2 * n, NULL);
    void *out = tt_map_io(&tt, n, NULL);
    tt_ok(tt.t->glu_fwd(tt.be, &e, gd, tt_map_in(&tt, n, res), out), "glu_fwd");
    tt_ok(tt.t->glu_bwd(tt.be, &e, gd, tt_map_in(&tt, n, dout), dg), "glu_bwd");
    double *want = tt_zeros(&tt, n, sizeof(double)), *wide = tt_zeros(&tt, 2 * n, sizeof(double));
    for (int64_t i = 0; i < 2 * n; i++)
        wide[i] = (double)g[i];
    for (int64_t i = 0; i < n; i++)
        want[i] = (double)res[i] + glu_at(wide, i);
    tt_expect_near("glu_fwd", n, tt_get_map(&tt, out, n), want, NEAR);
    tt_expect_gradient("glu_bwd", 2 * n, g, 0, 2 * n, glu_loss, dout, tt_get_map(&tt, dg, 2 * n),
                       GRAD);
    tt_close(&tt);
}

static double elu_loss(const double *x, const void *ctx)
{
    const float *dy = ctx;
    double sum = 0.0;
    for (int64_t i = 0; i < GLU_PX * GLU_C; i++)
        sum += ops_elu(x[i]) * (double)dy[i];
    return sum;
}

void elu_has_the_gradient_of_its_definition(void **state)
{
    struct tt tt;
    const struct us_ew e = {US_F32, GLU_PX, GLU_C};
    const int64_t n = GLU_PX * GLU_C;
    tt_open(&tt, tt_backend(state), "elu");
    float *x = tt_uniform(&tt, n, -6, 6), *dy = tt_uniform(&tt, n, -1, 1);
    void *y = tt_map_io(&tt, n, NULL), *dx = tt_map_io(&tt, n, NULL);
    tt_ok(tt.t->elu_fwd(tt.be, &e, tt_map_in(&tt, n, x), y), "elu_fwd");
    tt_ok(tt.t->elu_bwd(tt.be, &e, y, tt_map_in(&tt, n, dy), dx), "elu_bwd");
    double *want = tt_zeros(&tt, n, sizeof(double));
    for (int64_t i = 0; i < n; i++)
        want[i] = ops_elu((double)x[i]);
    tt_expect_near("elu_fwd", n, tt_get_map(&tt, y, n), want, NEAR);
    tt_expect_gradient("elu_bwd", n, x, 0, n, elu_loss, dy, tt_get_map(&tt, dx, n), GRAD);
    tt_close(&tt);
}
