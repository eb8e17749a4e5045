/*
 * Tiled prediction by the CUDA backend on the host: its patches are us_patch_extract's to the last
 * bit, its frames those of `ref` but for the order of sums, and no batch shows in them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "us_cuda.h"
#include "us_frame_ops.h"
#include "us_predict.h"
#include "us_pyramid.h"
#include "us_queue_backend.h"
#include "us_tiny.h"

static struct us_backend *cuda, *ref;

static int open_both(void **state)
{
    return us_cuda_serial_open(&cuda, NULL) == US_OK && us_ref_open(&ref, NULL) == US_OK ? 0 : -1;
}

static int close_both(void **state)
{
    us_backend_ops(cuda)->free(cuda);
    us_backend_ops(ref)->free(ref);
    return 0;
}

/* ---- patches ------------------------------------------------------------------------------- */

struct cut {
    int64_t h, w, y0, x0, cols, first;
    int32_t n, batch, grid, margin, size;
};

static void assert_cut(const struct cut *c, enum us_pad_mode pad)
{
    enum { SCALES = 4 };
    struct us_pyramid p = {0};
    float *in = us_tiny_frame(c->h, c->w);
    assert_int_equal(us_pyramid_build(in, c->h, c->w, SCALES, 150.0, &p, NULL), US_OK);
    const size_t pixels = (size_t)c->size * (size_t)c->size;
    float *want = calloc(pixels, sizeof(float)), *all[SCALES];
    struct us_frame_gather a = {
        .tiles = {c->y0, c->x0, c->cols, c->first, c->n, c->batch, c->grid},
        .size = c->size,
        .margin = c->margin,
        .zero_pad = pad == US_PAD_ZERO,
        .mean = 113.7F,
        .std = 17.3F,
        .n_scales = SCALES,
    };
    for (int32_t s = 0; s < SCALES; s++) {
        assert_int_equal(
            posix_memalign((void **)&all[s], 64, (size_t)c->batch * pixels * sizeof(float) + 4), 0);
        a.scale[s].frame = p.data[s];
        a.scale[s].h = p.h[s];
        a.scale[s].w = p.w[s];
        a.scale[s].patches = s == 2 ? NULL : all[s]; /* nobody wants scale 2 */
        all[s][(size_t)c->batch * pixels] = 77.0F;
    }
    assert_int_equal(us_backend_ops(cuda)->frame->gather(cuda, &a), US_OK);
    for (int32_t s = 0; s < SCALES; s++) {
        assert_true(all[s][(size_t)c->batch * pixels] == 77.0F);
        for (int32_t i = 0; i < c->batch && s != 2; i++) {
            int64_t tile = c->first + (i < c->n ? i : c->n - 1);
            us_patch_extract(&p, s, c->y0 + tile / c->cols * c->grid - c->margin,
                             c->x0 + tile % c->cols * c->grid - c->margin, c->size, pad, a.mean,
                             a.std, want);
            assert_memory_equal(all[s] + (size_t)i * pixels, want, pixels * sizeof(float));
        }
        free(all[s]);
    }
    free(want);
    free(in);
    us_pyramid_release(&p);
}

static void patches_are_those_of_the_host_to_the_last_bit(void **state)
{
    static const struct cut cuts[] = {
        {.h = 67, .w = 91, .cols = 6, .n = 24, .batch = 24, .grid = 16, .margin = 24, .size = 64},
        {.h = 67,
         .w = 91,
         .cols = 6,
         .first = 20,
         .n = 4,
         .batch = 9,
         .grid = 16,
         .margin = 24,
         .size = 64},
        {.h = 33,
         .w = 20,
         .y0 = -11,
         .x0 = -3,
         .cols = 2,
         .n = 6,
         .batch = 6,
         .grid = 16,
         .margin = 8,
         .size = 32},
        {.h = 1, .w = 130, .cols = 4, .n = 4, .batch = 5, .grid = 40, .margin = 12, .size = 64},
        {.h = 1, .w = 1, .cols = 1, .n = 1, .batch = 2, .grid = 16, .margin = 24, .size = 64},
        {.h = 3,
         .w = 2,
         .y0 = -9,
         .cols = 1,
         .n = 1,
         .batch = 1,
         .grid = 10,
         .margin = 2,
         .size = 14}, /* no multiple of four */
        {.h = 40, .w = 9, .cols = 1, .n = 3, .batch = 3, .grid = 15, .margin = 3, .size = 21},
    };
    for (size_t i = 0; i < US_COUNT(cuts); i++) {
        assert_cut(&cuts[i], US_PAD_REFLECT);
        assert_cut(&cuts[i], US_PAD_ZERO);
    }
}

static void scales_are_those_of_the_host_to_the_last_bit(void **state)
{
    static const int64_t sides[] = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 26, 31, 64, 77};
    const int64_t n = US_COUNT(sides);
    for (int64_t i = 0; i < n * n; i++) {
        const int64_t h = sides[i / n], w = sides[i % n];
        struct us_pyramid p = {0};
        float *in = us_tiny_frame(h, w);
        assert_int_equal(us_pyramid_build(in, h, w, 2, INFINITY, &p, NULL), US_OK);
        float *out = calloc((size_t)(p.h[1] * p.w[1]) + 1, sizeof(*out));
        out[p.h[1] * p.w[1]] = 77.0F;
        const struct us_frame_halve a = {in, out, us_halving_of(h), us_halving_of(w)};
        assert_int_equal(us_backend_ops(cuda)->frame->halve(cuda, &a), US_OK);
        assert_memory_equal(out, p.data[1], (size_t)(p.h[1] * p.w[1]) * sizeof(*out));
        assert_true(out[p.h[1] * p.w[1]] == 77.0F);
        free(out);
        free(in);
        us_pyramid_release(&p);
    }
}

/* ---- moments ------------------------------------------------------------------------------- */

enum {
    GRID = 10,
    CHANNELS = 3,
    BATCH = 7,
    COUNT = BATCH * GRID * GRID * CHANNELS,
    PIXELS = 33 * 21
};

struct planes {
    double mean[COUNT], m2[COUNT];
    float mean_plane[CHANNELS * PIXELS], m2_plane[CHANNELS * PIXELS];
};

static float number(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / (float)(1 << 22) - 1.5F;
}

/* Two passes on grids of their own, of `samples` and one more sample. */
static void fold(struct us_backend *be, struct planes *r, int32_t samples, bool std)
{
    const struct us_frame_ops *ops = us_backend_ops(be)->frame;
    static float out[COUNT];
    uint32_t seed = 5;
    memset(r, 0xa5, sizeof(*r));
    us_backend_ops(be)->hold(be);
    for (int32_t pass = 0; pass < 2; pass++) {
        const int64_t y0 = pass * -4, x0 = pass * -7, cols = pass == 0 ? 3 : 4;
        const int32_t n_tiles = pass == 0 ? 12 : 16, n = pass == 0 ? samples : 1;
        for (int64_t first = 0; first < n_tiles; first += BATCH) {
            const int32_t left = n_tiles - (int32_t)first;
            struct us_frame_merge m = {
                .tiles = {y0, x0, cols, first, left < BATCH ? left : BATCH, BATCH, GRID},
                .mean = r->mean,
                .m2 = std ? r->m2 : NULL,
                .channels = CHANNELS,
                .h = 33,
                .w = 21,
                .mean_plane = r->mean_plane,
                .m2_plane = std ? r->m2_plane : NULL,
                .before = pass * samples,
                .n = n,
                .last = pass == 1,
                .scale = {1.5, 1000.0, 1e-3},
                .shift = {7.0, -3.0, 0.0},
            };
            for (int32_t s = 0; s < n; s++) {
                for (int32_t i = 0; i < COUNT; i++)
                    out[i] = number(&seed);
                const struct us_frame_add a = {out, r->mean, std ? r->m2 : NULL, COUNT, s};
                assert_int_equal(ops->add(be, &a), US_OK);
                assert_int_equal(us_backend_ops(be)->sync(be), US_OK);
            }
            assert_int_equal(ops->merge(be, &m), US_OK);
            assert_int_equal(us_backend_ops(be)->sync(be), US_OK);
        }
    }
    us_backend_ops(be)->let_go(be);
}

static void moments_and_planes_are_the_plain_loops_to_the_last_bit(void **state)
{
    static struct planes want, got;
    struct us_backend *queue = us_queue_open();
    for (int32_t samples = 1; samples < 5; samples++) {
        for (int std = 0; std < 2; std++) {
            fold(queue, &want, samples, std != 0);
            fold(cuda, &got, samples, std != 0);
            assert_memory_equal(&got, &want, sizeof(got));
        }
    }
    for (int32_t i = 0; i < CHANNELS * PIXELS; i++)
        assert_true(isfinite(got.mean_plane[i]) && got.m2_plane[i] > 0.0F);
    us_backend_ops(queue)->free(queue);
}

/* ---- frames -------------------------------------------------------------------------------- */

struct result {
    int64_t h, w;
    float *mean, *std;
};

static void release(struct result *r)
{
    free(r->mean);
    free(r->std);
}

static struct result predict(const struct us_model *m, struct us_backend *be,
                             const struct us_predict_config *cfg, int64_t h, int64_t w)
{
    struct us_err err = {0};
    struct us_predictor *p = NULL;
    struct result r = {.h = h, .w = w};
    r.mean = calloc((size_t)(2 * h * w), sizeof(float));
    r.std = calloc((size_t)(2 * h * w), sizeof(float));
    for (int64_t i = 0; i < 2 * h * w; i++)
        r.mean[i] = r.std[i] = NAN;
    float *in = us_tiny_frame(h, w);
    struct us_predict_frame f = {.in = in, .h = h, .w = w, .mean = r.mean, .std = r.std};
    if (us_predictor_new(m, be, cfg, &p, &err) != US_OK || us_predict_run(p, &f, &err) != US_OK)
        fail_msg("%s", err.msg);
    us_predictor_free(p);
    free(in);
    return r;
}

/* `ref` adds in double, the backend in float: the deepest of the networks below is 2e-6 away. */
#define TOLERANCE 5e-6

static void assert_near(const struct us_model *m, const struct result *a, const struct result *b)
{
    double worst = 0.0;
    for (int64_t i = 0; i < 2 * a->h * a->w; i++) {
        const int64_t c = i / (a->h * a->w);
        const double unit = m->data.target_std[c];
        double d = fabs((double)a->mean[i] - (double)b->mean[i]) / (unit + m->data.target_mean[c]);
        double s = fabs((double)a->std[i] - (double)b->std[i]) / unit;
        assert_true(isfinite(d) && isfinite(s));
        worst = fmax(worst, fmax(d, s));
    }
    print_message("farthest from ref: %.1e\n", worst);
    assert_true(worst <= TOLERANCE);
}

static void assert_same(const struct result *a, const struct result *b)
{
    size_t bytes = (size_t)(2 * a->h * a->w) * sizeof(float);
    assert_memory_equal(a->mean, b->mean, bytes);
    assert_memory_equal(a->std, b->std, bytes);
}

static void frames_are_those_of_ref_at_any_batch(void **state)
{
    static const struct {
        const char *variant;
        enum us_pad_mode pad;
        enum us_tiling tiling;
        enum us_grid grid;
        enum us_noise_key noise;
        int32_t padding, samples;
        int64_t h, w;
    } cases[] = {
        {.variant = "lean", .padding = 24, .samples = 1, .h = 51, .w = 67},
        {.variant = "regular",
         .padding = 16,
         .samples = 2,
         .h = 70,
         .w = 33,
         .noise = US_NOISE_IMAGE},
        {.variant = "deep", .pad = US_PAD_ZERO, .padding = 0, .samples = 2, .h = 65, .w = 1},
        {.variant = "vanilla",
         .padding = 8,
         .samples = 3,
         .grid = US_GRID_SHIFTED,
         .h = 60,
         .w = 50},
        {.variant = "lean",
         .padding = 8,
         .tiling = US_TILING_OUTER,
         .samples = 2,
         .h = 100,
         .w = 70},
    };
    static const int32_t batches[] = {1, 3, 32};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_model *m = us_tiny_model(cases[i].variant, 4, 1);
        m->data.context_padding = cases[i].pad;
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.precision = US_PREC_F32;
        cfg.tiling = cases[i].tiling;
        cfg.grid = cases[i].grid;
        cfg.noise = cases[i].noise;
        cfg.padding = cases[i].padding;
        cfg.samples = cases[i].samples;
        cfg.want_std = true;
        cfg.seed = 11;
        cfg.threads = 2;
        struct result want = predict(m, ref, &cfg, cases[i].h, cases[i].w), first = {0};
        for (size_t k = 0; k < (i == 0 ? US_COUNT(batches) : 2); k++) {
            cfg.batch = batches[k];
            struct result r = predict(m, cuda, &cfg, cases[i].h, cases[i].w);
            assert_near(m, &r, &want);
            if (k > 0)
                assert_same(&r, &first);
            else
                first = r;
            if (k > 0)
                release(&r);
        }
        release(&first);
        release(&want);
        us_model_free(m);
    }
}

static void bf16_frames_are_the_same_at_any_batch(void **state)
{
    struct us_model *m = us_tiny_model("lean", 8, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 2;
    cfg.want_std = true;
    cfg.batch = 1;
    struct result one = predict(m, cuda, &cfg, 40, 50);
    cfg.batch = 5;
    struct result five = predict(m, cuda, &cfg, 40, 50);
    cfg.precision = US_PREC_F32;
    struct result f32 = predict(m, cuda, &cfg, 40, 50);
    assert_same(&one, &five);
    assert_memory_not_equal(one.mean, f32.mean, (size_t)40 * 50 * sizeof(float));
    release(&one);
    release(&five);
    release(&f32);
    us_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_are_those_of_the_host_to_the_last_bit),
        cmocka_unit_test(patches_are_those_of_the_host_to_the_last_bit),
        cmocka_unit_test(moments_and_planes_are_the_plain_loops_to_the_last_bit),
        cmocka_unit_test(frames_are_those_of_ref_at_any_batch),
        cmocka_unit_test(bf16_frames_are_the_same_at_any_batch),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
