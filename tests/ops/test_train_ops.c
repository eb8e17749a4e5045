/* Every test of training's ops (train_test.h) on every backend that trains. */
#include <stdio.h>
#include <string.h>

#include "train_test.h"
#include "us_cuda.h"

static const struct {
    const char *name;
    enum us_status (*open)(struct us_backend **ret, struct us_err *err);
} backend_list[] = {
    {"ref", us_ref_open},
    {"cpu", us_cpu_open},
    {"cuda_serial", us_cuda_serial_open},
    {"cuda_strict", ops_cuda_strict_open},
    {"cuda_direct", ops_cuda_direct_open},
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

static const struct CMUnitTest list[] = {
    cmocka_unit_test(convolutions_have_the_gradients_of_their_definition),
    cmocka_unit_test(convolutions_that_do_not_fit_are_refused),
    cmocka_unit_test(batch_norm_with_elu_has_the_gradients_of_its_definition),
    cmocka_unit_test(batch_norm_keeps_running_statistics),
    cmocka_unit_test(a_constant_channel_has_finite_batch_norm),
    cmocka_unit_test(a_variance_below_zero_counts_as_zero),
    cmocka_unit_test(gates_have_the_gradients_of_their_definition),
    cmocka_unit_test(elu_has_the_gradient_of_its_definition),
    cmocka_unit_test(posteriors_have_the_gradients_of_their_definition),
    cmocka_unit_test(posterior_gradients_include_the_clip_itself),
    cmocka_unit_test(the_samples_mean_is_the_closed_kl),
    cmocka_unit_test(a_deterministic_posterior_passes_means_only),
    cmocka_unit_test(posterior_noise_is_keyed_by_step_and_item),
    cmocka_unit_test(likelihoods_have_the_gradients_of_their_definition),
    cmocka_unit_test(likelihood_gradients_include_the_bound_itself),
    cmocka_unit_test(windows_pad_crop_and_concatenate),
    cmocka_unit_test(the_prior_changes_layout_and_its_gradient_back),
    cmocka_unit_test(dropout_zeroes_channels_at_its_rate),
    cmocka_unit_test(dropout_depends_on_its_key_only),
    cmocka_unit_test(outputs_may_be_the_documented_inputs),
    cmocka_unit_test(lanes_are_summed_in_order),
    cmocka_unit_test(adamax_takes_the_steps_computed_by_hand),
    cmocka_unit_test(conversion_rounds_as_bf16_does),
    /* On ref itself: that it repeats its bits and stays within its buffers on every shape. */
    cmocka_unit_test(every_op_agrees_with_ref_in_f32),
    cmocka_unit_test(every_op_agrees_with_ref_in_bf16),
};

static char names[N_BACKENDS * US_COUNT(list)][128];
static struct CMUnitTest tests[N_BACKENDS * US_COUNT(list)];

int main(int argc, char **argv)
{
    size_t n = 0;
    for (size_t b = 0; b < N_BACKENDS; b++) {
        indices[b] = (int)b;
        for (size_t i = 0; i < US_COUNT(list); i++) {
            (void)snprintf(names[n], sizeof(names[n]), "%s_on_%s", list[i].name,
                           backend_list[b].name);
            tests[n] = (struct CMUnitTest){names[n], list[i].test_func, NULL, NULL, &indices[b]};
            n++;
        }
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("train_ops", tests, n, open_backends, free_backends);
}
