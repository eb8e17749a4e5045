/*
 * THE SEAM for training: what a backend must do besides prediction (us_backend.h). Every pointer
 * is backend memory unless it says host; maps are whole NHWC maps of `n` items in the descriptor's
 * dtype; sums, statistics, gradients of parameters and all parameters are f32 or f64 as stated.
 *
 * The plan (us_train_plan.h) decides order, memory and threads. On the CPU every call handles one
 * item (n = 1) and is made by whichever worker owns the item's lane; on a device (`batched`) n is
 * the step's items and one thread makes all calls, which only queue their work: draw, the eps it
 * points to and kl_weight then stand in host_alloc memory or the backend's own, and are read when
 * the work is done.
 * Calls allocate nothing and are deterministic: a sum's order is fixed by its arguments. "adds"
 * means +=, "writes" means =.
 *
 * Formulas: model-spec 2 (BN, ELU, dropout, init), 3.2 (gate), 5 (posterior, KL), 6 (likelihood),
 * 15 (Adamax). The scalar formulas and their derivatives stand once, in core/math.
 */
#ifndef US_TRAIN_OPS_H
#define US_TRAIN_OPS_H

#include "us_arch.h"
#include "us_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- convolutions -------------------------------------------------------------------------- */

/* k x k convolution, or (transposed) k 3, stride 2, padding 1, output padding 1. Whole maps. */
struct us_tconv_desc {
    struct us_map in, out;
    int32_t k, stride, pad;
    bool transposed;
};

/* First member of a backend's private object; immutable, shared by all workers. */
struct us_tconv {
    size_t packed_bytes;  /* weights in the layouts of forward and backward-data, and the bias */
    size_t scratch_bytes; /* per worker, during a call */
    double flops;         /* of one of the three directions */
};

struct us_tconv_ctx; /* one worker's handles for one convolution; backend-private */

/* ---- elementwise --------------------------------------------------------------------------- */

/* A map of n_px pixels (all items together) of c channels. */
struct us_ew {
    enum us_dtype dtype;
    int64_t n_px;
    int32_t c;
};

/* A channel slice and a window of a map, for concat, pad and crop: pixel (y, x), channel ch of
 * [h, w, c_total] at item i is element ((i*h + y)*w + x)*c_total + c_offset + ch. */
struct us_window {
    int32_t h, w; /* of the whole buffer */
    int32_t c_total, c_offset;
    int32_t y0, x0; /* where the copied rectangle starts */
};

/* Random numbers of a training step: dropout and posterior samples depend on (seed, step, item,
 * node or level, channel, position) only. item: index of the sample within the step's batch. */
struct us_draw {
    uint64_t seed;
    uint32_t step;
    uint32_t item;
    /* Test hook: eps[level] f32 [h, w, Z] for this item, host memory; NULL: draw. */
    const float *const *eps;
};

/* Batch norm of one layer, training mode. Arrays of c f32, backend memory. */
struct us_bn_affine {
    float *mean, *inv_std; /* batch statistics: mean, 1/sqrt(biased var + eps) */
    float *scale, *shift;  /* gamma * inv_std, beta - mean * scale */
};

/* What batch norm's backward needs, f32 [c] each: dx = a * dy' + b * x + d, where dy' is the
 * gradient at the ELU's input. */
struct us_bn_grad {
    float *a, *b, *d;
};

struct us_posterior {
    struct us_ew ew; /* c = Z; q and p have 2 Z channels */
    int32_t h, w, level;
    float var_clip_max; /* +INFINITY: none */
    bool analytical;    /* KL in closed form instead of the one-sample estimate */
    bool deterministic; /* HAE: z = mean half of q; p is NULL, no KL */
};

struct us_likelihood {
    int32_t h, w, targets;
    enum us_logvar logvar;
    float lower_bound;
    float weight[US_MAX_TARGETS]; /* w_c of spec 6; all 1 in the paper */
    bool mse;                     /* mean squared error on the means instead (spec 8) */
};

struct us_adamax {
    float lr, beta1, beta2, eps;
    double bias;      /* 1 - beta1^t */
    float grad_scale; /* min(1, clip / (norm + 1e-6)) */
};

/* How KLs become derivatives (spec 5.5): the loss has the mean over levels and batch. */
struct us_kl_share {
    int32_t levels, batch;
    float free_bits; /* < 1e-6: none; an item's KL below it gets no gradient */
};

struct us_train_ops {
    /* Each call has all items of a step, in one lane, and the backend keeps parameters and moments
     * in its own memory. Packed weights then do not depend on a descriptor's in.n: a smaller last
     * batch has plans of its own and shares them. */
    bool batched;

    enum us_status (*conv_plan)(struct us_backend *be, const struct us_tconv_desc *d,
                                struct us_tconv **ret, struct us_err *err);
    void (*conv_free)(struct us_backend *be, struct us_tconv *conv);
    /* One worker's handles; scratch: conv->scratch_bytes that this worker alone uses. */
    enum us_status (*conv_bind)(struct us_backend *be, const struct us_tconv *conv, void *scratch,
                                struct us_tconv_ctx **ret);
    void (*conv_unbind)(struct us_backend *be, struct us_tconv_ctx *ctx);
    /* w f32 in the state dict's layout ([out,in,k,k]; transposed [in,out,3,3]), b f32 [out]. */
    enum us_status (*conv_pack)(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                const float *b, void *packed);
    /* Writes y = conv(x) + b. */
    enum us_status (*conv_fwd)(struct us_backend *be, struct us_tconv_ctx *ctx, const void *packed,
                               const void *x, void *y);
    /* Writes dx. */
    enum us_status (*conv_bwd_data)(struct us_backend *be, struct us_tconv_ctx *ctx,
                                    const void *packed, const void *dy, void *dx);
    /* Adds to dw and db, f32, layouts of w and b. */
    enum us_status (*conv_bwd_weights)(struct us_backend *be, struct us_tconv_ctx *ctx,
                                       const void *x, const void *dy, float *dw, float *db);

    /* Writes part[0..c) = sum x, part[c..2c) = sum x^2 over the call's pixels; f64. */
    enum us_status (*bn_stats)(struct us_backend *be, const struct us_ew *e, const void *x,
                               double *part);
    /* parts [n_parts][2c], summed in order; count = pixels in all parts. Writes aff, updates
     * running_mean/var (momentum 0.1, unbiased variance). gamma, beta f32 [c]. */
    enum us_status (*bn_finish)(struct us_backend *be, int32_t c, const double *parts,
                                int32_t n_parts, int64_t count, const float *gamma,
                                const float *beta, struct us_bn_affine *aff, float *running_mean,
                                float *running_var);
    /* Writes h = ELU(scale * x + shift). */
    enum us_status (*bn_elu_fwd)(struct us_backend *be, const struct us_ew *e, const void *x,
                                 const struct us_bn_affine *aff, void *h);
    /* dy' = dh * ELU'(scale*x + shift). Writes part[0..c) = sum dy', part[c..2c) = sum dy' * xhat,
     * xhat = (x - mean) * inv_std; f64. */
    enum us_status (*bn_elu_bwd_stats)(struct us_backend *be, const struct us_ew *e, const void *x,
                                       const void *dh, const struct us_bn_affine *aff,
                                       double *part);
    /* Sums the parts in order; adds to dgamma and dbeta; writes g. */
    enum us_status (*bn_bwd_finish)(struct us_backend *be, int32_t c, const double *parts,
                                    int32_t n_parts, int64_t count, const float *gamma,
                                    const struct us_bn_affine *aff, struct us_bn_grad *g,
                                    float *dgamma, float *dbeta);
    /* dx += (adds) or = (writes) the gradient at the batch norm's input. dx may be dh. */
    enum us_status (*bn_elu_bwd)(struct us_backend *be, const struct us_ew *e, const void *x,
                                 const void *dh, const struct us_bn_affine *aff,
                                 const struct us_bn_grad *g, void *dx, bool add);

    /* Writes y = ELU(x); y may be x. */
    enum us_status (*elu_fwd)(struct us_backend *be, const struct us_ew *e, const void *x, void *y);
    /* dx = dy * ELU'; from the output: ELU' = y > 0 ? 1 : y + 1. dx may be dy. */
    enum us_status (*elu_bwd)(struct us_backend *be, const struct us_ew *e, const void *y,
                              const void *dy, void *dx);
    /* x *= mask: per (item, channel) 0 with probability p, else 1/(1-p). Forward and backward
     * alike. draw: [items] host memory; the map holds n_px / items pixels of each. */
    enum us_status (*dropout2d)(struct us_backend *be, const struct us_ew *e, void *x, float p,
                                const struct us_draw *draw, int32_t items, uint32_t node);
    /* g [.., 2c] = [a | s]: out = res + ELU(a) * sigmoid(s); c = e->c. out may be res. */
    enum us_status (*glu_fwd)(struct us_backend *be, const struct us_ew *e, const void *g,
                              const void *res, void *out);
    /* Writes dg [.., 2c] from g and dout. dg may be g. */
    enum us_status (*glu_bwd)(struct us_backend *be, const struct us_ew *e, const void *g,
                              const void *dout, void *dg);
    /* dst = src, or dst += src where add. */
    enum us_status (*accumulate)(struct us_backend *be, const struct us_ew *e, const void *src,
                                 void *dst, bool add);
    /* x *= factor. */
    enum us_status (*scale)(struct us_backend *be, const struct us_ew *e, void *x, float factor);
    /* Copies (or adds) an rh x rw rectangle of `c` channels of every item. */
    enum us_status (*window)(struct us_backend *be, enum us_dtype dtype, int32_t items, int32_t rh,
                             int32_t rw, int32_t c, const void *src, const struct us_window *from,
                             void *dst, const struct us_window *to, bool add);
    enum us_status (*fill_zero)(struct us_backend *be, void *dst, size_t bytes);
    /* f32 [n_px * c] -> dtype of e, or back. */
    enum us_status (*convert)(struct us_backend *be, const struct us_ew *e, const void *src,
                              enum us_dtype from, void *dst);

    /* The learned prior f32 [2Z][h*w] -> maps [items, h, w, 2Z], the same for each item; and its
     * gradient back (adds, item by item). e->n_px = h * w of one item. */
    enum us_status (*prior_load)(struct us_backend *be, const struct us_ew *e, int32_t items,
                                 const float *prior, void *p);
    enum us_status (*prior_grad)(struct us_backend *be, const struct us_ew *e, int32_t items,
                                 const void *dp, float *dprior);

    /* Writes z, and kl[item] = sum of KL over the item's elements / (Z h w); f64; 0 for an HAE.
     * draw [items], host memory; the noise is keyed as math/us_philox_math.h says for training. */
    enum us_status (*posterior_fwd)(struct us_backend *be, const struct us_posterior *d,
                                    int32_t items, const void *q, const void *p,
                                    const struct us_draw *draw, void *z, double *kl);
    /* Writes coef[item] = *kl_weight / (levels * batch), 0 below the free bits. */
    enum us_status (*kl_coef)(struct us_backend *be, const struct us_kl_share *d, int32_t items,
                              const double *kl, const float *kl_weight, float *coef);
    /* dz may be NULL (nothing flows back from z). Writes dq and dp (dp NULL for an HAE).
     * coef[item], f32: derivative of the loss by kl[item], already divided by nothing: the op
     * applies the 1 / (Z h w). The noise is drawn again, not stored. */
    enum us_status (*posterior_bwd)(struct us_backend *be, const struct us_posterior *d,
                                    int32_t items, const void *q, const void *p,
                                    const struct us_draw *draw, const void *dz, const float *coef,
                                    void *dq, void *dp);

    /* head f32 [items,h,w,2T], or T without log-variance: means first; target f32 [items,h,w,T]
     * normalised. Writes rec[item*T + c] = mean over pixels of the negative log-likelihood (f64; of
     * the squared error where mse, and then log-variances get no gradient), and dhead = f32
     * gradient of grad_weight * sum over items of (sum_c w_c rec_c / sum w). se[item*T + c] = mean
     * squared error of the means (f64; for PSNR). */
    enum us_status (*likelihood)(struct us_backend *be, const struct us_likelihood *d,
                                 int32_t items, const float *head, const float *target,
                                 float grad_weight, double *rec, double *se, float *dhead);

    /* dst[i] = sum over lanes, in order, of lane[l][i]; n elements; lanes are n apart by stride.
     * dst may be lanes if n_lanes is 1.
     * Writes *sq (f64) = sum of squares of the result, in blocks of a fixed size and order. */
    enum us_status (*reduce_lanes)(struct us_backend *be, const float *lanes, int64_t stride,
                                   int32_t n_lanes, int64_t n, float *dst, double *sq);
    /* Adamax over n elements (spec 15.1): m, u state; g scaled by grad_scale first. */
    enum us_status (*adamax)(struct us_backend *be, const struct us_adamax *a, int64_t n,
                             const float *g, float *m, float *u, float *p);
};

/* Checks a convolution's descriptor; every backend's conv_plan begins with it. US_E_ARG says what
 * does not fit: shapes, channels, or maps that are not whole. */
enum us_status us_tconv_check(const struct us_tconv_desc *d, struct us_err *err) US_WARN_UNUSED;

/* The training half of a backend; NULL if it has none. */
static inline const struct us_train_ops *us_backend_train_ops(const struct us_backend *be)
{
    return us_backend_ops(be)->train;
}

/* Each backend's own; its us_backend_ops.train points at it. */
extern const struct us_train_ops us_ref_train_ops;
extern const struct us_train_ops us_cpu_train_ops;

#ifdef __cplusplus
}
#endif
#endif
