/* Inside the SQLite store: us_store_sqlite.c file, schema, transactions; us_store_sqlite_jobs.c
 * what clients do to jobs, us_store_sqlite_claims.c what workers do, us_store_sqlite_records.c the
 * rest. */
#ifndef US_STORE_SQLITE_INT_H
#define US_STORE_SQLITE_INT_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "us_store.h"

enum usi_sql {
#define US_SQL(name, text) USI_SQL_##name,
#include "us_store_sql.def"
#undef US_SQL
    USI_SQL_COUNT
};

/* One connection; its lock is held from a statement's first step to its reset. */
struct usi_db {
    sqlite3 *db;
    pthread_mutex_t lock;
    sqlite3_stmt *stmt[USI_SQL_COUNT]; /* prepared when first used */
};

struct usi_store {
    struct us_store base; /* first */
    struct usi_db w, r;
    int64_t (*now_ms)(void *arg);
    void *now_arg;
    atomic_bool broken;
    int64_t changes_before; /* of the transaction; with w.lock held */
    pthread_mutex_t watch_lock;
    pthread_cond_t watch;
    uint64_t changes;
    void (*on_change)(void *arg);
    void *on_change_arg;
};

/* What is bound to a statement. */
struct usi_arg {
    enum { USI_INT, USI_TEXT, USI_BLOB } kind;
    int64_t i;     /* INT: value; BLOB: bytes */
    const void *p; /* TEXT, BLOB; NULL becomes NULL */
};
static inline struct usi_arg usi_i(int64_t i)
{
    return (struct usi_arg){USI_INT, i, NULL};
}
static inline struct usi_arg usi_t(const char *t)
{
    return (struct usi_arg){USI_TEXT, 0, t};
}
static inline struct usi_arg usi_b(const void *p, size_t n)
{
    return (struct usi_arg){USI_BLOB, (int64_t)n, p};
}
#define USI_ARGS(...)                                                                              \
    (const struct usi_arg[]){__VA_ARGS__}, (int)US_COUNT(((const struct usi_arg[]){__VA_ARGS__}))

/* Runs to the end. */
enum us_status usi_run(struct usi_db *d, enum usi_sql which, const struct usi_arg *args, int n,
                       struct us_err *err) US_WARN_UNUSED;
/* Up to the first row, which is read from *ret; E_NOT_FOUND (without a text): none. Then
 * usi_next until E_NOT_FOUND; usi_done in any case. */
enum us_status usi_first(struct usi_db *d, enum usi_sql which, const struct usi_arg *args, int n,
                         sqlite3_stmt **ret, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_next(struct usi_db *d, sqlite3_stmt *q, struct us_err *err) US_WARN_UNUSED;
void usi_done(sqlite3_stmt *q); /* NULL is fine */
/* A text column into a buffer; it always fits, being written through the same buffers. */
void usi_text(sqlite3_stmt *q, int column, char *to, size_t size);
/* A text column on the heap; NULL stays NULL. */
enum us_status usi_text_dup(sqlite3_stmt *q, int column, char **ret,
                            struct us_err *err) US_WARN_UNUSED;

/* A transaction: usi_begin takes the writer's lock, usi_end commits if st is US_OK, else rolls
 * back, gives the lock up, and returns what became of it. */
enum us_status usi_begin(struct usi_store *s, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_end(struct usi_store *s, enum us_status st, struct us_err *err) US_WARN_UNUSED;
int64_t usi_now_ms(struct usi_store *s);

/* Within a transaction: the job of this number gets this state, and its event. */
struct usi_turn {
    enum us_job_state state;
    const char *reason; /* "" = none */
    int64_t not_before_ms;
};
enum us_status usi_set_state(struct usi_store *s, int64_t seq, const struct usi_turn *turn,
                             struct us_err *err) US_WARN_UNUSED;
enum us_status usi_tell_state(struct usi_store *s, int64_t seq, enum us_job_state state,
                              struct us_err *err) US_WARN_UNUSED;
enum us_status usi_tell(struct usi_store *s, int64_t seq, const char *kind, const char *data,
                        struct us_err *err) US_WARN_UNUSED;
/* One job; the connection's lock is held. E_NOT_FOUND. */
enum us_status usi_get(struct usi_db *d, const char *id, struct us_store_job *ret,
                       struct us_err *err) US_WARN_UNUSED;

/* The backend's table, by file. */
void usi_fill_jobs(struct us_store_ops *ops);
void usi_fill_claims(struct us_store_ops *ops);
void usi_fill_records(struct us_store_ops *ops);

#endif
