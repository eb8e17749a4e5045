/* Log lines; see us_log.h. A line is built in one buffer and written with one write(2). */
#include "us_log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What a field may take in the quoted form, so that a long one leaves room for those after it. */
#define MAX_VALUE 1100

static enum us_log_level least_level = US_LOG_INFO;
static bool as_json;

static const char *const level_name[] = {"error", "warn", "info", "debug"};

struct line {
    char text[4096];
    size_t n;
};

void us_log_init(enum us_log_level least, enum us_log_format format)
{
    least_level = least;
    as_json = format == US_LOG_JSON;
}

/* Appends, and leaves room for the end. What does not fit is cut. */
static void put(struct line *l, const char *fmt, ...) US_PRINTF(2, 3);
static void put(struct line *l, const char *fmt, ...)
{
    size_t room = sizeof(l->text) - 3 - l->n;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(l->text + l->n, room, fmt, ap);
    va_end(ap);
    if (n > 0)
        l->n += (size_t)n < room ? (size_t)n : room - 1;
}

/* Appends s in quotes; anything that is not plain printable ASCII becomes \xNN, in JSON \u00NN. */
static void put_quoted(struct line *l, const char *s)
{
    size_t limit = l->n + MAX_VALUE;
    put(l, "\"");
    for (; *s != '\0' && l->n < limit; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
            put(l, as_json ? "\\u%04x" : "\\x%02x", c);
        else
            put(l, "%c", c);
    }
    put(l, "\"");
}

static void put_key(struct line *l, const char *name)
{
    const char *separator = l->n == 0 ? "" : as_json ? "," : " ";
    put(l, as_json ? "%s\"%s\":" : "%s%s=", separator, name);
}

/* NULL and "" are left out. */
static void put_field(struct line *l, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        return;
    put_key(l, name);
    put_quoted(l, value);
}

/* A word of our own making: bare in logfmt. */
static void put_word(struct line *l, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        return;
    put_key(l, name);
    put(l, as_json ? "\"%s\"" : "%s", value);
}

static void put_number(struct line *l, const char *name, long long value)
{
    put_key(l, name);
    put(l, "%lld", value);
}

static void begin(struct line *l, enum us_log_level level)
{
    struct timespec ts;
    struct tm tm;
    char now[40];
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    l->n = 0;
    size_t n = strftime(now, sizeof(now), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(now + n, sizeof(now) - n, ".%03dZ", (int)(ts.tv_nsec / 1000000));
    put_word(l, "time", now);
    put_word(l, "level", level_name[level]);
}

static void finish(struct line *l)
{
    if (as_json) { /* the brace that put_key had no place for */
        memmove(l->text + 1, l->text, l->n);
        l->text[0] = '{';
        l->n++;
        l->text[l->n++] = '}';
    }
    l->text[l->n++] = '\n';
    ssize_t done = write(STDERR_FILENO, l->text, l->n);
    (void)done; /* a closed stderr is no reason to stop serving */
}

void us_log(enum us_log_level level, const char *fmt, ...)
{
    if (level > least_level)
        return;
    char msg[1024];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    struct line l;
    begin(&l, level);
    put_field(&l, "msg", msg);
    finish(&l);
}

void us_log_request(const struct us_log_request *q)
{
    enum us_log_level level = q->status >= 500 && q->status != 503 ? US_LOG_ERROR : US_LOG_INFO;
    if (level > least_level)
        return;
    struct line l;
    begin(&l, level);
    put_field(&l, "method", q->method);
    put_field(&l, "path", q->path);
    put_number(&l, "status", q->status);
    put_key(&l, "ms");
    put(&l, "%.1f", q->ms);
    put_number(&l, "in", q->in_bytes);
    put_number(&l, "out", q->out_bytes);
    put_word(&l, "id", q->id);
    put_word(&l, "trace", q->trace);
    put_field(&l, "user", q->user);
    put_field(&l, "token", q->token);
    put_field(&l, "client", q->client);
    put_field(&l, "model", q->model);
    put_field(&l, "error", q->error);
    finish(&l);
}
