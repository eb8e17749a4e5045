/* Replies of the HTTP layer; see us_http.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "us_http_int.h"
#include "us_tls.h"

#define MAX_REFUSED 5 /* of one connection, then it is closed */

void us_http_reply_bytes(struct us_http_request *r, int status, const char *content_type,
                         const void *bytes, size_t n)
{
    struct us_http_reply *p = &r->reply;
    if (p->status != 0)
        return;
    p->status = status;
    p->content_type = content_type;
    p->fd = -1;
    p->body = malloc(n > 0 ? n : 1);
    if (p->body == NULL) /* the status alone still tells the client */
        p->status = 503;
    else if (n > 0)
        memcpy(p->body, bytes, n);
    p->body_bytes = p->body != NULL ? n : 0;
}

void us_http_reply_fd(struct us_http_request *r, int status, const char *content_type, int fd,
                      int64_t n)
{
    struct us_http_reply *p = &r->reply;
    if (p->status != 0) {
        (void)close(fd);
        return;
    }
    p->status = status;
    p->content_type = content_type;
    p->fd = fd;
    p->fd_bytes = n;
}

void us_http_reply_stream(struct us_http_request *r, int status, const char *content_type,
                          us_http_stream_fn fn, void *arg)
{
    struct us_http_reply *p = &r->reply;
    if (p->status != 0)
        return;
    p->status = status;
    p->content_type = content_type;
    p->fd = -1;
    p->stream = fn;
    p->stream_arg = arg;
}

void us_http_header(struct us_http_request *r, const char *name, const char *fmt, ...)
{
    struct us_http_reply *p = &r->reply;
    char *value = NULL;
    va_list ap;
    US_ASSERT(p->n_headers < US_MAX_REPLY_HEADERS);
    va_start(ap, fmt);
    int n = vasprintf(&value, fmt, ap);
    va_end(ap);
    if (n < 0)
        return; /* no memory: the reply goes out without it */
    for (char *c = value; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    p->header[p->n_headers].name = name;
    p->header[p->n_headers++].value = value;
}

void usi_reply_release(struct us_http_reply *p)
{
    free(p->body);
    p->body = NULL;
    if (p->status != 0 && p->fd >= 0)
        (void)close(p->fd);
    p->fd = -1;
    for (int i = 0; i < p->n_headers; i++)
        free(p->header[i].value);
    p->n_headers = 0;
}

/* libmicrohttpd owns body and descriptor afterwards. */
static struct MHD_Response *make_response(struct us_http_request *r)
{
    struct us_http_reply *p = &r->reply;
    struct MHD_Response *m;
    if (p->stream != NULL) {
        m = usi_stream_response(r);
    } else if (p->fd >= 0) {
        m = MHD_create_response_from_fd64((uint64_t)p->fd_bytes, p->fd);
        if (m != NULL)
            p->fd = -1;
    } else {
        m = MHD_create_response_from_buffer(p->body_bytes, p->body, MHD_RESPMEM_MUST_FREE);
        if (m != NULL)
            p->body = NULL;
    }
    return m;
}

enum MHD_Result usi_reply_queue(struct us_http_request *r, bool close)
{
    struct us_http_reply *p = &r->reply;
    char trace[US_TRACEPARENT_BYTES];
    close |= p->status == 401 && ++r->conn->n_refused >= MAX_REFUSED;
    r->reply_bytes = p->fd >= 0 ? p->fd_bytes : (int64_t)p->body_bytes;
    struct MHD_Response *m = make_response(r);
    if (m == NULL)
        return MHD_NO;
    if (p->content_type != NULL)
        (void)MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, p->content_type);
    (void)MHD_add_response_header(m, "X-Request-Id", r->id);
    us_trace_text(&r->trace, trace);
    (void)MHD_add_response_header(m, "traceparent", trace);
    (void)MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    for (int i = 0; i < p->n_headers; i++)
        (void)MHD_add_response_header(m, p->header[i].name, p->header[i].value);
    if (close) {
        (void)MHD_add_response_header(m, MHD_HTTP_HEADER_CONNECTION, "close");
        r->conn->linger = true;
    }
    usi_conn_phase(r->http, r->conn, p->stream != NULL ? USI_WORK : USI_REPLY);
    enum MHD_Result ok = MHD_queue_response(r->connection, (unsigned)p->status, m);
    MHD_destroy_response(m);
    return ok;
}

/* The socket's send buffer is empty here (at most a "100 Continue" went out), so that a few
 * hundred bytes go in whole; if they do not, the client sees a plain close. */
void usi_reply_raw(struct us_http_request *r)
{
    struct us_http_reply *p = &r->reply;
    char head[1024];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: %s\r\n"
                     "Content-Length: %zu\r\nX-Request-Id: %s\r\n\r\n",
                     p->status, MHD_get_reason_phrase_for((unsigned)p->status), p->content_type,
                     p->body_bytes, r->id);
    r->answered_raw = true;
    r->reply_bytes = (int64_t)p->body_bytes;
    r->conn->linger = true;
    if (n < 0 || (size_t)n >= sizeof(head) || p->body == NULL)
        return;
    if (r->http->opt.tls) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
        if (info == NULL)
            return;
        us_tls_send(info->tls_session, head, (size_t)n);
        us_tls_send(info->tls_session, p->body, p->body_bytes);
        return;
    }
    struct iovec part[2] = {{head, (size_t)n}, {p->body, p->body_bytes}};
    struct msghdr msg = {.msg_iov = part, .msg_iovlen = 2};
    (void)sendmsg(r->conn->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}
