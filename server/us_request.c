/*
 * Request heads, decoded and checked; see us_request.h. RFC 9110 (fields, negotiation), RFC 9112
 * (framing), RFC 3986 (targets).
 */
#include "us_request.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_alnum(unsigned char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z' && c < 0x80);
}

/* RFC 9110 token characters. */
static bool is_token_char(unsigned char c)
{
    return is_alnum(c) || (c != '\0' && c < 0x80 && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* Decodes n bytes at s to *at, NUL-terminated, and moves *at behind them: never longer than the
 * input and its separator. in_path refuses what would change the path's shape. */
static enum us_status decode_part(const char *s, size_t n, bool in_path, char **at,
                                  struct us_err *err)
{
    char *w = *at;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool escaped = c == '%';
        if (escaped) {
            int hi = n - i > 2 ? hex_digit(s[i + 1]) : -1;
            int lo = n - i > 2 ? hex_digit(s[i + 2]) : -1;
            if (hi < 0 || lo < 0)
                return us_fail(err, US_E_FORMAT, "the request target has a broken percent escape");
            c = (unsigned char)(hi * 16 + lo);
            i += 2;
        }
        if (c < 0x20 || c == 0x7f || (c == ' ' && !escaped))
            return us_fail(err, US_E_FORMAT, "the request target holds the character 0x%02x", c);
        if (in_path && escaped && (c == '/' || c == '\\'))
            return us_fail(err, US_E_FORMAT, "the path holds an encoded slash; names have none");
        *w++ = (char)c;
    }
    *w++ = '\0';
    *at = w;
    return US_OK;
}

static enum us_status parse_path(const char *path, size_t n, struct us_target *t, char **at,
                                 struct us_err *err)
{
    for (size_t i = 1; i < n || (i == n && n > 1);) {
        const char *slash = i < n ? memchr(path + i, '/', n - i) : NULL;
        size_t len = slash != NULL ? (size_t)(slash - (path + i)) : n - i;
        if (t->n_segments == US_MAX_SEGMENTS)
            return us_fail(err, US_E_TOO_LARGE, "the path has more than %d parts", US_MAX_SEGMENTS);
        t->segment[t->n_segments++] = *at;
        US_TRY(decode_part(path + i, len, true, at, err));
        if (slash == NULL)
            break;
        i += len + 1;
    }
    return US_OK;
}

static enum us_status parse_query(const char *query, struct us_target *t, char **at,
                                  struct us_err *err)
{
    while (*query != '\0') {
        size_t len = strcspn(query, "&");
        size_t name_len = strcspn(query, "=&");
        if (len > 0) {
            if (t->n_params == US_MAX_PARAMS)
                return us_fail(err, US_E_TOO_LARGE, "more than %d query parameters", US_MAX_PARAMS);
            struct us_param_pair *p = &t->param[t->n_params++];
            p->name = *at;
            US_TRY(decode_part(query, name_len, false, at, err));
            p->value = *at;
            size_t skip = name_len < len ? name_len + 1 : len;
            US_TRY(decode_part(query + skip, len - skip, false, at, err));
        }
        query += len;
        query += *query == '&';
    }
    return US_OK;
}

/* "http://host/path" (RFC 9112 3.2.2) is read as "/path". */
static const char *skip_authority(const char *raw)
{
    if (strncasecmp(raw, "http://", 7) != 0 && strncasecmp(raw, "https://", 8) != 0)
        return raw;
    const char *path = strstr(raw, "//") + 2;
    path += strcspn(path, "/?#");
    return *path == '\0' ? "/" : path;
}

enum us_status us_target_parse(const char *raw, struct us_target *ret, struct us_err *err)
{
    memset(ret, 0, offsetof(struct us_target, store));
    if (strlen(raw) >= US_MAX_URI / 2) /* each part gains a NUL: half the store is room enough */
        return us_fail(err, US_E_TOO_LARGE, "the request target is longer than %d bytes",
                       US_MAX_URI / 2 - 1);
    const char *path = skip_authority(raw);
    if (path[0] != '/')
        return us_fail(err, US_E_FORMAT, "the request target does not begin with a slash");
    char *at = ret->store;
    size_t n = strcspn(path, "?#");
    US_TRY(parse_path(path, n, ret, &at, err));
    if (path[n] == '#')
        return us_fail(err, US_E_FORMAT, "the request target holds a fragment");
    return path[n] == '?' ? parse_query(path + n + 1, ret, &at, err) : US_OK;
}

const char *us_head_get(const struct us_head *h, const char *name)
{
    for (int i = 0; i < h->n; i++) {
        if (strcasecmp(h->header[i].name, name) == 0)
            return h->header[i].value != NULL ? h->header[i].value : "";
    }
    return NULL;
}

static int count_header(const struct us_head *h, const char *name)
{
    int n = 0;
    for (int i = 0; i < h->n; i++)
        n += strcasecmp(h->header[i].name, name) == 0;
    return n;
}

enum us_status us_head_single(const struct us_head *h, const char *name, const char **ret,
                              struct us_err *err)
{
    int n = count_header(h, name);
    if (n > 1)
        return us_fail(err, US_E_FORMAT, "%d %s headers; one is allowed", n, name);
    *ret = us_head_get(h, name);
    return US_OK;
}

/* RFC 9110 5.5: a name is a token, a value holds no control character but the tab. */
static enum us_status check_header_text(const struct us_header *h, struct us_err *err)
{
    const unsigned char *name = (const unsigned char *)h->name;
    if (*name == '\0')
        return us_fail(err, US_E_FORMAT, "a header has no name");
    for (; *name != '\0'; name++) {
        if (!is_token_char(*name))
            return us_fail(err, US_E_FORMAT, "the header name '%.40s' is malformed", h->name);
    }
    for (const char *v = h->value; v != NULL && *v != '\0'; v++) {
        if (((unsigned char)*v < 0x20 && *v != '\t') || *v == 0x7f)
            return us_fail(err, US_E_FORMAT, "the header '%.40s' holds a control character",
                           h->name);
    }
    return US_OK;
}

static enum us_status parse_length(const char *text, uint64_t *ret, struct us_err *err)
{
    uint64_t v = 0;
    for (const char *p = text; *p != '\0'; p++) {
        if (*p < '0' || *p > '9' || v > (UINT64_MAX >> 1) / 10 - 1)
            return us_fail(err, US_E_FORMAT, "Content-Length '%.40s' is not a length", text);
        v = v * 10 + (uint64_t)(*p - '0');
    }
    if (text[0] == '\0')
        return us_fail(err, US_E_FORMAT, "Content-Length is empty");
    *ret = v;
    return US_OK;
}

enum us_status us_head_check(const struct us_head *h, bool needs_host, struct us_framing *ret,
                             struct us_err *err)
{
    memset(ret, 0, sizeof(*ret));
    if (h->overflow)
        return us_fail(err, US_E_TOO_LARGE, "more than %d headers", US_MAX_HEADERS);
    for (int i = 0; i < h->n; i++)
        US_TRY(check_header_text(&h->header[i], err));
    const char *length, *coding, *host;
    US_TRY(us_head_single(h, "Content-Length", &length, err));
    US_TRY(us_head_single(h, "Transfer-Encoding", &coding, err));
    US_TRY(us_head_single(h, "Host", &host, err));
    if (host == NULL && needs_host)
        return us_fail(err, US_E_FORMAT, "there is no Host header");
    if (length != NULL && coding != NULL)
        return us_fail(err, US_E_FORMAT, "Content-Length and Transfer-Encoding together");
    if (coding != NULL && strcasecmp(coding, "chunked") != 0)
        return us_fail(err, US_E_UNSUPPORTED, "Transfer-Encoding '%.40s'; only chunked is known",
                       coding);
    ret->chunked = coding != NULL;
    ret->has_length = length != NULL;
    return length != NULL ? parse_length(length, &ret->length, err) : US_OK;
}

/* The host of "host:port" without port and brackets; false if it does not fit or is malformed. */
static bool host_only(const char *authority, char *out, size_t size)
{
    size_t n = strcspn(authority, ":");
    if (authority[0] == '[') {
        authority++;
        n = strcspn(authority, "]");
        if (authority[n] != ']')
            return false;
    }
    if (n == 0 || n >= size)
        return false;
    memcpy(out, authority, n);
    out[n] = '\0';
    return true;
}

static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; *p != '\0';) {
        p += strspn(p, ", \t");
        size_t len = strcspn(p, ", \t");
        if (len == n && strncasecmp(p, name, n) == 0)
            return true;
        p += len;
    }
    return false;
}

static bool is_loopback_name(const char *host)
{
    if (strcasecmp(host, "localhost") == 0 || strcmp(host, "::1") == 0)
        return true;
    return strncmp(host, "127.", 4) == 0 && host[strspn(host, "0123456789.")] == '\0';
}

enum us_status us_head_check_site(const struct us_head *h, const char *allowed, bool any_host,
                                  struct us_err *err)
{
    char host[256];
    const char *authority = us_head_get(h, "Host");
    if (authority != NULL && !any_host &&
        (!host_only(authority, host, sizeof(host)) ||
         (!is_loopback_name(host) && !listed(allowed, host))))
        return us_fail(err, US_E_UNSUPPORTED,
                       "this daemon does not answer to the host name "
                       "'%.80s'; add it to the setting host-names if it should",
                       authority);
    const char *origin = us_head_get(h, "Origin");
    if (origin == NULL || *origin == '\0')
        return US_OK;
    const char *slashes = strstr(origin, "://");
    if (slashes == NULL || authority == NULL || strcasecmp(slashes + 3, authority) != 0)
        return us_fail(err, US_E_ARG, "the request comes from a web page of another site ('%.80s')",
                       origin);
    return US_OK;
}

/* Length of "type/subtype" at s, without parameters and blanks. */
static size_t media_length(const char *s)
{
    return strcspn(s, "; \t,");
}

static bool media_is(const char *s, size_t n, const char *name)
{
    return n == strlen(name) && strncasecmp(s, name, n) == 0;
}

enum us_media us_media_of_body(const char *content_type)
{
    if (content_type == NULL)
        return US_MEDIA_ANY;
    content_type += strspn(content_type, " \t");
    size_t n = media_length(content_type);
    if (media_is(content_type, n, "image/tiff") || media_is(content_type, n, "image/ome-tiff"))
        return US_MEDIA_TIFF;
    if (media_is(content_type, n, "application/x-npy"))
        return US_MEDIA_NPY;
    return media_is(content_type, n, "application/octet-stream") ? US_MEDIA_ANY : US_MEDIA_UNKNOWN;
}

/* The weight of one range in thousandths: 1000 without "q=", 0 if that is malformed. */
static int parse_weight(const char *params, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        bool starts = i > 0 && strchr("; \t", params[i - 1]) != NULL;
        if (!starts || (params[i] | 0x20) != 'q' || params[i + 1] != '=')
            continue;
        const char *p = params + i + 2;
        size_t left = n - i - 2;
        if (left == 0 || (*p != '0' && *p != '1'))
            return 0;
        int v = (*p - '0') * 1000;
        for (size_t k = 2, unit = 100; k < left && k < 5 && p[1] == '.'; k++, unit /= 10) {
            if (p[k] < '0' || p[k] > '9')
                break;
            v += (p[k] - '0') * (int)unit;
        }
        return v > 1000 ? 1000 : v;
    }
    return 1000;
}

/* How narrowly a range names type/subtype: 3 exactly, 2 its type, 1 anything, 0 not at all. */
static int range_fit(const char *range, size_t n, const char *type, const char *subtype)
{
    size_t type_len = strlen(type);
    if (media_is(range, n, "*/*"))
        return 1;
    if (n <= type_len + 1 || strncasecmp(range, type, type_len) != 0 || range[type_len] != '/')
        return 0;
    if (media_is(range + type_len + 1, n - type_len - 1, "*"))
        return 2;
    return media_is(range + type_len + 1, n - type_len - 1, subtype) ? 3 : 0;
}

/* The weight that the narrowest fitting range gives to type/subtype (RFC 9110 12.5.1). */
static int accept_weight(const char *accept, const char *type, const char *subtype)
{
    int best_fit = 0, weight = 0;
    for (const char *p = accept; *p != '\0';) {
        p += strspn(p, " \t,");
        size_t n = strcspn(p, ",");
        size_t media = media_length(p);
        int fit = media <= n ? range_fit(p, media, type, subtype) : 0;
        if (fit > best_fit) {
            best_fit = fit;
            weight = parse_weight(p + media, n - media);
        }
        p += n;
    }
    return weight;
}

enum us_media us_media_accept(const char *accept)
{
    if (accept == NULL || accept[strspn(accept, " \t")] == '\0')
        return US_MEDIA_TIFF;
    int tiff = accept_weight(accept, "image", "tiff");
    int npy = accept_weight(accept, "application", "x-npy");
    if (tiff == 0 && npy == 0)
        return US_MEDIA_NONE;
    return npy > tiff ? US_MEDIA_NPY : US_MEDIA_TIFF;
}

bool us_media_wants_html(const char *accept)
{
    return accept != NULL &&
           accept_weight(accept, "text", "html") > accept_weight(accept, "application", "json");
}

/* [A-Za-z0-9._-]{1,max} */
static bool is_plain_word(const char *s, size_t max)
{
    size_t n = 0;
    for (; s[n] != '\0'; n++) {
        if (n >= max || (!is_alnum((unsigned char)s[n]) && strchr("._-", s[n]) == NULL))
            return false;
    }
    return n > 0;
}

bool us_model_name_ok(const char *name)
{
    return name[0] != '.' && is_plain_word(name, US_MAX_MODEL_NAME);
}

bool us_request_id_ok(const char *id)
{
    return is_plain_word(id, 64);
}

bool us_etag_listed(const char *list, const char *tag)
{
    size_t n = strlen(tag);
    for (const char *p = list; *p != '\0';) {
        p += strspn(p, ", \t");
        if (*p == '*')
            return true;
        if (p[0] == 'W' && p[1] == '/')
            p += 2;
        if (*p != '"') {
            p += strcspn(p, ",");
            continue;
        }
        size_t len = strcspn(p + 1, "\"");
        if (len == n && n > 0 && memcmp(p + 1, tag, n) == 0)
            return true;
        p += 1 + len + (p[1 + len] == '"');
    }
    return false;
}
