/* Jobs in the SQLite store, as clients see them: new ones, questions, wishes, events. */
#include <stdlib.h>
#include <string.h>

#include "us_store_sqlite_int.h"

static enum us_status no_job(const char *id, struct us_err *err)
{
    return us_fail(err, US_E_NOT_FOUND, "there is no job '%s'", id);
}

/* ---- state and events ---------------------------------------------------------------------- */

/* The event is in: its number is used, those too old go. */
static enum us_status told(struct usi_store *s, int64_t seq, struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st = usi_first(&s->w, USI_SQL_TOLD, USI_ARGS(usi_i(seq)), &q, err);
    int64_t next = st == US_OK ? sqlite3_column_int64(q, 0) : 0;
    if (st == US_OK) /* RETURNING: the update is complete with the last step only */
        st = usi_next(&s->w, q, err) == US_E_NOT_FOUND ? US_OK : US_E_IO;
    usi_done(q);
    if (st != US_OK)
        return us_fail(err, st == US_E_NOT_FOUND ? US_E_IO : st, "the store: an event was lost");
    return usi_run(&s->w, USI_SQL_PRUNE, USI_ARGS(usi_i(seq), usi_i(next - US_STORE_EVENTS_KEPT)),
                   err);
}

enum us_status usi_tell(struct usi_store *s, int64_t seq, const char *kind, const char *data,
                        struct us_err *err)
{
    US_TRY(usi_run(&s->w, USI_SQL_TELL,
                   USI_ARGS(usi_i(seq), usi_i(usi_now_ms(s)), usi_t(kind), usi_t(data)), err));
    return told(s, seq, err);
}

enum us_status usi_tell_state(struct usi_store *s, int64_t seq, enum us_job_state state,
                              struct us_err *err)
{
    US_TRY(usi_run(&s->w, USI_SQL_TELL_STATE,
                   USI_ARGS(usi_i(seq), usi_i(usi_now_ms(s)), usi_t(us_job_state_name(state))),
                   err));
    return told(s, seq, err);
}

/* A reason may quote a stranger's bytes; events are JSON, hence UTF-8. */
static void clean(char *to, size_t size, const char *from)
{
    size_t n = 0;
    for (; from[n] != '\0' && n + 1 < size; n++)
        to[n] = (unsigned char)from[n] < 0x80 && (unsigned char)from[n] >= 0x20 ? from[n] : '?';
    to[n] = '\0';
}

enum us_status usi_set_state(struct usi_store *s, int64_t seq, const struct usi_turn *turn,
                             struct us_err *err)
{
    char reason[US_ERR_MSG_BYTES + 64];
    clean(reason, sizeof(reason), turn->reason);
    US_TRY(usi_run(&s->w, USI_SQL_JOB_STATE,
                   USI_ARGS(usi_i(seq), usi_i(turn->state), usi_t(reason),
                            usi_i(turn->not_before_ms), usi_i(usi_now_ms(s))),
                   err));
    return usi_tell_state(s, seq, turn->state, err);
}

/* ---- new ones ------------------------------------------------------------------------------ */

/* E_NOT_FOUND: the key is new. */
static enum us_status look_up_key(struct usi_db *d, const struct us_store_new *job,
                                  char ret_id[US_STORE_ID_BYTES], struct us_err *err)
{
    sqlite3_stmt *q;
    if (job->key == NULL)
        return US_E_NOT_FOUND;
    enum us_status st =
        usi_first(d, USI_SQL_KEY, USI_ARGS(usi_t(job->owner), usi_t(job->key)), &q, err);
    if (st == US_OK) {
        char id[US_STORE_ID_BYTES];
        usi_text(q, 0, id, sizeof(id));
        const void *fp = sqlite3_column_blob(q, 1);
        if (fp == NULL || sqlite3_column_bytes(q, 1) != US_STORE_HASH_BYTES ||
            memcmp(fp, job->fingerprint, US_STORE_HASH_BYTES) != 0)
            st = us_fail(err, US_E_ARG,
                         "Idempotency-Key: this key was used with another body, for job %s", id);
        else
            memcpy(ret_id, id, sizeof(id));
    }
    usi_done(q);
    return st;
}

static enum us_status sql_find_key(struct us_store *base, const struct us_store_new *job,
                                   char ret_id[US_STORE_ID_BYTES], struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st = look_up_key(&s->r, job, ret_id, err);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st;
}

static enum us_status insert(struct usi_store *s, const struct us_store_new *job,
                             struct us_err *err)
{
    enum us_status st = usi_run(&s->w, USI_SQL_JOB_PUT,
                                USI_ARGS(usi_t(job->id), usi_t(job->type), usi_i(job->class),
                                         usi_t(job->owner), usi_t(job->dataset), usi_t(job->model),
                                         usi_t(job->spec), usi_i(usi_now_ms(s))),
                                err);
    if (st == US_E_EXISTS)
        return us_fail(err, US_E_EXISTS, "there is a job '%s' already", job->id);
    US_TRY(st);
    int64_t seq = sqlite3_last_insert_rowid(s->w.db);
    if (job->key != NULL)
        US_TRY(usi_run(&s->w, USI_SQL_KEY_PUT,
                       USI_ARGS(usi_t(job->owner), usi_t(job->key),
                                usi_b(job->fingerprint, US_STORE_HASH_BYTES), usi_i(seq)),
                       err));
    return usi_tell_state(s, seq, US_JOB_QUEUED, err);
}

static enum us_status sql_put(struct us_store *base, const struct us_store_new *job,
                              char ret_id[US_STORE_ID_BYTES], bool *repeated, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    char id[US_STORE_ID_BYTES] = "";
    if (strlen(job->id) >= US_STORE_ID_BYTES)
        return us_fail(err, US_E_ARG, "a job's id has at most %d bytes", US_STORE_ID_BYTES - 1);
    US_TRY(usi_begin(s, err));
    enum us_status st = look_up_key(&s->w, job, id, err);
    bool again = st == US_OK;
    if (st == US_E_NOT_FOUND) {
        memcpy(id, job->id, strlen(job->id) + 1);
        st = insert(s, job, err);
    }
    US_TRY(usi_end(s, st, err));
    memcpy(ret_id, id, sizeof(id));
    *repeated = again;
    return US_OK;
}

static enum us_status insert_past(struct usi_store *s, const struct us_store_job *j,
                                  struct us_err *err)
{
    enum us_status st = usi_run(
        &s->w, USI_SQL_JOB_ADOPT,
        USI_ARGS(usi_t(j->id), usi_t(j->type), usi_i(j->class), usi_t(j->owner), usi_i(j->state),
                 usi_t(j->dataset), usi_t(j->model), usi_t(j->spec), usi_t(j->progress),
                 usi_t(j->result), usi_i(j->created_ms), usi_i(j->started_ms), usi_i(j->ended_ms),
                 usi_i(j->attempts), usi_t(j->reason)),
        err);
    if (st == US_E_EXISTS)
        return us_fail(err, US_E_EXISTS, "there is a job '%s' already", j->id);
    US_TRY(st);
    return usi_tell_state(s, sqlite3_last_insert_rowid(s->w.db), j->state, err);
}

static enum us_status sql_adopt(struct us_store *base, const struct us_store_job *job,
                                struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    if (job->state == US_JOB_RUNNING)
        return us_fail(err, US_E_ARG, "a running job cannot be adopted");
    US_TRY(usi_begin(s, err));
    return usi_end(s, insert_past(s, job, err), err);
}

/* ---- wishes of clients --------------------------------------------------------------------- */

struct found {
    int64_t seq, wish, next_event;
    enum us_job_state state;
};

static enum us_status find(struct usi_db *d, const char *id, struct found *ret, struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st = usi_first(d, USI_SQL_JOB_FIND, USI_ARGS(usi_t(id)), &q, err);
    if (st == US_OK)
        *ret = (struct found){.seq = sqlite3_column_int64(q, 0),
                              .state = (enum us_job_state)sqlite3_column_int(q, 1),
                              .wish = sqlite3_column_int64(q, 2),
                              .next_event = sqlite3_column_int64(q, 3)};
    usi_done(q);
    return st == US_E_NOT_FOUND ? no_job(id, err) : st;
}

static enum us_status wish(struct usi_store *s, const struct found *f, enum us_job_wish w,
                           const char *reason, struct us_err *err)
{
    return usi_run(&s->w, USI_SQL_JOB_WISH, USI_ARGS(usi_i(f->seq), usi_i(w), usi_t(reason)), err);
}

/* What each wish does, by the state it meets; E_EXISTS where it comes too late. */
static enum us_status apply(struct usi_store *s, const struct found *f, enum us_job_wish w,
                            const char *reason, struct us_err *err)
{
    bool idle = f->state == US_JOB_QUEUED || f->state == US_JOB_PAUSED;
    if (us_job_ended(f->state))
        return us_fail(err, US_E_EXISTS, "the job has ended: %s", us_job_state_name(f->state));
    if (f->state == US_JOB_RUNNING && f->wish == US_WISH_CANCEL)
        return w == US_WISH_CANCEL ? US_OK
                                   : us_fail(err, US_E_EXISTS, "the job is being cancelled");
    if (f->state == US_JOB_RUNNING)
        return wish(s, f, w, reason, err);
    struct usi_turn turn = {.reason = reason};
    turn.state = w == US_WISH_CANCEL  ? US_JOB_CANCELLED
                 : w == US_WISH_PAUSE ? US_JOB_PAUSED
                                      : US_JOB_QUEUED;
    return idle && turn.state != f->state ? usi_set_state(s, f->seq, &turn, err) : US_OK;
}

static enum us_status ask(struct us_store *base, const char *id, enum us_job_wish w,
                          const char *reason, enum us_job_state *ret_state, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct found f = {0};
    US_TRY(usi_begin(s, err));
    enum us_status st = find(&s->w, id, &f, err);
    if (st == US_OK)
        st = apply(s, &f, w, reason, err);
    if (st == US_OK)
        st = find(&s->w, id, &f, err);
    US_TRY(usi_end(s, st, err));
    *ret_state = f.state;
    return US_OK;
}

static enum us_status sql_cancel(struct us_store *s, const char *id, const char *reason,
                                 enum us_job_state *ret_state, struct us_err *err)
{
    return ask(s, id, US_WISH_CANCEL, reason, ret_state, err);
}

static enum us_status sql_pause(struct us_store *s, const char *id, enum us_job_state *ret_state,
                                struct us_err *err)
{
    return ask(s, id, US_WISH_PAUSE, "", ret_state, err);
}

static enum us_status sql_resume(struct us_store *s, const char *id, enum us_job_state *ret_state,
                                 struct us_err *err)
{
    return ask(s, id, US_WISH_NONE, "", ret_state, err);
}

/* ---- questions ----------------------------------------------------------------------------- */

static enum us_status read_job(sqlite3_stmt *q, struct us_store_job *ret, struct us_err *err)
{
    struct us_store_job j = {.class = (enum us_job_class)sqlite3_column_int(q, 5),
                             .state = (enum us_job_state)sqlite3_column_int(q, 6),
                             .created_ms = sqlite3_column_int64(q, 8),
                             .started_ms = sqlite3_column_int64(q, 9),
                             .ended_ms = sqlite3_column_int64(q, 10),
                             .attempts = sqlite3_column_int64(q, 11),
                             .position = sqlite3_column_int64(q, 12)};
    usi_text(q, 0, j.id, sizeof(j.id));
    usi_text(q, 1, j.type, sizeof(j.type));
    usi_text(q, 2, j.owner, sizeof(j.owner));
    usi_text(q, 3, j.dataset, sizeof(j.dataset));
    usi_text(q, 4, j.model, sizeof(j.model));
    usi_text(q, 7, j.reason, sizeof(j.reason));
    enum us_status st = usi_text_dup(q, 13, &j.spec, err);
    if (st == US_OK)
        st = usi_text_dup(q, 14, &j.progress, err);
    if (st == US_OK)
        st = usi_text_dup(q, 15, &j.result, err);
    if (st != US_OK) {
        us_store_job_release(&j);
        return st;
    }
    *ret = j;
    return US_OK;
}

static void free_jobs(struct us_store_job *list, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        us_store_job_release(&list[i]);
    free(list);
}

#define MAX_LISTED 1000000

static enum us_status select_jobs(struct usi_db *d, const struct us_store_filter *f,
                                  struct us_store_job **ret, int64_t *ret_n, struct us_err *err)
{
    struct us_store_job *list = NULL;
    int64_t n = 0, room = 0;
    sqlite3_stmt *q;
    enum us_status st =
        usi_first(d, USI_SQL_SELECT_JOB,
                  USI_ARGS(usi_i(f->states), usi_t(f->id), usi_t(f->owner), usi_t(f->dataset),
                           usi_t(f->model), usi_i(f->limit > 0 ? f->limit : MAX_LISTED)),
                  &q, err);
    for (; st == US_OK; st = usi_next(d, q, err)) {
        if (n == room) {
            room = 2 * room + 8;
            struct us_store_job *more = reallocarray(list, (size_t)room, sizeof(*more));
            if (more == NULL) {
                st = us_fail(err, US_E_NOMEM, "no memory to list the jobs");
                break;
            }
            list = more;
        }
        st = read_job(q, &list[n], err);
        if (st != US_OK)
            break;
        n++;
    }
    usi_done(q);
    if (st != US_E_NOT_FOUND) {
        free_jobs(list, n);
        return st;
    }
    *ret = list;
    *ret_n = n;
    return US_OK;
}

static enum us_status sql_list(struct us_store *base, const struct us_store_filter *f,
                               struct us_store_job **ret, int64_t *n, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st = select_jobs(&s->r, f, ret, n, err);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st;
}

enum us_status usi_get(struct usi_db *d, const char *id, struct us_store_job *ret,
                       struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st = usi_first(d, USI_SQL_SELECT_ONE, USI_ARGS(usi_t(id)), &q, err);
    if (st == US_OK)
        st = read_job(q, ret, err);
    usi_done(q);
    return st == US_E_NOT_FOUND ? no_job(id, err) : st;
}

static enum us_status sql_get(struct us_store *base, const char *id, struct us_store_job *ret,
                              struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st = usi_get(&s->r, id, ret, err);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st;
}

static enum us_status sql_count(struct us_store *base, const struct us_store_filter *f, int64_t *n,
                                struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    sqlite3_stmt *q;
    (void)pthread_mutex_lock(&s->r.lock);
    enum us_status st = usi_first(&s->r, USI_SQL_COUNT_JOBS,
                                  USI_ARGS(usi_i(f->states), usi_t(f->id), usi_t(f->owner),
                                           usi_t(f->dataset), usi_t(f->model)),
                                  &q, err);
    if (st == US_OK)
        *n = sqlite3_column_int64(q, 0);
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    return st;
}

static enum us_status sql_events(struct us_store *base, const char *id, uint64_t *after,
                                 us_store_event_fn fn, void *arg, bool *ended, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct found f = {0};
    bool all = true;
    (void)pthread_mutex_lock(&s->r.lock);
    /* The row first: if it says ended, every event up to its number is there to be read. */
    enum us_status st = find(&s->r, id, &f, err);
    sqlite3_stmt *q = NULL;
    if (st == US_OK) {
        uint64_t from = *after < (uint64_t)f.next_event ? *after : 0;
        st =
            usi_first(&s->r, USI_SQL_EVENTS, USI_ARGS(usi_i(f.seq), usi_i((int64_t)from)), &q, err);
        for (; st == US_OK && all; st = all ? usi_next(&s->r, q, err) : US_OK) {
            const struct us_store_event e = {.id = (uint64_t)sqlite3_column_int64(q, 0),
                                             .kind = (const char *)sqlite3_column_text(q, 1),
                                             .data = (const char *)sqlite3_column_text(q, 2)};
            if (e.kind == NULL || e.data == NULL) {
                st = us_fail(err, US_E_NOMEM, "no memory to read the store");
                break;
            }
            all = fn(arg, &e);
            if (all)
                *after = e.id;
        }
        st = st == US_E_NOT_FOUND ? US_OK : st;
    }
    usi_done(q);
    (void)pthread_mutex_unlock(&s->r.lock);
    if (st == US_OK)
        *ended = us_job_ended(f.state) && all;
    return st;
}

/* ---- the end ------------------------------------------------------------------------------- */

static enum us_status sql_forget(struct us_store *base, int64_t max_age_ms, int64_t max_count,
                                 char (*ids)[US_STORE_ID_BYTES], int64_t room, int64_t *n,
                                 struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    int64_t before = max_age_ms > 0 ? usi_now_ms(s) - max_age_ms : 0, found = 0;
    US_TRY(usi_begin(s, err));
    enum us_status st = US_OK;
    for (; found < room && st == US_OK; found++) {
        sqlite3_stmt *q;
        st = usi_first(&s->w, USI_SQL_FORGET, USI_ARGS(usi_i(before), usi_i(max_count), usi_i(1)),
                       &q, err);
        int64_t seq = st == US_OK ? sqlite3_column_int64(q, 0) : 0;
        if (st == US_OK)
            usi_text(q, 1, ids[found], US_STORE_ID_BYTES);
        usi_done(q);
        if (st == US_OK)
            st = usi_run(&s->w, USI_SQL_JOB_DELETE, USI_ARGS(usi_i(seq)), err);
        if (st != US_OK)
            break;
    }
    US_TRY(usi_end(s, st == US_E_NOT_FOUND ? US_OK : st, err));
    *n = found;
    return US_OK;
}

void usi_fill_jobs(struct us_store_ops *ops)
{
    ops->put = sql_put;
    ops->adopt = sql_adopt;
    ops->find_key = sql_find_key;
    ops->cancel = sql_cancel;
    ops->pause = sql_pause;
    ops->resume = sql_resume;
    ops->get = sql_get;
    ops->list = sql_list;
    ops->count = sql_count;
    ops->events = sql_events;
    ops->forget = sql_forget;
}
