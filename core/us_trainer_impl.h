/*
 * Internal to the training run: us_trainer.c (the loop), us_trainer_validate.c (spec 15.4),
 * us_trainer_state.c (checkpoints, history).
 */
#ifndef US_TRAINER_IMPL_H
#define US_TRAINER_IMPL_H

#include "us_plan.h"
#include "us_trainer.h"

/* What a checkpoint must agree on with the run that resumes it. */
struct us_trainer_identity {
    char data_hash[65];
    struct us_arch arch;
    int32_t patch, batch, dtype;
    uint64_t seed;
    double lr, kl_weight, clip_norm, free_bits;
    int32_t lr_patience, stop_patience, kl_annealing, kl_start, kl_anneal_epochs, val_patches_max;
    double lr_factor, lr_min, channel_weight[US_MAX_TARGETS];
    int32_t analytical_kl, mse;
    /* Of the data set. */
    uint64_t data_seed;
    int32_t augment, padding, clip_channelwise;
    int64_t val_patches;
    double clip_quantile, alpha_min[US_MAX_TARGETS], alpha_max[US_MAX_TARGETS];
};

/* More of it, in a section of its own that checkpoints of earlier versions lack: "" is unknown.
 * Plain data, zeroed before use. */
struct us_trainer_origin {
    char backend[32];
    char val_hash[65]; /* of the validation split */
    char reserved[31];
};

/* Why a run has ended. One that reached a limit may be resumed with a larger one. */
enum { US_TRAINER_GOES_ON = 0, US_TRAINER_AT_LIMIT = 1, US_TRAINER_STOPPED = 2 };

/* Everything of a run that is not a tensor; written to checkpoints as it is, so plain data only,
 * zeroed before use. */
struct us_trainer_state {
    struct us_trainer_identity identity;
    struct us_stats stats;
    uint32_t epoch;
    int64_t position; /* patches of this epoch that are done */
    int64_t step;     /* of the whole run; keys dropout and sampling */
    int64_t t;        /* steps that were not skipped: Adamax's t */
    double lr;
    double plateau_best, stop_best, best_psnr;
    int32_t plateau_bad, stop_bad;
    uint32_t best_epoch;
    double best_loss, best_psnr_channel[US_MAX_TARGETS];
    int64_t n_skipped;
    int32_t skipped_in_a_row;
    int32_t finished; /* US_TRAINER_GOES_ON .. */
    int64_t history_bytes;
    /* Sums over the epoch so far, weighted by items. */
    struct us_train_result sum;
    int64_t sum_n;
};

struct us_trainer {
    struct us_model *m;
    struct us_dataset *d;
    struct us_backend *be;
    struct us_trainer_config cfg;
    const struct us_trainer_io *io;
    struct us_train *train;
    struct us_trainer_state state;
    struct us_trainer_origin origin;
    float *best_weights;
    int64_t *best_counters;
    char *last_path, *previous_path;
    int history; /* file descriptor, or -1 */
    double started_s;
    const char *pass;     /* "statistics" .. */
    int64_t patches_here; /* since this process began */
};

struct us_validation {
    double loss, psnr, psnr_channel[US_MAX_TARGETS];
};

/* The schedule (spec 15.3): one epoch's figure moves the learning rate, and says whether the run is
 * to stop; a figure that is not finite stops it. */
void usi_trainer_plateau(struct us_trainer_state *s, const struct us_trainer_config *cfg,
                         double psnr);
bool usi_trainer_stops(struct us_trainer_state *s, const struct us_trainer_config *cfg,
                       double psnr);

/* Evaluation mode over the validation split; NAN figures if it is empty. E_CANCELLED leaves the
 * state as it was. */
enum us_status usi_trainer_validate(struct us_trainer *t, struct us_validation *ret,
                                    struct us_err *err) US_WARN_UNUSED;

enum us_status usi_trainer_save(struct us_trainer *t, struct us_err *err) US_WARN_UNUSED;
/* Fills state, weights, moments and best from a checkpoint; falls back to the previous one. */
enum us_status usi_trainer_load(struct us_trainer *t, const char *path,
                                struct us_err *err) US_WARN_UNUSED;

/* Opens the history at the length that the state knows and appends lines to it. */
enum us_status usi_history_open(struct us_trainer *t, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_history_line(struct us_trainer *t, struct us_err *err, const char *fmt, ...)
    US_PRINTF(3, 4) US_WARN_UNUSED;

/* Tells how far a pass is; arg is the trainer, whose `pass` says which one it is. */
void usi_trainer_progress(void *arg, int64_t done, int64_t total);
bool usi_trainer_cancelled(const struct us_trainer *t);

void usi_trainer_note(struct us_trainer *t, const char *fmt, ...) US_PRINTF(2, 3);

#endif
