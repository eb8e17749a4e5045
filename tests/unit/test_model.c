/* Fresh models: initialisation (model-spec 2), defaults, and the clip of the input. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "us_model.h"

static struct us_model *fresh(const char *variant, uint64_t seed)
{
    struct us_arch a = us_arch_default();
    struct us_model *m;
    assert_int_equal(us_arch_set_variant(&a, variant, NULL), US_OK);
    assert_int_equal(us_model_new(&a, 64, seed, &m, NULL), US_OK);
    return m;
}

static const struct us_param *param(const struct us_model *m, const char *name)
{
    int32_t i = us_net_find_param(m->net, name);
    assert_true(i >= 0);
    return &m->net->params[i];
}

/* Moments and bounds of a uniform distribution on (-b, b), b = 1/sqrt(fan_in). */
static void assert_uniform(const struct us_model *m, const char *name, double fan_in)
{
    const struct us_param *p = param(m, name);
    const float *x = m->weights + p->offset;
    double b = 1.0 / sqrt(fan_in), sum = 0, squares = 0, largest = 0;
    for (int64_t i = 0; i < p->count; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
        largest = fmax(largest, fabs(x[i]));
    }
    double n = (double)p->count, sigma = b / sqrt(3.0);
    assert_true(largest <= b * (1 + 1e-6));
    assert_true(largest > b * (1 - 8 / n));
    assert_true(fabs(sum / n) < 5 * sigma / sqrt(n));
    assert_true(fabs(squares / n / (sigma * sigma) - 1) < 5 * sqrt(0.8 / n));
}

static void convolutions_start_uniform_with_the_bound_of_their_fan_in(void **state)
{
    (void)state;
    struct us_model *m = fresh("regular", 7);
    assert_uniform(m, "first_bottom_up.0.weight", 1 * 9);
    assert_uniform(m, "first_bottom_up.0.bias", 1 * 9);
    assert_uniform(m, "lowres_first_bottom_ups.2.0.weight", 1 * 25);
    assert_uniform(m, "bottom_up_layers.0.lowres_merge.layer.0.weight", 128);
    assert_uniform(m, "top_down_layers.0.stochastic.conv_in_q.weight", 64 * 9);
    assert_uniform(m, "top_down_layers.0.stochastic.conv_in_q.bias", 64 * 9);
    assert_uniform(m, "top_down_layers.0.stochastic.conv_out.weight", 128 * 9);
    assert_uniform(m, "top_down_layers.0.deterministic_block.0.pre_conv.weight", 64 * 9);
    us_model_free(m);
}

static void normalisations_and_prior_start_neutral(void **state)
{
    (void)state;
    struct us_model *m = fresh("vanilla", 7);
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        bool one = p->kind == US_PARAM_BN_W || p->kind == US_PARAM_BN_VAR;
        bool zero =
            p->kind == US_PARAM_BN_B || p->kind == US_PARAM_BN_MEAN || p->kind == US_PARAM_PRIOR;
        for (int64_t k = 0; (one || zero) && k < p->count; k++)
            assert_true(m->weights[p->offset + k] == (one ? 1.0f : 0.0f));
        if (p->kind == US_PARAM_BN_COUNT)
            assert_int_equal(m->counters[p->offset], 0);
    }
    us_model_free(m);
}

static void same_seed_gives_same_weights_and_another_seed_others(void **state)
{
    (void)state;
    struct us_model *a = fresh("vanilla", 3), *b = fresh("vanilla", 3), *c = fresh("vanilla", 4);
    struct us_model *d = fresh("vanilla", 3 + (1ULL << 32));
    size_t bytes = (size_t)a->net->n_floats * sizeof(float);
    assert_memory_equal(a->weights, b->weights, bytes);
    assert_memory_not_equal(a->weights, c->weights, bytes);
    assert_memory_not_equal(a->weights, d->weights, bytes);
    /* No two convolutions of a model start equal. */
    assert_memory_not_equal(
        a->weights + param(a, "bottom_up_layers.0.net_downsized.0.pre_conv.weight")->offset,
        a->weights + param(a, "bottom_up_layers.1.net_downsized.0.pre_conv.weight")->offset, 64);
    us_model_free(a);
    us_model_free(b);
    us_model_free(c);
    us_model_free(d);
}

static void a_fresh_model_has_neutral_data_and_usable_defaults(void **state)
{
    (void)state;
    struct us_model *m = fresh("lean", 1);
    assert_string_equal(m->data.channels[0], "channel 1");
    assert_string_equal(m->data.channels[1], "channel 2");
    assert_true(m->data.input_mean == 0.0 && m->data.input_std == 1.0);
    assert_true(m->data.target_mean[1] == 0.0 && m->data.target_std[1] == 1.0);
    assert_false(m->data.has_clip);
    assert_int_equal(m->inner_padding, 24);
    assert_int_equal(m->samples, 1);
    assert_true(m->complete);
    assert_string_equal(m->sha256, "");
    us_model_free(m);

    struct us_arch a = us_arch_default();
    assert_int_equal(us_arch_set_variant(&a, "vanilla", NULL), US_OK);
    a.n_levels = 2;
    a.n_filters = 4;
    assert_int_equal(us_model_new(&a, 32, 1, &m, NULL), US_OK);
    assert_int_equal(m->inner_padding, 15); /* 24 would leave nothing of a patch of 32 */
    us_model_free(m);
}

static void a_forbidden_architecture_gives_no_model(void **state)
{
    (void)state;
    struct us_arch a = us_arch_default();
    struct us_model *m = NULL;
    struct us_err err = {0};
    a.lc_scales = 6;
    assert_int_equal(us_model_new(&a, 64, 1, &m, &err), US_E_ARG);
    assert_null(m);
    assert_non_null(strstr(err.msg, "lc_scales"));
    us_model_free(NULL);
}

static void the_input_is_clipped_at_the_largest_bound_of_the_targets(void **state)
{
    (void)state;
    struct us_model m = {.arch.target_channels = 2};
    static const struct {
        bool has_clip;
        double clip[2], want;
    } rows[] = {
        {false, {100, 100}, INFINITY},     {true, {100, 100}, 100},
        {true, {100, 250}, 250},           {true, {-3, -5}, -3},
        {true, {100, INFINITY}, INFINITY}, {true, {INFINITY, INFINITY}, INFINITY},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        m.data.has_clip = rows[i].has_clip;
        m.data.clip[0] = rows[i].clip[0];
        m.data.clip[1] = rows[i].clip[1];
        assert_true(us_model_input_clip(&m) == rows[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions_start_uniform_with_the_bound_of_their_fan_in),
        cmocka_unit_test(normalisations_and_prior_start_neutral),
        cmocka_unit_test(same_seed_gives_same_weights_and_another_seed_others),
        cmocka_unit_test(a_fresh_model_has_neutral_data_and_usable_defaults),
        cmocka_unit_test(a_forbidden_architecture_gives_no_model),
        cmocka_unit_test(the_input_is_clipped_at_the_largest_bound_of_the_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
