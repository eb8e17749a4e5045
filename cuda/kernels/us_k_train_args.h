/*
 * Arguments of the kernels of the training ops (us_k_train.def). Maps are whole and dense, all
 * items together, so that piece i is the elements from i * vec on.
 */
#ifndef US_K_TRAIN_ARGS_H
#define US_K_TRAIN_ARGS_H

#include <stdint.h>

#include "kernels/us_k_infer_args.h"
#include "math/us_adamax_math.h"
#include "us_train_ops.h"

/* vec: 8, 4 or 1; it divides c, and every address is a multiple of as many elements (up to 16
 * bytes). Where channels mean nothing c is vec. */
struct us_k_dense {
    int64_t n_px;
    int32_t c, vec;
    enum us_dtype dtype;
};

/* ---- weights. Canonical f32 [y_c][x_c][taps], which is the state dict's layout of convolutions
 * and of transposed ones (us_conv.h says what x and y are). ---- */

/* -> the library's [y_c][taps][x_c] in dtype. */
struct us_k_pack {
    const float *from;
    void *to;
    int32_t y_c, x_c, taps;
    enum us_dtype dtype;
};

/* -> `direct`'s f32 [taps][in][out], in = x and out = y, or the other way round. */
struct us_k_pack_direct {
    const float *from;
    float *to;
    int32_t y_c, x_c, taps;
    int32_t from_y; /* in = y */
};

/* The library's gradient, added to the canonical one. */
struct us_k_unpack_add {
    const float *from;
    float *to;
    int32_t y_c, x_c, taps;
};

/* The gradient by weights as plain sums: for the first layers, the head, and whatever the library
 * refuses. Added to the canonical one. */
struct us_k_filter {
    const void *x, *y;
    float *to;
    enum us_dtype dtype;
    int32_t n, x_h, x_w, x_c, y_h, y_w, y_c;
    int32_t k, stride, pad;
};

/* to[c] += sum over pixels. */
struct us_k_bias_grad {
    struct us_k_dense m; /* vec 4 or 1 */
    const void *dy;
    float *to;
};

/* ---- batch norm ---- */

struct us_k_bn_stats {
    struct us_k_dense m; /* vec 4 or 1 */
    const void *x;
    double *part;
};

struct us_k_bn_finish {
    int32_t c, n_parts;
    int64_t count;
    const double *parts;
    const float *gamma, *beta;
    struct us_bn_affine aff;
    float *running_mean, *running_var;
};

struct us_k_bn_elu {
    struct us_k_dense m;
    const void *x;
    const float *scale, *shift;
    void *h;
};

struct us_k_bn_bwd_stats {
    struct us_k_dense m; /* vec 4 or 1 */
    const void *x, *dh;
    struct us_bn_affine aff;
    double *part;
};

struct us_k_bn_bwd_finish {
    int32_t c, n_parts;
    int64_t count;
    const double *parts;
    const float *gamma;
    struct us_bn_affine aff;
    struct us_bn_grad grad;
    float *dgamma, *dbeta;
};

struct us_k_bn_bwd {
    struct us_k_dense m;
    const void *x, *dh;
    const float *scale, *shift;
    struct us_bn_grad grad;
    void *dx;
    int32_t add;
};

/* ---- maps ---- */

struct us_k_elu_fwd {
    struct us_k_dense m;
    const void *x;
    void *y;
};

struct us_k_elu_bwd {
    struct us_k_dense m;
    const void *y, *dy;
    void *dx;
};

/* A piece is US_K_DROP_RUN pixels of one item, so that its channels' numbers are drawn once. */
#define US_K_DROP_RUN 8
struct us_k_drop {
    struct us_k_dense m;
    int64_t px; /* of an item */
    int32_t items;
    void *x;
    float p;
    const struct us_draw *draw; /* [items], host memory */
    uint32_t node;
};

/* g has 2 c channels. */
struct us_k_glu_fwd {
    struct us_k_dense m;
    const void *g, *res;
    void *out;
};

struct us_k_glu_bwd {
    struct us_k_dense m;
    const void *g, *dout;
    void *dg;
};

struct us_k_accumulate {
    struct us_k_dense m;
    const void *src;
    void *dst;
    int32_t add;
};

struct us_k_scale {
    struct us_k_dense m;
    void *x;
    float factor;
};

struct us_k_window {
    struct us_k_grid grid;
    struct us_k_in from;
    struct us_k_out to;
    int32_t add;
};

/* m.dtype is that of dst. */
struct us_k_convert {
    struct us_k_dense m;
    const void *src;
    enum us_dtype from;
    void *dst;
};

/* prior f32 [c][px] <-> maps [items][px][c]. */
struct us_k_prior_load {
    struct us_k_dense m; /* vec 1 */
    int64_t px;
    const float *prior;
    void *p;
};

struct us_k_prior_grad {
    int64_t px;
    int32_t c, items;
    enum us_dtype dtype;
    const void *dp;
    float *dprior;
};

/* ---- losses. vec 4 or 1: a piece is one Philox block, four channels. ---- */

struct us_k_posterior {
    struct us_posterior d;
    int32_t items, vec;
    const void *q, *p;
    const struct us_draw *draw; /* [items], host memory, and so is what eps points to */
    void *z;
    double *kl;
};

struct us_k_kl_coef {
    struct us_kl_share d;
    int32_t items;
    const double *kl;
    const float *kl_weight; /* host memory */
    float *coef;
};

struct us_k_posterior_bwd {
    struct us_posterior d;
    int32_t items, vec;
    const void *q, *p, *dz; /* dz may be NULL */
    const struct us_draw *draw;
    const float *coef;
    void *dq, *dp;
};

/* The head's log-variances averaged over an item's pixels. */
struct us_k_pool {
    struct us_likelihood d;
    int32_t items;
    const float *head;
    double *pooled; /* [items][targets] */
};

struct us_k_likelihood {
    struct us_likelihood d;
    int32_t items, gaussian;
    const float *head, *target;
    double weight[US_MAX_TARGETS]; /* the gradient's, per pixel */
    double *rec, *se;
    float *dhead;
    const double *pooled; /* NULL: a log-variance per pixel, or none */
    double *pooled_d;     /* [items][targets]: the gradients by them */
};

/* A mean's gradient, shared out among what it was made of. */
struct us_k_spread {
    struct us_likelihood d;
    int32_t items;
    const double *pooled_d;
    float *dhead;
};

/* ---- the end of a step ---- */

struct us_k_lanes {
    const float *lanes;
    int64_t stride, n;
    int32_t n_lanes;
    float *to;
};

struct us_k_squares {
    const float *x;
    int64_t n;
    int32_t vec; /* 4 or 1 */
    double *sum;
};

struct us_k_adamax {
    struct us_adamax_step step;
    float grad_scale;
    int64_t n;
    int32_t vec; /* 4 or 1 */
    const float *g;
    float *m, *u, *p;
};

#endif
