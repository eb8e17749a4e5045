/*
 * A thin layer on libmicrohttpd 0.9.75: everything that speaks its API is here (us_http*.c).
 *
 * Engine: internal polling threads with poll (the epoll engine stalls when exactly 128 connections
 * become ready at once: servers.md section 7), suspend and resume for long work. On top, what
 * 0.9.75 leaves out: framing checks (us_request.h), deadlines for heads and a minimum rate for
 * bodies and replies, a watcher that notices a client hanging up while its request is suspended,
 * an answer in the middle of an upload, and a close that does not turn into a reset.
 *
 * A client that closes its sending side counts as gone: closing and half-closing look alike.
 *
 * Life of a request, on one HTTP thread unless stated:
 *   on_head   the head is complete and sane. A reply set here refuses the request before its body.
 *   on_body   a piece of the body. A reply set here is sent at once and ends the connection.
 *   on_end    the body is complete: set a reply or call us_http_suspend and hand the work over.
 *   on_gone   (watcher thread) the client left while suspended: cancel the work, still finish it.
 *   on_done   the request is over, reply sent or not: release app.
 *
 * LOCK ORDER of the daemon, outermost first; a thread holding one may take only those below it:
 *   1. http->watch_lock    suspended requests           (us_http_watch.c)
 *   2. work->lock          the queue                    (us_work.c)
 *   3. predictors->lock    the predictor cache          (us_predictors.c)
 *   4. jobs->submit_lock   new jobs, one at a time (us_job_submit.c)
 *   5. owners->lock        whose a name is (us_owners.c); auth->lock, the tokens (us_auth.c)
 *   6. datasets->lock      the folders of data, who uses them (us_datasets.c)
 *   7. registry->publish_lock, then registry->lock: the model folder, the model list
 *   8. the store's writer or reader, or jobs->lock; never two of them (us_store_sqlite.c,
 * us_jobs.c)
 *   9. http->conn_lock     connections, their deadlines (us_http_watch.c)
 *  10. http->stream_lock   streams with nothing to send (us_http_stream.c)
 * No lock is held while a model is read, a predictor built or used, a reply sent or libmicrohttpd
 * called; only publish_lock, datasets->lock, owners->lock, jobs->submit_lock and the store's writer
 * are held over an fsync.
 */
#ifndef US_HTTP_H
#define US_HTTP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_request.h"
#include "us_status.h"
#include "us_trace.h"

struct us_http;
struct us_http_conn;

#define US_MAX_REPLY_HEADERS 20

/* A reply that comes about while it is sent: writes up to max bytes into buf and returns their
 * number; 0: nothing now, ask again after us_http_wake or in a quarter of a second; -1: the end.
 * Called from one HTTP thread at a time, between on_end and on_done. */
typedef int64_t (*us_http_stream_fn)(void *arg, char *buf, size_t max);

struct us_http_reply {
    int status;               /* 0: not set yet */
    const char *content_type; /* static text */
    char *body;               /* owned; or NULL */
    size_t body_bytes;
    int fd; /* owned; or -1. Sent from offset 0. */
    int64_t fd_bytes;
    us_http_stream_fn stream; /* or NULL; see us_http_reply_stream */
    void *stream_arg;
    int n_headers;
    struct {
        const char *name; /* static text */
        char *value;      /* owned */
    } header[US_MAX_REPLY_HEADERS];
};

struct us_http_request {
    /* For the application to read. */
    char id[65];
    struct us_trace trace; /* our span of it */
    char method[12];
    struct us_target target;
    char path[256]; /* raw, for the log; cut if longer */
    struct us_head head;
    struct us_framing framing;
    int64_t start_ns, in_bytes;
    atomic_bool gone; /* the client went away while suspended */
    int route;        /* the application's own; for its metrics */
    bool sent;        /* in on_done: the reply went out whole */
    void *app;        /* the application's own; released in on_done */
    const char *log_model;
    char log_user[65], log_token[13]; /* "" = nobody; the token's id, never its secret */
    char log_error[128];              /* "" = none; for the request's log line */
    struct us_http_reply reply;
    /* The HTTP layer's own. */
    struct us_http *http;
    struct us_http_conn *conn;
    void *connection;    /* struct MHD_Connection */
    int64_t reply_bytes; /* length of the reply's body */
    bool suspended, answered_raw;
    uint64_t watch_id;
    struct us_http_request *watch_next, **watch_at;
    struct us_http_request *stream_next; /* in http->streams while its stream waits */
};

struct us_http_app {
    void *arg;
    void (*on_head)(void *arg, struct us_http_request *r);
    void (*on_body)(void *arg, struct us_http_request *r, const void *bytes, size_t n);
    void (*on_end)(void *arg, struct us_http_request *r);
    void (*on_gone)(void *arg, struct us_http_request *r);
    void (*on_done)(void *arg, struct us_http_request *r);
};

struct us_http_options {
    int listen_fd; /* bound and listening; owned by us_http from us_http_start on */
    int n_threads; /* 2.. */
    int64_t max_connections;
    int64_t header_timeout_s, idle_timeout_s, body_grace_s;
    int64_t min_rate;       /* bytes per second; 0: none */
    const char *host_names; /* borrowed; see us_head_check_site */
    bool any_host;
    bool tls; /* HTTPS, with the certificate of us_tls.h */
};

enum us_status us_http_start(const struct us_http_options *opt, const struct us_http_app *app,
                             struct us_http **ret, struct us_err *err) US_WARN_UNUSED;

/* Stops accepting connections; those open stay. */
void us_http_quiesce(struct us_http *h);
/* Requests between on_head and on_done. */
int64_t us_http_active(struct us_http *h);
/* Grows with every round of the watch thread: a frozen one means trouble. */
uint64_t us_http_heartbeat(struct us_http *h);
/* Waits until no request is suspended (cancel their work before), closes every connection and
 * frees h. NULL is fine. */
void us_http_free(struct us_http *h);

/* Seconds since the head was complete. */
double us_http_age_s(const struct us_http_request *r);

/* Sets the reply; the first one wins. bytes are copied; fd passes over. */
void us_http_reply_bytes(struct us_http_request *r, int status, const char *content_type,
                         const void *bytes, size_t n);
void us_http_reply_fd(struct us_http_request *r, int status, const char *content_type, int fd,
                      int64_t n);
/* A stream is sent for as long as it lasts, at whatever rate. One whose client left, or that
 * outlives us_http_free, is ended. */
void us_http_reply_stream(struct us_http_request *r, int status, const char *content_type,
                          us_http_stream_fn fn, void *arg);
/* From any thread: streams may have something to send. */
void us_http_wake(struct us_http *h);
/* Adds a header to the reply. Values are ours, but a name of a stranger may be in one: control
 * characters become '?'. */
void us_http_header(struct us_http_request *r, const char *name, const char *fmt, ...)
    US_PRINTF(3, 4);

/* The client's address without its port, into text; NULL: it cannot be known. */
const char *us_http_client(const struct us_http_request *r, char *text, size_t size);

/* From on_end only: parks the connection until us_http_resume. */
void us_http_suspend(struct us_http_request *r);
/* From any thread, after a reply was set: the HTTP thread sends it. r is no longer ours. */
void us_http_resume(struct us_http_request *r);

#endif
