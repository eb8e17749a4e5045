/*
 * The training run on tiny networks and the reference backend: how it ends, what it skips, what it
 * refuses, and that a killed run resumed is bit for bit the run that was never interrupted.
 *
 * The backend's likelihood is wrapped: a test can script NaN losses for training and figures for
 * validation (recognised by its gradient weight 1; training's batches hold two patches or more).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "us_fake_frames.h"
#include "us_trainer_impl.h"

#define PATCH     16
#define SIDE      48
#define PER_EPOCH 18 /* patches: two frames of 3 x 3 */
#define FILE_MAX  (4 << 20)

static char folder[64];

/* ---- scripted backend ---------------------------------------------------------------------- */

static struct us_backend_ops scripted_ops;
static struct us_train_ops scripted_train;
static struct {
    int64_t nan_from, nan_to; /* training patches, counted from 0 */
    const double *val_se;     /* per validation, or NULL */
    int32_t n_val_se;
    _Atomic int64_t trained, validated;
} script;

static enum us_status scripted_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                          int32_t items, const float *head, const float *target,
                                          float grad_weight, double *rec, double *se, float *dhead)
{
    US_TRY(us_ref_train_ops.likelihood(be, d, items, head, target, grad_weight, rec, se, dhead));
    if (grad_weight == 1.0f) {
        int64_t epoch = atomic_fetch_add(&script.validated, 1) / (PER_EPOCH / 2);
        for (int32_t c = 0; script.val_se != NULL && c < d->targets; c++)
            se[c] = script.val_se[epoch < script.n_val_se ? epoch : script.n_val_se - 1];
        return US_OK;
    }
    int64_t i = atomic_fetch_add(&script.trained, 1);
    if (i >= script.nan_from && i < script.nan_to)
        rec[0] = NAN;
    return US_OK;
}

static struct us_backend *scripted_backend(void)
{
    struct us_backend *be = NULL;
    assert_int_equal(us_ref_open(&be, NULL), US_OK);
    scripted_ops = *us_backend_ops(be);
    scripted_train = us_ref_train_ops;
    scripted_train.likelihood = scripted_likelihood;
    scripted_ops.train = &scripted_train;
    ((struct us_backend_base *)(void *)be)->ops = &scripted_ops;
    return be;
}

/* ---- one run ------------------------------------------------------------------------------- */

struct heard {
    int32_t epochs, checkpoints, notes;
    double lr[64], psnr[64];
    bool best[64];
    atomic_bool cancel;
    int64_t cancel_at;
    char note[512];
};

static void hear(void *arg, const struct us_trainer_event *e)
{
    struct heard *h = arg;
    if (e->kind == US_TRAINER_STEP && e->step == h->cancel_at)
        atomic_store(&h->cancel, true);
    if (e->kind == US_TRAINER_EPOCH) {
        assert_true(h->epochs < 64);
        h->lr[h->epochs] = e->lr;
        h->psnr[h->epochs] = e->val_psnr;
        h->best[h->epochs++] = e->best;
    }
    h->checkpoints += e->kind == US_TRAINER_CHECKPOINT;
    if (e->kind == US_TRAINER_NOTE) {
        h->notes++;
        (void)snprintf(h->note, sizeof(h->note), "%s", e->note);
    }
}

struct run {
    struct us_model *m;
    struct us_dataset *d;
    struct us_backend *be;
    struct us_fake_frames frames;
    struct us_trainer_config cfg;
    struct us_dataset_config data;
    struct us_arch arch;
    struct heard heard;
    struct us_err err;
    const char *history, *checkpoints; /* names within the folder, or NULL */
};

static const char *path(char *text, size_t size, const char *name)
{
    (void)snprintf(text, size, "%s/%s", folder, name);
    return text;
}

/* Two training frames, one of validation. */
static void prepare(struct run *r, const char *variant)
{
    static const int64_t train[] = {0, 1}, val[] = {2};
    memset(r, 0, sizeof(*r));
    memset(&script, 0, sizeof(script));
    r->arch = us_arch_default();
    assert_int_equal(us_arch_set_variant(&r->arch, variant, NULL), US_OK);
    r->arch.n_levels = 2;
    r->arch.lc_scales = r->arch.lc_scales > 1 ? 3 : 1;
    r->arch.n_filters = 4;
    r->arch.z_dims[0] = r->arch.z_dims[1] = 4;
    us_fake_frames_init(&r->frames, 3, SIDE, SIDE);
    r->data = us_fake_config(PATCH, r->arch.lc_scales);
    r->data.split = US_SPLIT_LISTED;
    r->data.listed[US_SPLIT_TRAIN] = train;
    r->data.n_listed[US_SPLIT_TRAIN] = 2;
    r->data.listed[US_SPLIT_VAL] = val;
    r->data.n_listed[US_SPLIT_VAL] = 1;
    r->cfg = us_trainer_defaults();
    r->cfg.batch = 4;
    r->cfg.max_epochs = 3;
    r->cfg.seed = 3;
    r->cfg.train.threads = 1;
    r->history = "history";
    r->checkpoints = "";
}

static enum us_status go(struct run *r, const char *resume)
{
    char history[128], from[128];
    r->be = scripted_backend();
    us_model_free(r->m);
    r->m = NULL;
    assert_int_equal(us_model_new(&r->arch, PATCH, 1, &r->m, NULL), US_OK);
    r->err = (struct us_err){0};
    enum us_status s = us_dataset_open(&r->frames.src, &r->data, &r->d, &r->err);
    const struct us_trainer_io io = {
        .checkpoint_dir = r->checkpoints != NULL ? folder : NULL,
        .history_path = r->history != NULL ? path(history, sizeof(history), r->history) : NULL,
        .event = hear,
        .arg = &r->heard,
        .cancel = &r->heard.cancel};
    if (s == US_OK)
        s = us_trainer_run(r->m, r->d, r->be, &r->cfg, &io,
                           resume != NULL ? path(from, sizeof(from), resume) : NULL, &r->err);
    us_dataset_free(r->d);
    r->d = NULL;
    us_backend_ops(r->be)->free(r->be);
    return s;
}

static void must(struct run *r, const char *resume)
{
    if (go(r, resume) != US_OK)
        fail_msg("%s", r->err.msg);
}

static void drop(struct run *r)
{
    us_model_free(r->m);
}

#define LAST "last.usplit-ckpt"

static uint8_t *slurp(const char *name, size_t *ret_n)
{
    char p[128];
    FILE *f = fopen(path(p, sizeof(p), name), "rb");
    assert_non_null(f);
    uint8_t *bytes = malloc(FILE_MAX);
    assert_non_null(bytes);
    *ret_n = fread(bytes, 1, FILE_MAX, f);
    assert_true(*ret_n < FILE_MAX);
    assert_int_equal(fclose(f), 0);
    return bytes;
}

static void wipe(void)
{
    static const char *const names[] = {LAST, LAST ".writing", LAST ".damaged",
                                        "previous.usplit-ckpt", "history"};
    char p[128];
    for (size_t i = 0; i < US_COUNT(names); i++)
        (void)unlink(path(p, sizeof(p), names[i]));
}

static int begin(void **state)
{
    (void)snprintf(folder, sizeof(folder), "%s/usplit-train-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(folder));
    return 0;
}

static int end(void **state)
{
    wipe();
    return rmdir(folder);
}

/* Everything that a run leaves: weights of the model, the whole last checkpoint (moments, best,
 * counters), the history. */
struct outcome {
    float *weights;
    size_t n_floats, n_last, n_history;
    uint8_t *last, *history;
};

static struct outcome outcome_of(const struct run *r)
{
    struct outcome o = {.n_floats = (size_t)r->m->net->n_floats};
    o.weights = malloc(o.n_floats * sizeof(float));
    assert_non_null(o.weights);
    memcpy(o.weights, r->m->weights, o.n_floats * sizeof(float));
    o.last = slurp(LAST, &o.n_last);
    o.history = slurp("history", &o.n_history);
    return o;
}

static void assert_same_and_free(struct outcome *a, struct outcome *b)
{
    assert_int_equal(a->n_floats, b->n_floats);
    assert_memory_equal(a->weights, b->weights, a->n_floats * sizeof(float));
    assert_int_equal(a->n_history, b->n_history);
    assert_memory_equal(a->history, b->history, a->n_history);
    assert_int_equal(a->n_last, b->n_last);
    assert_memory_equal(a->last, b->last, a->n_last);
    free(b->weights);
    free(b->last);
    free(b->history);
}

static void outcome_free(struct outcome *o)
{
    free(o->weights);
    free(o->last);
    free(o->history);
}

/* ---- how it ends --------------------------------------------------------------------------- */

static void run_ends_after_max_epochs_with_its_story_told(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    must(&r, NULL);
    assert_int_equal(r.heard.epochs, 3);
    assert_int_equal(r.heard.checkpoints, 3);
    assert_int_equal(script.trained, 3 * PER_EPOCH);
    assert_true(r.m->data.has_clip);
    assert_non_null(strstr(r.m->extra_json, "\"epochs\": 3"));
    size_t n;
    uint8_t *h = slurp("history", &n);
    int lines = 0;
    for (size_t i = 0; i < n; i++)
        lines += h[i] == '\n';
    assert_int_equal(lines, 3); /* 15 steps: no line of the 50th */
    free(h);
    drop(&r);
}

static void run_ends_after_max_steps_within_an_epoch(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.max_steps = 7; /* an epoch has five */
    must(&r, NULL);
    assert_int_equal(r.heard.epochs, 2);
    assert_int_equal(script.trained, PER_EPOCH + 8);
    drop(&r);
}

static void run_ends_when_validation_no_longer_improves(void **state)
{
    static const double se[] = {0.5, 0.4, 0.41, 0.42, 0.4, 0.39};
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.max_epochs = 40;
    r.cfg.stop_patience = 3;
    r.cfg.lr_patience = 1;
    script.val_se = se;
    script.n_val_se = US_COUNT(se);
    must(&r, NULL);
    assert_int_equal(r.heard.epochs, 5);
    static const double lr[] = {1e-3, 1e-3, 1e-3, 5e-4, 5e-4};
    static const bool best[] = {true, true, false, false, false};
    for (int i = 0; i < 5; i++) {
        assert_true(r.heard.lr[i] == lr[i]);
        assert_int_equal(r.heard.best[i], best[i]);
    }
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 1,"));
    drop(&r);
}

static void run_keeps_the_best_weights_not_the_last(void **state)
{
    static const double se[] = {0.5, 0.1, 0.7, 0.8};
    struct run r;
    prepare(&r, "vanilla");
    script.val_se = se;
    script.n_val_se = US_COUNT(se);
    r.cfg.max_epochs = 2;
    must(&r, NULL);
    size_t n = (size_t)r.m->net->n_floats * sizeof(float);
    float *two = malloc(n);
    assert_non_null(two);
    memcpy(two, r.m->weights, n);
    atomic_store(&script.validated, 0);
    r.cfg.max_epochs = 4;
    must(&r, NULL);
    assert_memory_equal(two, r.m->weights, n);
    free(two);
    drop(&r);
}

static void run_without_validation_keeps_the_last_weights_and_rate(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    r.data.n_listed[US_SPLIT_VAL] = 0;
    r.cfg.lr_patience = 0;
    must(&r, NULL);
    assert_int_equal(r.heard.epochs, 3);
    assert_true(r.heard.best[2] && r.heard.lr[2] == 1e-3);
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 2,"));
    assert_non_null(strstr(r.m->extra_json, "\"val_psnr\": null"));
    drop(&r);
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
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.kl_annealing = true;
    r.cfg.kl_start = 0;
    r.cfg.kl_anneal_epochs = 2;
    r.cfg.max_epochs = 4;
    must(&r, NULL);
    static const double want[] = {0.0, 0.5, 1.0, 1.0};
    size_t n;
    char *h = (char *)slurp("history", &n), *line = h;
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
    drop(&r);
}

/* ---- NaN ----------------------------------------------------------------------------------- */

static void nan_steps_are_skipped_counted_and_survived(void **state)
{
    struct run r;
    prepare(&r, "lean");
    script.nan_from = 4; /* steps 1 and 2 */
    script.nan_to = 12;
    must(&r, NULL);
    assert_int_equal(r.heard.notes, 2);
    assert_non_null(strstr(r.m->extra_json, "\"skipped_steps\": 2,"));
    assert_true(isfinite(r.heard.psnr[2]));
    for (int64_t i = 0; i < r.m->net->n_floats; i++)
        assert_true(isfinite(r.m->weights[i]));
    drop(&r);
}

static void too_many_nan_steps_fail_and_keep_the_checkpoint_before_them(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.checkpoint_steps = 1;
    r.cfg.max_skipped = 4;
    script.nan_from = 12; /* from step 3 on; the epoch ends within the streak */
    script.nan_to = INT64_MAX;
    r.cfg.batch = 3; /* six steps an epoch */
    assert_int_equal(go(&r, NULL), US_E_FORMAT);
    assert_non_null(strstr(r.err.msg, "4 steps in a row"));
    /* After steps 1 to 4 and the epoch; steps 5 to 8 are bad, but leave the weights alone. */
    assert_int_equal(r.heard.checkpoints, 5);
    /* Without the cause the run goes on from there. */
    script.nan_to = 0;
    must(&r, LAST);
    assert_non_null(strstr(r.m->extra_json, "\"skipped_steps\": 2,"));
    drop(&r);
}

/* ---- resume -------------------------------------------------------------------------------- */

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void killed_run_resumes_to_the_same_bytes(const char *variant, int32_t threads)
{
    struct run r;
    prepare(&r, variant);
    r.cfg.checkpoint_steps = 2;
    r.cfg.max_epochs = 12;
    r.cfg.train.threads = threads;
    r.data.augment = true;
    r.data.alpha_min[0] = 0.3;
    r.data.alpha_max[0] = 0.7;
    double began = now_s();
    must(&r, NULL);
    double lasts_micros =
        1e6 * (now_s() - began); /* kills are spread over it, however slow it is */
    struct outcome whole = outcome_of(&r);
    wipe();
    unsigned seed = 99;
    int killed = 0, resumed_from_file = 0;
    for (int round = 0; round < 40; round++) {
        char p[128];
        bool there = access(path(p, sizeof(p), LAST), F_OK) == 0 ||
                     access(path(p, sizeof(p), "previous.usplit-ckpt"), F_OK) == 0;
        resumed_from_file += there;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(go(&r, there ? LAST : NULL) == US_OK ? 0 : 1);
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
    must(&r, LAST);
    struct outcome resumed = outcome_of(&r);
    assert_same_and_free(&whole, &resumed);
    outcome_free(&whole);
    drop(&r);
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
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.max_epochs = 2;
    r.cfg.max_steps = 9;
    must(&r, NULL);
    struct outcome whole = outcome_of(&r);
    /* In mid-epoch, at its last step, at the run's last. */
    static const int64_t at[] = {1, 5, 8, 9};
    for (size_t i = 0; i < US_COUNT(at); i++) {
        wipe();
        r.heard = (struct heard){.cancel_at = at[i]};
        assert_int_equal(go(&r, NULL), US_E_CANCELLED);
        r.heard = (struct heard){0};
        must(&r, LAST);
        struct outcome resumed = outcome_of(&r);
        assert_same_and_free(&whole, &resumed);
    }
    outcome_free(&whole);
    drop(&r);
}

static void finished_run_resumed_just_returns_its_best(void **state)
{
    static const double se[] = {0.5, 0.1, 0.7};
    struct run r;
    prepare(&r, "vanilla");
    script.val_se = se;
    script.n_val_se = US_COUNT(se);
    must(&r, NULL);
    struct outcome whole = outcome_of(&r);
    script.val_se = NULL;
    atomic_store(&script.trained, 0);
    must(&r, LAST);
    assert_int_equal(script.trained, 0);
    assert_non_null(strstr(r.m->extra_json, "\"best_epoch\": 1,"));
    struct outcome resumed = outcome_of(&r);
    assert_same_and_free(&whole, &resumed);
    outcome_free(&whole);
    drop(&r);
}

static void damaged_last_checkpoint_falls_back_to_the_previous(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    must(&r, NULL);
    struct outcome whole = outcome_of(&r);
    char p[128];
    FILE *f = fopen(path(p, sizeof(p), LAST), "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, 5000, SEEK_SET), 0);
    assert_int_equal(fputs("not what was here", f) >= 0, 1);
    assert_int_equal(fclose(f), 0);
    r.heard = (struct heard){.cancel_at = 11};
    assert_int_equal(go(&r, LAST), US_E_CANCELLED);
    assert_int_equal(r.heard.notes, 1);
    assert_non_null(strstr(r.heard.note, "checksum"));
    /* The good one is still there beside the new one: the damaged one did not take its place. */
    assert_int_equal(access(path(p, sizeof(p), LAST ".damaged"), F_OK), 0);
    assert_int_equal(unlink(path(p, sizeof(p), LAST)), 0);
    r.heard = (struct heard){0};
    must(&r, LAST);
    struct outcome resumed = outcome_of(&r);
    assert_same_and_free(&whole, &resumed);
    outcome_free(&whole);
    drop(&r);
}

static void shortened_history_is_continued_without_a_hole(void **state)
{
    struct run r;
    prepare(&r, "vanilla");
    r.heard.cancel_at = 12;
    assert_int_equal(go(&r, NULL), US_E_CANCELLED);
    char p[128];
    assert_int_equal(truncate(path(p, sizeof(p), "history"), 0), 0);
    r.heard = (struct heard){0};
    must(&r, LAST);
    size_t n;
    uint8_t *h = slurp("history", &n);
    assert_true(n > 0 && h[0] == '{' && memchr(h, 0, n) == NULL);
    free(h);
    drop(&r);
}

static float other_pixel(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    return us_fake_stripes(frame, plane, y, x) + (float)(frame == 1 && y == 7 && x == 9);
}

static void resume_with_other_data_or_settings_is_refused_by_name(void **state)
{
    struct run r, o;
    prepare(&r, "lean");
    r.heard.cancel_at = 2;
    assert_int_equal(go(&r, NULL), US_E_CANCELLED);
    for (int i = 0; i < 9; i++) {
        prepare(&o, "lean");
        static const char *const say[] = {"other training data", "seed",    "lr",
                                          "n_filters",           "z_dims",  "batch",
                                          "mixing range",        "augment", "lc_scales"};
        o.frames.pixel = i == 0 ? other_pixel : o.frames.pixel;
        o.cfg.seed = i == 1 ? 4 : o.cfg.seed;
        o.cfg.lr = i == 2 ? 2e-3 : o.cfg.lr;
        o.arch.n_filters = i == 3 ? 6 : 4;
        o.arch.z_dims[1] = i == 4 ? 6 : 4;
        o.cfg.batch = i == 5 ? 3 : 4;
        o.data.alpha_max[1] = i == 6 ? 0.9 : 0.5;
        o.data.augment = i == 7;
        o.arch.lc_scales = o.data.lc_scales = i == 8 ? 2 : 3;
        assert_int_equal(go(&o, LAST), US_E_ARG);
        /* Other sizes of tensors show before the settings are compared. */
        if (strstr(o.err.msg, say[i]) == NULL && strstr(o.err.msg, "section") == NULL)
            fail_msg("%s is not in: %s", say[i], o.err.msg);
        drop(&o);
    }
    drop(&r);
}

static void data_of_another_shape_than_the_model_are_refused(void **state)
{
    struct run r;
    prepare(&r, "lean");
    r.data.lc_scales = 1;
    assert_int_equal(go(&r, NULL), US_E_ARG);
    assert_non_null(strstr(r.err.msg, "1 scales"));
    drop(&r);
}

/* ---- what it learns ------------------------------------------------------------------------ */

static void number_of_threads_changes_no_byte(void **state)
{
    struct run r;
    prepare(&r, "lean");
    must(&r, NULL);
    struct outcome one = outcome_of(&r);
    r.cfg.train.threads = 3;
    must(&r, NULL);
    struct outcome three = outcome_of(&r);
    assert_same_and_free(&one, &three);
    outcome_free(&one);
    drop(&r);
}

/* Half of the input for each channel, in the units and the range of the validation figure. */
static double guess_psnr(void)
{
    struct us_fake_frames f;
    struct us_dataset *d = NULL;
    static const int64_t frame[] = {0};
    us_fake_frames_init(&f, 1, SIDE, SIDE);
    struct us_dataset_config c = us_fake_config(SIDE, 1);
    c.split = US_SPLIT_LISTED;
    c.listed[US_SPLIT_TRAIN] = frame;
    c.n_listed[US_SPLIT_TRAIN] = 1;
    assert_int_equal(us_dataset_open(&f.src, &c, &d, NULL), US_OK);
    assert_int_equal(us_dataset_compute_stats(d, NULL, NULL), US_OK);
    float *input = calloc(SIDE * SIDE, sizeof(float)), *target = calloc(2 * SIDE * SIDE, 4);
    assert_true(input != NULL && target != NULL);
    assert_int_equal(us_dataset_patch(d, US_SPLIT_TRAIN, 0, 0, &input, target, NULL), US_OK);
    const struct us_stats *s = us_dataset_stats(d);
    double psnr = 0.0;
    for (int k = 0; k < 2; k++) {
        double mse = 0.0, lo = INFINITY, hi = -INFINITY;
        for (int i = 0; i < SIDE * SIDE; i++) {
            double half = (double)input[i] * s->input_std + s->input_mean;
            double t = (double)target[2 * i + k];
            double e = (half - s->target_mean[k]) / s->target_std[k] - t;
            mse += e * e / (SIDE * SIDE);
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
    struct run r;
    prepare(&r, "vanilla");
    r.cfg.max_epochs = 40;
    r.cfg.lr = 5e-3;
    r.arch.n_filters = 8;
    r.arch.dropout = 0.0f;
    must(&r, NULL);
    double best = -INFINITY, guess = guess_psnr();
    for (int i = 0; i < r.heard.epochs; i++)
        best = fmax(best, r.heard.psnr[i]);
    print_message("psnr %.2f dB, half of the input %.2f dB\n", best, guess);
    assert_true(best > guess + 3.0);
    drop(&r);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, begin, end)

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
        CASE(killed_vanilla_run_resumes_to_the_same_bytes),
        CASE(killed_lean_run_resumes_to_the_same_bytes_with_two_threads),
        CASE(cancelled_run_resumes_to_the_same_bytes_at_any_step),
        CASE(finished_run_resumed_just_returns_its_best),
        CASE(damaged_last_checkpoint_falls_back_to_the_previous),
        CASE(shortened_history_is_continued_without_a_hole),
        CASE(resume_with_other_data_or_settings_is_refused_by_name),
        CASE(data_of_another_shape_than_the_model_are_refused),
        CASE(number_of_threads_changes_no_byte),
        CASE(two_textures_are_told_apart_better_than_by_halving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
