/*
 * The names of HTTP content codings and the two header fields that carry them (RFC 9110, 8.4 and
 * 12.5.3). A request may use one coding, never a stack of them: decoding twice is how a small body
 * becomes a large amount of work.
 */
#include "us_coding.h"

#include <string.h>
#include <strings.h>

/* A run of bytes inside a header value. */
struct span {
    const char *s;
    size_t n;
};

static const struct {
    const char *name;
    enum us_coding coding;
} coding_names[] = {
    {"identity", US_CODING_IDENTITY}, {"gzip", US_CODING_GZIP},   {"deflate", US_CODING_DEFLATE},
    {"zstd", US_CODING_ZSTD},         {"x-gzip", US_CODING_GZIP},
};

const char *us_coding_name(enum us_coding c)
{
    for (size_t i = 0; i < US_COUNT(coding_names); i++) {
        if (coding_names[i].coding == c)
            return coding_names[i].name;
    }
    return "unknown";
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

static struct span trim(struct span v)
{
    while (v.n > 0 && is_space(v.s[0])) {
        v.s++;
        v.n--;
    }
    while (v.n > 0 && is_space(v.s[v.n - 1]))
        v.n--;
    return v;
}

static bool span_is(struct span v, const char *word)
{
    return v.n == strlen(word) && strncasecmp(v.s, word, v.n) == 0;
}

static bool find_coding(struct span v, enum us_coding *ret)
{
    for (size_t i = 0; i < US_COUNT(coding_names); i++) {
        if (span_is(v, coding_names[i].name)) {
            *ret = coding_names[i].coding;
            return true;
        }
    }
    return false;
}

enum us_status us_coding_parse(const char *value, enum us_coding *ret, struct us_err *err)
{
    struct span v = trim((struct span){value, value == NULL ? 0 : strlen(value)});
    if (v.n == 0) {
        *ret = US_CODING_IDENTITY;
        return US_OK;
    }
    if (memchr(v.s, ',', v.n) != NULL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "several content codings \"%.*s\": one of zstd, gzip, deflate is accepted",
                       (int)(v.n < 64 ? v.n : 64), v.s);
    if (!find_coding(v, ret))
        return us_fail(err, US_E_UNSUPPORTED,
                       "content coding \"%.*s\": only zstd, gzip, deflate and identity are known",
                       (int)(v.n < 64 ? v.n : 64), v.s);
    return US_OK;
}

/* Cuts the part before the first sep off *rest; the last part takes everything. */
static struct span next_part(struct span *rest, char sep)
{
    const char *end = memchr(rest->s, sep, rest->n);
    struct span part = {rest->s, end == NULL ? rest->n : (size_t)(end - rest->s)};
    size_t used = end == NULL ? rest->n : part.n + 1;
    rest->s += used;
    rest->n -= used;
    return trim(part);
}

/* qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] ). Only zero or not matters here;
 * what does not follow the grammar counts as zero: never answer with a coding nobody asked for. */
static bool qvalue_is_positive(struct span q)
{
    if (q.n == 0 || q.n > 5 || (q.s[0] != '0' && q.s[0] != '1') || (q.n > 1 && q.s[1] != '.'))
        return false;
    bool positive = q.s[0] == '1';
    for (size_t i = 2; i < q.n; i++) {
        if (q.s[i] < '0' || q.s[i] > '9' || (q.s[0] == '1' && q.s[i] != '0'))
            return false;
        positive = positive || q.s[i] != '0';
    }
    return positive;
}

static bool weight_is_positive(struct span params)
{
    while (params.n > 0) {
        struct span p = next_part(&params, ';');
        if (p.n >= 2 && strncasecmp(p.s, "q=", 2) == 0)
            return qvalue_is_positive((struct span){p.s + 2, p.n - 2});
    }
    return true;
}

/* The first of the offered codings that the header allows, else identity. */
static enum us_coding choose(const char *accept_encoding, const enum us_coding *offered, size_t n)
{
    enum wish { UNSAID = 0, YES, NO };
    enum wish wish[US_CODING_ZSTD + 1] = {UNSAID}, others = NO;
    struct span rest = {accept_encoding, accept_encoding == NULL ? 0 : strlen(accept_encoding)};
    while (rest.n > 0) {
        struct span params = next_part(&rest, ',');
        if (params.n == 0)
            continue;
        struct span name = next_part(&params, ';');
        enum wish w = weight_is_positive(params) ? YES : NO;
        enum us_coding c;
        if (span_is(name, "*"))
            others = w;
        else if (find_coding(name, &c))
            wish[c] = w;
    }
    for (size_t i = 0; i < n; i++) {
        enum wish w = wish[offered[i]];
        if (w == YES || (w == UNSAID && others == YES))
            return offered[i];
    }
    return US_CODING_IDENTITY;
}

enum us_coding us_coding_accept(const char *accept_encoding)
{
    static const enum us_coding offered[] = {US_CODING_ZSTD, US_CODING_GZIP};
    return choose(accept_encoding, offered, US_COUNT(offered));
}

bool us_coding_gzip_ok(const char *accept_encoding)
{
    static const enum us_coding gzip = US_CODING_GZIP;
    return choose(accept_encoding, &gzip, 1) == US_CODING_GZIP;
}
