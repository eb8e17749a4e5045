/*
 * What must hold to the bit, or to numbers computed by hand: copies and layouts, dropout's masks,
 * outputs that share memory with inputs, the sum of lanes, Adamax, bf16.
 */
#include <math.h>
#include <string.h>

#include "train_test.h"

/* ---- windows ---- */

struct window_case {
    const char *name;
    int32_t rh, rw, c;
    struct us_window from, to;
};

static const struct window_case window_cases[] = {
    {"zero pad", 3, 4, 5, {3, 4, 5, 0, 0, 0}, {7, 7, 5, 0, 2, 1}},
    {"crop", 3, 2, 5, {7, 7, 5, 0, 2, 3}, {3, 2, 5, 0, 0, 0}},
    {"concatenation, second half", 4, 3, 6, {4, 3, 6, 0, 0, 0}, {4, 3, 13, 7, 0, 0}},
    {"channels of a concatenation", 4, 3, 6, {4, 3, 13, 7, 0, 0}, {4, 3, 6, 0, 0, 0}},
    {"a window to a window", 2, 5, 17, {6, 9, 33, 16, 4, 4}, {3, 5, 19, 1, 1, 0}},
    {"one pixel", 1, 1, 1, {1, 1, 1, 0, 0, 0}, {1, 1, 1, 0, 0, 0}},
};

#define W_ITEMS 2

static int64_t window_count(const struct us_window *w)
{
    return (int64_t)W_ITEMS * w->h * w->w * w->c_total;
}

static int64_t window_at(const struct us_window *w, int64_t item, int64_t y, int64_t x, int64_t ch)
{
    return ((item * w->h + w->y0 + y) * w->w + w->x0 + x) * w->c_total + w->c_offset + ch;
}

static void check_window(struct us_backend *be, const struct window_case *w, bool add)
{
    struct tt tt;
    tt_open(&tt, be, w->name);
    int64_t n_src = window_count(&w->from), n_dst = window_count(&w->to);
    const float *src = tt_uniform(&tt, n_src, -1, 1);
    float *want = tt_uniform(&tt, n_dst, -1, 1);
    void *dst = tt_map_io(&tt, n_dst, want);
    tt_ok(tt.t->window(be, US_F32, W_ITEMS, w->rh, w->rw, w->c, tt_map_in(&tt, n_src, src),
                       &w->from, dst, &w->to, add),
          w->name);
    int64_t n = (int64_t)W_ITEMS * w->rh * w->rw * w->c;
    for (int64_t i = 0; i < n; i++) {
        int64_t ch = i % w->c, x = i / w->c % w->rw, y = i / w->c / w->rw % w->rh;
        int64_t item = i / w->c / w->rw / w->rh;
        float *to = &want[window_at(&w->to, item, y, x, ch)];
        float v = src[window_at(&w->from, item, y, x, ch)];
        *to = add ? *to + v : v;
    }
    assert_memory_equal(tt_get_map(&tt, dst, n_dst), want, (size_t)n_dst * sizeof(*want));
    tt_close(&tt);
}

void windows_pad_crop_and_concatenate(void **state)
{
    for (size_t i = 0; i < US_COUNT(window_cases); i++) {
        check_window(tt_backend(state), &window_cases[i], false);
        check_window(tt_backend(state), &window_cases[i], true);
    }
}

void the_prior_changes_layout_and_its_gradient_back(void **state)
{
    enum { PX = 15, C = 6, N = PX * C };
    struct tt tt;
    const struct us_ew e = {US_F32, PX, C};
    tt_open(&tt, tt_backend(state), "prior");
    const float *prior = tt_uniform(&tt, N, -1, 1), *dp = tt_uniform(&tt, N, -1, 1);
    const float *begun = tt_uniform(&tt, N, -1, 1);
    void *p = tt_map_io(&tt, N, NULL);
    float *dprior = tt_f32_io(&tt, N, begun);
    tt_ok(tt.t->prior_load(tt.be, &e, 1, tt_f32_in(&tt, N, prior), p), "prior_load");
    tt_ok(tt.t->prior_grad(tt.be, &e, 1, tt_map_in(&tt, N, dp), dprior), "prior_grad");
    const float *pv = tt_get_map(&tt, p, N), *gv = tt_get_f32(&tt, dprior, N);
    for (int i = 0; i < PX; i++)
        for (int c = 0; c < C; c++) {
            assert_true(pv[i * C + c] == prior[c * PX + i]);
            assert_true(gv[c * PX + i] == begun[c * PX + i] + dp[i * C + c]);
        }
    tt_close(&tt);
}

/* ---- dropout ---- */

#define D_PX 3
#define D_C  4003

/* The factors of one item's channels, [D_C]; freed with tt. All pixels of a channel agree. */
static const float *factors(struct tt *tt, float p, const struct us_draw *draw, uint32_t node)
{
    const struct us_ew e = {US_F32, D_PX, D_C};
    float *x = tt_zeros(tt, D_PX * D_C, sizeof(*x));
    for (int64_t i = 0; i < D_PX * D_C; i++)
        x[i] = 1.0f;
    void *map = tt_map_io(tt, D_PX * D_C, x);
    tt_ok(tt->t->dropout2d(tt->be, &e, map, p, tt_lend(tt, draw, sizeof(*draw)), 1, node),
          "dropout2d");
    const float *f = tt_get_map(tt, map, D_PX * D_C);
    for (int64_t i = D_C; i < D_PX * D_C; i++)
        assert_true(f[i] == f[i % D_C]);
    return f;
}

static void check_rate(struct us_backend *be, float p)
{
    struct tt tt;
    const struct us_draw draw = {.seed = 99, .step = 12, .item = 3};
    int zeros = 0, pairs = 0;
    tt_open(&tt, be, "dropout");
    const float *f = factors(&tt, p, &draw, 5);
    for (int i = 0; i < D_C; i++) {
        assert_true(f[i] == 0.0f || f[i] == 1.0f / (1.0f - p));
        zeros += f[i] == 0.0f;
        pairs += i > 0 && f[i] == 0.0f && f[i - 1] == 0.0f;
    }
    /* Five standard deviations of a binomial; neighbours are dropped independently. */
    double q = (double)p, sd = sqrt(q * (1 - q) * D_C), sd2 = sqrt(2 * q * q * D_C);
    assert_true(fabs(zeros - q * D_C) <= 5 * sd);
    assert_true(fabs(pairs - q * q * D_C) <= 5 * sd2);
    tt_close(&tt);
}

void dropout_zeroes_channels_at_its_rate(void **state)
{
    static const float rates[] = {0.0f, 0.1f, 0.25f, 0.5f, 0.9f};
    for (size_t i = 0; i < US_COUNT(rates); i++)
        check_rate(tt_backend(state), rates[i]);
}

void dropout_depends_on_its_key_only(void **state)
{
    enum { ITEMS = 3, PX = 7, C = 37, N = PX * C };
    struct tt tt;
    const size_t bytes = D_C * sizeof(float);
    const struct us_draw d = {.seed = 1, .step = 2, .item = 3};
    const struct us_draw seed = {.seed = 1 + (1ull << 32), .step = 2, .item = 3};
    const struct us_draw step = {.seed = 1, .step = 3, .item = 3};
    const struct us_draw item = {.seed = 1, .step = 2, .item = 2};
    tt_open(&tt, tt_backend(state), "dropout key");
    const float *f = factors(&tt, 0.5f, &d, 4);
    assert_memory_equal(f, factors(&tt, 0.5f, &d, 4), bytes); /* as the backward pass relies on */
    assert_memory_not_equal(f, factors(&tt, 0.5f, &seed, 4), bytes);
    assert_memory_not_equal(f, factors(&tt, 0.5f, &step, 4), bytes);
    assert_memory_not_equal(f, factors(&tt, 0.5f, &item, 4), bytes);
    assert_memory_not_equal(f, factors(&tt, 0.5f, &d, 5), bytes);
    tt_close(&tt);

    /* An item of a batch is dropped as it is alone. */
    tt_open(&tt, tt_backend(state), "dropout batch");
    const struct us_draw keys[ITEMS] = {d, step, item};
    const struct us_draw *draw = tt_lend(&tt, keys, sizeof(keys));
    const struct us_ew all = {US_F32, ITEMS * PX, C}, one = {US_F32, PX, C};
    const float *x = tt_uniform(&tt, ITEMS * N, 1, 2);
    void *map = tt_map_io(&tt, ITEMS * N, x);
    tt_ok(tt.t->dropout2d(tt.be, &all, map, 0.5f, draw, ITEMS, 4), "dropout2d");
    const float *v = tt_get_map(&tt, map, ITEMS * N);
    for (int i = 0; i < ITEMS; i++) {
        void *alone = tt_map_io(&tt, N, x + i * N);
        tt_ok(tt.t->dropout2d(tt.be, &one, alone, 0.5f, &draw[i], 1, 4), "dropout2d");
        assert_memory_equal(tt_get_map(&tt, alone, N), v + i * N, N * sizeof(*v));
    }
    tt_close(&tt);
}

/* ---- aliases ---- */

#define A_PX 11
#define A_C  19
#define A_N  (A_PX * A_C)

static void expect_same(struct tt *tt, const char *what, const void *apart, const void *together,
                        int64_t n)
{
    const float *a = tt_get_map(tt, apart, n), *b = tt_get_map(tt, together, n);
    if (memcmp(a, b, (size_t)n * sizeof(*a)) != 0)
        fail_msg("%s: other bits where the output is an input", what);
}

void outputs_may_be_the_documented_inputs(void **state)
{
    struct tt tt;
    const struct us_ew e = {US_F32, A_PX, A_C};
    tt_open(&tt, tt_backend(state), "alias");
    const float *xv = tt_uniform(&tt, 2 * A_N, -3, 3), *gv = tt_uniform(&tt, A_N, -1, 1);
    const float *row = tt_uniform(&tt, 7 * A_C, 0.5, 1);
    const void *x = tt_map_in(&tt, 2 * A_N, xv), *g = tt_map_in(&tt, A_N, gv);
    void *apart = tt_map_io(&tt, 2 * A_N, NULL);

    void *mine = tt_map_io(&tt, A_N, xv);
    tt_ok(tt.t->elu_fwd(tt.be, &e, x, apart), "elu_fwd");
    tt_ok(tt.t->elu_fwd(tt.be, &e, mine, mine), "elu_fwd");
    expect_same(&tt, "elu_fwd", apart, mine, A_N);

    mine = tt_map_io(&tt, A_N, gv);
    tt_ok(tt.t->elu_bwd(tt.be, &e, x, g, apart), "elu_bwd");
    tt_ok(tt.t->elu_bwd(tt.be, &e, x, mine, mine), "elu_bwd");
    expect_same(&tt, "elu_bwd", apart, mine, A_N);

    mine = tt_map_io(&tt, A_N, gv);
    tt_ok(tt.t->glu_fwd(tt.be, &e, x, g, apart), "glu_fwd");
    tt_ok(tt.t->glu_fwd(tt.be, &e, x, mine, mine), "glu_fwd");
    expect_same(&tt, "glu_fwd", apart, mine, A_N);

    mine = tt_map_io(&tt, 2 * A_N, xv);
    tt_ok(tt.t->glu_bwd(tt.be, &e, x, g, apart), "glu_bwd");
    tt_ok(tt.t->glu_bwd(tt.be, &e, mine, g, mine), "glu_bwd");
    expect_same(&tt, "glu_bwd", apart, mine, 2 * A_N);

    mine = tt_map_io(&tt, A_N, gv);
    float *r = tt_f32_in(&tt, 7 * A_C, row);
    const struct us_bn_affine aff = {r, r + A_C, r + 2 * A_C, r + 3 * A_C};
    const struct us_bn_grad bg = {r + 4 * A_C, r + 5 * A_C, r + 6 * A_C};
    tt_ok(tt.t->bn_elu_bwd(tt.be, &e, x, g, &aff, &bg, apart, false), "bn_elu_bwd");
    tt_ok(tt.t->bn_elu_bwd(tt.be, &e, x, mine, &aff, &bg, mine, false), "bn_elu_bwd");
    expect_same(&tt, "bn_elu_bwd", apart, mine, A_N);
    tt_close(&tt);
}

/* ---- the end of a step ---- */

void lanes_are_summed_in_order(void **state)
{
    enum { LANES = 3, STRIDE = 9000, N = 8999 }; /* more than one block of squares */
    struct tt tt;
    double sq = 0.0, want_sq = 0.0;
    tt_open(&tt, tt_backend(state), "lanes");
    float *lanes = tt_uniform(&tt, LANES * STRIDE, -1, 1);
    double *want = tt_zeros(&tt, N, sizeof(double));
    for (int l = 0; l < LANES; l++)
        lanes[l * STRIDE + N] = NAN; /* the gap between lanes is not read */
    float *dst = tt_f32_io(&tt, N, NULL);
    double *sq_at = tt_f64_io(&tt, 1, NULL);
    tt_ok(tt.t->reduce_lanes(tt.be, tt_f32_in(&tt, LANES * STRIDE, lanes), STRIDE, LANES, N, dst,
                             sq_at),
          "reduce_lanes");
    sq = tt_get_f64(&tt, sq_at, 1)[0];
    const float *got = tt_get_f32(&tt, dst, N);
    for (int i = 0; i < N; i++) {
        want[i] = (double)lanes[i] + (double)lanes[STRIDE + i] + (double)lanes[2 * STRIDE + i];
        want_sq += (double)got[i] * (double)got[i];
    }
    tt_expect_near("sum", N, got, want, 2e-7);
    assert_float_equal(sq, want_sq, 1e-9 * want_sq);
    tt_close(&tt);
}

void adamax_takes_the_steps_computed_by_hand(void **state)
{
    /* Gradients 0.5, -1 and 0.02, halved by the clip: 0.25, -0.5, 0.01.
     *   m  0.025, -0.0275, -0.02375     u  0.25, 0.5, 0.4995     1 - 0.9^t  0.1, 0.19, 0.271
     *   p  1 - 0.001, + 0.001 * 0.0275 / 0.5 / 0.19, + 0.001 * 0.02375 / 0.4995 / 0.271 */
    static const float g[3] = {0.5f, -1.0f, 0.02f};
    static const double bias[3] = {0.1, 0.19, 0.271};
    static const double m[3] = {0.025, -0.0275, -0.02375}, u[3] = {0.25, 0.5, 0.4995};
    static const double p[3] = {0.999, 0.999289473684, 0.999464926841};
    enum { N = 37 }; /* every element takes the same steps */
    struct tt tt;
    float init[N], grad[N];
    tt_open(&tt, tt_backend(state), "adamax");
    const float *zero = tt_zeros(&tt, N, sizeof(float));
    for (int i = 0; i < N; i++)
        init[i] = 1.0f;
    float *md = tt_f32_io(&tt, N, zero), *ud = tt_f32_io(&tt, N, zero);
    float *pd = tt_f32_io(&tt, N, init);
    for (int t = 0; t < 3; t++) {
        const struct us_adamax a = {1e-3f, 0.9f, 0.999f, 1e-8f, bias[t], 0.5f};
        for (int i = 0; i < N; i++)
            grad[i] = g[t];
        tt_ok(tt.t->adamax(tt.be, &a, N, tt_f32_in(&tt, N, grad), md, ud, pd), "adamax");
        const float *mv = tt_get_f32(&tt, md, N), *uv = tt_get_f32(&tt, ud, N);
        const float *pv = tt_get_f32(&tt, pd, N);
        for (int i = 0; i < N; i++) {
            tt_expect_near("m", 1, &mv[i], &m[t], 5e-7);
            tt_expect_near("u", 1, &uv[i], &u[t], 5e-7);
            tt_expect_near("p", 1, &pv[i], &p[t], 1.2e-7);
        }
    }
    tt_close(&tt);
}

void conversion_rounds_as_bf16_does(void **state)
{
    /* Ties go to the even neighbour; the last one carries into the exponent. */
    static const float v[] = {1.0f, 1.00390625f, 1.01171875f, -1.00390649f, 0.0f, 1.99999f};
    static const uint16_t want[] = {0x3f80, 0x3f80, 0x3f82, 0xbf81, 0x0000, 0x4000};
    enum { N = US_COUNT(v) };
    struct tt tt;
    const struct us_ew e = {US_BF16, N, 1}, wide = {US_F32, N, 1};
    uint16_t half[N];
    tt_open(&tt, tt_backend(state), "convert");
    void *h = tt_raw(&tt, sizeof(half));
    float *back = tt_f32_io(&tt, N, NULL);
    tt_ok(tt.t->convert(tt.be, &e, tt_f32_in(&tt, N, v), US_F32, h), "to bf16");
    tt_ok(tt.t->convert(tt.be, &wide, h, US_BF16, back), "from bf16");
    tt_ok(tt.ops->sync(tt.be), "sync");
    tt_ok(tt.ops->copy_out(tt.be, half, h, sizeof(half)), "copy_out");
    assert_memory_equal(half, want, sizeof(want));
    const float *f = tt_get_f32(&tt, back, N);
    for (int i = 0; i < N; i++) {
        uint32_t bits;
        memcpy(&bits, &f[i], sizeof(bits));
        assert_int_equal(bits, (uint32_t)want[i] << 16);
    }
    tt_close(&tt);
}
