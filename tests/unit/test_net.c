/*
 * The network description against the counts of model-spec 11.1 (entries), 19.1 (parameters) and
 * 19.2 (multiply-adds), and what the spec forbids.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "us_net.h"

static struct us_net *build(const char *variant, int32_t levels, int32_t patch)
{
    struct us_arch a = us_arch_default();
    struct us_err err = {0};
    assert_int_equal(us_arch_set_variant(&a, variant, &err), US_OK);
    if (levels > 0) {
        a.n_levels = levels;
        for (int32_t i = 0; i < levels; i++)
            a.z_dims[i] = 128;
    }
    struct us_net *net = NULL;
    if (us_net_build(&a, patch, patch, &net, &err) != US_OK)
        fail_msg("%s", err.msg);
    return net;
}

/* Multiply-adds of all convolutions, transposed ones counted per input pixel (spec 19.2). */
static int64_t macs(const struct us_net *net)
{
    int64_t sum = 0;
    for (int32_t i = 0; i < net->n_nodes; i++) {
        const struct us_node *n = &net->nodes[i];
        if (n->op != US_N_CONV && n->op != US_N_CONV_T)
            continue;
        const struct us_value *v = &net->values[n->op == US_N_CONV ? n->out : n->in[0]];
        sum += net->params[n->param].count * v->h * v->w;
    }
    return sum;
}

static void variants_have_the_spec_s_entries_parameters_and_operations(void **state)
{
    static const struct {
        const char *variant;
        int32_t entries;
        int64_t trainable, macs;
        int32_t prior_side;
    } cases[] = {
        {"vanilla", 309, 2991748, 2047868928, 4},
        {"lean", 445, 3657604, 5083430912, 4},
        {"regular", 445, 4702084, 12990021632, 64},
        {"deep", 829, 7177604, 15730737152, 4},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_net *net = build(cases[i].variant, 0, 64);
        assert_int_equal(net->n_params, cases[i].entries);
        assert_int_equal(us_net_n_trainable(net), cases[i].trainable);
        assert_int_equal(macs(net), cases[i].macs);
        char name[64];
        (void)snprintf(name, sizeof(name), "top_down_layers.%d.top_prior_params",
                       net->arch.n_levels - 1);
        int32_t prior = us_net_find_param(net, name);
        assert_true(prior >= 0);
        assert_int_equal(net->params[prior].dim[2], cases[i].prior_side);
        us_net_free(net);
    }
}

static void other_depths_and_patches_have_the_spec_s_parameter_counts(void **state)
{
    static const struct {
        int32_t levels, patch;
        int64_t trainable;
    } cases[] = {
        {1, 64, 881860}, {2, 64, 1474564}, {3, 64, 2214724}, {5, 64, 3777988}, {4, 512, 3249796}};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_net *net = build("vanilla", cases[i].levels, cases[i].patch);
        assert_int_equal(us_net_n_trainable(net), cases[i].trainable);
        us_net_free(net);
    }
}

static void parameters_stand_in_state_dict_order(void **state)
{
    struct us_net *net = build("lean", 0, 64);
    static const char *const order[] = {
        "first_bottom_up.0.weight",
        "first_bottom_up.2.res.block.0.weight",
        "lowres_first_bottom_ups.0.0.weight",
        "lowres_first_bottom_ups.3.2.res.block.6.bias",
        "top_down_layers.0.deterministic_block.0.pre_conv.weight",
        "top_down_layers.0.stochastic.conv_in_p.weight",
        "top_down_layers.0.stochastic.conv_out.bias",
        "top_down_layers.0.merge.layer.0.weight",
        "top_down_layers.0.skip_connection_merger.layer.1.block.8.conv.bias",
        "top_down_layers.3.top_prior_params",
        "bottom_up_layers.0.net_downsized.0.pre_conv.weight",
        "bottom_up_layers.0.lowres_merge.layer.0.weight",
        "final_top_down.0.res.block.0.weight",
        "likelihood.parameter_net.bias",
    };
    int32_t last = -1;
    for (size_t i = 0; i < US_COUNT(order); i++) {
        int32_t p = us_net_find_param(net, order[i]);
        if (p <= last)
            fail_msg("%s stands at %d, after entry %d", order[i], p, last);
        last = p;
    }
    assert_int_equal(last, net->n_params - 1);
    us_net_free(net);
}

static void more_blocks_per_level_alias_lowres_net(void **state)
{
    struct us_arch a = us_arch_default();
    a.blocks_per_level = 2;
    struct us_net *net = NULL;
    assert_int_equal(us_net_build(&a, 64, 64, &net, NULL), US_OK);
    int32_t own = us_net_find_param(net, "bottom_up_layers.1.net.0.res.block.2.weight");
    int32_t alias = us_net_find_param(net, "bottom_up_layers.1.lowres_net.0.res.block.2.weight");
    assert_true(own >= 0 && alias >= 0);
    assert_int_equal(net->params[alias].alias_of, own);
    assert_int_equal(net->params[alias].offset, net->params[own].offset);
    assert_true(
        us_net_find_param(net, "top_down_layers.0.deterministic_block.1.res.block.0.bias") >= 0);
    us_net_free(net);
}

static void what_the_spec_forbids_is_refused_with_the_reason(void **state)
{
    static const struct {
        const char *variant;
        int32_t levels, scales, patch;
        const char *reason;
    } cases[] = {
        {"vanilla", 6, 1, 64, "latent map would be 1x1"},
        {"regular", 3, 5, 64, "at most levels + 1 = 4"},
        {"regular", 4, 0, 64, "lc_scales is 0"},
        {"vanilla", 17, 1, 64, "z_dims"},
        {"vanilla", 4, 1, 63, "even"},
        {"vanilla", 4, 1, 4, "patch_size is 4"},
        {"deep", 8, 5, 40, "multiple of 32"},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_arch a = us_arch_default();
        assert_int_equal(us_arch_set_variant(&a, cases[i].variant, NULL), US_OK);
        a.n_levels = cases[i].levels;
        a.lc_scales = cases[i].scales;
        for (int32_t l = 0; l < a.n_levels && l < US_MAX_LEVELS; l++)
            a.z_dims[l] = 8;
        struct us_net *net = NULL;
        struct us_err err = {0};
        assert_int_equal(us_net_build(&a, cases[i].patch, cases[i].patch, &net, &err), US_E_ARG);
        assert_null(net);
        if (strstr(err.msg, cases[i].reason) == NULL)
            fail_msg("case %zu: \"%s\" does not say \"%s\"", i, err.msg, cases[i].reason);
    }
}

static void hae_shares_the_parameters_but_never_reads_the_prior(void **state)
{
    struct us_arch a = us_arch_default();
    a.stochastic = false;
    struct us_net *net = NULL;
    assert_int_equal(us_net_build(&a, 64, 64, &net, NULL), US_OK);
    assert_int_equal(net->n_params, 445);
    for (int32_t i = 0; i < net->n_nodes; i++)
        assert_true(net->nodes[i].op != US_N_KL && net->nodes[i].op != US_N_PRIOR);
    us_net_free(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_have_the_spec_s_entries_parameters_and_operations),
        cmocka_unit_test(other_depths_and_patches_have_the_spec_s_parameter_counts),
        cmocka_unit_test(parameters_stand_in_state_dict_order),
        cmocka_unit_test(more_blocks_per_level_alias_lowres_net),
        cmocka_unit_test(what_the_spec_forbids_is_refused_with_the_reason),
        cmocka_unit_test(hae_shares_the_parameters_but_never_reads_the_prior),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
