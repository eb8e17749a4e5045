/* Every test of training's ops (train_test.h) on every backend that trains. */
#include <stdio.h>
#include <string.h>

#include "train_test.h"

static const struct {
    const char *name;
    enum us_status (*open)(struct us_backend **ret, struct us_err *err);
} backend_list[] = {
    {"ref", us_ref_open},
    {"cpu", us_cpu_open},
};

#define N_BACKENDS US_COUNT(backend_list)

static struct us_backend *backends[N_BACKENDS];
static int indices[N_BACKENDS];

struct us_backend *ops_backend(int i)
{
    return i < (int)N_BACKENDS ? backends[i] : NULL;
}

struct us_backend *tt_backend(void **state)
{
    const int *i = *state;
    if (us_backend_train_ops(backends[*i]) == NULL) {
        print_message("skipped: %s does not train\n", backend_list[*i].name);
        skip();
    }
    return backends[*i];
}

static int open_backends(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_BACKENDS; i++) {
        struct us_err err = {0};
        if (backend_list[i].open(&backends[i], &err) != US_OK) {
            print_error("%s: %s\n", backend_list[i].name, err.msg);
            return -1;
        }
        us_backend_ops(backends[i])->thread_init(backends[i]);
    }
    return 0;
}

static int free_backends(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_BACKENDS; i++)
        if (backends[i] != NULL)
            us_backend_ops(backends[i])->free(backends[i]);
    return 0;
}

static const struct {
    const char *name;
    CMUnitTestFunction run;
    bool against_ref;
} list[] = {
#define TEST(name)                                                                                 \
    {                                                                                              \
#name, name, false                                                                         \
    }
#define TEST_AGAINST(name)                                                                         \
    {                                                                                              \
#name, name, true                                                                          \
    }
    TEST(convolutions_have_the_gradients_of_their_definition),
    TEST(convolutions_that_do_not_fit_are_refused),
    TEST(batch_norm_with_elu_has_the_gradients_of_its_definition),
    TEST(batch_norm_keeps_running_statistics),
    TEST(a_constant_channel_has_finite_batch_norm),
    TEST(gates_have_the_gradients_of_their_definition),
    TEST(elu_has_the_gradient_of_its_definition),
    TEST(posteriors_have_the_gradients_of_their_definition),
    TEST(posterior_gradients_include_the_clip_itself),
    TEST(the_samples_mean_is_the_closed_kl),
    TEST(a_deterministic_posterior_passes_means_only),
    TEST(posterior_noise_is_keyed_by_step_and_item),
    TEST(likelihoods_have_the_gradients_of_their_definition),
    TEST(likelihood_gradients_include_the_bound_itself),
    TEST(windows_pad_crop_and_concatenate),
    TEST(the_prior_changes_layout_and_its_gradient_back),
    TEST(dropout_zeroes_channels_at_its_rate),
    TEST(dropout_depends_on_its_key_only),
    TEST(outputs_may_be_the_documented_inputs),
    TEST(lanes_are_summed_in_order),
    TEST(adamax_takes_the_steps_computed_by_hand),
    TEST(conversion_rounds_as_bf16_does),
    TEST_AGAINST(every_op_agrees_with_ref_in_f32),
    TEST_AGAINST(every_op_agrees_with_ref_in_bf16),
#undef TEST
#undef TEST_AGAINST
};

static char names[N_BACKENDS * US_COUNT(list)][128];
static struct CMUnitTest tests[N_BACKENDS * US_COUNT(list)];

int main(int argc, char **argv)
{
    size_t n = 0;
    for (size_t b = 0; b < N_BACKENDS; b++) {
        indices[b] = (int)b;
        for (size_t i = 0; i < US_COUNT(list); i++) {
            if (list[i].against_ref && b == 0)
                continue;
            (void)snprintf(names[n], sizeof(names[n]), "%s_on_%s", list[i].name,
                           backend_list[b].name);
            tests[n] = (struct CMUnitTest){names[n], list[i].run, NULL, NULL, &indices[b]};
            n++;
        }
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("train_ops", tests, n, open_backends, free_backends);
}
