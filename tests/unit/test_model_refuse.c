/* Model files that are wrong: each is refused, and the reason names what and where. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_model_bytes.h"
#include "us_model_file.h"

static void assert_parse_fails(const struct us_model_bytes *b, const char *what,
                               enum us_status status, const char *msg)
{
    struct us_model *m = NULL;
    struct us_err err = {0};
    enum us_status s = us_model_bytes_parse(b, &m, &err);
    if (s != status || strstr(err.msg, msg) == NULL)
        fail_msg("%s: wanted %s \"%s\", got %s \"%s\"", what, us_status_name(status), msg,
                 us_status_name(s), err.msg);
    assert_null(m);
}

/* The first `find` in a text becomes `with`; then reading fails with status, and msg names why. */
struct bad_text {
    const char *find, *with;
    enum us_status status;
    const char *msg;
};

#define BIAS "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[4],"

static const struct bad_text bad_headers[] = {
    {"{", "[", US_E_FORMAT, "not valid JSON"},
    {"{", "{{", US_E_FORMAT, "not valid JSON"},
    {"{\"__metadata__\":{", "{\"__metadata__\":[{", US_E_FORMAT, "not valid JSON"},
    {"\"format\":\"usplit-model\"", "\"format\":\"usplit-model\",\"format\":\"usplit-model\"",
     US_E_FORMAT, "duplicate"},
    {"\"__metadata__\"", "\"metadata\"", US_E_FORMAT, "__metadata__"},
    {"\"format\":\"usplit-model\",", "", US_E_FORMAT, "__metadata__.format is missing"},
    {"\"format\":\"usplit-model\"", "\"format\":\"pt\"", US_E_FORMAT, "format is \"pt\""},
    {"\"format\":\"usplit-model\"", "\"format\":3", US_E_FORMAT, "map of strings"},
    {"\"format\":\"usplit-model\"", "\"x\":{},\"format\":\"usplit-model\"", US_E_FORMAT,
     "map of strings"},
    {"\"usplit\":", "\"usplat\":", US_E_FORMAT, "__metadata__.usplit is missing"},
    {"\"usplit\":\"{", "\"usplit\":\"", US_E_FORMAT, "__metadata__.usplit is not valid JSON"},
    {"\"usplit\":\"", "\"usplit\":\"\\u0000", US_E_FORMAT, "not valid JSON"},
    {"\"usplit\":\"", "\"usplit\":\"\xff", US_E_FORMAT, "not valid JSON"},
    {"\"usplit\":\"", "\"usplit\":\"\xc3(", US_E_FORMAT, "not valid JSON"},
    {BIAS, "\"first_bottom_up.0.weight\":{\"dtype\":\"F32\",\"shape\":[4],", US_E_FORMAT,
     "duplicate"},
    {BIAS, "\"likelihood.parameter_net.bias\":[1,{\"dtype\":\"F32\",\"shape\":[4],", US_E_FORMAT,
     "not valid JSON"},
    {"\"dtype\":\"F32\",\"shape\":[4],", "\"shape\":[4],", US_E_FORMAT, "dtype is missing"},
    {"\"shape\":[4],", "", US_E_FORMAT, "shape is missing"},
    {"\"shape\":[4],", "\"shape\":[4],\"stride\":[1],", US_E_FORMAT, "members beside"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F64\",\"shape\":[4],", US_E_FORMAT,
     "dtype is \"F64\"; expected F32, BF16, F16 or I64"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":32,\"shape\":[4],", US_E_FORMAT,
     "dtype is 32"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"BF16\",\"shape\":[4],", US_E_FORMAT,
     "does not take the 16 bytes"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[5],", US_E_FORMAT,
     "F32 [5] does not take the 16 bytes"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"I64\",\"shape\":[2],", US_E_FORMAT,
     "has shape [2]; expected [4]"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[2, 2],", US_E_FORMAT,
     "has shape [2, 2]; expected [4]"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[4, 1],", US_E_FORMAT,
     "has shape [4, 1]; expected [4]"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":4,", US_E_FORMAT,
     "shape is not a list"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[-4],", US_E_FORMAT,
     "shape is not a list"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[4.0],", US_E_FORMAT,
     "shape is not a list"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,4],",
     US_E_FORMAT, "shape is not a list of at most 8"},
    {BIAS,
     "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],",
     US_E_FORMAT, "more elements than any file"},
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[4611686018427387908],",
     US_E_FORMAT, "does not take"}, /* times 4 is 16, modulo 2^64 */
    {BIAS, "\"likelihood.parameter_net.bias\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],",
     US_E_FORMAT, "not valid JSON"},
    {BIAS, "\"likelihood.other\":{\"dtype\":\"F32\",\"shape\":[4],", US_E_FORMAT,
     "likelihood.parameter_net.bias is missing"},
    {BIAS "\"data_offsets\":[", BIAS "\"data_offsets\":[-", US_E_FORMAT, "data_offsets"},
    {BIAS "\"data_offsets\":[", BIAS "\"data_offsets\":[0,", US_E_FORMAT, "list of two"},
    {BIAS "\"data_offsets\":[", BIAS "\"data_offsets\":[1", US_E_FORMAT, "lie outside"},
    {BIAS "\"data_offsets\":[", BIAS "\"data_offsets\":[9223372036854775807,7],\"x\":[",
     US_E_FORMAT, "members beside"},
};

static void a_wrong_header_is_refused_with_its_reason(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes good = us_model_bytes_of(m);
    us_model_free(m);
    for (size_t i = 0; i < US_COUNT(bad_headers); i++) {
        struct us_model_bytes bad = good;
        bad.header = us_text_replace(good.header, bad_headers[i].find, bad_headers[i].with);
        assert_parse_fails(&bad, bad_headers[i].with, bad_headers[i].status, bad_headers[i].msg);
        free(bad.header);
    }
    us_model_bytes_free(&good);
}

/* The metadata text as a reader sees it; rows change it before it is escaped again. */
static const struct bad_text bad_members[] = {
    {"\"format_version\": 1, ", "", US_E_FORMAT, "format_version is missing"},
    {"\"format_version\": 1", "\"format_version\": 2", US_E_UNSUPPORTED, "newer usplit"},
    {"\"format_version\": 1", "\"format_version\": \"1\"", US_E_FORMAT, "expected 1"},
    {"\"format_version\": 1", "\"format_version\": 0", US_E_FORMAT, "expected 1"},
    {"\"name\": \"untitled\", ", "", US_E_FORMAT, "name is missing"},
    {"\"untitled\"", "\"\"", US_E_FORMAT, "name is \"\"; expected 1 to 127 bytes"},
    {"\"untitled\"", "\"a\\nb\"", US_E_FORMAT, "without control characters"},
    {"\"untitled\"", "17", US_E_FORMAT, "name is 17"},
    {"\"architecture\": {", "\"architecture\": 5, \"a\": {", US_E_FORMAT,
     "architecture is 5; expected an object"},
    {"\"family\": \"lvae\", ", "", US_E_FORMAT, "architecture.family is missing"},
    {"\"family\": \"lvae\"", "\"family\": \"unet\"", US_E_UNSUPPORTED,
     "architecture.family is \"unet\", which this version does not support yet"},
    {"\"family\": \"lvae\"", "\"family\": \"bravenet\"", US_E_UNSUPPORTED, "bravenet"},
    {"\"family\": \"lvae\"", "\"family\": \"resnet\"", US_E_FORMAT,
     "architecture.family is \"resnet\"; expected \"lvae\""},
    {"\"stochastic\": true", "\"stochastic\": 1", US_E_FORMAT, "expected true or false"},
    {"\"z_dims\": [6, 6]", "\"z_dims\": []", US_E_FORMAT, "a list of 1 to 16"},
    {"\"z_dims\": [6, 6]", "\"z_dims\": 6", US_E_FORMAT, "z_dims is 6"},
    {"\"z_dims\": [6, 6]", "\"z_dims\": [6, 0]", US_E_FORMAT,
     "architecture.z_dims[1] is 0; expected an integer from 1 to 1024"},
    {"\"z_dims\": [6, 6]", "\"z_dims\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", US_E_FORMAT,
     "a list of 1 to 16"},
    {"\"z_dims\": [6, 6]", "\"z_dims\": [6, 7]", US_E_FORMAT, "has shape"},
    {"\"n_filters\": 4", "\"n_filters\": 4.5", US_E_FORMAT,
     "architecture.n_filters is 4.5; expected an integer from 1 to 512"},
    {"\"n_filters\": 4", "\"n_filters\": 100000000000000", US_E_FORMAT, "from 1 to 512"},
    {"\"n_filters\": 4", "\"n_filters\": -1", US_E_FORMAT, "n_filters is -1"},
    {"\"n_filters\": 4", "\"n_filters\": 5", US_E_FORMAT, "has shape"},
    {"\"lc_scales\": 2", "\"lc_scales\": 4", US_E_FORMAT, "at most levels + 1"},
    {"\"lc_scales\": 2", "\"lc_scales\": 1", US_E_FORMAT, "has shape"},
    {"\"blocks_per_level\": 2", "\"blocks_per_level\": 1", US_E_FORMAT,
     "has no place in the network"},
    {"\"lc_scales\": 2", "\"lc_scales\": 3", US_E_FORMAT, "is missing"},
    {"\"blocks_per_level\": 2", "\"blocks_per_level\": 9", US_E_FORMAT, "from 1 to 8"},
    {"\"dropout\": 0.1", "\"dropout\": 1.0", US_E_FORMAT, "dropout is 1"},
    {"\"dropout\": 0.1", "\"dropout\": null", US_E_FORMAT, "dropout is null"},
    {"\"dropout\": 0.1", "\"dropout\": 1e400", US_E_FORMAT, "not valid JSON"},
    {"\"dropout\": 0.1", "\"dropout\": NaN", US_E_FORMAT, "not valid JSON"},
    {"\"pixelwise\"", "\"pixel\"", US_E_FORMAT, "\"none\" or \"pixelwise\" or"},
    {"\"target_channels\": 2", "\"target_channels\": 17", US_E_FORMAT, "from 1 to 16"},
    {"\"target_channels\": 2", "\"target_channels\": 1", US_E_FORMAT,
     "data.channels is a list of 2; expected a list of 1, one per target channel"},
    {"\"patch_size\": 16", "\"patch_size\": 17", US_E_FORMAT, "even number"},
    {"\"patch_size\": 16", "\"patch_size\": 4", US_E_FORMAT, "from 8 to 4096"},
    {"\"patch_size\": 16", "\"patch_size\": 32", US_E_FORMAT, "top_prior_params has shape"},
    {"\"mixing\": \"average\"", "\"mixing\": \"max\"", US_E_FORMAT,
     "data.mixing is \"max\"; expected \"average\" or \"sum\""},
    {"\"clip\": null", "\"clip\": [1.0]", US_E_FORMAT, "data.clip is a list of 1"},
    {"\"clip\": null", "\"clip\": [1.0, \"x\"]", US_E_FORMAT, "data.clip[1] is \"x\""},
    {"\"input_mean\": 0.0, ", "", US_E_FORMAT, "data.input_mean is missing"},
    {"\"input_std\": 1.0", "\"input_std\": 0", US_E_FORMAT, "data.input_std is 0; expected"},
    {"\"input_std\": 1.0", "\"input_std\": -1.0", US_E_FORMAT, "data.input_std is -1"},
    {"\"input_std\": 1.0", "\"input_std\": null", US_E_FORMAT, "data.input_std is null"},
    {"\"target_std\": [1.0, 1.0]", "\"target_std\": [1.0, 0.0]", US_E_FORMAT,
     "data.target_std[1] is 0"},
    {"\"method\": \"halving\"", "\"method\": \"single\"", US_E_UNSUPPORTED,
     "data.context.method is \"single\", which this version does not support yet"},
    {"\"padding\": \"reflect\"", "\"padding\": \"wrap\"", US_E_FORMAT, "data.context.padding"},
    {"\"context\": {", "\"context\": 1, \"a\": {", US_E_FORMAT, "data.context is 1"},
    {"\"pixel_size_um\": null", "\"pixel_size_um\": 0", US_E_FORMAT, "or null"},
    {"\"inner_padding\": 7", "\"inner_padding\": 8", US_E_FORMAT,
     "prediction.inner_padding is 8 on patch_size 16; expected at most 7"},
    {"\"samples\": 1", "\"samples\": 0", US_E_FORMAT, "from 1 to 65535"},
    {"\"calibration\": null", "\"calibration\": {}", US_E_FORMAT, "calibration.slope is missing"},
    {"\"calibration\": null", "\"calibration\": {\"slope\": [1], \"offset\": [0]}", US_E_FORMAT,
     "calibration.slope is a list of 1"},
    {"\"provenance\": {}", "\"name\": \"again\"", US_E_FORMAT, "duplicate"},
};

static void a_wrong_member_is_refused_by_name_value_and_range(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes good = us_model_bytes_of(m);
    char *text;
    assert_int_equal(us_model_metadata(m, &text, NULL), US_OK);
    us_model_free(m);
    struct usi_text quoted = {0};
    usi_text_add_string(&quoted, text);
    for (size_t i = 0; i < US_COUNT(bad_members); i++) {
        char *changed = us_text_replace(text, bad_members[i].find, bad_members[i].with);
        struct usi_text with = {0};
        usi_text_add_string(&with, changed);
        struct us_model_bytes bad = good;
        bad.header = us_text_replace(good.header, quoted.p, with.p);
        assert_parse_fails(&bad, bad_members[i].with, bad_members[i].status, bad_members[i].msg);
        free(bad.header);
        free(with.p);
        free(changed);
    }
    free(quoted.p);
    free(text);
    us_model_bytes_free(&good);
}

static void tensors_that_do_not_tile_the_data_are_refused(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    char at[64], to[64];
    /* The last tensor, 16 bytes, moved one back or given twice the room after the data grew. */
    (void)snprintf(at, sizeof(at), "[%zu,%zu]}}", b.n_data - 16, b.n_data);
    struct us_model_bytes bad = b;
    (void)snprintf(to, sizeof(to), "[%zu,%zu]}}", b.n_data - 20, b.n_data - 4);
    bad.header = us_text_replace(b.header, at, to);
    assert_parse_fails(&bad, "overlap", US_E_FORMAT,
                       "likelihood.parameter_net.weight and likelihood.parameter_net.bias overlap");
    free(bad.header);

    bad = b;
    bad.n_data += 8;
    bad.data = calloc(1, bad.n_data);
    assert_non_null(bad.data);
    memcpy(bad.data, b.data, b.n_data);
    assert_parse_fails(&bad, "tail", US_E_FORMAT, "last 8 bytes belong to no tensor");
    (void)snprintf(to, sizeof(to), "[%zu,%zu]}}", b.n_data - 8, b.n_data + 8);
    bad.header = us_text_replace(b.header, at, to);
    assert_parse_fails(&bad, "gap", US_E_FORMAT,
                       "8 bytes before tensor likelihood.parameter_net.bias belong to no tensor");
    free(bad.header);
    free(bad.data);

    bad = b;
    bad.n_data -= 4;
    assert_parse_fails(&bad, "cut", US_E_FORMAT, "lie outside of the file's");
    us_model_bytes_free(&b);
}

static void a_weight_stored_as_integers_is_refused(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    char at[64], to[64];
    (void)snprintf(at, sizeof(at), "\"F32\",\"shape\":[4],\"data_offsets\":[%zu,", b.n_data - 16);
    (void)snprintf(to, sizeof(to), "\"I64\",\"shape\":[4],\"data_offsets\":[%zu,", b.n_data - 16);
    char *header = us_text_replace(b.header, at, to);
    (void)snprintf(at, sizeof(at), ",%zu]}}", b.n_data);
    (void)snprintf(to, sizeof(to), ",%zu]}}", b.n_data + 16);
    struct us_model_bytes bad = {us_text_replace(header, at, to), calloc(1, b.n_data + 16),
                                 b.n_data + 16};
    assert_non_null(bad.data);
    assert_parse_fails(&bad, "integers", US_E_FORMAT,
                       "likelihood.parameter_net.bias has dtype I64; expected F32, BF16 or F16");
    free(header);
    us_model_bytes_free(&bad);
    us_model_bytes_free(&b);
}

static void set_f32(const struct us_model_bytes *b, const char *name, float value)
{
    memcpy(us_model_bytes_tensor(b, name), &value, sizeof(value));
}

static void weights_that_are_not_finite_are_refused(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < US_COUNT(values); i++) {
        struct us_model *m = us_small_model();
        struct us_model_bytes b = us_model_bytes_of(m);
        us_model_free(m);
        set_f32(&b, "first_bottom_up.0.bias", values[i]);
        assert_parse_fails(&b, "not finite", US_E_FORMAT,
                           "tensor first_bottom_up.0.bias: element 0 is ");
        us_model_bytes_free(&b);
    }
}

static void two_names_of_the_same_weights_must_agree(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    set_f32(&b, "bottom_up_layers.1.lowres_net.0.res.block.2.weight", 0.125f);
    assert_parse_fails(&b, "twin", US_E_FORMAT,
                       "bottom_up_layers.1.lowres_net.0.res.block.2.weight differs");
    us_model_bytes_free(&b);

    m = us_small_model();
    b = us_model_bytes_of(m);
    us_model_free(m);
    int64_t seven = 7, minus = -1;
    memcpy(us_model_bytes_tensor(&b, "bottom_up_layers.1.lowres_net.0.res.block.0."
                                     "num_batches_tracked"),
           &seven, sizeof(seven));
    assert_parse_fails(&b, "twin", US_E_FORMAT, "under its other name it is 0");
    memcpy(us_model_bytes_tensor(&b, "first_bottom_up.2.res.block.0.num_batches_tracked"), &minus,
           sizeof(minus));
    assert_parse_fails(&b, "counter", US_E_FORMAT, "is -1; expected 0 or more");
    us_model_bytes_free(&b);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    size_t n;
    char *bytes = us_model_bytes_join(&b, &n);
    for (size_t cut = 0; cut < n; cut += cut < 64 || n - cut < 64 ? 1 : 997) {
        char *part = malloc(cut + 1); /* its own block: reading beyond it is seen */
        assert_non_null(part);
        memcpy(part, bytes, cut);
        struct us_err err = {0};
        assert_int_equal(us_model_parse(part, cut, &m, &err), US_E_FORMAT);
        assert_true(strlen(err.msg) > 0);
        free(part);
    }
    free(bytes);
    us_model_bytes_free(&b);
}

static void a_header_length_beyond_the_file_is_refused(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {9, 1ULL << 31, 1ULL << 62, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < US_COUNT(lengths); i++) {
        char bytes[16] = {0};
        memcpy(bytes, &lengths[i], sizeof(lengths[i]));
        struct us_model *m;
        struct us_err err = {0};
        assert_int_equal(us_model_parse(bytes, sizeof(bytes), &m, &err), US_E_FORMAT);
        assert_non_null(strstr(err.msg, "the file has 16"));
    }
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
        cmocka_unit_test(a_wrong_header_is_refused_with_its_reason),
        cmocka_unit_test(a_wrong_member_is_refused_by_name_value_and_range),
        cmocka_unit_test(tensors_that_do_not_tile_the_data_are_refused),
        cmocka_unit_test(a_weight_stored_as_integers_is_refused),
        cmocka_unit_test(weights_that_are_not_finite_are_refused),
        cmocka_unit_test(two_names_of_the_same_weights_must_agree),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_header_length_beyond_the_file_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, remove_folder);
}
