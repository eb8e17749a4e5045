/*
 * The training run (us_trainer.h, model-spec 15): the loop over epochs and steps, the schedule and
 * the end. All that decides what comes next stands in struct us_trainer_state, which checkpoints
 * carry; nothing is remembered elsewhere.
 */
#include "us_trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_trainer_impl.h"

#define LOADER_THREADS   1
#define LOADER_AHEAD     3
#define HISTORY_STEPS    50
#define PLATEAU_REL      1e-4 /* spec 15.3 */
#define STOP_DELTA       1e-6
#define LR_CHANGE_MIN    1e-8
#define PATH_ROOM        32
#define PROVENANCE_BYTES 4096

struct us_trainer_config us_trainer_defaults(void)
{
    return (struct us_trainer_config){.batch = 32,
                                      .max_epochs = 200,
                                      .lr = 1e-3,
                                      .lr_patience = 15,
                                      .lr_factor = 0.5,
                                      .lr_min = 1e-12,
                                      .stop_patience = 100,
                                      .kl_weight = 1.0,
                                      .kl_start = -1,
                                      .kl_anneal_epochs = 10,
                                      .max_skipped = 20,
                                      .checkpoint_steps = 500,
                                      .train = {.clip_norm = 0.5f}};
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- schedule (15.3) ----------------------------------------------------------------------- */

static double kl_weight(const struct us_trainer *t)
{
    if (!t->cfg.kl_annealing)
        return t->cfg.kl_weight;
    double x = ((double)t->state.epoch - t->cfg.kl_start) / fmax(1.0, t->cfg.kl_anneal_epochs);
    return t->cfg.kl_weight * fmin(1.0, fmax(0.0, x));
}

/* At the (patience + 1)-th epoch in a row that is no better than best * 1.0001. Not written as
 * best + a part of |best|, which is no number while the best is still -infinity. */
void usi_trainer_plateau(struct us_trainer_state *s, const struct us_trainer_config *cfg,
                         double psnr)
{
    if (psnr > s->plateau_best * (1.0 + PLATEAU_REL)) {
        s->plateau_best = psnr;
        s->plateau_bad = 0;
        return;
    }
    if (++s->plateau_bad <= cfg->lr_patience)
        return;
    s->plateau_bad = 0;
    double lr = fmax(s->lr * cfg->lr_factor, cfg->lr_min);
    if (s->lr - lr > LR_CHANGE_MIN)
        s->lr = lr;
}

bool usi_trainer_stops(struct us_trainer_state *s, const struct us_trainer_config *cfg, double psnr)
{
    if (!isfinite(psnr))
        return true;
    if (psnr - STOP_DELTA > s->stop_best) {
        s->stop_best = psnr;
        s->stop_bad = 0;
        return false;
    }
    return ++s->stop_bad >= cfg->stop_patience;
}

/* The first epoch is the best so far whatever its figure, and any number is better than none.
 * Without a validation split the latest is. */
static bool is_best(const struct us_trainer *t, double psnr)
{
    double best = t->state.best_psnr;
    if (us_dataset_n_patches(t->d, US_SPLIT_VAL) == 0 || best == -INFINITY)
        return true;
    return psnr > best || (isnan(best) && !isnan(psnr));
}

static void keep_best(struct us_trainer *t, const struct us_validation *v)
{
    const struct us_net *net = t->m->net;
    memcpy(t->best_weights, t->m->weights, (size_t)net->n_floats * sizeof(float));
    memcpy(t->best_counters, t->m->counters, (size_t)net->n_counters * sizeof(int64_t));
    t->state.best_epoch = t->state.epoch;
    t->state.best_psnr = v->psnr;
    t->state.best_loss = v->loss;
    memcpy(t->state.best_psnr_channel, v->psnr_channel, sizeof(v->psnr_channel));
}

/* ---- telling ------------------------------------------------------------------------------- */

static void estimate(const struct us_trainer *t, struct us_trainer_event *e)
{
    double spent = now_s() - t->started_s;
    e->patches_per_s = spent > 0.0 ? (double)t->patches_here / spent : 0.0;
    int64_t per_epoch = e->epoch_total;
    int64_t left = (t->cfg.max_epochs - (int64_t)t->state.epoch) * per_epoch - t->state.position;
    if (t->cfg.max_steps > 0) {
        int64_t steps = (t->cfg.max_steps - t->state.step) * t->cfg.batch;
        left = steps < left ? steps : left;
    }
    e->seconds_left = e->patches_per_s > 0.0 ? (double)left / e->patches_per_s : NAN;
}

static void tell(struct us_trainer *t, struct us_trainer_event *e)
{
    if (t->io->event == NULL)
        return;
    e->epoch = t->state.epoch;
    e->step = t->state.step;
    e->epoch_done = t->state.position;
    e->epoch_total = us_dataset_n_patches(t->d, US_SPLIT_TRAIN);
    e->lr = t->state.lr;
    e->n_skipped = t->state.n_skipped;
    estimate(t, e);
    t->io->event(t->io->arg, e);
}

void usi_trainer_progress(void *arg, int64_t done, int64_t total)
{
    struct us_trainer *t = arg;
    struct us_trainer_event e = {
        .kind = US_TRAINER_PROGRESS, .note = t->pass, .pass_done = done, .pass_total = total};
    tell(t, &e);
}

/* JSON has no NaN: null. */
static const char *number(char *text, size_t size, double x)
{
    if (isfinite(x))
        (void)snprintf(text, size, "%.9g", x);
    else
        (void)snprintf(text, size, "null");
    return text;
}

/* "[a,b,..]" */
static const char *numbers(char *text, size_t size, const double *x, int32_t n)
{
    size_t used = 0;
    char one[32];
    for (int32_t i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", i ? "," : "[",
                                 number(one, sizeof(one), x[i]));
    if (used < size)
        (void)snprintf(text + used, size - used, n > 0 ? "]" : "[]");
    return text;
}

static enum us_status write_step(struct us_trainer *t, const struct us_train_result *r,
                                 struct us_err *err)
{
    char loss[32], norm[32], rec[512], kl[512];
    if (t->state.step % HISTORY_STEPS != 0 && !r->skipped)
        return US_OK;
    return usi_history_line(
        t, err,
        "{\"event\":\"step\",\"epoch\":%u,\"step\":%lld,\"loss\":%s,\"rec\":%s,\"kl_level\":%s,"
        "\"grad_norm\":%s,\"lr\":%.9g,\"skipped\":%s}\n",
        t->state.epoch, (long long)t->state.step, number(loss, sizeof(loss), r->loss),
        numbers(rec, sizeof(rec), r->rec, t->m->arch.target_channels),
        numbers(kl, sizeof(kl), r->kl_level, t->m->arch.n_levels),
        number(norm, sizeof(norm), r->grad_norm), t->state.lr, r->skipped ? "true" : "false");
}

static enum us_status write_epoch(struct us_trainer *t, const struct us_train_result *mean,
                                  const struct us_validation *v, bool best, struct us_err *err)
{
    char loss[32], vloss[32], psnr[32], rec[512], kl[512], channels[512];
    return usi_history_line(
        t, err,
        "{\"event\":\"epoch\",\"epoch\":%u,\"step\":%lld,\"loss\":%s,\"rec\":%s,\"kl_level\":%s,"
        "\"lr\":%.9g,\"val_loss\":%s,\"val_psnr\":%s,\"val_psnr_channel\":%s,\"best\":%s,"
        "\"skipped\":%lld}\n",
        t->state.epoch, (long long)t->state.step, number(loss, sizeof(loss), mean->loss),
        numbers(rec, sizeof(rec), mean->rec, t->m->arch.target_channels),
        numbers(kl, sizeof(kl), mean->kl_level, t->m->arch.n_levels), t->state.lr,
        number(vloss, sizeof(vloss), v->loss), number(psnr, sizeof(psnr), v->psnr),
        numbers(channels, sizeof(channels), v->psnr_channel, t->m->arch.target_channels),
        best ? "true" : "false", (long long)t->state.n_skipped);
}

/* ---- steps --------------------------------------------------------------------------------- */

static void add_result(struct us_trainer_state *s, const struct us_train_result *r, int32_t n)
{
    if (r->skipped)
        return;
    s->sum_n += n;
    s->sum.loss += r->loss * n;
    s->sum.kl += r->kl * n;
    s->sum.grad_norm += r->grad_norm * n;
    for (int32_t c = 0; c < US_MAX_TARGETS; c++) {
        s->sum.rec[c] += r->rec[c] * n;
        s->sum.mse[c] += r->mse[c] * n;
    }
    for (int32_t l = 0; l < US_MAX_LEVELS; l++)
        s->sum.kl_level[l] += r->kl_level[l] * n;
}

static struct us_train_result epoch_mean(const struct us_trainer_state *s)
{
    struct us_train_result r = s->sum;
    double n = s->sum_n > 0 ? (double)s->sum_n : NAN;
    r.loss /= n;
    r.kl /= n;
    r.grad_norm /= n;
    for (int32_t c = 0; c < US_MAX_TARGETS; c++) {
        r.rec[c] /= n;
        r.mse[c] /= n;
    }
    for (int32_t l = 0; l < US_MAX_LEVELS; l++)
        r.kl_level[l] /= n;
    return r;
}

static void fill_batch(struct us_trainer *t, const struct us_loader_batch *b)
{
    int64_t plane = (int64_t)t->m->patch_size * t->m->patch_size;
    int32_t scales = t->m->arch.lc_scales, targets = t->m->arch.target_channels;
    for (int32_t i = 0; i < b->n; i++) {
        for (int32_t s = 0; s < scales; s++)
            memcpy(us_train_input(t->train, i, s), b->input + (i * scales + s) * plane,
                   (size_t)plane * sizeof(float));
        memcpy(us_train_target(t->train, i), b->target + i * plane * targets,
               (size_t)(plane * targets) * sizeof(float));
    }
}

static enum us_status count_skipped(struct us_trainer *t, const struct us_train_result *r,
                                    struct us_err *err)
{
    struct us_trainer_state *s = &t->state;
    s->skipped_in_a_row = r->skipped ? s->skipped_in_a_row + 1 : 0;
    s->n_skipped += r->skipped;
    if (!r->skipped)
        return US_OK;
    usi_trainer_note(t, "step %lld skipped: its loss or gradient is not finite (%d in a row)",
                     (long long)s->step, s->skipped_in_a_row);
    if (s->skipped_in_a_row < t->cfg.max_skipped)
        return US_OK;
    return us_fail(err, US_E_FORMAT,
                   "training: %d steps in a row without a finite loss; the last "
                   "good checkpoint is kept; lower the learning rate (now %g) or check the data",
                   s->skipped_in_a_row, s->lr);
}

static enum us_status one_step(struct us_trainer *t, const struct us_loader_batch *b,
                               struct us_err *err)
{
    struct us_trainer_state *s = &t->state;
    fill_batch(t, b);
    const struct us_train_step step = {.n = b->n,
                                       .step = (uint32_t)s->step,
                                       .t = s->t + 1,
                                       .lr = (float)s->lr,
                                       .kl_weight = (float)kl_weight(t)};
    struct us_trainer_event e = {.kind = US_TRAINER_STEP};
    US_TRY(us_train_run(t->train, &step, &e.train, err));
    s->step++;
    s->t += !e.train.skipped;
    s->position += b->n;
    t->patches_here += b->n;
    add_result(s, &e.train, b->n);
    US_TRY(write_step(t, &e.train, err));
    US_TRY(count_skipped(t, &e.train, err));
    tell(t, &e);
    return US_OK;
}

static bool out_of_steps(const struct us_trainer *t)
{
    return t->cfg.max_steps > 0 && t->state.step >= t->cfg.max_steps;
}

bool usi_trainer_cancelled(const struct us_trainer *t)
{
    return t->io->cancel != NULL && atomic_load(t->io->cancel);
}

static enum us_status save(struct us_trainer *t, struct us_err *err)
{
    US_TRY(us_train_pull(t->train, err));
    US_TRY(usi_trainer_save(t, err));
    struct us_trainer_event e = {.kind = US_TRAINER_CHECKPOINT};
    tell(t, &e);
    return US_OK;
}

static enum us_status save_and_cancel(struct us_trainer *t, struct us_err *err)
{
    US_TRY(save(t, err));
    return us_fail(err, US_E_CANCELLED, "training cancelled at step %lld",
                   (long long)t->state.step);
}

/* Steps until the epoch ends, the steps run out, or someone cancels. */
static enum us_status run_epoch(struct us_trainer *t, struct us_loader *l, struct us_err *err)
{
    while (!out_of_steps(t)) { /* a run cancelled at its last step resumes with none left */
        struct us_loader_batch b;
        US_TRY(us_loader_next(l, &b, err));
        if (b.n == 0)
            return US_OK;
        US_TRY(one_step(t, &b, err));
        if (usi_trainer_cancelled(t))
            return save_and_cancel(t, err);
        /* Among skipped steps none is written: the one before them is the last good one. */
        if (t->cfg.checkpoint_steps > 0 && t->state.step % t->cfg.checkpoint_steps == 0 &&
            t->state.skipped_in_a_row == 0 && !out_of_steps(t))
            US_TRY(save(t, err));
    }
    return US_OK;
}

static int32_t limit_reached(const struct us_trainer *t)
{
    return t->state.epoch >= (uint32_t)t->cfg.max_epochs || out_of_steps(t) ? US_TRAINER_AT_LIMIT
                                                                            : US_TRAINER_GOES_ON;
}

/* A run whose steps run out within an epoch keeps the checkpoint from before this: with more steps
 * it goes on from there as if they had never run out. */
static enum us_status end_epoch(struct us_trainer *t, struct us_err *err)
{
    struct us_trainer_state *s = &t->state;
    struct us_validation v;
    bool cut = s->position < us_dataset_n_patches(t->d, US_SPLIT_TRAIN);
    if (cut)
        US_TRY(save(t, err));
    US_TRY(us_train_pull(t->train, err));
    enum us_status st = usi_trainer_validate(t, &v, err);
    if (st == US_E_CANCELLED)
        return save_and_cancel(t, err);
    US_TRY(st);
    bool validated = us_dataset_n_patches(t->d, US_SPLIT_VAL) > 0;
    bool best = is_best(t, v.psnr);
    if (best)
        keep_best(t, &v);
    struct us_trainer_event e = {.kind = US_TRAINER_EPOCH,
                                 .train = epoch_mean(s),
                                 .val_loss = v.loss,
                                 .val_psnr = v.psnr,
                                 .best = best};
    memcpy(e.val_psnr_channel, v.psnr_channel, sizeof(v.psnr_channel));
    US_TRY(write_epoch(t, &e.train, &v, best, err));
    if (validated)
        usi_trainer_plateau(s, &t->cfg, v.psnr);
    bool stop = validated && usi_trainer_stops(s, &t->cfg, v.psnr);
    tell(t, &e);
    s->epoch++;
    s->position = 0;
    memset(&s->sum, 0, sizeof(s->sum));
    s->sum_n = 0;
    s->finished = stop ? US_TRAINER_STOPPED : limit_reached(t);
    return cut ? US_OK : save(t, err);
}

static enum us_status run(struct us_trainer *t, struct us_err *err)
{
    while (!t->state.finished) {
        struct us_loader *l = NULL;
        US_TRY(us_loader_new(t->d, US_SPLIT_TRAIN, t->state.epoch, t->state.position, t->cfg.batch,
                             LOADER_THREADS, LOADER_AHEAD, &l, err));
        enum us_status s = run_epoch(t, l, err);
        us_loader_free(l);
        if (s == US_OK)
            s = end_epoch(t, err);
        US_TRY(s);
    }
    return US_OK;
}

/* ---- beginning and end --------------------------------------------------------------------- */

static enum us_status identify(struct us_trainer *t, struct us_err *err)
{
    struct us_trainer_identity *id = &t->state.identity;
    memcpy(&id->arch, &t->m->arch, sizeof(id->arch));
    id->patch = t->m->patch_size;
    id->batch = t->cfg.batch;
    id->dtype = (int32_t)t->cfg.train.dtype;
    id->seed = t->cfg.seed;
    id->lr = t->cfg.lr;
    id->kl_weight = t->cfg.kl_weight;
    id->clip_norm = (double)t->cfg.train.clip_norm;
    id->free_bits = (double)t->cfg.train.free_bits;
    id->lr_patience = t->cfg.lr_patience;
    id->lr_factor = t->cfg.lr_factor;
    id->lr_min = t->cfg.lr_min;
    id->stop_patience = t->cfg.stop_patience;
    id->kl_annealing = t->cfg.kl_annealing;
    id->kl_start = t->cfg.kl_start;
    id->kl_anneal_epochs = t->cfg.kl_anneal_epochs;
    id->val_patches_max = t->cfg.val_patches_max;
    id->analytical_kl = t->cfg.train.analytical_kl;
    id->mse = t->cfg.train.mse;
    const struct us_dataset_config *data = us_dataset_config(t->d);
    id->data_seed = data->seed;
    id->augment = data->augment;
    id->padding = (int32_t)data->padding;
    id->clip_quantile = data->clip_quantile;
    id->clip_channelwise = data->clip_channelwise;
    id->val_patches = us_dataset_n_patches(t->d, US_SPLIT_VAL);
    for (int32_t c = 0; c < t->m->arch.target_channels; c++) {
        id->channel_weight[c] = (double)t->cfg.train.channel_weight[c];
        id->alpha_min[c] = data->alpha_min[c];
        id->alpha_max[c] = data->alpha_max[c];
    }
    (void)snprintf(t->origin.backend, sizeof(t->origin.backend), "%s", us_backend_ops(t->be)->name);
    const struct us_dataset_watch watch = {t->io->cancel, usi_trainer_progress, t};
    t->pass = "checksum of the training data";
    US_TRY(us_dataset_hash(t->d, US_SPLIT_TRAIN, &watch, id->data_hash, err));
    t->pass = "checksum of the validation data";
    return us_dataset_hash(t->d, US_SPLIT_VAL, &watch, t->origin.val_hash, err);
}

/* The limits are this run's, whatever those of the run before were. */
static void reopen(struct us_trainer *t)
{
    struct us_trainer_state *s = &t->state;
    /* Earlier versions wrote the same number for both ends. */
    bool stopped = s->finished == US_TRAINER_STOPPED ||
                   (s->finished != 0 && s->stop_bad >= t->cfg.stop_patience);
    bool within = s->position > 0; /* of an epoch, which is then to be ended */
    s->finished = stopped ? US_TRAINER_STOPPED : within ? US_TRAINER_GOES_ON : limit_reached(t);
    if (stopped && limit_reached(t) == US_TRAINER_GOES_ON)
        usi_trainer_note(t,
                         "this run ended by itself after epoch %u, without gain in %d epochs or "
                         "with a figure that is no number: it is not continued",
                         s->epoch - 1, s->stop_bad);
}

static char *path_in(const char *folder, const char *name)
{
    size_t n = strlen(folder) + PATH_ROOM;
    char *p = malloc(n);
    if (p != NULL)
        (void)snprintf(p, n, "%s/%s", folder, name);
    return p;
}

static enum us_status prepare(struct us_trainer *t, const char *resume, struct us_err *err)
{
    const struct us_net *net = t->m->net;
    t->best_weights = calloc((size_t)net->n_floats + 1, sizeof(float));
    t->best_counters = calloc((size_t)net->n_counters + 1, sizeof(int64_t));
    if (t->io->checkpoint_dir != NULL) {
        t->last_path = path_in(t->io->checkpoint_dir, "last.usplit-ckpt");
        t->previous_path = path_in(t->io->checkpoint_dir, "previous.usplit-ckpt");
    }
    bool paths = t->io->checkpoint_dir == NULL || (t->last_path && t->previous_path);
    if (t->best_weights == NULL || t->best_counters == NULL || !paths)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    t->state.lr = t->cfg.lr;
    t->state.plateau_best = t->state.stop_best = t->state.best_psnr = -INFINITY;
    US_TRY(identify(t, err));
    struct us_train_config train = t->cfg.train;
    train.batch = t->cfg.batch;
    train.seed = t->cfg.seed;
    US_TRY(us_train_new(t->m, t->be, &train, &t->train, err));
    if (resume != NULL) {
        US_TRY(usi_trainer_load(t, resume, err));
        US_TRY(us_train_push(t->train, err));
        us_dataset_set_stats(t->d, &t->state.stats);
        reopen(t);
    } else {
        const struct us_dataset_watch watch = {t->io->cancel, usi_trainer_progress, t};
        t->pass = "statistics";
        US_TRY(us_dataset_compute_stats(t->d, &watch, err));
        t->state.stats = *us_dataset_stats(t->d);
    }
    if (us_dataset_n_patches(t->d, US_SPLIT_TRAIN) == 0)
        return us_fail(err, US_E_ARG, "training: no patch in the training split");
    return usi_history_open(t, err);
}

/* Everything that the run leaves in the model: best weights, statistics, where it comes from. */
static enum us_status finish(struct us_trainer *t, struct us_err *err)
{
    const struct us_net *net = t->m->net;
    const struct us_trainer_state *s = &t->state;
    memcpy(t->m->weights, t->best_weights, (size_t)net->n_floats * sizeof(float));
    memcpy(t->m->counters, t->best_counters, (size_t)net->n_counters * sizeof(int64_t));
    us_model_set_stats(t->m, &t->state.stats);
    char psnr[32], channels[512], loss[32], low[512], high[512], text[PROVENANCE_BYTES];
    int32_t targets = t->m->arch.target_channels;
    int n =
        snprintf(text, sizeof(text),
                 "{\"provenance\": {\"made_by\": \"usplit train\", \"data_sha256\": \"%s\", "
                 "\"val_sha256\": \"%s\", \"backend\": \"%s\", \"precision\": \"%s\", "
                 "\"mixing_min\": %s, \"mixing_max\": %s, \"seed\": %llu, \"epochs\": %u, "
                 "\"steps\": %lld, \"best_epoch\": %u, "
                 "\"skipped_steps\": %lld, \"val_psnr\": %s, \"val_psnr_channel\": %s, "
                 "\"val_loss\": %s}}",
                 s->identity.data_hash, t->origin.val_hash, t->origin.backend,
                 s->identity.dtype == US_BF16 ? "bf16" : "f32",
                 numbers(low, sizeof(low), s->identity.alpha_min, targets),
                 numbers(high, sizeof(high), s->identity.alpha_max, targets),
                 (unsigned long long)s->identity.seed, s->epoch, (long long)s->step, s->best_epoch,
                 (long long)s->n_skipped, number(psnr, sizeof(psnr), s->best_psnr),
                 numbers(channels, sizeof(channels), s->best_psnr_channel, targets),
                 number(loss, sizeof(loss), s->best_loss));
    US_ASSERT(n > 0 && n < (int)sizeof(text));
    char *copy = strdup(text);
    if (copy == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    free(t->m->extra_json);
    t->m->extra_json = copy;
    return US_OK;
}

static enum us_status check_config(const struct us_trainer_config *c, struct us_err *err)
{
    if (c->batch < 1 || c->batch > US_MAX_BATCH)
        return us_fail(err, US_E_ARG, "batch is %d; expected 1 to %d", c->batch, US_MAX_BATCH);
    if (c->max_epochs < 1)
        return us_fail(err, US_E_ARG, "max_epochs is %d; expected 1 or more", c->max_epochs);
    if (!(c->lr > 0.0) || !isfinite(c->lr))
        return us_fail(err, US_E_ARG, "lr is %g; expected a number above 0", c->lr);
    if (c->max_skipped < 1)
        return us_fail(err, US_E_ARG, "max_skipped is %d; expected 1 or more", c->max_skipped);
    return US_OK;
}

/* Patches are copied into the network's memory by these numbers. */
static enum us_status check_fit(const struct us_model *m, const struct us_dataset *d,
                                struct us_err *err)
{
    int32_t patch, scales, targets;
    us_dataset_shape(d, &patch, &scales, &targets);
    if (patch != m->patch_size || scales != m->arch.lc_scales || targets != m->arch.target_channels)
        return us_fail(
            err, US_E_ARG,
            "data set: patches of %d, %d scales, %d channels; the model takes %d, %d, %d", patch,
            scales, targets, m->patch_size, m->arch.lc_scales, m->arch.target_channels);
    return US_OK;
}

enum us_status us_trainer_run(struct us_model *m, struct us_dataset *d, struct us_backend *be,
                              const struct us_trainer_config *cfg, const struct us_trainer_io *io,
                              const char *resume, struct us_err *err)
{
    US_TRY(check_config(cfg, err));
    US_TRY(check_fit(m, d, err));
    struct us_trainer *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "training: out of memory");
    *t = (struct us_trainer){
        .m = m, .d = d, .be = be, .cfg = *cfg, .io = io, .history = -1, .started_s = now_s()};
    enum us_status s = prepare(t, resume, err);
    if (s == US_OK)
        s = run(t, err);
    if (s == US_OK)
        s = finish(t, err);
    us_train_free(t->train);
    if (t->history >= 0)
        (void)close(t->history);
    free(t->best_weights);
    free(t->best_counters);
    free(t->last_path);
    free(t->previous_path);
    free(t);
    return s;
}
