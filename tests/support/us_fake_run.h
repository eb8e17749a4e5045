/*
 * A training run as tests see it: a tiny network on made-up frames and the reference backend, in a
 * folder of its own, with all that it said and left.
 *
 * The backend's likelihood is wrapped: a test can script NaN losses for training and figures for
 * validation (recognised by its gradient weight 1; training's batches hold two patches or more).
 */
#ifndef US_FAKE_RUN_H
#define US_FAKE_RUN_H

#include "us_fake_frames.h"
#include "us_trainer_impl.h"

#define US_FAKE_PATCH     16
#define US_FAKE_SIDE      48
#define US_FAKE_PER_EPOCH 18 /* patches: two frames of 3 x 3 */
#define US_FAKE_LAST      "last.usplit-ckpt"
#define US_FAKE_PREVIOUS  "previous.usplit-ckpt"

struct us_fake_script {
    int64_t nan_from, nan_to; /* training patches, counted from 0 */
    const double *val_se;     /* per validation, or NULL */
    int32_t n_val_se;
    _Atomic int64_t trained, validated;
};
extern struct us_fake_script us_fake_script;

/* What a run told. */
struct us_fake_heard {
    int32_t epochs, checkpoints, notes;
    double lr[64], psnr[64];
    bool best[64];
    atomic_bool cancel;
    int64_t cancel_at;
    const char *cancel_pass; /* at the third report of this pass */
    int64_t passed;          /* reports of the pass heard of last */
    char note[512], pass[64];
};

struct us_fake_run {
    struct us_model *m;
    struct us_dataset *d;
    struct us_backend *be;
    enum us_status (*open)(struct us_backend **ret, struct us_err *err); /* NULL: the scripted */
    struct us_fake_frames frames;
    struct us_trainer_config cfg;
    struct us_dataset_config data;
    struct us_arch arch;
    struct us_fake_heard heard;
    struct us_err err;
    const char *history, *checkpoints; /* names within the folder, or NULL */
    const char *backend;               /* what the backend calls itself */
    bool elsewhere;
};

/* Setup and teardown: the folder. */
int us_fake_run_begin(void **state);
int us_fake_run_end(void **state);

/* Two training frames, one of validation; three epochs; no script. */
void us_fake_run_prepare(struct us_fake_run *r, const char *variant);
/* Runs it, from a checkpoint in the folder or from the beginning (NULL). */
enum us_status us_fake_run_go(struct us_fake_run *r, const char *resume);
void us_fake_run_must(struct us_fake_run *r, const char *resume);
void us_fake_run_drop(struct us_fake_run *r);

/* "folder/name" in text, which is returned. */
const char *us_fake_run_path(char *text, size_t size, const char *name);
/* The bytes of a file in the folder; the caller frees. */
uint8_t *us_fake_run_slurp(const char *name, size_t *ret_n);
/* Removes all that runs leave. */
void us_fake_run_wipe(void);

/* Everything that a run leaves: weights of the model, the whole last checkpoint (moments, best,
 * counters), the history. */
struct us_fake_outcome {
    float *weights;
    size_t n_floats, n_last, n_history;
    uint8_t *last, *history;
};

struct us_fake_outcome us_fake_outcome(const struct us_fake_run *r);
/* Byte for byte; b is freed. */
void us_fake_outcome_same(struct us_fake_outcome *a, struct us_fake_outcome *b);
void us_fake_outcome_free(struct us_fake_outcome *o);

#endif
