/*
 * Every backend against ref, op by op: odd, prime, single and large sizes, f32 and bf16 maps. Each
 * op gets the same (rounded) inputs on both, so that an output's error is that op's alone:
 *   f32 maps, and f32 or f64 results from them: sums in another order, 1e-5 of the largest value;
 *   bf16 maps: one rounding to 8 bits, up to 2^-8 of a value, and the f32 error before it;
 *   f32 or f64 results from bf16 maps: sums of f32 products, 1e-4 for the long ones of
 * convolutions.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train_test.h"

#define TOL_F32      1e-5
#define TOL_BF16_MAP 4.2e-3
#define TOL_BF16_SUM 1e-4

#define MAX_OUTS 8

/* What an op left: every result as double. */
struct outs {
    int n;
    struct {
        const char *name;
        double *v;
        int64_t n;
        bool map;
    } out[MAX_OUTS];
};

struct shape {
    int32_t h, w, c;
};

static const struct shape shapes[] = {
    {1, 1, 1},    {1, 1, 64},  {7, 1, 3},    {3, 5, 17},
    {11, 13, 64}, {8, 31, 33}, {64, 64, 32}, {2, 2, 129},
};

static int64_t count(const struct shape *s)
{
    return (int64_t)s->h * s->w * s->c;
}

static struct us_ew ew_of(const struct tt *tt, const struct shape *s)
{
    return (struct us_ew){tt->dtype, (int64_t)s->h * s->w, s->c};
}

static double *add_out(struct outs *o, const char *name, int64_t n, bool map)
{
    double *v = malloc((size_t)n * sizeof(*v));
    assert_non_null(v);
    assert_true(o->n < MAX_OUTS);
    o->out[o->n].name = name;
    o->out[o->n].v = v;
    o->out[o->n].n = n;
    o->out[o->n].map = map;
    o->n++;
    return v;
}

static void out_map(struct tt *tt, struct outs *o, const char *name, const void *p, int64_t n)
{
    const float *f = tt_get_map(tt, p, n);
    double *v = add_out(o, name, n, true);
    for (int64_t i = 0; i < n; i++)
        v[i] = (double)f[i];
}

static void out_f32(struct tt *tt, struct outs *o, const char *name, const float *p, int64_t n)
{
    const float *f = tt_get_f32(tt, p, n);
    double *v = add_out(o, name, n, false);
    for (int64_t i = 0; i < n; i++)
        v[i] = (double)f[i];
}

static void out_f64(struct tt *tt, struct outs *o, const char *name, const double *p, int64_t n)
{
    memcpy(add_out(o, name, n, false), tt_get_f64(tt, p, n), (size_t)n * sizeof(*p));
}

/* A map of random numbers as an input, or as an output that is added to. */
static void *random_in(struct tt *tt, int64_t n, double spread)
{
    return tt_map_in(tt, n, tt_uniform(tt, n, -spread, spread));
}

static void *random_io(struct tt *tt, int64_t n)
{
    return tt_map_io(tt, n, tt_uniform(tt, n, -1, 1));
}

/* ---- the ops, each on one shape ---- */

static void run_bn_stats(struct tt *tt, const struct shape *s, struct outs *o)
{
    const struct us_ew e = ew_of(tt, s);
    double *part = tt_f64_io(tt, 2 * (int64_t)s->c, NULL);
    tt_ok(tt->t->bn_stats(tt->be, &e, random_in(tt, count(s), 2), part), "bn_stats");
    out_f64(tt, o, "sums", part, s->c);
    out_f64(tt, o, "sums of squares", part + s->c, s->c);
}

/* Statistics of one layer: means about 0, deviations about 1. */
static void random_affine(struct tt *tt, int32_t c, struct us_bn_affine *a, struct us_bn_grad *g)
{
    a->mean = tt_f32_in(tt, c, tt_uniform(tt, c, -0.5, 0.5));
    a->inv_std = tt_f32_in(tt, c, tt_uniform(tt, c, 0.5, 1.5));
    a->scale = tt_f32_in(tt, c, tt_uniform(tt, c, -1.5, 1.5));
    a->shift = tt_f32_in(tt, c, tt_uniform(tt, c, -0.5, 0.5));
    g->a = tt_f32_in(tt, c, tt_uniform(tt, c, -1, 1));
    g->b = tt_f32_in(tt, c, tt_uniform(tt, c, -0.2, 0.2));
    g->d = tt_f32_in(tt, c, tt_uniform(tt, c, -0.2, 0.2));
}

static void run_bn_elu(struct tt *tt, const struct shape *s, struct outs *o)
{
    const struct us_ew e = ew_of(tt, s);
    struct us_bn_affine aff;
    struct us_bn_grad g;
    int64_t n = count(s);
    random_affine(tt, s->c, &aff, &g);
    void *x = random_in(tt, n, 3), *dh = random_in(tt, n, 1);
    void *h = tt_map_io(tt, n, NULL), *dx = tt_map_io(tt, n, NULL), *onto = random_io(tt, n);
    double *part = tt_f64_io(tt, 2 * (int64_t)s->c, NULL);
    tt_ok(tt->t->bn_elu_fwd(tt->be, &e, x, &aff, h), "bn_elu_fwd");
    tt_ok(tt->t->bn_elu_bwd_stats(tt->be, &e, x, dh, &aff, part), "bn_elu_bwd_stats");
    tt_ok(tt->t->bn_elu_bwd(tt->be, &e, x, dh, &aff, &g, dx, false), "bn_elu_bwd");
    tt_ok(tt->t->bn_elu_bwd(tt->be, &e, x, dh, &aff, &g, onto, true), "bn_elu_bwd");
    out_map(tt, o, "h", h, n);
    out_f64(tt, o, "sums of dy", part, s->c);
    out_f64(tt, o, "sums of dy xhat", part + s->c, s->c);
    out_map(tt, o, "dx", dx, n);
    out_map(tt, o, "dx added", onto, n);
}

static void run_bn_finish(struct tt *tt, const struct shape *s, struct outs *o)
{
    enum { PARTS = 3, COUNT = 50 };
    struct us_bn_affine a;
    struct us_bn_grad g;
    int32_t c = s->c;
    double *parts = tt_zeros(tt, PARTS * 2 * (int64_t)c, sizeof(double));
    const float *r = tt_uniform(tt, PARTS * 2 * (int64_t)c, 0.5, 1.5);
    for (int64_t i = 0; i < PARTS * 2 * (int64_t)c; i++)
        parts[i] = (double)r[i] * (i / c % 2 == 0 ? 1.0 : 20.0); /* squares outweigh sums */
    const float *gamma = tt_f32_in(tt, c, tt_uniform(tt, c, 0.5, 1.5));
    const float *beta = tt_f32_in(tt, c, tt_uniform(tt, c, -1, 1));
    float **const f[] = {&a.mean, &a.inv_std, &a.scale, &a.shift, &g.a, &g.b, &g.d};
    float *run[4]; /* mean, variance, dgamma, dbeta: all change what is there */
    float *all = tt_f32_io(tt, 7 * (int64_t)c, NULL);
    for (size_t i = 0; i < US_COUNT(f); i++)
        *f[i] = all + (int64_t)i * c;
    for (size_t i = 0; i < US_COUNT(run); i++)
        run[i] = tt_f32_io(tt, c, tt_uniform(tt, c, 0, 1));
    const double *p = tt_f64_in(tt, PARTS * 2 * (int64_t)c, parts);
    tt_ok(tt->t->bn_finish(tt->be, c, p, PARTS, COUNT, gamma, beta, &a, run[0], run[1]),
          "bn_finish");
    tt_ok(tt->t->bn_bwd_finish(tt->be, c, p, PARTS, COUNT, gamma, &a, &g, run[2], run[3]),
          "bn_bwd_finish");
    out_f32(tt, o, "affine", all, 4 * (int64_t)c);
    out_f32(tt, o, "gradient", all + 4 * (int64_t)c, 3 * (int64_t)c);
    for (size_t i = 0; i < US_COUNT(run); i++)
        out_f32(tt, o, "running or parameter", run[i], c);
}

static void run_activations(struct tt *tt, const struct shape *s, struct outs *o)
{
    const struct us_ew e = ew_of(tt, s);
    int64_t n = count(s);
    void *x = random_in(tt, n, 8), *y = tt_map_io(tt, n, NULL), *dx = tt_map_io(tt, n, NULL);
    void *g = random_in(tt, 2 * n, 8), *dg = tt_map_io(tt, 2 * n, NULL);
    void *d = random_in(tt, n, 1), *out = tt_map_io(tt, n, NULL);
    tt_ok(tt->t->elu_fwd(tt->be, &e, x, y), "elu_fwd");
    /* Of this x as if it were an output: the backward's input must not depend on a rounding. */
    tt_ok(tt->t->elu_bwd(tt->be, &e, x, d, dx), "elu_bwd");
    tt_ok(tt->t->glu_fwd(tt->be, &e, g, d, out), "glu_fwd");
    tt_ok(tt->t->glu_bwd(tt->be, &e, g, d, dg), "glu_bwd");
    out_map(tt, o, "elu", y, n);
    out_map(tt, o, "d elu", dx, n);
    out_map(tt, o, "glu", out, n);
    out_map(tt, o, "d glu", dg, 2 * n);
}

static void run_maps(struct tt *tt, const struct shape *s, struct outs *o)
{
    const struct us_ew e = ew_of(tt, s);
    int64_t n = count(s);
    const struct us_draw draw = {.seed = 42, .step = 9, .item = 1};
    const struct us_window whole = {s->h, s->w, s->c, 0, 0, 0};
    const struct us_window wide = {s->h + 2, s->w + 3, s->c + 5, 2, 1, 2};
    int64_t n_wide = (int64_t)(s->h + 2) * (s->w + 3) * (s->c + 5);
    void *x = random_in(tt, n, 1), *copy = tt_map_io(tt, n, NULL), *sum = random_io(tt, n);
    void *drop = random_io(tt, n), *scaled = random_io(tt, n);
    void *pad = random_io(tt, n_wide), *crop = random_io(tt, n);
    tt_ok(tt->t->accumulate(tt->be, &e, x, copy, false), "accumulate");
    tt_ok(tt->t->accumulate(tt->be, &e, x, sum, true), "accumulate");
    tt_ok(tt->t->dropout2d(tt->be, &e, drop, 0.3f, tt_lend(tt, &draw, sizeof(draw)), 1, 17),
          "dropout2d");
    tt_ok(tt->t->scale(tt->be, &e, scaled, 0.7f), "scale");
    tt_ok(tt->t->window(tt->be, tt->dtype, 1, s->h, s->w, s->c, x, &whole, pad, &wide, false),
          "window");
    tt_ok(tt->t->window(tt->be, tt->dtype, 1, s->h, s->w, s->c, pad, &wide, crop, &whole, true),
          "window");
    out_map(tt, o, "copy", copy, n);
    out_map(tt, o, "sum", sum, n);
    out_map(tt, o, "dropped", drop, n);
    out_map(tt, o, "scaled", scaled, n);
    out_map(tt, o, "padded", pad, n_wide);
    out_map(tt, o, "cropped", crop, n);
}

static void run_layouts(struct tt *tt, const struct shape *s, struct outs *o)
{
    const struct us_ew e = ew_of(tt, s);
    int64_t n = count(s);
    const float *f = tt_f32_in(tt, n, tt_uniform(tt, n, -1, 1));
    void *p = tt_map_io(tt, n, NULL), *map = tt_map_io(tt, n, NULL), *zero = random_io(tt, n);
    float *dprior = tt_f32_io(tt, n, tt_uniform(tt, n, -1, 1));
    tt_ok(tt->t->prior_load(tt->be, &e, 1, f, p), "prior_load");
    tt_ok(tt->t->prior_grad(tt->be, &e, 1, random_in(tt, n, 1), dprior), "prior_grad");
    tt_ok(tt->t->convert(tt->be, &e, f, US_F32, map), "convert");
    tt_ok(tt->t->fill_zero(tt->be, zero, (size_t)n * us_dtype_bytes(tt->dtype)), "fill_zero");
    out_map(tt, o, "prior", p, n);
    out_f32(tt, o, "d prior", dprior, n);
    out_map(tt, o, "converted", map, n);
    out_map(tt, o, "zero", zero, n);
}

static void posterior_on(struct tt *tt, const struct shape *s, bool analytical, struct outs *o)
{
    int64_t n = count(s);
    const struct us_draw key = {.seed = 3, .step = 8, .item = 5};
    const struct us_draw *draw = tt_lend(tt, &key, sizeof(key));
    const struct us_posterior d = {.ew = ew_of(tt, s),
                                   .h = s->h,
                                   .w = s->w,
                                   .level = 2,
                                   .var_clip_max = 1.5f,
                                   .analytical = analytical};
    const float coef = 1.0f;
    void *q = random_in(tt, 2 * n, 2), *p = random_in(tt, 2 * n, 2), *dz = random_in(tt, n, 0.1);
    void *z = tt_map_io(tt, n, NULL);
    void *dq = tt_map_io(tt, 2 * n, NULL), *dp = tt_map_io(tt, 2 * n, NULL);
    double *kl = tt_f64_io(tt, 1, NULL);
    tt_ok(tt->t->posterior_fwd(tt->be, &d, 1, q, p, draw, z, kl), "posterior_fwd");
    tt_ok(tt->t->posterior_bwd(tt->be, &d, 1, q, p, draw, dz, tt_f32_in(tt, 1, &coef), dq, dp),
          "posterior_bwd");
    out_map(tt, o, "z", z, n);
    out_f64(tt, o, "kl", kl, 1);
    out_map(tt, o, "dq", dq, 2 * n);
    out_map(tt, o, "dp", dp, 2 * n);
}

static void run_posterior(struct tt *tt, const struct shape *s, struct outs *o)
{
    posterior_on(tt, s, false, o);
}

static void run_posterior_closed(struct tt *tt, const struct shape *s, struct outs *o)
{
    posterior_on(tt, s, true, o);
}

/* Two targets; the shape's channels choose the log-variance's mode. */
static void run_likelihood(struct tt *tt, const struct shape *s, struct outs *o)
{
    struct us_likelihood d = {.h = s->h,
                              .w = s->w,
                              .targets = 2,
                              .logvar = (enum us_logvar)(s->c % 4),
                              .lower_bound = -1.0f,
                              .weight = {1.0f, 2.0f},
                              .mse = s->c == 3};
    int64_t px = (int64_t)s->h * s->w, n = px * (d.logvar == US_LOGVAR_NONE ? 2 : 4);
    const float *head = tt_f32_in(tt, n, tt_uniform(tt, n, -2, 2));
    const float *x = tt_f32_in(tt, 2 * px, tt_uniform(tt, 2 * px, -2, 2));
    double *rec = tt_f64_io(tt, 2, NULL), *se = tt_f64_io(tt, 2, NULL);
    float *dhead = tt_f32_io(tt, n, NULL);
    tt_ok(tt->t->likelihood(tt->be, &d, 1, head, x, 0.5f, rec, se, dhead), "likelihood");
    out_f64(tt, o, "rec", rec, 2);
    out_f64(tt, o, "se", se, 2);
    out_f32(tt, o, "dhead", dhead, n);
}

static void run_step(struct tt *tt, const struct shape *s, struct outs *o)
{
    int64_t n = count(s);
    const struct us_adamax a = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.271, 0.37f};
    const float *lanes = tt_f32_in(tt, 4 * n, tt_uniform(tt, 4 * n, -1, 1));
    float *g = tt_f32_io(tt, n, NULL), *m = tt_f32_io(tt, n, tt_uniform(tt, n, -1, 1));
    float *u = tt_f32_io(tt, n, tt_uniform(tt, n, 0, 1));
    float *p = tt_f32_io(tt, n, tt_uniform(tt, n, -1, 1));
    double *sq = tt_f64_io(tt, 1, NULL);
    tt_ok(tt->t->reduce_lanes(tt->be, lanes, n, 4, n, g, sq), "reduce_lanes");
    out_f32(tt, o, "reduced", g, n);
    out_f64(tt, o, "squares", sq, 1);
    tt_ok(tt->t->adamax(tt->be, &a, n, lanes, m, u, p), "adamax");
    out_f32(tt, o, "m", m, n);
    out_f32(tt, o, "u", u, n);
    out_f32(tt, o, "p", p, n);
}

static const struct {
    const char *name;
    void (*run)(struct tt *tt, const struct shape *s, struct outs *o);
} runs[] = {
    {"bn_stats", run_bn_stats},
    {"bn_elu", run_bn_elu},
    {"bn_finish", run_bn_finish},
    {"activations", run_activations},
    {"maps", run_maps},
    {"layouts", run_layouts},
    {"posterior", run_posterior},
    {"posterior_closed", run_posterior_closed},
    {"likelihood", run_likelihood},
    {"step", run_step},
};

/* ---- convolutions ---- */

struct conv_shape {
    int32_t n, h, w, in_c, out_c, k, stride, pad;
    bool transposed;
};

static const struct conv_shape conv_shapes[] = {
    {1, 16, 16, 64, 64, 3, 1, 1, false}, {1, 32, 32, 1, 64, 5, 1, 2, false},
    {1, 16, 16, 64, 64, 3, 2, 1, false}, {1, 8, 8, 64, 64, 3, 2, 1, true},
    {1, 9, 7, 64, 128, 1, 1, 0, false},  {1, 13, 11, 128, 64, 1, 1, 0, false},
    {1, 16, 16, 64, 4, 3, 1, 1, false},  {1, 4, 4, 64, 256, 3, 1, 1, false},
    {1, 1, 1, 16, 16, 3, 1, 1, false},   {2, 7, 5, 3, 17, 3, 1, 1, false},
    {1, 5, 3, 17, 5, 3, 2, 1, true},     {1, 2, 2, 1, 1, 3, 2, 1, false},
};

static void run_conv(struct tt *tt, const struct conv_shape *s, struct outs *o)
{
    int32_t oh = s->transposed ? 2 * s->h : (s->h + 2 * s->pad - s->k) / s->stride + 1;
    int32_t ow = s->transposed ? 2 * s->w : (s->w + 2 * s->pad - s->k) / s->stride + 1;
    const struct us_tconv_desc d = {.in = us_map_full(s->n, s->h, s->w, s->in_c, tt->dtype),
                                    .out = us_map_full(s->n, oh, ow, s->out_c, tt->dtype),
                                    .k = s->k,
                                    .stride = s->stride,
                                    .pad = s->pad,
                                    .transposed = s->transposed};
    int64_t n_x = us_map_count(&d.in), n_y = us_map_count(&d.out);
    int64_t n_w = (int64_t)s->k * s->k * s->in_c * s->out_c;
    struct tt_conv c;
    tt_ok(tt_conv_open(tt, &d, tt_uniform(tt, n_w, -1, 1), tt_uniform(tt, s->out_c, -1, 1), &c),
          "conv_plan");
    void *x = random_in(tt, n_x, 1), *dy = random_in(tt, n_y, 1);
    void *y = tt_map_io(tt, n_y, NULL), *dx = tt_map_io(tt, n_x, NULL);
    float *dw = tt_f32_io(tt, n_w, tt_uniform(tt, n_w, -1, 1));
    float *db = tt_f32_io(tt, s->out_c, tt_uniform(tt, s->out_c, -1, 1));
    tt_ok(tt->t->conv_fwd(tt->be, c.ctx, c.packed, x, y), "conv_fwd");
    tt_ok(tt->t->conv_bwd_data(tt->be, c.ctx, c.packed, dy, dx), "conv_bwd_data");
    tt_ok(tt->t->conv_bwd_weights(tt->be, c.ctx, x, dy, dw, db), "conv_bwd_weights");
    out_map(tt, o, "y", y, n_y);
    out_map(tt, o, "dx", dx, n_x);
    out_f32(tt, o, "dw", dw, n_w);
    out_f32(tt, o, "db", db, s->out_c);
    tt_conv_close(tt, &c);
}

/* ---- comparing ---- */

static void free_outs(struct outs *o)
{
    for (int i = 0; i < o->n; i++)
        free(o->out[i].v);
}

/* Whether out i agrees; says where not. *used: the largest share of a bound that was needed. */
static bool agrees(const char *name, enum us_dtype dtype, const struct outs *got,
                   const struct outs *want, int i, double *used)
{
    double largest = 0.0, tol = TOL_F32;
    if (dtype == US_BF16)
        tol = got->out[i].map ? TOL_BF16_MAP : TOL_BF16_SUM;
    for (int64_t j = 0; j < want->out[i].n; j++)
        largest = fmax(largest, fabs(want->out[i].v[j]));
    for (int64_t j = 0; j < want->out[i].n; j++) {
        double a = got->out[i].v[j], b = want->out[i].v[j];
        if (a == b)
            continue;
        *used = fmax(*used, fabs(a - b) / (tol * largest));
        if (fabs(a - b) <= tol * largest)
            continue;
        print_error("%s: %s[%lld] is %.9g, not %.9g (largest %g, allowed %g of it)\n", name,
                    want->out[i].name, (long long)j, a, b, largest, tol);
        return false;
    }
    return true;
}

/* One op or (s NULL) one convolution on ref and on `be`. */
static int compare(struct us_backend *be, enum us_dtype dtype, size_t which, const struct shape *s,
                   const struct conv_shape *conv, double *used)
{
    struct us_backend *const on[2] = {ops_backend(0), be};
    struct outs outs[2] = {{0}};
    char name[96];
    int wrong = 0;
    if (s != NULL)
        (void)snprintf(name, sizeof(name), "%s %dx%dx%d", runs[which].name, s->h, s->w, s->c);
    else
        (void)snprintf(name, sizeof(name), "conv %dx%dx%d to %d, kernel %d, stride %d%s", conv->h,
                       conv->w, conv->in_c, conv->out_c, conv->k, conv->stride,
                       conv->transposed ? ", transposed" : "");
    for (int i = 0; i < 2; i++) {
        struct tt tt;
        tt_open(&tt, on[i], name);
        tt.round = dtype == US_BF16;
        tt.dtype = i == 0 ? US_F32 : dtype;
        if (s != NULL)
            runs[which].run(&tt, s, &outs[i]);
        else
            run_conv(&tt, conv, &outs[i]);
        tt_close(&tt);
    }
    for (int i = 0; i < outs[0].n; i++)
        wrong += !agrees(name, dtype, &outs[1], &outs[0], i, used);
    free_outs(&outs[0]);
    free_outs(&outs[1]);
    return wrong;
}

static void check_all(void **state, enum us_dtype dtype)
{
    struct us_backend *be = tt_backend(state);
    double used = 0.0;
    int wrong = 0;
    if (!us_backend_ops(be)->has_dtype(be, dtype)) {
        print_message("skipped: no bf16 on this processor\n");
        skip();
    }
    for (size_t i = 0; i < US_COUNT(conv_shapes); i++)
        wrong += compare(be, dtype, 0, NULL, &conv_shapes[i], &used);
    for (size_t r = 0; r < US_COUNT(runs); r++)
        for (size_t i = 0; i < US_COUNT(shapes); i++)
            wrong += compare(be, dtype, r, &shapes[i], NULL, &used);
    assert_int_equal(wrong, 0);
    print_message("largest difference: %.0f %% of its bound\n", 100 * used);
}

void every_op_agrees_with_ref_in_f32(void **state)
{
    check_all(state, US_F32);
}

void every_op_agrees_with_ref_in_bf16(void **state)
{
    check_all(state, US_BF16);
}
