/*
 * The inference plan: a network (us_net.h) and its weights lowered to the ops of one backend, with
 * one memory block laid out by lifetime.
 *
 * Lowering: whatever the output does not need is dropped (conv_in_p, prior, KL, dropout); batch
 * norm after a convolution is folded into it; batch norm before one becomes its producer's tail;
 * pads become zero_outside rectangles, crops become the producer's output rectangle, a
 * concatenation before a 1x1 convolution becomes `merge`, the latent scaling goes into
 * conv_in_q. All are exact in exact arithmetic (evaluation-mode statistics).
 *
 * `struct us_plan` is immutable and shared; each worker thread has one `struct us_exec` with its
 * own memory block. After us_exec_new nothing is allocated.
 */
#ifndef US_PLAN_H
#define US_PLAN_H

#include "us_backend.h"
#include "us_net.h"

struct us_plan;
struct us_exec;

struct us_plan_config {
    enum us_dtype dtype; /* of activations inside the network */
    int32_t batch;       /* patches per run */
    bool latent_mean;    /* z = mean of the posterior (an HAE always does so) */
    bool keep_logvar;    /* also return the head's log-variance channels (before their clip) */
    bool reuse_encoder;  /* keep what does not depend on the sample alive for further samples */
    /* Inputs and output stay in the backend's memory and runs are only queued (us_exec_wait). */
    bool resident;
    /* The rectangle of the output that is wanted (inner padding drops the rest); h = 0: all. */
    struct us_rect keep;
    /* Compute every map whole even where the output does not need it. Off, each op computes the
     * smallest region its consumers need; the kept pixels are the same either way. */
    bool whole_maps;
    /* Sides and corners of those regions, rounded outwards to a multiple of this where the map has
     * room: work for nothing that may suit kernels. 0: as measured best (docs/PERFORMANCE.md),
     * 1: exact. The kept rectangle itself stays exact. */
    int32_t align;
};

struct us_plan_stats {
    int32_t n_ops;
    size_t packed_bytes; /* shared by all workers */
    size_t block_bytes;  /* per worker, scratch included */
    size_t sum_bytes;    /* what the maps would take without sharing memory */
    double flops;        /* per run of the whole network, all items of the batch */
    double flops_sample; /* of which must be repeated for each further sample */
};

/* weights: net->n_floats values at the parameter table's offsets, borrowed until return. */
enum us_status us_plan_build(const struct us_net *net, const float *weights, struct us_backend *be,
                             const struct us_plan_config *cfg, struct us_plan **ret,
                             struct us_err *err) US_WARN_UNUSED;
void us_plan_free(struct us_plan *p); /* every us_exec of it must be gone */

struct us_plan_stats us_plan_stats(const struct us_plan *p);
const struct us_net *us_plan_net(const struct us_plan *p);
/* Output channels per pixel: target_channels, or twice that with keep_logvar. */
int32_t us_plan_out_channels(const struct us_plan *p);
/* The output rectangle that us_exec_output holds. */
struct us_rect us_plan_keep(const struct us_plan *p);

/* One line per op: kind, shapes, rectangles, flops. For `usplit model show --plan` and tests. */
void us_plan_dump(const struct us_plan *p, void (*line)(void *arg, const char *text), void *arg);

/* To be called by the thread that will run it. */
enum us_status us_exec_new(const struct us_plan *p, struct us_exec **ret,
                           struct us_err *err) US_WARN_UNUSED;
void us_exec_free(struct us_exec *e);

/* f32 [batch, size, size] of input scale s, in host memory, to be filled before a run. Resident:
 * backend memory; NULL if the output ignores this scale. */
float *us_exec_input(struct us_exec *e, int32_t s);
/* f32 [batch, keep.h, keep.w, out_channels], host memory, valid after a run until the next.
 * Resident: backend memory. */
const float *us_exec_output(const struct us_exec *e);
/* What the latents draw in the next run, [batch], host memory; to be filled before it. Resident:
 * another place for each run, so that it can be filled while earlier runs go on. */
struct us_noise *us_exec_noise(struct us_exec *e);

/* Runs the whole network. Resident: queues it, at most US_EXEC_AHEAD runs between two waits. */
enum us_status us_exec_run(struct us_exec *e) US_WARN_UNUSED;
/* Runs only what depends on the sample, for the input of the last us_exec_run; needs
 * cfg.reuse_encoder. The caller has filled the noise anew. */
enum us_status us_exec_run_sample(struct us_exec *e) US_WARN_UNUSED;

/* The more, the less often the device stands still while the host sees that it has caught up; each
 * has its own noise and its own record of the work. */
#define US_EXEC_AHEAD 4
/* Runs queued since the last wait. */
int32_t us_exec_queued(const struct us_exec *e);
/* Waits until all queued work of the backend is done, and says how it ended. */
enum us_status us_exec_wait(struct us_exec *e) US_WARN_UNUSED;

/* Seconds spent per op kind since creation, [US_OP_COUNT]; collected only after
 * us_exec_profile(e, true). */
void us_exec_profile(struct us_exec *e, bool on);
const double *us_exec_seconds(const struct us_exec *e);

#endif
