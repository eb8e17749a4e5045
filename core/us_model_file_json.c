/*
 * JSON for model files: bounded parsing and deterministic writing (us_model_file.h).
 *
 * The text is scanned once before jansson sees it. The scan needs no grammar: it counts what costs
 * memory (values, containers) and stack (depth), both of which jansson would spend before it finds
 * the first mistake.
 */
#include "us_model_file.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

/* ---- reading ------------------------------------------------------------------------------- */

struct scan {
    size_t commas, containers;
    int depth, deepest;
    bool in_string;
};

static void scan_byte(struct scan *s, char c)
{
    switch (c) {
    case '"':
        s->in_string = true;
        break;
    case '{':
    case '[':
        s->containers++;
        s->depth++;
        s->deepest = s->depth > s->deepest ? s->depth : s->deepest;
        break;
    case '}':
    case ']':
        s->depth--;
        break;
    case ',':
        s->commas++;
        break;
    default:
        break;
    }
}

static enum us_status check_size(const char *text, size_t n, struct usi_json_limits limits,
                                 const char *what, struct us_err *err)
{
    struct scan s = {0};
    for (size_t i = 0; i < n && s.deepest <= US_MAX_JSON_DEPTH; i++) {
        if (!s.in_string)
            scan_byte(&s, text[i]);
        else if (text[i] == '\\')
            i++;
        else if (text[i] == '"')
            s.in_string = false;
    }
    if (s.deepest > US_MAX_JSON_DEPTH)
        return us_fail(err, US_E_TOO_LARGE, "%s is nested over %d levels deep", what,
                       US_MAX_JSON_DEPTH);
    if (s.containers > limits.max_containers)
        return us_fail(err, US_E_TOO_LARGE, "%s holds %zu objects and arrays; expected at most %zu",
                       what, s.containers, limits.max_containers);
    /* A value is the first of its container or follows a comma. */
    if (s.containers + s.commas + 1 > limits.max_values)
        return us_fail(err, US_E_TOO_LARGE, "%s holds over %zu values", what, limits.max_values);
    return US_OK;
}

enum us_status usi_json_parse(const char *text, size_t n_bytes, struct usi_json_limits limits,
                              const char *what, struct json_t **ret, struct us_err *err)
{
    US_TRY(check_size(text, n_bytes, limits, what, err));
    json_error_t e;
    json_t *v = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (v != NULL) {
        *ret = v;
        return US_OK;
    }
    if (json_error_code(&e) == json_error_out_of_memory || e.text[0] == '\0')
        return us_fail(err, US_E_NOMEM, "no memory to parse %s", what);
    return us_fail(err, US_E_FORMAT, "%s is not valid JSON at byte %d: %s", what, e.position,
                   e.text);
}

/* Length of s, at most max bytes and never half a character. */
static int clipped(const char *s, size_t max)
{
    size_t n = strnlen(s, max + 1);
    if (n <= max)
        return (int)n;
    n = max;
    while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
        n--;
    return (int)n;
}

const char *usi_json_describe(const struct json_t *v, char *buf, size_t n)
{
    switch (json_typeof(v)) {
    case JSON_INTEGER:
        (void)snprintf(buf, n, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        (void)snprintf(buf, n, "%g", json_real_value(v));
        break;
    case JSON_STRING:
        (void)snprintf(buf, n, "\"%.*s\"", clipped(json_string_value(v), n - 3),
                       json_string_value(v));
        break;
    case JSON_ARRAY:
        (void)snprintf(buf, n, "a list of %zu", json_array_size(v));
        break;
    case JSON_OBJECT:
        (void)snprintf(buf, n, "an object");
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        (void)snprintf(buf, n, "%s", json_is_true(v) ? "true" : "false");
        break;
    case JSON_NULL:
        (void)snprintf(buf, n, "null");
        break;
    }
    return buf;
}

/* ---- writing ------------------------------------------------------------------------------- */

static bool reserve(struct usi_text *t, size_t more)
{
    if (t->failed || t->cap - t->n > more)
        return !t->failed;
    size_t cap = 2 * (t->n + more + 64);
    char *p = realloc(t->p, cap);
    if (p == NULL) {
        t->failed = true;
        return false;
    }
    t->p = p;
    t->cap = cap;
    return true;
}

void usi_text_add(struct usi_text *t, const char *s, size_t n)
{
    if (!reserve(t, n))
        return;
    memcpy(t->p + t->n, s, n);
    t->n += n;
    t->p[t->n] = '\0';
}

void usi_text_printf(struct usi_text *t, const char *fmt, ...)
{
    char buf[2 * US_MAX_PARAM_NAME + 64];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf, sizeof(buf), fmt, ap);
    va_end(ap);
    US_ASSERT(n >= 0);
    US_ASSERT((size_t)n < sizeof(buf));
    usi_text_add(t, buf, (size_t)n);
}

/* Bytes before the next one that a JSON string must escape. */
static size_t plain_run(const char *s)
{
    size_t n = 0;
    while ((unsigned char)s[n] >= 0x20 && s[n] != '"' && s[n] != '\\')
        n++;
    return n;
}

void usi_text_add_string(struct usi_text *t, const char *s)
{
    usi_text_add(t, "\"", 1);
    for (;;) {
        size_t run = plain_run(s);
        usi_text_add(t, s, run);
        s += run;
        if (*s == '\0')
            break;
        if ((unsigned char)*s < 0x20)
            usi_text_printf(t, "\\u%04x", (unsigned char)*s);
        else
            usi_text_printf(t, "\\%c", *s);
        s++;
    }
    usi_text_add(t, "\"", 1);
}

/* The shortest decimal that reads back as the same double, and that JSON reads as a real. */
static void add_real(struct usi_text *t, double x)
{
    char buf[40];
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(buf, sizeof(buf), "%.*g", digits, x);
        if (strtod(buf, NULL) == x)
            break;
    }
    char *point = strstr(buf, localeconv()->decimal_point);
    if (point != NULL)
        *point = '.';
    usi_text_add(t, buf, strlen(buf));
    if (strpbrk(buf, ".e") == NULL)
        usi_text_add(t, ".0", 2);
}

static void add_object(struct usi_text *t, const struct json_t *v)
{
    const char *key;
    json_t *item;
    bool first = true;
    usi_text_add(t, "{", 1);
    json_object_foreach((json_t *)(uintptr_t)v, key, item)
    {
        usi_text_add(t, ", ", first ? 0 : 2);
        usi_text_add_string(t, key);
        usi_text_add(t, ": ", 2);
        usi_text_add_json(t, item);
        first = false;
    }
    usi_text_add(t, "}", 1);
}

void usi_text_add_json(struct usi_text *t, const struct json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        add_object(t, v);
        break;
    case JSON_ARRAY:
        usi_text_add(t, "[", 1);
        for (size_t i = 0; i < json_array_size(v); i++) {
            usi_text_add(t, ", ", i == 0 ? 0 : 2);
            usi_text_add_json(t, json_array_get(v, i));
        }
        usi_text_add(t, "]", 1);
        break;
    case JSON_STRING:
        usi_text_add_string(t, json_string_value(v));
        break;
    case JSON_INTEGER:
        usi_text_printf(t, "%lld", (long long)json_integer_value(v));
        break;
    case JSON_REAL:
        add_real(t, json_real_value(v));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        usi_text_add(t, json_is_true(v) ? "true" : "false", json_is_true(v) ? 4 : 5);
        break;
    case JSON_NULL:
        usi_text_add(t, "null", 4);
        break;
    }
}
