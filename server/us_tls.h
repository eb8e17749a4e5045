/*
 * The certificate that the daemon shows: read from two PEM files, checked before it is used, and
 * exchanged while connections are open. One per process: GnuTLS asks for it through a callback
 * without an argument of ours.
 *
 * Only TLS 1.2 and 1.3 (us_http.c). What was exchanged stays in memory until the end, since a
 * handshake may still be using it: a few KB, a few times a year.
 */
#ifndef US_TLS_H
#define US_TLS_H

#include <gnutls/abstract.h>
#include <stdint.h>

#include "us_status.h"

/* Reads and checks both files, and shows this certificate from now on. cert: the server's
 * certificate, then those between it and its authority. key: its private key, without a password;
 * nobody but its owner and group may read the file. E_IO, E_FORMAT, E_ARG: says which file and why;
 * what was shown before stays. */
enum us_status us_tls_load(const char *cert, const char *key, struct us_err *err) US_WARN_UNUSED;
/* us_tls_load without showing it. */
enum us_status us_tls_check(const char *cert, const char *key, struct us_err *err) US_WARN_UNUSED;
/* Seconds since 1970 when the certificate that is shown expires; 0: there is none. */
int64_t us_tls_expires_s(void);
/* After the last connection. */
void us_tls_release(void);

/* A gnutls_certificate_retrieve_function2. */
int us_tls_retrieve(gnutls_session_t session, const gnutls_datum_t *authorities, int n_authorities,
                    const gnutls_pk_algorithm_t *algorithms, int n_algorithms,
                    gnutls_pcert_st **ret_chain, unsigned int *ret_n, gnutls_privkey_t *ret_key);

/* As many bytes as the session takes now. */
void us_tls_send(gnutls_session_t session, const void *bytes, size_t n);

#endif
