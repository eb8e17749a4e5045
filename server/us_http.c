/*
 * The HTTP layer's request cycle on libmicrohttpd; see us_http.h. Deadlines and the watcher are
 * in us_http_watch.c, replies in us_http_reply.c, problem bodies in us_problem.c.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "us_http_int.h"
#include "us_log.h"
#include "us_problem.h"
#include "us_tls.h"

/* Half of it is the largest piece of a body that a handler sees (servers.md section 3). */
#define CONNECTION_MEMORY_BYTES (128 << 10)

#define TLS_PRIORITIES "SECURE128:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

int64_t usi_now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static struct us_http_conn *conn_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct us_http *h = cls;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*context != NULL)
            usi_conn_close(h, *context);
        *context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    *context = info != NULL ? usi_conn_open(h, info->connect_fd) : NULL;
}

/* The raw target, before libmicrohttpd decodes it and cuts it at a %00. */
static void *on_uri(void *cls, const char *uri, struct MHD_Connection *connection)
{
    struct us_http_conn *c = conn_of(connection);
    if (c != NULL) {
        free(c->uri);
        c->uri = strndup(uri, US_MAX_URI);
        usi_conn_phase(cls, c, USI_HEAD);
    }
    return NULL;
}

static enum MHD_Result collect_header(void *cls, enum MHD_ValueKind kind, const char *name,
                                      const char *value)
{
    struct us_head *head = cls;
    if (head->n == US_MAX_HEADERS) {
        head->overflow = true;
        return MHD_NO;
    }
    head->header[head->n++] = (struct us_header){name, value};
    return MHD_YES;
}

static void choose_trace(struct us_http_request *r)
{
    uint8_t random[24] = {0};
    if (getrandom(random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        memcpy(random, &r->start_ns, sizeof(r->start_ns));
    r->trace = us_trace_begin(us_head_get(&r->head, "traceparent"), random);
}

/* The client's own id if it is harmless, else 16 random hex digits. */
static void choose_id(struct us_http_request *r)
{
    const char *given = us_head_get(&r->head, "X-Request-Id");
    uint64_t random = (uint64_t)r->start_ns;
    if (given != NULL && us_request_id_ok(given)) {
        memcpy(r->id, given, strlen(given) + 1);
        return;
    }
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        random ^= (uint64_t)(uintptr_t)r;
    (void)snprintf(r->id, sizeof(r->id), "%016llx", (unsigned long long)random);
}

/* Framing, site and target: whatever is wrong here is answered before any route sees it. */
static void check_request(struct us_http_request *r, bool needs_host)
{
    struct us_err err = {0};
    enum us_status st = us_head_check(&r->head, needs_host, &r->framing, &err);
    if (st == US_E_UNSUPPORTED)
        us_problem(r, 501, "%s", err.msg);
    else if (st == US_E_TOO_LARGE)
        us_problem(r, 431, "%s", err.msg);
    else if (st != US_OK)
        us_problem(r, 400, "%s", err.msg);
    if (st != US_OK)
        return;
    st = us_head_check_site(&r->head, r->http->opt.host_names, r->http->opt.any_host, &err);
    if (st != US_OK) {
        us_problem(r, st == US_E_ARG ? 403 : 421, "%s", err.msg);
        return;
    }
    if (r->conn->uri == NULL) {
        us_problem(r, 503, "no memory for the request");
        return;
    }
    st = us_target_parse(r->conn->uri, &r->target, &err);
    if (st != US_OK)
        us_problem(r, st == US_E_TOO_LARGE ? 414 : 400, "%s", err.msg);
}

static bool has_body(const struct us_http_request *r)
{
    return r->framing.chunked || r->framing.length > 0;
}

static enum MHD_Result first_call(struct us_http *h, struct MHD_Connection *connection,
                                  const char *method, const char *version, void **con_cls)
{
    struct us_http_conn *c = conn_of(connection);
    struct us_http_request *r = c != NULL ? calloc(1, sizeof(*r)) : NULL;
    if (r == NULL)
        return MHD_NO;
    *con_cls = r;
    r->http = h;
    r->conn = c;
    r->connection = connection;
    r->start_ns = usi_now_ns();
    r->reply.fd = -1;
    atomic_fetch_add(&h->n_active, 1);
    (void)snprintf(r->method, sizeof(r->method), "%s", method);
    (void)snprintf(r->path, sizeof(r->path), "%s", c->uri != NULL ? c->uri : "");
    (void)MHD_get_connection_values(connection, MHD_HEADER_KIND, collect_header, &r->head);
    choose_id(r);
    choose_trace(r);
    check_request(r, strcmp(version, MHD_HTTP_VERSION_1_1) == 0);
    bool broken = r->reply.status != 0;
    if (!broken)
        h->app.on_head(h->app.arg, r);
    /* A reply now costs the connection: libmicrohttpd closes it, as it must before an unread body
     * and after broken framing. Without a body the refusal can wait for end_call. */
    if (r->reply.status != 0 && (broken || has_body(r)))
        return usi_reply_queue(r, true);
    usi_conn_phase(h, c, USI_BODY);
    return MHD_YES;
}

static enum MHD_Result body_call(struct us_http *h, struct us_http_request *r, const char *bytes,
                                 size_t *n)
{
    size_t taken = *n;
    *n = 0;
    r->in_bytes += (int64_t)taken;
    h->app.on_body(h->app.arg, r, bytes, taken);
    if (r->reply.status == 0)
        return MHD_YES;
    usi_reply_raw(r);
    return MHD_NO;
}

/* Either the end of the body or the first call after a resume. */
static enum MHD_Result end_call(struct us_http *h, struct us_http_request *r)
{
    if (!r->suspended && r->reply.status == 0) {
        usi_conn_phase(h, r->conn, USI_WORK);
        h->app.on_end(h->app.arg, r);
        if (r->suspended)
            return MHD_YES; /* r may be on another thread by now: not touched again */
    }
    if (atomic_load(&r->gone))
        return MHD_NO;
    US_ASSERT(r->reply.status != 0);
    return usi_reply_queue(r, atomic_load(&h->quiesced));
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload_data,
                              size_t *upload_data_size, void **con_cls)
{
    struct us_http *h = cls;
    struct us_http_request *r = *con_cls;
    if (r == NULL)
        return first_call(h, connection, method, version, con_cls);
    if (*upload_data_size > 0)
        return body_call(h, r, upload_data, upload_data_size);
    return end_call(h, r);
}

const char *us_http_client(const struct us_http_request *r, char *text, size_t size)
{
    struct sockaddr_storage from;
    socklen_t n = sizeof(from);
    if (getpeername(r->conn->fd, (struct sockaddr *)&from, &n) != 0 ||
        getnameinfo((struct sockaddr *)&from, n, text, (socklen_t)size, NULL, 0, NI_NUMERICHOST) !=
            0)
        return NULL;
    return text;
}

/* Who was refused is worth knowing; a proxy's address where one is in between. */
static const char *refused_client(const struct us_http_request *r, char *text, size_t size)
{
    bool refused = r->reply.status == 401 || r->reply.status == 403;
    return refused ? us_http_client(r, text, size) : NULL;
}

double us_http_age_s(const struct us_http_request *r)
{
    return (double)(usi_now_ns() - r->start_ns) / 1e9;
}

static void log_request(const struct us_http_request *r, bool sent)
{
    const struct us_http_reply *p = &r->reply;
    char client[64];
    struct us_log_request line = {
        .method = r->method,
        .path = r->path,
        .id = r->id,
        .trace = r->trace.id,
        .model = r->log_model,
        .user = r->log_user,
        .token = r->log_token,
        .client = refused_client(r, client, sizeof(client)),
        .error = r->log_error[0] != '\0' ? r->log_error : NULL,
        .status = sent ? p->status : 499,
        .ms = us_http_age_s(r) * 1e3,
        .in_bytes = r->in_bytes,
        .out_bytes = sent ? r->reply_bytes : 0,
    };
    us_log_request(&line);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    struct us_http *h = cls;
    struct us_http_request *r = *con_cls;
    if (r == NULL)
        return;
    *con_cls = NULL;
    r->sent = code == MHD_REQUEST_TERMINATED_COMPLETED_OK || r->answered_raw;
    log_request(r, r->sent);
    h->app.on_done(h->app.arg, r);
    usi_conn_phase(h, r->conn, USI_IDLE);
    usi_reply_release(&r->reply);
    free(r);
    atomic_fetch_sub(&h->n_active, 1);
}

static void on_library_log(void *cls, const char *fmt, va_list ap)
{
    char text[512];
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    us_log(US_LOG_DEBUG, "libmicrohttpd: %s", text);
}

static struct MHD_Daemon *start_daemon(struct us_http *h)
{
    const struct us_http_options *o = &h->opt;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)us_tls_retrieve},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)TLS_PRIORITIES},
        {MHD_OPTION_END, 0, NULL}};
    return MHD_start_daemon(
        MHD_USE_POLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
            (o->tls ? MHD_USE_TLS : 0U),
        0, NULL, NULL, handle, h, MHD_OPTION_EXTERNAL_LOGGER, on_library_log, h,
        MHD_OPTION_LISTEN_SOCKET, o->listen_fd, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->n_threads,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)o->idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_URI_LOG_CALLBACK, on_uri, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        h, MHD_OPTION_ARRAY, o->tls ? tls : tls + 2, MHD_OPTION_END);
}

enum us_status us_http_start(const struct us_http_options *opt, const struct us_http_app *app,
                             struct us_http **ret, struct us_err *err)
{
    enum us_status st;
    struct us_http *h = calloc(1, sizeof(*h));
    if (h == NULL) {
        st = us_fail(err, US_E_NOMEM, "no memory for the HTTP layer");
        goto out;
    }
    h->opt = *opt;
    h->app = *app;
    h->wake_fd = -1;
    st = usi_watch_start(h, err);
    if (st != US_OK)
        goto out;
    h->daemon = start_daemon(h);
    if (h->daemon == NULL) {
        st = us_fail(err, US_E_IO, "libmicrohttpd does not start: %s", strerror(errno));
        goto out;
    }
    *ret = h;
    return US_OK;
out:
    (void)close(opt->listen_fd);
    us_http_free(h);
    return st;
}

void us_http_quiesce(struct us_http *h)
{
    if (atomic_exchange(&h->quiesced, true))
        return;
    MHD_socket fd = MHD_quiesce_daemon(h->daemon);
    if (fd != MHD_INVALID_SOCKET)
        (void)close(fd);
}

int64_t us_http_active(struct us_http *h)
{
    return atomic_load(&h->n_active);
}

uint64_t us_http_heartbeat(struct us_http *h)
{
    return atomic_load(&h->heartbeat);
}

void us_http_free(struct us_http *h)
{
    if (h == NULL)
        return;
    atomic_store(&h->closing, true);
    while (atomic_load(&h->n_suspended) > 0) /* stopping with one would be a fatal misuse */
        (void)nanosleep(&(struct timespec){0, 10000000}, NULL);
    if (h->daemon != NULL)
        MHD_stop_daemon(h->daemon);
    usi_watch_free(h);
    free(h);
}

void us_http_suspend(struct us_http_request *r)
{
    US_ASSERT(!r->suspended);
    r->suspended = true;
    atomic_fetch_add(&r->http->n_suspended, 1);
    MHD_suspend_connection(r->connection);
    usi_watch_add(r->http, r);
}

void us_http_resume(struct us_http_request *r)
{
    US_ASSERT(r->reply.status != 0 || atomic_load(&r->gone));
    struct us_http *h = r->http; /* r may be gone as soon as its connection is resumed */
    usi_watch_remove(h, r);
    MHD_resume_connection(r->connection);
    atomic_fetch_sub(&h->n_suspended, 1);
}
