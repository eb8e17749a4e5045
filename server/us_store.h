/*
 * The durable state of the daemon: jobs and their events, who owns which model and data set,
 * tokens. This header is the whole of what the server knows of it; bytes (images, models,
 * checkpoints) are files, and never pass through here. SQLite stands behind it (us_store_sqlite.h);
 * another backend fills the same table and passes tests/unit/test_store.c.
 *
 * What a store promises (research: SQLite's and etcd's promises, see docs/ARCHITECTURE.md)
 * - A call that returned US_OK survives kill -9 and power loss; one that failed changed nothing.
 *   One that was killed did all of its work or none.
 * - A job runs for one claim at a time. A claim has a fencing token, greater than every one before;
 *   it is over when it was ended, or taken away because its lease ran out (expire) or its worker
 * began anew (begin); from then on every call with it is refused (E_CANCELLED), so that a late
 * worker cannot overwrite anything.
 * - A job ends once. What ended stays as it is until it is forgotten.
 * - Order of claims: class (interactive, batch, train); within a class owners take turns; within an
 *   owner the oldest first.
 * - Every change of a job's state is an event, committed with it. Events of a job are numbered 1,
 * 2, 3 .. without gaps; the last US_STORE_EVENTS_KEPT of each are kept.
 *
 * Every call may be made from any thread, and none is made with a lock held by the backend; reads
 * do not wait for writes. Errors of all calls: E_DISK_FULL, E_IO, E_NOMEM, E_CORRUPT; others stand
 * at the call. After a failed fsync nobody can tell whether that one call is on disk: every later
 * write is E_IO and `broken` is true; end the process and open the store anew, which finds all or
 * nothing of it.
 *
 * Texts that a call returns belong to the caller (us_store_job_release ..). Times are milliseconds
 * since 1970, 0 = not yet.
 */
#ifndef US_STORE_H
#define US_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

#define US_STORE_ID_BYTES    48  /* of a job, with NUL */
#define US_STORE_NAME_BYTES  128 /* owners, workers, models, data sets, with NUL */
#define US_STORE_EVENTS_KEPT 1000
#define US_STORE_HASH_BYTES  32 /* SHA-256 */

enum us_job_class { US_JOB_INTERACTIVE = 0, US_JOB_BATCH, US_JOB_TRAIN, US_JOB_CLASS_COUNT };

enum us_job_state {
    US_JOB_QUEUED = 0,
    US_JOB_RUNNING,
    US_JOB_SUCCEEDED,
    US_JOB_FAILED,
    US_JOB_CANCELLED,
    US_JOB_PAUSED, /* by a client; waits for resume */
    US_JOB_STATE_COUNT
};
#define US_JOB_BIT(state) (1U << (unsigned)(state))
#define US_JOBS_UNFINISHED                                                                         \
    (US_JOB_BIT(US_JOB_QUEUED) | US_JOB_BIT(US_JOB_RUNNING) | US_JOB_BIT(US_JOB_PAUSED))
#define US_JOBS_ENDED                                                                              \
    (US_JOB_BIT(US_JOB_SUCCEEDED) | US_JOB_BIT(US_JOB_FAILED) | US_JOB_BIT(US_JOB_CANCELLED))

const char *us_job_state_name(enum us_job_state s); /* "queued" .. */
static inline bool us_job_ended(enum us_job_state s)
{
    return (US_JOB_BIT(s) & US_JOBS_ENDED) != 0;
}

/* What a client asked of a running job; its worker learns it with the next heartbeat. */
enum us_job_wish { US_WISH_NONE = 0, US_WISH_PAUSE, US_WISH_CANCEL };

/* A job to be. All texts are borrowed and must be there, but key. */
struct us_store_new {
    const char *id, *type, *owner;
    enum us_job_class class;
    const char *dataset, *model;              /* what it reads and makes; "" = none */
    const char *spec;                         /* all that its worker needs, JSON */
    const char *key;                          /* Idempotency-Key, or NULL */
    uint8_t fingerprint[US_STORE_HASH_BYTES]; /* of what the client sent, beside key */
};

/* A job as it stands. */
struct us_store_job {
    char id[US_STORE_ID_BYTES], type[16], owner[US_STORE_NAME_BYTES];
    char dataset[US_STORE_NAME_BYTES], model[US_STORE_NAME_BYTES];
    enum us_job_class class;
    enum us_job_state state;
    char reason[US_ERR_MSG_BYTES + 64]; /* "" = none */
    int64_t created_ms, started_ms, ended_ms;
    int64_t attempts;               /* claims so far */
    int64_t position;               /* queued: 1 = next of its class; else 0 */
    char *spec, *progress, *result; /* JSON; progress and result may be NULL */
};
void us_store_job_release(struct us_store_job *job);

/* The right to run one job. */
struct us_store_claim {
    char id[US_STORE_ID_BYTES];
    int64_t token;
};

struct us_store_beat {
    int64_t lease_ms;        /* from now */
    const char *progress;    /* JSON, or NULL: as before */
    bool advanced;           /* a checkpoint was written: earlier failed attempts do not count */
    const char *kind, *data; /* an event to tell, data JSON; or NULL */
};

/* Which jobs; zero or NULL: any. */
struct us_store_filter {
    unsigned states; /* US_JOB_BITs */
    const char *id, *owner, *dataset, *model;
    int64_t limit;
};

struct us_store_event {
    uint64_t id; /* per job, from 1 */
    const char *kind, *data;
};
/* Returns false to stop; the event it refused counts as not told. */
typedef bool (*us_store_event_fn)(void *arg, const struct us_store_event *e);

/* Who owns a model or data set, and what is known of it. The files are the truth; the record of a
 * name is written after its file and removed after it. */
enum us_record_kind { US_RECORD_MODEL = 0, US_RECORD_DATASET, US_RECORD_KIND_COUNT };
struct us_store_record {
    enum us_record_kind kind;
    char name[US_STORE_NAME_BYTES], owner[US_STORE_NAME_BYTES];
    char sha256[65];                       /* "" = not known */
    int64_t bytes, created_ms, changed_ms; /* the times are the store's */
};

/* A bearer token: only its hash is kept. */
struct us_store_token {
    char id[US_STORE_NAME_BYTES];    /* its visible prefix */
    char owner[US_STORE_NAME_BYTES]; /* several tokens may have one owner */
    uint8_t hash[US_STORE_HASH_BYTES];
    uint32_t scopes;                /* bits of the server's own */
    int64_t max_bytes, max_jobs;    /* quota; 0 = none */
    enum us_job_class ceiling;      /* the best class it may ask for */
    int64_t created_ms, expires_ms; /* 0 = never */
};

struct us_store;

struct us_store_ops {
    const char *name;
    void (*close)(struct us_store *s); /* NULL is fine */
    bool (*broken)(struct us_store *s);

    /* ---- jobs: clients ---- */

    /* A new queued job. With a key that its owner has used: the same fingerprint gives that job's
     * id again and *repeated, another is E_ARG. E_EXISTS: the id is taken. */
    enum us_status (*put)(struct us_store *s, const struct us_store_new *job,
                          char ret_id[US_STORE_ID_BYTES], bool *repeated, struct us_err *err);
    /* A job with a past (an upgrade, a restore): as it stands, but neither running nor claimed; its
     * one event is its state. E_EXISTS: the id is taken. */
    enum us_status (*adopt)(struct us_store *s, const struct us_store_job *job, struct us_err *err);
    /* The job of a key, as put would find it. E_NOT_FOUND: the key is new. E_ARG as for put. */
    enum us_status (*find_key)(struct us_store *s, const struct us_store_new *job,
                               char ret_id[US_STORE_ID_BYTES], struct us_err *err);
    /* Queued and paused: cancelled at once. Running: it is told (wish). E_NOT_FOUND; E_EXISTS: it
     * has ended. *ret_state: what it is in afterwards. The same holds for pause; resume puts a
     * paused one back into the queue and takes back a pause that no worker has followed yet. */
    enum us_status (*cancel)(struct us_store *s, const char *id, const char *reason,
                             enum us_job_state *ret_state, struct us_err *err);
    enum us_status (*pause)(struct us_store *s, const char *id, enum us_job_state *ret_state,
                            struct us_err *err);
    enum us_status (*resume)(struct us_store *s, const char *id, enum us_job_state *ret_state,
                             struct us_err *err);
    /* E_NOT_FOUND. *ret only on success. */
    enum us_status (*get)(struct us_store *s, const char *id, struct us_store_job *ret,
                          struct us_err *err);
    /* Newest first. Caller releases each and frees the array. */
    enum us_status (*list)(struct us_store *s, const struct us_store_filter *f,
                           struct us_store_job **ret, int64_t *n, struct us_err *err);
    enum us_status (*count)(struct us_store *s, const struct us_store_filter *f, int64_t *n,
                            struct us_err *err);
    /* Forgets ended jobs: those that ended more than max_age_ms ago (0: any age is fine), and the
     * oldest beyond max_count. At most room ids are returned, the caller removes their files. */
    enum us_status (*forget)(struct us_store *s, int64_t max_age_ms, int64_t max_count,
                             char (*ids)[US_STORE_ID_BYTES], int64_t room, int64_t *n,
                             struct us_err *err);

    /* ---- jobs: workers ---- */

    /* A worker of this name begins: what it left claimed goes back to the queue, or fails where
     * max_attempts claims in a row ended so without a checkpoint between them. */
    enum us_status (*begin)(struct us_store *s, const char *worker, int64_t max_attempts,
                            struct us_err *err);
    /* The same for claims of anybody whose lease is over. */
    enum us_status (*expire)(struct us_store *s, int64_t max_attempts, struct us_err *err);
    /* The next job of these classes (bits) becomes running. E_NOT_FOUND: there is none now. */
    enum us_status (*claim)(struct us_store *s, const char *worker, unsigned classes,
                            int64_t lease_ms, struct us_store_claim *ret, struct us_store_job *job,
                            struct us_err *err);
    enum us_status (*heartbeat)(struct us_store *s, const struct us_store_claim *c,
                                const struct us_store_beat *beat, enum us_job_wish *ret_wish,
                                struct us_err *err);
    /* The ends of a claim. progress as in a beat. */
    enum us_status (*complete)(struct us_store *s, const struct us_store_claim *c,
                               const char *progress, const char *result, struct us_err *err);
    enum us_status (*fail)(struct us_store *s, const struct us_store_claim *c, const char *reason,
                           struct us_err *err);
    /* Gives the job back, not before delay_ms to be claimed again: queued, or what a client wished
     * meanwhile. Such an attempt does not count as failed. */
    enum us_status (*requeue)(struct us_store *s, const struct us_store_claim *c,
                              const char *reason, int64_t delay_ms, enum us_job_state *ret_state,
                              struct us_err *err);

    /* ---- watching ---- */

    /* Calls fn for the kept events of a job after number *after, oldest first, and moves *after on.
     * *ended: the job has, and all was told. E_NOT_FOUND. */
    enum us_status (*events)(struct us_store *s, const char *id, uint64_t *after,
                             us_store_event_fn fn, void *arg, bool *ended, struct us_err *err);
    /* A number that grows with every change. Waits until it differs from `seen`, at most
     * timeout_ms (0: at once); then a claim or a list may say something new. */
    uint64_t (*watch)(struct us_store *s, uint64_t seen, int64_t timeout_ms);
    /* fn is called after every change, without a lock; from the thread that made it. */
    void (*on_change)(struct us_store *s, void (*fn)(void *arg), void *arg);

    /* ---- models, data sets, tokens ---- */

    /* Writes or replaces; created_ms of an existing one stays, and its owner too unless it is "".
     */
    enum us_status (*record_put)(struct us_store *s, const struct us_store_record *r,
                                 struct us_err *err);
    /* E_NOT_FOUND. */
    enum us_status (*record_get)(struct us_store *s, enum us_record_kind kind, const char *name,
                                 struct us_store_record *ret, struct us_err *err);
    /* By name; owner NULL: of all. Caller frees. */
    enum us_status (*record_list)(struct us_store *s, enum us_record_kind kind, const char *owner,
                                  struct us_store_record **ret, int64_t *n, struct us_err *err);
    /* US_OK also where there was none. */
    enum us_status (*record_delete)(struct us_store *s, enum us_record_kind kind, const char *name,
                                    struct us_err *err);
    /* E_EXISTS: id or hash is taken. */
    enum us_status (*token_put)(struct us_store *s, const struct us_store_token *t,
                                struct us_err *err);
    /* E_NOT_FOUND: unknown or expired. The lookup is by hash: it tells nothing by its time. */
    enum us_status (*token_find)(struct us_store *s, const uint8_t hash[US_STORE_HASH_BYTES],
                                 struct us_store_token *ret, struct us_err *err);
    enum us_status (*token_list)(struct us_store *s, struct us_store_token **ret, int64_t *n,
                                 struct us_err *err);
    /* E_NOT_FOUND. */
    enum us_status (*token_delete)(struct us_store *s, const char *id, struct us_err *err);
};

/* A backend's own struct begins with it. */
struct us_store {
    const struct us_store_ops *ops;
};

#endif
