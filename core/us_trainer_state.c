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

#define N_SECTIONS 7
#define LINE_BYTES 2048
#define STATE_NAME "state-1" /* the number changes with struct us_trainer_state */

static void sections(struct us_trainer *t, struct us_trainer_state *state,
                     struct us_checkpoint_section *s)
{
    size_t floats = (size_t)t->m->net->n_floats * sizeof(float);
    size_t counters = (size_t)t->m->net->n_counters * sizeof(int64_t);
    const struct us_checkpoint_section all[N_SECTIONS] = {
        {STATE_NAME, state, sizeof(*state)},
        {"weights", t->m->weights, floats},
        {"counters", t->m->counters, counters},
        {"adamax.m", us_train_moment_m(t->train), floats},
        {"adamax.u", us_train_moment_u(t->train), floats},
        {"best.weights", t->best_weights, floats},
        {"best.counters", t->best_counters, counters},
    };
    memcpy(s, all, sizeof(all));
}

enum us_status usi_trainer_save(struct us_trainer *t, struct us_err *err)
{
    if (t->last_path == NULL)
        return US_OK;
    /* History first: a checkpoint never knows lines that are not on disk. */
    if (t->history >= 0 && fsync(t->history) != 0)
        return us_fail(err, errno == ENOSPC ? US_E_DISK_FULL : US_E_IO, "%s: fsync: %s",
                       t->io->history_path, strerror(errno));
    struct us_checkpoint_section s[N_SECTIONS];
    sections(t, &t->state, s);
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
        {"precision (0 f32, 1 bf16)", f->dtype, e->dtype},
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

static enum us_status load_one(struct us_trainer *t, const char *path, struct us_err *err)
{
    struct us_trainer_state *found = calloc(1, sizeof(*found));
    if (found == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    struct us_checkpoint_section s[N_SECTIONS];
    sections(t, found, s);
    enum us_status status = us_checkpoint_read(path, s, N_SECTIONS, err);
    if (status == US_OK)
        status = check_identity(t, &found->identity, path, err);
    if (status == US_OK)
        t->state = *found;
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

enum us_status usi_trainer_load(struct us_trainer *t, const char *path, struct us_err *err)
{
    enum us_status status = load_one(t, path, err);
    bool damaged = status == US_E_CORRUPT || status == US_E_NOT_FOUND || status == US_E_IO ||
                   status == US_E_FORMAT;
    /* The kill may have come between the two renames, or the disk may lie. */
    bool last = t->last_path != NULL && strcmp(path, t->last_path) == 0;
    if (!damaged || !last)
        return status;
    struct us_err second = {0};
    if (load_one(t, t->previous_path, &second) != US_OK)
        return status;
    set_aside(path);
    usi_trainer_note(t, "%s; resuming from %s", err != NULL ? err->msg : path, t->previous_path);
    return US_OK;
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
        return us_fail(err, US_E_IO, "%s: %s", t->io->history_path, strerror(errno));
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
            return us_fail(err, errno == ENOSPC ? US_E_DISK_FULL : US_E_IO, "%s: %s",
                           t->io->history_path, strerror(errno));
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
