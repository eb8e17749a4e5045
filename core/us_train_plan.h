/*
 * One training step of a network: forward with batch statistics, dropout and sampling; loss;
 * backward; gradient clipping; Adamax (model-spec 15.6). Built from the one network description
 * (us_net.h), on a backend's training seam (us_train_ops.h).
 *
 * The batch is spread over US_TRAIN_LANES lanes; a lane sums its items' gradients in item order and
 * the lanes are summed in lane order, so no byte depends on the number of threads. Workers meet
 * only where batch statistics need the whole batch.
 *
 * Memory is laid out once: maps that backward needs stand per item, everything else per worker.
 * Batch norm + ELU, gates' pre-activations and concatenations are recomputed in backward.
 *
 * On a device (us_train_ops.batched) each instruction runs once for the whole batch, in one lane,
 * all maps share one block, and the outputs of batch norm + ELU are kept (a third more memory, a
 * pass less per convolution). Weights, moments and running statistics then live in the device's
 * memory between us_train_push and us_train_pull.
 */
#ifndef US_TRAIN_PLAN_H
#define US_TRAIN_PLAN_H

#include "us_model.h"
#include "us_train_ops.h"

#define US_TRAIN_LANES 8

struct us_train_config {
    enum us_dtype dtype; /* of activations and their gradients */
    int32_t batch;       /* largest batch of a step */
    int32_t threads;     /* 0 = one per available processor, at most US_TRAIN_LANES */
    uint64_t seed;       /* of dropout and sampling */
    bool no_dropout;     /* test hook: dropout off */
    bool analytical_kl;
    float free_bits;                      /* < 1e-6: none */
    float channel_weight[US_MAX_TARGETS]; /* w_c of spec 6; 0 everywhere = all 1 */
    bool mse;
    float beta1, beta2, eps; /* Adamax; 0 = 0.9, 0.999, 1e-8 */
    float clip_norm;         /* 0.5 in the paper; 0 = no clipping */
};

struct us_train;

/* Trains m's weights in place; m and be are borrowed. m must be complete. E_UNSUPPORTED if the
 * backend cannot train or has no such dtype; E_NOMEM names the bytes. */
enum us_status us_train_new(struct us_model *m, struct us_backend *be,
                            const struct us_train_config *cfg, struct us_train **ret,
                            struct us_err *err) US_WARN_UNUSED;
void us_train_free(struct us_train *t);

/* Host memory of item i of the next step's batch: input scale s f32 [P, P]; normalised target
 * f32 [P, P, T] (channels fastest). Different items and scales need not be adjacent. */
float *us_train_input(struct us_train *t, int32_t item, int32_t s);
float *us_train_target(struct us_train *t, int32_t item);
/* Test hook: noise of item i, [level] f32 [h, w, Z]; borrowed until the step returns. */
void us_train_set_eps(struct us_train *t, int32_t item, const float *const *eps);

struct us_train_result {
    double loss;                    /* rec + kl_weight * kl */
    double rec[US_MAX_TARGETS];     /* per channel, mean over the batch */
    double kl_level[US_MAX_LEVELS]; /* mean over the batch, before free bits */
    double kl;                      /* mean over levels, after free bits */
    double mse[US_MAX_TARGETS];     /* of the means, normalised units */
    double grad_norm;               /* before clipping */
    bool skipped;                   /* loss or gradients were not finite: nothing was changed */
};

struct us_train_step {
    int32_t n;     /* items in the batch, 1..cfg.batch */
    uint32_t step; /* number of the step: keys dropout and sampling */
    int64_t t;     /* Adamax's t, from 1: counts the steps that were not skipped */
    float lr;
    float kl_weight;
    bool no_update; /* test hook: gradients only */
};

/* Runs one step. A backend's failure is returned; NaN is not a failure (ret->skipped). */
enum us_status us_train_run(struct us_train *t, const struct us_train_step *s,
                            struct us_train_result *ret, struct us_err *err) US_WARN_UNUSED;

/* Brings the model's weights and statistics, and m and u below, up to date with the last step;
 * costs nothing where the backend trains in place. Call it before any of them is read. */
enum us_status us_train_pull(struct us_train *t, struct us_err *err) US_WARN_UNUSED;
/* The model's weights and statistics, m or u were written (resume): the next step begins with
 * them. */
enum us_status us_train_push(struct us_train *t, struct us_err *err) US_WARN_UNUSED;

/* Gradients of the last step before clipping (NULL if they cannot be had from the device), and
 * Adamax's m and u as of the last us_train_pull: each f32 [net->n_floats] at the parameter table's
 * offsets. Where nothing is trained gradients and m are 0 and u is at most eps. Host memory, valid
 * until free. */
const float *us_train_gradients(struct us_train *t);
float *us_train_moment_m(struct us_train *t);
float *us_train_moment_u(struct us_train *t);

struct us_train_stats {
    int32_t threads, n_steps;
    size_t item_bytes;   /* maps, per item of the batch */
    size_t worker_bytes; /* per worker */
    /* All of it: items, workers, packed weights, lanes, moments; of a device its own memory. */
    size_t total_bytes;
    double flops; /* of one item, forward and backward */
};
struct us_train_stats us_train_stats(const struct us_train *t);

#endif
