/* The contract of a store (server/us_store.h), jobs: life, fencing, wishes, order of claims. */
#include "store_case.h"

/* ---- jobs ---------------------------------------------------------------------------------- */

static void job_put_is_there_after_reopening(void **state)
{
    struct env *e = *state;
    put(e, "a", "ann", US_JOB_TRAIN);
    env_reopen(e);
    struct us_store_job j = get(e, "a");
    assert_int_equal(j.state, US_JOB_QUEUED);
    assert_string_equal(j.owner, "ann");
    assert_string_equal(j.type, "train");
    assert_string_equal(j.dataset, "d");
    assert_string_equal(j.model, "m");
    assert_string_equal(j.spec, "{\"a\":1}");
    assert_null(j.progress);
    assert_null(j.result);
    assert_int_equal(j.class, US_JOB_TRAIN);
    assert_int_equal(j.created_ms, 1000000);
    assert_int_equal(j.started_ms, 0);
    assert_int_equal(j.position, 1);
    us_store_job_release(&j);
    assert_int_equal(e->s->ops->get(e->s, "b", &j, &e->err), US_E_NOT_FOUND);
}

static void taken_id_is_refused(void **state)
{
    struct env *e = *state;
    char id[US_STORE_ID_BYTES] = "before";
    bool repeated;
    put(e, "a", "", US_JOB_TRAIN);
    const struct us_store_new n = job_of("a", "", US_JOB_TRAIN);
    assert_int_equal(e->s->ops->put(e->s, &n, id, &repeated, &e->err), US_E_EXISTS);
    assert_string_equal(id, "before");
}

static void key_gives_the_same_job_for_the_same_body_of_the_same_owner(void **state)
{
    struct env *e = *state;
    char id[US_STORE_ID_BYTES];
    bool repeated;
    struct us_store_new n = job_of("a", "ann", US_JOB_TRAIN);
    n.key = "k";
    assert_int_equal(e->s->ops->find_key(e->s, &n, id, &e->err), US_E_NOT_FOUND);
    assert_int_equal(e->s->ops->put(e->s, &n, id, &repeated, &e->err), US_OK);
    assert_false(repeated);
    env_reopen(e);
    n.id = "b";
    assert_int_equal(e->s->ops->put(e->s, &n, id, &repeated, &e->err), US_OK);
    assert_true(repeated);
    assert_string_equal(id, "a");
    n.fingerprint[3] = 1; /* another body */
    assert_int_equal(e->s->ops->put(e->s, &n, id, &repeated, &e->err), US_E_ARG);
    assert_int_equal(e->s->ops->find_key(e->s, &n, id, &e->err), US_E_ARG);
    n.owner = "bob"; /* his own keys */
    assert_int_equal(e->s->ops->put(e->s, &n, id, &repeated, &e->err), US_OK);
    assert_false(repeated);
    assert_string_equal(id, "b");
}

static void job_with_a_past_is_taken_in_as_it_stands(void **state)
{
    struct env *e = *state;
    struct us_store_job old = {.id = "a",
                               .type = "train",
                               .owner = "ann",
                               .dataset = "d",
                               .model = "m",
                               .class = US_JOB_TRAIN,
                               .state = US_JOB_FAILED,
                               .reason = "it rained",
                               .created_ms = 1,
                               .started_ms = 2,
                               .ended_ms = 3,
                               .attempts = 4,
                               .spec = (char *)(uintptr_t) "{\"a\":1}",
                               .progress = (char *)(uintptr_t) "{}"};
    struct us_store_claim c;
    struct heard h = {0};
    assert_int_equal(e->s->ops->adopt(e->s, &old, &e->err), US_OK);
    assert_int_equal(e->s->ops->adopt(e->s, &old, &e->err), US_E_EXISTS);
    env_reopen(e);
    struct us_store_job j = get(e, "a");
    assert_int_equal(j.state, US_JOB_FAILED);
    assert_string_equal(j.reason, "it rained");
    assert_string_equal(j.progress, "{}");
    assert_null(j.result);
    assert_int_equal(j.created_ms, 1);
    assert_int_equal(j.started_ms, 2);
    assert_int_equal(j.ended_ms, 3);
    assert_int_equal(j.attempts, 4);
    us_store_job_release(&j);
    assert_true(listen_from(e, "a", 0, &h));
    assert_int_equal(h.n, 1);
    (void)snprintf(old.id, sizeof(old.id), "b");
    old.state = US_JOB_RUNNING; /* nobody holds it */
    assert_int_equal(e->s->ops->adopt(e->s, &old, &e->err), US_E_ARG);
    old.state = US_JOB_QUEUED;
    assert_int_equal(e->s->ops->adopt(e->s, &old, &e->err), US_OK);
    assert_string_equal(claim(e, &c), "b");
}

static void life_of_a_job_is_told_and_kept(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_wish wish;
    struct heard h = {0};
    put(e, "a", "", US_JOB_TRAIN);
    e->now += 5;
    assert_string_equal(claim(e, &c), "a");
    assert_int_equal(position(e, "a"), 0);
    assert_int_equal(beat(e, &c, "step", false, &wish), US_OK);
    assert_int_equal(wish, US_WISH_NONE);
    assert_false(listen_from(e, "a", 0, &h));
    e->now += 5;
    assert_int_equal(e->s->ops->complete(e->s, &c, "{\"p\":1}", "{\"r\":1}", &e->err), US_OK);
    env_reopen(e);
    struct us_store_job j = get(e, "a");
    assert_int_equal(j.state, US_JOB_SUCCEEDED);
    assert_string_equal(j.progress, "{\"p\":1}");
    assert_string_equal(j.result, "{\"r\":1}");
    assert_int_equal(j.started_ms, 1000005);
    assert_int_equal(j.ended_ms, 1000010);
    assert_int_equal(j.attempts, 1);
    us_store_job_release(&j);
    h = (struct heard){0};
    assert_true(listen_from(e, "a", 0, &h));
    assert_string_equal(h.text, "state {\"id\":\"a\",\"state\":\"queued\"};"
                                "state {\"id\":\"a\",\"state\":\"running\"};step {\"x\":2};"
                                "state {\"id\":\"a\",\"state\":\"succeeded\"};");
}

static void ended_job_ends_once(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    enum us_job_wish w;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &c);
    assert_int_equal(e->s->ops->fail(e->s, &c, "it \xff broke", &e->err), US_OK);
    assert_state(e, "a", US_JOB_FAILED, "it ? broke");
    assert_int_equal(e->s->ops->fail(e->s, &c, "twice", &e->err), US_E_CANCELLED);
    assert_int_equal(e->s->ops->complete(e->s, &c, NULL, "{}", &e->err), US_E_CANCELLED);
    assert_int_equal(e->s->ops->requeue(e->s, &c, "", 0, &s, &e->err), US_E_CANCELLED);
    assert_int_equal(beat(e, &c, NULL, false, &w), US_E_CANCELLED);
    assert_int_equal(e->s->ops->cancel(e->s, "a", "no", &s, &e->err), US_E_EXISTS);
    assert_int_equal(e->s->ops->pause(e->s, "a", &s, &e->err), US_E_EXISTS);
    assert_int_equal(e->s->ops->resume(e->s, "a", &s, &e->err), US_E_EXISTS);
    assert_state(e, "a", US_JOB_FAILED, "it ? broke");
    assert_string_equal(claim(e, &c), "");
}

static void late_worker_is_fenced_off(void **state)
{
    struct env *e = *state;
    struct us_store_claim old, new;
    enum us_job_wish wish;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &old);
    e->now += LEASE_MS / 2;
    assert_int_equal(beat(e, &old, NULL, false, &wish), US_OK);
    e->now += LEASE_MS / 2 + 1; /* the heartbeat prolonged it */
    assert_int_equal(e->s->ops->expire(e->s, 3, &e->err), US_OK);
    assert_state(e, "a", US_JOB_RUNNING, "");
    e->now += LEASE_MS;
    assert_int_equal(e->s->ops->expire(e->s, 3, &e->err), US_OK);
    assert_state(e, "a", US_JOB_QUEUED, "not heard of");
    assert_string_equal(claim_as(e, "other", ALL, &new), "a");
    assert_true(new.token > old.token);
    assert_int_equal(beat(e, &old, "step", false, &wish), US_E_CANCELLED);
    assert_int_equal(e->s->ops->complete(e->s, &old, NULL, "\"late\"", &e->err), US_E_CANCELLED);
    assert_int_equal(e->s->ops->complete(e->s, &new, NULL, "\"good\"", &e->err), US_OK);
    struct us_store_job j = get(e, "a");
    assert_string_equal(j.result, "\"good\"");
    assert_int_equal(j.attempts, 2);
    us_store_job_release(&j);
}

static void restarted_worker_loses_its_claims_and_no_others(void **state)
{
    struct env *e = *state;
    struct us_store_claim a, b, c;
    enum us_job_wish wish;
    put(e, "a", "", US_JOB_TRAIN);
    put(e, "b", "", US_JOB_TRAIN);
    assert_string_equal(claim_as(e, "w1", ALL, &a), "a");
    assert_string_equal(claim_as(e, "w2", ALL, &b), "b");
    env_reopen(e);
    assert_int_equal(e->s->ops->begin(e->s, "w1", 3, &e->err), US_OK);
    assert_state(e, "a", US_JOB_QUEUED, "restarted");
    assert_state(e, "b", US_JOB_RUNNING, "");
    assert_int_equal(beat(e, &a, NULL, false, &wish), US_E_CANCELLED);
    assert_int_equal(beat(e, &b, NULL, false, &wish), US_OK);
    assert_string_equal(claim_as(e, "w1", ALL, &c), "a");
}

static void job_that_never_gets_anywhere_fails_in_the_end(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    put(e, "a", "", US_JOB_TRAIN);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(claim(e, &c), "a");
        assert_int_equal(e->s->ops->begin(e->s, "w", 3, &e->err), US_OK);
    }
    assert_state(e, "a", US_JOB_FAILED, "3 times in a row");
    assert_string_equal(claim(e, &c), "");
}

static void checkpoint_or_a_stop_clears_the_count_of_attempts(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_wish wish;
    enum us_job_state s;
    put(e, "a", "", US_JOB_TRAIN);
    for (int i = 0; i < 10; i++) {
        assert_string_equal(claim(e, &c), "a");
        if (i % 2 == 0)
            assert_int_equal(beat(e, &c, NULL, true, &wish), US_OK);
        assert_int_equal(e->s->ops->begin(e->s, "w", 2, &e->err), US_OK);
    }
    for (int i = 0; i < 10; i++) {
        assert_string_equal(claim(e, &c), "a");
        assert_int_equal(e->s->ops->requeue(e->s, &c, "stopped", 0, &s, &e->err), US_OK);
        assert_int_equal(s, US_JOB_QUEUED);
    }
    struct us_store_job j = get(e, "a");
    assert_int_equal(j.attempts, 20);
    assert_string_equal(j.reason, "stopped");
    us_store_job_release(&j);
}

static void delayed_job_waits_its_time(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &c);
    assert_int_equal(e->s->ops->requeue(e->s, &c, "disk full", 500, &s, &e->err), US_OK);
    assert_string_equal(claim(e, &c), "");
    e->now += 500;
    assert_string_equal(claim(e, &c), "a");
}

/* ---- cancel, pause, resume ----------------------------------------------------------------- */

static void queued_and_paused_jobs_are_cancelled_at_once(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    put(e, "a", "", US_JOB_TRAIN);
    put(e, "b", "", US_JOB_TRAIN);
    assert_int_equal(e->s->ops->pause(e->s, "b", &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_PAUSED);
    assert_int_equal(e->s->ops->cancel(e->s, "a", "by ann", &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_CANCELLED);
    assert_int_equal(e->s->ops->cancel(e->s, "b", "by bob", &s, &e->err), US_OK);
    assert_state(e, "a", US_JOB_CANCELLED, "by ann");
    assert_state(e, "b", US_JOB_CANCELLED, "by bob");
    assert_string_equal(claim(e, &c), "");
    assert_int_equal(e->s->ops->cancel(e->s, "x", "", &s, &e->err), US_E_NOT_FOUND);
}

static void running_job_learns_what_was_wished(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    enum us_job_wish wish;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &c);
    assert_int_equal(e->s->ops->pause(e->s, "a", &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_RUNNING);
    assert_int_equal(beat(e, &c, NULL, false, &wish), US_OK);
    assert_int_equal(wish, US_WISH_PAUSE);
    assert_int_equal(e->s->ops->resume(e->s, "a", &s, &e->err), US_OK); /* taken back */
    assert_int_equal(beat(e, &c, NULL, false, &wish), US_OK);
    assert_int_equal(wish, US_WISH_NONE);
    assert_int_equal(e->s->ops->pause(e->s, "a", &s, &e->err), US_OK);
    assert_int_equal(e->s->ops->cancel(e->s, "a", "by ann", &s, &e->err), US_OK);
    assert_int_equal(beat(e, &c, NULL, false, &wish), US_OK);
    assert_int_equal(wish, US_WISH_CANCEL);
    assert_int_equal(e->s->ops->resume(e->s, "a", &s, &e->err), US_E_EXISTS);
    assert_int_equal(e->s->ops->requeue(e->s, &c, "ignored", 0, &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_CANCELLED);
    assert_state(e, "a", US_JOB_CANCELLED, "by ann");
}

static void paused_job_waits_for_resume(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    put(e, "a", "", US_JOB_TRAIN);
    (void)claim(e, &c);
    assert_int_equal(e->s->ops->pause(e->s, "a", &s, &e->err), US_OK);
    assert_int_equal(e->s->ops->requeue(e->s, &c, "", 0, &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_PAUSED);
    env_reopen(e);
    assert_string_equal(claim(e, &c), "");
    assert_int_equal(e->s->ops->resume(e->s, "a", &s, &e->err), US_OK);
    assert_int_equal(s, US_JOB_QUEUED);
    assert_string_equal(claim(e, &c), "a");
}

static void wish_outlives_the_worker(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    enum us_job_state s;
    put(e, "a", "", US_JOB_TRAIN);
    put(e, "b", "", US_JOB_TRAIN);
    (void)claim(e, &c);
    (void)claim(e, &c);
    assert_int_equal(e->s->ops->cancel(e->s, "a", "by ann", &s, &e->err), US_OK);
    assert_int_equal(e->s->ops->pause(e->s, "b", &s, &e->err), US_OK);
    env_reopen(e);
    assert_int_equal(e->s->ops->begin(e->s, "w", 3, &e->err), US_OK);
    assert_state(e, "a", US_JOB_CANCELLED, "by ann");
    assert_state(e, "b", US_JOB_PAUSED, "");
}

/* ---- order --------------------------------------------------------------------------------- */

static void claims_go_by_class_then_owners_in_turn_then_age(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    static const struct {
        const char *id, *owner;
        enum us_job_class class;
    } jobs[] = {{"t1", "ann", US_JOB_TRAIN}, {"b1", "ann", US_JOB_BATCH},
                {"b2", "ann", US_JOB_BATCH}, {"b3", "ann", US_JOB_BATCH},
                {"b4", "bob", US_JOB_BATCH}, {"b5", "bob", US_JOB_BATCH},
                {"b6", "cyd", US_JOB_BATCH}, {"i1", "bob", US_JOB_INTERACTIVE}};
    static const char *const order[] = {"i1", "b1", "b4", "b6", "b2", "b5", "b3", "t1"};
    for (size_t i = 0; i < US_COUNT(jobs); i++)
        put(e, jobs[i].id, jobs[i].owner, jobs[i].class);
    for (int64_t i = 1; i < 7; i++)
        assert_int_equal(position(e, order[i]), i); /* told before it happens */
    for (size_t i = 0; i < US_COUNT(order); i++)
        assert_string_equal(claim(e, &c), order[i]);
    assert_string_equal(claim(e, &c), "");
}

static void position_foresees_the_order_where_owners_interleave(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    static const char *const owners[] = {"a", "b", "b", "a", "c", "b", "a"};
    char foreseen[US_COUNT(owners)][8], id[8];
    for (size_t i = 0; i < US_COUNT(owners); i++) {
        (void)snprintf(id, sizeof(id), "j%zu", i);
        put(e, id, owners[i], US_JOB_BATCH);
    }
    for (size_t i = 0; i < US_COUNT(owners); i++) {
        (void)snprintf(id, sizeof(id), "j%zu", i);
        memcpy(foreseen[position(e, id) - 1], id, sizeof(id));
    }
    for (size_t i = 0; i < US_COUNT(owners); i++)
        assert_string_equal(claim(e, &c), foreseen[i]);
}

static void worker_gets_only_its_classes(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    put(e, "i", "", US_JOB_INTERACTIVE);
    put(e, "t", "", US_JOB_TRAIN);
    assert_string_equal(claim_as(e, "w", 1U << US_JOB_TRAIN, &c), "t");
    assert_string_equal(claim_as(e, "w", 1U << US_JOB_TRAIN, &c), "");
    assert_string_equal(claim_as(e, "w", ALL, &c), "i");
}

static void owner_who_was_served_goes_behind_a_new_one(void **state)
{
    struct env *e = *state;
    struct us_store_claim c;
    put(e, "a1", "ann", US_JOB_TRAIN);
    put(e, "a2", "ann", US_JOB_TRAIN);
    assert_string_equal(claim(e, &c), "a1");
    put(e, "b1", "bob", US_JOB_TRAIN);
    env_reopen(e); /* turns are kept */
    assert_int_equal(position(e, "a2"), 2);
    assert_string_equal(claim(e, &c), "b1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(job_put_is_there_after_reopening),
        T(taken_id_is_refused),
        T(key_gives_the_same_job_for_the_same_body_of_the_same_owner),
        T(job_with_a_past_is_taken_in_as_it_stands),
        T(life_of_a_job_is_told_and_kept),
        T(ended_job_ends_once),
        T(late_worker_is_fenced_off),
        T(restarted_worker_loses_its_claims_and_no_others),
        T(job_that_never_gets_anywhere_fails_in_the_end),
        T(checkpoint_or_a_stop_clears_the_count_of_attempts),
        T(delayed_job_waits_its_time),
        T(queued_and_paused_jobs_are_cancelled_at_once),
        T(running_job_learns_what_was_wished),
        T(paused_job_waits_for_resume),
        T(wish_outlives_the_worker),
        T(claims_go_by_class_then_owners_in_turn_then_age),
        T(position_foresees_the_order_where_owners_interleave),
        T(worker_gets_only_its_classes),
        T(owner_who_was_served_goes_behind_a_new_one),
    };
    return RUN_ON_ALL(tests);
}
