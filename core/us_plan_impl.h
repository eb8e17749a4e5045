/*
 * Internal to the plan (us_plan*.c, us_exec.c): tensors, steps, and who does what.
 *
 *   us_plan_lower.c    network -> steps and tensors (which ops, which rectangles)
 *   us_plan_weights.c  canonical weights of a step: folding, slicing
 *   us_plan_memory.c   tensors -> offsets in one block, by lifetime
 *   us_plan.c          puts these together and asks the backend for its ops
 *   us_exec.c          one worker's memory and its run
 */
#ifndef US_PLAN_IMPL_H
#define US_PLAN_IMPL_H

#include "us_layout.h"
#include "us_plan.h"

/* One compact buffer in the worker's block. */
struct us_plan_tensor {
    struct us_map map;
    int32_t first, last; /* steps between which it holds its value; first -1: filled before */
    bool sample_dep;     /* changes with the posterior sample */
    int64_t offset;      /* bytes into the block */
};

/* One op of the plan. Tensor ids are -1 where absent; maps are the views that the op sees. */
struct us_plan_step {
    enum us_op_kind kind;
    int32_t in[US_OP_MAX_IN], out, out2;
    struct us_map in_map[US_OP_MAX_IN], out_map;
    int32_t k, stride, pad, level;
    enum us_act act;
    bool residual;
    /* Weights: the convolution's first parameter, the batch norm folded into it (or -1), the
     * factor on its input, how many of its output channels are wanted, the tail's batch norm. */
    int32_t param, fold_bn, tail_bn, n_out;
    float factor;
    bool sample_dep;
    struct us_op *op;
    size_t packed_offset;
};

struct us_plan {
    const struct us_net *net;
    struct us_backend *be;
    struct us_plan_config cfg;
    struct us_plan_step *steps;
    int32_t n_steps, cap_steps;
    struct us_plan_tensor *tensors;
    int32_t n_tensors, cap_tensors;
    int32_t input[US_MAX_SCALES]; /* tensor of each input scale, or -1 if the output ignores it */
    int32_t output;               /* tensor */
    void *packed;                 /* backend memory */
    size_t packed_bytes, block_bytes, scratch_offset, scratch_bytes;
};

/* Appends steps and tensors; the plan's net, be and cfg are set. */
enum us_status usi_plan_lower(struct us_plan *p, struct us_err *err) US_WARN_UNUSED;

/* Canonical weights of one step in freshly allocated memory; usi_step_weights_free afterwards. */
struct us_step_weights {
    struct us_op_weights view;
    float *block;
};
enum us_status usi_step_weights(const struct us_plan *p, const struct us_plan_step *s,
                                const float *weights, struct us_step_weights *ret) US_WARN_UNUSED;
void usi_step_weights_free(struct us_step_weights *w);

/* Gives every tensor its offset; sets block_bytes and scratch_offset. */
enum us_status usi_plan_layout(struct us_plan *p) US_WARN_UNUSED;

#endif
