/*
 * Encoding of content codings as a stream. zstd writes a content checksum and, because the level
 * stays at or below 19, never a window over the 8 MiB that HTTP allows (RFC 9659).
 */
#define ZLIB_CONST
#include "us_coding.h"

#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#define ENCODED_PIECE_BYTES (128 << 10)
#define ZLIB_PIECE_BYTES    (1u << 30) /* zlib counts input in an unsigned int */
#define ZLIB_MEMORY_LEVEL   8          /* zlib's own default */
#define ZLIB_DEFAULT_LEVEL  6
#define ZLIB_MAX_LEVEL      9
#define ZSTD_DEFAULT_LEVEL  3
#define ZSTD_MAX_LEVEL      19 /* window 2^23; level 20 would take 2^25 */

struct us_encoder {
    enum us_coding coding;
    enum us_status status; /* the first failure; later calls repeat it */
    bool ended;
    us_sink_fn sink;
    void *arg;
    z_stream z;
    bool has_z;
    ZSTD_CCtx *zstd;
    unsigned char out[ENCODED_PIECE_BYTES];
};

static enum us_status emit(struct us_encoder *e, const void *bytes, size_t n)
{
    return n == 0 ? US_OK : e->sink(e->arg, bytes, n);
}

/* Takes all of the piece; flush is Z_NO_FLUSH or, for the end, Z_FINISH. */
static enum us_status feed_zlib(struct us_encoder *e, const unsigned char *bytes, unsigned n,
                                int flush)
{
    e->z.next_in = bytes;
    e->z.avail_in = n;
    do {
        e->z.next_out = e->out;
        e->z.avail_out = sizeof(e->out);
        int rc = deflate(&e->z, flush);
        US_ASSERT(rc != Z_STREAM_ERROR);
        US_TRY(emit(e, e->out, sizeof(e->out) - e->z.avail_out));
    } while (e->z.avail_out == 0); /* full: zlib may hold back more */
    return US_OK;
}

static enum us_status feed_zstd(struct us_encoder *e, const unsigned char *bytes, size_t n,
                                ZSTD_EndDirective directive)
{
    ZSTD_inBuffer in = {bytes, n, 0};
    bool done;
    do {
        ZSTD_outBuffer out = {e->out, sizeof(e->out), 0};
        size_t rest = ZSTD_compressStream2(e->zstd, &out, &in, directive);
        if (ZSTD_isError(rest))
            return US_E_NOMEM; /* parameters are fixed and checked: only memory can fail */
        US_TRY(emit(e, e->out, out.pos));
        done = directive == ZSTD_e_end ? rest == 0 : in.pos == in.size;
    } while (!done);
    return US_OK;
}

static int clamp_level(int level, int standard, int max)
{
    return level <= 0 ? standard : level > max ? max : level;
}

static enum us_status start_zstd(struct us_encoder *e, int level)
{
    e->zstd = ZSTD_createCCtx();
    if (e->zstd == NULL)
        return US_E_NOMEM;
    level = clamp_level(level, ZSTD_DEFAULT_LEVEL, ZSTD_MAX_LEVEL);
    size_t a = ZSTD_CCtx_setParameter(e->zstd, ZSTD_c_compressionLevel, level);
    size_t b = ZSTD_CCtx_setParameter(e->zstd, ZSTD_c_checksumFlag, 1);
    return ZSTD_isError(a) || ZSTD_isError(b) ? US_E_UNSUPPORTED : US_OK;
}

static enum us_status start_library(struct us_encoder *e, int level)
{
    switch (e->coding) {
    case US_CODING_IDENTITY:
        return US_OK;
    case US_CODING_GZIP:
    case US_CODING_DEFLATE: {
        int bits = e->coding == US_CODING_GZIP ? MAX_WBITS + 16 : MAX_WBITS;
        level = clamp_level(level, ZLIB_DEFAULT_LEVEL, ZLIB_MAX_LEVEL);
        int rc =
            deflateInit2(&e->z, level, Z_DEFLATED, bits, ZLIB_MEMORY_LEVEL, Z_DEFAULT_STRATEGY);
        e->has_z = rc == Z_OK;
        return rc == Z_OK ? US_OK : US_E_NOMEM;
    }
    case US_CODING_ZSTD:
        return start_zstd(e, level);
    }
    return US_E_UNSUPPORTED;
}

enum us_status us_encoder_new(enum us_coding c, int level, us_sink_fn sink, void *arg,
                              struct us_encoder **ret)
{
    struct us_encoder *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return US_E_NOMEM;
    e->coding = c;
    e->sink = sink;
    e->arg = arg;
    enum us_status s = start_library(e, level);
    if (s != US_OK) {
        us_encoder_free(e);
        return s;
    }
    *ret = e;
    return US_OK;
}

static enum us_status feed(struct us_encoder *e, const unsigned char *bytes, size_t n)
{
    if (e->coding == US_CODING_IDENTITY)
        return emit(e, bytes, n);
    if (e->coding == US_CODING_ZSTD)
        return feed_zstd(e, bytes, n, ZSTD_e_continue);
    for (size_t at = 0; at < n; at += ZLIB_PIECE_BYTES) {
        size_t piece = n - at < ZLIB_PIECE_BYTES ? n - at : ZLIB_PIECE_BYTES;
        US_TRY(feed_zlib(e, bytes + at, (unsigned)piece, Z_NO_FLUSH));
    }
    return US_OK;
}

enum us_status us_encoder_feed(struct us_encoder *e, const void *bytes, size_t n)
{
    US_ASSERT(!e->ended);
    if (e->status == US_OK && n > 0)
        e->status = feed(e, bytes, n);
    return e->status;
}

enum us_status us_encoder_end(struct us_encoder *e)
{
    if (e->status != US_OK || e->ended)
        return e->status;
    e->ended = true;
    if (e->coding == US_CODING_ZSTD)
        e->status = feed_zstd(e, NULL, 0, ZSTD_e_end);
    else if (e->coding != US_CODING_IDENTITY)
        e->status = feed_zlib(e, NULL, 0, Z_FINISH);
    return e->status;
}

void us_encoder_free(struct us_encoder *e)
{
    if (e == NULL)
        return;
    if (e->has_z)
        (void)deflateEnd(&e->z);
    (void)ZSTD_freeCCtx(e->zstd);
    free(e);
}
