/*
 * A request body on its way into a spool file: content coding undone while it streams, both the
 * bytes as sent and the decoded ones capped, memory bounded whatever the length.
 */
#ifndef US_BODY_H
#define US_BODY_H

#include "us_coding.h"
#include "us_http.h"
#include "us_spool.h"

struct us_body {
    struct us_spool_file file; /* the decoded body */
    struct us_decoder *decoder;
    int64_t n_received, max_received; /* bytes as sent */
    struct us_err sink_err;           /* why the spool file failed, if it did */
};

struct us_body_limits {
    int64_t max_received, max_decoded; /* bytes */
};

/* coding: the Content-Encoding header or NULL; E_UNSUPPORTED names what is known. */
enum us_status us_body_init(struct us_body *b, const char *coding, const char *spool_dir,
                            const struct us_body_limits *limits, struct us_err *err) US_WARN_UNUSED;
/* E_TOO_LARGE: over a cap. E_FORMAT: the coding is broken. E_DISK_FULL, E_IO. */
enum us_status us_body_feed(struct us_body *b, const void *bytes, size_t n,
                            struct us_err *err) US_WARN_UNUSED;
/* E_FORMAT: an empty body or an incomplete coding. */
enum us_status us_body_end(struct us_body *b, struct us_err *err) US_WARN_UNUSED;
/* Sets the refusal that a failure of one of the above calls for (415, 400, 413, 507): nothing for
 * US_OK. */
void us_body_reply(struct us_http_request *r, enum us_status st, const struct us_err *err);
/* Removes the file unless it was taken. Safe on a zeroed struct and twice. */
void us_body_release(struct us_body *b);

#endif
