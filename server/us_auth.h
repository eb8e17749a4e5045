/*
 * Who sends a request: the Authorization header against the tokens of the store.
 *
 * The tokens are kept in memory and read again when they are a second old, so that a request costs
 * no write and hardly a read, and a token that `usplitd token` made or revoked beside the running
 * daemon counts within a second. A presented token's hash is compared with every stored one,
 * always all of it.
 */
#ifndef US_AUTH_H
#define US_AUTH_H

#include "us_tokens.h"

/* Whether a request needs a token. */
enum us_auth_mode {
    US_AUTH_IF_TOKENS = 0, /* once there was one in this process's life: on loopback */
    US_AUTH_ALWAYS,
    US_AUTH_NEVER
};

struct us_user {
    char name[US_STORE_NAME_BYTES]; /* "" = nobody: authorization is off */
    char token[US_TOKEN_ID_BYTES];
    uint32_t scopes;
    int64_t max_bytes, max_jobs; /* 0 = none */
    enum us_job_class ceiling;
};
/* Whether somebody else's jobs and data are theirs to see. */
static inline bool us_user_is_admin(const struct us_user *u)
{
    return (u->scopes & US_SCOPE_ADMIN) != 0;
}

/* The class of work that asks for c: never better than the token allows. */
static inline enum us_job_class us_user_class(const struct us_user *u, enum us_job_class c)
{
    return c > u->ceiling ? c : u->ceiling;
}

struct us_auth;

/* store: borrowed, outlives it. E_ARG: mode ALWAYS, and there is no token. */
enum us_status us_auth_new(struct us_store *store, enum us_auth_mode mode, struct us_auth **ret,
                           struct us_err *err) US_WARN_UNUSED;
void us_auth_free(struct us_auth *a); /* NULL is fine */

/* Whether a request without a token would be refused now. */
bool us_auth_is_on(struct us_auth *a);

/* The user of an Authorization header (NULL: none came). E_ARG: a token is needed, or the header
 * is no "Bearer TOKEN"; E_NOT_FOUND: an unknown or expired one. Others: the store cannot be read.
 */
enum us_status us_auth_check(struct us_auth *a, const char *header, struct us_user *ret,
                             struct us_err *err) US_WARN_UNUSED;

#endif
