/*
 * The cpu backend's vector code for training: every table this processor can run gives the same
 * bits, for channel counts on either side of every vector, block and span, with the values that
 * end a formula's range. What the numbers should be is tests/ops/test_train_ops.c's business.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/us_cpu_kernels.h"
#include "cpu/us_cpu_train_kernels.h"
#include "math/us_bf16_math.h"

enum { MOST_C = 700, MOST_PX = 21, MOST = 2 * MOST_C * MOST_PX, GUARD = 64, W = 7 };

static const struct usi_cpu_kernels *const *table;
static int n_tables;

/* Maps as f32 and as bf16, channel vectors, and what two tables made of them. */
static float map_f32[4][MOST], vector[7][MOST_C];
static uint16_t map_bf16[4][MOST];
static struct result {
    float map[2][MOST + GUARD];
    double part[2 * MOST_C + GUARD];
} result[2];

static int fill(void **s)
{
    static const float special[] = {0.0f,   -0.0f, 1e-40f, -1e-40f,  88.8f,     -87.4f, 1e30f,
                                    -1e30f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN};
    uint32_t u = 1;
    for (int m = 0; m < 4; m++)
        for (int i = 0; i < MOST; i++) {
            u = u * 1664525u + 1013904223u;
            map_f32[m][i] = ((float)(u >> 8) / 8388608.0f - 1.0f) * 5.0f;
            if (i % 97 == 3 + m)
                map_f32[m][i] = special[(size_t)(i / 97) % US_COUNT(special)];
            map_bf16[m][i] = us_bf16_of_f32(map_f32[m][i]);
        }
    for (int v = 0; v < 7; v++)
        for (int i = 0; i < MOST_C; i++)
            vector[v][i] = cosf((float)(i * (v + 1)));
    table = usi_cpu_kernels_list(&n_tables);
    return 0;
}

static const void *in(const struct us_ew *e, int i)
{
    return e->dtype == US_F32 ? (const void *)map_f32[i] : (const void *)map_bf16[i];
}

/* ---- what is compared: each writes into a result ---- */

typedef void (*subject)(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                        struct result *r);

static const struct us_bn_affine affine = {vector[0], vector[1], vector[2], vector[3]};
static const struct us_bn_grad gradient = {vector[4], vector[5], vector[6]};
static const struct us_draw draw = {.seed = 0x0123456789abcdefu, .step = 5, .item = 3};

static void statistics(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                       struct result *r)
{
    k->bn_stats[e->dtype](e, in(e, 0), r->part);
}

static void norm_and_elu(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                         struct result *r)
{
    k->bn_elu_fwd[e->dtype](e, in(e, 0), &affine, r->map[0]);
}

static void norm_backward_sums(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                               struct result *r)
{
    k->bn_elu_bwd_stats[e->dtype](e, in(e, 0), in(e, 1), &affine, r->part);
}

static void norm_backward(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                          struct result *r)
{
    size_t bytes = (size_t)(e->n_px * e->c) * us_dtype_bytes(e->dtype);
    k->bn_elu_bwd[e->dtype][0](e, in(e, 0), in(e, 1), &affine, &gradient, r->map[0]);
    memcpy(r->map[1], in(e, 2), bytes);
    k->bn_elu_bwd[e->dtype][1](e, in(e, 0), in(e, 1), &affine, &gradient, r->map[1]);
}

static void elu(const struct usi_cpu_train_kernels *k, const struct us_ew *e, struct result *r)
{
    int64_t n = e->n_px * e->c;
    k->elu_fwd[e->dtype](in(e, 0), r->map[0], n);
    k->elu_bwd[e->dtype](r->map[0], in(e, 1), r->map[1], n);
}

static void dropout(const struct usi_cpu_train_kernels *k, const struct us_ew *e, struct result *r)
{
    memcpy(r->map[0], in(e, 0), (size_t)(e->n_px * e->c) * us_dtype_bytes(e->dtype));
    k->dropout2d[e->dtype](e, r->map[0], 0.3f, &draw, 17);
}

static void gate(const struct usi_cpu_train_kernels *k, const struct us_ew *e, struct result *r)
{
    k->glu_fwd[e->dtype](e, in(e, 0), in(e, 1), r->map[0]);
    k->glu_bwd[e->dtype](e, in(e, 0), in(e, 1), r->map[1]);
}

static void sums(const struct usi_cpu_train_kernels *k, const struct us_ew *e, struct result *r)
{
    int64_t n = e->n_px * e->c;
    memcpy(r->map[0], in(e, 0), (size_t)n * us_dtype_bytes(e->dtype));
    k->accumulate[e->dtype](in(e, 1), r->map[0], n);
    k->scale[e->dtype](r->map[0], 0.3f, n);
    k->bias[e->dtype](e, map_f32[2], vector[0], r->map[1]);
}

static void prior(const struct usi_cpu_train_kernels *k, const struct us_ew *e, struct result *r)
{
    k->prior_load[e->dtype](e, map_f32[0], r->map[0]);
    memcpy(r->map[1], map_f32[1], (size_t)(e->n_px * e->c) * sizeof(float));
    k->prior_grad[e->dtype](e, in(e, 2), r->map[1]);
}

static void posterior(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                      struct result *r, bool analytical)
{
    const struct us_posterior d = {.ew = *e,
                                   .h = (int32_t)e->n_px / W,
                                   .w = W,
                                   .level = 2,
                                   .var_clip_max = 3.0f,
                                   .analytical = analytical};
    struct usi_cpu_posterior_args a = {
        .d = &d, .draw = &draw, .q = in(e, 0), .p = in(e, 1), .per = 0.7f, .z = r->map[0]};
    r->part[0] = k->posterior_fwd[e->dtype](&a);
    a.dz = in(e, 2);
    a.dq = r->map[0];
    a.dp = r->map[1];
    k->posterior_bwd[e->dtype](&a);
}

static void sampled_posterior(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                              struct result *r)
{
    posterior(k, e, r, false);
}

static void closed_posterior(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                             struct result *r)
{
    posterior(k, e, r, true);
}

static void end_of_step(const struct usi_cpu_train_kernels *k, const struct us_ew *e,
                        struct result *r)
{
    const struct us_adamax a = {
        .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .bias = 0.1, .grad_scale = 0.4f};
    int64_t n = e->n_px * e->c;
    float *m = r->map[1], *u = m + n; /* a map holds twice as much */
    r->part[0] = k->reduce_lanes(map_f32[0], n / 2, 3, n, r->map[0]);
    memcpy(m, map_f32[1], (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        u[i] = fabsf(map_f32[2][i]);
    k->adamax(&a, n, map_f32[3], m, u, r->map[0]);
}

/* ---- the comparison ---- */

static void compare(subject f, const char *what, const struct us_ew *e)
{
    for (int t = 0; t < n_tables; t++) {
        struct result *r = &result[t > 0];
        memset(r, 0xee, sizeof(*r));
        f(table[t]->train, e, r);
        if (memcmp(&result[0], r, sizeof(*r)) != 0)
            fail_msg("%s: %s and %s differ at %lld pixels of %d channels, %s", what, table[0]->isa,
                     table[t]->isa, (long long)e->n_px, e->c, e->dtype == US_F32 ? "f32" : "bf16");
    }
    unsigned char untouched[GUARD * sizeof(float)];
    memset(untouched, 0xee, sizeof(untouched));
    for (int i = 0; i < 2; i++)
        assert_memory_equal(result[0].map[i] + MOST, untouched, sizeof(untouched));
}

static void compare_shapes(subject f, const char *what, int32_t most_c)
{
    static const int32_t channels[] = {1, 3, 8, 15, 16, 24, 64, 100, 128, 200, 512, 513, MOST_C};
    static const int32_t pixels[] = {W, MOST_PX};
    for (size_t i = 0; i < US_COUNT(channels) && channels[i] <= most_c; i++)
        for (size_t j = 0; j < US_COUNT(pixels); j++)
            for (int t = 0; t < 2; t++) {
                const struct us_ew e = {(enum us_dtype)t, pixels[j], channels[i]};
                compare(f, what, &e);
            }
}

static void batch_norm_has_the_same_bits_on_every_table(void **s)
{
    compare_shapes(statistics, "statistics", MOST_C);
    compare_shapes(norm_and_elu, "norm and ELU", MOST_C);
    compare_shapes(norm_backward_sums, "backward sums", MOST_C);
    compare_shapes(norm_backward, "norm backward", MOST_C);
}

static void activations_have_the_same_bits_on_every_table(void **s)
{
    compare_shapes(elu, "ELU", MOST_C);
    compare_shapes(dropout, "dropout", MOST_C);
    compare_shapes(gate, "gate", MOST_C);
}

static void sums_and_layouts_have_the_same_bits_on_every_table(void **s)
{
    compare_shapes(sums, "sums", MOST_C);
    compare_shapes(prior, "prior", MOST_C);
}

static void posteriors_have_the_same_bits_on_every_table(void **s)
{
    compare_shapes(sampled_posterior, "sampled posterior", MOST_C);
    compare_shapes(closed_posterior, "closed posterior", MOST_C);
}

static void steps_have_the_same_bits_on_every_table(void **s)
{
    compare_shapes(end_of_step, "end of a step", MOST_C / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batch_norm_has_the_same_bits_on_every_table),
        cmocka_unit_test(activations_have_the_same_bits_on_every_table),
        cmocka_unit_test(sums_and_layouts_have_the_same_bits_on_every_table),
        cmocka_unit_test(posteriors_have_the_same_bits_on_every_table),
        cmocka_unit_test(steps_have_the_same_bits_on_every_table),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
