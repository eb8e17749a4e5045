/* TRAIN.json: what is accepted, and why the rest is not. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_train_config.h"

static enum us_status parse(const char *text, struct us_train_settings *s, struct us_err *err)
{
    return us_train_settings_parse(text, strlen(text), "t.json", s, err);
}

static void empty_object_gives_the_papers_defaults(void **state)
{
    (void)state;
    struct us_train_settings s;
    assert_int_equal(parse("{}", &s, NULL), US_OK);
    assert_int_equal(s.top_patch_size, 64);
    assert_int_equal(s.training_batch, 32);
    assert_int_equal(s.training_max_epochs, 200);
    assert_int_equal(s.training_lr_patience, 15);
    assert_int_equal(s.training_stop_patience, 100);
    assert_true(s.training_lr == 1e-3 && s.training_clip_norm == 0.5);
    assert_true(s.data_clip_percentile == 0.995 && s.data_val_fraction == 0.1);
    assert_int_equal(s.architecture_lc_scales, 5);
    assert_int_equal(s.architecture_z_dims.n, 4);
    assert_int_equal(s.architecture_z_dims.v[3], 128);
    assert_true(s.architecture_decoder_retain && s.architecture_stochastic);
    assert_true(s.architecture_var_clip_max == 20.0);
    assert_string_equal(s.top_name, "model");
}

static void settings_printed_and_parsed_are_the_same(void **state)
{
    (void)state;
    static const char text[] =
        "{\"name\":\"a\",\"patch_size\":32,\"architecture\":{\"variant\":\"deep\",\"n_filters\":8,"
        "\"var_clip_max\":null},\"data\":{\"channels\":[2,\"DNA\"],\"input_channel\":\"mix\","
        "\"mixing\":[[0.25,0.75],[0.5,0.5]],\"padding\":\"zero\"},\"training\":{\"lr\":3.3e-4,"
        "\"channel_weights\":[1,0.5],\"loss\":\"mse\",\"seed\":9223372036854775807}}";
    struct us_train_settings a, b;
    assert_int_equal(parse(text, &a, NULL), US_OK);
    char *printed = us_train_settings_print(&a);
    assert_non_null(printed);
    assert_int_equal(parse(printed, &b, NULL), US_OK);
    assert_memory_equal(&a, &b, sizeof(a));
    free(printed);
    assert_true(isinf(a.architecture_var_clip_max));
    assert_int_equal(a.architecture_z_dims.n, 8);
    assert_int_equal(a.data_channels.v[0].index, 2);
    assert_string_equal(a.data_channels.v[1].name, "DNA");
    assert_string_equal(a.data_input_channel.v[0].name, "mix");
    assert_true(a.data_mixing.min[0] == 0.25 && a.data_mixing.max[1] == 0.5);
    assert_true(a.training_seed == INT64_MAX);
}

static void variant_yields_to_members_whatever_their_order(void **state)
{
    (void)state;
    struct us_train_settings s;
    assert_int_equal(
        parse("{\"architecture\":{\"lc_scales\":2,\"variant\":\"vanilla\"}}", &s, NULL), US_OK);
    assert_int_equal(s.architecture_lc_scales, 2);
    assert_false(s.architecture_decoder_retain);
}

/* A mistake and what the error must say of it. */
static const struct {
    const char *text, *says, *reason;
} bad[] = {
    {"", "line 1", "empty"},
    {"{\"name\":1", "line 1", "cut off"},
    {"[]", "not an object", "another outermost type"},
    {"{\"name\":\"a\",\"name\":\"b\"}", "duplicate", "one of the two was meant otherwise"},
    {"{\"trainig\":{}}", "nearest known one is training", "misspelt section"},
    {"{\"training\":{\"bach\":8}}", "nearest known one is training.batch", "misspelt key"},
    {"{\"training\":{\"val_fraction\":0.1}}", "belongs to data", "key of another section"},
    {"{\"batch\":8}", "belongs to training", "section forgotten"},
    {"{\"data\":[]}", "data is not an object", "a list for a section"},
    {"{\"training\":{\"batch\":\"8\"}}", "training.batch: found \"8\"", "a text for a number"},
    {"{\"training\":{\"batch\":8.0}}", "an integer from 1 to 4096", "a real for an integer"},
    {"{\"training\":{\"batch\":0}}", "found 0; allowed: an integer from 1 to 4096", "below"},
    {"{\"training\":{\"batch\":4097}}", "found 4097", "above"},
    {"{\"training\":{\"lr\":0}}", "a number from 1e-12 to 10", "a learning rate of nothing"},
    {"{\"training\":{\"lr\":1e400}}", "line 1", "no double"},
    {"{\"training\":{\"lr\":true}}", "training.lr: found true", "a flag for a number"},
    {"{\"training\":{\"seed\":-1}}", "training.seed: found -1", "below"},
    {"{\"training\":{\"loss\":\"l1\"}}", "one of elbo|mse", "no such word"},
    {"{\"training\":{\"loss\":\"elb\"}}", "one of elbo|mse", "half a word"},
    {"{\"training\":{\"channel_weights\":[]}}", "training.channel_weights", "empty list"},
    {"{\"training\":{\"channel_weights\":[0,0]}}", "found [0,0]", "would train nothing"},
    {"{\"training\":{\"channel_weights\":[1,-1]}}", "found [1,-1]", "negative weight"},
    {"{\"training\":{\"kl_annealing\":1}}", "true or false", "a number for a flag"},
    {"{\"architecture\":{\"z_dims\":[]}}", "a list of 1 to 16", "no level"},
    {"{\"architecture\":{\"z_dims\":[4,0]}}", "found [4,0]", "a level without channels"},
    {"{\"architecture\":{\"z_dims\":4}}", "found 4", "no list"},
    {"{\"architecture\":{\"dropout\":1}}", "architecture.dropout", "drops everything"},
    {"{\"architecture\":{\"variant\":\"unet\"}}", "vanilla|lean|regular|deep", "no such variant"},
    {"{\"data\":{\"channels\":[-1]}}", "data.channels", "counted from 0"},
    {"{\"data\":{\"channels\":[\"\"]}}", "data.channels", "no name"},
    {"{\"data\":{\"channels\":0}}", "a list of 1 to 16", "no list"},
    {"{\"data\":{\"input_channel\":[0]}}", "a channel's number or name", "a list for one"},
    {"{\"data\":{\"mixing\":\"sum\"}}", "\"average\" or a list", "no such mixing"},
    {"{\"data\":{\"mixing\":[[0.6,0.4]]}}", "0 <= min <= max", "upside down"},
    {"{\"data\":{\"mixing\":[[0,0],[0,0]]}}", "data.mixing", "an input of nothing"},
    {"{\"data\":{\"clip_percentile\":99.5}}", "a number from 0 to 1", "percent for a share"},
    {"{\"patch_size\":null}", "patch_size: found null", "null where there is a default"},
    {"{\"name\":{\"name\":{\"name\":{}}}}", "name: found", "nested where nothing nests"},
};

static void mistakes_are_refused_with_key_value_and_range(void **state)
{
    (void)state;
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_train_settings s;
        struct us_err err = {0};
        memset(&s, 0x5a, sizeof(s));
        enum us_status st = parse(bad[i].text, &s, &err);
        if (st == US_OK || strstr(err.msg, bad[i].says) == NULL ||
            strstr(err.msg, "t.json") == NULL)
            fail_msg("%s: %s: status %d, \"%s\"", bad[i].reason, bad[i].text, (int)st, err.msg);
        assert_int_equal(((const unsigned char *)&s)[0], 0x5a); /* untouched */
    }
}

static void texts_beyond_the_limit_are_refused_unread(void **state)
{
    (void)state;
    struct us_train_settings s;
    size_t n = (size_t)US_MAX_TRAIN_CONFIG_BYTES + 1;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, ' ', n);
    memcpy(text, "{}", 2);
    assert_int_equal(us_train_settings_parse(text, n, "t", &s, NULL), US_E_TOO_LARGE);
    assert_int_equal(us_train_settings_parse(text, n - 1, "t", &s, NULL), US_OK);
    free(text);
}

static void nesting_without_end_is_refused(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    struct us_train_settings s;
    char *text = malloc(DEPTH);
    assert_non_null(text);
    memset(text, '[', DEPTH);
    assert_int_equal(us_train_settings_parse(text, DEPTH, "t", &s, NULL), US_E_FORMAT);
    free(text);
}

/* docs/training.md holds the table as printed, so that it cannot lag behind. */
static void the_manual_holds_every_row_of_the_table(void **state)
{
    (void)state;
    FILE *doc = fopen("docs/training.md", "r"), *tmp = tmpfile();
    assert_non_null(doc);
    assert_non_null(tmp);
    static char manual[1 << 17];
    char line[1024];
    manual[fread(manual, 1, sizeof(manual) - 1, doc)] = '\0';
    us_train_settings_table(tmp);
    rewind(tmp);
    int rows = 0;
    for (; fgets(line, sizeof(line), tmp) != NULL; rows++) {
        if (strstr(manual, line) == NULL)
            fail_msg("docs/training.md lacks: %s (usplit train --print-table)", line);
    }
    assert_true(rows > 50);
    (void)fclose(doc);
    (void)fclose(tmp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_object_gives_the_papers_defaults),
        cmocka_unit_test(settings_printed_and_parsed_are_the_same),
        cmocka_unit_test(variant_yields_to_members_whatever_their_order),
        cmocka_unit_test(mistakes_are_refused_with_key_value_and_range),
        cmocka_unit_test(texts_beyond_the_limit_are_refused_unread),
        cmocka_unit_test(nesting_without_end_is_refused),
        cmocka_unit_test(the_manual_holds_every_row_of_the_table),
    };
    return cmocka_run_group_tests_name("train_config", tests, NULL, NULL);
}
