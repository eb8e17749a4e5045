/*
 * Decoding of content codings as a stream. The policy: the decoded size is capped while it grows,
 * the window is capped before it is allocated (RFC 9659: 8 MiB for zstd, 32 KiB for zlib), several
 * members or frames in a row are one body (RFC 1952 2.2, RFC 8878 3.1), and anything else after
 * the end is refused: a body that says more than it should is not the body that was sent.
 */
#define ZLIB_CONST
#include "us_coding.h"

#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "us_limits.h"

#define DECODED_PIECE_BYTES (128 << 10)
#define ZLIB_PIECE_BYTES    (1u << 30) /* zlib counts input in an unsigned int */

enum phase {
    PHASE_EMPTY = 0, /* nothing came yet */
    PHASE_INSIDE,    /* inside a member or frame: the stream must not end here */
    PHASE_BETWEEN    /* after a complete one: the stream may end or go on */
};

struct us_decoder {
    enum us_coding coding;
    enum us_status status; /* the first failure; later calls repeat it */
    enum phase phase;
    bool first; /* inside the first member or frame */
    uint64_t max_bytes, left_bytes;
    us_sink_fn sink;
    void *arg;
    z_stream z;
    bool has_z;
    ZSTD_DCtx *zstd;
    int magic_bytes;      /* how many bytes of the current frame's magic number were seen */
    bool magic_skippable; /* and which of the two kinds it is */
    unsigned char out[DECODED_PIECE_BYTES];
};

static enum us_status emit(struct us_decoder *d, const void *bytes, size_t n, struct us_err *err)
{
    if (n == 0)
        return US_OK;
    if (n > d->left_bytes)
        return us_fail(err, US_E_TOO_LARGE, "decoded body is over the limit of %llu bytes",
                       (unsigned long long)d->max_bytes);
    d->left_bytes -= n;
    enum us_status s = d->sink(d->arg, bytes, n);
    if (s != US_OK && err != NULL && err->status == US_OK) /* the sink may have said more */
        return us_fail(err, s, "decoded bytes could not be taken: %s", us_status_text(s));
    return s;
}

/* A new member or frame begins with the byte that comes next. */
static void begin_part(struct us_decoder *d)
{
    d->first = d->phase == PHASE_EMPTY;
    d->phase = PHASE_INSIDE;
    d->magic_bytes = 0;
}

static const char *place(const struct us_decoder *d)
{
    return d->first ? "" : " after the end of a complete one";
}

/* ---- gzip and deflate ---- */

static enum us_status zlib_failure(const struct us_decoder *d, int rc, struct us_err *err)
{
    const char *name = us_coding_name(d->coding);
    const char *why = d->z.msg != NULL ? d->z.msg : "unknown reason";
    if (rc == Z_MEM_ERROR)
        return us_fail(err, US_E_NOMEM, "no memory to decode %s", name);
    if (rc == Z_NEED_DICT)
        return us_fail(err, US_E_UNSUPPORTED, "%s stream needs a preset dictionary", name);
    /* zlib tells a damaged body from a malformed one only in words. */
    bool damaged =
        strcmp(why, "incorrect data check") == 0 || strcmp(why, "incorrect length check") == 0;
    return us_fail(err, damaged ? US_E_CORRUPT : US_E_FORMAT, "malformed %s stream%s: %s", name,
                   place(d), why);
}

static enum us_status begin_member(struct us_decoder *d, struct us_err *err)
{
    bool again = d->phase == PHASE_BETWEEN;
    if (again && d->coding == US_CODING_DEFLATE)
        return us_fail(err, US_E_FORMAT, "bytes after the end of a deflate stream");
    begin_part(d);
    int rc = again ? inflateReset(&d->z) : Z_OK;
    return rc == Z_OK ? US_OK : zlib_failure(d, rc, err);
}

static enum us_status feed_zlib(struct us_decoder *d, const unsigned char *bytes, unsigned n,
                                struct us_err *err)
{
    d->z.next_in = bytes;
    d->z.avail_in = n;
    bool more = false; /* the output was full: there may be more of it without new input */
    while (d->z.avail_in > 0 || more) {
        if (d->phase != PHASE_INSIDE)
            US_TRY(begin_member(d, err));
        d->z.next_out = d->out;
        d->z.avail_out = sizeof(d->out);
        int rc = inflate(&d->z, Z_NO_FLUSH);
        if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
            return zlib_failure(d, rc, err);
        if (rc == Z_STREAM_END)
            d->phase = PHASE_BETWEEN;
        more = rc == Z_OK && d->z.avail_out == 0;
        US_TRY(emit(d, d->out, sizeof(d->out) - d->z.avail_out, err));
    }
    return US_OK;
}

/* ---- zstd ---- */

/* Checks the next bytes of a frame's magic number ourselves: the library would also decode the
 * formats from before RFC 8878, which know no window limit. */
static bool magic_goes_on(struct us_decoder *d, const unsigned char *p, size_t n)
{
    static const unsigned char data[4] = {0x28, 0xb5, 0x2f, 0xfd};
    static const unsigned char skip[4] = {0x50, 0x2a, 0x4d, 0x18};
    for (; n > 0 && d->magic_bytes < 4; p++, n--) {
        if (d->magic_bytes == 0)
            d->magic_skippable = (*p & 0xf0) == 0x50;
        /* The low half of a skippable frame's first byte is free. */
        unsigned char seen = d->magic_skippable && d->magic_bytes == 0 ? *p & 0xf0 : *p;
        if (seen != (d->magic_skippable ? skip : data)[d->magic_bytes])
            return false;
        d->magic_bytes++;
    }
    return true;
}

/* How many of the next n bytes to give to the library at a time. */
static size_t bytes_to_give(const struct us_decoder *d, size_t n)
{
    size_t rest = (size_t)(4 - d->magic_bytes);
    return rest > 0 && rest < n ? rest : n;
}

static enum us_status zstd_failure(const struct us_decoder *d, size_t rc, struct us_err *err)
{
    switch (ZSTD_getErrorCode(rc)) {
    case ZSTD_error_frameParameter_windowTooLarge:
        return us_fail(err, US_E_TOO_LARGE,
                       "zstd frame wants a window over %u MiB, the most that HTTP allows "
                       "(RFC 9659); compress without long mode",
                       1u << (US_MAX_ZSTD_WINDOW_LOG - 20));
    case ZSTD_error_dictionary_wrong:
        return us_fail(err, US_E_UNSUPPORTED, "zstd frame needs a dictionary");
    case ZSTD_error_memory_allocation:
        return us_fail(err, US_E_NOMEM, "no memory to decode zstd");
    case ZSTD_error_checksum_wrong:
        return us_fail(err, US_E_CORRUPT, "zstd frame does not match its checksum");
    default:
        return us_fail(err, US_E_FORMAT, "malformed zstd stream%s: %s", place(d),
                       ZSTD_getErrorName(rc));
    }
}

static enum us_status feed_zstd(struct us_decoder *d, const unsigned char *bytes, size_t n,
                                struct us_err *err)
{
    ZSTD_inBuffer in = {bytes, 0, 0};
    bool more = false; /* the output was full: there may be more of it without new input */
    while (in.pos < n || more) {
        if (d->phase != PHASE_INSIDE)
            begin_part(d);
        /* A magic number goes in alone: given a whole small frame at once, the library skips the
         * check of its window, and the verdict would depend on how the body was cut. */
        in.size = in.pos + bytes_to_give(d, n - in.pos);
        if (!magic_goes_on(d, bytes + in.pos, in.size - in.pos))
            return us_fail(err, US_E_FORMAT, "not a zstd frame%s", place(d));
        ZSTD_outBuffer out = {d->out, sizeof(d->out), 0};
        size_t rc = ZSTD_decompressStream(d->zstd, &out, &in);
        if (ZSTD_isError(rc))
            return zstd_failure(d, rc, err);
        if (rc == 0)
            d->phase = PHASE_BETWEEN;
        more = rc != 0 && out.pos == out.size;
        US_TRY(emit(d, d->out, out.pos, err));
    }
    return US_OK;
}

/* ---- the stream ---- */

static enum us_status start_library(struct us_decoder *d)
{
    switch (d->coding) {
    case US_CODING_IDENTITY:
        return US_OK;
    case US_CODING_GZIP:
    case US_CODING_DEFLATE: {
        int rc = inflateInit2(&d->z, d->coding == US_CODING_GZIP ? MAX_WBITS + 16 : MAX_WBITS);
        d->has_z = rc == Z_OK;
        return rc == Z_OK ? US_OK : US_E_NOMEM;
    }
    case US_CODING_ZSTD:
        d->zstd = ZSTD_createDCtx();
        if (d->zstd == NULL)
            return US_E_NOMEM;
        return ZSTD_isError(
                   ZSTD_DCtx_setParameter(d->zstd, ZSTD_d_windowLogMax, US_MAX_ZSTD_WINDOW_LOG))
                   ? US_E_UNSUPPORTED
                   : US_OK;
    }
    return US_E_UNSUPPORTED;
}

enum us_status us_decoder_new(enum us_coding c, uint64_t max_bytes, us_sink_fn sink, void *arg,
                              struct us_decoder **ret)
{
    struct us_decoder *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return US_E_NOMEM;
    d->coding = c;
    d->max_bytes = d->left_bytes = max_bytes;
    d->sink = sink;
    d->arg = arg;
    enum us_status s = start_library(d);
    if (s != US_OK) {
        us_decoder_free(d);
        return s;
    }
    *ret = d;
    return US_OK;
}

static enum us_status feed(struct us_decoder *d, const unsigned char *bytes, size_t n,
                           struct us_err *err)
{
    if (d->coding == US_CODING_IDENTITY)
        return emit(d, bytes, n, err);
    if (d->coding == US_CODING_ZSTD)
        return feed_zstd(d, bytes, n, err);
    for (size_t at = 0; at < n; at += ZLIB_PIECE_BYTES) {
        size_t piece = n - at < ZLIB_PIECE_BYTES ? n - at : ZLIB_PIECE_BYTES;
        US_TRY(feed_zlib(d, bytes + at, (unsigned)piece, err));
    }
    return US_OK;
}

static enum us_status repeat_failure(const struct us_decoder *d, struct us_err *err)
{
    return us_fail(err, d->status, "the %s stream failed before", us_coding_name(d->coding));
}

enum us_status us_decoder_feed(struct us_decoder *d, const void *bytes, size_t n,
                               struct us_err *err)
{
    if (d->status != US_OK)
        return repeat_failure(d, err);
    if (n == 0)
        return US_OK;
    d->status = feed(d, bytes, n, err);
    return d->status;
}

enum us_status us_decoder_end(struct us_decoder *d, struct us_err *err)
{
    if (d->status != US_OK)
        return repeat_failure(d, err);
    if (d->coding == US_CODING_IDENTITY || d->phase == PHASE_BETWEEN)
        return US_OK;
    d->status = us_fail(err, US_E_FORMAT,
                        d->phase == PHASE_EMPTY ? "%s stream is empty"
                                                : "%s stream ends before it is complete",
                        us_coding_name(d->coding));
    return d->status;
}

void us_decoder_free(struct us_decoder *d)
{
    if (d == NULL)
        return;
    if (d->has_z)
        (void)inflateEnd(&d->z);
    (void)ZSTD_freeDCtx(d->zstd);
    free(d);
}
