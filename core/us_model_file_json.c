/*
 * JSON for model files: bounded reading and deterministic writing (us_model_file.h).
 *
 * A stranger's header must cost little whatever it holds, and running out of memory must be an
 * error and nothing else; general libraries promise neither. So a scan counts the values first,
 * one block takes them all, and strings are decoded in place, where they can only become shorter.
 * The grammar is RFC 8259, less what no model file needs: duplicate keys, U+0000 in strings,
 * integers beyond 64 bits and numbers of more than NUMBER_BYTES digits are errors.
 */
#include "us_model_file.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_BYTES 128

/* ---- reading ------------------------------------------------------------------------------- */

struct parser {
    char *text, *p; /* p: the next byte; a NUL stands after the last */
    const char *what;
    struct usi_json *nodes;
    const struct usi_json **scratch; /* as many as nodes: for sorting keys */
    size_t n_nodes, cap;
    struct us_err *err;
};

size_t usi_utf8_bytes(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Longer than needed, a surrogate, or beyond U+10FFFF. */
    bool bad = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
               (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f);
    return bad ? 0 : n;
}

static enum us_status fail(const struct parser *j, const char *why)
{
    return us_fail(j->err, US_E_FORMAT, "%s is not valid JSON at byte %zu: %s", j->what,
                   (size_t)(j->p - j->text), why);
}

static void skip_space(struct parser *j)
{
    while (*j->p == ' ' || *j->p == '\n' || *j->p == '\t' || *j->p == '\r')
        j->p++;
}

/* Four hexadecimal digits at s, or -1. */
static int32_t hex4(const char *s)
{
    int32_t v = 0;
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        v = v << 4 | digit;
    }
    return v;
}

static char *put_utf8(char *out, int32_t c)
{
    int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const int lead[] = {0x00, 0xc0, 0xe0, 0xf0};
    *out++ = (char)(lead[more] | c >> (6 * more));
    while (more-- > 0)
        *out++ = (char)(0x80 | (c >> (6 * more) & 0x3f));
    return out;
}

/* \uXXXX at j->p (the backslash), and the second half of a pair of surrogates. */
static enum us_status parse_unicode(struct parser *j, char **out)
{
    int32_t c = hex4(j->p + 2);
    if (c < 0)
        return fail(j, "\\u without four hexadecimal digits");
    if (c == 0)
        return fail(j, "U+0000 in a string");
    if (c >= 0xdc00 && c < 0xe000)
        return fail(j, "half of a surrogate pair");
    if (c >= 0xd800 && c < 0xdc00) {
        int32_t low = j->p[6] == '\\' && j->p[7] == 'u' ? hex4(j->p + 8) : -1;
        if (low < 0xdc00 || low >= 0xe000)
            return fail(j, "half of a surrogate pair");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        j->p += 6;
    }
    j->p += 6;
    *out = put_utf8(*out, c);
    return US_OK;
}

static enum us_status parse_escape(struct parser *j, char **out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (j->p[1] == 'u')
        return parse_unicode(j, out);
    const char *hit = j->p[1] == '\0' ? NULL : strchr(from, j->p[1]);
    if (hit == NULL)
        return fail(j, "unknown escape in a string");
    *(*out)++ = to[hit - from];
    j->p += 2;
    return US_OK;
}

/* The string whose opening quote is at j->p, decoded where it lies. */
static enum us_status parse_string(struct parser *j, const char **ret)
{
    char *out = ++j->p;
    *ret = out;
    while (*j->p != '"') {
        if (*j->p == '\\') {
            US_TRY(parse_escape(j, &out));
            continue;
        }
        if ((unsigned char)*j->p < 0x20)
            return fail(j,
                        *j->p == '\0' ? "a string without end" : "control character in a string");
        size_t n = usi_utf8_bytes(j->p);
        if (n == 0)
            return fail(j, "text that is not UTF-8");
        memmove(out, j->p, n);
        out += n;
        j->p += n;
    }
    j->p++;
    *out = '\0'; /* on the closing quote or before it */
    return US_OK;
}

static size_t digits(const char *s)
{
    return strspn(s, "0123456789");
}

/* Length of the number at s by the grammar, 0 if there is none; *ret_real: not an integer. */
static size_t number_bytes(const char *s, bool *ret_real)
{
    size_t at = s[0] == '-' ? 1 : 0, whole = digits(s + at);
    if (whole == 0 || (whole > 1 && s[at] == '0'))
        return 0;
    at += whole;
    *ret_real = s[at] == '.' || s[at] == 'e' || s[at] == 'E';
    if (s[at] == '.') {
        size_t n = digits(s + at + 1);
        if (n == 0)
            return 0;
        at += 1 + n;
    }
    if (s[at] == 'e' || s[at] == 'E') {
        at += s[at + 1] == '+' || s[at + 1] == '-' ? 2 : 1;
        size_t n = digits(s + at);
        if (n == 0)
            return 0;
        at += n;
    }
    return at;
}

/* strtod reads the decimal point of the locale. */
static double real_of_text(const char *s, size_t n)
{
    char buf[NUMBER_BYTES + 16];
    const char *point = memchr(s, '.', n);
    size_t before = point == NULL ? n : (size_t)(point - s);
    (void)snprintf(buf, sizeof(buf), "%.*s%.8s%.*s", (int)before, s,
                   point == NULL ? "" : localeconv()->decimal_point,
                   point == NULL ? 0 : (int)(n - before - 1), point == NULL ? "" : point + 1);
    return strtod(buf, NULL);
}

static enum us_status parse_number(struct parser *j, struct usi_json *v)
{
    bool is_real;
    size_t n = number_bytes(j->p, &is_real);
    if (n == 0)
        return fail(j, "a value was expected");
    if (n > NUMBER_BYTES)
        return fail(j, "a number of too many digits");
    if (is_real) {
        v->type = USI_JSON_REAL;
        v->real = real_of_text(j->p, n);
        if (!isfinite(v->real))
            return fail(j, "a number too large for a double");
    } else {
        v->type = USI_JSON_INTEGER;
        errno = 0;
        v->integer = strtoll(j->p, NULL, 10);
        if (errno == ERANGE)
            return fail(j, "an integer too large for 64 bits");
    }
    j->p += n;
    return US_OK;
}

static enum us_status parse_value(struct parser *j, int depth, struct usi_json *v);

static int by_key(const void *a, const void *b)
{
    const struct usi_json *const *x = a, *const *y = b;
    return strcmp((*x)->key, (*y)->key);
}

static enum us_status refuse_twins(const struct parser *j, const struct usi_json *object)
{
    size_t n = 0;
    for (const struct usi_json *v = object->first; v != NULL; v = v->next)
        j->scratch[n++] = v;
    qsort(j->scratch, n, sizeof(struct usi_json *), by_key);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(j->scratch[i - 1]->key, j->scratch[i]->key) == 0)
            return us_fail(j->err, US_E_FORMAT, "%s has a duplicate member \"%.*s\"", j->what,
                           usi_utf8_clip(j->scratch[i]->key, 64), j->scratch[i]->key);
    }
    return US_OK;
}

static enum us_status parse_key(struct parser *j, struct usi_json *item)
{
    if (*j->p != '"')
        return fail(j, "a member's name was expected");
    US_TRY(parse_string(j, &item->key));
    skip_space(j);
    if (*j->p != ':')
        return fail(j, "':' was expected");
    j->p++;
    skip_space(j);
    return US_OK;
}

/* The container whose opening bracket is at j->p. */
static enum us_status parse_container(struct parser *j, int depth, struct usi_json *v)
{
    const bool object = *j->p == '{';
    const char close = object ? '}' : ']';
    v->type = object ? USI_JSON_OBJECT : USI_JSON_ARRAY;
    if (depth >= US_MAX_JSON_DEPTH)
        return us_fail(j->err, US_E_TOO_LARGE, "%s is nested over %d levels deep", j->what,
                       US_MAX_JSON_DEPTH);
    const struct usi_json **link = &v->first;
    j->p++;
    skip_space(j);
    while (*j->p != close) {
        US_ASSERT(j->n_nodes < j->cap); /* the scan saw the same bytes */
        struct usi_json *item = &j->nodes[j->n_nodes++];
        if (object)
            US_TRY(parse_key(j, item));
        US_TRY(parse_value(j, depth + 1, item));
        *link = item;
        link = &item->next;
        v->n++;
        skip_space(j);
        if (*j->p == close)
            break;
        if (*j->p != ',')
            return fail(j, object ? "',' or '}' was expected" : "',' or ']' was expected");
        j->p++;
        skip_space(j);
        if (*j->p == close)
            return fail(j, "a value was expected after ','");
    }
    j->p++;
    return object ? refuse_twins(j, v) : US_OK;
}

static enum us_status parse_value(struct parser *j, int depth, struct usi_json *v)
{
    static const struct {
        const char *word;
        enum usi_json_type type;
    } words[] = {{"null", USI_JSON_NULL}, {"true", USI_JSON_TRUE}, {"false", USI_JSON_FALSE}};
    if (*j->p == '{' || *j->p == '[')
        return parse_container(j, depth, v);
    if (*j->p == '"') {
        v->type = USI_JSON_STRING;
        return parse_string(j, &v->string);
    }
    for (size_t i = 0; i < US_COUNT(words); i++) {
        size_t n = strlen(words[i].word);
        if (strncmp(j->p, words[i].word, n) == 0) {
            v->type = words[i].type;
            j->p += n;
            return US_OK;
        }
    }
    return parse_number(j, v);
}

/* A value is the first of a container that is not empty, or follows a comma. Needs no grammar: of
 * a malformed text at least as many are counted as are parsed before the mistake. */
static size_t count_values(const char *text, size_t n)
{
    size_t count = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && c == ',')
            count++;
        else if (!in_string && (c == '{' || c == '['))
            count += text[i + 1 + strspn(text + i + 1, " \t\r\n")] != (c == '{' ? '}' : ']');
    }
    return count;
}

static enum us_status parse_text(struct parser *j, size_t n_bytes)
{
    skip_space(j);
    j->n_nodes = 1;
    US_TRY(parse_value(j, 0, &j->nodes[0]));
    skip_space(j);
    return j->p == j->text + n_bytes ? US_OK : fail(j, "more follows the value");
}

enum us_status usi_json_parse(char *text, size_t n_bytes, size_t max_values, const char *what,
                              struct usi_json **ret, struct us_err *err)
{
    struct parser j = {.text = text, .p = text, .what = what, .err = err};
    j.cap = count_values(text, n_bytes);
    if (j.cap > max_values)
        return us_fail(err, US_E_TOO_LARGE, "%s holds %zu values; expected at most %zu", what,
                       j.cap, max_values);
    j.nodes = calloc(j.cap, sizeof(*j.nodes));
    j.scratch = calloc(j.cap, sizeof(*j.scratch));
    enum us_status s =
        j.nodes == NULL || j.scratch == NULL
            ? us_fail(err, US_E_NOMEM, "no memory for the %zu values of %s", j.cap, what)
            : parse_text(&j, n_bytes);
    free(j.scratch);
    if (s == US_OK)
        *ret = j.nodes;
    else
        free(j.nodes);
    return s;
}

const struct usi_json *usi_json_get(const struct usi_json *object, const char *key)
{
    if (object == NULL || object->type != USI_JSON_OBJECT)
        return NULL;
    const struct usi_json *v = object->first;
    while (v != NULL && strcmp(v->key, key) != 0)
        v = v->next;
    return v;
}

const char *usi_json_string(const struct usi_json *v)
{
    return v != NULL && v->type == USI_JSON_STRING ? v->string : NULL;
}

int usi_utf8_clip(const char *s, size_t max)
{
    size_t n = strnlen(s, max + 1);
    if (n <= max)
        return (int)n;
    n = max;
    while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80)
        n--;
    return (int)n;
}

const char *usi_json_describe(const struct usi_json *v, char *buf, size_t n)
{
    switch (v->type) {
    case USI_JSON_NULL:
    case USI_JSON_TRUE:
    case USI_JSON_FALSE:
        (void)snprintf(buf, n, "%s",
                       v->type == USI_JSON_NULL   ? "null"
                       : v->type == USI_JSON_TRUE ? "true"
                                                  : "false");
        break;
    case USI_JSON_INTEGER:
        (void)snprintf(buf, n, "%lld", (long long)v->integer);
        break;
    case USI_JSON_REAL:
        (void)snprintf(buf, n, "%g", v->real);
        break;
    case USI_JSON_STRING:
        (void)snprintf(buf, n, "\"%.*s\"", usi_utf8_clip(v->string, n - 3), v->string);
        break;
    case USI_JSON_ARRAY:
        (void)snprintf(buf, n, "a list of %d", v->n);
        break;
    case USI_JSON_OBJECT:
        (void)snprintf(buf, n, "an object");
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

void usi_text_add_real(struct usi_text *t, double x)
{
    char buf[64];
    for (int n = 15; n <= 17; n++) {
        (void)snprintf(buf, sizeof(buf), "%.*g", n, x);
        if (strtod(buf, NULL) == x)
            break;
    }
    const char *local = localeconv()->decimal_point;
    char *point = strstr(buf, local);
    if (point != NULL)
        usi_text_printf(t, "%.*s.%s", (int)(point - buf), buf, point + strlen(local));
    else
        usi_text_printf(t, "%s%s", buf, strchr(buf, 'e') == NULL ? ".0" : "");
}

static void add_container(struct usi_text *t, const struct usi_json *v)
{
    bool object = v->type == USI_JSON_OBJECT;
    usi_text_add(t, object ? "{" : "[", 1);
    for (const struct usi_json *item = v->first; item != NULL; item = item->next) {
        usi_text_add(t, ", ", item == v->first ? 0 : 2);
        if (object) {
            usi_text_add_string(t, item->key);
            usi_text_add(t, ": ", 2);
        }
        usi_text_add_json(t, item);
    }
    usi_text_add(t, object ? "}" : "]", 1);
}

void usi_text_add_json(struct usi_text *t, const struct usi_json *v)
{
    char word[8];
    switch (v->type) {
    case USI_JSON_OBJECT:
    case USI_JSON_ARRAY:
        add_container(t, v);
        break;
    case USI_JSON_STRING:
        usi_text_add_string(t, v->string);
        break;
    case USI_JSON_REAL:
        usi_text_add_real(t, v->real);
        break;
    case USI_JSON_INTEGER:
        usi_text_printf(t, "%lld", (long long)v->integer);
        break;
    case USI_JSON_NULL:
    case USI_JSON_TRUE:
    case USI_JSON_FALSE:
        usi_text_printf(t, "%s", usi_json_describe(v, word, sizeof(word)));
        break;
    }
}
