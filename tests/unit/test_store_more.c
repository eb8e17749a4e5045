/* The contract of a store (server/us_store.h): questions, events, threads, records, tokens. */
#include "store_case.h"

/* ---- questions ----------------------------------------------------------------------------- */

static void list_and_count_filter(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    struct us_store_job *list;
    int64_t n;
    put(e, "a", "ann", US_JOB_TRAIN);
    put(e, "b", "bob", US_JOB_TRAIN);
    put(e, "c", "bob", US_JOB_TRAIN);
    (void)claim(e, &c);
    const struct {
        struct us_store_filter f;
        const char *ids;
    } cases[] = {{{0}, "cba"},
                 {{.limit = 2}, "cb"},
                 {{.owner = "bob"}, "cb"},
                 {{.states = US_JOB_BIT(US_JOB_RUNNING)}, "a"},
                 {{.states = US_JOBS_UNFINISHED, .owner = "ann"}, "a"},
                 {{.states = US_JOBS_ENDED}, ""},
                 {{.dataset = "d", .model = "m"}, "cba"},
                 {{.dataset = "e"}, ""},
                 {{.id = "b"}, "b"}};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        char ids[8] = "";
        assert_int_equal(e->s->ops->list(e->s, &cases[i].f, &list, &n, &e->err), US_OK);
        for (int64_t k = 0; k < n; k++) {
            ids[k] = list[k].id[0];
            us_store_job_release(&list[k]);
        }
        free(list);
        assert_string_equal(ids, cases[i].ids);
        assert_int_equal(e->s->ops->count(e->s, &cases[i].f, &n, &e->err), US_OK);
        if (cases[i].f.limit == 0)
            assert_int_equal(n, strlen(cases[i].ids));
    }
}

static void events_are_replayed_after_a_number_and_bounded(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_wish wish;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &c); /* two events so far */
    for (int i = 0; i < US_STORE_EVENTS_KEPT; i++)
        assert_int_equal(beat(e, &c, "step", false, &wish), US_OK);
    struct heard h = {0};
    assert_false(listen_from(e, "a", 0, &h));
    assert_int_equal(h.n, US_STORE_EVENTS_KEPT);
    assert_int_equal(h.last, US_STORE_EVENTS_KEPT + 2);
    h = (struct heard){0};
    (void)listen_from(e, "a", 1000, &h);
    assert_int_equal(h.n, 2);
    h = (struct heard){0};
    (void)listen_from(e, "a", 1000000, &h); /* a number never given: from the oldest */
    assert_int_equal(h.n, US_STORE_EVENTS_KEPT);
    h = (struct heard){.limit = 3};
    (void)listen_from(e, "a", 0, &h); /* the listener had enough */
    assert_int_equal(h.n, 3);
    uint64_t after = 0;
    bool ended;
    assert_int_equal(e->s->ops->events(e->s, "x", &after, hear, &h, &ended, &e->err),
                     US_E_NOT_FOUND);
}

static void forgetting_takes_ended_jobs_by_age_and_count(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    char ids[8][US_STORE_ID_BYTES];
    int64_t n;
    struct us_store_new keyed = job_of("a", "", US_JOB_TRAIN);
    bool repeated;
    keyed.key = "k";
    assert_int_equal(e->s->ops->put(e->s, &keyed, ids[0], &repeated, &e->err), US_OK);
    put(e, "b", "", US_JOB_TRAIN);
    put(e, "c", "", US_JOB_TRAIN);
    put(e, "d", "", US_JOB_TRAIN);
    for (int i = 0; i < 3; i++) {
        (void)claim(e, &c);
        e->now += 100;
        assert_int_equal(e->s->ops->complete(e->s, &c, NULL, "{}", &e->err), US_OK);
    }
    assert_int_equal(e->s->ops->forget(e->s, 0, 3, ids, 8, &n, &e->err), US_OK);
    assert_int_equal(n, 0);
    assert_int_equal(e->s->ops->forget(e->s, 150, 1000, ids, 8, &n, &e->err), US_OK);
    assert_int_equal(n, 1);
    assert_string_equal(ids[0], "a");
    assert_int_equal(e->s->ops->forget(e->s, 0, 0, ids, 1, &n, &e->err), US_OK);
    assert_int_equal(n, 1); /* room for one at a time */
    assert_string_equal(ids[0], "b");
    assert_int_equal(e->s->ops->forget(e->s, 0, 0, ids, 8, &n, &e->err), US_OK);
    assert_int_equal(n, 1);
    assert_state(e, "d", US_JOB_QUEUED, ""); /* what has not ended stays, whatever its age */
    assert_int_equal(e->s->ops->find_key(e->s, &keyed, ids[0], &e->err), US_E_NOT_FOUND);
}

static void watch_number_grows_with_changes_only(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    uint64_t seen = e->s->ops->watch(e->s, 0, 0);
    assert_string_equal(claim(e, &c), ""); /* nothing happened */
    assert_int_equal(e->s->ops->watch(e->s, seen, 20), seen);
    put(e, "a", "", US_JOB_TRAIN);
    assert_true(e->s->ops->watch(e->s, seen, 10000) > seen);
}

/* ---- several threads ----------------------------------------------------------------------- */

#define N_THREADS 4
#define N_JOBS    60

struct crowd {
    struct env *e;
    int64_t first_token, done;
    bool bad;
};

/* Claims until nothing is left; gives every third job back once. */
static void *work_through(void *arg)
{
    struct crowd *w = arg;
    struct us_store *s = w->e->s;
    struct us_store_claim c;
    struct us_store_job j;
    enum us_job_wish wish;
    enum us_job_state state;
    const struct us_store_beat b = {.lease_ms = LEASE_MS, .kind = "step", .data = "{}"};
    struct us_err err;
    while (s->ops->claim(s, "w", ALL, LEASE_MS, &c, &j, &err) == US_OK) {
        w->bad |= s->ops->heartbeat(s, &c, &b, &wish, &err) != US_OK;
        if (j.attempts == 1 && c.token % 3 == 0) {
            w->bad |= s->ops->requeue(s, &c, "", 0, &state, &err) != US_OK;
        } else {
            w->bad |= s->ops->complete(s, &c, NULL, "{}", &err) != US_OK;
            w->done++;
        }
        us_store_job_release(&j);
    }
    return NULL;
}

static void *look_on(void *arg)
{
    struct crowd *w = arg;
    const struct us_store_filter f = {0};
    struct us_err err;
    int64_t n = 0;
    for (int i = 0; i < 100; i++)
        w->bad |= w->e->s->ops->count(w->e->s, &f, &n, &err) != US_OK || n != N_JOBS;
    return NULL;
}

static void each_job_is_done_once_by_many_workers(void **state)
{
    struct env *e = *state;
    struct crowd w[N_THREADS + 1];
    pthread_t t[N_THREADS + 1];
    char id[16];
    int64_t n, done = 0;
    for (int i = 0; i < N_JOBS; i++) {
        (void)snprintf(id, sizeof(id), "j%d", i);
        put(e, id, i % 2 ? "ann" : "bob", (enum us_job_class)(i % US_JOB_CLASS_COUNT));
    }
    for (int i = 0; i <= N_THREADS; i++) {
        w[i] = (struct crowd){.e = e};
        assert_int_equal(pthread_create(&t[i], NULL, i < N_THREADS ? work_through : look_on, &w[i]),
                         0);
    }
    for (int i = 0; i <= N_THREADS; i++) {
        (void)pthread_join(t[i], NULL);
        assert_false(w[i].bad);
        done += w[i].done;
    }
    assert_int_equal(done, N_JOBS);
    const struct us_store_filter f = {.states = US_JOB_BIT(US_JOB_SUCCEEDED)};
    assert_int_equal(e->s->ops->count(e->s, &f, &n, &e->err), US_OK);
    assert_int_equal(n, N_JOBS);
}

static void *same_key(void *arg)
{
    struct crowd *w = arg;
    char own[16], id[US_STORE_ID_BYTES];
    bool repeated = true;
    struct us_err err;
    (void)snprintf(own, sizeof(own), "j%d", (int)w->first_token);
    struct us_store_new n = job_of(own, "", US_JOB_TRAIN);
    n.key = "k";
    w->bad = w->e->s->ops->put(w->e->s, &n, id, &repeated, &err) != US_OK;
    w->done = !repeated;
    return NULL;
}

static void key_used_at_the_same_time_makes_one_job(void **state)
{
    struct env *e = *state;
    struct crowd w[N_THREADS];
    pthread_t t[N_THREADS];
    int64_t made = 0;
    for (int i = 0; i < N_THREADS; i++) {
        w[i] = (struct crowd){.e = e, .first_token = i};
        assert_int_equal(pthread_create(&t[i], NULL, same_key, &w[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        (void)pthread_join(t[i], NULL);
        assert_false(w[i].bad);
        made += w[i].done;
    }
    assert_int_equal(made, 1);
}

static void *put_later(void *arg)
{
    struct env *e = ((struct crowd *)arg)->e;
    (void)nanosleep(&(struct timespec){0, 20000000}, NULL);
    put(e, "a", "", US_JOB_TRAIN);
    return NULL;
}

static void count_calls(void *arg)
{
    (*(int *)arg)++;
}

static void watcher_is_woken_and_told(void **state)
{
    struct env *e = *state;
    struct crowd w = {.e = e};
    pthread_t t;
    int calls = 0;
    e->s->ops->on_change(e->s, count_calls, &calls);
    uint64_t seen = e->s->ops->watch(e->s, 0, 0);
    assert_int_equal(pthread_create(&t, NULL, put_later, &w), 0);
    assert_true(e->s->ops->watch(e->s, seen, 60000) > seen);
    (void)pthread_join(t, NULL);
    assert_int_equal(calls, 1);
    e->s->ops->on_change(e->s, NULL, NULL);
    put(e, "b", "", US_JOB_TRAIN);
    assert_int_equal(calls, 1);
}

/* ---- records and tokens -------------------------------------------------------------------- */

static void record_keeps_owner_and_first_time(void **state)
{
    struct env *e = *state;
    struct us_store_record r = {.kind = US_RECORD_MODEL, .name = "m", .owner = "ann", .bytes = 5};
    struct us_store_record *list;
    int64_t n;
    memset(r.sha256, 'a', 64);
    assert_int_equal(e->s->ops->record_put(e->s, &r, &e->err), US_OK);
    e->now += 7;
    r.owner[0] = '\0'; /* whoever replaces it does not say */
    r.bytes = 6;
    assert_int_equal(e->s->ops->record_put(e->s, &r, &e->err), US_OK);
    r.kind = US_RECORD_DATASET; /* names of their own */
    assert_int_equal(e->s->ops->record_put(e->s, &r, &e->err), US_OK);
    env_reopen(e);
    assert_int_equal(e->s->ops->record_get(e->s, US_RECORD_MODEL, "m", &r, &e->err), US_OK);
    assert_string_equal(r.owner, "ann");
    assert_int_equal(r.bytes, 6);
    assert_int_equal(r.created_ms, 1000000);
    assert_int_equal(r.changed_ms, 1000007);
    assert_int_equal(strlen(r.sha256), 64);
    assert_int_equal(e->s->ops->record_list(e->s, US_RECORD_DATASET, NULL, &list, &n, &e->err),
                     US_OK);
    assert_int_equal(n, 1);
    free(list);
    assert_int_equal(e->s->ops->record_list(e->s, US_RECORD_MODEL, "bob", &list, &n, &e->err),
                     US_OK);
    assert_int_equal(n, 0);
    free(list);
    assert_int_equal(e->s->ops->record_delete(e->s, US_RECORD_MODEL, "m", &e->err), US_OK);
    assert_int_equal(e->s->ops->record_delete(e->s, US_RECORD_MODEL, "m", &e->err), US_OK);
    assert_int_equal(e->s->ops->record_get(e->s, US_RECORD_MODEL, "m", &r, &e->err),
                     US_E_NOT_FOUND);
}

static void long_lists_of_records_come_whole_and_sorted(void **state)
{
    struct env *e = *state;
    struct us_store_record r = {.kind = US_RECORD_MODEL}, *list;
    int64_t n;
    for (int i = 199; i >= 0; i--) {
        (void)snprintf(r.name, sizeof(r.name), "m%03d", i);
        assert_int_equal(e->s->ops->record_put(e->s, &r, &e->err), US_OK);
    }
    assert_int_equal(e->s->ops->record_list(e->s, US_RECORD_MODEL, NULL, &list, &n, &e->err),
                     US_OK);
    assert_int_equal(n, 200);
    for (int64_t i = 1; i < n; i++)
        assert_true(strcmp(list[i - 1].name, list[i].name) < 0);
    free(list);
}

static void token_is_found_by_its_hash_until_it_expires(void **state)
{
    struct env *e = *state;
    struct us_store_token t = {.id = "us_abc",
                               .owner = "ann",
                               .hash = {1, 2, 3},
                               .scopes = 5,
                               .max_bytes = 100,
                               .max_jobs = 2,
                               .ceiling = US_JOB_BATCH,
                               .expires_ms = 1000010},
                          got, *list;
    uint8_t other[US_STORE_HASH_BYTES] = {9};
    int64_t n;
    assert_int_equal(e->s->ops->token_put(e->s, &t, &e->err), US_OK);
    assert_int_equal(e->s->ops->token_put(e->s, &t, &e->err), US_E_EXISTS);
    env_reopen(e);
    assert_int_equal(e->s->ops->token_find(e->s, other, &got, &e->err), US_E_NOT_FOUND);
    assert_int_equal(e->s->ops->token_find(e->s, t.hash, &got, &e->err), US_OK);
    t.created_ms = 1000000;
    assert_string_equal(got.id, t.id);
    assert_string_equal(got.owner, t.owner);
    assert_memory_equal(got.hash, t.hash, sizeof(t.hash));
    assert_int_equal(got.scopes, 5);
    assert_int_equal(got.max_bytes, 100);
    assert_int_equal(got.max_jobs, 2);
    assert_int_equal(got.ceiling, US_JOB_BATCH);
    assert_int_equal(got.created_ms, t.created_ms);
    e->now += 10;
    assert_int_equal(e->s->ops->token_find(e->s, t.hash, &got, &e->err), US_E_NOT_FOUND);
    assert_int_equal(e->s->ops->token_list(e->s, &list, &n, &e->err), US_OK);
    assert_int_equal(n, 1);
    free(list);
    assert_int_equal(e->s->ops->token_delete(e->s, "us_abc", &e->err), US_OK);
    assert_int_equal(e->s->ops->token_delete(e->s, "us_abc", &e->err), US_E_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(list_and_count_filter),
        T(events_are_replayed_after_a_number_and_bounded),
        T(forgetting_takes_ended_jobs_by_age_and_count),
        T(watch_number_grows_with_changes_only),
        T(each_job_is_done_once_by_many_workers),
        T(key_used_at_the_same_time_makes_one_job),
        T(watcher_is_woken_and_told),
        T(record_keeps_owner_and_first_time),
        T(long_lists_of_records_come_whole_and_sorted),
        T(token_is_found_by_its_hash_until_it_expires),
    };
    return RUN_ON_ALL(tests);
}
