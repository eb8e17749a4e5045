/*
 * A training run (model-spec 15): epochs, validation, learning-rate schedule, early stopping,
 * durable checkpoints, resume.
 *
 * Resume is exact: a run killed at any moment and resumed ends bit-identical to one that was never
 * interrupted, with the same backend and precision; so does a run that reached max_epochs or
 * max_steps and is resumed with larger ones. A checkpoint holds weights, Adamax moments,
 * batch-norm statistics and counters, the schedule, the position in the epoch, the counters that
 * key every random number, the best model so far and the history. It is written beside its name,
 * fsynced and renamed; last, best and the one before are kept.
 */
#ifndef US_TRAINER_H
#define US_TRAINER_H

#include <stdatomic.h>

#include "us_dataset.h"
#include "us_train_plan.h"

struct us_trainer_config {
    int32_t batch;         /* 32 */
    int32_t max_epochs;    /* 200 */
    int64_t max_steps;     /* 0: no limit */
    double lr;             /* 1e-3 */
    int32_t lr_patience;   /* 15 */
    double lr_factor;      /* 0.5 */
    double lr_min;         /* 1e-12 */
    int32_t stop_patience; /* 100 */
    double kl_weight;      /* 1 */
    bool kl_annealing;     /* false; over kl_anneal_epochs (10) from kl_start (-1) */
    int32_t kl_start, kl_anneal_epochs;
    int32_t max_skipped;      /* steps with NaN in a row before the run fails; 20 */
    int32_t checkpoint_steps; /* at least every so many steps, and after each epoch; 500 */
    int32_t val_patches_max;  /* 0: the whole validation split */
    uint64_t seed;
    struct us_train_config train; /* dtype, threads, free bits .. (batch and seed from here) */
};

struct us_trainer_config us_trainer_defaults(void); /* the paper's */

/* What happens, told as it happens; each pointer may be NULL. Called from the training thread. */
struct us_trainer_event {
    enum {
        US_TRAINER_STEP,
        US_TRAINER_EPOCH,
        US_TRAINER_CHECKPOINT,
        US_TRAINER_NOTE,
        US_TRAINER_PROGRESS /* of a long pass: note says of which */
    } kind;
    uint32_t epoch;
    int64_t step;                    /* total so far */
    int64_t epoch_done, epoch_total; /* patches */
    struct us_train_result train;    /* STEP: of the step; EPOCH: mean over the epoch */
    double lr;
    double val_loss, val_psnr, val_psnr_channel[US_MAX_TARGETS]; /* EPOCH (spec 15.4) */
    bool best;                                                   /* EPOCH: the best so far */
    int64_t n_skipped;                                           /* so far */
    double patches_per_s, seconds_left; /* estimate to max_epochs or max_steps */
    const char *note;
    int64_t pass_done, pass_total; /* PROGRESS: planes, or patches of validation */
};

struct us_trainer_io {
    const char *checkpoint_dir; /* last.usplit-ckpt, previous.usplit-ckpt; NULL: none are kept */
    const char *history_path;   /* JSON lines, one per epoch and one per 50 steps; NULL: none */
    void (*event)(void *arg, const struct us_trainer_event *e);
    void *arg;
    /* Polled between planes, steps and validation patches: checkpoint, then E_CANCELLED. */
    const atomic_bool *cancel;
    /* Resume a checkpoint of another backend or precision: goes on, but not to the same bytes. */
    bool resume_elsewhere;
};

/* Trains m in place; at the end m holds the best weights by val_psnr (spec 15.3), its data section
 * the statistics, its provenance the data hash, seed, version and validation figures. resume: path
 * of a checkpoint, or NULL. The checkpoint must fit model, settings, the data of training and
 * validation, backend and precision: E_ARG names the first difference. max_epochs and max_steps may
 * differ; a run that ended by itself (stop_patience) has ended whatever they are. */
enum us_status us_trainer_run(struct us_model *m, struct us_dataset *d, struct us_backend *be,
                              const struct us_trainer_config *cfg, const struct us_trainer_io *io,
                              const char *resume, struct us_err *err) US_WARN_UNUSED;

#endif
