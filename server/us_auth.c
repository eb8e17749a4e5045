/* Who sends a request; see us_auth.h. */
#include "us_auth.h"

#include <nettle/memops.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define KEEP_MS      1000 /* tokens in memory are trusted for so long */
#define KEEP_MISS_MS 50   /* an unknown token may be one that was just made */

struct us_auth {
    struct us_store *store;
    enum us_auth_mode mode;
    pthread_mutex_t lock;
    struct us_store_token *tokens;
    int64_t n_tokens, read_ms;
    bool seen; /* some token existed: losing the last one does not open the daemon */
};

static int64_t clock_ms(clockid_t which)
{
    struct timespec ts;
    (void)clock_gettime(which, &ts);
    return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* With the lock held: the tokens, at most max_age_ms old. */
static enum us_status refresh(struct us_auth *a, int64_t max_age_ms, struct us_err *err)
{
    struct us_store_token *tokens = NULL;
    int64_t n = 0, now = clock_ms(CLOCK_MONOTONIC);
    if (a->read_ms != 0 && now - a->read_ms < max_age_ms)
        return US_OK;
    US_TRY(a->store->ops->token_list(a->store, &tokens, &n, err));
    free(a->tokens);
    a->tokens = tokens;
    a->n_tokens = n;
    a->read_ms = now;
    a->seen |= n > 0;
    return US_OK;
}

enum us_status us_auth_new(struct us_store *store, enum us_auth_mode mode, struct us_auth **ret,
                           struct us_err *err)
{
    struct us_auth *a = calloc(1, sizeof(*a));
    if (a == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the tokens");
    (void)pthread_mutex_init(&a->lock, NULL);
    a->store = store;
    a->mode = mode;
    enum us_status st = refresh(a, 0, err);
    if (st == US_OK && mode == US_AUTH_ALWAYS && a->n_tokens == 0)
        st = us_fail(err, US_E_ARG, "there is no token");
    if (st != US_OK) {
        us_auth_free(a);
        return st;
    }
    *ret = a;
    return US_OK;
}

void us_auth_free(struct us_auth *a)
{
    if (a == NULL)
        return;
    (void)pthread_mutex_destroy(&a->lock);
    free(a->tokens);
    free(a);
}

static bool is_on(const struct us_auth *a)
{
    return a->mode == US_AUTH_ALWAYS || (a->mode == US_AUTH_IF_TOKENS && a->seen);
}

bool us_auth_is_on(struct us_auth *a)
{
    (void)pthread_mutex_lock(&a->lock);
    (void)!refresh(a, KEEP_MS, NULL);
    bool on = is_on(a);
    (void)pthread_mutex_unlock(&a->lock);
    return on;
}

/* Looks at every token to the last byte, so that the time tells nothing. */
static const struct us_store_token *find(const struct us_auth *a,
                                         const uint8_t hash[US_STORE_HASH_BYTES])
{
    const struct us_store_token *found = NULL;
    for (int64_t i = 0; i < a->n_tokens; i++) {
        if (memeql_sec(a->tokens[i].hash, hash, US_STORE_HASH_BYTES))
            found = &a->tokens[i];
    }
    if (found != NULL && found->expires_ms != 0 && found->expires_ms <= clock_ms(CLOCK_REALTIME))
        return NULL;
    return found;
}

static void take_user(const struct us_store_token *t, struct us_user *u)
{
    *u = (struct us_user){.scopes = t->scopes,
                          .max_bytes = t->max_bytes,
                          .max_jobs = t->max_jobs,
                          .ceiling = t->ceiling};
    (void)snprintf(u->name, sizeof(u->name), "%s", t->owner);
    (void)snprintf(u->token, sizeof(u->token), "%.12s", t->id);
}

/* With the lock held, and tokens needed. */
static enum us_status look_up(struct us_auth *a, const char *header, struct us_user *ret,
                              struct us_err *err)
{
    uint8_t hash[US_STORE_HASH_BYTES];
    if (header == NULL)
        return us_fail(err, US_E_ARG,
                       "this needs a token: Authorization: Bearer TOKEN, made with 'usplitd token "
                       "add'");
    const char *text = header + strcspn(header, " ");
    bool bearer = text - header == 6 && strncasecmp(header, "Bearer", 6) == 0;
    text += strspn(text, " ");
    if (!bearer || !us_token_hash(text, hash))
        return us_fail(err, US_E_ARG,
                       "Authorization: expected 'Bearer ' and a token as 'usplitd token add' "
                       "shows it");
    const struct us_store_token *t = find(a, hash);
    if (t == NULL) {
        US_TRY(refresh(a, KEEP_MISS_MS, err));
        t = find(a, hash);
    }
    if (t == NULL)
        return us_fail(err, US_E_NOT_FOUND, "the token is not known, or it has expired");
    take_user(t, ret);
    return US_OK;
}

enum us_status us_auth_check(struct us_auth *a, const char *header, struct us_user *ret,
                             struct us_err *err)
{
    (void)pthread_mutex_lock(&a->lock);
    enum us_status st = a->mode == US_AUTH_NEVER ? US_OK : refresh(a, KEEP_MS, err);
    if (st == US_OK && is_on(a))
        st = look_up(a, header, ret, err);
    else if (st == US_OK)
        *ret = (struct us_user){.scopes = US_SCOPES_ALL};
    (void)pthread_mutex_unlock(&a->lock);
    return st;
}
