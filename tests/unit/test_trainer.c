/*
 * The training run on tiny networks and the reference backend: how it ends, what it skips, what it
 * learns. Resuming: test_trainer_resume.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_fake_run.h"

/* ---- how it ends --------------------------------------------------------------------------- */

static void run_ends_after_max_epochs_with_its_story_told(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.epochs, 3);
    assert_int_equal(r.heard.checkpoints, 3);
    assert_int_equal(us_fake_script.trained, 3 * US_FAKE_PER_EPOCH);
    assert_true(r.m->data.has_clip);
    assert_non_null(strstr(r.m->extra_json, "\"epochs\": 3"));
    size_t n;
    uint8_t *h = us_fake_run_slurp("history", &n);
    int lines = 0;
    for (size_t i = 0; i < n; i++)
        lines += h[i] == '\n';
    assert_int_equal(lines, 3); /* 15 steps: no line of the 50th */
    free(h);
    us_fake_run_drop(&r);
}

static void run_ends_after_max_steps_within_an_epoch(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.max_steps = 7; /* an epoch has five */
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.epochs, 2);
    assert_int_equal(us_fake_script.trained, US_FAKE_PER_EPOCH + 8);
    us_fake_run_drop(&r);
}

static void run_ends_when_validation_no_longer_improves(void **state)
{
    static const double se[] = {0.5, 0.4, 0.41, 0.42, 0.4, 0.39};
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.max_epochs = 40;
    r.cfg.stop_patience = 3;
    r.cfg.lr_patience = 1;
    us_fake_script.val_se = se;
    us_fake_script.n_val_se = US_COUNT(se);
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.epochs, 5);
    static const double lr[] = {1e-3, 1e-3, 1e-3, 5e-4, 5e-4};
    static const bool best[] = {true, true, false, false, false};
    for (int i = 0; i < 5; i++) {
        assert_true(r.heard.lr[i] == lr[i]);
        assert_int_equal(r.heard.best[i], best[i]);
    }
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 1,"));
    us_fake_run_drop(&r);
}

static void run_keeps_the_best_weights_not_the_last(void **state)
{
    static const double se[] = {0.5, 0.1, 0.7, 0.8};
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    us_fake_script.val_se = se;
    us_fake_script.n_val_se = US_COUNT(se);
    r.cfg.max_epochs = 2;
    us_fake_run_must(&r, NULL);
    size_t n = (size_t)r.m->net->n_floats * sizeof(float);
    float *two = malloc(n);
    assert_non_null(two);
    memcpy(two, r.m->weights, n);
    atomic_store(&us_fake_script.validated, 0);
    r.cfg.max_epochs = 4;
    us_fake_run_must(&r, NULL);
    assert_memory_equal(two, r.m->weights, n);
    free(two);
    us_fake_run_drop(&r);
}

static void run_without_validation_keeps_the_last_weights_and_rate(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.data.n_listed[US_SPLIT_VAL] = 0;
    r.cfg.lr_patience = 0;
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.epochs, 3);
    assert_true(r.heard.best[2] && r.heard.lr[2] == 1e-3);
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 2,"));
    assert_non_null(strstr(r.m->extra_json, "\"val_psnr\": null"));
    us_fake_run_drop(&r);
}

static void plateau_halves_the_rate_after_patience_plus_one_bad_epochs(void **state)
{
    struct us_trainer_state s = {.lr = 1e-3, .plateau_best = -INFINITY};
    struct us_trainer_config c = us_trainer_defaults();
    c.lr_patience = 2;
    static const double psnr[] = {20.0, 20.001, 20.002, 20.003, 19, 19, 19, 30, 19, 19, 19};
    static const double lr[] = {1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4, 2.5e-4};
    /* 20.001 is below 20 * 1.0001, 20.003 above it: the count begins anew after it. */
    for (size_t i = 0; i < US_COUNT(psnr); i++) {
        usi_trainer_plateau(&s, &c, psnr[i]);
        assert_true(s.lr == lr[i]);
    }
    s.lr = 1.5e-8; /* changes up to 1e-8 are ignored */
    for (int i = 0; i < 10; i++)
        usi_trainer_plateau(&s, &c, 1.0);
    assert_true(s.lr == 1.5e-8);
}

static void stop_counts_epochs_without_gain_and_ends_at_nan(void **state)
{
    struct us_trainer_state s = {.stop_best = -INFINITY};
    struct us_trainer_config c = us_trainer_defaults();
    c.stop_patience = 2;
    assert_false(usi_trainer_stops(&s, &c, -3.0));
    assert_false(usi_trainer_stops(&s, &c, -3.0 + 5e-7)); /* less than 1e-6 is no gain */
    assert_false(usi_trainer_stops(&s, &c, 1.0));
    assert_false(usi_trainer_stops(&s, &c, 1.0));
    assert_true(usi_trainer_stops(&s, &c, 1.0));
    assert_true(usi_trainer_stops(&s, &c, NAN));
}

static void kl_weight_grows_over_the_annealing_epochs(void **state)
{
    /* Loss minus reconstruction is the weight times KL: read from the history. */
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.kl_annealing = true;
    r.cfg.kl_start = 0;
    r.cfg.kl_anneal_epochs = 2;
    r.cfg.max_epochs = 4;
    us_fake_run_must(&r, NULL);
    static const double want[] = {0.0, 0.5, 1.0, 1.0};
    size_t n;
    char *h = (char *)us_fake_run_slurp("history", &n), *line = h;
    h[n] = '\0';
    for (int e = 0; e < 4; e++, line = strchr(line, '\n') + 1) {
        double loss, r0, r1, k0, k1;
        assert_int_equal(sscanf(strstr(line, "\"loss\""),
                                "\"loss\":%lf,\"rec\":[%lf,%lf],"
                                "\"kl_level\":[%lf,%lf]",
                                &loss, &r0, &r1, &k0, &k1),
                         5);
        double kl = (k0 + k1) / 2.0;
        assert_true(fabs(kl) > 1e-3);
        assert_true(fabs((loss - (r0 + r1) / 2.0) / kl - want[e]) < 1e-3);
    }
    free(h);
    us_fake_run_drop(&r);
}

/* ---- NaN ----------------------------------------------------------------------------------- */

static void nan_steps_are_skipped_counted_and_survived(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    us_fake_script.nan_from = 4; /* steps 1 and 2 */
    us_fake_script.nan_to = 12;
    us_fake_run_must(&r, NULL);
    assert_int_equal(r.heard.notes, 2);
    assert_non_null(strstr(r.m->extra_json, "\"skipped_steps\": 2,"));
    assert_true(isfinite(r.heard.psnr[2]));
    for (int64_t i = 0; i < r.m->net->n_floats; i++)
        assert_true(isfinite(r.m->weights[i]));
    us_fake_run_drop(&r);
}

static void too_many_nan_steps_fail_and_keep_the_checkpoint_before_them(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.checkpoint_steps = 1;
    r.cfg.max_skipped = 4;
    us_fake_script.nan_from = 12; /* from step 3 on; the epoch ends within the streak */
    us_fake_script.nan_to = INT64_MAX;
    r.cfg.batch = 3; /* six steps an epoch */
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_FORMAT);
    assert_non_null(strstr(r.err.msg, "4 steps in a row"));
    /* After steps 1 to 4 and the epoch; steps 5 to 8 are bad, but leave the weights alone. */
    assert_int_equal(r.heard.checkpoints, 5);
    /* Without the cause the run goes on from there. */
    us_fake_script.nan_to = 0;
    us_fake_run_must(&r, US_FAKE_LAST);
    assert_non_null(strstr(r.m->extra_json, "\"skipped_steps\": 2,"));
    us_fake_run_drop(&r);
}

/* ---- what it learns ------------------------------------------------------------------------ */

static void data_of_another_shape_than_the_model_are_refused(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    r.data.lc_scales = 1;
    assert_int_equal(us_fake_run_go(&r, NULL), US_E_ARG);
    assert_non_null(strstr(r.err.msg, "1 scales"));
    us_fake_run_drop(&r);
}

static void number_of_threads_changes_no_byte(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "lean");
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome one = us_fake_outcome(&r);
    r.cfg.train.threads = 3;
    us_fake_run_must(&r, NULL);
    struct us_fake_outcome three = us_fake_outcome(&r);
    us_fake_outcome_same(&one, &three);
    us_fake_outcome_free(&one);
    us_fake_run_drop(&r);
}

/* Half of the input for each channel, in the units and the range of the validation figure. */
static double guess_psnr(void)
{
    struct us_fake_frames f;
    struct us_dataset *d = NULL;
    static const int64_t frame[] = {0};
    us_fake_frames_init(&f, 1, US_FAKE_SIDE, US_FAKE_SIDE);
    struct us_dataset_config c = us_fake_config(US_FAKE_SIDE, 1);
    c.split = US_SPLIT_LISTED;
    c.listed[US_SPLIT_TRAIN] = frame;
    c.n_listed[US_SPLIT_TRAIN] = 1;
    assert_int_equal(us_dataset_open(&f.src, &c, &d, NULL), US_OK);
    assert_int_equal(us_dataset_compute_stats(d, NULL, NULL), US_OK);
    float *input = calloc(US_FAKE_SIDE * US_FAKE_SIDE, sizeof(float)),
          *target = calloc(2 * US_FAKE_SIDE * US_FAKE_SIDE, 4);
    assert_true(input != NULL && target != NULL);
    assert_int_equal(us_dataset_patch(d, US_SPLIT_TRAIN, 0, 0, &input, target, NULL), US_OK);
    const struct us_stats *s = us_dataset_stats(d);
    double psnr = 0.0;
    for (int k = 0; k < 2; k++) {
        double mse = 0.0, lo = INFINITY, hi = -INFINITY;
        for (int i = 0; i < US_FAKE_SIDE * US_FAKE_SIDE; i++) {
            double half = (double)input[i] * s->input_std + s->input_mean;
            double t = (double)target[2 * i + k];
            double e = (half - s->target_mean[k]) / s->target_std[k] - t;
            mse += e * e / (US_FAKE_SIDE * US_FAKE_SIDE);
            lo = fmin(lo, t);
            hi = fmax(hi, t);
        }
        psnr += 10.0 * log10((hi - lo) * (hi - lo) / mse);
    }
    us_dataset_free(d);
    free(input);
    free(target);
    return psnr / 2.0;
}

static void two_textures_are_told_apart_better_than_by_halving(void **state)
{
    struct us_fake_run r;
    us_fake_run_prepare(&r, "vanilla");
    r.cfg.max_epochs = 40;
    r.cfg.lr = 5e-3;
    r.arch.n_filters = 8;
    r.arch.dropout = 0.0f;
    us_fake_run_must(&r, NULL);
    double best = -INFINITY, guess = guess_psnr();
    for (int i = 0; i < r.heard.epochs; i++)
        best = fmax(best, r.heard.psnr[i]);
    print_message("psnr %.2f dB, half of the input %.2f dB\n", best, guess);
    assert_true(best > guess + 3.0);
    us_fake_run_drop(&r);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, us_fake_run_begin, us_fake_run_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(run_ends_after_max_epochs_with_its_story_told),
        CASE(run_ends_after_max_steps_within_an_epoch),
        CASE(run_ends_when_validation_no_longer_improves),
        CASE(run_keeps_the_best_weights_not_the_last),
        CASE(run_without_validation_keeps_the_last_weights_and_rate),
        CASE(plateau_halves_the_rate_after_patience_plus_one_bad_epochs),
        CASE(stop_counts_epochs_without_gain_and_ends_at_nan),
        CASE(kl_weight_grows_over_the_annealing_epochs),
        CASE(nan_steps_are_skipped_counted_and_survived),
        CASE(too_many_nan_steps_fail_and_keep_the_checkpoint_before_them),
        CASE(data_of_another_shape_than_the_model_are_refused),
        CASE(number_of_threads_changes_no_byte),
        CASE(two_textures_are_told_apart_better_than_by_halving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
