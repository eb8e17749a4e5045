/* Shared by the three sources of the HTTP layer; see us_http.h. */
#ifndef US_HTTP_INT_H
#define US_HTTP_INT_H

#include <microhttpd.h>
#include <pthread.h>

#include "us_http.h"

/* What a connection is doing, which decides its deadline. */
enum usi_phase {
    USI_HEAD,  /* a request head is coming: header_timeout_s */
    USI_BODY,  /* a body is coming: minimum rate */
    USI_WORK,  /* our turn: no deadline */
    USI_REPLY, /* a reply is going out: minimum rate */
    USI_IDLE   /* between requests: idle_timeout_s, whatever trickles in */
};

struct us_http_conn {
    int fd;
    enum usi_phase phase;
    int64_t since_ns;
    /* The reaper's leaky bucket: seconds this transfer may still stay below the rate. */
    double credit_s;
    uint64_t seen_bytes;
    bool cut;
    /* HTTP thread only. */
    bool
        linger; /* unread input may remain: drain before closing, so that no reset eats the reply */
    int n_refused; /* replies with 401: guessing costs a connection now and then */
    char *uri;     /* raw target of the request being read, or NULL */
    struct us_http_conn *next, **at;
};

struct usi_linger {
    int fd;
    int64_t until_ns;
};
#define USI_MAX_LINGER 64

struct us_http {
    struct us_http_app app;
    struct us_http_options opt;
    struct MHD_Daemon *daemon;
    _Atomic int64_t n_active, n_suspended;
    _Atomic uint64_t heartbeat;
    atomic_bool quiesced;

    pthread_mutex_t conn_lock;
    struct us_http_conn *conns;
    struct usi_linger linger[USI_MAX_LINGER];
    int n_linger;

    pthread_mutex_t watch_lock;
    struct us_http_request *watched;
    uint64_t next_watch_id;
    int epoll_fd;

    /* Streams with nothing to send; wake_fd ends the watch thread's sleep for them. */
    pthread_mutex_t stream_lock;
    struct us_http_request *streams;
    int wake_fd;
    atomic_bool closing; /* streams end */

    pthread_t watch_thread;
    bool watch_running;
    atomic_bool watch_stop;
};

int64_t usi_now_ns(void);

/* us_http_watch.c */
enum us_status usi_watch_start(struct us_http *h, struct us_err *err) US_WARN_UNUSED;
void usi_watch_free(struct us_http *h);
struct us_http_conn *usi_conn_open(struct us_http *h, int fd);
void usi_conn_close(struct us_http *h, struct us_http_conn *c);
void usi_conn_phase(struct us_http *h, struct us_http_conn *c, enum usi_phase phase);
void usi_watch_add(struct us_http *h, struct us_http_request *r);
void usi_watch_remove(struct us_http *h, struct us_http_request *r);

/* us_http_stream.c */
enum us_status usi_stream_start(struct us_http *h, struct us_err *err) US_WARN_UNUSED;
void usi_stream_free(struct us_http *h);
/* Asks every waiting stream again; from the watch thread. */
void usi_stream_round(struct us_http *h);
struct MHD_Response *usi_stream_response(struct us_http_request *r);

/* us_http_reply.c */
/* Hands r->reply to libmicrohttpd. */
enum MHD_Result usi_reply_queue(struct us_http_request *r, bool close);
/* Writes r->reply to the socket past libmicrohttpd, which takes no reply in mid-upload. */
void usi_reply_raw(struct us_http_request *r);
void usi_reply_release(struct us_http_reply *reply);

#endif
