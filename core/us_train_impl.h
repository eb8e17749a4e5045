/*
 * Internal to the training plan (us_train*.c): the program and its parts.
 *
 * A *program* is a list of instructions in segments. Within a segment every instruction runs for
 * every item of the batch, item by item, so that an item's maps stay in cache; between segments
 * the workers meet, and a segment may begin with one instruction that sees the whole batch
 * (batch-norm sums). On a batched backend there is one worker, whose every call takes all items.
 *
 *   us_train_lower.c    the network -> the forward half of the program
 *   us_train_reverse.c  the forward half, backwards -> the other half
 *   us_train_exec.c     what each instruction does
 *   us_train_memory.c   what is trained, where tensors stand, all memory
 *   us_train.c          workers, the step, results
 *   us_train_device.c   the step of a batched backend: sizes, graphs, what goes to and fro
 */
#ifndef US_TRAIN_IMPL_H
#define US_TRAIN_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "us_layout.h"
#include "us_train_plan.h"

enum us_instr_kind {
    US_I_INPUT,         /* a: map <- host input, scale `index` */
    US_I_CONV_FWD,      /* a = conv(b) */
    US_I_CONV_DATA,     /* a = gradient of conv's input from b */
    US_I_CONV_WEIGHTS,  /* b: conv's input, c: gradient of its output */
    US_I_BN_STATS,      /* b: map */
    US_I_BN_FINISH,     /* whole batch */
    US_I_BN_ELU,        /* a = ELU(bn(b)) */
    US_I_BN_BWD_STATS,  /* b: map, c: gradient of the ELU's output */
    US_I_BN_BWD_FINISH, /* whole batch */
    US_I_BN_BWD,        /* a (add?) gradient of map b from c */
    US_I_ELU,           /* a = ELU(a) */
    US_I_ELU_BWD,       /* a = gradient in place, b: the ELU's output */
    US_I_DROP,          /* a *= mask of node `index` */
    US_I_GLU,           /* a = c + glu(b) */
    US_I_GLU_BWD,       /* a = gradient of b from c; a may be b */
    US_I_ACCUMULATE,    /* a (add?) b */
    US_I_SCALE,         /* a *= factor */
    US_I_WINDOW,        /* rectangle of b into a (add?) */
    US_I_ZERO,          /* a = 0 */
    US_I_CONVERT,       /* a = b in a's dtype */
    US_I_PRIOR_LOAD,    /* a = the learned prior */
    US_I_PRIOR_GRAD,    /* b: gradient of that map */
    US_I_POSTERIOR,     /* a = z from q = b, p = c */
    US_I_POSTERIOR_BWD, /* a = dq, d = dp from q = b, p = c, dz = e */
    US_I_LIKELIHOOD     /* a = gradient of head b */
};

/* Operands are tensor ids, -1 where absent. `index` is the convolution, batch norm, latent, input
 * scale or node, as the kind says. */
struct us_instr {
    enum us_instr_kind kind;
    int32_t a, b, c, d, e, index;
    bool add;
    float factor;
    int32_t rh, rw, channels; /* WINDOW */
    struct us_window from, to;
    int32_t segment;
};

struct us_train_tensor {
    struct us_map map;   /* n = 1 */
    int32_t first, last; /* instructions */
    bool per_item;       /* lives across segments */
    size_t offset;       /* in the item's, the worker's or the batch's block */
};

struct us_train_conv {
    int32_t param;             /* weight; bias follows */
    struct us_tconv_desc desc; /* of one item */
    struct us_tconv *conv;     /* batched: of cfg.batch items */
    size_t packed_offset;
};

struct us_train_bn {
    int32_t param; /* weight, bias, mean, var, count follow one another */
    int32_t c;
    int64_t pixels; /* of one item */
    struct us_bn_affine aff;
    struct us_bn_grad grad;
    double *parts;                     /* [batch][2c]; batched: [2c] */
    float *running_mean, *running_var; /* in the weights; batched: in us_train.running */
};

struct us_train_latent {
    struct us_posterior desc;
    double *kl;  /* [batch], in the results */
    float *coef; /* [batch] */
    bool has_kl;
};

/* A run of trainable parameters, the unit of the update. */
struct us_train_chunk {
    int64_t offset, n;
};

struct us_train_worker {
    struct us_train *owner;
    int32_t index;
    pthread_t thread;
    bool started;
    char *block;               /* worker tensors, then scratch */
    struct us_tconv_ctx **ctx; /* [n_convs] */
    enum us_status status;
};

/* The program of a batched backend for one number of items. */
struct us_train_size {
    int32_t n;                      /* 0: none */
    struct us_train_worker *worker; /* whose convolutions are bound for n items */
    struct us_tconv **convs;        /* [n_convs]; NULL: those of us_train_conv */
    struct us_graph *graph;
    bool ran; /* once, without graph */
};

struct us_train {
    struct us_model *model;
    const struct us_net *net;
    struct us_backend *be;
    const struct us_train_ops *ops;
    struct us_train_config cfg;

    struct us_instr *program;
    int32_t n_program, cap_program, n_segments;
    int32_t *segment_start; /* [n_segments + 1] */
    struct us_train_tensor *tensors;
    int32_t n_tensors, cap_tensors;
    struct us_train_conv *convs;
    int32_t n_convs;
    struct us_train_bn *bns;
    int32_t n_bns;
    /* The batch norms' running statistics before the step, [n_running]: mean and variance of each
     * in turn. Batched: `running` holds those of now, and both are the backend's memory. */
    float *running_before, *running;
    int64_t n_running;
    struct us_train_latent latents[US_MAX_LEVELS];
    struct us_likelihood likelihood;
    int32_t prior_param; /* or -1 */
    struct us_train_chunk *chunks;
    int32_t n_chunks;

    /* Memory. Backend: items, packed, statics, lanes; batched also all of the next line but one,
     * of which the host then has mirrors (seen_...) instead of the same pointers. */
    char *items, *packed, *statics;
    float *lanes;
    int32_t n_lanes;
    size_t item_bytes, worker_bytes, worker_scratch, packed_bytes, static_bytes;
    float *weights, *gradients, *m, *u, *input, *target;
    float *seen_gradients, *seen_m, *seen_u, *host_input, *host_target;
    /* rec [batch][T], se [batch][T], kl [level][batch], sq [chunk]: one array. */
    double *results, *rec, *se, *chunk_sq, *seen_results;
    int64_t n_results;
    struct us_draw *draw;     /* host_alloc memory */
    struct us_draw *keys;     /* the same where ops read it: batched, in the backend's memory */
    float *kl_weight;         /* host_alloc memory */
    const float *const **eps; /* [batch], host: the test hook's, or NULL */
    const float **device_eps; /* host_alloc memory: [batch][level] and what they point to */
    bool fresh;               /* the model and the mirrors are as the last step left them */

    struct us_train_worker *workers;
    int32_t n_workers;
    struct us_train_worker other_worker; /* batched: binds the convolutions of sizes[1] */
    struct us_train_size sizes[2];       /* the full batch, and the last other number of items */
    struct us_train_size *size;          /* of the step that runs */
    pthread_barrier_t barrier;
    pthread_mutex_t gate;
    bool barrier_made;
    struct us_train_step step; /* of the step that runs */
    bool abandoned;            /* under the gate: not all threads could be had */
    bool quit;                 /* read only after a barrier */
    _Atomic bool failed;
    _Atomic bool skip;
    struct us_train_result result; /* of the step that runs; worker 0 writes it */
};

/* Builds the program (both halves), tensors, convs, bns, latents. */
enum us_status usi_train_lower(struct us_train *t, struct us_err *err) US_WARN_UNUSED;

/* Finds what is trained, places the tensors and takes all memory but the workers'. What it took is
 * in *t also after a failure, for usi_train_release, which frees it and what lowering made. */
enum us_status usi_train_alloc(struct us_train *t, struct us_err *err) US_WARN_UNUSED;
void usi_train_release(struct us_train *t);
/* `bytes` of backend memory and an aligned rest; *ret (a pointer of any type) is the caller's. */
enum us_status usi_train_buffer(struct us_train *t, size_t bytes, void *ret,
                                struct us_err *err) US_WARN_UNUSED;

/* Host memory, zeroed, that the backend's kernels can read. */
enum us_status usi_train_host(struct us_train *t, size_t bytes, void *ret,
                              struct us_err *err) US_WARN_UNUSED;

/* Binds all convolutions to w's block, which holds worker_bytes and then scratch. */
enum us_status usi_train_bind(struct us_train *t, struct us_train_worker *w,
                              struct us_tconv *const *convs, struct us_err *err) US_WARN_UNUSED;
void usi_train_unbind(struct us_train *t, struct us_train_worker *w);
/* Forward, backward and the gradients' norm, by all workers together. */
void usi_train_work(struct us_train_worker *w);
/* The first failure is kept and stops the others. */
void usi_train_note(struct us_train_worker *w, enum us_status s);

/* Runs the work on a batched backend and brings the results back. */
void usi_train_device_work(struct us_train *t);
enum us_status usi_train_device_size(struct us_train *t, int32_t n,
                                     struct us_err *err) US_WARN_UNUSED;
void usi_train_device_release(struct us_train *t);
/* us_train_push by who holds the backend. */
enum us_status usi_train_push(struct us_train *t, struct us_err *err) US_WARN_UNUSED;
/* A turn at a backend that others use too (us_backend.h, hold). */
void usi_train_hold(struct us_train *t);
void usi_train_let_go(struct us_train *t);

/* Items that one call of the backend handles. */
static inline int32_t usi_train_items(const struct us_train *t)
{
    return t->ops->batched ? t->step.n : 1;
}

/* Runs one instruction for one item (whole-batch kinds: item is ignored). */
enum us_status usi_train_exec(struct us_train_worker *w, const struct us_instr *i,
                              int32_t item) US_WARN_UNUSED;

/* ---- shared by the two halves of lowering -------------------------------------------------- */

/* How a value is had again when it is needed: from its own buffer, or by recomputation. */
enum us_recipe {
    US_R_NONE = 0,
    US_R_TENSOR, /* its own buffer */
    US_R_INPUT,  /* converted from the host's input */
    US_R_BN_ELU, /* batch norm and ELU of `source` */
    US_R_CONV,   /* a gate's 1x1 convolution of `source` */
    US_R_CONCAT, /* the node's two inputs */
    US_R_MUL,    /* factor times `source` */
    US_R_VIEW    /* a padded or cropped window of `source`; only concatenations read it */
};

struct us_train_value {
    enum us_recipe recipe;
    int32_t tensor; /* TENSOR */
    int32_t source; /* value id */
    int32_t index;  /* convolution or batch norm */
    int32_t oy, ox; /* VIEW: value (y, x) is source (y + oy, x + ox) */
    int32_t grad;   /* tensor of its gradient, or -1 */
};

struct us_train_lowering {
    struct us_train *t;
    const struct us_net *net;
    struct us_err *err;
    struct us_train_value *values;
    bool *done;     /* [node] */
    int32_t *order; /* nodes in the order of their emission */
    int32_t n_order;
    int32_t *conv_of; /* [node] convolution index, or -1 */
    int32_t *bn_of;   /* [node] */
    int32_t head_bwd; /* the head's convolution for backward (its output in cfg.dtype) */
    enum us_status status;
};

int32_t usi_tl_tensor(struct us_train_lowering *l, int32_t h, int32_t w, int32_t c,
                      enum us_dtype dtype);
struct us_instr *usi_tl_emit(struct us_train_lowering *l, enum us_instr_kind kind, int32_t a,
                             int32_t b, int32_t c, int32_t index);
/* The same with operands d and e. */
void usi_tl_emit_five(struct us_train_lowering *l, enum us_instr_kind kind, int32_t a, int32_t b,
                      int32_t c, int32_t d, int32_t e, int32_t index);
void usi_tl_barrier(struct us_train_lowering *l);
/* A tensor that holds value v now; recomputed if its recipe says so. */
int32_t usi_tl_operand(struct us_train_lowering *l, int32_t v);
/* Emits copies between half `which` of a concatenation buffer and what it was made from. */
void usi_tl_concat_half(struct us_train_lowering *l, int32_t node, int32_t which, int32_t buffer,
                        bool backward);
/* The only reader of v if it is of that kind, else -1. */
int32_t usi_tl_sole_user(const struct us_train_lowering *l, int32_t v, enum us_node_op op);
void usi_train_reverse(struct us_train_lowering *l);

#endif
