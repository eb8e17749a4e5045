/* Error bodies; see us_problem.h. */
#include "us_problem.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_AFTER_S 5 /* where nothing better is known */
#define MAX_RETRY_S   3600

/* One macro per status: a new one in us_status.def does not compile before it has one here. */
#define HTTP_OF_E_ARG         422
#define HTTP_OF_E_FORMAT      422
#define HTTP_OF_E_CORRUPT     422
#define HTTP_OF_E_UNSUPPORTED 422
#define HTTP_OF_E_TOO_LARGE   413
#define HTTP_OF_E_NOMEM       503
#define HTTP_OF_E_IO          500
#define HTTP_OF_E_DISK_FULL   507
#define HTTP_OF_E_NOT_FOUND   404
#define HTTP_OF_E_EXISTS      409
#define HTTP_OF_E_BUSY        503
#define HTTP_OF_E_CANCELLED   503
#define HTTP_OF_E_BACKEND     500
#define HTTP_OF_E_DEVICE_LOST 503

static const int status_map[] = {
    [US_OK] = 200,
#define US_STATUS(name, text) [US_##name] = HTTP_OF_##name,
#include "us_status.def"
#undef US_STATUS
};
_Static_assert(US_COUNT(status_map) == US_STATUS_COUNT, "every status has its HTTP status");

/* `type` is a stable name: scripts compare it, so that it outlives changes of the texts. */
static const struct {
    int status;
    const char *name, *title;
} titles[] = {
    {400, "malformed-request", "Malformed request"},
    {401, "unauthorized", "A token is needed"},
    {403, "forbidden", "Forbidden"},
    {404, "not-found", "Not found"},
    {405, "method-not-allowed", "Method not allowed"},
    {406, "not-acceptable", "No acceptable reply type"},
    {409, "conflict", "Conflict"},
    {411, "length-required", "Length required"},
    {412, "precondition-failed", "Precondition failed"},
    {413, "too-large", "Content too large"},
    {414, "uri-too-long", "URI too long"},
    {415, "unsupported-media-type", "Unsupported media type or encoding"},
    {421, "misdirected-request", "Misdirected request"},
    {422, "unprocessable", "Content cannot be processed"},
    {429, "too-many-requests", "Too many requests"},
    {431, "head-too-large", "Request head too large"},
    {500, "internal", "Internal error"},
    {501, "not-implemented", "Not implemented"},
    {503, "unavailable", "Unavailable now"},
    {507, "storage-full", "Storage full"},
};

int us_problem_status(enum us_status s)
{
    return (unsigned)s < US_STATUS_COUNT ? status_map[s] : 500;
}

/* A JSON string of text whose bytes may be anything. */
static json_t *clean_string(const char *text)
{
    json_t *j = json_string(text); /* NULL if it is not UTF-8 */
    char ascii[2 * US_ERR_MSG_BYTES];
    size_t n = 0;
    if (j != NULL)
        return j;
    for (; text[n] != '\0' && n < sizeof(ascii) - 1; n++)
        ascii[n] = (unsigned char)text[n] >= 0x80 ? '?' : text[n];
    ascii[n] = '\0';
    return json_string(ascii);
}

char *us_problem_json(int status, const char *detail, const char *path, const char *id)
{
    const char *name = "error", *title = "Error";
    char type[64];
    for (size_t i = 0; i < US_COUNT(titles); i++) {
        if (titles[i].status == status) {
            name = titles[i].name;
            title = titles[i].title;
        }
    }
    (void)snprintf(type, sizeof(type), "urn:usplit:problem:%s", name);
    json_t *j = json_pack("{s:s, s:s, s:i, s:o, s:o, s:o, s:s}", "type", type, "title", title,
                          "status", status, "detail", clean_string(detail), "instance",
                          clean_string(path), "error", clean_string(detail), "request_id", id);
    char *text = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return text;
}

static bool wants_retry(int status)
{
    return status == 503 || status == 429;
}

static void reply(struct us_http_request *r, int status, int retry_s, const char *detail)
{
    if (r->reply.status != 0)
        return;
    char *text = us_problem_json(status, detail, r->path, r->id);
    us_http_reply_bytes(r, status, "application/problem+json", text != NULL ? text : "{}",
                        text != NULL ? strlen(text) : 2);
    free(text);
    us_http_header(r, "Cache-Control", "no-store");
    if (wants_retry(status))
        us_http_header(r, "Retry-After", "%d", retry_s);
    (void)snprintf(r->log_error, sizeof(r->log_error), "%s", detail);
}

void us_problem(struct us_http_request *r, int status, const char *fmt, ...)
{
    char detail[2 * US_ERR_MSG_BYTES];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    reply(r, status, RETRY_AFTER_S, detail);
}

void us_problem_busy(struct us_http_request *r, int status, double retry_s, const char *fmt, ...)
{
    char detail[2 * US_ERR_MSG_BYTES];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    int s = retry_s > MAX_RETRY_S ? MAX_RETRY_S : (int)ceil(retry_s);
    reply(r, status, s > 0 ? s : RETRY_AFTER_S, detail);
}

void us_problem_err(struct us_http_request *r, const struct us_err *err)
{
    enum us_status s = err->status != US_OK ? err->status : US_E_IO;
    reply(r, us_problem_status(s), RETRY_AFTER_S,
          err->msg[0] != '\0' ? err->msg : us_status_text(s));
}
