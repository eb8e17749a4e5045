/* A file as a request's body; see us_watch_upload.h. */
#include "us_watch_upload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE (64 << 10)

static enum us_status on_encoded(void *arg, const void *bytes, size_t n)
{
    struct us_watch_upload *u = arg;
    if (u->n_out + n > u->n_room) {
        size_t room = 2 * (u->n_out + n);
        unsigned char *out = realloc(u->out, room);
        if (out == NULL)
            return US_E_NOMEM;
        u->out = out;
        u->n_room = room;
    }
    memcpy(u->out + u->n_out, bytes, n);
    u->n_out += n;
    return US_OK;
}

enum us_status us_watch_upload_init(struct us_watch_upload *u, int fd, int64_t size,
                                    enum us_coding coding)
{
    *u = (struct us_watch_upload){.fd = fd, .size = size, .coding = coding};
    sha256_init(&u->sha);
    return us_encoder_new(coding, 0, on_encoded, u, &u->encoder);
}

void us_watch_upload_release(struct us_watch_upload *u)
{
    us_encoder_free(u->encoder);
    free(u->out);
    u->encoder = NULL;
    u->out = NULL;
}

enum us_status us_watch_upload_rewind(struct us_watch_upload *u)
{
    if (lseek(u->fd, 0, SEEK_SET) != 0) {
        u->failed = errno;
        return US_E_IO;
    }
    int fd = u->fd;
    us_watch_upload_release(u);
    return us_watch_upload_init(u, fd, u->size, u->coding);
}

/* One piece of the file through the encoder. */
static enum us_status read_piece(struct us_watch_upload *u)
{
    unsigned char piece[PIECE];
    ssize_t n = read(u->fd, piece, sizeof(piece));
    if (n < 0) {
        u->failed = errno;
        return errno == EINTR ? US_OK : US_E_IO;
    }
    u->n_read += n;
    if (n == 0 ? u->n_read != u->size : u->n_read > u->size)
        return US_E_BUSY;
    u->n_out = u->n_taken = 0;
    if (n == 0) {
        u->ended = true;
        return us_encoder_end(u->encoder);
    }
    sha256_update(&u->sha, (size_t)n, piece);
    return us_encoder_feed(u->encoder, piece, (size_t)n);
}

enum us_status us_watch_upload_read(struct us_watch_upload *u, void *buf, size_t n, size_t *ret_n)
{
    while (u->n_taken == u->n_out && !u->ended)
        US_TRY(read_piece(u));
    size_t k = u->n_out - u->n_taken < n ? u->n_out - u->n_taken : n;
    if (k > 0)
        memcpy(buf, u->out + u->n_taken, k);
    u->n_taken += k;
    *ret_n = k;
    return US_OK;
}

void us_watch_sha256_text(const struct sha256_ctx *ctx, char ret[US_SHA256_TEXT])
{
    struct sha256_ctx copy = *ctx;
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&copy, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(ret + 2 * i, 3, "%02x", digest[i]);
}

void us_watch_upload_sha256(const struct us_watch_upload *u, char ret[US_SHA256_TEXT])
{
    ret[0] = '\0';
    if (u->n_read == u->size)
        us_watch_sha256_text(&u->sha, ret);
}

bool us_watch_sha256_file(int dir_fd, const char *path, char ret[US_SHA256_TEXT])
{
    unsigned char piece[PIECE];
    struct sha256_ctx sha;
    ssize_t n = -1;
    int fd = openat(dir_fd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    sha256_init(&sha);
    while ((n = read(fd, piece, sizeof(piece))) > 0)
        sha256_update(&sha, (size_t)n, piece);
    (void)close(fd);
    if (n == 0)
        us_watch_sha256_text(&sha, ret);
    return n == 0;
}
