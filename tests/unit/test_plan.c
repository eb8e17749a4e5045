/*
 * The inference plan on tiny networks: shrunken regions change no kept pixel, further samples
 * equal full runs, memory is shared by lifetime and untouched outside, nothing is allocated while
 * running. On `ref` equality is bit for bit; `cpu` may add in another order on another region.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_model.h"
#include "us_plan.h"
#include "us_tiny.h"
#include "us_vectors.h"

#define SIDE US_TINY_PATCH

static const char *const variants[] = {"vanilla", "lean", "regular", "deep"};
static const int32_t paddings[] = {0, 8, 16, 24, 28};

struct session {
    struct us_plan *plan;
    struct us_exec *exec;
};

static struct session start(const struct us_model *m, struct us_backend *be,
                            const struct us_plan_config *cfg)
{
    struct session s = {0};
    struct us_err err = {0};
    if (us_plan_build(m->net, m->weights, be, cfg, &s.plan, &err) != US_OK ||
        us_exec_new(s.plan, &s.exec, &err) != US_OK)
        fail_msg("%s", err.msg);
    for (int32_t i = 0; i < m->arch.lc_scales; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "input%d", i);
        us_vectors_normalised(name, us_exec_input(s.exec, i), (int64_t)cfg->batch * SIDE * SIDE);
    }
    for (int32_t b = 0; b < cfg->batch; b++)
        us_exec_noise(s.exec)[b] = (struct us_noise){.seed = 7, .patch = (uint32_t)(11 + b)};
    return s;
}

static void stop(struct session *s)
{
    us_exec_free(s->exec);
    us_plan_free(s->plan);
}

static struct us_backend *ref_backend(void)
{
    struct us_backend *be = NULL;
    assert_int_equal(us_ref_open(&be, NULL), US_OK);
    return be;
}

static void close_backend(struct us_backend *be)
{
    us_backend_ops(be)->free(be);
}

/* The largest difference of `kept` to that part of the whole output, over the largest output. */
static double largest_difference(const struct session *kept, const struct session *whole)
{
    struct us_rect r = us_plan_keep(kept->plan);
    int32_t c = us_plan_out_channels(kept->plan);
    const float *a = us_exec_output(kept->exec), *b = us_exec_output(whole->exec);
    double worst = 0.0, scale = 0.0;
    for (int32_t i = 0; i < SIDE * SIDE * c; i++)
        scale = fmax(scale, fabs((double)b[i]));
    for (int32_t y = 0; y < r.h; y++) {
        for (int32_t i = 0; i < r.w * c; i++) {
            double got = (double)a[y * r.w * c + i];
            double want = (double)b[((r.y0 + y) * SIDE + r.x0) * c + i];
            assert_true(isfinite(got));
            worst = fmax(worst, fabs(got - want));
        }
    }
    return worst / scale;
}

/* Every padding and alignment of one network against the same network computed whole. */
static void check_regions(const struct us_model *m, struct us_backend *be, enum us_dtype dtype,
                          double tolerance)
{
    static const int32_t aligns[] = {1, 2, 8};
    struct us_plan_config cfg = {.dtype = dtype, .batch = 1, .whole_maps = true};
    struct session whole = start(m, be, &cfg);
    double worst = 0.0;
    cfg.whole_maps = false;
    assert_int_equal(us_exec_run(whole.exec), US_OK);
    for (size_t a = 0; a < US_COUNT(aligns); a++) {
        double flops = us_plan_stats(whole.plan).flops;
        for (size_t p = 0; p < US_COUNT(paddings); p++) {
            int32_t pad = paddings[p], side = SIDE - 2 * pad;
            cfg.align = aligns[a];
            cfg.keep = (struct us_rect){pad, pad, side, side};
            struct session kept = start(m, be, &cfg);
            struct us_rect r = us_plan_keep(kept.plan);
            assert_memory_equal(&r, &cfg.keep, sizeof(r));
            assert_int_equal(us_exec_run(kept.exec), US_OK);
            worst = fmax(worst, largest_difference(&kept, &whole));
            double now = us_plan_stats(kept.plan).flops;
            assert_true(now <= flops); /* never more work for less output */
            flops = now;
            stop(&kept);
        }
    }
    print_message("%s, %d filters, %s: within %.1e\n", us_backend_ops(be)->name, m->arch.n_filters,
                  dtype == US_BF16 ? "bf16" : "f32", worst);
    assert_true(worst <= tolerance);
    stop(&whole);
}

static void shrunken_regions_change_no_kept_pixel(void **state)
{
    struct us_backend *be = ref_backend();
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        struct us_model *m = us_tiny_model(variants[v], 4, v == 2 ? 2 : 1);
        check_regions(m, be, US_F32, 0.0);
        us_model_free(m);
    }
    close_backend(be);
}

/* The widths of the published networks, where the vector code and oneDNN's blocking apply. */
static void shrunken_regions_hold_on_the_fast_backend(void **state)
{
    struct us_backend *be = NULL;
    assert_int_equal(us_cpu_open(&be, NULL), US_OK);
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        struct us_model *m = us_tiny_model(variants[v], 64, 1);
        check_regions(m, be, US_F32, 1e-6);
        if (us_backend_ops(be)->has_dtype(be, US_BF16)) /* a sum in another order may round apart */
            check_regions(m, be, US_BF16, 0.02);
        us_model_free(m);
    }
    close_backend(be);
}

/* Spec performance section 5: 26.0 GFLOP with the prior head, 22.4 without, 10.7 that can matter
 * for the whole patch, 7.5 for its centre; gates and merges counted as convolutions. */
static void regular_lc_needs_the_operations_that_were_counted(void **state)
{
    static const struct {
        bool whole;
        int32_t pad;
        double gflop;
    } cases[] = {{true, 0, 22.36}, {false, 0, 10.7}, {false, 24, 7.5}};
    struct us_backend *be = ref_backend();
    struct us_arch a = us_arch_default();
    struct us_model *m = NULL;
    assert_int_equal(us_model_new(&a, SIDE, 1, &m, NULL), US_OK);
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        int32_t side = SIDE - 2 * cases[i].pad;
        const struct us_plan_config cfg = {.dtype = US_F32,
                                           .batch = 1,
                                           .whole_maps = cases[i].whole,
                                           .keep = {cases[i].pad, cases[i].pad, side, side}};
        struct us_plan *plan = NULL;
        assert_int_equal(us_plan_build(m->net, m->weights, be, &cfg, &plan, NULL), US_OK);
        double gflop = us_plan_stats(plan).flops * 1e-9;
        print_message("pad %d%s: %.2f GFLOP\n", cases[i].pad, cases[i].whole ? " whole" : "",
                      gflop);
        /* Zero pads inside a merge are not multiplied: up to 1 % below the count. */
        assert_true(gflop < cases[i].gflop * 1.01 && gflop > cases[i].gflop * 0.94);
        us_plan_free(plan);
    }
    us_model_free(m);
    close_backend(be);
}

static void a_further_sample_equals_a_full_run(void **state)
{
    struct us_backend *be = ref_backend();
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        struct us_model *m = us_tiny_model(variants[v], 4, 1);
        struct us_plan_config cfg = {.dtype = US_F32, .batch = 1, .reuse_encoder = true};
        struct session reuse = start(m, be, &cfg);
        cfg.reuse_encoder = false;
        struct session full = start(m, be, &cfg);
        size_t bytes = SIDE * SIDE * 2 * sizeof(float);
        float *first = malloc(bytes);
        for (uint32_t sample = 0; sample < 3; sample++) {
            us_exec_noise(reuse.exec)->sample = us_exec_noise(full.exec)->sample = sample;
            assert_int_equal(us_exec_run(full.exec), US_OK);
            assert_int_equal(sample == 0 ? us_exec_run(reuse.exec) : us_exec_run_sample(reuse.exec),
                             US_OK);
            assert_memory_equal(us_exec_output(reuse.exec), us_exec_output(full.exec), bytes);
            if (sample == 0)
                memcpy(first, us_exec_output(full.exec), bytes);
            else
                assert_memory_not_equal(us_exec_output(full.exec), first, bytes);
        }
        free(first);
        stop(&reuse);
        stop(&full);
        us_model_free(m);
    }
    close_backend(be);
}

static void a_batch_of_three_equals_three_batches_of_one(void **state)
{
    struct us_backend *be = ref_backend();
    struct us_model *m = us_tiny_model("deep", 4, 1);
    struct us_plan_config cfg = {.dtype = US_F32, .batch = 3};
    struct session three = start(m, be, &cfg);
    cfg.batch = 1;
    struct session one = start(m, be, &cfg);
    assert_int_equal(us_exec_run(three.exec), US_OK);
    for (int32_t b = 0; b < 3; b++) {
        for (int32_t s = 0; s < m->arch.lc_scales; s++)
            memcpy(us_exec_input(one.exec, s), us_exec_input(three.exec, s) + b * SIDE * SIDE,
                   SIDE * SIDE * sizeof(float));
        *us_exec_noise(one.exec) = us_exec_noise(three.exec)[b];
        assert_int_equal(us_exec_run(one.exec), US_OK);
        assert_memory_equal(us_exec_output(one.exec),
                            us_exec_output(three.exec) + (size_t)b * SIDE * SIDE * 2,
                            SIDE * SIDE * 2 * sizeof(float));
    }
    stop(&three);
    stop(&one);
    us_model_free(m);
    close_backend(be);
}

static void maps_share_one_block_by_lifetime(void **state)
{
    struct us_backend *be = ref_backend();
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        struct us_model *m = us_tiny_model(variants[v], 4, 1);
        const struct us_plan_config cfg = {.dtype = US_F32, .batch = 1, .whole_maps = true};
        struct session s = start(m, be, &cfg);
        struct us_plan_stats st = us_plan_stats(s.plan);
        print_message("%s: block %zu of %zu bytes\n", variants[v], st.block_bytes, st.sum_bytes);
        assert_true(st.block_bytes * 4 < st.sum_bytes);
        stop(&s);
        us_model_free(m);
    }
    close_backend(be);
}

static void a_run_allocates_nothing(void **state)
{
    struct us_backend *be = ref_backend();
    struct us_model *m = us_tiny_model("regular", 4, 1);
    const struct us_plan_config cfg = {.dtype = US_F32, .batch = 1, .reuse_encoder = true};
    struct session s = start(m, be, &cfg);
    assert_int_equal(us_exec_run(s.exec), US_OK);
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(us_exec_run(s.exec), US_OK);
        assert_int_equal(us_exec_run_sample(s.exec), US_OK);
    }
    assert_int_equal(mallinfo2().uordblks, before);
    stop(&s);
    us_model_free(m);
    close_backend(be);
}

static void a_wrong_configuration_is_refused_with_the_reason(void **state)
{
    struct us_backend *be = ref_backend();
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    static const struct {
        struct us_plan_config cfg;
        enum us_status status;
        const char *reason;
    } cases[] = {
        {{.dtype = US_F32, .batch = 0}, US_E_ARG, "batch is 0"},
        {{.dtype = US_BF16, .batch = 1}, US_E_UNSUPPORTED, "ref has no bf16"},
        {{.dtype = US_F32, .batch = 1, .keep = {60, 0, 8, 8}}, US_E_ARG, "inside the 64x64"},
        {{.dtype = US_F32, .batch = 1, .align = -1}, US_E_ARG, "align is -1; expected 0 to 64"},
        {{.dtype = US_F32, .batch = 1, .align = 65}, US_E_ARG, "align is 65"},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_plan *plan = NULL;
        struct us_err err = {0};
        assert_int_equal(us_plan_build(m->net, m->weights, be, &cases[i].cfg, &plan, &err),
                         cases[i].status);
        assert_null(plan);
        if (strstr(err.msg, cases[i].reason) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.msg, cases[i].reason);
    }
    us_model_free(m);
    close_backend(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shrunken_regions_change_no_kept_pixel),
        cmocka_unit_test(shrunken_regions_hold_on_the_fast_backend),
        cmocka_unit_test(regular_lc_needs_the_operations_that_were_counted),
        cmocka_unit_test(a_further_sample_equals_a_full_run),
        cmocka_unit_test(a_batch_of_three_equals_three_batches_of_one),
        cmocka_unit_test(maps_share_one_block_by_lifetime),
        cmocka_unit_test(a_run_allocates_nothing),
        cmocka_unit_test(a_wrong_configuration_is_refused_with_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
