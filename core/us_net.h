/*
 * The one description of a network: parameters (model-spec 11) and nodes (model-spec 3, 4, 7), at
 * the granularity of the paper's operations. From it come the parameter table of the model file,
 * the inference plan (us_plan.h) and, later, the training plan and the CUDA plan.
 *
 * Nodes are in execution order, each makes exactly one value; values are full maps of one item.
 */
#ifndef US_NET_H
#define US_NET_H

#include <stddef.h>
#include <stdint.h>

#include "us_arch.h"
#include "us_status.h"

enum us_param_kind {
    US_PARAM_CONV_W, /* [cout, cin, k, k], transposed: [cin, cout, k, k] */
    US_PARAM_CONV_B, /* [cout] */
    US_PARAM_BN_W,
    US_PARAM_BN_B,
    US_PARAM_BN_MEAN,
    US_PARAM_BN_VAR,
    US_PARAM_BN_COUNT, /* int64 scalar num_batches_tracked; in the counter block, optional */
    US_PARAM_PRIOR     /* top_prior_params [1, 2Z, h, w] */
};

enum us_param_flag {
    US_PARAM_TRAIN_ONLY = 1, /* prediction never reads it: may be missing for prediction */
    US_PARAM_DEAD = 2,       /* nothing ever reads it (spec 4.1): may be missing for prediction */
    US_PARAM_OPTIONAL = 4    /* may always be missing (counters) */
};

/* One entry of the state dictionary, in its order (spec 11.1). */
struct us_param {
    char name[US_MAX_PARAM_NAME];
    enum us_param_kind kind;
    uint32_t flags;
    int32_t ndim;
    int64_t dim[4];
    int64_t count;    /* elements */
    int64_t offset;   /* of element 0 in the float block, or in the counter block for BN_COUNT */
    int32_t alias_of; /* index of the entry that owns the data, or -1 (lowres_net, spec 11.1) */
};

enum us_node_op {
    US_N_INPUT,  /* scale `scale` of the input: [P, P, 1] */
    US_N_CONV,   /* k, stride, pad; params: weight, bias */
    US_N_CONV_T, /* k 3, stride 2, padding 1, output padding 1; params: weight, bias */
    US_N_BN,     /* params: weight, bias, mean, var, count */
    US_N_ELU,
    US_N_DROP2D, /* probability arch.dropout */
    US_N_GLU,    /* [a | g] -> ELU(a) * sigmoid(g) */
    US_N_ADD,    /* in[0] + in[1] */
    US_N_CONCAT, /* in[0] then in[1] along channels */
    US_N_PAD,    /* centred zero pad (spec 2 pad_to); dy, dx = rows/columns before */
    US_N_CROP,   /* dy, dx = rows/columns dropped at the start */
    US_N_MUL,    /* times `factor` (spec 4.5) */
    US_N_LATENT, /* posterior parameters q [2Z] -> z [Z] (spec 5.2, 5.3; HAE: the mean half) */
    US_N_PRIOR,  /* the learned top-level map [2Z]; params: prior */
    US_N_KL,     /* in: q, p, z; only the training loss reads it */
    US_N_OUTPUT  /* the head's 2*T (or T) channels */
};

struct us_node {
    enum us_node_op op;
    int32_t n_in;
    int32_t in[3]; /* value ids */
    int32_t out;   /* value id */
    int32_t param; /* index of the first parameter, or -1 */
    int32_t k, stride, pad;
    int32_t dy, dx;
    int32_t scale, level;
    float factor;
};

struct us_value {
    int32_t c, h, w;
    int32_t node; /* the node that makes it */
};

struct us_net {
    struct us_arch arch;
    int32_t patch; /* training patch size: fixes the prior's shape */
    int32_t size;  /* side of the input of this graph (= patch, or patch + 2p for outer padding) */
    struct us_param *params;
    int32_t n_params;
    int64_t n_floats, n_counters; /* sizes of the two parameter blocks, in elements */
    struct us_node *nodes;
    int32_t n_nodes;
    struct us_value *values;
    int32_t n_values;
    int32_t output; /* value id of the head's output */
};

/* Builds the network for inputs of `size` x `size` pixels whose weights were trained at `patch`.
 * *ret is owned by the caller (us_net_free). */
enum us_status us_net_build(const struct us_arch *arch, int32_t patch, int32_t size,
                            struct us_net **ret, struct us_err *err) US_WARN_UNUSED;
void us_net_free(struct us_net *net);

/* Index of the parameter called name, or -1. */
int32_t us_net_find_param(const struct us_net *net, const char *name);

/* Number of trainable elements (no running statistics, no counters, no aliases): spec 19.1. */
int64_t us_net_n_trainable(const struct us_net *net);

/* "CONV" and so on, for dumps. */
const char *us_node_op_name(enum us_node_op op);

#endif
