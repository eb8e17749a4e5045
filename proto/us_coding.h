/*
 * HTTP content codings as streams: identity, gzip, deflate (zlib wrapper), zstd (window <= 8 MiB,
 * RFC 9659). Decoders enforce a cap on the decoded size *while* streaming, so a bomb is refused
 * in bounded memory.
 */
#ifndef US_CODING_H
#define US_CODING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

enum us_coding { US_CODING_IDENTITY = 0, US_CODING_GZIP, US_CODING_DEFLATE, US_CODING_ZSTD };

/* One coding of a Content-Encoding header ("zstd", case-insensitive, "x-gzip" too; "" and NULL are
 * identity). A list of several codings or an unknown one is E_UNSUPPORTED. */
enum us_status us_coding_parse(const char *value, enum us_coding *ret,
                               struct us_err *err) US_WARN_UNUSED;
/* The best coding that an Accept-Encoding header allows: zstd, then gzip, then identity; q=0
 * excludes, a missing header means identity. */
enum us_coding us_coding_accept(const char *accept_encoding);
/* Whether that header allows gzip: for bytes that were compressed beforehand. */
bool us_coding_gzip_ok(const char *accept_encoding);
const char *us_coding_name(enum us_coding c);

/* Called with each decoded piece; a failure ends the stream with that status. */
typedef enum us_status (*us_sink_fn)(void *arg, const void *bytes, size_t n);

struct us_decoder;
/* max_bytes: cap on decoded bytes, E_TOO_LARGE beyond. The first failure ends the stream: every
 * later call repeats its status. *ret is owned by the caller (us_decoder_free). */
enum us_status us_decoder_new(enum us_coding c, uint64_t max_bytes, us_sink_fn sink, void *arg,
                              struct us_decoder **ret) US_WARN_UNUSED;
/* Decodes the next n bytes (borrowed). E_FORMAT: malformed, or bytes after the end; E_CORRUPT: a
 * checksum differs; E_TOO_LARGE: over the cap or a zstd window over 8 MiB; E_UNSUPPORTED: wants a
 * dictionary; or what the sink said. Members and frames in a row decode to one body. */
enum us_status us_decoder_feed(struct us_decoder *d, const void *bytes, size_t n,
                               struct us_err *err) US_WARN_UNUSED;
/* E_FORMAT if the stream is incomplete. */
enum us_status us_decoder_end(struct us_decoder *d, struct us_err *err) US_WARN_UNUSED;
void us_decoder_free(struct us_decoder *d);

struct us_encoder;
/* level: the library's scale, kept within 1..9 (gzip, deflate) or 1..19 (zstd: above, its window
 * would pass 8 MiB); 0 or less = the library's default (6; 3). */
enum us_status us_encoder_new(enum us_coding c, int level, us_sink_fn sink, void *arg,
                              struct us_encoder **ret) US_WARN_UNUSED;
enum us_status us_encoder_feed(struct us_encoder *e, const void *bytes, size_t n) US_WARN_UNUSED;
enum us_status us_encoder_end(struct us_encoder *e) US_WARN_UNUSED;
void us_encoder_free(struct us_encoder *e);

#endif
