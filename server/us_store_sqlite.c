/* The SQLite store: its file, its schema, its transactions; see us_store_sqlite.h. */
#include "us_store_sqlite.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_failpoint.h"
#include "us_store_sqlite_int.h"

#define APPLICATION_ID 0x7573706c /* "uspl" */
#define BUSY_MS        5000       /* for a backup that reads meanwhile */

/* Step i brings schema i to schema i + 1. A step that was released never changes again. */
static const char *const steps[] = {
    "CREATE TABLE jobs("
    " seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL,"
    " class INTEGER NOT NULL, owner TEXT NOT NULL, state INTEGER NOT NULL,"
    " reason TEXT NOT NULL DEFAULT '', dataset TEXT NOT NULL, model TEXT NOT NULL,"
    " spec TEXT NOT NULL, progress TEXT, result TEXT, created INTEGER NOT NULL,"
    " started INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0,"
    " attempts INTEGER NOT NULL DEFAULT 0,"   /* claims */
    " strikes INTEGER NOT NULL DEFAULT 0,"    /* claims in a row that came to nothing */
    " not_before INTEGER NOT NULL DEFAULT 0," /* not to be claimed earlier */
    " wish INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '',"
    " token INTEGER NOT NULL DEFAULT 0, lease INTEGER NOT NULL DEFAULT 0,"
    " next_event INTEGER NOT NULL DEFAULT 1) STRICT;"
    "CREATE INDEX jobs_state ON jobs(state, class, owner, seq);"
    "CREATE TABLE keys(owner TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL,"
    " job INTEGER NOT NULL REFERENCES jobs(seq) ON DELETE CASCADE, PRIMARY KEY(owner, key))"
    " STRICT, WITHOUT ROWID;"
    "CREATE INDEX keys_job ON keys(job);"
    "CREATE TABLE turns(class INTEGER NOT NULL, owner TEXT NOT NULL, served INTEGER NOT NULL,"
    " PRIMARY KEY(class, owner)) STRICT, WITHOUT ROWID;"
    /* In which order claims will be made if nothing comes in between. */
    "CREATE VIEW queue AS SELECT seq, row_number() OVER (PARTITION BY class"
    " ORDER BY rank, served, oldest) AS position FROM (SELECT j.seq, j.class,"
    " ifnull(t.served, 0) AS served, min(j.seq) OVER (PARTITION BY j.class, j.owner) AS oldest,"
    " row_number() OVER (PARTITION BY j.class, j.owner ORDER BY j.seq) AS rank FROM jobs j"
    " LEFT JOIN turns t ON t.class = j.class AND t.owner = j.owner WHERE j.state = 0);"
    "CREATE TABLE events(job INTEGER NOT NULL REFERENCES jobs(seq) ON DELETE CASCADE,"
    " id INTEGER NOT NULL, at INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,"
    " PRIMARY KEY(job, id)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "INSERT INTO counters VALUES('token', 0), ('turn', 0);"
    "CREATE TABLE records(kind INTEGER NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL,"
    " sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, created INTEGER NOT NULL,"
    " changed INTEGER NOT NULL, PRIMARY KEY(kind, name)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE tokens(id TEXT PRIMARY KEY, owner TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,"
    " scopes INTEGER NOT NULL, max_bytes INTEGER NOT NULL, max_jobs INTEGER NOT NULL,"
    " ceiling INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID;",
};
_Static_assert(US_COUNT(steps) == US_STORE_SCHEMA, "every schema has the step to it");

/* The columns that read_job takes (us_store_sqlite_jobs.c). */
#define JOB_ROWS                                                                                   \
    "SELECT j.id, j.type, j.owner, j.dataset, j.model, j.class, j.state, j.reason, j.created, "    \
    "j.started, j.ended, j.attempts, q.position, j.spec, j.progress, j.result, j.seq "             \
    "FROM jobs j LEFT JOIN queue q ON q.seq = j.seq "

static const char *const texts[] = {
#define US_SQL(name, text) text,
#include "us_store_sql.def"
#undef US_SQL
};

/* ---- statements ---------------------------------------------------------------------------- */

static enum us_status status_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_DONE:
    case SQLITE_ROW:
        return US_OK;
    case SQLITE_FULL:
        return US_E_DISK_FULL;
    case SQLITE_NOMEM:
        return US_E_NOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return US_E_CORRUPT;
    case SQLITE_CONSTRAINT:
        return US_E_EXISTS;
    case SQLITE_TOOBIG:
        return US_E_TOO_LARGE;
    default:
        return US_E_IO;
    }
}

static enum us_status fail(struct usi_db *d, int rc, struct us_err *err)
{
    return us_fail(err, status_of(rc), "the store: %s",
                   d->db != NULL ? sqlite3_errmsg(d->db) : sqlite3_errstr(rc));
}

static int bind(sqlite3_stmt *q, int at, const struct usi_arg *a)
{
    if (a->kind == USI_INT)
        return sqlite3_bind_int64(q, at, a->i);
    if (a->p == NULL)
        return sqlite3_bind_null(q, at);
    if (a->kind == USI_TEXT)
        return sqlite3_bind_text(q, at, a->p, -1, SQLITE_TRANSIENT);
    return sqlite3_bind_blob(q, at, a->p, (int)a->i, SQLITE_TRANSIENT);
}

static int prepare(struct usi_db *d, enum usi_sql which, const struct usi_arg *args, int n)
{
    int rc = SQLITE_OK;
    if (d->stmt[which] == NULL)
        rc = sqlite3_prepare_v3(d->db, texts[which], -1, SQLITE_PREPARE_PERSISTENT, &d->stmt[which],
                                NULL);
    for (int i = 0; i < n && rc == SQLITE_OK; i++)
        rc = bind(d->stmt[which], i + 1, &args[i]);
    return rc;
}

void usi_done(sqlite3_stmt *q)
{
    if (q == NULL)
        return;
    (void)sqlite3_reset(q); /* says once more what step said */
    (void)sqlite3_clear_bindings(q);
}

enum us_status usi_next(struct usi_db *d, sqlite3_stmt *q, struct us_err *err)
{
    int rc = sqlite3_step(q);
    if (rc == SQLITE_ROW)
        return US_OK;
    return rc == SQLITE_DONE ? US_E_NOT_FOUND : fail(d, rc, err);
}

enum us_status usi_first(struct usi_db *d, enum usi_sql which, const struct usi_arg *args, int n,
                         sqlite3_stmt **ret, struct us_err *err)
{
    int rc = prepare(d, which, args, n);
    *ret = d->stmt[which];
    return rc == SQLITE_OK ? usi_next(d, *ret, err) : fail(d, rc, err);
}

enum us_status usi_run(struct usi_db *d, enum usi_sql which, const struct usi_arg *args, int n,
                       struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st = usi_first(d, which, args, n, &q, err);
    usi_done(q);
    return st == US_E_NOT_FOUND ? US_OK : st;
}

void usi_text(sqlite3_stmt *q, int column, char *to, size_t size)
{
    const unsigned char *t = sqlite3_column_text(q, column);
    (void)snprintf(to, size, "%s", t != NULL ? (const char *)t : "");
}

enum us_status usi_text_dup(sqlite3_stmt *q, int column, char **ret, struct us_err *err)
{
    *ret = NULL;
    if (sqlite3_column_type(q, column) == SQLITE_NULL)
        return US_OK;
    const unsigned char *t = sqlite3_column_text(q, column);
    *ret = t != NULL ? strdup((const char *)t) : NULL;
    return *ret != NULL ? US_OK : us_fail(err, US_E_NOMEM, "no memory to read the store");
}

/* ---- transactions -------------------------------------------------------------------------- */

int64_t usi_now_ms(struct usi_store *s)
{
    struct timespec ts;
    if (s->now_ms != NULL)
        return s->now_ms(s->now_arg);
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void changed(struct usi_store *s)
{
    (void)pthread_mutex_lock(&s->watch_lock);
    s->changes++;
    void (*fn)(void *arg) = s->on_change;
    void *arg = s->on_change_arg;
    (void)pthread_cond_broadcast(&s->watch);
    (void)pthread_mutex_unlock(&s->watch_lock);
    if (fn != NULL)
        fn(arg);
}

/* After a failed fsync the kernel may have dropped the pages: nothing that follows could be trusted
 * to be on disk, whatever a second fsync says. */
static void note_error(struct usi_store *s)
{
    int rc = sqlite3_extended_errcode(s->w.db);
    if (rc == SQLITE_IOERR_FSYNC || rc == SQLITE_IOERR_DIR_FSYNC)
        atomic_store(&s->broken, true);
}

enum us_status usi_begin(struct usi_store *s, struct us_err *err)
{
    (void)pthread_mutex_lock(&s->w.lock);
    enum us_status st = US_OK;
    if (atomic_load(&s->broken))
        st = us_fail(err, US_E_IO, "the store: a write failed to reach the disk; restart needed");
    if (st == US_OK)
        st = usi_run(&s->w, USI_SQL_BEGIN, NULL, 0, err);
    s->changes_before = sqlite3_total_changes64(s->w.db);
    if (st != US_OK)
        (void)pthread_mutex_unlock(&s->w.lock);
    return st;
}

enum us_status usi_end(struct usi_store *s, enum us_status st, struct us_err *err)
{
    bool wrote = sqlite3_total_changes64(s->w.db) != s->changes_before;
    if (st == US_OK && wrote)
        st = us_failpoint("store.before-commit", err);
    if (st == US_OK && wrote) {
        st = us_failpoint("store.sync", err);
        if (st != US_OK)
            atomic_store(&s->broken, true);
    }
    if (st == US_OK)
        st = usi_run(&s->w, USI_SQL_COMMIT, NULL, 0, err);
    if (st != US_OK) {
        note_error(s);
        if (sqlite3_get_autocommit(s->w.db) == 0)
            (void)!usi_run(&s->w, USI_SQL_ROLLBACK, NULL, 0, NULL);
    }
    (void)pthread_mutex_unlock(&s->w.lock);
    if (st == US_OK && wrote) {
        (void)!us_failpoint("store.committed", NULL);
        changed(s);
    }
    return st;
}

static uint64_t sql_watch(struct us_store *base, uint64_t seen, int64_t timeout_ms)
{
    struct usi_store *s = (struct usi_store *)base;
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    (void)pthread_mutex_lock(&s->watch_lock);
    while (s->changes == seen && timeout_ms > 0 &&
           pthread_cond_timedwait(&s->watch, &s->watch_lock, &until) == 0)
        continue;
    uint64_t now = s->changes;
    (void)pthread_mutex_unlock(&s->watch_lock);
    return now;
}

static void sql_on_change(struct us_store *base, void (*fn)(void *arg), void *arg)
{
    struct usi_store *s = (struct usi_store *)base;
    (void)pthread_mutex_lock(&s->watch_lock);
    s->on_change = fn;
    s->on_change_arg = arg;
    (void)pthread_mutex_unlock(&s->watch_lock);
}

static bool sql_broken(struct us_store *base)
{
    return atomic_load(&((struct usi_store *)base)->broken);
}

/* ---- opening ------------------------------------------------------------------------------- */

static enum us_status exec(struct usi_db *d, const char *sql, struct us_err *err)
{
    int rc = sqlite3_exec(d->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? US_OK : fail(d, rc, err);
}

static enum us_status ask_int(struct usi_db *d, const char *sql, int64_t *ret, struct us_err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(d->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    if (rc == SQLITE_ROW)
        *ret = sqlite3_column_int64(q, 0);
    enum us_status st = rc == SQLITE_ROW ? US_OK : fail(d, rc, err);
    (void)sqlite3_finalize(q);
    return st;
}

/* Before anything in the file is touched. */
static enum us_status check_file(struct usi_db *d, const char *path, int64_t *schema,
                                 struct us_err *err)
{
    int64_t id = 0, n_tables = 0;
    US_TRY(ask_int(d, "PRAGMA application_id", &id, err));
    US_TRY(ask_int(d, "PRAGMA user_version", schema, err));
    US_TRY(ask_int(d, "SELECT count(*) FROM sqlite_schema", &n_tables, err));
    if (n_tables > 0 && id != APPLICATION_ID)
        return us_fail(err, US_E_UNSUPPORTED, "%s: this SQLite file is not a store of usplitd",
                       path);
    if (*schema > US_STORE_SCHEMA)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%s: a newer usplitd wrote it (schema %d; this one knows up to %d); install "
                       "that version again or restore a backup of before the upgrade",
                       path, (int)*schema, US_STORE_SCHEMA);
    return US_OK;
}

static enum us_status upgrade_one(struct usi_db *d, int64_t from, struct us_err *err)
{
    char number[96];
    (void)snprintf(number, sizeof(number), "PRAGMA application_id = %d; PRAGMA user_version = %d",
                   APPLICATION_ID, (int)from + 1);
    US_TRY(exec(d, "BEGIN IMMEDIATE", err));
    enum us_status st = exec(d, steps[from], err);
    if (st == US_OK)
        st = us_failpoint("store.upgrade", err);
    if (st == US_OK)
        st = exec(d, number, err);
    if (st == US_OK)
        st = exec(d, "COMMIT", err);
    if (st != US_OK)
        (void)sqlite3_exec(d->db, "ROLLBACK", NULL, NULL, NULL);
    return st;
}

static enum us_status connect(struct usi_db *d, const struct us_store_sqlite_options *opt,
                              struct us_err *err)
{
    int flags =
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    int rc = sqlite3_open_v2(opt->path, &d->db, flags, opt->vfs);
    if (rc != SQLITE_OK)
        return fail(d, rc, err);
    (void)sqlite3_busy_timeout(d->db, BUSY_MS);
    return US_OK;
}

/* The hashes of tokens are in it: nobody else's to read, and SQLite's files beside it follow. */
static enum us_status create_private(const char *path, struct us_err *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return us_fail(err, errno == ENOSPC ? US_E_DISK_FULL : US_E_IO, "%s: %s", path,
                       strerror(errno));
    (void)close(fd);
    return US_OK;
}

static enum us_status open_all(struct usi_store *s, const struct us_store_sqlite_options *opt,
                               struct us_err *err)
{
    int64_t schema = 0;
    US_TRY(create_private(opt->path, err));
    US_TRY(connect(&s->w, opt, err));
    US_TRY(check_file(&s->w, opt->path, &schema, err));
    US_TRY(exec(&s->w,
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; "
                "PRAGMA trusted_schema = OFF",
                err));
    for (; schema < US_STORE_SCHEMA; schema++)
        US_TRY(upgrade_one(&s->w, schema, err));
    US_TRY(connect(&s->r, opt, err));
    return exec(&s->r, "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF", err);
}

static void db_close(struct usi_db *d)
{
    for (int i = 0; i < USI_SQL_COUNT; i++)
        (void)sqlite3_finalize(d->stmt[i]);
    (void)sqlite3_close(d->db);
    (void)pthread_mutex_destroy(&d->lock);
}

static void sql_close(struct us_store *base)
{
    struct usi_store *s = (struct usi_store *)base;
    if (s == NULL)
        return;
    db_close(&s->r);
    db_close(&s->w); /* last: it brings the log into the file */
    (void)pthread_cond_destroy(&s->watch);
    (void)pthread_mutex_destroy(&s->watch_lock);
    free(s);
}

static struct us_store_ops sqlite_ops;
static pthread_once_t filled = PTHREAD_ONCE_INIT;

static void fill(void)
{
    sqlite_ops = (struct us_store_ops){.name = "sqlite",
                                       .close = sql_close,
                                       .broken = sql_broken,
                                       .watch = sql_watch,
                                       .on_change = sql_on_change};
    usi_fill_jobs(&sqlite_ops);
    usi_fill_claims(&sqlite_ops);
    usi_fill_records(&sqlite_ops);
}

enum us_status us_store_sqlite_open(const struct us_store_sqlite_options *opt,
                                    struct us_store **ret, struct us_err *err)
{
    pthread_condattr_t attr;
    struct usi_store *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the store");
    (void)pthread_once(&filled, fill);
    s->base.ops = &sqlite_ops;
    s->now_ms = opt->now_ms;
    s->now_arg = opt->now_arg;
    (void)pthread_mutex_init(&s->w.lock, NULL);
    (void)pthread_mutex_init(&s->r.lock, NULL);
    (void)pthread_mutex_init(&s->watch_lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->watch, &attr);
    (void)pthread_condattr_destroy(&attr);
    enum us_status st = open_all(s, opt, err);
    if (st != US_OK) {
        sql_close(&s->base);
        return st;
    }
    *ret = &s->base;
    return US_OK;
}
