/*
 * Whole networks against the reference vectors of model-spec 20.2 (evaluation mode, head before
 * the log-variance clip), on every backend, precision and way of planning.
 *
 * Tolerances: f32 1e-5, Deep-LC 1e-4, relative to the larger of the value and the output's RMS
 * (spec 21). bf16 keeps 8 bits of mantissa through about 60 roundings in a row: the bound on the
 * relative RMS error over the output is BF16_BOUND, measured 0.8 to 1.7 % (Deep-LC most) and held
 * at 2.5 %.
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

#include "us_cuda.h"
#include "us_model.h"
#include "us_plan.h"
#include "us_vectors.h"

#define SIDE       64
#define BATCH      2
#define CHANNELS   4
#define N_OUT      (BATCH * SIDE * SIDE * CHANNELS)
#define BF16_BOUND 0.025

struct expected {
    const char *variant;
    bool eps;
    double tolerance, sum, l2;
    double pixel0[CHANNELS]; /* sample 0, row 31, column 17 */
    double pixel1[CHANNELS]; /* sample 1, row 5, column 60 */
};

static const struct expected table[] = {
    {"vanilla",
     false,
     1e-5,
     -1525.113,
     76.04172,
     {-0.4782864, 0.1721788, -0.8025948, -0.5125861},
     {-0.3311673, 0.2387771, -0.2239676, -0.2928431}},
    {"vanilla",
     true,
     1e-5,
     -1649.578,
     113.3671,
     {-0.7938089, 0.2193657, -0.7783945, -0.5806573},
     {0.2870507, 0.9761981, -0.8054208, -0.04008717}},
    {"lean",
     false,
     1e-5,
     -1357.552,
     74.57085,
     {0.4120183, -0.3882096, 0.1225288, -0.06860344},
     {-0.4712394, 0.1573933, -0.8728975, 0.1772784}},
    {"lean",
     true,
     1e-5,
     -1337.380,
     112.0086,
     {-0.02152076, 0.5185472, 0.5220140, 0.2099580},
     {0.08842521, 0.6866567, -1.545455, 0.2884396}},
    {"regular",
     false,
     1e-5,
     -1377.032,
     77.99949,
     {0.3414552, -0.3300453, 0.1418484, -0.08764319},
     {-0.4920668, 0.1951997, -0.7187102, -0.2211303}},
    {"regular",
     true,
     1e-5,
     -1441.943,
     116.4634,
     {-0.1983256, -0.6303652, -0.2010263, 0.4120343},
     {-0.7933746, 0.1903292, -0.8507257, 0.2684212}},
    {"deep",
     false,
     1e-4,
     -2043.037,
     184.6460,
     {0.1058512, -0.001947255, -0.1095885, -0.1564903},
     {1.892187, -0.8841755, -1.142020, 0.8273266}},
    {"deep",
     true,
     1e-4,
     -2585.101,
     224.3167,
     {-0.2305817, -0.2677148, -1.348505, 0.9588223},
     {1.310048, -1.049013, -2.204663, 0.9690041}},
};

/* How a case is run. */
struct route {
    struct us_backend *be;
    enum us_dtype dtype;
    bool hae;   /* the stochastic block without sampling, for eps = 0 */
    bool whole; /* compute whole maps */
    struct us_rect keep;
};

static struct us_model *model_for(const struct expected *x, bool hae)
{
    struct us_arch a = us_arch_default();
    struct us_err err = {0};
    struct us_model *m = NULL;
    assert_int_equal(us_arch_set_variant(&a, x->variant, &err), US_OK);
    a.stochastic = !hae;
    if (us_model_new(&a, SIDE, 1, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    us_vectors_fill_model(m);
    return m;
}

/* eps<i> of the spec is [2, Z, h, w]; the hook wants [h, w, Z] per item. */
static void fill_eps(const struct us_net *net, float *eps[BATCH][US_MAX_LEVELS])
{
    for (int32_t i = 0; i < net->n_nodes; i++) {
        const struct us_node *n = &net->nodes[i];
        if (n->op != US_N_LATENT)
            continue;
        const struct us_value *v = &net->values[n->out];
        int64_t plane = (int64_t)v->h * v->w, count = plane * v->c;
        char name[16];
        (void)snprintf(name, sizeof(name), "eps%d", n->level);
        float *nchw = malloc((size_t)(BATCH * count) * sizeof(float));
        us_vectors_normalised(name, nchw, BATCH * count);
        for (int32_t b = 0; b < BATCH; b++) {
            float *out = eps[b][n->level] = malloc((size_t)count * sizeof(float));
            for (int64_t c = 0; c < v->c; c++) {
                for (int64_t p = 0; p < plane; p++)
                    out[p * v->c + c] = nchw[b * count + c * plane + p];
            }
        }
        free(nchw);
    }
}

static void fill_inputs(struct us_exec *e, int32_t scales)
{
    int64_t plane = SIDE * SIDE;
    float *all = malloc((size_t)(BATCH * scales * plane) * sizeof(float));
    us_vectors_normalised("input", all, BATCH * scales * plane);
    for (int32_t b = 0; b < BATCH; b++) {
        for (int32_t s = 0; s < scales; s++)
            memcpy(us_exec_input(e, s) + b * plane, all + (b * scales + s) * plane,
                   (size_t)plane * sizeof(float));
    }
    free(all);
}

/* Head output [2, 64, 64, 4] of one case by one route, or what of it the route keeps. */
static float *run(const struct expected *x, const struct route *r)
{
    struct us_err err = {0};
    struct us_model *m = model_for(x, r->hae);
    const struct us_plan_config cfg = {.dtype = r->dtype,
                                       .batch = BATCH,
                                       .latent_mean = !x->eps,
                                       .keep_logvar = true,
                                       .keep = r->keep,
                                       .whole_maps = r->whole};
    struct us_plan *plan = NULL;
    struct us_exec *e = NULL;
    if (us_plan_build(m->net, m->weights, r->be, &cfg, &plan, &err) != US_OK ||
        us_exec_new(plan, &e, &err) != US_OK)
        fail_msg("%s: %s", x->variant, err.msg);
    float *eps[BATCH][US_MAX_LEVELS] = {{0}};
    fill_eps(m->net, eps);
    fill_inputs(e, m->arch.lc_scales);
    for (int32_t b = 0; b < BATCH; b++)
        us_exec_noise(e)[b].eps = (const float *const *)eps[b];
    assert_int_equal(us_exec_run(e), US_OK);
    struct us_rect kept = us_plan_keep(plan);
    size_t bytes = (size_t)(BATCH * kept.h * kept.w * CHANNELS) * sizeof(float);
    float *out = malloc(bytes);
    memcpy(out, us_exec_output(e), bytes);
    for (int32_t b = 0; b < BATCH; b++) {
        for (int32_t i = 0; i < US_MAX_LEVELS; i++)
            free(eps[b][i]);
    }
    us_exec_free(e);
    us_plan_free(plan);
    us_model_free(m);
    return out;
}

static void near(const struct expected *x, const char *what, double got, double want, double scale)
{
    double tol = x->tolerance * fmax(fabs(want), scale);
    if (!(fabs(got - want) <= tol))
        fail_msg("%s%s: %s is %.9g; expected %.9g within %.2g", x->variant, x->eps ? " eps" : "",
                 what, got, want, tol);
}

static void check_vectors(const struct expected *x, const float *out)
{
    double sum = 0.0, square = 0.0;
    for (int i = 0; i < N_OUT; i++) {
        sum += (double)out[i];
        square += (double)out[i] * (double)out[i];
    }
    double rms = x->l2 / sqrt(N_OUT);
    near(x, "sum", sum, x->sum, 0.0);
    near(x, "L2 norm", sqrt(square), x->l2, 0.0);
    for (int c = 0; c < CHANNELS; c++) {
        near(x, "pixel (31,17)", (double)out[(31 * SIDE + 17) * CHANNELS + c], x->pixel0[c], rms);
        near(x, "pixel (5,60)", (double)out[((SIDE + 5) * SIDE + 60) * CHANNELS + c], x->pixel1[c],
             rms);
    }
}

static double relative_rms(const float *a, const float *b)
{
    double d = 0.0, s = 0.0;
    for (int i = 0; i < N_OUT; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return sqrt(d / s);
}

static struct us_backend *open_backend(enum us_status (*open)(struct us_backend **,
                                                              struct us_err *))
{
    struct us_backend *be = NULL;
    struct us_err err = {0};
    if (open(&be, &err) != US_OK)
        fail_msg("%s", err.msg);
    return be;
}

static void ref_gives_the_spec_s_vectors(void **state)
{
    struct us_backend *ref = open_backend(us_ref_open);
    for (size_t i = 0; i < US_COUNT(table); i++) {
        const struct route r = {ref, US_F32, !table[i].eps, false, {0}};
        float *out = run(&table[i], &r);
        check_vectors(&table[i], out);
        free(out);
    }
    us_backend_ops(ref)->free(ref);
}

static void cpu_f32_gives_the_spec_s_vectors(void **state)
{
    struct us_backend *cpu = open_backend(us_cpu_open);
    for (size_t i = 0; i < US_COUNT(table); i++) {
        for (int whole = 0; whole < 2; whole++) {
            const struct route r = {cpu, US_F32, false, whole == 1, {0}};
            float *out = run(&table[i], &r);
            check_vectors(&table[i], out);
            free(out);
        }
    }
    us_backend_ops(cpu)->free(cpu);
}

static void an_hae_is_an_hvae_without_noise_bit_for_bit(void **state)
{
    struct us_backend *cpu = open_backend(us_cpu_open);
    for (size_t i = 0; i < US_COUNT(table); i += 2) {
        const struct route hvae = {cpu, US_F32, false, false, {0}},
                           hae = {cpu, US_F32, true, false, {0}};
        float *a = run(&table[i], &hvae), *b = run(&table[i], &hae);
        assert_memory_equal(a, b, N_OUT * sizeof(float));
        free(a);
        free(b);
    }
    us_backend_ops(cpu)->free(cpu);
}

static void cpu_bf16_stays_within_its_bound_of_f32(void **state)
{
    struct us_backend *cpu = open_backend(us_cpu_open);
    if (!us_backend_ops(cpu)->has_dtype(cpu, US_BF16)) {
        print_message("skipped: this processor does not multiply bf16\n");
        us_backend_ops(cpu)->free(cpu);
        skip();
    }
    for (size_t i = 0; i < US_COUNT(table); i++) {
        const struct route f32 = {cpu, US_F32, false, false, {0}},
                           bf16 = {cpu, US_BF16, false, false, {0}};
        float *a = run(&table[i], &bf16), *b = run(&table[i], &f32);
        double error = relative_rms(a, b);
        print_message("%s%s: bf16 relative RMS error %.3f %%\n", table[i].variant,
                      table[i].eps ? " eps" : "", 100.0 * error);
        assert_true(error <= BF16_BOUND);
        free(a);
        free(b);
    }
    us_backend_ops(cpu)->free(cpu);
}

/* The CUDA backend's ops, kernels and plans with the host in the GPU's place; the rows with noise
 * cover what the others do, and every one costs seconds. */
static void cuda_serial_gives_the_spec_s_vectors(void **state)
{
    struct us_backend *be = open_backend(us_cuda_serial_open);
    for (size_t i = 1; i < US_COUNT(table); i += 2) {
        const struct route r = {be, US_F32, false, false, {0}};
        float *out = run(&table[i], &r);
        check_vectors(&table[i], out);
        free(out);
    }
    us_backend_ops(be)->free(be);
}

static void cuda_serial_bf16_stays_within_its_bound_of_f32(void **state)
{
    struct us_backend *be = open_backend(us_cuda_serial_open), *cpu = open_backend(us_cpu_open);
    for (size_t i = 1; i < US_COUNT(table); i += 2) {
        const struct route bf16 = {be, US_BF16, false, false, {0}},
                           f32 = {cpu, US_F32, false, false, {0}};
        float *a = run(&table[i], &bf16), *b = run(&table[i], &f32);
        double error = relative_rms(a, b);
        print_message("%s eps: bf16 relative RMS error %.3f %%\n", table[i].variant, 100.0 * error);
        assert_true(error <= BF16_BOUND);
        free(a);
        free(b);
    }
    us_backend_ops(be)->free(be);
    us_backend_ops(cpu)->free(cpu);
}

/* Off the centre and odd: no two sides of any region are padded alike. */
static void cuda_serial_kept_part_has_the_bits_of_the_whole(void **state)
{
    static const struct us_rect keep = {22, 19, 17, 13};
    struct us_backend *be = open_backend(us_cuda_serial_open);
    for (size_t i = 5; i < US_COUNT(table); i += 2) {
        const struct route whole = {be, US_BF16, false, true, {0}};
        const struct route part = {be, US_BF16, false, false, keep};
        float *a = run(&table[i], &whole), *b = run(&table[i], &part);
        for (int32_t y = 0; y < BATCH * keep.h; y++) {
            int32_t row = (y / keep.h * SIDE + keep.y0 + y % keep.h) * SIDE + keep.x0;
            assert_memory_equal(b + y * keep.w * CHANNELS, a + row * CHANNELS,
                                (size_t)(keep.w * CHANNELS) * sizeof(float));
        }
        free(a);
        free(b);
    }
    us_backend_ops(be)->free(be);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ref_gives_the_spec_s_vectors),
        cmocka_unit_test(cpu_f32_gives_the_spec_s_vectors),
        cmocka_unit_test(an_hae_is_an_hvae_without_noise_bit_for_bit),
        cmocka_unit_test(cpu_bf16_stays_within_its_bound_of_f32),
        cmocka_unit_test(cuda_serial_gives_the_spec_s_vectors),
        cmocka_unit_test(cuda_serial_bf16_stays_within_its_bound_of_f32),
        cmocka_unit_test(cuda_serial_kept_part_has_the_bits_of_the_whole),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
