/* The filling of model-spec 20.1 against the numbers printed there. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "us_vectors.h"

static void seed_of_a_name_is_its_fnv_hash(void **state)
{
    (void)state;
    assert_int_equal(us_vectors_seed("abc"), 440920331);
    assert_int_equal(us_vectors_seed(""), 2166136261u);
}

static void uniform_values_are_those_of_the_spec(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int n;
        double u[3];
    } rows[] = {
        {"abc", 3, {0.98051703, 0.43727046, 0.89802599}},
        {"input", 3, {0.04630458, 0.43423396, 0.56328815}},
        {"first_bottom_up.0.weight", 3, {0.61627614, 0.31884748, 0.89661825}},
        {"eps0", 2, {0.74626803, 0.11516649, 0}},
    };
    for (size_t r = 0; r < US_COUNT(rows); r++) {
        double u[3];
        us_vectors_uniform(rows[r].name, u, rows[r].n);
        for (int i = 0; i < rows[r].n; i++)
            assert_true(fabs(u[i] - rows[r].u[i]) < 5.1e-9);
    }
}

static void normalised_values_have_zero_mean_and_unit_variance(void **state)
{
    (void)state;
    static float v[1 << 16];
    int64_t n = 1 << 16;
    us_vectors_normalised("input", v, n);
    assert_true(fabs(v[0] - 2.0 * sqrt(3.0) * (0.04630458 - 0.5)) < 1e-6);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += v[i];
        squares += (double)v[i] * v[i];
    }
    assert_true(fabs(sum / (double)n) < 0.02);
    assert_true(fabs(squares / (double)n - 1.0) < 0.02);
}

/* Two parameters in one table: the rules go by name and rank, and counters are cleared. */
static void filling_a_model_follows_the_rule_of_each_name(void **state)
{
    (void)state;
    struct us_param params[] = {
        {.name = "first_bottom_up.0.weight",
         .ndim = 4,
         .dim = {2, 1, 3, 3},
         .count = 18,
         .offset = 0,
         .alias_of = -1},
        {.name = "a.running_var", .ndim = 1, .dim = {2}, .count = 2, .offset = 18, .alias_of = -1},
        {.name = "a.weight", .ndim = 1, .dim = {2}, .count = 2, .offset = 20, .alias_of = -1},
        {.name = "a.bias", .ndim = 1, .dim = {2}, .count = 2, .offset = 22, .alias_of = -1},
        {.name = "a.num_batches_tracked", .kind = US_PARAM_BN_COUNT, .count = 1, .alias_of = -1},
        {.name = "b.bias", .ndim = 1, .dim = {2}, .count = 2, .offset = 22, .alias_of = 3},
    };
    float weights[24];
    int64_t counter = 7;
    struct us_net net = {.params = params, .n_params = (int32_t)US_COUNT(params)};
    struct us_model m = {.net = &net, .weights = weights, .counters = &counter};
    us_vectors_fill_model(&m);

    double u;
    assert_true(fabs(weights[0] - 2.0 * (0.61627614 - 0.5) * sqrt(3.0 / 9.0)) < 1e-7);
    us_vectors_uniform("a.running_var", &u, 1);
    assert_true(fabs(weights[18] - (0.5 + u)) < 1e-7);
    us_vectors_uniform("a.weight", &u, 1);
    assert_true(fabs(weights[20] - (0.8 + 0.4 * u)) < 1e-7);
    us_vectors_uniform("a.bias", &u, 1);
    assert_true(fabs(weights[22] - 0.2 * (u - 0.5)) < 1e-7);
    assert_int_equal(counter, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seed_of_a_name_is_its_fnv_hash),
        cmocka_unit_test(uniform_values_are_those_of_the_spec),
        cmocka_unit_test(normalised_values_have_zero_mean_and_unit_variance),
        cmocka_unit_test(filling_a_model_follows_the_rule_of_each_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
