/* Trace context, and log lines in both forms with a stranger's bytes in them (server/us_trace.h,
 * us_log.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "us_log.h"
#include "us_trace.h"

#define ID   "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN "00f067aa0ba902b7"

/* ---- trace --------------------------------------------------------------------------------- */

static void well_formed_header_is_taken_apart(void **state)
{
    struct us_trace t;
    assert_true(us_trace_parse("00-" ID "-" SPAN "-01", &t));
    assert_string_equal(t.id, ID);
    assert_string_equal(t.span, SPAN);
    assert_string_equal(t.flags, "01");
    assert_true(us_trace_parse("cc-" ID "-" SPAN "-09", &t));
    assert_true(us_trace_parse("cc-" ID "-" SPAN "-09-what-the-future-brings", &t));
}

static void header_that_breaks_a_rule_counts_as_none(void **state)
{
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"", "nothing"},
        {"00-" ID "-" SPAN, "no flags"},
        {"00-" ID "-" SPAN "-1", "one digit of flags"},
        {"00-" ID "-" SPAN "-01x", "more after the flags"},
        {"00-" ID "-" SPAN "-01-x", "version 00 ends with the flags"},
        {"cc-" ID "-" SPAN "-01.x", "a later version goes on after a dash"},
        {"ff-" ID "-" SPAN "-01", "version ff is forbidden"},
        {"0g-" ID "-" SPAN "-01", "not hex"},
        {"00-"
         "4BF92F3577B34DA6A3CE929D0E0E4736"
         "-" SPAN "-01",
         "capitals"},
        {"00-00000000000000000000000000000000-" SPAN "-01", "no trace id"},
        {"00-" ID "-0000000000000000-01", "no span"},
        {"00_" ID "_" SPAN "_01", "other separators"},
        {"00-4bf92f3577b34da6a3ce929d0e0e473-" SPAN "-010", "an id too short"},
    };
    struct us_trace t;
    assert_false(us_trace_parse(NULL, &t));
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        if (us_trace_parse(bad[i].text, &t))
            fail_msg("accepted: %s", bad[i].why);
    }
}

static void span_of_ours_goes_on_in_the_callers_trace_or_in_a_new_one(void **state)
{
    const uint8_t random[24] = {1, 2, 3, [16] = 0xab}, zeros[24] = {0};
    char text[US_TRACEPARENT_BYTES];
    struct us_trace t = us_trace_begin("00-" ID "-" SPAN "-01", random);
    us_trace_text(&t, text);
    assert_string_equal(text, "00-" ID "-ab00000000000000-01");
    t = us_trace_begin("nonsense", random);
    us_trace_text(&t, text);
    assert_string_equal(text, "00-01020300000000000000000000000000-ab00000000000000-00");
    t = us_trace_begin(NULL, zeros); /* all zeros would mean "none" */
    us_trace_text(&t, text);
    assert_true(us_trace_parse(text, &t));
}

/* ---- lines --------------------------------------------------------------------------------- */

/* What fn writes to standard error. */
static void capture(void (*fn)(void), char *text, size_t size)
{
    int ends[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    fn();
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(ends[1]);
    (void)close(saved);
    ssize_t n = read(ends[0], text, size - 1);
    assert_true(n > 0);
    text[n] = '\0';
    (void)close(ends[0]);
}

static void hostile_request(void)
{
    us_log_request(&(struct us_log_request){.method = "GET",
                                            .path = "/a\"\r\nlevel=error \\ \xff\x1b[31m",
                                            .id = "id-1",
                                            .trace = ID,
                                            .user = "ann",
                                            .model = NULL,
                                            .error = "no \"such\" thing",
                                            .status = 404,
                                            .ms = 1.25,
                                            .in_bytes = 3,
                                            .out_bytes = 1LL << 40});
}

static void plain_message(void)
{
    us_log(US_LOG_WARN, "half of \"%s\" is gone\n", "it");
}

static void request_line_is_one_line_of_logfmt(void **state)
{
    char text[4096];
    us_log_init(US_LOG_INFO, US_LOG_LOGFMT);
    capture(hostile_request, text, sizeof(text));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_null(strpbrk(text, "\r\x1b\xff"));
    assert_non_null(strstr(text, " path=\"/a\\x22\\x0d\\x0alevel=error \\x5c \\xff\\x1b[31m\""));
    assert_non_null(strstr(text, " status=404 "));
    assert_non_null(strstr(text, " id=id-1 trace=" ID));
    assert_non_null(strstr(text, " user=\"ann\""));
    assert_null(strstr(text, "model="));
}

static void request_line_is_one_json_object(void **state)
{
    char text[4096];
    us_log_init(US_LOG_INFO, US_LOG_JSON);
    capture(hostile_request, text, sizeof(text));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(j);
    assert_int_equal(json_integer_value(json_object_get(j, "status")), 404);
    assert_true(json_integer_value(json_object_get(j, "out")) == 1LL << 40);
    assert_true(json_number_value(json_object_get(j, "ms")) > 1);
    assert_string_equal(json_string_value(json_object_get(j, "error")), "no \"such\" thing");
    assert_string_equal(json_string_value(json_object_get(j, "path")),
                        "/a\"\r\nlevel=error \\ \xc3\xbf\x1b[31m"); /* the byte ff as U+00FF */
    assert_string_equal(json_string_value(json_object_get(j, "trace")), ID);
    assert_string_equal(json_string_value(json_object_get(j, "level")), "info");
    assert_null(json_object_get(j, "model"));
    json_decref(j);
}

static void message_is_quoted_in_both_forms(void **state)
{
    char text[4096];
    us_log_init(US_LOG_WARN, US_LOG_LOGFMT);
    capture(plain_message, text, sizeof(text));
    assert_non_null(strstr(text, " level=warn msg=\"half of \\x22it\\x22 is gone\\x0a\"\n"));
    us_log_init(US_LOG_WARN, US_LOG_JSON);
    capture(plain_message, text, sizeof(text));
    json_t *j = json_loads(text, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(j, "msg")), "half of \"it\" is gone\n");
    json_decref(j);
}

static void long_path(void)
{
    static char path[8000];
    memset(path, '\x01', sizeof(path) - 1);
    us_log_request(&(struct us_log_request){
        .method = "GET", .path = path, .id = "i", .error = path, .status = 400});
}

static void line_that_is_too_long_is_cut_and_stays_well_formed(void **state)
{
    char text[8192];
    us_log_init(US_LOG_INFO, US_LOG_JSON);
    capture(long_path, text, sizeof(text));
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    assert_int_equal(json_integer_value(json_object_get(j, "status")), 400);
    json_decref(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(well_formed_header_is_taken_apart),
        cmocka_unit_test(header_that_breaks_a_rule_counts_as_none),
        cmocka_unit_test(span_of_ours_goes_on_in_the_callers_trace_or_in_a_new_one),
        cmocka_unit_test(request_line_is_one_line_of_logfmt),
        cmocka_unit_test(request_line_is_one_json_object),
        cmocka_unit_test(message_is_quoted_in_both_forms),
        cmocka_unit_test(line_that_is_too_long_is_cut_and_stays_well_formed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
