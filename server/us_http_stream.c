/*
 * Streamed replies (us_http.h): a connection with nothing to send is suspended inside of
 * libmicrohttpd's reader (returning "no data" alone would spin: servers.md section 7) and put on a
 * list. Only the watch thread resumes it: at once after us_http_wake, else at its next tick, when
 * the reader also looks whether the client is still there.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "us_http_int.h"

#define BLOCK_BYTES   16384
#define WAKE_WATCH_ID UINT64_MAX /* no request has it */

enum us_status usi_stream_start(struct us_http *h, struct us_err *err)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = WAKE_WATCH_ID};
    (void)pthread_mutex_init(&h->stream_lock, NULL);
    h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->wake_fd < 0 || epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, h->wake_fd, &e) != 0)
        return us_fail(err, US_E_IO, "eventfd: %s", strerror(errno));
    return US_OK;
}

void usi_stream_free(struct us_http *h)
{
    if (h->wake_fd >= 0)
        (void)close(h->wake_fd);
    h->wake_fd = -1;
}

void us_http_wake(struct us_http *h)
{
    const uint64_t one = 1;
    ssize_t n = write(h->wake_fd, &one, sizeof(one));
    (void)n; /* a full counter wakes just as well */
}

void usi_stream_round(struct us_http *h)
{
    uint64_t count;
    ssize_t n = read(h->wake_fd, &count, sizeof(count));
    (void)n;
    (void)pthread_mutex_lock(&h->stream_lock);
    struct us_http_request *r = h->streams;
    h->streams = NULL;
    (void)pthread_mutex_unlock(&h->stream_lock);
    while (r != NULL) {
        struct us_http_request *next = r->stream_next; /* r may end once it is resumed */
        MHD_resume_connection(r->connection);
        atomic_fetch_sub(&h->n_suspended, 1);
        r = next;
    }
}

static bool client_left(const struct us_http_request *r)
{
    struct pollfd p = {.fd = r->conn->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

/* Counted before closing is read, as us_http_free sets closing before it reads the count: a
 * connection is never suspended behind its back. */
static bool wait_for_more(struct us_http_request *r)
{
    struct us_http *h = r->http;
    atomic_fetch_add(&h->n_suspended, 1);
    if (atomic_load(&h->closing)) {
        atomic_fetch_sub(&h->n_suspended, 1);
        return false;
    }
    MHD_suspend_connection(r->connection);
    (void)pthread_mutex_lock(&h->stream_lock);
    r->stream_next = h->streams;
    h->streams = r;
    (void)pthread_mutex_unlock(&h->stream_lock);
    return true;
}

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct us_http_request *r = cls;
    if (client_left(r))
        return MHD_CONTENT_READER_END_WITH_ERROR;
    int64_t n = r->reply.stream(r->reply.stream_arg, buf, max);
    if (n > 0) {
        r->reply_bytes += n;
        return (ssize_t)n;
    }
    return n == 0 && wait_for_more(r) ? 0 : MHD_CONTENT_READER_END_OF_STREAM;
}

struct MHD_Response *usi_stream_response(struct us_http_request *r)
{
    return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_stream, r, NULL);
}
