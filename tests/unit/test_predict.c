/*
 * The tiled predictor on tiny networks and the `ref` backend: coverage, determinism, moments,
 * refusals. Equality is bit for bit. Shifted grids: test_predict_grid.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_model.h"
#include "us_plan.h"
#include "us_predict.h"
#include "us_pyramid.h"
#include "us_tiny.h"

#define PATCH US_TINY_PATCH

static struct us_backend *be;

static int open_ref(void **state)
{
    return us_ref_open(&be, NULL) == US_OK ? 0 : -1;
}

static int close_ref(void **state)
{
    us_backend_ops(be)->free(be);
    return 0;
}

struct result {
    int64_t h, w;
    float *mean, *std;
};

static struct us_predictor *predictor(const struct us_model *m, const struct us_predict_config *cfg)
{
    struct us_err err = {0};
    struct us_predictor *p = NULL;
    if (us_predictor_new(m, be, cfg, &p, &err) != US_OK)
        fail_msg("%s", err.msg);
    return p;
}

/* seed NULL: the configuration's. */
static struct result predict_seeded(struct us_predictor *p, int64_t h, int64_t w,
                                    const uint64_t *seed)
{
    struct us_err err = {0};
    struct result r = {.h = h, .w = w};
    size_t n = (size_t)(2 * h * w);
    r.mean = malloc(n * sizeof(float));
    r.std = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        r.mean[i] = r.std[i] = NAN;
    float *in = us_tiny_frame(h, w);
    struct us_predict_frame f = {
        .in = in, .h = h, .w = w, .mean = r.mean, .std = r.std, .seed = seed};
    if (us_predict_run(p, &f, &err) != US_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < n; i++)
        assert_true(isfinite(r.mean[i]) && isfinite(r.std[i]));
    free(in);
    return r;
}

static struct result predict_once(struct us_predictor *p, int64_t h, int64_t w)
{
    return predict_seeded(p, h, w, NULL);
}

static struct result predict(const struct us_model *m, const struct us_predict_config *cfg,
                             int64_t h, int64_t w)
{
    struct us_predictor *p = predictor(m, cfg);
    struct result r = predict_once(p, h, w);
    us_predictor_free(p);
    return r;
}

static void release(struct result *r)
{
    free(r->mean);
    free(r->std);
}

static void assert_same(const struct result *a, const struct result *b)
{
    size_t bytes = (size_t)(2 * a->h * a->w) * sizeof(float);
    assert_memory_equal(a->mean, b->mean, bytes);
    assert_memory_equal(a->std, b->std, bytes);
}

static void every_pixel_of_any_size_is_predicted(void **state)
{
    static const struct {
        const char *variant;
        int64_t h, w;
    } cases[] = {{"lean", 101, 77},   {"regular", 37, 41}, {"deep", 65, 1},
                 {"vanilla", 1, 130}, {"regular", 64, 64}, {"deep", 3, 2}};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_model *m = us_tiny_model(cases[i].variant, 4, 1);
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.padding = 16;
        cfg.threads = 2;
        struct result r = predict(m, &cfg, cases[i].h, cases[i].w); /* checks for NAN left over */
        release(&r);
        us_model_free(m);
    }
}

static void bytes_do_not_depend_on_batch_threads_or_region(void **state)
{
    static const struct {
        int32_t batch, threads;
        bool whole;
    } ways[] = {{1, 1, false}, {7, 1, false}, {32, 2, false}, {1, 2, false}, {3, 3, true}};
    struct us_model *m = us_tiny_model("regular", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 2;
    cfg.seed = 42;
    struct result first = {0};
    for (size_t i = 0; i < US_COUNT(ways); i++) {
        cfg.batch = ways[i].batch;
        cfg.threads = ways[i].threads;
        cfg.whole_maps = ways[i].whole;
        struct result r = predict(m, &cfg, 83, 70);
        if (i == 0) {
            first = r;
            continue;
        }
        assert_same(&r, &first);
        release(&r);
    }
    release(&first);
    us_model_free(m);
}

/* On `cpu`, which may sum in another order on another region; test_plan.c does it with the widths
 * of the published networks. */
static void regions_do_not_show_in_frames_of_odd_sizes(void **state)
{
    static const struct {
        int64_t h, w;
        int32_t padding;
    } cases[] = {{131, 67, 0}, {1, 97, 8}, {77, 33, 16}, {45, 51, 24}, {19, 23, 28}};
    static const char *const variants[] = {"vanilla", "lean", "regular", "deep"};
    struct us_backend *ref = be;
    assert_int_equal(us_cpu_open(&be, NULL), US_OK);
    for (size_t k = 0; k < US_COUNT(cases) * US_COUNT(variants); k++) {
        int64_t h = cases[k / US_COUNT(variants)].h, w = cases[k / US_COUNT(variants)].w;
        struct us_model *m = us_tiny_model(variants[k % US_COUNT(variants)], 4, 1);
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.precision = US_PREC_F32;
        cfg.padding = cases[k / US_COUNT(variants)].padding;
        cfg.samples = 2;
        struct result region = predict(m, &cfg, h, w);
        cfg.whole_maps = true;
        struct result whole = predict(m, &cfg, h, w);
        for (int64_t i = 0; i < 2 * h * w; i++) {
            const double unit = m->data.target_std[i / (h * w)];
            const double offset = m->data.target_mean[i / (h * w)];
            assert_true(fabs((double)region.mean[i] - (double)whole.mean[i]) <=
                        1e-6 * (unit + offset));
            assert_true(fabs((double)region.std[i] - (double)whole.std[i]) <= 1e-6 * unit);
        }
        release(&region);
        release(&whole);
        us_model_free(m);
    }
    us_backend_ops(be)->free(be);
    be = ref;
}

static void the_seed_and_the_frame_change_a_sample_but_not_the_mean(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    struct result a = predict(m, &cfg, 40, 40);
    cfg.seed = 1;
    struct result b = predict(m, &cfg, 40, 40);
    assert_memory_not_equal(a.mean, b.mean, 40 * 40 * sizeof(float));
    release(&a);
    release(&b);
    cfg.latent_mean = true;
    a = predict(m, &cfg, 40, 40);
    cfg.seed = 2;
    b = predict(m, &cfg, 40, 40);
    assert_same(&a, &b);
    release(&a);
    release(&b);
    us_model_free(m);
}

static void a_frame_given_another_seed_is_predicted_as_by_a_predictor_made_with_it(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    struct us_predictor *p = predictor(m, &cfg);
    struct result zero = predict_once(p, 40, 40);
    const uint64_t seed = (uint64_t)1 << 40;
    struct result given = predict_seeded(p, 40, 40, &seed);
    struct result back = predict_once(p, 40, 40);
    cfg.seed = (uint64_t)1 << 40;
    struct result made = predict(m, &cfg, 40, 40);
    assert_memory_not_equal(zero.mean, given.mean, 40 * 40 * sizeof(float));
    assert_same(&given, &made);
    assert_same(&back, &zero);
    release(&zero);
    release(&given);
    release(&back);
    release(&made);
    us_predictor_free(p);
    us_model_free(m);
}

/* Oracle: one-sample predictions with the plan, averaged by the textbook formula. */
struct other {
    struct us_predictor *p;
    struct result want;
    int passed_on;
    atomic_int asked;
};

/* Every eighth time, so that patches are predicted in between. */
static bool now_and_then(void *arg)
{
    return atomic_fetch_add(&((struct other *)arg)->asked, 1) % 8 == 7;
}

/* Somebody else's frame, on the same predictor. */
static void predict_another(void *arg)
{
    struct other *o = arg;
    o->passed_on++;
    struct result r = predict_once(o->p, o->want.h, o->want.w);
    assert_same(&r, &o->want);
    release(&r);
}

static void frames_that_take_turns_have_the_bytes_of_frames_alone(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 2;
    cfg.grid = US_GRID_SHIFTED;
    cfg.threads = 2;
    struct us_predictor *p = predictor(m, &cfg);
    struct other o = {.p = p, .want = predict_once(p, 9, 5)};
    struct result alone = predict_once(p, 50, 70);
    const struct us_predict_turns turns = {now_and_then, predict_another, &o};
    float *in = us_tiny_frame(50, 70);
    struct result r = {50, 70, calloc(2 * 50 * 70, sizeof(float)),
                       calloc(2 * 50 * 70, sizeof(float))};
    struct us_predict_frame f = {
        .in = in, .h = 50, .w = 70, .mean = r.mean, .std = r.std, .turns = &turns};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    assert_true(o.passed_on > 3);
    assert_same(&r, &alone);
    release(&r);
    release(&alone);
    release(&o.want);
    free(in);
    us_predictor_free(p);
    us_model_free(m);
}

static void mean_and_std_over_samples_are_the_textbook_s(void **state)
{
    enum { N = 5, SIDE = 30, PIXELS = 2 * SIDE * SIDE };
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.padding = 0;
    cfg.samples = N;
    struct result r = predict(m, &cfg, SIDE, SIDE);

    struct us_plan_config pc = {.dtype = US_F32, .batch = 1};
    struct us_plan *plan = NULL;
    struct us_exec *e = NULL;
    struct us_pyramid py = {0};
    float *in = us_tiny_frame(SIDE, SIDE);
    assert_int_equal(us_plan_build(m->net, m->weights, be, &pc, &plan, NULL), US_OK);
    assert_int_equal(us_exec_new(plan, &e, NULL), US_OK);
    assert_int_equal(us_pyramid_build(in, SIDE, SIDE, 1, INFINITY, &py, NULL), US_OK);
    static double sample[N][PIXELS];
    for (uint32_t s = 0; s < N; s++) {
        us_patch_extract(&py, 0, 0, 0, PATCH, m->data.context_padding, 100.0f, 30.0f,
                         us_exec_input(e, 0));
        *us_exec_noise(e) = (struct us_noise){.sample = s, .centre_y = 32, .centre_x = 32};
        assert_int_equal(us_exec_run(e), US_OK);
        for (int i = 0; i < PIXELS; i++) {
            int c = i / (SIDE * SIDE), y = i / SIDE % SIDE, x = i % SIDE;
            sample[s][i] = (double)us_exec_output(e)[(y * PATCH + x) * 2 + c];
        }
    }
    for (int i = 0; i < PIXELS; i++) {
        int c = i / (SIDE * SIDE);
        double mean = 0.0, var = 0.0;
        for (int s = 0; s < N; s++)
            mean += sample[s][i] / N;
        for (int s = 0; s < N; s++)
            var += (sample[s][i] - mean) * (sample[s][i] - mean) / (N - 1);
        double want = mean * m->data.target_std[c] + m->data.target_mean[c];
        double want_std = sqrt(var) * m->data.target_std[c];
        assert_true(fabs((double)r.mean[i] - want) <= 1e-5 * (fabs(want) + m->data.target_std[c]));
        assert_true(fabs((double)r.std[i] - want_std) <= 1e-5 * (want_std + 1e-3));
    }
    us_pyramid_release(&py);
    us_exec_free(e);
    us_plan_free(plan);
    free(in);
    release(&r);
    us_model_free(m);
}

static void one_sample_has_no_spread(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    struct result r = predict(m, &cfg, 33, 20);
    for (int i = 0; i < 2 * 33 * 20; i++)
        assert_true(r.std[i] == 0.0f);
    release(&r);
    us_model_free(m);
}

static void outer_padding_of_nothing_is_inner_padding_of_nothing(void **state)
{
    struct us_model *m = us_tiny_model("regular", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.padding = 0;
    struct result a = predict(m, &cfg, 70, 90);
    cfg.tiling = US_TILING_OUTER;
    struct result b = predict(m, &cfg, 70, 90);
    assert_same(&a, &b);
    release(&b);
    cfg.padding = 8; /* a larger patch: other numbers, every pixel there */
    b = predict(m, &cfg, 70, 90);
    assert_memory_not_equal(a.mean, b.mean, 70 * 90 * sizeof(float));
    release(&a);
    release(&b);
    us_model_free(m);
}

/* With noise keyed by position in the image, shifting the grid by a whole tile leaves the noise of
 * a pixel where it was; keyed by patch it does not. Seen through the latent hook's absence: a frame
 * and the same frame cropped by one tile give the same interior. */
static void image_keyed_noise_follows_the_image_not_the_patch_number(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.padding = 24;
    cfg.noise = US_NOISE_IMAGE;
    struct result narrow = predict(m, &cfg, 16, 64), wide = predict(m, &cfg, 16, 64);
    assert_same(&narrow, &wide);
    release(&narrow);
    release(&wide);
    /* A constant image: patches see the same pixels, so only the noise differs between tiles. */
    struct us_predictor *p = NULL;
    assert_int_equal(us_predictor_new(m, be, &cfg, &p, NULL), US_OK);
    enum { S = 128 };
    static float in[S * S], mean[2 * S * S];
    for (int i = 0; i < S * S; i++)
        in[i] = 120.0f;
    struct us_predict_frame f = {.in = in, .h = S, .w = S, .mean = mean};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    double seam = 0.0, inside = 0.0;
    for (int y = 0; y < S; y++) {
        for (int x = 1; x < S; x++) {
            double d = fabs((double)mean[y * S + x] - (double)mean[y * S + x - 1]);
            *(x % 16 == 0 ? &seam : &inside) += d / (x % 16 == 0 ? 7.0 : 120.0);
        }
    }
    print_message("image-keyed noise: step across seams %.3f of the step elsewhere\n",
                  seam / inside);
    assert_true(seam < 1.15 * inside);
    us_predictor_free(p);
    us_model_free(m);
}

static void bad_pixels_are_refused_with_their_position(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    struct us_predictor *p = NULL;
    assert_int_equal(us_predictor_new(m, be, &cfg, &p, NULL), US_OK);
    float in[20 * 30], mean[2 * 20 * 30];
    for (int i = 0; i < 600; i++)
        in[i] = 1.0f;
    struct us_predict_frame f = {.in = in, .h = 20, .w = 30, .mean = mean};
    struct us_err err = {0};
    in[7 * 30 + 19] = NAN;
    assert_int_equal(us_predict_run(p, &f, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "row 7, column 19 is NaN"));
    in[7 * 30 + 19] = INFINITY;
    assert_int_equal(us_predict_run(p, &f, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "infinite"));
    in[7 * 30 + 19] = 1.0f; /* and the next frame works */
    assert_int_equal(us_predict_run(p, &f, &err), US_OK);
    us_predictor_free(p);
    us_model_free(m);
}

static void a_cancelled_prediction_stops_and_the_next_works(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = us_predict_defaults(m);
    struct us_predictor *p = NULL;
    assert_int_equal(us_predictor_new(m, be, &cfg, &p, NULL), US_OK);
    float *in = us_tiny_frame(64, 64), *mean = malloc(2 * 64 * 64 * sizeof(float));
    atomic_bool cancel = true;
    struct us_predict_frame f = {.in = in, .h = 64, .w = 64, .mean = mean, .cancel = &cancel};
    assert_int_equal(us_predict_run(p, &f, NULL), US_E_CANCELLED);
    cancel = false;
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    free(in);
    free(mean);
    us_predictor_free(p);
    us_model_free(m);
}

static void settings_that_do_not_fit_are_refused_by_name(void **state)
{
    static const struct {
        enum us_tiling tiling;
        int32_t padding, samples, threads;
        const char *reason;
    } cases[] = {
        {US_TILING_INNER, 32, 1, 1, "inner padding is 32; expected 0 to 31"},
        {US_TILING_INNER, -1, 1, 1, "inner padding is -1"},
        {US_TILING_INNER, 24, 0, 1, "samples is 0"},
        {US_TILING_INNER, 24, 65536, 1, "samples is 65536"},
        {US_TILING_INNER, 24, 1, 100000, "threads is 100000"},
        {US_TILING_OUTER, 5000, 1, 1, "outer padding is 5000"},
    };
    struct us_model *m = us_tiny_model("regular", 4, 1);
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.tiling = cases[i].tiling;
        cfg.padding = cases[i].padding;
        cfg.samples = cases[i].samples;
        cfg.threads = cases[i].threads;
        struct us_predictor *p = NULL;
        struct us_err err = {0};
        assert_int_equal(us_predictor_new(m, be, &cfg, &p, &err), US_E_ARG);
        assert_null(p);
        if (strstr(err.msg, cases[i].reason) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.msg, cases[i].reason);
    }
    us_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pixel_of_any_size_is_predicted),
        cmocka_unit_test(bytes_do_not_depend_on_batch_threads_or_region),
        cmocka_unit_test(regions_do_not_show_in_frames_of_odd_sizes),
        cmocka_unit_test(the_seed_and_the_frame_change_a_sample_but_not_the_mean),
        cmocka_unit_test(a_frame_given_another_seed_is_predicted_as_by_a_predictor_made_with_it),
        cmocka_unit_test(frames_that_take_turns_have_the_bytes_of_frames_alone),
        cmocka_unit_test(mean_and_std_over_samples_are_the_textbook_s),
        cmocka_unit_test(one_sample_has_no_spread),
        cmocka_unit_test(outer_padding_of_nothing_is_inner_padding_of_nothing),
        cmocka_unit_test(image_keyed_noise_follows_the_image_not_the_patch_number),
        cmocka_unit_test(bad_pixels_are_refused_with_their_position),
        cmocka_unit_test(a_cancelled_prediction_stops_and_the_next_works),
        cmocka_unit_test(settings_that_do_not_fit_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}
