/* HTTP by libcurl's easy interface; see us_http_client.h. */
#include "us_http_client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include <jansson.h>

#include "us_cli.h"

#define CONNECT_S    15L
#define KEEPALIVE_S  60L       /* a machine that vanished is noticed after a few of these */
#define MAX_PROBLEM  (8 << 10) /* of an error's body, to find its text in */
#define MAX_RETRY_S  3600
#define BUFFER_BYTES (128L << 10)

struct us_http_client {
    CURL *curl;
    struct us_http_client_config cfg;
    char error[CURL_ERROR_SIZE];
    /* Of the call that runs. */
    const struct us_http_post *post;
    struct us_http_answer *answer;
    enum us_status failed; /* what a callback returned */
    bool silent, cancelled;
    curl_off_t moved; /* bytes both ways */
    time_t moved_s;
    size_t n_problem;
    char problem[MAX_PROBLEM];
};

static time_t now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

enum us_status us_http_client_start(struct us_err *err)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return us_fail(err, US_E_BACKEND, "libcurl does not start");
    return US_OK;
}

static size_t on_read(char *buf, size_t size, size_t n, void *arg)
{
    struct us_http_client *c = arg;
    size_t got = 0;
    c->failed = c->post->read(c->post->arg, buf, size * n, &got);
    return c->failed == US_OK ? got : CURL_READFUNC_ABORT;
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct us_http_client *c = arg;
    if (offset != 0 || origin != SEEK_SET)
        return CURL_SEEKFUNC_CANTSEEK;
    c->failed = c->post->rewind(c->post->arg);
    return c->failed == US_OK ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

/* Whether this answer is what was asked for, so that its body goes to the sink. */
static bool is_result(const struct us_http_client *c)
{
    return c->answer->status == 200 &&
           strncasecmp(c->answer->type, c->post->accept, strlen(c->post->accept)) == 0;
}

static size_t on_write(char *bytes, size_t size, size_t n, void *arg)
{
    struct us_http_client *c = arg;
    n *= size;
    if (is_result(c)) {
        c->failed = c->post->sink(c->post->arg, bytes, n);
        return c->failed == US_OK ? n : 0;
    }
    size_t room = sizeof(c->problem) - 1 - c->n_problem;
    size_t k = n < room ? n : room;
    memcpy(c->problem + c->n_problem, bytes, k);
    c->n_problem += k;
    return n;
}

/* The value of the header line `name`, without its blanks; false: another header. */
static bool header_value(const char *line, size_t n, const char *name, char *ret, size_t ret_n)
{
    size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) != 0 || line[k] != ':')
        return false;
    const char *v = line + k + 1, *end = line + n;
    while (v < end && (*v == ' ' || *v == '\t'))
        v++;
    while (end > v && (unsigned char)end[-1] <= ' ')
        end--;
    (void)snprintf(ret, ret_n, "%.*s", (int)(end - v), v);
    return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
    struct us_http_client *c = arg;
    struct us_http_answer *a = c->answer;
    n *= size;
    if (n > 5 && strncmp(line, "HTTP/", 5) == 0) {
        /* Interim answers come first; only the last one counts. */
        *a = (struct us_http_answer){0};
        const char *blank = memchr(line, ' ', n);
        a->status = blank == NULL ? 0 : (int)strtol(blank, NULL, 10);
        return n;
    }
    (void)(header_value(line, n, "Content-Type", a->type, sizeof(a->type)) ||
           header_value(line, n, "Content-Encoding", a->coding, sizeof(a->coding)) ||
           header_value(line, n, "ETag", a->etag, sizeof(a->etag)) ||
           header_value(line, n, "X-Usplit-Model", a->model, sizeof(a->model)));
    return n;
}

static int on_progress(void *arg, curl_off_t down_all, curl_off_t down, curl_off_t up_all,
                       curl_off_t up)
{
    struct us_http_client *c = arg;
    (void)down_all;
    (void)up_all;
    if (down + up != c->moved) {
        c->moved = down + up;
        c->moved_s = now_s();
    }
    c->silent = now_s() - c->moved_s >= c->cfg.silence_s;
    c->cancelled = c->cfg.cancel != NULL && atomic_load(c->cfg.cancel);
    return c->silent || c->cancelled;
}

/* What never changes between calls. */
static bool set_up(struct us_http_client *c)
{
    CURL *h = c->curl;
    bool ok = curl_easy_setopt(h, CURLOPT_ERRORBUFFER, c->error) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, CONNECT_S) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_TCP_KEEPALIVE, 1L) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_TCP_KEEPIDLE, KEEPALIVE_S) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_TCP_KEEPINTVL, KEEPALIVE_S / 4) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_USERAGENT, "usplit/" US_VERSION) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_BUFFERSIZE, BUFFER_BYTES) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_UPLOAD_BUFFERSIZE, BUFFER_BYTES) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_POST, 1L) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_READFUNCTION, on_read) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_READDATA, c) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_SEEKFUNCTION, on_seek) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_SEEKDATA, c) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_write) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_WRITEDATA, c) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_HEADERDATA, c) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, on_progress) == CURLE_OK;
    ok = ok && curl_easy_setopt(h, CURLOPT_XFERINFODATA, c) == CURLE_OK;
    return ok && (c->cfg.ca_file == NULL ||
                  curl_easy_setopt(h, CURLOPT_CAINFO, c->cfg.ca_file) == CURLE_OK);
}

enum us_status us_http_client_new(const struct us_http_client_config *cfg,
                                  struct us_http_client **ret, struct us_err *err)
{
    struct us_http_client *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an HTTP client");
    c->cfg = *cfg;
    c->curl = curl_easy_init();
    if (c->curl == NULL || !set_up(c)) {
        us_http_client_free(c);
        return us_fail(err, US_E_BACKEND, "libcurl refuses its settings; is it older than 7.85?");
    }
    *ret = c;
    return US_OK;
}

void us_http_client_free(struct us_http_client *c)
{
    if (c == NULL)
        return;
    curl_easy_cleanup(c->curl);
    free(c);
}

static bool add_header(struct curl_slist **list, const char *name, const char *value)
{
    char *line = NULL;
    if (value == NULL)
        return true;
    if (asprintf(&line, "%s: %s", name, value) < 0)
        return false;
    struct curl_slist *longer = curl_slist_append(*list, line);
    free(line);
    if (longer != NULL)
        *list = longer;
    return longer != NULL;
}

/* The headers of a post; NULL: no memory. */
static struct curl_slist *make_headers(const struct us_http_post *p)
{
    struct curl_slist *list = NULL;
    char bearer[1024];
    (void)snprintf(bearer, sizeof(bearer), "Bearer %s", p->token == NULL ? "" : p->token);
    if (add_header(&list, "Content-Type", p->type) &&
        add_header(&list, "Content-Encoding", p->coding) &&
        add_header(&list, "Accept", p->accept) &&
        add_header(&list, "Accept-Encoding", p->accept_coding) &&
        add_header(&list, "Transfer-Encoding", p->body_bytes < 0 ? "chunked" : NULL) &&
        add_header(&list, "Authorization", p->token == NULL ? NULL : bearer))
        return list;
    curl_slist_free_all(list);
    return NULL;
}

/* What an error said: the daemon's "detail", or the body as it is. */
static void read_problem(struct us_http_client *c)
{
    struct us_http_answer *a = c->answer;
    c->problem[c->n_problem] = '\0';
    json_t *j = json_loadb(c->problem, c->n_problem, 0, NULL);
    const char *detail = json_string_value(json_object_get(j, "detail"));
    (void)snprintf(a->detail, sizeof(a->detail), "%.*s", (int)sizeof(a->detail) - 1,
                   detail != NULL ? detail : c->problem);
    json_decref(j);
    for (char *s = a->detail; *s != '\0'; s++)
        if ((unsigned char)*s < 0x20)
            *s = ' ';
}

/* Failures before a trusted connection stood: nothing was wrong with the file. */
static bool was_reached(CURL *h, CURLcode rc)
{
    double connected = 0;
    switch (rc) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        return false;
    default:
        return curl_easy_getinfo(h, CURLINFO_PRETRANSFER_TIME, &connected) == CURLE_OK &&
               connected > 0;
    }
}

static enum us_status judge(struct us_http_client *c, CURLcode rc, struct us_err *err)
{
    curl_off_t retry_s = 0;
    struct us_http_answer *a = c->answer;
    a->reached = was_reached(c->curl, rc);
    if (curl_easy_getinfo(c->curl, CURLINFO_RETRY_AFTER, &retry_s) == CURLE_OK && retry_s > 0)
        a->retry_after_s = retry_s < MAX_RETRY_S ? (double)retry_s : MAX_RETRY_S;
    if (!is_result(c))
        read_problem(c);
    if (c->failed != US_OK)
        return c->failed;
    if (c->cancelled)
        return us_fail(err, US_E_CANCELLED, "interrupted");
    if (rc == CURLE_OK)
        return US_OK;
    /* A refusal is the answer, also where the connection broke on what was still to be sent. */
    if (a->status >= 400)
        return US_OK;
    if (c->silent)
        return us_fail(err, US_E_IO, "the server was silent for %lld s",
                       (long long)c->cfg.silence_s);
    return us_fail(err, US_E_IO, "%s", c->error[0] != '\0' ? c->error : curl_easy_strerror(rc));
}

enum us_status us_http_client_post(struct us_http_client *c, const struct us_http_post *p,
                                   struct us_http_answer *a, struct us_err *err)
{
    *a = (struct us_http_answer){0};
    c->post = p;
    c->answer = a;
    c->failed = US_OK;
    c->silent = c->cancelled = false;
    c->moved = 0;
    c->moved_s = now_s();
    c->n_problem = 0;
    c->error[0] = '\0';
    struct curl_slist *headers = make_headers(p);
    if (headers == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the headers of a request");
    enum us_status st = US_E_NOMEM;
    if (curl_easy_setopt(c->curl, CURLOPT_URL, p->url) == CURLE_OK &&
        curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers) == CURLE_OK &&
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)p->body_bytes) ==
            CURLE_OK)
        st = judge(c, curl_easy_perform(c->curl), err);
    else
        (void)us_fail(err, st, "no memory for a request");
    (void)curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(headers);
    return st;
}

enum us_status us_http_url_check(const char *url, struct us_err *err)
{
    const char *host = strncmp(url, "http://", 7) == 0    ? url + 7
                       : strncmp(url, "https://", 8) == 0 ? url + 8
                                                          : NULL;
    if (host == NULL || host[0] == '\0' || host[0] == '/')
        return us_fail(err, US_E_ARG, "'%s': expected http://HOST[:PORT] or https://HOST[:PORT]",
                       url);
    if (strpbrk(host, "?#") != NULL)
        return us_fail(err, US_E_ARG, "'%s': a query or fragment, expected none", url);
    if (strchr(host, '@') != NULL)
        return us_fail(err, US_E_ARG,
                       "a user or password in the URL: everybody sees a command line");
    for (const char *s = url; *s != '\0'; s++)
        if ((unsigned char)*s <= ' ' || *s == 0x7f)
            return us_fail(err, US_E_ARG, "'%s': a blank or control character", url);
    return US_OK;
}
