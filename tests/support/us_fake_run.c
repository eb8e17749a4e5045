/* Training runs on a scripted backend; see us_fake_run.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_fake_run.h"

#define FILE_MAX (4 << 20)

static char folder[64];

static struct us_backend_ops scripted_ops;
static struct us_train_ops scripted_train;
struct us_fake_script us_fake_script;

static enum us_status scripted_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                          int32_t items, const float *head, const float *target,
                                          float grad_weight, double *rec, double *se, float *dhead)
{
    US_TRY(us_ref_train_ops.likelihood(be, d, items, head, target, grad_weight, rec, se, dhead));
    if (grad_weight == 1.0f) {
        int64_t epoch = atomic_fetch_add(&us_fake_script.validated, 1) / (US_FAKE_PER_EPOCH / 2);
        for (int32_t c = 0; us_fake_script.val_se != NULL && c < d->targets; c++)
            se[c] =
                us_fake_script
                    .val_se[epoch < us_fake_script.n_val_se ? epoch : us_fake_script.n_val_se - 1];
        return US_OK;
    }
    int64_t i = atomic_fetch_add(&us_fake_script.trained, 1);
    if (i >= us_fake_script.nan_from && i < us_fake_script.nan_to)
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

static void hear(void *arg, const struct us_trainer_event *e)
{
    struct us_fake_heard *h = arg;
    if (e->kind == US_TRAINER_STEP && e->step == h->cancel_at)
        atomic_store(&h->cancel, true);
    if (e->kind == US_TRAINER_EPOCH) {
        assert_true(h->epochs < 64);
        h->lr[h->epochs] = e->lr;
        h->psnr[h->epochs] = e->val_psnr;
        h->best[h->epochs++] = e->best;
    }
    h->checkpoints += e->kind == US_TRAINER_CHECKPOINT;
    if (e->kind == US_TRAINER_PROGRESS) {
        assert_true(e->pass_done >= 1 && e->pass_done <= e->pass_total);
        h->passed = strcmp(h->pass, e->note) == 0 ? h->passed + 1 : 1;
        (void)snprintf(h->pass, sizeof(h->pass), "%s", e->note);
        if (h->cancel_pass != NULL && strcmp(e->note, h->cancel_pass) == 0 && h->passed == 3)
            atomic_store(&h->cancel, true);
    }
    if (e->kind == US_TRAINER_NOTE) {
        h->notes++;
        (void)snprintf(h->note, sizeof(h->note), "%s", e->note);
    }
}

const char *us_fake_run_path(char *text, size_t size, const char *name)
{
    (void)snprintf(text, size, "%s/%s", folder, name);
    return text;
}

void us_fake_run_prepare(struct us_fake_run *r, const char *variant)
{
    static const int64_t train[] = {0, 1}, val[] = {2};
    memset(r, 0, sizeof(*r));
    memset(&us_fake_script, 0, sizeof(us_fake_script));
    r->arch = us_arch_default();
    assert_int_equal(us_arch_set_variant(&r->arch, variant, NULL), US_OK);
    r->arch.n_levels = 2;
    r->arch.lc_scales = r->arch.lc_scales > 1 ? 3 : 1;
    r->arch.n_filters = 4;
    r->arch.z_dims[0] = r->arch.z_dims[1] = 4;
    us_fake_frames_init(&r->frames, 3, US_FAKE_SIDE, US_FAKE_SIDE);
    r->data = us_fake_config(US_FAKE_PATCH, r->arch.lc_scales);
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
    r->backend = "ref";
}

enum us_status us_fake_run_go(struct us_fake_run *r, const char *resume)
{
    char history[128], from[128];
    if (r->open != NULL)
        assert_int_equal(r->open(&r->be, NULL), US_OK);
    else
        r->be = scripted_backend();
    scripted_ops.name = r->backend;
    us_model_free(r->m);
    r->m = NULL;
    assert_int_equal(us_model_new(&r->arch, US_FAKE_PATCH, 1, &r->m, NULL), US_OK);
    r->err = (struct us_err){0};
    enum us_status s = us_dataset_open(&r->frames.src, &r->data, &r->d, &r->err);
    const struct us_trainer_io io = {
        .checkpoint_dir = r->checkpoints != NULL ? folder : NULL,
        .history_path =
            r->history != NULL ? us_fake_run_path(history, sizeof(history), r->history) : NULL,
        .event = hear,
        .arg = &r->heard,
        .cancel = &r->heard.cancel,
        .resume_elsewhere = r->elsewhere};
    if (s == US_OK)
        s = us_trainer_run(r->m, r->d, r->be, &r->cfg, &io,
                           resume != NULL ? us_fake_run_path(from, sizeof(from), resume) : NULL,
                           &r->err);
    us_dataset_free(r->d);
    r->d = NULL;
    us_backend_ops(r->be)->free(r->be);
    return s;
}

void us_fake_run_must(struct us_fake_run *r, const char *resume)
{
    if (us_fake_run_go(r, resume) != US_OK)
        fail_msg("%s", r->err.msg);
}

void us_fake_run_drop(struct us_fake_run *r)
{
    us_model_free(r->m);
}

uint8_t *us_fake_run_slurp(const char *name, size_t *ret_n)
{
    char p[128];
    FILE *f = fopen(us_fake_run_path(p, sizeof(p), name), "rb");
    assert_non_null(f);
    uint8_t *bytes = malloc(FILE_MAX);
    assert_non_null(bytes);
    *ret_n = fread(bytes, 1, FILE_MAX, f);
    assert_true(*ret_n < FILE_MAX);
    assert_int_equal(fclose(f), 0);
    return bytes;
}

void us_fake_run_wipe(void)
{
    static const char *const names[] = {US_FAKE_LAST, US_FAKE_LAST ".writing",
                                        US_FAKE_LAST ".damaged", US_FAKE_PREVIOUS, "history"};
    char p[128];
    for (size_t i = 0; i < US_COUNT(names); i++)
        (void)unlink(us_fake_run_path(p, sizeof(p), names[i]));
}

int us_fake_run_begin(void **state)
{
    (void)snprintf(folder, sizeof(folder), "%s/usplit-train-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(folder));
    return 0;
}

int us_fake_run_end(void **state)
{
    us_fake_run_wipe();
    return rmdir(folder);
}

struct us_fake_outcome us_fake_outcome(const struct us_fake_run *r)
{
    struct us_fake_outcome o = {.n_floats = (size_t)r->m->net->n_floats};
    o.weights = malloc(o.n_floats * sizeof(float));
    assert_non_null(o.weights);
    memcpy(o.weights, r->m->weights, o.n_floats * sizeof(float));
    o.last = us_fake_run_slurp(US_FAKE_LAST, &o.n_last);
    o.history = us_fake_run_slurp("history", &o.n_history);
    return o;
}

void us_fake_outcome_same(struct us_fake_outcome *a, struct us_fake_outcome *b)
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

void us_fake_outcome_free(struct us_fake_outcome *o)
{
    free(o->weights);
    free(o->last);
    free(o->history);
}
