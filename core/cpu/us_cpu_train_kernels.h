/*
 * The cpu backend's own vector code for training: everything between the convolutions that walks
 * maps or parameters. us_cpu_train_kernels.c is compiled once per instruction set and gives the
 * same bits on each, as us_cpu_kernels.h explains: sums run per channel or per numbered lane, in
 * an order that no vector width changes.
 *
 * [2] stands for the dtype of the maps, [2][2] for dtype and `add` (+= instead of =). Maps of an
 * elementwise call may be one another, as us_train_ops.h allows. Lengths n are elements.
 */
#ifndef US_CPU_TRAIN_KERNELS_H
#define US_CPU_TRAIN_KERNELS_H

#include "us_train_ops.h"

/* One item of a posterior call; what a pass does not use is NULL. */
struct usi_cpu_posterior_args {
    const struct us_posterior *d;
    const struct us_draw *draw;
    const void *q, *p, *dz; /* dz NULL: zero */
    float per;              /* backward: the loss's derivative by one element's KL */
    void *z, *dq, *dp;
};

struct usi_cpu_train_kernels {
    /* As in us_train_ops.h. */
    void (*bn_stats[2])(const struct us_ew *e, const void *x, double *part);
    void (*bn_elu_fwd[2])(const struct us_ew *e, const void *x, const struct us_bn_affine *aff,
                          void *h);
    void (*bn_elu_bwd_stats[2])(const struct us_ew *e, const void *x, const void *dh,
                                const struct us_bn_affine *aff, double *part);
    void (*bn_elu_bwd[2][2])(const struct us_ew *e, const void *x, const void *dh,
                             const struct us_bn_affine *aff, const struct us_bn_grad *g, void *dx);
    void (*elu_fwd[2])(const void *x, void *y, int64_t n);
    void (*elu_bwd[2])(const void *y, const void *dy, void *dx, int64_t n);
    /* One item. */
    void (*dropout2d[2])(const struct us_ew *e, void *x, float p, const struct us_draw *draw,
                         uint32_t node);
    void (*glu_fwd[2])(const struct us_ew *e, const void *g, const void *res, void *out);
    void (*glu_bwd[2])(const struct us_ew *e, const void *g, const void *dout, void *dg);
    /* dst += src */
    void (*accumulate[2])(const void *src, void *dst, int64_t n);
    void (*scale[2])(void *x, float factor, int64_t n);
    /* y = x + bias per channel; x f32, maybe y itself. */
    void (*bias[2])(const struct us_ew *e, const float *x, const float *bias, void *y);
    void (*prior_load[2])(const struct us_ew *e, const float *prior, void *p);
    void (*prior_grad[2])(const struct us_ew *e, const void *dp, float *dprior);
    /* Returns the sum of the elements' KL. */
    double (*posterior_fwd[2])(const struct usi_cpu_posterior_args *a);
    void (*posterior_bwd[2])(const struct usi_cpu_posterior_args *a);
    double (*reduce_lanes)(const float *lanes, int64_t stride, int32_t n_lanes, int64_t n,
                           float *dst);
    void (*adamax)(const struct us_adamax *a, int64_t n, const float *g, float *m, float *u,
                   float *p);
};

#endif
