/* us_stats: exact quantile, clip and moments (model-spec 13.3). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_stats.h"

/* A data set in memory: [n_frames][n_channels][n] values. */
struct data {
    const float *v;
    int32_t n_channels;
    int64_t n;
};

static enum us_status read_data(void *arg, int64_t frame, int32_t channel, float *out,
                                int64_t *ret_n, struct us_err *err)
{
    const struct data *d = arg;
    memcpy(out, d->v + (frame * d->n_channels + channel) * d->n, (size_t)d->n * sizeof(float));
    *ret_n = d->n;
    return US_OK;
}

static struct us_stats_source source(struct data *d, int64_t n_frames)
{
    return (struct us_stats_source){.n_frames = n_frames,
                                    .n_channels = d->n_channels,
                                    .plane_pixels = d->n,
                                    .read = read_data,
                                    .arg = d};
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The definition: sort everything, interpolate at q (n - 1). */
static double sorted_quantile(const float *v, int64_t n, double q)
{
    float *s = malloc((size_t)n * sizeof(float));
    assert_non_null(s);
    memcpy(s, v, (size_t)n * sizeof(float));
    qsort(s, (size_t)n, sizeof(float), compare);
    double at = q * (double)(n - 1);
    int64_t k = (int64_t)floor(at);
    double lo = (double)s[k], hi = (double)s[k + 1 < n ? k + 1 : k];
    free(s);
    return lo + (hi - lo) * (at - floor(at));
}

static float pseudo(uint32_t *state)
{
    *state = *state * 1664525U + 1013904223U;
    return (float)(*state >> 8) / 16777216.0F;
}

static void quantile_of_integers_equals_sorting(void **unused)
{
    enum { N = 2 * 2 * 1000 };
    float v[N];
    uint32_t r = 1;
    for (int i = 0; i < N; i++)
        v[i] = floorf(pseudo(&r) * 65536.0F);
    struct data d = {v, 2, 1000};
    struct us_stats_source src = source(&d, 2);
    const double q[] = {0.1, 0.5, 0.995, 0.99999, 1};
    for (size_t i = 0; i < US_COUNT(q); i++) {
        struct us_stats_config cfg = {.clip_quantile = q[i]};
        struct us_stats st;
        assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_OK);
        double want = sorted_quantile(v, N, q[i]);
        assert_true(st.clip[0] == want);
        assert_true(st.clip[1] == want);
    }
}

static void quantile_of_floats_of_both_signs_equals_sorting(void **unused)
{
    enum { N = 3 * 777 };
    float v[N];
    uint32_t r = 7;
    for (int i = 0; i < N; i++)
        v[i] = (pseudo(&r) - 0.5F) * expf(20 * pseudo(&r) - 10);
    v[5] = -0.0F;
    v[6] = 0.0F;
    struct data d = {v, 1, 777};
    struct us_stats_source src = source(&d, 3);
    for (double q = 0.05; q <= 1; q += 0.05) {
        struct us_stats_config cfg = {.clip_quantile = q};
        struct us_stats st;
        assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_OK);
        assert_true(st.clip[0] == sorted_quantile(v, N, q));
    }
}

/* Channel 0: 0 1 2 3, channel 1: 10 20 30 1000; the quantile 6/7 of all eight is exactly 30. */
static void statistics_are_of_clipped_data_pooled_and_per_channel(void **unused)
{
    const float v[] = {0, 1, 2, 3, 10, 20, 30, 1000};
    struct data d = {v, 2, 4};
    struct us_stats_source src = source(&d, 1);
    struct us_stats_config cfg = {.clip_quantile = 6.0 / 7.0};
    struct us_stats st;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_OK);
    assert_true(fabs(st.clip[0] - 30) < 1e-12);
    assert_true(fabs(st.target_mean[0] - 1.5) < 1e-12);
    assert_true(fabs(st.target_std[0] - sqrt(1.25)) < 1e-12);
    assert_true(fabs(st.target_mean[1] - 22.5) < 1e-12);
    assert_true(fabs(st.target_std[1] - sqrt(68.75)) < 1e-12);
    assert_true(fabs(st.input_mean - 12) < 1e-12);
    /* Pooled: mean of the variances plus the variance of the means. */
    assert_true(fabs(st.input_std - sqrt((1.25 + 68.75) / 2 + 10.5 * 10.5)) < 1e-12);
}

static void channelwise_quantile_clips_each_channel_by_itself(void **unused)
{
    const float v[] = {0, 1, 2, 3, 10, 20, 30, 1000};
    struct data d = {v, 2, 4};
    struct us_stats_source src = source(&d, 1);
    struct us_stats_config cfg = {.clip_quantile = 0.5, .channelwise = true};
    struct us_stats st;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_OK);
    assert_true(st.clip[0] == 1.5);
    assert_true(st.clip[1] == 25);
}

/* A large offset with a small spread: sums of squares in single precision would lose it. */
static void spread_on_a_large_offset_is_kept(void **unused)
{
    enum { N = 4096 };
    float v[N];
    for (int i = 0; i < N; i++)
        v[i] = 60000.0F + (float)(i % 2);
    struct data d = {v, 1, N / 4};
    struct us_stats_source src = source(&d, 4);
    struct us_stats_config cfg = {.clip_quantile = 1};
    struct us_stats st;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_OK);
    assert_true(fabs(st.input_mean - 60000.5) < 1e-9);
    assert_true(fabs(st.input_std - 0.5) < 1e-9);
}

static void pixel_that_is_not_finite_is_refused_with_its_place(void **unused)
{
    float v[] = {0, 1, 2, 3, 4, 5, 6, NAN};
    struct data d = {v, 2, 2};
    struct us_stats_source src = source(&d, 2);
    struct us_stats_config cfg = {.clip_quantile = 0.995};
    struct us_stats st;
    struct us_err err = {0};
    assert_int_equal(us_stats_compute(&src, &cfg, &st, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "frame 1 channel 1: pixel 1"));
    v[7] = -INFINITY;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, &err), US_E_FORMAT);
}

static void constant_data_is_refused(void **unused)
{
    const float v[] = {7, 7, 7, 7};
    struct data d = {v, 1, 4};
    struct us_stats_source src = source(&d, 1);
    struct us_stats_config cfg = {.clip_quantile = 0.995};
    struct us_stats st;
    struct us_err err = {0};
    assert_int_equal(us_stats_compute(&src, &cfg, &st, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "all pixels are 7"));
}

static void arguments_out_of_bounds_are_refused(void **unused)
{
    const float v[] = {1, 2};
    struct data d = {v, 1, 2};
    struct us_stats_source src = source(&d, 1);
    struct us_stats st;
    const double bad[] = {-0.1, 1.1, NAN};
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_stats_config cfg = {.clip_quantile = bad[i]};
        assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_E_ARG);
    }
    struct us_stats_config cfg = {.clip_quantile = 0.5};
    src.n_frames = 0;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_E_ARG);
}

static void raised_cancel_flag_stops_the_scan(void **unused)
{
    const float v[] = {1, 2};
    struct data d = {v, 1, 2};
    atomic_bool cancel = true;
    struct us_stats_source src = source(&d, 1);
    src.cancel = &cancel;
    struct us_stats_config cfg = {.clip_quantile = 0.5};
    struct us_stats st;
    assert_int_equal(us_stats_compute(&src, &cfg, &st, NULL), US_E_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantile_of_integers_equals_sorting),
        cmocka_unit_test(quantile_of_floats_of_both_signs_equals_sorting),
        cmocka_unit_test(statistics_are_of_clipped_data_pooled_and_per_channel),
        cmocka_unit_test(channelwise_quantile_clips_each_channel_by_itself),
        cmocka_unit_test(spread_on_a_large_offset_is_kept),
        cmocka_unit_test(pixel_that_is_not_finite_is_refused_with_its_place),
        cmocka_unit_test(constant_data_is_refused),
        cmocka_unit_test(arguments_out_of_bounds_are_refused),
        cmocka_unit_test(raised_cancel_flag_stops_the_scan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
