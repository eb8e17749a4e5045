/*
 * Inside the reference backend's training half (us_train_ops.h): its functions, one file per group,
 * and what they share. f32 maps on plain loops; sums run in double.
 */
#ifndef US_REF_TRAIN_H
#define US_REF_TRAIN_H

#include "us_ref.h"
#include "us_train_ops.h"

/* US_E_UNSUPPORTED for a map that is not f32; the seam's calls carry no message. */
#define REF_NEED_F32(dtype)                                                                        \
    do {                                                                                           \
        if ((dtype) != US_F32)                                                                     \
            return US_E_UNSUPPORTED;                                                               \
    } while (0)

/* ---- us_ref_train_conv.c ---- */

enum us_status usi_ref_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                  struct us_tconv **ret, struct us_err *err);
void usi_ref_tconv_free(struct us_backend *be, struct us_tconv *conv);
enum us_status usi_ref_tconv_bind(struct us_backend *be, const struct us_tconv *conv, void *scratch,
                                  struct us_tconv_ctx **ret);
void usi_ref_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx);
enum us_status usi_ref_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                  const float *b, void *packed);
enum us_status usi_ref_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                 const void *packed, const void *x, void *y);
enum us_status usi_ref_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                      const void *packed, const void *dy, void *dx);
enum us_status usi_ref_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                         const void *x, const void *dy, float *dw, float *db);

/* ---- us_ref_train_norm.c ---- */

enum us_status usi_ref_bn_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                double *part);
enum us_status usi_ref_bn_finish(struct us_backend *be, int32_t c, const double *parts,
                                 int32_t n_parts, int64_t count, const float *gamma,
                                 const float *beta, struct us_bn_affine *aff, float *running_mean,
                                 float *running_var);
enum us_status usi_ref_bn_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                  const struct us_bn_affine *aff, void *h);
enum us_status usi_ref_bn_elu_bwd_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                        const void *dh, const struct us_bn_affine *aff,
                                        double *part);
enum us_status usi_ref_bn_bwd_finish(struct us_backend *be, int32_t c, const double *parts,
                                     int32_t n_parts, int64_t count, const float *gamma,
                                     const struct us_bn_affine *aff, struct us_bn_grad *g,
                                     float *dgamma, float *dbeta);
enum us_status usi_ref_bn_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                  const void *dh, const struct us_bn_affine *aff,
                                  const struct us_bn_grad *g, void *dx, bool add);

/* ---- us_ref_train_map.c ---- */

enum us_status usi_ref_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                               void *y);
enum us_status usi_ref_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *y,
                               const void *dy, void *dx);
enum us_status usi_ref_dropout2d(struct us_backend *be, const struct us_ew *e, void *x, float p,
                                 const struct us_draw *draw, int32_t items, uint32_t node);
enum us_status usi_ref_glu_fwd(struct us_backend *be, const struct us_ew *e, const void *g,
                               const void *res, void *out);
enum us_status usi_ref_glu_bwd(struct us_backend *be, const struct us_ew *e, const void *g,
                               const void *dout, void *dg);
enum us_status usi_ref_accumulate(struct us_backend *be, const struct us_ew *e, const void *src,
                                  void *dst, bool add);
enum us_status usi_ref_scale_map(struct us_backend *be, const struct us_ew *e, void *x,
                                 float factor);
enum us_status usi_ref_window(struct us_backend *be, enum us_dtype dtype, int32_t items, int32_t rh,
                              int32_t rw, int32_t c, const void *src, const struct us_window *from,
                              void *dst, const struct us_window *to, bool add);
enum us_status usi_ref_fill_zero(struct us_backend *be, void *dst, size_t bytes);
enum us_status usi_ref_convert(struct us_backend *be, const struct us_ew *e, const void *src,
                               enum us_dtype from, void *dst);
enum us_status usi_ref_prior_load(struct us_backend *be, const struct us_ew *e, int32_t items,
                                  const float *prior, void *p);
enum us_status usi_ref_prior_grad(struct us_backend *be, const struct us_ew *e, int32_t items,
                                  const void *dp, float *dprior);

/* ---- us_ref_train_loss.c ---- */

enum us_status usi_ref_posterior_fwd(struct us_backend *be, const struct us_posterior *d,
                                     int32_t items, const void *q, const void *p,
                                     const struct us_draw *draw, void *z, double *kl);
enum us_status usi_ref_kl_coef(struct us_backend *be, const struct us_kl_share *d, int32_t items,
                               const double *kl, const float *kl_weight, float *coef);
enum us_status usi_ref_posterior_bwd(struct us_backend *be, const struct us_posterior *d,
                                     int32_t items, const void *q, const void *p,
                                     const struct us_draw *draw, const void *dz, const float *coef,
                                     void *dq, void *dp);
enum us_status usi_ref_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                  int32_t items, const float *head, const float *target,
                                  float grad_weight, double *rec, double *se, float *dhead);

/* ---- us_ref_train_step.c ---- */

enum us_status usi_ref_reduce_lanes(struct us_backend *be, const float *lanes, int64_t stride,
                                    int32_t n_lanes, int64_t n, float *dst, double *sq);
enum us_status usi_ref_adamax(struct us_backend *be, const struct us_adamax *a, int64_t n,
                              const float *g, float *m, float *u, float *p);

#endif
