/* Request bodies into spool files; see us_body.h. */
#include "us_body.h"

#include <inttypes.h>
#include <string.h>

#include "us_problem.h"

static enum us_status sink(void *arg, const void *bytes, size_t n)
{
    struct us_body *b = arg;
    return us_spool_write(&b->file, bytes, n, &b->sink_err);
}

enum us_status us_body_init(struct us_body *b, const char *coding, const char *spool_dir,
                            const struct us_body_limits *limits, struct us_err *err)
{
    enum us_coding c;
    memset(b, 0, sizeof(*b));
    b->file.fd = -1;
    b->max_received = limits->max_received;
    US_TRY(us_coding_parse(coding, &c, err));
    US_TRY(us_spool_create(spool_dir, &b->file, err));
    if (us_decoder_new(c, (uint64_t)limits->max_decoded, sink, b, &b->decoder) != US_OK) {
        us_spool_release(&b->file);
        return us_fail(err, US_E_NOMEM, "no memory for a %s decoder", us_coding_name(c));
    }
    return US_OK;
}

enum us_status us_body_feed(struct us_body *b, const void *bytes, size_t n, struct us_err *err)
{
    b->n_received += (int64_t)n;
    if (b->n_received > b->max_received)
        return us_fail(err, US_E_TOO_LARGE, "the body is larger than %" PRId64 " bytes",
                       b->max_received);
    enum us_status st = us_decoder_feed(b->decoder, bytes, n, err);
    if (b->sink_err.status != US_OK && err != NULL)
        *err = b->sink_err;
    return b->sink_err.status != US_OK ? b->sink_err.status : st;
}

enum us_status us_body_end(struct us_body *b, struct us_err *err)
{
    if (b->n_received == 0)
        return us_fail(err, US_E_FORMAT, "the body is empty");
    enum us_status st = us_decoder_end(b->decoder, err);
    us_decoder_free(b->decoder);
    b->decoder = NULL;
    if (b->sink_err.status != US_OK && err != NULL)
        *err = b->sink_err;
    if (st == US_OK && b->file.bytes == 0)
        return us_fail(err, US_E_FORMAT, "the body is empty once decoded");
    return b->sink_err.status != US_OK ? b->sink_err.status : st;
}

void us_body_release(struct us_body *b)
{
    us_decoder_free(b->decoder);
    b->decoder = NULL;
    us_spool_release(&b->file);
}

void us_body_reply(struct us_http_request *r, enum us_status st, const struct us_err *err)
{
    if (st == US_OK)
        return;
    if (st == US_E_UNSUPPORTED) {
        us_problem(r, 415, "%s", err->msg);
        us_http_header(r, "Accept-Encoding", "zstd, gzip, deflate, identity");
    } else if (st == US_E_FORMAT || st == US_E_CORRUPT) {
        us_problem(r, 400, "%s", err->msg); /* the message, not the image in it, is broken */
    } else {
        us_problem_err(r, err);
    }
}
