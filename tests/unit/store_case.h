/*
 * What the contract tests of a store share (server/us_store.h): the list of backends, a fresh store
 * per test with a clock of its own, and words that read well. Every backend passes every test: a
 * new one adds a line to `backends`.
 */
#ifndef STORE_CASE_H
#define STORE_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#undef fail /* cmocka's; a store has one too */

#include "us_store.h"
#include "us_store_sqlite.h"

#define LEASE_MS 1000
#define ALL      ((1U << US_JOB_CLASS_COUNT) - 1)

typedef enum us_status (*open_fn)(const char *path, int64_t (*now)(void *arg), void *arg,
                                  struct us_store **ret, struct us_err *err);

static inline enum us_status open_sqlite(const char *path, int64_t (*now)(void *arg), void *arg,
                                         struct us_store **ret, struct us_err *err)
{
    return us_store_sqlite_open(
        &(struct us_store_sqlite_options){.path = path, .now_ms = now, .now_arg = arg}, ret, err);
}

static const struct {
    const char *name;
    open_fn open;
} backends[] = {{"sqlite", open_sqlite}};

struct env {
    char path[64];
    open_fn open;
    int64_t now;
    struct us_store *s;
    struct us_err err;
};

static inline int64_t clock_of(void *arg)
{
    return ((struct env *)arg)->now;
}

static inline void env_open(struct env *e)
{
    assert_int_equal(e->open(e->path, clock_of, e, &e->s, &e->err), US_OK);
}

static inline void env_reopen(struct env *e)
{
    e->s->ops->close(e->s);
    env_open(e);
}

static size_t backend;

static inline int setup(void **state)
{
    struct env *e = calloc(1, sizeof(*e));
    e->open = backends[backend].open;
    (void)snprintf(e->path, sizeof(e->path), "test-store-XXXXXX");
    int fd = mkstemp(e->path);
    assert_true(fd >= 0);
    (void)close(fd);
    e->now = 1000000;
    env_open(e);
    *state = e;
    return 0;
}

static inline int teardown(void **state)
{
    struct env *e = *state;
    char path[80];
    e->s->ops->close(e->s);
    static const char *const parts[] = {"", "-wal", "-shm"};
    for (size_t i = 0; i < US_COUNT(parts); i++) {
        (void)snprintf(path, sizeof(path), "%s%s", e->path, parts[i]);
        (void)unlink(path);
    }
    free(e);
    return 0;
}

/* ---- words for the tests ------------------------------------------------------------------- */

static inline struct us_store_new job_of(const char *id, const char *owner, enum us_job_class class)
{
    return (struct us_store_new){.id = id,
                                 .type = "train",
                                 .owner = owner,
                                 .class = class,
                                 .dataset = "d",
                                 .model = "m",
                                 .spec = "{\"a\":1}"};
}

static inline void put(struct env *e, const char *id, const char *owner, enum us_job_class class)
{
    const struct us_store_new n = job_of(id, owner, class);
    char got[US_STORE_ID_BYTES];
    bool repeated;
    assert_int_equal(e->s->ops->put(e->s, &n, got, &repeated, &e->err), US_OK);
    assert_string_equal(got, id);
    assert_false(repeated);
}

/* The id claimed, "" if there is none. */
static const char *claim_as(struct env *e, const char *worker, unsigned classes,
                            struct us_store_claim *c)
{
    struct us_store_job j;
    enum us_status st = e->s->ops->claim(e->s, worker, classes, LEASE_MS, c, &j, &e->err);
    if (st == US_E_NOT_FOUND)
        return "";
    assert_int_equal(st, US_OK);
    assert_int_equal(j.state, US_JOB_RUNNING);
    assert_string_equal(j.spec, "{\"a\":1}");
    us_store_job_release(&j);
    return c->id;
}

static const char *claim(struct env *e, struct us_store_claim *c)
{
    return claim_as(e, "w", ALL, c);
}

static inline enum us_status beat(struct env *e, const struct us_store_claim *c, const char *kind,
                                  bool advanced, enum us_job_wish *wish)
{
    const struct us_store_beat b = {
        .lease_ms = LEASE_MS, .kind = kind, .data = "{\"x\":2}", .advanced = advanced};
    return e->s->ops->heartbeat(e->s, c, &b, wish, &e->err);
}

static inline struct us_store_job get(struct env *e, const char *id)
{
    struct us_store_job j;
    assert_int_equal(e->s->ops->get(e->s, id, &j, &e->err), US_OK);
    return j;
}

static inline void assert_state(struct env *e, const char *id, enum us_job_state state,
                                const char *reason)
{
    struct us_store_job j = get(e, id);
    assert_string_equal(us_job_state_name(j.state), us_job_state_name(state));
    assert_non_null(strstr(j.reason, reason));
    us_store_job_release(&j);
}

static inline int64_t position(struct env *e, const char *id)
{
    struct us_store_job j = get(e, id);
    us_store_job_release(&j);
    return j.position;
}

struct heard {
    char text[8192];
    int64_t n, limit;
    uint64_t first, last;
};

static inline bool hear(void *arg, const struct us_store_event *e)
{
    struct heard *h = arg;
    if (h->limit > 0 && h->n == h->limit)
        return false;
    if (h->n++ == 0)
        h->first = e->id;
    else
        assert_int_equal(e->id, h->last + 1);
    h->last = e->id;
    size_t used = strlen(h->text);
    (void)snprintf(h->text + used, sizeof(h->text) - used, "%s %s;", e->kind, e->data);
    return true;
}

static inline bool listen_from(struct env *e, const char *id, uint64_t after, struct heard *h)
{
    bool ended = false;
    assert_int_equal(e->s->ops->events(e->s, id, &after, hear, h, &ended, &e->err), US_OK);
    if (h->n > 0)
        assert_int_equal(after, h->last);
    return ended;
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

#define RUN_ON_ALL(tests) run_on_all(tests, US_COUNT(tests))

static inline int run_on_all(const struct CMUnitTest *tests, size_t n)
{
    int failed = 0;
    for (backend = 0; backend < US_COUNT(backends); backend++)
        failed += _cmocka_run_group_tests(backends[backend].name, tests, n, NULL, NULL);
    return failed;
}

#endif
