/* The JSON of model files: RFC 8259 and the stricter points, and what is written of a value. */
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_model_file.h"

#define MANY 100000

/* Parses text of n bytes; what was read, written again, goes to *ret (caller frees). */
static enum us_status rewrite(const char *text, size_t n, char **ret, struct us_err *err)
{
    char *copy = malloc(n + 1);
    assert_non_null(copy);
    memcpy(copy, text, n);
    copy[n] = '\0';
    struct usi_json *v;
    struct usi_text out = {0};
    enum us_status s = usi_json_parse(copy, n, MANY, "text", &v, err);
    if (s == US_OK) {
        usi_text_add_json(&out, v);
        assert_false(out.failed);
        free(v);
    }
    free(copy);
    *ret = out.p;
    return s;
}

static void assert_rewrites(const char *text, const char *want)
{
    struct us_err err = {0};
    char *got;
    if (rewrite(text, strlen(text), &got, &err) != US_OK)
        fail_msg("%s: %s", text, err.msg);
    assert_string_equal(got, want);
    free(got);
}

static const char *const good[][2] = {
    {"null", "null"},
    {" \t\r\n true ", "true"},
    {"false", "false"},
    {"0", "0"},
    {"-0", "0"},
    {"9223372036854775807", "9223372036854775807"},
    {"-9223372036854775808", "-9223372036854775808"},
    {"0.5", "0.5"},
    {"-0.0", "-0.0"},
    {"1e2", "100.0"},
    {"1E+2", "100.0"},
    {"25e-2", "0.25"},
    {"1.7976931348623157e308", "1.7976931348623157e+308"},
    {"5e-324", "4.94065645841247e-324"},
    {"0.30000000000000004", "0.30000000000000004"},
    {"1e30", "1e+30"},
    {"\"\"", "\"\""},
    {"\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"a\\\"\\\\/\\u0008\\u000c\\u000a\\u000d\\u0009\""},
    {"\"\\u00e9\\u20AC\\ud83d\\udd2c\"", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x94\xac\""},
    {"\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
     "\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\""},
    {"\"\x7f\"", "\"\x7f\""},
    {"[]", "[]"},
    {"[ ]", "[]"},
    {"{}", "{}"},
    {"{ \n }", "{}"},
    {"[1,[2,[]],{}]", "[1, [2, []], {}]"},
    {"{\"b\":1,\"a\":{\"b\":[null]}}", "{\"b\": 1, \"a\": {\"b\": [null]}}"},
    {"{\"\":0,\"\\u0061\":1}", "{\"\": 0, \"a\": 1}"},
    {"[\"],}\",\"{\"]", "[\"],}\", \"{\"]"},
};

static void good_texts_are_read_and_written_again(void **state)
{
    (void)state;
    for (size_t i = 0; i < US_COUNT(good); i++) {
        assert_rewrites(good[i][0], good[i][1]);
        assert_rewrites(good[i][1], good[i][1]);
    }
}

static const struct {
    const char *text, *why;
} bad[] = {
    {"", "a value was expected"},
    {"  ", "a value was expected"},
    {"nul", "a value was expected"},
    {"True", "a value was expected"},
    {"NaN", "a value was expected"},
    {"-Infinity", "a value was expected"},
    {"+1", "a value was expected"},
    {"01", "a value was expected"},
    {"-01", "a value was expected"},
    {"00.5", "a value was expected"},
    {"-", "a value was expected"},
    {".5", "a value was expected"},
    {"5.", "a value was expected"},
    {"5.e1", "a value was expected"},
    {"1e", "a value was expected"},
    {"1e+", "a value was expected"},
    {"0x10", "more follows"},
    {"1,5", "more follows"},
    {"1 2", "more follows"},
    {"{}}", "more follows"},
    {"nullx", "more follows"},
    {"1e309", "too large for a double"},
    {"-1e999", "too large for a double"},
    {"9223372036854775808", "too large for 64 bits"},
    {"-9223372036854775809", "too large for 64 bits"},
    {"'a'", "a value was expected"},
    {"\"a", "a string without end"},
    {"\"a\\", "unknown escape"},
    {"\"a\\\"", "a string without end"},
    {"\"\\x41\"", "unknown escape"},
    {"\"\\u12\"", "four hexadecimal"},
    {"\"\\u12g4\"", "four hexadecimal"},
    {"\"\\u", "four hexadecimal"},
    {"\"\\u0000\"", "U+0000"},
    {"\"\\udc00\"", "half of a surrogate"},
    {"\"\\ud800\"", "half of a surrogate"},
    {"\"\\ud800x\"", "half of a surrogate"},
    {"\"\\ud800\\n\"", "half of a surrogate"},
    {"\"\\ud800\\ud800\"", "half of a surrogate"},
    {"\"\\ud800\\u0041\"", "half of a surrogate"},
    {"\"\n\"", "control character"},
    {"\"\x1f\"", "control character"},
    {"\"\x80\"", "not UTF-8"},
    {"\"\xc0\xaf\"", "not UTF-8"},
    {"\"\xc1\xbf\"", "not UTF-8"},
    {"\"\xc3(\"", "not UTF-8"},
    {"\"\xe0\x9f\xbf\"", "not UTF-8"},
    {"\"\xed\xa0\x80\"", "not UTF-8"},
    {"\"\xf0\x8f\xbf\xbf\"", "not UTF-8"},
    {"\"\xf4\x90\x80\x80\"", "not UTF-8"},
    {"\"\xf5\x80\x80\x80\"", "not UTF-8"},
    {"\"\xe2\x82\"", "not UTF-8"},
    {"\"\xe2\x82", "not UTF-8"},
    {"\xef\xbb\xbf{}", "a value was expected"}, /* no byte order mark: RFC 8259 8.1 */
    {"[", "a value was expected"},
    {"[1", "',' or ']'"},
    {"[1 2]", "',' or ']'"},
    {"[1,]", "after ','"},
    {"[,1]", "a value was expected"},
    {"[1}", "',' or ']'"},
    {"{", "a member's name"},
    {"{1:2}", "a member's name"},
    {"{\"a\"", "':'"},
    {"{\"a\" 1}", "':'"},
    {"{\"a\":}", "a value was expected"},
    {"{\"a\":1", "',' or '}'"},
    {"{\"a\":1,}", "after ','"},
    {"{\"a\":1]", "',' or '}'"},
    {"{\"a\":1 \"b\":2}", "',' or '}'"},
    {"{\"a\":1,\"a\":2}", "duplicate member \"a\""},
    {"{\"b\":1,\"a\":{},\"c\":3,\"\\u0062\":2}", "duplicate member \"b\""},
    {"[{\"x\":{\"y\":1,\"y\":1}}]", "duplicate member \"y\""},
    {"/* */ 1", "a value was expected"},
};

static void bad_texts_are_refused_with_the_reason(void **state)
{
    (void)state;
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_err err = {0};
        char *got;
        enum us_status s = rewrite(bad[i].text, strlen(bad[i].text), &got, &err);
        if (s != US_E_FORMAT || strstr(err.msg, bad[i].why) == NULL)
            fail_msg("%s: wanted \"%s\", got %s \"%s\"", bad[i].text, bad[i].why, us_status_name(s),
                     err.msg);
        free(got);
    }
}

static void a_nul_byte_in_the_text_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}\0", "[1,\0 2]", "\"a\0b\""};
    static const size_t lengths[] = {3, 7, 5};
    for (size_t i = 0; i < US_COUNT(texts); i++) {
        struct us_err err = {0};
        char *got;
        assert_int_equal(rewrite(texts[i], lengths[i], &got, &err), US_E_FORMAT);
        free(got);
    }
}

/* Every cut of a text with all kinds of values is refused; the sanitizers watch its end. */
static void a_text_cut_anywhere_is_refused(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\": [1, -2.5e3, \"\\ud83d\\udd2c \xc3\xa9\", true, null], \"b\": {}}";
    for (size_t n = 0; n < strlen(text); n++) {
        struct us_err err = {0};
        char *got;
        assert_int_equal(rewrite(text, n, &got, &err), US_E_FORMAT);
        free(got);
    }
}

static void depth_and_number_of_values_have_limits(void **state)
{
    (void)state;
    char deep[2 * US_MAX_JSON_DEPTH + 3] = {0}, *got;
    struct us_err err = {0};
    for (int extra = 0; extra < 2; extra++) {
        int n = US_MAX_JSON_DEPTH + extra;
        memset(deep, '[', (size_t)n);
        memset(deep + n, ']', (size_t)n);
        assert_int_equal(rewrite(deep, strlen(deep), &got, &err),
                         extra == 0 ? US_OK : US_E_TOO_LARGE);
        free(got);
    }
    char list[] = "[1, [2], {\"a\": 3}]"; /* six values */
    struct usi_json *v;
    assert_int_equal(usi_json_parse(list, strlen(list), 5, "text", &v, &err), US_E_TOO_LARGE);
    assert_non_null(strstr(err.msg, "6 values; expected at most 5"));
    assert_int_equal(usi_json_parse(list, strlen(list), 6, "text", &v, &err), US_OK);
    free(v);
    char digits[400];
    memset(digits, '1', sizeof(digits));
    digits[1] = '.';
    assert_int_equal(rewrite(digits, sizeof(digits), &got, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "too many digits"));
}

static void members_are_found_by_name_and_type(void **state)
{
    (void)state;
    char text[] = "{\"a\": \"x\", \"b\": [4, 5.5]}";
    struct usi_json *v;
    assert_int_equal(usi_json_parse(text, strlen(text), MANY, "text", &v, NULL), US_OK);
    assert_int_equal(v->n, 2);
    assert_string_equal(usi_json_string(usi_json_get(v, "a")), "x");
    const struct usi_json *b = usi_json_get(v, "b");
    assert_null(usi_json_string(b));
    assert_int_equal(b->n, 2);
    assert_int_equal(b->first->integer, 4);
    assert_true(b->first->next->real == 5.5);
    assert_null(usi_json_get(v, "c"));
    assert_null(usi_json_get(b, "a"));
    assert_null(usi_json_get(NULL, "a"));
    assert_null(usi_json_string(NULL));
    free(v);
}

static void long_values_are_described_short_and_whole(void **state)
{
    (void)state;
    char text[] = "[\"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\", {\"a\": 1}, [1, 2]]", buf[10];
    struct usi_json *v;
    assert_int_equal(usi_json_parse(text, strlen(text), MANY, "text", &v, NULL), US_OK);
    /* Room for seven bytes of text: three characters, not three and a half. */
    assert_string_equal(usi_json_describe(v->first, buf, sizeof(buf)),
                        "\"\xc3\xa9\xc3\xa9\xc3\xa9\"");
    char wide[40];
    assert_string_equal(usi_json_describe(v->first->next, wide, sizeof(wide)), "an object");
    assert_string_equal(usi_json_describe(v->first->next->next, wide, sizeof(wide)), "a list of 2");
    free(v);
}

/* A program may have set a locale whose decimal point is a comma. */
static void the_locale_changes_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8", "ru_RU.UTF-8"};
    size_t i = 0;
    while (i < US_COUNT(names) && setlocale(LC_NUMERIC, names[i]) == NULL)
        i++;
    if (i == US_COUNT(names)) {
        print_message("no locale with a decimal comma is installed\n");
        skip();
    }
    assert_rewrites("[0.5, -1.25e3, 1e-7]", "[0.5, -1250.0, 1e-07]");
    (void)setlocale(LC_NUMERIC, "C");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_texts_are_read_and_written_again),
        cmocka_unit_test(bad_texts_are_refused_with_the_reason),
        cmocka_unit_test(a_nul_byte_in_the_text_is_refused),
        cmocka_unit_test(a_text_cut_anywhere_is_refused),
        cmocka_unit_test(depth_and_number_of_values_have_limits),
        cmocka_unit_test(members_are_found_by_name_and_type),
        cmocka_unit_test(long_values_are_described_short_and_whole),
        cmocka_unit_test(the_locale_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
