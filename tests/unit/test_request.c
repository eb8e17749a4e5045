/* Request heads, taken apart and checked (server/us_request.h, us_predict_query.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "us_predict_query.h"
#include "us_request.h"

static void target_is_cut_into_decoded_segments_and_parameters(void **state)
{
    struct us_target t;
    assert_int_equal(us_target_parse("/v1/models/a%2Db?x=1&y=a%26b&&z&=q", &t, NULL), US_OK);
    assert_int_equal(t.n_segments, 3);
    assert_string_equal(t.segment[0], "v1");
    assert_string_equal(t.segment[2], "a-b");
    assert_int_equal(t.n_params, 4);
    assert_string_equal(t.param[1].name, "y");
    assert_string_equal(t.param[1].value, "a&b");
    assert_string_equal(t.param[2].name, "z");
    assert_string_equal(t.param[2].value, "");
    assert_string_equal(t.param[3].name, "");
}

static void target_shapes_keep_their_empty_segments(void **state)
{
    static const struct {
        const char *raw;
        int n;
    } shapes[] = {{"/", 0},
                  {"/a", 1},
                  {"/a/", 2},
                  {"//", 2},
                  {"/a//b", 3},
                  {"/?q", 0},
                  {"http://host/a/b", 2},
                  {"HTTP://host", 0}};
    for (size_t i = 0; i < US_COUNT(shapes); i++) {
        struct us_target t;
        assert_int_equal(us_target_parse(shapes[i].raw, &t, NULL), US_OK);
        if (t.n_segments != shapes[i].n)
            fail_msg("%s: %d segments", shapes[i].raw, t.n_segments);
    }
}

static void hostile_targets_are_refused(void **state)
{
    static const struct {
        const char *raw;
        enum us_status status;
        const char *why;
    } bad[] = {
        {"", US_E_FORMAT, "empty"},
        {"healthz", US_E_FORMAT, "no slash"},
        {"*", US_E_FORMAT, "asterisk form"},
        {"/a%00b", US_E_FORMAT, "NUL"},
        {"/a%0ab", US_E_FORMAT, "line feed"},
        {"/a\x7f", US_E_FORMAT, "delete"},
        {"/a b", US_E_FORMAT, "blank"},
        {"/a%2fb", US_E_FORMAT, "encoded slash"},
        {"/a%5Cb", US_E_FORMAT, "encoded backslash"},
        {"/a%", US_E_FORMAT, "escape without digits"},
        {"/a%4", US_E_FORMAT, "escape with one digit"},
        {"/a%4/b", US_E_FORMAT, "escape across a slash"},
        {"/a%gg", US_E_FORMAT, "no hexadecimal digits"},
        {"/a?x=%0", US_E_FORMAT, "broken escape in the query"},
        {"/a#b", US_E_FORMAT, "fragment"},
        {"/1/2/3/4/5/6/7/8/9", US_E_TOO_LARGE, "too many segments"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_target t;
        if (us_target_parse(bad[i].raw, &t, NULL) != bad[i].status)
            fail_msg("%s: '%s'", bad[i].why, bad[i].raw);
    }
    static char longer[US_MAX_URI];
    struct us_target t;
    memset(longer, 'a', sizeof(longer) - 1);
    longer[0] = '/';
    assert_int_equal(us_target_parse(longer, &t, NULL), US_E_TOO_LARGE);
}

static void longest_target_of_parameters_fits_the_store(void **state)
{
    static char raw[US_MAX_URI / 2];
    struct us_target t;
    memset(raw, '&', sizeof(raw) - 1); /* the most parts per byte */
    memcpy(raw, "/?", 2);
    for (int i = 0; i < US_MAX_PARAMS; i++)
        raw[3 + 2 * i] = 'a';
    assert_int_equal(us_target_parse(raw, &t, NULL), US_OK);
    assert_int_equal(t.n_params, US_MAX_PARAMS);
    raw[sizeof(raw) - 2] = 'a';
    assert_int_equal(us_target_parse(raw, &t, NULL), US_E_TOO_LARGE);
}

/* A head of name, value pairs up to a NULL name. */
static struct us_head head_of(const char *const *pairs)
{
    struct us_head h = {0};
    for (; *pairs != NULL; pairs += 2)
        h.header[h.n++] = (struct us_header){pairs[0], pairs[1]};
    return h;
}
#define HEAD(...) head_of((const char *const[]){__VA_ARGS__, NULL})

static void framing_of_honest_heads_is_understood(void **state)
{
    struct us_framing f;
    struct us_head h = HEAD("Host", "a", "Content-Length", "1099511627776");
    assert_int_equal(us_head_check(&h, true, &f, NULL), US_OK);
    assert_true(f.has_length && !f.chunked && f.length == 1ULL << 40);
    h = HEAD("host", "a", "transfer-encoding", "Chunked");
    assert_int_equal(us_head_check(&h, true, &f, NULL), US_OK);
    assert_true(!f.has_length && f.chunked);
    h = HEAD("X-A", "tab\tis fine");
    assert_int_equal(us_head_check(&h, false, &f, NULL), US_OK);
    assert_true(!f.has_length && !f.chunked);
}

static void ambiguous_heads_are_refused(void **state)
{
    const struct {
        struct us_head head;
        enum us_status status;
        const char *why;
    } bad[] = {
        {HEAD("Host", "a", "Content-Length", "5", "Transfer-Encoding", "chunked"), US_E_FORMAT,
         "length and chunked"},
        {HEAD("Host", "a", "Content-Length", "5", "content-length", "5"), US_E_FORMAT,
         "two lengths"},
        {HEAD("Host", "a", "Transfer-Encoding", "chunked", "Transfer-Encoding", "chunked"),
         US_E_FORMAT, "two codings"},
        {HEAD("Host", "a", "Host", "b"), US_E_FORMAT, "two hosts"},
        {HEAD("X", "a"), US_E_FORMAT, "no host"},
        {HEAD("Host", "a", "Content-Length", ""), US_E_FORMAT, "empty length"},
        {HEAD("Host", "a", "Content-Length", "-1"), US_E_FORMAT, "negative"},
        {HEAD("Host", "a", "Content-Length", "0x10"), US_E_FORMAT, "hexadecimal"},
        {HEAD("Host", "a", "Content-Length", "5 "), US_E_FORMAT, "trailing blank"},
        {HEAD("Host", "a", "Content-Length", "99999999999999999999"), US_E_FORMAT, "over 64 bits"},
        {HEAD("Host", "a", "Transfer-Encoding", "gzip, chunked"), US_E_UNSUPPORTED, "coding list"},
        {HEAD("Host", "a", "Transfer-Encoding", "identity"), US_E_UNSUPPORTED, "identity"},
        {HEAD("Host", "a", "X A", "b"), US_E_FORMAT, "blank in a name"},
        {HEAD("Host", "a", "", "b"), US_E_FORMAT, "no name"},
        {HEAD("Host", "a", "X\xc3\xa4", "b"), US_E_FORMAT, "byte over 127 in a name"},
        {HEAD("Host", "a", "X", "b\rc"), US_E_FORMAT, "bare carriage return"},
        {{.overflow = true}, US_E_TOO_LARGE, "too many headers"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_framing f;
        if (us_head_check(&bad[i].head, true, &f, NULL) != bad[i].status)
            fail_msg("%s", bad[i].why);
    }
}

static void foreign_hosts_and_origins_are_refused(void **state)
{
    const struct {
        struct us_head head;
        bool any_host;
        enum us_status status;
    } cases[] = {
        {HEAD("Host", "localhost:8080"), false, US_OK},
        {HEAD("Host", "127.0.0.1"), false, US_OK},
        {HEAD("Host", "[::1]:80"), false, US_OK},
        {HEAD("Host", "Lab.Example"), false, US_OK},
        {HEAD("Host", "evil.example"), false, US_E_UNSUPPORTED},
        {HEAD("Host", "127.evil.example"), false, US_E_UNSUPPORTED},
        {HEAD("Host", ""), false, US_E_UNSUPPORTED},
        {HEAD("Host", "[::1"), false, US_E_UNSUPPORTED},
        {HEAD("Host", "evil.example"), true, US_OK},
        {HEAD("Host", "localhost:1", "Origin", "http://localhost:1"), false, US_OK},
        {HEAD("Host", "localhost:1", "Origin", "http://localhost:2"), false, US_E_ARG},
        {HEAD("Host", "evil.example", "Origin", "https://other.example"), true, US_E_ARG},
        {HEAD("Host", "localhost", "Origin", "null"), false, US_E_ARG},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        if (us_head_check_site(&cases[i].head, "x, lab.example", cases[i].any_host, NULL) !=
            cases[i].status)
            fail_msg("case %zu: %s", i, cases[i].head.header[0].value);
    }
}

static void accept_chooses_by_weight_and_narrowness(void **state)
{
    static const struct {
        const char *accept;
        enum us_media media;
    } cases[] = {
        {NULL, US_MEDIA_TIFF},
        {"", US_MEDIA_TIFF},
        {"*/*", US_MEDIA_TIFF},
        {"image/*", US_MEDIA_TIFF},
        {"image/tiff", US_MEDIA_TIFF},
        {"application/x-npy", US_MEDIA_NPY},
        {"APPLICATION/X-NPY;q=0.1", US_MEDIA_NPY},
        {"application/x-npy, image/tiff", US_MEDIA_TIFF},
        {"image/tiff;q=0.5, application/x-npy;q=0.6", US_MEDIA_NPY},
        {"*/*;q=0.1, application/*", US_MEDIA_NPY},
        {"image/tiff;q=0, */*", US_MEDIA_NPY},
        {"image/tiff;q=0", US_MEDIA_NONE},
        {"image/png, text/html", US_MEDIA_NONE},
        {"image/tiffany", US_MEDIA_NONE},
        {"image/tiff;q=x", US_MEDIA_NONE},
        {";;,,q=1", US_MEDIA_NONE},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        if (us_media_accept(cases[i].accept) != cases[i].media)
            fail_msg("Accept: %s", cases[i].accept);
    }
}

static void content_types_are_known_without_their_parameters(void **state)
{
    assert_int_equal(us_media_of_body(NULL), US_MEDIA_ANY);
    assert_int_equal(us_media_of_body("Image/TIFF; x=y"), US_MEDIA_TIFF);
    assert_int_equal(us_media_of_body("application/x-npy"), US_MEDIA_NPY);
    assert_int_equal(us_media_of_body("application/octet-stream"), US_MEDIA_ANY);
    assert_int_equal(us_media_of_body("image/png"), US_MEDIA_UNKNOWN);
    assert_int_equal(us_media_of_body(""), US_MEDIA_UNKNOWN);
}

static void names_and_tags_are_checked(void **state)
{
    char longest[US_MAX_MODEL_NAME + 2];
    memset(longest, 'a', sizeof(longest));
    longest[US_MAX_MODEL_NAME] = '\0';
    assert_true(us_model_name_ok("Actin-2.v1_x"));
    assert_true(us_model_name_ok(longest));
    longest[US_MAX_MODEL_NAME] = 'a';
    longest[US_MAX_MODEL_NAME + 1] = '\0';
    assert_false(us_model_name_ok(longest));
    assert_false(us_model_name_ok(""));
    assert_false(us_model_name_ok(".a"));
    assert_false(us_model_name_ok("a/b"));
    assert_false(us_model_name_ok("\xc3\xa4"));
    assert_true(us_etag_listed("\"a\", \"bc\"", "bc"));
    assert_true(us_etag_listed("W/\"bc\"", "bc"));
    assert_true(us_etag_listed(" *", "bc"));
    assert_false(us_etag_listed("bc", "bc"));
    assert_false(us_etag_listed("\"bcd\", \"b", "bc"));
    assert_false(us_etag_listed("\"\"", ""));
}

static enum us_status query(const char *text, struct us_predict_query *q, struct us_err *err)
{
    struct us_target t;
    char raw[512];
    (void)snprintf(raw, sizeof(raw), "/?%s", text);
    assert_int_equal(us_target_parse(raw, &t, NULL), US_OK);
    *err = (struct us_err){0};
    return us_predict_query_parse(&t, q, err);
}

static void given_parameters_replace_defaults_and_no_others(void **state)
{
    struct us_predict_query q;
    struct us_err err;
    struct us_predict_config c = {.padding = 24, .samples = 5, .seed = 1};
    struct us_predict_file_options f = {.plane_mean = true, .channel = -1, .pages = 't'};
    assert_int_equal(query("seed=9223372036854775807&planes=mean,std&mix=0,3&pages=z", &q, &err),
                     US_OK);
    us_predict_query_apply(&q, &c, &f);
    assert_true(c.seed == INT64_MAX);
    assert_int_equal(c.padding, 24);
    assert_int_equal(c.samples, 5);
    assert_true(c.want_std && f.plane_mean && f.plane_std);
    assert_int_equal(f.n_mix, 2);
    assert_int_equal(f.mix[1], 3);
    assert_int_equal(f.channel, -1);
    assert_int_equal(f.pages, 'z');
}

static void impossible_parameters_are_refused_by_name(void **state)
{
    static const struct {
        const char *text;
        enum us_status status;
        const char *word;
    } bad[] = {
        {"paddin=1", US_E_ARG, "paddin"},
        {"padding=1&padding=1", US_E_ARG, "twice"},
        {"padding", US_E_UNSUPPORTED, "padding"},
        {"padding=4097", US_E_UNSUPPORTED, "4097"},
        {"samples=0", US_E_UNSUPPORTED, "1 to 65535"},
        {"samples=65536", US_E_UNSUPPORTED, "65536"},
        {"seed=9223372036854775808", US_E_UNSUPPORTED, "seed"},
        {"seed=99999999999999999999", US_E_UNSUPPORTED, "seed"},
        {"mix=", US_E_UNSUPPORTED, "mix"},
        {"mix=1,", US_E_UNSUPPORTED, "mix"},
        {"mix=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", US_E_UNSUPPORTED, "mix"},
        {"mix=12345678901234", US_E_UNSUPPORTED, "mix"},
        {"tiling=Inner", US_E_UNSUPPORTED, "inner, outer"},
        {"channel=1&mix=1", US_E_ARG, "exclude"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_predict_query q;
        struct us_err err;
        if (query(bad[i].text, &q, &err) != bad[i].status || strstr(err.msg, bad[i].word) == NULL)
            fail_msg("%s: '%s'", bad[i].text, err.msg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(target_is_cut_into_decoded_segments_and_parameters),
        cmocka_unit_test(target_shapes_keep_their_empty_segments),
        cmocka_unit_test(hostile_targets_are_refused),
        cmocka_unit_test(longest_target_of_parameters_fits_the_store),
        cmocka_unit_test(framing_of_honest_heads_is_understood),
        cmocka_unit_test(ambiguous_heads_are_refused),
        cmocka_unit_test(foreign_hosts_and_origins_are_refused),
        cmocka_unit_test(accept_chooses_by_weight_and_narrowness),
        cmocka_unit_test(content_types_are_known_without_their_parameters),
        cmocka_unit_test(names_and_tags_are_checked),
        cmocka_unit_test(given_parameters_replace_defaults_and_no_others),
        cmocka_unit_test(impossible_parameters_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
