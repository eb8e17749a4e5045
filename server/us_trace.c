/* Trace context; see us_trace.h. */
#include "us_trace.h"

#include <stdio.h>
#include <string.h>

#define HEX        "0123456789abcdef"
#define TEXT_CHARS (US_TRACEPARENT_BYTES - 1)

/* n small hex digits and then the character end; not all of them 0 where that means "none". */
static bool is_field(const char *s, size_t n, char end, bool zero_is_fine)
{
    return strspn(s, HEX) == n && s[n] == end && (zero_is_fine || strspn(s, "0") < n);
}

bool us_trace_parse(const char *header, struct us_trace *ret)
{
    if (header == NULL || strnlen(header, TEXT_CHARS) < TEXT_CHARS)
        return false;
    bool first_version = memcmp(header, "00", 2) == 0;
    const char *id = header + 3, *span = id + 33, *flags = span + 17;
    /* A later version may go on behind the flags, after another dash. */
    char end = first_version || flags[2] == '\0' ? '\0' : '-';
    if (!is_field(header, 2, '-', true) || memcmp(header, "ff", 2) == 0 ||
        !is_field(id, 32, '-', false) || !is_field(span, 16, '-', false) ||
        !is_field(flags, 2, end, true))
        return false;
    (void)snprintf(ret->id, sizeof(ret->id), "%.32s", id);
    (void)snprintf(ret->span, sizeof(ret->span), "%.16s", span);
    (void)snprintf(ret->flags, sizeof(ret->flags), "%.2s", flags);
    return true;
}

static void put_hex(const uint8_t *bytes, size_t n, char *text)
{
    for (size_t i = 0; i < n; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

struct us_trace us_trace_begin(const char *header, const uint8_t random[24])
{
    struct us_trace t;
    if (!us_trace_parse(header, &t)) {
        put_hex(random, 16, t.id);
        memcpy(t.flags, "00", 3);
        if (strspn(t.id, "0") == 32)
            t.id[31] = '1';
    }
    put_hex(random + 16, 8, t.span);
    if (strspn(t.span, "0") == 16)
        t.span[15] = '1';
    return t;
}

void us_trace_text(const struct us_trace *t, char text[US_TRACEPARENT_BYTES])
{
    (void)snprintf(text, US_TRACEPARENT_BYTES, "00-%s-%s-%s", t->id, t->span, t->flags);
}
