/*
 * A file as the body of a request: read once, hashed, and compressed on the way, in bounded memory.
 * A file that has another length than it had when it settled ends the request with E_BUSY.
 */
#ifndef US_WATCH_UPLOAD_H
#define US_WATCH_UPLOAD_H

#include <nettle/sha2.h>

#include "us_coding.h"
#include "us_watch_table.h"

struct us_watch_upload {
    int fd; /* borrowed */
    int64_t size, n_read;
    enum us_coding coding;
    struct us_encoder *encoder;
    struct sha256_ctx sha;
    bool ended;
    unsigned char *out; /* encoded, not taken yet: from n_taken to n_out */
    size_t n_out, n_taken, n_room;
    int failed; /* errno of a read, or 0 */
};

/* E_NOMEM. Released by the caller in either case. */
enum us_status us_watch_upload_init(struct us_watch_upload *u, int fd, int64_t size,
                                    enum us_coding coding) US_WARN_UNUSED;
void us_watch_upload_release(struct us_watch_upload *u);
/* For us_http_post.read and rewind. E_IO: see failed. */
enum us_status us_watch_upload_read(struct us_watch_upload *u, void *buf, size_t n,
                                    size_t *ret_n) US_WARN_UNUSED;
enum us_status us_watch_upload_rewind(struct us_watch_upload *u) US_WARN_UNUSED;
/* Of the whole file; empty if it was not read to its end. */
void us_watch_upload_sha256(const struct us_watch_upload *u, char ret[US_SHA256_TEXT]);

/* Hex of a finished hash. */
void us_watch_sha256_text(const struct sha256_ctx *ctx, char ret[US_SHA256_TEXT]);
/* Of a file; false: cannot be read, errno says why. */
bool us_watch_sha256_file(int dir_fd, const char *path, char ret[US_SHA256_TEXT]);

#endif
