/* Log lines of a watcher; see us_watch_say.h. */
#include "us_watch_say.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_cli.h"

const char *us_watch_time(char buf[US_WATCH_TIME])
{
    struct timespec t;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (gmtime_r(&t.tv_sec, &tm) == NULL)
        tm = (struct tm){.tm_mday = 1, .tm_year = 70};
    size_t n = strftime(buf, US_WATCH_TIME, "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(buf + n, US_WATCH_TIME - n, ".%03dZ", (int)(t.tv_nsec / 1000000) % 1000);
    return buf;
}

void us_watch_json_text(json_t *o, const char *key, const char *text)
{
    char name[32];
    if (o == NULL || text == NULL)
        return;
    json_t *s = json_string(text);
    if (s != NULL) {
        (void)json_object_set_new(o, key, s);
        return;
    }
    size_t n = strlen(text);
    char *hex = calloc(n + 1, 2);
    if (hex == NULL)
        return;
    for (size_t i = 0; i < n; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", (unsigned)(unsigned char)text[i]);
    (void)snprintf(name, sizeof(name), "%s_hex", key);
    (void)json_object_set_new(o, name, json_string(hex));
    free(hex);
}

char *us_watch_json_text_of(const json_t *o, const char *key)
{
    char name[32];
    const char *s = json_string_value(json_object_get(o, key));
    if (s != NULL)
        return strdup(s);
    (void)snprintf(name, sizeof(name), "%s_hex", key);
    s = json_string_value(json_object_get(o, name));
    size_t n = s == NULL ? 0 : strlen(s);
    char *text = n == 0 || n % 2 != 0 ? NULL : calloc(n / 2 + 1, 1);
    for (size_t i = 0; text != NULL && i < n; i += 2) {
        const char digits[3] = {s[i], s[i + 1], '\0'};
        char *end = NULL;
        text[i / 2] = (char)strtoul(digits, &end, 16);
        if (*end != '\0' || text[i / 2] == '\0') {
            free(text);
            return NULL;
        }
    }
    return text;
}

static void say_json(const struct us_watch_event *e)
{
    char when[US_WATCH_TIME];
    json_t *o = json_pack("{s:s, s:s}", "time", us_watch_time(when), "event", e->event);
    us_watch_json_text(o, "file", e->file);
    us_watch_json_text(o, "result", e->result);
    us_watch_json_text(o, "model", e->model);
    us_watch_json_text(o, "reason", e->reason);
    if (e->status != 0)
        (void)json_object_set_new(o, "status", json_integer(e->status));
    if (e->attempt != 0)
        (void)json_object_set_new(o, "attempt", json_integer(e->attempt));
    if (e->wait_s > 0)
        (void)json_object_set_new(o, "wait_s", json_real(e->wait_s));
    if (e->seconds > 0)
        (void)json_object_set_new(o, "seconds", json_real(e->seconds));
    char *text = o == NULL ? NULL : json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(4));
    if (text != NULL)
        (void)printf("%s\n", text);
    (void)fflush(stdout);
    free(text);
    json_decref(o);
}

static void say_text(const struct us_watch_event *e)
{
    char more[128] = "";
    if (e->wait_s > 0)
        (void)snprintf(more, sizeof(more), " (attempt %" PRId64 ", next in %.1f s)", e->attempt,
                       e->wait_s);
    else if (e->seconds > 0)
        (void)snprintf(more, sizeof(more), " (%.1f s)", e->seconds);
    us_cli_print(stderr, "usplit watch: %s%s%s%s%s%s%s%s\n", e->event, e->file != NULL ? " " : "",
                 e->file != NULL ? e->file : "", e->result != NULL ? " -> " : "",
                 e->result != NULL ? e->result : "", e->reason != NULL ? ": " : "",
                 e->reason != NULL ? e->reason : "", more);
}

void us_watch_say(bool json, const struct us_watch_event *e)
{
    if (json)
        say_json(e);
    else
        say_text(e);
}
