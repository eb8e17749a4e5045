/*
 * A training run that was killed, cancelled, or has ended, and is resumed: it is bit for bit the
 * run that was never interrupted, or it is refused with the reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "us_checkpoint.h"
#include "us_fake_run.h"

/* ---- resume -------------------------------------------------------------------------------- */

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void killed_run_resumes_to_the_same_bytes(const char *variant, int32_t threads)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, variant);
    r.cfg.checkpoint_steps = 2;
    r.cfg.max_epochs = 12;
    r.cfg.train.threads = threads;
    r.data.augment = true;
    r.data.alpha_min[0] = 0.3;
    r.data.alpha_max[0] = 0.7;
    double began = now_s();
    us_fake_run_must(&r, NULL);
    double lasts_micros =
        1e6 * (now_s() - began); /* kills are spread over it, however slow it is */
    struct us_fake_outcome whole = us_fake_outcome(&r);
    us_fake_run_wipe();
    unsigned seed = 99;
    int killed = 0, resumed_from_file = 0;
    for (int round = 0; round < 40; round++) {
        char p[128];
        bool there = access(us_fake_run_path(p, sizeof(p), US_FAKE_LAST), F_OK) == 0 ||
                     access(us_fake_run_path(p, sizeof(p), US_FAKE_PREVIOUS), F_OK) == 0;
        resumed_from_file += there;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(us_fake_run_go(&r, there ? US_FAKE_LAST : NULL) == US_OK ? 0 : 1);
        seed = seed * 1103515245u + 12345u;
        (void)usleep((useconds_t)(lasts_micros * (0.05 + 0.3 * (double)(seed >> 16) / 65536.0)));
        (void)kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        killed++;
    }
    assert_true(killed > 0 && resumed_from_file > 0);
    us_fake_run_must(&r, US_FAKE_LAST);
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void killed_vanilla_run_resumes_to_the_same_bytes(void **state)
{
    killed_run_resumes_to_the_same_bytes("vanilla", 1);
}

static void killed_lean_run_resumes_to_the_same_bytes_with_two_threads(void **state)
{
    killed_run_resumes_to_the_same_bytes("lean", 2);
}

static void cancelled_run_resumes_to_the_same_bytes_at_any_step(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.max_epochs = 2;
    r.cfg.max_steps = 9;
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    /* In mid-epoch, at its last step, at the run's last. */
    static const int64_t at[] = {1, 5, 8, 9};
    for (size_t i = 0; i < US_COUNT(at); i++) {
        us_fake_run_wipe();
        r.heard = (struct us_fake_heard){.cancel_at = at[i]};
        assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
        r.heard = (struct us_fake_heard){0};
        us_fake_run_must(&r, US_FAKE_LAST);
        struct us_fake_outcome resumed = us_fake_outcome(&r);
        us_fake_outcome_same(&whole, &resumed);
    }
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void finished_run_resumed_just_returns_its_best(void **state)
{
    static const double se[] = {0.5, 0.1, 0.7};
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    us_fake_script.val_se = se;
    us_fake_script.n_val_se = US_COUNT(se);
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    us_fake_script.val_se = NULL;
    atomic_store(&us_fake_script.trained, 0);
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_int_equal(us_fake_script.trained, 0);
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 1,"));
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

/* With the limits given, then resumed with none but four epochs: as if it had never ended. */
static void resumed_with_larger_limits(int32_t max_epochs, int64_t max_steps)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    r.cfg.max_epochs = 4;
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    us_fake_run_wipe();
    r.cfg.max_epochs = max_epochs;
    r.cfg.max_steps = max_steps;
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome once = us_fake_outcome(&r);
    us_fake_run_must(&r, US_FAKE_LAST); /* changes nothing */
    struct us_fake_outcome twice = us_fake_outcome(&r);
    us_fake_outcome_same(&once, &twice);
    us_fake_outcome_free(&once);
    r.cfg.max_epochs = 4;
    r.cfg.max_steps = 0;
    us_fake_run_must(&r, US_FAKE_LAST);
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void run_ended_by_max_epochs_goes_on_with_more_to_the_same_bytes(void **state)
{
    resumed_with_larger_limits(2, 0);
}

static void run_ended_by_max_steps_goes_on_with_more_to_the_same_bytes(void **state)
{
    resumed_with_larger_limits(9, 7);  /* within an epoch of five */
    resumed_with_larger_limits(9, 10); /* at an epoch's end */
    resumed_with_larger_limits(9, 1);
}

static void smaller_limit_ends_a_resumed_run_at_once(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.heard.cancel_at = 13; /* in the third epoch */
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    r.heard = (struct us_fake_heard){0};
    r.cfg.max_steps = 12;
    atomic_store(&us_fake_script.trained, 0);
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_int_equal(us_fake_script.trained, 0);
    assert_int_equal(r.heard.epochs, 1);
    us_fake_run_drop(&r);
}

static void run_that_ended_by_itself_is_not_continued(void **state)
{
    static const double se[] = {0.5, 0.6, 0.7};
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.max_epochs = 9;
    r.cfg.stop_patience = 2;
    us_fake_script.val_se = se;
    us_fake_script.n_val_se = US_COUNT(se);
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.epochs, 3);
    assert_int_equal(r.heard.notes, 0);
    r.cfg.max_epochs = 20;
    atomic_store(&us_fake_script.trained, 0);
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_int_equal(us_fake_script.trained, 0);
    assert_int_equal(r.heard.notes, 1);
    assert_non_null(strstr(r.heard.note, "after epoch 2, without gain in 2 epochs"));
    us_fake_run_drop(&r);
}

static void run_cancelled_within_validation_resumes_to_the_same_bytes(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    us_fake_run_wipe();
    r.heard = (struct us_fake_heard){.cancel_pass = "validation"};
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    assert_int_equal(r.heard.epochs, 0);
    r.heard = (struct us_fake_heard){0};
    us_fake_run_must(&r, US_FAKE_LAST);
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void run_cancelled_before_its_first_step_leaves_no_checkpoint(void **state)
{
    static const char *const pass[] = {"checksum of the training data", "statistics"};
    struct us_fake_run r;
    for (size_t i = 0; i < US_COUNT(pass); i++) {
        us_fake_run_prepare(&r, "vanilla");
        r.heard.cancel_pass = pass[i];
        assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
        assert_string_equal(r.heard.pass, pass[i]);
        assert_int_equal(us_fake_script.trained, 0);
        char p[128];
        assert_int_equal(access(us_fake_run_path(p, sizeof(p), US_FAKE_LAST), F_OK), -1);
        us_fake_run_drop(&r);
    }
}

static void other_backend_is_refused_unless_asked_for(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.heard.cancel_at = 4;
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    r.heard = (struct us_fake_heard){0};
    r.backend = "other";
    assert_int_equal(us_fake_run_go(&r, US_FAKE_LAST), US_E_ARG);
    assert_non_null(strstr(r.err.msg, "by backend ref in f32; this run is by other in f32"));
    r.elsewhere = true;
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_int_equal(r.heard.notes, 1);
    assert_non_null(strstr(r.heard.note, "ref in f32; continued by other"));
    assert_non_null(strstr(r.m->extra_json, "\"backend\": \"other\""));
    /* From here on it is a run of the other one. */
    r.elsewhere = false;
    us_fake_run_must(&r, US_FAKE_LAST);
    us_fake_run_drop(&r);
}

/* As the version before this one wrote them. */
static void strip_origin(const struct us_net *net)
{
    size_t floats = (size_t)net->n_floats * sizeof(float);
    size_t counters = (size_t)net->n_counters * sizeof(int64_t);
    static const char *const name[] = {"state-1",  "weights",      "counters",     "adamax.m",
                                       "adamax.u", "best.weights", "best.counters"};
    const size_t bytes[] = {
        sizeof(struct us_trainer_state), floats, counters, floats, floats, floats, counters};
    struct us_checkpoint_section s[US_COUNT(name)];
    char p[128];
    us_fake_run_path(p, sizeof(p), US_FAKE_LAST);
    for (size_t i = 0; i < US_COUNT(name); i++) {
        s[i] = (struct us_checkpoint_section){name[i], calloc(1, bytes[i] + 1), bytes[i]};
        assert_non_null(s[i].data);
    }
    assert_int_equal(us_checkpoint_read(p, s, US_COUNT(name), NULL), US_OK);
    assert_int_equal(us_checkpoint_write(p, NULL, s, US_COUNT(name), NULL), US_OK);
    for (size_t i = 0; i < US_COUNT(name); i++)
        free(s[i].data);
}

static void checkpoint_of_an_earlier_version_is_taken_with_a_note(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    us_fake_run_wipe();
    r.heard = (struct us_fake_heard){.cancel_at = 7};
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    strip_origin(r.m->net);
    r.heard = (struct us_fake_heard){0};
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_int_equal(r.heard.notes, 1);
    assert_non_null(strstr(r.heard.note, "earlier version"));
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void scratch(const char *name)
{
    char p[128];
    FILE *f = fopen(us_fake_run_path(p, sizeof(p), name), "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, 5000, SEEK_SET), 0);
    assert_int_equal(fputs("not what was here", f) >= 0, 1);
    assert_int_equal(fclose(f), 0);
}

static void damaged_checkpoints_are_refused_with_a_word_on_the_one_before(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    us_fake_run_must(&r, NULL);
    scratch(US_FAKE_LAST);
    /* Of another run: offered, not taken. */
    r.checkpoints = NULL;
    assert_int_equal(us_fake_run_go(&r, US_FAKE_LAST), US_E_CORRUPT);
    assert_non_null(strstr(r.err.msg, "the one before it is "));
    assert_non_null(strstr(r.err.msg, US_FAKE_PREVIOUS));
    r.checkpoints = "";
    scratch(US_FAKE_PREVIOUS);
    assert_int_equal(us_fake_run_go(&r, US_FAKE_LAST), US_E_CORRUPT);
    assert_non_null(strstr(r.err.msg, "nor does the one before it"));
    us_fake_run_drop(&r);
}

static void damaged_last_checkpoint_falls_back_to_the_previous(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome whole = us_fake_outcome(&r);
    char p[128];
    scratch(US_FAKE_LAST);
    r.heard = (struct us_fake_heard){.cancel_at = 11};
    assert_int_equal(us_fake_run_go(&r, US_FAKE_LAST), US_E_CANCELLED);
    assert_int_equal(r.heard.notes, 1);
    assert_non_null(strstr(r.heard.note, "checksum"));
    /* The good one is still there beside the new one: the damaged one did not take its place. */
    assert_int_equal(access(us_fake_run_path(p, sizeof(p), US_FAKE_LAST ".damaged"), F_OK), 0);
    assert_int_equal(unlink(us_fake_run_path(p, sizeof(p), US_FAKE_LAST)), 0);
    r.heard = (struct us_fake_heard){0};
    us_fake_run_must(&r, US_FAKE_LAST);
    struct us_fake_outcome resumed = us_fake_outcome(&r);
    us_fake_outcome_same(&whole, &resumed);
    us_fake_outcome_free(&whole);
    us_fake_run_drop(&r);
}

static void shortened_history_is_continued_without_a_hole(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.heard.cancel_at = 12;
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    char p[128];
    assert_int_equal(truncate(us_fake_run_path(p, sizeof(p), "history"), 0), 0);
    r.heard = (struct us_fake_heard){0};
    us_fake_run_must(&r, US_FAKE_LAST);
    size_t n;
    uint8_t *h = us_fake_run_slurp("history", &n);
    assert_true(n > 0 && h[0] == '{' && memchr(h, 0, n) == NULL);
    free(h);
    us_fake_run_drop(&r);
}

static float other_pixel(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    return us_fake_stripes(frame, plane, y, x) + (float)(frame == 1 && y == 7 && x == 9);
}

static float other_validation_pixel(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    return us_fake_stripes(frame, plane, y, x) + (float)(frame == 2 && y == 7 && x == 9);
}

static void resume_with_other_data_or_settings_is_refused_by_name(void **state)
{
    struct us_fake_run r, o;
    us_fake_run_prepare(&r, "lean");
    r.heard.cancel_at = 2;
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
    for (int i = 0; i < 10; i++) {
        us_fake_run_prepare(&o, "lean");
        static const char *const say[] = {"other training data",
                                          "seed",
                                          "lr",
                                          "n_filters",
                                          "z_dims",
                                          "batch",
                                          "mixing range",
                                          "augment",
                                          "lc_scales",
                                          "other validation data"};
        o.frames.pixel = i == 0 ? other_pixel : i == 9 ? other_validation_pixel : o.frames.pixel;
        o.cfg.seed = i == 1 ? 4 : o.cfg.seed;
        o.cfg.lr = i == 2 ? 2e-3 : o.cfg.lr;
        o.arch.n_filters = i == 3 ? 6 : 4;
        o.arch.z_dims[1] = i == 4 ? 6 : 4;
        o.cfg.batch = i == 5 ? 3 : 4;
        o.data.alpha_max[1] = i == 6 ? 0.9 : 0.5;
        o.data.augment = i == 7;
        o.arch.lc_scales = o.data.lc_scales = i == 8 ? 2 : 3;
        assert_int_equal(us_fake_run_go(&o, US_FAKE_LAST), US_E_ARG);
        if (strstr(o.err.msg, say[i]) == NULL)
            fail_msg("%s is not in: %s", say[i], o.err.msg);
        us_fake_run_drop(&o);
    }
    us_fake_run_drop(&r);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, us_fake_run_begin, us_fake_run_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(killed_vanilla_run_resumes_to_the_same_bytes),
        CASE(killed_lean_run_resumes_to_the_same_bytes_with_two_threads),
        CASE(cancelled_run_resumes_to_the_same_bytes_at_any_step),
        CASE(finished_run_resumed_just_returns_its_best),
        CASE(run_ended_by_max_epochs_goes_on_with_more_to_the_same_bytes),
        CASE(run_ended_by_max_steps_goes_on_with_more_to_the_same_bytes),
        CASE(smaller_limit_ends_a_resumed_run_at_once),
        CASE(run_that_ended_by_itself_is_not_continued),
        CASE(run_cancelled_within_validation_resumes_to_the_same_bytes),
        CASE(run_cancelled_before_its_first_step_leaves_no_checkpoint),
        CASE(other_backend_is_refused_unless_asked_for),
        CASE(checkpoint_of_an_earlier_version_is_taken_with_a_note),
        CASE(damaged_checkpoints_are_refused_with_a_word_on_the_one_before),
        CASE(damaged_last_checkpoint_falls_back_to_the_previous),
        CASE(shortened_history_is_continued_without_a_hole),
        CASE(resume_with_other_data_or_settings_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
