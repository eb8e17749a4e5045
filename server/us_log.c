/* Log lines; see us_log.h. A line is built in one buffer and written with one write(2). */
#include "us_log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum us_log_level least_level = US_LOG_INFO;

static const char *const level_name[] = {"error", "warn", "info", "debug"};

struct line {
    char text[2048];
    size_t n;
};

void us_log_init(enum us_log_level least)
{
    least_level = least;
}

/* Appends, and leaves room for the newline. What does not fit is cut. */
static void put(struct line *l, const char *fmt, ...) US_PRINTF(2, 3);
static void put(struct line *l, const char *fmt, ...)
{
    size_t room = sizeof(l->text) - 1 - l->n;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(l->text + l->n, room, fmt, ap);
    va_end(ap);
    if (n > 0)
        l->n += (size_t)n < room ? (size_t)n : room - 1;
}

/* Appends s in quotes; anything that is not plain printable ASCII becomes \xNN. */
static void put_quoted(struct line *l, const char *s)
{
    put(l, "\"");
    for (; *s != '\0' && l->n < sizeof(l->text) - 64; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
            put(l, "\\x%02x", c);
        else
            l->text[l->n++] = (char)c;
    }
    put(l, "\"");
}

static void put_field(struct line *l, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        return;
    put(l, " %s=", name);
    put_quoted(l, value);
}

static void begin(struct line *l, enum us_log_level level)
{
    struct timespec ts;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    l->n = 0;
    put(l, "time=%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ level=%s", tm.tm_year + 1900, tm.tm_mon + 1,
        tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, ts.tv_nsec / 1000000, level_name[level]);
}

static void finish(struct line *l)
{
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
    put(&l, " msg=");
    put_quoted(&l, msg);
    finish(&l);
}

void us_log_request(const struct us_log_request *q)
{
    enum us_log_level level = q->status >= 500 && q->status != 503 ? US_LOG_ERROR : US_LOG_INFO;
    if (level > least_level)
        return;
    struct line l;
    begin(&l, level);
    put(&l, " method=");
    put_quoted(&l, q->method);
    put(&l, " path=");
    put_quoted(&l, q->path);
    put(&l, " status=%d ms=%.1f in=%lld out=%lld id=%s", q->status, q->ms, (long long)q->in_bytes,
        (long long)q->out_bytes, q->id);
    put_field(&l, "user", q->user);
    put_field(&l, "token", q->token);
    put_field(&l, "client", q->client);
    put_field(&l, "model", q->model);
    put_field(&l, "error", q->error);
    finish(&l);
}
