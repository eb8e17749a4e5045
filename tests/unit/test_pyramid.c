/* The frame pyramid and the patches cut from it (model-spec 13.5, 13.6, vectors of 20.5, 20.6). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_pyramid.h"

#define PATCH 64

static struct us_pyramid build(const float *frame, int64_t h, int64_t w, int32_t n_scales)
{
    struct us_pyramid p;
    int64_t n_clipped = -1;
    assert_int_equal(us_pyramid_build(frame, h, w, n_scales, INFINITY, &p, &n_clipped), US_OK);
    assert_int_equal(n_clipped, 0);
    return p;
}

static float *new_floats(int64_t n)
{
    float *f = calloc((size_t)n, sizeof(*f));
    assert_non_null(f);
    return f;
}

/* f(r, c) of 20.5. */
static float *spec_frame(int64_t h, int64_t w)
{
    float *f = new_floats(h * w);
    for (int64_t r = 0; r < h; r++)
        for (int64_t c = 0; c < w; c++)
            f[r * w + c] = (float)((7 * r + 13 * c + (r * c) % 17) % 251);
    return f;
}

static void assert_close(double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("got %.13g, expected %.13g", got, expected);
}

/* 13.5 as the specification words it, in whole frames: the referee for sizes without a vector. */
static void filter_by_definition(double *f, int64_t h, int64_t w, int64_t n, int64_t stride)
{
    double z = (double)n / (double)(n > 1 ? n / 2 : 1), sigma = (z - 1) / 2;
    int r = (int)(4 * sigma + 0.5);
    double *in = calloc((size_t)(h * w), sizeof(*in)), total = 0;
    assert_non_null(in);
    memcpy(in, f, (size_t)(h * w) * sizeof(*in));
    for (int j = -r; j <= r; j++)
        total += r == 0 ? 1 : exp(-j * j / (2 * sigma * sigma));
    for (int64_t i = 0; i < h * w; i++) {
        int64_t at = i / stride % n;
        double sum = 0;
        for (int j = -r; j <= r; j++) {
            int64_t k = n == 1 ? 0 : llabs(at + j) % (2 * (n - 1));
            k = k < n ? k : 2 * (n - 1) - k;
            sum += in[i + (k - at) * stride] * (r == 0 ? 1 : exp(-j * j / (2 * sigma * sigma)));
        }
        f[i] = (float)(sum / total);
    }
    free(in);
}

static void halve_by_definition(const float *src, int64_t h, int64_t w, float *dst)
{
    int64_t oh = h > 1 ? h / 2 : 1, ow = w > 1 ? w / 2 : 1;
    double *f = calloc((size_t)(h * w), sizeof(*f));
    assert_non_null(f);
    for (int64_t i = 0; i < h * w; i++)
        f[i] = src[i];
    filter_by_definition(f, h, w, h, w);
    filter_by_definition(f, h, w, w, 1);
    for (int64_t i = 0; i < oh; i++) {
        for (int64_t j = 0; j < ow; j++) {
            double y = (i + 0.5) * h / oh - 0.5, x = (j + 0.5) * w / ow - 0.5;
            int64_t y0 = (int64_t)y, x0 = (int64_t)x;
            int64_t y1 = y0 + 1 < h ? y0 + 1 : y0, x1 = x0 + 1 < w ? x0 + 1 : x0;
            double top = f[y0 * w + x0] * (1 - (x - x0)) + f[y0 * w + x1] * (x - x0);
            double low = f[y1 * w + x0] * (1 - (x - x0)) + f[y1 * w + x1] * (x - x0);
            dst[i * ow + j] = (float)(top * (1 - (y - y0)) + low * (y - y0));
        }
    }
    free(f);
}

static void resize_matches_the_printed_tables(void **state)
{
    static const double small[4] = {22.17758, 39.77908, 130.84036, 173.94638};
    static const double large[16] = {43.16569, 40.17487, 56.14989, 35.70374, 50.05889, 67.19868,
                                     50.40629, 47.69111, 38.76605, 55.89988, 39.39433, 58.92779,
                                     70.59577, 49.86801, 46.27634, 45.69109};
    float f[64];
    for (int k = 0; k < 16; k++)
        f[k] = (float)((k + 1) * (k + 1));
    struct us_pyramid p = build(f, 4, 4, 2);
    for (int k = 0; k < 4; k++)
        assert_close(p.data[1][k], small[k], 6e-6);
    us_pyramid_release(&p);
    for (int k = 0; k < 64; k++)
        f[k] = (float)(37 * k % 101);
    p = build(f, 8, 8, 2);
    for (int k = 0; k < 16; k++)
        assert_close(p.data[1][k], large[k], 6e-6);
    us_pyramid_release(&p);
}

/* Every size 1..12 on both axes, so each radius, each parity and the borders of both: float32 of
 * the definition up to one unit in the last place (the referee sums in another order). */
static void resize_of_every_small_size_follows_the_definition(void **state)
{
    for (int64_t h = 1; h <= 12; h++) {
        for (int64_t w = 1; w <= 12; w++) {
            float frame[144], expected[36];
            for (int64_t i = 0; i < h * w; i++)
                frame[i] = (float)((i * i * 2654435 + 97 * i) % 4093);
            halve_by_definition(frame, h, w, expected);
            struct us_pyramid p = build(frame, h, w, 2);
            assert_int_equal(p.h[1], h > 1 ? h / 2 : 1);
            assert_int_equal(p.w[1], w > 1 ? w / 2 : 1);
            for (int64_t i = 0; i < p.h[1] * p.w[1]; i++)
                assert_close(p.data[1][i], expected[i], 1.3e-7 * fabs(expected[i]) + 1e-30);
            us_pyramid_release(&p);
        }
    }
}

static void resize_of_a_constant_frame_keeps_every_bit(void **state)
{
    float f[37 * 41];
    for (size_t i = 0; i < US_COUNT(f); i++)
        f[i] = 404.25864F;
    struct us_pyramid p = build(f, 37, 41, 7);
    for (int s = 1; s < 7; s++)
        for (int64_t i = 0; i < p.h[s] * p.w[s]; i++)
            assert_true(p.data[s][i] == 404.25864F);
    us_pyramid_release(&p);
}

static void pyramid_of_an_odd_frame_has_floored_sides_down_to_one(void **state)
{
    static const int64_t hs[7] = {37, 18, 9, 4, 2, 1, 1}, ws[7] = {41, 20, 10, 5, 2, 1, 1};
    float *f = spec_frame(37, 41);
    struct us_pyramid p = build(f, 37, 41, 7);
    for (int s = 0; s < 7; s++) {
        assert_int_equal(p.h[s], hs[s]);
        assert_int_equal(p.w[s], ws[s]);
    }
    assert_memory_equal(p.data[0], f, 37 * 41 * sizeof(*f));
    assert_true(p.data[5][0] == p.data[6][0]);
    us_pyramid_release(&p);
    free(f);
}

static void clip_replaces_and_counts_only_values_above(void **state)
{
    const float f[6] = {1, 5, 5.0001F, -9, 1e30F, 4.9999F};
    const float expected[6] = {1, 5, 5, -9, 5, 4.9999F};
    struct us_pyramid p;
    int64_t n = -1;
    assert_int_equal(us_pyramid_build(f, 2, 3, 1, 5.0, &p, &n), US_OK);
    assert_int_equal(n, 2);
    assert_memory_equal(p.data[0], expected, sizeof(expected));
    us_pyramid_release(&p);
    assert_int_equal(us_pyramid_build(f, 2, 3, 1, 5.0, &p, NULL), US_OK);
    us_pyramid_release(&p);
    us_pyramid_release(&p);
    us_pyramid_release(NULL);
}

static void build_of_an_impossible_frame_is_refused(void **state)
{
    static const struct {
        int64_t h, w;
        int32_t n_scales;
        enum us_status expected;
        const char *reason;
    } bad[] = {
        {0, 5, 1, US_E_ARG, "no rows"},
        {5, -1, 1, US_E_ARG, "negative width"},
        {5, 5, 0, US_E_ARG, "no scale"},
        {5, 5, US_MAX_SCALES + 1, US_E_ARG, "too many scales"},
        {INT64_MAX / 2, 3, 1, US_E_TOO_LARGE, "the product overflows"},
        {US_MAX_PLANE_PIXELS, 2, 1, US_E_TOO_LARGE, "above the cap"},
    };
    const float f[1] = {0};
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_pyramid p;
        memset(&p, 0x5a, sizeof(p));
        enum us_status s =
            us_pyramid_build(f, bad[i].h, bad[i].w, bad[i].n_scales, INFINITY, &p, NULL);
        if (s != bad[i].expected)
            fail_msg("%s: %s", bad[i].reason, us_status_name(s));
        us_pyramid_release(&p); /* left empty, so this is harmless */
    }
}

struct patch_vector {
    int64_t h, w;
    enum us_pad_mode pad;
    int32_t grid;
    int64_t idx, h0, w0;
    double sum[5], pixel[3];
};

static const struct patch_vector patch_vectors[] = {
    {512,
     680,
     US_PAD_REFLECT,
     16,
     0,
     -24,
     -24,
     {512472, 513472.708641, 511567.966422, 511750.228661, 511923.232201},
     {118.1709, 129.7235, 117.3802}},
    {512,
     680,
     US_PAD_REFLECT,
     16,
     677,
     232,
     56,
     {514387, 512125.355015, 512031.097237, 511928.357292, 511967.687920},
     {116.4333, 115.7009, 123.9542}},
    {512,
     680,
     US_PAD_REFLECT,
     16,
     1343,
     472,
     632,
     {518013, 514716.897043, 512823.296547, 511960.216691, 511952.518387},
     {132.0925, 128.8735, 118.4300}},
    {512,
     680,
     US_PAD_REFLECT,
     32,
     173,
     240,
     144,
     {516260, 512130.269079, 512338.978348, 511912.283073, 511970.620102},
     {130.5106, 139.3165, 122.4403}},
    {512,
     680,
     US_PAD_REFLECT,
     64,
     45,
     256,
     320,
     {508721, 512773.048999, 511877.126751, 511986.593369, 511927.483490},
     {119.2399, 116.3834, 133.5584}},
    {256,
     256,
     US_PAD_ZERO,
     16,
     0,
     -24,
     -24,
     {199611, 161761.336280, 144365.501862, 127910.416733, 31981.215080},
     {0, 0, 0}},
    {256,
     256,
     US_PAD_ZERO,
     16,
     133,
     104,
     56,
     {508993, 511972.027042, 418291.455738, 127910.416733, 31981.215080},
     {0, 126.5226, 0}},
};

static void patches_match_the_printed_sums_and_pixels(void **state)
{
    for (size_t k = 0; k < US_COUNT(patch_vectors); k++) {
        const struct patch_vector *v = &patch_vectors[k];
        int64_t cols = v->w / v->grid, inner = (PATCH - v->grid) / 2;
        assert_int_equal(v->idx / cols * v->grid - inner, v->h0);
        assert_int_equal(v->idx % cols * v->grid - inner, v->w0);
        float *f = spec_frame(v->h, v->w), patch[PATCH * PATCH];
        struct us_pyramid p = build(f, v->h, v->w, 5);
        for (int s = 0; s < 5; s++) {
            us_patch_extract(&p, s, v->h0, v->w0, PATCH, v->pad, 0, 1, patch);
            double sum = 0;
            for (int i = 0; i < PATCH * PATCH; i++)
                sum += patch[i];
            assert_close(sum, v->sum[s], 4e-6); /* half a unit in the last place of one pixel */
        }
        assert_close(patch[0], v->pixel[0], 6e-5);
        assert_close(patch[31 * PATCH + 40], v->pixel[1], 6e-5);
        assert_close(patch[63 * PATCH + 63], v->pixel[2], 6e-5);
        us_pyramid_release(&p);
        free(f);
    }
}

static void reflection_of_four_pixels_by_ten_is_periodic(void **state)
{
    static const int expected[24] = {2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1,
                                     2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1};
    for (int i = 0; i < 24; i++)
        assert_int_equal(us_reflect_index(i - 10, 4), expected[i]);
    for (int i = -9; i < 9; i++)
        assert_int_equal(us_reflect_index(i, 1), 0);
    for (int i = -9; i < 9; i++)
        assert_int_equal(us_reflect_index(i, 2), i & 1);
    assert_int_equal(us_reflect_index(INT64_MAX - 1, 3), 2);
}

/* 13.6 pixel by pixel, with an index for each: what the copying in us_patch_extract must equal. */
static float pixel_by_definition(const struct us_pyramid *p, int s, int64_t at[2], int32_t size,
                                 enum us_pad_mode pad, int64_t i, int64_t j)
{
    int64_t n[2] = {p->h[s], p->w[s]}, pos[2] = {i, j}, index[2];
    for (int axis = 0; axis < 2; axis++) {
        int64_t start = (int64_t)floor((double)(at[axis] + size / 2) / (double)(1 << s)) - size / 2;
        int64_t lo = start > 0 ? start : 0;
        int64_t hi = start + size < n[axis] ? start + size : n[axis];
        int64_t before = start < 0 ? -start : 0;
        bool inside = pos[axis] >= before && pos[axis] < before + hi - lo;
        if (pad == US_PAD_ZERO && !inside)
            return 0;
        index[axis] = hi <= lo ? (start < 0 ? 0 : n[axis] - 1)
                               : lo + us_reflect_index(pos[axis] - before, hi - lo);
    }
    return p->data[s][index[0] * n[1] + index[1]];
}

static void check_patch(const struct us_pyramid *p, int s, int64_t h0, int64_t w0, int32_t size,
                        enum us_pad_mode pad)
{
    float *out = new_floats((int64_t)size * size + 2);
    out[0] = out[(int64_t)size * size + 1] = 12345;
    us_patch_extract(p, s, h0, w0, size, pad, 3.5F, 7.25F, out + 1);
    for (int64_t i = 0; i < size; i++) {
        for (int64_t j = 0; j < size; j++) {
            float raw = pixel_by_definition(p, s, (int64_t[2]){h0, w0}, size, pad, i, j);
            float expected = (raw - 3.5F) / 7.25F;
            if (out[1 + i * size + j] != expected)
                fail_msg("scale %d, origin %lld %lld, size %d, pixel %lld %lld: %g, expected %g", s,
                         (long long)h0, (long long)w0, size, (long long)i, (long long)j,
                         (double)out[1 + i * size + j], (double)expected);
        }
    }
    assert_true(out[0] == 12345 && out[(int64_t)size * size + 1] == 12345);
    free(out);
}

/* Frames far smaller than the patch, origins from entirely before to entirely behind the frame. */
static void patch_of_a_tiny_frame_follows_the_definition_everywhere(void **state)
{
    static const int64_t origins[] = {-200, -70, -64, -63, -33, -24, -1, 0, 1, 3, 5, 40, 200};
    static const int32_t sizes[] = {1, 2, 7, 64};
    for (int64_t h = 1; h <= 5; h++) {
        for (int64_t w = 1; w <= 5; w++) {
            float *f = spec_frame(h, w);
            struct us_pyramid p = build(f, h, w, 3);
            for (size_t a = 0; a < US_COUNT(origins); a++) {
                for (size_t k = 0; k < US_COUNT(sizes); k++) {
                    int64_t other = origins[(a * 5 + 3) % US_COUNT(origins)];
                    check_patch(&p, (int)(a % 3), origins[a], other, sizes[k], US_PAD_REFLECT);
                    check_patch(&p, (int)(a % 3), origins[a], other, sizes[k], US_PAD_ZERO);
                }
            }
            us_pyramid_release(&p);
            free(f);
        }
    }
}

static void patches_of_a_frame_smaller_than_a_patch_follow_the_definition(void **state)
{
    float *f = spec_frame(37, 41);
    struct us_pyramid p = build(f, 37, 41, 5);
    for (int64_t h0 = -24; h0 < 37; h0 += 13)
        for (int64_t w0 = -24; w0 < 41; w0 += 16)
            for (int s = 0; s < 5; s++) {
                check_patch(&p, s, h0, w0, PATCH, US_PAD_REFLECT);
                check_patch(&p, s, h0, w0, PATCH, US_PAD_ZERO);
                check_patch(&p, s, h0, w0, 33, US_PAD_REFLECT);
            }
    us_pyramid_release(&p);
    free(f);
}

/* 13.6: with h0 = -24 at scale 4 the crop is 32 rows and the outermost row is row 30 of the crop,
 * reflected twice, not row 32 of the frame. */
static void padding_reflects_inside_the_crop_not_the_frame(void **state)
{
    float *f = new_floats(1024 * 16);
    struct us_pyramid p = build(f, 1024, 16, 5);
    assert_int_equal(p.h[4], 64);
    for (int64_t r = 0; r < 64; r++)
        p.data[4][r] = (float)r;
    float patch[PATCH * PATCH];
    us_patch_extract(&p, 4, -24, 0, PATCH, US_PAD_REFLECT, 0, 1, patch);
    assert_true(patch[0] == 30 && patch[PATCH] == 31 && patch[2 * PATCH] == 30);
    assert_true(patch[31 * PATCH] == 1 && patch[32 * PATCH] == 0 && patch[63 * PATCH] == 31);
    us_pyramid_release(&p);
    free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resize_matches_the_printed_tables),
        cmocka_unit_test(resize_of_every_small_size_follows_the_definition),
        cmocka_unit_test(resize_of_a_constant_frame_keeps_every_bit),
        cmocka_unit_test(pyramid_of_an_odd_frame_has_floored_sides_down_to_one),
        cmocka_unit_test(clip_replaces_and_counts_only_values_above),
        cmocka_unit_test(build_of_an_impossible_frame_is_refused),
        cmocka_unit_test(patches_match_the_printed_sums_and_pixels),
        cmocka_unit_test(reflection_of_four_pixels_by_ten_is_periodic),
        cmocka_unit_test(patch_of_a_tiny_frame_follows_the_definition_everywhere),
        cmocka_unit_test(patches_of_a_frame_smaller_than_a_patch_follow_the_definition),
        cmocka_unit_test(padding_reflects_inside_the_crop_not_the_frame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
