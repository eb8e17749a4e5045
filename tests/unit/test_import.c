/*
 * Models from other people's state dictionaries (core/us_import.h) and checkpoints
 * (server/us_model_import.h): the architecture comes back from names and shapes, the numbers come
 * back exactly, and what does not fit is named.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_import.h"
#include "us_model_import.h"
#include "us_tiny.h"
#include "us_torch.h"
#include "us_vectors.h"

#define LIGHTNING "tests/fuzz/corpus/torch/lightning.ckpt" /* by PyTorch 1.13, filled by rule */

/* ---- dictionaries in memory ---------------------------------------------------------------- */

#define MAX_TENSORS 2048
#define NAME_BYTES  160

/* A model's tensors under names that a test may change. */
struct fake {
    const struct us_model *m;
    struct us_state_tensor tensor[MAX_TENSORS];
    char name[MAX_TENSORS][NAME_BYTES];
    const void *data[MAX_TENSORS];
    struct us_state_dict dict;
};

static enum us_status fake_read(void *arg, int32_t i, void *out, struct us_err *err)
{
    const struct fake *f = arg;
    size_t bytes = f->tensor[i].type == US_STATE_I64 ? 8 : 4;
    memcpy(out, f->data[i], (size_t)f->tensor[i].count * bytes);
    return US_OK;
}

static struct fake *fake_of(const struct us_model *m)
{
    struct fake *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    assert_true(m->net->n_params < MAX_TENSORS - 8);
    f->m = m;
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        struct us_state_tensor *t = &f->tensor[i];
        bool counter = p->kind == US_PARAM_BN_COUNT;
        (void)snprintf(f->name[i], NAME_BYTES, "%s", p->name);
        t->name = f->name[i];
        t->type = counter ? US_STATE_I64 : US_STATE_F32;
        t->type_name = counter ? "int64" : "float32";
        t->ndim = p->ndim;
        memcpy(t->dim, p->dim, sizeof(p->dim));
        t->count = p->count;
        f->data[i] = counter ? (const void *)(m->counters + p->offset)
                             : (const void *)(m->weights + p->offset);
    }
    f->dict = (struct us_state_dict){.tensor = f->tensor,
                                     .n = m->net->n_params,
                                     .bytes = m->net->n_floats * 4 + m->net->n_params * 64,
                                     .read = fake_read,
                                     .arg = f};
    return f;
}

static int32_t fake_find(const struct fake *f, const char *name)
{
    for (int32_t i = 0; i < f->dict.n; i++)
        if (strcmp(f->name[i], name) == 0)
            return i;
    fail_msg("no tensor %s", name);
    return -1;
}

static void fake_remove(struct fake *f, const char *name)
{
    int32_t i = fake_find(f, name), last = f->dict.n - 1;
    f->tensor[i] = f->tensor[last];
    f->data[i] = f->data[last];
    memcpy(f->name[i], f->name[last], NAME_BYTES);
    f->tensor[i].name = f->name[i];
    f->dict.n--;
}

/* The same tensor under one more name. */
static int32_t fake_add(struct fake *f, const char *as, const char *name)
{
    int32_t from = fake_find(f, as), i = f->dict.n++;
    f->tensor[i] = f->tensor[from];
    f->data[i] = f->data[from];
    (void)snprintf(f->name[i], NAME_BYTES, "%s", name);
    f->tensor[i].name = f->name[i];
    return i;
}

static void fake_rename(struct fake *f, const char *from, const char *to)
{
    for (int32_t i = 0; i < f->dict.n; i++) {
        char rest[NAME_BYTES];
        if (strncmp(f->name[i], from, strlen(from)) != 0)
            continue;
        (void)snprintf(rest, sizeof(rest), "%s", f->name[i] + strlen(from));
        (void)snprintf(f->name[i], NAME_BYTES, "%s%s", to, rest);
    }
}

static struct us_model *import_ok(const struct fake *f, const struct us_import_hints *hints,
                                  struct us_import_report *report)
{
    struct us_err err = {0};
    struct us_model *m = NULL;
    struct us_import_hints none = us_import_hints();
    if (us_import_model(&f->dict, hints == NULL ? &none : hints, &m, report, &err) != US_OK)
        fail_msg("%s", err.msg);
    return m;
}

static void check_same(const struct us_model *a, const struct us_model *b)
{
    assert_int_equal(a->patch_size, b->patch_size);
    assert_int_equal(a->arch.n_levels, b->arch.n_levels);
    assert_memory_equal(a->arch.z_dims, b->arch.z_dims, sizeof(a->arch.z_dims));
    assert_int_equal(a->arch.lc_scales, b->arch.lc_scales);
    assert_int_equal(a->arch.decoder_retain, b->arch.decoder_retain);
    assert_int_equal(a->arch.n_filters, b->arch.n_filters);
    assert_int_equal(a->arch.blocks_per_level, b->arch.blocks_per_level);
    assert_int_equal(a->arch.predict_logvar, b->arch.predict_logvar);
    assert_int_equal(a->arch.target_channels, b->arch.target_channels);
    assert_int_equal(a->net->n_floats, b->net->n_floats);
    assert_memory_equal(a->weights, b->weights, (size_t)a->net->n_floats * sizeof(float));
    assert_memory_equal(a->counters, b->counters, (size_t)a->net->n_counters * sizeof(int64_t));
}

/* ---- what is found ------------------------------------------------------------------------- */

static void every_variant_comes_back_from_names_and_shapes(void **state)
{
    static const char *const variants[] = {"vanilla", "lean", "regular", "deep"};
    static const char *const prefixes[] = {"", "model.", "module.", "a.module."};
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        for (int32_t blocks = 1; blocks <= 2; blocks++) {
            struct us_import_report report;
            struct us_model *m = us_tiny_model(variants[v], 4, blocks);
            struct fake *f = fake_of(m);
            fake_rename(f, "", prefixes[v]);
            struct us_model *got = import_ok(f, NULL, &report);
            check_same(m, got);
            assert_true(got->complete);
            assert_string_equal(report.prefix, prefixes[v]);
            assert_int_equal(report.n_ignored, 0);
            us_model_free(got);
            us_model_free(m);
            free(f);
        }
    }
}

static void architectures_off_the_paper_come_back(void **state)
{
    static const struct {
        int32_t levels, scales, patch, targets, logvar;
        bool retain, hint_patch, hint_retain, hint_targets;
    } cases[] = {
        {2, 1, 64, 3, US_LOGVAR_PIXELWISE, false, false, false, false},
        {4, 1, 512, 2, US_LOGVAR_PIXELWISE, false, false, false, false},
        {2, 1, 94, 2, US_LOGVAR_PIXELWISE, false, true, false, false},
        {4, 3, 64, 2, US_LOGVAR_NONE, true, false, false, false},
        {4, 2, 64, 5, US_LOGVAR_NONE, false, false, false, false},
        {1, 2, 64, 2, US_LOGVAR_PIXELWISE, true, false, false, false},
        {4, 5, 128, 2, US_LOGVAR_PIXELWISE, true, true, false, false},
        {4, 5, 128, 2, US_LOGVAR_PIXELWISE, false, true, false, false},
        {2, 3, 32, 4, US_LOGVAR_NONE, true, false, true, true},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_err err = {0};
        struct us_import_report report;
        struct us_model *m = NULL;
        struct us_arch a = us_arch_default();
        struct us_import_hints hints = us_import_hints();
        a.n_levels = cases[i].levels;
        for (int32_t k = 0; k < a.n_levels; k++)
            a.z_dims[k] = 2 + k;
        memset(a.z_dims + a.n_levels, 0, sizeof(a.z_dims) - (size_t)a.n_levels * sizeof(*a.z_dims));
        a.lc_scales = cases[i].scales;
        a.decoder_retain = cases[i].retain;
        a.n_filters = 3;
        a.target_channels = cases[i].targets;
        a.predict_logvar = (enum us_logvar)cases[i].logvar;
        hints.patch = cases[i].hint_patch ? cases[i].patch : 0;
        hints.decoder_retain = cases[i].hint_retain ? cases[i].retain : -1;
        hints.target_channels = cases[i].hint_targets ? cases[i].targets : 0;
        if (us_model_new(&a, cases[i].patch, 7, &m, &err) != US_OK)
            fail_msg("case %zu: %s", i, err.msg);
        struct fake *f = fake_of(m);
        struct us_model *got = NULL;
        if (us_import_model(&f->dict, &hints, &got, &report, &err) != US_OK)
            fail_msg("case %zu: %s", i, err.msg);
        for (int32_t k = a.n_levels; k < US_MAX_LEVELS; k++)
            got->arch.z_dims[k] = 0;
        check_same(m, got);
        us_model_free(got);
        us_model_free(m);
        free(f);
    }
}

static void names_of_careamics_are_translated(void **state)
{
    struct us_import_report report;
    struct us_model *m = us_tiny_model("regular", 4, 1);
    struct fake *f = fake_of(m);
    fake_rename(f, "likelihood.parameter_net.", "output_layer.");
    (void)fake_add(f, "output_layer.weight", "parameter_net.weight");
    (void)fake_add(f, "output_layer.bias", "parameter_net.bias");
    fake_rename(f, "", "model.");
    (void)fake_add(f, "model.output_layer.bias", "noise_model.weight");
    struct us_model *got = import_ok(f, NULL, &report);
    check_same(m, got);
    assert_true(report.careamics);
    assert_int_equal(report.n_ignored, 1);
    assert_string_equal(report.first_ignored, "noise_model.weight");
    us_model_free(got);
    us_model_free(m);
    free(f);
}

static void tensors_that_prediction_does_not_need_may_be_missing(void **state)
{
    struct us_import_report report;
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_import_hints hints = us_import_hints();
    struct fake *f = fake_of(m);
    fake_remove(f, "top_down_layers.3.top_prior_params");
    fake_remove(f, "top_down_layers.0.stochastic.conv_in_p.weight");
    fake_remove(f, "first_bottom_up.2.res.block.0.num_batches_tracked");
    hints.patch = 64;
    struct us_model *got = import_ok(f, &hints, &report);
    assert_false(got->complete);
    us_model_free(got);
    us_model_free(m);
    free(f);
}

/* ---- what is refused ----------------------------------------------------------------------- */

struct refusal {
    const char *why;
    void (*spoil)(struct fake *f, struct us_import_hints *h);
    enum us_status status;
    const char *words;
};

#define SPOIL(name) static void name(struct fake *f, struct us_import_hints *h)

static const float not_finite[16] = {1.0f, NAN};

SPOIL(missing)
{
    fake_remove(f, "bottom_up_layers.1.net_downsized.0.pre_conv.weight");
    fake_remove(f, "final_top_down.0.res.block.8.conv.bias");
}
SPOIL(surplus)
{
    (void)fake_add(f, "first_bottom_up.0.bias", "first_bottom_up.7.bias");
}
SPOIL(other_shape)
{
    int32_t i = fake_find(f, "top_down_layers.1.merge.layer.0.weight");
    f->tensor[i].dim[1] = 5;
}
SPOIL(other_type)
{
    f->tensor[fake_find(f, "first_bottom_up.0.bias")].type = US_STATE_I64;
    f->tensor[fake_find(f, "first_bottom_up.0.bias")].type_name = "int64";
}
SPOIL(a_number_that_is_not_finite)
{
    f->data[fake_find(f, "first_bottom_up.0.bias")] = not_finite;
}
SPOIL(another_family)
{
    f->dict.n = 1;
    (void)snprintf(f->name[0], NAME_BYTES, "model.inc.double_conv.0.weight");
}
SPOIL(nothing_of_ours)
{
    f->dict.n = 1;
    (void)snprintf(f->name[0], NAME_BYTES, "conv1.weight");
}
SPOIL(empty)
{
    f->dict.n = 0;
}
SPOIL(two_networks)
{
    (void)fake_add(f, "first_bottom_up.0.weight", "ema.first_bottom_up.0.weight");
}
SPOIL(volumes)
{
    int32_t i = fake_find(f, "first_bottom_up.0.weight");
    f->tensor[i].ndim = 5;
    f->tensor[i].dim[4] = 3;
}
SPOIL(shared_bytes)
{
    f->dict.bytes = 100;
}
SPOIL(another_patch)
{
    h->patch = 128;
}
SPOIL(other_channels)
{
    h->target_channels = 3;
}
SPOIL(no_prior)
{
    fake_remove(f, "top_down_layers.3.top_prior_params");
}
SPOIL(other_blocks)
{
    fake_rename(f, "top_down_layers.0.deterministic_block.0.res.block.0.", "x.");
}
SPOIL(unequal_heads)
{
    static const float other[64 * 9];
    int32_t i = fake_add(f, "likelihood.parameter_net.bias", "output_layer.bias");
    f->data[i] = other;
}

static const struct refusal refusals[] = {
    {"two tensors are missing", missing, US_E_FORMAT,
     "2 tensors are missing: bottom_up_layers.1.net_downsized.0.pre_conv.weight, "
     "final_top_down.0.res.block.8.conv.bias"},
    {"a tensor too many", surplus, US_E_FORMAT,
     "1 tensors have no place in the network: first_bottom_up.7.bias"},
    {"a tensor of another shape", other_shape, US_E_FORMAT,
     "top_down_layers.1.merge.layer.0.weight has shape [4, 5, 1, 1]; expected [4, 8, 1, 1]"},
    {"integers for weights", other_type, US_E_FORMAT, "type int64; expected float32"},
    {"not a number", a_number_that_is_not_finite, US_E_FORMAT, "element 1 is nan"},
    {"a U-Net", another_family, US_E_UNSUPPORTED, "a U-Net"},
    {"somebody's classifier", nothing_of_ours, US_E_FORMAT, "first_bottom_up.0.weight is missing"},
    {"nothing", empty, US_E_FORMAT, "first_bottom_up.0.weight is missing"},
    {"two networks", two_networks, US_E_ARG, "--prefix"},
    {"a network for volumes", volumes, US_E_UNSUPPORTED, "5 dimensions"},
    {"tensors that share the bytes of a small file", shared_bytes, US_E_FORMAT, "share"},
    {"a patch that the prior contradicts", another_patch, US_E_ARG,
     "64x64; a patch of 128 with 4 levels and 5 input scales would make it 128x128"},
    {"channels that the head contradicts", other_channels, US_E_ARG, "3 were asked for"},
    {"no prior and no hint", no_prior, US_E_ARG, "--patch and --variant"},
    {"blocks of another kind", other_blocks, US_E_FORMAT, "another kind"},
    {"two heads that differ", unequal_heads, US_E_UNSUPPORTED, "under its other name"},
};

static void what_does_not_fit_is_named(void **state)
{
    struct us_model *m = us_tiny_model("regular", 4, 1);
    for (size_t i = 0; i < US_COUNT(refusals); i++) {
        struct us_err err = {0};
        struct us_model *got = NULL;
        struct us_import_report report;
        struct us_import_hints hints = us_import_hints();
        struct fake *f = fake_of(m);
        refusals[i].spoil(f, &hints);
        enum us_status s = us_import_model(&f->dict, &hints, &got, &report, &err);
        if (s != refusals[i].status || got != NULL || strstr(err.msg, refusals[i].words) == NULL)
            fail_msg("%s: %s, \"%s\"; expected %s, \"%s\"", refusals[i].why, us_status_name(s),
                     err.msg, us_status_name(refusals[i].status), refusals[i].words);
        free(f);
    }
    us_model_free(m);
}

/* ---- files --------------------------------------------------------------------------------- */

static struct us_model *import_file(const char *path, struct us_model_data *data, bool *ret_stats)
{
    struct us_err err = {0};
    struct us_model_source *src = NULL;
    struct us_model *m = NULL;
    struct us_import_report report;
    struct us_import_hints hints = us_import_hints();
    if (us_model_source_open(path, &src, &err) != US_OK ||
        us_model_source_hints(src, &hints, &err) != US_OK ||
        us_model_source_import(src, &hints, &m, &report, &err) != US_OK)
        fail_msg("%s", err.msg);
    *ret_stats = us_model_source_data(src, data, m->arch.target_channels);
    us_model_source_free(src);
    return m;
}

static void a_checkpoint_of_pytorch_gives_its_numbers_and_settings(void **state)
{
    struct us_err err = {0};
    struct us_model_data d = {0};
    struct us_model *expected = NULL;
    bool stats = false;
    struct us_model *m = import_file(LIGHTNING, &d, &stats);
    assert_false(m->arch.stochastic);
    assert_false(m->arch.decoder_retain);
    assert_int_equal(m->arch.target_channels, 3);
    assert_int_equal(m->arch.lc_scales, 3);
    assert_true(m->arch.dropout == 0.2f && m->arch.logvar_lower_bound == -4.0f);
    assert_int_equal(us_model_new(&m->arch, m->patch_size, 0, &expected, &err), US_OK);
    us_vectors_fill_model(expected);
    check_same(expected, m);
    assert_true(stats);
    assert_true(d.input_mean == 100 && d.input_std == 10);
    assert_true(d.target_mean[2] == 3.5 && d.target_std[0] == 4 && d.target_std[2] == 6);
    assert_true(d.has_clip && d.clip[1] == 4000);
    assert_int_equal(d.context_padding, US_PAD_ZERO);
    us_model_free(expected);
    us_model_free(m);
}

static void what_is_exported_imports_to_the_same(void **state)
{
    static const char *const endings[] = {".pt", ".pth", ".ckpt", ".safetensors"};
    char folder[] = P_tmpdir "/usplit-import-XXXXXX";
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < US_COUNT(endings); i++) {
        char path[96];
        struct us_err err = {0};
        struct us_model_data d = {0};
        bool stats;
        struct us_model *m = us_tiny_model("deep", 4, 2);
        m->counters[3] = 12345678901;
        (void)snprintf(path, sizeof(path), "%s/m%s", folder, endings[i]);
        if (us_model_export(m, "other.safetensors", path, &err) != US_OK)
            fail_msg("%s", err.msg);
        struct us_model *got = import_file(path, &d, &stats);
        check_same(m, got);
        assert_false(stats);
        us_model_free(got);
        us_model_free(m);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(folder), 0);
}

static void exports_that_pytorch_would_refuse_are_refused(void **state)
{
    struct us_err err = {0};
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    assert_int_equal(us_model_export(m, "m.safetensors", "x.onnx", &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "x.onnx"));
    m->complete = false;
    assert_int_equal(us_model_export(m, "m.safetensors", "x.pt", &err), US_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "m.safetensors"));
    us_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_comes_back_from_names_and_shapes),
        cmocka_unit_test(architectures_off_the_paper_come_back),
        cmocka_unit_test(names_of_careamics_are_translated),
        cmocka_unit_test(tensors_that_prediction_does_not_need_may_be_missing),
        cmocka_unit_test(what_does_not_fit_is_named),
        cmocka_unit_test(a_checkpoint_of_pytorch_gives_its_numbers_and_settings),
        cmocka_unit_test(what_is_exported_imports_to_the_same),
        cmocka_unit_test(exports_that_pytorch_would_refuse_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
