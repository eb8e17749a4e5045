/* The work queue (server/us_work.h): order, bounds, cancelling, the one compute turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exclusive_tasks_never_compute_together_and_keep_their_order),
        cmocka_unit_test(plain_task_overtakes_a_waiting_exclusive_one),
        cmocka_unit_test(full_queue_refuses_and_a_cancelled_task_makes_room),
        cmocka_unit_test(stop_cancels_everything_and_calls_every_finish),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
