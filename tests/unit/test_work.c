/* The work queue (server/us_work.h): order, bounds, cancelling, the one compute turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#include "us_work.h"

struct job {
    struct us_task task; /* first */
    atomic_bool hold;    /* run waits until it falls, or until cancelled */
    atomic_int *order;   /* counts runs */
    int at;              /* our place among them */
    bool early_done;     /* gives the compute turn back in the middle */
    struct us_work *w;
    atomic_int *computing; /* tasks in their compute part now */
    atomic_bool collided, was_cancelled, started, finished;
};

static void nap(void)
{
    (void)nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static void run(struct us_task *t)
{
    struct job *j = (struct job *)(void *)t;
    bool cancelled = atomic_load(&t->cancel);
    if (!cancelled && t->exclusive && atomic_fetch_add(j->computing, 1) > 0)
        atomic_store(&j->collided, true);
    j->at = atomic_fetch_add(j->order, 1);
    atomic_store(&j->started, true);
    if (j->early_done && !cancelled) {
        atomic_fetch_sub(j->computing, 1);
        us_work_compute_done(j->w, t);
    }
    while (atomic_load(&j->hold) && !atomic_load(&t->cancel))
        nap();
    atomic_store(&j->was_cancelled, atomic_load(&t->cancel));
    if (!cancelled && t->exclusive && !j->early_done)
        atomic_fetch_sub(j->computing, 1);
}

static void finish(struct us_task *t)
{
    atomic_store(&((struct job *)(void *)t)->finished, true);
}

static atomic_int order, computing;

static void job_init(struct job *j, struct us_work *w, bool exclusive, bool hold)
{
    *j = (struct job){.task = {.run = run, .finish = finish, .exclusive = exclusive},
                      .order = &order,
                      .computing = &computing,
                      .w = w};
    atomic_store(&j->hold, hold);
}

static void wait_for(atomic_bool *flag)
{
    for (int i = 0; i < 20000 && !atomic_load(flag); i++)
        nap();
    assert_true(atomic_load(flag));
}

static struct us_work *open_queue(int n_workers, int64_t max)
{
    struct us_work *w = NULL;
    atomic_store(&order, 0);
    atomic_store(&computing, 0);
    assert_int_equal(us_work_new(n_workers, max, &w, NULL), US_OK);
    return w;
}

static void exclusive_tasks_never_compute_together_and_keep_their_order(void **state)
{
    struct us_work *w = open_queue(4, 100);
    static struct job j[20];
    for (int i = 0; i < 20; i++) {
        job_init(&j[i], w, true, false);
        j[i].early_done = i % 3 == 0;
        assert_int_equal(us_work_submit(w, &j[i].task), US_OK);
    }
    for (int i = 0; i < 20; i++)
        wait_for(&j[i].finished);
    for (int i = 0; i < 20; i++) {
        assert_false(atomic_load(&j[i].collided));
        assert_int_equal(j[i].at, i);
    }
    us_work_free(w);
}

static void plain_task_overtakes_a_waiting_exclusive_one(void **state)
{
    struct us_work *w = open_queue(2, 10);
    struct job first, second, plain;
    job_init(&first, w, true, true);
    job_init(&second, w, true, false);
    job_init(&plain, w, false, false);
    assert_int_equal(us_work_submit(w, &first.task), US_OK);
    wait_for(&first.started);
    assert_int_equal(us_work_submit(w, &second.task), US_OK);
    assert_int_equal(us_work_submit(w, &plain.task), US_OK);
    wait_for(&plain.finished);
    assert_false(atomic_load(&second.started));
    atomic_store(&first.hold, false);
    wait_for(&second.finished);
    us_work_free(w);
}

static void full_queue_refuses_and_a_cancelled_task_makes_room(void **state)
{
    struct us_work *w = open_queue(2, 2);
    struct job running, a, b, c;
    job_init(&running, w, true, true);
    job_init(&a, w, true, false);
    job_init(&b, w, true, false);
    job_init(&c, w, true, false);
    assert_int_equal(us_work_submit(w, &running.task), US_OK);
    wait_for(&running.started);
    assert_int_equal(us_work_submit(w, &a.task), US_OK);
    assert_int_equal(us_work_submit(w, &b.task), US_OK);
    assert_int_equal(us_work_submit(w, &c.task), US_E_BUSY);
    us_work_cancel(w, &a.task);
    assert_int_equal(us_work_submit(w, &c.task), US_OK);
    wait_for(&a.finished); /* although the compute turn is taken */
    assert_true(atomic_load(&a.was_cancelled));
    assert_false(atomic_load(&c.started));
    us_work_cancel(w, &running.task);
    wait_for(&c.finished);
    assert_true(atomic_load(&running.was_cancelled));
    assert_false(atomic_load(&b.was_cancelled));
    us_work_free(w);
}

static void stop_cancels_everything_and_calls_every_finish(void **state)
{
    struct us_work *w = open_queue(3, 10);
    static struct job j[6];
    for (int i = 0; i < 6; i++) {
        job_init(&j[i], w, i % 2 == 0, true);
        assert_int_equal(us_work_submit(w, &j[i].task), US_OK);
    }
    wait_for(&j[0].started);
    us_work_stop(w);
    struct job late;
    job_init(&late, w, false, false);
    assert_int_equal(us_work_submit(w, &late.task), US_E_BUSY);
    us_work_free(w);
    for (int i = 0; i < 6; i++) {
        assert_true(atomic_load(&j[i].finished));
        assert_true(atomic_load(&j[i].was_cancelled));
    }
}

/* ---- turns ---------------------------------------------------------------------------------- */

/* A task of so many units of work, which asks after each whether to pass its turn on. */
struct turner {
    struct us_task task; /* first */
    int units, done, first_at, last_at;
    atomic_int *clock; /* units of everybody */
    atomic_int *computing;
    atomic_bool collided, finished;
};

static void turner_run(struct us_task *t)
{
    struct turner *r = (struct turner *)(void *)t;
    for (; r->done < r->units && !atomic_load(&t->cancel); r->done++) {
        if (us_work_wanted(t))
            us_work_pass_on(t);
        if (atomic_load(&t->cancel))
            return;
        if (atomic_fetch_add(r->computing, 1) > 0)
            atomic_store(&r->collided, true);
        (void)nanosleep(&(struct timespec){0, 20000000}, NULL);
        atomic_fetch_sub(r->computing, 1);
        r->last_at = atomic_fetch_add(r->clock, 1);
        if (r->done == 0)
            r->first_at = r->last_at;
    }
}

static void turner_finish(struct us_task *t)
{
    atomic_store(&((struct turner *)(void *)t)->finished, true);
}

static void turner_init(struct turner *r, const char *owner, int class, int units)
{
    *r = (struct turner){
        .task = {.run = turner_run, .finish = turner_finish, .exclusive = true, .class = class},
        .units = units,
        .clock = &order,
        .computing = &computing};
    (void)snprintf(r->task.owner, sizeof(r->task.owner), "%s", owner);
}

static void long_task_lets_another_owner_go_between_its_units(void **state)
{
    struct us_work *w = open_queue(4, 10);
    struct turner whole, frame;
    turner_init(&whole, "a", 0, 60); /* 1.2 s */
    turner_init(&frame, "b", 0, 3);
    assert_int_equal(us_work_submit(w, &whole.task), US_OK);
    while (atomic_load(&order) == 0)
        nap();
    assert_int_equal(us_work_submit(w, &frame.task), US_OK);
    wait_for(&frame.finished);
    assert_false(atomic_load(&whole.finished));
    wait_for(&whole.finished);
    assert_false(atomic_load(&whole.collided) || atomic_load(&frame.collided));
    assert_int_equal(frame.done, 3);
    assert_true(frame.first_at < 18); /* one turn, not two */
    assert_int_equal(whole.done, 60);
    assert_true(us_work_counts(w).task_s > 0.05); /* those 3 and these 60, not the waiting */
    assert_true(us_work_counts(w).task_s < 20);
    us_work_free(w);
}

static void tasks_of_one_owner_come_one_after_the_other(void **state)
{
    struct us_work *w = open_queue(6, 10);
    struct turner first, second;
    turner_init(&first, "a", 0, 30);
    turner_init(&second, "a", 0, 2);
    assert_int_equal(us_work_submit(w, &first.task), US_OK);
    assert_int_equal(us_work_submit(w, &second.task), US_OK);
    wait_for(&second.finished);
    assert_int_equal(second.first_at, 30);
    wait_for(&first.finished);
    us_work_free(w);
}

static void better_class_does_not_wait_for_the_end_of_a_turn(void **state)
{
    struct us_work *w = open_queue(6, 10);
    struct turner batch, frame;
    turner_init(&batch, "a", 1, 40);
    turner_init(&frame, "a", 0, 20); /* longer than a turn: it keeps it */
    assert_int_equal(us_work_submit(w, &batch.task), US_OK);
    while (atomic_load(&order) == 0)
        nap();
    assert_int_equal(us_work_submit(w, &frame.task), US_OK);
    wait_for(&frame.finished);
    assert_true(frame.first_at < 8);
    assert_int_equal(frame.last_at - frame.first_at, 19);
    wait_for(&batch.finished);
    us_work_free(w);
}

static void thread_of_its_own_takes_turns_too_and_is_cancelled_while_it_waits(void **state)
{
    struct us_work *w = open_queue(4, 10);
    struct turner worker, own, late;
    atomic_bool enough = true;
    turner_init(&worker, "a", 0, 40);
    turner_init(&own, "b", 0, 3);
    turner_init(&late, "c", 1, 3);
    assert_int_equal(us_work_submit(w, &worker.task), US_OK);
    while (atomic_load(&order) == 0)
        nap();
    assert_true(us_work_enter(w, &own.task));
    turner_run(&own.task);
    us_work_compute_done(w, &own.task);
    assert_false(atomic_load(&own.collided));
    assert_false(atomic_load(&worker.finished));
    late.task.also_cancel = &enough;
    assert_false(us_work_enter(w, &late.task));
    us_work_compute_done(w, &late.task);
    us_work_cancel(w, &worker.task);
    wait_for(&worker.finished);
    us_work_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exclusive_tasks_never_compute_together_and_keep_their_order),
        cmocka_unit_test(plain_task_overtakes_a_waiting_exclusive_one),
        cmocka_unit_test(full_queue_refuses_and_a_cancelled_task_makes_room),
        cmocka_unit_test(stop_cancels_everything_and_calls_every_finish),
        cmocka_unit_test(long_task_lets_another_owner_go_between_its_units),
        cmocka_unit_test(tasks_of_one_owner_come_one_after_the_other),
        cmocka_unit_test(better_class_does_not_wait_for_the_end_of_a_turn),
        cmocka_unit_test(thread_of_its_own_takes_turns_too_and_is_cancelled_while_it_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
