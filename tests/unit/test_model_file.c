/* Model files: what is written is read again, and what is wrong is refused with its reason. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <nettle/sha2.h>

#include "math/us_bf16_math.h"
#include "us_model_bytes.h"
#include "us_model_file.h"
#include "us_vectors.h"

static struct us_model *load(const char *name)
{
    struct us_model *m;
    struct us_err err = {0};
    if (us_model_load(us_test_path(name), &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    return m;
}

static void save(struct us_model *m, const char *name)
{
    struct us_err err = {0};
    if (us_model_save(m, us_test_path(name), &err) != US_OK)
        fail_msg("%s", err.msg);
}

static void assert_same_parameters(const struct us_model *a, const struct us_model *b)
{
    assert_int_equal(a->net->n_floats, b->net->n_floats);
    assert_int_equal(a->net->n_counters, b->net->n_counters);
    assert_memory_equal(a->weights, b->weights, (size_t)a->net->n_floats * sizeof(float));
    assert_memory_equal(a->counters, b->counters, (size_t)a->net->n_counters * sizeof(int64_t));
}

static void assert_same_plain_members(const struct us_model *a, const struct us_model *b)
{
    assert_string_equal(a->name, b->name);
    assert_memory_equal(&a->arch, &b->arch, sizeof(a->arch));
    assert_int_equal(a->patch_size, b->patch_size);
    assert_int_equal(a->inner_padding, b->inner_padding);
    assert_int_equal(a->samples, b->samples);
    assert_int_equal(a->data.mixing, b->data.mixing);
    assert_int_equal(a->data.has_clip, b->data.has_clip);
    assert_int_equal(a->data.context_method, b->data.context_method);
    assert_int_equal(a->data.context_padding, b->data.context_padding);
    assert_true(a->data.input_mean == b->data.input_mean);
    assert_true(a->data.input_std == b->data.input_std);
    assert_true(a->data.pixel_size_um == b->data.pixel_size_um);
    assert_int_equal(a->has_calibration, b->has_calibration);
    for (int32_t c = 0; c < a->arch.target_channels; c++) {
        assert_string_equal(a->data.channels[c], b->data.channels[c]);
        assert_true(a->data.target_mean[c] == b->data.target_mean[c]);
        assert_true(a->data.target_std[c] == b->data.target_std[c]);
        assert_true(!a->data.has_clip || a->data.clip[c] == b->data.clip[c]);
        assert_true(!a->has_calibration ||
                    (a->cal_slope[c] == b->cal_slope[c] && a->cal_offset[c] == b->cal_offset[c]));
    }
}

/* ---- round trips --------------------------------------------------------------------------- */

static void round_trip(const char *variant, bool stochastic, int32_t blocks, int32_t targets)
{
    struct us_arch a = us_arch_default();
    assert_int_equal(us_arch_set_variant(&a, variant, NULL), US_OK);
    a.stochastic = stochastic;
    a.blocks_per_level = blocks;
    a.target_channels = targets;
    a.n_filters = 8;
    for (int32_t i = 0; i < a.n_levels; i++)
        a.z_dims[i] = 4 + i;
    int32_t patch = strcmp(variant, "vanilla") == 0 || strcmp(variant, "lean") == 0 ? 32 : 64;
    struct us_model *m;
    struct us_err err = {0};
    if (us_model_new(&a, patch, 5, &m, &err) != US_OK)
        fail_msg("%s: %s", variant, err.msg);
    us_vectors_fill_model(m);
    for (int64_t i = 0; i < m->net->n_counters; i++)
        m->counters[i] = 1000 + i;
    save(m, "round.safetensors");
    struct us_model *again = load("round.safetensors");
    assert_same_plain_members(m, again);
    assert_same_parameters(m, again);
    assert_true(again->complete);
    assert_string_equal(m->sha256, again->sha256);
    assert_int_equal(strlen(again->sha256), 64);
    us_model_free(m);
    us_model_free(again);
}

static void every_variant_reads_back_as_it_was_written(void **state)
{
    (void)state;
    static const char *const variants[] = {"vanilla", "lean", "regular", "deep"};
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        for (int stochastic = 0; stochastic < 2; stochastic++) {
            round_trip(variants[v], stochastic != 0, 1, 2);
            round_trip(variants[v], stochastic != 0, 2, stochastic != 0 ? 1 : 3);
        }
    }
}

static void fill_plain_members(struct us_model *m)
{
    (void)snprintf(m->name, sizeof(m->name), "a \"name\" with \\ and µ");
    (void)snprintf(m->data.channels[0], US_MAX_NAME, "actin");
    (void)snprintf(m->data.channels[1], US_MAX_NAME, "тубулин");
    m->data.mixing = US_MIX_SUM;
    m->data.has_clip = true;
    m->data.clip[0] = INFINITY;
    m->data.clip[1] = 65535.5;
    m->data.input_mean = 404.25864;
    m->data.input_std = 0.1 + 0.2; /* needs 17 digits */
    m->data.target_mean[0] = -1e-12;
    m->data.target_mean[1] = 1.0 / 3.0;
    m->data.target_std[0] = 240.41;
    m->data.target_std[1] = 3.0;
    m->data.context_padding = US_PAD_ZERO;
    m->data.pixel_size_um = 0.0645;
    m->inner_padding = 7;
    m->samples = 50;
    m->has_calibration = true;
    m->cal_slope[0] = 0.97;
    m->cal_slope[1] = 1.02;
    m->cal_offset[1] = -3.5;
}

static void every_member_reads_back_exactly(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    fill_plain_members(m);
    m->arch.var_clip_max = INFINITY;
    m->arch.dropout = 0.15f;
    m->arch.predict_logvar = US_LOGVAR_GLOBAL;
    save(m, "members.safetensors");
    struct us_model *again = load("members.safetensors");
    assert_same_plain_members(m, again);
    assert_same_parameters(m, again);
    us_model_free(m);
    us_model_free(again);
}

static char *file_text(const char *name, size_t *ret_n)
{
    FILE *f = fopen(us_test_path(name), "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *ret_n = (size_t)ftell(f);
    rewind(f);
    char *p = malloc(*ret_n + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, *ret_n, f), *ret_n);
    (void)fclose(f);
    return p;
}

static void the_same_model_gives_the_same_bytes(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    save(m, "one.safetensors");
    struct us_model *again = load("one.safetensors");
    save(again, "two.safetensors");
    size_t n1, n2;
    char *one = file_text("one.safetensors", &n1), *two = file_text("two.safetensors", &n2);
    assert_int_equal(n1, n2);
    assert_memory_equal(one, two, n1);
    free(one);
    free(two);
    us_model_free(m);
    us_model_free(again);
}

static void the_header_is_aligned_and_counters_come_first(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    assert_int_equal(strlen(b.header) % 8, 0);
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        int64_t at = us_model_bytes_tensor(&b, p->name) - b.data;
        int64_t counters = 0;
        for (int32_t k = 0; k < m->net->n_params; k++)
            counters += m->net->params[k].kind == US_PARAM_BN_COUNT;
        assert_true((p->kind == US_PARAM_BN_COUNT) == (at < counters * 8));
        assert_int_equal(at % (p->kind == US_PARAM_BN_COUNT ? 8 : 4), 0);
    }
    us_model_bytes_free(&b);
    us_model_free(m);
}

static void the_identity_is_the_sha256_of_the_file(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    save(m, "sum.safetensors");
    size_t n;
    char *bytes = file_text("sum.safetensors", &n), want[65];
    struct sha256_ctx hash;
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_init(&hash);
    sha256_update(&hash, n, (const uint8_t *)bytes);
    sha256_digest(&hash, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(want + 2 * i, 3, "%02x", digest[i]);
    free(bytes);
    assert_string_equal(m->sha256, want);
    us_model_free(m);
}

static void unknown_members_survive_a_load_and_a_save(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    char *h = us_text_replace(b.header, "\\\"provenance\\\": {}",
                              "\\\"provenance\\\": {\\\"seed\\\": 7, \\\"psnr\\\": 31.25}, "
                              "\\\"lab\\\": [1, null, \\\"x\\\"]");
    free(b.header);
    b.header = us_text_replace(h, "\\\"lc_scales\\\"", "\\\"colour\\\": true, \\\"lc_scales\\\"");
    free(h);
    struct us_err err = {0};
    if (us_model_bytes_parse(&b, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    us_model_bytes_free(&b);

    (void)snprintf(m->name, sizeof(m->name), "renamed");
    char *text;
    assert_int_equal(us_model_metadata(m, &text, NULL), US_OK);
    assert_non_null(strstr(text, "\"provenance\": {\"seed\": 7, \"psnr\": 31.25}"));
    assert_non_null(strstr(text, "\"lab\": [1, null, \"x\"]"));
    assert_non_null(strstr(text, "\"colour\": true"));
    assert_non_null(strstr(text, "\"name\": \"renamed\""));
    free(text);
    us_model_free(m);
}

static void metadata_numbers_are_short_and_in_the_order_of_the_design(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    m->data.input_mean = 404.2;
    char *text;
    assert_int_equal(us_model_metadata(m, &text, NULL), US_OK);
    assert_int_equal(strncmp(text, "{\"format_version\": 1, \"name\": \"untitled\", ", 42), 0);
    assert_non_null(strstr(text, "\"dropout\": 0.1, "));
    assert_non_null(strstr(text, "\"var_clip_max\": 20.0, "));
    assert_non_null(strstr(text, "\"input_mean\": 404.2, \"input_std\": 1.0, "));
    assert_non_null(strstr(text, "\"calibration\": null"));
    free(text);
    us_model_free(m);
}

/* ---- narrow types -------------------------------------------------------------------------- */

/* Rewrites one tensor of the file in 16 bits: the header's type and offsets behind it, the data. */
static void narrow_last_tensor(struct us_model_bytes *b, const char *dtype, const uint16_t *values,
                               size_t n)
{
    char *entry = strstr(b->header, "\"likelihood.parameter_net.bias\"");
    assert_non_null(entry);
    char with[256];
    (void)snprintf(with, sizeof(with),
                   "\"likelihood.parameter_net.bias\":{\"dtype\":\"%s\",\"shape\":[%zu],"
                   "\"data_offsets\":[%zu,%zu]}}",
                   dtype, n, b->n_data - 4 * n, b->n_data - 2 * n);
    *entry = '\0';
    size_t size = strlen(b->header) + strlen(with) + 1;
    char *h = malloc(size);
    assert_non_null(h);
    (void)snprintf(h, size, "%s%s", b->header, with);
    free(b->header);
    b->header = h;
    memcpy(b->data + b->n_data - 4 * n, values, 2 * n);
    b->n_data -= 2 * n;
}

static void assert_narrow(const char *dtype, const uint16_t values[4], const float want[4])
{
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    narrow_last_tensor(&b, dtype, values, 4);
    struct us_err err = {0};
    if (us_model_bytes_parse(&b, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    int32_t i = us_net_find_param(m->net, "likelihood.parameter_net.bias");
    assert_memory_equal(m->weights + m->net->params[i].offset, want, 4 * sizeof(float));
    us_model_free(m);
    us_model_bytes_free(&b);
}

static void bf16_and_f16_weights_are_widened_exactly(void **state)
{
    (void)state;
    static const uint16_t b16[4] = {0x3f80, 0xc049, 0x0001, 0x7f7f};
    const float b32[4] = {1.0f, -3.140625f, us_f32_of_bf16(1), 3.3895313892515355e38f};
    assert_narrow("BF16", b16, b32);
    static const uint16_t h16[4] = {0x3c00, 0xc248, 0x0001, 0x7bff};
    static const float h32[4] = {1.0f, -3.140625f, 0x1p-24f, 65504.0f};
    assert_narrow("F16", h16, h32);
    static const uint16_t s16[4] = {0x8000, 0x83ff, 0x0400, 0xfbff};
    static const float s32[4] = {-0.0f, -0x1.ff8p-15f, 0x1p-14f, -65504.0f};
    assert_narrow("F16", s16, s32);
}

static void narrow_infinities_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *dtype;
        uint16_t value;
    } rows[] = {{"F16", 0x7c00}, {"F16", 0xfe00}, {"BF16", 0x7f80}, {"BF16", 0xffc0}};
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_model *m = us_small_model();
        struct us_model_bytes b = us_model_bytes_of(m);
        us_model_free(m);
        const uint16_t values[4] = {0, 0, 0, rows[i].value};
        narrow_last_tensor(&b, rows[i].dtype, values, 4);
        struct us_err err = {0};
        assert_int_equal(us_model_bytes_parse(&b, &m, &err), US_E_FORMAT);
        assert_non_null(strstr(err.msg, "likelihood.parameter_net.bias: element 3"));
        us_model_bytes_free(&b);
    }
}

/* ---- absent tensors ------------------------------------------------------------------------ */

/* Takes tensors out of the file: header and data are put together anew from the parameter table. */
static void write_without(struct us_model_bytes *b, const struct us_model *m,
                          bool (*skip_param)(const struct us_param *))
{
    struct usi_text header = {0}, data = {0};
    const char *end = strstr(b->header, "}\"}");
    assert_non_null(end);
    usi_text_add(&header, b->header, (size_t)(end + 3 - b->header));
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        if (skip_param(p))
            continue;
        bool counter = p->kind == US_PARAM_BN_COUNT;
        size_t begin = data.n;
        char shape[100];
        usi_text_add(&data, us_model_bytes_tensor(b, p->name),
                     (size_t)p->count * (counter ? 8 : 4));
        usi_text_printf(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,", p->name,
                        counter ? "I64" : "F32",
                        usi_shape_text(p->dim, p->ndim, shape, sizeof(shape)));
        usi_text_printf(&header, "\"data_offsets\":[%zu,%zu]}", begin, data.n);
    }
    usi_text_add(&header, "}", 1);
    assert_false(header.failed || data.failed);
    us_model_bytes_free(b);
    *b = (struct us_model_bytes){header.p, data.p, data.n};
}

static bool is_train_only(const struct us_param *p)
{
    return (p->flags & US_PARAM_TRAIN_ONLY) != 0;
}

static bool is_dead(const struct us_param *p)
{
    return (p->flags & US_PARAM_DEAD) != 0;
}

static bool is_optional(const struct us_param *p)
{
    return (p->flags & US_PARAM_OPTIONAL) != 0;
}

static bool is_head_bias(const struct us_param *p)
{
    return strcmp(p->name, "likelihood.parameter_net.bias") == 0;
}

static bool is_owner_of_lowres_net(const struct us_param *p)
{
    return strcmp(p->name, "bottom_up_layers.0.net.0.res.block.2.weight") == 0;
}

static struct us_model_bytes bytes_without(bool (*skip_param)(const struct us_param *))
{
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    write_without(&b, m, skip_param);
    us_model_free(m);
    return b;
}

static void tensors_that_only_training_needs_may_be_missing(void **state)
{
    (void)state;
    struct us_model_bytes b = bytes_without(is_train_only);
    struct us_model *m;
    struct us_err err = {0};
    if (us_model_bytes_parse(&b, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    assert_false(m->complete);
    /* They stay absent when the model is written: zeros would look like weights. */
    struct us_model_bytes again = us_model_bytes_of(m);
    assert_null(strstr(again.header, "conv_in_p"));
    assert_null(strstr(again.header, "top_prior_params"));
    us_model_free(m);
    assert_int_equal(us_model_bytes_parse(&again, &m, &err), US_OK);
    assert_false(m->complete);
    us_model_free(m);
    us_model_bytes_free(&again);
    us_model_bytes_free(&b);
}

static void tensors_that_nothing_reads_may_be_missing(void **state)
{
    (void)state;
    struct us_model_bytes b = bytes_without(is_dead);
    struct us_model *m;
    assert_int_equal(us_model_bytes_parse(&b, &m, NULL), US_OK);
    assert_true(m->complete);
    us_model_free(m);
    us_model_bytes_free(&b);
}

static void counters_and_second_names_may_be_missing(void **state)
{
    (void)state;
    struct us_model_bytes b = bytes_without(is_optional);
    assert_null(strstr(b.header, "lowres_net"));
    struct us_model *m, *whole = us_small_model();
    assert_int_equal(us_model_bytes_parse(&b, &m, NULL), US_OK);
    assert_true(m->complete);
    assert_same_parameters(m, whole);
    /* Upstream's strict loading wants the second names: they are written. */
    struct us_model_bytes again = us_model_bytes_of(m);
    assert_non_null(strstr(again.header, "bottom_up_layers.0.lowres_net.0.res.block.0.weight"));
    us_model_free(m);
    us_model_free(whole);
    us_model_bytes_free(&again);
    us_model_bytes_free(&b);
}

static void a_tensor_that_prediction_needs_must_be_there(void **state)
{
    (void)state;
    static const struct {
        bool (*skip_param)(const struct us_param *);
        const char *msg;
    } rows[] = {
        {is_head_bias, "tensor likelihood.parameter_net.bias is missing; expected F32 [4]"},
        {is_owner_of_lowres_net, "tensor bottom_up_layers.0.net.0.res.block.2.weight is missing"},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_model_bytes b = bytes_without(rows[i].skip_param);
        struct us_model *m;
        struct us_err err = {0};
        assert_int_equal(us_model_bytes_parse(&b, &m, &err), US_E_FORMAT);
        if (strstr(err.msg, rows[i].msg) == NULL)
            fail_msg("%s", err.msg);
        us_model_bytes_free(&b);
    }
}

/* ---- files --------------------------------------------------------------------------------- */

static void paths_that_are_no_model_file_are_named_in_the_error(void **state)
{
    (void)state;
    struct us_model *m;
    struct us_err err = {0};
    assert_int_equal(us_model_load(us_test_path("absent"), &m, &err), US_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "absent"));
    assert_int_equal(us_model_load(us_test_folder(), &m, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "not a regular file"));
    assert_int_equal(mkfifo(us_test_path("fifo"), 0600), 0);
    assert_int_equal(us_model_load(us_test_path("fifo"), &m, &err), US_E_FORMAT);
    FILE *f = fopen(us_test_path("empty"), "wb");
    assert_non_null(f);
    (void)fclose(f);
    assert_int_equal(us_model_load(us_test_path("empty"), &m, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "the file has 0 bytes"));
}

static void saving_replaces_the_file_and_leaves_no_other(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    mode_t old = umask(027);
    save(m, "replaced.safetensors");
    save(m, "replaced.safetensors");
    (void)umask(old);
    struct stat st;
    assert_int_equal(stat(us_test_path("replaced.safetensors"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    us_model_free(m);
}

static void a_path_that_cannot_be_written_is_named_in_the_error(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_err err = {0};
    assert_int_equal(us_model_save(m, us_test_path("no/such/folder/m"), &err), US_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "no/such/folder"));
    assert_int_equal(us_model_save(m, us_test_path("folder/"), &err), US_E_ARG);
    assert_int_equal(us_model_save(m, "", &err), US_E_ARG);
    assert_int_equal(us_model_save(m, "..", &err), US_E_ARG);
    assert_string_equal(m->sha256, "");
    us_model_free(m);
}

static void a_model_that_could_not_be_read_is_not_written(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_err err = {0};
    char *text = NULL;
    m->data.input_std = NAN;
    assert_int_equal(us_model_save(m, us_test_path("bad.safetensors"), &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "input_std is \"not finite\""));
    m->data.input_std = 0.0;
    assert_int_equal(us_model_metadata(m, &text, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "input_std is 0"));
    m->data.input_std = 1.0;
    static const char *const bad_names[] = {
        "",         "\xff", "a\x80", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "\xe2\x82", "tab\t"};
    for (size_t i = 0; i < US_COUNT(bad_names); i++) {
        (void)snprintf(m->data.channels[1], US_MAX_NAME, "%s", bad_names[i]);
        assert_int_equal(us_model_metadata(m, &text, &err), US_E_ARG);
        assert_non_null(strstr(err.msg, "data.channels[1] is null; expected 1 to 127 bytes"));
    }
    (void)snprintf(m->data.channels[1], US_MAX_NAME, "\xf0\x9f\x94\xac \xed\x9f\xbf");
    m->data.has_clip = true;
    m->data.clip[0] = NAN; /* must not become "no clip" */
    m->data.clip[1] = 1.0;
    assert_int_equal(us_model_metadata(m, &text, &err), US_E_ARG);
    m->data.has_clip = false;
    assert_int_equal(us_model_metadata(m, &text, &err), US_OK);
    free(text);
    text = NULL;
    m->data.context_method = US_CONTEXT_SINGLE;
    assert_int_equal(us_model_metadata(m, &text, &err), US_E_ARG);
    assert_null(text);
    assert_int_equal(access(us_test_path("bad.safetensors"), F_OK), -1);
    us_model_free(m);
}

static int remove_folder(void **state)
{
    (void)state;
    us_test_folder_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_variant_reads_back_as_it_was_written),
        cmocka_unit_test(every_member_reads_back_exactly),
        cmocka_unit_test(the_same_model_gives_the_same_bytes),
        cmocka_unit_test(the_header_is_aligned_and_counters_come_first),
        cmocka_unit_test(the_identity_is_the_sha256_of_the_file),
        cmocka_unit_test(unknown_members_survive_a_load_and_a_save),
        cmocka_unit_test(metadata_numbers_are_short_and_in_the_order_of_the_design),
        cmocka_unit_test(bf16_and_f16_weights_are_widened_exactly),
        cmocka_unit_test(narrow_infinities_are_refused),
        cmocka_unit_test(tensors_that_only_training_needs_may_be_missing),
        cmocka_unit_test(tensors_that_nothing_reads_may_be_missing),
        cmocka_unit_test(counters_and_second_names_may_be_missing),
        cmocka_unit_test(a_tensor_that_prediction_needs_must_be_there),
        cmocka_unit_test(paths_that_are_no_model_file_are_named_in_the_error),
        cmocka_unit_test(saving_replaces_the_file_and_leaves_no_other),
        cmocka_unit_test(a_path_that_cannot_be_written_is_named_in_the_error),
        cmocka_unit_test(a_model_that_could_not_be_read_is_not_written),
    };
    return cmocka_run_group_tests(tests, NULL, remove_folder);
}
