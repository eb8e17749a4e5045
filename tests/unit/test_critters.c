/* SinosoidalCritters (model-spec 14). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_critters.h"

static void assert_close(double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("got %.13g, expected %.13g", got, expected);
}

static double *new_image(int64_t n)
{
    double *img = calloc((size_t)n, sizeof(*img));
    assert_non_null(img);
    return img;
}

struct summary {
    double sum, max;
    int64_t n_nonzero;
};

static struct summary summarise(const double *img, int64_t n)
{
    struct summary s = {0};
    for (int64_t i = 0; i < n; i++) {
        s.sum += img[i];
        s.max = fmax(s.max, img[i]);
        s.n_nonzero += img[i] != 0;
    }
    return s;
}

static void assert_image(const double *img, int32_t size, struct summary expected)
{
    struct summary s = summarise(img, (int64_t)size * size);
    assert_close(s.sum, expected.sum, 6e-9);
    assert_close(s.max, expected.max, 6e-9);
    assert_int_equal(s.n_nonzero, expected.n_nonzero);
}

static void two_frequency_curves_match_the_reference_images(void **state)
{
    const struct us_critter_curve first = {
        .w = {0.06, 0.31}, .n_w = 2, .vertical_shift = 20.51, .horizontal_shift = -10.337};
    const struct us_critter_curve second = {.w = {0.13, 0.61},
                                            .n_w = 2,
                                            .vertical_shift = 70.2571,
                                            .horizontal_shift = 15.7583,
                                            .flip = true};
    double *img = new_image(128 * 128);
    assert_int_equal(us_critters_draw(img, 128, &first), US_OK);
    assert_image(img, 128, (struct summary){22629.02874217, 15.16318337, 4076});
    assert_close(img[31 * 128 + 64], 10.17184877, 6e-9);
    assert_int_equal(us_critters_draw(img, 128, &second), US_OK);
    assert_image(img, 128, (struct summary){54328.04061329, 20.81838955, 8302});
    assert_close(img[80 * 128 + 30], 16.21352674, 6e-9);
    free(img);
}

static void three_curve_matches_the_reference_image(void **state)
{
    const struct us_critter_curve curve = {
        .w = {0.06, 0.01, 0.31}, .n_w = 3, .vertical_shift = 40.51, .horizontal_shift = -10.337};
    double *img = new_image(256 * 256);
    assert_int_equal(us_critters_draw(img, 256, &curve), US_OK);
    assert_image(img, 256, (struct summary){43469.89197611, 15.58769449, 7769});
    assert_close(img[50 * 256 + 128], 4.475063509, 6e-10);
    free(img);
}

/* A curve pushed out on each side, and the smallest images. */
static void curve_partly_or_entirely_outside_is_cut(void **state)
{
    struct us_critter_curve c = {.w = {0.06, 0.31}, .n_w = 2};
    for (int32_t size = 1; size <= 40; size += 3) {
        for (int k = 0; k < 9; k++) {
            c.vertical_shift = (k % 3) * size * 0.5;
            c.horizontal_shift = (k / 3 - 1) * size;
            int64_t n = (int64_t)size * size;
            double *img = new_image(n + 2);
            img[0] = img[n + 1] = 4321;
            assert_int_equal(us_critters_draw(img + 1, size, &c), US_OK);
            assert_true(img[0] == 4321 && img[n + 1] == 4321);
            free(img);
        }
    }
    c.vertical_shift = 128;
    c.horizontal_shift = 0;
    double *img = new_image(128 * 128);
    assert_int_equal(us_critters_draw(img, 128, &c), US_OK);
    assert_int_equal(summarise(img, 128 * 128).n_nonzero, 0);
    free(img);
}

static void first_row_and_column_hold_core_pixels_only(void **state)
{
    const struct us_critter_curve c = {.w = {0.06, 0.31}, .n_w = 2};
    double *img = new_image(128 * 128);
    assert_int_equal(us_critters_draw(img, 128, &c), US_OK);
    for (int i = 0; i < 128; i++) {
        assert_true(img[i] == 0 || img[i] == 1);
        assert_true(img[i * 128] == 0 || img[i * 128] == 1);
    }
    assert_true(summarise(img, 128).n_nonzero > 0);
    free(img);
}

static void bad_curves_are_refused(void **state)
{
    static const struct {
        struct us_critter_curve curve;
        int32_t size;
        const char *reason;
    } bad[] = {
        {{.w = {0.1, 0.2}, .n_w = 1}, 64, "one frequency"},
        {{.w = {0.1, 0.2, 0.3}, .n_w = 4}, 64, "four frequencies"},
        {{.w = {0.1, 0}, .n_w = 2}, 64, "frequency 0 has no slope to meet"},
        {{.w = {0.1, 1e-300}, .n_w = 2}, 64, "the second piece would start at 1e300"},
        {{.w = {0.1, NAN}, .n_w = 2}, 64, "frequency NaN"},
        {{.w = {0.1, 0.2}, .n_w = 2, .vertical_shift = -1}, 64, "rows above the image"},
        {{.w = {0.1, 0.2}, .n_w = 2, .vertical_shift = NAN}, 64, "shift NaN"},
        {{.w = {0.1, 0.2}, .n_w = 2, .vertical_shift = 1e9}, 64, "row beyond int"},
        {{.w = {0.1, 0.2}, .n_w = 2, .horizontal_shift = -65}, 64, "shift over the size"},
        {{.w = {0.1, 0.2}, .n_w = 2, .horizontal_shift = NAN}, 64, "shift NaN"},
        {{.w = {0.1, 0.2}, .n_w = 2}, 0, "no pixel"},
        {{.w = {0.1, 0.2}, .n_w = 2}, 32769, "above the largest frame"},
    };
    double img[1] = {7};
    for (size_t i = 0; i < US_COUNT(bad); i++)
        if (us_critters_draw(img, bad[i].size, &bad[i].curve) != US_E_ARG || img[0] != 7)
            fail_msg("not refused: %s", bad[i].reason);
}

static void assert_frame(const struct us_critters_config *cfg, int64_t frame, double *ret)
{
    struct us_err err = {0};
    if (us_critters_frame(cfg, frame, ret, &err) != US_OK)
        fail_msg("%s", err.msg);
}

static void frame_depends_on_configuration_and_number_only(void **state)
{
    const struct us_critters_config cfg = {.size = 128, .join = 0, .seed = 7};
    const int64_t n = 2 * 128 * 128, bytes = n * (int64_t)sizeof(double);
    double *a = new_image(n), *b = new_image(n);
    assert_frame(&cfg, 41, a);
    for (int64_t i = 0; i < n; i++)
        b[i] = NAN; /* every pixel is written */
    assert_frame(&cfg, 40, b);
    assert_memory_not_equal(a, b, bytes);
    assert_frame(&cfg, 41, b);
    assert_memory_equal(a, b, bytes);
    const struct us_critters_config others[] = {
        {.size = 128, .join = 25, .seed = 7},
        {.size = 128, .join = 0, .seed = 8},
        {.size = 128, .join = 0, .seed = 7 + (1ULL << 32)},
    };
    for (size_t k = 0; k < US_COUNT(others); k++) {
        assert_frame(&others[k], 41, b);
        assert_memory_not_equal(a, b, bytes);
    }
    assert_frame(&cfg, 41 + (1LL << 32), b);
    assert_memory_not_equal(a, b, bytes);
    assert_memory_not_equal(a, a + n / 2, bytes / 2);
    free(a);
    free(b);
}

/* "The same seed gives the same frames everywhere": what this generator gave when it was new. */
static void frames_of_seed_one_stay_what_they_were(void **state)
{
    static const struct {
        struct us_critters_config cfg;
        int64_t frame;
        struct summary expected[2];
    } pinned[] = {
        {{.size = 128, .join = 0, .seed = 1},
         0,
         {{118664.52248370, 24.90991463, 14013}, {132117.70519817, 24.18191893, 14611}}},
        {{.size = 256, .join = 25, .seed = 1},
         999,
         {{211360.14120618, 22.03387017, 34011}, {244704.38586527, 21.53326430, 37231}}},
    };
    for (size_t k = 0; k < US_COUNT(pinned); k++) {
        int32_t size = pinned[k].cfg.size;
        double *img = new_image(2LL * size * size);
        assert_frame(&pinned[k].cfg, pinned[k].frame, img);
        for (int c = 0; c < 2; c++)
            assert_image(img + (int64_t)c * size * size, size, pinned[k].expected[c]);
        free(img);
    }
}

/* Mean and variance of a sample of n against its law, within 4.5 standard errors. */
struct sample {
    double sum, squares;
    int64_t n;
};

static void sample_add(struct sample *s, double x)
{
    s->sum += x;
    s->squares += x * x;
    s->n++;
}

/* Uniform on [lo, hi): the variance estimate has standard deviation (hi-lo)^2 / sqrt(180 n). */
static void assert_uniform(const struct sample *s, double lo, double hi)
{
    double n = (double)s->n, mid = (lo + hi) / 2, width = hi - lo;
    assert_close(s->sum / n, mid, 4.5 * width / sqrt(12 * n));
    double variance = s->squares / n - 2 * mid * s->sum / n + mid * mid;
    assert_close(variance, width * width / 12, 4.5 * width * width / sqrt(180 * n));
}

static void assert_half(int64_t count, int64_t n)
{
    assert_close((double)count, n / 2.0, 4.5 * sqrt((double)n) / 2);
}

#define FRAMES 3000

static const double low[4] = {0.05, 0.12, 0.3, 0.6};
/* The range of the last frequency, by channel and by the range of the first. */
static const int last_range[2][2] = {{2, 3}, {3, 2}};

static void frequencies_are_uniform_in_the_ranges_of_their_channel(void **state)
{
    for (int join = 0; join <= 25; join += 25) {
        const struct us_critters_config cfg = {.size = 256, .join = join, .seed = 3};
        struct us_critter_curve curves[2][US_CRITTERS_CURVES];
        struct sample range[4] = {{0, 0, 0}};
        int64_t n_first[2] = {0};
        for (int64_t f = 0; f < FRAMES; f++) {
            assert_int_equal(us_critters_curves(&cfg, f, curves, NULL), US_OK);
            for (int k = 0; k < 2 * US_CRITTERS_CURVES; k++) {
                int channel = k / US_CRITTERS_CURVES;
                const struct us_critter_curve *c = &curves[channel][k % US_CRITTERS_CURVES];
                assert_int_equal(c->n_w, join == 0 ? 2 : 3);
                assert_true(join == 0 || c->w[1] == 0.01);
                double w[2] = {c->w[0], c->w[c->n_w - 1]};
                int first = w[0] >= 0.12;
                int index[2] = {first, last_range[channel][first]};
                n_first[channel] += first;
                for (int i = 0; i < 2; i++) {
                    assert_true(w[i] >= low[index[i]] && w[i] < low[index[i]] + 0.02);
                    sample_add(&range[index[i]], w[i]);
                }
            }
        }
        for (int r = 0; r < 4; r++)
            assert_uniform(&range[r], low[r], low[r] + 0.02);
        for (int c = 0; c < 2; c++)
            assert_half(n_first[c], FRAMES * US_CRITTERS_CURVES);
    }
}

/* One kind per channel: every curve is of the first kind, and all other draws stay what they are.
 */
static void with_one_pair_all_curves_are_of_the_first_kind(void **state)
{
    const struct us_critters_config one = {.size = 128, .seed = 3, .pairs = 1};
    const struct us_critters_config two = {.size = 128, .seed = 3, .pairs = 2};
    struct us_critter_curve a[2][US_CRITTERS_CURVES], b[2][US_CRITTERS_CURVES];
    int64_t n_equal = 0;
    for (int64_t f = 0; f < 100; f++) {
        assert_int_equal(us_critters_curves(&one, f, a, NULL), US_OK);
        assert_int_equal(us_critters_curves(&two, f, b, NULL), US_OK);
        for (int k = 0; k < 2 * US_CRITTERS_CURVES; k++) {
            int channel = k / US_CRITTERS_CURVES;
            const struct us_critter_curve *c = &a[channel][k % US_CRITTERS_CURVES];
            const struct us_critter_curve *d = &b[channel][k % US_CRITTERS_CURVES];
            assert_true(c->w[0] >= low[0] && c->w[0] < low[0] + 0.02);
            double last = low[last_range[channel][0]];
            assert_true(c->w[1] >= last && c->w[1] < last + 0.02);
            assert_true(c->vertical_shift == d->vertical_shift);
            assert_true(c->horizontal_shift == d->horizontal_shift && c->flip == d->flip);
            n_equal += c->w[0] == d->w[0] && c->w[1] == d->w[1];
        }
    }
    assert_half(n_equal, 100 * 2 * US_CRITTERS_CURVES);
}

static void shifts_and_flips_follow_their_laws(void **state)
{
    const int32_t size = 256;
    const double m = 0.9 * size, bucket = m / 5, half_gap = 8;
    const struct us_critters_config cfg = {.size = size, .join = 0, .seed = 4};
    struct us_critter_curve curves[2][US_CRITTERS_CURVES];
    struct sample vertical[US_CRITTERS_CURVES] = {{0, 0, 0}}, horizontal = {0, 0, 0};
    double product = 0;
    int64_t n_flips = 0, n_negative = 0;
    for (int64_t f = 0; f < FRAMES; f++) {
        assert_int_equal(us_critters_curves(&cfg, f, curves, NULL), US_OK);
        for (int c = 0; c < 2; c++) {
            for (int k = 0; k < US_CRITTERS_CURVES; k++) {
                const struct us_critter_curve *v = &curves[c][k];
                assert_true(v->vertical_shift >= k * bucket + half_gap - 1e-9);
                assert_true(v->vertical_shift < (k + 1) * bucket - half_gap + 1e-9);
                assert_true(fabs(v->horizontal_shift) < 0.3 * size);
                sample_add(&vertical[k], v->vertical_shift);
                sample_add(&horizontal, v->horizontal_shift);
                n_flips += v->flip;
                n_negative += v->horizontal_shift < 0;
            }
        }
        product += curves[0][2].horizontal_shift * curves[1][2].horizontal_shift;
    }
    for (int k = 0; k < US_CRITTERS_CURVES; k++)
        assert_uniform(&vertical[k], k * bucket + half_gap, (k + 1) * bucket - half_gap);
    assert_uniform(&horizontal, -0.3 * size, 0.3 * size);
    assert_half(n_flips, horizontal.n);
    assert_half(n_negative, horizontal.n);
    /* The channels are independent. */
    double variance = 0.36 * size * size / 12;
    assert_close(product / FRAMES, 0, 4.5 * variance / sqrt((double)FRAMES));
}

static void bad_configurations_are_refused_with_the_reason(void **state)
{
    static const struct {
        struct us_critters_config cfg;
        int64_t frame;
        const char *text;
    } bad[] = {
        {{.size = 88}, 0, "88 pixels a side: must be 89 to 32768"},
        {{.size = -1}, 0, "-1 pixels a side"},
        {{.size = 32769}, 0, "32769 pixels a side"},
        {{.size = 128, .join = -25}, 0, "join -25"},
        {{.size = 128}, -1, "frame -1"},
        {{.size = 128, .pairs = 3}, 0, "3 kinds of curve per channel: must be 1 or 2"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_err err = {0};
        double untouched = 7;
        assert_int_equal(us_critters_frame(&bad[i].cfg, bad[i].frame, &untouched, &err), US_E_ARG);
        if (strstr(err.msg, bad[i].text) == NULL)
            fail_msg("'%s' lacks '%s'", err.msg, bad[i].text);
        assert_true(untouched == 7);
    }
    const struct us_critters_config smallest = {.size = 89};
    double *img = new_image(2 * 89 * 89);
    assert_frame(&smallest, 0, img);
    free(img);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_frequency_curves_match_the_reference_images),
        cmocka_unit_test(three_curve_matches_the_reference_image),
        cmocka_unit_test(curve_partly_or_entirely_outside_is_cut),
        cmocka_unit_test(first_row_and_column_hold_core_pixels_only),
        cmocka_unit_test(bad_curves_are_refused),
        cmocka_unit_test(frame_depends_on_configuration_and_number_only),
        cmocka_unit_test(frequencies_are_uniform_in_the_ranges_of_their_channel),
        cmocka_unit_test(with_one_pair_all_curves_are_of_the_first_kind),
        cmocka_unit_test(shifts_and_flips_follow_their_laws),
        cmocka_unit_test(bad_configurations_are_refused_with_the_reason),
        cmocka_unit_test(frames_of_seed_one_stay_what_they_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
