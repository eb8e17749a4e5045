/*
 * What survives a kill: the checkpoint of a training run and its history file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_checkpoint.h"
#include "us_trainer_impl.h"

#define N_SECTIONS 8
#define LINE_BYTES 2048
#define PREVIOUS   "previous.usplit-ckpt"

/* The numbers change with the structs. */
#define STATE_NAME  "state-1"
#define ORIGIN_NAME "origin-1"

static void sections(struct us_trainer *t, struct us_trainer_state *state,
                     struct us_trainer_origin *origin, struct us_checkpoint_section *s)
{
    size_t floats = (size_t)t->m->net->n_floats * sizeof(float);
    size_t counters = (size_t)t->m->net->n_counters * sizeof(int64_t);
    const struct us_checkpoint_section all[N_SECTIONS] = {
        {STATE_NAME, state, sizeof(*state)},
        {ORIGIN_NAME, origin, sizeof(*origin)},
        {"weights", t->m->weights, floats},
        {"counters", t->m->counters, counters},
        {"adamax.m", us_train_moment_m(t->train), floats},
        {"adamax.u", us_train_moment_u(t->train), floats},
        {"best.weights", t->best_weights, floats},
        {"best.counters", t->best_counters, counters},
    };
    memcpy(s, all, sizeof(all));
}

static enum us_status fail_history(const struct us_trainer *t, struct us_err *err)
{
    int e = errno;
    if (e == ENOSPC || e == EDQUOT)
        return us_fail(err, US_E_DISK_FULL,
                       "%s: %s; the last checkpoint is kept: make room, then resume",
                       t->io->history_path, strerror(e));
    return us_fail(err, US_E_IO, "%s: %s", t->io->history_path, strerror(e));
}

enum us_status usi_trainer_save(struct us_trainer *t, struct us_err *err)
{
    if (t->last_path == NULL)
        return US_OK;
    /* History first: a checkpoint never knows lines that are not on disk. */
    if (t->history >= 0 && fsync(t->history) != 0)
        return fail_history(t, err);
    struct us_checkpoint_section s[N_SECTIONS];
    sections(t, &t->state, &t->origin, s);
    return us_checkpoint_write(t->last_path, t->previous_path, s, N_SECTIONS, err);
}

struct difference {
    const char *name;
    double found, expected;
};

static enum us_status check_channels(const struct us_trainer_identity *f,
                                     const struct us_trainer_identity *e, const char *path,
                                     struct us_err *err)
{
    for (int32_t c = 0; c < e->arch.target_channels; c++) {
        if (f->alpha_min[c] != e->alpha_min[c] || f->alpha_max[c] != e->alpha_max[c])
            return us_fail(
                err, US_E_ARG,
                "%s: made with mixing range %g to %g of channel %d; this run has %g to %g", path,
                f->alpha_min[c], f->alpha_max[c], c, e->alpha_min[c], e->alpha_max[c]);
        if (f->channel_weight[c] != e->channel_weight[c])
            return us_fail(err, US_E_ARG, "%s: made with weight %g of channel %d; this run has %g",
                           path, f->channel_weight[c], c, e->channel_weight[c]);
    }
    return US_OK;
}

static enum us_status check_identity(const struct us_trainer *t,
                                     const struct us_trainer_identity *f, const char *path,
                                     struct us_err *err)
{
    const struct us_trainer_identity *e = &t->state.identity;
    const struct us_arch *fa = &f->arch, *ea = &e->arch;
    if (strncmp(f->data_hash, e->data_hash, sizeof(f->data_hash)) != 0)
        return us_fail(err, US_E_ARG,
                       "%s: made from other training data (hash %.12s; expected "
                       "%.12s)",
                       path, f->data_hash, e->data_hash);
    const struct difference d[] = {
        {"patch size", f->patch, e->patch},
        {"batch", f->batch, e->batch},
        {"lr", f->lr, e->lr},
        {"kl_weight", f->kl_weight, e->kl_weight},
        {"clip_norm", f->clip_norm, e->clip_norm},
        {"free_bits", f->free_bits, e->free_bits},
        {"lr_patience", f->lr_patience, e->lr_patience},
        {"lr_factor", f->lr_factor, e->lr_factor},
        {"lr_min", f->lr_min, e->lr_min},
        {"stop_patience", f->stop_patience, e->stop_patience},
        {"kl_annealing", f->kl_annealing, e->kl_annealing},
        {"kl_start", f->kl_start, e->kl_start},
        {"kl_anneal_epochs", f->kl_anneal_epochs, e->kl_anneal_epochs},
        {"val_patches_max", f->val_patches_max, e->val_patches_max},
        {"analytical_kl", f->analytical_kl, e->analytical_kl},
        {"mse", f->mse, e->mse},
        {"augment", f->augment, e->augment},
        {"padding (0 reflect, 1 zero)", f->padding, e->padding},
        {"clip_quantile", f->clip_quantile, e->clip_quantile},
        {"clip_channelwise", f->clip_channelwise, e->clip_channelwise},
        {"validation patches", (double)f->val_patches, (double)e->val_patches},
        {"network family", (double)fa->family, (double)ea->family},
        {"stochastic", fa->stochastic, ea->stochastic},
        {"number of levels", fa->n_levels, ea->n_levels},
        {"lc_scales", fa->lc_scales, ea->lc_scales},
        {"decoder_retain", fa->decoder_retain, ea->decoder_retain},
        {"n_filters", fa->n_filters, ea->n_filters},
        {"blocks_per_level", fa->blocks_per_level, ea->blocks_per_level},
        {"dropout", (double)fa->dropout, (double)ea->dropout},
        {"predict_logvar", (double)fa->predict_logvar, (double)ea->predict_logvar},
        {"logvar_lower_bound", (double)fa->logvar_lower_bound, (double)ea->logvar_lower_bound},
        {"var_clip_max", (double)fa->var_clip_max, (double)ea->var_clip_max},
        {"target channels", fa->target_channels, ea->target_channels},
    };
    for (size_t i = 0; i < US_COUNT(d); i++) {
        if (d[i].found != d[i].expected)
            return us_fail(err, US_E_ARG, "%s: made with %s %g; this run has %g", path, d[i].name,
                           d[i].found, d[i].expected);
    }
    if (f->seed != e->seed || f->data_seed != e->data_seed)
        return us_fail(err, US_E_ARG, "%s: made with seed %llu; this run has %llu", path,
                       (unsigned long long)(f->seed != e->seed ? f->seed : f->data_seed),
                       (unsigned long long)(f->seed != e->seed ? e->seed : e->data_seed));
    for (int32_t i = 0; i < ea->n_levels; i++) {
        if (fa->z_dims[i] != ea->z_dims[i])
            return us_fail(err, US_E_ARG, "%s: made with z_dims entry %d of %d; this run has %d",
                           path, i, fa->z_dims[i], ea->z_dims[i]);
    }
    return check_channels(f, e, path, err);
}

static const char *precision_name(int32_t dtype)
{
    return dtype == US_BF16 ? "bf16" : "f32";
}

/* What a checkpoint of an earlier version does not say is taken to fit. */
static enum us_status check_origin(struct us_trainer *t, const struct us_trainer_identity *f,
                                   const struct us_trainer_origin *o, const char *path,
                                   struct us_err *err)
{
    const struct us_trainer_origin *e = &t->origin;
    const char *was = precision_name(f->dtype), *is = precision_name(t->state.identity.dtype);
    const char *backend = o->backend[0] != '\0' ? o->backend : e->backend;
    if (o->backend[0] == '\0')
        usi_trainer_note(t,
                         "%s: made by an earlier version, which did not state the backend and "
                         "the validation data; both are taken to be the same",
                         path);
    else if (strncmp(o->val_hash, e->val_hash, sizeof(o->val_hash)) != 0)
        return us_fail(err, US_E_ARG,
                       "%s: made with other validation data (hash %.12s; expected %.12s)", path,
                       o->val_hash, e->val_hash);
    if (strcmp(backend, e->backend) == 0 && strcmp(was, is) == 0)
        return US_OK;
    if (!t->io->resume_elsewhere)
        return us_fail(err, US_E_ARG,
                       "%s: made by backend %s in %s; this run is by %s in %s, which rounds "
                       "otherwise (resume-elsewhere goes on all the same)",
                       path, backend, was, e->backend, is);
    usi_trainer_note(t,
                     "%s: made by backend %s in %s; continued by %s in %s: the result is not "
                     "that of one uninterrupted run",
                     path, backend, was, e->backend, is);
    return US_OK;
}

/* What the run is comes first: it explains why tensors are of other sizes. */
static enum us_status load_one(struct us_trainer *t, const char *path, struct us_err *err)
{
    struct {
        struct us_trainer_state state;
        struct us_trainer_origin origin;
    } *found = calloc(1, sizeof(*found));
    if (found == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    struct us_checkpoint_section s[N_SECTIONS];
    sections(t, &found->state, &found->origin, s);
    enum us_status status = us_checkpoint_read(path, s, 2, err);
    if (status == US_E_UNSUPPORTED) /* without the origin */
        status = us_checkpoint_read(path, s, 1, err);
    if (status == US_OK)
        status = check_identity(t, &found->state.identity, path, err);
    if (status == US_OK)
        status = check_origin(t, &found->state.identity, &found->origin, path, err);
    if (status == US_OK)
        status = us_checkpoint_read(path, s + 2, N_SECTIONS - 2, err);
    if (status == US_OK) {
        found->state.identity.dtype = t->state.identity.dtype;
        t->state = found->state;
    }
    free(found);
    return status;
}

/* Out of the way of the next save, which would otherwise keep it in place of the good one. */
static void set_aside(const char *path)
{
    size_t room = strlen(path) + sizeof(".damaged");
    char *to = malloc(room);
    if (to == NULL)
        return; /* it only lies where it lay */
    (void)snprintf(to, room, "%s.damaged", path);
    (void)rename(path, to);
    free(to);
}

/* The previous checkpoint beside `path`, if that is not one itself; the caller frees. */
static char *previous_beside(const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t folder = slash != NULL ? (size_t)(slash - path) + 1 : 0;
    size_t room = folder + sizeof(PREVIOUS);
    char *p = strcmp(path + folder, PREVIOUS) != 0 ? malloc(room) : NULL;
    if (p != NULL)
        (void)snprintf(p, room, "%.*s" PREVIOUS, (int)folder, path);
    return p;
}

/* The kill may have come between the two renames, or the disk may lie: this run's own previous
 * checkpoint takes the place of its damaged last, that of another is offered. */
enum us_status usi_trainer_load(struct us_trainer *t, const char *path, struct us_err *err)
{
    struct us_err first = {0}, second = {0};
    enum us_status status = load_one(t, path, &first);
    bool damaged = status == US_E_CORRUPT || status == US_E_NOT_FOUND || status == US_E_IO ||
                   status == US_E_FORMAT;
    char *previous = damaged ? previous_beside(path) : NULL;
    bool own = previous != NULL && t->last_path != NULL && strcmp(path, t->last_path) == 0;
    if (own && load_one(t, previous, &second) == US_OK) {
        set_aside(path);
        usi_trainer_note(t, "%s; resuming from %s", first.msg, previous);
        status = US_OK;
    } else if (status != US_OK && !own && previous != NULL && access(previous, R_OK) == 0) {
        (void)us_fail(err, status, "%s; the one before it is %s", first.msg, previous);
    } else if (status != US_OK && own && second.status != US_E_NOT_FOUND) {
        (void)us_fail(err, status, "%s; nor does the one before it serve: %s", first.msg,
                      second.msg);
    } else if (status != US_OK) {
        (void)us_fail(err, status, "%s", first.msg);
    }
    free(previous);
    return status;
}

/* ---- history ------------------------------------------------------------------------------- */

enum us_status usi_history_open(struct us_trainer *t, struct us_err *err)
{
    t->history = -1;
    if (t->io->history_path == NULL)
        return US_OK;
    t->history = open(t->io->history_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    off_t there = t->history < 0 ? -1 : lseek(t->history, 0, SEEK_END);
    /* Lines after the checkpoint will be written again. A file that someone has shortened is
     * continued where it ends, not filled with zeros. */
    if (there >= 0 && there < t->state.history_bytes) {
        usi_trainer_note(t, "%s: %lld bytes; the checkpoint knows %lld; continued at its end",
                         t->io->history_path, (long long)there, (long long)t->state.history_bytes);
        t->state.history_bytes = there;
    }
    if (there < 0 || ftruncate(t->history, t->state.history_bytes) != 0 ||
        lseek(t->history, 0, SEEK_END) < 0)
        return fail_history(t, err);
    return US_OK;
}

enum us_status usi_history_line(struct us_trainer *t, struct us_err *err, const char *fmt, ...)
{
    if (t->history < 0)
        return US_OK;
    char line[LINE_BYTES];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(line))
        return us_fail(err, US_E_TOO_LARGE, "%s: a line over %d bytes", t->io->history_path,
                       LINE_BYTES);
    for (const char *p = line; n > 0;) {
        ssize_t k = write(t->history, p, (size_t)n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return fail_history(t, err);
        p += k;
        n -= (int)k;
        t->state.history_bytes += k;
    }
    return US_OK;
}

void usi_trainer_note(struct us_trainer *t, const char *fmt, ...)
{
    if (t->io->event == NULL)
        return;
    char text[US_ERR_MSG_BYTES * 2];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    const struct us_trainer_event e = {.kind = US_TRAINER_NOTE,
                                       .epoch = t->state.epoch,
                                       .step = t->state.step,
                                       .lr = t->state.lr,
                                       .note = text};
    t->io->event(t->io->arg, &e);
}
