/* The reference-free seam score, as us_seam.h defines it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_limits.h"
#include "us_seam.h"
#include "us_vectors.h"

#define H    480
#define W    512
#define GRID 32

static void assert_close(double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("got %.12g, expected %.12g", got, expected);
}

static struct us_seam score(const float *plane, int64_t h, int64_t w, int32_t grid)
{
    struct us_seam s;
    struct us_err err = {0};
    if (us_seam_score(plane, h, w, grid, &s, &err) != US_OK)
        fail_msg("%s", err.msg);
    return s;
}

/* A box of 5 along one direction, borders wrapped. */
static void blur(double *f, int64_t step, int64_t n)
{
    double *in = calloc(H * W, sizeof(*in));
    assert_non_null(in);
    memcpy(in, f, H * W * sizeof(*in));
    for (int64_t i = 0; i < H * W; i++) {
        int64_t at = i / step % n;
        f[i] = 0;
        for (int64_t k = n - 2; k <= n + 2; k++)
            f[i] += in[i + ((at + k) % n - at) * step] / 5;
    }
    free(in);
}

/* White noise blurred three times each way: smooth, random, without a grid. */
static float *smooth_field(const char *name)
{
    double *f = calloc(H * W, sizeof(*f));
    float *out = calloc(H * W, sizeof(*out));
    assert_non_null(f);
    assert_non_null(out);
    us_vectors_uniform(name, f, H * W);
    for (int k = 0; k < 3; k++) {
        blur(f, 1, W);
        blur(f, W, H);
    }
    for (int64_t i = 0; i < H * W; i++)
        out[i] = (float)f[i];
    free(f);
    return out;
}

/* Tiles up and down by half a step, in a pattern that steps at each line of the wanted axes. */
static void add_steps(float *plane, int32_t grid, float step, bool down, bool across)
{
    for (int64_t y = 0; y < H; y++)
        for (int64_t x = 0; x < W; x++) {
            int64_t tile = (down ? y / grid : 0) + (across ? x / grid : 0);
            plane[y * W + x] += tile % 2 == 0 ? step / 2 : -step / 2;
        }
}

static void smooth_field_without_seams_scores_zero(void **state)
{
    static const char *names[] = {"seam a", "seam b", "seam c"};
    for (size_t k = 0; k < US_COUNT(names); k++) {
        float *f = smooth_field(names[k]);
        struct us_seam s = score(f, H, W, GRID);
        assert_int_equal(s.y.n_lines, H / GRID - 1);
        assert_int_equal(s.x.n_lines, W / GRID - 1);
        assert_close(s.excess, 0, 0.05);
        assert_true(fabs(s.y.z) < 3 && fabs(s.x.z) < 3);
        assert_true(s.ks < 0.05);
        free(f);
    }
}

static void score_grows_with_the_height_of_the_step(void **state)
{
    /* In units of the typical difference of neighbours. */
    static const float heights[] = {0, 0.25F, 0.5F, 1, 2, 4, 16, 64};
    float *field = smooth_field("seam a");
    float unit = (float)score(field, H, W, GRID).x.elsewhere;
    struct us_seam before = {.y.z = -INFINITY, .x.z = -INFINITY, .excess = -1};
    for (size_t k = 0; k < US_COUNT(heights); k++) {
        float *f = smooth_field("seam a");
        add_steps(f, GRID, heights[k] * unit, true, true);
        struct us_seam s = score(f, H, W, GRID);
        assert_true(s.excess > before.excess);
        assert_true(s.y.z > before.y.z && s.x.z > before.x.z);
        /* Below about one difference ks is the scatter of the field itself. */
        assert_true(heights[k] < 1 || s.ks > before.ks || s.ks == 1);
        before = s;
        free(f);
    }
    assert_true(before.excess > 50 && before.x.z > 1000 && before.ks > 0.99);
    free(field);
}

static void step_of_one_difference_is_found_with_confidence(void **state)
{
    float *f = smooth_field("seam b");
    float unit = (float)score(f, H, W, GRID).x.elsewhere;
    add_steps(f, GRID, unit, true, true);
    struct us_seam s = score(f, H, W, GRID);
    assert_true(s.excess > 0.15 && s.x.z > 5 && s.y.z > 5);
    /* The same plane on a grid that is not its own looks seamless. */
    s = score(f, H, W, GRID + 1);
    assert_true(fabs(s.excess) < 0.05 && fabs(s.x.z) < 3);
    free(f);
}

static void seams_of_one_direction_show_in_their_axis_only(void **state)
{
    float *f = smooth_field("seam c");
    float unit = (float)score(f, H, W, GRID).x.elsewhere;
    struct us_seam clean = score(f, H, W, GRID);
    add_steps(f, GRID, 4 * unit, true, false);
    struct us_seam s = score(f, H, W, GRID);
    assert_true(s.y.excess > 2);
    assert_close(s.x.excess, clean.x.excess, 1e-4);
    assert_true(s.ks == s.y.ks && s.ks > s.x.ks);
    assert_close(s.excess, (s.y.seam + s.x.seam) / (s.y.elsewhere + s.x.elsewhere) - 1, 1e-12);
    free(f);
}

static void score_ignores_gain_and_swaps_axes_with_the_plane(void **state)
{
    float *f = smooth_field("seam a"), *g = calloc(H * W, sizeof(*g));
    assert_non_null(g);
    add_steps(f, GRID, 0.01F, true, false);
    for (int64_t i = 0; i < H * W; i++)
        g[i % W * H + i / W] = -1024 * f[i];
    struct us_seam a = score(f, H, W, GRID), b = score(g, W, H, GRID);
    assert_close(b.excess, a.excess, 1e-12);
    assert_close(b.x.z, a.y.z, 1e-9 * fabs(a.y.z));
    assert_close(b.y.z, a.x.z, 1e-9 * fabs(a.x.z) + 1e-12);
    assert_true(b.x.ks == a.y.ks && b.y.ks == a.x.ks);
    free(f);
    free(g);
}

/* Grid 3 on eight columns: lines before columns 3 and 6; the last tile is cut. */
static void numbers_of_a_small_plane_are_the_ones_counted_by_hand(void **state)
{
    const float row[8] = {0, 1, 3, 7, 8, 6, 16, 17};
    /* d = 1 2 4 1 2 10 1 with phases 1 2 0 1 2 0 1 */
    struct us_seam s = score(row, 1, 8, 3);
    assert_int_equal(s.y.n_lines, 0);
    assert_int_equal(s.x.n_lines, 2);
    assert_close(s.x.seam, 7, 1e-15);
    assert_close(s.x.elsewhere, 7.0 / 5, 1e-15);
    assert_close(s.x.excess, 4, 1e-14);
    assert_close(s.x.z, (7 - 1.5) / sqrt(0.5), 1e-13); /* phase means 1 and 2 */
    assert_true(s.x.ks == 1);
    assert_true(isnan(s.y.seam) && isnan(s.y.excess) && isnan(s.y.z) && isnan(s.y.ks));
    assert_close(s.excess, 4, 1e-14);
    assert_true(s.ks == 1);
    /* Seams {2 3 5}, elsewhere {2 1 2}: at 2, a tie, one third lies against all. */
    const float other[7] = {0, 2, 4, 5, 8, 10, 15};
    s = score(other, 1, 7, 2);
    assert_close(s.x.ks, 2.0 / 3, 1e-15);
    assert_true(isnan(s.x.z));
    assert_close(s.x.excess, (10.0 / 3) / (5.0 / 3) - 1, 1e-14);
}

/* Two planes side by side differ by one column of neighbours more than in a pool. */
static void pooled_planes_score_like_their_differences_together(void **state)
{
    struct us_seam_pool *p = NULL;
    float *f = smooth_field("seam a"), *both = calloc(2 * H * W, sizeof(*both));
    assert_non_null(both);
    add_steps(f, GRID, (float)score(f, H, W, GRID).x.elsewhere, true, false);
    assert_int_equal(us_seam_pool_new(H, W, GRID, &p, NULL), US_OK);
    assert_int_equal(us_seam_pool_add(p, f, NULL), US_OK);
    struct us_seam one = us_seam_pool_score(p), alone = score(f, H, W, GRID);
    assert_true(one.excess == alone.excess && one.y.z == alone.y.z && one.x.ks == alone.x.ks);
    assert_true(one.z == one.y.z && one.y.z > one.x.z);
    /* The second plane upside down has other differences on the lines. */
    for (int64_t i = 0; i < H * W; i++) {
        both[i / W * 2 * W + i % W] = f[i];
        both[i / W * 2 * W + W + i % W] = f[H * W - 1 - i];
    }
    struct us_err err = {0};
    float *flipped = calloc(H * W, sizeof(*flipped));
    assert_non_null(flipped);
    for (int64_t i = 0; i < H * W; i++)
        flipped[i] = f[H * W - 1 - i];
    flipped[W + 2] = NAN;
    assert_int_equal(us_seam_pool_add(p, flipped, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "row 1, column 2"));
    flipped[W + 2] = f[H * W - 1 - W - 2];
    assert_int_equal(us_seam_pool_add(p, flipped, NULL), US_OK);
    struct us_seam pooled = us_seam_pool_score(p), wide = score(both, H, 2 * W, GRID);
    assert_close(pooled.y.seam, wide.y.seam, 1e-12 * wide.y.seam);
    assert_close(pooled.y.z, wide.y.z, 1e-9 * wide.y.z);
    assert_true(pooled.y.ks == wide.y.ks);
    assert_true(us_seam_worse(-4, 3) == -4 && us_seam_worse(3, -4) == -4);
    assert_true(us_seam_worse((double)NAN, -1) == -1 && us_seam_worse(2, (double)NAN) == 2);
    us_seam_pool_free(p);
    free(f);
    free(flipped);
    free(both);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Kolmogorov-Smirnov by sorting, on differences cut to the 8 bits that the header names. */
static void ks_equals_the_distance_found_by_sorting(void **state)
{
    float *f = smooth_field("seam b"), *d[2];
    int64_t n[2] = {0, 0}, i = 0, j = 0;
    add_steps(f, GRID, (float)score(f, H, W, GRID).x.elsewhere, true, true);
    for (int k = 0; k < 2; k++)
        assert_non_null(d[k] = calloc(H * W, sizeof(float)));
    for (int64_t y = 0; y < H; y++) {
        for (int64_t x = 1; x < W; x++) {
            int k = x % GRID == 0, exponent;
            float difference = (float)fabs((double)f[y * W + x] - f[y * W + x - 1]);
            double part = frexp(difference, &exponent);
            d[k][n[k]++] = (float)ldexp(floor(part * 256), exponent - 8);
        }
    }
    for (int k = 0; k < 2; k++)
        qsort(d[k], (size_t)n[k], sizeof(float), compare_floats);
    double largest = 0;
    while (i < n[0] && j < n[1]) {
        float value = fminf(d[0][i], d[1][j]);
        while (i < n[0] && d[0][i] <= value)
            i++;
        while (j < n[1] && d[1][j] <= value)
            j++;
        largest = fmax(largest, fabs((double)i / (double)n[0] - (double)j / (double)n[1]));
    }
    assert_true(largest > 0.1);
    assert_close(score(f, H, W, GRID).x.ks, largest, 1e-14);
    for (int k = 0; k < 2; k++)
        free(d[k]);
    free(f);
}

static void planes_without_a_line_or_a_difference_have_plain_answers(void **state)
{
    float flat[16 * 16], tiles[16 * 16];
    for (int i = 0; i < 256; i++) {
        flat[i] = 5;
        tiles[i] = (float)(i / 16 / 8 + i % 16 / 8);
    }
    struct us_seam s = score(flat, 16, 16, 16);
    assert_true(s.y.n_lines == 0 && s.x.n_lines == 0 && isnan(s.excess) && isnan(s.ks));
    s = score(flat, 1, 1, 2);
    assert_true(isnan(s.excess) && isnan(s.ks));
    s = score(flat, 16, 16, 8);
    assert_true(s.excess == 0 && s.ks == 0 && s.x.z == 0);
    s = score(tiles, 16, 16, 8);
    assert_true(isinf(s.excess) && s.excess > 0 && s.ks == 1 && isinf(s.y.z) && s.y.z > 0);
}

/* A ramp differs by the same amount everywhere; what rounding adds is no finding. */
static void ramp_scores_zero_on_any_grid(void **state)
{
    float f[60 * 70];
    for (int i = 0; i < 60 * 70; i++)
        f[i] = (float)(3 * (i / 70) + 7 * (i % 70));
    for (int32_t grid = 3; grid < 40; grid++) {
        struct us_seam s = score(f, 60, 70, grid);
        assert_close(s.excess, 0, 1e-15);
        assert_true(s.x.z == 0 && s.y.z == 0 && s.ks == 0);
    }
}

static void largest_floats_do_not_overflow(void **state)
{
    float f[64];
    for (int i = 0; i < 64; i++)
        f[i] = i % 2 == 0 ? 3.4e38F : -3.4e38F;
    struct us_seam s = score(f, 8, 8, 4);
    assert_true(s.x.excess == 0 && s.x.ks == 0);
    assert_close(s.x.seam / 6.8e38, 1, 1e-6);
}

static void bad_planes_are_refused_with_the_reason(void **state)
{
    static const struct {
        int64_t h, w;
        int32_t grid;
        float value;
        const char *text;
    } bad[] = {
        {0, 4, 2, 0, "0 x 4"},
        {4, -4, 2, 0, "4 x -4"},
        {INT64_MAX, 2, 2, 0, "9223372036854775807 x 2"},
        {4, 4, 1, 0, "grid 1"},
        {4, 4, -3, 0, "grid -3"},
        {4, 4, 2, NAN, "nan at row 2, column 1"},
        {2, 8, 2, -INFINITY, "-inf at row 1, column 1"},
    };
    for (size_t k = 0; k < US_COUNT(bad); k++) {
        float f[16] = {0};
        f[9] = bad[k].value;
        struct us_seam s = {.excess = 7};
        struct us_err err = {0};
        assert_int_equal(us_seam_score(f, bad[k].h, bad[k].w, bad[k].grid, &s, &err), US_E_ARG);
        if (strstr(err.msg, bad[k].text) == NULL)
            fail_msg("'%s' lacks '%s'", err.msg, bad[k].text);
        assert_true(s.excess == 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smooth_field_without_seams_scores_zero),
        cmocka_unit_test(score_grows_with_the_height_of_the_step),
        cmocka_unit_test(step_of_one_difference_is_found_with_confidence),
        cmocka_unit_test(seams_of_one_direction_show_in_their_axis_only),
        cmocka_unit_test(score_ignores_gain_and_swaps_axes_with_the_plane),
        cmocka_unit_test(numbers_of_a_small_plane_are_the_ones_counted_by_hand),
        cmocka_unit_test(pooled_planes_score_like_their_differences_together),
        cmocka_unit_test(ks_equals_the_distance_found_by_sorting),
        cmocka_unit_test(planes_without_a_line_or_a_difference_have_plain_answers),
        cmocka_unit_test(ramp_scores_zero_on_any_grid),
        cmocka_unit_test(largest_floats_do_not_overflow),
        cmocka_unit_test(bad_planes_are_refused_with_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
