/*
 * The scalar formulas of core/math against libm in double over grids, Philox against its published
 * answers, and the normals' distribution. An ulp is the spacing of f32 at the expected value.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "math/us_bf16_math.h"
#include "math/us_elu_math.h"
#include "math/us_gauss_math.h"
#include "math/us_philox_math.h"
#include "us_limits.h"
#include "us_status.h"

static double ulps(float got, double want)
{
    int e;
    (void)frexp(want, &e);
    e = e < -125 ? -125 : e;
    return fabs((double)got - want) / ldexp(1, e - 24);
}

struct sweep {
    const char *name;
    float (*f)(float x);
    double (*want)(double x);
    double lo, hi, bound;
};

/* The largest error over a grid of two million points, in ulps. */
static double worst(const struct sweep *s)
{
    enum { POINTS = 2000003 };
    double w = 0;
    for (int i = 0; i < POINTS; i++) {
        float x = (float)(s->lo + (s->hi - s->lo) * i / POINTS);
        double u = ulps(s->f(x), s->want((double)x));
        if (!(u <= w))
            w = u;
    }
    return w;
}

static void check_sweeps(const struct sweep *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double w = worst(&s[i]);
        if (!(w <= s[i].bound))
            fail_msg("%s on %g .. %g is off by %.3f ulp, allowed %.2f", s[i].name, s[i].lo, s[i].hi,
                     w, s[i].bound);
    }
}

static float exp_f(float x)
{
    return us_expf(x);
}

static float exp_inner_f(float x)
{
    return us_exp_inner(x);
}

static float log_f(float x)
{
    return us_logf(x);
}

static float elu_f(float x)
{
    return us_elu(x);
}

static float elu_d_f(float x)
{
    return us_elu_d(x);
}

static float sigmoid_f(float x)
{
    return us_sigmoid(x);
}

static double elu_want(double x)
{
    return x > 0 ? x : expm1(x);
}

static double elu_d_want(double x)
{
    return x > 0 ? 1 : exp(x);
}

static double sigmoid_want(double x)
{
    return 1 / (1 + exp(-x));
}

static void exponential_is_within_two_ulp(void **state)
{
    (void)state;
    static const struct sweep s[] = {
        {"exp", exp_f, exp, -87.33, 88.72, 1.1},
        {"exp", exp_f, exp, -1, 1, 1.1},
        {"exp", exp_f, exp, -1e-4, 1e-4, 1.0},
        {"exp inside", exp_inner_f, exp, -87.33, 88, 1.1},
    };
    check_sweeps(s, US_COUNT(s));
}

static void logarithm_is_within_one_ulp(void **state)
{
    (void)state;
    static const struct sweep s[] = {
        {"log", log_f, log, 1e-9, 1, 1.0},      {"log", log_f, log, 0.999, 1.001, 1.0},
        {"log", log_f, log, 1, 1e6, 1.0},       {"log", log_f, log, 1.2e-38, 1e-36, 1.0},
        {"log", log_f, log, 1e30, 3.4e38, 1.0},
    };
    check_sweeps(s, US_COUNT(s));
}

static void activations_are_within_stated_ulps(void **state)
{
    (void)state;
    static const struct sweep s[] = {
        {"ELU", elu_f, elu_want, -40, 0, 1.2},
        {"ELU", elu_f, elu_want, -1, 1, 1.2},
        {"ELU", elu_f, elu_want, -1e-3, 0, 0.6},
        {"ELU", elu_f, elu_want, -1e-30, 0, 0.6},
        {"ELU'", elu_d_f, elu_d_want, -87, 2, 1.1},
        {"sigmoid", sigmoid_f, sigmoid_want, -86, 87, 2.6},
    };
    check_sweeps(s, US_COUNT(s));
}

static void elu_derivative_is_the_slope_of_elu(void **state)
{
    (void)state;
    for (double x = -6; x < 2; x += 0.0371) {
        double h = 0x1p-7;
        double slope = ((double)us_elu((float)(x + h)) - (double)us_elu((float)(x - h))) / (2 * h);
        if (fabs(x) > h)
            assert_true(fabs(slope - (double)us_elu_d((float)x)) < 4e-5);
    }
}

static void exponential_saturates_and_keeps_nan(void **state)
{
    (void)state;
    assert_true(us_expf(-INFINITY) == 0 && us_expf(-1e30f) == 0 && us_expf(-87.34f) == 0);
    assert_true(us_expf(INFINITY) == INFINITY && us_expf(88.73f) == INFINITY);
    assert_true(us_expf(US_EXP_MAX) < INFINITY && us_expf(US_EXP_MIN) >= FLT_MIN);
    assert_true(us_expf(0) == 1 && us_expf(-0.0f) == 1);
    assert_true(isnan(us_expf(NAN)) && isnan(us_exp_inner(NAN)) && isnan(us_expm1_inner(NAN)));
}

static void logarithm_keeps_the_edges_of_its_domain(void **state)
{
    (void)state;
    assert_true(us_logf(1) == 0);
    assert_true(us_logf(0) == -INFINITY && us_logf(1e-40f) == -INFINITY);
    assert_true(us_logf(INFINITY) == INFINITY);
    assert_true(isnan(us_logf(-1)) && isnan(us_logf(-INFINITY)) && isnan(us_logf(NAN)));
    /* Box-Muller takes the root of -2 ln u. */
    for (uint32_t u = 0x3f000000; u <= 0x3f800000; u += 13)
        assert_true(us_logf(us_float_of_bits(u)) <= 0);
}

static void activations_saturate_and_keep_nan(void **state)
{
    (void)state;
    assert_true(us_elu(-INFINITY) == -1 && us_elu(-1e30f) == -1 && us_elu(INFINITY) == INFINITY);
    assert_true(us_elu(0) == 0 && us_elu(1e30f) == 1e30f && isnan(us_elu(NAN)));
    assert_true(us_elu_d(-INFINITY) < 2e-38f && us_elu_d(INFINITY) == 1 && us_elu_d(0) == 1);
    assert_true(isnan(us_elu_d(NAN)));
    assert_true(us_sigmoid(INFINITY) == 1 && us_sigmoid(-INFINITY) < 2e-38f);
    assert_true(us_sigmoid(0) == 0.5f && isnan(us_sigmoid(NAN)));
    assert_true(isnan(us_glu(NAN, 0)) && isnan(us_glu(0, NAN)));
    assert_true(us_glu(2, 0) == 1 && us_glu(-INFINITY, INFINITY) == -1);
}

static void variance_is_that_of_the_spec(void **state)
{
    (void)state;
    static const float clips[] = {20, 1.5f, 0, -2, INFINITY};
    for (size_t i = 0; i < US_COUNT(clips); i++)
        for (double lv = -60; lv < 60; lv += 0.0123) {
            double c = fmin((double)(float)lv, (double)clips[i]);
            double want = (c <= 0 ? exp(c) : 1 + c) + 1e-6;
            assert_true(ulps(us_gauss_var((float)lv, clips[i]), want) <= 2);
        }
    assert_true(us_gauss_var(INFINITY, 20) == 21.000001f);
    assert_true(us_gauss_var(-INFINITY, 20) == 1e-6f);
    assert_true(isnan(us_gauss_var(NAN, 20)));
    assert_true(ulps(us_gauss_sample(0.5f, 3, 20, 2), 0.5 + 2 * sqrt(4 + 1e-6)) <= 1);
    assert_true(us_gauss_sample(0.5f, -3, 20, 0) == 0.5f);
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t in;
        uint16_t out;
        const char *why;
    } rows[] = {
        {0x3f800000, 0x3f80, "exact"},
        {0x3f807fff, 0x3f80, "just under half"},
        {0x3f808000, 0x3f80, "half, to even below"},
        {0x3f808001, 0x3f81, "just over half"},
        {0x3f818000, 0x3f82, "half, to even above"},
        {0x3fffffff, 0x4000, "carries into the exponent"},
        {0xbf808001, 0xbf81, "negative"},
        {0x7f7fffff, 0x7f80, "largest float overflows to infinity"},
        {0xff800000, 0xff80, "infinity"},
        {0x00000001, 0x0000, "smallest subnormal"},
        {0x00018000, 0x0002, "subnormal, half to even"},
        {0x80000000, 0x8000, "minus zero"},
        {0x7f800001, 0x7fc0, "NaN whose mantissa is all in the dropped bits"},
        {0xffffffff, 0xffff, "NaN that a carry would turn into minus zero"},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++)
        if (us_bf16_of_f32(us_float_of_bits(rows[i].in)) != rows[i].out)
            fail_msg("%s: %08x becomes %04x", rows[i].why, rows[i].in,
                     us_bf16_of_f32(us_float_of_bits(rows[i].in)));
}

static void every_bf16_survives_the_way_through_f32(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = us_f32_of_bf16((uint16_t)h);
        uint16_t want = (uint16_t)(isnan(x) ? h | 0x40 : h);
        assert_int_equal(us_bf16_of_f32(x), want);
    }
}

static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct {
        struct us_philox counter;
        uint32_t key[2];
        uint32_t want[4];
    } rows[] = {
        {{{0, 0, 0, 0}}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t r = 0; r < US_COUNT(rows); r++) {
        struct us_philox p = us_philox4x32(rows[r].counter, rows[r].key[0], rows[r].key[1]);
        for (int i = 0; i < 4; i++)
            assert_int_equal(p.w[i], rows[r].want[i]);
    }
}

static void unit_numbers_lie_above_zero_and_up_to_one(void **state)
{
    (void)state;
    assert_true(us_unit_of_word(0) == 0x1p-32f);
    assert_true(us_unit_of_word(UINT32_MAX) == 1);
    for (uint64_t w = 0; w <= UINT32_MAX; w += 65537) {
        double u = (double)us_unit_of_word((uint32_t)w);
        assert_true(u > 0 && u <= 1 && fabs(u - (double)w * 0x1p-32) < 1e-7);
    }
}

static void sine_and_cosine_of_a_turn_are_accurate_in_every_quadrant(void **state)
{
    (void)state;
    static const uint32_t exact[4] = {0, 0x40000000, 0x80000000, 0xc0000000};
    static const float want[4][2] = {{0, 1}, {1, 0}, {0, -1}, {-1, 0}};
    float s, c;
    for (int i = 0; i < 4; i++) {
        us_sincos_turn(exact[i], &s, &c);
        assert_true(s == want[i][0] && c == want[i][1]);
    }
    for (uint64_t w = 0; w <= UINT32_MAX; w += 4099) {
        us_sincos_turn((uint32_t)w, &s, &c);
        double angle = (double)w * (2 * M_PI / 4294967296.0);
        assert_true(fabs((double)s - sin(angle)) < 1.5e-7);
        assert_true(fabs((double)c - cos(angle)) < 1.5e-7);
    }
}

static void counter_fields_do_not_overlap(void **state)
{
    (void)state;
    assert_int_equal(us_noise_c1_patch(3, 7), 0x00030007);
    assert_int_equal(us_noise_c1_patch(65535, 65535), 0xffffffff);
    assert_int_equal(us_noise_c2(0, 0, 65535), 0x0000ffff);
    assert_int_equal(us_noise_c2(0, 31, 0), 0x7c000000);
    assert_int_equal(us_noise_c2(1, 0, 0), 0x80000000);
    assert_int_equal(us_noise_c2(1, 31, 65535) | 1023u << 16, 0xffffffff);
    /* No latent has level 31, so its whole channel and sample fields are dropout's. */
    assert_true(US_MAX_LEVELS <= 31);
    assert_int_equal(us_noise_c2(0, 31, 0), US_DROPOUT_TAG);
}

static void absolute_positions_floor_towards_minus_infinity(void **state)
{
    (void)state;
    static const struct {
        int64_t centre;
        int32_t level, size, j, want;
    } rows[] = {
        {0, 0, 64, 0, -32},    {0, 0, 64, 32, 0},   {1, 0, 64, 32, 0},   {2, 0, 64, 32, 1},
        {-1, 0, 64, 32, -1},   {-2, 0, 64, 32, -1}, {-3, 0, 64, 32, -2}, {1000, 3, 8, 0, 58},
        {-1000, 3, 8, 7, -60}, {1000, 3, 7, 0, 59}, {15, 3, 2, 1, 0},    {-16, 3, 2, 1, -1},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        uint32_t got = us_noise_position(rows[i].centre, rows[i].level, rows[i].size, rows[i].j);
        assert_int_equal(us_int_of_bits(got), rows[i].want);
    }
    /* 2^40 / 2 = 2^39: only the low 32 bits stay, here 0. */
    assert_int_equal(us_noise_position((int64_t)1 << 40, 0, 2, 1), 0);
}

/* n normals of consecutive x, channel groups and rows, as one network draws them. */
static float *draw(int64_t n)
{
    float *z = malloc((size_t)n * sizeof(*z));
    assert_non_null(z);
    for (int64_t i = 0; i < n / 4; i++) {
        uint32_t group = (uint32_t)(i % 32), x = (uint32_t)(i / 32 % 64), y = (uint32_t)(i / 2048);
        struct us_normal4 r =
            us_noise_normal4(12345, 0, 17, us_noise_c1_patch((int32_t)y, (int32_t)x),
                             us_noise_c2(0, 1, 0), 0, group);
        for (int k = 0; k < 4; k++)
            z[4 * i + k] = r.z[k];
    }
    return z;
}

#define N_NORMALS 1000000

static void a_million_normals_have_the_moments_of_the_normal_distribution(void **state)
{
    (void)state;
    float *z = draw(N_NORMALS);
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0;
    for (int64_t i = 0; i < N_NORMALS; i++) {
        double v = (double)z[i];
        m1 += v;
        m2 += v * v;
        m3 += v * v * v;
        m4 += v * v * v * v;
    }
    /* Five standard errors: of the k-th moment sqrt(var(z^k) / n), var = 1, 2, 15, 96. */
    double se = 5 / sqrt(N_NORMALS);
    assert_true(fabs(m1 / N_NORMALS) < se);
    assert_true(fabs(m2 / N_NORMALS - 1) < se * sqrt(2));
    assert_true(fabs(m3 / N_NORMALS) < se * sqrt(15));
    assert_true(fabs(m4 / N_NORMALS - 3) < se * sqrt(96));
    free(z);
}

static void tails_of_a_million_normals_hold_as_many_as_they_should(void **state)
{
    (void)state;
    float *z = draw(N_NORMALS);
    for (double edge = -4; edge <= 4; edge += 0.5) {
        double p = 0.5 * erfc(edge / sqrt(2)); /* P(z > edge) */
        double n = 0;
        for (int64_t i = 0; i < N_NORMALS; i++)
            n += (double)z[i] > edge;
        assert_true(fabs(n - p * N_NORMALS) < 5 * sqrt(p * (1 - p) * N_NORMALS) + 1);
    }
    free(z);
}

/* What one bit of difference is put into. */
enum field { F_KEY0, F_KEY1, F_C0, F_C1, F_SAMPLE, F_LEVEL, F_IMAGE, F_FRAME, F_GROUP, F_COUNT };

static void block(enum field f, uint32_t i, uint32_t add, float z[4])
{
    uint32_t v[F_COUNT] = {[F_KEY0] = 99, [F_KEY1] = 7, [F_C0] = i, [F_C1] = 3};
    v[f] += add;
    struct us_normal4 r = us_noise_normal4(
        v[F_KEY0], v[F_KEY1], v[F_C0], v[F_C1],
        us_noise_c2(v[F_IMAGE] != 0, (int32_t)v[F_LEVEL], v[F_SAMPLE]), v[F_FRAME], v[F_GROUP]);
    for (int k = 0; k < 4; k++)
        z[k] = r.z[k];
}

static void neighbouring_keys_and_counters_draw_uncorrelated_normals(void **state)
{
    (void)state;
    enum { BLOCKS = 20000 };
    for (int f = 0; f < F_COUNT; f++) {
        double sum[4][4] = {{0}};
        for (uint32_t i = 0; i < BLOCKS; i++) {
            float a[4], b[4];
            block((enum field)f, 2 * i, 0, a);
            block((enum field)f, 2 * i, 1, b);
            for (int k = 0; k < 4; k++)
                for (int m = 0; m < 4; m++)
                    sum[k][m] += (double)a[k] * (double)b[m];
        }
        /* Products of independent normals have variance 1: five standard errors. */
        for (int k = 0; k < 16; k++)
            assert_true(fabs(sum[k / 4][k % 4]) < 5 * sqrt(BLOCKS));
    }
}

static void the_four_normals_of_a_block_are_uncorrelated(void **state)
{
    (void)state;
    enum { BLOCKS = 50000 };
    double sum[4][4] = {{0}}, squares[4][4] = {{0}};
    for (uint32_t i = 0; i < BLOCKS; i++) {
        float z[4];
        block(F_C0, i, 0, z);
        for (int k = 0; k < 4; k++)
            for (int m = 0; m < k; m++) {
                double a = (double)z[k], b = (double)z[m];
                sum[k][m] += a * b;
                squares[k][m] += (a * a - 1) * (b * b - 1);
            }
    }
    for (int k = 0; k < 4; k++)
        for (int m = 0; m < k; m++) {
            assert_true(fabs(sum[k][m]) < 5 * sqrt(BLOCKS));
            assert_true(fabs(squares[k][m]) < 5 * 2 * sqrt(BLOCKS));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exponential_is_within_two_ulp),
        cmocka_unit_test(logarithm_is_within_one_ulp),
        cmocka_unit_test(activations_are_within_stated_ulps),
        cmocka_unit_test(elu_derivative_is_the_slope_of_elu),
        cmocka_unit_test(exponential_saturates_and_keeps_nan),
        cmocka_unit_test(logarithm_keeps_the_edges_of_its_domain),
        cmocka_unit_test(activations_saturate_and_keep_nan),
        cmocka_unit_test(variance_is_that_of_the_spec),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(every_bf16_survives_the_way_through_f32),
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(unit_numbers_lie_above_zero_and_up_to_one),
        cmocka_unit_test(sine_and_cosine_of_a_turn_are_accurate_in_every_quadrant),
        cmocka_unit_test(counter_fields_do_not_overlap),
        cmocka_unit_test(absolute_positions_floor_towards_minus_infinity),
        cmocka_unit_test(a_million_normals_have_the_moments_of_the_normal_distribution),
        cmocka_unit_test(tails_of_a_million_normals_hold_as_many_as_they_should),
        cmocka_unit_test(neighbouring_keys_and_counters_draw_uncorrelated_normals),
        cmocka_unit_test(the_four_normals_of_a_block_are_uncorrelated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
