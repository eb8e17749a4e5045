/*
 * What a stranger's request head says, decoded and checked: target, headers, framing, negotiated
 * types. Pure functions on text, no HTTP library: the fuzzer drives them (tests/fuzz).
 *
 * libmicrohttpd 0.9.75 accepts heads that two servers in a row could read differently
 * (Content-Length with chunked, two lengths, %00 in a path). us_head_check refuses those; the
 * HTTP layer then closes the connection.
 */
#ifndef US_REQUEST_H
#define US_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

#define US_MAX_URI        4096 /* bytes of a request target, with NUL */
#define US_MAX_HEADERS    100
#define US_MAX_SEGMENTS   8
#define US_MAX_PARAMS     32
#define US_MAX_MODEL_NAME 100

struct us_param_pair {
    const char *name, *value;
};

/* A request target, percent-decoded. Strings point into store. */
struct us_target {
    int n_segments;
    const char *segment[US_MAX_SEGMENTS]; /* "/v1/models" -> "v1", "models"; "/" -> none */
    int n_params;
    struct us_param_pair param[US_MAX_PARAMS];
    char store[US_MAX_URI];
};

/* Takes a raw request target apart. E_TOO_LARGE: longer than US_MAX_URI, too many segments or
 * parameters. E_FORMAT: control characters, %00, an encoded slash, broken percent escapes. */
enum us_status us_target_parse(const char *raw, struct us_target *ret,
                               struct us_err *err) US_WARN_UNUSED;

struct us_header {
    const char *name, *value; /* borrowed; value may be NULL */
};
struct us_head {
    int n;
    bool overflow; /* more than US_MAX_HEADERS came */
    struct us_header header[US_MAX_HEADERS];
};

/* How the body is delimited. Neither: no body. */
struct us_framing {
    bool has_length, chunked;
    uint64_t length;
};

/* Refuses heads that are ambiguous or hostile: E_FORMAT (400), E_UNSUPPORTED (501: a transfer
 * coding other than chunked), E_TOO_LARGE (431). needs_host: HTTP/1.1 demands a Host header. */
enum us_status us_head_check(const struct us_head *h, bool needs_host, struct us_framing *ret,
                             struct us_err *err) US_WARN_UNUSED;

/* The value of a header (case-insensitive name), or NULL. A second one makes us_head_single
 * return E_FORMAT: for headers where a list has no meaning. */
const char *us_head_get(const struct us_head *h, const char *name);
enum us_status us_head_single(const struct us_head *h, const char *name, const char **ret,
                              struct us_err *err) US_WARN_UNUSED;

/* Host and Origin against foreign web pages (DNS rebinding, cross-site posts). allowed: comma
 * list of names; with any_host no Host is refused. E_UNSUPPORTED: not a name of ours (421).
 * E_ARG: the Origin is another site (403). */
enum us_status us_head_check_site(const struct us_head *h, const char *allowed, bool any_host,
                                  struct us_err *err) US_WARN_UNUSED;

enum us_media { US_MEDIA_NONE = 0, US_MEDIA_TIFF, US_MEDIA_NPY, US_MEDIA_ANY, US_MEDIA_UNKNOWN };

/* Content-Type of an image body: NULL gives ANY (the content decides), as does
 * application/octet-stream; something else gives UNKNOWN. */
enum us_media us_media_of_body(const char *content_type);
/* The reply that an Accept header prefers: TIFF (also for NULL), NPY or NONE (406). */
enum us_media us_media_accept(const char *accept);
/* Whether an Accept header rather wants a page to read than JSON: browsers do, curl does not. */
bool us_media_wants_html(const char *accept);

/* [A-Za-z0-9._-]{1,100}, no leading dot. */
bool us_model_name_ok(const char *name);
/* A request id of a client that is safe to log and to echo: [A-Za-z0-9._-]{1,64}. */
bool us_request_id_ok(const char *id);
/* Whether an If-Match / If-None-Match list names this strong tag (without quotes) or is "*". */
bool us_etag_listed(const char *list, const char *tag);

#endif
