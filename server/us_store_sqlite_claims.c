/* Jobs in the SQLite store, as workers see them: claims, leases, ends. */
#include <stdio.h>
#include <string.h>

#include "us_store_sqlite_int.h"

#define LOST_LIMIT 1000000 /* rounds of a loop that ends by itself */

struct holder {
    int64_t seq, strikes;
    enum us_job_wish wish;
    char reason[US_ERR_MSG_BYTES + 64]; /* of the wish */
};

static void read_holder(sqlite3_stmt *q, struct holder *h)
{
    *h = (struct holder){.seq = sqlite3_column_int64(q, 0),
                         .wish = (enum us_job_wish)sqlite3_column_int(q, 1),
                         .strikes = sqlite3_column_int64(q, 2)};
    usi_text(q, 3, h->reason, sizeof(h->reason));
}

/* What a client wished while it ran comes before what would become of it. */
static struct usi_turn settle(const struct holder *h, struct usi_turn otherwise)
{
    if (h->wish == US_WISH_CANCEL)
        return (struct usi_turn){.state = US_JOB_CANCELLED, .reason = h->reason};
    if (h->wish == US_WISH_PAUSE)
        return (struct usi_turn){.state = US_JOB_PAUSED, .reason = ""};
    return otherwise;
}

/* ---- claims that were lost ----------------------------------------------------------------- */

static enum us_status give_back(struct usi_store *s, const struct holder *h, int64_t max_attempts,
                                const char *why, struct us_err *err)
{
    char reason[US_ERR_MSG_BYTES];
    bool over = h->strikes >= max_attempts;
    if (over)
        (void)snprintf(reason, sizeof(reason),
                       "%s; it ended so %lld times in a row without a checkpoint between them", why,
                       (long long)h->strikes);
    const struct usi_turn turn = {.state = over ? US_JOB_FAILED : US_JOB_QUEUED,
                                  .reason = over ? reason : why};
    const struct usi_turn settled = settle(h, turn);
    return usi_set_state(s, h->seq, &settled, err);
}

static enum us_status take_back(struct us_store *base, const char *worker, int64_t max_attempts,
                                const char *why, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    US_TRY(usi_begin(s, err));
    enum us_status st = US_OK;
    for (int i = 0; i < LOST_LIMIT && st == US_OK; i++) {
        sqlite3_stmt *q;
        struct holder h = {0};
        st = usi_first(&s->w, USI_SQL_LOST, USI_ARGS(usi_t(worker), usi_i(usi_now_ms(s))), &q, err);
        if (st == US_OK)
            read_holder(q, &h);
        usi_done(q);
        if (st == US_OK)
            st = give_back(s, &h, max_attempts, why, err);
    }
    return usi_end(s, st == US_E_NOT_FOUND ? US_OK : st, err);
}

static enum us_status sql_begin(struct us_store *s, const char *worker, int64_t max_attempts,
                                struct us_err *err)
{
    return take_back(s, worker, max_attempts, "the daemon restarted", err);
}

static enum us_status sql_expire(struct us_store *s, int64_t max_attempts, struct us_err *err)
{
    return take_back(s, NULL, max_attempts, "its worker was not heard of any more", err);
}

/* ---- claiming ------------------------------------------------------------------------------ */

static enum us_status count_up(struct usi_store *s, const char *counter, int64_t *ret,
                               struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st = usi_first(&s->w, USI_SQL_COUNTER, USI_ARGS(usi_t(counter)), &q, err);
    if (st == US_OK) {
        *ret = sqlite3_column_int64(q, 0);
        st = usi_next(&s->w, q, err);
    } else if (st == US_E_NOT_FOUND) {
        st = us_fail(err, US_E_CORRUPT, "the store: its counter '%s' is missing", counter);
    }
    usi_done(q);
    return st == US_E_NOT_FOUND ? US_OK : st;
}

struct next {
    int64_t seq, class;
    char id[US_STORE_ID_BYTES], owner[US_STORE_NAME_BYTES];
};

static enum us_status find_next(struct usi_store *s, unsigned classes, struct next *ret,
                                struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st =
        usi_first(&s->w, USI_SQL_NEXT, USI_ARGS(usi_i(classes), usi_i(usi_now_ms(s))), &q, err);
    if (st == US_OK) {
        ret->seq = sqlite3_column_int64(q, 0);
        ret->class = sqlite3_column_int64(q, 3);
        usi_text(q, 1, ret->id, sizeof(ret->id));
        usi_text(q, 2, ret->owner, sizeof(ret->owner));
    }
    usi_done(q);
    return st;
}

static enum us_status take(struct usi_store *s, const char *worker, int64_t lease_ms,
                           const struct next *n, int64_t *token, struct us_err *err)
{
    int64_t turn, now = usi_now_ms(s);
    US_TRY(count_up(s, "token", token, err));
    US_TRY(count_up(s, "turn", &turn, err));
    US_TRY(
        usi_run(&s->w, USI_SQL_TURN, USI_ARGS(usi_i(n->class), usi_t(n->owner), usi_i(turn)), err));
    US_TRY(usi_run(
        &s->w, USI_SQL_TAKE,
        USI_ARGS(usi_i(n->seq), usi_t(worker), usi_i(*token), usi_i(now + lease_ms), usi_i(now)),
        err));
    return usi_tell_state(s, n->seq, US_JOB_RUNNING, err);
}

static enum us_status sql_claim(struct us_store *base, const char *worker, unsigned classes,
                                int64_t lease_ms, struct us_store_claim *ret,
                                struct us_store_job *job, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct us_store_job taken = {0};
    struct next next = {0};
    int64_t token = 0;
    US_TRY(usi_begin(s, err));
    enum us_status st = find_next(s, classes, &next, err);
    if (st == US_OK)
        st = take(s, worker, lease_ms, &next, &token, err);
    if (st == US_OK)
        st = usi_get(&s->w, next.id, &taken, err); /* as the transaction sees it */
    st = usi_end(s, st, err);
    if (st != US_OK) {
        us_store_job_release(&taken);
        return st;
    }
    *ret = (struct us_store_claim){.token = token};
    memcpy(ret->id, next.id, sizeof(next.id));
    *job = taken;
    return US_OK;
}

/* ---- with a claim -------------------------------------------------------------------------- */

static enum us_status check_claim(struct usi_store *s, const struct us_store_claim *c,
                                  struct holder *ret, struct us_err *err)
{
    sqlite3_stmt *q;
    enum us_status st =
        usi_first(&s->w, USI_SQL_HOLDER, USI_ARGS(usi_t(c->id), usi_i(c->token)), &q, err);
    if (st == US_OK)
        read_holder(q, ret);
    usi_done(q);
    return st == US_E_NOT_FOUND
               ? us_fail(err, US_E_CANCELLED, "the job %s is not this worker's any more", c->id)
               : st;
}

static enum us_status sql_heartbeat(struct us_store *base, const struct us_store_claim *c,
                                    const struct us_store_beat *beat, enum us_job_wish *ret_wish,
                                    struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct holder h = {0};
    US_TRY(usi_begin(s, err));
    enum us_status st = check_claim(s, c, &h, err);
    if (st == US_OK)
        st = usi_run(&s->w, USI_SQL_BEAT,
                     USI_ARGS(usi_i(h.seq), usi_i(usi_now_ms(s) + beat->lease_ms),
                              usi_t(beat->progress), usi_i(beat->advanced)),
                     err);
    if (st == US_OK && beat->kind != NULL)
        st = usi_tell(s, h.seq, beat->kind, beat->data, err);
    US_TRY(usi_end(s, st, err));
    *ret_wish = h.wish;
    return US_OK;
}

static enum us_status sql_complete(struct us_store *base, const struct us_store_claim *c,
                                   const char *progress, const char *result, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    const struct usi_turn turn = {.state = US_JOB_SUCCEEDED, .reason = ""};
    struct holder h = {0};
    US_TRY(usi_begin(s, err));
    enum us_status st = check_claim(s, c, &h, err);
    if (st == US_OK)
        st = usi_run(&s->w, USI_SQL_FINISH, USI_ARGS(usi_i(h.seq), usi_t(progress), usi_t(result)),
                     err);
    if (st == US_OK)
        st = usi_set_state(s, h.seq, &turn, err);
    return usi_end(s, st, err);
}

static enum us_status sql_fail(struct us_store *base, const struct us_store_claim *c,
                               const char *reason, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    const struct usi_turn turn = {.state = US_JOB_FAILED, .reason = reason};
    struct holder h = {0};
    US_TRY(usi_begin(s, err));
    enum us_status st = check_claim(s, c, &h, err);
    if (st == US_OK)
        st = usi_set_state(s, h.seq, &turn, err);
    return usi_end(s, st, err);
}

static enum us_status sql_requeue(struct us_store *base, const struct us_store_claim *c,
                                  const char *reason, int64_t delay_ms,
                                  enum us_job_state *ret_state, struct us_err *err)
{
    struct usi_store *s = (struct usi_store *)base;
    struct usi_turn turn = {.state = US_JOB_QUEUED, .reason = reason};
    struct holder h = {0};
    US_TRY(usi_begin(s, err));
    enum us_status st = check_claim(s, c, &h, err);
    if (st == US_OK) {
        turn.not_before_ms = delay_ms > 0 ? usi_now_ms(s) + delay_ms : 0;
        turn = settle(&h, turn);
        st = usi_run(&s->w, USI_SQL_UNSTRIKE, USI_ARGS(usi_i(h.seq)), err);
    }
    if (st == US_OK)
        st = usi_set_state(s, h.seq, &turn, err);
    US_TRY(usi_end(s, st, err));
    *ret_state = turn.state;
    return US_OK;
}

void usi_fill_claims(struct us_store_ops *ops)
{
    ops->begin = sql_begin;
    ops->expire = sql_expire;
    ops->claim = sql_claim;
    ops->heartbeat = sql_heartbeat;
    ops->complete = sql_complete;
    ops->fail = sql_fail;
    ops->requeue = sql_requeue;
}
