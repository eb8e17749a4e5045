/* The settings of usplitd: command line, file, bounds and messages (server/us_config.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "us_config.h"

static enum us_status parse(struct us_config *c, const char *text, struct us_err *err)
{
    *c = us_config_defaults();
    *err = (struct us_err){0};
    return us_config_parse(c, text, strlen(text), "a.conf", err);
}

static void defaults_are_within_their_own_bounds(void **state)
{
    struct us_config c = us_config_defaults();
    struct us_err err = {0};
    assert_string_equal(c.listen, "127.0.0.1:8080");
    assert_int_equal(c.max_queue, 32);
    assert_int_equal(c.log_level, 2);
    assert_false(c.insecure_no_auth);
    assert_int_equal(us_config_check(&c, &err), US_E_ARG); /* a data folder must be named */
    assert_non_null(strstr(err.msg, "data-dir"));
}

static void file_with_comments_blanks_and_suffixes_is_read(void **state)
{
    struct us_config c;
    struct us_err err;
    assert_int_equal(parse(&c,
                           "# hello\n\n  threads =  3 \r\nmax-body-bytes=2G\n\tdata-dir = /a b\n"
                           "insecure-no-auth = yes\nbackend=ref",
                           &err),
                     US_OK);
    assert_int_equal(c.threads, 3);
    assert_int_equal(c.max_body_bytes, 2LL << 30);
    assert_string_equal(c.data_dir, "/a b");
    assert_true(c.insecure_no_auth);
    assert_int_equal(c.backend, US_BACKEND_REF);
}

static void bad_files_are_refused_with_line_key_value_and_allowed(void **state)
{
    static const struct {
        const char *text, *word1, *word2, *why;
    } bad[] = {
        {"threads = 1\nthread = 2", "a.conf:2", "thread", "unknown key"},
        {"threads = 257", "a.conf:1: threads", "0 to 256", "over the bound"},
        {"threads = -1", "threads", "'-1'", "no negative numbers"},
        {"threads = 1x", "threads", "'1x'", "rest after the number"},
        {"threads =", "threads", "''", "empty number"},
        {"threads = 1K", "threads", "'1K'", "suffix only for bytes"},
        {"max-body-bytes = 9223372036854775808", "max-body-bytes", "allowed", "over int64"},
        {"max-body-bytes = 9000000000000000T", "max-body-bytes", "allowed", "over int64 by suffix"},
        {"max_queue = 1", "max_queue", "not a setting", "underscores are no second spelling"},
        {"backend = gpu", "'gpu'", "auto|ref|cpu", "not a choice"},
        {"backend = auto|ref", "'auto|ref'", "allowed", "a piece of the list is no choice"},
        {"insecure-no-auth = maybe", "'maybe'", "yes, no", "not a flag's value"},
        {"threads = 1\nthreads = 1", "a.conf:2", "twice", "repeated"},
        {"just words", "key = value", "just words", "no equals sign"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_config c;
        struct us_err err;
        if (parse(&c, bad[i].text, &err) != US_E_ARG || strstr(err.msg, bad[i].word1) == NULL ||
            strstr(err.msg, bad[i].word2) == NULL)
            fail_msg("%s: '%s'", bad[i].why, err.msg);
    }
}

static void line_with_nul_or_without_end_is_refused(void **state)
{
    struct us_config c = us_config_defaults();
    struct us_err err = {0};
    char longer[2048];
    memset(longer, 'a', sizeof(longer));
    assert_int_equal(us_config_parse(&c, "a\0b", 3, "f", &err), US_E_ARG);
    assert_int_equal(us_config_parse(&c, longer, sizeof(longer), "f", &err), US_E_ARG);
}

static void flags_take_their_value_after_blank_or_equals_sign(void **state)
{
    struct us_config c = us_config_defaults();
    struct us_err err = {0};
    enum us_config_action action;
    char *argv[] = {
        (char[]){"usplitd"},       (char[]){"--threads"},          (char[]){"4"},
        (char[]){"--max-queue=7"}, (char[]){"--insecure-no-auth"}, (char[]){"--check-config"}};
    assert_int_equal(us_config_args(&c, 6, argv, &action, &err), US_OK);
    assert_int_equal(action, US_CONFIG_CHECK);
    assert_int_equal(c.threads, 4);
    assert_int_equal(c.max_queue, 7);
    assert_true(c.insecure_no_auth);
}

static void listen_addresses_are_taken_apart(void **state)
{
    static const struct {
        const char *text, *host;
        int port;
        bool ipv6, loopback;
    } good[] = {
        {"127.0.0.1:8080", "127.0.0.1", 8080, false, true},
        {"127.9.9.9:0", "127.9.9.9", 0, false, true},
        {"localhost:80", "127.0.0.1", 80, false, true},
        {"0.0.0.0:65535", "0.0.0.0", 65535, false, false},
        {"[::1]:1", "::1", 1, true, true},
        {"[::]:1", "::", 1, true, false},
        {"[::ffff:127.0.0.1]:1", "::ffff:127.0.0.1", 1, true, false},
    };
    static const char *const bad[] = {"",
                                      ":80",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "1.2.3:80",
                                      "host:80",
                                      "127.0.0.1:x",
                                      "::1:80",
                                      "[::1]80",
                                      "[::1]",
                                      "[::1:80",
                                      "127.0.0.1:65536",
                                      "[1.2.3.4]:1",
                                      "127.0.0.1:-1"};
    for (size_t i = 0; i < US_COUNT(good); i++) {
        struct us_listen l;
        assert_int_equal(us_listen_parse(good[i].text, &l, NULL), US_OK);
        assert_string_equal(l.host, good[i].host);
        assert_int_equal(l.port, good[i].port);
        assert_int_equal(l.ipv6, good[i].ipv6);
        assert_int_equal(l.loopback, good[i].loopback);
    }
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        struct us_listen l;
        if (us_listen_parse(bad[i], &l, NULL) != US_E_ARG)
            fail_msg("'%s' was accepted", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_within_their_own_bounds),
        cmocka_unit_test(file_with_comments_blanks_and_suffixes_is_read),
        cmocka_unit_test(bad_files_are_refused_with_line_key_value_and_allowed),
        cmocka_unit_test(line_with_nul_or_without_end_is_refused),
        cmocka_unit_test(flags_take_their_value_after_blank_or_equals_sign),
        cmocka_unit_test(listen_addresses_are_taken_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
