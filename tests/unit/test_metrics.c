/* Image quality metrics (model-spec 17.5, vectors of 20.6). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_limits.h"
#include "us_metrics.h"
#include "us_vectors.h"

#define SIDE   32
#define PIXELS (SIDE * SIDE)

static void assert_close(double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("got %.12g, expected %.12g", got, expected);
}

static struct us_metrics compute(const float *t, const float *x, int64_t h, int64_t w)
{
    struct us_metrics m;
    struct us_err err = {0};
    enum us_status s = us_metrics_compute(t, x, h, w, &m, &err);
    if (s != US_OK)
        fail_msg("%s", err.msg);
    return m;
}

/* gt and pr of 20.6; pr is made from the unrounded gt. */
static void fill_pair(float *t, float *x)
{
    double gt[PIXELS], pr[PIXELS];
    us_vectors_uniform("metric_gt", gt, PIXELS);
    us_vectors_uniform("metric_pr", pr, PIXELS);
    for (int i = 0; i < PIXELS; i++) {
        t[i] = (float)(3.0 * gt[i]);
        x[i] = (float)(0.7 * 3.0 * gt[i] + 0.4 + 0.3 * pr[i]);
    }
}

static void metrics_of_the_reference_pair_match_the_printed_values(void **state)
{
    float t[PIXELS], x[PIXELS];
    fill_pair(t, x);
    struct us_metrics m = compute(t, x, SIDE, SIDE);
    assert_close(m.psnr_ri, 27.934457, 1e-6);
    assert_close(m.psnr, 20.358200, 1e-6);
    assert_close(m.ssim, 0.932212, 1e-6);
    double sum = 0;
    for (int i = 0; i < PIXELS; i++)
        sum += ((double)t[i] - x[i]) * ((double)t[i] - x[i]);
    assert_close(m.rmse, sqrt(sum / PIXELS), 1e-14);
}

static void metrics_of_three_pixels_match_the_printed_values(void **state)
{
    const float t[2][3] = {{10, 11, 12}, {100, 120, 140}};
    const float x[2][3] = {{15, 10, 13}, {10, 13, 14}};
    static const double expected_ri[2] = {8.5278, 18.9209}, expected[2] = {-3.5218, -8.6807};
    for (int k = 0; k < 2; k++) {
        struct us_metrics m = compute(t[k], x[k], 1, 3);
        assert_close(m.psnr_ri, expected_ri[k], 5e-5);
        assert_close(m.psnr, expected[k], 5e-5);
        assert_true(isnan(m.ssim));
    }
}

/* The sums written out window by window. */
static double ssim_by_definition(const float *t, const float *x, int64_t h, int64_t w)
{
    double lo = t[0], hi = t[0], total = 0;
    for (int64_t i = 0; i < h * w; i++) {
        lo = fmin(lo, t[i]);
        hi = fmax(hi, t[i]);
    }
    double c1 = pow(0.01 * (hi - lo), 2), c2 = pow(0.03 * (hi - lo), 2);
    for (int64_t r = 3; r < h - 3; r++) {
        for (int64_t c = 3; c < w - 3; c++) {
            double ut = 0, ux = 0, vt = 0, vx = 0, vtx = 0;
            for (int k = 0; k < 49; k++) {
                ut += t[(r - 3 + k / 7) * w + c - 3 + k % 7] / 49.0;
                ux += x[(r - 3 + k / 7) * w + c - 3 + k % 7] / 49.0;
            }
            for (int k = 0; k < 49; k++) {
                double a = t[(r - 3 + k / 7) * w + c - 3 + k % 7] - ut;
                double b = x[(r - 3 + k / 7) * w + c - 3 + k % 7] - ux;
                vt += a * a / 48;
                vx += b * b / 48;
                vtx += a * b / 48;
            }
            total +=
                (2 * ut * ux + c1) * (2 * vtx + c2) / ((ut * ut + ux * ux + c1) * (vt + vx + c2));
        }
    }
    return total / (double)((h - 6) * (w - 6));
}

static void ssim_follows_the_definition_from_seven_pixels_on(void **state)
{
    static const int64_t sides[][2] = {{7, 7}, {7, 31}, {19, 8}, {32, 32}, {11, 93}};
    float t[PIXELS], x[PIXELS];
    fill_pair(t, x);
    for (size_t k = 0; k < US_COUNT(sides); k++) {
        int64_t h = sides[k][0], w = sides[k][1];
        struct us_metrics m = compute(t, x, h, w);
        assert_close(m.ssim, ssim_by_definition(t, x, h, w), 1e-12);
    }
    assert_true(isnan(compute(t, x, 6, 40).ssim));
    assert_true(isnan(compute(t, x, 40, 6).ssim));
}

static void range_invariant_psnr_ignores_gain_sign_and_offset_of_the_prediction(void **state)
{
    float t[PIXELS], x[PIXELS];
    fill_pair(t, x);
    double before = compute(t, x, SIDE, SIDE).psnr_ri;
    for (int i = 0; i < PIXELS; i++)
        x[i] = 1000.0F - 64.0F * x[i];
    struct us_metrics m = compute(t, x, SIDE, SIDE);
    assert_close(m.psnr_ri, before, 1e-4); /* x was rounded to f32 at about 1000 */
    assert_true(m.psnr < 0 && m.ssim < 0);
}

/* A camera offset that dwarfs the signal must not eat the digits. */
static void metrics_keep_their_digits_on_a_large_offset(void **state)
{
    float t[PIXELS], x[PIXELS], t2[PIXELS], x2[PIXELS];
    fill_pair(t, x);
    for (int i = 0; i < PIXELS; i++) {
        t2[i] = rintf(t[i] * 100) + 1048576.0F;
        x2[i] = rintf(x[i] * 100) + 1048576.0F;
        t[i] = t2[i] - 1048576.0F;
        x[i] = x2[i] - 1048576.0F;
    }
    struct us_metrics a = compute(t, x, SIDE, SIDE), b = compute(t2, x2, SIDE, SIDE);
    assert_close(b.psnr_ri, a.psnr_ri, 1e-8);
    assert_close(b.psnr, a.psnr, 1e-12);
    assert_close(b.rmse, a.rmse, 1e-12);
    assert_close(b.ssim, ssim_by_definition(t2, x2, SIDE, SIDE), 1e-12);
}

static void identical_images_have_infinite_psnr_and_unit_ssim(void **state)
{
    float t[PIXELS], x[PIXELS];
    fill_pair(t, x);
    struct us_metrics m = compute(t, t, SIDE, SIDE);
    assert_true(isinf(m.psnr) && m.psnr > 0);
    assert_true(m.psnr_ri > 250);
    assert_true(m.rmse == 0);
    assert_close(m.ssim, 1, 1e-14);
}

static void constant_images_leave_undefined_values_absent(void **state)
{
    float flat[64], t[PIXELS], x[PIXELS];
    fill_pair(t, x);
    for (size_t i = 0; i < US_COUNT(flat); i++)
        flat[i] = 2.5F;
    struct us_metrics m = compute(flat, x, 8, 8);
    assert_true(isnan(m.psnr_ri) && isnan(m.psnr) && isnan(m.ssim) && m.rmse > 0);
    m = compute(flat, flat, 8, 8);
    assert_true(isnan(m.psnr_ri) && isinf(m.psnr) && isnan(m.ssim) && m.rmse == 0);
    /* A constant prediction fits like the mean of the target does. */
    m = compute(t, flat, 8, 8);
    double mean = 0, var = 0, lo = t[0], hi = t[0];
    for (int i = 0; i < 64; i++) {
        mean += t[i] / 64.0;
        lo = fmin(lo, t[i]);
        hi = fmax(hi, t[i]);
    }
    for (int i = 0; i < 64; i++)
        var += (t[i] - mean) * (t[i] - mean) / 64;
    assert_close(m.psnr_ri, 20 * log10((hi - lo) / sqrt(var)), 1e-10);
    m = compute(t, x, 1, 1);
    assert_true(isnan(m.psnr_ri) && isnan(m.psnr) && isnan(m.ssim));
}

static void bad_images_are_refused_with_the_position(void **state)
{
    static const struct {
        float value;
        bool in_target;
        int64_t h, w;
        const char *text;
    } bad[] = {
        {NAN, true, 8, 8, "the target holds nan at row 2, column 5"},
        {-INFINITY, false, 8, 8, "the prediction holds -inf at row 2, column 5"},
        {INFINITY, true, 4, 7, "the target holds inf at row 3, column 0"},
        {0, true, 0, 8, "0 x 8"},
        {0, true, 8, -1, "8 x -1"},
        {0, true, INT64_MAX, 2, "9223372036854775807 x 2"},
    };
    for (size_t k = 0; k < US_COUNT(bad); k++) {
        float t[64] = {0}, x[64] = {0};
        (bad[k].in_target ? t : x)[21] = bad[k].value;
        struct us_metrics m = {.psnr = 77};
        struct us_err err = {0};
        assert_int_equal(us_metrics_compute(t, x, bad[k].h, bad[k].w, &m, &err), US_E_ARG);
        if (strstr(err.msg, bad[k].text) == NULL)
            fail_msg("'%s' lacks '%s'", err.msg, bad[k].text);
        assert_true(m.psnr == 77);
        assert_int_equal(us_metrics_compute(t, x, bad[k].h, bad[k].w, &m, NULL), US_E_ARG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metrics_of_the_reference_pair_match_the_printed_values),
        cmocka_unit_test(metrics_of_three_pixels_match_the_printed_values),
        cmocka_unit_test(ssim_follows_the_definition_from_seven_pixels_on),
        cmocka_unit_test(range_invariant_psnr_ignores_gain_sign_and_offset_of_the_prediction),
        cmocka_unit_test(metrics_keep_their_digits_on_a_large_offset),
        cmocka_unit_test(identical_images_have_infinite_psnr_and_unit_ssim),
        cmocka_unit_test(constant_images_leave_undefined_values_absent),
        cmocka_unit_test(bad_images_are_refused_with_the_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
