/* Models, data sets and tokens in the SQLite store: who owns what. */
#include <stdlib.h>
#include <string.h>

#include "us_store_sqlite_int.h"

/* ---- records ------------------------------------------------------------------------------- */

static enum us_status sql_record_put(struct us_store *base, const struct us_store_record *r,
                                     struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    US_TRY(usi_begin(s, err));
    enum us_status st = usi_run(&s->w, USI_SQL_RECORD_PUT,
                                USI_ARGS(usi_i(r->kind), usi_t(r->name), usi_t(r->owner),
                                         usi_t(r->sha256), usi_i(r->bytes), usi_i(usi_now_ms(s))),
                                err);
    return usi_end(s, st, err);
}

static void read_record(sqlite3_stmt *q, struct us_store_record *r)
{
    *r = (struct us_store_record){.kind = (enum us_record_kind)sqlite3_column_int(q, 0),
                                  .bytes = sqlite3_column_int64(q, 4),
                                  .created_ms = sqlite3_column_int64(q, 5),
                                  .changed_ms = sqlite3_column_int64(q, 6)};
    usi_text(q, 1, r->name, sizeof(r->name));
    usi_text(q, 2, r->owner, sizeof(r->owner));
    usi_text(q, 3, r->sha256, sizeof(r->sha256));
}

static enum us_status sql_record_get(struct us_store *base, enum us_record_kind kind,
                                     const char *name, struct us_store_record *ret,
                                     struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    sqlite3_stmt *q;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st =
        usi_first(&s->r, USI_SQL_RECORDS, USI_ARGS(usi_i(kind), usi_t(name), usi_t(NULL)), &q, err);
    if (st == US_OK)
        read_record(q, ret);
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st == US_E_NOT_FOUND ? us_fail(err, st, "there is no record of '%s'", name) : st;
}

/* A list that grows by one; NULL: no memory, and the old one is gone. */
static void *grow(void *list, int64_t n, size_t size)
{
    if (n % 64 != 0)
        return list;
    void *more = reallocarray(list, (size_t)n + 64, size);
    if (more == NULL)
        free(list);
    return more;
}

static enum us_status sql_record_list(struct us_store *base, enum us_record_kind kind,
                                      const char *owner, struct us_store_record **ret, int64_t *n,
                                      struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct us_store_record *list = NULL;
    int64_t found = 0;
    sqlite3_stmt *q;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st = usi_first(&s->r, USI_SQL_RECORDS,
                                  USI_ARGS(usi_i(kind), usi_t(NULL), usi_t(owner)), &q, err);
    for (; st == US_OK; st = usi_next(&s->r, q, err)) {
        list = grow(list, found, sizeof(*list));
        if (list == NULL) {
            st = us_fail(err, US_E_NOMEM, "no memory to list the records");
            break;
        }
        read_record(q, &list[found++]);
    }
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    if (st != US_E_NOT_FOUND) {
        free(list);
        return st;
    }
    *ret = list;
    *n = found;
    return US_OK;
}

static enum us_status sql_record_delete(struct us_store *base, enum us_record_kind kind,
                                        const char *name, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    US_TRY(usi_begin(s, err));
    enum us_status st =
        usi_run(&s->w, USI_SQL_RECORD_DELETE, USI_ARGS(usi_i(kind), usi_t(name)), err);
    return usi_end(s, st, err);
}

/* ---- tokens -------------------------------------------------------------------------------- */

static enum us_status sql_token_put(struct us_store *base, const struct us_store_token *t,
                                    struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    US_TRY(usi_begin(s, err));
    enum us_status st =
        usi_run(&s->w, USI_SQL_TOKEN_PUT,
                USI_ARGS(usi_t(t->id), usi_t(t->owner), usi_b(t->hash, sizeof(t->hash)),
                         usi_i(t->scopes), usi_i(t->max_bytes), usi_i(t->max_jobs),
                         usi_i(t->ceiling), usi_i(usi_now_ms(s)), usi_i(t->expires_ms)),
                err);
    if (st == US_E_EXISTS)
        (void)us_fail(err, st, "there is a token '%s' already", t->id);
    return usi_end(s, st, err);
}

static void read_token(sqlite3_stmt *q, struct us_store_token *t)
{
    *t = (struct us_store_token){.scopes = (uint32_t)sqlite3_column_int64(q, 3),
                                 .max_bytes = sqlite3_column_int64(q, 4),
                                 .max_jobs = sqlite3_column_int64(q, 5),
                                 .ceiling = (enum us_job_class)sqlite3_column_int(q, 6),
                                 .created_ms = sqlite3_column_int64(q, 7),
                                 .expires_ms = sqlite3_column_int64(q, 8)};
    usi_text(q, 0, t->id, sizeof(t->id));
    usi_text(q, 1, t->owner, sizeof(t->owner));
    const void *hash = sqlite3_column_blob(q, 2);
    if (hash != NULL && sqlite3_column_bytes(q, 2) == sizeof(t->hash))
        memcpy(t->hash, hash, sizeof(t->hash));
}

static enum us_status sql_token_find(struct us_store *base, const uint8_t hash[US_STORE_HASH_BYTES],
                                     struct us_store_token *ret, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    sqlite3_stmt *q;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st =
        usi_first(&s->r, USI_SQL_TOKENS,
                  USI_ARGS(usi_b(hash, US_STORE_HASH_BYTES), usi_i(usi_now_ms(s))), &q, err);
    if (st == US_OK)
        read_token(q, ret);
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st == US_E_NOT_FOUND ? us_fail(err, st, "the token is not known or has expired") : st;
}

static enum us_status sql_token_list(struct us_store *base, struct us_store_token **ret, int64_t *n,
                                     struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct us_store_token *list = NULL;
    int64_t found = 0;
    sqlite3_stmt *q;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st =
        usi_first(&s->r, USI_SQL_TOKENS, USI_ARGS(usi_b(NULL, 0), usi_i(0)), &q, err);
    for (; st == US_OK; st = usi_next(&s->r, q, err)) {
        list = grow(list, found, sizeof(*list));
        if (list == NULL) {
            st = us_fail(err, US_E_NOMEM, "no memory to list the tokens");
            break;
        }
        read_token(q, &list[found++]);
    }
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    if (st != US_E_NOT_FOUND) {
        free(list);
        return st;
    }
    *ret = list;
    *n = found;
    return US_OK;
}

static enum us_status sql_token_delete(struct us_store *base, const char *id, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    sqlite3_stmt *q;
    US_TRY(usi_begin(s, err));
    enum us_status st = usi_first(&s->w, USI_SQL_TOKEN_DELETE, USI_ARGS(usi_t(id)), &q, err);
    bool found = st == US_OK;
    if (found)
        st = usi_next(&s->w, q, err);
    usi_done(q);
    if (found && st == US_E_NOT_FOUND)
        st = US_OK;
    else if (st == US_E_NOT_FOUND)
        (void)us_fail(err, st, "there is no token '%s'", id);
    return usi_end(s, st, err);
}

void usi_fill_records(struct us_store_ops *ops)
{
    ops->record_put = sql_record_put;
    ops->record_get = sql_record_get;
    ops->record_list = sql_record_list;
    ops->record_delete = sql_record_delete;
    ops->token_put = sql_token_put;
    ops->token_find = sql_token_find;
    ops->token_list = sql_token_list;
    ops->token_delete = sql_token_delete;
}
