/*
 * Posterior and likelihood: losses against their definitions in double (model-spec 5, 6, 7, 8), and
 * gradients against their central differences.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "math/us_philox_math.h"
#include "train_test.h"

#define NEAR 2e-6
#define GRAD 2e-5

/* ---- posterior ---- */

#define P_ITEMS 2
#define P_H     3
#define P_W     2
#define P_Z     5
#define P_N     (P_H * P_W * P_Z) /* elements of an item's z */
#define P_LEVEL 1

/* Variables [q | p], each [items][px][2Z]. */
struct posterior_loss {
    double clip;
    bool analytical;
    const float *eps; /* [items][px][Z] */
    const float *dz, *coef;
};

static double spec_var(double lv, double clip)
{
    double c = fmin(lv, clip);
    return (c <= 0 ? exp(c) : 1 + c) + 1e-6;
}

/* z and KL of element i of all items. */
static void posterior_element(const struct posterior_loss *l, const double *v, int64_t i, double *z,
                              double *kl)
{
    int64_t at = i / P_Z * 2 * P_Z + i % P_Z;
    const double *q = v + at, *p = q + P_ITEMS * 2 * P_N;
    double vq = spec_var(q[P_Z], l->clip), vp = spec_var(p[P_Z], l->clip);
    double eps = (double)l->eps[i];
    *z = q[0] + sqrt(vq) * eps;
    if (l->analytical)
        *kl = 0.5 * (vq / vp + (q[0] - p[0]) * (q[0] - p[0]) / vp - 1 - log(vq / vp));
    else
        *kl = -(*z - q[0]) * (*z - q[0]) / (2 * vq) - log(sqrt(vq)) +
              (*z - p[0]) * (*z - p[0]) / (2 * vp) + log(sqrt(vp));
}

static double posterior_loss(const double *v, const void *ctx)
{
    const struct posterior_loss *l = ctx;
    double sum = 0.0, z, kl;
    for (int64_t i = 0; i < P_ITEMS * P_N; i++) {
        posterior_element(l, v, i, &z, &kl);
        sum += (double)l->coef[i / P_N] * kl / P_N;
        sum += l->dz != NULL ? (double)l->dz[i] * z : 0.0;
    }
    return sum;
}

static struct us_posterior posterior_desc(float clip, bool analytical)
{
    return (struct us_posterior){.ew = {US_F32, P_H * P_W, P_Z},
                                 .h = P_H,
                                 .w = P_W,
                                 .level = P_LEVEL,
                                 .var_clip_max = clip,
                                 .analytical = analytical};
}

static void expect_forward(struct tt *tt, const struct posterior_loss *l, const float *v,
                           const float *z, const double *kl)
{
    double *want = tt_zeros(tt, P_ITEMS * P_N, sizeof(double));
    double *wide = tt_zeros(tt, P_ITEMS * 4 * P_N, sizeof(double));
    double want_kl[P_ITEMS] = {0}, one;
    float got_kl[P_ITEMS];
    for (int64_t i = 0; i < P_ITEMS * 4 * P_N; i++)
        wide[i] = (double)v[i];
    for (int64_t i = 0; i < P_ITEMS * P_N; i++) {
        posterior_element(l, wide, i, &want[i], &one);
        want_kl[i / P_N] += one / P_N;
    }
    for (int i = 0; i < P_ITEMS; i++)
        got_kl[i] = (float)kl[i];
    tt_expect_near("z", P_ITEMS * P_N, z, want, NEAR);
    tt_expect_near("kl", P_ITEMS, got_kl, want_kl, NEAR);
}

static void check_posterior(struct us_backend *be, float clip, bool analytical, bool with_dz)
{
    struct tt tt;
    tt_open(&tt, be, "posterior");
    const int64_t n = (int64_t)P_ITEMS * P_N;
    float *v = tt_uniform(&tt, 4 * n, -3, 3);
    const float *eps = tt_uniform(&tt, n, -2, 2);
    float *dz = tt_uniform(&tt, n, -0.1, 0.1);
    float *coef = tt_uniform(&tt, P_ITEMS, 0.5, 1);
    const float *levels[P_ITEMS][US_MAX_LEVELS] = {{0}};
    struct us_draw keys[P_ITEMS] = {{0}};
    eps = tt_lend(&tt, eps, (size_t)n * sizeof(*eps));
    for (int i = 0; i < P_ITEMS; i++)
        levels[i][P_LEVEL] = eps + i * P_N;
    const float *(*lent)[US_MAX_LEVELS] = tt_lend(&tt, levels, sizeof(levels));
    for (int i = 0; i < P_ITEMS; i++)
        keys[i].eps = lent[i];
    const struct us_draw *draw = tt_lend(&tt, keys, sizeof(keys));
    const struct us_posterior d = posterior_desc(clip, analytical);
    const struct posterior_loss l = {(double)clip, analytical, eps, with_dz ? dz : NULL, coef};
    void *q = tt_map_in(&tt, 2 * n, v), *p = tt_map_in(&tt, 2 * n, v + 2 * n);
    void *z = tt_map_io(&tt, n, NULL), *back = with_dz ? tt_map_in(&tt, n, dz) : NULL;
    void *dq = tt_map_io(&tt, 2 * n, NULL), *dp = tt_map_io(&tt, 2 * n, NULL);
    double *kl = tt_f64_io(&tt, P_ITEMS, NULL);
    tt_ok(tt.t->posterior_fwd(be, &d, P_ITEMS, q, p, draw, z, kl), "posterior_fwd");
    tt_ok(tt.t->posterior_bwd(be, &d, P_ITEMS, q, p, draw, back, tt_f32_in(&tt, P_ITEMS, coef), dq,
                              dp),
          "posterior_bwd");
    expect_forward(&tt, &l, v, tt_get_map(&tt, z, n), tt_get_f64(&tt, kl, P_ITEMS));
    tt_expect_gradient("dq", 4 * n, v, 0, 2 * n, posterior_loss, &l, tt_get_map(&tt, dq, 2 * n),
                       GRAD);
    tt_expect_gradient("dp", 4 * n, v, 2 * n, 2 * n, posterior_loss, &l, tt_get_map(&tt, dp, 2 * n),
                       GRAD);
    tt_close(&tt);
}

void posteriors_have_the_gradients_of_their_definition(void **state)
{
    /* Log-variances from -3 to 3: both branches of ExpLin; a clip in either, and none. */
    static const float clips[] = {INFINITY, 1.0f, -1.0f, 20.0f};
    for (size_t i = 0; i < US_COUNT(clips); i++)
        for (int m = 0; m < 4; m++)
            check_posterior(tt_backend(state), clips[i], (m & 1) != 0, (m & 2) != 0);
}

/* dlv of q and of p for one element with equal means, closed KL, coefficient 1. */
static void one_element(struct us_backend *be, float clip, float lv_q, float lv_p, float ret[2])
{
    struct tt tt;
    tt_open(&tt, be, "one element");
    const float q[] = {0.5f, lv_q}, p[] = {0.5f, lv_p}, coef = 1.0f;
    const struct us_draw key = {.seed = 1}, *draw = tt_lend(&tt, &key, sizeof(key));
    const struct us_posterior d = {
        .ew = {US_F32, 1, 1}, .h = 1, .w = 1, .var_clip_max = clip, .analytical = true};
    void *dq = tt_map_io(&tt, 2, NULL), *dp = tt_map_io(&tt, 2, NULL);
    tt_ok(tt.t->posterior_bwd(be, &d, 1, tt_map_in(&tt, 2, q), tt_map_in(&tt, 2, p), draw, NULL,
                              tt_f32_in(&tt, 1, &coef), dq, dp),
          "posterior_bwd");
    ret[0] = tt_get_map(&tt, dq, 2)[1];
    ret[1] = tt_get_map(&tt, dp, 2)[1];
    tt_close(&tt);
}

void posterior_gradients_include_the_clip_itself(void **state)
{
    struct us_backend *be = tt_backend(state);
    float g[2];
    one_element(be, 2.0f, 2.0f, 0.0f, g); /* variances 3 and 1 */
    assert_float_equal(g[0], (1.0f - 1.0f / 3.0f) / 2.0f, 1e-5);
    assert_float_equal(g[1], (1.0f - 3.0f) / 2.0f, 1e-5);
    one_element(be, 2.0f, nextafterf(2.0f, 3.0f), 0.0f, g);
    assert_float_equal(g[0], 0.0f, 0);
    assert_float_equal(g[1], (1.0f - 3.0f) / 2.0f, 1e-5);
    one_element(be, 2.0f, 0.0f, 2.0f, g); /* variances 1 and 3 */
    assert_float_equal(g[1], (1.0f / 3.0f - 1.0f / 9.0f) / 2.0f, 1e-5);
    one_element(be, 2.0f, 0.0f, 2.5f, g);
    assert_float_equal(g[1], 0.0f, 0);
}

#define NOISE_SIDE 32
#define NOISE_Z    6

/* kl of one item with the same q and p everywhere, drawn noise. */
static double constant_kl(struct us_backend *be, bool analytical)
{
    struct tt tt;
    const int64_t n = (int64_t)NOISE_SIDE * NOISE_SIDE * NOISE_Z;
    tt_open(&tt, be, "constant kl");
    float *q = tt_zeros(&tt, 2 * n, sizeof(*q)), *p = tt_zeros(&tt, 2 * n, sizeof(*p));
    for (int64_t i = 0; i < 2 * n; i++) {
        bool lv = i / NOISE_Z % 2 != 0;
        q[i] = lv ? -1.0f : 0.75f;
        p[i] = lv ? 0.5f : 0.25f;
    }
    const struct us_draw key = {.seed = 77, .step = 3}, *draw = tt_lend(&tt, &key, sizeof(key));
    struct us_posterior d = {.ew = {US_F32, NOISE_SIDE * NOISE_SIDE, NOISE_Z},
                             .h = NOISE_SIDE,
                             .w = NOISE_SIDE,
                             .var_clip_max = 20.0f,
                             .analytical = analytical};
    double *kl = tt_f64_io(&tt, 1, NULL);
    tt_ok(tt.t->posterior_fwd(be, &d, 1, tt_map_in(&tt, 2 * n, q), tt_map_in(&tt, 2 * n, p), draw,
                              tt_map_io(&tt, n, NULL), kl),
          "posterior_fwd");
    double got = tt_get_f64(&tt, kl, 1)[0];
    tt_close(&tt);
    return got;
}

void the_samples_mean_is_the_closed_kl(void **state)
{
    struct us_backend *be = tt_backend(state);
    /* Variances e^-1 and 1.5, means 1/2 apart; one sample scatters by 0.6, 6144 of them by 0.008.
     */
    const double vq = exp(-1.0) + 1e-6, vp = 1.5 + 1e-6;
    const double want = 0.5 * (vq / vp + 0.25 / vp - 1.0 - log(vq / vp));
    assert_float_equal(constant_kl(be, true), want, 1e-6);
    assert_float_equal(constant_kl(be, false), want, 0.03);
}

void a_deterministic_posterior_passes_means_only(void **state)
{
    struct tt tt;
    tt_open(&tt, tt_backend(state), "hae");
    const int64_t n = (int64_t)P_ITEMS * P_N;
    const float *q = tt_uniform(&tt, 2 * n, -3, 3), *dz = tt_uniform(&tt, n, -1, 1);
    const struct us_draw keys[P_ITEMS] = {{.seed = 5}, {.seed = 5, .item = 1}};
    const struct us_draw *draw = tt_lend(&tt, keys, sizeof(keys));
    struct us_posterior d = posterior_desc(20.0f, false);
    d.deterministic = true;
    void *qd = tt_map_in(&tt, 2 * n, q), *z = tt_map_io(&tt, n, NULL);
    void *dq = tt_map_io(&tt, 2 * n, NULL);
    double *kl = tt_f64_io(&tt, P_ITEMS, NULL);
    tt_ok(tt.t->posterior_fwd(tt.be, &d, P_ITEMS, qd, NULL, draw, z, kl), "posterior_fwd");
    tt_ok(tt.t->posterior_bwd(tt.be, &d, P_ITEMS, qd, NULL, draw, tt_map_in(&tt, n, dz), NULL, dq,
                              NULL),
          "posterior_bwd");
    const float *zv = tt_get_map(&tt, z, n), *dv = tt_get_map(&tt, dq, 2 * n);
    const double *kv = tt_get_f64(&tt, kl, P_ITEMS);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i / P_Z * 2 * P_Z + i % P_Z;
        assert_true(zv[i] == q[at] && dv[at] == dz[i] && dv[at + P_Z] == 0.0f);
    }
    assert_true(kv[0] == 0.0 && kv[1] == 0.0);
    tt_close(&tt);
}

void posterior_noise_is_keyed_by_step_and_item(void **state)
{
    struct tt tt;
    tt_open(&tt, tt_backend(state), "keys");
    const int64_t n = (int64_t)P_ITEMS * P_N;
    float *q = tt_zeros(&tt, 2 * n, sizeof(*q)); /* mean 0, variance 1 + 1e-6 */
    double *want = tt_zeros(&tt, n, sizeof(double));
    const struct us_draw keys[P_ITEMS] = {{.seed = 0x123456789abcdef0, .step = 41, .item = 7},
                                          {.seed = 0x123456789abcdef0, .step = 41, .item = 2}};
    const struct us_draw *draw = tt_lend(&tt, keys, sizeof(keys));
    const struct us_posterior d = posterior_desc(20.0f, false);
    void *qd = tt_map_in(&tt, 2 * n, q), *z = tt_map_io(&tt, n, NULL);
    tt_ok(tt.t->posterior_fwd(tt.be, &d, P_ITEMS, qd, qd, draw, z, tt_f64_io(&tt, P_ITEMS, NULL)),
          "posterior_fwd");
    for (int64_t i = 0; i < n; i++) {
        int32_t px = (int32_t)(i % P_N / P_Z), c = (int32_t)(i % P_Z);
        struct us_normal4 e = us_noise_normal4(0x9abcdef0u, 0x12345678u, draw[i / P_N].item,
                                               us_noise_c1_patch(px / P_W, px % P_W),
                                               us_noise_c2(0, P_LEVEL, 0), 41, (uint32_t)c / 4);
        want[i] = sqrt(1.0 + 1e-6) * (double)e.z[c % 4];
    }
    tt_expect_near("drawn z", n, tt_get_map(&tt, z, n), want, 1e-6);
    tt_close(&tt);
}

/* ---- likelihood ---- */

#define L_ITEMS 2
#define L_H     3
#define L_W     4
#define L_PX    (L_H * L_W)

struct likelihood_loss {
    struct us_likelihood d;
    const float *target;
    double grad_weight;
};

static int64_t head_channels(const struct us_likelihood *d)
{
    return d->logvar == US_LOGVAR_NONE ? d->targets : 2 * (int64_t)d->targets;
}

/* The log-variance that pixel i, channel c of an item is judged with (spec 6). */
static double spec_logvar(const struct us_likelihood *d, const double *head, int64_t i, int32_t c)
{
    int64_t n = head_channels(d);
    double lv = 0.0, all = 0.0;
    if (d->logvar == US_LOGVAR_PIXELWISE)
        return fmax(head[i * n + d->targets + c], (double)d->lower_bound);
    for (int64_t j = 0; j < L_PX; j++) {
        lv += head[j * n + d->targets + c] / L_PX;
        for (int32_t k = 0; k < d->targets; k++)
            all += head[j * n + d->targets + k] / (L_PX * d->targets);
    }
    return fmax(d->logvar == US_LOGVAR_GLOBAL ? all : lv, (double)d->lower_bound);
}

static double spec_rec(const struct likelihood_loss *l, const double *head, int32_t item, int32_t c)
{
    const struct us_likelihood *d = &l->d;
    const double *h = head + item * L_PX * head_channels(d);
    const float *x = l->target + (int64_t)item * L_PX * d->targets;
    double sum = 0.0;
    for (int64_t i = 0; i < L_PX; i++) {
        double e = h[i * head_channels(d) + c] - (double)x[i * d->targets + c];
        if (d->mse)
            sum += e * e;
        else if (d->logvar == US_LOGVAR_NONE)
            sum += e * e / 2;
        else {
            double lv = spec_logvar(d, h, i, c);
            sum += (e * e / exp(lv) + lv + log(2 * acos(-1.0))) / 2;
        }
    }
    return sum / L_PX;
}

static double likelihood_loss(const double *head, const void *ctx)
{
    const struct likelihood_loss *l = ctx;
    double sum = 0.0, weights = 0.0;
    for (int32_t c = 0; c < l->d.targets; c++)
        weights += (double)l->d.weight[c];
    for (int32_t item = 0; item < L_ITEMS; item++)
        for (int32_t c = 0; c < l->d.targets; c++)
            sum += (double)l->d.weight[c] * spec_rec(l, head, item, c) / weights;
    return l->grad_weight * sum;
}

static void expect_rec(struct tt *tt, const struct likelihood_loss *l, const float *head,
                       const double *rec, const double *se)
{
    int64_t n = L_ITEMS * L_PX * head_channels(&l->d);
    double *wide = tt_zeros(tt, n, sizeof(double));
    struct likelihood_loss squares = *l;
    squares.d.mse = true;
    for (int64_t i = 0; i < n; i++)
        wide[i] = (double)head[i];
    for (int32_t i = 0; i < L_ITEMS * l->d.targets; i++) {
        int32_t item = i / l->d.targets, c = i % l->d.targets;
        float got[2] = {(float)rec[i], (float)se[i]};
        double want[2] = {spec_rec(l, wide, item, c), spec_rec(&squares, wide, item, c)};
        tt_expect_near("rec", 1, &got[0], &want[0], 1e-6);
        tt_expect_near("se", 1, &got[1], &want[1], 1e-6);
    }
}

static void check_likelihood(struct us_backend *be, int32_t targets, enum us_logvar logvar,
                             bool mse, float bound)
{
    struct tt tt;
    char name[64];
    (void)snprintf(name, sizeof(name), "likelihood %d targets, logvar %d%s", targets, (int)logvar,
                   mse ? ", mse" : "");
    struct likelihood_loss l = {.grad_weight = 0.25};
    l.d = (struct us_likelihood){
        .h = L_H, .w = L_W, .targets = targets, .logvar = logvar, .lower_bound = bound, .mse = mse};
    for (int32_t c = 0; c < targets; c++)
        l.d.weight[c] = 1.0f + 0.5f * (float)c;
    tt_open(&tt, be, name);
    int64_t n = L_ITEMS * L_PX * head_channels(&l.d), n_x = (int64_t)L_ITEMS * L_PX * targets;
    float *head = tt_uniform(&tt, n, -2, 2);
    l.target = tt_uniform(&tt, n_x, -2, 2);
    double *rec = tt_f64_io(&tt, (int64_t)L_ITEMS * targets, NULL);
    double *se = tt_f64_io(&tt, (int64_t)L_ITEMS * targets, NULL);
    float *dhead = tt_f32_io(&tt, n, NULL);
    tt_ok(tt.t->likelihood(be, &l.d, L_ITEMS, tt_f32_in(&tt, n, head),
                           tt_f32_in(&tt, n_x, l.target), 0.25f, rec, se, dhead),
          name);
    expect_rec(&tt, &l, head, tt_get_f64(&tt, rec, (int64_t)L_ITEMS * targets),
               tt_get_f64(&tt, se, (int64_t)L_ITEMS * targets));
    tt_expect_gradient(name, n, head, 0, n, likelihood_loss, &l, tt_get_f32(&tt, dhead, n), GRAD);
    tt_close(&tt);
}

void likelihoods_have_the_gradients_of_their_definition(void **state)
{
    struct us_backend *be = tt_backend(state);
    for (int32_t targets = 1; targets <= 3; targets++)
        for (int mse = 0; mse < 2; mse++) {
            check_likelihood(be, targets, US_LOGVAR_NONE, mse != 0, -5.0f);
            /* A bound between the pixels' log-variances; then means above it and below it. */
            check_likelihood(be, targets, US_LOGVAR_PIXELWISE, mse != 0, -0.5f);
            check_likelihood(be, targets, US_LOGVAR_CHANNELWISE, mse != 0, -5.0f);
            check_likelihood(be, targets, US_LOGVAR_CHANNELWISE, mse != 0, 1.5f);
            check_likelihood(be, targets, US_LOGVAR_GLOBAL, mse != 0, -5.0f);
            check_likelihood(be, targets, US_LOGVAR_GLOBAL, mse != 0, 1.5f);
        }
}

/* The gradient by a log-variance of one pixel whose mean is right: 1/2 where it passes. */
static float logvar_gradient(struct us_backend *be, enum us_logvar logvar, float lv, float bound)
{
    struct tt tt;
    tt_open(&tt, be, "bound");
    const float head[] = {0.5f, lv}, target = 0.5f;
    const struct us_likelihood d = {
        .h = 1, .w = 1, .targets = 1, .logvar = logvar, .lower_bound = bound, .weight = {1.0f}};
    float *dhead = tt_f32_io(&tt, 2, NULL);
    tt_ok(tt.t->likelihood(be, &d, 1, tt_f32_in(&tt, 2, head), tt_f32_in(&tt, 1, &target), 1.0f,
                           tt_f64_io(&tt, 1, NULL), tt_f64_io(&tt, 1, NULL), dhead),
          "likelihood");
    float g = tt_get_f32(&tt, dhead, 2)[1];
    tt_close(&tt);
    return g;
}

void likelihood_gradients_include_the_bound_itself(void **state)
{
    struct us_backend *be = tt_backend(state);
    static const enum us_logvar modes[] = {US_LOGVAR_PIXELWISE, US_LOGVAR_CHANNELWISE,
                                           US_LOGVAR_GLOBAL};
    for (size_t i = 0; i < US_COUNT(modes); i++) {
        assert_float_equal(logvar_gradient(be, modes[i], -5.0f, -5.0f), 0.5f, 1e-7);
        assert_float_equal(logvar_gradient(be, modes[i], -4.0f, -5.0f), 0.5f, 1e-7);
        assert_float_equal(logvar_gradient(be, modes[i], nextafterf(-5.0f, -6.0f), -5.0f), 0.0f, 0);
    }
}
