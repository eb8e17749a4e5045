/* Status names and the error object; see us_status.h. */
#include "us_status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    const char *text;
} status_table[US_STATUS_COUNT] = {
    [US_OK] = {"OK", "ok"},
#define US_STATUS(name, text) [US_##name] = {#name, text},
#include "us_status.def"
#undef US_STATUS
};

const char *us_status_text(enum us_status s)
{
    return (unsigned)s < US_STATUS_COUNT ? status_table[s].text : "unknown status";
}

const char *us_status_name(enum us_status s)
{
    return (unsigned)s < US_STATUS_COUNT ? status_table[s].name : "E_UNKNOWN";
}

/* A message may quote bytes of a stranger's file: no control character reaches a log. */
static void mask_control(char *s)
{
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c == 0x7f)
            *s = '?';
    }
}

enum us_status us_err_set(struct us_err *err, enum us_status s, const char *file, int line,
                          const char *fmt, ...)
{
    if (err == NULL)
        return s;
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    mask_control(err->msg);
    err->status = s;
    err->file = file;
    err->line = line;
    return s;
}

void us_err_prefix(struct us_err *err, const char *fmt, ...)
{
    if (err == NULL)
        return;
    char text[2 * US_ERR_MSG_BYTES + 2];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, US_ERR_MSG_BYTES, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    size_t used = (size_t)n < US_ERR_MSG_BYTES ? (size_t)n : US_ERR_MSG_BYTES - 1;
    (void)snprintf(text + used, sizeof(text) - used, ": %s", err->msg);
    text[US_ERR_MSG_BYTES - 1] = '\0';
    memcpy(err->msg, text, US_ERR_MSG_BYTES);
    mask_control(err->msg);
}

void us_assert_failed(const char *expr, const char *file, int line)
{
    (void)fprintf(stderr, "usplit: internal error: %s (%s:%d)\n", expr, file, line);
    abort();
}
