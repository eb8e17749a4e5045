/*
 * One HTTP client for the commands that talk to a daemon; libcurl stands behind it and nowhere
 * else.
 *
 * Bodies stream both ways in bounded memory: one is pulled from a source piece by piece, the other
 * is pushed into a sink. Redirects are not followed (a token must not travel to another host), and
 * the certificate of an https server is always checked.
 */
#ifndef US_HTTP_CLIENT_H
#define US_HTTP_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

struct us_http_client_config {
    const char *ca_file;       /* PEM, borrowed; NULL: the system's authorities */
    int64_t silence_s;         /* without a byte in either direction for so long: given up */
    const atomic_bool *cancel; /* polled about once a second: E_CANCELLED */
};

/* One POST. Strings are borrowed for the call. */
struct us_http_post {
    const char *url, *type, *coding; /* coding: of the body, NULL: none */
    const char *accept, *accept_coding;
    const char *token;  /* NULL: none */
    int64_t body_bytes; /* -1: not known beforehand, sent in chunks */
    /* Up to n bytes of the body; *ret_n = 0 is its end. */
    enum us_status (*read)(void *arg, void *buf, size_t n, size_t *ret_n);
    /* Back to the body's begin: a connection that had been kept may turn out to be dead. */
    enum us_status (*rewind)(void *arg);
    /* A piece of the body of a 200 of type `accept`; anything else goes to reply.detail. */
    enum us_status (*sink)(void *arg, const void *bytes, size_t n);
    void *arg;
};

struct us_http_answer {
    int status;           /* 0: none came */
    bool reached;         /* false: no connection to a server that can be trusted */
    double retry_after_s; /* what it asked for; 0: nothing */
    char type[64], coding[16], etag[80], model[256];
    char detail[US_ERR_MSG_BYTES]; /* what an error said, on one line */
};

/* Before any thread starts, once. E_BACKEND: libcurl does not start. */
enum us_status us_http_client_start(struct us_err *err) US_WARN_UNUSED;

/* Keeps its connection between calls; one thread at a time. */
struct us_http_client;
enum us_status us_http_client_new(const struct us_http_client_config *c,
                                  struct us_http_client **ret, struct us_err *err) US_WARN_UNUSED;
void us_http_client_free(struct us_http_client *c);

/* US_OK: an answer came, whole, of whatever status. E_IO: no connection, a cut one, or silence;
 * E_CANCELLED; or what read, rewind or sink returned, which say why themselves. *a is always set.
 */
enum us_status us_http_client_post(struct us_http_client *c, const struct us_http_post *p,
                                   struct us_http_answer *a, struct us_err *err) US_WARN_UNUSED;

/* What can follow a host: http or https, no user, query or fragment. E_ARG says what is wrong. */
enum us_status us_http_url_check(const char *url, struct us_err *err) US_WARN_UNUSED;

#endif
